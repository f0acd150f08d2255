//! The section `[events]`, and the events that services ask for.

use super::push::{PATTERN_RULE, pattern, words};
use super::reader::Reader;
use super::rule::{Bounds, HOUR_MS, TextRule};
use super::settings::{EventRights, EventSettings};
use crate::message::EventKind;
use crate::routing::Mode;

/// Most events that wait: a quarter of what a shard may have under way.
const ITEMS_MAX: u64 = 1 << 18;

const KINDS_RULE: TextRule = TextRule::new("connected, disconnected, joined or left", "");

/// Reads the section.
pub fn events(r: &mut Reader, d: EventSettings) -> EventSettings {
    EventSettings {
        items_max: r.number("events.items_max", d.items_max, Bounds::new(1, ITEMS_MAX)),
        ttl_ms: r.number("events.ttl_ms", d.ttl_ms, Bounds::new(1_000, HOUR_MS)),
    }
}

/// Reads what a service in `mode` is told.
pub fn service_events(r: &mut Reader, mode: Mode) -> EventRights {
    let kinds = words(r, "events", "[]", &EventKind::WORDS, KINDS_RULE).unwrap_or_default();
    let groups = r.texts_as("event_groups", "[]", pattern, PATTERN_RULE).unwrap_or_default();
    if !kinds.is_empty() && mode == Mode::Unary {
        let rule = "needs mode = \"batch\": an event is a message of Backend.Handle";
        r.problem("events", rule);
    }
    let is_of_groups = |kind: &EventKind| match kind {
        EventKind::Joined | EventKind::Left => true,
        EventKind::Connected | EventKind::Disconnected | EventKind::Lost => false,
    };
    if kinds.iter().any(is_of_groups) && groups.is_empty() {
        let rule = "must name the groups of which the service hears, e.g. [\"room:*\"]";
        r.problem("event_groups", rule);
    }
    EventRights { kinds, groups, only_for: None }
}
