//! The last five minutes in rows of a second, for `/live`: what has come in each second, made of
//! samples that the shards send. They are kept always, because the minute before somebody looks is
//! the one that matters; a sample costs a shard what a copy of its counts does.

pub mod row;
pub mod totals;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use self::row::{Row, RowMaker};
use self::totals::Totals;
use super::gathering::Overview;
use super::shards::ShardView;

/// Time of a row.
pub const ROW_TIME: Duration = Duration::from_secs(1);
/// Rows that are kept: five minutes.
pub const ROWS_MAX: usize = 300;
/// Rows after which the totals are noted, against which instances and tenants are compared: so
/// their figures are of ten to twenty seconds.
const TOTALS_EVERY: u64 = 10;

/// What a reader gets: rows, and the state of everything now.
#[derive(Debug)]
pub struct Reading {
    /// Rows after the one that the reader has, oldest first.
    pub rows: Vec<Arc<Row>>,
    /// Number of the newest row; 0 = there is none.
    pub newest: u64,
    /// Rows of the last minute, oldest first.
    pub minute: Vec<Arc<Row>>,
    /// Totals of ten to twenty seconds ago.
    pub earlier: Arc<Totals>,
    /// State of everything, with the samples in the place of reports.
    pub overview: Overview,
}

/// The rows, and what the next one is made of.
#[derive(Debug)]
pub struct Live {
    rows: VecDeque<Arc<Row>>,
    /// Number of rows since the start.
    count: u64,
    /// Time at which samples are asked for.
    next: Instant,
    /// Whether samples were asked for of which no row was made.
    is_open: bool,
    maker: RowMaker,
    /// Totals of some ten and some twenty seconds ago.
    totals: [Arc<Totals>; 2],
}

impl Live {
    /// No rows yet: the first one counts from `start`, that of the process.
    pub fn new(start: Instant, now: Instant) -> Self {
        Self {
            rows: VecDeque::with_capacity(ROWS_MAX),
            count: 0,
            next: now,
            is_open: false,
            maker: RowMaker::new(start),
            totals: Default::default(),
        }
    }

    /// Time of the next question.
    pub fn due(&self) -> Instant {
        self.next
    }

    /// Whether samples are to be asked for now.
    pub fn is_due(&self, now: Instant) -> bool {
        self.next <= now
    }

    /// Whether a row waits for samples.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Takes note that samples were asked for.
    pub fn asked(&mut self, now: Instant) {
        self.is_open = true;
        // A time that was missed is not made up for.
        self.next = (self.next + ROW_TIME).max(now + ROW_TIME / 2);
    }

    /// Makes a row of the samples that have come; what a silent shard counts comes in a later row.
    pub fn take(&mut self, shards: &[ShardView], now: Instant) {
        self.is_open = false;
        if shards.iter().all(|shard| shard.report.is_none()) {
            return;
        }
        let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis());
        self.count += 1;
        let row = self.maker.make(self.count, unix_ms as u64, shards, now);
        if self.rows.len() == ROWS_MAX {
            self.rows.pop_front();
        }
        self.rows.push_back(Arc::new(row));
        if self.count.is_multiple_of(TOTALS_EVERY) {
            let reports = shards.iter().filter_map(|shard| shard.report.as_deref());
            self.totals.rotate_right(1);
            self.totals[0] = Arc::new(Totals::of(reports, now));
        }
    }

    /// The rows after number `since`, and `overview`.
    pub fn read(&self, since: u64, overview: Overview) -> Reading {
        let after = |number: u64| self.rows.iter().filter(move |row| row.number > number).cloned();
        Reading {
            rows: after(since).collect(),
            newest: self.count,
            minute: after(self.count.saturating_sub(60)).collect(),
            earlier: self.totals[1].clone(),
            overview,
        }
    }
}

/// Bytes of all rows of so many shards, at the very worst.
pub fn bytes_max(shards: usize) -> u64 {
    (ROWS_MAX * row::bytes_max(shards)) as u64
}

#[cfg(test)]
mod tests;
