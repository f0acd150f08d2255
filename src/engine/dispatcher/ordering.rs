//! Ordered streams: which messages must not overtake each other (promise 2).

use hashbrown::HashTable;

use crate::engine::dispatcher::request::{Request, Requests, StreamLinks};
use crate::engine::slab::Slab;
use crate::ids::{InstanceId, MsgKey, ServiceId, SessionKey, StreamKey, Ticket};

/// The requests of one session to one service with one affinity hash, as long as any is under way.
#[derive(Debug)]
pub struct OrderedStream {
    pub(crate) name: StreamName,
    /// Call that carries requests of the stream; no other call takes any before that has ended.
    pub busy: Option<Ticket>,
    /// Whether that call has requests from before its session signed in.
    carries_unsigned: bool,
    /// Streams that wait until none of its requests from before the sign-in is under way.
    followers: Vec<StreamKey>,
    /// Number of streams that it follows.
    pub(crate) leaders: u32,
    /// Arrival of the last request of the call in flight that was answered although it may have
    /// run: a request that arrived before it must not be sent again.
    pub(crate) passed: u64,
    /// Whether the stream waits for a retry to be due: none of its requests may be taken.
    pub(crate) delayed: bool,
    /// First of its waiting requests, in the order sent.
    pub(crate) head: Option<MsgKey>,
    /// Last of its waiting requests.
    pub(crate) tail: Option<MsgKey>,
    /// Instance for which its requests wait, or in whose call they are.
    pub(crate) instance: InstanceId,
    /// State of the instances when that one was chosen.
    pub(crate) epoch: u64,
}

/// The key of a stream, compared in full. The session is named by its key on this shard, which
/// stays when its public id changes with the sign-in. Two affinity keys of a session with one
/// 64-bit hash share a stream: they go to one instance anyway, so that costs no correctness.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct StreamName {
    pub session: SessionKey,
    pub service: ServiceId,
    /// Affinity hash of the messages.
    pub hash: u64,
}

/// The streams of one shard that have a request waiting or in flight.
#[derive(Debug)]
pub struct Ordering {
    streams: Slab<StreamKey, OrderedStream>,
    by_name: HashTable<StreamKey>,
}

impl Ordering {
    /// No stream yet; never more than `max`, one for each request under way.
    pub fn new(max: usize) -> Self {
        Self { streams: Slab::with_capacity_max(max), by_name: HashTable::new() }
    }

    /// Makes a stream that `find` did not find, bound to `instance`.
    pub fn open(&mut self, name: StreamName, instance: InstanceId, epoch: u64) -> StreamKey {
        let Self { streams, by_name } = self;
        let key = streams.insert(OrderedStream {
            name,
            busy: None,
            carries_unsigned: false,
            followers: Vec::new(),
            leaders: 0,
            passed: 0,
            delayed: false,
            head: None,
            tail: None,
            instance,
            epoch,
        });
        by_name.insert_unique(hash(&name), key, |key| {
            streams.get(*key).map_or(0, |s| self::hash(&s.name))
        });
        key
    }

    /// The stream of that name, if a request of it is under way.
    pub(crate) fn find(&self, name: &StreamName) -> Option<StreamKey> {
        let same = |key: &StreamKey| self.streams.get(*key).is_some_and(|s| s.name == *name);
        self.by_name.find(hash(name), same).copied()
    }

    /// The stream of a request under way.
    pub(crate) fn get(&self, key: StreamKey) -> &OrderedStream {
        self.streams.get(key).expect("streams live as long as their requests")
    }

    /// The stream of a request under way, to be changed.
    pub fn get_mut(&mut self, key: StreamKey) -> &mut OrderedStream {
        self.streams.get_mut(key).expect("streams live as long as their requests")
    }

    /// A stream that may have ended.
    pub(crate) fn get_alive(&mut self, key: StreamKey) -> Option<&mut OrderedStream> {
        self.streams.get_mut(key)
    }

