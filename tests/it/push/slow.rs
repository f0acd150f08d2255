//! Promise 18: nobody waits for a member that reads slowly, nobody pays for it, and it is told what
//! it missed.

use std::net::TcpStream;

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use super::callers::Http;
use super::{DESK, SHOP, bare, counts, desk, join, people, rule, shop, user};
use crate::auth::token;
use crate::support::{Client, Config, Gateway, PATIENCE, Raw};

/// Bytes of a push.
const PAYLOAD: usize = 8 << 10;
/// Pushes in a request.
const BATCH: u64 = 50;

fn config(more: &str) -> Config {
    bare()
        .key(&format!("push_caller = [{}, {}]", shop(""), desk()))
        .key(&rule(more))
        .shard("conn.send_buffer_bytes = 16384")
        .shard("conn.write_timeout_ms = 600000")
        .shard("groups.lag_bytes_max = 65536")
}

/// A connection that the kernels keep little for, whose client does not read unless it is told to.
fn lazy(gateway: &Gateway, headers: &str) -> Raw {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(8 << 10).expect("an option");
    socket.connect(&gateway.ws.into()).expect("the gateway listens");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut raw = Raw::over(stream);
    let request = Raw::request(gateway.ws).replace("\r\n\r\n", &format!("\r\n{headers}\r\n"));
    raw.send(request.as_bytes());
    assert!(raw.head().starts_with("HTTP/1.1 101 "));
    assert_eq!(raw.frame().json()["type"], "welcome");
    raw
}

fn lazy_member(gateway: &Gateway) -> Raw {
    let mut raw = lazy(gateway, "");
    raw.text(r#"{"msg_id":9010,"seq":1,"payload":{"group":"room:7"}}"#);
    assert_eq!(raw.frame().json()["seq"], 1);
    raw
}

/// A large push with a key.
fn push(to: Value, n: u64, key: &str) -> Value {
    json!({"to": to, "msg_id": 7001, "payload": "x".repeat(PAYLOAD), "key": key,
           "id": n.to_string(), "receipt": "COUNTED"})
}

/// Sends large pushes to `room:7`, whose ids are numbers from `from`: how many were written, and
/// how many wait, for each.
fn floods(shop: &mut Http, from: u64, count: u64) -> Vec<[u64; 6]> {
    let mut all = Vec::new();
    for n in (from..from + count).step_by(BATCH as usize) {
        // Each is told when it was counted, so pushes come no faster than members are told.
        for n in n..n + BATCH {
            all.push(counts(&shop.sends(push(json!({"groups": ["room:7"]}), n, ""))));
        }
    }
    all
}

/// Memory of the gateway that is in use, in bytes.
fn rss(gateway: &Gateway) -> u64 {
    let path = format!("/proc/{}/statm", gateway.pid().as_raw_nonzero());
    let text = std::fs::read_to_string(path).expect("it lives");
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.expect("a number") * 4096
}

#[test]
fn one_who_stops_reading_costs_nobody_anything_and_is_told_how_much_it_missed() {
    const COUNT: u64 = 600;
    let gateway = Gateway::start(&config(""));
    let mut members: Vec<Client> =
        people().iter().take(4).map(|name| user(&gateway, name)).collect();
    members.iter_mut().for_each(|member| drop(join(member, "room:7")));
    let mut slow = lazy_member(&gateway);
    let mut shop = Http::connect(&gateway, SHOP);
    let count = members.len() as u64;
    let memory = std::thread::scope(|scope| {
        for member in &mut members {
            scope.spawn(|| {
                for n in 1..=COUNT {
                    assert_eq!(member.read()["offset"], n, "without a gap");
                }
            });
        }
        let mut fates = floods(&mut shop, 0, 100);
        let before = rss(&gateway);
        fates.extend(floods(&mut shop, 100, COUNT - 100));
        for fate in fates {
            let [written, queued, dropped, ..] = fate;
            assert_eq!((written + queued, dropped), (count + 1, 0), "{fate:?}");
            assert!(written >= count, "only one reads slowly: {fate:?}");
        }
        (before, rss(&gateway))
    });
    // 500 pushes of 8 KiB are 4 MiB; logs keep 64 KiB of them on each shard, and at home.
    assert!(memory.1 < memory.0 + (1 << 20), "it grew: {memory:?}");
    let (mut next, mut missed) = (1, 0);
    while next <= COUNT {
        let message = slow.frame().json();
        if message["type"] == "gap" {
            let gap = &message["payload"];
            assert_eq!((&gap["group"], &gap["reason"]), (&json!("room:7"), &json!("SLOW")));
            let dropped = gap["dropped"].as_u64().expect("a number");
            assert_eq!(gap["position"]["offset"], next + dropped - 1, "{gap}");
            next += dropped;
            missed += dropped;
        } else {
            assert_eq!(message["offset"], next, "{}", message["type"]);
            next += 1;
        }
    }
    assert!(missed > COUNT / 2, "{missed}");
    assert_eq!(gateway.counter("deliveries_missed"), missed);
    assert_eq!(gateway.counter("deliveries"), (count + 1) * COUNT - missed);
}

#[test]
fn a_rule_may_close_slow_members_or_give_them_the_newest_alone() {
    let gateway = Gateway::start(&config(", slow = \"close\""));
    let mut slow = lazy_member(&gateway);
    floods(&mut Http::connect(&gateway, SHOP), 0, 150);
    assert_eq!(slow.closed(), Some(4001));

    let gateway = Gateway::start(&config(", slow = \"latest\""));
    let mut slow = lazy_member(&gateway);
    floods(&mut Http::connect(&gateway, SHOP), 0, 150);
    let mut before = 0;
    let last = loop {
        let message = slow.frame().json();
        if message["type"] == "gap" {
            assert!(before > 0 && message["payload"]["dropped"].as_u64() > Some(0), "{message}");
            break slow.frame().json();
        }
        before += 1;
    };
    assert_eq!(last["offset"], 150, "the one before the newest is passed over: {before}");
}

#[test]
fn a_slow_user_gets_the_newest_of_each_key_and_all_are_accounted_for() {
    const COUNT: u64 = 300;
    let gateway = Gateway::start(&config(""));
    let mut slow = lazy(&gateway, &format!("Authorization: Bearer {}\r\n", token("ann")));
    assert_eq!(slow.frame().json()["type"], "auth_ok");
    let mut desk = Http::connect(&gateway, DESK);
    let keys = ["red", "green", "blue"];
    for n in 0..COUNT {
        let key = keys[n as usize % keys.len()];
        let fate = counts(&desk.sends(push(json!({"users": ["ann"]}), n, key)));
        assert_eq!(fate[0] + fate[1], 1, "written or queued: {fate:?}");
    }
    let dropped = gateway.counter("pushes_dropped");
    let mut heard = Vec::new();
    while heard.last() != Some(&(COUNT - 1)) {
        let message = slow.frame().json();
        assert_eq!(message["type"], "push", "a newer one takes the place of an older one");
        heard.push(message["id"].as_str().and_then(|id| id.parse().ok()).expect("a number"));
    }
    assert!(heard.is_sorted(), "{heard:?}");
    assert!(heard.ends_with(&[COUNT - 3, COUNT - 2, COUNT - 1]), "{heard:?}");
    assert_eq!(heard.len() as u64 + dropped, COUNT, "{heard:?}");
    assert_eq!(gateway.counter("deliveries"), heard.len() as u64);
}
