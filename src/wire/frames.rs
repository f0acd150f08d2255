//! WebSocket frames (RFC 6455 section 5): what the decoder reports, the rules it enforces, and the
//! frames that the gateway writes.

mod decoder;

pub use decoder::Decoder;
pub use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

/// Bytes of a control frame's payload (RFC 6455 section 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;
/// Bytes of a close reason: a control frame's payload less the code.
pub const CLOSE_REASON_BYTES_MAX: usize = CONTROL_BYTES_MAX - 2;

/// What one connection may send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameLimits {
    /// Bytes of one message, its fragments joined.
    pub message_bytes_max: usize,
    /// Frames of one message, empty ones included.
    pub fragments_max: u32,
}

/// One thing a client said. Borrows the input, or what the decoder joined.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameEvent<'a> {
    /// A whole text message.
    Text(&'a str),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// A ping, to be answered with [`write_pong`].
    Ping(&'a [u8]),
    /// A pong; what it carries means nothing here.
    Pong,
    /// The peer closes; nothing comes after it. `None` = it gave no code.
    Close {
        /// A code that may stand in a close frame.
        code: Option<u16>,
    },
}

/// Whether the consumer wants the next event now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    /// Go on.
    Continue,
    /// Stop after this event and keep the rest.
    Pause,
}

/// What one call of [`Decoder::feed`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fed {
    /// Frames completed, fragments and control frames included.
    pub frames: u32,
    /// The consumer asked to pause; feed again (an empty input will do) to go on.
    pub paused: bool,
}

/// Which rule of RFC 6455, or of ours, the client broke.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ProtocolError {
    /// RSV1-3 without an extension (5.2).
    ReservedBits,
    /// Opcode 3-7 or 11-15 (5.2).
    ReservedOpcode,
    /// A client's frame without a mask (5.1).
    NotMasked,
    /// The length could have been written shorter (5.2).
    LengthNotMinimal,
    /// A control frame with more than 125 bytes (5.5).
    ControlTooLong,
    /// A control frame in pieces (5.5).
    ControlFragmented,
    /// A continuation of nothing (5.4).
    ContinuationFirst,
    /// A new message inside a fragmented one (5.4).
    MessageInterrupted,
    /// A close frame of one byte, or with a code that must not be sent (5.5.1, 7.4).
    BadClose,
    /// Text or a close reason that is not UTF-8 (8.1).
    BadUtf8,
    /// A message over the limit, by its declared length.
    TooBig,
    /// A message in too many pieces.
    TooManyFragments,
}

impl ProtocolError {
    /// All of them.
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

    /// Code of the close frame that answers it (RFC 6455 section 7.4.1).
    pub fn close_code(self) -> u16 {
        match self {
            ProtocolError::ReservedBits
            | ProtocolError::ReservedOpcode
            | ProtocolError::NotMasked
            | ProtocolError::LengthNotMinimal
            | ProtocolError::ControlTooLong
            | ProtocolError::ControlFragmented
            | ProtocolError::ContinuationFirst
            | ProtocolError::MessageInterrupted
            | ProtocolError::BadClose => u16::from(CloseCode::Protocol),
            ProtocolError::BadUtf8 => u16::from(CloseCode::Invalid),
            ProtocolError::TooBig | ProtocolError::TooManyFragments => u16::from(CloseCode::Size),
        }
    }

    /// The close reason for people.
    pub fn text(self) -> &'static str {
        match self {
            ProtocolError::ReservedBits => "reserved bits set without an extension",
            ProtocolError::ReservedOpcode => "reserved opcode",
            ProtocolError::NotMasked => "client frames must be masked",
            ProtocolError::LengthNotMinimal => "frame length not in its shortest form",
            ProtocolError::ControlTooLong => "control frame over 125 bytes",
            ProtocolError::ControlFragmented => "fragmented control frame",
            ProtocolError::ContinuationFirst => "continuation without a message to continue",
            ProtocolError::MessageInterrupted => "new message inside a fragmented one",
            ProtocolError::BadClose => "bad close frame",
            ProtocolError::BadUtf8 => "text is not UTF-8",
            ProtocolError::TooBig => "message too big",
            ProtocolError::TooManyFragments => "message in too many fragments",
        }
    }
}

/// Bytes of the header of a server's frame with `len` bytes of payload: 2, 4 or 10.
pub const fn frame_header_len(len: usize) -> usize {
    match len {
        0..=125 => 2,
        126..=65_535 => 4,
        _ => 10,
    }
}

/// The first `frame_header_len(len)` bytes are the header of a final, unmasked frame.
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
pub fn write_frame_header(out: &mut Vec<u8>, opcode: OpCode, len: usize) {
    out.extend_from_slice(&frame_header(opcode, len)[..frame_header_len(len)]);
}

/// Appends a close frame. The reason (left out without a code) is cut to 123 bytes, between
/// characters.
pub fn write_close(out: &mut Vec<u8>, code: Option<u16>, reason: &str) {
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
pub fn write_pong(out: &mut Vec<u8>, payload: &[u8]) {
    debug_assert!(payload.len() <= CONTROL_BYTES_MAX, "a ping has at most 125 bytes");
    write_frame_header(out, OpCode::Control(Control::Pong), payload.len());
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests;
