//! Tenants with keys and pages of their own: nobody signs for another's users, and what is wrong
//! with one's provider is wrong for nobody else.

use std::fs::File;
use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::auth::{SECRET, auth_of, claims, signed, upgrade};
use crate::jwks::{Issuer, auth, signs_in};
use crate::support::{Client, Config, Gateway, Raw, eventually, run};

const ACME: &str = "acmeacmeacmeacmeacmeacmeacmeacme";
const BETA: &str = "betabetabetabetabetabetabetabeta";
const GAMMA: &str = "gammagammagammagammagammagammaga";

/// A gateway with tenants, whose tables these are.
fn config(tables: &[&str]) -> Config {
    let tables = tables.join(", ");
    auth_of(SECRET).key("auth.tenants = \"many\"").key(&format!("tenant = [{tables}]"))
}

/// A tenant with a secret and further keys.
fn table(name: &str, secret: &str, more: &str) -> String {
    let key = format!("{{ id = \"{name}\", algorithm = \"HS256\", secret = \"{secret}\" }}");
    format!("{{ name = \"{name}\", auth_key = [{key}], {more} }}")
}

/// Two tenants with secrets, one whose tokens have its issuer and no claim `tenant`, and one with
/// nothing of its own.
fn tables() -> [String; 4] {
    [
        table("acme", ACME, "audience = \"game\""),
        table("beta", BETA, "audience = \"game\""),
        table("gamma", GAMMA, "issuer = \"gamma.example\""),
        "{ name = \"delta\" }".into(),
    ]
}

fn of_tables(tables: &[String]) -> Config {
    config(&tables.iter().map(String::as_str).collect::<Vec<_>>())
}

/// A token with these claims `tenant` and `iss`, signed with the secret named `kid`.
fn token(tenant: Option<&str>, issuer: &str, kid: &str, secret: &str) -> String {
    let mut claims = claims("alice", 600);
    claims["iss"] = issuer.into();
    if let Some(tenant) = tenant {
        claims["tenant"] = tenant.into();
    }
    let header = json!({"alg": "HS256", "typ": "JWT", "kid": kid});
    signed(&header, &claims, secret.as_bytes())
}

/// The tenant that a client is of after it has signed in.
fn tenant_of(gateway: &Gateway, token: &str) -> Value {
    let mut client = Client::connect(gateway.ws);
    assert_eq!(auth(&mut client, token)["type"], "auth_ok", "{token}");
    client.ask(json!({"msg_id": 9002}))["payload"]["tenant"].take()
}

/// Whether a token is refused: by a message, and at the upgrade. No other tenant is named.
fn is_refused(gateway: &Gateway, token: &str) -> bool {
    let mut client = Client::connect(gateway.ws);
    let answer = auth(&mut client, token);
    let closed = answer["reason"] == "UNAUTHENTICATED" && client.until_close().1 == Some(4500);
    let (_, head) = upgrade(gateway, &format!("Authorization: Bearer {token}"));
    for told in [answer.to_string(), head.clone()] {
        let names = ["acme", "beta", "gamma", "delta"];
        assert!(!names.iter().any(|name| told.contains(name)), "{told}");
    }
    closed && head.starts_with("HTTP/1.1 401 ")
}

