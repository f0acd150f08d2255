//! Promise 9: same key, same instance; when one leaves, only its keys move.

use super::*;

use crate::ids::TenantId;
use crate::routing::affinity_hash;
use proptest::prelude::*;

const POINTS: u32 = 160;

fn ring(instances: &[(u32, &str, u32)]) -> Ring {
    Ring::new(instances.iter().map(|&(id, name, weight)| (InstanceId(id), name, weight)), POINTS)
}

/// Share of the circle that each of `n` instances owns, by its points.
fn shares(ring: &Ring, n: usize) -> Vec<f64> {
    let mut shares = vec![0.0; n];
    let mut before = *ring.positions.last().expect("not empty");
    for (&at, owner) in ring.positions.iter().zip(&ring.owners) {
        shares[owner.0 as usize] += at.wrapping_sub(before) as f64 / 2f64.powi(64);
        before = at;
    }
    shares
}

/// The instances clockwise from `hash`, each once, the slow way.
fn naive_order(ring: &Ring, hash: u64) -> Vec<InstanceId> {
    let at = ring.positions.iter().position(|&p| p >= hash).unwrap_or(0);
    let mut order = Vec::new();
    for i in 0..ring.owners.len() {
        let owner = ring.owners[(at + i) % ring.owners.len()];
        if !order.contains(&owner) {
            order.push(owner);
        }
    }
    order
}

#[test]
fn ten_equal_instances_share_the_circle_evenly() {
    // Three bytes are the case in which seeding the hash with the number of a point goes wrong.
    for prefix in ["logic-", "ws", "10.0.0.7:5000", "a"] {
        let names: Vec<String> = (0..10).map(|n| format!("{prefix}{n}")).collect();
        let instances: Vec<_> = (0..10).map(|n| (n, names[n as usize].as_str(), 1)).collect();
        let shares = shares(&ring(&instances), 10);
        let peak = shares.iter().copied().fold(0.0, f64::max) * 10.0;
        let least = shares.iter().copied().fold(1.0, f64::min) * 10.0;
        assert!(peak < 1.25 && least > 0.75, "{prefix}: {least:.3} to {peak:.3} of the average");
    }
}

#[test]
fn users_are_spread_as_evenly_as_the_circle() {
    let names: Vec<String> = (0..10).map(|n| format!("logic-{n}")).collect();
    let instances: Vec<_> = (0..10).map(|n| (n, names[n as usize].as_str(), 1)).collect();
    let ring = ring(&instances);
    let mut counts = [0u32; 10];
    for user in 0..20_000 {
        let hash = affinity_hash(TenantId(0), format!("user-{user}").as_bytes());
        counts[ring.pick(hash).expect("not empty").0 as usize] += 1;
    }
    let peak = f64::from(*counts.iter().max().expect("ten")) / 2_000.0;
    assert!(peak < 1.3, "{counts:?}");
}

#[test]
fn an_instance_owns_its_weight() {
    let ring = ring(&[(0, "a", 1), (1, "b", 2), (2, "c", 3), (3, "d", 4), (4, "none", 0)]);
    let shares = shares(&ring, 5);
    for (n, weight) in [1.0, 2.0, 3.0, 4.0, 0.0].into_iter().enumerate() {
        let want = weight / 10.0;
        assert!((shares[n] - want).abs() <= want * 0.2, "{shares:?}");
    }
}

#[test]
fn positions_never_change_between_builds() {
    // Keys would move during every rolling upgrade: change these values only with a major version.
    let ring = ring(&[(1, "logic-1", 1), (2, "logic-2", 2), (3, "logic-3", 1)]);
    let owners: Vec<u32> = (0..16)
        .map(|n| ring.pick(affinity_hash(TenantId(0), format!("user-{n}").as_bytes())))
        .map(|id| id.expect("not empty").0)
        .collect();
    assert_eq!(ring.positions[..2], [28_151_005_701_467_937, 42_557_822_965_736_268]);
    assert_eq!(owners, [2, 3, 3, 2, 1, 3, 2, 2, 1, 2, 2, 2, 1, 3, 1, 2]);
    // ShardConfig vectors: SplitMix64 from 1234567, XXH3-64 of nothing.
    assert_eq!(point(1_234_567, 0), 6_457_827_717_110_365_317);
    assert_eq!(point(1_234_567, 1), 3_203_168_211_198_807_973);
    assert_eq!(xxh3_64(b""), 0x2d06_8005_38d3_94c2);
}

#[test]
fn an_empty_ring_has_nobody_and_a_single_instance_has_no_other() {
    let empty = ring(&[]);
    assert!(empty.is_empty());
    assert_eq!((empty.pick(7), next_distinct(&empty, 7, &[])), (None, None));
    let one = ring(&[(5, "only", 1)]);
    for hash in [0, 1, u64::MAX / 2, u64::MAX] {
        assert_eq!(one.pick(hash), Some(InstanceId(5)));
        assert_eq!(next_distinct(&one, hash, &[]), Some(InstanceId(5)));
        assert_eq!(next_distinct(&one, hash, &[InstanceId(5)]), None);
    }
}

/// Two to eight instances with names that differ, in any order of ids.
fn instances() -> impl Strategy<Value = Vec<(u32, String, u32)>> {
    prop::collection::btree_map("[a-c]{1,3}", 1u32..4, 2..8).prop_map(|names| {
        let len = names.len() as u32;
        let list = names.into_iter().enumerate();
        list.map(|(n, (name, weight))| (len - n as u32, name, weight)).collect()
    })
}

fn build(instances: &[(u32, String, u32)], points: u32) -> Ring {
    let list = instances.iter().map(|(id, name, w)| (InstanceId(*id), name.as_str(), *w));
    Ring::new(list, points)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn only_the_keys_of_the_one_that_left_move_and_they_move_to_the_next(
        instances in instances(),
        gone in any::<prop::sample::Index>(),
        hashes in prop::collection::vec(any::<u64>(), 256),
    ) {
        let all = build(&instances, 20);
        let mut rest = instances.clone();
        let gone = InstanceId(rest.remove(gone.index(instances.len())).0);
        rest.reverse(); // the order in which they are listed does not matter
        let rest = build(&rest, 20);
        let edges = all.positions.iter().flat_map(|&p| [p.wrapping_sub(1), p, p.wrapping_add(1)]);
        for hash in hashes.into_iter().chain(edges) {
            let owner = all.pick(hash).expect("not empty");
            if owner == gone {
                prop_assert_eq!(rest.pick(hash), next_distinct(&all, hash, &[gone]));
            } else {
                prop_assert_eq!(rest.pick(hash), Some(owner));
            }
        }
    }

    #[test]
    fn next_distinct_names_each_instance_once_in_the_order_of_the_circle(
        instances in instances(),
        hash in any::<u64>(),
        points in 1u32..20,
    ) {
        let ring = build(&instances, points);
        let edges = ring.positions.iter().flat_map(|&p| [p, p.wrapping_add(1)]);
        for hash in edges.chain([hash, 0, u64::MAX]) {
            let mut order = Vec::new();
            while let Some(next) = next_distinct(&ring, hash, &order) {
                order.push(next);
            }
            prop_assert_eq!(&order, &naive_order(&ring, hash));
            prop_assert_eq!(order.len(), instances.len());
            prop_assert_eq!(ring.pick(hash), Some(order[0]));
        }
    }
}

/// The next instance that is none of `not`.
fn next_distinct(ring: &Ring, hash: u64, not: &[InstanceId]) -> Option<InstanceId> {
    ring.find(hash, |id| !not.contains(&id))
}
