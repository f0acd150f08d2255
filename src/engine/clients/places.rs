//! Places among the connections of a user (`session.per_user`): what happens when one more wants to
//! be let in than there may be.
//!
//! A connection that hangs (its network is gone, and nobody has noticed) must not lock its user
//! out. So before a newcomer is refused all connections of the user are pinged, and the newcomer
//! waits for up to [`ANSWER_MS`], outside of its handshake's time. Any frame is an answer. The
//! oldest of those that gave none is closed, and the newcomer takes its place. If all answered, the
//! newcomer is refused, and told to come back when they would be asked again.
//!
//! All connections of a user are on one shard, so the count is exact. What waits is each user's
//! own: no more newcomers than it has silent connections, so nobody else waits for them.

use std::collections::VecDeque;

use crate::auth::Identity;
use crate::config::settings::PerUser;
use crate::engine::Context;
use crate::engine::clients::Clients;
use crate::engine::clients::conn::{Hold, Newcomer, Phase};
use crate::engine::clients::limits::{CountedUser, NotCounted, over_rate};
use crate::engine::clients::sign_in::upgrade_status;
use crate::ids::{ConnId, LimiterKey};
use crate::message::{Micros, Reason, Reject};
use crate::stats::Counter;
use crate::wire::close;

/// Time that the connections of a user have to answer a ping: 2 s, some ten round trips of a slow
/// mobile network, or one lost segment that is sent again twice.
pub const ANSWER_MS: u64 = 2_000;

/// The next step for those of one user who wait for a place.
enum Step {
    /// Something was done; there may be more to do.
    Again,
    /// An upgrade request goes on: there is a place for it.
    Upgrade(ConnId),
    /// Nothing is to be done now.
    Decided,
}

impl Clients {
    /// Closes the oldest connections of a user whose newest one wins, if that is the policy and one
    /// more is within the user's rate.
    pub fn make_room(&mut self, cx: &mut Context<'_>, identity: &Identity, now: Micros) {
        match cx.config.settings.limits.per_user {
            PerUser::Newest => {}
            PerUser::Many | PerUser::Oldest => return,
        }
        let Some((user, Ok(()))) = self.user_entry(identity, now) else { return };
        if self.limits.has_place(user) {
            return;
        }
        for oldest in self.oldest_first(user) {
            cx.stats.inc(Counter::ClosedElsewhere);
            let why = "this user has signed in on another connection";
            self.close(cx, oldest, close::SIGNED_IN_ELSEWHERE, why, now);
            if self.limits.has_place(user) {
                return;
            }
        }
    }

    /// The connections that a user counts, the oldest one first.
    fn oldest_first(&self, user: LimiterKey) -> Vec<ConnId> {
        let opened = |id: &ConnId| Some((self.conns.get(*id)?.opened, *id));
        let mut members: Vec<_> = self.limits.members(user).iter().filter_map(opened).collect();
        members.sort_unstable();
        members.into_iter().map(|(_, id)| id).collect()
    }

    /// Lets a connection wait until the others of its user have answered, or refuses it: if they
    /// just have, or if it is over the user's rate, so that nobody is asked for its sake.
    pub fn wait_for_place(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        identity: &Identity,
        now: Micros,
    ) -> Result<CountedUser, NotCounted> {
        let (user, rate) =
            self.user_entry(identity, now).expect("a user over its limit is counted");
        if let Err(us) = rate {
            return Err(NotCounted::Refused(over_rate(cx, us)));
        }
        if !self.limits.places.has(user) {
            self.ask_all(cx, user, now);
        }
        if self.limits.places.wait(user, id) {
            return Err(NotCounted::Waits);
        }
        let rest_ms = self.limits.places.rest_us(user, now).div_ceil(1000).max(1) as u32;
        Err(NotCounted::Refused(refusal(cx, rest_ms)))
    }

    /// Asks the connections of a user whether they are there; not those that the gateway does not
    /// read, and that cannot be judged. One whose kernel has no room gets no ping: taking some of
    /// its bytes is its answer, because only what a peer has acknowledged makes room.
    fn ask_all(&mut self, cx: &mut Context<'_>, user: LimiterKey, now: Micros) {
        cx.stats.inc(Counter::UserConnectionsTested);
        let is_read = |id: &ConnId| self.conns.get(*id).is_some_and(|conn| conn.holds.is_empty());
        let asked: VecDeque<ConnId> = self.oldest_first(user).into_iter().filter(is_read).collect();
        asked.iter().for_each(|id| self.ping(cx, *id, now));
        self.limits.places.begin(user, asked, now.plus_ms(ANSWER_MS));
    }

