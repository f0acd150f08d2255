//! Helpers of all tests: a gateway process, WebSocket clients, scripted services.

mod client;
mod gateway;
mod owners;
mod raw;
pub mod secure;
mod service;

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub use client::{Client, MessageIn};
pub use gateway::{Config, Finished, Gateway, run, under};
pub use owners::{named, owners};
pub use raw::{Raw, frame, header};
pub use service::{Action, Arrived, Instance, demo, ok};

/// Longest wait before a test gives up: far above what anything takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Polls until `look` returns something.
#[track_caller]
pub fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    eventually_within(PATIENCE, what, look)
}

/// Like [`eventually`], for events that take their time by a rule.
#[track_caller]
pub fn eventually_within<T>(
    patience: Duration,
    what: &str,
    mut look: impl FnMut() -> Option<T>,
) -> T {
    let until = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Connections that say nothing.
pub fn crowd(to: SocketAddr, count: usize) -> Vec<TcpStream> {
    // The soft limit of many systems is 1,024, which tests share that run at once.
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, most).expect("not above the hard limit");
    (0..count).map(|_| TcpStream::connect(to).expect("it listens")).collect()
}

/// Number of shards for a test that wants several: two, or one on a machine with one core.
pub fn several() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(2))
}
