//! Counts of pushes on the way from their callers to the shards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::config::settings::PushTo;
use crate::message::Reason;

/// The doors by which callers come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Door {
    /// gRPC: `shardgate.push.v1.Push`.
    Grpc,
    /// HTTP: `POST /push`.
    Http,
}

impl Door {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Grpc, Self::Http];

    /// Name in statistics and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http",
        }
    }
}

/// All kinds of addressees, in the order of [`CallerTally::pushes`].
pub const KINDS: [PushTo; 5] =
    [PushTo::Session, PushTo::User, PushTo::Group, PushTo::Tenant, PushTo::Everyone];

/// Name of a kind of addressees in statistics and metrics: its word in the configuration.
pub fn kind_name(kind: PushTo) -> &'static str {
    match kind {
        PushTo::Session => "session",
        PushTo::User => "user",
        PushTo::Group => "group",
        PushTo::Tenant => "tenant",
        PushTo::Everyone => "everyone",
    }
}

/// Counts of one caller since the start.
#[derive(Clone, Debug)]
pub struct CallerTally {
    /// Pushes that went to the shards, by door and by kind of addressees.
    pub pushes: [[u64; KINDS.len()]; Door::ALL.len()],
    /// Pushes and other calls that were refused, by reason.
    pub refused: [u64; Reason::ALL.len()],
    /// Deliveries, as far as shards counted them.
    pub deliveries: u64,
}

impl Default for CallerTally {
    fn default() -> Self {
        Self { pushes: Default::default(), refused: [0; Reason::ALL.len()], deliveries: 0 }
    }
}

impl CallerTally {
    /// Pushes by all doors to all kinds.
    pub fn pushes(&self) -> u64 {
        self.pushes.iter().flatten().sum()
    }

    /// Refusals for all reasons.
    pub fn refused(&self) -> u64 {
        self.refused.iter().sum()
    }
}

/// Counts of all callers, and the time of calls.
#[derive(Clone, Debug)]
pub struct Tally {
    /// By name; those that are no longer configured stay, as counts of metrics never fall.
    pub callers: BTreeMap<Arc<str>, CallerTally>,
    /// Calls without a good token.
    pub unknown: u64,
    /// Time from a whole request to its answer, in microseconds.
    pub times: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        // To a minute, of which the longest wait for receipts is a twelfth, with 1 % of error.
        let times = Histogram::new_with_bounds(1, 60_000_000, 2).expect("bounds are in order");
        Self { callers: BTreeMap::new(), unknown: 0, times }
    }
}

impl Tally {
    /// The counts of a caller.
    pub fn of(&mut self, caller: &Arc<str>) -> &mut CallerTally {
        if !self.callers.contains_key(caller) {
            self.callers.insert(caller.clone(), CallerTally::default());
        }
        self.callers.get_mut(caller).expect("it was put there")
    }

    /// Notes the time of a call.
    pub fn note_time(&mut self, took: Duration) {
        self.times.saturating_record(took.as_micros().min(u64::MAX.into()) as u64);
    }
}