    /// Lets the connection with the token of `identity` wait; nothing more of it is read.
    pub fn set_newcomer(&mut self, id: ConnId, identity: Identity, seq: u64) {
        let conn = self.conns.get_mut(id).expect("the caller has it");
        conn.newcomer = Some(Box::new(Newcomer { identity, seq }));
        conn.hold(Hold::Place);
    }

    /// Whether a connection is among those that a place may become free for.
    pub fn waits_for_place(&self, id: ConnId) -> bool {
        let newcomer = self.conns.get(id).and_then(|conn| conn.newcomer.as_deref());
        let user = newcomer.and_then(|newcomer| self.limits.user(&newcomer.identity));
        user.is_some_and(|user| self.limits.places.has_newcomer(user, id))
    }

    /// Goes on with those who wait for a place, as far as that is decided now. Returns the next
    /// upgrade request for which there is a place; the next call goes on where this one ended.
    pub fn place_next(&mut self, cx: &mut Context<'_>, now: Micros) -> Option<ConnId> {
        if !self.is_catching_up(now) {
            self.limits.places.end_due(now);
        }
        while let Some(user) = self.limits.places.next_changed() {
            match self.go_on_with(cx, user, now) {
                Step::Again => {}
                Step::Upgrade(id) => return Some(id),
                Step::Decided => self.limits.places.decided(),
            }
        }
        None
    }

    /// Lets the first newcomer of a user in, or turns it away.
    fn go_on_with(&mut self, cx: &mut Context<'_>, user: LimiterKey, now: Micros) -> Step {
        let Some(first) = self.limits.places.first_newcomer(user) else { return Step::Decided };
        let newcomer = self.conns.get(first).and_then(|conn| conn.newcomer.as_deref());
        let Some(newcomer) = newcomer else {
            self.limits.places.forget(user, first);
            return Step::Again;
        };
        if !self.limits.has_place(user) {
            if self.limits.places.may_answer(user) {
                return Step::Decided;
            }
            let rate = self.user_entry(&newcomer.identity, now).map_or(Ok(()), |(_, rate)| rate);
            let dead = match rate {
                Ok(()) => self.limits.places.take_dead(user).ok_or(None),
                Err(us) => Err(Some(us)),
            };
            match dead {
                Ok(dead) => {
                    cx.stats.inc(Counter::ClosedNoHeartbeat);
                    let why = "no answer to our ping for 2 s, and this user wants to connect anew";
                    self.close(cx, dead, close::NO_HEARTBEAT, why, now);
                }
                Err(over) => {
                    self.limits.places.forget(user, first);
                    let reject = match over {
                        Some(us) => over_rate(cx, us),
                        None => refusal(cx, ANSWER_MS as u32),
                    };
                    self.refuse_newcomer(cx, first, &reject, now);
                }
            }
            return Step::Again;
        }
        self.limits.places.forget(user, first);
        let conn = self.conns.get_mut(first).expect("seen above");
        if conn.phase == Phase::Handshake {
            return Step::Upgrade(first);
        }
        let newcomer = conn.newcomer.take().expect("seen above");
        conn.release(Hold::Place, first, now, &mut cx.effects.resumed);
        self.welcome_user(cx, first, newcomer.seq, newcomer.identity, now);
        Step::Again
    }

    fn refuse_newcomer(&mut self, cx: &mut Context<'_>, id: ConnId, reject: &Reject, now: Micros) {
        let conn = self.conns.get_mut(id).expect("the caller has it");
        let seq = conn.newcomer.as_deref().map_or(0, |newcomer| newcomer.seq);
        match conn.phase {
            Phase::Handshake => {
                conn.handshake = None;
                let Reject { text, retry_after_ms, .. } = *reject;
                self.refuse_upgrade(cx, id, upgrade_status(reject), text, retry_after_ms, now);
            }
            Phase::Open
            | Phase::Closing { .. }
            | Phase::Lingering { .. }
            | Phase::Finished { .. } => self.turn_away(cx, id, seq, reject, now),
        }
    }
}

/// The refusal of a newcomer, whose user's connections are asked again in `again_ms`.
fn refusal(cx: &mut Context<'_>, again_ms: u32) -> Reject {
    cx.stats.inc(Counter::UserConnectionsRefused);
    match cx.config.settings.limits.per_user {
        PerUser::Many | PerUser::Newest => Reject::later(
            Reason::RateLimited,
            "this user has too many connections, and all of them answer: close one",
            again_ms,
        ),
        PerUser::Oldest => Reject::new(
            Reason::Forbidden,
            "this user is connected already, and that connection answers: close it first",
        ),
    }
}

#[cfg(test)]
mod tests;
