//! Promise 19: a tenant has its quota in the whole process, and its part of what is shared by its
//! weight, whatever other tenants do.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::auth::{token_of_tenant, upgrade};
use crate::support::{Action, Client, Config, Gateway, Instance, eventually, ok};
use crate::tenants::{shows, signed_in, with_tenants};

/// Load that ends when this is dropped, also where a test fails.
struct Load<'a>(&'a AtomicBool);

impl Drop for Load<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Users of the tenant acme, of whom about half live on each shard.
fn users_on_all_shards(gateway: &Gateway, count: usize) -> Vec<String> {
    let mut on: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for n in 0.. {
        let user = format!("user-{n}");
        let mut client = signed_in(gateway, &user, "acme");
        let shard = client.ask(json!({"msg_id": 9002}))["payload"]["shard"].take();
        on.entry(shard.as_u64().expect("a number")).or_default().push(user);
        let is_enough = on.values().all(|users| users.len() >= count / gateway.shards);
        if on.len() == gateway.shards && is_enough {
            break;
        }
    }
    on.into_values().flat_map(|users| users.into_iter().take(count / gateway.shards)).collect()
}

/// Asks `payload` at a pace of one message each `every`, with a new connection after `reconnect` of
/// them, until `stop`; gives the times of answers that are OK, and the number of refusals. Every
/// other answer fails the test.
fn at_a_pace(
    gateway: &Gateway,
    user: &str,
    payload: &Value,
    every: Duration,
    reconnect: u32,
    stop: &AtomicBool,
) -> (Vec<Instant>, usize) {
    let (began, mut taken, mut refused) = (Instant::now(), Vec::new(), 0);
    let mut client = signed_in(gateway, user, "acme");
    for n in 0.. {
        // What was late is made up for, so that the load does not depend on the machine.
        std::thread::sleep((began + every * n).saturating_duration_since(Instant::now()));
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if n % reconnect == reconnect - 1 {
            client = signed_in(gateway, user, "acme");
        }
        let answer = client.call(1001, payload.clone());
        match (&answer["reason"], answer["retry_after_ms"].as_u64()) {
            (Value::Null, _) => taken.push(Instant::now()),
            (reason, Some(1..)) if *reason == "RATE_LIMITED" => refused += 1,
            _ => panic!("{answer}"),
        }
    }
    (taken, refused)
}

/// Answers that were OK from `began` on, for so long.
fn taken_in(began: Instant, lasts: Duration, told: &[(Vec<Instant>, usize)]) -> usize {
    let times = told.iter().flat_map(|(taken, _)| taken);
    times.filter(|at| **at >= began && at.saturating_duration_since(began) < lasts).count()
}

#[test]
fn a_rate_holds_on_all_shards_together_over_reconnects_and_a_reload() {
    const RATE: usize = 400;
    let instance = Instance::echo();
    let config = |more: &str| {
        let acme = format!("{{ name = \"acme\", quota = {{ messages_per_s = {RATE} }} }}");
        let tables = [acme.as_str(), "{ name = \"beta\" }", more];
        let tables: Vec<&str> = tables.into_iter().filter(|table| !table.is_empty()).collect();
        with_tenants(&tables)
            .service("logic", &[("a", instance.address)])
            .route(1000, "logic", "")
            .shard("conn.unanswered_max = 4")
    };
    let gateway = Gateway::start(&config(""));
    gateway.wait_connected("logic", &["a"]);
    let users = users_on_all_shards(&gateway, 8);
    let (stop, seconds) = (AtomicBool::new(false), Duration::from_secs);
    let (began, told) = std::thread::scope(|scope| {
        let load = Load(&stop);
        let talkers: Vec<_> = users
            .iter()
            .enumerate()
            .map(|(n, user)| {
                // 667 a second. Those of the other shard want less than an equal part.
                let every = Duration::from_millis(if n < users.len() / 2 { 8 } else { 24 });
                let (gateway, stop) = (&gateway, &stop);
                let payload = json!(n);
                scope.spawn(move || at_a_pace(gateway, user, &payload, every, 40 + n as u32, stop))
            })
            .collect();
        let mut polite = signed_in(&gateway, "bob", "beta");
        let refused =
            |least: u64| (gateway.counter("quota_messages_refused") > least).then_some(());
        // The burst is used up.
        eventually("the quota is reached", || refused(100));
        std::thread::sleep(seconds(2));
        let began = Instant::now();
        std::thread::sleep(seconds(3));
        gateway.rewrite(&config("{ name = \"gamma\", metrics = true }"));
        assert_eq!(gateway.admin_post("/reload", "").0, 200);
        assert_eq!(polite.call(1001, json!(0))["payload"], 0, "the others have no quota");
        std::thread::sleep((began + seconds(6)).saturating_duration_since(Instant::now()));
        drop(load);
        let told: Vec<_> = talkers.into_iter().map(|t| t.join().expect("it talks")).collect();
        (began, told)
    });
    let taken = taken_in(began, seconds(6), &told);
    let wanted = 6 * RATE;
    assert!(taken.abs_diff(wanted) * 20 <= wanted, "{taken} in 6 s, not {wanted}");
    let refused: usize = told.iter().map(|(_, refused)| refused).sum();
    assert!(refused > 600, "{refused}: they wanted more");
}

