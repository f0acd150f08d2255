//! A client connection as the engine sees it: plain state in a slab, small when idle.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::auth::Identity as SignedIn;
use crate::config::settings::ConnSettings;
use crate::engine::clients::home::Moving;
use crate::engine::clients::limits::LimitState;
use crate::engine::clients::outbox::Outbox;
use crate::engine::clients::sign_in::PendingAuth;
use crate::engine::slab::Slab;
use crate::engine::source::Source;
use crate::ids::{ConnId, SessionId};
use crate::message::{Encoding, Micros, Reason};
use crate::routing::Sender;
use crate::wire::frames::{Decoder, FrameLimits};

/// A cause for which a connection is not read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Hold {
    /// As many messages without an answer, or as many bytes of them, as it may have.
    Unanswered = 1,
    /// A token that waits for its turn to be verified.
    Token = 2,
    /// A move to its user's home shard under way.
    Move = 4,
    /// Messages over a rate, sent on although they were refused.
    Rate = 8,
}

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

/// How far a connection is.
///
/// ```text
///   Handshake --101--> Open --our Close--> Closing --their Close--> Finished
///       |                \----their Close (echoed)------------------/
///       \--HTTP error--> Lingering
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// The upgrade request is not complete.
    Handshake,
    /// Frames flow.
    Open,
    /// Our Close is sent; the client's is awaited until then. Everything else is ignored.
    Closing {
        /// TCP is closed at this time anyway.
        until: Micros,
    },
    /// Nothing more to say: shut for writing after the flush, and wait until then for the client to
    /// close first, so that a reset does not overtake the last bytes.
    Lingering {
        /// TCP is closed at this time anyway.
        until: Micros,
    },
    /// Both Close frames are exchanged: close TCP after the flush.
    Finished {
        /// TCP is closed at this time anyway.
        until: Micros,
    },
}

/// Events in a window of fixed length: how many, and since when.
#[derive(Clone, Copy, Debug, Default)]
pub struct Window {
    since: Micros,
    count: u32,
}

impl Window {
    /// Counts `n` more; says how many there were in the present window of `length_us`.
    pub fn add(&mut self, n: u32, now: Micros, length_us: u64) -> u32 {
        if now.since(self.since) >= length_us {
            *self = Self { since: now, count: 0 };
        }
        self.count = self.count.saturating_add(n);
        self.count
    }

    /// Whether the window of the last event is over.
    pub fn has_ended(&self, now: Micros, length_us: u64) -> bool {
        now.since(self.since) >= length_us
    }
}

/// Who the client is. Boxed: most of it is not needed for a reply.
#[derive(Debug)]
pub struct Peer {
    /// Address of the client's end.
    pub address: SocketAddr,
    /// Who signed in, and until when; `None` = anonymous.
    pub user: Option<Arc<SignedIn>>,
}

/// What a client was told in its `welcome` and may count on: a change of the settings holds for the
/// connections that come after it.
#[derive(Clone, PartialEq, Debug)]
pub struct Terms {
    /// Bytes and fragments of a message.
    pub frames: FrameLimits,
    /// How often it must send something.
    pub heartbeat_ms: u64,
    /// Messages without an answer before reading pauses.
    pub unanswered_max: u32,
    /// Frames a second; 0 = no limit.
    pub frames_per_s_max: u32,
    /// Bytes that may wait for it before it counts as one that does not read.
    pub outbox_bytes_max: usize,
}

