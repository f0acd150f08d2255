//! Invariants of the requests of a shard between any two events, for the simulator and tests.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::config::settings::{BatchSettings, ShardSettings};
use crate::engine::check::ensure;
use crate::engine::dispatcher::instances::Link;
use crate::engine::dispatcher::request::State;
use crate::engine::dispatcher::slots::{Line, Room, long_slots};
use crate::engine::dispatcher::{Delayed, Dispatcher};
use crate::engine::held::Held;
use crate::ids::{InstanceId, OwnerKey, SessionKey, StreamKey};
use crate::message::Micros;
use crate::stats::{Counter, Counters};

impl Dispatcher {
    /// Checks that the parts of the state agree with each other; the error names two that do not.
    /// Costs a pass over everything.
    pub fn check(&self, settings: &ShardSettings, counters: &Counters) -> Result<(), String> {
        self.check_queues(counters)?;
        self.check_backlogs()?;
        self.check_streams()?;
        self.check_calls(&settings.batch)?;
        self.check_requests()
    }

    /// Number and bytes of the requests under way, by session.
    pub fn unanswered(&self) -> BTreeMap<SessionKey, Held> {
        let mut named: BTreeMap<SessionKey, Held> = BTreeMap::new();
        for (_, r) in self.requests.iter() {
            named.entry(r.session_key).or_default().add(Held::one(r.bytes()));
        }
        named
    }

    /// Bytes that the answers to the requests under way are expected to have, by session.
    pub fn answer_bytes(&self) -> BTreeMap<SessionKey, usize> {
        let mut expected: BTreeMap<SessionKey, usize> = BTreeMap::new();
        for (_, r) in self.requests.iter() {
            *expected.entry(r.session_key).or_default() += r.answer_bytes;
        }
        expected
    }

    /// Number of requests answered as late whose call is in flight, by session.
    pub fn late_calls(&self) -> BTreeMap<SessionKey, u32> {
        let mut late: BTreeMap<SessionKey, u32> = BTreeMap::new();
        for session in self.calls.iter().flat_map(|(_, call)| &call.late) {
            *late.entry(*session).or_default() += 1;
        }
        late
    }

    /// Checks promise 4, after the end of a turn: no request that may leave waits for an instance
    /// that has nothing in flight, or longer than the window for one that has a free slot.
    pub fn check_no_delay(&self, settings: &BatchSettings, now: Micros) -> Result<(), String> {
        let delayed: BTreeSet<Delayed> = self.delayed.iter().map(|&Reverse((_, d))| d).collect();
        let window_us = settings.window_ms * 1000;
        for (key, r) in self.requests.iter().filter(|(_, r)| r.state == State::Waiting) {
            let eligible = match r.stream {
                None => !delayed.contains(&Delayed::Request(key)),
                Some(stream) => {
                    let s = self.ordering.get(stream);
                    s.head == Some(key) && s.busy.is_none() && !s.delayed && s.leaders == 0
                }
            };
            let state = self.instances.get(r.instance);
            let room = state.slots.room(settings, state.mode, r.position.line, now);
            let slot = matches!(room, Room::Free(_)) && state.link != Link::Down;
            // A request that was parked waits at most a window from when it came back: `oldest`
            // examines only the most urgent of those.
            let waited = !r.position.parked && r.received.0 + window_us <= now.0;
            let in_flight = state.slots.len();
            let due = in_flight == 0 || waited;
            ensure(!(eligible && slot && due), || {
                format!("{key:?} waits for {:?} with {in_flight} in flight", r.instance)
            })?;
        }
        Ok(())
    }

    fn check_queues(&self, counters: &Counters) -> Result<(), String> {
        let mut waiting: BTreeMap<InstanceId, Held> = BTreeMap::new();
        for (_, r) in self.requests.iter().filter(|(_, r)| r.state == State::Waiting) {
            waiting.entry(r.instance).or_default().add(Held::one(r.bytes()));
        }
        let mut total = Held::default();
        for (id, state) in self.instances.iter() {
            let found = waiting.remove(&id).unwrap_or_default();
            let kept = state.waiting();
            ensure(found == kept, || format!("queue of {id:?}: {kept:?}, in truth {found:?}"))?;
            total.add(kept);
        }
        let kept = Held { items: self.fill.items, bytes: self.fill.bytes };
        ensure(total == kept, || format!("queue of the shard: {kept:?}, in truth {total:?}"))?;
        let counted = counters.get(Counter::Enqueued) - counters.get(Counter::Dequeued);
        ensure(counted == total.items as u64, || {
            format!("enqueued - dequeued = {counted}, but {} wait", total.items)
        })
    }

    /// Checks that each owner in a backlog has what its requests come to.
    fn check_backlogs(&self) -> Result<(), String> {
        let mut truth: BTreeMap<(InstanceId, u8, OwnerKey), (Held, usize)> = BTreeMap::new();
        for (_, r) in self.requests.iter() {
            let Some(owner) = r.position.owner else { continue };
            let (held, in_flight) =
                truth.entry((r.instance, r.position.line as u8, owner)).or_default();
            match r.state {
                State::Waiting => held.add(Held::one(r.bytes())),
                State::InFlight(_) => *in_flight += 1,
                State::Duplicate => return Err(format!("a duplicate has {owner:?}")),
            }
        }
        for (id, state) in self.instances.iter() {
            for line in Line::ALL {
                for (owner, held, in_flight) in state.queue(line).check_owners()? {
                    let found = truth.remove(&(id, line as u8, owner)).unwrap_or_default();
                    ensure(found == (held, in_flight), || {
                        format!("{owner:?} of {id:?}: {held:?}, {in_flight}; in truth {found:?}")
                    })?;
                }
            }
        }
        ensure(truth.is_empty(), || format!("owners that no backlog has: {truth:?}"))
    }

