//! Sign-in: three ways to show a token, every kind of bad one, expiry, refresh, new keys.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Client, Config, Gateway, Instance, Raw, eventually, run, several};

pub const SECRET: &str = "01234567890123456789012345678901";
const OTHER: &str = "abcdefghijklmnopqrstuvwxyzabcdef";
const RSA_PUBLIC: &str = include_str!("../../src/auth/tests/rsa_public.pem");

fn now_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_secs()).expect("before the end of time")
}

/// A token of these parts, signed with `secret` by HS256 whatever its header says.
pub fn signed(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", part(header), part(claims));
    let key = EncodingKey::from_secret(secret).expect("not empty");
    let signature = jsonwebtoken::crypto::sign(text.as_bytes(), &key, Algorithm::HS256);
    format!("{text}.{}", signature.expect("it signs"))
}

fn header() -> Value {
    json!({"alg": "HS256", "typ": "JWT", "kid": "k"})
}

pub fn claims(user: &str, lifetime_s: i64) -> Value {
    json!({"sub": user, "iss": "us", "aud": "game", "exp": now_s() + lifetime_s})
}

pub fn token(user: &str) -> String {
    signed(&header(), &claims(user, 600), SECRET.as_bytes())
}

pub fn token_of_tenant(user: &str, tenant: &str) -> String {
    let mut claims = claims(user, 600);
    claims["tenant"] = tenant.into();
    signed(&header(), &claims, SECRET.as_bytes())
}

/// A token that is good but for the changes that `change` makes to header and claims.
fn changed(change: impl FnOnce(&mut Value, &mut Value)) -> String {
    let (mut header, mut claims) = (header(), claims("alice", 600));
    change(&mut header, &mut claims);
    signed(&header, &claims, SECRET.as_bytes())
}

pub fn auth_of(secret: &str) -> Config {
    let key = format!("{{ id = \"k\", algorithm = \"HS256\", secret = \"{secret}\" }}");
    let rsa = "{ id = \"r\", algorithm = \"RS256\", public_key_file = \"RSA\" }";
    let dir = env!("CARGO_MANIFEST_DIR");
    let rsa = rsa.replace("RSA\" }", &format!("{dir}/src/auth/tests/rsa_public.pem\" }}"));
    Config::new()
        .shards(several())
        .key("auth.mode = \"jwt\"")
        .key("auth.issuer = \"us\"")
        .key("auth.audience = \"game\"")
        .key("auth.leeway_s = 0")
        .key(&format!("auth_key = [{key}, {rsa}]"))
}

fn auth(client: &mut Client, token: &str) -> Value {
    client.ask(json!({"type": "auth", "payload": {"token": token}}))
}

/// Sends an upgrade with one more header line.
pub fn upgrade(gateway: &Gateway, line: &str) -> (Raw, String) {
    let mut raw = Raw::connect(gateway.ws);
    let request = Raw::request(gateway.ws);
    let request = request.replace("\r\n\r\n", &format!("\r\n{line}\r\n\r\n"));
    raw.send(request.as_bytes());
    let head = raw.head();
    (raw, head)
}

