//! A shard's pure state: events and the time go in, effects come out. No await, no clock, no
//! socket, no randomness that was not passed in, so that the simulator can run it.
//!
//! Two halves: [`clients`] (connections, and what is known of and written to them) and
//! [`dispatcher`] (requests on their way to services and back). Beside them [`groups`]: logs,
//! members and homes, which `clients` holds. The way of a business message:
//! `inbound` (decode, classify) -> `clients::limits` (rates) -> `dispatcher::admission` (route,
//! dedup, pick, let in) -> `dispatcher::queue` -> `dispatcher::calls` (batch) -> a
//! [`crate::message::Call`] leaves -> its [`Outcome`] -> `dispatcher::outcome` (answer, retry,
//! move) -> `dispatcher::answer` -> `clients::reply` (into the outbox).
//!
//! The way of a push: `pushes` (from control, another shard, or `service_pushes`) ->
//! `clients::direct` (sessions and users: the outbox, or `clients::waiting`); or `groups::home`
//! (numbers it) -> a deliver lane -> `groups::log` of each shard with members -> `clients::sweep`
//! (tells members that there is something) -> `clients::deliveries` (the bytes of a flush).
//! Messages of clients about groups are `group_requests`; `clients::joining` lets them in and out.

mod answer;
mod builtin;
pub mod check;
pub mod clients;
mod config;
pub mod dispatcher;
mod drain;
pub mod effects;
pub mod events;
mod group_requests;
pub mod groups;
mod held;
mod inbound;
pub mod inspect;
pub mod instance_map;
pub mod owner;
pub mod pace;
mod pushes;
mod refusals;
mod service_pushes;
mod shares;
pub mod slab;
mod source;
mod stats;
pub(crate) mod tenants;
mod turn;
mod weights;
pub mod work;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::auth::Verifier;
use crate::config::settings::{GatewaySettings, ShardSettings};
use crate::engine::clients::Clients;
use crate::engine::clients::conn::{Conn, NextBytes, SocketAction};
use crate::engine::clients::home::Departed;
use crate::engine::clients::limits::OpenRefusal;
use crate::engine::config::EngineConfig;
use crate::engine::dispatcher::Dispatcher;
use crate::engine::dispatcher::batch::GatewayIdentity;
use crate::engine::dispatcher::instances::Link;
use crate::engine::drain::Drain;
use crate::engine::effects::Effects;
use crate::engine::owner::Holder;
use crate::engine::stats::Stats;
use crate::engine::tenants::TenantLedger;
use crate::engine::work::Work;
use crate::ids::{ConnId, InstanceId, ShardId};
use crate::message::{Micros, Outcome};
use crate::routing::Snapshot;
use crate::routing::quota::TenantPart;
use crate::stats::{Counter, Counters, Gauges, Report, Signal, Stage};

/// Everything that a shard is told once, at its start.
#[derive(Clone, Debug)]
pub struct EngineInit {
    /// Number of the shard.
    pub shard: ShardId,
    /// Shards of the process, this one among them.
    pub shards: u16,
    /// Settings of the whole process.
    pub gateway: Arc<GatewaySettings>,
    /// The shard's own settings.
    pub settings: ShardSettings,
    /// The first routing snapshot.
    pub snapshot: Arc<Snapshot>,
    /// Verifies clients' tokens; `None`: nobody signs in.
    pub auth: Option<Arc<Verifier>>,
    /// Number of this run of the gateway.
    pub boot_id: u64,
    /// Unix time of [`Micros`] 0, in microseconds.
    pub unix_at_boot_us: i64,
    /// Seed of session ids and secrets, hashes and jitter: 256 bits of the system's randomness, so
    /// that no secret tells another, or the simulator's.
    pub seed: [u8; 32],
}

/// The state of a shard: two halves, what both work by and count into, and what comes out.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    stats: Stats,
    /// What tenants use, against their quotas.
    tenants: TenantLedger,
    clients: Clients,
    dispatcher: Dispatcher,
    /// The stop under way, if there is one.
    drain: Option<Drain>,
    /// Things for the shell to do.
    pub effects: Effects,
    /// The work that may be done for the connection whose bytes are taken.
    pub work: Work,
    /// The one sequence of random numbers, so that a seed replays.
    rng: StdRng,
}

