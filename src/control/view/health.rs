//! `/health`: how everything is, in a word and in full.
//!
//! Two questions are kept apart. Whether this process can serve is the HTTP code: 503 while shards
//! start, drain, fail or are silent. Whether all is well is `status`: a source that cannot be asked
//! or a service without healthy instances makes it `degraded` with code 200, because an
//! orchestrator must not kill gateways for an etcd that is away.

use std::time::Instant;

use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use super::{Overview, ProcessInfo, ShardState, ShardView, instances_of, present, seconds};
use crate::control::sources::SourceState;
use crate::routing::Share;

/// The one word for the shards: one that is silent or failed makes them `degraded`.
pub fn status(found: &Overview) -> &'static str {
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

/// `/health`: 200 when all shards serve.
pub fn health(about: &ProcessInfo, found: &Overview) -> (StatusCode, Value) {
    let of_shards = status(found);
    let code = if of_shards == "ok" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let reasons = degraded_by(found);
    let status = if of_shards == "ok" && !reasons.is_empty() { "degraded" } else { of_shards };
    let silent: Vec<_> = found.shards.iter().filter(|s| s.silent).map(|s| s.shard.0).collect();
    let shards: Vec<_> = found.shards.iter().map(shard_health).collect();
    let directory = &found.directory;
    let refused = directory.routes_refused.iter().map(ToString::to_string);
    let sources: Map<_, _> = directory
        .sources
        .iter()
        .map(|(name, state)| (name.to_string(), source(state, found.at)))
        .collect();
    let last_reload = directory.reloads.last.as_ref().map(|(at, problems)| {
        json!({
            "ok": problems.is_empty(),
            "ago_s": found.at.saturating_duration_since(*at).as_secs(),
            "problems": problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    });
    let body = json!({
        "status": status,
        "degraded_by": reasons,
        "shards": shards,
        "silent_shards": silent,
        "sources": sources,
        "services": services(found),
        "routes_refused": refused.collect::<Vec<_>>(),
        "warnings": directory.warnings,
        "last_reload": last_reload,
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": about.started.elapsed().as_secs(),
    });
    (code, body)
}

/// One shard, as it is for supervisors.
pub fn shard_health(shard: &ShardView) -> Value {
    json!({
        "shard": shard.shard.0,
        "state": if shard.silent { "silent" } else { shard.state.name() },
        "answered_ms_ago": shard.answered.map(|ago| ago.as_millis() as u64),
    })
}

/// Why not all is well, a sentence each.
fn degraded_by(found: &Overview) -> Vec<String> {
    let mut reasons = Vec::new();
    for shard in &found.shards {
        if shard.silent {
            reasons.push(format!("shard {} does not answer", shard.shard));
        } else if shard.state == ShardState::Failed {
            reasons.push(format!("shard {} failed", shard.shard));
        }
    }
    let directory = &found.directory;
    for (name, state) in &directory.sources {
        if let Some((_, why)) = &state.stale {
            reasons.push(format!("source {name}: {why}"));
        }
    }
    for name in &directory.panicking {
        reasons.push(format!("service {name}: too few instances are healthy, all are used"));
    }
    for service in present(found) {
        let all = instances_of(found, service).count();
        if all > 0 && usable(found, service) == 0 {
            reasons.push(format!("service {}: no instance takes messages", service.name));
        }
    }
    if !directory.routes_refused.is_empty() {
        reasons.push("routes of a source were refused: those in force stay".into());
    }
    reasons
}

/// What a source is worth now: `silent` has never told anything.
pub fn source_state(state: &SourceState) -> &'static str {
    match (&state.stale, state.answered) {
        (_, false) => "silent",
        (Some(_), true) => "stale",
        (None, true) => "fresh",
    }
}

fn source(state: &SourceState, at: Instant) -> Value {
    let bad = state.bad.iter().map(|(at, why)| json!({ "at": at, "why": why }));
    let since = |(since, _): &(Instant, String)| seconds(at.saturating_duration_since(*since));
    json!({
        "state": source_state(state),
        "stale_s": state.stale.as_ref().map(since),
        "why": state.stale.as_ref().map(|(_, why)| why),
        "instances": state.instances,
        "routes": state.routes,
        "bad": bad.collect::<Vec<_>>(),
    })
}

fn usable(found: &Overview, service: &crate::routing::Service) -> usize {
    instances_of(found, service).filter(|i| !i.draining && i.share != Share::NONE).count()
}

fn services(found: &Overview) -> Map<String, Value> {
    let directory = &found.directory;
    let one = |service| {
        let service: &crate::routing::Service = service;
        let held = |i: &&crate::routing::Instance| {
            directory.members.get(&i.name).is_some_and(|member| member.held)
        };
        let body = json!({
            "instances": instances_of(found, service).count(),
            "usable": usable(found, service),
            "panic": directory.panicking.contains(&service.name),
            "held": instances_of(found, service).filter(held).count(),
        });
        (service.name.to_string(), body)
    };
    present(found).map(one).collect()
}
