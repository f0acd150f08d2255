//! Tenants as shards know them: parties that share the gateway, each with its own routes, its part
//! of what is shared, and its quotas.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::ids::{ServiceId, TenantId};
use crate::origin::AllowedOrigin;
use crate::routing::{Quota, Route};

/// Name in metrics of everybody who is no tenant with metrics of its own: no tenant may have it.
pub const OTHER_TENANTS: &str = "_other";

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
    /// Origins of the web pages whose users may sign in as its own; empty = those of the key
    /// `origins`.
    pub origins: Vec<AllowedOrigin>,
    /// Limits of the whole tenant.
    pub quota: Quota,
    /// Whether metrics show it by its name.
    pub has_metrics: bool,
    /// Its connections in the whole process.
    pub connections: SharedCount,
}

impl Tenant {
    /// A tenant with nothing but a name.
    #[cfg(test)]
    pub fn plain(name: &str) -> Self {
        Self {
            id: TenantId::of(name),
            name: name.into(),
            weight: 1,
            routes: Vec::new(),
            inherits: true,
            services: None,
            origins: Vec::new(),
            quota: Quota::NONE,
            has_metrics: false,
            connections: SharedCount::default(),
        }
    }
}

/// A count that all shards share: of what begins and ends seldom, and is to be exact.
#[derive(Clone, Debug, Default)]
pub struct SharedCount(Arc<AtomicU32>);

impl SharedCount {
    /// Counts one more, until what is returned is dropped, if fewer than `max` are counted; 0 = no
    /// limit.
    pub fn enter(&self, max: u32) -> Option<CountedOne> {
        let more = |count: u32| (max == 0 || count < max).then_some(count.saturating_add(1));
        let entered = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        entered.is_ok().then(|| CountedOne(self.clone()))
    }

    /// The present count.
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One that a [`SharedCount`] counts as long as this lives.
#[derive(Debug)]
pub struct CountedOne(SharedCount);

impl CountedOne {
    /// Whether it is counted by `count`.
    pub fn is_of(&self, count: &SharedCount) -> bool {
        self.0 == *count
    }
}

impl Drop for CountedOne {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
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

    /// Weight of a tenant's part of what is shared: 1 if the configuration does not have it.
    #[inline]
    pub fn weight(&self, id: TenantId) -> u32 {
        self.get(id).map_or(1, |tenant| tenant.weight)
    }

    /// Whether the same tenants have the same routes and services as in `other`, whoever counts
    /// their connections.
    pub fn has_rules_of(&self, other: &Self) -> bool {
        let is_same = |(a, b): (&Tenant, &Tenant)| {
            (a.id, &a.routes, a.inherits, &a.services) == (b.id, &b.routes, b.inherits, &b.services)
        };
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(is_same)
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
