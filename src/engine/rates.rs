//! Limits of users and addresses, and of connections that are not known yet: who is let in, whose
//! messages are refused, and who is not read for a while because it goes on nonetheless.
//!
//! All connections of a user are on one shard, so a user's limits are exact. Those of an address
//! are spread over the shards by the kernel, so each shard allows its part, rounded up.

use std::net::IpAddr;

use crate::auth::Identity;
use crate::config::settings::{LimitSettings, PartyLimits, ShardSettings};
use crate::engine::Engine;
use crate::engine::answer::Answer;
use crate::engine::budget::Flow;
use crate::engine::conns::{Conn, Hold, Phase, Window};
use crate::engine::parties::{Address, Over, Parties, Rule, User};
use crate::ids::{ConnId, PartyKey};
use crate::message::{Category, ClientMessage, Micros, Reason, Reject};
use crate::stats::Counter;

/// Messages over a rate that are refused within a second; then the connection is not read for the
/// rest of it. Who waits as told has one or two refusals a second.
pub const REFUSALS_MAX: u32 = 100;
const SECOND_US: u64 = 1_000_000;
/// A connection too many: one is free when another closes, nobody knows when.
const COME_BACK_MS: u32 = 1_000;
/// Parties looked at in a tick when they have no connection: 100,000 a second.
const EXPIRE_BUDGET: usize = 1_000;

/// A connection that is not taken: to be answered with HTTP, where the client speaks it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenRefusal {
    /// 503: the shard has no room for anybody. 429: the address has too many.
    pub status: u16,
    /// A line for people.
    pub text: &'static str,
    /// When to come back.
    pub retry_after_ms: u32,
}

impl OpenRefusal {
    /// No room for anybody.
    pub(super) const FULL: Self = Self::unavailable("this gateway is full; try again later");
    const UNKNOWN: Self =
        Self::unavailable("too many clients are about to sign in; try again later");

    const fn unavailable(text: &'static str) -> Self {
        Self { status: 503, text, retry_after_ms: COME_BACK_MS }
    }

    const fn of_address(text: &'static str, retry_after_ms: u32) -> Self {
        Self { status: 429, text, retry_after_ms }
    }
}

/// What a connection counts for.
#[derive(Debug, Default)]
pub struct Metered {
    /// Its address; [`PartyKey::NONE`] while addresses are not limited.
    pub address: PartyKey,
    /// Its user; [`PartyKey::NONE`] while users are not limited, and before it signed in.
    pub user: PartyKey,
    /// Counted among those that are in the handshake, or must sign in and have not yet.
    pub unknown: bool,
    /// Messages refused in the present second.
    refusals: Window,
}

/// What a shard keeps of limits.
#[derive(Debug)]
pub struct Rates {
    users: Parties<User>,
    addresses: Parties<Address>,
    /// Whether the rate of messages is limited: all that a message asks if it is not.
    meters: bool,
    /// Connections that are not known yet.
    unknown: usize,
    shards: u32,
}

impl Rates {
    /// Nobody yet; `seed` is the hash's.
    pub fn new(settings: &ShardSettings, shards: u16, seed: u64) -> Self {
        let mut rates = Self {
            users: Parties::new(seed),
            addresses: Parties::new(seed),
            meters: false,
            unknown: 0,
            shards: u32::from(shards.max(1)),
        };
        rates.set(settings, Micros(0));
        rates
    }

    /// These hold from now on, for everybody.
    pub fn set(&mut self, settings: &ShardSettings, now: Micros) {
        let LimitSettings { user, address, burst_s, address_unauthenticated_max, .. } =
            settings.limits;
        self.users.set_rule(rule(&user, 0, burst_s, 1), now);
        let rule = rule(&address, address_unauthenticated_max, burst_s, self.shards);
        self.addresses.set_rule(rule, now);
        self.meters = user.messages_per_s > 0 || address.messages_per_s > 0;
    }

    /// Connections that are in the handshake, or must sign in and have not yet.
    pub fn unknown(&self) -> usize {
        self.unknown
    }

    /// Users and addresses that are remembered.
    pub fn len(&self) -> (usize, usize) {
        (self.users.len(), self.addresses.len())
    }

    /// Forgets who is as good as new.
    pub fn expire(&mut self, now: Micros) {
        self.users.expire(EXPIRE_BUDGET, now);
        self.addresses.expire(EXPIRE_BUDGET, now);
    }

    /// The connection goes, or goes to another shard: it counts for nothing here any more.
    pub fn release(&mut self, metered: &mut Metered) {
        let Metered { address, user, unknown, .. } = std::mem::take(metered);
        self.unknown -= usize::from(unknown);
        self.addresses.leave(address, unknown);
        self.users.leave(user, false);
    }

    /// A new connection, of which nobody knows yet who it is.
    pub(super) fn add_unknown(&mut self, metered: &mut Metered) {
        metered.unknown = true;
        self.unknown += 1;
    }

    fn known(&mut self, metered: &mut Metered) {
        if std::mem::take(&mut metered.unknown) {
            self.unknown -= 1;
            self.addresses.known(metered.address);
        }
    }

