//! The JSON envelope: its edge cases, and encode against serde_json as the naive model.

use std::borrow::Cow;

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::limits::SEQ_MAX;

/// Seq, reason and sentence of a refusal.
fn bad(text: &str) -> (u64, Reason, String) {
    let BadMessage { seq, reason, text } = decode(text).expect_err(text);
    (seq, reason, text.into_owned())
}

#[test]
fn all_fields_are_read_and_borrowed() {
    let text = r#" { "msg_id": 1001, "seq":9007199254740991,"type":"ping","id":"i","key":"k",
        "deadline_ms":250,"ack":18446744073709551615,"payload": {"a" : [1, 2]} , "x":{"y":[]} } "#;
    let message = decode(text).unwrap();
    assert_eq!((message.msg_id, message.seq, message.ack), (1001, SEQ_MAX, u64::MAX));
    assert_eq!((&*message.kind, &*message.id, &*message.key), ("ping", "i", "k"));
    assert_eq!((message.deadline_ms, message.payload), (250, br#"{"a" : [1, 2]}"#.as_slice()));
    for borrowed in [&message.kind, &message.id, &message.key] {
        assert!(matches!(borrowed, Cow::Borrowed(_)));
    }
    assert_eq!(message.payload_base64, None);
}

#[test]
fn payloads_pass_byte_for_byte() {
    for payload in [
        "null",
        "true",
        "0",
        "-0.0e+17",
        "1e999",
        "123456789012345678901234567890",
        "\"\"",
        r#""\u00e9\ud83d\ude00 é""#,
        "[ 1 ,2]",
        "{\"a\":{}, \"a\":1}",
        r#""\\\"]}""#,
    ] {
        let text = format!(r#"{{"msg_id":1,"payload": {payload} }}"#);
        assert_eq!(decode(&text).unwrap().payload, payload.as_bytes(), "{payload}");
    }
    assert_eq!(decode(r#"{"msg_id":1}"#).unwrap().payload, b"");
}

#[test]
fn escapes_in_strings_and_keys_are_resolved() {
    let text = r#"{"msg\u005fid":7,"id":"a\n\u00e9","key":"é\ud83d\ude00","type":"\u0070ing"}"#;
    let message = decode(text).unwrap();
    assert_eq!(message.msg_id, 7);
    assert_eq!((&*message.id, &*message.key, &*message.kind), ("a\né", "é😀", "ping"));
    // The caps count bytes of the resolved text.
    let escaped = format!(r#"{{"msg_id":7,"id":"{}"}}"#, r"\u0061".repeat(64));
    assert_eq!(decode(&escaped).unwrap().id.len(), 64);
}

/// Messages that are none: the seq that is read all the same, and the whole sentence.
const BAD: [(&str, u64, &str); 50] = [
    ("", 0, "not JSON at byte 0"),
    ("x", 0, "not JSON at byte 0"),
    (" \n nul", 0, "not JSON at byte 6"),
    ("1", 0, "a JSON object is wanted, at byte 0"),
    (" null", 0, "a JSON object is wanted, at byte 1"),
    ("\"a\"", 0, "a JSON object is wanted, at byte 0"),
    ("[1,2]", 0, "a JSON object is wanted, at byte 0"),
    ("[1,", 0, "not JSON at byte 3"),
    ("{", 0, "not JSON at byte 1"),
    ("{1:2}", 0, "not JSON at byte 1"),
    (r#"{"msg_id":1,"seq":5}x"#, 5, "not JSON at byte 20"),
    (r#"{"msg_id":1,"seq":5} {}"#, 5, "not JSON at byte 21"),
    (r#"{"msg_id":1,"seq":5"#, 5, "not JSON at byte 19"),
    (r#"{"msg_id":1,"seq":5,}"#, 5, "not JSON at byte 20"),
    (r#"{"msg_id":1 "seq":5}"#, 0, "not JSON at byte 12"),
    (r#"{"msg_id" 1,"seq":5}"#, 0, "not JSON at byte 10"),
    ("{\"msg_id\":1,\"seq\":5}\u{feff}", 5, "not JSON at byte 20"),
    ("{\"msg_id\":1,\n\"seq\":5,\n x}", 5, "not JSON at byte 23"),
    (
        r#"{"msg_id":"1","seq":5}"#,
        5,
        "msg_id: a whole number from 0 to 2^32-1 is wanted, at byte 10",
    ),
    (
        r#"{"seq":5,"msg_id":"1"}"#,
        5,
        "msg_id: a whole number from 0 to 2^32-1 is wanted, at byte 18",
    ),
    (
        r#"{"msg_id":-1,"seq":5}"#,
        5,
        "msg_id: a whole number from 0 to 2^32-1 is wanted, at byte 10",
    ),
    (
        r#"{"msg_id":1.5,"seq":5}"#,
        5,
        "msg_id: a whole number from 0 to 2^32-1 is wanted, at byte 10",
    ),
    (
        r#"{"msg_id":4294967296,"seq":5}"#,
        5,
        "msg_id: a whole number from 0 to 2^32-1 is wanted, at byte 10",
    ),
    (
        r#"{"msg_id":true,"seq":5}"#,
        5,
        "msg_id: a whole number from 0 to 2^32-1 is wanted, at byte 10",
    ),
    (r#"{"msg_id":NaN,"seq":5}"#, 0, "msg_id: not JSON at byte 10"),
    (r#"{"seq":5,"msg_id":NaN}"#, 5, "msg_id: not JSON at byte 18"),
    (r#"{"msg_id":Infinity}"#, 0, "msg_id: not JSON at byte 10"),
    (r#"{"msg_id":01,"seq":5}"#, 0, "msg_id: not JSON at byte 11"),
    (r#"{"msg_id":,"seq":5}"#, 0, "msg_id: not JSON at byte 10"),
    (r#"{"msg_id":1,"seq":"5"}"#, 0, "seq: a whole number from 0 to 2^53-1 is wanted, at byte 18"),
    (r#"{"msg_id":1,"seq":-5}"#, 0, "seq: a whole number from 0 to 2^53-1 is wanted, at byte 18"),
    (r#"{"msg_id":1,"seq":5.5}"#, 0, "seq: a whole number from 0 to 2^53-1 is wanted, at byte 18"),
    (
        r#"{"msg_id":1,"seq":9007199254740992}"#,
        0,
        "seq: a whole number from 0 to 2^53-1 is wanted, at byte 18",
    ),
    (
        r#"{"msg_id":1,"seq":18446744073709551616}"#,
        0,
        "seq: a whole number from 0 to 2^53-1 is wanted, at byte 18",
    ),
    (r#"{"msg_id":1,"seq":5,"seq":5}"#, 0, "seq: comes twice, again at byte 20"),
    (r#"{"msg_id":1,"msg_id":2,"seq":5}"#, 5, "msg_id: comes twice, again at byte 12"),
    (
        r#"{"msg_id":1,"seq":5,"payload":1,"payload":2}"#,
        5,
        "payload: comes twice, again at byte 32",
    ),
    (r#"{"msg_id":1,"seq":5,"id":null,"id":"a"}"#, 5, "id: comes twice, again at byte 30"),
    (
        r#"{"msg_id":1,"seq":5,"key":1}"#,
        5,
        "key: a string of at most 128 bytes is wanted, at byte 26",
    ),
    (
        r#"{"msg_id":1,"seq":5,"type":["ping"]}"#,
        5,
        "type: a string of at most 32 bytes is wanted, at byte 27",
    ),
    (
        r#"{"msg_id":1,"seq":5,"payload_base64":7}"#,
        5,
        "payload_base64: a string of base64 is wanted, at byte 37",
    ),
    (
        r#"{"msg_id":1,"seq":5,"deadline_ms":1e10}"#,
        5,
        "deadline_ms: a whole number from 0 to 2^32-1 is wanted, at byte 34",
    ),
    (
        r#"{"msg_id":1,"seq":5,"ack":18446744073709551616}"#,
        5,
        "ack: a whole number from 0 to 2^64-1 is wanted, at byte 26",
    ),
    (r#"{"msg_id":1,"seq":5,"payload":{"a":}}"#, 5, "payload: not JSON at byte 35"),
    (r#"{"msg_id":1,"seq":5,"payload":[1,]}"#, 5, "payload: not JSON at byte 33"),
    (r#"{"msg_id":1,"seq":5,"x":'a'}"#, 5, "not JSON at byte 24"),
    (r#"{"msg_id":1,"seq":5,"id":"\x"}"#, 5, "id: not JSON at byte 27"),
    (
        r#"{"msg_id":1,"seq":5,"id":"\ud800"}"#,
        5,
        "id: half of a surrogate pair, in the string at byte 25",
    ),
    (r#"{"seq":5,"payload":1}"#, 5, "msg_id or type is wanted: the message has neither"),
    (
        r#"{"msg_id":1,"seq":5,"payload":null,"payload_base64":"a"}"#,
        5,
        "payload_base64: send payload or payload_base64, not both, at byte 52",
    ),
];

#[test]
fn a_refusal_says_which_field_what_is_wanted_and_where() {
    for (text, seq, said) in BAD {
        assert_eq!(bad(text), (seq, Reason::BadMessage, said.to_owned()), "{text}");
    }
    // The first fault is told, and the seq behind it is found.
    let two = r#"{"msg_id":"x","key":1,"seq":5}"#;
    assert_eq!(bad(two).0, 5);
    assert!(bad(two).2.starts_with("msg_id: "), "{two}");
    let control = bad("{\"msg_id\":1,\"seq\":5,\"id\":\"\n\"}");
    assert!(control.2.starts_with("id: not JSON at byte 2"), "{control:?}");
}

#[test]
fn a_refusal_repeats_nothing_that_the_client_wrote_and_stays_short() {
    let long = "\u{202e}\u{1b}[2J\\n".repeat(2_000);
    for text in [
        format!("{long}{{"),
        format!("{{\"{long}\":1,"),
        format!("{{\"id\":\"{}\"}}", "\u{202e}".repeat(2_000)),
        format!("{{\"msg_id\":\"{}\"}}", "\u{202e}".repeat(2_000)),
        format!("{{\"msg_id\":1,\"type\":\"{}\"}}", "x".repeat(60_000)),
    ] {
        let (_, _, said) = bad(&text);
        assert!(
            said.len() < 120 && said.bytes().all(|b| b.is_ascii_graphic() || b == b' '),
            "{said}"
        );
    }
}

#[test]
fn fields_that_are_too_long_say_how_long_they_may_be() {
    let long = |key: &str, len: usize| {
        format!(r#"{{"msg_id":1,"seq":5,"{key}":"{}"}}"#, "\u{e9}".repeat(len / 2))
    };
    for (key, len, said) in [
        ("type", 32, "type: a string of at most 32 bytes is wanted, at byte 27"),
        ("id", 64, "id: a string of at most 64 bytes is wanted, at byte 25"),
        ("key", 128, "key: a string of at most 128 bytes is wanted, at byte 26"),
    ] {
        assert!(decode(&long(key, len)).is_ok());
        assert_eq!(bad(&long(key, len + 2)), (5, Reason::TooLarge, said.to_owned()));
    }
    assert!(decode(r#"{"type":"ping"}"#).is_ok());
    assert_eq!(bad("{}").0, 0);
}

#[test]
fn null_is_not_there_for_every_field_but_payload() {
    let text = r#"{"msg_id":7,"seq":null,"type":null,"id":null,"key":null,"deadline_ms":null,
        "ack":null,"payload_base64":null}"#;
    let none = ClientMessage { msg_id: 7, ..Default::default() };
    assert_eq!(decode(text), Ok(none.clone()));
    // So it is if the slow reader has to read it.
    assert_eq!(decode(&text.replace(":7,", ":7.0,")), Ok(none));
    let text = r#"{"msg_id":null,"type":"ping","payload":null,"payload_base64":null}"#;
    let message = decode(text).unwrap();
    assert_eq!((&*message.kind, message.payload), ("ping", b"null".as_slice()));
    assert_eq!(bad(r#"{"msg_id":null,"seq":5}"#).2, bad(r#"{"seq":5}"#).2);
}

#[test]
fn an_empty_payload_base64_is_not_there() {
    // Unity's JsonUtility writes "" for every string of a class.
    for number in ["1", "1.0"] {
        let text = format!(
            r#"{{"msg_id":{number},"type":"","id":"","key":"","payload":[1],"payload_base64":""}}"#
        );
        let message = decode(&text).unwrap();
        assert_eq!((message.payload, message.payload_base64), (b"[1]".as_slice(), None));
        let text = format!(r#"{{"msg_id":{number},"payload_base64":""}}"#);
        assert_eq!(decode(&text).unwrap().payload_base64, None);
    }
}

#[test]
fn whole_numbers_are_taken_however_they_are_written() {
    // Godot, Lua, PHP and JavaScript have no integers, or write them like this.
    for number in ["1001", "1001.0", "1.001e3", "1.001E+3", "10010e-1", "1001.000e0", "0.1001e4"] {
        let text = format!(
            r#"{{"msg_id":{number},"seq":{number},"deadline_ms":{number},"ack":{number}}}"#
        );
        let message = decode(&text).unwrap_or_else(|bad| panic!("{text}: {bad:?}"));
        let numbers = (message.msg_id, message.seq, message.deadline_ms, message.ack);
        assert_eq!(numbers, (1001, 1001, 1001, 1001), "{number}");
    }
    for zero in ["0", "-0", "0.0", "-0.0", "0e5", "0.000e-9", "-0E+999999999999999999999"] {
        let text = format!(r#"{{"msg_id":1,"seq":{zero},"deadline_ms":{zero},"ack":{zero}}}"#);
        let message = decode(&text).unwrap_or_else(|bad| panic!("{text}: {bad:?}"));
        assert_eq!((message.seq, message.deadline_ms, message.ack), (0, 0, 0), "{zero}");
    }
    let seq = |number: &str| decode(&format!(r#"{{"msg_id":1,"seq":{number}}}"#)).map(|m| m.seq);
    assert_eq!(seq("9007199254740991.0"), Ok(SEQ_MAX));
    assert_eq!(seq("9.007199254740991e15"), Ok(SEQ_MAX));
    for bad in [
        "1.5",
        "-1",
        "-1.0",
        "1e-1",
        "0.1",
        "1.00000000000000000001",
        "9007199254740992.0",
        "1e16",
        "1e400",
        "1e99999999999999999999",
        "1.5e-9223372036854775808",
        "15e-2147483648",
        "1e9223372036854775807",
        "1e-99999999999999999999",
        "5.0000000000000001",
        "\"5\"",
        "\"5.0\"",
        "true",
        "[]",
        "{}",
    ] {
        let (got, _, said) = super::tests::bad(&format!(r#"{{"msg_id":1,"seq":{bad}}}"#));
        assert_eq!((got, said.starts_with("seq: a whole number")), (0, true), "{bad}: {said}");
    }
}

#[test]
fn a_byte_order_mark_at_the_start_is_ignored() {
    let message = decode("\u{feff} {\"msg_id\":1,\"seq\":5,\"payload\":\"\u{feff}\"}").unwrap();
    assert_eq!((message.seq, message.payload), (5, "\"\u{feff}\"".as_bytes()));
    assert_eq!(bad("\u{feff}\u{feff}{}").2, "not JSON at byte 3");
    assert_eq!(bad("\u{feff}").2, "not JSON at byte 3");
    assert!(!is_json("\u{feff}1".as_bytes()), "a service's answer goes into our JSON");
}

#[test]
fn keys_that_are_not_known_are_ignored_whatever_they_hold() {
    for unknown in
        [r#""x":null"#, r#""SEQ":9"#, r#""x":1,"x":2"#, r#""\ud800":{"seq":[]}"#, r#""":"""#]
    {
        for number in ["1", "1.0"] {
            let text = format!(r#"{{{unknown},"msg_id":{number},"seq":5,{unknown}}}"#);
            assert_eq!(decode(&text).map(|m| (m.msg_id, m.seq)), Ok((1, 5)), "{text}");
        }
    }
}

/// A JSON text of that many levels, arrays and objects in turn.
fn nested(levels: usize) -> String {
    (0..levels).fold("1".to_owned(), |inner, level| match level % 2 {
        0 => format!("[{inner}]"),
        _ => format!("{{\"a\":{inner}}}"),
    })
}

#[test]
fn sixty_four_levels_pass_and_sixty_five_do_not() {
    for levels in [63, 64] {
        let text = format!(r#"{{"msg_id":1,"seq":5,"payload":{}}}"#, nested(levels - 1));
        assert!(decode(&text).is_ok(), "{text}");
        assert!(is_json(nested(levels).as_bytes()));
    }
    let text = format!(r#"{{"msg_id":1,"seq":5,"payload":{}}}"#, nested(64));
    // The 64th level of the payload, which alternates between an object and an array.
    let said = format!("the JSON is nested deeper than 64 levels, at byte {}", 30 + 32 * 5 + 31);
    assert_eq!(bad(&text), (5, Reason::BadMessage, said));
    assert!(!is_json(nested(65).as_bytes()));
    let deep = format!(r#"{{"seq":5,"msg_id":1,"x":{}}}"#, "[".repeat(60_000));
    let said = format!("the JSON is nested deeper than 64 levels, at byte {}", 24 + 63);
    assert_eq!(bad(&deep), (5, Reason::BadMessage, said));
    // Many brackets side by side, or in strings, are not deep.
    let wide = format!(r#"{{"msg_id":1,"payload":[{}"[[[\"[["]}}"#, "[],".repeat(100));
    assert!(decode(&wide).is_ok());
    let text = format!(r#"{{"msg_id":1,"payload":"{}"}}"#, "[".repeat(100));
    assert!(decode(&text).is_ok());
}

#[test]
fn json_text_is_told_from_what_is_not() {
    for text in ["null", " [1, 2.5e-3] ", "\"\\u00e9\"", "{\"a\":[]}", "-1", "\"é\"", "1e999"] {
        assert!(is_json(text.as_bytes()), "{text}");
    }
    for text in [
        "",
        " ",
        "nul",
        "NaN",
        "01",
        "1.",
        "+1",
        ".5",
        "[1,]",
        "{\"a\"}",
        "{a:1}",
        "'a'",
        "\"\n\"",
        "\"\\x\"",
        "1 2",
        "[",
        "\"a",
        "{\"a\":1,}",
        "//\n1",
        "\u{feff}1",
    ] {
        assert!(!is_json(text.as_bytes()), "{text}");
    }
    assert!(!is_json(b"\"\xff\""));
    assert!(!is_json(b"\"\xed\xa0\x80\""));
}

#[test]
fn base64_is_taken_in_either_alphabet_with_padding_or_without() {
    let plain = decode(r#"{"msg_id":1,"payload_base64":"AQL/"}"#).unwrap();
    assert!(matches!(plain.payload_base64, Some(Cow::Borrowed("AQL/"))));
    let message = decode(r#"{"msg_id":1,"payload_base64":"AQL\/"}"#).unwrap();
    assert_eq!(decode_base64(&message.payload_base64.unwrap()), Ok(vec![1, 2, 255]));
    assert_eq!(decode_base64(""), Ok(vec![]));
    for (text, bytes) in [
        ("AQ==", &[1][..]),
        ("AQ", &[1]),
        ("AR==", &[1]),
        ("AR", &[1]),
        ("AQI=", &[1, 2]),
        ("AQJ", &[1, 2]),
        ("+/+/", &[0xfb, 0xff, 0xbf]),
        ("-_-_", &[0xfb, 0xff, 0xbf]),
        ("-w", &[0xfb]),
        ("AQ==\n", &[1]),
        ("AQID\r\nBAUG\r\n", &[1, 2, 3, 4, 5, 6]),
        ("AQ\r\n==", &[1]),
        ("-_\n-_", &[0xfb, 0xff, 0xbf]),
    ] {
        assert_eq!(decode_base64(text).as_deref(), Ok(bytes), "{text:?}");
    }
    for text in ["A", "=", "====", "AQ==AQ==", "A?==", "AQ=A", "\u{e9}AAA", "AAAAA", "%"] {
        assert_eq!(decode_base64(text), Err(BAD_BASE64), "{text:?}");
    }
    let mut lines = STANDARD.encode([7; 100]);
    lines.insert_str(76, "\r\n");
    assert_eq!(decode_base64(&lines), Ok(vec![7; 100]), "as MIME cuts it");
}

/// The text in the one frame that `message` encodes to.
fn text_of(message: &ServerMessage<'_>) -> String {
    let mut out = b"before".to_vec();
    encode(&mut out, message);
    let frame = out.strip_prefix(b"before").unwrap();
    let (len, header) = match frame[1] {
        126 => (usize::from(u16::from_be_bytes([frame[2], frame[3]])), 4),
        127 => (u64::from_be_bytes(frame[2..10].try_into().unwrap()) as usize, 10),
        len => (usize::from(len), 2),
    };
    assert_eq!((frame[0], frame.len()), (0x81, header + len));
    assert_eq!(frame_header_len(len), header, "the shortest form");
    std::str::from_utf8(&frame[header..]).unwrap().to_owned()
}

#[test]
fn replies_and_errors_are_exactly_as_written_down() {
    let reply = ServerMessage { msg_id: 1001, seq: 1, payload: b"{\"a\":1}", ..Default::default() };
    assert_eq!(text_of(&reply), r#"{"msg_id":1001,"seq":1,"payload":{"a":1}}"#);
    let bytes = ServerMessage { payload: &[1, 2, 255], payload_is_bytes: true, ..reply };
    assert_eq!(text_of(&bytes), r#"{"msg_id":1001,"seq":1,"payload_base64":"AQL/"}"#);
    let empty = ServerMessage { payload: b"", ..reply };
    assert_eq!(text_of(&empty), r#"{"msg_id":1001,"seq":1}"#);
    let error = ServerMessage {
        status: 5,
        message: "no \"route\"",
        reason: Some(Reason::NoRoute),
        ..empty
    };
    assert_eq!(
        text_of(&error),
        r#"{"msg_id":1001,"seq":1,"status":5,"message":"no \"route\"","reason":"NO_ROUTE"}"#
    );
    let zero = ServerMessage { status: 3, ..Default::default() };
    assert_eq!(text_of(&zero), r#"{"msg_id":0,"seq":0,"status":3}"#);
    let push = ServerMessage { kind: "push", payload: b"1", offset: 7, ..Default::default() };
    assert_eq!(text_of(&push), r#"{"type":"push","payload":1,"offset":7}"#);
    let told = ServerMessage {
        seq: 9,
        kind: "error",
        status: 8,
        reason: Some(Reason::RateLimited),
        retry_after_ms: 50,
        ..Default::default()
    };
    assert_eq!(
        text_of(&told),
        r#"{"seq":9,"type":"error","status":8,"reason":"RATE_LIMITED","retry_after_ms":50}"#
    );
}

#[test]
fn every_length_has_its_shortest_header() {
    for len in (0..300).chain(65_400..65_600) {
        let payload = format!("\"{}\"", "x".repeat(len));
        let reply = ServerMessage { seq: 1, payload: payload.as_bytes(), ..Default::default() };
        assert_eq!(text_of(&reply), format!(r#"{{"msg_id":0,"seq":1,"payload":{payload}}}"#));
        // Escapes make the text longer than guessed.
        let message = "\u{1}".repeat(len.min(300));
        let error = ServerMessage { seq: 1, message: &message, ..Default::default() };
        let text = text_of(&error);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value.get("message").map_or("", |v| v.as_str().unwrap()), message);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn encoded_messages_read_back(
        numbers in (any::<u32>(), any::<u64>(), any::<u32>(), any::<u32>(), any::<u64>()),
        [text, kind, group, id, from] in prop::array::uniform5("(?s).{0,40}"),
        bytes in vec(any::<u8>(), 0..200),
        as_bytes in any::<bool>(),
        reason in prop::option::of(prop::sample::select(Reason::ALL.to_vec())),
    ) {
        let (msg_id, seq, status, retry_after_ms, offset) = numbers;
        let payload = if as_bytes { bytes.clone() } else { json!(bytes).to_string().into_bytes() };
        let message = ServerMessage {
            msg_id, seq, kind: &kind, payload: &payload, payload_is_bytes: as_bytes, status,
            message: &text, reason, retry_after_ms, offset, group: &group, id: &id, from: &from,
        };
        let value: Value = serde_json::from_str(&text_of(&message)).unwrap();
        let (id32, status32) = (u64::from(msg_id), u64::from(status));
        for (n, was) in [("msg_id", id32), ("seq", seq), ("status", status32), ("offset", offset)] {
            prop_assert_eq!(value.get(n).map_or(0, |v| v.as_u64().unwrap()), was);
        }
        let names = [("type", kind), ("message", text), ("group", group), ("id", id)];
        for (name, was) in names.into_iter().chain([("from", from)]) {
            prop_assert_eq!(value.get(name).map_or("", |v| v.as_str().unwrap()), was);
        }
        prop_assert_eq!(value.get("reason").map(|v| v.as_str().unwrap()), reason.map(Reason::name));
        if as_bytes {
            let read = value.get("payload_base64").map_or("", |v| v.as_str().unwrap());
            prop_assert_eq!(decode_base64(read).unwrap(), bytes);
        } else {
            prop_assert_eq!(value.get("payload"), Some(&json!(bytes)));
        }
    }

    #[test]
    fn decoded_messages_are_what_was_written(
        numbers in (1_u32.., 0..=SEQ_MAX, any::<u32>(), any::<u64>()),
        id in vec(any::<char>(), 0..16),
        key in vec(any::<char>(), 0..32),
        payload in vec(any::<f64>().prop_filter("not in JSON", |f| f.is_finite()), 0..9),
    ) {
        let (msg_id, seq, deadline_ms, ack) = numbers;
        let (id, key, payload) = (String::from_iter(id), String::from_iter(key), json!(payload));
        let text = json!({
            "msg_id": msg_id, "seq": seq, "id": id, "key": key, "deadline_ms": deadline_ms,
            "ack": ack, "payload": payload,
        }).to_string();
        let message = decode(&text).unwrap();
        prop_assert_eq!((message.msg_id, message.seq, message.ack), (msg_id, seq, ack));
        prop_assert_eq!((&*message.id, &*message.key), (&*id, &*key));
        prop_assert_eq!(message.deadline_ms, deadline_ms);
        let payload_text = payload.to_string();
        prop_assert_eq!(message.payload, payload_text.as_bytes());
        prop_assert_eq!(fields::read(&text), Ok(message.clone()));
        // Numbers as floats, where a float is exact.
        let float = |n: u64| format!("{n}.0");
        let text = json!({"id": id, "key": key, "payload": payload}).to_string();
        let text = format!(
            "{{\"msg_id\":{},\"seq\":{},\"deadline_ms\":{},\"ack\":{ack},{}",
            float(msg_id.into()), float(seq), float(deadline_ms.into()), &text[1..]
        );
        prop_assert_eq!(decode(&text), Ok(message.clone()));
    }

    #[test]
    fn the_place_of_a_syntax_error_is_the_byte_that_was_broken(
        at in 0_usize..60,
    ) {
        // A byte that is nowhere right outside of strings: before it all is well.
        let good = r#"{"msg_id":1,"seq":5,"payload":{"a":[1,true,"b"]},"ack":12}  "#;
        let (before, after) = good.split_at(at.min(good.len()));
        let in_string = before.matches('"').count() % 2 == 1;
        prop_assume!(!in_string);
        let (_, _, said) = bad(&format!("{before}@{after}"));
        let told = format!("not JSON at byte {}", before.len());
        prop_assert!(said.ends_with(&told), "{} {}", said, before);
    }

    #[test]
    fn a_number_is_the_same_wherever_its_point_stands(
        n in any::<u64>(),
        point in 1_usize..20,
        zeros in 0_usize..30,
    ) {
        let digits = n.to_string();
        let point = point.min(digits.len());
        let (whole, fraction) = digits.split_at(point);
        let (exponent, zeros) = (fraction.len(), "0".repeat(zeros));
        let dot = if fraction.is_empty() && zeros.is_empty() { "" } else { "." };
        let text = format!("{whole}{dot}{fraction}{zeros}e{exponent}");
        prop_assert_eq!(fields::whole_number(&text), Some(n), "{}", text);
        let negative = fields::whole_number(&format!("-{text}"));
        prop_assert_eq!(negative, if n == 0 { Some(0) } else { None }, "-{}", text);
        // A tenth of it is whole only if it ends with a zero.
        let tenth = fields::whole_number(&format!("{n}{zeros}e-{}", zeros.len() + 1));
        prop_assert_eq!(tenth, if n % 10 == 0 { Some(n / 10) } else { None });
    }
}
