//! Promise 6: what is shared has a fair part for each owner. All addresses of 127.0.0.0/8 are this
//! machine, so each test has as many of them as it needs.

use std::sync::{Mutex, mpsc};

use serde_json::{Value, json};

use crate::auth::{SECRET, auth_of, token_of_tenant};
use crate::support::{Action, Client, Config, Gateway, Instance, eventually, ok};

/// A gateway before an instance that is held, with room for 85 normal messages that wait, and more
/// of a connection than that.
fn crowded(instance: &Instance) -> Gateway {
    crowded_by(Config::new(), instance)
}

fn crowded_by(config: Config, instance: &Instance) -> Gateway {
    let config = config
        .service("logic", &[("a", instance.address)])
        .route(1000, "logic", "timeout_ms = 60000\norder = \"none\"")
        .shard("queue.items_max = 100\nqueue.instance_percent = 100")
        .shard("conn.unanswered_max = 500")
        .shard("batch.in_flight_max = 1\nbatch.in_flight_long_max = 1\nbatch.items_max = 10");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    instance.hold();
    gateway
}

/// Sends `count` messages, all of which are let in or refused when this returns.
fn send(gateway: &Gateway, client: &mut Client, count: u64) -> Vec<u64> {
    let decided = |gateway: &Gateway| {
        let counter = |name| gateway.counter(name);
        counter("enqueued") + counter("queue_rejected")
    };
    let before = decided(gateway);
    let seqs = (0..count).map(|n| client.write(json!({"msg_id": 1001, "payload": n}))).collect();
    client.flush();
    eventually("all are decided about", || (decided(gateway) == before + count).then_some(()));
    seqs
}

fn is_refused(answer: &Value) -> bool {
    answer["reason"] == "QUEUE_FULL"
}

#[test]
fn who_fills_a_queue_is_refused_with_what_it_holds_and_nobody_else_is() {
    let instance = Instance::echo();
    let gateway = crowded(&instance);
    let mut greedy = Client::connect_from([127, 0, 0, 9], gateway.ws);
    let mut greedy_too = Client::connect_from([127, 0, 0, 9], gateway.ws);
    let many = send(&gateway, &mut greedy, 200);
    let more = send(&gateway, &mut greedy_too, 200);
    let refused = gateway.counter("queue_over_share");
    assert!(refused > 300, "{refused} of 400");
    assert_eq!(gateway.counter("queue_rejected"), refused, "the queue itself is not full");
    // Others of the same gateway, and of another address, find room.
    let mut others: Vec<Client> =
        (10..15).map(|n| Client::connect_from([127, 0, 0, n], gateway.ws)).collect();
    let asked: Vec<u64> = others.iter_mut().map(|c| send(&gateway, c, 1)[0]).collect();
    assert_eq!(gateway.counter("queue_rejected"), refused);
    instance.release();
    for (client, seq) in others.iter_mut().zip(asked) {
        let answer = client.answer(seq);
        assert_eq!(answer["status"].as_u64().unwrap_or(0), 0, "{answer}");
    }
    let answers: Vec<Value> = many.into_iter().map(|seq| greedy.answer(seq)).collect();
    let one = answers.iter().find(|answer| is_refused(answer)).expect("some are");
    let text = one["message"].as_str().expect("a text");
    assert!(text.contains("share") && text.ends_with(" wait)"), "{text}");
    assert!(one["retry_after_ms"].as_u64().is_some_and(|ms| (10..=5_000).contains(&ms)), "{one}");
    let let_in = answers.iter().filter(|answer| !is_refused(answer)).count();
    let of_other = more.into_iter().map(|seq| greedy_too.answer(seq));
    let let_in_too = of_other.filter(|answer| !is_refused(answer)).count();
    assert!(let_in >= 20 && let_in_too >= 5, "{let_in} of one session, {let_in_too} of another");
}

