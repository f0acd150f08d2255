//! `[[tenant]]` -> the tenants' settings and their part of the snapshot, or the problems with them.

use std::collections::HashMap;
use std::sync::Arc;

use super::auth::{self, TokenKeys};
use super::check::origins;
use super::problem::{Problem, Source};
use super::reader::{Reader, Report};
use super::route::{self, RouteRules, RouteTable, check_failover};
use super::rule::Bounds;
use super::settings::{AuthMode, AuthSettings, TenantSettings, TenantTokens, Tenants};
use super::tables::{FoundTable, Tables, too_many};
use super::words::{NAME_RULE, SERVICE_RULE, is_name};
use crate::ids::{ServiceId, TenantId};
use crate::limits::TENANTS_MAX;
use crate::routing::{OTHER_TENANTS, Quota, Route, SharedCount, Tenant};

/// Largest number of routes that all tenants have: 16 each if there are 1,000 of them.
const ROUTES_MAX: usize = 16_384;
/// Largest number of tenants that metrics show by name: each has some 10 series.
const METRICS_MAX: usize = 100;

/// Names of the keys that say which tokens are a tenant's.
const OF_TENANT: TokenKeys = TokenKeys {
    issuer: "issuer",
    audience: "audience",
    jwks_file: "jwks_file",
    jwks_url: "jwks_url",
    jwks_ca_file: "jwks_ca_file",
};

/// Settings and routes that the checks of tenants depend on.
pub(super) struct TenantRules<'a> {
    pub routes: &'a RouteRules,
    /// Default routes, with the tenants that may use them.
    pub inherited: &'a [RouteTable],
    pub auth: &'a AuthSettings,
    /// Whether `[auth]` has a key.
    pub has_keys: bool,
}

/// A tenant as it was read.
struct TenantTable {
    /// Place of the table: `tenant[2]`.
    at: String,
    source: Source,
    settings: TenantSettings,
    tenant: Tenant,
}

impl TenantTable {
    /// The name as TOML.
    fn shown(&self) -> String {
        format!("{:?}", self.settings.name)
    }

    fn problem(&self, key: &str, value: String, rule: String) -> Problem {
        Problem { source: self.source.clone(), key: format!("{}.{key}", self.at), value, rule }
    }
}

