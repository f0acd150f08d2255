//! What becomes of messages when their call ends, and when their instance goes: promises 1, 2, 7.

use std::cmp::Reverse;

use bytes::Bytes;
use rand::RngExt;

use crate::engine::Context;
use crate::engine::answer::Answer;
use crate::engine::clients::Clients;
use crate::engine::dispatcher::calls::EXPIRED;
use crate::engine::dispatcher::request::Place;
use crate::engine::dispatcher::route_cache::RouteKey;
use crate::engine::dispatcher::{Delayed, Dispatcher};
use crate::ids::{InstanceId, MsgKey, Ticket};
use crate::limits;
use crate::message::{CallError, CallFault, Micros, Outcome, Reason, Reject, Started, status};
use crate::routing::{Order, PayloadKind};
use crate::stats::{Counter, Stage};
use crate::wire::backend::{ResponseItem, read_responses};

const NO_RESPONSE: Reject = Reject::new(
    Reason::BadServiceReply,
    "the service's answer did not hold exactly one response for this message",
);
const UNREADABLE: Reject =
    Reject::new(Reason::BadServiceReply, "the service's answer is not a BatchResponse");
pub(super) const UNAVAILABLE: Reject = Reject {
    reason: Reason::Unavailable,
    text: "the service could not be reached; the message did not run",
    retry_after_ms: 1_000,
};
const MAYBE_RAN: Reject = Reject::new(
    Reason::OutcomeUnknown,
    "sent to the service, which did not answer; it may have run",
);

impl Dispatcher {
    /// A call ended.
    pub fn on_outcome(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        outcome: Outcome,
        now: Micros,
    ) {
        let Outcome { ticket, result } = outcome;
        let Some(call) = self.calls.get_mut(ticket) else {
            cx.stats.inc(Counter::StaleOutcomes);
            return;
        };
        let mut items = std::mem::take(&mut call.items);
        let (started, unary) = (call.started, call.unary);
        let instance = call.instance.expect("a call in flight has an instance");
        let state = self.instances.get_mut(instance);
        state.in_flight -= 1;
        state.slot_freed = true;
        cx.stats.record(Stage::RoundTrip, now.since(started), 1);
        match result {
            Ok(body) => {
                let readable = match unary {
                    true => self.read_unary(cx, clients, ticket, &items, &body, now),
                    false => self.read_batch(cx, clients, ticket, &items, &body, now),
                };
                let state = self.instances.get_mut(instance);
                if readable { state.history.succeeded() } else { state.history.failed() }
            }
            Err(error) => {
                cx.stats.fault(error.fault);
                let took_us = now.since(started);
                self.instances.get_mut(instance).history.ended(&error, unary, took_us);
                let call = FailedCall { ticket, instance, items: &items, error: &error };
                self.fail(cx, clients, &call, now);
            }
        }
        items.clear();
        if let Some(call) = self.calls.get_mut(ticket) {
            call.items = items;
        }
        self.end_call(cx, clients, ticket, now);
        self.touch(instance);
    }

    /// Whether the message is in this call and has no answer yet.
    fn is_in(&self, key: MsgKey, ticket: Ticket) -> bool {
        self.requests.get(key).is_some_and(|m| m.place == Place::InFlight(ticket))
    }

    fn read_unary(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        ticket: Ticket,
        items: &[MsgKey],
        body: &Bytes,
        now: Micros,
    ) -> bool {
        for &key in items {
            if self.is_in(key, ticket) {
                let item = ResponseItem { request_id: key.0, payload: body, ..Default::default() };
                self.answer_item(cx, clients, key, &item, now);
            }
        }
        true
    }

    /// Whether the answer could be read at all.
    fn read_batch(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        ticket: Ticket,
        items: &[MsgKey],
        body: &[u8],
        now: Micros,
    ) -> bool {
        // The first pass counts, so that of two responses to one request neither is taken.
        // A look through the batch for each stranger is made for as many as the batch has items: a
        // service that sends 4 MiB of them must not cost 2 million looks.
        let (mut strangers, mut unknown) = (0, 0);
        let readable = read_responses(body, |item| {
            let key = MsgKey(item.request_id);
            match self.requests.get_mut(key) {
                Some(m) if m.place == Place::InFlight(ticket) => {
                    m.responses = m.responses.saturating_add(1);
                }
                Some(_) | None => {
                    strangers += 1;
                    unknown += u64::from(strangers > items.len() || !items.contains(&key));
                }
            }
        });
        cx.stats.add(Counter::UnknownResponses, unknown);
        if readable.is_ok() {
            let answered = read_responses(body, |item| {
                let key = MsgKey(item.request_id);
                let message = self.requests.get(key);
                if message.is_some_and(|m| m.place == Place::InFlight(ticket) && m.responses == 1) {
                    self.answer_item(cx, clients, key, &item, now);
                }
            });
            debug_assert!(answered.is_ok(), "the first pass read the same bytes");
        }
        let reject = if readable.is_ok() { &NO_RESPONSE } else { &UNREADABLE };
        for &key in items {
            if self.is_in(key, ticket) {
                self.count_item(cx, key, false);
                self.finish(cx, clients, key, &Answer::reject(reject), now);
            }
        }
        readable.is_ok()
    }

