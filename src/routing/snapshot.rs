//! The compiled routing state: immutable, versioned, shared by all shards behind an `Arc`.

use std::sync::Arc;

use crate::ids::{InstanceId, ServiceId, TenantId};
use crate::message::Priority;
use crate::routing::tenants::{TenantTable, find};
use crate::routing::{Addresses, Ring, Share};

/// Everything that a shard needs to route messages. The control thread publishes a new snapshot for
/// each change.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Version, which rises by one with each published snapshot; caches are flushed when it
    /// changes.
    pub version: u64,
    /// Default routes, sorted by the first id of their range. Ranges do not overlap (checked).
    pub routes: Vec<Route>,
    /// Tenants, with their own routes.
    pub tenants: TenantTable,
    /// Services, indexed by [`ServiceId`]: a name keeps its number for the life of the process, so
    /// one that was removed stays here without instances.
    pub services: Vec<Service>,
    /// Instances that exist now, in no particular order.
    pub instances: Vec<Instance>,
}

/// A range of ids and the rules for its messages.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// First id of the range.
    pub first: u32,
    /// Last id of the range.
    pub last: u32,
    /// Service that handles the messages.
    pub service: ServiceId,
    /// Class of the messages in the queue.
    pub priority: Priority,
    /// Longest time for an answer; a client's own deadline can only shorten it.
    pub timeout_ms: u32,
    /// Messages whose order is kept.
    pub order: Order,
    /// Property of a message by which its instance is chosen.
    pub hash_on: HashOn,
    /// Form of the payloads.
    pub payload: PayloadKind,
    /// Whether running a message twice does no harm.
    pub idempotent: bool,
    /// Fate of a message whose instance fails.
    pub failover: Failover,
    /// Unary mode: the gRPC method, `/package.Service/Method`.
    pub method: Option<Arc<str>>,
    /// Whether the service's own error text reaches the client.
    pub service_text: bool,
    /// Whether only clients that signed in may send these messages.
    pub needs_user: bool,
    /// Tenants that may use it, sorted: those that its service is for; `None` = everybody.
    pub only_for: Option<Arc<[TenantId]>>,
}

/// Messages whose order is kept: `order = "session" | "none"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// The messages of a session with one hash key keep the order in which they were sent.
    Session,
    /// No order is kept: every slot may be used.
    None,
}

/// Property of a message that is hashed: `hash_on = "user" | "session" | "key"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HashOn {
    /// The authenticated user; the session before authentication.
    User,
    /// The session, also after authentication.
    Session,
    /// The message's `key`; the session if it has none.
    Key,
}

/// Form of payloads: `payload = "json" | "bytes"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PayloadKind {
    /// JSON text, in both directions.
    Json,
    /// Any bytes; base64 towards JSON clients.
    Bytes,
}

/// Fate of a message whose instance fails: `failover = "next" | "none"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failover {
    /// The message goes to the next distinct instance on the ring.
    Next,
    /// The message is answered with UNAVAILABLE, because the service keeps state.
    None,
}

/// Kind of calls to a service: `mode = "batch" | "unary"`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mode {
    /// Batches for `shardgate.backend.v1.Backend/Handle`.
    Batch,
    /// Calls of any method of an existing service, one message a call.
    Unary,
}

/// A service and its ring.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Service {
    pub name: Arc<str>,
    /// Kind of calls to it.
    pub mode: Mode,
    /// Consistent-hash ring of its instances, without draining ones. Empty if it has none. The
    /// `Arc` stays the same as long as the points in it are the same.
    pub ring: Arc<Ring>,
}

/// An instance: one server of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Instance {
    /// Dense number, used as an index.
    pub id: InstanceId,
    pub service: ServiceId,
    /// Name that the operator gave it; the ring hashes it.
    pub name: Arc<str>,
    /// Addresses where it listens (HTTP/2 without TLS).
    pub addresses: Addresses,
    /// Weight of its keys against other instances' keys; 1 is normal.
    pub weight: u32,
    /// Share of its keys that it gets now.
    pub share: Share,
    /// Whether it left the ring: it gets no new messages, and finishes its calls in flight.
    pub draining: bool,
}

impl Route {
    /// Whether a tenant may use it: also one that the configuration does not have, which may have
    /// left it, or may still come from a source.
    #[inline]
    fn is_open_to(&self, tenant: TenantId) -> bool {
        self.only_for.as_ref().is_none_or(|ids| ids.binary_search(&tenant).is_ok())
    }
}

impl Snapshot {
    /// The route of a tenant whose range holds `msg_id`: one of its own, else a default one that it
    /// may use. Clients of no tenant, or of one that the configuration does not have, have the
    /// default routes.
    #[inline]
    pub fn route(&self, tenant: TenantId, msg_id: u32) -> Option<&Route> {
        match self.tenants.is_empty() {
            true => find(&self.routes, msg_id).filter(|route| route.is_open_to(tenant)),
            false => self.route_of(tenant, msg_id),
        }
    }

    fn route_of(&self, id: TenantId, msg_id: u32) -> Option<&Route> {
        let tenant = self.tenants.get(id);
        if let Some(own) = tenant.and_then(|tenant| find(&tenant.routes, msg_id)) {
            return Some(own);
        }
        let route = find(&self.routes, msg_id)?;
        let inherits = tenant.is_none_or(|tenant| {
            let services = tenant.services.as_ref();
            tenant.inherits && services.is_none_or(|ids| ids.binary_search(&route.service).is_ok())
        });
        (route.is_open_to(id) && inherits).then_some(route)
    }

    /// The default route whose range holds `msg_id`, whoever may use it.
    pub(crate) fn default_route(&self, msg_id: u32) -> Option<&Route> {
        find(&self.routes, msg_id)
    }

    /// Word for the table that has a route of a tenant: its own, or the default one.
    pub(crate) fn table(&self, tenant: TenantId, route: &Route) -> &'static str {
        let own = self.tenants.get(tenant).map_or(&[][..], |tenant| &tenant.routes);
        if own.iter().any(|own| std::ptr::eq(own, route)) { "tenant" } else { "default" }
    }

    /// All routes: the default ones, then those of each tenant with its name, by their names.
    pub(crate) fn all_routes(&self) -> Vec<(Option<&str>, &Route)> {
        let mut all: Vec<_> = self.routes.iter().map(|route| (None, route)).collect();
        for tenant in self.tenants.list() {
            all.extend(tenant.routes.iter().map(|route| (Some(&*tenant.name), route)));
        }
        all.sort_by_key(|(tenant, route)| (*tenant, route.first));
        all
    }

    /// Names of the configured tenants that alone may use a default route; `None` = everybody.
    pub(crate) fn only_for(&self, route: &Route) -> Option<Vec<&str>> {
        let tenants = route.only_for.as_ref()?.iter().filter_map(|id| self.tenants.get(*id));
        let mut names: Vec<&str> = tenants.map(|tenant| &*tenant.name).collect();
        names.sort_unstable();
        Some(names)
    }

    /// The instance numbered `id`, if it still exists.
    pub(crate) fn instance(&self, id: InstanceId) -> Option<&Instance> {
        self.instances.iter().find(|i| i.id == id)
    }
}
