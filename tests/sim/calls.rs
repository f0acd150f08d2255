//! Calls under way, and the connections of shards to instances that carry them.

use std::collections::BTreeSet;

use bytes::Bytes;
use shardgate::engine::dispatcher::instances::Link;
use shardgate::ids::{InstanceId, Ticket};
use shardgate::message::{Call, CallError, CallFault, Micros, Outcome, Started, status};
use shardgate::routing::Snapshot;

use crate::backend::{self, Channel, State};
use crate::sessions::SESSIONS;
use crate::world::{Event, World};

impl World {
    /// Asks an instance for a sign of life: it comes, if the connection is up then.
    pub fn ask(&mut self, s: usize, id: u32) {
        let after = self.dice.range(50, 5_000);
        self.at(after, Event::Alive(s, id));
    }

    pub fn is_alive(&mut self, s: usize, id: u32) {
        let is_up = self.shards[s].channels.get(&id).is_some_and(|c| c.state == State::Up);
        if is_up && !self.shards[s].stopped {
            let now = Micros(self.now);
            self.shards[s].engine.on_alive(InstanceId(id), now);
            self.wake(s);
        }
    }

    pub fn start_calls(&mut self, s: usize, calls: &mut Vec<Call>) {
        for mut call in calls.drain(..) {
            let ticket = call.ticket.0;
            let mut flying = backend::read_call(s, &mut call);
            let units: Vec<u64> = flying.items.iter().map(|i| i.unit).collect();
            self.oracle.departs(s, ticket, &units);
            if let Some(tenancy) = &mut self.tenancy {
                let items = flying.items.iter();
                items.for_each(|item| tenancy.departs(s, flying.instance, item, self.now));
            }
            self.note(&[s as u64, ticket, u64::from(flying.instance), call.timeout_us]);
            self.note(&units);
            let channel = &self.shards[s].channels[&flying.instance];
            let (closed, state) = (channel.closed, channel.state);
            let answer_us = self.plan.faults.answer_us;
            let mut after = self.dice.range(50, answer_us);
            flying.sent = !closed && state == State::Up;
            if closed || state == State::Down {
                let why = CallFault::NotConnected;
                let failed = backend::error(why, Started::No, status::UNAVAILABLE, &mut self.dice);
                flying.result = Some(Err(CallError { pushback: None, ..failed }));
                after = self.dice.below(500);
            }
            let sent = flying.sent;
            let failed = flying.result.is_some();
            let before = self.calls.insert((s, ticket), flying);
            assert!(before.is_none(), "a ticket is used once at a time");
            self.at(call.timeout_us, Event::TimesOut(s, ticket));
            if failed && closed && self.dice.chance(50) {
                self.call_ends(s, ticket); // from within `send`, as an ended channel does
            } else if failed {
                self.at(after, Event::Ends(s, ticket));
            } else if sent {
                self.at(after, Event::Arrives(s, ticket));
            }
        }
    }

    /// A call arrives at its instance, which decides its result.
    pub fn call_arrives(&mut self, s: usize, ticket: u64) {
        let Some(call) = self.calls.get_mut(&(s, ticket)) else { return };
        if call.result.is_some() || call.arrived {
            return;
        }
        call.arrived = true;
        let (items, unary) = (call.items.clone(), call.unary);
        let faults = self.plan.faults.clone();
        let trouble = |percent| if self.active { percent } else { 0 };
        let (fail, hang) = (trouble(faults.fail), trouble(faults.hang));
        let (garbage, item) = (trouble(faults.garbage), trouble(faults.item));
        let mut after = self.dice.range(10, faults.answer_us);
        let result = if self.dice.chance(fail) {
            let failure = backend::failure(&mut self.dice);
            let count = match failure.started {
                Started::No => 0,
                Started::Maybe => self.dice.below(items.len() as u64 + 1) as usize,
            };
            self.execute(s, &items[..count]);
            Err(failure)
        } else if self.dice.chance(hang) {
            let count = self.dice.below(items.len() as u64 + 1) as usize;
            self.execute(s, &items[..count]);
            return;
        } else {
            let runs = self.execute(s, &items);
            if unary {
                Ok(format!("{{\"n\":{},\"u\":{}}}", runs[0], items[0].unit).into())
            } else if self.dice.chance(garbage) {
                Ok(Bytes::from_static(&[10, 200, 1, 2]))
            } else {
                let body = backend::answer(&items, &runs, item, faults.large, &mut self.dice);
                Ok(self.speaks(s, ticket, body))
            }
        };
        if self.dice.chance(5) {
            after *= 20;
        }
        self.calls.get_mut(&(s, ticket)).expect("seen above").result = Some(result);
        self.at(after, Event::Ends(s, ticket));
    }

    pub fn execute(&mut self, s: usize, items: &[backend::Item]) -> Vec<u64> {
        let mut runs = Vec::new();
        for item in items {
            let peer = self.oracle.peer(item.unit).filter(|_| item.seq > 0);
            let order = peer.map(|p| match p.checked_sub(SESSIONS) {
                Some(k) => self.travel.sessions[k].sent[&item.seq].order,
                None => self.peers[p].sent[&item.seq].order,
            });
            runs.push(self.oracle.runs(item.unit, (s, item.request_id), order));
        }
        runs
    }

