//! From queue to call: promise 4. A batch leaves at once while its instance has fewer than
//! `eager_max` in flight from this shard. While it is busier, what waits leaves at the earliest of
//! a full batch, the window, or an ended call.

use std::cmp::Reverse;
use std::sync::{Arc, LazyLock};

use crate::engine::answer::Answer;
use crate::engine::pending::Place;
use crate::engine::{Delayed, Engine};
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
pub struct Ticketed {
    /// With whom; set when the call leaves.
    pub instance: Option<InstanceId>,
    /// One message whose payload is the body (mode "unary"). Of the time when it left: a new
    /// snapshot does not change how its answer is to be read.
    pub unary: bool,
    /// Its messages, in the order of the batch. One that was answered meanwhile (deadline) is not
    /// known any more.
    pub items: Vec<MsgKey>,
    /// Streams it carries messages of.
    pub streams: Vec<StreamKey>,
    /// Connections of messages in it that were answered as late, once for each message.
    pub late: Vec<ConnId>,
    /// When it left.
    pub started: Micros,
}

impl Engine {
    /// Ends a turn: retries that are due, then batches that may leave. The effects hold the calls.
    pub fn end_turn(&mut self, now: Micros) {
        self.go_on_signing_in(now);
        while let Some(&Reverse((at, delayed))) = self.delayed.peek() {
            if at > now {
                break;
            }
            self.delayed.pop();
            self.resume_delayed(delayed, now);
        }
        if self.window_due.is_some_and(|at| at <= now) {
            self.window_due = None;
            for id in std::mem::take(&mut self.windowed) {
                // What waited there may have moved, and the instance be forgotten.
                if self.instances.find_mut(id).is_some() {
                    self.touch(id);
                }
            }
        }
        while let Some(id) = self.touched.pop() {
            self.instances.get_mut(id).touched = false;
            self.dispatch(id, now);
        }
        self.update_throttling();
    }

    /// A retry is due: where its key belongs by now.
    fn resume_delayed(&mut self, delayed: Delayed, now: Micros) {
        match delayed {
            Delayed::Stream(key) => {
                let Some(stream) = self.streams.get_alive(key) else { return };
                stream.delayed = false;
                let (head, instance, busy) = (stream.head, stream.instance, stream.busy);
                let hash = stream.name.hash;
                if busy.is_none() && !self.is_at_home(instance, hash) {
                    self.place_stream(key, now);
                } else {
                    self.resume_head(head, instance);
                }
            }
            Delayed::Message(key) => {
                let Some(message) = self.messages.get_mut(key) else { return };
                message.delayed = false;
                if message.place == Place::Waiting {
                    self.place_message(key, now);
                }
            }
        }
    }

    /// Lets the first waiting message of a freed stream be taken, if it is parked.
    pub(super) fn resume_head(&mut self, head: Option<MsgKey>, instance: InstanceId) {
        if let Some(head) = head
            && self.messages.get(head).is_some_and(|m| m.parked)
        {
            let queue = &mut self.instances.get_mut(instance).queue;
            queue.resume(head, &mut self.messages, &self.delays_us);
        }
        self.touch(instance);
    }

