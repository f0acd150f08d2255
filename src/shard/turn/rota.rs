//! The old list of [`super::rounds`]: a round robin over owners, and within each over its
//! connections. So a thousand connections of one owner have together what one busy connection of
//! another has.

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::engine::owner::Holder;
use crate::ids::ConnId;
use crate::shard::turn::rounds::QUANTUM;

/// A connection on a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Member {
    pub id: ConnId,
    /// Work that it may still cost in this round; after a large message below 0.
    pub credit: i64,
}

/// The connections of an owner.
#[derive(Debug)]
struct Group {
    /// Work that they may still cost together in this round.
    credit: i64,
    members: VecDeque<Member>,
}

/// Owners in the order of their rounds, each with its connections in the order of theirs.
#[derive(Debug, Default)]
pub(super) struct Rota {
    owners: VecDeque<Holder>,
    groups: HashMap<Holder, Group>,
    /// Connections of all groups.
    count: usize,
}

impl Rota {
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Puts a connection behind the others of its owner, which has to pay for `used`.
    pub fn push(&mut self, owner: Holder, member: Member, used: i64) {
        let group = self.group(owner);
        group.credit -= used;
        group.members.push_back(member);
        self.count += 1;
    }

    /// Puts a connection in front of the others of its owner: the turn was over before its share
    /// was.
    pub fn push_front(&mut self, owner: Holder, member: Member, used: i64) {
        let group = self.group(owner);
        group.credit -= used;
        group.members.push_front(member);
        self.count += 1;
    }

    /// Has an owner pay for what a connection of it has cost that is on no list any more.
    pub fn charge(&mut self, owner: Holder, used: i64) {
        if let Some(group) = self.groups.get_mut(&owner) {
            group.credit -= used;
        }
    }

    fn group(&mut self, owner: Holder) -> &mut Group {
        let Self { owners, groups, .. } = self;
        groups.entry(owner).or_insert_with(|| {
            owners.push_back(owner);
            Group { credit: QUANTUM, members: VecDeque::new() }
        })
    }

    /// Takes out the next connection that is in credit, of the next owner that is. Those that are
    /// not get a quantum and wait for the next round: as many steps as quanta were used before, so
    /// they are paid for.
    pub fn pop(&mut self) -> Option<(Holder, Member)> {
        loop {
            let owner = *self.owners.front()?;
            let is_only = self.owners.len() == 1;
            let group = self.groups.get_mut(&owner).expect("it is listed");
            if group.members.is_empty() {
                self.owners.pop_front();
                self.groups.remove(&owner);
            } else if group.credit > 0 {
                self.count -= 1;
                return group.next().map(|member| (owner, member));
            } else if is_only {
                // Its rounds pass in no time.
                group.credit = QUANTUM;
            } else {
                group.credit += QUANTUM;
                self.owners.rotate_left(1);
            }
        }
    }
}

impl Group {
    fn next(&mut self) -> Option<Member> {
        loop {
            let mut member = self.members.pop_front()?;
            if member.credit > 0 {
                return Some(member);
            }
            member.credit += QUANTUM;
            self.members.push_back(member);
        }
    }
}
