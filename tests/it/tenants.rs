//! Promise 19: tenants share the gateway and nothing of each other's: routes, sight, and reloads
//! that add, change and remove them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::auth::{SECRET, auth_of, token_of_tenant};
use crate::support::{Client, Config, Gateway, Instance, eventually, named};

/// A gateway with tenants, whose tables these are.
pub fn with_tenants(tables: &[&str]) -> Config {
    let tables = tables.join(", ");
    auth_of(SECRET).key("auth.tenants = \"many\"").key(&format!("tenant = [{tables}]"))
}

/// The answer to a token of a user of a tenant, and the connection.
pub fn shows(gateway: &Gateway, user: &str, tenant: &str) -> (Client, Value) {
    let mut client = Client::connect(gateway.ws);
    let token = token_of_tenant(user, tenant);
    let answer = client.ask(json!({"type": "auth", "payload": {"token": token}}));
    (client, answer)
}

/// A connection of a user of a tenant.
#[track_caller]
pub fn signed_in(gateway: &Gateway, user: &str, tenant: &str) -> Client {
    let (client, answer) = shows(gateway, user, tenant);
    assert_eq!(answer["type"], "auth_ok", "{answer}");
    client
}

/// The instance that answers a message, or the reason why none does.
fn goes_to(client: &mut Client, msg_id: u32) -> String {
    let answer = client.call(msg_id, json!(1));
    let told = match &answer["reason"] {
        Value::Null => &answer["payload"],
        reason => reason,
    };
    told.as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

#[test]
fn own_routes_come_before_the_default_ones_and_what_is_not_for_a_tenant_is_not_there() {
    let instances = ["logic", "own", "only"].map(|name| (name, Instance::start(named(name))));
    let config = with_tenants(&[
        "{ name = \"acme\", route = [{ range = [1500, 1599], service = \"own\" }] }",
        "{ name = \"beta\", inherit = false, \
         route = [{ range = [1000, 1099], service = \"own\" }] }",
        "{ name = \"gamma\", services = [\"own\"] }",
        "{ name = \"delta\" }",
    ]);
    let lines = |name: &str| if name == "only" { "tenants = [\"acme\"]" } else { "" };
    let config = instances.iter().fold(config, |config, (name, instance)| {
        config.service_with(lines(name), name, &[(name, instance.address)])
    });
    let config = config.route(1000, "logic", "").route(2000, "only", "").route(3000, "own", "");
    let gateway = Gateway::start(&config);
    instances.iter().for_each(|(name, _)| gateway.wait_connected(name, &[name]));
    let ids = [1001, 1550, 2001, 3001, 4001];
    let none = "NO_ROUTE";
    for (tenant, wanted) in [
        ("acme", ["logic", "own", "only", "own", none]),
        ("beta", ["own", none, none, none, none]),
        ("gamma", [none, none, none, "own", none]),
        ("delta", ["logic", "logic", none, "own", none]),
        ("unknown", ["logic", "logic", none, "own", none]),
        ("", ["logic", "logic", none, "own", none]),
    ] {
        let mut client = match tenant {
            "" => Client::connect(gateway.ws),
            tenant => signed_in(&gateway, "alice", tenant),
        };
        assert_eq!(ids.map(|id| goes_to(&mut client, id)), wanted, "{tenant}");
        // An operator is told the same.
        for (id, wanted) in ids.into_iter().zip(wanted) {
            let session = client.session();
            let query = format!("msg_id={id}&tenant={tenant}&session={session}");
            let said = gateway.admin_get(&format!("/routing/explain?{query}"));
            let instance = said["instance"].as_str().unwrap_or(none);
            assert_eq!(instance, wanted, "{tenant} {id}: {said}");
        }
    }
    // A route that is not there is one that is not there, whoever has it.
    let mut delta = signed_in(&gateway, "alice", "delta");
    let [hidden, nobodys] = [2001, 4001].map(|id| {
        let mut answer = delta.call(id, json!(1));
        answer["seq"].take();
        answer.to_string().replace(&id.to_string(), "ID")
    });
    assert_eq!(hidden, nobodys);
}

/// Series of a page of metrics: the sum of each family, and the values by the label `tenant`.
fn series(page: &str) -> (BTreeMap<String, f64>, BTreeMap<(String, String), f64>) {
    let (mut sums, mut by_tenant) = (BTreeMap::new(), BTreeMap::new());
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect("a series");
        let value: f64 = value.parse().expect("a number");
        let (family, labels) = name.split_once('{').unwrap_or((name, ""));
        *sums.entry(family.to_owned()).or_insert(0.0) += value;
        if let Some(tenant) = labels.strip_prefix("tenant=\"") {
            let tenant = tenant.trim_end_matches("\"}").to_owned();
            by_tenant.insert((family.to_owned(), tenant), value);
        }
    }
    (sums, by_tenant)
}

