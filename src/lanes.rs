//! Bounded lanes between threads, by which alone threads communicate.
//!
//! A lane is a bounded multi-producer channel with one receiver. The receiver owns one doorbell for
//! *all* its lanes: a burst of sends costs one wake-up at most, because only the first ring after
//! the receiver has heard the bell wakes it. There are two classes: *submit* (a refused item comes
//! back to the sender, which answers for it) and *deliver* (the last chance of an item: its loss is
//! counted).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use rustix::event::{EventfdFlags, eventfd};

use crate::ids::ShardId;

/// Wakes a receiver once for any number of rings.
#[derive(Debug)]
pub struct Doorbell {
    /// Set by the first ring, cleared when the receiver starts to read its lanes.
    rung: AtomicBool,
    receiver: WaitsBy,
}

/// The way in which a receiver waits.
#[derive(Debug)]
enum WaitsBy {
    /// It is a task.
    Waker(AtomicWaker),
    /// It is a thread that blocks in an epoll set.
    Set {
        /// An eventfd in that set, edge-triggered: each write ends a wait. Nobody reads it, and its
        /// count of 64 bits does not fill up.
        eventfd: OwnedFd,
        /// Whether the thread is about to block, or blocks.
        blocks: AtomicBool,
    },
}

impl Doorbell {
    /// A bell for a receiver that is a task.
    pub fn new() -> Arc<Self> {
        Self::with(WaitsBy::Waker(AtomicWaker::new()))
    }

