//! The upgrade from outside: every wrong request that a socket can send gets the status of its
//! fault.

use std::net::{Shutdown, SocketAddr};
use std::time::Instant;

use rustix::process::Signal;

use crate::support::{Client, Config, Gateway, Raw, eventually, frame, several};

/// A right upgrade request, with its lines changed.
fn request(to: SocketAddr, change: impl Fn(&mut Vec<String>)) -> String {
    let mut lines: Vec<String> = vec![
        "GET /ws HTTP/1.1".into(),
        format!("Host: {to}"),
        "Upgrade: websocket".into(),
        "Connection: keep-alive, Upgrade".into(),
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==".into(),
        "Sec-WebSocket-Version: 13".into(),
    ];
    change(&mut lines);
    lines.join("\r\n") + "\r\n\r\n"
}

/// A right request with another line in the place of the `n`-th.
fn instead(to: SocketAddr, n: usize, line: &str) -> String {
    request(to, |lines| lines[n] = line.into())
}

/// A right request with another line.
fn with(to: SocketAddr, line: &str) -> String {
    request(to, |lines| lines.push(line.into()))
}

/// A right request without a line.
fn without(to: SocketAddr, n: usize) -> String {
    request(to, |lines| drop(lines.remove(n)))
}

/// Sends a request, and expects a status and then the end of TCP.
#[track_caller]
fn refused(to: SocketAddr, what: &str, request: &[u8], status: u16) -> String {
    let mut raw = Raw::connect(to);
    raw.try_send(request);
    let head = raw.head();
    let got: u16 = head.split(' ').nth(1).expect("a status line").parse().expect("a code");
    assert_eq!(got, status, "{what}: {head}");
    assert!(head.to_ascii_lowercase().contains("connection: "), "{what}: {head}");
    assert!(head.contains("close"), "{what}: {head}");
    raw.rest();
    head
}

