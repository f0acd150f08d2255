//! Promise 20: events tell the truth, in order.

use std::collections::BTreeMap;

use super::*;
use crate::config::settings::{EventRights, GroupRule, JoinBy, Pattern};
use crate::demo::proto::{BaseRequest, SessionEvent};
use crate::ids::TenantId;
use crate::message::EventKind;

/// A gateway whose one service asks for all events of the groups `room:*`.
struct EventRig {
    engine: Engine,
    now: Micros,
    ports: u16,
}

fn rights() -> EventRights {
    let kinds = EventKind::WORDS.map(|(_, kind)| kind).to_vec();
    EventRights { kinds, groups: vec![Pattern("room:*".into())], only_for: None }
}

impl EventRig {
    fn new(rights: Option<EventRights>, change: impl FnOnce(&mut ShardSettings)) -> Self {
        let mut settings = ShardSettings::default();
        change(&mut settings);
        let rule = GroupRule { join: JoinBy::Anybody, ..GroupRule::new("room:*") };
        let mut gateway = GatewaySettings::default();
        gateway.push.groups = vec![Arc::new(rule)];
        gateway.events = rights.into_iter().map(|r| ("s".into(), Arc::new(r))).collect();
        let engine = Engine::new(EngineInit {
            shard: ShardId(0),
            shards: 1,
            gateway: Arc::new(gateway),
            settings,
            snapshot: snapshot(),
            auth: None,
            boot_id: 1,
            unix_at_boot_us: 0,
            seed: [1; 32],
        });
        let mut rig = Self { engine, now: Micros::from_ms(1_000), ports: 1 };
        rig.tick();
        rig
    }

    fn all() -> Self {
        Self::new(Some(rights()), |_| {})
    }

    fn tick(&mut self) {
        self.engine.tick(self.now, &mut Vec::new());
        self.engine.check_invariants().expect("consistent");
    }

    fn later(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        self.tick();
    }

    fn open(&mut self) -> ConnId {
        self.ports += 1;
        let peer = ([127, 0, 0, 1], self.ports).into();
        let id = self.engine.open(peer, self.now).expect("room");
        self.engine.on_bytes(id, &mut UPGRADE.to_vec(), self.now);
        id
    }

    fn says(&mut self, id: ConnId, seq: u64, fields: &str) {
        let mut bytes =
            crate::engine::clients::sign_in::tests::frame(&format!("{{\"seq\":{seq},{fields}}}"));
        self.engine.on_bytes(id, &mut bytes, self.now);
        self.engine.check_invariants().expect("consistent");
    }

    fn joins(&mut self, id: ConnId, seq: u64, msg_id: u32, group: &str) {
        self.says(id, seq, &format!("\"msg_id\":{msg_id},\"payload\":{{\"group\":\"{group}\"}}"));
    }

