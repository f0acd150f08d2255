//! The messages of the service protocol (`proto/shardgate/backend/v1/backend.proto`), written and
//! read without allocation: a batch is its head, then items, and a large payload is not copied but
//! follows the head of its item by reference.

use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_varint, encoded_len_varint,
    skip_field,
};

use crate::message::{Encoding, Priority};
use crate::wire::protobuf::{
    KEY_BYTES, bytes_len, number_len, put_bytes, put_key, put_number, take_bytes,
};

/// A `BaseRequest` without its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RequestFields<'a> {
    /// Number of the message, unique for gateway, boot and shard; the same in every attempt.
    pub(crate) request_id: u64,
    /// Id of the message.
    pub(crate) msg_id: u32,
    /// Sequence number that the client gave it; 0 = one-way.
    pub(crate) seq: u64,
    /// Public id of the session.
    pub(crate) session: &'a str,
    /// Name of the user; empty before authentication.
    pub(crate) user: &'a str,
    /// Name of the tenant.
    pub(crate) tenant: &'a str,
    /// Class of the message.
    pub(crate) priority: Priority,
    /// Idempotency key; empty = none.
    pub(crate) id: &'a str,
    /// Affinity key; empty = none.
    pub(crate) key: &'a str,
    /// Time when the message was read: microseconds since 1970.
    pub(crate) received_unix_us: i64,
    /// Milliseconds left to the deadline.
    pub(crate) timeout_ms: u32,
    /// Number of the attempt, from 1.
    pub(crate) attempt: u32,
    /// Encoding of the client.
    pub(crate) encoding: Encoding,
    /// W3C trace context; empty = none.
    pub(crate) traceparent: &'a str,
}

impl RequestFields<'_> {
    fn priority_number(&self) -> u64 {
        match self.priority {
            Priority::Critical => 1,
            Priority::High => 2,
            Priority::Normal => 3,
            Priority::Low => 4,
        }
    }

    fn encoding_number(&self) -> u64 {
        match self.encoding {
            Encoding::Json => 1,
            Encoding::Protobuf => 2,
        }
    }

    /// Bytes of the `BaseRequest` with a payload of `payload_len` bytes.
    #[inline]
    fn body_len(&self, payload_len: usize) -> usize {
        number_len(self.request_id)
            + number_len(u64::from(self.msg_id))
            + number_len(self.seq)
            + bytes_len(self.session.len())
            + bytes_len(self.user.len())
            + bytes_len(self.tenant.len())
            + number_len(self.priority_number())
            + bytes_len(self.id.len())
            + bytes_len(self.key.len())
            + number_len(self.received_unix_us as u64)
            + number_len(u64::from(self.timeout_ms))
            + number_len(u64::from(self.attempt))
            + bytes_len(self.traceparent.len())
            + number_len(self.encoding_number())
            + bytes_len(payload_len)
    }
}

/// Appends the fields of a `BatchRequest` before its items.
pub(crate) fn write_batch_head(out: &mut Vec<u8>, gateway: &str, shard: u32, boot_id: u64) {
    put_bytes(out, 1, gateway.as_bytes());
    put_number(out, 2, u64::from(shard));
    if boot_id != 0 {
        put_key(out, 4, WireType::SixtyFourBit);
        out.extend_from_slice(&boot_id.to_le_bytes());
    }
}

/// Appends one item of a `BatchRequest` up to its payload, whose `payload_len` bytes must follow:
/// field 8 is written last (the order of fields is free) so that they can follow by reference.
#[inline]
pub(crate) fn write_request_head(
    out: &mut Vec<u8>,
    fields: &RequestFields<'_>,
    payload_len: usize,
) {
    let body = fields.body_len(payload_len);
    out.reserve(KEY_BYTES + encoded_len_varint(body as u64) + body - payload_len);
    put_key(out, 3, WireType::LengthDelimited);
    encode_varint(body as u64, out);
    let start = out.len();
    put_number(out, 1, fields.request_id);
    put_number(out, 2, u64::from(fields.msg_id));
    put_number(out, 3, fields.seq);
    put_bytes(out, 4, fields.session.as_bytes());
    put_bytes(out, 5, fields.user.as_bytes());
    put_bytes(out, 6, fields.tenant.as_bytes());
    put_number(out, 7, fields.priority_number());
    put_bytes(out, 9, fields.id.as_bytes());
    put_bytes(out, 10, fields.key.as_bytes());
    put_number(out, 11, fields.received_unix_us as u64);
    put_number(out, 12, u64::from(fields.timeout_ms));
    put_number(out, 13, u64::from(fields.attempt));
    put_bytes(out, 14, fields.traceparent.as_bytes());
    put_number(out, 15, fields.encoding_number());
    if payload_len != 0 {
        put_key(out, 8, WireType::LengthDelimited);
        encode_varint(payload_len as u64, out);
    }
    debug_assert_eq!(out.len() - start + payload_len, body, "the length was computed before");
}

