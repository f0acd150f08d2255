//! Faulty, slow and vanishing clients of TLS: freed, counted, and no harm to others.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::version::TLS13;
use serde_json::json;

use super::Secured;
use crate::support::{Client, Config, Gateway, Raw, eventually, frame, secure};

/// A ClientHello of TLS 1.1 or below: it has no extensions.
fn old_hello(minor: u8) -> Vec<u8> {
    let mut body = vec![3, minor];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0, 0x2f, 1, 0]);
    let length = body.len() as u8;
    [&[22, 3, 1, 0, length + 4, 1, 0, 0, length][..], &body].concat()
}

fn is_alert(answer: &[u8]) -> bool {
    answer.len() == 7 && answer[..2] == [21, 3]
}

fn gone(gateway: &Gateway) {
    eventually("it is gone", || (gateway.admin_get("/stats")["connections"] == 0).then_some(()));
}

#[test]
fn what_is_no_tls_gets_an_alert_and_tls_on_the_plain_port_a_400() {
    let secured = Secured::start(Config::new());
    let request = Raw::request(secured.wss());
    let answer = secure::raw(secured.wss(), request.as_bytes());
    assert!(is_alert(&answer), "{answer:?}");
    secured.counter("tls_failed_not_tls", 1);
    let answer = secure::raw(secured.gateway.ws, &old_hello(3));
    assert!(answer.starts_with(b"HTTP/1.1 400 "), "{answer:?}");
    // Versions that are not supported any more.
    for minor in 0..3 {
        let answer = secure::raw(secured.wss(), &old_hello(minor));
        assert!(is_alert(&answer), "{minor}: {answer:?}");
    }
    gone(&secured.gateway);
    assert_eq!(secured.client().call(9000, json!(1))["payload"], 1);
}

#[test]
fn one_deadline_holds_for_tls_and_the_request_in_it() {
    let secured = Secured::start(Config::new().shard("conn.handshake_timeout_ms = 300"));
    // Half a hello; a whole one and nothing more; TLS and half a request.
    let mut first = TcpStream::connect(secured.wss()).expect("it listens");
    first.write_all(&old_hello(3)[..20]).expect("sent");
    let second = TcpStream::connect(secured.wss()).expect("it listens");
    let config = Arc::new(secured.signer.client(&TLS13));
    let mut third = secured.shake(&config).expect("a handshake");
    third.write_all(b"GET /ws HTTP/1.1\r\n").expect("sent");
    for mut stream in [first, second] {
        stream.set_read_timeout(Some(crate::support::PATIENCE)).expect("a timeout");
        // Reset or ended: no alert can be sent.
        assert!(!matches!(stream.read(&mut [0; 10]), Ok(1..)));
    }
    let (answer, told) = secure::rest(&mut third);
    assert!(answer.starts_with(b"HTTP/1.1 408 ") && told, "{answer:?}");
    assert_eq!(secured.gateway.counter("handshake_timeout"), 3);
    drop(third);
    gone(&secured.gateway);
}

#[test]
fn who_vanishes_is_forgotten_in_the_handshake_and_after_it() {
    let secured = Secured::start(Config::new());
    let mut half = TcpStream::connect(secured.wss()).expect("it listens");
    half.write_all(&old_hello(3)[..20]).expect("sent");
    eventually("it is accepted", || {
        (secured.gateway.admin_get("/stats")["connections"] == 1).then_some(())
    });
    drop(half);
    gone(&secured.gateway);
    secured.counter("tls_abandoned", 1);
    // An end without close_notify is an end.
    let mut client = secured.client();
    let stream = client.tls().sock.try_clone().expect("a descriptor");
    stream.shutdown(std::net::Shutdown::Write).expect("connected");
    gone(&secured.gateway);
    // An end with close_notify is an end, too.
    let mut client = secured.client();
    let stream = client.tls();
    stream.conn.send_close_notify();
    stream.flush().expect("sent");
    gone(&secured.gateway);
}

#[test]
fn bytes_that_break_tls_end_the_connection_with_an_alert() {
    let secured = Secured::start(Config::new());
    let mut client = secured.client();
    let stream = client.tls();
    stream.sock.write_all(&[23, 3, 3, 0, 32]).expect("sent");
    stream.sock.write_all(&[7; 32]).expect("sent");
    let error = stream.read(&mut [0; 10]).expect_err("an alert").to_string();
    assert!(error.contains("BadRecordMac"), "{error}");
    secured.counter("tls_failed_broken", 1);
    drop(client);
    gone(&secured.gateway);
}

#[test]
fn nobody_can_fill_the_log_by_alerts() {
    let secured = Secured::start(Config::new());
    // close_notify in the clear, which anybody could send: a warning, and too many of them.
    let answer = secure::raw(secured.wss(), &[21, 3, 3, 0, 2, 1, 0].repeat(20));
    assert!(is_alert(&answer), "{answer:?}");
    secured.counter("tls_failed_broken", 1);
    let log = secured.gateway.log();
    assert!(!log.contains("rustls") && !log.contains("lert"), "{log}");
}

