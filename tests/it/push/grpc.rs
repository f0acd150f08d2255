//! gRPC: `shardgate.push.v1.Push`, by the generated client.

use serde_json::json;
use shardgate::wire::push::generated::{
    CountRequest, DisconnectRequest, ForgetRequest, HistoryRequest, JoinRequest, JoinResponse,
    LeaveRequest, MembersRequest, PushMessage, PushResult, Receipt, SessionsRequest, To,
};
use tonic::{Code, Status};

use super::callers::{Grpc, Http};
use super::{
    DESK, SHOP, bare, config, desk, hears, hears_nothing, join, people, rule, shop, tell, user,
};
use crate::support::{Client, Gateway};

pub fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

fn push(to: To) -> PushMessage {
    let receipt = Receipt::Counted.into();
    PushMessage { to: Some(to), msg_id: 7001, payload: "1".into(), receipt, ..Default::default() }
}

pub fn push_to_users(users: &[&str]) -> PushMessage {
    push(To { users: names(users), ..Default::default() })
}

fn push_to_room() -> PushMessage {
    push(To { groups: names(&["room:7"]), ..Default::default() })
}

/// Puts users into groups.
fn joins(grpc: &mut Grpc, users: &[&str], groups: &[&str]) -> Result<JoinResponse, Status> {
    let asked = JoinRequest { users: names(users), groups: names(groups), ..Default::default() };
    grpc.call(asked, async |client, request| client.join(request).await)
}

fn leaves(grpc: &mut Grpc, users: &[&str], groups: &[&str]) -> u32 {
    let (users, groups, reason) = (names(users), names(groups), "over".to_owned());
    let asked = LeaveRequest { users, groups, reason, ..Default::default() };
    let answer = grpc.call(asked, async |client, request| client.leave(request).await);
    answer.expect("they leave").left
}

fn forgets(grpc: &mut Grpc, group: &str) {
    let asked = ForgetRequest { group: group.into(), ..Default::default() };
    let answer = grpc.call(asked, async |client, request| client.forget(request).await);
    answer.expect("it is forgotten");
}

/// Closes connections: how many, and how many sessions ended.
fn disconnects(grpc: &mut Grpc, asked: DisconnectRequest) -> (u32, u32) {
    let answer = grpc.call(asked, async |client, request| client.disconnect(request).await);
    let answer = answer.expect("they are closed");
    (answer.closed, answer.ended)
}

fn written(result: &PushResult) -> (u32, u64, u64) {
    let counts = result.counts.unwrap_or_default();
    (result.status, counts.addressees, counts.written)
}

#[test]
fn users_are_put_into_groups_and_taken_out_and_are_told() {
    let gateway = Gateway::start(&config());
    let mut grpc = Grpc::connect(&gateway, SHOP);
    let (mut ann, mut bob) = (user(&gateway, "ann"), user(&gateway, "bob"));
    let joined = joins(&mut grpc, &["ann", "bob", "eve"], &["room:7", "room:8"]).expect("it may");
    assert_eq!((joined.joined, joined.offline), (2, 1), "{joined:?}");
    let mut groups: Vec<_> = joined.positions.iter().map(|one| one.group.as_str()).collect();
    groups.sort_unstable();
    assert_eq!(groups, ["room:7", "room:8"]);
    for client in [&mut ann, &mut bob] {
        let mut told = [client.read(), client.read()];
        told.sort_by_key(|told| told["payload"]["group"].to_string());
        for (told, group) in told.iter().zip(["room:7", "room:8"]) {
            assert_eq!(
                (&told["type"], &told["payload"]["group"]),
                (&json!("joined"), &json!(group))
            );
        }
    }
    let results = grpc.send(vec![push_to_room()]).expect("it may");
    assert_eq!(written(&results[0]), (0, 2, 2), "{results:?}");
    assert_eq!((hears(&mut ann), hears(&mut bob)), (json!(1), json!(1)));

    assert_eq!(leaves(&mut grpc, &["ann", "eve"], &["room:7", "room:9"]), 1);
    let left = ann.read();
    let expected = json!({"group": "room:7", "reason": "over"});
    assert_eq!((&left["type"], &left["payload"]), (&json!("left"), &expected));
    let results = grpc.send(vec![push_to_room()]).expect("it may");
    assert_eq!(written(&results[0]), (0, 1, 1), "{results:?}");
    assert_eq!(hears(&mut bob), 1);
    hears_nothing(&mut ann);
}

