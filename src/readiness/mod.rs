//! The readiness set: every socket of a shard, of clients and of services, in one edge-triggered
//! epoll set, in which the shard waits.
//!
//! glommio's own streams and timers are not used: an event of such a stream costs an armed poll, a
//! completion as task work and a rescheduling interrupt, and one pass of glommio's reactor makes
//! six or seven `io_uring_enter` calls. Here a socket is armed once, times of tasks are [`alarms`],
//! and a bell of other threads is a descriptor like any other ([`crate::lanes::Doorbell`]).

mod alarms;
pub(crate) mod timers;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::time::Timespec;

use crate::limits;
pub use crate::readiness::alarms::Alarm;
use crate::readiness::alarms::Alarms;

/// Least token of a socket of the owner: a connection's key is larger, since no generation is 0.
/// Smaller tokens are numbers of watches.
pub(crate) const TOKEN_MIN: u64 = 1 << crate::ids::SLOT_BITS;

/// Token of the bell: no watch has so high a number.
const BELL: u64 = TOKEN_MIN - 1;

/// The epoll set of a shard.
pub(crate) struct ReadySet {
    inner: Rc<Inner>,
    events: Vec<Event>,
}

/// Registration of sockets that belong to tasks.
#[derive(Clone)]
pub struct Registry(Rc<Inner>);

struct Inner {
    epoll: OwnedFd,
    watches: RefCell<Vec<Option<Rc<State>>>>,
    alarms: Rc<Alarms>,
}

/// Readiness of a watched socket, and the tasks that wait for it.
#[derive(Default)]
struct State {
    readable: Cell<bool>,
    writable: Cell<bool>,
    /// Whether the peer ended: no new edge will come, so the socket stays readable.
    ended: Cell<bool>,
    reader: RefCell<Option<Waker>>,
    writer: RefCell<Option<Waker>>,
}

/// A socket of a task, in the set. Drop it before the socket is closed.
pub struct Watch {
    state: Rc<State>,
    number: usize,
    registry: Registry,
}

/// New readiness of a socket of the owner.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// The token that it was added with.
    pub token: u64,
    /// Whether a read may find bytes, the end, or an error.
    pub read: bool,
    /// Whether a write may find room.
    pub write: bool,
    /// Whether the peer ended its side, or the connection broke.
    pub ended: bool,
}

/// Outcome of one call of [`ReadySet::poll`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Polled {
    /// Neither a socket nor an alarm.
    Nothing,
    /// Only tasks were woken, or the bell was rung.
    Tasks,
    /// A socket of the owner was ready; tasks may have been woken, too.
    Sockets,
}

