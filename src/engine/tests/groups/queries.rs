//! Answers to callers' and operators' questions about groups.

use super::*;
use crate::inspect::{
    GroupDetail, GroupInfo, HistoryInfo, Inspection, MembersInfo, Query, SessionInfo,
};
use crate::push::Position;

impl Rig {
    fn ask(&self, shard: usize, query: &Query) -> Inspection {
        self.shards[shard].inspect(query, self.now)
    }

    fn members(&self, shard: usize, limit: usize, after: Option<&MembersInfo>) -> MembersInfo {
        let after = after.and_then(|page| page.members.last()).map(|member| member.session);
        let group = self.tenants_group("room:7");
        match self.ask(shard, &Query::Members { group, limit, after }) {
            Inspection::Members(members) => members,
            other => panic!("{other:?}"),
        }
    }

    fn info(&self, shard: usize) -> GroupInfo {
        match self.ask(shard, &Query::Groups(vec![self.tenants_group("room:7")])) {
            Inspection::Groups(infos) => infos[0],
            other => panic!("{other:?}"),
        }
    }

    fn history(&self, shard: usize, since: Option<Position>, newest: bool) -> Option<HistoryInfo> {
        let group = self.tenants_group("room:7");
        match self.ask(shard, &Query::History { group, since, limit: 3, newest_first: newest }) {
            Inspection::History(history) => history,
            other => panic!("{other:?}"),
        }
    }

    fn detail(&self, shard: usize, group: &str) -> Option<GroupDetail> {
        match self.ask(shard, &Query::GroupDetails(vec![self.tenants_group(group)])) {
            Inspection::GroupDetails(details) => details.into_iter().next().flatten(),
            other => panic!("{other:?}"),
        }
    }

    fn sessions_of(&self, users: &[&str]) -> Vec<SessionInfo> {
        let users = users.iter().map(|user| (*user).into()).collect();
        match self.ask(0, &Query::SessionsOf { tenant: self.tenant, users }) {
            Inspection::Sessions(sessions) => sessions,
            other => panic!("{other:?}"),
        }
    }

    fn tenants_group(&self, group: &str) -> GroupName {
        GroupName::new(self.tenant, group).expect("a name")
    }

    fn signs_in(&mut self, client: Client, user: &str) {
        self.sends(client, auth(1, &token(user)));
        assert_eq!(self.told(client)[0]["type"], "auth_ok");
    }
}

fn offsets(history: &HistoryInfo) -> Vec<u64> {
    history.pushes.iter().map(|push| push.offset).collect()
}

#[test]
fn members_are_shown_in_pages_and_users_are_counted_once() {
    let mut rig = Rig::new(1, room());
    rig.tenant = TenantId::of("acme");
    let clients = [0; 5].map(|shard| rig.open(shard));
    for (client, user) in clients.into_iter().zip(["ann", "ann", "bob", "cid", "ann"]) {
        rig.signs_in(client, user);
        rig.joins(client, 2, "room:7");
    }
    assert_eq!(rig.members(0, 0, None).members, []);
    let first = rig.members(0, 3, None);
    let second = rig.members(0, 3, Some(&first));
    assert_eq!((first.sessions, first.users, second.sessions, second.users), (5, 3, 5, 3));
    let all = [&first.members[..], &second.members].concat();
    let mut ids: Vec<_> = all.iter().map(|member| member.session.as_str().to_owned()).collect();
    assert_eq!((first.members.len(), ids.len(), ids.is_sorted()), (3, 5, true));
    ids.dedup();
    assert_eq!(ids.len(), 5);
    let anns = all.iter().filter(|member| &*member.user == "ann").count();
    assert_eq!((anns, all.iter().any(|member| member.is_away)), (3, false));
    let info = GroupInfo { sessions: 5, users: 3, ..rig.info(0) };
    assert_eq!((rig.info(0), info.position.map(|at| at.offset)), (info, Some(0)));
    rig.tenant = TenantId::DEFAULT;
    assert_eq!(rig.info(0), GroupInfo::default(), "another tenant's group is another one");
}

