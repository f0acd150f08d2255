//! What control and shards say to each other over the lanes of [`crate::lanes`].

use std::sync::Arc;

use crate::auth::Verifier;
use crate::config::settings::{GatewaySettings, ShardSettings, StopSettings};
use crate::ids::ShardId;
use crate::inspect::{Inspection, Query};
use crate::routing::Snapshot;
use crate::stats::{Report, Signal};
use crate::tls::server::Server;

/// One published state: all that a shard routes and works by. Published as a whole and with one
/// version, so that nothing is ever half applied.
#[derive(Clone, Debug)]
pub struct Published {
    /// Routes, services and instances.
    pub snapshot: Arc<Snapshot>,
    /// Process-wide settings.
    pub gateway: Arc<GatewaySettings>,
    /// The shard's own.
    pub settings: ShardSettings,
    /// Verifies clients' tokens; `None`: nobody signs in (`auth.mode = "off"`).
    pub auth: Option<Arc<Verifier>>,
    /// What handshakes of TLS need, from the next connection on; `None`: there is no such listener.
    pub tls: Option<Arc<Server>>,
}

/// What is spoken where a client connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Port {
    /// HTTP/1.1 at once: `listen`.
    Plain,
    /// TLS, and HTTP/1.1 in it: `tls.listen`.
    Tls,
}

/// Control to one shard.
#[derive(Debug)]
pub enum Command {
    /// Route and work by this from now on. Keys that are read at the start only are the same as
    /// before (checked by who sends it).
    Adopt(Box<Published>),
    /// Send a [`ShardEvent::Report`] with this number.
    Report(u64),
    /// Answer the query with a [`ShardEvent::Inspection`] of this number.
    Inspect(Query, u64),
    /// Stop accepting and taking messages; answer what was read; close with 1001; then end. What is
    /// not answered after the grace is answered with an error.
    Drain(StopSettings),
    /// End at once.
    Abort,
}

/// A shard to control.
#[derive(Debug)]
pub enum ShardEvent {
    /// The shard serves.
    Ready(ShardId),
    /// The answer to [`Command::Report`].
    Report(Box<Report>),
    /// The answer to [`Command::Inspect`].
    Inspection {
        /// Who.
        shard: ShardId,
        /// Number of the query.
        number: u64,
        /// The shard's answer.
        inspection: Inspection,
    },
    /// How instances did since the shard last said so; only those that are worth a word.
    Signals {
        /// Who.
        shard: ShardId,
        /// One for each such instance.
        signals: Vec<Signal>,
    },
    /// A token's key is not known, and the fetched set of keys may be behind: fetch it now. May be
    /// lost: the client comes again, and it is said again.
    KeysWanted(ShardId),
    /// The shard ended in order: messages left without their answer by it.
    Stopped {
        /// Who.
        shard: ShardId,
        /// Messages that got an error instead of their service's answer because of the stop.
        cut_off: u64,
    },
    /// The shard could not go on.
    Failed {
        /// Who.
        shard: ShardId,
        /// One line: what, and what to do.
        why: String,
    },
}
