//! The client of a connection: its peer, or, where that is a balancer or a proxy, the one that this
//! peer names. A connection counts for no address before its client is known.
//!
//! ```text
//!   accepted --------------------------------> client = peer of the socket
//!      |                                          ^
//!      +-- proxy.from ----> PROXY header: peer ---+
//!      |                        |
//!      +-- forwarded.from <-----+
//!                |
//!                +--> upgrade request: X-Forwarded-For, Forwarded --> client
//! ```

use std::net::SocketAddr;

use crate::engine::Context;
use crate::engine::clients::Clients;
use crate::engine::clients::address_places::{OverShare, Places};
use crate::engine::clients::conn::Conn;
use crate::engine::clients::limits::{COME_BACK_MS, OpenRefusal};
use crate::engine::owner::Address;
use crate::engine::refusals::Cause;
use crate::ids::ConnId;
use crate::message::Micros;
use crate::peers::Forwarded;
use crate::stats::Counter;
use crate::wire::forwarded::Told;

const MOST_CONNECTIONS: OpenRefusal = OpenRefusal::of_address(
    "most connections are of your address, and the last places are kept for others: close one",
    COME_BACK_MS,
);
const MOST_UNAUTHENTICATED: OpenRefusal = OpenRefusal::of_address(
    "most clients that have not signed in are of your address, and the last places are kept for \
     others: sign in, or try again later",
    COME_BACK_MS,
);

/// The upgrade request of a proxy, as far as its rules were looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Request {
    /// It may be upgraded.
    Upgrade,
    /// It breaks a rule, whoever the client is.
    Refused,
}

impl Clients {
    /// Opens a connection from `peer`, which counts for that address from now on if it is the
    /// client's, or says how it is to be refused.
    pub fn open(
        &mut self,
        cx: &mut Context<'_>,
        has_room: bool,
        peer: SocketAddr,
        now: Micros,
    ) -> Result<ConnId, OpenRefusal> {
        let id = self.open_uncounted(cx, has_room, peer, now)?;
        if self.is_client_unknown(id) {
            return Ok(id);
        }
        let counted = self.count_address(cx, id, peer.ip(), now);
        if counted.is_err()
            && let Some(mut conn) = self.conns.remove(id)
        {
            self.sessions.stand_up(&conn.session);
            self.limits.release(id, &mut conn.limits);
        }
        if let Err(refusal) = &counted {
            note_limit(cx, refusal, peer, now);
        }
        counted.map(|()| id)
    }

    /// Opens a connection whose client's address a balancer will tell: see [`Self::introduce`].
    pub fn open_uncounted(
        &mut self,
        cx: &mut Context<'_>,
        has_room: bool,
        peer: SocketAddr,
        now: Micros,
    ) -> Result<ConnId, OpenRefusal> {
        cx.stats.inc(Counter::Accepted);
        if !has_room {
            cx.stats.inc(Counter::AcceptRefused);
            note_limit(cx, &OpenRefusal::FULL, peer, now);
            return Err(OpenRefusal::FULL);
        }
        if let Err(refusal) = self.check_unauthenticated(cx) {
            note_limit(cx, &refusal, peer, now);
            return Err(refusal);
        }
        let session = self.new_session_id(cx);
        let mut conn = Conn::new(peer, session, self.terms.clone(), now);
        conn.client_unknown = cx.config.gateway.forwarded.from.has(peer.ip());
        self.limits.count_unauthenticated(&mut conn.limits);
        Ok(self.put(conn))
    }

    /// Gives a connection the address that a balancer told: the client's, or that of a proxy that
    /// will name it. Over a limit the client is told so, and the connection ends: then false.
    pub fn introduce(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        peer: SocketAddr,
        now: Micros,
    ) -> bool {
        // A header that names the very socket that it comes from is one of HAProxy's checks with
        // version 1, or of a balancer that gives its sockets the addresses of clients: only the
        // request tells, and a connection that asks for an upgrade counts then.
        let is_own_socket = self.conns.get(id).is_some_and(|conn| canonical(conn.peer) == peer);
        if is_own_socket || cx.config.gateway.forwarded.from.has(peer.ip()) {
            self.set_peer(id, peer, true);
            return true;
        }
        self.set_client(cx, id, peer, now)
    }

