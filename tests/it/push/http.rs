//! `POST /push`: whom it reaches, and what it answers.

use serde_json::{Value, json};

use super::callers::Http;
use super::{
    DESK, SHOP, config, counts, desk, guest, hears, hears_nothing, people, tell, user, written,
};
use crate::support::{Client, Gateway, MessageIn};

/// Reasons of results; empty = it was taken.
fn reasons(results: &[Value]) -> Vec<&str> {
    results.iter().map(|result| result["reason"].as_str().unwrap_or("")).collect()
}

#[test]
fn a_push_reaches_sessions_users_groups_and_everyone_and_each_addressee_is_counted() {
    let gateway = Gateway::start(&config());
    let mut shop = Http::connect(&gateway, SHOP);
    let names = people();
    let mut clients: Vec<Client> = names.iter().map(|name| user(&gateway, name)).collect();
    let mut tab = user(&gateway, &names[0]);
    let mut guest = guest(&gateway);
    let count = names.len() as u64;

    // Each user once, one of them in two tabs, and two who are not there.
    let to = [&names[..], &["ann".into(), "bob".into()]].concat();
    let result = shop.sends(json!({"to": {"users": to}, "msg_id": 7001, "payload": 1,
                                   "receipt": "COUNTED"}));
    assert_eq!(counts(&result), [count + 1, 0, 0, 2, 0, 0], "{result}");
    let mut offline: Vec<&str> = result["offline_users"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    offline.sort_unstable();
    assert_eq!(offline, ["ann", "bob"]);

    // Sessions by their ids; one that was never there is offline.
    let mut sessions: Vec<String> = clients.iter().map(Client::session).collect();
    sessions.extend([guest.session(), format!("{}x", &tab.session()[..15])]);
    let result = &tell(&mut shop, &json!({"sessions": sessions}), 2..3)[0];
    assert_eq!(counts(result), [count + 1, 0, 0, 1, 0, 0], "{result}");

    let result = &tell(&mut shop, &json!({"groups": ["room:7"]}), 3..4)[0];
    assert_eq!(counts(result), written(1));
    let position = &result["positions"][0];
    assert_eq!(
        (&position["group"], &position["position"]["offset"]),
        (&json!("room:7"), &json!(1))
    );
    // Without the wish for counts there are none.
    let result = shop.sends(json!({"to": {"groups": ["room:7", "room:8"]}, "msg_id": 7001,
                                   "payload": 4}));
    assert_eq!((result.get("counts"), result.get("shards")), (None, None));
    let offsets = [&result["positions"][0], &result["positions"][1]];
    assert_eq!(offsets.map(|at| at["position"]["offset"].as_u64()), [Some(2), Some(1)]);

    for (to, n) in [("everyone", 5), ("tenant_all", 6)] {
        let result = &tell(&mut shop, &json!({to: true}), n..n + 1)[0];
        assert_eq!(counts(result), written(count + 2), "{to}");
    }
    for client in &mut clients {
        assert_eq!([(); 4].map(|()| hears(client)), [1, 2, 5, 6]);
    }
    assert_eq!([(); 3].map(|()| hears(&mut tab)), [1, 5, 6]);
    // Between a group's pushes and others there is no order.
    let mut heard = [(); 5].map(|()| hears(&mut guest).as_u64());
    heard.sort_unstable();
    assert_eq!(heard, [2, 3, 4, 5, 6].map(Some));

    let stats = gateway.admin_get("/stats");
    let pushes = &stats["push"]["callers"]["shop"]["pushes"]["http"];
    let expected = json!({"session": 1, "user": 1, "group": 2, "tenant": 1, "everyone": 1});
    assert_eq!((pushes, &stats["push"]["awaited"]), (&expected, &json!(0)));
}

#[test]
fn an_id_reaches_its_addressees_once_and_the_second_answer_is_that_of_the_first() {
    let gateway = Gateway::start(&config());
    let (mut ann, mut guest) = (user(&gateway, "ann"), guest(&gateway));
    let push = |to: Value, payload: &str| {
        let id = "order-1";
        json!({"to": to, "msg_id": 7001, "payload": payload, "id": id, "receipt": "COUNTED"})
    };
    let room = || json!({"groups": ["room:7"]});
    let mut shop = Http::connect(&gateway, SHOP);
    let first = shop.sends(push(room(), "first"));
    assert_eq!((counts(&first), first.get("duplicate")), (written(1), None));
    // By another connection, as a program does that got no answer.
    let mut again = Http::connect(&gateway, SHOP);
    let second = again.sends(push(room(), "second"));
    assert_eq!((counts(&second), &second["duplicate"]), (written(0), &json!(true)));
    assert_eq!(second["positions"], first["positions"]);
    // The same id names another push where it goes elsewhere, or comes from another caller.
    let to_ann = || json!({"users": ["ann"]});
    assert_eq!(counts(&shop.sends(push(to_ann(), "first"))), written(1));
    let second = shop.sends(push(to_ann(), "second"));
    assert_eq!((counts(&second), &second["duplicate"]), (written(0), &json!(true)));
    let mut desk = Http::connect(&gateway, DESK);
    assert_eq!(counts(&desk.sends(push(to_ann(), "of the desk"))), written(1));
    assert_eq!(hears(&mut guest), "first");
    assert_eq!([hears(&mut ann), hears(&mut ann)], ["first", "of the desk"]);
    hears_nothing(&mut guest);
    hears_nothing(&mut ann);
}

#[test]
fn who_is_excepted_gets_nothing_and_is_no_addressee() {
    let gateway = Gateway::start(&config());
    let mut shop = Http::connect(&gateway, SHOP);
    let (mut ann, mut bob, mut guest) =
        (user(&gateway, "ann"), user(&gateway, "bob"), guest(&gateway));
    for client in [&mut ann, &mut bob] {
        super::join(client, "room:7");
    }
    let excepted = json!({"users": ["ann"], "sessions": [guest.session()]});
    let targets = [
        json!({"groups": ["room:7"]}),
        json!({"users": ["ann", "bob"]}),
        json!({"sessions": [guest.session(), bob.session(), ann.session()]}),
        json!({"tenant_all": true}),
        json!({"everyone": true}),
    ];
    for (n, to) in targets.iter().enumerate() {
        let push = json!({"to": to, "msg_id": 7001, "payload": n, "except": excepted,
                          "receipt": "COUNTED"});
        let result = shop.sends(push);
        assert_eq!(counts(&result), written(1), "{to}: {result}");
        assert_eq!(hears(&mut bob), n, "{to}");
    }
    hears_nothing(&mut ann);
    hears_nothing(&mut guest);
}

#[test]
fn what_is_no_request_is_refused_by_its_status_and_the_connection_goes_on() {
    let gateway = Gateway::start(&config());
    let mut guest = guest(&gateway);
    let push = json!({"to": {"groups": ["room:7"]}, "msg_id": 7001, "payload": 1});
    let good = json!({ "pushes": [push] }).to_string();
    let mut shop = Http::connect(&gateway, SHOP);
    let json = "Content-Type: application/json\r\n";
    let bearer = format!("Authorization: Bearer {SHOP}\r\n");
    for token in
        ["", "Authorization: Bearer token-of-nobody-0123\r\n", "Authorization: Basic eA==\r\n"]
    {
        let answer = shop.request("POST /push", &format!("{json}{token}"), good.as_bytes());
        assert_eq!((answer.status, &answer.json["reason"]), (401, &json!("UNAUTHENTICATED")));
        assert!(answer.header("www-authenticate").is_some(), "{answer:?}");
    }
    let many = json!({ "pushes": vec![&push; 101] }).to_string();
    let text = format!("Content-Type: text/plain\r\n{bearer}");
    let own = format!("{json}{bearer}");
    for (line, headers, body, status, why) in [
        ("POST /push", &text, good.as_str(), 415, "application/json"),
        ("POST /push", &bearer, good.as_str(), 415, "application/json"),
        ("GET /push", &own, "", 405, ""),
        ("POST /pushes", &own, good.as_str(), 404, "POST /push"),
        ("POST /push", &own, "{\"pushes\":[", 400, "EOF"),
        ("POST /push", &own, "[]", 400, "pushes"),
        ("POST /push", &own, "", 400, "pushes"),
        ("POST /push", &own, "{\"pushes\":[{\"too\":{}}]}", 400, "too"),
        ("POST /push", &own, "{\"pushes\":[{\"msg_id\":-1}]}", 400, "0 to 4294967295"),
        ("POST /push", &own, many.as_str(), 400, "push.batch_max"),
    ] {
        let answer = shop.request(line, headers, body.as_bytes());
        assert_eq!(answer.status, status, "{line} {body}: {answer:?}");
        let error = answer.json["error"].as_str().unwrap_or("");
        assert!(error.contains(why), "{body}: {answer:?}");
    }
    hears_nothing(&mut guest);
    assert_eq!(shop.post(&good).status, 200, "the connection goes on");
    assert_eq!(hears(&mut guest), 1);
    // What is too large is not read to its end, so the connection cannot go on.
    let large = vec![b' '; (1 << 20) + 6];
    let answer = shop.request("POST /push", &own, &large);
    assert_eq!((answer.status, answer.header("connection")), (413, Some("close")));
    assert_eq!(gateway.admin_get("/stats")["push"]["unknown_callers"], 3);
}

#[test]
fn one_bad_push_fails_alone_and_names_its_fault() {
    let config = config().key("push.users_max = 3").key("push.bytes_max = 1000");
    let gateway = Gateway::start(&config);
    let mut ann = user(&gateway, "ann");
    let to = || json!({"users": ["ann"]});
    let push = |more: Value| {
        let mut push = json!({"to": to(), "msg_id": 7001, "payload": "bad"});
        let more = more.as_object().expect("an object");
        more.iter().for_each(|(key, value)| push[key] = value.clone());
        push
    };
    let cases = [
        (json!({"payload": "first"}), "", ""),
        (json!({"msg_id": 0}), "BAD_MESSAGE", "msg_id"),
        (json!({"msg_id": 9015}), "BAD_MESSAGE", "msg_id"),
        (json!({"to": {}}), "BAD_MESSAGE", "to"),
        (json!({"to": {"users": ["ann"], "everyone": true}}), "BAD_MESSAGE", "to"),
        (json!({"to": {"tenant": "acme", "users": ["ann"]}}), "BAD_MESSAGE", "tenant"),
        (json!({"to": {"groups": ["room 7"]}}), "BAD_MESSAGE", "group"),
        (json!({"to": {"groups": vec!["room:7"; 17]}}), "BAD_MESSAGE", "groups"),
        (json!({"to": {"users": ["ann", "b", "c", "d"]}}), "BAD_MESSAGE", "at most 3"),
        (json!({"payload": "x".repeat(1000)}), "TOO_LARGE", "push.bytes_max"),
        (json!({"key": "k".repeat(65)}), "TOO_LARGE", "key"),
        (json!({"id": "k".repeat(65)}), "TOO_LARGE", "id"),
        (json!({"except": {"users": vec!["b"; 17]}}), "BAD_MESSAGE", "except"),
        (json!({"wait_ms": 5001}), "BAD_MESSAGE", "wait_ms"),
        (json!({"to": {"groups": ["lobby"]}}), "FORBIDDEN", "groups"),
        (json!({"to": {"groups": ["other:1"]}}), "NO_ROUTE", "[[group]]"),
        (json!({"payload": "last"}), "", ""),
    ];
    let mut shop = Http::connect(&gateway, SHOP);
    let results = shop.push(cases.iter().map(|(more, ..)| push(more.clone())).collect());
    for (result, (more, reason, names)) in results.iter().zip(&cases) {
        let (told, message) = (&result["reason"], result["message"].as_str().unwrap_or(""));
        assert_eq!(told.as_str().unwrap_or(""), *reason, "{more}: {result}");
        assert!(message.contains(names), "{more}: {result}");
    }
    assert_eq!([hears(&mut ann), hears(&mut ann)], ["first", "last"]);
    hears_nothing(&mut ann);
}

#[test]
fn a_caller_can_do_what_its_table_says_and_no_more() {
    assert!(desk().contains("to = [\"user\"]"), "this is what is tested here");
    let gateway = Gateway::start(&config());
    let mut ann = user(&gateway, "ann");
    let push =
        |to: Value, class| json!({"to": to, "msg_id": 7001, "payload": class, "priority": class});
    let users = || json!({"users": ["ann"]});
    let mut desk = Http::connect(&gateway, DESK);
    let results = desk.push(vec![
        push(json!({"sessions": [ann.session()]}), "LOW"),
        push(json!({"groups": ["room:7"]}), "LOW"),
        push(json!({"tenant_all": true}), "LOW"),
        push(json!({"everyone": true}), "LOW"),
        push(users(), "HIGH"),
        push(users(), "NORMAL"),
    ]);
    let expected = ["FORBIDDEN"; 5].into_iter().chain([""]).collect::<Vec<_>>();
    assert_eq!(reasons(&results), expected);
    assert_eq!(hears(&mut ann), "NORMAL");
    hears_nothing(&mut ann);
    let stats = gateway.admin_get("/stats");
    assert_eq!(stats["push"]["callers"]["desk"]["refused"], json!({"FORBIDDEN": 5}));
    let callers = gateway.admin_get("/push/callers").to_string();
    assert!(callers.contains("desk") && !callers.contains(DESK), "no tokens: {callers}");
}

#[test]
fn bytes_come_as_they_are_in_protobuf_and_as_base64_in_json() {
    let gateway = Gateway::start(&config());
    let mut guest = guest(&gateway);
    let mut binary = Client::protobuf(gateway.ws);
    assert_eq!(binary.read_proto().kind, "welcome");
    let payload = vec![0x0a, 6, b'r', b'o', b'o', b'm', b':', b'7'];
    binary.send_proto(&MessageIn { msg_id: 9010, seq: 1, payload, ..Default::default() });
    assert_eq!(binary.read_proto().seq, 1);
    let mut shop = Http::connect(&gateway, SHOP);
    let to = || json!({"groups": ["room:7"]});
    shop.push(vec![
        json!({"to": to(), "msg_id": 7001, "payload_base64": "AP/+", "id": "b"}),
        json!({"to": to(), "msg_id": 7002, "payload": {"a": [1, "\u{e9}"]}}),
    ]);
    let push = guest.read();
    assert_eq!((&push["payload_base64"], push.get("payload")), (&json!("AP/+"), None), "{push}");
    assert_eq!((&push["id"], &push["group"]), (&json!("b"), &json!("room:7")));
    assert_eq!(guest.read()["payload"], json!({"a": [1, "\u{e9}"]}));
    let push = binary.read_proto();
    assert_eq!((push.payload, push.id.as_str(), push.offset), (vec![0, 0xff, 0xfe], "b", 1));
    assert_eq!((push.kind.as_str(), push.group.as_str()), ("push", "room:7"));
    assert_eq!(binary.read_proto().payload, "{\"a\":[1,\"\u{e9}\"]}".as_bytes());
}
