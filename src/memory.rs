//! Memory that a configuration may come to: each cap times the size of what it caps.
//!
//! Every figure is one of the configuration times the size of a structure of this build, or a
//! constant of the source; none is an estimate. Memory of the kernel for sockets is not part of it:
//! `net.ipv4.tcp_mem` and `conn.send_buffer_bytes` bound that.

use std::mem::size_of;

use crate::auth::keys::{JWKS_KEYS_MAX, KEY_BYTES};
use crate::config::Config;
use crate::config::settings::{ShardSettings, TenantSettings};
use crate::control::live;
use crate::control::log::LOG_BYTES;
use crate::control::log::recent::RECENT_BYTES;
use crate::control::marks::MARKS_MAX;
use crate::engine::REQUESTS_MAX;
use crate::engine::clients::address_places::AddressPlaces;
use crate::engine::clients::conn::{Conn, OVERFULL};
use crate::engine::clients::direct::WAITING_BYTES_MAX;
use crate::engine::clients::home::places;
use crate::engine::clients::index::INDEXED_BYTES;
use crate::engine::clients::limiter::{IDLE_MAX, Limiter, User};
use crate::engine::clients::limits::MEMBERS_BYTES;
use crate::engine::clients::membership::Membership;
use crate::engine::clients::outbox::{POOLED_BYTES_MAX, POOLED_MAX};
use crate::engine::clients::resumption::Resumption;
use crate::engine::clients::session::Session;
use crate::engine::clients::sessions::{AWAY_BYTES, ENDED_BYTES, RESUMABLE_BYTES, SEAT_BYTES};
use crate::engine::dispatcher::request::Request;
use crate::engine::dispatcher::{dedup, route_cache};
use crate::engine::events::EVENT_BYTES;
use crate::engine::groups::group::Member;
use crate::engine::groups::lane::Deliver;
use crate::engine::groups::log::PUSH_OVERHEAD_BYTES;
use crate::engine::groups::push_ids::PUSH_ID_BYTES;
use crate::engine::groups::{GROUP_BYTES, HOME_BYTES};
use crate::engine::owner::Address;
use crate::engine::slab::{self, Slab};
use crate::engine::tenants::ACCOUNT_BYTES;
use crate::ids::{ConnId, MsgKey};
use crate::limits::{
    self, DELIVER_ITEMS_MAX, IO_MEMORY_BYTES, PUSH_ITEMS_MAX, READ_SCRATCH_BYTES, RING_ENTRY_BYTES,
    RINGS, TENANT_BYTES_MAX, TENANTS_MAX,
};
use crate::routing::quota::{self, Demand};
use crate::routing::{Route, Tenant};
use crate::shard::sockets::Socket;
use crate::stats::Histograms;
use crate::tls::session;
use crate::tls::session::{CIPHER_BYTES_MAX, HELD_BYTES_MAX};

/// Bytes of a point on a ring: a position of 8, an owner and a neighbour of 4 each.
const RING_POINT_BYTES: u64 = 16;
/// Bytes of an idle TLS connection besides its plain state.
const TLS_BYTES: u64 = session::IDLE_BYTES as u64;
/// Bytes of a waiting message, without its payload.
const MESSAGE_BYTES: u64 = Slab::<MsgKey, Request>::SLOT_BYTES as u64;
/// Formula of the connections that a shard has room for: those that it accepts, and on top those
/// that other shards hand to it because it is their user's home.
const PLACES: &str = "conn.connections_max + 1/8 + 64";
/// Stores of a shard that each reserve a piece at the start: connections, sessions, requests,
/// streams, calls.
const STORES: usize = 5;
/// Address space of a shard's other parts at the start: its tables of keys, rings and buffers. With
/// the defaults they came to some 20 MiB.
const TABLES_BYTES: u64 = 32 << 20;
/// Clients of a shard that read nothing, for the line on what slow readers come to.
pub const SLOW_READERS: u64 = 1_000;

/// A consumer of memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    pub what: &'static str,
    /// Formula of the bytes.
    pub how: String,
    /// Bytes, if the cap is reached.
    pub bytes: u64,
}

impl Part {
    fn new(what: &'static str, how: String, bytes: u64) -> Self {
        Self { what, how, bytes }
    }
}

/// Memory that a shard may hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Budget {
    /// Parts when all caps are reached and every client reads.
    pub full: Vec<Part>,
    /// Parts on top in the worst case: clients that do not read, services that do not answer.
    pub worst: Vec<Part>,
}

