//! `[[service]]`, `[[route]]` and `[[tenant]]` -> the first snapshot, or the problems with them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use super::auth::auth_has_keys;
use super::events;
use super::nearest::nearest;
use super::problem::{Problem, Source};
use super::push;
use super::raw::Node;
use super::reader::{Reader, Report};
use super::route::{ROUTES_MAX, RouteRules, RoutedService, check_failover};
use super::rule::{Bounds, TextRule};
use super::service_tls;
use super::settings::{
    AuthMode, EventRights, GatewaySettings, PushRights, ServiceTlsSettings, TenantSettings, Tenants,
};
use super::tables::{FoundTables, Tables, too_many};
use super::tenants::TenantRules;
use super::words::{NAME_RULE, is_name};
use super::{Family, Lookup, LookupName};
use crate::ids::{InstanceId, ServiceId, TenantId};
use crate::limits::{INSTANCES_MAX, RING_POINTS_MAX as POINTS_MAX, TENANTS_MAX};
use crate::routing::*;

/// Largest number of services: each is a queue group in every shard, and ServiceId is a u16.
const SERVICES_MAX: usize = 1024;

/// Services and instances as far as they could be read.
#[derive(Default)]
struct Services {
    list: Vec<ServiceTable>,
    instances: Vec<Instance>,
    lookups: Vec<Lookup>,
    service_tls: BTreeMap<Arc<str>, ServiceTlsSettings>,
    push_rights: BTreeMap<Arc<str>, Arc<PushRights>>,
    event_rights: BTreeMap<Arc<str>, Arc<EventRights>>,
    discovered: bool,
    has_tenants: bool,
    /// Whether a source may name tenants that the files do not have.
    finds_tenants: bool,
    report: Report,
}

struct ServiceTable {
    name: Option<Arc<str>>,
    mode: Mode,
    /// Names of the tenants that it is for; empty = everybody.
    tenants: Vec<String>,
    /// Source of the name.
    source: Source,
    /// Source of the tenants.
    tenants_source: Source,
}

/// Settings that the checks of services and routes depend on.
pub struct RouteContext<'a> {
    /// Points on the ring for each unit of weight.
    pub ring_points: u32,
    /// Longest time that a message waits for others to share its batch. Every route's timeout must
    /// be longer.
    pub window_ms: u64,
    /// Settings of the process.
    pub settings: &'a GatewaySettings,
    /// Routes and tenants that discovery sources announced.
    pub found: &'a FoundTables,
}

/// Services and routes as the files have them.
pub struct FileTables {
    /// The first snapshot.
    pub snapshot: Snapshot,
    /// DNS names to be looked up.
    pub lookups: Vec<Lookup>,
    /// TLS towards services, by their names.
    pub service_tls: BTreeMap<Arc<str>, ServiceTlsSettings>,
    /// Tenants, by name.
    pub tenants: Vec<TenantSettings>,
    /// What services may push, by their names.
    pub push_rights: BTreeMap<Arc<str>, Arc<PushRights>>,
    /// Events that services ask for, by their names.
    pub event_rights: BTreeMap<Arc<str>, Arc<EventRights>>,
}

/// Reads services, routes and tenants.
pub fn read(r: &mut Reader, context: &RouteContext<'_>) -> FileTables {
    let &RouteContext { ring_points, window_ms, settings, found } = context;
    let (auth, sources) = (&settings.auth, &settings.discovery);
    let mut services = Services {
        discovered: sources.etcd.is_some() || sources.registry.is_some(),
        has_tenants: auth.tenants == Tenants::Many,
        finds_tenants: sources.etcd.is_some(),
        ..Services::default()
    };
    let (nodes, source) = r.list("service", SERVICES_MAX);
    let count = nodes.len();
    let counted = !too_many(&mut services.report, "[[service]]", count, SERVICES_MAX, &source);
    if counted {
        services.read(nodes, &source);
    }
    services.check_points(ring_points, &source);
    let sign_in = auth.mode == AuthMode::Jwt;
    let rules = RouteRules::new(services.routed(), window_ms, sign_in, settings.gateway_ids);
    let mut report = std::mem::take(&mut services.report);
    // Without services every route would be a problem, though nothing is wrong with it.
    let nothing = FoundTables::default();
    let found = if counted { found } else { &nothing };
    let kept = |nodes: Vec<Node>| if counted { nodes } else { Vec::new() };
    let (nodes, source) = r.list("route", ROUTES_MAX);
    let tables =
        Tables { list: "route", nodes: kept(nodes), source: &source, found: &found.routes };
    let mut routes = rules.list(tables, "[[route]]", &mut report);
    check_failover(std::iter::empty(), &routes, &mut report);
    for table in &mut routes {
        table.route.only_for = rules.only_for(table.route.service).cloned();
    }
    let has_keys = auth_has_keys(r, auth);
    let tenant_rules = TenantRules { routes: &rules, inherited: &routes, auth, has_keys };
    let (nodes, source) = r.list("tenant", TENANTS_MAX);
    let tables =
        Tables { list: "tenant", nodes: kept(nodes), source: &source, found: &found.tenants };
    let tenants = tenant_rules.list(tables, &mut report);
    services.check_tenants(&tenants, &mut report);
    let own = tenants.iter().flat_map(|(_, tenant)| &tenant.routes);
    let used = routes.iter().map(|table| &table.route).chain(own).map(|route| route.service);
    services.check_unused(r, &used.collect(), &mut report);
    let Services { list, instances, lookups, service_tls, push_rights, event_rights, .. } =
        services;
    let sound = report.problems.is_empty();
    r.report.absorb(report);
    let mut routes: Vec<Route> = routes.into_iter().map(|t| t.route).collect();
    routes.sort_by_key(|route| route.first);
    // No ring for refused services: it could have any size.
    let services = if sound { rings(list, &instances, ring_points) } else { Vec::new() };
    let (tenants, routed): (Vec<_>, Vec<_>) = tenants.into_iter().unzip();
    let snapshot =
        Snapshot { version: 1, routes, tenants: TenantTable::new(routed), services, instances };
    FileTables { snapshot, lookups, service_tls, tenants, push_rights, event_rights }
}

