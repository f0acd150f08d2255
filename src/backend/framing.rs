//! gRPC message framing (PROTOCOL-HTTP2.md "Length-Prefixed-Message"): the prefix of a request, and
//! the one message of a response, assembled from its DATA chunks.

use bytes::{Buf, Bytes, BytesMut};

use crate::limits::RESPONSE_BYTES_MAX;

/// Bytes of the prefix: one of flags, four of length, big-endian.
pub(crate) const PREFIX_BYTES: usize = 5;

/// The prefix of an uncompressed message of `length` bytes.
pub fn prefix(length: u32) -> [u8; PREFIX_BYTES] {
    let [a, b, c, d] = length.to_be_bytes();
    [0, a, b, c, d]
}

/// A fault of the body of a response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FramingError {
    /// The compressed flag is set, although no encoding was offered.
    Compressed,
    /// The flag byte is neither 0 nor 1.
    BadFlag,
    /// The length is over [`RESPONSE_BYTES_MAX`].
    TooLarge,
    /// Bytes follow the message.
    TwoMessages,
    /// The body ended before a message.
    Missing,
    /// The body ended within the message.
    Truncated,
}

/// The one message of a response while it arrives.
///
/// A message that lies within one chunk is passed on as a slice of it; only one that spans chunks
/// is copied, into a buffer that grows with the bytes that arrive and not with the announced
/// length.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    prefix: [u8; PREFIX_BYTES],
    prefix_bytes: usize,
    length: usize,
    message: Message,
}

#[derive(Debug, Default)]
enum Message {
    #[default]
    Nothing,
    Slice(Bytes),
    Copy(BytesMut),
}

impl Message {
    fn len(&self) -> usize {
        match self {
            Message::Nothing => 0,
            Message::Slice(bytes) => bytes.len(),
            Message::Copy(bytes) => bytes.len(),
        }
    }
}

impl Assembly {
    /// Takes the next chunk of the body.
    pub(crate) fn push(&mut self, mut chunk: Bytes) -> Result<(), FramingError> {
        if self.prefix_bytes < PREFIX_BYTES && !self.take_prefix(&mut chunk)? {
            return Ok(());
        }
        let missing = self.length - self.message.len();
        if chunk.len() > missing {
            return Err(FramingError::TwoMessages);
        }
        if chunk.is_empty() {
            return Ok(());
        }
        self.message = match std::mem::take(&mut self.message) {
            Message::Nothing if chunk.len() == self.length => Message::Slice(chunk),
            Message::Nothing => Message::Copy(BytesMut::from(&chunk[..])),
            // A slice is a whole message, so nothing is missing after it.
            Message::Slice(bytes) => Message::Slice(bytes),
            Message::Copy(mut bytes) => {
                bytes.extend_from_slice(&chunk);
                Message::Copy(bytes)
            }
        };
        Ok(())
    }

    /// Ends the body: returns the message without its prefix.
    pub(crate) fn finish(self) -> Result<Bytes, FramingError> {
        if self.prefix_bytes == 0 {
            return Err(FramingError::Missing);
        }
        if self.prefix_bytes < PREFIX_BYTES || self.message.len() < self.length {
            return Err(FramingError::Truncated);
        }
        Ok(match self.message {
            Message::Nothing => Bytes::new(),
            Message::Slice(bytes) => bytes,
            Message::Copy(bytes) => bytes.freeze(),
        })
    }

    /// Moves bytes of the prefix out of `chunk`; true when the prefix is complete.
    fn take_prefix(&mut self, chunk: &mut Bytes) -> Result<bool, FramingError> {
        let n = chunk.len().min(PREFIX_BYTES - self.prefix_bytes);
        self.prefix[self.prefix_bytes..self.prefix_bytes + n].copy_from_slice(&chunk[..n]);
        chunk.advance(n);
        self.prefix_bytes += n;
        if self.prefix_bytes < PREFIX_BYTES {
            return Ok(false);
        }
        let [flag, a, b, c, d] = self.prefix;
        match flag {
            0 => {}
            1 => return Err(FramingError::Compressed),
            2.. => return Err(FramingError::BadFlag),
        }
        self.length = u32::from_be_bytes([a, b, c, d]) as usize;
        if self.length > RESPONSE_BYTES_MAX {
            return Err(FramingError::TooLarge);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn framed(message: &[u8]) -> Bytes {
        let length = u32::try_from(message.len()).unwrap();
        Bytes::from([&prefix(length)[..], message].concat())
    }

    fn assemble(chunks: &[&[u8]]) -> Result<Bytes, FramingError> {
        let mut assembly = Assembly::default();
        for chunk in chunks {
            assembly.push(Bytes::copy_from_slice(chunk))?;
        }
        assembly.finish()
    }

    #[test]
    fn a_message_in_one_chunk_is_not_copied() {
        let body = framed(b"hello");
        let mut assembly = Assembly::default();
        assembly.push(body.clone()).unwrap();
        let message = assembly.finish().unwrap();
        assert_eq!(message, "hello");
        assert_eq!(message.as_ptr(), body[PREFIX_BYTES..].as_ptr());
    }

    #[test]
    fn an_empty_message_is_a_message_and_no_bytes_are_none() {
        assert_eq!(assemble(&[&[0, 0, 0, 0, 0]]), Ok(Bytes::new()));
        assert_eq!(assemble(&[]), Err(FramingError::Missing));
        assert_eq!(assemble(&[b"", b""]), Err(FramingError::Missing));
    }

    #[test]
    fn what_is_not_exactly_one_plain_message_is_an_error() {
        assert_eq!(assemble(&[&[0, 0]]), Err(FramingError::Truncated));
        assert_eq!(assemble(&[&[0, 0, 0, 0, 9], b"short"]), Err(FramingError::Truncated));
        assert_eq!(assemble(&[&[1, 0, 0, 0, 1], b"x"]), Err(FramingError::Compressed));
        assert_eq!(assemble(&[&[7, 0, 0, 0, 1], b"x"]), Err(FramingError::BadFlag));
        assert_eq!(assemble(&[&[0, 255, 255, 255, 255]]), Err(FramingError::TooLarge));
        assert_eq!(assemble(&[&[0, 0, 0, 0, 1, 2], &[0]]), Err(FramingError::TwoMessages));
        assert_eq!(assemble(&[&[0, 0, 0, 0, 0, 0]]), Err(FramingError::TwoMessages));
    }

    #[test]
    fn the_largest_length_is_accepted_and_one_more_is_not() {
        let claim = |length: usize| assemble(&[&prefix(u32::try_from(length).unwrap())]);
        assert_eq!(claim(RESPONSE_BYTES_MAX), Err(FramingError::Truncated));
        assert_eq!(claim(RESPONSE_BYTES_MAX + 1), Err(FramingError::TooLarge));
    }

    proptest! {
        #[test]
        fn chunk_boundaries_do_not_matter(
            message in prop::collection::vec(any::<u8>(), 0..300),
            cuts in prop::collection::vec(1usize..40, 0..20),
        ) {
            let mut rest = framed(&message);
            let mut assembly = Assembly::default();
            for cut in cuts {
                let chunk = rest.split_to(cut.min(rest.len()));
                prop_assert_eq!(assembly.push(chunk), Ok(()));
            }
            prop_assert_eq!(assembly.push(rest), Ok(()));
            prop_assert_eq!(assembly.finish().unwrap(), message);
        }

        #[test]
        fn arbitrary_chunks_never_panic(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..8), 0..8),
        ) {
            let chunks: Vec<&[u8]> = chunks.iter().map(|c| &c[..]).collect();
            let _ = assemble(&chunks);
        }
    }
}
