//! Statistics of a shard at one moment, as control asks for them.

use std::sync::Arc;

use super::{CallTimes, Counters, Histograms, TenantReport};
use crate::ids::{InstanceId, SessionId, ShardId};
use crate::message::{CallFault, EventCounts, Micros, Reason};

/// Levels of one shard at one moment.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Gauges {
    /// Open connections, handshakes included.
    pub(crate) connections: u64,
    /// Connections that were upgraded.
    pub(crate) sessions: u64,
    /// Sessions that can be resumed, those without a connection among them.
    pub sessions_resumable: u64,
    /// Sessions without a connection.
    pub sessions_away: u64,
    /// Bytes of frames that are kept for resumable sessions.
    pub session_kept_bytes: u64,
    /// Connections in the handshake, or that must sign in and have not yet.
    pub(crate) unauthenticated: u64,
    /// Users for which limits are counted.
    pub(crate) limited_users: u64,
    /// Addresses for which limits are counted.
    pub(crate) limited_addresses: u64,
    /// Messages that have no answer yet.
    pub(crate) unanswered: u64,
    /// Messages waiting in queues.
    pub queue_items: u64,
    /// Payload bytes waiting in queues.
    pub queue_bytes: u64,
    /// Fill of the queue, 0 to 1: in messages or in bytes, whichever is more.
    pub(crate) usage_ratio: f64,
    /// Whether the queue is so full that the shard throttles.
    pub(crate) is_throttling: bool,
    /// Entries in the route cache, expired ones included.
    pub(crate) cache_entries: u64,
    /// Entries in the route cache that have not expired.
    pub(crate) cache_active: u64,
    /// Ids in the dedup window.
    pub(crate) dedup_entries: u64,
    /// Bytes held by the dedup window.
    pub(crate) dedup_bytes: u64,
    /// Calls to services in flight.
    pub(crate) calls_in_flight: u64,
    /// Owners whose messages on a route were slow lately: see `engine::dispatcher::slow_owners`.
    pub(crate) slow_owners: u64,
    /// Bytes in outboxes of connections.
    pub(crate) outbox_bytes: u64,
    /// Memory of connections: state, buffers, and TLS.
    pub(crate) connection_bytes: u64,
    /// Groups with members on the shard.
    pub(crate) groups: u64,
    /// Sessions in groups, each counted once for each group.
    pub(crate) group_members: u64,
    /// Bytes of pushes in the logs of groups, and that homes keep.
    pub(crate) group_log_bytes: u64,
    /// Groups whose members are told of pushes now.
    pub(crate) group_passes: u64,
    /// Pushes that wait for clients that read slowly or are away.
    pub(crate) pushes_waiting: u64,
    /// Events that wait for their services, or are on their way to them.
    pub(crate) events_waiting: u64,
    /// Pushes to a tenant or everyone that go from session to session now.
    pub(crate) push_waves: u64,
    /// Ids of pushes that are remembered.
    pub(crate) push_ids: u64,
    /// Items about groups that other shards have sent and that wait.
    pub(crate) group_lane_items: u64,
    /// Sessions that pushes find by their ids, those without a connection among them.
    pub(crate) sessions_indexed: u64,
    /// Users that pushes find by their names.
    pub(crate) users_indexed: u64,
    /// Version of the routing snapshot in use.
    pub(crate) snapshot_version: u64,
}