/// Lets the other tasks of the executor run once: those that [`ReadySet::poll`] has woken.
pub(crate) async fn yield_once() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl ReadySet {
    /// Makes an empty set.
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Self {
            inner: Rc::new(Inner { epoll, watches: RefCell::default(), alarms: Alarms::new() }),
            events: Vec::with_capacity(limits::EVENTS_PER_WAIT),
        })
    }

    /// The registration for tasks with sockets of their own.
    pub(crate) fn registry(&self) -> Registry {
        Registry(self.inner.clone())
    }

    /// Adds a socket of the owner until it is closed. `token` is at least [`TOKEN_MIN`].
    pub(crate) fn add(&self, socket: impl AsFd, token: u64) -> io::Result<()> {
        debug_assert!(token >= TOKEN_MIN);
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.inner.epoll, socket, EventData::new_u64(token), flags)?)
    }

    /// Adds the descriptor of a bell, which ends a wait and is nothing else: no token comes of it.
    pub(crate) fn add_bell(&self, bell: impl AsFd) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::ET;
        Ok(epoll::add(&self.inner.epoll, bell, EventData::new_u64(BELL), flags)?)
    }

    /// Removes a socket of the owner that another shard goes on with.
    pub(crate) fn remove(&self, socket: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.inner.epoll, socket)?)
    }

    /// Appends ready sockets of the owner to `on`, and wakes tasks whose sockets are ready or whose
    /// alarms are due; takes at most [`limits::EVENTS_PER_WAIT`] sockets at once. If there is none
    /// the thread blocks until there is one, for up to `wait`: only for a shard with nothing to
    /// run. The kernel waits in whole milliseconds here, rounded up. A timer of the executor may
    /// end the wait, too (EINTR): then nothing was found.
    pub(crate) fn poll(&mut self, wait: Duration, on: &mut Vec<Ready>) -> io::Result<Polled> {
        self.events.clear();
        let Inner { epoll, alarms, .. } = &*self.inner;
        // A look without a wait, of which there may be one a message, needs no clock for that.
        let next = if wait.is_zero() { None } else { alarms.until_next() };
        let wait = Timespec::try_from(next.map_or(wait, |next| wait.min(next)));
        let wait = wait.expect("waits of seconds");
        let spare = rustix::buffer::spare_capacity(&mut self.events);
        let found = match epoll::wait(epoll, spare, Some(&wait)) {
            Ok(found) => found,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let (known, rung) = (on.len(), alarms.ring_due());
        if found == 0 {
            return Ok(if rung { Polled::Tasks } else { Polled::Nothing });
        }
        for event in self.events.drain(..) {
            // The struct is packed: copy before use.
            let (flags, data) = (event.flags, event.data);
            let ended = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
            let read = ended || flags.contains(EventFlags::IN);
            let write = flags.intersects(EventFlags::OUT | EventFlags::ERR | EventFlags::HUP);
            let token = data.u64();
            if token >= TOKEN_MIN {
                on.push(Ready { token, read, write, ended });
            } else if let Some(Some(state)) = self.inner.watches.borrow().get(token as usize) {
                state.wake(read, write, ended);
            }
        }
        Ok(if on.len() > known { Polled::Sockets } else { Polled::Tasks })
    }
}

impl Registry {
    /// Watches a socket. It counts as ready until a read or write finds that it is not.
    pub(crate) fn watch(&self, socket: impl AsFd) -> io::Result<Watch> {
        let mut watches = self.0.watches.borrow_mut();
        let number = watches.iter().position(Option::is_none).unwrap_or(watches.len());
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.0.epoll, socket, EventData::new_u64(number as u64), flags)?;
        let state = Rc::new(State::default());
        state.readable.set(true);
        state.writable.set(true);
        if number == watches.len() {
            watches.push(Some(state.clone()));
        } else {
            watches[number] = Some(state.clone());
        }
        Ok(Watch { state, number, registry: self.clone() })
    }

    /// An alarm that wakes `waker`.
    pub(crate) fn alarm(&self, waker: Waker) -> Alarm {
        self.0.alarms.add(waker)
    }
}

impl State {
    fn wake(&self, read: bool, write: bool, ended: bool) {
        if ended {
            self.ended.set(true);
        }
        if read {
            self.readable.set(true);
            if let Some(waker) = self.reader.borrow_mut().take() {
                waker.wake();
            }
        }
        if write {
            self.writable.set(true);
            if let Some(waker) = self.writer.borrow_mut().take() {
                waker.wake();
            }
        }
    }
}

fn register(slot: &RefCell<Option<Waker>>, cx: &Context<'_>) {
    let mut slot = slot.borrow_mut();
    if !slot.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
        *slot = Some(cx.waker().clone());
    }
}

impl Watch {
    /// Ready when a read may succeed.
    pub(crate) fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        if self.state.readable.get() || self.state.ended.get() {
            return Poll::Ready(());
        }
        register(&self.state.reader, cx);
        Poll::Pending
    }

    /// Ready when a write may succeed.
    pub(crate) fn poll_writable(&self, cx: &Context<'_>) -> Poll<()> {
        if self.state.writable.get() || self.state.ended.get() {
            return Poll::Ready(());
        }
        register(&self.state.writer, cx);
        Poll::Pending
    }

    /// Notes that a read found nothing, or took everything: the next bytes make a new edge.
    pub(crate) fn clear_readable(&self) {
        self.state.readable.set(false);
    }

    /// Notes that a write found the socket full: room makes a new edge.
    pub(crate) fn clear_writable(&self) {
        self.state.writable.set(false);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // The socket leaves the set when it is closed.
        self.registry.0.watches.borrow_mut()[self.number] = None;
    }
}
