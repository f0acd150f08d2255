//! Control against fake shards: tasks that answer their mailboxes; the admin endpoint by raw HTTP.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::compose::Composer;
use super::request::ControlRequest;
use super::*;
use crate::auth::load::LocalKeys;
use crate::config::{Loader, Overrides};
use crate::ids::{InstanceId, SessionId, ShardId};
use crate::inspect::{
    Asked, ConnInfo, GroupInfo, Inspection, MembersInfo, Query, RouteInfo, ShareInfo,
};
use crate::lanes::{Doorbell, LaneReceiver, LaneSender, lane};
use crate::mailbox::{Command, ShardEvent};
use crate::message::{CallFault, Encoding, Micros, Reason};
use crate::stats::{
    CallTimes, Counter, Counters, Gauges, Histograms, InstanceReport, Report, Stage,
};
use crate::tls::load::LocalTls;

/// Behaviour of a fake shard.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Fake {
    Good,
    /// Becomes ready, and answers nothing but a drain.
    Mute,
    /// Becomes ready, and answers nothing at all.
    Dead,
    /// Fails instead of becoming ready.
    Failing,
}

pub(super) fn report(shard: ShardId) -> Report {
    let n = u64::from(shard.0) + 1;
    let mut counters = Counters::default();
    for (counter, value) in [
        (Counter::CacheHits, 3 * n),
        (Counter::CacheMisses, n),
        (Counter::Dispatched, 4 * n),
        (Counter::DispatchOk, 3 * n),
        (Counter::DispatchFailed, n),
        (Counter::BadMessages, n),
        (Counter::BusinessErrors, n),
    ] {
        counters.add(counter, value);
    }
    let mut histograms = Histograms::default();
    histograms.record(Stage::RoundTrip, 1000, 1);
    Report {
        number: 0,
        shard,
        at: Micros(1),
        busy_us: 0,
        counters,
        reasons: [n; Reason::ALL.len()],
        events: Default::default(),
        faults: vec![(CallFault::Reset, n)],
        gauges: Gauges {
            connections: n,
            usage_ratio: 0.25 * n as f64,
            is_throttling: n == 2,
            snapshot_version: 7,
            ..Gauges::default()
        },
        histograms,
        instances: vec![InstanceReport {
            instance: InstanceId(0),
            connected: true,
            why_down: None,
            waiting: n,
            in_flight: 0,
            ok: 3 * n,
            failed: n,
            times: CallTimes::default(),
        }],
        tenants: Vec::new(),
        held_back: Vec::new(),
    }
}

/// Files of a gateway with one service and two instances.
const GATEWAY_TOML: &str = r#"
stop.grace_ms = 50
admin.token = "a-token-of-the-tests"
etcd.user = "gateway"
etcd.password = "swordfish-swordfish"
[[service]]
name = "logic"
instances = [{ id = "logic-1", address = "127.0.0.1:50001" },
             { id = "logic-2", address = "127.0.0.1:50002", weight = 2 }]
[[route]]
range = [1000, 1999]
service = "logic"
hash_on = "key""#;

