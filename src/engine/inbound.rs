//! Bytes from a client: handshake, frames, messages, and which part of the gateway handles each.

use crate::engine::answer::{Answer, mark_dirty};
use crate::engine::auth::Entry;
use crate::engine::conns::{Hold, Phase, ReadNext};
use crate::engine::{Engine, is_over};
use crate::ids::ConnId;
use crate::message::{
    Category, ClientMessage, Encoding, Micros, Reason, Reject, ServerMessage, status,
};
use crate::stats::Counter;
use crate::wire::frames::{self, Flow, FrameEvent, ProtocolError};
use crate::wire::handshake::{self, Progress, ShownToken};
use crate::wire::json::BadMessage;
use crate::wire::{client, json, protobuf};

/// Window in which bad messages are counted: ten seconds.
const BAD_WINDOW_US: u64 = 10_000_000;
/// Close codes of ours that are not in RFC 6455.
pub(super) mod close {
    pub const GOING_AWAY: u16 = 1001;
    pub const UNSUPPORTED: u16 = 1003;
    pub const POLICY: u16 = 1008;
    pub const TRY_LATER: u16 = 1013;
    pub const TOO_SLOW: u16 = 4001;
    pub const NO_HEARTBEAT: u16 = 4002;
    pub const TOKEN_EXPIRED: u16 = 4004;
    pub const NO_AUTH: u16 = 4005;
    pub const BAD_TOKEN: u16 = 4500;
}

impl Engine {
    /// Bytes were received. They are unmasked in place and handed on as borrows where possible.
    pub fn on_bytes(&mut self, id: ConnId, input: &mut [u8], now: Micros) -> ReadNext {
        self.counters.inc(Counter::Receives);
        self.counters.add(Counter::BytesIn, input.len() as u64);
        let Some(conn) = self.conns.get_mut(id) else { return ReadNext::Pause };
        conn.heard = now;
        match conn.phase {
            Phase::Open => self.feed(id, input, now),
            Phase::Handshake => self.shake_hands(id, input, now),
            // A client that ends after our Close may still be sending: read and forget it.
            Phase::Closing { .. } => self.feed(id, input, now),
            Phase::Lingering { .. } | Phase::Finished { .. } => ReadNext::More,
        }
    }

    /// A paused connection may go on: what its decoder held back comes first.
    pub fn on_resumed(&mut self, id: ConnId, now: Micros) -> ReadNext {
        let Some(conn) = self.conns.get_mut(id) else { return ReadNext::Pause };
        conn.heard = now;
        // Resumed twice in one turn, and held again after the first of them.
        if !conn.holds.is_empty() {
            return ReadNext::Pause;
        }
        if conn.decoder.has_unread() { self.feed(id, &mut [], now) } else { ReadNext::More }
    }

    /// The client closed its sending side, or the socket failed. True: close the socket now.
    pub fn on_end(&mut self, id: ConnId) -> bool {
        // Without a Close frame nothing more can be said that would be read (RFC 6455, 7.1.5:
        // code 1006). An outbox with a last answer is still worth its flush.
        self.conns.get(id).is_none_or(|c| c.outbox.is_empty() || c.phase == Phase::Open)
    }

    /// Also called with no bytes, to go on with a complete request that was held.
    pub(super) fn shake_hands(&mut self, id: ConnId, input: &mut [u8], now: Micros) -> ReadNext {
        let conn = self.conns.get_mut(id).expect("the caller has it");
        let held = conn.handshake.take();
        let progress = match held {
            None => {
                let mut scanned = 0;
                let progress = handshake::try_upgrade(&self.rules, input, &mut scanned);
                if let Progress::Partial = progress {
                    conn.handshake = Some(Box::new((input.to_vec(), scanned)));
                }
                (progress, None)
            }
            Some(mut held) => {
                held.0.extend_from_slice(input);
                let progress = handshake::try_upgrade(&self.rules, &held.0, &mut held.1);
                if let Progress::Partial = progress {
                    conn.handshake = Some(held);
                    return ReadNext::More;
                }
                (progress, Some(held.0))
            }
        };
        match progress {
            (Progress::Partial, _) => ReadNext::More,
            (Progress::Refuse { response, status, why }, _) => {
                tracing::debug!(shard = self.shard.0, status, why, "handshake_refused");
                self.counters.inc(Counter::HandshakeRefused);
                self.linger(id, &response, now);
                ReadNext::More
            }
            (Progress::Upgrade { consumed, response, encoding, token }, held) => {
                match self.enter_with(id, token.as_ref().map(ShownToken::expose), now) {
                    Entry::As(identity) => {
                        self.upgrade(id, &response, encoding);
                        self.entered(id, identity, now);
                    }
                    Entry::Later => {
                        let conn = self.conns.get_mut(id).expect("the caller has it");
                        let held = held.unwrap_or_else(|| input.to_vec());
                        conn.handshake = Some(Box::new((held, 0)));
                        return ReadNext::Pause;
                    }
                    Entry::Refused(status, why, after_ms) => {
                        self.refuse_upgrade(id, status, &why, after_ms, now);
                        return ReadNext::More;
                    }
                }
                match held {
                    None => self.feed(id, &mut input[consumed..], now),
                    Some(mut held) => self.feed(id, &mut held[consumed..], now),
                }
            }
        }
    }

