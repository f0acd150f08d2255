//! TLS of one client, as bytes in and bytes out: rustls' unbuffered connection, and the buffers
//! that it leaves to its owner: bytes of an incomplete record, and bytes that the kernel did not
//! take. Both are freed when nothing is under way.

use std::fmt;

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{Error, HandshakeKind, InvalidMessage};

use super::server::Server;

/// Bytes of a record besides its data: header 5, tag 16, type 1 (1.3) or nonce 8 (1.2), and some
/// for padding.
const RECORD_BYTES: usize = 48;
/// Budget for bytes of records that carry no data (mostly key updates) beyond those that do: 64
/// KiB, 2,400 updates of 27 bytes. An update costs as much CPU as many messages, and no rate limits
/// it.
const WASTE_BYTES_MAX: usize = 64 << 10;
/// Bytes of an idle session: 2.3 KB in Rust, counted by a test. With the keys' memory in C and the
/// allocator's rounding a process grows by this much a connection (measured by `crowd idle tls`).
pub(crate) const IDLE_BYTES: usize = 3_600;
/// Most bytes of an incomplete record, or of a handshake message in several records: a record has
/// 16 KiB + 261 at most (RFC 8446, 5.2); a ClientHello with all usual extensions has 2 KiB, a
/// client's certificates some 10.
pub(crate) const HELD_BYTES_MAX: usize = 32 << 10;
/// Most plaintext that is encrypted at once: four of the largest records.
pub const PLAIN_BYTES_MAX: usize = 64 << 10;
/// Most bytes of [`PLAIN_BYTES_MAX`] when encrypted: a record adds 29 bytes at most (TLS 1.2 with
/// AES-GCM: 5 of header, 8 of nonce, 16 of tag); a key update before them has 27, and a
/// close_notify comes on top.
pub const CIPHER_BYTES_MAX: usize = PLAIN_BYTES_MAX + 512;
/// `unrecognized_name` (RFC 6066, 3), fatal.
const UNRECOGNIZED_NAME: u8 = 112;
/// `decode_error` (RFC 8446, 6.2), fatal.
const DECODE_ERROR: u8 = 50;

/// Stage of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// The handshake is not complete: no plaintext can be sent.
    Handshake,
    /// Plaintext goes both ways.
    Open,
    /// The client ended its direction (close_notify); ours may go on.
    Ended,
    /// The session failed. The unsent bytes are the alert.
    Failed,
}

/// Kind of a completed handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handshake {
    /// A full handshake, with certificates and signatures.
    Full,
    /// A resumption by a ticket of an earlier handshake.
    Resumed,
}

/// Result of received bytes, besides plaintext.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Kind of the handshake, if these bytes completed it.
    pub(crate) handshake: Option<Handshake>,
    /// Number of records with data.
    pub(crate) records: u32,
    /// Whether the client ended its direction.
    pub(crate) ended: bool,
}

/// Reason for the failure of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The bytes are not TLS.
    NotTls,
    /// No version, cipher suite or group is common.
    Incompatible,
    /// No certificate covers the name that the client asked for.
    Name,
    /// The client offers protocols, and HTTP/1.1 is not among them.
    Protocol,
    /// The client's certificate is missing or not valid.
    Certificate,
    /// The client sent an alert: mostly because it does not trust the gateway's certificate.
    Alert,
    /// The client broke the rules of TLS.
    Broken,
}

impl Failure {
    /// The reason as the log tells it.
    pub fn text(self) -> &'static str {
        match self {
            Self::NotTls => "the client does not speak TLS",
            Self::Incompatible => "no version, cipher suite or group is common",
            Self::Name => "no [[tls_certificate]] covers the name that the client asks for",
            Self::Protocol => "the client offers protocols, and HTTP/1.1 is not among them",
            Self::Certificate => "the client's certificate is missing or not valid",
            Self::Alert => "the client ended it: mostly it does not trust the certificate",
            Self::Broken => "the client broke the rules of TLS",
        }
    }
}

/// The TLS session of one client.
pub struct Session {
    connection: UnbufferedServerConnection,
    stage: Stage,
    /// Whether any byte for the client was made.
    has_output: bool,
    /// Whether our close_notify was made.
    closed: bool,
    /// Bytes of the client that are no whole record yet.
    held: Vec<u8>,
    /// Bytes for the client, of which the kernel took the first `sent`.
    unsent: Vec<u8>,
    sent: usize,
    /// Bytes of plaintext in `unsent` that were not reported as sent.
    owed: usize,
    /// Bytes of records without data, less those with data.
    waste: usize,
}

