//! The protobuf envelope, against what prost generates from the same .proto file.

use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::wire::client::generated as client;

fn wire(message: &client::ClientMessage) -> Vec<u8> {
    message.encode_to_vec()
}

/// Seq, reason and sentence of a refusal.
fn bad(bytes: &[u8]) -> (u64, Reason, String) {
    let BadMessage { seq, reason, text } = decode(bytes).expect_err("accepted");
    (seq, reason, text.into_owned())
}

#[test]
fn a_refusal_says_which_field_what_is_wanted_and_where() {
    let seq = [0x10, 5];
    let with = |parts: &[&[u8]]| [&[0x08, 1][..], &parts.concat(), &seq].concat();
    let cases: [(Vec<u8>, u64, &str); 25] = [
        (with(&[&[0x0a, 0]]), 5, "msg_id: wire type 0 (varint) is wanted, at byte 2"),
        (with(&[&[0x15, 0, 0, 0, 0]]), 5, "seq: wire type 0 (varint) is wanted, at byte 2"),
        (with(&[&[0x18, 7]]), 5, "type: wire type 2 (bytes) is wanted, at byte 2"),
        (with(&[&[0x20, 7]]), 5, "payload: wire type 2 (bytes) is wanted, at byte 2"),
        (with(&[&[0x3a, 0]]), 5, "deadline_ms: wire type 0 (varint) is wanted, at byte 2"),
        (with(&[&[0x42, 0]]), 5, "ack: wire type 0 (varint) is wanted, at byte 2"),
        (with(&[&[0x48, 7]]), 5, "traceparent: wire type 2 (bytes) is wanted, at byte 2"),
        (
            with(&[&[0x4a, 2], b"00"]),
            5,
            "traceparent: a traceparent of W3C Trace Context (55 bytes) is wanted, at byte 2",
        ),
        (vec![0x10, 5, 0x4a, 9], 5, "traceparent: cut off or too long, in the field at byte 2"),
        (with(&[&[0x2a, 1, 0xff]]), 5, "id: UTF-8 is wanted, in the field at byte 2"),
        (with(&[&[0x32, 1, 0xff]]), 5, "key: UTF-8 is wanted, in the field at byte 2"),
        (
            with(&[&[0x08, 0x80, 0x80, 0x80, 0x80, 0x10]]),
            5,
            "msg_id: a whole number from 0 to 2^32-1 is wanted, at byte 2",
        ),
        (
            [&[0x08, 1, 0x38], &[0x80; 4][..], &[0x10, 0x10, 5]].concat(),
            5,
            "deadline_ms: a whole number from 0 to 2^32-1 is wanted, at byte 2",
        ),
        (vec![0x10, 5, 0x08], 5, "msg_id: cut off or too long, in the field at byte 2"),
        (vec![0x10, 5, 0x22, 9, 1], 5, "payload: cut off or too long, in the field at byte 2"),
        (
            vec![0x10, 5, 0x22, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            5,
            "payload: cut off or too long, in the field at byte 2",
        ),
        (vec![0x10, 5, 0x00, 0x00], 5, "not a protobuf ClientMessage at byte 2"),
        (vec![0x10, 5, 0x0f], 5, "not a protobuf ClientMessage at byte 2"),
        (vec![0x10, 5, 0x7c], 5, "not a protobuf ClientMessage at byte 2"),
        (vec![0x10, 5, 0x52, 9], 5, "not a protobuf ClientMessage at byte 2"),
        (vec![0x08, 1, 0x10, 0xff], 0, "seq: cut off or too long, in the field at byte 2"),
        (vec![0xff; 11], 0, "not a protobuf ClientMessage at byte 0"),
        (vec![], 0, "msg_id or type is wanted: the message has neither"),
        (vec![0x10, 5], 5, "msg_id or type is wanted: the message has neither"),
        // The first fault is told.
        (with(&[&[0x2a, 1, 0xff, 0x18, 7]]), 5, "id: UTF-8 is wanted, in the field at byte 2"),
    ];
    for (bytes, seq, said) in cases {
        assert_eq!(bad(&bytes), (seq, Reason::BadMessage, said.to_owned()), "{bytes:x?}");
    }
    // Groups: skipped while they nest as deep as prost allows, refused deeper.
    let group = |depth| with(&[&vec![0x7b; depth], &vec![0x7c; depth]]);
    assert_eq!(decode(&group(50)).expect("skipped").seq, 5);
    assert_eq!(bad(&[&[0x10, 5], &group(60_000)[..]].concat()).0, 5);
}

#[test]
fn rules_hold_as_in_json() {
    let good = client::ClientMessage { msg_id: 1, seq: 5, ..Default::default() };
    let wanted = |what: &str, at: usize| format!("{what} is wanted, at byte {at}");
    let cases = [
        (
            client::ClientMessage { seq: SEQ_MAX + 1, ..good.clone() },
            (0, Reason::BadMessage, wanted("seq: a whole number from 0 to 2^53-1", 2)),
        ),
        (
            client::ClientMessage { id: "x".repeat(65), ..good.clone() },
            (5, Reason::TooLarge, wanted("id: a string of at most 64 bytes", 4)),
        ),
        (
            client::ClientMessage { key: "x".repeat(129), ..good.clone() },
            (5, Reason::TooLarge, wanted("key: a string of at most 128 bytes", 4)),
        ),
        (
            client::ClientMessage { r#type: "x".repeat(33), ..good.clone() },
            (5, Reason::TooLarge, wanted("type: a string of at most 32 bytes", 4)),
        ),
    ];
    for (message, expected) in cases {
        assert_eq!(bad(&wire(&message)), expected, "{message:?}");
    }
}

#[test]
fn of_a_field_given_twice_the_last_counts_and_unknown_ones_are_skipped() {
    let bytes = [0x08, 1, 0x08, 2, 0x22, 1, b'a', 0x22, 1, b'b', 0x58, 9, 0x52, 1, 7, 0x10, 3];
    let message = decode(&bytes).unwrap();
    assert_eq!((message.msg_id, message.seq, message.payload), (2, 3, b"b".as_slice()));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn what_prost_encodes_is_decoded(
        numbers in (1_u32.., 0..=SEQ_MAX, any::<u32>(), any::<u64>()),
        strings in (vec(any::<char>(), 0..8), vec(any::<char>(), 0..16), vec(any::<char>(), 0..32)),
        payload in vec(any::<u8>(), 0..300),
        traceparent in "|[0-9a-e]{2}-[1-9a-f]{32}-[1-9a-f]{16}-[0-9a-f]{2}",
    ) {
        let message = client::ClientMessage {
            msg_id: numbers.0, seq: numbers.1, deadline_ms: numbers.2, ack: numbers.3,
            r#type: String::from_iter(strings.0), id: String::from_iter(strings.1),
            key: String::from_iter(strings.2), payload, traceparent,
        };
        let bytes = wire(&message);
        let read = decode(&bytes).unwrap();
        prop_assert_eq!(client::ClientMessage {
            msg_id: read.msg_id, seq: read.seq, deadline_ms: read.deadline_ms, ack: read.ack,
            r#type: read.kind.into_owned(), id: read.id.into_owned(),
            key: read.key.into_owned(), payload: read.payload.to_vec(),
            traceparent: read.traceparent.into_owned(),
        }, message);
        prop_assert_eq!(read.payload_base64, None);
    }

    #[test]
    fn what_is_encoded_prost_decodes(
        numbers in (any::<u32>(), any::<u64>(), any::<u32>(), any::<u32>(), any::<u64>()),
        strings in (vec(any::<char>(), 0..8), vec(any::<char>(), 0..60)),
        (group, id, from) in (".{0,128}", ".{0,64}", ".{0,40}"),
        payload in vec(any::<u8>(), 0..300),
        reason in prop::option::of(prop::sample::select(Reason::ALL.to_vec())),
    ) {
        let (kind, text) = (String::from_iter(strings.0), String::from_iter(strings.1));
        let mut out = Vec::new();
        encode(&mut out, &ServerMessage {
            msg_id: numbers.0, seq: numbers.1, status: numbers.2, retry_after_ms: numbers.3,
            offset: numbers.4, kind: &kind, message: &text, payload: &payload, reason,
            payload_is_bytes: false, group: &group, id: &id, from: &from,
        });
        let header = if out[1] == 126 { 4 } else { 2 };
        let mut expected = Vec::new();
        write_frame_header(&mut expected, OpCode::Data(Data::Binary), out.len() - header);
        prop_assert_eq!(&out[..header], &expected);
        let reason = reason.map_or("", Reason::name).to_owned();
        let read = client::ServerMessage::decode(&out[header..]).unwrap();
        prop_assert_eq!(read, client::ServerMessage {
            msg_id: numbers.0, seq: numbers.1, status: numbers.2, retry_after_ms: numbers.3,
            offset: numbers.4, r#type: kind, message: text, payload, reason, group, id, from,
        });
    }

    #[test]
    fn noise_never_panics(bytes in vec(any::<u8>(), 0..60), short in vec(0_u8..100, 0..30)) {
        for bytes in [bytes, short] {
            // Every message that is accepted here is accepted by prost.
            if decode(&bytes).is_ok() {
                prop_assert!(client::ClientMessage::decode(bytes.as_slice()).is_ok());
            }
        }
    }
}
