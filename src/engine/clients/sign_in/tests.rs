//! Stories of one shard: who is let in, who is closed, who waits.

mod tenants;

use super::*;
use crate::auth::EARLY_FETCH_S;
use crate::auth::keys::{FetchedAt, KeySet, read_jwks};
use crate::auth::load::{FetchedSets, LocalKeys};
use crate::auth::mint::{SigningKey, Wanted, mint};
use crate::config::Overrides;
use crate::config::load::{Files, from_files};
use crate::config::settings::{
    Algorithm, AuthKey, AuthMode, AuthSettings, KeySource, ShardSettings, StopSettings, Tenants,
};
use crate::engine::clients::conn::ReadNext;
use crate::engine::clients::token_turns::VERIFICATIONS_PER_TURN;
use crate::engine::{Engine, EngineInit};
use crate::ids::ShardId;
use crate::ids::TenantId;
use crate::mailbox::ShardConfig;
use crate::routing::affinity_hash;

pub(in crate::engine) const SECRET: &str = "01234567890123456789012345678901";
const OTHER: &str = "abcdefghijklmnopqrstuvwxyzabcdef";
/// Unix time at the start of a test.
pub(in crate::engine) const START_S: i64 = 1_700_000_000;

struct Rig {
    engine: Engine,
    now: Micros,
}

pub(in crate::engine) fn published(secret: &str, required: bool) -> ShardConfig {
    let files = from_files(Files::embedded(), &[], &Overrides::default());
    let mut config = files.expect("the built-in files are right");
    let source = KeySource::Secret(secret.into());
    config.gateway.auth = AuthSettings {
        mode: AuthMode::Jwt,
        required,
        tenants: Tenants::Many,
        keys: vec![AuthKey { id: "k".into(), algorithm: Algorithm::Hs256, source }],
        ..AuthSettings::default()
    };
    for route in &mut config.snapshot.routes {
        route.needs_user = route.first == 1000;
    }
    let keys = LocalKeys::read(&config).expect("no files");
    let auth = keys.verifier(&config, &FetchedSets::default());
    let mut settings = ShardSettings::default();
    // Nobody here is closed for being silent.
    settings.conn.heartbeat_ms = 3_600_000;
    ShardConfig {
        snapshot: Arc::new(config.snapshot),
        gateway: Arc::new(config.gateway),
        settings,
        auth,
        tls: None,
        service_tls: Default::default(),
    }
}

/// As [`published`], with a set that is to be fetched and, if a time is given, was fetched then.
fn with_set(fetched_unix_s: Option<i64>) -> ShardConfig {
    const SET: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"e",
        "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    let mut published = published(SECRET, false);
    let files = from_files(Files::embedded(), &[], &Overrides::default());
    let mut config = files.expect("the built-in files are right");
    config.gateway = (*published.gateway).clone();
    config.gateway.auth.jwks_url = Some("https://id.example/keys".into());
    let set = fetched_unix_s
        .map(|at| KeySet { fetched: Some(FetchedAt::new(at)), ..read_jwks(SET).expect("a set") });
    let keys = LocalKeys::read(&config).expect("no files");
    let fetched = set.into_iter().map(|set| (KeyOwner::Auth, set)).collect();
    published.auth = keys.verifier(&config, &fetched);
    published.gateway = Arc::new(config.gateway);
    published
}

fn token_of(secret: &str, user: &str, lifetime_s: u32) -> String {
    token_named("k", secret, user, lifetime_s)
}

fn token_named(key_id: &str, secret: &str, user: &str, lifetime_s: u32) -> String {
    let wanted = Wanted {
        algorithm: Algorithm::Hs256,
        key_id: Some(key_id),
        user,
        tenant: Some("acme"),
        groups: &[],
        issuer: None,
        audience: None,
        now_unix_s: START_S,
        lifetime_s,
    };
    mint(&wanted, SigningKey::Secret(secret.as_bytes())).expect("a token")
}

pub(in crate::engine) fn token(user: &str) -> String {
    token_of(SECRET, user, 600)
}

pub(in crate::engine) fn frame(text: &str) -> Vec<u8> {
    if text.len() < 126 {
        return [&[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0], text.as_bytes()].concat();
    }
    let len = u16::try_from(text.len()).expect("a short text").to_be_bytes();
    [&[0x81, 0x80 | 126, len[0], len[1], 0, 0, 0, 0], text.as_bytes()].concat()
}

