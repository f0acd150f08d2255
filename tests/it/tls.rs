//! TLS towards clients: the same promises over wss as over ws, and the rules of TLS.

mod faults;
mod reload;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::HandshakeKind;
use rustls::version::TLS13;
use serde_json::json;
use tempfile::TempDir;

use crate::support::secure::{self, Signer, VERSIONS};
use crate::support::{Client, Config, Gateway, Raw, eventually, several};

/// A gateway with TLS, with its certificate in a directory of its own, and its signer.
struct Secured {
    gateway: Gateway,
    signer: Signer,
    certs: TempDir,
}

/// A `[[tls_certificate]]` of the files `<name>.pem` and `<name>.key` in `dir`, to stand behind all
/// other keys.
pub fn certificate(dir: &TempDir, name: &str) -> String {
    let path = dir.path().join(name).display().to_string();
    format!("[[tls_certificate]]\nchain_file = \"{path}.pem\"\nkey_file = \"{path}.key\"")
}

fn tls(config: Config) -> Config {
    config.key("tls.listen = \"127.0.0.1:0\"")
}

impl Secured {
    /// A gateway with a certificate for a.test.
    fn start(config: Config) -> Self {
        let (signer, certs) = (Signer::new(), tempfile::tempdir().expect("a directory"));
        signer.write(certs.path(), "a", &["a.test", "127.0.0.1"]);
        let config = tls(config).key(&certificate(&certs, "a"));
        Self { gateway: Gateway::start(&config), signer, certs }
    }

    fn wss(&self) -> SocketAddr {
        self.gateway.wss.expect("TLS is on")
    }

    fn client(&self) -> Client {
        Client::secure(self.wss(), &Arc::new(self.signer.client(&TLS13)), "a.test")
    }

    /// Makes a handshake and nothing more.
    fn shake(&self, config: &Arc<rustls::ClientConfig>) -> std::io::Result<secure::Stream> {
        secure::connect(self.wss(), config, "a.test")
    }

    fn counter(&self, name: &str, least: u64) {
        eventually(name, || (self.gateway.counter(name) >= least).then_some(()));
    }
}

#[test]
fn messages_are_answered_over_tls_in_both_versions_and_beside_plain_ones() {
    let secured = Secured::start(Config::new());
    let gateway = &secured.gateway;
    let large = json!("x".repeat(60_000));
    for version in VERSIONS {
        let config = Arc::new(secured.signer.client(version));
        let mut client = Client::secure(secured.wss(), &config, "a.test");
        assert_eq!(client.call(9000, json!(1))["payload"], 1);
        for _ in 0..20 {
            assert_eq!(client.call(9000, large.clone())["payload"], large);
        }
        let mut plain = Client::connect(gateway.ws);
        assert_eq!(plain.call(9000, large.clone())["payload"], large);
        assert_eq!(client.tls().conn.protocol_version(), Some(version.version));
    }
    assert_eq!(gateway.counter("tls_handshakes"), 2);
    assert_eq!(gateway.counter("upgraded"), 4);
    let (status, metrics) = gateway.request("GET /metrics", "", "");
    assert_eq!(status, 200);
    assert!(metrics.contains("shardgate_tls_certificate_expires_seconds{certificate="));
}

#[test]
fn an_absolute_target_of_https_is_taken_over_tls() {
    let secured = Secured::start(Config::new());
    for target in ["https://a.test/ws", "wss://a.test/ws", "HTTPS://a.test:443/ws?x"] {
        let stream = secured.shake(&Arc::new(secured.signer.client(&TLS13))).expect("TLS");
        let mut raw = Raw::over(stream);
        let request = Raw::request(secured.wss()).replace("GET /ws ", &format!("GET {target} "));
        raw.send(request.as_bytes());
        assert!(raw.head().starts_with("HTTP/1.1 101 "), "{target}");
    }
}

#[test]
fn a_gateway_without_a_plain_listener_speaks_tls_only() {
    let secured = Secured::start(Config::new().tls_only());
    assert_eq!(Some(secured.gateway.ws), secured.gateway.wss, "the ready line has one address");
    assert_eq!(secured.client().call(9000, json!(1))["payload"], 1);
}

#[test]
fn a_client_that_comes_back_resumes_at_any_shard() {
    for version in VERSIONS {
        let secured = Secured::start(Config::new().shards(several()));
        let config = Arc::new(secured.signer.client(version));
        let mut kinds = Vec::new();
        let mut shards = std::collections::BTreeSet::new();
        // Until every shard had one, as the kernel spreads them.
        eventually("all shards have resumed one", || {
            let mut client = Client::secure(secured.wss(), &config, "a.test");
            kinds.push(client.tls().conn.handshake_kind().expect("it is complete"));
            if kinds.len() > 1 {
                shards.insert(client.welcome["shard"].as_u64());
            }
            (shards.len() == secured.gateway.shards).then_some(())
        });
        assert_eq!(kinds[0], HandshakeKind::Full);
        assert!(kinds[1..].iter().all(|kind| *kind == HandshakeKind::Resumed), "{kinds:?}");
        assert_eq!(secured.gateway.counter("tls_handshakes"), 1);
        assert_eq!(secured.gateway.counter("tls_resumed"), kinds.len() as u64 - 1);
    }
}