    /// Counts an open connection for those whose limits were set after it came, or that came from
    /// another shard.
    pub(super) fn count(&mut self, conn: &mut Conn, now: Micros) {
        let metered = &mut conn.metered;
        if self.addresses.is_on() && metered.address == PartyKey::NONE {
            let address = Address::of(conn.identity.peer.ip());
            metered.address = self.addresses.count(&address, metered.unknown, now);
        }
        if self.users.is_on()
            && metered.user == PartyKey::NONE
            && let Some(user) = conn.identity.user.as_deref()
        {
            metered.user = self.users.count(&User::of(user), false, now);
        }
    }
}

/// A shard's part of `limits` where there are `shards`.
fn rule(limits: &PartyLimits, unknown_max: u32, burst_s: u32, shards: u32) -> Rule {
    let part = |n: u32| n.div_ceil(shards);
    let flow = |rate: u32| Flow { rate: part(rate), burst: part(rate).saturating_mul(burst_s) };
    Rule {
        connections_max: part(limits.connections_max),
        unknown_max: part(unknown_max),
        connects: flow(limits.connects_per_s),
        messages: flow(limits.messages_per_s),
    }
}

/// Whole milliseconds, so that who waits that long is not too early.
fn in_ms(us: u64) -> u32 {
    u32::try_from(us.div_ceil(1000)).unwrap_or(u32::MAX)
}

impl Engine {
    /// Whether a connection from `ip` has a place here: if not, another shard may have one.
    pub fn has_room_for(&self, ip: IpAddr) -> bool {
        self.has_room() && !self.rates.addresses.is_full(&Address::of(ip))
    }

    /// Whether the address of a connection that comes home has as many here as it may have on all
    /// shards: moving is no way around the limit of each.
    pub(super) fn is_address_over(&self, ip: IpAddr) -> bool {
        let Rates { addresses, shards, .. } = &self.rates;
        addresses.is_on() && addresses.is_over_whole(&Address::of(ip), *shards)
    }

    /// Takes a new connection in among those that are not known yet, or says that there are too
    /// many.
    pub(super) fn admit_unknown(&mut self) -> Result<(), OpenRefusal> {
        let max = self.settings.limits.unauthenticated_max;
        if max > 0 && self.rates.unknown >= max {
            self.counters.inc(Counter::UnauthenticatedRefused);
            return Err(OpenRefusal::UNKNOWN);
        }
        Ok(())
    }

    /// The address of a connection is known to be `ip`: counts it there, unless that is over a
    /// limit. Called once for a connection, when it is accepted; or, where something stands
    /// before the gateway, when it has said for whom.
    pub(super) fn admit_address(
        &mut self,
        id: ConnId,
        ip: IpAddr,
        now: Micros,
    ) -> Result<(), OpenRefusal> {
        let Self { conns, rates, counters, .. } = self;
        let Some(conn) = conns.get_mut(id).filter(|_| rates.addresses.is_on()) else {
            return Ok(());
        };
        let joined = rates.addresses.join(&Address::of(ip), conn.metered.unknown, now);
        let (counter, refusal) = match joined {
            Ok(key) => {
                conn.metered.address = key;
                return Ok(());
            }
            Err(Over::Connections) => (
                Counter::AddressConnectionsRefused,
                OpenRefusal::of_address("too many connections of your address", COME_BACK_MS),
            ),
            Err(Over::Unknown) => (
                Counter::AddressUnauthenticatedRefused,
                OpenRefusal::of_address(
                    "too many connections of your address have not signed in",
                    COME_BACK_MS,
                ),
            ),
            Err(Over::Rate(us)) => (
                Counter::AddressConnectsRefused,
                OpenRefusal::of_address("too many new connections of your address", in_ms(us)),
            ),
        };
        counters.inc(counter);
        Err(refusal)
    }

    /// A connection is about to be `identity`'s: counts it there, unless that is over a limit. One
    /// that is this user's already stays so, whatever the limits are now.
    pub(super) fn admit_user(
        &mut self,
        id: ConnId,
        identity: &Identity,
        now: Micros,
    ) -> Result<(), Reject> {
        let Self { conns, rates, counters, .. } = self;
        let Some(conn) = conns.get_mut(id).filter(|_| rates.users.is_on()) else {
            return Ok(());
        };
        if conn.identity.user.is_some() || conn.metered.user != PartyKey::NONE {
            return Ok(());
        }
        let (counter, text, retry_after_ms) =
            match rates.users.join(&User::of(identity), false, now) {
                Ok(key) => {
                    conn.metered.user = key;
                    return Ok(());
                }
                Err(Over::Connections | Over::Unknown) => (
                    Counter::UserConnectionsRefused,
                    "this user has too many connections: close one",
                    COME_BACK_MS,
                ),
                Err(Over::Rate(us)) => {
                    (Counter::UserConnectsRefused, "this user connects too often", in_ms(us))
                }
            };
        counters.inc(counter);
        Err(Reject { reason: Reason::RateLimited, text, retry_after_ms })
    }

