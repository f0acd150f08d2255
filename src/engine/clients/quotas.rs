//! Quotas of tenants at the door: connections, and the words of all refusals. Their accounts are in
//! [`crate::engine::tenants`].

use crate::auth::Identity;
use crate::engine::Context;
use crate::engine::clients::Clients;
use crate::engine::clients::conn::LimitState;
use crate::engine::clients::session::{Session, tenant_of};
use crate::ids::ConnId;
use crate::message::{Micros, Reason, Reject, whole_ms};
use crate::routing::TenantTable;
use crate::routing::quota::Thing;
use crate::stats::{Counter, TenantCounter};

/// Hint for a client of a tenant with too many connections: one is free when another closes, which
/// may be soon.
const COME_BACK_US: u64 = 1_000_000;
const TENANT_FULL: &str =
    "your tenant has as many connections as it may: close one, or try again later";

/// The text of a refusal of something over a tenant's quota.
pub(in crate::engine) fn quota_text(thing: Thing) -> &'static str {
    match thing {
        Thing::Connects => "your tenant opens too many connections a second: try again later",
        Thing::Messages => "your tenant sends too many messages a second: wait for retry_after_ms",
        Thing::Bytes => "your tenant sends too many bytes a second: wait for retry_after_ms",
        Thing::QueuedBytes => {
            "the messages of your tenant that wait are as many bytes as there may be: send \
             the message again later"
        }
        Thing::DedupIds => {
            "too many ids of your tenant are remembered: send the message later, or without \
             an id"
        }
    }
}

/// Counts an open connection for its user's tenant, if it is not counted there: the tenant may have
/// come to the configuration since, or left it. One that has not signed in is counted when it does.
pub(super) fn count_for_tenant(tenants: &TenantTable, session: &Session, limits: &mut LimitState) {
    if session.user().is_none() {
        return;
    }
    let tenant = tenants.get(session.owner.tenant);
    let is_counted = match (&limits.tenant, tenant) {
        (Some(one), Some(tenant)) => one.is_of(&tenant.connections),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    };
    if !is_counted {
        limits.tenant = tenant.and_then(|tenant| tenant.connections.enter(0));
    }
}

impl Clients {
    /// Counts a connection that is about to be `identity`'s for its tenant, unless that is over its
    /// quota.
    pub(super) fn count_tenant(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        identity: &Identity,
        now: Micros,
    ) -> Result<(), Reject> {
        let Some(tenant) = cx.config.snapshot.tenants.get(tenant_of(identity)) else {
            return Ok(());
        };
        let refusal = |text, us| Reject::later(Reason::RateLimited, text, whole_ms(us));
        let Some(counted) = tenant.connections.enter(tenant.quota.connections_max) else {
            cx.tenants.add(tenant.id, TenantCounter::ConnectionsRefused, 1);
            cx.stats.inc(Counter::QuotaConnectsRefused);
            return Err(refusal(TENANT_FULL, COME_BACK_US));
        };
        cx.tenants.take_connect(tenant.id, now).map_err(|over| {
            cx.stats.inc(Counter::QuotaConnectsRefused);
            refusal(quota_text(over.thing), over.us)
        })?;
        if let Some(conn) = self.conns.get_mut(id) {
            conn.limits.tenant = Some(counted);
        }
        Ok(())
    }
}
