//! The frame decoder over the shell's receive buffer.
//!
//! The assembly of messages is the gateway's own, on tungstenite's frame header and opcodes: a
//! message that lies whole in the input is unmasked in place and lent out of it, so an idle
//! connection owns no buffer and a busy one copies nothing.

use std::io::Cursor;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::{CONTROL_BYTES_MAX, Fed, Flow, FrameEvent, FrameLimits, ProtocolError};
use crate::wire::close;

/// The longest header of a client's frame: 2 + 8 (length) + 4 (mask) bytes.
const HEADER_BYTES_MAX: usize = 14;

/// Turns received bytes into [`FrameEvent`]s. It has 24 bytes while no message is half received.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The start of a frame header that is not complete yet.
    head: [u8; HEADER_BYTES_MAX],
    head_len: u8,
    /// Whether a close frame or an error came: all later input is ignored.
    ended: bool,
    rest: Option<Box<Rest>>,
}

/// The state of a half-received message, and input that was held back by a pause.
#[derive(Debug, Default)]
struct Rest {
    /// Input that was not decoded because of a pause. It starts at a frame boundary.
    held: Vec<u8>,
    /// Index in `held` of the first byte that was not decoded.
    held_at: usize,
    /// The frame whose payload is arriving.
    frame: Option<OpenFrame>,
    /// The message that is being joined.
    message: Option<Joining>,
    /// Payload so far of an open control frame.
    control: Vec<u8>,
}

/// A frame with part of its payload still to come.
#[derive(Clone, Copy, Debug)]
struct OpenFrame {
    kind: Kind,
    is_final: bool,
    /// The mask, rotated so that its first byte is for the next byte of payload.
    mask: [u8; 4],
    remaining: usize,
}

/// A message that came in several frames or several receives.
#[derive(Debug)]
struct Joining {
    is_text: bool,
    bytes: Vec<u8>,
    /// Length of the prefix that is UTF-8 (text only); behind it are at most 3 bytes of an
    /// unfinished character.
    valid: usize,
    fragments: u32,
}

/// A known opcode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Data(Data),
    Close,
    Ping,
    Pong,
}

/// A frame header that passed every rule.
struct Header {
    frame: OpenFrame,
    bytes: usize,
}

/// Result of decoding some input.
struct Decoded {
    fed: Fed,
    consumed: usize,
}

impl Decoder {
    /// Decodes `input`, unmasking it in place, and gives every complete event to `on`.
    ///
    /// After an error or a close event all further input is ignored. After [`Flow::Pause`] the rest
    /// of the input is kept and comes first in the next call, which may have an empty input.
    pub fn feed<F>(
        &mut self,
        limits: &FrameLimits,
        input: &mut [u8],
        mut on: F,
    ) -> Result<Fed, ProtocolError>
    where
        F: FnMut(FrameEvent<'_>) -> Flow,
    {
        if self.ended {
            return Ok(Fed::default());
        }
        let result = match self.take_held() {
            None => self.run(limits, input, &mut on).map(|decoded| {
                if decoded.consumed < input.len() {
                    self.hold(input[decoded.consumed..].to_vec(), 0);
                }
                decoded.fed
            }),
            Some((mut held, at)) => {
                held.extend_from_slice(input);
                self.run(limits, &mut held[at..], &mut on).map(|decoded| {
                    if at + decoded.consumed < held.len() {
                        self.hold(held, at + decoded.consumed);
                    }
                    decoded.fed
                })
            }
        };
        if result.is_err() || self.ended {
            *self = Decoder { ended: true, ..Decoder::default() };
        } else {
            self.give_back();
        }
        result
    }

    /// Whether a close frame or an error ended the stream.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// Bytes received and not given out: an unfinished frame or message, and the rest after a
    /// pause.
    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        let rest = self.rest.as_ref().map_or(0, |rest| {
            let joined = rest.message.as_ref().map_or(0, |message| message.bytes.len());
            rest.held.len() - rest.held_at + rest.control.len() + joined
        });
        usize::from(self.head_len) + rest
    }

