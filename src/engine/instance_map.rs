//! A table by instance id, as large as what is in it: ids are never used again, and a gateway whose
//! instances come and go for months must not walk, or keep, a place for each that ever was.
//!
//! Open addressing with linear probing, at most half full. A look-up costs a multiplication and one
//! comparison more than an index would: ids that follow each other are spread evenly by Fibonacci
//! hashing, so that mostly the first place is the right one. Removals are rare and rebuild the
//! table, so there are no tombstones.

use crate::ids::InstanceId;

/// Things by instance id.
#[derive(Debug)]
pub struct InstanceMap<T> {
    /// A power of two of places.
    places: Vec<Option<(InstanceId, T)>>,
    len: usize,
}

/// Places at least: 2^3.
const BITS_MIN: u32 = 3;

impl<T> Default for InstanceMap<T> {
    fn default() -> Self {
        Self { places: empty(BITS_MIN), len: 0 }
    }
}

fn empty<T>(bits: u32) -> Vec<Option<(InstanceId, T)>> {
    (0..1usize << bits).map(|_| None).collect()
}

impl<T> InstanceMap<T> {
    /// The place of `id`, or the free one where it would be.
    fn place(&self, id: InstanceId) -> usize {
        let mask = self.places.len() - 1;
        // 2^32 divided by the golden ratio; the high bits of the product are the mixed ones.
        let hash = id.0.wrapping_mul(0x9e37_79b9);
        let mut at = (hash >> (32 - self.places.len().trailing_zeros())) as usize;
        // Ends: half of the places are free.
        while self.places[at].as_ref().is_some_and(|(other, _)| *other != id) {
            at = (at + 1) & mask;
        }
        at
    }

    /// What is there for `id`.
    pub fn get(&self, id: InstanceId) -> Option<&T> {
        self.places[self.place(id)].as_ref().map(|(_, thing)| thing)
    }

    /// See [`Self::get`].
    pub fn get_mut(&mut self, id: InstanceId) -> Option<&mut T> {
        let at = self.place(id);
        self.places[at].as_mut().map(|(_, thing)| thing)
    }

    /// What is there for `id`; if nothing is, what `make` gives.
    pub fn get_or_insert_with(&mut self, id: InstanceId, make: impl FnOnce() -> T) -> &mut T {
        let mut at = self.place(id);
        if self.places[at].is_none() {
            self.len += 1;
            if self.len * 2 > self.places.len() {
                self.rebuild();
                at = self.place(id);
            }
        }
        &mut self.places[at].get_or_insert_with(|| (id, make())).1
    }

    /// Removes those that `keep` says no to.
    pub fn retain(&mut self, mut keep: impl FnMut(InstanceId, &mut T) -> bool) {
        let before = self.len;
        for place in &mut self.places {
            if place.as_mut().is_some_and(|(id, thing)| !keep(*id, thing)) {
                *place = None;
                self.len -= 1;
            }
        }
        if self.len < before {
            self.rebuild();
        }
    }

    /// Puts all into a table that has room for `len`.
    fn rebuild(&mut self) {
        let bits = (self.len * 2).next_power_of_two().trailing_zeros().max(BITS_MIN);
        for entry in std::mem::replace(&mut self.places, empty(bits)).into_iter().flatten() {
            let at = self.place(entry.0);
            self.places[at] = Some(entry);
        }
    }

    /// All, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (InstanceId, &T)> {
        self.places.iter().flatten().map(|(id, thing)| (*id, thing))
    }

    /// See [`Self::iter`].
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (InstanceId, &mut T)> {
        self.places.iter_mut().flatten().map(|(id, thing)| (*id, thing))
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
                // Far apart, too.
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
        assert_eq!(table.places.len(), 1 << BITS_MIN);
        assert!(table.get(InstanceId(0)).is_some() && table.get(InstanceId(7)).is_none());
    }

    #[test]
    fn ids_that_follow_each_other_do_not_meet() {
        let mut table = InstanceMap::default();
        // Two runs, as after a restart of all instances of a service.
        for id in (0..100).chain(10_240..10_340) {
            table.get_or_insert_with(InstanceId(id), || ());
        }
        let taken = table.places.iter().map(Option::is_some);
        let runs = taken.collect::<Vec<_>>();
        let longest = runs.split(|taken| !taken).map(<[bool]>::len).max();
        assert!(longest.is_some_and(|longest| longest <= 16), "{longest:?} in a row");
    }
}
