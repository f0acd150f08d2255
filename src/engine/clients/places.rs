//! Places among the connections of a user (`session.per_user`): what happens when one more wants to
//! be let in than there may be.
//!
//! A connection that hangs (its network is gone, and nobody has noticed) must not lock its user
//! out. So before a newcomer is refused all connections of the user are pinged, and the newcomer
//! waits for up to [`ANSWER_MS`], outside of its handshake's time. Any frame is an answer. The
//! oldest of those that gave none is closed, and the newcomer takes its place. If all answered, the
//! newcomer is refused, and told to come back when they would be asked again.
//!
//! All connections of a user are on one shard, so the count is exact.

use std::collections::VecDeque;

use crate::auth::Identity;
use crate::config::settings::PerUser;
use crate::engine::Context;
use crate::engine::clients::Clients;
use crate::engine::clients::conn::{Hold, Newcomer, Phase};
use crate::engine::clients::limits::{CountedUser, NotCounted};
use crate::engine::clients::sign_in::upgrade_status;
use crate::ids::{ConnId, LimiterKey};
use crate::message::{Micros, Reason, Reject};
use crate::stats::Counter;
use crate::wire::close;

/// Time that the connections of a user have to answer a ping: 2 s, some ten round trips of a slow
/// mobile network, or one lost segment that is sent again twice.
pub const ANSWER_MS: u64 = 2_000;

/// The connections of a user that were asked whether they are there.
#[derive(Debug)]
pub struct PlaceTest {
    user: LimiterKey,
    began: Micros,
    /// End of the time to answer; until then nobody is asked again.
    until: Micros,
    /// Connections that wait for a place, the first one first.
    newcomers: VecDeque<ConnId>,
}

impl PlaceTest {
    /// Leaves out a time in which the shard was stopped, up to `now`.
    pub fn put_off(&mut self, us: u64, now: Micros) {
        self.began = Micros(self.began.0 + us).min(now);
        self.until.0 += us;
    }
}

/// The next step for those who wait for a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NextPlace {
    /// Nothing now.
    None,
    /// An upgrade request goes on: there is a place for it.
    Upgrade(ConnId),
}

impl Clients {
    /// Closes the oldest connections of a user whose newest one wins, if that is the policy and one
    /// more is within the user's rate.
    pub fn make_room(&mut self, cx: &mut Context<'_>, identity: &Identity, now: Micros) {
        match cx.config.settings.limits.per_user {
            PerUser::Newest => {}
            PerUser::Many | PerUser::Oldest => return,
        }
        let Some((user, true)) = self.user_entry(identity, now) else { return };
        while !self.limits.has_place(user) {
            let members = self.limits.members(user).to_vec();
            let Some(oldest) = self.oldest_of(&members) else { return };
            cx.stats.inc(Counter::ClosedElsewhere);
            let why = "this user has signed in on another connection";
            self.close(cx, oldest, close::SIGNED_IN_ELSEWHERE, why, now);
        }
    }

    fn oldest_of(&self, ids: &[ConnId]) -> Option<ConnId> {
        let opened = |id: &ConnId| Some((self.conns.get(*id)?.opened, *id));
        ids.iter().filter_map(opened).min().map(|(_, id)| id)
    }

    /// Lets a connection wait until the others of its user have answered, or refuses it if they
    /// just have.
    pub fn wait_for_place(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        identity: &Identity,
        now: Micros,
    ) -> Result<CountedUser, NotCounted> {
        let (user, _) = self.user_entry(identity, now).expect("a user over its limit is counted");
        let members = self.limits.members(user).to_vec();
        let test = match self.place_tests.iter().position(|test| test.user == user) {
            Some(test) => test,
            None => {
                cx.stats.inc(Counter::UserConnectionsTested);
                for &member in &members {
                    self.ping_if_read(cx, member, now);
                }
                let (until, newcomers) = (now.plus_ms(ANSWER_MS), VecDeque::new());
                self.place_tests.push(PlaceTest { user, began: now, until, newcomers });
                self.place_tests.len() - 1
            }
        };
        let PlaceTest { began, until, .. } = self.place_tests[test];
        let silent = members.iter().filter(|id| !self.has_answered(**id, began, now)).count();
        let newcomers = &mut self.place_tests[test].newcomers;
        if newcomers.len() < silent {
            newcomers.push_back(id);
            return Err(NotCounted::Waits);
        }
        let rest_ms = until.since(now).div_ceil(1000).max(1) as u32;
        Err(NotCounted::Refused(refusal(cx, rest_ms)))
    }

    /// Asks a connection whether it is there; not one that the gateway does not read.
    fn ping_if_read(&mut self, cx: &mut Context<'_>, id: ConnId, now: Micros) {
        if self.conns.get(id).is_some_and(|conn| conn.holds.is_empty()) {
            self.ping(cx, id, now);
        }
    }

