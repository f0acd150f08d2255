//! The priority queue of one instance: promise 3.
//!
//! The next message is, among the eligible, the one with the smallest *enqueue time + class delay*.
//! Enqueue times rise, so within a class the key order is the order of arrival: four plain queues
//! and a look at their fronts give the order of a heap in O(1). A message is *eligible* when it is
//! the first waiting one of its stream and no call carries messages of that stream. One that
//! reaches the front while it is not is *parked*: it leaves the class queue, stays linked in its
//! stream, and comes back through `resumed`, a small heap, when its turn in the stream has come. A
//! message is parked at most once a stay, so a blocked stream costs others nothing.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::engine::dispatcher::ordering::Ordering;
use crate::engine::dispatcher::request::{Place, Request};
use crate::engine::slab::Slab;
use crate::ids::{InstanceId, MsgKey, Ticket};
use crate::message::Priority;

/// Requests without an answer, by key.
pub type Requests = Slab<MsgKey, Request>;

/// Sort key: virtual deadline in microseconds, class, number of arrival.
type Rank = (u64, usize, u64);

/// A message that came back, and the stay in the queue in which it did: each is there once a stay.
type Resumed = (Rank, MsgKey, u32);

/// Requests that wait for one instance.
#[derive(Debug, Default)]
pub struct InstanceQueue {
    fresh: [VecDeque<MsgKey>; 4],
    resumed: BinaryHeap<Reverse<Resumed>>,
    /// Requests waiting, parked ones included.
    pub items: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Keys in `fresh` and `resumed` whose message is not waiting there any more.
    stale: usize,
}

impl InstanceQueue {
    /// Appends a message that has just arrived, as the last of its stream and of its class.
    pub fn push(&mut self, key: MsgKey, messages: &mut Requests, streams: &mut Ordering) {
        let message = messages.get_mut(key).expect("pushed messages exist");
        message.place = Place::Waiting;
        message.parked = false;
        message.resumed = false;
        self.items += 1;
        self.bytes += message.bytes();
        let class = message.rule.priority.index();
        let stream = message.stream;
        self.fresh[class].push_back(key);
        if let Some(stream) = stream {
            streams.link_last(stream, key, messages);
        }
    }

    /// Puts a message back that had been taken, or that comes from another instance's queue. Its
    /// stream links are already right; it keeps its time of arrival.
    pub fn put_back(&mut self, key: MsgKey, messages: &mut Requests) {
        let message = messages.get_mut(key).expect("returned messages exist");
        message.place = Place::Waiting;
        message.parked = true;
        message.resumed = false;
        message.stay = message.stay.wrapping_add(1);
        self.items += 1;
        self.bytes += message.bytes();
    }

    /// Lets a parked message be found again: the head of a stream that became free, or a message
    /// without a stream. Nothing changes if it can be found already.
    pub fn resume(&mut self, key: MsgKey, messages: &mut Requests, delays_us: &[u64; 4]) {
        let message = messages.get_mut(key).expect("resumed messages exist");
        debug_assert!(message.parked && !message.delayed);
        if !std::mem::replace(&mut message.resumed, true) {
            self.resumed.push(Reverse((rank(message, delays_us), key, message.stay)));
        }
    }

    /// Counts out a message that leaves the queue otherwise than by [`Self::take`].
    pub fn forget(&mut self, message: &Request) {
        self.items -= 1;
        self.bytes -= message.bytes();
        self.stale += usize::from(!message.parked || message.resumed);
    }

    /// Drops keys of messages that left, once they are the majority: amortised O(1) a message. Not
    /// between [`Self::forget`] and the message's end: its key would stay, uncounted.
    pub fn compact(&mut self, id: InstanceId, messages: &Requests) {
        if self.stale <= self.items + 64 {
            return;
        }
        for queue in &mut self.fresh {
            queue.retain(|&key| waits_here(messages, key, id).is_some_and(|m| !m.parked));
        }
        self.resumed.retain(|Reverse(entry)| is_current(messages, entry, id));
        self.stale = 0;
    }

    /// Takes the next message for the call `ticket` of instance `id`; `None` if none is eligible.
    pub fn take(
        &mut self,
        id: InstanceId,
        ticket: Ticket,
        messages: &mut Requests,
        streams: &mut Ordering,
        delays_us: &[u64; 4],
    ) -> Option<MsgKey> {
        let mut best: Option<(Rank, MsgKey)> = None;
        for class in 0..4 {
            if self.fresh[class].is_empty() {
                continue;
            }
            if let Some(found) = self.front(class, id, ticket, messages, streams, delays_us)
                && best.is_none_or(|b| found < b)
            {
                best = Some(found);
            }
        }
        if let Some(found) = self.front_resumed(id, ticket, messages, streams)
            && best.is_none_or(|b| found < b)
        {
            best = Some(found);
        }
        let ((_, class, _), key) = best?;
        let message = messages.get_mut(key).expect("candidates wait here");
        if message.parked {
            self.resumed.pop();
            message.resumed = false;
        } else {
            self.fresh[class].pop_front();
        }
        message.place = Place::InFlight(ticket);
        self.items -= 1;
        self.bytes -= message.bytes();
        if let Some(stream) = message.stream {
            streams.unlink(stream, key, messages);
            let next = streams.occupy(stream, ticket);
            if let Some(next) = next
                && messages.get(next).is_some_and(|m| m.parked)
            {
                self.resume(next, messages, delays_us);
            }
        }
        Some(key)
    }

