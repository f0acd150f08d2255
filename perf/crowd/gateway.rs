//! The gateway as a child, and what it says of itself.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{ClientConfig, RootCertStore};
use shardgate::auth::mint::{SigningKey, Wanted, mint};
use shardgate::config::settings::{Algorithm, DemoSettings};
use shardgate::demo::{self, DemoServices};
use tempfile::TempDir;

const SECRET: &str = "01234567890123456789012345678901";
/// Name of the certificate.
pub const NAME: &str = "crowd.test";

/// A gateway process with one shard on core 0, and its demo services.
pub struct Gateway {
    child: Child,
    pub ws: SocketAddr,
    pub wss: SocketAddr,
    admin: SocketAddr,
    /// TLS configuration of clients that trust the gateway's certificate.
    pub trusting: Arc<ClientConfig>,
    _services: DemoServices,
    _dir: TempDir,
}

impl Gateway {
    /// Starts the process and waits until it listens.
    pub fn start() -> Self {
        let addresses = [SocketAddr::from(([127, 0, 0, 1], 0)); 3];
        let settings = DemoSettings { addresses, ..DemoSettings::default() };
        let services = demo::start(&settings, Some(1));
        let services = services.expect("free ports");
        let dir = tempfile::tempdir().expect("a directory");
        let trusting = certificate(dir.path());
        configure(dir.path(), services.addresses()[0]);
        let mut child = Command::new(env!("CARGO_BIN_EXE_shardgate"))
            .args(["--config", dir.path().to_str().expect("a path"), "--core", "0"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the gateway");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("the ready line");
        let after = |word: &str| {
            let at = line.find(word).unwrap_or_else(|| panic!("{word} in {line:?}")) + word.len();
            let rest = line[at..].split(['/', ' ', '\n']).next().expect("an address");
            rest.parse().unwrap_or_else(|e| panic!("{e}: {rest:?}"))
        };
        Self {
            ws: after(" ws://"),
            wss: after(" wss://"),
            admin: after("admin http://"),
            child,
            trusting: Arc::new(trusting),
            _services: services,
            _dir: dir,
        }
    }

    /// Memory of its own that the process uses, without what the kernel holds for its sockets.
    pub fn rss_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).expect("a number of KiB");
        kib.trim().parse::<u64>().expect("a number") * 1024
    }

    /// Processor time that the process has used.
    pub fn cpu(&self) -> Duration {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = std::fs::read_to_string(path).expect("it runs");
        // Behind the name, which ends with ')': fields 14 and 15 of proc(5), in ticks of 10 ms.
        let (_, rest) = stat.rsplit_once(')').expect("a name");
        let fields = rest.split_whitespace().skip(11).take(2);
        let ticks: u64 = fields.map(|n| n.parse::<u64>().expect("a number")).sum();
        Duration::from_millis(ticks * 10)
    }

    /// Lateness of the shard's answers to the pulse of each 10 ms since the start: the longest time
    /// that a ready socket can have waited, by the gateway's own clock.
    pub fn lateness(&self) -> Histogram<u64> {
        let log = self.ask("/histograms");
        let line = log.lines().find(|line| line.starts_with("Tag=stall-0,")).expect("the stage");
        let (_, encoded) = line.rsplit_once(',').expect("a histogram at the end");
        let bytes = STANDARD.decode(encoded).expect("base64");
        Deserializer::new().deserialize(&mut &bytes[..]).expect("a histogram")
    }

    /// Bytes that the gateway's connections hold, by its own account.
    pub fn connection_bytes(&self) -> u64 {
        let stats = self.get("/stats");
        stats["connection_bytes"].as_u64().expect("a number")
    }

    /// Waits until nothing happens any more and the allocator has given back what it will.
    pub fn settle(&self) {
        let mut last = 0;
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(500));
            let now = self.rss_bytes();
            if now.abs_diff(last) < 64 << 10 {
                return;
            }
            last = now;
        }
    }

    fn get(&self, path: &str) -> serde_json::Value {
        let body = self.ask(path);
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body}"))
    }

    fn ask(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).expect("the admin endpoint");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer.split_once("\r\n\r\n").expect("a head").1.to_owned()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Ours, by its handle; it may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn certificate(dir: &Path) -> ClientConfig {
    let made = generate_simple_self_signed(vec![NAME.to_owned()]).expect("a certificate");
    let CertifiedKey { cert, signing_key } = made;
    std::fs::write(dir.join("a.pem"), cert.pem()).expect("written");
    std::fs::write(dir.join("a.key"), signing_key.serialize_pem()).expect("written");
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).expect("a certificate");
    ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
}

fn configure(dir: &Path, logic: SocketAddr) {
    let at = dir.display();
    let gateway = format!(
        r#"listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:0"
shards.count = 1
demo.enabled = false
log.filter = "error"
tls.listen = "127.0.0.1:0"
auth.mode = "jwt"
auth.required = false
auth_key = [{{ id = "k", algorithm = "HS256", secret = "{SECRET}" }}]
[[tls_certificate]]
chain_file = "{at}/a.pem"
key_file = "{at}/a.key"
[[service]]
name = "logic"
instances = [{{ id = "logic-1", address = "{logic}" }}]
[[route]]
range = [1000, 1999]
service = "logic"
"#
    );
    // Nobody is to be closed for sending nothing, or for being slow on a machine that is full.
    let shard = "conn.heartbeat_ms = 3600000\nconn.handshake_timeout_ms = 120000\n";
    std::fs::write(dir.join("gateway.toml"), gateway).expect("written");
    std::fs::write(dir.join("default.toml"), shard).expect("written");
}

/// A token of the user numbered `n`.
pub fn token(n: usize) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let wanted = Wanted {
        algorithm: Algorithm::Hs256,
        key_id: Some("k"),
        user: &format!("user-{n}"),
        tenant: None,
        groups: &[],
        issuer: None,
        audience: None,
        now_unix_s: now.expect("after 1970").as_secs() as i64,
        lifetime_s: 86_400,
    };
    mint(&wanted, SigningKey::Secret(SECRET.as_bytes())).expect("a token")
}
