//! Messages to a client: answers, each counted once, and what the gateway says of itself.

use crate::engine::Context;
use crate::engine::answer::Answer;
use crate::engine::clients::conn::{Conn, Phase};
use crate::engine::clients::{Clients, append};
use crate::ids::ConnId;
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

    /// Writes an answer and counts it: by its reason; by the part of the gateway that says so, if
    /// it is an error (`None`: it is counted as a bad message); and as an answer, if it is the
    /// terminal one of a message.
    pub fn reply(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        category: Option<Category>,
        message: &ServerMessage<'_>,
    ) {
        if let Some(reason) = message.reason {
            self.count_reason(cx, id, reason);
        }
        let written = self.write(cx, id, message);
        if let (true, Some(category)) = (written && message.status != status::OK, category) {
            cx.stats.error(category);
        }
        if message.seq > 0 {
            cx.stats.inc(match written {
                true => Counter::Answers,
                false => Counter::AnswersUndeliverable,
            });
            if written && !cx.tenants.is_empty() {
                self.count_for_tenant(cx, id, TenantCounter::Answers);
            }
        }
    }

    /// Counts an error answer by its reason, and for the tenant of the client.
    fn count_reason(&mut self, cx: &mut Context<'_>, id: ConnId, reason: Reason) {
        cx.stats.reason(reason);
        if !cx.tenants.is_empty() {
            self.count_for_tenant(cx, id, TenantCounter::Errors);
        }
    }

    fn count_for_tenant(&mut self, cx: &mut Context<'_>, id: ConnId, counter: TenantCounter) {
        let tenant = self.conns.get(id).map(|conn| conn.session.owner.tenant);
        if let Some(tenant) = tenant {
            cx.tenants.add(tenant, counter, 1);
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
            self.count_reason(cx, id, reject.reason);
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
        id: ConnId,
        msg_id: u32,
        seq: u64,
        answer: &Answer<'_>,
        now: Micros,
    ) {
        if seq == 0 {
            if let Some(reason) = answer.reason {
                self.count_reason(cx, id, reason);
                self.refuse_one_way(cx, id, reason, now);
            }
            return;
        }
        let refused = self.conns.get(id).and_then(|conn| {
            let is_text = conn.encoding == Encoding::Json && !answer.is_bytes;
            let from_service = answer.reason.is_none() && !answer.payload.is_empty();
            // The size first: what is too large is not read.
            if answer.payload.len() > conn.terms.outbox_bytes_max {
                Some(REPLY_TOO_LARGE)
            } else if is_text && from_service && !json::is_json(answer.payload) {
                Some(NOT_JSON)
            } else {
                None
            }
        });
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
            offset: 0,
        };
        self.reply(cx, id, Some(Category::Business), &message);
        // Light answers add up to no more than the flush at the end of the turn can judge.
        if answer.payload.len() <= LIGHT_ANSWER_BYTES {
            return;
        }
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
