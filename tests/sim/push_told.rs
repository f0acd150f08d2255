//! What members are told of groups and pushes, held against what is known of them.

use serde_json::Value;
use shardgate::message::Encoding;
use shardgate::push::{Receipt, ReceiptPart};
use shardgate::wire::client::{self, GroupOutcome, generated};

use crate::members::{Asked, JOIN};
use crate::push_oracle::{READ_US, Target};
use crate::wire::{Answer, Incoming};
use crate::world::World;

fn outcome(value: &Value) -> GroupOutcome {
    GroupOutcome {
        group: value["group"].as_str().unwrap_or_default().to_owned(),
        outcome: value["outcome"].as_str().unwrap_or_default().to_owned(),
        position: value.get("position").filter(|at| at.is_object()).map(position),
        count: 0,
    }
}

fn position(value: &Value) -> generated::Position {
    let epoch = value["epoch"].as_str().unwrap_or_default().to_owned();
    generated::Position { epoch, offset: value["offset"].as_u64().unwrap_or_default() }
}

fn json(payload: &[u8]) -> Value {
    serde_json::from_slice(payload).expect("the gateway sends JSON")
}

/// Reads a payload in either encoding.
fn read<M: prost::Message + Default>(
    encoding: Encoding,
    payload: &[u8],
    from: impl FnOnce(&Value) -> M,
) -> M {
    match encoding {
        Encoding::Json => from(&json(payload)),
        Encoding::Protobuf => M::decode(payload).expect("the gateway sends protobuf"),
    }
}

fn read_resumed(value: &Value) -> client::Resumed {
    let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let groups = value["groups"].as_array().cloned().unwrap_or_default();
    client::Resumed {
        session: text("session"),
        secret: text("secret"),
        outcome: text("outcome"),
        reason: text("reason"),
        received_seq: value["received_seq"].as_u64().unwrap_or_default(),
        offset: value["offset"].as_u64().unwrap_or_default(),
        groups: groups.iter().map(outcome).collect(),
        ..Default::default()
    }
}

fn read_gap(value: &Value) -> client::Gap {
    client::Gap {
        group: value["group"].as_str().unwrap_or_default().to_owned(),
        dropped: value["dropped"].as_u64().unwrap_or_default(),
        position: value.get("position").filter(|at| at.is_object()).map(position),
        reason: value["reason"].as_str().unwrap_or_default().to_owned(),
    }
}

impl World {
    /// Takes something that the gateway sent to a member.
    pub fn member_receives(&mut self, p: usize, incoming: &Incoming) {
        let c = self.peers[p].member.expect("a member's");
        if self.fan.members[c].current != Some(p) {
            return;
        }
        match incoming {
            Incoming::Message(answer) => self.member_is_told(p, c, answer),
            Incoming::Close(_) => {
                self.peers[p].receive(incoming);
                self.member_is_cut_off(p);
            }
            Incoming::Http(101) | Incoming::Ping(_) | Incoming::Pong => {
                self.peers[p].receive(incoming);
            }
            Incoming::Http(_) => {
                self.peers[p].receive(incoming);
                self.member_is_cut_off(p);
            }
        }
    }

