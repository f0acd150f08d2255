//! Who a client is: tokens shown at the upgrade or in an `auth` message, in a budget a turn; when
//! they expire, and connections that show none in time.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::auth::{Identity, Refusal, Verifier};
use crate::config::settings::AuthSettings;
use crate::engine::Engine;
use crate::engine::answer::mark_dirty;
use crate::engine::conns::{Hold, Phase};
use crate::engine::inbound::close;
use crate::ids::{ConnId, TenantId};
use crate::message::{Category, ClientMessage, Micros, Reason, Reject, ServerMessage};
use crate::routing::affinity_hash;
use crate::stats::Counter;
use crate::wire::client;

/// Tokens verified in a turn; those over it wait for the next one. A signature is the costliest
/// thing that somebody unknown can ask for, so few of them stand between two looks at those who
/// talk.
pub const VERIFICATIONS_PER_TURN: u32 = 8;

/// Between two questions for newer keys; control has a limit of its own, and this one keeps what is
/// said to it few.
const ASK_EVERY_US: u64 = 1_000_000;

/// What a paused connection waits with for its turn.
#[derive(Debug)]
pub enum Shown {
    /// A complete upgrade request: held in `Conn::handshake`.
    Request,
    /// An `auth` message. The token is shown by no `Debug`.
    Message {
        /// Its seq.
        seq: u64,
        /// What it holds.
        token: Token,
    },
}

/// A token, not shown by `Debug`.
pub struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<redacted>")
    }
}

/// What a shard keeps of signing in.
#[derive(Debug)]
pub struct Auth {
    /// `None`: nobody signs in.
    pub verifier: Option<Arc<Verifier>>,
    /// Whether every connection needs a token.
    pub required: bool,
    /// Unix time of [`Micros`] 0 by the wall clock of today. Claims are about the wall clock, so
    /// a step of it counts for them and for nothing else; the shell tells it at each tick.
    pub unix_at_boot_us: i64,
    /// When newer keys were asked for.
    asked: Option<Micros>,
    /// Verifications that are left in this turn.
    left: u32,
    /// Connections with something to verify, first come first served.
    waiting: VecDeque<ConnId>,
}

impl Auth {
    /// Nobody waits.
    pub fn new(unix_at_boot_us: i64) -> Self {
        let (waiting, left) = (VecDeque::new(), VERIFICATIONS_PER_TURN);
        let (verifier, required, asked) = (None, false, None);
        Self { verifier, required, unix_at_boot_us, asked, left, waiting }
    }

    /// Who signs in by what from now on.
    pub fn set(&mut self, verifier: Option<Arc<Verifier>>, settings: &AuthSettings) {
        self.required = verifier.is_some() && settings.required;
        self.verifier = verifier;
    }

    /// Seconds since 1970.
    fn unix_s(&self, now: Micros) -> i64 {
        self.unix_at_boot_us.saturating_add(now.0 as i64).div_euclid(1_000_000)
    }

    /// Whether one may be verified now: nobody waits longer, and the turn's budget is not spent.
    fn take_turn(&mut self) -> bool {
        let may = self.left > 0 && self.waiting.is_empty();
        self.left -= u32::from(may);
        may
    }
}

/// What became of a token.
#[derive(Clone, Debug)]
pub(super) enum Verified {
    /// Whose it is.
    Good(Identity),
    /// It is nobody's.
    Bad(Refusal),
    /// Its key is not known, and may be soon: nothing can be said of it.
    NoKeys,
}

/// How an upgrade with a token goes on.
pub(super) enum Entry {
    /// As this; `None` = without a name.
    As(Option<Identity>),
    /// Not now, or not here: the connection waits, and its request is held.
    Later,
    /// Not at all: status, reason, and when to come back in milliseconds (0 = not told).
    Refused(u16, String, u32),
}

const NO_KEYS: Reject = Reject {
    reason: Reason::Unavailable,
    text: "the keys of tokens cannot be had at the moment",
    retry_after_ms: 1_000,
};
const SOMEBODY_ELSE: Reject =
    Reject::new(Reason::Forbidden, "this connection is another user's: open one of your own");

