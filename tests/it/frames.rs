//! Frames and messages from outside: malformed and oversized ones end with the code of their fault,
//! and everything else works.

use std::net::Shutdown;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Client, Config, Gateway, Instance, Raw, eventually, frame, header};

const PING: &[u8] = br#"{"type":"ping","seq":1}"#;

/// A close frame with a code and a reason.
fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(0x88, &[&code.to_be_bytes(), reason].concat())
}

/// The header of a masked text frame, whose payload does not come.
fn head(len: u64) -> Vec<u8> {
    [&header(0x81, true, len)[..], b"mask"].concat()
}

#[test]
fn every_broken_rule_closes_with_its_code() {
    let gateway = Gateway::start(&Config::new());
    let mut unmasked = header(0x81, false, PING.len() as u64);
    unmasked.extend(PING);
    let not_minimal_16 = [&[0x81, 0x80 | 126, 0, 5][..], b"mask", b"12345"].concat();
    let not_minimal_64 = [&[0x81, 0x80 | 127, 0, 0, 0, 0, 0, 0, 0, 200][..], b"mask"].concat();
    let split_utf8 = [frame(0x01, b"\"\xc3"), frame(0x80, b"(\"")].concat();
    let empty_pieces = [frame(0x01, b""), frame(0x00, b"").repeat(100)].concat();
    let pieces = [frame(0x01, &[b'x'; 60_000]), frame(0x80, &[b'x'; 6000])].concat();
    let mut rows: Vec<(String, Vec<u8>, u16)> = vec![
        ("unmasked".into(), unmasked, 1002),
        ("control over 125 bytes".into(), frame(0x89, &[b'x'; 126]), 1002),
        ("fragmented ping".into(), frame(0x09, b"x"), 1002),
        ("fragmented close".into(), frame(0x08, b""), 1002),
        ("continuation first".into(), frame(0x80, b"x"), 1002),
        ("message inside a message".into(), [frame(0x01, b"x"), frame(0x81, b"y")].concat(), 1002),
        ("16 bits for 5".into(), not_minimal_16, 1002),
        ("64 bits for 200".into(), not_minimal_64, 1002),
        ("text not UTF-8".into(), frame(0x81, b"\"\xff\""), 1007),
        ("half a character in each piece".into(), split_utf8, 1007),
        ("surrogate".into(), frame(0x81, b"\"\xed\xa0\x80\""), 1007),
        ("close reason not UTF-8".into(), close(1000, b"\xff"), 1007),
        ("close of one byte".into(), frame(0x88, &[3]), 1002),
        ("over the limit in pieces".into(), pieces, 1009),
        ("a hundred empty pieces".into(), empty_pieces, 1009),
        ("binary in the JSON protocol".into(), frame(0x82, PING), 1003),
        // The header alone shows the size: nothing of the message is sent.
        ("128 MiB".into(), head(128 << 20), 1009),
        ("2^63 - 1".into(), head(u64::MAX >> 1), 1009),
        ("65,537".into(), head(65_537), 1009),
    ];
    for rsv in [0x40, 0x20, 0x10] {
        rows.push((format!("reserved bit {rsv:#x}"), frame(0x81 | rsv, PING), 1002));
    }
    for opcode in (3..8).chain(11..16) {
        rows.push((format!("opcode {opcode}"), frame(0x80 | opcode, b""), 1002));
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65_535] {
        rows.push((format!("close {code}"), close(code, b""), 1002));
    }
    let count = rows.len();
    for (what, bytes, code) in rows {
        let mut raw = Raw::upgraded(gateway.ws);
        raw.try_send(&bytes);
        assert_eq!(raw.closed(), Some(code), "{what}");
        // Bytes after the fault are ignored, and the gateway does not wait for ever.
        raw.try_send(&frame(0x81, PING));
        raw.try_send(&close(code, b""));
        let _ = raw.stream().shutdown(Shutdown::Write);
        assert!(raw.rest().is_empty(), "{what}");
    }
    assert_eq!(gateway.counter("closed_protocol"), count as u64);
    assert_eq!(gateway.counter("system_messages"), 0);
}

#[test]
fn two_to_the_63_and_more_is_an_error_too() {
    // RFC 6455 section 5.2: the most significant bit of a 64-bit length must be 0.
    let gateway = Gateway::start(&Config::new());
    for len in [1 << 63, u64::MAX] {
        let mut raw = Raw::upgraded(gateway.ws);
        raw.send(&head(len));
        let code = raw.closed();
        assert!(matches!(code, Some(1002 | 1009)), "{code:?}");
    }
}

