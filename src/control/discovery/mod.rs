//! Discovery: sources of instances besides the files. Each source sends all it knows, again and
//! again; `compose` puts the contents together.

pub(super) mod dns;
pub mod etcd;
pub mod registry;

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::routing::Addresses;

/// News that wait to be taken in by control. Sources wait for room: control is never behind for
/// long.
pub const NEWS_MAX: usize = 64;

/// An instance that a source names.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FoundInstance {
    /// Name of the service. An instance of a service that no `[[service]]` has is left out with a
    /// warning.
    pub service: Arc<str>,
    /// Name of the instance, unique in the process; the ring hashes it. [`crate::config::is_name`]
    /// holds.
    pub name: Arc<str>,
    /// Addresses of the instance. No port is 0.
    pub addresses: Addresses,
    /// Share of the keys, 1 to 1000.
    pub weight: u32,
    /// Whether the instance asks for no new messages: calls in flight are finished, then it goes.
    pub draining: bool,
}

/// A route or a tenant that a source names; the reader of the files checks it.
pub use crate::config::{AwaitedTenants, FoundTable};

/// Everything that a source names now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SourceContents {
    /// Instances, in any order.
    pub instances: Vec<FoundInstance>,
    /// Routes, in any order.
    pub routes: Vec<FoundTable>,
    /// Tenants, in any order.
    pub tenants: Vec<FoundTable>,
    /// Tenants that it has and that are not in `tenants`, as their values cannot be read.
    pub awaited: AwaitedTenants,
}

/// An event of one source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SourceEvent {
    /// The contents of the source as they are now.
    Contents {
        /// All of it, with what did not change.
        contents: SourceContents,
        /// Origin of the change, for the log: `etcd`, `dns`, or callers of the registry.
        by: Arc<str>,
    },
    /// The source cannot be reached: its last contents still hold. Sent once for each outage, and
    /// again when the reason changes.
    Stale {
        /// Reason and advice, in one line.
        why: String,
    },
    /// The source can be reached again, with the contents of before.
    Fresh,
    /// A part of the source does not answer, and nothing depends on it.
    Note {
        /// Reason and advice, in one line.
        why: String,
    },
    /// A value in the source could not be read and was left out: a warning.
    Bad {
        /// Place of the value.
        at: String,
        /// Rule that the value breaks.
        why: String,
    },
}

/// An event with its source.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct News {
    /// Name of the source: `etcd`, `registry`, `dns:<service>`.
    pub source: Arc<str>,
    pub event: SourceEvent,
}

/// Sender of a source's news.
pub type NewsSender = mpsc::Sender<News>;
