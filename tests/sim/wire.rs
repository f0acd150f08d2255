//! A client's side of the wire: upgrade request, masked frames, envelopes in both encodings, and a
//! parser of the gateway's bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message as _;
use shardgate::message::Encoding;
use shardgate::wire::client::generated;

use crate::dice::Dice;

/// The upgrade request of a client.
pub fn upgrade(encoding: Encoding, token: Option<&str>, dice: &mut Dice) -> Vec<u8> {
    let protocol = match encoding {
        Encoding::Json if dice.chance(30) => "",
        Encoding::Json => "Sec-WebSocket-Protocol: shardgate.v1.json\r\n",
        Encoding::Protobuf => "Sec-WebSocket-Protocol: x, shardgate.v1.protobuf\r\n",
    };
    let shown = token.map(|t| format!("Authorization: Bearer {t}\r\n")).unwrap_or_default();
    format!(
        "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
         {protocol}{shown}\r\n"
    )
    .into_bytes()
}

/// A message of a client.
#[derive(Clone, Debug, Default)]
pub struct Message {
    pub msg_id: u32,
    pub seq: u64,
    pub kind: &'static str,
    pub payload: Vec<u8>,
    /// For JSON: as `payload_base64`.
    pub is_bytes: bool,
    pub id: String,
    pub key: String,
    pub deadline_ms: u32,
    pub ack: u64,
}

/// The message as the payload of a data frame.
pub fn encode(encoding: Encoding, m: &Message) -> Vec<u8> {
    match encoding {
        Encoding::Json => encode_json(m),
        Encoding::Protobuf => generated::ClientMessage {
            msg_id: m.msg_id,
            seq: m.seq,
            r#type: m.kind.into(),
            payload: m.payload.clone(),
            id: m.id.clone(),
            key: m.key.clone(),
            deadline_ms: m.deadline_ms,
            ack: m.ack,
            traceparent: String::new(),
        }
        .encode_to_vec(),
    }
}

fn encode_json(m: &Message) -> Vec<u8> {
    let mut text = format!("{{\"msg_id\":{},\"seq\":{}", m.msg_id, m.seq);
    for (name, value) in [("type", m.kind), ("id", &m.id), ("key", &m.key)] {
        if !value.is_empty() {
            text.push_str(&format!(",\"{name}\":\"{value}\""));
        }
    }
    if m.deadline_ms > 0 {
        text.push_str(&format!(",\"deadline_ms\":{}", m.deadline_ms));
    }
    if m.ack > 0 {
        text.push_str(&format!(",\"ack\":{}", m.ack));
    }
    if m.is_bytes {
        text.push_str(&format!(",\"payload_base64\":\"{}\"", STANDARD.encode(&m.payload)));
    } else if !m.payload.is_empty() {
        text.push_str(",\"payload\":");
        text.push_str(std::str::from_utf8(&m.payload).expect("payloads of the simulator are text"));
    }
    text.push('}');
    text.into_bytes()
}

/// Opcodes of frames (RFC 6455, 5.2).
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// Appends one masked frame.
pub fn frame(out: &mut Vec<u8>, opcode: u8, is_final: bool, payload: &[u8], dice: &mut Dice) {
    out.push(u8::from(is_final) << 7 | opcode);
    match payload.len() {
        n @ 0..=125 => out.push(0x80 | n as u8),
        n @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(n as u16).to_be_bytes());
        }
        n => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(n as u64).to_be_bytes());
        }
    }
    let mask = (dice.next() as u32).to_be_bytes();
    out.extend_from_slice(&mask);
    out.extend(payload.iter().enumerate().map(|(i, b)| b ^ mask[i % 4]));
}

/// Appends a message, sometimes in fragments with a ping between them.
pub fn message(out: &mut Vec<u8>, opcode: u8, payload: &[u8], dice: &mut Dice) {
    if payload.len() < 2 || !dice.chance(10) {
        return frame(out, opcode, true, payload, dice);
    }
    let (first, rest) = payload.split_at(dice.range(1, payload.len() as u64 - 1) as usize);
    frame(out, opcode, false, first, dice);
    if dice.chance(30) {
        frame(out, PING, true, b"between", dice);
    }
    frame(out, 0, true, rest, dice);
}