    fn upgrade(&mut self, id: ConnId, response: &[u8], encoding: Encoding) {
        let messages_per_s_max = self.messages_per_s_max(id);
        let Self { conns, pool, effects, .. } = self;
        let conn = conns.get_mut(id).expect("the caller has it");
        conn.phase = Phase::Open;
        conn.upgraded = true;
        conn.encoding = encoding;
        conn.outbox.writer(pool).extend_from_slice(response);
        mark_dirty(conn, id, &mut effects.dirty);
        let terms = &conn.terms;
        let welcome = client::Welcome {
            session: conn.session.as_str().to_owned(),
            node: self.gateway.node.clone(),
            shard: u32::from(self.shard.0),
            heartbeat_ms: u32::try_from(terms.heartbeat_ms).unwrap_or(u32::MAX),
            limits: Some(client::Limits {
                message_bytes_max: terms.frames.message_bytes_max as u32,
                unanswered_max: terms.unanswered_max,
                messages_per_s_max,
            }),
        };
        self.counters.inc(Counter::Upgraded);
        self.upgraded += 1;
        let payload = client::payload(encoding, &welcome);
        self.send(id, &ServerMessage { kind: "welcome", payload: &payload, ..Default::default() });
    }

    /// Writes an HTTP answer and gives the client time to read it and close first.
    fn linger(&mut self, id: ConnId, response: &[u8], now: Micros) {
        self.forget_move(id, now);
        let Self { conns, pool, effects, settings, .. } = self;
        let Some(conn) = conns.get_mut(id) else { return };
        conn.phase = Phase::Lingering { until: now.plus_ms(settings.conn.close_timeout_ms) };
        conn.outbox.writer(pool).extend_from_slice(response);
        mark_dirty(conn, id, &mut effects.dirty);
    }

    /// Answers an upgrade request with an error.
    pub(super) fn refuse_upgrade(
        &mut self,
        id: ConnId,
        status: u16,
        why: &str,
        after_ms: u32,
        now: Micros,
    ) {
        tracing::debug!(shard = self.shard.0, status, why, "handshake_refused");
        self.counters.inc(Counter::HandshakeRefused);
        self.linger(id, &handshake::refuse_for(status, why, after_ms), now);
    }

    /// The gateway stops before the upgrade request is complete.
    pub(super) fn refuse_handshake(&mut self, id: ConnId, now: Micros) {
        self.refuse_upgrade(id, 503, "this gateway is stopping; connect again", 1_000, now);
    }

    /// The handshake took too long.
    pub(super) fn handshake_timeout(&mut self, id: ConnId, now: Micros) {
        self.counters.inc(Counter::HandshakeTimeout);
        let response = handshake::refuse(408, "the upgrade request was not complete in time");
        self.linger(id, &response, now);
    }

    fn feed(&mut self, id: ConnId, input: &mut [u8], now: Micros) -> ReadNext {
        let conn = self.conns.get_mut(id).expect("the caller has it");
        // Out of the slab for the time of the call, so that events can change the connection.
        let mut decoder = std::mem::take(&mut conn.decoder);
        let limits = conn.terms.frames;
        let fed = decoder.feed(&limits, input, |event| self.on_frame(id, event, now));
        let Some(conn) = self.conns.get_mut(id) else { return ReadNext::Pause };
        conn.decoder = decoder;
        match fed {
            Ok(fed) => {
                self.counters.add(Counter::FramesIn, u64::from(fed.frames));
                let per_second = conn.frames.add(fed.frames, now, 1_000_000);
                let max = conn.terms.frames_per_s_max;
                if max > 0 && per_second > max && conn.phase == Phase::Open {
                    self.counters.inc(Counter::ClosedPolicy);
                    self.close(id, close::POLICY, "too many frames a second", now);
                }
                if fed.paused { ReadNext::Pause } else { ReadNext::More }
            }
            Err(error) => {
                self.protocol_error(id, error, now);
                ReadNext::More
            }
        }
    }

