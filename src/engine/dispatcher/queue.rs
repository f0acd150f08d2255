//! The priority queue of one instance: promise 3.
//!
//! As long as everything that waits leaves with the next calls, nobody has to be chosen before
//! others, and the next request is, among the eligible, the one with the smallest *arrival time +
//! class delay*.
//! Arrival times rise, so within a class the order of that sum is the order of arrival: four plain
//! queues and a comparison of their fronts give the order of a heap in O(1). A request is
//! *eligible* when it is the first waiting one of its stream and no other call carries requests of
//! that stream. One that reaches the front while it is not is *parked*: it leaves the class queue,
//! stays linked in its stream, and comes back through `resumed`, a small heap, when its turn in the
//! stream has come. A request is parked at most once each time it is queued, so a blocked stream
//! costs others nothing.
//!
//! When more waits than the free slots can soon carry, the queue is [shared](Sharing): see
//! `sharing`.

mod sharing;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::engine::dispatcher::backlog::{Backlog, Entry, Rank};
use crate::engine::dispatcher::ordering::Ordering;
use crate::engine::dispatcher::request::{QueuePosition, Request, Requests, State};
use crate::engine::dispatcher::slots::Kept;
use crate::ids::{InstanceId, MsgKey, Ticket};
use crate::message::Micros;

/// A call that takes requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taker {
    pub ticket: Ticket,
    /// Requests that it has.
    pub items: usize,
    /// Owners that its slot is kept for; `None` = for all.
    pub kept: Option<Kept>,
}

impl Taker {
    /// Whether the request may be in a call with as many.
    fn has_place_for(&self, request: &Request) -> bool {
        self.items == 0 || self.items < usize::from(request.position.company)
    }
}

/// Ticks between two looks whether a shared queue is even again: each is a pass over the owners.
pub(crate) const EVEN_TICKS: u32 = 10;
/// Calls over which the cost of a request is smoothed.
const COST_CALLS: u64 = 8;

/// Whether what waits is divided between its owners.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sharing {
    /// Owners are not looked at: all that waits leaves soon.
    Off,
    /// Owners are counted, and none has much waiting: the order of arrival is fair to them.
    Even,
    /// All that waits is spread over its owners, and the next request is the one that [`Backlog`]
    /// names. Every request is parked, and listed with its owner.
    On,
}

/// Requests that wait for one instance.
#[derive(Debug)]
pub struct InstanceQueue {
    instance: InstanceId,
    /// Delay of each class, critical first.
    delays_us: [u64; 4],
    fresh: [VecDeque<MsgKey>; 4],
    resumed: BinaryHeap<Reverse<Entry>>,
    /// Owners of what waits, once they were counted; requests in flight are counted in it too.
    backlog: Option<Box<Backlog>>,
    sharing: Sharing,
    /// Ticks since it was last seen whether a shared queue is even again.
    shared_ticks: u32,
    /// Smoothed cost of a request, in microseconds of a slot, times [`COST_CALLS`].
    costs_us: u64,
    /// Requests that wait, parked ones included.
    pub(crate) items: usize,
    /// Bytes of the requests that wait.
    pub(crate) bytes: usize,
    /// Keys in `fresh`, `resumed` and the backlog whose request does not wait there any more.
    stale: usize,
}

impl InstanceQueue {
    /// The empty queue of `instance`. `delays_us` is the delay of each class, critical first.
    pub fn new(instance: InstanceId, delays_us: [u64; 4]) -> Self {
        Self {
            instance,
            delays_us,
            fresh: Default::default(),
            resumed: BinaryHeap::new(),
            backlog: None,
            sharing: Sharing::Off,
            shared_ticks: 0,
            costs_us: 0,
            items: 0,
            bytes: 0,
            stale: 0,
        }
    }

    /// Changes the delay of each class. Parked requests that may be taken keep their rank.
    pub(crate) fn set_delays(&mut self, delays_us: [u64; 4]) {
        self.delays_us = delays_us;
    }

