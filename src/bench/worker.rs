//! A thread of the load: its connections in one epoll set, and the turns in which they are served.

use std::cmp::Reverse;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::mpsc::Sender;

use rustix::event::epoll::{self, CreateFlags, Event, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

use super::context::Context;
use super::link::Link;
use super::pace::{Pace, SECOND_NS};
use super::plan::{Arrivals, Load, Plan, Sessions, Share};
use super::process::own_cpu_ns;
use super::shared::Shared;
use super::tally::Tally;

/// Sockets that one wait reports.
const EVENTS_MAX: usize = 1024;
/// Looks in a second at what has a time limit.
const CHECKS_PER_S: u64 = 20;
/// Connections of all threads that are in the handshake at the same time, unless there is a ramp:
/// within the backlog of a listener, which is 128 at least. Each thread has one or more.
const CONNECTING_MAX: u64 = 100;
/// Messages that are written before the sockets are looked at again.
const MESSAGES_PER_TURN: usize = 1024;
/// Time for answers after a run that was ended early.
const HASTE_NS: u64 = SECOND_NS;

/// A moment of a thread's run that the one who waits is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// From now on it counts.
    Begins,
    /// It counts no more.
    Ends,
}

/// Result of a thread.
#[derive(Debug)]
pub struct Outcome {
    /// Its counts.
    pub tally: Tally,
    /// Whether its time or its messages were over when it ended.
    pub is_whole: bool,
    /// Nanoseconds that were counted.
    pub counted_ns: u64,
    /// Messages that were due and could not be sent any more.
    pub unsent: u64,
    /// Whether a message that counts was due, and no connection that was there took it.
    pub is_held_back: bool,
    /// Longest delay of a message from its due time to its write, in nanoseconds.
    pub late_max_ns: u64,
    /// CPU time of this thread while it was counted, in nanoseconds.
    pub own_cpu_ns: u64,
    /// Connections that were there when the load began.
    pub connected: usize,
}

/// Stage of a thread's run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Connections come to be.
    Connecting,
    /// Messages are sent.
    Running,
    /// The last answers are awaited, until then at most.
    Draining { until: u64 },
}

/// Readings at the beginning of the time that counts.
#[derive(Clone, Copy, Debug)]
struct Reading {
    at: u64,
    own_cpu_ns: u64,
}

/// A thread of the load.
struct Worker<'a> {
    cx: Context<'a>,
    share: Share,
    shared: &'a Shared,
    tell: Sender<Moment>,
    links: Vec<Link>,
    stage: Stage,
    /// Due times of an open loop.
    due: Pace,
    connects: Pace,
    churn: Pace,
    next_link: usize,
    next_churn: usize,
    /// Time at which all connections are cut; `u64::MAX` = never, or no more.
    next_cut: u64,
    next_check: u64,
    /// Looks at what has a time limit, so far.
    checks: u64,
    touched: Vec<usize>,
    /// Whether messages are due that no connection takes.
    is_stuck: bool,
    /// Time since which no connection is there; `None` = there is one.
    alone_since: Option<u64>,
    began: Option<Reading>,
    /// Time from which no more was sent; 0 = not yet.
    stopped: u64,
    outcome: Outcome,
}

/// Carries out a thread's share of a plan, and tells its moments. Errors are those of the epoll
/// set.
pub fn work(
    plan: &Plan,
    to: SocketAddr,
    share: Share,
    shared: &Shared,
    tell: Sender<Moment>,
) -> io::Result<Outcome> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    // Else the kernel may wake it 50 us late, which would be found in the times of an open loop.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    let cx = Context::new(plan, to, &epoll, shared.clock);
    Worker::new(cx, share, shared, tell).run()
}