    fn protocol_error(&mut self, id: ConnId, error: ProtocolError, now: Micros) {
        let Some(conn) = self.conns.get(id) else { return };
        match conn.phase {
            Phase::Open => {
                self.counters.inc(Counter::ClosedProtocol);
                self.close(id, error.close_code(), error.text(), now);
            }
            // Our Close is out, and what came is not a Close: no use to wait for one.
            Phase::Closing { .. } => self.set_finished(id, now),
            Phase::Handshake | Phase::Lingering { .. } | Phase::Finished { .. } => {}
        }
    }

    fn set_finished(&mut self, id: ConnId, now: Micros) {
        let until = now.plus_ms(self.settings.conn.close_timeout_ms);
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.phase = Phase::Finished { until };
        mark_dirty(conn, id, &mut self.effects.dirty);
    }

    /// Sends a Close frame and waits for the client's.
    pub(super) fn close(&mut self, id: ConnId, code: u16, why: &str, now: Micros) {
        self.forget_move(id, now);
        let until = now.plus_ms(self.settings.conn.close_timeout_ms);
        let Self { conns, pool, effects, .. } = self;
        let Some(conn) = conns.get_mut(id).filter(|c| c.phase == Phase::Open) else { return };
        frames::write_close(conn.outbox.writer(pool), Some(code), why);
        // After an error of the client's the rest of its bytes cannot be read as frames.
        conn.phase = if conn.decoder.ended() {
            Phase::Lingering { until }
        } else {
            Phase::Closing { until }
        };
        mark_dirty(conn, id, &mut effects.dirty);
    }

    /// The client does not take what it asked for. It gets the code if it reads within the close
    /// timeout; nothing is added to what waits any more.
    pub(super) fn close_slow(&mut self, id: ConnId, now: Micros) {
        self.counters.inc(Counter::ClosedSlow);
        self.close(id, close::TOO_SLOW, "answers are not read fast enough", now);
    }

    fn on_frame(&mut self, id: ConnId, event: FrameEvent<'_>, now: Micros) -> Flow {
        let Some(conn) = self.conns.get(id) else { return Flow::Pause };
        if let FrameEvent::Close { code } = event {
            self.on_close(id, code, now);
            return Flow::Continue;
        }
        if conn.phase != Phase::Open {
            return Flow::Continue;
        }
        let decoded = match (event, conn.encoding) {
            (FrameEvent::Text(text), Encoding::Json) => json::decode(text),
            (FrameEvent::Binary(bytes), Encoding::Protobuf) => protobuf::decode(bytes),
            (FrameEvent::Text(_), Encoding::Protobuf) | (FrameEvent::Binary(_), Encoding::Json) => {
                self.counters.inc(Counter::ClosedProtocol);
                let why = "this subprotocol uses the other kind of data frame";
                self.close(id, close::UNSUPPORTED, why, now);
                return Flow::Continue;
            }
            (FrameEvent::Ping(payload), _) => {
                self.pong(id, payload);
                return Flow::Continue;
            }
            (FrameEvent::Pong | FrameEvent::Close { .. }, _) => return Flow::Continue,
        };
        self.decoded += 1;
        match decoded {
            Ok(message) => self.on_message(id, &message, now),
            Err(bad) => self.on_bad(id, &bad, now),
        }
        let Self { conns, counters, settings, .. } = self;
        let Some(conn) = conns.get_mut(id) else { return Flow::Pause };
        conn.messages += 1;
        if is_over(conn, settings) {
            conn.hold(Hold::Unanswered);
            counters.inc(Counter::ReadPaused);
        }
        if conn.holds.is_empty() { Flow::Continue } else { Flow::Pause }
    }

    fn on_close(&mut self, id: ConnId, code: Option<u16>, now: Micros) {
        let Self { conns, pool, .. } = self;
        let Some(conn) = conns.get_mut(id) else { return };
        if conn.phase == Phase::Open {
            frames::write_close(conn.outbox.writer(pool), code, "");
        }
        self.set_finished(id, now);
    }

