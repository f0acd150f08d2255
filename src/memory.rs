//! What a configuration may come to in bytes: each cap times the size of what it caps.
//!
//! Every figure is one of the configuration times the size of a structure of this build, or a
//! constant of the source; none is an estimate. What the kernel holds for sockets is not in it:
//! that is bounded by `net.ipv4.tcp_mem` and `conn.send_buffer_bytes`.

use std::mem::size_of;

use crate::config::Config;
use crate::config::settings::ShardSettings;
use crate::control::log::LOG_BYTES;
use crate::engine::REQUESTS_MAX;
use crate::engine::clients::conn::Conn;
use crate::engine::clients::home::places;
use crate::engine::clients::limiter::{IDLE_MAX, Limiter, User};
use crate::engine::clients::outbox::{POOLED_BYTES_MAX, POOLED_MAX};
use crate::engine::dispatcher::request::Request;
use crate::engine::dispatcher::{dedup, route_cache};
use crate::engine::owner::Address;
use crate::engine::slab::Slab;
use crate::ids::{ConnId, MsgKey};
use crate::limits;
use crate::preflight::{IO_MEMORY_BYTES, RING_ENTRY_BYTES, RINGS};
use crate::shard::sockets::Socket;
use crate::stats::Histograms;
use crate::tls::session;
use crate::tls::session::{CIPHER_BYTES_MAX, HELD_BYTES_MAX};

/// Bytes of a point on a ring: a position of 8, an owner and a neighbour of 4 each.
const RING_POINT_BYTES: u64 = 16;
/// What a connection of TLS holds besides its plain state when nothing is under way.
const TLS_BYTES: u64 = session::IDLE_BYTES as u64;
/// Connections that a shard has place for: those that it accepts, and those of its users that come
/// home to it on top.
const PLACES: &str = "conn.connections_max + 1/8 + 64";
/// Clients a shard that read nothing, for the line that shows what slow readers come to.
pub const SLOW_READERS: u64 = 1_000;

/// One thing that takes bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// What it is.
    pub what: &'static str,
    /// How the bytes come about.
    pub how: String,
    /// Bytes, if the cap is reached.
    pub bytes: u64,
}

impl Part {
    fn new(what: &'static str, how: String, bytes: u64) -> Self {
        Self { what, how, bytes }
    }
}

/// What a shard, or the process, may hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Budget {
    /// What it holds when it is as full as its caps let it be and every client reads.
    pub full: Vec<Part>,
    /// What comes on top in the worst case: clients that do not read, services that do not answer.
    pub worst: Vec<Part>,
}

impl Budget {
    /// Sum of the first part.
    pub fn full_bytes(&self) -> u64 {
        self.full.iter().fold(0, |sum, part| sum.saturating_add(part.bytes))
    }
}

/// `count` things of `each` bytes.
fn times(what: &'static str, key: &str, count: u64, of: &str, each: u64) -> Part {
    Part::new(what, format!("{key} = {count} x {each} bytes {of}"), count.saturating_mul(each))
}

