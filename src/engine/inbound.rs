//! Bytes from a client: handshake, frames, messages, and which part of the gateway handles each.

use crate::engine::clients::conn::{Hold, Phase, ReadNext};
use crate::engine::clients::handshake::Handshake;
use crate::engine::clients::home::{AtHome, Departed};
use crate::engine::clients::sign_in::NextVerification;
use crate::engine::{Engine, builtin, work};
use crate::ids::ConnId;
use crate::limits::READ_SCRATCH_BYTES;
use crate::message::{Category, ClientMessage, Encoding, Micros, Reason};
use crate::stats::Counter;
use crate::wire::bad_message::BadMessage;
use crate::wire::close;
use crate::wire::frames::{Flow, FrameEvent, ProtocolError};
use crate::wire::{json, protobuf};

/// Window in which bad messages are counted: ten seconds.
const BAD_WINDOW_US: u64 = 10_000_000;
/// Bytes after our Close that are still read as frames, to find the client's: a read's worth.
const LATE_BYTES_DECODED_MAX: usize = READ_SCRATCH_BYTES;
/// Bytes after our last word after which the connection is closed: more than a kernel holds for one
/// by default (net.ipv4.tcp_rmem, 6 MiB), so that they were not all on the way before it came.
const LATE_BYTES_MAX: usize = 8 << 20;
const ACK_AHEAD: &str =
    "ack: above the last offset that this session was given: confirm what came, and nothing else";
const SEQ_FELL: &str = "seq: a number above that of every earlier message is wanted";

impl Engine {
    /// Takes received bytes. They are unmasked in place and handed on as borrows where possible.
    /// When nothing is left of [`Engine::work`], the decoder keeps the rest:
    /// [`Engine::next_bytes`] tells so, and [`Engine::on_resumed`] goes on with it.
    pub fn on_bytes(&mut self, id: ConnId, input: &mut [u8], now: Micros) -> ReadNext {
        self.stats.inc(Counter::Receives);
        self.stats.add(Counter::BytesIn, input.len() as u64);
        let Some(conn) = self.clients.conns.get_mut(id) else { return ReadNext::Pause };
        conn.hear(now);
        self.clients.limits.places.answered(conn.limits.user, id);
        match conn.phase {
            Phase::Open => self.feed(id, input, now),
            Phase::Handshake => self.shake_hands(id, input, now),
            Phase::Closing { .. } | Phase::Lingering { .. } | Phase::Finished { .. } => {
                self.on_late_bytes(id, input, now)
            }
        }
    }

    /// Takes bytes that come after our last word. A client may have been sending, so they are read
    /// and forgotten: until its Close comes, but for a while only, since nothing else limits them.
    fn on_late_bytes(&mut self, id: ConnId, input: &mut [u8], now: Micros) -> ReadNext {
        let (clients, _, mut cx) = self.parts();
        let Some(conn) = clients.conns.get_mut(id) else { return ReadNext::Pause };
        conn.late_bytes = conn.late_bytes.saturating_add(input.len());
        let (bytes, phase) = (conn.late_bytes, conn.phase);
        if let Phase::Closing { .. } = phase
            && bytes <= LATE_BYTES_DECODED_MAX
        {
            return self.feed(id, input, now);
        }
        if let Phase::Closing { until } = phase {
            clients.linger_on(&mut cx, id, until);
        }
        match bytes > LATE_BYTES_MAX {
            true => {
                clients.give_up(&mut cx, id, now);
                ReadNext::Pause
            }
            false => ReadNext::More,
        }
    }

    /// Lets a connection go on that was held, or whose work was spent: with what its decoder held
    /// back.
    pub fn on_resumed(&mut self, id: ConnId, now: Micros) -> ReadNext {
        let Some(conn) = self.clients.conns.get_mut(id) else { return ReadNext::Pause };
        conn.hear(now);
        // Resumed twice in one turn, and held again after the first of them.
        if !conn.holds.is_empty() {
            return ReadNext::Pause;
        }
        if conn.decoder.has_unread() { self.feed(id, &mut [], now) } else { ReadNext::More }
    }

