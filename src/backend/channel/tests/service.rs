//! The service's side of the tests: h2's own server, and raw frames over a blocking socket.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use crate::backend::framing::{PREFIX_BYTES, prefix};

/// HTTP/2 frame types (RFC 9113 6).
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
/// Flags: END_STREAM (DATA, HEADERS), ACK (SETTINGS, PING), END_HEADERS (HEADERS).
pub(super) const END_STREAM: u8 = 1;
pub(super) const ACK: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

/// A listener with a thread; both end with it.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // This connection makes the thread's accept() return.
        let _ = TcpStream::connect(self.address);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

fn serve(
    listener: TcpListener,
    accepted: impl Fn(TcpStream, usize) + Send + Sync + 'static,
) -> Server {
    let address = listener.local_addr().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let its_stop = Arc::clone(&stop);
    let accepted = Arc::new(accepted);
    let thread = std::thread::spawn(move || {
        let mut threads = Vec::new();
        for (index, stream) in listener.incoming().enumerate() {
            if its_stop.load(Ordering::SeqCst) {
                break;
            }
            let (stream, accepted) = (stream.unwrap(), Arc::clone(&accepted));
            threads.push(std::thread::spawn(move || accepted(stream, index)));
        }
        drop(listener);
        for thread in threads {
            thread.join().unwrap();
        }
    });
    Server { address, stop, thread: Some(thread) }
}

/// An address of this host.
pub(super) fn bind() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// A well-behaved gRPC server; the message of its answer is `answer` of the request's.
pub(super) fn serve_h2(answer: fn(Bytes) -> Bytes) -> Server {
    serve_h2_over(None, answer)
}

/// Like [`serve_h2`], over TLS if there is a configuration.
pub(super) fn serve_h2_over(tls: Option<ServerConfig>, answer: fn(Bytes) -> Bytes) -> Server {
    let tls = tls.map(Arc::new);
    serve(bind(), move |stream, _| {
        let tls = tls.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_nonblocking(true).unwrap();
        runtime.block_on(async move {
            let stream = tokio::net::TcpStream::from_std(stream).unwrap();
            let Some(tls) = tls else { return converse(stream, answer).await };
            if let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await {
                converse(stream, answer).await;
            }
        });
    })
}

async fn converse<IO>(io: IO, answer: fn(Bytes) -> Bytes)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let Ok(mut connection) = h2::server::handshake(io).await else {
        return;
    };
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(answer_one(request, respond, answer));
    }
}

async fn answer_one(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    answer: fn(Bytes) -> Bytes,
) {
    assert_eq!(request.uri().path(), "/test.Service/Method");
    assert_eq!(request.headers()["session"], "s-1");
    assert!(request.headers().contains_key("grpc-timeout"));
    let mut body = request.into_body();
    let mut bytes = Vec::new();
    while let Some(Ok(chunk)) = body.data().await {
        let _ = body.flow_control().release_capacity(chunk.len());
        bytes.extend_from_slice(&chunk);
    }
    let message = answer(Bytes::from(bytes.split_off(PREFIX_BYTES)));
    let head = http::Response::builder().header("content-type", "application/grpc");
    let Ok(mut send) = respond.send_response(head.body(()).unwrap(), false) else {
        return;
    };
    let framed = [&prefix(message.len() as u32)[..], &message[..]].concat();
    let _ = send.send_data(Bytes::from(framed), false);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let _ = send.send_trailers(trailers);
}

/// A server whose every connection (numbered) is a script.
pub(super) fn serve_raw(script: impl Fn(Raw, usize) + Send + Sync + 'static) -> Server {
    serve_raw_at(bind(), script)
}

/// Like [`serve_raw`], on a listener that exists.
pub(super) fn serve_raw_at(
    listener: TcpListener,
    script: impl Fn(Raw, usize) + Send + Sync + 'static,
) -> Server {
    serve(listener, move |stream, index| {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_nodelay(true).unwrap();
        script(Raw { stream }, index);
    })
}

/// A connection, frame by frame. The script ends when the client closes.
pub(super) struct Raw {
    pub(super) stream: TcpStream,
}

pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) id: u32,
    pub(super) payload: Vec<u8>,
}

impl Raw {
    pub(super) fn write(&mut self, bytes: &[u8]) {
        // The client may be gone; its side notices that.
        let _ = self.stream.write_all(bytes);
    }

    pub(super) fn frame(&mut self, kind: u8, flags: u8, id: u32, payload: &[u8]) {
        self.write(&frame(kind, flags, id, payload));
    }

    /// The server's preface.
    pub(super) fn greet(&mut self) {
        self.greet_with(&[]);
    }

    pub(super) fn greet_with(&mut self, settings: &[u8]) {
        let mut preface = [0; 24];
        if self.stream.read_exact(&mut preface).is_ok() {
            assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        }
        self.frame(SETTINGS, 0, 0, settings);
    }

    /// The next frame; `None` at the end of the connection.
    pub(super) fn read(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).ok()?;
        let [a, b, c, kind, flags, id @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.stream.read_exact(&mut payload).ok()?;
        if (kind, flags & ACK) == (SETTINGS, 0) {
            self.frame(SETTINGS, ACK, 0, &[]);
        }
        Some(Frame { kind, flags, id: u32::from_be_bytes(id), payload })
    }

    /// Reads until a frame of this type.
    pub(super) fn read_kind(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.read()?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    /// Reads to the end of a request; returns its stream.
    pub(super) fn request(&mut self) -> Option<u32> {
        loop {
            let frame = self.read()?;
            if frame.kind == DATA && frame.flags & END_STREAM != 0 {
                return Some(frame.id);
            }
        }
    }

    pub(super) fn headers(&mut self, id: u32, fields: &[(&str, &str)], flags: u8) {
        self.frame(HEADERS, END_HEADERS | flags, id, &block(fields));
    }

    /// The head of a good response.
    pub(super) fn head(&mut self, id: u32) {
        self.headers(id, &[(":status", "200"), ("content-type", "application/grpc")], 0);
    }

    pub(super) fn message(&mut self, id: u32, message: &[u8]) {
        let framed = [&prefix(message.len() as u32)[..], message].concat();
        self.frame(DATA, 0, id, &framed);
    }

    pub(super) fn trailers(&mut self, id: u32, grpc_status: &str) {
        self.headers(id, &[("grpc-status", grpc_status)], END_STREAM);
    }

    /// A whole response.
    pub(super) fn answer(&mut self, id: u32, message: &[u8]) {
        self.head(id);
        self.message(id, message);
        self.trailers(id, "0");
    }

    pub(super) fn reset(&mut self, id: u32, code: u32) {
        self.frame(RST_STREAM, 0, id, &code.to_be_bytes());
    }

    pub(super) fn go_away(&mut self, last: u32, code: u32, text: &str) {
        let payload = [&last.to_be_bytes()[..], &code.to_be_bytes(), text.as_bytes()].concat();
        self.frame(GOAWAY, 0, 0, &payload);
    }

    /// Reads until the client closes.
    pub(super) fn drain(&mut self) {
        while self.read().is_some() {}
    }

    /// Ends the connection with RST, as a killed process with unread data does.
    pub(super) fn kill(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(self);
    }

    /// Ends the connection with FIN.
    pub(super) fn hang_up(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

pub(super) fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
    let mut bytes = vec![a, b, c, kind, flags];
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// HPACK: every field as "literal without indexing, new name" (RFC 7541 6.2.2).
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "a length of one byte");
            bytes.push(text.len() as u8);
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    bytes
}
