//! PROXY protocol: a listed balancer passes on the client's address, and no other peer can.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::version::TLS13;
use serde_json::json;

use crate::support::secure::{self, Signer};
use crate::support::{Client, Config, Gateway, Raw, eventually};

/// A header of version 2 that names 192.0.2.7:4660.
const HEADER: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x7f\0\0\x01\x12\x34\0\x50";
/// The same as a line of version 1.
const LINE: &[u8] = b"PROXY TCP4 192.0.2.7 127.0.0.1 4660 80\r\n";
/// A header of a balancer that connects for itself.
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0";

/// The header with a TLV of `bytes`, whose type is for experiments.
fn with_tlvs(bytes: u16) -> Vec<u8> {
    let mut header = HEADER.to_vec();
    header[14..16].copy_from_slice(&(12 + 3 + bytes).to_be_bytes());
    header.push(0xf0);
    header.extend(bytes.to_be_bytes());
    header.resize(HEADER.len() + 3 + usize::from(bytes), b'x');
    header
}

fn listed() -> Gateway {
    Gateway::start(&Config::new().key("proxy.from = [\"10.0.0.0/8\", \"127.0.0.0/8\"]"))
}

fn upgrade(raw: &mut Raw, to: SocketAddr) {
    raw.send(Raw::request(to).as_bytes());
    let head = raw.head();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
}

#[test]
fn a_listed_balancer_tells_the_clients_address_however_it_is_cut() {
    let gateway = listed();
    let whole = [HEADER, Raw::request(gateway.ws).as_bytes()].concat();
    let line = [LINE, Raw::request(gateway.ws).as_bytes()].concat();
    let long = [&with_tlvs(3_000)[..], Raw::request(gateway.ws).as_bytes()].concat();
    // All at once; header and request apart; byte for byte; of both versions on the same port.
    for (whole, cut) in [
        (&whole, whole.len()),
        (&whole, HEADER.len()),
        (&whole, 1),
        (&line, line.len()),
        (&line, LINE.len()),
        (&line, 1),
        (&long, long.len()),
        (&long, 700),
    ] {
        let mut raw = Raw::connect(gateway.ws);
        for part in whole.chunks(cut) {
            raw.send(part);
        }
        let head = raw.head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert_eq!(raw.who(), "192.0.2.7:4660");
        let seen = gateway.admin_get("/connections?top=10");
        assert!(seen.to_string().contains("192.0.2.7:4660"), "{seen}");
    }
    let mut raw = Raw::connect(gateway.ws);
    let own = raw.stream().local_addr().expect("connected").to_string();
    raw.send(LOCAL);
    upgrade(&mut raw, gateway.ws);
    assert_eq!(raw.who(), own, "the balancer itself");
    let mut raw = Raw::connect(gateway.ws);
    let own = raw.stream().local_addr().expect("connected").to_string();
    raw.send(b"PROXY UNKNOWN\r\n");
    upgrade(&mut raw, gateway.ws);
    assert_eq!(raw.who(), own, "a balancer that does not know");
}

#[test]
fn a_listed_balancer_without_a_header_is_closed_without_an_answer() {
    let gateway = listed();
    let long = [&b"PROXY TCP4 "[..], &[b'1'; 200]].concat();
    let wrong = [
        &b"GET /ws HTTP/1.1\r\n\r\n"[..],
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n",
        b"\0",
        &long,
        &with_tlvs(5_000)[..16],
    ];
    for (n, bytes) in wrong.iter().enumerate() {
        assert_eq!(secure::raw(gateway.ws, bytes), b"", "{n}");
        assert_eq!(gateway.counter("proxy_refused"), n as u64 + 1);
    }
    // Why, and of whom, once a second.
    let log = eventually("it is logged", || {
        Some(gateway.log()).filter(|log| log.contains("proxy_refused"))
    });
    let why = "no PROXY protocol header: did it come past the balancer?";
    assert!(
        log.contains(" WARN ") && log.contains("peer=127.0.0.1:") && log.contains(why),
        "{log}"
    );
    assert!(log.matches("proxy_refused").count() < wrong.len(), "{log}");
    // Half a header, and no more: the deadline of the handshake holds for it.
    let gateway = Gateway::start(
        &Config::new().key("proxy.from = [\"127.0.0.1\"]").shard("conn.handshake_timeout_ms = 200"),
    );
    let mut raw = Raw::connect(gateway.ws);
    raw.send(&HEADER[..20]);
    assert!(raw.rest().starts_with(b"HTTP/1.1 408 "));
    drop(raw);
    eventually("it is gone", || (gateway.admin_get("/stats")["connections"] == 0).then_some(()));
}

