//! Rates of callers: a bucket of one second's worth, which may go below zero by something whose
//! size is known only afterwards.

use std::time::{Duration, Instant};

/// Parts of one: a microsecond at a rate of one a second, so that nothing is rounded.
const ONE: i64 = 1_000_000;

/// A bucket, full at first.
#[derive(Clone, Debug)]
pub struct Bucket {
    per_s: u32,
    /// Millionths of one in it at `at`; below zero = owed.
    level: i64,
    at: Instant,
}

impl Bucket {
    /// A full bucket into which `per_s` flow each second; 0 = no limit.
    pub fn new(per_s: u32, now: Instant) -> Self {
        Self { per_s, level: i64::from(per_s) * ONE, at: now }
    }

    /// Goes on at another rate. What is owed stays so.
    pub fn set_rate(&mut self, per_s: u32, now: Instant) {
        if self.per_s != per_s {
            self.flow(now);
            let was_full = self.level == self.full();
            self.per_s = per_s;
            self.level = if was_full { self.full() } else { self.level.min(self.full()) };
        }
    }

    /// Whether there is one in it; else the time after which there is.
    pub fn look(&mut self, now: Instant) -> Result<(), Duration> {
        self.flow(now);
        if self.per_s == 0 || self.level >= ONE {
            return Ok(());
        }
        let missing = (ONE - self.level) as u64;
        Err(Duration::from_micros(missing.div_ceil(self.per_s.into())))
    }

    /// Takes `n` out of it, below zero if need be.
    pub fn charge(&mut self, n: u64) {
        if self.per_s > 0 {
            let n = i64::try_from(n).unwrap_or(i64::MAX).saturating_mul(ONE);
            self.level = self.level.saturating_sub(n);
        }
    }

    fn full(&self) -> i64 {
        i64::from(self.per_s) * ONE
    }

    fn flow(&mut self, now: Instant) {
        let us = now.saturating_duration_since(self.at).as_micros().min(i64::MAX as u128) as i64;
        self.at = self.at.max(now);
        let flown = us.saturating_mul(self.per_s.into());
        self.level = self.level.saturating_add(flown).min(self.full());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_s_worth_is_there_at_once_and_then_it_flows() {
        let now = Instant::now();
        let mut bucket = Bucket::new(2, now);
        for _ in 0..2 {
            assert_eq!(bucket.look(now), Ok(()));
            bucket.charge(1);
        }
        assert_eq!(bucket.look(now), Err(Duration::from_millis(500)));
        let later = now + Duration::from_millis(500);
        assert_eq!(bucket.look(later), Ok(()));
        bucket.charge(1);
        assert_eq!(bucket.look(later), Err(Duration::from_millis(500)));
        assert_eq!(bucket.look(now), Err(Duration::from_millis(500)), "time does not run back");
    }

    #[test]
    fn a_large_push_is_owed_and_waited_for() {
        let now = Instant::now();
        let mut bucket = Bucket::new(1_000, now);
        assert_eq!(bucket.look(now), Ok(()));
        bucket.charge(5_000);
        let owed = bucket.look(now).unwrap_err();
        assert_eq!(owed, Duration::from_millis(4_001));
        assert_eq!(bucket.look(now + owed), Ok(()));
    }

    #[test]
    fn no_rate_is_no_limit_and_another_rate_forgives_no_debt() {
        let now = Instant::now();
        let mut bucket = Bucket::new(0, now);
        bucket.charge(u64::MAX);
        assert_eq!(bucket.look(now), Ok(()));
        bucket.set_rate(10, now);
        assert_eq!(bucket.look(now), Ok(()), "it was full");
        bucket.charge(20);
        bucket.set_rate(100, now);
        assert_eq!(bucket.look(now), Err(Duration::from_micros(110_000)));
    }
}
