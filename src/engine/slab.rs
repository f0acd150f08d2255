//! A slab whose keys know the generation of their slot: a stale key finds nothing.

use std::marker::PhantomData;
use std::mem::size_of;

use crate::ids::SLOT_BITS;

/// Low bits of a raw key: the slot.
const SLOT_MASK: u64 = (1 << SLOT_BITS) - 1;
/// Generations are what is left above the slot: 40 bits.
const GENERATION_MASK: u64 = u64::MAX >> SLOT_BITS;
/// End of the free list. So the last slot number is not used for a slot.
const NO_SLOT: u64 = SLOT_MASK;
/// Entries a store can hold: 2^24 - 1.
pub const SLAB_ENTRIES_CAP: usize = NO_SLOT as usize;
/// Address space a store reserves at once, at most. Pages cost memory only when they are used, and
/// a store that never grows never copies: doubling 32 MiB would stop a shard for some 10 ms.
const RESERVE_BYTES_MAX: usize = 64 << 20;

/// Values of `T` by keys of type `K` (one of the slot keys of [`crate::ids`]).
///
/// The slot that was emptied last is filled first, because it is still in the cache. The slots
/// stay at their high-water mark, which is bounded by `max`; what values kept in vacant slots hold
/// on the heap is given back by [`Slab::trim`].
#[derive(Debug)]
pub struct Slab<K, T> {
    slots: Vec<Slot<T>>,
    /// First vacant slot, or [`NO_SLOT`].
    free: u64,
    len: usize,
    max: usize,
    /// Where [`Slab::trim`] goes on.
    trim_at: usize,
    key: PhantomData<fn() -> K>,
}

#[derive(Debug)]
struct Slot<T> {
    /// Occupied: its raw key. Vacant: the generation of its last key and, in place of its own
    /// number, the next vacant slot or [`NO_SLOT`]. A slot is never its own successor, so a key
    /// equals this if and only if it is the live one: one comparison is the whole check.
    raw: u64,
    /// Occupied: always there. Vacant: there if it was kept for reuse.
    value: Option<T>,
    /// Whether it was emptied since [`Slab::trim`] looked at it last.
    fresh: bool,
}

impl<K: Copy + From<u64> + Into<u64>, T> Slab<K, T> {
    /// Bytes of a slot, without what its value holds on the heap.
    pub const SLOT_BYTES: usize = size_of::<Slot<T>>();

    /// An empty store for at most `max` values, [`SLAB_ENTRIES_CAP`] if that is less.
    pub fn with_capacity_max(max: usize) -> Self {
        let max = max.min(SLAB_ENTRIES_CAP);
        let reserve = max.min(RESERVE_BYTES_MAX / size_of::<Slot<T>>());
        Self {
            slots: Vec::with_capacity(reserve),
            free: NO_SLOT,
            len: 0,
            max,
            trim_at: 0,
            key: PhantomData,
        }
    }