#[test]
fn every_wrong_request_gets_its_status() {
    let gateway = Gateway::start(&Config::new());
    let to = gateway.ws;
    let line = |n, line: &str| instead(to, n, line);
    let long = "x".repeat(17_000);
    let many: String = (0..100).map(|n| format!("X-{n}: y\r\n")).collect();
    let rows: Vec<(&str, String, u16)> = vec![
        ("POST", line(0, "POST /ws HTTP/1.1"), 405),
        ("HEAD", line(0, "HEAD /ws HTTP/1.1"), 405),
        ("HTTP/1.0", line(0, "GET /ws HTTP/1.0"), 505),
        ("HTTP/2.0", line(0, "GET /ws HTTP/2.0"), 505),
        ("another path", line(0, "GET /other HTTP/1.1"), 404),
        ("no Host", without(to, 1), 400),
        ("two Hosts", with(to, "Host: other"), 400),
        ("Host with a path", line(1, "Host: a/b"), 400),
        ("no Upgrade", without(to, 2), 426),
        ("Upgrade to something else", line(2, "Upgrade: h2c"), 426),
        ("no Connection", without(to, 3), 426),
        ("Connection without upgrade", line(3, "Connection: keep-alive"), 426),
        ("no key", without(to, 4), 400),
        ("short key", line(4, "Sec-WebSocket-Key: c2hvcnQ="), 400),
        ("key not base64", line(4, "Sec-WebSocket-Key: !!!!IHNhbXBsZSBub25jZQ=="), 400),
        ("two keys", with(to, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), 400),
        ("no version", without(to, 5), 426),
        ("version 12", line(5, "Sec-WebSocket-Version: 12"), 426),
        ("body by length", with(to, "Content-Length: 5"), 400),
        ("body in chunks", with(to, "Transfer-Encoding: chunked"), 400),
        ("both", with(to, "Content-Length: 5\r\nTransfer-Encoding: chunked"), 400),
        ("two lengths of zero", with(to, "Content-Length: 0\r\nContent-Length: 0"), 400),
        ("folded line", with(to, "X-A: b\r\n c"), 400),
        ("bare line feed", with(to, "X-A: b\nX-C: d"), 400),
        ("bare carriage return", with(to, "X-A: b\rc"), 400),
        ("NUL", with(to, "X-A: b\0c"), 400),
        ("space before the colon", with(to, "X-A : b"), 400),
        ("too many bytes", with(to, &format!("X-A: {long}")), 431),
        ("too many fields", with(to, many.trim_end()), 431),
        ("long target", line(0, &format!("GET /ws?{} HTTP/1.1", &long[..4000])), 414),
        ("target without end", format!("GET /{long}"), 414),
        ("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 400),
        ("TLS", "\x16\x03\x01\x02\0\x01\0\x01\u{7c}\x03\x03".into(), 400),
        ("noise", "\x01\x02\x03".into(), 400),
        ("foreign origin", with(to, "Origin: http://evil.example"), 403),
        ("origin null", with(to, "Origin: null"), 403),
        ("origin with our host in it", with(to, &format!("Origin: http://{to}.evil")), 403),
        ("two origins", with(to, &format!("Origin: http://{to}\r\nOrigin: http://{to}")), 400),
        ("unknown subprotocol", with(to, "Sec-WebSocket-Protocol: mqtt, chat"), 400),
        ("malformed extension", with(to, "Sec-WebSocket-Extensions: a b"), 400),
        ("two ports in Host", line(1, "Host: a:b:c"), 400),
        ("absolute target without a host", line(0, "GET http:///ws HTTP/1.1"), 400),
        ("absolute target without a path", line(0, "GET http://h?x=/ws HTTP/1.1"), 404),
        ("absolute target with a user", line(0, "GET http://u:p@h/ws HTTP/1.1"), 400),
        ("target with a fragment", line(0, "GET /ws?# HTTP/1.1"), 400),
    ];
    for (what, request, status) in &rows {
        let head = refused(to, what, request.as_bytes(), *status);
        match status {
            405 => assert!(head.contains("\r\nAllow: GET\r\n"), "{what}: {head}"),
            426 => {
                assert!(head.contains("\r\nUpgrade: websocket\r\n"), "{what}: {head}");
                assert!(head.contains("\r\nSec-WebSocket-Version: 13\r\n"), "{what}: {head}");
            }
            _ => {}
        }
    }
    assert_eq!(gateway.counter("handshake_refused"), rows.len() as u64);
    each_kind_is_told(&gateway, rows.len());
    assert_eq!(gateway.admin_get("/stats")["sessions"], 0);
    Client::connect(to);
}

/// Each status has a line with a reason, and not each of `refusals` has one.
fn each_kind_is_told(gateway: &Gateway, refusals: usize) {
    for (status, why) in [(426, "upgrade to WebSocket: send"), (404, "this path"), (405, "use GET")]
    {
        let is_it = |line: &str| {
            line.contains(" WARN ")
                && line.contains("handshake_refused")
                && line.contains(&format!("status={status} why=\"{why}"))
        };
        eventually(why, || gateway.log().lines().any(is_it).then_some(()));
    }
    let told = gateway.log().matches("handshake_refused").count();
    assert!(told < refusals, "{told}");
}

#[test]
fn every_right_request_is_upgraded() {
    let gateway = Gateway::start(&Config::new());
    let to = gateway.ws;
    let both = "Sec-WebSocket-Protocol: chat, shardgate.v1.protobuf, shardgate.v1.json";
    let deflate = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits";
    let bad_deflate = "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=99";
    let rows: Vec<(&str, String, Option<&str>)> = vec![
        ("plain", request(to, |_| ()), None),
        ("a query", instead(to, 0, "GET /ws?token=x HTTP/1.1"), None),
        ("other cases", instead(to, 2, "uPGRADE: WebSocket"), None),
        ("length 0", with(to, "Content-Length: 0"), None),
        ("absolute target", instead(to, 0, "GET HTTP://h/ws HTTP/1.1"), None),
        ("absolute target of wss", instead(to, 0, "GET wss://h:1/ws?x HTTP/1.1"), None),
        ("HTTP/1.2", instead(to, 0, "GET /ws HTTP/1.2"), None),
        ("an empty line first", "\r\n".to_owned() + &request(to, |_| ()), None),
        ("empty subprotocols", with(to, "Sec-WebSocket-Protocol:"), None),
        ("empty extensions", with(to, "Sec-WebSocket-Extensions:"), None),
        ("an empty extension", with(to, "Sec-WebSocket-Extensions: x,"), None),
        ("own origin", with(to, &format!("Origin: http://{to}")), None),
        ("deflate is declined", with(to, deflate), None),
        ("wrong deflate parameters are declined", with(to, bad_deflate), None),
        ("json", with(to, "Sec-WebSocket-Protocol: shardgate.v1.json"), Some("json")),
        ("first known one", with(to, both), Some("protobuf")),
    ];
    for (what, request, subprotocol) in rows {
        let mut raw = Raw::connect(to);
        raw.send(request.as_bytes());
        let head = raw.head();
        assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{what}: {head}");
        // The key of RFC 6455 section 1.3, and its answer there.
        let accept = "\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
        assert!(head.contains(accept), "{what}: {head}");
        assert!(!head.contains("Sec-WebSocket-Extensions"), "{what}: {head}");
        let named = head.split("Sec-WebSocket-Protocol: shardgate.v1.").nth(1);
        assert_eq!(named.and_then(|rest| rest.split("\r\n").next()), subprotocol, "{what}");
    }
}

#[test]
fn only_listed_origins_pass_where_there_is_a_list() {
    let gateway = Gateway::start(&Config::new().key("origins = [\"https://game.example\"]"));
    let to = gateway.ws;
    let rows = [
        ("https://game.example", true),
        ("https://GAME.example", true),
        ("http://game.example", false),
        ("https://game.example:444", false),
        ("https://xgame.example", false),
        ("null", false),
    ];
    for (origin, passes) in rows {
        let request = with(to, &format!("Origin: {origin}"));
        if passes {
            let mut raw = Raw::connect(to);
            raw.send(request.as_bytes());
            assert!(raw.head().contains(" 101 "), "{origin}");
        } else {
            refused(to, origin, request.as_bytes(), 403);
        }
    }
    // The default port is none, and the other way round; a list may name more than hosts.
    gateway.rewrite(&Config::new().key(
        "origins = [\"https://h:443\", \"https://*.example.org\", \"http://localhost:*\", \
         \"null\", \"file://\", \"capacitor://localhost\", \"app://x\"]",
    ));
    gateway.signal(Signal::HUP);
    let status = |origin: &str| {
        let mut raw = Raw::connect(to);
        raw.send(with(to, &format!("Origin: {origin}")).as_bytes());
        raw.head().split(' ').nth(1).expect("a status line").to_owned()
    };
    eventually("the new list holds", || (status("https://h") == "101").then_some(()));
    for origin in [
        "https://h:443",
        "https://a.example.org",
        "https://a.b.example.org",
        "http://localhost",
        "http://localhost:5173",
        "null",
        "file://",
        "capacitor://localhost",
        "app://x",
    ] {
        assert_eq!(status(origin), "101", "{origin}");
    }
    for origin in [
        "https://example.org",
        "https://aexample.org",
        "http://a.example.org",
        "https://localhost:5173",
        "https://h:444",
        "app://y",
        "https://game.example",
    ] {
        assert_eq!(status(origin), "403", "{origin}");
    }
    // The page, and the key, once a second; nothing in the value forges a line.
    let forged = format!("https://a\u{202e}.{}", "b".repeat(2_000));
    assert_eq!(status(&forged), "403");
    let log = eventually("it is logged", || {
        Some(gateway.log()).filter(|log| log.contains("origin=\"http://game.example\""))
    });
    assert!(log.contains("origin_refused") && log.contains("the key origins"), "{log}");
    assert!(!log.contains('\u{202e}') && !log.contains(&"b".repeat(300)), "{log}");
    // The gateway's own host is not on the list; a client without an Origin is no browser.
    refused(to, "own", with(to, &format!("Origin: http://{to}")).as_bytes(), 403);
    Client::connect(to);
}

#[test]
fn the_page_of_the_admin_endpoint_may_connect_from_this_machine_whatever_is_listed() {
    let gateway = Gateway::start(&Config::new());
    let (to, admin) = (gateway.ws, gateway.admin);
    // The kernel chose both ports.
    let (port, other) = (admin.port(), admin.port() ^ 1);
    let status = |host: &str, origin: &str| {
        let mut raw = Raw::connect(to);
        let asks = request(to, |lines| {
            lines[1] = format!("Host: {host}");
            lines.push(format!("Origin: {origin}"));
        });
        raw.send(asks.as_bytes());
        raw.head().split(' ').nth(1).expect("a status line").to_owned()
    };
    let here = to.to_string();
    let rows = [
        (&*here, format!("http://{admin}"), "101"),
        (&here, format!("http://localhost:{port}"), "101"),
        (&here, format!("http://127.0.0.1:{other}"), "403"),
        (&here, format!("https://{admin}"), "403"),
        (&here, format!("http://evil.example:{port}"), "403"),
        ("gate.example", format!("http://{admin}"), "403"),
    ];
    for (host, origin, expected) in &rows {
        assert_eq!(status(host, origin), *expected, "{host} {origin}");
    }
    gateway.rewrite(&Config::new().key("origins = [\"https://game.example\"]"));
    gateway.signal(Signal::HUP);
    eventually("the list holds", || (status(&here, "https://game.example") == "101").then_some(()));
    for (host, origin, expected) in &rows {
        assert_eq!(status(host, origin), *expected, "{host} {origin}, with a list");
    }
}

#[test]
fn the_size_of_a_request_is_a_key_that_a_reload_changes() {
    let gateway = Gateway::start(&Config::new());
    let to = gateway.ws;
    let cookie = with(to, &format!("Cookie: {}", "x".repeat(15_000)));
    let fields = |n| with(to, (0..n).map(|n| format!("X-{n}: y\r\n")).collect::<String>().trim());
    // Browsers send the cookies of a shared domain, and proxies add fields.
    for request in [&cookie, &fields(94)] {
        let mut raw = Raw::connect(to);
        raw.send(request.as_bytes());
        assert!(raw.head().contains(" 101 "));
    }
    let keys = Config::new().shard("conn.header_bytes_max = 12000").shard("conn.headers_max = 20");
    gateway.rewrite(&keys);
    gateway.signal(Signal::HUP);
    eventually("the new limits hold", || {
        let mut raw = Raw::connect(to);
        raw.try_send(cookie.as_bytes());
        raw.head().starts_with("HTTP/1.1 431 ").then_some(())
    });
    for (request, text) in [
        (cookie, "send at most 12000 bytes of headers (conn.header_bytes_max)"),
        (fields(16), "send at most 20 header fields (conn.headers_max)"),
    ] {
        let mut raw = Raw::connect(to);
        raw.try_send(request.as_bytes());
        let answer = raw.head() + &String::from_utf8_lossy(&raw.rest());
        assert!(answer.contains(text), "{answer}");
    }
}

#[test]
fn a_request_may_come_in_pieces_and_with_frames_behind_it() {
    let gateway = Gateway::start(&Config::new());
    let mut raw = Raw::connect(gateway.ws);
    let mut bytes = Raw::request(gateway.ws).into_bytes();
    bytes.extend(frame(0x81, br#"{"msg_id":9000,"seq":1,"payload":"early"}"#));
    for byte in bytes {
        raw.send(&[byte]);
    }
    assert!(raw.head().contains(" 101 "));
    assert_eq!(raw.frame().json()["type"], "welcome");
    assert_eq!(raw.frame().json()["payload"], "early");
}

#[test]
fn frames_behind_a_refused_request_are_dropped() {
    let gateway = Gateway::start(&Config::new());
    let mut bytes = without(gateway.ws, 5).into_bytes();
    bytes.extend(frame(0x81, br#"{"msg_id":9000,"seq":1,"payload":"early"}"#));
    bytes.extend(Raw::request(gateway.ws).into_bytes());
    refused(gateway.ws, "pipelined", &bytes, 426);
    let stats = gateway.admin_get("/stats");
    assert_eq!(
        (&stats["counters"]["gateway_messages"], &stats["sessions"]),
        (&0.into(), &0.into())
    );
}

#[test]
fn a_slow_handshake_is_told_and_closed() {
    let gateway = Gateway::start(&Config::new().shard("conn.handshake_timeout_ms = 200"));
    // The deadline does not hold for an upgraded connection, however long it is silent.
    let mut client = Client::connect(gateway.ws);
    let started = Instant::now();
    let mut silent = Raw::connect(gateway.ws);
    let mut half = Raw::connect(gateway.ws);
    half.send(b"GET /ws HTTP/1.1\r\nHost: x\r\n");
    for raw in [&mut silent, &mut half] {
        assert!(raw.head().starts_with("HTTP/1.1 408 "));
        raw.rest();
    }
    assert!(started.elapsed().as_millis() >= 200);
    assert_eq!(gateway.counter("handshake_timeout"), 2);
    assert_eq!(client.ask(serde_json::json!({"type": "ping"}))["type"], "pong");
}

#[test]
fn who_leaves_within_the_handshake_is_forgotten() {
    let gateway = Gateway::start(&Config::new());
    for bytes in [&b""[..], b"GET /ws HT"] {
        let mut raw = Raw::connect(gateway.ws);
        raw.send(bytes);
        raw.stream().shutdown(Shutdown::Both).expect("connected");
    }
    eventually("both are forgotten", || {
        let stats = gateway.admin_get("/stats");
        let gone = stats["counters"]["accepted"] == 2 && stats["connections"] == 0;
        gone.then_some(())
    });
}

#[test]
fn a_full_shard_hands_new_clients_to_one_that_has_room() {
    let shards = several();
    let gateway = Gateway::start(&Config::new().shard("conn.connections_max = 8").shards(shards));
    // The kernel spreads clients by a hash, hardly ever evenly. There is room for all of them all
    // the same.
    let clients: Vec<Client> = (0..8 * shards).map(|_| Client::connect(gateway.ws)).collect();
    assert_eq!(clients.len(), 8 * shards);
    assert_eq!(gateway.counter("upgraded"), 8 * shards as u64);
    assert_eq!(gateway.counter("accept_refused"), 0);
    let mut third = Raw::connect(gateway.ws);
    assert!(third.head().starts_with("HTTP/1.1 503 "));
    assert_eq!(gateway.counter("accept_refused"), 1);
}

#[test]
fn a_connection_too_many_gets_503() {
    let gateway = Gateway::start(&Config::new().shard("conn.connections_max = 2"));
    let first = Client::connect(gateway.ws);
    let _second = Client::connect(gateway.ws);
    let mut third = Raw::connect(gateway.ws);
    let head = third.head();
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!(head.contains("\r\nRetry-After: "), "{head}");
    third.rest();
    // The admin endpoint still answers, and freed room is used again.
    assert_eq!(gateway.counter("accept_refused"), 1);
    drop(first);
    eventually("a place is free", || (gateway.counter("closed") == 1).then_some(()));
    Client::connect(gateway.ws);
}
