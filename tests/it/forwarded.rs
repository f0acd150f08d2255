//! HTTP proxies: a listed one names the client in a header, and no other peer can.

use std::sync::Arc;

use rustls::version::TLS13;

use crate::support::secure::{self, Signer};
use crate::support::{Config, Gateway, Raw, eventually};

/// A header of the PROXY protocol that names 192.0.2.7:4660.
const LINE: &[u8] = b"PROXY TCP4 192.0.2.7 127.0.0.1 4660 80\r\n";

/// A right upgrade request with one more line.
fn request(to: std::net::SocketAddr, field: &str) -> String {
    Raw::request(to).replace("\r\n\r\n", &format!("\r\n{field}\r\n\r\n"))
}

/// Sends an upgrade request with one more line, and reads the head of the answer.
fn asked(gateway: &Gateway, field: &str) -> (Raw, String) {
    let mut raw = Raw::connect(gateway.ws);
    raw.send(request(gateway.ws, field).as_bytes());
    let head = raw.head();
    (raw, head)
}

#[test]
fn two_clients_through_one_listed_proxy_are_two_addresses() {
    let config = Config::new()
        .key("forwarded.from = [\"127.0.0.0/8\"]")
        .shard("limits.address_connections_max = 1");
    let gateway = Gateway::start(&config);
    let (mut first, head) = asked(&gateway, "X-Forwarded-For: 203.0.113.9, 192.0.2.7:4711");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(first.who(), "192.0.2.7:4711");
    let (mut second, head) = asked(&gateway, "X-Forwarded-For: 192.0.2.8, 127.0.0.9");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(second.who(), "192.0.2.8:0");
    let seen = gateway.admin_get("/connections?top=10").to_string();
    assert!(seen.contains("\"192.0.2.7:4711\"") && seen.contains("\"192.0.2.8:0\""), "{seen}");
    let (mut third, head) = asked(&gateway, "X-Forwarded-For: 192.0.2.7");
    assert!(head.starts_with("HTTP/1.1 429 ") && head.contains("Retry-After: 1"), "{head}");
    third.rest();
    assert_eq!(gateway.counter("address_connections_refused"), 1);
    let log = eventually("the log names the client", || {
        Some(gateway.log()).filter(|log| log.contains("client_refused"))
    });
    assert!(log.contains("peer=192.0.2.7:0"), "{log}");
    drop(first);
    eventually("its place is free", || {
        asked(&gateway, "X-Forwarded-For: 192.0.2.7").1.starts_with("HTTP/1.1 101 ").then_some(())
    });
}

