//! Pushes and groups through the real process: every door, both shards, real sockets.

mod callers;
mod events;
mod explained;
mod feed;
mod groups;
mod grpc;
mod http;
mod http_calls;
mod members;
mod order;
mod rates;
mod rules;
mod services;
mod slow;
mod stop;
mod tenants;
mod unsent;

use serde_json::{Value, json};

use crate::auth::{SECRET, auth_of, token};
use crate::support::{Client, Config, Gateway, several};

use callers::Http;

/// Token of the caller `shop`, which may do everything in the groups `room:*`.
const SHOP: &str = "token-of-the-shop-0123";
/// Token of the caller `desk`, which may push to users alone, by class normal at most.
const DESK: &str = "token-of-the-desk-0123";

/// Table of the caller `shop`, with further keys.
fn shop(more: &str) -> String {
    format!(
        "{{ name = \"shop\", token = \"{SHOP}\", groups = [\"room:*\", \"other:*\"], \
         to = [\"session\", \"user\", \"group\", \"tenant\", \"everyone\"], \
         priority_max = \"critical\", may = [\"push\", \"join\", \"read\", \"disconnect\"]{more} }}"
    )
}

/// Table of the caller `desk`.
fn desk() -> String {
    format!(
        "{{ name = \"desk\", token = \"{DESK}\", to = [\"user\"], priority_max = \"normal\", \
         may = [\"push\"] }}"
    )
}

/// Rules that let anybody join and publish, with further keys.
fn rooms(more: &str) -> String {
    format!("[{{ name = \"room:*\", join = \"anybody\", publish = \"members\"{more} }}]")
}

/// A gateway of two shards with both callers and rooms, for users who sign in.
fn config() -> Config {
    bare().key(&format!("push_caller = [{}, {}]", shop(""), desk())).key(&rule(""))
}

/// The same without callers and groups.
fn bare() -> Config {
    auth_of(SECRET).key("push.listen = \"127.0.0.1:0\"")
}

fn rule(more: &str) -> String {
    format!("group = {}", rooms(more))
}

/// A client who signed in.
#[track_caller]
fn user(gateway: &Gateway, name: &str) -> Client {
    let mut client = Client::connect(gateway.ws);
    let answer = client.ask(json!({"type": "auth", "payload": {"token": token(name)}}));
    assert_eq!(answer["type"], "auth_ok", "{answer}");
    client.welcome["session"] = answer["payload"]["session"].clone();
    client
}

/// Joins a group, and gives the answer's payload.
#[track_caller]
fn join(client: &mut Client, group: &str) -> Value {
    let answer = client.call(9010, json!({"group": group}));
    assert_eq!(answer.get("status"), None, "{answer}");
    answer["payload"].clone()
}

/// A client who is in `room:7` without having signed in.
#[track_caller]
fn guest(gateway: &Gateway) -> Client {
    let mut client = Client::connect(gateway.ws);
    join(&mut client, "room:7");
    client
}

/// Sends pushes from `from`, whose payloads are their numbers, each to `to` and counted.
#[track_caller]
fn tell(shop: &mut Http, to: &Value, numbers: std::ops::Range<u64>) -> Vec<Value> {
    let push = |n| json!({"to": to, "msg_id": 7001, "payload": n, "receipt": "COUNTED"});
    shop.push(numbers.map(push).collect())
}

/// Payload of the next push to a client.
#[track_caller]
fn hears(client: &mut Client) -> Value {
    let push = client.read();
    assert_eq!((&push["type"], &push["msg_id"]), (&json!("push"), &json!(7001)), "{push}");
    push["payload"].clone()
}

/// Checks that a client gets nothing before the answer to what it asks now: its connection is in
/// order, so what was pushed before would come first.
#[track_caller]
fn hears_nothing(client: &mut Client) {
    let seq = client.send(json!({"msg_id": 9000}));
    let next = client.read();
    assert_eq!(next["seq"], seq, "{next}");
}

/// The counts of a result: they must be the sums of its shards, and of their parts.
#[track_caller]
fn counts(result: &Value) -> [u64; 6] {
    let of = |counts: &Value| {
        ["written", "queued", "dropped", "offline", "kept", "unknown"]
            .map(|name| counts[name].as_u64().unwrap_or(0))
    };
    let sum = |[written, queued, dropped, offline, _, unknown]: [u64; 6]| {
        written + queued + dropped + offline + unknown
    };
    let whole = of(&result["counts"]);
    let addressees = result["counts"]["addressees"].as_u64().unwrap_or(0);
    assert_eq!(sum(whole), addressees, "{result}");
    let mut by_shard = [0; 6];
    for shard in result["shards"].as_array().into_iter().flatten() {
        let part = of(&shard["counts"]);
        assert_eq!(shard["counts"]["addressees"].as_u64().unwrap_or(0), sum(part), "{result}");
        by_shard.iter_mut().zip(part).for_each(|(all, one)| *all += one);
    }
    assert_eq!(by_shard, whole, "{result}");
    whole
}

/// Counts of addressees to all of whom it was written.
fn written(count: u64) -> [u64; 6] {
    [count, 0, 0, 0, 0, 0]
}

/// Names of users, one for each shard and more, as their shard is a hash of their name.
fn people() -> Vec<String> {
    (0..4 * several()).map(|n| format!("user-{n}")).collect()
}
