//! The upgrade of a connection, as its client sees it.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tungstenite::handshake::derive_accept_key;

use super::fault::Fault;
use super::target::Target;
use crate::message::Encoding;
use crate::wire::handshake::{JSON, PROTOBUF};

/// Most bytes of a response; a proxy's page of an error may be long.
const RESPONSE_BYTES_MAX: usize = 64 << 10;
/// Header fields of a response.
const HEADERS_MAX: usize = 64;
/// Characters of an error's text that are kept.
const TEXT_CHARS_MAX: usize = 300;

/// First byte of an alert of TLS: what a server says to a client that does not speak it.
const TLS_ALERT: u8 = 0x15;

/// State of the upgrade.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Upgraded {
    /// The response has not come in whole.
    NotYet,
    /// It is a WebSocket now; frames follow the head of the response.
    With {
        /// Bytes of that head.
        head_bytes: usize,
    },
}

/// A refusal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// Kind of it.
    pub fault: Fault,
    /// Text that the other side sent with it.
    pub text: String,
}

fn subprotocol(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Json => JSON,
        Encoding::Protobuf => PROTOBUF,
    }
}

/// Appends the request. `key` is 16 bytes in base64.
pub fn request(target: &Target, encoding: Encoding, key: &str, out: &mut Vec<u8>) {
    debug_assert!(STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16));
    let mut text = String::new();
    write!(
        text,
        "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\
         Sec-WebSocket-Protocol: {}\r\nUser-Agent: shardgate-bench/{}\r\n\r\n",
        target.path,
        target.authority(),
        subprotocol(encoding),
        env!("CARGO_PKG_VERSION"),
    )
    .expect("a string takes it");
    out.extend_from_slice(text.as_bytes());
}

/// Reads the response to a request with `key`; `is_end` = no more bytes come.
pub fn read(
    bytes: &[u8],
    key: &str,
    encoding: Encoding,
    is_end: bool,
) -> Result<Upgraded, Refused> {
    let not = |why| Refused { fault: Fault::NotAGateway(why), text: String::new() };
    if bytes.first() == Some(&TLS_ALERT) {
        return Err(not("it speaks TLS: write wss:// in the URL"));
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(bytes).map_err(|_| not("its answer is no HTTP"))?;
    let httparse::Status::Complete(head_bytes) = parsed else {
        let is_over = is_end || bytes.len() > RESPONSE_BYTES_MAX;
        let ended = Refused { fault: Fault::Ended, text: String::new() };
        return if is_over { Err(ended) } else { Ok(Upgraded::NotYet) };
    };
    let value = |name: &str| {
        let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| std::str::from_utf8(header.value).ok()).unwrap_or_default()
    };
    let code = response.code.unwrap_or_default();
    if code != 101 {
        let length: usize = value("content-length").parse().unwrap_or(0);
        let body = &bytes[head_bytes..];
        if !is_end && body.len() < length.min(RESPONSE_BYTES_MAX) {
            return Ok(Upgraded::NotYet);
        }
        return Err(Refused { fault: Fault::Http(code), text: one_line(body) });
    }
    if value("sec-websocket-accept") != derive_accept_key(key.as_bytes()) {
        return Err(not("its Sec-WebSocket-Accept is wrong"));
    }
    if value("sec-websocket-protocol") != subprotocol(encoding) {
        return Err(not("it does not speak the subprotocol shardgate.v1"));
    }
    Ok(Upgraded::With { head_bytes })
}

/// A text for people: one line, not too long.
fn one_line(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(TEXT_CHARS_MAX).filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    fn good() -> String {
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: {JSON}\r\n\r\n",
            derive_accept_key(KEY.as_bytes())
        )
    }

    #[test]
    fn a_response_is_read_however_it_is_cut() {
        let good = good();
        let all = format!("{good}frames");
        let read = |bytes: &str| super::read(bytes.as_bytes(), KEY, Encoding::Json, false);
        for cut in 0..good.len() {
            assert_eq!(read(&all[..cut]), Ok(Upgraded::NotYet), "{cut}");
        }
        assert_eq!(read(&all), Ok(Upgraded::With { head_bytes: good.len() }));
    }

    #[test]
    fn a_refusal_has_its_status_and_its_text() {
        let text = "HTTP/1.1 404 Not Found\r\nContent-Length: 8\r\n\r\nno\npath\n";
        let read = |bytes: &str, end| super::read(bytes.as_bytes(), KEY, Encoding::Json, end);
        let refused = Refused { fault: Fault::Http(404), text: "no path".into() };
        assert_eq!(read(&text[..text.len() - 1], false), Ok(Upgraded::NotYet));
        assert_eq!(read(text, false), Err(refused));
        let cut = read(&text[..text.len() - 6], true).expect_err("refused");
        assert_eq!((cut.fault, &*cut.text), (Fault::Http(404), "no"));
        assert_eq!(read("HTTP/1.1 1", true).expect_err("cut").fault, Fault::Ended);
    }

    #[test]
    fn other_servers_are_told_from_a_gateway() {
        let tls = "\u{15}\u{3}\u{3}";
        for (from, to) in [("Accept: ", "Accept: x"), (JSON, "chat"), ("HTTP", "SMTP"), ("H", tls)]
        {
            let bad = good().replace(from, to);
            let refused = read(bad.as_bytes(), KEY, Encoding::Json, false).expect_err(from);
            assert!(matches!(refused.fault, Fault::NotAGateway(_)), "{refused:?}");
        }
    }
}
