//! The socket of a connection in the shard's readiness set, with the tokio traits that h2 and TLS
//! need.
//! The bytes that h2 writes in one turn are gathered into one `sendmsg`.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};
use socket2::{Domain, Protocol, SockRef, Socket as RawSocket, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::readiness::{Registry, Watch};

/// Most bytes that are gathered before they are sent: copying 32 KiB costs some 2 us, about the
/// fixed cost of one `sendmsg`, so gathering more would not pay.
const GATHER_BYTES_MAX: usize = 32 << 10;
/// Reads in one poll of a connection, before other connections are polled: a shard has no other
/// budget for a peer that sends faster than the shard reads.
const READS_PER_POLL_MAX: u32 = 16;
/// Slices in one `sendmsg`: h2 offers at most 64, and the gathered bytes are one more.
const SLICES_MAX: usize = 65;

/// The socket of one connection, with its counts.
pub(super) struct Socket {
    // Dropped in this order: the watch before what it watches.
    watch: Watch,
    stream: OwnedFd,
    gathered: Vec<u8>,
    /// Bytes of `gathered` that are sent.
    sent: usize,
    bytes_read: u64,
    has_settings: bool,
    reads_left: u32,
    failed: Option<Failure>,
}

/// The first error of a socket.
pub(super) struct Failure {
    pub(super) kind: io::ErrorKind,
    /// Reason, for the log.
    pub(super) why: String,
}

/// The end of a [`Socket`] that h2 or TLS has.
pub(super) struct Io(pub(super) Rc<RefCell<Socket>>);

impl Socket {
    /// Starts to connect. An address where nothing listens is often refused at once; otherwise the
    /// first read or write fails. No future is involved that could be dropped half way.
    ///
    /// `user_timeout_ms`: see [`Socket::set_user_timeout`]; set before the attempt, so that it
    /// holds from the first byte.
    pub(super) fn connect(
        address: SocketAddr,
        registry: &Registry,
        user_timeout_ms: u64,
    ) -> io::Result<Self> {
        let raw = RawSocket::new(
            Domain::for_address(address),
            Type::STREAM.nonblocking().cloexec(),
            Some(Protocol::TCP),
        )?;
        raw.set_tcp_nodelay(true)?;
        set_user_timeout(SockRef::from(&raw), user_timeout_ms)?;
        match raw.connect(&address.into()) {
            Err(e) if e.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => {
                return Err(e);
            }
            Ok(()) | Err(_) => {}
        }
        let stream = OwnedFd::from(raw);
        let watch = registry.watch(&stream)?;
        Ok(Self {
            watch,
            stream,
            gathered: Vec::new(),
            sent: 0,
            bytes_read: 0,
            has_settings: false,
            reads_left: READS_PER_POLL_MAX,
            failed: None,
        })
    }

    /// Changes the time after which the kernel ends the connection to a peer that acknowledges
    /// nothing: bytes that wait for an acknowledgement (TCP_USER_TIMEOUT, RFC 5482), and on an idle
    /// connection probes of the kernel (SO_KEEPALIVE), which no server counts as pings. 0 = the
    /// kernel's own, a quarter of an hour.
    pub(super) fn set_user_timeout(&self, timeout_ms: u64) {
        // It fails on a socket that is closed already.
        let _ = set_user_timeout(SockRef::from(&self.stream), timeout_ms);
    }

    /// Bytes read so far.
    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Notes that the server's first frame header was read, and is that of SETTINGS.
    pub(super) fn note_settings(&mut self) {
        self.has_settings = true;
    }

    /// Whether the server's first frame header was read.
    pub(super) fn has_settings(&self) -> bool {
        self.has_settings
    }

    /// The first error, if there was one.
    pub(super) fn failure(&self) -> Option<&Failure> {
        self.failed.as_ref()
    }

    /// Renews the budget of reads, for the next poll of the connection.
    pub(super) fn refill(&mut self) {
        self.reads_left = READS_PER_POLL_MAX;
    }

    /// Sends the gathered bytes. `Pending` has registered `cx` for when the socket takes more.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.gathered.len() {
            let n = ready!(self.poll_send_with(cx, &[]))?;
            debug_assert_eq!(n, 0);
        }
        Poll::Ready(Ok(()))
    }

    /// Makes one `sendmsg` of the gathered bytes and `more`; returns how many of `more` were sent.
    fn poll_send_with(
        &mut self,
        cx: &mut Context<'_>,
        more: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        slices[0] = IoSlice::new(&self.gathered[self.sent..]);
        let mut count = 1;
        for (slot, slice) in slices[1..].iter_mut().zip(more) {
            *slot = *slice;
            count += 1;
        }
        ready!(self.watch.poll_writable(cx));
        let mut control = SendAncillaryBuffer::default();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let n = loop {
            let sent = rustix::net::sendmsg(&self.stream, &slices[..count], &mut control, flags);
            match sent {
                Ok(n) => break n,
                Err(Errno::INTR) => {}
                // The socket is full, or not connected yet: an edge comes for both.
                Err(Errno::AGAIN) => {
                    self.watch.clear_writable();
                    ready!(self.watch.poll_writable(cx));
                }
                Err(e) => return Poll::Ready(Err(self.fail(e.into()))),
            }
        };
        let waiting = self.gathered.len() - self.sent;
        if n < waiting {
            self.sent += n;
            return Poll::Ready(Ok(0));
        }
        self.gathered.clear();
        self.sent = 0;
        Poll::Ready(Ok(n - waiting))
    }

    /// Makes one `recv` if there may be bytes.
    fn poll_receive(&mut self, cx: &mut Context<'_>, space: &mut [u8]) -> Poll<io::Result<usize>> {
        ready!(self.watch.poll_readable(cx));
        let room = space.len();
        loop {
            match rustix::net::recv(&self.stream, &mut *space, RecvFlags::DONTWAIT) {
                Ok((n, _)) => {
                    if n < room {
                        self.watch.clear_readable();
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.watch.clear_readable();
                    ready!(self.watch.poll_readable(cx));
                }
                Err(e) => return Poll::Ready(Err(e.into())),
            }
        }
    }

    /// Takes note of an error of the socket.
    fn fail(&mut self, e: io::Error) -> io::Error {
        let kind = e.kind();
        self.fail_with(kind, || kind.to_string());
        e
    }

    /// Takes note of an error, unless there was one before; nothing is written any more.
    pub(super) fn fail_with(&mut self, kind: io::ErrorKind, why: impl FnOnce() -> String) {
        self.failed.get_or_insert_with(|| Failure { kind, why: why() });
    }
}