    fn member_is_told(&mut self, p: usize, c: usize, answer: &Answer) {
        let encoding = self.peers[p].encoding;
        let is_numbered = answer.offset > 0 && answer.group.is_empty();
        let is_replayed = is_numbered && answer.offset <= self.fan.members[c].replays_to;
        if is_numbered {
            let member = &mut self.fan.members[c];
            let next = member.offset + 1;
            let fits = answer.offset == next || member.may_skip && answer.offset > next;
            assert!(fits, "promise 12: {answer:?}, not {next}");
            (member.offset, member.may_skip) = (answer.offset, false);
        }
        match &*answer.kind {
            "welcome" => {
                let is_ready = self.fan.members[c].user.is_none();
                let session = read(encoding, &answer.payload, |value| client::generated::Welcome {
                    session: value["session"].as_str().unwrap_or_default().to_owned(),
                    ..Default::default()
                })
                .session;
                // One that was signed in by its upgrade has its own session, too.
                let has_token = !is_ready && self.fan.members[c].next_seq == 1;
                if !self.fan.members[c].is_resumable && (is_ready || has_token) {
                    self.member_goes(c, session);
                }
            }
            "auth_ok" => {
                let session = read(encoding, &answer.payload, |value| client::AuthOk {
                    session: value["session"].as_str().unwrap_or_default().to_owned(),
                    ..Default::default()
                })
                .session;
                if !self.fan.members[c].is_resumable {
                    self.member_goes(c, session);
                }
            }
            "resumed" => self.member_is_resumed(p, c, answer),
            "push" => self.member_gets(p, c, answer, is_replayed),
            "joined" => {
                let told = read(encoding, &answer.payload, outcome);
                let by_service = self.fan.members[c].by_service.get(&told.group);
                assert!(by_service.is_some_and(|by| by.0), "promise 22: {told:?} by nobody");
                self.fan.saw("joined by a service", 1);
                self.member_enters(c, &told);
            }
            "left" => {
                let told = read(encoding, &answer.payload, |value| generated::Leave {
                    group: value["group"].as_str().unwrap_or_default().to_owned(),
                    reason: String::new(),
                });
                let by_service = self.fan.members[c].by_service.get(&told.group);
                assert!(by_service.is_some_and(|by| by.1), "promise 22: left {told:?}");
                assert!(self.fan.quits(c, &told.group), "promise 19: left {told:?}, not in it");
                self.fan.saw("left by a service", 1);
            }
            "gap" => self.member_misses(p, c, answer),
            "draining" => self.peers[p].draining = true,
            "error" if self.fan.members[c].asked.contains_key(&answer.seq) => {
                self.member_is_answered(p, c, answer, is_replayed);
            }
            "error" => self.member_is_turned_away(p, answer),
            "pong" => {}
            "" => self.member_is_answered(p, c, answer, is_replayed),
            other => panic!("{other}: {answer:?}"),
        }
    }

    fn member_is_turned_away(&mut self, p: usize, answer: &Answer) {
        let reason = &*answer.reason;
        assert!(matches!(reason, "UNAVAILABLE" | "RATE_LIMITED"), "{answer:?}");
        self.member_is_cut_off(p);
        let peer = &mut self.peers[p];
        (peer.reset, peer.gone) = (true, true);
        self.readable(p);
    }

    fn member_goes(&mut self, c: usize, session: String) {
        let member = &mut self.fan.members[c];
        (member.is_going, member.session) = (true, session.clone());
        let life = &mut self.fan.lives[member.life];
        (life.session, life.begun) = (session, self.now);
        self.fan.saw("sessions", 1);
    }

    fn is_last(&self, group: &str) -> bool {
        group.starts_with("last:")
    }

    fn member_enters(&mut self, c: usize, told: &GroupOutcome) {
        let is_last = self.is_last(&told.group);
        let now = self.now;
        self.fan.enters(c, &told.group, told, now, is_last);
    }

    fn member_is_resumed(&mut self, p: usize, c: usize, answer: &Answer) {
        let told = read(self.peers[p].encoding, &answer.payload, read_resumed);
        assert_eq!(answer.seq, self.fan.members[c].resume_seq);
        self.fan.saw(format!("{} {}", told.outcome, told.reason).trim(), 1);
        let member = &mut self.fan.members[c];
        member.secret = told.secret.clone();
        member.replays_to = told.offset;
        match &*told.outcome {
            "new" | "lost" => {
                if told.outcome == "lost" {
                    self.fan.lives[member.life].ended = Some(self.now);
                }
                self.fan.begins_life(c);
                let member = &mut self.fan.members[c];
                (member.next_seq, member.offset) = (answer.seq + 1, told.offset);
                return self.member_goes(c, told.session.clone());
            }
            "resumed" | "gap" => {}
            other => panic!("{other}"),
        }
        assert_eq!(told.session, member.session, "promise 12: another session");
        member.is_going = true;
        let is_gap = told.outcome == "gap";
        member.may_skip = is_gap;
        let unread: Vec<u64> = member.asked.range(told.received_seq + 1..).map(|a| *a.0).collect();
        for seq in unread {
            if let Some(Asked::Publish(n)) = member.asked.remove(&seq) {
                self.fan.sent[n].is_refused = true;
            }
        }
        self.fan.lives[member.life].has_gap |= is_gap;
        let shown: Vec<String> = member.rooms.keys().cloned().collect();
        for group in &shown {
            let outcome = told.groups.iter().find(|outcome| outcome.group == *group);
            let outcome = outcome.unwrap_or_else(|| panic!("promise 19: {group} is not told of"));
            self.member_goes_on(c, group, outcome);
        }
        for outcome in told.groups.iter().filter(|outcome| !shown.contains(&outcome.group)) {
            assert_eq!(outcome.outcome, "gap", "promise 19: {outcome:?} of none that was shown");
            let member = &self.fan.members[c];
            let asked = Asked::Join(outcome.group.clone());
            let by_service = member.by_service.get(&outcome.group).is_some_and(|by| by.0);
            let may = by_service || is_gap || member.asked.values().any(|it| *it == asked);
            assert!(may, "promise 22: in {outcome:?} by nobody");
            let now = self.now;
            self.fan.enters(c, &outcome.group, outcome, now, false);
        }
    }

