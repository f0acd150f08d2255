//! Where instances come from besides the files: sources that each tell all they know, again and
//! again. What is told is put together in [`super::compose`].

pub mod dns;
pub mod etcd;
pub mod registry;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::mpsc;

/// News waiting to be taken in by control. Sources wait for room: control is never behind for long.
pub const NEWS_MAX: usize = 64;

/// An instance that a source knows.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Found {
    /// Its service's name; one that no `[[service]]` has is told in a warning and left out.
    pub service: Arc<str>,
    /// Its own name, unique in the process; what the ring hashes. [`crate::config::is_name`] holds.
    pub name: Arc<str>,
    /// Where it listens. The port is not 0.
    pub address: SocketAddr,
    /// Share of the keys, 1 to 1000.
    pub weight: u32,
    /// It asks for nothing new: what is in flight is finished, then it goes.
    pub draining: bool,
}

/// A route that a source knows; checked by the reader of the files.
pub use crate::config::FoundRoute;

/// All that a source knows now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Known {
    /// Instances, in any order.
    pub instances: Vec<Found>,
    /// Routes, in any order.
    pub routes: Vec<FoundRoute>,
}

/// One source's word.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Word {
    /// What it knows now, in full, and who or what said so (for the log): `etcd`, or a caller.
    Known {
        /// Everything, also what did not change.
        known: Known,
        /// Who changed it.
        by: Arc<str>,
    },
    /// It cannot be asked at the moment: what it last said still holds. Said once for each time it
    /// goes away, and again when the reason changes.
    Stale {
        /// One line: what, and what to do.
        why: String,
    },
    /// It can be asked again and knows what it knew.
    Fresh,
    /// Something in it could not be read and was left out (a bad value under a key): a warning.
    Bad {
        /// Where.
        at: String,
        /// What is wrong, and the rule.
        why: String,
    },
}

/// What sources send to control.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct News {
    /// Who: `etcd`, `registry`, `dns:<service>`.
    pub source: Arc<str>,
    /// What.
    pub word: Word,
}

/// How a source tells its news.
pub type Teller = mpsc::Sender<News>;
