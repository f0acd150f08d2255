//! The pulse: a plain thread that wakes every shard each 10 ms and lets it record how late it
//! answered. It is the shards' clock tick, their stall histogram, and the rescue from an executor
//! that went to sleep with work to do (glommio 0.9 does that).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::lanes::Doorbell;
use crate::limits;
use crate::message::Micros;

/// One shard's end of the pulse.
#[derive(Debug)]
pub struct Pulse {
    bell: Arc<Doorbell>,
    /// When the unanswered pulse was sent, in microseconds since boot; 0 = it was answered.
    sent: AtomicU64,
}

impl Pulse {
    /// For the shard that `bell` wakes.
    pub fn new(bell: Arc<Doorbell>) -> Arc<Self> {
        Arc::new(Self { bell, sent: AtomicU64::new(0) })
    }

    /// The shard answers: how late it is, if a pulse was sent since it last answered.
    pub fn answer(&self, now: Micros) -> Option<u64> {
        match self.sent.swap(0, Ordering::AcqRel) {
            0 => None,
            sent => Some(now.since(Micros(sent))),
        }
    }

    fn send(&self, now: Micros) {
        // One that is not answered yet keeps its time: the shard's lateness counts from there.
        let _ = self.sent.compare_exchange(0, now.0.max(1), Ordering::AcqRel, Ordering::Relaxed);
        self.bell.ring();
    }
}

/// The running thread.
#[derive(Debug)]
pub struct PulseThread {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl PulseThread {
    /// Starts it. `boot` is the zero of [`Micros`].
    pub fn start(shards: Vec<Arc<Pulse>>, boot: Instant) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("pulse".into()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(limits::TICK_MS));
                let now = Micros(boot.elapsed().as_micros() as u64);
                shards.iter().for_each(|pulse| pulse.send(now));
            }
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends it; at most one tick later.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the pulse thread does not panic");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lateness_counts_from_the_first_unanswered_pulse() {
        let pulse = Pulse::new(Doorbell::new());
        assert_eq!(pulse.answer(Micros(5)), None);
        pulse.send(Micros(10));
        pulse.send(Micros(20));
        assert_eq!(pulse.answer(Micros(25)), Some(15));
        assert_eq!(pulse.answer(Micros(26)), None);
    }
}
