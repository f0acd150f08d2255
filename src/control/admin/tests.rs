//! The admin endpoint by raw HTTP, in front of fake shards.

mod access;
mod page;

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::read::OPENAPI;
use super::routes::ROUTES;
use super::*;
use crate::control::tests::{Fake, Rig, TOKEN, rig, rig_with};
use crate::stats::Stage;

/// Headers that a change takes.
fn right(rig: &Rig) -> String {
    format!(
        "Host: {}\r\nContent-Type: application/json\r\nAuthorization: Bearer {TOKEN}",
        rig.admin
    )
}

#[tokio::test]
async fn a_request_that_does_not_end_is_cut_off() {
    let rig = rig(&[Fake::Good]);
    let headers = right(&rig);
    for start in [
        format!("GET /health HTTP/1.1\r\n{headers}\r\nX: "),
        format!("POST /reload HTTP/1.1\r\n{headers}\r\nContent-Length: 2000000\r\n\r\n"),
    ] {
        let flood = format!("{start}{}", " ".repeat(1 << 20));
        let mut stream = TcpStream::connect(rig.admin).await.unwrap();
        // The endpoint stops reading after 36 KiB: writing all of it or reading on ends, one way or
        // the other.
        let _ = stream.write_all(flood.as_bytes()).await;
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert!(!rest.starts_with(b"HTTP/1.1 200"));
    }
    let body = format!("{{\"filter\":\"{}\"}}", "x".repeat(17 << 10));
    let length = format!("Content-Length: {}", body.len());
    let request = format!("POST /log HTTP/1.1\r\n{headers}\r\n{length}\r\n\r\n{body}");
    assert_eq!(rig.raw(&request).await.0, 413);
    assert_eq!(rig.healthy().await["status"], "ok");
}

#[tokio::test]
async fn a_body_is_json_that_is_understood_or_refused() {
    let rig = rig(&[Fake::Good]);
    rig.healthy().await;
    for (path, body, expected) in [
        ("/reload", "{", 400),
        ("/reload", "{\"force\":true}", 400),
        ("/reload", " {} ", 200),
        ("/log", "", 400),
        ("/log", "{\"level\":\"info\"}", 400),
        ("/instances/logic-1/drain", "[]", 400),
        ("/instances/nobody/drain", "", 404),
        ("/instances/..%2f..%2fetc/undrain", "", 404),
    ] {
        let (status, answer) = rig.post(path, body).await;
        assert_eq!(status, expected, "{path} {body}: {answer}");
        assert_eq!(answer["error"].is_string(), expected != 200, "{answer}");
    }
}

#[tokio::test]
async fn an_instance_is_drained_and_given_something_again() {
    let rig = rig(&[Fake::Good]);
    rig.healthy().await;
    let explain = async || rig.get("/routing/explain?msg_id=1001&key=k").await.1;
    let instance =
        async |n: usize| rig.get("/services").await.1["services"]["logic"]["instances"][n].clone();
    let owner = explain().await["owner"].as_str().unwrap().to_owned();
    let path = format!("/instances/{owner}");
    let (status, body) = rig.post(&format!("{path}/drain"), "").await;
    assert_eq!((status, &body["draining"]), (200, &json!(true)));
    let index = usize::from(owner == "logic-2");
    assert_eq!(instance(index).await["draining"], true);
    let after = explain().await;
    assert_ne!(after["owner"], owner.as_str());
    assert_eq!(after["version"], 2);
    assert!(after["why"].to_string().contains("is draining: it is not on the ring"), "{after}");
    assert_eq!(rig.get("/health").await.1["services"]["logic"]["usable"], 1);
    assert_eq!(rig.post(&format!("{path}/undrain"), "{}").await.0, 200);
    assert_eq!(explain().await["owner"], owner.as_str());
}

