//! The groups that a session is in.

use crate::ids::GroupKey;

/// Most groups of a session: one bit each says where there is something to read.
pub const GROUPS_MAX: usize = 64;

/// A session's place in a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Membership {
    /// The group.
    pub group: GroupKey,
    /// Index among its members.
    pub index: u32,
}

/// The memberships of a session, each in a slot of its own.
#[derive(Debug, Default)]
pub struct Memberships {
    slots: Vec<Option<Membership>>,
    /// Slots of groups of which there is something to read.
    behind: u64,
}

impl Memberships {
    /// Number of groups.
    pub fn len(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Whether it is in no group.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The slot of a group.
    pub fn slot_of(&self, group: GroupKey) -> Option<u8> {
        let found = self.slots.iter().position(|m| m.is_some_and(|m| m.group == group))?;
        Some(found as u8)
    }

    /// The slot that the next membership gets, if there is one.
    pub fn free_slot(&self) -> Option<u8> {
        let free = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        (free < GROUPS_MAX).then_some(free as u8)
    }

    /// Puts a membership into a free slot.
    pub fn put(&mut self, slot: u8, membership: Membership) {
        let slot = usize::from(slot);
        if self.slots.len() <= slot {
            self.slots.resize(slot + 1, None);
        }
        self.slots[slot] = Some(membership);
    }

    /// The membership in a slot.
    #[inline]
    pub fn get(&self, slot: u8) -> Option<Membership> {
        *self.slots.get(usize::from(slot))?
    }

    /// Takes note that the group in a slot knows it by another index.
    pub fn set_index(&mut self, slot: u8, index: u32) {
        if let Some(membership) = self.slots[usize::from(slot)].as_mut() {
            membership.index = index;
        }
    }

    /// Takes the membership in a slot out.
    pub fn take(&mut self, slot: u8) -> Option<Membership> {
        self.set_read(slot);
        self.slots.get_mut(usize::from(slot))?.take()
    }

    /// The memberships with their slots.
    pub fn iter(&self) -> impl Iterator<Item = (u8, Membership)> {
        (0u8..).zip(&self.slots).filter_map(|(slot, membership)| Some((slot, (*membership)?)))
    }

    /// Takes note that there is something to read in a slot.
    #[inline]
    pub fn set_behind(&mut self, slot: u8) {
        self.behind |= 1 << slot;
    }

    /// Takes note that everything in a slot was read.
    #[inline]
    pub fn set_read(&mut self, slot: u8) {
        self.behind &= !(1 << slot);
    }

    /// Whether there is nothing to read.
    #[inline]
    pub fn is_read(&self) -> bool {
        self.behind == 0
    }

    /// The slot with something to read, if it is the only one.
    #[inline]
    pub fn only_behind(&self) -> Option<u8> {
        self.behind.is_power_of_two().then(|| self.behind.trailing_zeros() as u8)
    }

    /// The first slot from `from` on with something to read.
    #[inline]
    pub fn next_behind(&self, from: u8) -> Option<u8> {
        let left = self.behind.checked_shr(u32::from(from)).unwrap_or(0);
        (left != 0).then(|| from + left.trailing_zeros() as u8)
    }

    /// Bytes of memory beside itself.
    pub fn memory_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Option<Membership>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_stable_and_free_again_when_its_membership_ends() {
        let group = |n| GroupKey::new(1, n);
        let mut all = Memberships::default();
        for n in 0..GROUPS_MAX as u32 {
            let slot = all.free_slot().expect("room");
            all.put(slot, Membership { group: group(n), index: n });
        }
        assert_eq!((all.free_slot(), all.len()), (None, GROUPS_MAX));
        all.set_behind(63);
        all.set_behind(7);
        assert_eq!(
            (all.next_behind(0), all.next_behind(8), all.only_behind()),
            (Some(7), Some(63), None)
        );
        assert_eq!(all.take(7).map(|m| m.group), Some(group(7)));
        assert_eq!((all.free_slot(), all.only_behind()), (Some(7), Some(63)));
        assert_eq!((all.slot_of(group(8)), all.slot_of(group(7))), (Some(8), None));
        all.set_read(63);
        assert!(all.is_read() && all.next_behind(64).is_none());
    }
}
