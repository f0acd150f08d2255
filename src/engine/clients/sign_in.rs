//! Signing in: tokens shown at the upgrade or in an `auth` message, verified in a budget a turn;
//! their expiry; and connections that show none in time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::auth::{
    GROUP_BYTES_MAX, GROUPS_MAX, Identity, KeyOwner, NotAccepted, Refusal, Verifier,
};
use crate::config::settings::AuthSettings;
use crate::engine::Context;
use crate::engine::clients::conn::{Hold, MoveCause, Moving, PendingAuth, Phase, Token};
use crate::engine::clients::limits::{CountedUser, NotCounted};
use crate::engine::clients::session::tenant_of;
use crate::engine::clients::token_turns::TokenTurns;
use crate::engine::clients::{Clients, mark_dirty};
use crate::engine::refusals::Cause;
use crate::ids::ConnId;
use crate::message::{Category, ClientMessage, Micros, Reason, Reject, ServerMessage};
use crate::origin::PageOrigin;
use crate::stats::Counter;
use crate::wire::{client, close};

/// Time between two requests to control for newer keys. Control has a limit of its own; this one
/// keeps the requests few.
const ASK_EVERY_US: u64 = 1_000_000;

/// The state of signing in on a shard.
#[derive(Debug, Default)]
pub struct SignIn {
    /// `None`: nobody signs in.
    pub verifier: Option<Arc<Verifier>>,
    /// Whether every connection needs a token.
    pub required: bool,
    /// Owners of whom newer keys were asked for less than [`ASK_EVERY_US`] ago, with the times: at
    /// most one for each set that is fetched.
    asked: Vec<(KeyOwner, Micros)>,
    /// Turns in which tokens are verified.
    pub turns: TokenTurns,
}

impl SignIn {
    /// Replaces the verifier and whether a token is required.
    pub fn set(&mut self, verifier: Option<Arc<Verifier>>, settings: &AuthSettings) {
        self.required = verifier.is_some() && settings.required;
        self.verifier = verifier;
    }

    /// Whether there may be tenants, with pages of their own, that are not known yet.
    pub fn awaits_tenants(&self) -> bool {
        self.verifier.as_ref().is_some_and(|verifier| verifier.awaits_tenants())
    }

    /// Whether newer keys of an owner may be asked for now; then they are.
    fn may_ask(&mut self, owner: &KeyOwner, now: Micros) -> bool {
        self.asked.retain(|(_, at)| now.since(*at) < ASK_EVERY_US);
        let may = !self.asked.iter().any(|(asked, _)| asked == owner);
        if may {
            self.asked.push((owner.clone(), now));
        }
        may
    }
}

/// The outcome of looking for a token to verify.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NextVerification {
    /// Nothing, or the budget is spent.
    None,
    /// An `auth` message: it is answered.
    Done,
    /// An upgrade request with a token: its handshake goes on.
    Upgrade(ConnId),
}

/// The outcome of verifying a token.
#[derive(Clone, Debug)]
pub(crate) enum Verified {
    /// The token of this user.
    Good(Identity),
    /// The token is not valid: the reason, as the client is told.
    Bad(String),
    /// Its key or its tenant may be known soon: the token can be neither accepted nor refused.
    Later,
}

/// The decision on an upgrade request.
pub(crate) enum UpgradeDecision {
    /// Upgraded, as a user or (`None`) without one.
    As(Option<(Identity, CountedUser)>),
    /// Not now, or not here: the connection waits, and its request is held.
    Later,
    /// Not at all: status, reason, and when to come back in milliseconds (0 = not told).
    Refused(u16, String, u32),
}

pub(super) const TOKEN_LATER: Reject = Reject::later(
    Reason::Unavailable,
    "the gateway can neither accept nor refuse the token at the moment: send it again",
    1_000,
);
const TOO_MANY_TOKENS: Reject = Reject::later(
    Reason::Unavailable,
    "too many tokens of this user or address wait to be verified: send the token again later",
    1_000,
);
const SOMEBODY_ELSE: Reject = Reject::new(
    Reason::Forbidden,
    "this connection belongs to another user: open one for this user",
);

const OTHER_PAGE: Reject = Reject::new(
    Reason::Forbidden,
    "users of this tenant may not sign in from pages of this origin",
);

