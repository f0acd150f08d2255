//! A table `[[route]]`, of the default list or of a tenant's: its keys, and the rules between the
//! routes of a list.

use std::collections::HashMap;
use std::sync::Arc;

use super::nearest::nearest;
use super::problem::{Problem, Source};
use super::reader::{Reader, Report};
use super::rule::{Bounds, TextRule};
use super::tables::{Tables, too_many};
use super::words::{SERVICE_RULE, is_name};
use crate::ids::{ServiceId, TenantId};
use crate::limits::TIMEOUT_MS_MAX;
use crate::message::Priority;
use crate::routing::*;

/// Largest number of routes in a list: overlaps are searched pair by pair (8 million pairs).
pub(super) const ROUTES_MAX: usize = 4096;

/// A route and its place.
pub(super) struct RouteTable {
    /// Place of the table, e.g. `route[3]` or `tenant[2].route[0]`.
    pub at: String,
    pub route: Route,
    pub source: Source,
}

impl RouteTable {
    /// A problem with the value of `key`.
    pub fn problem(&self, key: &str, value: String, rule: String) -> Problem {
        Problem { source: self.source.clone(), key: format!("{}.{key}", self.at), value, rule }
    }

    /// Whether one of the ids from `first` to `last` is its own.
    fn overlaps(&self, first: u32, last: u32) -> bool {
        first <= self.route.last && self.route.first <= last
    }
}

/// A service as its routes know it.
pub(super) struct RoutedService {
    /// Name; `None` if it was refused.
    pub name: Option<Arc<str>>,
    pub mode: Mode,
    /// Tenants that it is for, sorted; `None` = everybody.
    pub only_for: Option<Arc<[TenantId]>>,
}

/// Settings and services that the checks of routes depend on.
pub(super) struct RouteRules {
    services: Vec<RoutedService>,
    names: HashMap<Arc<str>, ServiceId>,
    /// Longest time that a message waits for others to share its batch. Every route's timeout must
    /// be longer.
    window_ms: u64,
    /// Whether clients can sign in.
    sign_in: bool,
    /// Ids that no route may have.
    gateway_ids: (u32, u32),
}

impl RouteRules {
    pub fn new(
        services: Vec<RoutedService>,
        window_ms: u64,
        sign_in: bool,
        gateway_ids: (u32, u32),
    ) -> Self {
        let names = services.iter().enumerate();
        let names = names.filter_map(|(i, s)| Some((s.name.clone()?, ServiceId(i as u16))));
        let names = names.collect();
        Self { services, names, window_ms, sign_in, gateway_ids }
    }

    /// The service named `name`, or the rule that the name breaks.
    pub fn service(&self, name: &str) -> Result<ServiceId, String> {
        self.names.get(name).copied().ok_or_else(|| {
            let hint = match nearest(name, self.names.keys().map(|n| &**n)) {
                Some(near) => format!("did you mean {near:?}?"),
                None => "add a [[service]] with that name".into(),
            };
            format!("there is no such service; {hint}")
        })
    }

    /// The name of a service.
    pub fn name(&self, service: ServiceId) -> Option<&str> {
        self.services.get(usize::from(service.0))?.name.as_deref()
    }

    /// Tenants that the service is for, sorted; `None` = everybody.
    pub fn only_for(&self, service: ServiceId) -> Option<&Arc<[TenantId]>> {
        self.services.get(usize::from(service.0))?.only_for.as_ref()
    }

    /// Reads a list of routes, which `what` names, and checks their ranges.
    pub fn list(&self, tables: Tables<'_>, what: &str, report: &mut Report) -> Vec<RouteTable> {
        let mut list = Vec::new();
        if !too_many(report, what, tables.len(), ROUTES_MAX, tables.source) {
            tables.read(report, |report, at, r| list.extend(self.read(at, r, report)));
        }
        self.check_ranges(&list, report);
        list
    }

