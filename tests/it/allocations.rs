//! A message costs no allocation once its tables and buffers have their size: promise 5 by its
//! other end, as whatever is allocated for each message grows with them.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use rig::frames::{Talk, payload, protobuf_frame, text_frame};
use rig::{Decode, Encode, Responses, TURN, Turn};

/// Steps of a message, as the benches take them.
#[path = "../../perf/rig.rs"]
mod rig;

/// A client whose messages are protobuf.
const PROTOBUF: Talk =
    Talk { subprotocol: "shardgate.v1.protobuf", frame: protobuf_frame, ..Talk::JSON };
/// A client that made its session resumable, and confirms each answer with its next message.
const RESUMABLE: Talk = Talk { frame: confirming_frame, opening: resume_frame, ..Talk::JSON };

fn resume_frame() -> Vec<u8> {
    text_frame(r#"{"type":"resume"}"#)
}

/// The message `seq` of a session whose messages begin with 1: its answer has the offset `seq`.
fn confirming_frame(seq: u64) -> Vec<u8> {
    let payload = String::from_utf8(payload()).expect("ASCII");
    let ack = seq - 1;
    text_frame(&format!(r#"{{"msg_id":1001,"seq":{seq},"ack":{ack},"payload":{payload}}}"#))
}

thread_local! {
    /// Allocations of this thread.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, which also counts.
struct Counting;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations of `work`.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

/// One turn, until everything is answered: allocations of the engine, and its calls.
fn turn(turn: &mut Turn) -> [u64; 2] {
    turn.prepare();
    let mut n = allocations(|| turn.ask());
    let mut calls = 0;
    // A call carries 100 messages at most.
    for _ in 0..TURN {
        calls += turn.serve();
        n += allocations(|| turn.answer());
    }
    turn.check();
    [n, calls]
}

/// Allocations, calls and messages of twenty turns after so many others, with `each` messages of
/// each client.
fn steady(talk: Talk, each: usize, warm: usize) -> [u64; 3] {
    let mut rig = Turn::new(talk, each);
    for _ in 0..warm {
        turn(&mut rig);
    }
    let turns = (0..20).map(|_| turn(&mut rig));
    let [n, calls] = turns.fold([0; 2], |[n, calls], [more, made]| [n + more, calls + made]);
    [n, calls, (20 * TURN * each) as u64]
}

/// A call has a list of the pieces of its body, and a few allocations for these. With 16 messages
/// of each client more wait than may leave, so the queue is shared out between their owners, and
/// calls are nearly full.
#[test]
fn a_message_through_the_engine_costs_no_allocation() {
    for talk in [Talk::JSON, PROTOBUF] {
        let name = talk.subprotocol;
        for each in [1, 16] {
            let [n, calls, messages] = steady(talk, each, 50);
            assert!(n <= 4 * calls, "{name}, {each} each: {n} for {messages} in {calls} calls");
        }
    }
}

/// The window of a session has room for a small answer, which leaves it with the next message.
#[test]
fn an_answer_that_is_kept_until_it_is_confirmed_costs_no_allocation() {
    let [n, calls, messages] = steady(RESUMABLE, 1, 50);
    assert!(n <= 2 * calls, "{n} for {messages} in {calls} calls");
}

/// An id is kept for as long as it is remembered, 500 turns here, with its answer and the answer's
/// payload.
#[test]
fn a_remembered_id_costs_its_own_memory_and_no_more() {
    let [n, calls, messages] = steady(Talk::JSON_WITH_IDS, 1, 600);
    assert!(n <= 3 * messages + 2 * calls, "{n} for {messages} in {calls} calls");
}

#[test]
fn codecs_and_framing_cost_no_allocation() {
    let (mut decode, mut encode, mut answer) = (Decode::new(), Encode::new(), Responses::new());
    let mut steps = || {
        decode.json();
        decode.protobuf();
        encode.json();
        encode.protobuf();
        answer.read_responses();
        answer.assemble_response();
    };
    steps();
    assert_eq!(allocations(steps), 0);
}
