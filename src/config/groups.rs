//! The section `[groups]`: caps of a shard's groups.

use super::reader::Reader;
use super::rule::{Bounds, HOUR_MS, MINUTE_MS, SHARD_BYTES_MAX, SLOTS_MAX};
use super::settings::GroupSettings;

/// Most groups of a shard: 16 times the default.
const NAMES_MAX: u64 = 1 << 20;
/// Largest log of one group: 64 MiB, four of the largest messages.
const LAG_BYTES_MAX: u64 = 64 << 20;

/// Reads the section.
pub fn groups(r: &mut Reader, d: GroupSettings) -> GroupSettings {
    let lag = Bounds::new(4 << 10, LAG_BYTES_MAX);
    let total = Bounds::new(64 << 10, SHARD_BYTES_MAX);
    let timeout = Bounds::new(100, MINUTE_MS);
    let settings = GroupSettings {
        names_max: r.number("groups.names_max", d.names_max, Bounds::new(1, NAMES_MAX)),
        members_max: r.number("groups.members_max", d.members_max, Bounds::new(1, SLOTS_MAX)),
        per_session_max: r.number("groups.per_session_max", d.per_session_max, Bounds::new(1, 64)),
        join_timeout_ms: r.number("groups.join_timeout_ms", d.join_timeout_ms, timeout),
        lag_bytes_max: r.number("groups.lag_bytes_max", d.lag_bytes_max, lag),
        log_total_bytes_max: r.number("groups.log_total_bytes_max", d.log_total_bytes_max, total),
        sweep_members: r.number("groups.sweep_members", d.sweep_members, Bounds::new(1, 65_536)),
        linger_ms: r.number("groups.linger_ms", d.linger_ms, Bounds::new(0, HOUR_MS)),
    };
    r.relation(
        settings.lag_bytes_max <= settings.log_total_bytes_max,
        ["groups.lag_bytes_max", "groups.log_total_bytes_max"],
        format!(
            "lag_bytes_max {}, of one group, must be at most log_total_bytes_max {}, of all groups \
             of a shard",
            settings.lag_bytes_max, settings.log_total_bytes_max
        ),
    );
    settings
}