#[test]
fn a_close_is_echoed_and_the_gateway_closes_first() {
    let gateway = Gateway::start(&Config::new());
    for code in [1000, 1001, 1003, 1007, 1011, 1014, 3000, 4000, 4999] {
        let mut raw = Raw::upgraded(gateway.ws);
        // A message before the close is answered before the close is echoed.
        raw.send(&[frame(0x81, PING), close(code, b"bye")].concat());
        assert_eq!(raw.frame().json()["type"], "pong", "{code}");
        assert_eq!(raw.frame().code(), Some(code));
        assert!(raw.rest().is_empty(), "{code}");
    }
    let mut raw = Raw::upgraded(gateway.ws);
    raw.send(&frame(0x88, b""));
    assert_eq!(raw.frame().code(), None);
    assert!(raw.rest().is_empty());
}

#[test]
fn what_comes_after_a_close_is_ignored() {
    let gateway = Gateway::start(&Config::new());
    let mut raw = Raw::upgraded(gateway.ws);
    raw.try_send(&[close(1000, b""), frame(0x81, PING), vec![0xff; 100]].concat());
    assert_eq!(raw.closed(), Some(1000));
    assert!(raw.rest().is_empty());
    assert_eq!(gateway.counter("system_messages"), 0);
}

#[test]
fn a_client_that_never_answers_a_close_is_dropped() {
    let config = Config::new().shard("conn.close_timeout_ms = 200");
    let gateway = Gateway::start(&config);
    let mut raw = Raw::upgraded(gateway.ws);
    let started = Instant::now();
    raw.send(&frame(0x80, b"x"));
    assert_eq!(raw.closed(), Some(1002));
    raw.rest();
    eventually("it is forgotten", || {
        (gateway.admin_get("/stats")["connections"] == 0).then_some(())
    });
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

#[test]
fn a_message_may_come_in_pieces_with_pings_between() {
    let gateway = Gateway::start(&Config::new());
    let mut raw = Raw::upgraded(gateway.ws);
    let text = r#"{"msg_id":9000,"seq":1,"payload":"äöü €"}"#.as_bytes();
    // In the middle of a character, too.
    let cut = text.iter().position(|&b| b == 0xc3).expect("a character of two bytes") + 1;
    raw.send(&frame(0x01, &text[..cut]));
    raw.send(&frame(0x89, b"still there?"));
    raw.send(&frame(0x00, b""));
    raw.send(&frame(0x80, &text[cut..]));
    let pong = raw.frame();
    assert_eq!((pong.opcode, &pong.payload[..]), (10, &b"still there?"[..]));
    assert_eq!(raw.frame().json()["payload"], "äöü €");
    // The largest message, byte by byte at its header's end.
    let payload = "x".repeat(65_536 - 39);
    let text = format!(r#"{{"msg_id":9000,"seq":22,"payload":"{payload}"}}"#);
    let bytes = frame(0x81, text.as_bytes());
    for chunk in bytes[..20].chunks(1).chain(bytes[20..].chunks(1000)) {
        raw.send(chunk);
    }
    assert_eq!(raw.frame().json()["payload"], json!(payload));
}

#[test]
fn pings_are_answered_and_pongs_ignored() {
    let gateway = Gateway::start(&Config::new());
    let mut raw = Raw::upgraded(gateway.ws);
    raw.send(&frame(0x8a, b"nobody asked"));
    for payload in [&b""[..], &[7; 125]] {
        raw.send(&frame(0x89, payload));
        let pong = raw.frame();
        assert_eq!((pong.opcode, &pong.payload[..]), (10, payload));
    }
}

#[test]
fn a_ping_flood_does_not_grow_the_outbox() {
    let gateway = Gateway::start(&Config::new().shard("conn.send_buffer_bytes = 4096"));
    let mut raw = Raw::upgraded(gateway.ws);
    // 100,000 pings of 125 bytes, whose pongs nobody reads: 12 MB that must not be kept.
    let pings = frame(0x89, &[1; 125]).repeat(1000);
    for _ in 0..100 {
        raw.send(&pings);
    }
    eventually("all are read", || (gateway.counter("frames_in") == 100_000).then_some(()));
    let waiting = gateway.admin_get("/stats")["outbox_bytes"].as_u64().expect("a number");
    assert!(waiting < 32 << 10, "{waiting}");
    Client::connect(gateway.ws).ask(json!({"type": "ping"}));
}

#[test]
fn too_many_frames_a_second_close_with_1008() {
    let gateway = Gateway::start(&Config::new().shard("conn.frames_per_s_max = 50"));
    let mut raw = Raw::upgraded(gateway.ws);
    raw.send(&frame(0x89, b"").repeat(200));
    assert_eq!(raw.closed(), Some(1008));
    assert_eq!(gateway.counter("closed_policy"), 1);
}

#[test]
fn a_client_that_is_closed_for_policy_and_sends_on_is_not_decoded_and_cut_off_soon() {
    let gateway = Gateway::start(&Config::new().shard("conn.frames_per_s_max = 50"));
    let mut raw = Raw::upgraded(gateway.ws);
    let pings = frame(0x89, b"").repeat(10_000);
    raw.send(&pings);
    assert_eq!(raw.closed(), Some(1008));
    let decoded = gateway.counter("frames_in");
    // Far more than it takes; the connection is closed on the way, so that sending fails.
    let mut sent = 0;
    let mut stream = raw.stream();
    while sent < 64 << 20 && std::io::Write::write_all(&mut stream, &pings).is_ok() {
        sent += pings.len();
    }
    assert!(sent < 64 << 20, "it was cut off");
    eventually("it is gone", || (gateway.admin_get("/stats")["connections"] == 0).then_some(()));
    assert_eq!(gateway.counter("frames_in"), decoded, "nothing is decoded after our Close");
    let received = gateway.counter("bytes_in");
    assert!(received < 10 << 20, "8 MiB and a read: {received}");
}

#[test]
fn a_silent_client_is_closed_with_4002() {
    let gateway = Gateway::start(&Config::new().shard("conn.heartbeat_ms = 250"));
    let mut silent = Raw::upgraded(gateway.ws);
    let mut alive = Client::connect(gateway.ws);
    eventually("the silent one is closed", || {
        alive.send_text(r#"{"type":"heartbeat"}"#);
        (gateway.counter("closed_no_heartbeat") == 1).then_some(())
    });
    assert_eq!(silent.closed(), Some(4002));
    assert_eq!(alive.ask(json!({"type": "ping"}))["type"], "pong");
}

#[test]
fn a_client_that_only_answers_pings_stays_connected() {
    let gateway = Gateway::start(&Config::new().shard("conn.heartbeat_ms = 250"));
    let mut listener = Raw::upgraded(gateway.ws);
    // Halfway in a message, where only control frames may come.
    listener.send(&frame(0x01, br#"{"msg_id":9000,"#));
    for _ in 0..2 {
        let ping = listener.frame();
        assert_eq!((ping.opcode, ping.payload.len()), (9, 0));
        listener.send(&frame(0x8a, &ping.payload));
    }
    assert!(gateway.counter("pings") >= 2);
    listener.send(&frame(0x80, br#""seq":1,"payload":"x"}"#));
    assert_eq!(listener.frame().json()["payload"], "x");
    assert_eq!(gateway.counter("closed_no_heartbeat"), 0);
}

#[test]
fn answers_that_wait_when_the_client_ends_its_side_are_flushed_first() {
    let gateway = Gateway::start(&Config::new());
    for _ in 0..20 {
        let mut raw = Raw::upgraded(gateway.ws);
        let echo = |seq| frame(0x81, format!(r#"{{"msg_id":9000,"seq":{seq}}}"#).as_bytes());
        let all: Vec<u8> = (1..=3).flat_map(echo).collect();
        raw.send(&all);
        raw.stream().shutdown(Shutdown::Write).expect("connected");
        for seq in 1..=3 {
            assert_eq!(raw.frame().json()["seq"], seq);
        }
        assert_eq!(raw.rest(), b"", "and then the end, at once");
    }
}

#[test]
fn answers_that_a_client_that_ended_does_not_take_are_given_up() {
    let config = Config::new()
        .shard("conn.close_timeout_ms = 300")
        .shard("conn.message_bytes_max = 1000000")
        .shard("conn.send_buffer_bytes = 4096")
        .shard("conn.outbox_bytes_max = 100000000");
    let gateway = Gateway::start(&config);
    let mut raw = Raw::upgraded(gateway.ws);
    let text = format!(r#"{{"msg_id":9000,"payload":"{}","seq":"#, "x".repeat(900_000));
    (1..=20).for_each(|seq| raw.send(&frame(0x81, format!("{text}{seq}}}").as_bytes())));
    raw.stream().shutdown(Shutdown::Write).expect("connected");
    eventually("it is closed", || (gateway.counter("closed") == 1).then_some(()));
    assert_eq!(gateway.counter("closed_slow"), 0);
}

#[test]
fn a_slow_reader_is_closed_and_the_others_are_unaffected() {
    let config = Config::new()
        .shard("conn.outbox_bytes_max = 200000")
        .shard("conn.close_timeout_ms = 300")
        .shard("conn.send_buffer_bytes = 4096");
    let gateway = Gateway::start(&config);
    let mut slow = Raw::upgraded(gateway.ws);
    let mut other = Client::connect(gateway.ws);
    let text = format!(r#"{{"msg_id":9000,"payload":"{}","seq":"#, "x".repeat(60_000));
    let mut seq = 0;
    eventually("the slow reader is closed", || {
        seq += 1;
        slow.try_send(&frame(0x81, format!("{text}{seq}}}").as_bytes()));
        let started = Instant::now();
        assert_eq!(other.call(9000, json!(seq))["payload"], seq);
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        (gateway.counter("closed_slow") == 1).then_some(())
    });
    eventually("its bytes are given up", || {
        (gateway.admin_get("/stats")["outbox_bytes"] == 0).then_some(())
    });
}

#[test]
fn a_reader_that_takes_nothing_is_closed_in_time() {
    let config = Config::new()
        .shard("conn.write_timeout_ms = 300")
        .shard("conn.close_timeout_ms = 300")
        // The cap is so large that time alone can be the cause.
        .shard("conn.outbox_bytes_max = 1073741824")
        .shard("conn.send_buffer_bytes = 4096");
    let gateway = Gateway::start(&config);
    let mut stuck = Raw::upgraded(gateway.ws);
    let text = format!(r#"{{"msg_id":9000,"payload":"{}","seq":"#, "x".repeat(60_000));
    let mut seq = 0;
    eventually("it is closed", || {
        seq += 1;
        stuck.try_send(&frame(0x81, format!("{text}{seq}}}").as_bytes()));
        (gateway.counter("closed_slow") == 1).then_some(())
    });
    eventually("it is gone", || {
        let stats = gateway.admin_get("/stats");
        (stats["connections"] == 0 && stats["outbox_bytes"] == 0).then_some(())
    });
}

#[test]
fn a_slow_reader_that_catches_up_reads_4001() {
    let config = Config::new()
        .shard("conn.outbox_bytes_max = 200000")
        .shard("conn.write_timeout_ms = 300")
        .shard("conn.send_buffer_bytes = 4096");
    let gateway = Gateway::start(&config);
    let mut slow = Raw::upgraded(gateway.ws);
    let text = format!(r#"{{"msg_id":9000,"payload":"{}","seq":"#, "x".repeat(60_000));
    // More than both kernels hold, and less than would be left unread.
    for seq in 1..=8 {
        slow.send(&frame(0x81, format!("{text}{seq}}}").as_bytes()));
    }
    eventually("it is found slow", || (gateway.counter("closed_slow") == 1).then_some(()));
    assert_eq!(slow.closed(), Some(4001));
}

#[test]
fn a_client_with_too_much_unanswered_is_not_read_until_it_has_less() {
    let instance = Instance::echo();
    let config = Config::new()
        .service("logic", &[("a", instance.address)])
        .route(1000, "logic", "timeout_ms = 60000")
        .shard("conn.unanswered_max = 10")
        .shard("batch.in_flight_max = 100");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let mut client = Client::connect(gateway.ws);
    let mut other = Client::connect(gateway.ws);
    instance.hold();
    // 400 messages of 16 KiB are 6.4 MB: more than the kernel keeps, so TCP pushes back.
    client.stream().set_write_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let payload = "x".repeat(16 << 10);
    let sender = std::thread::spawn(move || {
        for n in 1..=400 {
            client.send_text(&format!(r#"{{"msg_id":1001,"seq":{n},"payload":"{payload}"}}"#));
        }
        client
    });
    eventually("reading is paused", || (gateway.counter("read_paused") > 0).then_some(()));
    let stats = gateway.admin_get("/stats");
    assert_eq!(stats["unanswered"], 10, "{stats}");
    assert_eq!(stats["counters"]["business_messages"], 10);
    assert_eq!(other.ask(json!({"type": "ping"}))["type"], "pong");
    assert!(!sender.is_finished(), "TCP pushes back");
    instance.release();
    let mut client = sender.join().expect("everything is sent in the end");
    for seq in 1..=400 {
        assert_eq!(client.answer(seq).get("status"), None);
    }
    let order: Vec<u64> = instance.requests().iter().map(|r| r.seq).collect();
    assert!(order.is_sorted() && order.len() == 400, "{order:?}");
}
