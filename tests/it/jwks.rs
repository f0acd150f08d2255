//! Fetched keys: a user whose key is not known here is asked to come back, and let in soon, when
//! the gateway's keys are missing or old; a key that is in no set is a bad token.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use shardgate::auth::mint::{SigningKey, Wanted, mint};
use shardgate::config::settings::Algorithm;

use crate::auth::{auth_of, token};
use crate::support::secure::Signer;
use crate::support::{Client, Config, Gateway, PATIENCE, eventually, eventually_within, run};

const SECRET: &str = "01234567890123456789012345678901";

/// An issuer of tokens, and its server with the set of public keys.
pub struct Issuer {
    keys: Vec<(&'static str, KeyPair)>,
    pub url: String,
    /// Keys in the set; `None`: the server answers 500.
    shown: Arc<Mutex<Option<Vec<Value>>>>,
    asked: Arc<AtomicUsize>,
}

impl Issuer {
    /// An issuer whose server answers 500.
    pub fn new() -> Self {
        Self::start("http", None)
    }

    /// An issuer whose server speaks TLS with a certificate of `signer`, and shows its keys.
    fn signed_by(signer: &Signer) -> Self {
        let (chain, key) = signer.pair(&["localhost", "127.0.0.1"]);
        let chain = vec![CertificateDer::from_pem_slice(chain.as_bytes()).expect("PEM")];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a pair");
        let issuer = Self::start("https", Some(Arc::new(config)));
        issuer.show(2);
        issuer
    }

    fn start(scheme: &str, tls: Option<Arc<ServerConfig>>) -> Self {
        let pair = || KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("entropy");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("{scheme}://{}/keys", listener.local_addr().expect("bound"));
        let shown: Arc<Mutex<Option<Vec<Value>>>> = Arc::default();
        let asked: Arc<AtomicUsize> = Arc::default();
        let (showing, asking) = (shown.clone(), asked.clone());
        // The thread ends with the tests.
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                match &tls {
                    None => answer(&mut stream, &showing, &asking),
                    Some(config) => {
                        let tls = ServerConnection::new(config.clone()).expect("a server");
                        answer(&mut StreamOwned::new(tls, stream), &showing, &asking);
                    }
                }
            }
        });
        Self { keys: vec![("old", pair()), ("new", pair())], url, shown, asked }
    }

    /// Puts so many of the keys into the set.
    pub fn show(&self, count: usize) {
        let jwk = |(id, pair): &(&str, KeyPair)| {
            let x = URL_SAFE_NO_PAD.encode(pair.der_bytes());
            json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": id})
        };
        let keys = self.keys[..count].iter().map(jwk).collect();
        *self.shown.lock().expect("not poisoned") = Some(keys);
    }

    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// A token signed with key number `n`.
    fn token(&self, n: usize) -> String {
        self.token_of(n, None, "us")
    }

    /// The same with these claims `tenant` and `iss`.
    pub fn token_of(&self, n: usize, tenant: Option<&str>, issuer: &str) -> String {
        let (id, pair) = &self.keys[n];
        let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let wanted = Wanted {
            algorithm: Algorithm::EdDsa,
            key_id: Some(id),
            user: "alice",
            tenant,
            groups: &[],
            issuer: Some(issuer),
            audience: Some("game"),
            now_unix_s: since.as_secs() as i64,
            lifetime_s: 600,
        };
        let pem = pair.serialize_pem();
        mint(&wanted, SigningKey::Private(pem.as_bytes())).expect("a token")
    }

    /// A gateway with a key of its own that fetches the others every five minutes.
    fn config(&self) -> Config {
        auth_of(SECRET).key(&format!("auth.jwks_url = {:?}", self.url))
    }
}

/// Answers one request, unless the client ends the connection before it.
fn answer(
    stream: &mut (impl Read + Write),
    showing: &Mutex<Option<Vec<Value>>>,
    asking: &AtomicUsize,
) {
    let mut request = [0; 4096];
    if stream.read(&mut request).unwrap_or(0) == 0 {
        return;
    }
    let shown = showing.lock().expect("not poisoned").clone();
    let (status, body) = match shown {
        Some(keys) => ("200 OK", json!({ "keys": keys }).to_string()),
        None => ("500 Oh", String::new()),
    };
    asking.fetch_add(1, Ordering::SeqCst);
    let length = body.len();
    // The gateway may be gone.
    let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
    let _ = stream.flush();
}

