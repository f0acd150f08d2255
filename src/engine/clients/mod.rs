//! The half of a shard towards its clients: connections from the accepted socket to the last byte,
//! who they are, what they may, and what is written to them. It knows nothing of services.

pub mod address_places;
mod by_service;
mod check_groups;
pub mod conn;
pub mod deliveries;
pub mod direct;
pub(crate) mod handshake;
pub mod home;
pub mod index;
mod introduction;
pub mod joining;
pub mod kept;
pub mod limiter;
pub mod limits;
pub mod membership;
pub mod outbox;
mod pause;
pub mod place_tests;
pub(crate) mod places;
pub mod presence;
pub mod publishing;
pub(crate) mod quotas;
mod reply;
pub mod resume;
pub mod resumption;
pub mod session;
pub mod sessions;
pub mod sign_in;
mod sweep;
mod telling;
pub mod token_bucket;
pub mod token_turns;
pub mod waiting;
pub mod window;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::auth::Verifier;
use crate::config::settings::{ConnSettings, GatewaySettings, ShardSettings};
use crate::engine::clients::by_service::JoinCall;
use crate::engine::clients::conn::{Claim, Conn, Hold, Phase, SocketAction, Terms};
use crate::engine::clients::deliveries::Pulled;
use crate::engine::clients::direct::{Direct, Wave};
use crate::engine::clients::limits::ClientLimits;
use crate::engine::clients::session::Session;
use crate::engine::clients::sessions::{Seat, Sessions};
use crate::engine::clients::sign_in::SignIn;
use crate::engine::effects::Effects;
use crate::engine::events::Events;
use crate::engine::groups::Groups;
use crate::engine::groups::push_ids::PushIds;
use crate::engine::refusals::Cause;
use crate::engine::slab::{SLAB_ENTRIES_CAP, Slab};
use crate::engine::{Context, work};
use crate::ids::{ConnId, SessionKey, ShardId, TenantId};
use crate::message::{EventReason, Micros};
use crate::origin::AdminPages;
use crate::routing::TenantTable;
use crate::stats::{Counter, Gauges};
use crate::wire::close;
use crate::wire::frames;
use crate::wire::handshake::{HandshakeRules, HeaderLimits};

/// The connections of a shard and everything that is kept for them.
#[derive(Debug)]
pub(crate) struct Clients {
    pub conns: Slab<ConnId, Conn>,
    pub sessions: Sessions,
    pub groups: Groups,
    /// Events that services are to be told.
    pub events: Events,
    /// Ids of pushes that were taken lately.
    pub push_ids: PushIds,
    /// Frames that the flush under way was given out of a group's log.
    pulled: Option<Pulled>,
    /// Connections that have more to read than one flush wrote.
    pub more_to_send: Vec<ConnId>,
    /// Calls of services to put sessions into groups that are not answered.
    pub joins: Vec<JoinCall>,
    /// Pushes to all sessions under way.
    pub waves: VecDeque<Wave>,
    /// Pushes to sessions of this turn, which are to be counted.
    pub placed: Vec<Direct>,
    /// Pushes to sessions that were flushed since, and are counted next.
    pub to_count: Vec<Direct>,
    pub sign_in: SignIn,
    pub limits: ClientLimits,
    rules: HandshakeRules,
    /// The terms of new connections.
    terms: Arc<Terms>,
    /// Pool of buffers for outboxes.
    buffers: Vec<Vec<u8>>,
    /// Buffer for a frame that is kept and not sent.
    frame: Vec<u8>,
    /// Time of the last tick: ends of connections come without one.
    ticked: Micros,
    /// The largest message that any connection was ever allowed.
    pub message_bytes_high: usize,
    /// The largest outbox that any connection is allowed.
    pub outbox_bytes_high: usize,
    /// Connections whose upgrade was answered 101.
    pub upgraded: u64,
    /// Connections that moved here and are only kept until their refusal is sent.
    refused_arrivals: usize,
    /// Connections whose home shard's lane was full: they try again with the next tick.
    pub moves_waiting: Vec<ConnId>,
    /// Slot at which the sweep over the connections goes on.
    sweep_at: usize,
    /// End of the time in which what came during a pause is read, if there was one: see
    /// [`Self::on_pause`].
    pub catching_up_until: Option<Micros>,
}

