//! Slow messages, and those of others beside them (promise 6).

use super::*;
use crate::engine::clients::sign_in::tests::{SECRET, published};
use crate::ids::TenantId;
use crate::inspect::{Asked, Inspection, Query};

/// A second client whose messages go to the same instance as the first one's.
fn neighbour(rig: &mut Rig) -> ConnId {
    let (first, own) = (rig.conn, rig.calls_of(rig.conn, 1));
    let [(ticket, instance, items)] = &own[..] else { panic!("one call") };
    rig.ends(*ticket, ok(items));
    let (to, mut port) = (*instance, 10);
    loop {
        port += 1;
        let conn = rig.engine.open(([127, 0, 0, 1], port).into(), rig.now).expect("room");
        rig.engine.on_bytes(conn, &mut UPGRADE.to_vec(), rig.now);
        let its = rig.calls_of(conn, 1);
        let (ticket, instance, items) = &its[0];
        rig.ends(*ticket, ok(items));
        if *instance == to {
            rig.conn = first;
            return conn;
        }
    }
}

type Left = (Ticket, InstanceId, Vec<(u64, u64)>);

impl Rig {
    /// Calls that leave after a message of `conn`.
    fn calls_of(&mut self, conn: ConnId, seq: u64) -> Vec<Left> {
        self.conn = conn;
        self.say(seq, "\"msg_id\":1000");
        self.left()
    }

    fn left(&mut self) -> Vec<Left> {
        let calls = self.calls().into_iter();
        calls.map(|(call, items)| (call.ticket, call.instance, items)).collect()
    }

    /// One message of `conn`, answered after `us`.
    fn prompt(&mut self, conn: ConnId, seq: u64, us: u64) {
        let calls = self.calls_of(conn, seq);
        self.later(us);
        self.ends(calls[0].0, ok(&calls[0].2));
    }

    /// What an operator is told: whether the client's messages on the route were slow lately.
    fn is_told_slow(&self, conn: ConnId, route: u32) -> Option<bool> {
        let session = self.engine.clients.conns.get(conn).expect("open").session.id;
        let (tenant, service) = (TenantId::DEFAULT, ServiceId(0));
        let sender = Asked::Session(session.as_str().to_owned());
        let query = Query::Route { tenant, service, route, hash: 1, next: true, sender };
        let Inspection::Route(info) = self.engine.inspect(&query, self.now) else { return None };
        let shares = info.shares?;
        assert!(shares[1..].iter().all(|group| group.slow.is_none()), "{shares:?}");
        shares[0].slow
    }

    /// The calls that leave when both clients send at once.
    fn both(&mut self, one: (ConnId, u64), other: (ConnId, u64)) -> Vec<Left> {
        for (conn, seq) in [one, other] {
            self.conn = conn;
            self.say(seq, "\"msg_id\":1000");
        }
        self.left()
    }
}

#[test]
fn a_message_of_an_owner_that_was_slow_lately_is_in_no_call_with_those_of_others() {
    let mut rig = Rig::new(|settings| settings.batch.eager_max = 10);
    let (slow, prompt) = (rig.conn, neighbour(&mut rig));
    (2..100).for_each(|seq| rig.prompt(prompt, seq, 1_000));
    let calls = rig.both((slow, 2), (prompt, 100));
    assert_eq!(calls.len(), 1, "nothing is known against either");
    assert_eq!(rig.is_told_slow(slow, 1000), Some(false));
    rig.ends(calls[0].0, ok(&calls[0].2));
    // Of the one the call takes long, while the other's are prompt.
    let long = rig.calls_of(slow, 3);
    rig.later(60_000);
    rig.prompt(prompt, 101, 1_000);
    rig.later(60_000);
    rig.ends(long[0].0, ok(&long[0].2));
    let calls = rig.both((slow, 4), (prompt, 102));
    assert_eq!(calls.len(), 2, "each has a call of its own");
    let told = [(slow, 1000), (slow, 2000), (prompt, 1000)];
    let told = told.map(|(conn, route)| rig.is_told_slow(conn, route));
    assert_eq!(told, [true, false, false].map(Some), "by owner and route");
    rig.later(1_000);
    calls.iter().for_each(|(ticket, _, items)| rig.ends(*ticket, ok(items)));
    // That one was prompt.
    assert_eq!(rig.both((slow, 5), (prompt, 103)).len(), 1);
}

