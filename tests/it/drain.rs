//! Drain: messages that were read are answered, then every client gets a Close frame.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Action, Client, Config, Gateway, Instance, Raw, eventually, several};

fn config(instance: &Instance) -> Config {
    Config::new().service("logic", &[("a", instance.address)]).route(
        1000,
        "logic",
        "timeout_ms = 60000",
    )
}

/// Number of draining notices, and the messages with a seq by seq.
fn sorted(messages: Vec<Value>) -> (usize, BTreeMap<u64, Value>) {
    let draining = messages.iter().filter(|m| m["type"] == "draining").count();
    let answers = messages.into_iter().filter_map(|m| Some((m["seq"].as_u64()?, m)));
    let mut by_seq = BTreeMap::new();
    for (seq, message) in answers {
        assert_eq!(by_seq.insert(seq, message), None, "two answers to {seq}");
    }
    (draining, by_seq)
}

#[test]
fn what_was_read_is_answered_and_then_the_gateway_ends_with_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let instance = Instance::echo();
        let mut gateway = Gateway::start(&config(&instance).shards(several()));
        gateway.wait_connected("logic", &["a"]);
        let mut busy: Vec<Client> = (0..4).map(|_| Client::connect(gateway.ws)).collect();
        let mut idle = Client::connect(gateway.ws);
        instance.hold();
        for client in &mut busy {
            for n in 1..=5 {
                client.send(json!({"msg_id": 1001, "payload": n}));
            }
        }
        eventually("all are read", || (gateway.counter("business_messages") == 20).then_some(()));
        gateway.signal(signal);
        // A client without messages under way is closed at once, and no new client gets in.
        let (messages, code) = idle.until_close();
        assert_eq!((messages[0]["type"].as_str(), code), (Some("draining"), Some(1001)));
        assert!(messages[0]["payload"]["reconnect_after_ms"].as_u64() > Some(0));
        eventually("connections are refused", || TcpStream::connect(gateway.ws).err());
        let (status, health) = gateway.admin("/health");
        assert_eq!((status, &health["status"]), (503, &json!("draining")));
        // New messages of clients that are still connected are refused.
        let late = busy[0].send(json!({"msg_id": 1001}));
        assert!(gateway.runs());
        let refusal = busy[0].answer(late);
        assert_eq!((&refusal["status"], &refusal["reason"]), (&json!(14), &json!("DRAINING")));
        assert_eq!(instance.requests().iter().filter(|r| r.seq == late).count(), 0);
        instance.release();
        for client in &mut busy {
            let (messages, code) = client.until_close();
            let (_, answers) = sorted(messages);
            assert_eq!(code, Some(1001));
            for n in 1..=5 {
                assert_eq!(answers[&n]["payload"], n);
            }
        }
        assert_eq!(gateway.wait().code(), Some(0));
    }
}

#[test]
fn what_a_service_ran_is_answered_although_clients_go_on_talking() {
    let instance = Instance::echo();
    let mut gateway = Gateway::start(&config(&instance).shards(several()));
    gateway.wait_connected("logic", &["a"]);
    let sent = AtomicUsize::new(0);
    let talk = || {
        let mut client = Client::connect(gateway.ws);
        let session = client.session();
        let mut messages = Vec::new();
        for seq in 1.. {
            // Two under way at any time.
            let open =
                client.try_send_text(&format!(r#"{{"msg_id":1001,"seq":{seq},"payload":{seq}}}"#));
            sent.fetch_add(1, Ordering::Relaxed);
            if seq == 1 && open {
                continue;
            }
            match client.read_or_close() {
                Ok(message) => messages.push(message),
                Err(code) => {
                    assert_eq!(code, Some(1001));
                    break;
                }
            }
        }
        let (draining, answers) = sorted(messages);
        assert_eq!(draining, 1);
        (session, answers)
    };
    let ends: Vec<_> = std::thread::scope(|scope| {
        let talkers: Vec<_> = (0..6).map(|_| scope.spawn(talk)).collect();
        instance.wait_for(300);
        gateway.signal(Signal::TERM);
        talkers.into_iter().map(|t| t.join().expect("it is sent away")).collect()
    });
    assert_eq!(gateway.wait().code(), Some(0));
    let ran = instance.requests();
    for (session, answers) in ends {
        let own = ran.iter().filter(|request| request.session == session);
        let ran: Vec<u64> = own.map(|request| request.seq).collect();
        for seq in &ran {
            assert_eq!(answers[seq]["payload"], *seq, "ran, and was not answered");
        }
        for (seq, answer) in &answers {
            let draining = answer["reason"] == "DRAINING";
            assert!(draining != ran.contains(seq), "{answer}");
        }
    }
}

#[test]
fn what_has_no_answer_in_the_grace_gets_an_error() {
    let instance = Instance::start(|_| Action::Never);
    let config = config(&instance)
        .key("stop.grace_ms = 300")
        .shard("batch.in_flight_max = 1\nbatch.in_flight_long_max = 1");
    let mut gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let (mut sent, mut waits) = (Client::connect(gateway.ws), Client::connect(gateway.ws));
    sent.send(json!({"msg_id": 1001}));
    instance.wait_for(1);
    waits.send(json!({"msg_id": 1001}));
    eventually("both are read", || (gateway.counter("enqueued") == 2).then_some(()));
    let started = Instant::now();
    gateway.signal(Signal::TERM);
    for (client, reason) in [(&mut sent, "OUTCOME_UNKNOWN"), (&mut waits, "DRAINING")] {
        let (messages, code) = client.until_close();
        let (draining, answers) = sorted(messages);
        assert_eq!((draining, code), (1, Some(1001)));
        assert_eq!(answers[&1]["reason"], reason);
    }
    assert!(started.elapsed() >= Duration::from_millis(300));
    assert_eq!(gateway.wait().code(), Some(1));
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    eventually("it is logged", || gateway.log().contains("cut_off=2").then_some(()));
}

#[test]
fn a_second_signal_ends_at_once_with_1() {
    let instance = Instance::start(|_| Action::Never);
    let mut gateway = Gateway::start(&config(&instance));
    gateway.wait_connected("logic", &["a"]);
    let mut client = Client::connect(gateway.ws);
    client.send(json!({"msg_id": 1001}));
    instance.wait_for(1);
    gateway.signal(Signal::TERM);
    assert_eq!(client.read()["type"], "draining");
    let started = Instant::now();
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait().code(), Some(1));
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[test]
fn a_client_that_does_not_answer_the_close_does_not_hold_the_stop_up() {
    let config = Config::new().shard("conn.close_timeout_ms = 200");
    let mut gateway = Gateway::start(&config);
    let mut rude = crate::support::Raw::upgraded(gateway.ws);
    let started = Instant::now();
    gateway.signal(Signal::TERM);
    assert_eq!(rude.closed(), Some(1001));
    assert_eq!(gateway.wait().code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn a_handshake_that_the_stop_interrupts_gets_503() {
    let gateway = Gateway::start(&Config::new());
    let mut raw = Raw::connect(gateway.ws);
    raw.send(b"GET /ws HTTP/1.1\r\nHost: a\r\n");
    eventually("it is accepted", || (gateway.counter("receives") == 1).then_some(()));
    gateway.signal(Signal::TERM);
    let head = raw.head();
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
}
