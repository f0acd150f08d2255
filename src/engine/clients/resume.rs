//! Resuming: a client that lost its connection goes on with its session on another one.
//!
//! `resume` is a message, so that no secret stands in a URL, and it may be sent right behind
//! `auth`. Without a session in it, it makes the connection's own one resumable. With one, the
//! connection goes on with that: `resumed` is written, then what the client lacks, then what is
//! new, in one step, so that nothing can slip between. The session may still be on its old
//! connection, which nobody has seen break: that one is closed in the same step.
//!
//! A wrong id, secret or user touches nothing but the connection that shows it.

use rand::RngExt;

use crate::engine::Context;
use crate::engine::clients::conn::{Conn, Hold, MoveCause, PendingAuth, Phase};
use crate::engine::clients::kept::{AckAhead, WindowCaps};
use crate::engine::clients::membership::GROUPS_MAX;
use crate::engine::clients::resumption::{Claimed, Resumption};
use crate::engine::clients::session::Session;
use crate::engine::clients::sessions::{AwayCaps, End, Seat};
use crate::engine::clients::sign_in::TOKEN_LATER;
use crate::engine::clients::{Clients, mark_dirty};
use crate::engine::refusals::Cause;
use crate::engine::source::Source;
use crate::ids::{ConnId, SessionId, SessionKey, SessionSecret};
use crate::message::{ClientMessage, EventReason, Micros, Reason, Reject, ServerMessage};
use crate::push::Position;
use crate::stats::Counter;
use crate::wire::{client, close};

/// Sessions that end in a tick because they were away too long: 100,000 a second.
const EXPIRE_BUDGET: usize = 1_000;
/// Sessions that end because one more goes away: mostly one, more after a reload.
const CROWDED_BUDGET: usize = 100;
/// Part of the free bytes that one window may have: with 1,000 that are full the last 1 % is free.
const FREE_PART: usize = 8;

const OFF: Reject = Reject::new(
    Reason::Unimplemented,
    "this gateway keeps no sessions (session.ttl_ms = 0): go on with the present one",
);
const FORM: Reject = Reject::new(
    Reason::BadMessage,
    "the payload must be {\"session\": text, \"secret\": text, \"offset\": number, \"boot\": \
     text}, or {} to make this session resumable",
);
const NEEDS_USER: Reject =
    Reject::new(Reason::Unauthenticated, "sign in first: send auth before resume");
const TWICE: Reject = Reject::new(
    Reason::BadMessage,
    "this session is resumable already: connect anew to resume another one",
);
const USED: Reject = Reject::new(
    Reason::BadMessage,
    "resume names a session, and messages were sent on this connection before it: send it first",
);
const TOO_MANY_GROUPS: Reject =
    Reject::new(Reason::TooLarge, "groups: a session is in at most 64 groups");
const USER_NOT_KNOWN: Reject = Reject::later(
    Reason::Unavailable,
    "the token could be neither accepted nor refused: send it again, then resume",
    1_000,
);
const OFFSET_AHEAD: Reject = Reject::new(
    Reason::BadMessage,
    "offset: above the last one that this session was given: send the last one that came, or 0",
);

/// The outcome of resuming that the client is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    New,
    Resumed,
    Gap(Gap),
    Lost(Lost),
}

/// Why frames are missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Gap {
    Overflow,
    Encoding,
}

/// Why a session is not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lost {
    Expired,
    Restarted,
    Ended,
    Unknown,
}

impl Outcome {
    /// Names of outcome and reason on the wire.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::New => ("new", ""),
            Self::Resumed => ("resumed", ""),
            Self::Gap(Gap::Overflow) => ("gap", "OVERFLOW"),
            Self::Gap(Gap::Encoding) => ("gap", "ENCODING"),
            Self::Lost(Lost::Expired) => ("lost", "EXPIRED"),
            Self::Lost(Lost::Restarted) => ("lost", "RESTARTED"),
            Self::Lost(Lost::Ended) => ("lost", "ENDED"),
            Self::Lost(Lost::Unknown) => ("lost", "UNKNOWN"),
        }
    }

    fn counter(self) -> Counter {
        match self {
            Self::New => Counter::SessionsResumable,
            Self::Resumed => Counter::SessionsResumed,
            Self::Gap(_) => Counter::SessionsGap,
            Self::Lost(Lost::Expired) => Counter::SessionsLostExpired,
            Self::Lost(Lost::Restarted) => Counter::SessionsLostRestarted,
            Self::Lost(Lost::Ended) => Counter::SessionsLostEnded,
            Self::Lost(Lost::Unknown) => Counter::SessionsLostUnknown,
        }
    }
}

