//! A polite WebSocket client: tungstenite over a blocking socket, in either encoding.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use prost::Message as _;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tungstenite::client::IntoClientRequest;
use tungstenite::http::HeaderValue;
use tungstenite::protocol::CloseFrame;
use tungstenite::{Message, WebSocket};

use super::{PATIENCE, secure};

/// The message `ClientMessage` of client.proto, written down a second time: the numbers are a
/// promise.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MessageIn {
    #[prost(uint32, tag = "1")]
    pub msg_id: u32,
    #[prost(uint64, tag = "2")]
    pub seq: u64,
    #[prost(string, tag = "3")]
    pub kind: String,
    #[prost(bytes = "vec", tag = "4")]
    pub payload: Vec<u8>,
    #[prost(string, tag = "5")]
    pub id: String,
    #[prost(string, tag = "6")]
    pub key: String,
    #[prost(uint32, tag = "7")]
    pub deadline_ms: u32,
    #[prost(uint64, tag = "8")]
    pub ack: u64,
    #[prost(string, tag = "9")]
    pub traceparent: String,
}

/// The message `ServerMessage` of client.proto.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MessageOut {
    #[prost(uint32, tag = "1")]
    pub msg_id: u32,
    #[prost(uint64, tag = "2")]
    pub seq: u64,
    #[prost(string, tag = "3")]
    pub kind: String,
    #[prost(bytes = "vec", tag = "4")]
    pub payload: Vec<u8>,
    #[prost(uint32, tag = "5")]
    pub status: u32,
    #[prost(string, tag = "6")]
    pub message: String,
    #[prost(string, tag = "7")]
    pub reason: String,
    #[prost(uint32, tag = "8")]
    pub retry_after_ms: u32,
    #[prost(uint64, tag = "9")]
    pub offset: u64,
    #[prost(string, tag = "10")]
    pub group: String,
    #[prost(string, tag = "11")]
    pub id: String,
    #[prost(string, tag = "12")]
    pub from: String,
}

/// Transport of the connection.
enum Wire {
    Plain(TcpStream),
    Tls(Box<secure::Stream>),
}

impl Read for Wire {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Wire::Plain(stream) => stream.read(bytes),
            Wire::Tls(stream) => stream.read(bytes),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Wire::Plain(stream) => stream.write(bytes),
            Wire::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Wire::Plain(stream) => stream.flush(),
            Wire::Tls(stream) => stream.flush(),
        }
    }
}

/// A connection. JSON unless made with [`Client::protobuf`].
pub struct Client {
    socket: WebSocket<Wire>,
    seq: u64,
    /// Answers read while another one was waited for.
    early: HashMap<u64, Value>,
    /// Payload of the welcome.
    pub welcome: Value,
}

impl Client {
    /// Connects and reads the welcome.
    #[track_caller]
    pub fn connect(to: SocketAddr) -> Self {
        Self::open(to, Some("shardgate.v1.json")).welcomed()
    }

    /// Connects with TLS, as `config` says, to the name `name`, and reads the welcome.
    #[track_caller]
    pub fn secure(to: SocketAddr, config: &Arc<rustls::ClientConfig>, name: &str) -> Self {
        let stream = secure::connect(to, config, name).expect("a handshake");
        Self::over(Wire::Tls(Box::new(stream)), to, Some("shardgate.v1.json")).welcomed()
    }

    /// Upgrades a connection of TLS that is there, and reads the welcome.
    #[track_caller]
    pub fn upgrade(stream: secure::Stream) -> Self {
        let to = stream.sock.peer_addr().expect("connected");
        Self::over(Wire::Tls(Box::new(stream)), to, Some("shardgate.v1.json")).welcomed()
    }

    #[track_caller]
    fn welcomed(mut self) -> Self {
        let client = &mut self;
        let first = client.read();
        assert_eq!(first["type"], "welcome", "the welcome comes first: {first}");
        client.welcome = first["payload"].clone();
        self
    }

    /// Connects in protobuf; the welcome is left to be read.
    #[track_caller]
    pub fn protobuf(to: SocketAddr) -> Self {
        Self::open(to, Some("shardgate.v1.protobuf"))
    }

    /// Connects, offering a subprotocol or none.
    #[track_caller]
    pub fn open(to: SocketAddr, subprotocol: Option<&'static str>) -> Self {
        Self::plain(TcpStream::connect(to).expect("the gateway listens"), to, subprotocol)
    }

