//! All that the threads of a load and the one that waits for them know of each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use super::tally::Tally;

/// Time from the last thread that is ready to the load: longer than any of them sleeps.
const TOGETHER_NS: u64 = 100_000_000;

/// Progress of one thread.
#[derive(Debug, Default)]
struct Progress {
    is_ready: AtomicBool,
    connected: AtomicU64,
    ok: AtomicU64,
    refused: AtomicU64,
}

/// Progress of all threads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// Connections that are ready.
    pub connected: u64,
    /// Messages that were answered with success, and count.
    pub ok: u64,
    /// Messages that were answered with an error, and count.
    pub refused: u64,
}

/// State between the threads.
#[derive(Debug)]
pub struct Shared {
    /// Beginning of the run's time.
    pub clock: Instant,
    stop: Arc<AtomicBool>,
    /// Nanosecond at which the load begins; 0 = not known yet.
    start: AtomicU64,
    threads: Vec<Progress>,
}

impl Shared {
    /// The state of so many threads, which `stop` ends early.
    pub fn new(threads: usize, stop: Arc<AtomicBool>) -> Self {
        let threads = (0..threads).map(|_| Progress::default()).collect();
        Self { clock: Instant::now(), stop, start: AtomicU64::new(0), threads }
    }

    /// Whether the run is to end early.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Ends the run early.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Nanosecond of the run at which the load begins.
    pub fn start(&self) -> Option<u64> {
        Some(self.start.load(Ordering::Acquire)).filter(|start| *start > 0)
    }

    /// Notes that a thread has tried all its connections, of which `connected` are there; the last
    /// thread lets the load begin.
    pub fn is_ready(&self, thread: usize, connected: usize) {
        let own = &self.threads[thread];
        own.connected.store(connected as u64, Ordering::Relaxed);
        own.is_ready.store(true, Ordering::Release);
        if self.threads.iter().all(|one| one.is_ready.load(Ordering::Acquire)) {
            let now = self.clock.elapsed().as_nanos() as u64;
            let start = now + if self.threads.len() > 1 { TOGETHER_NS } else { 0 };
            // The first of those who see it decides.
            let _ = self.start.compare_exchange(0, start, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// Tells the progress of a thread.
    pub fn tell(&self, thread: usize, tally: &Tally, connected: usize) {
        let own = &self.threads[thread];
        own.connected.store(connected as u64, Ordering::Relaxed);
        own.ok.store(tally.ok, Ordering::Relaxed);
        own.refused.store(tally.refused(), Ordering::Relaxed);
    }

    /// Progress so far.
    pub fn seen(&self) -> Seen {
        let sum = |of: fn(&Progress) -> &AtomicU64| {
            self.threads.iter().map(|one| of(one).load(Ordering::Relaxed)).sum()
        };
        Seen { connected: sum(|p| &p.connected), ok: sum(|p| &p.ok), refused: sum(|p| &p.refused) }
    }
}
