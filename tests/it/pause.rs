//! A pause of the process (SIGSTOP; a frozen cgroup and a core taken away are the same to it)
//! closes nobody and speaks against no instance: the gateway did not read and did not write.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::support::{Client, Config, Gateway, Instance, Raw, eventually, frame};

/// Connections with an answer due. The first to be looked at after a pause were one in a hundred.
const CLIENTS: usize = 1_000;
/// Longer than each timeout below, and than twice the heartbeat.
const PAUSE: Duration = Duration::from_millis(4_500);

#[test]
fn after_a_pause_of_the_process_nobody_is_closed_and_every_answer_comes() {
    let instance = Instance::echo();
    let config = Config::new()
        .service("logic", &[("a", instance.address)])
        .route(1000, "logic", "timeout_ms = 60000")
        .shard("conn.write_timeout_ms = 100")
        .shard("conn.heartbeat_ms = 2000")
        .shard("conn.handshake_timeout_ms = 2000")
        .shard("conn.frames_per_s_max = 50")
        .key("ejection.failures = 1")
        .key("health.check_ms = 0");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    instance.hold();
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::connect(gateway.ws)).collect();
    for client in &mut clients {
        client.send(json!({"msg_id": 1001, "payload": 1}));
    }
    // Its deadline passes in the pause: that was promised to the client, whatever we did.
    let late = clients[0].send(json!({"msg_id": 1001, "payload": 2, "deadline_ms": 1000}));
    let mut half = Raw::connect(gateway.ws);
    half.send(&Raw::request(gateway.ws).as_bytes()[..20]);
    eventually("all are read", || {
        (gateway.counter("business_messages") == CLIENTS as u64 + 1).then_some(())
    });
    gateway.stop();
    instance.release();
    let mut busy = Raw::over(clients[1].stream().try_clone().expect("a socket"));
    // More than may come in a second, over a time in which they may.
    (0..100).for_each(|_| busy.send(&frame(0x89, b"")));
    std::thread::sleep(PAUSE);
    gateway.signal(Signal::CONT);
    for client in &mut clients {
        assert_eq!(client.answer(1)["payload"], 1);
    }
    let answer = clients[0].answer(late);
    assert!(["OUTCOME_UNKNOWN", "EXPIRED"].contains(&answer["reason"].as_str().unwrap_or("OK")));
    half.send(&Raw::request(gateway.ws).as_bytes()[20..]);
    assert!(half.head().starts_with("HTTP/1.1 101 "));
    assert_eq!(gateway.counter("closed"), 0);
    assert!(gateway.counter("pauses") >= 1);
    let log = gateway.log();
    assert!(log.contains("shard_paused: ") && !log.contains("instance_ejected: "), "{log}");
}
