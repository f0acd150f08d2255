//! How long the calls of one instance took: a histogram of half a kilobyte, because there is one
//! for each instance and shard.

/// Parts of an octave: a value is told with an error of at most a quarter of itself.
const PARTS: usize = 4;
/// Bits of the longest time that is told apart, 2^30 us or 18 minutes: no call may take as long.
const BITS: usize = 30;
/// Buckets: one a microsecond up to 4, then [`PARTS`] an octave.
const BUCKETS: usize = (BITS - 1) * PARTS;

/// Counts of calls by the time they took.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CallTimes {
    counts: [u32; BUCKETS],
}

impl Default for CallTimes {
    fn default() -> Self {
        Self { counts: [0; BUCKETS] }
    }
}

impl CallTimes {
    /// Counts a call that took `us` microseconds.
    #[inline]
    pub(crate) fn record(&mut self, us: u64) {
        let count = &mut self.counts[bucket(us)];
        *count = count.wrapping_add(1);
    }

    /// Adds the calls of another shard. Counts that went round add up all the same, as long as
    /// [`Self::since`] is asked often enough.
    pub(crate) fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(a, b)| *a = a.wrapping_add(b));
    }

    /// The calls that have come since `earlier`: fewer than 2^32 of each bucket.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let mut counts = self.counts;
        counts.iter_mut().zip(earlier.counts).for_each(|(a, b)| *a = a.wrapping_sub(b));
        Self { counts }
    }

    /// Number of calls.
    pub(crate) fn calls(&self) -> u64 {
        self.counts.iter().map(|&n| u64::from(n)).sum()
    }

    /// Time, in microseconds, that a part of `quantile` (0 to 1) of the calls did not exceed;
    /// `None` = there are no calls.
    pub(crate) fn quantile(&self, quantile: f64) -> Option<u64> {
        let calls = self.calls();
        let wanted = ((calls as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        let counts = self.counts.iter().enumerate();
        let reached = |(at, &n): (usize, &u32)| {
            seen += u64::from(n);
            (seen >= wanted).then(|| last(at))
        };
        if calls == 0 { None } else { counts.into_iter().find_map(reached) }
    }
}

/// Bucket of a time; those that are too long are in the last one.
fn bucket(us: u64) -> usize {
    if us < PARTS as u64 {
        return us as usize;
    }
    let octave = us.ilog2() as usize;
    let part = (us >> (octave - 2)) as usize % PARTS;
    ((octave - 1) * PARTS + part).min(BUCKETS - 1)
}

/// Longest time of a bucket, in microseconds.
fn last(bucket: usize) -> u64 {
    if bucket < PARTS {
        return bucket as u64;
    }
    let (octave, part) = (bucket / PARTS + 1, bucket % PARTS);
    ((PARTS + part + 1) as u64 * (1 << (octave - 2))) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_one_bucket_and_told_with_an_error_of_a_quarter() {
        for us in (0..5_000).chain((0..30).flat_map(|bit| [(1 << bit) - 1, 1 << bit, 3 << bit])) {
            let told = last(bucket(us));
            let longest = last(BUCKETS - 1);
            assert!(us > longest || (us..=us + us / 4).contains(&told), "{us}: {told}");
        }
        assert_eq!(
            (0..BUCKETS).map(|n| bucket(last(n))).collect::<Vec<_>>(),
            Vec::from_iter(0..BUCKETS)
        );
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_of_the_calls_since_a_moment_of_all_shards() {
        let mut calls = [CallTimes::default(), CallTimes::default()];
        assert_eq!(calls[0].quantile(0.99), None);
        (0..50).for_each(|_| calls[0].record(1_000_000));
        let before = calls.clone();
        (0..198).for_each(|n| calls[n % 2].record(100));
        calls[1].record(40_000);
        calls[1].record(40_000);
        let mut since = calls[0].since(&before[0]);
        since.add(&calls[1].since(&before[1]));
        assert_eq!(since.calls(), 200);
        let told = [0.5, 0.99, 0.995, 1.0].map(|quantile| since.quantile(quantile));
        assert_eq!(told, [111, 111, 40_959, 40_959].map(Some));
    }
}
