//! The task of a channel: it assigns calls to connections, and connects when one is needed.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

mod clock;
mod connecting;
mod connections;

use connecting::Round;

use super::call::{InFlight, Times};
use super::link::{Doubt, GoingAway, Link, LinkId, Over, Peer, Phase};
use super::signals::{SLOTS, Signals, call_waker, timer_waker};
use super::{ChannelEvent, DownCause, Order, Shared};
use crate::backend::backoff::Backoff;
use crate::backend::status as ends;
use crate::config::settings::BackendSettings;
use crate::ids::Ticket;
use crate::message::{Call, CallError, CallFault, Micros, Outcome, Started, status};
use crate::readiness::{Alarm, Registry};
use crate::routing::Instance;
use crate::tls::service::ServiceTls;

/// Most calls that wait for a connection or a free stream. The engine allows 100 in flight by
/// default; over this bound a call is refused, so that a wrong setting cannot grow the queue
/// without end.
const WAITING_MAX: usize = 1024;
/// Rounds in one poll of the task: an outcome often makes the engine send the next call, which then
/// leaves in the same turn; more than a few rounds are left to the next turn.
const ROUNDS_MAX: u32 = 4;
/// Shortest time of the timer: deadlines are in milliseconds.
const TIMER_STEP_US: u64 = 1_000;
/// Spread of the age at which connections are replaced, in percent to either side (gRFC A9).
const AGE_JITTER_PERCENT: u64 = 10;
/// Life of a connection below which its end is a failure in any case: a service that accepts and
/// closes at once has not stopped in order.
const SHORT_LIFE_US: u64 = 1_000_000;
/// Time in which a service that went away in order may be back: most restarts take less.
const AWAY_US: u64 = 30_000_000;
/// Time before the deadline that a service was told from which on a stream that it cancels ended
/// because of that deadline: its timer and ours, and the way of the bytes.
const DEADLINE_SLACK_US: u64 = 20_000;
/// Time between pings that gRPC servers allow by default: five minutes (gRFC A8).
const CALM_MS: u64 = 300_000;
/// Most objections that count: eight doublings of five minutes are 21 hours.
const CALMED_MAX: u32 = 9;
const NEVER: Micros = Micros(u64::MAX);

struct Slot {
    waker: Waker,
    call: Option<InFlight>,
}

struct Waiting {
    call: Call,
    deadline: Micros,
}

pub(super) struct Driver {
    shared: Rc<Shared>,
    signals: Arc<Signals>,
    instance: Instance,
    tls: Option<Arc<ServiceTls>>,
    settings: BackendSettings,
    clock: Box<dyn Fn() -> Micros>,
    now: Micros,
    links: Vec<Link>,
    links_made: u32,
    slots: Vec<Slot>,
    free: Vec<usize>,
    in_flight: usize,
    waiting: VecDeque<Waiting>,
    backoff: Backoff,
    registry: Registry,
    /// Earliest time of the next round of attempts to connect.
    connect_at: Micros,
    round: Round,
    /// Times that the service objected to our pings (GOAWAY with ENHANCE_YOUR_CALM): after the
    /// first they keep to what servers allow by default, and each further one doubles the time
    /// between them, on this connection and all later ones (gRFC A8).
    calmed: u32,
    /// Time at which the service closed its connections in order, until it is back.
    left_at: Option<Micros>,
    alarm: Alarm,
    /// Time when the alarm rings, [`NEVER`] if it is not set.
    timer_at: Micros,
    /// Time of the next thing that is due.
    wake_at: Micros,
}

impl Driver {
    pub(super) fn new(
        shared: Rc<Shared>,
        instance: Instance,
        tls: Option<Arc<ServiceTls>>,
        settings: BackendSettings,
        registry: Registry,
        seed: u64,
        clock: Box<dyn Fn() -> Micros>,
    ) -> Self {
        let signals = Arc::clone(&shared.signals);
        Self {
            backoff: Backoff::new(settings.backoff_ms, settings.backoff_max_ms, seed),
            calmed: 0,
            left_at: None,
            alarm: registry.alarm(timer_waker(&signals)),
            registry,
            shared,
            signals,
            instance,
            tls,
            settings,
            clock,
            now: Micros(0),
            links: Vec::new(),
            links_made: 0,
            slots: Vec::new(),
            free: Vec::new(),
            in_flight: 0,
            waiting: VecDeque::new(),
            connect_at: Micros(0),
            round: Round::default(),
            timer_at: NEVER,
            wake_at: NEVER,
        }
    }

