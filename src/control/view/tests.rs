//! Answers when not all is well, of a state made by hand.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::config::load::{Files, from_files};
use crate::config::{AwaitedTenants, Overrides, Problem, Source};
use crate::control::compose::Composer;
use crate::control::directory::DirectoryView;
use crate::control::dump;
use crate::control::fleet::Judgement;
use crate::control::inspections::QueryResult;
use crate::control::push::PushView;
use crate::control::shards::ShardState;
use crate::control::source_tables::{RefusedList, RefusedTables};
use crate::control::sources::SourceState;
use crate::ids::ShardId;
use crate::routing::Share;

/// The built-in configuration, one ready shard, no source.
pub(in crate::control) fn gathered() -> Overview {
    gathered_of(Files::embedded())
}

fn gathered_of(files: Files) -> Overview {
    let config = from_files(files, &[], &Overrides::default()).unwrap();
    let composer = Composer::new(&config);
    let directory = DirectoryView {
        config: Arc::new(config),
        snapshot: composer.snapshot().clone(),
        members: composer.members().clone(),
        judged: HashMap::new(),
        panicking: Vec::new(),
        sources: BTreeMap::new(),
        warnings: Vec::new(),
        refused: Default::default(),
        keys_kept: Vec::new(),
        reloads: Default::default(),
        certificates: Vec::new(),
        connections_cap: usize::MAX,
    };
    let shard = ShardView {
        shard: ShardId(0),
        state: ShardState::Ready,
        answered: Some(Duration::ZERO),
        silent: false,
        report: None,
    };
    let (shards, pushes) = (vec![shard], PushView::default());
    Overview { at: Instant::now(), draining: false, shards, directory, pushes }
}

pub(in crate::control) fn about() -> ProcessInfo {
    let (node, cores) = ("n".into(), Cores::default());
    let listens = Listens { plain: Some(([127, 0, 0, 1], 9000).into()), tls: None };
    ProcessInfo { node, boot_id: 1, cores, listens, started: Instant::now(), log_dropped: None }
}

/// The message that parameters of `/routing/explain` name.
fn asked_message(params: serde_json::Value) -> explain::AskedMessage {
    let params: explain::ExplainParams = serde_json::from_value(params).expect("right");
    match params.subject().expect("right") {
        explain::Subject::Message(message) => message,
        explain::Subject::Group { name, .. } => panic!("{name} is a group"),
    }
}

/// Ejects every instance of a service.
fn eject_all(overview: &mut Overview, service: &str) {
    let mut snapshot = (*overview.directory.snapshot).clone();
    let index = snapshot.services.iter().position(|s| &*s.name == service).unwrap();
    for i in snapshot.instances.iter_mut().filter(|i| usize::from(i.service.0) == index) {
        i.share = Share::NONE;
        let why = Some("5 calls in a row failed".into());
        overview.directory.judged.insert(i.id, Judgement { standing: "ejected", why });
    }
    overview.directory.snapshot = Arc::new(snapshot);
}

#[test]
fn what_is_elsewhere_makes_health_degraded_and_never_503() {
    let mut overview = gathered();
    let at = overview.at;
    let state = SourceState {
        stale: Some((at - Duration::from_millis(1_500), "connection refused".into())),
        bad: vec![("/shardgate/x".into(), "no JSON".into())],
        instances: 3,
        answered: true,
        ..SourceState::default()
    };
    overview.directory.sources.insert("etcd".into(), state);
    overview.directory.sources.insert("dns:chat".into(), SourceState::default());
    overview.directory.panicking.push("chat".into());
    eject_all(&mut overview, "logic");
    let (code, body) = health::health(&about(), &overview);
    assert_eq!((code.as_u16(), &body["status"]), (200, &json!("degraded")));
    assert_eq!(
        body["degraded_by"],
        json!([
            "source etcd: connection refused",
            "service chat: too few instances are healthy, so all are used",
            "service logic: no instance takes messages: logic-1 at 127.0.0.1:50001: 5 calls in a \
             row failed",
        ])
    );
    let etcd = &body["sources"]["etcd"];
    assert_eq!((&etcd["state"], &etcd["stale_s"]), (&json!("stale"), &json!(1.5)));
    assert_eq!(etcd["bad"], json!([{ "at": "/shardgate/x", "why": "no JSON" }]));
    assert_eq!(body["sources"]["dns:chat"]["state"], "silent");
    assert_eq!(body["services"]["logic"]["usable"], 0);
    assert_eq!(body["services"]["chat"]["panic"], true);
    let text = metrics::metrics(&about(), &overview).unwrap();
    assert!(text.contains("shardgate_discovery_stale_seconds{source=\"etcd\"} 1.5\n"), "{text}");
    assert!(text.contains("shardgate_service_panicking{service=\"chat\"} 1\n"));
    assert!(text.contains("standing=\"ejected\"} 1\n"));

    overview.shards[0].silent = true;
    let (code, body) = health::health(&about(), &overview);
    assert_eq!((code.as_u16(), &body["status"]), (503, &json!("degraded")));
    overview.draining = true;
    assert_eq!(health::health(&about(), &overview).1["status"], "draining");
}

