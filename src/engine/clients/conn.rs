//! A client connection as the engine sees it: plain state in a slab, small when idle.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::auth::Identity;
use crate::config::settings::ConnSettings;
use crate::engine::clients::outbox::Outbox;
use crate::engine::clients::resumption::Claimed;
use crate::engine::clients::session::Session;
use crate::engine::clients::window::Window;
use crate::engine::effects::Effects;
use crate::engine::owner::Address;
use crate::engine::slab::Slab;
use crate::engine::source::Source;
use crate::ids::{ConnId, LimiterKey, SessionId, ShardId};
use crate::message::{Encoding, Micros, Reason};
use crate::origin::PageOrigin;
use crate::routing::CountedOne;
use crate::wire::frames::{Decoder, FrameLimits};

/// A cause for which a connection is not read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Hold {
    /// Messages without an answer, or their bytes, are as many as there may be.
    Unanswered = 1,
    /// A token that waits for its turn to be verified.
    Token = 2,
    /// A move to its user's home shard under way.
    Move = 4,
    /// Messages over a rate, sent on although they were refused.
    Rate = 8,
    /// A place among its user's connections.
    Place = 16,
    /// Answers that are to be sent, and large ones that are to come, as many bytes as the outbox
    /// may hold.
    Outbox = 32,
}

/// Time without a byte taken after which a client is closed whose outbox is over its bound: a
/// second, some ten round trips around the world.
const OVERFULL_STUCK_US: u64 = 1_000_000;
/// Times its bound at which an outbox is given up at once.
pub const OVERFULL: usize = 4;

/// The causes for which a connection is not read now: it is read while there is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Holds(u8);

impl Holds {
    /// Whether the connection may be read.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `hold` is among them.
    pub fn has(self, hold: Hold) -> bool {
        self.0 & hold as u8 != 0
    }
}

/// The state of a connection.
///
/// ```text
///   Handshake --101--> Open --our Close--> Closing --their Close--> Finished
///       |                |\----their Close (echoed)-----------------/
///       |                |                    |
///       \--HTTP error----+--for policy--------+--too much after it--> Lingering
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// The upgrade request is not complete.
    Handshake,
    /// Frames are read and written.
    Open,
    /// Our Close is sent; the client's is awaited, and everything else ignored.
    Closing {
        /// Time at which TCP is closed anyway.
        until: Micros,
    },
    /// Nothing more is written: the socket is shut for writing after the flush, and the client has
    /// until then to close first, so that a reset does not overtake the last bytes.
    Lingering {
        /// Time at which TCP is closed anyway.
        until: Micros,
    },
    /// Both Close frames are exchanged: close TCP after the flush.
    Finished {
        /// Time at which TCP is closed anyway.
        until: Micros,
    },
}

/// The limits that were in force when a connection was opened, and that its client may count on,
/// told in the `welcome` or not: a change of the settings holds for the connections that come after
/// it.
#[derive(Clone, PartialEq, Debug)]
pub struct Terms {
    /// Largest message, in bytes and fragments.
    pub frames: FrameLimits,
    /// Time without a sign of life of the client after which it is asked for one.
    pub heartbeat_ms: u64,
    /// Messages without an answer before reading pauses.
    pub unanswered_max: u32,
    /// Frames a second; 0 = no limit.
    pub frames_per_s_max: u32,
    /// Bytes that the outbox may have, or is expected to get, before reading pauses; with more, and
    /// nothing taken for a second, or with [`OVERFULL`] times as many, the connection is closed.
    pub outbox_bytes_max: usize,
}

impl Terms {
    /// The terms that `settings` give.
    pub fn of(settings: &ConnSettings) -> Self {
        Self {
            frames: FrameLimits {
                message_bytes_max: settings.message_bytes_max,
                fragments_max: settings.fragments_max,
            },
            heartbeat_ms: settings.heartbeat_ms,
            unanswered_max: settings.unanswered_max,
            frames_per_s_max: settings.frames_per_s_max,
            outbox_bytes_max: settings.outbox_bytes_max,
        }
    }
}

/// Refused one-way messages of a connection, which are told together.
#[derive(Clone, Copy, Debug)]
pub struct OneWayRefusals {
    /// Messages refused and not told yet.
    pub count: u64,
    /// The reason of the last refusal.
    pub reason: Reason,
    /// Time at which refusals were last told; 0 = never.
    pub told: Micros,
}

/// Share of a message in what its connection may have under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Claim {
    /// Bytes of the message: payload, idempotency key and affinity key.
    pub bytes: usize,
    /// Bytes that its answer is expected to have, if it is large; else 0.
    pub answer_bytes: usize,
}

