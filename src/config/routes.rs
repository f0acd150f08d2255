//! `[[service]]` and `[[route]]` -> the first snapshot, or the problems with them.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use super::nearest::nearest;
use super::problem::{Problem, Source};
use super::raw::{self, Node};
use super::reader::{Reader, Report};
use super::rule::{Bounds, TextRule};
use super::service_tls;
use super::settings::ServiceTlsSettings;
use super::words::{NAME_RULE, SERVICE_RULE, is_name};
use super::{Family, FoundRoute, Lookup, LookupName};
use crate::ids::{InstanceId, ServiceId};
use crate::limits::{INSTANCES_MAX, RING_POINTS_MAX as POINTS_MAX, TIMEOUT_MS_MAX};
use crate::message::Priority;
use crate::routing::*;

/// Largest number of services: each is a queue group in every shard, and ServiceId is a u16.
const SERVICES_MAX: usize = 1024;
/// Largest number of routes: RouteId is a u16, and overlaps are searched pair by pair (8 million
/// pairs).
const ROUTES_MAX: usize = 4096;

/// Services and routes as far as they could be read.
#[derive(Default)]
struct Tables {
    services: Vec<ServiceTable>,
    instances: Vec<Instance>,
    lookups: Vec<Lookup>,
    service_tls: BTreeMap<Arc<str>, ServiceTlsSettings>,
    routes: Vec<RouteTable>,
    discovered: bool,
    sign_in: bool,
    report: Report,
}

struct ServiceTable {
    name: Option<Arc<str>>,
    mode: Mode,
    source: Source,
}

struct RouteTable {
    index: usize,
    route: Route,
    source: Source,
}

impl RouteTable {
    fn shown(&self) -> String {
        format!("[{}, {}]", self.route.first, self.route.last)
    }
}

/// Settings that the checks of services and routes depend on.
pub struct RouteContext<'a> {
    /// Points on the ring for each unit of weight.
    pub ring_points: u32,
    /// Ids that no route may have.
    pub gateway_ids: (u32, u32),
    /// Longest time that a message waits for others to share its batch. Every route's timeout must
    /// be longer.
    pub window_ms: u64,
    /// Whether a discovery source is configured, so that a service needs no instance in the files.
    pub discovered: bool,
    /// Whether clients can sign in.
    pub sign_in: bool,
    /// Routes that discovery sources announced.
    pub found: &'a [FoundRoute],
}

/// Services and routes as the files have them.
pub struct FileTables {
    /// The first snapshot.
    pub snapshot: Snapshot,
    /// DNS names to be looked up.
    pub lookups: Vec<Lookup>,
    /// TLS towards services, by their names.
    pub service_tls: BTreeMap<Arc<str>, ServiceTlsSettings>,
}

/// Reads services and routes.
pub fn read(r: &mut Reader, context: &RouteContext<'_>) -> FileTables {
    let &RouteContext { ring_points, gateway_ids, window_ms, discovered, sign_in, found } = context;
    let mut tables = Tables { discovered, sign_in, ..Tables::default() };
    let (services, source) = r.list("service", SERVICES_MAX);
    let counted = !tables.too_many("[[service]]", services.len(), SERVICES_MAX, &source);
    if counted {
        tables.read_services(services, &source);
    }
    tables.check_points(ring_points, &source);
    let (routes, source) = r.list("route", ROUTES_MAX);
    // Without services every route would be a problem, though nothing is wrong with it.
    if counted {
        tables.read_routes(routes, &source, found, window_ms);
    }
    tables.check_ranges(gateway_ids);
    tables.check_failover();
    tables.check_unused(r);
    let Tables { services, instances, lookups, service_tls, routes, report, .. } = tables;
    let sound = report.problems.is_empty();
    r.report.absorb(report);
    let mut routes: Vec<Route> = routes.into_iter().map(|t| t.route).collect();
    routes.sort_by_key(|route| route.first);
    // No ring for refused services: it could have any size.
    let services = if sound { rings(services, &instances, ring_points) } else { Vec::new() };
    let tenants = TenantTable::default();
    let snapshot = Snapshot { version: 1, routes, tenants, services, instances };
    FileTables { snapshot, lookups, service_tls }
}

fn rings(services: Vec<ServiceTable>, instances: &[Instance], points: u32) -> Vec<Service> {
    let service = |(index, table): (usize, ServiceTable)| {
        let own = instances.iter().filter(|i| usize::from(i.service.0) == index);
        let ring = Ring::new(own.map(|i| (i.id, &*i.name, i.weight)), points);
        Some(Service { name: table.name?, mode: table.mode, ring: ring.into() })
    };
    services.into_iter().enumerate().filter_map(service).collect()
}

impl Tables {
    fn too_many(&mut self, what: &str, count: usize, max: usize, source: &Source) -> bool {
        if count > max {
            let rule = format!("{count} of {what} are too many; at most {max}");
            self.report.problems.push(Problem::whole(source.clone(), rule));
        }
        count > max
    }