#[tokio::test]
async fn explain_says_what_was_hashed_who_owns_it_and_what_each_shard_would_do() {
    let rig = rig(&[Fake::Good, Fake::Good]);
    rig.healthy().await;
    let ask = async |query: &str| rig.get(&format!("/routing/explain?{query}")).await;
    let (_, by_key) = ask("msg_id=1999&key=room%201&session=0123456789abcdef").await;
    assert_eq!((&by_key["hash_on"], &by_key["hashed"]), (&json!("key"), &json!("key")));
    assert_eq!((&by_key["range"], &by_key["service"]), (&json!([1000, 1999]), &json!("logic")));
    assert_eq!(by_key["hash"].as_str().unwrap().len(), 16);
    assert_eq!(by_key["instance"], by_key["owner"]);
    let shard = &by_key["shards"][1];
    assert_eq!((&shard["shard"], &shard["instance"]), (&json!(1), &json!("logic-2")));
    assert_eq!(shard["cached"], json!({"owner": "logic-2", "age_ms": 7}));
    assert_eq!(shard["links"], json!({"logic-1": "down", "logic-2": "up"}));
    let (_, by_session) = ask("msg_id=1999&session=0123456789abcdef").await;
    assert_eq!(by_session["hashed"], "session");
    assert_ne!(by_session["hash"], by_key["hash"]);
    let shares = |shard: usize| by_session["shards"][shard]["shares"].clone();
    let mut of_session = json!({"of": "session", "waiting": 2, "in_flight": 1, "slow": true});
    assert_eq!(shares(1), json!([of_session, {"of": "all", "waiting": 2, "in_flight": 1}]));
    of_session["slow"] = false.into();
    assert_eq!(shares(0)[0], of_session);
    let why: Vec<&str> =
        by_session["why"].as_array().unwrap().iter().flat_map(|w| w.as_str()).collect();
    let slow: Vec<&&str> = why.iter().filter(|why| why.contains("slow")).collect();
    assert!(
        slow.len() == 1 && slow[0].starts_with("shard 1 sends messages of this session"),
        "{why:?}"
    );
    // This gateway has one tenant: no message is routed by the name of another.
    let (_, with_tenant) = ask("msg_id=1999&key=room%201&tenant=1").await;
    assert_eq!(with_tenant["hash"], by_key["hash"]);
    assert!(with_tenant["why"][0].as_str().unwrap().starts_with("auth.tenants is \"one\""));
    let (_, nothing) = ask("msg_id=1000").await;
    assert_eq!((&nothing["hash"], &nothing["shards"]), (&Value::Null, &json!([])));
    assert!(nothing["why"][0].as_str().unwrap().contains("add key= or session="));
    let (_, no_route) = ask("msg_id=5&key=k").await;
    assert!(no_route["why"][0].as_str().unwrap().starts_with("NO_ROUTE"));
    let (_, own) = ask("msg_id=9000").await;
    assert!(own["why"][0].as_str().unwrap().contains("the gateway answers"));
    let two_tenants = "msg_id=1000&tenant=a&tenant=b";
    let of_groups =
        ["group=", "group=a%20b", "group=a&msg_id=1", "group=a&key=k", "group=a&user=u"];
    let of_messages = ["", "msg_id=x", "msg_id=-1", two_tenants, "msg_id=1&room=2"];
    for bad in of_messages.into_iter().chain(of_groups) {
        assert_eq!(ask(bad).await.0, 400, "{bad}");
    }
}