impl Clients {
    /// No connection yet, on a shard of so many; `seed` is that of the hashes of limits.
    pub fn new(
        gateway: &GatewaySettings,
        settings: &ShardSettings,
        (shard, shards): (ShardId, u16),
        seed: u64,
    ) -> Self {
        Self {
            // `has_room` and `arrive` say how many there may be.
            conns: Slab::with_capacity_max(SLAB_ENTRIES_CAP),
            sessions: Sessions::default(),
            groups: Groups::new(shard, shards),
            events: Events::default(),
            push_ids: PushIds::default(),
            pulled: None,
            more_to_send: Vec::new(),
            joins: Vec::new(),
            waves: VecDeque::new(),
            placed: Vec::new(),
            to_count: Vec::new(),
            sign_in: SignIn::default(),
            limits: ClientLimits::new(settings, shards, seed),
            rules: HandshakeRules {
                path: gateway.path.clone(),
                origins: gateway.origins.clone(),
                admin_pages: AdminPages::at(gateway.admin.listen, gateway.admin.tls_cert.is_some()),
                tenant_origins: Vec::new(),
                subprotocols: true,
                limits: header_limits(&settings.conn),
            },
            terms: Arc::new(Terms::of(&settings.conn)),
            buffers: Vec::new(),
            frame: Vec::new(),
            ticked: Micros(0),
            message_bytes_high: settings.conn.message_bytes_max,
            outbox_bytes_high: settings.conn.outbox_bytes_max,
            upgraded: 0,
            refused_arrivals: 0,
            moves_waiting: Vec::new(),
            sweep_at: 0,
            catching_up_until: None,
        }
    }

    /// Works by new settings: connections keep what they were promised, and users stay signed in
    /// whatever the keys are now.
    pub fn apply(
        &mut self,
        gateway: &GatewaySettings,
        settings: &ShardSettings,
        auth: Option<Arc<Verifier>>,
        now: Micros,
    ) {
        self.sign_in.set(auth, &gateway.auth);
        let terms = Terms::of(&settings.conn);
        if *self.terms != terms {
            let ConnSettings { message_bytes_max, outbox_bytes_max, .. } = settings.conn;
            self.message_bytes_high = self.message_bytes_high.max(message_bytes_max);
            let promised = self.conns.iter().map(|(_, conn)| conn.terms.outbox_bytes_max);
            self.outbox_bytes_high = promised.fold(outbox_bytes_max, usize::max);
            self.terms = Arc::new(terms);
        }
        self.rules.origins.clone_from(&gateway.origins);
        self.rules.limits = header_limits(&settings.conn);
        self.limits.apply(settings, &self.conns, now);
    }

    /// Works by other tenants: pages that one of them lists may connect.
    pub fn set_tenants(&mut self, tenants: &TenantTable) {
        let origins = tenants.list().iter().flat_map(|tenant| &tenant.origins);
        if !origins.clone().eq(&self.rules.tenant_origins) {
            self.rules.tenant_origins = origins.cloned().collect();
        }
    }

    /// Ends a connection whose transport failed (TLS, the PROXY header): unsent bytes are dropped,
    /// and it lingers until the alert is flushed and the client closes. See
    /// [`crate::engine::Engine::break_off`].
    pub fn break_off(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        counter: Counter,
        now: Micros,
    ) -> Option<(SocketAddr, u64)> {
        cx.stats.inc(counter);
        self.forget_waits(cx, id, now);
        let until = now.plus_ms(cx.config.settings.conn.close_timeout_ms);
        let conn = self.conns.get_mut(id)?;
        conn.outbox.discard(&mut self.buffers);
        let until = conn.until().unwrap_or(until);
        set_ending(conn, id, &mut self.limits, Phase::Lingering { until });
        mark_dirty(conn, id, cx.effects);
        let count = cx.stats.refusals.note(Cause::Counted(counter), now)?;
        Some((conn.peer, count))
    }

    /// Puts a connection into the slab, and its session on a seat.
    fn put(&mut self, conn: Conn) -> ConnId {
        let id = self.conns.insert(conn);
        let conn = self.conns.get_mut(id).expect("just put in");
        self.sessions.sit(&mut conn.session, id);
        id
    }