#[test]
fn health_says_what_is_in_force_of_tables_that_were_refused_and_who_waits_for_them() {
    let problem = || Problem::whole(Source::Found("/x/tenants/a".into()), "is wrong");
    let reasons = |kept: usize, awaited: AwaitedTenants| {
        let mut overview = gathered();
        let tenants = RefusedList { problems: vec![problem()], kept };
        overview.directory.refused = RefusedTables { tenants, ..RefusedTables::default() };
        overview.directory.keys_kept = vec![problem()];
        let mut config = (*overview.directory.config).clone();
        config.awaited = awaited;
        overview.directory.config = Arc::new(config);
        health::health(&about(), &overview).1["degraded_by"].take()
    };
    let kept = "what was read before of a tenant's keys stays: /x/tenants/a: is wrong";
    assert_eq!(
        reasons(0, AwaitedTenants::named(vec!["a".into(), "b".into()])),
        json!([
            "the tenants of a source were refused: none of its tables is in force",
            "2 tenants of a source are not in force: their users are asked to come back",
            kept,
        ])
    );
    let refused = "the tenants of a source were refused: those in force stay (3)";
    assert_eq!(reasons(3, AwaitedTenants::NONE), json!([refused, kept]));
    let unknown = reasons(3, AwaitedTenants::Any)[1].to_string();
    assert!(unknown.contains("not known yet, or over 1,000, and not in force"), "{unknown}");
}

#[test]
fn explain_says_why_the_owner_does_not_get_it() {
    let mut overview = gathered();
    let params = asked_message(json!({"msg_id": 1001, "user": "ann"}));
    let show = |overview: &Overview| {
        explain::Explanation::new(overview, &params).json(&QueryResult::default())
    };
    let said = show(&overview);
    assert_eq!((&said["hashed"], &said["instance"]), (&json!("user"), &said["owner"]));
    eject_all(&mut overview, "logic");
    let said = show(&overview);
    assert!(said["instance"].is_null() && said["owner"].is_string(), "{said}");
    let why = said["why"].to_string();
    assert!(why.contains("is ejected (5 calls in a row failed) and takes 0 %"), "{why}");
    assert!(why.contains("UNAVAILABLE: no other instance takes it"), "{why}");
}

#[test]
fn routes_say_whose_they_are_and_explain_from_which_table_one_is() {
    let mut files = Files::embedded();
    let tenants = "[[tenant]]\nname = \"acme\"\ninherit = false\n\
                   [[tenant.route]]\nrange = [1500, 2100]\nservice = \"chat\"\n";
    files.gateway.text += tenants;
    for [old, new] in [
        ["mode = \"off\"", "mode = \"jwt\""],
        ["tenants = \"one\"", "tenants = \"many\""],
        ["jwks_file = \"\"", "jwks_file = \"a\""],
    ] {
        files.gateway.text =
            files.gateway.text.replacen(&format!("\n{old}"), &format!("\n{new}"), 1);
    }
    let overview = gathered_of(files);
    let told = |list: &serde_json::Value| -> Vec<(Option<String>, u64)> {
        let list = list.as_array().expect("a list").iter();
        list.map(|r| {
            (r["tenant"].as_str().map(str::to_owned), r["range"][0].as_u64().expect("an id"))
        })
        .collect()
    };
    let acme = || Some("acme".to_owned());
    let all = told(&config::config(&about(), &overview)["routes"]);
    assert_eq!(all, [(None, 1000), (None, 2000), (None, 3000), (acme(), 1500)]);
    let services = services::services(&overview);
    let of_chat = told(&services["services"]["chat"]["routes"]);
    assert_eq!(of_chat, [(None, 2000), (acme(), 1500)]);
    let explain = |tenant: &str, msg_id: u32| {
        let params = json!({"msg_id": msg_id, "user": "ann", "tenant": tenant});
        let params = asked_message(params);
        explain::Explanation::new(&overview, &params).json(&QueryResult::default())
    };
    let own = explain("acme", 1600);
    assert_eq!((&own["table"], &own["service"]), (&json!("tenant"), &json!("chat")));
    let default = explain("other", 1600);
    assert_eq!((&default["table"], &default["service"]), (&json!("default"), &json!("logic")));
    let closed = explain("acme", 3000);
    assert!(closed["table"].is_null() && closed["outcome"] == "no_route", "{closed}");
    let why = closed["why"][0].as_str().expect("a sentence");
    assert!(why.starts_with("NO_ROUTE: the default route 3000-3999 has this id, and it is not"));
    assert!(
        explain("acme", 4000)["why"][0].as_str().is_some_and(|why| why.contains("no [[route]]"))
    );
}

