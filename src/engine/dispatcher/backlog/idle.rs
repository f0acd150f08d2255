//! Owners of a backlog with nothing in flight, for whom slots are kept.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::{Backlog, Entry, Look, Node, TOGETHER};
use crate::engine::dispatcher::slots::Kept;
use crate::engine::owner::OwnerName;
use crate::engine::slab::Slab;
use crate::ids::{OwnerKey, Ticket};

impl Backlog {
    /// The most urgent request of an owner that a kept slot is for.
    pub fn next_idle(&mut self, kept: Kept, look: &mut Look<'_>) -> Option<(Entry, OwnerKey)> {
        let kinds = match kept {
            Kept::Party => 1,
            Kept::Owner => 2,
        };
        // What it sent together goes with its first message.
        if let Some((owner, ticket)) = self.last_idle.filter(|(_, ticket)| *ticket == look.ticket)
            && let Some(entry) = self.first_where(owner, |n| n.held.items < TOGETHER, look)
        {
            self.last_idle = Some((owner, ticket));
            return Some((entry, owner));
        }
        for kind in 0..kinds {
            while let Some(Reverse((rank, owner))) = self.idle[kind].pop() {
                // It is listed again when it has something.
                let Some(entry) = self.first_where(owner, |n| n.in_flight == 0, look) else {
                    continue;
                };
                let is_moved = kind == 0 && !self.is_group_idle(owner);
                self.idle[kind + usize::from(is_moved)].push(Reverse((entry.0, owner)));
                if !is_moved && entry.0 <= rank {
                    self.last_idle = Some((owner, look.ticket));
                    return Some((entry, owner));
                }
            }
        }
        None
    }

    /// The same for an owner that is next by the order of arrival: whether a kept slot is for it.
    pub fn is_idle_for(&self, kept: Kept, owner: OwnerKey, ticket: Ticket) -> bool {
        let node = self.node(owner);
        let is_idle = node.in_flight == 0
            && match kept {
                Kept::Owner => true,
                Kept::Party => is_group_idle(&self.nodes, node),
            };
        is_idle || self.last_idle == Some((owner, ticket)) && node.held.items < TOGETHER
    }

    /// Lists an owner among those with nothing in flight, if it is one and has something to send.
    pub(super) fn list_idle(&mut self, owner: OwnerKey) {
        let node = self.node(owner);
        let Some(&Reverse((rank, ..))) = node.entries.peek() else { return };
        if node.in_flight > 0 {
            return;
        }
        let kind = usize::from(!self.is_group_idle(owner));
        self.idle[kind].push(Reverse((rank, owner)));
        // Mostly nobody asks for them. After this each owner is listed once at most, so it costs a
        // step for each that was listed since.
        if self.idle[kind].len() > 2 * self.nodes.len() + 64 {
            self.list_idle_again();
        }
    }

    /// Lists the owners anew that have nothing in flight.
    pub(super) fn list_idle_again(&mut self) {
        let Self { nodes, idle, .. } = self;
        idle.iter_mut().for_each(BinaryHeap::clear);
        for (owner, node) in nodes.iter() {
            if let (0, Some(&Reverse((rank, ..)))) = (node.in_flight, node.entries.peek()) {
                let kind = usize::from(!is_group_idle(nodes, node));
                idle[kind].push(Reverse((rank, owner)));
            }
        }
    }

    fn is_group_idle(&self, owner: OwnerKey) -> bool {
        is_group_idle(&self.nodes, self.node(owner))
    }

    /// The first request of an owner that may be taken, if `is` holds for the owner.
    pub(super) fn first_where(
        &mut self,
        owner: OwnerKey,
        is: impl Fn(&Node) -> bool,
        look: &mut Look<'_>,
    ) -> Option<Entry> {
        let node = self.nodes.get_mut(owner).filter(|node| is(node))?;
        loop {
            let &Reverse(entry) = node.entries.peek()?;
            if look.is_eligible(&entry) {
                return Some(entry);
            }
            node.entries.pop();
        }
    }
}

/// Whether nothing of an owner's user or address is in flight; the owner's own is not.
fn is_group_idle(nodes: &Slab<OwnerKey, Node>, owner: &Node) -> bool {
    match owner.name {
        Some(OwnerName::Session(_)) => {
            let group = owner.group.and_then(|group| nodes.get(group));
            group.is_none_or(|group| group.in_flight == 0)
        }
        Some(OwnerName::Tenant(_) | OwnerName::Party(..)) | None => true,
    }
}
