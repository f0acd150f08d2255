//! Tenants of a run: their tables, which control changes, the division of their quotas among the
//! shards, and the checks that nothing crosses from one tenant to the other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use shardgate::config::settings::{LimitSettings, Tenants};
use shardgate::engine::check::ConnView;
use shardgate::engine::clients::conn::Phase;
use shardgate::ids::{ServiceId, TenantId};
use shardgate::message::Priority;
use shardgate::routing::quota::{Demand, TenantDemand, TenantPart, divide};
use shardgate::routing::{
    Failover, HashOn, Instance, Order, PayloadKind, Quota, Route, SharedCount, Snapshot, Tenant,
    TenantTable,
};
use shardgate::stats::Counter;

use crate::backend::Item;
use crate::dice::Dice;
use crate::plan::{self, Faults, Plan, SERVICES};
use crate::wire::{Answer, Message};
use crate::world::World;

/// Names of the tenants.
pub const TENANTS: [&str; 2] = ["even", "odd"];
/// Services of the tenants, one each, behind the common ones.
pub const OWN_SERVICES: [&str; 2] = ["svc-even", "svc-odd"];
/// First id of the range that only tenants' own routes have, each to a service of its own.
const OWN_ID: u32 = 5_000;
/// First ids of the default ranges that lead to a tenant's own service, and are for it alone.
const RESERVED_IDS: [u32; 2] = [5_100, 5_200];
/// First ids of the default ranges that tenants may have routes of their own over: no order is kept
/// in them, for they change their service.
const COVERED_IDS: [u32; 3] = [1_300, 2_300, 3_300];
/// Longest wait of control for what the other shards want.
const DIVIDE_AFTER_US: u64 = 1_100_000;
/// Time after which each connection has been looked at by the sweep of its shard.
const SWEPT_AFTER_US: u64 = 5_000_000;

/// Tenants of a plan.
#[derive(Clone, Debug)]
pub struct TenantPlan {
    /// Whether tenants and their quotas come and go: else only their routes, services and weights
    /// change.
    pub come_and_go: bool,
    /// Quotas at first, in the order of [`TENANTS`].
    quotas: [Quota; 2],
}

/// The tenant of the user numbered `user`.
pub fn tenant_of(user: usize) -> &'static str {
    TENANTS[user % 2]
}

/// Whether a text has `name` in it, and not as a part of a word: ids of sessions are random.
fn names(text: &str, name: &str) -> bool {
    text.match_indices(name).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + name.len()..].chars().next();
        ![before, after].into_iter().flatten().any(char::is_alphanumeric)
    })
}

/// The names that belong to a tenant: its own, and its service's.
fn names_of(tenant: &str) -> [&'static str; 2] {
    let at = TENANTS.iter().position(|name| *name == tenant).expect("one of the two");
    [TENANTS[at], OWN_SERVICES[at]]
}

impl Plan {
    /// A plan in which the users' tenants are configured.
    pub fn with_tenants(seed: u64) -> Self {
        let mut plan = Self::with_sign_in(seed);
        let mut d = Dice::new(seed ^ 0x7465_6e61);
        let auth = &mut Arc::make_mut(&mut plan.gateway).auth;
        (auth.tenants, auth.timeout) = (Tenants::Many, std::time::Duration::from_secs(10));
        Arc::make_mut(&mut plan.gateway).explain_to_clients = true;
        plan.verifier = Some(plan::verifier(&plan.gateway));
        plan.shards = d.range(1, 3) as usize;
        plan.clients = d.range(4, 10) as usize;
        (plan.active_us, plan.lane_items) = (d.range(1_000, 2_500) * 1_000, 8);
        plan.settings.dedup.enabled = true;
        plan.drain_at_us = d.chance(20).then(|| d.range(500_000, plan.active_us));
        let Faults { sign_in, leave, stall, adopt_ms, with_id, .. } = &mut plan.faults;
        (*sign_in, *leave, *stall, *with_id) = (60, d.pick(&[1, 5]), 0, d.pick(&[20, 60]));
        *adopt_ms = d.pick(&[30, 100, 300]);
        plan.add_tenants(&mut d);
        plan
    }

    /// A plan of any kind: where tokens name tenants, these are configured in some.
    pub fn of_any_kind(seed: u64) -> Self {
        let mut plan = Self::new(seed);
        let mut d = Dice::new(seed ^ 0x616e_796b);
        let has_tenants = plan.verifier.is_some() && plan.gateway.auth.tenants == Tenants::Many;
        if has_tenants && d.chance(50) {
            plan.add_tenants(&mut d);
        }
        plan
    }

