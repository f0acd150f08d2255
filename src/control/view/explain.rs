//! `/routing/explain`: where a message goes, and why. By the same functions as the engine's, and
//! with each shard's own word for it, so that it cannot say anything else than what happens.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Gathered, hash_on, instances_of, mode, name_of, route, standing};
use crate::config::settings::Tenants;
use crate::control::looks::Look;
use crate::ids::{InstanceId, TenantId};
use crate::look::{Question, RouteSeen, Seen};
use crate::routing::{Described, Failover, HashedBy, Instance, Route, Service, Share, choose};

/// The query: what is known of the message.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Its id.
    msg_id: u32,
    /// Its affinity key.
    key: Option<String>,
    /// Who sends it; absent = not signed in.
    user: Option<String>,
    /// The tenant's name; absent = the default one.
    #[serde(default)]
    tenant: String,
    /// The public id of the session that sends it.
    session: Option<String>,
}

/// Where it belongs by the snapshot in force.
pub struct Place<'a> {
    route: Option<&'a Route>,
    service: Option<&'a Service>,
    /// What is hashed, by name, and the hash.
    hashed: Option<(HashedBy, u64)>,
    owner: Option<InstanceId>,
    chosen: Option<InstanceId>,
    tenant: TenantId,
}

impl<'a> Place<'a> {
    /// Of the message that is asked for.
    pub fn of(found: &'a Gathered, asked: &Asked) -> Self {
        let snapshot = &found.directory.snapshot;
        let described = described(found, asked);
        let tenant = described.tenant();
        let own = is_own(found, asked.msg_id);
        let route = snapshot.route(asked.msg_id).map(|(_, r)| r).filter(|_| !own);
        let service = route.map(|r| &snapshot.services[usize::from(r.service.0)]);
        let hashed = route.and_then(|route| described.affinity(route.hash_on));
        let mut place = Self { route, service, hashed, owner: None, chosen: None, tenant };
        if let (Some(route), Some(service), Some((_, hash))) = (route, service, hashed) {
            let share = |id| snapshot.instance(id).map_or(Share::NONE, share);
            place.owner = service.ring.pick(hash);
            place.chosen = choose(&service.ring, place.owner, hash, route.failover, None, share);
        }
        place
    }

    /// What the shards are to be asked.
    pub fn question(&self) -> Option<Question> {
        let (route, (_, hash)) = (self.route?, self.hashed?);
        let next = route.failover == Failover::Next;
        Some(Question::Route { tenant: self.tenant, service: route.service, hash, next })
    }
}

fn share(instance: &Instance) -> Share {
    if instance.draining { Share::NONE } else { instance.share }
}

fn is_own(found: &Gathered, msg_id: u32) -> bool {
    let (first, last) = found.directory.config.gateway.gateway_ids;
    (first..=last).contains(&msg_id)
}

/// The message as the rule of affinity takes it. Where the gateway has one tenant, no token names
/// another, so the one that was asked for counts for nothing.
fn described<'a>(found: &Gathered, asked: &'a Asked) -> Described<'a> {
    Described {
        key: asked.key.as_deref().unwrap_or_default(),
        user: asked.user.as_deref().unwrap_or_default(),
        tenant: if has_tenants(found) { &asked.tenant } else { "" },
        session: asked.session.as_deref().unwrap_or_default(),
    }
}

fn has_tenants(found: &Gathered) -> bool {
    found.directory.config.gateway.auth.tenants == Tenants::Many
}

/// The whole answer; `look` is what the shards said.
pub fn explain(found: &Gathered, asked: &Asked, place: &Place<'_>, look: &Look) -> Value {
    let name = |id: Option<InstanceId>| id.and_then(|id| name_of(found, id));
    let instances = place.service.map(|service| {
        let hash = place.hashed.map(|(_, hash)| hash);
        instances_of(found, service).map(|i| instance(found, i, hash)).collect::<Vec<_>>()
    });
    let shards: Vec<Value> = routes_seen(look).map(|(n, seen)| shard(found, n, seen)).collect();
    let route_of = place.route.zip(place.service);
    json!({
        "msg_id": asked.msg_id,
        "tenant": asked.tenant,
        "version": found.directory.snapshot.version,
        "range": place.route.map(|r| [r.first, r.last]),
        "route": route_of.map(|(r, service)| route(r, &service.name)),
        "service": place.service.map(|service| &*service.name),
        "mode": place.service.map(|service| mode(service.mode)),
        "hash_on": place.route.map(|r| hash_on(r.hash_on)),
        "hashed": place.hashed.map(|(by, _)| by.name()),
        "hash": place.hashed.map(|(_, hash)| format!("{hash:016x}")),
        "owner": name(place.owner),
        "instance": name(place.chosen),
        "why": why(found, asked, place, look),
        "instances": instances.unwrap_or_default(),
        "shards": shards,
        "silent_shards": look.silent.iter().map(|shard| shard.0).collect::<Vec<_>>(),
    })
}

