//! `/routing/explain?group=`: the rule of a group, the shard that numbers its pushes, and the
//! shards that are told of them.

use serde_json::{Value, json};

use super::Overview;
use super::explain::has_tenants;
use crate::config::settings::{GroupRule, JoinBy, Keep, PresenceKind, SlowMember, Who, word_of};
use crate::control::inspections::QueryResult;
use crate::ids::{ShardId, TenantId};
use crate::inspect::{GroupDetail, Inspection, InterestInfo, Query};
use crate::push::{GroupName, NameFault};

/// A group by the configuration in force, to which the shards add what they have of it.
pub struct GroupExplanation<'a> {
    name: GroupName,
    /// Name of the tenant, as it was asked for.
    tenant: &'a str,
    has_tenants: bool,
    rule: Option<&'a GroupRule>,
    home: ShardId,
    shards: usize,
}

impl<'a> GroupExplanation<'a> {
    /// Finds rule and home of a group. Where the gateway has one tenant, the one that was asked
    /// for is ignored.
    pub fn new(overview: &'a Overview, name: &str, tenant: &'a str) -> Result<Self, NameFault> {
        let has_tenants = has_tenants(overview);
        let name = GroupName::new(TenantId::of(if has_tenants { tenant } else { "" }), name)?;
        let rule = overview.directory.config.gateway.push.rule(&name.name);
        let shards = overview.shards.len();
        // Never more than 1,024, and one at least.
        let home = name.home(shards as u16);
        Ok(Self { rule: rule.map(|rule| &**rule), home, shards, name, tenant, has_tenants })
    }

    /// The query to the shards.
    pub fn query(&self) -> Query {
        Query::GroupDetails(vec![self.name.clone()])
    }

    /// The whole answer; `result` holds the shards' answers to [`Self::query`].
    pub fn json(&self, result: &QueryResult) -> Value {
        let parts: Vec<_> = parts(result).collect();
        let home = parts.iter().find(|(shard, _)| *shard == self.home).map(|(_, part)| *part);
        let interest = home.map_or(&[][..], |home| &home.interest);
        let position = home.and_then(|home| home.position);
        json!({
            "group": &*self.name.name,
            "tenant": self.tenant,
            "outcome": if self.rule.is_some() { "group" } else { "no_rule" },
            "rule": self.rule.map(rule),
            "keep": self.rule.map(|rule| word_of(&Keep::WORDS, &rule.keep)),
            "home": self.home.0,
            "position": position.map(|at| {
                json!({ "epoch": at.epoch_text(), "offset": at.offset })
            }),
            "members": parts.iter().map(|(_, part)| part.sessions).sum::<u64>(),
            "kept_bytes": parts.iter().map(|(_, part)| part.kept_bytes).sum::<u64>(),
            "log_bytes": parts.iter().map(|(_, part)| part.log_bytes).sum::<u64>(),
            "shards": interest.iter().map(|one| shard(one, &parts)).collect::<Vec<_>>(),
            "why": self.why(&parts, interest),
            "silent_shards": result.silent.iter().map(|shard| shard.0).collect::<Vec<_>>(),
        })
    }

    /// Sentences on what decides, and on what stands in the way.
    fn why(&self, parts: &[(ShardId, &GroupDetail)], interest: &[InterestInfo]) -> Vec<String> {
        let name = &self.name.name;
        let mut why = Vec::new();
        match (self.has_tenants, self.tenant) {
            (false, "") => {}
            (false, _) => why.push(
                "auth.tenants is \"one\": no client has a tenant, so tenant= is ignored".into(),
            ),
            (true, "") => why.push(
                "auth.tenants is \"many\": without tenant= this is the group of clients that have \
                 none"
                    .into(),
            ),
            (true, _) => {}
        }
        match self.rule {
            Some(rule) => why.push(format!(
                "[[group]] {:?} is the first rule that has the name: join = {:?}, keep = {:?}",
                rule.name.0,
                word_of(&JoinBy::WORDS, &rule.join),
                word_of(&Keep::WORDS, &rule.keep)
            )),
            None => why.push(format!(
                "NO_ROUTE: no [[group]] has a rule for {name}: clients may not join it, and pushes \
                 to it are refused"
            )),
        }
        let (home, shards) = (self.home, self.shards);
        why.push(format!(
            "shard {home} of {shards} is its home, by a hash of tenant and name: it numbers the \
             pushes"
        ));
        if parts.is_empty() {
            why.push("no shard knows it: it has neither members nor pushes".into());
        }
        let now = self.rule.map(|rule| &*rule.name.0);
        let differs = parts.iter().find(|(_, part)| Some(&*part.rule) != now);
        why.extend(differs.map(|(shard, part)| {
            format!("on shard {shard} it still works by the rule {:?}", part.rule)
        }));
        let lags = parts.iter().filter(|(_, part)| part.is_lagging);
        why.extend(lags.map(|(shard, _)| {
            format!(
                "shard {shard} cannot tell its members as fast as pushes come: meanwhile pushes to \
                 the group are refused with QUEUE_FULL"
            )
        }));
        why.extend(interest.iter().filter_map(|one| self.behind(one, parts)));
        why
    }

    /// Sentence on a shard that the home has not told everything yet.
    fn behind(&self, one: &InterestInfo, parts: &[(ShardId, &GroupDetail)]) -> Option<String> {
        let (_, home) = parts.iter().find(|(shard, _)| *shard == self.home)?;
        let lacks = home.position?.offset.checked_sub(one.told).filter(|lacks| *lacks > 0)?;
        Some(format!("shard {} was not told of the last {lacks} pushes yet", one.shard))
    }
}

