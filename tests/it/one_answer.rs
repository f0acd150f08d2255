//! Promise 1: every message that was read gets exactly one answer, whatever its service does.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shardgate::demo::proto::BaseResponse;

use crate::support::{
    Action, Arrived, Client, Config, Gateway, Instance, eventually, named, ok, owners, several,
};

/// A configuration that reconnects soon, so that tests do not wait for it.
fn impatient(config: Config) -> Config {
    config.shard("backend.backoff_ms = 50").shard("backend.backoff_max_ms = 100")
}

const NAMES: [&str; 3] = ["a", "b", "c"];

#[test]
fn an_instance_that_dies_under_load_costs_no_answer_and_moves_only_its_keys() {
    let mut instances: Vec<Instance> = NAMES.map(|n| Instance::start(named(n))).into();
    let list: Vec<_> = NAMES.into_iter().zip(instances.iter().map(|i| i.address)).collect();
    let config = Config::new().shards(several()).service("logic", &list).route(
        1000,
        "logic",
        "hash_on = \"key\"",
    );
    let gateway = Gateway::start(&impatient(config));
    gateway.wait_connected("logic", &NAMES);
    let before = owners(&mut Client::connect(gateway.ws));
    assert_eq!(before.values().collect::<BTreeSet<_>>().len(), 3, "{before:?}");

    // Four clients talk all the time, in bursts of 60 keys.
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut during = BTreeMap::new();
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let talk = || {
            let mut client = Client::connect(gateway.ws);
            let mut answers = Vec::new();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let burst: Vec<u64> = (0..60)
                    .map(|n| client.write(json!({"msg_id": 1001, "key": format!("room-{n}")})))
                    .collect();
                client.flush();
                answers.extend(burst.into_iter().map(|seq| client.answer(seq)));
            }
            // No answer came twice: the next message is the answer to the next request.
            let last = client.send(json!({"msg_id": 9000}));
            assert_eq!(client.read()["seq"], last);
            answers
        };
        let talkers: Vec<_> = (0..4).map(|_| scope.spawn(talk)).collect();
        let seen = instances[1].requests().len();
        instances[1].wait_for(seen + 200);
        instances[1].kill();
        eventually("its loss is seen", || (gateway.connected("logic", "b") == 0).then_some(()));
        assert!(gateway.counter("backend_disconnects") > 0);
        during = owners(&mut Client::connect(gateway.ws));
        let seen = instances[0].requests().len();
        instances[0].wait_for(seen + 200);
        instances[1].restart();
        gateway.wait_connected("logic", &NAMES);
        let seen = instances[1].requests().len();
        instances[1].wait_for(seen + 200);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        talkers.into_iter().flat_map(|t| t.join().expect("every message is answered")).collect()
    });
    for (key, owner) in &before {
        match owner.as_str() {
            "b" => assert_ne!(during[key], "b", "{key}"),
            _ => assert_eq!(&during[key], owner, "{key} moved, and had no reason to"),
        }
    }
    assert_eq!(owners(&mut Client::connect(gateway.ws)), before);
    let errors: Vec<_> = answers.iter().filter(|a| a.get("status").is_some()).collect();
    for error in &errors {
        // The first was sent and not answered; messages that were not sent went to the next
        // instance.
        assert_eq!(error["reason"], "OUTCOME_UNKNOWN", "{error}");
    }
    assert!(errors.len() < answers.len() / 2, "{} of {}", errors.len(), answers.len());
}

#[test]
fn without_an_instance_messages_fail_fast_and_work_again_when_one_is_back() {
    let mut instances: Vec<Instance> = NAMES.map(|n| Instance::start(named(n))).into();
    let list: Vec<_> = NAMES.into_iter().zip(instances.iter().map(|i| i.address)).collect();
    let config = Config::new().service("logic", &list).route(1000, "logic", "");
    let gateway = Gateway::start(&impatient(config));
    gateway.wait_connected("logic", &NAMES);
    let mut client = Client::connect(gateway.ws);
    assert_eq!(client.call(1001, json!(1)).get("status"), None);
    instances.iter_mut().for_each(Instance::kill);
    eventually("their loss is seen", || {
        NAMES.iter().all(|name| gateway.connected("logic", name) == 0).then_some(())
    });
    for _ in 0..20 {
        let started = Instant::now();
        let answer = client.call(1001, json!(1));
        assert_eq!((&answer["status"], &answer["reason"]), (&json!(14), &json!("UNAVAILABLE")));
        assert!(answer["retry_after_ms"].as_u64() > Some(0), "{answer}");
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    }
    instances[2].restart();
    let answer = eventually("it works again", || {
        let answer = client.call(1001, json!(1));
        answer.get("status").is_none().then_some(answer)
    });
    assert_eq!(answer["payload"], "c");
}

#[test]
fn a_service_that_never_listened_is_unavailable_and_the_gateway_starts() {
    let instance = Instance::down(named("a"));
    let config =
        Config::new().service("logic", &[("a", instance.address)]).route(1000, "logic", "");
    let gateway = Gateway::start(&impatient(config));
    let mut client = Client::connect(gateway.ws);
    assert_eq!(client.call(1001, json!(1))["reason"], "UNAVAILABLE");
    assert_eq!(gateway.admin("/health").0, 200);
    // Attempts that fail are not connections that are lost.
    assert!(gateway.counter("backend_connect_failed") > 0);
    assert_eq!(gateway.counter("backend_disconnects"), 0);
}

