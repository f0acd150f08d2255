//! The client that an HTTP proxy names: `X-Forwarded-For`, and `Forwarded` (RFC 7239). Pure.
//!
//! Each proxy adds the address of its own peer at the right end, so a list is read from there: a
//! listed proxy is skipped, and the first address of anybody else is the client. What is left of it
//! anybody may have sent, and none of it is looked at, not even to find where a quoted string
//! began.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::peers::{Forwarded, ForwardedHeader};

/// Proxies that a request may have passed. Few pass five; a list of 16 KiB has room for 2,000, and
/// each costs up to 64 comparisons.
const HOPS_MAX: usize = 32;
/// Characters of an entry that the log shows: an IPv6 address has 39, a port 6.
const ENTRY_CHARS_MAX: usize = 60;

/// The client, as far as a listed proxy names it. An address without a port has the port 0.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    /// The right-most hop that is not listed; where all are listed, the left-most one.
    Client(SocketAddr),
    /// The proxy sent no such header, or an empty one.
    Nothing,
    /// An entry that decides names no address.
    Unclear {
        /// The hop before it, which is listed; `None` = the proxy that sent the request.
        nearest: Option<SocketAddr>,
        /// Reason why it names none.
        why: &'static str,
        /// The entry, cut, for the log.
        entry: String,
    },
}

/// Reads the values of the header's fields, in their order: together they are one list.
pub(crate) fn read<'b>(
    rules: &Forwarded,
    values: impl DoubleEndedIterator<Item = &'b [u8]>,
) -> Told {
    let elements = values.rev().flat_map(|value| match rules.header {
        ForwardedHeader::XForwardedFor => from_right(value, b',', Quotes::None),
        ForwardedHeader::Forwarded => from_right(value, b',', Quotes::Double),
    });
    let mut nearest = None;
    // Empty elements are none (RFC 9110 section 5.6.1.2).
    for (n, element) in elements.filter(|element| !element.is_empty()).enumerate() {
        let hop = match rules.header {
            _ if n >= HOPS_MAX => Err("has more than 32 proxies behind it"),
            ForwardedHeader::XForwardedFor => node(element),
            ForwardedHeader::Forwarded => parameter_for(element).and_then(|text| node(&text)),
        };
        match hop {
            Ok(hop) if rules.from.has(hop.ip()) => nearest = Some(hop),
            Ok(client) => return Told::Client(client),
            Err(why) => {
                let entry = String::from_utf8_lossy(element);
                let entry = entry.chars().take(ENTRY_CHARS_MAX).collect();
                return Told::Unclear { nearest, why, entry };
            }
        }
    }
    nearest.map_or(Told::Nothing, Told::Client)
}

/// Quoted strings of a list, in which a separator is none.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quotes {
    None,
    /// Quoted strings of RFC 9110 section 5.6.4: a backslash takes the meaning from a quote.
    Double,
}

/// The parts of `text` between the separators, from the right, without the spaces around them.
/// Each byte is looked at twice at most.
fn from_right(text: &[u8], separator: u8, quotes: Quotes) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let at = last_separator(text, separator, quotes);
        rest = at.map(|at| &text[..at]);
        Some(text[at.map_or(0, |at| at + 1)..].trim_ascii())
    })
}

fn last_separator(text: &[u8], separator: u8, quotes: Quotes) -> Option<usize> {
    // The first quote from the right ends a string, and the next one that is not escaped begins it.
    let mut quoted = false;
    for (at, &byte) in text.iter().enumerate().rev() {
        if byte == b'"' && quotes == Quotes::Double && !(quoted && is_escaped(text, at)) {
            quoted = !quoted;
        } else if byte == separator && !quoted {
            return Some(at);
        }
    }
    None
}

/// Whether the byte at `at` has an odd number of backslashes before it.
fn is_escaped(text: &[u8], at: usize) -> bool {
    text[..at].iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
}

/// The value of the one parameter `for` of an element of `Forwarded`.
fn parameter_for(element: &[u8]) -> Result<Cow<'_, [u8]>, &'static str> {
    let values = from_right(element, b';', Quotes::Double).filter_map(|pair| {
        let at = pair.iter().position(|&byte| byte == b'=')?;
        let (name, value) = (pair[..at].trim_ascii(), pair[at + 1..].trim_ascii());
        name.eq_ignore_ascii_case(b"for").then_some(value)
    });
    let mut values = values.fuse();
    match (values.next(), values.next()) {
        (Some(value), None) => Ok(unquoted(value)),
        (None, _) => Err("has no for="),
        (Some(_), Some(_)) => Err("has for= twice"),
    }
}

/// The text in a quoted string; what is none is its own text.
fn unquoted(value: &[u8]) -> Cow<'_, [u8]> {
    let quoted = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    let Some(quoted) = quoted else { return Cow::Borrowed(value) };
    if !quoted.contains(&b'\\') {
        return Cow::Borrowed(quoted);
    }
    let mut bytes = quoted.iter();
    let next = || match bytes.next() {
        Some(b'\\') => bytes.next().copied(),
        other => other.copied(),
    };
    Cow::Owned(std::iter::from_fn(next).collect())
}

/// Reads an address, with its port or without: RFC 7239 section 6, and what proxies write besides
/// it, an IPv6 address without brackets and one with a zone (`fe80::1%eth0`, Go's).
fn node(text: &[u8]) -> Result<SocketAddr, &'static str> {
    const NO_ADDRESS: &str = "names no IP address";
    let text = std::str::from_utf8(text).map_err(|_| NO_ADDRESS)?;
    if text.eq_ignore_ascii_case("unknown") || text.starts_with('_') {
        return Err("hides the address");
    }
    let (ip, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (ip, port) = rest.split_once(']').ok_or(NO_ADDRESS)?;
            (ipv6(ip), port)
        }
        // The one colon is that of a port: an IPv6 address has two or more.
        None if text.matches(':').count() == 1 => {
            let (ip, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            (ip.parse().ok().map(IpAddr::V4), port)
        }
        None => (text.parse().ok().map(IpAddr::V4).or_else(|| ipv6(text)), ""),
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => 0,
        Some(hidden) if hidden.starts_with('_') => 0,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse().map_err(|_| NO_ADDRESS)?
        }
        Some(_) | None => return Err(NO_ADDRESS),
    };
    // ::ffff:192.0.2.1 is the client 192.0.2.1, and limits by address must count both as one.
    Ok(SocketAddr::new(ip.ok_or(NO_ADDRESS)?.to_canonical(), port))
}

fn ipv6(text: &str) -> Option<IpAddr> {
    let address = text.split_once('%').map_or(text, |(address, _zone)| address);
    address.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

#[cfg(test)]
mod tests;
