//! Frames as a client of the gateway sees them: it sends masked ones (RFC 6455 section 5.1) and
//! gets those that a server writes.

use std::io::Cursor;

use tungstenite::protocol::frame::FrameHeader;

use super::OpCode;

/// Most bytes of a frame that a client takes: more than any answer has.
const FRAME_BYTES_MAX: u64 = 64 << 20;

/// A frame of a server. Borrows the input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ServerFrame<'a> {
    pub(crate) opcode: OpCode,
    pub(crate) payload: &'a [u8],
}

/// Appends a final frame with `payload`, masked with `mask`.
pub(crate) fn write_masked(out: &mut Vec<u8>, opcode: OpCode, mask: [u8; 4], payload: &[u8]) {
    let header = FrameHeader { opcode, mask: Some(mask), ..FrameHeader::default() };
    header.format(payload.len() as u64, out).expect("a Vec takes every byte");
    let start = out.len();
    out.extend_from_slice(payload);
    for (byte, mask) in out[start..].iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= mask;
    }
}

/// The frame at the beginning of `input`, with its length in bytes; `None` = it is not complete.
/// The error is a rule that the server broke, or a kind of frame that no gateway writes.
pub(crate) fn read_server(input: &[u8]) -> Result<Option<(ServerFrame<'_>, usize)>, &'static str> {
    let mut cursor = Cursor::new(input);
    let parsed = FrameHeader::parse(&mut cursor).map_err(|_| "its frames have bad headers")?;
    let Some((header, len)) = parsed else { return Ok(None) };
    if header.mask.is_some() || header.rsv1 || header.rsv2 || header.rsv3 || !header.is_final {
        return Err("its frames are masked, compressed or fragmented");
    }
    if len > FRAME_BYTES_MAX {
        return Err("a frame has over 64 MiB");
    }
    let start = cursor.position() as usize;
    let payload = input.get(start..start + len as usize);
    let frame = payload.map(|payload| ServerFrame { opcode: header.opcode, payload });
    Ok(frame.map(|frame| (frame, start + len as usize)))
}

#[cfg(test)]
mod tests {
    use super::super::{Control, Data, Decoder, Flow, FrameEvent, FrameLimits, write_close};
    use super::*;

    #[test]
    fn the_gateway_reads_what_a_client_writes() {
        let limits = FrameLimits { message_bytes_max: 1 << 20, fragments_max: 1 };
        for len in [0, 1, 125, 126, 65_535, 65_536] {
            let payload = "x".repeat(len);
            let mut bytes = Vec::new();
            write_masked(&mut bytes, OpCode::Data(Data::Text), [1, 2, 3, 4], payload.as_bytes());
            let mut read = Vec::new();
            let fed = Decoder::default().feed(&limits, &mut bytes, |event| {
                let FrameEvent::Text(text) = event else { panic!("a text, not {event:?}") };
                read.push(text.to_owned());
                Flow::Continue
            });
            assert_eq!((fed.expect("right").frames, read), (1, vec![payload]));
        }
    }

    #[test]
    fn a_client_reads_what_the_gateway_writes_piece_by_piece() {
        let mut bytes = Vec::new();
        write_close(&mut bytes, Some(1001), "away");
        for cut in 0..bytes.len() {
            assert_eq!(read_server(&bytes[..cut]), Ok(None));
        }
        bytes.push(0);
        let (frame, len) = read_server(&bytes).expect("right").expect("complete");
        assert_eq!(frame.opcode, OpCode::Control(Control::Close));
        assert_eq!((frame.payload, len), (&b"\x03\xe9away"[..], bytes.len() - 1));
    }

    #[test]
    fn frames_that_no_gateway_writes_are_errors() {
        let masked = [0x81, 0x80, 1, 2, 3, 4];
        let huge = [0x82, 127, 0, 0, 0, 1, 0, 0, 0, 0];
        for bad in [&masked[..], &[0x01, 0], &[0xC1, 0], &[0x83, 0], &huge] {
            assert!(read_server(bad).is_err(), "{bad:?}");
        }
    }
}
