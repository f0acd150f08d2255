//! The keys of `gateway.toml` and `default.toml`, their bounds, and the relations between them.

use std::net::SocketAddr;
use std::time::Duration;

use super::reader::Reader;
use super::rule::{Bounds, DAY_MS, HOUR_MS, MINUTE_MS, SHARD_BYTES_MAX, SLOTS_MAX, TextRule};
use super::settings::*;
use super::words::{ADDRESS_RULE, NAME_RULE, is_address, is_name};
use super::{
    admin, auth, discovery, events, groups, health, host, limits, listen, log_filter, push, session,
};
use crate::limits::*;
use crate::origin::AllowedOrigin;

/// Sections of `default.toml` and `N.toml`; all others belong to `gateway.toml`.
pub const SHARD_SECTIONS: [&str; 12] = [
    "shard", "conn", "session", "groups", "events", "limits", "queue", "batch", "retry", "dedup",
    "cache", "backend",
];

/// Largest byte cap of one client: 1 GiB, 64 of the largest messages.
const CLIENT_BYTES_MAX: u64 = 1 << 30;

const URL_PATH_RULE: TextRule =
    TextRule::new("'/' and at most 255 visible characters without '?' and '#'", "");
const ORIGIN_RULE: TextRule = TextRule::new(
    "scheme://host[:port] in lower case, with a wildcard for the first labels or the port, or null",
    ", e.g. \"https://example.org\", \"https://*.example.org\" or \"http://localhost:*\"",
);
const FILTER_RULE: TextRule = TextRule::new("a log filter", "");

/// Whether `s` can be the path of the upgrade request.
fn is_url_path(s: &str) -> bool {
    s.starts_with('/')
        && s.len() <= 256
        && s.bytes().all(|b| b.is_ascii_graphic() && !b"?#".contains(&b))
}

/// Reads the log filter.
fn log_filter(r: &mut Reader, default: &str) -> String {
    let filter = r.text("log.filter", default, |_| true, FILTER_RULE);
    match log_filter::read(&filter) {
        Err(why) => r.problem("log.filter", why),
        Ok(_) => {
            if let Some(why) = log_filter::warning(&filter) {
                r.warning("log.filter", why);
            }
        }
    }
    filter
}

/// Reads the name of this process: by default that of the host.
fn node(r: &mut Reader) -> String {
    let name = r.text("node", "", is_name, NAME_RULE.or_empty());
    if name.is_empty() { host::node().to_owned() } else { name }
}

/// Reads the key `origins` of the file, or of a tenant; empty if it is not set.
pub(super) fn origins(r: &mut Reader) -> Vec<AllowedOrigin> {
    r.texts_as("origins", "[]", AllowedOrigin::read, ORIGIN_RULE).unwrap_or_default()
}

/// Reads `gateway.toml` without its services and routes.
pub fn gateway(r: &mut Reader) -> GatewaySettings {
    let d = GatewaySettings::default();
    let settings = GatewaySettings {
        listen: listen::plain(r, d.listen),
        tls: listen::tls(r),
        proxies: listen::proxies(r),
        forwarded: listen::forwarded(r),
        path: r.text("path", &d.path, is_url_path, URL_PATH_RULE),
        node: node(r),
        admin: admin::admin(r),
        shards: r.number_or_auto("shards.count", Bounds::new(1, SHARDS_MAX as u64)),
        steer_by_cpu: r.boolean("shards.steer_by_cpu", d.steer_by_cpu),
        origins: origins(r),
        gateway_ids: gateway_ids(r, d.gateway_ids),
        explain_to_clients: r.boolean("gateway.explain_to_clients", d.explain_to_clients),
        demo: demo(r, d.demo),
        stop: stop(r),
        discovery: discovery::discovery(r),
        health: health::health(r),
        auth: auth::auth(r),
        log: log_filter(r, &d.log),
        log_json: r.boolean("log.json", d.log_json),
        histograms: histograms(r),
        push: push::push(r),
        // Read with the services.
        events: d.events,
    };
    listen::relations(r, &settings);
    settings
}

