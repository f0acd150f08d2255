//! Tests of an engine with one client and one service: each is a fault that the simulator found.

use bytes::{Buf, Bytes};
use prost::Message as _;

use super::check::View;
mod events;
mod groups;
mod heartbeat;
mod large_answers;
mod regressions;
mod sign_in_order;
mod slow_calls;
mod work;

use super::*;
use crate::config::settings::StopSettings;
use crate::demo::proto::{BaseResponse, BatchRequest, BatchResponse};
use crate::engine::dispatcher::instances::Link;
use crate::ids::{ServiceId, Ticket};
use crate::message::{Call, CallFault};
use crate::message::{CallError, Outcome, Priority, Started, status};
use crate::routing::Ring;
use crate::routing::{
    Failover, HashOn, Instance, Mode, Order, PayloadKind, Route, Service, Share, TenantTable,
};

const UPGRADE: &[u8] =
    b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";

/// Routes 1000 (idempotent) and 2000 (not) of one service with two instances.
struct Rig {
    engine: Engine,
    conn: ConnId,
    now: Micros,
}

fn route(first: u32, idempotent: bool) -> Route {
    Route {
        first,
        last: first + 999,
        service: ServiceId(0),
        priority: Priority::Normal,
        timeout_ms: 5_000,
        order: Order::Session,
        hash_on: HashOn::Session,
        payload: PayloadKind::Json,
        idempotent,
        failover: Failover::Next,
        method: None,
        service_text: false,
        needs_user: false,
        only_for: None,
    }
}

fn snapshot() -> Arc<Snapshot> {
    let instance = |id: u32| Instance {
        id: InstanceId(id),
        service: ServiceId(0),
        name: format!("i{id}").into(),
        addresses: SocketAddr::from(([127, 0, 0, 1], 1)).into(),
        weight: 1,
        share: Share::ALL,
        draining: false,
    };
    let instances = vec![instance(0), instance(1)];
    let ring = Ring::new(instances.iter().map(|i| (i.id, &*i.name, 1)), 8);
    let service = Service { name: "s".into(), mode: Mode::Batch, ring: ring.into() };
    let routes = vec![route(1000, true), route(2000, false)];
    Arc::new(Snapshot {
        version: 1,
        routes,
        tenants: TenantTable::default(),
        services: vec![service],
        instances,
    })
}

impl Rig {
    fn new(change: impl FnOnce(&mut ShardSettings)) -> Self {
        let mut settings = ShardSettings::default();
        // One call at a time, and no pause of a client for its unanswered messages.
        settings.batch.eager_max = 1;
        settings.conn.unanswered_max = 256;
        change(&mut settings);
        let mut engine = Engine::new(EngineInit {
            shard: ShardId(0),
            shards: 1,
            gateway: Arc::new(GatewaySettings::default()),
            settings,
            snapshot: snapshot(),
            auth: None,
            boot_id: 1,
            unix_at_boot_us: 0,
            seed: [1; 32],
        });
        let now = Micros::from_ms(1_000);
        let conn = engine.open(([127, 0, 0, 1], 9).into(), now).expect("room");
        engine.on_bytes(conn, &mut UPGRADE.to_vec(), now);
        let mut rig = Self { engine, conn, now };
        rig.heard();
        rig
    }

    fn later(&mut self, us: u64) {
        self.now.0 += us;
    }

    /// Sends one text frame with the given fields besides `seq`.
    fn say(&mut self, seq: u64, fields: &str) {
        let mut bytes = frame(seq, fields);
        self.engine.on_bytes(self.conn, &mut bytes, self.now);
    }

    /// Ends the turn and returns the calls that leave, each with `seq` and id of its requests.
    fn calls(&mut self) -> Vec<(Call, Vec<(u64, u64)>)> {
        self.engine.end_turn(self.now);
        self.engine.check_invariants().expect("consistent");
        let calls = std::mem::take(&mut self.engine.effects.calls);
        let read = |mut call: Call| {
            let len = call.body.remaining();
            let body = call.body.copy_to_bytes(len).slice(5..);
            let batch = BatchRequest::decode(body).expect("a batch");
            let items = batch.requests.iter().map(|r| (r.seq, r.request_id)).collect();
            (call, items)
        };
        calls.into_iter().map(read).collect()
    }

    fn ends(&mut self, ticket: Ticket, result: Result<Bytes, CallError>) {
        self.engine.on_outcome(Outcome { ticket, result }, self.now);
        self.engine.check_invariants().expect("consistent");
    }