/// Sets what [`Socket::set_user_timeout`] says.
fn set_user_timeout(socket: SockRef<'_>, timeout_ms: u64) -> io::Result<()> {
    let timeout = Duration::from_millis(timeout_ms);
    socket.set_tcp_user_timeout(Some(timeout))?;
    socket.set_keepalive(timeout_ms > 0)?;
    if timeout_ms == 0 {
        return Ok(());
    }
    // Probes after half of the time and after each further quarter: with the user timeout set, the
    // kernel gives up at the first that is due after the whole of it (tcp(7)). It counts in
    // seconds.
    let least = Duration::from_secs(1);
    let probes = TcpKeepalive::new()
        .with_time((timeout / 2).max(least))
        .with_interval((timeout / 4).max(least));
    socket.set_tcp_keepalive(&probes)
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Closing would do; a shutdown also works if the descriptor was inherited. An error means
        // that the peer has closed already.
        let _ = rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Both);
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let socket = &mut *self.0.borrow_mut();
        if socket.reads_left == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        socket.reads_left -= 1;
        let space = buf.initialize_unfilled();
        let n = match ready!(socket.poll_receive(cx, space)) {
            Ok(n) => n,
            Err(e) => return Poll::Ready(Err(socket.fail(e))),
        };
        socket.bytes_read += n as u64;
        buf.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let socket = &mut *self.0.borrow_mut();
        if let Some(failure) = &socket.failed {
            return Poll::Ready(Err(failure.kind.into()));
        }
        let bytes: usize = slices.iter().map(|s| s.len()).sum();
        loop {
            if bytes == 0 || socket.gathered.len() + bytes <= GATHER_BYTES_MAX {
                slices.iter().for_each(|s| socket.gathered.extend_from_slice(s));
                return Poll::Ready(Ok(bytes));
            }
            let n = ready!(socket.poll_send_with(cx, slices))?;
            if n > 0 {
                return Poll::Ready(Ok(n));
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Does nothing: h2 flushes after each frame that it does not copy, and the channel sends once
    /// at the end of its turn instead (`Socket::poll_send`).
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = &mut *self.0.borrow_mut();
        ready!(socket.poll_send(cx))?;
        match rustix::net::shutdown(&socket.stream, rustix::net::Shutdown::Write) {
            // The peer has reset the connection: there is nothing left to be ended.
            Err(rustix::io::Errno::NOTCONN) => Poll::Ready(Ok(())),
            result => Poll::Ready(Ok(result?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_acknowledges_nothing_is_given_up_after_the_time_that_is_set() {
        let socket = RawSocket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        let set = |ms| set_user_timeout(SockRef::from(&socket), ms).unwrap();
        let secs = |n| Some(Duration::from_secs(n));
        set(4_000);
        assert_eq!(socket.tcp_user_timeout().unwrap(), secs(4));
        assert!(socket.keepalive().unwrap());
        assert_eq!(Some(socket.tcp_keepalive_time().unwrap()), secs(2));
        assert_eq!(Some(socket.tcp_keepalive_interval().unwrap()), secs(1));
        set(1_000);
        assert_eq!(Some(socket.tcp_keepalive_time().unwrap()), secs(1), "the kernel's least");
        set(0);
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
        assert!(!socket.keepalive().unwrap());
    }
}