/// Result of records that were processed.
#[derive(Clone, Copy, Default)]
struct Processed {
    /// Bytes of the input that were used.
    used: usize,
    /// Whether the client ended its direction.
    ended: bool,
    /// Number of records with data.
    records: u32,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({:?}, {} held, {} unsent)", self.stage, self.held.len(), self.left())
    }
}

impl Session {
    /// A session for a client that was accepted. The error is rustls', and depends on no input.
    pub fn new(server: &Server) -> Result<Self, Error> {
        Ok(Self {
            connection: UnbufferedServerConnection::new(server.config())?,
            stage: Stage::Handshake,
            has_output: false,
            closed: false,
            held: Vec::new(),
            unsent: Vec::new(),
            sent: 0,
            owed: 0,
            waste: 0,
        })
    }

    /// Whether the handshake is under way.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.stage == Stage::Handshake
    }

    /// Whether no more bytes of the client are accepted.
    pub(crate) fn has_ended(&self) -> bool {
        match self.stage {
            Stage::Handshake | Stage::Open => false,
            Stage::Ended | Stage::Failed => true,
        }
    }

    /// Whether our close_notify was made: nothing more is said, and nothing heard.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether there are bytes that the kernel has not taken.
    pub(crate) fn is_unsent(&self) -> bool {
        self.left() > 0
    }

    fn left(&self) -> usize {
        self.unsent.len() - self.sent
    }

    /// Takes bytes of the client, decrypts them in place, and appends the plaintext to `plain`. Its
    /// answer, if it has one, is to be flushed. So is the alert after a failure; the plaintext from
    /// before the failure is in `plain`. Bytes that come after our close_notify are not looked at:
    /// nothing depends on them, and rustls must not be given a record to fail at when it has said
    /// its last word (a debug assertion of its own says so).
    pub fn receive(&mut self, input: &mut [u8], plain: &mut Vec<u8>) -> Result<Progress, Failure> {
        if self.has_ended() || self.closed {
            return Ok(Progress::default());
        }
        let taken = if self.held.is_empty() {
            let taken = self.process(input, plain);
            if let Ok(Processed { used, ended: false, .. }) = taken
                && used < input.len()
            {
                self.held = input[used..].to_vec();
            }
            taken
        } else {
            let mut held = std::mem::take(&mut self.held);
            held.extend_from_slice(input);
            let taken = self.process(&mut held, plain);
            if let Ok(Processed { used, ended: false, .. }) = taken
                && used < held.len()
            {
                // The used part is freed: the rest is at most a record, mostly.
                self.held = if used > 0 { held[used..].to_vec() } else { held };
            }
            taken
        };
        let Processed { ended, records, .. } = taken.map_err(|error| self.fail(&error))?;
        if self.held.len() > HELD_BYTES_MAX {
            return Err(self.fail(&Error::PeerSentOversizedRecord));
        }
        let handshake = (self.stage == Stage::Handshake && !self.connection.is_handshaking())
            .then(|| self.complete_handshake());
        if ended {
            self.stage = Stage::Ended;
        }
        Ok(Progress { handshake, records, ended })
    }

    fn complete_handshake(&mut self) -> Handshake {
        self.stage = Stage::Open;
        match self.connection.handshake_kind() {
            Some(HandshakeKind::Resumed) => Handshake::Resumed,
            Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest) | None => {
                Handshake::Full
            }
        }
    }

    /// Processes records.
    fn process(&mut self, bytes: &mut [u8], plain: &mut Vec<u8>) -> Result<Processed, Error> {
        let is_open = self.stage == Stage::Open;
        let Self { connection, unsent, has_output, waste, .. } = self;
        let Processed { mut used, mut ended, mut records } = Processed::default();
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
                        records += 1;
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
                    *has_output = true;
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => ended = true,
                // Early data is never offered, so it never comes; the other states wait for bytes
                // or for plaintext. rustls may add states, hence the last arm.
                ConnectionState::ReadEarlyData(_)
                | ConnectionState::Closed
                | ConnectionState::BlockedHandshake
                | ConnectionState::WriteTraffic(_) => waits = true,
                _ => waits = true,
            }
            used += discard;
            if waits {
                return Ok(Processed { used, ended, records });
            }
        }
    }

    /// Ends the session by an error: its alert is left in `unsent`.
    fn fail(&mut self, error: &Error) -> Failure {
        let failure = self.failure(error);
        self.stage = Stage::Failed;
        self.held = Vec::new();
        // The plaintext counts no longer.
        self.owed = 0;
        let Self { connection, unsent, .. } = self;
        if failure == Failure::Name {
            // rustls sends access_denied for this, which means something else. No keys are in use
            // yet.
            unsent.extend(plain_alert(UNRECOGNIZED_NAME));
            return failure;
        }
        if !connection.wants_write() && !self.has_output {
            // For some broken hellos rustls has no alert. No keys are in use yet here, too.
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
            // This error has no variant of its own; a test checks its text.
            Error::General(why) if why == "no server certificate chain resolved" => Failure::Name,
            _ => Failure::Broken,
        }
    }

    /// Sends the unsent bytes, then as much of `plain` as the kernel takes, encrypted into
    /// `scratch` of [`CIPHER_BYTES_MAX`]. `plain` begins with the first byte that was not reported
    /// as sent.
    ///
    /// `send` returns how many bytes were taken (fewer than given: no more for now), or `None` if
    /// the connection is gone. So does this function, for the bytes of `plain` that count as sent:
    /// the last byte of those encrypted together only when all of them are sent, the bytes before
    /// it as they are taken, so that a client that reads slowly counts as one that reads.
    pub fn flush(
        &mut self,
        plain: &[u8],
        scratch: &mut [u8],
        mut send: impl FnMut(&[u8]) -> Option<usize>,
    ) -> Option<usize> {
        let mut reported = 0;
        loop {
            if self.is_unsent() {
                let taken = send(&self.unsent[self.sent..])?;
                self.sent += taken;
                if self.is_unsent() {
                    let moved = taken.min(self.owed.saturating_sub(1));
                    self.owed -= moved;
                    return Some(reported + moved);
                }
                (self.unsent, self.sent) = (Vec::new(), 0);
                reported += std::mem::take(&mut self.owed);
            }
            let rest = plain.get(reported..).unwrap_or_default();
            let chunk = &rest[..rest.len().min(PLAIN_BYTES_MAX)];
            let may_send = match self.stage {
                Stage::Open | Stage::Ended => !chunk.is_empty() && !self.closed,
                Stage::Handshake | Stage::Failed => false,
            };
            if !may_send {
                return Some(reported);
            }
            let made = self.encrypt(chunk, scratch)?;
            let taken = send(&scratch[..made])?;
            if taken < made {
                self.unsent = scratch[taken..made].to_vec();
                let moved = taken.min(chunk.len() - 1);
                self.owed = chunk.len() - moved;
                return Some(reported + moved);
            }
            reported += chunk.len();
        }
    }

    /// Encrypts `plain` into `out`; `None` = no more can be sent under these keys, or at all.
    fn encrypt(&mut self, plain: &[u8], out: &mut [u8]) -> Option<usize> {
        // The held bytes are no whole record, so nothing is done about them here.
        match self.connection.process_tls_records(&mut self.held).state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => traffic.encrypt(plain, out).ok(),
            _ => None,
        }
    }

    /// Makes our close_notify, which is sent after all other bytes; no plaintext is sent after it.
    /// Does nothing if it was made already, or cannot be made.
    pub(crate) fn close(&mut self, scratch: &mut [u8]) {
        // No more bytes are reported as sent: the engine has none that wait, or is done with the
        // connection.
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
            // Keys of TLS 1.2 are used up after 2^24 records: then rustls made a close_notify
            // already.
            Ok(ConnectionState::EncodeTlsData(mut data)) => encode(unsent, |out| data.encode(out)),
            _ => {}
        }
    }

    /// Bytes of memory of the session. The part of rustls besides its buffers is an average.
    pub(crate) fn memory_bytes(&self) -> usize {
        IDLE_BYTES + self.buffered()
    }

    /// Bytes of buffers: none when nothing is under way.
    pub(super) fn buffered(&self) -> usize {
        self.held.capacity() + self.unsent.capacity()
    }
}

/// Appends the output of `encode`, which first says how much room it needs.
fn encode(out: &mut Vec<u8>, mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>) {
    let Err(EncodeError::InsufficientSize(needs)) = encode(&mut []) else { return };
    let at = out.len();
    out.resize(at + needs.required_size, 0);
    let made = encode(&mut out[at..]).unwrap_or(0);
    out.truncate(at + made);
}

/// A fatal alert without encryption: content type 21, version 1.2, two bytes (RFC 8446, 5.1, 6).
fn plain_alert(description: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, description]
}
