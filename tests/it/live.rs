//! `/live` of a real gateway: its rows are what happened, and add up to `/stats`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Action, Client, Config, Gateway, Instance, eventually, ok, several};

/// A poller that collects the rows, as the dashboard does.
#[derive(Default)]
struct Poller {
    mark: String,
    rows: Vec<Value>,
    /// The last answer.
    last: Value,
}

impl Poller {
    fn poll(&mut self, gateway: &Gateway) {
        let path = match self.mark.as_str() {
            "" => "/live".to_owned(),
            mark => format!("/live?since={mark}"),
        };
        self.last = gateway.admin_get(&path);
        self.mark = self.last["mark"].as_str().expect("a mark").to_owned();
        self.rows.extend(self.last["rows"].as_array().expect("rows").iter().cloned());
    }

    /// Sum of the growth of each counter (or reason) over all rows.
    fn sums(&self, of: &str) -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        for row in &self.rows {
            for (name, n) in row[of].as_object().expect("counts") {
                *sums.entry(name.clone()).or_default() += n.as_u64().expect("a number");
            }
        }
        sums
    }
}

fn nonzero(counts: &Value) -> BTreeMap<String, u64> {
    let counts = counts.as_object().expect("counts").iter();
    let counts = counts.map(|(name, n)| (name.clone(), n.as_u64().expect("a number")));
    counts.filter(|(_, n)| *n > 0).collect()
}

#[test]
fn the_rows_of_a_poller_add_up_to_what_stats_counts() {
    let logic = Instance::echo();
    let config = Config::new()
        .shards(several())
        .service("logic", &[("logic-1", logic.address)])
        .route(1000, "logic", "");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["logic-1"]);
    let mut poller = Poller::default();
    let mut clients: Vec<Client> = (0..6).map(|_| Client::connect(gateway.ws)).collect();
    for n in 0..20 {
        for client in &mut clients {
            assert_eq!(client.call(1001, json!(n))["payload"], n);
            assert_eq!(client.call(7, json!(n))["reason"], "NO_ROUTE");
        }
        poller.poll(&gateway);
    }
    eventually("rows have all of it", || {
        poller.poll(&gateway);
        let stats = gateway.admin_get("/stats");
        let counted = nonzero(&stats["counters"]);
        let agrees = poller.sums("counters") == counted;
        (agrees && poller.sums("reasons") == nonzero(&stats["reasons"])).then_some(())
    });
    assert_eq!(poller.sums("counters")["business_messages"], 6 * 40);
    assert_eq!(poller.sums("reasons")["NO_ROUTE"], 6 * 20);
    // Each row came once, in order.
    let numbers: Vec<u64> = poller.rows.iter().filter_map(|row| row["n"].as_u64()).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    let whole: u64 = poller.rows.iter().filter_map(|row| row["stages"]["whole"][0].as_u64()).sum();
    assert_eq!(whole, gateway.admin_get("/stats")["stages"]["whole"]["count"]);
    let last = poller.rows.last().expect("rows");
    assert_eq!(last["levels"]["connections"], 6);
    let of_shards = last["shards"].as_array().expect("a list");
    assert_eq!(of_shards.iter().filter_map(|shard| shard[4].as_u64()).sum::<u64>(), 6);
    assert_eq!(of_shards.len(), gateway.shards);
    let busy: u64 = poller
        .rows
        .iter()
        .flat_map(|row| row["shards"].as_array().expect("a list"))
        .filter_map(|shard| shard[2].as_u64())
        .sum();
    assert!(busy > 0, "the threads ran");
    // The state now is that of everything else.
    assert_eq!(poller.last["health"]["status"], "ok");
    assert_eq!(poller.last["findings"], json!([]), "all is well");
    let one = &poller.last["instances"]["shown"][0];
    assert_eq!((&one["id"], &one["connected"]), (&json!("logic-1"), &json!(gateway.shards)));
    assert_eq!((&one["standing"], &one["failed"]), (&json!("unchecked"), &json!(0)));
}

#[test]
fn one_of_two_instances_that_is_slow_is_found_and_its_times_are_its_own() {
    let slow = Instance::start(|call| {
        // The fault that is to be found.
        std::thread::sleep(Duration::from_millis(60));
        Action::Reply(call.batch.requests.iter().map(ok).collect())
    });
    let quick = Instance::echo();
    let config = Config::new()
        .service("logic", &[("quick", quick.address), ("slow", slow.address)])
        .route(1000, "logic", "hash_on = \"key\"");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["quick", "slow"]);
    let mut client = Client::connect(gateway.ws);
    let mut n = 0;
    let answer = eventually("it is found", || {
        for _ in 0..10 {
            n += 1;
            client.ask(json!({"msg_id": 1001, "key": format!("room-{n}"), "payload": n}));
        }
        let answer = gateway.admin_get("/live");
        let found = answer["findings"].as_array().expect("a list").iter();
        let is_slow = |f: &Value| f["text"].as_str().is_some_and(|text| text.contains("is slow"));
        let names: Vec<_> = found.filter(|f| is_slow(f)).map(|f| f["name"].clone()).collect();
        (names == ["slow"]).then_some(answer)
    });
    let p50 = |n: usize| answer["instances"]["shown"][n]["p50_us"].as_u64().expect("calls");
    assert!(p50(1) >= 60_000 && p50(0) < p50(1) / 3, "{answer}");
}

#[test]
fn warnings_of_the_log_come_once_and_hold_no_secret() {
    let gateway = Gateway::start(&Config::new().key("admin.token = \"a-token-that-is-secret\""));
    let mut poller = Poller::default();
    poller.poll(&gateway);
    let mut client = Client::connect(gateway.ws);
    assert_eq!(client.call(77, json!(1))["reason"], "NO_ROUTE");
    let lines = |poller: &Poller| poller.last["warnings"].as_array().expect("a list").clone();
    let line = eventually("it is told", || {
        poller.poll(&gateway);
        lines(&poller).into_iter().find(|l| l["text"].to_string().contains("route_failed"))
    });
    assert_eq!(
        (&line["level"], &line["target"]),
        (&json!("WARN"), &json!("shardgate::engine::stats"))
    );
    let text = line["text"].as_str().expect("a text");
    assert!(
        text.contains("msg_id=77") && gateway.log().contains(text),
        "{text}\n{}",
        gateway.log()
    );
    for _ in 0..3 {
        poller.poll(&gateway);
        assert_eq!(lines(&poller), Vec::<Value>::new(), "it was told");
    }
    assert!(!gateway.admin_get("/live").to_string().contains("a-token-that-is-secret"));
    assert_eq!(gateway.admin("/live?since=1").0, 400);
}
