//! Groups on several shards: who gets what, in which order, and what is told of the rest.

mod presence;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde_json::Value;

use crate::auth::mint::{SigningKey, Wanted, mint};
use crate::config::settings::{Algorithm, GroupRule, JoinBy, Keep, Who};
use crate::engine::Engine;
use crate::engine::clients::sign_in::tests::{
    SECRET, START_S, auth, engine, frame, published, token,
};
use crate::ids::{ConnId, ShardId, TenantId};
use crate::mailbox::ShardConfig;
use crate::message::{Micros, Priority};
use crate::push::{
    Addressees, Body, Counts, GroupName, Kind, Origin, Push, ReceiptPart, Submit, Whom,
};

mod queries;

const REQUEST: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\
     Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
     Sec-WebSocket-Version: 13\r\n\r\n";

/// A client: its shard and its connection.
type Client = (usize, ConnId);

struct Rig {
    shards: Vec<Engine>,
    now: Micros,
    number: u64,
    /// Tenant of pushes.
    tenant: TenantId,
    /// Bytes that clients got and have not looked at.
    inbox: HashMap<Client, Vec<u8>>,
    /// Clients that read only when they are told to.
    stalled: HashSet<Client>,
}

impl Rig {
    fn new(shards: u16, rule: GroupRule) -> Self {
        Self::with(shards, |published| {
            let mut gateway = (*published.gateway).clone();
            gateway.push.groups = vec![Arc::new(rule.clone())];
            published.gateway = Arc::new(gateway);
        })
    }

    fn with(shards: u16, change: impl Fn(&mut ShardConfig)) -> Self {
        let shards = (0..shards).map(|n| {
            let mut published = published(SECRET, false);
            change(&mut published);
            engine(published, n, shards)
        });
        let (inbox, stalled) = Default::default();
        Self {
            shards: shards.collect(),
            now: Micros(1_000_000),
            number: 0,
            tenant: TenantId::DEFAULT,
            inbox,
            stalled,
        }
    }

    fn open(&mut self, shard: usize) -> Client {
        let peer = ([127, 0, 0, 1], 1).into();
        let id = self.shards[shard].open(peer, self.now).expect("room");
        self.shards[shard].on_bytes(id, &mut REQUEST.as_bytes().to_vec(), self.now);
        assert_eq!(self.told((shard, id))[0]["type"], "welcome");
        (shard, id)
    }

    fn says(&mut self, client: Client, text: &str) {
        self.sends(client, frame(text));
    }

    fn sends(&mut self, (shard, id): Client, mut bytes: Vec<u8>) {
        self.shards[shard].on_bytes(id, &mut bytes, self.now);
        self.settle();
    }

    /// Gives every shard turns, and carries items between them, until nothing moves.
    fn settle(&mut self) {
        for _ in 0..1_000 {
            let mut moved = false;
            for shard in 0..self.shards.len() {
                self.shards[shard].end_turn(self.now);
                self.flush(shard);
                for (to, item) in std::mem::take(&mut self.shards[shard].effects.deliver) {
                    moved = true;
                    self.shards[usize::from(to.0)].on_deliver(item, self.now);
                }
                // Counts come with the turn after the flush.
                moved |= self.shards[shard].clients.groups.is_under_way();
            }
            if !moved {
                break;
            }
        }
        for shard in &self.shards {
            shard.check_invariants().expect("consistent");
        }
    }

    /// Writes to the clients of a shard that have something new, and read.
    fn flush(&mut self, shard: usize) {
        for id in std::mem::take(&mut self.shards[shard].effects.dirty) {
            let client = (shard, id);
            if !self.stalled.contains(&client) {
                let bytes = self.reads(client, usize::MAX);
                self.inbox.entry(client).or_default().extend(bytes);
            }
        }
    }

    fn tick(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        for _ in 0..100 {
            for shard in &mut self.shards {
                shard.tick(self.now, &mut Vec::new());
            }
        }
        self.settle();
    }

    /// Everything that a client is told, in frames, if it reads all.
    fn told(&mut self, client: Client) -> Vec<Value> {
        let mut bytes = self.inbox.remove(&client).unwrap_or_default();
        bytes.extend(self.reads(client, usize::MAX));
        read_frames(&bytes)
    }

