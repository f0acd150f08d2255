//! Messages as clients send them: their frames, in each encoding.

use prost::encoding::encode_varint;

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

/// A text, as a JSON client sends it.
pub fn text_frame(text: &str) -> Vec<u8> {
    frame(1, text.as_bytes())
}

/// A message of 64 bytes of payload, as a JSON client sends it.
pub fn json_frame(seq: u64) -> Vec<u8> {
    let payload = String::from_utf8(payload()).expect("ASCII");
    text_frame(&format!("{{\"msg_id\":1001,\"seq\":{seq},\"payload\":{payload}}}"))
}

/// A message as of [`json_frame`], with an idempotency key.
fn json_frame_with_id(seq: u64) -> Vec<u8> {
    let payload = String::from_utf8(payload()).expect("ASCII");
    let text =
        format!("{{\"msg_id\":1001,\"seq\":{seq},\"id\":\"{seq:016x}\",\"payload\":{payload}}}");
    text_frame(&text)
}

/// A message of 64 bytes of payload, as a protobuf client sends it.
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

/// How a client talks.
#[derive(Clone, Copy)]
pub struct Talk {
    pub subprotocol: &'static str,
    /// The frame of the message with that sequence number, and 64 bytes of payload.
    pub frame: fn(u64) -> Vec<u8>,
    /// What it sends before its first message: frames, or nothing.
    pub opening: fn() -> Vec<u8>,
}

impl Talk {
    pub const JSON: Self =
        Self { subprotocol: "shardgate.v1.json", frame: json_frame, opening: Vec::new };
    /// Messages have idempotency keys.
    pub const JSON_WITH_IDS: Self = Self { frame: json_frame_with_id, ..Self::JSON };
}
