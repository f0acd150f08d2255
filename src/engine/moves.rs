//! A connection moves to its user's home shard, so that all of one user (order, deduplication,
//! limits) is local to one core.
//!
//! ```text
//!   identity known --at rest--> depart --a lane--> arrive: signed in, its bytes go on
//!                                  ^         |
//!                                  +--stay---+  the lane is full: again with the next tick
//! ```
//!
//! At rest means: nothing more is read, no message of it is without an answer, and no call that had
//! one of them is still on its way (a message behind it could overtake it). What was read
//! and not decoded, and what was not sent yet, moves along; so the client notices nothing. One
//! whose token came with the upgrade moves before the upgrade is answered.

use crate::auth::Identity;
use crate::engine::Engine;
use crate::engine::answer::mark_dirty;
use crate::engine::auth::user_hash;
use crate::engine::conns::{Conn, Hold, Phase};
use crate::engine::inbound::close;
use crate::ids::{ConnId, ShardId, home_shard};
use crate::message::{Micros, Reason, Reject};
use crate::stats::Counter;

/// Where a connection is to go: waits with it until it is at rest.
#[derive(Debug)]
pub struct Moving {
    /// Who signs in there.
    pub identity: Identity,
    /// The `auth` message that is answered there; the upgrade if there was none.
    pub seq: u64,
}

/// What an arrival finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Room {
    /// A place.
    Free,
    /// As many connections as the shard takes over.
    Crowded,
    /// As many of its address as there may be.
    Overrun,
}

/// A connection between two shards.
#[derive(Debug)]
pub struct Departed(Box<Conn>);

/// Connections that a shard takes over although it has as many as it accepts: an eighth, since
/// users spread over shards by hash: of 100,000 on two shards one has 1 % too many, 500 or 3.2
/// standard deviations of 158, in one case of 600.
fn spare(connections_max: usize) -> usize {
    connections_max / 8
}

/// Those who come on top, only to be told that there is no room, until they are gone.
const TURNED_AWAY_MAX: usize = 64;

/// Connections that a shard has place for.
pub fn places(connections_max: usize) -> usize {
    connections_max.saturating_add(spare(connections_max) + TURNED_AWAY_MAX)
}

const CROWDED: Reject = Reject {
    reason: Reason::Unavailable,
    text: "the shard of this user is full; connect again later",
    retry_after_ms: 1_000,
};
const OVERRUN: Reject = Reject {
    reason: Reason::RateLimited,
    text: "too many connections of your address",
    retry_after_ms: 1_000,
};

impl Engine {
    /// Whether the user's home is another shard, to which the connection may move.
    pub(super) fn is_away(&self, identity: &Identity) -> bool {
        self.drain.is_none() && self.home_of(identity) != self.shard
    }

    fn home_of(&self, identity: &Identity) -> ShardId {
        home_shard(user_hash(identity), self.shards)
    }

    /// From now on nothing is read of the connection; when it is at rest it moves.
    pub(super) fn set_moving(&mut self, id: ConnId, identity: Identity, seq: u64) {
        let Self { conns, effects, .. } = self;
        let conn = conns.get_mut(id).expect("the caller has it");
        conn.moving = Some(Box::new(Moving { identity, seq }));
        conn.hold(Hold::Move);
        if conn.is_at_rest() {
            effects.moves.push(id);
        }
    }

    /// Takes a connection out to be sent to the shard named, with its socket. `None`: it does not
    /// move after all, or not yet.
    pub fn depart(&mut self, id: ConnId) -> Option<(ShardId, Departed)> {
        let conn = self.conns.get(id)?;
        let home = home_shard(user_hash(&conn.moving.as_deref()?.identity), self.shards);
        let mut conn = self.conns.remove(id)?;
        self.rates.release(&mut conn.metered);
        debug_assert!(conn.is_at_rest());
        self.upgraded -= u64::from(conn.upgraded);
        self.counters.inc(Counter::MovedOut);
        Some((home, Departed(Box::new(conn))))
    }

    /// A connection comes home. `None`: there is not even a place for its last words; close its
    /// socket.
    pub fn arrive(&mut self, departed: Departed, now: Micros) -> Option<ConnId> {
        let room = self.room_for(&departed.0);
        let is_last = self.turned_away >= TURNED_AWAY_MAX || self.conns.is_full();
        if room != Room::Free && is_last {
            self.counters.inc(Counter::MoveLost);
            return None;
        }
        let id = self.settle_in(departed, now);
        self.counters.inc(Counter::MovedIn);
        let conn = self.conns.get_mut(id).expect("just put in");
        match (room, conn.phase) {
            (Room::Crowded, _) => self.turn_away(id, 503, &CROWDED, now),
            (Room::Overrun, _) => self.turn_away(id, 429, &OVERRUN, now),
            (Room::Free, phase) => self.go_on_at_home(id, phase, now),
        }
        Some(id)
    }