/// The budget of a shard with `settings` and connections to `instances` instances, `tls` = whether
/// clients can connect with TLS: then all may.
pub fn of_shard(settings: &ShardSettings, instances: usize, tls: bool) -> Budget {
    let ShardSettings { conn, queue, batch, dedup: ids, cache: routes, ring_depth, .. } = settings;
    let connections = places(conn.connections_max) as u64;
    let each = Slab::<ConnId, Conn>::SLOT_BYTES + size_of::<Option<Socket>>();
    let slot = Slab::<MsgKey, Request>::SLOT_BYTES as u64;
    let rings = RINGS * (IO_MEMORY_BYTES as u64 + *ring_depth as u64 * RING_ENTRY_BYTES);
    let pool = (POOLED_BYTES_MAX * POOLED_MAX) as u64;
    let mut buffers = rings + limits::READ_SCRATCH_BYTES as u64 + pool;
    if tls {
        buffers += (CIPHER_BYTES_MAX + limits::READ_SCRATCH_BYTES + HELD_BYTES_MAX) as u64;
    }
    let dedup_how = format!(
        "dedup.bytes_max; an id takes {} bytes and its own, up to {} ids",
        dedup::ENTRY_BYTES,
        ids.entries_max
    );
    let dedup_bytes = if ids.enabled { ids.bytes_max as u64 } else { 0 };
    let items = queue.items_max as u64;
    let mut full = vec![
        times("connections", PLACES, connections, "of state", each as u64),
        Part::new("queue, payloads", "queue.bytes_max".into(), queue.bytes_max as u64),
        times("queue, messages", "queue.items_max", items, "of state", slot),
        Part::new("deduplication", dedup_how, dedup_bytes),
        times(
            "route cache",
            "cache.entries_max",
            routes.entries_max as u64,
            "an entry",
            route_cache::ENTRY_BYTES as u64,
        ),
        Part::new(
            "buffers",
            format!("rings of shard.ring_depth = {ring_depth}, read scratch, reply buffers"),
            buffers,
        ),
        Part::new(
            "histograms",
            "counts of all stages".into(),
            Histograms::default().bytes() as u64,
        ),
    ];
    let limits = &settings.limits;
    let addresses = limits.address.is_on() || limits.address_unauthenticated_max > 0;
    for (what, on, each) in [
        ("limits of users", limits.user.is_on(), Limiter::<User>::ENTRY_BYTES),
        ("limits of addresses", addresses, Limiter::<Address>::ENTRY_BYTES),
    ] {
        if on {
            let key = format!("{PLACES} + {IDLE_MAX}");
            full.push(times(
                what,
                &key,
                connections.saturating_add(IDLE_MAX as u64),
                "each",
                each as u64,
            ));
        }
    }
    let in_flight = (instances * batch.in_flight_max) as u64;
    let mut worst = vec![
        times(
            "slow readers",
            &format!("{SLOW_READERS} of them read nothing: clients"),
            SLOW_READERS.min(connections),
            "of conn.outbox_bytes_max",
            conn.outbox_bytes_max as u64,
        ),
        times(
            "all read nothing",
            PLACES,
            connections,
            "of conn.outbox_bytes_max",
            conn.outbox_bytes_max as u64,
        ),
        times(
            "all send half a message",
            PLACES,
            connections,
            "of conn.message_bytes_max",
            conn.message_bytes_max as u64,
        ),
        Part::new(
            "all wait for answers",
            format!("connections x conn.unanswered_bytes_max, in {REQUESTS_MAX} messages"),
            connections
                .saturating_mul(conn.unanswered_bytes_max as u64)
                .min((REQUESTS_MAX as u64).saturating_mul(slot + conn.message_bytes_max as u64)),
        ),
        times(
            "services do not answer",
            &format!("{instances} instances x batch.in_flight_max: batches"),
            in_flight,
            "of batch.bytes_max",
            batch.bytes_max as u64,
        ),
    ];
    if tls {
        full.push(times("TLS", PLACES, connections, "of keys", TLS_BYTES));
        worst.push(times(
            "TLS, all read nothing",
            PLACES,
            connections,
            "encrypted and not taken",
            CIPHER_BYTES_MAX as u64,
        ));
        worst.push(times(
            "TLS, all send half a record",
            PLACES,
            connections,
            "of buffer for it",
            // A buffer that grows doubles.
            2 * HELD_BYTES_MAX as u64,
        ));
    }
    Budget { full, worst }
}

/// What the process holds besides its shards.
pub fn of_process(config: &Config) -> Vec<Part> {
    let weight: u64 = config.snapshot.instances.iter().map(|i| u64::from(i.weight)).sum();
    let points = weight * u64::from(config.ring_points);
    vec![
        times("hash rings", "routing.ring_points x weights", points, "a point", RING_POINT_BYTES),
        Part::new("log", "lines that wait for stderr, each as long as can be".into(), LOG_BYTES),
    ]
}

/// `bytes` for people: three digits and a unit.
pub fn shown(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_that_doubles_doubles_its_part_and_no_other() {
        let mut settings = ShardSettings::default();
        let before = of_shard(&settings, 3, false);
        // The places on top double, too, but for the 64 that are always there.
        let places_of = |max| places(max) as u64;
        let places_before = places_of(settings.conn.connections_max);
        settings.conn.connections_max *= 2;
        let places_after = places_of(settings.conn.connections_max);
        settings.queue.bytes_max *= 2;
        let after = of_shard(&settings, 3, false);
        for (a, b) in before.full.iter().zip(&after.full) {
            let expected = match a.what {
                "connections" => a.bytes / places_before * places_after,
                "queue, payloads" => a.bytes * 2,
                _ => a.bytes,
            };
            assert_eq!(b.bytes, expected, "{}", a.what);
        }
        assert!(before.full.iter().all(|part| part.bytes > 0), "{before:?}");
        let secure = of_shard(&settings, 3, true);
        assert!(secure.full_bytes() > after.full_bytes() + places_after * TLS_BYTES);
        settings.dedup.enabled = false;
        assert!(of_shard(&settings, 3, false).full_bytes() < after.full_bytes());
        let before = of_shard(&settings, 3, false);
        settings.limits.user.messages_per_s = 1;
        settings.limits.address_unauthenticated_max = 1;
        let after = of_shard(&settings, 3, false);
        assert_eq!(after.full.len(), before.full.len() + 2, "what is limited is remembered");
    }

    #[test]
    fn huge_caps_do_not_overflow() {
        let mut settings = ShardSettings::default();
        settings.conn.connections_max = usize::MAX;
        settings.conn.outbox_bytes_max = usize::MAX;
        assert_eq!(of_shard(&settings, 4096, true).full_bytes(), u64::MAX);
    }

    #[test]
    fn bytes_are_shown_with_three_digits() {
        let texts = [0, 999, 1000, 64 << 20, 999 << 20, 1 << 30, u64::MAX].map(shown);
        let wanted = ["0 B", "999 B", "1.0 KiB", "64.0 MiB", "999 MiB", "1.0 GiB", "16384 PiB"];
        assert_eq!(texts, wanted);
    }
}
