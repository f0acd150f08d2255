//! Steps of a message, each with what it works on: `micro` times them, `counts` counts their
//! instructions, and a test counts their allocations. Steps of the two benches alone are in
//! `dispatch.rs`.
//!
//! A rig is made once. Each of its steps can be run again and again, and costs the same each time.

#[path = "frames.rs"]
pub mod frames;

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use prost::encoding::{decode_varint, encode_varint};

use shardgate::backend::framing::{Assembly, MessageEncoding, prefix};
use shardgate::config::settings::{GatewaySettings, ShardSettings};
use shardgate::engine::dispatcher::request::{Request, Requests};
use shardgate::engine::{Engine, EngineInit};
use shardgate::ids::{ConnId, InstanceId, MsgKey, ServiceId, SessionId, ShardId, Ticket};
use shardgate::message::{CallBody, Micros, Outcome, ServerMessage};
use shardgate::routing::{
    Failover, HashOn, Instance, Mode, Order, PayloadKind, Ring, Route, Service, Share, Snapshot,
    TenantTable,
};
use shardgate::wire::backend::read_responses;
use shardgate::wire::frames::{Decoder, Flow, FrameEvent, FrameLimits};
use shardgate::wire::{json, protobuf};

use frames::{Talk, json_frame, payload, protobuf_frame};

/// Messages of a full batch.
pub const BATCH: usize = 100;
/// Messages of an engine's turn.
pub const TURN: usize = 64;
const LIMITS: FrameLimits = FrameLimits { message_bytes_max: 64 << 10, fragments_max: 64 };

/// One service with `instances` instances, routes of the default kind.
pub fn snapshot(instances: u32) -> Snapshot {
    let names: Vec<String> = (0..instances).map(|n| format!("logic-{n}")).collect();
    let route = |first| Route {
        first,
        last: first + 999,
        service: ServiceId(0),
        priority: shardgate::message::Priority::Normal,
        timeout_ms: 5_000,
        order: Order::Session,
        hash_on: HashOn::User,
        payload: PayloadKind::Json,
        idempotent: false,
        failover: Failover::Next,
        method: None,
        service_text: false,
        needs_user: false,
        only_for: None,
    };
    let points = names.iter().zip(0..).map(|(name, n)| (InstanceId(n), name.as_str(), 1));
    let service =
        Service { name: "logic".into(), mode: Mode::Batch, ring: Ring::new(points, 160).into() };
    let instance = |(name, n): (&String, u32)| Instance {
        id: InstanceId(n),
        service: ServiceId(0),
        name: name.as_str().into(),
        addresses: SocketAddr::from(([127, 0, 0, 1], 50_001)).into(),
        weight: 1,
        share: Share::ALL,
        draining: false,
    };
    Snapshot {
        version: 1,
        routes: vec![route(1000), route(2000), route(3000)],
        tenants: TenantTable::default(),
        services: vec![service],
        instances: names.iter().zip(0..).map(instance).collect(),
    }
}

/// Makes `message` number `n`, waiting since 1 s.
pub fn fill(message: &mut Request, n: u64) {
    message.msg_id = 1001;
    message.seq = n + 1;
    message.received = Micros(1_000_000 + n);
    message.deadline = Micros(6_000_000 + n);
    message.arrival = n;
    message.instance = InstanceId(0);
    message.session = SessionId::new(ShardId(0), u128::from(n) << 40 | 12_345);
    message.payload.set(&[b'1'; 64]);
}

/// A full batch of messages that wait, and their keys.
pub fn waiting() -> (Requests, Vec<MsgKey>) {
    let mut messages = Requests::with_capacity_max(BATCH);
    let keys =
        (0..BATCH as u64).map(|n| messages.insert_with(|message| fill(message, n))).collect();
    (messages, keys)
}

/// A `BatchResponse` with `payload` for each request.
fn responses(requests: impl Iterator<Item = u64>, payload: &[u8]) -> Bytes {
    let mut out = Vec::new();
    for request in requests {
        let mut item = vec![0x08];
        encode_varint(request, &mut item);
        item.push(0x22);
        encode_varint(payload.len() as u64, &mut item);
        item.extend_from_slice(payload);
        out.push(0x0a);
        encode_varint(item.len() as u64, &mut out);
        out.extend_from_slice(&item);
    }
    out.into()
}

