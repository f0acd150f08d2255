//! Limits of users and addresses, and of connections that have not signed in: which connections are
//! let in, which messages are refused, and which connections are not read for the rest of a second
//! because their clients ignore refusals.
//!
//! All connections of a user are on one shard, so a user's limits are exact. Those of an address
//! are spread over the shards by the kernel, so each shard allows its part, rounded up.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::auth::Identity;
use crate::config::settings::{ClientLimitSettings, LimitSettings, ShardSettings};
use crate::engine::Context;
use crate::engine::clients::Clients;
use crate::engine::clients::address_places::{AddressPlaces, Places};
use crate::engine::clients::conn::{Conn, Hold, LimitState, Phase};
use crate::engine::clients::limiter::{ClientRule, Limiter, Over, User};
use crate::engine::clients::place_tests::PlaceTests;
use crate::engine::clients::quotas::{count_for_tenant, quota_text};
use crate::engine::clients::token_bucket::Rate;
use crate::engine::owner::Address;
use crate::engine::slab::Slab;
use crate::ids::{ConnId, LimiterKey};
use crate::message::{ClientMessage, Micros, Reason, Reject, whole_ms};
use crate::routing::TenantTable;
use crate::stats::Counter;

/// Messages over a rate that are refused within a second; then the connection is not read for the
/// rest of it. Who waits as told has one or two refusals a second.
pub const REFUSALS_MAX: u32 = 100;
const SECOND_US: u64 = 1_000_000;
/// Largest heartbeat that no rate of messages counts: that of a control frame (RFC 6455, 5.5).
const HEARTBEAT_BYTES_FREE: usize = 125;
/// Hint for a client with too many connections: one is free when another closes, which may be soon.
pub(super) const COME_BACK_MS: u32 = 1_000;
/// Clients looked at in a tick when they have no connection: 100,000 a second.
const EXPIRE_BUDGET: usize = 1_000;

/// Bytes of the list of a user's connections: 32 of a B-tree at a fill of 6/11 or more, and a list
/// of four numbers on the heap, with its header.
pub const MEMBERS_BYTES: usize = 59 + 4 * size_of::<ConnId>() + 16;

/// A connection that is not taken: to be answered with HTTP, where the client speaks it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenRefusal {
    /// 503: the shard has no room for anybody. 429: the address has too many.
    pub status: u16,
    /// A line for people.
    pub text: &'static str,
    /// Time after which a retry can succeed; 0 = not told.
    pub retry_after_ms: u32,
}

impl OpenRefusal {
    /// No room for anybody.
    pub const FULL: Self =
        Self::unavailable("the gateway has no room for another connection: try again later");
    const TOO_MANY_UNAUTHENTICATED: Self =
        Self::unavailable("too many clients have not signed in yet: try again later");

    const fn unavailable(text: &'static str) -> Self {
        Self { status: 503, text, retry_after_ms: COME_BACK_MS }
    }

    pub(super) const fn of_address(text: &'static str, retry_after_ms: u32) -> Self {
        Self { status: 429, text, retry_after_ms }
    }
}

/// A user that counts a connection which is about to become its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CountedUser(LimiterKey);

/// Why a user does not count one more connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotCounted {
    /// It waits for a place: see [`Clients::place_next`].
    Waits,
    /// It is refused.
    Refused(Reject),
}

/// The limits of a shard, and the clients that they count.
#[derive(Debug)]
pub struct ClientLimits {
    users: Limiter<User>,
    addresses: Limiter<Address>,
    pub(super) address_places: AddressPlaces,
    /// Connections of each user that is counted, while a user's places are limited: without a
    /// limit a list would be as long as a user likes, and is searched when one of them ends.
    members: BTreeMap<LimiterKey, Vec<ConnId>>,
    /// Users of whom one more connection wants a place: see [`super::places`].
    pub places: PlaceTests,
    /// Whether the rate of messages is limited: all that a message asks if it is not.
    meters: bool,
    /// Connections that have not signed in.
    unauthenticated: usize,
    shards: u32,
}

impl ClientLimits {
    /// Nobody yet; `seed` is the hash's.
    pub fn new(settings: &ShardSettings, shards: u16, seed: u64) -> Self {
        let mut limits = Self {
            users: Limiter::new(seed),
            addresses: Limiter::new(seed),
            address_places: AddressPlaces::default(),
            members: BTreeMap::new(),
            places: PlaceTests::default(),
            meters: false,
            unauthenticated: 0,
            shards: u32::from(shards.max(1)),
        };
        limits.set(settings, Micros(0));
        limits
    }

