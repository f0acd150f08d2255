//! The world of a run: its clock, the events in their order, arriving clients, control, and the
//! checks at the end.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use shardgate::config::settings::Tenants;
use shardgate::engine::groups::lane::Deliver;
use shardgate::engine::{Engine, EngineInit};
use shardgate::ids::{ConnId, ShardId};
use shardgate::lanes::{
    self, Doorbell, LaneReceiver, LaneRefusal, LaneSender, PlaceReceiver, PlaceSender, lane,
    lane_of_places,
};
use shardgate::limits;
use shardgate::mailbox::{Command, ShardConfig, ShardEvent};
use shardgate::message::{Encoding, Micros};
use shardgate::push::Submit;
use shardgate::routing::{Instance, Share, Snapshot};
use shardgate::shard::handoff::Handoff;
use shardgate::shard::turn::{Readiness, TurnState};
use shardgate::stats::{Counter, Report};
use xxhash_rust::xxh3::Xxh3;

use crate::backend::{Calls, Channel};
use crate::client::{Peer, UP_BYTES_MAX};
use crate::dice::Dice;
use crate::oracle::Oracle;
use crate::plan::{self, Plan};
use crate::push_oracle::Fan;
use crate::sessions::Travel;
use crate::tenants::{self, Tenancy};
use crate::wire::Message;

#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A shard has a turn.
    Turn(usize),
    /// A shard gets its pulse.
    Tick(usize),
    /// A client writes, or acts.
    Write(usize),
    /// A client reads its socket.
    Read(usize),
    /// A traveller comes back.
    Travel(usize),
    /// A member comes back.
    Member(usize),
    /// Control pushes something.
    Push,
    /// A call of a shard arrives at its instance, ends, or times out.
    Arrives(usize, u64),
    Ends(usize, u64),
    TimesOut(usize, u64),
    /// A byte of an instance comes that a shard asked for.
    Alive(usize, u32),
    /// The connection of a shard to an instance comes up, or breaks.
    Up(usize, u32),
    Break(usize, u32),
    /// The connection of some shard to some instance breaks.
    Flap,
    /// Control reads its lane and sends commands.
    Control,
    /// Control publishes a snapshot, sometimes with other instances.
    Apply,
    /// The process is stopped, for so many microseconds.
    Pause(u64),
    /// The wall clock is set, by seconds.
    SetClock(i64),
    Drain,
}

/// A socket as a shard's shell knows it.
#[derive(Debug)]
pub struct Socket {
    pub peer: usize,
    pub readiness: Readiness,
}

pub struct Shard {
    pub engine: Engine,
    pub state: TurnState,
    pub sockets: BTreeMap<ConnId, Socket>,
    pub backlog: VecDeque<usize>,
    pub channels: BTreeMap<u32, Channel>,
    pub bell: Arc<Doorbell>,
    pub commands: LaneReceiver<Command>,
    pub control: LaneSender<Command>,
    /// Lane from the other shards into this one.
    pub handoff: LaneSender<Handoff<usize, usize>>,
    pub handed: LaneReceiver<Handoff<usize, usize>>,
    pub deliver: LaneSender<Deliver>,
    pub delivered: LaneReceiver<Deliver>,
    pub submit: PlaceSender<Submit>,
    pub submitted: PlaceReceiver<Submit>,
    pub turn_at: Option<u64>,
    pub stalled_until: u64,
    /// Turns one after the other that left work about pushes.
    pub turns_on_end: u32,
    /// Whether the shard is in its last turn.
    pub ending: bool,
    pub stopped: bool,
    pub lost_events: u64,
    /// Snapshot that control has still to send, because the mailbox was full.
    pub apply: Option<Arc<Snapshot>>,
    /// Whether control has still to send the drain command.
    pub drain: bool,
}

pub struct World {
    pub plan: Plan,
    pub now: u64,
    pub dice: Dice,
    pub events: BTreeMap<(u64, u64), Event>,
    pub numbers: u64,
    pub shards: Vec<Shard>,
    pub peers: Vec<Peer>,
    pub calls: Calls,
    pub oracle: Oracle,
    /// Messages by user that any connection of the user may send again.
    pub shared: BTreeMap<usize, Vec<(Message, u64)>>,
    /// Whether clients send and faults occur.
    pub active: bool,
    pub draining: bool,
    pub instances: Vec<Instance>,
    pub instance_ids: u32,
    pub version: u64,
    pub reports: LaneSender<ShardEvent>,
    pub reported: LaneReceiver<ShardEvent>,
    pub trace: Xxh3,
    /// Time that the present turn has taken so far.
    pub turn_us: u64,
    /// Seconds by which the wall clock was set.
    pub clock_step_s: i64,
    /// Time until which the process is stopped.
    pub paused_until: u64,
    /// State of the tenants, if they are configured.
    pub tenancy: Option<Tenancy>,
    /// Clients that resume their sessions.
    pub travel: Travel,
    /// Members of groups, and what is pushed to them.
    pub fan: Fan,
}

