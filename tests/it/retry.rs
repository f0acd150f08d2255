//! Promise 7: never run twice by our retry.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use crate::support::{Action, Client, Config, Gateway, Instance, ok};

fn config(instances: &[(&str, &Instance)], route: &str) -> Config {
    let list: Vec<_> = instances.iter().map(|(id, i)| (*id, i.address)).collect();
    Config::new().service("logic", &list).route(1000, "logic", route).shard("retry.delay_ms = 20")
}

/// An instance that refuses `count` calls unstarted, then echoes.
fn refusing(count: usize) -> Instance {
    let calls = AtomicUsize::new(0);
    Instance::start(move |call| {
        if calls.fetch_add(1, Ordering::Relaxed) < count {
            return Action::Reset(h2::Reason::REFUSED_STREAM);
        }
        Action::Reply(call.batch.requests.iter().map(ok).collect())
    })
}

#[test]
fn a_refused_stream_is_sent_again_without_asking() {
    let instance = refusing(2);
    let gateway = Gateway::start(&config(&[("a", &instance)], ""));
    gateway.wait_connected("logic", &["a"]);
    let answer = Client::connect(gateway.ws).call(1001, json!("x"));
    assert_eq!((&answer["payload"], answer.get("status")), (&json!("x"), None));
    let requests = instance.requests();
    let attempts: Vec<u32> = requests.iter().map(|request| request.attempt).collect();
    assert_eq!(attempts, [1, 2, 3]);
    let ids = requests.iter().map(|request| request.request_id);
    assert_eq!(ids.collect::<std::collections::BTreeSet<_>>().len(), 1, "the same in each");
}

#[test]
fn a_message_that_is_refused_for_ever_is_unavailable() {
    let instance = refusing(usize::MAX);
    let gateway = Gateway::start(&config(&[("a", &instance)], ""));
    gateway.wait_connected("logic", &["a"]);
    let answer = Client::connect(gateway.ws).call(1001, json!("x"));
    assert_eq!((&answer["status"], &answer["reason"]), (&json!(14), &json!("UNAVAILABLE")));
    assert!(instance.requests().len() <= 5, "gRFC A6: five attempts at most");
}

/// Loses an instance of two that hold all calls. Returns the answer, the instance that the message
/// went to, and the other.
fn lose_one(route: &str) -> (serde_json::Value, Instance, Instance) {
    let (mut a, mut b) = (Instance::echo(), Instance::echo());
    let gateway = Gateway::start(&config(&[("a", &a), ("b", &b)], route));
    gateway.wait_connected("logic", &["a", "b"]);
    let mut client = Client::connect(gateway.ws);
    a.hold();
    b.hold();
    let seq = client.send(json!({"msg_id": 1001, "payload": "once"}));
    let at_a = crate::support::eventually("it arrives", || {
        match (a.requests().len(), b.requests().len()) {
            (0, 0) => None,
            (1, 0) => Some(true),
            (0, 1) => Some(false),
            both => panic!("{both:?}"),
        }
    });
    if !at_a {
        std::mem::swap(&mut a, &mut b);
    }
    b.release();
    a.kill();
    (client.answer(seq), a, b)
}

#[test]
fn a_lost_connection_is_an_unknown_outcome_and_nothing_runs_twice() {
    let (answer, first, second) = lose_one("");
    assert_eq!((&answer["status"], &answer["reason"]), (&json!(14), &json!("OUTCOME_UNKNOWN")));
    assert_eq!((first.requests().len(), second.requests().len()), (1, 0));
}

#[test]
fn an_idempotent_message_runs_again_elsewhere() {
    let (answer, first, second) = lose_one("idempotent = true");
    assert_eq!((&answer["payload"], answer.get("status")), (&json!("once"), None));
    let (first, second) = (first.requests(), second.requests());
    assert_eq!((first.len(), second.len()), (1, 1));
    assert_eq!((first[0].attempt, second[0].attempt), (1, 2));
    assert_eq!(first[0].request_id, second[0].request_id);
}

#[test]
fn attempts_are_limited() {
    for (route, attempts) in [("idempotent = true", 3), ("", 1)] {
        let instance = Instance::start(|_| Action::Status(14));
        let config = config(&[("a", &instance)], route).shard("retry.attempts_max = 3");
        let gateway = Gateway::start(&config);
        gateway.wait_connected("logic", &["a"]);
        let answer = Client::connect(gateway.ws).call(1001, json!(1));
        assert_eq!(answer["status"], 14);
        assert_eq!(answer["reason"], "OUTCOME_UNKNOWN");
        assert_eq!(instance.requests().len(), attempts);
    }
}

#[test]
fn retries_stay_within_their_budget() {
    let instance = Instance::start(|_| Action::Status(14));
    let config = config(&[("a", &instance)], "idempotent = true\norder = \"none\"")
        .shard("batch.items_max = 1");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let mut client = Client::connect(gateway.ws);
    let seqs: Vec<u64> = (0..100).map(|_| client.send(json!({"msg_id": 1001}))).collect();
    for seq in seqs {
        assert_eq!(client.answer(seq)["status"], 14);
    }
    // 20 % of 100, and the ten that are always allowed.
    let extra = instance.requests().len() - 100;
    assert!((10..=30).contains(&extra), "{extra}");
    assert!(gateway.counter("retry_budget_spent") > 0);
}

#[test]
fn no_failover_means_none() {
    let (mut a, b) = (Instance::echo(), Instance::echo());
    let list = [("a", &a), ("b", &b)];
    let gateway = Gateway::start(&config(&list, "failover = \"none\"\nhash_on = \"key\""));
    gateway.wait_connected("logic", &["a", "b"]);
    let mut client = Client::connect(gateway.ws);
    // A key of each instance.
    let mut of_a = None;
    let mut of_b = None;
    for n in 0..100 {
        let key = format!("k{n}");
        let before = a.requests().len();
        client.ask(json!({"msg_id": 1001, "key": key}));
        let there = if a.requests().len() > before { &mut of_a } else { &mut of_b };
        there.get_or_insert(key);
    }
    let (of_a, of_b) = (of_a.expect("a has keys"), of_b.expect("b has keys"));
    a.kill();
    crate::support::eventually("its loss is seen", || {
        (gateway.connected("logic", "a") == 0).then_some(())
    });
    assert_eq!(client.ask(json!({"msg_id": 1001, "key": of_a}))["reason"], "UNAVAILABLE");
    assert_eq!(client.ask(json!({"msg_id": 1001, "key": of_b})).get("status"), None);
}
