//! The readiness set: every socket of a shard, of clients and of services, in one edge-triggered
//! epoll set. While the shard sleeps the ring watches the set itself.
//!
//! glommio's own streams are not used: an event of such a stream costs an armed poll, a completion
//! as task work and a rescheduling interrupt, and one pass of glommio's reactor makes six or seven
//! `io_uring_enter` calls. Here a socket is armed once; while there is work the shard waits in the
//! set itself (see [`ReadySet::poll`]), and the ring is used only for the long sleep.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_io::AsyncRead;
use glommio::net::TcpStream;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::time::Timespec;

use crate::limits;

/// Least token of a socket of the owner: a connection's key is larger, since no generation is 0.
/// Smaller tokens are numbers of watches.
pub(crate) const TOKEN_MIN: u64 = 1 << crate::ids::SLOT_BITS;

/// The epoll set of a shard.
pub(crate) struct ReadySet {
    inner: Rc<Inner>,
    /// A stream over a copy of the set's descriptor. glommio arms a poll on it when it is made;
    /// when the set has an event, glommio's `recv` is tried and fails with ENOTSOCK, which is the
    /// signal. Each stream serves once.
    sleeper: Option<TcpStream>,
    events: Vec<Event>,
}

/// Registration of sockets that belong to tasks.
#[derive(Clone)]
pub struct Registry(Rc<Inner>);

struct Inner {
    epoll: OwnedFd,
    watches: RefCell<Vec<Option<Rc<State>>>>,
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
    /// No socket was ready.
    Nothing,
    /// A socket of the owner was ready, or a task was woken.
    Something,
}

impl ReadySet {
    /// Makes an empty set.
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Self {
            inner: Rc::new(Inner { epoll, watches: RefCell::default() }),
            sleeper: None,
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

    /// Removes a socket of the owner that another shard goes on with.
    pub(crate) fn remove(&self, socket: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.inner.epoll, socket)?)
    }

    /// Appends ready sockets of the owner to `on` and wakes tasks whose sockets are ready, at most
    /// [`limits::EVENTS_PER_WAIT`] at once. If none is ready the thread blocks for up to `wait`:
    /// only for a shard with nothing to run. A glommio timer that becomes due interrupts the wait.
    pub(crate) fn poll(&mut self, wait: Duration, on: &mut Vec<Ready>) -> io::Result<Polled> {
        self.events.clear();
        let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(wait.subsec_nanos()) };
        let spare = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.inner.epoll, spare, Some(&wait)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(Polled::Nothing),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
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
        Ok(Polled::Something)
    }

    /// Ready if the set may have an event; then call [`Self::poll`]. Polls the ring, not the set.
    /// Without a spare descriptor it stays pending: the pulse wakes the shard in any case.
    pub(crate) fn poll_wake(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.sleeper.is_none() {
            let copy = rustix::io::fcntl_dupfd_cloexec(self.inner.epoll.as_fd(), 0);
            let Ok(copy) = copy else { return Poll::Pending };
            // SAFETY: the descriptor is fresh and owned; the stream takes it over and closes it.
            self.sleeper = Some(unsafe { TcpStream::from_raw_fd(copy.into_raw_fd()) });
        }
        let sleeper = self.sleeper.as_mut().expect("just made");
        let mut nothing = [0; 1];
        match Pin::new(sleeper).poll_read(cx, &mut nothing) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(_) => {
                self.sleeper = None;
                Poll::Ready(())
            }
        }
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