/// A move that waits until its connection is at rest.
#[derive(Debug)]
pub struct Moving {
    /// The shard that it goes to.
    pub to: ShardId,
    /// The reason, and with it what is left to do there.
    pub cause: MoveCause,
}

/// Cause of a move, and what is left to do where it ends.
#[derive(Debug)]
pub enum MoveCause {
    /// That shard is the home of the user who signs in.
    SignIn {
        /// The user, verified.
        identity: Identity,
        /// The `auth` message that is answered there; the upgrade if there was none.
        seq: u64,
    },
    /// The session that the client claims is there.
    Resume(Claimed),
}

impl MoveCause {
    /// The message that is answered there.
    pub fn seq(&self) -> u64 {
        match self {
            Self::SignIn { seq, .. } => *seq,
            Self::Resume(claimed) => claimed.seq,
        }
    }
}

/// A sign-in that waits for a place among its user's connections.
#[derive(Debug)]
pub struct Newcomer {
    /// The user, verified.
    pub identity: Identity,
    /// The `auth` message that is answered then; the upgrade if there was none.
    pub seq: u64,
}

/// The user and the address that count a connection.
#[derive(Debug, Default)]
pub struct LimitState {
    /// The address; [`LimiterKey::NONE`] while addresses are not limited.
    pub address: LimiterKey,
    /// The user; [`LimiterKey::NONE`] while users are not limited, and before it signed in.
    pub user: LimiterKey,
    /// Address among whose places it has one; `None` while its client is not known.
    pub place: Option<Address>,
    /// Counted for the tenant of its user; `None` before it signed in, and of tenants that are not
    /// configured.
    pub tenant: Option<CountedOne>,
    /// Counted among those that are in the handshake, or must sign in and have not yet.
    pub unauthenticated: bool,
    /// Messages refused in the present second.
    pub refusals: Window,
}

/// A token that waits to be verified.
#[derive(Debug)]
pub enum PendingAuth {
    /// The token of a complete upgrade request, which is held in `Conn::handshake`.
    Request,
    /// The token of an `auth` message.
    Message {
        /// Number of the message.
        seq: u64,
        /// The token that it holds.
        token: Token,
    },
}

/// A token, not shown by `Debug`.
pub struct Token(pub String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<redacted>")
    }
}

/// The state of one connection.
#[derive(Debug)]
pub struct Conn {
    /// Limits that its client may count on.
    pub terms: Arc<Terms>,
    /// State of the WebSocket.
    pub phase: Phase,
    /// Whether the upgrade was answered 101: counted as a session until the connection is removed.
    pub upgraded: bool,
    /// Encoding of its messages.
    pub encoding: Encoding,
    /// Bytes not decoded yet.
    pub decoder: Decoder,
    /// The unfinished upgrade request, and how much of it was searched for its end.
    pub handshake: Option<Box<(Vec<u8>, usize)>>,
    /// Bytes to be sent.
    pub outbox: Outbox,
    /// On the list of connections to flush.
    pub dirty: bool,
    /// Whether it has got pushes, so that its socket is to hold little that is not sent.
    pub takes_pushes: bool,
    /// Whether there are pushes of groups that it has not read.
    pub is_behind: bool,
    /// Whether pushes to its session wait apart, as it reads slowly.
    pub has_waiting: bool,
    /// Causes for which the connection is not read.
    pub holds: Holds,
    /// Data messages read since the connection was opened.
    pub messages: u64,
    /// Work that it has cost since then, in units of [`crate::engine::work::Work`]: what it sent,
    /// and what was sent to it. It is shown, and nothing goes by it.
    pub work: u64,
    /// The session that the connection serves.
    pub session: Box<Session>,
    /// Whether its end is the end of its session, also of one that could be resumed: its client
    /// left, or broke a rule.
    pub ends_session: bool,
    /// Address of the client's end; a balancer's or a proxy's until its header was read.
    pub peer: SocketAddr,
    /// Whether the peer is a proxy whose request is to name the client.
    pub client_unknown: bool,
    /// Time of the accept.
    pub opened: Micros,
    /// Time at which the client last sent something.
    pub heard: Micros,
    /// Time of a ping since then.
    pub pinged: Option<Micros>,
    /// Frames in the present second.
    pub frames: Window,
    /// Bad messages in the present ten seconds.
    pub bad: Window,
    /// Refusals of one-way messages that are told together.
    pub one_way: OneWayRefusals,
    /// Bytes that the client sent after our last word: our Close, or an error in place of the
    /// upgrade.
    pub late_bytes: usize,
    /// Time at which the connection is closed without a token: never once it has shown one, and
    /// never where none is required.
    pub auth_by: Micros,
    /// The page that it is from, until it signs in, where tenants have origins of their own. A
    /// connection from before that is one of no page.
    pub page: Option<Box<PageOrigin>>,
    /// A token that waits for its turn to be verified.
    pub pending_auth: Option<Box<PendingAuth>>,
    /// Whether the last token could be neither accepted nor refused.
    pub token_later: bool,
    /// The move to another shard under way.
    pub moving: Option<Box<Moving>>,
    /// The sign-in that waits for a place.
    pub newcomer: Option<Box<Newcomer>>,
    /// Moved here when there was no room, and only kept until its refusal is sent.
    pub refused_arrival: bool,
    /// The user and the address that count it, and its refusals for a rate.
    pub limits: LimitState,
}