    /// Connects from an address of 127.0.0.0/8, and reads the welcome.
    #[track_caller]
    pub fn connect_from(from: [u8; 4], to: SocketAddr) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from((from, 0)).into()).expect("all of it is this machine");
        socket.connect(&to.into()).expect("the gateway listens");
        Self::plain(socket.into(), to, Some("shardgate.v1.json")).welcomed()
    }

    #[track_caller]
    fn plain(stream: TcpStream, to: SocketAddr, subprotocol: Option<&'static str>) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("an option");
        Self::over(Wire::Plain(stream), to, subprotocol)
    }

    #[track_caller]
    fn over(stream: Wire, to: SocketAddr, subprotocol: Option<&'static str>) -> Self {
        let mut request = format!("ws://{to}/ws").into_client_request().expect("a request");
        if let Some(name) = subprotocol {
            let value = HeaderValue::from_static(name);
            request.headers_mut().insert("Sec-WebSocket-Protocol", value);
        }
        let (socket, _) = tungstenite::client(request, stream).expect("an upgrade");
        Self { socket, seq: 0, early: HashMap::new(), welcome: Value::Null }
    }

    /// The socket under the connection.
    pub fn stream(&self) -> &TcpStream {
        match self.socket.get_ref() {
            Wire::Plain(stream) => stream,
            Wire::Tls(stream) => &stream.sock,
        }
    }

    /// The TLS stream under the connection.
    pub fn tls(&mut self) -> &mut secure::Stream {
        match self.socket.get_mut() {
            Wire::Plain(_) => panic!("there is no TLS"),
            Wire::Tls(stream) => stream,
        }
    }

    /// The session of the welcome.
    pub fn session(&self) -> String {
        self.welcome["session"].as_str().expect("a session").to_owned()
    }

    /// Sends a JSON text.
    #[track_caller]
    pub fn send_text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).expect("sent");
    }

    /// Sends a message with the next seq, which is returned.
    #[track_caller]
    pub fn send(&mut self, mut message: Value) -> u64 {
        self.seq += 1;
        message["seq"] = self.seq.into();
        self.send_text(&message.to_string());
        self.seq
    }

    /// Like [`Client::send`], but waits for [`Client::flush`].
    #[track_caller]
    pub fn write(&mut self, mut message: Value) -> u64 {
        self.seq += 1;
        message["seq"] = self.seq.into();
        self.socket.write(Message::text(message.to_string())).expect("written");
        self.seq
    }

    /// Sends all that was written.
    #[track_caller]
    pub fn flush(&mut self) {
        self.socket.flush().expect("sent");
    }

    /// The next message from the socket.
    #[track_caller]
    pub fn read(&mut self) -> Value {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => {
                    return serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
                }
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                other => panic!("a JSON message, not {other:?}"),
            }
        }
    }

    /// The answer to `seq`; others are kept, and none may come twice.
    #[track_caller]
    pub fn answer(&mut self, seq: u64) -> Value {
        loop {
            if let Some(answer) = self.early.remove(&seq) {
                return answer;
            }
            let message = self.read();
            let of = message["seq"].as_u64().unwrap_or(0);
            if of == 0 {
                continue;
            }
            let before = self.early.insert(of, message);
            assert_eq!(before, None, "two answers to {of}");
        }
    }

    /// Sends a message and waits for its answer.
    #[track_caller]
    pub fn ask(&mut self, message: Value) -> Value {
        let seq = self.send(message);
        self.answer(seq)
    }

    /// Sends a payload to a route and waits for its answer.
    #[track_caller]
    pub fn call(&mut self, msg_id: u32, payload: Value) -> Value {
        self.ask(json!({"msg_id": msg_id, "payload": payload}))
    }

    /// Sends a protobuf message.
    #[track_caller]
    pub fn send_proto(&mut self, message: &MessageIn) {
        self.socket.send(Message::binary(message.encode_to_vec())).expect("sent");
    }

    /// The next protobuf message.
    #[track_caller]
    pub fn read_proto(&mut self) -> MessageOut {
        match self.socket.read() {
            Ok(Message::Binary(bytes)) => MessageOut::decode(&bytes[..]).expect("a message"),
            other => panic!("a protobuf message, not {other:?}"),
        }
    }

    /// Sends a close frame.
    #[track_caller]
    pub fn close(&mut self, code: u16) {
        let close = CloseFrame { code: code.into(), reason: "".into() };
        self.socket.close(Some(close)).expect("sent");
    }

    /// Sends a JSON text, unless the gateway has closed.
    pub fn try_send_text(&mut self, text: &str) -> bool {
        self.socket.send(Message::text(text)).is_ok()
    }

    /// The next message, or the code of the close frame that came instead.
    #[track_caller]
    pub fn read_or_close(&mut self) -> Result<Value, Option<u16>> {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => return Ok(serde_json::from_str(&text).expect("JSON")),
                Ok(Message::Close(close)) => {
                    let _ = self.socket.flush();
                    return Err(close.map(|c| u16::from(c.code)));
                }
                Ok(_) => {}
                Err(e) => panic!("{e} instead of a close frame"),
            }
        }
    }

    /// Reads to the close frame, answers it, and gives its code and all messages before it.
    #[track_caller]
    pub fn until_close(&mut self) -> (Vec<Value>, Option<u16>) {
        let mut messages: Vec<Value> = std::mem::take(&mut self.early).into_values().collect();
        loop {
            match self.read_or_close() {
                Ok(message) => messages.push(message),
                Err(code) => return (messages, code),
            }
        }
    }
}
