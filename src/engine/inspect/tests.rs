//! Answers about connections and keys, and their cost.

use std::net::SocketAddr;
use std::sync::Arc;

use super::*;
use crate::config::settings::{GatewaySettings, ShardSettings};
use crate::engine::EngineInit;
use crate::ids::{InstanceId, ServiceId, ShardId, TenantId};
use crate::inspect::ShareInfo;
use crate::message::Priority;
use crate::routing::Ring;
use crate::routing::{
    HashOn, Instance, Mode, Order, PayloadKind, Route, Service, Share, Snapshot, TenantTable,
};
use crate::stats::Gauges;

const UPGRADE: &[u8] =
    b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";

/// A service with three instances, the first of them on trial.
fn snapshot() -> Arc<Snapshot> {
    let instance = |id: u32| Instance {
        id: InstanceId(id),
        service: ServiceId(0),
        name: format!("i{id}").into(),
        addresses: SocketAddr::from(([127, 0, 0, 1], 1)).into(),
        weight: 1,
        share: if id == 0 { Share::percent(10) } else { Share::ALL },
        draining: false,
    };
    let instances: Vec<_> = (0..3).map(instance).collect();
    let ring = Ring::new(instances.iter().map(|i| (i.id, &*i.name, 1)), 160);
    let route = Route {
        first: 1000,
        last: 1999,
        service: ServiceId(0),
        priority: Priority::Normal,
        timeout_ms: 5_000,
        order: Order::None,
        hash_on: HashOn::Key,
        payload: PayloadKind::Json,
        idempotent: false,
        failover: Failover::Next,
        method: None,
        service_text: false,
        needs_user: false,
        only_for: None,
    };
    let service = Service { name: "s".into(), mode: Mode::Batch, ring: ring.into() };
    Arc::new(Snapshot {
        version: 7,
        routes: vec![route],
        tenants: TenantTable::default(),
        services: vec![service],
        instances,
    })
}

fn engine() -> Engine {
    Engine::new(EngineInit {
        shard: ShardId(0),
        shards: 1,
        gateway: Arc::new(GatewaySettings::default()),
        settings: ShardSettings::default(),
        snapshot: snapshot(),
        auth: None,
        boot_id: 1,
        unix_at_boot_us: 0,
        seed: [1; 32],
    })
}

fn connect(engine: &mut Engine, now: Micros) -> ConnId {
    let conn = engine.open(([127, 0, 0, 1], 9).into(), now).expect("room");
    engine.on_bytes(conn, &mut UPGRADE.to_vec(), now);
    conn
}

/// A masked text frame, the mask being zero.
fn say(engine: &mut Engine, conn: ConnId, text: &str, now: Micros) {
    let mut frame = [&[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0], text.as_bytes()].concat();
    engine.on_bytes(conn, &mut frame, now);
}

fn conns(inspection: Inspection) -> Vec<ConnInfo> {
    match inspection {
        Inspection::Conns(conns) => conns,
        other => panic!("not what was asked: {other:?}"),
    }
}

#[test]
fn the_top_talkers_are_those_of_a_sort_by_work_and_no_more_than_asked() {
    let now = Micros::from_ms(1_000);
    let mut engine = engine();
    let said = [3, 0, 7, 7, 1, 12, 5, 0, 2, 9];
    for work in said {
        let conn = connect(&mut engine, now);
        // The more work, the fewer messages.
        (work..12).for_each(|_| say(&mut engine, conn, "{\"type\":\"heartbeat\"}", now));
        engine.note_work(conn, work);
    }
    let mut sorted = said.map(|work| (work as u64, 12 - work as u64)).to_vec();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    let later = Micros::from_ms(1_500);
    for top in [0, 1, 3, 10, 1_000] {
        let seen = conns(engine.inspect(&Query::TopTalkers(top), later));
        let told: Vec<(u64, u64)> = seen.iter().map(|conn| (conn.work, conn.messages)).collect();
        assert_eq!(told, sorted[..top.min(said.len())], "{top}");
        assert!(seen.iter().all(|c| (c.age_us, c.heard_us, c.phase) == (500_000, 500_000, "open")));
    }
    let (_, first) = engine.clients.conns.iter().next().expect("there are some");
    let session = first.session.id.as_str().to_owned();
    let found = conns(engine.inspect(&Query::Session(session.clone()), later));
    assert_eq!((found.len(), found[0].session.as_str()), (1, &*session));
    assert!(conns(engine.inspect(&Query::Session("nobody".into()), later)).is_empty());
}

