//! Promise 2: the messages of one session reach the instance in the order sent.

use serde_json::json;

use crate::auth::{SECRET, auth_of, token};
use crate::support::{Client, Config, Gateway, Instance, eventually};

#[test]
fn a_sessions_messages_arrive_in_order_among_concurrent_batches() {
    let instance = Instance::echo();
    let config = Config::new()
        .service("logic", &[("a", instance.address)])
        .route(1000, "logic", "")
        // Small batches and many slots: whatever could be overtaken would be.
        .shard("batch.items_max = 3")
        .shard("batch.window_ms = 1");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(gateway.ws)).collect();
    instance.hold();
    for _ in 0..100 {
        for client in &mut clients {
            client.send(json!({"msg_id": 1001, "payload": "x"}));
        }
    }
    // Held, so each of the eight has exactly one batch there, and they are there at once.
    eventually("a batch of each session arrives", || {
        let sessions: std::collections::BTreeSet<_> =
            instance.requests().into_iter().map(|r| r.session).collect();
        (sessions.len() == 8).then_some(())
    });
    for client in &clients {
        let of_one = instance
            .calls()
            .into_iter()
            .filter(|call| call.batch.requests.iter().any(|r| r.session == client.session()));
        assert_eq!(of_one.count(), 1, "one batch of a stream in flight");
    }
    assert!(instance.calls().len() > 1, "several batches in flight");
    instance.release();
    for client in &mut clients {
        for seq in 1..=100 {
            assert_eq!(client.answer(seq).get("status"), None);
        }
    }
    for client in &clients {
        let session = client.session();
        let seqs: Vec<u64> = instance
            .requests()
            .iter()
            .filter(|request| request.session == session)
            .map(|request| request.seq)
            .collect();
        assert_eq!(seqs, (1..=100).collect::<Vec<_>>());
    }
}

#[test]
fn an_unordered_route_uses_several_slots_for_one_session() {
    for (order, at_once) in [("none", 8), ("session", 1)] {
        let instance = Instance::echo();
        let config = Config::new()
            .service("logic", &[("a", instance.address)])
            .route(1000, "logic", &format!("order = \"{order}\""))
            .shard("conn.unanswered_max = 100")
            .shard("batch.items_max = 2");
        let gateway = Gateway::start(&config);
        gateway.wait_connected("logic", &["a"]);
        let mut client = Client::connect(gateway.ws);
        instance.hold();
        let seqs: Vec<u64> = (0..40).map(|_| client.send(json!({"msg_id": 1001}))).collect();
        eventually("all are taken in", || {
            (gateway.admin_get("/stats")["unanswered"] == 40).then_some(())
        });
        // All slots that there are for it: of `batch.in_flight_max` = 10 two are kept for others.
        // On a busy machine the first calls have become long before the last ones begin, and make
        // room for more.
        eventually("the calls arrive", || (instance.calls().len() >= at_once).then_some(()));
        let in_flight = gateway.admin_get("/stats")["calls_in_flight"].as_u64();
        let most = if order == "session" { 1 } else { 40 / 2 };
        assert!((at_once as u64..=most).contains(&in_flight.expect("a number")), "{order}");
        instance.release();
        for seq in seqs {
            assert_eq!(client.answer(seq).get("status"), None);
        }
    }
}

#[test]
fn a_stream_that_was_refused_starts_again_in_order() {
    use crate::support::{Action, ok};
    use std::sync::atomic::{AtomicUsize, Ordering};
    let calls = AtomicUsize::new(0);
    // Every other call is refused unstarted.
    let instance = Instance::start(move |call| {
        if calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            return Action::Reset(h2::Reason::REFUSED_STREAM);
        }
        Action::Reply(call.batch.requests.iter().map(ok).collect())
    });
    let config = Config::new()
        .service("logic", &[("a", instance.address)])
        .route(1000, "logic", "")
        .shard("batch.items_max = 4")
        .shard("retry.delay_ms = 5");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let mut client = Client::connect(gateway.ws);
    let seqs: Vec<u64> = (0..20).map(|_| client.write(json!({"msg_id": 1001}))).collect();
    client.flush();
    for &seq in &seqs {
        let answer = client.answer(seq);
        assert_eq!(answer.get("status"), None, "{answer}");
    }
    let ran = instance.calls().into_iter().skip(1).step_by(2);
    let order: Vec<u64> = ran.flat_map(|call| call.batch.requests).map(|r| r.seq).collect();
    assert_eq!(order, seqs);
}

#[test]
fn a_message_after_the_sign_in_does_not_overtake_those_before_it() {
    for shards in [1, 2] {
        let instance = Instance::echo();
        let config = auth_of(SECRET)
            .shards(shards)
            .service("logic", &[("a", instance.address)])
            .route(1000, "logic", "");
        let gateway = Gateway::start(&config);
        gateway.wait_connected("logic", &["a"]);
        instance.hold();
        // With two shards some of them move, and some live where they are.
        let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(gateway.ws)).collect();
        for client in &mut clients {
            client.send(json!({"msg_id": 1001}));
        }
        eventually("the first of each is there", || (instance.requests().len() == 8).then_some(()));
        for (n, client) in clients.iter_mut().enumerate() {
            client.write(json!({"msg_id": 1001}));
            let token = token(&format!("user-{n}"));
            client.write(json!({"type": "auth", "payload": {"token": token}}));
            client.write(json!({"msg_id": 1001}));
            client.flush();
        }
        eventually("all is read", || {
            (gateway.counter("business_messages") >= 16 + u64::from(shards == 1) * 8).then_some(())
        });
        instance.release();
        for client in &mut clients {
            for seq in [1, 2, 4] {
                assert_eq!(client.answer(seq).get("status"), None);
            }
        }
        for client in &mut clients {
            // With the sign-in a session of its own begins.
            let signed_in = client.answer(3)["payload"]["session"].clone();
            let sessions = [client.session().into(), signed_in];
            let requests = instance.requests();
            let own = requests.iter().filter(|r| sessions.contains(&r.session.clone().into()));
            assert_eq!(own.map(|request| request.seq).collect::<Vec<_>>(), [1, 2, 4]);
        }
    }
}