fn rings(services: Vec<ServiceTable>, instances: &[Instance], points: u32) -> Vec<Service> {
    let service = |(index, table): (usize, ServiceTable)| {
        let own = instances.iter().filter(|i| usize::from(i.service.0) == index);
        let ring = Ring::new(own.map(|i| (i.id, &*i.name, i.weight)), points);
        Some(Service { name: table.name?, mode: table.mode, ring: ring.into() })
    };
    services.into_iter().enumerate().filter_map(service).collect()
}

impl Services {
    fn read(&mut self, list: Vec<Node>, source: &Source) {
        for (index, node) in list.into_iter().enumerate() {
            let prefix = format!("service[{index}]");
            let reader = Reader::of_table(prefix, node, source, &mut self.report);
            let service = match reader {
                Some(reader) => self.read_service(index, reader),
                None => ServiceTable {
                    name: None,
                    mode: Mode::Batch,
                    tenants: Vec::new(),
                    source: source.clone(),
                    tenants_source: source.clone(),
                },
            };
            self.list.push(service);
        }
    }

    fn read_service(&mut self, index: usize, mut r: Reader) -> ServiceTable {
        let name = r.required_text("name", is_name, NAME_RULE);
        let mode = r.word("mode", Mode::Batch, &[("batch", Mode::Batch), ("unary", Mode::Unary)]);
        let same = |s: &ServiceTable| name.is_some() && s.name.as_deref() == name.as_deref();
        if let Some(other) = self.list.iter().position(same) {
            r.problem("name", format!("is also the name of service[{other}]; rename one"));
        }
        let missing = !r.is_set("instances");
        let (list, source) = r.list("instances", INSTANCES_MAX);
        let lookup = dns(&mut r);
        let tls = service_tls::read(&mut r, lookup.as_ref().map(|(name, _)| name));
        // A name of the wrong form has its problem already.
        let is_named = lookup.is_some() || r.report.problems.iter().any(|p| p.key.ends_with("dns"));
        if list.is_empty() && !is_named && !self.discovered {
            let what = if missing { "is missing" } else { "is empty" };
            let rule = format!("{what}; list at least one {{ id = \"...\", address = \"...\" }}");
            r.problem("instances", rule);
        }
        let count = self.instances.len() + list.len();
        if !too_many(&mut self.report, "instances", count, INSTANCES_MAX, &source) {
            for (n, node) in list.into_iter().enumerate() {
                let prefix = format!("service[{index}].instances[{n}]");
                if let Some(reader) = Reader::of_table(prefix, node, &source, &mut self.report) {
                    self.read_instance(ServiceId(index as u16), reader);
                }
            }
        }
        if let (Some(tls), Some(name)) = (tls, &name) {
            self.service_tls.insert(name.as_str().into(), tls);
        }
        if let (Some((looked_up, family)), Some(name)) = (lookup, &name) {
            self.lookups.push(Lookup { service: name.as_str().into(), name: looked_up, family });
        }
        let rights = push::service_rights(&mut r);
        if let (Some(name), false) = (&name, rights.may.is_empty()) {
            self.push_rights.insert(name.as_str().into(), Arc::new(rights));
        }
        let told = events::service_events(&mut r, mode);
        let tenants = r.texts("tenants", &[], is_name, NAME_RULE);
        if let (Some(name), false) = (&name, told.kinds.is_empty()) {
            let told = EventRights { only_for: only_for(&tenants), ..told };
            self.event_rights.insert(name.as_str().into(), Arc::new(told));
        }
        if !tenants.is_empty() && !self.has_tenants {
            let rule = "nobody could use it: no client has a tenant while auth.tenants is \"one\"; \
                        set that to \"many\", or remove this";
            r.problem("tenants", rule);
        }
        r.unknown(&[], "");
        let (source, tenants_source) = (r.source("name"), r.source("tenants"));
        self.report.absorb(r.report);
        ServiceTable { name: name.map(Arc::from), mode, tenants, source, tenants_source }
    }