impl<'a> Worker<'a> {
    fn new(mut cx: Context<'a>, share: Share, shared: &'a Shared, tell: Sender<Moment>) -> Self {
        let plan = cx.plan;
        cx.left = plan.messages.map(|all| share.part(all));
        let slow = (0..plan.slow_readers).map(|n| (plan.connections + n, true));
        let all = (0..plan.connections).map(|n| (n, false)).chain(slow);
        let own = all.filter(|(n, _)| n % share.of == share.thread).enumerate();
        let links: Vec<Link> = own
            .map(|(index, (number, slow))| Link::new(number, index, slow, plan.sessions))
            .collect();
        for index in 0..links.len() {
            cx.wait(index, 0);
        }
        let none = || Pace::new(0.0, Arrivals::Constant, 0, 0);
        let ramp = share.rate(plan.connects_per_s);
        let outcome = Outcome {
            tally: Tally::new(0),
            is_whole: false,
            counted_ns: 0,
            unsent: 0,
            is_held_back: false,
            late_max_ns: 0,
            own_cpu_ns: 0,
            connected: 0,
        };
        Self {
            cx,
            share,
            shared,
            tell,
            links,
            stage: Stage::Connecting,
            due: none(),
            connects: Pace::new(ramp, Arrivals::Constant, 0, 0),
            churn: none(),
            next_link: 0,
            next_churn: 0,
            next_cut: u64::MAX,
            next_check: 0,
            checks: 0,
            touched: Vec::new(),
            is_stuck: false,
            alone_since: None,
            began: None,
            stopped: 0,
            outcome,
        }
    }