    /// Takes new limits, which hold for everybody from now on; `conns`: the connections.
    pub fn apply(&mut self, settings: &ShardSettings, conns: &Slab<ConnId, Conn>, now: Micros) {
        let listed = self.lists_members();
        self.set(settings, now);
        self.places.note_all();
        if self.lists_members() != listed {
            self.list_members(conns);
        }
    }

    fn set(&mut self, settings: &ShardSettings, now: Micros) {
        let LimitSettings { user, address, burst_s, address_unauthenticated_max, .. } =
            settings.limits;
        self.users.set_rule(rule(&user, 0, burst_s, 1), now);
        let rule = rule(&address, address_unauthenticated_max, burst_s, self.shards);
        self.addresses.set_rule(rule, now);
        self.meters = user.messages_per_s > 0 || address.messages_per_s > 0;
    }

    /// Lets everybody come and send as fast as they may until then: what the kernel took while the
    /// shard was stopped comes at once.
    pub fn catch_up_until(&mut self, until: Micros) {
        self.users.pass_until(until);
        self.addresses.pass_until(until);
    }

    /// Connections that are in the handshake, or must sign in and have not yet.
    pub fn unauthenticated(&self) -> usize {
        self.unauthenticated
    }

    /// Users and addresses that are remembered.
    pub fn len(&self) -> (usize, usize) {
        (self.users.len(), self.addresses.len())
    }

    /// Drops clients that carry no state.
    pub fn expire(&mut self, now: Micros) {
        self.users.expire(EXPIRE_BUDGET, now);
        self.addresses.expire(EXPIRE_BUDGET, now);
    }

    /// Whether an address has as many connections here as it may.
    pub fn is_address_full(&self, ip: IpAddr) -> bool {
        self.addresses.is_full(&Address::of(ip))
    }

    /// Whether an address may have one more of the connections of the shard, of which there may be
    /// `max` and are `taken`: see [`super::address_places`].
    pub fn leaves_places(&self, ip: IpAddr, max: usize, taken: usize) -> bool {
        self.address_places.may_connect(&Address::of(ip), Places { max, taken })
    }

    /// Whether the address of a connection that moves here has as many on this shard as it may
    /// have on all shards: moving is no way around the limit of each.
    pub fn is_address_over(&self, ip: IpAddr) -> bool {
        let Self { addresses, shards, .. } = self;
        addresses.is_on() && addresses.is_over_whole(&Address::of(ip), *shards)
    }

    /// The connection goes, or goes to another shard: it counts for nothing here any more.
    pub fn release(&mut self, id: ConnId, limits: &mut LimitState) {
        self.give_places_back(id, limits);
        let LimitState { address, place, .. } = std::mem::take(limits);
        self.addresses.leave(address, false);
        if let Some(place) = place {
            self.address_places.leave(place);
        }
    }

    /// The connection ends: it is neither in the handshake nor a session of its user any more. It
    /// counts for its address until it is gone.
    pub fn give_places_back(&mut self, id: ConnId, limits: &mut LimitState) {
        self.authenticated(limits);
        limits.tenant = None;
        let user = std::mem::take(&mut limits.user);
        self.users.leave(user, false);
        self.places.left(user, id);
        let Some(members) = self.members.get_mut(&user) else { return };
        if let Some(at) = members.iter().position(|member| *member == id) {
            members.swap_remove(at);
        }
        if members.is_empty() {
            self.members.remove(&user);
        }
    }

    /// Makes the connection one that the user counts.
    pub fn enter(&mut self, id: ConnId, limits: &mut LimitState, CountedUser(user): CountedUser) {
        if limits.user == user {
            return;
        }
        assert!(limits.user == LimiterKey::NONE, "{id:?} counts for another user already");
        limits.user = user;
        if self.lists_members() {
            self.members.entry(user).or_default().push(id);
        }
    }

    /// Whether the connections of each user are listed.
    fn lists_members(&self) -> bool {
        self.users.rule().connections_max > 0
    }

    /// Lists the connections of each user anew, if they are to be listed: part of a reload.
    fn list_members(&mut self, conns: &Slab<ConnId, Conn>) {
        self.members.clear();
        if !self.lists_members() {
            return;
        }
        for (id, conn) in conns.iter().filter(|(_, conn)| conn.limits.user != LimiterKey::NONE) {
            self.members.entry(conn.limits.user).or_default().push(id);
        }
    }

