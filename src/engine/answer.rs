//! The end of a message: its one terminal answer (promise 1), into the outbox of its connection.

use crate::engine::conns::{Conn, Hold, Phase};
use crate::engine::dedup::StoredReply;
use crate::engine::pending::{Payload, Place};
use crate::engine::{Engine, is_over};
use crate::ids::{ConnId, MsgKey};
use crate::message::{Encoding, Micros, Reason, Reject, ServerMessage, status};
use crate::stats::{Counter, Stage};
use crate::wire::{client, json, protobuf};

/// A terminal answer, before encoding.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// Canonical gRPC code.
    pub status: u32,
    /// The gateway's word; `None` = the service's answer.
    pub reason: Option<Reason>,
    /// For people.
    pub text: &'a str,
    /// Payload.
    pub payload: &'a [u8],
    /// Whether JSON clients get the payload as base64.
    pub is_bytes: bool,
    /// 0 = absent.
    pub retry_after_ms: u32,
}

impl<'a> Answer<'a> {
    /// The gateway refuses.
    pub fn reject(reject: &Reject) -> Self {
        Self {
            status: reject.reason.status(),
            reason: Some(reject.reason),
            text: reject.text,
            payload: &[],
            is_bytes: false,
            retry_after_ms: reject.retry_after_ms,
        }
    }

    /// The gateway answers with OK.
    pub fn ok(payload: &'a [u8]) -> Self {
        Self {
            status: status::OK,
            reason: None,
            text: "",
            payload,
            is_bytes: false,
            retry_after_ms: 0,
        }
    }

    /// The answer that a duplicate gets.
    pub fn stored(reply: &'a StoredReply) -> Self {
        Self {
            status: reply.status,
            reason: reply.reason,
            text: &reply.message,
            payload: &reply.payload,
            is_bytes: reply.is_bytes,
            retry_after_ms: reply.retry_after_ms,
        }
    }

    fn to_stored(self) -> StoredReply {
        StoredReply {
            status: self.status,
            reason: self.reason,
            message: self.text.into(),
            payload: self.payload.into(),
            is_bytes: self.is_bytes,
            retry_after_ms: self.retry_after_ms,
        }
    }

    /// Whether it says that the message did not run, so that its id is free again.
    fn says_not_run(&self) -> bool {
        match self.reason {
            Some(
                Reason::NoRoute
                | Reason::QueueFull
                | Reason::RateLimited
                | Reason::Expired
                | Reason::Unavailable
                | Reason::TooLarge
                | Reason::Draining
                | Reason::Unauthenticated
                | Reason::Forbidden
                | Reason::BadMessage
                | Reason::Unimplemented,
            ) => true,
            Some(
                Reason::OutcomeUnknown
                | Reason::Duplicate
                | Reason::BadServiceReply
                | Reason::Internal,
            )
            | None => false,
        }
    }
}

/// A service's answer to a JSON client must be JSON.
const NOT_JSON: Reject = Reject::new(Reason::BadServiceReply, "the service's answer is not JSON");
/// Larger than a client's whole outbox.
const REPLY_TOO_LARGE: Reject =
    Reject::new(Reason::BadServiceReply, "the service's answer is larger than outbox_bytes_max");

/// A retry surely did not run, but the attempt before it may have: "not run" would be a lie.
const MAY_HAVE_RUN: Reject = Reject::new(
    Reason::OutcomeUnknown,
    "sent to the service before, which did not answer; it may have run",
);

impl Engine {
    /// Ends a message under way that is in no queue: answers it and those that wait for the same.
    pub(super) fn finish(&mut self, key: MsgKey, answer: &Answer<'_>, now: Micros) {
        let message = self.messages.get(key).expect("a message is finished once");
        let unknown = Answer { status: answer.status, ..Answer::reject(&MAY_HAVE_RUN) };
        let answer = if message.may_have_run && answer.says_not_run() { &unknown } else { answer };
        let (conn, msg_id, seq) = (message.conn, message.msg_id, message.seq);
        let (dedup, received, bytes) = (message.dedup, message.received, message.bytes());
        self.release(key);
        self.histograms.record(Stage::Whole, now.since(received), 1);
        self.settle(conn, bytes, now);
        self.reply(conn, msg_id, seq, answer, now);
        let Some(dedup) = dedup else { return };
        let waiters = if answer.says_not_run() {
            self.dedup.release(dedup)
        } else {
            let bytes = answer.text.len() + answer.payload.len();
            let is_kept = bytes <= self.settings.dedup.reply_bytes_max;
            self.dedup.finish(dedup, is_kept.then(|| answer.to_stored()), now)
        };
        for waiter in waiters {
            // One that had its own deadline is not known any more.
            if self.messages.get(waiter).is_some_and(|m| m.place == Place::Duplicate) {
                self.finish(waiter, answer, now);
            }
        }
    }

