//! The transport of a connection: how its bytes get from the socket to the engine and back. Plain
//! TCP, TCP that begins with a PROXY protocol header, or TLS.
//!
//! No socket here: `Socket` in [`crate::shard::sockets`] reads and writes.

use std::net::SocketAddr;

use crate::tls::session::{Failure, Progress, Session};
use crate::wire::proxy;

/// The transport of one connection. Boxes keep a plain connection small.
#[derive(Debug)]
pub(crate) enum Transport {
    /// Bytes of the socket are bytes of the engine.
    Plain,
    /// A balancer's header comes first, and is not complete yet or was refused.
    Proxied(Box<Proxied>),
    /// TLS: its handshake, and then its records.
    Tls(Box<Session>),
}

/// A connection that begins with the PROXY protocol header of a balancer.
#[derive(Debug)]
pub(crate) struct Proxied {
    header: Header,
    /// TLS that begins behind the header.
    session: Option<Box<Session>>,
}

#[derive(Debug)]
enum Header {
    /// The bytes received so far, which are no complete header.
    Partial(Vec<u8>),
    /// The bytes are no header: what comes after them is ignored until the connection closes.
    Refused,
}

/// The result of bytes that were received.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Received<'a> {
    /// Bytes for the engine: in the clear, or such that it will look at none of them.
    Plain(&'a mut [u8]),
    /// Bytes of TLS records.
    Tls {
        /// Plaintext for the engine; may be empty.
        plain: &'a mut [u8],
        /// The state of the session after them. After a failure its alert is to be flushed.
        result: Result<Progress, Failure>,
    },
    /// A PROXY header is complete. The bytes after it are to be received again.
    Header {
        /// Bytes of the input that belong to the header.
        used: usize,
        /// The client that the header names; `None` = the balancer connects for itself.
        client: Option<SocketAddr>,
    },
    /// A PROXY header is not complete; the input was kept.
    PartialHeader,
    /// The connection does not begin with a PROXY header.
    HeaderRefused {
        /// The reason, for the log.
        why: &'static str,
    },
    /// The input follows a refused header.
    Ignored,
}

impl Transport {
    /// The transport of a connection that was just accepted: `is_proxied` = it comes from a
    /// balancer, `session` = TLS is spoken.
    pub(crate) fn new(is_proxied: bool, session: Option<Session>) -> Self {
        let session = session.map(Box::new);
        match (is_proxied, session) {
            (true, session) => {
                Self::Proxied(Box::new(Proxied { header: Header::Partial(Vec::new()), session }))
            }
            (false, Some(session)) => Self::Tls(session),
            (false, None) => Self::Plain,
        }
    }

    /// Takes bytes that the socket received. What TLS decrypts is written into `plain`.
    #[inline]
    pub(crate) fn receive<'a>(
        &mut self,
        input: &'a mut [u8],
        plain: &'a mut Vec<u8>,
    ) -> Received<'a> {
        match self {
            Self::Plain => Received::Plain(input),
            Self::Proxied(proxied) => {
                let received = proxied.receive(input);
                if matches!(received, Received::Header { .. }) {
                    *self = proxied.session.take().map_or(Self::Plain, Self::Tls);
                }
                received
            }
            // After our close_notify nothing is decrypted: the engine only counts the bytes.
            Self::Tls(session) if session.is_closed() => Received::Plain(input),
            Self::Tls(session) => {
                plain.clear();
                let result = session.receive(input, plain);
                Received::Tls { plain, result }
            }
        }
    }

    #[inline]
    fn session(&self) -> Option<&Session> {
        match self {
            Self::Plain => None,
            Self::Proxied(proxied) => proxied.session.as_deref(),
            Self::Tls(session) => Some(session),
        }
    }

    /// The TLS session, if TLS is spoken.
    #[inline]
    pub(crate) fn session_mut(&mut self) -> Option<&mut Session> {
        match self {
            Self::Plain => None,
            Self::Proxied(proxied) => proxied.session.as_deref_mut(),
            Self::Tls(session) => Some(session),
        }
    }

    /// Whether a TLS handshake is before the connection or under way: it costs far more than
    /// messages do.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.session().is_some_and(Session::is_handshaking)
    }

    /// Whether nothing that the client still sends will be read: it sent close_notify, or TLS
    /// failed.
    pub(crate) fn has_ended(&self) -> bool {
        self.session().is_some_and(Session::has_ended)
    }

    /// Whether it holds on to bytes that it was given and has not sent: TLS has encrypted them.
    #[inline]
    pub(crate) fn holds_on(&self) -> bool {
        self.session().is_some()
    }

    /// Whether TLS has bytes to send of its own: handshake, alert or a part of a record.
    pub(crate) fn has_unsent(&self) -> bool {
        self.session().is_some_and(Session::is_unsent)
    }

    /// Bytes of memory that the transport holds outside of its socket.
    pub(crate) fn memory_bytes(&self) -> usize {
        let session = self.session().map_or(0, Session::memory_bytes);
        match self {
            Self::Plain | Self::Tls(_) => session,
            Self::Proxied(proxied) => {
                let header = match &proxied.header {
                    Header::Partial(bytes) => bytes.capacity(),
                    Header::Refused => 0,
                };
                size_of::<Proxied>() + header + session
            }
        }
    }
}