    fn member_goes_on(&mut self, c: usize, group: &str, outcome: &GroupOutcome) {
        let now = self.now;
        let room = self.fan.members[c].rooms[group].clone();
        match &*outcome.outcome {
            "resumed" => {
                let at = outcome.position.clone().expect("a place");
                assert_eq!((at.epoch, at.offset + 1), (room.epoch, room.next), "promise 16");
                self.fan.saw("group resumed", 1);
                let member = &self.fan.members[c];
                let left = Asked::Leave(group.to_owned());
                let may_have_left = member.asked.values().any(|asked| *asked == left)
                    || member.by_service.get(group).is_some_and(|by| by.1);
                if let Some(room) = self.fan.members[c].rooms.get_mut(group) {
                    room.newest = None;
                }
                // It may have left and joined again meanwhile: then it was counted since then.
                if may_have_left {
                    self.fan.stints[room.stint].from = now;
                }
                // What it was given as it joined may be lost.
                self.fan.stints[room.stint].newest = None;
            }
            "gap" => {
                let at = outcome.position.clone().expect("a place");
                let pushes = self.plan.pushes.clone().expect("there are members");
                let may = !pushes.is_roomy || group.starts_with("none:") || at.epoch != room.epoch;
                assert!(may, "promise 16: {outcome:?} is no gap after {room:?}");
                assert!(at.epoch != room.epoch || at.offset + 1 >= room.next, "{at:?} {room:?}");
                self.fan.saw("group gap", 1);
                self.fan.enters(c, group, outcome, now, false);
            }
            "lost" => {
                let member = &self.fan.members[c];
                let left = Asked::Leave(group.to_owned());
                let may = member.asked.values().any(|asked| *asked == left)
                    || member.by_service.get(group).is_some_and(|by| by.1)
                    || self.fan.lives[member.life].has_gap;
                assert!(may, "promise 19: {group} is lost, which nobody left");
                self.fan.quits(c, group);
            }
            other => panic!("{other}"),
        }
    }

    fn member_is_answered(&mut self, p: usize, c: usize, answer: &Answer, is_replayed: bool) {
        let encoding = self.peers[p].encoding;
        let asked = self.fan.members[c].asked.remove(&answer.seq);
        let asked = asked.unwrap_or_else(|| panic!("promise 1: {answer:?} to nothing"));
        let is_ok = answer.reason.is_empty() && answer.status == 0;
        match asked {
            Asked::Join(group) if is_ok => {
                assert_eq!(answer.msg_id, JOIN);
                let told = read(encoding, &answer.payload, outcome);
                assert_eq!(told.group, group);
                let rule = self.plan.gateway.push.rule(&group);
                let is_open =
                    rule.is_some_and(|r| r.join != shardgate::config::settings::JoinBy::None);
                let is_in = self.fan.members[c].by_service.contains_key(&group);
                assert!(is_open || is_in, "promise 22: joined {group}, which nobody may");
                self.fan.saw(&format!("join {}", told.outcome), 1);
                // What was replayed was so before the connection, which says where all stands.
                if !is_replayed {
                    self.member_enters(c, &told);
                }
            }
            Asked::Join(_) => self.fan.saw(&format!("join {}", answer.reason), 1),
            Asked::Leave(group) if is_ok => {
                self.fan.saw("leave", 1);
                if !is_replayed {
                    self.fan.quits(c, &group);
                }
            }
            Asked::Leave(_) => {}
            Asked::List if is_ok && !is_replayed => {
                let told = read(encoding, &answer.payload, |value| client::GroupList {
                    groups: value["groups"].as_array().into_iter().flatten().map(outcome).collect(),
                });
                let told: Vec<&str> = told.groups.iter().map(|it| &*it.group).collect();
                for group in self.fan.members[c].rooms.keys() {
                    assert!(told.contains(&&**group), "promise 19: {group} is not in {told:?}");
                }
                for group in told {
                    let member = &self.fan.members[c];
                    let is_asked = member.rooms.contains_key(group)
                        || member.asked.values().any(|a| *a == Asked::Join(group.to_owned()));
                    assert!(is_asked, "promise 19: {group} is listed, which it never joined");
                }
            }
            Asked::List => {}
            Asked::Publish(n) => self.is_published(c, n, encoding, answer),
            Asked::Other => {}
        }
    }

