//! People of groups as members and services see them: who is there, what a service said of them,
//! and who is away for a moment.

use serde_json::{Value, json};

use super::callers::Http;
use super::{SHOP, bare, shop, user};
use crate::support::{Client, Gateway, eventually};

/// A gateway whose rooms tell the names of who comes and goes, ten times a second.
fn gateway() -> Gateway {
    let room = "{ name = \"room:*\", join = \"user\", list = \"members\", presence = \"names\", \
                presence_ms = 100 }";
    let config = bare()
        .key(&format!("push_caller = [{}]", shop("")))
        .key(&format!("group = [{room}]"))
        .shard("session.grace_ms = 30000");
    Gateway::start(&config)
}

/// The next word about people.
#[track_caller]
fn people(client: &mut Client) -> Value {
    let told = client.read();
    assert_eq!(told["type"], "presence", "{told}");
    told["payload"].clone()
}

/// What a member sees of a user in the list.
fn listed(client: &mut Client, name: &str) -> Option<Value> {
    let list = client.call(9013, json!({"group": "room:7"}));
    let members = list["payload"]["members"].as_array()?.clone();
    members.into_iter().find(|member| member["user"] == name)
}

#[test]
fn what_a_service_says_of_a_member_is_shown_to_members_and_services() {
    let gateway = gateway();
    let mut shop = Http::connect(&gateway, SHOP);
    let mut ann = user(&gateway, "ann");
    let watch = json!({"group": "room:7", "presence": true});
    assert_eq!(ann.call(9010, watch).get("status"), None);
    assert_eq!(people(&mut ann)["joined"][0]["user"], "ann");
    let bob = user(&gateway, "bob");
    let join = |info: Value| json!({"users": ["bob"], "groups": ["room:7"], "info": info});
    assert_eq!(shop.call("/join", &join(json!({"name": "Bob \u{e9}", "level": 7})))["joined"], 1);
    let told = people(&mut ann);
    let info = json!({"name": "Bob \u{e9}", "level": 7});
    assert_eq!((&told["joined"][0]["user"], &told["joined"][0]["info"]), (&json!("bob"), &info));
    // Another info is told, one that is not given stays.
    assert_eq!(shop.call("/join", &join(json!([8])))["joined"], 1);
    let told = people(&mut ann);
    assert_eq!((&told["count"], &told["joined"][0]["info"]), (&json!(2), &json!([8])), "{told}");
    assert_eq!(shop.call("/join", &join(Value::Null))["joined"], 1);
    let seen = listed(&mut ann, "bob").expect("he is there");
    assert_eq!((&seen["info"], &seen["away"]), (&json!([8]), &json!(false)));
    assert_eq!(listed(&mut ann, "ann").expect("she is there")["info"], Value::Null);
    let page = shop.call("/members", &json!({"group": "room:7"}));
    let members = page["members"].as_array().expect("a list");
    let of = |name: &str| members.iter().find(|member| member["user"] == name).cloned();
    assert_eq!(of("bob").expect("he is there")["info"], json!([8]));
    assert_eq!(of("ann").expect("she is there").get("info"), None);
    // It ends with the membership.
    drop(bob);
    assert_eq!(people(&mut ann)["left"][0]["user"], "bob");
    let mut bob = user(&gateway, "bob");
    assert_eq!(bob.call(9010, json!({"group": "room:7"})).get("status"), None);
    assert_eq!(people(&mut ann)["joined"][0]["info"], Value::Null);
}

#[test]
fn who_is_away_for_a_moment_is_there_and_shown_as_away_to_those_who_ask() {
    let gateway = gateway();
    let mut shop = Http::connect(&gateway, SHOP);
    let mut ann = user(&gateway, "ann");
    let watch = json!({"group": "room:7", "presence": true});
    assert_eq!(ann.call(9010, watch).get("status"), None);
    assert_eq!(people(&mut ann)["count"], 1);
    let mut bob = user(&gateway, "bob");
    bob.send_text(r#"{"type": "resume", "payload": {}}"#);
    let secret = bob.read()["payload"].clone();
    assert_eq!(bob.call(9010, json!({"group": "room:7"})).get("status"), None);
    assert_eq!(people(&mut ann)["joined"][0]["user"], "bob");
    drop(bob);
    let is_away = |ann: &mut Client, away: bool| {
        eventually("the list says it", || {
            let seen = listed(ann, "bob").expect("he is there");
            (seen["away"] == away).then_some(())
        });
    };
    is_away(&mut ann, true);
    let page = shop.call("/members", &json!({"group": "room:7"}));
    let away: Vec<bool> = page["members"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|member| member["away"] == true)
        .collect();
    assert_eq!(away.iter().filter(|away| **away).count(), 1, "{page}");
    // A second tab is there, and so he is.
    let tab = user(&gateway, "bob");
    assert_eq!(shop.call("/join", &json!({"users": ["bob"], "groups": ["room:7"]}))["joined"], 2);
    is_away(&mut ann, false);
    drop(tab);
    is_away(&mut ann, true);
    let mut bob = user(&gateway, "bob");
    let shown = json!({"session": secret["session"], "secret": secret["secret"], "offset": 0,
                       "boot": bob.welcome["boot"]});
    bob.send_text(&json!({"type": "resume", "payload": shown}).to_string());
    assert_eq!(bob.read()["payload"]["outcome"], "resumed");
    is_away(&mut ann, false);
    super::hears_nothing(&mut ann);
}