    /// Whether a connection has sent something since it was asked, or cannot be judged: the gateway
    /// does not read it. One for which bytes waited was not asked; if it has taken some since, its
    /// end is there.
    fn has_answered(&self, id: ConnId, began: Micros, now: Micros) -> bool {
        let Some(conn) = self.conns.get(id) else { return true };
        let was_asked = conn.pinged.is_some_and(|at| at >= began);
        let takes = conn.outbox.stuck_us(now) < now.since(began);
        conn.heard > began || !conn.holds.is_empty() || !was_asked && takes
    }

    /// Lets the connection with the token of `identity` wait; nothing more of it is read.
    pub fn set_newcomer(&mut self, id: ConnId, identity: Identity, seq: u64) {
        let conn = self.conns.get_mut(id).expect("the caller has it");
        conn.newcomer = Some(Box::new(Newcomer { identity, seq }));
        conn.hold(Hold::Place);
    }

    /// Whether a connection is among those that a place may become free for.
    pub fn waits_for_place(&self, id: ConnId) -> bool {
        self.place_tests.iter().any(|test| test.newcomers.contains(&id))
    }

    /// Goes on with those who wait for a place, as far as that is decided now.
    pub fn place_next(&mut self, cx: &mut Context<'_>, now: Micros) -> NextPlace {
        let mut at = 0;
        while at < self.place_tests.len() {
            match self.go_on_with(cx, at, now) {
                Some(NextPlace::None) => {}
                Some(upgrade) => return upgrade,
                None if self.place_tests[at].until <= now && !self.is_catching_up(now) => {
                    self.place_tests.swap_remove(at);
                }
                None => at += 1,
            }
        }
        NextPlace::None
    }

    /// Lets the first newcomer of a test in, or turns it away. `None`: nothing is to be done yet.
    fn go_on_with(&mut self, cx: &mut Context<'_>, at: usize, now: Micros) -> Option<NextPlace> {
        let &PlaceTest { user, began, until, ref newcomers } = &self.place_tests[at];
        let &first = newcomers.front()?;
        if self.conns.get(first).is_none_or(|conn| conn.newcomer.is_none()) {
            self.place_tests[at].newcomers.pop_front();
            return Some(NextPlace::None);
        }
        if !self.limits.has_place(user) {
            let members = self.limits.members(user);
            let silent: Vec<ConnId> =
                members.iter().filter(|id| !self.has_answered(**id, began, now)).copied().collect();
            let is_over = until <= now && !self.is_catching_up(now);
            match self.oldest_of(&silent) {
                Some(oldest) if is_over => {
                    cx.stats.inc(Counter::ClosedNoHeartbeat);
                    let why = "no answer to our ping for 2 s, and this user wants to connect anew";
                    self.close(cx, oldest, close::NO_HEARTBEAT, why, now);
                    return Some(NextPlace::None);
                }
                Some(_) => return None,
                None => {}
            }
        }
        self.place_tests[at].newcomers.pop_front();
        if !self.limits.has_place(user) {
            self.refuse_newcomer(cx, first, now);
            return Some(NextPlace::None);
        }
        let conn = self.conns.get_mut(first).expect("seen above");
        if conn.phase == Phase::Handshake {
            return Some(NextPlace::Upgrade(first));
        }
        let newcomer = conn.newcomer.take().expect("seen above");
        conn.release(Hold::Place, first, now, &mut cx.effects.resumed);
        self.welcome_user(cx, first, newcomer.seq, newcomer.identity, now);
        Some(NextPlace::None)
    }

    fn refuse_newcomer(&mut self, cx: &mut Context<'_>, id: ConnId, now: Micros) {
        let reject = refusal(cx, ANSWER_MS as u32);
        let conn = self.conns.get_mut(id).expect("the caller has it");
        let seq = conn.newcomer.as_deref().map_or(0, |newcomer| newcomer.seq);
        match conn.phase {
            Phase::Handshake => {
                conn.handshake = None;
                let Reject { text, retry_after_ms, .. } = reject;
                self.refuse_upgrade(cx, id, upgrade_status(&reject), text, retry_after_ms, now);
            }
            Phase::Open
            | Phase::Closing { .. }
            | Phase::Lingering { .. }
            | Phase::Finished { .. } => self.turn_away(cx, id, seq, &reject, now),
        }
    }
}

/// The refusal of a newcomer, whose user's connections are asked again in `again_ms`.
fn refusal(cx: &mut Context<'_>, again_ms: u32) -> Reject {
    cx.stats.inc(Counter::UserConnectionsRefused);
    match cx.config.settings.limits.per_user {
        PerUser::Many | PerUser::Newest => Reject {
            reason: Reason::RateLimited,
            text: "this user has too many connections, and all of them answer: close one",
            retry_after_ms: again_ms,
        },
        PerUser::Oldest => Reject::new(
            Reason::Forbidden,
            "this user is connected already, and that connection answers: close it first",
        ),
    }
}

#[cfg(test)]
mod tests;