#[test]
fn a_key_of_one_tenant_signs_for_no_other() {
    let gateway = Gateway::start(&of_tables(&tables()));
    for (token, tenant) in [
        (token(Some("acme"), "us", "acme", ACME), "acme"),
        (token(Some("beta"), "us", "beta", BETA), "beta"),
        (token(Some("gamma"), "gamma.example", "gamma", GAMMA), "gamma"),
        (token(None, "gamma.example", "gamma", GAMMA), "gamma"),
        (token(Some("delta"), "us", "k", SECRET), "delta"),
        (token(Some("other"), "us", "k", SECRET), "other"),
    ] {
        assert_eq!(tenant_of(&gateway, &token), tenant);
    }
    let bad = [
        token(Some("beta"), "us", "acme", ACME),
        token(Some("beta"), "us", "beta", ACME),
        token(None, "gamma.example", "acme", ACME),
        token(Some("delta"), "us", "acme", ACME),
        token(Some("acme"), "us", "k", SECRET),
        token(Some("acme"), "us", "acme", SECRET),
        token(Some("acme"), "gamma.example", "acme", ACME),
        token(Some("gamma"), "us", "gamma", GAMMA),
        token(None, "us", "acme", ACME),
    ];
    for token in &bad {
        assert!(is_refused(&gateway, token), "{token}");
    }
    // Other keys in the file are other tokens at once, and users of other tenants notice nothing.
    let mut tables = tables();
    tables[0] = table("acme", GAMMA, "audience = \"game\"");
    gateway.rewrite(&of_tables(&tables));
    assert_eq!(gateway.admin_post("/reload", "").0, 200);
    eventually("the new key", || {
        signs_in(&gateway, &token(Some("acme"), "us", "acme", GAMMA)).then_some(())
    });
    assert!(is_refused(&gateway, &token(Some("acme"), "us", "acme", ACME)));
    assert!(signs_in(&gateway, &token(Some("beta"), "us", "beta", BETA)));
}

#[test]
fn unknown_tenants_are_refused_where_the_configuration_says_so() {
    let gateway = Gateway::start(&of_tables(&tables()).key("auth.unknown_tenant = \"refuse\""));
    assert_eq!(tenant_of(&gateway, &token(Some("delta"), "us", "k", SECRET)), "delta");
    assert!(is_refused(&gateway, &token(Some("other"), "us", "k", SECRET)));
    assert_eq!(gateway.counter("auth_refused_party"), 2);
    assert!(gateway.log().contains("unknown_tenant"), "{}", gateway.log());
}

/// The answer to an upgrade from a page of this origin, and to a token shown after it.
fn from_page(gateway: &Gateway, origin: &str, token: &str) -> (String, Option<Value>) {
    let line = if origin.is_empty() { "X-None: 1".into() } else { format!("Origin: {origin}") };
    let (_, head) = upgrade(gateway, &format!("{line}\r\nAuthorization: Bearer {token}"));
    let (mut raw, opened): (Raw, _) = upgrade(gateway, &line);
    if !opened.starts_with("HTTP/1.1 101 ") {
        return (head, None);
    }
    assert_eq!(raw.frame().json()["type"], "welcome");
    raw.text(&json!({"type": "auth", "seq": 1, "payload": {"token": token}}).to_string());
    (head, Some(raw.frame().json()))
}

#[test]
fn users_of_a_tenant_sign_in_from_its_pages_and_from_no_other() {
    let mut tables = tables();
    tables[0] = table("acme", ACME, "origins = [\"https://acme.example\"]");
    let config = of_tables(&tables).key("origins = [\"https://common.example\"]");
    let nowhere = ([127, 0, 0, 1], 1).into();
    let config = config.service("logic", &[("a", nowhere)]).route(1000, "logic", "");
    let gateway = Gateway::start(&config);
    let acme = token(Some("acme"), "us", "acme", ACME);
    let beta = token(Some("beta"), "us", "beta", BETA);
    let (of_acme, common) = ("https://acme.example", "https://common.example");
    for (origin, token) in [(of_acme, &acme), (common, &beta), ("", &acme), ("", &beta)] {
        let (head, answer) = from_page(&gateway, origin, token);
        assert!(head.starts_with("HTTP/1.1 101 "), "{origin}: {head}");
        assert_eq!(answer.expect("it may connect")["type"], "auth_ok", "{origin}");
    }
    for (origin, token) in [(of_acme, &beta), (common, &acme)] {
        let (head, answer) = from_page(&gateway, origin, token);
        assert!(head.starts_with("HTTP/1.1 403 "), "{origin}: {head}");
        let answer = answer.expect("it may connect");
        assert_eq!(answer["reason"], "FORBIDDEN", "{origin}: {answer}");
        assert!(!format!("{head}{answer}").contains(".example"), "{head} {answer}");
    }
    assert_eq!(from_page(&gateway, "https://evil.example", &acme).1, None);
    assert_eq!(gateway.counter("auth_refused_origin"), 4);
    // Without a token a page that only a tenant lists sends nothing to services.
    let says = |origin: &str| {
        let (mut raw, _): (Raw, _) = upgrade(&gateway, &format!("Origin: {origin}"));
        assert_eq!(raw.frame().json()["type"], "welcome");
        raw.text(&json!({"msg_id": 1000, "seq": 1, "payload": 1}).to_string());
        raw.frame().json()
    };
    assert_eq!(says(of_acme)["reason"], "UNAUTHENTICATED");
    assert_ne!(says(common)["reason"], "UNAUTHENTICATED");
}

