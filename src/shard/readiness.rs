//! The readiness set: every client socket of a shard in one edge-triggered epoll set, and the set
//! itself watched through the ring.
//!
//! Why not a glommio stream a connection: per event that arms a poll, takes a completion as task
//! work and a rescheduling interrupt. The set is armed once a connection; the ring is used only to
//! sleep.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_io::AsyncRead;
use glommio::net::TcpStream;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::time::Timespec;

use crate::limits;

/// Sockets that became ready since they were last asked.
pub struct ReadySet {
    epoll: OwnedFd,
    /// A stream over a copy of the set's descriptor. glommio arms a poll on it when it is made;
    /// when the set has an event, its `recv` is tried and fails with ENOTSOCK, which is the signal.
    /// It serves once.
    sleeper: Option<TcpStream>,
    events: Vec<Event>,
}

/// What a socket became.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// The number it was added with.
    pub token: u64,
    /// There may be bytes, or an end, or an error, to be found by reading.
    pub read: bool,
    /// There may be room to write.
    pub write: bool,
}

impl ReadySet {
    /// An empty set.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, sleeper: None, events: Vec::with_capacity(limits::EVENTS_PER_WAIT) })
    }

    /// Adds a socket for good: closing it takes it out.
    pub fn add(&self, socket: impl AsFd, token: u64) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(token), flags)?)
    }

    /// Adds a listener: it becomes ready when a connection waits to be accepted.
    pub fn add_listener(&self, socket: impl AsFd, token: u64) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::ET;
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(token), flags)?)
    }

    /// What is ready now. Never waits. At most [`limits::EVENTS_PER_WAIT`] at once.
    pub fn look(&mut self, on: &mut Vec<Ready>) -> io::Result<()> {
        self.events.clear();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let spare = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, spare, Some(&now)) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        for event in self.events.drain(..) {
            // The struct is packed: copy before use.
            let (flags, data) = (event.flags, event.data);
            let ended = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
            on.push(Ready {
                token: data.u64(),
                read: flags.intersects(EventFlags::IN | ended),
                write: flags.intersects(EventFlags::OUT | EventFlags::ERR | EventFlags::HUP),
            });
        }
        Ok(())
    }

    /// Ready when the set may have an event; then [`Self::look`]. Polls the ring, not the set.
    pub fn poll_wake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.sleeper.is_none() {
            let copy = rustix::io::fcntl_dupfd_cloexec(self.epoll.as_fd(), 0)?;
            // SAFETY: the descriptor is fresh and owned; the stream takes it over and closes it.
            self.sleeper = Some(unsafe { TcpStream::from_raw_fd(copy.into_raw_fd()) });
        }
        let sleeper = self.sleeper.as_mut().expect("just made");
        let mut nothing = [0; 1];
        match Pin::new(sleeper).poll_read(cx, &mut nothing) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(_) => {
                self.sleeper = None;
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Number of the set's descriptor, for the log.
    pub fn number(&self) -> i32 {
        self.epoll.as_raw_fd()
    }
}
