//! What a shard's shell does with its engine, in the order of `src/shard/net.rs`.

use std::net::SocketAddr;
use std::task::{Context, Waker};

use shardgate::engine::conns::{Fate, Phase, ReadNext};
use shardgate::ids::ConnId;
use shardgate::lanes::LaneRefusal;
use shardgate::limits;
use shardgate::mailbox::{Command, ShardEvent};
use shardgate::message::Micros;
use shardgate::stats::Counter;

use crate::world::{Event, Handed, Socket, World};

/// Bytes of one read of the shell.
const SCRATCH: usize = 4 << 10;

impl World {
    pub fn wake(&mut self, s: usize) {
        let at = (self.now + 1 + self.dice.below(50)).max(self.shards[s].stalled_until);
        if self.shards[s].stopped || self.shards[s].turn_at.is_some_and(|t| t <= at) {
            return;
        }
        self.shards[s].turn_at = Some(at);
        let after = at - self.now;
        self.at(after, Event::Turn(s));
    }

    pub fn tick(&mut self, s: usize) {
        if self.shards[s].stopped {
            return;
        }
        let mut next = limits::TICK_MS * 1000;
        if self.active && self.dice.chance(self.plan.faults.stall) {
            next = self.dice.range(10_000, 150_000);
            self.shards[s].stalled_until = self.now + next - 1;
        }
        self.at(next, Event::Tick(s));
        let mut closing = Vec::new();
        self.shards[s].engine.record_stall(next);
        self.shards[s].engine.tick(Micros(self.now), &mut closing);
        self.note_closing(s);
        for id in closing {
            self.close(s, id);
        }
        self.turn(s);
    }

    /// Remembers what was read of connections that the engine has just begun to close.
    pub fn note_closing(&mut self, s: usize) {
        if !self.shards[s].stopping {
            return;
        }
        for conn in self.shards[s].engine.view().conns {
            if conn.phase != Phase::Open
                && let Some(socket) = self.shards[s].sockets.get(&conn.id)
            {
                let peer = &mut self.peers[socket.peer];
                peer.read_at_close.get_or_insert(peer.read);
            }
        }
    }

    pub fn turn(&mut self, s: usize) {
        let now = Micros(self.now);
        self.turns += 1;
        self.take_commands(s);
        self.accept(s);
        self.resume(s);
        let reading = std::mem::take(&mut self.shards[s].to_read);
        for id in reading {
            self.read(s, id);
        }
        self.shards[s].engine.record_decode(1);
        self.shards[s].engine.end_turn(now);
        if self.dice.chance(10) {
            let engine = &self.shards[s].engine;
            let checked = engine.check_invariants().and_then(|()| engine.check_no_delay(now));
            checked.unwrap_or_else(|what| panic!("shard {s} at {}: {what}", self.now));
        }
        self.start_calls(s);
        let mut dirty = std::mem::take(&mut self.shards[s].dirty);
        dirty.append(&mut self.shards[s].engine.effects.dirty);
        self.shards[s].engine.record_flush(1, dirty.len() as u64);
        for id in dirty {
            self.flush(s, id);
        }
        self.move_all(s);
        self.after_turn(s);
    }

    /// Connections at rest leave for their user's home.
    fn move_all(&mut self, s: usize) {
        let now = Micros(self.now);
        for id in std::mem::take(&mut self.shards[s].engine.effects.moves) {
            let Some((home, departed)) = self.shards[s].engine.depart(id) else { continue };
            let socket = self.shards[s].sockets.remove(&id).expect("a connection has a socket");
            let (p, to) = (socket.peer, usize::from(home.0));
            self.peers[p].conn = None;
            let handed = Handed::Moved(p, Box::new(departed));
            let is_full = self.dice.chance(self.plan.faults.full);
            let refused = match self.shards[to].stopped || is_full {
                true => handed,
                false => match self.shards[to].handoff.try_send(handed) {
                    Ok(()) => {
                        self.peers[p].shard = to;
                        self.wake(to);
                        continue;
                    }
                    Err(LaneRefusal::Full(back) | LaneRefusal::Closed(back)) => back,
                },
            };
            let is_gone = self.shards[to].stopped;
            let Handed::Moved(p, departed) = refused else { unreachable!("made above") };
            let id = self.shards[s].engine.stay(*departed, is_gone, now);
            self.settle(s, p, id);
        }
    }