#[test]
fn a_rate_of_bytes_holds_on_all_shards_together() {
    // A hundred messages a second.
    let payload = json!("x".repeat(4_000));
    let message = json!({"msg_id": 1001, "seq": 100, "payload": payload}).to_string();
    let rate = 100 * message.len();
    let instance = Instance::echo();
    let table = format!("{{ name = \"acme\", quota = {{ bytes_per_s = {rate} }} }}");
    let config = with_tenants(&[&table])
        .service("logic", &[("a", instance.address)])
        .route(1000, "logic", "");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let users = users_on_all_shards(&gateway, 8);
    let (stop, seconds) = (AtomicBool::new(false), Duration::from_secs);
    let (began, told) = std::thread::scope(|scope| {
        let load = Load(&stop);
        let talkers: Vec<_> = users
            .iter()
            .enumerate()
            .map(|(n, user)| {
                // 165 a second. Those of the other shard want less than an equal part.
                let every = Duration::from_millis(if n < users.len() / 2 { 32 } else { 100 });
                let (gateway, stop, payload) = (&gateway, &stop, &payload);
                scope.spawn(move || at_a_pace(gateway, user, payload, every, u32::MAX, stop))
            })
            .collect();
        eventually("the quota is reached", || {
            (gateway.counter("quota_messages_refused") > 30).then_some(())
        });
        std::thread::sleep(seconds(2));
        let began = Instant::now();
        std::thread::sleep(seconds(6));
        drop(load);
        let told: Vec<_> = talkers.into_iter().map(|t| t.join().expect("it talks")).collect();
        (began, told)
    });
    let taken = taken_in(began, seconds(6), &told);
    assert!(taken.abs_diff(600) * 20 <= 600, "{taken} in 6 s, not 600");
}