impl Clients {
    fn verify(&mut self, cx: &mut Context<'_>, token: &str, now: Micros) -> Verified {
        let Some(verifier) = &self.sign_in.verifier else { return Verified::Later };
        match verifier.judge(token, cx.config.unix_s(now)) {
            Ok(identity) => {
                cx.stats.inc(Counter::AuthOk);
                note_groups_left_out(cx, identity.groups_left_out);
                Verified::Good(identity)
            }
            Err(NotAccepted::LacksKeys(owner)) => {
                cx.stats.inc(Counter::AuthKeysMissing);
                // Ours may be too old.
                if self.sign_in.may_ask(&owner, now) {
                    cx.effects.keys_wanted.push(owner);
                }
                Verified::Later
            }
            Err(NotAccepted::AwaitsTenant) => {
                cx.stats.inc(Counter::AuthKeysMissing);
                Verified::Later
            }
            Err(NotAccepted::Refused(refusal)) => {
                let told = verifier.told(refusal);
                let counter = counter(refusal);
                cx.stats.inc(counter);
                if let Some(count) = cx.stats.refusals.note(Cause::Counted(counter), now) {
                    tracing::warn!(
                        shard = cx.config.shard.0,
                        why = refusal.label(),
                        count,
                        "token_refused: the token of a client is not accepted; `shardgate check \
                         token` explains one"
                    );
                }
                Verified::Bad(told)
            }
        }
    }

    /// Decides on an upgrade that shows `token`, of a client in `page`. The caller holds the
    /// request of one that waits.
    pub fn decide_upgrade(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        token: Option<&str>,
        page: Option<&PageOrigin>,
        now: Micros,
    ) -> UpgradeDecision {
        let conn = self.conns.get_mut(id).expect("the caller has it");
        // It came from another shard, which has verified the token.
        if let Some(Moving { cause: MoveCause::SignIn { identity, .. }, .. }) =
            conn.moving.take().map(|moving| *moving)
        {
            conn.release(Hold::Move, id, now, &mut cx.effects.resumed);
            return self.enter_as(cx, id, identity, now);
        }
        // It has waited for its place.
        if let Some(newcomer) = conn.newcomer.take() {
            conn.release(Hold::Place, id, now, &mut cx.effects.resumed);
            return self.enter_as(cx, id, newcomer.identity, now);
        }
        let (Some(token), true) = (token, self.sign_in.verifier.is_some()) else {
            return UpgradeDecision::As(None);
        };
        if !self.sign_in.turns.take(id) {
            return match self.wait_for_turn(cx, id, PendingAuth::Request) {
                Ok(()) => UpgradeDecision::Later,
                Err(Reject { text, retry_after_ms, .. }) => {
                    UpgradeDecision::Refused(503, text.into(), retry_after_ms)
                }
            };
        }
        match self.verify(cx, token, now) {
            Verified::Good(identity) if !may_sign_in(cx, page, &identity, now) => {
                UpgradeDecision::Refused(403, OTHER_PAGE.text.into(), 0)
            }
            Verified::Good(identity) if self.lives_elsewhere(cx, &identity) => {
                self.move_home(cx, id, identity, 0);
                UpgradeDecision::Later
            }
            Verified::Good(identity) => self.enter_as(cx, id, identity, now),
            Verified::Bad(why) => UpgradeDecision::Refused(401, why, 0),
            Verified::Later => {
                UpgradeDecision::Refused(503, TOKEN_LATER.text.into(), TOKEN_LATER.retry_after_ms)
            }
        }
    }

    fn enter_as(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        identity: Identity,
        now: Micros,
    ) -> UpgradeDecision {
        match self.count_user(cx, id, &identity, now) {
            Ok(counted) => UpgradeDecision::As(Some((identity, counted))),
            Err(NotCounted::Waits) => {
                self.set_newcomer(id, identity, 0);
                UpgradeDecision::Later
            }
            Err(NotCounted::Refused(reject)) => {
                let status = upgrade_status(&reject);
                UpgradeDecision::Refused(status, reject.text.into(), reject.retry_after_ms)
            }
        }
    }

