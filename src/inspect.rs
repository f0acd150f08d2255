//! Questions about single connections and keys that statistics cannot answer: an operator's query,
//! as control sends it to every shard, and a shard's answer. Bounded, and free while nobody asks.

use std::net::SocketAddr;

use crate::ids::{InstanceId, ServiceId, SessionId, TenantId};
use crate::message::Encoding;

/// Connections in one answer.
pub const TOP_MAX: usize = 100;

/// A question to every shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Query {
    /// The connections that have cost the most work since they were opened: at most so many, and
    /// at most [`TOP_MAX`].
    TopTalkers(usize),
    /// The connection of the session with this public id.
    Session(String),
    /// The instance that gets the messages of a key.
    #[allow(missing_docs)]
    Route {
        tenant: TenantId,
        service: ServiceId,
        /// First id of the route.
        route: u32,
        /// Affinity hash of the key.
        hash: u64,
        /// Whether the next instance on the ring may take over (`failover = "next"`).
        next: bool,
        /// The sender, whose share is told.
        sender: Asked,
    },
}

/// The sender of whom a query asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked {
    /// No one in particular.
    Nobody,
    /// The user with this affinity hash.
    User(u64),
    /// The session with this public id.
    Session(String),
}

/// A shard's answer to a [`Query`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Inspection {
    /// Connections, those with the most work first.
    Conns(Vec<ConnInfo>),
    /// Answer to [`Query::Route`].
    Route(RouteInfo),
}

/// State of one connection.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct ConnInfo {
    pub session: SessionId,
    /// Address of the client.
    pub peer: SocketAddr,
    /// `handshake`, `open`, `closing`, `lingering` or `finished`.
    pub phase: &'static str,
    pub encoding: Encoding,
    /// Data messages read since the connection was opened.
    pub messages: u64,
    /// Work that it has cost since then, in units of about a nanosecond of a core.
    pub work: u64,
    /// Messages without an answer.
    pub unanswered: u32,
    /// Bytes of the messages without an answer.
    pub unanswered_bytes: u64,
    /// Bytes that the client has not taken yet.
    pub outbox_bytes: u64,
    /// Whether the connection is not read for now.
    pub paused: bool,
    /// Time since the connection was accepted, in microseconds.
    pub age_us: u64,
    /// Time since the client last sent something, in microseconds.
    pub heard_us: u64,
}

/// Choice of an instance, as one shard makes it now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteInfo {
    /// Version of the shard's snapshot.
    pub version: u64,
    /// Owner remembered by the shard's route cache, and the age of that entry in microseconds.
    pub cached: Option<(InstanceId, u64)>,
    /// Instance that would get a message now; `None` = none can be reached.
    pub chosen: Option<InstanceId>,
    /// State of the shard's links to the instances of the service: `up`, `connecting` or `down`.
    pub links: Vec<(InstanceId, &'static str)>,
    /// Messages of the sender at that instance, and of the groups it is in, the smallest first, up
    /// to all messages there; `None` if the shard does not know the sender.
    pub shares: Option<Vec<ShareInfo>>,
}

/// Messages of an owner, or of a group of owners, at an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct ShareInfo {
    /// `session`, `user`, `address`, `tenant` or `all`.
    pub of: &'static str,
    pub waiting: u64,
    pub in_flight: u64,
    /// Whether messages of the owner on the route were slow lately, so that they travel apart from
    /// the others; `None` of a group, which is not marked.
    pub slow: Option<bool>,
}