pub(in crate::engine) fn auth(seq: u64, token: &str) -> Vec<u8> {
    frame(&format!(r#"{{"type":"auth","seq":{seq},"payload":{{"token":"{token}"}}}}"#))
}

/// The engine of shard number `shard` of so many, at its start.
pub(in crate::engine) fn engine(published: ShardConfig, shard: u16, shards: u16) -> Engine {
    let ShardConfig { snapshot, gateway, settings, auth, .. } = published;
    Engine::new(EngineInit {
        shard: ShardId(shard),
        shards,
        gateway,
        settings,
        snapshot,
        auth,
        boot_id: 1,
        unix_at_boot_us: START_S * 1_000_000,
        seed: [shard as u8; 32],
    })
}

impl Rig {
    fn new(required: bool) -> Self {
        Self { engine: engine(published(SECRET, required), 0, 1), now: Micros(1_000) }
    }

    /// A connection that has sent its request with these fields, and more behind it.
    fn open(&mut self, fields: &str, behind: &[u8]) -> ConnId {
        self.open_from([127, 0, 0, 1], fields, behind)
    }

    fn open_from(&mut self, ip: [u8; 4], fields: &str, behind: &[u8]) -> ConnId {
        let id = self.engine.open((ip, 1).into(), self.now).expect("room");
        let request = format!(
            "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
             {fields}\r\n"
        );
        let mut bytes = [request.as_bytes(), behind].concat();
        self.engine.on_bytes(id, &mut bytes, self.now);
        id
    }

    fn bearer(&mut self, token: &str) -> ConnId {
        self.open(&format!("Authorization: Bearer {token}\r\n"), b"")
    }

    fn says(&mut self, id: ConnId, mut frame: Vec<u8>) -> ReadNext {
        self.engine.on_bytes(id, &mut frame, self.now)
    }

    fn end_turn(&mut self) {
        self.engine.end_turn(self.now);
        self.engine.check_invariants().expect("consistent");
        for id in std::mem::take(&mut self.engine.effects.resumed) {
            self.engine.on_resumed(id, self.now);
        }
    }

    /// What it was told since it was last asked.
    fn told(&mut self, id: ConnId) -> String {
        let bytes = self.engine.outbox(id).to_vec();
        self.engine.on_sent(id, bytes.len(), self.now);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Long enough for the sweep to have looked at everybody.
    fn later(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        for _ in 0..200 {
            self.engine.tick(self.now, &mut Vec::new());
        }
        self.end_turn();
    }

    fn count(&self, counter: Counter) -> u64 {
        self.engine.report(0, self.now).counters.get(counter)
    }

    fn phase(&self, id: ConnId) -> Phase {
        self.engine.clients.conns.get(id).expect("there").phase
    }
}

/// What was told has this text, as a Close frame has it.
fn closed_with(told: &str, reason: &str) -> bool {
    told.contains(reason)
}

#[test]
fn a_message_signs_in_and_the_answer_has_its_seq() {
    let mut rig = Rig::new(false);
    let id = rig.open("", b"");
    rig.told(id);
    rig.says(id, frame(r#"{"msg_id":1001,"seq":1,"payload":1}"#));
    assert!(rig.told(id).contains("UNAUTHENTICATED"), "the route needs a user");
    rig.says(id, auth(2, &token("alice")));
    let told = rig.told(id);
    assert!(told.contains(r#""seq":2,"type":"auth_ok""#), "{told}");
    assert!(told.contains(r#""user":"alice","tenant":"acme""#), "{told}");
    rig.says(id, frame(r#"{"msg_id":1001,"seq":3,"payload":1}"#));
    assert!(!rig.told(id).contains("UNAUTHENTICATED"));
    rig.says(id, frame(r#"{"msg_id":9002,"seq":4}"#));
    assert!(rig.told(id).contains(r#""user":"alice","tenant":"acme""#));
    let conn = rig.engine.clients.conns.get(id).expect("there");
    assert_eq!(conn.session.sender.user, Some(affinity_hash(TenantId::of("acme"), b"alice")));
    assert_ne!(conn.session.sender.user, Some(affinity_hash(TenantId::of("other"), b"alice")));
    assert_ne!(conn.session.sender.user, Some(conn.session.sender.session));
}

#[test]
fn a_token_at_the_upgrade_signs_in_after_the_welcome() {
    let mut rig = Rig::new(true);
    let token = token("alice");
    let offer = format!("Sec-WebSocket-Protocol: shardgate.v1.json, shardgate.token.{token}\r\n");
    for fields in [format!("Authorization: Bearer {token}\r\n"), offer] {
        let id = rig.open(&fields, b"");
        let told = rig.told(id);
        let (welcome, ok) = (told.find("welcome"), told.find("auth_ok"));
        assert!(welcome.is_some() && welcome < ok, "{told}");
        assert!(!told.contains(&token), "{told}");
        rig.later(11_000);
        assert_eq!(rig.phase(id), Phase::Open, "nothing more is needed");
    }
}

#[test]
fn a_bad_token_at_the_upgrade_is_401() {
    let mut rig = Rig::new(false);
    let id = rig.bearer(&token_of(OTHER, "alice", 600));
    let told = rig.told(id);
    assert!(told.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{told}");
    assert!(told.contains("WWW-Authenticate: Bearer "), "{told}");
    assert_eq!(rig.count(Counter::AuthRefusedSignature), 1);
    assert_eq!(rig.count(Counter::Upgraded), 0);
}

#[test]
fn who_shows_an_empty_token_is_not_let_in_without_a_name() {
    let mut rig = Rig::new(false);
    for value in ["Bearer", "Bearer ", "bearer"] {
        let id = rig.open(&format!("Authorization: {value}\r\n"), b"");
        let told = rig.told(id);
        assert!(told.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{value:?}: {told}");
    }
    assert_eq!(rig.count(Counter::AuthRefusedForm), 3);
}

#[test]
fn a_bad_token_in_a_message_is_answered_and_closes() {
    let mut rig = Rig::new(false);
    for seq in [0, 1] {
        let id = rig.open("", b"");
        rig.told(id);
        rig.says(id, auth(seq, "a.b.c"));
        let told = rig.told(id);
        assert!(
            told.contains("UNAUTHENTICATED")
                && closed_with(&told, "the token was refused: connect again with another one"),
            "{told}"
        );
        assert!(matches!(rig.phase(id), Phase::Closing { .. }));
    }
    assert_eq!(rig.count(Counter::ClosedBadToken), 2);
    // Something that is no token at all is a bad message and nothing worse.
    let id = rig.open("", b"");
    rig.says(id, frame(r#"{"type":"auth","seq":1,"payload":"x"}"#));
    assert!(rig.told(id).contains("BAD_MESSAGE"));
    assert_eq!(rig.phase(id), Phase::Open);
}

#[test]
fn another_token_of_the_same_user_extends_and_one_of_another_is_refused() {
    let mut rig = Rig::new(false);
    let id = rig.bearer(&token_of(SECRET, "alice", 60));
    rig.told(id);
    rig.says(id, auth(1, &token("bob")));
    assert!(rig.told(id).contains("FORBIDDEN"));
    rig.says(id, auth(2, &token_of(SECRET, "alice", 120)));
    assert!(rig.told(id).contains("auth_ok"));
    // 60 s and the leeway of 30 s.
    rig.later(100_000);
    assert_eq!(rig.phase(id), Phase::Open);
    rig.later(49_000);
    assert_eq!(rig.phase(id), Phase::Open);
    rig.later(2_000);
    assert!(closed_with(&rig.told(id), "expired"));
    assert_eq!(rig.count(Counter::ClosedTokenExpired), 1);
}

#[test]
fn expiry_goes_by_the_wall_clock_and_deadlines_do_not() {
    let mut rig = Rig::new(true);
    let (alice, nobody) = (rig.bearer(&token("alice")), rig.open("", b""));
    rig.engine.set_wall_clock((START_S - 3_600) * 1_000_000, rig.now);
    rig.later(1_000);
    rig.engine.set_wall_clock((START_S + 3_600) * 1_000_000, rig.now);
    rig.later(1_000);
    assert_ne!(rig.phase(alice), Phase::Open);
    assert_eq!(rig.phase(nobody), Phase::Open, "it has 10 s, whatever the wall clock says");
}

#[test]
fn a_step_of_the_wall_clock_reaches_pong_and_9001() {
    let mut rig = Rig::new(false);
    let id = rig.open("", b"");
    for step_s in [0, 3_600, -7_200] {
        let unix_us = (START_S + step_s) * 1_000_000;
        rig.engine.set_wall_clock(unix_us, rig.now);
        rig.told(id);
        rig.says(id, frame(r#"{"type":"ping"}"#));
        rig.says(id, frame(r#"{"msg_id":9001,"seq":1}"#).clone());
        let told = rig.told(id);
        assert!(told.contains(&format!(r#"{{"unix_ms":{}}}"#, unix_us / 1_000)), "{told}");
        rig.engine.clients.conns.get_mut(id).expect("there").session.last_seq = 0;
        assert!(told.contains(&format!(r#"{{"unix_us":{unix_us}}}"#)), "{told}");
    }
}

#[test]
fn who_shows_no_token_in_time_is_closed_where_one_is_required() {
    for required in [true, false] {
        let mut rig = Rig::new(required);
        let (late, early) = (rig.open("", b""), rig.open("", b""));
        rig.says(early, auth(1, &token("alice")));
        // What was told is read: nobody here is closed for being slow.
        for id in [late, early] {
            rig.told(id);
        }
        rig.later(9_990);
        assert_eq!(rig.phase(late), Phase::Open);
        rig.later(10);
        assert_eq!(rig.phase(late) == Phase::Open, !required);
        assert_eq!(rig.phase(early), Phase::Open);
        assert_eq!(rig.count(Counter::ClosedNoAuth), u64::from(required));
    }
}

#[test]
fn required_means_that_nothing_runs_before_the_token() {
    let mut rig = Rig::new(true);
    let id = rig.open("", b"");
    rig.told(id);
    rig.says(id, frame(r#"{"msg_id":2000,"seq":1,"payload":1}"#));
    assert!(rig.told(id).contains("UNAUTHENTICATED"));
    assert_eq!(rig.count(Counter::Enqueued), 0);
    rig.says(id, auth(2, &token("alice")));
    rig.says(id, frame(r#"{"msg_id":2000,"seq":3,"payload":1}"#));
    assert_eq!(rig.count(Counter::Enqueued), 1);
}

#[test]
fn unanswered_messages_do_not_put_the_time_for_a_token_off() {
    let mut rig = Rig::new(false);
    let before = rig.open("", b"");
    rig.engine.apply(published(SECRET, true), rig.now);
    // Let in without a token: it goes on so.
    rig.says(before, frame(r#"{"msg_id":2000,"seq":1,"payload":1}"#));
    assert_eq!(rig.count(Counter::Enqueued), 1);
    let id = rig.open("", b"");
    // Paused for whatever reason is not ours.
    rig.engine.clients.conns.get_mut(id).expect("there").hold(Hold::Rate);
    for _ in 0..12 {
        rig.told(before);
        rig.told(id);
        rig.later(1_000);
    }
    assert!(matches!(rig.phase(id), Phase::Closing { .. }));
    assert_eq!(rig.phase(before), Phase::Open, "{}", rig.told(before));
}

#[test]
fn who_had_to_sign_in_need_not_when_nobody_does_any_more() {
    let mut rig = Rig::new(true);
    let id = rig.open("", b"");
    rig.told(id);
    rig.engine.apply(ShardConfig { auth: None, ..published(SECRET, true) }, rig.now);
    rig.later(11_000);
    assert_eq!(rig.phase(id), Phase::Open);
    rig.says(id, frame(r#"{"msg_id":2000,"seq":1,"payload":1}"#));
    assert_eq!(rig.count(Counter::Enqueued), 1);
    assert_eq!(rig.engine.report(0, rig.now).gauges.unauthenticated, 0, "its place is free");
    // And it stays let in.
    rig.engine.apply(published(SECRET, true), rig.now);
    for _ in 0..12 {
        rig.told(id);
        rig.later(1_000);
    }
    assert_eq!(rig.phase(id), Phase::Open);
}

#[test]
fn new_keys_touch_nobody_who_signed_in() {
    let mut rig = Rig::new(true);
    let id = rig.bearer(&token("alice"));
    rig.told(id);
    rig.engine.apply(published(OTHER, true), rig.now);
    rig.later(11_000);
    assert_eq!(rig.phase(id), Phase::Open);
    let old = rig.bearer(&token("alice"));
    assert!(rig.told(old).starts_with("HTTP/1.1 401"));
    let new = rig.bearer(&token_of(OTHER, "alice", 600));
    assert!(rig.told(new).contains("auth_ok"));
    let off = ShardConfig { auth: None, ..published(OTHER, false) };
    rig.engine.apply(off, rig.now);
    rig.says(id, auth(1, &token("alice")));
    assert!(rig.told(id).contains("UNIMPLEMENTED"));
}

#[test]
fn without_any_key_clients_are_told_to_come_back() {
    let mut rig = Rig::new(false);
    let mut none = published(SECRET, false);
    let files = from_files(Files::embedded(), &[], &Overrides::default());
    let mut config = files.expect("the built-in files are right");
    config.gateway.auth.mode = AuthMode::Jwt;
    config.gateway.auth.jwks_url = Some("https://id.example/keys".into());
    none.auth = LocalKeys::default().verifier(&config, &FetchedSets::default());
    rig.engine.apply(none, rig.now);
    let id = rig.bearer(&token("alice"));
    assert!(rig.told(id).starts_with("HTTP/1.1 503"));
    let id = rig.open("", b"");
    rig.says(id, auth(1, &token("alice")));
    assert!(rig.told(id).contains("UNAVAILABLE"));
    assert_eq!(rig.phase(id), Phase::Open);
}

#[test]
fn while_newer_keys_may_be_there_an_unknown_key_is_no_bad_token() {
    let behind = START_S - EARLY_FETCH_S as i64 - 1;
    for fetched in [None, Some(behind), Some(START_S + 3_600)] {
        let mut rig = Rig::new(false);
        rig.engine.apply(with_set(fetched), rig.now);
        let new = token_named("new", OTHER, "alice", 600);
        let id = rig.bearer(&new);
        let told = rig.told(id);
        assert!(told.starts_with("HTTP/1.1 503 "), "{fetched:?}: {told}");
        assert!(told.contains("\r\nRetry-After: 1\r\n"), "{told}");
        let id = rig.open("", b"");
        rig.told(id);
        rig.says(id, auth(1, &new));
        let told = rig.told(id);
        assert!(told.contains("UNAVAILABLE"), "{fetched:?}: {told}");
        assert!(told.contains("retry_after_ms"), "{told}");
        assert_eq!(rig.phase(id), Phase::Open);
        assert_eq!(rig.engine.effects.keys_wanted, [KeyOwner::Auth], "control is asked, once");
        assert_eq!(rig.count(Counter::AuthKeysMissing), 2);
        // What is bad whatever the keys are is bad at once, and who has a known key signs in.
        rig.says(id, auth(2, &token("alice")));
        assert!(rig.told(id).contains("auth_ok"));
        for bad in ["a.b.c".into(), token_of(OTHER, "alice", 600)] {
            let id = rig.bearer(&bad);
            assert!(rig.told(id).starts_with("HTTP/1.1 401 "), "{bad}");
        }
    }
}

#[test]
fn with_a_fresh_set_an_unknown_key_is_a_bad_token_and_nothing_is_fetched() {
    for fetched in [START_S, START_S - EARLY_FETCH_S as i64] {
        let mut rig = Rig::new(false);
        rig.engine.apply(with_set(Some(fetched)), rig.now);
        let new = token_named("new", OTHER, "alice", 600);
        let id = rig.bearer(&new);
        assert!(rig.told(id).starts_with("HTTP/1.1 401 "));
        let id = rig.open("", b"");
        rig.told(id);
        rig.says(id, auth(1, &new));
        let told = rig.told(id);
        assert!(
            told.contains("UNAUTHENTICATED")
                && closed_with(&told, "the token was refused: connect again with another one"),
            "{told}"
        );
        assert_eq!(rig.count(Counter::AuthRefusedKey), 2);
        assert!(rig.engine.effects.keys_wanted.is_empty());
    }
}

#[test]
fn control_is_asked_for_keys_once_a_second_whatever_comes() {
    let mut rig = Rig::new(false);
    rig.engine.apply(with_set(None), rig.now);
    let mut asked = 0;
    for _ in 0..30 {
        let id = rig.bearer(&token_named("new", OTHER, "alice", 600));
        assert!(rig.told(id).starts_with("HTTP/1.1 503 "));
        rig.engine.remove(id);
        asked += std::mem::take(&mut rig.engine.effects.keys_wanted).len();
        rig.end_turn();
        rig.now = rig.now.plus_ms(100);
    }
    assert_eq!(asked, 3, "3 s of them");
}

#[test]
fn a_storm_is_verified_a_few_a_turn_in_its_order_and_loses_nothing() {
    let mut rig = Rig::new(true);
    let token = token("alice");
    let ping = frame(r#"{"type":"ping","seq":9}"#);
    let half = VERIFICATIONS_PER_TURN as usize * 2;
    let mut all = Vec::new();
    for _ in 0..half {
        all.push(rig.open(&format!("Authorization: Bearer {token}\r\n"), &ping));
        let id = rig.open("", b"");
        rig.says(id, [auth(1, &token), ping.clone()].concat());
        all.push(id);
    }
    let waiting = |rig: &Rig| all.iter().filter(|id| rig.engine.is_paused(**id)).count();
    let (each, mut left) = (VERIFICATIONS_PER_TURN as usize, all.len());
    while left > 0 {
        left = left.saturating_sub(each);
        assert_eq!(waiting(&rig), left, "first come, first served, {each} a turn");
        assert!(all[all.len() - left..].iter().all(|id| rig.engine.is_paused(*id)));
        rig.end_turn();
    }
    for id in all {
        let told = rig.told(id);
        let (ok, pong) = (told.find("auth_ok"), told.find("pong"));
        assert!(ok.is_some() && ok < pong, "{told}");
    }
}

#[test]
fn a_storm_of_one_address_delays_the_sign_in_of_no_other_address_and_of_no_user() {
    let mut rig = Rig::new(false);
    let token = token("alice");
    let user = rig.bearer(&token);
    rig.end_turn();
    assert!(rig.told(user).contains("auth_ok"));
    let storm: Vec<ConnId> = (0..200).map(|_| rig.bearer(&token)).collect();
    // Another address, by a message and at the upgrade, and a user who shows a new token.
    let message = rig.open_from([127, 0, 0, 2], "", b"");
    rig.says(message, auth(1, &token));
    let fields = format!("Authorization: Bearer {token}\r\n");
    let upgrade = rig.open_from([127, 0, 0, 3], &fields, b"");
    rig.says(user, auth(1, &token));
    let polite = [message, upgrade, user];
    assert!(polite.iter().all(|id| rig.engine.is_paused(*id)));
    rig.end_turn();
    for id in polite {
        let told = rig.told(id);
        assert!(told.contains("auth_ok"), "{told}");
    }
    let waiting = storm.iter().filter(|id| rig.engine.is_paused(**id)).count();
    assert_eq!(waiting, 200 - 8 - 5, "it has what the others left of each turn");
}

#[test]
fn who_goes_while_it_waits_costs_nobody_a_turn() {
    let mut rig = Rig::new(true);
    let token = token("alice");
    let all: Vec<ConnId> = (0..4 * VERIFICATIONS_PER_TURN).map(|_| rig.bearer(&token)).collect();
    let each = VERIFICATIONS_PER_TURN as usize;
    all[each..2 * each].iter().for_each(|id| rig.engine.remove(*id));
    rig.end_turn();
    assert!(all[2 * each..3 * each].iter().all(|id| !rig.engine.is_paused(*id)));
    // A stop refuses it although its turn never came.
    rig.engine.drain(StopSettings::default(), rig.now);
    rig.engine.tick(rig.now, &mut Vec::new());
    let last = all[4 * each - 1];
    assert!(rig.told(last).starts_with("HTTP/1.1 503"));
    rig.end_turn();
    assert!(!rig.engine.is_paused(last), "its end can be read");
}

/// The client has done its part.
#[test]
fn who_waits_for_its_tokens_turn_is_not_late_with_its_handshake() {
    let mut rig = Rig::new(true);
    let token = token("alice");
    let half = rig.engine.open(([127, 0, 0, 1], 2).into(), rig.now).expect("room");
    rig.says(half, b"GET /ws HTTP/1.1\r\n".to_vec());
    let all: Vec<ConnId> = (0..4 * VERIFICATIONS_PER_TURN).map(|_| rig.bearer(&token)).collect();
    rig.now = rig.now.plus_ms(60_000);
    (0..200).for_each(|_| rig.engine.tick(rig.now, &mut Vec::new()));
    assert!(rig.told(half).starts_with("HTTP/1.1 408"), "what is not complete is late");
    assert_eq!(rig.count(Counter::HandshakeTimeout), 1);
    (0..4).for_each(|_| rig.end_turn());
    for id in all {
        let told = rig.told(id);
        assert!(told.starts_with("HTTP/1.1 101") && told.contains("auth_ok"), "{told}");
    }
}

#[test]
fn the_default_tenant_is_nobody_elses() {
    assert_eq!(TenantId::of(""), TenantId::default());
    assert_ne!(TenantId::of("0"), TenantId::default());
}
