//! Stories of two shards: who moves when, with what, and what becomes of those who cannot.

use super::*;
use crate::config::settings::ConnectionsMax;
use crate::engine::Engine;
use crate::engine::clients::conn::ReadNext;
use crate::engine::clients::conn::SocketAction;
use crate::engine::clients::sign_in::tests::{SECRET, auth, engine, frame, published, token};
use crate::ids::TenantId;
use crate::mailbox::ShardConfig;
use crate::message::{CallError, CallFault, Outcome, Started, status};
use crate::routing::affinity_hash;

const REQUEST: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\
     Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
     Sec-WebSocket-Version: 13\r\n";

/// Two shards; users are named by where their home is.
struct Rig {
    shards: [Engine; 2],
    now: Micros,
}

/// A user whose home is `shard`, of the tenant that tokens of the tests name.
fn user_of(shard: u16, n: usize) -> String {
    let tenant = TenantId::of("acme");
    let home = |user: &String| home_shard(affinity_hash(tenant, user.as_bytes()), 2).0;
    (0..).map(|i| format!("u{i}")).filter(|user| home(user) == shard).nth(n).expect("endless")
}

impl Rig {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl Fn(&mut ShardConfig)) -> Self {
        let shards = [0, 1].map(|n| {
            let mut published = published(SECRET, false);
            change(&mut published);
            engine(published, n, 2)
        });
        Self { shards, now: Micros(1_000) }
    }

    fn open(&mut self, shard: usize, fields: &str, behind: &[u8]) -> ConnId {
        let id = self.shards[shard].open(([127, 0, 0, 1], 1).into(), self.now).expect("room");
        self.says(shard, id, [REQUEST.as_bytes(), fields.as_bytes(), b"\r\n", behind].concat());
        id
    }

    fn says(&mut self, shard: usize, id: ConnId, mut bytes: Vec<u8>) -> ReadNext {
        self.shards[shard].on_bytes(id, &mut bytes, self.now)
    }

    fn told(&mut self, shard: usize, id: ConnId) -> String {
        let bytes = self.shards[shard].outbox(id).to_vec();
        self.shards[shard].on_sent(id, bytes.len(), self.now);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What the shell does in a turn, but for sockets; those who leave are given back.
    fn turn(&mut self, shard: usize) -> Vec<(ConnId, ShardId, Departed)> {
        let engine = &mut self.shards[shard];
        for id in std::mem::take(&mut engine.effects.resumed) {
            engine.on_resumed(id, self.now);
        }
        engine.end_turn(self.now);
        engine.check_invariants().expect("consistent");
        let moves = std::mem::take(&mut engine.effects.moves);
        let left = moves
            .into_iter()
            .filter_map(|id| engine.depart(id).map(|(home, departed)| (id, home, departed)));
        let left = left.collect();
        engine.check_invariants().expect("consistent");
        left
    }

    /// The one that leaves `from` arrives at the other shard.
    fn carry(&mut self, from: usize) -> ConnId {
        let mut left = self.turn(from);
        assert_eq!(left.len(), 1, "one moves");
        let (_, home, departed) = left.remove(0);
        assert_eq!(usize::from(home.0), 1 - from);
        let id = self.shards[1 - from].arrive(departed, self.now).expect("a place");
        self.turn(1 - from);
        id
    }

    /// A call that left `shard` fails, and may have run.
    fn call_fails(&mut self, shard: usize) {
        let call = self.shards[shard].effects.calls.remove(0);
        let error = CallError::of(CallFault::Status, Started::Maybe, status::INTERNAL);
        let outcome = Outcome { ticket: call.ticket, result: Err(error) };
        self.shards[shard].on_outcome(outcome, self.now);
    }

    fn counted(&self, shard: usize, counter: Counter) -> u64 {
        self.shards[shard].report(0, self.now).counters.get(counter)
    }
}

const WHO: &str = r#"{"msg_id":9002,"seq":9}"#;

#[test]
fn a_token_at_the_upgrade_moves_the_connection_before_the_first_word() {
    let mut rig = Rig::new();
    let user = user_of(1, 0);
    let fields = format!("Authorization: Bearer {}\r\n", token(&user));
    let id = rig.open(0, &fields, &frame(WHO));
    assert_eq!(rig.told(0, id), "");
    let id = rig.carry(0);
    let told = rig.told(1, id);
    assert!(told.starts_with("HTTP/1.1 101 "), "{told}");
    let order = ["\"shard\":1", "auth_ok", "\"seq\":9"].map(|word| told.find(word));
    assert!(order.is_sorted() && order[0].is_some(), "{told}");
    assert!(told.contains(&format!("\"user\":\"{user}\"")), "{told}");
    assert_eq!(rig.shards[0].view().conns.len(), 0);
    assert_eq!((rig.counted(0, Counter::MovedOut), rig.counted(1, Counter::MovedIn)), (1, 1));
    // The token was verified once.
    assert_eq!((rig.counted(0, Counter::AuthOk), rig.counted(1, Counter::AuthOk)), (1, 0));
}

