//! `/routing/stats`: counters under names that tools rely on, and that must not change. A test in
//! `control::tests` lists them.

use serde_json::{Value, json};

use super::{Overview, Sum, reports};
use crate::stats::{Counter, Counters, Gauges, Histograms, Stage};

/// Counters in sum and by shard.
pub fn routing_stats(overview: &Overview) -> Value {
    let sum = Sum::of(reports(overview));
    let mut all = routing(&sum.counters, &sum.gauges, &sum.histograms);
    let shards = reports(overview).map(|report| {
        let mut one = routing(&report.counters, &report.gauges, &report.histograms);
        one["shard"] = report.shard.0.into();
        one
    });
    all["shards"] = shards.collect();
    all
}

/// Ratio `part / (part + rest)`, and `none` if both are 0.
fn share(part: u64, rest: u64, none: f64) -> f64 {
    let whole = part + rest;
    if whole == 0 { none } else { part as f64 / whole as f64 }
}

/// The counters of one report. `success_rate` is of the dispatches that ended, 1 before the first.
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
