//! Limits of users and addresses: messages over a limit are refused with a reason and the time to
//! come back, and no other client is affected (promise 6).

use std::net::Shutdown;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use serde_json::{Value, json};
use shardgate::auth::mint::{SigningKey, Wanted, mint};
use shardgate::config::settings::Algorithm;

use crate::support::{Client, Config, Gateway, Raw, eventually, frame};

const SECRET: &str = "01234567890123456789012345678901";
/// Refusals that a connection gets in a second before it is not read for the rest of it.
const REFUSALS_MAX: u64 = 100;

fn token(user: &str) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let wanted = Wanted {
        algorithm: Algorithm::Hs256,
        key_id: Some("k"),
        user,
        tenant: None,
        groups: &[],
        issuer: None,
        audience: None,
        now_unix_s: since.as_secs() as i64,
        lifetime_s: 600,
    };
    mint(&wanted, SigningKey::Secret(SECRET.as_bytes())).expect("a token")
}

/// A gateway of one shard where users sign in.
fn users() -> Config {
    let key = format!("{{ id = \"k\", algorithm = \"HS256\", secret = \"{SECRET}\" }}");
    Config::new().key("auth.mode = \"jwt\"").key(&format!("auth_key = [{key}]"))
}

fn auth(client: &mut Client, user: &str) -> Value {
    client.ask(json!({"type": "auth", "payload": {"token": token(user)}}))
}

fn signed_in(gateway: &Gateway, user: &str) -> Client {
    let mut client = Client::connect(gateway.ws);
    assert_eq!(auth(&mut client, user)["type"], "auth_ok");
    client
}

/// Sends an upgrade with one more header line; returns the head of the answer.
fn upgrade(gateway: &Gateway, line: &str) -> (Raw, String) {
    let mut raw = Raw::connect(gateway.ws);
    let request = Raw::request(gateway.ws).replace("\r\n\r\n", &format!("\r\n{line}\r\n\r\n"));
    raw.try_send(request.as_bytes());
    let head = raw.head();
    (raw, head)
}

fn gets_429(gateway: &Gateway) {
    let mut raw = Raw::connect(gateway.ws);
    let head = raw.head();
    assert!(head.starts_with("HTTP/1.1 429 Too Many Requests\r\n"), "{head}");
    assert!(head.contains("\r\nRetry-After: 1\r\n"), "{head}");
    assert!(String::from_utf8_lossy(&raw.rest()).contains("your address"));
}

#[test]
fn a_user_who_waits_as_told_gets_its_burst_and_exactly_its_rate() {
    const RATE: u64 = 40;
    let gateway = Gateway::start(&users().shard(&format!("limits.user_messages_per_s = {RATE}")));
    // Two connections of one user share the user's limit.
    let mut clients = [signed_in(&gateway, "alice"), signed_in(&gateway, "alice")];
    assert_eq!(clients[0].welcome["limits"]["messages_per_s_max"], RATE);
    let began = Instant::now();
    let (mut taken, mut refused, mut first) = (0, 0, None);
    // Ends with a refusal: then less than one token is left.
    let (least, most) = loop {
        let asked = Instant::now();
        let answer = clients[(taken % 2) as usize].call(9000, json!(1));
        let first = *first.get_or_insert_with(Instant::now);
        if answer["payload"] == 1 {
            taken += 1;
            continue;
        }
        assert_eq!((&answer["reason"], &answer["status"]), (&json!("RATE_LIMITED"), &json!(8)));
        refused += 1;
        if began.elapsed() > Duration::from_millis(1_500) {
            break (asked.saturating_duration_since(first), began.elapsed());
        }
        let wait = answer["retry_after_ms"].as_u64().expect("when to come back");
        assert!((1..=1000 / RATE).contains(&wait), "{wait} ms");
        std::thread::sleep(Duration::from_millis(wait));
    };
    let allowed = |time: Duration| RATE + (time.as_micros() as u64 * RATE) / 1_000_000;
    let (least, most) = (allowed(least), allowed(most));
    assert!((least..=most).contains(&taken), "{taken}, not {least} to {most}");
    assert_eq!(gateway.counter("user_messages_refused"), refused);
    let (_, metrics) = gateway.request("GET /metrics", "", "");
    let line = format!("shardgate_user_messages_refused_total{{shard=\"0\"}} {refused}\n");
    assert!(metrics.contains(&line) && metrics.contains("shardgate_limited_users"), "{metrics}");
}

