//! Steps of a message between its decoding and its call, as `micro` times them and `counts` counts
//! their instructions: rigs as those of `rig.rs`.

use std::fmt::Write;
use std::hint::black_box;

use shardgate::config::settings::{CacheSettings, DedupSettings};
use shardgate::engine::dispatcher::batch::{BodyWriter, GatewayIdentity};
use shardgate::engine::dispatcher::dedup::{DedupWindow, Scope, StoredReply, fingerprint};
use shardgate::engine::dispatcher::ordering::{Ordering, StreamName};
use shardgate::engine::dispatcher::queue::InstanceQueue;
use shardgate::engine::dispatcher::request::Requests;
use shardgate::engine::dispatcher::route_cache::{RouteCache, RouteKey};
use shardgate::engine::owner::{Holder, Party};
use shardgate::ids::{InstanceId, MsgKey, ServiceId, SessionKey, TenantId, Ticket};
use shardgate::message::Micros;
use shardgate::routing::{Snapshot, affinity_hash};

use super::rig::frames::payload;
use super::rig::{BATCH, fill, snapshot, waiting};

/// Users whose messages are routed.
const USERS: u32 = 10_000;

/// The stream of client number `n`.
fn stream_name(n: u64) -> StreamName {
    let session = SessionKey::new(1, n as u32 & 0xff_ffff);
    StreamName { session, service: ServiceId(0), hash: n.wrapping_mul(0x9e37_79b9_7f4a_7c15) }
}

/// Fields that every batch begins with.
fn origin() -> GatewayIdentity {
    GatewayIdentity {
        gateway: "node-1".into(),
        shard: 0,
        boot_id: 1,
        unix_at_boot_us: 1_700_000_000_000_000,
    }
}

/// [`BATCH`] messages of as many streams: into the queue of an instance, and out in their order.
pub struct Queue {
    messages: Requests,
    streams: Ordering,
    queue: InstanceQueue,
    keys: Vec<MsgKey>,
}

impl Queue {
    pub fn new() -> Self {
        Self {
            messages: Requests::with_capacity_max(1 << 16),
            streams: Ordering::new(1 << 16),
            queue: InstanceQueue::new(InstanceId(0), [0, 5_000, 50_000, 500_000]),
            keys: Vec::with_capacity(BATCH),
        }
    }

    pub fn push_and_take(&mut self) {
        let Self { messages, streams, queue, keys } = self;
        let (instance, ticket) = (InstanceId(0), Ticket::new(1, 0));
        for n in 0..BATCH {
            let key = messages.insert_with(|message| fill(message, n as u64));
            let stream = streams.open(stream_name(n as u64), instance, 0);
            messages.get_mut(key).expect("just inserted").stream = Some(stream);
            queue.push(key, messages, streams);
        }
        while let Some(key) = queue.take(ticket, messages, streams) {
            keys.push(key);
        }
        assert_eq!(keys.len(), BATCH);
        for key in keys.drain(..) {
            let stream = messages.get(key).and_then(|m| m.stream).expect("all have one");
            messages.release(key);
            streams.get_mut(stream).busy = None;
            streams.close_if_idle(stream);
        }
    }

    /// The same when more waits than may leave: shared out between as many users, each of which
    /// pays for what it gets.
    pub fn share_and_take(&mut self) {
        let Self { messages, streams, queue, keys } = self;
        let ticket = Ticket::new(1, 0);
        for n in 0..BATCH as u64 {
            let key = messages.insert_with(|message| fill(message, n));
            let holder = &mut messages.get_mut(key).expect("just inserted").holder;
            *holder = Holder { tenant: TenantId(0), party: Party::User(n), session: 0 };
            queue.push(key, messages, streams);
        }
        queue.share(messages);
        while let Some(key) = queue.take(ticket, messages, streams) {
            keys.push(key);
        }
        assert_eq!(keys.len(), BATCH);
        for key in keys.drain(..) {
            queue.give_back(messages.get_mut(key).expect("just taken"), 100);
            messages.release(key);
        }
    }
}