    /// Takes the end of the client's bytes, or a failure of the socket. True: close it now.
    ///
    /// A client may end its side and still read (RFC 9293, 3.6: half-closed), so answers that wait
    /// already are flushed, for as long as the close timeout. Without a Close frame nothing more is
    /// said (RFC 6455, 7.1.5: code 1006), and answers that are still to come are undeliverable.
    pub fn on_end(&mut self, id: ConnId, now: Micros) -> bool {
        let (clients, _, mut cx) = self.parts();
        let Some(conn) = clients.conns.get(id) else { return true };
        if conn.outbox.is_empty() {
            return true;
        }
        match conn.phase {
            // Neither its Close nor its end is awaited any more, only the flush.
            Phase::Open | Phase::Closing { .. } | Phase::Lingering { .. } => {
                clients.forget_waits(&mut cx, id, now);
                clients.set_finished(&mut cx, id, now);
            }
            Phase::Handshake | Phase::Finished { .. } => {}
        }
        false
    }

    /// Whether a connection waits for a place among its user's: its end is to be noticed although
    /// nothing of it is read, so that it keeps no place in the queue, and nobody is closed for it.
    pub fn is_newcomer(&self, id: ConnId) -> bool {
        self.clients.conns.get(id).is_some_and(|conn| conn.newcomer.is_some())
    }

    /// Takes over a connection that moved here. `None`: there is not even a place for its refusal;
    /// close its socket.
    pub fn arrive(&mut self, departed: Departed, now: Micros) -> Option<ConnId> {
        let (clients, _, mut cx) = self.parts();
        let (id, next) = clients.arrive(&mut cx, departed, now)?;
        self.go_on_at_home(id, next, now);
        Some(id)
    }

    /// Takes back a connection that the lane refused, under another number. If the shard it should
    /// go to has ended (`is_gone`), it stays for good; else it tries again with the next tick.
    pub fn move_refused(&mut self, departed: Departed, is_gone: bool, now: Micros) -> ConnId {
        let (clients, _, mut cx) = self.parts();
        let (id, next) = clients.move_refused(&mut cx, departed, is_gone, now);
        self.go_on_at_home(id, next, now);
        id
    }

    fn go_on_at_home(&mut self, id: ConnId, next: AtHome, now: Micros) {
        match next {
            AtHome::Done => {}
            AtHome::Handshake => {
                self.shake_hands(id, &mut [], now);
            }
        }
    }

    /// Verifies tokens that wait, in the budget of a turn.
    pub(super) fn go_on_signing_in(&mut self, now: Micros) {
        self.clients.sign_in.turns.begin();
        loop {
            let (clients, _, mut cx) = self.parts();
            match clients.verify_next(&mut cx, now) {
                NextVerification::None => return,
                NextVerification::Done => {}
                // Frames behind the request may hold another `auth`: that one goes to the end.
                NextVerification::Upgrade(id) => {
                    self.shake_hands(id, &mut [], now);
                }
            }
        }
    }

    /// Lets connections go on that waited for a place among their user's: part of the tick.
    pub(super) fn go_on_with_newcomers(&mut self, now: Micros) {
        loop {
            let (clients, _, mut cx) = self.parts();
            let Some(id) = clients.place_next(&mut cx, now) else { return };
            self.shake_hands(id, &mut [], now);
        }
    }

    /// Reads on in an upgrade request, and in the frames behind it. Also called with no bytes, to
    /// go on with a complete request that was held.
    fn shake_hands(&mut self, id: ConnId, input: &mut [u8], now: Micros) -> ReadNext {
        let (clients, _, mut cx) = self.parts();
        match clients.shake_hands(&mut cx, id, input, now) {
            Handshake::ReadMore => ReadNext::More,
            Handshake::Waits => ReadNext::Pause,
            Handshake::Upgraded { consumed, held: None } => {
                self.work.charge(work::UPGRADE);
                self.feed(id, &mut input[consumed..], now)
            }
            Handshake::Upgraded { consumed, held: Some(mut held) } => {
                self.work.charge(work::UPGRADE);
                self.feed(id, &mut held[consumed..], now)
            }
        }
    }

