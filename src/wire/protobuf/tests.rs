//! The protobuf envelope, against what prost generates from the same .proto file.

use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::limits::SEQ_MAX;

// Generated; not every message of it is used here.
#[allow(missing_docs, dead_code, clippy::all)]
mod client {
    tonic::include_proto!("shardgate.client.v1");
}

fn wire(message: &client::ClientMessage) -> Vec<u8> {
    message.encode_to_vec()
}

fn bad(bytes: &[u8]) -> (u64, Reject) {
    let BadMessage { seq, reject } = decode(bytes).expect_err("accepted");
    (seq, reject)
}

#[test]
fn malformed_messages_are_refused_with_the_seq_that_could_be_read() {
    let seq = [0x10, 5];
    let with = |parts: &[&[u8]]| [&[0x08, 1][..], &parts.concat(), &seq].concat();
    // A known field with another wire type.
    for wrong in [&[0x0a, 0][..], &[0x15, 0, 0, 0, 0], &[0x18, 7], &[0x20, 7], &[0x3a, 0]] {
        assert_eq!(bad(&with(&[wrong])), (5, WRONG_TYPE));
    }
    assert_eq!(bad(&with(&[&[0x2a, 1, 0xff]])), (5, NOT_UTF8));
    assert_eq!(bad(&with(&[&[0x08, 0x80, 0x80, 0x80, 0x80, 0x10]])), (5, OVER_32_BITS));
    assert_eq!(bad(&[0x10, 5, 0x08]), (5, NOT_PROTOBUF));
    assert_eq!(bad(&[0x10, 5, 0x22, 9, 1]), (5, NOT_PROTOBUF), "length past the end");
    assert_eq!(bad(&[0x10, 5, 0x22, 0xff, 0xff, 0xff, 0xff, 0xff, 1]), (5, NOT_PROTOBUF));
    assert_eq!(bad(&[0x10, 5, 0x00, 0x00]), (5, NOT_PROTOBUF), "field number 0");
    assert_eq!(bad(&[0x10, 5, 0x0f]), (5, NOT_PROTOBUF), "wire type 7");
    assert_eq!(bad(&[0x10, 5, 0x7c]), (5, NOT_PROTOBUF), "end of no group");
    assert_eq!(bad(&[0x08, 1, 0x10, 0xff]), (0, NOT_PROTOBUF));
    assert_eq!(bad(&[0xff; 11]), (0, NOT_PROTOBUF), "a varint without end");
    // Groups: skipped while they nest as deep as prost allows, refused deeper.
    let group = |depth| with(&[&vec![0x7b; depth], &vec![0x7c; depth]]);
    assert_eq!(decode(&group(50)).expect("skipped").seq, 5);
    assert_eq!(bad(&[&[0x10, 5], &group(60_000)[..]].concat()), (5, NOT_PROTOBUF));
}

#[test]
fn rules_hold_as_in_json() {
    let good = client::ClientMessage { msg_id: 1, seq: 5, ..Default::default() };
    let cases = [
        (client::ClientMessage { msg_id: 0, ..good.clone() }, 5, Reason::BadMessage),
        (client::ClientMessage { seq: SEQ_MAX + 1, ..good.clone() }, 0, Reason::BadMessage),
        (client::ClientMessage { id: "x".repeat(65), ..good.clone() }, 5, Reason::TooLarge),
        (client::ClientMessage { key: "x".repeat(129), ..good.clone() }, 5, Reason::TooLarge),
        (client::ClientMessage { r#type: "x".repeat(33), ..good.clone() }, 5, Reason::TooLarge),
    ];
    for (message, seq, reason) in cases {
        let (got, reject) = bad(&wire(&message));
        assert_eq!((got, reject.reason), (seq, reason), "{message:?}");
    }
    assert_eq!(bad(&[]).0, 0, "an empty frame has no msg_id");
}

#[test]
fn of_a_field_given_twice_the_last_counts_and_unknown_ones_are_skipped() {
    let bytes = [0x08, 1, 0x08, 2, 0x22, 1, b'a', 0x22, 1, b'b', 0x48, 9, 0x52, 1, 7, 0x10, 3];
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
    ) {
        let message = client::ClientMessage {
            msg_id: numbers.0, seq: numbers.1, deadline_ms: numbers.2, ack: numbers.3,
            r#type: String::from_iter(strings.0), id: String::from_iter(strings.1),
            key: String::from_iter(strings.2), payload,
        };
        let bytes = wire(&message);
        let read = decode(&bytes).unwrap();
        prop_assert_eq!(client::ClientMessage {
            msg_id: read.msg_id, seq: read.seq, deadline_ms: read.deadline_ms, ack: read.ack,
            r#type: read.kind.into_owned(), id: read.id.into_owned(),
            key: read.key.into_owned(), payload: read.payload.to_vec(),
        }, message);
        prop_assert_eq!(read.payload_base64, None);
    }

    #[test]
    fn what_is_encoded_prost_decodes(
        numbers in (any::<u32>(), any::<u64>(), any::<u32>(), any::<u32>(), any::<u64>()),
        strings in (vec(any::<char>(), 0..8), vec(any::<char>(), 0..60)),
        payload in vec(any::<u8>(), 0..300),
        reason in prop::option::of(prop::sample::select(Reason::ALL.to_vec())),
    ) {
        let (kind, text) = (String::from_iter(strings.0), String::from_iter(strings.1));
        let mut out = Vec::new();
        encode(&mut out, &ServerMessage {
            msg_id: numbers.0, seq: numbers.1, status: numbers.2, retry_after_ms: numbers.3,
            offset: numbers.4, kind: &kind, message: &text, payload: &payload, reason,
            payload_is_bytes: false,
        });
        let header = if out[1] == 126 { 4 } else { 2 };
        let mut expected = Vec::new();
        write_frame_header(&mut expected, OpCode::Data(Data::Binary), out.len() - header);
        prop_assert_eq!(&out[..header], &expected);
        let reason = reason.map_or("", Reason::name).to_owned();
        let read = client::ServerMessage::decode(&out[header..]).unwrap();
        prop_assert_eq!(read, client::ServerMessage {
            msg_id: numbers.0, seq: numbers.1, status: numbers.2, retry_after_ms: numbers.3,
            offset: numbers.4, r#type: kind, message: text, payload, reason,
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