#[test]
fn users_and_tenants_behind_one_address_have_a_share_each() {
    let instance = Instance::echo();
    let config = auth_of(SECRET).key("auth.tenants = \"many\"").shards(1);
    let gateway = crowded_by(config, &instance);
    let signed_in = |user, tenant| {
        let mut client = Client::connect(gateway.ws);
        let token = token_of_tenant(user, tenant);
        let answer = client.ask(json!({"type": "auth", "payload": {"token": token}}));
        assert_eq!(answer["type"], "auth_ok", "{answer}");
        client
    };
    // One user with two connections, and clients of the same address that have not signed in.
    for mut client in
        [signed_in("alice", "a"), signed_in("alice", "a"), Client::connect(gateway.ws)]
    {
        let refused = gateway.counter("queue_over_share");
        send(&gateway, &mut client, 200);
        assert!(gateway.counter("queue_over_share") > refused + 100);
    }
    // The dashboard names them: the user once, whatever its connections.
    let mut held = eventually("the sample has them", || {
        let answer = gateway.admin_get("/live");
        let held = answer["held_back"].as_array().expect("a list");
        (held.len() == 2).then(|| held.clone())
    });
    held.sort_by_key(|owner| owner["user"].is_null());
    assert_eq!((&held[0]["user"], &held[0]["tenant"]), (&json!("alice"), &json!("a")));
    assert!(held[0]["refused"].as_u64() > Some(200), "{held:?}");
    assert_eq!((&held[1]["user"], &held[1]["instance"]), (&Value::Null, &json!("a")));
    let refused = gateway.counter("queue_rejected");
    let mut others = [signed_in("bob", "a"), signed_in("alice", "b")];
    let asked: Vec<u64> = others.iter_mut().map(|c| send(&gateway, c, 1)[0]).collect();
    assert_eq!(gateway.counter("queue_rejected"), refused);
    instance.release();
    for (client, seq) in others.iter_mut().zip(asked) {
        let answer = client.answer(seq);
        assert!(!is_refused(&answer), "{answer}");
    }
}

/// An instance that never answers a call with a message "slow" in it, and echoes all others.
fn never_slow() -> Instance {
    Instance::start(|call| {
        let requests = &call.batch.requests;
        match requests.iter().any(|request| request.payload[..] == *b"\"slow\"") {
            true => Action::Never,
            false => Action::Reply(requests.iter().map(ok).collect()),
        }
    })
}

#[test]
fn calls_that_take_long_hold_up_nobody_else_while_their_instance_lives() {
    let instance = never_slow();
    let config = Config::new().service("logic", &[("a", instance.address)]);
    let gateway = Gateway::start(&config.route(1000, "logic", "timeout_ms = 60000"));
    gateway.wait_connected("logic", &["a"]);
    let mut polite = Client::connect(gateway.ws);
    assert_eq!(polite.call(1001, json!(0))["payload"], 0);
    let mut slow: Vec<Client> = (0..30).map(|_| Client::connect(gateway.ws)).collect();
    for (n, client) in slow.iter_mut().enumerate() {
        client.send(json!({"msg_id": 1001, "payload": "slow"}));
        // Ten slots would be taken after ten of them.
        instance.wait_for(2 * n + 2);
        assert_eq!(polite.call(1001, json!(n))["payload"], n);
    }
    assert_eq!(gateway.admin_get("/stats")["calls_in_flight"], 30);
}

#[test]
fn an_instance_that_shows_no_life_gets_no_more_calls_than_it_has_slots() {
    let (end, ended) = mpsc::channel::<()>();
    let ended = Mutex::new(ended);
    let instance = Instance::start(move |_| {
        // Its only thread: not even a PING is answered before the test ends.
        let _ = ended.lock().expect("not poisoned").recv();
        Action::Never
    });
    let config = Config::new().service("logic", &[("a", instance.address)]).route(
        1000,
        "logic",
        "timeout_ms = 700",
    );
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let mut clients: Vec<Client> = (0..40).map(|_| Client::connect(gateway.ws)).collect();
    for client in &mut clients {
        client.send(json!({"msg_id": 1001, "payload": 1}));
    }
    for client in &mut clients {
        assert_eq!(client.answer(1)["status"], 4, "DEADLINE_EXCEEDED");
    }
    let calls = gateway.counter("calls");
    drop(end);
    assert!(calls <= 10, "{calls} calls");
}