    fn is_published(&mut self, c: usize, n: usize, encoding: Encoding, answer: &Answer) {
        if !answer.reason.is_empty() {
            self.fan.saw(&format!("publish {}", answer.reason), 1);
            self.fan.sent[n].is_refused = answer.reason != "OUTCOME_UNKNOWN";
            return;
        }
        self.fan.saw("published", 1);
        let at = read(encoding, &answer.payload, position);
        let sent = &self.fan.sent[n];
        let Target::Group(group) = &sent.target else { panic!("a group") };
        let key = (self.fan.members[c].tenant, group.clone(), at.epoch);
        let first = self.fan.numbered.get(&key).and_then(|known| known.get(&at.offset)).copied();
        match first {
            // The place of the one that had its id before.
            Some(first) if first != n => {
                assert!(sent.id_of.is_some(), "promise 16: {sent:?} has the place of {first}");
                assert_eq!(sent.id_of, self.fan.sent[first].id_of, "promise 16");
                self.fan.sent[n].is_duplicate = true;
            }
            // Which is not known yet: it may be the one of an unanswered message.
            None if sent.id_of.is_some() => {}
            Some(_) | None => self.fan.is_numbered(&key, at.offset, n),
        }
    }

    fn member_gets(&mut self, p: usize, c: usize, answer: &Answer, is_replayed: bool) {
        let value = json(&answer.payload);
        let n = value["n"].as_u64().unwrap_or_else(|| panic!("{answer:?}")) as usize;
        let now = self.now;
        let member = &self.fan.members[c];
        let (tenant, life) = (member.tenant, member.life);
        let is_quick = member.is_quick && !self.peers[p].slow;
        let text = String::from_utf8_lossy(&answer.payload).into_owned();
        let sent = &mut self.fan.sent[n];
        let life_of = self.fan.lives.get(life);
        assert_eq!(text, sent.payload, "promise 16: another push");
        assert!(!sent.is_forbidden, "promise 22: {sent:?} reaches {life_of:?}");
        assert!(!sent.is_refused, "promise 15: {sent:?} was refused, and reaches {c}");
        assert!(!sent.is_duplicate, "promise 16: {sent:?} is a duplicate");
        if !member.is_going {
            // A connection's own session, until it is signed in or resumed, has no name yet.
            let may = sent.tenant_is(tenant) || sent.tenant.is_empty();
            assert!(may && answer.group.is_empty(), "promise 22: {sent:?} reaches {life_of:?}");
            return;
        }
        let life_of = life_of.expect("a session that is known");
        assert!(sent.tenant_is(tenant), "promise 22: {sent:?} reaches {life_of:?}");
        assert!(!sent.excepts_life(life_of), "{sent:?} reaches {life_of:?}");
        let is_late = now > sent.expires.saturating_add(READ_US);
        // The time of a service's begins when its answer comes.
        let is_of_control = !sent.told.shards.is_empty();
        let is_late = is_late && is_quick && !is_replayed && is_of_control;
        assert!(!is_late, "at {now} {sent:?} reaches {life_of:?}");
        sent.got.insert(life);
        let (sent, life_of) = (&self.fan.sent[n], &self.fan.lives[life]);
        match sent.target.clone() {
            Target::Group(group) => {
                assert_eq!(answer.group, group, "{sent:?}");
                return self.member_reads(c, n, &group, answer.offset);
            }
            Target::Sessions(all) => {
                assert!(all.contains(&life_of.session), "{sent:?} reaches {life_of:?}");
            }
            Target::Users(all) => {
                let user = life_of.user.map(|user| format!("user-{user}"));
                assert!(user.is_some_and(|user| all.contains(&user)), "{sent:?} {life_of:?}");
            }
            Target::Tenant | Target::Everyone => {}
        }
        assert_eq!(answer.group, "");
        self.fan.saw("direct", 1);
        self.fan.has_id(n);
        let is_new = self.fan.lives[life].direct.insert(n);
        assert!(is_new, "promise 15: {:?} twice", self.fan.sent[n]);
    }

