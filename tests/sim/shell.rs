//! A shard of the simulator: the turns of [`shardgate::shard::turn`], over simulated sockets, lanes
//! and channels.
//!
//! The order of a turn and its steps are the gateway's own code. This file has single actions: how
//! a socket reads, writes and ends, how a client is accepted, what a lane takes.
//!
//! Left out, because a simulated socket has no such thing: TLS and PROXY headers, so that the
//! engine's `introduce` and `break_off` and the list of handshakes are not reached; several
//! listeners, their budgets and the lack of descriptors; the wait between two turns (readiness set,
//! ring, pulse). The world decides when a turn comes; the integration tests cover these.

use std::net::SocketAddr;
use std::task::{Context, Waker};

use shardgate::engine::clients::conn::{Phase, ReadNext, SocketAction};
use shardgate::engine::groups::lane::Deliver;
use shardgate::engine::{Engine, work};
use shardgate::ids::{ConnId, InstanceId, ShardId};
use shardgate::lanes::LaneRefusal;
use shardgate::limits;
use shardgate::mailbox::{Command, ShardConfig, ShardEvent};
use shardgate::message::{Call, Micros};
use shardgate::push::Submit;
use shardgate::readiness::Ready;
use shardgate::shard::handoff::Handoff;
use shardgate::shard::turn::{self, HandoffOf, Input, ReadOnce, Readiness, ShardIo, TurnState};
use shardgate::trace::Nanos;

use crate::plan::UNIX_AT_BOOT_S;
use crate::world::{Event, Shard, Socket, World};

/// Turns one after the other that may find work about pushes: as many as a pass over all members of
/// all groups takes, one at a time.
const TURNS_ON_END_MAX: u32 = 20_000;
/// Bytes of one read of the shell.
const SCRATCH: usize = 16 << 10;

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

    fn host(&mut self, s: usize) -> Host<'_> {
        Host { world: self, s }
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
        let now = Micros(self.now);
        turn::begin(&mut self.host(s), now);
        let unix_us = (UNIX_AT_BOOT_S + self.clock_step_s) * 1_000_000 + now.0 as i64;
        turn::tick(&mut self.host(s), next, unix_us, now);
        self.note_closing(s);
        self.turn(s);
    }

    pub fn turn(&mut self, s: usize) {
        let now = Micros(self.now);
        self.turn_us = 0;
        turn::begin(&mut self.host(s), now);
        let cx = Context::from_waker(Waker::noop());
        if self.shards[s].bell.poll_rung(&cx).is_ready() {
            turn::take_messages(&mut self.host(s), now);
        }
        turn::run(&mut self.host(s), now);
        self.after_turn(s);
    }

    /// Ends the shard, or schedules its next turn if there is a reason for one.
    fn after_turn(&mut self, s: usize) {
        let shard = &mut self.shards[s];
        if shard.state.is_stopping() && shard.engine.is_drained() {
            return self.end(s);
        }
        let goes_on = shard.engine.has_pushes();
        shard.turns_on_end = if goes_on { shard.turns_on_end + 1 } else { 0 };
        assert!(shard.turns_on_end < TURNS_ON_END_MAX, "work that never ends: the loop would spin");
        if goes_on {
            self.wake(s);
        } else if let Some(due) = shard.state.next_due() {
            assert!(due.0 > self.now, "what is due was not done: the loop would spin");
            let after = due.0 - self.now;
            if shard.turn_at.is_none_or(|t| t > due.0) {
                shard.turn_at = Some(due.0);
                self.at(after, Event::Turn(s));
            }
        }
        if self.shards[s].state.has_work() {
            self.wake(s);
        }
    }

    fn end(&mut self, s: usize) {
        self.shards[s].ending = true;
        let now = Micros(self.now);
        turn::end(&mut self.host(s), now);
        self.shards[s].stopped = true;
        if let Some(tenancy) = &mut self.tenancy {
            tenancy.applied[s] = None;
        }
        self.oracle.shards_run = false;
    }

    /// Remembers the bytes read of connections that the engine has just begun to close.
    fn note_closing(&mut self, s: usize) {
        if !self.shards[s].state.is_stopping() {
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

    /// Makes an edge in the shard's set: the client sent bytes, or ended.
    pub fn readable(&mut self, p: usize) {
        let s = self.peers[p].shard;
        if let Some(id) = self.peers[p].conn
            && self.shards[s].sockets.contains_key(&id)
        {
            let ready = Ready { token: id.0, read: true, write: false, ended: false };
            turn::on_ready(&mut self.host(s), ready);
            self.wake(s);
        }
    }

    /// Makes an edge in the shard's set: the client took bytes out of a full buffer.
    pub fn writable(&mut self, p: usize) {
        let s = self.peers[p].shard;
        if let Some(id) = self.peers[p].conn
            && let Some(socket) = self.shards[s].sockets.get(&id)
            && !socket.readiness.is_writable
        {
            let ready = Ready { token: id.0, read: false, write: true, ended: false };
            turn::on_ready(&mut self.host(s), ready);
            self.wake(s);
        }
    }
}

impl World {
    /// Address of a client's end.
    fn address(&self, p: usize) -> SocketAddr {
        SocketAddr::from((self.peers[p].address, 1024 + p as u16))
    }
}

/// A shard of the world, for the time of a turn.
struct Host<'a> {
    world: &'a mut World,
    s: usize,
}

