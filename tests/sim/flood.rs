//! Clients that flood: their sockets are full before each turn. The turns follow each other without
//! a pause, as those of a shard do that has work.

use std::time::Duration;

use shardgate::config::settings::{GatewaySettings, ShardSettings};
use shardgate::message::Encoding;

use crate::client::UP_BYTES_MAX;
use crate::dice::Dice;
use crate::plan::Plan;
use crate::wire::{self, Message};
use crate::world::World;

/// What a client floods with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flood {
    WebSocketPings,
    Heartbeats,
    NoRoute,
    WhoAmI,
    /// Each message in 60 fragments.
    Fragments,
    /// Messages of 15 KiB that are expensive to read.
    Large,
    /// Some frames, and then nothing until they are read.
    Rhythm,
}

impl Flood {
    pub const ALL: [Flood; 7] = [
        Flood::WebSocketPings,
        Flood::Heartbeats,
        Flood::NoRoute,
        Flood::WhoAmI,
        Flood::Fragments,
        Flood::Large,
        Flood::Rhythm,
    ];

    /// The bytes that it sends again and again.
    fn bytes(self, dice: &mut Dice) -> Vec<u8> {
        let mut out = Vec::new();
        let mut text = |text: &str| wire::frame(&mut out, wire::TEXT, true, text.as_bytes(), dice);
        match self {
            Flood::WebSocketPings => wire::frame(&mut out, wire::PING, true, b"", dice),
            Flood::Heartbeats => text("{\"type\":\"heartbeat\"}"),
            Flood::NoRoute => text("{\"msg_id\":5}"),
            Flood::WhoAmI => text("{\"msg_id\":9002}"),
            Flood::Large => {
                text(&format!("{{\"msg_id\":9000,\"payload\":[{}[]]}}", "[],".repeat(5_000)));
            }
            Flood::Fragments => {
                wire::frame(&mut out, wire::TEXT, false, b"{\"type\":\"heartbeat\"", dice);
                (0..60).for_each(|_| wire::frame(&mut out, 0, false, b"", dice));
                wire::frame(&mut out, 0, true, b"}", dice);
            }
            Flood::Rhythm => {
                (0..20).for_each(|_| wire::frame(&mut out, wire::PONG, true, b"", dice))
            }
        }
        out
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Seen {
    /// Messages of the clients that do not flood.
    pub polite: u64,
    /// Most turns after which one of them was read.
    pub turns_max: u64,
    /// Bytes read of the clients that flood, of that with the fewest and that with the most.
    pub least_read: u64,
    pub most_read: u64,
}

/// Turns of a run.
const TURNS: u64 = 400;
/// Turns until all that flood are known as such: before, all of them are new at once.
const BEGUN: u64 = 100;
/// Clients that do not flood: each sends a message every 20 turns. A round of 20 that flood takes
/// 640 us of work, some 7 turns of theirs and as many between them: then a client is new again.
const POLITE: usize = 5;
const EVERY: u64 = 20;

/// Runs a shard with `count` clients that flood.
pub fn run(flood: Flood, count: usize) -> Seen {
    let mut world = World::new(plan());
    let mut dice = Dice::new(1);
    let bytes = flood.bytes(&mut dice);
    let floods = POLITE..POLITE + count;
    for p in 0..floods.end {
        world.connect();
        world.peers[p].encoding = Encoding::Json;
        let upgrade = wire::upgrade(Encoding::Json, None, &mut dice);
        write(&mut world, p, &upgrade);
    }
    let mut sent = [0; POLITE];
    let mut seen = Seen { polite: 0, turns_max: 0, least_read: 0, most_read: 0 };
    for number in 1..=TURNS {
        for p in floods.clone() {
            let is_due = flood != Flood::Rhythm || world.peers[p].up.is_empty();
            let most = if flood == Flood::Rhythm { bytes.len() } else { UP_BYTES_MAX };
            while is_due && world.peers[p].up.len() + bytes.len() <= most {
                write(&mut world, p, &bytes);
            }
        }
        for (p, at) in sent.iter_mut().enumerate() {
            let is_read = world.peers[p].up.is_empty();
            if number > BEGUN && is_read && (number + p as u64 * 7).is_multiple_of(EVERY) {
                let message = Message { msg_id: 9_001, seq: number, ..Message::default() };
                let mut out = Vec::new();
                let text = wire::encode(Encoding::Json, &message);
                wire::frame(&mut out, wire::TEXT, true, &text, &mut dice);
                write(&mut world, p, &out);
                (*at, seen.polite) = (number, seen.polite + 1);
            }
        }
        turn(&mut world);
        for (p, &at) in sent.iter().enumerate() {
            if number > BEGUN && !world.peers[p].up.is_empty() {
                seen.turns_max = seen.turns_max.max(number - at + 1);
            }
        }
    }
    let read = world.peers[floods].iter().map(|peer| peer.read);
    (seen.least_read, seen.most_read) = (read.clone().min().unwrap(), read.max().unwrap());
    seen
}

/// Turns after which a message is read that comes when `count` clients of another address have
/// just sent one each, and none of them floods.
pub fn turns_beside_thrifty(count: usize) -> u64 {
    let mut world = World::new(plan());
    let mut dice = Dice::new(1);
    for p in 0..=count {
        world.connect();
        let peer = &mut world.peers[p];
        (peer.encoding, peer.address) = (Encoding::Json, [127, 0, 0, 1 + (p / count) as u8]);
        let upgrade = wire::upgrade(Encoding::Json, None, &mut dice);
        write(&mut world, p, &upgrade);
    }
    while world.peers.iter().any(|peer| !peer.up.is_empty()) {
        turn(&mut world);
    }
    let mut message = Vec::new();
    let text = Message { msg_id: 9_001, seq: 1, ..Message::default() };
    wire::frame(&mut message, wire::TEXT, true, &wire::encode(Encoding::Json, &text), &mut dice);
    (0..count).for_each(|p| write(&mut world, p, &message));
    turn(&mut world);
    write(&mut world, count, &message);
    let mut turns = 0;
    while !world.peers[count].up.is_empty() {
        turn(&mut world);
        turns += 1;
    }
    let left = world.peers.iter().filter(|peer| !peer.up.is_empty()).count();
    assert!(left > count / 2, "{left} of {count} wait: the shard was too fast for this test");
    turns
}

/// A turn of the shard; all clients take what is there for them.
fn turn(world: &mut World) {
    world.now += 500;
    world.turn(0);
    for p in 0..world.peers.len() {
        world.peers[p].down.clear();
        world.writable(p);
    }
}

/// One shard, and clients that do what this file says.
fn plan() -> Plan {
    let mut plan = Plan::new(0);
    (plan.shards, plan.clients, plan.read_us) = (1, 0, 0);
    (plan.settings, plan.verifier) = (ShardSettings::default(), None);
    // Short turns are enough, and few of them: it is their number that counts.
    plan.settings.read = Duration::from_micros(100);
    plan.gateway = GatewaySettings::default().into();
    plan.faults.split = 0;
    plan.faults.slow = 0;
    plan
}

fn write(world: &mut World, p: usize, bytes: &[u8]) {
    world.peers[p].up.extend(bytes);
    world.peers[p].written += bytes.len() as u64;
    world.readable(p);
}