    /// Appends a request that has just arrived, as the last of its stream and of its class.
    pub fn push(&mut self, key: MsgKey, requests: &mut Requests, ordering: &mut Ordering) {
        let request = requests.get_mut(key).expect("pushed requests exist");
        let stream = request.stream;
        request.state = State::Waiting;
        let is_shared = self.is_shared();
        (request.position.parked, request.position.resumed) = (is_shared, false);
        self.items += 1;
        self.bytes += request.bytes();
        if !is_shared {
            self.fresh[request.handling.priority.index()].push_back(key);
        }
        if let Some(stream) = stream {
            ordering.link_last(stream, key, requests);
        }
        if self.sharing == Sharing::Off {
            return;
        }
        let request = requests.get_mut(key).expect("just put in");
        self.join(request);
        if !is_shared {
            self.share_if_uneven(request.position.owner, requests);
        } else if stream.is_none_or(|stream| ordering.get(stream).head == Some(key)) {
            // Otherwise its stream lists another one when it is its turn.
            self.resume_parked(key, request);
        }
    }

    /// Puts a request back whose call has failed, or that comes from another instance's queue. Its
    /// stream links are already right; it keeps its time of arrival.
    pub(crate) fn put_back(&mut self, key: MsgKey, requests: &mut Requests) {
        let request = requests.get_mut(key).expect("returned requests exist");
        request.state = State::Waiting;
        let QueuePosition { line, company, generation, .. } = request.position;
        request.position = QueuePosition {
            parked: true,
            generation: generation.wrapping_add(1),
            ..QueuePosition::new((line, company))
        };
        self.items += 1;
        self.bytes += request.bytes();
        if self.sharing != Sharing::Off {
            self.join(request);
            let owner = request.position.owner;
            self.share_if_uneven(owner, requests);
        }
    }

    /// Takes note of what each request of a call has cost, in microseconds of a slot: the next ones
    /// are thought to cost as much as the last eight calls or so.
    pub(crate) fn note_cost(&mut self, cost_us: u64) {
        self.costs_us = self.costs_us - self.costs_us / COST_CALLS + cost_us;
    }

    /// Cost of a request before its call has ended, in microseconds of a slot.
    pub(crate) fn cost_us(&self) -> u64 {
        (self.costs_us / COST_CALLS).max(1)
    }

    /// Lets a parked request be taken again: the head of a stream that became free, or a request
    /// without a stream. Nothing changes if the request is not parked, or can be taken already.
    pub(crate) fn resume(&mut self, key: MsgKey, requests: &mut Requests) {
        if let Some(request) = requests.get_mut(key) {
            self.resume_parked(key, request);
        }
    }

    fn resume_parked(&mut self, key: MsgKey, request: &mut Request) {
        if !request.position.parked {
            return;
        }
        debug_assert!(!request.delayed);
        if !std::mem::replace(&mut request.position.resumed, true) {
            let entry = (self.rank(request), key, request.position.generation);
            if self.sharing != Sharing::Off && request.position.owner.is_none() {
                self.join(request);
            }
            match (self.sharing, request.position.owner, &mut self.backlog) {
                (Sharing::On, Some(owner), Some(backlog)) => backlog.list(owner, entry),
                _ => self.resumed.push(Reverse(entry)),
            }
        }
    }

    /// Counts out a request that leaves the queue otherwise than by [`Self::take`].
    pub(crate) fn forget(&mut self, request: &mut Request) {
        self.items -= 1;
        self.bytes -= request.bytes();
        self.stale += usize::from(!request.position.parked || request.position.resumed);
        if let (Some(owner), Some(backlog)) = (request.position.owner.take(), &mut self.backlog) {
            let dropped = backlog.leave(owner, request.bytes());
            self.stale = self.stale.saturating_sub(dropped);
        }
        self.end_share_if_empty();
    }

