//! The client sockets of a shard, by connection: non-blocking, edge-triggered.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};

use crate::ids::ConnId;
use crate::shard::arrival;
use crate::shard::transport::Transport;
use crate::shard::turn::{Input, Readiness};

/// Socket of a client, with all that moves along when its connection goes to another shard.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    id: ConnId,
    pub(crate) readiness: Readiness,
    /// Whether the socket is shut for writing.
    is_shut: bool,
    pub(crate) transport: Transport,
}

/// The result of a read or a write that does not block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum IoResult {
    /// Number of bytes read or written.
    Bytes(usize),
    /// Nothing to read, or no room to write.
    WouldBlock,
    /// The other end has closed, or the connection is broken.
    Closed,
}

impl Socket {
    /// Receives bytes into `buffer`, once. Of a socket in the sample it is told for how long they
    /// lay unread.
    #[inline]
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> (IoResult, Option<Duration>) {
        loop {
            let received = match arrival::is_sampled(self.id) {
                false => rustix::net::recv(&self.stream, &mut *buffer, RecvFlags::DONTWAIT)
                    .map(|(n, _)| (n, None)),
                true => arrival::receive(&self.stream, buffer)
                    .map_err(|errno| Errno::from_raw_os_error(errno as i32)),
            };
            match received {
                Ok((0, _)) => return (IoResult::Closed, None),
                Ok((n, unread)) => {
                    // A short read took all there was, and the next bytes make a new edge. But an
                    // end that was there already made its edge together with these bytes.
                    if n < buffer.len() && self.readiness.input == Input::Ready {
                        self.readiness.input = Input::Empty;
                    }
                    return (IoResult::Bytes(n), unread);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.readiness.input = Input::Empty;
                    return (IoResult::WouldBlock, None);
                }
                Err(_) => return (IoResult::Closed, None),
            }
        }
    }

    /// Sends what the transport holds, then as much of `bytes` as the kernel takes. The result
    /// counts `bytes` only, with TLS as its `Session::flush` does. Before a TLS handshake is
    /// complete nothing can be sent: with `bytes` that wait the connection is closed.
    #[inline]
    pub(crate) fn send(&mut self, bytes: &[u8], cipher: &mut [u8]) -> IoResult {
        let Self { stream, readiness: Readiness { is_writable, .. }, transport, .. } = self;
        match transport.session_mut() {
            Some(session) if session.is_handshaking() && !bytes.is_empty() => IoResult::Closed,
            _ if !*is_writable => IoResult::WouldBlock,
            Some(session) => {
                let send = |out: &[u8]| match send(stream, is_writable, out) {
                    IoResult::Bytes(n) => Some(n),
                    IoResult::WouldBlock => Some(0),
                    IoResult::Closed => None,
                };
                session.flush(bytes, cipher, send).map_or(IoResult::Closed, IoResult::Bytes)
            }
            None if bytes.is_empty() => IoResult::WouldBlock,
            None => send(stream, is_writable, bytes),
        }
    }

    /// Bounds the bytes that the kernel holds and has not sent (TCP_NOTSENT_LOWAT). From there on a
    /// write is refused, and the edge that tells of room comes when half of them are sent.
    pub(crate) fn bound_unsent(&self, bytes: u32) {
        // It fails only when the connection is gone already.
        let _ = socket2::SockRef::from(&self.stream).set_tcp_notsent_lowat(bytes);
    }

    /// Sends close_notify if TLS is spoken: it tells an end from a cut (RFC 8446, 6.1). Whether
    /// nothing is left to be sent; with the kernel full, the record waits for room.
    pub(crate) fn send_close_notify(&mut self, cipher: &mut [u8]) -> bool {
        let Some(session) = self.transport.session_mut() else { return true };
        session.close(cipher);
        self.send(&[], cipher) == IoResult::Closed || !self.transport.has_unsent()
    }