#[test]
fn connections_are_counted_exactly_and_one_too_many_is_told_when_to_come_back() {
    const MAX: usize = 5;
    let quota = format!("quota = {{ connections_max = {MAX} }}");
    let config = with_tenants(&[&format!("{{ name = \"acme\", {quota} }}"), "{ name = \"beta\" }"]);
    let gateway = Gateway::start(&config);
    // Thirty come at once, to all shards.
    let come = |n: usize| {
        let (mut client, answer) = shows(&gateway, &format!("user-{n}"), "acme");
        if answer["type"] == "auth_ok" {
            return Some(client);
        }
        assert_eq!(answer["reason"], "RATE_LIMITED", "{answer}");
        assert_eq!(answer["retry_after_ms"], 1_000, "{answer}");
        assert_eq!(client.until_close().1, Some(1013));
        None
    };
    let mut clients: Vec<Client> = std::thread::scope(|scope| {
        let come = &come;
        let all: Vec<_> = (0..30).map(|n| scope.spawn(move || come(n))).collect();
        all.into_iter().filter_map(|one| one.join().expect("it comes")).collect()
    });
    assert_eq!(clients.len(), MAX);
    let bearer = |tenant| format!("Authorization: Bearer {}", token_of_tenant("late", tenant));
    let (mut raw, head) = upgrade(&gateway, &bearer("acme"));
    assert!(head.starts_with("HTTP/1.1 429 ") && head.contains("\r\nRetry-After: 1\r\n"), "{head}");
    let body = String::from_utf8_lossy(&raw.rest()).into_owned();
    assert!(body.contains("your tenant has as many connections as it may"), "{body}");
    assert!(upgrade(&gateway, &bearer("beta")).1.starts_with("HTTP/1.1 101 "));
    // More tokens of one that is in, and a reload, take no place and free none.
    for client in &mut clients {
        let who = client.ask(json!({"msg_id": 9002}))["payload"]["user"].take();
        let token = token_of_tenant(who.as_str().expect("a user"), "acme");
        assert_eq!(
            client.ask(json!({"type": "auth", "payload": {"token": token}}))["type"],
            "auth_ok"
        );
    }
    gateway.rewrite(&config.key("gateway.explain_to_clients = true"));
    assert_eq!(gateway.admin_post("/reload", "").0, 200);
    assert_eq!(shows(&gateway, "late", "acme").1["reason"], "RATE_LIMITED");
    let used = gateway.admin_get("/stats?tenant=acme");
    assert_eq!(
        (&used["connections"], &used["counters"]["connections_refused"]),
        (&json!(MAX), &json!(30 - MAX + 2))
    );
    // One place that is left is one that is free.
    drop(clients.pop());
    let came = eventually("one closed", || {
        let (client, answer) = shows(&gateway, "late", "acme");
        (answer["type"] == "auth_ok").then_some(client)
    });
    assert_eq!(shows(&gateway, "later", "acme").1["reason"], "RATE_LIMITED");
    drop(came);
}

#[test]
fn new_connections_over_a_rate_are_told_when_to_come_back() {
    let table = "{ name = \"acme\", quota = { connects_per_s = 3 } }";
    let gateway = Gateway::start(&with_tenants(&[table]).shards(1));
    let _in: Vec<Client> = (0..3).map(|n| signed_in(&gateway, &format!("u{n}"), "acme")).collect();
    let bearer = format!("Authorization: Bearer {}", token_of_tenant("late", "acme"));
    // What flows in meanwhile lets some in, so a second's worth of them is not enough to see it.
    let (mut raw, head) = (0..30)
        .map(|_| upgrade(&gateway, &bearer))
        .find(|(_, head)| !head.starts_with("HTTP/1.1 101 "))
        .expect("more than three a second");
    assert!(head.starts_with("HTTP/1.1 429 ") && head.contains("\r\nRetry-After: 1\r\n"), "{head}");
    let body = String::from_utf8_lossy(&raw.rest()).into_owned();
    assert!(body.contains("your tenant opens too many connections a second"), "{body}");
    eventually("there is room again", || {
        (shows(&gateway, "late", "acme").1["type"] == "auth_ok").then_some(())
    });
    assert!(
        gateway.admin_get("/stats?tenant=acme")["counters"]["connects_refused"].as_u64() >= Some(1)
    );
}

/// Asserts that a message was refused for its tenant's quota, with the time to come back.
#[track_caller]
fn is_refused_for_room(answer: &Value, text: &str) {
    assert_eq!(
        (&answer["reason"], &answer["status"]),
        (&json!("QUEUE_FULL"), &json!(8)),
        "{answer}"
    );
    assert!(answer["message"].as_str().is_some_and(|said| said.contains(text)), "{answer}");
    assert!(answer["retry_after_ms"].as_u64().is_some_and(|ms| ms > 0), "{answer}");
}

