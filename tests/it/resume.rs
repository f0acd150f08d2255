//! Promises 12, 13, 14 and 18 over real sockets: whoever loses its connection comes back to its
//! session, and lacks nothing.

use std::collections::BTreeSet;
use std::io::Read;

use prost::Message as _;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::auth::{SECRET, auth_of, token};
use crate::support::{Client, Config, Gateway, Instance, MessageIn, Raw, eventually, frame};

/// The message `Resume` of client.proto.
#[derive(Clone, PartialEq, prost::Message)]
struct ResumeIn {
    #[prost(string, tag = "1")]
    session: String,
    #[prost(string, tag = "2")]
    secret: String,
    #[prost(uint64, tag = "3")]
    offset: u64,
    #[prost(string, tag = "4")]
    boot: String,
}

/// The message `Resumed` of client.proto.
#[derive(Clone, PartialEq, prost::Message)]
struct ResumedOut {
    #[prost(string, tag = "1")]
    session: String,
    #[prost(string, tag = "2")]
    secret: String,
    #[prost(string, tag = "3")]
    outcome: String,
    #[prost(string, tag = "4")]
    reason: String,
    #[prost(uint64, tag = "5")]
    received_seq: u64,
    #[prost(uint64, tag = "6")]
    offset: u64,
    #[prost(uint32, tag = "7")]
    ttl_ms: u32,
}

/// A client that made its session resumable.
struct Person {
    client: Client,
    /// What it shows to come back; its offset is that of the last answer it has.
    shown: Value,
    /// Number of its last message.
    seq: u64,
}

impl Person {
    #[track_caller]
    fn new(gateway: &Gateway) -> Self {
        Self::opts_in(Client::connect(gateway.ws))
    }

    #[track_caller]
    fn user(gateway: &Gateway, user: &str) -> Self {
        Self::opts_in(signed_in(gateway, user))
    }

    #[track_caller]
    fn opts_in(client: Client) -> Self {
        let mut person = Self { client, shown: json!({}), seq: 10 };
        let told = person.asks_for_its_session();
        assert_eq!(told["outcome"], "new", "{told}");
        person
    }

    #[track_caller]
    fn asks_for_its_session(&mut self) -> Value {
        self.client.send_text(&json!({"type": "resume", "payload": self.shown}).to_string());
        let resumed = self.client.read();
        assert_eq!(resumed["type"], "resumed", "{resumed}");
        let told = resumed["payload"].clone();
        let goes_on = told["session"] == self.shown["session"];
        let offset = if goes_on { self.shown["offset"].clone() } else { json!(0) };
        self.shown = json!({
            "session": told["session"], "secret": told["secret"], "offset": offset,
            "boot": self.client.welcome["boot"],
        });
        told
    }

    /// Comes back on another connection; what becomes of the old one is the caller's.
    #[track_caller]
    fn moves_to(&mut self, client: Client) -> (Client, Value) {
        let old = std::mem::replace(&mut self.client, client);
        let told = self.asks_for_its_session();
        (old, told)
    }

    /// Leaves for good.
    #[track_caller]
    fn leaves(mut self) {
        self.client.close(1000);
    }

    /// Loses its connection, and waits until the gateway has `away` sessions without one.
    #[track_caller]
    fn loses(self, gateway: &Gateway, away: u64) -> Away {
        let Self { client, shown, seq } = self;
        drop(client);
        is_figure(gateway, "sessions_away", away);
        Away { shown, seq }
    }

    #[track_caller]
    fn says(&mut self, payload: &Value) -> u64 {
        self.seq += 1;
        let message = json!({"msg_id": 1001, "seq": self.seq, "payload": payload,
                             "ack": self.shown["offset"]});
        self.client.send_text(&message.to_string());
        self.seq
    }