    /// The streams with their keys, by slot.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (StreamKey, &OrderedStream)> {
        self.streams.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.streams.len()
    }

    /// Whether the waiting request `key` may be taken for the call `ticket`.
    pub(crate) fn is_eligible(
        &self,
        stream: Option<StreamKey>,
        key: MsgKey,
        ticket: Ticket,
    ) -> bool {
        let Some(stream) = stream else { return true };
        let stream = self.get(stream);
        let is_free = !stream.delayed && stream.leaders == 0;
        stream.head == Some(key) && is_free && stream.busy.is_none_or(|t| t == ticket)
    }

    /// Appends a request that has just arrived and is linked nowhere.
    pub(crate) fn link_last(&mut self, stream: StreamKey, key: MsgKey, requests: &mut Requests) {
        let stream = self.get_mut(stream);
        let Some(tail) = stream.tail.replace(key) else {
            stream.head = Some(key);
            return;
        };
        linked(requests, tail).links.next = Some(key);
        linked(requests, key).links.prev = Some(tail);
    }

    /// Puts a request whose call has failed before all that wait.
    pub(crate) fn link_first(&mut self, stream: StreamKey, key: MsgKey, requests: &mut Requests) {
        let stream = self.get_mut(stream);
        let Some(head) = stream.head.replace(key) else {
            stream.tail = Some(key);
            return;
        };
        linked(requests, head).links.prev = Some(key);
        linked(requests, key).links.next = Some(head);
    }

    /// Takes a waiting request out of its stream, wherever it stands in it.
    pub(crate) fn unlink(&mut self, stream: StreamKey, key: MsgKey, requests: &mut Requests) {
        let StreamLinks { next, prev } = std::mem::take(&mut linked(requests, key).links);
        let stream = self.get_mut(stream);
        match prev {
            Some(prev) => linked(requests, prev).links.next = next,
            None => stream.head = next,
        }
        match next {
            Some(next) => linked(requests, next).links.prev = prev,
            None => stream.tail = prev,
        }
    }

    /// Takes the first request, which had `links`, out of its stream; the call `ticket` carries the
    /// stream from now on. `unsigned`: it is from before the sign-in. Returns the request that is
    /// the first now.
    pub(crate) fn take_head<'r>(
        &mut self,
        stream: StreamKey,
        links: StreamLinks,
        unsigned: bool,
        ticket: Ticket,
        requests: &'r mut Requests,
    ) -> Option<(MsgKey, &'r mut Request)> {
        let stream = self.get_mut(stream);
        debug_assert!(links.prev.is_none(), "only the first of a stream is eligible");
        debug_assert!(stream.busy.is_none_or(|t| t == ticket), "one call a stream at a time");
        stream.busy = Some(ticket);
        stream.carries_unsigned |= unsigned;
        stream.head = links.next;
        let Some(next) = links.next else {
            stream.tail = None;
            return None;
        };
        let request = linked(requests, next);
        request.links.prev = None;
        Some((next, request))
    }

    /// Ends the hold of a call on the stream.
    pub(crate) fn free(&mut self, stream: StreamKey) {
        let stream = self.get_mut(stream);
        (stream.busy, stream.carries_unsigned) = (None, false);
    }

    /// Whether a request of the stream from before its session signed in waits, or is in its call.
    /// They are its first ones: no later one of the session is without a user.
    pub(crate) fn has_unsigned(&self, stream: StreamKey, requests: &Requests) -> bool {
        let stream = self.get(stream);
        let head = stream.head.and_then(|head| requests.get(head));
        stream.carries_unsigned || head.is_some_and(|head| head.user.is_none())
    }

    /// Lets `follower` wait until no request of `leader` from before the sign-in is under way.
    pub(crate) fn follow(&mut self, follower: StreamKey, leader: StreamKey) {
        // Without those that have ended: a leader that lasts would name ever more of them.
        let mut followers = self.take_followers(leader);
        followers.retain(|key| self.streams.get(*key).is_some());
        if !followers.contains(&follower) {
            followers.push(follower);
            self.get_mut(follower).leaders += 1;
        }
        self.get_mut(leader).followers = followers;
    }

    /// The streams that wait for `leader`.
    pub(crate) fn followers(&self, leader: StreamKey) -> &[StreamKey] {
        &self.get(leader).followers
    }

    /// Takes the streams that wait for `leader`; some may have ended.
    pub(crate) fn take_followers(&mut self, leader: StreamKey) -> Vec<StreamKey> {
        std::mem::take(&mut self.get_mut(leader).followers)
    }

    /// Notes that a request in its stream's call is given up although it may have run.
    pub(crate) fn pass(&mut self, request: &Request) {
        if let Some(stream) = request.stream {
            let stream = self.get_mut(stream);
            stream.passed = stream.passed.max(request.arrival);
        }
    }

    /// Whether a later request of the stream was given up although it may have run.
    pub(crate) fn is_passed(&self, request: &Request) -> bool {
        request.stream.is_some_and(|s| self.get(s).passed > request.arrival)
    }

    /// Forgets the stream if none of its requests is under way any more.
    pub fn close_if_idle(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get(key) else { return };
        if stream.busy.is_some() || stream.head.is_some() {
            return;
        }
        let name = stream.name;
        let streams = &self.streams;
        let entry =
            self.by_name.find_entry(hash(&name), |k| *k == key && streams.get(*k).is_some());
        entry.expect("every stream has its name entered").remove();
        self.streams.remove(key);
    }
}

fn linked(requests: &mut Requests, key: MsgKey) -> &mut Request {
    requests.get_mut(key).expect("linked requests exist")
}

/// Hash of a stream's name. The affinity hash is mixed already; session and service are mixed in by
/// multiplication with an odd constant (the fractional part of the golden ratio).
fn hash(name: &StreamName) -> u64 {
    (name.hash ^ name.session.0.rotate_left(17) ^ u64::from(name.service.0))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_names_only_followers_that_are_under_way() {
        let mut ordering = Ordering::new(8);
        let open = |ordering: &mut Ordering, hash| {
            let name = StreamName { session: SessionKey(1), service: ServiceId(0), hash };
            ordering.open(name, InstanceId(0), 0)
        };
        let leader = open(&mut ordering, 0);
        let lasting = open(&mut ordering, 1);
        ordering.follow(lasting, leader);
        for hash in 2..100 {
            let follower = open(&mut ordering, hash);
            ordering.follow(follower, leader);
            ordering.follow(follower, leader);
            assert_eq!(ordering.followers(leader), [lasting, follower]);
            assert_eq!(ordering.get(follower).leaders, 1);
            ordering.close_if_idle(follower);
        }
    }
}
