//! Members: who may join and leave, who comes back, and what the groups keep for them.

use serde_json::{Value, json};

use super::callers::Http;
use super::{SHOP, bare, config, counts, guest, hears, hears_nothing, join, shop, tell, user};
use crate::auth::{SECRET, claims, signed};
use crate::support::{Client, Config, Gateway, eventually};

fn with(rules: &str) -> Config {
    bare().key(&format!("push_caller = [{}]", shop(""))).key(&format!("group = [{rules}]"))
}

fn room() -> Value {
    json!({"groups": ["room:7"]})
}

fn offsets(page: &Value) -> Vec<u64> {
    let pushes = page["payload"]["pushes"].as_array().into_iter().flatten();
    pushes.filter_map(|push| push["offset"].as_u64()).collect()
}

#[track_caller]
fn reason(client: &mut Client, msg_id: u32, payload: Value) -> String {
    client.call(msg_id, payload)["reason"].as_str().unwrap_or("").to_owned()
}

#[test]
fn after_the_answer_to_leave_nothing_comes_and_to_join_or_leave_twice_is_no_mistake() {
    let gateway = Gateway::start(&config());
    let mut shop = Http::connect(&gateway, SHOP);
    let (mut ann, mut bob) = (user(&gateway, "ann"), guest(&gateway));
    join(&mut ann, "room:7");
    join(&mut ann, "room:7");
    assert_eq!(counts(&tell(&mut shop, &room(), 1..2)[0])[0], 2, "nobody twice");
    assert_eq!((hears(&mut ann), hears(&mut bob)), (json!(1), json!(1)));
    for _ in 0..2 {
        let left = ann.call(9011, json!({"group": "room:7"}));
        assert_eq!(left.get("status"), None, "{left}");
    }
    tell(&mut shop, &room(), 2..3);
    assert_eq!(hears(&mut bob), 2);
    hears_nothing(&mut ann);
    assert_eq!(ann.call(9012, json!({}))["payload"], json!({"groups": []}));
}

