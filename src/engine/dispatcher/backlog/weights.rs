//! The weights by which the members of a group share what is served.

use crate::engine::dispatcher::backlog::Backlog;
use crate::engine::owner::OwnerName;
use crate::engine::weights::Weights;
use crate::ids::{OwnerKey, TenantId};

impl Backlog {
    /// Gives each tenant of which something waits its weight anew.
    pub fn set_weights(&mut self, of: impl Fn(TenantId) -> u32) {
        let all: Vec<OwnerKey> = self.nodes.iter().map(|(key, _)| key).collect();
        for key in all {
            let node = self.node_mut(key);
            let Some(OwnerName::Tenant(id)) = node.name else { continue };
            let before = std::mem::replace(&mut node.weight, u64::from(of(id).max(1)));
            let (after, waits, group) = (node.weight, node.held.items > 0, node.group);
            if let (true, Some(group)) = (waits, group) {
                self.reweigh(group, before, after);
            }
        }
    }

    /// Counts a member of a group with the weight `after` in place of `before`; 0 = none.
    pub(super) fn reweigh(&mut self, group: OwnerKey, before: u64, after: u64) {
        let node = self.node_mut(group);
        node.weights = node.weights + after - before;
        if group == self.root {
            self.tenants.change(before, after);
        }
    }

    /// Weights of the tenants of which something waits.
    pub fn tenants(&self) -> &Weights {
        &self.tenants
    }
}
