//! Work: decoding stops within what was received, and goes on later, without a loss and in order.

use super::*;
use crate::engine::clients::conn::{NextBytes, Phase, ReadNext};
use crate::engine::work::{self, FLUSH, of_send};
use crate::stats::Counter;
use crate::wire::frames::FrameEvent;

const PING: [u8; 6] = [0x89, 0x80, 0, 0, 0, 0];
const CLOSE: [u8; 8] = [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8];
const SYSTEM: &str = "\"type\":\"heartbeat\"";

impl Rig {
    /// Takes bytes with so much work allowed.
    fn take(&mut self, units: i64, bytes: &[u8]) -> ReadNext {
        self.engine.work.allow(units);
        self.engine.on_bytes(self.conn, &mut bytes.to_vec(), self.now)
    }

    /// Goes on with what the decoder holds, each time with so much work; returns the steps.
    fn take_rest(&mut self, units: i64) -> usize {
        let mut steps = 0;
        while self.engine.next_bytes(self.conn) == NextBytes::Decoder {
            self.engine.work.allow(units);
            self.engine.on_resumed(self.conn, self.now);
            steps += 1;
        }
        steps
    }

    fn counted(&self, counter: Counter) -> u64 {
        self.engine.stats.counters.get(counter)
    }

    fn phase(&self) -> Phase {
        self.engine.clients.conns.get(self.conn).expect("open").phase
    }
}

#[test]
fn whoever_has_spent_its_work_is_stopped_within_a_buffer_and_loses_nothing() {
    let mut rig = Rig::new(|_| {});
    let all: Vec<u8> = (1..=100).flat_map(|seq| frame(seq, SYSTEM)).collect();
    assert_eq!(rig.take(5_000, &all), ReadNext::More, "no hold");
    let first = rig.counted(Counter::SystemMessages);
    assert!((1..40).contains(&first), "{first} messages");
    assert!(rig.engine.work.left() <= 0 && rig.engine.work.left() > -2_000);
    assert_eq!(rig.engine.next_bytes(rig.conn), NextBytes::Decoder);
    let steps = rig.take_rest(5_000);
    assert!((4..40).contains(&steps), "{steps} steps");
    let heard = rig.heard();
    let at = |seq: u64| {
        heard.find(&format!("\"seq\":{seq}}}")).or(heard.find(&format!("\"seq\":{seq},")))
    };
    let places: Vec<_> = (1..=100).map(|seq| at(seq).expect("answered")).collect();
    assert!(places.is_sorted(), "in order");
    assert_eq!(rig.engine.next_bytes(rig.conn), NextBytes::Socket);
}

#[test]
fn with_no_work_allowed_one_frame_is_taken_so_that_nobody_waits_for_ever() {
    let mut rig = Rig::new(|_| {});
    rig.take(0, &PING.repeat(20));
    assert_eq!(rig.take_rest(0), 19);
    assert_eq!(rig.engine.outbox(rig.conn).len(), 40, "twenty pongs");
}

/// Pings, bad messages, fragments, refusals: nothing is free that takes time.
#[test]
fn every_kind_of_frame_costs_work() {
    let fragments = [&[0x01, 0x80, 0, 0, 0, 0][..], &[0x00, 0x80, 0, 0, 0, 0].repeat(30)].concat();
    let kinds: [(&str, Vec<u8>); 6] = [
        ("ping", PING.to_vec()),
        ("pong", vec![0x8a, 0x80, 0, 0, 0, 0]),
        ("bad", [&[0x81, 0x82, 0, 0, 0, 0][..], b"{x"].concat()),
        ("no route", frame(0, "\"msg_id\":5")),
        ("heartbeat", frame(0, SYSTEM)),
        ("fragments", fragments),
    ];
    for (kind, bytes) in kinds {
        let mut rig = Rig::new(|_| {});
        rig.take(0, &[]);
        let idle = -rig.engine.work.left();
        rig.take(1_000_000, &bytes);
        let cost = 1_000_000 - rig.engine.work.left() - idle;
        assert!((20..10_000).contains(&cost), "{kind}: {cost}");
    }
}

#[test]
fn a_hold_and_spent_work_each_stop_the_reading_and_both_end() {
    let mut rig = Rig::new(|s| s.conn.unanswered_max = 1);
    let mut both = frame(1, "\"msg_id\":1000");
    both.extend(frame(2, SYSTEM));
    both.extend(frame(3, SYSTEM));
    assert_eq!(rig.take(1, &both), ReadNext::Pause);
    assert_eq!(rig.engine.next_bytes(rig.conn), NextBytes::Nowhere, "held");
    let (call, items) = rig.calls().remove(0);
    rig.ends(call.ticket, ok(&items));
    assert_eq!(rig.engine.effects.resumed, [rig.conn]);
    assert_eq!(rig.take_rest(1), 2);
    let heard = rig.heard();
    assert!(heard.contains("\"seq\":2") && heard.contains("\"seq\":3"), "{heard}");
}