/// The things that a half is lent for the time of a call.
pub(crate) struct Context<'a> {
    pub config: &'a EngineConfig,
    pub stats: &'a mut Stats,
    pub tenants: &'a mut TenantLedger,
    pub effects: &'a mut Effects,
    pub rng: &'a mut StdRng,
    pub drain: Option<&'a Drain>,
}

/// Requests that a shard can have under way, whatever is configured: waiting ones, those in
/// calls, and duplicates that wait. 2^20 at 500 bytes each are 512 MiB.
pub const REQUESTS_MAX: usize = 1 << 20;

impl Engine {
    /// A shard without connections.
    pub fn new(init: EngineInit) -> Self {
        let EngineInit { shard, shards, gateway, settings, snapshot, auth, .. } = init;
        let EngineInit { boot_id, unix_at_boot_us, seed, .. } = init;
        let mut rng = StdRng::from_seed(seed);
        let identity = GatewayIdentity {
            gateway: gateway.node.clone(),
            shard: u32::from(shard.0),
            boot_id,
            unix_at_boot_us,
        };
        let dispatcher = Dispatcher::new(&settings, &snapshot, &mut rng);
        let seed = rng.next_u64();
        let mut clients = Clients::new(&gateway, &settings, (shard, shards), seed);
        clients.sign_in.set(auth, &gateway.auth);
        clients.set_tenants(&snapshot.tenants);
        clients.events.apply(&snapshot, &gateway.events);
        let mut tenants = TenantLedger::new(usize::from(shard.0), usize::from(shards.max(1)));
        tenants.apply(&snapshot.tenants, settings.limits.burst_s);
        Self {
            config: EngineConfig::new(shard, shards, identity, gateway, settings, &snapshot),
            stats: Stats::default(),
            tenants,
            clients,
            dispatcher,
            drain: None,
            effects: Effects::default(),
            work: Work::default(),
            rng,
        }
    }

    /// The two halves, and what they are lent.
    fn parts(&mut self) -> (&mut Clients, &mut Dispatcher, Context<'_>) {
        let Self { config, stats, tenants, clients, dispatcher, drain, effects, work: _, rng } =
            self;
        let drain = drain.as_ref();
        (clients, dispatcher, Context { config, stats, tenants, effects, rng, drain })
    }

    /// Whether there is a place for one more connection.
    pub fn has_room(&self) -> bool {
        let max = self.config.settings.conn.connections_max.get();
        let is_full = self.clients.conns.len() >= max || self.clients.sessions.is_full();
        self.drain.is_none() && !is_full
    }

    /// Whether a connection from `ip` has a place here: if not, another shard may have one.
    pub fn has_room_for(&self, ip: IpAddr) -> bool {
        // A proxy is not charged for its clients: their addresses come with the request.
        let is_proxy = || self.config.gateway.forwarded.from.has(ip);
        let max = self.config.settings.conn.connections_max.get();
        let limits = &self.clients.limits;
        let is_over = || {
            limits.is_address_full(ip) || !limits.leaves_places(ip, max, self.clients.conns.len())
        };
        self.has_room() && (!is_over() || is_proxy())
    }

    /// Opens a connection from `peer`, which counts for that address from now on if it is the
    /// client's, or says how it is to be refused.
    pub fn open(&mut self, peer: SocketAddr, now: Micros) -> Result<ConnId, OpenRefusal> {
        let has_room = self.has_room();
        let (clients, _, mut cx) = self.parts();
        clients.open(&mut cx, has_room, peer, now)
    }

    /// Opens a connection whose client's address a balancer will tell: see [`Self::introduce`].
    pub fn open_uncounted(&mut self, peer: SocketAddr, now: Micros) -> Result<ConnId, OpenRefusal> {
        let has_room = self.has_room();
        let (clients, _, mut cx) = self.parts();
        clients.open_uncounted(&mut cx, has_room, peer, now)
    }

    /// Gives a connection the address that a balancer told, before its peer's first byte: the
    /// client's, or that of a proxy that will name it. Over a limit the client is told so, and the
    /// connection ends: then false.
    pub fn introduce(&mut self, id: ConnId, peer: SocketAddr, now: Micros) -> bool {
        let (clients, _, mut cx) = self.parts();
        clients.introduce(&mut cx, id, peer, now)
    }

