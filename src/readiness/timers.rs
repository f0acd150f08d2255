//! Timers: one place that knows the earliest time at which somebody must act although nothing has
//! come.
//!
//! Plain data: the owner waits until [`Timers::earliest`], and then takes the timers that are due
//! by [`Timers::pop_due`]. A timer has a number, as small as there are timers.

use crate::message::Micros;

/// Timers that are set, each with one time: a binary heap in which each timer knows its place, so
/// that a timer that is set again moves and leaves nothing behind.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    /// Parents are at or before their children, which entry `n` has at `2n + 1` and `2n + 2`.
    heap: Vec<(Micros, usize)>,
    /// Place of each timer in the heap, by its number.
    places: Vec<Option<usize>>,
}

impl Timers {
    /// Sets a timer to a time; a time that was set before is forgotten.
    pub(crate) fn set(&mut self, timer: usize, at: Micros) {
        match self.place(timer) {
            Some(place) => {
                self.heap[place].0 = at;
                self.restore(place);
            }
            None => {
                if self.places.len() <= timer {
                    self.places.resize(timer + 1, None);
                }
                self.heap.push((at, timer));
                self.restore(self.heap.len() - 1);
            }
        }
    }

    /// Clears a timer, if it is set.
    pub(crate) fn clear(&mut self, timer: usize) {
        let Some(place) = self.place(timer) else { return };
        self.heap.swap_remove(place);
        self.places[timer] = None;
        if place < self.heap.len() {
            self.restore(place);
        }
    }

    /// The earliest time of all timers.
    pub(crate) fn earliest(&self) -> Option<Micros> {
        self.heap.first().map(|&(at, _)| at)
    }

    /// Takes the earliest timer, if it is due; of two at the same time, the one with the smaller
    /// number.
    pub(crate) fn pop_due(&mut self, now: Micros) -> Option<usize> {
        let &(_, timer) = self.heap.first().filter(|(at, _)| *at <= now)?;
        self.clear(timer);
        Some(timer)
    }

    fn place(&self, timer: usize) -> Option<usize> {
        self.places.get(timer).copied().flatten()
    }

    /// Moves the entry at `place`, whose time has changed, to where it belongs.
    fn restore(&mut self, place: usize) {
        let mut place = place;
        while place > 0 && self.heap[place] < self.heap[(place - 1) / 2] {
            let parent = (place - 1) / 2;
            self.swap(place, parent);
            place = parent;
        }
        loop {
            let children = [2 * place + 1, 2 * place + 2];
            let least = children.into_iter().filter(|&c| c < self.heap.len());
            match least.min_by_key(|&child| self.heap[child]) {
                Some(child) if self.heap[child] < self.heap[place] => {
                    self.swap(place, child);
                    place = child;
                }
                Some(_) | None => break,
            }
        }
        self.places[self.heap[place].1] = Some(place);
    }

    /// Swaps two entries; the place of the second one is up to date after it.
    fn swap(&mut self, moving: usize, other: usize) {
        self.heap.swap(moving, other);
        self.places[self.heap[moving].1] = Some(moving);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug)]
    enum Action {
        Set(usize, Micros),
        Clear(usize),
        Pop(Micros),
    }

    fn action() -> impl Strategy<Value = Action> {
        // Few times, so that many are equal.
        let at = || (0..20_u64).prop_map(Micros);
        let timer = || 0..14_usize;
        prop_oneof![
            4 => (timer(), at()).prop_map(|(timer, at)| Action::Set(timer, at)),
            1 => timer().prop_map(Action::Clear),
            2 => at().prop_map(Action::Pop),
        ]
    }

    proptest! {
        #[test]
        fn the_heap_does_what_a_map_does(actions in prop::collection::vec(action(), 1..200)) {
            let mut timers = Timers::default();
            let mut naive: BTreeMap<usize, Micros> = BTreeMap::new();
            for action in actions {
                match action {
                    Action::Set(timer, at) => {
                        timers.set(timer, at);
                        naive.insert(timer, at);
                    }
                    Action::Clear(timer) => {
                        timers.clear(timer);
                        naive.remove(&timer);
                    }
                    Action::Pop(now) => {
                        let first = naive.iter().map(|(&timer, &at)| (at, timer)).min();
                        let due = first.filter(|(at, _)| *at <= now).map(|(_, timer)| timer);
                        prop_assert_eq!(timers.pop_due(now), due);
                        due.map(|timer| naive.remove(&timer));
                    }
                }
                prop_assert_eq!(timers.earliest(), naive.values().min().copied());
                prop_assert_eq!(timers.heap.len(), naive.len());
                for (place, entry) in timers.heap.iter().enumerate() {
                    prop_assert_eq!(timers.place(entry.1), Some(place));
                    prop_assert!(place == 0 || timers.heap[(place - 1) / 2] <= *entry);
                }
            }
        }
    }

    #[test]
    fn a_timer_that_is_set_again_leaves_nothing_behind() {
        let mut timers = Timers::default();
        for at in 0..1_000 {
            timers.set(7, Micros(at));
        }
        assert_eq!(timers.pop_due(Micros(999)), Some(7));
        assert_eq!((timers.pop_due(Micros(u64::MAX)), timers.earliest()), (None, None));
    }
}
