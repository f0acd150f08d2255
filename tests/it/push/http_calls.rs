//! The calls besides pushes with JSON: groups, members, history, sessions, and who is thrown out.

use serde_json::{Value, json};

use super::callers::Http;
use super::{DESK, SHOP, config, hears, hears_nothing, user};
use crate::support::{Client, Gateway};

/// All of them, with a request that is right.
fn calls() -> [(&'static str, Value); 8] {
    let people = || json!({"users": ["ann"], "groups": ["room:7"]});
    [
        ("/join", people()),
        ("/leave", people()),
        ("/members", json!({"group": "room:7"})),
        ("/count", json!({"groups": ["room:7"]})),
        ("/history", json!({"group": "room:7", "limit": 1})),
        ("/forget", json!({"group": "room:7"})),
        ("/sessions", json!({"users": ["ann"]})),
        ("/disconnect", json!({"users": ["ann"]})),
    ]
}

#[test]
fn a_program_with_json_alone_puts_users_in_reads_who_is_there_and_takes_them_out() {
    let gateway = Gateway::start(&config());
    let mut shop = Http::connect(&gateway, SHOP);
    let (mut ann, mut bob) = (user(&gateway, "ann"), user(&gateway, "bob"));
    let asked = json!({"users": ["ann", "bob", "eve"], "groups": ["room:7"],
                       "info": {"name": "A \u{e9}"}});
    let joined = shop.call("/join", &asked);
    assert_eq!((&joined["joined"], &joined["offline"]), (&json!(2), &json!(1)), "{joined}");
    let epoch = joined["positions"][0]["position"]["epoch"].clone();
    for client in [&mut ann, &mut bob] {
        assert_eq!(client.read()["type"], "joined");
    }
    let to = json!({"groups": ["room:7"]});
    let pushes = vec![
        json!({"to": to, "msg_id": 7001, "payload": {"a": [1]}, "key": "k", "id": "i"}),
        json!({"to": to, "msg_id": 7002, "payload_base64": "AP8="}),
    ];
    assert_eq!(shop.push(pushes).len(), 2);
    assert_eq!(hears(&mut ann), json!({"a": [1]}));

    let counted = shop.call("/count", &json!({"groups": ["room:7", "room:8"]}));
    let position = json!({"epoch": epoch, "offset": 2});
    let room = json!({"group": "room:7", "sessions": 2, "users": 2, "position": position});
    assert_eq!(counted["groups"], json!([room, {"group": "room:8"}]));

    let page = shop.call("/members", &json!({"group": "room:7", "limit": 1}));
    let of = |page: &Value| page["members"][0]["user"].as_str().unwrap_or("").to_owned();
    let next = json!({"group": "room:7", "limit": 1, "after": page["next"]});
    let mut users = [of(&page), of(&shop.call("/members", &next))];
    users.sort_unstable();
    assert_eq!((users, &page["sessions"]), (["ann".into(), "bob".into()], &json!(2)));

    let asked = json!({"group": "room:7", "since": {"epoch": epoch, "offset": 0}, "limit": 9});
    let page = shop.call("/history", &asked);
    let kept = &page["pushes"];
    let value = (&kept[0]["payload"], &kept[0]["key"], &kept[0]["id"]);
    assert_eq!(value, (&json!({"a": [1]}), &json!("k"), &json!("i")), "{page}");
    let bytes = (&kept[1]["payload_base64"], kept[1].get("payload"), kept[1].get("key"));
    assert_eq!(bytes, (&json!("AP8="), None, None), "{page}");
    assert_eq!((page.get("gap"), &page["position"]["offset"]), (None, &json!(2)));
    assert_eq!(shop.call("/forget", &json!({"group": "room:7"})), json!({}));
    assert_eq!(shop.call("/history", &asked)["gap"], true);

    let sessions = shop.call("/sessions", &json!({"users": ["ann", "eve"]}));
    let [one] = sessions["sessions"].as_array().map_or(&[][..], Vec::as_slice) else {
        panic!("{sessions}")
    };
    let told = (&one["session"], &one["user"], &one["encoding"], &one["groups"]);
    let wanted = (&json!(ann.session()), &json!("ann"), &json!("json"), &json!(["room:7"]));
    assert_eq!(told, wanted, "{sessions}");

    let asked = json!({"users": ["ann"], "groups": ["room:7"], "reason": "over"});
    assert_eq!(shop.call("/leave", &asked), json!({"left": 1}));
    assert_eq!(ann.read()["msg_id"], 7002);
    let left = ann.read();
    assert_eq!(left["payload"], json!({"group": "room:7", "reason": "over"}));
}

#[test]
fn a_program_with_json_alone_closes_connections() {
    let gateway = Gateway::start(&config());
    let mut shop = Http::connect(&gateway, SHOP);
    let (mut ann, mut bob) = (user(&gateway, "ann"), user(&gateway, "bob"));
    let asked = json!({"users": ["ann"], "code": 4321.0, "reason": "too loud"});
    assert_eq!(shop.call("/disconnect", &asked), json!({"closed": 1, "ended": 1}));
    assert_eq!(ann.until_close().1, Some(4321));
    let asked = json!({"sessions": [bob.session()], "code": null});
    assert_eq!(shop.call("/disconnect", &asked), json!({"closed": 1, "ended": 1}));
    assert_eq!(bob.until_close().1, Some(4501));
    // Who is not there is closed already.
    assert_eq!(shop.call("/disconnect", &asked), json!({}));
}

#[test]
fn each_call_needs_its_right_and_says_what_is_wrong_with_its_json() {
    let gateway = Gateway::start(&config());
    let mut ann = user(&gateway, "ann");
    let mut desk = Http::connect(&gateway, DESK);
    let mut nobody = Http::connect(&gateway, "token-of-nobody-0123");
    let mut shop = Http::connect(&gateway, SHOP);
    for (path, asked) in calls() {
        assert_eq!(nobody.post_to(path, &asked.to_string()).status, 401, "{path}");
        let refused = desk.post_to(path, &asked.to_string());
        assert_eq!((refused.status, &refused.json["reason"]), (403, &json!("FORBIDDEN")), "{path}");
        for (body, names) in [
            ("", "JSON object"),
            ("[]", "JSON object"),
            ("{\"tenant\": ", "EOF"),
            ("{\"grp\": \"room:7\"}", "grp"),
            ("{\"tenant\": \"acme\"}", "tenant: leave it empty"),
        ] {
            let answer = shop.post_to(path, body);
            let error = answer.json["error"].as_str().unwrap_or("").to_owned();
            assert!(answer.status == 400 && error.contains(names), "{path} {body}: {answer:?}");
        }
        let bearer = format!("Authorization: Bearer {SHOP}\r\n");
        let answer = shop.request(&format!("POST {path}"), &bearer, asked.to_string().as_bytes());
        assert_eq!(answer.status, 415, "{path}");
        assert_eq!(shop.request(&format!("GET {path}"), &bearer, b"").status, 405, "{path}");
    }
    for (path, asked, names) in [
        ("/join", json!({"users": ["ann"], "groups": ["lobby"]}), "`groups`"),
        ("/join", json!({"groups": ["room:7"]}), "sessions, users"),
        ("/join", json!({"users": ["ann"], "groups": ["room:7"], "info": "x".repeat(256)}), "info"),
        ("/members", json!({"group": "room:7", "limit": 1001}), "limit"),
        ("/members", json!({"group": "room:7", "limit": -1}), "0 to 4294967295"),
        ("/disconnect", json!({"users": ["ann"], "code": 1000}), "code"),
    ] {
        let answer = shop.post_to(path, &asked.to_string());
        let error = answer.json["error"].as_str().unwrap_or("").to_owned();
        assert!([400, 403].contains(&answer.status), "{path} {asked}: {answer:?}");
        assert!(error.contains(names), "{path} {asked}: {error}");
    }
    hears_nothing(&mut ann);
    let refused = &gateway.admin_get("/stats")["push"]["callers"]["desk"]["refused"];
    assert_eq!(refused, &json!({"FORBIDDEN": 8}));
    let mut late = Client::connect(gateway.ws);
    hears_nothing(&mut late);
}
