//! The readiness set: every socket of a shard, of clients and of services, in one edge-triggered
//! epoll set, and the set itself watched through the ring while the shard sleeps.
//!
//! Why not a glommio stream a socket: per event that arms a poll, takes a completion as task work
//! and a rescheduling interrupt, and one pass of glommio's reactor costs six or seven
//! `io_uring_enter`. The set is armed once a socket; while work is under way the shard waits in
//! the set itself (see [`ReadySet::look`]), and the ring is used only for the long sleep.

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

/// Tokens from here on are the owner's (a connection's key is larger, since no generation is 0);
/// smaller ones are numbers of watches.
pub const TOKEN_MIN: u64 = 1 << crate::ids::SLOT_BITS;

/// Sockets that became ready since they were last asked.
pub struct ReadySet {
    inner: Rc<Inner>,
    /// A stream over a copy of the set's descriptor. glommio arms a poll on it when it is made;
    /// when the set has an event, its `recv` is tried and fails with ENOTSOCK, which is the
    /// signal. It serves once.
    sleeper: Option<TcpStream>,
    events: Vec<Event>,
}

/// Where a task registers a socket of its own.
#[derive(Clone)]
pub struct Registry(Rc<Inner>);

struct Inner {
    epoll: OwnedFd,
    watches: RefCell<Vec<Option<Rc<State>>>>,
}

/// What is known of a watched socket, and who waits for it.
#[derive(Default)]
struct State {
    readable: Cell<bool>,
    writable: Cell<bool>,
    /// The peer ended: there will be no new edge, so reading is never given up.
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

/// What a socket of the owner became.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// The number it was added with.
    pub token: u64,
    /// There may be bytes, or an end, or an error, to be found by reading.
    pub read: bool,
    /// There may be room to write.
    pub write: bool,
    /// The peer has ended its side, or the connection broke.
    pub ended: bool,
}

/// What a look found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Looked {
    /// Nothing was ready.
    Nothing,
    /// Something was: an owner's socket, or a task was woken.
    Something,
}

impl ReadySet {
    /// An empty set.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Self {
            inner: Rc::new(Inner { epoll, watches: RefCell::default() }),
            sleeper: None,
            events: Vec::with_capacity(limits::EVENTS_PER_WAIT),
        })
    }

    /// For tasks with sockets of their own.
    pub fn registry(&self) -> Registry {
        Registry(self.inner.clone())
    }

    /// Adds a socket of the owner for good: closing it takes it out. `token` is at least
    /// [`TOKEN_MIN`].
    pub fn add(&self, socket: impl AsFd, token: u64) -> io::Result<()> {
        debug_assert!(token >= TOKEN_MIN);
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.inner.epoll, socket, EventData::new_u64(token), flags)?)
    }

    /// Takes a socket of the owner out that lives on elsewhere.
    pub fn remove(&self, socket: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.inner.epoll, socket)?)
    }

    /// What is ready, at most [`limits::EVENTS_PER_WAIT`] at once; the owner's go to `on`, tasks
    /// are woken. Blocks the thread for up to `wait` if nothing is: only for a shard with nothing
    /// to run. A glommio timer that becomes due interrupts the wait.
    pub fn look(&mut self, wait: Duration, on: &mut Vec<Ready>) -> io::Result<Looked> {
        self.events.clear();
        let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(wait.subsec_nanos()) };
        let spare = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.inner.epoll, spare, Some(&wait)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(Looked::Nothing),
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
        Ok(Looked::Something)
    }

    /// Ready when the set may have an event; then [`Self::look`]. Polls the ring, not the set.
    /// Without a descriptor to spare it stays pending: the pulse brings the next look.
    pub fn poll_wake(&mut self, cx: &mut Context<'_>) -> Poll<()> {
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
    /// Watches a socket. It counts as ready until a try says otherwise.
    pub fn watch(&self, socket: impl AsFd) -> io::Result<Watch> {
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
    /// Ready when a read is worth a try.
    pub fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        if self.state.readable.get() || self.state.ended.get() {
            return Poll::Ready(());
        }
        register(&self.state.reader, cx);
        Poll::Pending
    }

    /// Ready when a write is worth a try.
    pub fn poll_writable(&self, cx: &Context<'_>) -> Poll<()> {
        if self.state.writable.get() || self.state.ended.get() {
            return Poll::Ready(());
        }
        register(&self.state.writer, cx);
        Poll::Pending
    }

    /// A read found nothing, or took all there was: the next bytes make a new edge.
    pub fn clear_readable(&self) {
        self.state.readable.set(false);
    }

    /// A write found the socket full: room makes a new edge.
    pub fn clear_writable(&self) {
        self.state.writable.set(false);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // The socket leaves the set when it is closed.
        self.registry.0.watches.borrow_mut()[self.number] = None;
    }
}