    /// The next answer, which must be the one to `seq`, with the next offset.
    #[track_caller]
    fn hears(&mut self, seq: u64, payload: &Value) {
        let answer = self.client.read();
        assert_eq!((&answer["seq"], &answer["payload"]), (&json!(seq), payload), "{answer}");
        let next = self.shown["offset"].as_u64().expect("a number") + 1;
        assert_eq!(answer["offset"], next, "{answer}");
        self.shown["offset"] = next.into();
    }

    #[track_caller]
    fn calls(&mut self, payload: Value) {
        let seq = self.says(&payload);
        self.hears(seq, &payload);
    }
}

/// A person without a connection.
struct Away {
    shown: Value,
    seq: u64,
}

impl Away {
    #[track_caller]
    fn comes_back(self, client: Client) -> (Person, Value) {
        let mut person = Person { client, shown: self.shown, seq: self.seq };
        let told = person.asks_for_its_session();
        (person, told)
    }
}

#[track_caller]
fn signed_in(gateway: &Gateway, user: &str) -> Client {
    let mut client = Client::connect(gateway.ws);
    let answer = client.ask(json!({"type": "auth", "payload": {"token": token(user)}}));
    assert_eq!(answer["type"], "auth_ok", "{answer}");
    client
}

/// Waits until a level of `/stats` has this value.
#[track_caller]
fn is_figure(gateway: &Gateway, name: &str, value: u64) {
    eventually(name, || (gateway.admin_get("/stats")[name] == value).then_some(()));
}

/// Waits until so many messages for services were read: a session has one call in flight, so not
/// all of them reach the service before its answer.
#[track_caller]
fn are_read(gateway: &Gateway, count: u64) {
    eventually("all are read", || (gateway.counter("business_messages") == count).then_some(()));
}

#[track_caller]
fn is(told: &Value, outcome: &str, reason: &str, received_seq: u64) {
    let told = (&told["outcome"], &told["reason"], &told["received_seq"]);
    assert_eq!(told, (&json!(outcome), &json!(reason), &json!(received_seq)));
}

fn config(instance: &Instance, config: Config) -> Config {
    config.service("logic", &[("a", instance.address)]).route(1000, "logic", "")
}

fn start(instance: &Instance, base: Config) -> Gateway {
    let gateway = Gateway::start(&config(instance, base));
    gateway.wait_connected("logic", &["a"]);
    gateway
}

#[test]
fn answers_that_come_while_a_client_is_away_are_there_when_it_is_back_once_and_in_order() {
    let instance = Instance::echo();
    let gateway = start(&instance, Config::new());
    let mut person = Person::new(&gateway);
    person.calls(json!("before"));
    instance.hold();
    let seqs: Vec<u64> = (0..3).map(|n| person.says(&json!(n))).collect();
    are_read(&gateway, 4);
    let away = person.loses(&gateway, 1);
    instance.release();
    eventually("answers are kept", || (gateway.counter("answers_kept") == 3).then_some(()));
    let (mut person, told) = away.comes_back(Client::connect(gateway.ws));
    is(&told, "resumed", "", seqs[2]);
    assert_eq!((&told["offset"], &told["ttl_ms"]), (&json!(4), &json!(60_000)));
    seqs.iter().zip(0..).for_each(|(seq, n)| person.hears(*seq, &json!(n)));
    // Nothing of it comes a second time.
    person.calls(json!("after"));
    assert_eq!(gateway.counter("answers_undeliverable"), 0);
}

