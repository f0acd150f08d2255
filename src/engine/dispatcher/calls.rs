//! From queue to call: promise 4. A batch leaves at once while its instance has fewer than
//! `eager_max` in flight from this shard. While it is busier, what waits leaves at the earliest of
//! a full batch, the window, or an ended call.

use std::cmp::Reverse;
use std::sync::{Arc, LazyLock};

use crate::engine::Context;
use crate::engine::answer::Answer;
use crate::engine::clients::Clients;
use crate::engine::dispatcher::request::Place;
use crate::engine::dispatcher::{Delayed, Dispatcher};
use crate::ids::{ConnId, InstanceId, MsgKey, StreamKey, Ticket};
use crate::limits;
use crate::message::{Call, CallBody, Micros, Reason, Reject};
use crate::routing::Mode;
use crate::stats::{Counter, Stage};

/// The method of mode "batch".
static HANDLE: LazyLock<Arc<str>> =
    LazyLock::new(|| Arc::from("/shardgate.backend.v1.Backend/Handle"));

/// A call in flight.
#[derive(Debug, Default)]
pub struct CallInFlight {
    /// With whom; set when the call leaves.
    pub instance: Option<InstanceId>,
    /// One message whose payload is the body (mode "unary"). Of the time when it left: a new
    /// snapshot does not change how its answer is to be read.
    pub unary: bool,
    /// Its messages, in the order of the batch. One that was answered meanwhile (deadline) is not
    /// known any more.
    pub items: Vec<MsgKey>,
    /// Ordered streams of its messages.
    pub streams: Vec<StreamKey>,
    /// Connections of messages in it that were answered as late, once for each message.
    pub late: Vec<ConnId>,
    /// When it left.
    pub started: Micros,
}

impl Dispatcher {
    /// Ends a turn: retries that are due, then batches that may leave. The effects hold the calls.
    pub fn end_turn(&mut self, cx: &mut Context<'_>, clients: &mut Clients, now: Micros) {
        while let Some(&Reverse((at, delayed))) = self.delayed.peek() {
            if at > now {
                break;
            }
            self.delayed.pop();
            self.resume_delayed(cx, clients, delayed, now);
        }
        for id in self.window.take_due(now) {
            // What waited there may have moved, and the instance be forgotten.
            if self.instances.find_mut(id).is_some() {
                self.touch(id);
            }
        }
        while let Some(id) = self.ready.pop() {
            self.instances.get_mut(id).touched = false;
            self.dispatch(cx, clients, id, now);
        }
        self.fill.update_throttling(&cx.config.settings.queue);
    }

    /// A retry is due: where its key belongs by now.
    fn resume_delayed(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        delayed: Delayed,
        now: Micros,
    ) {
        match delayed {
            Delayed::Stream(key) => {
                let Some(stream) = self.ordering.get_alive(key) else { return };
                stream.delayed = false;
                let (head, instance, busy) = (stream.head, stream.instance, stream.busy);
                let hash = stream.name.hash;
                if busy.is_none() && !self.may_stay_at(instance, hash) {
                    self.reroute_stream(cx, clients, key, now);
                } else {
                    self.resume_head(cx, head, instance);
                }
            }
            Delayed::Request(key) => {
                let Some(message) = self.requests.get_mut(key) else { return };
                message.delayed = false;
                if message.place == Place::Waiting {
                    self.reroute_request(cx, clients, key, now);
                }
            }
        }
    }

    /// Lets the first waiting message of a freed stream be taken, if it is parked.
    pub fn resume_head(
        &mut self,
        cx: &mut Context<'_>,
        head: Option<MsgKey>,
        instance: InstanceId,
    ) {
        if let Some(head) = head
            && self.requests.get(head).is_some_and(|m| m.parked)
        {
            let queue = &mut self.instances.get_mut(instance).queue;
            queue.resume(head, &mut self.requests, &cx.config.delays_us);
        }
        self.touch(instance);
    }

    /// Sends what may be sent to one instance now.
    fn dispatch(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        id: InstanceId,
        now: Micros,
    ) {
        loop {
            let batch = &cx.config.settings.batch;
            let window_us = batch.window_ms * 1000;
            let state = self.instances.get(id);
            let (slots, items_max) = match state.mode {
                Mode::Batch => (batch.in_flight_max, batch.items_max),
                Mode::Unary => (batch.calls_max, 1),
            };
            let queue = &state.queue;
            if queue.items == 0 || state.in_flight >= slots || !state.is_usable() {
                return;
            }
            let full = queue.items >= items_max || queue.bytes >= batch.bytes_max;
            if state.in_flight >= batch.eager_max && !full && !state.slot_freed {
                let queue = &mut self.instances.get_mut(id).queue;
                let Some(oldest) = queue.oldest(id, &self.requests) else { return };
                let due = Micros(oldest.0 + window_us);
                if due > now {
                    self.window.wait(id, due);
                    return;
                }
            }
            if !self.launch(cx, clients, id, items_max, now) {
                return;
            }
            self.instances.get_mut(id).slot_freed = false;
        }
    }

