//! The readiness set: every client socket of a shard in one edge-triggered epoll set, and the set
//! itself watched through the ring.
//!
//! Why not a glommio stream a connection: per event that arms a poll, takes a completion as task work
//! and a rescheduling interrupt. The set is armed once a connection; the ring is used only to sleep.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_io::AsyncRead;
use glommio::net::TcpStream;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

use crate::limits;

/// Sockets that became ready since they were last asked.
pub struct ReadySet {
    epoll: OwnedFd,
    /// A stream over a copy of the set's descriptor. glommio arms a poll on it when it is made; when
    /// the set has an event, its `recv` is tried and fails with ENOTSOCK, which is the signal. It
    /// serves once.
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
    /// The client has ended its side, or the connection broke.
    pub ended: bool,
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
            Err(Errno::INTR) => return Ok(()),
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
                ended: flags.intersects(ended),
            });
        }
        Ok(())
    }

    /// Ready when the set may have an event; then [`Self::look`]. Polls the ring, not the set.
    ///
    /// With no descriptor or memory left it stays pending: the caller is woken by the pulse each
    /// [`limits::TICK_MS`] and looks at the set then.
    pub fn poll_wake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.sleeper.is_none() {
            let copy = match rustix::io::fcntl_dupfd_cloexec(self.epoll.as_fd(), 0) {
                Ok(copy) => copy,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error.into())),
            };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ConnId;
    use crate::shard::sockets::{Moved, Sockets};
    use std::io::Write;
    use std::net::{Shutdown, TcpListener};

    /// Bytes and the end may be one edge: after the bytes there is none for the end.
    #[test]
    fn an_end_right_behind_the_last_bytes_is_read() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let mut client = std::net::TcpStream::connect(address).expect("it listens");
        let (server, _) = listener.accept().expect("a client waits");
        client.write_all(b"last").expect("room");
        client.shutdown(Shutdown::Write).expect("connected");
        let id = ConnId::new(1, 0);
        let mut sockets = Sockets::default();
        let mut set = ReadySet::new().expect("a descriptor");
        set.add(&server, id.0).expect("a socket");
        let mut events = Vec::new();
        while !events.iter().any(|e: &Ready| e.ended) {
            events.clear();
            set.look(&mut events).expect("a set");
        }
        let socket = sockets.insert(id, server);
        socket.ending = true;
        assert_eq!(socket.receive(&mut [0; 64]), Moved::Bytes(4));
        assert!(socket.readable, "the end is still to be read");
        assert_eq!(socket.receive(&mut [0; 64]), Moved::Ended);
    }
}
