//! The priority queue of one instance: promise 3.
//!
//! The next request is, among the eligible, the one with the smallest *arrival time + class delay*.
//! Arrival times rise, so within a class the order of that sum is the order of arrival: four plain
//! queues and a comparison of their fronts give the order of a heap in O(1). A request is
//! *eligible* when it is the first waiting one of its stream and no other call carries requests of
//! that stream. One that reaches the front while it is not is *parked*: it leaves the class queue,
//! stays linked in its stream, and comes back through `resumed`, a small heap, when its turn in the
//! stream has come. A request is parked at most once each time it is queued, so a blocked stream
//! costs others nothing.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::engine::dispatcher::ordering::Ordering;
use crate::engine::dispatcher::request::{QueuePosition, Request, Requests, State};
use crate::ids::{InstanceId, MsgKey, Ticket};
use crate::message::Micros;

/// Sort key: virtual deadline in microseconds, class, number of arrival.
type Rank = (u64, usize, u64);

/// A request that came back, and its generation when it did: each is listed once a generation.
type Resumed = (Rank, MsgKey, u32);

/// Requests that wait for one instance.
#[derive(Debug)]
pub struct InstanceQueue {
    instance: InstanceId,
    /// Delay of each class, critical first.
    delays_us: [u64; 4],
    fresh: [VecDeque<MsgKey>; 4],
    resumed: BinaryHeap<Reverse<Resumed>>,
    /// Requests that wait, parked ones included.
    pub(crate) items: usize,
    /// Bytes of the requests that wait.
    pub(crate) bytes: usize,
    /// Keys in `fresh` and `resumed` whose request does not wait there any more.
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
        request.state = State::Waiting;
        (request.position.parked, request.position.resumed) = (false, false);
        self.items += 1;
        self.bytes += request.bytes();
        self.fresh[request.handling.priority.index()].push_back(key);
        if let Some(stream) = request.stream {
            ordering.link_last(stream, key, requests);
        }
    }

    /// Puts a request back whose call has failed, or that comes from another instance's queue. Its
    /// stream links are already right; it keeps its time of arrival.
    pub(crate) fn put_back(&mut self, key: MsgKey, requests: &mut Requests) {
        let request = requests.get_mut(key).expect("returned requests exist");
        request.state = State::Waiting;
        let generation = request.position.generation.wrapping_add(1);
        request.position = QueuePosition { parked: true, resumed: false, generation };
        self.items += 1;
        self.bytes += request.bytes();
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
            self.resumed.push(Reverse(entry));
        }
    }

    /// Counts out a request that leaves the queue otherwise than by [`Self::take`].
    pub(crate) fn forget(&mut self, request: &Request) {
        self.items -= 1;
        self.bytes -= request.bytes();
        self.stale += usize::from(!request.position.parked || request.position.resumed);
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
        self.resumed.retain(|&Reverse((_, key, generation))| {
            requests.get(key).is_some_and(|r| is_current(r, generation, instance))
        });
        self.stale = 0;
    }

    /// Takes the next request for the call `ticket`; `None` if none is eligible.
    pub fn take(
        &mut self,
        ticket: Ticket,
        requests: &mut Requests,
        ordering: &mut Ordering,
    ) -> Option<MsgKey> {
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
        if request.position.parked {
            self.resumed.pop();
            request.position.resumed = false;
        } else {
            self.fresh[class].pop_front();
        }
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
            match requests.get_mut(key).filter(|r| waits_for(r, self.instance)) {
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
                Some(request) if is_current(request, generation, self.instance) => {
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
            && !requests.get(key).is_some_and(|r| is_current(r, generation, instance))
        {
            self.resumed.pop();
            self.stale = self.stale.saturating_sub(1);
        }
        let fronts = self.fresh.iter().filter_map(|q| q.front().copied());
        let heads = self.resumed.peek().map(|&Reverse((_, key, _))| key);
        fronts
            .chain(heads)
            .filter_map(|key| requests.get(key))
            .filter(|request| waits_for(request, instance))
            .map(|request| request.received)
            .min()
    }

    /// Keys held, those of requests that have left included: what [`Self::compact`] bounds.
    pub(crate) fn keys(&self) -> usize {
        self.fresh.iter().map(VecDeque::len).sum::<usize>() + self.resumed.len()
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
        let current = |&Reverse((_, key, generation)): &Reverse<Resumed>| {
            requests.get(key).filter(|r| is_current(r, generation, id)).map(|_| key)
        };
        let resumed: Vec<MsgKey> = self.resumed.iter().filter_map(current).collect();
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

fn waits_for(request: &Request, instance: InstanceId) -> bool {
    request.state == State::Waiting && request.instance == instance
}

/// Whether the request still waits for `instance` in its class queue.
fn is_fresh(request: &Request, instance: InstanceId) -> bool {
    waits_for(request, instance) && !request.position.parked
}

/// Whether the request waits for `instance`, and came back in this generation.
fn is_current(request: &Request, generation: u32, instance: InstanceId) -> bool {
    let QueuePosition { resumed, generation: present, .. } = request.position;
    waits_for(request, instance) && resumed && present == generation
}

#[cfg(test)]
mod tests;
