//! Token buckets against a model that remembers every event.

use super::*;
use proptest::prelude::*;

const SECOND: u64 = 1_000_000;

#[test]
fn a_bucket_passes_its_rate_to_the_token() {
    let (flow, mut bucket) = (Rate { per_s: 333, burst: 50 }, TokenBucket::new(Micros(0)));
    let mut taken = 0;
    for ms in 0..=100_000 {
        while bucket.take(flow, 1, Micros::from_ms(ms)).is_ok() {
            taken += 1;
        }
    }
    assert_eq!(taken, 50 + 333 * 100);
}

#[test]
fn who_waits_as_told_gets_the_sustained_rate() {
    let (flow, mut bucket) = (Rate { per_s: 700, burst: 1 }, TokenBucket::new(Micros(0)));
    let (mut now, mut taken) = (0, 0);
    while now < 10 * SECOND {
        match bucket.take(flow, 1, Micros(now)) {
            Ok(()) => taken += 1,
            Err(wait) => now += wait,
        }
    }
    // Waits are whole microseconds, so that a burst of one loses less than one a token.
    assert!((6_990..=7_001).contains(&taken), "{taken}");
}

#[test]
fn what_can_never_be_is_said_so() {
    let (flow, mut bucket) = (Rate { per_s: 10, burst: 5 }, TokenBucket::new(Micros(0)));
    assert_eq!(bucket.take(flow, 6, Micros(0)), Err(u64::MAX));
    assert_eq!(bucket.take(flow, 5, Micros(0)), Ok(()));
    let (dry, mut bucket) = (Rate { per_s: 0, burst: 5 }, TokenBucket::new(Micros(0)));
    assert_eq!(bucket.take(dry, 5, Micros(0)), Ok(()));
    assert_eq!(bucket.take(dry, 1, Micros(u64::MAX)), Err(u64::MAX));
}

#[test]
fn a_change_counts_from_its_time_on_and_a_full_bucket_stays_full() {
    let (slow, fast) = (Rate { per_s: 1, burst: 10 }, Rate { per_s: 100, burst: 1_000 });
    let mut bucket = TokenBucket::new(Micros(0));
    assert_eq!(bucket.take(slow, 10, Micros(0)), Ok(()));
    bucket.settle(slow, Micros(5 * SECOND));
    let one_more = bucket.take(fast, 16, Micros(5 * SECOND + SECOND / 10));
    assert_eq!(one_more, Err(10_000), "5 by the old rate and 10 by the new one are there");
    bucket.settle(fast, Micros(20 * SECOND));
    assert!(bucket.is_full(fast, Micros(20 * SECOND)));
    let more = Rate { per_s: 1, burst: 5_000 };
    assert_eq!(bucket.take(more, 5_000, Micros(20 * SECOND)), Ok(()));
    assert!(!bucket.is_full(more, Micros(20 * SECOND)));
    assert!(bucket.is_full(Rate::default(), Micros(20 * SECOND)), "nothing flows, nothing lacks");
}

#[test]
fn extremes_do_not_overflow() {
    let most = Rate { per_s: u32::MAX, burst: u32::MAX };
    let mut bucket = TokenBucket::new(Micros(0));
    assert_eq!(bucket.take(most, u32::MAX, Micros(u64::MAX)), Ok(()));
    assert!(bucket.take(most, 1, Micros(0)).is_err(), "the clock ran back: nothing flowed");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// The definition of a token bucket: in no stretch of time more than the burst and what flows
    /// in during it.
    #[test]
    fn a_bucket_refuses_exactly_what_breaks_its_rate_over_some_stretch(
        rate in 1u32..2_000,
        burst in 1u32..50,
        asks in prop::collection::vec((0u64..20_000, 1u32..20), 1..100),
    ) {
        let (flow, mut bucket) = (Rate { per_s: rate, burst }, TokenBucket::new(Micros(0)));
        let mut taken = Vec::<(u64, u32)>::new();
        let mut now = 0;
        for (wait, n) in asks {
            now += wait;
            let fits = |at: u64| {
                let mut sum = u64::from(n);
                let stretches = std::iter::once((at, 0)).chain(taken.iter().rev().copied());
                stretches.into_iter().all(|(since, n)| {
                    sum += u64::from(n);
                    sum * TOKEN <= u64::from(burst) * TOKEN + u64::from(rate) * (at - since)
                })
            };
            match bucket.take(flow, n, Micros(now)) {
                Ok(()) => {
                    prop_assert!(fits(now));
                    taken.push((now, n));
                }
                Err(u64::MAX) => prop_assert!(n > burst),
                Err(wait) => {
                    prop_assert!(!fits(now) && !fits(now + wait - 1) && fits(now + wait));
                }
            }
        }
    }
}