/// Whether a session stays when its connection is closed by the gateway with `code`. A client that
/// broke a rule starts anew.
pub(super) fn outlives_our_close(code: u16) -> bool {
    matches!(
        code,
        close::TOO_SLOW
            | close::NO_HEARTBEAT
            | close::TOKEN_EXPIRED
            | close::NO_AUTH
            | close::SIGNED_IN_ELSEWHERE
    )
}

/// Whether a session stays when its client closes the connection with `code`. 1000 and none mean
/// that it leaves. 1001 is what a browser sends for a page that goes away, which may be loaded
/// again in a moment; and every other code is a break.
pub(super) fn outlives_their_close(code: Option<u16>) -> bool {
    !matches!(code, None | Some(close::NORMAL))
}

impl Clients {
    /// A `resume` message.
    pub fn on_resume(
        &mut self,
        cx: &mut Context<'_>,
        source: &Source,
        message: &ClientMessage<'_>,
        now: Micros,
    ) -> Result<(), Reject> {
        let id = source.conn;
        if cx.config.settings.session.ttl_ms == 0 {
            return Err(OFF);
        }
        if source.must_sign_in && source.user.is_none() {
            return Err(NEEDS_USER);
        }
        let shown = client::read_resume(source.encoding, message.payload).ok_or(FORM)?;
        let conn = self.conns.get(id).expect("the sender of a message is there");
        if conn.session.resumption.is_some() {
            return Err(TWICE);
        }
        if shown.session.is_empty() {
            self.make_resumable(cx, id, message.seq, Outcome::New);
            return Ok(());
        }
        if conn.session.is_used {
            return Err(USED);
        }
        // Its user may have the session, and is only not known yet.
        if conn.token_later {
            return Err(USER_NOT_KNOWN);
        }
        let lost =
            if shown.boot.is_empty() || shown.boot == client::boot(cx.config.identity.boot_id) {
                Lost::Unknown
            } else {
                Lost::Restarted
            };
        let named = SessionId::read(&shown.session).zip(SessionSecret::read(&shown.secret));
        let Some((session, secret)) = named.filter(|_| lost == Lost::Unknown) else {
            self.lose(cx, id, message.seq, lost, now);
            return Ok(());
        };
        if shown.groups.len() > GROUPS_MAX {
            return Err(TOO_MANY_GROUPS);
        }
        let groups = shown.groups.into_iter().map(|shown| {
            let at = shown.position.unwrap_or_default();
            (shown.group, Position::shown(&at.epoch, at.offset))
        });
        let claimed = Claimed {
            seq: message.seq,
            session,
            secret,
            offset: shown.offset,
            groups: groups.collect(),
        };
        let home = session.shard();
        // Sessions of users are on the shard that their connections come to.
        let moves = source.user.is_none() && cx.drain.is_none() && home.0 < cx.config.shards;
        if moves && home != cx.config.shard {
            self.set_moving(cx, id, home, MoveCause::Resume(claimed));
            return Ok(());
        }
        self.resume_here(cx, id, &claimed, now)
    }

    /// Goes on with the session that a client claims, if it is here and the client's.
    pub fn resume_here(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        claimed: &Claimed,
        now: Micros,
    ) -> Result<(), Reject> {
        let Some(conn) = self.conns.get(id).filter(|conn| conn.phase == Phase::Open) else {
            return Ok(());
        };
        let found = self.claimed_session(conn, claimed);
        let key = match found {
            Ok(key) => key,
            Err(lost) => {
                self.lose(cx, id, claimed.seq, lost, now);
                return Ok(());
            }
        };
        if self.last_offset(key).is_none_or(|last| claimed.offset > last) {
            return Err(OFFSET_AHEAD);
        }
        self.take_session(cx, id, key, now);
        self.go_on_with_session(cx, id, claimed, now);
        Ok(())
    }

