//! Connections with something between the socket and the engine: read through it, written through
//! it, ended through it. The engine sees plaintext, and what of it is sent.

use crate::engine::clients::conn::{Fate, ReadNext};
use crate::ids::ConnId;
use crate::limits;
use crate::message::Micros;
use crate::shard::layers::Headed;
use crate::shard::net::{Net, READING_US_MAX};
use crate::shard::sockets::{Moved, Socket};
use crate::stats::Counter;
use crate::tls::session::{Failure, Shaken};

/// Handshakes of TLS get this much of a turn, and one of them in any case: one costs some 250 us
/// with ECDSA (`crowd storm`: 1.6 s for 5,000, with all else that a newcomer costs), so mostly one
/// or two. When everybody comes back at once those who are here already shall not wait for more.
const HANDSHAKING_US_MAX: u64 = 250;

impl Net {
    /// Reads those whose handshakes are under way, after all others.
    pub(super) fn shake_hands(&mut self) {
        if self.to_shake.is_empty() {
            return;
        }
        let mut waiting = std::mem::take(&mut self.to_shake);
        let began = self.shell.now();
        let mut done = 0;
        for &id in &waiting {
            let now = self.shell.now();
            if done > 0 && now.since(began) >= HANDSHAKING_US_MAX {
                break;
            }
            self.read(id, now);
            done += 1;
        }
        waiting.drain(..done);
        // Those that came back meanwhile are behind those that have waited.
        waiting.append(&mut self.to_shake);
        self.to_shake = waiting;
    }

    /// [`Self::read`] of such a connection.
    pub(super) fn read_layered(&mut self, id: ConnId, now: Micros) {
        for _ in 0..limits::READS_PER_TURN_MAX {
            let Some(socket) = self.sockets.get(id) else { return };
            let Some(layers) = &socket.layers else { break };
            if layers.has_ended() {
                self.at_end(id);
                return;
            }
            let shaking = layers.is_shaking();
            match socket.receive(&mut self.scratch) {
                Moved::Bytes(n) => {
                    if self.unwrap(id, n, now) == ReadNext::Pause {
                        return;
                    }
                    let Some(socket) = self.sockets.get(id) else { return };
                    if !socket.readable {
                        return;
                    }
                    if self.shell.now().since(now) > READING_US_MAX {
                        break;
                    }
                }
                Moved::Later => return,
                Moved::Ended => {
                    if shaking {
                        self.shell.enter(|engine| engine.count(Counter::TlsAbandoned, 1));
                    }
                    self.at_end(id);
                    return;
                }
            }
        }
        self.list(id);
    }

    /// Nothing will come of the client any more.
    fn at_end(&mut self, id: ConnId) {
        if self.shell.enter(|engine| engine.on_end(id)) {
            self.close(id);
        }
    }

    /// The first `n` bytes of the scratch buffer were received.
    fn unwrap(&mut self, id: ConnId, n: usize, now: Micros) -> ReadNext {
        let Self { sockets, shell, scratch, plain, dirty, .. } = self;
        let Some(socket) = sockets.get(id) else { return ReadNext::Pause };
        let Some(layers) = &mut socket.layers else { return ReadNext::Pause };
        let mut input = &mut scratch[..n];
        match layers.head(input) {
            Headed::Nothing => {}
            Headed::Waits | Headed::Ignored => return ReadNext::More,
            Headed::Through { used, peer } => {
                input = &mut input[used..];
                // The balancer's own connections, its health checks, count for nobody.
                if let Some(peer) = peer
                    && !shell.enter(|engine| engine.introduce(id, peer, now))
                {
                    return ReadNext::More;
                }
            }
            Headed::Refused { why } => {
                tracing::debug!(why, "proxy_refused");
                shell.enter(|engine| {
                    engine.count(Counter::ProxyRefused, 1);
                    engine.break_off(id, now);
                });
                return ReadNext::More;
            }
        }
        let Some(session) = &mut layers.tls else {
            if layers.is_through() {
                socket.layers = None;
            }
            return match input.is_empty() {
                true => ReadNext::More,
                false => shell.enter(|engine| engine.on_bytes(id, input, now)),
            };
        };
        plain.clear();
        let received = session.receive(input, plain);
        if session.is_unsent() {
            dirty.push(id);
        }
        shell.enter(|engine| {
            let next = match plain.is_empty() {
                true => ReadNext::More,
                false => engine.on_bytes(id, plain, now),
            };
            match received {
                Ok(progress) => {
                    match progress.shaken {
                        None => {}
                        Some(Shaken::Full) => engine.count(Counter::TlsHandshakes, 1),
                        Some(Shaken::Resumed) => engine.count(Counter::TlsResumed, 1),
                    }
                    // No edge will tell of it.
                    socket.readable |= progress.ended;
                    next
                }
                Err(failure) => {
                    tracing::debug!(?failure, "tls_failed");
                    engine.count(counter(failure), 1);
                    engine.break_off(id, now);
                    ReadNext::More
                }
            }
        })
    }