    fn add_tenants(&mut self, d: &mut Dice) {
        self.tenants = Some(TenantPlan { come_and_go: d.chance(60), quotas: [quota(d), quota(d)] });
        for route in &mut self.routes {
            if COVERED_IDS.contains(&route.first) {
                (route.order, route.payload) = (Order::None, PayloadKind::Json);
            }
        }
        for (n, first) in RESERVED_IDS.into_iter().enumerate() {
            let only_for = Some(Arc::from([TenantId::of(TENANTS[n])]));
            self.routes.push(Route { only_for, ..own_route(n, first) });
        }
    }
}

/// A small quota, so that things are refused.
fn quota(d: &mut Dice) -> Quota {
    Quota {
        connections_max: d.pick(&[0, 1, 2, 3]),
        connects_per_s: d.pick(&[0, 0, 2, 10]),
        messages_per_s: d.pick(&[0, 20, 100]),
        bytes_per_s: d.pick(&[0, 0, 5_000]),
        queued_bytes_max: d.pick(&[0, 0, 500]),
        dedup_ids_max: d.pick(&[0, 0, 3]),
    }
}

fn service_of(n: usize) -> ServiceId {
    ServiceId((SERVICES.len() + n) as u16)
}

/// A route to the own service of the tenant at place `n`.
fn own_route(n: usize, first: u32) -> Route {
    Route {
        first,
        last: first + 99,
        service: service_of(n),
        priority: Priority::Normal,
        timeout_ms: 1_500,
        order: Order::None,
        hash_on: HashOn::User,
        payload: PayloadKind::Json,
        idempotent: false,
        failover: Failover::Next,
        method: None,
        service_text: false,
        needs_user: false,
        only_for: None,
    }
}

/// A message that was sent, maybe several times.
#[derive(Debug, Default)]
struct Unit {
    msg_id: u32,
    id: String,
    /// Connections that sent it, and their users.
    senders: BTreeSet<(usize, usize)>,
    /// Tenants as whom it may have been sent; empty = before a sign-in.
    tenants: BTreeSet<&'static str>,
    /// Version of the oldest table in force when it was sent first.
    from: u64,
    /// Tenants as whom instances got it.
    arrived: BTreeSet<String>,
}

/// What may be said of the number of a tenant's connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bound {
    /// The maximum, as soon as the count is within it and every shard has this version.
    From(u64),
    /// The maximum.
    Now,
    /// Nothing: the tenant came while users of it were connected.
    Never,
}

/// State of the tenants of a run.
#[derive(Debug)]
pub struct Tenancy {
    plan: TenantPlan,
    burst_s: u32,
    start: u64,
    quotas: [Quota; 2],
    /// Connections by tenant: a name keeps its count, as the composer does it.
    counts: [SharedCount; 2],
    bounds: [Bound; 2],
    /// Published snapshots: version 1 is the first.
    published: Vec<Arc<Snapshot>>,
    /// Version of each shard; `None` of one that is stopped.
    pub applied: Vec<Option<u64>>,
    services: BTreeMap<u32, u16>,
    demands: Vec<Option<Vec<TenantDemand>>>,
    heard: BTreeSet<usize>,
    divide_at: Option<u64>,
    /// Parts that control has still to send, by shard.
    pub parts: Vec<Vec<TenantPart>>,
    pub divisions: u64,
    units: BTreeMap<u64, Unit>,
    by_id: BTreeMap<String, BTreeSet<u64>>,
    /// Messages that left a shard the first time, by tenant.
    accepted: BTreeMap<String, BTreeSet<(usize, u64)>>,
    /// Number of items that tenants' own services got, which shows what the run has covered.
    pub own_items: u64,
    pub no_routes: u64,
}

impl Tenancy {
    pub fn new(plan: &Plan, start: u64) -> Option<Self> {
        let tenants = plan.tenants.clone()?;
        let LimitSettings { burst_s, .. } = plan.settings.limits;
        Some(Self {
            burst_s,
            start,
            quotas: tenants.quotas,
            plan: tenants,
            counts: Default::default(),
            bounds: [Bound::From(1); 2],
            published: Vec::new(),
            applied: vec![Some(1); plan.shards],
            services: BTreeMap::new(),
            demands: vec![None; plan.shards],
            heard: BTreeSet::new(),
            divide_at: None,
            parts: vec![Vec::new(); plan.shards],
            divisions: 0,
            units: BTreeMap::new(),
            by_id: BTreeMap::new(),
            accepted: BTreeMap::new(),
            own_items: 0,
            no_routes: 0,
        })
    }

