//! What the benchmarks measure on: messages, a snapshot, and an engine with 64 clients.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use prost::encoding::{decode_varint, encode_varint};

use shardgate::config::settings::{GatewaySettings, ShardSettings};
use shardgate::engine::dispatcher::batch::Origin;
use shardgate::engine::dispatcher::{ordering::StreamName, request::Request};
use shardgate::engine::{Engine, EngineInit};
use shardgate::ids::{ConnId, InstanceId, ServiceId, SessionId, ShardId, Ticket};
use shardgate::message::{Call, CallBody, Micros, Outcome};
use shardgate::routing::Ring;
use shardgate::routing::{
    Failover, HashOn, Instance, Mode, Order, PayloadKind, Route, Service, Share, Snapshot,
};

/// Requests of a full batch.
pub const BATCH: usize = 100;
/// Requests of an engine's turn.
pub const TURN: usize = 64;

/// 64 bytes of JSON.
pub fn payload() -> Vec<u8> {
    format!("{{\"text\":\"{}\"}}", "x".repeat(53)).into_bytes()
}

fn frame(opcode: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match u8::try_from(body.len()) {
        Ok(len @ ..126) => frame.push(0x80 | len),
        _ => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(body.len() as u16).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(body);
    frame
}

/// A message of 64 bytes of payload, as a JSON client sends it.
pub fn json_frame(seq: u64) -> Vec<u8> {
    let payload = String::from_utf8(payload()).expect("ASCII");
    frame(1, format!("{{\"msg_id\":1001,\"seq\":{seq},\"payload\":{payload}}}").as_bytes())
}

/// The same with an idempotency key.
fn json_frame_with_id(seq: u64) -> Vec<u8> {
    let payload = String::from_utf8(payload()).expect("ASCII");
    let text =
        format!("{{\"msg_id\":1001,\"seq\":{seq},\"id\":\"{seq:016x}\",\"payload\":{payload}}}");
    frame(1, text.as_bytes())
}

/// The same as a protobuf client sends it.
pub fn protobuf_frame(seq: u64) -> Vec<u8> {
    let mut body = vec![0x08];
    encode_varint(1001, &mut body);
    body.push(0x10);
    encode_varint(seq, &mut body);
    body.push(0x22);
    let payload = payload();
    encode_varint(payload.len() as u64, &mut body);
    body.extend_from_slice(&payload);
    frame(2, &body)
}

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
    };
    let points = names.iter().zip(0..).map(|(name, n)| (InstanceId(n), name.as_str(), 1));
    let service =
        Service { name: "logic".into(), mode: Mode::Batch, ring: Ring::new(points, 160).into() };
    let instance = |(name, n): (&String, u32)| Instance {
        id: InstanceId(n),
        service: ServiceId(0),
        name: name.as_str().into(),
        address: SocketAddr::from(([127, 0, 0, 1], 50_001)),
        weight: 1,
        share: Share::ALL,
        draining: false,
    };
    Snapshot {
        version: 1,
        routes: vec![route(1000), route(2000), route(3000)],
        services: vec![service],
        instances: names.iter().zip(0..).map(instance).collect(),
    }
}

/// What batches begin with.
pub fn origin() -> Origin {
    Origin {
        gateway: "node-1".into(),
        shard: 0,
        boot_id: 1,
        unix_at_boot_us: 1_700_000_000_000_000,
    }
}

/// The stream of client number `n`.
pub fn stream_name(n: u64) -> StreamName {
    let session = SessionId::from_random(u128::from(n) << 40 | 12_345);
    StreamName { session, service: ServiceId(0), hash: n.wrapping_mul(0x9e37_79b9_7f4a_7c15) }
}

/// Makes `message` number `n`, waiting since 1 s.
pub fn fill(message: &mut Request, n: u64) {
    message.msg_id = 1001;
    message.seq = n + 1;
    message.received = Micros(1_000_000 + n);
    message.deadline = Micros(6_000_000 + n);
    message.arrival = n;
    message.instance = InstanceId(0);
    message.session = stream_name(n).session;
    message.payload.set(&[b'1'; 64]);
}

/// A `BatchResponse` with `payload` for each request.
pub fn responses(requests: impl Iterator<Item = u64>, payload: &[u8]) -> Bytes {
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

/// An engine with [`TURN`] clients and one instance.
pub struct Turn {
    engine: Engine,
    clients: Vec<ConnId>,
    with_id: bool,
    now: Micros,
    seq: u64,
    frames: Vec<Vec<u8>>,
    calls: Vec<Call>,
    outcomes: Vec<(Ticket, Bytes)>,
    served: usize,
    answered: usize,
}

impl Turn {
    /// All clients past their handshake.
    pub fn new(with_id: bool) -> Self {
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
            seed: 1,
        });
        let now = Micros(1_000_000);
        let request = "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
        let clients = (0..TURN)
            .map(|_| {
                let peer = SocketAddr::from(([127, 0, 0, 1], 1));
                let id = engine.open(peer, now).expect("room for 64");
                engine.on_bytes(id, &mut request.as_bytes().to_vec(), now);
                let told = engine.outbox(id).len();
                engine.on_sent(id, told, now);
                id
            })
            .collect();
        engine.effects.dirty.clear();
        Self {
            engine,
            clients,
            with_id,
            now,
            seq: 0,
            frames: Vec::new(),
            calls: Vec::new(),
            outcomes: Vec::new(),
            served: 0,
            answered: 0,
        }
    }

    /// Not timed: the clients' bytes, 1 ms later. Old ids leave the window in the engine's tick.
    pub fn prepare(&mut self) {
        self.now = self.now.plus_ms(1);
        self.seq += 1;
        let make = if self.with_id { json_frame_with_id } else { json_frame };
        self.frames.clear();
        self.frames.extend((0..TURN).map(|_| make(self.seq)));
        if self.seq.is_multiple_of(10) {
            self.engine.tick(self.now, &mut Vec::new());
        }
    }

    /// Bytes in, call out.
    pub fn ask(&mut self) {
        for (&id, frame) in self.clients.iter().zip(&mut self.frames) {
            self.engine.on_bytes(id, frame, self.now);
        }
        self.engine.end_turn(self.now);
        std::mem::swap(&mut self.calls, &mut self.engine.effects.calls);
    }

    /// Not timed: the service.
    pub fn serve(&mut self) {
        self.served = 0;
        for call in self.calls.drain(..) {
            let ids = request_ids(call.body);
            self.served += ids.len();
            self.outcomes.push((call.ticket, responses(ids.into_iter(), b"{\"ok\":true}")));
        }
    }

    /// Outcome in, outboxes out.
    pub fn answer(&mut self) {
        for (ticket, body) in self.outcomes.drain(..) {
            self.engine.on_outcome(Outcome { ticket, result: Ok(body) }, self.now);
        }
        self.engine.end_turn(self.now);
        self.answered = 0;
        while let Some(id) = self.engine.effects.dirty.pop() {
            let bytes = self.engine.outbox(id).len();
            self.engine.on_sent(id, bytes, self.now);
            self.answered += 1;
        }
    }

    /// Not timed: whether that was what it should be.
    pub fn check(&self) {
        assert_eq!(self.served, TURN, "each message reached the service");
        assert_eq!(self.answered, TURN, "each message has its answer");
    }
}
