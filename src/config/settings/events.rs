//! Settings of events to services: `[events]`, and `events` and `event_groups` of a service.

use std::sync::Arc;

use super::Pattern;
use crate::ids::TenantId;
use crate::message::EventKind;

/// The section `[events]`: caps of a shard. Live.
#[derive(Clone, Debug, PartialEq)]
pub struct EventSettings {
    /// Events that wait for their services, those that are on their way among them.
    pub items_max: usize,
    /// Time for which an event waits for its service.
    pub ttl_ms: u64,
}

impl Default for EventSettings {
    fn default() -> Self {
        Self { items_max: 10_000, ttl_ms: 60_000 }
    }
}

/// The events that a service asks for. Live.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct EventRights {
    /// Kinds of events; empty = none.
    pub kinds: Vec<EventKind>,
    /// Names of groups of which it hears.
    pub groups: Vec<Pattern>,
    /// Tenants that the service is for, sorted; `None` = everybody.
    pub only_for: Option<Arc<[TenantId]>>,
}

impl EventRights {
    /// Whether it asks for events of `kind`; `group`: the group that the event is about.
    pub(crate) fn wants(&self, kind: EventKind, group: Option<&str>) -> bool {
        let has_group = |name| self.groups.iter().any(|pattern| pattern.has(name));
        self.kinds.contains(&kind) && group.is_none_or(has_group)
    }
}