/// A `BaseResponse`, borrowed from the response.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ResponseItem<'a> {
    /// Number of the message that is answered.
    pub(crate) request_id: u64,
    /// Status code as the service gave it; outside 0-16 it means UNKNOWN. Over 32 bits: `u32::MAX`.
    pub(crate) status: u32,
    /// Text for people. Text that is not UTF-8 reads as empty: it is not worth failing the item.
    pub(crate) message: &'a str,
    /// Payload of the answer.
    pub payload: &'a [u8],
    /// Milliseconds until a retry can succeed; 0 = no hint.
    pub(crate) retry_after_ms: u32,
    /// Groups that the session joins and leaves after its answer.
    pub memberships: Memberships<'a>,
}

/// The groups that a `BaseResponse` names. They are read again when they are asked for: nearly all
/// responses have none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Memberships<'a> {
    /// The `BaseResponse`; empty if it names no group.
    item: &'a [u8],
}

impl<'a> Memberships<'a> {
    /// Whether it names none.
    pub fn is_empty(self) -> bool {
        self.item.is_empty()
    }

    /// Names of groups to join, unchecked. One that is not UTF-8 reads as empty, which is no name.
    pub fn join(self) -> impl Iterator<Item = &'a str> {
        Fields { rest: self.item, tag: JOIN }
            .map(|name| std::str::from_utf8(name).unwrap_or_default())
    }

    /// Names of groups to leave, unchecked, as in [`Self::join`].
    pub fn leave(self) -> impl Iterator<Item = &'a str> {
        Fields { rest: self.item, tag: LEAVE }
            .map(|name| std::str::from_utf8(name).unwrap_or_default())
    }
}

/// The pushes of a `BatchResponse`, each an encoded `PushMessage`, in the service's order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pushes<'a> {
    /// The `BatchResponse`; empty if it has no push.
    batch: &'a [u8],
}

impl<'a> Pushes<'a> {
    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.batch.is_empty()
    }

    /// The pushes.
    pub fn iter(self) -> impl Iterator<Item = &'a [u8]> {
        Fields { rest: self.batch, tag: PUSHES }
    }
}

const JOIN: u32 = 6;
const LEAVE: u32 = 7;
const PUSHES: u32 = 2;

/// The length-delimited fields with one number in a message whose fields were read before.
struct Fields<'a> {
    rest: &'a [u8],
    tag: u32,
}

impl<'a> Iterator for Fields<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        while !self.rest.is_empty() {
            let (tag, wire_type) = decode_key(&mut self.rest).ok()?;
            if tag == self.tag && wire_type == WireType::LengthDelimited {
                return take_bytes(&mut self.rest);
            }
            skip_field(wire_type, tag, &mut self.rest, DecodeContext::default()).ok()?;
        }
        None
    }
}

/// Reads a `BatchResponse`, gives each item to `on`, in the service's order, and returns the pushes
/// of the batch. An error says what is wrong with the bytes; items before the fault were whole and
/// have been given.
pub fn read_responses<'a>(
    bytes: &'a [u8],
    mut on: impl FnMut(ResponseItem<'a>),
) -> Result<Pushes<'a>, &'static str> {
    let mut pushes = Pushes::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (tag, wire_type) = decode_key(&mut rest).map_err(|_| NOT_A_BATCH)?;
        match (tag, wire_type) {
            (1, WireType::LengthDelimited) => {
                on(read_item(take_bytes(&mut rest).ok_or(NOT_A_BATCH)?)?);
            }
            (PUSHES, WireType::LengthDelimited) => {
                take_bytes(&mut rest).ok_or(NOT_A_BATCH)?;
                pushes.batch = bytes;
            }
            (1 | PUSHES, _) => return Err(WRONG_TYPE),
            _ => skip_field(wire_type, tag, &mut rest, DecodeContext::default())
                .map_err(|_| NOT_A_BATCH)?,
        }
    }
    Ok(pushes)
}

const NOT_A_BATCH: &str = "not a protobuf BatchResponse";
const WRONG_TYPE: &str = "a field of the BatchResponse has the wrong wire type";

fn read_item(bytes: &[u8]) -> Result<ResponseItem<'_>, &'static str> {
    let mut item = ResponseItem::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (tag, wire_type) = decode_key(&mut rest).map_err(|_| NOT_A_BATCH)?;
        match (tag, wire_type) {
            (1 | 2 | 5, WireType::Varint) => {
                let value = decode_varint(&mut rest).map_err(|_| NOT_A_BATCH)?;
                let narrow = u32::try_from(value).unwrap_or(u32::MAX);
                match tag {
                    1 => item.request_id = value,
                    2 => item.status = narrow,
                    _ => item.retry_after_ms = narrow,
                }
            }
            (3 | 4, WireType::LengthDelimited) => {
                let value = take_bytes(&mut rest).ok_or(NOT_A_BATCH)?;
                match tag {
                    3 => item.message = std::str::from_utf8(value).unwrap_or_default(),
                    _ => item.payload = value,
                }
            }
            (JOIN | LEAVE, WireType::LengthDelimited) => {
                take_bytes(&mut rest).ok_or(NOT_A_BATCH)?;
                item.memberships.item = bytes;
            }
            (1..=LEAVE, _) => return Err(WRONG_TYPE),
            _ => skip_field(wire_type, tag, &mut rest, DecodeContext::default())
                .map_err(|_| NOT_A_BATCH)?,
        }
    }
    Ok(item)
}

#[cfg(test)]
mod tests;
