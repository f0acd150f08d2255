//! Promise 10: a reload touches no connection; all problems are reported, nothing is half applied.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use serde_json::json;

use crate::support::{Client, Config, Gateway, Instance, Raw, eventually, several, under};

/// Connections in the test with many connections.
const CONNECTIONS: usize = 2_000;
/// Reloads in that test; every other one is refused.
const RELOADS: usize = 200;

fn config(instance: &Instance, timeout_ms: usize) -> Config {
    Config::new().shards(several()).service("logic", &[("a", instance.address)]).route(
        1000,
        "logic",
        &format!("timeout_ms = {timeout_ms}"),
    )
}

/// Reloads that were refused so far.
fn refused(gateway: &Gateway) -> usize {
    gateway.log().matches("reload_refused").count()
}

#[test]
fn two_hundred_reloads_under_load_close_no_connection_and_lose_no_message() {
    let instance = Instance::echo();
    let gateway = Gateway::start(&config(&instance, 5_000));
    gateway.wait_connected("logic", &["a"]);
    let stop = AtomicBool::new(false);
    // Each thread asks on one of its connections after the other.
    let talk = || {
        let mut clients: Vec<Client> =
            (0..CONNECTIONS / 4).map(|_| Client::connect(gateway.ws)).collect();
        let mut answered = 0;
        while !stop.load(Ordering::Relaxed) {
            for batch in clients.chunks_mut(50) {
                let asked: Vec<u64> = batch
                    .iter_mut()
                    .map(|c| c.send(json!({"msg_id": 1001, "payload": answered})))
                    .collect();
                for (client, seq) in batch.iter_mut().zip(asked) {
                    let answer = client.answer(seq);
                    assert_eq!(answer.get("status"), None, "{answer}");
                    answered += 1;
                }
            }
        }
        // All of them are still there.
        for client in &mut clients {
            assert_eq!(client.call(9000, json!(1))["payload"], 1);
        }
        answered
    };
    let answered: u64 = std::thread::scope(|scope| {
        let talkers: Vec<_> = (0..4).map(|_| scope.spawn(talk)).collect();
        eventually("all are connected", || {
            let stats = gateway.admin_get("/stats");
            (stats["connections"].as_u64() >= Some(CONNECTIONS as u64)).then_some(())
        });
        let mut version = gateway.versions()[0];
        for n in 0..RELOADS / 2 {
            let before = refused(&gateway);
            // Two mistakes and a change that is right: nothing of it is applied.
            let wrong = config(&instance, 1_000 + n).shard("queue.items_max = 0").key("pth = 1");
            gateway.rewrite(&wrong);
            gateway.signal(Signal::HUP);
            eventually("both mistakes are told", || {
                (refused(&gateway) >= before + 2).then_some(())
            });
            assert_eq!(gateway.versions(), vec![version; gateway.shards]);
            gateway.rewrite(&config(&instance, 5_001 + n));
            gateway.signal(Signal::HUP);
            eventually("every shard works by it", || {
                gateway.versions().iter().all(|v| *v > version).then_some(())
            });
            version = gateway.versions()[0];
        }
        stop.store(true, Ordering::Relaxed);
        talkers.into_iter().map(|t| t.join().expect("every message is answered")).sum()
    });
    let stats = gateway.admin_get("/stats");
    assert_eq!(stats["counters"]["business_errors"], 0);
    assert_eq!(stats["counters"]["backend_disconnects"], 0, "the services' connections stay, too");
    assert!(answered > CONNECTIONS as u64, "{answered}");
}

#[test]
fn a_key_that_is_read_at_the_start_only_is_refused_by_name_and_nothing_else_is_applied() {
    let instance = Instance::echo();
    let gateway = Gateway::start(&config(&instance, 5_000));
    let version = gateway.versions();
    let change = config(&instance, 4_000).key("node = \"other\"").shard("shard.ring_depth = 512");
    gateway.rewrite(&change);
    gateway.signal(Signal::HUP);
    eventually("both are named", || (refused(&gateway) == 2).then_some(()));
    let log = gateway.log();
    for part in ["gateway.toml:3: node = \\\"other\\\"", "shard.ring_depth = 512", "restart for it"]
    {
        let plain = part.replace("\\\"", "\"");
        assert!(log.contains(part) || log.contains(&plain), "{part} in {log}");
    }
    assert_eq!(gateway.versions(), version);
}