/// A shard's answer: it has one connection, and routes everything to instance 1, which its cache
/// knows.
fn inspect(shard: ShardId, query: &Query) -> Inspection {
    let session = SessionId::new(shard, 0);
    let conn = ConnInfo {
        session,
        peer: ([127, 0, 0, 1], 9).into(),
        phase: "open",
        encoding: Encoding::Json,
        // The more messages, the less work.
        messages: 9 - u64::from(shard.0),
        work: u64::from(shard.0),
        unanswered: 1,
        unanswered_bytes: 2,
        outbox_bytes: 3,
        paused: false,
        age_us: 5_000,
        heard_us: 1_000,
    };
    match query {
        Query::TopTalkers(_) => Inspection::Conns(vec![conn]),
        Query::Session(asked) if asked == session.as_str() => Inspection::Conns(vec![conn]),
        Query::Session(_) => Inspection::Conns(Vec::new()),
        Query::Route { sender, .. } => Inspection::Route(RouteInfo {
            version: 1,
            cached: Some((InstanceId(1), 7_000)),
            chosen: Some(InstanceId(1)),
            links: vec![(InstanceId(0), "down"), (InstanceId(1), "up")],
            shares: (*sender != Asked::Nobody).then(|| {
                let of_session = ShareInfo { of: "session", waiting: 2, in_flight: 1, slow: None };
                let all = ShareInfo { of: "all", ..of_session };
                // Shard 1 holds it slow.
                vec![ShareInfo { slow: Some(shard.0 == 1), ..of_session }, all]
            }),
        }),
        Query::Members { .. } => Inspection::Members(MembersInfo::default()),
        Query::Groups(groups) => Inspection::Groups(vec![GroupInfo::default(); groups.len()]),
        Query::History { .. } => Inspection::History(None),
        Query::SessionsOf { .. } => Inspection::Sessions(Vec::new()),
        Query::TopGroups(_) => Inspection::TopGroups(Vec::new()),
        Query::GroupDetails(groups) => Inspection::GroupDetails(vec![None; groups.len()]),
    }
}

async fn fake_shard(
    shard: ShardId,
    fake: Fake,
    mailbox: LaneReceiver<Command>,
    bell: Arc<Doorbell>,
    events: LaneSender<ShardEvent>,
) {
    let say = |event| events.try_send(event).unwrap();
    if fake == Fake::Failing {
        return say(ShardEvent::Failed { shard });
    }
    say(ShardEvent::Ready(shard));
    loop {
        while let Some(command) = mailbox.try_recv() {
            match command {
                Command::Report(number) if fake == Fake::Good => {
                    say(ShardEvent::Report(Box::new(Report { number, ..report(shard) })));
                }
                Command::Sample if fake == Fake::Good => {
                    say(ShardEvent::Sample(Box::new(report(shard))));
                }
                Command::Drain(_) if fake != Fake::Dead => {
                    return say(ShardEvent::Stopped { shard, cut_off: 2 });
                }
                Command::Inspect(query, number) if fake == Fake::Good => {
                    let inspection = inspect(shard, &query);
                    say(ShardEvent::Inspection { shard, number, inspection });
                }
                Command::Abort => return,
                Command::Report(_)
                | Command::Sample
                | Command::Inspect(..)
                | Command::Drain(_)
                | Command::QuotaParts(_)
                | Command::Trace { .. }
                | Command::Apply(_) => {}
            }
        }
        poll_fn(|cx| bell.poll_rung(cx)).await;
    }
}

/// A running control with its fake shards.
pub(super) struct Rig {
    pub(super) admin: SocketAddr,
    requests: mpsc::Sender<ControlRequest>,
    control: JoinHandle<io::Result<ExitReason>>,
    _dir: tempfile::TempDir,
}

/// Token of the admin endpoint.
pub(super) const TOKEN: &str = "a-token-of-the-tests";

pub(super) fn rig(fakes: &[Fake]) -> Rig {
    rig_with(fakes, "")
}

/// A control whose configuration has `more` at its beginning.
pub(super) fn rig_with(fakes: &[Fake], more: &str) -> Rig {
    let bell = Doorbell::new();
    let (tell, events) = lane(64, &bell);
    let shards = (0u16..)
        .zip(fakes)
        .map(|(n, fake)| {
            let mail_bell = Doorbell::new();
            // One command a mailbox: control has to cope with full ones.
            let (mail, mailbox) = lane(1, &mail_bell);
            tokio::spawn(fake_shard(ShardId(n), *fake, mailbox, mail_bell, tell.clone()));
            mail
        })
        .collect();
    let admin = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = admin.local_addr().unwrap();
    let flags = Overrides { no_demo: true, ..Overrides::default() };
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("gateway.toml"), format!("{more}{GATEWAY_TOML}")).unwrap();
    let loader = Loader::open(Some(dir.path()), &[], &flags).unwrap();
    let config = loader.check(&Default::default()).unwrap();
    let inputs = ControlInputs {
        composer: Composer::new(&config),
        config,
        loader,
        local: LocalFiles {
            keys: LocalKeys::default(),
            tls: LocalTls::default(),
            connections_cap: usize::MAX,
        },
        listens: Listens { plain: Some(SocketAddr::from(([127, 0, 0, 1], 9000))), tls: None },
        shards,
        events,
        bell,
        boot_id: 1,
        cores: Cores::default(),
        started: Instant::now(),
        admin,
        probes: None,
        admin_connections: 64,
        registry: None,
        push: None,
        pushes: Vec::new(),
        seed: 1,
        log_dropped: None,
    };
    let (sender, requests) = mpsc::channel(8);
    let control = tokio::spawn(event_loop::serve(inputs, sender.clone(), requests));
    Rig { admin: address, requests: sender, control, _dir: dir }
}

