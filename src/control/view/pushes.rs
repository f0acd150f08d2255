//! Pushes on their way from callers to the shards: callers, counts and times.

use prometheus::proto::{MetricFamily, MetricType};
use serde_json::{Map, Value, json};

use super::metrics::{count, family, gauge, times};
use crate::config::settings::{Pattern, PushVerb};
use crate::control::push::{CallerTally, Door, KINDS, PushView, kind_name};
use crate::message::Reason;

/// The part of `/stats`.
pub fn stats(view: &PushView) -> Value {
    let times = &view.tally.times;
    let callers: Map<_, _> =
        view.tally.callers.iter().map(|(name, tally)| (name.to_string(), counts(tally))).collect();
    json!({
        "address": view.address.map(|address| address.to_string()),
        "callers": callers,
        "unknown_callers": view.tally.unknown,
        "awaited": view.awaited,
        "waiting": view.waiting,
        "times": {
            "count": times.len(),
            "p50_us": times.value_at_quantile(0.5),
            "p99_us": times.value_at_quantile(0.99),
            "max_us": times.max(),
        },
    })
}

/// `/push/callers`: the callers in force, with their rights. No tokens.
pub fn callers(view: &PushView) -> Value {
    let none = CallerTally::default();
    let texts = |patterns: &[Pattern]| -> Vec<String> {
        patterns.iter().map(|pattern| pattern.0.to_string()).collect()
    };
    let caller = |caller: &crate::control::push::CallerInfo| {
        let tally = view.tally.callers.get(&caller.name).unwrap_or(&none);
        let rights = &caller.rights;
        json!({
            "name": &*caller.name,
            "tenants": texts(&rights.tenants),
            "to": rights.to.iter().map(|kind| kind_name(*kind)).collect::<Vec<_>>(),
            "groups": texts(&rights.groups),
            "may": rights.may.iter().map(|verb| verb_name(*verb)).collect::<Vec<_>>(),
            "priority_max": caller.priority_max.name(),
            "pushes_per_s": caller.pushes_per_s,
            "deliveries_per_s": caller.deliveries_per_s,
            "pushes": tally.pushes(),
            "deliveries": tally.deliveries,
            "refused": tally.refused(),
        })
    };
    let callers: Vec<_> = view.callers.iter().map(|one| caller(one)).collect();
    json!({ "address": view.address.map(|address| address.to_string()), "callers": callers })
}

fn verb_name(verb: PushVerb) -> &'static str {
    match verb {
        PushVerb::Push => "push",
        PushVerb::Join => "join",
        PushVerb::Read => "read",
        PushVerb::Disconnect => "disconnect",
    }
}

/// Counts of a caller: those that are not 0.
fn counts(tally: &CallerTally) -> Value {
    let mut pushes = Map::new();
    for (door, of_door) in Door::ALL.into_iter().zip(tally.pushes) {
        let kinds = KINDS.into_iter().zip(of_door).filter(|(_, n)| *n > 0);
        let kinds: Map<_, _> =
            kinds.map(|(kind, n)| (kind_name(kind).to_owned(), n.into())).collect();
        pushes.insert(door.name().into(), kinds.into());
    }
    let reasons = Reason::ALL.iter().zip(tally.refused).filter(|(_, n)| *n > 0);
    let refused: Map<_, _> =
        reasons.map(|(reason, n)| (reason.name().to_owned(), n.into())).collect();
    json!({ "pushes": pushes, "refused": refused, "deliveries": tally.deliveries })
}

/// The families of `/metrics`, if there are callers.
pub fn metrics(view: &PushView, out: &mut Vec<MetricFamily>) {
    if view.address.is_none() {
        return;
    }
    let (mut pushes, mut refused, mut deliveries) = (Vec::new(), Vec::new(), Vec::new());
    for (name, tally) in &view.tally.callers {
        for (door, of_door) in Door::ALL.into_iter().zip(tally.pushes) {
            let kinds = KINDS.into_iter().zip(of_door).filter(|(_, n)| *n > 0);
            pushes.extend(kinds.map(|(kind, n)| {
                let labels = [("caller", &**name), ("door", door.name()), ("to", kind_name(kind))];
                count(&labels, n)
            }));
        }
        let reasons = Reason::ALL.iter().zip(tally.refused).filter(|(_, n)| *n > 0);
        refused.extend(
            reasons.map(|(reason, n)| count(&[("caller", name), ("reason", reason.name())], n)),
        );
        deliveries.push(count(&[("caller", name)], tally.deliveries));
    }
    let mut counter = |name, help, metrics| {
        out.push(family(name, help, MetricType::COUNTER, metrics));
    };
    counter("push_taken_total", "Pushes that went to the shards.", pushes);
    counter("push_refused_total", "Pushes and calls of callers that were refused.", refused);
    counter(
        "push_deliveries_total",
        "Deliveries of pushes, as far as they are counted.",
        deliveries,
    );
    let unknown = vec![count(&[], view.tally.unknown)];
    counter("push_unknown_callers_total", "Calls without a good token.", unknown);
    let awaited = [gauge(&[], view.awaited as f64)];
    let help = "Pushes and other work whose receipts are awaited.";
    out.push(family("push_awaited", help, MetricType::GAUGE, awaited));
    let waiting = view.waiting.iter().enumerate();
    let waiting = waiting.map(|(shard, n)| gauge(&[("shard", &shard.to_string())], *n as f64));
    let help = "Pushes and other work of callers and services on the way to the shard.";
    out.push(family("push_lane_depth", help, MetricType::GAUGE, waiting));
    let all = [times(&[], &view.tally.times)];
    let help = "Time from a whole call of a caller to its answer.";
    out.push(family("push_call_seconds", help, MetricType::HISTOGRAM, all));
}