#[test]
fn a_bucket_holds_what_was_recorded_up_to_its_bound() {
    use crate::stats::{Gauges, Stage};
    let mut overview = gathered();
    let mut histograms = Histograms::default();
    for us in [1, 50, 51, 1_000, 59_000_000, 500_000_000] {
        histograms.record(Stage::Whole, us, 2);
    }
    overview.shards[0].report = Some(Arc::new(Report {
        number: 1,
        shard: ShardId(0),
        at: crate::message::Micros(1),
        busy_us: 0,
        counters: Counters::default(),
        events: Default::default(),
        reasons: Default::default(),
        faults: Vec::new(),
        gauges: Gauges::default(),
        histograms,
        instances: Vec::new(),
        tenants: Vec::new(),
        held_back: Vec::new(),
    }));
    let text = metrics::metrics(&about(), &overview).unwrap();
    for (bound, count) in [("0.00005", 4), ("0.0001", 6), ("0.001", 8), ("60", 10), ("+Inf", 12)] {
        let line = format!("{{shard=\"0\",stage=\"whole\",le=\"{bound}\"}} {count}\n");
        assert!(text.contains(&line), "{line}{text}");
    }
    let sum = "shardgate_stage_seconds_sum{shard=\"0\",stage=\"whole\"} ";
    let sum: f64 = text.lines().find_map(|line| line.strip_prefix(sum)).unwrap().parse().unwrap();
    assert!((sum - 1118.0).abs() < 12.0, "{sum}");
}

#[test]
fn dumps_are_new_files_each_time_and_a_link_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let overview = gathered();
    let precious = dir.path().join("precious");
    std::fs::write(&precious, "data").unwrap();
    let name = format!("shardgate-{}-0.hlog", std::process::id());
    std::os::unix::fs::symlink(&precious, dir.path().join(name)).unwrap();
    let first = dump::write(dir.path(), &about(), &overview).unwrap();
    let second = dump::write(dir.path(), &about(), &overview).unwrap();
    assert_ne!(first, second);
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "data");
    let state = std::fs::read_to_string(&second.state).unwrap();
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    assert_eq!(state["health"]["status"], "ok");
    assert!(dump::write(&dir.path().join("none"), &about(), &overview).is_err());
}

#[test]
fn who_asks_where_to_connect_is_told_urls_that_can_be_reached_from_there() {
    let overview = gathered();
    let listens = Listens {
        plain: Some(([127, 0, 0, 1], 9000).into()),
        tls: Some((std::net::Ipv6Addr::UNSPECIFIED, 9443).into()),
    };
    let info = ProcessInfo { listens, ..about() };
    for (host, tls) in [
        (Some("gate.example"), "wss://gate.example:9443/ws"),
        (Some("[2001:db8::1]"), "wss://[2001:db8::1]:9443/ws"),
        (None, "wss://[::1]:9443/ws"),
    ] {
        let told = connect::connect(&info, &overview, host);
        assert_eq!(told["urls"], json!(["ws://127.0.0.1:9000/ws", tls]), "{host:?}");
    }
    let told = connect::connect(&info, &overview, None);
    assert_eq!(told["auth"], json!({ "mode": "off", "required": false }));
    let first = json!({ "range": [1000, 1999], "service": "logic", "demo": true, "auth": "none" });
    assert_eq!((&told["routes"][0], told["routes"].as_array().map(Vec::len)), (&first, Some(3)));
    assert_eq!(told["gateway_ids"], json!([9000, 9999]));
}