    /// Goes on with a connection from `page` that is open now: signs it in, or gives it the time
    /// to show a token.
    pub fn entered(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        user: Option<(Identity, CountedUser)>,
        page: Option<PageOrigin>,
        now: Micros,
    ) {
        let needs = self.sign_in.required || page.as_ref().is_some_and(PageOrigin::is_of_tenant);
        let timeout_us = cx.config.gateway.auth.timeout.as_micros() as u64;
        let conn = self.conns.get_mut(id).expect("the caller has it");
        conn.page = page.map(Box::new);
        match user {
            Some((identity, counted)) => self.become_user(cx, id, 0, identity, counted, now),
            None if needs => conn.auth_by = Micros(now.0 + timeout_us),
            None => self.becomes_authenticated(id),
        }
    }

    /// An `auth` message. The answer may come in a later turn; until then nothing more is read.
    pub fn on_auth(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        message: &ClientMessage<'_>,
        now: Micros,
    ) -> Result<(), Reject> {
        const FORM: Reject =
            Reject::new(Reason::BadMessage, "the payload must be {\"token\": text}");
        const OFF: Reject = Reject::new(
            Reason::Unimplemented,
            "this gateway takes no tokens: send your messages without auth",
        );
        let encoding = self.conns.get(id).expect("the caller has it").encoding;
        if self.sign_in.verifier.is_none() {
            return Err(OFF);
        }
        let Some(token) = client::read_auth(encoding, message.payload) else {
            return Err(FORM);
        };
        if !self.sign_in.turns.take(id) {
            let pending = PendingAuth::Message { seq: message.seq, token: Token(token) };
            return self.wait_for_turn(cx, id, pending);
        }
        self.authenticate(cx, id, message.seq, &token, now);
        Ok(())
    }

    fn authenticate(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        seq: u64,
        token: &str,
        now: Micros,
    ) {
        match self.verify(cx, token, now) {
            Verified::Good(identity) if !self.is_in_its_page(cx, id, &identity, now) => {
                self.refuse_token(cx, id, seq, OTHER_PAGE.reason, OTHER_PAGE.text, now);
            }
            Verified::Good(identity) => self.take_identity(cx, id, seq, identity, now),
            Verified::Bad(why) => {
                self.refuse_token(cx, id, seq, Reason::Unauthenticated, &why, now);
            }
            Verified::Later => {
                self.conns.get_mut(id).expect("the caller has it").token_later = true;
                let Reject { reason, text, retry_after_ms, .. } = TOKEN_LATER;
                self.tell_error(cx, id, seq, reason, text, retry_after_ms);
            }
        }
    }

    /// Tells the client why its token is not accepted, and closes the connection.
    fn refuse_token(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        seq: u64,
        reason: Reason,
        why: &str,
        now: Micros,
    ) {
        self.tell_error(cx, id, seq, reason, why, 0);
        cx.stats.inc(Counter::ClosedBadToken);
        self.close(
            cx,
            id,
            close::BAD_TOKEN,
            "the token was refused: connect again with another one",
            now,
        );
    }

    /// Whether a user may sign in from the page that the connection is from.
    fn is_in_its_page(
        &self,
        cx: &mut Context<'_>,
        id: ConnId,
        identity: &Identity,
        now: Micros,
    ) -> bool {
        let page = self.conns.get(id).and_then(|conn| conn.page.as_deref());
        may_sign_in(cx, page, identity, now)
    }

    fn take_identity(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        seq: u64,
        identity: Identity,
        now: Micros,
    ) {
        let Some(conn) = self.conns.get(id) else { return };
        let same =
            |known: &Identity| (&known.user, &known.tenant) == (&identity.user, &identity.tenant);
        match conn.session.user() {
            Some(known) if !same(known) => {
                self.tell_error(cx, id, seq, SOMEBODY_ELSE.reason, SOMEBODY_ELSE.text, 0);
            }
            None if self.lives_elsewhere(cx, &identity) => self.move_home(cx, id, identity, seq),
            Some(_) | None => self.welcome_user(cx, id, seq, identity, now),
        }
    }

    /// The user signs in on this shard and is told so, unless that is one connection too many.
    pub fn welcome_user(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        seq: u64,
        identity: Identity,
        now: Micros,
    ) {
        match self.count_user(cx, id, &identity, now) {
            Ok(counted) => {
                self.begin_session(cx, id);
                self.become_user(cx, id, seq, identity, counted, now);
            }
            Err(NotCounted::Waits) => self.set_newcomer(id, identity, seq),
            Err(NotCounted::Refused(reject)) => self.turn_away(cx, id, seq, &reject, now),
        }
    }