    /// The connections that a user counts, in no order; none while its places are not limited.
    pub fn members(&self, user: LimiterKey) -> &[ConnId] {
        self.members.get(&user).map_or(&[], Vec::as_slice)
    }

    /// Whether the user may have one more connection.
    pub fn has_place(&self, user: LimiterKey) -> bool {
        let max = self.users.rule().connections_max;
        max == 0 || self.members(user).len() < max as usize
    }

    /// The user's entry, if it has one.
    pub fn user(&self, identity: &Identity) -> Option<LimiterKey> {
        self.users.find(&User::of(identity))
    }

    /// A connection that waited for a place among those of `identity` does so no more.
    pub fn forget_newcomer(&mut self, identity: &Identity, id: ConnId) {
        if let Some(user) = self.user(identity) {
            self.places.forget(user, id);
        }
    }

    /// Counts a new connection, which has not signed in.
    pub fn count_unauthenticated(&mut self, limits: &mut LimitState) {
        limits.unauthenticated = true;
        self.unauthenticated += 1;
    }

    fn authenticated(&mut self, limits: &mut LimitState) {
        if std::mem::take(&mut limits.unauthenticated) {
            self.unauthenticated -= 1;
            self.addresses.authenticated(limits.address);
            if let Some(place) = limits.place {
                self.address_places.authenticated(place);
            }
        }
    }

    /// Counts an open connection for those whose limits were set after it came, or that came from
    /// another shard.
    pub fn count(&mut self, tenants: &TenantTable, id: ConnId, conn: &mut Conn, now: Micros) {
        let limits = &mut conn.limits;
        if !tenants.is_empty() {
            count_for_tenant(tenants, &conn.session, limits);
        }
        if limits.place.is_none() && !conn.client_unknown {
            let address = conn.session.owner.address;
            self.address_places.count(address, limits.unauthenticated);
            limits.place = Some(address);
        }
        if self.addresses.is_on() && limits.address == LimiterKey::NONE {
            let address = &conn.session.owner.address;
            limits.address = self.addresses.count(address, limits.unauthenticated, now);
        }
        if self.users.is_on()
            && limits.user == LimiterKey::NONE
            && let Some(user) = conn.session.user()
        {
            let user = self.users.count(&User::of(user), false, now);
            self.enter(id, limits, CountedUser(user));
        }
    }
}

/// A shard's part of `limits` where there are `shards`.
fn rule(
    limits: &ClientLimitSettings,
    unauthenticated_max: u32,
    burst_s: u32,
    shards: u32,
) -> ClientRule {
    let part = |n: u32| n.div_ceil(shards);
    let rate = |n: u32| Rate { per_s: part(n), burst: part(n).saturating_mul(burst_s) };
    ClientRule {
        connections_max: part(limits.connections_max),
        unauthenticated_max: part(unauthenticated_max),
        connects: rate(limits.connects_per_s),
        messages: rate(limits.messages_per_s),
    }
}

/// The refusal of a user that opens connections over its rate; one more may come in `us`.
pub(super) fn over_rate(cx: &mut Context<'_>, us: u64) -> Reject {
    cx.stats.inc(Counter::UserConnectsRefused);
    let text = "this user opens too many connections a second: try again later";
    Reject::later(Reason::RateLimited, text, whole_ms(us))
}

impl Clients {
    /// Whether one more connection that has not signed in is allowed.
    pub fn check_unauthenticated(&mut self, cx: &mut Context<'_>) -> Result<(), OpenRefusal> {
        let max = cx.config.settings.limits.unauthenticated_max;
        if max > 0 && self.limits.unauthenticated >= max {
            cx.stats.inc(Counter::UnauthenticatedRefused);
            return Err(OpenRefusal::TOO_MANY_UNAUTHENTICATED);
        }
        Ok(())
    }

    /// Counts a connection for its address `ip`, unless that is over a limit. Called once for a
    /// connection: when it is accepted; or, behind a balancer, when its header was read.
    pub fn count_address(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        ip: IpAddr,
        now: Micros,
    ) -> Result<(), OpenRefusal> {
        self.take_place(cx, id, Address::of(ip))?;
        let Self { conns, limits, .. } = self;
        let Some(conn) = conns.get_mut(id).filter(|_| limits.addresses.is_on()) else {
            return Ok(());
        };
        let joined = limits.addresses.join(&Address::of(ip), conn.limits.unauthenticated, now);
        let (counter, refusal) = match joined {
            Ok(key) => {
                conn.limits.address = key;
                return Ok(());
            }
            Err(Over::Connections) => (
                Counter::AddressConnectionsRefused,
                OpenRefusal::of_address(
                    "your address has too many connections: close one",
                    COME_BACK_MS,
                ),
            ),
            Err(Over::Unauthenticated) => (
                Counter::AddressUnauthenticatedRefused,
                OpenRefusal::of_address(
                    "too many connections of your address have not signed in: sign in on one",
                    COME_BACK_MS,
                ),
            ),
            Err(Over::Rate(us)) => (
                Counter::AddressConnectsRefused,
                OpenRefusal::of_address(
                    "your address opens too many connections a second: try again later",
                    whole_ms(us),
                ),
            ),
        };
        cx.stats.inc(counter);
        Err(refusal)
    }