    /// Takes the bytes that the client has received since the last time.
    fn heard(&mut self) -> String {
        let bytes = self.engine.outbox(self.conn).to_vec();
        self.engine.on_sent(self.conn, bytes.len(), self.now);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn tick(&mut self) {
        self.engine.tick(self.now, &mut Vec::new());
        self.engine.check_invariants().expect("consistent");
    }

    fn view(&self) -> View {
        self.engine.view()
    }
}

/// A masked text frame whose mask is zero.
fn frame(seq: u64, fields: &str) -> Vec<u8> {
    let text = format!("{{\"seq\":{seq},{fields}}}");
    assert!(text.len() < 126, "a short frame");
    [&[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0], text.as_bytes()].concat()
}

fn error(fault: CallFault, started: Started) -> CallError {
    CallError::of(fault, started, status::UNAVAILABLE)
}

fn ok(items: &[(u64, u64)]) -> Result<Bytes, CallError> {
    let responses = items.iter().map(|&(_, id)| BaseResponse {
        request_id: id,
        payload: "1".into(),
        ..Default::default()
    });
    Ok(BatchResponse { responses: responses.collect(), ..Default::default() }
        .encode_to_vec()
        .into())
}

#[test]
fn a_lost_message_is_not_sent_again_after_a_later_one_that_may_have_run() {
    let mut rig = Rig::new(|_| {});
    rig.say(1, "\"msg_id\":1000");
    rig.say(2, "\"msg_id\":2000");
    let (call, items) = rig.calls().remove(0);
    assert_eq!(items.len(), 2);
    rig.ends(call.ticket, Err(error(CallFault::Reset, Started::Maybe)));
    let heard = rig.heard();
    assert_eq!(heard.matches("OUTCOME_UNKNOWN").count(), 2, "{heard}");
    assert_eq!(rig.view().messages, 0);
}

#[test]
fn a_lost_message_is_sent_again_with_the_later_ones_that_may_be() {
    let mut rig = Rig::new(|_| {});
    rig.say(1, "\"msg_id\":2000");
    rig.say(2, "\"msg_id\":1000");
    rig.say(3, "\"msg_id\":1000");
    let (call, _) = rig.calls().remove(0);
    rig.ends(call.ticket, Err(error(CallFault::Reset, Started::Maybe)));
    assert_eq!(rig.heard().matches("OUTCOME_UNKNOWN").count(), 1);
    rig.say(4, "\"msg_id\":1000");
    rig.later(300_000);
    let (_, items) = rig.calls().remove(0);
    assert_eq!(items.iter().map(|i| i.0).collect::<Vec<_>>(), [2, 3, 4]);
}

#[test]
fn a_message_whose_later_one_expired_in_the_same_call_is_not_sent_again() {
    let mut rig = Rig::new(|_| {});
    rig.say(1, "\"msg_id\":1000");
    rig.say(2, "\"msg_id\":1000,\"deadline_ms\":5");
    let (call, _) = rig.calls().remove(0);
    rig.later(6_000);
    rig.tick();
    assert_eq!(rig.heard().matches("OUTCOME_UNKNOWN").count(), 1);
    rig.ends(call.ticket, Err(error(CallFault::Reset, Started::Maybe)));
    assert_eq!(rig.heard().matches("OUTCOME_UNKNOWN").count(), 1);
}

#[test]
fn a_message_that_may_have_run_is_not_told_that_it_did_not() {
    let mut rig = Rig::new(|_| {});
    rig.say(1, "\"msg_id\":1000,\"id\":\"a\"");
    let (first, _) = rig.calls().remove(0);
    rig.ends(first.ticket, Err(error(CallFault::Reset, Started::Maybe)));
    rig.later(300_000);
    let (second, _) = rig.calls().remove(0);
    for id in [InstanceId(0), InstanceId(1)] {
        rig.engine.on_link(id, Link::Down, "", rig.now);
    }
    rig.ends(second.ticket, Err(error(CallFault::NotConnected, Started::No)));
    let heard = rig.heard();
    assert!(heard.contains("OUTCOME_UNKNOWN"), "{heard}");
    // Its id is not free.
    rig.say(2, "\"msg_id\":1000,\"id\":\"a\"");
    assert!(rig.heard().contains("OUTCOME_UNKNOWN"));
}

#[test]
fn what_waits_behind_an_expired_message_leaves_when_its_window_ends() {
    let mut rig = Rig::new(|_| {});
    rig.engine.on_link(InstanceId(1), Link::Down, "", rig.now);
    rig.say(1, "\"msg_id\":1000");
    assert_eq!(rig.calls().len(), 1);
    // A second stream, which the call in flight does not hold.
    let other = rig.engine.open(([127, 0, 0, 1], 8).into(), rig.now).expect("room");
    rig.engine.on_bytes(other, &mut UPGRADE.to_vec(), rig.now);
    let mut expires = frame(1, "\"msg_id\":1000,\"deadline_ms\":1");
    rig.engine.on_bytes(other, &mut expires, rig.now);
    rig.calls();
    rig.later(2_000);
    rig.tick();
    rig.engine.on_bytes(other, &mut frame(2, "\"msg_id\":1000"), rig.now);
    rig.calls();
    rig.later(9_000);
    assert_eq!(rig.calls().len(), 0);
    rig.later(1_000);
    assert_eq!(rig.calls().len(), 1);
}

#[test]
fn a_stop_answers_what_was_read_before_a_pause() {
    let mut rig = Rig::new(|s| s.conn.unanswered_max = 1);
    let mut both = [frame(1, "\"msg_id\":1000"), frame(2, "\"msg_id\":1000")].concat();
    rig.engine.on_bytes(rig.conn, &mut both, rig.now);
    let (call, items) = rig.calls().remove(0);
    let stop = StopSettings { grace: std::time::Duration::from_secs(1), ..Default::default() };
    rig.engine.drain(stop, rig.now);
    rig.ends(call.ticket, ok(&items));
    rig.tick();
    let heard = rig.heard();
    assert!(heard.contains("\"seq\":2") && heard.contains("DRAINING"), "{heard}");
    assert!(heard.ends_with("the gateway stops: connect again"), "{heard}");
}

#[test]
fn a_connection_resumed_twice_stays_within_its_cap() {
    let mut rig = Rig::new(|s| s.conn.unanswered_max = 1);
    let three: Vec<u8> = (1..4).flat_map(|seq| frame(seq, "\"msg_id\":1000")).collect();
    rig.engine.on_bytes(rig.conn, &mut three.clone(), rig.now);
    let (call, items) = rig.calls().remove(0);
    rig.ends(call.ticket, ok(&items));
    rig.engine.on_resumed(rig.conn, rig.now);
    rig.engine.on_resumed(rig.conn, rig.now);
    assert_eq!(rig.view().conns[0].unanswered, 1);
    rig.engine.check_invariants().expect("the cap holds");
}

#[test]
fn a_connection_closed_for_a_protocol_error_is_no_session_any_more() {
    let mut rig = Rig::new(|_| {});
    assert_eq!(rig.engine.report(0, rig.now).gauges.sessions, 1);
    rig.engine.on_bytes(rig.conn, &mut [0xf3, 0x80, 0, 0, 0, 0], rig.now);
    rig.engine.remove(rig.conn);
    assert_eq!(rig.engine.report(0, rig.now).gauges.sessions, 0);
}

#[test]
fn messages_that_expire_in_a_stalled_queue_leave_nothing_behind() {
    let mut rig = Rig::new(|s| s.batch.in_flight_max = 1);
    rig.say(1, "\"msg_id\":1000");
    assert_eq!(rig.calls().len(), 1);
    for seq in 2..1_002 {
        rig.say(seq, "\"msg_id\":1000,\"deadline_ms\":1");
        rig.later(1_000);
        rig.tick();
        rig.heard();
    }
    let kept: usize =
        rig.engine.dispatcher.instances.iter().map(|(_, s)| s.queues[0].fresh_keys().count()).sum();
    assert!(kept < 100, "{kept} keys of messages that are gone");
}

#[test]
fn retries_are_not_counted_as_first_attempts() {
    let mut rig = Rig::new(|s| s.retry.budget_percent = 100);
    let mut sent = 0;
    for seq in 1..200 {
        rig.say(seq, "\"msg_id\":1000");
    }
    for _ in 0..4 {
        for (call, items) in rig.calls() {
            sent += items.len();
            rig.ends(call.ticket, Err(error(CallFault::Reset, Started::Maybe)));
        }
        rig.later(300_000);
    }
    assert!(sent <= 2 * 199 + 10, "{sent} sent for 199 messages with a budget of 100 %");
}

#[test]
fn a_step_of_the_wall_clock_reaches_services() {
    let mut rig = Rig::new(|_| {});
    rig.say(1, r#""msg_id":1000"#);
    let unix_us = 1_800_000_000_000_000;
    rig.engine.set_wall_clock(unix_us, rig.now);
    rig.engine.end_turn(rig.now);
    let mut call = rig.engine.effects.calls.remove(0);
    let len = call.body.remaining();
    let batch = BatchRequest::decode(call.body.copy_to_bytes(len).slice(5..)).expect("a batch");
    assert_eq!(batch.requests[0].received_unix_us, unix_us);
}