#[test]
fn a_protobuf_client_gets_what_it_lacks() {
    let instance = Instance::echo();
    let gateway = start(&instance, Config::new());
    let connect = || {
        let mut client = Client::protobuf(gateway.ws);
        assert_eq!(client.read_proto().kind, "welcome");
        client
    };
    let resume = |client: &mut Client, shown: &ResumeIn| {
        let payload = shown.encode_to_vec();
        let kind = "resume".to_owned();
        client.send_proto(&MessageIn { kind, payload, ..MessageIn::default() });
        let told = client.read_proto();
        assert_eq!((&*told.kind, told.offset), ("resumed", 0), "{told:?}");
        ResumedOut::decode(&told.payload[..]).expect("a message")
    };
    let mut client = connect();
    let told = resume(&mut client, &ResumeIn::default());
    assert_eq!(told.outcome, "new");
    instance.hold();
    for seq in 1..=3 {
        let payload = format!("{seq}").into_bytes();
        client.send_proto(&MessageIn { msg_id: 1001, seq, payload, ..MessageIn::default() });
    }
    are_read(&gateway, 3);
    drop(client);
    is_figure(&gateway, "sessions_away", 1);
    instance.release();
    let mut client = connect();
    let (session, secret) = (told.session, told.secret);
    let told = resume(&mut client, &ResumeIn { session, secret, ..ResumeIn::default() });
    assert_eq!((&*told.outcome, told.received_seq), ("resumed", 3));
    for seq in 1..=3 {
        let answer = client.read_proto();
        let is_right = answer.payload == format!("{seq}").into_bytes();
        assert!((answer.seq, answer.offset) == (seq, seq) && is_right, "{answer:?}");
    }
    let last = MessageIn { msg_id: 1001, seq: 4, ack: 3, ..MessageIn::default() };
    client.send_proto(&last);
    assert_eq!(client.read_proto().offset, 4);
}

