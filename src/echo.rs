//! `shardgate ws-echo`: echoes raw WebSocket messages through the gateway's own handshake and frame
//! codec, and through TLS on request, so that a conformance suite can be run against them. One
//! thread a connection.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::clock::unix_now_s;
use crate::config::settings::{ClientCertificates, ConnSettings, TlsVersion};
use crate::limits;
use crate::tls::certificate::{BadCertificate, Certificate};
use crate::tls::provider;
use crate::tls::server::{ClientAuth, Server};
use crate::tls::session::{CIPHER_BYTES_MAX, Session};
use crate::wire::frames::{self, Data, Decoder, Flow, FrameEvent, FrameLimits, OpCode};
use crate::wire::handshake::{self, HandshakeRules, HeaderLimits, Progress};

/// Limits for conformance suites: messages of up to 16 MiB; and 4 MiB in fragments of 64 bytes,
/// which are 65,536 and an empty one that ends them (Autobahn 9.3.1, 9.4.1).
const LIMITS: FrameLimits =
    FrameLimits { message_bytes_max: limits::MESSAGE_BYTES_CAP, fragments_max: 65_536 + 1 };

/// Serves until the process is ended, with TLS if `tls` names a certificate chain and its key.
/// Prints the address on stdout.
pub fn serve(listen: SocketAddr, tls: Option<&(PathBuf, PathBuf)>) -> io::Result<()> {
    let server = tls.map(|(chain, key)| server(chain, key)).transpose()?.map(Arc::new);
    let listener = TcpListener::bind(listen)?;
    let scheme = if server.is_some() { "wss" } else { "ws" };
    println!("shardgate ws-echo ready: {scheme}://{}/", listener.local_addr()?);
    for stream in listener.incoming() {
        let stream = stream?;
        let server = server.clone();
        std::thread::Builder::new().name("echo".into()).spawn(move || {
            // An error is the end of a client, which is not reported.
            let _ = Wire::new(stream, server.as_deref()).and_then(converse);
        })?;
    }
    Ok(())
}

fn server(chain: &Path, key: &Path) -> io::Result<Server> {
    let (chain, key) = (std::fs::read(chain)?, std::fs::read(key)?);
    let wrong = |bad| match bad {
        BadCertificate::Chain(rule) => io::Error::other(format!("--tls-cert {rule}")),
        BadCertificate::Key(rule) => io::Error::other(format!("--tls-key {rule}")),
    };
    let certificate = Certificate::new(&provider(), &chain, &key, unix_now_s()).map_err(wrong)?;
    let nobody = ClientAuth { asked: ClientCertificates::Off, signers: Vec::new() };
    Server::new(TlsVersion::V12, &[certificate], nobody, None).map_err(io::Error::other)
}

/// A client's byte stream, plain or through TLS.
struct Wire {
    stream: TcpStream,
    tls: Option<Tls>,
}

struct Tls {
    session: Session,
    /// Bytes from the client, before and after decryption.
    input: Vec<u8>,
    plain: Vec<u8>,
    cipher: Vec<u8>,
}