#[test]
fn a_group_that_was_told_to_forget_keeps_its_position_and_nothing_else() {
    let gateway = Gateway::start(&config());
    let mut grpc = Grpc::connect(&gateway, SHOP);
    let mut http = Http::connect(&gateway, SHOP);
    let results = tell(&mut http, &json!({"groups": ["room:7"]}), 1..4);
    let epoch = &results[0]["positions"][0]["position"]["epoch"];
    forgets(&mut grpc, "room:7");
    let mut late = Client::connect(gateway.ws);
    let since = json!({"epoch": epoch, "offset": 0});
    let told = late.call(9010, json!({"group": "room:7", "since": since}))["payload"].clone();
    assert_eq!(
        (&told["outcome"], &told["position"]["offset"]),
        (&json!("gap"), &json!(3)),
        "{told}"
    );
    tell(&mut http, &json!({"groups": ["room:7"]}), 4..5);
    let push = late.read();
    assert_eq!((&push["offset"], &push["payload"]), (&json!(4), &json!(4)));
    // Of a group that is not there nothing is kept, which is what was wanted.
    forgets(&mut grpc, "room:nobody");
}

#[test]
fn members_counts_sessions_and_history_are_those_of_all_shards() {
    let gateway = Gateway::start(&config());
    let mut grpc = Grpc::connect(&gateway, SHOP);
    let people = people();
    let mut members: Vec<Client> = people.iter().map(|name| user(&gateway, name)).collect();
    members.push(user(&gateway, &people[0]));
    members.push(Client::connect(gateway.ws));
    members.iter_mut().for_each(|member| drop(join(member, "room:7")));
    let count = members.len() as u64;
    tell(&mut Http::connect(&gateway, SHOP), &json!({"groups": ["room:7"]}), 0..5);

    let mut after = String::new();
    let mut found = Vec::new();
    loop {
        let asked =
            MembersRequest { group: "room:7".into(), limit: 3, after, ..Default::default() };
        let page = grpc.call(asked, async |client, request| client.members(request).await);
        let page = page.expect("it may");
        // Who did not sign in is a person of its own.
        assert_eq!((page.sessions, page.users), (count, count - 1), "{page:?}");
        found.extend(page.members.into_iter().map(|member| member.session));
        after = page.next;
        if after.is_empty() {
            break;
        }
    }
    let mut expected: Vec<String> = members.iter().map(Client::session).collect();
    expected.sort_unstable();
    assert_eq!(found, expected);

    let groups = names(&["room:7", "room:8"]);
    let asked = CountRequest { groups, ..Default::default() };
    let counts = grpc.call(asked, async |client, request| client.count(request).await);
    let counts = counts.expect("it may").groups;
    let offset = counts[0].position.as_ref().map(|position| position.offset);
    assert_eq!((counts[0].sessions, counts[1].sessions, offset), (count, 0, Some(5)));

    let asked = SessionsRequest { users: names(&[&people[0], "eve"]), ..Default::default() };
    let sessions = grpc.call(asked, async |client, request| client.sessions(request).await);
    let sessions = sessions.expect("it may").sessions;
    assert_eq!(sessions.len(), 2, "two tabs: {sessions:?}");
    assert!(sessions.iter().all(|one| one.user == people[0] && one.groups == ["room:7"]));

    let mut history = |limit, newest_first| {
        let group = "room:7".to_owned();
        let asked = HistoryRequest { group, limit, newest_first, ..Default::default() };
        let page = grpc.call(asked, async |client, request| client.history(request).await);
        let page = page.expect("it may");
        let offsets: Vec<u64> = page.pushes.iter().map(|push| push.offset).collect();
        (page.position.map(|position| position.offset), offsets)
    };
    assert_eq!(history(0, false), (Some(5), vec![]));
    assert_eq!(history(3, false), (Some(5), vec![1, 2, 3]));
    assert_eq!(history(2, true), (Some(5), vec![5, 4]));
}

