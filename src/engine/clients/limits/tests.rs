//! Stories of one shard: who is let in, whose messages are refused, who is held.

use std::sync::Arc;

use super::*;
use crate::auth::mint::{SigningKey, Wanted, mint};
use crate::config::settings::{Algorithm, ConnectionsMax, StopSettings};
use crate::engine::Engine;
use crate::engine::clients::conn::ReadNext;
use crate::engine::clients::sign_in::tests::{
    SECRET, START_S, engine, frame, published as signing_in,
};
use crate::mailbox::ShardConfig;

const HERE: [u8; 4] = [192, 0, 2, 1];
const THERE: [u8; 4] = [192, 0, 2, 2];
const ECHO: &str = r#"{"msg_id":9000,"payload":1,"seq":"#;

pub(in crate::engine::clients) struct Rig {
    pub(in crate::engine::clients) engine: Engine,
    pub(in crate::engine::clients) now: Micros,
    pub(in crate::engine::clients) seq: u64,
}

pub(in crate::engine::clients) fn published(
    required: bool,
    change: impl FnOnce(&mut LimitSettings),
) -> ShardConfig {
    let mut published = signing_in(SECRET, required);
    // Nobody here is closed for what waits.
    published.settings.conn.write_timeout_ms = 3_600_000;
    change(&mut published.settings.limits);
    published
}

pub(in crate::engine::clients) fn token(user: &str, tenant: &str) -> String {
    let wanted = Wanted {
        algorithm: Algorithm::Hs256,
        key_id: Some("k"),
        user,
        tenant: Some(tenant),
        groups: &[],
        issuer: None,
        audience: None,
        now_unix_s: START_S,
        lifetime_s: 60_000,
    };
    mint(&wanted, SigningKey::Secret(SECRET.as_bytes())).expect("a token")
}

impl Rig {
    pub(in crate::engine::clients) fn new(
        required: bool,
        change: impl FnOnce(&mut LimitSettings),
    ) -> Self {
        Self::of(required, 1, change)
    }

    pub(in crate::engine::clients) fn of(
        required: bool,
        shards: u16,
        change: impl FnOnce(&mut LimitSettings),
    ) -> Self {
        let engine = engine(published(required, change), 0, shards);
        Self { engine, now: Micros(5_000_000), seq: 0 }
    }

    pub(in crate::engine::clients) fn open(&mut self, ip: [u8; 4]) -> Result<ConnId, OpenRefusal> {
        let opened = self.engine.open((ip, 1).into(), self.now);
        self.engine.check_invariants().expect("consistent");
        opened
    }

    pub(in crate::engine::clients) fn upgrade(&mut self, id: ConnId, fields: &str) -> String {
        let request = format!(
            "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
             {fields}\r\n"
        );
        self.engine.on_bytes(id, &mut request.into_bytes(), self.now);
        self.told(id)
    }

    /// A client that shows its token at the upgrade, and what it was told.
    pub(in crate::engine::clients) fn user(&mut self, user: &str) -> (ConnId, String) {
        let id = self.open(HERE).expect("room");
        let bearer = format!("Authorization: Bearer {}\r\n", token(user, "acme"));
        let told = self.upgrade(id, &bearer);
        (id, told)
    }

    pub(in crate::engine::clients) fn connect(&mut self, ip: [u8; 4]) -> ConnId {
        let id = self.open(ip).expect("room");
        assert!(self.upgrade(id, "").starts_with("HTTP/1.1 101"));
        id
    }

    /// Sends a message that ends with its seq, and tells what comes back.
    pub(in crate::engine::clients) fn says(&mut self, id: ConnId, start: &str) -> String {
        self.seq += 1;
        let text = format!("{start}{}}}", self.seq);
        self.engine.on_bytes(id, &mut frame(&text), self.now);
        self.told(id)
    }