    /// Ends the bytes to the client: it sees the end after those that were sent.
    pub(crate) fn shut_write(&mut self) {
        if !self.is_shut {
            self.is_shut = true;
            // It fails only when the connection is gone already.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }
}

/// Writes once, without blocking.
fn send(stream: &TcpStream, is_writable: &mut bool, bytes: &[u8]) -> IoResult {
    loop {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::send(stream, bytes, flags) {
            Ok(n) => {
                *is_writable = n == bytes.len();
                return IoResult::Bytes(n);
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                *is_writable = false;
                return IoResult::WouldBlock;
            }
            Err(_) => return IoResult::Closed,
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The client sockets of a shard, by the slot of their connection.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    slots: Vec<Option<Socket>>,
}

impl Sockets {
    /// Puts in the socket of a new connection, as one that is ready for anything.
    pub(crate) fn insert(
        &mut self,
        id: ConnId,
        stream: TcpStream,
        transport: Transport,
    ) -> &mut Socket {
        let readiness = Readiness::UNKNOWN;
        self.place(id, Socket { stream, id, readiness, is_shut: false, transport })
    }

    /// Puts in a socket that came from another shard, as one that is ready for anything: the edges
    /// of the set that it left are not known here.
    pub(crate) fn take_over(&mut self, id: ConnId, mut socket: Socket) {
        socket.id = id;
        socket.readiness.forget();
        self.place(id, socket);
    }

    fn place(&mut self, id: ConnId, socket: Socket) -> &mut Socket {
        if arrival::is_sampled(id) {
            arrival::note(&socket.stream);
        }
        let slot = id.slot();
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        self.slots[slot].insert(socket)
    }

    /// The socket of a connection, unless it is gone.
    #[inline]
    pub(crate) fn get(&mut self, id: ConnId) -> Option<&mut Socket> {
        self.slots.get_mut(id.slot())?.as_mut().filter(|s| s.id == id)
    }

    /// Bytes of memory that the sockets hold.
    pub(crate) fn memory_bytes(&self) -> usize {
        let each = |socket: &Socket| size_of::<Option<Socket>>() + socket.transport.memory_bytes();
        self.slots.iter().flatten().map(each).sum()
    }

    /// Takes a socket out; dropping it closes it.
    pub(crate) fn remove(&mut self, id: ConnId) -> Option<Socket> {
        self.get(id)?;
        self.slots[id.slot()].take()
    }
}

/// The result of an accept.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// A client, with Nagle's algorithm off: the shard coalesces itself, one write a turn.
    Client(TcpStream, SocketAddr),
    /// No client waits at the listener.
    WouldBlock,
    /// The client has gone; others may wait.
    Aborted,
    /// The process is out of descriptors or memory: accept again later.
    Exhausted(io::Error),
}

/// Accepts one client, without blocking.
pub(crate) fn accept(listener: &TcpListener, send_buffer_bytes: usize) -> Accepted {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (fd, peer): (OwnedFd, _) = match rustix::net::acceptfrom_with(listener, flags) {
        Ok(accepted) => accepted,
        Err(Errno::AGAIN) => return Accepted::WouldBlock,
        Err(Errno::INTR | Errno::CONNABORTED) => return Accepted::Aborted,
        Err(errno) => return Accepted::Exhausted(errno.into()),
    };
    let stream = TcpStream::from(fd);
    let Some(peer) = peer.and_then(|p| SocketAddr::try_from(p).ok()) else {
        return Accepted::Aborted;
    };
    let prepared = stream.set_nodelay(true).and_then(|()| match send_buffer_bytes {
        0 => Ok(()),
        bytes => socket2::SockRef::from(&stream).set_send_buffer_size(bytes),
    });
    match prepared {
        Ok(()) => Accepted::Client(stream, peer),
        Err(_) => Accepted::Aborted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readiness::{Ready, ReadySet};
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener};
    use std::time::Instant;

    /// A connection moves to another shard with all that is its own.
    #[test]
    fn a_socket_is_small_and_may_go_to_another_thread() {
        fn may_go<T: Send>() -> usize {
            size_of::<T>()
        }
        assert!(may_go::<Socket>() <= 32);
    }

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
            set.poll(Duration::ZERO, &mut events).expect("a set");
        }
        let socket = sockets.insert(id, server, Transport::Plain);
        socket.readiness.input = Input::Ending;
        assert_eq!(socket.receive(&mut [0; 64]).0, IoResult::Bytes(4));
        assert!(socket.readiness.is_readable(), "the end is still to be read");
        assert_eq!(socket.receive(&mut [0; 64]).0, IoResult::Closed);
    }

    /// Sends until the kernel refuses; the number of bytes that it took.
    fn fill(socket: &mut Socket) -> usize {
        let mut taken = 0;
        while let IoResult::Bytes(n) = socket.send(&[7; 4 << 10], &mut []) {
            taken += n;
        }
        assert!(!socket.readiness.is_writable, "a refusal is remembered");
        taken
    }

    /// A client that does not read makes the kernel refuse bytes long before its buffers are full.
    /// The edge that tells of room does not come before bytes are sent, and then it does.
    #[test]
    fn writes_stop_at_the_bound_on_unsent_bytes_and_go_on_when_they_are_sent() {
        const BOUND: usize = 32 << 10;
        let mut taken = [0, 0];
        for (bound, taken) in [0, BOUND].into_iter().zip(&mut taken) {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let address = listener.local_addr().expect("bound");
            let mut client = std::net::TcpStream::connect(address).expect("it listens");
            let (server, _) = listener.accept().expect("a client waits");
            let id = ConnId::new(1, 0);
            let mut set = ReadySet::new().expect("a descriptor");
            set.add(&server, id.0).expect("a socket");
            let mut events = Vec::new();
            while events.is_empty() {
                set.poll(Duration::from_secs(20), &mut events).expect("a set");
            }
            let mut sockets = Sockets::default();
            let socket = sockets.insert(id, server, Transport::Plain);
            if bound > 0 {
                socket.bound_unsent(bound as u32);
            }
            for _ in 0..3 {
                let round = fill(socket);
                *taken = round.max(*taken);
                events.clear();
                set.poll(Duration::ZERO, &mut events).expect("a set");
                assert!(events.iter().all(|e: &Ready| !e.write), "nothing was sent since");
                let mut left = round;
                let mut piece = vec![0; 1 << 20];
                while left > 0 {
                    left -= client.read(&mut piece).expect("bytes");
                }
                while !events.iter().any(|e: &Ready| e.write) {
                    set.poll(Duration::from_secs(20), &mut events).expect("a set");
                    assert!(!events.is_empty(), "no edge tells of the room");
                }
                socket.readiness.is_writable = true;
            }
        }
        let [free, bounded] = taken;
        assert!(bounded + 8 * BOUND < free, "{bounded} of {free}");
    }

    /// The first connection of 64 is in the sample: how long its bytes lay in the kernel is told.
    #[test]
    fn bytes_that_lay_unread_are_told_with_their_time() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let mut sockets = Sockets::default();
        for (slot, is_sampled) in [(0, true), (1, false), (64, true)] {
            let mut client = std::net::TcpStream::connect(address).expect("it listens");
            let (server, _) = listener.accept().expect("a client waits");
            let id = ConnId::new(1, slot);
            let socket = sockets.insert(id, server, Transport::Plain);
            // The kernel begins to note times a moment after the first socket asks for it.
            let start = Instant::now();
            while is_sampled && start.elapsed() < Duration::from_secs(20) {
                client.write_all(b"a").expect("room");
                if socket.receive(&mut [0; 8]).1.is_some() {
                    break;
                }
            }
            // From here to the write nothing is there, so the time begins in between.
            assert_eq!(socket.receive(&mut [0; 8]), (IoResult::WouldBlock, None));
            let before = Instant::now();
            client.write_all(b"late").expect("room");
            let after = Instant::now();
            while after.elapsed() < Duration::from_millis(30) {
                std::hint::spin_loop();
            }
            let least = after.elapsed();
            let (received, unread) = socket.receive(&mut [0; 8]);
            assert_eq!((received, unread.is_some()), (IoResult::Bytes(4), is_sampled));
            if let Some(unread) = unread {
                // The clocks of both run alike, to some microseconds.
                let slack = Duration::from_millis(1);
                assert!(
                    unread + slack >= least && unread <= before.elapsed() + slack,
                    "{unread:?}"
                );
            }
        }
    }

