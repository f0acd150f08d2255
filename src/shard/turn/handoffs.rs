//! Clients and connections that go to other shards, or come from them.

use crate::ids::{ConnId, ShardId};
use crate::lanes::LaneRefusal;
use crate::limits;
use crate::message::Micros;
use crate::shard::handoff::{Handoff, MovedConnection};
use crate::shard::turn::{ShardIo, TurnState, reading};
use crate::stats::Counter;

/// Moves connections that are at rest to their user's home shard.
pub(super) fn move_all(io: &mut impl ShardIo, now: Micros) {
    let mut moves = std::mem::take(&mut io.state().effects.moves);
    for id in moves.drain(..) {
        let Some((home, departed)) = io.enter(|engine| engine.depart(id)) else { continue };
        let moved = MovedConnection { socket: io.take_socket(id), departed };
        let (handoff, is_gone) = match io.send_handoff(home, Handoff::Moved(Box::new(moved))) {
            Ok(()) => continue,
            Err(LaneRefusal::Full(handoff)) => (handoff, false),
            Err(LaneRefusal::Closed(handoff)) => (handoff, true),
        };
        let Handoff::Moved(moved) = handoff else { unreachable!("it was a connection") };
        let MovedConnection { socket, departed } = *moved;
        let id = io.enter(|engine| {
            engine.count(Counter::LaneRefused, 1);
            engine.move_refused(departed, is_gone, now)
        });
        settle(io, id, socket);
    }
    io.state().effects.moves = moves;
}

/// Takes the handoffs of other shards. One hop: a client for whom there is no room here either is
/// refused.
pub(super) fn take_handed(io: &mut impl ShardIo, now: Micros) {
    for _ in 0..limits::LANE_BUDGET {
        match io.next_handoff() {
            Some(Handoff::Client(client)) => open(io, client, now),
            Some(Handoff::Moved(moved)) => arrive(io, *moved, now),
            None => return,
        }
    }
    io.ring();
}

/// Makes a connection of an accepted client if there is room, or else hands the client over, or
/// else refuses it.
pub fn take_in<I: ShardIo>(io: &mut I, client: I::Client, now: Micros) {
    let left = match io.has_room_for(&client) {
        true => Some(client),
        false => hand_over(io, client),
    };
    if let Some(client) = left {
        open(io, client, now);
    }
}

/// Offers a client for whom there is no room to the other shards, each in turn: the kernel spreads
/// clients by a hash, so that one shard can be full, or an address's part of it, while others are
/// not. Gives the client back if this shard stops or no lane takes it.
fn hand_over<I: ShardIo>(io: &mut I, client: I::Client) -> Option<I::Client> {
    let TurnState { shard, shards, is_stopping, .. } = *io.state();
    if is_stopping {
        return Some(client);
    }
    let mut handoff = Handoff::Client(client);
    for _ in 0..shards {
        let next = &mut io.state().next_sibling;
        *next = (*next + 1) % shards;
        let to = ShardId(*next);
        if to == shard {
            continue;
        }
        match io.send_handoff(to, handoff) {
            Ok(()) => {
                io.enter(|engine| engine.count(Counter::HandedOver, 1));
                return None;
            }
            Err(LaneRefusal::Full(back) | LaneRefusal::Closed(back)) => {
                io.enter(|engine| engine.count(Counter::LaneRefused, 1));
                handoff = back;
            }
        }
    }
    match handoff {
        Handoff::Client(client) => Some(client),
        Handoff::Moved(_) => unreachable!("it was a client"),
    }
}

/// Makes a connection of a client, or refuses the client.
fn open<I: ShardIo>(io: &mut I, client: I::Client, now: Micros) {
    if let Some(id) = io.open_connection(client, now) {
        reading::list(io, id);
    }
}

fn arrive<I: ShardIo>(io: &mut I, moved: MovedConnection<I::Socket>, now: Micros) {
    let MovedConnection { socket, departed } = moved;
    match io.enter(|engine| engine.arrive(departed, now)) {
        Some(id) => settle(io, id, socket),
        None => io.discard_socket(socket),
    }
}

/// Puts in the socket of a connection that the engine has just put in. It is read, because bytes
/// may have come that make no edge here.
fn settle<I: ShardIo>(io: &mut I, id: ConnId, socket: I::Socket) {
    if io.put_socket(id, socket) {
        reading::list(io, id);
    }
}
