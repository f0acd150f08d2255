//! Statistics of a shard at one moment, as control asks for them.

use std::sync::Arc;

use super::{Counters, Histograms, TenantReport};
use crate::ids::{InstanceId, ShardId};
use crate::message::{CallFault, Micros, Reason};

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

/// Statistics that a shard reports to the control thread on demand.
#[derive(Clone, Debug)]
pub struct Report {
    /// Number of the [`crate::mailbox::Command::Report`].
    pub(crate) number: u64,
    /// The shard that reports.
    pub(crate) shard: ShardId,
    /// Time of the report, on the process clock.
    pub at: Micros,
    /// Counters, summed since boot.
    pub counters: Counters,
    /// Error answers since boot, by reason, in the order of [`Reason::ALL`].
    pub(crate) reasons: [u64; Reason::ALL.len()],
    /// Failed calls since boot, by fault.
    pub(crate) faults: Vec<(CallFault, u64)>,
    /// Levels at the time of the report.
    pub gauges: Gauges,
    /// Histograms of values since boot.
    pub(crate) histograms: Histograms,
    /// State of each instance.
    pub(crate) instances: Vec<InstanceReport>,
    /// Use by each tenant of the configuration.
    pub tenants: Vec<TenantReport>,
}