impl Engine {
    /// The wall clock, told by the shell: see [`Auth::unix_at_boot_us`].
    pub fn set_wall_clock(&mut self, unix_us: i64, now: Micros) {
        self.auth.unix_at_boot_us = unix_us.saturating_sub(now.0 as i64);
    }

    fn verify(&mut self, token: &str, now: Micros) -> Verified {
        let Some(verifier) = &self.auth.verifier else { return Verified::NoKeys };
        if !verifier.has_keys() {
            return self.lacks_keys(now);
        }
        let unix_s = self.auth.unix_s(now);
        match verifier.verify(token, unix_s) {
            Ok(identity) => {
                self.counters.inc(Counter::AuthOk);
                Verified::Good(identity)
            }
            Err(_) if verifier.key_may_come(token, unix_s) => self.lacks_keys(now),
            Err(refusal) => {
                self.counters.inc(counter(refusal));
                tracing::debug!(shard = self.shard.0, why = refusal.label(), "token_refused");
                Verified::Bad(refusal)
            }
        }
    }

    /// It is our keys that may be too old: control is asked for newer ones.
    fn lacks_keys(&mut self, now: Micros) -> Verified {
        self.counters.inc(Counter::AuthKeysMissing);
        if self.auth.asked.is_none_or(|at| now.since(at) >= ASK_EVERY_US) {
            self.auth.asked = Some(now);
            self.effects.keys_wanted = true;
        }
        Verified::NoKeys
    }

    /// What an upgrade that shows `token` becomes. One that waits is held by the caller.
    pub(super) fn enter_with(&mut self, id: ConnId, token: Option<&str>, now: Micros) -> Entry {
        let conn = self.conns.get_mut(id).expect("the caller has it");
        // It came from another shard, which has verified the token.
        if let Some(moved) = conn.moving.take() {
            conn.release(Hold::Move, id, now, &mut self.effects.resumed);
            return self.enter_as(id, moved.identity, now);
        }
        let (Some(token), true) = (token, self.auth.verifier.is_some()) else {
            return Entry::As(None);
        };
        if !self.auth.take_turn() {
            self.wait_for_turn(id, Shown::Request);
            return Entry::Later;
        }
        match self.verify(token, now) {
            Verified::Good(identity) if self.is_away(&identity) => {
                self.set_moving(id, identity, 0);
                Entry::Later
            }
            Verified::Good(identity) => self.enter_as(id, identity, now),
            Verified::Bad(refusal) => Entry::Refused(401, refusal.text(), 0),
            Verified::NoKeys => Entry::Refused(503, NO_KEYS.text.into(), NO_KEYS.retry_after_ms),
        }
    }

    fn enter_as(&mut self, id: ConnId, identity: Identity, now: Micros) -> Entry {
        match self.admit_user(id, &identity, now) {
            Ok(()) => Entry::As(Some(identity)),
            Err(Reject { text, retry_after_ms, .. }) => {
                Entry::Refused(429, text.into(), retry_after_ms)
            }
        }
    }

    /// The connection is open: it is told who it is, or by when it must say so.
    pub(super) fn entered(&mut self, id: ConnId, identity: Option<Identity>, now: Micros) {
        let needs = self.auth.required;
        let timeout_us = self.gateway.auth.timeout.as_micros() as u64;
        let conn = self.conns.get_mut(id).expect("the caller has it");
        match identity {
            Some(identity) => self.welcome_user(id, 0, identity, now),
            None if needs => conn.auth_by = Micros(now.0 + timeout_us),
            None => self.becomes_known(id),
        }
    }

