//! `/stats`: everything that is counted.

use serde_json::{Map, Value, json};

use super::health::{shard_health, status};
use super::{Overview, ProcessInfo, Sum, fault_name, mode, others, pushes, reports, seen_by};
use crate::ids::InstanceId;
use crate::message::Reason;
use crate::routing::{Instance, Snapshot};
use crate::stats::{Counter, Gauges, Histograms, InstanceReport, Report, Stage};

/// Counters, levels and times in sum, by shard and by instance.
pub fn stats(info: &ProcessInfo, overview: &Overview) -> Value {
    let sum = Sum::of(reports(overview));
    let mut all = counted(&sum);
    let shards = overview.shards.iter().map(|shard| {
        let mut one = shard_health(shard);
        if let (Some(report), Some(fields)) = (shard.report.as_deref(), one.as_object_mut()) {
            let of_one = Sum::of(std::iter::once(report));
            fields.extend(counted(&of_one));
            fields.insert("snapshot_version".into(), report.gauges.snapshot_version.into());
        }
        one
    });
    let snapshot_versions: Map<_, _> = reports(overview)
        .map(|r| (r.shard.to_string(), r.gauges.snapshot_version.into()))
        .collect();
    all.insert("shards".into(), shards.collect());
    all.insert("status".into(), status(overview).into());
    all.insert("node".into(), info.node.as_str().into());
    all.insert("boot_id".into(), format!("{:016x}", info.boot_id).into());
    all.insert("uptime_s".into(), info.started.elapsed().as_secs().into());
    all.insert("log_lines_dropped".into(), json!(info.log_dropped.as_ref().map(|d| d.get())));
    all.insert("push".into(), pushes::stats(&overview.pushes));
    all.insert("services".into(), services(&overview.directory.snapshot, overview));
    let versions = json!({
        "shardgate": env!("CARGO_PKG_VERSION"),
        "snapshot": overview.directory.snapshot.version,
        "snapshot_by_shard": snapshot_versions,
    });
    all.insert("versions".into(), versions);
    Value::Object(all)
}

/// Levels, counters, reasons, faults and times of one sum.
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
        ("sessions_resumable", g.sessions_resumable.into()),
        ("sessions_away", g.sessions_away.into()),
        ("session_kept_bytes", g.session_kept_bytes.into()),
        ("unauthenticated", g.unauthenticated.into()),
        ("limited_users", g.limited_users.into()),
        ("limited_addresses", g.limited_addresses.into()),
        ("unanswered", g.unanswered.into()),
        ("queue_items", g.queue_items.into()),
        ("queue_bytes", g.queue_bytes.into()),
        ("dedup_entries", g.dedup_entries.into()),
        ("dedup_bytes", g.dedup_bytes.into()),
        ("calls_in_flight", g.calls_in_flight.into()),
        ("slow_owners", g.slow_owners.into()),
        ("outbox_bytes", g.outbox_bytes.into()),
        ("connection_bytes", g.connection_bytes.into()),
        ("groups", groups(g)),
        ("sessions_indexed", g.sessions_indexed.into()),
        ("users_indexed", g.users_indexed.into()),
        ("pushes_waiting", g.pushes_waiting.into()),
        ("events_waiting", g.events_waiting.into()),
        ("push_waves", g.push_waves.into()),
        ("push_ids", g.push_ids.into()),
        ("group_lane_depth", g.group_lane_items.into()),
        ("counters", counters.into()),
        ("reasons", reasons.into()),
        ("call_faults", faults.into()),
        ("stages", stages.into()),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Groups and members. In a sum a group counts once for each shard with members of it.
fn groups(g: &Gauges) -> Value {
    json!({
        "groups": g.groups,
        "members": g.group_members,
        "log_bytes": g.group_log_bytes,
        "passes": g.group_passes,
    })
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

fn services(snapshot: &Snapshot, overview: &Overview) -> Value {
    let service = |(n, service): (usize, &crate::routing::Service)| {
        let instances = snapshot.instances.iter().filter(|i| usize::from(i.service.0) == n);
        let body = json!({
            "mode": mode(service.mode),
            "instances": instances.map(|i| instance(i, overview)).collect::<Vec<_>>(),
        });
        (service.name.to_string(), body)
    };
    let all: Map<_, _> = snapshot.services.iter().enumerate().map(service).collect();
    all.into()
}

/// An instance in sum and by shard: `connected` in the sum counts the shards that have a
/// connection.
fn instance(instance: &Instance, overview: &Overview) -> Value {
    let seen = |report| seen_by(report, instance.id);
    let add = |field: fn(&InstanceReport) -> u64| -> u64 {
        reports(overview).filter_map(seen).map(field).sum()
    };
    json!({
        "id": &*instance.name,
        "address": instance.addresses.first().to_string(),
        "other_addresses": others(instance),
        "weight": instance.weight,
        "connected": add(|i| i.connected.into()),
        "waiting": add(|i| i.waiting),
        "in_flight": add(|i| i.in_flight),
        "ok": add(|i| i.ok),
        "failed": add(|i| i.failed),
        "shards": by_shard(instance.id, overview),
    })
}

/// An instance as each shard reports it.
pub(super) fn by_shard(id: InstanceId, overview: &Overview) -> Vec<Value> {
    let one = |report: &Report| {
        let seen = seen_by(report, id)?;
        Some(json!({
            "shard": report.shard.0,
            "connected": seen.connected,
            "why": seen.why_down.as_deref(),
            "waiting": seen.waiting,
            "in_flight": seen.in_flight,
            "ok": seen.ok,
            "failed": seen.failed,
        }))
    };
    reports(overview).filter_map(one).collect()
}