    /// The next table, by dice.
    pub fn table(&mut self, defaults: &[Route], d: &mut Dice) -> TenantTable {
        let version = self.published.len() as u64 + 1;
        let before = self.published.last().map(|snapshot| snapshot.tenants.clone());
        let mut list = Vec::new();
        for n in 0..TENANTS.len() {
            let was_here = before.as_ref().map(|table| table.get(id_of(n)).is_some());
            if self.plan.come_and_go && d.chance(25) {
                self.bounds[n] = if was_here.is_none() { self.bounds[n] } else { Bound::Never };
                continue;
            }
            if self.plan.come_and_go && d.chance(30) {
                self.quotas[n] = quota(d);
                self.bounds[n] = match self.bounds[n] {
                    Bound::Never => Bound::Never,
                    Bound::From(_) | Bound::Now => Bound::From(version),
                };
            }
            if was_here == Some(false) {
                self.bounds[n] = Bound::Never;
            }
            list.push(self.tenant(n, defaults, d));
        }
        TenantTable::new(list)
    }

    fn tenant(&self, n: usize, defaults: &[Route], d: &mut Dice) -> Tenant {
        let covered = defaults.iter().filter(|route| COVERED_IDS.contains(&route.first));
        let mut routes: Vec<Route> = covered
            .filter(|_| d.chance(50))
            .map(|route| Route { service: service_of(n), ..route.clone() })
            .collect();
        if d.chance(70) {
            routes.push(own_route(n, OWN_ID));
        }
        let common = (0..SERVICES.len() as u16).filter(|_| d.chance(60)).map(ServiceId);
        let services: Vec<ServiceId> = common.chain([service_of(n)]).collect();
        Tenant {
            id: id_of(n),
            name: TENANTS[n].into(),
            weight: d.pick(&[1, 2, 4]),
            routes,
            inherits: d.chance(80),
            services: d.chance(30).then_some(services),
            origins: Vec::new(),
            quota: self.quotas[n],
            has_metrics: d.chance(50),
            connections: self.counts[n].clone(),
        }
    }

    /// Takes a snapshot that control publishes.
    pub fn publish(&mut self, snapshot: &Arc<Snapshot>) {
        for instance in &snapshot.instances {
            self.services.insert(instance.id.0, instance.service.0);
        }
        self.published.push(snapshot.clone());
        assert_eq!(snapshot.version, self.published.len() as u64, "the first is 1");
    }

    /// Takes what a shard wants of quotas, for the next division.
    pub fn take_demands(&mut self, shard: usize, demands: Vec<TenantDemand>, now: u64) {
        self.demands[shard] = Some(demands);
        self.heard.insert(shard);
        self.divide_at.get_or_insert(now + DIVIDE_AFTER_US);
    }

    /// Divides the quotas, if every shard has told what it wants or one is late.
    pub fn divide(&mut self, now: u64) {
        let all = self.heard.len() == self.demands.len();
        if self.divide_at.take_if(|at| all || *at <= now).is_none() {
            return;
        }
        self.heard.clear();
        self.divisions += 1;
        self.parts.iter_mut().for_each(Vec::clear);
        let newest = self.published.last().expect("one is published");
        for tenant in newest.tenants.list() {
            let of = |shard: &Option<Vec<TenantDemand>>| -> Demand {
                let mut list = shard.iter().flatten();
                list.find(|(id, _)| *id == tenant.id).map(|(_, d)| *d).unwrap_or_default()
            };
            let demands: Vec<Demand> = self.demands.iter().map(of).collect();
            for (parts, part) in self.parts.iter_mut().zip(divide(&tenant.quota, &demands)) {
                parts.push((tenant.id, part));
            }
        }
    }

