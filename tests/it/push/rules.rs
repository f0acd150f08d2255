//! A reload of rules of groups, of callers, and of the files with their tokens.

use rustix::process::Signal;
use serde_json::{Value, json};

use super::callers::Http;
use super::{SHOP, bare, hears, join, rule, shop, tell};
use crate::support::{Client, Config, Gateway, Instance, eventually};

const OLD: &str = "token-of-the-old-times-01";
const NEW: &str = "token-of-the-new-times-01";

/// A configuration whose version is `n`: as its route differs from that of another one, shards tell
/// when they work by it.
fn version(instance: &Instance, n: u32) -> Config {
    bare().service("logic", &[("a", instance.address)]).route(
        1000,
        "logic",
        &format!("timeout_ms = {}", 1_000 + n),
    )
}

/// Puts another configuration in force.
#[track_caller]
fn reload(gateway: &Gateway, config: &Config) {
    let before = gateway.versions();
    gateway.rewrite(config);
    gateway.signal(Signal::HUP);
    eventually("every shard works by it", || {
        gateway.versions().iter().zip(&before).all(|(now, before)| now > before).then_some(())
    });
}

#[track_caller]
fn reason(client: &mut Client, msg_id: u32, payload: Value) -> String {
    client.call(msg_id, payload)["reason"].as_str().unwrap_or("").to_owned()
}

fn publishes(client: &mut Client) -> String {
    reason(client, 9015, json!({"group": "room:7", "msg_id": 7001, "payload": 1}))
}

#[test]
fn rules_change_for_groups_that_are_there_and_members_stay() {
    let instance = Instance::echo();
    let base = |n| version(&instance, n).key(&format!("push_caller = [{}]", shop("")));
    let gateway = Gateway::start(&base(0).key(&rule("")));
    let mut shop = Http::connect(&gateway, SHOP);
    let mut ann = Client::connect(gateway.ws);
    join(&mut ann, "room:7");
    assert_eq!(publishes(&mut ann), "");
    let closed = "group = [{ name = \"room:*\", join = \"user\", publish = \"none\" }]";
    reload(&gateway, &base(1).key(closed));
    let mut late = Client::connect(gateway.ws);
    assert_eq!(reason(&mut late, 9010, json!({"group": "room:7"})), "FORBIDDEN");
    assert_eq!(publishes(&mut ann), "FORBIDDEN");
    tell(&mut shop, &json!({"groups": ["room:7"]}), 2..3);
    assert_eq!(hears(&mut ann), 2, "who is in stays in");
    // Without a rule there are no such groups for callers either.
    reload(&gateway, &base(2).key("group = [{ name = \"hall:*\", join = \"anybody\" }]"));
    let push = json!({"to": {"groups": ["room:7"]}, "msg_id": 7001, "payload": 3});
    assert_eq!(shop.push(vec![push])[0]["reason"], "NO_ROUTE");
    assert_eq!(reason(&mut late, 9010, json!({"group": "room:7"})), "FORBIDDEN");
    reload(&gateway, &base(3).key(&rule("")));
    join(&mut late, "room:7");
    tell(&mut shop, &json!({"groups": ["room:7"]}), 4..5);
    assert_eq!(hears(&mut late), 4);
}

#[test]
fn callers_and_their_token_files_are_read_again_and_bad_ones_leave_all_as_it_was() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("token");
    let instance = Instance::echo();
    let config = |n, groups: &str| {
        let path = path.display().to_string();
        version(&instance, n).key(&rule("")).key(&format!(
            "push_caller = [{{ name = \"shop\", token_file = \"{path}\", to = [\"group\"], \
             groups = [\"{groups}\"] }}]"
        ))
    };
    std::fs::write(&path, format!("{OLD}\n")).expect("written");
    let gateway = Gateway::start(&config(0, "room:*"));
    let (mut old, mut new) = (Http::connect(&gateway, OLD), Http::connect(&gateway, NEW));
    let body = json!({"pushes": [{"to": {"groups": ["room:7"]}, "msg_id": 7001}]}).to_string();
    assert_eq!((old.post(&body).status, new.post(&body).status), (200, 401));

    // The same configuration, another token in the file.
    std::fs::write(&path, format!("{NEW}\n")).expect("written");
    gateway.signal(Signal::HUP);
    eventually("the new token is good", || (new.post(&body).status == 200).then_some(()));
    assert_eq!(old.post(&body).status, 401, "on the same connection");

    // A file that holds no token, then none at all: all stays as it was, and the log says why.
    for broken in ["short", ""] {
        std::fs::write(&path, broken).expect("written");
        let before = gateway.log().matches("token").count();
        gateway.signal(Signal::HUP);
        eventually("the log says it", || {
            (gateway.log().matches("token").count() > before).then_some(())
        });
        assert_eq!(new.post(&body).status, 200);
        assert!(!gateway.log().contains(broken) || broken.is_empty(), "no content of the file");
    }
    std::fs::write(&path, format!("{NEW}\n")).expect("written");
    reload(&gateway, &config(1, "hall:*"));
    let refused = new.post(&body);
    assert_eq!(refused.json["results"][0]["reason"], "FORBIDDEN", "{refused:?}");
}
