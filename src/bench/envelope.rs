//! Messages of the load as bytes, and the part of their answers that is counted.

use std::borrow::Cow;
use std::io::Write as _;

use prost::Message as _;
use prost::encoding::encode_varint;
use rand::rngs::StdRng;
use rand::{Rng, RngExt};
use serde::Deserialize;
use serde_json::{Value, json};

use super::plan::Kind;
use crate::message::Encoding;
use crate::wire::client::generated::{ClientMessage, ServerMessage};
use crate::wire::client::{Auth, Resume, Resumed, Welcome, payload};
use crate::wire::frames::client::write_masked;
use crate::wire::frames::{Control, Data, OpCode};

/// Number of the message that signs a connection in; those of the load follow it, as numbers of a
/// connection rise.
pub const SIGN_IN_SEQ: u64 = 1;

/// Everything that is the same in all messages of one kind.
#[derive(Debug)]
struct Template {
    before_seq: Vec<u8>,
    after_seq: Vec<u8>,
}

/// Writer of the messages of a mix.
#[derive(Debug)]
pub struct Writer {
    encoding: Encoding,
    templates: Vec<Template>,
    /// Sums of the weights up to each kind.
    weights: Vec<u64>,
    body: Vec<u8>,
}

impl Writer {
    /// A writer of these kinds.
    pub fn new(encoding: Encoding, mix: &[Kind]) -> Self {
        let template = |kind: &Kind| match encoding {
            Encoding::Json => json_template(kind),
            Encoding::Protobuf => protobuf_template(kind),
        };
        let mut sum = 0;
        let weights = mix.iter().map(|kind| {
            sum += u64::from(kind.weight);
            sum
        });
        let weights = weights.collect();
        let templates = mix.iter().map(template).collect();
        Self { encoding, templates, weights, body: Vec::new() }
    }

    /// Chooses the kind of the next message.
    pub fn pick(&self, rng: &mut StdRng) -> u16 {
        if self.weights.len() == 1 {
            return 0;
        }
        let all = self.weights.last().copied().unwrap_or(1);
        let at = rng.random_range(0..all);
        self.weights.partition_point(|sum| *sum <= at) as u16
    }

    /// Appends the frame of a message, which confirms everything up to the offset `ack`; 0 = it
    /// confirms nothing.
    pub fn message(&mut self, kind: u16, seq: u64, ack: u64, rng: &mut StdRng, out: &mut Vec<u8>) {
        let template = &self.templates[usize::from(kind)];
        self.body.clear();
        self.body.extend_from_slice(&template.before_seq);
        match self.encoding {
            Encoding::Json => write!(self.body, "{seq}").expect("a Vec takes every byte"),
            Encoding::Protobuf => encode_varint(seq, &mut self.body),
        }
        if ack > 0 {
            confirm(self.encoding, ack, &mut self.body);
        }
        self.body.extend_from_slice(&template.after_seq);
        write_masked(out, opcode(self.encoding), mask(rng), &self.body);
    }
}

/// Appends the field that confirms everything up to an offset, behind another field.
fn confirm(encoding: Encoding, ack: u64, body: &mut Vec<u8>) {
    match encoding {
        Encoding::Json => write!(body, ",\"ack\":{ack}").expect("a Vec takes every byte"),
        Encoding::Protobuf => {
            // Field 8, a varint.
            body.push(8 << 3);
            encode_varint(ack, body);
        }
    }
}

fn opcode(encoding: Encoding) -> OpCode {
    OpCode::Data(match encoding {
        Encoding::Json => Data::Text,
        Encoding::Protobuf => Data::Binary,
    })
}

fn mask(rng: &mut StdRng) -> [u8; 4] {
    rng.next_u32().to_ne_bytes()
}

fn json_template(kind: &Kind) -> Template {
    let payload = match kind.payload.as_str() {
        "" => String::new(),
        payload => format!(",\"payload\":{payload}"),
    };
    Template {
        before_seq: format!("{{\"msg_id\":{},\"seq\":", kind.msg_id).into_bytes(),
        after_seq: format!("{payload}}}").into_bytes(),
    }
}