    /// A bell for a thread that blocks in an epoll set, to which it adds the bell's descriptor.
    /// Fails if the process is out of descriptors.
    pub fn for_set() -> io::Result<Arc<Self>> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self::with(WaitsBy::Set { eventfd, blocks: AtomicBool::new(false) }))
    }

    fn with(receiver: WaitsBy) -> Arc<Self> {
        Arc::new(Self { rung: AtomicBool::new(false), receiver })
    }

    /// Tells the receiver that a lane has an item for it.
    pub fn ring(&self) {
        if !self.rung.swap(true, Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Ends the receiver's wait, if it waits: for those who have left word elsewhere.
    pub fn wake(&self) {
        match &self.receiver {
            WaitsBy::Waker(waker) => waker.wake(),
            // One that does not block looks before it does.
            WaitsBy::Set { eventfd, blocks } if blocks.load(Ordering::SeqCst) => {
                // It fails only if 2^64 - 2 writes went before it.
                let _ = rustix::io::write(eventfd, &1_u64.to_ne_bytes());
            }
            WaitsBy::Set { .. } => {}
        }
    }

    /// Calls `block`, which blocks in the set, unless `has_word` says that there is word already:
    /// in that case, `None`. Whoever leaves word after that was asked ends the wait by
    /// [`Self::wake`]: the flag is raised first and the word looked for second, and on the other
    /// side the word is left first and the flag looked at second, all in one order (SeqCst).
    pub fn block<R>(
        &self,
        has_word: impl FnOnce() -> bool,
        block: impl FnOnce() -> R,
    ) -> Option<R> {
        let WaitsBy::Set { blocks, .. } = &self.receiver else { return Some(block()) };
        blocks.store(true, Ordering::SeqCst);
        let has_word = self.rung.load(Ordering::SeqCst) || has_word();
        let result = (!has_word).then(block);
        blocks.store(false, Ordering::SeqCst);
        result
    }

    /// The descriptor to be added to the set; `None` of a bell for a task.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.receiver {
            WaitsBy::Waker(_) => None,
            WaitsBy::Set { eventfd, .. } => Some(eventfd.as_fd()),
        }
    }

    /// Whether the bell was rung and not heard.
    pub fn is_rung(&self) -> bool {
        self.rung.load(Ordering::SeqCst)
    }

    /// Whether the bell was rung since the last time that this was true. The receiver reads its
    /// lanes after that: an item sent after the reading rings again.
    pub fn take_rung(&self) -> bool {
        self.rung.load(Ordering::Relaxed) && self.rung.swap(false, Ordering::SeqCst)
    }

    /// [`Self::take_rung`] of a task, which the next ring wakes.
    pub fn poll_rung(&self, cx: &Context<'_>) -> Poll<()> {
        // Registered first, because a ring between the check and the registration would wake
        // nobody; and in any case, because the last ring has used the waker up.
        if let WaitsBy::Waker(waker) = &self.receiver {
            waker.register(cx.waker());
        }
        if self.take_rung() { Poll::Ready(()) } else { Poll::Pending }
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

/// The sending end of a lane whose places are taken before anything is sent: so that something for
/// several receivers is sent to all of them or to none. Clones share the lane.
#[derive(Debug)]
pub struct PlaceSender<T> {
    lane: LaneSender<T>,
    taken: Arc<AtomicUsize>,
    items_max: usize,
}

impl<T> Clone for PlaceSender<T> {
    fn clone(&self) -> Self {
        let Self { lane, taken, items_max } = self;
        Self { lane: lane.clone(), taken: taken.clone(), items_max: *items_max }
    }
}

impl<T> PlaceSender<T> {
    /// Takes a place, if fewer than `percent` of them are taken. Who has one sends, or gives it
    /// back.
    pub fn take_place(&self, percent: u32) -> bool {
        let most = (self.items_max * percent as usize).div_ceil(100).min(self.items_max);
        let one_more = |taken: usize| (taken < most).then_some(taken + 1);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    /// Places that are taken: by items that wait, and by those that are about to be sent.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Gives a place back for which nothing is sent.
    pub fn give_place_back(&self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }

    /// Sends `item` on a place that was taken. False: nobody receives any more.
    pub fn send(&self, item: T) -> bool {
        match self.lane.try_send(item) {
            Ok(()) => true,
            Err(LaneRefusal::Closed(_)) => {
                self.give_place_back();
                false
            }
            Err(LaneRefusal::Full(_)) => unreachable!("there are as many items as places taken"),
        }
    }
}

/// Sends items to several receivers, of `lanes` by number: to all of them, or to none if one has no
/// place. Whether they were sent; a receiver that is gone counts as one that has its item.
pub fn send_to_all<T>(lanes: &[PlaceSender<T>], items: Vec<(ShardId, T)>) -> bool {
    for (taken, (to, _)) in items.iter().enumerate() {
        if !lanes[usize::from(to.0)].take_place(100) {
            for (to, _) in &items[..taken] {
                lanes[usize::from(to.0)].give_place_back();
            }
            return false;
        }
    }
    for (to, item) in items {
        lanes[usize::from(to.0)].send(item);
    }
    true
}

/// The receiving end of a lane with places.
#[derive(Debug)]
pub struct PlaceReceiver<T> {
    lane: LaneReceiver<T>,
    taken: Arc<AtomicUsize>,
}

impl<T> PlaceReceiver<T> {
    /// The oldest item, if there is one; its place is free again.
    pub fn try_recv(&self) -> Option<T> {
        let item = self.lane.try_recv()?;
        self.taken.fetch_sub(1, Ordering::Relaxed);
        Some(item)
    }
}

/// A lane of `items_max` places whose receiver is woken by `bell`.
pub fn lane_of_places<T>(
    items_max: usize,
    bell: &Arc<Doorbell>,
) -> (PlaceSender<T>, PlaceReceiver<T>) {
    let (lane, receiver) = self::lane(items_max, bell);
    let taken = Arc::new(AtomicUsize::new(0));
    (PlaceSender { lane, taken: taken.clone(), items_max }, PlaceReceiver { lane: receiver, taken })
}

/// A lane of at most `items_max` items whose receiver is woken by `bell`.
pub fn lane<T>(items_max: usize, bell: &Arc<Doorbell>) -> (LaneSender<T>, LaneReceiver<T>) {
    let (items, receiver) = bounded(items_max);
    (LaneSender { items, bell: bell.clone() }, LaneReceiver { items: receiver })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::MaybeUninit;
    use std::task::{Wake, Waker};

    use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
    use rustix::time::Timespec;

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

    /// A thread that is about to block is not left to: it sees the ring, or the ring ends its wait.
    #[test]
    fn no_ring_is_lost_on_a_thread_that_goes_to_block_in_its_set() {
        const RINGS: usize = 20_000;
        let bell = Doorbell::for_set().expect("a descriptor");
        let set = epoll::create(CreateFlags::CLOEXEC).expect("a descriptor");
        let flags = EventFlags::IN | EventFlags::ET;
        let eventfd = bell.descriptor().expect("it has one");
        epoll::add(&set, eventfd, EventData::new_u64(1), flags).expect("it is new");
        let (tx, rx) = lane(1, &bell);
        let sender = std::thread::spawn(move || {
            (0..RINGS).for_each(|mut item| {
                while let Err(LaneRefusal::Full(back)) = tx.try_send(item) {
                    item = back;
                    std::hint::spin_loop();
                }
            });
        });
        let (mut seen, mut waits) = (0, 0);
        while seen < RINGS {
            let mut events = [const { MaybeUninit::uninit() }; 4];
            let long = Timespec { tv_sec: 20, tv_nsec: 0 };
            let found = bell.block(|| false, || epoll::wait(&set, &mut events, Some(&long)));
            let rung = bell.take_rung();
            match found {
                Some(found) => {
                    assert!(!found.expect("a set").0.is_empty(), "it would block for ever");
                    waits += 1;
                }
                None => assert!(rung, "there was word"),
            }
            seen += std::iter::from_fn(|| rx.try_recv()).count();
        }
        sender.join().expect("it sends");
        assert!(waits <= RINGS);
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
    fn a_place_that_was_taken_holds_its_item_and_others_are_refused_one() {
        let bell = Doorbell::new();
        let (tx, rx) = lane_of_places(10, &bell);
        assert_eq!((0..9).filter(|_| tx.take_place(70)).count(), 7);
        assert_eq!((0..9).filter(|_| tx.take_place(100)).count(), 3);
        tx.give_place_back();
        assert!(tx.take_place(100) && !tx.take_place(100));
        assert!((0..10).all(|item| tx.send(item)));
        assert_eq!(rx.try_recv(), Some(0));
        assert!(tx.take_place(100) && tx.send(10) && !tx.take_place(100));
        assert_eq!(std::iter::from_fn(|| rx.try_recv()).count(), 10);
        assert!(tx.take_place(1));
        drop(rx);
        assert!(!tx.send(11) && tx.take_place(1), "its place is free again");
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