impl Rig {
    /// Status and body of one raw HTTP request.
    pub(super) async fn raw(&self, request: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.admin).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        // An error after the answer (a reset for unread bytes) does not matter.
        let _ = stream.read_to_string(&mut text).await;
        let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        (status, text.split_once("\r\n\r\n").unwrap_or_default().1.to_owned())
    }

    pub(super) async fn get(&self, path: &str) -> (u16, Value) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.admin);
        let (status, body) = self.raw(&request).await;
        (status, serde_json::from_str(&body).unwrap())
    }

    /// Status and body of a change, with all the headers that it takes.
    pub(super) async fn post(&self, path: &str, body: &str) -> (u16, Value) {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Authorization: Bearer {TOKEN}\r\nContent-Length: {}\r\n\r\n{body}",
            self.admin,
            body.len()
        );
        let (status, body) = self.raw(&request).await;
        (status, serde_json::from_str(&body).unwrap())
    }

    /// Asks until all shards have become ready: they are tasks beside this one.
    pub(super) async fn healthy(&self) -> Value {
        loop {
            let (status, body) = self.get("/health").await;
            if body["status"] != "starting" {
                assert_eq!(status, 200, "{body}");
                return body;
            }
        }
    }

    pub(super) async fn ended(self) -> ExitReason {
        self.control.await.unwrap().unwrap()
    }
}

/// Collects all paths of a JSON value; items of lists as `[]`.
fn paths(value: &Value, at: &str, out: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                paths(value, &format!("{at}.{name}"), out);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| paths(item, &format!("{at}[]"), out)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            out.insert(at.to_owned());
        }
    }
}

#[tokio::test]
async fn health_is_ok_when_every_shard_answers() {
    let rig = rig(&[Fake::Good, Fake::Good]);
    let body = rig.healthy().await;
    assert_eq!(body["status"], "ok");
    assert_eq!(body["shards"][1]["state"], "ready");
    assert!(body["shards"][1]["answered_ms_ago"].is_u64() && body["uptime_s"].is_u64());
}