#[test]
fn a_client_is_shown_the_certificate_of_the_name_it_asks_for() {
    let secured = {
        let (signer, certs) = (Signer::new(), tempfile::tempdir().expect("a directory"));
        signer.write(certs.path(), "a", &["a.test"]);
        signer.write(certs.path(), "b", &["*.b.test"]);
        let both = format!("{}\n{}", certificate(&certs, "a"), certificate(&certs, "b"));
        let gateway = Gateway::start(&tls(Config::new()).key(&both));
        Secured { gateway, signer, certs }
    };
    let config = Arc::new(secured.signer.client(&TLS13));
    let shown = |name| {
        let stream = secure::connect(secured.wss(), &config, name)?;
        let chain = stream.conn.peer_certificates().expect("it is complete").to_vec();
        Ok::<_, std::io::Error>(chain[0].to_vec())
    };
    let file = |name: &str| {
        use rustls::pki_types::{CertificateDer, pem::PemObject};
        let path = secured.certs.path().join(format!("{name}.pem"));
        CertificateDer::from_pem_file(path).expect("PEM").to_vec()
    };
    assert_eq!(shown("a.test").expect("covered"), file("a"));
    assert_eq!(shown("x.b.test").expect("covered"), file("b"));
    let refused = shown("c.test").expect_err("nothing covers it").to_string();
    assert!(refused.contains("UnrecognisedName"), "{refused}");
    secured.counter("tls_failed_name", 1);
    let why = "no [[tls_certificate]] covers the name that the client asks for";
    let is_told = |line: &str| line.contains(" WARN ") && line.contains(why);
    eventually(why, || secured.gateway.log().lines().any(is_told).then_some(()));
}

#[test]
fn a_client_that_speaks_only_other_protocols_inside_is_told() {
    let secured = Secured::start(Config::new());
    let mut config = secured.signer.client(&TLS13);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let refused = secured.shake(&Arc::new(config.clone())).expect_err("no h2").to_string();
    assert!(refused.contains("NoApplicationProtocol"), "{refused}");
    secured.counter("tls_failed_protocol", 1);
    config.alpn_protocols.push(b"http/1.1".to_vec());
    let stream = secured.shake(&Arc::new(config)).expect("http/1.1");
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
}

#[test]
fn clients_show_certificates_as_configured() {
    let (by, stranger) = (Signer::new(), Signer::new());
    for (word, expected) in [
        ("off", [true, true, true]),
        ("optional", [true, false, true]),
        ("required", [true, false, false]),
    ] {
        let (mut config, dir) = (Config::new(), tempfile::tempdir().expect("a directory"));
        if word != "off" {
            let ca = dir.path().join("ca.pem");
            std::fs::write(&ca, by.pem()).expect("written");
            config = config
                .key(&format!("tls.client_certificates = \"{word}\""))
                .key(&format!("tls.client_ca_file = \"{}\"", ca.display()));
        }
        let secured = Secured::start(config);
        let signer = &secured.signer;
        let clients = [
            signer.client_with(&TLS13, &by),
            signer.client_with(&TLS13, &stranger),
            signer.client(&TLS13),
        ];
        let mut refused = 0;
        for (client, expected) in clients.into_iter().zip(expected) {
            // In TLS 1.3 a client has finished before the server checks its certificate.
            let said = secured.shake(&Arc::new(client)).and_then(|mut stream| {
                stream.write_all(Raw::request(secured.wss()).as_bytes())?;
                let mut line = [0; 12];
                stream.read_exact(&mut line).map(|()| line)
            });
            assert_eq!(said.is_ok_and(|line| line == *b"HTTP/1.1 101"), expected, "{word}");
            refused += u64::from(!expected);
        }
        assert_eq!(secured.gateway.counter("tls_failed_certificate"), refused, "{word}");
    }
}

#[test]
fn a_stop_sends_everybody_away_with_1001_and_close_notify() {
    let mut secured = Secured::start(Config::new().shards(several()));
    let mut clients: Vec<Client> = (0..6).map(|_| secured.client()).collect();
    secured.gateway.signal(rustix::process::Signal::TERM);
    for client in &mut clients {
        let (messages, code) = client.until_close();
        assert_eq!((messages[0]["type"].as_str(), code), (Some("draining"), Some(1001)));
        let (left, told) = secure::rest(client.tls());
        assert_eq!((left.len(), told), (0, true), "the end is told apart from a cut");
    }
    assert_eq!(secured.gateway.wait().code(), Some(0));
}
