//! `/routing/explain`: which instance gets a message, and why. Computed by the same functions as
//! the engine's choice, beside the answer of each shard, so that it cannot differ from what
//! happens.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Overview, hash_on, instances_of, mode, name_of, others, route, standing, tls};
use crate::config::settings::Tenants;
use crate::control::inspections::QueryResult;
use crate::ids::{InstanceId, TenantId};
use crate::inspect::{Asked, Inspection, Query, RouteInfo, ShareInfo};
use crate::routing::{
    Described, Failover, HashedBy, Instance, Route, Service, Share, affinity_hash, choose,
};

/// Parameters of the request: a group, or what is known of a message.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainParams {
    msg_id: Option<u32>,
    group: Option<String>,
    key: Option<String>,
    user: Option<String>,
    #[serde(default)]
    tenant: String,
    session: Option<String>,
}

/// The subject of an explanation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Subject {
    /// The way of a message.
    Message(AskedMessage),
    /// A group.
    #[allow(missing_docs)]
    Group { name: String, tenant: String },
}

impl ExplainParams {
    /// What they ask for; else the rule that they break.
    pub fn subject(self) -> Result<Subject, &'static str> {
        let Self { msg_id, group, key, user, tenant, session } = self;
        match (msg_id, group) {
            (Some(msg_id), None) => {
                Ok(Subject::Message(AskedMessage { msg_id, key, user, tenant, session }))
            }
            (None, Some(name)) if (&key, &user, &session) == (&None, &None, &None) => {
                Ok(Subject::Group { name, tenant })
            }
            (None, None) => Err("msg_id: name the id of a message, or with group= a group"),
            (_, Some(_)) => Err("group: beside it only tenant= says anything"),
        }
    }
}

/// A message, as far as it is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AskedMessage {
    msg_id: u32,
    /// Affinity key of the message.
    key: Option<String>,
    /// User who sends the message; absent = not signed in.
    user: Option<String>,
    /// Name of the tenant; empty = the default one.
    tenant: String,
    /// Public id of the session that sends the message.
    session: Option<String>,
}

/// Choice of an instance for a message, by the snapshot in force.
pub struct Explanation<'a> {
    overview: &'a Overview,
    params: &'a AskedMessage,
    route: Option<&'a Route>,
    service: Option<&'a Service>,
    /// Kind of the hashed value, and the hash.
    hashed: Option<(HashedBy, u64)>,
    owner: Option<InstanceId>,
    chosen: Option<InstanceId>,
    tenant: TenantId,
}

impl<'a> Explanation<'a> {
    /// Finds the route of the message, hashes, and chooses.
    pub fn new(overview: &'a Overview, params: &'a AskedMessage) -> Self {
        let snapshot = &overview.directory.snapshot;
        let described = described(overview, params);
        let tenant = described.tenant();
        let of_gateway = is_of_gateway(overview, params.msg_id);
        let route = snapshot.route(tenant, params.msg_id).filter(|_| !of_gateway);
        let service = route.map(|r| &snapshot.services[usize::from(r.service.0)]);
        let hashed = route.and_then(|route| described.affinity(route.hash_on));
        let (owner, chosen) = (None, None);
        let mut it = Self { overview, params, route, service, hashed, owner, chosen, tenant };
        if let (Some(route), Some(service), Some((_, hash))) = (route, service, hashed) {
            let share = |id| snapshot.instance(id).map_or(Share::NONE, share);
            it.owner = service.ring.pick(hash);
            it.chosen = choose(&service.ring, it.owner, hash, route.failover, None, share);
        }
        it
    }

    /// The query to the shards; `None` if there is nothing to choose.
    pub fn query(&self) -> Option<Query> {
        let (route, (_, hash)) = (self.route?, self.hashed?);
        let next = route.failover == Failover::Next;
        let sender = match (&self.params.user, &self.params.session) {
            (Some(user), _) => Asked::User(affinity_hash(self.tenant, user.as_bytes())),
            (None, Some(session)) => Asked::Session(session.clone()),
            (None, None) => Asked::Nobody,
        };
        let (tenant, service) = (self.tenant, route.service);
        Some(Query::Route { tenant, service, route: route.first, hash, next, sender })
    }

