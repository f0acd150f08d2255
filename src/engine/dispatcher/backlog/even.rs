//! Whether the order of arrival is fair to the owners of a backlog, because none of them has much
//! waiting.

use std::cmp::Reverse;

use super::{Backlog, Entry, Place, TOGETHER, TOGETHER_US_MAX};
use crate::engine::owner::{Holder, OwnerName};
use crate::ids::{OwnerKey, Ticket};

/// Most messages that a member of a group may have waiting so that others need not mind, where one
/// costs `cost_us` microseconds of a slot: as many as may stay together in the shares.
fn few(cost_us: u64) -> usize {
    TOGETHER.min((TOGETHER_US_MAX / cost_us.max(1)) as usize)
}

impl Backlog {
    /// Whether no member of a group with others has much waiting, and all weigh the same. Costs a
    /// pass over all.
    pub fn is_even(&self, cost_us: u64) -> bool {
        let few = few(cost_us);
        self.tenants.are_equal()
            && self.nodes.iter().all(|(_, node)| {
                let is_alone = node.group.is_none_or(|group| self.node(group).members <= 1);
                is_alone || node.held.items <= few
            })
    }

    /// The same for those to whom the last request of an owner can have made a difference.
    pub fn is_even_at(&self, owner: OwnerKey, cost_us: u64) -> bool {
        if !self.tenants.are_equal() {
            return false;
        }
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
            if is_uneven {
                return false;
            }
            node = group;
        }
        true
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
    pub fn take_entries(&mut self) -> Vec<Reverse<Entry>> {
        self.run = None;
        let all: Vec<OwnerKey> = self.nodes.iter().map(|(key, _)| key).collect();
        let mut entries = Vec::new();
        for key in all {
            let node = self.node_mut(key);
            entries.extend(node.entries.drain());
            (node.place, node.start) = (Place::None, 0);
            node.forget_members();
        }
        self.list_idle_again();
        entries
    }
}
