//! What must hold of an engine's state between any two events: for the simulator and unit tests.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::engine::conns::{Hold, Phase};
use crate::engine::instances::Link;
use crate::engine::pending::Place;
use crate::engine::{Delayed, Engine};
use crate::ids::{ConnId, InstanceId, StreamKey};
use crate::message::Micros;
use crate::routing::Mode;
use crate::stats::Counter;

/// One connection as an observer sees it.
#[derive(Clone, Copy, Debug)]
pub struct ConnView {
    /// Which.
    pub id: ConnId,
    /// How far it is.
    pub phase: Phase,
    /// Messages without an answer.
    pub unanswered: u32,
    /// Not read, for one cause or more.
    pub paused: bool,
}

/// What is under way, counted.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Messages without an answer.
    pub messages: usize,
    /// Ordered streams alive.
    pub streams: usize,
    /// Calls in flight.
    pub calls: usize,
    /// Connections, by slot.
    pub conns: Vec<ConnView>,
}

/// Sums over the messages that name one thing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Sum {
    items: usize,
    bytes: usize,
}

impl Sum {
    fn add(&mut self, bytes: usize) {
        self.items += 1;
        self.bytes += bytes;
    }
}

/// Says what is wrong unless `holds`.
fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

impl Engine {
    /// What is under way.
    pub fn view(&self) -> View {
        let conns = self.conns.iter().map(|(id, c)| ConnView {
            id,
            phase: c.phase,
            unanswered: c.unanswered,
            paused: !c.holds.is_empty(),
        });
        View {
            messages: self.messages.len(),
            streams: self.streams.len(),
            calls: self.tickets.len(),
            conns: conns.collect(),
        }
    }

