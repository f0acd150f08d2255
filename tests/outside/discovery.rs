//! The gateway with a real etcd: instances come, go and come back while messages flow.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

use super::etcd::member::Etcd;
use super::support::{
    BINARY, Checkout, OneFile, Running, available, eventually, free_port, get_json, succeeds,
};

/// Length of the outage in a run of all tests. SHARDGATE_OUTAGE_S=60 makes it a whole minute, and
/// needs nothing else.
fn outage() -> Duration {
    let seconds = std::env::var("SHARDGATE_OUTAGE_S").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(5))
}

/// A process that serves `logic` (and the two other demo services, which get no messages).
fn instance() -> (Running, SocketAddr) {
    let ports = [free_port(), free_port(), free_port()];
    let list: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let mut command = Command::new(BINARY);
    command.args(["demo-services", "--listen", &list.join(",")]);
    (Running::start(&mut command, ""), list[0].parse().expect("an address"))
}

/// A client whose messages have keys.
pub(super) struct KeyClient {
    socket: WebSocket<TcpStream>,
    seq: u64,
}

impl KeyClient {
    pub(super) fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).expect("the gateway listens");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        stream.set_nodelay(true).expect("an option");
        let (mut socket, _) =
            tungstenite::client(format!("ws://{to}/ws"), stream).expect("an upgrade");
        socket.read().expect("a welcome");
        Self { socket, seq: 0 }
    }

    /// Sends a message with each key; returns the answers in their order.
    pub(super) fn ask(&mut self, keys: &[String]) -> Vec<Value> {
        let first = self.seq + 1;
        for key in keys {
            self.seq += 1;
            let payload = json!({"who": true});
            let ask = json!({"msg_id": 1001, "seq": self.seq, "key": key, "payload": payload});
            self.socket.write(Message::text(ask.to_string())).expect("written");
        }
        self.socket.flush().expect("sent");
        let mut answers = vec![Value::Null; keys.len()];
        for _ in keys {
            let Ok(Message::Text(text)) = self.socket.read() else { panic!("an answer") };
            let answer: Value = serde_json::from_str(&text).expect("JSON");
            let at = (answer["seq"].as_u64().expect("a seq") - first) as usize;
            assert!(answers[at].is_null(), "two answers to one message");
            answers[at] = answer;
        }
        answers
    }
}

fn keys() -> Vec<String> {
    (0..90).map(|n| format!("room-{n}")).collect()
}

/// A gateway without demo services whose instances and routes are in etcd.
struct EtcdGateway(OneFile);

impl EtcdGateway {
    /// Starts a gateway with the service `logic`, and `more` lines of its file.
    fn start(etcd: &Etcd, more: &str) -> Self {
        let endpoint = etcd.settings().endpoints[0].clone();
        let text = format!(
            "demo.enabled = false\netcd.endpoints = [\"{endpoint}\"]\n[[service]]\n\
             name = \"logic\"\n{more}"
        );
        Self(OneFile::start(&text))
    }

    /// State of the source etcd.
    fn source(&self) -> String {
        let health = get_json(self.0.admin, "/health");
        health["sources"]["etcd"]["state"].as_str().unwrap_or("").to_owned()
    }

    /// Instance that gets each key, by the first shard.
    fn owners(&self) -> BTreeMap<String, String> {
        let owner = |key: String| {
            let path = format!("/routing/explain?msg_id=1001&key={key}");
            let explained = get_json(self.0.admin, &path);
            let name = explained["shards"][0]["instance"].as_str().unwrap_or_default().to_owned();
            (key, name)
        };
        keys().into_iter().map(owner).collect()
    }
}

/// Sends a burst each 18 ms until `stop`: four of these are 20,000 messages a second, if they are
/// answered in time. Returns the number of answers, and of those that are OUTCOME_UNKNOWN.
fn talk(ws: SocketAddr, stop: &AtomicBool) -> (u64, u64) {
    let (mut client, keys) = (KeyClient::connect(ws), keys());
    let (mut answered, mut unknown) = (0, 0);
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        for answer in client.ask(&keys) {
            answered += 1;
            if answer.get("status").is_some() {
                assert_eq!(answer["reason"], "OUTCOME_UNKNOWN", "{answer}");
                unknown += 1;
            }
        }
        due += Duration::from_millis(18);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    (answered, unknown)
}

