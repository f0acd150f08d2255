//! Answers to pushes, made of what shards told of them.

use std::collections::BTreeMap;

use super::receipts::Outcome;
use super::refusal::Refused;
use crate::ids::ShardId;
use crate::message::Reason;
use crate::push::{Counts, GroupName, Position};
use crate::wire::push::generated as proto;

/// What became of one push: of one job, or of one a group.
pub type Fates = Vec<(Option<GroupName>, Outcome)>;

/// The answer to a push that was refused.
pub fn refused(refused: &Refused) -> proto::PushResult {
    proto::PushResult {
        status: refused.reason.status(),
        reason: refused.reason.name().into(),
        message: refused.why.clone(),
        retry_after_ms: refused.retry_after_ms,
        ..Default::default()
    }
}

/// The answer to a push that was sent, with counts if they are awaited.
pub fn sent(fates: &Fates, has_counts: bool, wait_ms: u64) -> proto::PushResult {
    let mut result = match fault(fates, wait_ms) {
        Some(why) => refused(&why),
        None => proto::PushResult { message: silent(fates, wait_ms), ..Default::default() },
    };
    let has_all = !fates.is_empty();
    result.duplicate = has_all && fates.iter().all(|(_, outcome)| outcome.is_duplicate());
    result.positions = fates.iter().filter_map(position_of).collect();
    if has_counts && fates.iter().any(|(_, outcome)| outcome.refusal().is_none()) {
        let mut shards: BTreeMap<ShardId, Counts> = BTreeMap::new();
        for (shard, counts) in fates.iter().flat_map(|(_, outcome)| &outcome.counts) {
            shards.entry(*shard).or_default().add(counts);
        }
        let mut total = Counts::default();
        shards.values().for_each(|counts| total.add(counts));
        result.counts = Some(shown(&total));
        let by_shard = |(shard, counts): (&ShardId, &_)| proto::ShardCounts {
            shard: shard.0.into(),
            counts: Some(shown(counts)),
        };
        result.shards = shards.iter().map(by_shard).collect();
        let users = fates.iter().flat_map(|(_, outcome)| &outcome.offline_users);
        result.offline_users = users.map(ToString::to_string).collect();
    }
    result
}

/// A position as callers see it.
pub fn position(position: Position) -> proto::Position {
    proto::Position { epoch: position.epoch_text(), offset: position.offset }
}

fn position_of((group, outcome): &(Option<GroupName>, Outcome)) -> Option<proto::GroupPosition> {
    let group = group.as_ref()?.name.to_string();
    outcome.position.map(|found| proto::GroupPosition { group, position: Some(position(found)) })
}

/// Why a push did not go, or is not known to have gone, to all that it was for.
fn fault(fates: &Fates, wait_ms: u64) -> Option<Refused> {
    let refused = fates.iter().find_map(|(group, outcome)| Some((group, outcome.refusal()?)));
    if let Some((group, reject)) = refused {
        let mut why = Refused::from(reject);
        let others = fates.iter().filter(|(_, outcome)| outcome.refusal().is_none()).count();
        if let (Some(group), 1..) = (group, others) {
            let name = &group.name;
            why.why = format!("{}: {name}; {others} of the groups were not refused", why.why);
        }
        return Some(why);
    }
    let (group, _) = fates.iter().find(|(group, o)| group.is_some() && o.position.is_none())?;
    let name = group.as_ref().map_or("", |group| &group.name);
    let why = format!(
        "the home of {name} did not answer within {wait_ms} ms: the push may be delivered; with an \
         id it is safe to send it again"
    );
    Some(Refused::new(Reason::OutcomeUnknown, why))
}

/// Names the shards that did not answer, for people; empty = all did.
fn silent(fates: &Fates, wait_ms: u64) -> String {
    let mut silent: Vec<u16> = fates.iter().flat_map(|(_, o)| &o.silent).map(|s| s.0).collect();
    silent.sort_unstable();
    silent.dedup();
    match silent.as_slice() {
        [] => String::new(),
        shards => format!("shards {shards:?} did not answer within {wait_ms} ms"),
    }
}

fn shown(counts: &Counts) -> proto::Counts {
    let Counts { written, queued, dropped, offline, kept, unknown } = *counts;
    let addressees = counts.addressees();
    proto::Counts { addressees, written, queued, dropped, offline, kept, unknown }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TenantId;
    use crate::message::Reject;

    fn group(name: &str) -> Option<GroupName> {
        GroupName::new(TenantId::DEFAULT, name).ok()
    }

    fn numbered(offset: u64, counts: &[(u16, u64)]) -> Outcome {
        let of = |&(shard, written): &_| (ShardId(shard), Counts { written, ..Counts::default() });
        Outcome {
            position: Some(Position { epoch: 1, offset }),
            counts: counts.iter().map(of).collect(),
            answered: 1,
            ..Outcome::default()
        }
    }

    #[test]
    fn counts_of_several_groups_add_up_by_shard() {
        let fates = vec![
            (group("a"), numbered(1, &[(0, 2), (1, 3)])),
            (group("b"), numbered(9, &[(1, 5)])),
        ];
        let result = sent(&fates, true, 1_000);
        let written = |counts: &Option<proto::Counts>| counts.as_ref().map(|c| c.written);
        let by_shard: Vec<_> =
            result.shards.iter().map(|s| (s.shard, written(&s.counts))).collect();
        assert_eq!(by_shard, [(0, Some(2)), (1, Some(8))]);
        assert_eq!((result.status, written(&result.counts)), (0, Some(10)));
        let positions: Vec<_> = result.positions.iter().map(|p| p.group.as_str()).collect();
        assert_eq!(positions, ["a", "b"]);
        assert_eq!(sent(&fates, false, 1_000).counts, None);
    }

    #[test]
    fn a_group_that_refused_is_named_and_one_without_a_number_is_unknown() {
        let reject = Reject::later(Reason::QueueFull, "the group is behind", 20);
        let refusal = Outcome { refused: vec![(ShardId(0), reject)], ..Outcome::default() };
        let fates = vec![(group("a"), numbered(1, &[])), (group("b"), refusal.clone())];
        let result = sent(&fates, true, 1_000);
        assert_eq!((result.reason.as_str(), result.retry_after_ms), ("QUEUE_FULL", 20));
        assert!(result.message.contains(": b; 1 of the groups"), "{}", result.message);
        assert_eq!(result.positions.len(), 1);
        let alone = sent(&vec![(group("b"), refusal)], true, 1_000);
        assert_eq!((alone.message.as_str(), alone.counts), ("the group is behind", None));
        let silent = Outcome { silent: vec![ShardId(3)], ..Outcome::default() };
        let result = sent(&vec![(group("a"), silent)], true, 700);
        assert_eq!(result.reason, "OUTCOME_UNKNOWN");
        assert!(result.message.contains("home of a did not answer within 700 ms"));
    }

    #[test]
    fn shards_that_did_not_answer_are_named() {
        let unknown = Counts { unknown: 4, ..Counts::default() };
        let outcome = Outcome {
            silent: vec![ShardId(2)],
            counts: vec![(ShardId(2), unknown)],
            ..Outcome::default()
        };
        let result = sent(&vec![(None, outcome)], true, 1_000);
        assert_eq!(result.message, "shards [2] did not answer within 1000 ms");
        assert_eq!(result.counts.map(|c| (c.addressees, c.unknown)), Some((4, 4)));
    }
}
