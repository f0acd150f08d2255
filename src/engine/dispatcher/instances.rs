//! The instances as one shard sees them: their queues, calls in flight, links and history.

use crate::config::settings::QueueSettings;
use crate::engine::dispatcher::queue::InstanceQueue;
use crate::engine::instance_map::InstanceMap;
use crate::ids::{InstanceId, ServiceId};
use crate::message::{CallError, CallFault, status};
use crate::routing::{Mode, Share, Snapshot};
use crate::stats::{InstanceReport, Signal};

/// A call that was given up after less than this says more about its deadline (which a client may
/// choose) than about the instance.
const TIMEOUT_COUNTS_US: u64 = 1_000_000;

/// State of the connection to an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// No attempt has failed yet: calls wait for the connection.
    Connecting,
    /// Connected.
    Up,
    /// The last attempt failed: its keys go to the next instance.
    Down,
}

/// How an instance did since control was last reported.
#[derive(Debug, Default)]
pub struct CallHistory {
    ok: bool,
    failures: u32,
    losses: u32,
    /// A refused call was counted: one GOAWAY refuses many at once.
    refused: bool,
    /// Control knows of failures that no success has followed.
    reported: bool,
}

impl CallHistory {
    /// A call was answered.
    pub fn succeeded(&mut self) {
        self.ok = true;
        self.failures = 0;
    }

    /// A call's answer could not be read.
    pub fn failed(&mut self) {
        self.failures += 1;
    }

    /// A connection was lost.
    pub fn lost(&mut self) {
        self.losses += 1;
    }

    /// A call failed: does that speak against the instance?
    pub fn ended(&mut self, error: &CallError, unary: bool, took_us: u64) {
        let counts = match error.fault {
            // The connection's state tells that, and `lost` counts it once.
            CallFault::NotConnected | CallFault::ConnectionLost => false,
            CallFault::Refused => !std::mem::replace(&mut self.refused, true),
            CallFault::Reset | CallFault::BadReply => true,
            CallFault::TimedOut => took_us >= TIMEOUT_COUNTS_US,
            // A unary call's status is the application's answer to one client's message.
            CallFault::Status if unary => error.status == status::UNAVAILABLE,
            CallFault::Status => matches!(
                error.status,
                status::UNKNOWN
                    | status::DEADLINE_EXCEEDED
                    | status::UNIMPLEMENTED
                    | status::INTERNAL
                    | status::UNAVAILABLE
                    | status::DATA_LOSS
            ),
        };
        self.failures += u32::from(counts);
    }

    /// Puts back a report that the lane to control refused; it is merged into the next one.
    fn give_back(&mut self, signal: &Signal) {
        // Failures before a success that has come since do not count any more.
        let failures = if self.ok { 0 } else { signal.failures };
        self.failures = self.failures.saturating_add(failures);
        self.losses = self.losses.saturating_add(signal.losses);
        self.ok |= signal.ok;
        // A success may have been worth a word for what control still knows.
        self.reported |= signal.ok;
    }

    /// What control is to hear, if it is worth a word; then a new time begins.
    fn take_report(&mut self, instance: InstanceId, trusted: bool) -> Option<Signal> {
        let Self { ok, failures, losses, reported, .. } = *self;
        *self = Self { reported: failures > 0 || reported && !ok, ..Self::default() };
        let news = failures > 0 || losses > 0 || ok && (reported || !trusted);
        news.then_some(Signal { instance, ok, failures, losses })
    }
}

/// One instance.
#[derive(Debug)]
pub struct InstanceState {
    /// Its service.
    pub service: ServiceId,
    /// How it is called: the same for its whole life.
    pub mode: Mode,
    /// Connection.
    pub link: Link,
    /// How many of its keys it gets; none when the snapshot in force does not name it.
    pub share: Share,
    /// Whether the snapshot in force names it.
    pub present: bool,
    /// What waits for it.
    pub queue: InstanceQueue,
    /// Calls in flight.
    pub in_flight: usize,
    /// A call ended since the last batch left: what waits may leave.
    pub slot_freed: bool,
    /// On the list of instances to look at.
    pub ready: bool,
    /// Messages answered OK.
    pub ok: u64,
    /// Messages failed.
    pub failed: u64,
    /// How its calls went.
    pub history: CallHistory,
}

impl InstanceState {
    /// Whether any message may be given to it.
    pub fn is_usable(&self) -> bool {
        self.present && self.link != Link::Down && self.share != Share::NONE
    }

    /// Nothing of it is under way, and nobody will come for it again.
    fn is_over(&self) -> bool {
        !self.present && self.in_flight == 0 && self.queue.items == 0 && !self.ready
    }
}