/// Families by tenant, and those that their sums are equal to.
const COUNTERPARTS: [(&str, &[&str]); 7] = [
    ("connections", &["sessions"]),
    (
        "messages_total",
        &["system_messages_total", "business_messages_total", "gateway_messages_total"],
    ),
    ("message_bytes_total", &["message_bytes_total"]),
    ("answers_total", &["answers_total"]),
    ("errors_total", &["refusals_total"]),
    ("rate_refused_total", &["quota_messages_refused_total"]),
    ("connections_refused_total", &["quota_connects_refused_total"]),
];

#[test]
fn what_tenants_use_adds_up_and_only_those_that_ask_are_named_in_metrics() {
    let instance = Instance::echo();
    let config = with_tenants(&[
        "{ name = \"acme\", metrics = true }",
        "{ name = \"beta\", metrics = true, quota = { messages_per_s = 8, connections_max = 1 } }",
        "{ name = \"gamma\", quota = { messages_per_s = 2 } }",
    ]);
    let config = config.service("logic", &[("a", instance.address)]).route(1000, "logic", "");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let mut acme = ["ann", "amy", "abe"].map(|user| signed_in(&gateway, user, "acme"));
    let mut others = [
        signed_in(&gateway, "bob", "beta"),
        signed_in(&gateway, "gil", "gamma"),
        signed_in(&gateway, "uma", "unknown"),
        Client::connect(gateway.ws),
    ];
    assert_eq!(shows(&gateway, "bea", "beta").1["reason"], "RATE_LIMITED");
    for n in 0..20 {
        for client in acme.iter_mut().chain(&mut others) {
            client.call(if n == 7 { 77 } else { 1001 }, json!(n));
        }
    }
    // All connections that were refused are gone, and every shard has told what it counted.
    let of = |sums: &BTreeMap<String, f64>, name: &str| sums[&format!("shardgate_{name}")];
    let (sums, by_tenant) = eventually("all is counted", || {
        let (sums, by_tenant) = series(&gateway.request("GET /metrics", "", "").1);
        (of(&sums, "sessions") == 7.0 && of(&sums, "answers_total") >= 147.0)
            .then_some((sums, by_tenant))
    });
    for (family, counterparts) in COUNTERPARTS {
        let whole: f64 = counterparts.iter().map(|name| of(&sums, name)).sum();
        assert_eq!(of(&sums, &format!("tenant_{family}")), whole, "{family}: {sums:?}");
    }
    let value = |family: &str, tenant: &str| {
        by_tenant[&(format!("shardgate_tenant_{family}"), tenant.to_owned())]
    };
    assert_eq!((value("messages_total", "acme"), value("answers_total", "acme")), (60.0, 63.0));
    assert_eq!((value("errors_total", "acme"), value("connections", "acme")), (3.0, 3.0));
    assert_eq!((value("messages_total", "beta"), value("connections", "beta")), (20.0, 1.0));
    assert_eq!(value("connections_refused_total", "beta"), 1.0);
    assert!(value("rate_refused_total", "beta") >= 1.0);
    assert!(value("rate_refused_total", "_other") >= 1.0, "gamma is among the others");
    assert_eq!(value("connections", "_other"), 3.0);
    let named: Vec<&str> = by_tenant.keys().map(|(_, tenant)| tenant.as_str()).collect();
    assert!(named.iter().all(|name| ["acme", "beta", "_other"].contains(name)), "{named:?}");
    is_told_to_operators(&gateway);
}

/// The same figures at `/tenants` and `/stats?tenant=`; no secret is in the settings.
fn is_told_to_operators(gateway: &Gateway) {
    let all = gateway.admin_get("/tenants");
    assert_eq!(all["tenants"], 3, "{all}");
    let one = &all["top"][0];
    assert_eq!((&one["name"], &one["counters"]["messages"]), (&json!("acme"), &json!(60)));
    let top = gateway.admin_get("/tenants?top=1")["top"].take();
    assert_eq!((top.as_array().map(Vec::len), &top[0]["name"]), (Some(1), &json!("acme")));
    let beta = gateway.admin_get("/stats?tenant=beta");
    assert_eq!((&beta["connections"], &beta["quota"]["messages_per_s"]), (&json!(1), &json!(8)));
    let shards = beta["shards"].as_array().expect("a list");
    assert_eq!(shards.len(), gateway.shards);
    let sum: u64 =
        shards.iter().map(|s| s["counters"]["messages"].as_u64().expect("a count")).sum();
    assert_eq!((sum, &beta["counters"]["messages"]), (20, &json!(20)));
    let (status, body) = gateway.admin("/stats?tenant=nobody");
    assert!(status == 404 && body.to_string().contains("GET /tenants lists them"), "{body}");
    let settings = gateway.admin_get("/config")["settings"].take();
    let quota = "tenant[1].quota.messages_per_s";
    let found = settings.as_array().expect("a list").iter().find(|item| item["key"] == quota);
    assert_eq!(found.map(|item| &item["value"]), Some(&json!("8")), "{settings}");
}

