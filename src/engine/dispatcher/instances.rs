//! The instances as one shard sees them: their queues, calls in flight, links and history.

use std::sync::Arc;

use crate::config::settings::QueueSettings;
use crate::engine::dispatcher::endings::Blame;
use crate::engine::dispatcher::queue::InstanceQueue;
use crate::engine::dispatcher::slots::{Line, Slots};
use crate::engine::held::Held;
use crate::engine::instance_map::InstanceMap;
use crate::engine::pace::Pace;
use crate::ids::{InstanceId, ServiceId};
use crate::routing::{Mode, Share, Snapshot};
use crate::stats::{CallTimes, InstanceReport, Signal};

/// State of the connection to an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// No attempt has failed yet: calls wait for the connection.
    Connecting,
    /// The connection is established.
    Up,
    /// The last attempt failed: keys of the instance go to the next one.
    Down,
}

/// Successes and failures of an instance since the last report to control.
#[derive(Debug, Default)]
pub(crate) struct CallHistory {
    /// Whether a call succeeded.
    ok: bool,
    /// Failed calls since the last success.
    failures: u32,
    /// Lost connections.
    losses: u32,
    /// Whether a refused call was counted: one cause refuses many calls at once.
    refused: bool,
    /// Whether control knows of failures that no success has followed.
    reported: bool,
}

impl CallHistory {
    /// Counts a call that was answered.
    pub fn succeeded(&mut self) {
        self.ok = true;
        self.failures = 0;
    }

    /// Counts a call whose answer could not be read.
    pub fn failed(&mut self) {
        self.failures += 1;
    }

    /// Counts a lost connection.
    pub fn lost(&mut self) {
        self.losses += 1;
    }

    /// Counts a failed call, if the failure speaks against the instance.
    pub fn call_failed(&mut self, blame: Blame) {
        let counts = match blame {
            Blame::None => false,
            Blame::Fault => true,
            Blame::Refusal => !std::mem::replace(&mut self.refused, true),
        };
        self.failures += u32::from(counts);
    }

    /// Puts back a report that the lane to control refused; it is merged into the next one.
    fn give_back(&mut self, signal: &Signal) {
        // A success that has come since ends the failures before it.
        let failures = if self.ok { 0 } else { signal.failures };
        self.failures = self.failures.saturating_add(failures);
        self.losses = self.losses.saturating_add(signal.losses);
        self.ok |= signal.ok;
        // Control may still know of failures that this success ended.
        self.reported |= signal.ok;
    }

    /// Takes the report of this interval, if it holds anything new, and begins the next interval.
    /// An instance that is not `trusted` (in full use) is reported with every success.
    fn take_report(&mut self, instance: InstanceId, trusted: bool) -> Option<Signal> {
        let Self { ok, failures, losses, reported, .. } = *self;
        *self = Self { reported: failures > 0 || reported && !ok, ..Self::default() };
        let news = failures > 0 || losses > 0 || ok && (reported || !trusted);
        news.then_some(Signal { instance, ok, failures, losses })
    }
}

/// State of one instance as this shard sees it.
#[derive(Debug)]
pub(crate) struct InstanceState {
    pub service: ServiceId,
    /// Mode of its calls: the same for its whole life.
    pub mode: Mode,
    pub link: Link,
    /// Reason why the link is down.
    pub why: Option<Arc<str>>,
    /// Share of its keys that it gets; none when the snapshot in force does not name it.
    pub share: Share,
    /// Whether the snapshot in force names the instance.
    pub present: bool,
    /// Queues by [`Line`].
    pub queues: [InstanceQueue; 2],
    /// Calls in flight.
    pub slots: Slots,
    /// Whether a call ended since the last batch left: waiting requests may leave at once.
    pub slot_freed: bool,
    /// Whether the instance is on the dispatcher's list of those to be examined.
    pub ready: bool,
    /// Whether a call was answered well, since the instance is known.
    pub has_answered: bool,
    /// Number of requests answered OK.
    pub ok: u64,
    /// Number of requests that failed.
    pub failed: u64,
    /// Times of its calls.
    pub times: CallTimes,
    /// Log lines of failures of its code.
    pub failures: Pace,
    pub history: CallHistory,
}

impl InstanceState {
    /// Whether the instance takes any request.
    pub fn is_usable(&self) -> bool {
        self.present && self.link != Link::Down && self.share != Share::NONE
    }

    /// The queue of a line.
    pub fn queue(&self, line: Line) -> &InstanceQueue {
        &self.queues[line as usize]
    }