    /// Forgets a connection whose socket is gone. Its messages under way run on; their answers are
    /// kept, if its session can be resumed, else counted as undeliverable.
    pub fn remove(&mut self, cx: &mut Context<'_>, id: ConnId) {
        self.answer_waiting_token(cx, id, self.ticked);
        let Some(mut conn) = self.conns.remove(id) else { return };
        let stays = self.release_session(cx, &mut conn);
        if !stays {
            let reason = conn.session.parting;
            self.leave_all(cx, &mut conn.session, reason);
        }
        cx.stats.inc(Counter::Closed);
        self.refused_arrivals -= usize::from(conn.refused_arrival);
        self.limits.release(id, &mut conn.limits);
        if let Some(newcomer) = &conn.newcomer {
            self.limits.forget_newcomer(&newcomer.identity, id);
        }
        self.upgraded -= u64::from(conn.upgraded);
        conn.outbox.discard(&mut self.buffers);
        if stays {
            self.put_away(cx, conn.session, conn.heard);
        }
    }

    /// Takes note that the kernel took `n` bytes (0: its buffer is full), and says what becomes of
    /// the socket.
    pub fn on_sent(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        n: usize,
        now: Micros,
    ) -> SocketAction {
        let n = if self.pulled.is_some() || self.conns.get(id).is_some_and(|conn| conn.is_behind) {
            self.on_pulled_sent(cx, id, n)
        } else {
            n
        };
        let Some(conn) = self.conns.get_mut(id) else { return SocketAction::Close };
        conn.dirty = false;
        // TLS may report bytes of an outbox that was discarded after they were encrypted.
        let n = n.min(conn.outbox.len());
        if n > 0 {
            cx.stats.inc(Counter::Sends);
            cx.stats.add(Counter::BytesOut, n as u64);
            conn.note_work(work::of_send(n));
        }
        if n > 0 && conn.outbox.is_stuck() {
            self.limits.places.answered(conn.limits.user, id);
        }
        conn.outbox.sent(n, &mut self.buffers, now);
        conn.release_outbox(id, now, &mut cx.effects.resumed);
        if !conn.outbox.is_empty() {
            if conn.phase == Phase::Open && conn.is_overfull(now) {
                self.close_slow(cx, id, now);
            }
            return SocketAction::Keep;
        }
        if conn.has_waiting {
            self.place_waiting(cx, id, now);
            return SocketAction::Keep;
        }
        match conn.phase {
            Phase::Handshake | Phase::Open | Phase::Closing { .. } => SocketAction::Keep,
            Phase::Lingering { .. } => SocketAction::ShutWrite,
            Phase::Finished { .. } => SocketAction::Close,
        }
    }

    /// Fills in the levels of this half that take no pass over the connections.
    pub fn report_into(&self, gauges: &mut Gauges) {
        let (limited_users, limited_addresses) = self.limits.len();
        gauges.connections = self.conns.len() as u64;
        gauges.unauthenticated = self.limits.unauthenticated() as u64;
        gauges.limited_users = limited_users as u64;
        gauges.limited_addresses = limited_addresses as u64;
        gauges.sessions = self.upgraded;
        let (resumable, away) = self.sessions.len();
        gauges.sessions_resumable = resumable as u64;
        gauges.sessions_away = away as u64;
        gauges.session_kept_bytes = self.sessions.kept_bytes as u64;
        gauges.groups = self.groups.count() as u64;
        gauges.group_members = self.groups.memberships as u64;
        gauges.group_log_bytes = self.groups.log_bytes as u64;
        gauges.group_passes = self.groups.passes.len() as u64;
        gauges.events_waiting = self.events.waiting() as u64;
        gauges.push_waves = self.waves.len() as u64;
        gauges.push_ids = self.push_ids.count() as u64;
        gauges.sessions_indexed = self.sessions.index.sessions() as u64;
        gauges.users_indexed = self.sessions.index.users() as u64;
    }

    /// Fills in the levels of this half that take a pass over the connections.
    pub fn report_each_into(&self, gauges: &mut Gauges) {
        gauges.outbox_bytes = self.conns.iter().map(|(_, c)| c.outbox.len() as u64).sum();
        gauges.connection_bytes = self.conns.iter().map(|(_, c)| c.memory_bytes() as u64).sum();
        let connected = self.conns.iter().map(|(_, conn)| &*conn.session);
        let waiting =
            connected.chain(self.sessions.iter_away()).filter_map(|s| s.waiting.as_deref());
        gauges.pushes_waiting = waiting.map(|waiting| waiting.len() as u64).sum();
    }