    fn heard(&mut self, id: ConnId) -> String {
        let bytes = self.engine.outbox(id).to_vec();
        self.engine.on_sent(id, bytes.len(), self.now);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Makes the session of a connection resumable: the `resume` that goes on with it.
    fn resumable(&mut self, id: ConnId, seq: u64) -> String {
        self.heard(id);
        self.says(id, seq, "\"type\":\"resume\",\"payload\":{}");
        let heard = self.heard(id);
        let of = |name: &str| {
            let begin = heard.find(&format!("\"{name}\":\"")).expect("told") + name.len() + 4;
            heard[begin..].split('"').next().expect("a text").to_owned()
        };
        let (session, secret) = (of("session"), of("secret"));
        format!(
            "\"type\":\"resume\",\"payload\":{{\"session\":\"{session}\",\"secret\":\"{secret}\"}}"
        )
    }

    /// Ends the turn: the calls that leave.
    fn calls(&mut self) -> Vec<(Ticket, Vec<BaseRequest>)> {
        self.engine.end_turn(self.now);
        self.engine.check_invariants().expect("consistent");
        let calls = std::mem::take(&mut self.engine.effects.calls);
        let read = |mut call: Call| {
            let len = call.body.remaining();
            let body = call.body.copy_to_bytes(len).slice(5..);
            (call.ticket, BatchRequest::decode(body).expect("a batch").requests)
        };
        calls.into_iter().map(read).collect()
    }

    fn ends(&mut self, ticket: Ticket, result: Result<Bytes, CallError>) {
        self.engine.on_outcome(Outcome { ticket, result }, self.now);
        self.engine.check_invariants().expect("consistent");
    }

    /// Has the service answer everything: what it got, in order.
    fn told(&mut self) -> Vec<String> {
        let (mut told, mut idle) = (Vec::new(), 0);
        // A join takes some turns.
        while idle < 4 {
            let calls = self.calls();
            idle = if calls.is_empty() { idle + 1 } else { 0 };
            for (ticket, requests) in calls {
                told.extend(requests.iter().map(text));
                let ids: Vec<_> = requests.iter().map(|r| (r.seq, r.request_id)).collect();
                self.ends(ticket, ok(&ids));
            }
        }
        told
    }

    fn links(&mut self, link: Link) {
        for id in [InstanceId(0), InstanceId(1)] {
            self.engine.on_link(id, link, "", self.now);
        }
    }

    fn waiting(&self) -> u64 {
        self.engine.report(0, self.now).gauges.events_waiting
    }
}

fn event(request: &BaseRequest) -> SessionEvent {
    SessionEvent::decode(request.payload.clone()).expect("an event")
}

/// A request in short: of a message its id, of an event what it says.
fn text(request: &BaseRequest) -> String {
    if !(9100..=9106).contains(&request.msg_id) {
        return request.msg_id.to_string();
    }
    assert_eq!((request.seq, request.priority), (0, 4), "one-way, of class low");
    let SessionEvent { kind, group, reason, count, .. } = event(request);
    let parts = [kind, group, reason, if count > 0 { count.to_string() } else { String::new() }];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

#[test]
fn events_of_a_session_come_in_its_order_among_its_messages() {
    let mut rig = EventRig::all();
    let id = rig.open();
    rig.says(id, 1, "\"msg_id\":1000");
    rig.joins(id, 2, 9010, "room:7");
    rig.says(id, 3, "\"msg_id\":2000");
    assert_eq!(rig.told(), ["connected", "1000", "2000", "joined room:7"]);
    rig.says(id, 4, "\"msg_id\":1000");
    rig.joins(id, 5, 9011, "room:7");
    rig.joins(id, 6, 9010, "room:8");
    assert_eq!(rig.told(), ["1000", "left room:7 LEFT", "joined room:8"]);
    // One-way, as nobody is there for the answer.
    rig.says(id, 0, "\"msg_id\":1000");
    rig.engine.remove(id);
    assert_eq!(rig.told(), ["1000", "left room:8 CLOSED", "disconnected CLOSED"]);
    assert_eq!((rig.waiting(), rig.engine.view().messages), (0, 0));
}

#[test]
fn an_event_has_an_id_a_number_and_the_address_and_is_of_its_session() {
    let mut rig = EventRig::all();
    let id = rig.open();
    rig.says(id, 1, "\"msg_id\":1000");
    let (_, requests) = rig.calls().remove(0);
    assert_eq!(requests[0].session, requests[1].session);
    assert_eq!(requests[0].id, format!("{}.1", requests[0].session));
    let SessionEvent { number, peer, .. } = event(&requests[0]);
    assert_eq!((requests[0].msg_id, number, &*peer), (9100, 1, "127.0.0.1:2"));
}

#[test]
fn a_client_that_says_nothing_is_told_of_a_moment_later() {
    let mut rig = EventRig::all();
    rig.open();
    let short = rig.open();
    assert_eq!(rig.told(), [""; 0]);
    rig.engine.remove(short);
    rig.later(600);
    assert_eq!(rig.told(), ["connected"], "the other one was never there");
}

#[test]
fn a_break_that_is_resumed_within_the_grace_is_no_event() {
    let mut rig = EventRig::all();
    for _ in 0..20 {
        let id = rig.open();
        let resume = rig.resumable(id, 1);
        rig.joins(id, 2, 9010, "room:7");
        assert_eq!(rig.told(), ["connected", "joined room:7"]);
        rig.engine.remove(id);
        rig.later(1_000);
        let again = rig.open();
        rig.says(again, 3, &resume);
        rig.later(9_000);
        assert_eq!(rig.told(), [""; 0]);
        // On the new connection while the old one is not known to be broken.
        let resume = {
            let heard = rig.heard(again);
            assert!(heard.contains("\"outcome\":\"resumed\""), "{heard}");
            let at = heard.find("\"secret\":\"").expect("a new secret") + 10;
            let old = resume.find("\"secret\":\"").expect("the old secret") + 10;
            resume.replace(&resume[old..old + 26], &heard[at..at + 26])
        };
        let third = rig.open();
        rig.says(third, 4, &resume);
        assert!(rig.heard(third).contains("\"outcome\":\"resumed\""));
        rig.engine.remove(again);
        rig.later(9_000);
        assert_eq!(rig.told(), [""; 0]);
        rig.engine.remove(third);
        rig.later(6_000);
        assert_eq!(rig.told(), ["left room:7 EXPIRED", "disconnected EXPIRED"]);
    }
}

#[test]
fn a_session_that_comes_back_after_the_grace_is_told_of_again_with_its_groups() {
    let mut rig = EventRig::all();
    let id = rig.open();
    let resume = rig.resumable(id, 1);
    rig.joins(id, 2, 9010, "room:7");
    rig.told();
    rig.engine.remove(id);
    rig.later(6_000);
    assert_eq!(rig.told(), ["left room:7 EXPIRED", "disconnected EXPIRED"]);
    let again = rig.open();
    rig.says(again, 3, &resume);
    assert_eq!(rig.told(), ["connected", "joined room:7"]);
    rig.engine.remove(again);
    rig.later(6_000);
    rig.told();
    rig.later(60_000);
    assert_eq!(rig.told(), [""; 0], "its end is not told twice");
}

#[test]
fn events_wait_for_a_service_that_is_down_and_come_before_what_follows() {
    let mut rig = EventRig::all();
    rig.links(Link::Down);
    let id = rig.open();
    rig.says(id, 1, "\"msg_id\":1000");
    assert!(rig.heard(id).contains("UNAVAILABLE"), "messages do not wait for events");
    rig.joins(id, 2, 9010, "room:7");
    assert_eq!(rig.told(), [""; 0]);
    rig.later(10_000);
    assert_eq!((rig.told(), rig.waiting()), (vec![], 2));
    rig.links(Link::Up);
    rig.says(id, 3, "\"msg_id\":1000");
    assert_eq!(rig.told(), ["connected", "joined room:7", "1000"]);
    assert_eq!(rig.waiting(), 0);
}

#[test]
fn an_event_whose_service_breaks_off_is_told_later_and_in_order() {
    let mut rig = EventRig::all();
    let id = rig.open();
    rig.says(id, 1, "\"msg_id\":2000");
    let (ticket, requests) = rig.calls().remove(0);
    assert_eq!(requests.iter().map(text).collect::<Vec<_>>(), ["connected", "2000"]);
    rig.engine.remove(id);
    rig.later(10);
    rig.ends(ticket, Err(error(CallFault::ConnectionLost, Started::Maybe)));
    rig.links(Link::Down);
    assert_eq!(rig.told(), [""; 0]);
    rig.later(20_000);
    assert_eq!((rig.told(), rig.waiting()), (vec![], 2));
    rig.links(Link::Up);
    assert_eq!(rig.told(), ["connected", "disconnected CLOSED"]);
}

#[test]
fn a_service_that_is_unavailable_gets_its_events_when_it_is_there_again() {
    let mut rig = EventRig::all();
    let id = rig.open();
    rig.says(id, 1, "\"msg_id\":1000");
    rig.engine.remove(id);
    let mut tries = 0;
    for _ in 0..400 {
        for (ticket, _) in rig.calls() {
            tries += 1;
            rig.ends(ticket, Err(error(CallFault::Status, Started::Maybe)));
        }
        rig.later(100);
    }
    assert!((10..600).contains(&tries), "{tries} calls in 40 s");
    rig.later(6_000);
    assert_eq!(rig.told(), ["connected", "disconnected CLOSED"]);
    assert_eq!((rig.waiting(), rig.engine.view().messages), (0, 0));
}

#[test]
fn what_is_over_the_cap_or_the_ttl_is_told_as_lost_and_the_number_jumps() {
    let mut rig = EventRig::new(Some(rights()), |s| s.events.items_max = 3);
    rig.links(Link::Down);
    let connect = |rig: &mut EventRig| {
        let id = rig.open();
        rig.says(id, 1, "\"msg_id\":1000");
    };
    for _ in 0..10 {
        connect(&mut rig);
    }
    assert_eq!(rig.waiting(), 3, "the cap holds");
    rig.links(Link::Up);
    assert_eq!(rig.told(), ["connected", "connected", "connected"]);
    connect(&mut rig);
    let (ticket, requests) = rig.calls().remove(0);
    let lost: Vec<_> = requests.iter().map(|r| (text(r), event_number(r))).collect();
    assert_eq!(lost[0], ("lost 7".into(), Some(11)));
    rig.ends(ticket, Err(error(CallFault::TimedOut, Started::Maybe)));
    rig.later(100);
    let told = rig.told();
    assert!(told.iter().any(|text| text.starts_with("lost 7") || text == "lost 8"), "{told:?}");
    rig.links(Link::Down);
    connect(&mut rig);
    rig.later(61_000);
    assert_eq!(rig.waiting(), 1, "only what tells of it");
    rig.links(Link::Up);
    assert_eq!(rig.told(), ["lost 1"]);
    let counters = rig.engine.counters().get(Counter::EventsLost);
    assert!(counters >= 8, "{counters}");
}

fn event_number(request: &BaseRequest) -> Option<u64> {
    (request.msg_id >= 9100).then(|| event(request).number)
}

#[test]
fn a_service_hears_of_the_tenants_and_groups_that_it_is_for_and_no_others() {
    let only_for: Option<Arc<[TenantId]>> = Some([TenantId::of("acme")].into());
    let mut rig = EventRig::new(Some(EventRights { only_for, ..rights() }), |_| {});
    let id = rig.open();
    rig.says(id, 1, "\"msg_id\":1000");
    assert_eq!(rig.told(), ["1000"]);
    let groups = vec![Pattern("room:7".into())];
    let mut rig = EventRig::new(Some(EventRights { groups, ..rights() }), |_| {});
    let id = rig.open();
    rig.joins(id, 1, 9010, "room:8");
    rig.joins(id, 2, 9010, "room:7");
    assert_eq!(rig.told(), ["connected", "joined room:7"]);
}

#[test]
fn a_gateway_without_events_keeps_nothing_for_them() {
    let mut rig = EventRig::new(None, |_| {});
    let id = rig.open();
    rig.says(id, 1, "\"msg_id\":1000");
    rig.joins(id, 2, 9010, "room:8");
    rig.later(1_000);
    assert_eq!(rig.told(), ["1000"]);
    rig.engine.remove(id);
    assert_eq!((rig.told(), rig.waiting()), (vec![], 0));
}

#[test]
fn a_reload_begins_and_ends_the_events_of_a_service() {
    let mut rig = EventRig::all();
    let id = rig.open();
    rig.says(id, 1, "\"msg_id\":1000");
    rig.told();
    let snapshot = rig.engine.snapshot().clone();
    rig.engine.clients.events.apply(&snapshot, &BTreeMap::new());
    rig.engine.remove(id);
    assert_eq!((rig.told(), rig.waiting()), (vec![], 0));
}

#[test]
fn a_stop_tells_of_its_sessions_before_it_is_complete() {
    let mut rig = EventRig::all();
    let id = rig.open();
    rig.says(id, 1, "\"msg_id\":1000");
    rig.told();
    let stop = StopSettings { grace: std::time::Duration::from_secs(5), ..Default::default() };
    rig.engine.drain(stop, rig.now);
    rig.later(10);
    rig.engine.remove(id);
    let (ticket, requests) = rig.calls().remove(0);
    assert_eq!(text(&requests[0]), "disconnected GATEWAY_STOP");
    assert!(!rig.engine.is_drained(), "it is on its way");
    rig.ends(ticket, ok(&[(0, requests[0].request_id)]));
    assert!(rig.engine.is_drained());
}

#[test]
fn the_answer_to_an_event_puts_its_session_into_groups() {
    let mut rig = EventRig::new(Some(rights()), |_| {});
    let mut gateway = (*rig.engine.config.gateway).clone();
    let joins = vec![Pattern("room:*".into())];
    let tenants = vec![Pattern("*".into())];
    let may = crate::config::settings::PushRights { joins, tenants, ..Default::default() };
    gateway.push.services.insert("s".into(), Arc::new(may));
    rig.engine.config.gateway = Arc::new(gateway);
    let id = rig.open();
    rig.resumable(id, 1);
    let (ticket, requests) = rig.calls().remove(0);
    let response = BaseResponse {
        request_id: requests[0].request_id,
        join: vec!["room:9".into()],
        ..Default::default()
    };
    let answer = BatchResponse { responses: vec![response], ..Default::default() };
    rig.ends(ticket, Ok(answer.encode_to_vec().into()));
    assert_eq!(rig.told(), ["joined room:9"]);
    assert!(rig.heard(id).contains("room:9"));
}