fn gateway_ids(r: &mut Reader, default: (u32, u32)) -> (u32, u32) {
    let default = [default.0, default.1];
    let ids = r.numbers("gateway.ids", default, Bounds::new(1, u64::from(u32::MAX)));
    r.relation(
        ids[0] <= ids[1],
        ["gateway.ids"; 2],
        "the first id must not be above the last; write [first, last]",
    );
    (ids[0], ids[1])
}

fn demo(r: &mut Reader, d: DemoSettings) -> DemoSettings {
    let enabled = r.boolean("demo.enabled", d.enabled);
    let shown = d.addresses.map(|a| a.to_string());
    let before = r.report.problems.len();
    let texts = r.texts("demo.addresses", &shown, is_address, ADDRESS_RULE);
    let addresses: Vec<SocketAddr> = texts.iter().filter_map(|s| s.parse().ok()).collect();
    let addresses = match <[SocketAddr; 3]>::try_from(addresses) {
        Ok(addresses) => addresses,
        Err(_) => {
            if r.report.problems.len() == before {
                r.problem("demo.addresses", "must be three addresses: logic, chat and fight");
            }
            d.addresses
        }
    };
    let [tls_cert, tls_key] = ["demo.tls_cert", "demo.tls_key"].map(|key| r.file(key));
    let set = [tls_cert.is_some(), tls_key.is_some()];
    r.both_or_neither(["demo.tls_cert", "demo.tls_key"], set);
    DemoSettings { enabled, addresses, tls_cert, tls_key }
}

/// Reads the section `[stop]`.
fn stop(r: &mut Reader) -> StopSettings {
    let d = StopSettings::default();
    let settings = StopSettings {
        grace: r.milliseconds("stop.grace_ms", d.grace, Bounds::new(0, 10 * MINUTE_MS)),
        spread: r
            .number_or_auto("stop.spread_ms", Bounds::new(0, 10 * MINUTE_MS))
            .map(Duration::from_millis),
        reconnect: r.milliseconds("stop.reconnect_ms", d.reconnect, Bounds::new(0, HOUR_MS)),
    };
    if settings.spread.is_some_and(|spread| spread > settings.grace) {
        let grace_ms = settings.grace.as_millis();
        let rule = format!(
            "all connections are closed after stop.grace_ms, {grace_ms}; raise that, or lower this"
        );
        r.warning("stop.spread_ms", rule);
    }
    settings
}

/// Reads the section `[histograms]`.
fn histograms(r: &mut Reader) -> HistogramSettings {
    let seconds = Bounds::or_zero("off", 1, HOUR_MS / 1_000);
    HistogramSettings {
        every: Duration::from_secs(r.number("histograms.every_s", 0, seconds)),
        file: r.file("histograms.file"),
    }
}

/// Reads `ring_points` of `[routing]`.
pub fn ring_points(r: &mut Reader) -> u32 {
    r.number("routing.ring_points", 160, Bounds::new(1, 4096))
}

/// Reads `default.toml`, or `N.toml` over it.
pub fn shard(r: &mut Reader) -> ShardSettings {
    let d = ShardSettings::default();
    let us = |duration: Duration| duration.as_micros() as u64;
    let settings = ShardSettings {
        core: r.number_or_auto("shard.core", Bounds::new(0, SHARDS_MAX as u64 - 1)),
        spin: Duration::from_micros(r.number("shard.spin_us", us(d.spin), Bounds::new(0, 10_000))),
        preempt: Duration::from_micros(r.number(
            "shard.preempt_us",
            us(d.preempt),
            Bounds::new(100, 100_000),
        )),
        read: Duration::from_micros(r.number(
            "shard.read_us",
            us(d.read),
            Bounds::new(100, 100_000),
        )),
        // The kernel's own limit is 32,768 entries.
        ring_depth: r.number("shard.ring_depth", d.ring_depth, Bounds::new(64, 32_768)),
        conn: conn(r, d.conn),
        limits: limits::limits(r, d.limits),
        session: session::session(r, d.session),
        groups: groups::groups(r, d.groups),
        events: events::events(r, d.events),
        queue: queue(r, d.queue),
        batch: batch(r, d.batch),
        retry: retry(r, d.retry),
        dedup: dedup(r, d.dedup),
        cache: cache(r, d.cache),
        backend: backend(r, d.backend),
    };
    conn_relations(r, &settings);
    session::relations(r, &settings.session, settings.conn.outbox_bytes_max);
    queue_relations(r, &settings);
    other_relations(r, &settings);
    settings
}