impl Wire {
    fn new(stream: TcpStream, server: Option<&Server>) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let session = server.map(Session::new).transpose().map_err(io::Error::other)?;
        let tls = session.map(|session| Tls {
            session,
            input: vec![0; limits::READ_SCRATCH_BYTES],
            plain: Vec::new(),
            cipher: vec![0; CIPHER_BYTES_MAX],
        });
        Ok(Self { stream, tls })
    }

    /// Reads into `out`, which is longer than one read returns; 0 is the end.
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while let Some(tls) = &mut self.tls {
            if !tls.plain.is_empty() {
                let n = out.len().min(tls.plain.len());
                out[..n].copy_from_slice(&tls.plain[..n]);
                tls.plain.drain(..n);
                return Ok(n);
            }
            let n = match tls.session.has_ended() {
                true => 0,
                false => self.stream.read(&mut tls.input)?,
            };
            if n == 0 {
                return Ok(0);
            }
            let received = tls.session.receive(&mut tls.input[..n], &mut tls.plain);
            self.write_all(&[])?;
            received.map_err(|failure| io::Error::other(format!("{failure:?}")))?;
        }
        self.stream.read(out)
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let Self { stream, tls } = self;
        let Some(tls) = tls else { return stream.write_all(bytes) };
        loop {
            let send = |out: &[u8]| stream.write_all(out).ok().map(|()| out.len());
            let sent = tls.session.flush(bytes, &mut tls.cipher, send);
            let sent = sent.ok_or(io::ErrorKind::BrokenPipe)?;
            bytes = &bytes[sent..];
            if bytes.is_empty() || sent == 0 {
                return Ok(());
            }
        }
    }

    /// Ends the sending direction.
    fn shut(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.session.close(&mut tls.cipher);
            self.write_all(&[])?;
        }
        self.stream.shutdown(Shutdown::Write)
    }
}

fn converse(mut wire: Wire) -> io::Result<()> {
    let mut scratch = vec![0; limits::READ_SCRATCH_BYTES];
    let Some(mut early) = shake_hands(&mut wire, &mut scratch)? else { return Ok(()) };
    let mut decoder = Decoder::default();
    let mut out = Vec::new();
    let mut closed = echo(&mut decoder, &mut early, &mut out);
    loop {
        wire.write_all(&out)?;
        out.clear();
        if closed {
            wire.shut()?;
            while wire.read(&mut scratch)? > 0 {}
            return Ok(());
        }
        match wire.read(&mut scratch)? {
            0 => return Ok(()),
            n => closed = echo(&mut decoder, &mut scratch[..n], &mut out),
        }
    }
}

/// Performs the upgrade; returns the bytes after the request, or `None` if it was refused.
fn shake_hands(stream: &mut Wire, scratch: &mut [u8]) -> io::Result<Option<Vec<u8>>> {
    let ConnSettings { header_bytes_max, headers_max, .. } = ConnSettings::default();
    let rules = HandshakeRules {
        path: "/".into(),
        origins: Vec::new(),
        admin_pages: None,
        tenant_origins: Vec::new(),
        subprotocols: false,
        limits: HeaderLimits { header_bytes_max, headers_max },
    };
    let mut request = Vec::new();
    let mut scanned = 0;
    loop {
        let n = stream.read(scratch)?;
        request.extend_from_slice(&scratch[..n]);
        match handshake::try_upgrade(&rules, None, &request, &mut scanned) {
            Progress::Partial if n == 0 => return Ok(None),
            Progress::Partial => {}
            Progress::Upgrade { consumed, response, .. } => {
                stream.write_all(&response)?;
                return Ok(Some(request.split_off(consumed)));
            }
            Progress::Refuse { response, .. } => {
                stream.write_all(&response)?;
                return Ok(None);
            }
        }
    }
}

/// Answers the frames in `input`; true after the last answer.
fn echo(decoder: &mut Decoder, input: &mut [u8], out: &mut Vec<u8>) -> bool {
    let fed = decoder.feed(&LIMITS, input, |event| {
        match event {
            FrameEvent::Text(text) => write(out, Data::Text, text.as_bytes()),
            FrameEvent::Binary(bytes) => write(out, Data::Binary, bytes),
            FrameEvent::Ping(payload) => frames::write_pong(out, payload),
            FrameEvent::Pong => {}
            FrameEvent::Close { code } => frames::write_close(out, code, ""),
        }
        Flow::Continue
    });
    if let Err(error) = fed {
        frames::write_close(out, Some(error.close_code()), error.text());
    }
    decoder.ended()
}

fn write(out: &mut Vec<u8>, kind: Data, payload: &[u8]) {
    frames::write_frame_header(out, OpCode::Data(kind), payload.len());
    out.extend_from_slice(payload);
}