    /// The session that a connection may go on with.
    fn claimed_session(&self, conn: &Conn, claimed: &Claimed) -> Result<SessionKey, Lost> {
        let Some(key) = self.find_resumable(&claimed.session) else {
            return Err(match self.sessions.end_of(&claimed.session, claimed.secret) {
                Some(End::Expired | End::Crowded) => Lost::Expired,
                Some(End::Left) => Lost::Ended,
                None => Lost::Unknown,
            });
        };
        let (session, is_over) = match self.sessions.seat(key) {
            Some(Seat::Away(session)) => (&**session, false),
            Some(Seat::At(at)) => match self.conns.get(*at) {
                Some(other) => (&*other.session, other.ends_session),
                None => return Err(Lost::Unknown),
            },
            None => return Err(Lost::Unknown),
        };
        let accepts = |resumption: &Resumption| resumption.accepts(claimed.secret);
        let is_shown = session.resumption.as_deref().is_some_and(accepts);
        match is_shown && session.is_of_party_of(&conn.session) {
            false => Err(Lost::Unknown),
            true if is_over => Err(Lost::Ended),
            true => Ok(key),
        }
    }

    /// The session with this id, if it can be resumed.
    fn find_resumable(&self, id: &SessionId) -> Option<SessionKey> {
        let key = self.sessions.index.find(id)?;
        let session = match self.sessions.seat(key)? {
            Seat::Away(session) => session,
            Seat::At(id) => &self.conns.get(*id)?.session,
        };
        session.resumption.is_some().then_some(key)
    }

    fn last_offset(&self, key: SessionKey) -> Option<u64> {
        let session = match self.sessions.seat(key)? {
            Seat::Away(session) => session,
            Seat::At(id) => &self.conns.get(*id)?.session,
        };
        session.resumption.as_deref().map(|resumption| resumption.kept.last())
    }

    /// Puts a session on the connection `id`. The one that it is on gets that connection's own
    /// session in exchange, and is closed.
    fn take_session(&mut self, cx: &mut Context<'_>, id: ConnId, key: SessionKey, now: Micros) {
        let old = match self.sessions.seat(key) {
            Some(&Seat::At(old)) => old,
            Some(Seat::Away(_)) => {
                let session = self.sessions.comes_back(key, id).expect("just seen");
                let conn = self.conns.get_mut(id).expect("the caller has it");
                let mut own = std::mem::replace(&mut conn.session, session);
                conn.session.continue_for(&own);
                conn.session.parting = EventReason::Closed;
                self.sessions.stand_up(&own);
                self.leave_all(cx, &mut own, EventReason::Replaced);
                self.is_back(key);
                return;
            }
            None => unreachable!("the caller has found it"),
        };
        self.answer_waiting_token(cx, old, now);
        let [Some(conn), Some(former)] = self.conns.get_two_mut([id, old]) else {
            unreachable!("a session is on a connection that is there")
        };
        std::mem::swap(&mut conn.session, &mut former.session);
        conn.session.continue_for(&former.session);
        conn.session.parting = EventReason::Closed;
        (former.is_behind, former.has_waiting) = (false, false);
        // What it waited for is the session's, and the client's Close is still to be read.
        former.release(Hold::Unanswered, old, now, &mut cx.effects.resumed);
        former.release_outbox(old, now, &mut cx.effects.resumed);
        let (taken, left) = (conn.session.key, former.session.key);
        self.sessions.change_seat(taken, id);
        self.sessions.change_seat(left, old);
        cx.stats.inc(Counter::SessionTakeovers);
        let why = "the session was resumed on another connection";
        self.close(cx, old, close::RESUMED_ELSEWHERE, why, now);
    }