/// Request ids of a `BatchRequest`: of each item (field 3) the first field.
fn request_ids(mut body: CallBody) -> Vec<u64> {
    let mut bytes = body.copy_to_bytes(body.remaining()).split_off(5);
    let mut ids = Vec::new();
    while bytes.has_remaining() {
        let key = decode_varint(&mut bytes).expect("our own bytes");
        match (key >> 3, key & 7) {
            (_, 0) => drop(decode_varint(&mut bytes)),
            (_, 1) => bytes.advance(8),
            (field, _) => {
                let len = decode_varint(&mut bytes).expect("our own bytes") as usize;
                let mut item = bytes.split_to(len);
                if field == 3 {
                    item.advance(1);
                    ids.push(decode_varint(&mut item).expect("our own bytes"));
                }
            }
        }
    }
    ids
}

/// [`BATCH`] frames in one receive, decoded down to the message.
pub struct Decode {
    text: Vec<u8>,
    binary: Vec<u8>,
}

impl Decode {
    // A mask of zeros costs what any costs, and leaves the buffer as it is for the next round.
    pub fn new() -> Self {
        Self {
            text: (0..BATCH as u64).flat_map(|n| json_frame(n + 1)).collect(),
            binary: (0..BATCH as u64).flat_map(|n| protobuf_frame(n + 1)).collect(),
        }
    }

    pub fn json(&mut self) {
        let mut decoder = Decoder::default();
        let fed = decoder.feed(&LIMITS, &mut self.text, |event| {
            if let FrameEvent::Text(text) = event {
                black_box(json::decode(text).expect("a good message"));
            }
            Flow::Continue
        });
        assert_eq!(fed.expect("good frames").frames, BATCH as u32);
    }

    pub fn protobuf(&mut self) {
        let mut decoder = Decoder::default();
        let fed = decoder.feed(&LIMITS, &mut self.binary, |event| {
            if let FrameEvent::Binary(bytes) = event {
                black_box(protobuf::decode(bytes).expect("a good message"));
            }
            Flow::Continue
        });
        assert_eq!(fed.expect("good frames").frames, BATCH as u32);
    }
}

/// One reply of 64 bytes, with its frame header, into an outbox that has room.
pub struct Encode {
    payload: Vec<u8>,
    out: Vec<u8>,
}

impl Encode {
    pub fn new() -> Self {
        Self { payload: payload(), out: Vec::with_capacity(4 << 10) }
    }

    pub fn json(&mut self) {
        self.out.clear();
        json::encode(&mut self.out, black_box(&reply(&self.payload)));
    }

    pub fn protobuf(&mut self) {
        self.out.clear();
        protobuf::encode(&mut self.out, black_box(&reply(&self.payload)));
    }
}

fn reply(payload: &[u8]) -> ServerMessage<'_> {
    ServerMessage { msg_id: 1001, seq: 123_456, payload, ..Default::default() }
}

/// The answer to a batch of [`BATCH`] messages: the message, and as it arrives, in one chunk with
/// its gRPC prefix.
pub struct Responses {
    response: Bytes,
    chunk: Bytes,
}

impl Responses {
    pub fn new() -> Self {
        let (_, keys) = waiting();
        let response = responses(keys.iter().map(|key| key.0), &payload());
        let prefix = prefix(response.len() as u32);
        let chunk = Bytes::from([&prefix, &response[..]].concat());
        Self { response, chunk }
    }

    pub fn read_responses(&mut self) {
        let mut seen = 0;
        read_responses(black_box(&self.response), |item| seen += item.payload.len())
            .expect("a good response");
        black_box(seen);
    }

    pub fn assemble_response(&mut self) {
        let mut assembly = Assembly::new(1 << 20, MessageEncoding::Identity);
        assembly.push(black_box(self.chunk.clone())).expect("a good chunk");
        black_box(assembly.finish().expect("a whole message"));
    }
}