/// A message of the gateway.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Answer {
    pub msg_id: u32,
    pub seq: u64,
    pub kind: String,
    pub payload: Vec<u8>,
    pub status: u32,
    pub reason: String,
    pub offset: u64,
    pub group: String,
}

/// Something that the gateway sent.
#[derive(Debug)]
pub enum Incoming {
    /// An HTTP answer, with its status.
    Http(u16),
    Message(Answer),
    Close(u16),
    Ping(Vec<u8>),
    Pong,
}

/// Parser of the gateway's bytes. Panics at anything that RFC 6455 forbids a server.
#[derive(Debug, Default)]
pub struct Parser {
    bytes: Vec<u8>,
    upgraded: bool,
    /// Texts of HTTP answers and close frames, until somebody reads them.
    pub told: String,
}

impl Parser {
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub fn next(&mut self, encoding: Encoding) -> Option<Incoming> {
        if !self.upgraded {
            let end = self.bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
            let head = std::str::from_utf8(&self.bytes[..end]).expect("a text head");
            let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
            self.told.push_str(head);
            self.bytes.drain(..end);
            self.upgraded = status == 101;
            if !self.upgraded {
                self.told.push_str(&String::from_utf8_lossy(&self.bytes));
                self.bytes.clear();
            }
            return Some(Incoming::Http(status));
        }
        let (&first, &second) = (self.bytes.first()?, self.bytes.get(1)?);
        assert!(first & 0x70 == 0 && first & 0x80 != 0 && second & 0x80 == 0, "a server's frame");
        let (len, head) = match second {
            126 => (u16::from_be_bytes(self.bytes.get(2..4)?.try_into().ok()?) as usize, 4),
            127 => (u64::from_be_bytes(self.bytes.get(2..10)?.try_into().ok()?) as usize, 10),
            n => (n as usize, 2),
        };
        if self.bytes.len() < head + len {
            return None;
        }
        let payload: Vec<u8> = self.bytes.drain(..head + len).skip(head).collect();
        Some(match (first & 15, encoding) {
            (TEXT, Encoding::Json) => Incoming::Message(from_json(&payload)),
            (BINARY, Encoding::Protobuf) => Incoming::Message(from_protobuf(&payload)),
            (CLOSE, _) => {
                self.told.push_str(&String::from_utf8_lossy(payload.get(2..).unwrap_or_default()));
                Incoming::Close(match payload.get(..2) {
                    Some(code) => u16::from_be_bytes([code[0], code[1]]),
                    None => 1005,
                })
            }
            (PING, _) => Incoming::Ping(payload),
            (PONG, _) => Incoming::Pong,
            (other, _) => panic!("opcode {other} to a client of {encoding:?}"),
        })
    }
}

fn from_json(bytes: &[u8]) -> Answer {
    let value: serde_json::Value = serde_json::from_slice(bytes).expect("the gateway sends JSON");
    let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let number = |name: &str| value[name].as_u64().unwrap_or_default();
    let payload = match (&value["payload"], &value["payload_base64"]) {
        (serde_json::Value::Null, serde_json::Value::String(b)) => {
            STANDARD.decode(b).expect("base64 of the gateway")
        }
        (serde_json::Value::Null, _) => Vec::new(),
        (payload, _) => serde_json::to_vec(payload).expect("it was JSON"),
    };
    Answer {
        msg_id: number("msg_id") as u32,
        seq: number("seq"),
        kind: text("type"),
        payload,
        status: number("status") as u32,
        reason: text("reason"),
        offset: number("offset"),
        group: text("group"),
    }
}

fn from_protobuf(bytes: &[u8]) -> Answer {
    let m = generated::ServerMessage::decode(bytes).expect("the gateway sends protobuf");
    Answer {
        msg_id: m.msg_id,
        seq: m.seq,
        kind: m.r#type,
        payload: m.payload,
        status: m.status,
        reason: m.reason,
        offset: m.offset,
        group: m.group,
    }
}
