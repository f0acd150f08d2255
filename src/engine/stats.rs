//! Counters and histograms of a shard, and the log events whose rate is limited.

use crate::engine::pace::Pace;
use crate::engine::refusals::Refusals;
use crate::ids::ShardId;
use crate::message::{CallFault, Category, Micros, Reason};
use crate::stats::{Counter, Counters, Histograms, Stage};

/// Time between two `route_failed` events of a shard: one second.
const ROUTE_FAILED_EVERY_US: u64 = 1_000_000;
/// Time between two warnings that the process is out of descriptors: one minute.
const EXHAUSTED_EVERY_US: u64 = 60_000_000;

/// Everything that a shard has counted and measured since its start.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub counters: Counters,
    pub histograms: Histograms,
    /// Number of error answers by reason, in the order of [`Reason::ALL`].
    pub reasons: [u64; Reason::ALL.len()],
    /// Number of failed calls by fault.
    pub faults: Vec<(CallFault, u64)>,
    /// When refusals of clients were logged.
    pub refusals: Refusals,
    /// Number of messages decoded in this turn: they share the turn's decode time.
    decoded: u64,
    route_failures: Pace,
    exhaustions: Pace,
}

impl Stats {
    #[inline]
    pub fn inc(&mut self, counter: Counter) {
        self.counters.inc(counter);
    }

    #[inline]
    pub fn add(&mut self, counter: Counter, n: u64) {
        self.counters.add(counter, n);
    }

    #[inline]
    pub fn record(&mut self, stage: Stage, us: u64, count: u64) {
        self.histograms.record(stage, us, count);
    }

    /// Counts an error answer by its reason.
    pub fn reason(&mut self, reason: Reason) {
        self.reasons[reason as usize] += 1;
    }

    /// Counts an error answer by the part of the gateway that handled the message.
    pub fn error(&mut self, category: Category) {
        self.counters.inc(match category {
            Category::System => Counter::SystemErrors,
            Category::Business => Counter::BusinessErrors,
            Category::Gateway => Counter::GatewayErrors,
        });
    }

    /// Counts a message by the part of the gateway that handles it.
    pub fn message(&mut self, category: Category) {
        self.counters.inc(match category {
            Category::System => Counter::SystemMessages,
            Category::Business => Counter::BusinessMessages,
            Category::Gateway => Counter::GatewayMessages,
        });
    }

    /// Counts a failed call by its fault.
    pub fn fault(&mut self, fault: CallFault) {
        match self.faults.iter_mut().find(|(f, _)| *f == fault) {
            Some((_, count)) => *count += 1,
            None => self.faults.push((fault, 1)),
        }
    }

    /// Counts a message that was decoded in this turn.
    #[inline]
    pub fn decoded(&mut self) {
        self.decoded += 1;
    }

    /// Records for how many microseconds bytes of a client lay unread in the kernel.
    pub fn record_unread(&mut self, us: u64) {
        self.histograms.record(Stage::Unread, us, 1);
    }

    /// Records the time that a turn spent in receiving and decoding, which the messages share that
    /// were decoded since the last call.
    pub fn record_reading(&mut self, us: u64) {
        self.histograms.record(Stage::Reading, us, 1);
        let messages = std::mem::take(&mut self.decoded);
        if let Some(each) = us.checked_div(messages) {
            self.histograms.record(Stage::Decode, each, messages);
        }
    }

    /// Counts a routing failure. At most once a second, logs the failures since the last event.
    pub fn route_failed(
        &mut self,
        shard: ShardId,
        msg_id: u32,
        service: &str,
        why: &str,
        now: Micros,
    ) {
        self.counters.inc(Counter::FailedRoutes);
        if let Some(count) = self.route_failures.note(ROUTE_FAILED_EVERY_US, now) {
            tracing::warn!(
                shard = shard.0,
                msg_id,
                service,
                why,
                count,
                "route_failed: no instance can get this message; `shardgate explain` shows why"
            );
        }
    }

    /// Whether running out of descriptors is to be logged: at most once a minute.
    pub fn note_exhausted(&mut self, now: Micros) -> bool {
        self.exhaustions.note(EXHAUSTED_EVERY_US, now).is_some()
    }
}