    /// Ends a message's key. Its slot keeps the small buffers for the next one, and nothing else.
    pub(super) fn release(&mut self, key: MsgKey) {
        if let Some(message) = self.messages.get_mut(key) {
            if let Payload::Large(_) = message.payload {
                message.payload = Payload::default();
            }
            message.user = None;
        }
        self.messages.release(key);
    }

    /// Undoes the insertion of a message that was not taken in after all.
    pub(super) fn withdraw(&mut self, key: MsgKey, now: Micros) {
        let message = self.messages.get(key).expect("the caller has it");
        let (conn, bytes) = (message.conn, message.bytes());
        self.release(key);
        self.settle(conn, bytes, now);
    }

    /// A message of the connection is not unanswered any more.
    fn settle(&mut self, id: ConnId, bytes: usize, now: Micros) {
        let Self { conns, effects, settings, .. } = self;
        let Some(conn) = conns.get_mut(id) else { return };
        conn.unanswered -= 1;
        conn.unanswered_bytes -= bytes;
        if conn.holds.is_empty() {
            return;
        }
        // Half of the cap: reading on for each single answer would cost a turn each.
        let low = conn.unanswered <= conn.terms.unanswered_max / 2;
        if low && !is_over(conn, settings) {
            conn.release(Hold::Unanswered, id, now, &mut effects.resumed);
        }
        if conn.moving.is_some() && conn.is_at_rest() {
            effects.moves.push(id);
        }
    }

    /// A message of the connection was answered as late: the call that has it goes on.
    pub(super) fn call_is_late(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(id) {
            conn.late_calls += 1;
        }
    }

    /// The call with a message that was answered as late has ended.
    pub(super) fn late_call_ended(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.late_calls -= 1;
        if conn.moving.is_some() && conn.is_at_rest() {
            self.effects.moves.push(id);
        }
    }

    /// Writes a terminal answer; counts it if there is nobody to write it to.
    pub(super) fn reply(
        &mut self,
        id: ConnId,
        msg_id: u32,
        seq: u64,
        answer: &Answer<'_>,
        now: Micros,
    ) {
        if let Some(reason) = answer.reason {
            self.reasons[reason as usize] += 1;
        }
        if seq == 0 {
            if let Some(reason) = answer.reason {
                self.refuse_one_way(id, reason, now);
            }
            return;
        }
        let Some(conn) = self.conns.get(id).filter(|c| c.phase == Phase::Open) else {
            self.counters.inc(Counter::AnswersUndeliverable);
            return;
        };
        let from_service = answer.reason.is_none();
        let json = conn.encoding == Encoding::Json;
        let is_text = json && !answer.is_bytes && !answer.payload.is_empty();
        let refused = if from_service && is_text && !json::is_json(answer.payload) {
            Some(&NOT_JSON)
        } else if answer.payload.len() > conn.terms.outbox_bytes_max {
            Some(&REPLY_TOO_LARGE)
        } else {
            None
        };
        let answer = refused.map_or(*answer, Answer::reject);
        if answer.status != status::OK {
            self.counters.inc(Counter::BusinessErrors);
        }
        self.counters.inc(Counter::Answers);
        self.send(
            id,
            &ServerMessage {
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
            },
        );
    }

    /// Appends a message to the connection's outbox, if it is open.
    pub(super) fn send(&mut self, id: ConnId, message: &ServerMessage<'_>) {
        let Self { conns, pool, effects, .. } = self;
        let Some(conn) = conns.get_mut(id).filter(|c| c.phase == Phase::Open) else { return };
        let out = conn.outbox.writer(pool);
        match conn.encoding {
            Encoding::Json => json::encode(out, message),
            Encoding::Protobuf => protobuf::encode(out, message),
        }
        mark_dirty(conn, id, &mut effects.dirty);
    }

    /// A one-way message was refused: told by an `error` with seq 0 and a count, at most one a
    /// second.
    pub(super) fn refuse_one_way(&mut self, id: ConnId, reason: Reason, now: Micros) {
        self.counters.inc(Counter::OneWayRefused);
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.refused_one_way += 1;
        conn.refused_why = reason;
        let never = conn.told_one_way == Micros(0);
        if never || now.since(conn.told_one_way) >= 1_000_000 {
            self.tell_refused(id, now);
        }
    }

    /// Tells how many one-way messages were refused since that was last told.
    pub(super) fn tell_refused(&mut self, id: ConnId, now: Micros) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let count = std::mem::take(&mut conn.refused_one_way);
        conn.told_one_way = now;
        let payload = client::payload(conn.encoding, &client::ErrorCount { count });
        let reason = conn.refused_why;
        self.send(
            id,
            &ServerMessage {
                kind: "error",
                status: reason.status(),
                reason: Some(reason),
                message: "one-way messages were refused",
                payload: &payload,
                ..ServerMessage::default()
            },
        );
    }
}

/// Puts a connection on the list to be flushed, once.
pub(super) fn mark_dirty(conn: &mut Conn, id: ConnId, dirty: &mut Vec<ConnId>) {
    if !conn.dirty {
        conn.dirty = true;
        dirty.push(id);
    }
}