    /// Whether a pause left input that was not decoded: feed again to go on with it.
    pub(crate) fn has_unread(&self) -> bool {
        self.rest.as_ref().is_some_and(|rest| rest.held_at < rest.held.len())
    }

    /// Bytes of heap memory in use.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.rest.as_ref().map_or(0, |rest| {
            let joined = rest.message.as_ref().map_or(0, |message| message.bytes.capacity());
            size_of::<Rest>() + rest.held.capacity() + rest.control.capacity() + joined
        })
    }

    fn take_held(&mut self) -> Option<(Vec<u8>, usize)> {
        let rest = self.rest.as_mut()?;
        if rest.held.is_empty() {
            return None;
        }
        let at = std::mem::take(&mut rest.held_at);
        let mut held = std::mem::take(&mut rest.held);
        // Move the rest to the front once it is the smaller half: each byte moves at most once for
        // each byte consumed, so a pause after every message stays linear.
        if at > held.len() / 2 {
            held.drain(..at);
            return Some((held, 0));
        }
        Some((held, at))
    }

    fn hold(&mut self, held: Vec<u8>, at: usize) {
        let rest = self.rest.get_or_insert_default();
        rest.held = held;
        rest.held_at = at;
    }

    fn give_back(&mut self) {
        if self.rest.as_ref().is_some_and(|rest| {
            rest.held.is_empty() && rest.frame.is_none() && rest.message.is_none()
        }) {
            self.rest = None;
        }
    }

    fn run<F>(
        &mut self,
        limits: &FrameLimits,
        input: &mut [u8],
        on: &mut F,
    ) -> Result<Decoded, ProtocolError>
    where
        F: FnMut(FrameEvent<'_>) -> Flow,
    {
        let mut fed = Fed::default();
        let mut at = 0;
        loop {
            let flow = if let Some(rest) = self.rest.as_mut()
                && let Some(frame) = rest.frame.take()
            {
                let taken = frame.remaining.min(input.len() - at);
                let part = &mut input[at..at + taken];
                at += taken;
                if !rest.append(frame, part)? {
                    return Ok(Decoded { fed, consumed: at });
                }
                self.complete(frame, on)?
            } else {
                let Some(header) = self.header(limits, &input[at..])? else {
                    return Ok(Decoded { fed, consumed: input.len() });
                };
                at += header.bytes;
                let frame = header.frame;
                let whole = frame.remaining <= input.len() - at;
                if !(whole && self.can_lend(&frame)) {
                    self.open(frame);
                    continue;
                }
                let payload = &mut input[at..at + frame.remaining];
                at += frame.remaining;
                unmask(payload, frame.mask);
                self.event(frame.kind, payload, on)?
            };
            fed.frames += 1;
            if self.ended {
                return Ok(Decoded { fed, consumed: input.len() });
            }
            if flow == Flow::Pause {
                fed.paused = true;
                return Ok(Decoded { fed, consumed: at });
            }
        }
    }

    /// The next frame's header, out of the kept beginning of it and `input`. `None` = not complete
    /// yet; all of `input` is kept then. `bytes` counts the bytes taken from `input`.
    #[inline]
    fn header(
        &mut self,
        limits: &FrameLimits,
        input: &[u8],
    ) -> Result<Option<Header>, ProtocolError> {
        let kept = usize::from(self.head_len);
        if kept == 0 {
            let header = self.parse(limits, input)?;
            if header.is_none() {
                self.head[..input.len()].copy_from_slice(input);
                self.head_len = input.len() as u8;
            }
            return Ok(header);
        }
        let more = input.len().min(HEADER_BYTES_MAX - kept);
        let mut head = self.head;
        head[kept..kept + more].copy_from_slice(&input[..more]);
        match self.parse(limits, &head[..kept + more])? {
            Some(header) => {
                self.head_len = 0;
                Ok(Some(Header { frame: header.frame, bytes: header.bytes - kept }))
            }
            None => {
                self.head = head;
                self.head_len += more as u8;
                Ok(None)
            }
        }
    }

    /// Parses a header and checks every rule that needs no payload.
    #[inline]
    fn parse(&self, limits: &FrameLimits, bytes: &[u8]) -> Result<Option<Header>, ProtocolError> {
        // Most frames are whole, masked text messages under 126 bytes: their header breaks no rule
        // but the limits, and going without the parser saves 9 of 36 ns.
        if let [0x81, second @ 0x80..=0xfd, a, b, c, d, ..] = *bytes
            && self.rest.is_none()
            && usize::from(second & 0x7f) <= limits.message_bytes_max
            && limits.fragments_max > 0
        {
            let remaining = usize::from(second & 0x7f);
            let kind = Kind::Data(Data::Text);
            let frame = OpenFrame { kind, is_final: true, mask: [a, b, c, d], remaining };
            return Ok(Some(Header { frame, bytes: 6 }));
        }
        let mut cursor = Cursor::new(bytes);
        let (header, len) = match FrameHeader::parse(&mut cursor) {
            Ok(Some(parsed)) => parsed,
            Ok(None) => return Ok(None),
            // Reading a slice cannot fail, so the error is the opcode.
            Err(_) => return Err(ProtocolError::ReservedOpcode),
        };
        let parsed_bytes = cursor.position() as usize;
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(ProtocolError::ReservedBits);
        }
        let Some(mask) = header.mask else { return Err(ProtocolError::NotMasked) };
        if header.len(len) != parsed_bytes {
            return Err(ProtocolError::LengthNotMinimal);
        }
        let joining = self.joining();
        let kind = match header.opcode {
            OpCode::Control(control) => {
                if len > CONTROL_BYTES_MAX as u64 {
                    return Err(ProtocolError::ControlTooLong);
                }
                if !header.is_final {
                    return Err(ProtocolError::ControlFragmented);
                }
                match control {
                    Control::Close => Kind::Close,
                    Control::Ping => Kind::Ping,
                    Control::Pong => Kind::Pong,
                    Control::Reserved(_) => return Err(ProtocolError::ReservedOpcode),
                }
            }
            OpCode::Data(Data::Reserved(_)) => return Err(ProtocolError::ReservedOpcode),
            OpCode::Data(data) => {
                match (data == Data::Continue, joining.is_some()) {
                    (true, false) => return Err(ProtocolError::ContinuationFirst),
                    (false, true) => return Err(ProtocolError::MessageInterrupted),
                    (true, true) | (false, false) => {}
                }
                let joined = joining.map_or(0, |message| message.bytes.len());
                let max = limits.message_bytes_max as u64;
                if (joined as u64).checked_add(len).is_none_or(|sum| sum > max) {
                    return Err(ProtocolError::TooBig);
                }
                let fragments = joining.map_or(0, |message| message.fragments);
                if fragments >= limits.fragments_max {
                    return Err(ProtocolError::TooManyFragments);
                }
                Kind::Data(data)
            }
        };
        // In bounds: a data frame is within message_bytes_max, a control frame has <= 125 bytes.
        let remaining = len as usize;
        let frame = OpenFrame { kind, is_final: header.is_final, mask, remaining };
        Ok(Some(Header { frame, bytes: parsed_bytes }))
    }

    fn joining(&self) -> Option<&Joining> {
        self.rest.as_ref().and_then(|rest| rest.message.as_ref())
    }

    /// Whether a frame that lies whole in the input can be lent as it lies there.
    fn can_lend(&self, frame: &OpenFrame) -> bool {
        match frame.kind {
            Kind::Close | Kind::Ping | Kind::Pong => true,
            Kind::Data(_) => frame.is_final && self.joining().is_none(),
        }
    }

    /// Prepares to collect the payload of a frame.
    fn open(&mut self, frame: OpenFrame) {
        let rest = self.rest.get_or_insert_default();
        rest.frame = Some(frame);
        match frame.kind {
            Kind::Close | Kind::Ping | Kind::Pong => {}
            Kind::Data(data) => {
                let message = rest.message.get_or_insert_with(|| Joining {
                    is_text: data == Data::Text,
                    bytes: Vec::new(),
                    valid: 0,
                    fragments: 0,
                });
                message.fragments += 1;
            }
        }
    }

    /// Gives out a collected frame whose payload is complete.
    fn complete<F>(&mut self, frame: OpenFrame, on: &mut F) -> Result<Flow, ProtocolError>
    where
        F: FnMut(FrameEvent<'_>) -> Flow,
    {
        let rest = self.rest.as_mut().expect("a frame was open in it");
        match frame.kind {
            Kind::Close | Kind::Ping | Kind::Pong => {
                let payload = std::mem::take(&mut rest.control);
                self.event(frame.kind, &payload, on)
            }
            Kind::Data(_) if !frame.is_final => Ok(Flow::Continue),
            Kind::Data(_) => {
                let message = rest.message.take().expect("opened with its first frame");
                let data = if message.is_text { Data::Text } else { Data::Binary };
                self.event(Kind::Data(data), &message.bytes, on)
            }
        }
    }

    /// Gives out one complete message or control frame.
    #[inline]
    fn event<F>(&mut self, kind: Kind, payload: &[u8], on: &mut F) -> Result<Flow, ProtocolError>
    where
        F: FnMut(FrameEvent<'_>) -> Flow,
    {
        Ok(match kind {
            Kind::Data(Data::Text) => {
                let text =
                    simdutf8::basic::from_utf8(payload).map_err(|_| ProtocolError::BadUtf8)?;
                on(FrameEvent::Text(text))
            }
            Kind::Data(Data::Binary | Data::Continue | Data::Reserved(_)) => {
                on(FrameEvent::Binary(payload))
            }
            Kind::Ping => on(FrameEvent::Ping(payload)),
            Kind::Pong => on(FrameEvent::Pong),
            Kind::Close => {
                let code = close_code(payload)?;
                self.ended = true;
                on(FrameEvent::Close { code })
            }
        })
    }
}

impl Rest {
    /// Adds received payload to the open frame; true if the frame is complete.
    fn append(&mut self, mut frame: OpenFrame, part: &mut [u8]) -> Result<bool, ProtocolError> {
        unmask(part, frame.mask);
        match frame.kind {
            Kind::Close | Kind::Ping | Kind::Pong => self.control.extend_from_slice(part),
            Kind::Data(_) => {
                let message = self.message.as_mut().expect("opened with its first frame");
                message.append(part)?;
            }
        }
        frame.remaining -= part.len();
        frame.mask.rotate_left(part.len() % 4);
        if frame.remaining > 0 {
            self.frame = Some(frame);
        }
        Ok(frame.remaining == 0)
    }
}

impl Joining {
    /// Adds bytes. Text must be UTF-8 so far, so that a wrong byte fails at once.
    fn append(&mut self, part: &[u8]) -> Result<(), ProtocolError> {
        self.bytes.extend_from_slice(part);
        if self.is_text {
            match simdutf8::compat::from_utf8(&self.bytes[self.valid..]) {
                Ok(_) => self.valid = self.bytes.len(),
                Err(error) if error.error_len().is_none() => self.valid += error.valid_up_to(),
                Err(_) => return Err(ProtocolError::BadUtf8),
            }
        }
        Ok(())
    }
}

/// The code in a close frame's payload; it must be one that may be sent.
fn close_code(payload: &[u8]) -> Result<Option<u16>, ProtocolError> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return if payload.is_empty() { Ok(None) } else { Err(ProtocolError::BadClose) };
    };
    let code = u16::from_be_bytes(*code);
    if !close::may_be_sent(code) {
        return Err(ProtocolError::BadClose);
    }
    std::str::from_utf8(reason).map_err(|_| ProtocolError::BadUtf8)?;
    Ok(Some(code))
}

/// Applies a mask (RFC 6455 section 5.3), eight bytes at a time; the compiler makes it 16 or 32.
#[inline]
fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, tail) = bytes.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (i, byte) in tail.iter_mut().enumerate() {
        *byte ^= mask[i & 3];
    }
}