#[test]
fn an_address_over_its_connections_gets_429_until_one_closes() {
    let gateway = Gateway::start(&Config::new().shard("limits.address_connections_max = 2"));
    let first = Client::connect(gateway.ws);
    let _second = Client::connect(gateway.ws);
    gets_429(&gateway);
    assert_eq!(gateway.counter("address_connections_refused"), 1);
    assert_eq!(gateway.counter("accept_refused"), 0);
    let is_told = |line: &str| {
        line.contains(" WARN ")
            && line.contains("client_refused")
            && line.contains("peer=127.0.0.1:")
            && line.contains("your address has too many connections")
    };
    eventually("it is logged", || gateway.log().lines().any(is_told).then_some(()));
    drop(first);
    eventually("a place is free", || (gateway.counter("closed") == 1).then_some(()));
    Client::connect(gateway.ws);
}

#[test]
fn an_address_that_connects_too_often_gets_429_and_a_second_later_it_may() {
    let gateway = Gateway::start(&Config::new().shard("limits.address_connects_per_s = 1"));
    let before = Instant::now();
    drop(Client::connect(gateway.ws));
    gets_429(&gateway);
    assert_eq!(gateway.counter("address_connects_refused"), 1);
    let again = eventually("one more", || {
        let (_, head) = upgrade(&gateway, "X: y");
        head.starts_with("HTTP/1.1 101 ").then(Instant::now)
    });
    assert!(again.duration_since(before) >= Duration::from_secs(1));
}

#[test]
fn those_about_to_sign_in_are_capped_and_the_others_are_not() {
    let config = users().key("auth.required = true").shard("limits.unauthenticated_max = 2");
    let gateway = Gateway::start(&config);
    let mut first = Client::connect(gateway.ws);
    // A connection that sends nothing at all counts as well.
    let silent = Raw::connect(gateway.ws);
    let refused = || Raw::connect(gateway.ws).head().starts_with("HTTP/1.1 503 ");
    let unknown = || gateway.admin_get("/stats")["unauthenticated"].clone();
    eventually("both are counted", || (unknown() == 2).then_some(()));
    assert!(refused());
    assert_eq!(gateway.counter("unauthenticated_refused"), 1);
    assert_eq!(auth(&mut first, "alice")["type"], "auth_ok");
    let (_known, head) = upgrade(&gateway, &format!("Authorization: Bearer {}", token("bob")));
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let _third = Client::connect(gateway.ws);
    assert!(refused());
    drop(silent);
    eventually("a place is free", || (unknown() == 1).then_some(()));
    Client::connect(gateway.ws);
}