#[test]
fn a_user_at_home_and_an_anonymous_client_do_not_move() {
    let mut rig = Rig::new();
    let fields = format!("Authorization: Bearer {}\r\n", token(&user_of(0, 0)));
    let at_home = rig.open(0, &fields, b"");
    let nobody = rig.open(0, "", &frame(WHO));
    assert_eq!(rig.turn(0).len(), 0);
    assert!(rig.told(0, at_home).contains("auth_ok"));
    assert!(rig.told(0, nobody).contains("\"seq\":9"));
}

#[test]
fn a_connection_moves_when_its_answers_are_there_and_takes_its_bytes_along() {
    let mut rig = Rig::new();
    let id = rig.open(0, "", b"");
    rig.told(0, id);
    let user = user_of(1, 1);
    let before = frame(r#"{"msg_id":2000,"seq":1,"payload":1}"#);
    let behind = frame(r#"{"msg_id":9002,"seq":3}"#);
    // The last frame is not complete.
    let all = [before, auth(2, &token(&user)), behind, frame(WHO)[..9].to_vec()].concat();
    assert_eq!(rig.says(0, id, all), ReadNext::Pause);
    assert_eq!(rig.turn(0).len(), 0, "a message is without its answer");
    assert_eq!(rig.told(0, id), "");
    rig.call_fails(0);
    rig.shards[0].note_work(id, 1_000_000);
    let id = rig.carry(0);
    let work = rig.shards[1].clients.conns.get(id).expect("it arrived").work;
    assert!(work >= 1_000_000, "what it has cost before moves with it: {work}");
    // The answer was not sent before it moved.
    let told = rig.told(1, id);
    let order = ["\"seq\":1", "auth_ok", "\"seq\":3"].map(|word| told.find(word));
    assert!(order.is_sorted() && order[0].is_some(), "{told}");
    assert!(told.contains(&user), "{told}");
    rig.says(1, id, frame(WHO)[9..].to_vec());
    let told = rig.told(1, id);
    assert!(told.contains("\"seq\":9") && told.contains("\"shard\":1"), "{told}");
    assert_eq!(rig.counted(0, Counter::Answers) + rig.counted(1, Counter::Answers), 4);
}

#[test]
fn a_call_that_outlives_its_messages_holds_the_connection() {
    let mut rig = Rig::new();
    let id = rig.open(0, "", b"");
    rig.told(0, id);
    let before = frame(r#"{"msg_id":2000,"seq":1,"payload":1,"deadline_ms":20}"#);
    rig.says(0, id, [before, auth(2, &token(&user_of(1, 0)))].concat());
    assert_eq!(rig.turn(0).len(), 0);
    rig.now = rig.now.plus_ms(30);
    rig.shards[0].tick(rig.now, &mut Vec::new());
    assert!(rig.told(0, id).contains("OUTCOME_UNKNOWN"));
    assert_eq!(rig.turn(0).len(), 0, "what it sends next could overtake the first message");
    rig.call_fails(0);
    // The end of the call is what it waited for: it does not wait for the next tick, too.
    let id = rig.carry(0);
    assert!(rig.told(1, id).contains("auth_ok"));
}

#[test]
fn a_refresh_moves_nobody() {
    let mut rig = Rig::new();
    let user = user_of(1, 0);
    rig.open(0, "", &auth(1, &token(&user)));
    let id = rig.carry(0);
    rig.says(1, id, auth(2, &token(&user)));
    assert_eq!(rig.turn(1).len(), 0);
    let told = rig.told(1, id);
    assert_eq!(told.matches("auth_ok").count(), 2, "{told}");
}

#[test]
fn with_a_full_lane_it_stays_unread_and_tries_again() {
    let mut rig = Rig::new();
    let fields = format!("Authorization: Bearer {}\r\n", token(&user_of(1, 0)));
    let behind = auth(1, &token(&user_of(1, 1)));
    for (fields, behind) in [(&fields[..], &b""[..]), ("", &behind[..])] {
        rig.open(0, fields, behind);
        let (_, _, departed) = rig.turn(0).remove(0);
        let id = rig.shards[0].move_refused(departed, false, rig.now);
        assert_eq!(rig.turn(0).len(), 0, "not before the next tick");
        assert!(rig.shards[0].is_paused(id));
        // Longer than a handshake may take, which is not the client's fault.
        rig.now = rig.now.plus_ms(60_000);
        (0..200).for_each(|_| rig.shards[0].tick(rig.now, &mut Vec::new()));
        let id = rig.carry(0);
        assert!(rig.told(1, id).contains("auth_ok"));
    }
    assert_eq!(rig.counted(0, Counter::MoveDelayed), 2);
}

#[test]
fn if_its_home_has_ended_it_signs_in_where_it_is() {
    let mut rig = Rig::new();
    let fields = format!("Authorization: Bearer {}\r\n", token(&user_of(1, 0)));
    let behind = [auth(1, &token(&user_of(1, 1))), frame(WHO)].concat();
    for (fields, behind) in [(&fields[..], &frame(WHO)[..]), ("", &behind[..])] {
        rig.open(0, fields, behind);
        let (_, _, departed) = rig.turn(0).remove(0);
        let id = rig.shards[0].move_refused(departed, true, rig.now);
        rig.turn(0);
        let told = rig.told(0, id);
        assert!(told.contains("auth_ok") && told.contains("\"seq\":9"), "{told}");
        rig.shards[0].tick(rig.now, &mut Vec::new());
        assert_eq!(rig.turn(0).len(), 0);
    }
}

#[test]
fn a_full_home_says_so_and_closes() {
    let mut rig =
        Rig::with(|published| published.settings.conn.connections_max = ConnectionsMax::Set(8));
    let mut told = Vec::new();
    for n in 0..11 {
        let fields = format!("Authorization: Bearer {}\r\n", token(&user_of(1, n)));
        let (fields, behind) = match n {
            9 => (String::new(), auth(1, &token(&user_of(1, n)))),
            _ => (fields, Vec::new()),
        };
        rig.open(0, &fields, &behind);
        let id = rig.carry(0);
        told.push(rig.told(1, id));
    }
    // Nine: its cap and an eighth more.
    assert!(told[..9].iter().all(|told| told.contains("auth_ok")), "{told:?}");
    assert!(told[9].contains("UNAVAILABLE") && told[9].contains("\x03\u{fffd}"), "{}", told[9]);
    assert!(told[9].contains("has no room"), "{}", told[9]);
    assert!(told[10].starts_with("HTTP/1.1 503 "), "{}", told[10]);
    assert_eq!(rig.counted(1, Counter::MoveRefused), 2);
}

#[test]
fn beyond_the_last_place_a_connection_is_cut_and_counted() {
    let mut rig =
        Rig::with(|published| published.settings.conn.connections_max = ConnectionsMax::Set(1));
    let mut arrived = 0;
    for n in 0..70 {
        rig.open(0, "", &auth(1, &token(&user_of(1, n))));
        let (_, _, departed) = rig.turn(0).remove(0);
        arrived += usize::from(rig.shards[1].arrive(departed, rig.now).is_some());
    }
    assert_eq!((arrived, rig.counted(1, Counter::MoveLost)), (65, 5));
}

#[test]
fn who_stays_has_its_place_whatever_the_cap_is_now() {
    let mut rig = Rig::new();
    let mut open: Vec<ConnId> = (0..30).map(|_| rig.open(0, "", b"")).collect();
    let id = open.remove(7);
    rig.says(0, id, auth(1, &token(&user_of(1, 0))));
    let (_, _, departed) = rig.turn(0).remove(0);
    let mut lower = published(SECRET, false);
    lower.settings.conn.connections_max = ConnectionsMax::Set(1);
    rig.shards[0].apply(lower, rig.now);
    let id = rig.shards[0].move_refused(departed, true, rig.now);
    assert!(rig.told(0, id).contains("auth_ok"));
}

#[test]
fn an_address_has_no_more_connections_by_moving_them() {
    let mut rig = Rig::with(|published| published.settings.limits.address.connections_max = 4);
    let mut told = Vec::new();
    for n in 0..7 {
        let token = token(&user_of(1, n));
        let (fields, behind) = match n {
            5 => (format!("Authorization: Bearer {token}\r\n"), Vec::new()),
            _ => (String::new(), auth(1, &token)),
        };
        rig.open(0, &fields, &behind);
        let id = rig.carry(0);
        told.push(rig.told(1, id));
    }
    // The whole limit: who moves may have been let in by either shard.
    assert!(told[..4].iter().all(|told| told.contains("auth_ok")), "{told:?}");
    assert!(told[4].contains("RATE_LIMITED") && told[4].contains("\x03\u{fffd}"), "{told:?}");
    assert!(told[5].starts_with("HTTP/1.1 429 "), "{told:?}");
    assert!(told[6].contains("RATE_LIMITED"), "{told:?}");
}

#[test]
fn arrivals_at_a_shard_that_has_ended_its_stop_get_a_goodbye() {
    let mut rig = Rig::new();
    rig.open(0, "", &auth(1, &token(&user_of(1, 0))));
    rig.open(0, "", &[auth(1, &token(&user_of(1, 1))), frame(WHO)].concat());
    let spread = std::time::Duration::from_secs(5);
    let stop = crate::config::settings::StopSettings { spread: Some(spread), ..Default::default() };
    rig.shards[1].drain(stop, rig.now);
    assert!(rig.shards[1].is_drained());
    let left = rig.turn(0);
    for (_, _, departed) in left {
        rig.shards[1].arrive(departed, rig.now).expect("a place");
    }
    rig.turn(1);
    let left = rig.shards[1].say_goodbye(rig.now);
    let told: Vec<String> = left.into_iter().map(|id| rig.told(1, id)).collect();
    assert_eq!(told.len(), 2);
    for told in &told {
        let order = ["auth_ok", "draining", "\x03\u{fffd}"].map(|word| told.find(word));
        assert!(order.is_sorted() && order[0].is_some(), "{told}");
    }
    assert!(told[1].contains("\"seq\":9"), "what came with it is answered: {}", told[1]);
}

#[test]
fn a_stop_here_keeps_it_and_a_stop_there_tells_it() {
    for stops in [0, 1] {
        let mut rig = Rig::new();
        let stop = crate::config::settings::StopSettings::default();
        let id = rig.open(0, "", &auth(1, &token(&user_of(1, 0))));
        let held = format!("Authorization: Bearer {}\r\n", token(&user_of(1, 1)));
        let upgrading = rig.open(0, &held, b"");
        rig.shards[stops].drain(stop, rig.now);
        if stops == 0 {
            rig.shards[0].tick(rig.now, &mut Vec::new());
            assert_eq!(rig.turn(0).len(), 0, "nobody leaves any more");
            rig.shards[0].tick(rig.now, &mut Vec::new());
            let told = rig.told(0, id);
            let order = ["auth_ok", "draining", "\x03\u{fffd}"].map(|word| told.find(word));
            assert!(order.is_sorted() && order[0].is_some(), "{told}");
            assert!(rig.told(0, upgrading).starts_with("HTTP/1.1 503 "));
            continue;
        }
        let mut told = Vec::new();
        for (_, _, departed) in rig.turn(0) {
            let id = rig.shards[1].arrive(departed, rig.now).expect("a place");
            rig.shards[1].tick(rig.now, &mut Vec::new());
            told.push(rig.told(1, id));
        }
        let order = ["auth_ok", "draining", "\x03\u{fffd}"].map(|word| told[0].find(word));
        assert!(order.is_sorted() && order[0].is_some(), "{told:?}");
        assert!(told[1].starts_with("HTTP/1.1 503 "), "{told:?}");
    }
}

#[test]
fn one_that_is_closed_while_it_waits_goes_nowhere() {
    let mut rig = Rig::new();
    let id = rig.open(0, "", b"");
    let before = frame(r#"{"msg_id":2000,"seq":1,"payload":1}"#);
    rig.says(0, id, [before, auth(2, &token(&user_of(1, 0)))].concat());
    rig.turn(0);
    let now = rig.now;
    let (clients, _, mut cx) = rig.shards[0].parts();
    clients.close_slow(&mut cx, id, now);
    rig.call_fails(0);
    assert_eq!(rig.turn(0).len(), 0);
    assert!(!rig.shards[0].is_paused(id), "its Close is awaited");
    // Its Close: both sides are done.
    rig.told(0, id);
    rig.says(0, id, vec![0x88, 0x82, 0, 0, 0, 0, 3, 0xe8]);
    assert_eq!(rig.shards[0].on_sent(id, 0, rig.now), SocketAction::Close);
    // And one whose socket is gone.
    let id = rig.open(0, "", &auth(1, &token(&user_of(1, 0))));
    rig.shards[0].remove(id);
    assert_eq!(rig.turn(0).len(), 0);
}
