//! The retry budget: retries as a share of first attempts.

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

#[cfg(test)]
mod tests;