#[test]
fn a_token_signs_in_by_header_subprotocol_and_message_and_is_nowhere_else() {
    let instance = Instance::echo();
    let config = auth_of(SECRET).service("logic", &[("a", instance.address)]).route(
        1000,
        "logic",
        "auth = \"user\"",
    );
    let gateway = Gateway::start_with(&config, |command| {
        command.args(["--log", "debug"]);
    });
    gateway.wait_connected("logic", &["a"]);
    let token = token("alice");
    for line in [
        format!("Authorization: Bearer {token}"),
        format!("Sec-WebSocket-Protocol: shardgate.v1.json, shardgate.token.{token}"),
    ] {
        let (mut raw, head) = upgrade(&gateway, &line);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(!head.contains("shardgate.token"), "{head}");
        assert_eq!(raw.frame().json()["type"], "welcome");
        let ok = raw.frame().json();
        assert_eq!((&ok["type"], &ok["payload"]["user"]), (&json!("auth_ok"), &json!("alice")));
        assert_eq!(ok.get("seq"), None);
        raw.text(r#"{"msg_id":1001,"seq":1,"payload":1}"#);
        assert_eq!(raw.frame().json().get("status"), None);
    }
    let mut client = Client::connect(gateway.ws);
    assert_eq!(client.call(1001, json!(1))["reason"], "UNAUTHENTICATED");
    let ok = auth(&mut client, &token);
    assert_eq!((&ok["type"], &ok["payload"]["user"]), (&json!("auth_ok"), &json!("alice")));
    assert_eq!(client.call(1001, json!(1))["payload"], 1);
    assert!(instance.requests().iter().all(|r| r.user == "alice"), "the service is told");
    auth(&mut Client::connect(gateway.ws), &format!("{token}x"));
    eventually("it is logged", || gateway.log().contains("token_refused").then_some(()));
    let parts: Vec<&str> = token.split('.').collect();
    assert!(parts[1..].iter().all(|part| !gateway.log().contains(part)), "tokens are not logged");
    assert_eq!(gateway.counter("auth_ok"), 3);
}

#[test]
fn every_kind_of_bad_token_is_refused_at_the_upgrade_and_in_a_message() {
    let gateway = Gateway::start(&auth_of(SECRET));
    let now = now_s();
    let set = |name: &'static str, value: Value| changed(|_, claims| claims[name] = value);
    let head = |name: &'static str, value: Value| changed(|header, _| header[name] = value);
    let without = |name: &'static str| {
        changed(|_, claims| drop(claims.as_object_mut().expect("one").remove(name)))
    };
    let unsigned = {
        let whole = head("alg", json!("none"));
        format!("{}.", whole.rsplit_once('.').expect("three parts").0)
    };
    let confused =
        signed(&json!({"alg": "HS256", "kid": "r"}), &claims("alice", 600), RSA_PUBLIC.as_bytes());
    let deep = format!("{}1{}", "[".repeat(2_000), "]".repeat(2_000));
    let deep = [r#"{"alg":"HS256","kid":"k"}"#, &deep].map(|part| URL_SAFE_NO_PAD.encode(part));
    let rows = [
        ("none", unsigned),
        ("confusion", confused),
        ("unknown kid", head("kid", json!("x"))),
        ("a path as kid", head("kid", json!("../../dev/null"))),
        ("SQL as kid", head("kid", json!("' or 1=1 --"))),
        ("jwk", head("jwk", json!({"kty": "oct", "k": "AA"}))),
        ("jku", head("jku", json!("http://127.0.0.1:1/"))),
        ("x5u", head("x5u", json!("http://127.0.0.1:1/"))),
        ("crit", head("crit", json!(["exp"]))),
        ("expired", set("exp", json!(now - 1))),
        ("exp as text", set("exp", json!((now + 600).to_string()))),
        ("nbf as text", set("nbf", json!("1"))),
        ("no exp", without("exp")),
        ("no sub", without("sub")),
        ("no iss", without("iss")),
        ("no aud", without("aud")),
        ("nbf to come", set("nbf", json!(now + 600))),
        ("iat to come", set("iat", json!(now + 600))),
        ("another issuer", set("iss", json!("them"))),
        ("another audience", set("aud", json!(["chat"]))),
        ("another key", signed(&header(), &claims("alice", 600), OTHER.as_bytes())),
        ("padding", format!("{}=", token("alice"))),
        ("deep JSON", format!("{}.{}.AA", deep[0], deep[1])),
        ("nothing", "..".into()),
        ("words", "swordfish".into()),
    ];
    for (what, token) in &rows {
        let (_, head) = upgrade(&gateway, &format!("Authorization: Bearer {token}"));
        assert!(head.starts_with("HTTP/1.1 401 "), "{what}: {head}");
        assert!(head.contains("\r\nWWW-Authenticate: Bearer "), "{what}: {head}");
        let mut client = Client::connect(gateway.ws);
        let error = auth(&mut client, token);
        assert_eq!((&error["type"], &error["status"]), (&json!("error"), &json!(16)), "{what}");
        assert_eq!(error["reason"], "UNAUTHENTICATED", "{what}");
        assert_eq!(client.until_close(), (vec![], Some(4500)), "{what}");
    }
    // More than a token may have, and more than a message may.
    let mut client = Client::connect(gateway.ws);
    client.send(json!({"type": "auth", "payload": {"token": "a".repeat(64 << 10)}}));
    assert_eq!(client.until_close().1, Some(1009));
    let long = "a".repeat(17 << 10);
    let (_, head) = upgrade(&gateway, &format!("Authorization: Bearer {long}"));
    assert!(head.starts_with("HTTP/1.1 431 "), "{head}");
    let mut client = Client::connect(gateway.ws);
    assert_eq!(auth(&mut client, &long)["reason"], "UNAUTHENTICATED");
    let refused = ["form", "key", "signature", "claim", "time", "party"];
    let refused = refused.map(|class| gateway.counter(&format!("auth_refused_{class}")));
    assert!(refused.iter().all(|n| *n > 0), "{refused:?}");
    assert_eq!(refused.iter().sum::<u64>(), 2 * rows.len() as u64 + 1);
    assert_eq!(gateway.counter("closed_bad_token"), rows.len() as u64 + 1);
    // The gateway still accepts a good one.
    assert_eq!(auth(&mut Client::connect(gateway.ws), &token("alice"))["type"], "auth_ok");
}

#[test]
fn a_token_that_expires_closes_with_4004_unless_another_came_before() {
    let gateway = Gateway::start(&auth_of(SECRET));
    let short = signed(&header(), &claims("alice", 2), SECRET.as_bytes());
    let (mut expires, mut extended) = (Client::connect(gateway.ws), Client::connect(gateway.ws));
    assert_eq!(auth(&mut expires, &short)["type"], "auth_ok");
    assert_eq!(auth(&mut extended, &short)["type"], "auth_ok");
    assert_eq!(auth(&mut extended, &token("bob"))["reason"], "FORBIDDEN");
    assert_eq!(auth(&mut extended, &token("alice"))["type"], "auth_ok");
    assert_eq!(expires.until_close().1, Some(4004));
    assert_eq!(extended.call(9002, Value::Null)["payload"]["user"], "alice");
    assert_eq!(gateway.counter("closed_token_expired"), 1);
}

#[test]
fn where_a_token_is_required_who_shows_none_in_time_is_closed_with_4005() {
    let config = auth_of(SECRET).key("auth.required = true").key("auth.timeout_ms = 100");
    let gateway = Gateway::start(&config);
    let mut late = Client::connect(gateway.ws);
    let (mut known, _) = upgrade(&gateway, &format!("Authorization: Bearer {}", token("alice")));
    assert_eq!(late.until_close().1, Some(4005));
    assert_eq!(known.frame().json()["type"], "welcome");
    assert_eq!(known.frame().json()["type"], "auth_ok");
    known.text(r#"{"msg_id":9000,"seq":1,"payload":1}"#);
    assert_eq!(known.frame().json()["payload"], 1);
    assert_eq!(gateway.counter("closed_no_auth"), 1);
}

#[test]
fn a_reload_changes_keys_and_touches_nobody_and_a_bad_key_is_refused_whole() {
    let gateway = Gateway::start(&auth_of(SECRET));
    let mut old = Client::connect(gateway.ws);
    assert_eq!(auth(&mut old, &token("alice"))["type"], "auth_ok");
    let missing = gateway.dir().join("no-such.pem");
    let bad = auth_of(OTHER).key(&format!("auth.jwks_file = {missing:?}"));
    gateway.rewrite(&bad);
    gateway.signal(Signal::HUP);
    let refused = || gateway.log().contains("reload_refused").then_some(());
    eventually("the file that is not there is told", refused);
    assert!(gateway.log().contains("auth.jwks_file"), "{}", gateway.log());
    assert_eq!(auth(&mut Client::connect(gateway.ws), &token("alice"))["type"], "auth_ok");
    gateway.rewrite(&auth_of(OTHER));
    gateway.signal(Signal::HUP);
    eventually("the old key is refused", || {
        let answer = auth(&mut Client::connect(gateway.ws), &token("alice"));
        (answer["reason"] == "UNAUTHENTICATED").then_some(())
    });
    let new = signed(&header(), &claims("alice", 600), OTHER.as_bytes());
    eventually("the new key is known everywhere", || {
        let answer = auth(&mut Client::connect(gateway.ws), &new);
        (answer["type"] == "auth_ok").then_some(())
    });
    assert_eq!(old.call(9002, Value::Null)["payload"]["user"], "alice");
    assert!(!gateway.log().contains(SECRET) && !gateway.log().contains(OTHER));
}

#[test]
fn a_bad_key_at_the_start_is_told_and_exits_with_64() {
    let config = auth_of(SECRET).key("auth.jwks_file = \"/dev/null\"");
    let dir = config.write();
    let path = dir.path().to_str().expect("UTF-8");
    for args in [vec!["--config", path], vec!["check", "--config", path]] {
        let finished = run(&args, |_| ());
        let said = finished.stdout + &finished.stderr;
        assert_eq!(finished.code, Some(64), "{said}");
        assert!(said.contains("auth.jwks_file") && !said.contains(SECRET), "{said}");
    }
}

#[test]
fn a_set_that_cannot_be_fetched_at_the_start_is_fetched_later() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/keys", listener.local_addr().expect("bound"));
    let serve = move |answer: String| {
        let (mut stream, _) = listener.accept().expect("the gateway asks");
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).expect("a request") > 0);
        stream.write_all(answer.as_bytes()).expect("it reads");
    };
    let server = std::thread::spawn(move || {
        serve("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n".into());
        let set = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "e",
            "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]});
        let (set, line) = (set.to_string(), "HTTP/1.1 200 OK\r\nContent-Length");
        serve(format!("{line}: {}\r\n\r\n{set}", set.len()));
    });
    let config = Config::new().key("auth.mode = \"jwt\"").key("auth.jwks_refresh_s = 10");
    let gateway = Gateway::start(&config.key(&format!("auth.jwks_url = {url:?}")));
    assert_eq!(gateway.admin_get("/health")["sources"]["jwks"]["state"], "silent");
    assert!(gateway.log().contains("jwks_stale"));
    let (_, head) = upgrade(&gateway, &format!("Authorization: Bearer {}", token("alice")));
    assert!(head.starts_with("HTTP/1.1 503 "), "no key yet: {head}");
    server.join().expect("asked twice");
    eventually("the keys are there", || {
        let (_, head) = upgrade(&gateway, &format!("Authorization: Bearer {}", token("alice")));
        head.starts_with("HTTP/1.1 401 ").then_some(())
    });
    let state = gateway.admin_get("/health")["sources"]["jwks"]["state"].clone();
    assert_eq!(state, "fresh");
}

