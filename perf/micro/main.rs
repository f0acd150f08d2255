//! Micro benchmarks of what a message passes through, each alone, and of a whole engine turn.
//!
//! Run with `cargo bench --bench micro [-- NAME]`. Figures are for `Elements`: one message each, if
//! nothing else is said.

#[path = "../between.rs"]
mod between;
#[path = "../dispatch.rs"]
mod dispatch;
#[path = "../rig.rs"]
mod rig;

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};

use between::{Lane, Publish};
use dispatch::{Body, Dedup, Queue, Router};
use rig::frames::Talk;
use rig::{BATCH, Decode, Encode, Responses, TURN, Turn};

/// The allocator of the gateway.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(BATCH as u64));
    let mut rig = Decode::new();
    group.bench_function("frame_and_json", |b| b.iter(|| rig.json()));
    group.bench_function("frame_and_protobuf", |b| b.iter(|| rig.protobuf()));
    group.finish();
}

fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode");
    group.throughput(Throughput::Elements(1));
    let mut rig = Encode::new();
    group.bench_function("json", |b| b.iter(|| rig.json()));
    group.bench_function("protobuf", |b| b.iter(|| rig.protobuf()));
    group.finish();
}

fn queue(c: &mut Criterion) {
    let mut group = c.benchmark_group("queue");
    group.throughput(Throughput::Elements(BATCH as u64));
    let mut rig = Queue::new();
    group.bench_function("push_and_take", |b| b.iter(|| rig.push_and_take()));
    group.bench_function("share_and_take", |b| b.iter(|| rig.share_and_take()));
    group.finish();
}

fn router(c: &mut Criterion) {
    let mut group = c.benchmark_group("router");
    group.throughput(Throughput::Elements(1));
    let mut rig = Router::new();
    group.bench_function("route", |b| b.iter(|| rig.route()));
    group.bench_function("ring_pick", |b| b.iter(|| rig.ring_pick()));
    group.bench_function("cache_hit", |b| b.iter(|| rig.cache_hit()));
    group.finish();
}

fn batch(c: &mut Criterion) {
    let mut group = c.benchmark_group("batch");
    group.throughput(Throughput::Elements(BATCH as u64));
    let (mut body, mut responses) = (Body::new(), Responses::new());
    group.bench_function("write_body", |b| b.iter(|| body.write_body()));
    group.bench_function("read_responses", |b| b.iter(|| responses.read_responses()));
    // Its messages are not looked at yet: the figure is for the whole answer.
    group.throughput(Throughput::Elements(1));
    group.bench_function("assemble_response", |b| b.iter(|| responses.assemble_response()));
    group.finish();
}

fn dedup(c: &mut Criterion) {
    let mut group = c.benchmark_group("dedup");
    group.throughput(Throughput::Elements(1));
    let mut rig = Dedup::new();
    group.bench_function("begin_and_finish", |b| b.iter(|| rig.begin_and_finish()));
    group.finish();
}

fn lane(c: &mut Criterion) {
    let mut group = c.benchmark_group("lane");
    group.throughput(Throughput::Elements(1));
    let mut rig = Lane::new();
    group.bench_function("send_and_receive", |b| b.iter(|| rig.send_and_receive()));
    group.bench_function("look", |b| b.iter(|| rig.look()));
    group.finish();
}

/// A state that control publishes, as one shard puts it in force.
fn publish(c: &mut Criterion) {
    let mut group = c.benchmark_group("publish");
    for instances in [10, 100, 1_000] {
        let mut rig = Publish::new(instances);
        group.bench_function(format!("{instances}_instances"), |b| b.iter(|| rig.apply()));
    }
    group.finish();
}

/// 64 connections, a message each: bytes in -> call out -> outcome in -> answers taken. Only the
/// engine's part of it is timed.
fn turn(c: &mut Criterion) {
    let mut group = c.benchmark_group("engine");
    group.throughput(Throughput::Elements(TURN as u64));
    for (name, talk) in [("turn_of_64", Talk::JSON), ("turn_of_64_with_ids", Talk::JSON_WITH_IDS)] {
        let mut turn = Turn::new(talk, 1);
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
    for bench in [decode, encode, queue, router, batch, dedup, lane, publish, turn] {
        bench(&mut criterion);
    }
    criterion.final_summary();
}