#[test]
fn a_service_that_never_answers_costs_the_deadline() {
    let instance = Instance::start(|_| Action::Never);
    let config = Config::new().service("logic", &[("a", instance.address)]).route(
        1000,
        "logic",
        "timeout_ms = 400",
    );
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let mut client = Client::connect(gateway.ws);
    // The client's own deadline, and the route's.
    for (message, ms) in [
        (json!({"msg_id": 1001, "deadline_ms": 150}), 150),
        (json!({"msg_id": 1001}), 400),
        (json!({"msg_id": 1001, "deadline_ms": 60_000}), 400),
    ] {
        let started = Instant::now();
        let answer = client.ask(message);
        let took = started.elapsed().as_millis();
        let expected = (&json!(4), &json!("OUTCOME_UNKNOWN"));
        assert_eq!((&answer["status"], &answer["reason"]), expected);
        assert!((ms..ms + 2000).contains(&took), "{took} instead of {ms}");
    }
    // Behind one that is in flight, a message of the same session is never sent.
    let first = client.write(json!({"msg_id": 1001, "deadline_ms": 300}));
    let second = client.write(json!({"msg_id": 1001, "deadline_ms": 100}));
    client.flush();
    eventually("the first is sent", || (instance.requests().len() >= 4).then_some(()));
    let both = [client.answer(second), client.answer(first)];
    let reasons = both.map(|a| a["reason"].as_str().map(str::to_owned));
    // The messages may have left together.
    let sent = instance.requests().len();
    let unknown = Some("OUTCOME_UNKNOWN".to_owned());
    let expired = Some("EXPIRED".to_owned());
    assert_eq!(reasons, [if sent == 5 { unknown.clone() } else { expired }, unknown]);
}

/// Sends eight messages of eight clients in one batch, answered by `script`; returns the answers by
/// number.
fn misbehave(script: impl Fn(&Arrived) -> Action + Send + Sync + 'static) -> Vec<Value> {
    let instance = Instance::echo();
    let config = Config::new()
        .service("logic", &[("a", instance.address)])
        .route(1000, "logic", "")
        // All that follow wait until the first call, which is held, is over.
        .shard("batch.in_flight_max = 1");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let mut clients: Vec<Client> = (0..9).map(|_| Client::connect(gateway.ws)).collect();
    instance.hold();
    let mut blocker = clients.remove(8);
    let blocked = blocker.send(json!({"msg_id": 1001, "payload": "first"}));
    instance.wait_for(1);
    for (n, client) in clients.iter_mut().enumerate() {
        client.send(json!({"msg_id": 1001, "payload": n}));
    }
    eventually("eight wait", || {
        (gateway.admin_get("/routing/stats")["queue"]["size"] == 8).then_some(())
    });
    instance.script(script);
    instance.release();
    assert_eq!(blocker.answer(blocked)["payload"], "first");
    let answers = clients.iter_mut().map(|client| client.answer(1)).collect();
    assert_eq!(instance.calls()[1].batch.requests.len(), 8, "one batch");
    // A batch that went wrong hurts no later one.
    instance.script(|call| Action::Reply(call.batch.requests.iter().map(ok).collect()));
    assert_eq!(clients[0].call(1001, json!("after"))["payload"], "after");
    answers
}

/// Numbers of the messages with an OK. All others must be BAD_SERVICE_REPLY.
fn good(answers: &[Value]) -> Vec<usize> {
    let is_ok = |(n, answer): (usize, &Value)| {
        if answer.get("status").is_none() {
            assert_eq!(answer["payload"], n);
            return Some(n);
        }
        assert_eq!(answer["reason"], "BAD_SERVICE_REPLY", "{answer}");
        assert_eq!(answer["status"], 13);
        None
    };
    answers.iter().enumerate().filter_map(is_ok).collect()
}

/// Answer to the request with this payload.
fn of(call: &Arrived, payload: &str) -> BaseResponse {
    let found = call.batch.requests.iter().find(|r| r.payload == payload.as_bytes());
    ok(found.expect("all eight are in it"))
}

fn echo(call: &Arrived) -> Vec<BaseResponse> {
    call.batch.requests.iter().map(ok).collect()
}

#[test]
fn responses_may_come_in_any_order() {
    let answers = misbehave(|call| Action::Reply(echo(call).into_iter().rev().collect()));
    assert_eq!(good(&answers), [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn a_missing_response_fails_only_its_message() {
    let answers = misbehave(|call| {
        let missing = of(call, "3").request_id;
        Action::Reply(echo(call).into_iter().filter(|r| r.request_id != missing).collect())
    });
    assert_eq!(good(&answers), [0, 1, 2, 4, 5, 6, 7]);
}

#[test]
fn a_response_given_twice_fails_only_its_message() {
    let answers = misbehave(|call| {
        let mut responses = echo(call);
        responses.push(BaseResponse { payload: b"99"[..].into(), ..of(call, "5") });
        Action::Reply(responses)
    });
    assert_eq!(good(&answers), [0, 1, 2, 3, 4, 6, 7]);
}

#[test]
fn responses_to_nobody_are_ignored() {
    let answers = misbehave(|call| {
        let mut responses = echo(call);
        for request_id in [0, 1, u64::MAX] {
            responses.push(BaseResponse { request_id, ..Default::default() });
        }
        Action::Reply(responses)
    });
    assert_eq!(good(&answers), [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn an_empty_answer_and_garbage_fail_the_batch_and_nothing_else() {
    assert!(good(&misbehave(|_| Action::Reply(Vec::new()))).is_empty());
    assert!(good(&misbehave(|_| Action::Message(vec![0xff; 40]))).is_empty());
}

#[test]
fn a_failed_call_tells_each_message_that_its_outcome_is_unknown() {
    for code in [2, 8, 13] {
        for answer in misbehave(move |_| Action::Status(code)) {
            assert_eq!(
                (&answer["status"], &answer["reason"]),
                (&json!(code), &json!("OUTCOME_UNKNOWN"))
            );
        }
    }
}