    /// Sends what may be sent to one instance now.
    fn dispatch(&mut self, id: InstanceId, now: Micros) {
        loop {
            let batch = &self.settings.batch;
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
                let Some(oldest) = queue.oldest(id, &self.messages) else { return };
                let due = Micros(oldest.0 + window_us);
                if due > now {
                    self.window_due = Some(self.window_due.map_or(due, |at| at.min(due)));
                    if !self.windowed.contains(&id) {
                        self.windowed.push(id);
                    }
                    return;
                }
            }
            if !self.launch(id, items_max, now) {
                return;
            }
            self.instances.get_mut(id).slot_freed = false;
        }
    }

    /// Fills and sends one call. False if no message was eligible.
    fn launch(&mut self, id: InstanceId, items_max: usize, now: Micros) -> bool {
        let mode = self.instances.get(id).mode;
        let ticket = self.tickets.insert_with(|t| {
            t.instance = Some(id);
            t.unary = mode == Mode::Unary;
            t.items.clear();
            t.streams.clear();
            t.late.clear();
            t.started = now;
        });
        if mode == Mode::Batch {
            self.body.begin_batch(&self.origin);
        }
        let mut latest = now;
        let mut oldest = now;
        let mut unary = None;
        let mut firsts = 0;
        for _ in 0..items_max {
            let room = self.message_bytes_high + REQUEST_BYTES_MAX;
            let count = self.tickets.get(ticket).expect("just inserted").items.len();
            if count > 0 && self.body.len() + room > self.settings.batch.bytes_max {
                break;
            }
            let Some(key) = self.take_next(id, ticket, now) else { break };
            let message = self.messages.get_mut(key).expect("just taken");
            message.attempt += 1;
            firsts += u64::from(message.attempt == 1);
            latest = latest.max(message.deadline);
            oldest = oldest.min(message.received);
            self.histograms.record(Stage::QueueWait, now.since(message.received), 1);
            let message = self.messages.get(key).expect("just taken");
            match mode {
                Mode::Batch => self.body.push(key, message, &self.origin, now),
                Mode::Unary => unary = Some((key, self.body.unary(message))),
            }
            self.tickets.get_mut(ticket).expect("just inserted").items.push(key);
        }
        let count = self.tickets.get(ticket).expect("just inserted").items.len();
        if count == 0 {
            self.body.discard();
            self.free_ticket(ticket, now);
            return false;
        }
        self.histograms.record(Stage::BatchWait, now.since(oldest), 1);
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
        self.effects.calls.push(call);
        self.instances.get_mut(id).in_flight += 1;
        self.counters.inc(Counter::Calls);
        self.counters.add(Counter::Dispatched, count as u64);
        self.budget.add_firsts(firsts, now);
        true
    }

    /// Takes the next message that is still worth sending; remembers its stream with the ticket.
    fn take_next(&mut self, id: InstanceId, ticket: Ticket, now: Micros) -> Option<MsgKey> {
        loop {
            let delays = self.delays_us;
            let key = self.with_queue(id, |queue, messages, streams| {
                queue.take(id, ticket, messages, streams, &delays)
            })?;
            self.counters.inc(Counter::Dequeued);
            let message = self.messages.get(key).expect("just taken");
            if let Some(stream) = message.stream {
                let streams = &mut self.tickets.get_mut(ticket).expect("the caller has it").streams;
                if streams.last() != Some(&stream) && !streams.contains(&stream) {
                    streams.push(stream);
                }
            }
            if message.deadline <= now {
                self.finish(key, &Answer::reject(&EXPIRED), now);
            } else if message.seq > 0
                && message.dedup.is_none()
                && self.conns.get(message.conn).is_none()
            {
                self.counters.inc(Counter::AnswersUndeliverable);
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
        let message = self.messages.get(key).expect("the caller has it");
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
    pub(super) fn free_ticket(&mut self, ticket: Ticket, now: Micros) {
        let Some(call) = self.tickets.get_mut(ticket) else { return };
        let (streams, late) = (std::mem::take(&mut call.streams), std::mem::take(&mut call.late));
        for &key in &streams {
            self.free_stream(key, now);
        }
        for &conn in &late {
            self.late_call_ended(conn);
        }
        // The slot keeps the buffers.
        let call = self.tickets.get_mut(ticket).expect("seen above");
        (call.streams, call.late) = (streams, late);
        self.tickets.release(ticket);
    }

    fn free_stream(&mut self, key: StreamKey, now: Micros) {
        let epoch = self.instances.epoch;
        let stream = self.streams.get_mut(key);
        stream.busy = None;
        let (head, instance, moved) = (stream.head, stream.instance, stream.epoch != epoch);
        let Some(head) = head else {
            self.streams.close_if_idle(key);
            return;
        };
        if moved {
            self.place_stream(key, now);
        } else if !self.streams.get(key).delayed {
            self.resume_head(Some(head), instance);
        }
    }

    fn update_throttling(&mut self) {
        let percent = (self.fill().ratio() * 100.0) as u32;
        let settings = &self.settings.queue;
        self.throttling = if self.throttling {
            percent >= settings.throttle_off_percent
        } else {
            percent >= settings.throttle_on_percent
        };
    }
}

/// Bytes of a request besides its payload: ids and strings at their caps, and field headers.
const REQUEST_BYTES_MAX: usize = limits::ID_BYTES_MAX + limits::KEY_BYTES_MAX + 1024;

/// The deadline passed in the queue.
pub(super) const EXPIRED: Reject =
    Reject::new(Reason::Expired, "the deadline passed before the message was sent");
