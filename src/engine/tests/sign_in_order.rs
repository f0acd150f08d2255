//! Order over a sign-in: the hash by which an instance is picked changes from the session to the
//! user, and the order of the session's messages does not (promise 2).

use super::*;
use crate::engine::clients::sign_in::tests::{SECRET, START_S, auth, published, token};

/// The user's routes: 1000 in order, 2000 without order, 3000 in order and hashed by session.
fn rig() -> Rig {
    let mut rig = Rig::new(|_| {});
    let mut snapshot = (*snapshot()).clone();
    let [ordered, unordered] = &mut snapshot.routes[..] else { panic!("two routes") };
    ordered.hash_on = HashOn::User;
    (unordered.hash_on, unordered.order) = (HashOn::User, Order::None);
    snapshot.routes.push(route(3000, false));
    let mut config = published(SECRET, false);
    config.snapshot = Arc::new(snapshot);
    config.settings.batch.eager_max = 10;
    rig.engine.apply(config, rig.now);
    rig.engine.set_wall_clock(START_S * 1_000_000, rig.now);
    rig
}

impl Rig {
    fn sign_in(&mut self, seq: u64) {
        self.engine.on_bytes(self.conn, &mut auth(seq, &token("alice")), self.now);
        assert!(self.heard().contains("auth_ok"));
    }

    /// Ends the turn and returns what leaves: tickets, and the seqs of each call.
    fn leaves(&mut self) -> Vec<(Ticket, Vec<(u64, u64)>)> {
        self.calls().into_iter().map(|(call, items)| (call.ticket, items)).collect()
    }
}

/// The seqs of calls, in the order of the calls.
fn seqs(calls: &[(Ticket, Vec<(u64, u64)>)]) -> Vec<Vec<u64>> {
    calls.iter().map(|(_, items)| items.iter().map(|(seq, _)| *seq).collect()).collect()
}

#[test]
fn messages_after_the_sign_in_wait_for_those_before_it_and_unordered_ones_do_not() {
    let mut rig = rig();
    rig.say(1, r#""msg_id":1000"#);
    let first = rig.leaves();
    rig.say(2, r#""msg_id":1000"#);
    rig.sign_in(3);
    rig.say(4, r#""msg_id":1000"#);
    rig.say(5, r#""msg_id":2000"#);
    let unordered = rig.leaves();
    assert_eq!(seqs(&unordered), [[5]]);
    rig.later(100_000);
    assert_eq!(seqs(&rig.leaves()), [[0_u64; 0]; 0]);
    rig.ends(first[0].0, ok(&first[0].1));
    let second = rig.leaves();
    assert_eq!(seqs(&second), [[2]], "4 does not leave beside it");
    // It surely did not run, and is sent again: still before 4.
    rig.ends(second[0].0, Err(error(CallFault::Refused, Started::No)));
    let again = rig.leaves();
    assert_eq!(seqs(&again), [[2]]);
    rig.ends(again[0].0, ok(&again[0].1));
    let last = rig.leaves();
    assert_eq!(seqs(&last), [[4]]);
    rig.ends(last[0].0, ok(&last[0].1));
    // Nothing from before the sign-in is under way any more: two streams at once.
    rig.ends(unordered[0].0, ok(&unordered[0].1));
    rig.say(6, r#""msg_id":3000"#);
    rig.say(7, r#""msg_id":1000"#);
    let mut both = seqs(&rig.leaves());
    both.sort();
    assert_eq!(both.concat(), [6, 7]);
}

#[test]
fn what_comes_after_the_sign_in_on_the_old_stream_is_not_waited_for() {
    let mut rig = rig();
    rig.say(1, r#""msg_id":1000"#);
    let first = rig.leaves();
    rig.sign_in(2);
    // Hashed by session as 1 was, so in one stream with it; 4 has the user's hash.
    rig.say(3, r#""msg_id":3000"#);
    rig.say(4, r#""msg_id":1000"#);
    assert_eq!(rig.leaves().len(), 0);
    rig.ends(first[0].0, ok(&first[0].1));
    let both = rig.leaves();
    let mut all = seqs(&both).concat();
    all.sort_unstable();
    assert_eq!(all, [3, 4], "1 has ended: 4 waits for nothing of its own time");
}

#[test]
fn a_message_before_the_sign_in_that_expires_lets_those_after_it_go() {
    let mut rig = rig();
    rig.say(1, r#""msg_id":1000"#);
    let first = rig.leaves();
    rig.say(2, r#""msg_id":1000,"deadline_ms":50"#);
    rig.sign_in(3);
    rig.say(4, r#""msg_id":1000,"deadline_ms":4000"#);
    rig.later(60_000);
    rig.tick();
    assert!(rig.heard().contains("EXPIRED"));
    assert_eq!(rig.leaves().len(), 0, "1 is still in its call");
    rig.ends(first[0].0, ok(&first[0].1));
    assert_eq!(seqs(&rig.leaves()), [[4]]);
    // The other way round: the last of them waits in the queue when the call has ended.
    let mut rig = self::rig();
    rig.say(1, r#""msg_id":1000"#);
    let first = rig.leaves();
    rig.sign_in(2);
    rig.say(3, r#""msg_id":1000,"deadline_ms":50"#);
    rig.later(60_000);
    rig.tick();
    rig.ends(first[0].0, ok(&first[0].1));
    assert_eq!((rig.leaves().len(), rig.view().streams), (0, 0));
}