impl Proxied {
    fn receive(&mut self, input: &[u8]) -> Received<'static> {
        let Header::Partial(held) = &mut self.header else { return Received::Ignored };
        let before = held.len();
        // `held` never keeps more than a header: a complete one ends it with this call.
        let progress = if before == 0 {
            proxy::parse(input)
        } else {
            held.extend_from_slice(&input[..input.len().min(proxy::PROXY_BYTES_MAX)]);
            proxy::parse(held)
        };
        match progress {
            proxy::HeaderProgress::Partial => {
                if before == 0 {
                    held.extend_from_slice(input);
                }
                Received::PartialHeader
            }
            proxy::HeaderProgress::Header { consumed, peer } => {
                Received::Header { used: consumed - before, client: peer }
            }
            proxy::HeaderProgress::Refuse { why } => {
                self.header = Header::Refused;
                Received::HeaderRefused { why }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &[u8] =
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x7f\0\0\x01\x12\x34\0\x50";

    #[test]
    fn a_header_is_found_however_it_is_cut() {
        let client = "192.0.2.7:4660".parse().ok();
        for cut in 0..HEADER.len() {
            let (mut first, mut rest) = (HEADER[..cut].to_vec(), HEADER[cut..].to_vec());
            let used = rest.len();
            rest.extend(b"GET");
            let (mut transport, mut plain) = (Transport::new(true, None), Vec::new());
            if cut > 0 {
                assert_eq!(transport.receive(&mut first, &mut plain), Received::PartialHeader);
            }
            assert!(matches!(transport, Transport::Proxied(_)));
            let received = transport.receive(&mut rest, &mut plain);
            assert_eq!(received, Received::Header { used, client });
            assert!(matches!(transport, Transport::Plain));
            let received = transport.receive(&mut rest[used..], &mut plain);
            assert_eq!(received, Received::Plain(&mut b"GET".to_vec()));
        }
    }

    #[test]
    fn what_is_no_header_is_refused_once_and_then_ignored() {
        let (mut transport, mut plain) = (Transport::new(true, None), Vec::new());
        let mut input = b"GET / HTTP/1.1\r\n".to_vec();
        let received = transport.receive(&mut input, &mut plain);
        assert!(matches!(received, Received::HeaderRefused { .. }));
        let mut input = HEADER.to_vec();
        assert_eq!(transport.receive(&mut input, &mut plain), Received::Ignored);
        assert!(matches!(transport, Transport::Proxied(_)));
    }

    #[test]
    fn a_connection_without_a_balancer_and_tls_is_plain() {
        assert!(matches!(Transport::new(false, None), Transport::Plain));
        assert_eq!(Transport::Plain.memory_bytes(), 0);
    }
}
