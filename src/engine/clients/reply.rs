//! Messages to a client: answers, each counted once, and what the gateway says of itself.

use crate::engine::Context;
use crate::engine::answer::Answer;
use crate::engine::clients::conn::{Conn, Phase};
use crate::engine::clients::joining::Wanted;
use crate::engine::clients::outbox::POOLED_BYTES_MAX;
use crate::engine::clients::sessions::Seat;
use crate::engine::clients::{Clients, append, mark_dirty};
use crate::ids::{ConnId, SessionKey};
use crate::limits::LIGHT_ANSWER_BYTES;
use crate::message::{
    Category, ClientMessage, Encoding, Micros, Reason, Reject, ServerMessage, status,
};
use crate::stats::{Counter, TenantCounter};
use crate::wire::bad_message::BadMessage;
use crate::wire::{client, frames, json, protobuf};

/// A service's answer to a JSON client must be JSON.
const NOT_JSON: Reject =
    Reject::new(Reason::BadServiceReply, "the message ran, but the service's answer is not JSON");
/// Larger than a client's whole outbox.
const REPLY_TOO_LARGE: Reject = Reject::new(
    Reason::BadServiceReply,
    "the message ran, but its answer is larger than outbox_bytes_max",
);
/// The place that an answer went to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Delivery {
    /// Into the outbox of the session's connection.
    Written,
    /// Into the window of a session whose client is to come back.
    Kept,
    /// Nowhere.
    Lost,
}

/// Pongs are not written while more than this waits: 16 KiB, two hundred replies.
const PONG_OUTBOX_BYTES_MAX: usize = 16 << 10;
/// Between two errors that tell how many messages without seq were refused; count says how many.
const ONE_WAY_EVERY_US: u64 = 1_000_000;

impl Clients {
    /// Appends a message to the connection's outbox, if it is open. True: it was.
    pub fn write(&mut self, cx: &mut Context<'_>, id: ConnId, message: &ServerMessage<'_>) -> bool {
        let Some(conn) = self.conns.get_mut(id).filter(|c| c.phase == Phase::Open) else {
            return false;
        };
        let encoding = conn.encoding;
        append(conn, id, &mut self.buffers, cx.effects, |out| match encoding {
            Encoding::Json => json::encode(out, message),
            Encoding::Protobuf => protobuf::encode(out, message),
        });
        true
    }

    /// Writes an answer to a connection's session, as [`Self::reply_to`] does.
    pub fn reply(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        category: Option<Category>,
        message: &ServerMessage<'_>,
    ) {
        if let Some(conn) = self.conns.get(id) {
            self.reply_to(cx, conn.session.key, category, message);
        }
    }

    /// Writes an answer and counts it: by its reason; by the part of the gateway that says so, if
    /// it is an error (`None`: it is counted as a bad message); and as an answer, if it is the
    /// terminal one of a message.
    fn reply_to(
        &mut self,
        cx: &mut Context<'_>,
        key: SessionKey,
        category: Option<Category>,
        message: &ServerMessage<'_>,
    ) {
        if let Some(reason) = message.reason {
            self.count_reason(cx, key, reason);
        }
        let delivery = self.deliver(cx, key, message);
        let has_room = delivery != Delivery::Lost;
        if let (true, Some(category)) = (has_room && message.status != status::OK, category) {
            cx.stats.error(category);
        }
        if message.seq > 0 {
            cx.stats.inc(match delivery {
                Delivery::Written => Counter::Answers,
                Delivery::Kept => Counter::AnswersKept,
                Delivery::Lost => Counter::AnswersUndeliverable,
            });
            if has_room && !cx.tenants.is_empty() {
                self.count_for_tenant(cx, key, TenantCounter::Answers);
            }
        }
    }

