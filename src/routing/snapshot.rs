//! The compiled routing state: immutable, versioned, shared by all shards behind an `Arc`.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::ids::{InstanceId, RouteId, ServiceId};
use crate::message::Priority;
use crate::routing::{Ring, Share};

/// Everything a shard needs to route. Control publishes a new one for each change.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Rises by one with each published snapshot; caches are flushed when it changes.
    pub version: u64,
    /// Routes, sorted by the first id of their range. Ranges do not overlap (checked).
    pub routes: Vec<Route>,
    /// Services, indexed by [`ServiceId`]: a name keeps its number for the life of the process, so
    /// one that was removed stays here without instances.
    pub services: Vec<Service>,
    /// Instances that exist now, in no particular order.
    pub instances: Vec<Instance>,
}

/// Rule for a range of ids.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// First id.
    pub first: u32,
    /// Last id.
    pub last: u32,
    /// Who handles it.
    pub service: ServiceId,
    /// Class in the queue.
    pub priority: Priority,
    /// Longest time for an answer; a client's own deadline can only shorten it.
    pub timeout_ms: u32,
    /// What is kept in order.
    pub order: Order,
    /// What the instance is chosen by.
    pub hash_on: HashOn,
    /// What payloads are.
    pub payload: PayloadKind,
    /// Whether running a message twice does no harm.
    pub idempotent: bool,
    /// What happens when the instance fails.
    pub failover: Failover,
    /// Unary mode: the gRPC method, `/package.Service/Method`.
    pub method: Option<Arc<str>>,
    /// Whether the service's own error text reaches the client.
    pub service_text: bool,
    /// Whether only clients that signed in may send it.
    pub needs_user: bool,
}

/// `order = "session" | "none"`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// A session's messages with one hash key, in the order sent.
    Session,
    /// None: every slot may be used.
    None,
}

/// `hash_on = "user" | "session" | "key"`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HashOn {
    /// The authenticated user; the session before authentication.
    User,
    /// The session.
    Session,
    /// The message's `key`; the session if it has none.
    Key,
}

/// `payload = "json" | "bytes"`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PayloadKind {
    /// JSON text, both ways.
    Json,
    /// Any bytes; base64 towards JSON clients.
    Bytes,
}

/// `failover = "next" | "none"`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failover {
    /// The next distinct instance on the ring.
    Next,
    /// Answer UNAVAILABLE: the service keeps state.
    None,
}

/// `mode = "batch" | "unary"`
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mode {
    /// `shardgate.backend.v1.Backend/Handle`
    Batch,
    /// Any method of an existing service, one message a call.
    Unary,
}

/// A service and its ring.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: Arc<str>,
    /// How it is called.
    pub mode: Mode,
    /// Consistent-hash ring of its instances, draining ones left out. Empty if it has none. The
    /// same `Arc` as long as the same points are in it.
    pub ring: Arc<Ring>,
}

/// One address of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Dense number for indexing.
    pub id: InstanceId,
    /// Its service.
    pub service: ServiceId,
    /// The operator's name for it; what the ring hashes.
    pub name: Arc<str>,
    /// Where it listens (plain text HTTP/2).
    pub address: SocketAddr,
    /// Relative share of the keys; 1 is normal.
    pub weight: u32,
    /// How many of its keys it gets now.
    pub share: Share,
    /// Not in the ring any more: it gets nothing new, what is in flight is finished.
    pub draining: bool,
}

impl Snapshot {
    /// The route whose range holds `msg_id`.
    pub fn route(&self, msg_id: u32) -> Option<(RouteId, &Route)> {
        let after = self.routes.partition_point(|r| r.first <= msg_id);
        let index = after.checked_sub(1)?;
        let route = &self.routes[index];
        (msg_id <= route.last).then_some((RouteId(index as u16), route))
    }

    /// The instance numbered `id`, if it still exists.
    pub fn instance(&self, id: InstanceId) -> Option<&Instance> {
        self.instances.iter().find(|i| i.id == id)
    }
}