    fn read_services(&mut self, list: Vec<Node>, source: &Source) {
        for (index, node) in list.into_iter().enumerate() {
            let prefix = format!("service[{index}]");
            let reader = Reader::of_table(prefix, node, source, &mut self.report);
            let (name, mode, name_source) = match reader {
                Some(reader) => self.read_service(index, reader),
                None => (None, Mode::Batch, source.clone()),
            };
            self.services.push(ServiceTable { name, mode, source: name_source });
        }
    }

    fn read_service(&mut self, index: usize, mut r: Reader) -> (Option<Arc<str>>, Mode, Source) {
        let name = r.required_text("name", is_name, NAME_RULE);
        let mode = r.word("mode", Mode::Batch, &[("batch", Mode::Batch), ("unary", Mode::Unary)]);
        let same = |s: &ServiceTable| name.is_some() && s.name.as_deref() == name.as_deref();
        if let Some(other) = self.services.iter().position(same) {
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
        if !self.too_many("instances", self.instances.len() + list.len(), INSTANCES_MAX, &source) {
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
        r.unknown(&[], "");
        let name_source = r.source("name");
        self.report.absorb(r.report);
        (name.map(Arc::from), mode, name_source)
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

    fn read_routes(
        &mut self,
        list: Vec<Node>,
        source: &Source,
        found: &[FoundRoute],
        window_ms: u64,
    ) {
        if self.too_many("[[route]]", list.len() + found.len(), ROUTES_MAX, source) {
            return;
        }
        let in_files = list.len();
        let names = self.services.iter().enumerate();
        let names = names.filter_map(|(i, s)| Some((s.name.clone()?, i as u16)));
        let names: HashMap<Arc<str>, u16> = names.collect();
        for (index, node) in list.into_iter().enumerate() {
            let prefix = format!("route[{index}]");
            if let Some(reader) = Reader::of_table(prefix, node, source, &mut self.report) {
                self.read_route(index, reader, &names, window_ms);
            }
        }
        for (index, route) in (in_files..).zip(found) {
            let at = Source::Found(route.at.clone());
            let value = match serde_json::from_str(&route.json) {
                Ok(json) => raw::from_json(json),
                Err(e) => {
                    let rule = format!("not JSON: {e}");
                    self.report.problems.push(Problem::whole(at, rule));
                    continue;
                }
            };
            let prefix = format!("route[{index}]");
            let node = Node { value, line: 0 };
            if let Some(reader) = Reader::of_table(prefix, node, &at, &mut self.report) {
                self.read_route(index, reader, &names, window_ms);
            }
        }
    }

    fn read_route(
        &mut self,
        index: usize,
        mut r: Reader,
        names: &HashMap<Arc<str>, u16>,
        window_ms: u64,
    ) {
        let range = range(&mut r);
        let service = service(&mut r, names);
        let priorities = Priority::ALL.map(|p| (p.name(), p));
        let route = Route {
            first: range.map_or(0, |r| r.0),
            last: range.map_or(0, |r| r.1),
            service: ServiceId(service.unwrap_or(0)),
            priority: r.word("priority", Priority::Normal, &priorities),
            timeout_ms: r.number("timeout_ms", 5000, Bounds::new(1, TIMEOUT_MS_MAX as u64)),
            order: r.word(
                "order",
                Order::Session,
                &[("session", Order::Session), ("none", Order::None)],
            ),
            hash_on: r.word(
                "hash_on",
                HashOn::User,
                &[("user", HashOn::User), ("session", HashOn::Session), ("key", HashOn::Key)],
            ),
            payload: r.word(
                "payload",
                PayloadKind::Json,
                &[("json", PayloadKind::Json), ("bytes", PayloadKind::Bytes)],
            ),
            idempotent: r.boolean("idempotent", false),
            failover: r.word(
                "failover",
                Failover::Next,
                &[("next", Failover::Next), ("none", Failover::None)],
            ),
            method: method(&mut r),
            service_text: r.boolean("service_text", false),
            needs_user: r.word("auth", false, &[("none", false), ("user", true)]),
            only_for: None,
        };
        if route.needs_user && !self.sign_in {
            let rule = "nobody can sign in while auth.mode is \"off\"; set it to \"jwt\", or this \
                        to \"none\"";
            r.problem("auth", rule);
        }
        if window_ms >= u64::from(route.timeout_ms) {
            let rule = format!(
                "must be above batch.window_ms {window_ms}, which a message may wait for company"
            );
            r.problem("timeout_ms", rule);
        }
        if let Some(service) = service.and_then(|s| self.services.get(usize::from(s))) {
            mode_rules(&mut r, &route, service.mode);
        }
        r.unknown(&[], "");
        let source = r.source("range");
        self.report.absorb(r.report);
        if range.is_some() {
            self.routes.push(RouteTable { index, route, source });
        }
    }

    /// A session's messages to one service wait in one queue while their order is kept, so they
    /// must also move to another instance together.
    fn check_failover(&mut self) {
        let mut first: HashMap<ServiceId, (usize, Failover)> = HashMap::new();
        for table in self.routes.iter().filter(|t| t.route.order == Order::Session) {
            let Route { service, failover, .. } = table.route;
            let (other, its) = *first.entry(service).or_insert((table.index, failover));
            if its != failover {
                let rule = format!(
                    "differs from that of route[{other}], which has the same service and \
                     order = \"session\": one session's messages move together; make them equal, \
                     or set order = \"none\""
                );
                let (source, key) =
                    (table.source.clone(), format!("route[{}].failover", table.index));
                let value = String::new();
                self.report.problems.push(Problem { source, key, value, rule });
            }
        }
    }

    fn check_ranges(&mut self, (first, last): (u32, u32)) {
        for (at, table) in self.routes.iter().enumerate() {
            let overlaps = |first, last| first <= table.route.last && table.route.first <= last;
            let mut problem = |rule| {
                let (key, value) = (format!("route[{}].range", table.index), table.shown());
                let source = table.source.clone();
                self.report.problems.push(Problem { source, key, value, rule });
            };
            let earlier = self.routes[..at].iter().find(|t| overlaps(t.route.first, t.route.last));
            if let Some(RouteTable { index, route: Route { first, last, .. }, .. }) = earlier {
                problem(format!(
                    "overlaps route[{index}] ({first}-{last}); ranges must not overlap"
                ));
            }
            if overlaps(first, last) {
                problem(format!(
                    "overlaps the gateway's own ids ({first}-{last}); change the range or \
                     [gateway] ids"
                ));
            }
        }
    }

    fn check_unused(&mut self, r: &mut Reader) {
        if self.services.is_empty() && !r.is_set("service") {
            r.warning("service", "no [[service]]: only the gateway's own ids are answered");
        }
        for (index, service) in self.services.iter().enumerate() {
            let used = self.routes.iter().any(|t| usize::from(t.route.service.0) == index);
            if let (Some(name), false) = (&service.name, used) {
                let rule = format!("no [[route]] leads to {name:?}; add one or remove the service");
                let key = format!("service[{index}].name");
                let (source, value) = (service.source.clone(), format!("{name:?}"));
                self.report.warnings.push(Problem { source, key, value, rule });
            }
        }
    }
}

fn range(r: &mut Reader) -> Option<(u32, u32)> {
    // 0 is "no msg_id" on the wire.
    let bounds = Bounds::new(1, u64::from(u32::MAX));
    let [first, last] = r.required_numbers("range", bounds, "range = [first, last]")?;
    if first > last {
        r.problem("range", "the first id must not be above the last; write [first, last]");
    }
    (first <= last).then_some((first, last))
}

fn service(r: &mut Reader, names: &HashMap<Arc<str>, u16>) -> Option<u16> {
    let name = r.required_text("service", is_name, SERVICE_RULE)?;
    let found = names.get(name.as_str()).copied();
    if found.is_none() {
        let hint = match nearest(&name, names.keys().map(|n| &**n)) {
            Some(near) => format!("did you mean {near:?}?"),
            None => "add a [[service]] with that name".into(),
        };
        r.problem("service", format!("there is no such service; {hint}"));
    }
    found
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

fn method(r: &mut Reader) -> Option<Arc<str>> {
    let rule = TextRule::new("a gRPC method \"/package.Service/Method\"", "");
    let text = r.text("method", "", is_method, rule.or_empty());
    (!text.is_empty()).then(|| text.into())
}

fn is_method(s: &str) -> bool {
    let Some((service, method)) = s.strip_prefix('/').and_then(|s| s.split_once('/')) else {
        return false;
    };
    let word = |s: &str| {
        s.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    s.len() <= 256 && service.split('.').all(word) && word(method)
}

fn mode_rules(r: &mut Reader, route: &Route, mode: Mode) {
    // A method of the wrong form has its problem already.
    let given =
        route.method.is_some() || r.report.problems.iter().any(|p| p.key.ends_with("method"));
    match mode {
        Mode::Batch if given => r.problem(
            "method",
            "only services with mode = \"unary\" are called by method; remove it or set that mode",
        ),
        Mode::Batch => {}
        Mode::Unary => {
            if !given {
                let rule = "is missing; its service has mode = \"unary\": name the gRPC method, \
                            \"/package.Service/Method\"";
                r.problem("method", rule);
            }
            if route.payload != PayloadKind::Bytes {
                let rule = "must be \"bytes\": its service has mode = \"unary\", so the payload is \
                            the request message itself";
                r.problem("payload", rule);
            }
        }
    }
}
