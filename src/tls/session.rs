//! One client's TLS, as bytes in and bytes out: rustls' unbuffered connection and what it leaves to
//! its owner, which are the bytes of half a record and those that the kernel did not take. Both are
//! gone when nothing is under way.

use std::fmt;

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{Error, HandshakeKind, InvalidMessage};

use super::server::Server;

/// What a record has besides its data: header 5, tag 16, type 1 (1.3) or nonce 8 (1.2), and some
/// for padding.
const RECORD_BYTES: usize = 48;
/// Bytes of records without data, mostly updates of keys, that go beyond those with data. An
/// update has 27 bytes and costs as much as many messages, which have rates and it has none: 2,400
/// of them.
const WASTE_BYTES_MAX: usize = 64 << 10;
/// Bytes of an idle session: 2.3 KB in Rust, counted by a test; with what C holds for the keys and
/// what the allocator rounds up a process grows by so much a connection (`crowd idle tls`).
pub const IDLE_BYTES: usize = 3_600;
/// Bytes of records that are not complete, or of a handshake message in several of them: a record
/// is 16 KiB + 261 at most (RFC 8446, 5.2); a ClientHello with all that is in fashion has 2 KiB, a
/// client's certificates some 10.
pub const HELD_BYTES_MAX: usize = 32 << 10;
/// Plaintext encrypted at once: four of the largest records.
pub const PLAIN_BYTES_MAX: usize = 64 << 10;
/// What those come to: a record adds 29 bytes at most (TLS 1.2 with AES-GCM: 5 of header, 8 of
/// nonce, 16 of tag), a key update 27 before them; and what a Close says.
pub const CIPHER_BYTES_MAX: usize = PLAIN_BYTES_MAX + 512;
/// `unrecognized_name` (RFC 6066, 3), fatal.
const UNRECOGNIZED_NAME: u8 = 112;
/// `decode_error` (RFC 8446, 6.2), fatal.
const DECODE_ERROR: u8 = 50;

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// The handshake is not complete: nothing of ours can be said.
    Handshake,
    /// Plaintext both ways.
    Open,
    /// The client said that it has no more (close_notify); we may have.
    Ended,
    /// It broke. What is unsent is the alert.
    Failed,
}

/// A handshake that became complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shaken {
    /// With certificates and signatures.
    Full,
    /// By a ticket of an earlier one.
    Resumed,
}

/// What bytes of the client came to, besides plaintext.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// The handshake is complete since these bytes.
    pub shaken: Option<Shaken>,
    /// The client has no more to say.
    pub ended: bool,
}

/// Why a connection ends without a word of HTTP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The bytes are no TLS.
    NotTls,
    /// No version, cipher suite or group in common.
    Incompatible,
    /// No certificate covers the name that the client asked for.
    Name,
    /// The client offers protocols, and HTTP/1.1 is not among them.
    Protocol,
    /// The client's certificate is missing, or not good.
    Certificate,
    /// The client sent an alert: mostly it does not trust our certificate.
    Alert,
    /// Bytes that break the rules.
    Broken,
}

/// See the module.
pub struct Session {
    connection: UnbufferedServerConnection,
    stage: Stage,
    /// Something was said to the client.
    spoke: bool,
    /// Our close_notify was made.
    closed: bool,
    /// Bytes of the client that are no whole record yet.
    held: Vec<u8>,
    /// Bytes for the client, of which the kernel took the first `sent`.
    unsent: Vec<u8>,
    sent: usize,
    /// Plaintext in `unsent` that was not reported as sent.
    owed: usize,
    /// Bytes of records that brought nothing, less those that did.
    waste: usize,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({:?}, {} held, {} unsent)", self.stage, self.held.len(), self.left())
    }
}

impl Session {
    /// For a client that was accepted. The error is rustls', and comes of no input.
    pub fn new(server: &Server) -> Result<Self, Error> {
        Ok(Self {
            connection: UnbufferedServerConnection::new(server.config())?,
            stage: Stage::Handshake,
            spoke: false,
            closed: false,
            held: Vec::new(),
            unsent: Vec::new(),
            sent: 0,
            owed: 0,
            waste: 0,
        })
    }

    /// Whether the handshake is under way.
    pub fn is_shaking(&self) -> bool {
        self.stage == Stage::Handshake
    }

    /// Whether nothing will come of the client any more.
    pub fn has_ended(&self) -> bool {
        match self.stage {
            Stage::Handshake | Stage::Open => false,
            Stage::Ended | Stage::Failed => true,
        }
    }

