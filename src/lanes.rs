//! Bounded lanes between threads, by which alone threads communicate.
//!
//! A lane is a bounded multi-producer channel with one receiver. The receiver owns one doorbell for
//! *all* its lanes: a burst of sends costs one wake-up, because only the first ring after the
//! receiver armed the bell wakes its task. There are two classes: *submit* (a refused item comes
//! back to the sender, which answers for it) and *deliver* (the last chance of an item: its loss is
//! counted).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

/// Wakes the task of a receiver once for any number of rings.
#[derive(Debug, Default)]
pub struct Doorbell {
    /// Set by the first ring, cleared when the receiver starts to read its lanes.
    rung: AtomicBool,
    waker: AtomicWaker,
}

impl Doorbell {
    /// A bell for one receiver.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Tells the receiver that a lane has an item for it.
    pub fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    /// Ready if the bell was rung since the last time that this was ready. The receiver reads its
    /// lanes after that: an item sent after the reading rings again.
    pub fn poll_rung(&self, cx: &Context<'_>) -> Poll<()> {
        // Registered first, because a ring between the check and the registration would wake
        // nobody; and in any case, because the last ring has used the waker up.
        self.waker.register(cx.waker());
        if self.rung.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// Reason why a lane did not take an item, with the item.
#[derive(Debug, PartialEq, Eq)]
pub enum LaneRefusal<T> {
    /// The lane has no room.
    Full(T),
    /// The lane has no receiver any more.
    Closed(T),
}

/// The sending end of a lane. Clones share the lane.
#[derive(Debug)]
pub struct LaneSender<T> {
    items: Sender<T>,
    bell: Arc<Doorbell>,
}

impl<T> Clone for LaneSender<T> {
    fn clone(&self) -> Self {
        Self { items: self.items.clone(), bell: self.bell.clone() }
    }
}

impl<T> LaneSender<T> {
    /// Sends `item`, or gives it back. Never blocks.
    pub fn try_send(&self, item: T) -> Result<(), LaneRefusal<T>> {
        match self.items.try_send(item) {
            Ok(()) => {
                self.bell.ring();
                Ok(())
            }
            Err(TrySendError::Full(item)) => Err(LaneRefusal::Full(item)),
            Err(TrySendError::Disconnected(item)) => Err(LaneRefusal::Closed(item)),
        }
    }
}

/// The receiving end of a lane.
#[derive(Debug)]
pub struct LaneReceiver<T> {
    items: Receiver<T>,
}

impl<T> LaneReceiver<T> {
    /// The oldest item, if there is one.
    pub fn try_recv(&self) -> Option<T> {
        self.items.try_recv().ok()
    }

    /// Whether no item waits.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Number of items that wait.
    pub fn len(&self) -> usize {
        self.items.len()
    }
}

/// A lane of at most `items_max` items whose receiver is woken by `bell`.
pub fn lane<T>(items_max: usize, bell: &Arc<Doorbell>) -> (LaneSender<T>, LaneReceiver<T>) {
    let (items, receiver) = bounded(items_max);
    (LaneSender { items, bell: bell.clone() }, LaneReceiver { items: receiver })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::task::{Wake, Waker};

    struct CountingWaker(AtomicUsize);
    impl Wake for CountingWaker {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_burst_costs_one_wake_up() {
        let bell = Doorbell::new();
        let (tx, rx) = lane(10, &bell);
        let counter = Arc::new(CountingWaker(AtomicUsize::new(0)));
        let waker = Waker::from(counter.clone());
        let cx = Context::from_waker(&waker);
        assert!(bell.poll_rung(&cx).is_pending());
        for i in 0..10 {
            tx.try_send(i).expect("room for ten");
        }
        assert_eq!(counter.0.load(Ordering::SeqCst), 1);
        assert!(bell.poll_rung(&cx).is_ready());
        assert_eq!(
            std::iter::from_fn(|| rx.try_recv()).collect::<Vec<_>>(),
            (0..10).collect::<Vec<_>>()
        );
        assert!(bell.poll_rung(&cx).is_pending());
    }

    #[test]
    fn the_bell_stays_armed_after_it_was_heard() {
        let bell = Doorbell::new();
        let counter = Arc::new(CountingWaker(AtomicUsize::new(0)));
        let waker = Waker::from(counter.clone());
        let cx = Context::from_waker(&waker);
        assert!(bell.poll_rung(&cx).is_pending());
        bell.ring();
        assert!(bell.poll_rung(&cx).is_ready());
        // Not polled again, as by a task that sleeps for another reason.
        bell.ring();
        assert_eq!(counter.0.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn an_item_sent_before_the_receiver_sleeps_is_seen() {
        let bell = Doorbell::new();
        let (tx, rx) = lane(1, &bell);
        tx.try_send(1).expect("room");
        let cx = Context::from_waker(Waker::noop());
        assert!(bell.poll_rung(&cx).is_ready());
        assert_eq!((rx.len(), rx.try_recv()), (1, Some(1)));
    }

    #[test]
    fn a_refused_item_comes_back_with_the_reason() {
        let bell = Doorbell::new();
        let (tx, rx) = lane(1, &bell);
        tx.try_send(1).expect("room");
        assert_eq!(tx.try_send(2), Err(LaneRefusal::Full(2)));
        drop(rx);
        assert_eq!(tx.try_send(3), Err(LaneRefusal::Closed(3)));
    }
}
