//! A connection moves to its user's home shard, so that all of one user (order, deduplication,
//! limits) is local to one core; and one without a user to the shard of the session that its client
//! claims.
//!
//! ```text
//!   shard known --at rest-----> depart --a lane--> arrive: signed in, its bytes go on
//!                                  ^         |
//!                                  +-refused-+  the lane is full: again with the next tick
//! ```
//!
//! At rest means: nothing more is read, no message of the connection is without an answer, and no
//! call with one of its messages is still on its way (a message behind it could overtake it). Bytes
//! that were read and not decoded, and bytes that were not sent yet, move along, so the client
//! notices nothing. A connection whose token came with the upgrade moves before the upgrade is
//! answered.
//!
//! Lanes have no shares. Each shard has one, for what comes from all others; it holds 64
//! ([`crate::limits`]) and is emptied in each turn of its shard. Moves alone seldom fill it. A
//! connection moves once: after its token was verified, and of tokens a shard verifies eight a
//! turn, of users and addresses in rotation ([`super::token_turns`]); or without a user, to the
//! shard of the session that it claims. But a shard that has no room for new clients hands them
//! over by the same lanes, up to 64 in each of its turns. So a lane is
//! full while its shard does not run, or has longer turns than those that send to it, or while a
//! storm of clients overfills another shard. Then connections that move wait, and try again with
//! each tick, in their order; a client that was to be handed over is offered to the next shard, or
//! refused.

use rand::RngExt;

use crate::auth::Identity;
use crate::engine::Context;
use crate::engine::clients::conn::{Conn, Hold, MoveCause, Moving, Phase};
use crate::engine::clients::session::user_hash;
use crate::engine::clients::{Clients, mark_dirty};
use crate::ids::{ConnId, SessionId, ShardId, home_shard};
use crate::message::{EventReason, Micros, Reason, Reject};
use crate::stats::Counter;
use crate::wire::close;

/// The room for a connection that moves here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Room {
    /// There is a place for it.
    Free,
    /// The shard has as many connections as it takes over.
    Crowded,
    /// The shard has as many connections of its address as there may be, or what is left is kept
    /// for others.
    Overrun,
}

/// The work that is left for a connection that is, or stays, on its user's home shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AtHome {
    /// Nothing is left.
    Done,
    /// The upgrade request, which is held, goes on.
    Handshake,
}

/// A connection between two shards.
#[derive(Debug)]
pub struct Departed(Box<Conn>);

/// Connections that a shard takes over although it has as many as it accepts: an eighth, because
/// users spread over shards by hash. With 100,000 users on two shards, the chance that one shard
/// gets 50,500 or more is 1 in 600 (3.2 sigma, sigma = 158).
fn spare(connections_max: usize) -> usize {
    connections_max / 8
}

/// Connections beyond the capacity that are kept only until their refusal is flushed.
const REFUSED_ARRIVALS_MAX: usize = 64;

/// The number of connections that a shard has place for.
pub fn places(connections_max: usize) -> usize {
    connections_max.saturating_add(spare(connections_max) + REFUSED_ARRIVALS_MAX)
}

const CROWDED: Reject = Reject::later(
    Reason::Unavailable,
    "the shard of this user or session has no room: connect again later",
    1_000,
);
const OVERRUN: Reject =
    Reject::later(Reason::RateLimited, "your address has too many connections: close one", 1_000);

impl Clients {
    /// An id on this shard that no resumable session has.
    pub(super) fn new_session_id(&self, cx: &mut Context<'_>) -> SessionId {
        loop {
            let id = SessionId::new(cx.config.shard, cx.rng.random());
            if self.sessions.index.find(&id).is_none() {
                return id;
            }
        }
    }

    /// Whether the user's home is another shard, to which the connection may move.
    pub fn lives_elsewhere(&self, cx: &Context<'_>, identity: &Identity) -> bool {
        cx.drain.is_none() && home_of(cx, identity) != cx.config.shard
    }

    /// Lets a connection move to the home shard of the user who signs in.
    pub fn move_home(&mut self, cx: &mut Context<'_>, id: ConnId, identity: Identity, seq: u64) {
        let to = home_of(cx, &identity);
        self.set_moving(cx, id, to, MoveCause::SignIn { identity, seq });
    }