    /// An `auth` message. The answer may come in a later turn; until then nothing more is read.
    pub(super) fn on_auth(&mut self, id: ConnId, message: &ClientMessage<'_>, now: Micros) {
        const FORM: Reject =
            Reject::new(Reason::BadMessage, "the payload must be {\"token\": text}");
        const OFF: Reject = Reject::new(Reason::Unimplemented, "nobody signs in to this gateway");
        let encoding = self.conns.get(id).expect("the caller has it").encoding;
        if self.auth.verifier.is_none() {
            self.own_error(id, message, Category::System, OFF, now);
            return;
        }
        let Some(token) = client::read_auth(encoding, message.payload) else {
            self.own_error(id, message, Category::System, FORM, now);
            return;
        };
        if self.auth.take_turn() {
            self.authenticate(id, message.seq, &token, now);
        } else {
            self.wait_for_turn(id, Shown::Message { seq: message.seq, token: Token(token) });
        }
    }

    fn authenticate(&mut self, id: ConnId, seq: u64, token: &str, now: Micros) {
        match self.verify(token, now) {
            Verified::Good(identity) => self.take_identity(id, seq, identity, now),
            Verified::Bad(refusal) => {
                self.auth_error(id, seq, Reason::Unauthenticated, &refusal.text(), 0);
                self.counters.inc(Counter::ClosedBadToken);
                self.close(id, close::BAD_TOKEN, "bad token", now);
            }
            Verified::NoKeys => {
                let Reject { reason, text, retry_after_ms } = NO_KEYS;
                self.auth_error(id, seq, reason, text, retry_after_ms);
            }
        }
    }

    fn take_identity(&mut self, id: ConnId, seq: u64, identity: Identity, now: Micros) {
        let Some(conn) = self.conns.get(id) else { return };
        let same =
            |known: &Identity| (&known.user, &known.tenant) == (&identity.user, &identity.tenant);
        match conn.identity.user.as_deref() {
            Some(known) if !same(known) => {
                self.auth_error(id, seq, SOMEBODY_ELSE.reason, SOMEBODY_ELSE.text, 0);
            }
            None if self.is_away(&identity) => self.set_moving(id, identity, seq),
            Some(_) | None => self.welcome_user(id, seq, identity, now),
        }
    }

    /// The user signs in on this shard and is told so, unless that is one connection too many.
    pub(super) fn welcome_user(&mut self, id: ConnId, seq: u64, identity: Identity, now: Micros) {
        if let Err(Reject { reason, text, retry_after_ms }) = self.admit_user(id, &identity, now) {
            self.auth_error(id, seq, reason, text, retry_after_ms);
            self.counters.inc(Counter::ClosedTryLater);
            self.close(id, close::TRY_LATER, text, now);
            return;
        }
        self.sign_in(id, identity);
        self.counters.add(Counter::Answers, u64::from(seq > 0));
        self.send_auth_ok(id, seq);
    }