fn conn(r: &mut Reader, d: ConnSettings) -> ConnSettings {
    let message = Bounds::new(128, MESSAGE_BYTES_CAP as u64);
    let client = Bounds::new(1 << 10, CLIENT_BYTES_MAX);
    let buffer = Bounds::or_zero("the kernel's choice", 4 << 10, 64 << 20);
    let frames = Bounds::or_zero("no limit", 1, 1_000_000);
    let timeout = Bounds::new(100, 10 * MINUTE_MS);
    let headers = Bounds::new(1 << 10, READ_SCRATCH_BYTES as u64);
    ConnSettings {
        connections_max: ConnectionsMax::of(
            r.number_or_auto("conn.connections_max", Bounds::new(1, SLOTS_MAX)),
        ),
        message_bytes_max: r.number("conn.message_bytes_max", d.message_bytes_max, message),
        fragments_max: r.number("conn.fragments_max", d.fragments_max, Bounds::new(1, 65_536)),
        header_bytes_max: r.number("conn.header_bytes_max", d.header_bytes_max, headers),
        headers_max: r.number("conn.headers_max", d.headers_max, Bounds::new(16, 1_000)),
        handshake_timeout_ms: r.number(
            "conn.handshake_timeout_ms",
            d.handshake_timeout_ms,
            timeout,
        ),
        heartbeat_ms: r.number("conn.heartbeat_ms", d.heartbeat_ms, Bounds::new(100, HOUR_MS)),
        outbox_bytes_max: r.number("conn.outbox_bytes_max", d.outbox_bytes_max, client),
        write_timeout_ms: r.number("conn.write_timeout_ms", d.write_timeout_ms, timeout),
        frames_per_s_max: r.number("conn.frames_per_s_max", d.frames_per_s_max, frames),
        unanswered_max: r.number("conn.unanswered_max", d.unanswered_max, Bounds::new(1, 65_536)),
        unanswered_bytes_max: r.number("conn.unanswered_bytes_max", d.unanswered_bytes_max, client),
        bad_messages_max: r.number(
            "conn.bad_messages_max",
            d.bad_messages_max,
            Bounds::new(1, 10_000),
        ),
        close_timeout_ms: r.number("conn.close_timeout_ms", d.close_timeout_ms, timeout),
        send_buffer_bytes: r.number("conn.send_buffer_bytes", d.send_buffer_bytes, buffer),
        notsent_bytes: r.number("conn.notsent_bytes", d.notsent_bytes, buffer),
    }
}

fn queue(r: &mut Reader, d: QueueSettings) -> QueueSettings {
    let percent = Bounds::new(1, 100);
    let delay = Bounds::new(0, TIMEOUT_MS_MAX as u64);
    QueueSettings {
        items_max: r.number("queue.items_max", d.items_max, Bounds::new(1, 1_000_000)),
        bytes_max: r.number("queue.bytes_max", d.bytes_max, Bounds::new(64 << 10, SHARD_BYTES_MAX)),
        instance_percent: r.number("queue.instance_percent", d.instance_percent, percent),
        admit_percent: r.numbers("queue.admit_percent", d.admit_percent, percent),
        class_delay_ms: r.numbers("queue.class_delay_ms", d.class_delay_ms, delay),
        backpressure: r.boolean("queue.backpressure", d.backpressure),
        throttle_on_percent: r.number("queue.throttle_on_percent", d.throttle_on_percent, percent),
        throttle_off_percent: r.number(
            "queue.throttle_off_percent",
            d.throttle_off_percent,
            Bounds::new(0, 99),
        ),
    }
}