    /// First eligible message of a class queue; the ineligible before it are parked.
    fn front(
        &mut self,
        class: usize,
        id: InstanceId,
        ticket: Ticket,
        messages: &mut Requests,
        streams: &Ordering,
        delays_us: &[u64; 4],
    ) -> Option<(Rank, MsgKey)> {
        while let Some(&key) = self.fresh[class].front() {
            match waits_here(messages, key, id) {
                Some(message) if !message.parked => {
                    if streams.is_eligible(message.stream, key, ticket) {
                        return Some((rank(message, delays_us), key));
                    }
                    messages.get_mut(key).expect("just seen").parked = true;
                }
                Some(_) | None => self.stale = self.stale.saturating_sub(1),
            }
            self.fresh[class].pop_front();
        }
        None
    }

    /// First eligible message of those that came back.
    fn front_resumed(
        &mut self,
        id: InstanceId,
        ticket: Ticket,
        messages: &mut Requests,
        streams: &Ordering,
    ) -> Option<(Rank, MsgKey)> {
        while let Some(&Reverse(entry)) = self.resumed.peek() {
            let (rank, key, _) = entry;
            if is_current(messages, &entry, id) {
                let message = messages.get_mut(key).expect("just seen");
                if streams.is_eligible(message.stream, key, ticket) {
                    return Some((rank, key));
                }
                // Its stream resumes it again when it is free.
                message.resumed = false;
            } else {
                self.stale = self.stale.saturating_sub(1);
            }
            self.resumed.pop();
        }
        None
    }

    /// When the message that has waited longest arrived, as far as the fronts tell. Fronts that
    /// have left are dropped first: they would hide those behind them.
    pub fn oldest(
        &mut self,
        id: InstanceId,
        messages: &Requests,
    ) -> Option<crate::message::Micros> {
        for queue in &mut self.fresh {
            while let Some(&key) = queue.front()
                && waits_here(messages, key, id).is_none_or(|m| m.parked)
            {
                queue.pop_front();
                self.stale = self.stale.saturating_sub(1);
            }
        }
        while let Some(Reverse(entry)) = self.resumed.peek()
            && !is_current(messages, entry, id)
        {
            self.resumed.pop();
            self.stale = self.stale.saturating_sub(1);
        }
        let fronts = self.fresh.iter().filter_map(|q| q.front().copied());
        let heads = self.resumed.peek().map(|&Reverse((_, key, _))| key);
        fronts
            .chain(heads)
            .filter_map(|key| waits_here(messages, key, id))
            .map(|m| m.received)
            .min()
    }

    /// Keys held, those of messages that have left included: what [`Self::compact`] bounds.
    pub fn keys(&self) -> usize {
        self.fresh.iter().map(VecDeque::len).sum::<usize>() + self.resumed.len()
    }

    /// Keys in the class queues, stale ones included.
    pub fn fresh_keys(&self) -> impl Iterator<Item = MsgKey> {
        self.fresh.iter().flatten().copied()
    }

    /// Keys in the class queues whose messages may be taken from there, and of those that came
    /// back: each once, if all is right. Fails unless the others are as many as were counted.
    pub fn current_keys(
        &self,
        id: InstanceId,
        messages: &Requests,
    ) -> Result<(Vec<MsgKey>, Vec<MsgKey>), String> {
        let is_fresh = |&key: &MsgKey| waits_here(messages, key, id).is_some_and(|m| !m.parked);
        let fresh: Vec<MsgKey> = self.fresh_keys().filter(is_fresh).collect();
        let current = self.resumed.iter().filter(|Reverse(e)| is_current(messages, e, id));
        let resumed: Vec<MsgKey> = current.map(|&Reverse((_, key, _))| key).collect();
        let stale = self.keys() - fresh.len() - resumed.len();
        if stale == self.stale {
            return Ok((fresh, resumed));
        }
        Err(format!("queue of {id:?}: {} stale keys, in truth {stale}", self.stale))
    }
}

fn rank(message: &Request, delays_us: &[u64; 4]) -> Rank {
    let class = message.rule.priority.index();
    (message.received.0 + delays_us[class], class, message.arrival)
}

/// The message, if it still waits for `id`.
fn waits_here(messages: &Requests, key: MsgKey, id: InstanceId) -> Option<&Request> {
    messages.get(key).filter(|m| m.place == Place::Waiting && m.instance == id)
}

/// Whether the message waits for `id`, and came back in this stay.
fn is_current(messages: &Requests, &(_, key, stay): &Resumed, id: InstanceId) -> bool {
    waits_here(messages, key, id).is_some_and(|m| m.resumed && m.stay == stay)
}

/// Fill of a queue against its caps, and who is let in (promise 5).
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    /// Requests.
    pub items: usize,
    /// Bytes.
    pub bytes: usize,
    /// Cap on messages.
    pub items_max: usize,
    /// Cap on bytes.
    pub bytes_max: usize,
}

impl Fill {
    /// Whether one more message of `bytes` fits below `percent` of both caps.
    pub fn admits(&self, bytes: usize, percent: u32) -> bool {
        let percent = percent as usize;
        (self.items + 1) * 100 <= self.items_max * percent
            && (self.bytes + bytes) * 100 <= self.bytes_max * percent
    }

    /// 0 to 1: the fuller of both.
    pub fn ratio(&self) -> f64 {
        let of = |used: usize, max: usize| used as f64 / max.max(1) as f64;
        of(self.items, self.items_max).max(of(self.bytes, self.bytes_max))
    }
}

/// Percent admitted for a class with the given thresholds (critical first).
pub fn admit_percent(thresholds: &[u32; 4], priority: Priority, backpressure: bool) -> u32 {
    if backpressure { thresholds[priority.index()] } else { 100 }
}

#[cfg(test)]
mod tests;
