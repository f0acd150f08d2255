//! Pushes against their rules, and their two forms against each other.

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::generated::{
    Counts, Except, GroupPosition, HistoryRequest, JoinRequest, Position, PushMessage, PushResult,
    SendResponse, To,
};
use super::*;

const LIMITS: Limits =
    Limits { bytes_max: 100, users_max: 1000, gateway_ids: (9000, 9999), has_tenants: false };
const ARRIVED: Arrived = Arrived { now: Micros(5_000), unix_ms: 7 };
const SESSION: &str = "0b7k000000000000";

fn push() -> PushMessage {
    let to = Some(To { users: vec!["ann".into()], ..To::default() });
    PushMessage { to, msg_id: 7001, payload: "{}".into(), ..PushMessage::default() }
}

fn to(to: To) -> PushMessage {
    PushMessage { to: Some(to), ..push() }
}

fn fault(message: PushMessage) -> (Reason, String) {
    let PushFault { reason, text } = check(message, &LIMITS, ARRIVED).expect_err("is checked");
    (reason, text)
}

#[test]
fn a_push_that_keeps_the_rules_is_what_it_says() {
    let message = PushMessage {
        kind: 2,
        payload: vec![255].into(),
        priority: 1,
        ttl_ms: 3,
        key: "k".into(),
        transient: true,
        id: "m-1".into(),
        except: Some(Except { sessions: vec![SESSION.into()], users: vec!["bob".into()] }),
        receipt: 1,
        ..push()
    };
    let checked = check(message, &LIMITS, ARRIVED).expect("keeps the rules");
    assert_eq!(checked.to, Target::Users(vec!["ann".into()]));
    assert!(checked.is_counted && checked.tenant.is_empty());
    let body = checked.body;
    let (msg_id, is_bytes, expires) = (body.msg_id, body.is_bytes, body.expires);
    assert_eq!((msg_id, is_bytes, expires, body.unix_ms), (7001, true, Micros(8_000), 7));
    assert_eq!((&*body.key, &*body.id, &*body.from), ("k", "m-1", ""));
    assert_eq!((checked.wait_ms, body.priority), (1_000, Priority::Critical));
    let session = SessionId::read(SESSION).expect("an id");
    let except = [Excepted::Session(session), Excepted::User("bob".into())];
    assert!(body.is_transient && body.except == except);
    let forever = check(push(), &LIMITS, ARRIVED).expect("keeps the rules").body;
    assert_eq!((forever.expires, forever.priority), (Micros(u64::MAX), Priority::Normal));
}

#[test]
fn each_rule_that_a_push_breaks_is_told_with_field_and_value() {
    let texts = |n: usize| (0..n).map(|i| format!("u{i}")).collect::<Vec<_>>();
    let (bad, large) = (Reason::BadMessage, Reason::TooLarge);
    let except = |n| Some(Except { users: texts(n), ..Except::default() });
    let of = |name: &str| to(To { groups: vec![name.into()], ..To::default() });
    for (message, reason, begin) in [
        (PushMessage { to: None, ..push() }, bad, "to: names nobody"),
        (
            to(To { users: texts(1), groups: texts(1), ..To::default() }),
            bad,
            "to: users and groups are set",
        ),
        (to(To { users: texts(1001), ..To::default() }), bad, "to.users: 1001 of them; at most"),
        (to(To { sessions: texts(1001), ..To::default() }), bad, "to.sessions: 1001 of them"),
        (to(To { sessions: texts(1), ..To::default() }), bad, "to.sessions[0]: \"u0\" is no id"),
        (to(To { groups: texts(17), ..To::default() }), bad, "to.groups: 17 of them; at most 16"),
        (to(To { users: vec!["".into()], ..To::default() }), bad, "to.users[0]: \"\" is no"),
        (to(To { tenant: "a".into(), everyone: true, ..To::default() }), bad, "to.tenant: \"a\""),
        (of(""), bad, "to.groups[0]: \"\" is no"),
        (of("a\nb"), bad, "to.groups[0]: \"a\\nb\" is no name"),
        (of(&"x".repeat(129)), large, "to.groups[0]: a name of 129 bytes; at most 128"),
        (PushMessage { msg_id: 0, ..push() }, bad, "msg_id: 0 is none"),
        (PushMessage { msg_id: 9999, ..push() }, bad, "msg_id: 9999 is none"),
        (PushMessage { payload: "{".into(), ..push() }, bad, "payload: is not one JSON text"),
        (PushMessage { payload: "1 2".into(), ..push() }, bad, "payload: is not one JSON text"),
        (PushMessage { payload: vec![0; 101].into(), kind: 2, ..push() }, large, "payload: 101 b"),
        (PushMessage { kind: 3, ..push() }, bad, "kind: 3 is none"),
        (PushMessage { priority: 5, ..push() }, bad, "priority: 5 is none"),
        (PushMessage { receipt: 2, ..push() }, bad, "receipt: 2 is none"),
        (PushMessage { wait_ms: 5001, ..push() }, bad, "wait_ms: 5001 is more than 5000"),
        (PushMessage { key: "x".repeat(65), ..push() }, large, "key: 65 bytes; at most 64"),
        (PushMessage { id: "x".repeat(65), ..push() }, large, "id: 65 bytes; at most 64"),
        (PushMessage { except: except(17), ..push() }, bad, "except: 17 of them; at most 16"),
    ] {
        let (told, text) = fault(message);
        assert!(told == reason && text.starts_with(begin), "{text}");
    }
    let edge = PushMessage { payload: vec![0; 100].into(), kind: 2, except: except(16), ..push() };
    check(edge, &LIMITS, ARRIVED).expect("at its limits");
    check(PushMessage { payload: "".into(), ..push() }, &LIMITS, ARRIVED).expect("a signal");
}

