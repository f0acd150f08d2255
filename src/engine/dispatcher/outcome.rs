//! The end of a call: its requests are answered by what the service said, or judged one by one if
//! the call failed (promises 1, 2 and 7).

use std::cell::LazyCell;

use bytes::Bytes;

use crate::engine::Context;
use crate::engine::answer::Answer;
use crate::engine::clients::Clients;
use crate::engine::dispatcher::Dispatcher;
use crate::engine::dispatcher::endings::{CallFacts, blame};
use crate::engine::dispatcher::failures::is_failure;
use crate::engine::dispatcher::request::{Handling, Request, State};
use crate::engine::dispatcher::retry::{FailedCall, Verdict};
use crate::engine::dispatcher::slow_owners::Sent;
use crate::ids::{InstanceId, MsgKey, Ticket};
use crate::message::{CallError, CallFault, Micros, Outcome, Reason, Reject, Started, status};
use crate::routing::PayloadKind;
use crate::stats::{Counter, Stage};
use crate::wire::backend::{ResponseItem, read_responses};

const NO_RESPONSE: Reject = Reject::new(
    Reason::BadServiceReply,
    "the service did not send exactly one response for this message: it may have run",
);
const UNREADABLE: Reject = Reject::new(
    Reason::BadServiceReply,
    "the service's answer is not a BatchResponse: the message may have run",
);

impl Dispatcher {
    /// Takes the end of a call: answers its requests, or sends them again.
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
        let (started, unary, blame_after_us) = (call.started, call.unary, call.blame_after_us);
        let (count, route) = (call.sent, call.route);
        let cost_us = call.cost_us(now);
        let instance = call.instance.expect("a call in flight has an instance");
        let state = self.instances.get_mut(instance);
        let line = state.slots.free(ticket, route, has_answered(&result), now);
        state.slot_freed = true;
        cx.stats.record(Stage::RoundTrip, now.since(started), 1);
        state.times.record(now.since(started));
        if result.is_ok() {
            state.queue_mut(line).note_cost(cost_us);
        }
        self.note_speed(Sent { ticket, instance, started, count }, &items, now);
        let tally = match result {
            Ok(body) => {
                let read = match unary {
                    true => self.read_unary(cx, clients, ticket, &items, &body, now),
                    false => self.read_batch(cx, clients, ticket, (instance, &items), &body, now),
                };
                let state = self.instances.get_mut(instance);
                state.has_answered |= read.is_readable;
                match read.is_readable {
                    true => state.history.succeeded(),
                    false => state.history.failed(),
                }
                read.tally
            }
            Err(error) => {
                cx.stats.fault(error.fault);
                self.note_call_failure(cx, instance, &items, &error, now);
                // A server that has never answered a batch does not know the method, and ran
                // nothing. One that has passes on what another service told it.
                let is_wrong = !unary && error.is_unimplemented();
                let error = match is_wrong && !self.instances.get(instance).has_answered {
                    true => CallError { started: Started::No, ..error },
                    false => error,
                };
                if !self.has_paused_since(started) {
                    let facts = CallFacts { unary, took_us: now.since(started), blame_after_us };
                    self.instances.get_mut(instance).history.call_failed(blame(&error, facts));
                }
                let call = FailedCall { ticket, instance, unary, items: &items, error: &error };
                self.fail(cx, clients, &call, now)
            }
        };
        self.count(cx, instance, tally);
        items.clear();
        if let Some(call) = self.calls.get_mut(ticket) {
            call.items = items;
        }
        self.end_call(cx, clients, ticket, now);
        self.mark_ready(instance);
    }

    /// The request, if it is in this call and has no answer yet.
    fn carried(&self, key: MsgKey, ticket: Ticket) -> Option<&Request> {
        self.requests.get(key).filter(|request| request.state == State::InFlight(ticket))
    }

    /// Answers the request of a unary call: the body is the payload.
    fn read_unary(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        ticket: Ticket,
        items: &[MsgKey],
        body: &Bytes,
        now: Micros,
    ) -> ReadResult {
        let mut tally = Tally::default();
        for &key in items {
            let Some(request) = self.carried(key, ticket) else { continue };
            let (instance, route) = (request.instance, request.handling.route);
            let item = ResponseItem { request_id: key.0, payload: body, ..Default::default() };
            let answer = service_answer(&request.handling, &item);
            tally.add(&answer);
            self.weights.record(instance, route, body.len());
            self.finish(cx, clients, key, &answer, now);
        }
        ReadResult { is_readable: true, tally }
    }

    /// Answers the requests of a batch by the responses in `body`.
    fn read_batch(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        ticket: Ticket,
        (instance, items): (InstanceId, &[MsgKey]),
        body: &[u8],
        now: Micros,
    ) -> ReadResult {
        let is_readable = self.count_responses(cx, ticket, items, body);
        let mut tally = Tally::default();
        if is_readable {
            let answered = read_responses(body, |item| {
                let key = MsgKey(item.request_id);
                let Some(request) = self.carried(key, ticket).filter(|r| r.responses == 1) else {
                    return;
                };
                let route = request.handling.route;
                let (msg_id, answer) = (request.msg_id, service_answer(&request.handling, &item));
                let session = match item.memberships.is_empty() {
                    true => request.session_key,
                    // An event is of a session, and answered to nobody.
                    false => clients.events.session_of(key).unwrap_or(request.session_key),
                };
                tally.add(&answer);
                if is_failure(item.status) {
                    self.note_failure(cx, instance, msg_id, item.status, item.message, now);
                }
                self.weights.record(instance, route, item.payload.len());
                self.finish(cx, clients, key, &answer, now);
                if !item.memberships.is_empty() {
                    let service = self.instances.get(instance).service;
                    clients.take_memberships(cx, session, service, item.memberships, now);
                }
            });
            debug_assert!(answered.is_ok(), "the first pass read the same bytes");
            if let Some(pushes) = answered.ok().filter(|pushes| !pushes.is_empty()) {
                let service = self.instances.get(instance).service;
                clients.take_pushes(cx, service, pushes, now);
            }
        }
        let missing = Answer::reject(if is_readable { &NO_RESPONSE } else { &UNREADABLE });
        for &key in items {
            if self.carried(key, ticket).is_some() {
                tally.add(&missing);
                self.finish(cx, clients, key, &missing, now);
            }
        }
        ReadResult { is_readable, tally }
    }

    /// Counts the responses to each request of a batch, so that of two to one neither is taken.
    /// False if `body` cannot be read.
    ///
    /// Ids that are in no call are searched in the batch at most as often as it has items: a
    /// service that sends 4 MiB of them must not cost 2 million searches.
    fn count_responses(
        &mut self,
        cx: &mut Context<'_>,
        ticket: Ticket,
        items: &[MsgKey],
        body: &[u8],
    ) -> bool {
        let (mut foreign, mut unknown) = (0, 0);
        let read = read_responses(body, |item| {
            let key = MsgKey(item.request_id);
            match self.requests.get_mut(key) {
                Some(request) if request.state == State::InFlight(ticket) => {
                    request.responses = request.responses.saturating_add(1);
                }
                Some(_) | None => {
                    foreign += 1;
                    unknown += u64::from(foreign > items.len() || !items.contains(&key));
                }
            }
        });
        cx.stats.add(Counter::UnknownResponses, unknown);
        read.is_ok()
    }

    /// Sends the requests of a failed call again, or answers them.
    fn fail(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        call: &FailedCall<'_>,
        now: Micros,
    ) -> Tally {
        let mut tally = Tally::default();
        let why = &call.error.message;
        let unusable =
            LazyCell::new(|| format!("the message may have run; the service's answer: {why}"));
        // From the last to the first, so that each that is put back comes to stand before the one
        // that was sent after it.
        for &key in call.items.iter().rev() {
            if self.carried(key, call.ticket).is_none() {
                continue;
            }
            let verdict = self.verdict(cx, key, call, now);
            let request = self.requests.get(key).expect("is in the call");
            let answer = match &verdict {
                Verdict::Again { instance, at } => {
                    self.send_again(cx, key, *instance, *at, now);
                    continue;
                }
                Verdict::Answer(reject, status) => {
                    if call.error.started == Started::Maybe {
                        self.ordering.pass(request);
                    }
                    Answer { status: *status, ..Answer::reject(reject) }
                }
                Verdict::BadReply => Answer {
                    status: call.error.status,
                    reason: Some(Reason::BadServiceReply),
                    text: &unusable,
                    ..Answer::default()
                },
                Verdict::Service => service_answer(
                    &request.handling,
                    &ResponseItem {
                        request_id: key.0,
                        status: call.error.status,
                        message: &call.error.message,
                        ..Default::default()
                    },
                ),
            };
            tally.add(&answer);
            self.finish(cx, clients, key, &answer, now);
        }
        tally
    }

    /// Counts the answers of a call's requests.
    fn count(&mut self, cx: &mut Context<'_>, instance: InstanceId, tally: Tally) {
        let Tally { ok, failed } = tally;
        let state = self.instances.get_mut(instance);
        state.ok += ok;
        state.failed += failed;
        cx.stats.add(Counter::DispatchOk, ok);
        cx.stats.add(Counter::DispatchFailed, failed);
    }
}

