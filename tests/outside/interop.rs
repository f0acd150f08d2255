//! Clients and services of other authors: Python websockets and grpcio, Node ws, Chromium.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use serde_json::{Value, json};
use tungstenite::stream::MaybeTlsStream;
use tungstenite::{Message, WebSocket};

use crate::browser::{chromium, headless};
use crate::support::{Checkout, PATIENCE, Running, available, eventually, run, succeeds};

const ALL: [&str; 3] = ["logic", "chat", "fight"];

/// Last line of the scripts' output.
const PASSED: &str = "all as it should be";

#[test]
fn python_websockets_converses_in_json() {
    let found = succeeds("python3", &["-c", "import websockets.asyncio.client"]);
    if !available("python_websockets_converses_in_json", "python3 with websockets", found) {
        return;
    }
    let checkout = Checkout::new();
    let gateway = checkout.gateway(&[], &ALL);
    let said =
        run(&mut checkout.shell(&format!("python3 tests/interop/client.py {}", checkout.url())));
    assert!(said.contains(PASSED), "{said}");
    assert_eq!(gateway.stop().code(), Some(0));
}

#[test]
fn node_ws_converses_in_both_subprotocols() {
    let found = succeeds("node", &["-e", "require('ws')"]);
    if !available("node_ws_converses_in_both_subprotocols", "node with ws (NODE_PATH)", found) {
        return;
    }
    let checkout = Checkout::new();
    let gateway = checkout.gateway(&[], &ALL);
    // Node looks for packages beside the script's real path otherwise.
    let line = format!("node --preserve-symlinks-main tests/interop/client.js {}", checkout.url());
    let said = run(&mut checkout.shell(&line));
    assert!(said.contains(PASSED), "{said}");
    assert_eq!(gateway.stop().code(), Some(0));
}

/// A client that sends and receives JSON.
struct Client {
    socket: WebSocket<MaybeTlsStream<TcpStream>>,
    seq: u64,
}

impl Client {
    /// Connects, and reads the welcome.
    fn connect(url: &str) -> Self {
        let (socket, _) = tungstenite::connect(url).expect("the gateway is ready");
        let MaybeTlsStream::Plain(stream) = socket.get_ref() else { panic!("plain TCP") };
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut client = Self { socket, seq: 0 };
        assert_eq!(client.receive()["type"], "welcome");
        client
    }

    fn send(&mut self, payload: Value) {
        self.seq += 1;
        let message = json!({ "msg_id": 1001, "seq": self.seq, "payload": payload });
        self.socket.send(Message::text(message.to_string())).expect("it takes it");
    }

    /// Reads the next message.
    fn receive(&mut self) -> Value {
        let message = self.socket.read().expect("an answer comes in time");
        serde_json::from_str(message.to_text().expect("text")).expect("JSON")
    }

    /// Sends `payload`, and reads the answer.
    fn ask(&mut self, payload: Value) -> Value {
        self.send(payload);
        let answer = self.receive();
        assert_eq!(answer["seq"], self.seq, "one answer each: {answer}");
        answer
    }
}

#[test]
fn a_python_service_is_killed_and_comes_back() {
    let test = "a_python_service_is_killed_and_comes_back";
    let found = succeeds("python3", &["-c", "import grpc, grpc_tools.protoc"]);
    if !available(test, "python3 with grpcio and grpcio-tools", found) {
        return;
    }
    let checkout = Checkout::new();
    let address = checkout.address("50001");
    let start = || {
        let line = format!("exec python3 tests/interop/backend.py {address}");
        Running::start(&mut checkout.shell(&line), "service ready")
    };
    let mut service = start();
    // Reconnect at once: how long a gateway waits is not what is tested here.
    let env = [
        ("SHARDGATE__DEMO__ENABLED", "false"),
        ("SHARDGATE__NODE", "node-1"),
        ("SHARDGATE__BACKEND__BACKOFF_MS", "20"),
        ("SHARDGATE__BACKEND__BACKOFF_MAX_MS", "100"),
    ];
    let gateway = checkout.gateway(&env, &["logic"]);
    let mut client = Client::connect(&checkout.url());
    let payload = json!({"text": "hello", "n": [1, null, 2.5]});
    assert_eq!(client.ask(payload.clone())["payload"], payload);
    assert_eq!(client.ask(json!({"fail": 7}))["status"], 7);
    let told = &client.ask(json!({"who": true}))["payload"];
    assert_eq!(told["gateway"], "node-1");
    assert_eq!((&told["msg_id"], &told["seq"]), (&json!(1001), &json!(3)));
    assert_eq!(told["priority"], "PRIORITY_NORMAL");
    assert_eq!(told["encoding"], "ENCODING_JSON");
    assert_eq!(told["attempt"], 1);
    assert!(told["timeout_ms"].as_u64().is_some_and(|ms| (4_000..=5_000).contains(&ms)), "{told}");

    // Killed in the middle of a call: the call may have run, and the client gets that answer.
    client.send(json!({"hang": true}));
    service.line_with("hanging");
    drop(service);
    let answer = client.receive();
    assert_eq!((&answer["seq"], &answer["reason"]), (&json!(4), &json!("OUTCOME_UNKNOWN")));
    // While the service is away: surely not run.
    assert_eq!(client.ask(json!("?"))["reason"], "UNAVAILABLE");

    let service = start();
    eventually("the service answers again", || client.ask(json!("again"))["payload"] == "again");
    assert_eq!(gateway.stop().code(), Some(0));
    assert_eq!(service.stop().code(), Some(0));
}

/// Serves the page; returns the server's address, and the results that the page sends to it.
fn page() -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let origin = format!("http://{}", listener.local_addr().expect("it is bound"));
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let html = include_str!("../interop/page.html");
        for stream in listener.incoming().map_while(Result::ok) {
            let mut line = String::new();
            let mut reader = BufReader::new(&stream);
            let mut header = String::new();
            // The browser opens connections that it may not use.
            if reader.read_line(&mut line).is_err() || line.is_empty() {
                continue;
            }
            while reader.read_line(&mut header).is_ok_and(|n| n > 2) {
                header.clear();
            }
            let what = line.split(' ').nth(1).and_then(|path| path.strip_prefix("/told?"));
            let body = if what.is_some() { "" } else { html };
            let _ = write!(
                &stream,
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            );
            if let Some(what) = what {
                // A test that has ended reads no more.
                let _ = tell.send(what.to_owned());
            }
        }
    });
    (origin, told)
}

#[test]
fn a_chromium_page_connects_only_from_an_allowed_origin() {
    let test = "a_chromium_page_connects_only_from_an_allowed_origin";
    let program = chromium();
    available(test, "chromium", program.is_some());
    let Some(program) = program else { return };
    let (allowed, allowed_told) = page();
    let (other, other_told) = page();
    let checkout = Checkout::new();
    let gateway =
        checkout.gateway(&[("SHARDGATE__ORIGINS", &format!("[\"{allowed}\"]"))], &["logic"]);
    for (origin, told, expected) in
        [(allowed, allowed_told, r#"{"text":"hello"}"#), (other, other_told, "refused")]
    {
        let profile = tempfile::tempdir().expect("a directory");
        let page = format!("'{origin}/?{}'", checkout.url());
        let line = headless(&program, profile.path(), &page);
        let browser = Running::start(&mut checkout.shell(&line), "");
        let said =
            told.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("{e}: {}", browser.errors()));
        let said = percent_encoding::percent_decode_str(&said).decode_utf8_lossy().into_owned();
        assert!(said.contains(expected), "{origin}: {said}");
    }
    assert_eq!(gateway.stop().code(), Some(0));
}