    /// Writes an answer into its connection's outbox, and keeps it, numbered, if the session can be
    /// resumed; also of one that is away, or whose connection ends.
    #[inline]
    fn deliver(
        &mut self,
        cx: &mut Context<'_>,
        key: SessionKey,
        message: &ServerMessage<'_>,
    ) -> Delivery {
        let Some(seat) = self.sessions.seat(key) else { return Delivery::Lost };
        if let Seat::At(id) = *seat {
            let Some(conn) = self.conns.get(id) else { return Delivery::Lost };
            if conn.session.resumption.is_none() || message.seq == 0 {
                return match self.write(cx, id, message) {
                    true => Delivery::Written,
                    false => Delivery::Lost,
                };
            }
        }
        self.deliver_numbered(cx, key, message)
    }

    /// Writes a message to a resumable session with its next offset, and keeps it; also of one that
    /// is away, or whose connection ends.
    pub(super) fn deliver_numbered(
        &mut self,
        cx: &mut Context<'_>,
        key: SessionKey,
        message: &ServerMessage<'_>,
    ) -> Delivery {
        let caps = Self::window_caps(cx, self.sessions.kept_bytes);
        let Self { conns, sessions, buffers, frame, .. } = self;
        frame.clear();
        let (outbox, session) = match sessions.seat_mut(key) {
            Some(Seat::At(id)) => {
                let id = *id;
                let Some(conn) = conns.get_mut(id) else { return Delivery::Lost };
                let is_open = conn.phase == Phase::Open;
                if !is_open && conn.ends_session {
                    return Delivery::Lost;
                }
                if is_open {
                    mark_dirty(conn, id, cx.effects);
                }
                (is_open.then_some(&mut conn.outbox), &mut conn.session)
            }
            Some(Seat::Away(session)) => (None, session),
            None => return Delivery::Lost,
        };
        let Some(resumption) = session.resumption.as_deref_mut() else { return Delivery::Lost };
        let kept = &mut resumption.kept;
        let (bytes, count) = (kept.size(), kept.count() as u64);
        let is_written = outbox.is_some();
        // The size first: what is too large is not encoded.
        let is_kept = if !is_written && message.payload.len() > caps.bytes {
            kept.skip();
            false
        } else {
            let out = outbox.map_or(&mut *frame, |outbox| outbox.writer(buffers));
            let begin = out.len();
            let message = ServerMessage { offset: kept.last() + 1, ..*message };
            match resumption.encoding {
                Encoding::Json => json::encode(out, &message),
                Encoding::Protobuf => protobuf::encode(out, &message),
            }
            kept.push(&out[begin..], caps)
        };
        let (bytes_now, count_now) = (kept.size(), kept.count() as u64);
        frame.shrink_to(POOLED_BYTES_MAX);
        sessions.frames_dropped += count + 1 - count_now;
        sessions.kept_bytes = sessions.kept_bytes + bytes_now - bytes;
        match (is_written, is_kept) {
            (true, _) => Delivery::Written,
            (false, true) => Delivery::Kept,
            (false, false) => Delivery::Lost,
        }
    }

    /// Counts an error answer by its reason, and for the tenant of the client.
    fn count_reason(&mut self, cx: &mut Context<'_>, key: SessionKey, reason: Reason) {
        cx.stats.reason(reason);
        if !cx.tenants.is_empty() {
            self.count_for_tenant(cx, key, TenantCounter::Errors);
        }
    }

    fn count_for_tenant(&mut self, cx: &mut Context<'_>, key: SessionKey, counter: TenantCounter) {
        if let Some((session, _)) = self.session_mut(key) {
            cx.tenants.add(session.owner.tenant, counter, 1);
        }
    }

    /// Answers a message of the gateway or the system with OK.
    pub fn reply_ok(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        category: Category,
        message: &ClientMessage<'_>,
        kind: &str,
        payload: &[u8],
    ) {
        let (msg_id, seq) = (message.msg_id, message.seq);
        let answer = ServerMessage { msg_id, seq, kind, payload, ..ServerMessage::default() };
        self.reply(cx, id, Some(category), &answer);
    }

    /// Answers a session's message about a group with OK, later than it came.
    pub(super) fn answer_gateway(
        &mut self,
        cx: &mut Context<'_>,
        key: SessionKey,
        wanted: Wanted,
        payload: &[u8],
    ) {
        let Wanted { seq, msg_id } = wanted;
        let answer = ServerMessage { msg_id, seq, payload, ..ServerMessage::default() };
        self.reply_to(cx, key, Some(Category::Gateway), &answer);
    }

