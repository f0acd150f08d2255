//! The JSON envelope: its edge cases, and encode against serde_json as the naive model.

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn bad(text: &str) -> (u64, &'static str, Reason) {
    let BadMessage { seq, reject } = decode(text).expect_err(text);
    (seq, reject.text, reject.reason)
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

#[test]
fn what_is_not_a_message_is_refused_with_the_seq_that_could_be_read() {
    let whole = NOT_A_MESSAGE.text;
    let cases = [
        ("", 0),
        ("x", 0),
        ("1", 0),
        ("null", 0),
        ("\"a\"", 0),
        ("[1,2]", 0),
        (r#"{"msg_id":1,"seq":5}x"#, 5),
        (r#"{"msg_id":1,"seq":5"#, 5),
        (r#"{"seq":5,"msg_id":"1"}"#, 5),
        (r#"{"msg_id":"1","seq":5}"#, 5),
        (r#"{"msg_id":-1,"seq":5}"#, 5),
        (r#"{"msg_id":1.0,"seq":5}"#, 5),
        (r#"{"msg_id":1e3,"seq":5}"#, 5),
        (r#"{"msg_id":4294967296,"seq":5}"#, 5),
        (r#"{"msg_id":NaN,"seq":5}"#, 0),
        (r#"{"seq":5,"msg_id":NaN}"#, 5),
        (r#"{"msg_id":Infinity}"#, 0),
        (r#"{"msg_id":null,"seq":5}"#, 5),
        (r#"{"msg_id":01,"seq":5}"#, 0),
        (r#"{"msg_id":1,"seq":"5"}"#, 0),
        (r#"{"msg_id":1,"seq":-5}"#, 0),
        (r#"{"msg_id":1,"seq":5.5}"#, 0),
        (r#"{"msg_id":1,"seq":18446744073709551616}"#, 0),
        (r#"{"msg_id":1,"seq":null}"#, 0),
        (r#"{"msg_id":1,"seq":5,"seq":5}"#, 0),
        (r#"{"msg_id":1,"seq":5,"seq":6}"#, 0),
        (r#"{"msg_id":1,"msg_id":2,"seq":5}"#, 5),
        (r#"{"msg_id":1,"seq":5,"payload":1,"payload":2}"#, 5),
        (r#"{"msg_id":1,"seq":5,"id":"a","id":"a"}"#, 5),
        (r#"{"msg_id":1,"seq":5,"id":null}"#, 5),
        (r#"{"msg_id":1,"seq":5,"key":1}"#, 5),
        (r#"{"msg_id":1,"seq":5,"type":["ping"]}"#, 5),
        (r#"{"msg_id":1,"seq":5,"payload_base64":7}"#, 5),
        (r#"{"msg_id":1,"seq":5,"payload_base64":null}"#, 5),
        (r#"{"msg_id":1,"seq":5,"deadline_ms":4294967296}"#, 5),
        (r#"{"msg_id":1,"seq":5,"payload":{"a":}}"#, 5),
        (r#"{"msg_id":1,"seq":5,"payload":}"#, 5),
        (r#"{"msg_id":1,"seq":5,"payload":[1,]}"#, 5),
        (r#"{"msg_id":1,"seq":5,"x":'a'}"#, 5),
        (r#"{"msg_id":1,"seq":5,}"#, 5),
        (r#"{"msg_id":1,"seq":5,"id":"\ud800"}"#, 5),
        ("{\"msg_id\":1,\"seq\":5,\"id\":\"\n\"}", 5),
        ("{\"msg_id\":1,\"seq\":5}\u{feff}", 5),
        ("\u{feff}{\"msg_id\":1,\"seq\":5}", 0),
        (r#"{"msg_id":1,"seq":5} {}"#, 5),
    ];
    for (text, seq) in cases {
        assert_eq!(bad(text), (seq, whole, Reason::BadMessage), "{text}");
    }
}

#[test]
fn rules_of_the_protocol_have_their_own_words() {
    let long = |key: &str, len: usize| {
        format!(r#"{{"msg_id":1,"seq":5,"{key}":"{}"}}"#, "é".repeat(len / 2))
    };
    let cases = [
        (r#"{}"#.to_owned(), 0, NO_ID),
        (r#"{"seq":5,"payload":1}"#.to_owned(), 5, NO_ID),
        (r#"{"seq":5,"msg_id":0,"type":""}"#.to_owned(), 5, NO_ID),
        (r#"{"msg_id":1,"seq":9007199254740992}"#.to_owned(), 0, SEQ_RANGE),
        (r#"{"msg_id":1,"seq":5,"payload":1,"payload_base64":""}"#.to_owned(), 5, TWO_PAYLOADS),
        (r#"{"msg_id":1,"seq":5,"payload":null,"payload_base64":"a"}"#.to_owned(), 5, TWO_PAYLOADS),
        (long("type", 34), 5, LONG_TYPE),
        (long("id", 66), 5, LONG_ID),
        (long("key", 130), 5, LONG_KEY),
    ];
    for (text, seq, reject) in cases {
        assert_eq!(decode(&text), Err(BadMessage { seq, reject }), "{text}");
    }
    for (key, len) in [("type", 32), ("id", 64), ("key", 128)] {
        assert!(decode(&long(key, len)).is_ok());
    }
    assert!(decode(r#"{"type":"ping"}"#).is_ok());
    assert_eq!((LONG_ID.reason, NO_ID.reason), (Reason::TooLarge, Reason::BadMessage));
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
    assert_eq!(decode(&text), Err(BadMessage { seq: 5, reject: TOO_DEEP }));
    assert!(!is_json(nested(65).as_bytes()));
    let deep = format!(r#"{{"seq":5,"msg_id":1,"x":{}}}"#, "[".repeat(60_000));
    assert_eq!(decode(&deep), Err(BadMessage { seq: 5, reject: TOO_DEEP }));
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
fn base64_payloads_are_decoded_strictly() {
    let plain = decode(r#"{"msg_id":1,"payload_base64":"AQL/"}"#).unwrap();
    assert!(matches!(plain.payload_base64, Some(Cow::Borrowed("AQL/"))));
    let message = decode(r#"{"msg_id":1,"payload_base64":"AQL\/"}"#).unwrap();
    assert_eq!(decode_base64(&message.payload_base64.unwrap()), Ok(vec![1, 2, 255]));
    assert_eq!(decode_base64(""), Ok(vec![]));
    for text in ["A", "AQ", "AQ=", "AQ==\n", "A-==", "AR=="] {
        assert_eq!(decode_base64(text), Err(BAD_BASE64), "{text}");
    }
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
        strings in (vec(any::<char>(), 0..40), vec(any::<char>(), 0..10)),
        bytes in vec(any::<u8>(), 0..200),
        as_bytes in any::<bool>(),
        reason in prop::option::of(prop::sample::select(Reason::ALL.to_vec())),
    ) {
        let (text, kind) = (String::from_iter(strings.0), String::from_iter(strings.1));
        let (msg_id, seq, status, retry_after_ms, offset) = numbers;
        let payload = if as_bytes { bytes.clone() } else { json!(bytes).to_string().into_bytes() };
        let message = ServerMessage {
            msg_id, seq, kind: &kind, payload: &payload, payload_is_bytes: as_bytes, status,
            message: &text, reason, retry_after_ms, offset,
        };
        let value: Value = serde_json::from_str(&text_of(&message)).unwrap();
        prop_assert_eq!(value.get("msg_id").map_or(0, |v| v.as_u64().unwrap()), u64::from(msg_id));
        prop_assert_eq!(value.get("seq").map_or(0, |v| v.as_u64().unwrap()), seq);
        prop_assert_eq!(value.get("type").map_or("", |v| v.as_str().unwrap()), &kind);
        prop_assert_eq!(value.get("status").map_or(0, |v| v.as_u64().unwrap()), u64::from(status));
        prop_assert_eq!(value.get("message").map_or("", |v| v.as_str().unwrap()), &text);
        prop_assert_eq!(value.get("reason").map(|v| v.as_str().unwrap()), reason.map(Reason::name));
        prop_assert_eq!(value.get("offset").map_or(0, |v| v.as_u64().unwrap()), offset);
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
        let payload = payload.to_string();
        prop_assert_eq!(message.payload, payload.as_bytes());
    }

    #[test]
    fn noise_never_panics(
        bytes in vec(prop::sample::select(br#"{}[]":,\ 0159-.eEutrnaseqmg_id"#.to_vec()), 0..80),
        any_text in vec(any::<char>(), 0..40),
    ) {
        let text = String::from_utf8(bytes).unwrap();
        let _ = decode(&text);
        let _ = decode(&String::from_iter(any_text));
        let naive = serde_json::from_str::<Value>(&text).is_ok();
        // A Value also refuses numbers that no float holds, and lone surrogates.
        prop_assert!(is_json(text.as_bytes()) || !naive);
    }
}
