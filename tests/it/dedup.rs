//! Promise 8: a message with an id is executed at most once.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::json;
use shardgate::demo::proto::BaseResponse;

use crate::support::{Action, Arrived, Client, Config, Gateway, Instance, eventually, ok};

/// A script that answers each execution with another number.
fn counting() -> impl Fn(&Arrived) -> Action + Send + Sync {
    let count = AtomicU64::new(0);
    move |call| {
        let answer = |request| {
            let n = count.fetch_add(1, Ordering::Relaxed);
            BaseResponse { payload: n.to_string().into(), ..ok(request) }
        };
        Action::Reply(call.batch.requests.iter().map(answer).collect())
    }
}

fn config(instance: &Instance) -> Config {
    Config::new()
        .service("logic", &[("a", instance.address)])
        .route(1000, "logic", "timeout_ms = 60000")
        .shard("backend.backoff_ms = 50")
        .shard("backend.backoff_max_ms = 100")
}

#[test]
fn a_duplicate_of_one_in_flight_waits_for_the_same_answer() {
    let instance = Instance::start(counting());
    let gateway = Gateway::start(&config(&instance));
    let mut client = Client::connect(gateway.ws);
    instance.hold();
    let message = json!({"msg_id": 1001, "id": "pay-1", "payload": {"amount": 5}});
    let seqs: Vec<u64> = (0..3).map(|_| client.send(message.clone())).collect();
    eventually("two wait", || (gateway.counter("duplicates") == 2).then_some(()));
    assert_eq!(gateway.admin_get("/stats")["unanswered"], 3);
    instance.release();
    for seq in seqs {
        assert_eq!(client.answer(seq), json!({"msg_id": 1001, "seq": seq, "payload": 0}));
    }
    assert_eq!(instance.requests().len(), 1);
}

#[test]
fn one_that_fills_the_window_is_refused_and_all_others_go_on() {
    let instance = Instance::start(counting());
    let config = config(&instance).shard("dedup.entries_max = 160");
    let gateway = Gateway::start(&config.shard("dedup.window_ms = 20000"));
    let ask = |client: &mut Client, name: &str, n: usize| {
        client.ask(json!({"msg_id": 1001, "id": format!("{name}-{n}"), "payload": n}))
    };
    let mut greedy = Client::connect(gateway.ws);
    let answers: Vec<_> = (0..160).map(|n| ask(&mut greedy, "greedy", n)).collect();
    let refused: Vec<_> = answers.iter().filter(|a| a.get("reason").is_some()).collect();
    assert_eq!(refused.len(), 40, "three quarters are for whoever comes first");
    assert_eq!(gateway.counter("dedup_over_share"), 40);
    let (first, last) = (&refused[0], &refused[39]);
    assert_eq!(first["reason"], "QUEUE_FULL");
    assert!(first["message"].as_str().is_some_and(|text| text.contains("of this session")));
    let wait = |answer: &serde_json::Value| answer["retry_after_ms"].as_u64().expect("a time");
    assert!((15_000..=20_000).contains(&wait(first)), "until its first id is forgotten: {first}");
    assert!(wait(last) <= wait(first), "{last}");
    // Another session of its address goes on, those of other addresses, and its own duplicates.
    let mut beside = Client::connect(gateway.ws);
    for n in 0..5 {
        assert_eq!(ask(&mut beside, "beside", n).get("reason"), None, "{n}");
    }
    let mut other = Client::connect_from([127, 0, 0, 9], gateway.ws);
    for n in 0..5 {
        assert_eq!(ask(&mut other, "other", n).get("reason"), None, "{n}");
    }
    let again = ask(&mut greedy, "greedy", 0);
    assert_eq!((&again["payload"], again.get("reason")), (&json!(0), None));
}

#[test]
fn a_duplicate_of_a_finished_one_gets_the_stored_answer() {
    let instance = Instance::start(counting());
    let gateway = Gateway::start(&config(&instance));
    let mut client = Client::connect(gateway.ws);
    for _ in 0..5 {
        let answer = client.ask(json!({"msg_id": 1001, "id": "pay-1", "payload": 7}));
        assert_eq!((&answer["payload"], answer.get("status")), (&json!(0), None));
    }
    // Another id, no id and another session are other messages.
    assert_eq!(client.ask(json!({"msg_id": 1001, "id": "pay-2", "payload": 7}))["payload"], 1);
    assert_eq!(client.ask(json!({"msg_id": 1001, "payload": 7}))["payload"], 2);
    let mut other = Client::connect(gateway.ws);
    assert_eq!(other.ask(json!({"msg_id": 1001, "id": "pay-1", "payload": 7}))["payload"], 3);
    assert_eq!(instance.requests().len(), 4);
    let stats = gateway.admin_get("/routing/stats");
    assert_eq!(stats["queue"]["monitor"]["duplicate_count"], 4);
}