#[test]
fn until_etcd_has_answered_tenants_that_are_not_in_the_files_are_asked_to_come_back() {
    let tables = [table("acme", ACME, "audience = \"game\"")];
    let etcd = "etcd.endpoints = [\"http://127.0.0.1:1\"]";
    let gateway = Gateway::start(&of_tables(&tables).key(etcd));
    assert_eq!(tenant_of(&gateway, &token(Some("acme"), "us", "acme", ACME)), "acme");
    // One that etcd may have, and what has no key of one that is known: nobody is told which.
    let tokens = [
        token(Some("other"), "us", "k", SECRET),
        token(Some("acme"), "us", "k", SECRET),
        token(None, "other.example", "x", BETA),
    ];
    for token in &tokens {
        let mut client = Client::connect(gateway.ws);
        let mut answer = auth(&mut client, token);
        assert_eq!(answer["reason"], "UNAVAILABLE", "{answer}");
        assert_eq!(answer["retry_after_ms"].take(), 1_000, "{answer}");
        assert_eq!(client.call(9001, json!(null))["reason"], Value::Null, "it stays");
        let (_, head) = upgrade(&gateway, &format!("Authorization: Bearer {token}"));
        assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("\r\nRetry-After: 1\r\n"));
    }
    let why = gateway.admin_get("/health")["degraded_by"].to_string();
    assert!(why.contains("tenants of a source are not known yet"), "{why}");
}

/// A provider that takes requests and answers none.
fn silent() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/keys", listener.local_addr().expect("bound"));
    let asked: Arc<AtomicUsize> = Arc::default();
    let asking = asked.clone();
    // The thread ends with the tests.
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming().map_while(Result::ok) {
            asking.fetch_add(1, Ordering::SeqCst);
            held.push(stream);
        }
    });
    (url, asked)
}

/// A tenant whose keys are fetched.
fn fetched(name: &str, url: &str) -> String {
    let issuer = format!("issuer = \"{name}.example\", audience = \"game\"");
    format!("{{ name = \"{name}\", jwks_url = \"{url}\", {issuer} }}")
}

