//! A closer look at one shard than its statistics give: what control asks for an operator, and what
//! the shard answers. Bounded, and of no cost when nobody asks.

use std::net::SocketAddr;

use crate::ids::{InstanceId, ServiceId, SessionId, TenantId};
use crate::message::Encoding;

/// Connections in one answer.
pub const TOP_MAX: usize = 100;

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Question {
    /// The connections that sent the most messages since they were opened, at most so many of them
    /// (and [`TOP_MAX`]).
    Talkers(usize),
    /// The connection of a session, by its public id.
    Session(String),
    /// Who gets the messages of a key.
    Route {
        /// Whose key.
        tenant: TenantId,
        /// Of which service.
        service: ServiceId,
        /// Its affinity hash.
        hash: u64,
        /// Whether another instance may take over.
        next: bool,
    },
}

/// What a shard answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Seen {
    /// Connections, the most messages first.
    Conns(Vec<ConnSeen>),
    /// See [`Question::Route`].
    Route(RouteSeen),
}

/// One connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnSeen {
    /// Its session.
    pub session: SessionId,
    /// The client's address.
    pub peer: SocketAddr,
    /// `handshake`, `open`, `closing`, `lingering` or `finished`.
    pub phase: &'static str,
    /// Its encoding.
    pub encoding: Encoding,
    /// Data messages read from it since it was opened.
    pub messages: u64,
    /// Messages without an answer.
    pub unanswered: u32,
    /// Their bytes.
    pub unanswered_bytes: u64,
    /// Bytes it has not taken yet.
    pub outbox_bytes: u64,
    /// Not read until it has fewer messages without an answer.
    pub paused: bool,
    /// Time since it was accepted, in microseconds.
    pub age_us: u64,
    /// Time since it last sent something, in microseconds.
    pub heard_us: u64,
}

/// Where a shard would send the messages of a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteSeen {
    /// Version of the snapshot that it works by.
    pub version: u64,
    /// The owner that its cache remembers, and for how long, in microseconds.
    pub cached: Option<(InstanceId, u64)>,
    /// Who would get a message now; `None` = nobody can be reached.
    pub chosen: Option<InstanceId>,
    /// Its links to the instances of the service: `up`, `connecting` or `down`.
    pub links: Vec<(InstanceId, &'static str)>,
}