/// All instances of the snapshot in force, and those before it of which something is under way.
#[derive(Debug)]
pub struct Instances {
    states: InstanceMap<Box<InstanceState>>,
    /// Delay of each priority class in the queues, critical first.
    delays_us: [u64; 4],
    /// Rises when an instance comes, goes, or changes its link or share: streams then look whether
    /// they are where they belong.
    pub epoch: u64,
}

impl Instances {
    /// Those of `snapshot`.
    pub fn new(snapshot: &Snapshot, settings: &QueueSettings) -> Self {
        let states = InstanceMap::default();
        let mut instances = Self { states, delays_us: delays_us(settings), epoch: 0 };
        instances.apply(snapshot);
        instances
    }

    /// Changes the delays of the priority classes.
    pub fn set_settings(&mut self, settings: &QueueSettings) {
        self.delays_us = delays_us(settings);
        for (_, state) in self.states.iter_mut() {
            state.queue.set_delays(self.delays_us);
        }
    }

    /// Adds those that are new, marks those that are gone. A state lives on until nothing of it is
    /// under way.
    pub fn apply(&mut self, snapshot: &Snapshot) {
        self.epoch += 1;
        let delays_us = self.delays_us;
        for (_, state) in self.states.iter_mut() {
            state.present = false;
            state.share = Share::NONE;
        }
        for instance in &snapshot.instances {
            let mode = snapshot.services[instance.service.0 as usize].mode;
            let state = self.states.get_or_insert_with(instance.id, || {
                Box::new(InstanceState {
                    service: instance.service,
                    mode,
                    link: Link::Connecting,
                    share: Share::NONE,
                    present: true,
                    queue: InstanceQueue::new(instance.id, delays_us),
                    in_flight: 0,
                    slot_freed: false,
                    ready: false,
                    ok: 0,
                    failed: 0,
                    history: CallHistory::default(),
                })
            });
            assert!(
                (state.service, state.mode) == (instance.service, mode),
                "an instance id means one service and mode for ever"
            );
            state.present = true;
            state.share = if instance.draining { Share::NONE } else { instance.share };
        }
    }

    /// Forgets those that are over.
    pub fn prune(&mut self) {
        self.states.retain(|_, state| !state.is_over());
    }

    /// One that some snapshot named and that is not over.
    pub fn get(&self, id: InstanceId) -> &InstanceState {
        self.states.get(id).expect("instance ids come from snapshots")
    }

    /// See [`Self::get`].
    pub fn get_mut(&mut self, id: InstanceId) -> &mut InstanceState {
        self.find_mut(id).expect("instance ids come from snapshots")
    }

    /// One that may be over.
    pub fn find_mut(&mut self, id: InstanceId) -> Option<&mut InstanceState> {
        self.states.get_mut(id).map(Box::as_mut)
    }

    /// What it takes now: nothing if it cannot be reached.
    pub fn share(&self, id: InstanceId) -> Share {
        match self.states.get(id) {
            Some(state) if state.is_usable() => state.share,
            Some(_) | None => Share::NONE,
        }
    }

    /// Whether messages with this hash may be given to it.
    pub fn takes(&self, id: InstanceId, hash: u64) -> bool {
        self.share(id).takes(hash)
    }

    /// All that are not over, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (InstanceId, &InstanceState)> {
        self.states.iter().map(|(id, state)| (id, &**state))
    }

    /// See [`Self::iter`].
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (InstanceId, &mut InstanceState)> {
        self.states.iter_mut().map(|(id, state)| (id, &mut **state))
    }

    /// What control is to hear of them.
    pub fn take_report(&mut self, signals: &mut Vec<Signal>) {
        for (id, state) in self.iter_mut() {
            let trusted = state.share == Share::ALL;
            signals.extend(state.history.take_report(id, trusted));
        }
    }

    /// Takes back what control could not be reported.
    pub fn give_back(&mut self, signals: &[Signal]) {
        for signal in signals {
            if let Some(state) = self.states.get_mut(signal.instance) {
                state.history.give_back(signal);
            }
        }
    }

    /// For statistics, by id.
    pub fn report(&self) -> Vec<InstanceReport> {
        let mut reports: Vec<InstanceReport> = self
            .iter()
            .map(|(instance, state)| InstanceReport {
                instance,
                connected: state.link == Link::Up,
                waiting: state.queue.items as u64,
                in_flight: state.in_flight as u64,
                ok: state.ok,
                failed: state.failed,
            })
            .collect();
        reports.sort_unstable_by_key(|report| report.instance);
        reports
    }
}

fn delays_us(settings: &QueueSettings) -> [u64; 4] {
    settings.class_delay_ms.map(|ms| ms * 1000)
}
