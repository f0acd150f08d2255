//! The state that the doors and control share: the lanes to the shards, what is awaited of them,
//! callers with their rates, and counts. All of it is used on the control thread, for as long as a
//! look-up takes.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::callers::{Caller, Callers};
use super::rate::Bucket;
use super::receipts::{Awaited, Outcome, Receipts};
use super::refusal::{RefusalLog, Refused};
use super::tally::Tally;
use crate::config::Config;
use crate::ids::ShardId;
use crate::lanes::PlaceSender;
use crate::message::{Micros, Priority, Reason};
use crate::push::{GroupName, Receipt, Submit};

/// Time after which a push is tried again that found a full lane: a shard empties one of thousands
/// of places within some milliseconds.
const LANE_RETRY: Duration = Duration::from_millis(20);

/// Time after which to come again to a gateway that starts or stops.
const RETRY_STARTING: Duration = Duration::from_secs(1);

/// Whether pushes are taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Not yet: not every shard serves.
    Starting,
    /// They are.
    Serving,
    /// No longer: the gateway stops.
    Draining,
}

/// Settings and callers in force.
pub struct Rules {
    pub config: Arc<Config>,
    pub callers: Callers,
}

/// Rates of a caller, by its name.
pub struct Account {
    pub pushes: Bucket,
    pub deliveries: Bucket,
    /// Held by a push whose deliveries are limited, until they are counted.
    pub turn: Arc<tokio::sync::Mutex<()>>,
}

/// The state behind the lock.
pub struct Inner {
    lanes: Vec<PlaceSender<Submit>>,
    /// Receipts that are awaited of shards.
    pub receipts: Receipts,
    /// Whether pushes are taken; long streams wait for it to change.
    pub phase: watch::Sender<Phase>,
    pub rules: Arc<Rules>,
    accounts: HashMap<Arc<str>, Account>,
    pub tally: Tally,
    pub refusals: RefusalLog,
    started: Instant,
}

/// The shared state.
pub struct Desk(Mutex<Inner>);

impl Desk {
    /// A desk with a lane into each shard, for a process that began at `started`.
    pub fn new(lanes: Vec<PlaceSender<Submit>>, rules: Rules, started: Instant) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Inner {
            lanes,
            receipts: Receipts::default(),
            phase: watch::Sender::new(Phase::Starting),
            rules: Arc::new(rules),
            accounts: HashMap::new(),
            tally: Tally::default(),
            refusals: RefusalLog::default(),
            started,
        })))
    }

    /// Locks the state, for as long as a look-up takes.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("nothing panics while it holds this")
    }

    /// Whether pushes are taken; else why not.
    pub fn open(&self) -> Result<(), Refused> {
        let refused = |reason, why: &str| Err(Refused::new(reason, why).after(RETRY_STARTING));
        let phase = *self.lock().phase.borrow();
        match phase {
            Phase::Serving => Ok(()),
            Phase::Starting => refused(Reason::Unavailable, "the gateway starts: come again"),
            Phase::Draining => {
                refused(Reason::Draining, "the gateway stops: push to another one, or come again")
            }
        }
    }
}

/// A piece of work that is sent under one number.
pub struct Job {
    /// The group that it is for, if it is for one.
    pub group: Option<GroupName>,
    pub number: u64,
    /// The shards that get it.
    pub sends: Vec<(ShardId, Submit)>,
    /// The answers to wait for, if any.
    pub awaited: Option<Awaited>,
}

impl Inner {
    /// Number of the shards.
    pub fn shards(&self) -> u16 {
        self.lanes.len() as u16
    }

    /// Work that waits in the lane to each shard.
    pub fn waiting(&self) -> Vec<usize> {
        self.lanes.iter().map(PlaceSender::taken).collect()
    }

    /// The time by the process's clock.
    pub fn now(&self, now: Instant) -> Micros {
        Micros(now.saturating_duration_since(self.started).as_micros() as u64)
    }

    /// The rates of a caller.
    pub fn account(&mut self, caller: &Caller, now: Instant) -> &mut Account {
        let Caller { pushes_per_s, deliveries_per_s, .. } = *caller;
        let account = self.accounts.entry(caller.name.clone()).or_insert_with(|| Account {
            pushes: Bucket::new(pushes_per_s, now),
            deliveries: Bucket::new(deliveries_per_s, now),
            turn: Arc::default(),
        });
        account.pushes.set_rate(pushes_per_s, now);
        account.deliveries.set_rate(deliveries_per_s, now);
        account
    }

