//! Quotas over time: the sustained rate, the time to come back, and what is kept over reloads.

use proptest::prelude::*;

use super::*;
use crate::routing::Tenant;
use crate::routing::quota::{THINGS, divide};

const ACME: &str = "acme";

fn table(quotas: &[(&str, Quota)]) -> TenantTable {
    let tenant = |(name, quota): &(&str, Quota)| Tenant { quota: *quota, ..Tenant::plain(name) };
    TenantTable::new(quotas.iter().map(tenant).collect())
}

fn ledger(shard: usize, shards: usize, quota: Quota) -> TenantLedger {
    let mut ledger = TenantLedger::new(shard, shards);
    ledger.apply(&table(&[(ACME, quota)]), 1);
    ledger
}

/// Shards that are offered messages of a tenant, and the division of its quota between them.
struct Shards {
    ledgers: Vec<TenantLedger>,
    quota: Quota,
    now: Micros,
}

impl Shards {
    fn new(shards: usize, quota: Quota) -> Self {
        let ledgers = (0..shards).map(|shard| ledger(shard, shards, quota)).collect();
        Self { ledgers, quota, now: Micros(1_000_000) }
    }

    /// Runs for a second in which each shard is offered so many messages of so many bytes, evenly.
    /// Returns how many were taken, and how many bytes they have.
    fn second(&mut self, offered: &[u64], bytes: usize) -> (u64, u64) {
        let mut taken = 0;
        for step in 0..1_000_u64 {
            self.now.0 += 1_000;
            for (ledger, offered) in self.ledgers.iter_mut().zip(offered) {
                for _ in step * offered / 1_000..(step + 1) * offered / 1_000 {
                    let id = TenantId::of(ACME);
                    taken += u64::from(ledger.take_message(id, bytes, self.now).is_ok());
                }
            }
        }
        self.divide();
        (taken, taken * bytes as u64)
    }

    /// Does what control does each second.
    fn divide(&mut self) {
        let now = self.now;
        let demands: Vec<Demand> = self
            .ledgers
            .iter_mut()
            .map(|ledger| ledger.demands(|_| 0, now).expect("a second is over")[0].1)
            .collect();
        for (ledger, part) in self.ledgers.iter_mut().zip(divide(&self.quota, &demands)) {
            ledger.set_parts(&[(TenantId::of(ACME), part)], now);
        }
    }
}

fn is_near(value: u64, wanted: u64) -> bool {
    value.abs_diff(wanted) * 100 <= wanted * 5
}

/// Promise: quotas hold for the process as a whole, within 5 % at the sustained rate, wherever the
/// users of a tenant are.
#[test]
fn a_rate_holds_within_five_percent_on_two_shards_wherever_the_messages_come() {
    let quota = Quota { messages_per_s: 1_000, ..Quota::NONE };
    let mut shards = Shards::new(2, quota);
    for offered in [[2_000, 2_000], [3_900, 100], [4_000, 0], [0, 4_000], [800, 3_000]] {
        // Two seconds in which the parts follow.
        shards.second(&offered, 100);
        shards.second(&offered, 100);
        let taken: u64 = (0..10).map(|_| shards.second(&offered, 100).0).sum();
        assert!(is_near(taken, 10_000), "{offered:?}: {taken}");
    }
    // Nothing is refused below the quota, although most of it comes to one shard.
    for _ in 0..3 {
        shards.second(&[900, 50], 100);
    }
    let taken: u64 = (0..10).map(|_| shards.second(&[900, 50], 100).0).sum();
    assert_eq!(taken, 9_500);
}

/// Promise 19: a shard that nobody used has little, and what it gets after a pause is no burst of
/// the whole quota each time.
#[test]
fn a_rate_holds_for_messages_that_go_from_one_shard_to_the_other_and_back() {
    let quota = Quota { messages_per_s: 1_000, ..Quota::NONE };
    for burst_s in [1, 10] {
        for (stay, pause) in [(1, 1), (2, 1), (3, 2), (12, 1)] {
            let mut shards = Shards::new(2, quota);
            shards.ledgers.iter_mut().for_each(|ledger| ledger.burst_s = burst_s);
            let mut second = |at: u64| {
                let (turn, place) = (at / (stay + pause), at % (stay + pause));
                let offered = match (place < stay, turn.is_multiple_of(2)) {
                    (false, _) => [0, 0],
                    (true, true) => [4_000, 0],
                    (true, false) => [0, 4_000],
                };
                shards.second(&offered, 100).0
            };
            // What a tenant has that was quiet before.
            for at in 0..20 {
                second(at);
            }
            let taken: u64 = (20..80).map(&mut second).sum();
            assert!(
                taken <= 63_000,
                "{stay} s here, {stay} s there, a burst of {burst_s} s: {taken} of 60,000"
            );
        }
    }
}

/// What shards are offered in a second, in messages.
type Pattern<'a> = &'a dyn Fn(u64) -> Vec<u64>;

