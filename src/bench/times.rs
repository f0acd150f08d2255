//! Times of a run: histograms of nanoseconds, and their percentiles in microseconds.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Longest time that is told apart: an hour, in nanoseconds. Longer ones count as this.
const LONGEST_NS: u64 = 3_600_000_000_000;

/// A histogram of nanoseconds with three significant digits (an error of 0.1 % at most): 32
/// buckets of 1,024 counts and as many for the smallest values, 33 * 1,024 * 8 bytes = 264 KiB.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("bounds are valid")
}

/// Nanoseconds in a microsecond: histograms of runs hold nanoseconds, all that is shown is in
/// microseconds.
pub const NS_PER_US: f64 = 1000.0;

/// Times in microseconds.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Times {
    pub count: u64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
}

impl Times {
    /// The times of a histogram of nanoseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        let at = |quantile| micros(histogram.value_at_quantile(quantile) as f64);
        Self {
            count: histogram.len(),
            mean: micros(histogram.mean()),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: micros(histogram.max() as f64),
        }
    }
}

/// Microseconds with one decimal.
pub fn micros(ns: f64) -> f64 {
    rounded(ns / NS_PER_US)
}

/// A value with one decimal.
pub fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_microseconds() {
        let mut recorded = histogram();
        for us in 1..=1000 {
            recorded.record(us * 1000).expect("in bounds");
        }
        let times = Times::of(&recorded);
        assert_eq!((times.count, times.max.round()), (1000, 1000.0));
        assert!((times.p50 - 500.0).abs() < 1.0 && (times.p99 - 990.0).abs() < 1.0, "{times:?}");
        assert_eq!(Times::of(&histogram()), Times::default());
    }
}
