//! Statistics that tools rely on: names of the admin endpoint, and numbers that match the traffic.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::{Client, Config, Gateway, Instance, Raw, demo, eventually, frame, several};

/// Names of `/routing/stats` that tools rely on: none may change.
const ROUTING_STATS: [(&str, &[&str]); 8] = [
    ("routing", &["total_routes", "cache_hits", "cache_misses", "failed_routes"]),
    ("cache", &["total_entries", "active_entries", "hit_rate"]),
    ("queue", &["size", "monitor"]),
    ("backpressure", &["usage_ratio", "is_throttling"]),
    (
        "dispatch",
        &[
            "total_dispatched",
            "successful_dispatches",
            "failed_dispatches",
            "avg_latency_ms",
            "success_rate",
        ],
    ),
    ("handlers", &["system", "business", "gateway", "errors"]),
    ("shards", &[]),
    ("shard", &[]),
];
const MONITOR: [&str; 4] = ["enqueue_count", "dequeue_count", "duplicate_count", "rejected_count"];

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().map(|o| o.keys().map(String::as_str).collect()).unwrap_or_default()
}

/// Checks the names of one `/routing/stats` object, which has all of the table but `without`.
fn check_names(stats: &Value, without: &str) {
    let sections = ROUTING_STATS.iter().map(|(name, _)| *name).filter(|name| *name != without);
    assert_eq!(keys(stats), sections.collect());
    for (section, names) in ROUTING_STATS.iter().filter(|(_, names)| !names.is_empty()) {
        assert_eq!(keys(&stats[*section]), names.iter().copied().collect(), "{section}");
    }
    assert_eq!(keys(&stats["queue"]["monitor"]), MONITOR.into_iter().collect());
}

/// Collects every number below `stats`, by its path.
fn numbers(stats: &Value, path: &str, found: &mut Vec<(String, u64)>) {
    match stats {
        Value::Object(fields) => {
            for (name, value) in fields.iter().filter(|(n, _)| *n != "shards" && *n != "shard") {
                numbers(value, &format!("{path}/{name}"), found);
            }
        }
        Value::Number(n) => found.extend(n.as_u64().map(|n| (path.to_owned(), n))),
        Value::Null | Value::Bool(_) | Value::String(_) | Value::Array(_) => {}
    }
}

#[test]
fn the_names_are_the_promised_ones_and_the_numbers_the_traffics() {
    let (_services, [logic, ..]) = demo();
    let config = Config::new()
        .shards(several())
        .service("logic", &[("logic-1", logic)])
        .route(1000, "logic", "");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["logic-1"]);
    let stats = gateway.admin_get("/routing/stats");
    check_names(&stats, "shard");
    assert_eq!(stats["dispatch"]["success_rate"], 1.0, "nothing failed yet");

    // Eight clients, so that each shard has some (but for one case in 2^7).
    let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(gateway.ws)).collect();
    for client in &mut clients {
        for n in 0..10 {
            assert_eq!(client.call(1001, json!(n))["payload"], n);
        }
        for _ in 0..3 {
            assert_eq!(client.call(1001, json!({"fail": 13}))["status"], 13);
        }
        client.ask(json!({"msg_id": 1001, "id": "x"}));
        client.ask(json!({"msg_id": 1001, "id": "x"}));
        client.call(7, json!("no route"));
        client.call(9000, json!("echo"));
        client.call(9999, json!("nobody's"));
        client.ask(json!({"type": "ping"}));
        client.send_text("bad");
        assert_eq!(client.read()["reason"], "BAD_MESSAGE");
    }
    let stats = gateway.admin_get("/routing/stats");
    check_names(&stats, "shard");
    let expected = json!({
        "total_routes": 8 * 14, "cache_hits": 8 * 13, "cache_misses": 8, "failed_routes": 8});
    assert_eq!(stats["routing"], expected);
    assert_eq!(stats["cache"]["total_entries"], 8);
    assert_eq!(stats["cache"]["active_entries"], 8);
    let monitor = json!({"enqueue_count": 8 * 14, "dequeue_count": 8 * 14,
        "duplicate_count": 8, "rejected_count": 0});
    assert_eq!(stats["queue"], json!({"size": 0, "monitor": monitor}));
    let dispatch = &stats["dispatch"];
    assert_eq!(dispatch["total_dispatched"], 8 * 14);
    assert_eq!(dispatch["successful_dispatches"], 8 * 11);
    assert_eq!(dispatch["failed_dispatches"], 8 * 3);
    let rate = dispatch["success_rate"].as_f64().expect("a number");
    assert!((rate - 11.0 / 14.0).abs() < 1e-9, "{rate}");
    assert!(dispatch["avg_latency_ms"].as_f64() > Some(0.0));
    // Errors: three of the service, no route, nobody's id, a bad message.
    let handlers = json!({"system": 8, "business": 8 * 16, "gateway": 8 * 2, "errors": 8 * 6});
    assert_eq!(stats["handlers"], handlers);

    let shards = stats["shards"].as_array().expect("a list");
    assert_eq!(shards.len(), gateway.shards);
    let mut sum = Vec::new();
    for (n, shard) in shards.iter().enumerate() {
        check_names(shard, "shards");
        assert_eq!(shard["shard"], n);
        let mut own = Vec::new();
        numbers(shard, "", &mut own);
        if sum.is_empty() {
            sum = own;
        } else {
            sum.iter_mut().zip(own).for_each(|(all, one)| all.1 += one.1);
        }
    }
    let mut total = Vec::new();
    numbers(&stats, "", &mut total);
    assert_eq!(sum, total, "the shards' sum is the total");
}