    /// Whether there are bytes that the kernel has not taken.
    pub fn is_unsent(&self) -> bool {
        self.left() > 0
    }

    fn left(&self) -> usize {
        self.unsent.len() - self.sent
    }

    /// Takes bytes of the client, decrypts them in place, and appends the plaintext to `plain`.
    /// What it has to say to them is to be flushed. After a failure, too: that is the alert, and
    /// what came before the failure is in `plain`.
    pub fn receive(&mut self, input: &mut [u8], plain: &mut Vec<u8>) -> Result<Progress, Failure> {
        if self.has_ended() {
            return Ok(Progress::default());
        }
        let taken = if self.held.is_empty() {
            let taken = self.process(input, plain);
            if let Ok((used, false)) = taken
                && used < input.len()
            {
                self.held = input[used..].to_vec();
            }
            taken
        } else {
            let mut held = std::mem::take(&mut self.held);
            held.extend_from_slice(input);
            let taken = self.process(&mut held, plain);
            if let Ok((used, false)) = taken
                && used < held.len()
            {
                // What is used gives its room back: the rest is at most a record, mostly.
                self.held = if used > 0 { held[used..].to_vec() } else { held };
            }
            taken
        };
        let (_, ended) = taken.map_err(|error| self.fail(&error))?;
        if self.held.len() > HELD_BYTES_MAX {
            return Err(self.fail(&Error::PeerSentOversizedRecord));
        }
        let shaken = (self.stage == Stage::Handshake && !self.connection.is_handshaking())
            .then(|| self.shaken());
        if ended {
            self.stage = Stage::Ended;
        }
        Ok(Progress { shaken, ended })
    }