#[test]
fn nobody_is_held_slow_because_the_instance_stood_still() {
    let mut rig = Rig::new(|settings| settings.batch.eager_max = 10);
    let (one, other) = (rig.conn, neighbour(&mut rig));
    let first = rig.calls_of(one, 2);
    let second = rig.calls_of(other, 2);
    rig.later(700_000);
    for calls in [first, second] {
        rig.ends(calls[0].0, ok(&calls[0].2));
    }
    assert_eq!(rig.both((one, 3), (other, 3)).len(), 1);
}

#[test]
fn a_message_that_never_gets_an_answer_counts_as_slow() {
    let mut rig = Rig::new(|settings| settings.batch.eager_max = 10);
    let (slow, prompt) = (rig.conn, neighbour(&mut rig));
    let lost = rig.calls_of(slow, 2);
    rig.later(1_000_000);
    rig.prompt(prompt, 2, 1_000);
    rig.later(4_000_000);
    // Its deadline passes before its call has ended.
    rig.tick();
    rig.ends(lost[0].0, Err(error(CallFault::TimedOut, Started::Maybe)));
    assert_eq!(rig.both((slow, 3), (prompt, 3)).len(), 2);
}

/// A rig whose instances take four calls of one message each, of which the last is kept.
fn few_slots(rig: &mut Rig) {
    let mut unordered = (*snapshot()).clone();
    unordered.routes.iter_mut().for_each(|route| route.order = Order::None);
    let mut config = published(SECRET, false);
    config.snapshot = Arc::new(unordered);
    let batch = &mut config.settings.batch;
    (batch.in_flight_max, batch.eager_max, batch.items_max) = (4, 4, 1);
    rig.engine.apply(config, rig.now);
}

/// While all calls are young the kept slot stays free; whoever has nothing in flight has it at the
/// latest when one is 5 ms old, as others may keep the rest for long.
#[test]
fn one_with_nothing_in_flight_waits_five_milliseconds_for_the_kept_slot() {
    let mut rig = Rig::new(|_| {});
    let (busy, other) = (rig.conn, neighbour(&mut rig));
    few_slots(&mut rig);
    rig.conn = busy;
    (2..=4).for_each(|seq| rig.say(seq, "\"msg_id\":1000"));
    assert_eq!(rig.left().len(), 3);
    assert_eq!(rig.calls_of(busy, 5), []);
    assert_eq!(rig.calls_of(other, 2), []);
    rig.later(4_000);
    rig.tick();
    assert_eq!(rig.left(), []);
    rig.later(1_000);
    rig.tick();
    let seqs: Vec<u64> = rig.left().iter().flat_map(|(.., items)| items).map(|i| i.0).collect();
    assert_eq!(seqs, [2], "not that of the busy one, which waits for longer");
}

#[test]
fn an_instance_whose_kept_slot_nobody_may_have_is_asked_for_a_sign_of_life() {
    let mut rig = Rig::new(|_| {});
    few_slots(&mut rig);
    (1..=4).for_each(|seq| rig.say(seq, "\"msg_id\":1000"));
    let calls = rig.left();
    // The fourth slot is kept for others: the client has three messages in flight.
    assert_eq!((calls.len(), rig.engine.effects.asked.len()), (3, 0));
    rig.later(60_000);
    rig.tick();
    assert_eq!(rig.left(), [], "the calls are long");
    assert_eq!(rig.engine.effects.asked, [calls[0].1]);
    rig.engine.on_alive(calls[0].1, rig.now);
    assert_eq!(rig.left().len(), 1, "it lives");
}