    /// Fills and sends one call. False if no message was eligible.
    fn launch(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        id: InstanceId,
        items_max: usize,
        now: Micros,
    ) -> bool {
        let mode = self.instances.get(id).mode;
        let ticket = self.calls.insert_with(|t| {
            t.instance = Some(id);
            t.unary = mode == Mode::Unary;
            t.items.clear();
            t.streams.clear();
            t.late.clear();
            t.started = now;
        });
        if mode == Mode::Batch {
            self.body.begin_batch(&cx.config.origin);
        }
        let mut latest = now;
        let mut oldest = now;
        let mut unary = None;
        let mut firsts = 0;
        for _ in 0..items_max {
            let room = clients.message_bytes_high + REQUEST_BYTES_MAX;
            let count = self.calls.get(ticket).expect("just inserted").items.len();
            if count > 0 && self.body.len() + room > cx.config.settings.batch.bytes_max {
                break;
            }
            let Some(key) = self.take_next(cx, clients, id, ticket, now) else { break };
            let message = self.requests.get_mut(key).expect("just taken");
            message.attempt += 1;
            firsts += u64::from(message.attempt == 1);
            latest = latest.max(message.deadline);
            oldest = oldest.min(message.received);
            cx.stats.record(Stage::QueueWait, now.since(message.received), 1);
            let message = self.requests.get(key).expect("just taken");
            match mode {
                Mode::Batch => self.body.push(key, message, &cx.config.origin, now),
                Mode::Unary => unary = Some((key, self.body.unary(message))),
            }
            self.calls.get_mut(ticket).expect("just inserted").items.push(key);
        }
        let count = self.calls.get(ticket).expect("just inserted").items.len();
        if count == 0 {
            self.body.discard();
            self.end_call(cx, clients, ticket, now);
            return false;
        }
        cx.stats.record(Stage::BatchWait, now.since(oldest), 1);
        let timeout_us = latest.since(now);
        let call = match unary {
            None => Call {
                ticket,
                instance: id,
                method: HANDLE.clone(),
                body: self.body.finish(),
                timeout_us,
                metadata: Vec::new(),
            },
            Some((key, body)) => self.unary_call(ticket, id, key, body, timeout_us),
        };
        cx.effects.calls.push(call);
        self.instances.get_mut(id).in_flight += 1;
        cx.stats.inc(Counter::Calls);
        cx.stats.add(Counter::Dispatched, count as u64);
        self.retries.add_firsts(firsts, now);
        true
    }

    /// Takes the next message that is still worth sending; remembers its stream with the ticket.
    fn take_next(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        id: InstanceId,
        ticket: Ticket,
        now: Micros,
    ) -> Option<MsgKey> {
        loop {
            let delays = cx.config.delays_us;
            let key = self.with_queue(id, |queue, messages, streams| {
                queue.take(id, ticket, messages, streams, &delays)
            })?;
            cx.stats.inc(Counter::Dequeued);
            let message = self.requests.get(key).expect("just taken");
            if let Some(stream) = message.stream {
                let streams = &mut self.calls.get_mut(ticket).expect("the caller has it").streams;
                if streams.last() != Some(&stream) && !streams.contains(&stream) {
                    streams.push(stream);
                }
            }
            if message.deadline <= now {
                self.finish(cx, clients, key, &Answer::reject(&EXPIRED), now);
            } else if message.seq > 0 && message.dedup.is_none() && !clients.is_open(message.conn) {
                cx.stats.inc(Counter::AnswersUndeliverable);
                self.release(key);
            } else {
                return Some(key);
            }
        }
    }

    fn unary_call(
        &mut self,
        ticket: Ticket,
        instance: InstanceId,
        key: MsgKey,
        body: CallBody,
        timeout_us: u64,
    ) -> Call {
        let message = self.requests.get(key).expect("the caller has it");
        let method = message.method.clone().expect("unary routes name a method (checked)");
        let encode = |text: &str| {
            percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC)
                .to_string()
        };
        let mut metadata = vec![
            ("shardgate-request-id", key.0.to_string()),
            ("shardgate-msg-id", message.msg_id.to_string()),
            ("shardgate-session", message.session.as_str().to_owned()),
            ("shardgate-attempt", message.attempt.to_string()),
        ];
        let user = message.user.as_deref();
        let optional = [
            ("shardgate-user", user.map_or("", |user| &user.user)),
            ("shardgate-tenant", user.and_then(|user| user.tenant.as_deref()).unwrap_or("")),
            ("shardgate-id", &message.id),
            ("shardgate-key", &message.key),
        ];
        for (name, value) in optional {
            if !value.is_empty() {
                metadata.push((name, encode(value)));
            }
        }
        Call { ticket, instance, method, body, timeout_us, metadata }
    }

    /// The call is over: its streams may go on, each at the instance where it belongs now.
    pub fn end_call(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        ticket: Ticket,
        now: Micros,
    ) {
        let Some(call) = self.calls.get_mut(ticket) else { return };
        let (streams, late) = (std::mem::take(&mut call.streams), std::mem::take(&mut call.late));
        for &key in &streams {
            self.free_stream(cx, clients, key, now);
        }
        for &conn in &late {
            clients.late_call_ended(cx, conn);
        }
        // The slot keeps the buffers.
        let call = self.calls.get_mut(ticket).expect("seen above");
        (call.streams, call.late) = (streams, late);
        self.calls.release(ticket);
    }

    fn free_stream(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        key: StreamKey,
        now: Micros,
    ) {
        let epoch = self.instances.epoch;
        let stream = self.ordering.get_mut(key);
        stream.busy = None;
        let (head, instance, moved) = (stream.head, stream.instance, stream.epoch != epoch);
        let Some(head) = head else {
            self.ordering.close_if_idle(key);
            return;
        };
        if moved {
            self.reroute_stream(cx, clients, key, now);
        } else if !self.ordering.get(key).delayed {
            self.resume_head(cx, Some(head), instance);
        }
    }
}

/// Bytes of a request besides its payload: ids and strings at their caps, and field headers.
const REQUEST_BYTES_MAX: usize = limits::ID_BYTES_MAX + limits::KEY_BYTES_MAX + 1024;

/// The deadline passed in the queue.
pub const EXPIRED: Reject =
    Reject::new(Reason::Expired, "the deadline passed before the message was sent");
