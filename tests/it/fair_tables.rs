//! Promise 6: tables that are shared keep something for tenants, addresses, users and sessions that
//! hold little, whatever a greedy one holds.

use serde_json::{Value, json};

use crate::auth::{SECRET, auth_of, token, token_of_tenant};
use crate::support::{Client, Config, Gateway, Instance, Raw, eventually};

/// Another address of this machine.
const OTHER: [u8; 4] = [127, 0, 0, 9];

/// A gateway of one shard where users sign in.
fn users() -> Config {
    auth_of(SECRET).shards(1)
}

fn sign_in(client: &mut Client, token: &str) {
    let answer = client.ask(json!({"type": "auth", "payload": {"token": token}}));
    assert_eq!(answer["type"], "auth_ok", "{answer}");
}

/// Sends a message with an id; the reason if it is refused.
fn ask(client: &mut Client, id: usize) -> Option<Value> {
    let message = json!({"msg_id": 1001, "id": id.to_string(), "payload": id});
    client.ask(message).get("reason").cloned()
}

#[test]
fn ids_are_kept_for_other_sessions_addresses_users_and_tenants() {
    let instance = Instance::echo();
    let config = users().service("logic", &[("a", instance.address)]).route(1000, "logic", "");
    let gateway = Gateway::start(&config.shard("dedup.entries_max = 320"));
    let mut sessions: Vec<_> = (0..4).map(|_| Client::connect(gateway.ws)).collect();
    // One session takes all that it gets; then others of its address do.
    let mut let_in =
        |session: usize| (0..320).filter(|&id| ask(&mut sessions[session], id).is_none()).count();
    assert_eq!([0, 1, 2, 3].map(&mut let_in), [240, 10, 5, 3]);
    let mut other = Client::connect_from(OTHER, gateway.ws);
    assert_eq!((0..5).find_map(|id| ask(&mut other, id)), None, "another address");
    // Users behind the greedy address are owners of their own.
    for token in [token("alice"), token_of_tenant("bob", "acme")] {
        let mut user = Client::connect(gateway.ws);
        sign_in(&mut user, &token);
        assert_eq!((0..3).find_map(|id| ask(&mut user, id)), None);
    }
    assert_eq!(gateway.counter("dedup_over_share"), 4 * 320 - 258);
}

#[test]
fn an_address_with_many_sessions_leaves_ids_to_other_addresses_and_users() {
    let instance = Instance::echo();
    let config = users().service("logic", &[("a", instance.address)]).route(1000, "logic", "");
    let gateway = Gateway::start(&config.shard("dedup.entries_max = 160"));
    let one_each = (0..160).filter(|&id| ask(&mut Client::connect(gateway.ws), id).is_none());
    assert_eq!(one_each.count(), 120 + 10, "half of what is kept for sessions");
    assert_eq!(ask(&mut Client::connect_from(OTHER, gateway.ws), 0), None);
    let mut user = Client::connect(gateway.ws);
    sign_in(&mut user, &token("alice"));
    assert_eq!(ask(&mut user, 0), None);
}

#[test]
fn places_of_those_about_to_sign_in_are_kept_for_other_addresses() {
    let config = users().key("auth.required = true").shard("limits.unauthenticated_max = 160");
    let gateway = Gateway::start(&config);
    let unknown = || gateway.admin_get("/stats")["unauthenticated"].clone();
    let _silent: Vec<_> = (0..120).map(|_| Raw::connect(gateway.ws)).collect();
    eventually("all are counted", || (unknown() == 120).then_some(()));
    let head = Raw::connect(gateway.ws).head();
    assert!(head.starts_with("HTTP/1.1 429 ") && head.contains("Retry-After: 1"), "{head}");
    assert_eq!(gateway.counter("unauthenticated_over_share"), 1);
    let mut other = Client::connect_from(OTHER, gateway.ws);
    sign_in(&mut other, &token("alice"));
    assert_eq!(unknown(), 120, "it has signed in");
}

#[test]
fn connections_are_kept_for_other_addresses() {
    let gateway = Gateway::start(&Config::new().shards(1).shard("conn.connections_max = 32"));
    let _here: Vec<_> = (0..30).map(|_| Client::connect(gateway.ws)).collect();
    assert!(Raw::connect(gateway.ws).head().starts_with("HTTP/1.1 429 "));
    assert_eq!(gateway.counter("connections_over_share"), 1);
    let _other = Client::connect_from(OTHER, gateway.ws);
}
