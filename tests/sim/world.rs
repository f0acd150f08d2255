//! The scheduler: a clock, events in its order, and for each shard what its shell does
//! (`src/shard/net.rs`: commands and pulse, accept, resumed, reads, end of turn, calls, flushes).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Waker};

use bytes::Bytes;
use shardgate::config::snapshot::{Instance, Snapshot};
use shardgate::engine::conns::{Fate, Phase, ReadNext};
use shardgate::engine::instances::Link;
use shardgate::engine::{Engine, EngineInit};
use shardgate::ids::{ConnId, InstanceId, ShardId, Ticket};
use shardgate::lanes::{Doorbell, LaneReceiver, LaneRefusal, LaneSender, lane};
use shardgate::limits;
use shardgate::mailbox::{Command, ShardEvent};
use shardgate::message::{CallError, CallFault, Encoding, Micros, Outcome, Started, status};
use shardgate::stats::{Counter, Report};
use xxhash_rust::xxh3::Xxh3;

use crate::backend::{self, Calls, Channel, State};
use crate::client::{Peer, UP_BYTES_MAX};
use crate::dice::Dice;
use crate::oracle::Oracle;
use crate::plan::{self, Plan, SERVICES, UNARY};

#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A shard's loop runs, because something woke it.
    Turn(usize),
    /// The pulse of a shard.
    Tick(usize),
    /// A client writes, or does what it does next.
    Write(usize),
    /// A client reads.
    Read(usize),
    Arrives(usize, u64),
    Ends(usize, u64),
    TimesOut(usize, u64),
    /// The connection of a shard to an instance comes up, or breaks.
    Up(usize, u32),
    Break(usize, u32),
    /// Somewhere a connection breaks.
    Flap,
    /// Control looks at its lanes, and sometimes changes the instances.
    Control,
    Adopt,
    Drain,
}

/// A socket as a shard's shell knows it.
#[derive(Debug)]
struct Socket {
    peer: usize,
    readable: bool,
    writable: bool,
    listed: bool,
}

pub struct Shard {
    pub engine: Engine,
    sockets: BTreeMap<ConnId, Socket>,
    to_read: Vec<ConnId>,
    dirty: Vec<ConnId>,
    backlog: VecDeque<usize>,
    channels: BTreeMap<u32, Channel>,
    bell: Arc<Doorbell>,
    commands: LaneReceiver<Command>,
    control: LaneSender<Command>,
    turn_at: Option<u64>,
    stalled_until: u64,
    pub stopping: bool,
    pub stopped: bool,
    lost_reports: u64,
    /// What control wants this shard to know and could not send yet.
    adopt: Option<Arc<Snapshot>>,
    drain: bool,
}

pub struct World {
    pub plan: Plan,
    pub now: u64,
    pub dice: Dice,
    events: BTreeMap<(u64, u64), Event>,
    numbers: u64,
    pub shards: Vec<Shard>,
    pub peers: Vec<Peer>,
    pub calls: Calls,
    pub oracle: Oracle,
    /// Clients send; faults occur.
    pub active: bool,
    pub draining: bool,
    instances: Vec<Instance>,
    instance_ids: u32,
    version: u64,
    reports: LaneSender<ShardEvent>,
    reported: LaneReceiver<ShardEvent>,
    trace: Xxh3,
    pub turns: u64,
}

/// When a run begins: not at 0, so that 0 can mean "never".
const START_US: u64 = 1_000_000;
/// Bytes of one read of the shell.
const SCRATCH: usize = 4 << 10;

impl World {
    pub fn new(plan: Plan) -> Self {
        let mut dice = Dice::new(plan.seed);
        let mut instances = Vec::new();
        for service in 0..SERVICES.len() as u16 {
            for _ in 0..dice.range(1, 3) {
                instances.push(plan::instance(instances.len() as u32, service, &mut dice));
            }
        }
        let snapshot = plan::snapshot(1, &plan.routes, &instances);
        let (reports, reported) = lane(plan.lane_items, &Doorbell::new());
        let shards = (0..plan.shards).map(|n| Shard::new(n, &plan, &snapshot, dice.next()));
        let shards = shards.collect();
        let mut world = Self {
            now: START_US,
            events: BTreeMap::new(),
            numbers: 0,
            shards,
            peers: Vec::new(),
            calls: Calls::new(),
            oracle: Oracle::new(plan.settings.dedup.enabled),
            active: true,
            draining: false,
            instance_ids: instances.len() as u32,
            instances,
            version: 1,
            reports,
            reported,
            trace: Xxh3::new(),
            turns: 0,
            dice,
            plan,
        };
        world.begin(&snapshot);
        world
    }