    /// The queue of a line, to be changed.
    pub fn queue_mut(&mut self, line: Line) -> &mut InstanceQueue {
        &mut self.queues[line as usize]
    }

    /// Number and bytes of the requests that wait in all lines.
    pub fn waiting(&self) -> Held {
        let [prompt, slow] = &self.queues;
        Held { items: prompt.items + slow.items, bytes: prompt.bytes + slow.bytes }
    }

    /// Whether nothing of the instance is under way, and nothing will be again.
    fn is_over(&self) -> bool {
        !self.present && self.slots.len() == 0 && self.waiting().items == 0 && !self.ready
    }
}

/// The instances of the snapshot in force, and older ones of which something is under way.
#[derive(Debug)]
pub(crate) struct Instances {
    states: InstanceMap<Box<InstanceState>>,
    /// Delay of each priority class in the queues, critical first.
    delays_us: [u64; 4],
    /// Number of changes: an instance came, went, or changed its link or share. A stream that was
    /// placed in an earlier epoch is checked when its call ends.
    pub epoch: u64,
}

impl Instances {
    /// The instances of `snapshot`.
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
            state.queues.iter_mut().for_each(|queue| queue.set_delays(self.delays_us));
        }
    }

    /// Adds new instances of `snapshot`, and marks those that it does not name. The state of such
    /// an instance lives on until nothing of it is under way.
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
                    why: None,
                    share: Share::NONE,
                    present: true,
                    queues: Line::ALL.map(|_| InstanceQueue::new(instance.id, delays_us)),
                    slots: Slots::default(),
                    slot_freed: false,
                    ready: false,
                    has_answered: false,
                    ok: 0,
                    failed: 0,
                    times: CallTimes::default(),
                    failures: Pace::default(),
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

    /// Forgets instances that are over.
    pub fn prune(&mut self) {
        self.states.retain(|_, state| !state.is_over());
    }

    /// The state of an instance that some snapshot named and that is not over.
    pub fn get(&self, id: InstanceId) -> &InstanceState {
        self.states.get(id).expect("instance ids come from snapshots")
    }

    /// The state of an instance as [`Self::get`], to be changed.
    pub fn get_mut(&mut self, id: InstanceId) -> &mut InstanceState {
        self.find_mut(id).expect("instance ids come from snapshots")
    }

    /// The state of an instance that may be over.
    pub fn find_mut(&mut self, id: InstanceId) -> Option<&mut InstanceState> {
        self.states.get_mut(id).map(Box::as_mut)
    }

    /// Share of its keys that an instance takes now: none if it cannot be reached.
    pub fn share(&self, id: InstanceId) -> Share {
        match self.states.get(id) {
            Some(state) if state.is_usable() => state.share,
            Some(_) | None => Share::NONE,
        }
    }

    /// Whether an instance takes requests with this hash now.
    pub fn takes(&self, id: InstanceId, hash: u64) -> bool {
        self.share(id).takes(hash)
    }

    /// The instances that are not over, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (InstanceId, &InstanceState)> {
        self.states.iter().map(|(id, state)| (id, &**state))
    }

    /// The instances as [`Self::iter`], to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (InstanceId, &mut InstanceState)> {
        self.states.iter_mut().map(|(id, state)| (id, &mut **state))
    }

    /// Adds the reports of all instances for control to `signals`.
    pub fn take_report(&mut self, signals: &mut Vec<Signal>) {
        for (id, state) in self.iter_mut() {
            let trusted = state.share == Share::ALL;
            signals.extend(state.history.take_report(id, trusted));
        }
    }

    /// Puts back reports that the lane to control refused.
    pub fn give_back(&mut self, signals: &[Signal]) {
        for signal in signals {
            if let Some(state) = self.states.get_mut(signal.instance) {
                state.history.give_back(signal);
            }
        }
    }

    /// Statistics of all instances, by id.
    pub fn report(&self) -> Vec<InstanceReport> {
        let mut reports: Vec<InstanceReport> = self
            .iter()
            .map(|(instance, state)| InstanceReport {
                instance,
                connected: state.link == Link::Up,
                why_down: (state.link == Link::Down).then(|| state.why.clone()).flatten(),
                waiting: state.waiting().items as u64,
                in_flight: state.slots.len() as u64,
                ok: state.ok,
                failed: state.failed,
                times: state.times.clone(),
            })
            .collect();
        reports.sort_unstable_by_key(|report| report.instance);
        reports
    }
}

fn delays_us(settings: &QueueSettings) -> [u64; 4] {
    settings.class_delay_ms.map(|ms| ms * 1000)
}
