//! The verdict on each request of a failed call: sent again, or answered (promise 7).

use std::cmp::Reverse;

use rand::RngExt;

use crate::engine::Context;
use crate::engine::dispatcher::calls::EXPIRED;
use crate::engine::dispatcher::request::Request;
use crate::engine::dispatcher::{Delayed, Dispatcher};
use crate::engine::events::NO_SESSION;
use crate::ids::{InstanceId, MsgKey, Ticket};
use crate::limits;
use crate::message::{CallError, CallFault, Micros, Reason, Reject, Started, status};
use crate::stats::Counter;

pub(super) const UNAVAILABLE: Reject = Reject::later(
    Reason::Unavailable,
    "the service could not be reached, so the message did not run: send it again",
    1_000,
);
const MAYBE_RAN: Reject = Reject::new(
    Reason::OutcomeUnknown,
    "the message was sent to the service, which did not answer: it may have run",
);

const FAILED: Reject = Reject::new(
    Reason::OutcomeUnknown,
    "the service answered with an error instead of a result: the message may have run",
);

/// A call that failed as a whole.
pub(super) struct FailedCall<'a> {
    pub ticket: Ticket,
    pub instance: InstanceId,
    pub unary: bool,
    pub items: &'a [MsgKey],
    pub error: &'a CallError,
}

/// The end of one request of a failed call.
pub(super) enum Verdict {
    /// The request is sent again at a time.
    Again { instance: InstanceId, at: Micros },
    /// The gateway answers, with a gRPC status.
    Answer(Reject, u32),
    /// The gateway answers that the service's answer cannot be used, and why.
    BadReply,
    /// The failure is the service's own answer (unary mode).
    Service,
}

impl Dispatcher {
    /// Judges one request of a failed call.
    pub(super) fn verdict(
        &mut self,
        cx: &mut Context<'_>,
        key: MsgKey,
        call: &FailedCall<'_>,
        now: Micros,
    ) -> Verdict {
        let request = self.requests.get_mut(key).expect("is in the call");
        request.may_have_run |= call.error.started == Started::Maybe;
        let is_event = request.session_key == NO_SESSION;
        match self.retry(cx, key, call, now) {
            Some((instance, at)) => Verdict::Again { instance, at },
            // It waits until there is an instance for it.
            None if is_event && may_be_told_again(call.error) => {
                Verdict::Answer(UNAVAILABLE, UNAVAILABLE.reason.status())
            }
            None => give_up(self.requests.get(key).expect("is in the call"), call, now),
        }
    }

    /// Instance and time for the next attempt of a request of a failed call; `None` if there is
    /// none.
    fn retry(
        &mut self,
        cx: &mut Context<'_>,
        key: MsgKey,
        call: &FailedCall<'_>,
        now: Micros,
    ) -> Option<(InstanceId, Micros)> {
        let error = call.error;
        let request = self.requests.get(key).expect("is in the call");
        let attempts = request.attempt;
        if !self.may_repeat(request, error) || is_ruled_out(cx, attempts, error, now) {
            return None;
        }
        let failover = request.handling.failover;
        let other = self.pick_other(cx, &request.route_key(), failover, Some(call.instance));
        match (error.started, other) {
            // At once, and without the budget: no instance runs it for a second time.
            (Started::No, Some(other)) => return Some((other, now)),
            (Started::No, None) if error.fault == CallFault::NotConnected => return None,
            (Started::No, None) => {}
            (Started::Maybe, _) => {
                if attempts >= cx.config.settings.retry.attempts_max {
                    return None;
                }
                if !self.retries.try_retry(now) {
                    cx.stats.inc(Counter::RetryBudgetSpent);
                    return None;
                }
            }
        }
        let at = retry_at(cx, attempts, error.pushback.flatten(), now);
        (at < request.deadline).then(|| (other.unwrap_or(call.instance), at))
    }

    /// Whether the request may be sent again without a promise broken: it surely did not run, or it
    /// may run twice and runs before those that were sent after it (promise 2).
    fn may_repeat(&self, request: &Request, error: &CallError) -> bool {
        match error.started {
            Started::No => true,
            Started::Maybe => {
                request.handling.idempotent
                    && is_transient(error)
                    && !self.ordering.is_passed(request)
            }
        }
    }