fn batch(r: &mut Reader, d: BatchSettings) -> BatchSettings {
    let items = Bounds::new(1, BATCH_ITEMS_CAP as u64);
    let bytes = Bounds::new(1 << 10, BATCH_BYTES_CAP as u64);
    BatchSettings {
        items_max: r.number("batch.items_max", d.items_max, items),
        bytes_max: r.number("batch.bytes_max", d.bytes_max, bytes),
        window_ms: r.number("batch.window_ms", d.window_ms, Bounds::new(0, MINUTE_MS)),
        in_flight_max: r.number("batch.in_flight_max", d.in_flight_max, Bounds::new(1, 1000)),
        in_flight_long_max: r.number(
            "batch.in_flight_long_max",
            d.in_flight_long_max,
            Bounds::new(1, 1000),
        ),
        eager_max: r.number("batch.eager_max", d.eager_max, Bounds::new(1, 1000)),
        calls_max: r.number("batch.calls_max", d.calls_max, Bounds::new(1, 1000)),
    }
}

fn retry(r: &mut Reader, d: RetrySettings) -> RetrySettings {
    let delay = Bounds::new(1, MINUTE_MS);
    let attempts = Bounds::new(1, ATTEMPTS_MAX as u64);
    RetrySettings {
        attempts_max: r.number("retry.attempts_max", d.attempts_max, attempts),
        delay_ms: r.number("retry.delay_ms", d.delay_ms, delay),
        delay_max_ms: r.number("retry.delay_max_ms", d.delay_max_ms, delay),
        budget_percent: r.number("retry.budget_percent", d.budget_percent, Bounds::new(0, 100)),
    }
}

fn dedup(r: &mut Reader, d: DedupSettings) -> DedupSettings {
    let bytes = Bounds::new(64 << 10, SHARD_BYTES_MAX);
    let reply = Bounds::new(0, ANSWERS_BYTES_AIM as u64);
    DedupSettings {
        enabled: r.boolean("dedup.enabled", d.enabled),
        window_ms: r.number("dedup.window_ms", d.window_ms, Bounds::new(100, DAY_MS)),
        entries_max: r.number("dedup.entries_max", d.entries_max, Bounds::new(1, SLOTS_MAX)),
        bytes_max: r.number("dedup.bytes_max", d.bytes_max, bytes),
        reply_bytes_max: r.number("dedup.reply_bytes_max", d.reply_bytes_max, reply),
    }
}

fn cache(r: &mut Reader, d: CacheSettings) -> CacheSettings {
    CacheSettings {
        entries_max: r.number("cache.entries_max", d.entries_max, Bounds::new(1, SLOTS_MAX)),
        ttl_ms: r.number("cache.ttl_ms", d.ttl_ms, Bounds::new(1, DAY_MS)),
    }
}

fn backend(r: &mut Reader, d: BackendSettings) -> BackendSettings {
    let timeout = Bounds::new(10, MINUTE_MS);
    let keepalive = Bounds::or_zero("never", 100, 2 * HOUR_MS);
    let age = Bounds::or_zero("never", 1_000, 30 * DAY_MS);
    BackendSettings {
        connect_timeout_ms: r.number("backend.connect_timeout_ms", d.connect_timeout_ms, timeout),
        backoff_ms: r.number("backend.backoff_ms", d.backoff_ms, timeout),
        backoff_max_ms: r.number(
            "backend.backoff_max_ms",
            d.backoff_max_ms,
            Bounds::new(10, HOUR_MS),
        ),
        keepalive_ms: r.number("backend.keepalive_ms", d.keepalive_ms, keepalive),
        keepalive_timeout_ms: r.number(
            "backend.keepalive_timeout_ms",
            d.keepalive_timeout_ms,
            timeout,
        ),
        tcp_user_timeout_ms: r.number(
            "backend.tcp_user_timeout_ms",
            d.tcp_user_timeout_ms,
            Bounds::or_zero("the kernel's own, some 15 minutes", 1_000, 10 * MINUTE_MS),
        ),
        age_max_ms: r.number("backend.age_max_ms", d.age_max_ms, age),
    }
}