    fn room_for(&self, conn: &Conn) -> Room {
        let max = self.settings.conn.connections_max;
        if self.conns.len() >= max + spare(max) || self.conns.is_full() {
            Room::Crowded
        } else if self.is_address_over(conn.identity.peer.ip()) {
            Room::Overrun
        } else {
            Room::Free
        }
    }

    fn go_on_at_home(&mut self, id: ConnId, phase: Phase, now: Micros) {
        match phase {
            Phase::Handshake if self.drain.is_some() => self.refuse_handshake(id, now),
            Phase::Handshake => {
                self.shake_hands(id, &mut [], now);
            }
            Phase::Open
            | Phase::Closing { .. }
            | Phase::Lingering { .. }
            | Phase::Finished { .. } => {
                self.sign_in_moved(id, now);
                self.tell_draining(id);
            }
        }
    }

    /// The lane did not take a connection: it stays, under another number. If the shard it should
    /// go to has ended (`is_gone`), for good; else it tries again with the next tick.
    pub fn stay(&mut self, departed: Departed, is_gone: bool, now: Micros) -> ConnId {
        // Its place was left a moment ago.
        let id = self.settle_in(departed, now);
        self.counters.inc(Counter::MoveDelayed);
        self.away.push(id);
        if is_gone || self.drain.is_some() {
            self.move_no_more(id, now);
        }
        id
    }

    /// Puts a connection into the slab as it is.
    fn settle_in(&mut self, Departed(mut conn): Departed, now: Micros) -> ConnId {
        conn.heard = now;
        // Mostly the same: then the count is one that only this shard writes to.
        if *conn.terms == *self.terms {
            conn.terms = self.terms.clone();
        }
        self.message_bytes_high = self.message_bytes_high.max(conn.terms.frames.message_bytes_max);
        self.upgraded += u64::from(conn.upgraded);
        conn.dirty = false;
        self.rates.count(&mut conn, now);
        let id = self.conns.insert(*conn);
        let Self { conns, effects, .. } = self;
        let conn = conns.get_mut(id).expect("just put in");
        if !conn.outbox.is_empty() {
            mark_dirty(conn, id, &mut effects.dirty);
        }
        id
    }

    /// Signs an open connection in as whom it was moved for, and lets it go on.
    fn sign_in_moved(&mut self, id: ConnId, now: Micros) {
        let Self { conns, effects, .. } = self;
        let Some(conn) = conns.get_mut(id) else { return };
        let Some(moving) = conn.moving.take() else { return };
        conn.release(Hold::Move, id, now, &mut effects.resumed);
        self.welcome_user(id, moving.seq, moving.identity, now);
    }

    /// There is no room: the connection is told so, and closed.
    fn turn_away(&mut self, id: ConnId, status: u16, why: &Reject, now: Micros) {
        self.counters.inc(Counter::MoveRefused);
        let conn = self.conns.get_mut(id).expect("the caller has it");
        conn.turned_away = true;
        self.turned_away += 1;
        let seq = conn.moving.as_deref().map_or(0, |moving| moving.seq);
        if conn.phase == Phase::Handshake {
            self.refuse_upgrade(id, status, why.text, why.retry_after_ms, now);
        } else {
            self.auth_error(id, seq, why.reason, why.text, why.retry_after_ms);
            self.close(id, close::TRY_LATER, why.text, now);
        }
    }

    /// The connection will not move any more: its user signs in here.
    pub(super) fn move_no_more(&mut self, id: ConnId, now: Micros) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        match conn.phase {
            Phase::Open => self.sign_in_moved(id, now),
            // With the identity that is known.
            Phase::Handshake if self.drain.is_none() => {
                self.shake_hands(id, &mut [], now);
            }
            // The stop refuses it.
            Phase::Handshake
            | Phase::Closing { .. }
            | Phase::Lingering { .. }
            | Phase::Finished { .. } => {}
        }
    }

    /// The connection closes: it goes nowhere, and the end of its bytes is awaited.
    pub(super) fn forget_move(&mut self, id: ConnId, now: Micros) {
        let Self { conns, effects, .. } = self;
        let Some(conn) = conns.get_mut(id) else { return };
        conn.moving = None;
        conn.release(Hold::Move, id, now, &mut effects.resumed);
    }

    /// Part of the tick: those whom a lane did not take try again.
    pub(super) fn move_again(&mut self) {
        self.effects.moves.append(&mut self.away);
    }
}

#[cfg(test)]
mod tests;