    /// Drops keys of requests that left, once they are the majority: amortised O(1) a request. Not
    /// between [`Self::forget`] and the request's end: its key would stay, uncounted.
    pub(crate) fn compact(&mut self, requests: &Requests) {
        if self.stale <= self.items + 64 {
            return;
        }
        let instance = self.instance;
        for queue in &mut self.fresh {
            queue.retain(|&key| requests.get(key).is_some_and(|r| is_fresh(r, instance)));
        }
        let is_listed = |&(_, key, generation): &Entry| {
            requests.get(key).is_some_and(|r| r.is_listed_at(instance, generation))
        };
        self.resumed.retain(|Reverse(entry)| is_listed(entry));
        if let Some(backlog) = &mut self.backlog {
            backlog.retain(is_listed);
        }
        self.stale = 0;
    }

    /// Takes the next request for the call `ticket`; `None` if none is eligible.
    pub fn take(
        &mut self,
        ticket: Ticket,
        requests: &mut Requests,
        ordering: &mut Ordering,
    ) -> Option<MsgKey> {
        self.take_into(&Taker { ticket, items: 0, kept: None }, requests, ordering)
    }

    /// Takes the next request for a call; `None` if none is eligible, or if the next one is not to
    /// be in a call with as many.
    pub(crate) fn take_into(
        &mut self,
        call: &Taker,
        requests: &mut Requests,
        ordering: &mut Ordering,
    ) -> Option<MsgKey> {
        let ticket = call.ticket;
        let key = match self.sharing {
            Sharing::On => self.take_shared(call, requests, ordering)?,
            Sharing::Even | Sharing::Off => self.take_first(call, requests, ordering)?,
        };
        let request = requests.get_mut(key).expect("candidates wait here");
        request.state = State::InFlight(ticket);
        self.items -= 1;
        self.bytes -= request.bytes();
        if let Some(stream) = request.stream {
            let links = std::mem::take(&mut request.links);
            let unsigned = request.user.is_none();
            let next = ordering.take_head(stream, links, unsigned, ticket, requests);
            if let Some((next, request)) = next {
                self.resume_parked(next, request);
            }
        }
        self.end_share_if_empty();
        Some(key)
    }

    /// Takes the request with the least rank out of the class queues, or of those that came back.
    fn take_first(
        &mut self,
        call: &Taker,
        requests: &mut Requests,
        ordering: &Ordering,
    ) -> Option<MsgKey> {
        let ticket = call.ticket;
        let mut best: Option<(Rank, MsgKey)> = None;
        for class in 0..4 {
            if self.fresh[class].is_empty() {
                continue;
            }
            if let Some(found) = self.front(class, ticket, requests, ordering)
                && best.is_none_or(|b| found < b)
            {
                best = Some(found);
            }
        }
        if let Some(found) = self.front_resumed(ticket, requests, ordering)
            && best.is_none_or(|b| found < b)
        {
            best = Some(found);
        }
        let ((_, class, _), key) = best?;
        let request = requests.get_mut(key).expect("candidates wait here");
        if !call.has_place_for(request) || !self.is_let_in(call, request) {
            return None;
        }
        self.count_taken(call, request);
        if request.position.parked {
            self.resumed.pop();
            request.position.resumed = false;
        } else {
            self.fresh[class].pop_front();
        }
        Some(key)
    }

    /// The first eligible request of a class queue. Ineligible ones before it are parked.
    fn front(
        &mut self,
        class: usize,
        ticket: Ticket,
        requests: &mut Requests,
        ordering: &Ordering,
    ) -> Option<(Rank, MsgKey)> {
        while let Some(&key) = self.fresh[class].front() {
            match requests.get_mut(key).filter(|r| r.waits_for(self.instance)) {
                Some(request) if !request.position.parked => {
                    if ordering.is_eligible(request.stream, key, ticket) {
                        return Some((self.rank(request), key));
                    }
                    request.position.parked = true;
                }
                Some(_) | None => self.stale = self.stale.saturating_sub(1),
            }
            self.fresh[class].pop_front();
        }
        None
    }

