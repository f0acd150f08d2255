//! Instructions of the steps of a message, counted by valgrind: what `micro` times, and signing in
//! and TLS besides. They are the same on a busy machine as on a quiet one. `perf/count` runs it and
//! holds it against `perf/instructions.toml`.
//!
//! Every step has run many times before the one that is counted, so that tables and buffers have
//! their size; a turn of the engine is counted in its two halves.

// The macros make public items.
#![allow(missing_docs)]

#[path = "../crypto.rs"]
mod crypto;
#[path = "../dispatch.rs"]
mod dispatch;
#[path = "../rig.rs"]
mod rig;

use gungraun::prelude::*;

use crypto::{Records, Tokens};
use dispatch::{Body, Dedup, Queue, Router};
use rig::frames::Talk;
use rig::{BATCH, Decode, Encode, Responses, Turn};

/// The allocator of the gateway.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs of a step before the one that is counted.
const WARM: usize = 100;

/// A rig on which `step` has run often.
fn warm<R>(mut rig: R, step: fn(&mut R)) -> R {
    (0..WARM).for_each(|_| step(&mut rig));
    rig
}

fn warm_turn(talk: Talk) -> Turn {
    let round = |turn: &mut Turn| {
        turn.prepare();
        turn.ask();
        turn.serve();
        turn.answer();
        turn.check();
    };
    warm(Turn::new(talk, 1), round)
}

fn asking(talk: Talk) -> Turn {
    let mut turn = warm_turn(talk);
    turn.prepare();
    turn
}

fn answering(talk: Talk) -> Turn {
    let mut turn = asking(talk);
    turn.ask();
    turn.serve();
    turn
}

/// A bench that runs a step of a rig so many times, and gives the rig back so that its end is not
/// counted.
macro_rules! step {
    ($name:ident, $rig:ident :: $step:ident, $times:expr) => {
        #[library_benchmark]
        #[bench::steps(warm($rig::new(), $rig::$step))]
        fn $name(mut rig: $rig) -> $rig {
            for _ in 0..$times {
                rig.$step();
            }
            rig
        }
    };
}

// A hundred messages each, as some steps take a hundred at once.
step!(decode_json, Decode::json, 1);
step!(decode_protobuf, Decode::protobuf, 1);
step!(encode_json, Encode::json, BATCH);
step!(encode_protobuf, Encode::protobuf, BATCH);
step!(queue_push_and_take, Queue::push_and_take, 1);
step!(router_route, Router::route, BATCH);
step!(router_ring_pick, Router::ring_pick, BATCH);
step!(router_cache_hit, Router::cache_hit, BATCH);
step!(batch_write_body, Body::write_body, 1);
step!(batch_read_responses, Responses::read_responses, 1);
step!(dedup_begin_and_finish, Dedup::begin_and_finish, BATCH);
step!(queue_share_and_take, Queue::share_and_take, 1);
step!(batch_assemble_response, Responses::assemble_response, BATCH);
step!(tls_encrypt, Records::encrypt, 1);
// One token each: a signature is the larger part by far.
step!(sign_in_hs256, Tokens::hs256, 1);
step!(sign_in_eddsa, Tokens::eddsa, 1);

fn received() -> Records {
    let round = |records: &mut Records| {
        records.prepare();
        records.decrypt();
    };
    let mut records = warm(Records::new(), round);
    records.prepare();
    records
}

#[library_benchmark]
#[bench::steps(received())]
fn tls_decrypt(mut records: Records) -> Records {
    records.decrypt();
    records
}

#[library_benchmark]
#[bench::plain(asking(Talk::JSON))]
#[bench::with_ids(asking(Talk::JSON_WITH_IDS))]
fn turn_ask(mut turn: Turn) -> Turn {
    turn.ask();
    turn
}

#[library_benchmark]
#[bench::plain(answering(Talk::JSON))]
#[bench::with_ids(answering(Talk::JSON_WITH_IDS))]
fn turn_answer(mut turn: Turn) -> Turn {
    turn.answer();
    turn.check();
    turn
}

library_benchmark_group!(
    name = steps,
    benchmarks = [
        decode_json,
        decode_protobuf,
        encode_json,
        encode_protobuf,
        queue_push_and_take,
        router_route,
        router_ring_pick,
        router_cache_hit,
        batch_write_body,
        batch_read_responses,
        dedup_begin_and_finish,
        turn_ask,
        turn_answer,
        queue_share_and_take,
        batch_assemble_response,
        tls_encrypt,
        tls_decrypt,
        sign_in_hs256,
        sign_in_eddsa
    ]
);

/// The memory functions of the C library that a processor without AVX2 and fast string moves gets:
/// with those, a copy by `rep movsb` counts once a byte, and the choice is the host's.
const TUNABLES: &str = "glibc.cpu.hwcaps=-AVX2,-AVX512F,-ERMS,-FSRM";

main!(
    config = LibraryBenchmarkConfig::default().env("GLIBC_TUNABLES", TUNABLES),
    library_benchmark_groups = steps
);