#[test]
fn a_member_that_comes_back_gets_what_was_pushed_meanwhile_or_is_told_of_a_gap() {
    let gateway = Gateway::start(&config().shard("groups.lag_bytes_max = 4096"));
    let mut shop = Http::connect(&gateway, SHOP);
    for (count, outcome) in [(5, "resumed"), (200, "gap")] {
        let mut ann = user(&gateway, "ann");
        ann.send_text(r#"{"type": "resume", "payload": {}}"#);
        let mut shown = ann.read()["payload"].clone();
        let position = join(&mut ann, "room:7")["position"].clone();
        let start = position["offset"].as_u64().unwrap_or(0);
        shown["offset"] = json!(1);
        shown["boot"] = ann.welcome["boot"].clone();
        shown["groups"] = json!([{"group": "room:7", "position": position}]);
        drop(ann);
        eventually("she is away", || {
            (gateway.admin_get("/stats")["sessions_away"] == 1).then_some(())
        });
        for n in 0..count {
            let fate = counts(&tell(&mut shop, &room(), n..n + 1)[0]);
            assert_eq!((fate[0], fate[3], fate[4]), (0, 1, 1), "offline and kept: {fate:?}");
        }
        let mut ann = user(&gateway, "ann");
        let keys = ["session", "secret", "offset", "boot", "groups"];
        let shown: Value =
            keys.map(|key| (key.to_owned(), shown[key].clone())).into_iter().collect();
        ann.send_text(&json!({"type": "resume", "payload": shown}).to_string());
        let resumed = ann.read()["payload"].clone();
        let group = &resumed["groups"][0];
        assert_eq!((&resumed["outcome"], &group["outcome"]), (&json!("resumed"), &json!(outcome)));
        if outcome == "resumed" {
            for n in 0..count {
                let push = ann.read();
                assert_eq!((&push["offset"], &push["payload"]), (&json!(start + n + 1), &json!(n)));
            }
        }
        // Either way it goes on with what comes next.
        tell(&mut shop, &room(), 900..901);
        assert_eq!(hears(&mut ann), 900);
        ann.close(1000);
        assert_eq!(ann.until_close().1, Some(1000));
    }
}

#[test]
fn newcomers_read_the_history_join_since_a_place_or_get_the_newest_of_each_key() {
    let rules = "{ name = \"room:*\", join = \"anybody\", keep = \"history\", history_items = 4 }, \
                 { name = \"other:*\", join = \"anybody\", keep = \"last\" }";
    let gateway = Gateway::start(&with(rules));
    let mut shop = Http::connect(&gateway, SHOP);
    let results = tell(&mut shop, &room(), 1..7);
    let epoch = results[0]["positions"][0]["position"]["epoch"].clone();
    let mut late = Client::connect(gateway.ws);
    assert_eq!(reason(&mut late, 9014, json!({"group": "room:7", "limit": 9})), "FORBIDDEN");
    let since = |n: u64| json!({"group": "room:7", "since": {"epoch": epoch, "offset": n}});
    let told = late.call(9010, since(4))["payload"].clone();
    assert_eq!(told["outcome"], "resumed", "{told}");
    assert_eq!((hears(&mut late), hears(&mut late)), (json!(5), json!(6)));
    let page = late.call(9014, json!({"group": "room:7", "limit": 9}));
    assert_eq!(offsets(&page), [3, 4, 5, 6], "{page}");
    let page = late.call(9014, json!({"group": "room:7", "limit": 2, "newest_first": true}));
    assert_eq!(offsets(&page), [6, 5], "{page}");
    let epoch = "00000000";
    let asked = json!({"group": "room:7", "since": {"epoch": epoch, "offset": 6}, "limit": 9});
    assert_eq!(late.call(9014, asked)["payload"]["gap"], true, "another life of the group");

    let to = || json!({"groups": ["other:1"]});
    let push = |n: u64, key| json!({"to": to(), "msg_id": 7001, "payload": n, "key": key});
    shop.push(vec![push(1, "a"), push(2, "b"), push(3, "a"), push(4, "")]);
    let position = join(&mut late, "other:1")["position"].clone();
    assert_eq!(position["offset"], 4, "{position}");
    assert_eq!((hears(&mut late), hears(&mut late)), (json!(2), json!(3)));
    hears_nothing(&mut late);
}

#[test]
fn who_may_join_is_said_by_the_rule_and_a_stranger_learns_nothing() {
    let rules = "{ name = \"room:7\", join = \"user\" }, { name = \"room:8\" }, \
                 { name = \"room:*\", join = \"claim\", members_max = 1 }";
    let gateway = Gateway::start(&with(rules).shard("groups.per_session_max = 2"));
    let mut guest = Client::connect(gateway.ws);
    let answers: Vec<Value> = ["room:7", "room:8", "room:9", "nothing:1"]
        .map(|group| guest.call(9010, json!({"group": group})))
        .map(|mut answer| answer.as_object_mut().map(|all| all.remove("seq")).map(|_| answer))
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(answers[0]["reason"], "FORBIDDEN");
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    for (group, why) in
        [("", "BAD_MESSAGE"), ("a b", "BAD_MESSAGE"), (&"x".repeat(129), "TOO_LARGE")]
    {
        assert_eq!(reason(&mut guest, 9010, json!({"group": group})), why, "{group}");
    }
    // By a claim one is in at once, and told.
    let mut own = claims("ann", 600);
    own["groups"] = json!(["room:9", "room:7"]);
    let token = signed(&json!({"alg": "HS256", "kid": "k"}), &own, SECRET.as_bytes());
    let signs_in = |client: &mut Client| {
        client.send(json!({"type": "auth", "payload": {"token": token}}));
        client.read()["type"].clone()
    };
    let mut ann = Client::connect(gateway.ws);
    assert_eq!(signs_in(&mut ann), "auth_ok");
    let joined = ann.read();
    assert_eq!(
        (&joined["type"], &joined["payload"]["group"]),
        (&json!("joined"), &json!("room:9"))
    );
    join(&mut ann, "room:7");
    // Full is the session, and then the group.
    assert_eq!(reason(&mut ann, 9010, json!({"group": "room:8"})), "FORBIDDEN");
    let mut tab = Client::connect(gateway.ws);
    assert_eq!(signs_in(&mut tab), "auth_ok");
    assert_eq!(reason(&mut tab, 9010, json!({"group": "room:9"})), "QUEUE_FULL");
    let publish = json!({"group": "room:7", "msg_id": 7001, "payload": 1});
    assert_eq!(reason(&mut ann, 9015, publish), "FORBIDDEN", "publish is not said, so nobody may");
}
