//! Stories of users with one connection too many.

use std::sync::Arc;

use super::*;
use crate::config::settings::LimitSettings;
use crate::engine::clients::limits::tests::{Rig, published};
use crate::engine::clients::sign_in::tests::engine;
use crate::routing::{Quota, Tenant, TenantTable};

const HERE: [u8; 4] = [192, 0, 2, 1];
const PING: [u8; 2] = [0x89, 0];

fn rig(per_user: PerUser, max: u32) -> Rig {
    Rig::new(false, |l: &mut LimitSettings| {
        (l.per_user, l.user.connections_max) = (per_user, max);
    })
}

impl Rig {
    fn is_there(&self, id: ConnId) -> bool {
        self.engine.clients.conns.get(id).is_some_and(|conn| conn.phase == Phase::Open)
    }

    /// Whether the connection waits for a place, and was told nothing yet.
    fn waits(&self, id: ConnId) -> bool {
        self.engine.clients.waits_for_place(id) && self.engine.outbox(id).is_empty()
    }

    /// A client that signs in by a message, and has read everything before.
    fn by_message(&mut self, user: &str) -> ConnId {
        let id = self.connect(HERE);
        self.auth(id, user);
        id
    }
}

#[test]
fn a_connection_that_hangs_makes_room_after_two_seconds_and_no_handshake_ends_meanwhile() {
    for by_message in [false, true] {
        let mut rig = rig(PerUser::Many, 2);
        let (hangs, alive) = (rig.user("alice").0, rig.user("alice").0);
        rig.later(10_000_000);
        let new = match by_message {
            true => rig.by_message("alice"),
            false => rig.user("alice").0,
        };
        assert!(rig.waits(new) && rig.engine.is_paused(new));
        // What it has sent already is read when it is in.
        assert_eq!(rig.engine.outbox(hangs), PING);
        rig.answers(alive);
        rig.later(1_800_000);
        assert!(rig.waits(new), "not before 2 s");
        rig.later(100_000);
        let told = rig.told(hangs);
        assert!(told.contains("no answer to our ping"), "{told}");
        assert!(rig.told(new).contains("auth_ok"));
        assert!(rig.is_there(alive) && rig.is_there(new) && !rig.is_there(hangs));
        assert_eq!(rig.count(Counter::ClosedNoHeartbeat), 1);
        assert_eq!(rig.count(Counter::UserConnectionsRefused), 0);
    }
}

