//! `shardgate ws-echo`: echoes raw WebSocket messages through the gateway's own handshake and frame
//! codec, so that a conformance suite can be run against them. One thread a connection.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use crate::limits;
use crate::wire::frames::{self, Data, Decoder, Flow, FrameEvent, FrameLimits, OpCode};
use crate::wire::handshake::{self, HandshakeRules, Progress};

/// What conformance suites send: messages of up to 16 MiB; and 4 MiB in fragments of 64 bytes,
/// which are 65,536 and an empty one that ends them (Autobahn 9.3.1, 9.4.1).
const LIMITS: FrameLimits =
    FrameLimits { message_bytes_max: limits::MESSAGE_BYTES_CAP, fragments_max: 65_536 + 1 };

/// Serves until the process is ended. Says on stdout where it listens.
pub fn serve(listen: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(listen)?;
    println!("shardgate ws-echo ready: ws://{}/", listener.local_addr()?);
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::Builder::new().name("echo".into()).spawn(move || {
            // A client that goes away is no news.
            let _ = converse(stream);
        })?;
    }
    Ok(())
}

fn converse(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut scratch = vec![0; limits::READ_SCRATCH_BYTES];
    let Some(mut early) = shake_hands(&mut stream, &mut scratch)? else { return Ok(()) };
    let mut decoder = Decoder::default();
    let mut out = Vec::new();
    let mut closed = echo(&mut decoder, &mut early, &mut out);
    loop {
        stream.write_all(&out)?;
        out.clear();
        if closed {
            stream.shutdown(Shutdown::Write)?;
            while stream.read(&mut scratch)? > 0 {}
            return Ok(());
        }
        match stream.read(&mut scratch)? {
            0 => return Ok(()),
            n => closed = echo(&mut decoder, &mut scratch[..n], &mut out),
        }
    }
}

/// The upgrade; gives what came after the request, or nothing if it was refused.
fn shake_hands(stream: &mut TcpStream, scratch: &mut [u8]) -> io::Result<Option<Vec<u8>>> {
    let rules = HandshakeRules { path: "/".into(), origins: Vec::new(), subprotocols: false };
    let mut request = Vec::new();
    let mut scanned = 0;
    loop {
        let n = stream.read(scratch)?;
        request.extend_from_slice(&scratch[..n]);
        match handshake::try_upgrade(&rules, &request, &mut scanned) {
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

/// Answers what `input` holds. True: the last thing is said.
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