impl Conn {
    /// Takes note of a push for the client. What its socket holds unsent is to be bounded before
    /// the first one is written: pushes that the kernel holds can be neither replaced nor passed.
    #[inline]
    pub fn note_push(&mut self, id: ConnId, effects: &mut Effects) {
        if !self.takes_pushes {
            self.takes_pushes = true;
            effects.pushed.push(id);
        }
    }

    /// A connection that was just accepted.
    pub fn new(peer: SocketAddr, session: SessionId, terms: Arc<Terms>, now: Micros) -> Self {
        Self {
            terms,
            phase: Phase::Handshake,
            upgraded: false,
            encoding: Encoding::Json,
            decoder: Decoder::default(),
            handshake: None,
            outbox: Outbox::default(),
            dirty: false,
            takes_pushes: false,
            is_behind: false,
            has_waiting: false,
            holds: Holds::default(),
            messages: 0,
            work: 0,
            session: Box::new(Session::new(session, peer.ip(), now)),
            ends_session: false,
            peer,
            client_unknown: false,
            opened: now,
            heard: now,
            pinged: None,
            frames: Window::default(),
            bad: Window::default(),
            one_way: OneWayRefusals { count: 0, reason: Reason::QueueFull, told: Micros(0) },
            late_bytes: 0,
            auth_by: Micros(u64::MAX),
            page: None,
            pending_auth: None,
            token_later: false,
            moving: None,
            newcomer: None,
            refused_arrival: false,
            limits: LimitState::default(),
        }
    }

    /// The sender of a message, with everything that requests need to know of it.
    pub(crate) fn source(&self, id: ConnId, auth_required: bool) -> Source {
        Source {
            conn: id,
            session_key: self.session.key,
            session: self.session.id,
            sender: self.session.sender,
            before: self.session.before.as_deref().copied(),
            user: self.session.owner.user().cloned(),
            holder: self.session.holder(),
            encoding: self.encoding,
            must_sign_in: self.must_sign_in(auth_required),
        }
    }

    /// Whether its client has to sign in first. Connections from before a reload that asks for
    /// tokens go on as they were let in.
    #[inline]
    pub fn must_sign_in(&self, auth_required: bool) -> bool {
        (auth_required || self.is_of_tenants_page()) && self.auth_by != Micros(u64::MAX)
    }

    /// Whether it is from a page that only a tenant lists: users of the tenant may sign in there,
    /// and nobody else reaches a service.
    pub fn is_of_tenants_page(&self) -> bool {
        self.page.as_ref().is_some_and(|page| page.is_of_tenant())
    }

    /// Whether it has as many messages without an answer, or bytes of them, as it may have.
    pub fn has_too_much_unanswered(&self, settings: &ConnSettings) -> bool {
        self.session.unanswered >= self.terms.unanswered_max
            || self.session.unanswered_bytes >= settings.unanswered_bytes_max
    }

    /// Bytes that the outbox has, or is expected to get.
    #[inline]
    pub fn outbox_claimed(&self) -> usize {
        self.outbox.len() + self.session.answer_bytes
    }

    /// The place of its next bytes.
    #[inline]
    pub fn next_bytes(&self) -> NextBytes {
        match self.phase {
            _ if !self.holds.is_empty() => NextBytes::Nowhere,
            Phase::Open | Phase::Closing { .. } if self.decoder.has_unread() => NextBytes::Decoder,
            // After the end nothing is decoded any more.
            Phase::Handshake
            | Phase::Open
            | Phase::Closing { .. }
            | Phase::Lingering { .. }
            | Phase::Finished { .. } => NextBytes::Socket,
        }
    }

    /// Whether an open connection has nothing more to wait for: it may be closed by a stop.
    pub fn is_finished(&self) -> bool {
        self.is_answered() && !self.decoder.has_unread()
    }

    /// Whether all that was decoded of an open connection has its answer.
    pub fn is_answered(&self) -> bool {
        self.session.unanswered == 0 && !self.waits_for_us()
    }