#[test]
fn routes_services_and_instances_change_in_a_running_gateway() {
    let (first, second) = (Instance::echo(), Instance::echo());
    let gateway = Gateway::start(&config(&first, 5_000));
    gateway.wait_connected("logic", &["a"]);
    let mut client = Client::connect(gateway.ws);
    assert_eq!(client.call(1001, json!(1)).get("status"), None);
    assert_eq!(client.call(2001, json!(1))["reason"], "NO_ROUTE");
    // Another instance, in another service that stands before the old one.
    let changed = Config::new()
        .shards(several())
        .service("chat", &[("c", second.address)])
        .service("logic", &[("b", second.address)])
        .route(1000, "logic", "")
        .route(2000, "chat", "");
    gateway.rewrite(&changed);
    gateway.signal(Signal::HUP);
    eventually("it is in force", || {
        (client.call(2001, json!(2)).get("status").is_none()).then_some(())
    });
    let before = first.requests().len();
    assert_eq!(client.call(1001, json!(3)).get("status"), None);
    assert_eq!(first.requests().len(), before, "the old instance gets nothing any more");
    // And back: a name and address that were there before.
    gateway.rewrite(&config(&first, 5_000));
    gateway.signal(Signal::HUP);
    eventually("the old state is back", || {
        (client.call(2001, json!(2))["reason"] == "NO_ROUTE").then_some(())
    });
    assert_eq!(client.call(1001, json!(4)).get("status"), None);
    assert!(first.requests().len() > before);
}

#[test]
fn settings_of_shards_change_in_a_running_gateway() {
    let instance = Instance::echo();
    let gateway = Gateway::start(&config(&instance, 5_000));
    gateway.wait_connected("logic", &["a"]);
    let mut old = Client::connect(gateway.ws);
    let less = config(&instance, 5_000).shard("conn.message_bytes_max = 1000");
    gateway.rewrite(&less.shard("conn.outbox_bytes_max = 100000"));
    let version = gateway.versions()[0];
    gateway.signal(Signal::HUP);
    let welcome = eventually("new clients are told of it", || {
        let client = Client::connect(gateway.ws);
        (client.welcome["limits"]["message_bytes_max"] == 1000).then_some(client)
    });
    let long = json!("x".repeat(2_000));
    assert_eq!(old.call(1001, long.clone())["payload"], long, "an old one keeps its promise");
    let mut new = welcome;
    new.send(json!({"msg_id": 1001, "payload": long}));
    assert_eq!(new.until_close().1, Some(1009));
    assert!(gateway.versions().iter().all(|v| *v >= version));
}

#[test]
fn a_reload_gives_no_shard_more_connections_than_there_are_files() {
    let gateway =
        Gateway::start_with(&Config::new(), |command| under(command, &[], "ulimit -n 300"));
    let log = gateway.log();
    let cap = log.split("a shard takes ").nth(1).and_then(|rest| rest.split(' ').next());
    let cap: usize = cap.and_then(|n| n.parse().ok()).expect("the start says how many");
    let config = Config::new().shard("conn.connections_max = 150000");
    gateway.rewrite(&config);
    for n in 0..2 {
        // The second file changes something else.
        gateway.rewrite(&config.clone().key(&format!("stop.grace_ms = {}", 100 + n)));
        let (status, answer) = gateway.admin_post("/reload", "");
        assert_eq!(status, 200, "{answer}");
    }
    let capped = || gateway.log().matches("connections_capped").count();
    eventually("it says that it cannot give so many", || (capped() > 0).then_some(()));
    // Of many addresses: for one alone the last places are not.
    let connect = |n| Client::connect_from([127, 0, 1, 1 + (n % 250) as u8], gateway.ws);
    let clients: Vec<Client> = (0..cap).map(connect).collect();
    for _ in 0..100 {
        let head = Raw::connect(gateway.ws).head();
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    }
    assert_eq!(gateway.counter("accept_failed"), 0);
    assert_eq!(gateway.admin_get("/stats")["connections"], cap);
    assert_eq!(capped(), 1, "once: {}", gateway.log());
    drop(clients);
}