    /// The bytes that a client gets until nothing is left or the kernel has no room, which takes
    /// `room` bytes.
    fn reads(&mut self, (shard, id): Client, mut room: usize) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let engine = &mut self.shards[shard];
            let bytes = engine.bytes_to_send(id, false, self.now);
            let sent = bytes.len().min(room);
            all.extend_from_slice(&bytes[..sent]);
            room -= sent;
            engine.on_sent(id, sent, self.now);
            if sent == 0 {
                return all;
            }
        }
    }

    fn joins(&mut self, client: Client, seq: u64, group: &str) -> Value {
        let payload = format!(r#"{{"group":"{group}"}}"#);
        self.says(client, &format!(r#"{{"msg_id":9010,"seq":{seq},"payload":{payload}}}"#));
        let told = self.told(client);
        assert_eq!(told[0]["seq"], seq, "{told:?}");
        told[0].clone()
    }

    fn push(&mut self, to: Addressees, change: impl FnOnce(&mut Body)) -> u64 {
        self.number += 1;
        let mut body = Body {
            kind: Kind::Push,
            msg_id: 7001,
            payload: self.number.to_string().into(),
            is_bytes: false,
            key: "".into(),
            id: "".into(),
            from: "".into(),
            except: Vec::new(),
            priority: Priority::Normal,
            is_transient: false,
            expires: Micros(u64::MAX),
            unix_ms: 5,
        };
        change(&mut body);
        let shards = self.shards.len() as u16;
        let to_shards: Vec<u16> = match &to {
            Addressees::Group(name) => vec![name.home(shards).0],
            _ => (0..shards).collect(),
        };
        let origin = Origin::Control { number: self.number, is_counted: true };
        let tenant = self.tenant;
        let push = Push { origin, caller: 1, tenant, to, body: Arc::new(body) };
        for shard in to_shards {
            self.shards[usize::from(shard)].on_submit(Submit::Push(push.clone()), self.now);
        }
        self.number
    }

    fn push_to_group(&mut self, group: &str) -> u64 {
        let number = self.push(Addressees::Group(name(group)), |_| {});
        self.settle();
        number
    }

    /// The counts of all shards about a push, and the shards that sent them.
    fn counts(&mut self, number: u64) -> (Counts, usize) {
        self.settle();
        let mut counts = Counts::default();
        let mut shards = 0;
        for shard in &mut self.shards {
            for receipt in &shard.effects.receipts {
                if let ReceiptPart::Counted { counts: some, .. } = &receipt.part
                    && receipt.number == number
                {
                    counts.add(some);
                    shards += 1;
                }
            }
        }
        (counts, shards)
    }
}

/// A token that names groups.
fn token_with(user: &str, groups: &[&str]) -> String {
    let groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
    let wanted = Wanted {
        algorithm: Algorithm::Hs256,
        key_id: None,
        user,
        tenant: Some("acme"),
        groups: &groups,
        issuer: None,
        audience: None,
        now_unix_s: START_S,
        lifetime_s: 600,
    };
    mint(&wanted, SigningKey::Secret(SECRET.as_bytes())).expect("a token")
}

fn name(group: &str) -> GroupName {
    GroupName::new(TenantId::DEFAULT, group).expect("a name")
}

fn room() -> GroupRule {
    GroupRule { join: JoinBy::Anybody, publish: Who::Members, ..GroupRule::new("room:*") }
}

fn read_frames(mut bytes: &[u8]) -> Vec<Value> {
    let mut told = Vec::new();
    if bytes.starts_with(b"HTTP") {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 4;
        bytes = &bytes[end..];
    }
    while let [kind, length, rest @ ..] = bytes {
        let (length, rest) = match length {
            126 => (usize::from(u16::from_be_bytes([rest[0], rest[1]])), &rest[2..]),
            127 => (
                usize::try_from(u64::from_be_bytes(rest[..8].try_into().unwrap())).unwrap(),
                &rest[8..],
            ),
            length => (usize::from(*length), rest),
        };
        let (payload, rest) = rest.split_at(length);
        if *kind == 0x81 {
            told.push(serde_json::from_slice(payload).expect("JSON"));
        }
        bytes = rest;
    }
    told
}

/// Offset and payload of each push.
fn pushes(told: &[Value]) -> Vec<(u64, u64)> {
    let pushes = told.iter().filter(|told| told["type"] == "push");
    pushes.map(|p| (p["offset"].as_u64().unwrap_or(0), p["payload"].as_u64().unwrap())).collect()
}

#[test]
fn members_of_all_shards_get_each_push_once_and_in_one_order() {
    let mut rig = Rig::new(3, room());
    let clients: Vec<Client> = (0..9).map(|n| rig.open(n % 3)).collect();
    for client in &clients[..8] {
        let joined = rig.joins(*client, 1, "room:7");
        assert_eq!(joined["payload"]["outcome"], "joined", "{joined}");
    }
    let first = rig.push_to_group("room:7");
    rig.push_to_group("room:7");
    for client in &clients[..8] {
        let told = rig.told(*client);
        assert_eq!(pushes(&told), [(1, first), (2, first + 1)], "{told:?}");
        assert_eq!(told[0]["group"], "room:7");
    }
    assert!(rig.told(clients[8]).is_empty(), "no member");
    let number = rig.push_to_group("room:7");
    clients[..8].iter().for_each(|client| drop(rig.told(*client)));
    let (counts, shards) = rig.counts(number);
    assert_eq!((counts, shards), (Counts { written: 8, ..Counts::default() }, 3));
}

#[test]
fn a_client_publishes_to_its_group_and_not_to_others() {
    let mut rig = Rig::new(2, room());
    let [ann, bob] = [0, 1].map(|shard| rig.open(shard));
    rig.joins(ann, 1, "room:7");
    rig.joins(bob, 1, "room:7");
    let publish = |seq: u64, group: &str, to_me: bool| {
        format!(
            r#"{{"msg_id":9015,"seq":{seq},"payload":{{"group":"{group}","msg_id":7,
            "payload":5,"to_me":{to_me}}}}}"#
        )
    };
    rig.says(ann, &publish(2, "room:7", false));
    let told = rig.told(ann);
    assert_eq!(
        (&told[0]["seq"], &told[0]["payload"]["offset"]),
        (&2.into(), &1.into()),
        "{told:?}"
    );
    assert_eq!(told.len(), 1, "not to itself");
    let told = rig.told(bob);
    assert_eq!((pushes(&told), told[0]["from"].is_string()), (vec![(1, 5)], true));
    rig.says(ann, &publish(3, "room:7", true));
    assert_eq!(pushes(&rig.told(ann)), [(2, 5)]);
    rig.says(ann, &publish(4, "room:8", true));
    assert_eq!(rig.told(ann)[0]["reason"], "FORBIDDEN");
    // Right behind the join, whose answer comes from another shard.
    let home = usize::from(name("room:10").home(2).0);
    let cat = rig.open(1 - home);
    let join = frame(r#"{"msg_id":9010,"seq":1,"payload":{"group":"room:10"}}"#);
    rig.sends(cat, [join, frame(&publish(2, "room:10", true))].concat());
    assert_eq!(pushes(&rig.told(cat)), [(1, 5)]);
    rig.says(ann, r#"{"msg_id":9015,"seq":5,"payload":{"group":"room:7","msg_id":9001}}"#);
    assert_eq!(rig.told(ann)[0]["reason"], "BAD_MESSAGE");
}

#[test]
fn a_group_without_a_rule_and_one_that_services_fill_are_refused_alike() {
    let mut rig = Rig::new(1, GroupRule { join: JoinBy::None, ..room() });
    let client = rig.open(0);
    for (seq, group) in [(1, "room:7"), (2, "hall:7")] {
        let refused = rig.joins(client, seq, group);
        assert_eq!(refused["reason"], "FORBIDDEN");
    }
    for (seq, group, reason) in [(3, "", "BAD_MESSAGE"), (4, "a b", "BAD_MESSAGE")] {
        assert_eq!(rig.joins(client, seq, group)["reason"], reason);
    }
    assert_eq!(rig.joins(client, 5, &"x".repeat(129))["reason"], "TOO_LARGE");
}

#[test]
fn a_group_has_no_more_members_than_its_rule_says_wherever_they_are() {
    let mut rig = Rig::new(3, GroupRule { members_max: 4, ..room() });
    let mut inside = Vec::new();
    for n in 0..9 {
        let client = rig.open(n % 3);
        let joined = rig.joins(client, 1, "room:7");
        match joined["reason"].as_str() {
            None => inside.push(client),
            Some(reason) => assert_eq!(reason, "QUEUE_FULL"),
        }
    }
    assert_eq!(inside.len(), 4);
    // A place that is left is another one's, on another shard after the linger at the latest.
    rig.says(inside[0], r#"{"msg_id":9011,"seq":2,"payload":{"group":"room:7"}}"#);
    rig.told(inside[0]);
    let next = rig.open(inside[0].0);
    assert_eq!(rig.joins(next, 1, "room:7")["payload"]["outcome"], "joined");
}

#[test]
fn a_member_that_does_not_read_misses_what_the_log_does_not_keep_and_is_told() {
    let mut rig = Rig::with(1, |published| {
        let mut gateway = (*published.gateway).clone();
        gateway.push.groups = vec![Arc::new(room())];
        published.gateway = Arc::new(gateway);
        published.settings.groups.lag_bytes_max = 65_536;
    });
    let [slow, quick] = [0, 0].map(|shard| rig.open(shard));
    rig.joins(slow, 1, "room:7");
    rig.joins(quick, 1, "room:7");
    let large = |body: &mut Body| body.payload = format!("\"{}\"", "x".repeat(1_000)).into();
    rig.stalled.insert(slow);
    let mut seen = 0;
    for n in 0..500 {
        rig.push(Addressees::Group(name("room:7")), large);
        rig.settle();
        // A part of a frame at first, then nothing.
        rig.reads(slow, if n == 0 { 700 } else { 0 });
        seen += pushes_of_any(&rig.told(quick));
    }
    assert_eq!(seen, 500);
    let memory = rig.shards[0].clients.conns.get(slow.1).unwrap().outbox.len();
    assert!(memory < 1_100, "one frame at most: {memory}");
    assert!(rig.shards[0].clients.groups.log_bytes <= 2 * 65_536);
    // The rest of that frame, then the gap, then what is left.
    let bytes = rig.reads(slow, usize::MAX);
    let rest = bytes.iter().position(|byte| *byte == 0x81).expect("a frame begins");
    let told = read_frames(&bytes[rest..]);
    assert_eq!((&told[0]["type"], &told[0]["payload"]["reason"]), (&"gap".into(), &"SLOW".into()));
    let dropped = told[0]["payload"]["dropped"].as_u64().unwrap();
    let first = told[1]["offset"].as_u64().unwrap();
    assert_eq!(told[0]["payload"]["position"]["offset"].as_u64(), Some(first - 1));
    assert_eq!(1 + dropped + told[1..].len() as u64, 500, "counts add up");
    assert_eq!(told.last().unwrap()["offset"], 500);
}

fn pushes_of_any(told: &[Value]) -> usize {
    told.iter().filter(|told| told["type"] == "push").count()
}

#[test]
fn a_session_that_comes_back_gets_what_it_missed_of_its_groups_or_a_gap() {
    let mut rig = Rig::new(2, GroupRule { recent_ms: 4_000, ..room() });
    let client = rig.open(0);
    rig.says(client, r#"{"type":"resume","seq":1}"#);
    let resumed = rig.told(client).remove(0);
    let text = |field: &str| resumed["payload"][field].as_str().unwrap().to_owned();
    let joined = rig.joins(client, 2, "room:7");
    let epoch = joined["payload"]["position"]["epoch"].as_str().unwrap().to_owned();
    let first = rig.push_to_group("room:7");
    assert_eq!(pushes(&rig.told(client)), [(1, first)]);
    rig.shards[0].remove(client.1);
    rig.push_to_group("room:7");
    rig.push_to_group("room:7");
    let back = rig.open(0);
    let (session, secret) = (text("session"), text("secret"));
    let resume = |offset: u64, secret: &str| {
        format!(
            r#"{{"type":"resume","seq":1,"payload":{{"session":"{session}","secret":"{secret}",
            "offset":0,"groups":[
            {{"group":"room:7","position":{{"epoch":"{epoch}","offset":{offset}}}}},
            {{"group":"room:9","position":{{"epoch":"{epoch}","offset":1}}}}]}}}}"#
        )
    };
    rig.says(back, &resume(1, &secret));
    let told = rig.told(back);
    let groups = &told[0]["payload"]["groups"];
    assert_eq!((&groups[0]["outcome"], &groups[1]["outcome"]), (&"resumed".into(), &"lost".into()));
    assert_eq!(pushes(&told), [(2, first + 1), (3, first + 2)]);
    // The client lost what the kernel took: it says so, and gets it once more.
    let secret = told[0]["payload"]["secret"].as_str().unwrap().to_owned();
    rig.shards[0].remove(back.1);
    let back = rig.open(0);
    rig.says(back, &resume(2, &secret));
    let told = rig.told(back);
    assert_eq!(pushes(&told), [(3, first + 2)]);
    // What is not kept any more is a gap, for that group alone.
    let secret = told[0]["payload"]["secret"].as_str().unwrap().to_owned();
    rig.shards[0].remove(back.1);
    rig.push_to_group("room:7");
    rig.tick(5_000);
    let back = rig.open(0);
    rig.says(back, &resume(3, &secret));
    let told = rig.told(back);
    let resumed = &told[0]["payload"];
    assert_eq!(
        (&resumed["outcome"], &resumed["groups"][0]["outcome"]),
        (&"resumed".into(), &"gap".into())
    );
    assert_eq!((&resumed["groups"][0]["position"]["offset"], pushes(&told)), (&4.into(), vec![]));
}