    /// The proxies of which the peer of a connection is one, if it is to name the client.
    pub(super) fn asked<'a>(&self, cx: &Context<'a>, id: ConnId) -> Option<&'a Forwarded> {
        let conn = self.conns.get(id).filter(|conn| conn.client_unknown)?;
        let forwarded = &cx.config.gateway.forwarded;
        // A reload may have taken it out since.
        forwarded.from.has(conn.peer.ip()).then_some(forwarded)
    }

    /// Gives a connection from a proxy, whose request is complete, the client's address. Over a
    /// limit the client is told so, and the connection ends: then false. What the proxy wrote is no
    /// reason to refuse a client.
    pub(super) fn take_forwarded(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        told: Option<Told>,
        request: Request,
        now: Micros,
    ) -> bool {
        let Some(conn) = self.conns.get(id).filter(|conn| conn.client_unknown) else { return true };
        let proxy = conn.peer;
        let client = match (told, request) {
            (Some(Told::Client(client)), Request::Upgrade | Request::Refused) => client,
            // The proxy's own, such as its health checks: it counts for no address.
            (Some(Told::Nothing) | None, Request::Refused) => return true,
            // It is a proxy no more.
            (None, Request::Upgrade) => proxy,
            (Some(Told::Nothing), Request::Upgrade) => {
                note_missing(cx, proxy, now);
                proxy
            }
            (Some(Told::Unclear { nearest, why, entry }), Request::Upgrade | Request::Refused) => {
                note_unclear(cx, proxy, why, &entry, now);
                nearest.unwrap_or(proxy)
            }
        };
        self.set_client(cx, id, client, now)
    }

    /// Gives a connection a place among those of its address, if that leaves enough to others.
    pub(super) fn take_place(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        address: Address,
    ) -> Result<(), OpenRefusal> {
        let Self { conns, limits, .. } = self;
        // Its own place is not one of those that others have; a connection that has gone has none.
        let taken = conns.len().saturating_sub(1);
        let Some(conn) = conns.get_mut(id) else { return Ok(()) };
        let settings = &cx.config.settings;
        let connections = Places { max: settings.conn.connections_max.get(), taken };
        let max = settings.limits.unauthenticated_max;
        let unknown = conn.limits.unauthenticated;
        let unauthenticated = unknown.then(|| Places { max, taken: limits.unauthenticated() - 1 });
        let (counter, refusal) =
            match limits.address_places.join(address, connections, unauthenticated) {
                Ok(()) => {
                    conn.limits.place = Some(address);
                    return Ok(());
                }
                Err(OverShare::Connections) => (Counter::ConnectionsOverShare, MOST_CONNECTIONS),
                Err(OverShare::Unauthenticated) => {
                    (Counter::UnauthenticatedOverShare, MOST_UNAUTHENTICATED)
                }
            };
        cx.stats.inc(counter);
        Err(refusal)
    }

    fn is_client_unknown(&self, id: ConnId) -> bool {
        self.conns.get(id).is_some_and(|conn| conn.client_unknown)
    }

    fn set_peer(&mut self, id: ConnId, peer: SocketAddr, client_unknown: bool) {
        if let Some(conn) = self.conns.get_mut(id) {
            conn.peer = peer;
            conn.client_unknown = client_unknown;
            conn.session.owner.address = Address::of(peer.ip());
        }
    }

    fn set_client(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        client: SocketAddr,
        now: Micros,
    ) -> bool {
        self.set_peer(id, client, false);
        match self.count_address(cx, id, client.ip(), now) {
            Ok(()) => self.conns.get(id).is_some(),
            Err(refusal) => {
                note_limit(cx, &refusal, client, now);
                self.refuse_over_limit(cx, id, &refusal, now);
                false
            }
        }
    }
}

/// The address with an IPv4 one in its own form, in which PROXY headers are read.
fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

/// Logs a connection that is refused by a limit before its request was answered.
fn note_limit(cx: &mut Context<'_>, refusal: &OpenRefusal, peer: SocketAddr, now: Micros) {
    let OpenRefusal { status, text: why, .. } = *refusal;
    if let Some(count) = cx.stats.refusals.note(Cause::Limit(why), now) {
        tracing::warn!(
            shard = cx.config.shard.0,
            %peer,
            status,
            why,
            count,
            "client_refused: a connection is over a limit of [limits] or conn.connections_max"
        );
    }
}

/// Counts and logs an upgrade request of a proxy that names nobody.
fn note_missing(cx: &mut Context<'_>, peer: SocketAddr, now: Micros) {
    cx.stats.inc(Counter::ForwardedMissing);
    if let Some(count) = cx.stats.refusals.note(Cause::Counted(Counter::ForwardedMissing), now) {
        tracing::warn!(
            shard = cx.config.shard.0,
            %peer,
            header = cx.config.gateway.forwarded.header.name(),
            count,
            "forwarded_missing: a proxy in forwarded.from names no client, which counts for the \
             proxy's own address; let it write the header, or take its address out"
        );
    }
}

/// Counts and logs an upgrade request of a proxy in whose list an entry that decides is no address.
fn note_unclear(cx: &mut Context<'_>, peer: SocketAddr, why: &str, entry: &str, now: Micros) {
    cx.stats.inc(Counter::ForwardedUnclear);
    if let Some(count) = cx.stats.refusals.note(Cause::Counted(Counter::ForwardedUnclear), now) {
        tracing::warn!(
            shard = cx.config.shard.0,
            %peer,
            header = cx.config.gateway.forwarded.header.name(),
            entry,
            why,
            count,
            "forwarded_unclear: a client counts for the last proxy before an entry that is no \
             address; let that proxy write addresses"
        );
    }
}

#[cfg(test)]
mod tests;