impl Budget {
    /// Sum of [`Self::full`].
    pub fn full_bytes(&self) -> u64 {
        self.full.iter().fold(0, |sum, part| sum.saturating_add(part.bytes))
    }
}

/// A part of `count` things of `each` bytes.
fn times(what: &'static str, key: &str, count: u64, of: &str, each: u64) -> Part {
    Part::new(what, format!("{key} = {count} x {each} bytes {of}"), count.saturating_mul(each))
}

/// The budget of a shard with `settings` and connections to `instances` instances. With `tls`
/// clients can connect by TLS, and so all of them may.
pub fn of_shard(settings: &ShardSettings, instances: usize, tls: bool) -> Budget {
    let connections = places(settings.conn.connections_max.get()) as u64;
    let mut full = connection_parts(connections);
    full.extend(session_parts(settings, connections));
    full.extend(group_parts(settings, connections));
    full.extend(queue_parts(settings));
    full.extend(cache_parts(settings));
    full.push(buffers(settings, tls));
    let counts = Histograms::default().bytes() as u64;
    full.push(Part::new("histograms", "counts of all stages".into(), counts));
    full.extend(limit_parts(settings, connections));
    let mut worst = worst_of_clients(settings, connections);
    // The log of intervals has the moment at which its interval began.
    let moments = MARKS_MAX as u64 + 1;
    let key = "marks of /histograms, and the log of intervals";
    worst.push(times("histograms at marks", key, moments, "of counts", counts));
    worst.extend(worst_of_services(settings, instances));
    if tls {
        full.push(times("TLS", PLACES, connections, "of keys", TLS_BYTES));
        worst.extend(worst_of_tls(connections));
    }
    Budget { full, worst }
}

fn connection_parts(connections: u64) -> Vec<Part> {
    let each = Slab::<ConnId, Conn>::SLOT_BYTES
        + size_of::<Option<Socket>>()
        + AddressPlaces::ENTRY_BYTES
        + size_of::<Session>()
        + SEAT_BYTES
        + INDEXED_BYTES;
    vec![times("connections", PLACES, connections, "of state", each as u64)]
}

/// Sessions that wait for their clients, and what is kept for those.
fn session_parts(settings: &ShardSettings, connections: u64) -> Vec<Part> {
    let session = &settings.session;
    if session.ttl_ms == 0 {
        return Vec::new();
    }
    let each = (size_of::<Session>() + size_of::<Resumption>() + AWAY_BYTES) as u64;
    let kept = session.kept_total_bytes_max as u64;
    // A buffer that grows doubles.
    let how = "session.kept_total_bytes_max x 2, and what is remembered of ended sessions";
    let resumable = (size_of::<Resumption>() + RESUMABLE_BYTES) as u64;
    vec![
        times("sessions, resumable", PLACES, connections, "to resume them", resumable),
        times("sessions away", "session.away_max", session.away_max as u64, "of state", each),
        Part::new("sessions, frames", how.into(), 2 * kept + ENDED_BYTES as u64),
    ]
}

/// Groups, their members, and the pushes that they keep; and events to services.
fn group_parts(settings: &ShardSettings, connections: u64) -> Vec<Part> {
    let groups = &settings.groups;
    let away = if settings.session.ttl_ms > 0 { settings.session.away_max as u64 } else { 0 };
    let sessions = connections.saturating_add(away);
    let members = sessions.saturating_mul(groups.per_session_max as u64);
    let members = members.min(groups.members_max as u64);
    // A list that grows doubles: that of a group's members, and that of a session's groups.
    let member = 2 * (size_of::<Member>() + size_of::<Option<Membership>>()) as u64;
    // A shard may have members of as many, and be the home of as many.
    let group = (GROUP_BYTES + HOME_BYTES) as u64;
    let (key, names) = ("groups.names_max", groups.names_max as u64);
    let pushes = groups.log_total_bytes_max as u64;
    let events = settings.events.items_max as u64;
    vec![
        times("groups, members", "groups.members_max", members, "a membership", member),
        times("groups", key, names, "of state and name", group),
        Part::new("groups, pushes", "groups.log_total_bytes_max".into(), pushes),
        times("events", "events.items_max", events, "of state", EVENT_BYTES as u64),
    ]
}

fn queue_parts(settings: &ShardSettings) -> Vec<Part> {
    let queue = &settings.queue;
    let items = queue.items_max as u64;
    vec![
        Part::new("queue, payloads", "queue.bytes_max".into(), queue.bytes_max as u64),
        times("queue, messages", "queue.items_max", items, "of state", MESSAGE_BYTES),
    ]
}