    /// Whether it waits for something that is not in its client's hands: its token's turn, its move
    /// to another shard, or a place among its user's. That time counts against no timeout of the
    /// client, and ends by itself: each of those who wait has its turn, a lane is tried again with
    /// each tick, and a place is decided on within the places' own time.
    pub fn waits_for_us(&self) -> bool {
        self.pending_auth.is_some() || self.moving.is_some() || self.newcomer.is_some()
    }

    /// Takes note that the client sent something, or that it may count as if it had.
    pub fn hear(&mut self, now: Micros) {
        (self.heard, self.pinged) = (now, None);
    }

    /// Counts work that it has cost.
    #[inline]
    pub fn note_work(&mut self, units: i64) {
        self.work = self.work.saturating_add_signed(units);
    }

    /// Stops the reading of it for a cause.
    pub fn hold(&mut self, cause: Hold) {
        self.holds.0 |= cause as u8;
    }

    /// Ends a cause for which it was not read. Without another one it is read again: it is put on
    /// the list of `resumed` connections, and the time in which it was not read does not count
    /// against it.
    pub fn release(&mut self, cause: Hold, id: ConnId, now: Micros, resumed: &mut Vec<ConnId>) {
        if !self.holds.has(cause) {
            return;
        }
        self.holds.0 &= !(cause as u8);
        if self.holds.is_empty() {
            self.hear(now);
            resumed.push(id);
        }
    }

    /// Ends the hold for a full outbox when half of that is free again: reading on for each answer
    /// would cost a turn each.
    #[inline]
    pub fn release_outbox(&mut self, id: ConnId, now: Micros, resumed: &mut Vec<ConnId>) {
        if self.holds.has(Hold::Outbox) && self.outbox_claimed() <= self.terms.outbox_bytes_max / 2
        {
            self.release(Hold::Outbox, id, now, resumed);
        }
    }

    /// Whether more waits for the client than its outbox may hold, and it is to be closed: it has
    /// taken nothing for a while, or answers of a size that nobody knew have come at once and are
    /// too many by far. A client that reads them as they come gets them all.
    #[inline]
    pub fn is_overfull(&self, now: Micros) -> bool {
        let is_stuck = self.outbox.stuck_us(now) >= OVERFULL_STUCK_US;
        is_stuck && self.outbox.len() > self.terms.outbox_bytes_max || self.is_overfull_by_far()
    }

    /// Whether so much more waits for the client than its outbox may hold that it is closed at
    /// once.
    #[inline]
    pub fn is_overfull_by_far(&self) -> bool {
        self.outbox.len() >= self.terms.outbox_bytes_max.saturating_mul(OVERFULL)
    }

    /// Leaves out a time in which the shard was stopped, up to `now`: what was to come by a time
    /// may come so much later.
    pub fn put_off(&mut self, us: u64, now: Micros) {
        let later = |at: Micros| Micros(at.0.saturating_add(us));
        for since in [&mut self.opened, &mut self.heard] {
            *since = later(*since).min(now);
        }
        self.pinged = self.pinged.map(|at| later(at).min(now));
        self.outbox.put_off(us, now);
        self.auth_by = later(self.auth_by);
        match &mut self.phase {
            Phase::Handshake | Phase::Open => {}
            Phase::Closing { until } | Phase::Lingering { until } | Phase::Finished { until } => {
                *until = later(*until);
            }
        }
    }

    /// Bytes of memory that it holds: its slot, and what is on the heap for it alone.
    pub fn memory_bytes(&self) -> usize {
        let request = self.handshake.as_ref().map_or(0, |held| held.0.capacity());
        Slab::<ConnId, Self>::SLOT_BYTES
            + self.session.memory_bytes()
            + self.page.as_deref().map_or(0, |page| size_of_val(page) + page.text().len())
            + request
            + self.decoder.memory_bytes()
            + self.outbox.capacity()
    }

    /// The time at which TCP is closed whatever the client does, if that is decided.
    pub fn until(&self) -> Option<Micros> {
        match self.phase {
            Phase::Handshake | Phase::Open => None,
            Phase::Closing { until } | Phase::Lingering { until } | Phase::Finished { until } => {
                Some(until)
            }
        }
    }
}

/// The action of the shell on a socket after a flush.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SocketAction {
    /// None: the connection goes on.
    Keep,
    /// Shut it for writing, and read until the client closes.
    ShutWrite,
    /// Close the socket now.
    Close,
}

/// The place of the bytes of a connection that are decoded next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NextBytes {
    /// None: it is held, or gone.
    Nowhere,
    /// The decoder holds some: those come before the socket's.
    Decoder,
    /// The socket.
    Socket,
}

/// The reading of a connection after bytes were handed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadNext {
    /// Reading goes on.
    More,
    /// Do not read until the engine resumes the connection.
    Pause,
}