    /// From now on the connection is this user's.
    fn sign_in(&mut self, id: ConnId, identity: Identity) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.sender = conn.sender.signed_in(tenant_of(&identity), &identity.user);
        conn.identity.user = Some(Arc::new(identity));
        conn.auth_by = Micros(u64::MAX);
        self.becomes_known(id);
    }

    fn send_auth_ok(&mut self, id: ConnId, seq: u64) {
        let Some(conn) = self.conns.get(id) else { return };
        let Some(user) = &conn.identity.user else { return };
        let ok = client::AuthOk {
            user: user.user.to_string(),
            tenant: user.tenant.as_deref().unwrap_or_default().to_owned(),
            expires_unix_s: user.expires_unix_s,
        };
        let payload = client::payload(conn.encoding, &ok);
        let (kind, payload) = ("auth_ok", &payload[..]);
        self.send(id, &ServerMessage { seq, kind, payload, ..ServerMessage::default() });
    }

    /// Told at once even for a one-way message: the connection may be closed next.
    pub(super) fn auth_error(
        &mut self,
        id: ConnId,
        seq: u64,
        reason: Reason,
        text: &str,
        after_ms: u32,
    ) {
        self.counters.inc(Counter::SystemErrors);
        self.counters.add(Counter::Answers, u64::from(seq > 0));
        self.reasons[reason as usize] += 1;
        self.send(
            id,
            &ServerMessage {
                seq,
                kind: "error",
                status: reason.status(),
                message: text,
                reason: Some(reason),
                retry_after_ms: after_ms,
                ..ServerMessage::default()
            },
        );
    }

    /// Not read until it has had its turn.
    fn wait_for_turn(&mut self, id: ConnId, shown: Shown) {
        let conn = self.conns.get_mut(id).expect("the caller has it");
        conn.shown = Some(Box::new(shown));
        conn.hold(Hold::Token);
        self.counters.inc(Counter::AuthDelayed);
        self.auth.waiting.push_back(id);
    }

    /// At the end of a turn: a new budget, and those who wait spend it first. Each of them comes
    /// back through `resumed`, so that another turn follows while anybody waits.
    pub(super) fn go_on_signing_in(&mut self, now: Micros) {
        self.auth.left = VERIFICATIONS_PER_TURN;
        while self.auth.left > 0
            && let Some(id) = self.auth.waiting.pop_front()
        {
            let Some(conn) = self.conns.get_mut(id) else { continue };
            let Some(shown) = conn.shown.take() else { continue };
            conn.release(Hold::Token, id, now, &mut self.effects.resumed);
            match (*shown, conn.phase) {
                (Shown::Message { seq, token }, Phase::Open) => {
                    self.auth.left -= 1;
                    self.authenticate(id, seq, &token.0, now);
                }
                (Shown::Request, Phase::Handshake) => self.retry_upgrade(id, now),
                // Closed meanwhile: only the end of its bytes is awaited.
                (Shown::Message { .. } | Shown::Request, _) => conn.handshake = None,
            }
            if let Some(conn) = self.conns.get_mut(id) {
                mark_dirty(conn, id, &mut self.effects.dirty);
            }
        }
    }

    /// The held request goes its way again, with a turn of its own.
    fn retry_upgrade(&mut self, id: ConnId, now: Micros) {
        // The others wait, but this one is first among them.
        let waiting = std::mem::take(&mut self.auth.waiting);
        self.shake_hands(id, &mut [], now);
        // Frames behind the request may hold another `auth`: that one goes to the end.
        let again = std::mem::replace(&mut self.auth.waiting, waiting);
        self.auth.waiting.extend(again);
    }

    /// Part of the sweep: whether the connection was closed for want of a valid token.
    pub(super) fn check_identity(&mut self, id: ConnId, now: Micros) -> bool {
        let Some(conn) = self.conns.get(id).filter(|c| c.phase == Phase::Open) else {
            return false;
        };
        let expires = conn.identity.user.as_deref().map(|user| user.expires_unix_s);
        if expires.is_some_and(|at| at <= self.auth.unix_s(now)) {
            self.counters.inc(Counter::ClosedTokenExpired);
            self.close(id, close::TOKEN_EXPIRED, "the token has expired", now);
            return true;
        }
        // Nobody needs a token any more.
        if !self.auth.required && conn.metered.unknown {
            let conn = self.conns.get_mut(id).expect("just seen");
            conn.auth_by = Micros(u64::MAX);
            self.becomes_known(id);
            return false;
        }
        // While its token or itself waits it is our turn.
        let is_ours = conn.shown.is_some() || conn.moving.is_some();
        if conn.auth_by <= now && self.auth.required && !is_ours {
            self.counters.inc(Counter::ClosedNoAuth);
            self.close(id, close::NO_AUTH, "no token in time", now);
            return true;
        }
        false
    }
}

/// The tenant of a signed-in user.
fn tenant_of(identity: &Identity) -> TenantId {
    TenantId::of(identity.tenant.as_deref().unwrap_or_default())
}

/// The affinity hash of a user, which also picks its home shard.
pub(super) fn user_hash(identity: &Identity) -> u64 {
    affinity_hash(tenant_of(identity), identity.user.as_bytes())
}

/// Where a refusal is counted.
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
        Refusal::Issuer | Refusal::Audience => Counter::AuthRefusedParty,
    }
}

#[cfg(test)]
pub(super) mod tests;
