//! gRPC message framing (PROTOCOL-HTTP2.md "Length-Prefixed-Message"): the prefix of a request, and
//! the one message of a response, assembled from its DATA chunks and decompressed.

use std::io::Read;

use bytes::{Buf, Bytes, BytesMut};
use flate2::bufread::{GzDecoder, ZlibDecoder};
use http::HeaderMap;

/// Bytes of the prefix: one of flags, four of length, big-endian.
pub(crate) const PREFIX_BYTES: usize = 5;
/// Most characters of the name of an encoding that an error shows.
const ENCODING_CHARS_MAX: usize = 20;

/// The prefix of an uncompressed message of `length` bytes.
pub fn prefix(length: u32) -> [u8; PREFIX_BYTES] {
    let [a, b, c, d] = length.to_be_bytes();
    [0, a, b, c, d]
}

/// Compression of the messages of a response, by its header `grpc-encoding`. None is asked for: a
/// service that compresses all the same (grpcio does where the server was told to) is understood.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum MessageEncoding {
    /// No header, or `identity`: no message may be compressed.
    #[default]
    Identity,
    /// `gzip`.
    Gzip,
    /// `deflate`, which is zlib's format (RFC 1950).
    Deflate,
    /// Another one, by its name.
    Unknown(String),
}

impl MessageEncoding {
    /// The encoding that the headers of a response name.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let Some(value) = headers.get("grpc-encoding") else { return Self::Identity };
        match value.as_bytes() {
            b"" | b"identity" => Self::Identity,
            b"gzip" => Self::Gzip,
            b"deflate" => Self::Deflate,
            other => {
                let text = String::from_utf8_lossy(other);
                Self::Unknown(text.chars().take(ENCODING_CHARS_MAX).collect())
            }
        }
    }
}

/// A fault of the body of a response.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FramingError {
    /// The compressed flag is set, and no encoding is named.
    Compressed,
    /// The message is compressed with an encoding that is not read.
    UnknownEncoding(String),
    /// The bytes are not what the encoding makes.
    BadCompression,
    /// The flag byte is neither 0 nor 1.
    BadFlag,
    /// The message has more bytes than this, compressed or not.
    TooLarge(usize),
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
pub struct Assembly {
    /// Most bytes of the message.
    bytes_max: usize,
    encoding: MessageEncoding,
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
    /// Expects a message of at most `bytes_max` bytes, compressed or not.
    pub fn new(bytes_max: usize, encoding: MessageEncoding) -> Self {
        Self { bytes_max, encoding, ..Self::default() }
    }

    /// Takes the next chunk of the body.
    pub fn push(&mut self, mut chunk: Bytes) -> Result<(), FramingError> {
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

    /// Ends the body: returns the message without its prefix, decompressed.
    pub fn finish(self) -> Result<Bytes, FramingError> {
        if self.prefix_bytes == 0 {
            return Err(FramingError::Missing);
        }
        if self.prefix_bytes < PREFIX_BYTES || self.message.len() < self.length {
            return Err(FramingError::Truncated);
        }
        let bytes = match self.message {
            Message::Nothing => Bytes::new(),
            Message::Slice(bytes) => bytes,
            Message::Copy(bytes) => bytes.freeze(),
        };
        let [flag, ..] = self.prefix;
        match self.encoding {
            _ if flag == 0 || bytes.is_empty() => Ok(bytes),
            MessageEncoding::Gzip => unpack(GzDecoder::new(&bytes[..]), self.bytes_max),
            MessageEncoding::Deflate => unpack(ZlibDecoder::new(&bytes[..]), self.bytes_max),
            MessageEncoding::Identity | MessageEncoding::Unknown(_) => {
                unreachable!("refused with the prefix")
            }
        }
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
        match (flag, &self.encoding) {
            (0, _) | (1, MessageEncoding::Gzip | MessageEncoding::Deflate) => {}
            (1, MessageEncoding::Identity) => return Err(FramingError::Compressed),
            (1, MessageEncoding::Unknown(name)) => {
                return Err(FramingError::UnknownEncoding(name.clone()));
            }
            (2.., _) => return Err(FramingError::BadFlag),
        }
        self.length = u32::from_be_bytes([a, b, c, d]) as usize;
        if self.length > self.bytes_max {
            return Err(FramingError::TooLarge(self.bytes_max));
        }
        Ok(true)
    }
}

/// Decompresses a message of at most `bytes_max` bytes: a few bytes can stand for a thousand times
/// as many.
fn unpack(packed: impl Read, bytes_max: usize) -> Result<Bytes, FramingError> {
    let mut bytes = Vec::new();
    // One byte more tells a message of exactly `bytes_max` bytes from a longer one.
    let read = packed.take(bytes_max as u64 + 1).read_to_end(&mut bytes);
    match read {
        Ok(n) if n > bytes_max => Err(FramingError::TooLarge(bytes_max)),
        Ok(_) => Ok(bytes.into()),
        Err(_) => Err(FramingError::BadCompression),
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

    /// Bound of the messages of these tests.
    const MAX: usize = 1 << 20;

    fn plain() -> Assembly {
        Assembly::new(MAX, MessageEncoding::Identity)
    }

    fn assemble(chunks: &[&[u8]]) -> Result<Bytes, FramingError> {
        assemble_as(MessageEncoding::Identity, chunks)
    }

    fn assemble_as(encoding: MessageEncoding, chunks: &[&[u8]]) -> Result<Bytes, FramingError> {
        let mut assembly = Assembly::new(MAX, encoding);
        for chunk in chunks {
            assembly.push(Bytes::copy_from_slice(chunk))?;
        }
        assembly.finish()
    }

    #[test]
    fn a_message_in_one_chunk_is_not_copied() {
        let body = framed(b"hello");
        let mut assembly = plain();
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
        assert_eq!(assemble(&[&[0, 255, 255, 255, 255]]), Err(FramingError::TooLarge(MAX)));
        assert_eq!(assemble(&[&[0, 0, 0, 0, 1, 2], &[0]]), Err(FramingError::TwoMessages));
        assert_eq!(assemble(&[&[0, 0, 0, 0, 0, 0]]), Err(FramingError::TwoMessages));
    }

    #[test]
    fn the_largest_length_is_accepted_and_one_more_is_not() {
        let claim = |length: usize| assemble(&[&prefix(u32::try_from(length).unwrap())]);
        assert_eq!(claim(MAX), Err(FramingError::Truncated));
        assert_eq!(claim(MAX + 1), Err(FramingError::TooLarge(MAX)));
    }

    /// A message as a service that compresses sends it.
    fn packed(message: &[u8]) -> Vec<u8> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut gzip, message).unwrap();
        let bytes = gzip.finish().unwrap();
        let [_, length @ ..] = prefix(u32::try_from(bytes.len()).unwrap());
        [&[1], &length[..], &bytes].concat()
    }

