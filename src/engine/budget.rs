//! How much is allowed in a time: retries as a share of first attempts, events at a rate.

use crate::message::Micros;

/// The sliding window of a retry budget moves in steps of a second ...
const STEP_US: u64 = 1_000_000;
/// ... and is ten steps long: the current second and the nine before it.
const STEPS: usize = 10;
/// Retries in a window that are allowed whatever the traffic, so that a service with one message
/// a second can be retried at all: one a second.
const RETRIES_FLOOR: u64 = 10;

/// Retries at most `percent` of the first attempts of the last ten seconds, plus ten.
///
/// So an outage multiplies the traffic by 1 + percent/100, not by the number of attempts.
#[derive(Clone, Debug)]
pub struct RetryBudget {
    percent: u64,
    /// A ring: second `s` is at `s % STEPS`.
    steps: [Step; STEPS],
    /// Sums of `steps`.
    sum: Step,
    /// The second the ring is at.
    second: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Step {
    firsts: u64,
    retries: u64,
}

impl RetryBudget {
    /// `percent` of first attempts; 0 allows no retry, not even the floor.
    pub fn new(percent: u32) -> Self {
        Self {
            percent: u64::from(percent),
            steps: [Step::default(); STEPS],
            sum: Step::default(),
            second: 0,
        }
    }

    /// Changes the share; what was counted stays.
    pub fn set_percent(&mut self, percent: u32) {
        self.percent = u64::from(percent);
    }

    /// Counts `count` first attempts.
    #[inline]
    pub fn add_firsts(&mut self, count: u64, now: Micros) {
        self.advance(now);
        self.steps[(self.second % STEPS as u64) as usize].firsts += count;
        self.sum.firsts += count;
    }

    /// Whether one retry is allowed now. If so, it is counted.
    pub fn try_retry(&mut self, now: Micros) -> bool {
        self.advance(now);
        let floor = if self.percent == 0 { 0 } else { RETRIES_FLOOR };
        let allowed = self.sum.firsts.saturating_mul(self.percent) / 100 + floor;
        if self.sum.retries >= allowed {
            return false;
        }
        self.steps[(self.second % STEPS as u64) as usize].retries += 1;
        self.sum.retries += 1;
        true
    }

    /// Forgets the seconds that left the window. A time before the last one changes nothing.
    #[inline]
    fn advance(&mut self, now: Micros) {
        let second = now.0 / STEP_US;
        if second <= self.second {
            return;
        }
        let gone = (second - self.second).min(STEPS as u64);
        for s in second - gone + 1..=second {
            let step = std::mem::take(&mut self.steps[(s % STEPS as u64) as usize]);
            self.sum.firsts -= step.firsts;
            self.sum.retries -= step.retries;
        }
        self.second = second;
    }
}

/// Millionths of a token: one microsecond at a rate of one a second. All arithmetic is in them, so
/// nothing is ever rounded and the sustained rate is the configured one to the token.
const TOKEN: u64 = 1_000_000;

/// What flows into buckets: `rate` tokens a second, of which at most `burst` stay. Kept once for
/// all buckets of a kind, so that a change of the settings holds for every one of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flow {
    /// Tokens a second.
    pub rate: u32,
    /// Tokens of a full bucket.
    pub burst: u32,
}

impl Flow {
    const fn full(self) -> u64 {
        self.burst as u64 * TOKEN
    }
}

/// A bucket of tokens.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    /// Millionths of a token in it at `at`; `u64::MAX` = full, whatever the burst is.
    level: u64,
    at: Micros,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(now: Micros) -> Self {
        Self { level: u64::MAX, at: now }
    }

    /// Takes `n` tokens, or none and tells after how many microseconds `n` will be there if nobody
    /// takes any before; `u64::MAX` = never (`n` over the burst, or a rate of 0).
    #[inline]
    pub fn take(&mut self, flow: Flow, n: u32, now: Micros) -> Result<(), u64> {
        self.level = self.level(flow, now);
        self.at = self.at.max(now);
        let need = u64::from(n) * TOKEN;
        match need.checked_sub(self.level) {
            None | Some(0) => {
                self.level -= need;
                Ok(())
            }
            Some(_) if need > flow.full() || flow.rate == 0 => Err(u64::MAX),
            Some(missing) => Err(missing.div_ceil(u64::from(flow.rate))),
        }
    }

    /// Whether it is full: as good as a new one.
    pub fn is_full(&self, flow: Flow, now: Micros) -> bool {
        self.level(flow, now) == flow.full()
    }

    /// `flow` is about to change: what has flowed in until now has done so by it, and a bucket that
    /// is full stays full.
    pub fn settle(&mut self, flow: Flow, now: Micros) {
        self.level = if self.is_full(flow, now) { u64::MAX } else { self.level(flow, now) };
        self.at = self.at.max(now);
    }

    #[inline]
    fn level(&self, flow: Flow, now: Micros) -> u64 {
        let flown = now.since(self.at).saturating_mul(u64::from(flow.rate));
        self.level.saturating_add(flown).min(flow.full())
    }
}

#[cfg(test)]
mod tests;
