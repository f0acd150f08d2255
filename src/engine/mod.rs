//! A shard's pure state: events and the time go in, effects come out. No await, no clock, no
//! socket, no randomness that was not passed in, so that the simulator can run it.
//!
//! The way of a business message: `inbound` (decode, classify) -> `rates` (limits) -> `admit`
//! (route, dedup, pick, let in) -> `queue` -> `dispatch` (batch) -> a [`Call`] leaves -> its
//! [`Outcome`] -> `outcome` (answer, retry, move) -> `answer` (reply in the outbox).

pub mod admit;
pub mod adopt;
pub mod answer;
pub mod auth;
pub mod batch;
pub mod budget;
pub mod by_instance;
pub mod cache;
pub mod check;
pub mod conns;
pub mod dedup;
pub mod dispatch;
pub mod inbound;
pub mod inspect;
pub mod instances;
pub mod moves;
pub mod outcome;
pub mod own;
pub mod parties;
pub mod pending;
pub mod placement;
pub mod queue;
pub mod rates;
#[cfg(test)]
mod regressions;
pub mod store;
pub mod streams;
pub mod tick;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::auth::Verifier;
use crate::config::settings::{GatewaySettings, ShardSettings, StopSettings};
use crate::engine::auth::Auth;
use crate::engine::batch::{BodyWriter, Origin};
use crate::engine::budget::RetryBudget;
use crate::engine::cache::RouteCache;
use crate::engine::conns::{Conn, Fate, Phase, Terms};
use crate::engine::dedup::DedupWindow;
use crate::engine::dispatch::Ticketed;
use crate::engine::instances::Instances;
use crate::engine::queue::{Fill, Messages};
use crate::engine::rates::{OpenRefusal, Rates};
use crate::engine::store::{STORE_ENTRIES_CAP, Store};
use crate::engine::streams::Streams;
use crate::ids::{ConnId, InstanceId, MsgKey, SessionId, ShardId, StreamKey, Ticket};
use crate::limits;
use crate::message::{Call, CallFault, Micros, Reason};
use crate::routing::Snapshot;
use crate::stats::{Counter, Counters, Gauges, Histograms, Report, Signal, Stage};
use crate::wire::handshake::HandshakeRules;

/// What a shard is told once, at its start.
#[derive(Clone, Debug)]
pub struct EngineInit {
    /// Which shard.
    pub shard: ShardId,
    /// Shards of the process, this one among them.
    pub shards: u16,
    /// Process-wide settings.
    pub gateway: Arc<GatewaySettings>,
    /// Its own.
    pub settings: ShardSettings,
    /// First routing snapshot.
    pub snapshot: Arc<Snapshot>,
    /// Verifies clients' tokens; `None`: nobody signs in.
    pub auth: Option<Arc<Verifier>>,
    /// This run of the gateway.
    pub boot_id: u64,
    /// Unix time of [`Micros`] 0, in microseconds.
    pub unix_at_boot_us: i64,
    /// Seed of session ids, hashes and jitter: from the system's randomness, or the simulator's.
    pub seed: u64,
}

/// What the shell has to do after an event. Each list is taken and emptied by the shell.
#[derive(Debug, Default)]
pub struct Effects {
    /// Calls to hand to their instance's channel.
    pub calls: Vec<Call>,
    /// Connections with bytes to flush, or with a changed fate.
    pub dirty: Vec<ConnId>,
    /// Connections to be sent to their user's home shard: see [`Engine::depart`].
    pub moves: Vec<ConnId>,
    /// Paused connections that may be read again: see [`Engine::on_resumed`].
    pub resumed: Vec<ConnId>,
    /// What control is to hear of instances.
    pub signals: Vec<Signal>,
    /// A token's key was not known: control is to fetch the set of keys. Taken with each tick.
    pub keys_wanted: bool,
}

/// Something that may go on at a time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Delayed {
    Stream(StreamKey),
    Message(MsgKey),
}

