//! The end of a request: its one terminal answer (promise 1), and the answers of its duplicates.

use crate::engine::Context;
use crate::engine::answer::Answer;
use crate::engine::clients::Clients;
use crate::engine::dispatcher::Dispatcher;
use crate::engine::dispatcher::dedup::StoredReply;
use crate::engine::dispatcher::request::State;
use crate::engine::events::NO_SESSION;
use crate::ids::MsgKey;
use crate::message::{Micros, Reason, Reject};
use crate::routing::Order;
use crate::stats::{Counter, Stage};

/// Answer instead of one that says "not run" if an earlier attempt may have run.
const MAY_HAVE_RUN: Reject = Reject::new(
    Reason::OutcomeUnknown,
    "the service did not answer an earlier attempt: the message may have run",
);

impl<'a> Answer<'a> {
    /// The answer to a duplicate.
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

    /// Whether the answer says that the message did not run, so that its id is free again.
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

impl Dispatcher {
    /// Ends a request that is in no queue: answers it, and its duplicates.
    pub fn finish(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        key: MsgKey,
        answer: &Answer<'_>,
        now: Micros,
    ) {
        self.leave_call(key, false, now);
        let request = self.requests.get_mut(key).expect("a request is finished once");
        if request.session_key == NO_SESSION {
            return self.end_event(cx, clients, key, answer, now);
        }
        let unknown = Answer { status: answer.status, ..Answer::reject(&MAY_HAVE_RUN) };
        let answer = if request.may_have_run && answer.says_not_run() { &unknown } else { answer };
        let (session, msg_id, seq) = (request.session_key, request.msg_id, request.seq);
        let (dedup, received, claim) = (request.dedup, request.received, request.claim());
        self.release(cx, key);
        cx.stats.record(Stage::Whole, now.since(received), 1);
        // In this order: what the outbox holds keeps a connection from being read on.
        clients.answer(cx, session, msg_id, seq, answer, now);
        clients.settle(cx, session, claim, now);
        let Some(dedup) = dedup else { return };
        let waiters = if answer.says_not_run() {
            self.dedup.release(dedup)
        } else {
            let bytes = answer.text.len() + answer.payload.len();
            let is_kept = bytes <= cx.config.settings.dedup.reply_bytes_max;
            self.dedup.finish(dedup, is_kept.then(|| answer.to_stored()), now)
        };
        for waiter in waiters {
            // A duplicate that passed its own deadline is gone.
            if self.requests.get(waiter).is_some_and(|r| r.state == State::Duplicate) {
                self.finish(cx, clients, waiter, answer, now);
            }
        }
    }

    /// Ends the key of a request. The slot keeps the small buffers for the next one.
    pub fn release(&mut self, cx: &mut Context<'_>, key: MsgKey) {
        if let Some(request) = self.requests.get_mut(key) {
            if !cx.tenants.is_empty() {
                cx.tenants.settle(request.holder.tenant, request.bytes());
            }
            request.clear();
        }
        self.requests.release(key);
    }

    /// Undoes the insertion of a duplicate for which the dedup window has no room.
    pub fn undo_insert(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        key: MsgKey,
        now: Micros,
    ) {
        let request = self.requests.get(key).expect("the caller has it");
        let (session, claim) = (request.session_key, request.claim());
        self.release(cx, key);
        clients.settle(cx, session, claim, now);
    }

    /// Removes a waiting request from its queue and its stream; the caller finishes it.
    pub fn withdraw_waiting(&mut self, cx: &mut Context<'_>, key: MsgKey) {
        let request = self.requests.get(key).expect("the caller has it");
        debug_assert!(request.state == State::Waiting);
        let (instance, stream) = (request.instance, request.stream);
        let line = request.position.line;
        debug_assert!(stream.is_some() == (request.handling.order == Order::Session));
        cx.stats.inc(Counter::Dequeued);
        self.with_queue(instance, line, |queue, requests| {
            queue.compact(requests);
            queue.forget(requests.get_mut(key).expect("the caller has it"));
        });
        let Some(stream) = stream else { return };
        self.ordering.unlink(stream, key, &mut self.requests);
        self.release_followers(stream);
        let state = self.ordering.get(stream);
        if state.busy.is_none() && !state.delayed {
            let head = state.head;
            self.resume_head(head, instance);
        }
        self.ordering.close_if_idle(stream);
    }
}