fn protobuf_template(kind: &Kind) -> Template {
    let head = ClientMessage { msg_id: kind.msg_id, ..ClientMessage::default() };
    let payload = kind.payload.clone().into_bytes();
    let tail = ClientMessage { payload, ..ClientMessage::default() };
    let mut before_seq = head.encode_to_vec();
    // Field 2, a varint.
    before_seq.push(2 << 3);
    Template { before_seq, after_seq: tail.encode_to_vec() }
}

/// Appends the message that signs in with `token`.
pub fn sign_in(encoding: Encoding, token: &str, rng: &mut StdRng, out: &mut Vec<u8>) {
    let body = match encoding {
        Encoding::Json => json!({"type": "auth", "seq": SIGN_IN_SEQ, "payload": {"token": token}})
            .to_string()
            .into_bytes(),
        Encoding::Protobuf => {
            let payload = payload(encoding, &Auth { token: token.into() });
            let r#type = "auth".into();
            let seq = SIGN_IN_SEQ;
            ClientMessage { seq, r#type, payload, ..ClientMessage::default() }.encode_to_vec()
        }
    };
    write_masked(out, opcode(encoding), mask(rng), &body);
}

/// Appends the message that makes a session resumable, or goes on with the one that is shown. It
/// has no number, as those of the session go on.
pub fn resume(encoding: Encoding, shown: &Resume, rng: &mut StdRng, out: &mut Vec<u8>) {
    let body = match encoding {
        Encoding::Json => json!({"type": "resume", "payload": shown}).to_string().into_bytes(),
        Encoding::Protobuf => {
            let (r#type, payload) = ("resume".into(), payload(encoding, shown));
            ClientMessage { r#type, payload, ..ClientMessage::default() }.encode_to_vec()
        }
    };
    write_masked(out, opcode(encoding), mask(rng), &body);
}

/// The run of the gateway that a `welcome` names; empty = it names none.
pub fn boot(encoding: Encoding, message: &[u8]) -> String {
    let read = match encoding {
        Encoding::Json => json_payload(message).map(|payload| text(&payload, "boot")),
        Encoding::Protobuf => protobuf_payload::<Welcome>(message).map(|welcome| welcome.boot),
    };
    read.unwrap_or_default()
}

/// What `resumed` says; `None` = it cannot be read.
pub fn resumed(encoding: Encoding, message: &[u8]) -> Option<Resumed> {
    match encoding {
        Encoding::Json => {
            let payload = json_payload(message)?;
            Some(Resumed {
                session: text(&payload, "session"),
                secret: text(&payload, "secret"),
                outcome: text(&payload, "outcome"),
                reason: text(&payload, "reason"),
                received_seq: payload["received_seq"].as_u64()?,
                ..Resumed::default()
            })
        }
        Encoding::Protobuf => protobuf_payload(message),
    }
}

fn json_payload(message: &[u8]) -> Option<Value> {
    let mut message: Value = serde_json::from_slice(message).ok()?;
    Some(message["payload"].take())
}

fn text(payload: &Value, name: &str) -> String {
    payload[name].as_str().unwrap_or_default().to_owned()
}

fn protobuf_payload<M: prost::Message + Default>(message: &[u8]) -> Option<M> {
    M::decode(&*ServerMessage::decode(message).ok()?.payload).ok()
}

/// Appends the pong that answers a ping with this payload.
pub fn pong(payload: &[u8], rng: &mut StdRng, out: &mut Vec<u8>) {
    write_masked(out, OpCode::Control(Control::Pong), mask(rng), payload);
}

/// Appends a close frame.
pub fn close(code: u16, rng: &mut StdRng, out: &mut Vec<u8>) {
    write_masked(out, OpCode::Control(Control::Close), mask(rng), &code.to_be_bytes());
}

/// The part of a message of the gateway that is counted.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Answer<'a> {
    /// Number of the message that it answers; 0 = none.
    pub seq: u64,
    /// Type of a message of the gateway itself; empty = a service's answer.
    #[serde(rename = "type", borrow)]
    pub kind: Cow<'a, str>,
    /// A gRPC status; 0 = success.
    pub status: u32,
    /// Word for programs, if the gateway refused the message.
    #[serde(borrow)]
    pub reason: Cow<'a, str>,
    /// Sentence for people.
    #[serde(borrow)]
    pub message: Cow<'a, str>,
    /// Place in its session, if that can be resumed; else 0.
    pub offset: u64,
}

impl<'a> Answer<'a> {
    /// Whether it is a success.
    pub fn is_ok(&self) -> bool {
        self.status == 0 && self.reason.is_empty()
    }

    /// Reads the payload of a frame; `None` = it is no message of a gateway.
    pub fn read(encoding: Encoding, bytes: &'a [u8]) -> Option<Self> {
        match encoding {
            Encoding::Json => serde_json::from_slice(bytes).ok(),
            Encoding::Protobuf => {
                let read = ServerMessage::decode(bytes).ok()?;
                Some(Self {
                    seq: read.seq,
                    kind: read.r#type.into(),
                    status: read.status,
                    reason: read.reason.into(),
                    message: read.message.into(),
                    offset: read.offset,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::wire::frames::{Decoder, Flow, FrameEvent, FrameLimits};
    use crate::wire::{json, protobuf};

    fn mix() -> Vec<Kind> {
        vec![
            Kind { msg_id: 1001, weight: 3, payload: "{\"a\":1}".into() },
            Kind { msg_id: 2001, weight: 1, payload: String::new() },
        ]
    }

    /// The id, number, payload and confirmed offset that the gateway reads.
    fn read(encoding: Encoding, mut bytes: Vec<u8>) -> (u32, u64, Vec<u8>, u64) {
        let limits = FrameLimits { message_bytes_max: 1 << 20, fragments_max: 1 };
        let mut found = None;
        let fed = Decoder::default().feed(&limits, &mut bytes, |event| {
            let message = match (encoding, event) {
                (Encoding::Json, FrameEvent::Text(text)) => json::decode(text),
                (Encoding::Protobuf, FrameEvent::Binary(bytes)) => protobuf::decode(bytes),
                (_, other) => panic!("a message, not {other:?}"),
            };
            let message = message.expect("right");
            found = Some((message.msg_id, message.seq, message.payload.to_vec(), message.ack));
            Flow::Continue
        });
        fed.expect("right");
        found.expect("one message")
    }

    #[test]
    fn the_gateway_reads_the_messages_of_both_encodings() {
        let mut rng = StdRng::seed_from_u64(1);
        for encoding in [Encoding::Json, Encoding::Protobuf] {
            let mut writer = Writer::new(encoding, &mix());
            for (kind, seq, ack, expected) in [
                (0, 1, 0, (1001, 1, b"{\"a\":1}".to_vec(), 0)),
                (1, 300, 0, (2001, 300, Vec::new(), 0)),
                (0, 9, 1000, (1001, 9, b"{\"a\":1}".to_vec(), 1000)),
                (1, 9, 7, (2001, 9, Vec::new(), 7)),
            ] {
                let mut out = Vec::new();
                writer.message(kind, seq, ack, &mut rng, &mut out);
                assert_eq!(read(encoding, out), expected);
            }
        }
    }

    #[test]
    fn kinds_are_sent_by_their_weights() {
        let mut rng = StdRng::seed_from_u64(1);
        let writer = Writer::new(Encoding::Json, &mix());
        let second = (0..4000).filter(|_| writer.pick(&mut rng) == 1).count();
        assert!((900..1100).contains(&second), "a quarter of 4,000, not {second}");
    }

    #[test]
    fn answers_are_read_in_both_encodings_whatever_their_payload_says() {
        let text = r#"{"msg_id":1,"seq":7,"payload":{"status":9,"seq":8},"status":5,
                       "reason":"NO_ROUTE","message":"a \"b\""}"#;
        let answer = Answer::read(Encoding::Json, text.as_bytes()).expect("a message");
        assert_eq!((answer.seq, answer.status, &*answer.reason), (7, 5, "NO_ROUTE"));
        let message = ServerMessage {
            seq: 7,
            status: 5,
            reason: "NO_ROUTE".into(),
            message: "a \"b\"".into(),
            ..ServerMessage::default()
        };
        let bytes = message.encode_to_vec();
        assert_eq!(Answer::read(Encoding::Protobuf, &bytes), Some(answer));
        assert_eq!(Answer::read(Encoding::Json, b"hello"), None);
    }
}