    /// Stops the reading of a connection that is to move; it moves when it is at rest.
    pub fn set_moving(&mut self, cx: &mut Context<'_>, id: ConnId, to: ShardId, cause: MoveCause) {
        let conn = self.conns.get_mut(id).expect("the caller has it");
        conn.moving = Some(Box::new(Moving { to, cause }));
        conn.hold(Hold::Move);
        if conn.session.is_at_rest() {
            cx.effects.moves.push(id);
        }
    }

    /// Takes a connection out to be sent to the shard named, with its socket. `None`: it does not
    /// move after all.
    pub fn depart(&mut self, cx: &mut Context<'_>, id: ConnId) -> Option<(ShardId, Departed)> {
        let conn = self.conns.get(id)?;
        let to = conn.moving.as_deref()?.to;
        let mut conn = self.conns.remove(id)?;
        self.limits.release(id, &mut conn.limits);
        debug_assert!(conn.session.is_at_rest());
        // What its client wants on another shard is another session.
        self.sessions.end_resumption(cx.stats, &mut conn.session);
        self.sessions.stand_up(&conn.session);
        self.leave_all(cx, &mut conn.session, EventReason::Replaced);
        conn.session.is_told = false;
        conn.is_behind = false;
        self.upgraded -= u64::from(conn.upgraded);
        cx.stats.inc(Counter::MovedOut);
        Some((to, Departed(Box::new(conn))))
    }

    /// Takes over a connection that moved here. `None`: there is not even a place for its refusal;
    /// its socket is closed.
    pub fn arrive(
        &mut self,
        cx: &mut Context<'_>,
        departed: Departed,
        now: Micros,
    ) -> Option<(ConnId, AtHome)> {
        let room = self.room_for(cx, &departed.0);
        let is_last = self.refused_arrivals >= REFUSED_ARRIVALS_MAX || self.conns.is_full();
        if room != Room::Free && is_last {
            cx.stats.inc(Counter::MoveLost);
            return None;
        }
        let id = self.put_in(cx, departed, now);
        cx.stats.inc(Counter::MovedIn);
        let conn = self.conns.get_mut(id).expect("just put in");
        let next = match (room, conn.phase) {
            (Room::Crowded, _) => self.refuse_arrival(cx, id, 503, &CROWDED, now),
            (Room::Overrun, _) => self.refuse_arrival(cx, id, 429, &OVERRUN, now),
            (Room::Free, Phase::Handshake) if cx.drain.is_some() => {
                self.refuse_for_stop(cx, id, now);
                AtHome::Done
            }
            (Room::Free, Phase::Handshake) => AtHome::Handshake,
            (
                Room::Free,
                Phase::Open
                | Phase::Closing { .. }
                | Phase::Lingering { .. }
                | Phase::Finished { .. },
            ) => {
                self.go_on_moved(cx, id, now);
                self.tell_draining(cx, id);
                AtHome::Done
            }
        };
        Some((id, next))
    }

    fn room_for(&self, cx: &Context<'_>, conn: &Conn) -> Room {
        let max = cx.config.settings.conn.connections_max.get();
        // The spare places are for users, who can be nowhere else.
        let spare = match conn.moving.as_deref().map(|moving| &moving.cause) {
            Some(MoveCause::Resume(_)) => 0,
            Some(MoveCause::SignIn { .. }) | None => spare(max),
        };
        let (ip, all, taken) = (conn.peer.ip(), max.saturating_add(spare), self.conns.len());
        if taken >= all || self.conns.is_full() || self.sessions.is_full() {
            Room::Crowded
        } else if self.limits.is_address_over(ip) || !self.limits.leaves_places(ip, all, taken) {
            Room::Overrun
        } else {
            Room::Free
        }
    }

    /// Takes back a connection that the lane refused, under another number. If the shard it should
    /// go to has ended (`is_gone`), it stays for good; else it tries again with the next tick.
    pub fn move_refused(
        &mut self,
        cx: &mut Context<'_>,
        departed: Departed,
        is_gone: bool,
        now: Micros,
    ) -> (ConnId, AtHome) {
        // Its place was left a moment ago.
        let id = self.put_in(cx, departed, now);
        cx.stats.inc(Counter::MoveDelayed);
        self.moves_waiting.push(id);
        if is_gone || cx.drain.is_some() {
            return (id, self.end_move(cx, id, now));
        }
        (id, AtHome::Done)
    }

