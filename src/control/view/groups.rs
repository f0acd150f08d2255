//! `/groups`: the largest groups, or one, as every shard has them.

use serde_json::{Value, json};

use super::{Overview, reports};
use crate::control::inspections::QueryResult;
use crate::ids::ShardId;
use crate::inspect::{GroupDetail, Inspection, TOP_MAX};
use crate::push::GroupName;

/// The names of the groups with the most places for members, as their homes told them: at most
/// `top`.
pub fn largest(result: &QueryResult, top: usize) -> Vec<GroupName> {
    let mut all = Vec::new();
    for (_, inspection) in &result.answers {
        if let Inspection::TopGroups(groups) = inspection {
            all.extend(groups.iter().map(|(name, places)| (*places, name)));
        }
    }
    all.sort_by(|(a, name), (b, other)| b.cmp(a).then_with(|| name.cmp(other)));
    all.into_iter().take(top.min(TOP_MAX)).map(|(_, name)| name.clone()).collect()
}

/// Counts in sum and by shard, and the groups that were asked for with what the shards have of
/// them.
pub fn groups(overview: &Overview, asked: Option<(&[GroupName], &QueryResult)>) -> Value {
    let mut sums = [0; 3];
    let shards: Vec<Value> = reports(overview)
        .map(|report| {
            let g = &report.gauges;
            let levels = [g.groups, g.group_members, g.group_log_bytes];
            sums.iter_mut().zip(levels).for_each(|(sum, level)| *sum += level);
            json!({
                "shard": report.shard.0,
                "groups": g.groups,
                "members": g.group_members,
                "log_bytes": g.group_log_bytes,
            })
        })
        .collect();
    let [_, members, log_bytes] = sums;
    let mut body = json!({ "members": members, "log_bytes": log_bytes, "shards": shards });
    let Some((names, result)) = asked else { return body };
    body["silent_shards"] = result.silent.iter().map(|shard| shard.0).collect();
    let mut top: Vec<_> =
        names.iter().enumerate().map(|(n, name)| found(result, n, name)).collect();
    top.sort_by_key(|found| std::cmp::Reverse(found.members()));
    body["top"] = top.iter().filter(|found| found.is_known()).map(|f| f.json(overview)).collect();
    body
}

/// A group with what each shard has of it.
struct Found<'a> {
    name: &'a GroupName,
    parts: Vec<(ShardId, &'a GroupDetail)>,
}

fn found<'a>(result: &'a QueryResult, index: usize, name: &'a GroupName) -> Found<'a> {
    let mut parts = Vec::new();
    for (shard, inspection) in &result.answers {
        if let Inspection::GroupDetails(details) = inspection
            && let Some(Some(detail)) = details.get(index)
        {
            parts.push((*shard, detail));
        }
    }
    Found { name, parts }
}

impl Found<'_> {
    fn is_known(&self) -> bool {
        !self.parts.is_empty()
    }

    fn members(&self) -> u64 {
        self.parts.iter().map(|(_, part)| part.sessions).sum()
    }

    fn json(&self, overview: &Overview) -> Value {
        let Self { name, parts } = self;
        let home = parts.iter().find_map(|(shard, part)| Some((shard, part.position?)));
        let position = home.map(|(_, at)| json!({ "epoch": at.epoch_text(), "offset": at.offset }));
        let slowest = parts.iter().max_by_key(|(_, part)| part.behind);
        let slowest = slowest.filter(|(_, part)| part.slowest.is_some());
        json!({
            "name": &*name.name,
            "tenant": self.tenant(overview),
            "rule": parts.first().map(|(_, part)| &*part.rule),
            "members": self.members(),
            "home": home.map(|(shard, _)| shard.0),
            "position": position,
            "kept_bytes": parts.iter().map(|(_, part)| part.kept_bytes).sum::<u64>(),
            "log_bytes": parts.iter().map(|(_, part)| part.log_bytes).sum::<u64>(),
            "slowest": slowest.map(|(shard, part)| json!({
                "session": part.slowest.as_ref().map(|session| session.as_str()),
                "shard": shard.0,
                "behind": part.behind,
                "behind_ms": part.behind_us / 1000,
            })),
            "shards": parts.iter().map(|(shard, part)| json!({
                "shard": shard.0,
                "members": part.sessions,
                "log_bytes": part.log_bytes,
                "behind": part.behind,
                "lags": part.is_lagging,
            })).collect::<Vec<_>>(),
        })
    }

    /// Name of the tenant; of one that neither the configuration nor a member here names, its
    /// number.
    fn tenant(&self, overview: &Overview) -> String {
        let told = self.parts.iter().find_map(|(_, part)| part.tenant.as_deref());
        let table = &overview.directory.snapshot.tenants;
        let configured = || table.get(self.name.tenant).map(|tenant| &*tenant.name);
        match (told.or_else(configured), self.name.tenant.0) {
            (Some(name), _) => name.to_owned(),
            (None, 0) => String::new(),
            (None, id) => format!("{id:016x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TenantId;

    #[test]
    fn the_largest_groups_are_those_with_the_most_places_on_all_shards() {
        let name = |name: &str| GroupName::new(TenantId::DEFAULT, name).expect("a name");
        let of = |shard: u16, groups: &[(&str, u64)]| {
            let groups = groups.iter().map(|(group, places)| (name(group), *places)).collect();
            (ShardId(shard), Inspection::TopGroups(groups))
        };
        let answers = vec![of(0, &[("a", 9), ("b", 2)]), of(1, &[("c", 5), ("d", 2)])];
        let result = QueryResult { answers, silent: Vec::new() };
        assert_eq!(largest(&result, 3), ["a", "c", "b"].map(name));
        assert_eq!(largest(&result, 0), []);
    }
}