/// Number of users as whom clients sign in.
const USERS: u64 = 5;
/// Time at which a run begins: not 0, so that 0 can mean "never".
const START_US: u64 = 1_000_000;

impl World {
    pub fn new(plan: Plan) -> Self {
        let mut dice = Dice::new(plan.seed);
        let mut instances = Vec::new();
        for service in 0..plan::services(&plan) as u16 {
            for _ in 0..dice.range(1, 3) {
                instances.push(plan::instance(instances.len() as u32, service, &mut dice));
            }
        }
        let mut tenancy = Tenancy::new(&plan, START_US);
        let snapshot = tenants::publish(&mut tenancy, 1, &plan, &instances, &mut dice);
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
            oracle: Oracle::new(
                plan.settings.dedup.enabled,
                plan.gateway.auth.tenants == Tenants::Many,
            ),
            shared: BTreeMap::new(),
            active: true,
            draining: false,
            instance_ids: instances.len() as u32,
            instances,
            version: 1,
            reports,
            reported,
            trace: Xxh3::new(),
            turn_us: 0,
            clock_step_s: 0,
            paused_until: 0,
            tenancy,
            travel: Travel::default(),
            fan: Fan::default(),
            dice,
            plan,
        };
        world.begin(&snapshot);
        world
    }

    pub fn begin(&mut self, snapshot: &Snapshot) {
        for s in 0..self.shards.len() {
            self.open_channels(s, snapshot);
            let first = self.dice.below(limits::TICK_MS * 1000);
            self.at(first, Event::Tick(s));
        }
        match self.plan.greed {
            Some(greed) => self.connect_roles(greed),
            None => (0..self.plan.clients).for_each(|_| self.connect()),
        }
        self.add_travellers();
        self.add_members();
        self.at(1_000, Event::Control);
        if self.plan.faults.flap_ms > 0 {
            self.at(5_000, Event::Flap);
        }
        if self.plan.faults.adopt_ms > 0 {
            self.at(20_000, Event::Apply);
        }
        if let Some((at, step_s)) = self.plan.clock_step {
            self.at(at, Event::SetClock(step_s));
        }
        if let Some((at, length)) = self.plan.pause {
            self.at(at, Event::Pause(length));
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

    /// Runs the events up to the time `until`.
    pub fn run(&mut self, until: u64) {
        while let Some((&(at, number), &event)) = self.events.first_key_value() {
            if at > until {
                break;
            }
            self.events.remove(&(at, number));
            self.now = at;
            self.note(&[at, number]);
            self.handle(event);
        }
        self.now = until;
    }

    /// Gives pushes to their shards: all of them or none.
    pub fn send_pushes(&mut self, pushes: Vec<(ShardId, Submit)>) -> bool {
        let to: Vec<usize> = pushes.iter().map(|(to, _)| usize::from(to.0)).collect();
        let lanes: Vec<_> = self.shards.iter().map(|shard| shard.submit.clone()).collect();
        let sent = lanes::send_to_all(&lanes, pushes);
        if sent {
            to.into_iter().for_each(|s| self.wake(s));
        }
        sent
    }

    /// Stops the process: its shards have no turn, its channels and its control read nothing.
    fn pause(&mut self, length: u64) {
        self.paused_until = self.now + length;
        for shard in &mut self.shards {
            shard.stalled_until = shard.stalled_until.max(self.paused_until);
        }
    }

    /// Whether an event is one of the process, and does not happen while that is stopped.
    fn waits(&mut self, event: Event) -> bool {
        match event {
            Event::Turn(s) => self.shards[s].turn_at == Some(self.now),
            Event::Tick(_)
            | Event::Ends(..)
            | Event::TimesOut(..)
            | Event::Alive(..)
            | Event::Up(..)
            | Event::Break(..)
            | Event::Flap
            | Event::Control
            | Event::Apply
            | Event::Push
            | Event::Drain => true,
            Event::Write(_)
            | Event::Read(_)
            | Event::Travel(_)
            | Event::Member(_)
            | Event::Arrives(..)
            | Event::Pause(_)
            | Event::SetClock(_) => false,
        }
    }

    pub fn handle(&mut self, event: Event) {
        if self.now < self.paused_until && self.waits(event) {
            if let Event::Turn(s) = event {
                self.shards[s].turn_at = Some(self.paused_until);
            }
            return self.at(self.paused_until - self.now, event);
        }
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
            Event::Travel(t) => self.travels(t),
            Event::Member(c) => self.member_comes(c),
            Event::Push => self.pushes(),
            Event::Arrives(s, ticket) => self.call_arrives(s, ticket),
            Event::Ends(s, ticket) => self.call_ends(s, ticket),
            Event::TimesOut(s, ticket) => self.call_times_out(s, ticket),
            Event::Alive(s, id) => self.is_alive(s, id),
            Event::Up(s, id) => self.link_up(s, id),
            Event::Break(s, id) => self.link_breaks(s, id),
            Event::Flap => self.flap(),
            Event::Control => self.control(),
            Event::Apply => self.change_instances(),
            Event::Pause(length) => self.pause(length),
            Event::SetClock(step_s) => self.clock_step_s = step_s,
            Event::Drain => self.begin_drain(),
        }
    }

    /// Adds to the trace, which two runs of a seed must share.
    pub fn note(&mut self, words: &[u64]) {
        for word in words {
            self.trace.update(&word.to_le_bytes());
        }
    }

    pub fn trace(&self) -> u64 {
        self.trace.digest()
    }

    pub fn report(&self, s: usize) -> Report {
        self.shards[s].engine.report(0, Micros(self.now))
    }

    pub fn connect(&mut self) {
        let s = self.dice.below(self.plan.shards as u64) as usize;
        let encoding = self.dice.pick(&[Encoding::Json, Encoding::Protobuf]);
        let slow = self.dice.chance(self.plan.faults.slow);
        let down_max = if slow { 2 << 10 } else { 32 << 10 };
        let p = self.peers.len();
        self.peers.push(Peer::new(s, encoding, slow, down_max));
        self.peers[p].user = self.dice.below(USERS) as usize;
        self.shards[s].backlog.push_back(p);
        let after = self.dice.below(20_000);
        self.at(after, Event::Write(p));
        self.wake(s);
    }

    pub fn up_room(&self, p: usize) -> usize {
        UP_BYTES_MAX - self.peers[p].up.len()
    }

    pub fn control(&mut self) {
        if self.dice.chance(60) {
            self.take_events();
        }
        let s = self.dice.below(self.plan.shards as u64) as usize;
        if self.dice.chance(30) {
            // A full mailbox does no harm: the next report will do.
            let asked = if self.dice.chance(50) { Command::Report(0) } else { Command::Sample };
            let _ = self.shards[s].control.try_send(asked);
            self.wake(s);
        }
        for s in 0..self.shards.len() {
            self.send_commands(s);
        }
        let after = self.dice.range(1_000, 20_000);
        self.at(after, Event::Control);
    }

    pub fn take_events(&mut self) {
        while let Some(event) = self.reported.try_recv() {
            let event = match event {
                ShardEvent::Receipts { receipts, .. } => {
                    receipts.into_iter().for_each(|receipt| self.takes_receipt(receipt));
                    continue;
                }
                event => event,
            };
            if let (Some(tenancy), ShardEvent::QuotaDemands { shard, demands }) =
                (&mut self.tenancy, event)
            {
                tenancy.take_demands(usize::from(shard.0), demands, self.now);
            }
        }
        if let Some(tenancy) = &mut self.tenancy {
            tenancy.divide(self.now);
        }
    }

    /// Sends the commands that a shard must get; again at the next time while its mailbox is full.
    pub fn send_commands(&mut self, s: usize) {
        let shard = &mut self.shards[s];
        if let Some(snapshot) = shard.apply.take() {
            let published = ShardConfig {
                snapshot: snapshot.clone(),
                gateway: self.plan.gateway.clone(),
                settings: self.plan.settings.clone(),
                auth: self.plan.verifier.clone(),
                tls: None,
                service_tls: Default::default(),
            };
            let command = Command::Apply(Box::new(published));
            if let Err(LaneRefusal::Full(_)) = shard.control.try_send(command) {
                shard.apply = Some(snapshot);
            }
        }
        if let Some(tenancy) = &mut self.tenancy
            && !tenancy.parts[s].is_empty()
            && shard.apply.is_none()
        {
            let parts = Command::QuotaParts(tenancy.parts[s].clone());
            if shard.control.try_send(parts).is_ok() {
                tenancy.parts[s].clear();
            }
        }
        if shard.drain {
            let drain = Command::Drain(self.plan.stop.clone());
            shard.drain = shard.control.try_send(drain).is_err();
        }
        self.wake(s);
    }

    pub fn change_instances(&mut self) {
        if !self.active {
            return;
        }
        for _ in 0..self.dice.range(1, 3) {
            let here = self.instances.len() as u64;
            if here > 0 && self.dice.chance(55) {
                let gone = self.dice.below(here) as usize;
                self.instances.remove(gone);
            } else if here > 0 && self.dice.chance(40) {
                // Ejected, on trial, warming up, drained, or fully trusted again.
                let one = self.dice.below(here) as usize;
                let percent = self.dice.pick(&[0, 0, 10, 50, 100, 100]);
                self.instances[one].share = Share::percent(percent);
                self.instances[one].draining = self.dice.chance(10);
            } else if self.instance_ids < 400 {
                let service = self.dice.below(plan::services(&self.plan) as u64) as u16;
                self.instances.push(plan::instance(self.instance_ids, service, &mut self.dice));
                self.instance_ids += 1;
            }
        }
        self.version += 1;
        let World { tenancy, version, plan, instances, dice, .. } = self;
        let snapshot = tenants::publish(tenancy, *version, plan, instances, dice);
        for s in 0..self.shards.len() {
            self.shards[s].apply = Some(snapshot.clone());
        }
        let after = self.dice.below(self.plan.faults.adopt_ms * 2_000) + 1;
        self.at(after, Event::Apply);
    }

    pub fn begin_drain(&mut self) {
        self.draining = true;
        for s in 0..self.shards.len() {
            self.shards[s].drain = true;
        }
    }

    /// Whether nothing is under way: everything written is read, answered and received.
    pub fn is_quiet(&self) -> bool {
        let shards_rest = self.shards.iter().all(|shard| {
            let view = shard.engine.view();
            // A connection held for its rate, or about to move, has messages that were not read
            // yet.
            let read = shard.handed.is_empty() && view.conns.iter().all(|conn| !conn.paused);
            let idle = view.messages == 0 && view.calls == 0 && shard.turn_at.is_none() && read;
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

    /// Checks what must hold when nothing is under way any more.
    pub fn check_end(&self) {
        for (s, shard) in self.shards.iter().enumerate() {
            let view = shard.engine.view();
            if let Err(what) = shard.engine.check_invariants() {
                panic!("shard {s} at the end: {what}");
            }
            let report = self.report(s);
            assert_eq!(report.counters.get(Counter::LaneLost), shard.lost_events, "losses");
            if self.draining {
                assert!(shard.stopped, "shard {s} does not end: {view:?}");
            } else {
                assert_eq!((view.messages, view.streams, view.calls), (0, 0, 0), "shard {s}");
                assert_eq!((report.gauges.queue_items, report.gauges.queue_bytes), (0, 0));
            }
        }
        for (p, peer) in self.peers.iter().enumerate() {
            if peer.leg.is_some() || peer.member.is_some() {
                continue;
            }
            let is_told = peer.close_code.is_some() || peer.draining && !peer.open || peer.reset;
            assert!(is_told || !peer.cut_by_end, "peer {p} was closed without a reason");
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
    pub fn new(n: usize, plan: &Plan, snapshot: &Arc<Snapshot>, seed: u64) -> Self {
        let bell = Doorbell::new();
        let (control, commands) = lane(plan.lane_items, &bell);
        let (handoff, handed) = lane(plan.lane_items, &bell);
        let (deliver, delivered) = lane(plan.lane_items, &bell);
        let (submit, submitted) = lane_of_places(plan.lane_items, &bell);
        let engine = Engine::new(EngineInit {
            shard: ShardId(n as u16),
            shards: plan.shards as u16,
            gateway: plan.gateway.clone(),
            settings: plan.settings.clone(),
            snapshot: snapshot.clone(),
            auth: plan.verifier.clone(),
            boot_id: 7,
            unix_at_boot_us: plan::UNIX_AT_BOOT_S * 1_000_000,
            seed: wide(seed),
        });
        Self {
            engine,
            state: TurnState::new(ShardId(n as u16), plan.shards as u16, &plan.settings),
            sockets: BTreeMap::new(),
            backlog: VecDeque::new(),
            channels: BTreeMap::new(),
            bell,
            commands,
            control,
            handoff,
            handed,
            deliver,
            delivered,
            submit,
            submitted,
            turn_at: None,
            stalled_until: 0,
            turns_on_end: 0,
            ending: false,
            stopped: false,
            lost_events: 0,
            apply: None,
            drain: false,
        }
    }
}

/// A seed of 256 bits made of one of 64.
fn wide(seed: u64) -> [u8; 32] {
    let mut wide = [0; 32];
    wide[..8].copy_from_slice(&seed.to_le_bytes());
    wide
}