#[tokio::test]
async fn routing_stats_has_the_names_that_tools_rely_on() {
    const NAMES: [&str; 20] = [
        ".backpressure.is_throttling",
        ".backpressure.usage_ratio",
        ".cache.active_entries",
        ".cache.hit_rate",
        ".cache.total_entries",
        ".dispatch.avg_latency_ms",
        ".dispatch.failed_dispatches",
        ".dispatch.success_rate",
        ".dispatch.successful_dispatches",
        ".dispatch.total_dispatched",
        ".handlers.business",
        ".handlers.errors",
        ".handlers.gateway",
        ".handlers.system",
        ".queue.monitor.dequeue_count",
        ".queue.monitor.duplicate_count",
        ".queue.monitor.enqueue_count",
        ".queue.monitor.rejected_count",
        ".queue.size",
        ".routing.cache_hits",
    ];
    const MORE: [&str; 3] =
        [".routing.cache_misses", ".routing.failed_routes", ".routing.total_routes"];
    let rig = rig(&[Fake::Good, Fake::Good]);
    rig.healthy().await;
    let (status, body) = rig.get("/routing/stats").await;
    assert_eq!(status, 200);
    let mut found = BTreeSet::new();
    paths(&body, "", &mut found);
    let own: Vec<_> = NAMES.iter().chain(&MORE).map(|n| n.to_string()).collect();
    let shard = own.iter().map(|n| format!(".shards[]{n}"));
    let expected: BTreeSet<_> =
        own.iter().cloned().chain(shard).chain([".shards[].shard".into()]).collect();
    assert_eq!(found, expected);
    // 1 and 2 times 3 hits and 1 miss.
    assert_eq!(
        (&body["routing"]["total_routes"], &body["cache"]["hit_rate"]),
        (&12.into(), &0.75.into())
    );
    assert_eq!(
        body["backpressure"],
        serde_json::json!({
            "usage_ratio": 0.5, "is_throttling": true
        })
    );
    assert_eq!(
        (&body["handlers"]["errors"], &body["dispatch"]["success_rate"]),
        (&6.into(), &0.75.into())
    );
    let latency = body["dispatch"]["avg_latency_ms"].as_f64().unwrap();
    assert!((latency - 1.0).abs() < 0.02, "{latency}");
    assert_eq!(body["shards"][1]["routing"]["cache_hits"], 6);
}

#[tokio::test]
async fn stats_add_up_the_shards() {
    let rig = rig(&[Fake::Good, Fake::Good]);
    rig.healthy().await;
    let (status, body) = rig.get("/stats").await;
    assert_eq!((status, &body["connections"]), (200, &3.into()));
    assert_eq!(body["counters"].as_object().unwrap().len(), Counter::ALL.len());
    assert_eq!(body["reasons"]["QUEUE_FULL"], 3);
    assert_eq!(body["call_faults"]["reset"], 3);
    assert_eq!(body["stages"]["round_trip"]["count"], 2);
    assert_eq!(body["versions"]["snapshot_by_shard"]["1"], 7);
    let logic = &body["services"]["logic"]["instances"][0];
    assert_eq!((&logic["id"], &logic["connected"]), (&"logic-1".into(), &2.into()));
    assert_eq!((&logic["ok"], &logic["shards"][1]["ok"]), (&9.into(), &6.into()));
    assert_eq!(body["shards"][1]["connections"], 2);
}

#[tokio::test]
async fn a_shard_that_does_not_answer_is_named_and_the_others_are_shown() {
    let rig = rig(&[Fake::Good, Fake::Mute]);
    let (status, body) = rig.get("/health").await;
    assert_eq!((status, &body["status"]), (503, &"degraded".into()));
    assert_eq!(body["silent_shards"], serde_json::json!([1]));
    assert_eq!(body["shards"][1]["state"], "silent");
    let (status, body) = rig.get("/routing/stats").await;
    assert_eq!((status, body["shards"].as_array().unwrap().len()), (200, 1));
}

#[tokio::test]
async fn the_first_stop_drains_and_ends_with_code_0() {
    let rig = rig(&[Fake::Good, Fake::Mute]);
    rig.requests.send(ControlRequest::Stop("SIGTERM")).await.unwrap();
    let reason = rig.ended().await;
    assert_eq!((reason, reason.code()), (ExitReason::CutOff, 1));
}

#[tokio::test]
async fn a_second_stop_ends_at_once_with_code_1() {
    let rig = rig(&[Fake::Good, Fake::Dead]);
    rig.requests.send(ControlRequest::Stop("SIGTERM")).await.unwrap();
    let (status, body) = rig.get("/health").await;
    assert_eq!((status, &body["status"]), (503, &"draining".into()));
    rig.requests.send(ControlRequest::Stop("SIGINT")).await.unwrap();
    let reason = rig.ended().await;
    assert_eq!((reason, reason.code()), (ExitReason::Forced, 1));
}

#[tokio::test]
async fn a_failed_shard_drains_the_others_and_ends_with_code_1() {
    let reason = rig(&[Fake::Good, Fake::Failing]).ended().await;
    assert_eq!((reason, reason.code()), (ExitReason::ShardFailed, 1));
}