    pub fn call_ends(&mut self, s: usize, ticket: u64) {
        let Some(call) = self.calls.remove(&(s, ticket)) else { return };
        let units: Vec<u64> = call.items.iter().map(|i| i.unit).collect();
        self.oracle.ends(s, ticket, &units);
        let result = call.result.expect("scheduled with its result");
        self.note(&[s as u64, ticket, u64::from(result.is_ok())]);
        if let Ok(body) = &result {
            self.trace.update(body);
        }
        let outcome = Outcome { ticket: Ticket(ticket), result };
        if !self.shards[s].stopped {
            self.shards[s].engine.on_outcome(outcome, Micros(self.now));
            self.wake(s);
        }
    }

    pub fn call_times_out(&mut self, s: usize, ticket: u64) {
        let Some(call) = self.calls.get_mut(&(s, ticket)) else { return };
        let started = if call.sent { Started::Maybe } else { Started::No };
        call.result = Some(Err(CallError {
            fault: CallFault::TimedOut,
            started,
            status: status::DEADLINE_EXCEEDED,
            message: String::new(),
            pushback: None,
            going_away: false,
        }));
        self.call_ends(s, ticket);
    }

    pub fn open_channels(&mut self, s: usize, snapshot: &Snapshot) {
        for instance in &snapshot.instances {
            let id = instance.id.0;
            if self.shards[s].channels.contains_key(&id) {
                continue;
            }
            let channel = Channel { state: State::Connecting, closed: false };
            self.shards[s].channels.insert(id, channel);
            let after = self.dice.below(5_000);
            let fails = self.plan.faults.flap_ms > 0 && self.dice.chance(20);
            self.at(after, if fails { Event::Break(s, id) } else { Event::Up(s, id) });
        }
        let here: BTreeSet<u32> = snapshot.instances.iter().map(|i| i.id.0).collect();
        for (id, channel) in &mut self.shards[s].channels {
            channel.closed |= !here.contains(id);
        }
    }

    pub fn link_up(&mut self, s: usize, id: u32) {
        let channel = self.shards[s].channels.get_mut(&id).expect("channels stay");
        if channel.state == State::Up {
            return;
        }
        channel.state = State::Up;
        if !channel.closed && !self.shards[s].stopped {
            self.shards[s].engine.on_link(InstanceId(id), Link::Up, "", Micros(self.now));
            self.wake(s);
        }
        let waiting = self
            .calls
            .iter_mut()
            .filter(|(key, c)| key.0 == s && c.instance == id && !c.sent && c.result.is_none());
        let mut sent = Vec::new();
        for (&(_, ticket), call) in waiting {
            call.sent = true;
            sent.push(ticket);
        }
        for ticket in sent {
            let after = self.dice.range(50, self.plan.faults.answer_us);
            self.at(after, Event::Arrives(s, ticket));
        }
    }

    /// The connection is lost, or the attempt failed: calls end one by one, before and after the
    /// engine gets the event of the link.
    pub fn link_breaks(&mut self, s: usize, id: u32) {
        let channel = self.shards[s].channels.get_mut(&id).expect("channels stay");
        if channel.state == State::Down {
            return;
        }
        channel.state = State::Down;
        let closed = channel.closed;
        let first = self.dice.chance(50);
        if first {
            self.report_down(s, id, closed);
        }
        let broken = self.calls.iter().filter(|(key, c)| key.0 == s && c.instance == id);
        let broken: Vec<(u64, bool)> = broken.map(|(key, c)| (key.1, c.sent)).collect();
        if !broken.is_empty() {
            self.shards[s].engine.on_connection_broken(InstanceId(id), Micros(self.now));
        }
        for (ticket, sent) in broken {
            let (fault, started) = match sent {
                true => (CallFault::ConnectionLost, Started::Maybe),
                false => (CallFault::NotConnected, Started::No),
            };
            let failed = backend::error(fault, started, status::UNAVAILABLE, &mut self.dice);
            let call = self.calls.get_mut(&(s, ticket)).expect("just seen");
            call.result = Some(Err(CallError { pushback: None, ..failed }));
            if self.dice.chance(50) {
                self.call_ends(s, ticket);
            } else {
                let after = self.dice.below(300);
                self.at(after, Event::Ends(s, ticket));
            }
        }
        if !first {
            self.report_down(s, id, closed);
        }
        let longest = if self.active { 200_000 } else { 5_000 };
        let after = self.dice.range(500, longest);
        self.at(after, Event::Up(s, id));
    }

    pub fn report_down(&mut self, s: usize, id: u32, closed: bool) {
        if !closed && !self.shards[s].stopped {
            self.shards[s].engine.on_link(InstanceId(id), Link::Down, "", Micros(self.now));
            self.wake(s);
        }
    }

    pub fn flap(&mut self) {
        if !self.active {
            return;
        }
        let s = self.dice.below(self.plan.shards as u64) as usize;
        let ids: Vec<u32> = self.shards[s].channels.keys().copied().collect();
        let id = self.dice.pick(&ids);
        self.link_breaks(s, id);
        let after = self.dice.below(self.plan.faults.flap_ms * 2_000) + 1;
        self.at(after, Event::Flap);
    }
}
