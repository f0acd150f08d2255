//! Questions of callers to the shards: who is there, and what groups keep.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};

use super::answer;
use super::calls::{Call, invalid};
use super::refusal::Refused;
use crate::control::inspections::{QueryResult, READS_MAX};
use crate::control::request::ControlRequest;
use crate::ids::{SessionId, ShardId};
use crate::inspect::{GroupInfo, Inspection, KeptPush, MemberInfo, PAGE_MAX, Query, SessionInfo};
use crate::message::{Encoding, Reason};
use crate::push::{GroupName, Position};
use crate::wire::push::generated as proto;

/// Groups in one question for counts.
const COUNTS_MAX: usize = 100;
/// Users in one question for sessions.
const USERS_MAX: usize = 100;
/// Longest wait for a place among the questions under way.
const PLACE_TIMEOUT: Duration = Duration::from_secs(1);
/// Time after which to ask again when a shard was silent.
const RETRY: Duration = Duration::from_secs(1);

/// The way of questions to the shards: as many at once as control takes.
#[derive(Clone)]
pub struct Reads {
    requests: mpsc::Sender<ControlRequest>,
    places: Arc<Semaphore>,
}

impl Reads {
    /// Questions over control's requests.
    pub fn new(requests: mpsc::Sender<ControlRequest>) -> Self {
        Self { requests, places: Arc::new(Semaphore::new(READS_MAX)) }
    }

    async fn ask(&self, query: Query) -> Result<QueryResult, Refused> {
        let busy = || {
            let why = "too many questions are under way: ask again";
            Refused::new(Reason::QueueFull, why).after(RETRY)
        };
        let place = tokio::time::timeout(PLACE_TIMEOUT, self.places.acquire()).await;
        let _place = place.map_err(|_| busy())?;
        let (reply, answer) = oneshot::channel();
        let ends = |_| Refused::new(Reason::Draining, "the gateway stops");
        self.requests.send(ControlRequest::Inspect(query, reply)).await.map_err(ends)?;
        answer.await.map_err(|_| busy())
    }

    /// Asks, and refuses an answer in which a shard is missing: its sums would be wrong.
    async fn ask_all(&self, query: Query) -> Result<QueryResult, Refused> {
        let result = self.ask(query).await?;
        match result.silent.as_slice() {
            [] => Ok(result),
            silent => {
                let shards: Vec<u16> = silent.iter().map(|shard| shard.0).collect();
                let why = format!("shards {shards:?} did not answer in time: ask again");
                Err(Refused::new(Reason::Unavailable, why).after(RETRY))
            }
        }
    }

    /// A page of a group's members.
    pub async fn members(
        &self,
        call: Call<'_>,
        asked: proto::MembersRequest,
    ) -> Result<proto::MembersResponse, Refused> {
        let group = call.group(&asked.group)?;
        let limit = match asked.limit as usize {
            0 => PAGE_MAX,
            limit if limit <= PAGE_MAX => limit,
            _ => return Err(invalid(format!("limit: at most {PAGE_MAX}, or 0 for {PAGE_MAX}"))),
        };
        let after = match asked.after.as_str() {
            "" => None,
            after => Some(
                SessionId::read(after)
                    .ok_or_else(|| invalid("after: the `next` of the page before, or empty"))?,
            ),
        };
        let result = self.ask(Query::Members { group, limit, after }).await?;
        Ok(page(result, limit))
    }

    /// How many members groups have.
    pub async fn count(
        &self,
        call: Call<'_>,
        asked: proto::CountRequest,
    ) -> Result<proto::CountResponse, Refused> {
        let groups = call.groups(&asked.groups, COUNTS_MAX)?;
        let result = self.ask_all(Query::Groups(groups.clone())).await?;
        Ok(proto::CountResponse { groups: counts(&groups, &result) })
    }

    /// What a group keeps.
    pub async fn history(
        &self,
        call: Call<'_>,
        asked: proto::HistoryRequest,
    ) -> Result<proto::HistoryResponse, Refused> {
        let group = call.group(&asked.group)?;
        let limit = asked.limit as usize;
        if limit > PAGE_MAX {
            return Err(invalid(format!("limit: at most {PAGE_MAX}")));
        }
        let since = asked.since.map(|since| Position::shown(&since.epoch, since.offset));
        let newest_first = asked.newest_first;
        let query = Query::History { group, since, limit, newest_first };
        let mut result = self.ask_all(query).await?;
        let found = result.answers.iter_mut().find_map(|(_, inspection)| match inspection {
            Inspection::History(found) => found.take(),
            Inspection::Conns(_)
            | Inspection::Route(_)
            | Inspection::Members(_)
            | Inspection::Groups(_)
            | Inspection::Sessions(_)
            | Inspection::TopGroups(_)
            | Inspection::GroupDetails(_) => None,
        });
        // A group that is not there has pushed nothing; a position of it is of another life.
        Ok(match found {
            None => proto::HistoryResponse { gap: since.is_some(), ..Default::default() },
            Some(found) => proto::HistoryResponse {
                position: Some(answer::position(found.position)),
                gap: found.is_gap,
                pushes: found.pushes.into_iter().map(kept).collect(),
            },
        })
    }

