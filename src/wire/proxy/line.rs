//! Version 1 (section 2.1): one line of text, `PROXY TCP4 192.0.2.1 198.51.100.2 4660 443` and
//! CR LF, or `PROXY UNKNOWN`, anything, and CR LF.

use std::net::{IpAddr, SocketAddr};

use super::{HeaderProgress, begins_alike};

/// Beginning of every line.
pub(super) const START: &[u8] = b"PROXY ";
/// Bytes of the longest line, CR LF included (section 2.1: a buffer of 107 bytes and a NUL is
/// enough for every line).
pub(super) const LINE_BYTES_MAX: usize = 107;

/// What may follow [`START`].
const TCP4: &[u8] = b"TCP4 ";
const TCP6: &[u8] = b"TCP6 ";
const UNKNOWN: &[u8] = b"UNKNOWN ";
const BARE_UNKNOWN: &[u8] = b"UNKNOWN\r";

/// Reads the line that `bytes` begin with; the first of them are those of [`START`], as far as they
/// go. Like [`super::read`], it refuses what can no longer become a line.
pub(super) fn read(bytes: &[u8]) -> Result<HeaderProgress, HeaderProgress> {
    let refuse = |why| Err(HeaderProgress::Refuse { why });
    let rest = bytes.get(START.len()..).unwrap_or_default();
    if ![TCP4, TCP6, UNKNOWN, BARE_UNKNOWN].iter().any(|word| begins_alike(rest, word)) {
        return refuse("PROXY protocol version 1 names neither TCP4 nor TCP6 nor UNKNOWN");
    }
    let is_unknown = rest.first() == Some(&b'U');
    let head = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    // Everything up to CR LF is to be ignored behind UNKNOWN.
    let end = match is_unknown {
        true => head.windows(2).position(|pair| pair == b"\r\n"),
        false => head.iter().position(|byte| !(b' '..=b'~').contains(byte)),
    };
    match end.map(|at| (at, &head[at..])) {
        Some((at, [b'\r', b'\n', ..])) => {
            let peer = match is_unknown {
                true => None,
                false => Some(source(&head[START.len()..at])?),
            };
            Ok(HeaderProgress::Header { consumed: at + 2, peer })
        }
        Some((_, [b'\r'])) if head.len() < LINE_BYTES_MAX => Err(HeaderProgress::Partial),
        None if head.len() < LINE_BYTES_MAX => Err(HeaderProgress::Partial),
        Some((_, [b'\r'])) | None => {
            refuse("PROXY protocol version 1 has no CR LF within 107 bytes")
        }
        Some(_) => refuse("PROXY protocol version 1 has a byte that is no text before its CR LF"),
    }
}

/// The source of `TCP4 <source> <destination> <port> <port>`, or TCP6. Every part is checked: a
/// line that is wrong anywhere was written by something else.
fn source(fields: &[u8]) -> Result<SocketAddr, HeaderProgress> {
    let refuse = |why| HeaderProgress::Refuse { why };
    let text = std::str::from_utf8(fields).unwrap_or_default();
    let mut words = text.split(' ');
    let [Some(family), Some(ip), Some(destination), Some(port), Some(other), None] =
        std::array::from_fn(|_| words.next())
    else {
        let why = "PROXY protocol version 1 needs two addresses and two ports, one space apart";
        return Err(refuse(why));
    };
    let address = |text: &str| match family {
        "TCP4" => text.parse().ok().map(IpAddr::V4),
        // ::ffff:192.0.2.1 is the client 192.0.2.1, and limits by address must count both as one.
        _ => text.parse().ok().map(IpAddr::V6).map(|ip| ip.to_canonical()),
    };
    let (Some(ip), Some(_)) = (address(ip), address(destination)) else {
        return Err(refuse("PROXY protocol version 1 has an address that is not of its family"));
    };
    let (Some(port), Some(_)) = (decimal_port(port), decimal_port(other)) else {
        return Err(refuse("PROXY protocol version 1 has a port that is not 0 to 65535"));
    };
    Ok(SocketAddr::new(ip, port))
}

/// A port in decimal digits without leading zeros.
fn decimal_port(text: &str) -> Option<u16> {
    let is_decimal = text.bytes().all(|b| b.is_ascii_digit());
    let leads_with_zero = text.len() > 1 && text.starts_with('0');
    text.parse().ok().filter(|_| is_decimal && !leads_with_zero)
}