    fn feed(&mut self, id: ConnId, input: &mut [u8], now: Micros) -> ReadNext {
        let conn = self.clients.conns.get_mut(id).expect("the caller has it");
        // Out of the slab for the time of the call, so that events can change the connection.
        let mut decoder = std::mem::take(&mut conn.decoder);
        let limits = conn.terms.frames;
        let mut events = 0;
        let fed = decoder.feed(&limits, input, |event| {
            events += 1;
            self.on_frame(id, event, now)
        });
        if let Ok(fed) = &fed {
            // The other frames were charged with their events.
            self.work.charge(i64::from(fed.frames.saturating_sub(events)) * work::FRAGMENT);
        }
        let (clients, _, mut cx) = self.parts();
        let catching_up = clients.is_catching_up(now);
        let Some(conn) = clients.conns.get_mut(id) else { return ReadNext::Pause };
        conn.decoder = decoder;
        let holds = conn.holds;
        match fed {
            Ok(fed) => {
                cx.stats.add(Counter::FramesIn, u64::from(fed.frames));
                let max = conn.terms.frames_per_s_max;
                let is_counted = max > 0 && !catching_up;
                let is_over = is_counted && conn.frames.add(fed.frames, now, 1_000_000) > max;
                if is_over && conn.phase == Phase::Open {
                    cx.stats.inc(Counter::ClosedPolicy);
                    clients.close(
                        &mut cx,
                        id,
                        close::POLICY,
                        "too many frames in a second: send fewer",
                        now,
                    );
                }
                // Without a hold it is the work that was spent.
                match fed.paused && !holds.is_empty() {
                    true => ReadNext::Pause,
                    false => ReadNext::More,
                }
            }
            Err(error) => {
                self.protocol_error(id, error, now);
                ReadNext::More
            }
        }
    }

    fn protocol_error(&mut self, id: ConnId, error: ProtocolError, now: Micros) {
        let (clients, _, mut cx) = self.parts();
        let Some(conn) = clients.conns.get(id) else { return };
        match conn.phase {
            Phase::Open => {
                cx.stats.inc(Counter::ClosedProtocol);
                clients.close(&mut cx, id, error.close_code(), error.text(), now);
            }
            // Our Close is out, and what came is not a Close: no use to wait for one.
            Phase::Closing { .. } => clients.set_finished(&mut cx, id, now),
            Phase::Handshake | Phase::Lingering { .. } | Phase::Finished { .. } => {}
        }
    }

    fn on_frame(&mut self, id: ConnId, event: FrameEvent<'_>, now: Micros) -> Flow {
        let flow = self.take_frame(id, event, now);
        if self.work.is_spent() { Flow::Pause } else { flow }
    }