    fn count_item(&mut self, cx: &mut Context<'_>, key: MsgKey, ok: bool) {
        let Some(message) = self.requests.get(key) else { return };
        let state = self.instances.get_mut(message.instance);
        if ok {
            state.ok += 1;
            cx.stats.inc(Counter::DispatchOk);
        } else {
            state.failed += 1;
            cx.stats.inc(Counter::DispatchFailed);
        }
    }

    /// The service's own answer to one message.
    fn answer_item(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        key: MsgKey,
        item: &ResponseItem<'_>,
        now: Micros,
    ) {
        let message = self.requests.get(key).expect("the caller looked");
        let status =
            if item.status > status::UNAUTHENTICATED { status::UNKNOWN } else { item.status };
        let answer = Answer {
            status,
            reason: None,
            text: if message.rule.service_text { item.message } else { "" },
            payload: item.payload,
            is_bytes: message.rule.payload == PayloadKind::Bytes,
            retry_after_ms: item.retry_after_ms,
        };
        self.count_item(cx, key, status == status::OK);
        self.finish(cx, clients, key, &answer, now);
    }

    /// Sends the requests of a failed call again, or answers them.
    fn fail(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        call: &FailedCall<'_>,
        now: Micros,
    ) {
        let FailedCall { ticket, instance, items, error } = *call;
        // From the last to the first, so that each that is put back comes to stand before the one
        // that was sent after it.
        for &key in items.iter().rev() {
            if !self.is_in(key, ticket) {
                continue;
            }
            match self.verdict(cx, key, instance, error, now) {
                Verdict::Again { instance, at } => {
                    self.send_again(cx, key, instance, at, now);
                }
                Verdict::Answer(reject, status) => {
                    if error.started == Started::Maybe {
                        self.ordering.pass(self.requests.get(key).expect("is in the call"));
                    }
                    self.count_item(cx, key, false);
                    let mut answer = Answer::reject(&reject);
                    answer.status = status;
                    self.finish(cx, clients, key, &answer, now);
                }
                Verdict::Service => {
                    let message = self.requests.get(key).expect("is in the call");
                    let item = ResponseItem {
                        request_id: key.0,
                        status: error.status,
                        message: if message.rule.service_text { &error.message } else { "" },
                        ..Default::default()
                    };
                    self.answer_item(cx, clients, key, &item, now);
                }
            }
        }
    }

    /// What becomes of one message of a failed call (promise 7).
    fn verdict(
        &mut self,
        cx: &mut Context<'_>,
        key: MsgKey,
        failed: InstanceId,
        error: &CallError,
        now: Micros,
    ) -> Verdict {
        let message = self.requests.get_mut(key).expect("is in the call");
        let rule = message.rule;
        let not_run = error.started == Started::No;
        message.may_have_run |= !not_run;
        let never_run = !message.may_have_run;
        let attempts = message.attempt;
        let deadline = message.deadline;
        let route = RouteKey { tenant: message.tenant, service: rule.service, hash: message.hash };
        let unary = matches!(message.place, Place::InFlight(ticket)
            if self.calls.get(ticket).is_some_and(|t| t.unary));
        let give_up = match error.fault {
            CallFault::Status if unary => Verdict::Service,
            CallFault::BadReply => Verdict::Answer(
                Reject::new(Reason::BadServiceReply, "the service's answer broke the protocol"),
                error.status,
            ),
            _ if deadline <= now && never_run => Verdict::Answer(EXPIRED, EXPIRED.reason.status()),
            _ if never_run => Verdict::Answer(UNAVAILABLE, UNAVAILABLE.reason.status()),
            _ => Verdict::Answer(MAYBE_RAN, error.status),
        };
        // Sent again, it would run after one that was sent later (promise 2).
        let message = self.requests.get(key).expect("is in the call");
        let passed = !not_run && self.ordering.is_passed(message);
        let allowed = not_run
            || rule.idempotent
                && !passed
                && match error.fault {
                    CallFault::Status => error.status == status::UNAVAILABLE,
                    CallFault::BadReply | CallFault::TimedOut => false,
                    CallFault::NotConnected
                    | CallFault::Refused
                    | CallFault::Reset
                    | CallFault::ConnectionLost => true,
                };
        let pushed_back = error.pushback == Some(None);
        let drained = cx.drain.as_ref().is_some_and(|d| d.until <= now);
        if !allowed || pushed_back || drained || attempts >= limits::ATTEMPTS_MAX {
            return give_up;
        }
        let other = self.pick_other(cx, &route, rule.failover, Some(failed));
        // Surely not run, and someone else is there: at once, and without asking the budget.
        if not_run && let Some(instance) = other {
            return Verdict::Again { instance, at: now };
        }
        if not_run && error.fault == CallFault::NotConnected {
            return give_up;
        }
        if !not_run && attempts >= cx.config.settings.retry.attempts_max {
            return give_up;
        }
        if !not_run && !self.retries.try_retry(now) {
            cx.stats.inc(Counter::RetryBudgetSpent);
            return give_up;
        }
        let at = self.retry_at(cx, attempts, error.pushback.flatten(), now);
        if at >= deadline {
            return give_up;
        }
        Verdict::Again { instance: other.unwrap_or(failed), at }
    }