    /// Takes a message that a client is about to send.
    pub fn sends(
        &mut self,
        unit: u64,
        message: &Message,
        sender: (usize, usize),
        tenants: impl Iterator<Item = &'static str>,
    ) {
        let newest = self.published.len() as u64;
        let from = self.applied.iter().flatten().copied().min().unwrap_or(newest);
        let Message { msg_id, id, .. } = message;
        let known = self.units.entry(unit).or_insert_with(|| Unit {
            msg_id: *msg_id,
            id: id.clone(),
            from,
            ..Unit::default()
        });
        known.senders.insert(sender);
        known.tenants.extend(tenants);
        if !id.is_empty() {
            self.by_id.entry(id.clone()).or_default().insert(unit);
        }
    }

    /// Takes a message that leaves a shard for an instance.
    pub fn departs(&mut self, shard: usize, instance: u32, item: &Item, now: u64) {
        let tenant = &*item.tenant;
        let unit = self.units.get_mut(&item.unit).expect("somebody sent it");
        assert!(unit.tenants.contains(tenant), "{item:?} is of a tenant that sent no {unit:?}");
        let user = item.user.strip_prefix("user-").map(|n| n.parse().expect("a number"));
        assert_eq!(user.map_or("", tenant_of), tenant, "{item:?}: the user is not the tenant's");
        let known = unit.senders.iter().any(|(_, sender)| user.is_none_or(|user| user == *sender));
        assert!(known, "{item:?} is of a user who sent no {unit:?}");
        let service = self.services[&instance];
        if let Some(own) = usize::from(service).checked_sub(SERVICES.len()) {
            assert_eq!(tenant, TENANTS[own], "{item:?} comes to the service of another tenant");
            self.own_items += 1;
        }
        let leads = |snapshot: &Arc<Snapshot>| {
            let route = snapshot.route(TenantId::of(tenant), unit.msg_id);
            route.is_some_and(|route| route.service.0 == service)
        };
        let in_force = &self.published[unit.from as usize - 1..];
        assert!(in_force.iter().any(leads), "{item:?}: no route led to service {service}");
        unit.arrived.insert(tenant.to_owned());
        let accepted = self.accepted.entry(tenant.to_owned()).or_default();
        accepted.insert((shard, item.request_id));
        let number = accepted.len() as u64;
        self.check_rate(tenant, number, now);
    }

    /// The rate of a quota that is never changed holds for the process over the run. Slack: what
    /// flows while parts pass from one shard to another, and a first message of each shard.
    fn check_rate(&self, tenant: &str, accepted: u64, now: u64) {
        let Some(n) = TENANTS.iter().position(|name| *name == tenant) else { return };
        let rate = u64::from(self.quotas[n].messages_per_s);
        if rate == 0 || self.plan.come_and_go {
            return;
        }
        let time_us = u64::from(self.burst_s) * 1_000_000 + (now - self.start);
        let most = rate * time_us / 1_000_000 * 105 / 100 + 2 * self.applied.len() as u64;
        assert!(accepted <= most, "{tenant}: {accepted} messages, of {most} at {rate} a second");
    }

    /// Takes an answer that a client has got.
    pub fn answered(&mut self, number: u64, answer: &Answer) {
        let unit = &self.units[&number];
        match &*answer.reason {
            "" => {
                let arrived = unit.arrived.iter().any(|tenant| unit.tenants.contains(&**tenant));
                assert!(arrived, "an answer to what came to no service: {unit:?} {answer:?}");
            }
            "NO_ROUTE" => {
                let in_force = &self.published[unit.from as usize - 1..];
                let is_unknown = in_force.iter().any(|snapshot| {
                    let has_none = |name: &&str| {
                        let id = TenantId::of(name);
                        snapshot.route(id, unit.msg_id).is_none()
                    };
                    unit.tenants.iter().any(has_none)
                });
                assert!(is_unknown, "there was a route all the time: {unit:?}");
                self.no_routes += 1;
            }
            "BAD_MESSAGE" if !unit.id.is_empty() => {
                // The id was used for something else, by the same session or user.
                let own = |other: &&u64| {
                    let senders = &self.units[other].senders;
                    let meets = |(peer, user): &(usize, usize)| {
                        unit.senders.iter().any(|mine| mine.0 == *peer || mine.1 == *user)
                    };
                    **other != number && senders.iter().any(meets)
                };
                let is_used = self.by_id[&unit.id].iter().any(|other| own(&other));
                let is_repeated = unit.senders.len() > 1;
                assert!(is_used || is_repeated, "another tenant's id is in the way: {unit:?}");
            }
            _ => {}
        }
    }

