//! Stories of clients that lose their connection: what they get when they come back, and who gets
//! nothing.

mod bounds;
mod leaving;

use bytes::{Buf, Bytes};
use prost::Message as _;
use serde_json::Value;

use super::*;
use crate::demo::proto::{BaseResponse, BatchRequest, BatchResponse};
use crate::engine::Engine;
use crate::engine::clients::sign_in::tests::{SECRET, auth, engine, frame, published, token};
use crate::ids::ShardId;
use crate::mailbox::ShardConfig;
use crate::message::{Call, Outcome as CallOutcome};

const REQUEST: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\
     Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
     Sec-WebSocket-Version: 13\r\n\r\n";

struct Rig {
    shards: Vec<Engine>,
    now: Micros,
}

/// What a client needs to come back.
#[derive(Clone, Debug)]
struct Ticket {
    session: String,
    secret: String,
}

impl Rig {
    fn new(shards: u16, change: impl Fn(&mut ShardConfig)) -> Self {
        let shards = (0..shards).map(|n| {
            let mut published = published(SECRET, false);
            change(&mut published);
            engine(published, n, shards)
        });
        Self { shards: shards.collect(), now: Micros(1_000_000) }
    }

    fn one() -> Self {
        Self::new(1, |_| {})
    }

    fn open_on(&mut self, shard: usize) -> ConnId {
        let peer = ([127, 0, 0, 1], 1).into();
        let id = self.shards[shard].open(peer, self.now).expect("room");
        self.shards[shard].on_bytes(id, &mut REQUEST.as_bytes().to_vec(), self.now);
        let told = self.told_on(shard, id);
        assert_eq!(told[0]["type"], "welcome");
        id
    }

    fn open(&mut self) -> ConnId {
        self.open_on(0)
    }

    fn says(&mut self, id: ConnId, text: &str) {
        self.sends(id, frame(text));
    }

    fn sends(&mut self, id: ConnId, mut bytes: Vec<u8>) {
        self.shards[0].on_bytes(id, &mut bytes, self.now);
        self.shards[0].end_turn(self.now);
        self.shards[0].check_invariants().expect("consistent");
    }

    /// The messages that were written to a connection since the last look; a Close is its code.
    fn told_on(&mut self, shard: usize, id: ConnId) -> Vec<Value> {
        let bytes = self.shards[shard].outbox(id).to_vec();
        self.shards[shard].on_sent(id, bytes.len(), self.now);
        read_frames(&bytes)
    }

    fn told(&mut self, id: ConnId) -> Vec<Value> {
        self.told_on(0, id)
    }

    fn breaks(&mut self, id: ConnId) {
        self.shards[0].remove(id);
        self.shards[0].check_invariants().expect("consistent");
    }

    fn tick(&mut self) {
        self.shards[0].tick(self.now, &mut Vec::new());
        self.shards[0].check_invariants().expect("consistent");
    }

