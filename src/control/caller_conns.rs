//! Connections of callers with tokens, at the registry and at the doors of pushes: bounded in
//! number, and closed when no call on them shows a good token; at once if all places are taken and
//! another client comes.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};
use tonic::transport::server::Connected;

use crate::control::slots::{GivenAway, Slot, Slots};
use crate::limits::ACCEPT_PAUSE;

/// Longest time from accept to the first call with a good token, TLS and HTTP/2 included.
pub const PROOF_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time between two such calls: the longest time to live of a registration, and a minute.
const IDLE_TIMEOUT: Duration = Duration::from_secs(660);

/// Facts about its connection that a call can see.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Address of the client; `None` = the client is gone already.
    pub address: Option<SocketAddr>,
    proved: Arc<AtomicBool>,
    slot: Arc<Slot>,
}

impl Peer {
    /// Notes that a call on this connection had a good token. From now on its place is given to
    /// nobody else.
    pub fn prove(&self) {
        self.proved.store(true, Ordering::Relaxed);
        self.slot.answers();
    }
}

/// The listener, and the deadlines of its connections.
pub struct Connections {
    /// Key of the listener's address, for the log.
    key: &'static str,
    listener: TcpListener,
    slots: Arc<Slots>,
    proof_timeout: Duration,
}

impl Connections {
    /// Connections of a listening socket, of which there are at most `connections_max` at once.
    pub fn new(
        key: &'static str,
        listener: TcpListener,
        connections_max: usize,
        proof_timeout: Duration,
    ) -> Self {
        Self { key, listener, slots: Slots::new(connections_max), proof_timeout }
    }

    /// Accepts the next connection.
    pub async fn accept(&mut self) -> Connection {
        loop {
            match self.listener.accept().await {
                Ok((stream, from)) => {
                    // A failure makes answers later, not wrong.
                    let _ = stream.set_nodelay(true);
                    let (slot, given_away, given_up) = self.slots.take(from).await;
                    if let Some(peer) = given_up {
                        tracing::warn!(
                            at = self.key,
                            %peer,
                            "caller_crowded: all places were taken; the connection that had \
                             waited longest without a good token was closed for a new one"
                        );
                    }
                    let address = stream.peer_addr().ok();
                    let peer = Peer { address, proved: Arc::default(), slot: Arc::new(slot) };
                    let deadline = Box::pin(tokio::time::sleep(self.proof_timeout));
                    return Connection { stream, peer, deadline, given_away };
                }
                Err(error) => {
                    tracing::warn!(
                        at = self.key,
                        %error,
                        "caller_accept_failed: a service cannot connect; raise `ulimit -n` \
                         (LimitNOFILE) if files are the cause"
                    );
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// A connection that ends at its deadline, which a good call puts off.
pub struct Connection {
    stream: TcpStream,
    peer: Peer,
    deadline: Pin<Box<Sleep>>,
    given_away: GivenAway,
}

impl Connection {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        // Once it has ended it may not be polled again.
        if self.given_away.is_terminated() || Pin::new(&mut self.given_away).poll(cx).is_ready() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        while self.deadline.as_mut().poll(cx).is_ready() {
            if !self.peer.proved.swap(false, Ordering::Relaxed) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.deadline.as_mut().reset(Instant::now() + IDLE_TIMEOUT);
        }
        Ok(())
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