pub fn auth(client: &mut Client, token: &str) -> Value {
    client.ask(json!({"type": "auth", "payload": {"token": token}}))
}

#[test]
fn while_no_set_could_be_fetched_good_tokens_are_not_bad_ones() {
    let issuer = Issuer::new();
    let gateway = Gateway::start(&issuer.config());
    let mut client = Client::connect(gateway.ws);
    let answer = auth(&mut client, &issuer.token(0));
    assert_eq!(answer["reason"], "UNAVAILABLE", "{answer}");
    assert!(answer["retry_after_ms"].as_u64() > Some(0), "{answer}");
    // The key of the configuration is known all the while, and no client was closed.
    assert_eq!(auth(&mut Client::connect(gateway.ws), &token("bob"))["type"], "auth_ok");
    assert_eq!(gateway.counter("closed_bad_token"), 0);
    assert!(gateway.counter("auth_keys_missing") > 0);
    // The client's request and the next try are 10 s apart, and that of the start was at 0 s.
    issuer.show(1);
    eventually_within(2 * PATIENCE, "the server is back", || {
        (auth(&mut client, &issuer.token(0))["type"] == "auth_ok").then_some(())
    });
}

#[test]
fn a_new_key_of_the_issuer_is_fetched_when_it_is_first_seen() {
    let issuer = Issuer::new();
    issuer.show(1);
    let gateway = Gateway::start(&issuer.config());
    assert_eq!(auth(&mut Client::connect(gateway.ws), &issuer.token(0))["type"], "auth_ok");
    // The set was fetched just now: a key that is not in it is a bad one.
    let mut client = Client::connect(gateway.ws);
    assert_eq!(auth(&mut client, &issuer.token(1))["reason"], "UNAUTHENTICATED");
    assert_eq!(client.until_close(), (vec![], Some(4500)));
    assert_eq!(issuer.asked(), 1, "and nothing is fetched for it");
    issuer.show(2);
    // Once the set is 10 s old.
    let mut client = eventually_within(2 * PATIENCE, "the set may be behind", || {
        let mut client = Client::connect(gateway.ws);
        let answer = auth(&mut client, &issuer.token(1));
        assert_ne!(answer["type"], "auth_ok", "nothing else fetches it");
        (answer["reason"] == "UNAVAILABLE").then_some(client)
    });
    // On the same connection, as soon as the set is there: not in five minutes.
    eventually("the new key is known", || {
        (auth(&mut client, &issuer.token(1))["type"] == "auth_ok").then_some(())
    });
    assert_eq!(issuer.asked(), 2, "one fetch for it");
}

/// Writes the signer's own certificate into a file.
fn ca_file(dir: &Path, signer: &Signer) -> String {
    let path = dir.join("ca.pem");
    std::fs::write(&path, signer.pem()).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}

pub fn signs_in(gateway: &Gateway, token: &str) -> bool {
    auth(&mut Client::connect(gateway.ws), token)["type"] == "auth_ok"
}

#[test]
fn a_provider_of_a_private_authority_is_trusted_by_the_file_that_names_it() {
    let (signer, stranger) = (Signer::new(), Signer::new());
    let issuer = Issuer::signed_by(&signer);
    let [ours, theirs] = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let (ca, other) = (ca_file(ours.path(), &signer), ca_file(theirs.path(), &stranger));
    let with = |path: &str| issuer.config().key(&format!("auth.jwks_ca_file = {path:?}"));
    let stale = |gateway: &Gateway| {
        let log = gateway.log();
        let lines = log.lines().filter(|line| line.contains("jwks_stale"));
        lines.filter(|line| line.contains("; name the certificate of its authority")).count()
    };
    // Neither the file of another authority nor the system knows it, and the log says the way out.
    for config in [with(&other), issuer.config()] {
        let gateway = Gateway::start(&config);
        eventually("the strange authority is told", || (stale(&gateway) > 0).then_some(()));
        assert!(gateway.log().contains("in auth.jwks_ca_file"), "{}", gateway.log());
        assert!(!signs_in(&gateway, &issuer.token(0)));
    }
    assert_eq!(issuer.asked(), 0, "nothing was sent to it");
    let gateway = Gateway::start(&issuer.config());
    // A reload fetches at once.
    gateway.rewrite(&with(&ca));
    assert_eq!(gateway.admin_post("/reload", "").0, 200);
    eventually("the keys are there", || signs_in(&gateway, &issuer.token(0)).then_some(()));
    // The same path with another content, too: it counts what is in the file.
    std::fs::write(&ca, "not PEM").expect("written");
    let (status, refused) = gateway.admin_post("/reload", "");
    assert_ne!(status, 200);
    let told = refused.to_string();
    assert!(told.contains("auth.jwks_ca_file") && told.contains("holds no certificate"), "{told}");
    assert!(signs_in(&gateway, &issuer.token(1)), "a refused reload changes nothing");
    let before = stale(&gateway);
    std::fs::write(&ca, stranger.pem()).expect("written");
    assert_eq!(gateway.admin_post("/reload", "").0, 200);
    eventually("another is in the file", || (stale(&gateway) > before).then_some(()));
    assert!(signs_in(&gateway, &issuer.token(1)), "the last good set holds");
}

