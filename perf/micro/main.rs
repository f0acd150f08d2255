//! Micro benchmarks of what a message passes through, each alone, and of a whole engine turn.
//!
//! Run with `cargo bench --bench micro [-- NAME]`. Figures are for `Elements`: one message each.

mod rig;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};

use rig::{BATCH, TURN, Turn};
use shardgate::config::settings::{CacheSettings, DedupSettings};
use shardgate::engine::dispatcher::batch::BodyWriter;
use shardgate::engine::dispatcher::dedup::{DedupWindow, Owner, StoredReply, fingerprint};
use shardgate::engine::dispatcher::ordering::Ordering;
use shardgate::engine::dispatcher::queue::{InstanceQueue, Requests};
use shardgate::engine::dispatcher::route_cache::{RouteCache, RouteKey};
use shardgate::ids::{InstanceId, MsgKey, TenantId, Ticket};
use shardgate::message::{Micros, ServerMessage};
use shardgate::routing::affinity_hash;
use shardgate::wire::backend::read_responses;
use shardgate::wire::frames::{Decoder, Flow, FrameEvent, FrameLimits};
use shardgate::wire::{json, protobuf};

/// The gateway's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const LIMITS: FrameLimits = FrameLimits { message_bytes_max: 64 << 10, fragments_max: 64 };

/// 100 frames in one receive, decoded down to the message.
fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(BATCH as u64));
    // A mask of zeros costs what any costs, and leaves the buffer as it is for the next round.
    let mut text: Vec<u8> = (0..BATCH as u64).flat_map(|n| rig::json_frame(n + 1)).collect();
    group.bench_function("frame_and_json", |b| {
        b.iter(|| {
            let mut decoder = Decoder::default();
            let fed = decoder.feed(&LIMITS, &mut text, |event| {
                if let FrameEvent::Text(text) = event {
                    black_box(json::decode(text).expect("a good message"));
                }
                Flow::Continue
            });
            assert_eq!(fed.expect("good frames").frames, BATCH as u32);
        });
    });
    let mut binary: Vec<u8> = (0..BATCH as u64).flat_map(|n| rig::protobuf_frame(n + 1)).collect();
    group.bench_function("frame_and_protobuf", |b| {
        b.iter(|| {
            let mut decoder = Decoder::default();
            let fed = decoder.feed(&LIMITS, &mut binary, |event| {
                if let FrameEvent::Binary(bytes) = event {
                    black_box(protobuf::decode(bytes).expect("a good message"));
                }
                Flow::Continue
            });
            assert_eq!(fed.expect("good frames").frames, BATCH as u32);
        });
    });
    group.finish();
}

/// One reply of 64 bytes, with its frame header, into an outbox that has room.
fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode");
    group.throughput(Throughput::Elements(1));
    let payload = rig::payload();
    let reply =
        ServerMessage { msg_id: 1001, seq: 123_456, payload: &payload, ..Default::default() };
    let mut out = Vec::with_capacity(4 << 10);
    group.bench_function("json", |b| {
        b.iter(|| {
            out.clear();
            json::encode(&mut out, black_box(&reply));
        });
    });
    group.bench_function("protobuf", |b| {
        b.iter(|| {
            out.clear();
            protobuf::encode(&mut out, black_box(&reply));
        });
    });
    group.finish();
}

/// 100 messages of 100 streams: into the queue, and out in their order.
fn queue(c: &mut Criterion) {
    let mut group = c.benchmark_group("queue");
    group.throughput(Throughput::Elements(BATCH as u64));
    let mut messages = Requests::with_capacity_max(1 << 16);
    let mut streams = Ordering::new(1 << 16);
    let mut queue = InstanceQueue::new(InstanceId(0), [0, 5_000, 50_000, 500_000]);
    let (instance, ticket) = (InstanceId(0), Ticket::new(1, 0));
    let mut keys: Vec<MsgKey> = Vec::with_capacity(BATCH);
    group.bench_function("push_and_take", |b| {
        b.iter(|| {
            for n in 0..BATCH {
                let key = messages.insert_with(|message| rig::fill(message, n as u64));
                let name = rig::stream_name(n as u64);
                let stream = streams.open(name, instance, 0);
                messages.get_mut(key).expect("just inserted").stream = Some(stream);
                queue.push(key, &mut messages, &mut streams);
            }
            while let Some(key) = queue.take(ticket, &mut messages, &mut streams) {
                keys.push(key);
            }
            assert_eq!(keys.len(), BATCH);
            for key in keys.drain(..) {
                let stream = messages.get(key).and_then(|m| m.stream).expect("all have one");
                messages.release(key);
                streams.get_mut(stream).busy = None;
                streams.close_if_idle(stream);
            }
        });
    });
    group.finish();
}

