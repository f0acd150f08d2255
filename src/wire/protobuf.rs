//! The client envelope in protobuf (`proto/shardgate/client/v1/client.proto`), subprotocol
//! `shardgate.v1.protobuf`: one message a binary frame, decoded as borrows of it.

use std::borrow::Cow;

use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_varint, encoded_len_varint,
    skip_field,
};

use crate::message::{ClientMessage, Reason, Reject, ServerMessage};
use crate::wire::frames::{Data, OpCode, write_frame_header};
use crate::wire::json::{BadMessage, check};

/// Bytes of a field's key: every field here has a number below 16.
pub(super) const KEY_BYTES: usize = 1;

const NOT_PROTOBUF: Reject =
    Reject::new(Reason::BadMessage, "the frame is not a protobuf ClientMessage");
const WRONG_TYPE: Reject = Reject::new(Reason::BadMessage, "a field has the wrong wire type");
const OVER_32_BITS: Reject = Reject::new(Reason::BadMessage, "a uint32 field is over 2^32-1");
const NOT_UTF8: Reject = Reject::new(Reason::BadMessage, "a string field is not UTF-8");

/// Decodes one message. Unknown fields are skipped; of a field given twice the last counts.
pub fn decode(bytes: &[u8]) -> Result<ClientMessage<'_>, BadMessage> {
    let mut message = ClientMessage::default();
    // The sequence number is echoed if it was read before the fault, or after a fault that left the
    // rest readable.
    merge(bytes, &mut message).map_err(|reject| BadMessage::new(message.seq, reject))?;
    check(&message)?;
    Ok(message)
}

/// Reads all fields. A fault inside a field is remembered and the rest is still read.
fn merge<'a>(mut rest: &'a [u8], message: &mut ClientMessage<'a>) -> Result<(), Reject> {
    let mut fault = None;
    while !rest.is_empty() {
        let (tag, wire_type) = decode_key(&mut rest).map_err(|_| NOT_PROTOBUF)?;
        let known = match (tag, wire_type) {
            (1 | 2 | 7 | 8, WireType::Varint) => {
                let value = decode_varint(&mut rest).map_err(|_| NOT_PROTOBUF)?;
                set_number(message, tag, value)
            }
            (3..=6, WireType::LengthDelimited) => {
                let value = take_bytes(&mut rest).ok_or(NOT_PROTOBUF)?;
                set_bytes(message, tag, value)
            }
            _ => {
                skip_field(wire_type, tag, &mut rest, DecodeContext::default())
                    .map_err(|_| NOT_PROTOBUF)?;
                if tag <= 8 { Err(WRONG_TYPE) } else { Ok(()) }
            }
        };
        if let Err(reject) = known {
            fault.get_or_insert(reject);
        }
    }
    fault.map_or(Ok(()), Err)
}

fn set_number(message: &mut ClientMessage<'_>, tag: u32, value: u64) -> Result<(), Reject> {
    let narrow = || u32::try_from(value).map_err(|_| OVER_32_BITS);
    match tag {
        1 => message.msg_id = narrow()?,
        2 => message.seq = value,
        7 => message.deadline_ms = narrow()?,
        _ => message.ack = value,
    }
    Ok(())
}

fn set_bytes<'a>(message: &mut ClientMessage<'a>, tag: u32, value: &'a [u8]) -> Result<(), Reject> {
    let text = || std::str::from_utf8(value).map(Cow::Borrowed).map_err(|_| NOT_UTF8);
    match tag {
        3 => message.kind = text()?,
        4 => message.payload = value,
        5 => message.id = text()?,
        _ => message.key = text()?,
    }
    Ok(())
}

/// The bytes of a length-delimited field whose key was read. `None` = some are missing.
pub(super) fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = decode_varint(rest).ok()?;
    let (value, after) = rest.split_at_checked(usize::try_from(len).ok()?)?;
    *rest = after;
    Some(value)
}

/// Appends one complete binary frame. Zero values are left out, as proto3 does.
pub fn encode(out: &mut Vec<u8>, message: &ServerMessage<'_>) {
    let reason = message.reason.map_or("", Reason::name);
    let len = number_len(u64::from(message.msg_id))
        + number_len(message.seq)
        + bytes_len(message.kind.len())
        + bytes_len(message.payload.len())
        + number_len(u64::from(message.status))
        + bytes_len(message.message.len())
        + bytes_len(reason.len())
        + number_len(u64::from(message.retry_after_ms))
        + number_len(message.offset);
    write_frame_header(out, OpCode::Data(Data::Binary), len);
    let start = out.len();
    put_number(out, 1, u64::from(message.msg_id));
    put_number(out, 2, message.seq);
    put_bytes(out, 3, message.kind.as_bytes());
    put_bytes(out, 4, message.payload);
    put_number(out, 5, u64::from(message.status));
    put_bytes(out, 6, message.message.as_bytes());
    put_bytes(out, 7, reason.as_bytes());
    put_number(out, 8, u64::from(message.retry_after_ms));
    put_number(out, 9, message.offset);
    debug_assert_eq!(out.len() - start, len, "the frame's length was computed before");
}

/// Bytes of a varint field; 0 is left out.
pub(super) const fn number_len(value: u64) -> usize {
    if value == 0 { 0 } else { KEY_BYTES + encoded_len_varint(value) }
}

/// Bytes of a string or bytes field; an empty one is left out.
pub(super) const fn bytes_len(len: usize) -> usize {
    if len == 0 { 0 } else { KEY_BYTES + encoded_len_varint(len as u64) + len }
}

/// Appends the key of a field with a number below 16.
#[inline]
pub(super) fn put_key(out: &mut Vec<u8>, tag: u8, wire_type: WireType) {
    debug_assert!((1..16).contains(&tag), "one-byte keys only");
    out.push(tag << 3 | wire_type as u8);
}

/// Appends a varint field unless it is 0.
#[inline]
pub(super) fn put_number(out: &mut Vec<u8>, tag: u8, value: u64) {
    if value != 0 {
        put_key(out, tag, WireType::Varint);
        encode_varint(value, out);
    }
}

/// Appends a string or bytes field unless it is empty.
#[inline]
pub(super) fn put_bytes(out: &mut Vec<u8>, tag: u8, value: &[u8]) {
    if !value.is_empty() {
        put_key(out, tag, WireType::LengthDelimited);
        encode_varint(value.len() as u64, out);
        out.extend_from_slice(value);
    }
}

#[cfg(test)]
mod tests;