impl TenantRules<'_> {
    /// Reads the tenants: the settings of each, by name, and what shards know of it.
    pub fn list(&self, tables: Tables<'_>, report: &mut Report) -> Vec<(TenantSettings, Tenant)> {
        let (count, source) = (tables.len(), tables.source);
        if count == 0 || too_many(report, "[[tenant]]", count, TENANTS_MAX, source) {
            return Vec::new();
        }
        self.check_sign_in(tables.found, source, report);
        let mut list = Vec::new();
        tables.read(report, |report, at, r| list.extend(self.read(at, r, report)));
        check_names(&list, report);
        check_issuers(&list, report);
        self.check_keys(&list, report);
        let routes = list.iter().map(|table| table.tenant.routes.len()).sum();
        too_many(report, "[[tenant.route]]", routes, ROUTES_MAX, source);
        let shown = list.iter().filter(|table| table.settings.has_metrics).count();
        too_many(report, "[[tenant]] with metrics = true", shown, METRICS_MAX, source);
        list.sort_by(|a, b| a.settings.name.cmp(&b.settings.name));
        list.into_iter().map(|table| (table.settings, table.tenant)).collect()
    }

    /// Notes that nobody can belong to a tenant. The value is not shown: it may hold secrets.
    fn check_sign_in(&self, found: &[FoundTable], source: &Source, report: &mut Report) {
        let source = match found.first() {
            Some(table) if *source == Source::Default => Source::Found(table.at.clone()),
            Some(_) | None => source.clone(),
        };
        let about = |rule: &str| Problem {
            source: source.clone(),
            key: "tenant".into(),
            value: String::new(),
            rule: rule.into(),
        };
        if self.auth.tenants == Tenants::One {
            let rule = "no client has a tenant while auth.tenants is \"one\"; set that to \
                        \"many\", or remove the tenants";
            report.problems.push(about(rule));
        } else if self.auth.mode == AuthMode::Off {
            let rule = "no client has a tenant while auth.mode is \"off\", because tokens name \
                        it; set that to \"jwt\"";
            report.warnings.push(about(rule));
        }
    }

    /// Reads the tenant at `at`; `None` if it has no valid name.
    fn read(&self, at: String, mut r: Reader, report: &mut Report) -> Option<TenantTable> {
        let name = r.required_text("name", is_name, NAME_RULE);
        let services = r.texts("services", &[], is_name, SERVICE_RULE);
        let settings = TenantSettings {
            name: name.as_deref().unwrap_or_default().into(),
            weight: r.number("weight", 1, Bounds::new(1, 1000)),
            inherit: r.boolean("inherit", true),
            services: services.into_iter().map(Arc::from).collect(),
            origins: origins(&mut r),
            quota: quota(&mut r),
            has_metrics: r.boolean("metrics", false),
            tokens: self.tokens(&mut r, &at),
        };
        let id = TenantId::of(&settings.name);
        let services = self.services(&mut r, &settings.services, id);
        let list = format!("{at}.route");
        let (nodes, source) = r.list("route", route::ROUTES_MAX);
        let tables = Tables { list: &list, nodes, source: &source, found: &[] };
        let own = self.routes.list(tables, "[[tenant.route]]", report);
        self.check_services(&own, id, services.as_deref(), report);
        let mut routes: Vec<Route> = own.iter().map(|table| table.route.clone()).collect();
        routes.sort_by_key(|route| route.first);
        let tenant = Tenant {
            id,
            name: settings.name.clone(),
            weight: settings.weight,
            routes,
            inherits: settings.inherit,
            services,
            origins: settings.origins.clone(),
            quota: settings.quota,
            has_metrics: settings.has_metrics,
            connections: SharedCount::default(),
        };
        let inherited = self.inherited.iter().filter(|table| is_inherited(table, &tenant));
        check_failover(inherited, &own, report);
        r.unknown(&[], "");
        let source = r.source("name");
        report.absorb(r.report);
        name.map(|_| TenantTable { at, source, settings, tenant })
    }

    /// The services that `names` name, sorted; `None` = all.
    fn services(&self, r: &mut Reader, names: &[Arc<str>], id: TenantId) -> Option<Vec<ServiceId>> {
        let mut services = Vec::new();
        for name in names {
            match self.routes.service(name) {
                Ok(service) if self.is_for(service, id) => services.push(service),
                Ok(_) => {
                    let rule = format!("service {name:?} is not for it; {TO_BE_FOR_IT}");
                    r.problem("services", rule);
                }
                Err(rule) => r.problem("services", format!("{name:?}: {rule}")),
            }
        }
        services.sort_unstable();
        services.dedup();
        (!names.is_empty()).then_some(services)
    }

    fn is_for(&self, service: ServiceId, id: TenantId) -> bool {
        self.routes.only_for(service).is_none_or(|ids| ids.binary_search(&id).is_ok())
    }

    /// Notes routes of a tenant to services that it may not use.
    fn check_services(
        &self,
        own: &[RouteTable],
        id: TenantId,
        services: Option<&[ServiceId]>,
        report: &mut Report,
    ) {
        for table in own {
            let service = table.route.service;
            let rule = if !self.is_for(service, id) {
                format!("this service is not for the tenant; {TO_BE_FOR_IT}")
            } else if services.is_some_and(|ids| ids.binary_search(&service).is_err()) {
                "this service is not among the services of the tenant; add it there".into()
            } else {
                continue;
            };
            let name = self.routes.name(service).unwrap_or_default();
            report.problems.push(table.problem("service", format!("{name:?}"), rule));
        }
    }

    /// Reads the keys that say which tokens are the tenant's own; `None` if none is set.
    fn tokens(&self, r: &mut Reader, at: &str) -> Option<TenantTokens> {
        let prefix = format!("{at}.");
        let tokens = auth::tokens(r, &prefix, &OF_TENANT);
        let words = ["issuer", "audience", "jwks_file", "jwks_url", "jwks_ca_file", "auth_key"];
        // An empty text is the same as none.
        let is_given = tokens != TenantTokens::default() || r.is_set("auth_key");
        let set = words.into_iter().find(|word| r.is_set(word)).filter(|_| is_given)?;
        if self.auth.mode == AuthMode::Off {
            let rule = "nobody can sign in while auth.mode is \"off\"; set that to \"jwt\", or \
                        remove this";
            r.problem(set, rule);
        } else if !auth::has_keys(r, &prefix, &tokens) {
            let rule = "is of tokens that are the tenant's own, and it has no key to verify them \
                        with: add a [[tenant.auth_key]], or set jwks_file or jwks_url, or remove \
                        this";
            r.problem(set, rule);
        } else {
            auth::warn_of_any(r, &OF_TENANT, &tokens);
        }
        Some(tokens)
    }

    /// Notes tenants without keys of their own, if there are none of `[auth]` that they could have.
    fn check_keys(&self, list: &[TenantTable], report: &mut Report) {
        let by_others = list.iter().any(|table| table.settings.tokens.is_some());
        // Without any key at all that is told once, of `[auth]`.
        if self.has_keys || self.auth.mode == AuthMode::Off || !by_others {
            return;
        }
        for table in list.iter().filter(|table| table.settings.tokens.is_none()) {
            let rule = "none of its users can sign in: neither it nor [auth] has a key; add a \
                        [[tenant.auth_key]], or set jwks_file or jwks_url";
            report.problems.push(table.problem("name", table.shown(), rule.into()));
        }
    }
}