    #[inline]
    fn take_frame(&mut self, id: ConnId, event: FrameEvent<'_>, now: Micros) -> Flow {
        self.work.charge(work::of_frame(&event));
        let (clients, _, mut cx) = self.parts();
        let Some(conn) = clients.conns.get(id) else { return Flow::Pause };
        if let FrameEvent::Close { code } = event {
            clients.on_close(&mut cx, id, code, now);
            return Flow::Continue;
        }
        if conn.phase != Phase::Open {
            return Flow::Continue;
        }
        let (decoded, bytes) = match (event, conn.encoding) {
            (FrameEvent::Text(text), Encoding::Json) => (json::decode(text), text.len()),
            (FrameEvent::Binary(bytes), Encoding::Protobuf) => {
                (protobuf::decode(bytes), bytes.len())
            }
            (FrameEvent::Text(_), Encoding::Protobuf) | (FrameEvent::Binary(_), Encoding::Json) => {
                cx.stats.inc(Counter::ClosedProtocol);
                let why = "JSON takes text frames and protobuf binary ones: send the other kind";
                clients.close(&mut cx, id, close::UNSUPPORTED, why, now);
                return Flow::Continue;
            }
            (FrameEvent::Ping(payload), _) => {
                clients.pong(&mut cx, id, payload);
                return Flow::Continue;
            }
            (FrameEvent::Pong | FrameEvent::Close { .. }, _) => return Flow::Continue,
        };
        // By the answers that were expected before: one large answer alone is no reason not to read
        // pings and other messages.
        let is_claimed = conn.outbox_claimed() >= conn.terms.outbox_bytes_max;
        cx.stats.decoded();
        match decoded {
            Ok(message) => self.on_message(id, &message, bytes, now),
            Err(bad) => self.on_bad(id, &bad, now),
        }
        let Self { clients, stats, config, .. } = self;
        let Some(conn) = clients.conns.get_mut(id) else { return Flow::Pause };
        conn.messages += 1;
        let is_full = conn.has_too_much_unanswered(&config.settings.conn);
        if is_full {
            conn.hold(Hold::Unanswered);
        }
        if is_claimed {
            conn.hold(Hold::Outbox);
        }
        if is_full || is_claimed {
            stats.inc(Counter::ReadPaused);
        }
        if conn.holds.is_empty() { Flow::Continue } else { Flow::Pause }
    }

    fn on_message(&mut self, id: ConnId, message: &ClientMessage<'_>, bytes: usize, now: Micros) {
        let (clients, dispatcher, mut cx) = self.parts();
        let conn = clients.conns.get_mut(id).expect("the caller has it");
        if message.seq > 0 {
            if message.seq <= conn.session.last_seq {
                let (reason, text) = (Reason::BadMessage, SEQ_FELL.into());
                self.on_bad(id, &BadMessage { seq: message.seq, reason, text }, now);
                return;
            }
            conn.session.last_seq = message.seq;
        }
        let category = cx.config.category(message);
        let begins = category != Category::System && !conn.session.is_used;
        conn.session.is_used |= begins;
        let source = conn.source(id, clients.sign_in.required);
        if begins {
            // Services hear of a session before they get its first message.
            clients.announce(&mut cx, id);
            dispatcher.send_events(&mut cx, clients, now);
        }
        if message.ack > 0 && clients.on_ack(id, message.ack).is_err() {
            let (reason, text) = (Reason::BadMessage, ACK_AHEAD.into());
            self.on_bad(id, &BadMessage { seq: message.seq, reason, text }, now);
            return;
        }
        cx.stats.message(category);
        cx.stats.add(Counter::MessageBytes, bytes as u64);
        let taken =
            clients.check_rate(&mut cx, id, message, bytes, now).and_then(|()| match category {
                Category::System => builtin::on_system(&mut cx, clients, &source, message, now),
                Category::Gateway => {
                    builtin::on_gateway(&mut cx, clients, dispatcher, &source, message, now)
                }
                Category::Business => dispatcher.submit(&mut cx, clients, &source, message, now),
            });
        if let Err(reject) = &taken {
            clients.refuse(&mut cx, id, category, message, reject, now);
        }
        self.work.charge(work::of_message(category, taken.is_err()));
    }

    /// Answers something that is not a message of this protocol by an `error`. The connection
    /// stays, unless there are too many.
    fn on_bad(&mut self, id: ConnId, bad: &BadMessage, now: Micros) {
        self.work.charge(work::BAD_MESSAGE);
        let (clients, _, mut cx) = self.parts();
        clients.tell_bad_message(&mut cx, id, bad);
        if clients.is_catching_up(now) {
            return;
        }
        let conn = clients.conns.get_mut(id).expect("the caller has it");
        if conn.bad.add(1, now, BAD_WINDOW_US) > cx.config.settings.conn.bad_messages_max {
            cx.stats.inc(Counter::ClosedPolicy);
            clients.close(
                &mut cx,
                id,
                close::POLICY,
                "too many bad messages: read the errors that answered them",
                now,
            );
        }
    }
}
