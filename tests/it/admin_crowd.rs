//! Crowds at the admin port: whoever connects and says nothing, or never an end, keeps nobody out.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustls::version::TLS13;

use crate::support::secure::{Signer, Stream};
use crate::support::{Config, Gateway, PATIENCE, crowd, eventually};

/// Longest time in which a probe must be answered, whatever the others do.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);

/// Asks for `/healthz` on a new connection.
#[track_caller]
fn probe(admin: SocketAddr) {
    let began = Instant::now();
    let mut stream = TcpStream::connect(admin).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?} after {:?}", began.elapsed());
    assert!(began.elapsed() < ANSWERED_WITHIN, "{:?}", began.elapsed());
}

#[test]
fn idle_sockets_do_not_keep_a_probe_out() {
    let gateway = Gateway::start(&Config::new());
    for count in [64, 1_000] {
        let idle = crowd(gateway.admin, count);
        (0..3).for_each(|_| probe(gateway.admin));
        drop(idle);
    }
    eventually("the log says so", || gateway.log().contains("admin_crowded: ").then_some(()));
    assert_eq!(gateway.admin("/stats").0, 200, "everything else is there, too");
}

#[test]
fn half_a_request_is_no_request_whatever_is_added_to_it() {
    let gateway = Gateway::start(&Config::new());
    let starts = [
        &b"GET /healthz HTTP/1.1\r\nX-Slow: "[..],
        b"POST /reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16000\r\n\r\n",
        b"P",
    ];
    let mut slow = crowd(gateway.admin, 900);
    for (n, stream) in slow.iter_mut().enumerate() {
        let _ = stream.write_all(starts[n % starts.len()]);
        stream.set_nonblocking(true).expect("a socket");
    }
    for _ in 0..5 {
        // Every one that is still there adds a byte.
        slow.iter().for_each(|mut stream| drop(stream.write(b"a")));
        probe(gateway.admin);
    }
}

/// More clients than there are places, each of which comes again as soon as it is closed.
#[test]
fn sockets_that_come_again_do_not_keep_a_probe_out() {
    let gateway = Gateway::start(&Config::new());
    let (ends, came) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let admin = gateway.admin;
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (ends, came) = (ends.clone(), came.clone());
            std::thread::spawn(move || {
                let connect = || {
                    let stream = TcpStream::connect(admin).expect("it listens");
                    stream.set_nonblocking(true).expect("a socket");
                    came.fetch_add(1, Ordering::Relaxed);
                    stream
                };
                let mut held: Vec<TcpStream> = (0..80).map(|_| connect()).collect();
                while !ends.load(Ordering::Relaxed) {
                    for stream in &mut held {
                        let end = stream.read(&mut [0; 1]);
                        if !matches!(&end, Err(e) if e.kind() == ErrorKind::WouldBlock) {
                            *stream = connect();
                        }
                    }
                    // Their pace: the probe needs a core, too.
                    std::thread::sleep(Duration::from_millis(1));
                }
            })
        })
        .collect();
    eventually("they are closed and come again", || {
        (came.load(Ordering::Relaxed) > 1_200).then_some(())
    });
    (0..10).for_each(|_| probe(admin));
    ends.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().expect("it connects"));
}

/// Clients whose requests are complete get their answers whole, however many come after them.
#[test]
fn a_request_that_is_being_answered_is_not_cut() {
    let gateway = Gateway::start(&Config::new());
    let mut asking: Vec<TcpStream> = (0..40)
        .map(|_| {
            let mut stream = TcpStream::connect(gateway.admin).expect("it listens");
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("sent");
            stream
        })
        .collect();
    let _idle = crowd(gateway.admin, 900);
    probe(gateway.admin);
    for stream in &mut asking {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the whole answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        assert_eq!(length.and_then(|n| n.parse().ok()), Some(body.len()), "{head}");
    }
}

#[test]
fn handshakes_that_do_not_end_keep_no_probe_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let signer = Signer::new();
    signer.write(dir.path(), "admin", &["localhost"]);
    let at = |file: &str| dir.path().join(file).display().to_string();
    let config = Config::new()
        .key(&format!("admin.tls_cert = \"{}\"", at("admin.pem")))
        .key(&format!("admin.tls_key = \"{}\"", at("admin.key")));
    let gateway = Gateway::start(&config);
    let client = Arc::new(signer.client(&TLS13));
    let mut hello = Vec::new();
    let name = || "localhost".try_into().expect("a name");
    let mut first = rustls::ClientConnection::new(client.clone(), name()).expect("a client");
    first.write_tls(&mut hello).expect("a vector takes it");
    let mut stuck = crowd(gateway.admin, 900);
    for (n, stream) in stuck.iter_mut().enumerate() {
        // Nothing, half of a ClientHello, or all of it and no answer to the server's part.
        let _ = stream.write_all(&hello[..n % 3 * hello.len() / 2]);
    }
    for _ in 0..3 {
        let began = Instant::now();
        let tcp = TcpStream::connect(gateway.admin).expect("it listens");
        tcp.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let connection = rustls::ClientConnection::new(client.clone(), name()).expect("a client");
        let mut stream = Stream::new(connection, tcp);
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").expect("sent");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(answer.starts_with("HTTP/1.0 200 "), "{answer:?} after {:?}", began.elapsed());
        assert!(began.elapsed() < 2 * ANSWERED_WITHIN, "{:?}", began.elapsed());
    }
}
