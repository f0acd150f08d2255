//! `/connections`: counts, and a closer look at some.

use std::cmp::Reverse;

use serde_json::{Value, json};

use super::{Gathered, reports};
use crate::control::looks::Look;
use crate::ids::ShardId;
use crate::look::{ConnSeen, Question, Seen, TOP_MAX};
use crate::message::Encoding;

/// Counts a shard, and what `look` found when `question` was asked. The error is one line: the
/// session that was asked for is nowhere.
pub fn connections(
    found: &Gathered,
    question: Option<&Question>,
    look: Option<&Look>,
) -> Result<Value, String> {
    let shards: Vec<Value> = reports(found)
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
        reports(found).map(|report| of(&report.gauges)).sum()
    };
    let mut body = json!({
        "connections": sum(|g| g.connections),
        "sessions": sum(|g| g.sessions),
        "unanswered": sum(|g| g.unanswered),
        "outbox_bytes": sum(|g| g.outbox_bytes),
        "shards": shards,
    });
    let (Some(question), Some(look)) = (question, look) else { return Ok(body) };
    body["silent_shards"] = look.silent.iter().map(|shard| shard.0).collect();
    let mut seen = conns(look);
    match question {
        Question::Talkers(top) => {
            seen.sort_by_key(|(_, conn)| Reverse(conn.messages));
            seen.truncate((*top).min(TOP_MAX));
            body["top"] = seen.into_iter().map(|(shard, conn)| one(shard, conn)).collect();
            body["top_by"] = "messages read since the connection was opened".into();
        }
        Question::Session(session) => {
            let Some((shard, conn)) = seen.into_iter().next() else {
                let shown: String = session.chars().take(32).collect();
                return Err(format!("no connection has the session {shown:?}"));
            };
            body["session"] = one(shard, conn);
        }
        Question::Route { .. } => {}
    }
    Ok(body)
}

fn conns(look: &Look) -> Vec<(ShardId, &ConnSeen)> {
    let mut all = Vec::new();
    for (shard, seen) in &look.seen {
        if let Seen::Conns(list) = seen {
            all.extend(list.iter().map(|conn| (*shard, conn)));
        }
    }
    all
}

fn one(shard: ShardId, conn: &ConnSeen) -> Value {
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
        "unanswered": conn.unanswered,
        "unanswered_bytes": conn.unanswered_bytes,
        "outbox_bytes": conn.outbox_bytes,
        "paused": conn.paused,
        "age_ms": ms(conn.age_us),
        "heard_ms_ago": ms(conn.heard_us),
    })
}