    fn check_streams(&self) -> Result<(), String> {
        let mut leaders: BTreeMap<StreamKey, u32> = BTreeMap::new();
        for (key, _) in self.ordering.iter() {
            let followers = self.ordering.followers(key);
            ensure(
                followers.is_empty() || self.ordering.has_unsigned(key, &self.requests),
                || format!("{key:?} is waited for, and has nothing from before the sign-in"),
            )?;
            followers.iter().for_each(|follower| *leaders.entry(*follower).or_default() += 1);
        }
        for (key, stream) in self.ordering.iter() {
            ensure(self.ordering.find(&stream.name) == Some(key), || {
                format!("{key:?} has no name")
            })?;
            ensure(stream.busy.is_some() || stream.head.is_some(), || {
                format!("{key:?} is idle and empty")
            })?;
            let found = leaders.get(&key).copied().unwrap_or(0);
            ensure(stream.leaders == found, || {
                format!("{key:?} waits for {} streams, in truth {found}", stream.leaders)
            })?;
            if let Some(ticket) = stream.busy {
                let call = self.calls.get(ticket);
                ensure(call.is_some_and(|c| c.streams.contains(&key)), || {
                    format!("{key:?} is busy with {ticket:?}, which does not know it")
                })?;
            }
            let mut prev = None;
            let mut next = stream.head;
            while let Some(at) = next {
                let Some(r) = self.requests.get(at) else {
                    return Err(format!("{key:?} links {at:?}, which is gone"));
                };
                let right = r.state == State::Waiting
                    && r.stream == Some(key)
                    && r.links.prev == prev
                    && r.instance == stream.instance
                    && prev
                        .and_then(|prev| self.requests.get(prev))
                        .is_none_or(|first| first.position.line == r.position.line);
                ensure(right, || format!("{key:?} links {at:?} wrongly: {r:?} {stream:?}"))?;
                (prev, next) = (Some(at), r.links.next);
            }
            ensure(stream.tail == prev, || format!("{key:?} has another tail"))?;
        }
        Ok(())
    }

    fn check_calls(&self, settings: &BatchSettings) -> Result<(), String> {
        let mut in_flight: BTreeMap<InstanceId, usize> = BTreeMap::new();
        for (ticket, call) in self.calls.iter() {
            let Some(instance) = call.instance else {
                return Err(format!("{ticket:?} has no instance"));
            };
            *in_flight.entry(instance).or_default() += 1;
            for &stream in &call.streams {
                let alive =
                    self.ordering.iter().any(|(k, s)| k == stream && s.busy == Some(ticket));
                ensure(alive, || format!("{ticket:?} has {stream:?}, which is not busy with it"))?;
            }
        }
        for (id, state) in self.instances.iter() {
            let found = in_flight.get(&id).copied().unwrap_or(0);
            ensure(found == state.slots.len(), || {
                format!("{id:?}: in_flight {}, in truth {found}", state.slots.len())
            })?;
            let most = long_slots(settings, state.mode);
            ensure(found <= most, || format!("{id:?}: {found} in flight, at most {most}"))?;
        }
        Ok(())
    }

    /// Checks that each request is where it can be found again.
    fn check_requests(&self) -> Result<(), String> {
        let (mut fresh, mut resumed) = (BTreeSet::new(), BTreeSet::new());
        for (id, state) in self.instances.iter() {
            for queue in &state.queues {
                let keys = queue.current_keys(&self.requests)?;
                for (keys, found) in [(keys.0, &mut fresh), (keys.1, &mut resumed)] {
                    for key in keys {
                        ensure(found.insert(key), || format!("{key:?} is twice in {id:?}"))?;
                    }
                }
            }
        }
        let delayed: BTreeSet<Delayed> = self.delayed.iter().map(|&Reverse((_, d))| d).collect();
        for (key, r) in self.requests.iter() {
            if let Some(dedup) = r.dedup {
                ensure(self.dedup.waiting(dedup).is_some(), || format!("{key:?}: its id is lost"))?;
            }
            let stream: Option<StreamKey> = r.stream;
            match r.state {
                State::Duplicate => {}
                State::InFlight(ticket) => {
                    let known = self.calls.get(ticket).is_some_and(|c| c.items.contains(&key));
                    ensure(known, || format!("{key:?} is in {ticket:?}, which lacks it"))?;
                    let carried = stream.is_none_or(|s| self.ordering.get(s).busy == Some(ticket));
                    ensure(carried, || format!("{key:?}: its stream is not in {ticket:?}"))?;
                }
                State::Waiting => {
                    let found = if r.position.parked {
                        resumed.contains(&key)
                    } else {
                        fresh.contains(&key)
                    };
                    ensure(!r.position.parked || found == r.position.resumed, || {
                        format!("{key:?}: {r:?}")
                    })?;
                    ensure(!(found && r.delayed), || format!("{key:?} is not delayed: {r:?}"))?;
                    let later = match stream {
                        None => delayed.contains(&Delayed::Request(key)),
                        Some(stream) => {
                            let s = self.ordering.get(stream);
                            ensure(
                                !s.delayed || delayed.contains(&Delayed::Stream(stream)),
                                || format!("{stream:?} is delayed for ever"),
                            )?;
                            s.head != Some(key) || s.busy.is_some() || s.delayed || s.leaders > 0
                        }
                    };
                    ensure(found || r.position.parked && later, || {
                        format!("{key:?} is lost: {r:?}")
                    })?;
                }
            }
        }
        Ok(())
    }
}