/// Deduplication and the route cache.
fn cache_parts(settings: &ShardSettings) -> Vec<Part> {
    let ids = &settings.dedup;
    let how = format!(
        "dedup.bytes_max; an id takes {} bytes and its own, up to {} ids",
        dedup::ENTRY_BYTES,
        ids.entries_max
    );
    let routes = settings.cache.entries_max as u64;
    let each = route_cache::ENTRY_BYTES as u64;
    vec![
        Part::new("deduplication", how, if ids.enabled { ids.bytes_max as u64 } else { 0 }),
        times("route cache", "cache.entries_max", routes, "an entry", each),
    ]
}

/// Buffers that a shard has once, whatever its connections do.
fn buffers(settings: &ShardSettings, tls: bool) -> Part {
    let depth = settings.ring_depth;
    let rings = RINGS * (IO_MEMORY_BYTES as u64 + depth as u64 * RING_ENTRY_BYTES);
    let pool = (POOLED_BYTES_MAX * POOLED_MAX) as u64;
    let mut bytes = rings + READ_SCRATCH_BYTES as u64 + pool;
    if tls {
        bytes += (CIPHER_BYTES_MAX + READ_SCRATCH_BYTES + HELD_BYTES_MAX) as u64;
    }
    let how = format!("rings of shard.ring_depth = {depth}, read scratch, reply buffers");
    Part::new("buffers", how, bytes)
}

/// Tables of users and addresses, as far as these are limited.
fn limit_parts(settings: &ShardSettings, connections: u64) -> Vec<Part> {
    let limits = &settings.limits;
    let addresses = limits.address.is_on() || limits.address_unauthenticated_max > 0;
    let tables = [
        ("limits of users", limits.user.is_on(), Limiter::<User>::ENTRY_BYTES + MEMBERS_BYTES),
        ("limits of addresses", addresses, Limiter::<Address>::ENTRY_BYTES),
    ];
    let key = format!("{PLACES} + {IDLE_MAX}");
    let count = connections.saturating_add(IDLE_MAX as u64);
    let on = tables.into_iter().filter(|(_, on, _)| *on);
    on.map(|(what, _, each)| times(what, &key, count, "each", each as u64)).collect()
}

fn worst_of_clients(settings: &ShardSettings, connections: u64) -> Vec<Part> {
    let conn = &settings.conn;
    let (outbox, message) = (conn.outbox_bytes_max as u64, conn.message_bytes_max as u64);
    // A buffer that grows doubles.
    let request = 2 * conn.header_bytes_max as u64;
    let outbox_key = "of conn.outbox_bytes_max";
    let burst_key = "of conn.outbox_bytes_max x 4";
    let waiting = WAITING_BYTES_MAX as u64;
    // In two encodings, in buffers that double.
    let frames = (settings.groups.log_total_bytes_max as u64).saturating_mul(4);
    let slow_key = format!("{SLOW_READERS} of them hardly read: clients");
    let slow = SLOW_READERS.min(connections);
    // Both caps hold: that of each connection, and that of all messages of the shard.
    let unanswered = connections
        .saturating_mul(conn.unanswered_bytes_max as u64)
        .min((REQUESTS_MAX as u64).saturating_mul(MESSAGE_BYTES + message));
    vec![
        times("slow readers", &slow_key, slow, burst_key, outbox.saturating_mul(OVERFULL as u64)),
        times("all read nothing", PLACES, connections, outbox_key, outbox),
        times("all send half a message", PLACES, connections, "of conn.message_bytes_max", message),
        times("all send half a request", PLACES, connections, "of conn.header_bytes_max", request),
        Part::new(
            "all wait for answers",
            format!("connections x conn.unanswered_bytes_max, in {REQUESTS_MAX} messages"),
            unanswered,
        ),
        times("pushes wait for all", PLACES, connections, "of pushes", waiting),
        Part::new(
            "all groups are read",
            "groups.log_total_bytes_max x 4, of frames".into(),
            frames,
        ),
    ]
}

fn worst_of_services(settings: &ShardSettings, instances: usize) -> Vec<Part> {
    let batch = &settings.batch;
    let each = batch.in_flight_long_max.max(batch.in_flight_max);
    let calls = (instances * each) as u64;
    let key = format!("{instances} instances x batch.in_flight_long_max: batches");
    let answer = limits::answer_bytes_max(batch.items_max, settings.conn.outbox_bytes_max) as u64;
    let answer_key = "of batch.items_max x conn.outbox_bytes_max";
    vec![
        times("services do not answer", &key, calls, "of batch.bytes_max", batch.bytes_max as u64),
        times("all answers are huge", &key, calls, answer_key, answer),
    ]
}

