//! Bodies of calls against prost's own encoding.

use bytes::Buf;
use prost::Message as _;

use super::*;
use crate::demo::proto::{BatchRequest, Encoding as WireEncoding, Priority as WirePriority};
use crate::ids::{SessionId, ShardId};
use crate::limits;
use crate::message::{Encoding, Priority};

fn identity() -> GatewayIdentity {
    GatewayIdentity { gateway: "node-1".into(), shard: 3, boot_id: 99, unix_at_boot_us: 1_000_000 }
}

fn request(seq: u64, payload: &[u8]) -> Request {
    let mut request = Request {
        msg_id: 1000 + seq as u32,
        seq,
        attempt: 1,
        received: Micros(10),
        deadline: Micros(5_001),
        session: SessionId::new(ShardId(0), u128::from(seq)),
        user: seq.is_multiple_of(2).then(|| someone().into()),
        encoding: Encoding::Protobuf,
        id: format!("id-{seq}"),
        key: String::new(),
        ..Request::default()
    };
    request.handling.priority = Priority::ALL[seq as usize % 4];
    request.payload.set(payload);
    request
}

/// The gRPC message of a body, and the number of its segments.
fn message_of(mut body: CallBody) -> (Vec<u8>, usize) {
    let mut slices = [std::io::IoSlice::new(&[]); 64];
    let segments = body.chunks_vectored(&mut slices);
    let all = body.copy_to_bytes(body.remaining());
    assert_eq!(all[0], 0, "not compressed");
    assert_eq!(u32::from_be_bytes([all[1], all[2], all[3], all[4]]) as usize, all.len() - 5);
    (all[5..].to_vec(), segments)
}

fn batch(writer: &mut BodyWriter, payloads: &[Vec<u8>], now: Micros) -> (BatchRequest, usize) {
    writer.begin_batch(&identity());
    for (n, payload) in payloads.iter().enumerate() {
        let seq = n as u64 + 1;
        writer.push(MsgKey::new(1, n as u32), &request(seq, payload), &identity(), now);
    }
    let len = writer.len();
    let (bytes, segments) = message_of(writer.finish());
    assert_eq!(bytes.len(), len, "len() is the message's");
    let read = BatchRequest::decode(&*bytes).expect("a BatchRequest");
    let again = read.encode_to_vec();
    assert_eq!(again.len(), bytes.len(), "no longer than prost writes it");
    (read, segments)
}

#[test]
fn a_batch_reads_as_what_was_put_in() {
    let mut writer = BodyWriter::default();
    let (read, _) = batch(&mut writer, &[b"{}".to_vec(), Vec::new()], Micros(1_000));
    assert_eq!((read.gateway.as_str(), read.shard, read.boot_id), ("node-1", 3, 99));
    let [first, second] = &read.requests[..] else { panic!("two requests") };
    assert_eq!(first.request_id, MsgKey::new(1, 0).0);
    assert_eq!((first.msg_id, first.seq, first.attempt), (1001, 1, 1));
    assert_eq!(first.session, SessionId::new(ShardId(0), 1).as_str());
    assert_eq!((first.user.as_str(), second.user.as_str()), ("", "someone"));
    assert_eq!((first.id.as_str(), first.key.as_str()), ("id-1", ""));
    assert_eq!((&first.payload[..], &second.payload[..]), (&b"{}"[..], &b""[..]));
    assert_eq!((first.priority(), second.priority()), (WirePriority::High, WirePriority::Normal));
    assert_eq!(first.encoding(), WireEncoding::Protobuf);
    // 4,001 us are left. They are rounded up, because 0 would mean "no limit".
    assert_eq!((first.timeout_ms, first.received_unix_us), (5, 1_000_010));
    let (late, _) = batch(&mut writer, &[Vec::new()], Micros(9_000_000));
    assert_eq!(late.requests[0].timeout_ms, 1);
}

#[test]
fn large_payloads_travel_by_reference_anywhere_in_a_batch() {
    let large = vec![7; limits::PAYLOAD_BY_REFERENCE_BYTES];
    let small = vec![1; limits::PAYLOAD_BY_REFERENCE_BYTES - 1];
    let mut writer = BodyWriter::default();
    for (payloads, segments) in [
        (vec![small.clone(), small.clone()], 1),
        (vec![large.clone()], 2),
        (vec![large.clone(), small.clone()], 3),
        (vec![small.clone(), large.clone(), large.clone(), small.clone()], 5),
    ] {
        let (read, found) = batch(&mut writer, &payloads, Micros(0));
        let got: Vec<_> = read.requests.iter().map(|r| r.payload.to_vec()).collect();
        assert_eq!((got, found), (payloads, segments));
    }
    let request = request(1, &large);
    let Payload::Large(bytes) = &request.payload else { panic!("it is large") };
    let at = bytes.as_ptr();
    writer.begin_batch(&identity());
    writer.push(MsgKey::new(1, 1), &request, &identity(), Micros(0));
    let mut body = writer.finish();
    body.advance(body.chunk().len());
    assert_eq!(body.chunk().as_ptr(), at, "not copied");
}

#[test]
fn batches_in_a_row_reuse_the_arena_and_do_not_disturb_each_other() {
    let mut writer = BodyWriter::default();
    let mut kept = Vec::new();
    for round in 0..300_u32 {
        let payloads: Vec<_> = (0..20).map(|n| vec![b'a' + (n % 7) as u8; 50 + n]).collect();
        writer.begin_batch(&identity());
        if round % 3 == 0 {
            writer.push(MsgKey::new(1, 1), &request(1, b"given up"), &identity(), Micros(0));
            writer.discard();
            assert_eq!(writer.len(), 0);
            writer.begin_batch(&identity());
        }
        for (n, payload) in payloads.iter().enumerate() {
            writer.push(MsgKey::new(1, n as u32), &request(1, payload), &identity(), Micros(0));
        }
        kept.push((writer.finish(), payloads));
        // Some bodies are dropped later than others.
        if kept.len() > 5 {
            let (body, payloads) = kept.remove(round as usize % 5);
            let read = BatchRequest::decode(&*message_of(body).0).expect("a BatchRequest");
            let got: Vec<_> = read.requests.iter().map(|r| r.payload.to_vec()).collect();
            assert_eq!(got, payloads);
        }
    }
}

#[test]
fn a_unary_call_is_the_payload_itself() {
    let mut writer = BodyWriter::default();
    for len in [0, 10, limits::PAYLOAD_BY_REFERENCE_BYTES, 5_000] {
        let payload = vec![9; len];
        let (bytes, _) = message_of(writer.unary(&request(1, &payload)));
        assert_eq!(bytes, payload);
    }
}

fn someone() -> crate::auth::Identity {
    crate::auth::Identity {
        user: "someone".into(),
        tenant: None,
        groups: Vec::new(),
        groups_left_out: 0,
        expires_unix_s: 0,
    }
}