    /// 100 ms after the first attempt, doubled for each further one, +-20 %.
    fn retry_at(
        &mut self,
        cx: &mut Context<'_>,
        attempts: u32,
        pushback_ms: Option<u32>,
        now: Micros,
    ) -> Micros {
        let retry = &cx.config.settings.retry;
        let doubled = retry.delay_ms << attempts.saturating_sub(1).min(16);
        let delay_us = doubled.min(retry.delay_max_ms) * 1000;
        let jittered = delay_us * cx.rng.random_range(80..=120) / 100;
        let pushed = u64::from(pushback_ms.unwrap_or(0)) * 1000;
        Micros(now.0 + jittered.max(pushed))
    }

    /// Puts a message of an ended call back, before what follows it in its stream.
    fn send_again(
        &mut self,
        cx: &mut Context<'_>,
        key: MsgKey,
        instance: InstanceId,
        at: Micros,
        now: Micros,
    ) {
        let message = self.requests.get_mut(key).expect("is in the call");
        cx.stats.inc(Counter::Retries);
        cx.stats.inc(Counter::Enqueued);
        message.failed_on = Some(message.instance);
        let moved = message.instance != instance;
        message.instance = instance;
        message.responses = 0;
        let stream = message.stream;
        cx.stats.add(Counter::FailedOver, u64::from(moved));
        if let Some(stream) = stream {
            self.ordering.link_first(stream, key, &mut self.requests);
        }
        self.with_queue(instance, |queue, messages, _| queue.put_back(key, messages));
        match stream {
            // Freed with the ticket: the head is resumed then, or when the delay is over.
            Some(stream) => {
                let state = self.ordering.get_mut(stream);
                if at > now && !state.delayed {
                    state.delayed = true;
                    self.delayed.push(Reverse((at, Delayed::Stream(stream))));
                }
                self.move_stream(cx, stream, instance);
            }
            None if at > now => {
                self.requests.get_mut(key).expect("put back").delayed = true;
                self.delayed.push(Reverse((at, Delayed::Request(key))));
            }
            None => self.resume_head(cx, Some(key), instance),
        }
    }

    /// Takes a message out of its queue and its stream; the caller answers it.
    pub fn withdraw_waiting(&mut self, cx: &mut Context<'_>, key: MsgKey) {
        let message = self.requests.get(key).expect("the caller has it");
        debug_assert!(message.place == Place::Waiting);
        let (instance, stream) = (message.instance, message.stream);
        debug_assert!(stream.is_some() == (message.rule.order == Order::Session));
        cx.stats.inc(Counter::Dequeued);
        self.with_queue(instance, |queue, messages, _| {
            queue.compact(instance, messages);
            queue.forget(messages.get(key).expect("the caller has it"));
        });
        let Some(stream) = stream else { return };
        self.ordering.unlink(stream, key, &mut self.requests);
        let state = self.ordering.get(stream);
        if state.busy.is_none() && !state.delayed {
            let head = state.head;
            self.resume_head(cx, head, instance);
        }
        self.ordering.close_if_idle(stream);
    }
}

/// A call that failed as a whole.
struct FailedCall<'a> {
    ticket: Ticket,
    instance: InstanceId,
    items: &'a [MsgKey],
    error: &'a CallError,
}

/// What becomes of a message of a failed call.
enum Verdict {
    /// Sent again at a time.
    Again { instance: InstanceId, at: Micros },
    /// Answered by the gateway, with a gRPC status.
    Answer(Reject, u32),
    /// The failure is the service's own answer (unary mode).
    Service,
}