    /// Answers a session's message about a group with a refusal, later than it came.
    pub(super) fn answer_reject(
        &mut self,
        cx: &mut Context<'_>,
        key: SessionKey,
        wanted: Wanted,
        reject: &Reject,
    ) {
        let Wanted { seq, msg_id } = wanted;
        if seq > 0 {
            let Reject { text: message, retry_after_ms, reason, .. } = *reject;
            let error = ServerMessage { msg_id, message, retry_after_ms, ..error(seq, reason) };
            self.reply_to(cx, key, Some(Category::Gateway), &error);
        }
    }

    /// Refuses a message: one that wants an answer gets it, one-way messages are told together.
    pub fn refuse(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        category: Category,
        message: &ClientMessage<'_>,
        reject: &Reject,
        now: Micros,
    ) {
        if message.seq == 0 {
            if let Some(key) = self.conns.get(id).map(|conn| conn.session.key) {
                self.count_reason(cx, key, reject.reason);
            }
            self.refuse_one_way(cx, id, reject.reason, now);
            return;
        }
        let kind = match category {
            Category::Business => "",
            Category::System | Category::Gateway => "error",
        };
        let held;
        let text = match reject.held {
            0 => reject.text,
            n => {
                held = format!("{} ({n} wait)", reject.text);
                &held
            }
        };
        let error = ServerMessage {
            msg_id: message.msg_id,
            kind,
            message: text,
            retry_after_ms: reject.retry_after_ms,
            ..error(message.seq, reject.reason)
        };
        self.reply(cx, id, Some(category), &error);
    }

    /// Writes an error about the connection's state, at once even for a one-way message: the
    /// connection may be closed next.
    pub fn tell_error(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        seq: u64,
        reason: Reason,
        text: &str,
        retry_after_ms: u32,
    ) {
        let error = ServerMessage { message: text, retry_after_ms, ..error(seq, reason) };
        self.reply(cx, id, Some(Category::System), &error);
    }

    /// Answers something that is not a message of this protocol.
    pub fn tell_bad_message(&mut self, cx: &mut Context<'_>, id: ConnId, bad: &BadMessage) {
        cx.stats.inc(Counter::BadMessages);
        let error = ServerMessage { message: &bad.text, ..error(bad.seq, bad.reason) };
        self.reply(cx, id, None, &error);
    }

    /// Answers a business message: the end of promise 1.
    pub fn answer(
        &mut self,
        cx: &mut Context<'_>,
        key: SessionKey,
        msg_id: u32,
        seq: u64,
        answer: &Answer<'_>,
        now: Micros,
    ) {
        let seat = self.sessions.seat(key);
        let at = seat.and_then(|seat| if let Seat::At(id) = seat { Some(*id) } else { None });
        if seq == 0 {
            if let Some(reason) = answer.reason {
                self.count_reason(cx, key, reason);
                match at {
                    Some(id) => self.refuse_one_way(cx, id, reason, now),
                    None => cx.stats.inc(Counter::OneWayRefused),
                }
            }
            return;
        }
        // Of one that is away its own window is the bound: what is larger is not read either.
        let (encoding, bytes_max) = match (seat, at.and_then(|id| self.conns.get(id))) {
            (_, Some(conn)) => (Some(conn.encoding), conn.terms.outbox_bytes_max),
            (Some(Seat::Away(session)), None) => {
                let fits = answer.payload.len() <= cx.config.settings.session.kept_bytes_max;
                let resumption = session.resumption.as_deref().filter(|_| fits);
                (resumption.map(|resumption| resumption.encoding), usize::MAX)
            }
            (Some(Seat::At(_)) | None, None) => (None, usize::MAX),
        };
        let is_text = encoding == Some(Encoding::Json) && !answer.is_bytes;
        let from_service = answer.reason.is_none() && !answer.payload.is_empty();
        // The size first: what is too large is not read.
        let refused = if answer.payload.len() > bytes_max {
            Some(REPLY_TOO_LARGE)
        } else if is_text && from_service && !json::is_json(answer.payload) {
            Some(NOT_JSON)
        } else {
            None
        };
        let answer = refused.as_ref().map_or(*answer, Answer::reject);
        let message = ServerMessage {
            msg_id,
            seq,
            kind: "",
            payload: answer.payload,
            payload_is_bytes: answer.is_bytes,
            status: answer.status,
            message: answer.text,
            reason: answer.reason,
            retry_after_ms: answer.retry_after_ms,
            ..ServerMessage::default()
        };
        self.reply_to(cx, key, Some(Category::Business), &message);
        // Light answers add up to no more than the flush at the end of the turn can judge.
        if answer.payload.len() <= LIGHT_ANSWER_BYTES {
            return;
        }
        let Some(id) = at else { return };
        let is_open = |conn: &&Conn| conn.phase == Phase::Open;
        if self.conns.get(id).filter(is_open).is_some_and(Conn::is_overfull_by_far) {
            self.close_slow(cx, id, now);
        }
    }

