//! Reasons why the gateway ends, and its exit codes.

/// Reason why [`super::run`] returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ExitReason {
    /// A signal; every shard stopped in order.
    Stopped,
    /// A signal; every shard stopped, but the grace ended before every message had the answer of
    /// its service: some got an error instead.
    CutOff,
    /// A second signal: the shards were told to abort, and not waited for.
    Forced,
    /// A shard failed; the others were drained.
    ShardFailed,
    /// A shard did not stop in time.
    Stuck,
    /// The control thread could not start (no runtime, no signal handlers, no socket).
    ControlFailed,
}

impl ExitReason {
    /// Exit code of the process.
    pub fn code(self) -> u8 {
        match self {
            ExitReason::Stopped => 0,
            ExitReason::CutOff
            | ExitReason::Forced
            | ExitReason::ShardFailed
            | ExitReason::Stuck
            | ExitReason::ControlFailed => 1,
        }
    }
}