fn routes_seen(look: &Look) -> impl Iterator<Item = (u16, &RouteSeen)> {
    look.seen.iter().filter_map(|(shard, seen)| match seen {
        Seen::Route(route) => Some((shard.0, route)),
        Seen::Conns(_) => None,
    })
}

fn instance(found: &Gathered, instance: &Instance, hash: Option<u64>) -> Value {
    let (word, why) = standing(found, instance.id);
    json!({
        "id": &*instance.name,
        "address": instance.address.to_string(),
        "standing": word,
        "why": why,
        "draining": instance.draining,
        "share_percent": share(instance).get(),
        "takes_it": hash.map(|hash| share(instance).takes(hash)),
    })
}

fn shard(found: &Gathered, shard: u16, seen: &RouteSeen) -> Value {
    let name = |id: InstanceId| {
        name_of(found, id).map_or_else(|| format!("#{} (gone)", id.0), str::to_owned)
    };
    let links: Map<_, _> =
        seen.links.iter().map(|&(id, link)| (name(id), Value::from(link))).collect();
    json!({
        "shard": shard,
        "version": seen.version,
        "instance": seen.chosen.map(name),
        "cached": seen.cached.map(|(id, age_us)| {
            json!({ "owner": name(id), "age_ms": age_us / 1000 })
        }),
        "links": links,
    })
}

/// Sentences: what decided, and what stands in the way.
fn why(found: &Gathered, asked: &Asked, place: &Place<'_>, look: &Look) -> Vec<String> {
    let (Some(route), Some(service)) = (place.route, place.service) else {
        return vec![match is_own(found, asked.msg_id) {
            true => "the gateway answers this id itself (gateway.ids)".into(),
            false => "NO_ROUTE: no [[route]] has this id; /services lists them all".into(),
        }];
    };
    let name = &service.name;
    let Some((hashed, _)) = place.hashed else {
        let on = hash_on(route.hash_on);
        return vec![format!(
            "the route hashes the {on}, and the session where there is none: give {on}= or session="
        )];
    };
    let mut why = Vec::new();
    if !asked.tenant.is_empty() && !has_tenants(found) {
        let unused =
            "auth.tenants is \"one\": no client has a tenant, so tenant= counts for nothing";
        why.push(unused.into());
    }
    if hashed.name() != hash_on(route.hash_on) {
        let on = hash_on(route.hash_on);
        why.push(format!("the route hashes the {on}; without one the session counts"));
    }
    for instance in instances_of(found, service).filter(|i| i.draining) {
        why.push(format!("{} is draining: it is not on the ring", instance.name));
    }
    let Some(owner) = place.owner.and_then(|id| found.directory.snapshot.instance(id)) else {
        why.push(format!("UNAVAILABLE: {name} has no instance that takes messages"));
        return why;
    };
    if place.chosen == Some(owner.id) {
        why.push(format!("{} owns the hash on the ring", owner.name));
    } else {
        let (word, reason) = standing(found, owner.id);
        let reason = reason.map(|r| format!(": {r}")).unwrap_or_default();
        let percent = owner.share.get();
        why.push(format!(
            "{} owns the hash on the ring, but is {word}{reason}, and takes {percent} % of its \
             keys, this one not",
            owner.name
        ));
        why.push(match (place.chosen.and_then(|id| name_of(found, id)), route.failover) {
            (Some(next), _) => format!("{next} is the next clockwise that takes it"),
            (None, Failover::None) => "UNAVAILABLE: failover = \"none\", so nobody else".into(),
            (None, Failover::Next) => "UNAVAILABLE: nobody else takes it either".into(),
        });
    }
    for (shard, seen) in routes_seen(look).filter(|(_, seen)| seen.chosen != place.chosen) {
        let to = seen.chosen.and_then(|id| name_of(found, id)).unwrap_or("nobody");
        let down = seen.links.iter().filter(|(_, link)| *link == "down");
        let down: Vec<&str> = down.filter_map(|(id, _)| name_of(found, *id)).collect();
        let version = found.directory.snapshot.version;
        let because = match (down.is_empty(), seen.version == version) {
            (false, _) => format!("its link is down to {}", down.join(", ")),
            (true, false) => format!("it still works by version {}", seen.version),
            (true, true) => "its state has just changed".into(),
        };
        why.push(format!("shard {shard} sends it to {to}: {because}"));
    }
    why
}
