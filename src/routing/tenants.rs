//! TenantTable as shards know them: parties that share the gateway, each with its own routes, its part
//! of what is shared, and its quotas.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::ids::{ServiceId, TenantId};
use crate::origin::AllowedOrigin;
use crate::routing::Route;

/// A tenant of the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Tenant {
    /// Id, made of the name.
    pub id: TenantId,
    /// Name, as tokens have it.
    pub name: Arc<str>,
    /// Weight of its part of what is shared against other tenants' parts; 1 is normal.
    pub weight: u32,
    /// Its own routes, sorted by the first id of their range. Ranges do not overlap (checked).
    pub routes: Vec<Route>,
    /// Whether a message that none of its own routes has is looked up among the default ones.
    pub inherits: bool,
    /// Services to which the default routes may lead it, sorted; `None` = all.
    pub services: Option<Vec<ServiceId>>,
    /// Origins of the web pages whose users may sign in as its own; empty: every page that may
    /// connect.
    pub origins: Vec<AllowedOrigin>,
    /// Limits of the whole tenant.
    pub quota: Quota,
    /// Whether metrics show it by its name.
    pub has_metrics: bool,
    /// Its connections in the whole process.
    pub connections: SharedCount,
}

/// Limits of a tenant in the whole process; 0 = no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Quota {
    /// Connections of its users at once.
    pub connections_max: u32,
    /// Connections of its users that begin in a second.
    pub connects_per_s: u32,
    /// Messages a second.
    pub messages_per_s: u32,
    /// Bytes of its messages a second, as clients sent them.
    pub bytes_per_s: u32,
    /// Bytes of its messages that have no answer yet: those that wait, and those in calls.
    pub queued_bytes_max: u32,
    /// Idempotency keys that are remembered.
    pub dedup_ids_max: u32,
}

impl Quota {
    /// No limit at all.
    pub const NONE: Self = Self {
        connections_max: 0,
        connects_per_s: 0,
        messages_per_s: 0,
        bytes_per_s: 0,
        queued_bytes_max: 0,
        dedup_ids_max: 0,
    };
}

/// A count that all shards share: of what begins and ends seldom, and is to be exact.
#[derive(Clone, Debug, Default)]
pub struct SharedCount(Arc<AtomicU32>);

impl SharedCount {
    /// Counts one more if fewer than `max` are counted; 0 = no limit.
    pub fn enter(&self, max: u32) -> bool {
        let more = |count: u32| (max == 0 || count < max).then_some(count.saturating_add(1));
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Counts one less.
    pub fn leave(&self) {
        let before = self.0.fetch_sub(1, Ordering::Relaxed);
        assert!(before > 0, "more leave than entered");
    }

    /// The present count.
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Equal are counts that are one and the same.
impl PartialEq for SharedCount {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// The tenants of a snapshot, by id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TenantTable(Vec<Tenant>);

impl TenantTable {
    /// The tenants in `list`, whose ids differ (checked).
    pub fn new(mut list: Vec<Tenant>) -> Self {
        list.sort_unstable_by_key(|tenant| tenant.id);
        Self(list)
    }

    /// Whether there is none: everybody has the default routes, and nobody a quota.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The place of a tenant in [`Self::list`], if the configuration has it.
    #[inline]
    pub fn place(&self, id: TenantId) -> Option<usize> {
        if self.0.is_empty() {
            return None;
        }
        self.0.binary_search_by_key(&id, |tenant| tenant.id).ok()
    }

    /// The tenant, if the configuration has it.
    #[inline]
    pub fn get(&self, id: TenantId) -> Option<&Tenant> {
        self.place(id).map(|place| &self.0[place])
    }

    /// All tenants, in the order of their ids.
    pub fn list(&self) -> &[Tenant] {
        &self.0
    }
}

/// The route among `routes`, sorted, whose range holds `msg_id`.
#[inline]
pub(super) fn find(routes: &[Route], msg_id: u32) -> Option<&Route> {
    let after = routes.partition_point(|r| r.first <= msg_id);
    let route = &routes[after.checked_sub(1)?];
    (msg_id <= route.last).then_some(route)
}