    /// Reads the route at `at`; `None` if it has no valid range.
    fn read(&self, at: String, mut r: Reader, report: &mut Report) -> Option<RouteTable> {
        let range = range(&mut r);
        let service = r.required_text("service", is_name, SERVICE_RULE);
        let service = service
            .and_then(|name| self.service(&name).map_err(|rule| r.problem("service", rule)).ok());
        let route = self.keys(&mut r, range.unwrap_or_default(), service.unwrap_or(ServiceId(0)));
        if let Some(service) = service.and_then(|s| self.services.get(usize::from(s.0))) {
            mode_rules(&mut r, &route, service.mode);
        }
        r.unknown(&[], "");
        let source = r.source("range");
        report.absorb(r.report);
        range.map(|_| RouteTable { at, route, source })
    }

    /// Reads the keys besides the range and the service.
    fn keys(&self, r: &mut Reader, (first, last): (u32, u32), service: ServiceId) -> Route {
        let priorities = Priority::ALL.map(|p| (p.name(), p));
        let orders = [("session", Order::Session), ("none", Order::None)];
        let hashed = [("user", HashOn::User), ("session", HashOn::Session), ("key", HashOn::Key)];
        let payloads = [("json", PayloadKind::Json), ("bytes", PayloadKind::Bytes)];
        let failovers = [("next", Failover::Next), ("none", Failover::None)];
        let route = Route {
            first,
            last,
            service,
            priority: r.word("priority", Priority::Normal, &priorities),
            timeout_ms: r.number("timeout_ms", 5000, Bounds::new(1, TIMEOUT_MS_MAX as u64)),
            order: r.word("order", Order::Session, &orders),
            hash_on: r.word("hash_on", HashOn::User, &hashed),
            payload: r.word("payload", PayloadKind::Json, &payloads),
            idempotent: r.boolean("idempotent", false),
            failover: r.word("failover", Failover::Next, &failovers),
            method: method(r),
            service_text: r.boolean("service_text", false),
            needs_user: r.word("auth", false, &[("none", false), ("user", true)]),
            only_for: None,
        };
        if route.needs_user && !self.sign_in {
            let rule = "nobody can sign in while auth.mode is \"off\"; set it to \"jwt\", or this \
                        to \"none\"";
            r.problem("auth", rule);
        }
        if self.window_ms >= u64::from(route.timeout_ms) {
            let rule = format!(
                "must be above batch.window_ms {}, which a message may wait for company",
                self.window_ms
            );
            r.problem("timeout_ms", rule);
        }
        route
    }

    /// Notes routes of a list that overlap each other or the gateway's own ids.
    fn check_ranges(&self, list: &[RouteTable], report: &mut Report) {
        let (first, last) = self.gateway_ids;
        for (at, table) in list.iter().enumerate() {
            let mut problem = |rule| {
                let shown = format!("[{}, {}]", table.route.first, table.route.last);
                report.problems.push(table.problem("range", shown, rule));
            };
            let overlaps =
                |other: &&RouteTable| other.overlaps(table.route.first, table.route.last);
            if let Some(RouteTable { at, route: Route { first, last, .. }, .. }) =
                list[..at].iter().find(overlaps)
            {
                problem(format!("overlaps {at} ({first}-{last}); ranges must not overlap"));
            }
            if table.overlaps(first, last) {
                problem(format!(
                    "overlaps the gateway's own ids ({first}-{last}); change the range or \
                     [gateway] ids"
                ));
            }
        }
    }
}

/// A session's messages to one service wait in one queue while their order is kept, so they must
/// also move to another instance together. Notes routes in `list` that differ from one before them,
/// or from one of `inherited`.
pub(super) fn check_failover<'a>(
    inherited: impl Iterator<Item = &'a RouteTable>,
    list: &'a [RouteTable],
    report: &mut Report,
) {
    let in_order = |table: &&RouteTable| table.route.order == Order::Session;
    let mut first: HashMap<ServiceId, &RouteTable> = HashMap::new();
    for table in inherited.filter(in_order) {
        first.entry(table.route.service).or_insert(table);
    }
    for table in list.iter().filter(in_order) {
        let other = *first.entry(table.route.service).or_insert(table);
        if other.route.failover != table.route.failover {
            let rule = format!(
                "differs from that of {}, which has the same service and order = \"session\": one \
                 session's messages move together; make them equal, or set order = \"none\"",
                other.at
            );
            report.problems.push(table.problem("failover", String::new(), rule));
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