    /// Values in it.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no value.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it holds as many values as it may.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.len >= self.max
    }

    /// Slots that were ever used: indexes below it are good for [`Slab::slot_at`].
    #[inline]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Puts `value` in. The caller has looked at [`Slab::is_full`].
    #[inline]
    pub fn insert(&mut self, value: T) -> K {
        let (raw, slot) = self.occupy();
        slot.value = Some(value);
        K::from(raw)
    }

    /// Puts a value in that `fill` makes out of the one kept in the slot, or out of the default
    /// one. The caller has looked at [`Slab::is_full`].
    #[inline]
    pub fn insert_with(&mut self, fill: impl FnOnce(&mut T)) -> K
    where
        T: Default,
    {
        let (raw, slot) = self.occupy();
        fill(slot.value.get_or_insert_default());
        K::from(raw)
    }

    /// The value of `key`, if it is still there.
    #[inline]
    pub fn get(&self, key: K) -> Option<&T> {
        let raw = key.into();
        let slot = self.slots.get((raw & SLOT_MASK) as usize)?;
        if slot.raw == raw { slot.value.as_ref() } else { None }
    }

    /// The value of `key`, if it is still there.
    #[inline]
    pub fn get_mut(&mut self, key: K) -> Option<&mut T> {
        let raw = key.into();
        let slot = self.slots.get_mut((raw & SLOT_MASK) as usize)?;
        if slot.raw == raw { slot.value.as_mut() } else { None }
    }

    /// Takes the value of `key` out, if it is still there.
    #[inline]
    pub fn remove(&mut self, key: K) -> Option<T> {
        self.vacate(key.into())?.value.take()
    }

    /// Ends `key` and keeps its value in the slot for [`Slab::insert_with`]. False if the key had
    /// ended before.
    #[inline]
    pub fn release(&mut self, key: K) -> bool {
        self.vacate(key.into()).is_some()
    }

    /// Key and value in the slot `index`, if it is occupied: for a caller that looks at a slice of
    /// the store each tick.
    #[inline]
    pub fn slot_at(&self, index: usize) -> Option<(K, &T)> {
        let slot = self.slots.get(index)?;
        let value = slot.value.as_ref().filter(|_| slot.raw & SLOT_MASK == index as u64)?;
        Some((K::from(slot.raw), value))
    }

    /// All values with their keys, by slot.
    pub fn iter(&self) -> impl Iterator<Item = (K, &T)> {
        (0..self.slots.len()).filter_map(|index| self.slot_at(index))
    }

    /// All values with their keys, by slot.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (K, &mut T)> {
        self.slots.iter_mut().enumerate().filter_map(|(index, slot)| {
            let live = slot.raw & SLOT_MASK == index as u64;
            let value = slot.value.as_mut().filter(|_| live)?;
            Some((K::from(slot.raw), value))
        })
    }

    /// Looks at the next `budget` slots and drops the values kept in those that were vacant and
    /// unused since it looked at them last. Called each tick, it gives a burst's memory back
    /// within two rounds and leaves alone what the steady state reuses.
    pub fn trim(&mut self, budget: usize) {
        for _ in 0..budget.min(self.slots.len()) {
            if self.trim_at >= self.slots.len() {
                self.trim_at = 0;
            }
            let index = self.trim_at;
            self.trim_at += 1;
            let slot = &mut self.slots[index];
            if slot.raw & SLOT_MASK != index as u64 {
                if !slot.fresh {
                    slot.value = None;
                }
                slot.fresh = false;
            }
        }
    }

    /// Takes a vacant slot, or a new one, into its next generation.
    #[inline]
    fn occupy(&mut self) -> (u64, &mut Slot<T>) {
        let index = if self.free == NO_SLOT { self.grow() } else { self.free };
        let slot = &mut self.slots[index as usize];
        self.free = slot.raw & SLOT_MASK;
        // 0 is no generation: it would make the raw key 0, which means "none".
        let generation = match ((slot.raw >> SLOT_BITS) + 1) & GENERATION_MASK {
            0 => 1,
            generation => generation,
        };
        slot.raw = generation << SLOT_BITS | index;
        self.len += 1;
        (slot.raw, slot)
    }

    /// A new vacant slot at the end, before its first generation.
    #[cold]
    fn grow(&mut self) -> u64 {
        assert!(self.slots.len() < self.max, "the caller asks is_full before it inserts");
        self.slots.push(Slot { raw: NO_SLOT, value: None, fresh: false });
        self.slots.len() as u64 - 1
    }

    /// Ends the key `raw`, if it is live, and gives its slot, which still has the value.
    #[inline]
    fn vacate(&mut self, raw: u64) -> Option<&mut Slot<T>> {
        let index = raw & SLOT_MASK;
        let slot = self.slots.get_mut(index as usize).filter(|slot| slot.raw == raw)?;
        slot.raw = raw & !SLOT_MASK | self.free;
        slot.fresh = true;
        self.free = index;
        self.len -= 1;
        Some(slot)
    }
}

#[cfg(test)]
mod tests;
