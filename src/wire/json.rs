//! The client envelope in JSON, subprotocol `shardgate.v1.json`: one message a text frame. The
//! payload is never parsed: it is passed on as the text of a JSON value.

pub(crate) mod fields;

use std::borrow::Cow;

use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine as _, alphabet};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::limits::{ID_BYTES_MAX, JSON_DEPTH_MAX, KEY_BYTES_MAX, SEQ_MAX, TYPE_BYTES_MAX};
use crate::message::{ClientMessage, Reason, Reject, ServerMessage};
use crate::wire::bad_message::BadMessage;
use crate::wire::frames::{Data, OpCode, frame_header, frame_header_len};
use crate::wire::trace_context::is_traceparent;

/// The keys of a client's message, as most clients write them. `null` is not there, except as a
/// payload.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Envelope<'a> {
    msg_id: Option<u32>,
    seq: Option<u64>,
    #[serde(rename = "type", borrow)]
    kind: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "raw_value")]
    payload: Option<&'a RawValue>,
    #[serde(borrow)]
    payload_base64: Option<Text<'a>>,
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    key: Option<Text<'a>>,
    deadline_ms: Option<u32>,
    ack: Option<u64>,
    #[serde(borrow)]
    traceparent: Option<Text<'a>>,
}

/// A string, borrowed unless it has escapes. (The derived reader of an optional string would copy
/// it.)
#[derive(Deserialize, Default)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Reads the text of a value as it stands; `null` is a value like others.
fn raw_value<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// Decodes one text frame's message. Unknown keys are ignored; a known key twice is an error.
pub fn decode(text: &str) -> Result<ClientMessage<'_>, BadMessage> {
    match decode_plain(text) {
        Some(message) => Ok(message),
        None => fields::read(text),
    }
}

/// The message, if it is right and written plainly: numbers as integers.
#[inline]
fn decode_plain(text: &str) -> Option<ClientMessage<'_>> {
    // The derived reader would also accept an array of the fields.
    if too_deep(text.as_bytes()) || !text.trim_ascii_start().starts_with('{') {
        return None;
    }
    let envelope: Envelope<'_> = serde_json::from_str(text).ok()?;
    let message = ClientMessage {
        msg_id: envelope.msg_id.unwrap_or(0),
        seq: envelope.seq.unwrap_or(0),
        kind: envelope.kind.unwrap_or_default().0,
        payload: envelope.payload.map_or(&[], |raw| raw.get().as_bytes()),
        payload_base64: envelope.payload_base64.map(|text| text.0).filter(|text| !text.is_empty()),
        id: envelope.id.unwrap_or_default().0,
        key: envelope.key.unwrap_or_default().0,
        deadline_ms: envelope.deadline_ms.unwrap_or(0),
        ack: envelope.ack.unwrap_or(0),
        traceparent: envelope.traceparent.unwrap_or_default().0,
    };
    let is_good = message.seq <= SEQ_MAX
        && message.kind.len() <= TYPE_BYTES_MAX
        && message.id.len() <= ID_BYTES_MAX
        && message.key.len() <= KEY_BYTES_MAX
        && (message.traceparent.is_empty() || is_traceparent(&message.traceparent))
        && (message.msg_id != 0 || !message.kind.is_empty())
        && (message.payload.is_empty() || message.payload_base64.is_none());
    is_good.then_some(message)
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
    !too_deep(bytes)
        && std::str::from_utf8(bytes)
            .is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok())
}

/// Whether arrays and objects nest deeper than [`JSON_DEPTH_MAX`].
fn too_deep(bytes: &[u8]) -> bool {
    // '[' and '{' differ in one bit. Counting them is a vectorised sweep; only a text with more
    // brackets than levels allowed needs a second pass for their nesting.
    bytes.len() > JSON_DEPTH_MAX
        && bytes.iter().filter(|&&byte| byte | 0x20 == b'{').count() > JSON_DEPTH_MAX
        && nests_too_deep(bytes).is_some()
}

/// Place of the first bracket that opens a level too deep.
fn nests_too_deep(bytes: &[u8]) -> Option<usize> {
    let (mut depth, mut in_string) = (0_usize, false);
    let mut rest = bytes.iter().enumerate();
    while let Some((at, byte)) = rest.next() {
        match (byte, in_string) {
            (b'"', _) => in_string = !in_string,
            (b'\\', true) => {
                rest.next();
            }
            (b'[' | b'{', false) => {
                depth += 1;
                if depth > JSON_DEPTH_MAX {
                    return Some(at);
                }
            }
            (b']' | b'}', false) => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
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