    pub(in crate::engine::clients) fn auth(&mut self, id: ConnId, user: &str) -> String {
        let token = token(user, "acme");
        self.says(id, &format!(r#"{{"type":"auth","payload":{{"token":"{token}"}},"seq":"#))
    }

    pub(in crate::engine::clients) fn told(&mut self, id: ConnId) -> String {
        let bytes = self.engine.outbox(id).to_vec();
        self.engine.on_sent(id, bytes.len(), self.now);
        self.engine.check_invariants().expect("consistent");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The client answers a ping that it has got, 100 ms later.
    pub(in crate::engine::clients) fn answers(&mut self, id: ConnId) {
        assert!(self.engine.outbox(id).ends_with(&[0x89, 0]), "no ping");
        self.told(id);
        self.now = self.now.plus_ms(100);
        self.engine.on_bytes(id, &mut [0x8a, 0x80, 0, 0, 0, 0], self.now);
        self.later(0);
    }

    /// That much later; the sweep has looked at everybody.
    pub(in crate::engine::clients) fn later(&mut self, us: u64) {
        self.now.0 += us;
        for _ in 0..200 {
            self.engine.tick(self.now, &mut Vec::new());
        }
        self.engine.end_turn(self.now);
        for id in std::mem::take(&mut self.engine.effects.resumed) {
            self.engine.on_resumed(id, self.now);
        }
        self.engine.check_invariants().expect("consistent");
    }

    pub(in crate::engine::clients) fn count(&self, counter: Counter) -> u64 {
        self.engine.report(0, self.now).counters.get(counter)
    }
}

fn is_ok(told: &str) -> bool {
    !told.contains("RATE_LIMITED") && told.contains(r#""payload":1"#)
}

#[test]
fn an_address_has_so_many_connections_and_one_more_when_one_is_gone() {
    let mut rig = Rig::new(false, |l| l.address.connections_max = 2);
    let first = rig.open(HERE).expect("room");
    rig.connect(HERE);
    assert!(!rig.engine.has_room_for(HERE.into()) && rig.engine.has_room_for(THERE.into()));
    let refusal = rig.open(HERE).expect_err("a third one");
    assert_eq!((refusal.status, refusal.retry_after_ms), (429, 1_000));
    assert_eq!(rig.count(Counter::AddressConnectionsRefused), 1);
    rig.open(THERE).expect("somebody else");
    rig.engine.remove(first);
    rig.open(HERE).expect("one is gone");
}

#[test]
fn an_address_connects_at_its_rate_and_is_told_when_to_come_back() {
    let mut rig = Rig::new(false, |l| {
        l.address.connects_per_s = 4;
        l.burst_s = 2;
    });
    let ids: Vec<ConnId> = (0..8).map(|_| rig.open(HERE).expect("the burst")).collect();
    // That they are gone does not give their tokens back.
    ids.into_iter().for_each(|id| rig.engine.remove(id));
    rig.later(0);
    let refusal = rig.open(HERE).expect_err("the ninth");
    assert_eq!((refusal.status, refusal.retry_after_ms), (429, 250));
    assert_eq!(rig.count(Counter::AddressConnectsRefused), 1);
    rig.now.0 += 249_999;
    rig.open(HERE).expect_err("too early");
    rig.now.0 += 1;
    rig.open(HERE).expect("as told");
    rig.open(THERE).expect("somebody else");
}

#[test]
fn each_shard_allows_its_part_of_an_address_rounded_up() {
    let mut rig = Rig::of(false, 4, |l| l.address.connections_max = 10);
    assert_eq!((0..10).filter(|_| rig.open(HERE).is_ok()).count(), 3);
}

#[test]
fn so_many_may_be_about_to_sign_in() {
    let mut rig = Rig::new(true, |l| l.unauthenticated_max = 2);
    let (first, second) = (rig.open(HERE).expect("room"), rig.connect(HERE));
    let refusal = rig.open(THERE).expect_err("two are unknown");
    assert_eq!((refusal.status, refusal.retry_after_ms), (503, 1_000));
    assert_eq!(rig.count(Counter::UnauthenticatedRefused), 1);
    assert!(rig.auth(second, "alice").contains("auth_ok"));
    let third = rig.open(THERE).expect("one is known");
    rig.open(THERE).expect_err("two are unknown again");
    rig.engine.remove(first);
    rig.engine.remove(third);
    assert_eq!(rig.engine.report(0, rig.now).gauges.unauthenticated, 0);
    // Where nobody must sign in only the handshake counts.
    let mut rig = Rig::new(false, |l| l.unauthenticated_max = 1);
    for _ in 0..5 {
        rig.connect(HERE);
    }
    rig.open(HERE).expect("room");
    rig.open(HERE).expect_err("one is in its handshake");
}

#[test]
fn one_address_leaves_places_to_those_of_others_that_are_about_to_sign_in() {
    let mut rig = Rig::new(true, |l| l.unauthenticated_max = 160);
    let silent: Vec<_> = (0..160).map_while(|_| rig.open(HERE).ok()).collect();
    assert_eq!(silent.len(), 120, "three quarters");
    let refusal = rig.open(HERE).expect_err("the rest is for others");
    assert_eq!((refusal.status, refusal.retry_after_ms), (429, 1_000));
    assert_eq!(rig.count(Counter::UnauthenticatedOverShare), 2);
    let other = rig.connect(THERE);
    assert!(rig.auth(other, "alice").contains("auth_ok"));
    // Places are free again as connections end, or sign in.
    rig.engine.remove(silent[0]);
    assert!(rig.auth(silent[1], "x").starts_with("HTTP/1.1 400"));
    rig.open(HERE).expect("one has ended");
    rig.open(HERE).expect("one was refused");
    rig.open(HERE).expect_err("as many as before");
}

#[test]
fn one_address_leaves_connections_to_others() {
    let mut rig = Rig::new(false, |_| {});
    let mut published = published(false, |_| {});
    published.settings.conn.connections_max = ConnectionsMax::Set(160);
    rig.engine.apply(published, rig.now);
    let here: Vec<_> = (0..160).map_while(|_| rig.open(HERE).ok()).collect();
    assert_eq!((here.len(), rig.count(Counter::ConnectionsOverShare)), (150, 1));
    assert!(!rig.engine.has_room_for(HERE.into()) && rig.engine.has_room_for(THERE.into()));
    rig.open(THERE).expect("a place is kept");
    rig.engine.remove(here[0]);
    rig.open(HERE).expect_err("the other one has it");
    rig.engine.remove(here[1]);
    rig.open(HERE).expect("fifteen sixteenths again");
}

#[test]
fn so_many_of_an_address_may_be_about_to_sign_in() {
    let mut rig = Rig::new(true, |l| l.address_unauthenticated_max = 1);
    let first = rig.connect(HERE);
    assert_eq!(rig.open(HERE).expect_err("the first is unknown").status, 429);
    assert_eq!(rig.count(Counter::AddressUnauthenticatedRefused), 1);
    rig.open(THERE).expect("somebody else");
    assert!(rig.auth(first, "alice").contains("auth_ok"));
    rig.open(HERE).expect("the first is known");
}

#[test]
fn a_user_has_so_many_connections_whichever_way_it_signs_in() {
    let mut rig = Rig::new(false, |l| l.user.connections_max = 1);
    let (first, told) = rig.user("alice");
    assert!(told.contains("auth_ok"), "{told}");
    // The first one is asked, and answers; then nobody is asked for a while.
    let waits = rig.user("alice").0;
    rig.answers(first);
    let told = rig.told(waits);
    assert!(told.starts_with("HTTP/1.1 429 Too Many Requests\r\n"), "{told}");
    assert!(told.contains("\r\nRetry-After: 2\r\n"), "{told}");
    let second = rig.connect(HERE);
    let told = rig.auth(second, "alice");
    assert!(told.contains("RATE_LIMITED") && told.contains(r#""retry_after_ms":1"#), "{told}");
    assert!(told.contains("all of them answer: close one"), "{told}");
    assert_eq!(rig.count(Counter::UserConnectionsRefused), 2);
    assert_eq!(rig.count(Counter::UserConnectionsTested), 1);
    assert_eq!(rig.count(Counter::ClosedTryLater), 1);
    // Another token of the same user is no other connection.
    assert!(rig.auth(first, "alice").contains("auth_ok"));
    // Somebody else, and somebody of that name in another tenant.
    assert!(rig.user("bob").1.contains("auth_ok"));
    let id = rig.open(HERE).expect("room");
    let bearer = format!("Authorization: Bearer {}\r\n", token("alice", "other"));
    assert!(rig.upgrade(id, &bearer).contains("auth_ok"));
    rig.engine.remove(first);
    assert!(rig.user("alice").1.contains("auth_ok"));
}

#[test]
fn a_user_connects_at_its_rate() {
    let mut rig = Rig::new(false, |l| l.user.connects_per_s = 2);
    for _ in 0..2 {
        let (id, told) = rig.user("alice");
        assert!(told.contains("auth_ok"));
        rig.engine.remove(id);
    }
    let (_, told) = rig.user("alice");
    assert!(told.contains("429") && told.contains("\r\nRetry-After: 1\r\n"), "{told}");
    let id = rig.connect(HERE);
    let told = rig.auth(id, "alice");
    assert!(told.contains(r#""retry_after_ms":500"#), "{told}");
    assert_eq!(rig.count(Counter::UserConnectsRefused), 2);
    rig.later(500_000);
    assert!(rig.user("alice").1.contains("auth_ok"));
}

#[test]
fn messages_of_all_kinds_over_the_rate_of_a_user_are_refused_on_all_its_connections() {
    let mut rig = Rig::new(false, |l| l.user.messages_per_s = 4);
    let (first, second, other) = (rig.user("alice").0, rig.user("alice").0, rig.user("bob").0);
    let nobody = rig.connect(HERE);
    assert!(is_ok(&rig.says(first, ECHO)) && is_ok(&rig.says(second, ECHO)));
    assert!(rig.says(first, r#"{"type":"ping","seq":"#).contains("pong"));
    assert!(is_ok(&rig.says(second, ECHO)));
    for (start, kind) in [
        (ECHO, r#""type":"error""#),
        (r#"{"type":"ping","seq":"#, r#""type":"error""#),
        (r#"{"type":"heartbeat","seq":"#, r#""type":"error""#),
        (r#"{"msg_id":1001,"seq":"#, r#""msg_id":1001"#),
    ] {
        for id in [first, second] {
            let told = rig.says(id, start);
            assert!(told.contains(kind) && told.contains(&format!(r#""seq":{}"#, rig.seq)));
            assert!(told.contains(r#""status":8"#) && told.contains("RATE_LIMITED"), "{told}");
            assert!(told.contains(r#""retry_after_ms":250"#), "{told}");
        }
    }
    assert_eq!(rig.count(Counter::UserMessagesRefused), 8);
    let errors = [Counter::SystemErrors, Counter::BusinessErrors, Counter::GatewayErrors];
    assert_eq!(errors.map(|c| rig.count(c)), [4, 2, 2]);
    for _ in 0..10 {
        assert!(is_ok(&rig.says(nobody, ECHO)), "who is no user has no user's limit");
    }
    assert!(is_ok(&rig.says(other, ECHO)));
    rig.now.0 += 250_000;
    assert!(is_ok(&rig.says(first, ECHO)) && !is_ok(&rig.says(second, ECHO)));
}

#[test]
fn a_one_way_message_over_the_rate_is_told_with_its_reason_and_a_heartbeat_never_is() {
    let mut rig = Rig::new(false, |l| l.user.messages_per_s = 1);
    let (id, _) = rig.user("alice");
    let send = |rig: &mut Rig, text: &str| {
        rig.engine.on_bytes(id, &mut frame(text), rig.now);
        rig.told(id)
    };
    for _ in 0..50 {
        assert_eq!(send(&mut rig, r#"{"type":"heartbeat"}"#), "");
    }
    assert_eq!(send(&mut rig, r#"{"msg_id":9000}"#), "");
    let told = send(&mut rig, r#"{"msg_id":9000}"#);
    assert!(told.contains("RATE_LIMITED") && told.contains(r#""count":1"#), "{told}");
    assert!((0..3).all(|_| send(&mut rig, r#"{"msg_id":9000}"#).is_empty()), "one a second");
    assert_eq!(rig.count(Counter::OneWayRefused), 4);
    rig.later(1_000_000);
    let told = rig.told(id);
    assert!(told.contains("RATE_LIMITED") && told.contains(r#""count":3"#), "{told}");
}

#[test]
fn the_rate_of_an_address_holds_for_its_connections_together() {
    let mut rig = Rig::new(false, |l| {
        l.address.messages_per_s = 3;
        l.user.messages_per_s = 2;
    });
    let (first, second, other) = (rig.connect(HERE), rig.connect(HERE), rig.connect(THERE));
    let (alice, _) = rig.user("alice");
    assert!(is_ok(&rig.says(first, ECHO)) && is_ok(&rig.says(second, ECHO)));
    assert!(is_ok(&rig.says(alice, ECHO)));
    assert!(rig.says(first, ECHO).contains("your address"));
    assert!(rig.says(alice, ECHO).contains("your address"), "the address comes first");
    assert!(is_ok(&rig.says(other, ECHO)));
    assert_eq!(rig.count(Counter::AddressMessagesRefused), 2);
    rig.now.0 += 1_000_000;
    for expected in ["payload", "payload", "this user"] {
        assert!(rig.says(alice, ECHO).contains(expected));
    }
    assert!(rig.says(second, ECHO).contains("your address"), "what was read is paid for");
}

#[test]
fn who_goes_on_over_its_rate_is_not_read_for_the_rest_of_a_second() {
    let mut rig = Rig::new(false, |l| l.user.messages_per_s = 10);
    let (id, other) = (rig.user("alice").0, rig.user("bob").0);
    let total = 10 + 3 * REFUSALS_MAX;
    let mut flood: Vec<u8> = (1..=total).flat_map(|seq| frame(&format!("{ECHO}{seq}}}"))).collect();
    assert_eq!(rig.engine.on_bytes(id, &mut flood, rig.now), ReadNext::Pause);
    let answers = |told: &str| told.matches(r#""seq":"#).count() as u32;
    assert_eq!(answers(&rig.told(id)), 10 + REFUSALS_MAX);
    assert!(rig.engine.is_paused(id) && !rig.engine.is_paused(other));
    rig.later(999_999);
    assert!(rig.engine.is_paused(id) && rig.told(id).is_empty());
    // Ten good ones, and a hundred refusals more.
    rig.later(1);
    assert_eq!(answers(&rig.told(id)), 10 + REFUSALS_MAX);
    assert_eq!(rig.count(Counter::ReadHeld), 2);
    rig.later(1_000_000);
    assert_eq!(answers(&rig.told(id)), REFUSALS_MAX - 10, "every one has had its answer");
    assert!(!rig.engine.is_paused(id));
    rig.seq = u64::from(total);
    rig.later(1_000_000);
    assert!(is_ok(&rig.says(id, ECHO)));
}

/// While it is not read, its time to say something stands still.
#[test]
fn who_was_held_is_not_closed_for_its_silence() {
    let mut rig = Rig::new(false, |l| l.user.messages_per_s = 10);
    let (id, _) = rig.user("alice");
    let conn = rig.engine.clients.conns.get_mut(id).expect("there");
    Arc::make_mut(&mut conn.terms).heartbeat_ms = 200;
    let total = 10 + REFUSALS_MAX + 5;
    let mut flood: Vec<u8> = (1..=total).flat_map(|seq| frame(&format!("{ECHO}{seq}}}"))).collect();
    assert_eq!(rig.engine.on_bytes(id, &mut flood, rig.now), ReadNext::Pause);
    rig.later(1_000_000);
    assert!(!rig.engine.is_paused(id));
    assert_eq!(rig.count(Counter::ClosedNoHeartbeat), 0);
    // Then it runs again: a ping, and the end.
    for (us, closed) in [(201_000, 0), (200_000, 1)] {
        rig.told(id);
        rig.later(us);
        assert_eq!((rig.count(Counter::Pings), rig.count(Counter::ClosedNoHeartbeat)), (1, closed));
    }
}

#[test]
fn who_is_held_is_not_read_because_an_answer_came() {
    let mut rig = Rig::new(false, |l| l.user.messages_per_s = 1);
    let (id, _) = rig.user("alice");
    // It waits for a service that is not there.
    let mut flood = frame(r#"{"msg_id":2001,"deadline_ms":500,"seq":1}"#);
    flood.extend((2..300).flat_map(|seq| frame(&format!("{ECHO}{seq}}}"))));
    rig.engine.on_bytes(id, &mut flood, rig.now);
    rig.told(id);
    rig.later(600_000);
    assert!(rig.told(id).contains(r#""seq":1,"#), "the first has its answer");
    assert!(rig.engine.is_paused(id));
    rig.later(400_000);
    assert!(rig.told(id).contains(r#""seq":200,"#));
}

#[test]
fn who_is_held_is_closed_like_others_when_its_time_is_over() {
    let mut rig = Rig::new(true, |l| l.address.messages_per_s = 1);
    let id = rig.connect(HERE);
    let flood: Vec<u8> = (1..5_000).flat_map(|seq| frame(&format!("{ECHO}{seq}}}"))).collect();
    rig.engine.on_bytes(id, &mut flood.clone(), rig.now);
    (0..9).for_each(|_| rig.later(1_000_000));
    assert!(rig.engine.is_paused(id) && rig.count(Counter::ClosedNoAuth) == 0);
    rig.later(1_000_000);
    assert_eq!(rig.count(Counter::ClosedNoAuth), 1);
}

#[test]
fn a_flood_does_not_hold_up_the_stop() {
    let mut rig = Rig::new(false, |l| l.user.messages_per_s = 1);
    let (id, _) = rig.user("alice");
    let mut flood: Vec<u8> = (1..1_000).flat_map(|seq| frame(&format!("{ECHO}{seq}}}"))).collect();
    rig.engine.on_bytes(id, &mut flood, rig.now);
    rig.engine.drain(StopSettings::default(), rig.now);
    rig.told(id);
    rig.later(1_000_000);
    let told = rig.told(id);
    // 999 in all; one before and one now had a token.
    assert_eq!(told.matches("RATE_LIMITED").count(), 999 - 2 - REFUSALS_MAX as usize);
    rig.later(10_000);
    assert_eq!(rig.count(Counter::ClosedDrain), 1);
}

#[test]
fn a_reload_changes_the_limits_of_those_who_are_there() {
    let mut rig = Rig::new(false, |_| ());
    let (alice, _) = rig.user("alice");
    let other = rig.connect(THERE);
    let apply = |rig: &mut Rig, change: fn(&mut LimitSettings)| {
        rig.engine.apply(published(false, change), rig.now);
        rig.later(1_000);
    };
    assert_eq!(rig.engine.clients.limits.len(), (0, 0));
    apply(&mut rig, |l| {
        l.user.connections_max = 1;
        l.user.messages_per_s = 2;
        l.address.connections_max = 1;
    });
    assert_eq!(rig.engine.clients.limits.len(), (1, 2), "the sweep counts who was there before");
    assert!(rig.open(THERE).is_err());
    assert!(rig.auth(alice, "alice").contains("auth_ok"), "it is no new connection");
    assert!(is_ok(&rig.says(alice, ECHO)) && !is_ok(&rig.says(alice, ECHO)));
    // The same bucket goes on, faster: 2 ms of 500 a second, and 1 ms of 2 before.
    apply(&mut rig, |l| l.user.messages_per_s = 500);
    rig.now.0 += 1_000;
    assert!(is_ok(&rig.says(alice, ECHO)) && !is_ok(&rig.says(alice, ECHO)));
    rig.open(THERE).expect("no limit any more");
    apply(&mut rig, |_| ());
    assert!((0..1_000).all(|_| is_ok(&rig.says(alice, ECHO))));
    rig.engine.remove(alice);
    rig.engine.remove(other);
    rig.later(1_000);
    assert_eq!(rig.engine.clients.limits.len(), (0, 0), "who is gone is forgotten");
}

#[test]
fn who_is_counted_stays_so_while_limits_go_and_come_back() {
    let one = |l: &mut LimitSettings| l.user.connections_max = 1;
    let mut rig = Rig::new(false, one);
    let (alice, _) = rig.user("alice");
    let apply = |rig: &mut Rig, change: fn(&mut LimitSettings)| {
        rig.engine.apply(published(false, change), rig.now);
        rig.engine.check_invariants().expect("consistent");
    };
    // A new token while users are not limited is of the same user. Each step checks the counts.
    apply(&mut rig, |_| ());
    assert!(rig.auth(alice, "alice").contains("auth_ok"));
    let (second, told) = rig.user("alice");
    assert!(told.contains("auth_ok"), "{told}");
    apply(&mut rig, one);
    assert!(rig.auth(alice, "alice").contains("auth_ok"));
    rig.later(1_000);
    apply(&mut rig, |_| ());
    assert!(rig.auth(second, "alice").contains("auth_ok"));
    rig.engine.remove(alice);
    rig.engine.remove(second);
    apply(&mut rig, one);
    assert!(rig.user("alice").1.contains("auth_ok"), "nobody is locked out");
}

#[test]
fn connections_are_listed_only_while_their_places_are_limited() {
    let mut rig = Rig::new(false, |l| l.user.messages_per_s = 5);
    let ids: Vec<ConnId> = (0..8).map(|_| rig.user("alice").0).collect();
    let user = rig.engine.clients.conns.get(ids[0]).expect("there").limits.user;
    let listed = |rig: &Rig| rig.engine.clients.limits.members(user).len();
    assert_eq!(listed(&rig), 0);
    let limited = |l: &mut LimitSettings| l.user.connections_max = 7;
    rig.engine.apply(published(false, limited), rig.now);
    assert_eq!(listed(&rig), 8, "a reload lists those who are there");
    rig.engine.remove(ids[3]);
    rig.later(0);
    assert_eq!(listed(&rig), 7);
    rig.engine.apply(published(false, |_| ()), rig.now);
    assert_eq!(listed(&rig), 0);
    ids.into_iter().for_each(|id| rig.engine.remove(id));
    rig.later(0);
}

#[test]
fn the_welcome_tells_the_least_rate_that_holds() {
    for (user, address, expected) in [(0, 0, 0), (7, 0, 7), (0, 20, 5), (7, 40, 7), (7, 20, 5)] {
        let mut rig = Rig::of(false, 4, |l| {
            l.user.messages_per_s = user;
            l.address.messages_per_s = address;
        });
        let id = rig.open(HERE).expect("room");
        let told = rig.upgrade(id, "");
        assert!(told.contains(&format!(r#""messages_per_s_max":{expected}"#)), "{told}");
    }
}

#[test]
fn without_limits_nobody_is_remembered() {
    let mut rig = Rig::new(false, |_| ());
    let (id, _) = rig.user("alice");
    assert!((0..200).all(|_| is_ok(&rig.says(id, ECHO))));
    rig.later(1_000_000);
    assert_eq!(rig.engine.clients.limits.len(), (0, 0));
}