/// A rule, by the keys of its table.
fn rule(rule: &GroupRule) -> Value {
    json!({
        "name": &*rule.name.0,
        "join": word_of(&JoinBy::WORDS, &rule.join),
        "publish": word_of(&Who::WORDS, &rule.publish),
        "list": word_of(&Who::WORDS, &rule.list),
        "members_max": rule.members_max,
        "keep": word_of(&Keep::WORDS, &rule.keep),
        "recent_ms": rule.recent_ms,
        "history_items": rule.history_items,
        "history_bytes": rule.history_bytes,
        "history_ms": rule.history_ms,
        "slow": word_of(&SlowMember::WORDS, &rule.slow),
        "presence": word_of(&PresenceKind::WORDS, &rule.presence),
        "names_max": rule.names_max,
        "presence_ms": rule.presence_ms,
    })
}

/// What the shards have of the group that was asked for.
fn parts(result: &QueryResult) -> impl Iterator<Item = (ShardId, &GroupDetail)> {
    result.answers.iter().filter_map(|(shard, inspection)| match inspection {
        Inspection::GroupDetails(details) => Some((*shard, details.first()?.as_ref()?)),
        Inspection::Conns(_)
        | Inspection::Route(_)
        | Inspection::Members(_)
        | Inspection::Groups(_)
        | Inspection::History(_)
        | Inspection::Sessions(_)
        | Inspection::TopGroups(_) => None,
    })
}

/// A shard that is told of pushes, and what it has of the group.
fn shard(one: &InterestInfo, parts: &[(ShardId, &GroupDetail)]) -> Value {
    let part = parts.iter().find(|(shard, _)| *shard == one.shard).map(|(_, part)| *part);
    json!({
        "shard": one.shard.0,
        "members": part.map_or(0, |part| part.sessions),
        "places": one.places,
        "told": one.told,
        "log_bytes": part.map_or(0, |part| part.log_bytes),
        "behind": part.map_or(0, |part| part.behind),
        "lags": part.is_some_and(|part| part.is_lagging),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::view::tests::gathered;
    use crate::push::Position;
    use std::sync::Arc;

    fn overview(keys: &str) -> Overview {
        let mut overview = gathered();
        let mut config = (*overview.directory.config).clone();
        let mut rule = GroupRule::new("room:*");
        rule.keep = Keep::History;
        config.gateway.push.groups = vec![Arc::new(rule)];
        if keys == "many" {
            config.gateway.auth.tenants = crate::config::settings::Tenants::Many;
        }
        overview.directory.config = Arc::new(config);
        overview
    }

    fn explained(overview: &Overview, name: &str, tenant: &str, result: &QueryResult) -> Value {
        GroupExplanation::new(overview, name, tenant).expect("a name").json(result)
    }

    #[test]
    fn a_group_is_explained_by_its_rule_its_home_and_the_shards_that_are_told() {
        let overview = overview("one");
        let interest =
            [(0, 7), (3, 5)].map(|(n, told)| InterestInfo { shard: ShardId(n), told, places: 4 });
        let home = GroupDetail {
            rule: "room:*".into(),
            sessions: 3,
            log_bytes: 10,
            kept_bytes: 20,
            position: Some(Position { epoch: 9, offset: 7 }),
            interest: interest.to_vec(),
            ..GroupDetail::default()
        };
        let other = GroupDetail {
            rule: "ro*".into(),
            sessions: 2,
            log_bytes: 5,
            is_lagging: true,
            ..GroupDetail::default()
        };
        let answers = [(0, Some(home)), (3, Some(other)), (4, None)]
            .map(|(shard, detail)| (ShardId(shard), Inspection::GroupDetails(vec![detail])));
        let result = QueryResult { answers: answers.to_vec(), silent: vec![ShardId(5)] };
        let said = explained(&overview, "room:7", "", &result);
        assert_eq!((&said["outcome"], &said["home"]), (&json!("group"), &json!(0)));
        assert_eq!((&said["rule"]["name"], &said["keep"]), (&json!("room:*"), &json!("history")));
        assert_eq!(said["position"], json!({"epoch": "00000009", "offset": 7}));
        assert_eq!((&said["members"], &said["log_bytes"]), (&json!(5), &json!(15)));
        let shards = [&said["shards"][0], &said["shards"][1]];
        assert_eq!(shards.map(|shard| shard["members"].as_u64()), [Some(3), Some(2)]);
        assert_eq!((&shards[1]["told"], &shards[1]["lags"]), (&json!(5), &json!(true)));
        let why = said["why"].to_string();
        for part in [
            "[[group]] \\\"room:*\\\" is the first rule",
            "shard 0 of 1 is its home",
            "on shard 3 it still works by the rule \\\"ro*\\\"",
            "shard 3 cannot tell its members",
            "shard 3 was not told of the last 2 pushes yet",
        ] {
            assert!(why.contains(part), "{part}: {why}");
        }
        assert!(!why.contains("shard 0 was not told"), "{why}");
        assert_eq!(said["silent_shards"], json!([5]));
    }

    #[test]
    fn a_group_without_a_rule_or_of_an_unnamed_tenant_says_so() {
        let nothing = QueryResult::default();
        let said = explained(&overview("one"), "lobby", "acme", &nothing);
        assert_eq!((&said["outcome"], &said["rule"]), (&json!("no_rule"), &Value::Null));
        let why = said["why"].to_string();
        for part in ["tenant= is ignored", "NO_ROUTE: no [[group]]", "no shard knows it"] {
            assert!(why.contains(part), "{part}: {why}");
        }
        let many = overview("many");
        let said = explained(&many, "room:7", "", &nothing);
        assert!(said["why"][0].as_str().is_some_and(|why| why.contains("clients that have none")));
        assert!(GroupExplanation::new(&many, "room 7", "acme").is_err());
    }
}