#[test]
fn who_is_thrown_out_is_closed_with_the_code_that_was_asked_for() {
    let gateway = Gateway::start(&config());
    let mut grpc = Grpc::connect(&gateway, SHOP);
    let users = |list: &[&str]| DisconnectRequest { users: names(list), ..Default::default() };
    let mut tabs = [user(&gateway, "ann"), user(&gateway, "ann")];
    let mut bob = user(&gateway, "bob");
    assert_eq!(disconnects(&mut grpc, users(&["ann", "eve"])), (2, 2));
    for tab in &mut tabs {
        assert_eq!(tab.until_close().1, Some(4501));
    }
    // Kept sessions come back, all others are over.
    bob.send_text(r#"{"type": "resume", "payload": {}}"#);
    let told = bob.read()["payload"].clone();
    let sessions = vec![told["session"].as_str().expect("it is told").to_owned()];
    let (reason, keep_session) = ("back soon".to_owned(), true);
    let asked = DisconnectRequest { sessions, code: 4321, reason, keep_session, ..users(&[]) };
    assert_eq!(disconnects(&mut grpc, asked), (1, 0));
    assert_eq!(bob.until_close().1, Some(4321));
    let mut back = user(&gateway, "bob");
    let shown = json!({"session": told["session"], "secret": told["secret"], "offset": 0,
                       "boot": back.welcome["boot"]});
    back.send_text(&json!({"type": "resume", "payload": shown}).to_string());
    let resumed = back.read();
    assert_eq!(resumed["payload"]["outcome"], "resumed", "{resumed}");
}

#[test]
fn a_call_that_a_caller_may_not_make_has_its_status_and_changes_nothing() {
    let gateway = Gateway::start(&config());
    let mut ann = user(&gateway, "ann");
    for token in ["", "token-of-nobody-0123"] {
        let mut nobody = Grpc::connect(&gateway, token);
        let status = nobody.send(vec![push_to_users(&["ann"])]).expect_err("nobody");
        assert_eq!(status.code(), Code::Unauthenticated);
        let status = joins(&mut nobody, &["ann"], &["room:7"]).expect_err("nobody");
        assert_eq!(status.code(), Code::Unauthenticated);
    }
    let mut desk = Grpc::connect(&gateway, DESK);
    let status = joins(&mut desk, &["ann"], &["room:7"]).expect_err("it may push alone");
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert!(status.message().contains("\"join\""), "{status:?}");
    let mut shop = Grpc::connect(&gateway, SHOP);
    for (users, groups, code) in [
        (&["ann"][..], &["lobby"][..], Code::PermissionDenied),
        (&["ann"], &[], Code::InvalidArgument),
        (&[], &["room:7"], Code::InvalidArgument),
        (&["ann"], &["room:7"; 17], Code::InvalidArgument),
        (&["ann"], &["room 7"], Code::InvalidArgument),
    ] {
        let status = joins(&mut shop, users, groups).expect_err("it is not right");
        assert_eq!(status.code(), code, "{groups:?}: {status:?}");
    }
    let many = vec![push_to_users(&["ann"]); 101];
    assert_eq!(shop.send(many).expect_err("too many").code(), Code::InvalidArgument);
    let large = PushMessage { payload: vec![b'1'; 1 << 20].into(), ..push_to_users(&["ann"]) };
    assert_eq!(shop.send(vec![large]).expect_err("large").code(), Code::ResourceExhausted);
    // In one call the bad ones fail alone.
    let bad = PushMessage { msg_id: 0, ..push_to_users(&["ann"]) };
    let results = shop.send(vec![bad, push_to_users(&["ann"])]).expect("one is good");
    assert_eq!((results[0].reason.as_str(), written(&results[1])), ("BAD_MESSAGE", (0, 1, 1)));
    assert_eq!(hears(&mut ann), 1);
    hears_nothing(&mut ann);
}

#[test]
fn calls_about_groups_count_for_the_rate_of_their_caller() {
    let rate = shop(", pushes_per_s = 1");
    let config = bare().key(&format!("push_caller = [{rate}, {}]", desk())).key(&rule(""));
    let gateway = Gateway::start(&config);
    let mut shop = Grpc::connect(&gateway, SHOP);
    // Sent at once, as a rate flows while one waits.
    let pushes = vec![push_to_room(), push_to_room()];
    let results = shop.send(pushes).expect("the first is taken");
    assert_eq!(results[1].reason, "RATE_LIMITED");
    let mut refused = 0;
    while refused == 0 {
        match joins(&mut shop, &["ann"], &["room:7"]) {
            Ok(_) => {}
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                assert!(status.metadata().get("grpc-retry-pushback-ms").is_some(), "{status:?}");
                refused += 1;
            }
        }
    }
}
