//! A pause of any length closes nobody for what the gateway did not do.

use crate::engine::Engine;
use crate::engine::clients::conn::Phase;
use crate::engine::clients::sign_in::tests::{
    SECRET, START_S, auth, engine, frame, published, token,
};
use crate::ids::ConnId;
use crate::message::Micros;
use crate::stats::Counter;

const HEARTBEAT_MS: u64 = 1_000;
const HOUR_US: u64 = 3_600_000_000;

struct Rig {
    engine: Engine,
    now: Micros,
    /// Connections whose socket was to be closed.
    closed: Vec<ConnId>,
}

impl Rig {
    fn new() -> Self {
        let mut published = published(SECRET, true);
        let settings = &mut published.settings;
        settings.conn.heartbeat_ms = HEARTBEAT_MS;
        settings.conn.frames_per_s_max = 10;
        settings.conn.bad_messages_max = 3;
        settings.limits.address.messages_per_s = 5;
        settings.limits.address.connects_per_s = 5;
        let engine = engine(published, 0, 1);
        Self { engine, now: Micros(1_000_000), closed: Vec::new() }
    }

    /// A connection that has sent a part of its request, or all of it.
    fn open(&mut self, complete: bool) -> ConnId {
        let id = self.engine.open(([127, 0, 0, 1], 1).into(), self.now).expect("room");
        let end = if complete { "\r\n" } else { "" };
        let request = format!(
            "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{end}"
        );
        self.says(id, &request.into_bytes());
        self.told(id);
        id
    }

    fn says(&mut self, id: ConnId, bytes: &[u8]) {
        self.engine.on_bytes(id, &mut bytes.to_vec(), self.now);
    }

    fn told(&mut self, id: ConnId) -> String {
        let bytes = self.engine.outbox(id).to_vec();
        self.engine.on_sent(id, bytes.len(), self.now);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The ticks of so many milliseconds.
    fn ticks(&mut self, ms: u64) {
        for _ in 0..ms / 10 {
            self.now = self.now.plus_ms(10);
            self.engine.tick(self.now, &mut self.closed);
            self.engine.end_turn(self.now);
        }
        self.engine.check_invariants().expect("consistent");
    }

    fn pause(&mut self, us: u64) {
        self.now.0 += us;
        self.engine.on_pause(us, self.now);
    }

    fn phase(&self, id: ConnId) -> Phase {
        self.engine.clients.conns.get(id).expect("there").phase
    }

    fn count(&self, counter: Counter) -> u64 {
        self.engine.report(0, self.now).counters.get(counter)
    }
}

#[test]
fn a_pause_of_any_length_closes_nobody_for_what_the_gateway_did_not_do() {
    // Just over the bound, over each timeout, an hour, thirty years.
    for us in [300_000, 60_000_000, HOUR_US, 262_800 * HOUR_US] {
        let mut rig = Rig::new();
        let half = rig.open(false);
        let no_token = rig.open(true);
        let alice = rig.open(true);
        rig.says(alice, &auth(1, &token("alice")));
        rig.told(alice);
        // Its kernel is full when the pause begins, and has room after it.
        rig.says(alice, &frame(r#"{"msg_id":9000,"seq":2,"payload":1}"#));
        rig.engine.on_sent(alice, 0, rig.now);
        let closing = rig.open(true);
        rig.says(closing, &[0xf3, 0x80, 0, 0, 0, 0]);
        rig.ticks(500);
        rig.pause(us);
        rig.engine.set_wall_clock((START_S + 1) * 1_000_000, rig.now);
        rig.ticks(500);
        assert_eq!(rig.phase(half), Phase::Handshake, "408 after {us}");
        assert_eq!(rig.phase(no_token), Phase::Open, "4005 after {us}");
        assert_eq!(rig.phase(alice), Phase::Open, "4001 or 4002 after {us}");
        assert!(rig.closed.is_empty(), "the close timeout after {us}");
        assert!(rig.told(alice).contains(r#""seq":2"#));
        // Each of them has what was left to it, and no more.
        rig.ticks(12_000);
        assert_eq!(rig.count(Counter::HandshakeTimeout), 1);
        assert_eq!(rig.count(Counter::ClosedNoHeartbeat), 2);
        assert!(rig.closed.contains(&closing));
        assert_eq!(rig.count(Counter::Pauses), 1);
    }
}

#[test]
fn what_piled_up_during_a_pause_is_over_no_rate() {
    let mut rig = Rig::new();
    let id = rig.open(true);
    rig.says(id, &auth(1, &token("alice")));
    rig.told(id);
    rig.ticks(1_000);
    rig.pause(30_000_000);
    let echo = |seq: u64| frame(&format!(r#"{{"msg_id":9000,"seq":{seq}}}"#));
    (2..100).for_each(|seq| rig.says(id, &echo(seq)));
    (0..10).for_each(|_| rig.says(id, &frame("nonsense")));
    for _ in 0..20 {
        rig.open(true);
    }
    assert!(!rig.told(id).contains("RATE_LIMITED"));
    assert_eq!(rig.phase(id), Phase::Open);
    rig.ticks(1_000);
    // From then on the rates hold.
    (100..112).for_each(|seq| rig.says(id, &echo(seq)));
    assert!(rig.told(id).contains("RATE_LIMITED"));
    assert_ne!(rig.phase(id), Phase::Open, "1008");
}

#[test]
fn a_shard_whose_turns_are_as_long_as_pauses_still_ends_what_is_to_end() {
    let mut rig = Rig::new();
    rig.open(false);
    let alice = rig.open(true);
    rig.says(alice, &auth(1, &token("alice")));
    rig.told(alice);
    let closing = rig.open(true);
    rig.says(closing, &[0xf3, 0x80, 0, 0, 0, 0]);
    let busy = rig.open(true);
    let turns = |rig: &mut Rig, count: u32| {
        for _ in 0..count {
            rig.pause(290_000);
            rig.ticks(10);
        }
    };
    turns(&mut rig, 1);
    // What does not depend on the client ends also while the shard catches up.
    rig.engine.set_wall_clock((START_S + 1_000_000_000) * 1_000_000, rig.now);
    turns(&mut rig, 6);
    assert_eq!(rig.count(Counter::ClosedTokenExpired), 1);
    let pings = [0x89, 0x80, 0, 0, 0, 0].repeat(11);
    turns(&mut rig, 2);
    rig.says(busy, &pings);
    assert_ne!(rig.phase(busy), Phase::Open, "its rate holds again");
    // 15 s of 450 are not left out.
    turns(&mut rig, 1_500);
    assert_eq!(rig.count(Counter::HandshakeTimeout), 1);
    assert!(rig.closed.contains(&closing));
}
