//! Promise 20 through the real process: services hear of sessions and groups, in order.

use prost::Message as _;
use serde_json::json;
use shardgate::demo::proto::{BaseRequest, SessionEvent};

use super::{join, people, rule, user};
use crate::auth::{SECRET, auth_of};
use crate::support::{Action, Config, Gateway, Instance, eventually, ok};

const EVENTS: &str = "events = [\"connected\", \"disconnected\", \"joined\", \"left\"]\n\
                      event_groups = [\"room:*\"]";

fn config(instance: &Instance) -> Config {
    auth_of(SECRET)
        .key(&rule(""))
        .shard("session.grace_ms = 300")
        .service_with(EVENTS, "chat", &[("a", instance.address)])
        .route(1000, "chat", "")
}

fn start(instance: &Instance) -> Gateway {
    let gateway = Gateway::start(&config(instance));
    gateway.wait_connected("chat", &["a"]);
    gateway
}

/// A request in short: of a message its id, of an event what it says.
fn text(request: &BaseRequest) -> String {
    if request.msg_id < 9100 {
        return request.msg_id.to_string();
    }
    let event = SessionEvent::decode(request.payload.clone()).expect("an event");
    let parts = [event.kind, event.group, event.reason];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// What the service got about a user so far.
fn heard_of(instance: &Instance, user: &str) -> Vec<String> {
    instance.requests().iter().filter(|request| request.user == user).map(text).collect()
}

#[track_caller]
fn hears(instance: &Instance, user: &str, expected: &[&str]) {
    let mut heard = Vec::new();
    eventually(&format!("{expected:?} of {user}"), || {
        heard = heard_of(instance, user);
        (heard.len() >= expected.len()).then_some(())
    });
    assert_eq!(heard, expected);
}

#[test]
fn a_service_hears_of_sessions_and_groups_in_order_on_every_shard() {
    let instance = Instance::echo();
    let gateway = start(&instance);
    for name in people() {
        let mut client = user(&gateway, &name);
        client.call(1000, json!(1));
        join(&mut client, "room:7");
        client.call(1000, json!(2));
        client.close(1000);
        let all = [
            "connected",
            "1000",
            "joined room:7",
            "1000",
            "left room:7 CLOSED",
            "disconnected CLOSED",
        ];
        hears(&instance, &name, &all);
    }
    let metrics = gateway.request("GET /metrics", "", "").1;
    assert!(metrics.contains("kind=\"disconnected\",result=\"ok\""), "{metrics}");
    assert_eq!(gateway.counter("events_lost"), 0);
}

#[test]
fn a_service_that_comes_up_later_hears_what_happened_before() {
    let mut instance =
        Instance::down(|call| Action::Reply(call.batch.requests.iter().map(ok).collect()));
    let gateway = Gateway::start(&config(&instance));
    let name = people().remove(0);
    let mut client = user(&gateway, &name);
    join(&mut client, "room:7");
    let waiting = || gateway.admin_get("/stats")["events_waiting"].as_u64();
    eventually("two events wait", || (waiting() == Some(2)).then_some(()));
    instance.restart();
    hears(&instance, &name, &["connected", "joined room:7"]);
    eventually("none waits", || (waiting() == Some(0)).then_some(()));
}

#[test]
fn a_connection_that_is_resumed_in_time_is_no_event_and_one_that_is_not_is() {
    let instance = Instance::echo();
    let gateway = start(&instance);
    let name = people().remove(0);
    let mut client = user(&gateway, &name);
    let resumed = client.ask(json!({"type": "resume", "payload": {}}))["payload"].clone();
    hears(&instance, &name, &["connected"]);
    drop(client);
    let mut again = user(&gateway, &name);
    let asked = json!({"session": resumed["session"], "secret": resumed["secret"]});
    let answer = again.ask(json!({"type": "resume", "payload": asked}));
    assert_eq!(answer["payload"]["outcome"], "resumed", "{answer}");
    // Its numbers go on where they were.
    again.ask(json!({"type": "ping"}));
    again.call(1000, json!(1));
    hears(&instance, &name, &["connected", "1000"]);
    drop(again);
    hears(&instance, &name, &["connected", "1000", "disconnected EXPIRED"]);
}
