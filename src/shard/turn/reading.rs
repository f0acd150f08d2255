//! Reading: the order of connections, and how long each may take.

use crate::ids::ConnId;
use crate::limits;
use crate::message::Micros;
use crate::readiness::Ready;
use crate::shard::turn::{Input, ReadOnce, ShardIo, close};

/// Length of a turn from which on no client gets a second read: the others have had to wait for
/// long enough. A buffer of 26-byte messages takes about half of it.
const CONN_READ_US_MAX: u64 = 1_000;
/// Time for all reading of a turn, about: a tick of 10 ms is then some five turns, and not one.
const READ_US_MAX: u64 = 2_000;
/// Time for TLS handshakes in a turn, though one of them is read in any case. A handshake costs
/// some 250 us with ECDSA (`crowd storm`: 1.6 s for 5,000, with all else that a new client costs),
/// so a turn has one or two. When all clients come back at once, those that are connected already
/// do not wait for more.
const HANDSHAKES_US_MAX: u64 = 250;

/// Takes in an edge of a connection's socket, and lists what the next turn is to do about it.
pub fn on_ready(io: &mut impl ShardIo, ready: Ready) {
    let id = ConnId(ready.token);
    let Some(readiness) = io.readiness(id) else { return };
    if ready.read {
        match ready.ended {
            true => readiness.input = Input::Ending,
            false => readiness.set_readable(),
        }
    }
    if ready.write && !std::mem::replace(&mut readiness.is_writable, true) {
        io.state().dirty.push(id);
    }
    if ready.read {
        list(io, id);
    }
}

/// Puts a connection that may have something to read on its list.
pub(super) fn list(io: &mut impl ShardIo, id: ConnId) {
    let Some(readiness) = io.readiness(id) else { return };
    if readiness.is_listed || !readiness.is_readable() {
        return;
    }
    readiness.is_listed = true;
    match io.is_handshaking(id) {
        true => io.state().to_handshake.push(id),
        false => io.state().to_read.push(id),
    }
}

/// Reads the listed connections, but for those with a TLS handshake.
pub(super) fn read_all(io: &mut impl ShardIo, now: Micros) {
    let state = io.state();
    if state.to_read.is_empty() {
        return;
    }
    std::mem::swap(&mut state.reading, &mut state.to_read);
    let mut reading = std::mem::take(&mut state.reading);
    let mut left = reading.drain(..);
    for (count, id) in left.by_ref().enumerate() {
        read(io, id, now);
        // Answers wait for the end of the turn: a thousand connections that all close, or all sign
        // in, are read in several turns. The clock is read now and then, it costs as much as a
        // message.
        if count % 32 == 31 && io.now().since(now) > READ_US_MAX {
            break;
        }
    }
    if left.len() > 0 {
        // Connections that have waited come before those that have more.
        let to_read = &mut io.state().to_read;
        let again = std::mem::take(to_read);
        to_read.extend(left.by_ref().chain(again));
    }
    drop(left);
    io.state().reading = reading;
    let us = io.now().since(now);
    io.enter(|engine| engine.record_decode(us));
}

/// Reads connections whose TLS handshake is under way, after all others.
pub(super) fn read_handshakes(io: &mut impl ShardIo) {
    if io.state().to_handshake.is_empty() {
        return;
    }
    let mut waiting = std::mem::take(&mut io.state().to_handshake);
    let began = io.now();
    let mut done = 0;
    for &id in &waiting {
        let now = io.now();
        if done > 0 && now.since(began) >= HANDSHAKES_US_MAX {
            break;
        }
        read(io, id, now);
        done += 1;
    }
    waiting.drain(..done);
    // Connections that were listed again meanwhile are behind those that have waited.
    let state = io.state();
    waiting.append(&mut state.to_handshake);
    state.to_handshake = waiting;
}

/// Takes the end of a client that waits for a place among its user's connections: its socket is not
/// read until it has one, so nothing else tells of it.
pub(super) fn end_newcomer(io: &mut impl ShardIo, id: ConnId, now: Micros) {
    let has_ended = io.readiness(id).is_some_and(|readiness| readiness.input == Input::Ending);
    if has_ended && io.enter(|engine| engine.is_newcomer(id) && engine.on_end(id, now)) {
        close(io, id);
    }
}

/// Reads one connection as long as it has its share of the turn.
fn read(io: &mut impl ShardIo, id: ConnId, now: Micros) {
    let Some(readiness) = io.readiness(id) else { return };
    readiness.is_listed = false;
    if io.enter(|engine| engine.is_paused(id)) {
        end_newcomer(io, id, now);
        return;
    }
    for _ in 0..limits::READS_PER_TURN_MAX {
        match io.read_once(id, now) {
            ReadOnce::Again => {}
            ReadOnce::Enough => {
                end_newcomer(io, id, now);
                return;
            }
            ReadOnce::Closed => {
                if io.enter(|engine| engine.on_end(id, now)) {
                    close(io, id);
                }
                return;
            }
        }
        // Only a client that fills the buffer comes here: the clock is not read for the others.
        // Small frames cost far more than their bytes.
        if io.now().since(now) > CONN_READ_US_MAX {
            break;
        }
    }
    list(io, id);
}
