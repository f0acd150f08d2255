//! Rates of callers.

use serde_json::json;

use super::callers::{Grpc, Http};
use super::{DESK, SHOP, bare, counts, desk, hears, hears_nothing, people, rule, shop, user};
use crate::support::{Client, Config, Gateway};

fn config(rate: &str) -> Config {
    bare().key(&format!("push_caller = [{}, {}]", shop(rate), desk())).key(&rule(""))
}

#[test]
fn what_is_over_the_rate_of_pushes_is_refused_with_the_time_to_come_back() {
    let gateway = Gateway::start(&config(", pushes_per_s = 1"));
    let mut ann = user(&gateway, "ann");
    let push = |n: u64| json!({"to": {"users": ["ann"]}, "msg_id": 7001, "payload": n});
    let results = Http::connect(&gateway, SHOP).push((1..=3).map(push).collect());
    assert_eq!(results[0].get("status"), None, "{results:?}");
    for refused in &results[1..] {
        assert_eq!((&refused["status"], &refused["reason"]), (&json!(8), &json!("RATE_LIMITED")));
        let wait = refused["retry_after_ms"].as_u64();
        assert!((1..=1000).contains(&wait.unwrap_or(0)), "{refused}");
    }
    assert_eq!(hears(&mut ann), 1);
    hears_nothing(&mut ann);
    let refused = &gateway.admin_get("/stats")["push"]["callers"]["shop"]["refused"];
    assert_eq!(*refused, json!({"RATE_LIMITED": 2}));
}

#[test]
fn a_push_to_many_is_owed_and_until_then_a_whole_call_gets_429_by_each_door() {
    let gateway = Gateway::start(&config(", deliveries_per_s = 1"));
    let names = people();
    let mut clients: Vec<Client> = names.iter().map(|name| user(&gateway, name)).collect();
    let count = names.len() as u64;
    // The bucket holds one second's worth, so that each further delivery is a second of waiting.
    let mut shop = Http::connect(&gateway, SHOP);
    let to = json!({"users": names});
    let result = shop.sends(json!({"to": to, "msg_id": 7001, "payload": 1, "receipt": "COUNTED"}));
    assert_eq!(counts(&result)[0], count);
    let body = json!({"pushes": [{"to": to, "msg_id": 7001, "payload": 2}]}).to_string();
    let answer = shop.post(&body);
    assert_eq!((answer.status, &answer.json["reason"]), (429, &json!("RATE_LIMITED")));
    let seconds = answer.header("retry-after").and_then(|text| text.parse::<u64>().ok());
    assert!((1..=count).contains(&seconds.unwrap_or(0)), "{answer:?}");
    let wait = answer.json["retry_after_ms"].as_u64().unwrap_or(0);
    assert_eq!(seconds, Some(wait.div_ceil(1000)), "{answer:?}");
    // The rate is the caller's, whichever door it comes by, and no other caller's.
    let status = Grpc::connect(&gateway, SHOP).send(vec![super::grpc::push_to_users(&["ann"])]);
    assert_eq!(status.expect_err("it is over its rate").code(), tonic::Code::ResourceExhausted);
    assert_eq!(Http::connect(&gateway, DESK).post(&body).status, 200);
    for client in &mut clients {
        assert_eq!(hears(client), 1);
        assert_eq!(hears(client), 2, "of the desk");
        hears_nothing(client);
    }
    let stats = &gateway.admin_get("/stats")["push"]["callers"]["shop"];
    assert_eq!(
        (&stats["deliveries"], &stats["refused"]),
        (&json!(count), &json!({"RATE_LIMITED": 2}))
    );
}