    fn member_reads(&mut self, c: usize, n: usize, group: &str, offset: u64) {
        let member = &mut self.fan.members[c];
        let now = self.now;
        let Some(room) = member.rooms.get_mut(group) else {
            panic!("promise 19: {c} gets {n} at {offset} of {group}, which it is not in");
        };
        let stint = &mut self.fan.stints[room.stint];
        stint.until = now;
        if offset == 0 {
            stint.transient.push(n);
            assert!(self.fan.sent[n].is_transient, "no offset: {:?}", self.fan.sent[n]);
            return;
        }
        assert!(!self.fan.sent[n].is_transient, "an offset: {:?}", self.fan.sent[n]);
        match (&mut room.newest, &mut stint.newest) {
            (Some(last), Some((up_to, given))) if offset <= *up_to => {
                assert!(offset > *last, "promise 17: {offset} after {last}");
                *last = offset;
                given.insert(offset);
                assert!(!self.fan.sent[n].key.is_empty(), "{:?}", self.fan.sent[n]);
            }
            _ => {
                let next = room.next;
                assert!(offset >= next, "promise 16: {c} gets {offset} of {group} after {next}");
                room.next = offset + 1;
                room.newest = None;
                stint.got.insert(offset, n);
            }
        }
        let key = stint.key.clone();
        self.fan.saw("delivered", 1);
        self.fan.is_numbered(&key, offset, n);
    }

    fn member_misses(&mut self, p: usize, c: usize, answer: &Answer) {
        let gap = read(self.peers[p].encoding, &answer.payload, read_gap);
        let pushes = self.plan.pushes.clone().expect("there are members");
        if gap.group.is_empty() {
            let life = self.fan.members[c].life;
            self.fan.lives[life].dropped += gap.dropped;
            return self.fan.saw("direct gap", 1);
        }
        self.fan.saw("slow gap", 1);
        let may = !pushes.is_roomy;
        assert!(may, "promise 18: {gap:?}, though there is room for all");
        let member = &mut self.fan.members[c];
        let room = member.rooms.get_mut(&gap.group);
        let room = room.unwrap_or_else(|| panic!("promise 19: {gap:?} of none of its own"));
        let at = gap.position.clone().expect("a place");
        assert!(gap.dropped > 0, "{gap:?}");
        assert_eq!(at.epoch, room.epoch, "{gap:?}");
        assert!(at.offset + 1 >= room.next, "promise 16: {gap:?} after {room:?}");
        self.fan.stints[room.stint].gaps.push((room.next, at.offset));
        (room.next, room.newest) = (at.offset + 1, None);
    }

    /// Takes what a shard tells control of a push.
    pub fn takes_receipt(&mut self, receipt: Receipt) {
        let n = receipt.number as usize;
        if n >= self.fan.sent.len() {
            return;
        }
        match receipt.part {
            ReceiptPart::Numbered { group, position, is_duplicate, shards } => {
                let sent = &mut self.fan.sent[n];
                sent.told.numbered += 1;
                sent.told.awaited = shards;
                sent.is_duplicate = is_duplicate;
                let key = (sent.tenant, group.name.to_string(), position.epoch_text());
                if is_duplicate {
                    let known = self.fan.numbered.get(&key);
                    let first = known.and_then(|known| known.get(&position.offset));
                    let is_one = first
                        .is_some_and(|first| self.fan.sent[*first].id_of == self.fan.sent[n].id_of);
                    let is_transient = self.fan.sent[n].is_transient;
                    assert!(is_one || is_transient, "promise 16: {:?}", self.fan.sent[n]);
                    self.fan.saw("duplicate", 1);
                } else if !sent.is_transient {
                    self.fan.is_numbered(&key, position.offset, n);
                }
            }
            ReceiptPart::Refused { reject, .. } => {
                let sent = &mut self.fan.sent[n];
                sent.told.refused += 1;
                sent.is_refused = true;
                let word = format!("push refused: {reject:?}");
                self.fan.saw(&word, 1);
            }
            ReceiptPart::Counted { counts, is_duplicate, .. } => {
                let told = &mut self.fan.sent[n].told;
                told.duplicates += u32::from(is_duplicate);
                let again = told.counted.insert(receipt.shard.0, counts);
                assert!(again.is_none(), "promise 15: two counts of {:?}", self.fan.sent[n]);
            }
            ReceiptPart::Joined { .. } | ReceiptPart::Done { .. } => {}
        }
    }
}