    /// Refuses a user who signs in by a message, and closes the connection.
    pub fn turn_away(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        seq: u64,
        reject: &Reject,
        now: Micros,
    ) {
        let Reject { reason, text, retry_after_ms, .. } = *reject;
        self.tell_error(cx, id, seq, reason, text, retry_after_ms);
        let (counter, code) = match reason == Reason::Forbidden {
            true => (Counter::ClosedElsewhere, close::SIGNED_IN_ELSEWHERE),
            false => (Counter::ClosedTryLater, close::TRY_LATER),
        };
        cx.stats.inc(counter);
        self.close(cx, id, code, text, now);
    }

    /// Gives a client that signs in by a message a session of its own: what was known of the one
    /// before is worth nothing any more (session fixation). The order of its messages holds.
    fn begin_session(&mut self, cx: &mut Context<'_>, id: ConnId) {
        if self.conns.get(id).is_none_or(|conn| conn.session.user().is_some()) {
            return;
        }
        self.ends_as_replaced(cx, id);
        let new = self.new_session_id(cx);
        let Some(conn) = self.conns.get_mut(id) else { return };
        self.sessions.end_resumption(cx.stats, &mut conn.session);
        self.sessions.index.remove(&conn.session);
        conn.session.begin_anew(new);
        self.sessions.index.add(&conn.session);
    }

    /// Makes the connection one of a user that is counted, and tells the client.
    fn become_user(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        seq: u64,
        identity: Identity,
        counted: CountedUser,
        now: Micros,
    ) {
        let conn = self.conns.get_mut(id).expect("the caller has it");
        let ok = client::AuthOk {
            user: identity.user.to_string(),
            tenant: identity.tenant.as_deref().unwrap_or_default().to_owned(),
            expires_unix_s: identity.expires_unix_s,
            session: conn.session.id.as_str().to_owned(),
        };
        let payload = client::payload(conn.encoding, &ok);
        self.sessions.index.remove(&conn.session);
        conn.session.sign_in(identity);
        self.sessions.index.add(&conn.session);
        conn.token_later = false;
        conn.auth_by = Micros(u64::MAX);
        conn.page = None;
        self.limits.enter(id, &mut conn.limits, counted);
        self.becomes_authenticated(id);
        let (kind, payload) = ("auth_ok", &payload[..]);
        let message = ServerMessage { seq, kind, payload, ..ServerMessage::default() };
        self.reply(cx, id, Some(Category::System), &message);
        if let Some(key) = self.key_at(id) {
            self.follow_claims(cx, key, now);
        }
    }

    /// Not read until it has had its turn.
    fn wait_for_turn(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        pending: PendingAuth,
    ) -> Result<(), Reject> {
        let conn = self.conns.get_mut(id).expect("the caller has it");
        if !self.sign_in.turns.wait(id, conn.session.holder().party) {
            cx.stats.inc(Counter::AuthWaitRefused);
            conn.token_later = true;
            return Err(TOO_MANY_TOKENS);
        }
        conn.pending_auth = Some(Box::new(pending));
        conn.hold(Hold::Token);
        cx.stats.inc(Counter::AuthDelayed);
        Ok(())
    }

    /// Verifies the next token that waits, if the turn's budget is not spent. Each connection whose
    /// token was looked at is read again, so that another turn follows while any token waits.
    pub fn verify_next(&mut self, cx: &mut Context<'_>, now: Micros) -> NextVerification {
        let Some(id) = self.sign_in.turns.call_next() else { return NextVerification::None };
        let Some(conn) = self.conns.get_mut(id) else { return NextVerification::Done };
        let Some(pending) = conn.pending_auth.take() else { return NextVerification::Done };
        conn.release(Hold::Token, id, now, &mut cx.effects.resumed);
        let next = match (*pending, conn.phase) {
            (PendingAuth::Message { seq, token }, Phase::Open) => {
                if self.sign_in.turns.take(id) {
                    self.authenticate(cx, id, seq, &token.0, now);
                }
                NextVerification::Done
            }
            (PendingAuth::Request, Phase::Handshake) => NextVerification::Upgrade(id),
            // Closed meanwhile: only the end of its bytes is awaited.
            (PendingAuth::Message { .. } | PendingAuth::Request, _) => {
                conn.handshake = None;
                NextVerification::Done
            }
        };
        if let Some(conn) = self.conns.get_mut(id) {
            mark_dirty(conn, id, cx.effects);
        }
        next
    }