    /// Tenant of the user of each upgraded connection that has one.
    pub fn tenants(&self) -> impl Iterator<Item = TenantId> {
        let upgraded = self.conns.iter().filter(|(_, conn)| conn.upgraded);
        upgraded.filter_map(|(_, c)| c.session.user().map(|_| c.session.owner.tenant))
    }

    /// The client's address, as text.
    pub fn address_of(&self, id: ConnId) -> String {
        self.conns.get(id).map(|conn| conn.peer.to_string()).unwrap_or_default()
    }

    /// Whether the session is still there, on a connection or without one: answers reach it.
    #[inline]
    pub fn is_there(&self, session: SessionKey) -> bool {
        self.sessions.seat(session).is_some()
    }

    /// Takes note of a message that was taken in: it is unanswered from now on.
    pub fn accepted(&mut self, id: ConnId, claim: Claim) {
        // An event has no connection.
        let Some(conn) = self.conns.get_mut(id) else { return };
        let session = &mut *conn.session;
        session.unanswered += 1;
        session.unanswered_bytes += claim.bytes;
        session.answer_bytes += claim.answer_bytes;
    }

    /// The session with this key, and its connection if it has one.
    #[inline]
    pub(super) fn session_mut(
        &mut self,
        key: SessionKey,
    ) -> Option<(&mut Session, Option<ConnId>)> {
        match self.sessions.seat_mut(key)? {
            Seat::At(id) => {
                let id = *id;
                self.conns.get_mut(id).map(|conn| (&mut *conn.session, Some(id)))
            }
            Seat::Away(session) => Some((session, None)),
        }
    }

    /// Takes note that a message of the session is not unanswered any more.
    pub fn settle(&mut self, cx: &mut Context<'_>, key: SessionKey, claim: Claim, now: Micros) {
        let Some((session, at)) = self.session_mut(key) else { return };
        session.unanswered -= 1;
        session.unanswered_bytes -= claim.bytes;
        session.answer_bytes -= claim.answer_bytes;
        session.note_rest();
        let Some((id, conn)) = at.and_then(|id| Some((id, self.conns.get_mut(id)?))) else {
            return;
        };
        if conn.holds.is_empty() {
            return;
        }
        conn.release_outbox(id, now, &mut cx.effects.resumed);
        // Half of the cap: reading on for each single answer would cost a turn each.
        let low = conn.session.unanswered <= conn.terms.unanswered_max / 2;
        if low && !conn.has_too_much_unanswered(&cx.config.settings.conn) {
            conn.release(Hold::Unanswered, id, now, &mut cx.effects.resumed);
        }
        if conn.moving.is_some() && conn.session.is_at_rest() {
            cx.effects.moves.push(id);
        }
    }

    /// Takes note that a message of the session was answered as late while its call goes on.
    pub fn call_is_late(&mut self, key: SessionKey) {
        if let Some((session, _)) = self.session_mut(key) {
            session.late_calls += 1;
        }
    }

    /// Takes note that the call with a message that was answered as late has ended.
    pub fn late_call_ended(&mut self, cx: &mut Context<'_>, key: SessionKey) {
        let Some((session, at)) = self.session_mut(key) else { return };
        session.late_calls -= 1;
        session.note_rest();
        let is_at_rest = session.is_at_rest();
        let conn = at.and_then(|id| Some((id, self.conns.get(id)?)));
        if let Some((id, conn)) = conn
            && is_at_rest
            && conn.moving.is_some()
        {
            cx.effects.moves.push(id);
        }
    }

