//! The section `[session]`: how long sessions wait for their clients, and what is kept for them.

use super::reader::Reader;
use super::rule::{Bounds, DAY_MS, SHARD_BYTES_MAX, SLOTS_MAX};
use super::settings::SessionSettings;

/// Largest window of a session: 16 MiB, the largest message.
const KEPT_BYTES_MAX: u64 = 16 << 20;

/// Most sessions of a shard without a connection: half of its places for sessions.
const AWAY_MAX: u64 = SLOTS_MAX / 2;
/// Outboxes that a window may be as large as: one less than closes a client that reads.
const OUTBOXES: usize = 3;

/// Reads the section.
pub fn session(r: &mut Reader, d: SessionSettings) -> SessionSettings {
    let ttl = Bounds::or_zero("sessions end with their connection", 1_000, DAY_MS);
    let bytes = Bounds::new(256, KEPT_BYTES_MAX);
    let total = Bounds::new(64 << 10, SHARD_BYTES_MAX);
    let ttl_ms = r.number("session.ttl_ms", d.ttl_ms, ttl);
    SessionSettings {
        ttl_ms,
        grace_ms: r.number("session.grace_ms", d.grace_ms, Bounds::new(0, DAY_MS)),
        kept_items_max: r.number(
            "session.kept_items_max",
            d.kept_items_max,
            Bounds::new(1, 65_536),
        ),
        kept_bytes_max: r.number("session.kept_bytes_max", d.kept_bytes_max, bytes),
        away_max: r.number("session.away_max", d.away_max, Bounds::new(1, AWAY_MAX)),
        kept_total_bytes_max: r.number(
            "session.kept_total_bytes_max",
            d.kept_total_bytes_max,
            total,
        ),
    }
}

/// Checks that all sessions together have room for one window, and a client's outbox for what a
/// resume puts into it at once.
pub fn relations(r: &mut Reader, session: &SessionSettings, outbox_bytes_max: usize) {
    let SessionSettings { kept_bytes_max, kept_total_bytes_max, .. } = *session;
    r.relation(
        kept_bytes_max <= kept_total_bytes_max,
        ["session.kept_bytes_max", "session.kept_total_bytes_max"],
        format!(
            "kept_bytes_max {kept_bytes_max}, of one session, must be at most \
             kept_total_bytes_max {kept_total_bytes_max}, of all sessions of a shard"
        ),
    );
    r.relation(
        kept_bytes_max <= outbox_bytes_max.saturating_mul(OUTBOXES),
        ["session.kept_bytes_max", "conn.outbox_bytes_max"],
        format!(
            "kept_bytes_max {kept_bytes_max} must be at most {OUTBOXES} times outbox_bytes_max \
             {outbox_bytes_max}, or a client that resumes could be closed for what it gets"
        ),
    );
}
