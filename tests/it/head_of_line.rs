//! Promise 6: one slow part hurts only itself.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Client, Config, Gateway, Instance, Raw, eventually, frame};

/// Longest time of an answer: far above what one takes, far below what a stalled one would.
const SOON: Duration = Duration::from_secs(2);

#[test]
fn a_stalled_instance_delays_neither_its_siblings_nor_other_services() {
    let (stalled, sibling, other) = (Instance::echo(), Instance::echo(), Instance::echo());
    let config = Config::new()
        .service("logic", &[("a", stalled.address), ("b", sibling.address)])
        .service("chat", &[("c", other.address)])
        .route(1000, "logic", "hash_on = \"key\"\ntimeout_ms = 60000")
        .route(2000, "chat", "")
        .shard("conn.unanswered_max = 2000");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a", "b"]);
    gateway.wait_connected("chat", &["c"]);
    stalled.hold();
    let mut client = Client::connect(gateway.ws);
    let keys: Vec<String> = (0..400).map(|n| format!("k{n}")).collect();
    let seqs: Vec<u64> = keys
        .iter()
        .map(|key| client.write(json!({"msg_id": 1001, "key": key, "payload": key})))
        .collect();
    client.flush();
    // All messages to b are answered while those to a wait.
    let answered = eventually("those of b are answered", || {
        let stats = gateway.admin_get("/stats");
        let waiting = stats["unanswered"].as_u64().expect("a number");
        let ok = stats["counters"]["dispatch_ok"].as_u64().expect("a number");
        (waiting + ok == 400 && ok as usize == sibling.requests().len() && ok > 50).then_some(ok)
    });
    let mut others = Client::connect(gateway.ws);
    let started = Instant::now();
    for n in 0..50 {
        assert_eq!(others.call(2001, json!(n))["payload"], n);
    }
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    assert!(answered < 400, "both have keys");
    stalled.release();
    for (seq, key) in seqs.into_iter().zip(keys) {
        assert_eq!(client.answer(seq)["payload"], key);
    }
}

#[test]
fn a_client_that_floods_or_does_not_read_delays_no_other() {
    let instance = Instance::echo();
    let config = Config::new()
        .service("logic", &[("a", instance.address)])
        .route(1000, "logic", "")
        .shard("conn.send_buffer_bytes = 4096");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    // This client writes without end and reads nothing.
    let mut rude = Raw::upgraded(gateway.ws);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut seq = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let mut bytes = Vec::new();
                for _ in 0..100 {
                    seq += 1;
                    let text = format!(r#"{{"msg_id":1001,"seq":{seq},"payload":"flood"}}"#);
                    bytes.extend(frame(0x81, text.as_bytes()));
                }
                rude.try_send(&bytes);
            }
            let _ = rude.stream().shutdown(std::net::Shutdown::Both);
        });
        instance.wait_for(1000);
        let mut polite = Client::connect(gateway.ws);
        let mut times: Vec<Duration> = (0..50)
            .map(|n| {
                let started = Instant::now();
                assert_eq!(polite.call(1001, json!(n))["payload"], n);
                started.elapsed()
            })
            .collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        times.sort();
        assert!(times[25] < Duration::from_millis(200), "{:?}", times[25]);
        assert!(times[49] < SOON, "{:?}", times[49]);
    });
}