    /// Ends a connection whose transport failed (TLS, the PROXY header): unsent bytes are dropped,
    /// and it lingers until the alert is flushed and the client closes. Returns what is to be
    /// logged, if a line of this counter is due: the peer, and how many failed since the last line.
    pub fn break_off(
        &mut self,
        id: ConnId,
        counter: Counter,
        now: Micros,
    ) -> Option<(SocketAddr, u64)> {
        let (clients, _, mut cx) = self.parts();
        clients.break_off(&mut cx, id, counter, now)
    }

    /// Forgets a connection whose socket is gone. Its messages under way run on; their answers are
    /// kept, if its session can be resumed, else counted as undeliverable.
    pub fn remove(&mut self, id: ConnId) {
        let (clients, _, mut cx) = self.parts();
        clients.remove(&mut cx, id);
    }

    /// Bytes of the outbox that the kernel has not taken.
    pub fn outbox(&self, id: ConnId) -> &[u8] {
        self.clients.conns.get(id).map_or(&[], |c| c.outbox.pending())
    }

    /// The bytes that a flush is to write now, and that [`Self::on_sent`] is told of next: the
    /// outbox, or pushes of groups from their log. `is_copied`: the transport holds on to what it
    /// was given, so that the same bytes come again until they are sent (TLS).
    #[inline]
    pub fn bytes_to_send(&mut self, id: ConnId, is_copied: bool, now: Micros) -> &[u8] {
        let Self { config, stats, tenants, clients, drain, effects, rng, .. } = self;
        let drain = drain.as_ref();
        let mut cx = Context { config, stats, tenants, effects, rng, drain };
        clients.bytes_to_send(&mut cx, id, is_copied, now)
    }

    /// Takes note that the kernel took `n` bytes (0: its buffer is full), and says what becomes of
    /// the socket.
    pub fn on_sent(&mut self, id: ConnId, n: usize, now: Micros) -> SocketAction {
        let (clients, _, mut cx) = self.parts();
        clients.on_sent(&mut cx, id, n, now)
    }

    /// Whether the connection is not to be read: see [`clients::conn::Hold`].
    pub fn is_paused(&self, id: ConnId) -> bool {
        self.clients.conns.get(id).is_some_and(|c| !c.holds.is_empty())
    }

    /// Counts work that was done for a connection: once a visit of its bytes, not once a message.
    #[inline]
    pub fn note_work(&mut self, id: ConnId, units: i64) {
        if let Some(conn) = self.clients.conns.get_mut(id) {
            conn.note_work(units);
        }
    }

    /// The owner by whom the reading of a connection is shared: a user, or an address with all of
    /// its sessions that have not signed in.
    pub fn owner_of(&self, id: ConnId) -> Option<Holder> {
        let holder = self.clients.conns.get(id)?.session.holder();
        Some(Holder { session: 0, ..holder })
    }

    /// The place of a connection's next bytes.
    #[inline]
    pub fn next_bytes(&self, id: ConnId) -> NextBytes {
        self.clients.conns.get(id).map_or(NextBytes::Nowhere, Conn::next_bytes)
    }

    /// Takes a connection out to be sent to the shard named, with its socket. `None`: it does not
    /// move after all.
    pub fn depart(&mut self, id: ConnId) -> Option<(ShardId, Departed)> {
        let (clients, _, mut cx) = self.parts();
        clients.depart(&mut cx, id)
    }

    /// Takes the end of a call.
    pub fn on_outcome(&mut self, outcome: Outcome, now: Micros) {
        let (clients, dispatcher, mut cx) = self.parts();
        dispatcher.on_outcome(&mut cx, clients, outcome, now);
    }

    /// Takes a change of the link to an instance; `why`: the reason why it is down.
    pub fn on_link(&mut self, id: InstanceId, link: Link, why: &str, now: Micros) {
        let (clients, dispatcher, mut cx) = self.parts();
        dispatcher.on_link(&mut cx, clients, id, link, why, now);
        // Events that waited for it come before the messages that it gets from now on.
        clients.events.tend(&mut cx, now);
        dispatcher.send_events(&mut cx, clients, now);
    }

    /// Takes note of a sign that an instance lives, which was asked for.
    pub fn on_alive(&mut self, id: InstanceId, now: Micros) {
        self.dispatcher.on_alive(id, now);
    }

    /// Takes note that a connection to an instance broke. One that the service closed in order did
    /// not.
    pub fn on_connection_broken(&mut self, id: InstanceId, now: Micros) {
        self.dispatcher.on_connection_broken(id, now);
    }