    /// Counts a refused one-way message. The client is told by an `error` with seq 0 and a count,
    /// at most one a second.
    fn refuse_one_way(&mut self, cx: &mut Context<'_>, id: ConnId, reason: Reason, now: Micros) {
        cx.stats.inc(Counter::OneWayRefused);
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.one_way.count += 1;
        conn.one_way.reason = reason;
        let told = conn.one_way.told;
        if told == Micros(0) || now.since(told) >= ONE_WAY_EVERY_US {
            self.tell_refused(cx, id, now);
        }
    }

    /// Tells how many one-way messages were refused since that was last told.
    pub fn tell_refused(&mut self, cx: &mut Context<'_>, id: ConnId, now: Micros) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let count = std::mem::take(&mut conn.one_way.count);
        conn.one_way.told = now;
        let payload = client::payload(conn.encoding, &client::ErrorCount { count });
        let reason = conn.one_way.reason;
        let message = ServerMessage {
            kind: "error",
            status: reason.status(),
            reason: Some(reason),
            message: "messages without seq were refused; count says how many",
            payload: &payload,
            ..ServerMessage::default()
        };
        self.write(cx, id, &message);
    }

    /// Tells a client of the stop, if there is one, and when to come back.
    pub fn tell_draining(&mut self, cx: &mut Context<'_>, id: ConnId) {
        use rand::RngExt;
        let Some(drain) = cx.drain else { return };
        let least_ms = drain.settings.reconnect.as_millis() as u32;
        // By chance, so that those closed together do not come back together.
        let reconnect_after_ms = least_ms + cx.rng.random_range(0..=least_ms);
        let Some(conn) = self.conns.get(id) else { return };
        let payload = client::payload(conn.encoding, &client::Draining { reconnect_after_ms });
        let kind = "draining";
        self.write(cx, id, &ServerMessage { kind, payload: &payload, ..Default::default() });
    }

    /// Answers a ping, unless so much waits already that the client does not read: then the ping
    /// tells it nothing (RFC 6455, 5.5.3 lets us answer only the newest).
    pub fn pong(&mut self, cx: &mut Context<'_>, id: ConnId, payload: &[u8]) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.outbox.len() < PONG_OUTBOX_BYTES_MAX {
            append(conn, id, &mut self.buffers, cx.effects, |out| frames::write_pong(out, payload));
        }
    }

    /// Sends a WebSocket ping, unless bytes wait that the kernel does not take: then it would come
    /// behind them and tell nothing. Bytes that just were not offered yet are no reason: a kernel
    /// takes them for a client that is gone, too. Any frame of the client answers it.
    pub fn ping(&mut self, cx: &mut Context<'_>, id: ConnId, now: Micros) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if !conn.outbox.is_stuck() {
            conn.pinged = Some(now);
            cx.stats.inc(Counter::Pings);
            append(conn, id, &mut self.buffers, cx.effects, frames::write_ping);
        }
    }
}

/// An error that answers the message with this seq.
fn error(seq: u64, reason: Reason) -> ServerMessage<'static> {
    ServerMessage {
        seq,
        kind: "error",
        status: reason.status(),
        reason: Some(reason),
        ..ServerMessage::default()
    }
}