#[test]
fn a_tenant_is_named_where_there_are_many_and_everyone_needs_none() {
    let limits = Limits { has_tenants: true, ..LIMITS };
    let checked = |to| check(self::to(to), &limits, ARRIVED);
    let nobody = checked(To { tenant_all: true, ..To::default() }).expect_err("no tenant");
    assert!(nobody.text.starts_with("to.tenant: is missing"), "{}", nobody.text);
    checked(To { everyone: true, ..To::default() }).expect("all of all tenants");
    let groups = vec!["room:7".into(), "room:7".into()];
    let to = checked(To { tenant: "acme".into(), groups, ..To::default() }).expect("right").to;
    let group = GroupName::new(TenantId::of("acme"), "room:7").expect("a name");
    assert_eq!(to, Target::Groups(vec![group]), "each once");
}

#[test]
fn the_example_of_the_guide_is_read_and_answered() {
    let text = br#"{"pushes":[{"to":{"groups":["room:7"]},"msg_id":7001,"payload":{"text":"hi"},
        "id":"m-99","except":{"users":["ann"]},"receipt":"COUNTED"}]}"#;
    let request = read_request(text).expect("right");
    assert_eq!(&request.pushes[0].payload[..], br#"{"text":"hi"}"#);
    assert_eq!((request.pushes[0].receipt, request.pushes.len()), (1, 1));
    let position = Some(Position { epoch: "0000a3f2".into(), offset: 122 });
    let positions = vec![GroupPosition { group: "room:7".into(), position }];
    let counts =
        Some(Counts { addressees: 4, written: 3, offline: 1, kept: 1, ..Counts::default() });
    let results = vec![PushResult { positions, counts, ..PushResult::default() }];
    let told = String::from_utf8(write_answer(&SendResponse { results })).expect("JSON");
    let expected = concat!(
        r#"{"results":[{"positions":[{"group":"room:7","#,
        r#""position":{"epoch":"0000a3f2","offset":122}}],"#,
        r#""counts":{"addressees":4,"written":3,"offline":1,"kept":1}}]}"#
    );
    assert_eq!(told, expected);
}

