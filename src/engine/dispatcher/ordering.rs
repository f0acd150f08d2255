//! Ordered streams: which messages must not overtake each other (promise 2).

use hashbrown::HashTable;

use crate::engine::dispatcher::queue::Requests;
use crate::engine::dispatcher::request::Request;
use crate::engine::slab::Slab;
use crate::ids::{InstanceId, MsgKey, ServiceId, SessionId, StreamKey, Ticket};

/// The messages of one session to one service with one hash key.
#[derive(Debug)]
pub struct OrderedStream {
    /// Whose: compared in full.
    pub name: StreamName,
    /// The call that carries messages of it; none may start before that has ended.
    pub busy: Option<Ticket>,
    /// Arrival of the last message of its call that has its answer although it may have run: what
    /// was sent before that one must not be sent again after it.
    pub passed: u64,
    /// Waits for a retry to be due: nothing of it may be taken.
    pub delayed: bool,
    /// First and last of its waiting messages, in the order sent.
    pub head: Option<MsgKey>,
    /// See `head`.
    pub tail: Option<MsgKey>,
    /// The instance its messages wait for or are with.
    pub instance: InstanceId,
    /// State of the instances when that was chosen.
    pub epoch: u64,
}

/// What a stream is known by. Two keys of a session with one 64-bit hash share a stream: they go
/// to one instance anyway, so that costs no correctness.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamName {
    /// Session.
    pub session: SessionId,
    /// Service.
    pub service: ServiceId,
    /// Affinity hash.
    pub hash: u64,
}

/// The streams of one shard that have a message waiting or in flight.
#[derive(Debug)]
pub struct Ordering {
    streams: Slab<StreamKey, OrderedStream>,
    by_name: HashTable<StreamKey>,
}

impl Ordering {
    /// None yet; never more than `max` (one for each message under way).
    pub fn new(max: usize) -> Self {
        Self { streams: Slab::with_capacity_max(max), by_name: HashTable::new() }
    }

    /// A stream that [`Self::find`] did not find, bound to `instance`.
    pub fn open(&mut self, name: StreamName, instance: InstanceId, epoch: u64) -> StreamKey {
        let Self { streams, by_name } = self;
        let key = streams.insert(OrderedStream {
            name,
            busy: None,
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

    /// The stream of that name, if a message of it is under way.
    pub fn find(&self, name: &StreamName) -> Option<StreamKey> {
        let same = |key: &StreamKey| self.streams.get(*key).is_some_and(|s| s.name == *name);
        self.by_name.find(hash(name), same).copied()
    }

    /// A stream that has a message under way.
    pub fn get(&self, key: StreamKey) -> &OrderedStream {
        self.streams.get(key).expect("streams live as long as their messages")
    }

    /// See [`Self::get`].
    pub fn get_mut(&mut self, key: StreamKey) -> &mut OrderedStream {
        self.streams.get_mut(key).expect("streams live as long as their messages")
    }

    /// A stream that may be gone.
    pub fn get_alive(&mut self, key: StreamKey) -> Option<&mut OrderedStream> {
        self.streams.get_mut(key)
    }

    /// All alive, by slot.
    pub fn iter(&self) -> impl Iterator<Item = (StreamKey, &OrderedStream)> {
        self.streams.iter()
    }

    /// Ordering alive.
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Whether no message with an order is under way.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the waiting message `key` may be taken for `ticket`.
    pub fn is_eligible(&self, stream: Option<StreamKey>, key: MsgKey, ticket: Ticket) -> bool {
        let Some(stream) = stream else { return true };
        let stream = self.get(stream);
        stream.head == Some(key) && !stream.delayed && stream.busy.is_none_or(|t| t == ticket)
    }

    /// Appends a waiting message.
    pub fn link_last(&mut self, stream: StreamKey, key: MsgKey, messages: &mut Requests) {
        let stream = self.get_mut(stream);
        let tail = stream.tail.replace(key);
        match tail {
            Some(tail) => messages.get_mut(tail).expect("linked messages exist").next = Some(key),
            None => stream.head = Some(key),
        }
        let message = messages.get_mut(key).expect("linked messages exist");
        message.prev = tail;
        message.next = None;
    }

    /// Puts a message that was taken back before all that wait.
    pub fn link_first(&mut self, stream: StreamKey, key: MsgKey, messages: &mut Requests) {
        let stream = self.get_mut(stream);
        let head = stream.head.replace(key);
        match head {
            Some(head) => messages.get_mut(head).expect("linked messages exist").prev = Some(key),
            None => stream.tail = Some(key),
        }
        let message = messages.get_mut(key).expect("linked messages exist");
        message.next = head;
        message.prev = None;
    }

    /// Takes a waiting message out of its place.
    pub fn unlink(&mut self, stream: StreamKey, key: MsgKey, messages: &mut Requests) {
        let message = messages.get_mut(key).expect("linked messages exist");
        let (prev, next) = (message.prev.take(), message.next.take());
        let stream = self.get_mut(stream);
        match prev {
            Some(prev) => messages.get_mut(prev).expect("linked messages exist").next = next,
            None => stream.head = next,
        }
        match next {
            Some(next) => messages.get_mut(next).expect("linked messages exist").prev = prev,
            None => stream.tail = prev,
        }
    }

    /// A message in the stream's call is given up although it may have run.
    pub fn pass(&mut self, message: &Request) {
        if let Some(stream) = message.stream {
            let stream = self.get_mut(stream);
            stream.passed = stream.passed.max(message.arrival);
        }
    }

    /// Whether a later message of its stream may have run, and will not run again after this one.
    pub fn is_passed(&self, message: &Request) -> bool {
        message.stream.is_some_and(|s| self.get(s).passed > message.arrival)
    }

    /// Marks the stream as carried by `ticket`; says what now waits first in it.
    pub fn occupy(&mut self, stream: StreamKey, ticket: Ticket) -> Option<MsgKey> {
        let stream = self.get_mut(stream);
        debug_assert!(stream.busy.is_none_or(|t| t == ticket), "one call a stream at a time");
        stream.busy = Some(ticket);
        stream.head
    }

    /// Forgets the stream if nothing of it is under way any more.
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

/// The affinity hash is mixed already; session and service are mixed in by multiplication with an
/// odd constant (the fractional part of the golden ratio).
fn hash(name: &StreamName) -> u64 {
    let session = name.session.as_str().as_bytes();
    let low = u64::from_le_bytes(session[..8].try_into().expect("16 characters"));
    let high = u64::from_le_bytes(session[8..].try_into().expect("16 characters"));
    (name.hash ^ low.rotate_left(17) ^ high ^ u64::from(name.service.0))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