#[test]
fn who_was_answered_408_takes_no_place_of_those_about_to_sign_in() {
    let config = Config::new()
        .shard("limits.unauthenticated_max = 1")
        .shard("conn.handshake_timeout_ms = 300")
        .shard("conn.close_timeout_ms = 60000");
    let gateway = Gateway::start(&config);
    // It sends nothing, and does not close when it is told to go.
    let mut silent = Raw::connect(gateway.ws);
    assert!(silent.head().starts_with("HTTP/1.1 408 "));
    Client::connect(gateway.ws);
    assert_eq!(gateway.counter("unauthenticated_refused"), 0);
    // Nor does one whose request was refused.
    let mut refused = Raw::connect(gateway.ws);
    refused.send(b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(refused.head().starts_with("HTTP/1.1 4"));
    Client::connect(gateway.ws);
    let stats = gateway.admin_get("/stats");
    assert_eq!((&stats["unauthenticated"], &stats["counters"]["closed"]), (&json!(0), &json!(2)));
    drop((silent, refused));
}

/// Answers every ping that comes until the connection ends; gives the code of its close frame.
fn stays(mut raw: Raw) -> std::thread::JoinHandle<Option<u16>> {
    std::thread::spawn(move || {
        loop {
            let next = raw.frame();
            match next.opcode {
                9 => raw.send(&frame(0x8a, &next.payload)),
                8 => return next.code(),
                _ => {}
            }
        }
    })
}

fn bearer(user: &str) -> String {
    format!("Authorization: Bearer {}", token(user))
}

#[test]
fn a_connection_that_hangs_does_not_lock_its_user_out() {
    let gateway = Gateway::start(&users().shard("session.per_user_max = 1"));
    // It completes the upgrade, and then neither reads nor writes.
    let (mut hangs, head) = upgrade(&gateway, &bearer("alice"));
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let asked = Instant::now();
    let (new, head) = upgrade(&gateway, &bearer("alice"));
    let waited = asked.elapsed();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!((Duration::from_secs(2)..Duration::from_secs(5)).contains(&waited), "{waited:?}");
    assert_eq!(hangs.closed(), Some(4002));
    // The new one answers, so a third is refused, by either way, and told when to come back.
    let new = stays(new);
    let (_, head) = upgrade(&gateway, &bearer("alice"));
    assert!(head.starts_with("HTTP/1.1 429 ") && head.contains("\r\nRetry-After: 2\r\n"), "{head}");
    let mut other = Client::connect(gateway.ws);
    let error = auth(&mut other, "alice");
    assert_eq!((&error["type"], &error["reason"]), (&json!("error"), &json!("RATE_LIMITED")));
    assert!((1..=2_000).contains(&error["retry_after_ms"].as_u64().expect("a time")), "{error}");
    assert_eq!(other.until_close(), (vec![], Some(1013)));
    assert_eq!(gateway.counter("user_connections_refused"), 2);
    assert_eq!(gateway.counter("closed_try_later"), 1);
    signed_in(&gateway, "bob");
    drop(gateway);
    drop(new);
}

#[test]
fn a_client_that_gives_up_while_it_waits_for_a_place_is_noticed_at_once() {
    let gateway = Gateway::start(&users().shard("session.per_user_max = 1"));
    let (mut hangs, head) = upgrade(&gateway, &bearer("alice"));
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let mut gone = Raw::connect(gateway.ws);
    let line = format!("\r\n{}\r\n\r\n", bearer("alice"));
    gone.send(Raw::request(gateway.ws).replace("\r\n\r\n", &line).as_bytes());
    let tested = || (gateway.counter("user_connections_tested") == 1).then_some(());
    eventually("it waits", tested);
    drop(gone);
    eventually("its end is noticed", || (gateway.counter("closed") == 1).then_some(()));
    // It comes back, waits in its own stead, and gets the place of the one that hangs.
    let (_new, head) = upgrade(&gateway, &bearer("alice"));
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(hangs.closed(), Some(4002));
    assert_eq!(gateway.counter("user_connections_refused"), 0);
    assert_eq!(gateway.counter("user_connections_tested"), 1);
}

#[test]
fn the_newest_connection_of_a_user_wins_if_it_is_so_configured() {
    let gateway = Gateway::start(&users().shard("session.per_user = \"newest\""));
    let (mut old, _) = upgrade(&gateway, &bearer("alice"));
    let mut new = signed_in(&gateway, "alice");
    assert_eq!(old.closed(), Some(4502));
    assert_eq!(new.call(9000, json!(1))["payload"], 1);
    assert_eq!(gateway.counter("closed_elsewhere"), 1);
    // A new token of the same connection is no new connection.
    (0..3).for_each(|_| assert_eq!(auth(&mut new, "alice")["type"], "auth_ok"));
}

#[test]
fn the_oldest_connection_of_a_user_stays_if_it_is_so_configured_and_answers() {
    let gateway = Gateway::start(&users().shard("session.per_user = \"oldest\""));
    let (old, _) = upgrade(&gateway, &bearer("alice"));
    let old = stays(old);
    let (_, head) = upgrade(&gateway, &bearer("alice"));
    assert!(head.starts_with("HTTP/1.1 403 ") && !head.contains("Retry-After"), "{head}");
    let mut other = Client::connect(gateway.ws);
    assert_eq!(auth(&mut other, "alice")["reason"], "FORBIDDEN");
    assert_eq!(other.until_close(), (vec![], Some(4502)));
    let (mut dead, _) = upgrade(&gateway, &bearer("bob"));
    let (_heir, head) = upgrade(&gateway, &bearer("bob"));
    assert!(head.starts_with("HTTP/1.1 101 "), "a dead one does not win: {head}");
    assert_eq!(dead.closed(), Some(4002));
    drop(gateway);
    drop(old);
}

#[test]
fn the_old_name_of_the_limit_of_a_users_connections_is_refused_with_the_new_one() {
    let config = users().shard("limits.user_connections_max = 1").write();
    let dir = config.path().to_str().expect("a path");
    let found = crate::support::run(&["check", "--config", dir], |_| ());
    let all = found.stdout + &found.stderr;
    assert_ne!(found.code, Some(0));
    assert!(
        all.contains("limits.user_connections_max = 1") && all.contains("session.per_user_max")
    );
}

#[test]
fn a_user_who_floods_is_pushed_back_and_another_one_feels_nothing() {
    let gateway = Gateway::start(&users().shard("limits.user_messages_per_s = 50"));
    let (mut flooder, head) =
        upgrade(&gateway, &format!("Authorization: Bearer {}", token("noisy")));
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let end = flooder.stream().try_clone().expect("a descriptor");
    let mut other = signed_in(&gateway, "quiet");
    let (mut worst, began) = (Duration::ZERO, Instant::now());
    std::thread::scope(|scope| {
        // 20 MB, unless it is stopped: more than the kernel holds for it.
        scope.spawn(move || {
            let text = format!(r#"{{"msg_id":9000,"payload":"{}"}}"#, "x".repeat(200));
            let many: Vec<u8> = frame(0x81, text.as_bytes()).repeat(1_000);
            (0..100).for_each(|_| flooder.try_send(&many));
        });
        eventually("it is not read", || (gateway.counter("read_held") > 0).then_some(()));
        for n in 0..40 {
            let asked = Instant::now();
            assert_eq!(other.call(9000, json!(n))["payload"], n);
            worst = worst.max(asked.elapsed());
        }
        let refused = gateway.counter("user_messages_refused");
        let most = REFUSALS_MAX * (began.elapsed().as_secs() + 1);
        assert!((REFUSALS_MAX..=most).contains(&refused), "{refused}, {most} at most");
        end.shutdown(Shutdown::Both).expect("it is connected");
    });
    assert!(worst < Duration::from_millis(500), "{worst:?}");
    eventually("it is gone", || (gateway.counter("closed") == 1).then_some(()));
}

#[test]
fn a_reload_changes_the_limits_of_those_who_are_connected() {
    let gateway = Gateway::start(&users());
    let mut client = signed_in(&gateway, "alice");
    let mut limited = |rate: u32| {
        gateway.rewrite(&users().shard(&format!("limits.user_messages_per_s = {rate}")));
        gateway.signal(Signal::HUP);
        eventually("it holds", || {
            let refused = client.call(9000, json!(1))["reason"] == "RATE_LIMITED";
            (refused == (rate > 0)).then_some(())
        });
    };
    limited(1);
    limited(0);
    (0..200).for_each(|_| assert_eq!(client.call(9000, json!(1))["payload"], 1));
    assert_eq!(gateway.counter("closed"), 0);
}

#[test]
fn a_limit_that_limits_nobody_is_warned_of() {
    let gateway = Gateway::start(&Config::new().shard("limits.user_connects_per_s = 1"));
    let line = |line: &str| line.contains("user_connects_per_s") && line.contains("limits nobody");
    eventually("it is logged", || gateway.log().lines().any(line).then_some(()));
}