/// Whether the end of a call shows that the instance lives.
fn has_answered(result: &Result<Bytes, CallError>) -> bool {
    match result.as_ref().map_err(|error| error.fault) {
        Ok(_) | Err(CallFault::Status | CallFault::BadReply | CallFault::TooLarge) => true,
        Err(
            CallFault::NotConnected
            | CallFault::Refused
            | CallFault::GoingAway
            | CallFault::Reset
            | CallFault::ConnectionLost
            | CallFault::TimedOut,
        ) => false,
    }
}

/// The service's own answer to one message.
fn service_answer<'a>(handling: &Handling, item: &ResponseItem<'a>) -> Answer<'a> {
    // Above the last code that gRPC defines, the status is not one.
    let is_known = item.status <= status::UNAUTHENTICATED;
    Answer {
        status: if is_known { item.status } else { status::UNKNOWN },
        reason: None,
        text: if handling.service_text { item.message } else { "" },
        payload: item.payload,
        is_bytes: handling.payload == PayloadKind::Bytes,
        retry_after_ms: item.retry_after_ms,
    }
}

/// Requests of one call by the answers that they got.
#[derive(Clone, Copy, Default)]
struct Tally {
    ok: u64,
    failed: u64,
}

impl Tally {
    fn add(&mut self, answer: &Answer<'_>) {
        // An answer of the gateway is a failure, whatever status the call had.
        let is_ok = answer.reason.is_none() && answer.status == status::OK;
        if is_ok { self.ok += 1 } else { self.failed += 1 }
    }
}

/// Result of reading the answer to a call.
struct ReadResult {
    is_readable: bool,
    tally: Tally,
}
