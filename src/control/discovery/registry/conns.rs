//! Connections of the registry: bounded in number, and closed when no call on them shows a good
//! token.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tonic::transport::server::Connected;

use crate::limits::ACCEPT_PAUSE;

/// Connections at once; more wait to be accepted. A service needs one.
const CONNECTIONS_MAX: usize = 256;
/// Longest time from accept to the first call with a good token, TLS and HTTP/2 included.
pub const PROOF_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time between two such calls: the longest time to live, and a minute.
const IDLE_TIMEOUT: Duration = Duration::from_secs(660);

/// Facts about its connection that a call can see.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Address of the client; `None` = the client is gone already.
    pub address: Option<SocketAddr>,
    proved: Arc<AtomicBool>,
}

impl Peer {
    /// Notes that a call on this connection had a good token.
    pub fn prove(&self) {
        self.proved.store(true, Ordering::Relaxed);
    }
}

/// The listener, and the deadlines of its connections.
pub struct Connections {
    listener: TcpListener,
    slots: Arc<Semaphore>,
    proof_timeout: Duration,
}

impl Connections {
    /// Connections of a listening socket.
    pub fn new(listener: TcpListener, proof_timeout: Duration) -> Self {
        Self { listener, slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)), proof_timeout }
    }

    /// Accepts the next connection.
    pub async fn accept(&mut self) -> Connection {
        let slot = self.slots.clone().acquire_owned().await.expect("never closed");
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    // A failure makes answers later, not wrong.
                    let _ = stream.set_nodelay(true);
                    let address = stream.peer_addr().ok();
                    let peer = Peer { address, proved: Arc::default() };
                    let deadline = Box::pin(tokio::time::sleep(self.proof_timeout));
                    return Connection { stream, peer, deadline, _slot: slot };
                }
                Err(error) => {
                    tracing::warn!(
                        %error,
                        "registry_accept_failed: a service cannot connect; raise `ulimit -n` \
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
    _slot: OwnedSemaphorePermit,
}

impl Connection {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
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
