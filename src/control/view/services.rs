//! `/services` and `/shards`: each service and each shard by itself.

use serde_json::{Map, Value, json};

use super::health::shard_health;
use super::stats::by_shard;
use super::{
    Instance, Overview, instances_of, listed, mode, others, present, standing, tls, unreachable_why,
};
use crate::stats::Stage;

/// Services with their routes and instances.
pub fn services(overview: &Overview) -> Value {
    let snapshot = &overview.directory.snapshot;
    let all_routes = snapshot.all_routes();
    let one = |service: &super::Service| {
        let own = |(_, r): &(Option<&str>, &super::Route)| {
            std::ptr::eq(&snapshot.services[usize::from(r.service.0)], service)
        };
        let routes = all_routes.iter().copied().filter(own).map(|r| listed(snapshot, r));
        let instances = instances_of(overview, service).map(|i| instance(i, overview));
        let body = json!({
            "mode": mode(service.mode),
            "tls": tls(overview, &service.name),
            "panic": overview.directory.panicking.contains(&service.name),
            "routes": routes.collect::<Vec<_>>(),
            "instances": instances.collect::<Vec<_>>(),
        });
        (service.name.to_string(), body)
    };
    let all: Map<_, _> = present(overview).map(one).collect();
    json!({ "version": snapshot.version, "services": all })
}

fn instance(instance: &Instance, overview: &Overview) -> Value {
    let member = overview.directory.members.get(&instance.name);
    let (word, why) = standing(overview, instance.id);
    let unreachable = unreachable_why(overview, instance.id);
    json!({
        "id": &*instance.name,
        "address": instance.addresses.first().to_string(),
        "other_addresses": others(instance),
        "source": member.map(|m| &*m.source),
        "weight": instance.weight,
        "share_percent": instance.share.get(),
        "standing": word,
        "reachable": unreachable.is_none(),
        "why": why.or(unreachable),
        "draining": instance.draining,
        "held": member.is_some_and(|m| m.held),
        "shards": by_shard(instance.id, overview),
    })
}

/// Shards with the version of their snapshot, their core and their load.
pub fn shards(overview: &Overview) -> Value {
    let settings = &overview.directory.config.shards;
    let one = |shard: &super::ShardView| {
        let mut body = shard_health(shard);
        // `null` = chosen at the start, the N-th allowed core.
        body["core"] = settings.shard(usize::from(shard.shard.0)).core.into();
        if let Some(report) = shard.report.as_deref() {
            let gauges = &report.gauges;
            let stall = report.histograms.get(Stage::Stall);
            body["version"] = gauges.snapshot_version.into();
            body["connections"] = gauges.connections.into();
            body["sessions"] = gauges.sessions.into();
            body["unanswered"] = gauges.unanswered.into();
            body["queue"] = json!({
                "items": gauges.queue_items,
                "bytes": gauges.queue_bytes,
                "usage_ratio": gauges.usage_ratio,
                "is_throttling": gauges.is_throttling,
            });
            body["stalls"] = json!({
                "p50_us": stall.value_at_quantile(0.5),
                "p99_us": stall.value_at_quantile(0.99),
                "max_us": stall.max(),
            });
        }
        body
    };
    let version = overview.directory.snapshot.version;
    json!({ "version": version, "shards": overview.shards.iter().map(one).collect::<Vec<_>>() })
}