    /// Part of the sweep: whether the connection was closed for want of a valid token.
    pub fn check_identity(&mut self, cx: &mut Context<'_>, id: ConnId, now: Micros) -> bool {
        let Some(conn) = self.conns.get(id).filter(|c| c.phase == Phase::Open) else {
            return false;
        };
        let expires = conn.session.user().map(|user| user.expires_unix_s);
        if expires.is_some_and(|at| at <= cx.config.unix_s(now)) {
            cx.stats.inc(Counter::ClosedTokenExpired);
            self.close(
                cx,
                id,
                close::TOKEN_EXPIRED,
                "the token has expired: connect again with a new one",
                now,
            );
            return true;
        }
        // A reload switched `auth.required` off.
        let needs = self.sign_in.required || conn.is_of_tenants_page();
        if !needs && conn.limits.unauthenticated {
            let conn = self.conns.get_mut(id).expect("just seen");
            conn.auth_by = Micros(u64::MAX);
            self.becomes_authenticated(id);
            return false;
        }
        let is_ours = conn.waits_for_us();
        let is_late = conn.auth_by <= now && !self.is_catching_up(now);
        if is_late && needs && !is_ours {
            cx.stats.inc(Counter::ClosedNoAuth);
            self.close(
                cx,
                id,
                close::NO_AUTH,
                "no token came in time: connect again and send auth first",
                now,
            );
            return true;
        }
        false
    }
}

/// The HTTP status of a user's refusal at the upgrade.
pub fn upgrade_status(reject: &Reject) -> u16 {
    if reject.reason == Reason::Forbidden { 403 } else { 429 }
}

/// Whether a user may sign in from `page`. A client without one is no browser's.
fn may_sign_in(
    cx: &mut Context<'_>,
    page: Option<&PageOrigin>,
    identity: &Identity,
    now: Micros,
) -> bool {
    let Some(page) = page else { return true };
    let tenant = cx.config.snapshot.tenants.get(tenant_of(identity));
    let may = page.may_sign_in(tenant.map_or(&[], |tenant| &tenant.origins));
    if !may {
        let counter = Counter::AuthRefusedOrigin;
        cx.stats.inc(counter);
        if let Some(count) = cx.stats.refusals.note(Cause::Counted(counter), now) {
            tracing::warn!(
                shard = cx.config.shard.0,
                tenant = identity.tenant.as_deref().unwrap_or_default(),
                origin = page.text(),
                count,
                "tenant_origin_refused: a user did not sign in, because the page is not one of the \
                 tenant's; if it is, add its origin to the origins of the tenant, or to the key \
                 origins if the tenant has none"
            );
        }
    }
    may
}

/// Counts groups of a token that were left out, and says so once in the life of the process: a
/// provider that writes them so writes them into every token.
fn note_groups_left_out(cx: &mut Context<'_>, left_out: u32) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if left_out == 0 {
        return;
    }
    cx.stats.add(Counter::AuthGroupsLeftOut, left_out.into());
    if !SAID.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            left_out,
            "groups_left_out: a token has groups that are not kept, and signs its user in all the \
             same; kept are {GROUPS_MAX} strings of 1 to {GROUP_BYTES_MAX} bytes without control \
             characters. Said once; counted as auth_groups_left_out"
        );
    }
}

/// The counter of a refusal.
fn counter(refusal: Refusal) -> Counter {
    match refusal {
        Refusal::TooLong
        | Refusal::Malformed
        | Refusal::Duplicate
        | Refusal::Header
        | Refusal::BringsKey
        | Refusal::Critical
        | Refusal::Type => Counter::AuthRefusedForm,
        Refusal::Algorithm | Refusal::UnknownKey | Refusal::NoKeyId => Counter::AuthRefusedKey,
        Refusal::Signature => Counter::AuthRefusedSignature,
        Refusal::Missing(_) | Refusal::BadClaim(_) => Counter::AuthRefusedClaim,
        Refusal::Expired | Refusal::NotYet | Refusal::IssuedInFuture => Counter::AuthRefusedTime,
        Refusal::UnknownTenant | Refusal::AwaitedTenant | Refusal::Issuer | Refusal::Audience => {
            Counter::AuthRefusedParty
        }
    }
}

#[cfg(test)]
pub(in crate::engine) mod tests;
