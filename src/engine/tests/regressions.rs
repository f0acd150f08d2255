//! Faults that a review found, one test for each, driven from bytes in to bytes out.

use super::*;
use crate::engine::answer::Answer;
use crate::engine::clients::conn::Phase;
use crate::engine::dispatcher::instances::Link;
use crate::engine::dispatcher::route_cache::RouteKey;
use crate::ids::{ServiceId, TenantId};
use crate::mailbox::ShardConfig;
use crate::message::CallFault;
use crate::message::{Call, Outcome, Priority, Started, status};
use crate::routing::Ring;
use crate::routing::{
    Failover, HashOn, Instance, Mode, Order, PayloadKind, Route, Service, Share, TenantTable,
};

pub(super) struct Rig {
    pub(super) engine: Engine,
    pub(super) now: Micros,
}

pub(super) fn snapshot(instances: u32) -> Snapshot {
    let names: Vec<String> = (0..instances).map(|n| format!("logic-{n}")).collect();
    let points = names.iter().enumerate().map(|(n, s)| (InstanceId(n as u32), s.as_str(), 1));
    Snapshot {
        version: 1,
        routes: vec![Route {
            first: 1000,
            last: 1999,
            service: ServiceId(0),
            priority: Priority::Normal,
            timeout_ms: 5_000,
            order: Order::Session,
            hash_on: HashOn::User,
            payload: PayloadKind::Json,
            idempotent: true,
            failover: Failover::Next,
            method: None,
            service_text: false,
            needs_user: false,
            only_for: None,
        }],
        tenants: TenantTable::default(),
        services: vec![Service {
            name: "logic".into(),
            mode: Mode::Batch,
            ring: Ring::new(points, 160).into(),
        }],
        instances: names
            .iter()
            .enumerate()
            .map(|(n, name)| Instance {
                id: InstanceId(n as u32),
                service: ServiceId(0),
                name: name.as_str().into(),
                addresses: SocketAddr::from(([127, 0, 0, 1], 50_001 + n as u16)).into(),
                weight: 1,
                share: Share::ALL,
                draining: false,
            })
            .collect(),
    }
}

