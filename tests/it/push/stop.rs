//! The ordered stop, while pushes come.

use rustix::process::Signal;
use serde_json::{Value, json};
use tonic::Code;

use super::callers::{Grpc, Http};
use super::{SHOP, config, counts, user};
use crate::support::{Gateway, Instance};

#[test]
fn a_gateway_that_stops_takes_no_push_and_what_it_had_taken_arrives_once_and_in_order() {
    let instance = Instance::echo();
    instance.hold();
    let config = config().service("logic", &[("a", instance.address)]).route(1000, "logic", "");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let mut ann = user(&gateway, "ann");
    // The gateway waits for the answer to it, so that it stops for as long as the test wants.
    ann.send(json!({"msg_id": 1001}));
    instance.wait_for(1);
    let (mut shop, mut grpc) = (Http::connect(&gateway, SHOP), Grpc::connect(&gateway, SHOP));
    let mut sent = Vec::new();
    let refused = loop {
        let n = sent.len();
        let push = json!({"to": {"users": ["ann"]}, "msg_id": 7001, "payload": n,
                          "receipt": "COUNTED"});
        let answer = shop.post(&json!({ "pushes": [push] }).to_string());
        if answer.status != 200 {
            break answer;
        }
        sent.push(counts(&answer.json["results"][0]));
        if n == 20 {
            gateway.signal(Signal::TERM);
        }
    };
    assert_eq!((refused.status, &refused.json["reason"]), (503, &json!("DRAINING")));
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    let status = grpc.send(vec![super::grpc::push_to_users(&["ann"])]).expect_err("it stops");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.metadata().get("grpc-retry-pushback-ms").is_some(), "{status:?}");
    instance.release();
    let (messages, _) = ann.until_close();
    let pushes = messages.iter().filter(|message| message["type"] == "push");
    let heard: Vec<u64> = pushes.filter_map(|push| push["payload"].as_u64()).collect();
    let written = |n: &u64| sent[*n as usize][0] == 1;
    let expected: Vec<u64> = (0..sent.len() as u64).filter(written).collect();
    assert_eq!(heard, expected, "what was counted as written: {sent:?}");
    assert!(heard.len() > 20 && messages.iter().any(|answer: &Value| answer["msg_id"] == 1001));
}