#[test]
fn the_instance_named_for_a_key_is_the_one_that_gets_the_message() {
    let now = Micros::from_ms(1_000);
    let mut engine = engine();
    engine.on_link(InstanceId(1), Link::Down, "", now);
    engine.on_link(InstanceId(2), Link::Up, "", now);
    let (tenant, service) = (TenantId(0), ServiceId(0));
    for n in 0..500u64 {
        let hash = crate::routing::affinity_hash(tenant, &n.to_le_bytes());
        for (failover, next) in [(Failover::Next, true), (Failover::None, false)] {
            let query =
                Query::Route { tenant, service, route: 1000, hash, next, sender: Asked::Nobody };
            let before = engine.report(0, now).gauges.cache_entries;
            let Inspection::Route(said) = engine.inspect(&query, now) else { panic!("a route") };
            assert_eq!(engine.report(0, now).gauges.cache_entries, before, "it leaves no trace");
            let done = {
                let (_, dispatcher, mut cx) = engine.parts();
                let key = RouteKey { tenant, service, hash };
                dispatcher.pick(&mut cx, &key, failover, now).ok()
            };
            assert_eq!(said.chosen, done, "{n} {failover:?}");
            assert_eq!(said.cached.is_some(), !next, "the pick before remembered the owner");
            assert_eq!(said.version, 7);
        }
        let (next, sender) = (true, Asked::Nobody);
        let query = Query::Route { tenant, service, route: 1000, hash, next, sender };
        let links = engine.inspect(&query, now);
        let Inspection::Route(RouteInfo { links, .. }) = links else { panic!("a route") };
        let expected = ["connecting", "down", "up"];
        assert!(links.iter().all(|(id, link)| expected[id.0 as usize] == *link), "{links:?}");
    }
}

/// A scrape must not hold up a shard: see the numbers at [`Engine::report`].
#[test]
fn a_report_of_ten_thousand_connections_is_made_in_no_time() {
    let now = Micros::from_ms(1_000);
    let mut engine = engine();
    for _ in 0..10_000 {
        connect(&mut engine, now);
    }
    let times = |act: &dyn Fn(&Engine)| {
        let mut times: Vec<_> = (0..50)
            .map(|_| {
                let began = std::time::Instant::now();
                act(&engine);
                began.elapsed()
            })
            .collect();
        times.sort_unstable();
        times[25]
    };
    let report = times(&|engine| drop(engine.report(1, now)));
    let talkers = times(&|engine| drop(engine.inspect(&Query::TopTalkers(100), now)));
    let histograms = times(&|engine| drop(engine.stats.histograms.clone()));
    let sample = times(&|engine| drop(engine.sample(now)));
    println!(
        "report {report:?}, sample {sample:?} (histograms {histograms:?}), talkers {talkers:?}"
    );
    // Without optimization, and with other tests beside it.
    assert!(report < std::time::Duration::from_millis(50), "{report:?}");
}

#[test]
fn a_sample_is_a_report_without_what_takes_a_pass_over_the_connections() {
    let (mut engine, now) = (engine(), Micros::from_ms(1_000));
    for _ in 0..10 {
        connect(&mut engine, now);
    }
    let (report, sample) = (engine.report(3, now), engine.sample(now));
    assert!(report.gauges.connection_bytes > 0 && sample.gauges.connection_bytes == 0);
    let without = Gauges {
        outbox_bytes: 0,
        connection_bytes: 0,
        pushes_waiting: 0,
        cache_active: 0,
        ..report.gauges
    };
    assert_eq!((sample.gauges, sample.gauges.connections), (without, 10));
    assert_eq!((sample.number, sample.at, sample.reasons), (0, report.at, report.reasons));
}

#[test]
fn an_owners_messages_at_an_instance_are_told_beside_those_of_its_groups() {
    let (mut engine, now) = (engine(), Micros::from_ms(1_000));
    let one = connect(&mut engine, now);
    let other = connect(&mut engine, now);
    let text = r#"{"msg_id":1001,"key":"k"}"#;
    (0..3).for_each(|_| say(&mut engine, one, text, now));
    say(&mut engine, other, text, now);
    let hash = crate::routing::affinity_hash(TenantId::DEFAULT, b"k");
    let session = engine.clients.conns.get(one).expect("open").session.id.as_str().to_owned();
    let ask = |engine: &Engine, sender| {
        let (tenant, service) = (TenantId::DEFAULT, ServiceId(0));
        let query = Query::Route { tenant, service, route: 1000, hash, next: true, sender };
        match engine.inspect(&query, now) {
            Inspection::Route(info) => info.shares,
            other => panic!("a route was asked for: {other:?}"),
        }
    };
    let told = |shares: Option<Vec<ShareInfo>>| -> Vec<(&'static str, u64, u64)> {
        shares.into_iter().flatten().map(|s| (s.of, s.waiting, s.in_flight)).collect()
    };
    let shares = ask(&engine, Asked::Session(session.clone()));
    let waiting = [("session", 3, 0), ("address", 4, 0), ("tenant", 4, 0), ("all", 4, 0)];
    assert_eq!(told(shares), waiting);
    engine.end_turn(now);
    let in_flight = waiting.map(|(of, n, _)| (of, 0, n));
    assert_eq!(told(ask(&engine, Asked::Session(session))), in_flight);
    assert_eq!(told(ask(&engine, Asked::User(7)))[..2], [("user", 0, 0), ("tenant", 0, 4)]);
    assert_eq!(ask(&engine, Asked::Session("no such".into())), None);
}
