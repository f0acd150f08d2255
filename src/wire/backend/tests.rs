//! The services' messages, against what prost generates from the same .proto file.

use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::wire::push::generated::PushMessage;

// Generated; not every message of it is used here.
#[allow(missing_docs, dead_code, clippy::all)]
mod v1 {
    tonic::include_proto!("shardgate.backend.v1");
}

fn request() -> impl Strategy<Value = v1::BaseRequest> {
    let text = |max| vec(any::<char>(), 0..max).prop_map(String::from_iter);
    let numbers = (any::<u64>(), any::<u32>(), any::<u64>(), any::<i64>(), any::<u32>());
    let strings = (text(20), text(40), text(10), text(64), text(128), text(60));
    (numbers, strings, (any::<u32>(), 1..=4_i32, 1..=2_i32), vec(any::<u8>(), 0..300)).prop_map(
        |(numbers, strings, (attempt, priority, encoding), payload)| v1::BaseRequest {
            request_id: numbers.0,
            msg_id: numbers.1,
            seq: numbers.2,
            session: strings.0,
            user: strings.1,
            tenant: strings.2,
            priority,
            payload: payload.into(),
            id: strings.3,
            key: strings.4,
            received_unix_us: numbers.3,
            timeout_ms: numbers.4,
            attempt,
            traceparent: strings.5,
            encoding,
        },
    )
}

fn fields(request: &v1::BaseRequest) -> RequestFields<'_> {
    RequestFields {
        request_id: request.request_id,
        msg_id: request.msg_id,
        seq: request.seq,
        session: &request.session,
        user: &request.user,
        tenant: &request.tenant,
        priority: Priority::ALL[request.priority as usize - 1],
        id: &request.id,
        key: &request.key,
        received_unix_us: request.received_unix_us,
        timeout_ms: request.timeout_ms,
        attempt: request.attempt,
        encoding: if request.encoding == 1 { Encoding::Json } else { Encoding::Protobuf },
        traceparent: &request.traceparent,
    }
}

fn read(bytes: &[u8]) -> (Vec<ResponseItem<'_>>, Result<Pushes<'_>, &'static str>) {
    let mut items = Vec::new();
    let result = read_responses(bytes, |item| items.push(item));
    (items, result)
}

#[test]
fn malformed_batches_are_refused_after_their_whole_items() {
    let good =
        v1::BaseResponse { request_id: 7, payload: b"x".to_vec().into(), ..Default::default() };
    let batch = v1::BatchResponse { responses: vec![good], ..Default::default() }.encode_to_vec();
    let item = ResponseItem { request_id: 7, payload: b"x", ..Default::default() };
    let none = Ok(Pushes::default());
    for (tail, result) in [
        (&[][..], none),
        (&[0x0a], Err(NOT_A_BATCH)),
        (&[0x0a, 5, 8], Err(NOT_A_BATCH)),
        (&[0x0a, 2, 0x08, 0xff], Err(NOT_A_BATCH)),
        (&[0x0a, 2, 0x22, 0x01], Err(NOT_A_BATCH)),
        (&[0x08, 1], Err(WRONG_TYPE)),
        (&[0x0a, 2, 0x0a, 0x00], Err(WRONG_TYPE)),
        (&[0x00, 1], Err(NOT_A_BATCH)),
        (&[0x7b; 200], Err(NOT_A_BATCH)),
        (&[0x10, 1], Err(WRONG_TYPE)),
        (&[0x12, 1], Err(NOT_A_BATCH)),
        (&[0x0a, 2, 0x30, 0], Err(WRONG_TYPE)),
        (&[0x18, 1, 0x22, 1, 0], none),
    ] {
        assert_eq!(read(&[&batch, tail].concat()), (vec![item], result), "{tail:?}");
    }
    assert_eq!(read(b""), (vec![], none));
}

#[test]
fn odd_values_stay_within_their_item() {
    let bytes = [0x0a, 6, 0x08, 1, 0x1a, 2, 0xff, b'a', 0x0a, 8, 0x08, 2, 0x10];
    let bytes = [&bytes[..], &[0xff, 0xff, 0xff, 0xff, 0x7f]].concat();
    let (items, result) = read(&bytes);
    assert_eq!(result, Ok(Pushes::default()));
    assert_eq!(items[0], ResponseItem { request_id: 1, ..Default::default() });
    assert_eq!(items[1], ResponseItem { request_id: 2, status: u32::MAX, ..Default::default() });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn what_is_encoded_prost_decodes(
        requests in vec(request(), 0..5),
        gateway in vec(any::<char>(), 0..9),
        (shard, boot_id) in (any::<u32>(), any::<u64>()),
    ) {
        let gateway = String::from_iter(gateway);
        let mut out = Vec::new();
        write_batch_head(&mut out, &gateway, shard, boot_id);
        for request in &requests {
            let before = out.len();
            write_request_head(&mut out, &fields(request), request.payload.len());
            out.extend_from_slice(&request.payload);
            // The field's key, its length, and the request itself.
            let body = fields(request).body_len(request.payload.len());
            let len = KEY_BYTES + encoded_len_varint(body as u64) + body;
            prop_assert_eq!(out.len() - before, len);
        }
        let read = v1::BatchRequest::decode(out.as_slice()).unwrap();
        prop_assert_eq!(read, v1::BatchRequest { gateway, shard, requests, boot_id });
    }

    #[test]
    fn what_prost_encodes_is_read(
        items in vec(
            (any::<u64>(), any::<u32>(), vec(any::<char>(), 0..20), vec(any::<u8>(), 0..200),
             any::<u32>()), 0..6),
        groups in vec((vec(".{0,9}", 0..3), vec(".{0,9}", 0..3)), 6),
        msg_ids in vec(any::<u32>(), 0..4),
    ) {
        let items = items.into_iter().zip(groups);
        let responses: Vec<_> = items.map(|(item, (join, leave))| v1::BaseResponse {
            request_id: item.0, status: item.1, message: String::from_iter(item.2),
            payload: item.3.into(), retry_after_ms: item.4, join, leave,
        }).collect();
        let push = |msg_id| PushMessage { msg_id, ..Default::default() };
        let pushes: Vec<_> = msg_ids.into_iter().map(push).collect();
        let bytes = v1::BatchResponse { responses: responses.clone(), pushes: pushes.clone() };
        let bytes = bytes.encode_to_vec();
        let (read, result) = read(&bytes);
        let told: Result<Vec<_>, _> =
            result.unwrap().iter().map(PushMessage::decode).collect();
        prop_assert_eq!(told, Ok(pushes));
        for (item, response) in read.iter().zip(&responses) {
            let has_none = response.join.is_empty() && response.leave.is_empty();
            prop_assert_eq!(item.memberships.is_empty(), has_none);
        }
        let read: Vec<_> = read.into_iter().map(|item| v1::BaseResponse {
            request_id: item.request_id, status: item.status,
            message: item.message.to_owned(), payload: item.payload.to_vec().into(),
            retry_after_ms: item.retry_after_ms,
            join: item.memberships.join().map(str::to_owned).collect(),
            leave: item.memberships.leave().map(str::to_owned).collect(),
        }).collect();
        prop_assert_eq!(read, responses);
    }

    #[test]
    fn noise_never_panics(bytes in vec(any::<u8>(), 0..60), short in vec(0_u8..100, 0..30)) {
        let _ = (read(&bytes), read(&short));
    }
}
