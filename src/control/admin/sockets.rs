//! Sockets of the admin endpoint and of the probes: a bounded number of connections ([`slots`]),
//! each with one request, a deadline and a cap on bytes, with TLS if that is configured.
//!
//! [`slots`]: crate::control::slots

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::control::slots::{Slot, Slots};
use crate::limits::ACCEPT_PAUSE;

/// Longest life of a connection: a gathering takes at most one second, the rest is the client's
/// time.
pub const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes read from one connection at most: request line and headers (browsers send under 4 KiB), a
/// body of [`super::BODY_BYTES_MAX`], and a TLS handshake with its records, under 4 KiB.
const CONNECTION_BYTES_MAX: usize = (16 << 10) + super::BODY_BYTES_MAX + (4 << 10);

/// Answers of a listener, and the time and the places that its clients have for them.
pub struct Endpoint {
    /// Key of the listener's address, for the log.
    pub key: &'static str,
    pub tls: Option<TlsAcceptor>,
    pub router: Router,
    /// Time from accept to the end of the request.
    pub request_timeout: Duration,
    /// Connections at once.
    pub connections_max: usize,
}

impl Endpoint {
    /// Accepts for ever. Each connection is a task of its own, so that a slow one holds up no
    /// other.
    pub async fn serve(self, listener: TcpListener) {
        let slots = Slots::new(self.connections_max);
        let endpoint = Arc::new(self);
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(
                        at = endpoint.key,
                        %error,
                        "admin_accept_failed: a connection cannot be accepted; raise `ulimit -n` \
                         (LimitNOFILE) if files are the cause"
                    );
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (slot, given_away, given_up) = slots.take(peer).await;
            if let Some(peer) = given_up {
                tracing::warn!(
                    at = endpoint.key,
                    %peer,
                    "admin_crowded: all places were taken; the connection that had waited longest \
                     without a request was closed for a new one"
                );
            }
            let endpoint = endpoint.clone();
            tokio::spawn(async move {
                let slot = Arc::new(slot);
                tokio::select! {
                    () = endpoint.converse(stream, peer, slot.clone()) => {}
                    () = endpoint.timeout(&slot) => {}
                    _ = given_away => {}
                }
            });
        }
    }

    /// Answers one request: HTTP/1.0 or 1.1 (RFC 9112). The preface of HTTP/2 is no request of
    /// these, and ends the connection.
    async fn converse(&self, stream: TcpStream, peer: SocketAddr, slot: Arc<Slot>) {
        let bytes_left = CONNECTION_BYTES_MAX;
        let stream = BoundedStream { stream, bytes_left, slot: slot.clone() };
        let stream = match &self.tls {
            None => Stream::Plain(stream),
            Some(tls) => match tls.accept(stream).await {
                Ok(stream) => Stream::Tls(Box::new(stream)),
                Err(error) => {
                    tracing::warn!(
                        %peer,
                        %error,
                        "admin_handshake_failed: a client of the admin endpoint failed to agree on \
                         TLS"
                    );
                    return;
                }
            },
        };
        let router = TowerToHyperService::new(self.router.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(slot.clone());
            router.call(request)
        });
        let mut http = http1::Builder::new();
        // A client may end its side after the request and read on (RFC 9112 section 9.6).
        http.keep_alive(false).half_close(true);
        // An error is the end of this connection only.
        let _ = http.serve_connection(TokioIo::new(stream), service).await;
    }

    /// Ends when the connection has taken too long.
    async fn timeout(&self, slot: &Slot) {
        tokio::time::sleep(self.request_timeout).await;
        if !slot.waits() {
            tokio::time::sleep(CONNECTION_TIMEOUT.saturating_sub(self.request_timeout)).await;
        }
    }
}

/// A connection that ends when its client sent too much.
pub struct BoundedStream {
    stream: TcpStream,
    bytes_left: usize,
    slot: Arc<Slot>,
}

impl AsyncRead for BoundedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        match self.bytes_left.checked_sub(buf.filled().len() - before) {
            Some(left) => self.bytes_left = left,
            None => return Poll::Ready(Err(io::ErrorKind::QuotaExceeded.into())),
        }
        read
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if written.is_ready() {
            self.slot.took();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A connection with or without TLS.
pub enum Stream {
    Plain(BoundedStream),
    /// TLS, after the handshake.
    Tls(Box<TlsStream<BoundedStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