#[test]
fn stats_add_connections_services_versions_and_uptime() {
    let instance = Instance::echo();
    let config = Config::new()
        .key("node = \"node-1\"")
        .shards(several())
        .service("logic", &[("a", instance.address)])
        .route(1000, "logic", "");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let mut client = Client::connect(gateway.ws);
    let handshaking = Raw::connect(gateway.ws);
    client.call(1001, json!(1));
    eventually("both are accepted", || (gateway.counter("accepted") == 2).then_some(()));
    let stats = gateway.admin_get("/stats");
    assert_eq!((&stats["connections"], &stats["sessions"]), (&json!(2), &json!(1)));
    assert_eq!((&stats["node"], &stats["status"]), (&json!("node-1"), &json!("ok")));
    assert_eq!(stats["boot_id"].as_str().map(str::len), Some(16));
    assert!(stats["uptime_s"].is_u64());
    assert_eq!(stats["versions"]["shardgate"], env!("CARGO_PKG_VERSION"));
    assert_eq!(stats["versions"]["snapshot"], 1);
    assert_eq!(stats["shards"].as_array().map(Vec::len), Some(gateway.shards));
    let seen = &stats["services"]["logic"]["instances"][0];
    assert_eq!((&seen["id"], &seen["ok"], &seen["failed"]), (&json!("a"), &json!(1), &json!(0)));
    assert_eq!(seen["address"], instance.address.to_string());
    // The count of an answer is there as soon as its bytes are.
    assert_eq!(stats["counters"]["answers"], 1);
    assert_eq!(stats["stages"]["whole"]["count"], 1);
    drop((client, handshaking));
    eventually("both are gone", || (gateway.admin_get("/stats")["connections"] == 0).then_some(()));
}

#[test]
fn health_is_200_while_all_shards_answer() {
    let gateway = Gateway::start(&Config::new().shards(several()));
    let (status, health) = gateway.admin("/health");
    assert_eq!((status, &health["status"]), (200, &json!("ok")));
    let names = ["status", "shards", "silent_shards", "version", "uptime_s"];
    let elsewhere = [
        "degraded_by",
        "sources",
        "services",
        "routes_refused",
        "tenants_refused",
        "warnings",
        "last_reload",
    ];
    assert_eq!(keys(&health), names.into_iter().chain(elsewhere).collect());
    assert_eq!((&health["degraded_by"], &health["last_reload"]), (&json!([]), &Value::Null));
    assert_eq!(health["silent_shards"], json!([]));
    assert_eq!(health["shards"].as_array().map(Vec::len), Some(gateway.shards));
}

#[test]
fn the_admin_endpoint_refuses_what_it_does_not_serve() {
    let gateway = Gateway::start(&Config::new());
    let ask = |request: &str| {
        let mut stream = TcpStream::connect(gateway.admin).expect("it listens");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok()).expect("a status line")
    };
    for (request, status) in [
        ("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        ("GET /other HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        ("POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", 405),
        ("GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        ("GET /health HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\r\n", 403),
    ] {
        assert_eq!(ask(request), status, "{request}");
    }
}

#[test]
fn a_thousand_clients_hit_the_route_cache() {
    const CLIENTS: usize = 1000;
    const EACH: u64 = 40;
    let (_services, [logic, chat, _]) = demo();
    let config = Config::new()
        .shards(several())
        .service("logic", &[("logic-1", logic)])
        .service("chat", &[("chat-1", chat)])
        .route(1000, "logic", "timeout_ms = 60000")
        .route(2000, "chat", "timeout_ms = 60000")
        // All of them at once may wait: none is refused.
        .shard("queue.items_max = 200000");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["logic-1"]);
    gateway.wait_connected("chat", &["chat-1"]);
    let mut clients: Vec<Raw> = (0..CLIENTS).map(|_| Raw::upgraded(gateway.ws)).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        let id = 1001 + 1000 * (n % 2);
        let messages = (1..=EACH).map(|seq| {
            frame(0x81, format!(r#"{{"msg_id":{id},"seq":{seq},"payload":{n}}}"#).as_bytes())
        });
        client.send(&messages.collect::<Vec<_>>().concat());
    }
    for (n, client) in clients.iter_mut().enumerate() {
        for seq in 1..=EACH {
            let answer = client.frame().json();
            // The messages of one session to one service keep their order.
            assert_eq!((&answer["seq"], &answer["payload"]), (&json!(seq), &json!(n)), "{answer}");
        }
    }
    let stats = gateway.admin_get("/routing/stats");
    assert_eq!(stats["routing"]["total_routes"], CLIENTS as u64 * EACH);
    assert_eq!(stats["dispatch"]["successful_dispatches"], CLIENTS as u64 * EACH);
    let rate = stats["cache"]["hit_rate"].as_f64().expect("a number");
    assert!(rate > 0.95, "{rate}");
    assert_eq!(gateway.admin_get("/stats")["sessions"], CLIENTS);
}