    /// The whole answer; `result` holds the shards' answers to [`Self::query`].
    pub fn json(&self, result: &QueryResult) -> Value {
        let Self { overview, params, .. } = *self;
        let name = |id: Option<InstanceId>| id.and_then(|id| name_of(overview, id));
        let instances = self.service.map(|service| {
            let hash = self.hashed.map(|(_, hash)| hash);
            instances_of(overview, service).map(|i| instance(overview, i, hash)).collect::<Vec<_>>()
        });
        let shards: Vec<Value> = routes(result).map(|(n, info)| shard(overview, n, info)).collect();
        let route_of = self.route.zip(self.service);
        json!({
            "msg_id": params.msg_id,
            "tenant": params.tenant,
            "version": overview.directory.snapshot.version,
            "range": self.route.map(|r| [r.first, r.last]),
            "table": self.route.map(|r| overview.directory.snapshot.table(self.tenant, r)),
            "route": route_of.map(|(r, service)| route(r, &service.name)),
            "service": self.service.map(|service| &*service.name),
            "mode": self.service.map(|service| mode(service.mode)),
            "tls": self.service.map(|service| tls(overview, &service.name)),
            "hash_on": self.route.map(|r| hash_on(r.hash_on)),
            "hashed": self.hashed.map(|(by, _)| by.name()),
            "hash": self.hashed.map(|(_, hash)| format!("{hash:016x}")),
            "owner": name(self.owner),
            "instance": name(self.chosen),
            "outcome": self.outcome(),
            "why": self.why(result),
            "instances": instances.unwrap_or_default(),
            "shards": shards,
            "silent_shards": result.silent.iter().map(|shard| shard.0).collect::<Vec<_>>(),
        })
    }

    /// What becomes of the message, in one word.
    fn outcome(&self) -> &'static str {
        match (self.route, self.hashed, self.chosen) {
            (None, ..) if is_of_gateway(self.overview, self.params.msg_id) => "gateway",
            (None, ..) => "no_route",
            (Some(_), None, _) => "no_sender",
            (Some(_), Some(_), None) => "unavailable",
            (Some(_), Some(_), Some(_)) => "instance",
        }
    }

    /// Sentences on what decided, and on what stands in the way.
    fn why(&self, result: &QueryResult) -> Vec<String> {
        let Self { overview, params, .. } = *self;
        let (Some(route), Some(service)) = (self.route, self.service) else {
            let default = overview.directory.snapshot.default_route(params.msg_id);
            return vec![match (is_of_gateway(overview, params.msg_id), default) {
                (true, _) => "the gateway answers this id itself (gateway.ids)".into(),
                (false, Some(Route { first, last, .. })) => format!(
                    "NO_ROUTE: the default route {first}-{last} has this id, and it is not for \
                     this tenant: inherit and services of the [[tenant]], or tenants of the \
                     [[service]], keep it out"
                ),
                (false, None) => {
                    "NO_ROUTE: no [[route]] has this id: GET /services lists all routes".into()
                }
            }];
        };
        let name = &service.name;
        let on = hash_on(route.hash_on);
        let Some((hashed, _)) = self.hashed else {
            return vec![format!(
                "the route hashes the {on}, or the session if there is none: add {on}= or \
                 session="
            )];
        };
        let mut why = Vec::new();
        if !params.tenant.is_empty() && !has_tenants(overview) {
            let unused = "auth.tenants is \"one\": no client has a tenant, so tenant= is ignored";
            why.push(unused.into());
        }
        if hashed.name() != on {
            why.push(format!("the route hashes the {on}; without one it hashes the session"));
        }
        for instance in instances_of(overview, service).filter(|i| i.draining) {
            why.push(format!("{} is draining: it is not on the ring", instance.name));
        }
        let Some(owner) = self.owner.and_then(|id| overview.directory.snapshot.instance(id)) else {
            why.push(format!("UNAVAILABLE: {name} has no instance that takes messages"));
            return why;
        };
        why.extend(self.choice(owner, route));
        let differ = routes(result).filter(|(_, info)| info.chosen != self.chosen);
        why.extend(differ.map(|(shard, info)| other_choice(overview, shard, info)));
        why.extend(routes(result).filter_map(|(shard, info)| slow_owner(shard, info)));
        why
    }

    /// Sentences on the ring's owner, and on the instance that gets the message in its place.
    fn choice(&self, owner: &Instance, route: &Route) -> Vec<String> {
        if self.chosen == Some(owner.id) {
            return vec![format!("{} owns the hash on the ring", owner.name)];
        }
        let (word, reason) = standing(self.overview, owner.id);
        let reason = reason.map(|r| format!(" ({r})")).unwrap_or_default();
        let percent = owner.share.get();
        let refused = format!(
            "{} owns the hash on the ring, but it is {word}{reason} and takes {percent} % of its \
             keys, not this one",
            owner.name
        );
        let next = self.chosen.and_then(|id| name_of(self.overview, id));
        let instead = match (next, route.failover) {
            (Some(next), _) => format!("{next} is the next on the ring that takes it"),
            (None, Failover::None) => {
                "UNAVAILABLE: failover = \"none\", so no other instance takes it".into()
            }
            (None, Failover::Next) => "UNAVAILABLE: no other instance takes it".into(),
        };
        vec![refused, instead]
    }
}