/// A stop under way.
#[derive(Clone, Debug)]
struct Drain {
    began: Micros,
    /// When the grace is over.
    until: Micros,
    settings: StopSettings,
    /// Connections there were, and how many of them have been closed since.
    conns: u64,
    closed: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Engine {
    shard: ShardId,
    shards: u16,
    origin: Origin,
    gateway: Arc<GatewaySettings>,
    settings: ShardSettings,
    snapshot: Arc<Snapshot>,
    rules: HandshakeRules,
    /// What new connections are promised.
    terms: Arc<Terms>,
    /// The largest message that any connection was ever allowed.
    message_bytes_high: usize,
    delays_us: [u64; 4],
    rng: StdRng,

    conns: Store<ConnId, Conn>,
    auth: Auth,
    /// Connections that a lane to their home shard did not take.
    away: Vec<ConnId>,
    /// Connections that came home and are told that there is no room.
    turned_away: usize,
    upgraded: u64,
    messages: Messages,
    /// No message has a deadline before this.
    deadline_next: Micros,
    streams: Streams,
    tickets: Store<Ticket, Ticketed>,
    instances: Instances,
    cache: RouteCache,
    dedup: DedupWindow,
    budget: RetryBudget,
    rates: Rates,

    queue_items: usize,
    queue_bytes: usize,
    throttling: bool,
    delayed: BinaryHeap<Reverse<(Micros, Delayed)>>,
    /// Instances to look at when the turn ends.
    touched: Vec<InstanceId>,
    /// Instances with messages that wait for company, and when the first of those has waited
    /// enough.
    windowed: Vec<InstanceId>,
    window_due: Option<Micros>,
    arrivals: u64,
    sweep_at: usize,
    drain: Option<Drain>,
    cut_off: u64,

    body: BodyWriter,
    /// Buffers for outboxes.
    pool: Vec<Vec<u8>>,
    /// What the shell has to do.
    pub effects: Effects,

    counters: Counters,
    histograms: Histograms,
    reasons: [u64; Reason::ALL.len()],
    faults: Vec<(CallFault, u64)>,
    /// Messages decoded in this turn: they share the turn's decode time.
    decoded: u64,
    route_failures: RouteFailures,
    exhausted_at: Option<Micros>,
}

/// Limits the log to one `route_failed` a second.
#[derive(Debug, Default)]
struct RouteFailures {
    logged_at: Option<Micros>,
    since: u64,
}

/// Messages under way that a shard can have, whatever is configured: waiting ones, those in
/// calls, and duplicates that wait. 2^20 at 500 bytes each are 512 MiB.
pub const MESSAGES_MAX: usize = 1 << 20;

impl Engine {
    /// A shard without connections.
    pub fn new(init: EngineInit) -> Self {
        let EngineInit { shard, shards, gateway, settings, snapshot, auth, .. } = init;
        let EngineInit { boot_id, unix_at_boot_us, seed, .. } = init;
        let snapshot = own(&snapshot);
        let mut rng = StdRng::seed_from_u64(seed);
        let mut signing_in = Auth::new(unix_at_boot_us);
        signing_in.set(auth, &gateway.auth);
        Self {
            shard,
            shards,
            origin: Origin {
                gateway: gateway.node.clone(),
                shard: u32::from(shard.0),
                boot_id,
                unix_at_boot_us,
            },
            rules: HandshakeRules {
                path: gateway.path.clone(),
                origins: gateway.origins.clone(),
                subprotocols: true,
            },
            terms: Arc::new(Terms::of(&settings.conn)),
            message_bytes_high: settings.conn.message_bytes_max,
            delays_us: settings.queue.class_delay_ms.map(|ms| ms * 1000),
            // `has_room` and `arrive` say how many there may be.
            conns: Store::with_capacity_max(STORE_ENTRIES_CAP),
            auth: signing_in,
            away: Vec::new(),
            turned_away: 0,
            upgraded: 0,
            messages: Store::with_capacity_max(MESSAGES_MAX),
            deadline_next: Micros(u64::MAX),
            streams: Streams::new(MESSAGES_MAX),
            tickets: Store::with_capacity_max(MESSAGES_MAX),
            instances: Instances::new(&snapshot),
            cache: RouteCache::new(&settings.cache, rng.next_u64()),
            dedup: DedupWindow::new(&settings.dedup, rng.next_u64()),
            budget: RetryBudget::new(settings.retry.budget_percent),
            rates: Rates::new(&settings, shards, rng.next_u64()),
            gateway,
            settings,
            snapshot,
            rng,
            queue_items: 0,
            queue_bytes: 0,
            throttling: false,
            delayed: BinaryHeap::new(),
            touched: Vec::new(),
            windowed: Vec::new(),
            window_due: None,
            arrivals: 0,
            sweep_at: 0,
            drain: None,
            cut_off: 0,
            body: BodyWriter::default(),
            pool: Vec::new(),
            effects: Effects::default(),
            counters: Counters::default(),
            histograms: Histograms::default(),
            reasons: [0; Reason::ALL.len()],
            faults: Vec::new(),
            decoded: 0,
            route_failures: RouteFailures::default(),
            exhausted_at: None,
        }
    }

    /// Whether there is a place for one more connection.
    pub fn has_room(&self) -> bool {
        self.conns.len() < self.settings.conn.connections_max && self.drain.is_none()
    }

