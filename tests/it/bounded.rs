//! Promise 5: every queue has a cap, and what is over it is refused with a reason.

use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::{Value, json};

use crate::support::{Client, Config, Gateway, Instance, Raw, eventually, frame, header};

const CLASSES: [&str; 4] = ["critical", "high", "normal", "low"];

/// A service behind four routes, 1000 critical to 4000 low; one message at a time, so that waiting
/// ones can be counted.
fn one_at_a_time(instance: &Instance) -> Config {
    let mut config = Config::new().service("logic", &[("a", instance.address)]);
    for (n, class) in CLASSES.into_iter().enumerate() {
        let first = (n as u32 + 1) * 1000;
        let lines = format!("priority = \"{class}\"\norder = \"none\"\ntimeout_ms = 60000");
        config = config.route(first, "logic", &lines);
    }
    config
        .shard("batch.in_flight_max = 1\nbatch.in_flight_long_max = 1")
        .shard("batch.items_max = 1")
        .shard("conn.unanswered_max = 1000")
}

fn waiting(gateway: &Gateway) -> u64 {
    gateway.admin_get("/routing/stats")["queue"]["size"].as_u64().expect("a number")
}

/// Clients that sent one message each, and what they sent.
type Senders = Vec<(Client, u64)>;

/// Lets `count` clients of as many addresses send a message each: one alone would be refused for
/// its share. Returns those whose message was not refused, and the refusals.
fn offer(gateway: &Gateway, id: u32, count: u64) -> (Senders, Vec<Value>) {
    static ADDRESSES: AtomicU16 = AtomicU16::new(1);
    let (mut taken, mut refusals) = (Vec::new(), Vec::new());
    for n in 0..count {
        let [a, b] = ADDRESSES.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let mut client = Client::connect_from([127, 254, a, b], gateway.ws);
        let seq = client.write(json!({"msg_id": id, "payload": n}));
        client.flush();
        // A refusal is sent at once: it comes before the answer to the ping behind the message.
        client.send_text(r#"{"type":"ping"}"#);
        match client.read() {
            pong if pong["type"] == "pong" => taken.push((client, seq)),
            refusal => refusals.push(refusal),
        }
    }
    (taken, refusals)
}

#[test]
fn the_less_urgent_are_refused_first() {
    let instance = Instance::echo();
    let config = one_at_a_time(&instance)
        .shard("queue.items_max = 100")
        .shard("queue.instance_percent = 100");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let mut client = Client::connect(gateway.ws);
    instance.hold();
    let first = client.send(json!({"msg_id": 1000, "payload": "in flight"}));
    let mut accepted: Senders = Vec::new();
    instance.wait_for(1);
    // 70 % for low, 85 % for normal, 95 % for high, 100 % for critical.
    for (id, level) in [(4000, 70), (3000, 85), (2000, 95), (1000, 100)] {
        let (taken, refusals) = offer(&gateway, id, 80);
        assert_eq!(waiting(&gateway), level, "{id}");
        for refusal in &refusals {
            assert_eq!((&refusal["status"], &refusal["reason"]), (&json!(8), &json!("QUEUE_FULL")));
            assert!(refusal["retry_after_ms"].as_u64() > Some(0), "{refusal}");
            assert_eq!(refusal["msg_id"], id);
        }
        assert_eq!(taken.len() + refusals.len(), 80);
        accepted.extend(taken);
    }
    let stats = gateway.admin_get("/routing/stats");
    assert_eq!(stats["backpressure"], json!({"usage_ratio": 1.0, "is_throttling": true}));
    // The gateway's own answers need no room in the queue.
    assert_eq!(client.ask(json!({"type": "ping"}))["type"], "pong");
    instance.release();
    accepted.push((client, first));
    for (mut client, seq) in accepted {
        assert_eq!(client.answer(seq).get("status"), None);
    }
    let stats = gateway.admin_get("/routing/stats");
    assert_eq!(stats["backpressure"], json!({"usage_ratio": 0.0, "is_throttling": false}));
}

#[test]
fn an_instance_holds_at_most_its_share() {
    let (full, other) = (Instance::echo(), Instance::echo());
    // 30 % of 50 messages: 15.
    let config = one_at_a_time(&full)
        .service("other", &[("b", other.address)])
        .route(5000, "other", "priority = \"low\"")
        .shard("queue.items_max = 50")
        .shard("queue.instance_percent = 30");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    gateway.wait_connected("other", &["b"]);
    let mut client = Client::connect(gateway.ws);
    full.hold();
    client.send(json!({"msg_id": 1000}));
    full.wait_for(1);
    let (taken, refusals) = offer(&gateway, 1000, 40);
    assert_eq!((waiting(&gateway), taken.len(), refusals.len()), (15, 15, 25));
    assert_eq!(Client::connect(gateway.ws).call(5000, json!(1))["payload"], 1);
}

#[test]
fn bytes_are_capped_as_messages_are() {
    let instance = Instance::echo();
    let config = one_at_a_time(&instance)
        .shard("queue.bytes_max = 65536")
        .shard("queue.instance_percent = 100")
        .shard("batch.bytes_max = 16384")
        .shard("conn.message_bytes_max = 16384");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    instance.hold();
    let payload = "x".repeat(10_000 - 2);
    let send = |n| {
        let mut client = Client::connect_from([127, 253, 0, n], gateway.ws);
        let seq = client.send(json!({"msg_id": 1000, "payload": payload}));
        (client, seq)
    };
    let mut senders = vec![send(1)];
    instance.wait_for(1);
    senders.extend((2..8).map(send));
    // One in flight, and six of 10,000 bytes below 65,536.
    eventually("they wait", || (waiting(&gateway) == 6).then_some(()));
    for (mut client, seq) in (8..21).map(send) {
        assert_eq!(client.answer(seq)["reason"], "QUEUE_FULL");
    }
    assert_eq!(gateway.admin_get("/stats")["queue_bytes"], 60_000);
    instance.release();
    for (mut client, seq) in senders {
        assert_eq!(client.answer(seq)["payload"], payload);
    }
}

#[test]
fn without_backpressure_only_the_cap_holds() {
    let instance = Instance::echo();
    let config = one_at_a_time(&instance)
        .shard("queue.backpressure = false")
        .shard("queue.items_max = 100")
        .shard("queue.instance_percent = 100");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let mut client = Client::connect(gateway.ws);
    instance.hold();
    client.send(json!({"msg_id": 4000}));
    instance.wait_for(1);
    let (taken, refusals) = offer(&gateway, 4000, 120);
    assert_eq!((taken.len(), refusals.len()), (100, 20));
}

#[test]
fn a_stored_answer_is_given_even_when_all_is_full() {
    let instance = Instance::echo();
    let config =
        one_at_a_time(&instance).shard("queue.items_max = 5").shard("queue.instance_percent = 100");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let mut client = Client::connect(gateway.ws);
    let first = json!({"msg_id": 4000, "id": "once", "payload": "stored"});
    assert_eq!(client.ask(first.clone())["payload"], "stored");
    instance.hold();
    client.send(json!({"msg_id": 1000}));
    instance.wait_for(2);
    let (taken, _) = offer(&gateway, 1000, 10);
    assert_eq!(taken.len(), 5);
    assert_eq!(client.ask(first)["payload"], "stored");
}

#[test]
fn a_batch_stays_below_its_byte_cap() {
    let instance = Instance::echo();
    let config = Config::new()
        .service("logic", &[("a", instance.address)])
        .route(1000, "logic", "order = \"none\"")
        .shard("batch.bytes_max = 131072")
        .shard("batch.in_flight_max = 1")
        .shard("conn.unanswered_bytes_max = 10000000");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let mut client = Client::connect(gateway.ws);
    let payload = "x".repeat(30_000);
    let seqs: Vec<u64> =
        (0..40).map(|_| client.send(json!({"msg_id": 1001, "payload": payload}))).collect();
    for seq in seqs {
        assert_eq!(client.answer(seq)["payload"], payload);
    }
    let sizes: Vec<usize> = instance.calls().iter().map(|call| call.body.len()).collect();
    assert!(sizes.iter().all(|size| *size <= 131_072), "{sizes:?}");
}

#[test]
fn a_message_over_the_limit_closes_with_1009() {
    let gateway = Gateway::start(&Config::new().shard("conn.message_bytes_max = 1000"));
    let mut raw = Raw::upgraded(gateway.ws);
    let text = |len: usize| {
        let start = r#"{"type":"ping","seq":1,"payload":""#;
        format!("{start}{}\"}}", "x".repeat(len - start.len() - 2))
    };
    raw.send(&frame(0x81, text(1000).as_bytes()));
    assert_eq!(raw.frame().json()["type"], "pong");
    raw.send(&[&header(0x81, true, 1001)[..], b"mask"].concat());
    assert_eq!(raw.closed(), Some(1009));
}

#[test]
fn an_answer_that_no_client_could_take_is_the_services_fault() {
    use crate::support::{Action, ok};
    let instance = Instance::start(|call| {
        let mut response = ok(&call.batch.requests[0]);
        response.payload = format!("\"{}\"", "x".repeat(300_000)).into();
        Action::Reply(vec![response])
    });
    let config = Config::new()
        .service("logic", &[("a", instance.address)])
        .route(1000, "logic", "")
        .shard("conn.outbox_bytes_max = 200000");
    let gateway = Gateway::start(&config);
    let mut client = Client::connect(gateway.ws);
    assert_eq!(client.call(1001, json!(1))["reason"], "BAD_SERVICE_REPLY");
    assert_eq!(client.ask(json!({"type": "ping"}))["type"], "pong");
}