/// Sentence on a shard that chooses another instance than the snapshot in force.
fn other_choice(overview: &Overview, shard: u16, info: &RouteInfo) -> String {
    let to = info.chosen.and_then(|id| name_of(overview, id)).unwrap_or("no instance");
    let down = info.links.iter().filter(|(_, link)| *link == "down");
    let down: Vec<&str> = down.filter_map(|(id, _)| name_of(overview, *id)).collect();
    let version = overview.directory.snapshot.version;
    let because = match (down.is_empty(), info.version == version) {
        (false, _) => format!("it has no connection to {}", down.join(", ")),
        (true, false) => format!("it still works by version {}", info.version),
        (true, true) => "its state has just changed".into(),
    };
    format!("shard {shard} sends it to {to}: {because}")
}

/// Sentence on a shard that holds the sender slow on the route.
fn slow_owner(shard: u16, info: &RouteInfo) -> Option<String> {
    let owner = info.shares.iter().flatten().find(|share| share.slow == Some(true))?;
    let of = owner.of;
    Some(format!(
        "shard {shard} sends messages of this {of} on this route apart from others: they were slow \
         lately"
    ))
}

fn share(instance: &Instance) -> Share {
    if instance.draining { Share::NONE } else { instance.share }
}

fn is_of_gateway(overview: &Overview, msg_id: u32) -> bool {
    let (first, last) = overview.directory.config.gateway.gateway_ids;
    (first..=last).contains(&msg_id)
}

/// The message as the rule of affinity takes it. Where the gateway has one tenant, no token names
/// another, so the one that was asked for is ignored.
fn described<'a>(overview: &Overview, params: &'a AskedMessage) -> Described<'a> {
    Described {
        key: params.key.as_deref().unwrap_or_default(),
        user: params.user.as_deref().unwrap_or_default(),
        tenant: if has_tenants(overview) { &params.tenant } else { "" },
        session: params.session.as_deref().unwrap_or_default(),
    }
}

/// Whether names of tenants say anything.
pub fn has_tenants(overview: &Overview) -> bool {
    overview.directory.config.gateway.auth.tenants == Tenants::Many
}

fn routes(result: &QueryResult) -> impl Iterator<Item = (u16, &RouteInfo)> {
    result.answers.iter().filter_map(|(shard, inspection)| match inspection {
        Inspection::Route(route) => Some((shard.0, route)),
        Inspection::Conns(_)
        | Inspection::Members(_)
        | Inspection::Groups(_)
        | Inspection::History(_)
        | Inspection::Sessions(_)
        | Inspection::TopGroups(_)
        | Inspection::GroupDetails(_) => None,
    })
}

fn instance(overview: &Overview, instance: &Instance, hash: Option<u64>) -> Value {
    let (word, why) = standing(overview, instance.id);
    json!({
        "id": &*instance.name,
        "address": instance.addresses.first().to_string(),
        "other_addresses": others(instance),
        "standing": word,
        "why": why,
        "draining": instance.draining,
        "share_percent": share(instance).get(),
        "takes_it": hash.map(|hash| share(instance).takes(hash)),
    })
}

fn shard(overview: &Overview, shard: u16, info: &RouteInfo) -> Value {
    let name = |id: InstanceId| {
        name_of(overview, id).map_or_else(|| format!("#{} (gone)", id.0), str::to_owned)
    };
    let links: Map<_, _> =
        info.links.iter().map(|&(id, link)| (name(id), Value::from(link))).collect();
    json!({
        "shard": shard,
        "version": info.version,
        "instance": info.chosen.map(name),
        "cached": info.cached.map(|(id, age_us)| {
            json!({ "owner": name(id), "age_ms": age_us / 1000 })
        }),
        "links": links,
        "shares": info.shares.iter().flatten().map(|share| {
            let ShareInfo { of, waiting, in_flight, slow } = *share;
            let mut told = json!({ "of": of, "waiting": waiting, "in_flight": in_flight });
            if let Some(slow) = slow {
                told["slow"] = slow.into();
            }
            told
        }).collect::<Vec<_>>(),
    })
}