    /// Puts a connection into the slab as it is.
    fn put_in(
        &mut self,
        cx: &mut Context<'_>,
        Departed(mut conn): Departed,
        now: Micros,
    ) -> ConnId {
        conn.hear(now);
        // Mostly the same: then the count is one that only this shard writes to.
        if *conn.terms == *self.terms {
            conn.terms = self.terms.clone();
        }
        self.message_bytes_high = self.message_bytes_high.max(conn.terms.frames.message_bytes_max);
        self.outbox_bytes_high = self.outbox_bytes_high.max(conn.terms.outbox_bytes_max);
        self.upgraded += u64::from(conn.upgraded);
        conn.dirty = false;
        // An id names the shard that its session lives on. Requests of before it are over.
        if conn.session.id.shard() != cx.config.shard {
            conn.session.begin_anew(self.new_session_id(cx));
        }
        let id = self.put(*conn);
        let conn = self.conns.get_mut(id).expect("just put in");
        self.limits.count(&cx.config.snapshot.tenants, id, conn, now);
        if !conn.outbox.is_empty() {
            mark_dirty(conn, id, cx.effects);
        }
        id
    }

    /// Does what an open connection was moved for, and lets it go on.
    fn go_on_moved(&mut self, cx: &mut Context<'_>, id: ConnId, now: Micros) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let Some(moving) = conn.moving.take() else { return };
        conn.release(Hold::Move, id, now, &mut cx.effects.resumed);
        match moving.cause {
            MoveCause::SignIn { identity, seq } => self.welcome_user(cx, id, seq, identity, now),
            MoveCause::Resume(claimed) => {
                if let Err(reject) = self.resume_here(cx, id, &claimed, now) {
                    let Reject { reason, text, retry_after_ms, .. } = reject;
                    self.tell_error(cx, id, claimed.seq, reason, text, retry_after_ms);
                }
            }
        }
    }

    /// Tells a connection that moved here that there is no room, and closes it.
    fn refuse_arrival(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        status: u16,
        why: &Reject,
        now: Micros,
    ) -> AtHome {
        cx.stats.inc(Counter::MoveRefused);
        let conn = self.conns.get_mut(id).expect("the caller has it");
        conn.refused_arrival = true;
        self.refused_arrivals += 1;
        let seq = conn.moving.as_deref().map_or(0, |moving| moving.cause.seq());
        if conn.phase == Phase::Handshake {
            self.refuse_upgrade(cx, id, status, why.text, why.retry_after_ms, now);
        } else {
            self.tell_error(cx, id, seq, why.reason, why.text, why.retry_after_ms);
            self.close(cx, id, close::TRY_LATER, why.text, now);
        }
        AtHome::Done
    }

    /// Ends the move of a connection: its user signs in here, and the session that it wants is not
    /// here.
    pub fn end_move(&mut self, cx: &mut Context<'_>, id: ConnId, now: Micros) -> AtHome {
        let Some(conn) = self.conns.get_mut(id) else { return AtHome::Done };
        match conn.phase {
            Phase::Open => {
                self.go_on_moved(cx, id, now);
                AtHome::Done
            }
            // With the identity that is known.
            Phase::Handshake if cx.drain.is_none() => AtHome::Handshake,
            // The stop refuses it.
            Phase::Handshake
            | Phase::Closing { .. }
            | Phase::Lingering { .. }
            | Phase::Finished { .. } => AtHome::Done,
        }
    }

    /// Drops the move of a connection that closes, or its wait for a place: the end of its bytes is
    /// awaited.
    pub fn forget_waits(&mut self, cx: &mut Context<'_>, id: ConnId, now: Micros) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.moving = None;
        if let Some(newcomer) = conn.newcomer.take() {
            self.limits.forget_newcomer(&newcomer.identity, id);
        }
        conn.release(Hold::Move, id, now, &mut cx.effects.resumed);
        conn.release(Hold::Place, id, now, &mut cx.effects.resumed);
    }

    /// Lets connections that a lane did not take try again: part of the tick.
    pub fn move_again(&mut self, cx: &mut Context<'_>) {
        cx.effects.moves.append(&mut self.moves_waiting);
    }
}

/// The home shard of a user.
fn home_of(cx: &Context<'_>, identity: &Identity) -> ShardId {
    home_shard(user_hash(identity), cx.config.shards)
}

#[cfg(test)]
mod tests;
