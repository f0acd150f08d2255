//! The pulse: a plain thread that wakes every shard each 10 ms and lets it record how late it
//! answered. It is the shards' clock tick, their stall histogram, and the rescue from an executor
//! that went to sleep with work to do (glommio 0.9 does that). The bell alone is no rescue: a task
//! that it woke and that the executor then slept on leaves it rung, and a rung bell wakes nobody.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::lanes::Doorbell;
use crate::limits;
use crate::message::Micros;

/// Pulses in a row without an answer that each wake the shard's task: 10 s of them. A shard that is
/// stuck in a call does not take the wake-ups, and glommio counts those it holds in 15 bits, so
/// after that it is one in [`RESCUE_EVERY`]: 32,000 are reached in nine hours.
const RESCUES: u32 = 1_000;
/// See [`RESCUES`].
const RESCUE_EVERY: u32 = 100;

/// One shard's end of the pulse.
#[derive(Debug)]
pub struct Pulse {
    bell: Arc<Doorbell>,
    /// When the unanswered pulse was sent, in microseconds since boot; 0 = it was answered.
    sent: AtomicU64,
    /// Pulses since the last one that was answered.
    unanswered: AtomicU32,
    /// Wakes the shard's net loop, whatever the bell thinks.
    task: OnceLock<Waker>,
}

impl Pulse {
    /// For the shard that `bell` wakes.
    pub fn new(bell: Arc<Doorbell>) -> Arc<Self> {
        Arc::new(Self {
            bell,
            sent: AtomicU64::new(0),
            unanswered: AtomicU32::new(0),
            task: OnceLock::new(),
        })
    }

    /// Says which task is to be woken when a pulse is not answered. The first one counts.
    pub fn watch(&self, task: &Waker) {
        self.task.get_or_init(|| task.clone());
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
        let fresh =
            self.sent.compare_exchange(0, now.0.max(1), Ordering::AcqRel, Ordering::Relaxed);
        self.bell.ring();
        if fresh.is_ok() {
            self.unanswered.store(0, Ordering::Relaxed);
            return;
        }
        let before = self.unanswered.fetch_add(1, Ordering::Relaxed);
        if (before < RESCUES || before.is_multiple_of(RESCUE_EVERY))
            && let Some(task) = self.task.get()
        {
            task.wake_by_ref();
        }
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
    use std::sync::atomic::AtomicUsize;
    use std::task::{Context, Wake};

    struct CountingWaker(AtomicUsize);
    impl Wake for CountingWaker {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_shard_that_sleeps_on_a_rung_bell_is_woken_again() {
        let bell = Doorbell::new();
        let pulse = Pulse::new(bell.clone());
        let woken = Arc::new(CountingWaker(AtomicUsize::new(0)));
        let waker = Waker::from(woken.clone());
        pulse.watch(&waker);
        assert!(bell.poll_rung(&Context::from_waker(&waker)).is_pending());
        pulse.send(Micros(1));
        assert_eq!(woken.0.load(Ordering::SeqCst), 1, "by the bell");
        for n in 2..=5 {
            pulse.send(Micros(n));
            assert_eq!(woken.0.load(Ordering::SeqCst), n as usize, "by the pulse");
        }
        assert_eq!(pulse.answer(Micros(9)), Some(8));
        pulse.send(Micros(10));
        assert_eq!(woken.0.load(Ordering::SeqCst), 5, "an answered one needs no rescue");
    }

    #[test]
    fn wake_ups_that_nobody_takes_stay_few() {
        let pulse = Pulse::new(Doorbell::new());
        let woken = Arc::new(CountingWaker(AtomicUsize::new(0)));
        pulse.watch(&Waker::from(woken.clone()));
        for n in 1..=11_001 {
            pulse.send(Micros(n));
        }
        assert_eq!(woken.0.load(Ordering::SeqCst), 1_000 + 100);
    }

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
