//! Whether the order of arrival is fair to the owners of a backlog, because none of them has much
//! waiting.

use super::{Backlog, Entry, Node, Place, TOGETHER, TOGETHER_US_MAX};
use crate::engine::dispatcher::slots::Kept;
use crate::engine::owner::{Holder, OwnerName};
use crate::ids::{OwnerKey, Ticket};

/// Most messages that a member of a group may have waiting so that others need not mind, where one
/// costs `cost_us` microseconds of a slot: as many as may stay together in the shares.
fn few(cost_us: u64) -> usize {
    TOGETHER.min((TOGETHER_US_MAX / cost_us.max(1)) as usize)
}

impl Node {
    /// Whether its weight is the mean of its group's. With different weights, which tenants have,
    /// there is a member of which it is not, and the order of arrival is not fair.
    fn weighs_as_others_in(&self, group: &Node) -> bool {
        self.weight * group.members == group.weights
    }
}

impl Backlog {
    /// Whether no member of a group with others has much waiting, and all weigh the same. Costs a
    /// pass over all.
    pub fn is_even(&self, cost_us: u64) -> bool {
        let few = few(cost_us);
        self.nodes.iter().all(|(_, node)| match node.group.map(|group| self.node(group)) {
            Some(group) if node.held.items > 0 && group.members > 1 => {
                node.held.items <= few && node.weighs_as_others_in(group)
            }
            Some(_) | None => true,
        })
    }

    /// The same for those to whom the last request of an owner can have made a difference.
    pub fn is_even_at(&self, owner: OwnerKey, cost_us: u64) -> bool {
        let few = few(cost_us);
        let mut node = self.node(owner);
        while let Some(group) = node.group.map(|group| self.node(group)) {
            let others = group.held.items - node.held.items;
            // Who was alone in the group until now may have any number.
            let is_uneven = match group.members {
                0 | 1 => false,
                2 => node.held.items.max(others) > few,
                _ => node.held.items > few,
            };
            if is_uneven || !node.weighs_as_others_in(group) {
                return false;
            }
            node = group;
        }
        true
    }

    /// Whether a slot that is kept for some owners is for this one: it has nothing in flight, or
    /// only what it sent together, which goes with the first in the call `ticket`.
    pub fn is_idle_for(&self, kept: Kept, owner: OwnerKey, ticket: Ticket) -> bool {
        let node = self.node(owner);
        let is_idle = node.in_flight == 0
            && match kept {
                Kept::Owner => true,
                Kept::Party => self.is_group_idle(owner),
            };
        is_idle || self.last_idle == Some((owner, ticket)) && node.held.items < TOGETHER
    }

    /// Counts a request of `holder` that was taken before anybody was counted.
    pub fn fly(&mut self, holder: &Holder) -> OwnerKey {
        let owner = self.find_or_make(OwnerName::of(holder));
        self.count_in_flight(owner);
        owner
    }

    /// Counts a request of an owner that is about to leave as one in flight.
    pub(super) fn count_in_flight(&mut self, owner: OwnerKey) {
        let mut at = Some(owner);
        while let Some(key) = at {
            let node = self.node_mut(key);
            node.in_flight += 1;
            at = node.group;
        }
    }

    /// Counts a request of an owner into the call `ticket`, at no charge: it left in the order of
    /// arrival.
    pub fn count_taken(&mut self, owner: OwnerKey, bytes: usize, ticket: Ticket) {
        if self.node(owner).in_flight == 0 {
            self.last_idle = Some((owner, ticket));
        }
        self.count_in_flight(owner);
        self.leave(owner, bytes);
    }

    /// Takes all entries out, and begins the time of all groups anew: nobody is ahead.
    pub fn take_entries(&mut self) -> Vec<Entry> {
        let all: Vec<OwnerKey> = self.nodes.iter().map(|(key, _)| key).collect();
        let mut entries = Vec::new();
        for key in all {
            let node: &mut Node = self.node_mut(key);
            entries.extend(node.entries.drain().map(|std::cmp::Reverse(entry)| entry));
            (node.place, node.start) = (Place::None, 0);
            node.forget_members();
        }
        self.list_idle_again();
        entries
    }
}
