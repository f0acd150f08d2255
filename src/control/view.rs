//! What the admin endpoint shows: reports of shards as JSON, each shard's and the sum.

use std::time::Instant;

use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use super::board::{ShardState, ShardView};
use super::{Gathered, log::DroppedLines};
use crate::config::snapshot::{Instance, Mode, Snapshot};
use crate::ids::InstanceId;
use crate::message::{CallFault, Reason};
use crate::stats::{Counter, Counters, Gauges, Histograms, InstanceReport, Report, Stage};

/// What is known without asking a shard.
pub struct About {
    pub node: String,
    pub boot_id: u64,
    pub started: Instant,
    pub log_dropped: Option<DroppedLines>,
}

/// The sum of some shards' reports.
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
            add_gauges(&mut sum.gauges, &report.gauges);
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

/// Levels add up, but for the fill (fullest shard's), throttling (any) and the version (oldest).
fn add_gauges(sum: &mut Gauges, one: &Gauges) {
    let oldest = match sum.snapshot_version {
        0 => one.snapshot_version,
        version => version.min(one.snapshot_version),
    };
    *sum = Gauges {
        connections: sum.connections + one.connections,
        sessions: sum.sessions + one.sessions,
        unanswered: sum.unanswered + one.unanswered,
        queue_items: sum.queue_items + one.queue_items,
        queue_bytes: sum.queue_bytes + one.queue_bytes,
        usage_ratio: sum.usage_ratio.max(one.usage_ratio),
        is_throttling: sum.is_throttling || one.is_throttling,
        cache_entries: sum.cache_entries + one.cache_entries,
        cache_active: sum.cache_active + one.cache_active,
        dedup_entries: sum.dedup_entries + one.dedup_entries,
        dedup_bytes: sum.dedup_bytes + one.dedup_bytes,
        calls_in_flight: sum.calls_in_flight + one.calls_in_flight,
        outbox_bytes: sum.outbox_bytes + one.outbox_bytes,
        snapshot_version: oldest,
    };
}

fn reports(found: &Gathered) -> impl Iterator<Item = &Report> {
    found.shards.iter().filter_map(|shard| shard.report.as_deref())
}

/// The one word for the whole: a shard that is silent or failed makes it `degraded`.
fn status(found: &Gathered) -> &'static str {
    let any = |test: fn(&ShardView) -> bool| found.shards.iter().any(test);
    if found.draining {
        "draining"
    } else if any(|s| s.silent || s.state == ShardState::Failed) {
        "degraded"
    } else if any(|s| s.state == ShardState::Starting) {
        "starting"
    } else {
        "ok"
    }
}

/// `/health`: 200 only when status is `ok`.
pub fn health(about: &About, found: &Gathered) -> (StatusCode, Value) {
    let status = status(found);
    let code = if status == "ok" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let silent: Vec<_> = found.shards.iter().filter(|s| s.silent).map(|s| s.shard.0).collect();
    let shards: Vec<_> = found.shards.iter().map(shard_health).collect();
    let body = json!({
        "status": status,
        "shards": shards,
        "silent_shards": silent,
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": about.started.elapsed().as_secs(),
    });
    (code, body)
}

fn shard_health(shard: &ShardView) -> Value {
    json!({
        "shard": shard.shard.0,
        "state": if shard.silent { "silent" } else { shard.state.name() },
        "answered_ms_ago": shard.answered.map(|ago| ago.as_millis() as u64),
    })
}

/// `/routing/stats`: the names that tools rely on, in sum and a shard.
pub fn routing_stats(found: &Gathered) -> Value {
    let sum = Sum::of(reports(found));
    let mut all = routing(&sum.counters, &sum.gauges, &sum.histograms);
    let shards = reports(found).map(|report| {
        let mut one = routing(&report.counters, &report.gauges, &report.histograms);
        one["shard"] = report.shard.0.into();
        one
    });
    all["shards"] = shards.collect();
    all
}

/// `part` of `part + rest`, and `none` of nothing.
fn share(part: u64, rest: u64, none: f64) -> f64 {
    let whole = part + rest;
    if whole == 0 { none } else { part as f64 / whole as f64 }
}

/// One `/routing/stats` object. `success_rate` is of the dispatches that ended, 1 before the first.
fn routing(counters: &Counters, gauges: &Gauges, histograms: &Histograms) -> Value {
    let n = |counter| counters.get(counter);
    let (hits, misses) = (n(Counter::CacheHits), n(Counter::CacheMisses));
    let (ok, failed) = (n(Counter::DispatchOk), n(Counter::DispatchFailed));
    let errors = n(Counter::SystemErrors)
        + n(Counter::BusinessErrors)
        + n(Counter::GatewayErrors)
        + n(Counter::BadMessages);
    json!({
        "routing": {
            "total_routes": hits + misses,
            "cache_hits": hits,
            "cache_misses": misses,
            "failed_routes": n(Counter::FailedRoutes),
        },
        "cache": {
            "total_entries": gauges.cache_entries,
            "active_entries": gauges.cache_active,
            "hit_rate": share(hits, misses, 0.0),
        },
        "queue": {
            "size": gauges.queue_items,
            "monitor": {
                "enqueue_count": n(Counter::Enqueued),
                "dequeue_count": n(Counter::Dequeued),
                "duplicate_count": n(Counter::Duplicates),
                "rejected_count": n(Counter::QueueRejected),
            },
        },
        "backpressure": {
            "usage_ratio": gauges.usage_ratio,
            "is_throttling": gauges.is_throttling,
        },
        "dispatch": {
            "total_dispatched": n(Counter::Dispatched),
            "successful_dispatches": ok,
            "failed_dispatches": failed,
            "avg_latency_ms": histograms.get(Stage::RoundTrip).mean() / 1000.0,
            "success_rate": share(ok, failed, 1.0),
        },
        "handlers": {
            "system": n(Counter::SystemMessages),
            "business": n(Counter::BusinessMessages),
            "gateway": n(Counter::GatewayMessages),
            "errors": errors,
        },
    })
}

