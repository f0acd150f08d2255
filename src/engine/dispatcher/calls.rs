//! Calls: batches that may leave, and calls in flight (promise 4). A batch leaves at once while its
//! instance has fewer than `batch.eager_max` calls in flight from this shard. While the instance is
//! busier, waiting requests leave at the earliest of a full batch, the window, or an ended call.

use std::cmp::Reverse;
use std::sync::{Arc, LazyLock};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::config::settings::BatchSettings;
use crate::engine::Context;
use crate::engine::answer::Answer;
use crate::engine::clients::Clients;
use crate::engine::dispatcher::batch::BodyWriter;
use crate::engine::dispatcher::endings::blame_after_us;
use crate::engine::dispatcher::queue::Taker;
use crate::engine::dispatcher::request::{Request, State};
use crate::engine::dispatcher::slots::{Kept, Line, Occupied, Room, Wait};
use crate::engine::dispatcher::slow_owners::ANY_COMPANY;
use crate::engine::dispatcher::{Delayed, Dispatcher};
use crate::engine::owner::Holder;
use crate::ids::{InstanceId, MsgKey, SessionKey, StreamKey, Ticket};
use crate::limits;
use crate::message::{Call, CallBody, Micros, Reason, Reject};
use crate::routing::Mode;
use crate::stats::{Counter, Stage};

/// gRPC method of mode "batch".
static HANDLE: LazyLock<Arc<str>> =
    LazyLock::new(|| Arc::from("/shardgate.backend.v1.Backend/Handle"));

/// A call in flight.
#[derive(Debug, Default)]
pub(crate) struct CallInFlight {
    /// Instance that is called; set when the call begins.
    pub instance: Option<InstanceId>,
    /// Whether the call is one request whose payload is the body (mode "unary"). Set when the call
    /// begins: a new snapshot does not change how its answer is read.
    pub unary: bool,
    /// Requests of the call, in the order of the batch. Keys of requests that were answered
    /// meanwhile (deadline) find nothing.
    pub items: Vec<MsgKey>,
    /// Ordered streams of its requests.
    pub streams: Vec<StreamKey>,
    /// Connections of its requests that were answered as late, once for each request.
    pub late: Vec<SessionKey>,
    /// Owners and routes of its requests that were answered as late: it is not known yet how slow
    /// they are.
    pub late_owners: Vec<(Holder, u32)>,
    /// Number of requests with which the call left; 0 while it is filled.
    pub sent: usize,
    /// Route of the first of them.
    pub route: u32,
    /// Time at which the call left.
    pub started: Micros,
    /// Time without an answer from which on the instance is to blame; `u64::MAX` = never.
    pub blame_after_us: u64,
}

impl CallInFlight {
    /// Turns the slot of a call that has ended into that of a new one; the buffers stay.
    fn begin(&mut self, to: InstanceId, mode: Mode, now: Micros) {
        let Self { instance, unary, items, streams, late, late_owners, sent, .. } = self;
        let Self { route, started, blame_after_us, .. } = self;
        *instance = Some(to);
        *unary = mode == Mode::Unary;
        items.clear();
        streams.clear();
        late.clear();
        late_owners.clear();
        (*sent, *route, *started, *blame_after_us) = (0, 0, now, u64::MAX);
    }

    /// Cost of each of its requests, in microseconds of a slot: its time, divided by their number.
    pub fn cost_us(&self, now: Micros) -> u64 {
        match self.sent as u64 {
            0 => 0,
            sent => now.since(self.started) / sent,
        }
    }

    /// Notes that the call carries a stream, once for all of its requests.
    fn carry(&mut self, stream: Option<StreamKey>) {
        if let Some(stream) = stream
            && self.streams.last() != Some(&stream)
            && !self.streams.contains(&stream)
        {
            self.streams.push(stream);
        }
    }
}