#[test]
fn the_sessions_of_a_user_are_found_with_their_groups_also_those_that_are_away() {
    let mut rig = Rig::new(1, room());
    rig.tenant = TenantId::of("acme");
    let [phone, desk, other] = [0; 3].map(|shard| rig.open(shard));
    for (client, user) in [(phone, "ann"), (desk, "ann"), (other, "bob")] {
        rig.signs_in(client, user);
    }
    rig.says(phone, r#"{"type":"resume","seq":2}"#);
    rig.joins(desk, 2, "room:7");
    rig.told(phone);
    rig.says(phone, r#"{"msg_id":9010,"seq":3,"payload":{"group":"room:7"}}"#);
    rig.shards[0].remove(phone.1);
    let found = rig.sessions_of(&["ann", "nobody"]);
    let mut told: Vec<_> =
        found.iter().map(|one| (one.is_away, one.peer.is_some(), one.groups.len())).collect();
    told.sort_unstable();
    assert_eq!(told, [(false, true, 1), (true, false, 1)]);
    let made = rig.shards[0].config.unix_us(Micros(1_000_000)) / 1000;
    assert!(found.iter().all(|one| (&*one.user, one.since_unix_ms) == ("ann", made)));
    let info = rig.info(0);
    assert_eq!((info.sessions, info.users, info.away), (2, 1, 1));
}

#[test]
fn the_home_shows_what_a_group_keeps_or_says_that_some_is_missing() {
    let mut rig = Rig::new(2, GroupRule { recent_ms: 60_000, ..room() });
    let home = usize::from(name("room:7").home(2).0);
    assert_eq!(rig.history(home, None, false), None, "nobody has heard of it");
    for _ in 0..5 {
        rig.push_to_group("room:7");
    }
    assert_eq!(rig.history(1 - home, None, false), None, "not its home");
    let all = rig.history(home, None, false).expect("its home");
    assert_eq!((offsets(&all), all.is_gap, all.position.offset), (vec![1, 2, 3], false, 5));
    let newest = rig.history(home, None, true).expect("its home");
    assert_eq!(offsets(&newest), [5, 4, 3]);
    let since = |offset| Some(Position { offset, ..all.position });
    let rest = rig.history(home, since(3), false).expect("its home");
    assert_eq!((offsets(&rest), rest.is_gap), (vec![4, 5], false));
    let none = rig.history(home, since(5), false).expect("its home");
    assert_eq!((offsets(&none), none.is_gap), (vec![], false));
    let epoch = all.position.epoch ^ 1;
    for wrong in [since(6), Some(Position { epoch, offset: 3 })] {
        let gap = rig.history(home, wrong, false).expect("its home");
        assert_eq!((offsets(&gap), gap.is_gap), (vec![1, 2, 3], true));
    }
    rig.push(Addressees::Group(name("room:7")), |body| body.is_transient = true);
    let whole = rig.history(home, since(0), false).expect("its home");
    assert_eq!((whole.is_gap, whole.position.offset), (false, 5), "one that is not kept is none");
}

#[test]
fn a_history_has_the_newest_of_each_key_and_no_more_than_its_rule_says() {
    let mut rig = Rig::new(1, GroupRule { keep: Keep::Last, ..room() });
    for key in ["a", "b", "a"] {
        rig.push(Addressees::Group(name("room:7")), |body| body.key = key.into());
        rig.settle();
    }
    let kept = rig.history(0, None, false).expect("its home");
    assert_eq!(offsets(&kept), [2, 3]);
    let mut rig = Rig::new(1, GroupRule { keep: Keep::History, history_items: 2, ..room() });
    for _ in 0..5 {
        rig.push_to_group("room:7");
    }
    let kept = rig.history(0, None, false).expect("its home");
    assert_eq!(offsets(&kept), [4, 5]);
}

#[test]
fn an_operator_sees_the_largest_groups_and_the_member_that_is_furthest_behind() {
    let mut rig = Rig::new(2, room());
    let clients: Vec<Client> = (0..6).map(|n| rig.open(n % 2)).collect();
    for (n, client) in clients.iter().enumerate() {
        rig.joins(*client, 1, "room:7");
        if n < 2 {
            rig.joins(*client, 2, "room:8");
        }
    }
    let mut largest = Vec::new();
    for shard in 0..2 {
        match rig.ask(shard, &Query::TopGroups(1)) {
            Inspection::TopGroups(groups) => largest.extend(groups),
            other => panic!("{other:?}"),
        }
    }
    largest.sort_by_key(|(_, places)| std::cmp::Reverse(*places));
    assert_eq!(&*largest[0].0.name, "room:7");
    rig.stalled.insert(clients[0]);
    for _ in 0..3 {
        rig.push_to_group("room:7");
    }
    rig.now = rig.now.plus_ms(40);
    let parts = [0, 1].map(|shard| rig.detail(shard, "room:7").expect("members are there"));
    let slow = rig.shards[0].clients.conns.get(clients[0].1).expect("open").session.id;
    assert_eq!((parts[0].behind, parts[0].slowest, parts[0].sessions), (3, Some(slow), 3));
    assert_eq!((parts[0].behind_us, parts[1].behind, parts[1].slowest), (40_000, 0, None));
    assert_eq!(&*parts[1].rule, "room:*");
    let position = parts.iter().find_map(|part| part.position).expect("its home");
    assert_eq!((position.offset, rig.detail(0, "room:9")), (3, None));
    let gauges = rig.shards[0].report(1, rig.now).gauges;
    assert_eq!((gauges.groups, gauges.group_members), (2, 4));
}