impl Terms {
    /// Those of `settings`.
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

/// One connection.
#[derive(Debug)]
pub struct Conn {
    /// What it was promised.
    pub terms: Arc<Terms>,
    /// How far it is.
    pub phase: Phase,
    /// Whether its upgrade was answered 101: counted as a session until it is removed.
    pub upgraded: bool,
    /// Its encoding.
    pub encoding: Encoding,
    /// Bytes not decoded yet; the handshake's while that lasts.
    pub decoder: Decoder,
    /// The unfinished upgrade request, and how much of it was looked through.
    pub handshake: Option<Box<(Vec<u8>, usize)>>,
    /// Bytes to be sent.
    pub outbox: Outbox,
    /// On the list of connections to flush.
    pub dirty: bool,
    /// Causes for which it is not read.
    pub holds: Holds,
    /// Messages answered as late whose call is still under way: the connection does not move before
    /// those have ended.
    pub late_calls: u32,
    /// Data messages read since it was opened.
    pub messages: u64,
    /// Messages without an answer.
    pub unanswered: u32,
    /// Their bytes.
    pub unanswered_bytes: usize,
    /// The highest seq seen: they rise.
    pub last_seq: u64,
    /// Public id of the session.
    pub session: SessionId,
    /// Tenant and hashes by which its messages are routed.
    pub sender: Sender,
    /// Who it is.
    pub peer: Box<Peer>,
    /// When it was accepted.
    pub opened: Micros,
    /// When the client last sent something.
    pub heard: Micros,
    /// Frames in the present second.
    pub frames: Window,
    /// Bad messages in the present ten seconds.
    pub bad: Window,
    /// One-way messages refused and not told yet.
    pub refused_one_way: u64,
    /// Why the last of them was.
    pub refused_why: Reason,
    /// When that was last told.
    pub told_one_way: Micros,
    /// When it is closed without a token; never with one, and where none is required.
    pub auth_by: Micros,
    /// A token that waits for its turn to be verified; the connection is paused so long.
    pub pending_auth: Option<Box<PendingAuth>>,
    /// It is to move to its user's home shard; the connection is paused so long.
    pub moving: Option<Box<Moving>>,
    /// It came home to be told that there is no room.
    pub refused_arrival: bool,
    /// Whom it counts for, and whether it is held for its rate.
    pub limits: LimitState,
}

impl Conn {
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
            holds: Holds::default(),
            late_calls: 0,
            messages: 0,
            unanswered: 0,
            unanswered_bytes: 0,
            last_seq: 0,
            session,
            sender: Sender::of_session(session.as_str()),
            peer: Box::new(Peer { address: peer, user: None }),
            opened: now,
            heard: now,
            frames: Window::default(),
            bad: Window::default(),
            refused_one_way: 0,
            refused_why: Reason::QueueFull,
            told_one_way: Micros(0),
            auth_by: Micros(u64::MAX),
            pending_auth: None,
            moving: None,
            refused_arrival: false,
            limits: LimitState::default(),
        }
    }

    /// The sender of a message, with everything that requests need to know of it.
    pub(crate) fn source(&self, id: ConnId, auth_required: bool) -> Source {
        Source {
            conn: id,
            session: self.session,
            sender: self.sender,
            user: self.peer.user.clone(),
            encoding: self.encoding,
            // Those who came before a reload asked for tokens go on as they were let in.
            must_sign_in: auth_required && self.auth_by != Micros(u64::MAX),
        }
    }

    /// Whether it has as many messages without an answer, or bytes of them, as it may have.
    pub fn has_too_much_unanswered(&self, settings: &ConnSettings) -> bool {
        self.unanswered >= self.terms.unanswered_max
            || self.unanswered_bytes >= settings.unanswered_bytes_max
    }

    /// Whether an open connection has nothing more to wait for: it may be closed by a stop.
    pub fn is_finished(&self) -> bool {
        self.unanswered == 0
            && self.pending_auth.is_none()
            && self.moving.is_none()
            && !self.decoder.has_unread()
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
            self.heard = now;
            resumed.push(id);
        }
    }

    /// Whether nothing of it is under way: no message without an answer, and no call that still has
    /// one that was answered as late.
    pub fn is_at_rest(&self) -> bool {
        self.unanswered == 0 && self.late_calls == 0
    }

    /// Bytes of memory that it holds: its slot, and what is on the heap for it alone.
    pub fn memory_bytes(&self) -> usize {
        let user = self.peer.user.as_deref().map_or(0, |user| {
            // Each text has two counts in front of it.
            let text = |text: &Arc<str>| 2 * size_of::<usize>() + text.len();
            let texts = user.tenant.iter().chain(&user.groups).map(text).sum::<usize>();
            let groups = user.groups.capacity() * size_of::<Arc<str>>();
            2 * size_of::<usize>() + size_of::<SignedIn>() + text(&user.user) + texts + groups
        });
        let request = self.handshake.as_ref().map_or(0, |held| held.0.capacity());
        Slab::<ConnId, Self>::SLOT_BYTES
            + size_of::<Peer>()
            + user
            + request
            + self.decoder.memory_bytes()
            + self.outbox.capacity()
    }

    /// When TCP is closed whatever the client does, if that is decided.
    pub fn until(&self) -> Option<Micros> {
        match self.phase {
            Phase::Handshake | Phase::Open => None,
            Phase::Closing { until } | Phase::Lingering { until } | Phase::Finished { until } => {
                Some(until)
            }
        }
    }
}

/// What the shell does with a socket after a flush.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Goes on.
    Keep,
    /// Shut for writing, read until the client closes.
    ShutWrite,
    /// Close now.
    Close,
}

/// What the shell does after handing bytes over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadNext {
    /// Read more.
    More,
    /// Do not read until the engine resumes the connection.
    Pause,
}
