//! PROXY protocol version 2 (HAProxy's proxy-protocol.txt, section 2.2): the client's address, told
//! by a balancer before the first byte of the client. Pure and incremental.
//!
//! Only what listed peers send is ever read this way (section 2: a receiver must not guess). There
//! version 1, the text form, is refused: it has no length, and no checksum.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What every header begins with (section 2.2): no text, and no beginning of HTTP or TLS.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and transport, length.
const FIXED_BYTES: usize = 16;
/// Bytes of a whole header that are waited for: 16 fixed, 36 for two IPv6 addresses, and 484 of
/// TLVs. Balancers add a few dozen bytes of TLVs; 536 is what section 2
/// says always fits one TCP segment.
pub const PROXY_BYTES_MAX: usize = 536;

/// Two addresses and two ports (section 2.2).
const INET_BYTES: usize = 12;
/// The same for IPv6.
const INET6_BYTES: usize = 36;

/// PP2_TYPE_CRC32C (section 2.2.4).
const TYPE_CRC32C: u8 = 0x03;

/// How far a header came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// It is not all there.
    Partial,
    /// It is complete.
    Header {
        /// Its bytes; what comes after them is the client's.
        consumed: usize,
        /// The client. `None`: the balancer speaks for itself (LOCAL, its health checks) or does
        /// not know (UNSPEC); the peer of the connection is meant.
        peer: Option<SocketAddr>,
    },
    /// It will never be one: close without an answer.
    Refuse {
        /// For the log. Nothing of the input is in it.
        why: &'static str,
    },
}

/// What stands at the beginning of `bytes`. Give it everything received so far, each time.
pub fn parse(bytes: &[u8]) -> Progress {
    read(bytes).unwrap_or_else(|stop| stop)
}

/// As soon as it is clear that it is none it is refused: a client that came past the balancer
/// would wait for an answer, and we for the rest.
fn read(bytes: &[u8]) -> Result<Progress, Progress> {
    let refuse = |why| Err(Progress::Refuse { why });
    let seen = bytes.len().min(SIGNATURE.len());
    if bytes[..seen] != SIGNATURE[..seen] {
        let text = b"PROXY ";
        let start = bytes.len().min(text.len());
        return match bytes[..start] == text[..start] {
            true => refuse("PROXY protocol version 1: configure the balancer to send version 2"),
            false => refuse("no PROXY protocol header: did it come past the balancer?"),
        };
    }
    let command = match bytes.get(12) {
        None => return Err(Progress::Partial),
        Some(0x20) => Command::Local,
        Some(0x21) => Command::Proxy,
        Some(byte) if byte >> 4 == 2 => return refuse("unknown PROXY protocol command"),
        Some(_) => return refuse("unknown PROXY protocol version"),
    };
    let family = match bytes.get(13) {
        None => return Err(Progress::Partial),
        // A LOCAL header's family and addresses are not looked at (section 2.2).
        Some(_) if command == Command::Local => Family::Unspec,
        Some(0x00) => Family::Unspec,
        Some(0x11) => Family::Inet,
        Some(0x21) => Family::Inet6,
        Some(0x31 | 0x32) => return refuse("PROXY protocol address of a UNIX socket"),
        Some(0x12 | 0x22) => return refuse("PROXY protocol header of a datagram"),
        Some(_) => return refuse("unknown PROXY protocol family"),
    };
    let Some(&[high, low]) = bytes.get(14..FIXED_BYTES) else { return Err(Progress::Partial) };
    let length = usize::from(u16::from_be_bytes([high, low]));
    // At most 16 + 65,535: no overflow.
    let consumed = FIXED_BYTES + length;
    if consumed > PROXY_BYTES_MAX {
        return refuse("PROXY protocol header is too long");
    }
    if length < family.address_bytes() {
        return refuse("PROXY protocol header is too short for its addresses");
    }
    let Some(header) = bytes.get(..consumed) else { return Err(Progress::Partial) };
    let (addresses, tlvs) = header[FIXED_BYTES..].split_at(family.address_bytes());
    if command == Command::Proxy && family != Family::Unspec {
        check_tlvs(header, consumed - tlvs.len()).map_err(|why| Progress::Refuse { why })?;
    }
    Ok(Progress::Header { consumed, peer: family.source(addresses) })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Command {
    Local,
    Proxy,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Unspec,
    Inet,
    Inet6,
}

impl Family {
    fn address_bytes(self) -> usize {
        match self {
            Family::Unspec => 0,
            Family::Inet => INET_BYTES,
            Family::Inet6 => INET6_BYTES,
        }
    }

    /// Source address and port of `bytes`: source, destination, source port, destination port.
    fn source(self, bytes: &[u8]) -> Option<SocketAddr> {
        let (ip, ports) = match self {
            Family::Unspec => return None,
            Family::Inet => {
                let (ip, rest) = bytes.split_first_chunk::<4>()?;
                (IpAddr::from(Ipv4Addr::from(*ip)), rest.get(4..)?)
            }
            Family::Inet6 => {
                let (ip, rest) = bytes.split_first_chunk::<16>()?;
                (IpAddr::from(Ipv6Addr::from(*ip)), rest.get(16..)?)
            }
        };
        let port = u16::from_be_bytes(*ports.first_chunk::<2>()?);
        // ::ffff:192.0.2.1 is the client 192.0.2.1, and limits by address must see one of them.
        Some(SocketAddr::new(ip.to_canonical(), port))
    }
}

/// TLVs from `at` on (section 2.2.3): a type, two bytes of length, the value. They must fill the
/// header exactly. The checksum is verified (some 500 bytes once a connection); every other type is
/// passed over.
fn check_tlvs(header: &[u8], at: usize) -> Result<(), &'static str> {
    let cut = "PROXY protocol TLV is cut off";
    let (mut at, mut checked) = (at, false);
    while let Some(&kind) = header.get(at) {
        let length = header.get(at + 1..at + 3).and_then(|l| l.first_chunk::<2>()).ok_or(cut)?;
        let value = at + 3;
        let end = value + usize::from(u16::from_be_bytes(*length));
        let bytes = header.get(value..end).ok_or(cut)?;
        if kind == TYPE_CRC32C {
            let sum = bytes.try_into().map_err(|_| "PROXY protocol checksum has no 4 bytes")?;
            if checked || crc32c(header, value) != u32::from_be_bytes(sum) {
                return Err("PROXY protocol checksum is wrong");
            }
            checked = true;
        }
        at = end;
    }
    Ok(())
}

/// CRC-32C (Castagnoli, RFC 4960 appendix B) of `header` with the four bytes from `sum_at` on taken
/// as zero. Bit by bit: at most 536 bytes.
fn crc32c(header: &[u8], sum_at: usize) -> u32 {
    let mut crc = u32::MAX;
    for (at, &byte) in header.iter().enumerate() {
        let in_sum = (sum_at..sum_at + 4).contains(&at);
        crc ^= u32::from(if in_sum { 0 } else { byte });
        for _ in 0..8 {
            let carry = crc & 1;
            crc = (crc >> 1) ^ (0x82f6_3b78 * carry);
        }
    }
    !crc
}

#[cfg(test)]
mod tests;