/// Kills etcd and an instance, waits, starts both again, and checks which keys move when.
fn outage_of(etcd: &mut Etcd, gateway: &EtcdGateway, instances: &mut Vec<(Running, SocketAddr)>) {
    let before = gateway.owners();
    etcd.kill();
    eventually("the gateway says that etcd is away", || gateway.source() == "stale");
    let away = Instant::now();
    // An instance dies meanwhile: it cannot be taken out of etcd, and its keys move all the same.
    drop(instances.remove(1));
    eventually("only its keys move", || {
        let now = gateway.owners();
        before.iter().all(|(key, owner)| (owner == "logic-1") == (now[key] != *owner))
    });
    while away.elapsed() < outage() {
        assert_eq!(gateway.source(), "stale");
        std::thread::sleep(Duration::from_millis(100));
    }
    etcd.start(true);
    eventually("the gateway has etcd again", || gateway.source() == "fresh");
    let (extra, address) = instance();
    etcd.put("services/logic/logic-3", &format!(r#"{{"address":"{address}"}}"#));
    instances.push((extra, address));
    eventually("it is found", || gateway.owners().values().any(|owner| owner == "logic-3"));
    etcd.delete("services/logic/logic-1");
    eventually("what was left of the dead one is gone", || {
        get_json(gateway.0.admin, "/health")["sources"]["etcd"]["instances"] == 3
    });
    let after = gateway.owners();
    for (key, owner) in &before {
        let stayed = after[key] == *owner || after[key] == "logic-3" || owner == "logic-1";
        assert!(stayed, "{key} moved from {owner} to {}", after[key]);
    }
}

#[test]
fn messages_flow_through_an_outage_of_etcd_and_keys_move_only_with_their_instance() {
    let found = succeeds("etcd", &["--version"]) && succeeds("etcdctl", &["version"]);
    let name = "messages_flow_through_an_outage_of_etcd_and_keys_move_only_with_their_instance";
    if !available(name, "etcd and etcdctl", found) {
        return;
    }
    let mut etcd = Etcd::running();
    let mut instances: Vec<_> = (0..3).map(|_| instance()).collect();
    for (n, (_, address)) in instances.iter().enumerate() {
        let value = format!(r#"{{"address":"{address}"}}"#);
        etcd.put(&format!("services/logic/logic-{n}"), &value);
    }
    etcd.put("routes/logic", r#"{"range":[1000,1999],"service":"logic","hash_on":"key"}"#);
    let gateway = EtcdGateway::start(&etcd, "");
    let owners = gateway.owners();
    assert!((0..3).all(|n| owners.values().any(|o| *o == format!("logic-{n}"))), "{owners:?}");
    assert_eq!(gateway.source(), "fresh");
    let stop = AtomicBool::new(false);
    let began = Instant::now();
    let (answered, unknown): (u64, u64) = std::thread::scope(|scope| {
        let talkers: Vec<_> = (0..4).map(|_| scope.spawn(|| talk(gateway.0.ws, &stop))).collect();
        outage_of(&mut etcd, &gateway, &mut instances);
        stop.store(true, Ordering::Relaxed);
        let ended = talkers.into_iter().map(|t| t.join().expect("every message is answered"));
        ended.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    });
    // Messages that the dead instance had at that moment, in at most ten calls a shard.
    assert!(unknown < answered / 10, "{unknown} of {answered}");
    let rate = answered / began.elapsed().as_secs().max(1);
    println!("{answered} messages, {rate} a second, {unknown} OUTCOME_UNKNOWN");
    gateway.0.process.stop();
}

#[test]
fn routes_in_etcd_are_checked_like_those_of_the_files() {
    let found = succeeds("etcd", &["--version"]) && succeeds("etcdctl", &["version"]);
    if !available("routes_in_etcd_are_checked_like_those_of_the_files", "etcd and etcdctl", found) {
        return;
    }
    let etcd = Etcd::running();
    let route = "[[route]]\nrange = [1000, 1999]\nservice = \"logic\"\n";
    let gateway = EtcdGateway::start(&etcd, route);
    let get = |path: &str| get_json(gateway.0.admin, path);
    etcd.put("routes/party", r#"{"range":[1500,2500],"service":"logic"}"#);
    eventually("the overlap is refused by name", || {
        let refused = get("/health")["routes_refused"].to_string();
        refused.contains("/shardgate/routes/party") && refused.contains("overlaps route[0]")
    });
    etcd.put("routes/party", r#"{"range":[2000,2500],"service":"logic"}"#);
    eventually("it is in force", || {
        get("/routing/explain?msg_id=2200&key=x")["service"] == "logic"
    });
    etcd.delete("routes/party");
    eventually("it is gone", || get("/routing/explain?msg_id=2200&key=x")["service"] != "logic");
    gateway.0.process.stop();
}

#[test]
fn tenants_in_etcd_come_change_and_go_and_a_wrong_one_refuses_itself_alone() {
    let found = succeeds("etcd", &["--version"]) && succeeds("etcdctl", &["version"]);
    let name = "tenants_in_etcd_come_change_and_go_and_a_wrong_one_refuses_itself_alone";
    if !available(name, "etcd and etcdctl", found) {
        return;
    }
    let etcd = Etcd::running();
    let text = "[auth]\nmode = \"jwt\"\ntenants = \"many\"\n[[auth_key]]\nid = \"k\"\n\
                algorithm = \"HS256\"\nsecret = \"0123456789abcdef0123456789abcdef\"\n";
    let gateway = EtcdGateway::start(&etcd, text);
    let get = |path: &str| get_json(gateway.0.admin, path);
    let service = |tenant: &str, id: u32| {
        let path = format!("/routing/explain?msg_id={id}&user=x&tenant={tenant}");
        get(&path)["service"].clone()
    };
    etcd.put("tenants/acme", r#"{"route":[{"range":[2000,2500],"service":"logic"}]}"#);
    eventually("its route is its own", || service("acme", 2200) == "logic");
    assert!(service("other", 2200).is_null() && service("", 2200).is_null());
    etcd.put("tenants/b", r#"{"weight":0}"#);
    eventually("the wrong one is told by name", || {
        let refused = get("/health")["tenants_refused"].to_string();
        refused.contains("/shardgate/tenants/b") && refused.contains("weight = 0")
    });
    etcd.put("routes/party", r#"{"range":[3000,3500],"service":"logic"}"#);
    eventually("routes go on being followed", || service("other", 3200) == "logic");
    assert_eq!(service("acme", 2200), "logic", "what was in force stays");
    etcd.put("tenants/b", r#"{"inherit":false}"#);
    eventually("it is right now", || service("b", 3200).is_null());
    assert_eq!(get("/health")["tenants_refused"].as_array().map(Vec::len), Some(0));
    etcd.delete("tenants/acme");
    eventually("it is gone", || service("acme", 2200).is_null());
    gateway.0.process.stop();
}

#[test]
fn a_service_that_registers_itself_gets_messages_until_it_leaves() {
    let found = succeeds("python3", &["-c", "import grpc, grpc_tools.protoc"]);
    let name = "a_service_that_registers_itself_gets_messages_until_it_leaves";
    if !available(name, "python3 with grpcio and grpcio-tools", found) {
        return;
    }
    let checkout = Checkout::new();
    let [ws, admin, registry] = [free_port(), free_port(), free_port()]
        .map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let text = format!(
        "demo.enabled = false\nregistry.listen = \"{registry}\"\n[[registry_token]]\n\
         name = \"python\"\ntoken = \"0123456789abcdef\"\nservices = [\"logic\"]\n\
         [[service]]\nname = \"logic\"\n[[route]]\nrange = [1000, 1999]\nservice = \"logic\"\n"
    );
    std::fs::write(checkout.path().join("shards/gateway.toml"), text).expect("ours");
    let addresses = format!("--listen {ws} --admin {admin}");
    let mut command = checkout.shell(&format!("exec {BINARY} --config shards {addresses}"));
    let gateway = Running::start(&mut command, "ready: ws://");
    let (first, address) = instance();
    let register = |name: &str, address: SocketAddr| {
        let line = format!(
            "SHARDGATE_TOKEN=0123456789abcdef exec python3 tests/interop/register.py {registry} \
             logic {name} {address}"
        );
        Running::start(&mut checkout.shell(&line), "registered")
    };
    let one = register("logic-1", address);
    let mut client = KeyClient::connect(ws);
    let asks = ["x".to_owned()];
    eventually("messages reach it", || client.ask(&asks)[0].get("status").is_none());
    let (_second, address) = instance();
    let _two = register("logic-2", address);
    let services = || get_json(admin, "/services").to_string();
    eventually("there are two", || services().contains("logic-2"));
    one.stop();
    eventually("one has left", || !services().contains("logic-1"));
    first.stop();
    eventually("the other serves", || client.ask(&asks)[0].get("status").is_none());
    gateway.stop();
}