fn worst_of_tls(connections: u64) -> Vec<Part> {
    let cipher = CIPHER_BYTES_MAX as u64;
    // A buffer that grows doubles.
    let held = 2 * HELD_BYTES_MAX as u64;
    vec![
        times("TLS, all read nothing", PLACES, connections, "encrypted and not taken", cipher),
        times("TLS, all send half a record", PLACES, connections, "of buffer for it", held),
    ]
}

/// Pieces of address space that a shard with `settings` reserves at its start, and at most when it
/// first limits somebody. A page of them costs memory only when it is used.
pub fn reserved(settings: &ShardSettings) -> Vec<u64> {
    let piece = slab::RESERVE_BYTES_MAX as u64;
    let ids = (settings.dedup.entries_max as u64).saturating_mul(dedup::ENTRY_BYTES as u64);
    let limits = &settings.limits;
    let addresses = limits.address.is_on() || limits.address_unauthenticated_max > 0;
    let limited = usize::from(limits.user.is_on()) + usize::from(addresses);
    let mut pieces = vec![piece; STORES + limited];
    pieces.extend([ids.min(piece), TABLES_BYTES]);
    pieces
}

/// Memory of the process besides that of its `shards`, and what they have for tenants.
pub fn of_process(config: &Config, shards: usize) -> Vec<Part> {
    let weight: u64 = config.snapshot.instances.iter().map(|i| u64::from(i.weight)).sum();
    let points = weight * u64::from(config.ring_points);
    let mut parts = vec![
        times("hash rings", "routing.ring_points x weights", points, "a point", RING_POINT_BYTES),
        Part::new("log", "lines that wait for stderr, each as long as can be".into(), LOG_BYTES),
        Part::new("log, kept", "the last 100 lines of level warn".into(), RECENT_BYTES),
        Part::new(
            "live",
            format!("{shards} shards x {} rows", live::ROWS_MAX),
            live::bytes_max(shards),
        ),
    ];
    parts.extend(push_parts(config, shards));
    parts.extend(tenant_parts(config, shards));
    parts
}

/// Ids of pushes, and what waits in the lanes for pushes and groups.
fn push_parts(config: &Config, shards: usize) -> Vec<Part> {
    let push = &config.gateway.push;
    let of_all = |items: usize| (items as u64).saturating_mul(shards as u64);
    let ids_key = format!("{shards} shards x push.dedup_entries_max");
    let lanes_key = format!("{shards} shards x {PUSH_ITEMS_MAX} pushes");
    let groups_key = format!("{shards} shards x {DELIVER_ITEMS_MAX} items");
    let (ids, pushes) = (of_all(push.dedup_entries_max), of_all(PUSH_ITEMS_MAX));
    let each = (push.bytes_max + PUSH_OVERHEAD_BYTES) as u64;
    // Their pushes are those of the groups' logs.
    let item = size_of::<Deliver>() as u64;
    vec![
        times("pushes, ids", &ids_key, ids, "an id", PUSH_ID_BYTES as u64),
        times("pushes, lanes", &lanes_key, pushes, "of push.bytes_max and state", each),
        times("groups, lanes", &groups_key, of_all(DELIVER_ITEMS_MAX), "of state", item),
    ]
}

/// Tables, routes and keys of tenants, which shards have in common, and the accounts that each
/// shard keeps; and the values of as many tenants as etcd may have.
fn tenant_parts(config: &Config, shards: usize) -> Vec<Part> {
    let mut parts = Vec::new();
    if !config.tenants.is_empty() {
        let tenants = config.tenants.len() as u64;
        let table = (size_of::<TenantSettings>() + size_of::<Tenant>()) as u64;
        let routes = config.snapshot.tenants.list().iter().map(|t| t.routes.len() as u64).sum();
        let tokens = config.tenants.iter().filter_map(|tenant| tenant.tokens.as_ref());
        let keys = tokens.map(|tokens| {
            let sets = usize::from(tokens.jwks_file.is_some() || tokens.jwks_url.is_some());
            (tokens.keys.len() + sets * JWKS_KEYS_MAX) as u64
        });
        // Control has what a shard wants of a quota, and the two parts that it may live with.
        let division = size_of::<Demand>() + 2 * size_of::<quota::Part>();
        let account = (ACCOUNT_BYTES + division) as u64;
        let (of_routes, of_keys) = ("routes of [[tenant.route]]", "keys of tenants and their sets");
        let accounts = format!("{shards} shards x [[tenant]]");
        let all = tenants.saturating_mul(shards as u64);
        parts.push(times("tenants", "[[tenant]]", tenants, "a table", table));
        parts.push(times("tenants, routes", of_routes, routes, "each", size_of::<Route>() as u64));
        parts.push(times("tenants, keys", of_keys, keys.sum(), "each", KEY_BYTES as u64));
        parts.push(times("tenants, accounts", &accounts, all, "of counters and parts", account));
    }
    if config.gateway.has_tenant_source() {
        let (most, bytes) = (TENANTS_MAX as u64, TENANT_BYTES_MAX as u64);
        parts.push(times("tenants of etcd", "tenants at most", most, "a value", bytes));
    }
    parts
}