    /// A connection from `peer` was accepted, or is to be refused so. It counts for that address
    /// from now on.
    pub fn open(&mut self, peer: SocketAddr, now: Micros) -> Result<ConnId, OpenRefusal> {
        let id = self.open_unmetered(peer, now)?;
        let admitted = self.admit_address(id, peer.ip(), now);
        if admitted.is_err()
            && let Some(mut conn) = self.conns.remove(id)
        {
            self.rates.release(&mut conn.metered);
        }
        admitted.map(|()| id)
    }

    /// As [`Self::open`], for a connection whose client is not known yet: see [`Self::introduce`].
    pub fn open_unmetered(&mut self, peer: SocketAddr, now: Micros) -> Result<ConnId, OpenRefusal> {
        self.counters.inc(Counter::Accepted);
        if !self.has_room() {
            self.counters.inc(Counter::AcceptRefused);
            return Err(OpenRefusal::FULL);
        }
        self.admit_unknown()?;
        let random = u128::from(self.rng.next_u64()) << 64 | u128::from(self.rng.next_u64());
        let session = SessionId::from_random(random);
        let mut conn = Conn::new(peer, session, self.terms.clone(), now);
        self.rates.add_unknown(&mut conn.metered);
        Ok(self.conns.insert(conn))
    }

    /// The balancer in front told the client's address, before the client's first byte: it counts
    /// for that from now on. One over a limit is told so and ends.
    ///
    /// Returns whether it goes on.
    pub fn introduce(&mut self, id: ConnId, peer: SocketAddr, now: Micros) -> bool {
        let Some(conn) = self.conns.get_mut(id) else { return false };
        conn.identity.peer = peer;
        let admitted = self.admit_address(id, peer.ip(), now);
        if let Err(OpenRefusal { status, text, retry_after_ms }) = admitted {
            self.refuse_upgrade(id, status, text, retry_after_ms, now);
        }
        admitted.is_ok()
    }

    /// What carries the connection is broken (TLS, the balancer's header): what waits for the
    /// client could not be read. It ends when the shell has said its last word and the client
    /// closes.
    pub fn break_off(&mut self, id: ConnId, now: Micros) {
        self.forget_move(id);
        let until = now.plus_ms(self.settings.conn.close_timeout_ms);
        let Self { conns, pool, effects, .. } = self;
        let Some(conn) = conns.get_mut(id) else { return };
        let pending = conn.outbox.len();
        conn.outbox.advance(pending, pool);
        conn.phase = Phase::Lingering { until: conn.until().unwrap_or(until) };
        answer::mark_dirty(conn, id, &mut effects.dirty);
    }

    /// The socket is gone: forget the connection. Its messages under way run on; their answers
    /// are counted as undeliverable.
    pub fn remove(&mut self, id: ConnId) {
        let Some(mut conn) = self.conns.remove(id) else { return };
        self.counters.inc(Counter::Closed);
        self.turned_away -= usize::from(conn.turned_away);
        self.rates.release(&mut conn.metered);
        self.upgraded -= u64::from(conn.upgraded);
        let pending = conn.outbox.len();
        conn.outbox.advance(pending, &mut self.pool);
    }

    /// Bytes for the client that the kernel has not taken.
    pub fn outbox(&self, id: ConnId) -> &[u8] {
        self.conns.get(id).map_or(&[], |c| c.outbox.pending())
    }

    /// The kernel took `n` bytes (0: its buffer is full); says what becomes of the socket.
    pub fn on_sent(&mut self, id: ConnId, n: usize, now: Micros) -> Fate {
        let Self { conns, pool, counters, .. } = self;
        let Some(conn) = conns.get_mut(id) else { return Fate::Close };
        conn.dirty = false;
        if n > 0 {
            counters.inc(Counter::Sends);
            counters.add(Counter::BytesOut, n as u64);
            conn.outbox.stuck_since = now;
            conn.outbox.advance(n, pool);
        }
        if !conn.outbox.is_empty() {
            if conn.outbox.len() > conn.terms.outbox_bytes_max && conn.phase == Phase::Open {
                self.close_slow(id, now);
            }
            return Fate::Keep;
        }
        match conn.phase {
            Phase::Handshake | Phase::Open | Phase::Closing { .. } => Fate::Keep,
            Phase::Lingering { .. } => Fate::ShutWrite,
            Phase::Finished { .. } => Fate::Close,
        }
    }

    /// Whether the connection has too much unanswered to be read.
    pub fn is_paused(&self, id: ConnId) -> bool {
        self.conns.get(id).is_some_and(|c| c.paused)
    }

