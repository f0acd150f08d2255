//! The bytes of HTTP/2 on a connection: as the socket has them, or within TLS.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::io::Io;
use crate::tls::service::ServiceTls;

/// Bytes of HTTP/2's frame header (RFC 9113 4.1).
const FRAME_HEADER_BYTES: usize = 9;
/// Type of SETTINGS (RFC 9113 6.5), which must be the server's first frame (3.4).
const FRAME_SETTINGS: u8 = 4;
/// Beginning of a record of TLS: an alert (21) or a handshake (22), and the version's first byte
/// (RFC 8446 5.1).
const TLS_RECORDS: [[u8; 2]; 2] = [[21, 3], [22, 3]];

/// h2's end of a connection.
pub(super) struct Stream {
    layer: Layer,
    first: [u8; FRAME_HEADER_BYTES],
    /// Bytes of `first` that were read.
    first_bytes: usize,
}

enum Layer {
    Plain(Io),
    /// In a box, because it is a kilobyte large, and most connections are plain.
    Tls(Box<TlsStream<Io>>, Arc<ServiceTls>),
}

impl Stream {
    /// A connection without TLS.
    pub(super) fn plain(io: Io) -> Self {
        Self::new(Layer::Plain(io))
    }

    /// Makes the handshake of TLS with the instance at `address`; the error is a reason in words.
    pub(super) async fn secured(
        io: Io,
        tls: Arc<ServiceTls>,
        address: SocketAddr,
    ) -> Result<Self, String> {
        let connector = TlsConnector::from(tls.config());
        let stream = connector.connect(tls.name(address), io).await.map_err(|e| tls.why(&e))?;
        ServiceTls::check_protocol(stream.get_ref().1)?;
        Ok(Self::new(Layer::Tls(Box::new(stream), tls)))
    }

    fn new(layer: Layer) -> Self {
        Self { layer, first: [0; FRAME_HEADER_BYTES], first_bytes: 0 }
    }

    /// Checks the first frame header: a peer that does not speak HTTP/2 is found before h2 waits
    /// for a frame of 4 MiB.
    fn check_first(&mut self, bytes: &[u8]) -> io::Result<()> {
        let have = self.first_bytes;
        let n = bytes.len().min(FRAME_HEADER_BYTES - have);
        self.first[have..have + n].copy_from_slice(&bytes[..n]);
        self.first_bytes += n;
        let [_, _, _, kind, flags, stream @ ..] = self.first;
        if self.first_bytes < FRAME_HEADER_BYTES && !self.is_tls_record() {
            return Ok(());
        }
        let mut socket = self.io().0.borrow_mut();
        if (kind, flags, stream) == (FRAME_SETTINGS, 0, [0; 4]) {
            socket.note_settings();
            return Ok(());
        }
        let why = self.not_http2();
        socket.fail_with(io::ErrorKind::InvalidData, || why.into());
        Err(io::Error::new(io::ErrorKind::InvalidData, why))
    }

    /// Whether the first bytes are those of a server of TLS; an alert has seven bytes, fewer than a
    /// frame header.
    fn is_tls_record(&self) -> bool {
        self.first_bytes >= 2 && TLS_RECORDS.contains(&[self.first[0], self.first[1]])
    }

    /// Reason in words why the first bytes are no HTTP/2, with the way out.
    fn not_http2(&self) -> &'static str {
        if self.is_tls_record() {
            "it speaks TLS: set tls of the service"
        } else if self.first.starts_with(b"HTTP/1") {
            "it speaks HTTP/1, not HTTP/2 as gRPC does; correct the address"
        } else {
            "not an HTTP/2 server"
        }
    }

    fn io(&self) -> &Io {
        match &self.layer {
            Layer::Plain(io) => io,
            Layer::Tls(stream, _) => stream.get_ref().0,
        }
    }
}

impl Layer {
    /// Takes note of an error of TLS. One of the socket was noted before, and stays the reason.
    fn noted(stream: &TlsStream<Io>, tls: &ServiceTls, e: io::Error) -> io::Error {
        let mut socket = stream.get_ref().0.0.borrow_mut();
        socket.fail_with(e.kind(), || tls.why(&e));
        e
    }
}

impl AsyncRead for Layer {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(stream, tls) => match ready!(Pin::new(&mut **stream).poll_read(cx, buf)) {
                // A server that ends without close_notify: HTTP/2 itself tells whether something is
                // missing, and so does gRPC.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
                result => Poll::Ready(result.map_err(|e| Self::noted(stream, tls, e))),
            },
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.first_bytes == FRAME_HEADER_BYTES {
            return Pin::new(&mut this.layer).poll_read(cx, buf);
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.layer).poll_read(cx, buf))?;
        Poll::Ready(this.check_first(&buf.filled()[before..]))
    }
}

impl AsyncWrite for Stream {
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
        match &mut self.get_mut().layer {
            Layer::Plain(io) => Pin::new(io).poll_write_vectored(cx, slices),
            Layer::Tls(stream, _) => Pin::new(&mut **stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Puts the records that TLS holds, because the socket was full, with the gathered bytes; those
    /// leave at the end of the turn.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().layer {
            Layer::Plain(io) => Pin::new(io).poll_flush(cx),
            Layer::Tls(stream, _) => Pin::new(&mut **stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().layer {
            Layer::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Layer::Tls(stream, _) => Pin::new(&mut **stream).poll_shutdown(cx),
        }
    }
}
