//! WebSocket frames (RFC 6455 section 5): the events of the decoder, the rules that it enforces,
//! and the frames that the gateway writes.

pub(crate) mod client;
mod decoder;

use crate::wire::close;

pub use decoder::Decoder;
pub use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// Most bytes of a control frame's payload (RFC 6455 section 5.5).
pub(crate) const CONTROL_BYTES_MAX: usize = 125;
/// Most bytes of a close reason: a control frame's payload less the code.
pub(crate) const CLOSE_REASON_BYTES_MAX: usize = CONTROL_BYTES_MAX - 2;

/// Limits of the messages on one connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameLimits {
    /// Bytes of one message, its fragments joined.
    pub message_bytes_max: usize,
    /// Frames of one message, empty ones included.
    pub fragments_max: u32,
}

/// A message or control frame of a client. Borrows the input, or the message that the decoder
/// joined.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameEvent<'a> {
    /// A whole text message.
    Text(&'a str),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// A ping, to be answered with [`write_pong`].
    Ping(&'a [u8]),
    /// A pong; its payload has no meaning here.
    Pong,
    /// A close frame; no event follows it.
    Close {
        /// Code of the close frame, one that may be sent; `None` = it has none.
        code: Option<u16>,
    },
}

/// Whether the consumer takes the next event now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    /// Give the next event.
    Continue,
    /// Stop after this event and keep the rest.
    Pause,
}

/// Result of one call of [`Decoder::feed`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fed {
    /// Frames completed, fragments and control frames included.
    pub frames: u32,
    /// Whether the consumer asked to pause; to go on, feed again (an empty input will do).
    pub(crate) paused: bool,
}

/// A rule that the client broke, of RFC 6455 or of the gateway's limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ProtocolError {
    /// RSV1, 2 or 3 is set without an extension (5.2).
    ReservedBits,
    /// The opcode is 3-7 or 11-15 (5.2).
    ReservedOpcode,
    /// A client's frame has no mask (5.1).
    NotMasked,
    /// The length is not in its shortest form (5.2).
    LengthNotMinimal,
    /// A control frame has more than 125 bytes (5.5).
    ControlTooLong,
    /// A control frame is fragmented (5.5).
    ControlFragmented,
    /// A continuation frame continues no message (5.4).
    ContinuationFirst,
    /// A new message begins inside a fragmented one (5.4).
    MessageInterrupted,
    /// A close frame has one byte, or a code that must not be sent (5.5.1, 7.4).
    BadClose,
    /// A text or a close reason is not UTF-8 (8.1).
    BadUtf8,
    /// A message is over the limit, by its declared length.
    TooBig,
    /// A message has too many fragments.
    TooManyFragments,
}

impl ProtocolError {
    /// All rules, in the order of the RFC's sections.
    pub const ALL: [ProtocolError; 12] = [
        ProtocolError::ReservedBits,
        ProtocolError::ReservedOpcode,
        ProtocolError::NotMasked,
        ProtocolError::LengthNotMinimal,
        ProtocolError::ControlTooLong,
        ProtocolError::ControlFragmented,
        ProtocolError::ContinuationFirst,
        ProtocolError::MessageInterrupted,
        ProtocolError::BadClose,
        ProtocolError::BadUtf8,
        ProtocolError::TooBig,
        ProtocolError::TooManyFragments,
    ];

    /// Code of the close frame that answers the error (RFC 6455 section 7.4.1).
    pub(crate) fn close_code(self) -> u16 {
        match self {
            ProtocolError::ReservedBits
            | ProtocolError::ReservedOpcode
            | ProtocolError::NotMasked
            | ProtocolError::LengthNotMinimal
            | ProtocolError::ControlTooLong
            | ProtocolError::ControlFragmented
            | ProtocolError::ContinuationFirst
            | ProtocolError::MessageInterrupted
            | ProtocolError::BadClose => close::PROTOCOL_ERROR,
            ProtocolError::BadUtf8 => close::INVALID_DATA,
            ProtocolError::TooBig | ProtocolError::TooManyFragments => close::TOO_BIG,
        }
    }

    /// Text of the close frame, for people.
    pub(crate) fn text(self) -> &'static str {
        match self {
            ProtocolError::ReservedBits => "a frame has reserved bits set without an extension",
            ProtocolError::ReservedOpcode => "a frame has a reserved opcode",
            ProtocolError::NotMasked => "a frame is not masked, as those of a client must be",
            ProtocolError::LengthNotMinimal => "the length of a frame is not in its shortest form",
            ProtocolError::ControlTooLong => "a control frame is over 125 bytes",
            ProtocolError::ControlFragmented => "a control frame is fragmented",
            ProtocolError::ContinuationFirst => "a continuation frame continues no message",
            ProtocolError::MessageInterrupted => "a new message begins inside a fragmented one",
            ProtocolError::BadClose => "a close frame is malformed",
            ProtocolError::BadUtf8 => "a text is not UTF-8",
            ProtocolError::TooBig => "a message is over message_bytes_max, which the welcome names",
            ProtocolError::TooManyFragments => {
                "a message has too many fragments: send fewer, larger ones"
            }
        }
    }
}

/// Bytes of the header of a server's frame with `len` bytes of payload: 2, 4 or 10.
pub(crate) const fn frame_header_len(len: usize) -> usize {
    match len {
        0..=125 => 2,
        126..=65_535 => 4,
        _ => 10,
    }
}

/// The header of a final, unmasked frame, in the first `frame_header_len(len)` bytes.
pub(super) fn frame_header(opcode: OpCode, len: usize) -> [u8; 10] {
    let first = 0x80 | u8::from(opcode);
    let mut header = [0; 10];
    header[0] = first;
    match frame_header_len(len) {
        2 => header[1] = len as u8,
        4 => {
            header[1] = 126;
            header[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        }
        _ => {
            header[1] = 127;
            header[2..].copy_from_slice(&(len as u64).to_be_bytes());
        }
    }
    header
}

/// Appends the header of a final frame as a server sends it: unmasked, 2, 4 or 10 bytes.
#[inline]
pub(crate) fn write_frame_header(out: &mut Vec<u8>, opcode: OpCode, len: usize) {
    out.extend_from_slice(&frame_header(opcode, len)[..frame_header_len(len)]);
}

/// Appends a close frame. The reason (left out without a code) is cut to 123 bytes, between
/// characters.
pub(crate) fn write_close(out: &mut Vec<u8>, code: Option<u16>, reason: &str) {
    let Some(code) = code else {
        write_frame_header(out, OpCode::Control(Control::Close), 0);
        return;
    };
    let reason = &reason[..reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX)];
    write_frame_header(out, OpCode::Control(Control::Close), 2 + reason.len());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

/// Appends the pong that answers a ping. `payload` is the ping's, so at most 125 bytes.
pub(crate) fn write_pong(out: &mut Vec<u8>, payload: &[u8]) {
    debug_assert!(payload.len() <= CONTROL_BYTES_MAX, "a ping has at most 125 bytes");
    write_frame_header(out, OpCode::Control(Control::Pong), payload.len());
    out.extend_from_slice(payload);
}

/// Appends a ping without a payload: 2 bytes.
pub(crate) fn write_ping(out: &mut Vec<u8>) {
    write_frame_header(out, OpCode::Control(Control::Ping), 0);
}

#[cfg(test)]
mod tests;