#[test]
fn two_hundred_who_sign_in_at_once_do_not_hold_up_one_who_talks() {
    let gateway = Gateway::start(&auth_of(SECRET));
    let mut talker = Client::connect(gateway.ws);
    let token = token("alice");
    let done = AtomicBool::new(false);
    let worst = std::thread::scope(|scope| {
        let storm = scope.spawn(|| {
            let mut all: Vec<Client> = (0..200).map(|_| Client::connect(gateway.ws)).collect();
            let message = json!({"type": "auth", "payload": {"token": token}});
            let seqs: Vec<u64> = all.iter_mut().map(|c| c.send(message.clone())).collect();
            for (client, seq) in all.iter_mut().zip(seqs) {
                assert_eq!(client.answer(seq)["type"], "auth_ok");
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut worst = Duration::ZERO;
        while !done.load(Ordering::Relaxed) && !storm.is_finished() {
            let asked = Instant::now();
            assert_eq!(talker.call(9000, json!(1))["payload"], 1);
            worst = worst.max(asked.elapsed());
        }
        worst
    });
    // Milliseconds on a free machine; the bound leaves room for one that has much else to do.
    assert!(worst < Duration::from_secs(2), "{worst:?}");
    assert_eq!(gateway.counter("auth_ok"), 200);
}

#[test]
fn groups_of_any_form_sign_in_and_what_is_not_kept_is_told_once() {
    let gateway = Gateway::start(&auth_of(SECRET));
    let many: Vec<String> = (0..65).map(|n| n.to_string()).collect();
    let rows = [
        (json!("staff"), 0),
        (json!(null), 0),
        (json!(many), 1),
        (json!(["a".repeat(65)]), 1),
        (json!([{"name": "staff"}, "x"]), 1),
        (json!({"staff": true}), 1),
        (json!(7), 1),
    ];
    let mut left_out = 0;
    for (groups, more) in rows {
        let token = changed(|_, claims| claims["groups"] = groups.clone());
        let (_, head) = upgrade(&gateway, &format!("Authorization: Bearer {token}"));
        assert!(head.starts_with("HTTP/1.1 101 "), "{groups} {head}");
        left_out += more;
    }
    eventually("each is counted", || {
        (gateway.counter("auth_groups_left_out") == left_out).then_some(())
    });
    let log = gateway.log();
    assert_eq!(log.matches("groups_left_out:").count(), 1, "{log}");
    assert!(log.contains("kept are 64 strings of 1 to 64 bytes"), "{log}");
    // What decides is strict all the same.
    let token = changed(|_, claims| claims["exp"] = "soon".into());
    let (_, head) = upgrade(&gateway, &format!("Authorization: Bearer {token}"));
    assert!(head.starts_with("HTTP/1.1 401 "), "{head}");
}

#[test]
fn both_names_of_ed25519_are_one_algorithm_in_tokens_and_files() {
    let dir = env!("CARGO_MANIFEST_DIR");
    let private = include_str!("../../src/auth/tests/ed_private.pem");
    let private = EncodingKey::from_ed_pem(private.as_bytes()).expect("a key");
    for of_file in ["Ed25519", "EdDSA"] {
        let key = format!(
            "{{ id = \"e\", algorithm = \"{of_file}\", public_key_file = \
             \"{dir}/src/auth/tests/ed_public.pem\" }}"
        );
        let config = Config::new().key("auth.mode = \"jwt\"").key(&format!("auth_key = [{key}]"));
        let gateway = Gateway::start(&config);
        for of_token in ["Ed25519", "EdDSA"] {
            let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
            let text = format!(
                "{}.{}",
                part(json!({"alg": of_token, "kid": "e"})),
                part(claims("ann", 60))
            );
            let signature = jsonwebtoken::crypto::sign(text.as_bytes(), &private, Algorithm::EdDSA);
            let token = format!("{text}.{}", signature.expect("it signs"));
            let (_, head) = upgrade(&gateway, &format!("Authorization: Bearer {token}"));
            assert!(head.starts_with("HTTP/1.1 101 "), "{of_file} {of_token} {head}");
        }
        let strange = changed(|header, _| header["alg"] = "ES512".into());
        let (mut raw, head) = upgrade(&gateway, &format!("Authorization: Bearer {strange}"));
        assert!(head.starts_with("HTTP/1.1 401 "), "{head}");
        let body = String::from_utf8(raw.rest()).expect("UTF-8");
        assert!(body.contains("EdDSA, Ed25519"), "{body}");
    }
}

#[test]
fn where_a_message_goes_is_told_to_who_may_send_it() {
    let instance = Instance::echo();
    let config = auth_of(SECRET)
        .key("auth.required = true")
        .key("gateway.explain_to_clients = true")
        .service("logic", &[("a", instance.address)])
        .route(1000, "logic", "");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let mut client = Client::connect(gateway.ws);
    let question = json!({"msg_id": 1500});
    assert_eq!(client.call(9003, question.clone())["reason"], "UNAUTHENTICATED");
    assert_eq!(client.call(1500, json!(1))["reason"], "UNAUTHENTICATED");
    // What tells of no service is told to everybody.
    assert_eq!(client.call(9000, json!(1))["payload"], 1);
    let token = token("alice");
    client.ask(json!({"type": "auth", "payload": {"token": token}}));
    assert_eq!(client.call(9003, question)["payload"]["service"], "logic");
}