/// From an id to an instance: 10,000 users, three instances.
fn router(c: &mut Criterion) {
    let mut group = c.benchmark_group("router");
    group.throughput(Throughput::Elements(1));
    let snapshot = rig::snapshot(3);
    let users: Vec<u64> =
        (0..10_000_u32).map(|n| affinity_hash(TenantId(0), &n.to_le_bytes())).collect();
    let mut next = 0;
    let mut user = move || {
        next = (next + 1) % users.len();
        users[next]
    };
    group.bench_function("route", |b| {
        b.iter(|| black_box(snapshot.route(black_box(1001))));
    });
    let ring = &snapshot.services[0].ring;
    group.bench_function("ring_pick", |b| b.iter(|| black_box(ring.pick(user()))));
    let mut cache = RouteCache::new(&CacheSettings::default(), 1);
    let service = snapshot.routes[0].service;
    let key = |hash| RouteKey { tenant: TenantId(0), service, hash };
    for _ in 0..10_000 {
        let hash = user();
        let owner = ring.pick(hash).expect("three instances");
        cache.insert(key(hash), owner, Micros(1));
    }
    group.bench_function("cache_hit", |b| {
        b.iter(|| black_box(cache.get(&key(user()), Micros(2)).expect("inserted above")));
    });
    group.finish();
}

/// The body of a batch of 100 messages of 64 bytes.
fn batch(c: &mut Criterion) {
    let mut group = c.benchmark_group("batch");
    group.throughput(Throughput::Elements(BATCH as u64));
    let mut messages = Requests::with_capacity_max(BATCH);
    let keys: Vec<MsgKey> =
        (0..BATCH as u64).map(|n| messages.insert_with(|message| rig::fill(message, n))).collect();
    let origin = rig::origin();
    let mut writer = BodyWriter::default();
    group.bench_function("write_body", |b| {
        b.iter(|| {
            writer.begin_batch(&origin);
            for &key in &keys {
                let message = messages.get(key).expect("inserted above");
                writer.push(key, message, &origin, Micros(2_000_000));
            }
            black_box(writer.finish());
        });
    });
    let response = rig::responses(keys.iter().map(|key| key.0), &rig::payload());
    group.bench_function("read_responses", |b| {
        b.iter(|| {
            let mut seen = 0;
            read_responses(black_box(&response), |item| seen += item.payload.len())
                .expect("a good response");
            seen
        });
    });
    group.finish();
}

/// A new id, and its answer remembered, with 10,000 in the window.
fn dedup(c: &mut Criterion) {
    let mut group = c.benchmark_group("dedup");
    group.throughput(Throughput::Elements(1));
    let settings = DedupSettings { window_ms: 100, ..DedupSettings::default() };
    let mut window = DedupWindow::new(&settings, 1);
    let payload = rig::payload();
    let reply = StoredReply {
        status: 0,
        reason: None,
        message: "".into(),
        payload: payload.as_slice().into(),
        is_bytes: false,
        retry_after_ms: 0,
    };
    let mut n = 0_u64;
    let mut text = String::new();
    group.bench_function("begin_and_finish", |b| {
        b.iter(|| {
            n += 1;
            let now = Micros(n * 10);
            text.clear();
            use std::fmt::Write;
            let _ = write!(text, "{n:032x}");
            let id = window.id(TenantId(0), Owner::User("u"), &text, fingerprint(1001, &payload));
            let key = window.begin(&id, now).expect("there is room");
            window.finish(key, Some(reply.clone()), now)
        });
    });
    group.finish();
}

/// 64 connections, a message each: bytes in -> call out -> outcome in -> answers taken. Only the
/// engine's part of it is timed.
fn turn(c: &mut Criterion) {
    let mut group = c.benchmark_group("engine");
    group.throughput(Throughput::Elements(TURN as u64));
    for (name, with_id) in [("turn_of_64", false), ("turn_of_64_with_ids", true)] {
        let mut turn = Turn::new(with_id);
        group.bench_function(name, |b| {
            b.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for _ in 0..rounds {
                    turn.prepare();
                    let started = Instant::now();
                    turn.ask();
                    spent += started.elapsed();
                    turn.serve();
                    let started = Instant::now();
                    turn.answer();
                    spent += started.elapsed();
                    turn.check();
                }
                spent
            });
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(50)
        .without_plots()
        .configure_from_args();
    for bench in [decode, encode, queue, router, batch, dedup, turn] {
        bench(&mut criterion);
    }
    criterion.final_summary();
}