#[test]
fn json_that_is_no_request_is_refused_with_what_is_wrong() {
    let one = |push: &str| format!(r#"{{"pushes":[{push}]}}"#);
    for (text, part) in [
        ("".into(), "pushes is wanted"),
        ("[]".into(), "pushes"),
        ("{}".into(), "missing field `pushes`"),
        (one(r#"{"mesg_id":1}"#), "unknown field `mesg_id`"),
        (one(r#"{"to":{"user":["a"]}}"#), "unknown field `user`"),
        (one(r#"{"msg_id":-1}"#), "a number from 0 to 4294967295 is wanted"),
        (one(r#"{"msg_id":1.5}"#), "a number from 0 to 4294967295 is wanted"),
        (one(r#"{"receipt":"ALL"}"#), "COUNTED, or its number, is wanted"),
        (one(r#"{"payload":1,"payload_base64":"AA=="}"#), "pushes[0].payload_base64: is beside"),
        (one(r#"{"payload":1,"kind":"BYTES"}"#), "pushes[0].payload: is a JSON value"),
        (one(r#"{"payload_base64":"!"}"#), "pushes[0].payload_base64: a string of base64"),
    ] {
        let told = read_request(text.as_bytes()).expect_err("is none");
        assert!(told.contains(part), "{text}: {told}");
    }
    let lenient = one(r#"{"msg_id":7.001e3,"priority":"high","payload_base64":"AA","to":null}"#);
    let push = read_request(lenient.as_bytes()).expect("right").pushes.remove(0);
    assert_eq!((push.msg_id, push.priority, push.kind, &push.payload[..]), (7001, 2, 2, &[0][..]));
}

/// The JSON of a push, as a caller in another language writes it.
fn text_of(push: &PushMessage, is_value: bool, by_name: bool) -> Value {
    let to = push.to.clone().unwrap_or_default();
    let except = push.except.clone().unwrap_or_default();
    let names = ["PRIORITY_UNSPECIFIED", "critical", "PRIORITY_HIGH", "NORMAL", "LOW"];
    let priority = match by_name {
        true => json!(names[push.priority as usize]),
        false => json!(push.priority),
    };
    let mut text = json!({
        "to": {
            "tenant": to.tenant, "sessions": to.sessions, "users": to.users, "groups": to.groups,
            "tenant_all": to.tenant_all, "everyone": to.everyone,
        },
        "msg_id": push.msg_id, "priority": priority, "ttl_ms": push.ttl_ms, "key": push.key,
        "transient": push.transient, "id": push.id, "receipt": push.receipt,
        "except": { "sessions": except.sessions, "users": except.users },
        "wait_ms": push.wait_ms, "kind": push.kind,
    });
    match is_value {
        true => text["payload"] = serde_json::from_slice(&push.payload).expect("JSON"),
        false => {
            use base64::Engine as _;
            let engine = base64::engine::general_purpose::STANDARD;
            text["payload_base64"] = json!(engine.encode(&push.payload));
        }
    }
    text
}

#[test]
fn a_call_is_read_from_its_fields_and_absent_or_null_is_empty() {
    let read = |text: &str| read_call::<JoinRequest>(text.as_bytes());
    let text = r#" {"users": ["ann"], "groups": ["room:7"], "info": {"a" : [1]}}"#;
    let join = read(text).expect("right");
    assert_eq!((&*join.users, &*join.info), (&["ann".to_owned()][..], &br#"{"a" : [1]}"#[..]));
    assert!(read(r#"{"info": null}"#).is_ok_and(|join| join.info.is_empty()));
    for bad in ["[]", "[[], [], [], [], 1]", r#"{"user": []}"#, r#"{"users": "ann"}"#, "{} {}"] {
        assert!(read(bad).is_err(), "{bad}");
    }
    let text = br#"{"group": "a", "since": {"epoch": "0000001f", "offset": 3}, "limit": 1e2}"#;
    let history: HistoryRequest = read_call(text).expect("right");
    let since = history.since.expect("it is there");
    assert_eq!((&*since.epoch, since.offset, history.limit), ("0000001f", 3, 100));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn both_forms_of_a_push_are_one(
        names in vec(vec("(?s).{0,9}", 0..3), 5),
        [tenant, key, id] in prop::array::uniform3("(?s).{0,9}"),
        numbers in (any::<u32>(), 0..5_i32, any::<u32>(), 0..2_i32, any::<u32>()),
        flags in any::<[bool; 4]>(),
        payload in (any::<bool>(), vec(any::<u8>(), 1..40)),
    ) {
        let [sessions, users, groups, but_sessions, but_users] =
            <[Vec<String>; 5]>::try_from(names).unwrap();
        let (is_value, bytes) = payload;
        let payload = if is_value { json!(bytes).to_string().into() } else { bytes.into() };
        let push = PushMessage {
            to: Some(To {
                tenant, sessions, users, groups, tenant_all: flags[0], everyone: flags[1],
            }),
            msg_id: numbers.0,
            payload,
            kind: if is_value { 1 } else { 2 },
            priority: numbers.1,
            ttl_ms: numbers.2,
            key,
            transient: flags[2],
            id,
            except: Some(Except { sessions: but_sessions, users: but_users }),
            receipt: numbers.3,
            wait_ms: numbers.4,
        };
        let text = json!({ "pushes": [text_of(&push, is_value, flags[3])] }).to_string();
        let read = read_request(text.as_bytes());
        prop_assert_eq!(read.map(|request| request.pushes), Ok(vec![push]));
    }

    #[test]
    fn noise_is_refused_and_never_a_panic(
        bytes in vec(any::<u8>(), 0..60),
        numbers in (any::<u32>(), any::<i32>(), any::<i32>(), any::<i32>(), any::<u32>()),
        names in vec("(?s).{0,20}", 0..3),
    ) {
        prop_assert!(read_request(&bytes).is_err());
        let _ = read_call::<JoinRequest>(&bytes);
        let to = To { groups: names.clone(), sessions: names, ..To::default() };
        let (msg_id, kind, priority, receipt, ttl_ms) = numbers;
        let payload = bytes.into();
        let message = PushMessage {
            to: Some(to), msg_id, kind, priority, receipt, ttl_ms, payload, ..push()
        };
        let _ = check(message, &LIMITS, ARRIVED);
    }
}
