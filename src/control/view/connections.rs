//! `/connections`: counts, and the connections that a query asks for.

use std::cmp::Reverse;

use serde_json::{Value, json};

use super::{Overview, reports};
use crate::control::inspections::QueryResult;
use crate::ids::ShardId;
use crate::inspect::{ConnInfo, Inspection, Query, TOP_MAX};
use crate::message::Encoding;

/// The order of connections, for people: the figures are estimates that hold for one processor, so
/// they say who costs more than who.
const TOP_BY: &str = "work since the connection was opened: what it sent and what was sent to it, \
                      in units of about a nanosecond of a core";

/// Counts in sum and by shard, and the connections of `inspected`: a query with the shards'
/// answers. The error is one line: no connection has the session that was asked for.
pub fn connections(
    overview: &Overview,
    inspected: Option<(&Query, &QueryResult)>,
) -> Result<Value, String> {
    let shards: Vec<Value> = reports(overview)
        .map(|report| {
            json!({
                "shard": report.shard.0,
                "connections": report.gauges.connections,
                "sessions": report.gauges.sessions,
                "unanswered": report.gauges.unanswered,
                "outbox_bytes": report.gauges.outbox_bytes,
            })
        })
        .collect();
    let sum = |of: fn(&crate::stats::Gauges) -> u64| -> u64 {
        reports(overview).map(|report| of(&report.gauges)).sum()
    };
    let mut body = json!({
        "connections": sum(|g| g.connections),
        "sessions": sum(|g| g.sessions),
        "unanswered": sum(|g| g.unanswered),
        "outbox_bytes": sum(|g| g.outbox_bytes),
        "shards": shards,
    });
    let Some((query, result)) = inspected else { return Ok(body) };
    body["silent_shards"] = result.silent.iter().map(|shard| shard.0).collect();
    let mut conns = conns(result);
    match query {
        Query::TopTalkers(top) => {
            conns.sort_by_key(|(_, conn)| Reverse(conn.work));
            conns.truncate((*top).min(TOP_MAX));
            body["top"] = conns.into_iter().map(|(shard, conn)| one(shard, conn)).collect();
            body["top_by"] = TOP_BY.into();
        }
        Query::Session(session) => {
            let Some((shard, conn)) = conns.into_iter().next() else {
                let shown: String = session.chars().take(32).collect();
                return Err(format!("no connection has the session {shown:?}"));
            };
            body["session"] = one(shard, conn);
        }
        Query::Route { .. }
        | Query::Members { .. }
        | Query::Groups(_)
        | Query::History { .. }
        | Query::SessionsOf { .. }
        | Query::TopGroups(_)
        | Query::GroupDetails(_) => {}
    }
    Ok(body)
}

fn conns(result: &QueryResult) -> Vec<(ShardId, &ConnInfo)> {
    let mut all = Vec::new();
    for (shard, inspection) in &result.answers {
        if let Inspection::Conns(list) = inspection {
            all.extend(list.iter().map(|conn| (*shard, conn)));
        }
    }
    all
}

fn one(shard: ShardId, conn: &ConnInfo) -> Value {
    let ms = |us: u64| us / 1000;
    json!({
        "session": conn.session.as_str(),
        "shard": shard.0,
        "peer": conn.peer.to_string(),
        "phase": conn.phase,
        "encoding": match conn.encoding {
            Encoding::Json => "json",
            Encoding::Protobuf => "protobuf",
        },
        "messages": conn.messages,
        "work": conn.work,
        "unanswered": conn.unanswered,
        "unanswered_bytes": conn.unanswered_bytes,
        "outbox_bytes": conn.outbox_bytes,
        "paused": conn.paused,
        "age_ms": ms(conn.age_us),
        "heard_ms_ago": ms(conn.heard_us),
    })
}