fn conn_relations(r: &mut Reader, s: &ShardSettings) {
    let c = &s.conn;
    r.relation(
        c.outbox_bytes_max > c.message_bytes_max,
        ["conn.outbox_bytes_max", "conn.message_bytes_max"],
        format!(
            "outbox_bytes_max {} must be above message_bytes_max {}, or an echo could not be sent; \
             raise the one or lower the other",
            c.outbox_bytes_max, c.message_bytes_max
        ),
    );
    r.relation(
        c.unanswered_bytes_max >= c.message_bytes_max,
        ["conn.unanswered_bytes_max", "conn.message_bytes_max"],
        format!(
            "unanswered_bytes_max {} must be at least message_bytes_max {}, so that one message \
             fits; raise the one or lower the other",
            c.unanswered_bytes_max, c.message_bytes_max
        ),
    );
    r.relation(
        c.send_buffer_bytes <= c.outbox_bytes_max,
        ["conn.send_buffer_bytes", "conn.outbox_bytes_max"],
        format!(
            "send_buffer_bytes {} must not be above outbox_bytes_max {}: the kernel would hold \
             more for a slow client than we do",
            c.send_buffer_bytes, c.outbox_bytes_max
        ),
    );
    if c.message_bytes_max > BATCH_BYTES_CAP {
        let rule = format!(
            "messages above {BATCH_BYTES_CAP} bytes fit no batch: services in mode \"batch\" \
             never see them"
        );
        r.warning("conn.message_bytes_max", rule);
    }
}

fn queue_relations(r: &mut Reader, s: &ShardSettings) {
    let (q, b) = (&s.queue, &s.batch);
    r.relation(
        q.throttle_off_percent < q.throttle_on_percent,
        ["queue.throttle_off_percent", "queue.throttle_on_percent"],
        format!(
            "throttle_off_percent {} must be below throttle_on_percent {}",
            q.throttle_off_percent, q.throttle_on_percent
        ),
    );
    r.relation(
        q.admit_percent.is_sorted_by(|a, b| a >= b),
        ["queue.admit_percent"; 2],
        "must not rise from critical over high and normal to low: the less urgent give way first",
    );
    r.relation(
        q.class_delay_ms.is_sorted(),
        ["queue.class_delay_ms"; 2],
        "must not fall from critical over high and normal to low: the urgent go first",
    );
    let share = |of: usize| (of as u128 * u128::from(q.instance_percent) / 100) as usize;
    r.relation(
        share(q.items_max) >= b.items_max,
        ["queue.items_max", "queue.instance_percent"],
        format!(
            "an instance's share, {} % of {} = {} messages, must hold one batch of {} \
             (batch.items_max); raise it or make batches smaller",
            q.instance_percent,
            q.items_max,
            share(q.items_max),
            b.items_max
        ),
    );
    let largest = b.bytes_max.max(s.conn.message_bytes_max);
    r.relation(
        share(q.bytes_max) >= largest,
        ["queue.bytes_max", "queue.instance_percent"],
        format!(
            "an instance's share, {} % of {} = {} bytes, must hold one batch (batch.bytes_max {}) \
             and one message (conn.message_bytes_max {}); raise it or make those smaller",
            q.instance_percent,
            q.bytes_max,
            share(q.bytes_max),
            b.bytes_max,
            s.conn.message_bytes_max
        ),
    );
}

fn other_relations(r: &mut Reader, s: &ShardSettings) {
    r.relation(
        s.retry.delay_ms <= s.retry.delay_max_ms,
        ["retry.delay_ms", "retry.delay_max_ms"],
        format!(
            "delay_ms {} must not be above delay_max_ms {}",
            s.retry.delay_ms, s.retry.delay_max_ms
        ),
    );
    r.relation(
        s.dedup.reply_bytes_max <= s.dedup.bytes_max,
        ["dedup.reply_bytes_max", "dedup.bytes_max"],
        format!(
            "reply_bytes_max {} must not be above bytes_max {}, which holds all of them",
            s.dedup.reply_bytes_max, s.dedup.bytes_max
        ),
    );
    r.relation(
        s.backend.backoff_ms <= s.backend.backoff_max_ms,
        ["backend.backoff_ms", "backend.backoff_max_ms"],
        format!(
            "backoff_ms {} must not be above backoff_max_ms {}",
            s.backend.backoff_ms, s.backend.backoff_max_ms
        ),
    );
}
