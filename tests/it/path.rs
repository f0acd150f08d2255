//! The path of a message, and the messages that the gateway answers itself.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use prost::Message as _;
use serde_json::{Value, json};

use shardgate::demo::proto::{BaseRequest, BaseResponse};

use crate::support::{
    Action, Client, Config, Gateway, Instance, MessageIn, Raw, demo, eventually, frame, ok, several,
};

/// A gateway with the demo services at the addresses that they have now.
fn with_demo(config: Config) -> (Gateway, shardgate::demo::DemoServices) {
    let (services, [logic, chat, fight]) = demo();
    let config = config
        .service("logic", &[("logic-1", logic)])
        .service("chat", &[("chat-1", chat)])
        .service("fight", &[("fight-1", fight)])
        .route(1000, "logic", "")
        .route(2000, "chat", "")
        .route(3000, "fight", "priority = \"high\"");
    (Gateway::start(&config), services)
}

#[test]
fn a_message_is_answered_by_its_service_in_json() {
    let (gateway, _services) = with_demo(Config::new());
    let mut client = Client::connect(gateway.ws);
    client.send_text(r#"{"msg_id":2001,"seq":1,"payload":{"text":"hello"}}"#);
    assert_eq!(client.read(), json!({"msg_id": 2001, "seq": 1, "payload": {"text": "hello"}}));
    // Payloads are values of any kind, byte for byte; absent is no bytes.
    for payload in [json!(null), json!(1.5), json!("x"), json!([1, {"a": []}]), json!({})] {
        assert_eq!(client.call(1001, payload.clone())["payload"], payload);
    }
    assert_eq!(client.ask(json!({"msg_id": 1001})).get("payload"), None);
    for (id, service) in [(1999, "logic"), (2000, "chat"), (3999, "fight")] {
        let who = &client.call(id, json!({"who": true}))["payload"];
        assert_eq!((&who["service"], &who["msg_id"]), (&json!(service), &json!(id)));
        assert_eq!((&who["encoding"], &who["attempt"]), (&json!("ENCODING_JSON"), &json!(1)));
        assert_eq!(who["session"], client.welcome["session"]);
    }
}

#[test]
fn a_message_is_answered_by_its_service_in_protobuf() {
    let (gateway, _services) = with_demo(Config::new().key("node = \"node-1\""));
    let mut client = Client::protobuf(gateway.ws);
    let welcome = client.read_proto();
    assert_eq!(welcome.kind, "welcome");
    let welcome = shardgate::wire::client::Welcome::decode(&welcome.payload[..]).expect("typed");
    assert_eq!((welcome.node.as_str(), welcome.session.len()), ("node-1", 16));
    let payload = b"\x00\xff not JSON".to_vec();
    let message =
        MessageIn { msg_id: 1001, seq: 7, payload: payload.clone(), ..Default::default() };
    client.send_proto(&message);
    let answer = client.read_proto();
    assert_eq!((answer.msg_id, answer.seq, answer.status), (1001, 7, 0));
    assert_eq!((answer.payload, answer.kind.as_str()), (payload, ""));
    client.send_proto(&MessageIn { msg_id: 7, seq: 8, ..Default::default() });
    let answer = client.read_proto();
    assert_eq!((answer.seq, answer.status, answer.reason.as_str()), (8, 5, "NO_ROUTE"));
    client.send_proto(&MessageIn { kind: "ping".into(), seq: 9, ..Default::default() });
    assert_eq!(client.read_proto().kind, "pong");
}

#[test]
fn the_welcome_names_the_session_and_its_limits() {
    let gateway = Gateway::start(
        &Config::new().key("node = \"n-7\"").shard("conn.unanswered_max = 9").shards(several()),
    );
    let client = Client::connect(gateway.ws);
    let welcome = &client.welcome;
    assert_eq!(client.session().len(), 16);
    assert_eq!(welcome["node"], "n-7");
    assert!(welcome["shard"].as_u64().expect("a number") < gateway.shards as u64);
    assert_eq!(welcome["heartbeat_ms"], 30_000);
    let limits = json!({"message_bytes_max": 65536, "unanswered_max": 9, "messages_per_s_max": 0});
    assert_eq!(welcome["limits"], limits);
    assert_ne!(Client::connect(gateway.ws).session(), client.session());
}

#[test]
fn the_gateway_answers_its_own_ids() {
    let gateway = Gateway::start(&Config::new().key("node = \"node-1\""));
    let mut client = Client::connect(gateway.ws);
    let payload = json!({"n": [1, 2]});
    assert_eq!(client.call(9000, payload.clone())["payload"], payload);
    let time = client.call(9001, json!(null))["payload"]["unix_us"].as_u64().expect("a time");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros();
    assert!(now.abs_diff(u128::from(time)) < 60_000_000, "{now} {time}");
    let who = &client.call(9002, json!(null))["payload"];
    assert_eq!(who["session"], client.welcome["session"]);
    let peer = client.stream().local_addr().expect("connected").to_string();
    assert_eq!((&who["node"], &who["peer"]), (&json!("node-1"), &json!(peer)));
    // Explaining is off by default, and other ids of the range belong to no one.
    for id in [9003, 9004, 9999] {
        let answer = client.call(id, json!({"msg_id": 1001}));
        assert_eq!((&answer["status"], &answer["reason"]), (&json!(12), &json!("UNIMPLEMENTED")));
    }
}

#[test]
fn a_route_is_explained_where_that_is_allowed() {
    let instance = Instance::echo();
    let config = Config::new()
        .key("gateway.explain_to_clients = true")
        .service("logic", &[("a", instance.address)])
        .route(1000, "logic", "hash_on = \"key\"");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let mut client = Client::connect(gateway.ws);
    let answer = client.call(9003, json!({"msg_id": 1500, "key": "room"}));
    let expected = json!({"msg_id": 1500, "route": "1000-1999", "service": "logic",
        "hash_on": "key", "instance": "a", "version": 1});
    assert_eq!(answer["payload"], expected);
    assert_eq!(client.call(9003, json!({"msg_id": 5}))["reason"], "NO_ROUTE");
    assert_eq!(client.call(9003, json!([]))["reason"], "BAD_MESSAGE");
}

#[test]
fn system_messages_are_answered_by_the_gateway() {
    let gateway = Gateway::start(&Config::new());
    let mut client = Client::connect(gateway.ws);
    let pong = client.ask(json!({"type": "ping"}));
    assert_eq!((&pong["type"], &pong["seq"]), (&json!("pong"), &json!(1)));
    assert!(pong["payload"]["unix_ms"].as_u64().is_some_and(|ms| ms > 1_600_000_000_000));
    // A one-way heartbeat is not answered: the next answer is the ping's.
    client.send_text(r#"{"type":"heartbeat"}"#);
    client.send_text(r#"{"type":"ping"}"#);
    assert_eq!(client.read()["type"], "pong");
    let answer = client.ask(json!({"type": "heartbeat"}));
    assert_eq!((&answer["seq"], answer.get("status")), (&json!(2), None));
    for kind in ["auth", "no_such_type"] {
        let answer = client.ask(json!({"type": kind, "payload": {"token": "x"}}));
        assert_eq!((&answer["status"], &answer["reason"]), (&json!(12), &json!("UNIMPLEMENTED")));
    }
}

#[test]
fn an_id_without_route_is_refused_and_the_connection_stays() {
    let (gateway, _services) = with_demo(Config::new());
    let mut client = Client::connect(gateway.ws);
    for id in [1, 999, 4000, 8999, 10_000, u32::MAX] {
        let answer = client.call(id, json!(1));
        assert_eq!((&answer["status"], &answer["reason"]), (&json!(5), &json!("NO_ROUTE")));
        assert_eq!(answer["msg_id"], id);
    }
    assert_eq!(client.call(1000, json!(1))["payload"], 1);
    assert_eq!(gateway.admin_get("/routing/stats")["routing"]["failed_routes"], 6);
    eventually("route_failed in the log", || gateway.log().contains("route_failed").then_some(()));
}

#[test]
fn a_service_that_fails_is_logged_in_its_own_words_and_one_that_refuses_a_client_is_not() {
    // The payload says what to answer: 100 and more is the end of the whole call.
    let answers = |number: u32| {
        Instance::start(move |call| {
            let asked = |r: &BaseRequest| serde_json::from_slice::<u32>(&r.payload).expect("one");
            match call.batch.requests.iter().map(asked).max() {
                Some(asked) if asked >= 100 => Action::Status(asked - 100),
                _ => Action::Reply(
                    call.batch
                        .requests
                        .iter()
                        .map(|r| BaseResponse {
                            status: asked(r),
                            message: format!("line {number}\n\u{1b}[31m{}", "x".repeat(500)),
                            ..ok(r)
                        })
                        .collect(),
                ),
            }
        })
    };
    let (one, two) = (answers(1), answers(2));
    let config = Config::new()
        .service("logic", &[("logic-1", one.address)])
        .service("chat", &[("chat-1", two.address)])
        .route(1000, "logic", "")
        .route(2000, "chat", "");
    let gateway = Gateway::start(&config);
    let mut client = Client::connect(gateway.ws);
    // NOT_FOUND and PERMISSION_DENIED are answers to one client.
    assert_eq!(client.call(1001, json!(5))["status"], 5);
    assert_eq!(client.call(1001, json!(7))["status"], 7);
    // INTERNAL is not, and the client gets the status alone.
    let began = Instant::now();
    let answer = client.call(1002, json!(13));
    assert_eq!((&answer["status"], answer.get("message")), (&json!(13), None));
    let log = || gateway.log();
    let lines = |log: String, instance: &str| -> Vec<String> {
        let of = |l: &&str| l.contains("service_failed") && l.contains(instance);
        log.lines().filter(of).map(str::to_owned).collect()
    };
    let told = eventually("a line", || lines(log(), "logic-1").pop());
    for part in [
        " WARN ",
        "service=\"logic\"",
        "msg_id=1002",
        "status=\"INTERNAL\"",
        "line 1\\n",
        "count=1",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(told.len() < 600 && !told.contains('\u{1b}'), "cut and escaped: {told}");
    // A whole batch that fails is an answer, too, and the client's text says so.
    let answer = client.call(2001, json!(108));
    assert_eq!((&answer["status"], &answer["reason"]), (&json!(8), &json!("OUTCOME_UNKNOWN")));
    let text = answer["message"].as_str().expect("a text");
    assert!(text.contains("the service answered with an error"), "{text}");
    let told = eventually("a line", || lines(log(), "chat-1").pop());
    assert!(told.contains("status=\"RESOURCE_EXHAUSTED\""), "{told}");
    // It repeats as one line a second at most.
    for _ in 0..50 {
        client.call(1003, json!(13));
    }
    assert!(lines(log(), "logic-1").len() as u64 <= 2 + began.elapsed().as_secs());
}

/// Bad JSON messages, each with the seq of its error.
const BAD: [(&str, u64); 16] = [
    ("", 0),
    ("not JSON", 0),
    ("[1001,3]", 0),
    ("null", 0),
    (r#"{"seq":4}"#, 4),
    (r#"{"msg_id":1001,"seq":"5"}"#, 0),
    (r#"{"msg_id":"1001","seq":6}"#, 6),
    (r#"{"msg_id":-1,"seq":7}"#, 7),
    (r#"{"msg_id":1001.5,"seq":8}"#, 8),
    (r#"{"msg_id":4294967296,"seq":9}"#, 9),
    (r#"{"msg_id":1001,"seq":9007199254740992}"#, 0),
    (r#"{"msg_id":1001,"msg_id":1002,"seq":10}"#, 10),
    (r#"{"msg_id":1001,"seq":11,"payload":NaN}"#, 11),
    (r#"{"msg_id":1001,"seq":12,"payload":1,"payload_base64":"AA=="}"#, 12),
    (r#"{"msg_id":1001,"seq":13,"payload":{}"#, 13),
    (r#"{"msg_id":1001,"seq":14}{}"#, 14),
];

#[test]
fn a_bad_message_is_told_and_the_connection_stays() {
    let (gateway, _services) = with_demo(Config::new().shard("conn.bad_messages_max = 100"));
    let mut client = Client::connect(gateway.ws);
    for (text, seq) in BAD {
        client.send_text(text);
        let error = client.read();
        assert_eq!((&error["type"], &error["status"]), (&json!("error"), &json!(3)), "{text}");
        assert_eq!(error["reason"], "BAD_MESSAGE", "{text}");
        assert_eq!(error["seq"].as_u64().unwrap_or(0), seq, "{text}");
    }
    let deep =
        format!(r#"{{"seq":15,"msg_id":1001,"payload":{}{}}}"#, "[".repeat(70), "]".repeat(70));
    client.send_text(&deep);
    assert_eq!(client.read()["seq"], 15);
    for (field, len) in [("id", 65), ("key", 129), ("type", 33)] {
        let mut message = json!({"msg_id": 1001, "seq": 16 + len});
        message[field] = "x".repeat(len).into();
        client.send_text(&message.to_string());
        assert_eq!(client.read()["reason"], "TOO_LARGE");
    }
    // A seq must rise.
    client.send_text(r#"{"msg_id":1001,"seq":500}"#);
    assert_eq!(client.read()["seq"], 500);
    client.send_text(r#"{"msg_id":1001,"seq":500}"#);
    assert_eq!(client.read()["reason"], "BAD_MESSAGE");
    client.send_text(r#"{"msg_id":1001,"seq":501,"unknown_key":[1]}"#);
    assert_eq!(client.read(), json!({"msg_id": 1001, "seq": 501}));
}

#[test]
fn too_many_bad_messages_close_with_1008() {
    let gateway = Gateway::start(&Config::new().shard("conn.bad_messages_max = 3"));
    let mut raw = Raw::upgraded(gateway.ws);
    for _ in 0..3 {
        raw.text("bad");
        assert_eq!(raw.frame().json()["reason"], "BAD_MESSAGE");
    }
    raw.text("bad");
    assert_eq!(raw.closed(), Some(1008));
    raw.send(&frame(0x88, &1008_u16.to_be_bytes()));
    assert!(raw.rest().is_empty());
}

#[test]
fn refused_one_way_messages_are_told_with_a_count() {
    let gateway = Gateway::start(&Config::new());
    let mut client = Client::connect(gateway.ws);
    for _ in 0..5 {
        client.send_text(r#"{"msg_id":7}"#);
    }
    let mut counted = 0;
    let mut errors = 0;
    while counted < 5 {
        let error = client.read();
        assert_eq!((&error["type"], error.get("seq")), (&json!("error"), None));
        counted += error["payload"]["count"].as_u64().expect("a count");
        errors += 1;
    }
    // One refusal at once, and one a second later for the other four.
    assert_eq!((counted, errors), (5, 2));
    assert_eq!(gateway.counter("one_way_refused"), 5);
}

#[test]
fn a_one_way_message_reaches_its_service_and_is_not_answered() {
    let instance = Instance::echo();
    let config =
        Config::new().service("logic", &[("a", instance.address)]).route(1000, "logic", "");
    let gateway = Gateway::start(&config);
    let mut client = Client::connect(gateway.ws);
    client.send_text(r#"{"msg_id":1001,"payload":"one way"}"#);
    assert_eq!(client.call(1002, json!("asked"))["payload"], "asked");
    let requests = instance.requests();
    assert_eq!(requests.iter().map(|r| r.seq).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(&requests[0].payload[..], b"\"one way\"");
}

#[test]
fn what_a_service_is_told_with_a_message() {
    let instance = Instance::echo();
    let config = Config::new()
        .key("node = \"n-1\"")
        .service("logic", &[("a", instance.address)])
        .route(1000, "logic", "priority = \"low\"\ntimeout_ms = 3000");
    let gateway = Gateway::start(&config);
    let mut client = Client::connect(gateway.ws);
    let message = json!({"msg_id": 1001, "id": "i-1", "key": "k-1", "deadline_ms": 2000,
        "payload": {"b":  1.0}});
    client.ask(message);
    client.ask(json!({"msg_id": 1002, "deadline_ms": 90_000}));
    let calls = instance.calls();
    assert_eq!(calls[0].path, "/shardgate.backend.v1.Backend/Handle");
    assert_eq!((calls[0].batch.gateway.as_str(), calls[0].batch.shard), ("n-1", 0));
    assert_ne!(calls[0].batch.boot_id, 0);
    let [first, second] = &instance.requests()[..] else { panic!("two") };
    assert_eq!((first.msg_id, first.seq, first.attempt, first.priority), (1001, 1, 1, 4));
    assert_eq!((first.id.as_str(), first.key.as_str()), ("i-1", "k-1"));
    assert_eq!(first.session, client.session());
    assert_eq!((first.user.as_str(), first.tenant.as_str()), ("", ""));
    assert!((1..=2000).contains(&first.timeout_ms), "{first:?}");
    // The client's deadline is capped by the route's.
    assert!((2001..=3000).contains(&second.timeout_ms), "{second:?}");
    assert_ne!(first.request_id, second.request_id);
}

#[test]
fn a_services_own_error_is_the_answer() {
    let (gateway, _services) = with_demo(Config::new());
    let mut client = Client::connect(gateway.ws);
    for (asked, status) in [(3, 3), (16, 16), (17, 2), (4_000_000_000_u32, 2)] {
        let answer = client.call(1001, json!({"fail": asked, "retry_after_ms": 70}));
        assert_eq!(answer["status"], status);
        assert_eq!(answer["retry_after_ms"], 70);
        // The service answered: no reason. Its text stays inside unless the route lets it out.
        assert_eq!((answer.get("reason"), answer.get("message")), (None, None), "{answer}");
    }
}

#[test]
fn a_services_text_reaches_clients_where_the_route_allows_it() {
    let (services, [logic, ..]) = demo();
    let config = Config::new().service("logic", &[("logic-1", logic)]).route(
        1000,
        "logic",
        "service_text = true",
    );
    let gateway = Gateway::start(&config);
    let answer = Client::connect(gateway.ws).call(1001, json!({"fail": 9}));
    assert_eq!(answer["message"], "logic-1 fails with 9, as asked");
    drop(services);
}

#[test]
fn a_route_of_bytes_carries_base64() {
    let instance = Instance::echo();
    let config = Config::new()
        .service("logic", &[("a", instance.address)])
        .route(1000, "logic", "payload = \"bytes\"")
        .route(2000, "logic", "");
    let gateway = Gateway::start(&config);
    let mut client = Client::connect(gateway.ws);
    let answer = client.ask(json!({"msg_id": 1001, "payload_base64": "AP8B"}));
    assert_eq!(answer["payload_base64"], "AP8B");
    assert_eq!(answer.get("payload"), None);
    assert_eq!(&instance.requests()[0].payload[..], [0, 255, 1]);
    let wrong = [
        json!({"msg_id": 1001, "payload": {}}),
        json!({"msg_id": 1001, "payload_base64": "%"}),
        json!({"msg_id": 2001, "payload_base64": "AA=="}),
    ];
    for message in wrong {
        assert_eq!(client.ask(message)["reason"], "BAD_MESSAGE");
    }
    assert_eq!(instance.requests().len(), 1);
}

#[test]
fn a_route_of_json_lets_only_json_back_to_json_clients() {
    let instance = Instance::echo();
    let config =
        Config::new().service("logic", &[("a", instance.address)]).route(1000, "logic", "");
    let gateway = Gateway::start(&config);
    instance.script(|call| {
        let mut response = crate::support::ok(&call.batch.requests[0]);
        response.payload = b"{not json"[..].into();
        crate::support::Action::Reply(vec![response])
    });
    let answer = Client::connect(gateway.ws).call(1001, json!(1));
    assert_eq!((&answer["status"], &answer["reason"]), (&json!(13), &json!("BAD_SERVICE_REPLY")));
}

#[test]
fn an_answer_that_is_too_large_is_refused_before_it_is_read_as_json() {
    let instance = Instance::start(|call| {
        let mut response = crate::support::ok(&call.batch.requests[0]);
        // Not JSON either, which only a reader of all of it could tell.
        response.payload = vec![b'['; 2 << 20].into();
        crate::support::Action::Reply(vec![response])
    });
    let config =
        Config::new().service("logic", &[("a", instance.address)]).route(1000, "logic", "");
    let gateway = Gateway::start(&config);
    let answer = Client::connect(gateway.ws).call(1001, json!(1));
    assert_eq!(answer["reason"], "BAD_SERVICE_REPLY");
    let text = answer["message"].as_str().expect("a sentence");
    assert!(text.contains("outbox_bytes_max"), "{text}");
}

#[test]
fn messages_are_taken_as_the_libraries_of_other_languages_write_them() {
    let instance = Instance::echo();
    let config = Config::new()
        .service("logic", &[("a", instance.address)])
        .route(1000, "logic", "")
        .route(2000, "logic", "payload = \"bytes\"");
    let gateway = Gateway::start(&config);
    let mut client = Client::connect(gateway.ws);
    let rows = [
        // C# and Kotlin: nulls; Unity: "" and 0 for what is not set.
        (
            r#"{"msg_id":1001,"seq":1,"type":null,"payload":null,"payload_base64":null,"id":null,
                "key":null,"deadline_ms":null,"ack":null}"#,
            json!({"msg_id": 1001, "seq": 1, "payload": null}),
        ),
        (
            r#"{"msg_id":1001,"seq":2,"type":"","payload":"a","payload_base64":"","id":"",
                "key":"","deadline_ms":0,"ack":0}"#,
            json!({"msg_id": 1001, "seq": 2, "payload": "a"}),
        ),
        // Godot, Lua, PHP: floats.
        (
            r#"{"msg_id":1001.0,"seq":3.0,"payload":1.0}"#,
            json!({"msg_id": 1001, "seq": 3, "payload": 1.0}),
        ),
        (r#"{"msg_id":1.001e3,"seq":4e0,"ack":-0}"#, json!({"msg_id": 1001, "seq": 4})),
        // A byte order mark, as Windows' libraries write one.
        ("\u{feff}{\"msg_id\":1001,\"seq\":5}", json!({"msg_id": 1001, "seq": 5})),
        // Base64 of the URL's alphabet, without padding, in lines.
        (
            r#"{"msg_id":2001,"seq":6,"payload_base64":"-_8"}"#,
            json!({"msg_id": 2001, "seq": 6, "payload_base64": "+/8="}),
        ),
        (
            r#"{"msg_id":2001,"seq":7,"payload_base64":"AQID\r\nBAUG\r\n"}"#,
            json!({"msg_id": 2001, "seq": 7, "payload_base64": "AQIDBAUG"}),
        ),
        (r#"{"msg_id":2001,"seq":8,"payload_base64":""}"#, json!({"msg_id": 2001, "seq": 8})),
    ];
    for (text, answer) in rows {
        client.send_text(text);
        assert_eq!(client.read(), answer, "{text}");
    }
    client.send_text(r#"{"msg_id":1001,"seq":"9"}"#);
    let wanted = "seq: a whole number from 0 to 2^53-1 is wanted, at byte 21";
    assert_eq!(client.read()["message"], wanted);
    client.send_text(r#"{"msg_id":1001,"seq":10"#);
    let error = client.read();
    assert_eq!((&error["seq"], &error["message"]), (&json!(10), &json!("not JSON at byte 23")));
    let mut binary = Client::protobuf(gateway.ws);
    binary.read_proto();
    binary.send_proto(&MessageIn {
        msg_id: 1001,
        seq: 1,
        id: "x".repeat(65),
        ..Default::default()
    });
    let wanted = "id: a string of at most 64 bytes is wanted, at byte 5";
    assert_eq!(binary.read_proto().message, wanted);
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[test]
fn any_grpc_method_can_be_called_by_a_unary_route() {
    use base64::Engine as _;
    let (_services, [logic, ..]) = demo();
    let method = "payload = \"bytes\"\nmethod = \"/grpc.health.v1.Health/Check\"";
    let config =
        Config::new().service_of("unary", "health", &[("h", logic)]).route(1000, "health", method);
    let gateway = Gateway::start(&config);
    let base64 = base64::engine::general_purpose::STANDARD;
    let check = |service: &str| {
        base64.encode(HealthCheckRequest { service: service.into() }.encode_to_vec())
    };
    let mut client = Client::connect(gateway.ws);
    let name = "shardgate.backend.v1.Backend";
    let answer = client.ask(json!({"msg_id": 1001, "payload_base64": check(name)}));
    // HealthCheckResponse { status: SERVING }: field 1, varint 1.
    assert_eq!(answer["payload_base64"], base64.encode([8, 1]), "{answer}");
    let answer = client.ask(json!({"msg_id": 1001, "payload_base64": check("none")}));
    assert_eq!((&answer["status"], answer.get("reason")), (&json!(5), None), "{answer}");
    let mut binary = Client::protobuf(gateway.ws);
    binary.read_proto();
    let payload = HealthCheckRequest { service: name.into() }.encode_to_vec();
    binary.send_proto(&MessageIn { msg_id: 1002, seq: 1, payload, ..Default::default() });
    assert_eq!(binary.read_proto().payload, [8, 1]);
}

/// The example of W3C Trace Context.
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[test]
fn a_traceparent_reaches_the_service_and_no_other_message() {
    let (gateway, _services) = with_demo(Config::new());
    let mut client = Client::connect(gateway.ws);
    let seen =
        |client: &mut Client, message: Value| client.ask(message)["payload"]["traceparent"].clone();
    let who = json!({"msg_id": 1001, "payload": {"who": true}});
    let traced = json!({"msg_id": 1001, "payload": {"who": true}, "traceparent": TRACEPARENT});
    assert_eq!(seen(&mut client, traced.clone()), TRACEPARENT);
    // The slot of the message before is used again, and keeps nothing of it.
    assert_eq!(seen(&mut client, who), "");
    let refused = client.ask(json!({"msg_id": 1001, "traceparent": TRACEPARENT.to_uppercase()}));
    assert_eq!((&refused["status"], &refused["reason"]), (&json!(3), &json!("BAD_MESSAGE")));
    let mut binary = Client::protobuf(gateway.ws);
    binary.read_proto();
    let (payload, traceparent) = (br#"{"who":true}"#.to_vec(), TRACEPARENT.to_owned());
    let message = MessageIn { msg_id: 1001, seq: 1, payload, traceparent, ..Default::default() };
    binary.send_proto(&message);
    let who: Value = serde_json::from_slice(&binary.read_proto().payload).expect("JSON");
    assert_eq!(who["traceparent"], TRACEPARENT);
}

#[test]
fn a_unary_call_carries_its_context_as_metadata() {
    let instance = Instance::start(|call| crate::support::Action::Message(call.body.to_vec()));
    let config = Config::new().service_of("unary", "game", &[("g", instance.address)]).route(
        1000,
        "game",
        "payload = \"bytes\"\nmethod = \"/game.Logic/Move\"",
    );
    let gateway = Gateway::start(&config);
    let mut client = Client::connect(gateway.ws);
    let message = json!({"msg_id": 1007, "payload_base64": "AQID", "id": "a b", "key": "raum ü",
                         "traceparent": TRACEPARENT});
    assert_eq!(client.ask(message)["payload_base64"], "AQID");
    let call = &instance.calls()[0];
    assert_eq!((call.path.as_str(), &call.body[..]), ("/game.Logic/Move", &[1, 2, 3][..]));
    let value = |name: &str| call.headers[name].to_str().expect("ASCII").to_owned();
    assert_eq!(value("shardgate-msg-id"), "1007");
    assert_eq!(value("shardgate-session"), client.session());
    assert_eq!(value("shardgate-attempt"), "1");
    assert_eq!(value("shardgate-id"), "a%20b");
    assert_eq!(value("shardgate-key"), "raum%20%C3%BC");
    assert_eq!(value("traceparent"), TRACEPARENT);
    assert!(value("shardgate-request-id").parse::<u64>().is_ok());
    assert!(call.headers.contains_key("grpc-timeout"));
}

#[test]
fn several_shards_serve() {
    let (gateway, _services) = with_demo(Config::new().shards(several()));
    // Which shard accepts is the kernel's choice: with 64 connections both get some, but for one
    // case in 2^63.
    let mut clients: Vec<Client> = (0..64).map(|_| Client::connect(gateway.ws)).collect();
    let mut shards = std::collections::BTreeSet::new();
    for client in &mut clients {
        let who: Value = client.call(1001, json!({"who": true}))["payload"].clone();
        assert_eq!(who["shard"], client.welcome["shard"]);
        shards.insert(who["shard"].as_u64().expect("a number"));
    }
    assert_eq!(shards.len(), gateway.shards);
}
