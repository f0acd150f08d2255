//! Promise 22: no push, join, list or event crosses a tenant, or the rights of its caller.

use serde_json::{Value, json};

use super::callers::Http;
use super::{SHOP, counts, hears, hears_nothing, join, shop, written};
use crate::auth::{claims, signed};
use crate::support::{Client, Gateway};
use crate::tenants::{signed_in, with_tenants};

/// Token of a caller for the tenant acme alone.
const ACME: &str = "token-for-acme-alone-01";

/// A gateway of several tenants, with a caller for all and one for acme, and rooms that anybody of
/// a tenant joins, or is put into by a token.
fn gateway() -> Gateway {
    let acme = shop(", tenants = [\"acme\"]").replace("\"shop\"", "\"acme\"").replace(SHOP, ACME);
    let rules = "{ name = \"room:*\", join = \"user\", publish = \"members\", list = \"user\", \
                 keep = \"history\", presence = \"names\", presence_ms = 100 }, \
                 { name = \"other:*\", join = \"claim\" }";
    let config = with_tenants(&["{ name = \"acme\" }", "{ name = \"beta\" }"])
        .key("push.listen = \"127.0.0.1:0\"")
        .key(&format!("push_caller = [{}, {acme}]", shop("")))
        .key(&format!("group = [{rules}]"));
    Gateway::start(&config)
}

/// Sends a push to a kind of addressees of a tenant, and gives its result.
#[track_caller]
fn push(caller: &mut Http, to: Value, payload: &str) -> Value {
    let push = json!({"to": to, "msg_id": 7001, "payload": payload, "receipt": "COUNTED"});
    caller.push(vec![push]).remove(0)
}

/// Members of `room:7` in acme and in beta: the same user of each, as far as the names go.
fn pair(gateway: &Gateway) -> [Client; 2] {
    ["acme", "beta"].map(|tenant| {
        let mut client = signed_in(gateway, "ann", tenant);
        join(&mut client, "room:7");
        client
    })
}

/// Id of the session of the member in beta.
#[track_caller]
fn session_of_beta(shop: &mut Http) -> String {
    let found = shop.call("/sessions", &json!({"tenant": "beta", "users": ["ann"]}));
    found["sessions"][0]["session"].as_str().expect("she is there").to_owned()
}

fn room(tenant: &str) -> Value {
    json!({"tenant": tenant, "groups": ["room:7"]})
}