    /// Runs one turn: in each round orders, new calls, connections, calls; at the end one send a
    /// connection.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.signals.begin(cx.waker());
        self.now = (self.clock)();
        if self.signals.take_timer() {
            self.timer_at = NEVER;
            self.check_clock();
        }
        for _ in 0..ROUNDS_MAX {
            self.take_orders();
            self.start_waiting();
            self.poll_links();
            self.poll_calls();
            self.close_if_done();
            self.connect_if_wanted();
            // Since the first call a connection may have become ready, or a stream free.
            self.start_waiting();
            if !self.has_work() {
                break;
            }
        }
        self.links.iter_mut().for_each(Link::send_gathered);
        if self.is_done() {
            self.shared.ended.set(true);
            self.shared.refuse_all();
            return Poll::Ready(());
        }
        self.set_timer();
        self.signals.end();
        if self.has_work() {
            self.signals.wake_task_again();
        }
        Poll::Pending
    }

    fn has_work(&self) -> bool {
        self.signals.any_call()
            || self.links.iter().any(Link::is_marked)
            || !self.shared.orders.borrow().is_empty()
    }

    /// Takes the orders that are there now. If the event handler answers each failed call with
    /// another one, those wait for later rounds, whose number is bounded.
    fn take_orders(&mut self) {
        let count = self.shared.orders.borrow().len();
        for _ in 0..count {
            let order = self.shared.orders.borrow_mut().pop_front();
            match order {
                Some(Order::Send(call)) => self.accept(call),
                Some(Order::Cancel(ticket)) => self.cancel(ticket),
                Some(Order::Configure(settings)) => self.configure(*settings),
                Some(Order::Secure(tls)) => self.secure(tls),
                Some(Order::Ask) => self.ask(),
                None => return,
            }
        }
    }

    fn ask(&mut self) {
        let now = self.now;
        self.links.iter_mut().for_each(|link| link.ask(now));
        self.wake_by(now);
    }

    fn configure(&mut self, settings: BackendSettings) {
        self.backoff.set_bounds(settings.backoff_ms, settings.backoff_max_ms);
        self.settings = settings;
        for link in &self.links {
            link.set_user_timeout(self.settings.tcp_user_timeout_ms);
        }
    }

    /// Time without a byte, with calls in flight, after which a PING is sent; 0 = never.
    fn keepalive_us(&self) -> u64 {
        let keepalive_ms = self.settings.keepalive_ms;
        let calm_ms = match (self.calmed, keepalive_ms) {
            (0, _) | (_, 0) => keepalive_ms,
            (times, _) => keepalive_ms.max(CALM_MS) << (times - 1),
        };
        calm_ms.saturating_mul(1000)
    }

    fn deliver(&self, ticket: Ticket, result: Result<bytes::Bytes, CallError>) {
        self.shared.emit(ChannelEvent::Outcome(Outcome { ticket, result }));
    }

    /// Queues a new call, which starts in the same round if it can.
    fn accept(&mut self, call: Call) {
        let deadline = Micros(self.now.0.saturating_add(call.timeout_us));
        if self.shared.closing.get() {
            self.deliver(call.ticket, Err(ends::not_connected("the channel is closing")));
        } else if !self.may_wait() {
            self.deliver(
                call.ticket,
                Err(ends::not_connected("the last attempt to connect failed")),
            );
        } else if self.waiting.len() >= WAITING_MAX {
            let error = ends::not_sent(status::UNAVAILABLE, "too many calls wait for a stream");
            self.deliver(call.ticket, Err(error));
        } else {
            self.wake_by(deadline);
            self.waiting.push_back(Waiting { call, deadline });
        }
    }

    /// Whether a call may wait: there is a connection, or an attempt to come.
    fn may_wait(&self) -> bool {
        let is_silent = |link: &Link| link.doubt == Doubt::Told;
        let serves = |link: &Link| link.phase != Phase::Draining && !is_silent(link);
        let is_one_to_come = self.now >= self.connect_at && !self.links.iter().any(is_silent);
        is_one_to_come || self.links.iter().any(serves)
    }

    fn cancel(&mut self, ticket: Ticket) {
        if let Some(index) = self.waiting.iter().position(|w| w.call.ticket == ticket) {
            self.waiting.remove(index);
            self.deliver(ticket, Err(ends::cancelled(Started::No)));
            return;
        }
        let is_it = |slot: &Slot| slot.call.as_ref().is_some_and(|call| call.ticket == ticket);
        if let Some(index) = self.slots.iter().position(is_it) {
            self.abandon(index, ends::cancelled(Started::Maybe));
        }
    }

    /// Starts waiting calls, first come first served, as long as there are streams.
    fn start_waiting(&mut self) {
        while !self.waiting.is_empty() && self.in_flight < SLOTS {
            let Some(index) = self.links.iter_mut().rposition(Link::has_room) else {
                return;
            };
            let Some(waiting) = self.waiting.pop_front() else {
                return;
            };
            self.start(index, waiting);
        }
    }

    fn start(&mut self, link: usize, waiting: Waiting) {
        let Waiting { call, deadline } = waiting;
        if deadline <= self.now {
            self.deliver(call.ticket, Err(ends::timed_out(Started::No)));
            return;
        }
        let link = &mut self.links[link];
        let (head, told_us) = match link.requests.head(&call, deadline.since(self.now)) {
            Ok(head) => head,
            Err(why) => {
                self.deliver(call.ticket, Err(ends::not_sent(status::INTERNAL, why)));
                return;
            }
        };
        let id = link.id;
        let (response, mut request) = match link.open(head, self.now) {
            Ok(streams) => streams,
            Err(Some(e)) if !e.is_go_away() && !e.is_io() => {
                let error = ends::not_sent(status::INTERNAL, "the request cannot be made");
                self.deliver(call.ticket, Err(error));
                return;
            }
            // The connection closes, and the call has not left: it waits for the next one.
            Err(_) => {
                self.waiting.push_front(Waiting { call, deadline });
                self.retire(id);
                return;
            }
        };
        // An error here means that the stream has failed already; then the response reports it.
        let _ = request.send_data(call.body, true);
        let (is_first, silent_since) = (link.streams == 1, link.silent_since);
        if is_first && self.keepalive_us() > 0 {
            self.wake_by(Micros(silent_since.0.saturating_add(self.keepalive_us())));
        }
        let streams = (response, request);
        let times = Times { sent: self.now, told: Micros(self.now.0 + told_us), deadline };
        self.occupy(InFlight::new(call.ticket, id, times, call.answer_bytes_max, streams));
    }

    fn occupy(&mut self, call: InFlight) {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = self.slots.len();
                self.slots.push(Slot { waker: call_waker(&self.signals, index), call: None });
                index
            }
        };
        self.slots[index].call = Some(call);
        self.in_flight += 1;
        // The first poll registers the slot's waker.
        self.signals.mark_call(index);
    }

    fn vacate(&mut self, index: usize) -> Option<InFlight> {
        let call = self.slots[index].call.take()?;
        self.free.push(index);
        self.in_flight -= 1;
        if let Some(link) = self.links.iter_mut().find(|link| link.id == call.link) {
            link.streams -= 1;
            if link.streams == 0 && link.phase == Phase::Draining {
                link.drain(self.now, self.settings.connect_timeout_ms);
                let close_by = link.finish_by;
                self.wake_by(close_by);
            }
        }
        Some(call)
    }

    /// Ends a call from this side: resets its stream.
    fn abandon(&mut self, index: usize, error: CallError) {
        if let Some(mut call) = self.vacate(index) {
            call.reset();
            self.deliver(call.ticket, Err(error));
        }
    }

    fn poll_calls(&mut self) {
        for word in 0..Signals::words() {
            let mut marks = self.signals.take_calls(word);
            while marks != 0 {
                let bit = marks.trailing_zeros() as usize;
                marks &= marks - 1;
                self.poll_call(word * 64 + bit);
            }
        }
    }

    /// Polls one call; true if its slot is free afterwards.
    fn poll_call(&mut self, index: usize) -> bool {
        let Some(slot) = self.slots.get_mut(index) else {
            return true;
        };
        let Some(call) = &mut slot.call else {
            return true;
        };
        let mut cx = Context::from_waker(&slot.waker);
        let Poll::Ready(result) = call.poll(&mut cx) else {
            return false;
        };
        if let Some(mut call) = self.vacate(index) {
            if result.is_err() {
                call.reset();
            }
            let is_answer = result.as_ref().err().is_none_or(|e| e.fault == CallFault::Status);
            let link = self.links.iter_mut().find(|link| link.id == call.link);
            if let Some(link) = link.filter(|_| is_answer) {
                link.answered();
            }
            let result = result.map_err(|error| self.explained(&call, error));
            self.deliver(call.ticket, result);
        }
        true
    }

    /// The error of a call that ended, with what is known of its connection and its deadline.
    fn explained(&self, call: &InFlight, error: CallError) -> CallError {
        let is_cancelled = error.fault == CallFault::Reset && error.status == status::CANCELLED;
        if is_cancelled && call.times.told.since(self.now) <= DEADLINE_SLACK_US {
            return ends::timed_out(Started::Maybe);
        }
        let of_call = |link: &&Link| link.id == call.link;
        let going_away = self.links.iter().find(of_call).is_some_and(|link| link.is_going_away);
        CallError { going_away, ..error }
    }

    fn poll_links(&mut self) {
        let mut index = 0;
        while index < self.links.len() {
            let link = &mut self.links[index];
            if !link.take_mark() {
                index += 1;
                continue;
            }
            let (id, address) = (link.id, link.address);
            let progress = link.poll(self.now);
            if progress.ready {
                self.became_ready(index);
            }
            if progress.pong {
                self.wake_by(Micros(self.now.0.saturating_add(self.keepalive_us())));
            }
            if progress.alive {
                self.shared.emit(ChannelEvent::Alive);
            }
            if progress.heard_again {
                self.shared.emit(ChannelEvent::Up(address));
            }
            if let Some(going_away) = &progress.going_away {
                self.note_going_away(going_away);
            }
            match progress.over {
                Some(over) => self.lost(id, over),
                None => {
                    if progress.going_away.is_some() {
                        self.retire(id);
                    }
                    index += 1;
                }
            }
        }
    }

    /// Notes a GOAWAY. After ENHANCE_YOUR_CALM keepalive pings are sent half as often (gRFC A8).
    fn note_going_away(&mut self, going_away: &GoingAway) {
        tracing::info!(
            instance = %self.instance.name,
            why = %going_away.why,
            "backend_going_away: the service closes this connection; another one is opened"
        );
        self.left_at = Some(self.now);
        if going_away.calm {
            self.calmed = (self.calmed + 1).min(CALMED_MAX);
        }
    }

    fn note_up(&self) {
        self.shared.up.set(self.links.iter().any(|link| link.phase == Phase::Ready));
    }

    /// Ends a connection that is over, or an attempt that failed, with its calls and those that
    /// waited for it.
    fn lost(&mut self, id: LinkId, over: Over) {
        let Some(index) = self.links.iter().position(|link| link.id == id) else {
            return;
        };
        // Responses that arrived before the end count.
        self.poll_calls();
        let Link { phase, address, streams, is_going_away, ready_at, .. } = self.links[index];
        self.links[index].cut();
        self.end_calls_of(id);
        self.links.remove(index);
        self.note_up();
        let lived_us = self.now.since(ready_at);
        let cause = match phase {
            Phase::Connecting => {
                self.attempt_failed(address, &over.why);
                return;
            }
            Phase::Ready => {
                self.connect_after(lived_us);
                let is_idle_close = over.is_clean && streams == 0 && lived_us >= SHORT_LIFE_US;
                if is_going_away || is_idle_close {
                    self.left_at = Some(self.now);
                    DownCause::GoneAway
                } else {
                    DownCause::Broken
                }
            }
            Phase::Draining => return,
        };
        self.report_down(cause, &over.why);
    }

    fn report_down(&mut self, cause: DownCause, why: &str) {
        if self.links.iter().any(|link| link.phase != Phase::Draining) {
            let is_ready = |link: &Link| link.phase == Phase::Ready;
            if cause == DownCause::Unreachable && self.links.iter().any(is_ready) {
                self.shared.emit(ChannelEvent::NotReplaced { why: why.to_owned() });
            }
            return;
        }
        if self.connect_at > self.now {
            self.refuse_waiting(why);
        }
        self.tell_down(cause, why);
    }

    /// Ends the calls that wait: they have not been sent.
    fn refuse_waiting(&mut self, why: &str) {
        let error = ends::not_connected(why);
        while let Some(waiting) = self.waiting.pop_front() {
            self.deliver(waiting.call.ticket, Err(error.clone()));
        }
    }

    fn tell_down(&self, cause: DownCause, why: &str) {
        let is_away = self.left_at.is_some_and(|at| self.now.since(at) < AWAY_US);
        let cause = match cause {
            DownCause::Unreachable if is_away => DownCause::GoneAway,
            DownCause::Broken
            | DownCause::GoneAway
            | DownCause::Unreachable
            | DownCause::Silent => cause,
        };
        if !self.shared.closing.get() {
            self.shared.emit(ChannelEvent::Down { cause, why: why.to_owned() });
        }
    }

    fn end_calls_of(&mut self, id: LinkId) {
        for index in 0..self.slots.len() {
            let is_its = |call: &InFlight| call.link == id;
            if !self.slots[index].call.as_ref().is_some_and(is_its) || self.poll_call(index) {
                continue;
            }
            if let Some(call) = self.vacate(index) {
                let error = self.explained(&call, ends::connection_lost());
                self.deliver(call.ticket, Err(error));
            }
        }
    }
}
