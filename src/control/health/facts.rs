//! Inputs and outputs of [`super::Health`].

use std::fmt;
use std::time::Duration;

use crate::ids::ShardId;

/// Result of a health check (grpc.health.v1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Check {
    /// The instance was asked, and answered SERVING. Thresholds apply.
    Succeeded,
    /// The instance was asked, and did not answer SERVING. Thresholds apply.
    Failed { why: String },
    /// The instance has no health service, or that does not know the server as a whole. Also to be
    /// sent when checks are switched off.
    NotImplemented,
    /// The instance answered a question of [`super::Health::take_question`], whatever it said.
    Answered,
    /// The instance did not answer such a question.
    Silent,
    /// The instance reported SERVING on its own (Watch). Holds at once.
    Serving,
    /// The instance reported on its own (Watch) that it does not serve. Holds at once.
    NotServing { why: String },
}

/// Calls of one shard to an instance within one tick of that shard. Sent when some failed, when the
/// first succeeded after a failure, and for all while the instance is on trial.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CallWindow {
    /// Shard that made the calls.
    pub shard: ShardId,
    /// Whether at least one call succeeded.
    pub ok: bool,
    /// Calls that failed in a row at the end: after the last success if there was one.
    pub failures: u32,
}

/// Reason of an ejection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// Calls failed in a row, all shards together.
    Failures(u32),
    /// A shard lost connections within `ejection.ms`.
    Losses {
        shard: ShardId,
        /// Number of lost connections.
        count: u32,
    },
    /// A call failed while the instance was on trial.
    CallOnTrial,
    /// A connection was lost while the instance was on trial.
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

/// A change of an instance's health, for the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HealthEvent {
    /// The instance gets no messages for a while.
    Ejected {
        why: Why,
        /// Time of the ejection.
        length: Duration,
        /// Number of ejections in a row, with this one.
        nth: u32,
    },
    /// The ejection is over, as the instance answers again (or it had to end early): the instance
    /// gets a few of its keys.
    OnTrial,
    /// The instance is trusted again, and gets its keys back step by step.
    Warming,
    /// The instance gets all its keys.
    Trusted,
    /// The instance went without an ejection for so long that the next will be as short as the
    /// first.
    Forgiven,
    /// The instance answers health checks for the first time, or again after it did not implement
    /// them.
    Checked,
    /// Health checks failed, or the instance reported so: it gets no messages.
    CheckedDown { why: String },
    /// The instance is up again: it warms up, unless it is still ejected.
    CheckedUp,
    /// The instance does not implement health checks any more; counts as healthy.
    Unchecked,
}

/// State of an instance in one word. The worst of several counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Health checks and calls succeed.
    Ok,
    /// Calls succeed; health checks are not implemented.
    Unchecked,
    Down,
    Ejected,
    /// After an ejection: the instance gets a few of its keys.
    Trial,
    /// After a trial: the instance gets its keys back step by step.
    Warming,
}

impl Standing {
    /// Name in `/health` and `/routing/explain`.
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