#[tokio::test]
async fn connections_are_counted_ranked_and_found() {
    let rig = rig(&[Fake::Good, Fake::Good]);
    rig.healthy().await;
    let (_, counts) = rig.get("/connections").await;
    assert_eq!((&counts["connections"], &counts["top"]), (&json!(3), &Value::Null));
    let (_, top) = rig.get("/connections?top=1").await;
    assert_eq!(top["top"].as_array().unwrap().len(), 1);
    let first = &top["top"][0];
    let told = ["shard", "work", "messages"].map(|key| first[key].as_u64());
    assert_eq!(told, [1, 1, 8].map(Some));
    let session = top["top"][0]["session"].as_str().unwrap();
    let (_, one) = rig.get(&format!("/connections?session={session}")).await;
    assert_eq!(
        (&one["session"]["session"], &one["session"]["phase"]),
        (&session.into(), &json!("open"))
    );
    assert_eq!(rig.get("/connections?session=nobody").await.0, 404);
    assert_eq!(rig.get("/connections?top=all").await.0, 400);
}

#[tokio::test]
async fn a_silent_shard_is_named_where_shards_are_asked() {
    let rig = rig(&[Fake::Good, Fake::Mute]);
    let (status, body) = rig.get("/connections?top=5").await;
    assert_eq!((status, &body["silent_shards"]), (200, &json!([1])));
    assert_eq!(body["top"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn probes_are_answered_in_a_word() {
    let rig = rig(&[Fake::Good, Fake::Mute]);
    rig.get("/health").await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(rig.raw(&get("/healthz")).await, (200, "ok\n".into()));
    // A shard that is ready and slow still serves.
    assert_eq!(rig.raw(&get("/readyz")).await.0, 200);
    let (status, body) = rig.post("/drain", "").await;
    assert_eq!((status, &body["status"]), (202, &json!("draining")));
    let end = rig.ended().await;
    assert_eq!(end.code(), 1, "two fake shards cut off two messages each");
}

#[tokio::test]
async fn a_gateway_is_not_ready_before_its_sources_have_answered_or_been_waited_for() {
    // It takes connections and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = silent.local_addr().unwrap();
    let etcd = format!("etcd.endpoints = [\"http://{endpoint}\"]");
    let rig = rig_with(&[Fake::Good], &etcd);
    let ready = "GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let pause = Duration::from_millis(20);
    while rig.get("/stats").await.1["shards"][0]["state"] != "ready" {
        tokio::time::sleep(pause).await;
    }
    assert_eq!(rig.raw(ready).await.0, 503);
    let (_, health) = rig.get("/health").await;
    assert_eq!(health["sources"]["etcd"]["state"], "silent", "it says what is waited for");
    while rig.raw(ready).await.0 != 200 {
        tokio::time::sleep(pause).await;
    }
}

#[tokio::test]
async fn draining_twice_does_not_abort() {
    let rig = rig(&[Fake::Good, Fake::Dead]);
    rig.get("/health").await;
    for _ in 0..2 {
        assert_eq!(rig.post("/drain", "").await.0, 202);
    }
    let (status, body) = rig.get("/health").await;
    assert_eq!((status, &body["status"]), (503, &json!("draining")));
    assert_eq!(rig.raw("GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.0, 503);
}

#[tokio::test]
async fn no_answer_contains_a_secret() {
    let rig = rig(&[Fake::Good]);
    rig.healthy().await;
    for route in ROUTES.iter().filter(|route| route.method() == "GET") {
        let request = format!("GET {}?msg_id=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n", route.path);
        let (_, body) = rig.raw(&request).await;
        assert!(!body.contains("swordfish") && !body.contains(TOKEN), "{}", route.path);
    }
    let (_, config) = rig.get("/config").await;
    let settings = config["settings"].as_array().unwrap();
    let of = |key: &str| settings.iter().find(|s| s["key"] == key).unwrap();
    assert_eq!(of("admin.token")["value"], "\"<redacted>\"");
    assert!(of("stop.grace_ms")["source"].as_str().unwrap().ends_with("gateway.toml:2"));
}

#[tokio::test]
async fn histograms_are_a_log_that_the_standard_reader_reads() {
    use base64::Engine as _;
    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    let rig = rig(&[Fake::Good, Fake::Good]);
    rig.healthy().await;
    let (_, log) = rig.raw("GET /histograms HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    let mut tags = BTreeSet::new();
    for entry in IntervalLogIterator::new(log.as_bytes()) {
        let LogEntry::Interval(interval) = entry.unwrap() else { continue };
        let bytes =
            base64::engine::general_purpose::STANDARD.decode(interval.encoded_histogram()).unwrap();
        let read: Histogram<u64> = Deserializer::new().deserialize(&mut &bytes[..]).unwrap();
        let tag = interval.tag().unwrap().as_str().to_owned();
        assert_eq!(read.len(), u64::from(tag.starts_with("round_trip")), "{tag}");
        tags.insert(tag);
    }
    assert_eq!(tags.len(), 2 * Stage::ALL.len());
    assert!(tags.contains("round_trip-1"));
}

#[tokio::test]
async fn readers_of_intervals_get_what_came_since_their_own_marks() {
    let rig = rig(&[Fake::Good]);
    rig.healthy().await;
    let read = async |since: &str| {
        let request = format!("GET /histograms?since={since} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let (status, log) = rig.raw(&request).await;
        let mark = log.lines().find_map(|line| line.strip_prefix("#[Mark: ")?.strip_suffix("]"));
        let largest = |line: &str| line.split(',').nth(3).and_then(|max| max.parse::<f64>().ok());
        let tagged = log.lines().find(|line| line.starts_with("Tag=round_trip-0,"));
        let (mark, max) = (mark.map(str::to_owned), tagged.and_then(largest));
        (status, mark.unwrap_or_default(), max.unwrap_or(-1.0))
    };
    let (status, one, max) = read("start").await;
    assert_eq!((status, max > 0.0), (200, true), "the whole time");
    let (_, two, max) = read(&one).await;
    assert_eq!(max, 0.0, "the shard recorded nothing since");
    assert!(read("start").await.2 > 0.0, "another reader has it all");
    assert_eq!(read(&two).await.0, 200);
    // Its reader has shown the mark after it.
    assert_eq!(read(&one).await.0, 410);
    for unknown in ["1", "0-1", "", "x-1", "1-1e9"] {
        assert_eq!(read(unknown).await.0, 410, "{unknown}");
    }
    assert_eq!(rig.raw("GET /histograms?from=1 HTTP/1.1\r\nHost: localhost\r\n\r\n").await.0, 400);
}

#[tokio::test]
async fn metrics_have_help_units_and_no_labels_of_clients() {
    let rig = rig(&[Fake::Good, Fake::Good]);
    rig.healthy().await;
    let (_, text) = rig.raw("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    for expected in [
        "shardgate_connections{shard=\"1\"} 2\n",
        "shardgate_cache_hits_total{shard=\"0\"} 3\n",
        "shardgate_refusals_total{shard=\"1\",reason=\"QUEUE_FULL\"} 2\n",
        "shardgate_stage_seconds_bucket{shard=\"0\",stage=\"round_trip\",le=\"0.0005\"} 0\n",
        "shardgate_stage_seconds_bucket{shard=\"0\",stage=\"round_trip\",le=\"0.001\"} 1\n",
        "shardgate_stage_seconds_count{shard=\"0\",stage=\"round_trip\"} 1\n",
        "shardgate_instance_ok_total{service=\"logic\",instance=\"logic-1\"} 9\n",
        "shardgate_reloads_total{result=\"refused\"} 0\n",
        "shardgate_shard_up{shard=\"1\"} 1\n",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    let known = ["shard", "stage", "le", "reason", "fault", "service", "instance", "standing"];
    let more = ["version", "node", "result", "source", "kind"];
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        assert!(line.starts_with("shardgate_"), "{line}");
        let Some((_, rest)) = line.split_once('{') else { continue };
        for label in
            rest.split('}').next().unwrap().split("\",").map(|l| l.split('=').next().unwrap())
        {
            assert!(known.contains(&label) || more.contains(&label), "{line}");
        }
    }
    let named = |mark: &str| -> BTreeSet<String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(mark));
        lines.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    };
    assert_eq!(named("# HELP "), named("# TYPE "));
}

/// Paths of the description, with their methods.
fn described(document: &Value) -> BTreeSet<(String, String)> {
    let paths = document["paths"].as_object().unwrap();
    let of = |(path, item): (&String, &Value)| -> Vec<(String, String)> {
        let methods = item.as_object().unwrap().keys().filter(|key| *key != "parameters");
        methods.map(|method| (method.to_uppercase(), path.clone())).collect()
    };
    paths.iter().flat_map(of).collect()
}

#[test]
fn the_description_has_exactly_the_routes_of_the_router() {
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let routes = ROUTES.iter().map(|r| (r.method().to_owned(), r.path.to_owned()));
    assert_eq!(described(&document), routes.collect());
    for (method, path) in described(&document) {
        let operation = &document["paths"][&path][method.to_lowercase()];
        assert!(operation["summary"].is_string() && operation["operationId"].is_string(), "{path}");
        assert_eq!(operation["security"].is_null(), method == "GET", "{path}");
        let parameters = document["paths"][&path]["parameters"].as_array();
        assert_eq!(parameters.is_some(), path.contains('{'), "{path}");
    }
}

#[tokio::test]
async fn answers_have_the_keys_that_the_description_requires() {
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    let rig = rig(&[Fake::Good, Fake::Good]);
    rig.healthy().await;
    let mut checked = 0;
    for route in ROUTES.iter().filter(|route| !["/drain", "/log"].contains(&route.path)) {
        let operation = &document["paths"][route.path][route.method().to_lowercase()];
        let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
        let path = route.path.replace("{id}", "logic-1");
        let asked = match route.path {
            "/routing/explain" => vec![
                (&schema["oneOf"][0], format!("{path}?msg_id=1000&key=k")),
                (&schema["oneOf"][1], format!("{path}?group=room:7")),
            ],
            _ => vec![(schema, path)],
        };
        for (schema, path) in asked {
            let Some(required) = schema["required"].as_array() else { continue };
            let (status, answer) = match route.method() {
                "POST" => rig.post(&path, "").await,
                _ => rig.get(&path).await,
            };
            assert_eq!(status, 200, "{path}: {answer}");
            let wanted: BTreeSet<_> = required.iter().map(|key| key.as_str().unwrap()).collect();
            let found: BTreeSet<_> =
                answer.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(found, wanted, "{path}");
            checked += 1;
        }
    }
    assert!(checked >= 13, "{checked}");
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_one_clear_line() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = access::TlsEndpoint::start();
    let settings = endpoint.settings.clone();
    let other = dir.path().join("other");
    let error = |settings: &AdminSettings| {
        let (cert, key) = (settings.tls_cert.as_deref(), settings.tls_key.as_deref());
        server_tls::acceptor("admin", cert, key, &[]).err().unwrap()
    };
    let none = AdminSettings { tls_cert: Some(dir.path().join("none")), ..settings.clone() };
    assert!(error(&none).contains("admin.tls_cert = ") && error(&none).contains("No such file"));
    std::fs::write(&other, "nothing").unwrap();
    let empty = AdminSettings { tls_cert: Some(other.clone()), ..settings.clone() };
    assert!(error(&empty).contains("no PEM certificate"), "{}", error(&empty));
    let no_key = AdminSettings { tls_key: Some(other.clone()), ..settings.clone() };
    assert!(error(&no_key).contains("no PEM private key"), "{}", error(&no_key));
    let stranger = rcgen::KeyPair::generate().unwrap();
    std::fs::write(&other, stranger.serialize_pem()).unwrap();
    let wrong = error(&AdminSettings { tls_key: Some(other), ..settings });
    assert!(wrong.contains("does not go with admin.tls_cert") && !wrong.contains('\n'), "{wrong}");
}