    /// Answers a ping, unless so much waits already that the client does not read: then the ping
    /// tells it nothing (RFC 6455, 5.5.3 lets us answer only the newest).
    fn pong(&mut self, id: ConnId, payload: &[u8]) {
        let Self { conns, pool, effects, .. } = self;
        let Some(conn) = conns.get_mut(id) else { return };
        if conn.outbox.len() < PONG_OUTBOX_BYTES_MAX {
            frames::write_pong(conn.outbox.writer(pool), payload);
            mark_dirty(conn, id, &mut effects.dirty);
        }
    }

    /// Which part handles a message: its `type` first, then its id.
    pub(super) fn category(&self, message: &ClientMessage<'_>) -> Category {
        let (first, last) = self.gateway.gateway_ids;
        if !message.kind.is_empty() {
            Category::System
        } else if (first..=last).contains(&message.msg_id) {
            Category::Gateway
        } else {
            Category::Business
        }
    }

    fn on_message(&mut self, id: ConnId, message: &ClientMessage<'_>, now: Micros) {
        let conn = self.conns.get_mut(id).expect("the caller has it");
        if message.seq > 0 {
            if message.seq <= conn.last_seq {
                let reject = Reject::new(Reason::BadMessage, "seq must rise with each message");
                self.on_bad(id, &BadMessage { seq: message.seq, reject }, now);
                return;
            }
            conn.last_seq = message.seq;
        }
        if self.is_over_rate(id, message, now) {
            return;
        }
        match self.category(message) {
            Category::System => {
                self.counters.inc(Counter::SystemMessages);
                self.on_system(id, message, now);
            }
            Category::Gateway => {
                self.counters.inc(Counter::GatewayMessages);
                self.on_gateway(id, message, now);
            }
            Category::Business => {
                self.counters.inc(Counter::BusinessMessages);
                if let Err(reject) = self.submit(id, message, now) {
                    self.reply(id, message.msg_id, message.seq, &Answer::reject(&reject), now);
                }
            }
        }
    }

    /// Something that is not a message of this protocol: an `error`; the connection stays, unless
    /// there are too many.
    fn on_bad(&mut self, id: ConnId, bad: &BadMessage, now: Micros) {
        self.counters.inc(Counter::BadMessages);
        self.reasons[bad.reject.reason as usize] += 1;
        self.send(
            id,
            &ServerMessage {
                kind: "error",
                seq: bad.seq,
                status: bad.reject.reason.status(),
                message: bad.reject.text,
                reason: Some(bad.reject.reason),
                ..ServerMessage::default()
            },
        );
        let conn = self.conns.get_mut(id).expect("the caller has it");
        if conn.bad.add(1, now, BAD_WINDOW_US) > self.settings.conn.bad_messages_max {
            self.counters.inc(Counter::ClosedPolicy);
            self.close(id, close::POLICY, "too many bad messages", now);
        }
    }

    /// Answers a system or gateway message with OK.
    pub(super) fn own_reply(
        &mut self,
        id: ConnId,
        message: &ClientMessage<'_>,
        kind: &str,
        payload: &[u8],
    ) {
        self.counters.add(Counter::Answers, u64::from(message.seq > 0));
        self.send(
            id,
            &ServerMessage {
                msg_id: message.msg_id,
                seq: message.seq,
                kind,
                payload,
                status: status::OK,
                ..ServerMessage::default()
            },
        );
    }

    /// Answers a system or gateway message with an error.
    pub(super) fn own_error(
        &mut self,
        id: ConnId,
        message: &ClientMessage<'_>,
        category: Category,
        reject: Reject,
        now: Micros,
    ) {
        self.counters.inc(match category {
            Category::System => Counter::SystemErrors,
            Category::Business => Counter::BusinessErrors,
            Category::Gateway => Counter::GatewayErrors,
        });
        if message.seq == 0 {
            self.refuse_one_way(id, reject.reason, now);
            return;
        }
        self.reasons[reject.reason as usize] += 1;
        self.counters.inc(Counter::Answers);
        self.send(
            id,
            &ServerMessage {
                msg_id: message.msg_id,
                seq: message.seq,
                kind: "error",
                status: reject.reason.status(),
                message: reject.text,
                reason: Some(reject.reason),
                retry_after_ms: reject.retry_after_ms,
                ..ServerMessage::default()
            },
        );
    }
}

/// Pongs are not written while more than this waits: 16 KiB, two hundred replies.
const PONG_OUTBOX_BYTES_MAX: usize = 16 << 10;