    /// Bytes and the end that come before, during and after the move are read after it: without an
    /// edge of the old set, and without one of the new set.
    #[test]
    fn a_socket_that_moves_forgets_neither_bytes_nor_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        // To the other set, and back to the same one.
        for home in [1, 0] {
            let mut client = std::net::TcpStream::connect(address).expect("it listens");
            let (server, _) = listener.accept().expect("a client waits");
            let mut sets = [(); 2].map(|()| ReadySet::new().expect("a descriptor"));
            let mut shards = [(); 2].map(|()| Sockets::default());
            let (id, next) = (ConnId::new(1, 0), ConnId::new(2, 3));
            sets[0].add(&server, id.0).expect("a socket");
            shards[0].insert(id, server, Transport::Plain);
            client.write_all(b"abc").expect("room");
            let mut events = Vec::new();
            while events.is_empty() {
                sets[0].poll(Duration::ZERO, &mut events).expect("a set");
            }
            let (received, _) = shards[0].get(id).expect("there").receive(&mut [0; 2]);
            assert_eq!(received, IoResult::Bytes(2));
            let mut socket = shards[0].remove(id).expect("there");
            socket.is_shut = false;
            socket.readiness.is_listed = true;
            sets[0].remove(&socket).expect("it was in it");
            client.write_all(b"de").expect("room");
            client.shutdown(Shutdown::Write).expect("connected");
            sets[home].add(&socket, next.0).expect("a socket");
            shards[home].take_over(next, socket);
            assert!(shards[0].get(id).is_none(), "its old id has no socket");
            let socket = shards[home].get(next).expect("there");
            let readiness = socket.readiness;
            assert!(readiness.is_readable() && readiness.is_writable && !readiness.is_listed);
            let mut rest = [0; 8];
            assert_eq!(socket.receive(&mut rest).0, IoResult::Bytes(3));
            assert_eq!(&rest[..3], b"cde");
            // The first wait in the new set reports what came before it, too.
            events.clear();
            while !events.iter().any(|e: &Ready| e.token == next.0 && e.ended) {
                sets[home].poll(Duration::ZERO, &mut events).expect("a set");
            }
            assert_eq!(socket.receive(&mut rest).0, IoResult::Closed);
        }
    }
}