    fn begin(&mut self, snapshot: &Snapshot) {
        for s in 0..self.shards.len() {
            self.open_channels(s, snapshot);
            let first = self.dice.below(limits::TICK_MS * 1000);
            self.at(first, Event::Tick(s));
        }
        for _ in 0..self.plan.clients {
            self.connect();
        }
        self.at(1_000, Event::Control);
        if self.plan.faults.flap_ms > 0 {
            self.at(5_000, Event::Flap);
        }
        if self.plan.faults.adopt_ms > 0 {
            self.at(20_000, Event::Adopt);
        }
        if let Some(at) = self.plan.drain_at_us {
            self.at(at, Event::Drain);
        }
    }

    /// Schedules `event` in `us` microseconds.
    pub fn at(&mut self, us: u64, event: Event) {
        self.numbers += 1;
        self.events.insert((self.now + us, self.numbers), event);
    }

    /// Runs what happens until `until`.
    pub fn run(&mut self, until: u64) {
        while let Some((&(at, number), &event)) = self.events.first_key_value() {
            if at > until {
                break;
            }
            self.events.remove(&(at, number));
            self.now = at;
            self.note(&[at, number]);
            self.happens(event);
        }
        self.now = until;
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Turn(s) => {
                if self.shards[s].turn_at == Some(self.now) {
                    self.shards[s].turn_at = None;
                    self.turn(s);
                }
            }
            Event::Tick(s) => self.tick(s),
            Event::Write(p) => self.peer_writes(p),
            Event::Read(p) => self.peer_reads(p),
            Event::Arrives(s, ticket) => self.call_arrives(s, ticket),
            Event::Ends(s, ticket) => self.call_ends(s, ticket),
            Event::TimesOut(s, ticket) => self.call_times_out(s, ticket),
            Event::Up(s, id) => self.link_up(s, id),
            Event::Break(s, id) => self.link_breaks(s, id),
            Event::Flap => self.flap(),
            Event::Control => self.control(),
            Event::Adopt => self.change_instances(),
            Event::Drain => self.begin_drain(),
        }
    }

    /// Adds to the trace that two runs of a seed must share.
    fn note(&mut self, words: &[u64]) {
        for word in words {
            self.trace.update(&word.to_le_bytes());
        }
    }

    pub fn trace(&self) -> u64 {
        self.trace.digest()
    }

    pub fn report(&self, s: usize) -> Report {
        self.shards[s].engine.report(Micros(self.now))
    }

    // ---- a shard's shell

    pub fn wake(&mut self, s: usize) {
        let at = (self.now + 1 + self.dice.below(50)).max(self.shards[s].stalled_until);
        if self.shards[s].stopped || self.shards[s].turn_at.is_some_and(|t| t <= at) {
            return;
        }
        self.shards[s].turn_at = Some(at);
        let after = at - self.now;
        self.at(after, Event::Turn(s));
    }

    fn tick(&mut self, s: usize) {
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
    fn note_closing(&mut self, s: usize) {
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

    fn turn(&mut self, s: usize) {
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
        self.shards[s].engine.effects.cancels.clear();
        self.after_turn(s);
    }

    fn after_turn(&mut self, s: usize) {
        let shard = &mut self.shards[s];
        if shard.stopping && shard.engine.is_drained() {
            shard.stopped = true;
            return;
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

    fn take_commands(&mut self, s: usize) {
        let cx = Context::from_waker(Waker::noop());
        if self.shards[s].bell.poll_rung(&cx).is_pending() {
            return;
        }
        let now = Micros(self.now);
        while let Some(command) = self.shards[s].commands.try_recv() {
            match command {
                Command::Adopt(snapshot) => {
                    self.shards[s].engine.adopt(snapshot.clone());
                    self.open_channels(s, &snapshot);
                }
                Command::Report => {
                    let report = ShardEvent::Report(Box::new(self.report(s)));
                    if let Err(LaneRefusal::Full(_)) = self.reports.try_send(report) {
                        self.shards[s].lost_reports += 1;
                        self.shards[s].engine.count(Counter::LaneLost, 1);
                    }
                }
                Command::Drain { grace } => {
                    self.accept(s);
                    self.shards[s].engine.drain(grace, now);
                    self.shards[s].stopping = true;
                }
                Command::Abort => unreachable!("the simulator sends none"),
            }
        }
    }

    fn accept(&mut self, s: usize) {
        while let Some(p) = self.shards[s].backlog.pop_front() {
            let address = SocketAddr::from(([127, 0, 0, 1], 1024 + p as u16));
            let opened = match self.shards[s].stopping {
                true => None,
                false => self.shards[s].engine.open(address, Micros(self.now)),
            };
            let Some(id) = opened else {
                self.peers[p].gateway_ended = true;
                self.soon_read(p);
                continue;
            };
            self.peers[p].conn = Some(id);
            let socket = Socket { peer: p, readable: true, writable: true, listed: true };
            self.shards[s].sockets.insert(id, socket);
            self.shards[s].to_read.push(id);
        }
    }

    fn resume(&mut self, s: usize) {
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

    fn read(&mut self, s: usize, id: ConnId) {
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

    fn flush(&mut self, s: usize, id: ConnId) {
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

    fn close(&mut self, s: usize, id: ConnId) {
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

    // ---- clients come

    pub fn connect(&mut self) {
        let s = self.dice.below(self.plan.shards as u64) as usize;
        let encoding = self.dice.pick(&[Encoding::Json, Encoding::Protobuf]);
        let slow = self.dice.chance(self.plan.faults.slow);
        let down_max = if slow { 2 << 10 } else { 32 << 10 };
        let p = self.peers.len();
        self.peers.push(Peer::new(s, encoding, slow, down_max));
        self.shards[s].backlog.push_back(p);
        let after = self.dice.below(20_000);
        self.at(after, Event::Write(p));
        self.wake(s);
    }

    pub fn up_room(&self, p: usize) -> usize {
        UP_BYTES_MAX - self.peers[p].up.len()
    }

    // ---- calls

    fn start_calls(&mut self, s: usize) {
        let calls = std::mem::take(&mut self.shards[s].engine.effects.calls);
        for mut call in calls {
            let ticket = call.ticket.0;
            let mut flying = backend::read_call(s, &mut call);
            let units: Vec<u64> = flying.items.iter().map(|i| i.unit).collect();
            self.oracle.departs(s, ticket, &units);
            self.note(&[s as u64, ticket, u64::from(flying.instance), call.timeout_us]);
            self.note(&units);
            let channel = &self.shards[s].channels[&flying.instance];
            let (closed, state) = (channel.closed, channel.state);
            let answer_us = self.plan.faults.answer_us;
            let mut after = self.dice.range(50, answer_us);
            flying.sent = !closed && state == State::Up;
            if closed || state == State::Down {
                let why = CallFault::NotConnected;
                let failed = backend::error(why, Started::No, status::UNAVAILABLE, &mut self.dice);
                flying.result = Some(Err(CallError { pushback: None, ..failed }));
                after = self.dice.below(500);
            }
            let sent = flying.sent;
            let failed = flying.result.is_some();
            let before = self.calls.insert((s, ticket), flying);
            assert!(before.is_none(), "a ticket is used once at a time");
            self.at(call.timeout_us, Event::TimesOut(s, ticket));
            if failed && closed && self.dice.chance(50) {
                self.call_ends(s, ticket); // from within `send`, as an ended channel does
            } else if failed {
                self.at(after, Event::Ends(s, ticket));
            } else if sent {
                self.at(after, Event::Arrives(s, ticket));
            }
        }
    }

    /// An instance has the call: what it does with it.
    fn call_arrives(&mut self, s: usize, ticket: u64) {
        let Some(call) = self.calls.get_mut(&(s, ticket)) else { return };
        if call.result.is_some() || call.arrived {
            return;
        }
        call.arrived = true;
        let (items, unary) = (call.items.clone(), call.unary);
        let faults = self.plan.faults.clone();
        let trouble = |percent| if self.active { percent } else { 0 };
        let (fail, hang) = (trouble(faults.fail), trouble(faults.hang));
        let (garbage, item) = (trouble(faults.garbage), trouble(faults.item));
        let mut after = self.dice.range(10, faults.answer_us);
        let result = if self.dice.chance(fail) {
            let failure = backend::failure(&mut self.dice);
            let count = match failure.started {
                Started::No => 0,
                Started::Maybe => self.dice.below(items.len() as u64 + 1) as usize,
            };
            self.execute(s, &items[..count]);
            Err(failure)
        } else if self.dice.chance(hang) {
            let count = self.dice.below(items.len() as u64 + 1) as usize;
            self.execute(s, &items[..count]);
            return;
        } else {
            let runs = self.execute(s, &items);
            if unary {
                Ok(format!("{{\"n\":{},\"u\":{}}}", runs[0], items[0].unit).into())
            } else if self.dice.chance(garbage) {
                Ok(Bytes::from_static(&[10, 200, 1, 2]))
            } else {
                Ok(backend::answer(&items, &runs, item, faults.large, &mut self.dice))
            }
        };
        if self.dice.chance(5) {
            after *= 20;
        }
        self.calls.get_mut(&(s, ticket)).expect("seen above").result = Some(result);
        self.at(after, Event::Ends(s, ticket));
    }

    fn execute(&mut self, s: usize, items: &[backend::Item]) -> Vec<u64> {
        let mut runs = Vec::new();
        for item in items {
            let peer = &self.peers[self.oracle.peer(item.unit)];
            let order = (item.seq > 0).then(|| peer.sent[&item.seq].order);
            runs.push(self.oracle.runs(item.unit, (s, item.request_id), order));
        }
        runs
    }

    fn call_ends(&mut self, s: usize, ticket: u64) {
        let Some(call) = self.calls.remove(&(s, ticket)) else { return };
        let units: Vec<u64> = call.items.iter().map(|i| i.unit).collect();
        self.oracle.ends(s, ticket, &units);
        let result = call.result.expect("scheduled with its result");
        self.note(&[s as u64, ticket, u64::from(result.is_ok())]);
        if let Ok(body) = &result {
            self.trace.update(body);
        }
        let outcome = Outcome { ticket: Ticket(ticket), result };
        if !self.shards[s].stopped {
            self.shards[s].engine.on_outcome(outcome, Micros(self.now));
            self.wake(s);
        }
    }

    fn call_times_out(&mut self, s: usize, ticket: u64) {
        let Some(call) = self.calls.get_mut(&(s, ticket)) else { return };
        let started = if call.sent { Started::Maybe } else { Started::No };
        call.result = Some(Err(CallError {
            fault: CallFault::TimedOut,
            started,
            status: status::DEADLINE_EXCEEDED,
            message: String::new(),
            pushback: None,
        }));
        self.call_ends(s, ticket);
    }

    // ---- channels

    fn open_channels(&mut self, s: usize, snapshot: &Snapshot) {
        for instance in &snapshot.instances {
            let id = instance.id.0;
            if self.shards[s].channels.contains_key(&id) {
                continue;
            }
            let channel = Channel { state: State::Connecting, closed: false };
            self.shards[s].channels.insert(id, channel);
            let after = self.dice.below(5_000);
            let fails = self.plan.faults.flap_ms > 0 && self.dice.chance(20);
            self.at(after, if fails { Event::Break(s, id) } else { Event::Up(s, id) });
        }
        let here: BTreeSet<u32> = snapshot.instances.iter().map(|i| i.id.0).collect();
        for (id, channel) in &mut self.shards[s].channels {
            channel.closed |= !here.contains(id);
        }
    }

    fn link_up(&mut self, s: usize, id: u32) {
        let channel = self.shards[s].channels.get_mut(&id).expect("channels stay");
        if channel.state == State::Up {
            return;
        }
        channel.state = State::Up;
        if !channel.closed && !self.shards[s].stopped {
            self.shards[s].engine.on_link(InstanceId(id), Link::Up, Micros(self.now));
            self.wake(s);
        }
        let waiting = self
            .calls
            .iter_mut()
            .filter(|(key, c)| key.0 == s && c.instance == id && !c.sent && c.result.is_none());
        let mut sent = Vec::new();
        for (&(_, ticket), call) in waiting {
            call.sent = true;
            sent.push(ticket);
        }
        for ticket in sent {
            let after = self.dice.range(50, self.plan.faults.answer_us);
            self.at(after, Event::Arrives(s, ticket));
        }
    }

    /// The connection is lost, or the attempt failed: calls end one by one, before and after the
    /// engine hears of the link.
    fn link_breaks(&mut self, s: usize, id: u32) {
        let channel = self.shards[s].channels.get_mut(&id).expect("channels stay");
        if channel.state == State::Down {
            return;
        }
        channel.state = State::Down;
        let closed = channel.closed;
        let first = self.dice.chance(50);
        if first {
            self.tell_down(s, id, closed);
        }
        let broken = self.calls.iter().filter(|(key, c)| key.0 == s && c.instance == id);
        let broken: Vec<(u64, bool)> = broken.map(|(key, c)| (key.1, c.sent)).collect();
        for (ticket, sent) in broken {
            let (fault, started) = match sent {
                true => (CallFault::ConnectionLost, Started::Maybe),
                false => (CallFault::NotConnected, Started::No),
            };
            let failed = backend::error(fault, started, status::UNAVAILABLE, &mut self.dice);
            let call = self.calls.get_mut(&(s, ticket)).expect("just seen");
            call.result = Some(Err(CallError { pushback: None, ..failed }));
            if self.dice.chance(50) {
                self.call_ends(s, ticket);
            } else {
                let after = self.dice.below(300);
                self.at(after, Event::Ends(s, ticket));
            }
        }
        if !first {
            self.tell_down(s, id, closed);
        }
        let longest = if self.active { 200_000 } else { 5_000 };
        let after = self.dice.range(500, longest);
        self.at(after, Event::Up(s, id));
    }

    fn tell_down(&mut self, s: usize, id: u32, closed: bool) {
        if !closed && !self.shards[s].stopped {
            self.shards[s].engine.on_link(InstanceId(id), Link::Down, Micros(self.now));
            self.wake(s);
        }
    }

    fn flap(&mut self) {
        if !self.active {
            return;
        }
        let s = self.dice.below(self.plan.shards as u64) as usize;
        let ids: Vec<u32> = self.shards[s].channels.keys().copied().collect();
        let id = self.dice.pick(&ids);
        self.link_breaks(s, id);
        let after = self.dice.below(self.plan.faults.flap_ms * 2_000) + 1;
        self.at(after, Event::Flap);
    }

    // ---- control

    fn control(&mut self) {
        if self.dice.chance(60) {
            while self.reported.try_recv().is_some() {}
        }
        let s = self.dice.below(self.plan.shards as u64) as usize;
        if self.dice.chance(30) {
            // Full: the next report will do.
            let _ = self.shards[s].control.try_send(Command::Report);
            self.wake(s);
        }
        for s in 0..self.shards.len() {
            self.send_commands(s);
        }
        let after = self.dice.range(1_000, 20_000);
        self.at(after, Event::Control);
    }

    /// Sends what a shard must know; again at the next time while its mailbox is full.
    fn send_commands(&mut self, s: usize) {
        let shard = &mut self.shards[s];
        if let Some(snapshot) = shard.adopt.take()
            && let Err(LaneRefusal::Full(_)) =
                shard.control.try_send(Command::Adopt(snapshot.clone()))
        {
            shard.adopt = Some(snapshot);
        }
        if shard.drain {
            let drain = Command::Drain { grace: self.plan.grace };
            shard.drain = shard.control.try_send(drain).is_err();
        }
        self.wake(s);
    }

    fn change_instances(&mut self) {
        if !self.active {
            return;
        }
        for _ in 0..self.dice.range(1, 3) {
            let here = self.instances.len() as u64;
            if here > 0 && self.dice.chance(55) {
                let gone = self.dice.below(here) as usize;
                self.instances.remove(gone);
            } else if self.instance_ids < 400 {
                let service = self.dice.below(u64::from(UNARY) + 1) as u16;
                self.instances.push(plan::instance(self.instance_ids, service, &mut self.dice));
                self.instance_ids += 1;
            }
        }
        self.version += 1;
        let snapshot = plan::snapshot(self.version, &self.plan.routes, &self.instances);
        for s in 0..self.shards.len() {
            self.shards[s].adopt = Some(snapshot.clone());
        }
        let after = self.dice.below(self.plan.faults.adopt_ms * 2_000) + 1;
        self.at(after, Event::Adopt);
    }

    pub fn begin_drain(&mut self) {
        self.draining = true;
        for s in 0..self.shards.len() {
            self.shards[s].drain = true;
        }
    }

    // ---- the end

    /// Whether nothing is under way: all that was written is read, answered and taken.
    pub fn is_quiet(&self) -> bool {
        let shards_rest = self.shards.iter().all(|shard| {
            let view = shard.engine.view();
            let idle = view.messages == 0 && view.calls == 0 && shard.turn_at.is_none();
            shard.stopped || !self.draining && idle
        });
        let peers_rest = self.peers.iter().all(|p| {
            let written = p.outgoing.is_empty() && p.up.is_empty() && p.down.is_empty();
            (self.shards[p.shard].stopped && p.down.is_empty())
                || p.gone
                || p.reset
                || written && !p.gateway_ended
        });
        shards_rest && peers_rest && self.calls.is_empty()
    }

    /// What must hold when nothing happens any more.
    pub fn check_end(&self) {
        for (s, shard) in self.shards.iter().enumerate() {
            let view = shard.engine.view();
            if let Err(what) = shard.engine.check_invariants() {
                panic!("shard {s} at the end: {what}");
            }
            let report = self.report(s);
            assert_eq!(report.counters.get(Counter::LaneLost), shard.lost_reports, "losses");
            if self.draining {
                assert!(shard.stopped, "shard {s} does not end: {view:?}");
            } else {
                assert_eq!((view.messages, view.streams, view.calls), (0, 0, 0), "shard {s}");
                assert_eq!((report.gauges.queue_items, report.gauges.queue_bytes), (0, 0));
            }
        }
        for (p, peer) in self.peers.iter().enumerate() {
            let limit = match (peer.close_code, peer.read_at_close) {
                (None, _) if peer.open && !peer.gone && !peer.gateway_ended => peer.written,
                (Some(1001), Some(read)) if self.draining => read,
                _ => continue,
            };
            let open = peer.unanswered(limit);
            let lost: Vec<_> = open.iter().map(|seq| (seq, &peer.sent[seq])).collect();
            let state = (peer.read, peer.written, peer.close_code, peer.read_at_close);
            assert!(lost.is_empty(), "promise 1: peer {p} {state:?} has no answer to {lost:?}");
        }
    }
}

impl Shard {
    fn new(n: usize, plan: &Plan, snapshot: &Arc<Snapshot>, seed: u64) -> Self {
        let bell = Doorbell::new();
        let (control, commands) = lane(plan.lane_items, &bell);
        let engine = Engine::new(EngineInit {
            shard: ShardId(n as u16),
            gateway: plan.gateway.clone(),
            settings: plan.settings.clone(),
            snapshot: snapshot.clone(),
            boot_id: 7,
            unix_at_boot_us: 1_700_000_000_000_000,
            seed,
        });
        Self {
            engine,
            sockets: BTreeMap::new(),
            to_read: Vec::new(),
            dirty: Vec::new(),
            backlog: VecDeque::new(),
            channels: BTreeMap::new(),
            bell,
            commands,
            control,
            turn_at: None,
            stalled_until: 0,
            stopping: false,
            stopped: false,
            lost_reports: 0,
            adopt: None,
            drain: false,
        }
    }
}
