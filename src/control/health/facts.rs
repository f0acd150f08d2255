//! What is told about an instance, and what is told of it: the words of [`super::Health`].

use std::fmt;
use std::time::Duration;

use crate::ids::ShardId;

/// What a health check (grpc.health.v1) of an instance found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Check {
    /// Asked, and it said SERVING. Thresholds apply.
    Succeeded,
    /// Asked, and there was no answer, or not SERVING. Thresholds apply.
    Failed {
        /// One line.
        why: String,
    },
    /// It has no health service, or that knows nothing of the server as a whole. Also to be told
    /// when checks are switched off.
    NotImplemented,
    /// It said SERVING by itself (Watch). Holds at once.
    Serving,
    /// It said by itself (Watch) that it does not serve. Holds at once.
    NotServing {
        /// One line.
        why: String,
    },
}

/// Calls of one shard to an instance within one tick of that shard. Sent when some failed, when the
/// first succeeded after a failure, and for all while the instance is on trial.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CallWindow {
    /// Whose calls.
    pub shard: ShardId,
    /// Whether one succeeded.
    pub ok: bool,
    /// Calls that failed in a row at the end: after the last success if there was one.
    pub failures: u32,
}

/// Why an instance was ejected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// Calls failed in a row, all shards together.
    Failures(u32),
    /// One shard lost connections within `ejection.ms`.
    Losses {
        /// Which shard.
        shard: ShardId,
        /// How many.
        count: u32,
    },
    /// A call failed while it was on trial.
    CallOnTrial,
    /// A connection was lost while it was on trial.
    LossOnTrial,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Failures(count) => write!(f, "{count} calls in a row failed"),
            Why::Losses { shard, count } => write!(f, "shard {shard} lost {count} connections"),
            Why::CallOnTrial => f.write_str("a call failed while it was on trial"),
            Why::LossOnTrial => f.write_str("a connection was lost while it was on trial"),
        }
    }
}

/// What changed about an instance. For the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HealthEvent {
    /// No messages for a while.
    Ejected {
        /// Why.
        why: Why,
        /// How long.
        length: Duration,
        /// How often in a row it has been.
        nth: u32,
    },
    /// Its ejection is over (or made room for): it gets a few of its keys.
    OnTrial,
    /// Trusted again, but gets its keys back step by step.
    Warming,
    /// Gets all its keys.
    Trusted,
    /// Long enough without an ejection that the next is as short as the first.
    Forgiven,
    /// Answers health checks for the first time, or again after it did not implement them.
    Checked,
    /// Health checks failed or it said so: no messages.
    CheckedDown {
        /// One line.
        why: String,
    },
    /// Was down, is up: warms up, unless it is still ejected.
    CheckedUp,
    /// Was checked, does not implement health checks any more; counts as healthy.
    Unchecked,
}

impl HealthEvent {
    /// Word in the log.
    pub fn name(&self) -> &'static str {
        match self {
            HealthEvent::Ejected { .. } => "ejected",
            HealthEvent::OnTrial => "on_trial",
            HealthEvent::Warming => "warming",
            HealthEvent::Trusted => "trusted",
            HealthEvent::Forgiven => "forgiven",
            HealthEvent::Checked => "checked",
            HealthEvent::CheckedDown { .. } => "checked_down",
            HealthEvent::CheckedUp => "checked_up",
            HealthEvent::Unchecked => "unchecked",
        }
    }
}

/// How an instance stands, in a word. What is worst counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Checked and trusted.
    Ok,
    /// Trusted; nobody could check it.
    Unchecked,
    /// Health checks say it does not serve.
    Down,
    /// Its calls failed.
    Ejected,
    /// Was ejected, gets a few of its keys.
    Trial,
    /// Gets its keys back.
    Warming,
}

impl Standing {
    /// Word in `/health` and `/routing/explain`.
    pub fn name(self) -> &'static str {
        match self {
            Standing::Ok => "ok",
            Standing::Unchecked => "unchecked",
            Standing::Down => "down",
            Standing::Ejected => "ejected",
            Standing::Trial => "trial",
            Standing::Warming => "warming",
        }
    }
}