#[test]
fn a_header_of_an_unlisted_peer_is_ignored() {
    let config = Config::new()
        .key("forwarded.from = [\"10.0.0.0/8\"]")
        .shard("limits.address_connections_max = 1");
    let gateway = Gateway::start(&config);
    let (mut raw, head) = asked(&gateway, "X-Forwarded-For: 192.0.2.7");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(raw.who(), raw.stream().local_addr().expect("connected").to_string());
    let answer =
        secure::raw(gateway.ws, request(gateway.ws, "X-Forwarded-For: 192.0.2.8").as_bytes());
    assert!(answer.starts_with(b"HTTP/1.1 429 "), "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn what_a_proxy_does_not_tell_is_counted_and_logged_and_nobody_is_refused_for_it() {
    let gateway = Gateway::start(
        &Config::new()
            .key("forwarded.from = [\"127.0.0.1\"]")
            .key("forwarded.header = \"forwarded\""),
    );
    let (mut raw, head) = asked(&gateway, "X-Forwarded-For: 192.0.2.7");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let own = raw.stream().local_addr().expect("connected").to_string();
    assert_eq!(raw.who(), own, "the other header is not read");
    let (mut raw, _) = asked(&gateway, "Forwarded: for=\"[2001:db8::7]:4711\";proto=https");
    assert_eq!(raw.who(), "[2001:db8::7]:4711");
    assert_eq!(gateway.counter("forwarded_missing"), 1);
    let (_raw, _) = asked(&gateway, "Forwarded: for=192.0.2.7, for=_hidden");
    assert_eq!(gateway.counter("forwarded_unclear"), 1);
    let log = eventually("both are logged", || {
        let has = |log: &String| {
            ["forwarded_missing", "forwarded_unclear"].iter().all(|e| log.contains(e))
        };
        Some(gateway.log()).filter(has)
    });
    assert!(log.contains("header=\"forwarded\"") && log.contains("entry=\"for=_hidden\""), "{log}");
}

#[test]
fn a_proxy_behind_a_balancer_of_tcp_names_the_client() {
    let gateway = Gateway::start(
        &Config::new()
            .key("proxy.from = [\"127.0.0.1\"]")
            .key("forwarded.from = [\"192.0.2.7\", \"127.0.0.1\"]"),
    );
    let of = |start: &[u8]| {
        let mut raw = Raw::connect(gateway.ws);
        raw.send(start);
        raw.send(request(gateway.ws, "X-Forwarded-For: 203.0.113.9").as_bytes());
        let head = raw.head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        raw.who()
    };
    assert_eq!(of(LINE), "203.0.113.9:0");
    assert_eq!(of(&[b"PROXY TCP4 192.0.2.8", &LINE[20..]].concat()), "192.0.2.8:4660");
    // The balancer does not know its peer: a local socket, whose other end is a proxy.
    assert_eq!(of(b"PROXY UNKNOWN\r\n"), "203.0.113.9:0");
}

#[test]
fn a_proxy_that_speaks_tls_to_the_gateway_names_the_client() {
    let (signer, certs) = (Signer::new(), tempfile::tempdir().expect("a directory"));
    signer.write(certs.path(), "a", &["a.test"]);
    let path = certs.path().join("a").display().to_string();
    let gateway = Gateway::start(
        &Config::new()
            .key("forwarded.from = [\"127.0.0.1\"]")
            .key("tls.listen = \"127.0.0.1:0\"")
            .key(&format!(
                "[[tls_certificate]]\nchain_file = \"{path}.pem\"\nkey_file = \"{path}.key\""
            ))
            .shard("limits.address_connections_max = 1"),
    );
    let wss = gateway.wss.expect("TLS is on");
    let config = Arc::new(signer.client(&TLS13));
    let open = |client: &str| {
        let stream = secure::connect(wss, &config, "a.test").expect("a handshake");
        let mut raw = Raw::over(stream);
        raw.send(request(wss, &format!("X-Forwarded-For: {client}")).as_bytes());
        let head = raw.head();
        (raw, head)
    };
    let (mut first, head) = open("192.0.2.7");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(first.who(), "192.0.2.7:0");
    let (_second, head) = open("192.0.2.8");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    // In HTTP: the handshake is over.
    let (_third, head) = open("192.0.2.7");
    assert!(head.starts_with("HTTP/1.1 429 ") && head.contains("Retry-After: 1"), "{head}");
}

#[test]
fn proxies_and_their_header_are_set_in_a_running_gateway() {
    let gateway = Gateway::start(&Config::new());
    let lines = "X-Forwarded-For: 192.0.2.7\r\nForwarded: for=192.0.2.8";
    let (mut raw, _) = asked(&gateway, lines);
    assert_eq!(raw.who(), raw.stream().local_addr().expect("connected").to_string());
    let on = Config::new().key("forwarded.from = [\"127.0.0.1\"]");
    for (config, client) in
        [(on.clone(), "192.0.2.7:0"), (on.key("forwarded.header = \"forwarded\""), "192.0.2.8:0")]
    {
        gateway.rewrite(&config);
        gateway.signal(rustix::process::Signal::HUP);
        eventually("new connections are read so", || {
            (asked(&gateway, lines).0.who() == client).then_some(())
        });
    }
}