    /// Puts a request of a failed call back, before what follows it in its stream.
    pub(super) fn send_again(
        &mut self,
        cx: &mut Context<'_>,
        key: MsgKey,
        instance: InstanceId,
        at: Micros,
        now: Micros,
    ) {
        self.leave_call(key, true, now);
        let request = self.requests.get_mut(key).expect("is in the call");
        cx.stats.inc(Counter::Retries);
        cx.stats.inc(Counter::Enqueued);
        request.failed_on = Some(request.instance);
        let moved = request.instance != instance;
        request.instance = instance;
        request.responses = 0;
        // Without a stream, it waits for the delay itself.
        let stream = request.stream;
        request.delayed = stream.is_none() && at > now;
        cx.stats.add(Counter::FailedOver, u64::from(moved));
        let mut line = request.position.line;
        if let Some(stream) = stream {
            // A stream waits in one line.
            let next = self.ordering.get(stream).head.and_then(|head| self.requests.get(head));
            line = next.map_or(line, |next| next.position.line);
            self.requests.get_mut(key).expect("is in the call").position.line = line;
            self.ordering.link_first(stream, key, &mut self.requests);
        }
        self.with_queue(instance, line, |queue, requests| queue.put_back(key, requests));
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
            None if at > now => self.delayed.push(Reverse((at, Delayed::Request(key)))),
            None => self.resume_head(Some(key), instance),
        }
    }
}

/// The answer to a request of a failed call that is not sent again.
fn give_up(request: &Request, call: &FailedCall<'_>, now: Micros) -> Verdict {
    match call.error.fault {
        CallFault::Status if call.unary => Verdict::Service,
        CallFault::BadReply | CallFault::TooLarge => Verdict::BadReply,
        CallFault::Status
        | CallFault::NotConnected
        | CallFault::Refused
        | CallFault::GoingAway
        | CallFault::Reset
        | CallFault::ConnectionLost
        | CallFault::TimedOut => {
            let has_answered = call.error.fault == CallFault::Status;
            if request.may_have_run && has_answered {
                Verdict::Answer(FAILED, call.error.status)
            } else if request.may_have_run {
                Verdict::Answer(MAYBE_RAN, call.error.status)
            } else if request.deadline <= now {
                Verdict::Answer(EXPIRED, EXPIRED.reason.status())
            } else {
                Verdict::Answer(UNAVAILABLE, UNAVAILABLE.reason.status())
            }
        }
    }
}

/// Whether the service may do better at the next attempt.
fn is_transient(error: &CallError) -> bool {
    match error.fault {
        // A gRPC server that stops cancels calls that crossed its GOAWAY. grpc-core has not begun
        // them, but nothing on the wire says so.
        CallFault::Status if error.going_away && error.status == status::CANCELLED => true,
        CallFault::Status => error.status == status::UNAVAILABLE,
        CallFault::BadReply | CallFault::TooLarge | CallFault::TimedOut => false,
        CallFault::NotConnected
        | CallFault::Refused
        | CallFault::GoingAway
        | CallFault::Reset
        | CallFault::ConnectionLost => true,
    }
}

/// Whether an event of a call that failed waits for another one.
fn may_be_told_again(error: &CallError) -> bool {
    error.pushback != Some(None) && (error.started == Started::No || is_transient(error))
}

/// Whether another attempt is ruled out, even of a request that surely did not run: the service
/// forbids it, the grace of a stop is over, or there were too many.
fn is_ruled_out(cx: &Context<'_>, attempts: u32, error: &CallError, now: Micros) -> bool {
    let is_forbidden = error.pushback == Some(None);
    let is_drained = cx.drain.is_some_and(|drain| drain.is_over(now));
    is_forbidden || is_drained || attempts >= limits::ATTEMPTS_MAX
}

/// Time of the next attempt: `retry.delay_ms` after the first one, doubled for each further one,
/// +-20 %; not before the service allows it.
fn retry_at(cx: &mut Context<'_>, attempts: u32, pushback_ms: Option<u32>, now: Micros) -> Micros {
    let retry = &cx.config.settings.retry;
    let doubled = retry.delay_ms << attempts.saturating_sub(1).min(16);
    let delay_us = doubled.min(retry.delay_max_ms) * 1000;
    let jittered = delay_us * cx.rng.random_range(80..=120) / 100;
    let pushed = u64::from(pushback_ms.unwrap_or(0)) * 1000;
    Micros(now.0 + jittered.max(pushed))
}
