//! The new list of [`super::rounds`]: connections in the order in which they became ready.
//!
//! When more of them are left at the end of a turn than it has read, they are spread over their
//! owners, and the owners are read in rotation, a connection of each. So a thousand connections of
//! one address, none of which floods, delay one of another address by a visit, and not by a
//! thousand. While a turn or two read all there are, nobody asks whose they are: to know that takes
//! a look into the table of connections for each that is read.

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::engine::owner::Holder;
use crate::ids::ConnId;
use crate::shard::turn::rota::Member;

/// The connections that became ready since they were last on a list.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    /// Connections that are not spread over their owners.
    line: VecDeque<Member>,
    /// Owners of all others, the next one first.
    owners: VecDeque<Holder>,
    /// Connections of each owner, of which it has at least one.
    groups: HashMap<Holder, VecDeque<Member>>,
    /// Connections of all groups.
    spread: usize,
    /// Connections that were taken out in this turn.
    taken: usize,
    /// Whether the last turn that read them left more than it took.
    is_long: bool,
}

impl Arrivals {
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn len(&self) -> usize {
        self.line.len() + self.spread
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Begins a turn's reading of them.
    pub fn begin(&mut self, owner_of: impl Fn(ConnId) -> Option<Holder>) {
        self.taken = 0;
        if self.is_long {
            self.spread(owner_of);
        }
    }

    /// Ends a turn's reading of them.
    pub fn end(&mut self) {
        self.is_long = self.len() > self.taken;
    }

    /// Puts in a connection behind the others, or behind those of its owner.
    #[inline]
    pub fn push(&mut self, member: Member) {
        self.line.push_back(member);
    }

    /// Puts a connection in its place again that was just taken out, with its owner if that was
    /// told: the turn was over before its share was.
    pub fn push_front(&mut self, member: Member, owner: Option<Holder>) {
        let Some(owner) = owner else { return self.line.push_front(member) };
        self.spread += 1;
        let group = self.groups.entry(owner).or_default();
        group.push_front(member);
        if group.len() > 1 {
            // It went to the end when the connection was taken out.
            self.owners.rotate_right(1);
        } else {
            self.owners.push_front(owner);
        }
    }

    /// Takes out the next connection, and its owner if they are spread.
    #[inline]
    pub fn pop(&mut self) -> Option<(Member, Option<Holder>)> {
        self.taken += 1;
        if self.spread == 0 {
            return self.line.pop_front().map(|member| (member, None));
        }
        let owner = *self.owners.front()?;
        let group = self.groups.get_mut(&owner)?;
        let member = group.pop_front()?;
        if group.is_empty() {
            self.groups.remove(&owner);
            self.owners.pop_front();
        } else {
            self.owners.rotate_left(1);
        }
        self.spread -= 1;
        Some((member, Some(owner)))
    }

    /// Puts all of them with their owners.
    fn spread(&mut self, owner_of: impl Fn(ConnId) -> Option<Holder>) {
        for _ in 0..self.line.len() {
            let Some(member) = self.line.pop_front() else { return };
            match owner_of(member.id) {
                Some(owner) => {
                    let group = self.groups.entry(owner).or_default();
                    if group.is_empty() {
                        self.owners.push_back(owner);
                    }
                    group.push_back(member);
                    self.spread += 1;
                }
                // It is gone, which its visit finds out.
                None => self.line.push_back(member),
            }
        }
    }
}