    /// Counts a connection that is about to be `identity`'s for that user, unless that is over a
    /// limit. A connection that is this user's already stays so, whatever the limits are now.
    pub fn count_user(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        identity: &Identity,
        now: Micros,
    ) -> Result<CountedUser, NotCounted> {
        let Some(conn) = self.conns.get(id) else { return Ok(CountedUser(LimiterKey::NONE)) };
        let is_new = conn.session.user().is_none() && conn.limits.tenant.is_none();
        // Also where users are not limited any more: it counts until it ends.
        let is_users = conn.session.user().is_some() || conn.limits.user != LimiterKey::NONE;
        let counted = match is_users {
            true => CountedUser(conn.limits.user),
            false => self.join_user(cx, id, identity, now)?,
        };
        // After the user's limits: one user who is over them costs its tenant nothing.
        if is_new
            && !cx.tenants.is_empty()
            && let Err(reject) = self.count_tenant(cx, id, identity, now)
        {
            if !is_users {
                self.limits.users.leave(counted.0, false);
            }
            return Err(NotCounted::Refused(reject));
        }
        Ok(counted)
    }

    fn join_user(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        identity: &Identity,
        now: Micros,
    ) -> Result<CountedUser, NotCounted> {
        if !self.limits.users.is_on() {
            return Ok(CountedUser(LimiterKey::NONE));
        }
        self.make_room(cx, identity, now);
        match self.limits.users.join(&User::of(identity), false, now) {
            Ok(key) => Ok(CountedUser(key)),
            Err(Over::Connections | Over::Unauthenticated) => {
                self.wait_for_place(cx, id, identity, now)
            }
            Err(Over::Rate(us)) => Err(NotCounted::Refused(over_rate(cx, us))),
        }
    }

    /// The user's entry, if it has one, and whether one more connection is within its rate; if not,
    /// in how many microseconds one is.
    pub fn user_entry(
        &self,
        identity: &Identity,
        now: Micros,
    ) -> Option<(LimiterKey, Result<(), u64>)> {
        self.limits.users.entry(&User::of(identity), now)
    }

    /// Takes note that a connection has signed in, or need not.
    pub fn becomes_authenticated(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(id) {
            self.limits.authenticated(&mut conn.limits);
        }
        self.begins_to_settle(id);
    }

    /// Counts a message of `bytes` that was read, and refuses it if it is over a rate. The address
    /// pays for it first, then the user, then the tenant: a message over the user's rate was read
    /// nonetheless.
    #[inline]
    pub fn check_rate(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        message: &ClientMessage<'_>,
        bytes: usize,
        now: Micros,
    ) -> Result<(), Reject> {
        match self.limits.meters || !cx.tenants.is_empty() {
            true => self.meter(cx, id, message, bytes, now),
            false => Ok(()),
        }
    }

