//! The pulse: a plain thread that wakes every shard each 10 ms and measures how late the shard
//! answers. The pulse is the shards' clock tick, their stall histogram, and the rescue from an
//! executor that went to sleep with work to do (glommio 0.9 does that).
//!
//! A shard that blocks in its set is woken by its bell, and one that is busy looks by itself. Only
//! one that has not answered the pulse before is woken by its waker, too.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::lanes::Doorbell;
use crate::limits;
use crate::message::Micros;

/// Lateness from which a shard is woken only once a second: each wake-up that it does not take
/// holds a reference of its task, of which glommio allows 32,767.
const EAGER_US: u64 = 60_000_000;

/// The pulse of one shard.
///
/// The waker of the net loop is kept for good: an executor that goes back to sleep before it has
/// run the task is woken once more by the next pulse.
#[derive(Debug)]
pub(crate) struct Pulse {
    bell: Arc<Doorbell>,
    waker: OnceLock<Waker>,
    /// Time of the unanswered pulse, in microseconds since boot; 0 = it was answered.
    sent: AtomicU64,
}

impl Pulse {
    /// The pulse of the shard with this bell.
    pub(crate) fn new(bell: Arc<Doorbell>) -> Self {
        Self { bell, waker: OnceLock::new(), sent: AtomicU64::new(0) }
    }

    /// Sets the task to be woken. Only the first call counts.
    pub(crate) fn set_waker(&self, waker: &Waker) {
        self.waker.get_or_init(|| waker.clone());
    }

    /// Whether a pulse waits for its answer.
    pub(crate) fn is_due(&self) -> bool {
        self.sent.load(Ordering::SeqCst) != 0
    }

    /// Answers the pulse: how late the shard is, in microseconds, if one was sent since the last
    /// answer.
    pub(crate) fn answer(&self, now: Micros) -> Option<u64> {
        match self.sent.swap(0, Ordering::SeqCst) {
            0 => None,
            sent => Some(now.since(Micros(sent))),
        }
    }

    fn send(&self, now: Micros) {
        // A pulse that is not answered yet keeps its time: the lateness counts from there.
        let sent = self.sent.compare_exchange(0, now.0.max(1), Ordering::SeqCst, Ordering::SeqCst);
        self.bell.wake();
        let late_us = now.since(Micros(sent.unwrap_or_else(|since| since)));
        let tick_us = limits::TICK_MS * 1000;
        if let Some(waker) = self.waker.get()
            && sent.is_err()
            && (late_us < EAGER_US || late_us % 1_000_000 < tick_us)
        {
            waker.wake_by_ref();
        }
    }
}

/// The thread that sends the pulse of all shards.
#[derive(Debug)]
pub(crate) struct PulseThread {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl PulseThread {
    /// Starts the thread. `boot` is the time at which [`Micros`] is zero.
    pub(crate) fn start(shards: Vec<Arc<Pulse>>, boot: Instant) -> std::io::Result<Self> {
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

    /// Ends the thread, at most one tick later.
    pub(crate) fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the pulse thread does not panic");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    struct Wakes(AtomicUsize);
    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn lateness_counts_from_the_first_unanswered_pulse() {
        let pulse = Pulse::new(Doorbell::new());
        assert_eq!(pulse.answer(Micros(5)), None);
        pulse.send(Micros(10));
        pulse.send(Micros(20));
        assert!(pulse.is_due());
        assert_eq!(pulse.answer(Micros(25)), Some(15));
        assert_eq!(pulse.answer(Micros(26)), None);
    }

    /// A woken task may not run: glommio can sleep again before it has run it.
    #[test]
    fn a_shard_that_does_not_answer_is_woken_again_by_each_pulse() {
        let wakes = Arc::new(Wakes(AtomicUsize::new(0)));
        let pulse = Pulse::new(Doorbell::new());
        pulse.set_waker(&Waker::from(wakes.clone()));
        let tick = limits::TICK_MS * 1000;
        (1..=100).for_each(|n| pulse.send(Micros(n * tick)));
        assert_eq!(wakes.0.load(Ordering::SeqCst), 99, "not by the first, to which it may be busy");
        (0..1000).for_each(|n| pulse.send(Micros(2 * EAGER_US + n * tick)));
        assert_eq!(wakes.0.load(Ordering::SeqCst), 109, "once a second after a minute");
    }
}
