//! What services say beside their answers: groups that a session joins or leaves, and pushes.
//!
//! A service needs no client, no port and no token for it: its rights stand with its
//! configuration. The answer comes first, then joins, then pushes. Nobody waits for what becomes of
//! them, so refusals are counted, and logged once a second.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use crate::config::settings::{PushRights, PushTo, Tenants};
use crate::engine::Context;
use crate::engine::clients::Clients;
use crate::engine::refusals::Cause;
use crate::ids::{ServiceId, SessionKey, TenantId};
use crate::message::Micros;
use crate::push::{Addressees, Origin, Push, Submit};
use crate::routing::addressing::by_shard;
use crate::stats::Counter;
use crate::wire::backend::{Memberships, Pushes};
use crate::wire::push::{Arrived, Limits, check, generated};

/// Pushes of one answer that are taken.
const PUSHES_MAX: usize = 1_000;

/// A service that has answered, and what it may.
struct Speaker<'a> {
    name: Arc<str>,
    rights: Option<&'a Arc<PushRights>>,
}

impl<'a> Speaker<'a> {
    fn of(cx: &Context<'a>, service: ServiceId) -> Self {
        let service = cx.config.snapshot.services.get(usize::from(service.0));
        let name = service.map(|service| service.name.clone()).unwrap_or_default();
        let rights = cx.config.gateway.push.services.get(&name);
        Self { name, rights }
    }

    fn may_tenant(&self, tenant: &str) -> bool {
        self.rights.is_some_and(|rights| rights.has_tenant(tenant))
    }
}

impl Clients {
    /// Puts a session into the groups that a service names in its answer, and takes it out.
    pub(crate) fn take_memberships(
        &mut self,
        cx: &mut Context<'_>,
        key: SessionKey,
        service: ServiceId,
        memberships: Memberships<'_>,
        now: Micros,
    ) {
        let speaker = Speaker::of(cx, service);
        let Some((session, _)) = self.session_mut(key) else { return };
        let tenant = session.owner.tenant;
        let user = session.user();
        let tenant_name = user.and_then(|user| user.tenant.clone()).unwrap_or_default();
        let may = |name: &str| {
            speaker.may_tenant(&tenant_name) && speaker.rights.is_some_and(|r| r.has_join(name))
        };
        let (left, not_left): (Vec<&str>, Vec<&str>) =
            memberships.leave().partition(|name| may(name));
        let (joined, not_joined): (Vec<&str>, Vec<&str>) =
            memberships.join().partition(|name| may(name));
        if let Some(name) = not_left.iter().chain(&not_joined).next() {
            let count = (not_left.len() + not_joined.len()) as u64;
            cx.stats.add(Counter::GroupJoinsRefused, count);
            let why = format!("group {name:?}: `push` of the service has no join of it");
            note(cx, &speaker, Counter::GroupJoinsRefused, &why, now);
        }
        let names = |list: Vec<&str>| list.into_iter().map(Arc::from).collect::<Vec<Arc<str>>>();
        self.leave_named(cx, key, tenant, &names(left), "SERVICE");
        self.join_by_service(cx, key, tenant, (&names(joined), &None), now);
    }

    /// Takes the pushes of a service's answer.
    pub(crate) fn take_pushes(
        &mut self,
        cx: &mut Context<'_>,
        service: ServiceId,
        pushes: Pushes<'_>,
        now: Micros,
    ) {
        let speaker = Speaker::of(cx, service);
        let caller = caller_hash(&speaker.name);
        for (n, push) in pushes.iter().enumerate() {
            let result = match n < PUSHES_MAX {
                true => self.take_push(cx, &speaker, caller, push, now),
                false => Err(format!("an answer has more than {PUSHES_MAX} pushes")),
            };
            if let Err(why) = result {
                cx.stats.inc(Counter::PushesRefused);
                note(cx, &speaker, Counter::PushesRefused, &why, now);
            }
        }
    }

    fn take_push(
        &mut self,
        cx: &mut Context<'_>,
        speaker: &Speaker<'_>,
        caller: u64,
        push: &[u8],
        now: Micros,
    ) -> Result<(), String> {
        let message = generated::PushMessage::decode(Bytes::copy_from_slice(push))
            .map_err(|_| "not a PushMessage".to_owned())?;
        let gateway = &cx.config.gateway;
        let limits = Limits {
            bytes_max: gateway.push.bytes_max,
            users_max: gateway.push.users_max,
            gateway_ids: gateway.gateway_ids,
            has_tenants: gateway.auth.tenants == Tenants::Many,
        };
        let arrived = Arrived { now, unix_ms: cx.config.unix_us(now) / 1000 };
        let checked = check(message, &limits, arrived).map_err(|fault| fault.text)?;
        let tenant = TenantId::of(&checked.tenant);
        let body = Arc::new(checked.body);
        for to in checked.to.addressees() {
            if !may_push(speaker, &to, &checked.tenant) {
                return Err(format!(
                    "to {}: `push` and `push_tenants` of the service do not have it",
                    PushTo::of(&to).name()
                ));
            }
            let push = Push { origin: Origin::Service, caller, tenant, to, body: body.clone() };
            self.route_push(cx, push, now);
        }
        Ok(())
    }

    /// Takes a push for this shard alone, and leaves all others to the shell.
    fn route_push(&mut self, cx: &mut Context<'_>, push: Push, now: Micros) {
        let Push { origin, caller, tenant, to, body } = push;
        let mut parts = by_shard(to, tenant, cx.config.shards);
        let of = |to: Addressees| Push { origin, caller, tenant, to, body: body.clone() };
        if let [(shard, _, _)] = parts[..]
            && shard == cx.config.shard
            && let Some((_, to, _)) = parts.pop()
        {
            self.on_push(cx, of(to), now);
            return;
        }
        let parts = parts.into_iter().map(|(shard, to, _)| (shard, Submit::Push(of(to))));
        cx.effects.pushes.push(parts.collect());
    }
}

fn may_push(speaker: &Speaker<'_>, to: &Addressees, tenant: &str) -> bool {
    let Some(rights) = speaker.rights else { return false };
    let may_tenant = match to {
        Addressees::Everyone => rights.tenants.iter().any(|pattern| &*pattern.0 == "*"),
        Addressees::Sessions(_)
        | Addressees::Users(_)
        | Addressees::Group(_)
        | Addressees::Tenant => speaker.may_tenant(tenant),
    };
    let may_group = match to {
        Addressees::Group(group) => rights.has_group(&group.name),
        Addressees::Sessions(_)
        | Addressees::Users(_)
        | Addressees::Tenant
        | Addressees::Everyone => true,
    };
    may_tenant && may_group && rights.to.contains(&PushTo::of(to))
}

/// Hash of a service's name, in which the ids of its pushes are unique.
fn caller_hash(name: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(name.as_bytes(), 1)
}

fn note(cx: &mut Context<'_>, speaker: &Speaker<'_>, counter: Counter, why: &str, now: Micros) {
    if let Some(count) = cx.stats.refusals.note(Cause::Counted(counter), now) {
        tracing::warn!(
            shard = cx.config.shard.0,
            service = &*speaker.name,
            why,
            count,
            "push_refused: a service pushes or joins what it may not; see its `push` in the \
             configuration"
        );
    }
}
