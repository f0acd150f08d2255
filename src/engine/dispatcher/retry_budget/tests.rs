//! The retry budget against a model that remembers every event.

use super::*;
use proptest::prelude::*;

const SECOND: u64 = 1_000_000;

#[test]
fn low_traffic_may_retry_ten_times_a_window() {
    let mut budget = RetryBudget::new(20);
    let granted = (0..100).filter(|_| budget.try_retry(Micros(0))).count();
    assert_eq!(granted, 10);
    assert!(!budget.try_retry(Micros(10 * SECOND - 1)));
    assert!(budget.try_retry(Micros(10 * SECOND)));
}

#[test]
fn no_percent_is_no_retry() {
    let mut budget = RetryBudget::new(0);
    budget.add_firsts(1000, Micros(0));
    assert!(!budget.try_retry(Micros(0)));
}

#[test]
fn an_outage_adds_a_fifth_to_the_traffic() {
    let mut budget = RetryBudget::new(20);
    let mut retries = 0;
    for ms in 0..60_000 {
        let now = Micros::from_ms(ms);
        budget.add_firsts(10, now);
        retries += (0..10).filter(|_| budget.try_retry(now)).count();
    }
    // 600,000 first attempts: 20 % and the floor of ten in each of the six windows.
    assert!((119_000..=120_060).contains(&retries), "{retries}");
}

#[test]
fn extremes_do_not_overflow() {
    let mut budget = RetryBudget::new(u32::MAX);
    budget.add_firsts(u64::MAX / 2, Micros(u64::MAX));
    assert!(budget.try_retry(Micros(u64::MAX)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn retries_stay_within_the_share_of_the_window(
        percent in 0u32..150,
        events in prop::collection::vec((0u64..3 * SECOND, 0u64..40, 0usize..20), 1..60),
    ) {
        let mut budget = RetryBudget::new(percent);
        let (mut firsts, mut retries) = (Vec::<(u64, u64)>::new(), Vec::<u64>::new());
        let mut now = 0;
        for (wait, count, tries) in events {
            now += wait;
            let second = now / SECOND;
            budget.add_firsts(count, Micros(now));
            firsts.push((second, count));
            for _ in 0..tries {
                let share: u64 =
                    firsts.iter().filter(|f| f.0 + 10 > second).map(|f| f.1).sum::<u64>();
                let used = retries.iter().filter(|r| **r + 10 > second).count() as u64;
                let floor = if percent == 0 { 0 } else { 10 };
                let allowed = used < share * u64::from(percent) / 100 + floor;
                prop_assert_eq!(budget.try_retry(Micros(now)), allowed);
                if allowed {
                    retries.push(second);
                }
            }
        }
    }
}
