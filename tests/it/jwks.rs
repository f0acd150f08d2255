//! Fetched keys: a user whose key is not known here is asked to come back, and let in soon, when
//! the gateway's keys are missing or old; a key that is in no set is a bad token.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PublicKeyData};
use serde_json::{Value, json};
use shardgate::auth::mint::{SigningKey, Wanted, mint};
use shardgate::config::settings::Algorithm;

use crate::auth::{auth_of, token};
use crate::support::{Client, Config, Gateway, PATIENCE, eventually, eventually_within};

const SECRET: &str = "01234567890123456789012345678901";

/// An issuer of tokens, and its server with the set of public keys.
struct Issuer {
    keys: Vec<(&'static str, KeyPair)>,
    url: String,
    /// Keys in the set; `None`: the server answers 500.
    shown: Arc<Mutex<Option<Vec<Value>>>>,
    asked: Arc<AtomicUsize>,
}

impl Issuer {
    /// An issuer whose server answers 500.
    fn new() -> Self {
        let pair = || KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("entropy");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/keys", listener.local_addr().expect("bound"));
        let shown: Arc<Mutex<Option<Vec<Value>>>> = Arc::default();
        let asked: Arc<AtomicUsize> = Arc::default();
        let (showing, asking) = (shown.clone(), asked.clone());
        // The thread ends with the tests.
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut request = [0; 4096];
                if stream.read(&mut request).unwrap_or(0) == 0 {
                    continue;
                }
                let shown = showing.lock().expect("not poisoned").clone();
                let (status, body) = match shown {
                    Some(keys) => ("200 OK", json!({ "keys": keys }).to_string()),
                    None => ("500 Oh", String::new()),
                };
                asking.fetch_add(1, Ordering::SeqCst);
                let length = body.len();
                // The gateway may be gone.
                let _ =
                    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
            }
        });
        Self { keys: vec![("old", pair()), ("new", pair())], url, shown, asked }
    }

    /// Puts so many of the keys into the set.
    fn show(&self, count: usize) {
        let jwk = |(id, pair): &(&str, KeyPair)| {
            let x = URL_SAFE_NO_PAD.encode(pair.der_bytes());
            json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": id})
        };
        let keys = self.keys[..count].iter().map(jwk).collect();
        *self.shown.lock().expect("not poisoned") = Some(keys);
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// A token signed with key number `n`.
    fn token(&self, n: usize) -> String {
        let (id, pair) = &self.keys[n];
        let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let wanted = Wanted {
            algorithm: Algorithm::EdDsa,
            key_id: Some(id),
            user: "alice",
            tenant: None,
            groups: &[],
            issuer: Some("us"),
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

fn auth(client: &mut Client, token: &str) -> Value {
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
