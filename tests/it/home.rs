//! A user's connections live on one shard: they move there while the client talks, without a trace
//! for the client. `SHARDGATE_MOVES=10000` moves that many instead of a few hundred.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use serde_json::{Value, json};
use shardgate::ids::{TenantId, home_shard};
use shardgate::routing::affinity_hash;

use crate::auth::{auth_of, token};
use crate::support::secure::{Chopped, Signer, VERSIONS};
use crate::support::{Client, Config, Gateway, Instance, Raw, frame};
use crate::tls::certificate;

/// Connections that move in a plain run.
const MOVES: usize = 400;
const SECRET: &str = "01234567890123456789012345678901";

fn home(user: &str) -> u64 {
    home_shard(affinity_hash(TenantId(0), user.as_bytes()), 2).0.into()
}

/// The first user from `n` on whose home is, or is not, `shard`.
fn user(n: usize, shard: u64, is_home: bool) -> String {
    let mut users = (0..).map(|step| format!("user-{n}-{step}"));
    users.find(|user| (home(user) == shard) == is_home).expect("endless")
}

fn gateway(instance: &Instance) -> Gateway {
    start(instance, auth_of(SECRET))
}

fn start(instance: &Instance, config: Config) -> Gateway {
    let config =
        config.shards(2).service("logic", &[("a", instance.address)]).route(1000, "logic", "");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    gateway
}

/// A client that signs in among its messages, sent in pieces of any length, one a millisecond;
/// every second one over TLS. Its session before the sign-in, and the one that begins with it.
fn talk_and_move(gateway: &Gateway, secure: &Arc<ClientConfig>, n: usize) -> [String; 2] {
    if !n.is_multiple_of(2) {
        return talk_over(Chopped::connect(gateway.ws, n as u64, 150), gateway, n);
    }
    let to = gateway.wss.expect("TLS is on");
    // A handshake has some 600 bytes: in few pieces.
    let chopped = Chopped::connect(to, n as u64, 400);
    talk_over(chopped.secured(secure, "a.test"), gateway, n)
}

fn talk_over<S: Read + Write>(stream: S, gateway: &Gateway, n: usize) -> [String; 2] {
    let mut raw = Raw::over(stream);
    raw.send(Raw::request(gateway.ws).as_bytes());
    assert!(raw.head().starts_with("HTTP/1.1 101 "));
    let welcome = raw.frame().json();
    let shard = welcome["payload"]["shard"].as_u64().expect("a shard");
    let user = user(n, shard, false);
    let auth_at = 1 + n as u64 % 6;
    let mut bytes = Vec::new();
    for seq in 1..=8 {
        let message = match seq == auth_at {
            true => json!({"type": "auth", "seq": seq, "payload": {"token": token(&user)}}),
            false => json!({"msg_id": 1001, "seq": seq, "payload": {"n": n, "seq": seq}}),
        };
        bytes.extend(frame(0x81, message.to_string().as_bytes()));
    }
    raw.send(&bytes);
    let mut signed_in = None;
    for seq in 1..=8 {
        let answer = raw.frame().json();
        assert_eq!(answer["seq"], seq, "in order, once: {answer}");
        assert_eq!(answer.get("status"), None, "{answer}");
        match seq == auth_at {
            true => {
                assert_eq!(answer["payload"]["user"], user);
                signed_in = Some(answer);
            }
            false => assert_eq!(answer["payload"], json!({"n": n, "seq": seq})),
        }
    }
    raw.text(&json!({"msg_id": 9002, "seq": 9}).to_string());
    let who = raw.frame().json();
    let who = (&who["seq"], &who["payload"]["user"], &who["payload"]["shard"]);
    assert_eq!(who, (&json!(9), &json!(user), &json!(1 - shard)));
    let of = |told: &Value| told["payload"]["session"].as_str().expect("a session").to_owned();
    [of(&welcome), of(&signed_in.expect("it signed in"))]
}