#[test]
fn a_slow_reader_is_closed_and_the_others_are_unaffected() {
    let secured = Secured::start(
        Config::new()
            .shard("conn.outbox_bytes_max = 200000")
            .shard("conn.close_timeout_ms = 300")
            .shard("conn.send_buffer_bytes = 4096"),
    );
    let gateway = &secured.gateway;
    let config = Arc::new(secured.signer.client(&TLS13));
    let mut slow = secured.shake(&config).expect("a handshake");
    slow.write_all(Raw::request(secured.wss()).as_bytes()).expect("sent");
    let mut other = secured.client();
    let mut plain = Client::connect(gateway.ws);
    let text = format!(r#"{{"msg_id":9000,"payload":"{}","seq":"#, "x".repeat(60_000));
    let mut seq = 0;
    eventually("the slow reader is closed", || {
        seq += 1;
        let _ = slow.write_all(&frame(0x81, format!("{text}{seq}}}").as_bytes()));
        let started = Instant::now();
        assert_eq!(other.call(9000, json!(seq))["payload"], seq);
        assert_eq!(plain.call(9000, json!(seq))["payload"], seq);
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        (gateway.counter("closed_slow") == 1).then_some(())
    });
    eventually("its bytes are given up", || {
        (gateway.admin_get("/stats")["outbox_bytes"] == 0).then_some(())
    });
}

#[test]
fn a_slow_reader_that_catches_up_reads_everything_and_4001() {
    let secured = Secured::start(
        Config::new()
            .shard("conn.outbox_bytes_max = 200000")
            .shard("conn.write_timeout_ms = 300")
            .shard("conn.send_buffer_bytes = 4096"),
    );
    let mut slow = secured.client();
    let mut sent = 0;
    for _ in 0..8 {
        sent = slow.send(json!({"msg_id": 9000, "payload": "x".repeat(60_000)}));
    }
    eventually("it is found slow", || (secured.gateway.counter("closed_slow") == 1).then_some(()));
    let (messages, code) = slow.until_close();
    assert_eq!(code, Some(4001));
    let seqs: Vec<u64> = messages.iter().filter_map(|m| m["seq"].as_u64()).collect();
    assert!(seqs.len() > 1 && seqs.is_sorted() && seqs.len() as u64 <= sent, "{seqs:?}");
    assert!(secure::rest(slow.tls()).1, "close_notify");
}

#[test]
fn a_client_that_pushes_back_on_large_answers_gets_all_of_them() {
    let secured = Secured::start(
        Config::new()
            .shard("conn.outbox_bytes_max = 16000000")
            .shard("conn.send_buffer_bytes = 4096"),
    );
    let mut client = secured.client();
    let large = json!("y".repeat(60_000));
    let asked: Vec<u64> =
        (0..100).map(|_| client.send(json!({"msg_id": 9000, "payload": large}))).collect();
    for seq in asked {
        assert_eq!(client.answer(seq)["payload"], large);
    }
}

#[test]
fn a_storm_of_handshakes_does_not_hold_up_who_is_here() {
    const CLIENTS: usize = 150;
    let secured = Secured::start(Config::new());
    let mut here = Client::connect(secured.gateway.ws);
    let config = Arc::new(secured.signer.client(&TLS13));
    let name = rustls::pki_types::ServerName::try_from("a.test").expect("a name");
    let mut all: Vec<(rustls::ClientConnection, TcpStream)> = (0..CLIENTS)
        .map(|_| {
            let tls = rustls::ClientConnection::new(config.clone(), name.clone());
            let tcp = TcpStream::connect(secured.wss()).expect("it listens");
            tcp.set_read_timeout(Some(crate::support::PATIENCE)).expect("a timeout");
            (tls.expect("a client"), tcp)
        })
        .collect();
    eventually("all are accepted", || {
        (secured.gateway.counter("accepted") > CLIENTS as u64).then_some(())
    });
    // All at once: the hellos have arrived before the first of them is answered.
    for (tls, tcp) in &mut all {
        tls.write_tls(tcp).expect("sent");
    }
    let storm = std::thread::spawn(move || {
        for (_, tcp) in &mut all {
            assert_eq!(tcp.read(&mut [0; 1]).expect("an answer"), 1);
        }
    });
    let mut turns = 0;
    while !storm.is_finished() {
        let started = Instant::now();
        assert_eq!(here.call(9000, json!(turns))["payload"], turns);
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        turns += 1;
    }
    storm.join().expect("everybody is answered");
    // If one turn served all of them, there would be two or three.
    assert!(turns >= 10, "{turns} answers meanwhile");
}

#[test]
fn a_full_gateway_hands_clients_of_tls_over_and_closes_who_is_too_many() {
    if std::thread::available_parallelism().map_or(1, |n| n.get()) < 2 {
        return;
    }
    let secured = Secured::start(Config::new().shards(2).shard("conn.connections_max = 2"));
    // The kernel spreads by a hash: sooner or later three of four go to one shard.
    eventually("one is handed over", || {
        let mut four: Vec<Client> = (0..4).map(|_| secured.client()).collect();
        for client in &mut four {
            assert_eq!(client.call(9000, json!(1))["payload"], 1);
        }
        // A fifth is one too many.
        let config = Arc::new(secured.signer.client(&TLS13));
        assert!(secured.shake(&config).is_err());
        let handed = secured.gateway.counter("handed_over");
        drop(four);
        gone(&secured.gateway);
        (handed > 0).then_some(())
    });
    assert!(secured.gateway.counter("accept_refused") > 0);
}