#[test]
fn bytes_and_ids_over_a_quota_are_refused_and_nobody_elses() {
    let instance = Instance::echo();
    let quota = "quota = { queued_bytes_max = 1000, dedup_ids_max = 3 }";
    let config = with_tenants(&[&format!("{{ name = \"acme\", {quota} }}"), "{ name = \"beta\" }"])
        .shards(1)
        .service("logic", &[("a", instance.address)])
        .route(1000, "logic", "order = \"none\"");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let mut acme = ["ann", "amy"].map(|user| signed_in(&gateway, user, "acme"));
    let mut beta = signed_in(&gateway, "bob", "beta");
    instance.hold();
    let large = json!({"msg_id": 1001, "payload": "x".repeat(400)});
    let waiting: Vec<u64> = acme.each_mut().map(|client| client.send(large.clone())).into();
    let count = eventually("both wait", || {
        let used = gateway.admin_get("/stats?tenant=acme")["queued_bytes"].as_u64();
        used.filter(|bytes| *bytes >= 800)
    });
    assert!(count <= 1_000, "{count}");
    is_refused_for_room(&acme[0].ask(large.clone()), "of your tenant that wait");
    is_refused_for_room(&acme[1].ask(large.clone()), "of your tenant that wait");
    let of_beta: Vec<u64> = (0..5).map(|_| beta.send(large.clone())).collect();
    instance.release();
    for (client, seq) in acme.iter_mut().zip(waiting) {
        assert_eq!(client.answer(seq)["payload"], large["payload"]);
    }
    for seq in of_beta {
        assert_eq!(beta.answer(seq)["payload"], large["payload"]);
    }
    assert_eq!(acme[0].ask(large.clone())["payload"], large["payload"], "there is room again");
    // Ids, of both users together.
    let with_id = |id: &str| json!({"msg_id": 1001, "id": id, "payload": id});
    for (n, id) in ["a", "b", "c"].into_iter().enumerate() {
        assert_eq!(acme[n % 2].ask(with_id(id))["payload"], id);
    }
    is_refused_for_room(&acme[0].ask(with_id("new")), "too many ids of your tenant");
    is_refused_for_room(&acme[1].ask(with_id("newer")), "too many ids of your tenant");
    assert_eq!(acme[0].ask(with_id("a"))["payload"], "a", "a known one is answered");
    assert_eq!(acme[0].call(1001, json!(7))["payload"], 7, "as is one without an id");
    (0..5).for_each(|n| assert_eq!(beta.ask(with_id(&n.to_string()))["payload"], n.to_string()));
    let used = gateway.admin_get("/stats?tenant=acme");
    let told = (&used["dedup_ids"], &used["queued_bytes"], &used["counters"]["room_refused"]);
    assert_eq!(told, (&json!(3), &json!(0), &json!(4)), "{used}");
}

#[test]
fn bytes_that_wait_on_all_shards_together_are_within_the_quota() {
    const MAX: u64 = 20_000;
    let instance = Instance::echo();
    let quota = format!("quota = {{ queued_bytes_max = {MAX} }}");
    let config = with_tenants(&[&format!("{{ name = \"acme\", {quota} }}")])
        .service("logic", &[("a", instance.address)])
        .route(1000, "logic", "timeout_ms = 60000\norder = \"none\"")
        .shard("conn.unanswered_max = 500");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let users = users_on_all_shards(&gateway, 4);
    instance.hold();
    let held = || {
        let used = gateway.admin_get("/stats?tenant=acme");
        let held = used["queued_bytes"].as_u64().expect("a number");
        assert!(held <= MAX, "{used}");
        (held > MAX * 9 / 10 && used["counters"]["room_refused"] != 0).then_some(())
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = Load(&stop);
        let flood = |users: &[String]| {
            for user in users {
                let (mut client, stop) = (signed_in(&gateway, user, "acme"), &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        client.send(json!({"msg_id": 1001, "payload": "x".repeat(100)}));
                        std::thread::sleep(Duration::from_millis(5));
                    }
                });
            }
        };
        // Those of one shard, and then the others, who find little.
        flood(&users[..2]);
        eventually("it is nearly all used", held);
        flood(&users[2..]);
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            held();
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(load);
    });
}

/// An instance that takes a millisecond a message, and one batch after the other.
fn slow() -> Instance {
    Instance::start(|call| {
        let requests = &call.batch.requests;
        std::thread::sleep(Duration::from_millis(requests.len() as u64));
        Action::Reply(requests.iter().map(ok).collect())
    })
}

fn before_a_slow_instance(tables: &[&str], instance: &Instance) -> Config {
    with_tenants(tables)
        .shards(1)
        .service("logic", &[("a", instance.address)])
        .route(1000, "logic", "timeout_ms = 60000\norder = \"none\"")
        .shard("queue.instance_percent = 100\nconn.unanswered_max = 500")
        .shard("batch.in_flight_max = 1\nbatch.in_flight_long_max = 1\nbatch.items_max = 4")
}

