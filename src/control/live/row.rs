//! A row: what all shards counted in one second, and the levels at its end.

use std::sync::Arc;
use std::time::Instant;

use crate::control::shards::ShardView;
use crate::ids::ShardId;
use crate::message::Reason;
use crate::stats::{Counter, Gauges, Histograms, Report, Stage};

/// Times of a stage in the time of a row, in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StageTimes {
    /// Number of values.
    pub count: u64,
    pub p50_us: u64,
    pub p99_us: u64,
}

/// One shard in a row.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ShardRow {
    pub shard: ShardId,
    /// Whether its sample did not come: then the counts of its time are in a later row.
    pub is_silent: bool,
    /// Part of the time for which its thread ran, in thousandths of a core.
    pub busy_permille: u32,
    /// Messages that it read.
    pub messages: u64,
    pub connections: u64,
    pub unanswered: u64,
    pub queue_items: u64,
    /// Fill of its queue, in thousandths.
    pub usage_permille: u32,
    pub is_throttling: bool,
}

/// What came in some time, and the levels at its end.
#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    /// Number since the start of the process, from 1 on.
    pub number: u64,
    /// End of its time, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Length of its time in milliseconds: 1,000, or more where control was late.
    pub took_ms: u64,
    /// Counters that grew, with their growth.
    pub counters: Box<[(Counter, u64)]>,
    /// Reasons of error answers that grew, with their growth.
    pub reasons: Box<[(Reason, u64)]>,
    /// Times by stage, in the order of [`Stage::ALL`].
    pub stages: [StageTimes; Stage::ALL.len()],
    /// Levels at its end, in sum; those that a sample lacks are 0.
    pub levels: Gauges,
    pub shards: Box<[ShardRow]>,
}

impl Row {
    /// Growth of a counter in the time of the row.
    pub fn grew(&self, counter: Counter) -> u64 {
        self.counters.iter().find(|(found, _)| *found == counter).map_or(0, |(_, n)| *n)
    }
}

/// Bytes of a row of so many shards at most.
pub fn bytes_max(shards: usize) -> usize {
    size_of::<Row>()
        + size_of::<(Counter, u64)>() * Counter::ALL.len()
        + size_of::<(Reason, u64)>() * Reason::ALL.len()
        + size_of::<ShardRow>() * shards
}

/// Counters of messages that were read.
const MESSAGES: [Counter; 3] =
    [Counter::SystemMessages, Counter::BusinessMessages, Counter::GatewayMessages];

/// What the next row is compared with, and room for it.
#[derive(Debug)]
pub struct RowMaker {
    /// End of the last row.
    last: Instant,
    /// Last sample of each shard.
    before: Vec<Option<Arc<Report>>>,
    /// Values of the row, in sum over the shards.
    values: Histograms,
}

impl RowMaker {
    /// A maker whose first row counts from `start`.
    pub fn new(start: Instant) -> Self {
        Self { last: start, before: Vec::new(), values: Histograms::default() }
    }

    /// Makes the row from the last one to `now`.
    pub fn make(&mut self, number: u64, unix_ms: u64, shards: &[ShardView], now: Instant) -> Row {
        self.before.resize(shards.len(), None);
        self.values.clear();
        let took_ms = now.saturating_duration_since(self.last).as_millis() as u64;
        let mut counters = vec![0; Counter::ALL.len()];
        let mut reasons = [0; Reason::ALL.len()];
        let mut levels = Gauges::default();
        let mut rows = Vec::with_capacity(shards.len());
        for (shard, before) in shards.iter().zip(&mut self.before) {
            let Some(report) = &shard.report else { continue };
            let earlier = before.as_deref();
            for (sum, &counter) in counters.iter_mut().zip(Counter::ALL) {
                *sum += grown(report, earlier, counter);
            }
            for (at, sum) in reasons.iter_mut().enumerate() {
                *sum += report.reasons[at] - earlier.map_or(0, |earlier| earlier.reasons[at]);
            }
            self.values.add_since(&report.histograms, earlier.map(|earlier| &earlier.histograms));
            levels.add(&report.gauges);
            rows.push(shard_row(shard, report, earlier));
            *before = Some(report.clone());
        }
        self.last = now;
        let grew = Counter::ALL.iter().copied().zip(counters).filter(|(_, n)| *n > 0);
        let refused = Reason::ALL.iter().copied().zip(reasons).filter(|(_, n)| *n > 0);
        Row {
            number,
            unix_ms,
            took_ms,
            counters: grew.collect(),
            reasons: refused.collect(),
            stages: Stage::ALL.map(|stage| times(&self.values, stage)),
            levels,
            shards: rows.into(),
        }
    }
}

fn grown(report: &Report, earlier: Option<&Report>, counter: Counter) -> u64 {
    let before = earlier.map_or(0, |earlier| earlier.counters.get(counter));
    let now = report.counters.get(counter);
    debug_assert!(before <= now, "counters only grow");
    now.saturating_sub(before)
}

fn times(values: &Histograms, stage: Stage) -> StageTimes {
    let histogram = values.get(stage);
    match histogram.len() {
        0 => StageTimes::default(),
        count => StageTimes {
            count,
            p50_us: histogram.value_at_quantile(0.5),
            p99_us: histogram.value_at_quantile(0.99),
        },
    }
}

fn shard_row(shard: &ShardView, report: &Report, earlier: Option<&Report>) -> ShardRow {
    let gauges = &report.gauges;
    let ran = report.busy_us - earlier.map_or(0, |earlier| earlier.busy_us);
    let passed = report.at.0 - earlier.map_or(0, |earlier| earlier.at.0);
    ShardRow {
        shard: shard.shard,
        is_silent: shard.silent,
        busy_permille: (ran * 1000).checked_div(passed).unwrap_or(0).min(1000) as u32,
        messages: MESSAGES.iter().map(|&counter| grown(report, earlier, counter)).sum(),
        connections: gauges.connections,
        unanswered: gauges.unanswered,
        queue_items: gauges.queue_items,
        usage_permille: (gauges.usage_ratio * 1000.0) as u32,
        is_throttling: gauges.is_throttling,
    }
}
