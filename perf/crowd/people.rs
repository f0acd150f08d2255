//! The clients of the crowd: connections that sign in and are kept, and some that talk.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::gateway::{Gateway, NAME, token};

/// Time between two messages of a talking client.
const PAUSE: Duration = Duration::from_millis(200);
/// Connections from one source address: 28,000 ports are to be had, and some are in use.
const PER_SOURCE: usize = 10_000;

/// Transport of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Line {
    Plain,
    Tls,
}

/// A client that is connected, signed in, and says nothing.
pub enum Person {
    Plain { _stream: TcpStream },
    Tls { _stream: Box<TlsStream<TcpStream>> },
}

/// Pins this thread to core 1. A child started by it would be, too.
pub fn pin() {
    assert!(core_affinity::set_for_current(core_affinity::CoreId { id: 1 }), "there are two cores");
}

async fn tcp(to: SocketAddr, n: usize) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    let source = SocketAddr::from(([127, 0, 0, 2 + (n / PER_SOURCE) as u8], 0));
    socket.bind(source).expect("a port");
    let stream = socket.connect(to).await.expect("it listens");
    stream.set_nodelay(true).expect("an option");
    stream
}

/// Upgrades with a token, and reads up to `auth_ok`.
async fn sign_in<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, n: usize) {
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
         Authorization: Bearer {}\r\n\r\n",
        token(n)
    );
    stream.write_all(request.as_bytes()).await.expect("sent");
    let (mut told, mut part) = (Vec::new(), [0; 1024]);
    while !told.windows(7).any(|word| word == b"auth_ok") {
        let n = stream.read(&mut part).await.expect("read");
        assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&told));
        told.extend_from_slice(&part[..n]);
    }
}

/// Connects the clients of these numbers, at most `at_once` of them at a time.
pub async fn gather(
    gateway: &Gateway,
    line: Line,
    numbers: Range<usize>,
    at_once: usize,
) -> Vec<Person> {
    let gate = Arc::new(Semaphore::new(at_once));
    let mut coming = JoinSet::new();
    for n in numbers {
        let gate = gate.clone();
        let (ws, wss) = (gateway.ws, gateway.wss);
        let connector = TlsConnector::from(gateway.trusting.clone());
        coming.spawn(async move {
            let _place = gate.acquire().await.expect("never closed");
            match line {
                Line::Plain => {
                    let mut stream = tcp(ws, n).await;
                    sign_in(&mut stream, n).await;
                    Person::Plain { _stream: stream }
                }
                Line::Tls => {
                    let name = ServerName::try_from(NAME).expect("a name");
                    let stream = tcp(wss, n).await;
                    let shaken = connector.connect(name, stream).await;
                    let mut stream = Box::new(shaken.expect("a handshake"));
                    sign_in(&mut *stream, n).await;
                    Person::Tls { _stream: stream }
                }
            }
        });
    }
    coming.join_all().await
}

/// Talking clients, in a thread of their own.
pub struct Talk {
    seen: Arc<Mutex<Histogram<u64>>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("right bounds")
}

impl Talk {
    /// `count` clients that talk from now on.
    pub fn start(gateway: &Gateway, count: usize) -> Self {
        let (seen, stop) = (Arc::new(Mutex::new(histogram())), Arc::new(AtomicBool::new(false)));
        let (to, told, ended) = (gateway.ws, seen.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            pin();
            super::runtime().block_on(async {
                let mut talking = JoinSet::new();
                for n in 0..count {
                    let (seen, stop) = (told.clone(), ended.clone());
                    talking.spawn(async move { talk(to, n, count, &seen, &stop).await });
                }
                talking.join_all().await;
            });
        });
        let talk = Self { seen, stop, thread };
        // All are there, and warm.
        talk.until(|| talk.seen.lock().expect("nobody panicked").len() > 5 * count as u64);
        talk.take();
        talk
    }

    /// Waits while the clients talk.
    pub fn until(&self, done: impl Fn() -> bool) {
        while !done() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Latencies of the next `time`.
    pub fn over(&self, time: Duration) -> Histogram<u64> {
        self.take();
        let end = Instant::now() + time;
        self.until(|| Instant::now() >= end);
        self.take()
    }

    /// Latencies since the last call.
    pub fn take(&self) -> Histogram<u64> {
        std::mem::replace(&mut *self.seen.lock().expect("nobody panicked"), histogram())
    }

    /// Stops the clients.
    pub fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("they talked to the end");
    }
}

async fn talk(
    to: SocketAddr,
    n: usize,
    of: usize,
    seen: &Mutex<Histogram<u64>>,
    stop: &AtomicBool,
) {
    let mut stream = tcp(to, n).await;
    sign_in(&mut stream, 1_000_000 + n).await;
    // Spread over the pause, so that each moment has its share of them.
    let mut due = Instant::now() + PAUSE + PAUSE.mul_f64(n as f64 / of as f64);
    let mut part = [0; 1024];
    for seq in 1_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        tokio::time::sleep_until(due.into()).await;
        let text = format!(r#"{{"msg_id":1001,"seq":{seq},"payload":"hello"}}"#);
        // A mask of zeros is a mask (RFC 6455, 5.3).
        let head = [0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
        stream.write_all(&[&head, text.as_bytes()].concat()).await.expect("sent");
        // Its answer is one small frame, and nothing else is said.
        let n = stream.read(&mut part).await.expect("read");
        assert!(n > 0 && part[..n].windows(6).any(|word| word == b"\"seq\":"), "an answer");
        // From when it was due: a late start is a late answer.
        let us = due.elapsed().as_micros() as u64;
        seen.lock().expect("nobody panicked").saturating_record(us.max(1));
        due += PAUSE;
    }
}
