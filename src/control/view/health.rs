//! `/health`: the state of everything, in one word and in full.
//!
//! Two questions are kept apart. Whether this process can serve is the HTTP code: 503 while shards
//! start, drain, fail or are silent. Whether all is well is `status`: a source that cannot be
//! reached or a service without healthy instances makes it `degraded` with code 200, because an
//! orchestrator must not kill gateways for an etcd that is away.

use std::time::Instant;

use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use super::{Overview, ProcessInfo, ShardState, ShardView, instances_of, present, seconds};
use super::{standing, unreachable_why};
use crate::config::{AwaitedTenants, Problem};
use crate::control::jwks::TENANT_SOURCE;
use crate::control::source_tables::RefusedTables;
use crate::control::sources::SourceState;
use crate::routing::Share;

/// Status of the shards in one word: a silent or failed shard makes it `degraded`.
pub fn status(overview: &Overview) -> &'static str {
    let any = |test: fn(&ShardView) -> bool| overview.shards.iter().any(test);
    if overview.draining {
        "draining"
    } else if any(|s| s.silent || s.state == ShardState::Failed) {
        "degraded"
    } else if any(|s| s.state == ShardState::Starting) {
        "starting"
    } else {
        "ok"
    }
}

/// Code and body of `/health`: 200 when all shards serve.
pub fn health(info: &ProcessInfo, overview: &Overview) -> (StatusCode, Value) {
    let of_shards = status(overview);
    let code = if of_shards == "ok" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let reasons = degraded_by(overview);
    let status = if of_shards == "ok" && !reasons.is_empty() { "degraded" } else { of_shards };
    let silent: Vec<_> = overview.shards.iter().filter(|s| s.silent).map(|s| s.shard.0).collect();
    let shards: Vec<_> = overview.shards.iter().map(shard_health).collect();
    let directory = &overview.directory;
    let told = |problems: &[Problem]| -> Vec<String> {
        problems.iter().map(ToString::to_string).collect()
    };
    let sources: Map<_, _> = directory
        .sources
        .iter()
        .map(|(name, state)| (name.to_string(), source(state, overview.at)))
        .collect();
    let last_reload = directory.reloads.last.as_ref().map(|(at, problems)| {
        json!({
            "ok": problems.is_empty(),
            "ago_s": overview.at.saturating_duration_since(*at).as_secs(),
            "problems": problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    });
    let body = json!({
        "status": status,
        "degraded_by": reasons,
        "shards": shards,
        "silent_shards": silent,
        "sources": sources,
        "services": services(overview),
        "routes_refused": told(&directory.refused.routes.problems),
        "tenants_refused": told(&directory.refused.tenants.problems),
        "warnings": directory.warnings,
        "last_reload": last_reload,
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": info.started.elapsed().as_secs(),
    });
    (code, body)
}

/// State of one shard, for monitoring.
pub fn shard_health(shard: &ShardView) -> Value {
    json!({
        "shard": shard.shard.0,
        "state": if shard.silent { "silent" } else { shard.state.name() },
        "answered_ms_ago": shard.answered.map(|ago| ago.as_millis() as u64),
    })
}

/// Reasons why not all is well, a sentence each.
fn degraded_by(overview: &Overview) -> Vec<String> {
    let mut reasons = Vec::new();
    for shard in &overview.shards {
        if shard.silent {
            reasons.push(format!("shard {} does not answer", shard.shard));
        } else if shard.state == ShardState::Failed {
            reasons.push(format!("shard {} failed", shard.shard));
        }
    }
    let directory = &overview.directory;
    // A tenant whose keys cannot be fetched concerns nobody else.
    let common = directory.sources.iter().filter(|(name, _)| !name.starts_with(TENANT_SOURCE));
    for (name, state) in common {
        if let Some((_, why)) = &state.stale {
            reasons.push(format!("source {name}: {why}"));
        }
    }
    for name in &directory.panicking {
        reasons.push(format!("service {name}: too few instances are healthy, so all are used"));
    }
    for service in present(overview) {
        let mut all = instances_of(overview, service).peekable();
        if all.peek().is_some() && usable(overview, service) == 0 {
            let why = |i: &crate::routing::Instance| {
                let why = standing(overview, i.id).1.or(unreachable_why(overview, i.id))?;
                Some(format!(": {} at {}: {why}", i.name, i.addresses))
            };
            let why = all.find_map(why).unwrap_or_default();
            reasons.push(format!("service {}: no instance takes messages{why}", service.name));
        }
    }
    let RefusedTables { routes, tenants } = &directory.refused;
    for (what, refused) in [("routes", routes), ("tenants", tenants)] {
        if !refused.problems.is_empty() {
            let instead = refused.instead();
            reasons.push(format!("the {what} of a source were refused: {instead}"));
        }
    }
    reasons.extend(awaits(&directory.config.awaited));
    let kept = |problem| format!("what was read before of a tenant's keys stays: {problem}");
    reasons.extend(directory.keys_kept.iter().map(kept));
    reasons
}

/// The reason why users of some tenants cannot sign in, if that is so.
fn awaits(awaited: &AwaitedTenants) -> Option<String> {
    let which = match awaited {
        AwaitedTenants::Named(names) if names.is_empty() => return None,
        AwaitedTenants::Named(names) => format!("{} tenants of a source are", names.len()),
        AwaitedTenants::Any => "tenants of a source are not known yet, or over 1,000, and".into(),
    };
    Some(format!("{which} not in force: their users are asked to come back"))
}

/// State of a source in one word: `silent` = it has not answered since the start.
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
        "tenants": state.tenants,
        "bad": bad.collect::<Vec<_>>(),
    })
}

fn usable(overview: &Overview, service: &crate::routing::Service) -> usize {
    instances_of(overview, service)
        .filter(|i| !i.draining && i.share != Share::NONE)
        .filter(|i| unreachable_why(overview, i.id).is_none())
        .count()
}

fn services(overview: &Overview) -> Map<String, Value> {
    let directory = &overview.directory;
    let one = |service| {
        let service: &crate::routing::Service = service;
        let held = |i: &&crate::routing::Instance| {
            directory.members.get(&i.name).is_some_and(|member| member.held)
        };
        let body = json!({
            "instances": instances_of(overview, service).count(),
            "usable": usable(overview, service),
            "panic": directory.panicking.contains(&service.name),
            "held": instances_of(overview, service).filter(held).count(),
        });
        (service.name.to_string(), body)
    };
    present(overview).map(one).collect()
}
