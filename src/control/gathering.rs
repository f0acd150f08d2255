//! Gatherings: one round of reports from all shards, shared by all requests that need one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::directory::DirectoryView;
use super::push::PushView;
use super::shards::{ShardTable, ShardView};

/// Longest wait for a shard's report; a slower shard is shown as silent. A shard answers between
/// two turns, which take milliseconds.
const GATHER_TIMEOUT: Duration = Duration::from_secs(1);

/// The state of everything at the end of a gathering.
#[derive(Debug)]
pub struct Overview {
    /// End of the gathering.
    pub at: Instant,
    /// Whether the gateway is stopping.
    pub draining: bool,
    /// State and last report of every shard.
    pub shards: Vec<ShardView>,
    /// Services, instances, sources and configuration.
    pub directory: DirectoryView,
    /// Callers at the doors of pushes, and their counts.
    pub pushes: PushView,
}

/// The gathering under way, if there is one.
#[derive(Debug, Default)]
pub struct Gathering {
    waiters: Vec<oneshot::Sender<Arc<Overview>>>,
    /// End of the time that the shards have.
    until: Option<Instant>,
}

impl Gathering {
    /// Adds a request to the next [`Self::finish`].
    pub fn add(&mut self, waiter: oneshot::Sender<Arc<Overview>>) {
        self.waiters.push(waiter);
    }

    /// Asks all shards for reports, unless that is under way.
    pub fn begin(&mut self, shards: &mut ShardTable, now: Instant) {
        if self.until.is_none() {
            self.until = Some(now + GATHER_TIMEOUT);
            shards.ask_reports();
        }
    }

    /// Whether a gathering is under way and complete, or its time is over.
    pub fn is_over(&self, shards: &ShardTable, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now || shards.all_answered())
    }

    /// Ends the gathering: gives `overview` to all requests that wait.
    pub fn finish(&mut self, overview: &Arc<Overview>) {
        self.until = None;
        for waiter in self.waiters.drain(..) {
            // The client may have gone away.
            let _ = waiter.send(overview.clone());
        }
    }

    /// End of the time that the shards have.
    pub fn due(&self) -> Option<Instant> {
        self.until
    }
}