    /// Whether the parts of the state agree with each other; says which do not. Costs a look at
    /// everything.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.check_queues()?;
        self.check_streams()?;
        self.check_calls()?;
        self.check_conns()?;
        self.check_metered()?;
        self.check_messages()
    }

    /// Promise 4, after [`Engine::end_turn`]: nothing that may leave waits for an instance that has
    /// nothing in flight, or longer than the window for one that has a free slot.
    pub fn check_no_delay(&self, now: Micros) -> Result<(), String> {
        let delayed: BTreeSet<Delayed> = self.delayed.iter().map(|&Reverse((_, d))| d).collect();
        let window_us = self.settings.batch.window_ms * 1000;
        for (key, m) in self.messages.iter().filter(|(_, m)| m.place == Place::Waiting) {
            let eligible = match m.stream {
                None => !delayed.contains(&Delayed::Message(key)),
                Some(stream) => {
                    let s = self.streams.get(stream);
                    s.head == Some(key) && s.busy.is_none() && !s.delayed
                }
            };
            let state = self.instances.get(m.instance);
            let slot = state.in_flight < self.slots(state.mode) && state.link != Link::Down;
            // One that was parked waits at most a window from when it came back: `oldest` looks at
            // the most urgent of those only.
            let waited = !m.parked && m.received.0 + window_us <= now.0;
            let due = state.in_flight == 0 || waited;
            ensure(!(eligible && slot && due), || {
                format!("{key:?} waits for {:?} with {} in flight", m.instance, state.in_flight)
            })?;
        }
        Ok(())
    }

    fn slots(&self, mode: Mode) -> usize {
        match mode {
            Mode::Batch => self.settings.batch.in_flight_max,
            Mode::Unary => self.settings.batch.calls_max,
        }
    }

    fn check_queues(&self) -> Result<(), String> {
        let mut waiting: BTreeMap<InstanceId, Sum> = BTreeMap::new();
        for (_, m) in self.messages.iter().filter(|(_, m)| m.place == Place::Waiting) {
            waiting.entry(m.instance).or_default().add(m.bytes());
        }
        let mut total = Sum::default();
        for (id, state) in self.instances.iter() {
            let found = waiting.remove(&id).unwrap_or_default();
            let kept = Sum { items: state.queue.items, bytes: state.queue.bytes };
            ensure(found == kept, || format!("queue of {id:?}: {kept:?}, in truth {found:?}"))?;
            total.items += kept.items;
            total.bytes += kept.bytes;
        }
        let kept = Sum { items: self.queue_items, bytes: self.queue_bytes };
        ensure(total == kept, || format!("queue of the shard: {kept:?}, in truth {total:?}"))?;
        let counted = self.counters.get(Counter::Enqueued) - self.counters.get(Counter::Dequeued);
        ensure(counted == total.items as u64, || {
            format!("enqueued - dequeued = {counted}, but {} wait", total.items)
        })
    }

    fn check_streams(&self) -> Result<(), String> {
        for (key, stream) in self.streams.iter() {
            ensure(self.streams.find(&stream.name) == Some(key), || {
                format!("{key:?} has no name")
            })?;
            ensure(stream.busy.is_some() || stream.head.is_some(), || {
                format!("{key:?} is idle and empty")
            })?;
            if let Some(ticket) = stream.busy {
                let call = self.tickets.get(ticket);
                ensure(call.is_some_and(|c| c.streams.contains(&key)), || {
                    format!("{key:?} is busy with {ticket:?}, which does not know it")
                })?;
            }
            let mut prev = None;
            let mut next = stream.head;
            while let Some(at) = next {
                let Some(m) = self.messages.get(at) else {
                    return Err(format!("{key:?} links {at:?}, which is gone"));
                };
                let right = m.place == Place::Waiting
                    && m.stream == Some(key)
                    && m.prev == prev
                    && m.instance == stream.instance;
                ensure(right, || format!("{key:?} links {at:?} wrongly: {m:?} {stream:?}"))?;
                (prev, next) = (Some(at), m.next);
            }
            ensure(stream.tail == prev, || format!("{key:?} has another tail"))?;
        }
        Ok(())
    }

    fn check_calls(&self) -> Result<(), String> {
        let mut in_flight: BTreeMap<InstanceId, usize> = BTreeMap::new();
        for (ticket, call) in self.tickets.iter() {
            let Some(instance) = call.instance else {
                return Err(format!("{ticket:?} has no instance"));
            };
            *in_flight.entry(instance).or_default() += 1;
            for &stream in &call.streams {
                let alive = self.streams.iter().any(|(k, s)| k == stream && s.busy == Some(ticket));
                ensure(alive, || format!("{ticket:?} has {stream:?}, which is not busy with it"))?;
            }
        }
        for (id, state) in self.instances.iter() {
            let found = in_flight.get(&id).copied().unwrap_or(0);
            ensure(found == state.in_flight, || {
                format!("{id:?}: in_flight {}, in truth {found}", state.in_flight)
            })?;
            let most = self.slots(state.mode);
            ensure(found <= most, || format!("{id:?}: {found} in flight, at most {most}"))?;
        }
        Ok(())
    }

    fn check_conns(&self) -> Result<(), String> {
        let mut named: BTreeMap<ConnId, Sum> = BTreeMap::new();
        for (_, m) in self.messages.iter() {
            named.entry(m.conn).or_default().add(m.bytes());
        }
        let mut late: BTreeMap<ConnId, u32> = BTreeMap::new();
        for conn in self.tickets.iter().flat_map(|(_, call)| &call.late) {
            *late.entry(*conn).or_default() += 1;
        }
        let mut upgraded = 0;
        for (id, conn) in self.conns.iter() {
            let found = named.get(&id).copied().unwrap_or_default();
            let kept = Sum { items: conn.unanswered as usize, bytes: conn.unanswered_bytes };
            ensure(found == kept, || format!("{id:?}: unanswered {kept:?}, in truth {found:?}"))?;
            ensure(conn.unanswered <= conn.terms.unanswered_max, || {
                format!("{id:?}: {} unanswered", conn.unanswered)
            })?;
            // Each cause has something that ends it.
            let holds = conn.holds;
            ensure(!holds.has(Hold::Unanswered) || conn.unanswered > 0, || {
                format!("{id:?} is held for answers that never come")
            })?;
            ensure(holds.has(Hold::Token) == conn.shown.is_some(), || {
                format!("{id:?}: {holds:?}, a token waits: {}", conn.shown.is_some())
            })?;
            ensure(holds.has(Hold::Move) == conn.moving.is_some(), || {
                format!("{id:?}: {holds:?}, a move waits: {}", conn.moving.is_some())
            })?;
            let late = late.remove(&id).unwrap_or(0);
            ensure(late == conn.late_calls, || {
                format!("{id:?}: {} late calls, in truth {late}", conn.late_calls)
            })?;
            let listed = self.away.contains(&id) || self.effects.moves.contains(&id);
            ensure(conn.moving.is_none() || !conn.is_at_rest() || listed, || {
                format!("{id:?} never moves")
            })?;
            upgraded += u64::from(conn.upgraded);
        }
        ensure(upgraded == self.upgraded, || {
            format!("sessions: {}, in truth {upgraded}", self.upgraded)
        })
    }

    /// Each message is where it can be found again.
    fn check_messages(&self) -> Result<(), String> {
        let (mut fresh, mut resumed) = (BTreeSet::new(), BTreeSet::new());
        for (id, state) in self.instances.iter() {
            let keys = state.queue.current_keys(id, &self.messages)?;
            for (keys, found) in [(keys.0, &mut fresh), (keys.1, &mut resumed)] {
                for key in keys {
                    ensure(found.insert(key), || format!("{key:?} is twice in {id:?}"))?;
                }
            }
        }
        let delayed: BTreeSet<Delayed> = self.delayed.iter().map(|&Reverse((_, d))| d).collect();
        for (key, m) in self.messages.iter() {
            if let Some(dedup) = m.dedup {
                ensure(self.dedup.waiting(dedup).is_some(), || format!("{key:?}: its id is lost"))?;
            }
            let stream: Option<StreamKey> = m.stream;
            match m.place {
                Place::Duplicate => {}
                Place::InFlight(ticket) => {
                    let known = self.tickets.get(ticket).is_some_and(|c| c.items.contains(&key));
                    ensure(known, || format!("{key:?} is in {ticket:?}, which lacks it"))?;
                    let carried = stream.is_none_or(|s| self.streams.get(s).busy == Some(ticket));
                    ensure(carried, || format!("{key:?}: its stream is not in {ticket:?}"))?;
                }
                Place::Waiting => {
                    let found =
                        if m.parked { resumed.contains(&key) } else { fresh.contains(&key) };
                    ensure(!m.parked || found == m.resumed, || format!("{key:?}: {m:?}"))?;
                    ensure(!(found && m.delayed), || format!("{key:?} is not delayed: {m:?}"))?;
                    let later = match stream {
                        None => delayed.contains(&Delayed::Message(key)),
                        Some(stream) => {
                            let s = self.streams.get(stream);
                            ensure(
                                !s.delayed || delayed.contains(&Delayed::Stream(stream)),
                                || format!("{stream:?} is delayed for ever"),
                            )?;
                            s.head != Some(key) || s.busy.is_some() || s.delayed
                        }
                    };
                    ensure(found || m.parked && later, || format!("{key:?} is lost: {m:?}"))?;
                }
            }
        }
        Ok(())
    }
}