    /// Takes the shard's parts of tenants' quotas, as control divides them.
    pub fn set_quota_parts(&mut self, parts: &[TenantPart], now: Micros) {
        self.tenants.set_parts(parts, now);
    }

    /// Everything that was counted since the start.
    pub(crate) fn counters(&self) -> &Counters {
        &self.stats.counters
    }

    /// Records the time in which `count` connections got their answers written and flushed.
    pub fn record_flush(&mut self, us: u64, count: u64) {
        self.stats.record(Stage::ReplyFlush, us, count);
    }

    /// Whether running out of descriptors is to be logged: at most once a minute.
    pub fn note_exhausted(&mut self, now: Micros) -> bool {
        self.stats.note_exhausted(now)
    }

    /// Records for how many microseconds bytes of a client lay unread in the kernel.
    pub fn record_unread(&mut self, us: u64) {
        self.stats.record_unread(us);
    }

    /// Records the time that a turn spent in receiving and decoding, which the messages share that
    /// were decoded since the last call.
    pub fn record_reading(&mut self, us: u64) {
        self.stats.record_reading(us);
    }

    /// Records how late the shard answered the pulse.
    pub fn record_stall(&mut self, us: u64) {
        self.stats.record(Stage::Stall, us, 1);
    }

    /// Takes back reports of instances that control's lane refused: they are merged into the next.
    pub fn return_signals(&mut self, signals: &[Signal]) {
        self.dispatcher.instances.give_back(signals);
    }

    /// Counts something that the shell saw.
    pub fn count(&mut self, counter: Counter, n: u64) {
        self.stats.add(counter, n);
    }

    /// The snapshot in force.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.config.snapshot
    }

    /// Whether the stop is complete: no connection is left, and no event is on its way.
    pub fn is_drained(&self) -> bool {
        let is_empty = self.clients.conns.is_empty() && !self.clients.events.has_sent();
        self.drain.is_some() && is_empty
    }

    /// Messages that got an error instead of their service's answer because of the stop.
    pub fn cut_off(&self) -> u64 {
        self.drain.as_ref().map_or(0, |drain| drain.cut_off)
    }

    /// The earliest time at which something waits to be done; ticks come besides it.
    pub fn next_due(&self) -> Option<Micros> {
        if self.has_pushes() { Some(Micros(0)) } else { self.dispatcher.next_due() }
    }

    /// Everything that is counted, at this moment; `number` is that of the question. With 10,000
    /// connections some 20 us: 2 for a copy of the histograms, the rest for a pass over the
    /// connections (measured by a test in `inspect`, optimized and with a warm cache).
    pub fn report(&self, number: u64, now: Micros) -> Report {
        let mut report = Report { number, ..self.sample(now) };
        self.clients.report_each_into(&mut report.gauges);
        report.gauges.cache_active = self.dispatcher.cache.active(now) as u64;
        self.tenants.count_connections(self.clients.tenants(), &mut report.tenants);
        report
    }

    /// The part of a report whose cost does not depend on the number of connections: of the levels
    /// `outbox_bytes`, `connection_bytes`, `pushes_waiting`, `cache_active` and the connections of
    /// tenants are 0.
    pub fn sample(&self, now: Micros) -> Report {
        let mut gauges =
            Gauges { snapshot_version: self.config.snapshot.version, ..Gauges::default() };
        self.clients.report_into(&mut gauges);
        self.dispatcher.report_into(&mut gauges, &self.config.settings.queue);
        Report {
            number: 0,
            shard: self.config.shard,
            at: now,
            // The shard knows: an engine has no clock.
            busy_us: 0,
            counters: self.stats.counters.clone(),
            reasons: self.stats.reasons,
            faults: self.stats.faults.clone(),
            events: self.clients.events.counts,
            gauges,
            histograms: self.stats.histograms.clone(),
            instances: self.dispatcher.instances.report(),
            tenants: self.tenants.report(|id| self.dispatcher.dedup.ids_of(id)),
            held_back: self.dispatcher.held_back().to_vec(),
        }
    }
}

const _: () = assert!(REQUESTS_MAX <= 1 << crate::ids::SLOT_BITS);
const _: () = assert!(crate::limits::TICK_MS > 0);

#[cfg(test)]
mod tests;