    /// The time in which `count` connections got their answers written and flushed.
    pub fn record_flush(&mut self, us: u64, count: u64) {
        self.histograms.record(Stage::ReplyFlush, us, count);
    }

    /// Out of descriptors: whether that is to be logged, at most once a minute.
    pub fn note_exhausted(&mut self, now: Micros) -> bool {
        let first = self.exhausted_at.is_none_or(|at| now.since(at) >= 60_000_000);
        if first {
            self.exhausted_at = Some(now);
        }
        first
    }

    /// Time spent in receiving and decoding, shared by the messages decoded since the last call.
    pub fn record_decode(&mut self, us: u64) {
        let messages = std::mem::take(&mut self.decoded);
        if let Some(each) = us.checked_div(messages) {
            self.histograms.record(Stage::Decode, each, messages);
        }
    }

    /// How late the shard answered the pulse.
    pub fn record_stall(&mut self, us: u64) {
        self.histograms.record(Stage::Stall, us, 1);
    }

    /// Control could not be told these signals: they are told with the next tick.
    pub fn untold(&mut self, signals: &[Signal]) {
        self.instances.untold(signals);
    }

    /// Counts something the shell saw.
    pub fn count(&mut self, counter: Counter, n: u64) {
        self.counters.add(counter, n);
    }

    /// The snapshot in force.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Whether the stop is complete: no connection left.
    pub fn is_drained(&self) -> bool {
        self.drain.is_some() && self.conns.is_empty()
    }

    /// Messages that got an error instead of their service's answer because of the stop.
    pub fn cut_off(&self) -> u64 {
        self.cut_off
    }

    /// Fill of the shard's queue.
    fn fill(&self) -> Fill {
        Fill {
            items: self.queue_items,
            bytes: self.queue_bytes,
            items_max: self.settings.queue.items_max,
            bytes_max: self.settings.queue.bytes_max,
        }
    }

    /// Everything that is counted, at this moment; `number` is that of the question. With 10,000
    /// connections some 20 us: 2 for a copy of the histograms, the rest for a pass over the
    /// connections (measured by a test in `look`, optimized and with a warm cache).
    pub fn report(&self, number: u64, now: Micros) -> Report {
        let (limited_users, limited_addresses) = self.rates.len();
        let gauges = Gauges {
            connections: self.conns.len() as u64,
            unauthenticated: self.rates.unknown() as u64,
            limited_users: limited_users as u64,
            limited_addresses: limited_addresses as u64,
            sessions: self.upgraded,
            unanswered: self.messages.len() as u64,
            queue_items: self.queue_items as u64,
            queue_bytes: self.queue_bytes as u64,
            usage_ratio: self.fill().ratio(),
            is_throttling: self.throttling,
            cache_entries: self.cache.len() as u64,
            cache_active: self.cache.active(now) as u64,
            dedup_entries: self.dedup.len() as u64,
            dedup_bytes: self.dedup.bytes() as u64,
            calls_in_flight: self.tickets.len() as u64,
            outbox_bytes: self.conns.iter().map(|(_, c)| c.outbox.len() as u64).sum(),
            connection_bytes: self.conns.iter().map(|(_, c)| c.memory_bytes() as u64).sum(),
            snapshot_version: self.snapshot.version,
        };
        Report {
            number,
            shard: self.shard,
            at: now,
            counters: self.counters.clone(),
            reasons: self.reasons,
            faults: self.faults.clone(),
            gauges,
            histograms: self.histograms.clone(),
            instances: self.instances.report(),
        }
    }

    /// The earliest time at which something waits to be done; ticks come besides it.
    pub fn next_due(&self) -> Option<Micros> {
        let delayed = self.delayed.peek().map(|&Reverse((at, _))| at);
        match (delayed, self.window_due) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}

/// A shard's own copy of a snapshot. Each message holds it while it is routed, and the count of one
/// `Arc` for all shards would be a cache line that every message of every core writes to.
fn own(snapshot: &Snapshot) -> Arc<Snapshot> {
    Arc::new(snapshot.clone())
}

/// Messages that may be decoded from one connection before it has to wait for answers.
fn is_over(conn: &Conn, settings: &ShardSettings) -> bool {
    conn.unanswered >= conn.terms.unanswered_max
        || conn.unanswered_bytes >= settings.conn.unanswered_bytes_max
}

const _: () = assert!(MESSAGES_MAX <= 1 << crate::ids::SLOT_BITS);
const _: () = assert!(limits::TICK_MS > 0);

#[cfg(test)]
mod tests;
