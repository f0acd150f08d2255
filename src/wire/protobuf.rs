//! The client envelope in protobuf (`proto/shardgate/client/v1/client.proto`), subprotocol
//! `shardgate.v1.protobuf`: one message a binary frame, decoded as borrows of it.

use std::borrow::Cow;

use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_varint, encoded_len_varint,
    skip_field,
};

use crate::limits::{ID_BYTES_MAX, KEY_BYTES_MAX, SEQ_MAX, TYPE_BYTES_MAX};
use crate::message::{ClientMessage, Reason, ServerMessage};
use crate::wire::bad_message::{BadMessage, Fault, Field, What};
use crate::wire::frames::{Data, OpCode, write_frame_header};
use crate::wire::trace_context::{TRACEPARENT_BYTES, is_traceparent};

/// Bytes of a field's key: every field here has a number below 16.
pub(super) const KEY_BYTES: usize = 1;

/// Decodes one message. Unknown fields are skipped; of a field given twice the last counts.
pub fn decode(bytes: &[u8]) -> Result<ClientMessage<'_>, BadMessage> {
    let mut message = ClientMessage::default();
    // The sequence number is echoed if it was read before the fault, or after a fault that left the
    // rest readable.
    match merge(bytes, &mut message) {
        Ok(()) => Ok(message),
        Err(fault) => Err(BadMessage::new(message.seq, fault)),
    }
}

/// Reads all fields. A fault inside a field is remembered and the rest is still read.
fn merge<'a>(bytes: &'a [u8], message: &mut ClientMessage<'a>) -> Result<(), Fault> {
    let mut fault = None;
    let mut rest = bytes;
    while !rest.is_empty() {
        let at = bytes.len() - rest.len();
        let broken = |what| Fault { what, at };
        let (tag, wire_type) = decode_key(&mut rest).map_err(|_| broken(What::NotProtobuf))?;
        let cut_off = || broken(Field::of_number(tag).map_or(What::NotProtobuf, What::CutOff));
        let known = match (tag, wire_type) {
            (1 | 2 | 7 | 8, WireType::Varint) => {
                let value = decode_varint(&mut rest).map_err(|_| cut_off())?;
                set_number(message, tag, value)
            }
            (3..=6 | 9, WireType::LengthDelimited) => {
                let value = take_bytes(&mut rest).ok_or_else(cut_off)?;
                set_bytes(message, tag, value)
            }
            _ => {
                skip_field(wire_type, tag, &mut rest, DecodeContext::default())
                    .map_err(|_| cut_off())?;
                Field::of_number(tag).map_or(Ok(()), |field| Err(What::WireType(field)))
            }
        };
        if let Err(what) = known {
            fault.get_or_insert(broken(what));
        }
    }
    if message.msg_id == 0 && message.kind.is_empty() {
        fault.get_or_insert(Fault { what: What::NoId, at: 0 });
    }
    fault.map_or(Ok(()), Err)
}

#[inline]
fn set_number(message: &mut ClientMessage<'_>, tag: u32, value: u64) -> Result<(), What> {
    let narrow = |field| u32::try_from(value).map_err(|_| What::Wanted(field));
    match tag {
        1 => message.msg_id = narrow(Field::MsgId)?,
        2 => {
            message.seq = value;
            if value > SEQ_MAX {
                return Err(What::Wanted(Field::Seq));
            }
        }
        7 => message.deadline_ms = narrow(Field::DeadlineMs)?,
        _ => message.ack = value,
    }
    Ok(())
}

#[inline]
fn set_bytes<'a>(message: &mut ClientMessage<'a>, tag: u32, value: &'a [u8]) -> Result<(), What> {
    let text = |field, bytes_max| {
        if value.len() > bytes_max {
            return Err(What::TooLong(field));
        }
        std::str::from_utf8(value).map(Cow::Borrowed).map_err(|_| What::NotUtf8(field))
    };
    match tag {
        3 => message.kind = text(Field::Type, TYPE_BYTES_MAX)?,
        4 => message.payload = value,
        5 => message.id = text(Field::Id, ID_BYTES_MAX)?,
        6 => message.key = text(Field::Key, KEY_BYTES_MAX)?,
        _ => {
            message.traceparent = text(Field::Traceparent, TRACEPARENT_BYTES)?;
            if !value.is_empty() && !is_traceparent(&message.traceparent) {
                return Err(What::Wanted(Field::Traceparent));
            }
        }
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
    let names_len = if message.names_its_push() { names_len(message) } else { 0 };
    let len = len + names_len;
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
    if names_len != 0 {
        put_bytes(out, 10, message.group.as_bytes());
        put_bytes(out, 11, message.id.as_bytes());
        put_bytes(out, 12, message.from.as_bytes());
    }
    debug_assert_eq!(out.len() - start, len, "the frame's length was computed before");
}

/// Bytes of the fields that only pushes have.
fn names_len(message: &ServerMessage<'_>) -> usize {
    bytes_len(message.group.len()) + bytes_len(message.id.len()) + bytes_len(message.from.len())
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