/// Promise 6: one who floods many instances leaves room in the shard for others, at each of them.
#[test]
fn one_who_fills_many_instances_leaves_room_in_the_shard() {
    let mut settings = ShardSettings::default();
    settings.queue.items_max = 2_000;
    settings.conn.unanswered_max = 1 << 16;
    let mut snapshot = snapshot(20);
    snapshot.routes[0].hash_on = HashOn::Key;
    let mut rig = Rig::new(snapshot, settings);
    let greedy = rig.client();
    let mut refused = 0;
    for seq in 1..=6_000 {
        let key = seq % 997;
        rig.says(greedy, &format!(r#"{{"msg_id":1000,"seq":{seq},"key":"{key}","payload":1}}"#));
        refused += usize::from(rig.told(greedy).contains("QUEUE_FULL"));
    }
    let items = rig.engine.report(0, rig.now).gauges.queue_items;
    assert!(refused > 2_000 && (1_000..1_900).contains(&items), "{refused} refused, {items} wait");
    let polite = rig.client_from([127, 0, 0, 2]);
    for seq in 1..=60 {
        rig.says(polite, &format!(r#"{{"msg_id":1000,"seq":{seq},"key":"{seq}","payload":1}}"#));
        let told = rig.told(polite);
        assert!(!told.contains("QUEUE_FULL"), "{seq}: {told}");
    }
    rig.engine.check_invariants().expect("consistent");
}

impl Rig {
    pub(super) fn new(snapshot: Snapshot, settings: ShardSettings) -> Self {
        let engine = Engine::new(EngineInit {
            shard: ShardId(0),
            shards: 1,
            gateway: Arc::new(GatewaySettings::default()),
            settings,
            snapshot: Arc::new(snapshot),
            auth: None,
            boot_id: 1,
            unix_at_boot_us: 0,
            seed: [1; 32],
        });
        Self { engine, now: Micros(1_000_000) }
    }

    /// Opens a client past its handshake, with an empty outbox.
    pub(super) fn client(&mut self) -> ConnId {
        self.client_from([127, 0, 0, 1])
    }

    fn client_from(&mut self, ip: [u8; 4]) -> ConnId {
        let peer = SocketAddr::from((ip, 1));
        let id = self.engine.open(peer, self.now).expect("room");
        let mut request =
            b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
                .to_vec();
        self.engine.on_bytes(id, &mut request, self.now);
        assert!(self.told(id).contains("welcome"));
        id
    }

    pub(super) fn says(&mut self, id: ConnId, json: &str) {
        assert!(json.len() < 126);
        let mut frame = vec![0x81, 0x80 | json.len() as u8, 0, 0, 0, 0];
        frame.extend_from_slice(json.as_bytes());
        self.engine.on_bytes(id, &mut frame, self.now);
        self.engine.end_turn(self.now);
    }

    /// Takes all bytes of the outbox.
    pub(super) fn told(&mut self, id: ConnId) -> String {
        let bytes = self.engine.outbox(id).to_vec();
        self.engine.on_sent(id, bytes.len(), self.now);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub(super) fn one_call(&mut self) -> Call {
        let mut calls = std::mem::take(&mut self.engine.effects.calls);
        assert_eq!(calls.len(), 1);
        calls.remove(0)
    }

    pub(super) fn fails(&mut self, call: &Call, fault: CallFault, started: Started) {
        let error = error(fault, started);
        self.engine.on_outcome(Outcome { ticket: call.ticket, result: Err(error) }, self.now);
        self.engine.end_turn(self.now);
    }

    pub(super) fn later(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        self.engine.tick(self.now, &mut Vec::new());
        self.engine.end_turn(self.now);
    }
}

const ASK: &str = r#"{"msg_id":1001,"seq":1,"payload":1,"id":"a"}"#;

#[test]
fn a_message_that_may_have_run_is_never_called_not_run() {
    let mut rig = Rig::new(snapshot(1), ShardSettings::default());
    let client = rig.client();
    rig.says(client, ASK);
    let call = rig.one_call();
    rig.fails(&call, CallFault::ConnectionLost, Started::Maybe);
    rig.engine.on_link(InstanceId(0), Link::Down, "", rig.now);
    rig.engine.end_turn(rig.now);
    assert!(rig.told(client).contains("OUTCOME_UNKNOWN"));
    rig.engine.on_link(InstanceId(0), Link::Up, "", rig.now);
    // The id stays used: the same message does not run a second time.
    rig.says(client, r#"{"msg_id":1001,"seq":2,"payload":1,"id":"a"}"#);
    assert!(rig.told(client).contains("OUTCOME_UNKNOWN"));
    assert!(rig.engine.effects.calls.is_empty());
}

#[test]
fn a_retry_that_surely_did_not_run_does_not_clear_the_attempt_before_it() {
    let mut rig = Rig::new(snapshot(1), ShardSettings::default());
    let client = rig.client();
    rig.says(client, ASK);
    let first = rig.one_call();
    rig.fails(&first, CallFault::Reset, Started::Maybe);
    rig.later(130);
    let second = rig.one_call();
    rig.fails(&second, CallFault::NotConnected, Started::No);
    assert!(rig.told(client).contains("OUTCOME_UNKNOWN"));
}

#[test]
fn a_message_that_was_refused_unstarted_and_expires_did_not_run() {
    let mut rig = Rig::new(snapshot(1), ShardSettings::default());
    let client = rig.client();
    rig.says(client, r#"{"msg_id":1001,"seq":1,"payload":1,"deadline_ms":150}"#);
    let call = rig.one_call();
    rig.fails(&call, CallFault::Refused, Started::No);
    rig.later(200);
    assert!(rig.told(client).contains("EXPIRED"));
}

/// ShardConfig state with `snapshot`, and the settings as they are.
fn published(rig: &Rig, snapshot: Snapshot) -> ShardConfig {
    ShardConfig {
        snapshot: Arc::new(snapshot),
        gateway: rig.engine.config.gateway.clone(),
        settings: rig.engine.config.settings.clone(),
        auth: None,
        tls: None,
        service_tls: Default::default(),
    }
}

#[test]
fn what_waits_for_an_instance_that_leaves_moves_in_order_and_what_is_in_flight_ends() {
    let mut settings = ShardSettings::default();
    settings.batch.in_flight_max = 1;
    settings.batch.items_max = 1;
    let mut rig = Rig::new(snapshot(2), settings);
    let client = rig.client();
    rig.says(client, ASK);
    let first = rig.one_call();
    for seq in 2..5 {
        rig.says(client, &format!(r#"{{"msg_id":1001,"seq":{seq},"payload":{seq}}}"#));
    }
    let mut left = snapshot(2);
    left.instances.retain(|i| i.id != first.instance);
    let own = left.instances.iter().map(|i| (i.id, &*i.name, i.weight));
    left.services[0].ring = Ring::new(own, 160).into();
    let published = published(&rig, left);
    rig.engine.apply(published, rig.now);
    // The stream is busy: none of its requests leaves before its call has ended.
    rig.later(1);
    assert!(rig.engine.effects.calls.is_empty());
    rig.fails(&first, CallFault::Refused, Started::No);
    let second = rig.one_call();
    assert_ne!(second.instance, first.instance);
    // Nothing of the old instance is under way: it is forgotten, and a late event of its channel is
    // ignored.
    rig.engine.tick(rig.now, &mut Vec::new());
    assert!(rig.engine.dispatcher.instances.find_mut(first.instance).is_none());
    rig.engine.on_link(first.instance, Link::Up, "", rig.now);
}

#[test]
fn a_change_of_settings_keeps_what_connections_were_promised() {
    let mut rig = Rig::new(snapshot(1), ShardSettings::default());
    let before = rig.client();
    let mut change = published(&rig, snapshot(1));
    change.settings.conn.message_bytes_max = 64;
    rig.engine.apply(change, rig.now);
    let after = rig.client();
    let long = format!(r#"{{"msg_id":1001,"seq":1,"payload":"{}"}}"#, "x".repeat(60));
    rig.says(before, &long);
    rig.one_call();
    rig.says(after, &long);
    assert_eq!(rig.engine.stats.counters.get(Counter::ClosedProtocol), 1);
    assert!(rig.engine.clients.conns.get(before).is_some_and(|c| c.phase == Phase::Open));
}

#[test]
fn a_message_behind_an_expired_one_leaves_within_the_window() {
    let mut settings = ShardSettings::default();
    settings.batch.eager_max = 1;
    let mut rig = Rig::new(snapshot(1), settings);
    let (a, b, c) = (rig.client(), rig.client(), rig.client());
    rig.says(a, r#"{"msg_id":1001,"seq":1,"payload":1}"#);
    rig.one_call();
    rig.says(b, r#"{"msg_id":1001,"seq":1,"payload":1,"deadline_ms":1}"#);
    rig.now = rig.now.plus_ms(2);
    rig.engine.tick(rig.now, &mut Vec::new());
    assert!(rig.told(b).contains("EXPIRED"));
    rig.says(c, r#"{"msg_id":1001,"seq":1,"payload":1}"#);
    rig.later(11);
    rig.one_call();
}

#[test]
fn a_small_queue_admits_its_share() {
    let mut settings = ShardSettings::default();
    settings.queue.items_max = 50;
    settings.batch.items_max = 10;
    let mut rig = Rig::new(snapshot(1), settings);
    let client = rig.client();
    rig.says(client, ASK);
    rig.one_call();
}

#[test]
fn a_session_that_broke_the_frame_rules_is_counted_out() {
    let mut rig = Rig::new(snapshot(1), ShardSettings::default());
    let client = rig.client();
    rig.engine.on_bytes(client, &mut [0x81, 0x00], rig.now);
    rig.engine.remove(client);
    assert_eq!(rig.engine.report(0, rig.now).gauges.sessions, 0);
}

#[test]
fn keys_of_messages_that_left_do_not_pile_up_while_no_call_ends() {
    let mut settings = ShardSettings::default();
    settings.batch.in_flight_max = 1;
    let mut rig = Rig::new(snapshot(1), settings);
    let first = rig.client();
    rig.says(first, r#"{"msg_id":1001,"seq":1,"payload":1}"#);
    rig.one_call();
    let client = rig.client();
    for seq in 1..=1_000 {
        let ask = format!(r#"{{"msg_id":1001,"seq":{seq},"payload":1,"deadline_ms":1}}"#);
        rig.says(client, &ask);
        rig.now = rig.now.plus_ms(2);
        rig.engine.tick(rig.now, &mut Vec::new());
        assert!(rig.told(client).contains("EXPIRED"));
    }
    assert!(rig.engine.dispatcher.instances.get(InstanceId(0)).queues[0].keys() < 200);
}

#[test]
fn a_smaller_outbox_holds_for_the_connections_that_come_after_it() {
    let mut rig = Rig::new(snapshot(1), ShardSettings::default());
    let (before, later) = (rig.client(), rig.client());
    let mut change = published(&rig, snapshot(1));
    change.settings.conn.outbox_bytes_max = 64;
    rig.engine.apply(change, rig.now);
    let after = rig.client();
    let long = "1".repeat(80);
    for (id, fits) in [(before, true), (after, false)] {
        let msg = format!(r#"{{"msg_id":9000,"seq":1,"payload":{long}}}"#);
        rig.says(id, &msg);
        // The kernel takes nothing, for a second.
        rig.engine.on_sent(id, 0, rig.now);
        rig.now = rig.now.plus_ms(1_000);
        rig.engine.on_sent(id, 0, rig.now);
        let open = rig.engine.clients.conns.get(id).is_some_and(|c| c.phase == Phase::Open);
        assert_eq!(open, fits);
    }
    let answer = Answer {
        status: status::OK,
        reason: None,
        text: "",
        payload: long.as_bytes(),
        is_bytes: false,
        retry_after_ms: 0,
    };
    let now = rig.now;
    let (clients, _, mut cx) = rig.engine.parts();
    let key = clients.conns.get(later).expect("there").session.key;
    clients.answer(&mut cx, key, 1001, 1, &answer, now);
    assert!(rig.told(later).contains(&long));
}

#[test]
fn a_message_goes_to_a_third_instance_before_it_goes_back_to_the_one_that_failed_it() {
    for order in [Order::Session, Order::None] {
        let mut routes = snapshot(3);
        routes.routes[0].order = order;
        let mut rig = Rig::new(routes, ShardSettings::default());
        let client = rig.client();
        rig.says(client, ASK);
        let first = rig.one_call();
        let (service, hash) = (
            ServiceId(0),
            rig.engine.clients.conns.get(client).expect("open").session.sender.session,
        );
        let next = |rig: &mut Rig| {
            let not = Some(first.instance);
            let key = RouteKey { tenant: TenantId::DEFAULT, service, hash };
            let (_, dispatcher, cx) = rig.engine.parts();
            dispatcher.pick_other(&cx, &key, Failover::Next, not).expect("there are three")
        };
        let second = next(&mut rig);
        let error = error(CallFault::Refused, Started::No);
        rig.engine.on_outcome(Outcome { ticket: first.ticket, result: Err(error) }, rig.now);
        // The instance to which it was moved is lost before it has left.
        rig.engine.on_link(second, Link::Down, "", rig.now);
        rig.engine.end_turn(rig.now);
        let expected = next(&mut rig);
        assert_eq!(rig.one_call().instance, expected);
    }
}

#[test]
fn what_waits_where_it_may_stay_is_not_listed_again_by_each_snapshot() {
    let mut settings = ShardSettings::default();
    (settings.batch.in_flight_max, settings.batch.items_max) = (1, 1);
    let mut trial = snapshot(1);
    (trial.routes[0].order, trial.routes[0].failover) = (Order::None, Failover::None);
    let mut rig = Rig::new(trial.clone(), settings);
    let client = rig.client();
    // The instance is on trial with other keys. This client's stay there: there is no failover.
    let hash = rig.engine.clients.conns.get(client).expect("open").session.sender.session;
    let share = (1..100).rev().map(Share::percent).find(|share| !share.takes(hash));
    trial.instances[0].share = share.expect("a hash of this seed is not in every share");
    let publish = |rig: &mut Rig| {
        let published = published(rig, trial.clone());
        rig.engine.apply(published, rig.now);
        rig.engine.end_turn(rig.now);
    };
    publish(&mut rig);
    for seq in 1..=2 {
        rig.says(client, &format!(r#"{{"msg_id":1001,"seq":{seq},"payload":1}}"#));
    }
    let first = rig.one_call();
    // The request comes back to the same queue, delayed.
    rig.fails(&first, CallFault::Refused, Started::No);
    let second = rig.one_call();
    rig.later(200);
    (0..10).for_each(|_| publish(&mut rig));
    assert_eq!(rig.engine.dispatcher.instances.get(InstanceId(0)).queues[0].keys(), 1);
    rig.fails(&second, CallFault::Refused, Started::No);
    let again = rig.one_call();
    // Both are delayed now: no entry of an earlier generation lets one be taken early.
    rig.fails(&again, CallFault::Refused, Started::No);
    publish(&mut rig);
    assert!(rig.engine.effects.calls.is_empty());
    rig.engine.check_invariants().expect("consistent");
    rig.later(500);
    rig.one_call();
}

#[test]
fn instances_that_came_and_went_are_not_walked_for_ever() {
    let mut rig = Rig::new(snapshot(2), ShardSettings::default());
    for id in 2..500 {
        let mut next = snapshot(2);
        next.instances[1].id = InstanceId(id);
        let own = next.instances.iter().map(|i| (i.id, &*i.name, i.weight));
        next.services[0].ring = Ring::new(own, 160).into();
        let published = published(&rig, next);
        rig.engine.apply(published, rig.now);
        rig.later(10);
    }
    let left: Vec<InstanceId> =
        rig.engine.dispatcher.instances.report().iter().map(|i| i.instance).collect();
    assert_eq!(left, [InstanceId(0), InstanceId(499)]);
}

#[test]
fn signals_that_control_could_not_be_told_are_told_with_the_next_tick() {
    let mut rig = Rig::new(snapshot(1), ShardSettings::default());
    let refused = |rig: &mut Rig| {
        let signals = std::mem::take(&mut rig.engine.effects.signals);
        rig.engine.return_signals(&signals);
        signals
    };
    rig.engine.dispatcher.instances.get_mut(InstanceId(0)).history.failed();
    rig.engine.dispatcher.instances.get_mut(InstanceId(0)).history.lost();
    rig.later(10);
    let lost = refused(&mut rig);
    assert_eq!((lost[0].failures, lost[0].losses, lost[0].ok), (1, 1, false));
    rig.engine.dispatcher.instances.get_mut(InstanceId(0)).history.failed();
    rig.later(10);
    let told = std::mem::take(&mut rig.engine.effects.signals);
    assert_eq!((told[0].failures, told[0].losses, told[0].ok), (2, 1, false));
    // The success that ends the failures known to control is not lost either.
    rig.engine.dispatcher.instances.get_mut(InstanceId(0)).history.succeeded();
    rig.later(10);
    assert!(refused(&mut rig)[0].ok);
    rig.later(10);
    let told = std::mem::take(&mut rig.engine.effects.signals);
    assert_eq!((told[0].failures, told[0].losses, told[0].ok), (0, 0, true));
    rig.later(10);
    assert!(rig.engine.effects.signals.is_empty());
}

#[test]
fn a_connection_that_broke_says_no_more_and_ends_when_its_client_does() {
    let mut rig = Rig::new(snapshot(1), ShardSettings::default());
    let client = rig.client();
    assert!(rig.engine.introduce(client, SocketAddr::from(([192, 0, 2, 7], 7)), rig.now));
    rig.says(client, ASK);
    rig.says(client, r#"{"msg_id":9002,"seq":2}"#);
    let told = String::from_utf8_lossy(rig.engine.outbox(client)).into_owned();
    assert!(told.contains("192.0.2.7:7"), "{told}");
    rig.engine.break_off(client, Counter::TlsFailedBroken, rig.now);
    assert!(rig.engine.outbox(client).is_empty(), "what waited cannot be read");
    assert_eq!(rig.engine.on_sent(client, 0, rig.now), SocketAction::ShutWrite);
    // The answer to the message under way is not delivered.
    let call = rig.one_call();
    rig.fails(&call, CallFault::Reset, Started::Maybe);
    assert!(rig.engine.outbox(client).is_empty());
    assert!(rig.engine.on_end(client, rig.now));
    // Without that, the connection ends when its time is over.
    let mut closing = Vec::new();
    let until = rig.now.plus_ms(ShardSettings::default().conn.close_timeout_ms);
    for ms in 0..2_000 {
        rig.engine.tick(until.plus_ms(ms), &mut closing);
    }
    assert!(closing.contains(&client));
    rig.engine.remove(client);
    assert!(!rig.engine.introduce(client, SocketAddr::from(([192, 0, 2, 7], 7)), rig.now));
}

#[test]
fn a_connection_that_is_given_up_takes_no_count_of_bytes_that_it_has_not() {
    let mut rig = Rig::new(snapshot(1), ShardSettings::default());
    let client = rig.client();
    rig.says(client, r#"{"msg_id":9002,"seq":1}"#);
    let waiting = rig.engine.outbox(client).len();
    // No frame: the connection is closed with 1002.
    rig.engine.on_bytes(client, &mut [0xff; 16], rig.now);
    assert!(rig.engine.outbox(client).len() > waiting, "a Close");
    assert_eq!(rig.engine.on_sent(client, 0, rig.now), SocketAction::Keep);
    let mut late = vec![0; 64 << 10];
    for _ in 0..=128 {
        rig.engine.on_bytes(client, &mut late, rig.now);
    }
    assert!(rig.engine.outbox(client).is_empty(), "given up after 8 MiB");
    // TLS had encrypted what waited, and tells of it when the rest of the record has left.
    assert_eq!(rig.engine.on_sent(client, waiting, rig.now), SocketAction::Close);
}

#[test]
fn a_connection_that_ends_is_closed_with_its_last_byte_once_its_client_has_ended() {
    let mut rig = Rig::new(snapshot(1), ShardSettings::default());
    let closing = rig.client();
    let (clients, _, mut cx) = rig.engine.parts();
    clients.close(&mut cx, closing, 1008, "", rig.now);
    let refused = rig.engine.open(([192, 0, 2, 7], 7).into(), rig.now).expect("room");
    rig.engine.on_bytes(refused, &mut b"nonsense\r\n\r\n".to_vec(), rig.now);
    for id in [closing, refused] {
        assert!(!rig.engine.outbox(id).is_empty() && !rig.engine.on_end(id, rig.now));
        let n = rig.engine.outbox(id).len();
        assert_eq!(rig.engine.on_sent(id, n, rig.now), SocketAction::Close);
    }
}