/// `/stats`: everything counted.
pub fn stats(about: &About, found: &Gathered) -> Value {
    let sum = Sum::of(reports(found));
    let mut all = counted(&sum);
    let shards = found.shards.iter().map(|shard| {
        let mut one = shard_health(shard);
        if let (Some(report), Some(fields)) = (shard.report.as_deref(), one.as_object_mut()) {
            let of_one = Sum::of(std::iter::once(report));
            fields.extend(counted(&of_one));
            fields.insert("snapshot_version".into(), report.gauges.snapshot_version.into());
        }
        one
    });
    let snapshot_versions: Map<_, _> =
        reports(found).map(|r| (r.shard.to_string(), r.gauges.snapshot_version.into())).collect();
    all.insert("shards".into(), shards.collect());
    all.insert("status".into(), status(found).into());
    all.insert("node".into(), about.node.as_str().into());
    all.insert("boot_id".into(), format!("{:016x}", about.boot_id).into());
    all.insert("uptime_s".into(), about.started.elapsed().as_secs().into());
    all.insert("log_lines_dropped".into(), json!(about.log_dropped.as_ref().map(|d| d.get())));
    all.insert("services".into(), services(&found.directory.snapshot, found));
    let versions = json!({
        "shardgate": env!("CARGO_PKG_VERSION"),
        "snapshot": found.directory.snapshot.version,
        "snapshot_by_shard": snapshot_versions,
    });
    all.insert("versions".into(), versions);
    Value::Object(all)
}

/// Levels, counters, reasons, faults and times.
fn counted(sum: &Sum) -> Map<String, Value> {
    let g = &sum.gauges;
    let counters: Map<_, _> =
        Counter::ALL.iter().map(|&c| (c.name().to_owned(), sum.counters.get(c).into())).collect();
    let reasons: Map<_, _> = Reason::ALL
        .iter()
        .zip(sum.reasons)
        .map(|(reason, n)| (reason.name().to_owned(), n.into()))
        .collect();
    let faults: Map<_, _> =
        sum.faults.iter().map(|&(fault, n)| (fault_name(fault).to_owned(), n.into())).collect();
    let stages: Map<_, _> =
        Stage::ALL.iter().map(|&s| (s.name().to_owned(), stage(&sum.histograms, s))).collect();
    let fields = [
        ("connections", g.connections.into()),
        ("sessions", g.sessions.into()),
        ("unanswered", g.unanswered.into()),
        ("queue_items", g.queue_items.into()),
        ("queue_bytes", g.queue_bytes.into()),
        ("dedup_entries", g.dedup_entries.into()),
        ("dedup_bytes", g.dedup_bytes.into()),
        ("calls_in_flight", g.calls_in_flight.into()),
        ("outbox_bytes", g.outbox_bytes.into()),
        ("counters", counters.into()),
        ("reasons", reasons.into()),
        ("call_faults", faults.into()),
        ("stages", stages.into()),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn stage(histograms: &Histograms, stage: Stage) -> Value {
    let histogram = histograms.get(stage);
    let at = |quantile| histogram.value_at_quantile(quantile);
    json!({
        "count": histogram.len(),
        "p50_us": at(0.5),
        "p90_us": at(0.9),
        "p99_us": at(0.99),
        "p999_us": at(0.999),
        "max_us": histogram.max(),
    })
}

fn fault_name(fault: CallFault) -> &'static str {
    match fault {
        CallFault::NotConnected => "not_connected",
        CallFault::Refused => "refused",
        CallFault::Reset => "reset",
        CallFault::ConnectionLost => "connection_lost",
        CallFault::TimedOut => "timed_out",
        CallFault::Status => "status",
        CallFault::BadReply => "bad_reply",
    }
}

fn services(snapshot: &Snapshot, found: &Gathered) -> Value {
    let service = |(n, service): (usize, &crate::config::snapshot::Service)| {
        let instances = snapshot.instances.iter().filter(|i| usize::from(i.service.0) == n);
        let body = json!({
            "mode": match service.mode { Mode::Batch => "batch", Mode::Unary => "unary" },
            "instances": instances.map(|i| instance(i, found)).collect::<Vec<_>>(),
        });
        (service.name.to_string(), body)
    };
    let all: Map<_, _> = snapshot.services.iter().enumerate().map(service).collect();
    all.into()
}

/// An instance: `connected` in the sum counts the shards that have a connection.
fn instance(instance: &Instance, found: &Gathered) -> Value {
    let seen = |report| seen_by(report, instance.id);
    let add = |field: fn(&InstanceReport) -> u64| -> u64 {
        reports(found).filter_map(seen).map(field).sum()
    };
    let shards = reports(found).filter_map(|report| {
        let seen = seen(report)?;
        Some(json!({
            "shard": report.shard.0,
            "connected": seen.connected,
            "waiting": seen.waiting,
            "in_flight": seen.in_flight,
            "ok": seen.ok,
            "failed": seen.failed,
        }))
    });
    json!({
        "id": &*instance.name,
        "address": instance.address.to_string(),
        "weight": instance.weight,
        "connected": add(|i| i.connected.into()),
        "waiting": add(|i| i.waiting),
        "in_flight": add(|i| i.in_flight),
        "ok": add(|i| i.ok),
        "failed": add(|i| i.failed),
        "shards": shards.collect::<Vec<_>>(),
    })
}

fn seen_by(report: &Report, id: InstanceId) -> Option<&InstanceReport> {
    report.instances.iter().find(|i| i.instance == id)
}
