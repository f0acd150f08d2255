//! The refusal of what is not a message of this protocol, in both encodings: which field, what is
//! wanted, and where in the frame. Its text is bounded and holds no byte of the client's.

use std::borrow::Cow;
use std::fmt;

use crate::limits::{ID_BYTES_MAX, JSON_DEPTH_MAX, KEY_BYTES_MAX, SEQ_MAX, TYPE_BYTES_MAX};
use crate::message::Reason;
use crate::wire::trace_context::TRACEPARENT_BYTES;

/// A message that cannot be handled, with its refusal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadMessage {
    /// Sequence number of the message, to be echoed; 0 = none could be read.
    pub(crate) seq: u64,
    /// The reason to be answered.
    pub(crate) reason: Reason,
    /// The sentence to be answered.
    pub(crate) text: Cow<'static, str>,
}

impl BadMessage {
    /// The refusal of a message whose `seq` was read. A `seq` out of range counts as unread.
    #[cold]
    pub(super) fn new(seq: u64, fault: Fault) -> Self {
        let reason = match fault.what {
            What::TooLong(_) => Reason::TooLarge,
            What::NotJson(_)
            | What::NotAnObject
            | What::TooDeep
            | What::Twice(_)
            | What::Wanted(_)
            | What::Escape(_)
            | What::TwoPayloads
            | What::NotProtobuf
            | What::CutOff(_)
            | What::WireType(_)
            | What::NotUtf8(_)
            | What::NoId => Reason::BadMessage,
        };
        let seq = if seq <= SEQ_MAX { seq } else { 0 };
        Self { seq, reason, text: Cow::Owned(fault.to_string()) }
    }
}

/// A field of a client's message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Field {
    MsgId,
    Seq,
    Type,
    Payload,
    Id,
    Key,
    DeadlineMs,
    Ack,
    Traceparent,
    /// Only in JSON.
    PayloadBase64,
}

impl Field {
    /// All fields: those of protobuf by their numbers from 1, then that of JSON.
    const ALL: [Field; 10] = [
        Field::MsgId,
        Field::Seq,
        Field::Type,
        Field::Payload,
        Field::Id,
        Field::Key,
        Field::DeadlineMs,
        Field::Ack,
        Field::Traceparent,
        Field::PayloadBase64,
    ];

    /// Name in JSON and in the .proto file.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Field::MsgId => "msg_id",
            Field::Seq => "seq",
            Field::Type => "type",
            Field::Payload => "payload",
            Field::Id => "id",
            Field::Key => "key",
            Field::DeadlineMs => "deadline_ms",
            Field::Ack => "ack",
            Field::Traceparent => "traceparent",
            Field::PayloadBase64 => "payload_base64",
        }
    }

    /// The field with this name.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.name() == name)
    }

    /// The field with this number in protobuf.
    pub(super) fn of_number(number: u32) -> Option<Self> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        Self::ALL.get(index).copied().filter(|&field| field != Field::PayloadBase64)
    }

    /// What the field takes.
    const fn wanted(self) -> &'static str {
        match self {
            Field::MsgId | Field::DeadlineMs => "a whole number from 0 to 2^32-1",
            Field::Seq => "a whole number from 0 to 2^53-1",
            Field::Ack => "a whole number from 0 to 2^64-1",
            Field::Type => "a string of at most 32 bytes",
            Field::Id => "a string of at most 64 bytes",
            Field::Key => "a string of at most 128 bytes",
            Field::Traceparent => "a traceparent of W3C Trace Context (55 bytes)",
            Field::Payload => "any value",
            Field::PayloadBase64 => "a string of base64",
        }
    }
}

const _: () = assert!(SEQ_MAX == (1 << 53) - 1 && TYPE_BYTES_MAX == 32);
const _: () = assert!(TRACEPARENT_BYTES == 55);
const _: () = assert!(ID_BYTES_MAX == 64 && KEY_BYTES_MAX == 128 && JSON_DEPTH_MAX == 64);

/// A fault of a message before it is put into words: plain, so that looking for it costs good
/// messages nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Fault {
    pub(super) what: What,
    /// Bytes of the frame's payload in front of the fault.
    pub(super) at: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum What {
    /// JSON: a syntax error, in the value of that field.
    NotJson(Option<Field>),
    /// JSON: another value than an object.
    NotAnObject,
    /// JSON: nested too deep.
    TooDeep,
    /// JSON: the key of the field comes for the second time.
    Twice(Field),
    /// A value of another kind or out of range.
    Wanted(Field),
    /// A string over its cap.
    TooLong(Field),
    /// JSON: half of a surrogate pair in the string.
    Escape(Field),
    /// JSON: both payloads.
    TwoPayloads,
    /// Protobuf: what is no key of a field, or a value of an unknown field that cannot be skipped.
    NotProtobuf,
    /// Protobuf: the value of the field is not whole.
    CutOff(Field),
    /// Protobuf: the field has the wire type of another one.
    WireType(Field),
    /// Protobuf: the field is a string, and its bytes are none.
    NotUtf8(Field),
    /// Neither `msg_id` nor `type`.
    NoId,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, at } = *self;
        let wire_type = |field: Field| match field {
            Field::MsgId | Field::Seq | Field::DeadlineMs | Field::Ack => "0 (varint)",
            Field::Type
            | Field::Payload
            | Field::Id
            | Field::Key
            | Field::Traceparent
            | Field::PayloadBase64 => "2 (bytes)",
        };
        match what {
            What::NotJson(None) => write!(f, "not JSON at byte {at}"),
            What::NotJson(Some(field)) => write!(f, "{}: not JSON at byte {at}", field.name()),
            What::NotAnObject => write!(f, "a JSON object is wanted, at byte {at}"),
            What::TooDeep => write!(f, "the JSON is nested deeper than 64 levels, at byte {at}"),
            What::Twice(field) => write!(f, "{}: comes twice, again at byte {at}", field.name()),
            What::Wanted(field) | What::TooLong(field) => {
                write!(f, "{}: {} is wanted, at byte {at}", field.name(), field.wanted())
            }
            What::Escape(field) => {
                write!(f, "{}: half of a surrogate pair, in the string at byte {at}", field.name())
            }
            What::TwoPayloads => {
                write!(f, "payload_base64: send payload or payload_base64, not both, at byte {at}")
            }
            What::NotProtobuf => write!(f, "not a protobuf ClientMessage at byte {at}"),
            What::CutOff(field) => {
                write!(f, "{}: cut off or too long, in the field at byte {at}", field.name())
            }
            What::WireType(field) => {
                let wanted = wire_type(field);
                write!(f, "{}: wire type {wanted} is wanted, at byte {at}", field.name())
            }
            What::NotUtf8(field) => {
                write!(f, "{}: UTF-8 is wanted, in the field at byte {at}", field.name())
            }
            What::NoId => f.write_str("msg_id or type is wanted: the message has neither"),
        }
    }
}
