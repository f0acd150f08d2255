//! Messages between the control thread and the shards, sent over the lanes of [`crate::lanes`].

use std::sync::Arc;

use crate::auth::{KeyOwner, Verifier};
use crate::config::settings::{GatewaySettings, ShardSettings, StopSettings};
use crate::ids::ShardId;
use crate::inspect::{Inspection, Query};
use crate::push::Receipt;
use crate::routing::Snapshot;
use crate::routing::quota::{TenantDemand, TenantPart};
use crate::stats::{Report, Signal};
use crate::tls::server::Server;
use crate::tls::service::ServicesTls;
use crate::trace::Piece;

/// A published state of one shard: routes and settings. It is published as a whole and with one
/// version, so that nothing is ever half applied.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Routes, services and instances.
    pub snapshot: Arc<Snapshot>,
    /// Settings of the whole process.
    pub gateway: Arc<GatewaySettings>,
    /// Settings of the shard.
    pub settings: ShardSettings,
    /// Verifier of clients' tokens; `None` = clients cannot sign in (`auth.mode = "off"`).
    pub auth: Option<Arc<Verifier>>,
    /// TLS settings and certificates, for connections from now on; `None` = no listener speaks TLS.
    pub tls: Option<Arc<Server>>,
    /// TLS towards services, for connections from now on; those made with other settings are
    /// replaced.
    pub service_tls: ServicesTls,
}

/// Protocol of the listener that a client connected to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Port {
    /// HTTP/1.1 without TLS: `listen`.
    Plain,
    /// HTTP/1.1 over TLS: `tls.listen`.
    Tls,
}

/// A command of the control thread to one shard.
#[derive(Debug)]
pub enum Command {
    /// Apply this state. Keys that are read at the start only are the same as before (checked by
    /// the sender).
    Apply(Box<ShardConfig>),
    /// Send a [`ShardEvent::Report`] with this number.
    Report(u64),
    /// Send a [`ShardEvent::Sample`]: what can be told without a pass over the connections.
    Sample,
    /// Answer the query with a [`ShardEvent::Inspection`] of this number.
    Inspect(Query, u64),
    /// Record a trace of the turns, and send it in [`ShardEvent::Trace`].
    Trace {
        /// Number of the trace.
        number: u64,
        /// Its length in milliseconds.
        lasts_ms: u64,
    },
    /// Hold tenants to these parts of their quotas from now on.
    QuotaParts(Vec<TenantPart>),
    /// Stop accepting and taking messages; answer what was read; close with 1001; then end. What is
    /// not answered after the grace is answered with an error.
    Drain(StopSettings),
    /// End at once, without answers.
    Abort,
}

/// An event that a shard sends to the control thread.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum ShardEvent {
    /// The shard accepts connections and serves.
    Ready(ShardId),
    /// The answer to [`Command::Report`].
    Report(Box<Report>),
    /// The answer to [`Command::Sample`]. May be lost: the next one says what has come since.
    Sample(Box<Report>),
    /// The answer to [`Command::Inspect`].
    Inspection {
        /// Who.
        shard: ShardId,
        /// Number of the query.
        number: u64,
        /// The shard's answer.
        inspection: Inspection,
    },
    /// A piece of the trace that [`Command::Trace`] asked for.
    Trace {
        shard: ShardId,
        /// Marks since the last piece.
        piece: Piece,
    },
    /// Calls and connections of instances since the shard's last signals: only of instances with
    /// failures, or with less than their full share.
    Signals {
        shard: ShardId,
        /// Signals, one for each such instance.
        signals: Vec<Signal>,
    },
    /// What tenants with a quota want of it on this shard, once a second where there are several
    /// shards. May be lost: the next one says what has come since.
    QuotaDemands {
        shard: ShardId,
        /// Of each tenant with a quota.
        demands: Vec<TenantDemand>,
    },
    /// A token's key is unknown, and the fetched set of its owner's keys may be outdated: fetch it
    /// now. This event may be lost: the client tries again, and the event is sent again.
    KeysWanted {
        shard: ShardId,
        /// Owners of the sets, each once.
        owners: Vec<KeyOwner>,
    },
    /// What became of pushes and of work about groups that control sent. May be lost: control waits
    /// for no longer than it says.
    Receipts {
        shard: ShardId,
        /// In the order in which they came about.
        receipts: Vec<Receipt>,
    },
    /// The shard ended in order.
    Stopped {
        shard: ShardId,
        /// Messages that got an error instead of their service's answer because of the stop.
        cut_off: u64,
    },
    /// The shard ended with an error, which it has logged.
    Failed { shard: ShardId },
}