    fn run(mut self) -> io::Result<Outcome> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            self.cx.tick();
            if self.advance() {
                break;
            }
            self.connect();
            self.send_due();
            self.replace();
            self.cut();
            self.check();
            self.serve(&mut events)?;
        }
        for link in &mut self.links {
            // The last look at the limits was up to 50 ms ago.
            link.expire(&mut self.cx);
            link.finish(&mut self.cx);
        }
        self.outcome.unsent = self.unsent();
        self.outcome.tally = self.cx.tally;
        Ok(self.outcome)
    }

    /// Goes on to the next stage if it is time; returns whether the run is over.
    fn advance(&mut self) -> bool {
        let now = self.cx.now();
        match self.stage {
            Stage::Connecting => {
                if self.cx.tried == self.links.len() {
                    self.shared.is_ready(self.share.thread, self.cx.ready);
                }
                if self.shared.is_stopped() {
                    self.stage = Stage::Draining { until: now };
                } else if let Some(start) = self.shared.start().filter(|start| *start <= now) {
                    self.begin(start);
                }
            }
            Stage::Running => {
                if self.began.is_none() && now >= self.cx.measured_from {
                    self.began = Some(self.reading());
                    // Without anybody who waits nobody needs it.
                    let _ = self.tell.send(Moment::Begins);
                    self.cx.is_counting = true;
                }
                if self.is_over() {
                    self.stop_sending();
                }
            }
            Stage::Draining { until } => {
                let is_hasty = self.shared.is_stopped() && until > now + HASTE_NS;
                if is_hasty {
                    self.stage = Stage::Draining { until: now + HASTE_NS };
                }
                return self.cx.open == 0 || now >= until;
            }
        }
        false
    }

    fn begin(&mut self, start: u64) {
        let plan = self.cx.plan;
        if self.shared.seen().connected == 0 {
            self.stage = Stage::Draining { until: start };
            return;
        }
        self.stage = Stage::Running;
        self.outcome.connected = self.cx.ready;
        self.cx.measured_from = start + plan.warmup.as_nanos() as u64;
        self.cx.is_sending = true;
        if let Load::Open { per_s, arrivals } = plan.load {
            // Threads take turns, so that constant arrivals stay constant.
            let turn = self.share.thread as u64 * SECOND_NS / per_s.max(1);
            let seed = self.share.thread as u64;
            self.due = Pace::new(self.share.rate(per_s), arrivals, start + turn, seed);
        }
        if let Sessions::Resumed { cut_at: Some(after) } = plan.sessions {
            self.next_cut = self.cx.measured_from + after.as_nanos() as u64;
            self.cx.tally.resumes.cut = self.next_cut;
        }
        let churn = self.share.rate(plan.churn_per_s);
        self.churn = Pace::new(churn, Arrivals::Constant, start, 0);
        for link in &mut self.links {
            link.refill(&mut self.cx);
            link.flush_or_end(&mut self.cx);
        }
    }

    fn reading(&self) -> Reading {
        Reading { at: self.cx.now(), own_cpu_ns: own_cpu_ns() }
    }

    fn is_over(&mut self) -> bool {
        let (cx, plan) = (&self.cx, self.cx.plan);
        let now = cx.now();
        let since = match (cx.ready, self.alone_since) {
            (0, None) => Some(now),
            (0, since) => since,
            (1.., _) => None,
        };
        self.alone_since = since;
        let is_alone = since.is_some_and(|since| now - since > cx.timeout_ns);
        let is_late = plan
            .duration
            .is_some_and(|whole| now >= cx.measured_from.saturating_add(whole.as_nanos() as u64));
        let is_done = !cx.may_send() && cx.open == 0;
        self.outcome.is_whole = is_late || is_done;
        self.shared.is_stopped() || is_alone || self.outcome.is_whole
    }

    fn stop_sending(&mut self) {
        let now = self.cx.now();
        if let Some(began) = self.began {
            let ended = self.reading();
            self.outcome.counted_ns = now - began.at;
            self.outcome.own_cpu_ns = ended.own_cpu_ns - began.own_cpu_ns;
            let _ = self.tell.send(Moment::Ends);
        }
        self.stopped = now;
        self.cx.is_counting = false;
        self.cx.is_sending = false;
        self.stage = Stage::Draining { until: now + self.cx.timeout_ns };
    }

    /// Messages that were due before it stopped, would count, and were not sent. It is asked when
    /// all answers are there, as a rate that is far from reached is long to count.
    fn unsent(&mut self) -> u64 {
        let due = std::iter::from_fn(|| self.due.take(self.stopped));
        let counted = due.filter(|due| *due >= self.cx.measured_from);
        counted.take(self.cx.left.map_or(usize::MAX, |left| left as usize)).count() as u64
    }

    /// Begins the connections whose turn it is.
    fn connect(&mut self) {
        let is_resumed = self.resumes();
        if matches!(self.stage, Stage::Draining { .. }) && !is_resumed {
            return;
        }
        let is_ramp = self.cx.plan.connects_per_s > 0 && self.stage == Stage::Connecting;
        let now = self.cx.now();
        let most = match is_resumed && self.stage != Stage::Connecting {
            // Who lost its connection waits for nobody else.
            true => usize::MAX,
            false => self.share.part(CONNECTING_MAX).max(1) as usize,
        };
        let next = |cx: &Context<'_>| cx.waiting.peek().filter(|next| next.0.0 <= now).copied();
        while let Some(Reverse((_, index))) = next(&self.cx) {
            let is_turn = match is_ramp {
                true => self.connects.take(now).is_some(),
                false => self.cx.connecting < most,
            };
            if !is_turn {
                return;
            }
            self.cx.waiting.pop();
            self.links[index].open(&mut self.cx);
        }
        // Turns that pass while nobody waits are not made up for.
        while self.connects.take(now).is_some() {}
    }

    /// Sends what is due in an open loop.
    fn send_due(&mut self) {
        self.is_stuck = false;
        if !self.cx.is_sending {
            return;
        }
        let now = self.cx.now();
        for _ in 0..MESSAGES_PER_TURN {
            if self.due.due() > now || !self.cx.may_send() {
                break;
            }
            let Some(index) = self.next_with_room() else {
                self.is_stuck = true;
                let is_counted = self.due.due() >= self.cx.measured_from;
                self.outcome.is_held_back |= is_counted && self.cx.ready > 0;
                break;
            };
            let Some(due) = self.due.take(now) else { break };
            if due >= self.cx.measured_from {
                self.outcome.late_max_ns = self.outcome.late_max_ns.max(now - due);
            }
            self.links[index].send(due, &mut self.cx);
            self.touched.push(index);
        }
        while let Some(index) = self.touched.pop() {
            self.links[index].flush_or_end(&mut self.cx);
        }
    }

    /// The next connection in turn that takes another message.
    fn next_with_room(&mut self) -> Option<usize> {
        let count = self.links.len();
        let mut indices = (0..count).map(|n| (self.next_link + n) % count);
        let found = indices.find(|&index| self.links[index].has_room())?;
        self.next_link = (found + 1) % count;
        Some(found)
    }

    /// Has connections leave whose turn it is.
    fn replace(&mut self) {
        if !self.cx.is_sending {
            return;
        }
        let count = self.links.len();
        while self.churn.take(self.cx.now()).is_some() {
            let mut indices = (0..count).map(|n| (self.next_churn + n) % count);
            // Slow readers, and those that are not there, have no turn.
            let Some(index) = indices.find(|&index| self.links[index].is_usable()) else {
                continue;
            };
            self.links[index].leave(&mut self.cx);
            self.next_churn = (index + 1) % count;
        }
    }

    /// Cuts all connections when it is time.
    fn cut(&mut self) {
        if self.cx.now() < self.next_cut {
            return;
        }
        self.next_cut = u64::MAX;
        for link in &mut self.links {
            link.cut(&mut self.cx);
        }
    }

    /// Whether sessions go on with another connection.
    fn resumes(&self) -> bool {
        matches!(self.cx.plan.sessions, Sessions::Resumed { .. })
    }

    /// Looks at what has a time limit, and has slow readers read.
    fn check(&mut self) {
        let now = self.cx.now();
        if now < self.next_check {
            return;
        }
        self.next_check = now + SECOND_NS / CHECKS_PER_S;
        let slow_bytes = bytes_of_check(self.cx.plan.slow_bytes_per_s, self.checks);
        self.checks += 1;
        for link in &mut self.links {
            link.check_time(&mut self.cx);
            if !link.is_measured() {
                link.read_slowly(slow_bytes, &mut self.cx);
            }
        }
        self.shared.tell(self.share.thread, &self.cx.tally, self.cx.ready);
    }

    /// Waits for sockets, or until something is due, and serves those that are ready.
    fn serve(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        let mut until = self.next_check;
        if self.cx.is_sending && !self.is_stuck && self.cx.may_send() {
            until = until.min(self.due.due());
        }
        if self.stage == Stage::Connecting {
            let waits = self.cx.waiting.peek().map(|next| next.0.0.max(self.connects.due()));
            let start = self.shared.start();
            until = until.min(waits.unwrap_or(u64::MAX)).min(start.unwrap_or(u64::MAX));
        }
        if self.stage != Stage::Connecting && self.resumes() {
            let waits = self.cx.waiting.peek().map_or(u64::MAX, |next| next.0.0);
            until = until.min(waits).min(self.next_cut);
        }
        self.cx.tick();
        let wait = Timespec {
            tv_sec: 0,
            tv_nsec: until.saturating_sub(self.cx.now()).min(SECOND_NS - 1) as i64,
        };
        events.clear();
        match epoll::wait(self.cx.epoll, rustix::buffer::spare_capacity(events), Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.cx.tick();
        for event in events.iter() {
            // The struct is packed: copy before use.
            let (flags, data) = (event.flags, event.data);
            let is_ended = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
            let is_readable = is_ended || flags.contains(EventFlags::IN);
            self.links[data.u64() as usize].on_ready(is_readable, is_ended, &mut self.cx);
        }
        Ok(())
    }
}

/// Bytes that a slow reader reads in the check with this number: those of a second are `per_s`.
fn bytes_of_check(per_s: u64, number: u64) -> usize {
    let until = |checks: u64| per_s * checks / CHECKS_PER_S;
    (until(number + 1) - until(number)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_readers_read_what_was_asked_in_a_second() {
        for per_s in [0, 1, 7, 19, 20, 21, 4096] {
            let read = (40..40 + CHECKS_PER_S).map(|number| bytes_of_check(per_s, number) as u64);
            assert_eq!(read.sum::<u64>(), per_s);
        }
    }
}
