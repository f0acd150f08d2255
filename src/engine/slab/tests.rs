//! Tests of the slab: stale keys find nothing, reused values keep their memory, and the memory of a
//! burst is given back.

use super::*;
use crate::ids::MsgKey;
use proptest::prelude::*;
use std::collections::BTreeMap;

type Slots = Slab<MsgKey, Vec<u8>>;

#[test]
fn an_old_key_does_not_reach_the_new_tenant_of_its_slot() {
    let mut slab = Slots::with_capacity_max(1);
    let old = slab.insert(vec![1]);
    assert!(slab.is_full());
    assert_eq!(slab.remove(old), Some(vec![1]));
    let new = slab.insert(vec![2]);
    assert_eq!((old.slot(), old.generation()), (0, 1));
    assert_eq!((new.slot(), new.generation()), (0, 2));
    assert_eq!(slab.get(old), None);
    assert_eq!((slab.remove(old), slab.release(old)), (None, false));
    assert_eq!(slab.get(new), Some(&vec![2]));
}

#[test]
fn the_slot_emptied_last_is_filled_first() {
    let mut slab = Slots::with_capacity_max(8);
    let keys: Vec<_> = (0..4).map(|n| slab.insert(vec![n])).collect();
    slab.remove(keys[2]);
    slab.remove(keys[0]);
    assert_eq!(slab.insert(vec![]).slot(), 0);
    assert_eq!(slab.insert(vec![]).slot(), 2);
    assert_eq!(slab.insert(vec![]).slot(), 4);
    assert_eq!(slab.slots(), 5);
}

#[test]
fn a_released_value_is_refilled_in_the_same_memory() {
    let mut slab = Slots::with_capacity_max(8);
    let key = slab.insert_with(|v| v.extend([7; 1000]));
    let memory = slab.get(key).map(|v| v.as_ptr());
    assert!(slab.release(key));
    assert_eq!((slab.get(key), slab.len()), (None, 0));
    let key = slab.insert_with(|v| {
        assert_eq!(v.len(), 1000, "the old value is handed out as it was");
        v.clear();
        v.push(1);
    });
    assert_eq!(slab.get(key), Some(&vec![1]));
    assert_eq!(slab.get(key).map(|v| v.as_ptr()), memory);
}

#[test]
fn trim_gives_a_bursts_memory_back_and_leaves_what_is_reused() {
    let mut slab = Slots::with_capacity_max(100);
    let keys: Vec<_> = (0..100).map(|_| slab.insert_with(|v| v.push(1))).collect();
    for &key in &keys {
        assert!(slab.release(key));
    }
    let kept = |slab: &Slots| slab.slots.iter().filter(|s| s.value.is_some()).count();
    assert_eq!(kept(&slab), 100);
    for _ in 0..20 {
        // One message at a time is the steady state after the burst.
        let key = slab.insert_with(|v| assert_eq!(*v, [1]));
        assert!(slab.release(key));
        slab.trim(10);
    }
    assert_eq!(kept(&slab), 1);
    slab.trim(1000);
    slab.trim(1000);
    assert_eq!((kept(&slab), slab.slots()), (0, 100));
}

#[test]
fn trim_does_not_touch_live_values() {
    let mut slab = Slots::with_capacity_max(4);
    let key = slab.insert(vec![3]);
    for _ in 0..4 {
        slab.trim(4);
    }
    assert_eq!(slab.get(key), Some(&vec![3]));
}

#[test]
fn the_generation_after_the_last_is_the_first() {
    let mut slab = Slots::with_capacity_max(1);
    let key = slab.insert(vec![]);
    slab.remove(key);
    slab.slots[0].raw |= !SLOT_MASK;
    let key = slab.insert(vec![9]);
    assert_eq!(key.generation(), 1);
    assert_eq!(slab.get(key), Some(&vec![9]));
}

#[derive(Clone, Debug)]
enum Op {
    Insert(u8),
    InsertWith(u8),
    Remove(prop::sample::Index),
    Release(prop::sample::Index),
    Change(prop::sample::Index, u8),
    Trim(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        3 => any::<u8>().prop_map(Op::Insert),
        3 => any::<u8>().prop_map(Op::InsertWith),
        2 => index().prop_map(Op::Remove),
        2 => index().prop_map(Op::Release),
        1 => (index(), any::<u8>()).prop_map(|(i, v)| Op::Change(i, v)),
        1 => (0usize..20).prop_map(Op::Trim),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn behaves_as_a_map_of_keys_that_are_never_reused(
        ops in prop::collection::vec(op(), 1..200),
        forged in prop::collection::vec(any::<u64>(), 20),
    ) {
        let mut slab = Slots::with_capacity_max(12);
        let mut model = BTreeMap::new();
        let mut given: Vec<MsgKey> = Vec::new();
        for op in ops {
            match op {
                Op::Insert(_) | Op::InsertWith(_) if slab.is_full() => {
                    prop_assert_eq!(model.len(), 12);
                }
                Op::Insert(v) => {
                    let key = slab.insert(vec![v]);
                    prop_assert!(!given.contains(&key) && key.0 != 0);
                    model.insert(key, vec![v]);
                    given.push(key);
                }
                Op::InsertWith(v) => {
                    let key = slab.insert_with(|old| {
                        old.clear();
                        old.push(v);
                    });
                    prop_assert!(!given.contains(&key) && key.0 != 0);
                    model.insert(key, vec![v]);
                    given.push(key);
                }
                Op::Remove(i) if !given.is_empty() => {
                    let key = given[i.index(given.len())];
                    prop_assert_eq!(slab.remove(key), model.remove(&key));
                }
                Op::Release(i) if !given.is_empty() => {
                    let key = given[i.index(given.len())];
                    prop_assert_eq!(slab.release(key), model.remove(&key).is_some());
                }
                Op::Change(i, v) if !given.is_empty() => {
                    let key = given[i.index(given.len())];
                    if let Some(value) = slab.get_mut(key) {
                        value.push(v);
                        model.get_mut(&key).expect("live in both").push(v);
                    }
                }
                Op::Remove(_) | Op::Release(_) | Op::Change(..) => {}
                Op::Trim(budget) => slab.trim(budget),
            }
            for key in &given {
                prop_assert_eq!(slab.get(*key), model.get(key));
            }
            prop_assert_eq!(slab.len(), model.len());
            prop_assert!(slab.slots() <= 12);
        }
        for raw in forged.into_iter().chain(0..32) {
            let key = MsgKey(raw);
            prop_assert_eq!(slab.get(key), model.get(&key));
        }
        let mut by_slot: Vec<_> = model.iter().map(|(k, v)| (*k, v.clone())).collect();
        by_slot.sort_by_key(|(k, _)| k.slot());
        let swept: Vec<_> = (0..slab.slots() + 3).filter_map(|i| slab.slot_at(i)).collect();
        prop_assert!(swept.iter().map(|&(k, v)| (k, v.clone())).eq(by_slot.iter().cloned()));
        prop_assert!(slab.iter().map(|(k, v)| (k, v.clone())).eq(by_slot.iter().cloned()));
        prop_assert!(slab.iter_mut().map(|(k, v)| (k, v.clone())).eq(by_slot.iter().cloned()));
    }
}
