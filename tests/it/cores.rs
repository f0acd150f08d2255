//! Cores: which thread of a running gateway stands where.

use std::collections::BTreeSet;
use std::fs;

use rustix::thread::{CpuSet, sched_setaffinity};
use rustls::version::TLS13;
use serde_json::json;

use crate::support::{Client, Config, Gateway, secure};

/// Name and allowed cores of each thread of the gateway.
fn threads(gateway: &Gateway) -> Vec<(String, Vec<usize>)> {
    let tasks =
        fs::read_dir(format!("/proc/{}/task", gateway.pid().as_raw_nonzero())).expect("it runs");
    let one = |task: fs::DirEntry| {
        // A thread may have ended meanwhile.
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let field = |key| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        Some((field("Name:")?.to_owned(), cores(field("Cpus_allowed_list:")?)))
    };
    tasks.flatten().filter_map(one).collect()
}

/// Numbers of a list such as `0-3,8`.
fn cores(list: &str) -> Vec<usize> {
    let number = |text: &str| text.parse::<usize>().expect("a number");
    let part = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        number(first)..=number(last)
    };
    list.split(',').flat_map(part).collect()
}

/// Cores that this test may use.
fn allowed() -> Vec<usize> {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    cores(list.expect("every kernel tells it").trim())
}

/// A configuration with demo services, so that every kind of thread is there.
fn with_demo() -> Config {
    let anywhere = ["127.0.0.1:0"; 3];
    Config::default()
        .key("log.filter = \"info\"")
        .key(&format!("demo.addresses = {anywhere:?}"))
        .service("logic", &[("a", "127.0.0.1:1".parse().expect("an address"))])
        .route(1000, "logic", "")
}

#[test]
fn no_thread_is_on_the_core_of_a_shard_while_there_are_others() {
    let allowed = allowed();
    if allowed.len() < 2 {
        return eprintln!("skipped: it takes two cores, and this process may use {allowed:?}");
    }
    // A single shard, on one of them.
    let gateway = Gateway::start(&with_demo());
    let told = &gateway.admin_get("/config")["cores"];
    let core = told["shards"][0].as_u64().expect("a core") as usize;
    let others: Vec<usize> = allowed.iter().copied().filter(|&other| other != core).collect();
    let threads = threads(&gateway);
    for (name, cores) in &threads {
        let expected = if name == "shard-0" { &vec![core] } else { &others };
        assert_eq!(cores, expected, "{name} of {threads:?}");
    }
    let names: BTreeSet<&str> = threads.iter().map(|(name, _)| name.as_str()).collect();
    let known = ["demo", "log", "log-repeats", "pulse", "shard-0", "shardgate"];
    assert_eq!(names, BTreeSet::from(known));
    assert_eq!(*told, json!({ "shards": [core], "other_threads": others }));
    let line = format!("shard_cores=[{core}] other_cores={others:?}");
    assert!(gateway.log().contains(&line), "{}", gateway.log());
}

#[test]
fn threads_share_the_cores_of_shards_when_there_are_no_others() {
    let allowed = allowed();
    let gateway = Gateway::start(&with_demo().shards(allowed.len()));
    let told = &gateway.admin_get("/config")["cores"];
    assert_eq!(*told, json!({ "shards": allowed, "other_threads": allowed }));
    for (name, cores) in threads(&gateway) {
        let shard = name.strip_prefix("shard-").map(|n| n.parse::<usize>().expect("its number"));
        assert_eq!(cores, shard.map_or_else(|| allowed.clone(), |n| vec![allowed[n]]), "{name}");
    }
}

/// Runs `act` on one core.
fn on_core<T: Send>(core: usize, act: impl FnOnce() -> T + Send) -> T {
    let pinned = || {
        let mut set = CpuSet::new();
        set.set(core);
        sched_setaffinity(None, &set).expect("an allowed core");
        act()
    };
    std::thread::scope(|scope| scope.spawn(pinned).join().expect("it does not panic"))
}

/// The shard that a client was welcomed by.
fn shard_of(client: &Client) -> u64 {
    client.welcome["shard"].as_u64().expect("a number")
}

#[test]
fn connections_go_to_the_shard_on_the_core_of_their_packets_if_asked_for() {
    let allowed = allowed();
    let [first, second, ..] = allowed[..] else {
        return eprintln!("skipped: it takes two cores, and this process may use {allowed:?}");
    };
    let (signer, certs) = (secure::Signer::new(), tempfile::tempdir().expect("a directory"));
    signer.write(certs.path(), "a", &["a.test"]);
    // Shard 0 is on the second core.
    let config = Config::new()
        .shards(2)
        .file("0.toml", &format!("shard.core = {second}\n"))
        .file("1.toml", &format!("shard.core = {first}\n"))
        .key("shards.steer_by_cpu = true")
        .key("tls.listen = \"127.0.0.1:0\"")
        .key(&super::tls::certificate(&certs, "a"));
    let gateway = Gateway::start(&config);
    let tls = std::sync::Arc::new(signer.client(&TLS13));
    let wss = gateway.wss.expect("TLS is on");
    // By a hash each connection would have one chance in two, and all of them one in 2^80.
    for (core, shard) in [(first, 1), (second, 0), (first, 1), (second, 0)] {
        on_core(core, || {
            for _ in 0..10 {
                assert_eq!(shard_of(&Client::connect(gateway.ws)), shard, "from core {core}");
                let secure = Client::secure(wss, &tls, "a.test");
                assert_eq!(shard_of(&secure), shard, "with TLS, from core {core}");
            }
        });
        assert_eq!(gateway.admin_post("/reload", "").0, 200, "it changes nothing");
    }
    assert!(!gateway.log().contains("steering_refused"), "{}", gateway.log());
}
