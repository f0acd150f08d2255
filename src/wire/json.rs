//! The client envelope in JSON, subprotocol `shardgate.v1.json`: one message a text frame. The
//! payload is never parsed: it is passed on as the text of a JSON value.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::limits::{ID_BYTES_MAX, JSON_DEPTH_MAX, KEY_BYTES_MAX, SEQ_MAX, TYPE_BYTES_MAX};
use crate::message::{ClientMessage, Reason, Reject, ServerMessage};
use crate::wire::frames::{Data, OpCode, frame_header, frame_header_len};

/// A message that cannot be handled, with its refusal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadMessage {
    /// Sequence number of the message, to be echoed; 0 = none could be read.
    pub(crate) seq: u64,
    /// The refusal to be answered.
    pub(crate) reject: Reject,
}

impl BadMessage {
    /// The refusal of a message whose `seq` was read. A `seq` out of range counts as unread.
    pub(super) fn new(seq: u64, reject: Reject) -> Self {
        Self { seq: if seq <= SEQ_MAX { seq } else { 0 }, reject }
    }
}

const NOT_A_MESSAGE: Reject =
    Reject::new(Reason::BadMessage, "the frame is not a JSON object with the fields of a message");
const TOO_DEEP: Reject =
    Reject::new(Reason::BadMessage, "the JSON is nested deeper than 64 levels");
const NO_ID: Reject = Reject::new(Reason::BadMessage, "the message has neither msg_id nor type");
const SEQ_RANGE: Reject = Reject::new(Reason::BadMessage, "seq is over 2^53-1");
const TWO_PAYLOADS: Reject =
    Reject::new(Reason::BadMessage, "send payload or payload_base64, not both");
const BAD_BASE64: Reject = Reject::new(Reason::BadMessage, "payload_base64 is not base64");
const LONG_TYPE: Reject = Reject::new(Reason::TooLarge, "type is over 32 bytes");
const LONG_ID: Reject = Reject::new(Reason::TooLarge, "id is over 64 bytes");
const LONG_KEY: Reject = Reject::new(Reason::TooLarge, "key is over 128 bytes");

const _: () = assert!(JSON_DEPTH_MAX == 64 && TYPE_BYTES_MAX == 32);
const _: () = assert!(ID_BYTES_MAX == 64 && KEY_BYTES_MAX == 128, "the texts above say so");

/// The keys of a client's message. Unknown keys are ignored; a known key twice is an error.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Envelope<'a> {
    msg_id: u32,
    seq: u64,
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, deserialize_with = "raw_value")]
    payload: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "text")]
    payload_base64: Option<Cow<'a, str>>,
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    key: Cow<'a, str>,
    deadline_ms: u32,
    ack: u64,
}

/// Reads the text of a value as it stands; `null` is a value like others.
fn raw_value<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// Reads a string, borrowed unless it has escapes. (The derived reader of an optional string would
/// copy it, and accept `null`.)
fn text<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Cow<'de, str>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    Text::deserialize(from).map(|text| Some(text.0))
}

/// Decodes one text frame's message.
pub fn decode(text: &str) -> Result<ClientMessage<'_>, BadMessage> {
    if too_deep(text.as_bytes()) {
        return Err(BadMessage { seq: find_seq(text), reject: TOO_DEEP });
    }
    // The derived reader would also accept an array of the fields.
    let is_object = text.trim_ascii_start().starts_with('{');
    let parsed = if is_object { serde_json::from_str::<Envelope<'_>>(text).ok() } else { None };
    let Some(envelope) = parsed else {
        return Err(BadMessage { seq: find_seq(text), reject: NOT_A_MESSAGE });
    };
    if envelope.payload.is_some() && envelope.payload_base64.is_some() {
        return Err(BadMessage::new(envelope.seq, TWO_PAYLOADS));
    }
    let message = ClientMessage {
        msg_id: envelope.msg_id,
        seq: envelope.seq,
        kind: envelope.kind,
        payload: envelope.payload.map_or(&[], |raw| raw.get().as_bytes()),
        payload_base64: envelope.payload_base64,
        id: envelope.id,
        key: envelope.key,
        deadline_ms: envelope.deadline_ms,
        ack: envelope.ack,
    };
    check(&message)?;
    Ok(message)
}

/// Checks the rules that hold in both encodings.
pub(super) fn check(message: &ClientMessage<'_>) -> Result<(), BadMessage> {
    let rule = if message.seq > SEQ_MAX {
        SEQ_RANGE
    } else if message.kind.len() > TYPE_BYTES_MAX {
        LONG_TYPE
    } else if message.id.len() > ID_BYTES_MAX {
        LONG_ID
    } else if message.key.len() > KEY_BYTES_MAX {
        LONG_KEY
    } else if message.msg_id == 0 && message.kind.is_empty() {
        NO_ID
    } else {
        return Ok(());
    };
    Err(BadMessage::new(message.seq, rule))
}

/// Decodes a `payload_base64` (RFC 4648 section 4, padded).
pub(crate) fn decode_base64(text: &str) -> Result<Vec<u8>, Reject> {
    STANDARD.decode(text).map_err(|_| BAD_BASE64)
}

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
        && nests_too_deep(bytes)
}

fn nests_too_deep(bytes: &[u8]) -> bool {
    let (mut depth, mut in_string) = (0_usize, false);
    let mut rest = bytes.iter();
    while let Some(byte) = rest.next() {
        match (byte, in_string) {
            (b'"', _) => in_string = !in_string,
            (b'\\', true) => {
                rest.next();
            }
            (b'[' | b'{', false) => {
                depth += 1;
                if depth > JSON_DEPTH_MAX {
                    return true;
                }
            }
            (b']' | b'}', false) => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// The `seq` of a message that is wrong elsewhere; 0 = none, or two of them. It is found unless a
/// syntax error stands before it.
fn find_seq(text: &str) -> u64 {
    struct Finder<'s>(&'s mut Option<u64>);

    impl<'de> Visitor<'de> for Finder<'_> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            let mut seen = false;
            while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                if key != "seq" {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                let value = map.next_value::<u64>();
                *self.0 = if seen { None } else { value.as_ref().ok().copied() };
                seen = true;
                value?;
            }
            Ok(())
        }
    }

    let mut seq = None;
    // The error was reported already; this only searches what was read before it.
    let _ = serde_json::Deserializer::from_str(text).deserialize_map(Finder(&mut seq));
    seq.filter(|&seq| seq <= SEQ_MAX).unwrap_or(0)
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
    let guess = frame_header_len(fixed + payload_len + message.kind.len() + message.message.len());
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
    // Every field came with a comma; there is at least one: a reply has msg_id, others a type.
    out[start] = b'{';
    out.push(b'}');
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