    /// Services as their routes know them.
    fn routed(&self) -> Vec<RoutedService> {
        let service = |table: &ServiceTable| {
            let only_for = only_for(&table.tenants);
            RoutedService { name: table.name.clone(), mode: table.mode, only_for }
        };
        self.list.iter().map(service).collect()
    }

    fn read_instance(&mut self, service: ServiceId, mut r: Reader) {
        let name = r.required_text("id", is_name, NAME_RULE);
        let valid = |s: &str| s.parse::<SocketAddr>().is_ok_and(|a| a.port() != 0);
        let rule = TextRule::new(
            "an IP address and a port above 0",
            ", e.g. \"127.0.0.1:50001\" (a host name goes \
             into dns of the service)",
        );
        let address = r.required_text("address", valid, rule);
        let weight = r.number("weight", 1, Bounds::new(1, 1000));
        if let (Some(name), Some(address)) = (name, address.and_then(|a| a.parse().ok())) {
            let owner = |i: &Instance| format!("service[{}]", i.service.0);
            if let Some(other) = self.instances.iter().find(|i| *i.name == *name) {
                let rule = format!("is also an instance of {}; ids are unique", owner(other));
                r.problem("id", rule);
            }
            let same = |i: &&Instance| i.service == service && i.addresses.first() == address;
            if let Some(other) = self.instances.iter().find(same) {
                let rule = format!(
                    "is also the address of {:?}; for a larger share of the keys \
                                    raise its weight",
                    &*other.name
                );
                r.problem("address", rule);
            }
            let id = InstanceId(self.instances.len() as u32);
            let (share, draining) = (Share::ALL, false);
            let name = name.into();
            let addresses = address.into();
            self.instances.push(Instance { id, service, name, addresses, weight, share, draining });
        }
        r.unknown(&[], "");
        self.report.absorb(r.report);
    }

    fn check_points(&mut self, ring_points: u32, source: &Source) {
        let weights: u64 = self.instances.iter().map(|i| u64::from(i.weight)).sum();
        let points = weights * u64::from(ring_points);
        if points > POINTS_MAX {
            let rule = format!(
                "weights of {weights} in all, times {ring_points} ring_points, are {points} \
                 points; at most {POINTS_MAX}: use smaller weights or fewer points"
            );
            self.report.problems.push(Problem::whole(source.clone(), rule));
        }
    }

    /// Warns of tenants in the list of a service that nothing configures. Where a source can name
    /// tenants, they may come later.
    fn check_tenants(&self, known: &[(TenantSettings, Tenant)], report: &mut Report) {
        let names = || known.iter().map(|(tenant, _)| &*tenant.name);
        let unknown = |name: &&String| !names().any(|known| known == name.as_str());
        for (index, service) in self.list.iter().enumerate().filter(|_| !self.finds_tenants) {
            for name in service.tenants.iter().filter(unknown) {
                let hint = match nearest(name, names()) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => "add one".into(),
                };
                report.warnings.push(Problem {
                    source: service.tenants_source.clone(),
                    key: format!("service[{index}].tenants"),
                    value: format!("{name:?}"),
                    rule: format!("no [[tenant]] has this name; {hint}"),
                });
            }
        }
    }

    fn check_unused(&self, r: &mut Reader, used: &BTreeSet<ServiceId>, report: &mut Report) {
        if self.list.is_empty() && !r.is_set("service") {
            r.warning("service", "no [[service]]: only the gateway's own ids are answered");
        }
        for (index, service) in self.list.iter().enumerate() {
            let is_used = used.contains(&ServiceId(index as u16));
            if let (Some(name), false) = (&service.name, is_used) {
                let rule = format!("no [[route]] leads to {name:?}; add one or remove the service");
                let key = format!("service[{index}].name");
                let (source, value) = (service.source.clone(), format!("{name:?}"));
                report.warnings.push(Problem { source, key, value, rule });
            }
        }
    }
}

/// Ids of the tenants that a service is for, sorted; `None` = everybody.
fn only_for(tenants: &[String]) -> Option<Arc<[TenantId]>> {
    let mut ids: Vec<_> = tenants.iter().map(|name| TenantId::of(name)).collect();
    ids.sort_unstable();
    ids.dedup();
    (!ids.is_empty()).then(|| ids.into())
}

/// Reads `dns` and `dns_family`.
fn dns(r: &mut Reader) -> Option<(LookupName, Family)> {
    let form = "a host name and a port, or \"srv:\" and the name of SRV records";
    let text = r.text("dns", "", |_| true, TextRule::new(form, "").or_empty());
    let family = r.word("dns_family", Family::Any, &Family::WORDS);
    if text.is_empty() {
        if r.is_set("dns_family") && !r.is_set("dns") {
            r.problem("dns_family", "chooses among the addresses of dns, which is not set");
        }
        return None;
    }
    LookupName::parse(&text).map_err(|rule| r.problem("dns", rule)).ok().map(|name| (name, family))
}
