//! Connections that move to their user's home shard, with their socket.

use crate::ids::{ConnId, ShardId};
use crate::lanes::LaneRefusal;
use crate::message::Micros;
use crate::shard::handoff::{Handoff, MovedConnection};
use crate::shard::net::Net;
use crate::shard::sockets::Socket;
use crate::stats::Counter;

impl Net {
    /// Sends away who is at rest.
    pub(super) fn move_all(&mut self, now: Micros) {
        let mut moves = std::mem::take(&mut self.moves);
        self.shell.enter(|engine| std::mem::swap(&mut moves, &mut engine.effects.moves));
        for id in moves.drain(..) {
            if let Some((home, departed)) = self.shell.enter(|engine| engine.depart(id)) {
                let socket = self.sockets.remove(id).expect("a connection has a socket");
                self.send_home(home, MovedConnection { socket, departed }, now);
            }
        }
        self.moves = moves;
    }

    fn send_home(&mut self, home: ShardId, moved: MovedConnection, now: Micros) {
        // Its next edge is the other shard's.
        if let Err(error) = self.set.remove(&moved.socket) {
            tracing::warn!(%error, "client_still_watched: it hears of its bytes twice");
        }
        let lane = &self.lanes.shards[usize::from(home.0)];
        let (moved, is_gone) = match lane.try_send(Handoff::Moved(Box::new(moved))) {
            Ok(()) => return,
            Err(LaneRefusal::Full(Handoff::Moved(moved))) => (moved, false),
            Err(LaneRefusal::Closed(Handoff::Moved(moved))) => (moved, true),
            Err(
                LaneRefusal::Full(Handoff::Client { .. })
                | LaneRefusal::Closed(Handoff::Client { .. }),
            ) => unreachable!("it was a connection"),
        };
        let MovedConnection { socket, departed } = *moved;
        self.shell.enter(|engine| engine.count(Counter::LaneRefused, 1));
        let id = self.shell.enter(|engine| engine.stay(departed, is_gone, now));
        self.settle(id, socket);
    }

    /// Takes over who comes home.
    pub(super) fn arrive(&mut self, moved: MovedConnection, now: Micros) {
        let MovedConnection { socket, departed } = moved;
        if let Some(id) = self.shell.enter(|engine| engine.arrive(departed, now)) {
            self.settle(id, socket);
        }
    }

    /// The socket of a connection that was just put in.
    fn settle(&mut self, id: ConnId, socket: Socket) {
        // In the set first: what arrives from here on makes an edge, what arrived before is read
        // because it counts as ready.
        if let Err(error) = self.set.add(&socket, id.0) {
            tracing::warn!(%error, "client_not_watched: raise sysctl fs.epoll.max_user_watches");
            self.shell.enter(|engine| {
                engine.count(Counter::MoveLost, 1);
                engine.remove(id);
            });
            return;
        }
        self.sockets.take_over(id, socket);
        self.list(id);
    }
}
