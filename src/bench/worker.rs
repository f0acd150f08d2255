//! A thread of the load: its connections in one epoll set, and the turns in which they are served.

use std::cmp::Reverse;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;

use rustix::event::epoll::{self, CreateFlags, Event, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

use super::context::Context;
use super::link::Link;
use super::pace::Pace;
use super::plan::{Arrivals, Load, Plan, Share};
use super::process::{cpu_of, own_cpu_ns};
use super::shared::Shared;
use super::tally::Tally;

/// Sockets that one wait reports.
const EVENTS_MAX: usize = 1024;
/// Looks in a second at what has a time limit.
const CHECKS_PER_S: u64 = 20;
/// Connections of a thread that are in the handshake at the same time, unless there is a ramp:
/// within the backlog of a listener, which is 128 at least.
const CONNECTING_MAX: usize = 100;
/// Messages that are written before the sockets are looked at again.
const MESSAGES_PER_TURN: usize = 1024;
/// Nanoseconds in a second; also the time for answers after a run that was ended early.
const SECOND_NS: u64 = 1_000_000_000;

/// Result of a thread.
#[derive(Debug)]
pub struct Outcome {
    /// Its counts.
    pub tally: Tally,
    /// Nanoseconds that were counted.
    pub counted_ns: u64,
    /// Messages that were due and could not be sent any more.
    pub unsent: u64,
    /// Longest delay of a message from its due time to its write, in nanoseconds.
    pub late_max_ns: u64,
    /// CPU time of this thread while it was counted, in nanoseconds.
    pub own_cpu_ns: u64,
    /// CPU time of the plan's processes meanwhile, in nanoseconds.
    pub cpu_ns: u64,
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
    cpu_ns: u64,
}

/// A thread of the load.
struct Worker<'a> {
    cx: Context<'a>,
    share: Share,
    shared: &'a Shared,
    links: Vec<Link>,
    stage: Stage,
    /// Due times of an open loop.
    due: Pace,
    connects: Pace,
    churn: Pace,
    next_link: usize,
    next_churn: usize,
    next_check: u64,
    touched: Vec<usize>,
    /// Whether messages are due that no connection takes.
    is_stuck: bool,
    /// Time since which no connection is there; `None` = there is one.
    alone_since: Option<u64>,
    began: Option<Reading>,
    outcome: Outcome,
}

/// Carries out a thread's share of a plan. Errors are those of the epoll set.
pub fn work(plan: &Plan, to: SocketAddr, share: Share, shared: &Shared) -> io::Result<Outcome> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    // Else the kernel may wake it 50 us late, which would be found in the times of an open loop.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    Worker::new(plan, to, share, shared, &epoll).run()
}

impl<'a> Worker<'a> {
    fn new(
        plan: &'a Plan,
        to: SocketAddr,
        share: Share,
        shared: &'a Shared,
        epoll: &'a OwnedFd,
    ) -> Self {
        let mut cx = Context::new(plan, to, epoll, shared.clock);
        cx.left = plan.messages.map(|all| share.part(all));
        let slow = (0..plan.slow_readers).map(|n| (plan.connections + n, true));
        let all = (0..plan.connections).map(|n| (n, false)).chain(slow);
        let own = all.filter(|(n, _)| n % share.of == share.thread).enumerate();
        let links: Vec<Link> =
            own.map(|(index, (number, slow))| Link::new(number, index, slow)).collect();
        for index in 0..links.len() {
            cx.wait(index, 0);
        }
        let none = || Pace::new(0.0, Arrivals::Constant, 0, 0);
        let ramp = share.rate(plan.connects_per_s);
        let outcome = Outcome {
            tally: Tally::new(0),
            counted_ns: 0,
            unsent: 0,
            late_max_ns: 0,
            own_cpu_ns: 0,
            cpu_ns: 0,
            connected: 0,
        };
        Self {
            cx,
            share,
            shared,
            links,
            stage: Stage::Connecting,
            due: none(),
            connects: Pace::new(ramp, Arrivals::Constant, 0, 0),
            churn: none(),
            next_link: 0,
            next_churn: 0,
            next_check: 0,
            touched: Vec::new(),
            is_stuck: false,
            alone_since: None,
            began: None,
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
            self.check();
            self.serve(&mut events)?;
        }
        for link in &mut self.links {
            link.finish(&mut self.cx);
        }
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
                    self.cx.is_counting = true;
                }
                if self.is_over() {
                    self.stop_sending();
                }
            }
            Stage::Draining { until } => {
                let is_hasty = self.shared.is_stopped() && until > now + SECOND_NS;
                if is_hasty {
                    self.stage = Stage::Draining { until: now + SECOND_NS };
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
        let churn = self.share.rate(plan.churn_per_s);
        self.churn = Pace::new(churn, Arrivals::Constant, start, 0);
        for link in &mut self.links {
            link.refill(&mut self.cx);
            link.flush_or_end(&mut self.cx);
        }
    }

    fn reading(&self) -> Reading {
        let plan = self.cx.plan;
        // One thread looks at the processes for all.
        let pids = if self.share.thread == 0 { &plan.pids[..] } else { &[] };
        Reading { at: self.cx.now(), own_cpu_ns: own_cpu_ns(), cpu_ns: cpu_of(pids) }
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
        self.shared.is_stopped() || is_alone || is_late || is_done
    }

    fn stop_sending(&mut self) {
        let now = self.cx.now();
        if let Some(began) = self.began {
            let ended = self.reading();
            self.outcome.counted_ns = now - began.at;
            self.outcome.own_cpu_ns = ended.own_cpu_ns - began.own_cpu_ns;
            self.outcome.cpu_ns = ended.cpu_ns.saturating_sub(began.cpu_ns);
        }
        if self.cx.may_send() {
            self.outcome.unsent = self.due.behind(now);
        }
        self.cx.is_counting = false;
        self.cx.is_sending = false;
        self.stage = Stage::Draining { until: now + self.cx.timeout_ns };
    }

    /// Begins the connections whose turn it is.
    fn connect(&mut self) {
        if matches!(self.stage, Stage::Draining { .. }) {
            return;
        }
        let is_ramp = self.cx.plan.connects_per_s > 0 && self.stage == Stage::Connecting;
        let now = self.cx.now();
        while let Some(Reverse((at, index))) = self.cx.waiting.peek().copied() {
            let is_full = match is_ramp {
                true => at > now || self.connects.take(now).is_none(),
                false => self.cx.connecting >= CONNECTING_MAX,
            };
            if at > now || is_full {
                break;
            }
            self.cx.waiting.pop();
            self.links[index].open(&mut self.cx);
        }
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
        while self.churn.take(self.cx.now()).is_some() {
            self.links[self.next_churn].leave(&mut self.cx);
            self.next_churn = (self.next_churn + 1) % self.links.len();
        }
    }

    /// Looks at what has a time limit, and has slow readers read.
    fn check(&mut self) {
        let now = self.cx.now();
        if now < self.next_check {
            return;
        }
        self.next_check = now + SECOND_NS / CHECKS_PER_S;
        let slow_bytes = self.cx.plan.slow_bytes_per_s.div_ceil(CHECKS_PER_S) as usize;
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
            until = until.min(self.connects.due()).min(self.shared.start().unwrap_or(u64::MAX));
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