/// Routing from an id to an instance, for [`USERS`] users and three instances.
pub struct Router {
    snapshot: Snapshot,
    users: Vec<u64>,
    next: usize,
    cache: RouteCache,
}

impl Router {
    /// The cache holds every user.
    pub fn new() -> Self {
        let snapshot = snapshot(3);
        let users: Vec<u64> =
            (0..USERS).map(|n| affinity_hash(TenantId(0), &n.to_le_bytes())).collect();
        let mut cache = RouteCache::new(&CacheSettings::default(), 1);
        let service = &snapshot.services[0];
        for &hash in &users {
            let owner = service.ring.pick(hash).expect("three instances");
            cache.insert(route_key(&snapshot, hash), owner, Micros(1));
        }
        Self { snapshot, users, next: 0, cache }
    }

    fn user(&mut self) -> u64 {
        self.next = (self.next + 1) % self.users.len();
        self.users[self.next]
    }

    pub fn route(&mut self) {
        black_box(self.snapshot.route(TenantId::default(), black_box(1001)));
    }

    pub fn ring_pick(&mut self) {
        let user = self.user();
        black_box(self.snapshot.services[0].ring.pick(user));
    }

    pub fn cache_hit(&mut self) {
        let user = self.user();
        let key = route_key(&self.snapshot, user);
        black_box(self.cache.get(&key, Micros(2)).expect("inserted above"));
    }
}

fn route_key(snapshot: &Snapshot, hash: u64) -> RouteKey {
    RouteKey { tenant: TenantId(0), service: snapshot.routes[0].service, hash }
}

/// The body of a batch of [`BATCH`] messages of 64 bytes.
pub struct Body {
    messages: Requests,
    keys: Vec<MsgKey>,
    origin: GatewayIdentity,
    writer: BodyWriter,
}

impl Body {
    pub fn new() -> Self {
        let (messages, keys) = waiting();
        let (origin, writer) = (origin(), BodyWriter::default());
        Self { messages, keys, origin, writer }
    }

    pub fn write_body(&mut self) {
        self.writer.begin_batch(&self.origin);
        for &key in &self.keys {
            let message = self.messages.get(key).expect("all of them wait");
            self.writer.push(key, message, &self.origin, Micros(2_000_000));
        }
        black_box(self.writer.finish());
    }
}

/// A new id, and its answer remembered, with 10,000 in the window.
pub struct Dedup {
    window: DedupWindow,
    holder: Holder,
    payload: Vec<u8>,
    reply: StoredReply,
    n: u64,
    text: String,
}

impl Dedup {
    /// Ids come 10 us apart, and a window of 100 ms is full of them.
    pub fn new() -> Self {
        let settings = DedupSettings { window_ms: 100, ..DedupSettings::default() };
        let payload = payload();
        let reply = StoredReply {
            status: 0,
            reason: None,
            message: "".into(),
            payload: payload.as_slice().into(),
            is_bytes: false,
            retry_after_ms: 0,
        };
        let window = DedupWindow::new(&settings, 1);
        let holder = Holder { tenant: TenantId(0), party: Party::User(7), session: 0 };
        let mut dedup = Self { window, holder, payload, reply, n: 0, text: String::new() };
        (0..10_000).for_each(|_| dedup.begin_and_finish());
        dedup
    }

    pub fn begin_and_finish(&mut self) {
        self.n += 1;
        let now = Micros(self.n * 10);
        self.text.clear();
        let _ = write!(self.text, "{:032x}", self.n);
        let print = fingerprint(1001, &self.payload);
        let id = self.window.id(self.holder, Scope::User("u"), &self.text, print);
        let key = self.window.begin(&id, now).expect("there is room");
        black_box(self.window.finish(key, Some(self.reply.clone()), now));
    }
}
