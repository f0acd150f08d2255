//! The shards that a push, or other work, is for.

use std::collections::BTreeMap;

use crate::ids::{SessionId, ShardId, TenantId, home_shard};
use crate::push::{Addressees, Whom};
use crate::routing::affinity_hash;

/// Addressees by shard, each with how many are known to be there: of sessions and users as many as
/// are named, of a group, a tenant and everyone none.
pub fn by_shard(to: Addressees, tenant: TenantId, shards: u16) -> Vec<(ShardId, Addressees, u64)> {
    match to {
        Addressees::Sessions(sessions) => {
            let split = split(sessions, |session| shard_of(session, shards));
            let part = |(shard, part): (_, Vec<_>)| {
                let known = part.len() as u64;
                (shard, Addressees::Sessions(part), known)
            };
            split.into_iter().map(part).collect()
        }
        Addressees::Users(users) => {
            let split = split(users, |user| home_of(tenant, user, shards));
            let part = |(shard, part): (_, Vec<_>)| {
                let known = part.len() as u64;
                (shard, Addressees::Users(part), known)
            };
            split.into_iter().map(part).collect()
        }
        Addressees::Group(group) => {
            let home = group.home(shards);
            vec![(home, Addressees::Group(group), 0)]
        }
        Addressees::Tenant => (0..shards).map(|n| (ShardId(n), Addressees::Tenant, 0)).collect(),
        Addressees::Everyone => {
            (0..shards).map(|n| (ShardId(n), Addressees::Everyone, 0)).collect()
        }
    }
}

/// Sessions and users by the shards that they are on.
pub fn whom_by_shard(whom: Whom, tenant: TenantId, shards: u16) -> Vec<(ShardId, Whom, u64)> {
    let Whom { sessions, users } = whom;
    let mut parts: BTreeMap<ShardId, Whom> = BTreeMap::new();
    for (shard, sessions) in split(sessions, |session| shard_of(session, shards)) {
        parts.entry(shard).or_default().sessions = sessions;
    }
    for (shard, users) in split(users, |user| home_of(tenant, user, shards)) {
        parts.entry(shard).or_default().users = users;
    }
    let known = |whom: &Whom| (whom.sessions.len() + whom.users.len()) as u64;
    parts.into_iter().map(|(shard, whom)| (shard, whom.clone(), known(&whom))).collect()
}

fn split<T>(list: Vec<T>, shard: impl Fn(&T) -> ShardId) -> BTreeMap<ShardId, Vec<T>> {
    let mut parts: BTreeMap<ShardId, Vec<T>> = BTreeMap::new();
    for one in list {
        parts.entry(shard(&one)).or_default().push(one);
    }
    parts
}

/// The shard of a session. An id of a run that had more shards names none of this one: any shard
/// knows as well as another that there is no such session.
fn shard_of(session: &SessionId, shards: u16) -> ShardId {
    ShardId(session.shard().0 % shards.max(1))
}

fn home_of(tenant: TenantId, user: &str, shards: u16) -> ShardId {
    home_shard(affinity_hash(tenant, user.as_bytes()), shards)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::push::GroupName;

    const TENANT: TenantId = TenantId::DEFAULT;

    fn known(parts: &[(ShardId, Addressees, u64)]) -> Vec<(u16, u64)> {
        parts.iter().map(|(shard, _, known)| (shard.0, *known)).collect()
    }

    #[test]
    fn sessions_go_to_the_shard_in_their_id_and_those_of_no_shard_somewhere() {
        let sessions = [2, 0, 2, 7].map(|shard| SessionId::new(ShardId(shard), 5)).to_vec();
        let parts = by_shard(Addressees::Sessions(sessions), TENANT, 3);
        assert_eq!(known(&parts), [(0, 1), (1, 1), (2, 2)]);
    }

    #[test]
    fn a_user_goes_to_its_home_and_a_group_to_its_own_and_a_tenant_to_all() {
        let users: Vec<Box<str>> = (0..40).map(|n| format!("user-{n}").into()).collect();
        let parts = by_shard(Addressees::Users(users.clone()), TENANT, 4);
        assert_eq!(parts.iter().map(|(_, _, known)| known).sum::<u64>(), 40);
        for (shard, part, _) in &parts {
            let Addressees::Users(users) = part else { panic!("{part:?}") };
            assert!(users.iter().all(|user| home_of(TENANT, user, 4) == *shard));
        }
        let whom = Whom { sessions: vec![SessionId::new(ShardId(1), 5)], users };
        let of_whom = whom_by_shard(whom, TENANT, 4);
        assert_eq!(of_whom.iter().map(|(_, _, known)| known).sum::<u64>(), 41);
        let group = GroupName::new(TENANT, "room:7").expect("a name");
        let parts = by_shard(Addressees::Group(group.clone()), TENANT, 4);
        assert_eq!(known(&parts), [(group.home(4).0, 0)]);
        let all = vec![(0, 0), (1, 0), (2, 0)];
        assert_eq!(known(&by_shard(Addressees::Tenant, TENANT, 3)), all);
        assert_eq!(known(&by_shard(Addressees::Everyone, TENANT, 3)), all);
    }
}
