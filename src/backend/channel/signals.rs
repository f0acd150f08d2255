//! Who has something to do: one bit a call and one flag a connection, set by their wakers, so that
//! the channel's one task looks only at what moved.

use atomic_waker::AtomicWaker;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Wake, Waker};

/// Calls in flight on one channel: 10 batches or 100 unary calls are what the engine allows by
/// default; 256 leaves room for other settings and is 4 words of bits.
pub(super) const SLOTS: usize = 256;
const WORDS: usize = SLOTS / 64;
const _: () = assert!(WORDS * 64 == SLOTS);

/// Shared by a channel's task and all wakers of it. Nearly always touched by one thread, but a
/// [`Waker`] may be used from any.
#[derive(Default)]
pub(super) struct Signals {
    task: AtomicWaker,
    /// The task is being polled and will look at the flags again: no need to schedule it.
    polling: AtomicBool,
    calls: [AtomicU64; WORDS],
    timer: AtomicBool,
}

impl Signals {
    /// The task's poll begins.
    pub(super) fn begin(&self, task: &Waker) {
        self.task.register(task);
        self.polling.store(true, Ordering::SeqCst);
    }

    /// The task's poll ends; the caller then looks at its flags once more.
    pub(super) fn end(&self) {
        self.polling.store(false, Ordering::SeqCst);
    }

    /// Has the task polled, unless it is right now.
    pub(super) fn wake_task(&self) {
        if !self.polling.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }

    /// Has the task polled again in any case.
    pub(super) fn wake_task_again(&self) {
        self.task.wake();
    }

    /// Marks a call as having something to do.
    pub(super) fn mark_call(&self, slot: usize) {
        self.calls[slot / 64].fetch_or(1 << (slot % 64), Ordering::SeqCst);
    }

    /// Whether any call has something to do.
    pub(super) fn any_call(&self) -> bool {
        self.calls.iter().any(|word| word.load(Ordering::SeqCst) != 0)
    }

    /// Takes the marks of 64 calls, of which there are [`Signals::words`].
    pub(super) fn take_calls(&self, word: usize) -> u64 {
        let calls = &self.calls[word];
        if calls.load(Ordering::SeqCst) == 0 { 0 } else { calls.swap(0, Ordering::SeqCst) }
    }

    /// Words of marks.
    pub(super) fn words() -> usize {
        WORDS
    }

    /// Whether the timer fired since it was last asked.
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

/// The flag of one connection.
pub(super) struct LinkFlag {
    signals: Arc<Signals>,
    set: AtomicBool,
}

impl LinkFlag {
    /// A flag that is set, so that a new connection is polled.
    pub(super) fn new(signals: Arc<Signals>) -> Arc<Self> {
        Arc::new(Self { signals, set: AtomicBool::new(true) })
    }

    /// Clears the flag and tells whether it was set.
    pub(super) fn take(&self) -> bool {
        self.is_set() && self.set.swap(false, Ordering::SeqCst)
    }

    /// Whether the connection has something to do.
    pub(super) fn is_set(&self) -> bool {
        self.set.load(Ordering::SeqCst)
    }

    /// The connection has something to do.
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