    /// The connection is not one of the unknown any more: it signed in, or need not.
    pub(super) fn becomes_known(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(id) {
            self.rates.known(&mut conn.metered);
        }
    }

    /// A message that was read: whether it is over a rate, and answered so. The address pays for
    /// it first: what is over the user's rate was read nonetheless.
    #[inline]
    pub(super) fn is_over_rate(
        &mut self,
        id: ConnId,
        message: &ClientMessage<'_>,
        now: Micros,
    ) -> bool {
        self.rates.meters && self.meter(id, message, now)
    }

    fn meter(&mut self, id: ConnId, message: &ClientMessage<'_>, now: Micros) -> bool {
        // Says that the client is there, and wants no answer: as cheap as a control frame, and
        // limited as one, by `frames_per_s_max`.
        if message.seq == 0 && message.kind == "heartbeat" {
            return false;
        }
        let Self { conns, rates, counters, .. } = self;
        let Some(conn) = conns.get_mut(id) else { return false };
        rates.count(conn, now);
        let Metered { address, user, .. } = conn.metered;
        let metered = |rate: u32, key| rate > 0 && key != PartyKey::NONE;
        let mut over = Ok(());
        if metered(rates.addresses.rule().messages.rate, address) {
            over = rates.addresses.take_message(address, now).map_err(|us| {
                counters.inc(Counter::AddressMessagesRefused);
                ("your address sends too many messages a second", us)
            });
        }
        if over.is_ok() && metered(rates.users.rule().messages.rate, user) {
            over = rates.users.take_message(user, now).map_err(|us| {
                counters.inc(Counter::UserMessagesRefused);
                ("this user sends too many messages a second", us)
            });
        }
        let Err((text, us)) = over else { return false };
        let refusals = conn.metered.refusals.add(1, now, SECOND_US);
        // One that is about to be closed is read to its end.
        if refusals >= REFUSALS_MAX && self.drain.is_none() {
            conn.hold(Hold::Rate);
            counters.inc(Counter::ReadHeld);
        }
        let reject = Reject { reason: Reason::RateLimited, text, retry_after_ms: in_ms(us) };
        match self.category(message) {
            Category::Business => {
                self.counters.inc(Counter::BusinessMessages);
                self.reply(id, message.msg_id, message.seq, &Answer::reject(&reject), now);
            }
            category @ (Category::System | Category::Gateway) => {
                self.counters.inc(match category {
                    Category::System => Counter::SystemMessages,
                    Category::Business | Category::Gateway => Counter::GatewayMessages,
                });
                self.own_error(id, message, category, reject, now);
            }
        }
        true
    }

    /// Part of the sweep: counts who is not counted yet, and reads again who was held.
    pub(super) fn check_rates(&mut self, id: ConnId, now: Micros) {
        let Self { conns, rates, effects, .. } = self;
        let Some(conn) = conns.get_mut(id) else { return };
        // Before that it may not be known whose address it is.
        if conn.phase == Phase::Open {
            rates.count(conn, now);
        }
        if conn.metered.refusals.has_ended(now, SECOND_US) {
            conn.release(Hold::Rate, id, now, &mut effects.resumed);
        }
    }

    /// What a client is told of its rate: the least of all that hold. 0 = no limit.
    pub(super) fn messages_per_s_max(&self, id: ConnId) -> u32 {
        let frames = self.conns.get(id).map_or(0, |conn| conn.terms.frames_per_s_max);
        let address = self.rates.addresses.rule().messages.rate;
        let user = match self.auth.verifier {
            Some(_) => self.rates.users.rule().messages.rate,
            None => 0,
        };
        [frames, address, user].into_iter().filter(|rate| *rate > 0).min().unwrap_or(0)
    }

    /// Whether everybody is counted where it should be, once.
    pub(super) fn check_metered(&self) -> Result<(), String> {
        let mut parties = std::collections::BTreeMap::new();
        let mut unknown = 0;
        for (_, conn) in self.conns.iter() {
            let Metered { address, user, .. } = conn.metered;
            unknown += usize::from(conn.metered.unknown);
            for (kind, key, unknown) in [(0, user, false), (1, address, conn.metered.unknown)] {
                let found: &mut (u32, u32) = parties.entry((kind, key)).or_default();
                found.0 += 1;
                found.1 += u32::from(unknown);
            }
        }
        let users = self.rates.users.counts().map(|counts| (0, counts));
        let addresses = self.rates.addresses.counts().map(|counts| (1, counts));
        for (kind, (key, conns, unknown)) in users.chain(addresses) {
            let found = parties.remove(&(kind, key)).unwrap_or_default();
            if found != (conns, unknown) {
                return Err(format!("{key:?}: {conns}, {unknown}, in truth {found:?}"));
            }
        }
        parties.retain(|(_, key), _| *key != PartyKey::NONE);
        match parties.first_key_value() {
            Some(lost) => Err(format!("connections of a party that is gone: {lost:?}")),
            None if unknown != self.rates.unknown => {
                Err(format!("unknown: {}, in truth {unknown}", self.rates.unknown))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
