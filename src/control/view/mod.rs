//! Bodies of the admin endpoint's answers: reports of shards and the directory's state, as JSON and
//! text.

pub mod config;
pub mod connect;
pub mod connections;
pub mod explain;
pub mod explain_group;
pub mod groups;
pub mod health;
pub mod histograms;
pub mod live;
pub mod log;
pub mod metrics;
pub mod pushes;
pub mod routing;
pub mod services;
pub mod stats;
pub mod tenants;
#[cfg(test)]
pub(super) mod tests;
pub mod trace;

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use super::gathering::Overview;
use super::inputs::{Cores, Listens};
use super::log::DroppedLines;
use super::shards::{ShardState, ShardView};
use crate::ids::InstanceId;
use crate::message::{CallFault, Priority, Reason};
use crate::routing::{
    Failover, HashOn, Instance, Mode, Order, PayloadKind, Route, Service, Snapshot,
};
use crate::stats::{Counters, Gauges, Histograms, InstanceReport, Report};

/// Facts about the process that need no shard.
pub struct ProcessInfo {
    pub node: String,
    pub boot_id: u64,
    pub cores: Cores,
    /// Addresses for clients.
    pub listens: Listens,
    pub started: Instant,
    pub log_dropped: Option<DroppedLines>,
}

impl ProcessInfo {
    /// Start of the process, by the wall clock as it is now.
    pub fn started_at(&self) -> SystemTime {
        SystemTime::now().checked_sub(self.started.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

/// Sum of some shards' reports.
#[derive(Default)]
struct Sum {
    counters: Counters,
    gauges: Gauges,
    histograms: Histograms,
    reasons: [u64; Reason::ALL.len()],
    faults: Vec<(CallFault, u64)>,
}

impl Sum {
    fn of<'a>(reports: impl Iterator<Item = &'a Report>) -> Self {
        let mut sum = Self::default();
        for report in reports {
            sum.counters.merge(&report.counters);
            sum.histograms.merge(&report.histograms);
            sum.gauges.add(&report.gauges);
            for (all, one) in sum.reasons.iter_mut().zip(report.reasons) {
                *all += one;
            }
            for &(fault, n) in &report.faults {
                match sum.faults.iter_mut().find(|(known, _)| *known == fault) {
                    Some((_, all)) => *all += n,
                    None => sum.faults.push((fault, n)),
                }
            }
        }
        sum
    }
}

fn reports(overview: &Overview) -> impl Iterator<Item = &Report> {
    overview.shards.iter().filter_map(|shard| shard.report.as_deref())
}

/// Instances of a service, in the order of the snapshot.
fn instances_of<'a>(
    overview: &'a Overview,
    service: &'a Service,
) -> impl Iterator<Item = &'a Instance> {
    let services = &overview.directory.snapshot.services;
    let index = services.iter().position(|s| std::ptr::eq(s, service));
    let instances = overview.directory.snapshot.instances.iter();
    instances.filter(move |i| Some(usize::from(i.service.0)) == index)
}

/// Name of an instance of the snapshot in force; an instance that has gone has none.
fn name_of(overview: &Overview, id: InstanceId) -> Option<&str> {
    overview.directory.snapshot.instance(id).map(|i| &*i.name)
}

/// Addresses of an instance that are tried after its first.
fn others(instance: &Instance) -> Vec<String> {
    instance.addresses.others().iter().map(ToString::to_string).collect()
}

/// Services that exist: those of the files, and others that still have instances.
fn present(overview: &Overview) -> impl Iterator<Item = &Service> {
    let named = &overview.directory.config.snapshot.services;
    let is_named = |s: &&Service| named.iter().any(|n| (&n.name, n.mode) == (&s.name, s.mode));
    overview.directory.snapshot.services.iter().filter(is_named)
}

/// Standing of an instance, with the reason. Without a judgement it counts as unchecked.
fn standing(overview: &Overview, id: InstanceId) -> (&'static str, Option<&str>) {
    match overview.directory.judged.get(&id) {
        Some(judged) => (judged.standing, judged.why.as_deref()),
        None => ("unchecked", None),
    }
}

/// Reason why no shard has a connection to an instance. `None` if one has, or none has failed to
/// make one yet.
fn unreachable_why(overview: &Overview, id: InstanceId) -> Option<&str> {
    let mut why = None;
    for seen in reports(overview).filter_map(|report| seen_by(report, id)) {
        if seen.connected {
            return None;
        }
        why = why.or(seen.why_down.as_deref());
    }
    why
}

fn seen_by(report: &Report, id: InstanceId) -> Option<&InstanceReport> {
    let found = report.instances.binary_search_by_key(&id, |i| i.instance).ok()?;
    report.instances.get(found)
}

fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Batch => "batch",
        Mode::Unary => "unary",
    }
}

/// TLS towards a service, with the words of the configuration; `null` = none. It names files, and
/// shows nothing of their contents.
fn tls(overview: &Overview, service: &str) -> serde_json::Value {
    let Some(tls) = overview.directory.config.service_tls.get(service) else {
        return serde_json::Value::Null;
    };
    let file = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    serde_json::json!({
        "server_name": tls.server_name.as_deref(),
        "ca_file": file(&tls.ca_file),
        "cert_file": file(&tls.cert_file),
    })
}

/// A route of a list, with the tenant whose own it is, or those that alone may use it.
fn listed(snapshot: &Snapshot, (tenant, r): (Option<&str>, &Route)) -> serde_json::Value {
    let mut body = route(r, &snapshot.services[usize::from(r.service.0)].name);
    body["tenant"] = tenant.into();
    body["only_for"] = snapshot.only_for(r).into();
    body
}

/// A route, with the words of the configuration.
fn route(route: &Route, service: &str) -> serde_json::Value {
    serde_json::json!({
        "range": [route.first, route.last],
        "service": service,
        "priority": match route.priority {
            Priority::Critical => "critical",
            Priority::High => "high",
            Priority::Normal => "normal",
            Priority::Low => "low",
        },
        "timeout_ms": route.timeout_ms,
        "order": match route.order {
            Order::Session => "session",
            Order::None => "none",
        },
        "hash_on": hash_on(route.hash_on),
        "payload": match route.payload {
            PayloadKind::Json => "json",
            PayloadKind::Bytes => "bytes",
        },
        "idempotent": route.idempotent,
        "auth": if route.needs_user { "user" } else { "none" },
        "failover": match route.failover {
            Failover::Next => "next",
            Failover::None => "none",
        },
        "method": route.method.as_deref().unwrap_or_default(),
        "service_text": route.service_text,
    })
}

fn hash_on(hash_on: HashOn) -> &'static str {
    match hash_on {
        HashOn::User => "user",
        HashOn::Session => "session",
        HashOn::Key => "key",
    }
}

fn fault_name(fault: CallFault) -> &'static str {
    match fault {
        CallFault::NotConnected => "not_connected",
        CallFault::Refused => "refused",
        CallFault::GoingAway => "going_away",
        CallFault::Reset => "reset",
        CallFault::ConnectionLost => "connection_lost",
        CallFault::TimedOut => "timed_out",
        CallFault::Status => "status",
        CallFault::BadReply => "bad_reply",
        CallFault::TooLarge => "too_large",
    }
}