/// Text of `bytes` for people: three digits and a unit.
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
    use crate::config::Overrides;
    use crate::config::load::{Files, from_files};
    use crate::config::settings::ConnectionsMax;

    #[test]
    fn a_cap_that_doubles_doubles_its_part_and_no_other() {
        let mut settings = ShardSettings::default();
        let before = of_shard(&settings, 3, false);
        // The room on top doubles, too, but for the 64 that are always there.
        let places_of = |max| places(max) as u64;
        let places_before = places_of(settings.conn.connections_max.get());
        settings.conn.connections_max =
            ConnectionsMax::Set(2 * settings.conn.connections_max.get());
        let places_after = places_of(settings.conn.connections_max.get());
        settings.queue.bytes_max *= 2;
        let after = of_shard(&settings, 3, false);
        for (a, b) in before.full.iter().zip(&after.full) {
            let expected = match a.what {
                "connections" | "sessions, resumable" => a.bytes / places_before * places_after,
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
    fn tenants_are_counted_with_their_routes_and_keys_and_for_each_shard() {
        let of = |text: &str, shards| {
            let mut files = Files::embedded();
            files.gateway.text = format!(
                "demo.enabled = false\nauth.mode = \"jwt\"\nauth.tenants = \"many\"\n\
                 auth.jwks_file = \"k\"\n{text}\n[[service]]\nname = \"a\"\n\
                 instances = [{{ id = \"a\", address = \"127.0.0.1:1\" }}]\n"
            );
            let config = from_files(files, &[], &Overrides::default()).expect(text);
            let parts = of_process(&config, shards);
            let tenants = parts.into_iter().filter(|part| part.what.starts_with("tenants"));
            tenants.map(|part| part.bytes).collect::<Vec<u64>>()
        };
        assert_eq!(of("", 4), [0_u64; 0]);
        let table = |name: &str, more: &str| format!("{{ name = {name:?}, {more} }}");
        let plain = table("p", "");
        let route = table("r", "route = [{ range = [1, 2], service = \"a\" }]");
        let keys = table("k", "jwks_url = \"https://a.example/\"");
        let [one, two, eight] = [
            of(&format!("tenant = [{plain}]"), 4),
            of(&format!("tenant = [{plain}, {route}, {keys}]"), 4),
            of(&format!("tenant = [{plain}, {route}, {keys}]"), 8),
        ];
        assert_eq!((two[0], two[3]), (3 * one[0], 3 * one[3]));
        assert_eq!((one[1], one[2], two[1]), (0, 0, size_of::<Route>() as u64));
        assert_eq!(two[2], JWKS_KEYS_MAX as u64 * KEY_BYTES as u64);
        assert_eq!((eight[..3].to_vec(), eight[3]), (two[..3].to_vec(), 2 * two[3]));
        assert_eq!(of("etcd.endpoints = [\"http://127.0.0.1:1\"]", 4), [65_536_000]);
    }

    #[test]
    fn a_membership_takes_less_than_a_fifth_of_a_kilobyte() {
        let settings = ShardSettings::default();
        let parts = group_parts(&settings, u64::MAX);
        let of = |what: &str| parts.iter().find(|part| part.what == what).expect(what).bytes;
        let members = settings.groups.members_max as u64;
        assert!(of("groups, members") < members * 200, "{parts:?}");
        assert!(of("groups") < settings.groups.names_max as u64 * 1_500, "{parts:?}");
        let mut few = settings.clone();
        few.session.ttl_ms = 0;
        let few = group_parts(&few, 1);
        assert!(few[0].bytes < parts[0].bytes, "no more than sessions have: {few:?}");
    }

    #[test]
    fn huge_caps_do_not_overflow() {
        let mut settings = ShardSettings::default();
        settings.conn.connections_max = ConnectionsMax::Set(usize::MAX);
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
