//! The retry budget: retries as a share of first attempts (promise 7).

use crate::message::Micros;

/// Step in which the sliding window of a retry budget moves: one second.
const STEP_US: u64 = 1_000_000;
/// Length of the window: the current second and the nine before it.
const STEPS: usize = 10;
/// Retries in a window that are allowed whatever the traffic: one a second, so that a service with
/// one message a second can be retried at all.
const RETRIES_FLOOR: u64 = 10;

/// Allows retries up to `percent` of the first attempts of the last ten seconds, plus ten.
///
/// So an outage multiplies the traffic by 1 + percent/100, not by the number of attempts.
#[derive(Clone, Debug)]
pub(crate) struct RetryBudget {
    percent: u64,
    /// Ring of seconds: second `s` is at `s % STEPS`.
    steps: [Step; STEPS],
    /// Sum of all `steps`.
    sum: Step,
    /// Second at which the ring is.
    second: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Step {
    firsts: u64,
    retries: u64,
}

impl RetryBudget {
    /// A budget of `percent` of the first attempts; 0 allows no retry, not even the floor.
    pub fn new(percent: u32) -> Self {
        Self {
            percent: u64::from(percent),
            steps: [Step::default(); STEPS],
            sum: Step::default(),
            second: 0,
        }
    }

    /// Changes the share; the attempts counted so far stay.
    pub fn set_percent(&mut self, percent: u32) {
        self.percent = u64::from(percent);
    }

    /// Counts first attempts of messages.
    #[inline]
    pub fn add_firsts(&mut self, count: u64, now: Micros) {
        self.advance(now);
        self.steps[(self.second % STEPS as u64) as usize].firsts += count;
        self.sum.firsts += count;
    }

    /// Whether one retry is allowed now. A retry that is allowed is counted.
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

    /// Drops seconds that have left the window. A time before the last one changes nothing.
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
