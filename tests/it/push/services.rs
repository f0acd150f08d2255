//! Services that join, leave and push in their answers.

use serde_json::{Value, json};
use shardgate::demo::proto::{BaseRequest, BaseResponse, BatchResponse};
use shardgate::wire::push::generated::{PushMessage, To};

use super::{hears, hears_nothing, people, rule, user};
use crate::auth::{SECRET, auth_of};
use crate::support::{Action, Client, Gateway, Instance, eventually, ok};

fn to_groups(group: &str) -> To {
    To { groups: vec![group.into()], ..Default::default() }
}

fn to_users(users: &[String]) -> To {
    To { users: users.to_vec(), ..Default::default() }
}

fn push(to: To, payload: &str) -> PushMessage {
    let payload = payload.as_bytes().to_vec().into();
    PushMessage { to: Some(to), msg_id: 7001, payload, ..Default::default() }
}

/// An instance that does as a message says: `{"join": [], "leave": [], "to": "", "say": ""}`. It
/// pushes `say` to the group or the users of `to`.
fn obedient() -> Instance {
    Instance::start(|call| {
        let mut batch = BatchResponse::default();
        for request in &call.batch.requests {
            let asked: Value = serde_json::from_slice(&request.payload).unwrap_or_default();
            batch.responses.push(answer(request, &asked));
            let to = match &asked["to"] {
                Value::String(group) => to_groups(group),
                Value::Array(_) => to_users(&texts(&asked["to"])),
                _ => continue,
            };
            batch.pushes.push(push(to, &asked["say"].to_string()));
        }
        Action::Push(batch)
    })
}

fn answer(request: &BaseRequest, asked: &Value) -> BaseResponse {
    BaseResponse { join: texts(&asked["join"]), leave: texts(&asked["leave"]), ..ok(request) }
}

fn texts(list: &Value) -> Vec<String> {
    let texts = list.as_array().into_iter().flatten().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}

fn start(instance: &Instance, rights: &str) -> Gateway {
    let config = auth_of(SECRET)
        .key(&rule(""))
        .service_with(&format!("push = [{rights}]"), "chat", &[("a", instance.address)])
        .route(1000, "chat", "");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("chat", &["a"]);
    gateway
}

/// Sends a message to the service, which is answered first.
#[track_caller]
fn asks(client: &mut Client, payload: Value) {
    let seq = client.send(json!({"msg_id": 1001, "payload": payload}));
    let answer = client.read();
    assert_eq!((&answer["seq"], answer.get("status")), (&json!(seq), None), "{answer}");
}

#[test]
fn the_answer_comes_first_then_joins_then_pushes() {
    let instance = obedient();
    let gateway = start(&instance, "\"user\", \"group:room:*\", \"join:room:*\"");
    let mut members: Vec<Client> = people().iter().map(|name| user(&gateway, name)).collect();
    for member in &mut members {
        asks(member, json!({"join": ["room:7"]}));
        let joined = member.read();
        assert_eq!(
            (&joined["type"], &joined["payload"]["group"]),
            (&json!("joined"), &json!("room:7"))
        );
    }
    // Who joins and speaks in one answer hears itself: it was in before the push was numbered.
    let mut late = Client::connect(gateway.ws);
    asks(&mut late, json!({"join": ["room:7"], "to": "room:7", "say": "hello"}));
    let mut own = [late.read(), late.read()];
    own.sort_by_key(|message| message["type"] == "push");
    let [joined, pushed] = own;
    assert_eq!(joined["type"], "joined", "{joined}");
    assert_eq!(
        (&pushed["type"], &pushed["payload"]),
        (&json!("push"), &json!("hello")),
        "{pushed}"
    );
    for member in &mut members {
        assert_eq!(hears(member), "hello");
    }
    asks(&mut late, json!({"leave": ["room:7"], "to": "room:7", "say": "gone"}));
    let left = late.read();
    assert_eq!((&left["type"], &left["payload"]["group"]), (&json!("left"), &json!("room:7")));
    for member in &mut members {
        assert_eq!(hears(member), "gone");
    }
    hears_nothing(&mut late);
    // Users of other shards than that of the asker.
    asks(&mut late, json!({"to": people(), "say": "you all"}));
    for member in &mut members {
        assert_eq!(hears(member), "you all");
    }
    assert_eq!(gateway.counter("pushes_refused"), 0);
}

#[test]
fn what_a_service_may_not_is_refused_counted_and_logged_and_its_answer_goes_out() {
    let instance = obedient();
    let gateway = start(&instance, "\"group:room:7\"");
    let mut ann = user(&gateway, "ann");
    asks(&mut ann, json!({"join": ["room:7", "room:8"]}));
    assert_eq!(gateway.counter("group_joins_refused"), 2);
    super::join(&mut ann, "room:7");
    super::join(&mut ann, "room:8");
    asks(&mut ann, json!({"leave": ["room:7"]}));
    assert_eq!(gateway.counter("group_joins_refused"), 3);
    asks(&mut ann, json!({"to": ["ann"], "say": "to a user"}));
    asks(&mut ann, json!({"to": "room:8", "say": "to another room"}));
    asks(&mut ann, json!({"to": "lobby", "say": "to no room"}));
    assert_eq!(gateway.counter("pushes_refused"), 3);
    asks(&mut ann, json!({"to": "room:7", "say": "to its room"}));
    assert_eq!(hears(&mut ann), "to its room");
    hears_nothing(&mut ann);
    let line = eventually("a line of the log says it", || {
        let log = gateway.log();
        log.lines().find(|line| line.contains("push_refused")).map(str::to_owned)
    });
    assert!(line.contains("service=\"chat\"") || line.contains("service=chat"), "{line}");
}

#[test]
fn a_service_without_rights_can_say_nothing_and_answers_as_ever() {
    let instance = obedient();
    let gateway = start(&instance, "");
    let mut ann = user(&gateway, "ann");
    asks(&mut ann, json!({"join": ["room:7"], "to": "room:7", "say": "hello"}));
    asks(&mut ann, json!({"to": ["ann"], "say": "hello"}));
    hears_nothing(&mut ann);
    let refused = ["group_joins_refused", "pushes_refused"].map(|name| gateway.counter(name));
    assert_eq!(refused, [1, 2]);
}