#[test]
fn settings_show_tenants_without_their_secrets() {
    const OWN: &str = "ownownownownownownownownownownow";
    let key = format!("{{ id = \"o\", algorithm = \"HS256\", secret = \"{OWN}\" }}");
    let config = with_tenants(&[&format!("{{ name = \"acme\", auth_key = [{key}] }}")]);
    let gateway = Gateway::start(&config);
    let settings = gateway.admin_get("/config");
    let dir = gateway.dir().to_str().expect("UTF-8").to_owned();
    let admin = gateway.admin.to_string();
    let shown = |more: &[&str]| {
        let args = ["config", "--config", &dir];
        let args: Vec<&str> = args.into_iter().chain(more.iter().copied()).collect();
        crate::support::run(&args, |command| {
            command.env("SHARDGATE__ADMIN__LISTEN", format!("\"{admin}\""));
        })
        .stdout
    };
    let in_force = shown(&["--in-force"]);
    for said in [settings.to_string(), shown(&[]), in_force] {
        assert!(said.contains("acme"), "{said}");
        assert!(!said.contains(OWN) && !said.contains(SECRET), "{said}");
    }
    let list = settings["settings"].as_array().expect("a list");
    let found = list.iter().find(|item| item["key"] == "tenant[0].auth_key[0].secret");
    assert_eq!(found.map(|item| &item["value"]), Some(&json!("\"<redacted>\"")), "{settings}");
}

#[test]
fn a_reload_adds_changes_and_removes_tenants_and_a_wrong_table_changes_nothing() {
    let instances = ["logic", "own"].map(|name| (name, Instance::start(named(name))));
    let of = |tables: &[&str]| {
        let config = instances.iter().fold(with_tenants(tables), |config, (name, instance)| {
            config.service(name, &[(name, instance.address)])
        });
        config.route(1000, "logic", "")
    };
    let own = "{ name = \"acme\", route = [{ range = [1000, 1099], service = \"own\" }] }";
    let gateway = Gateway::start(&of(&["{ name = \"acme\" }", "{ name = \"beta\" }"]));
    instances.iter().for_each(|(name, _)| gateway.wait_connected(name, &[name]));
    let mut clients = ["acme", "beta", "gamma"].map(|tenant| signed_in(&gateway, "alice", tenant));
    let mut go = || clients.each_mut().map(|client| goes_to(client, 1001));
    assert_eq!(go(), ["logic", "logic", "logic"]);
    let reload = |tables: &[&str]| {
        gateway.rewrite(&of(tables));
        gateway.admin_post("/reload", "")
    };
    // One comes, one changes, one goes.
    let gamma = "{ name = \"gamma\", inherit = false, weight = 3 }";
    let (status, body) = reload(&[own, gamma]);
    assert_eq!(status, 200, "{body}");
    let keys: Vec<&str> = body["changes"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|change| change["key"].as_str().expect("a key"))
        .collect();
    assert!(keys.iter().any(|key| key.starts_with("tenant[acme].route")), "{keys:?}");
    assert!(keys.contains(&"tenant[beta]") && keys.contains(&"tenant[gamma]"), "{keys:?}");
    eventually("all shards work by it", || (go() == ["own", "logic", "NO_ROUTE"]).then_some(()));
    let in_force = || {
        let list = gateway.admin_get("/tenants")["top"].take();
        let mut names: Vec<String> = list
            .as_array()
            .expect("a list")
            .iter()
            .map(|one| format!("{}:{}", one["name"].as_str().expect("a name"), one["weight"]))
            .collect();
        names.sort();
        names
    };
    assert_eq!(in_force(), ["acme:1", "gamma:3"]);
    // Each wrong table is told, and nothing of the right ones is taken.
    let wrong = "{ name = \"delta\", weight = 0, services = [\"nowhere\"] }";
    let (status, body) = reload(&["{ name = \"acme\", weight = 9 }", wrong]);
    assert_eq!((status, body["problems"].as_array().map(Vec::len)), (422, Some(2)), "{body}");
    let said = body["problems"].to_string();
    assert!(said.contains("tenant[1].weight") && said.contains("tenant[1].services"), "{said}");
    assert_eq!(in_force(), ["acme:1", "gamma:3"]);
    assert_eq!(go(), ["own", "logic", "NO_ROUTE"]);
    assert_eq!(reload(&[]).0, 200);
    eventually("they are all gone", || (go() == ["logic", "logic", "logic"]).then_some(()));
    assert!(in_force().is_empty());
    assert_eq!(gateway.counter("closed"), 0, "nobody was disconnected");
}