#[test]
fn each_tenant_has_the_keys_of_its_provider_and_one_that_hangs_holds_up_nobody_else() {
    let [acme, beta] = [(); 2].map(|()| Issuer::new());
    acme.show(1);
    beta.show(1);
    let (hangs, asked) = silent();
    let tables = [fetched("acme", &acme.url), fetched("beta", &beta.url), fetched("slow", &hangs)];
    let gateway = Gateway::start(&of_tables(&tables));
    let of_acme = acme.token_of(0, Some("acme"), "acme.example");
    let of_beta = beta.token_of(0, None, "beta.example");
    for (token, tenant) in [(&of_acme, "acme"), (&of_beta, "beta")] {
        eventually("its keys are there", || signs_in(&gateway, token).then_some(()));
        assert_eq!(tenant_of(&gateway, token), tenant);
    }
    eventually("the third is asked", || (asked.load(Ordering::SeqCst) > 0).then_some(()));
    // Both have a key of the same name. Once a set is 10 s old, there may be newer keys.
    let of_other = acme.token_of(0, Some("beta"), "beta.example");
    eventually("it is not of beta", || is_refused(&gateway, &of_other).then_some(()));
    assert!(!signs_in(&gateway, &acme.token_of(0, Some("delta"), "us")));
    let slow = acme.token_of(0, Some("slow"), "slow.example");
    let answer = auth(&mut Client::connect(gateway.ws), &slow);
    assert_eq!(answer["reason"], "UNAVAILABLE", "its keys may come: {answer}");
    let sources = eventually("the third is told of", || {
        let sources = gateway.admin("/health").1["sources"].take();
        sources["jwks:slow"]["stale_s"].is_number().then_some(sources)
    });
    assert_eq!([&sources["jwks:acme"]["state"], &sources["jwks:beta"]["state"]], ["fresh"; 2]);
    // Another place of the keys: what came from the old one is trusted no more.
    let moved = Issuer::new();
    moved.show(1);
    let asked_beta = beta.asked();
    gateway.rewrite(&of_tables(&[fetched("acme", &moved.url), fetched("beta", &beta.url)]));
    assert_eq!(gateway.admin_post("/reload", "").0, 200);
    let new = moved.token_of(0, Some("acme"), "acme.example");
    eventually("the new keys are there", || signs_in(&gateway, &new).then_some(()));
    eventually("the old ones are not", || is_refused(&gateway, &of_acme).then_some(()));
    assert!(signs_in(&gateway, &of_beta), "of the other nothing changed");
    assert_eq!(beta.asked(), asked_beta);
    assert!(gateway.admin("/health").1["sources"]["jwks:slow"].is_null());
}

#[test]
fn what_is_made_and_explained_at_the_terminal_is_by_the_keys_of_the_tenant() {
    let dir = of_tables(&tables()).write();
    let config = dir.path().to_str().expect("UTF-8");
    // [auth] has two keys, the tenants one each.
    let made = |tenant: &str| {
        let mut args = vec!["gen", "token", "--config", config, "--user", "alice"];
        args.extend(["--tenant", tenant]);
        if let "delta" | "other" = tenant {
            args.extend(["--key", "k"]);
        }
        run(&args, |_| ()).stdout.trim().to_owned()
    };
    let explained = |token: &str| {
        let path = dir.path().join("token");
        std::fs::write(&path, token).expect("written");
        let shown = File::open(&path).expect("there");
        let with_token = |command: &mut Command| {
            command.stdin(shown);
        };
        run(&["check", "token", "--config", config], with_token).stdout
    };
    let gateway = Gateway::start(&of_tables(&tables()));
    for tenant in ["acme", "gamma", "delta", "other"] {
        let token = made(tenant);
        assert_eq!(tenant_of(&gateway, &token), tenant);
        let told = explained(&token);
        assert!(told.contains(&format!("accepted: user \"alice\" of tenant {tenant}")), "{told}");
    }
    let told = explained(&token(Some("beta"), "us", "acme", ACME));
    assert!(told.contains("beta, by the issuer and the keys of its own"), "{told}");
    assert!(told.contains("a key of tenant acme signed it"), "{told}");
}

#[test]
fn a_key_file_of_a_tenant_that_is_none_is_told_by_its_place() {
    let key = "{ id = \"a\", algorithm = \"HS256\", secret_file = \"/none\" }";
    let tables = [
        "{ name = \"delta\" }".to_owned(),
        format!("{{ name = \"acme\", jwks_file = \"/nowhere\", auth_key = [{key}] }}"),
        "{ name = \"beta\", jwks_url = \"https://127.0.0.1:1/\", jwks_ca_file = \"/no\" }".into(),
    ];
    let dir = of_tables(&tables).write();
    let at = dir.path().to_str().expect("UTF-8");
    for args in [vec!["--config", at], vec!["check", "--config", at]] {
        let finished = run(&args, |_| ());
        let said = finished.stdout + &finished.stderr;
        assert_eq!(finished.code, Some(64), "{said}");
        let places =
            ["tenant[1].auth_key[0].secret_file", "tenant[1].jwks_file", "tenant[2].jwks_ca_file"];
        for place in places {
            let line = said.lines().find(|line| line.contains(place)).expect(&said);
            assert!(line.contains("gateway.toml:") && line.contains("cannot be opened"), "{line}");
        }
    }
}