    /// The sessions of users.
    pub async fn sessions(
        &self,
        call: Call<'_>,
        asked: proto::SessionsRequest,
    ) -> Result<proto::SessionsResponse, Refused> {
        if asked.users.is_empty() || asked.users.len() > USERS_MAX {
            return Err(invalid(format!("users: 1 to {USERS_MAX} in one call")));
        }
        let users = asked.users.into_iter().map(Into::into).collect();
        let result = self.ask_all(Query::SessionsOf { tenant: call.tenant, users }).await?;
        let mut sessions = Vec::new();
        for (shard, inspection) in result.answers {
            if let Inspection::Sessions(found) = inspection {
                sessions.extend(found.into_iter().map(|one| session(shard, one)));
            }
        }
        Ok(proto::SessionsResponse { sessions })
    }
}

/// The page that all shards' members make together.
fn page(result: QueryResult, limit: usize) -> proto::MembersResponse {
    let (mut sessions, mut users, mut is_full) = (0, 0, false);
    let mut members: Vec<(MemberInfo, ShardId)> = Vec::new();
    for (shard, inspection) in result.answers {
        if let Inspection::Members(found) = inspection {
            sessions += found.sessions;
            users += found.users;
            is_full |= found.members.len() >= limit;
            members.extend(found.members.into_iter().map(|member| (member, shard)));
        }
    }
    members.sort_unstable_by(|(a, _), (b, _)| a.session.as_str().cmp(b.session.as_str()));
    is_full |= members.len() > limit;
    members.truncate(limit);
    let last = members.last().filter(|_| is_full);
    let next = last.map_or_else(String::new, |(member, _)| member.session.as_str().to_owned());
    let member = |(member, shard): (MemberInfo, ShardId)| proto::Member {
        user: member.user.into(),
        session: member.session.as_str().to_owned(),
        away: member.is_away,
        info: member.info,
        shard: shard.0.into(),
    };
    proto::MembersResponse {
        members: members.into_iter().map(member).collect(),
        next,
        sessions,
        users,
        silent_shards: result.silent.iter().map(|shard| shard.0.into()).collect(),
    }
}

fn counts(groups: &[GroupName], result: &QueryResult) -> Vec<proto::GroupCount> {
    let mut sums = vec![GroupInfo::default(); groups.len()];
    for (_, inspection) in &result.answers {
        if let Inspection::Groups(found) = inspection {
            for (sum, one) in sums.iter_mut().zip(found) {
                sum.sessions += one.sessions;
                sum.users += one.users;
                sum.away += one.away;
                sum.position = sum.position.or(one.position);
            }
        }
    }
    let count = |(group, sum): (&GroupName, GroupInfo)| proto::GroupCount {
        group: group.name.to_string(),
        sessions: sum.sessions,
        users: sum.users,
        away: sum.away,
        position: sum.position.map(answer::position),
    };
    groups.iter().zip(sums).map(count).collect()
}

fn kept(push: KeptPush) -> proto::Kept {
    let kind = match push.is_bytes {
        true => proto::PayloadKind::Bytes,
        false => proto::PayloadKind::Json,
    };
    proto::Kept {
        offset: push.offset,
        msg_id: push.msg_id,
        payload: push.payload,
        kind: kind.into(),
        key: push.key.into(),
        id: push.id.into(),
        unix_ms: push.unix_ms,
    }
}

fn session(shard: ShardId, one: SessionInfo) -> proto::Session {
    let encoding = match one.encoding {
        Encoding::Json => "json",
        Encoding::Protobuf => "protobuf",
    };
    proto::Session {
        session: one.session.as_str().to_owned(),
        user: one.user.into(),
        away: one.is_away,
        since_unix_ms: one.since_unix_ms,
        peer: one.peer.map_or_else(String::new, |peer| peer.to_string()),
        encoding: encoding.into(),
        shard: shard.0.into(),
        groups: one.groups.iter().map(ToString::to_string).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::MembersInfo;

    fn members(shard: u16, randoms: &[u128]) -> (ShardId, Inspection) {
        let member = |random: &u128| MemberInfo {
            session: SessionId::new(ShardId(shard), *random),
            user: "".into(),
            is_away: false,
            info: Default::default(),
        };
        let members = randoms.iter().map(member).collect();
        (ShardId(shard), Inspection::Members(MembersInfo { members, sessions: 9, users: 8 }))
    }

    #[test]
    fn pages_of_shards_become_one_and_tell_where_it_goes_on() {
        let result = |answers| QueryResult { answers, silent: vec![ShardId(2)] };
        let both = || vec![members(1, &[1, 2]), members(0, &[3])];
        let of = page(result(both()), 2);
        assert_eq!((of.members.len(), of.sessions, of.users), (2, 18, 16));
        let ids: Vec<_> = of.members.iter().map(|member| member.session.clone()).collect();
        assert!(ids[0] < ids[1] && of.next == ids[1]);
        assert_eq!((of.members[0].shard, of.silent_shards), (0, vec![2]));
        let all = page(result(both()), 10);
        assert_eq!((all.members.len(), all.next.as_str()), (3, ""));
    }

    #[test]
    fn counts_are_summed_over_shards_with_the_position_of_the_home() {
        let group = GroupName::new(crate::ids::TenantId::DEFAULT, "room:7").expect("a name");
        let one = GroupInfo { sessions: 3, users: 2, away: 1, position: None };
        let home = GroupInfo { position: Some(Position { epoch: 1, offset: 7 }), ..one };
        let answers = [one, home].map(|info| (ShardId(0), Inspection::Groups(vec![info])));
        let result = QueryResult { answers: answers.to_vec(), silent: Vec::new() };
        let [count] = &counts(&[group], &result)[..] else { panic!("one group") };
        assert_eq!((count.sessions, count.users, count.away), (6, 4, 2));
        assert_eq!(count.position.as_ref().map(|p| p.offset), Some(7));
    }
}