#[test]
fn a_place_that_becomes_free_is_taken_at_once_by_who_waits_longest() {
    let mut rig = rig(PerUser::Many, 2);
    let (first, second) = (rig.user("alice").0, rig.user("alice").0);
    let (third, fourth) = (rig.user("alice").0, rig.by_message("alice"));
    assert!(rig.waits(third) && rig.waits(fourth));
    // No more wait than there are places.
    let fifth = rig.user("alice").1;
    assert!(fifth.contains("HTTP/1.1 429") && fifth.contains("Retry-After: 2"), "{fifth}");
    rig.engine.remove(first);
    rig.later(10_000);
    assert!(rig.told(third).contains("auth_ok") && rig.waits(fourth));
    rig.answers(second);
    // The third was let in by then, and is there.
    let told = rig.told(fourth);
    assert!(told.contains("RATE_LIMITED") && told.contains(r#""retry_after_ms":2000"#), "{told}");
    assert!(rig.is_there(second) && rig.is_there(third));
    // It comes back as told: the two are asked again, and one hangs by now.
    rig.later(2_000_000);
    let again = rig.user("alice").0;
    assert!(rig.waits(again));
    rig.answers(second);
    rig.later(2_000_000);
    assert!(rig.told(again).contains("auth_ok") && !rig.is_there(third));
    assert_eq!(rig.count(Counter::UserConnectionsTested), 2);
}

#[test]
fn the_newest_wins_and_the_oldest_are_told_that_they_are_elsewhere() {
    let mut rig = rig(PerUser::Newest, 2);
    let first = rig.user("alice").0;
    rig.later(1_000);
    let second = rig.user("alice").0;
    rig.later(1_000);
    let (third, told) = rig.user("alice");
    assert!(told.contains("auth_ok"), "at once");
    assert!(rig.told(first).contains("signed in on another connection"));
    assert!(!rig.is_there(first) && rig.is_there(second) && rig.is_there(third));
    let fourth = rig.by_message("alice");
    assert!(!rig.is_there(second) && rig.is_there(third) && rig.is_there(fourth));
    assert_eq!(rig.count(Counter::ClosedElsewhere), 2);
    // A new token of a connection that is there is no new connection.
    assert!(rig.auth(third, "alice").contains("auth_ok"));
    assert!(rig.is_there(third) && rig.is_there(fourth));
    // Somebody else's connections are theirs.
    rig.user("bob");
    assert!(rig.is_there(third) && rig.is_there(fourth));
}

#[test]
fn the_oldest_stays_if_it_answers_and_the_newcomer_is_told_not_to_come_back() {
    let mut rig = rig(PerUser::Oldest, 1);
    let oldest = rig.user("alice").0;
    let (new, other) = (rig.user("alice").0, rig.by_message("bob"));
    rig.answers(oldest);
    let told = rig.told(new);
    assert!(told.starts_with("HTTP/1.1 403") && !told.contains("Retry-After"), "{told}");
    let late = rig.connect(HERE);
    let told = rig.auth(late, "alice");
    assert!(told.contains("FORBIDDEN") && !rig.is_there(late), "{told}");
    assert_eq!(rig.count(Counter::ClosedElsewhere), 1);
    // A dead one does not win.
    rig.later(2_000_000);
    let heir = rig.user("alice").0;
    rig.later(2_000_000);
    assert!(rig.told(heir).contains("auth_ok") && !rig.is_there(oldest) && rig.is_there(other));
}

#[test]
fn who_cannot_be_heard_or_asked_is_not_taken_for_dead() {
    let mut rig = rig(PerUser::Many, 1);
    let first = rig.user("alice").0;
    rig.engine.clients.conns.get_mut(first).expect("there").hold(Hold::Rate);
    let told = rig.user("alice").1;
    assert!(told.contains("HTTP/1.1 429"), "it is not read: {told}");
    let mut rig = self::rig(PerUser::Many, 1);
    let first = rig.user("alice").0;
    rig.seq += 1;
    let echo = format!(r#"{{"msg_id":9000,"seq":{}}}"#, rig.seq);
    let mut bytes = crate::engine::clients::sign_in::tests::frame(&echo);
    rig.engine.on_bytes(first, &mut bytes, rig.now);
    rig.engine.on_sent(first, 0, rig.now);
    let new = rig.user("alice").0;
    assert!(rig.waits(new) && !rig.engine.outbox(first).ends_with(&PING), "bytes wait");
    rig.now = rig.now.plus_ms(500);
    rig.engine.on_sent(first, 3, rig.now);
    rig.later(10_000);
    assert!(rig.told(new).contains("HTTP/1.1 429"), "it takes them");
    assert!(rig.is_there(first));
}

#[test]
fn a_pause_of_the_process_is_no_silence_of_the_others() {
    let mut rig = rig(PerUser::Many, 1);
    let first = rig.user("alice").0;
    let new = rig.user("alice").0;
    rig.now = rig.now.plus_ms(60_000);
    rig.engine.on_pause(60_000_000, rig.now);
    rig.later(0);
    assert!(rig.waits(new) && rig.is_there(first));
    rig.answers(first);
    assert!(rig.told(new).contains("HTTP/1.1 429") && rig.is_there(first));
}

#[test]
fn who_leaves_while_it_waits_holds_up_nobody() {
    let mut rig = rig(PerUser::Many, 1);
    let first = rig.user("alice").0;
    let gone = rig.user("alice").0;
    rig.engine.remove(gone);
    rig.later(2_000_000);
    assert!(rig.is_there(first), "nobody wants its place");
    assert_eq!(rig.told(first).len(), "\u{fffd}\0".len(), "one ping");
    let new = rig.user("alice").0;
    rig.later(2_000_000);
    assert!(rig.told(new).contains("auth_ok") && !rig.is_there(first));
}

#[test]
fn who_is_over_its_users_rate_is_told_so_and_nobody_is_asked_or_closed_for_it() {
    let limited = |per_user, max| {
        Rig::new(false, |l: &mut LimitSettings| {
            (l.per_user, l.user.connections_max) = (per_user, max);
            (l.user.connects_per_s, l.burst_s) = (1, 1);
        })
    };
    for per_user in [PerUser::Many, PerUser::Newest, PerUser::Oldest] {
        let mut rig = limited(per_user, 1);
        let first = rig.user("alice").0;
        let told = rig.user("alice").1;
        assert!(told.contains("HTTP/1.1 429") && told.contains("connections a second"), "{told}");
        assert!(rig.is_there(first) && rig.engine.outbox(first).is_empty());
        let counters = [Counter::UserConnectsRefused, Counter::UserConnectionsTested];
        assert_eq!(counters.map(|counter| rig.count(counter)), [1, 0]);
    }
    // Two wait, and one of them is within the rate when the time is over.
    let mut rig = limited(PerUser::Many, 2);
    let first = rig.user("alice").0;
    rig.later(1_000_000);
    let second = rig.user("alice").0;
    rig.later(1_000_000);
    let (third, fourth) = (rig.user("alice").0, rig.by_message("alice"));
    assert!(rig.waits(third) && rig.waits(fourth));
    rig.later(2_000_000);
    assert!(rig.told(third).contains("auth_ok") && !rig.is_there(first));
    let told = rig.told(fourth);
    assert!(told.contains("connections a second") && rig.is_there(second), "{told}");
}

#[test]
fn a_dead_connection_is_asked_behind_bytes_that_its_kernel_still_takes() {
    let mut rig = rig(PerUser::Many, 1);
    let dead = rig.user("alice").0;
    rig.seq += 1;
    let echo = format!(r#"{{"msg_id":9000,"seq":{}}}"#, rig.seq);
    let mut bytes = crate::engine::clients::sign_in::tests::frame(&echo);
    rig.engine.on_bytes(dead, &mut bytes, rig.now);
    let new = rig.user("alice").0;
    assert!(rig.waits(new) && rig.engine.outbox(dead).ends_with(&PING));
    rig.told(dead);
    rig.later(1_900_000);
    assert!(rig.waits(new) && rig.is_there(dead));
    rig.later(100_000);
    assert!(rig.told(new).contains("auth_ok") && !rig.is_there(dead));
}

#[test]
fn who_ends_while_it_waits_leaves_the_queue_to_the_next() {
    let mut rig = rig(PerUser::Many, 1);
    let first = rig.user("alice").0;
    for by_message in [false, true] {
        let gone = if by_message { rig.by_message("alice") } else { rig.user("alice").0 };
        assert!(rig.waits(gone) && rig.engine.is_newcomer(gone));
        assert!(rig.engine.on_end(gone, rig.now), "close it");
        rig.engine.remove(gone);
    }
    let new = rig.user("alice").0;
    assert!(rig.waits(new));
    rig.answers(first);
    assert!(rig.told(new).contains("HTTP/1.1 429") && rig.is_there(first));
}

#[test]
fn everybody_who_comes_back_at_once_is_let_in_when_the_time_is_over() {
    const USERS: usize = 200;
    let mut rig = rig(PerUser::Many, 1);
    let name = |n: usize| format!("user-{n}");
    let come = |rig: &mut Rig| -> Vec<ConnId> {
        let ids = (0..USERS).map(|n| rig.user(&name(n)).0).collect();
        // Eight tokens a turn.
        (0..USERS / 8).for_each(|_| rig.engine.end_turn(rig.now));
        ids
    };
    let dead = come(&mut rig);
    dead.iter().for_each(|id| drop(rig.told(*id)));
    assert!(dead.iter().all(|id| rig.is_there(*id)));
    let new = come(&mut rig);
    assert!(new.iter().all(|id| rig.waits(*id)));
    rig.now.0 += 2_000_000;
    rig.engine.tick(rig.now, &mut Vec::new());
    assert!(new.iter().all(|id| rig.is_there(*id)), "in one tick");
    assert!(!dead.iter().any(|id| rig.is_there(*id)));
    rig.later(0);
}

/// A rig in which all users have one tenant with `quota`.
fn of_a_tenant(quota: Quota, change: impl FnOnce(&mut LimitSettings)) -> Rig {
    let mut published = published(false, change);
    let mut snapshot = (*published.snapshot).clone();
    snapshot.tenants = TenantTable::new(vec![Tenant { quota, ..Tenant::plain("acme") }]);
    published.snapshot = Arc::new(snapshot);
    Rig { engine: engine(published, 0, 1), now: Micros(5_000_000), seq: 0 }
}

#[test]
fn one_that_waits_for_a_place_of_its_user_has_none_of_its_tenant_until_then() {
    for by_message in [false, true] {
        let quota = Quota { connections_max: 2, ..Quota::NONE };
        let mut rig = of_a_tenant(quota, |l| {
            (l.per_user, l.user.connections_max) = (PerUser::Many, 1);
        });
        let hangs = rig.user("alice").0;
        let new = match by_message {
            true => rig.by_message("alice"),
            false => rig.user("alice").0,
        };
        rig.later(1_000_000);
        assert!(rig.waits(new));
        assert!(rig.user("bob").1.contains("auth_ok"), "one place is free");
        let told = rig.user("carol").1;
        assert!(told.contains("HTTP/1.1 429"), "both places are taken: {told}");
        rig.later(1_000_000);
        // It has the place of the one before it.
        assert!(rig.told(new).contains("auth_ok") && !rig.is_there(hangs));
        assert!(rig.user("carol").1.contains("HTTP/1.1 429"));
    }
}

/// Promise 6: a user who is over its own limits costs the others of its tenant nothing.
#[test]
fn a_user_over_its_own_rate_takes_none_of_its_tenants() {
    let quota = Quota { connects_per_s: 3, connections_max: 3, ..Quota::NONE };
    let mut rig = of_a_tenant(quota, |l| l.user.connects_per_s = 1);
    assert!(rig.user("alice").1.contains("auth_ok"));
    for _ in 0..20 {
        let told = rig.user("alice").1;
        assert!(told.contains("this user opens too many connections"), "{told}");
        // Tokens are verified a few a turn.
        rig.later(1_000);
    }
    for other in ["bob", "carol"] {
        assert!(rig.user(other).1.contains("auth_ok"), "{other}");
    }
    // What the tenant refuses costs the user a connect, and no place.
    let told = rig.user("dave").1;
    assert!(told.contains("your tenant"), "{told}");
    rig.later(0);
}