    /// Sends a Close frame and waits for the client's. The session ends with it, or can be resumed,
    /// as `code` says.
    pub fn close(&mut self, cx: &mut Context<'_>, id: ConnId, code: u16, why: &str, now: Micros) {
        if let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.phase == Phase::Open) {
            conn.ends_session |= !resume::outlives_our_close(code);
        }
        self.close_only(cx, id, code, why, now);
    }

    /// Sends a Close frame that says nothing of the session, and waits for the client's.
    pub(super) fn close_only(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        code: u16,
        why: &str,
        now: Micros,
    ) {
        self.forget_waits(cx, id, now);
        let until = now.plus_ms(cx.config.settings.conn.close_timeout_ms);
        let Some(conn) = self.conns.get_mut(id).filter(|c| c.phase == Phase::Open) else { return };
        if conn.session.parting == EventReason::Closed {
            conn.session.parting = telling::reason_of(code);
        }
        if let close::POLICY | close::TRY_LATER = code
            && let Some(count) = cx.stats.refusals.note(Cause::Close(code), now)
        {
            tracing::warn!(
                shard = cx.config.shard.0,
                peer = %conn.peer,
                code,
                why,
                count,
                "client_closed: a client broke a rule or a limit, or there was no room for it"
            );
        }
        // After an error of the client's the rest of its bytes cannot be read as frames, and those
        // of one that sent too many are not: that would be what it is closed for.
        let phase = match conn.decoder.ended() || code == close::POLICY {
            true => Phase::Lingering { until },
            false => Phase::Closing { until },
        };
        set_ending(conn, id, &mut self.limits, phase);
        append(conn, id, &mut self.buffers, cx.effects, |out| {
            frames::write_close(out, Some(code), why);
        });
    }

    /// Reads no more frames of a connection that has got our Close.
    pub fn linger_on(&mut self, cx: &mut Context<'_>, id: ConnId, until: Micros) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        set_ending(conn, id, &mut self.limits, Phase::Lingering { until });
        mark_dirty(conn, id, cx.effects);
    }

    /// Gives up a connection whose client sends on and on after our last word: what it has not
    /// taken of that is lost, and it is closed with the next flush.
    pub fn give_up(&mut self, cx: &mut Context<'_>, id: ConnId, now: Micros) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.outbox.discard(&mut self.buffers);
        self.set_finished(cx, id, now);
    }

    /// Closes a connection whose client does not take what it asked for. It gets the code if it
    /// reads within the close timeout; nothing is added to what waits any more.
    pub fn close_slow(&mut self, cx: &mut Context<'_>, id: ConnId, now: Micros) {
        cx.stats.inc(Counter::ClosedSlow);
        self.close(
            cx,
            id,
            close::TOO_SLOW,
            "answers were not read fast enough: read them as they come",
            now,
        );
    }

    /// Answers the client's Close frame, unless ours came first: both are exchanged.
    pub fn on_close(&mut self, cx: &mut Context<'_>, id: ConnId, code: Option<u16>, now: Micros) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.phase == Phase::Open {
            conn.ends_session |= !resume::outlives_their_close(code);
            append(conn, id, &mut self.buffers, cx.effects, |out| {
                frames::write_close(out, code, "");
            });
        }
        self.set_finished(cx, id, now);
    }

    /// Ends a connection whose Close frames are exchanged, or will never be.
    pub fn set_finished(&mut self, cx: &mut Context<'_>, id: ConnId, now: Micros) {
        let until = now.plus_ms(cx.config.settings.conn.close_timeout_ms);
        let Some(conn) = self.conns.get_mut(id) else { return };
        set_ending(conn, id, &mut self.limits, Phase::Finished { until });
        mark_dirty(conn, id, cx.effects);
    }
}

/// The size of upgrade requests that `settings` allow.
fn header_limits(settings: &ConnSettings) -> HeaderLimits {
    let ConnSettings { header_bytes_max, headers_max, .. } = *settings;
    HeaderLimits { header_bytes_max, headers_max }
}

/// Begins the end of a connection: from now on it takes no place of those who may sign in, and none
/// of its user, though it counts as a connection until it is removed.
fn set_ending(conn: &mut Conn, id: ConnId, limits: &mut ClientLimits, phase: Phase) {
    conn.phase = phase;
    limits.give_places_back(id, &mut conn.limits);
}

/// Appends to a connection's outbox what `write` writes, and has it flushed: the one way in which
/// bytes for a client get there.
fn append(
    conn: &mut Conn,
    id: ConnId,
    buffers: &mut Vec<Vec<u8>>,
    effects: &mut Effects,
    write: impl FnOnce(&mut Vec<u8>),
) {
    write(conn.outbox.writer(buffers));
    mark_dirty(conn, id, effects);
}

/// Puts a connection on the list to be flushed, once.
fn mark_dirty(conn: &mut Conn, id: ConnId, effects: &mut Effects) {
    if !conn.dirty {
        conn.dirty = true;
        effects.dirty.push(id);
    }
}
