//! Questions about single connections and keys that statistics cannot answer: an operator's query,
//! as control sends it to every shard, and a shard's answer. Bounded, and free while nobody asks.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

use crate::ids::{InstanceId, ServiceId, SessionId, ShardId, TenantId};
use crate::message::Encoding;
use crate::push::{GroupName, Position};

/// Connections in one answer.
pub const TOP_MAX: usize = 100;
/// Members in one answer, and kept pushes.
pub const PAGE_MAX: usize = 1_000;
/// Bytes of payloads of kept pushes in one answer: gRPC clients take messages of 4 MiB unless they
/// are told otherwise. The first push of an answer may have more.
pub const HISTORY_BYTES_MAX: usize = 3 << 20;

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
    /// Members of a group on this shard: those whose public ids, as texts, come after `after`, the
    /// least ones first, at most `limit` and at most [`PAGE_MAX`]; and how many there are in all.
    /// Answered by [`Inspection::Members`].
    #[allow(missing_docs)]
    Members { group: GroupName, limit: usize, after: Option<SessionId> },
    /// How many members each of these groups has on this shard, and the position, of those whose
    /// home it is. Answered by [`Inspection::Groups`], one for each, in their order.
    Groups(Vec<GroupName>),
    /// The pushes that a group keeps, asked of all shards and answered by its home: those after
    /// `since` (`None` = from the oldest on), the oldest or the newest first, at most `limit` and
    /// at most [`PAGE_MAX`]. Answered by [`Inspection::History`].
    #[allow(missing_docs)]
    History { group: GroupName, since: Option<Position>, limit: usize, newest_first: bool },
    /// The sessions of these users on this shard, those without a connection, too. Answered by
    /// [`Inspection::Sessions`].
    #[allow(missing_docs)]
    SessionsOf { tenant: TenantId, users: Vec<Box<str>> },
    /// The groups with the most members: at most so many, and at most [`TOP_MAX`]. Answered by
    /// their homes, with [`Inspection::TopGroups`].
    TopGroups(usize),
    /// What a shard has of these groups. Answered by [`Inspection::GroupDetails`], one for each, in
    /// their order.
    GroupDetails(Vec<GroupName>),
}

impl Query {
    /// Whether an operator asks it, and not a caller at the doors of pushes.
    pub fn is_of_operator(&self) -> bool {
        match self {
            Self::TopTalkers(_)
            | Self::Session(_)
            | Self::Route { .. }
            | Self::TopGroups(_)
            | Self::GroupDetails(_) => true,
            Self::Members { .. }
            | Self::Groups(_)
            | Self::History { .. }
            | Self::SessionsOf { .. } => false,
        }
    }
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
    /// Answer to [`Query::Members`].
    Members(MembersInfo),
    /// Answer to [`Query::Groups`].
    Groups(Vec<GroupInfo>),
    /// Answer to [`Query::History`]: `None` of a shard that is not the group's home, and of a home
    /// that does not know the group.
    History(Option<HistoryInfo>),
    /// Answer to [`Query::SessionsOf`].
    Sessions(Vec<SessionInfo>),
    /// Answer to [`Query::TopGroups`]: those whose home the shard is, with the number of places
    /// that all shards have for members, the most first.
    TopGroups(Vec<(GroupName, u64)>),
    /// Answer to [`Query::GroupDetails`]: `None` of a group that the shard does not know.
    GroupDetails(Vec<Option<GroupDetail>>),
}

/// Members of a group on one shard.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MembersInfo {
    /// The members that were asked for, by their public ids as texts.
    pub members: Vec<MemberInfo>,
    /// All of the group's sessions on the shard.
    pub sessions: u64,
    /// Their users; a session that has not signed in counts as one.
    pub users: u64,
}

/// A member of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberInfo {
    /// Its session.
    pub session: SessionId,
    /// Its user; empty = it has not signed in.
    pub user: Box<str>,
    /// Whether it has no connection for the time being.
    pub is_away: bool,
    /// What was said of it when it joined: one JSON text, or empty.
    pub info: Bytes,
}

/// A group on one shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GroupInfo {
    /// Sessions that are members.
    pub sessions: u64,
    /// Their users; a session that has not signed in counts as one.
    pub users: u64,
    /// Of the sessions: those without a connection.
    pub away: u64,
    /// Position of the newest push; `None` of a shard that is not the home of the group, or of a
    /// group that has none.
    pub position: Option<Position>,
}

/// What a shard has of a group, for operators.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GroupDetail {
    /// Pattern of the rule by which it works.
    pub rule: Arc<str>,
    /// Name of its tenant, if a member here says it.
    pub tenant: Option<Arc<str>>,
    /// Sessions here that are members.
    pub sessions: u64,
    /// Bytes of pushes that members here read, with their frames.
    pub log_bytes: u64,
    /// Bytes of pushes that it keeps as the group's home.
    pub kept_bytes: u64,
    /// Position of the newest push; `None` of a shard that is not the group's home.
    pub position: Option<Position>,
    /// Of a home: the shards that it tells of pushes.
    pub interest: Vec<InterestInfo>,
    /// Pushes that the member here lacks which is furthest behind.
    pub behind: u64,
    /// Age of the oldest of those that are still here, in microseconds.
    pub behind_us: u64,
    /// Public id of that member, if it is behind.
    pub slowest: Option<SessionId>,
    /// Whether members here cannot be told as fast as pushes come.
    pub is_lagging: bool,
}

/// A shard that the home of a group tells of its pushes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterestInfo {
    /// The shard.
    pub shard: ShardId,
    /// Offset of the last push that it was told of.
    pub told: u64,
    /// Places for members that the home has granted it.
    pub places: u32,
}

/// Pushes that a group keeps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HistoryInfo {
    /// Position of the newest push.
    pub position: Position,
    /// Whether not everything after the asked position is kept, or that is of another epoch.
    pub is_gap: bool,
    /// The pushes, in the order that was asked for.
    pub pushes: Vec<KeptPush>,
}

/// A push that a group keeps.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct KeptPush {
    pub offset: u64,
    pub msg_id: u32,
    pub payload: Bytes,
    /// Whether the payload is no JSON text.
    pub is_bytes: bool,
    pub key: Box<str>,
    pub id: Box<str>,
    /// Time of its arrival, in milliseconds since 1970.
    pub unix_ms: i64,
}

/// A session of a user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionInfo {
    /// Public id.
    pub session: SessionId,
    /// Name of its user.
    pub user: Box<str>,
    /// Whether it has no connection for the time being.
    pub is_away: bool,
    /// Time at which it was made, in milliseconds since 1970.
    pub since_unix_ms: i64,
    /// Address of its client; `None` without a connection.
    pub peer: Option<SocketAddr>,
    /// Encoding of its connection, the last one if it has none.
    pub encoding: Encoding,
    /// Names of the groups that it is in.
    pub groups: Vec<Arc<str>>,
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
