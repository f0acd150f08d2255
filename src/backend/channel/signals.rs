//! Wake-ups of a channel: one bit a call and one flag a connection, set by their wakers, so that
//! the channel's one task polls only those that were woken.

use atomic_waker::AtomicWaker;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Wake, Waker};

/// Most calls in flight on one channel: 10 batches or 100 unary calls are what the engine allows by
/// default; 256 leaves room for other settings and has 4 words of bits.
pub(super) const SLOTS: usize = 256;
const WORDS: usize = SLOTS / 64;
const _: () = assert!(WORDS * 64 == SLOTS);

/// State shared by a channel's task and its wakers. Nearly always one thread uses it, but a
/// [`Waker`] may be used from any.
#[derive(Default)]
pub(super) struct Signals {
    task: AtomicWaker,
    /// Whether the task is being polled and will read the flags again: then it need not be
    /// scheduled.
    polling: AtomicBool,
    calls: [AtomicU64; WORDS],
    timer: AtomicBool,
}

impl Signals {
    /// Notes that the task's poll begins.
    pub(super) fn begin(&self, task: &Waker) {
        self.task.register(task);
        self.polling.store(true, Ordering::SeqCst);
    }

    /// Notes that the task's poll ends; the caller then reads the flags once more.
    pub(super) fn end(&self) {
        self.polling.store(false, Ordering::SeqCst);
    }

    /// Schedules the task, unless it is being polled.
    pub(super) fn wake_task(&self) {
        if !self.polling.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }

    /// Schedules the task in any case.
    pub(super) fn wake_task_again(&self) {
        self.task.wake();
    }

    /// Marks a call to be polled.
    pub(super) fn mark_call(&self, slot: usize) {
        self.calls[slot / 64].fetch_or(1 << (slot % 64), Ordering::SeqCst);
    }

    /// Whether any call is marked.
    pub(super) fn any_call(&self) -> bool {
        self.calls.iter().any(|word| word.load(Ordering::SeqCst) != 0)
    }

    /// Takes the marks of one word, 64 calls; there are [`Signals::words`].
    pub(super) fn take_calls(&self, word: usize) -> u64 {
        let calls = &self.calls[word];
        if calls.load(Ordering::SeqCst) == 0 { 0 } else { calls.swap(0, Ordering::SeqCst) }
    }

    /// Number of words of marks.
    pub(super) fn words() -> usize {
        WORDS
    }

    /// Whether the timer fired since the last call of this.
    pub(super) fn take_timer(&self) -> bool {
        self.timer.load(Ordering::SeqCst) && self.timer.swap(false, Ordering::SeqCst)
    }
}

struct CallWaker {
    signals: Arc<Signals>,
    slot: usize,
}

impl Wake for CallWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        self.signals.mark_call(self.slot);
        self.signals.wake_task();
    }
}

struct TimerWaker(Arc<Signals>);

impl Wake for TimerWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        self.0.timer.store(true, Ordering::SeqCst);
        self.0.wake_task();
    }
}

/// Flag of one connection: whether it is to be polled.
pub(super) struct LinkFlag {
    signals: Arc<Signals>,
    set: AtomicBool,
}

impl LinkFlag {
    /// A flag that is set, so that a new connection is polled.
    pub(super) fn new(signals: Arc<Signals>) -> Arc<Self> {
        Arc::new(Self { signals, set: AtomicBool::new(true) })
    }

    /// Clears the flag; returns whether it was set.
    pub(super) fn take(&self) -> bool {
        self.is_set() && self.set.swap(false, Ordering::SeqCst)
    }

    /// Whether the connection is marked.
    pub(super) fn is_set(&self) -> bool {
        self.set.load(Ordering::SeqCst)
    }

    /// Marks the connection to be polled.
    pub(super) fn mark(&self) {
        self.set.store(true, Ordering::SeqCst);
    }
}

impl Wake for LinkFlag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        self.mark();
        self.signals.wake_task();
    }
}

/// The waker of the call in `slot`; made once a slot, not once a call.
pub(super) fn call_waker(signals: &Arc<Signals>, slot: usize) -> Waker {
    assert!(slot < SLOTS);
    Waker::from(Arc::new(CallWaker { signals: Arc::clone(signals), slot }))
}

/// The waker of the channel's timer.
pub(super) fn timer_waker(signals: &Arc<Signals>) -> Waker {
    Waker::from(Arc::new(TimerWaker(Arc::clone(signals))))
}