    /// The socket of a connection that was just put in: as one that is ready for anything.
    fn settle(&mut self, s: usize, p: usize, id: ConnId) {
        self.peers[p].conn = Some(id);
        let socket = Socket { peer: p, readable: true, writable: true, listed: true };
        self.shards[s].sockets.insert(id, socket);
        self.shards[s].to_read.push(id);
    }

    fn take_handed(&mut self, s: usize) {
        while let Some(handed) = self.shards[s].handed.try_recv() {
            match handed {
                Handed::Fresh(p) => self.admit(s, p),
                Handed::Moved(p, departed) => {
                    match self.shards[s].engine.arrive(*departed, Micros(self.now)) {
                        Some(id) => self.settle(s, p, id),
                        None => {
                            self.peers[p].gateway_ended = true;
                            self.soon_read(p);
                        }
                    }
                }
            }
        }
    }

    /// The orderly end: who was handed over meanwhile is told goodbye.
    fn end(&mut self, s: usize) {
        self.take_handed(s);
        self.resume(s);
        let left = self.shards[s].engine.say_goodbye(Micros(self.now));
        self.note_closing(s);
        for id in std::mem::take(&mut self.shards[s].engine.effects.dirty) {
            self.flush(s, id);
        }
        for id in left {
            if let Some(socket) = self.shards[s].sockets.get(&id) {
                self.peers[socket.peer].said_goodbye = socket.writable;
            }
            self.close(s, id);
        }
        self.shards[s].stopped = true;
        self.oracle.shards_run = false;
    }

    pub fn after_turn(&mut self, s: usize) {
        let shard = &mut self.shards[s];
        if shard.stopping && shard.engine.is_drained() {
            return self.end(s);
        }
        if let Some(due) = shard.engine.next_due() {
            assert!(due.0 > self.now, "what is due was not done: the loop would spin");
            let after = due.0 - self.now;
            if shard.turn_at.is_none_or(|t| t > due.0) {
                shard.turn_at = Some(due.0);
                self.at(after, Event::Turn(s));
            }
        }
        let shard = &self.shards[s];
        if !shard.to_read.is_empty() || !shard.engine.effects.resumed.is_empty() {
            self.wake(s);
        }
    }

    pub fn take_commands(&mut self, s: usize) {
        let cx = Context::from_waker(Waker::noop());
        if self.shards[s].bell.poll_rung(&cx).is_pending() {
            return;
        }
        let now = Micros(self.now);
        self.take_handed(s);
        while let Some(command) = self.shards[s].commands.try_recv() {
            match command {
                Command::Adopt(published) => {
                    self.open_channels(s, &published.snapshot.clone());
                    self.shards[s].engine.adopt(*published, now);
                }
                Command::Report(_) => {
                    let report = ShardEvent::Report(Box::new(self.report(s)));
                    if let Err(LaneRefusal::Full(_)) = self.reports.try_send(report) {
                        self.shards[s].lost_reports += 1;
                        self.shards[s].engine.count(Counter::LaneLost, 1);
                    }
                }
                Command::Inspect(..) => unreachable!("the simulator sends none"),
                Command::Drain(settings) => {
                    self.accept(s);
                    self.shards[s].engine.drain(settings, now);
                    self.shards[s].stopping = true;
                }
                Command::Abort => unreachable!("the simulator sends none"),
            }
        }
    }

    pub fn accept(&mut self, s: usize) {
        while let Some(p) = self.shards[s].backlog.pop_front() {
            let is_full = !self.shards[s].stopping && !self.shards[s].engine.has_room();
            if !is_full || !self.hand_over(s, p) {
                self.admit(s, p);
            }
        }
    }

    fn admit(&mut self, s: usize, p: usize) {
        let address = SocketAddr::from(([127, 0, 0, 1], 1024 + p as u16));
        let opened = match self.shards[s].stopping {
            true => None,
            false => self.shards[s].engine.open(address, Micros(self.now)).ok(),
        };
        let Some(id) = opened else {
            self.peers[p].gateway_ended = true;
            self.soon_read(p);
            return;
        };
        self.peers[p].conn = Some(id);
        let socket = Socket { peer: p, readable: true, writable: true, listed: true };
        self.shards[s].sockets.insert(id, socket);
        self.shards[s].to_read.push(id);
    }

