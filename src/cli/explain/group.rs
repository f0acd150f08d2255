//! `shardgate explain --group`: the rule of a group and, by a gateway that runs, its home, members
//! and position.

use serde_json::{Value, json};

use crate::config::Config;
use crate::config::settings::{JoinBy, Keep, Tenants, word_of};

/// The explanation by the files, in the form of the admin endpoint's answer as far as the files
/// know it.
pub fn of_files(config: &Config, name: &str, tenant: &str) -> Value {
    let rule = config.gateway.push.rule(name);
    let mut why = Vec::new();
    if !tenant.is_empty() && config.gateway.auth.tenants == Tenants::One {
        why.push("auth.tenants is \"one\": no client has a tenant, so --tenant is ignored".into());
    }
    why.push(match rule {
        Some(rule) => format!(
            "[[group]] {:?} is the first rule that has the name: join = {:?}, keep = {:?}",
            rule.name.0,
            word_of(&JoinBy::WORDS, &rule.join),
            word_of(&Keep::WORDS, &rule.keep)
        ),
        None => format!(
            "NO_ROUTE: no [[group]] has a rule for {name}: clients may not join it, and pushes to \
             it are refused"
        ),
    });
    json!({
        "group": name,
        "tenant": tenant,
        "from": "configuration",
        "outcome": if rule.is_some() { "group" } else { "no_rule" },
        "rule": rule.map(|rule| json!({ "name": &*rule.name.0 })),
        "keep": rule.map(|rule| word_of(&Keep::WORDS, &rule.keep)),
        "why": why,
    })
}

/// Everything known of the group, one thing a line.
pub fn lines(body: &Value) -> String {
    let mut out = String::new();
    let mut line = |line: String| out += &format!("  {line}\n");
    for why in body["why"].as_array().into_iter().flatten() {
        line(why.as_str().map_or_else(|| why.to_string(), str::to_owned));
    }
    let position = &body["position"];
    if let (Some(epoch), Some(offset)) = (position["epoch"].as_str(), position["offset"].as_u64()) {
        line(format!("position: epoch {epoch}, offset {offset}"));
    }
    if let (Some(kept), Some(log)) = (body["kept_bytes"].as_u64(), body["log_bytes"].as_u64()) {
        line(format!("bytes: {kept} kept at home, {log} that members read"));
    }
    for shard in body["shards"].as_array().into_iter().flatten() {
        let number = |key: &str| shard[key].as_u64().unwrap_or(0);
        let (members, told, behind) = (number("members"), number("told"), number("behind"));
        let slow = match behind {
            0 => String::new(),
            n => format!("; the slowest lacks {n}"),
        };
        let at = number("shard");
        line(format!("shard {at}: {members} members, told up to offset {told}{slow}"));
    }
    for shard in body["silent_shards"].as_array().into_iter().flatten() {
        line(format!("shard {shard} did not answer in time"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_gateway_says_of_a_group_is_one_thing_a_line() {
        let body = json!({
            "why": ["shard 1 of 2 is its home"], "position": {"epoch": "0000002a", "offset": 7},
            "kept_bytes": 10, "log_bytes": 20, "silent_shards": [4],
            "shards": [{"shard": 0, "members": 3, "told": 7, "behind": 0},
                       {"shard": 1, "members": 1, "told": 7, "behind": 2}],
        });
        let wanted = [
            "  shard 1 of 2 is its home",
            "  position: epoch 0000002a, offset 7",
            "  bytes: 10 kept at home, 20 that members read",
            "  shard 0: 3 members, told up to offset 7",
            "  shard 1: 1 members, told up to offset 7; the slowest lacks 2",
            "  shard 4 did not answer in time",
        ];
        assert_eq!(lines(&body), wanted.map(|line| format!("{line}\n")).concat());
    }
}
