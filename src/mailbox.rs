//! What control and shards say to each other, and shards among themselves, over the lanes of
//! [`crate::lanes`].

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use crate::config::snapshot::Snapshot;
use crate::ids::ShardId;
use crate::stats::Report;

/// Control to one shard.
#[derive(Debug)]
pub enum Command {
    /// Route by this snapshot from now on.
    Adopt(Arc<Snapshot>),
    /// Send a [`ShardEvent::Report`].
    Report,
    /// Stop accepting and taking messages; answer what was read; close with 1001; then end. What is
    /// not answered after `grace` is answered with an error.
    Drain {
        /// Time for what is in flight.
        grace: Duration,
    },
    /// End at once.
    Abort,
}

/// A shard to control.
#[derive(Debug)]
pub enum ShardEvent {
    /// The shard serves.
    Ready(ShardId),
    /// The answer to [`Command::Report`].
    Report(Box<Report>),
    /// The shard ended in order: messages left without their answer by it.
    Stopped {
        /// Who.
        shard: ShardId,
        /// Messages that got an error instead of their service's answer because of the stop.
        cut_off: u64,
    },
    /// The shard could not go on.
    Failed {
        /// Who.
        shard: ShardId,
        /// One line: what, and what to do.
        why: String,
    },
}

/// One shard to another: one way, one hop, never awaited.
#[derive(Debug)]
pub enum Handoff {
    /// A client that was accepted by a shard without room for it; nothing was read yet. Goes by a
    /// *submit* lane: if that refuses it, the sender answers 503.
    Client {
        /// Its socket.
        stream: TcpStream,
        /// Its address.
        peer: SocketAddr,
    },
}