    /// A client for whom there is no room goes to the next shard whose lane takes it.
    fn hand_over(&mut self, s: usize, p: usize) -> bool {
        for step in 1..self.shards.len() {
            let other = (s + step) % self.shards.len();
            if self.shards[other].stopped {
                continue;
            }
            if self.shards[other].handoff.try_send(Handed::Fresh(p)).is_ok() {
                self.shards[s].engine.count(Counter::HandedOver, 1);
                self.peers[p].shard = other;
                self.wake(other);
                return true;
            }
            self.shards[s].engine.count(Counter::LaneRefused, 1);
        }
        false
    }

    pub fn resume(&mut self, s: usize) {
        let resumed = std::mem::take(&mut self.shards[s].engine.effects.resumed);
        for id in resumed {
            let next = self.shards[s].engine.on_resumed(id, Micros(self.now));
            let shard = &mut self.shards[s];
            if next == ReadNext::More
                && let Some(socket) = shard.sockets.get_mut(&id)
                && socket.readable
                && !socket.listed
            {
                socket.listed = true;
                shard.to_read.push(id);
            }
        }
    }

    pub fn read(&mut self, s: usize, id: ConnId) {
        let Some(socket) = self.shards[s].sockets.get_mut(&id) else { return };
        socket.listed = false;
        let p = socket.peer;
        if self.shards[s].engine.is_paused(id) {
            return;
        }
        for _ in 0..limits::READS_PER_TURN_MAX {
            let split = self.dice.chance(self.plan.faults.split);
            let most = if split { self.dice.range(1, 200) as usize } else { SCRATCH };
            let peer = &mut self.peers[p];
            if peer.reset || peer.up.is_empty() && peer.ends && peer.outgoing.is_empty() {
                if self.shards[s].engine.on_end(id) {
                    self.close(s, id);
                }
                return;
            }
            let n = most.min(peer.up.len());
            let mut bytes: Vec<u8> = peer.up.drain(..n).collect();
            let more = !peer.up.is_empty() || peer.ends && peer.outgoing.is_empty();
            let socket = self.shards[s].sockets.get_mut(&id).expect("looked at above");
            socket.readable = more;
            if n == 0 {
                return;
            }
            self.peers[p].read += n as u64;
            let next = self.shards[s].engine.on_bytes(id, &mut bytes, Micros(self.now));
            if next == ReadNext::Pause || !more {
                return;
            }
        }
        let shard = &mut self.shards[s];
        if let Some(socket) = shard.sockets.get_mut(&id) {
            socket.listed = true;
            shard.to_read.push(id);
        }
    }

    pub fn flush(&mut self, s: usize, id: ConnId) {
        let shard = &mut self.shards[s];
        let Some(socket) = shard.sockets.get_mut(&id) else { return };
        let p = socket.peer;
        let peer = &mut self.peers[p];
        let bytes = shard.engine.outbox(id);
        if peer.reset && !bytes.is_empty() {
            return self.close(s, id);
        }
        let room = peer.down_max - peer.down.len();
        let sent = if socket.writable { room.min(bytes.len()) } else { 0 };
        socket.writable = sent == bytes.len();
        peer.down.extend(&bytes[..sent]);
        self.trace.update(&bytes[..sent]);
        if sent > 0 {
            self.soon_read(p);
        }
        match self.shards[s].engine.on_sent(id, sent, Micros(self.now)) {
            Fate::Keep => {}
            Fate::ShutWrite => {
                self.peers[p].gateway_ended = true;
                self.soon_read(p);
            }
            Fate::Close => self.close(s, id),
        }
    }

    pub fn close(&mut self, s: usize, id: ConnId) {
        if let Some(socket) = self.shards[s].sockets.remove(&id) {
            self.peers[socket.peer].gateway_ended = true;
            self.soon_read(socket.peer);
        }
        self.shards[s].engine.remove(id);
    }

    /// The client sent bytes, or ended.
    pub fn readable(&mut self, p: usize) {
        let Some(id) = self.peers[p].conn else { return };
        let s = self.peers[p].shard;
        let shard = &mut self.shards[s];
        let Some(socket) = shard.sockets.get_mut(&id) else { return };
        socket.readable = true;
        if !socket.listed {
            socket.listed = true;
            shard.to_read.push(id);
        }
        self.wake(s);
    }

    /// The client took bytes out of a full buffer.
    pub fn writable(&mut self, p: usize) {
        let Some(id) = self.peers[p].conn else { return };
        let s = self.peers[p].shard;
        let shard = &mut self.shards[s];
        if let Some(socket) = shard.sockets.get_mut(&id)
            && !socket.writable
        {
            socket.writable = true;
            shard.dirty.push(id);
            self.wake(s);
        }
    }
}
