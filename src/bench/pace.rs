//! The times at which messages of an open loop are due, and other things that happen at a rate.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::plan::Arrivals;

/// Nanoseconds in a second.
pub const SECOND_NS: u64 = 1_000_000_000;

/// A sequence of due times. It goes on whether or not anybody keeps up with it: so a server that
/// stalls delays what was due meanwhile, and that shows.
#[derive(Debug)]
pub struct Pace {
    /// Due time of the next event, in nanoseconds of the run. A sum of doubles: after a day their
    /// steps are 16 ns.
    next: f64,
    gap: f64,
    arrivals: Arrivals,
    rng: StdRng,
}

impl Pace {
    /// Events at `per_s` a second from `start`, in nanoseconds; none at all at 0.
    pub fn new(per_s: f64, arrivals: Arrivals, start: u64, seed: u64) -> Self {
        let gap = if per_s > 0.0 { SECOND_NS as f64 / per_s } else { f64::INFINITY };
        let mut pace = Self { next: start as f64, gap, arrivals, rng: StdRng::seed_from_u64(seed) };
        pace.advance();
        pace
    }

    /// Time of the next event; `u64::MAX` if there is none.
    pub fn due(&self) -> u64 {
        if self.next.is_finite() { self.next as u64 } else { u64::MAX }
    }

    /// Goes on to the event after it.
    pub fn advance(&mut self) {
        self.next += match self.arrivals {
            Arrivals::Constant => self.gap,
            // Above 0, as the random number is below 1.
            Arrivals::Poisson => -self.gap * (1.0 - self.rng.random::<f64>()).ln(),
        };
    }

    /// Whether an event is due at `now`; then the next one follows it.
    pub fn take(&mut self, now: u64) -> Option<u64> {
        let due = self.due();
        (due <= now).then(|| {
            self.advance();
            due
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_arrivals_are_evenly_spaced_and_do_not_wait() {
        let mut pace = Pace::new(1000.0, Arrivals::Constant, 5, 0);
        assert_eq!(pace.take(1_000_004), None);
        let due: Vec<u64> = std::iter::from_fn(|| pace.take(4_000_005)).collect();
        assert_eq!(due, [1_000_005, 2_000_005, 3_000_005, 4_000_005]);
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_the_spread_of_chance() {
        let mut pace = Pace::new(1000.0, Arrivals::Poisson, 0, 7);
        let mut gaps = Vec::new();
        let mut last = 0;
        for _ in 0..20_000 {
            gaps.push((pace.due() - last) as f64 / 1e6);
            last = pace.due();
            pace.advance();
        }
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let squares = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>();
        let deviation = (squares / gaps.len() as f64).sqrt();
        // Of exponential gaps both are 1 ms; with 20,000 of them they are within 3 %.
        assert!((mean - 1.0).abs() < 0.03 && (deviation - 1.0).abs() < 0.05, "{mean} {deviation}");
    }

    #[test]
    fn a_rate_of_none_is_never_due() {
        let mut pace = Pace::new(0.0, Arrivals::Constant, 0, 0);
        assert_eq!((pace.due(), pace.take(u64::MAX - 1)), (u64::MAX, None));
    }
}