    /// Checks a text that a client gets, which has shown tokens of `shown`.
    pub fn told(&self, text: &str, shown: &BTreeSet<&'static str>) {
        for other in TENANTS.iter().filter(|name| !shown.contains(*name)) {
            for name in names_of(other) {
                assert!(!names(text, name), "a client of {shown:?} is told of {name}: {text}");
            }
        }
    }

    /// Checks that no tenant has more connections than it may.
    pub fn check_connections(&mut self) {
        let oldest = self.applied.iter().flatten().copied().min().unwrap_or(0);
        for (n, name) in TENANTS.into_iter().enumerate() {
            let (count, most) = (self.counts[n].get(), self.quotas[n].connections_max);
            let is_within = most == 0 || count <= most;
            match self.bounds[n] {
                Bound::From(version) if oldest >= version && is_within => {
                    self.bounds[n] = Bound::Now;
                }
                Bound::From(_) | Bound::Never => {}
                Bound::Now => {
                    assert!(is_within, "{name} has {count} connections, of {most}");
                }
            }
        }
    }
}

fn id_of(n: usize) -> TenantId {
    TenantId::of(TENANTS[n])
}

/// The next snapshot, with the tenants of the run.
pub fn publish(
    tenancy: &mut Option<Tenancy>,
    version: u64,
    plan: &Plan,
    instances: &[Instance],
    dice: &mut Dice,
) -> Arc<Snapshot> {
    let Some(tenancy) = tenancy else {
        return plan::snapshot(version, plan, instances, TenantTable::default());
    };
    let tenants = tenancy.table(&plan.routes, dice);
    let snapshot = plan::snapshot(version, plan, instances, tenants);
    tenancy.publish(&snapshot);
    snapshot
}

impl World {
    /// Checks the accounts of tenants, when nothing is under way any more.
    pub fn check_tenants(&mut self) {
        if self.tenancy.is_none() {
            return;
        }
        // Each connection is looked at once more, and counted anew.
        let until = self.now + SWEPT_AFTER_US;
        self.run(until);
        self.check_reports();
        // Everybody leaves.
        for p in 0..self.peers.len() {
            let peer = &mut self.peers[p];
            (peer.reset, peer.gone) = (true, true);
            self.readable(p);
        }
        let until = self.now + SWEPT_AFTER_US;
        self.run(until);
        let tenancy = self.tenancy.as_ref().expect("seen above");
        for (name, count) in TENANTS.iter().zip(&tenancy.counts) {
            assert_eq!(count.get(), 0, "connections of {name} when all are gone");
        }
    }

    fn check_reports(&self) {
        let tenancy = self.tenancy.as_ref().expect("the caller looked");
        let mut connections = [0; 2];
        for s in (0..self.shards.len()).filter(|s| !self.shards[*s].stopped) {
            let report = self.report(s);
            let handled =
                [Counter::SystemMessages, Counter::BusinessMessages, Counter::GatewayMessages];
            let all: u64 = handled.iter().map(|counter| report.counters.get(*counter)).sum();
            let bad = report.counters.get(Counter::BadMessages);
            let of_tenants = report.tenants.iter().map(|tenant| tenant.counts[0]);
            let of_tenants: u64 = of_tenants.sum();
            assert!(of_tenants <= all + bad, "{of_tenants} messages of tenants, of {all} + {bad}");
            for tenant in &report.tenants {
                let n = (0..2).find(|n| id_of(*n) == tenant.id).expect("one of the two");
                connections[n] += tenant.connections;
                assert_eq!(tenant.queued_bytes, 0, "shard {s}: nothing is under way");
            }
        }
        let newest = tenancy.published.last().expect("one is published");
        let all_stopped = self.shards.iter().all(|shard| shard.stopped);
        let is_ending = |conn: &&ConnView| conn.phase != Phase::Open;
        let views = self.shards.iter().map(|shard| shard.engine.view());
        let ending = views.map(|view| view.conns.iter().filter(is_ending).count() as u64);
        let ending: u64 = ending.sum();
        for n in (0..2).filter(|_| !newest.tenants.is_empty() || all_stopped) {
            // One that ends takes no place of its tenant any more.
            let (count, all) = (u64::from(tenancy.counts[n].get()), connections[n]);
            let fits = count <= all && all - count <= ending;
            assert!(fits, "{}: {count} counted, of {all}, {ending} end", TENANTS[n]);
        }
    }
}
