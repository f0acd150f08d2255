//! A trace of a shard's turns: what each step did, and how long it took. A shard records it for a
//! few seconds when control says so, and sends it in pieces. Bounded, and free while nobody asks.

use crate::stats::Counter;

/// Longest trace, in milliseconds: the request that asks for it is given up after ten seconds.
pub const MS_MAX: u64 = 5_000;
/// Most marks of a trace, 56 bytes each: some two seconds of a shard at full load. Then it ends.
pub const MARKS_MAX: usize = 100_000;
/// Marks after which a piece is sent: 112 KiB.
pub const PIECE_MARKS: usize = 2_000;
/// Steps shorter than this in which nothing was counted are not told: their time is that of the
/// next step. In nanoseconds; the trace's own look at the clocks is some half of it.
pub const STEP_NS_MIN: u64 = 2_000;

/// Counters whose growth is told with each step.
pub const COUNTED: [Counter; 9] = [
    Counter::Accepted,
    Counter::Receives,
    Counter::BytesIn,
    Counter::FramesIn,
    Counter::Calls,
    Counter::Dispatched,
    Counter::Answers,
    Counter::Sends,
    Counter::BytesOut,
];

/// A step of a turn; they follow each other without a gap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Between two turns: the tasks of the channels run, then the shard waits and sleeps.
    Wait,
    /// The tick, after a pulse.
    Tick,
    /// Handoffs of other shards, and commands of control.
    Messages,
    /// Sockets that became ready are listed.
    Ready,
    /// Clients are accepted, and connections resumed that were paused.
    Accept,
    /// Connections are read, and their messages decoded and queued.
    Read,
    /// TLS handshakes.
    Handshakes,
    /// Tokens are checked, and batches formed.
    Batches,
    /// Calls are given to the channels.
    Calls,
    /// Answers are written.
    Flush,
    /// Connections leave for other shards.
    Moves,
}

impl Step {
    /// Name in a trace.
    pub fn name(self) -> &'static str {
        match self {
            Step::Wait => "wait",
            Step::Tick => "tick",
            Step::Messages => "messages",
            Step::Ready => "ready",
            Step::Accept => "accept",
            Step::Read => "read",
            Step::Handshakes => "handshakes",
            Step::Batches => "batches",
            Step::Calls => "calls",
            Step::Flush => "flush",
            Step::Moves => "moves",
        }
    }
}

/// Time for a trace, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Nanos {
    /// Since the start of the process.
    pub passed: u64,
    /// In which the shard's thread ran.
    pub ran: u64,
}

/// The end of a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// The step that ended.
    pub step: Step,
    /// Nanoseconds from the begin of the trace to the end of the step.
    pub until_ns: u64,
    /// Nanoseconds of the step in which the thread ran.
    pub ran_ns: u32,
    /// Growth of each of [`COUNTED`] in the step.
    pub counts: [u32; COUNTED.len()],
}

/// A piece of a trace, as a shard sends it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Number of the trace.
    pub number: u64,
    /// Marks since the last piece.
    pub marks: Vec<Mark>,
    /// How the trace ended, if this is its last piece.
    pub end: Option<TraceEnd>,
}

/// How a trace ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TraceEnd {
    /// Its time was over.
    Complete,
    /// It has [`MARKS_MAX`] marks.
    Full,
}
