//! A map by instance id, as large as its contents: ids are never used again, and a gateway whose
//! instances come and go for months must not walk, or keep, a slot for each that ever was.
//!
//! The map uses open addressing with linear probing, at most half full. A look-up costs a
//! multiplication and one comparison more than an index would: Fibonacci hashing spreads
//! consecutive ids evenly, so that mostly the first slot is the right one. Removals are rare and
//! rebuild the table, so there are no tombstones.

use crate::ids::InstanceId;

/// Values by instance id.
#[derive(Debug)]
pub(crate) struct InstanceMap<T> {
    /// Slots, a power of two of them.
    slots: Vec<Option<(InstanceId, T)>>,
    len: usize,
}

/// Logarithm of the smallest number of slots: 2^3.
const BITS_MIN: u32 = 3;

impl<T> Default for InstanceMap<T> {
    fn default() -> Self {
        Self { slots: empty(BITS_MIN), len: 0 }
    }
}

fn empty<T>(bits: u32) -> Vec<Option<(InstanceId, T)>> {
    (0..1usize << bits).map(|_| None).collect()
}

impl<T> InstanceMap<T> {
    /// Index of the slot of `id`, or of the free one where it would be.
    fn slot_of(&self, id: InstanceId) -> usize {
        let mask = self.slots.len() - 1;
        // 2^32 divided by the golden ratio; the high bits of the product are the mixed ones.
        let hash = id.0.wrapping_mul(0x9e37_79b9);
        let mut at = (hash >> (32 - self.slots.len().trailing_zeros())) as usize;
        // The loop ends, because half of the slots are free.
        while self.slots[at].as_ref().is_some_and(|(other, _)| *other != id) {
            at = (at + 1) & mask;
        }
        at
    }

    /// The value of `id`.
    pub fn get(&self, id: InstanceId) -> Option<&T> {
        self.slots[self.slot_of(id)].as_ref().map(|(_, value)| value)
    }

    /// The value of `id`, to be changed.
    pub fn get_mut(&mut self, id: InstanceId) -> Option<&mut T> {
        let at = self.slot_of(id);
        self.slots[at].as_mut().map(|(_, value)| value)
    }

    /// The value of `id`, which `make` makes if there is none.
    pub fn get_or_insert_with(&mut self, id: InstanceId, make: impl FnOnce() -> T) -> &mut T {
        let mut at = self.slot_of(id);
        if self.slots[at].is_none() {
            self.len += 1;
            if self.len * 2 > self.slots.len() {
                self.rebuild();
                at = self.slot_of(id);
            }
        }
        &mut self.slots[at].get_or_insert_with(|| (id, make())).1
    }

    /// Removes the values for which `keep` returns false.
    pub fn retain(&mut self, mut keep: impl FnMut(InstanceId, &mut T) -> bool) {
        let before = self.len;
        for slot in &mut self.slots {
            if slot.as_mut().is_some_and(|(id, value)| !keep(*id, value)) {
                *slot = None;
                self.len -= 1;
            }
        }
        if self.len < before {
            self.rebuild();
        }
    }

    /// Moves all values into a table that has room for `len`.
    fn rebuild(&mut self) {
        let bits = (self.len * 2).next_power_of_two().trailing_zeros().max(BITS_MIN);
        for entry in std::mem::replace(&mut self.slots, empty(bits)).into_iter().flatten() {
            let at = self.slot_of(entry.0);
            self.slots[at] = Some(entry);
        }
    }

    /// The values with their ids, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (InstanceId, &T)> {
        self.slots.iter().flatten().map(|(id, value)| (*id, value))
    }

    /// The values as [`Self::iter`], to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (InstanceId, &mut T)> {
        self.slots.iter_mut().flatten().map(|(id, value)| (*id, value))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_a_map_holds(steps in prop::collection::vec((0..5u8, 0..60u32), 1..300)) {
            let (mut table, mut model) = (InstanceMap::default(), BTreeMap::new());
            for (n, (what, number)) in steps.into_iter().enumerate() {
                // The cube makes ids that are far apart, too.
                let id = InstanceId(number.wrapping_mul(number).wrapping_mul(number));
                if what > 0 {
                    let made = *table.get_or_insert_with(id, || n);
                    prop_assert_eq!(made, *model.entry(id).or_insert(n));
                } else {
                    table.retain(|id, _| id.0 % 7 != number % 7);
                    model.retain(|id, _| id.0 % 7 != number % 7);
                }
                prop_assert_eq!(table.get(id), model.get(&id));
                prop_assert_eq!(table.iter_mut().count(), model.len());
                let held: BTreeMap<_, _> = table.iter().map(|(id, v)| (id, *v)).collect();
                prop_assert_eq!(&held, &model);
            }
        }
    }

    #[test]
    fn a_million_that_came_and_went_leave_nothing_behind() {
        let mut table = InstanceMap::default();
        table.get_or_insert_with(InstanceId(0), || ());
        for first in (1..1_000_000).step_by(50) {
            (first..first + 50).for_each(|id| {
                table.get_or_insert_with(InstanceId(id), || ());
            });
            table.retain(|id, ()| id.0 == 0);
        }
        assert_eq!(table.slots.len(), 1 << BITS_MIN);
        assert!(table.get(InstanceId(0)).is_some() && table.get(InstanceId(7)).is_none());
    }

    #[test]
    fn ids_that_follow_each_other_do_not_meet() {
        let mut table = InstanceMap::default();
        // Two runs of ids, as after a restart of all instances of a service.
        for id in (0..100).chain(10_240..10_340) {
            table.get_or_insert_with(InstanceId(id), || ());
        }
        let taken = table.slots.iter().map(Option::is_some);
        let runs = taken.collect::<Vec<_>>();
        let longest = runs.split(|taken| !taken).map(<[bool]>::len).max();
        assert!(longest.is_some_and(|longest| longest <= 16), "{longest:?} in a row");
    }
}