    #[test]
    fn a_message_that_the_service_compressed_is_read() {
        let gzip = |chunks: &[&[u8]]| assemble_as(MessageEncoding::Gzip, chunks);
        let body = packed(b"hello hello hello");
        assert_eq!(gzip(&[&body]).unwrap(), "hello hello hello");
        assert_eq!(gzip(&[&body[..9], &body[9..]]).unwrap(), "hello hello hello");
        assert_eq!(gzip(&[&packed(b"")]), Ok(Bytes::new()));
        assert_eq!(gzip(&[&[1, 0, 0, 0, 0]]), Ok(Bytes::new()));
        assert_eq!(gzip(&[&framed(b"plain")]).unwrap(), "plain", "each message says so itself");
        assert_eq!(gzip(&[&[1, 0, 0, 0, 2, 7, 7]]), Err(FramingError::BadCompression));
        let zlib = [0x78, 0x9c, 0xcb, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x06, 0x2c, 0x02, 0x15];
        let zlib = [&[1, 0, 0, 0, 13], &zlib[..]].concat();
        assert_eq!(assemble_as(MessageEncoding::Deflate, &[&zlib]).unwrap(), "hello");
        let cut = packed(b"hello")[..20].to_vec();
        let cut = [&[1, 0, 0, 0, 15], &cut[5..]].concat();
        assert_eq!(gzip(&[&cut]), Err(FramingError::BadCompression));
    }

    #[test]
    fn a_small_body_that_becomes_a_huge_message_is_too_large() {
        let gzip = |message: &[u8]| assemble_as(MessageEncoding::Gzip, &[&packed(message)]);
        assert_eq!(gzip(&vec![0; MAX]).map(|m| m.len()), Ok(MAX));
        assert_eq!(gzip(&vec![0; MAX + 1]), Err(FramingError::TooLarge(MAX)));
        assert_eq!(gzip(&vec![0; 64 * MAX]), Err(FramingError::TooLarge(MAX)));
    }

    #[test]
    fn an_encoding_is_known_by_its_name() {
        let of = |value: &[u8]| {
            let value = http::HeaderValue::from_bytes(value).unwrap();
            MessageEncoding::of(&[("grpc-encoding".parse().unwrap(), value)].into_iter().collect())
        };
        assert_eq!(MessageEncoding::of(&HeaderMap::new()), MessageEncoding::Identity);
        assert_eq!(of(b"identity"), MessageEncoding::Identity);
        assert_eq!(of(b"gzip"), MessageEncoding::Gzip);
        assert_eq!(of(b"deflate"), MessageEncoding::Deflate);
        let snappy = MessageEncoding::Unknown("snappy".into());
        assert_eq!(of(b"snappy"), snappy);
        assert_eq!(of(&[b'x'; 99]), MessageEncoding::Unknown("x".repeat(ENCODING_CHARS_MAX)));
        let refused = Err(FramingError::UnknownEncoding("snappy".into()));
        assert_eq!(assemble_as(snappy.clone(), &[&[1, 0, 0, 0, 1, 7]]), refused);
        assert_eq!(assemble_as(snappy, &[&framed(b"plain")]).unwrap(), "plain");
    }

    proptest! {
        #[test]
        fn chunk_boundaries_do_not_matter(
            message in prop::collection::vec(any::<u8>(), 0..300),
            cuts in prop::collection::vec(1usize..40, 0..20),
        ) {
            let mut rest = framed(&message);
            let mut assembly = plain();
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