    /// Takes a push into account by its caller's rates, or tells when to come back.
    pub fn enter(&mut self, caller: &Caller, now: Instant) -> Result<(), Refused> {
        let account = self.account(caller, now);
        for (bucket, key) in
            [(&mut account.deliveries, "deliveries_per_s"), (&mut account.pushes, "pushes_per_s")]
        {
            bucket.look(now).map_err(|wait| {
                let why = format!("the rate {key} of this caller is used up: come back later");
                Refused::new(Reason::RateLimited, why).after(wait)
            })?;
        }
        account.pushes.charge(1);
        Ok(())
    }

    /// Sends jobs to all their shards or to none, and notes what is to be waited for.
    pub fn send(&mut self, jobs: Vec<Job>, class: Priority) -> Result<VecDeque<Waiting>, Refused> {
        let awaited = jobs.iter().filter(|job| job.awaited.is_some()).count();
        if !self.receipts.has_room(awaited) {
            let why = "too many pushes wait for their receipts: come back later";
            return Err(Refused::new(Reason::QueueFull, why).after(LANE_RETRY));
        }
        self.take_places(&jobs, class)?;
        let mut waits = VecDeque::new();
        let (mut sent, mut lost) = (0, 0);
        for Job { group, number, sends, awaited } in jobs {
            if let Some(awaited) = awaited {
                let outcome = self.receipts.begin(number, awaited);
                waits.push_back(Waiting { group, number, outcome });
            }
            for (shard, submit) in sends {
                match self.lanes[usize::from(shard.0)].send(submit) {
                    true => sent += 1,
                    false => {
                        lost += 1;
                        self.receipts.shard_ended(shard);
                    }
                }
            }
        }
        match (sent, lost) {
            (0, 1..) => Err(Refused::new(Reason::Draining, "the addressed shards have ended")),
            _ => Ok(waits),
        }
    }

    /// Takes a place for each send, or none.
    fn take_places(&self, jobs: &[Job], class: Priority) -> Result<(), Refused> {
        let percent = match class {
            Priority::Critical => 100,
            Priority::High => 95,
            Priority::Normal => 85,
            Priority::Low => 70,
        };
        let lanes = jobs.iter().flat_map(|job| &job.sends);
        let lanes = lanes.map(|(shard, _)| &self.lanes[usize::from(shard.0)]);
        for (taken, lane) in lanes.clone().enumerate() {
            if !lane.take_place(percent) {
                lanes.take(taken).for_each(PlaceSender::give_place_back);
                let class = class.name();
                let why = format!("the lane to an addressed shard has no room for class {class}");
                return Err(Refused::new(Reason::QueueFull, why).after(LANE_RETRY));
            }
        }
        Ok(())
    }

    /// Counts and logs a refusal.
    pub fn note_refusal(&mut self, caller: &Caller, refused: &Refused, now: Instant) {
        let of_reason = Reason::ALL.iter().position(|reason| *reason == refused.reason);
        if let Some(place) = of_reason {
            self.tally.of(&caller.name).refused[place] += 1;
        }
        self.refusals.note(&caller.name, refused, now);
    }

    /// Takes in what shards tell.
    pub fn take_receipts(&mut self, receipts: Vec<Receipt>) {
        receipts.into_iter().for_each(|receipt| self.receipts.take(receipt));
    }
}

/// A job that is waited for.
pub struct Waiting {
    group: Option<GroupName>,
    number: u64,
    outcome: oneshot::Receiver<Outcome>,
}

/// Jobs that are waited for together. When it is dropped, because their caller has gone, their
/// receipts are dropped, and nothing of the work is undone.
pub struct Waits {
    desk: Arc<Desk>,
    list: VecDeque<Waiting>,
    until: Instant,
}

impl Waits {
    /// Waits for `list` until `until`.
    pub fn new(desk: &Arc<Desk>, list: VecDeque<Waiting>, until: Instant) -> Self {
        Self { desk: desk.clone(), list, until }
    }

    /// What became of each, as far as it is known in time.
    pub async fn outcomes(mut self) -> Vec<(Option<GroupName>, Outcome)> {
        let mut outcomes = Vec::with_capacity(self.list.len());
        while let Some(waiting) = self.list.front_mut() {
            let in_time = tokio::time::timeout_at(self.until.into(), &mut waiting.outcome).await;
            let outcome = match in_time {
                Ok(outcome) => outcome.ok(),
                Err(_) => match self.desk.lock().receipts.end(waiting.number) {
                    Some(outcome) => Some(outcome),
                    None => waiting.outcome.try_recv().ok(),
                },
            };
            let waiting = self.list.pop_front();
            let group = waiting.and_then(|waiting| waiting.group);
            outcomes.push((group, outcome.unwrap_or_default()));
        }
        outcomes
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        if !self.list.is_empty() {
            let mut inner = self.desk.lock();
            for waiting in &self.list {
                inner.receipts.end(waiting.number);
            }
        }
    }
}