    /// Answers an `auth` message of a resumable session that still waits for its turn: its
    /// connection ends, and the session goes on.
    pub(super) fn answer_waiting_token(&mut self, cx: &mut Context<'_>, id: ConnId, now: Micros) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.session.resumption.is_none() {
            return;
        }
        if let Some(PendingAuth::Message { seq, .. }) =
            conn.pending_auth.as_deref().filter(|_| !conn.ends_session)
        {
            let seq = *seq;
            conn.pending_auth = None;
            conn.release(Hold::Token, id, now, &mut cx.effects.resumed);
            let Reject { reason, text, retry_after_ms, .. } = TOKEN_LATER;
            self.tell_error(cx, id, seq, reason, text, retry_after_ms);
        }
    }

    /// Tells a client that its session goes on, and what it lacks of that.
    fn go_on_with_session(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        claimed: &Claimed,
        now: Micros,
    ) {
        let secret = new_secret(cx);
        let Self { conns, sessions, .. } = self;
        let conn = conns.get_mut(id).expect("the caller has it");
        conn.hear(now);
        let encoding = conn.encoding;
        let resumption = conn.session.resumption.as_deref_mut().expect("it was found by that");
        let held = resumption.kept.size();
        resumption.confirm(claimed.offset).expect("it is not above the last one");
        let overflowed = !resumption.kept.has_all_after(claimed.offset);
        sessions.frames_dropped += resumption.recode(encoding) as u64;
        let outcome = if resumption.kept.has_all_after(claimed.offset) {
            Outcome::Resumed
        } else if overflowed && !resumption.is_recoded_after(claimed.offset) {
            Outcome::Gap(Gap::Overflow)
        } else {
            Outcome::Gap(Gap::Encoding)
        };
        resumption.renew(claimed.secret, secret);
        sessions.kept_bytes = sessions.kept_bytes + resumption.kept.size() - held;
        let groups = self.go_on_in_groups(cx, id, &claimed.groups);
        self.tell_resumed(cx, id, claimed.seq, outcome, groups);
        let Some(conn) = self.conns.get_mut(id) else { return };
        let out = conn.outbox.writer(&mut self.buffers);
        if let Some(resumption) = conn.session.resumption.as_deref() {
            let (first, second) = resumption.kept.pieces();
            out.extend_from_slice(first);
            out.extend_from_slice(second);
        }
        mark_dirty(conn, id, cx.effects);
        if conn.has_too_much_unanswered(&cx.config.settings.conn) {
            conn.hold(Hold::Unanswered);
        }
        conn.has_waiting = conn.session.waiting.is_some();
        self.place_waiting(cx, id, now);
        // Services that were told that it is gone are told that it is back.
        self.announce(cx, id);
        if let Some(key) = self.key_at(id) {
            self.follow_claims(cx, key, now);
        }
    }

    /// Tells a client that its session is not there, and goes on with the connection's own.
    fn lose(&mut self, cx: &mut Context<'_>, id: ConnId, seq: u64, lost: Lost, now: Micros) {
        let outcome = Outcome::Lost(lost);
        if let Some(count) = cx.stats.refusals.note(Cause::Counted(outcome.counter()), now) {
            let (_, reason) = outcome.names();
            tracing::info!(
                shard = cx.config.shard.0,
                reason,
                count,
                "session_lost: a client came back for a session that is not there any more"
            );
        }
        self.make_resumable(cx, id, seq, outcome);
    }

    /// Makes the session of a connection resumable, and tells its client.
    fn make_resumable(&mut self, cx: &mut Context<'_>, id: ConnId, seq: u64, outcome: Outcome) {
        let secret = new_secret(cx);
        let conn = self.conns.get_mut(id).expect("the caller has it");
        conn.session.resumption = Some(Box::new(Resumption::new(conn.encoding, secret)));
        self.sessions.became_resumable();
        self.tell_resumed(cx, id, seq, outcome, Vec::new());
        self.announce(cx, id);
    }

    /// Writes the answer to `resume`. It has no offset: the position is in it.
    fn tell_resumed(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        seq: u64,
        outcome: Outcome,
        groups: Vec<client::GroupOutcome>,
    ) {
        cx.stats.inc(outcome.counter());
        let Some(conn) = self.conns.get(id) else { return };
        let Some(resumption) = conn.session.resumption.as_deref() else { return };
        let (name, reason) = outcome.names();
        let resumed = client::Resumed {
            session: conn.session.id.as_str().to_owned(),
            secret: resumption.secret().text(),
            outcome: name.to_owned(),
            reason: reason.to_owned(),
            received_seq: match outcome {
                Outcome::New | Outcome::Lost(_) => 0,
                Outcome::Resumed | Outcome::Gap(_) => conn.session.last_seq,
            },
            offset: resumption.kept.last(),
            ttl_ms: u32::try_from(cx.config.settings.session.ttl_ms).unwrap_or(u32::MAX),
            groups,
        };
        let payload = client::payload(conn.encoding, &resumed);
        let message =
            ServerMessage { seq, kind: "resumed", payload: &payload, ..ServerMessage::default() };
        if self.write(cx, id, &message) && seq > 0 {
            cx.stats.inc(Counter::Answers);
        }
    }

    /// Takes note that the client of a connection has everything up to `offset`. Of a session that
    /// cannot be resumed it says nothing.
    #[inline]
    pub fn on_ack(&mut self, id: ConnId, offset: u64) -> Result<(), AckAhead> {
        let Some(conn) = self.conns.get_mut(id) else { return Ok(()) };
        let Some(resumption) = conn.session.resumption.as_deref_mut() else { return Ok(()) };
        let held = resumption.kept.size();
        resumption.confirm(offset)?;
        self.sessions.kept_bytes -= held - resumption.kept.size();
        Ok(())
    }

    /// Gives memory back that the window of a connection's session does not need: part of the
    /// sweep.
    pub(super) fn shrink_kept(&mut self, id: ConnId) {
        let resumption =
            self.conns.get_mut(id).and_then(|conn| conn.session.resumption.as_deref_mut());
        if let Some(resumption) = resumption {
            resumption.kept.shrink();
        }
    }

    /// Ends the session of a connection that is gone, or keeps it for its client to come back.
    pub(super) fn release_session(&mut self, cx: &mut Context<'_>, conn: &mut Conn) -> bool {
        let is_kept = cx.config.settings.session.ttl_ms > 0 && cx.drain.is_none();
        let stays = conn.session.resumption.is_some() && !conn.ends_session && is_kept;
        if !stays {
            self.sessions.stand_up(&conn.session);
            self.sessions.end_resumption(cx.stats, &mut conn.session);
        }
        stays
    }

    /// Puts a session away, whose connection is gone; `heard`: when its client last sent something.
    pub(super) fn put_away(
        &mut self,
        cx: &mut Context<'_>,
        mut session: Box<Session>,
        heard: Micros,
    ) {
        if session.parting == EventReason::Closed {
            // Its client may have closed it, or not come back.
            session.parting = EventReason::Expired;
        }
        self.is_gone(&mut session);
        let holder = session.holder();
        self.sessions.goes_away(session, self.ticked.max(heard));
        let settings = &cx.config.settings;
        let caps = AwayCaps {
            items: settings.session.away_max,
            of_user: settings.limits.user.connections_max as usize,
        };
        // A lower cap of a reload is come to in steps, the rest with each tick.
        for _ in 0..CROWDED_BUDGET {
            let Some(key) = self.sessions.crowded_out(&holder, caps) else { return };
            cx.stats.inc(Counter::SessionsCrowdedOut);
            self.end_away(cx, key, End::Crowded, EventReason::Expired);
        }
    }

    /// Ends sessions that were away for too long: part of the tick.
    pub fn expire_sessions(&mut self, cx: &mut Context<'_>, now: Micros) {
        self.ticked = now;
        let settings = &cx.config.settings.session;
        let ttl_us = settings.ttl_ms * 1000;
        for _ in 0..EXPIRE_BUDGET {
            let Some((since, key)) = self.sessions.longest_away() else { break };
            let is_crowded = self.sessions.len().1 > settings.away_max
                || self.sessions.kept_bytes > settings.kept_total_bytes_max;
            let (counter, end) = match now.since(since) >= ttl_us {
                true => (Counter::SessionsExpired, End::Expired),
                false if is_crowded => (Counter::SessionsCrowdedOut, End::Crowded),
                false => break,
            };
            cx.stats.inc(counter);
            self.end_away(cx, key, end, EventReason::Expired);
        }
        let dropped = std::mem::take(&mut self.sessions.frames_dropped);
        cx.stats.add(Counter::SessionFramesDropped, dropped);
    }

    /// Ends a session that is away, and its memberships.
    pub(super) fn end_away(
        &mut self,
        cx: &mut Context<'_>,
        key: SessionKey,
        why: End,
        reason: EventReason,
    ) {
        if let Some(mut session) = self.sessions.end_away(key, why) {
            self.leave_all(cx, &mut session, reason);
        }
    }

    /// The window of a session now: as the settings say, and no more than an eighth of the bytes
    /// that are free for all. So the windows of many who confirm nothing leave room for those of
    /// others, and never come to more than there is.
    pub(super) fn window_caps(cx: &Context<'_>, kept_bytes: usize) -> WindowCaps {
        let session = &cx.config.settings.session;
        let free = session.kept_total_bytes_max.saturating_sub(kept_bytes);
        WindowCaps {
            items: session.kept_items_max,
            bytes: session.kept_bytes_max.min(free / FREE_PART),
        }
    }
}

fn new_secret(cx: &mut Context<'_>) -> SessionSecret {
    SessionSecret::new(cx.rng.random())
}

#[cfg(test)]
mod tests;