/// Runs a tenant with a quota of [`RATE`] for some seconds from its first message on. Asserts that
/// all shards together take no more than one allowance of the quota, from the start to the end of
/// each second; and no less than the quota or what is offered, whichever is less in a second, but
/// for 5 %, and for a second of the quota on each shard: the first one that its part comes late to.
fn takes_its_quota(shards: usize, seconds: u64, pattern: Pattern<'_>) -> Result<(), String> {
    let mut all = Shards::new(shards, Quota { messages_per_s: RATE as u32, ..Quota::NONE });
    let (mut taken, mut wanted) = (0, 0);
    for second in 0..seconds {
        let offered = pattern(second);
        taken += all.second(&offered, 1).0;
        wanted += RATE.min(offered.iter().sum());
        let shards = shards as u64;
        // Of each shard the last message may take more than is there.
        let (least, most) = (wanted * 95 / 100, RATE * (second + 1 + BURST_S) + shards);
        if taken > most || taken + shards * RATE < least {
            return Err(format!("second {second}: {taken}, not {least} to {most}"));
        }
    }
    Ok(())
}

const RATE: u64 = 200;
const BURST_S: u64 = 1;

/// Promise 19: the rate is the quota's also where the load goes from shard to shard in step with
/// the division, which follows what was wanted in the second before.
#[test]
fn a_load_that_jumps_from_shard_to_shard_gets_its_quota_and_no_more() {
    for shards in [2_usize, 3, 8] {
        for stay in [1, 2, 3, 5, 13] {
            for load in [RATE * 3 / 4, RATE, 4 * RATE] {
                let offered = |at: u64| {
                    let on = (at / stay) as usize % shards;
                    (0..shards).map(|n| if n == on { load } else { 0 }).collect()
                };
                let found = takes_its_quota(shards, 60, &offered);
                assert_eq!(found, Ok(()), "{load} on one of {shards} for {stay} s");
            }
        }
        // It grows on one while it shrinks on the others.
        let ramp = |at: u64, n: usize| 4 * RATE * ((at + 7 * n as u64) % 20).abs_diff(10) / 10;
        let found = takes_its_quota(shards, 60, &|at| (0..shards).map(|n| ramp(at, n)).collect());
        assert_eq!(found, Ok(()), "ramps on {shards}");
        // One wants all of it all the time, and the others wake up one after the other.
        let wakes = |at: u64, n: usize| match n {
            0 => 4 * RATE,
            n => RATE * u64::from(at as usize % (3 * shards) == n),
        };
        let found = takes_its_quota(shards, 60, &|at| (0..shards).map(|n| wakes(at, n)).collect());
        assert_eq!(found, Ok(()), "some of {shards} wake up");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_load_gets_its_quota_and_no_more_wherever_it_comes(
        rows in prop::collection::vec(prop::collection::vec(0_u64..7, 4), 40),
        stay in 1_u64..4,
        shards in 2_usize..5,
    ) {
        let offered = |at: u64| {
            let row = &rows[(at / stay) as usize % rows.len()];
            row[..shards].iter().map(|n| [0, 0, 0, 50, 150, 200, 600][*n as usize]).collect()
        };
        prop_assert_eq!(takes_its_quota(shards, 40 * stay, &offered), Ok(()));
    }
}

#[test]
fn what_flowed_in_by_a_larger_quota_or_for_a_longer_burst_is_void() {
    let quota = |messages_per_s| Quota { messages_per_s, ..Quota::NONE };
    let (id, now) = (TenantId::of(ACME), Micros(1));
    let count = |ledger: &mut TenantLedger| {
        (0..5_000).filter(|_| ledger.take_message(id, 1, now).is_ok()).count()
    };
    let mut one_a_second = [None; THINGS];
    one_a_second[Thing::Messages as usize] = Some(RATE_PARTS);
    for (rate, burst_s, left) in [(1_000, 2, 2_000), (10, 2, 20), (1_000, 1, 1)] {
        let mut ledger = TenantLedger::new(0, 1);
        ledger.apply(&table(&[(ACME, quota(1_000))]), 2);
        ledger.set_parts(&[(id, one_a_second)], now);
        ledger.apply(&table(&[(ACME, quota(rate))]), burst_s);
        assert_eq!(count(&mut ledger), left, "{rate} a second, for {burst_s} s");
    }
}

#[test]
fn bytes_are_limited_also_where_a_message_is_larger_than_a_second_of_them() {
    let quota = Quota { bytes_per_s: 10_000, ..Quota::NONE };
    let mut shards = Shards::new(2, quota);
    for bytes in [100, 4_000, 64_000] {
        for _ in 0..10 {
            shards.second(&[500, 500], bytes);
        }
        let taken: u64 = (0..200).map(|_| shards.second(&[500, 500], bytes).1).sum();
        assert!(is_near(taken, 2_000_000), "{bytes}: {taken}");
    }
}

#[test]
fn a_small_rate_is_divided_among_many_shards() {
    let quota = Quota { messages_per_s: 10, ..Quota::NONE };
    let mut shards = Shards::new(64, quota);
    for _ in 0..10 {
        shards.second(&[5; 64], 1);
    }
    let taken: u64 = (0..100).map(|_| shards.second(&[5; 64], 1).0).sum();
    assert!(is_near(taken, 1_000), "{taken}");
}

#[test]
fn who_waits_as_told_is_let_in() {
    let quota = Quota { messages_per_s: 7, bytes_per_s: 900, ..Quota::NONE };
    let mut ledger = ledger(0, 1, quota);
    let id = TenantId::of(ACME);
    let mut now = Micros(5);
    let mut refused = 0;
    for n in 0..1_000 {
        if let Err(OverQuota { us, .. }) = ledger.take_message(id, 10 + n % 400, now) {
            refused += 1;
            now.0 += us;
            // Alone, one waits for both rates, one after the other at worst.
            if let Err(OverQuota { us, .. }) = ledger.take_message(id, 1, now) {
                now.0 += us;
                assert_eq!(ledger.take_message(id, 1, now), Ok(()));
            }
        }
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn a_reload_keeps_what_was_used_and_a_changed_quota_holds_at_once() {
    let quota = Quota { messages_per_s: 100, ..Quota::NONE };
    let mut ledger = ledger(0, 1, quota);
    let (id, now) = (TenantId::of(ACME), Micros(1));
    while ledger.take_message(id, 1, now).is_ok() {}
    ledger.enqueue(id, 500);
    let other = ("other", Quota::NONE);
    ledger.apply(&table(&[other, (ACME, quota)]), 1);
    assert!(ledger.take_message(id, 1, now).is_err(), "a reload gives nothing back");
    assert_eq!(ledger.check([(id, 500)].into_iter()), Ok(()));
    let smaller = Quota { queued_bytes_max: 600, ..Quota::NONE };
    ledger.apply(&table(&[other, (ACME, smaller)]), 1);
    assert!(ledger.take_message(id, 1, now).is_ok(), "there is no rate any more");
    assert!(ledger.has_room(id, 100) && !ledger.has_room(id, 101));
    // Parts of the quota before are void.
    let mut part = [None; THINGS];
    part[Thing::Messages as usize] = Some(1);
    ledger.set_parts(&[(id, part)], now);
    assert!(ledger.has_room(id, 100) && !ledger.has_room(id, 101));
    ledger.apply(&TenantTable::default(), 1);
    assert!(ledger.is_empty() && ledger.has_room(id, usize::MAX));
}

#[test]
fn a_message_larger_than_the_quota_of_bytes_goes_through_alone() {
    let quota = Quota { queued_bytes_max: 100, ..Quota::NONE };
    let mut ledger = ledger(0, 1, quota);
    let id = TenantId::of(ACME);
    assert!(ledger.has_room(id, 5_000));
    ledger.enqueue(id, 5_000);
    assert!(!ledger.has_room(id, 1));
    ledger.settle(id, 5_000);
    assert!(ledger.has_room(id, 1));
}

#[test]
fn a_message_that_is_refused_for_its_bytes_uses_up_no_message() {
    let quota = Quota { messages_per_s: 100, bytes_per_s: 1_000, ..Quota::NONE };
    let mut ledger = ledger(0, 1, quota);
    let (id, now) = (TenantId::of(ACME), Micros(1));
    // Owes two seconds of bytes.
    assert_eq!(ledger.take_message(id, 3_000, now), Ok(()));
    for _ in 0..500 {
        let over = ledger.take_message(id, 10, now).expect_err("bytes are owed");
        assert_eq!(over.thing, Thing::Bytes);
    }
    let later = Micros(2_100_001);
    assert_eq!(ledger.take_message(id, 10, later), Ok(()));
}

/// A part that is small for the moment is no reason to stay away for long.
#[test]
fn the_time_to_come_back_is_that_of_a_fair_part() {
    let quota = Quota { messages_per_s: 10, ..Quota::NONE };
    let mut ledger = ledger(1, 2, quota);
    let (id, now) = (TenantId::of(ACME), Micros(1));
    let mut part = [None; THINGS];
    part[Thing::Messages as usize] = Some(125);
    ledger.set_parts(&[(id, part)], now);
    let over = (0..50).find_map(|_| ledger.take_message(id, 1, now).err()).expect("a small part");
    assert!(over.us <= PARTS_FOLLOW_US + 200_000, "{over:?}");
    // A part of a rate is never nothing where each shard can have some of it.
    let demands = [Demand::default(); 64];
    let parts = divide(&Quota { messages_per_s: 1, ..Quota::NONE }, &demands);
    assert!(parts.iter().all(|part| part[Thing::Messages as usize] > Some(0)));
}