#[test]
fn groups_of_one_name_in_two_tenants_have_nothing_in_common() {
    let gateway = gateway();
    let [mut acme, mut beta] = pair(&gateway);
    let mut shop = Http::connect(&gateway, SHOP);
    let first = push(&mut shop, room("acme"), "to acme");
    assert_eq!(counts(&first), written(1), "{first}");
    assert_eq!(hears(&mut acme), "to acme");
    hears_nothing(&mut beta);
    let second = push(&mut shop, room("beta"), "to beta");
    let position = |result: &Value| result["positions"][0]["position"].clone();
    assert_eq!((&position(&first)["offset"], &position(&second)["offset"]), (&json!(1), &json!(1)));
    assert_ne!(position(&first)["epoch"], position(&second)["epoch"], "each has its own life");
    assert_eq!(hears(&mut beta), "to beta");
    // What members publish stays with them, and so do the history, the list and the counts.
    let said = acme.call(9015, json!({"group": "room:7", "msg_id": 7001, "payload": "of acme"}));
    assert_eq!(said["payload"]["offset"], 2);
    hears_nothing(&mut beta);
    let history = |client: &mut Client| {
        let page = client.call(9014, json!({"group": "room:7", "limit": 9}));
        let pushes = page["payload"]["pushes"].as_array().cloned().unwrap_or_default();
        pushes.iter().map(|push| push["payload"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(history(&mut acme), ["to acme", "of acme"]);
    assert_eq!(history(&mut beta), ["to beta"]);
    let mut bob = signed_in(&gateway, "bob", "beta");
    join(&mut bob, "room:7");
    for (tenant, sessions) in [("acme", 1), ("beta", 2)] {
        let counted = shop.call("/count", &json!({"tenant": tenant, "groups": ["room:7"]}));
        assert_eq!(counted["groups"][0]["sessions"], sessions, "{tenant}");
        let page = shop.call("/members", &json!({"tenant": tenant, "group": "room:7"}));
        assert_eq!(page["sessions"], sessions, "{tenant}");
    }
    let asked = json!({"tenant": "acme", "group": "room:7", "limit": 9});
    let kept = shop.call("/history", &asked);
    assert_eq!(kept["pushes"][0]["payload"], "to acme");
    shop.call("/forget", &json!({"tenant": "acme", "group": "room:7"}));
    assert_eq!(history(&mut beta), ["to beta"], "what acme forgets beta has");
    let explained = gateway.admin_get("/routing/explain?group=room:7&tenant=beta");
    assert_eq!((&explained["members"], &explained["position"]["offset"]), (&json!(2), &json!(1)));
}

#[test]
fn presence_and_lists_show_people_of_the_own_tenant_alone() {
    let gateway = gateway();
    let [mut acme, mut beta] = pair(&gateway);
    let list =
        |client: &mut Client| client.call(9013, json!({"group": "room:7"}))["payload"].clone();
    let seen = |client: &mut Client| {
        crate::support::eventually("she is in the list", || {
            let list = list(client);
            (list["count"] == 1).then_some(list)
        })
    };
    for client in [&mut acme, &mut beta] {
        let list = seen(client);
        assert_eq!(list["members"].as_array().map(Vec::len), Some(1), "{list}");
    }
    let mut stranger = signed_in(&gateway, "eve", "gamma");
    assert_eq!(list(&mut stranger)["count"], 0, "the group of its own tenant is empty");
}

#[test]
fn everybody_of_a_tenant_and_users_of_one_name_are_those_of_that_tenant() {
    let gateway = gateway();
    let [mut acme, mut beta] = pair(&gateway);
    let mut nobody = Client::connect(gateway.ws);
    let mut shop = Http::connect(&gateway, SHOP);
    for to in
        [json!({"tenant": "acme", "tenant_all": true}), json!({"tenant": "acme", "users": ["ann"]})]
    {
        let result = push(&mut shop, to, "acme");
        assert_eq!(counts(&result), written(1), "{result}");
        assert_eq!(hears(&mut acme), "acme");
        hears_nothing(&mut beta);
        hears_nothing(&mut nobody);
    }
    // A session is of one tenant, whoever knows its id.
    let session = session_of_beta(&mut shop);
    let id = json!({"tenant": "acme", "sessions": [session]});
    assert_eq!(counts(&push(&mut shop, id, "no"))[3], 1, "offline, as far as acme goes");
    let result = push(&mut shop, json!({"everyone": true}), "all");
    assert_eq!(counts(&result), written(3), "{result}");
    for client in [&mut acme, &mut beta, &mut nobody] {
        assert_eq!(hears(client), "all");
    }
    let found = shop.call("/sessions", &json!({"tenant": "acme", "users": ["ann"]}));
    assert_eq!(found["sessions"].as_array().map(Vec::len), Some(1), "{found}");
    let gone = shop.call("/disconnect", &json!({"tenant": "acme", "users": ["ann"]}));
    assert_eq!(gone["closed"], 1);
    assert_eq!(acme.until_close().1, Some(4501));
    hears_nothing(&mut beta);
}

#[test]
fn a_caller_of_one_tenant_reaches_no_other_by_any_call() {
    let gateway = gateway();
    let [mut acme, mut beta] = pair(&gateway);
    let mut caller = Http::connect(&gateway, ACME);
    assert_eq!(counts(&push(&mut caller, room("acme"), "mine")), written(1));
    assert_eq!(hears(&mut acme), "mine");
    let session = session_of_beta(&mut Http::connect(&gateway, SHOP));
    let all = json!({"everyone": true});
    for to in [
        room("beta"),
        all,
        json!({"tenant": "beta", "tenant_all": true}),
        json!({"tenant": "beta", "users": ["ann"]}),
        json!({"tenant": "beta", "sessions": [session]}),
    ] {
        let result = push(&mut caller, to.clone(), "not mine");
        assert_eq!(result["reason"], "FORBIDDEN", "{to}: {result}");
    }
    let unnamed = push(&mut caller, json!({"groups": ["room:7"]}), "whose?");
    assert_eq!(unnamed["reason"], "BAD_MESSAGE", "{unnamed}");
    let (users, groups) = (json!(["ann"]), json!(["room:7"]));
    for (path, mut asked) in [
        ("/join", json!({"users": users, "groups": groups})),
        ("/leave", json!({"users": users, "groups": groups})),
        ("/members", json!({"group": "room:7"})),
        ("/count", json!({"groups": groups})),
        ("/history", json!({"group": "room:7", "limit": 1})),
        ("/forget", json!({"group": "room:7"})),
        ("/sessions", json!({"users": users})),
        ("/disconnect", json!({"users": users})),
    ] {
        asked["tenant"] = "beta".into();
        let answer = caller.post_to(path, &asked.to_string());
        assert_eq!((answer.status, &answer.json["reason"]), (403, &json!("FORBIDDEN")), "{path}");
    }
    hears_nothing(&mut beta);
    hears_nothing(&mut acme);
}

#[test]
fn a_token_puts_its_user_into_groups_of_its_own_tenant() {
    let gateway = gateway();
    let mut shop = Http::connect(&gateway, SHOP);
    let enter = |tenant: &str| {
        let mut claims = claims("ann", 600);
        claims["tenant"] = tenant.into();
        claims["groups"] = json!(["other:1", "room:7"]);
        let header = json!({"alg": "HS256", "typ": "JWT", "kid": "k"});
        let token = signed(&header, &claims, crate::auth::SECRET.as_bytes());
        let mut client = Client::connect(gateway.ws);
        let answer = client.ask(json!({"type": "auth", "payload": {"token": token}}));
        assert_eq!(answer["type"], "auth_ok", "{answer}");
        let told = client.read();
        // Of the two the rule of one alone goes by the token.
        assert_eq!(
            (&told["type"], &told["payload"]["group"]),
            (&json!("joined"), &json!("other:1"))
        );
        client
    };
    let [mut acme, mut beta] = ["acme", "beta"].map(enter);
    let to = |tenant: &str| json!({"tenant": tenant, "groups": ["other:1"]});
    assert_eq!(counts(&push(&mut shop, to("acme"), "acme")), written(1));
    assert_eq!(hears(&mut acme), "acme");
    hears_nothing(&mut beta);
    assert_eq!(counts(&push(&mut shop, to("beta"), "beta")), written(1));
    assert_eq!(hears(&mut beta), "beta");
    hears_nothing(&mut acme);
}
