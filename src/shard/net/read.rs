//! Reading: which connections in which order, for how long, and what their bytes come to.

use crate::engine::Engine;
use crate::engine::conns::ReadNext;
use crate::ids::ConnId;
use crate::limits;
use crate::message::Micros;
use crate::shard::net::Net;
use crate::shard::sockets::IoResult;
use crate::shard::transport::Received;
use crate::stats::Counter;
use crate::tls::session::{Failure, Progress, Shaken};

/// A turn this long gives no client a second read: the others have had to wait for long enough. A
/// buffer of 26-byte messages takes about half of it.
const CONN_READ_US_MAX: u64 = 1_000;
/// All reading of a turn, about: a tick of 10 ms is then some five turns, and not one.
const READ_US_MAX: u64 = 2_000;
/// TLS handshakes get this much of a turn, and one of them in any case: one costs some 250 us with
/// ECDSA (`crowd storm`: 1.6 s for 5,000, with all else that a newcomer costs), so mostly one or
/// two. When everybody comes back at once those who are here already shall not wait for more.
const HANDSHAKES_US_MAX: u64 = 250;

/// The result of one read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ReadOnce {
    /// There may be more to read.
    Again,
    /// The socket is empty, or the engine wants no more for now.
    Enough,
    /// The client's side has ended.
    Closed,
}

impl Net {
    /// Reads the listed connections, but for those with a TLS handshake.
    pub(super) fn read_all(&mut self, now: Micros) {
        if self.to_read.is_empty() {
            return;
        }
        std::mem::swap(&mut self.reading, &mut self.to_read);
        let mut reading = std::mem::take(&mut self.reading);
        let mut left = reading.drain(..);
        for (count, id) in left.by_ref().enumerate() {
            self.read(id, now);
            // Answers wait for the end of the turn: a thousand who all leave, or all sign in, are
            // read in several. The clock is looked at now and then, it costs as much as a message.
            if count % 32 == 31 && self.shell.now().since(now) > READ_US_MAX {
                break;
            }
        }
        if left.len() > 0 {
            // Those who have waited come before those who have more.
            let again = std::mem::take(&mut self.to_read);
            self.to_read.extend(left.by_ref().chain(again));
        }
        drop(left);
        self.reading = reading;
        let us = self.shell.now().since(now);
        self.shell.enter(|engine| engine.record_decode(us));
    }

    /// Reads connections whose TLS handshake is under way, after all others.
    pub(super) fn read_handshakes(&mut self) {
        if self.to_handshake.is_empty() {
            return;
        }
        let mut waiting = std::mem::take(&mut self.to_handshake);
        let began = self.shell.now();
        let mut done = 0;
        for &id in &waiting {
            let now = self.shell.now();
            if done > 0 && now.since(began) >= HANDSHAKES_US_MAX {
                break;
            }
            self.read(id, now);
            done += 1;
        }
        waiting.drain(..done);
        // Those that came back meanwhile are behind those that have waited.
        waiting.append(&mut self.to_handshake);
        self.to_handshake = waiting;
    }

    /// Reads one connection as long as it has its share of the turn.
    fn read(&mut self, id: ConnId, now: Micros) {
        let Some(socket) = self.sockets.get(id) else { return };
        socket.is_listed = false;
        if self.shell.enter(|engine| engine.is_paused(id)) {
            return;
        }
        for _ in 0..limits::READS_PER_TURN_MAX {
            match self.read_once(id, now) {
                ReadOnce::Again => {}
                ReadOnce::Enough => return,
                ReadOnce::Closed => {
                    if self.shell.enter(|engine| engine.on_end(id)) {
                        self.close(id);
                    }
                    return;
                }
            }
            // Only a client that fills the buffer comes here: the clock is not read for the
            // others. Small frames cost far more than their bytes.
            if self.shell.now().since(now) > CONN_READ_US_MAX {
                break;
            }
        }
        self.list(id);
    }

    /// Receives once, and hands what comes out of the transport to the engine.
    fn read_once(&mut self, id: ConnId, now: Micros) -> ReadOnce {
        let Self { sockets, shell, scratch, plain, dirty, .. } = self;
        let Some(socket) = sockets.get(id) else { return ReadOnce::Enough };
        if socket.transport.has_ended() {
            return ReadOnce::Closed;
        }
        let mut input = match socket.receive(scratch) {
            IoResult::Bytes(n) => &mut scratch[..n],
            IoResult::WouldBlock => return ReadOnce::Enough,
            IoResult::Closed => {
                if socket.transport.is_handshaking() {
                    shell.enter(|engine| engine.count(Counter::TlsAbandoned, 1));
                }
                return ReadOnce::Closed;
            }
        };
        let next = loop {
            match socket.transport.receive(input, plain) {
                Received::Plain(bytes) => {
                    break shell.enter(|engine| engine.on_bytes(id, bytes, now));
                }
                Received::PartialHeader | Received::Ignored => break ReadNext::More,
                Received::Header { used, client } => {
                    input = &mut input[used..];
                    // The balancer's own connections, its health checks, count for nobody.
                    let goes_on = client.is_none_or(|client| {
                        shell.enter(|engine| engine.introduce(id, client, now))
                    });
                    if !goes_on || input.is_empty() {
                        break ReadNext::More;
                    }
                }
                Received::HeaderRefused { why } => {
                    tracing::debug!(why, "proxy_refused");
                    shell.enter(|engine| {
                        engine.count(Counter::ProxyRefused, 1);
                        engine.break_off(id, now);
                    });
                    break ReadNext::More;
                }
                Received::Tls { plain, result } => {
                    if socket.transport.has_unsent() {
                        dirty.push(id);
                    }
                    if result.is_ok_and(|progress| progress.ended) {
                        // No edge will tell of it.
                        socket.set_readable();
                    }
                    break shell.enter(|engine| on_records(engine, id, plain, result, now));
                }
            }
        };
        match next == ReadNext::Pause || !socket.is_readable() {
            true => ReadOnce::Enough,
            false => ReadOnce::Again,
        }
    }

    /// Puts a connection that may have something to read on its list.
    pub(super) fn list(&mut self, id: ConnId) {
        let Some(socket) = self.sockets.get(id) else { return };
        if socket.is_listed || !socket.is_readable() {
            return;
        }
        socket.is_listed = true;
        match socket.transport.is_handshaking() {
            true => self.to_handshake.push(id),
            false => self.to_read.push(id),
        }
    }
}

/// TLS records of a connection were received: `plain` is their plaintext.
fn on_records(
    engine: &mut Engine,
    id: ConnId,
    plain: &mut [u8],
    result: Result<Progress, Failure>,
    now: Micros,
) -> ReadNext {
    let next = match plain.is_empty() {
        true => ReadNext::More,
        false => engine.on_bytes(id, plain, now),
    };
    match result {
        Ok(progress) => {
            match progress.shaken {
                None => {}
                Some(Shaken::Full) => engine.count(Counter::TlsHandshakes, 1),
                Some(Shaken::Resumed) => engine.count(Counter::TlsResumed, 1),
            }
            next
        }
        Err(failure) => {
            tracing::debug!(?failure, "tls_failed");
            engine.count(counter(failure), 1);
            engine.break_off(id, now);
            ReadNext::More
        }
    }
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