    /// The first eligible request of those that came back.
    fn front_resumed(
        &mut self,
        ticket: Ticket,
        requests: &mut Requests,
        ordering: &Ordering,
    ) -> Option<(Rank, MsgKey)> {
        while let Some(&Reverse((rank, key, generation))) = self.resumed.peek() {
            match requests.get_mut(key) {
                Some(request) if request.is_listed_at(self.instance, generation) => {
                    if ordering.is_eligible(request.stream, key, ticket) {
                        return Some((rank, key));
                    }
                    // Its stream resumes it again when it is free.
                    request.position.resumed = false;
                }
                Some(_) | None => self.stale = self.stale.saturating_sub(1),
            }
            self.resumed.pop();
        }
        None
    }

    /// Arrival of the request that has waited longest, as far as the fronts show. Fronts that have
    /// left are dropped first: they would hide those behind them.
    pub(crate) fn oldest(&mut self, requests: &Requests) -> Option<Micros> {
        let instance = self.instance;
        for queue in &mut self.fresh {
            while let Some(&key) = queue.front()
                && !requests.get(key).is_some_and(|r| is_fresh(r, instance))
            {
                queue.pop_front();
                self.stale = self.stale.saturating_sub(1);
            }
        }
        while let Some(&Reverse((_, key, generation))) = self.resumed.peek()
            && !requests.get(key).is_some_and(|r| r.is_listed_at(instance, generation))
        {
            self.resumed.pop();
            self.stale = self.stale.saturating_sub(1);
        }
        let fronts = self.fresh.iter().filter_map(|q| q.front().copied());
        let heads = self.resumed.peek().map(|&Reverse((_, key, _))| key);
        fronts
            .chain(heads)
            .filter_map(|key| requests.get(key))
            .filter(|request| request.waits_for(instance))
            .map(|request| request.received)
            .min()
    }

    /// Keys held, those of requests that have left included: what [`Self::compact`] bounds.
    pub(crate) fn keys(&self) -> usize {
        let listed = self.backlog.iter().flat_map(|backlog| backlog.entries()).count();
        self.fresh.iter().map(VecDeque::len).sum::<usize>() + self.resumed.len() + listed
    }

    /// Keys in the class queues, stale ones included.
    pub(crate) fn fresh_keys(&self) -> impl Iterator<Item = MsgKey> {
        self.fresh.iter().flatten().copied()
    }

    /// Keys in the class queues whose requests may be taken from there, and of those that came
    /// back: each once, if all is right. Fails unless the others are as many as were counted.
    pub(crate) fn current_keys(
        &self,
        requests: &Requests,
    ) -> Result<(Vec<MsgKey>, Vec<MsgKey>), String> {
        let id = self.instance;
        let is_fresh = |key: &MsgKey| requests.get(*key).is_some_and(|r| is_fresh(r, id));
        let fresh: Vec<MsgKey> = self.fresh_keys().filter(is_fresh).collect();
        let current = |&(_, key, generation): &Entry| {
            requests.get(key).filter(|r| r.is_listed_at(id, generation)).map(|_| key)
        };
        let shared = self.backlog.iter().flat_map(|backlog| backlog.entries());
        let resumed = self.resumed.iter().map(|Reverse(entry)| entry).chain(shared);
        let resumed: Vec<MsgKey> = resumed.filter_map(current).collect();
        let stale = self.keys() - fresh.len() - resumed.len();
        if stale == self.stale {
            return Ok((fresh, resumed));
        }
        Err(format!("queue of {id:?}: {} stale keys, in truth {stale}", self.stale))
    }

    fn rank(&self, request: &Request) -> Rank {
        let class = request.handling.priority.index();
        (request.received.0 + self.delays_us[class], class, request.arrival)
    }
}

/// Whether the request still waits for `instance` in its class queue.
fn is_fresh(request: &Request, instance: InstanceId) -> bool {
    request.waits_for(instance) && !request.position.parked
}

#[cfg(test)]
mod tests;
