//! PROXY protocol (HAProxy's proxy-protocol.txt): a balancer sends the client's address before the
//! first byte of the client, as a line of text (version 1, section 2.1) or in binary (version 2,
//! section 2.2). The first bytes tell which. Pure and incremental.
//!
//! Only bytes of listed peers are ever read this way (section 2: a receiver must not guess).

mod line;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Beginning of every header (section 2.2): it is no text, and no beginning of HTTP or TLS.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of a header before the addresses: signature, version and command, family and transport,
/// length.
const FIXED_BYTES: usize = 16;
/// Largest header of version 2 that is accepted, with its TLVs: one page. The specification has
/// room for 64 KiB; balancers send the name of the host, a unique id, and the names in a client
/// certificate, some hundred bytes each.
pub(crate) const PROXY_BYTES_MAX: usize = 4096;

/// Bytes of two IPv4 addresses and two ports (section 2.2).
const INET_BYTES: usize = 12;
/// Bytes of two IPv6 addresses and two ports.
const INET6_BYTES: usize = 36;

/// PP2_TYPE_CRC32C (section 2.2.4).
const TYPE_CRC32C: u8 = 0x03;

/// Result of the bytes received so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderProgress {
    /// The header is not complete.
    Partial,
    /// The header is complete.
    Header {
        /// Bytes of the header; the client's bytes follow.
        consumed: usize,
        /// Address of the client. `None`: the balancer connects for itself (LOCAL, its health
        /// checks) or does not know the client (UNSPEC); the connection's peer counts as the
        /// client.
        peer: Option<SocketAddr>,
    },
    /// The bytes are no acceptable header: close without an answer.
    Refuse {
        /// Reason for the log. It contains no byte of the input.
        why: &'static str,
    },
}

/// Parses the beginning of `bytes`. Pass all bytes received so far, each time.
pub(crate) fn parse(bytes: &[u8]) -> HeaderProgress {
    read(bytes).unwrap_or_else(|stop| stop)
}

/// Like [`parse`], with an early end as an error. Bytes that can no longer become a header are
/// refused at once: a client that bypassed the balancer waits for an answer, and the gateway would
/// wait for the rest.
fn read(bytes: &[u8]) -> Result<HeaderProgress, HeaderProgress> {
    let refuse = |why| Err(HeaderProgress::Refuse { why });
    if !bytes.is_empty() && begins_alike(bytes, line::START) {
        return line::read(bytes);
    }
    if !begins_alike(bytes, &SIGNATURE) {
        return refuse("no PROXY protocol header: did it come past the balancer?");
    }
    let command = match bytes.get(12) {
        None => return Err(HeaderProgress::Partial),
        Some(0x20) => Command::Local,
        Some(0x21) => Command::Proxy,
        Some(byte) if byte >> 4 == 2 => return refuse("unknown PROXY protocol command"),
        Some(_) => return refuse("unknown PROXY protocol version"),
    };
    let family = match bytes.get(13) {
        None => return Err(HeaderProgress::Partial),
        // The family and addresses of a LOCAL header are ignored (section 2.2).
        Some(_) if command == Command::Local => Family::Unspec,
        Some(0x00) => Family::Unspec,
        Some(0x11) => Family::Inet,
        Some(0x21) => Family::Inet6,
        Some(0x31 | 0x32) => return refuse("PROXY protocol address of a UNIX socket"),
        Some(0x12 | 0x22) => return refuse("PROXY protocol header of a datagram"),
        Some(_) => return refuse("unknown PROXY protocol family"),
    };
    let Some(&[high, low]) = bytes.get(14..FIXED_BYTES) else {
        return Err(HeaderProgress::Partial);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    // At most 16 + 65,535: no overflow.
    let consumed = FIXED_BYTES + length;
    if consumed > PROXY_BYTES_MAX {
        return refuse(
            "PROXY protocol header is over 4096 bytes: let the balancer send fewer TLVs",
        );
    }
    if length < family.address_bytes() {
        return refuse("PROXY protocol header is too short for its addresses");
    }
    let Some(header) = bytes.get(..consumed) else { return Err(HeaderProgress::Partial) };
    let (addresses, tlvs) = header[FIXED_BYTES..].split_at(family.address_bytes());
    if command == Command::Proxy && family != Family::Unspec {
        check_tlvs(header, consumed - tlvs.len()).map_err(|why| HeaderProgress::Refuse { why })?;
    }
    Ok(HeaderProgress::Header { consumed, peer: family.source(addresses) })
}

/// Whether `bytes` begin with `start`, as far as there are so many.
fn begins_alike(bytes: &[u8], start: &[u8]) -> bool {
    bytes.iter().zip(start).all(|(byte, of_start)| byte == of_start)
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
        // ::ffff:192.0.2.1 is the client 192.0.2.1, and limits by address must count both as one.
        Some(SocketAddr::new(ip.to_canonical(), port))
    }
}

/// Checks the TLVs from `at` on (section 2.2.3): a type, two bytes of length, the value. They must
/// fill the header exactly. The checksum is verified, once; every other type is skipped.
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
/// as zero. It is computed bit by bit: 8 steps of about a nanosecond each for a byte are 33 us for
/// the largest header, once a connection, and one for what balancers send.
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
