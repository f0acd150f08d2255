//! Sockets of the admin endpoint: a bounded number of connections, each with a deadline and a cap
//! on bytes, with TLS if that is configured.

use std::fs;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

use crate::config::settings::AdminSettings;
use crate::limits::ACCEPT_PAUSE;
use crate::tls::provider;

/// Longest life of a connection: a gathering takes at most one second, the rest is the client's
/// time.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes read from one connection at most: request line and headers (browsers send under 4 KiB), a
/// body of [`super::BODY_BYTES_MAX`], and a TLS handshake with its records, under 4 KiB.
const CONNECTION_BYTES_MAX: usize = (16 << 10) + super::BODY_BYTES_MAX + (4 << 10);

/// Reads certificate and key, if TLS is configured. The error is one line.
pub fn tls(settings: &AdminSettings) -> Result<Option<TlsAcceptor>, String> {
    let (Some(cert), Some(key)) = (&settings.tls_cert, &settings.tls_key) else {
        return Ok(None);
    };
    let wrong =
        |name: &str, path: &Path, why: String| format!("admin.{name} = {}: {why}", path.display());
    let certs = fs::read(cert).map_err(|e| wrong("tls_cert", cert, e.to_string()))?;
    let certs: Vec<_> = CertificateDer::pem_slice_iter(&certs)
        .collect::<Result<_, _>>()
        .map_err(|e| wrong("tls_cert", cert, e.to_string()))?;
    if certs.is_empty() {
        return Err(wrong("tls_cert", cert, "there is no PEM certificate in it".into()));
    }
    let text = fs::read(key).map_err(|e| wrong("tls_key", key, e.to_string()))?;
    let own = PrivateKeyDer::from_pem_slice(&text)
        .map_err(|e| wrong("tls_key", key, format!("no PEM private key: {e}")))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_no_client_auth()
        .with_single_cert(certs, own)
        .map_err(|e| wrong("tls_key", key, format!("does not go with admin.tls_cert: {e}")))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

/// Accepts for ever, and sends the streams that are ready to be read. A handshake is a task of its
/// own, so that a slow one holds up no other.
pub async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    connections_max: usize,
    ready: mpsc::Sender<(Stream, SocketAddr)>,
) {
    let slots = Arc::new(Semaphore::new(connections_max));
    loop {
        let slot = slots.clone().acquire_owned().await.expect("never closed");
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(
                    %error,
                    "admin_accept_failed: the admin endpoint cannot accept a connection; raise \
                     `ulimit -n` (LimitNOFILE) if files are the cause"
                );
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let deadline = Box::pin(tokio::time::sleep(CONNECTION_TIMEOUT));
        let bytes_left = CONNECTION_BYTES_MAX;
        let stream = BoundedStream { stream, deadline, bytes_left, _slot: slot };
        let Some(tls) = tls.clone() else {
            if ready.send((Stream::Plain(stream), peer)).await.is_err() {
                return;
            }
            continue;
        };
        let ready = ready.clone();
        tokio::spawn(async move {
            // The deadline of the connection holds for the handshake, too.
            match tls.accept(stream).await {
                // An error is the end of the endpoint.
                Ok(stream) => drop(ready.send((Stream::Tls(Box::new(stream)), peer)).await),
                Err(error) => tracing::debug!(
                    %peer,
                    %error,
                    "admin_handshake_failed: a client of the admin endpoint failed to agree on TLS"
                ),
            }
        });
    }
}

/// Receiver of the streams of [`accept`], as axum takes it.
pub struct Incoming {
    /// Streams that are ready to be read.
    pub ready: mpsc::Receiver<(Stream, SocketAddr)>,
    /// Address of the listener.
    pub address: SocketAddr,
}

impl axum::serve::Listener for Incoming {
    type Io = Stream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Stream, SocketAddr) {
        match self.ready.recv().await {
            Some(accepted) => accepted,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// A connection that ends at its deadline, or when its client sent too much.
pub struct BoundedStream {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    bytes_left: usize,
    _slot: OwnedSemaphorePermit,
}

impl BoundedStream {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let late = self.deadline.as_mut().poll(cx).is_ready();
        if late { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
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
