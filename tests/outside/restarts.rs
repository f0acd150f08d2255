//! Services that stop and come back in order, each in the way that its library has for it: no
//! message is lost, nobody is ejected, and the log has no warning.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};
use tungstenite::Message;

use crate::support::{BINARY, Checkout, PATIENCE, Running, available, succeeds};

/// Restarts of each of the two instances.
const RESTARTS: usize = 2;

/// Routes to two instances of one service, by key.
const CONFIG: &str = r#"
listen = "127.0.0.1:9000"
[demo]
enabled = false
[admin]
listen = "127.0.0.1:8000"
[[service]]
name = "logic"
instances = [
  { id = "logic-1", address = "127.0.0.1:50001" },
  { id = "logic-2", address = "127.0.0.1:50002" },
]
[[route]]
range = [1000, 1999]
service = "logic"
hash_on = "key"
# grpcio cancels calls that cross its GOAWAY, and does not tell that they have not run.
idempotent = true
"#;

/// Sends messages with changing keys, each when the last one is answered, until `done`. Returns the
/// answers that are not well, and how many were.
fn converse(url: &str, done: &AtomicBool) -> (Vec<Value>, u64) {
    let (mut socket, _) = tungstenite::connect(url).expect("the gateway is ready");
    let tungstenite::stream::MaybeTlsStream::Plain(stream) = socket.get_ref() else {
        panic!("plain TCP")
    };
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    socket.read().expect("the welcome");
    let (mut bad, mut well) = (Vec::new(), 0);
    for seq in 1_u64.. {
        if done.load(Ordering::Relaxed) {
            break;
        }
        let message = json!({"msg_id": 1001, "seq": seq, "key": seq.to_string(), "payload": seq});
        socket.send(Message::text(message.to_string())).expect("it takes it");
        let answer = socket.read().expect("an answer comes in time");
        let answer: Value = serde_json::from_str(answer.to_text().expect("text")).expect("JSON");
        match answer["payload"] == seq {
            true => well += 1,
            false => bad.push(answer),
        }
    }
    (bad, well)
}

/// Ends the conversations when it is dropped, also by a failed assertion.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Restarts both instances in turns under messages. `service` is the command of one instance, and
/// `ready` in the line that it prints when it serves.
fn restart_in_order(checkout: &Checkout, ready: &str, service: impl Fn(usize) -> Command) {
    fs::write(checkout.path().join("shards/gateway.toml"), checkout.here(CONFIG)).expect("ours");
    let start = |n| Running::start(&mut service(n), ready);
    let mut instances = [Some(start(0)), Some(start(1))];
    let env =
        [("SHARDGATE__BACKEND__BACKOFF_MS", "20"), ("SHARDGATE__BACKEND__BACKOFF_MAX_MS", "50")];
    let gateway = checkout.gateway(&env, &["logic"]);
    let done = AtomicBool::new(false);
    let url = checkout.url();
    thread::scope(|scope| {
        // Dropped before the scope waits for the clients.
        let end = Ends(&done);
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| converse(&url, &done))).collect();
        for n in (0..2 * RESTARTS).map(|n| n % 2) {
            let stopped = instances[n].take().expect("it runs").stop();
            assert_eq!(stopped.code(), Some(0), "it stops in order");
            instances[n] = Some(start(n));
            checkout.wait_connected(&["logic"]);
        }
        drop(end);
        for client in clients {
            let (bad, well) = client.join().expect("no assertion failed");
            assert_eq!(bad, [] as [Value; 0]);
            assert!(well > 0);
        }
    });
    let log = gateway.errors();
    let warned = |line: &&str| line.contains("instance_") && !line.contains(" INFO ");
    assert_eq!(log.lines().find(warned), None);
    assert!(log.contains("instance_away"), "it went away in order: {log}");
    assert_eq!(gateway.stop().code(), Some(0));
}

#[test]
fn grpcio_services_restart_one_after_another_and_no_message_is_lost() {
    let test = "grpcio_services_restart_one_after_another_and_no_message_is_lost";
    let found = succeeds("python3", &["-c", "import grpc, grpc_tools.protoc"]);
    if !available(test, "python3 with grpcio and grpcio-tools", found) {
        return;
    }
    let checkout = Checkout::new();
    restart_in_order(&checkout, "service ready", |n| {
        let address = checkout.address(["50001", "50002"][n]);
        checkout.shell(&format!("exec python3 tests/interop/backend.py {address}"))
    });
}

#[test]
fn grpc_js_services_restart_one_after_another_and_no_message_is_lost() {
    let test = "grpc_js_services_restart_one_after_another_and_no_message_is_lost";
    let found =
        succeeds("node", &["-e", "require('@grpc/grpc-js'), require('@grpc/proto-loader')"]);
    if !available(test, "node with @grpc/grpc-js and @grpc/proto-loader (NODE_PATH)", found) {
        return;
    }
    let checkout = Checkout::new();
    restart_in_order(&checkout, "service ready", |n| {
        let address = checkout.address(["50001", "50002"][n]);
        let node = "exec node --preserve-symlinks-main tests/interop/backend.js";
        checkout.shell(&format!("{node} {address}"))
    });
}

#[test]
fn tonic_services_restart_one_after_another_and_no_message_is_lost() {
    let checkout = Checkout::new();
    restart_in_order(&checkout, "demo services ready", |n| {
        let address = checkout.address(["50001", "50002"][n]);
        let others = "127.0.0.1:0,127.0.0.1:0";
        checkout.shell(&format!("exec {BINARY} demo-services --listen {address},{others}"))
    });
}
