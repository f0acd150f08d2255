//! The client sockets of a shard, by connection: non-blocking, edge-triggered.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};

use crate::ids::ConnId;
use crate::shard::layers::Layers;

/// One client socket.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    id: ConnId,
    /// The set said that there are bytes, and they are not all read.
    pub readable: bool,
    /// The set said that the client's side has ended: what is to be read ends with that.
    pub ending: bool,
    /// On the list of sockets to read in the next turn.
    pub listed: bool,
    /// The kernel takes bytes, as far as is known.
    pub writable: bool,
    /// Shut for writing.
    pub shut: bool,
    /// What its bytes go through before they are the engine's, if anything.
    pub layers: Option<Box<Layers>>,
}

/// What a read or write came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moved {
    /// So many bytes.
    Bytes(usize),
    /// Nothing now.
    Later,
    /// Nothing ever again.
    Ended,
}

impl Socket {
    /// Receives into `buffer`.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Moved {
        loop {
            match rustix::net::recv(&self.stream, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Moved::Ended,
                Ok((n, _)) => {
                    // A short read took all there was, and the next bytes make a new edge. But an
                    // end that was there already made its edge together with these bytes.
                    self.readable = n == buffer.len() || self.ending;
                    return Moved::Bytes(n);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.readable = false;
                    return Moved::Later;
                }
                Err(_) => return Moved::Ended,
            }
        }
    }

    /// Sends as much of `bytes` as the kernel takes.
    pub fn send(&mut self, bytes: &[u8]) -> Moved {
        loop {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(&self.stream, bytes, flags) {
                Ok(n) => {
                    self.writable = n == bytes.len();
                    return Moved::Bytes(n);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.writable = false;
                    return Moved::Later;
                }
                Err(_) => return Moved::Ended,
            }
        }
    }

    /// Address of its other end, which may be a balancer.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.stream.peer_addr().ok()
    }

    /// Whether it has the handshake of TLS before it.
    pub fn is_shaking(&self) -> bool {
        self.layers.as_ref().is_some_and(|layers| layers.is_shaking())
    }

    /// No more bytes to the client: it sees the end after those that were sent.
    pub fn shut_write(&mut self) {
        if !self.shut {
            self.shut = true;
            // It fails only when the connection is gone already.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// All of them, by the slot of their connection.
#[derive(Debug, Default)]
pub struct Sockets {
    slots: Vec<Option<Socket>>,
}

impl Sockets {
    /// Enters a socket.
    pub fn insert(
        &mut self,
        id: ConnId,
        stream: TcpStream,
        layers: Option<Box<Layers>>,
    ) -> &mut Socket {
        let (readable, writable) = (true, true);
        let (ending, listed, shut) = (false, false, false);
        self.place(id, Socket { stream, id, readable, ending, listed, writable, shut, layers })
    }

    /// Enters a socket that came from another shard, as one that is ready for anything: what its
    /// set had told is not known here.
    pub fn take_over(&mut self, id: ConnId, mut socket: Socket) {
        (socket.id, socket.readable, socket.writable, socket.listed) = (id, true, true, false);
        self.place(id, socket);
    }

    fn place(&mut self, id: ConnId, socket: Socket) -> &mut Socket {
        let slot = id.slot();
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        self.slots[slot].insert(socket)
    }

    /// The socket of a connection, unless it is gone.
    pub fn get(&mut self, id: ConnId) -> Option<&mut Socket> {
        self.slots.get_mut(id.slot())?.as_mut().filter(|s| s.id == id)
    }

    /// Bytes of memory that they hold.
    pub fn memory_bytes(&self) -> usize {
        let layers = |socket: &Socket| socket.layers.as_ref().map_or(0, |l| l.memory_bytes());
        let each = |socket: &Socket| size_of::<Option<Socket>>() + layers(socket);
        self.slots.iter().flatten().map(each).sum()
    }

    /// Takes a socket out; dropping it closes it.
    pub fn remove(&mut self, id: ConnId) -> Option<Socket> {
        self.get(id)?;
        self.slots[id.slot()].take()
    }
}

/// What accepting came to.
#[derive(Debug)]
pub enum Accepted {
    /// A client, with Nagle's algorithm off: the shard coalesces itself, one write a turn.
    Client(TcpStream, SocketAddr),
    /// Nobody waits.
    Nobody,
    /// This one is gone; there may be others.
    Aborted,
    /// Out of descriptors or memory: later.
    Exhausted(io::Error),
}

/// Accepts one client.
pub fn accept(listener: &TcpListener, send_buffer_bytes: usize) -> Accepted {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (fd, peer): (OwnedFd, _) = match rustix::net::acceptfrom_with(listener, flags) {
        Ok(accepted) => accepted,
        Err(Errno::AGAIN) => return Accepted::Nobody,
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
    use std::io::Write;
    use std::net::{Shutdown, TcpListener};
    use std::time::Duration;

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
            set.look(Duration::ZERO, &mut events).expect("a set");
        }
        let socket = sockets.insert(id, server, None);
        socket.ending = true;
        assert_eq!(socket.receive(&mut [0; 64]), Moved::Bytes(4));
        assert!(socket.readable, "the end is still to be read");
        assert_eq!(socket.receive(&mut [0; 64]), Moved::Ended);
    }

    /// What happened before the move, in it and after it is seen after it, by no edge of the set it
    /// left, and with no edge of its new one.
    #[test]
    fn a_socket_that_moves_forgets_neither_bytes_nor_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        // To the other set, and back to its own.
        for home in [1, 0] {
            let mut client = std::net::TcpStream::connect(address).expect("it listens");
            let (server, _) = listener.accept().expect("a client waits");
            let mut sets = [(); 2].map(|()| ReadySet::new().expect("a descriptor"));
            let mut shards = [(); 2].map(|()| Sockets::default());
            let (id, next) = (ConnId::new(1, 0), ConnId::new(2, 3));
            sets[0].add(&server, id.0).expect("a socket");
            shards[0].insert(id, server, None);
            client.write_all(b"abc").expect("room");
            let mut events = Vec::new();
            while events.is_empty() {
                sets[0].look(Duration::ZERO, &mut events).expect("a set");
            }
            let moved = shards[0].get(id).expect("there").receive(&mut [0; 2]);
            assert_eq!(moved, Moved::Bytes(2));
            let mut socket = shards[0].remove(id).expect("there");
            (socket.shut, socket.listed) = (false, true);
            sets[0].remove(&socket).expect("it was in it");
            client.write_all(b"de").expect("room");
            client.shutdown(Shutdown::Write).expect("connected");
            sets[home].add(&socket, next.0).expect("a socket");
            shards[home].take_over(next, socket);
            assert!(shards[0].get(id).is_none(), "its old number is nobody's");
            let socket = shards[home].get(next).expect("there");
            assert!(socket.readable && socket.writable && !socket.listed);
            let mut rest = [0; 8];
            assert_eq!(socket.receive(&mut rest), Moved::Bytes(3));
            assert_eq!(&rest[..3], b"cde");
            // The first look at the new set tells of what came before, too.
            events.clear();
            while !events.iter().any(|e: &Ready| e.token == next.0 && e.ended) {
                sets[home].look(Duration::ZERO, &mut events).expect("a set");
            }
            assert_eq!(socket.receive(&mut rest), Moved::Ended);
        }
    }
}