#[test]
fn a_message_that_was_cut_in_its_middle_is_sent_again_and_runs_once() {
    let instance = Instance::echo();
    let gateway = start(&instance, Config::new());
    let message = |seq: u64| {
        let text = json!({"msg_id": 1001, "seq": seq, "payload": seq}).to_string();
        frame(0x81, text.as_bytes())
    };
    let length = message(2).len();
    for (n, cut) in (1..).zip([1, 5, length / 2, length - 1]) {
        let mut raw = Raw::upgraded(gateway.ws);
        raw.text(r#"{"type":"resume"}"#);
        let told = raw.frame().json()["payload"].clone();
        raw.send(&[&message(1)[..], &message(2)[..cut]].concat());
        instance.wait_for(2 * n - 1);
        drop(raw);
        let mut raw = Raw::upgraded(gateway.ws);
        let shown = json!({"session": told["session"], "secret": told["secret"]});
        raw.text(&json!({"type": "resume", "payload": shown}).to_string());
        is(&raw.frame().json()["payload"], "resumed", "", 1);
        raw.send(&message(2));
        for seq in 1..=2 {
            let answer = raw.frame().json();
            let numbers = (&answer["seq"], &answer["payload"], &answer["offset"]);
            assert_eq!(numbers, (&json!(seq), &json!(seq), &json!(seq)), "cut at {cut}");
        }
    }
    let seqs: Vec<u64> = instance.requests().iter().map(|request| request.seq).collect();
    assert_eq!(seqs, [1, 2, 1, 2, 1, 2, 1, 2]);
}

#[test]
fn an_answer_that_was_cut_in_its_middle_comes_again_whole() {
    let instance = Instance::echo();
    let gateway = start(&instance, Config::new());
    let long = json!("x".repeat(40_000));
    for cut in [1, 3, 20_000] {
        let mut raw = Raw::upgraded(gateway.ws);
        raw.text(r#"{"type":"resume"}"#);
        let told = raw.frame().json()["payload"].clone();
        raw.text(&json!({"msg_id": 1001, "seq": 1, "payload": long}).to_string());
        raw.stream().read_exact(&mut vec![0; cut]).expect("a part of the answer");
        drop(raw);
        let shown = json!({"session": told["session"], "secret": told["secret"], "offset": 0});
        let away = Away { shown, seq: 1 };
        let (mut person, told) = away.comes_back(Client::connect(gateway.ws));
        is(&told, "resumed", "", 1);
        person.hears(1, &long);
        person.calls(json!("next"));
    }
    assert_eq!(instance.requests().len(), 6, "nothing ran twice");
}

#[test]
fn a_window_larger_than_the_outbox_reaches_a_client_that_reads() {
    let instance = Instance::echo();
    let base = Config::new().shard("conn.outbox_bytes_max = 90000");
    let gateway = start(&instance, base.shard("session.kept_bytes_max = 260000"));
    let long = json!("x".repeat(40_000));
    let mut person = Person::new(&gateway);
    let seqs: Vec<u64> = (0..6).map(|_| person.says(&long)).collect();
    are_read(&gateway, 6);
    let away = person.loses(&gateway, 1);
    eventually("all are kept", || {
        (gateway.admin_get("/stats")["session_kept_bytes"].as_u64() > Some(240_000)).then_some(())
    });
    let (mut person, told) = away.comes_back(Client::connect(gateway.ws));
    is(&told, "resumed", "", seqs[5]);
    seqs.iter().for_each(|seq| person.hears(*seq, &long));
    person.calls(json!("after"));
}

#[test]
fn an_answer_in_flight_goes_to_the_connection_of_then_and_one_that_hangs_is_closed_with_4000() {
    let instance = Instance::echo();
    let gateway = start(&instance, Config::new());
    for hangs in [false, true] {
        let mut person = Person::new(&gateway);
        instance.hold();
        let before = instance.requests().len();
        let seq = person.says(&json!("in flight"));
        instance.wait_for(before + 1);
        let (mut person, told) = if hangs {
            let (mut old, told) = person.moves_to(Client::connect(gateway.ws));
            assert_eq!(old.read_or_close(), Err(Some(4000)));
            (person, told)
        } else {
            person.loses(&gateway, 1).comes_back(Client::connect(gateway.ws))
        };
        is(&told, "resumed", "", seq);
        instance.release();
        person.hears(seq, &json!("in flight"));
        person.calls(json!("after"));
    }
    let counted = ["sessions_resumed", "session_takeovers", "answers_undeliverable"];
    assert_eq!(counted.map(|name| gateway.counter(name)), [2, 1, 0]);
}

#[test]
fn a_session_without_a_user_is_resumed_whatever_shard_takes_the_connection() {
    let instance = Instance::echo();
    let gateway = start(&instance, Config::new().shards(2));
    let mut ways = BTreeSet::new();
    for n in 0..60 {
        let mut person = Person::new(&gateway);
        let home = person.client.welcome["shard"].clone();
        person.calls(json!(n));
        let lacks = person.says(&json!("lacks"));
        instance.wait_for(2 * n + 2);
        let away = person.loses(&gateway, 1);
        let mut client = Client::connect(gateway.ws);
        ways.insert((client.welcome["shard"].to_string(), home.to_string()));
        // The next message does not wait for the session, on the way to which it comes along.
        client.send_text(&json!({"type": "resume", "payload": away.shown}).to_string());
        client.send_text(&json!({"msg_id": 9002, "seq": lacks + 1}).to_string());
        is(&client.read()["payload"], "resumed", "", lacks);
        let mut person = Person { client, shown: away.shown, seq: away.seq };
        person.hears(lacks, &json!("lacks"));
        let who = person.client.read();
        let expected = (&json!(lacks + 1), &home, &json!(3));
        assert_eq!((&who["seq"], &who["payload"]["shard"], &who["offset"]), expected);
        person.leaves();
    }
    assert_eq!(ways.len(), 4, "from each shard to each: {ways:?}");
    assert!(gateway.counter("moved_in") > 0);
}

#[test]
fn a_users_session_is_resumed_at_home_and_by_nobody_else() {
    let instance = Instance::echo();
    let gateway = start(&instance, auth_of(SECRET).shards(2));
    for n in 0..20 {
        let user = format!("user-{n}");
        let mut person = Person::user(&gateway, &user);
        person.calls(json!(n));
        let lacks = person.says(&json!("lacks"));
        instance.wait_for(2 * n + 2);
        let away = person.loses(&gateway, 1);
        let shown = away.shown.clone();
        let thief = Away { shown, seq: 0 }.comes_back(signed_in(&gateway, "mallory"));
        is(&thief.1, "lost", "UNKNOWN", 0);
        thief.0.leaves();
        // Token and session are shown at once.
        let mut client = Client::connect(gateway.ws);
        client.write(json!({"type": "auth", "payload": {"token": token(&user)}}));
        client.flush();
        client.send_text(&json!({"type": "resume", "payload": away.shown}).to_string());
        assert_eq!(client.read()["payload"]["user"], user);
        let told = client.read();
        is(&told["payload"], "resumed", "", lacks);
        let mut person = Person { client, shown: away.shown, seq: away.seq };
        person.hears(lacks, &json!("lacks"));
        person.calls(json!("after"));
        assert_eq!(instance.requests().last().expect("one").user, user);
        person.leaves();
    }
}

#[test]
fn the_client_that_reconnects_is_the_newest_and_resumes_its_session() {
    let instance = Instance::echo();
    let newest = || auth_of(SECRET).shards(1).shard("session.per_user = \"newest\"");
    let gateway = start(&instance, newest());
    let mut person = Person::user(&gateway, "alice");
    person.calls(json!("before"));
    instance.hold();
    let seq = person.says(&json!("in flight"));
    instance.wait_for(2);
    // The old connection is half dead: its client hears and says nothing any more.
    let (_old, told) = person.moves_to(signed_in(&gateway, "alice"));
    is(&told, "resumed", "", seq);
    instance.release();
    person.hears(seq, &json!("in flight"));
    person.calls(json!("after"));
}

#[test]
fn sessions_stay_over_a_reload_of_their_settings_and_a_ttl_of_none_ends_them() {
    let instance = Instance::echo();
    let gateway = start(&instance, Config::new());
    let reload = |ttl_ms: u64, more: &str| {
        let line = format!("session.ttl_ms = {ttl_ms}\n{more}");
        gateway.rewrite(&config(&instance, Config::new().shard(&line)));
        gateway.signal(Signal::HUP);
        eventually("new sessions are told of it", || {
            let mut client = Client::connect(gateway.ws);
            let told = client.ask(json!({"type": "resume"}));
            client.close(1000);
            let is_refused = told["reason"] == "UNIMPLEMENTED";
            (told["payload"]["ttl_ms"] == ttl_ms || is_refused && ttl_ms == 0).then_some(())
        });
    };
    let mut person = Person::new(&gateway);
    instance.hold();
    let seqs: Vec<u64> = (0..3).map(|n| person.says(&json!(n))).collect();
    are_read(&gateway, 3);
    let away = person.loses(&gateway, 1);
    reload(30_000, "session.kept_items_max = 2\nsession.away_max = 10");
    instance.release();
    eventually("answers are kept", || (gateway.counter("answers_kept") == 3).then_some(()));
    let (mut person, told) = away.comes_back(Client::connect(gateway.ws));
    // The window has had room for two since.
    is(&told, "gap", "OVERFLOW", seqs[2]);
    person.shown["offset"] = 1.into();
    person.hears(seqs[1], &json!(1));
    person.hears(seqs[2], &json!(2));
    let other = Person::new(&gateway).loses(&gateway, 1);
    reload(0, "");
    is_figure(&gateway, "sessions_away", 0);
    // Whoever is connected goes on, and is lost with its connection.
    person.calls(json!("still here"));
    let Person { client, shown, seq } = person;
    drop(client);
    is_figure(&gateway, "sessions_resumable", 0);
    reload(60_000, "");
    is(&other.comes_back(Client::connect(gateway.ws)).1, "lost", "EXPIRED", 0);
    let person = Away { shown, seq };
    is(&person.comes_back(Client::connect(gateway.ws)).1, "lost", "ENDED", 0);
}

#[test]
fn a_stop_ends_sessions_and_after_the_restart_each_client_is_told_so() {
    let instance = Instance::echo();
    let mut gateway = start(&instance, Config::new());
    let away = Person::new(&gateway).loses(&gateway, 1);
    let mut person = Person::new(&gateway);
    instance.hold();
    let seq = person.says(&json!("in flight"));
    instance.wait_for(1);
    gateway.signal(Signal::TERM);
    let draining = person.client.read();
    assert_eq!(draining["type"], "draining");
    assert!(draining["payload"]["reconnect_after_ms"].as_u64() > Some(0), "{draining}");
    instance.release();
    person.hears(seq, &json!("in flight"));
    assert_eq!(person.client.read_or_close(), Err(Some(1001)));
    // The stop does not wait for who is away.
    assert_eq!(gateway.wait().code(), Some(0));
    let gateway = start(&instance, Config::new());
    let Person { shown, seq, .. } = person;
    for person in [away, Away { shown, seq }] {
        let before = person.shown["session"].clone();
        let (mut person, told) = person.comes_back(Client::connect(gateway.ws));
        is(&told, "lost", "RESTARTED", 0);
        assert_ne!(told["session"], before);
        person.calls(json!("goes on"));
    }
    assert_eq!(gateway.counter("sessions_lost_restarted"), 2);
}

#[test]
fn the_figures_of_sessions_add_up() {
    let instance = Instance::echo();
    let gateway = start(&instance, Config::new().shard("session.ttl_ms = 1000"));
    let level = |name: &str| gateway.admin_get("/stats")[name].as_u64().expect("a number");
    let made_and_gone = || {
        let sum = |names: &[&str]| names.iter().map(|name| gateway.counter(name)).sum::<u64>();
        let lost = ["expired", "restarted", "ended", "unknown"];
        let lost = lost.map(|reason| gateway.counter(&format!("sessions_lost_{reason}")));
        let made = gateway.counter("sessions_resumable") + lost.iter().sum::<u64>();
        let gone = sum(&["sessions_ended", "sessions_expired", "sessions_crowded_out"]);
        assert_eq!(made, level("sessions_resumable") + gone);
        (made, gone)
    };
    let mut people: Vec<Person> = (0..6).map(|_| Person::new(&gateway)).collect();
    people.iter_mut().for_each(|person| person.calls(json!("kept until it is confirmed")));
    assert_eq!(made_and_gone(), (6, 0));
    let kept = level("session_kept_bytes");
    assert!(kept > 6 * 50, "{kept}");
    let (_, metrics) = gateway.request("GET /metrics", "", "");
    for (name, value) in [
        ("sessions_resumable", 6),
        ("sessions_away", 0),
        ("session_kept_bytes", kept),
        ("sessions_resumable_total", 6),
    ] {
        let line = format!("shardgate_{name}{{shard=\"0\"}} {value}\n");
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
    for person in &mut people {
        person.client.send_text(r#"{"type":"heartbeat","ack":1}"#);
    }
    is_figure(&gateway, "session_kept_bytes", 0);
    // One leaves; one is away for too long, and comes back all the same.
    people.pop().expect("six").leaves();
    is_figure(&gateway, "sessions_resumable", 5);
    let away = people.pop().expect("five").loses(&gateway, 1);
    eventually("it expires", || (gateway.counter("sessions_expired") == 1).then_some(()));
    let (_person, told) = away.comes_back(Client::connect(gateway.ws));
    is(&told, "lost", "EXPIRED", 0);
    assert_eq!(made_and_gone(), (7, 2));
    drop(people);
    eventually("the others expire", || (gateway.counter("sessions_expired") == 5).then_some(()));
    assert_eq!(made_and_gone(), (7, 6));
    assert_eq!((level("sessions_away"), level("session_kept_bytes")), (0, 0));
}