#[test]
fn the_newest_of_each_key_is_given_to_who_joins() {
    let mut rig = Rig::new(2, GroupRule { keep: Keep::Last, ..room() });
    let first = rig.open(0);
    rig.joins(first, 1, "room:7");
    for key in ["a", "b", "a"] {
        rig.push(Addressees::Group(name("room:7")), |body| body.key = key.into());
        rig.settle();
    }
    for shard in 0..2 {
        let late = rig.open(shard);
        rig.says(late, r#"{"msg_id":9010,"seq":1,"payload":{"group":"room:7"}}"#);
        let told = rig.told(late);
        assert_eq!(pushes(&told), [(2, 2), (3, 3)], "{told:?}");
    }
}

#[test]
fn a_push_to_a_user_reaches_all_its_sessions_and_names_who_is_offline() {
    let mut rig = Rig::with(1, |_| {});
    // That of their tokens.
    rig.tenant = TenantId::of("acme");
    let [first, second] = [0, 0].map(|shard| rig.open(shard));
    for client in [first, second] {
        rig.sends(client, auth(1, &token("ann")));
        assert_eq!(rig.told(client)[0]["type"], "auth_ok");
    }
    let to = Addressees::Users(vec!["ann".into(), "bob".into()]);
    let number = rig.push(to, |_| {});
    rig.settle();
    for client in [first, second] {
        assert_eq!(pushes(&rig.told(client)), [(0, number)]);
    }
    let (counts, _) = rig.counts(number);
    assert_eq!(counts, Counts { written: 2, offline: 1, ..Counts::default() });
    let offline = rig.shards[0].effects.receipts.iter().find_map(|receipt| match &receipt.part {
        ReceiptPart::Counted { offline_users, .. } => Some(offline_users.clone()),
        _ => None,
    });
    assert_eq!(offline, Some(vec!["bob".into()]));
    let number = rig.push(Addressees::Everyone, |_| {});
    rig.settle();
    for client in [first, second] {
        assert_eq!(pushes(&rig.told(client)), [(0, number)]);
    }
    let (counts, _) = rig.counts(number);
    assert_eq!(counts.addressees(), 2);
}

#[test]
fn a_lane_that_is_full_loses_nothing() {
    let mut rig = Rig::new(2, room());
    let home = usize::from(name("room:7").home(2).0);
    let client = rig.open(1 - home);
    rig.joins(client, 1, "room:7");
    let first = rig.push(Addressees::Group(name("room:7")), |_| {});
    for _ in 0..3 {
        rig.shards[home].end_turn(rig.now);
        for (to, item) in std::mem::take(&mut rig.shards[home].effects.deliver) {
            assert_eq!(usize::from(to.0), 1 - home);
            rig.shards[home].deliver_refused(ShardId(to.0), item, rig.now);
        }
        rig.push(Addressees::Group(name("room:7")), |_| {});
    }
    assert!(pushes(&rig.told(client)).is_empty());
    rig.tick(10);
    assert_eq!(pushes(&rig.told(client)), (0..4).map(|n| (n + 1, first + n)).collect::<Vec<_>>());
}

#[test]
fn a_user_is_in_the_groups_that_its_token_names_as_long_as_it_names_them() {
    let mut rig = Rig::new(2, GroupRule { join: JoinBy::Claim, ..room() });
    rig.tenant = TenantId::of("acme");
    let home = crate::ids::home_shard(crate::routing::affinity_hash(rig.tenant, b"ann"), 2);
    let client = rig.open(usize::from(home.0));
    rig.sends(client, auth(1, &token_with("ann", &["room:7", "hall:1", "room:9"])));
    let told = rig.told(client);
    let kinds: Vec<&str> = told.iter().filter_map(|told| told["type"].as_str()).collect();
    assert_eq!(kinds, ["auth_ok", "joined", "joined"], "{told:?}");
    let name = |group: &str| GroupName::new(TenantId::of("acme"), group).expect("a name");
    let first = rig.push(Addressees::Group(name("room:7")), |_| {});
    rig.settle();
    assert_eq!(pushes(&rig.told(client)), [(1, first)]);
    rig.says(client, r#"{"msg_id":9010,"seq":2,"payload":{"group":"room:8"}}"#);
    assert_eq!(rig.told(client)[0]["reason"], "FORBIDDEN");
    rig.sends(client, auth(3, &token_with("ann", &["room:8", "room:9"])));
    let told = rig.told(client);
    let kinds: Vec<&str> = told.iter().filter_map(|told| told["type"].as_str()).collect();
    assert_eq!(kinds, ["auth_ok", "left", "joined"], "{told:?}");
    assert_eq!(
        (&told[1]["payload"]["group"], &told[1]["payload"]["reason"]),
        (&"room:7".into(), &"TOKEN".into())
    );
    rig.push(Addressees::Group(name("room:7")), |_| {});
    rig.settle();
    assert!(rig.told(client).is_empty());
}

#[test]
fn members_are_told_of_the_last_pushes_although_none_is_kept_for_their_shard() {
    let mut rig = Rig::new(2, GroupRule { keep: Keep::None, recent_ms: 1_000, ..room() });
    let home = usize::from(name("room:7").home(2).0);
    let client = rig.open(1 - home);
    rig.joins(client, 1, "room:7");
    rig.push(Addressees::Group(name("room:7")), |_| {});
    rig.shards[home].end_turn(rig.now);
    for (to, item) in std::mem::take(&mut rig.shards[home].effects.deliver) {
        rig.shards[home].deliver_refused(to, item, rig.now);
    }
    // The lane has no room for longer than the push is kept.
    rig.now = rig.now.plus_ms(2_000);
    for _ in 0..100 {
        rig.shards[home].clients.groups.tend(&Default::default(), rig.now, |_| None);
    }
    rig.tick(10);
    let told = rig.told(client);
    assert_eq!((&told[0]["type"], &told[0]["payload"]["dropped"]), (&"gap".into(), &1.into()));
}

#[test]
fn a_service_is_told_of_a_join_when_a_push_would_reach_who_joined() {
    let mut rig = Rig::new(2, room());
    let home = usize::from(name("room:7").home(2).0);
    let (shard, id) = rig.open(1 - home);
    let session = rig.shards[shard].clients.conns.get(id).expect("there").session.id;
    let whom = Whom { sessions: vec![session], users: Vec::new() };
    let (groups, info) = (vec!["room:7".into()], Default::default());
    let tenant = TenantId::DEFAULT;
    rig.shards[shard].on_submit(Submit::Join { number: 9, tenant, whom, groups, info }, rig.now);
    rig.shards[shard].end_turn(rig.now);
    assert!(rig.shards[shard].effects.receipts.is_empty(), "the home has not answered");
    for (to, item) in std::mem::take(&mut rig.shards[shard].effects.deliver) {
        rig.shards[usize::from(to.0)].on_deliver(item, rig.now);
    }
    rig.settle();
    let told = &rig.shards[shard].effects.receipts[0];
    assert!(matches!(&told.part, ReceiptPart::Joined { joined: 1, offline: 0, .. }), "{told:?}");
    assert_eq!(rig.told((shard, id))[0]["type"], "joined");
}
