//! A gateway that the dashboard shows, with demo services, and things that can be wrong with it.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tungstenite::{Message, WebSocket};

use crate::support::{BINARY, Running, eventually, free_port, get_json};

/// Token of the admin endpoint.
pub const TOKEN: &str = "the-admin-token-of-the-tests";

/// Addresses of demo services.
pub struct Demo {
    pub logic: SocketAddr,
    pub chat: SocketAddr,
}

/// Tables of a service logic with two instances at these addresses, by key.
pub fn two_of_logic(first: SocketAddr, second: SocketAddr) -> String {
    format!(
        "[[service]]\nname = \"logic\"\n\
         instances = [{{ id = \"logic-1\", address = \"{first}\" }}, \
         {{ id = \"logic-2\", address = \"{second}\" }}]\n\
         [[route]]\nrange = [1000, 1999]\nservice = \"logic\"\nhash_on = \"key\"\n"
    )
}

/// A gateway with demo services in a process of their own.
pub struct Place {
    pub ws: SocketAddr,
    pub admin: SocketAddr,
    gateway: Running,
    _demo: Running,
    _dir: TempDir,
}

impl Place {
    /// Starts demo services, and a gateway whose `gateway.toml` is what `tables` makes of them; its
    /// shards' settings are `shard`.
    pub fn start(tables: impl FnOnce(&Demo) -> String, shard: &str) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST, "", tables, shard)
    }

    /// A gateway whose admin endpoint, with TLS, is at an address that asks for the token.
    pub fn guarded(at: Ipv4Addr) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let signed = rcgen::generate_simple_self_signed(names).expect("it signs");
        let [cert, key] = ["cert.pem", "key.pem"].map(|name| dir.path().join(name));
        fs::write(&cert, signed.cert.pem()).expect("the directory is ours");
        fs::write(&key, signed.signing_key.serialize_pem()).expect("the directory is ours");
        let private = fs::Permissions::from_mode(0o600);
        fs::set_permissions(&key, private).expect("the file is ours");
        let tls = format!("tls_cert = \"{}\"\ntls_key = \"{}\"\n", cert.display(), key.display());
        let tables = |demo: &Demo| two_of_logic(demo.logic, demo.chat);
        Self::start_at(at, &tls, tables, "")
    }

    fn start_at(
        admin: Ipv4Addr,
        admin_keys: &str,
        tables: impl FnOnce(&Demo) -> String,
        shard: &str,
    ) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let [logic, chat, fight, ws, port] = [(); 5].map(|()| free_port());
        let local = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listen = [logic, chat, fight].map(|port| local(port).to_string()).join(",");
        let mut command = Command::new(BINARY);
        let demo = Running::start(command.args(["demo-services", "--listen", &listen]), "ready: ");
        let tables = tables(&Demo { logic: local(logic), chat: local(chat) });
        let text = format!(
            "node = \"night\"\n[shards]\ncount = 2\n[demo]\nenabled = false\n\
             [admin]\ntoken = \"{TOKEN}\"\n{admin_keys}{tables}"
        );
        for (name, text) in [("gateway.toml", text.as_str()), ("default.toml", shard)] {
            fs::write(dir.path().join(name), text).expect("the directory is ours");
        }
        let (ws, admin) = (local(ws), SocketAddr::from((admin, port)));
        let mut command = Command::new(BINARY);
        command.env_remove("SHARDGATE_REQUIRE_EXTERNAL");
        command.arg("--config").arg(dir.path());
        command.args(["--listen", &ws.to_string(), "--admin", &admin.to_string()]);
        let gateway = Running::start(&mut command, "ready: ws://");
        Self { ws, admin, gateway, _demo: demo, _dir: dir }
    }

    /// Waits until all shards are connected to the instances of `service`.
    pub fn wait_connected(&self, service: &str) {
        eventually("all shards are connected", || {
            let stats = get_json(self.admin, "/stats");
            let instances = stats["services"][service]["instances"].as_array();
            instances.is_some_and(|all| all.iter().all(|i| i["connected"] == 2))
        });
    }

    /// Clients that ask by many keys until the value is dropped.
    pub fn load(&self) -> Load {
        self.wait_connected("logic");
        Load::start(self.ws)
    }

    /// The gateway ends in order.
    pub fn end(self) {
        assert_eq!(self.gateway.stop().code(), Some(0));
    }
}

/// Four clients that ask, each its next message after the last answer; dropping the value ends
/// them.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(to: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |c: u64| {
            let stop = stop.clone();
            thread::spawn(move || {
                let mut client = Client::connect(to);
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let payload = json!({"text": n, "delay_ms": 2});
                    let key = format!("{c}-{}", n % 50);
                    client.ask(json!({"msg_id": 1001, "key": key, "payload": payload}));
                }
            })
        };
        let clients = (0..4).map(client).collect();
        Self { stop, clients }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            let ended = client.join();
            assert!(ended.is_ok() || thread::panicking(), "a client failed");
        }
    }
}

/// A client of the gateway.
pub struct Client {
    socket: WebSocket<TcpStream>,
    /// Payload of the welcome.
    pub welcome: Value,
    seq: u64,
}

impl Client {
    pub fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).expect("the gateway listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("an option");
        stream.set_nodelay(true).expect("an option");
        let (socket, _) = tungstenite::client(format!("ws://{to}/ws"), stream).expect("an upgrade");
        let mut client = Self { socket, welcome: Value::Null, seq: 0 };
        client.welcome = client.read()["payload"].take();
        client
    }

    /// Sends a message without waiting for its answer. Whether the connection takes it.
    pub fn send(&mut self, mut message: Value) -> bool {
        self.seq += 1;
        message["seq"] = self.seq.into();
        self.socket.send(Message::text(message.to_string())).is_ok()
    }

    /// Sends a message, and waits for its answer.
    pub fn ask(&mut self, message: Value) -> Value {
        assert!(self.send(message), "the connection is open");
        self.read()
    }

    fn read(&mut self) -> Value {
        loop {
            match self.socket.read().expect("an answer in time") {
                Message::Text(text) => return serde_json::from_str(&text).expect("JSON"),
                Message::Binary(_)
                | Message::Ping(_)
                | Message::Pong(_)
                | Message::Close(_)
                | Message::Frame(_) => {}
            }
        }
    }
}

/// A line to a service on which everything takes so long: each way has a thread, which ends with
/// its connection.
pub fn slow_line(to: SocketAddr, delay: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let Ok(service) = TcpStream::connect(to) else { continue };
            for (mut from, mut to) in [
                (stream.try_clone().expect("a socket"), service.try_clone().expect("a socket")),
                (service, stream),
            ] {
                to.set_nodelay(true).expect("an option");
                thread::spawn(move || {
                    let mut bytes = [0; 16 << 10];
                    while let Ok(n) = from.read(&mut bytes) {
                        // The fault itself.
                        thread::sleep(delay);
                        if n == 0 || to.write_all(&bytes[..n]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
            }
        }
    });
    address
}