#[test]
fn a_close_behind_what_was_not_decoded_is_found_in_its_turn() {
    let mut rig = Rig::new(|_| {});
    let all = [PING.repeat(10).as_slice(), &CLOSE].concat();
    rig.take(0, &all);
    assert_eq!(rig.phase(), Phase::Open);
    rig.take_rest(0);
    assert!(matches!(rig.phase(), Phase::Finished { .. }));
    assert_eq!(rig.engine.next_bytes(rig.conn), NextBytes::Socket, "the end is there");
}

/// The gateway's own Close does not wait for what it will not answer, but for what it has read.
#[test]
fn a_stop_answers_what_was_read_before_the_work_was_spent() {
    let mut rig = Rig::new(|_| {});
    let all: Vec<u8> = (1..=50).flat_map(|seq| frame(seq, "\"msg_id\":1000")).collect();
    rig.take(0, &all);
    let (call, items) = rig.calls().remove(0);
    rig.ends(call.ticket, ok(&items));
    let stop = StopSettings { grace: std::time::Duration::from_secs(1), ..Default::default() };
    rig.engine.drain(stop, rig.now);
    rig.tick();
    let heard = rig.heard();
    assert_eq!(heard.matches("DRAINING").count(), 49, "{heard}");
    assert!(heard.ends_with("the gateway stops: connect again"));
}

/// Clients whose turn has not come are delayed by a stop no more than by clients that flood.
#[test]
fn a_stop_decodes_as_much_in_a_tick_as_a_turn_reads() {
    const PINGS: usize = 200;
    let mut rig = Rig::new(|_| {});
    let conns: Vec<ConnId> = (0..300)
        .map(|_| {
            rig.conn = rig.engine.open(([127, 0, 0, 1], 8).into(), rig.now).expect("room");
            rig.take(1, &[UPGRADE, &PING.repeat(PINGS)].concat());
            rig.conn
        })
        .collect();
    rig.take_rest(i64::MAX);
    let spread = Some(std::time::Duration::ZERO);
    rig.engine.drain(StopSettings { spread, ..Default::default() }, rig.now);
    let cost = work::of_frame(&FrameEvent::Ping(&[])) * PINGS as i64;
    let most = work::of_time(rig.engine.config.settings.read.as_micros() as u64) / cost + 1;
    let mut ticks = 0;
    // The first client and the last have nothing left.
    let (mut closed, all) = (2, conns.len() as i64 + 1);
    while closed < all {
        rig.tick();
        ticks += 1;
        closed = (closed + most).min(all);
        assert_eq!(rig.counted(Counter::ClosedDrain) as i64, closed, "tick {ticks}");
    }
    assert!((5..20).contains(&ticks), "{ticks} ticks");
    for conn in conns {
        rig.conn = conn;
        let pongs = rig.engine.outbox(conn).windows(2).filter(|w| *w == [0x8a, 0]).count();
        assert!(pongs == PINGS && rig.heard().ends_with("the gateway stops: connect again"));
    }
}

#[test]
fn what_is_sent_to_a_client_is_work_of_its_connection() {
    let mut rig = Rig::new(|_| {});
    let cost = |rig: &Rig| rig.engine.clients.conns.get(rig.conn).expect("open").work as i64;
    let before = cost(&rig);
    assert!(before > FLUSH, "the upgrade was answered: {before}");
    rig.say(1, SYSTEM);
    let bytes = rig.engine.outbox(rig.conn).len();
    rig.heard();
    assert_eq!(cost(&rig) - before, of_send(bytes));
    rig.engine.on_sent(rig.conn, 0, rig.now);
    assert_eq!(cost(&rig) - before, of_send(bytes), "the kernel took nothing");
}

#[test]
fn frames_behind_the_upgrade_are_taken_within_the_work_allowed() {
    let mut rig = Rig::new(|_| {});
    rig.conn = rig.engine.open(([127, 0, 0, 1], 8).into(), rig.now).expect("room");
    let all = [UPGRADE, &PING.repeat(10)].concat();
    rig.take(1, &all);
    assert_eq!((rig.phase(), rig.engine.next_bytes(rig.conn)), (Phase::Open, NextBytes::Decoder));
    rig.take_rest(0);
    assert!(rig.engine.outbox(rig.conn).ends_with(&[0x8a, 0].repeat(10)));
}