impl Gauges {
    /// Adds one shard's levels, but for the fill (of the fullest shard), throttling (of any) and
    /// the version (the oldest).
    pub(crate) fn add(&mut self, one: &Gauges) {
        let sum = &*self;
        let oldest = match sum.snapshot_version {
            0 => one.snapshot_version,
            version => version.min(one.snapshot_version),
        };
        *self = Gauges {
            connections: sum.connections + one.connections,
            sessions: sum.sessions + one.sessions,
            sessions_resumable: sum.sessions_resumable + one.sessions_resumable,
            sessions_away: sum.sessions_away + one.sessions_away,
            session_kept_bytes: sum.session_kept_bytes + one.session_kept_bytes,
            unauthenticated: sum.unauthenticated + one.unauthenticated,
            limited_users: sum.limited_users + one.limited_users,
            limited_addresses: sum.limited_addresses + one.limited_addresses,
            unanswered: sum.unanswered + one.unanswered,
            queue_items: sum.queue_items + one.queue_items,
            queue_bytes: sum.queue_bytes + one.queue_bytes,
            usage_ratio: sum.usage_ratio.max(one.usage_ratio),
            is_throttling: sum.is_throttling || one.is_throttling,
            cache_entries: sum.cache_entries + one.cache_entries,
            cache_active: sum.cache_active + one.cache_active,
            dedup_entries: sum.dedup_entries + one.dedup_entries,
            dedup_bytes: sum.dedup_bytes + one.dedup_bytes,
            calls_in_flight: sum.calls_in_flight + one.calls_in_flight,
            slow_owners: sum.slow_owners + one.slow_owners,
            outbox_bytes: sum.outbox_bytes + one.outbox_bytes,
            connection_bytes: sum.connection_bytes + one.connection_bytes,
            groups: sum.groups + one.groups,
            group_members: sum.group_members + one.group_members,
            group_log_bytes: sum.group_log_bytes + one.group_log_bytes,
            group_passes: sum.group_passes + one.group_passes,
            pushes_waiting: sum.pushes_waiting + one.pushes_waiting,
            events_waiting: sum.events_waiting + one.events_waiting,
            push_waves: sum.push_waves + one.push_waves,
            push_ids: sum.push_ids + one.push_ids,
            sessions_indexed: sum.sessions_indexed + one.sessions_indexed,
            group_lane_items: sum.group_lane_items + one.group_lane_items,
            users_indexed: sum.users_indexed + one.users_indexed,
            snapshot_version: oldest,
        };
    }
}

/// State of one instance in one shard.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct InstanceReport {
    pub(crate) instance: InstanceId,
    /// Whether a connection to it is up.
    pub(crate) connected: bool,
    /// Reason why there is none and the last attempt failed.
    pub(crate) why_down: Option<Arc<str>>,
    /// Messages that wait for it.
    pub(crate) waiting: u64,
    /// Calls in flight to it.
    pub(crate) in_flight: u64,
    /// Messages that it answered with OK.
    pub(crate) ok: u64,
    /// Messages that failed at it.
    pub(crate) failed: u64,
    /// Times of its calls since the shard knows it.
    pub(crate) times: CallTimes,
}

/// An owner of which messages were refused because it has its share of an instance's queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeldOwner {
    /// Session of the last refused message.
    pub session: SessionId,
    /// Its user; `None` before the session has signed in.
    pub user: Option<Arc<str>>,
    /// Tenant of the user, with `auth.tenants = "many"`.
    pub tenant: Option<Arc<str>>,
    /// Instance for which the last refused message was.
    pub instance: InstanceId,
    /// The level that was full: `tenant`, `user or address` or `session`.
    pub full: &'static str,
    /// Messages that waited on that level.
    pub held: u64,
    /// Refusals, without a pause of a minute between two.
    pub count: u64,
    /// Time of the last one, on the process clock.
    pub last: Micros,
}

/// Calls and connections of an instance in one shard since the last signal: the grounds for health.
/// Sent each tick, but only for instances with failures, with the first success after them, or with
/// less than their full share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct Signal {
    pub(crate) instance: InstanceId,
    /// Whether a call succeeded.
    pub(crate) ok: bool,
    /// Calls that failed since the last success in this time.
    pub(crate) failures: u32,
    /// Connections to it that were lost.
    pub(crate) losses: u32,
}

/// Statistics that a shard sends to the control thread: as a report on demand, or as a sample each
/// second, which lacks what takes a pass over the connections.
#[derive(Clone, Debug)]
pub struct Report {
    /// Number of the [`crate::mailbox::Command::Report`]; 0 of a sample.
    pub(crate) number: u64,
    /// The shard that reports.
    pub(crate) shard: ShardId,
    /// Time of the report, on the process clock.
    pub at: Micros,
    /// Time for which the shard's thread has run since its start, in microseconds of processor
    /// time, that of `shard.spin_us` included.
    pub busy_us: u64,
    /// Counters, summed since boot.
    pub counters: Counters,
    /// Error answers since boot, by reason, in the order of [`Reason::ALL`].
    pub(crate) reasons: [u64; Reason::ALL.len()],
    /// Failed calls since boot, by fault.
    pub(crate) faults: Vec<(CallFault, u64)>,
    /// Events to services that ended since boot.
    pub(crate) events: EventCounts,
    /// Levels at the time of the report.
    pub gauges: Gauges,
    /// Histograms of values since boot.
    pub(crate) histograms: Histograms,
    /// State of each instance.
    pub(crate) instances: Vec<InstanceReport>,
    /// Use by each tenant of the configuration.
    pub tenants: Vec<TenantReport>,
    /// Owners that were held back, of each minute the latest ones.
    pub held_back: Vec<HeldOwner>,
}