/// Keeps `count` messages without an answer until `stop`; gives the answers that are refusals.
fn keep_waiting(client: &mut Client, count: usize, stop: &AtomicBool) -> usize {
    let mut refused = 0;
    for n in 0..count {
        client.write(json!({"msg_id": 1001, "payload": n}));
    }
    client.flush();
    while !stop.load(Ordering::Relaxed) {
        let answer = client.read();
        if answer["reason"] == "QUEUE_FULL" {
            refused += 1;
            // As a client that does not wait as told, but does not burn the machine.
            std::thread::sleep(Duration::from_millis(1));
        }
        client.send(json!({"msg_id": 1001, "payload": 0}));
    }
    refused
}

#[test]
fn tenants_in_backlog_are_served_by_their_weights_however_many_users_they_have() {
    let instance = slow();
    let tables = [1, 2, 4].map(|weight| format!("{{ name = \"w{weight}\", weight = {weight} }}"));
    let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    let gateway = Gateway::start(&before_a_slow_instance(&tables, &instance));
    gateway.wait_connected("logic", &["a"]);
    let stop = AtomicBool::new(false);
    let served = std::thread::scope(|scope| {
        let load = Load(&stop);
        for (tenant, users) in [("w1", 6), ("w2", 2), ("w4", 3)] {
            for n in 0..users {
                let mut client = signed_in(&gateway, &format!("user-{n}"), tenant);
                let stop = &stop;
                scope.spawn(move || keep_waiting(&mut client, 300 / users, stop));
            }
        }
        let counts = || {
            let mut counts: BTreeMap<String, usize> = BTreeMap::new();
            instance.requests().into_iter().for_each(|r| *counts.entry(r.tenant).or_default() += 1);
            counts
        };
        let least = |least: usize| {
            let counts = counts();
            (counts.len() == 3 && counts.values().all(|n| *n >= least)).then_some(counts)
        };
        let before = eventually("all are in backlog", || least(150));
        std::thread::sleep(Duration::from_secs(4));
        let after = counts();
        drop(load);
        ["w1", "w2", "w4"].map(|tenant| after[tenant] - before[tenant])
    });
    let all: usize = served.iter().sum();
    assert!(all > 700, "{served:?}");
    for (n, weight) in served.into_iter().zip([1, 2, 4]) {
        let wanted = all * weight / 7;
        assert!(n.abs_diff(wanted) * 20 <= wanted, "{served:?}, not {wanted} of weight {weight}");
    }
}

#[test]
fn a_flood_of_one_tenant_refuses_nobody_of_another() {
    let instance = slow();
    let tables = ["{ name = \"acme\" }", "{ name = \"beta\" }", "{ name = \"gamma\" }"];
    let config = before_a_slow_instance(&tables, &instance).shard("queue.items_max = 1000");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = Load(&stop);
        let flood: Vec<_> = (0..30)
            .map(|n| {
                let mut client = signed_in(&gateway, &format!("user-{n}"), "acme");
                let stop = &stop;
                scope.spawn(move || keep_waiting(&mut client, 100, stop))
            })
            .collect();
        eventually("the flood is refused", || {
            (gateway.counter("queue_rejected") > 1_000).then_some(())
        });
        let polite: Vec<_> = ["beta", "beta", "gamma", "unknown"]
            .into_iter()
            .enumerate()
            .map(|(n, tenant)| {
                let mut client = signed_in(&gateway, &format!("user-{n}"), tenant);
                let ask = move || {
                    for n in 0..100 {
                        let answer = client.call(1001, json!(n));
                        assert_eq!(answer["payload"], n, "{answer}");
                    }
                };
                scope.spawn(ask)
            })
            .collect();
        let polite: Vec<_> = polite.into_iter().map(|one| one.join()).collect();
        drop(load);
        let refused: usize = flood.into_iter().map(|one| one.join().expect("it floods")).sum();
        assert!(polite.iter().all(Result::is_ok) && refused > 1_000, "{polite:?}, {refused}");
    });
}