/// The way out for a service that a tenant may not use.
const TO_BE_FOR_IT: &str = "add the tenant to service.tenants, or remove this";

/// Whether the tenant has a default route, or a part of its range, behind its own.
fn is_inherited(table: &RouteTable, tenant: &Tenant) -> bool {
    let route = &table.route;
    let is_open = route.only_for.as_ref().is_none_or(|ids| ids.binary_search(&tenant.id).is_ok());
    let may_lead =
        tenant.services.as_ref().is_none_or(|ids| ids.binary_search(&route.service).is_ok());
    // Ids of the range up to this one are the tenant's own.
    let mut next = u64::from(route.first);
    for own in &tenant.routes {
        if u64::from(own.first) <= next {
            next = next.max(u64::from(own.last) + 1);
        }
    }
    tenant.inherits && is_open && may_lead && next <= u64::from(route.last)
}

fn quota(r: &mut Reader) -> Quota {
    if !r.table("quota") {
        return Quota::NONE;
    }
    let bounds = Bounds::or_zero("no limit", 1, u64::from(u32::MAX));
    let mut number = |key| r.number(key, 0, bounds);
    Quota {
        connections_max: number("quota.connections_max"),
        connects_per_s: number("quota.connects_per_s"),
        messages_per_s: number("quota.messages_per_s"),
        bytes_per_s: number("quota.bytes_per_s"),
        queued_bytes_max: number("quota.queued_bytes_max"),
        dedup_ids_max: number("quota.dedup_ids_max"),
    }
}

/// Notes names that are not the names of one tenant.
fn check_names(list: &[TenantTable], report: &mut Report) {
    let mut first: HashMap<TenantId, &TenantTable> = HashMap::new();
    for table in list {
        if *table.settings.name == *OTHER_TENANTS {
            let rule = "is the label of all other tenants in metrics; choose another name";
            report.problems.push(table.problem("name", table.shown(), rule.into()));
        }
        let other = *first.entry(table.tenant.id).or_insert(table);
        if other.at != table.at {
            let rule = match other.settings.name == table.settings.name {
                true => format!("is also the name of {}; rename one", other.at),
                false => format!(
                    "has the same id by chance as {:?} of {}; rename one",
                    other.settings.name, other.at
                ),
            };
            report.problems.push(table.problem("name", table.shown(), rule));
        }
    }
}

/// Notes issuers that two tenants have: a token without the claim `tenant` would be of either.
fn check_issuers(list: &[TenantTable], report: &mut Report) {
    let mut first: HashMap<&str, &TenantTable> = HashMap::new();
    for table in list {
        let tokens = table.settings.tokens.as_ref();
        let Some(issuer) = tokens.and_then(|tokens| tokens.issuer.as_deref()) else { continue };
        let other = *first.entry(issuer).or_insert(table);
        if other.at != table.at {
            let rule = format!(
                "is also the issuer of {}; a token without the claim tenant would be of either: \
                 each tenant needs an issuer of its own",
                other.at
            );
            report.problems.push(table.problem("issuer", format!("{issuer:?}"), rule));
        }
    }
}

#[cfg(test)]
mod tests;
