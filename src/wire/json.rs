//! The client envelope in JSON, subprotocol `shardgate.v1.json`: one message a text frame. The
//! payload is never parsed: it is passed on as the text of a JSON value.

pub(crate) mod fields;
mod plain;
mod syntax;

use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine as _, alphabet};
use serde::Serialize;

use crate::limits::JSON_DEPTH_MAX;
use crate::message::{ClientMessage, Reason, Reject, ServerMessage};
use crate::wire::bad_message::BadMessage;
use crate::wire::frames::{Data, OpCode, frame_header, frame_header_len};

/// Decodes one text frame's message. Unknown keys are ignored; a known key twice is an error.
pub fn decode(text: &str) -> Result<ClientMessage<'_>, BadMessage> {
    match plain::read(text) {
        Some(message) => Ok(message),
        None => fields::read(text),
    }
}

/// Decodes a `payload_base64`. As in proto3's JSON mapping, either alphabet (RFC 4648 sections 4
/// and 5) is taken, with padding and without. Bits of the last character that mean nothing may be
/// set, and the lines into which MIME's encoders cut it are joined.
pub(crate) fn decode_base64(text: &str) -> Result<Vec<u8>, Reject> {
    LENIENT.decode(text).or_else(|_| {
        let standard = |byte: u8| match byte {
            b'-' => b'+',
            b'_' => b'/',
            other => other,
        };
        let joined = text.bytes().filter(|byte| !b"\r\n\t ".contains(byte)).map(standard);
        LENIENT.decode(joined.collect::<Vec<u8>>()).map_err(|_| BAD_BASE64)
    })
}

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);
const BAD_BASE64: Reject =
    Reject::new(Reason::BadMessage, "payload_base64: a string of base64 is wanted");

/// Whether `bytes` are one JSON text (RFC 8259), not nested deeper than [`JSON_DEPTH_MAX`].
pub(crate) fn is_json(bytes: &[u8]) -> bool {
    simdutf8::basic::from_utf8(bytes).is_ok() && syntax::is_one_value(bytes, JSON_DEPTH_MAX as u32)
}

/// Appends one complete text frame.
///
/// Fields are in the order of their numbers; zero values are left out, except that a reply (`type`
/// empty) always has `msg_id` and `seq`. The payload must be JSON text unless `payload_is_bytes`.
pub fn encode(out: &mut Vec<u8>, message: &ServerMessage<'_>) {
    // The header's size depends on a length that is known only afterwards: it is guessed and
    // patched, and after a wrong guess (escapes, or a length near 126 or 65,536), which is rare,
    // the text is moved.
    let payload_len = if message.payload_is_bytes {
        base64::encoded_len(message.payload.len(), true).expect("4/3 of what is in memory")
    } else {
        message.payload.len()
    };
    // Two numbers and all keys of a reply are about 40 bytes, of an error about 80.
    let fixed = if message.status == 0 { 40 } else { 80 };
    let texts = message.kind.len() + message.message.len() + message.group.len();
    let guess = frame_header_len(fixed + payload_len + texts);
    let start = out.len();
    out.extend_from_slice(&[0; 10][..guess]);
    write_object(out, message, payload_len);
    let len = out.len() - start - guess;
    let needed = frame_header_len(len);
    if needed != guess {
        out.resize(start + needed.max(guess) + len, 0);
        out.copy_within(start + guess..start + guess + len, start + needed);
        out.truncate(start + needed + len);
    }
    let header = frame_header(OpCode::Data(Data::Text), len);
    out[start..start + needed].copy_from_slice(&header[..needed]);
}

fn write_object(out: &mut Vec<u8>, message: &ServerMessage<'_>, payload_len: usize) {
    let is_reply = message.kind.is_empty();
    let start = out.len();
    if is_reply || message.msg_id != 0 {
        put_value(out, b",\"msg_id\":", &message.msg_id);
    }
    if is_reply || message.seq != 0 {
        put_value(out, b",\"seq\":", &message.seq);
    }
    if !is_reply {
        put_value(out, b",\"type\":", message.kind);
    }
    if !message.payload.is_empty() {
        put_payload(out, message, payload_len);
    }
    if message.status != 0 {
        put_value(out, b",\"status\":", &message.status);
    }
    if !message.message.is_empty() {
        put_value(out, b",\"message\":", message.message);
    }
    if let Some(reason) = message.reason {
        put_value(out, b",\"reason\":", reason.name());
    }
    if message.retry_after_ms != 0 {
        put_value(out, b",\"retry_after_ms\":", &message.retry_after_ms);
    }
    if message.offset != 0 {
        put_value(out, b",\"offset\":", &message.offset);
    }
    if message.names_its_push() {
        put_names(out, message);
    }
    // Every field came with a comma; there is at least one: a reply has msg_id, others a type.
    out[start] = b'{';
    out.push(b'}');
}

#[cold]
fn put_names(out: &mut Vec<u8>, message: &ServerMessage<'_>) {
    for (key, text) in [
        (&b",\"group\":"[..], message.group),
        (b",\"id\":", message.id),
        (b",\"from\":", message.from),
    ] {
        if !text.is_empty() {
            put_value(out, key, text);
        }
    }
}

fn put_payload(out: &mut Vec<u8>, message: &ServerMessage<'_>, payload_len: usize) {
    if message.payload_is_bytes {
        out.extend_from_slice(b",\"payload_base64\":\"");
        let start = out.len();
        out.resize(start + payload_len, 0);
        STANDARD
            .encode_slice(message.payload, &mut out[start..])
            .expect("the space was computed by the same library");
        out.push(b'"');
    } else {
        out.extend_from_slice(b",\"payload\":");
        out.extend_from_slice(message.payload);
    }
}

#[inline]
fn put_value<T: Serialize + ?Sized>(out: &mut Vec<u8>, key: &[u8], value: &T) {
    out.extend_from_slice(key);
    serde_json::to_writer(&mut *out, value).expect("a Vec takes every byte");
}

#[cfg(test)]
mod tests;
