//! A slab whose keys carry the generation of their slot: a stale key finds nothing.

use std::marker::PhantomData;
use std::mem::size_of;

use crate::ids::SLOT_BITS;

/// Mask of the slot in a raw key: the low bits.
const SLOT_MASK: u64 = (1 << SLOT_BITS) - 1;
/// Mask of a generation, which has the bits above the slot: 40.
const GENERATION_MASK: u64 = u64::MAX >> SLOT_BITS;
/// Slot number that ends the free list. It is not used for a slot.
const NO_SLOT: u64 = SLOT_MASK;
/// Entries that a slab can hold: 2^24 - 1.
pub(crate) const SLAB_ENTRIES_CAP: usize = NO_SLOT as usize;
/// Address space that a slab reserves at once, at most. Pages cost memory only when they are used,
/// and a slab that never grows never copies: doubling 32 MiB would stop a shard for some 10 ms.
pub(crate) const RESERVE_BYTES_MAX: usize = 64 << 20;

/// Values of `T` by keys of type `K` (one of the slot keys of [`crate::ids`]).
///
/// The slot that was emptied last is filled first, because it is still in the cache. The number of
/// slots stays at its high-water mark, which is bounded by `max`; `trim` gives back the
/// heap memory of values that are kept in vacant slots.
#[derive(Debug)]
pub struct Slab<K, T> {
    slots: Vec<Slot<T>>,
    /// The first vacant slot, or [`NO_SLOT`].
    free: u64,
    len: usize,
    max: usize,
    /// Slot at which [`Slab::trim`] goes on.
    trim_at: usize,
    key: PhantomData<fn() -> K>,
}

#[derive(Debug)]
struct Slot<T> {
    /// Raw key of an occupied slot. Of a vacant slot, the generation of its last key and, instead
    /// of its own number, the next vacant slot or [`NO_SLOT`]. A slot is never its own successor,
    /// so a key equals this if and only if it is the live one: one comparison is the whole check.
    raw: u64,
    /// Value of an occupied slot; in a vacant one, the value that is kept for reuse, if there is
    /// one.
    value: Option<T>,
    /// Whether the slot was emptied since [`Slab::trim`] last came to it.
    fresh: bool,
}

impl<K: Copy + From<u64> + Into<u64>, T> Slab<K, T> {
    /// Bytes of a slot, without the heap memory of its value.
    pub(crate) const SLOT_BYTES: usize = size_of::<Slot<T>>();

    /// An empty slab for at most `max` values, `SLAB_ENTRIES_CAP` if that is less.
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

    /// An empty slab that reserves nothing and may grow: for values of which mostly there are none.
    pub(crate) fn growing() -> Self {
        Self {
            slots: Vec::new(),
            free: NO_SLOT,
            len: 0,
            max: SLAB_ENTRIES_CAP,
            trim_at: 0,
            key: PhantomData,
        }
    }

    /// Number of values.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the slab has no value.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the slab has as many values as it may.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.len >= self.max
    }

    /// Number of slots that were ever used: indexes below it are good for [`Slab::slot_at`].
    #[inline]
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Inserts `value`. The caller has looked at [`Slab::is_full`].
    #[inline]
    pub(crate) fn insert(&mut self, value: T) -> K {
        let (raw, slot) = self.occupy();
        slot.value = Some(value);
        K::from(raw)
    }

    /// Inserts a value that `fill` makes out of the one kept in the slot, or out of the default
    /// one. The caller has looked at `is_full`.
    #[inline]
    pub fn insert_with(&mut self, fill: impl FnOnce(&mut T)) -> K
    where
        T: Default,
    {
        let (raw, slot) = self.occupy();
        fill(slot.value.get_or_insert_default());
        K::from(raw)
    }

    /// The value of `key`; `None` if the key has ended.
    #[inline]
    pub fn get(&self, key: K) -> Option<&T> {
        let raw = key.into();
        let slot = self.slots.get((raw & SLOT_MASK) as usize)?;
        if slot.raw == raw { slot.value.as_ref() } else { None }
    }

    /// The value of `key`, to be changed; `None` if the key has ended.
    #[inline]
    pub fn get_mut(&mut self, key: K) -> Option<&mut T> {
        let raw = key.into();
        let slot = self.slots.get_mut((raw & SLOT_MASK) as usize)?;
        if slot.raw == raw { slot.value.as_mut() } else { None }
    }

    /// The values of two keys, to be changed; `None` of one that has ended. The keys are of two
    /// slots.
    pub(crate) fn get_two_mut(&mut self, keys: [K; 2]) -> [Option<&mut T>; 2] {
        let raw = keys.map(Into::into);
        let indexes = raw.map(|raw| (raw & SLOT_MASK) as usize);
        let Ok(slots) = self.slots.get_disjoint_mut(indexes) else { return [None, None] };
        let [a, b] = slots;
        [(a, raw[0]), (b, raw[1])]
            .map(|(slot, raw)| if slot.raw == raw { slot.value.as_mut() } else { None })
    }

    /// Removes and returns the value of `key`; `None` if the key has ended before.
    #[inline]
    pub(crate) fn remove(&mut self, key: K) -> Option<T> {
        self.vacate(key.into())?.value.take()
    }

    /// Ends `key` and keeps its value in the slot for [`Slab::insert_with`]. False if the key has
    /// ended before.
    #[inline]
    pub fn release(&mut self, key: K) -> bool {
        self.vacate(key.into()).is_some()
    }

    /// Key and value of the slot `index`, if it is occupied: for a caller that visits a slice of
    /// the slab each tick.
    #[inline]
    pub(crate) fn slot_at(&self, index: usize) -> Option<(K, &T)> {
        let slot = self.slots.get(index)?;
        let value = slot.value.as_ref().filter(|_| slot.raw & SLOT_MASK == index as u64)?;
        Some((K::from(slot.raw), value))
    }

    /// The values with their keys, by slot.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (K, &T)> {
        (0..self.slots.len()).filter_map(|index| self.slot_at(index))
    }

    /// The values with their keys, by slot, to be changed.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (K, &mut T)> {
        self.slots.iter_mut().enumerate().filter_map(|(index, slot)| {
            let live = slot.raw & SLOT_MASK == index as u64;
            let value = slot.value.as_mut().filter(|_| live)?;
            Some((K::from(slot.raw), value))
        })
    }

    /// Visits the next `budget` slots and drops values kept in slots that have been vacant and
    /// unused since the last visit. Called each tick, it gives the memory of a burst back within
    /// two rounds, and keeps the values that the steady state reuses.
    pub(crate) fn trim(&mut self, budget: usize) {
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

    /// Occupies a vacant slot, or a new one, in its next generation.
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

    /// Appends a vacant slot, before its first generation.
    #[cold]
    fn grow(&mut self) -> u64 {
        assert!(self.slots.len() < self.max, "the caller asks is_full before it inserts");
        self.slots.push(Slot { raw: NO_SLOT, value: None, fresh: false });
        self.slots.len() as u64 - 1
    }

    /// Ends the key `raw`, if it is live. Returns its slot, which still has the value.
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
