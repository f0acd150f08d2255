//! A TCP connection to the gateway that sends any bytes, and reads HTTP answers and frames.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::PATIENCE;

/// A frame from the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    /// Code of a close frame; `None` = an empty one.
    pub fn code(&self) -> Option<u16> {
        assert_eq!(self.opcode, 8, "a close frame: {self:?}");
        self.payload.first_chunk().map(|code| u16::from_be_bytes(*code))
    }

    /// JSON of a text frame.
    pub fn json(&self) -> serde_json::Value {
        assert_eq!(self.opcode, 1, "a text frame: {self:?}");
        serde_json::from_slice(&self.payload).expect("JSON")
    }
}

/// The first two bytes and the length of a frame: `first` is FIN, RSV and opcode.
pub fn header(first: u8, masked: bool, len: u64) -> Vec<u8> {
    let mask = if masked { 0x80 } else { 0 };
    let mut out = vec![first];
    match len {
        0..=125 => out.push(mask | len as u8),
        126..=65_535 => {
            out.push(mask | 126);
            out.extend((len as u16).to_be_bytes());
        }
        _ => {
            out.push(mask | 127);
            out.extend(len.to_be_bytes());
        }
    }
    out
}

/// A whole masked frame.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];
    let mut out = header(first, true, payload.len() as u64);
    out.extend(MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

/// A connection that sends raw bytes.
pub struct Raw<S = TcpStream> {
    stream: S,
    unread: Vec<u8>,
}

impl Raw {
    /// Connects, and sends nothing.
    #[track_caller]
    pub fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).expect("the gateway listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("an option");
        Self::over(stream)
    }

    /// Connects, upgrades, and reads the welcome.
    #[track_caller]
    pub fn upgraded(to: SocketAddr) -> Self {
        let mut raw = Self::connect(to);
        raw.send(Self::request(to).as_bytes());
        let head = raw.head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert_eq!(raw.frame().json()["type"], "welcome");
        raw
    }

    /// A right upgrade request.
    pub fn request(to: SocketAddr) -> String {
        format!(
            "GET /ws HTTP/1.1\r\nHost: {to}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

impl<S: Read + Write> Raw<S> {
    /// Wraps an open stream.
    pub fn over(stream: S) -> Self {
        Self { stream, unread: Vec::new() }
    }

    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("sent");
    }

    /// Sends as far as the gateway takes it: it may close before it has read everything.
    pub fn try_send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Sends a masked text frame.
    #[track_caller]
    pub fn text(&mut self, text: &str) {
        self.send(&frame(0x81, text.as_bytes()));
    }

    /// Reads more bytes; false at the end.
    #[track_caller]
    fn more(&mut self) -> bool {
        let mut chunk = [0; 16 << 10];
        match self.stream.read(&mut chunk) {
            Ok(n) => {
                self.unread.extend_from_slice(&chunk[..n]);
                n > 0
            }
            Err(e) if e.kind() == ErrorKind::ConnectionReset => false,
            Err(e) => panic!("{e}; unread: {:?}", String::from_utf8_lossy(&self.unread)),
        }
    }

    /// Reads the head of an HTTP answer.
    #[track_caller]
    pub fn head(&mut self) -> String {
        loop {
            if let Some(end) = self.unread.windows(4).position(|w| w == b"\r\n\r\n") {
                let head: Vec<u8> = self.unread.drain(..end + 4).collect();
                return String::from_utf8(head).expect("ASCII");
            }
            assert!(self.more(), "closed: {:?}", String::from_utf8_lossy(&self.unread));
        }
    }

    /// Reads the next frame; `None` when the gateway closed.
    #[track_caller]
    pub fn next_frame(&mut self) -> Option<Frame> {
        loop {
            if let Some((frame, used)) = parse(&self.unread) {
                self.unread.drain(..used);
                return Some(frame);
            }
            if !self.more() {
                return None;
            }
        }
    }

    /// Address of an upgraded connection's client, as the gateway shows it.
    #[track_caller]
    pub fn who(&mut self) -> String {
        self.text(r#"{"msg_id":9002,"seq":1}"#);
        loop {
            let message = self.frame().json();
            if message["seq"] == 1 {
                return message["payload"]["peer"].as_str().expect("an address").to_owned();
            }
        }
    }

    /// Reads the next frame, which must come.
    #[track_caller]
    pub fn frame(&mut self) -> Frame {
        self.next_frame().expect("a frame, not the end")
    }

    /// Reads up to the close frame, and to the end of TCP after it.
    #[track_caller]
    pub fn closed(&mut self) -> Option<u16> {
        loop {
            let frame = self.next_frame().expect("a close frame before the end");
            if frame.opcode == 8 {
                return frame.code();
            }
        }
    }

    /// Reads to the end of TCP; returns the bytes.
    #[track_caller]
    pub fn rest(&mut self) -> Vec<u8> {
        while self.more() {}
        std::mem::take(&mut self.unread)
    }
}

fn parse(bytes: &[u8]) -> Option<(Frame, usize)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    assert_eq!(second & 0x80, 0, "servers do not mask");
    assert_eq!(first & 0xf0, 0x80, "one unfragmented frame without extensions");
    let (len, at) = match second {
        126 => (u64::from(u16::from_be_bytes(*bytes.get(2..4)?.first_chunk()?)), 4),
        127 => (u64::from_be_bytes(*bytes.get(2..10)?.first_chunk()?), 10),
        len => (u64::from(len), 2),
    };
    let end = at + usize::try_from(len).expect("a length");
    let payload = bytes.get(at..end)?.to_vec();
    Some((Frame { opcode: first & 15, payload }, end))
}