#[test]
fn clients_that_talk_while_they_move_lose_no_byte_and_no_order() {
    let moves = std::env::var("SHARDGATE_MOVES").map_or(MOVES, |n| n.parse().expect("a number"));
    let instance = Instance::echo();
    let (signer, certs) = (Signer::new(), tempfile::tempdir().expect("a directory"));
    signer.write(certs.path(), "a", &["a.test"]);
    let config = auth_of(SECRET).key("tls.listen = \"127.0.0.1:0\"");
    let gateway = start(&instance, config.key(&certificate(&certs, "a")));
    let clients = VERSIONS.map(|version| Arc::new(signer.client(version)));
    let threads = 20;
    std::thread::scope(|scope| {
        let work = |first: usize| {
            let numbers = (first..moves).step_by(threads);
            let client = &clients[first / 2 % 2];
            numbers.map(|n| (talk_and_move(&gateway, client, n), n)).collect::<Vec<_>>()
        };
        let running: Vec<_> = (0..threads).map(|t| scope.spawn(move || work(t))).collect();
        let sessions = running.into_iter().flat_map(|t| t.join().expect("it talks"));
        let sessions: BTreeMap<[String; 2], usize> = sessions.collect();
        assert_eq!(sessions.len(), moves);
        let mut heard: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for request in instance.requests() {
            heard.entry(request.session).or_default().push(request.seq);
        }
        for (session, n) in sessions {
            let auth_at = 1 + n as u64 % 6;
            let seqs: Vec<u64> = (1..=8).filter(|seq| *seq != auth_at).collect();
            let heard = session.iter().flat_map(|session| heard.get(session)).flatten();
            assert_eq!(heard.copied().collect::<Vec<_>>(), seqs, "in order, once");
        }
    });
    for (name, count) in [("moved_out", moves), ("moved_in", moves), ("move_lost", 0)] {
        assert_eq!(gateway.counter(name), count as u64, "{name}");
    }
}

#[test]
fn a_token_at_the_upgrade_lands_its_user_at_home_with_all_it_sent() {
    let instance = Instance::echo();
    let gateway = gateway(&instance);
    for n in 0..40 {
        let user = user(n, n as u64 % 2, true);
        let line = format!("\r\nAuthorization: Bearer {}\r\n\r\n", token(&user));
        let request = Raw::request(gateway.ws).replace("\r\n\r\n", &line);
        let message = json!({"msg_id": 1001, "seq": 1, "payload": n}).to_string();
        let mut raw = Raw::connect(gateway.ws);
        // The first message does not wait for the answer to the upgrade.
        raw.send(&[request.as_bytes(), &frame(0x81, message.as_bytes())].concat());
        assert!(raw.head().starts_with("HTTP/1.1 101 "));
        let told: Vec<Value> = (0..3).map(|_| raw.frame().json()).collect();
        assert_eq!(told[0]["payload"]["shard"], n % 2, "{told:?}");
        assert_eq!((&told[1]["type"], &told[2]["payload"]), (&json!("auth_ok"), &json!(n)));
    }
    // The kernel gave some of the connections to other shards than their users' homes.
    assert!(gateway.counter("moved_in") > 0);
}

#[test]
fn one_id_of_one_user_runs_once_whatever_the_connection() {
    let instance = Instance::echo();
    let gateway = gateway(&instance);
    let token = token("alice");
    for n in 0..12 {
        let mut client = Client::connect(gateway.ws);
        client.ask(json!({"type": "auth", "payload": {"token": token}}));
        let answer = client.ask(json!({"msg_id": 1001, "id": "once", "payload": "x"}));
        assert_eq!(answer["payload"], "x", "{n}: {answer}");
    }
    assert_eq!(instance.requests().len(), 1, "one execution");
    assert_eq!(gateway.counter("duplicates"), 11);
}

#[test]
fn a_client_that_leaves_while_it_moves_leaves_nothing_behind() {
    let instance = Instance::echo();
    let gateway = gateway(&instance);
    for n in 0..60 {
        let mut raw = Raw::upgraded(gateway.ws);
        let token = token(&format!("user-{n}"));
        raw.text(&json!({"msg_id": 1001, "seq": 1, "payload": n}).to_string());
        raw.text(&json!({"type": "auth", "seq": 2, "payload": {"token": token}}).to_string());
        match n % 3 {
            // A reset, an end of TCP, an end with a Close frame.
            0 => socket2::SockRef::from(raw.stream())
                .set_linger(Some(Duration::ZERO))
                .expect("an option"),
            1 => raw.stream().shutdown(std::net::Shutdown::Write).expect("connected"),
            _ => raw.send(&frame(0x88, &[3, 0xe8])),
        }
    }
    crate::support::eventually("all are gone", || {
        let stats = gateway.admin_get("/stats");
        let (came, left) = (gateway.counter("moved_in"), gateway.counter("moved_out"));
        // A connection in a lane is on neither shard.
        let arrived = came == left && left > 0;
        (stats["connections"] == 0 && stats["unanswered"] == 0 && arrived).then_some(())
    });
}
