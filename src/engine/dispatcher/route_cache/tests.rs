//! The cache against a list that is searched from end to end.

use super::*;
use proptest::prelude::*;

fn cache(entries_max: usize, ttl_ms: u64) -> RouteCache {
    RouteCache::new(&CacheSettings { entries_max, ttl_ms }, 0x5eed)
}

fn key(n: u64) -> RouteKey {
    RouteKey { tenant: TenantId(n % 2), service: ServiceId(n as u16 / 2 % 2), hash: n / 4 }
}

#[test]
fn the_least_recently_used_makes_room() {
    let mut cache = cache(2, 1000);
    let now = Micros(0);
    cache.insert(key(1), InstanceId(1), now);
    cache.insert(key(2), InstanceId(2), now);
    assert_eq!(cache.get(&key(1), now), Some(InstanceId(1)));
    cache.insert(key(3), InstanceId(3), now);
    assert_eq!(cache.get(&key(2), now), None);
    assert_eq!(cache.get(&key(1), now), Some(InstanceId(1)));
    assert_eq!(cache.get(&key(3), now), Some(InstanceId(3)));
    assert_eq!(cache.len(), 2);
}

#[test]
fn an_entry_lives_its_time_from_insertion_however_often_it_is_used() {
    let mut cache = cache(8, 10);
    cache.insert(key(1), InstanceId(1), Micros(5));
    assert_eq!(cache.get(&key(1), Micros(10_004)), Some(InstanceId(1)));
    assert_eq!((cache.len(), cache.active(Micros(10_004))), (1, 1));
    assert_eq!((cache.len(), cache.active(Micros(10_005))), (1, 0));
    assert_eq!(cache.get(&key(1), Micros(10_005)), None);
    assert_eq!(cache.len(), 0);
}

#[test]
fn tenants_and_services_do_not_share_entries() {
    let mut cache = cache(8, 10);
    let now = Micros(0);
    for n in 0..4 {
        assert_eq!(key(n).hash, 0);
        cache.insert(key(n), InstanceId(n as u32), now);
    }
    for n in 0..4 {
        assert_eq!(cache.get(&key(n), now), Some(InstanceId(n as u32)));
    }
}

#[test]
fn a_cache_of_no_entries_remembers_nothing() {
    let mut cache = cache(0, 10);
    cache.insert(key(1), InstanceId(1), Micros(0));
    assert_eq!((cache.get(&key(1), Micros(0)), cache.len()), (None, 0));
}

#[test]
fn a_clock_that_runs_back_keeps_the_order_of_expiry() {
    let mut cache = cache(8, 10);
    cache.insert(key(1), InstanceId(1), Micros(9_000));
    cache.insert(key(2), InstanceId(2), Micros(0));
    assert_eq!(cache.active(Micros(18_999)), 2);
    assert_eq!(cache.active(Micros(19_000)), 0);
}

#[derive(Clone, Debug)]
enum Op {
    Get(u64),
    Insert(u64, u32),
    Wait(u64),
    Expire(usize),
    Flush,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0u64..20).prop_map(Op::Get),
        6 => (0u64..20, 0u32..5).prop_map(|(k, i)| Op::Insert(k, i)),
        4 => (0u64..4_000).prop_map(Op::Wait),
        1 => (0usize..4).prop_map(Op::Expire),
        1 => Just(Op::Flush),
    ]
}

/// Key, instance and time of insertion, least recently used first.
#[derive(Default)]
struct Model(Vec<(RouteKey, InstanceId, u64)>);

const TTL_US: u64 = 10_000;
const ENTRIES_MAX: usize = 7;

impl Model {
    fn get(&mut self, key: RouteKey, now: u64) -> Option<InstanceId> {
        let at = self.0.iter().position(|e| e.0 == key)?;
        let entry = self.0.remove(at);
        if now >= entry.2 + TTL_US {
            return None;
        }
        self.0.push(entry);
        Some(entry.1)
    }

    fn insert(&mut self, key: RouteKey, instance: InstanceId, now: u64) {
        self.0.retain(|e| e.0 != key);
        if self.0.len() == ENTRIES_MAX {
            self.0.remove(0);
        }
        self.0.push((key, instance, now));
    }

    fn active(&self, now: u64) -> usize {
        self.0.iter().filter(|e| now < e.2 + TTL_US).count()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn behaves_as_a_list_in_order_of_use(ops in prop::collection::vec(op(), 1..300)) {
        let mut cache = cache(ENTRIES_MAX, TTL_US / 1000);
        let mut model = Model::default();
        let mut now = 0;
        for op in ops {
            match op {
                Op::Get(k) => {
                    prop_assert_eq!(cache.get(&key(k), Micros(now)), model.get(key(k), now));
                }
                Op::Insert(k, i) => {
                    cache.insert(key(k), InstanceId(i), Micros(now));
                    model.insert(key(k), InstanceId(i), now);
                }
                Op::Wait(us) => now += us,
                Op::Expire(budget) => {
                    let gone = (cache.len() - cache.active(Micros(now))).min(budget);
                    let len = cache.len();
                    cache.expire(Micros(now), budget);
                    prop_assert_eq!(cache.len(), len - gone);
                    model.0.retain(|e| now < e.2 + TTL_US);
                    // Entries that the budget left go at their next use: drop them in both.
                    cache.expire(Micros(now), ENTRIES_MAX);
                }
                Op::Flush => {
                    cache.flush();
                    model.0.clear();
                }
            }
            prop_assert_eq!(cache.len(), model.0.len());
            prop_assert_eq!(cache.active(Micros(now)), model.active(now));
            prop_assert!(cache.nodes.len() <= ENTRIES_MAX);
        }
    }
}