#[test]
fn a_header_of_anybody_else_is_a_bad_request() {
    let gateway = Gateway::start(&Config::new().key("proxy.from = [\"10.0.0.0/8\"]"));
    let whole = [HEADER, Raw::request(gateway.ws).as_bytes()].concat();
    let answer = secure::raw(gateway.ws, &whole);
    assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&answer));
    let mut raw = Raw::connect(gateway.ws);
    let own = raw.stream().local_addr().expect("connected").to_string();
    upgrade(&mut raw, gateway.ws);
    assert_eq!(raw.who(), own);
}

#[test]
fn balancers_are_listed_in_a_running_gateway() {
    let gateway = Gateway::start(&Config::new());
    let mut before = Raw::upgraded(gateway.ws);
    gateway.rewrite(&Config::new().key("proxy.from = [\"127.0.0.1\"]"));
    gateway.signal(rustix::process::Signal::HUP);
    eventually("new connections need a header", || {
        let answer = secure::raw(gateway.ws, b"GET / HTTP/1.1\r\n\r\n");
        answer.is_empty().then_some(())
    });
    let own = before.stream().local_addr().expect("connected").to_string();
    assert_eq!(before.who(), own, "who is here stays as it is");
}

#[test]
fn a_header_stands_before_tls() {
    let (signer, certs) = (Signer::new(), tempfile::tempdir().expect("a directory"));
    signer.write(certs.path(), "a", &["a.test"]);
    let path = certs.path().join("a").display().to_string();
    let gateway = Gateway::start(
        &Config::new().key("proxy.from = [\"127.0.0.1\"]").key("tls.listen = \"127.0.0.1:0\"").key(
            &format!("[[tls_certificate]]\nchain_file = \"{path}.pem\"\nkey_file = \"{path}.key\""),
        ),
    );
    let wss = gateway.wss.expect("TLS is on");
    let config = Arc::new(signer.client(&TLS13));
    let mut tcp = TcpStream::connect(wss).expect("it listens");
    tcp.write_all(HEADER).expect("sent");
    let mut client = Client::upgrade(secure::over(tcp, &config, "a.test").expect("a handshake"));
    assert_eq!(client.call(9002, json!(null))["payload"]["peer"], "192.0.2.7:4660");
    // Without a header the hello is taken for a wrong header.
    assert!(secure::connect(wss, &config, "a.test").is_err());
    assert_eq!(gateway.counter("proxy_refused"), 1);
}

#[test]
fn limits_hold_for_the_told_address_and_not_for_the_balancer() {
    let config = Config::new()
        .key("proxy.from = [\"127.0.0.0/8\"]")
        .shard("limits.address_connections_max = 2");
    let gateway = Gateway::start(&config);
    let of = |last: u8| {
        let mut header = HEADER.to_vec();
        header[19] = last;
        let mut raw = Raw::connect(gateway.ws);
        // Header and request in one piece.
        raw.send(&[&header, Raw::request(gateway.ws).as_bytes()].concat());
        let head = raw.head();
        (raw, head)
    };
    let kept: Vec<_> = [7, 7, 8, 8, 9].map(of).into();
    assert!(kept.iter().all(|(_, head)| head.starts_with("HTTP/1.1 101 ")), "{:?}", kept[4].1);
    let (mut third, head) = of(7);
    assert!(head.starts_with("HTTP/1.1 429 ") && head.contains("Retry-After: 1"), "{head}");
    third.rest();
    // The balancer's own connections, however many.
    let own: Vec<Raw> = (0..5)
        .map(|_| {
            let mut raw = Raw::connect(gateway.ws);
            raw.send(LOCAL);
            upgrade(&mut raw, gateway.ws);
            raw
        })
        .collect();
    drop(kept);
    eventually("their places are free", || of(7).1.starts_with("HTTP/1.1 101 ").then_some(()));
    drop(own);
}
