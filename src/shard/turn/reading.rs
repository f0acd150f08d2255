//! Reading: whose bytes are taken, and how much of a turn each connection may have.
//!
//! The order is that of [`Rounds`]; a turn's reading ends by its [`Bound`]. Who has used its share
//! up is stopped within a buffer: the engine's decoder keeps the rest, which comes before the next
//! read of the socket.

use crate::engine::clients::conn::NextBytes;
use crate::engine::work;
use crate::ids::ConnId;
use crate::limits::READ_SCRATCH_BYTES;
use crate::message::Micros;
use crate::readiness::Ready;
use crate::shard::turn::bound::Bound;
use crate::shard::turn::rounds::{Left, List, QUANTUM, Visit};
use crate::shard::turn::{Input, ReadOnce, ShardIo, close};

/// Bytes of one read of a connection that became ready: most messages are smaller, and one that
/// lies whole in a read is not copied.
const NEW_BYTES: usize = 16 << 10;
/// Bytes of one read of a connection that floods: of the smallest frames, half of a [`QUANTUM`]
/// (pongs) to one and a half (pings). So what such a read leaves over, which is not decoded until
/// the next visit, is less than this, or over TLS less than this and a record (16 KiB). The read by
/// which it was found to flood may leave more: up to [`NEW_BYTES`], or [`READ_SCRATCH_BYTES`] if
/// nobody else had anything to read then.
const OLD_BYTES: usize = 4 << 10;
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
    if is_readable(io, id) {
        list_resumed(io, id);
    }
}

/// Puts a connection on its list that may have something to read, or that its decoder held back.
pub(super) fn list_resumed(io: &mut impl ShardIo, id: ConnId) {
    let Some(readiness) = io.readiness(id) else { return };
    if std::mem::replace(&mut readiness.is_listed, true) {
        return;
    }
    match io.is_handshaking(id) {
        true => io.state().to_handshake.push(id),
        false => io.state().rounds.add(id),
    }
}

/// Reads the connections whose turn it is, as long as the reading of a turn may last.
pub(super) fn read_all(io: &mut impl ShardIo, now: Micros) {
    let state = io.state();
    let has_answers = !state.effects.dirty.is_empty() || !state.dirty.is_empty();
    let Some(list) = state.rounds.next_list(has_answers) else { return };
    if !state.rounds.has(list) {
        return;
    }
    let us = state.read_us;
    io.with(|engine, state| state.rounds.begin(list, |id| engine.owner_of(id)));
    let mut bound = Bound::new(us, io.now());
    while bound.left() > 0 {
        let Some(visit) = io.state().rounds.next(list) else { break };
        read(io, visit, &mut bound, now);
    }
    io.state().rounds.pause(list);
    let us = bound.taken_us(io.now());
    io.enter(|engine| engine.record_reading(us));
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
        done += 1;
        let Some(readiness) = io.readiness(id) else { continue };
        readiness.is_listed = false;
        match take_bytes(io, id, NEW_BYTES, QUANTUM, now).left {
            Left::Something => list_resumed(io, id),
            Left::Nothing => {}
        }
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

/// Reads a connection as long as it has its share of the turn.
fn read(io: &mut impl ShardIo, visit: Visit, bound: &mut Bound, now: Micros) {
    let id = visit.id;
    let Some(readiness) = io.readiness(id) else { return };
    readiness.is_listed = false;
    let (bytes_max, allowed) = match (visit.credit, visit.list()) {
        (None, _) => (READ_SCRATCH_BYTES, bound.left()),
        (Some(credit), List::New) => (NEW_BYTES, credit.min(bound.left())),
        (Some(credit), List::Old) => (OLD_BYTES, credit.min(bound.left())),
    };
    let Taken { used, left } = take_bytes(io, id, bytes_max, allowed, now);
    bound.spend(used, || io.now());
    let is_listed =
        io.with(|engine, state| state.rounds.end(visit, used, left, || engine.owner_of(id)));
    if is_listed && let Some(readiness) = io.readiness(id) {
        readiness.is_listed = true;
    }
}

/// The end of a visit.
struct Taken {
    /// Work that it has cost.
    used: i64,
    left: Left,
}

/// Takes bytes of a connection, until it has no more for now or has cost what is `allowed`.
fn take_bytes(
    io: &mut impl ShardIo,
    id: ConnId,
    bytes_max: usize,
    allowed: i64,
    now: Micros,
) -> Taken {
    let (mut next, dirty) = io.enter(|engine| {
        engine.work.allow(allowed);
        (engine.next_bytes(id), engine.effects.dirty.len())
    });
    let left = loop {
        let taken = match next {
            NextBytes::Nowhere => ReadOnce::Enough,
            NextBytes::Decoder => {
                io.enter(|engine| engine.on_resumed(id, now));
                ReadOnce::Again
            }
            NextBytes::Socket => match is_readable(io, id) {
                true => io.read_once(id, bytes_max, now),
                false => ReadOnce::Enough,
            },
        };
        let is_spent = io.enter(|engine| engine.work.is_spent());
        match taken {
            ReadOnce::Closed => {
                io.enter(|engine| engine.work.charge(work::CLOSE));
                if io.enter(|engine| engine.on_end(id, now)) {
                    close(io, id);
                }
                break Left::Nothing;
            }
            // Mostly: a message, and no more.
            ReadOnce::Enough if !is_spent => {
                end_newcomer(io, id, now);
                break Left::Nothing;
            }
            ReadOnce::Enough | ReadOnce::Again => {}
        }
        next = io.enter(|engine| engine.next_bytes(id));
        if is_spent {
            break left_at(io, id, next, now);
        }
    };
    let used = io.enter(|engine| {
        // A send is counted for its connection when it is made.
        engine.note_work(id, allowed - engine.work.left());
        // Whoever was answered is flushed at the end of the turn.
        let flushes = engine.effects.dirty.len().saturating_sub(dirty) as i64;
        engine.work.charge(flushes * work::FLUSH);
        allowed - engine.work.left()
    });
    Taken { used, left }
}

/// The rest of a connection whose work is spent, and whose next bytes are at `next`.
fn left_at(io: &mut impl ShardIo, id: ConnId, next: NextBytes, now: Micros) -> Left {
    match next {
        NextBytes::Nowhere => {
            end_newcomer(io, id, now);
            Left::Nothing
        }
        NextBytes::Decoder => Left::Something,
        NextBytes::Socket if is_readable(io, id) => Left::Something,
        NextBytes::Socket => Left::Nothing,
    }
}

fn is_readable(io: &mut impl ShardIo, id: ConnId) -> bool {
    io.readiness(id).is_some_and(|readiness| readiness.is_readable())
}