    /// Makes the session of a connection resumable.
    fn opts_in(&mut self, id: ConnId) -> Ticket {
        self.says(id, r#"{"type":"resume","seq":1}"#);
        let told = self.told(id).remove(0);
        assert_eq!(
            (&told["type"], &told["payload"]["outcome"]),
            (&"resumed".into(), &"new".into())
        );
        ticket(&told)
    }

    /// A connection on which `user` has signed in.
    fn signs_in(&mut self, user: &str) -> ConnId {
        let id = self.open();
        self.sends(id, auth(1, &token(user)));
        assert_eq!(self.told(id)[0]["type"], "auth_ok");
        id
    }

    /// The same, with a session that can be resumed.
    fn opts_in_as(&mut self, user: &str) -> (ConnId, Ticket) {
        let id = self.signs_in(user);
        self.says(id, r#"{"type":"resume","seq":2}"#);
        let resumed = ticket(&self.told(id)[0]);
        (id, resumed)
    }

    /// Resumes as `user` on a new connection: that one, and everything that it is told.
    fn resumes_as(&mut self, user: &str, ticket: &Ticket, offset: u64) -> (ConnId, Vec<Value>) {
        let id = self.signs_in(user);
        self.says(id, &resume(2, ticket, offset));
        let told = self.told(id);
        (id, told)
    }

    /// Resumes on a new connection: that one, and everything that it is told.
    fn resumes(&mut self, ticket: &Ticket, offset: u64) -> (ConnId, Vec<Value>) {
        let id = self.open();
        self.says(id, &resume(1, ticket, offset));
        let told = self.told(id);
        (id, told)
    }

    fn calls(&mut self) -> Vec<Call> {
        self.shards[0].end_turn(self.now);
        std::mem::take(&mut self.shards[0].effects.calls)
    }

    /// A service answers a call.
    fn answers(&mut self, mut call: Call) {
        let len = call.body.remaining();
        let batch = BatchRequest::decode(call.body.copy_to_bytes(len).slice(5..)).expect("a batch");
        let responses = batch.requests.iter().map(|r| BaseResponse {
            request_id: r.request_id,
            payload: Bytes::from(r.seq.to_string()),
            ..Default::default()
        });
        let result =
            BatchResponse { responses: responses.collect(), ..Default::default() }.encode_to_vec();
        let outcome = CallOutcome { ticket: call.ticket, result: Ok(result.into()) };
        self.shards[0].on_outcome(outcome, self.now);
        self.shards[0].check_invariants().expect("consistent");
    }

    fn counted(&self, counter: Counter) -> u64 {
        self.shards.iter().map(|shard| shard.report(0, self.now).counters.get(counter)).sum()
    }

    fn away(&self) -> usize {
        self.shards[0].clients.sessions.len().1
    }
}

fn resume(seq: u64, Ticket { session, secret }: &Ticket, offset: u64) -> String {
    let payload = format!(r#"{{"session":"{session}","secret":"{secret}","offset":{offset}}}"#);
    format!(r#"{{"type":"resume","seq":{seq},"payload":{payload}}}"#)
}

fn ticket(resumed: &Value) -> Ticket {
    let text = |name: &str| resumed["payload"][name].as_str().expect("a text").to_owned();
    Ticket { session: text("session"), secret: text("secret") }
}

fn read_frames(mut bytes: &[u8]) -> Vec<Value> {
    let mut all = Vec::new();
    if bytes.starts_with(b"HTTP/1.1 101") {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("a head");
        bytes = &bytes[end + 4..];
    }
    while let [kind, length, ..] = *bytes {
        let (head, length) = match length {
            126 => (4, usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))),
            n => (2, usize::from(n)),
        };
        let body = &bytes[head..head + length];
        match kind {
            0x81 => all.push(serde_json::from_slice(body).expect("JSON")),
            0x88 => all.push(Value::from(u16::from_be_bytes([body[0], body[1]]))),
            other => panic!("frame {other:#x}"),
        }
        bytes = &bytes[head + length..];
    }
    all
}

/// Outcome and reason of the first of these messages, and the offsets of the rest.
fn outcome(told: &[Value]) -> (String, String, Vec<u64>) {
    let payload = &told[0]["payload"];
    let text = |name: &str| payload[name].as_str().unwrap_or_default().to_owned();
    let offsets = told[1..].iter().map(|m| m["offset"].as_u64().expect("numbered")).collect();
    (text("outcome"), text("reason"), offsets)
}

fn is(told: &[Value], name: &str, reason: &str, offsets: &[u64]) {
    assert_eq!(outcome(told), (name.into(), reason.into(), offsets.to_vec()), "{told:?}");
}

const ECHO: [&str; 3] = [
    r#"{"msg_id":9000,"seq":2,"payload":"a"}"#,
    r#"{"msg_id":9000,"seq":3,"payload":"b"}"#,
    r#"{"msg_id":9000,"seq":4,"payload":"c"}"#,
];
const TO_SERVICE: &str = r#"{"msg_id":2000,"seq":9,"payload":1}"#;

#[test]
fn a_client_gets_what_it_lacks_in_order_and_nothing_twice() {
    let mut rig = Rig::one();
    let id = rig.open();
    let before = rig.opts_in(id);
    ECHO.iter().for_each(|text| rig.says(id, text));
    let offsets: Vec<_> = rig.told(id).iter().map(|m| m["offset"].clone()).collect();
    assert_eq!(offsets, [1, 2, 3]);
    rig.breaks(id);
    let (again, told) = rig.resumes(&before, 1);
    is(&told, "resumed", "", &[2, 3]);
    assert_eq!((&told[1]["payload"], &told[2]["payload"]), (&"b".into(), &"c".into()));
    assert_eq!(told[0]["payload"]["received_seq"], 4);
    assert_eq!(told[0]["payload"]["offset"], 3);
    assert_eq!(told[0]["payload"]["session"], before.session);
    // The numbers go on.
    rig.says(again, r#"{"msg_id":9000,"seq":4,"payload":"c"}"#);
    rig.says(again, r#"{"msg_id":9000,"seq":5,"payload":"d"}"#);
    let told = rig.told(again);
    assert_eq!((&told[0]["reason"], &told[0]["offset"]), (&"BAD_MESSAGE".into(), &4.into()));
    assert_eq!((&told[1]["payload"], &told[1]["offset"]), (&"d".into(), &5.into()));
}

#[test]
fn an_answer_that_comes_while_its_client_is_away_is_kept_for_it() {
    let mut rig = Rig::one();
    let id = rig.open();
    let before = rig.opts_in(id);
    rig.says(id, TO_SERVICE);
    let call = rig.calls().remove(0);
    rig.breaks(id);
    rig.answers(call);
    assert_eq!(rig.counted(Counter::AnswersKept), 1);
    let (_, told) = rig.resumes(&before, 0);
    is(&told, "resumed", "", &[1]);
    assert_eq!((&told[1]["seq"], &told[1]["payload"]), (&9.into(), &9.into()));
    assert_eq!(rig.counted(Counter::AnswersUndeliverable), 0);
}

#[test]
fn an_answer_that_comes_after_the_resume_goes_to_the_new_connection_alone() {
    let mut rig = Rig::one();
    let id = rig.open();
    let before = rig.opts_in(id);
    rig.says(id, TO_SERVICE);
    let call = rig.calls().remove(0);
    // Nobody has seen the old connection break.
    let (again, told) = rig.resumes(&before, 0);
    is(&told, "resumed", "", &[]);
    assert_eq!(rig.told(id), [Value::from(close::RESUMED_ELSEWHERE)]);
    assert_eq!(rig.counted(Counter::SessionTakeovers), 1);
    rig.answers(call);
    assert_eq!(rig.told(id), [] as [Value; 0]);
    assert_eq!(rig.told(again)[0]["offset"], 1);
    // Its end is not the session's.
    rig.breaks(id);
    rig.breaks(again);
    assert_eq!(rig.away(), 1);
}

#[test]
fn who_does_not_ask_gets_no_offsets_and_its_session_ends_with_its_connection() {
    let mut rig = Rig::one();
    let id = rig.open();
    rig.says(id, ECHO[0]);
    rig.says(id, r#"{"msg_id":9000,"seq":3,"ack":77}"#);
    let told = rig.told(id);
    assert!(
        told.iter().all(|m| m.get("offset").is_none() && m.get("reason").is_none()),
        "{told:?}"
    );
    rig.says(id, TO_SERVICE);
    let call = rig.calls().remove(0);
    rig.breaks(id);
    rig.answers(call);
    assert_eq!((rig.away(), rig.counted(Counter::AnswersUndeliverable)), (0, 1));
}

#[test]
fn a_wrong_secret_or_user_or_id_touches_nothing() {
    let mut rig = Rig::one();
    let (id, right) = rig.opts_in_as("ann");
    let other = |text: &str| text.chars().rev().collect::<String>();
    let wrong_secret = Ticket { secret: other(&right.secret), ..right.clone() };
    let wrong_id = Ticket { session: "00zzzzzzzzzzzzzz".into(), ..right.clone() };
    let no_id = Ticket { session: "x".into(), ..right.clone() };
    for (user, shown) in [
        (Some("ann"), &wrong_secret),
        (Some("ann"), &wrong_id),
        (Some("ann"), &no_id),
        (Some("bob"), &right),
        (None, &right),
    ] {
        let (attempt, told) = match user {
            Some(user) => rig.resumes_as(user, shown, 0),
            None => rig.resumes(shown, 0),
        };
        is(&told, "lost", "UNKNOWN", &[]);
        // A usable connection, with a session of its own.
        assert_ne!(told[0]["payload"]["session"], right.session);
        rig.says(attempt, r#"{"msg_id":9000,"seq":3}"#);
        assert_eq!(rig.told(attempt)[0]["offset"], 1);
    }
    rig.says(id, r#"{"msg_id":9000,"seq":3}"#);
    assert_eq!(rig.told(id)[0]["offset"], 1, "the session is where it was");
    is(&rig.resumes_as("ann", &right, 0).1, "resumed", "", &[1]);
}

#[test]
fn a_secret_is_good_once_and_again_only_if_its_answer_was_lost() {
    let mut rig = Rig::one();
    let id = rig.open();
    let first = rig.opts_in(id);
    let (id, told) = rig.resumes(&first, 0);
    let second = ticket(&told[0]);
    assert_ne!(first.secret, second.secret);
    rig.breaks(id);
    // `resumed` was lost on its way.
    let (id, told) = rig.resumes(&first, 0);
    is(&told, "resumed", "", &[]);
    let third = ticket(&told[0]);
    rig.says(id, r#"{"msg_id":9000,"seq":5}"#);
    rig.says(id, r#"{"type":"heartbeat","ack":1}"#);
    rig.breaks(id);
    for old in [&first, &second] {
        is(&rig.resumes(old, 1).1, "lost", "UNKNOWN", &[]);
    }
    is(&rig.resumes(&third, 1).1, "resumed", "", &[]);
}

#[test]
fn a_session_that_is_not_there_any_more_is_lost_for_the_reason_that_is_true() {
    let mut rig = Rig::one();
    let id = rig.open();
    let left = rig.opts_in(id);
    // Close 1000.
    rig.sends(id, vec![0x88, 0x82, 0, 0, 0, 0, 3, 232]);
    is(&rig.resumes(&left, 0).1, "lost", "ENDED", &[]);
    rig.breaks(id);
    is(&rig.resumes(&left, 0).1, "lost", "ENDED", &[]);
    let id = rig.open();
    let expires = rig.opts_in(id);
    rig.tick();
    rig.breaks(id);
    rig.now = rig.now.plus_ms(59_990);
    rig.tick();
    assert_eq!(rig.away(), 1);
    rig.now = rig.now.plus_ms(10);
    rig.tick();
    is(&rig.resumes(&expires, 0).1, "lost", "EXPIRED", &[]);
    let id = rig.open();
    let expires = rig.opts_in(id);
    // `resumed` was lost on its way.
    let (again, _) = rig.resumes(&expires, 0);
    rig.breaks(again);
    rig.now = rig.now.plus_ms(60_000);
    rig.tick();
    is(&rig.resumes(&expires, 0).1, "lost", "EXPIRED", &[]);
    let id = rig.open();
    let Ticket { session, secret } = &left;
    let payload = format!(r#"{{"session":"{session}","secret":"{secret}","boot":"77"}}"#);
    rig.says(id, &format!(r#"{{"type":"resume","seq":1,"payload":{payload}}}"#));
    is(&rig.told(id), "lost", "RESTARTED", &[]);
    let lost =
        [Counter::SessionsLostEnded, Counter::SessionsLostExpired, Counter::SessionsLostRestarted];
    assert_eq!(lost.map(|counter| rig.counted(counter)), [2, 2, 1]);
}

#[test]
fn a_page_that_goes_away_a_cut_and_an_expired_token_leave_the_session_there() {
    for code in [1001_u16, 4900, 1006] {
        let mut rig = Rig::one();
        let id = rig.open();
        let before = rig.opts_in(id);
        let [a, b] = code.to_be_bytes();
        if code != 1006 {
            rig.sends(id, vec![0x88, 0x82, 0, 0, 0, 0, a, b]);
        }
        rig.breaks(id);
        is(&rig.resumes(&before, 0).1, "resumed", "", &[]);
    }
    let mut rig = Rig::one();
    let (id, _) = rig.opts_in_as("ann");
    rig.now = rig.now.plus_ms(700_000);
    (0..100).for_each(|_| rig.tick());
    assert_eq!(rig.told(id), [Value::from(close::TOKEN_EXPIRED)]);
    rig.breaks(id);
    assert_eq!(rig.away(), 1);
}

#[test]
fn a_client_that_broke_a_rule_starts_anew() {
    let mut rig = Rig::one();
    let id = rig.open();
    let before = rig.opts_in(id);
    // Reserved bits.
    rig.sends(id, vec![0xf3, 0x80, 0, 0, 0, 0]);
    rig.breaks(id);
    is(&rig.resumes(&before, 0).1, "lost", "ENDED", &[]);
}

#[test]
fn frames_that_the_window_has_no_room_for_are_a_gap_and_nobody_is_closed() {
    let mut rig = Rig::new(1, |c| c.settings.session.kept_items_max = 2);
    let id = rig.open();
    let before = rig.opts_in(id);
    ECHO.iter().for_each(|text| rig.says(id, text));
    assert_eq!(rig.told(id).len(), 3);
    rig.breaks(id);
    let (id, told) = rig.resumes(&before, 0);
    is(&told, "gap", "OVERFLOW", &[2, 3]);
    assert_eq!(told[0]["payload"]["session"], before.session);
    let before = ticket(&told[0]);
    rig.breaks(id);
    is(&rig.resumes(&before, 3).1, "resumed", "", &[]);
    assert_eq!((rig.counted(Counter::SessionsGap), rig.counted(Counter::SessionsResumed)), (1, 1));
}

#[test]
fn an_answer_larger_than_the_window_is_undeliverable_while_away_and_a_gap() {
    let mut rig = Rig::new(1, |c| c.settings.session.kept_bytes_max = 30);
    let id = rig.open();
    let before = rig.opts_in(id);
    rig.says(id, TO_SERVICE);
    let call = rig.calls().remove(0);
    rig.breaks(id);
    rig.answers(call);
    assert_eq!(rig.counted(Counter::AnswersUndeliverable), 1);
    is(&rig.resumes(&before, 0).1, "gap", "OVERFLOW", &[]);
}

#[test]
fn acks_and_offsets_above_the_last_one_and_a_second_resume_are_bad_messages() {
    let mut rig = Rig::one();
    let id = rig.open();
    let before = rig.opts_in(id);
    for bad in [
        r#"{"msg_id":9000,"seq":2,"ack":1}"#,
        r#"{"type":"resume","seq":3}"#,
        r#"{"type":"resume","seq":4,"payload":{"offset":-1}}"#,
    ] {
        rig.says(id, bad);
        let told = rig.told(id);
        assert_eq!(told[0]["reason"], "BAD_MESSAGE", "{bad}: {told:?}");
    }
    rig.breaks(id);
    let (other, told) = rig.resumes(&before, 4);
    assert_eq!(told[0]["reason"], "BAD_MESSAGE", "{told:?}");
    assert!(told[0]["message"].as_str().is_some_and(|text| text.starts_with("offset")));
    // The connection can still resume it.
    rig.says(other, &resume(2, &before, 3));
    is(&rig.told(other), "resumed", "", &[]);
    let used = rig.open();
    rig.says(used, ECHO[0]);
    rig.told(used);
    rig.says(used, &resume(3, &before, 3));
    let told = rig.told(used);
    assert_eq!(told[0]["reason"], "BAD_MESSAGE", "{told:?}");
}

#[test]
fn signing_in_with_a_message_begins_a_new_session() {
    let mut rig = Rig::one();
    let id = rig.open();
    let before = rig.opts_in(id);
    rig.sends(id, auth(2, &token("ann")));
    let told = rig.told(id);
    assert_eq!(told[0]["type"], "auth_ok");
    assert_ne!(told[0]["payload"]["session"], before.session);
    is(&rig.resumes(&before, 0).1, "lost", "ENDED", &[]);
    // A newer token of the same user does not.
    rig.says(id, r#"{"type":"resume","seq":3}"#);
    let resumable = ticket(&rig.told(id)[0]);
    assert_eq!(resumable.session, told[0]["payload"]["session"].as_str().expect("text"));
    rig.sends(id, auth(4, &token("ann")));
    assert_eq!(rig.told(id)[0]["payload"]["session"], resumable.session);
}

#[test]
fn a_session_without_a_user_is_resumed_on_the_shard_that_its_id_names() {
    let mut rig = Rig::new(2, |_| {});
    let id = rig.open();
    let before = rig.opts_in(id);
    rig.says(id, ECHO[0]);
    rig.breaks(id);
    let other = rig.open_on(1);
    rig.shards[1].on_bytes(other, &mut frame(&resume(1, &before, 0)), rig.now);
    rig.shards[1].end_turn(rig.now);
    assert_eq!(std::mem::take(&mut rig.shards[1].effects.moves), [other]);
    let (home, departed) = rig.shards[1].depart(other).expect("it moves");
    assert_eq!(home, ShardId(0));
    rig.shards[1].check_invariants().expect("consistent");
    let id = rig.shards[0].arrive(departed, rig.now).expect("room");
    rig.shards[0].check_invariants().expect("consistent");
    is(&rig.told(id), "resumed", "", &[1]);
    // An id of a shard that there is not is unknown, where it was asked.
    let far = Ticket { session: "zz00000000000000".into(), ..before };
    is(&rig.resumes(&far, 0).1, "lost", "UNKNOWN", &[]);
}

#[test]
fn a_resumed_session_is_not_read_while_it_has_as_much_unanswered_as_it_may() {
    let mut rig = Rig::new(1, |c| {
        c.settings.conn.unanswered_max = 1;
        c.settings.batch.eager_max = 1;
    });
    let id = rig.open();
    let before = rig.opts_in(id);
    rig.says(id, TO_SERVICE);
    let call = rig.calls().remove(0);
    rig.breaks(id);
    let (id, _) = rig.resumes(&before, 0);
    assert!(rig.shards[0].is_paused(id));
    rig.answers(call);
    assert!(!rig.shards[0].is_paused(id));
    assert_eq!(rig.told(id)[0]["seq"], 9);
}

#[test]
fn a_connection_that_waited_for_answers_is_read_again_when_its_session_is_gone() {
    let mut rig = Rig::new(1, |c| c.settings.conn.unanswered_max = 1);
    let id = rig.open();
    let before = rig.opts_in(id);
    rig.says(id, TO_SERVICE);
    assert!(rig.shards[0].is_paused(id));
    rig.resumes(&before, 0);
    // Else the Close that answers ours would be awaited in vain.
    assert!(!rig.shards[0].is_paused(id));
    assert_eq!(std::mem::take(&mut rig.shards[0].effects.resumed), [id]);
}

#[test]
fn another_encoding_goes_on_with_the_session_and_tells_a_gap_if_it_lacks_anything() {
    let mut rig = Rig::one();
    for (offset, expected) in [(1, "resumed"), (0, "gap")] {
        let id = rig.open();
        let before = rig.opts_in(id);
        rig.says(id, ECHO[0]);
        rig.breaks(id);
        let peer = ([127, 0, 0, 1], 1).into();
        let other = rig.shards[0].open(peer, rig.now).expect("room");
        let request = REQUEST
            .replace("\r\n\r\n", "\r\nSec-WebSocket-Protocol: shardgate.v1.protobuf\r\n\r\n");
        rig.shards[0].on_bytes(other, &mut request.into_bytes(), rig.now);
        let sent = rig.shards[0].outbox(other).len();
        rig.shards[0].on_sent(other, sent, rig.now);
        let shown = client::Resume {
            session: before.session.clone(),
            secret: before.secret.clone(),
            offset,
            ..Default::default()
        };
        // msg type (field 3), seq (2) and payload (4).
        let payload = shown.encode_to_vec();
        let mut message = vec![0x10, 1, 0x1a, 6];
        message.extend_from_slice(b"resume");
        message.extend_from_slice(&[0x22, payload.len() as u8]);
        message.extend_from_slice(&payload);
        let head = [0x82, 0x80 | message.len() as u8, 0, 0, 0, 0];
        rig.sends(other, [&head[..], &message].concat());
        let told = rig.shards[0].outbox(other).to_vec();
        let found = String::from_utf8_lossy(&told).into_owned();
        assert!(found.contains(expected), "{found}");
        assert_eq!(found.contains("ENCODING"), expected == "gap", "{found}");
        // That was lost on its way: what is missing is so for the same reason.
        let reason = if expected == "gap" { "ENCODING" } else { "" };
        is(&rig.resumes(&before, offset).1, expected, reason, &[]);
        rig.tick();
        let dropped = u64::from(expected == "gap");
        assert_eq!(rig.counted(Counter::SessionFramesDropped), dropped, "what it lacks, once");
    }
}
