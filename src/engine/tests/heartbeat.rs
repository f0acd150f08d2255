//! Heartbeats: the gateway asks who is silent, and closes who does not answer.

use super::*;
use crate::engine::clients::conn::Phase;
use crate::stats::Counter;

const HEARTBEAT_MS: u64 = 1_000;
/// A connection is looked at once a second.
const PRECISION_MS: u64 = 1_000;
const PING: [u8; 2] = [0x89, 0];
/// A masked pong without a payload.
const PONG: [u8; 6] = [0x8a, 0x80, 0, 0, 0, 0];

fn rig(unanswered_max: u32) -> Rig {
    Rig::new(|settings| {
        settings.conn.heartbeat_ms = HEARTBEAT_MS;
        settings.conn.unanswered_max = unanswered_max;
        settings.conn.write_timeout_ms = 600_000;
    })
}

impl Rig {
    /// Ticks of so many milliseconds. Each ping is answered if `answers`; returns the milliseconds
    /// at which one came.
    fn live(&mut self, ms: u64, answers: bool) -> Vec<u64> {
        let began = self.now;
        let mut pings = Vec::new();
        for _ in 0..ms / 10 {
            self.later(10_000);
            self.tick();
            let bytes = self.engine.outbox(self.conn).to_vec();
            self.engine.on_sent(self.conn, bytes.len(), self.now);
            if bytes == PING {
                pings.push(self.now.since(began) / 1_000);
                if answers {
                    self.engine.on_bytes(self.conn, &mut PONG.to_vec(), self.now);
                }
            }
        }
        pings
    }

    fn is_open(&self) -> bool {
        self.engine.clients.conns.get(self.conn).is_some_and(|conn| conn.phase == Phase::Open)
    }

    fn count(&self, counter: Counter) -> u64 {
        self.engine.stats.counters.get(counter)
    }
}

#[test]
fn a_silent_client_is_pinged_after_one_heartbeat_and_closed_after_two() {
    let mut rig = rig(32);
    let pings = rig.live(2 * HEARTBEAT_MS, false);
    let [at] = pings[..] else { panic!("one ping, not at {pings:?}") };
    assert!((HEARTBEAT_MS..=HEARTBEAT_MS + PRECISION_MS).contains(&at), "{at}");
    assert!(rig.is_open(), "not before two");
    rig.live(PRECISION_MS, false);
    assert!(!rig.is_open());
    assert_eq!((rig.count(Counter::Pings), rig.count(Counter::ClosedNoHeartbeat)), (1, 1));
}

#[test]
fn a_client_that_only_answers_pings_lives_also_halfway_in_a_message() {
    let mut rig = rig(32);
    assert!(rig.live(20 * HEARTBEAT_MS, true).len() >= 7, "one in two or three seconds");
    assert!(rig.is_open());
    let text = br#"{"msg_id":9000,"seq":1,"payload":"whole"}"#;
    let (first, rest) = text.split_at(20);
    let fragment =
        |opcode: u8, part: &[u8]| [&[opcode, 0x80 | part.len() as u8, 0, 0, 0, 0], part].concat();
    rig.engine.on_bytes(rig.conn, &mut fragment(0x01, first), rig.now);
    assert!(rig.live(20 * HEARTBEAT_MS, true).len() >= 7);
    rig.engine.on_bytes(rig.conn, &mut fragment(0x80, rest), rig.now);
    assert!(rig.heard().contains("whole"));
}

#[test]
fn a_connection_that_the_gateway_does_not_read_is_neither_pinged_nor_closed() {
    let mut rig = rig(1);
    rig.say(1, r#""msg_id":1000"#);
    let calls = rig.calls();
    assert!(rig.engine.is_paused(rig.conn));
    assert_eq!(rig.live(4 * HEARTBEAT_MS, false), [0_u64; 0]);
    assert!(rig.is_open());
    // When it is read again, its time begins.
    rig.ends(calls[0].0.ticket, ok(&calls[0].1));
    rig.heard();
    assert_eq!(rig.live(2 * HEARTBEAT_MS, false).len(), 1);
    assert!(rig.is_open());
}

#[test]
fn nobody_is_pinged_behind_bytes_that_wait() {
    let mut rig = rig(32);
    rig.say(1, r#""msg_id":9000,"payload":1"#);
    rig.engine.on_sent(rig.conn, 1, rig.now);
    let waits = rig.engine.outbox(rig.conn).to_vec();
    for _ in 0..500 {
        rig.later(10_000);
        rig.tick();
    }
    assert_eq!(rig.engine.outbox(rig.conn), waits, "nothing behind half a frame");
    assert!(rig.is_open(), "it was not asked yet");
    rig.engine.on_sent(rig.conn, waits.len(), rig.now);
    assert_eq!(rig.live(PRECISION_MS, true).len(), 1, "and now it is");
    assert!(rig.is_open());
}
