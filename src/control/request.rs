//! Requests to control: from signals and from the admin endpoint.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::active_config::ReloadReport;
use super::dump::DumpFiles;
use super::gathering::Overview;
use super::inspections::QueryResult;
use super::live::Reading;
use super::traces::TraceReply;
use crate::config::Problem;
use crate::ids::ShardId;
use crate::inspect;

/// Admin connections at once, and so requests that wait for control; more connections wait to be
/// accepted.
pub const REQUESTS_MAX: usize = 64;

/// A request; the sender in it takes the answer.
#[derive(Debug)]
pub enum ControlRequest {
    /// The state of everything. Requests that come while shards are asked share one round.
    Gather(oneshot::Sender<Arc<Overview>>),
    /// The rows after the one of this number, and the state of everything, by samples that are
    /// there: no shard is asked.
    Live(u64, oneshot::Sender<Reading>),
    /// Read the files again. Answered when every shard has been sent the result.
    Reload(oneshot::Sender<Result<ReloadReport, Vec<Problem>>>),
    /// Whether every shard serves and no stop is under way.
    Ready(oneshot::Sender<bool>),
    /// Put a query to all shards; refused (the sender is dropped) while too many are under way.
    Inspect(inspect::Query, oneshot::Sender<QueryResult>),
    /// Record a trace of the turns of a shard.
    Trace { shard: ShardId, lasts: Duration, reply: TraceReply },
    /// Write the state of everything to files; see [`super::dump`].
    Dump(oneshot::Sender<io::Result<DumpFiles>>),
    /// Give an instance no new messages, or give it messages again. Answered with whether an
    /// instance has that name.
    DrainInstance {
        /// Name of the instance.
        name: String,
        /// Whether it drains from now on.
        on: bool,
        done: oneshot::Sender<bool>,
    },
    /// Stop in order, for this reason; ignored while a stop is under way.
    Drain(&'static str),
    /// Stop in order, because of this signal; the second time at once.
    Stop(&'static str),
}