/// An engine with [`TURN`] clients and one instance.
pub struct Turn {
    engine: Engine,
    clients: Vec<ConnId>,
    talk: Talk,
    /// Messages that each client sends at once.
    each: usize,
    now: Micros,
    rounds: u64,
    frames: Vec<Vec<u8>>,
    outcomes: Vec<(Ticket, Bytes)>,
    served: usize,
    answered: usize,
}

impl Turn {
    /// An engine whose clients are past their handshake, and send `each` messages a turn.
    pub fn new(talk: Talk, each: usize) -> Self {
        let mut settings = ShardSettings::default();
        // A round is 1 ms: 500 x 64 ids are remembered, a third of what there is room for.
        settings.dedup.window_ms = 500;
        let mut engine = Engine::new(EngineInit {
            shard: ShardId(0),
            shards: 1,
            gateway: Arc::new(GatewaySettings::default()),
            settings,
            snapshot: Arc::new(snapshot(1)),
            auth: None,
            boot_id: 1,
            unix_at_boot_us: 1_700_000_000_000_000,
            seed: [1; 32],
        });
        let now = Micros(1_000_000);
        let protocol = talk.subprotocol;
        let request = format!(
            "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
            Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
        );
        let clients = (0..TURN)
            .map(|_| {
                let peer = SocketAddr::from(([127, 0, 0, 1], 1));
                let id = engine.open(peer, now).expect("room for 64");
                let mut bytes = [request.as_bytes(), &(talk.opening)()].concat();
                engine.on_bytes(id, &mut bytes, now);
                let told = engine.outbox(id).len();
                engine.on_sent(id, told, now);
                id
            })
            .collect();
        engine.effects.dirty.clear();
        Self {
            engine,
            clients,
            talk,
            each,
            now,
            rounds: 0,
            frames: Vec::new(),
            outcomes: Vec::new(),
            served: 0,
            answered: 0,
        }
    }

    /// Makes the clients' bytes, 1 ms later; not timed. Old ids leave the window in a tick.
    pub fn prepare(&mut self) {
        self.now = self.now.plus_ms(1);
        self.rounds += 1;
        (self.served, self.answered) = (0, 0);
        let first = self.rounds * self.each as u64;
        let seqs = (first..).take(self.each);
        let all: Vec<u8> = seqs.flat_map(self.talk.frame).collect();
        self.frames.clear();
        self.frames.resize(TURN, all);
        if self.rounds.is_multiple_of(10) {
            self.engine.tick(self.now, &mut Vec::new());
        }
    }

    /// First half of a turn: bytes in, calls out.
    pub fn ask(&mut self) {
        for (&id, frame) in self.clients.iter().zip(&mut self.frames) {
            self.engine.on_bytes(id, frame, self.now);
        }
        self.engine.end_turn(self.now);
    }

    /// Answers as the service does, and gives the number of calls; not timed.
    pub fn serve(&mut self) -> u64 {
        let calls = self.engine.effects.calls.len() as u64;
        for call in self.engine.effects.calls.drain(..) {
            let ids = request_ids(call.body);
            self.served += ids.len();
            self.outcomes.push((call.ticket, responses(ids.into_iter(), b"{\"ok\":true}")));
        }
        calls
    }

    /// Second half of a turn: outcomes in, outboxes out.
    pub fn answer(&mut self) {
        for (ticket, body) in self.outcomes.drain(..) {
            self.engine.on_outcome(Outcome { ticket, result: Ok(body) }, self.now);
        }
        self.engine.end_turn(self.now);
        while let Some(id) = self.engine.effects.dirty.pop() {
            let bytes = self.engine.outbox(id).len();
            self.engine.on_sent(id, bytes, self.now);
            self.answered += 1;
        }
    }

    /// Checks that every message was served and answered; not timed.
    pub fn check(&self) {
        assert_eq!(self.served, TURN * self.each, "each message reached the service");
        assert!((TURN..=self.served).contains(&self.answered), "each client has its answers");
    }
}
