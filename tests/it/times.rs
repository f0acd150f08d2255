//! Where the time goes, as an operator sees it: traces of turns, and histograms by interval.

use serde_json::{Value, json};

use crate::support::{Client, Config, Gateway, Instance, eventually};

fn slices<'a>(trace: &'a Value, name: &str) -> Vec<&'a Value> {
    let events = trace["traceEvents"].as_array().expect("a list");
    events.iter().filter(|event| event["ph"] == "X" && event["name"] == name).collect()
}

/// Sum of what was counted in these slices.
fn sum(slices: &[&Value], what: &str) -> u64 {
    slices.iter().filter_map(|slice| slice["args"][what].as_u64()).sum()
}

fn time(slice: &Value, key: &str) -> f64 {
    slice[key].as_f64().expect("a time")
}

#[test]
fn a_trace_shows_what_the_turns_of_a_shard_did_and_when() {
    let instance = Instance::echo();
    let config =
        Config::new().service("logic", &[("a", instance.address)]).route(1000, "logic", "");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let mut client = Client::connect(gateway.ws);
    let (trace, refused) = std::thread::scope(|scope| {
        let traced = scope.spawn(|| {
            // The short ones below may come first.
            let mut traces = std::iter::repeat_with(|| gateway.admin_post("/trace?ms=1500", ""));
            let (status, trace) = traces.find(|(status, _)| *status != 409).expect("endless");
            assert_eq!(status, 200, "{trace}");
            trace
        });
        let mut refused = 0;
        while !traced.is_finished() {
            assert_eq!(client.call(1001, json!(1))["payload"], 1);
            refused += u32::from(gateway.admin_post("/trace?shard=0&ms=1", "").0 == 409);
        }
        (traced.join().expect("a trace"), refused)
    });
    assert!(refused > 0, "one at a time");
    assert_eq!(trace["otherData"]["end"], "complete");
    let reads = slices(&trace, "read");
    let messages = sum(&reads, "frames_in");
    assert!(messages > 10 && sum(&reads, "bytes_in") > 20 * messages, "{messages}");
    assert!(sum(&slices(&trace, "flush"), "sends") > 10);
    assert!(sum(&slices(&trace, "batches"), "dispatched") > 10, "{trace}");
    // Every turn lies between two waits, and its steps in it.
    let turns = slices(&trace, "turn");
    for pair in turns.windows(2) {
        assert!(time(pair[0], "ts") + time(pair[0], "dur") <= time(pair[1], "ts"), "{pair:?}");
    }
    let lasted = time(turns[turns.len() - 1], "ts") - time(turns[0], "ts");
    assert!((1_000_000.0..2_500_000.0).contains(&lasted), "{lasted} us");
}

#[test]
fn a_trace_that_cannot_be_is_refused_in_a_sentence() {
    let gateway = Gateway::start(&Config::new().shards(1));
    for (query, status) in [
        ("?shard=7", 404),
        ("?shard=-1", 400),
        ("?ms=0", 400),
        ("?ms=5001", 400),
        ("?ms=18446744073709551616", 400),
        ("?seconds=1", 400),
    ] {
        let (found, answer) = gateway.admin_post(&format!("/trace{query}"), "");
        assert_eq!(found, status, "{query}: {answer}");
        assert!(answer["error"].is_string(), "{answer}");
    }
    assert_eq!(gateway.request("POST /trace", "Content-Type: application/json\r\n", "").0, 401);
    let (status, trace) = gateway.admin_post("/trace?ms=50", "{}");
    assert_eq!((status, &trace["otherData"]["end"]), (200, &json!("complete")), "at rest");
}

#[test]
fn the_times_of_each_interval_are_appended_to_a_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("times.hlog");
    let config =
        Config::new().key("histograms.every_s = 1").key(&format!("histograms.file = {path:?}"));
    let gateway = Gateway::start(&config);
    let intervals = |at_least: usize| {
        eventually("intervals are written", || {
            let text = std::fs::read_to_string(&path).ok()?;
            let stalls = text.lines().filter(|line| line.starts_with("Tag=stall-0,"));
            (stalls.count() >= at_least).then_some(text)
        })
    };
    let text = intervals(2);
    assert!(text.starts_with("#[Histogram log of shardgate "), "{text}");
    let starts: Vec<f64> = text
        .lines()
        .filter_map(|line| line.strip_prefix("Tag=stall-0,")?.split(',').next()?.parse().ok())
        .collect();
    assert!(starts.is_sorted_by(|a, b| a < b), "{starts:?}");
    // Off by a reload: no more is written, and nobody is asked.
    gateway.rewrite(&Config::new().key("histograms.every_s = 0"));
    let (status, answer) = gateway.admin_post("/reload", "");
    assert_eq!(status, 200, "{answer}");
    assert!(gateway.log().contains("histogram_log: "), "{}", gateway.log());
}