    /// [`Self::flush`] of such a connection.
    pub(super) fn flush_layered(&mut self, id: ConnId, now: Micros) {
        let Self { sockets, shell, cipher, .. } = self;
        let Some(socket) = sockets.get(id) else { return };
        let fate = shell.enter(|engine| match seal(socket, engine.outbox(id), cipher) {
            Moved::Bytes(n) => engine.on_sent(id, n, now),
            Moved::Later => engine.on_sent(id, 0, now),
            Moved::Ended => Fate::Close,
        });
        match fate {
            Fate::Keep => {}
            Fate::ShutWrite => {
                // With the kernel full the last words wait for room, and this comes again.
                if say_goodbye(socket, cipher) {
                    socket.shut_write();
                }
            }
            Fate::Close => self.close(id),
        }
    }

    /// Puts a connection with more to read on its list.
    pub(super) fn list(&mut self, id: ConnId) {
        let Some(socket) = self.sockets.get(id) else { return };
        socket.listed = true;
        match socket.layers.as_ref().is_some_and(|layers| layers.is_shaking()) {
            true => self.to_shake.push(id),
            false => self.to_read.push(id),
        }
    }
}

/// Sends `bytes`, through TLS if that is spoken: so many of them may be reported as sent. Before
/// the handshake is complete nothing can be said, so having something to say is the end.
fn seal(socket: &mut Socket, bytes: &[u8], cipher: &mut [u8]) -> Moved {
    let Some(mut layers) = socket.layers.take() else { return socket.send(bytes) };
    let moved = match &mut layers.tls {
        Some(session) if session.is_shaking() && !bytes.is_empty() => Moved::Ended,
        _ if !socket.writable => Moved::Later,
        Some(session) => {
            let sent = session.flush(bytes, cipher, |out| taken(socket.send(out)));
            sent.map_or(Moved::Ended, Moved::Bytes)
        }
        None if bytes.is_empty() => Moved::Later,
        None => socket.send(bytes),
    };
    socket.layers = Some(layers);
    moved
}

fn taken(moved: Moved) -> Option<usize> {
    match moved {
        Moved::Bytes(n) => Some(n),
        Moved::Later => Some(0),
        Moved::Ended => None,
    }
}

/// Sends close_notify, which tells an end from a cut (RFC 8446, 6.1). Whether nothing is left to be
/// sent.
pub(super) fn say_goodbye(socket: &mut Socket, cipher: &mut [u8]) -> bool {
    if let Some(session) = socket.layers.as_mut().and_then(|layers| layers.tls.as_mut()) {
        session.close(cipher);
        if seal(socket, &[], cipher) == Moved::Ended {
            return true;
        }
    }
    let tls = socket.layers.as_ref().and_then(|layers| layers.tls.as_ref());
    !tls.is_some_and(|session| session.is_unsent())
}

fn counter(failure: Failure) -> Counter {
    match failure {
        Failure::NotTls => Counter::TlsFailedNotTls,
        Failure::Incompatible => Counter::TlsFailedIncompatible,
        Failure::Name => Counter::TlsFailedName,
        Failure::Protocol => Counter::TlsFailedProtocol,
        Failure::Certificate => Counter::TlsFailedCertificate,
        Failure::Alert => Counter::TlsFailedAlert,
        Failure::Broken => Counter::TlsFailedBroken,
    }
}