impl Host<'_> {
    fn shard(&mut self) -> &mut Shard {
        &mut self.world.shards[self.s]
    }

    fn insert_socket(&mut self, p: usize, id: ConnId) {
        self.world.peers[p].conn = Some(id);
        let socket = Socket { peer: p, readiness: Readiness::UNKNOWN };
        self.shard().sockets.insert(id, socket);
    }

    /// Ends the bytes from the gateway to the client.
    fn end_peer(&mut self, p: usize) {
        self.world.peers[p].gateway_ended = true;
        self.world.schedule_read(p);
    }
}

impl ShardIo for Host<'_> {
    /// Number of the peer.
    type Client = usize;
    /// Number of the peer.
    type Socket = usize;

    fn with<R>(&mut self, act: impl FnOnce(&mut Engine, &mut TurnState) -> R) -> R {
        let shard = self.shard();
        act(&mut shard.engine, &mut shard.state)
    }

    fn state(&mut self) -> &mut TurnState {
        &mut self.shard().state
    }

    fn now(&self) -> Micros {
        Micros(self.world.now + self.world.turn_us)
    }

    fn nanos(&self) -> Nanos {
        let passed = self.now().0 * 1_000;
        Nanos { passed, ran: passed }
    }

    fn end_turn(&mut self, now: Micros) {
        self.shard().engine.end_turn(now);
        if let Some(tenancy) = &mut self.world.tenancy {
            tenancy.check_connections();
        }
        if self.world.plan.sessions.is_some() {
            self.world.note_decoded(self.s);
        }
        if self.world.plan.pushes.is_some() {
            self.world.check_members();
        }
        if self.world.dice.chance(10) {
            let (s, Shard { engine, state, .. }) = (self.s, self.shard());
            // The engine looks for connections that move in its own effects: it is shown those that
            // the turn has taken out of them.
            let own = engine.effects.moves.len();
            engine.effects.moves.extend_from_slice(state.moves());
            let checked = engine.check_invariants().and_then(|()| engine.check_no_delay(now));
            checked.unwrap_or_else(|what| panic!("shard {s} at {now:?}: {what}"));
            engine.effects.moves.truncate(own);
            if self.world.plan.sessions.is_some() {
                self.world.check_session_caps(self.s);
            }
        }
    }

    fn readiness(&mut self, id: ConnId) -> Option<&mut Readiness> {
        self.shard().sockets.get_mut(&id).map(|socket| &mut socket.readiness)
    }

    fn is_handshaking(&mut self, _: ConnId) -> bool {
        false
    }

    fn read_once(&mut self, id: ConnId, bytes_max: usize, now: Micros) -> ReadOnce {
        self.world.turn_us += self.world.plan.read_us;
        let World { shards, peers, dice, plan, .. } = &mut *self.world;
        let shard = &mut shards[self.s];
        let Some(socket) = shard.sockets.get_mut(&id) else { return ReadOnce::Enough };
        let split = dice.chance(plan.faults.split);
        let most = if split { dice.range(1, 200) as usize } else { SCRATCH.min(bytes_max) };
        let peer = &mut peers[socket.peer];
        let bytes = if peer.reset { 0 } else { most.min(peer.up.len()) };
        shard.engine.work.charge(work::of_receive(bytes));
        let has_ended = peer.ends && peer.outgoing.is_empty();
        if peer.reset || peer.up.is_empty() && has_ended {
            return ReadOnce::Closed;
        }
        let n = most.min(peer.up.len());
        let mut bytes: Vec<u8> = peer.up.drain(..n).collect();
        let more = !peer.up.is_empty() || has_ended;
        socket.readiness.input = if more { Input::Ready } else { Input::Empty };
        if n == 0 {
            return ReadOnce::Enough;
        }
        peer.read += n as u64;
        match shard.engine.on_bytes(id, &mut bytes, now) == ReadNext::Pause || !more {
            true => ReadOnce::Enough,
            false => ReadOnce::Again,
        }
    }

    fn flush(&mut self, id: ConnId, now: Micros) -> SocketAction {
        let World { shards, peers, trace, .. } = &mut *self.world;
        let shard = &mut shards[self.s];
        let Some(socket) = shard.sockets.get_mut(&id) else { return SocketAction::Keep };
        let p = socket.peer;
        let peer = &mut peers[p];
        // Every other connection is one of a transport that holds on to what it was given.
        let is_copied = p % 2 == 1;
        let bytes = shard.engine.bytes_to_send(id, is_copied, now);
        if peer.reset && !bytes.is_empty() {
            return SocketAction::Close;
        }
        let room = peer.down_max - peer.down.len();
        let sent = if socket.readiness.is_writable { room.min(bytes.len()) } else { 0 };
        socket.readiness.is_writable = sent == bytes.len();
        peer.down.extend(&bytes[..sent]);
        trace.update(&bytes[..sent]);
        if sent > 0 {
            self.world.schedule_read(p);
        }
        self.shard().engine.on_sent(id, sent, now)
    }

    fn bound_unsent(&mut self, _: ConnId) {
        // The room of a peer is drawn once, for all bytes.
    }

    fn shut_write(&mut self, id: ConnId) {
        if let Some(socket) = self.shard().sockets.get(&id) {
            let p = socket.peer;
            self.end_peer(p);
        }
    }

    fn close_socket(&mut self, id: ConnId) {
        self.world.note_closing(self.s);
        let Some(socket) = self.shard().sockets.remove(&id) else { return };
        if self.shard().ending {
            self.world.peers[socket.peer].cut_by_end = socket.readiness.is_writable;
        }
        self.end_peer(socket.peer);
    }

    fn accept_all(&mut self, now: Micros) {
        while let Some(p) = self.shard().backlog.pop_front() {
            turn::take_in(self, p, now);
        }
    }

    fn has_room_for(&mut self, p: &usize) -> bool {
        let ip = self.world.address(*p).ip();
        self.shard().engine.has_room_for(ip)
    }

    fn stop_accepting(&mut self, now: Micros) {
        self.accept_all(now);
    }

    fn open_connection(&mut self, p: usize, now: Micros) -> Option<ConnId> {
        let opened = match self.shard().state.is_stopping() {
            true => None,
            false => {
                let address = self.world.address(p);
                self.shard().engine.open(address, now).ok()
            }
        };
        match opened {
            Some(id) => self.insert_socket(p, id),
            None => self.end_peer(p),
        }
        opened
    }

    fn take_socket(&mut self, id: ConnId) -> usize {
        let socket = self.shard().sockets.remove(&id).expect("a connection has a socket");
        self.world.peers[socket.peer].conn = None;
        socket.peer
    }

    fn put_socket(&mut self, id: ConnId, p: usize) -> bool {
        self.insert_socket(p, id);
        true
    }

    fn discard_socket(&mut self, p: usize) {
        self.end_peer(p);
    }

    fn send_handoff(
        &mut self,
        to: ShardId,
        handoff: HandoffOf<Self>,
    ) -> Result<(), LaneRefusal<HandoffOf<Self>>> {
        let to = usize::from(to.0);
        let (p, is_full) = match &handoff {
            Handoff::Client(p) => (*p, false),
            Handoff::Moved(moved) => {
                (moved.socket, self.world.dice.chance(self.world.plan.faults.full))
            }
        };
        if self.world.shards[to].stopped {
            return Err(LaneRefusal::Closed(handoff));
        }
        if is_full {
            return Err(LaneRefusal::Full(handoff));
        }
        self.world.shards[to].handoff.try_send(handoff)?;
        self.world.peers[p].shard = to;
        self.world.wake(to);
        Ok(())
    }

    fn next_handoff(&mut self) -> Option<HandoffOf<Self>> {
        self.shard().handed.try_recv()
    }

    fn send_deliver(&mut self, to: ShardId, item: Deliver) -> Result<(), LaneRefusal<Deliver>> {
        let to = usize::from(to.0);
        if self.world.shards[to].stopped {
            return Err(LaneRefusal::Closed(item));
        }
        if self.world.dice.chance(self.world.plan.faults.full) {
            return Err(LaneRefusal::Full(item));
        }
        self.world.shards[to].deliver.try_send(item)?;
        self.world.wake(to);
        Ok(())
    }

    fn next_deliver(&mut self) -> Option<Deliver> {
        self.shard().delivered.try_recv()
    }

    fn delivers_waiting(&self) -> usize {
        self.world.shards[self.s].delivered.len()
    }

    fn send_pushes(&mut self, pushes: Vec<(ShardId, Submit)>) -> bool {
        self.world.send_pushes(pushes)
    }

    fn next_submit(&mut self) -> Option<Submit> {
        self.shard().submitted.try_recv()
    }

    fn next_command(&mut self) -> Option<Command> {
        self.shard().commands.try_recv()
    }

    fn try_send_event(&mut self, event: ShardEvent) -> Result<(), LaneRefusal<ShardEvent>> {
        let sent = self.world.reports.try_send(event);
        // Receipts wait for the next turn.
        let waits = |event: &ShardEvent| matches!(event, ShardEvent::Receipts { .. });
        let is_lost = match &sent {
            Ok(()) => false,
            Err(LaneRefusal::Full(event) | LaneRefusal::Closed(event)) => !waits(event),
        };
        self.shard().lost_events += u64::from(is_lost);
        sent
    }

    fn ring(&mut self) {
        self.shard().bell.ring();
    }

    fn apply(&mut self, published: &ShardConfig) {
        if let Some(tenancy) = &mut self.world.tenancy {
            tenancy.applied[self.s] = Some(published.snapshot.version);
        }
        self.world.open_channels(self.s, &published.snapshot);
    }

    fn start_calls(&mut self, calls: &mut Vec<Call>) {
        self.world.start_calls(self.s, calls);
    }

    fn ask(&mut self, instance: InstanceId) {
        self.world.ask(self.s, instance.0);
    }

    fn socket_bytes(&self) -> usize {
        0
    }
}
