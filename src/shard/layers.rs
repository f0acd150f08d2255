//! What stands between a socket's bytes and the engine's, for connections that have such: a PROXY
//! protocol header, then TLS.

use std::net::SocketAddr;

use crate::tls::session::Session;
use crate::wire::proxy;

/// See the module. In a box of the socket, and gone when nothing stands between any more.
#[derive(Debug)]
pub struct Layers {
    header: Header,
    /// TLS, if it is spoken.
    pub tls: Option<Session>,
}

/// The header that a balancer's connection begins with.
#[derive(Debug)]
enum Header {
    /// None is expected, or it is through.
    Past,
    /// What came of it.
    Awaited(Vec<u8>),
    /// What came is none: nothing more is looked at.
    Refused,
}

/// What bytes came to, as far as the header goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Headed {
    /// All of them are the client's.
    Nothing,
    /// The header is not all there; they are taken.
    Waits,
    /// So many of them ended the header.
    Through {
        /// Bytes of them.
        used: usize,
        /// The client it names; `None` = the balancer itself.
        peer: Option<SocketAddr>,
    },
    /// They are no header.
    Refused {
        /// For the log.
        why: &'static str,
    },
    /// Neither was what came before.
    Ignored,
}

impl Layers {
    /// Those of a connection, if it has any.
    pub fn of(header: bool, tls: Option<Session>) -> Option<Box<Self>> {
        let expected = if header { Header::Awaited(Vec::new()) } else { Header::Past };
        (header || tls.is_some()).then(|| Box::new(Self { header: expected, tls }))
    }

    /// Whether a handshake is still to be done here, which costs more than messages do.
    pub fn is_shaking(&self) -> bool {
        self.tls.as_ref().is_some_and(Session::is_shaking)
    }

    /// Whether the client said that it has no more to say.
    pub fn has_ended(&self) -> bool {
        self.tls.as_ref().is_some_and(Session::has_ended)
    }

    /// Whether nothing stands between any more.
    pub fn is_through(&self) -> bool {
        match self.header {
            Header::Past => self.tls.is_none(),
            Header::Awaited(_) | Header::Refused => false,
        }
    }

    /// Bytes of memory that they hold.
    pub fn memory_bytes(&self) -> usize {
        let header = match &self.header {
            Header::Awaited(held) => held.capacity(),
            Header::Past | Header::Refused => 0,
        };
        let tls = self.tls.as_ref().map_or(0, Session::memory_bytes);
        size_of::<Self>() - size_of::<Option<Session>>() + header + tls
    }

    /// Whether a header is awaited.
    pub fn is_headed(&self) -> bool {
        matches!(self.header, Header::Awaited(_))
    }

    /// Looks for the header in bytes that were received.
    pub fn head(&mut self, input: &[u8]) -> Headed {
        let held = match &mut self.header {
            Header::Past => return Headed::Nothing,
            Header::Refused => return Headed::Ignored,
            Header::Awaited(held) => held,
        };
        let before = held.len();
        // Of what is complete no more than the header is kept, and that for this call.
        let progress = if before == 0 {
            proxy::parse(input)
        } else {
            held.extend_from_slice(&input[..input.len().min(proxy::PROXY_BYTES_MAX)]);
            proxy::parse(held)
        };
        match progress {
            proxy::Progress::Partial => {
                if before == 0 {
                    held.extend_from_slice(input);
                }
                Headed::Waits
            }
            proxy::Progress::Header { consumed, peer } => {
                self.header = Header::Past;
                Headed::Through { used: consumed - before, peer }
            }
            proxy::Progress::Refuse { why } => {
                self.header = Header::Refused;
                Headed::Refused { why }
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
        let peer = "192.0.2.7:4660".parse().ok();
        for cut in 0..=HEADER.len() {
            let (first, second) = HEADER.split_at(cut);
            let mut layers = Layers::of(true, None).expect("a header is awaited");
            let mut rest = second.to_vec();
            rest.extend(b"GET");
            if cut > 0 {
                let headed = layers.head(first);
                if cut == HEADER.len() {
                    assert_eq!(headed, Headed::Through { used: cut, peer });
                    assert_eq!(layers.head(b"GET"), Headed::Nothing);
                    continue;
                }
                assert_eq!(headed, Headed::Waits);
            }
            assert!(!layers.is_through());
            assert_eq!(layers.head(&rest), Headed::Through { used: second.len(), peer });
            assert!(layers.is_through());
        }
    }

    #[test]
    fn what_is_no_header_is_refused_once_and_then_ignored() {
        let mut layers = Layers::of(true, None).expect("a header is awaited");
        assert!(matches!(layers.head(b"GET / HTTP/1.1\r\n"), Headed::Refused { .. }));
        assert_eq!(layers.head(HEADER), Headed::Ignored);
        assert!(!layers.is_through());
        assert!(Layers::of(false, None).is_none());
    }
}