/// A call while it is filled with requests.
struct Filling {
    ticket: Ticket,
    instance: InstanceId,
    line: Line,
    /// Owners that its slot is kept for; `None` = for all.
    kept: Option<Kept>,
    mode: Mode,
    items: usize,
    /// Most requests that it may have.
    company: u16,
    /// Route of its first request.
    route: Option<u32>,
    /// Earliest arrival of its requests.
    oldest: Micros,
    /// Latest deadline of its requests.
    latest: Micros,
    /// Bytes that its answers are expected to have, as far as those are large.
    answer_bytes: usize,
    /// Requests in it that were not sent before.
    firsts: u64,
    /// Parts of the call in mode "unary", which has one request.
    unary: Option<UnaryRequest>,
}

impl Filling {
    /// Counts a request that leaves with the call.
    fn count(&mut self, request: &Request) {
        self.items += 1;
        self.firsts += u64::from(request.attempt == 1);
        self.latest = self.latest.max(request.deadline);
        self.oldest = self.oldest.min(request.received);
        self.company = self.company.min(request.position.company);
        self.route = self.route.or(Some(request.handling.route));
    }
}

struct UnaryRequest {
    method: Arc<str>,
    body: CallBody,
    metadata: Vec<(&'static str, String)>,
}

impl UnaryRequest {
    fn new(key: MsgKey, request: &Request, body: &mut BodyWriter) -> Self {
        let method = request.method.clone().expect("unary routes name a method (checked)");
        let mut metadata = vec![
            ("shardgate-request-id", key.0.to_string()),
            ("shardgate-msg-id", request.msg_id.to_string()),
            ("shardgate-session", request.session.as_str().to_owned()),
            ("shardgate-attempt", request.attempt.to_string()),
        ];
        let user = request.user.as_deref();
        let optional = [
            ("shardgate-user", user.map_or("", |user| &user.user)),
            ("shardgate-tenant", user.and_then(|user| user.tenant.as_deref()).unwrap_or("")),
            ("shardgate-id", &request.id),
            ("shardgate-key", &request.key),
        ];
        let encode = |text| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        for (name, value) in optional.into_iter().filter(|(_, value)| !value.is_empty()) {
            metadata.push((name, encode(value)));
        }
        // It is of letters that need no encoding, and tracers look for it under this name.
        if !request.traceparent.is_empty() {
            metadata.push(("traceparent", request.traceparent.clone()));
        }
        Self { method, body: body.unary(request), metadata }
    }
}

/// A request that was taken for a call, and is not worth sending any more.
enum Unsent {
    /// The deadline has passed.
    Expired(MsgKey),
    /// The connection is gone, and no duplicate can ask for the answer.
    Undeliverable(MsgKey),
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
            // Its requests may have moved meanwhile, and the instance may be forgotten.
            if self.instances.find_mut(id).is_some() {
                self.mark_ready(id);
            }
        }
        while let Some(id) = self.ready.pop() {
            self.instances.get_mut(id).ready = false;
            for line in Line::ALL {
                self.dispatch(cx, clients, (id, line), now);
            }
        }
        self.fill.update_throttling(&cx.config.settings.queue);
    }

    /// Resumes a retry that is due, at the instance to which its hash belongs by now.
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
                    self.resume_head(head, instance);
                }
            }
            Delayed::Request(key) => {
                let Some(request) = self.requests.get_mut(key) else { return };
                request.delayed = false;
                if request.state == State::Waiting {
                    self.reroute_request(cx, clients, key, now);
                }
            }
        }
    }

    /// Sends the batches of one line of an instance that may leave now.
    fn dispatch(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        (id, line): (InstanceId, Line),
        now: Micros,
    ) {
        loop {
            let batch = &cx.config.settings.batch;
            let window_us = batch.window_ms * 1000;
            let state = self.instances.get_mut(id);
            if state.queue(line).items == 0 || !state.is_usable() {
                return;
            }
            let (free, kept) = match state.slots.room(batch, state.mode, line, now) {
                Room::Free(free) => (free, None),
                Room::Kept(kept) => (1, Some(kept)),
                Room::None => return self.wait_for_room(cx, id, now),
            };
            let items_max = items_max(batch, state.mode, clients);
            let is_busy = state.slots.len() >= batch.eager_max
                && !state.slot_freed
                && state.slots.short(now) >= batch.eager_max;
            let queue = state.queue_mut(line);
            let full = queue.items >= items_max || queue.bytes >= batch.bytes_max;
            if is_busy && !full && !queue.is_shared() {
                let Some(oldest) = queue.oldest(&self.requests) else { return };
                let due = Micros(oldest.0 + window_us);
                if due > now {
                    self.window.wait(id, due);
                    return;
                }
            }
            let stays = kept.is_some()
                || queue.items > items_max.saturating_mul(free)
                || queue.bytes > batch.bytes_max.saturating_mul(free);
            if stays && let Some(at) = self.look_after_shares(cx, (id, line), kept, now) {
                self.window.wait(id, at);
                return;
            }
            if !self.launch(cx, clients, (id, line), kept, now) {
                if kept.is_some() {
                    self.wait_for_room(cx, id, now);
                }
                return;
            }
        }
    }

    /// Has an instance examined again when a call becomes long, and asks it for a sign of life if
    /// long calls would make room by that.
    fn wait_for_room(&mut self, cx: &mut Context<'_>, id: InstanceId, now: Micros) {
        let slots = &mut self.instances.get_mut(id).slots;
        let Wait { look_again, is_silent } = slots.wait(now);
        if is_silent && slots.ask(now) {
            cx.effects.asked.push(id);
        }
        if let Some(at) = look_again {
            self.window.wait(id, at);
        }
    }

    /// Fills and sends one call. False if no request was eligible.
    fn launch(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        (id, line): (InstanceId, Line),
        kept: Option<Kept>,
        now: Micros,
    ) -> bool {
        let mode = self.instances.get(id).mode;
        let mut call = Filling {
            ticket: self.calls.insert_with(|call| call.begin(id, mode, now)),
            instance: id,
            line,
            kept,
            mode,
            items: 0,
            company: ANY_COMPANY,
            route: None,
            oldest: now,
            latest: now,
            answer_bytes: 0,
            firsts: 0,
            unary: None,
        };
        if mode == Mode::Batch {
            self.body.begin_batch(&cx.config.identity);
        }
        while let Some(unsent) = self.fill_call(cx, clients, &mut call, now) {
            match unsent {
                Unsent::Expired(key) => {
                    self.finish(cx, clients, key, &Answer::reject(&EXPIRED), now);
                }
                Unsent::Undeliverable(key) => {
                    cx.stats.inc(Counter::AnswersUndeliverable);
                    self.leave_call(key, false, now);
                    self.release(cx, key);
                }
            }
        }
        if call.items == 0 {
            self.body.discard();
            self.end_call(cx, clients, call.ticket, now);
            return false;
        }
        self.send(cx, clients.outbox_bytes_high, call, now);
        true
    }

    /// Takes requests into the call until it is full or no other is eligible. Stops at a request
    /// that is not worth sending any more: the caller ends that one and goes on.
    fn fill_call(
        &mut self,
        cx: &mut Context<'_>,
        clients: &Clients,
        filling: &mut Filling,
        now: Micros,
    ) -> Option<Unsent> {
        let Self { requests, ordering, calls, instances, fill, body, weights, .. } = self;
        let config = cx.config;
        let batch = &config.settings.batch;
        let room = clients.message_bytes_high + REQUEST_BYTES_MAX;
        let items_max = items_max(batch, filling.mode, clients);
        let call = calls.get_mut(filling.ticket).expect("it is being filled");
        let queue = instances.get_mut(filling.instance).queue_mut(filling.line);
        fill.change(queue, |queue| {
            while filling.items < items_max.min(filling.company.into())
                && (filling.items == 0
                    || body.len() + room <= batch.bytes_max
                        && filling.answer_bytes < limits::ANSWERS_BYTES_AIM)
            {
                let Filling { ticket, items, kept, .. } = *filling;
                let key = queue.take_into(&Taker { ticket, items, kept }, requests, ordering)?;
                cx.stats.inc(Counter::Dequeued);
                let request = requests.get_mut(key).expect("just taken");
                call.carry(request.stream);
                if request.deadline <= now {
                    return Some(Unsent::Expired(key));
                }
                if request.seq > 0
                    && request.dedup.is_none()
                    && !clients.is_there(request.session_key)
                {
                    return Some(Unsent::Undeliverable(key));
                }
                request.attempt += 1;
                if request.deadline > filling.latest {
                    call.blame_after_us = blame_after_us(request);
                }
                filling.count(request);
                filling.answer_bytes += weights.p99(filling.instance, request.handling.route);
                cx.stats.record(Stage::QueueWait, now.since(request.received), 1);
                match filling.mode {
                    Mode::Batch => body.push(key, request, &config.identity, now),
                    Mode::Unary => filling.unary = Some(UnaryRequest::new(key, request, body)),
                }
                call.items.push(key);
            }
            None
        })
    }

    /// Hands a filled call to the shell.
    fn send(&mut self, cx: &mut Context<'_>, outbox_bytes: usize, call: Filling, now: Micros) {
        let Filling { ticket, instance, line, items, route, oldest, latest, firsts, unary, .. } =
            call;
        cx.stats.record(Stage::BatchWait, now.since(oldest), 1);
        let UnaryRequest { method, body, metadata } = unary.unwrap_or_else(|| UnaryRequest {
            method: HANDLE.clone(),
            body: self.body.finish(),
            metadata: Vec::new(),
        });
        let timeout_us = latest.since(now);
        let answer_bytes_max = limits::answer_bytes_max(items, outbox_bytes);
        let call = Call { ticket, instance, method, body, timeout_us, answer_bytes_max, metadata };
        cx.effects.calls.push(call);
        let filled = self.calls.get_mut(ticket).expect("just filled");
        (filled.sent, filled.route) = (items, route.unwrap_or(0));
        let state = self.instances.get_mut(instance);
        state.slots.occupy(Occupied { ticket, line, started: now });
        state.slot_freed = false;
        cx.stats.inc(Counter::Calls);
        cx.stats.add(Counter::Dispatched, items as u64);
        self.retries.add_firsts(firsts, now);
    }

    /// Ends a call: its streams may go on, each at the instance to which it belongs now.
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
        for &session in &late {
            clients.late_call_ended(cx, session);
        }
        // The slot keeps the buffers.
        let call = self.calls.get_mut(ticket).expect("seen above");
        (call.streams, call.late) = (streams, late);
        self.calls.release(ticket);
    }

    /// Ends the hold of a call on a stream.
    fn free_stream(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        key: StreamKey,
        now: Micros,
    ) {
        self.ordering.free(key);
        self.release_followers(key);
        let stream = self.ordering.get(key);
        let Some(head) = stream.head else {
            self.ordering.close_if_idle(key);
            return;
        };
        if stream.epoch != self.instances.epoch {
            self.reroute_stream(cx, clients, key, now);
        } else if !stream.delayed {
            let instance = stream.instance;
            self.resume_head(Some(head), instance);
        }
    }
}

/// Requests that one call may carry: not so many that the outboxes of all receivers together are
/// over what a call may answer.
fn items_max(settings: &BatchSettings, mode: Mode, clients: &Clients) -> usize {
    match mode {
        Mode::Batch => settings.items_max.min(limits::receivers_max(clients.outbox_bytes_high)),
        Mode::Unary => 1,
    }
}

/// Most bytes of a request besides its payload: id and key at their caps, and 1,024 for all other
/// fields and the headers.
const REQUEST_BYTES_MAX: usize = limits::ID_BYTES_MAX + limits::KEY_BYTES_MAX + 1024;

/// Answer to a request whose deadline passed in the queue.
pub const EXPIRED: Reject = Reject::new(
    Reason::Expired,
    "the deadline passed before the message was sent to the service: it did not run",
);