    fn shaken(&mut self) -> Shaken {
        self.stage = Stage::Open;
        match self.connection.handshake_kind() {
            Some(HandshakeKind::Resumed) => Shaken::Resumed,
            Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest) | None => {
                Shaken::Full
            }
        }
    }

    /// Bytes used, and whether the client has ended.
    fn process(&mut self, bytes: &mut [u8], plain: &mut Vec<u8>) -> Result<(usize, bool), Error> {
        let is_open = self.stage == Stage::Open;
        let Self { connection, unsent, spoke, waste, .. } = self;
        let (mut used, mut ended) = (0, false);
        loop {
            let UnbufferedStatus { discard, state } =
                connection.process_tls_records(&mut bytes[used..]);
            let mut waits = false;
            match state? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    let (before, mut usual) = (plain.len(), 0);
                    while let Some(record) = traffic.next_record() {
                        plain.extend_from_slice(record?.payload);
                        usual += RECORD_BYTES;
                    }
                    let brought = plain.len() - before;
                    let idle = discard.saturating_sub(brought + usual);
                    *waste = (*waste + idle).saturating_sub(brought);
                    if is_open && *waste > WASTE_BYTES_MAX {
                        return Err(Error::General("records without data".into()));
                    }
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    encode(unsent, |out| data.encode(out));
                    *spoke = true;
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => ended = true,
                // Never offered, so never sent; nothing else is known to this version.
                ConnectionState::ReadEarlyData(_)
                | ConnectionState::Closed
                | ConnectionState::BlockedHandshake
                | ConnectionState::WriteTraffic(_) => waits = true,
                _ => waits = true,
            }
            used += discard;
            if waits {
                return Ok((used, ended));
            }
        }
    }

    /// The end by an error: its alert is left in `unsent`.
    fn fail(&mut self, error: &Error) -> Failure {
        let failure = self.failure(error);
        self.stage = Stage::Failed;
        self.held = Vec::new();
        // What the plaintext was is of no use any more.
        self.owed = 0;
        let Self { connection, unsent, .. } = self;
        if failure == Failure::Name {
            // rustls has access_denied for this, which says something else. All is plaintext yet.
            unsent.extend(plain_alert(UNRECOGNIZED_NAME));
            return failure;
        }
        if !connection.wants_write() && !self.spoke {
            // Some broken hellos have none of rustls'. All is plaintext yet here, too.
            unsent.extend(plain_alert(DECODE_ERROR));
            return failure;
        }
        while connection.wants_write() {
            let UnbufferedStatus { state, .. } = connection.process_tls_records(&mut []);
            let Ok(ConnectionState::EncodeTlsData(mut data)) = state else { break };
            encode(unsent, |out| data.encode(out));
        }
        failure
    }

    fn failure(&self, error: &Error) -> Failure {
        match error {
            Error::InvalidMessage(InvalidMessage::InvalidContentType)
                if self.connection.protocol_version().is_none() =>
            {
                Failure::NotTls
            }
            Error::PeerIncompatible(_) => Failure::Incompatible,
            Error::NoApplicationProtocol => Failure::Protocol,
            Error::InvalidCertificate(_) | Error::NoCertificatesPresented => Failure::Certificate,
            Error::AlertReceived(_) => Failure::Alert,
            // It has no variant of its own; a test holds on to the words.
            Error::General(why) if why == "no server certificate chain resolved" => Failure::Name,
            _ => Failure::Broken,
        }
    }

    /// Sends what is unsent, then as much of `plain` as the kernel takes, encrypted into `scratch`
    /// of [`CIPHER_BYTES_MAX`]. `plain` begins with the first byte that was not reported as sent.
    ///
    /// `send` says how many bytes were taken (fewer than given: no more for now), or that the
    /// connection is gone. So does this, for the bytes of `plain` that may be reported: the last
    /// byte of what was encrypted together only when all of it is sent, those before it as they
    /// move, so that a client that takes a little counts as one that takes.
    pub fn flush(
        &mut self,
        plain: &[u8],
        scratch: &mut [u8],
        mut send: impl FnMut(&[u8]) -> Option<usize>,
    ) -> Option<usize> {
        let mut told = 0;
        loop {
            if self.is_unsent() {
                let taken = send(&self.unsent[self.sent..])?;
                self.sent += taken;
                if self.is_unsent() {
                    let moved = taken.min(self.owed.saturating_sub(1));
                    self.owed -= moved;
                    return Some(told + moved);
                }
                (self.unsent, self.sent) = (Vec::new(), 0);
                told += std::mem::take(&mut self.owed);
            }
            let rest = plain.get(told..).unwrap_or_default();
            let chunk = &rest[..rest.len().min(PLAIN_BYTES_MAX)];
            let says = match self.stage {
                Stage::Open | Stage::Ended => !chunk.is_empty() && !self.closed,
                Stage::Handshake | Stage::Failed => false,
            };
            if !says {
                return Some(told);
            }
            let made = self.encrypt(chunk, scratch)?;
            let taken = send(&scratch[..made])?;
            if taken < made {
                self.unsent = scratch[taken..made].to_vec();
                let moved = taken.min(chunk.len() - 1);
                self.owed = chunk.len() - moved;
                return Some(told + moved);
            }
            told += chunk.len();
        }
    }

    /// `None`: no more can be said under these keys, or at all.
    fn encrypt(&mut self, plain: &[u8], out: &mut [u8]) -> Option<usize> {
        // What is held is no whole record: nothing is done about it here.
        match self.connection.process_tls_records(&mut self.held).state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => traffic.encrypt(plain, out).ok(),
            _ => None,
        }
    }

    /// Makes our close_notify, which goes out behind all else; nothing is said after it. Nothing
    /// to be done if that was said, or cannot be.
    pub fn close(&mut self, scratch: &mut [u8]) {
        // Nothing is reported any more: the engine has nothing that waits, or is done with it.
        self.owed = 0;
        match self.stage {
            Stage::Open | Stage::Ended if !self.closed => {}
            Stage::Handshake | Stage::Open | Stage::Ended | Stage::Failed => return,
        }
        self.closed = true;
        let Self { connection, held, unsent, .. } = self;
        match connection.process_tls_records(held).state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                if let Ok(made) = traffic.queue_close_notify(scratch) {
                    unsent.extend_from_slice(&scratch[..made]);
                }
            }
            // Keys of TLS 1.2 are used up after 2^24 records: rustls has made it already.
            Ok(ConnectionState::EncodeTlsData(mut data)) => encode(unsent, |out| data.encode(out)),
            _ => {}
        }
    }

    /// Bytes of memory that it holds: what rustls has besides its buffers is an average.
    pub fn memory_bytes(&self) -> usize {
        IDLE_BYTES + self.buffered()
    }

    /// Bytes of buffers: none when nothing is under way.
    pub(super) fn buffered(&self) -> usize {
        self.held.capacity() + self.unsent.capacity()
    }
}

/// Appends what `encode` writes, which says how much room it needs.
fn encode(out: &mut Vec<u8>, mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>) {
    let Err(EncodeError::InsufficientSize(needs)) = encode(&mut []) else { return };
    let at = out.len();
    out.resize(at + needs.required_size, 0);
    let made = encode(&mut out[at..]).unwrap_or(0);
    out.truncate(at + made);
}

/// A fatal alert before there are keys: content type 21, version 1.2, two bytes (RFC 8446, 5.1, 6).
fn plain_alert(description: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, description]
}