    fn meter(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        message: &ClientMessage<'_>,
        bytes: usize,
        now: Micros,
    ) -> Result<(), Reject> {
        let tenant = self.conns.get(id).and_then(|conn| {
            let session = &conn.session;
            session.user().map(|_| session.owner.tenant)
        });
        if let Some(tenant) = tenant {
            cx.tenants.count_message(tenant, bytes);
        }
        // A heartbeat says that the client is there, and wants no answer: as cheap as a control
        // frame, and limited as one, by `frames_per_s_max`.
        let is_small = bytes <= HEARTBEAT_BYTES_FREE;
        if message.seq == 0 && message.kind == "heartbeat" && is_small {
            return Ok(());
        }
        let Self { conns, limits, .. } = self;
        let Some(conn) = conns.get_mut(id) else { return Ok(()) };
        limits.count(&cx.config.snapshot.tenants, id, conn, now);
        let LimitState { address, user, .. } = conn.limits;
        let is_limited = |per_s: u32, key| per_s > 0 && key != LimiterKey::NONE;
        let mut over = Ok(());
        if is_limited(limits.addresses.rule().messages.per_s, address) {
            over = limits.addresses.take_message(address, now).map_err(|us| {
                cx.stats.inc(Counter::AddressMessagesRefused);
                ("your address sends too many messages a second: wait for retry_after_ms", us)
            });
        }
        if over.is_ok() && is_limited(limits.users.rule().messages.per_s, user) {
            over = limits.users.take_message(user, now).map_err(|us| {
                cx.stats.inc(Counter::UserMessagesRefused);
                ("this user sends too many messages a second: wait for retry_after_ms", us)
            });
        }
        if let (Ok(()), Some(tenant)) = (over, tenant) {
            over = cx.tenants.take_message(tenant, bytes, now).map_err(|over| {
                cx.stats.inc(Counter::QuotaMessagesRefused);
                (quota_text(over.thing), over.us)
            });
        }
        let Err((text, us)) = over else { return Ok(()) };
        let refusals = conn.limits.refusals.add(1, now, SECOND_US);
        // A connection that is about to be closed is read to its end.
        if refusals >= REFUSALS_MAX && cx.drain.is_none() {
            conn.hold(Hold::Rate);
            cx.stats.inc(Counter::ReadHeld);
        }
        Err(Reject::later(Reason::RateLimited, text, whole_ms(us)))
    }

    /// Counts a connection that is not counted yet, and reads one again whose second is over: part
    /// of the sweep.
    pub fn check_limits(&mut self, cx: &mut Context<'_>, id: ConnId, now: Micros) {
        let Self { conns, limits, .. } = self;
        let Some(conn) = conns.get_mut(id) else { return };
        // Before that it may not be known whose address it is.
        if conn.phase == Phase::Open {
            limits.count(&cx.config.snapshot.tenants, id, conn, now);
        }
        if conn.limits.refusals.has_ended(now, SECOND_US) {
            conn.release(Hold::Rate, id, now, &mut cx.effects.resumed);
        }
    }

    /// The rate that a client is told: the least of all that hold for it. 0 = no limit.
    pub fn messages_per_s_max(&self, id: ConnId) -> u32 {
        let frames = self.conns.get(id).map_or(0, |conn| conn.terms.frames_per_s_max);
        let address = self.limits.addresses.rule().messages.per_s;
        let user = match self.sign_in.verifier {
            Some(_) => self.limits.users.rule().messages.per_s,
            None => 0,
        };
        [frames, address, user].into_iter().filter(|rate| *rate > 0).min().unwrap_or(0)
    }

    /// Checks that every connection is counted where it should be, once.
    pub fn check_counts(&self) -> Result<(), String> {
        let mut counted = std::collections::BTreeMap::new();
        let mut unauthenticated = 0;
        let mut members: BTreeMap<LimiterKey, Vec<ConnId>> = BTreeMap::new();
        for (id, conn) in self.conns.iter() {
            let LimitState { address, user, .. } = conn.limits;
            if user != LimiterKey::NONE && self.limits.lists_members() {
                members.entry(user).or_default().push(id);
            }
            unauthenticated += usize::from(conn.limits.unauthenticated);
            for (kind, key, not_yet) in
                [(0, user, false), (1, address, conn.limits.unauthenticated)]
            {
                let found: &mut (u32, u32) = counted.entry((kind, key)).or_default();
                found.0 += 1;
                found.1 += u32::from(not_yet);
            }
        }
        let mut kept = self.limits.members.clone();
        kept.values_mut().for_each(|ids| ids.sort_unstable());
        members.values_mut().for_each(|ids| ids.sort_unstable());
        if kept != members {
            return Err(format!("members {kept:?}, in truth {members:?}"));
        }
        self.check_address_places()?;
        let users = self.limits.users.counts().map(|counts| (0, counts));
        let addresses = self.limits.addresses.counts().map(|counts| (1, counts));
        for (kind, (key, conns, not_yet)) in users.chain(addresses) {
            let found = counted.remove(&(kind, key)).unwrap_or_default();
            if found != (conns, not_yet) {
                return Err(format!("{key:?}: {conns}, {not_yet}, in truth {found:?}"));
            }
        }
        counted.retain(|(_, key), _| *key != LimiterKey::NONE);
        let kept = self.limits.unauthenticated;
        match counted.first_key_value() {
            Some(lost) => Err(format!("connections of a client that is forgotten: {lost:?}")),
            None if unauthenticated != kept => {
                Err(format!("unauthenticated: {kept}, in truth {unauthenticated}"))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
pub(in crate::engine::clients) mod tests;