#[test]
fn without_a_file_the_systems_authorities_are_asked() {
    let signer = Signer::new();
    let issuer = Issuer::signed_by(&signer);
    let dir = tempfile::tempdir().expect("a directory");
    let ca = ca_file(dir.path(), &signer);
    let gateway = Gateway::start_with(&issuer.config(), |command| {
        command.env("SSL_CERT_FILE", &ca).env_remove("SSL_CERT_DIR");
    });
    eventually("the keys are there", || signs_in(&gateway, &issuer.token(0)).then_some(()));
    // A system without any.
    let none = dir.path().join("none.pem");
    let gateway = Gateway::start_with(&issuer.config(), |command| {
        command.env("SSL_CERT_FILE", &none).env_remove("SSL_CERT_DIR");
    });
    let told = "install ca-certificates, or name a file in auth.jwks_ca_file";
    eventually("that is told", || gateway.log().contains(told).then_some(()));
    // What is checked at the terminal is what the gateway does.
    let config = issuer.config().key(&format!("auth.jwks_ca_file = {ca:?}")).write();
    let shown = dir.path().join("token");
    std::fs::write(&shown, issuer.token(0)).expect("written");
    let path = config.path().to_str().expect("UTF-8");
    let finished = run(&["check", "token", "--config", path], |command| {
        command.env("SSL_CERT_FILE", &none).stdin(File::open(&shown).expect("there"));
    });
    assert!(finished.stdout.contains("accepted: user \"alice\""), "{}", finished.stdout);
}

#[test]
fn a_file_of_authorities_that_is_none_is_told_at_the_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let key = dir.path().join("key.pem");
    std::fs::write(&key, KeyPair::generate().expect("a key").serialize_pem()).expect("written");
    let missing = dir.path().join("missing.pem");
    for (path, why) in [(&missing, "cannot be opened"), (&key, "holds no certificate in PEM")] {
        let config = auth_of(SECRET)
            .key("auth.jwks_url = \"https://127.0.0.1:1/\"")
            .key(&format!("auth.jwks_ca_file = {path:?}"));
        let config = config.write();
        let at = config.path().to_str().expect("UTF-8");
        for args in [vec!["--config", at], vec!["check", "--config", at]] {
            let finished = run(&args, |_| ());
            let said = finished.stdout + &finished.stderr;
            assert_eq!(finished.code, Some(64), "{said}");
            let line = said.lines().find(|line| line.contains("auth.jwks_ca_file")).expect(&said);
            assert!(line.contains(why) && line.contains(path.to_str().expect("UTF-8")), "{line}");
        }
    }
}

#[test]
fn a_key_that_is_left_out_is_told_once_and_not_at_each_fetch() {
    let issuer = Issuer::new();
    issuer.show(2);
    let enc = json!({"kty": "RSA", "use": "enc", "alg": "RSA-OAEP", "kid": "b2"});
    issuer.shown.lock().expect("not poisoned").as_mut().expect("shown").push(enc);
    let gateway = Gateway::start(&issuer.config().key("auth.jwks_refresh_s = 10"));
    assert!(signs_in(&gateway, &issuer.token(0)));
    eventually_within(2 * PATIENCE, "it is fetched again", || {
        (gateway.log().matches("jwks_fetched").count() == 2).then_some(())
    });
    let log = gateway.log();
    assert_eq!(log.matches("jwks_key_left_out").count(), 1, "{log}");
    assert!(log.contains("its use is") && log.contains("keys[2] (kid"), "{log}");
}