#[test]
fn the_same_id_with_another_message_is_bad() {
    let instance = Instance::start(counting());
    let gateway = Gateway::start(&config(&instance));
    let mut client = Client::connect(gateway.ws);
    client.ask(json!({"msg_id": 1001, "id": "pay-1", "payload": 7}));
    for message in [
        json!({"msg_id": 1001, "id": "pay-1", "payload": 8}),
        json!({"msg_id": 1002, "id": "pay-1", "payload": 7}),
    ] {
        let answer = client.ask(message);
        assert_eq!((&answer["status"], &answer["reason"]), (&json!(3), &json!("BAD_MESSAGE")));
    }
    assert_eq!(instance.requests().len(), 1);
}

#[test]
fn a_services_own_error_is_stored_too() {
    let instance = Instance::start(|call| {
        let response = BaseResponse { status: 9, ..ok(&call.batch.requests[0]) };
        Action::Reply(vec![response])
    });
    let gateway = Gateway::start(&config(&instance));
    let mut client = Client::connect(gateway.ws);
    for _ in 0..2 {
        assert_eq!(client.ask(json!({"msg_id": 1001, "id": "x"}))["status"], 9);
    }
    assert_eq!(instance.requests().len(), 1);
}

#[test]
fn a_refusal_before_dispatch_frees_the_id() {
    let mut instance = Instance::down(counting());
    let gateway = Gateway::start(&config(&instance));
    let mut client = Client::connect(gateway.ws);
    let message = json!({"msg_id": 1001, "id": "pay-1"});
    assert_eq!(client.ask(message.clone())["reason"], "UNAVAILABLE");
    instance.restart();
    eventually("it works", || (client.ask(message.clone())["payload"] == 0).then_some(()));
    assert_eq!(client.ask(message)["payload"], 0);
    assert_eq!(instance.requests().len(), 1);
}

#[test]
fn an_unknown_outcome_is_remembered() {
    let mut instance = Instance::start(counting());
    let gateway = Gateway::start(&config(&instance));
    let mut client = Client::connect(gateway.ws);
    instance.hold();
    let message = json!({"msg_id": 1001, "id": "pay-1"});
    let seq = client.send(message.clone());
    instance.wait_for(1);
    instance.kill();
    assert_eq!(client.answer(seq)["reason"], "OUTCOME_UNKNOWN");
    instance.release();
    instance.restart();
    gateway.wait_connected("logic", &["a"]);
    assert_eq!(client.ask(message)["reason"], "OUTCOME_UNKNOWN");
    assert_eq!(instance.requests().len(), 1, "not run again");
}

#[test]
fn a_large_answer_is_not_stored_and_its_duplicate_is_told_so() {
    let instance = Instance::echo();
    let gateway = Gateway::start(&config(&instance).shard("dedup.reply_bytes_max = 20"));
    let mut client = Client::connect(gateway.ws);
    let message = json!({"msg_id": 1001, "id": "x", "payload": "a text of more than 20 bytes"});
    assert_eq!(client.ask(message.clone())["payload"], message["payload"]);
    let answer = client.ask(message);
    assert_eq!((&answer["status"], &answer["reason"]), (&json!(6), &json!("DUPLICATE")));
    assert_eq!(instance.requests().len(), 1);
}

#[test]
fn an_id_is_forgotten_after_its_window() {
    let instance = Instance::start(counting());
    let gateway = Gateway::start(&config(&instance).shard("dedup.window_ms = 100"));
    let mut client = Client::connect(gateway.ws);
    let message = json!({"msg_id": 1001, "id": "x"});
    assert_eq!(client.ask(message.clone())["payload"], 0);
    eventually("it runs again", || (client.ask(message.clone())["payload"] == 1).then_some(()));
    eventually("nothing is kept", || {
        let stats = gateway.admin_get("/stats");
        (stats["dedup_entries"] == 0 && stats["dedup_bytes"] == 0).then_some(())
    });
}

#[test]
fn a_waiter_keeps_its_own_deadline() {
    let instance = Instance::start(counting());
    let gateway = Gateway::start(&config(&instance));
    let mut client = Client::connect(gateway.ws);
    instance.hold();
    let first = client.send(json!({"msg_id": 1001, "id": "x"}));
    let hasty = client.send(json!({"msg_id": 1001, "id": "x", "deadline_ms": 100}));
    let answer = client.answer(hasty);
    assert_eq!((&answer["status"], &answer["reason"]), (&json!(4), &json!("OUTCOME_UNKNOWN")));
    instance.release();
    assert_eq!(client.answer(first)["payload"], 0);
}

#[test]
fn deduplication_can_be_switched_off() {
    let instance = Instance::start(counting());
    let gateway = Gateway::start(&config(&instance).shard("dedup.enabled = false"));
    let mut client = Client::connect(gateway.ws);
    for n in 0..2 {
        assert_eq!(client.ask(json!({"msg_id": 1001, "id": "x"}))["payload"], n);
    }
    assert!(instance.requests().iter().all(|request| request.id == "x"));
}
