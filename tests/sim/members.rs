//! Clients that are members of groups (see [`crate::pushes`]): they join and leave, publish, read
//! slowly or not at all, break off at any byte, and come back to their sessions.

use std::collections::BTreeMap;

use prost::Message as _;
use shardgate::config::settings::Tenants;
use shardgate::message::Encoding;
use shardgate::routing::PayloadKind;
use shardgate::wire::client::{self, Auth, GroupPosition, Resume, generated};

use crate::client::Peer;
use crate::oracle::Sender;
use crate::plan;
use crate::push_oracle::{Sent, Target};
use crate::tenants::tenant_of;
use crate::wire::{self, Message};
use crate::world::{Event, World};

/// Longest time for which a client that stalls reads nothing.
pub const STALL_US: u64 = 1_500_000;
/// The oracle's senders from this number on are members.
const MEMBERS: usize = 1 << 33;
/// Connections of a member at most.
const LEGS_MAX: usize = 30;
/// Messages of a member at most.
const MESSAGES_MAX: u64 = 150;
const SETTLE_ROUNDS: u32 = 20;
const SETTLE_STEP_US: u64 = 300_000;
const SETTLE_STEPS_MAX: u32 = 60;

/// Ids of the messages about groups.
pub const JOIN: u32 = 9_010;
pub const LEAVE: u32 = 9_011;
pub const LIST: u32 = 9_012;
pub const PUBLISH: u32 = 9_015;

/// Groups, by the beginnings that the plan's rules have; the last has no rule.
pub const GROUPS: [&str; 9] =
    ["room:1", "room:2", "last:1", "last:2", "hist:1", "none:1", "small:1", "hall:1", "lost:1"];
/// The ones that clients join by themselves.
const OPEN_GROUPS: usize = 7;
/// A group that services alone fill.
pub const HALL: &str = "hall:1";

/// A message of a member that is not answered yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked {
    Join(String),
    Leave(String),
    List,
    /// The push with this number.
    Publish(usize),
    Other,
}

/// A group that a member is in, as far as it knows.
#[derive(Clone, Debug)]
pub struct Room {
    pub epoch: String,
    /// Offset that comes next, unless somebody else's are left out.
    pub next: u64,
    /// The last of the newest of each key that came after the join.
    pub newest: Option<u64>,
    /// Its stint in the oracle.
    pub stint: usize,
}

/// A client that goes over several connections.
#[derive(Debug)]
pub struct Member {
    pub user: Option<usize>,
    pub tenant: &'static str,
    pub encoding: Encoding,
    pub is_resumable: bool,
    /// Whether all connections of it read at once.
    pub is_quick: bool,
    /// The connection that it is on, and whether that has its session.
    pub current: Option<usize>,
    pub is_going: bool,
    pub session: String,
    pub secret: String,
    pub offset: u64,
    /// Last offset that was replayed on this connection.
    pub replays_to: u64,
    /// Whether offsets may be left out until the next one.
    pub may_skip: bool,
    pub resume_seq: u64,
    pub next_seq: u64,
    pub orders: u64,
    pub asked: BTreeMap<u64, Asked>,
    pub rooms: BTreeMap<String, Room>,
    /// Groups that services have put it into, or taken it out of, in this session's life.
    pub by_service: BTreeMap<String, (bool, bool)>,
    /// The place in the oracle of its session.
    pub life: usize,
    pub legs: usize,
    last_leg: Option<usize>,
    /// Whether that one had its session when it was left.
    was_going: bool,
}

impl World {
    pub fn add_members(&mut self) {
        let Some(pushes) = self.plan.pushes.clone() else { return };
        for c in 0..pushes.members {
            let has_user = self.plan.verifier.is_some() && self.dice.chance(70);
            // Some users have several sessions.
            let user = has_user.then(|| 200 + self.dice.below(pushes.members as u64) as usize);
            let is_many = self.plan.gateway.auth.tenants == Tenants::Many;
            let tenant = user.filter(|_| is_many).map_or("", tenant_of);
            let member = Member {
                user,
                tenant,
                encoding: self.dice.pick(&[Encoding::Json, Encoding::Protobuf]),
                is_resumable: self.dice.chance(70),
                is_quick: !self.dice.chance(pushes.slow),
                current: None,
                is_going: false,
                session: String::new(),
                secret: String::new(),
                offset: 0,
                replays_to: 0,
                may_skip: false,
                resume_seq: 0,
                next_seq: 1,
                orders: 0,
                asked: BTreeMap::new(),
                rooms: BTreeMap::new(),
                by_service: BTreeMap::new(),
                life: 0,
                legs: 0,
                last_leg: None,
                was_going: false,
            };
            self.fan.members.push(member);
            let after = self.dice.below(20_000);
            self.at(after, Event::Member(c));
        }
        self.at(5_000, Event::Push);
    }

    /// A member comes back, or for the first time.
    pub fn member_comes(&mut self, c: usize) {
        let member = &self.fan.members[c];
        let goes_on = self.active && member.legs < LEGS_MAX || self.fan.is_settling;
        if member.current.is_some() || !goes_on || self.draining {
            return;
        }
        // Two connections with one secret at a time are another test's.
        if let Some(p) = member.last_leg
            && !self.peers[p].gateway_ended
            && !member.was_going
        {
            return self.at(2_000, Event::Member(c));
        }
        self.member_boards(c);
    }

    fn member_boards(&mut self, c: usize) {
        let s = self.dice.below(self.plan.shards as u64) as usize;
        let Member { encoding, user, is_resumable, is_quick, .. } = self.fan.members[c];
        let has_token = user.is_some() && self.dice.chance(50);
        let token = user.map(|user| plan::token(user, self.now, 600));
        let shown = token.as_deref().filter(|_| has_token);
        let upgrade = wire::upgrade(encoding, shown, &mut self.dice);
        let p = self.peers.len();
        let down_max = if is_quick { 1 << 20 } else { self.dice.pick(&[300, 2_000, 20_000]) };
        let mut peer = Peer::new(s, encoding, !is_quick, down_max);
        peer.stalls = !is_quick && self.dice.chance(50);
        peer.member = Some(c);
        peer.write(&upgrade);
        self.peers.push(peer);
        self.shards[s].backlog.push_back(p);
        let member = &mut self.fan.members[c];
        (member.current, member.last_leg, member.is_going) = (Some(p), Some(p), false);
        member.legs += 1;
        if !is_resumable {
            self.fan.begins_life(c);
            self.fan.members[c].next_seq = 1;
        }
        if let (Some(token), false) = (token, has_token) {
            let seq = self.member_seq(c);
            let payload = client::payload(encoding, &Auth { token });
            self.put(p, &Message { kind: "auth", seq, payload, ..Message::default() });
        }
        if is_resumable {
            self.member_resumes(c, p);
        }
        let after = self.dice.below(500);
        self.at(after, Event::Write(p));
        self.wake(s);
    }

    fn member_resumes(&mut self, c: usize, p: usize) {
        let seq = self.member_seq(c);
        let member = &mut self.fan.members[c];
        member.resume_seq = seq;
        let position = |(group, room): (&String, &Room)| GroupPosition {
            group: group.clone(),
            position: Some(generated::Position {
                epoch: room.epoch.clone(),
                offset: room.next - 1,
            }),
        };
        let resume = Resume {
            session: member.session.clone(),
            secret: member.secret.clone(),
            offset: member.offset,
            groups: member.rooms.iter().map(position).collect(),
            ..Resume::default()
        };
        let payload = match member.session.is_empty() {
            true => Vec::new(),
            false => client::payload(member.encoding, &resume),
        };
        self.put(p, &Message { kind: "resume", seq, payload, ..Message::default() });
    }

    fn member_seq(&mut self, c: usize) -> u64 {
        let member = &mut self.fan.members[c];
        member.next_seq += 1;
        member.next_seq - 1
    }

    /// A member acts on its connection, which has nothing more to write.
    pub fn member_acts(&mut self, p: usize) {
        let c = self.peers[p].member.expect("a member's");
        let pushes = self.plan.pushes.clone().expect("there are members");
        if self.fan.members[c].current != Some(p) {
            return;
        }
        if self.dice.chance(pushes.breaks) && self.fan.members[c].legs < LEGS_MAX {
            return self.member_breaks(p, c);
        }
        if !self.fan.members[c].is_going {
            return;
        }
        for _ in 0..self.dice.range(1, self.plan.burst) {
            if self.fan.members[c].orders < MESSAGES_MAX {
                self.fan.members[c].orders += 1;
                self.member_says(p, c);
            }
        }
    }

    fn member_says(&mut self, p: usize, c: usize) {
        let group = match self.dice.chance(95) {
            true => GROUPS[self.dice.below(OPEN_GROUPS as u64) as usize],
            false => self.dice.pick(&GROUPS),
        };
        match self.dice.below(20) {
            0..=6 => self.member_joins(p, c, group),
            7 | 8 => {
                let payload = match self.peers[p].encoding {
                    Encoding::Json => format!("{{\"group\":\"{group}\"}}").into_bytes(),
                    Encoding::Protobuf => {
                        let leave = generated::Leave { group: group.into(), ..Default::default() };
                        leave.encode_to_vec()
                    }
                };
                self.member_asks(p, c, LEAVE, payload, "", Asked::Leave(group.into()));
            }
            9..=13 => self.member_publishes(p, c, group),
            14 => self.member_asks(p, c, LIST, Vec::new(), "", Asked::List),
            15 => {
                let ack = self.fan.members[c].offset;
                self.put(p, &Message { kind: "heartbeat", ack, ..Message::default() });
            }
            _ => self.member_calls(p, c),
        }
    }

    fn member_asks(
        &mut self,
        p: usize,
        c: usize,
        msg_id: u32,
        payload: Vec<u8>,
        id: &str,
        asked: Asked,
    ) {
        let seq = self.member_seq(c);
        let id = id.to_owned();
        self.put(p, &Message { msg_id, seq, payload, id, ..Message::default() });
        self.fan.members[c].asked.insert(seq, asked);
    }

    fn member_joins(&mut self, p: usize, c: usize, group: &str) {
        let is_in = self.fan.members[c].rooms.contains_key(group);
        let known = self.fan.some_position(self.fan.members[c].tenant, group, &mut self.dice);
        let since = known.filter(|_| !is_in && self.dice.chance(30));
        if since.is_some() {
            self.fan.saw("join since", 1);
        }
        let payload = match self.peers[p].encoding {
            Encoding::Json => {
                let since = since.map_or(String::new(), |(epoch, offset)| {
                    format!(",\"since\":{{\"epoch\":\"{epoch}\",\"offset\":{offset}}}")
                });
                format!("{{\"group\":\"{group}\"{since}}}").into_bytes()
            }
            Encoding::Protobuf => {
                let since = since.map(|(epoch, offset)| generated::Position { epoch, offset });
                let join = generated::Join { group: group.into(), since, presence: false };
                join.encode_to_vec()
            }
        };
        self.member_asks(p, c, JOIN, payload, "", Asked::Join(group.into()));
    }

    fn member_publishes(&mut self, p: usize, c: usize, group: &str) {
        let key = if self.dice.chance(40) { self.dice.pick(&["k0", "k1"]) } else { "" };
        let to_me = self.dice.chance(60);
        let Member { tenant, life, session, user, .. } = &self.fan.members[c];
        let (tenant, session) = (*tenant, session.clone());
        // A user's ids are the same on all its sessions.
        let caller = user.map_or(format!("life {life}"), |user| format!("user {user}"));
        let id = if self.dice.chance(30) { format!("p{}", self.dice.below(3)) } else { "".into() };
        let n = self.fan.sent.len();
        let payload = self.push_payload(n);
        self.fan.sent.push(Sent {
            tenant,
            target: Target::Group(group.into()),
            key: key.into(),
            except_sessions: if to_me { Vec::new() } else { vec![session] },
            id_of: (!id.is_empty()).then(|| (caller, id.clone())),
            ..Sent::new(payload.clone(), self.now)
        });
        let payload = match self.peers[p].encoding {
            Encoding::Json => format!(
                "{{\"group\":\"{group}\",\"msg_id\":7002,\"payload\":{payload},\"key\":\"{key}\",\
                 \"to_me\":{to_me}}}"
            )
            .into_bytes(),
            Encoding::Protobuf => generated::Publish {
                group: group.into(),
                msg_id: 7_002,
                payload: payload.into_bytes(),
                key: key.into(),
                to_me,
                is_json: true,
            }
            .encode_to_vec(),
        };
        self.member_asks(p, c, PUBLISH, payload, &id, Asked::Publish(n));
    }

    /// The payload of the push numbered `n`.
    pub fn push_payload(&mut self, n: usize) -> String {
        let most = if self.dice.chance(10) { 600 } else { 20 };
        format!("{{\"n\":{n},\"p\":\"{}\"}}", "y".repeat(self.dice.below(most) as usize))
    }

    /// Sends a message to a service, which may push and join in its answer.
    fn member_calls(&mut self, p: usize, c: usize) {
        let msg_id = self.dice.pick(&[1_000, 2_000, 3_000]) + self.dice.below(4) as u32 * 100;
        let route = self.plan.route(msg_id).cloned();
        let is_bytes = route.as_ref().is_some_and(|route| route.payload == PayloadKind::Bytes);
        let order = self.fan.members[c].orders;
        let sender = Sender { peer: MEMBERS + c, signed: false, shared: true, order };
        let mut message = Message { msg_id, ..Message::default() };
        let unit = self.oracle.sends(&sender, &message, route.as_ref());
        self.fan.units.insert(unit, c);
        message.payload = format!("{{\"u\":{unit}}}").into_bytes();
        message.is_bytes = is_bytes && self.peers[p].encoding == Encoding::Json;
        message.seq = self.member_seq(c);
        self.put(p, &message);
        self.fan.members[c].asked.insert(message.seq, Asked::Other);
    }

    fn member_breaks(&mut self, p: usize, c: usize) {
        let is_going = self.fan.members[c].is_going;
        let how = self.dice.below(10);
        let is_silent = how == 9 && is_going && self.fan.members[c].is_resumable;
        if !is_silent {
            // A part of what has come is read.
            let most = self.dice.below(self.peers[p].down.len() as u64 + 1) as usize;
            self.takes_in(p, most);
        }
        if self.fan.members[c].current != Some(p) {
            return;
        }
        if is_going && self.dice.chance(50) {
            self.member_says(p, c);
        }
        self.member_lets_go(p, c);
        match how {
            _ if is_silent => {}
            0..=4 => {
                let peer = &mut self.peers[p];
                peer.reset = true;
                peer.outgoing.clear();
                peer.up.clear();
                peer.down.clear();
            }
            _ => {
                let mut out = Vec::new();
                if how == 8 {
                    let code = 4900_u16.to_be_bytes();
                    wire::frame(&mut out, wire::CLOSE, true, &code, &mut self.dice);
                }
                let peer = &mut self.peers[p];
                peer.outgoing.extend(out);
                let most = self.dice.below(peer.outgoing.len() as u64 + 1) as usize;
                peer.outgoing.truncate(most);
                let bytes: Vec<u8> = peer.outgoing.drain(..).collect();
                peer.up.extend(bytes);
                peer.ends = true;
                peer.down.clear();
            }
        }
        self.peers[p].gone = true;
        if !is_silent {
            self.readable(p);
        }
        let after = self.dice.pick(&[0, 3_000, 100_000, 800_000]);
        let after = self.dice.below(after + 1);
        self.at(after, Event::Member(c));
    }

    /// A member counts on its connection no more.
    fn member_lets_go(&mut self, p: usize, c: usize) {
        assert_eq!(self.fan.members[c].current, Some(p));
        let member = &mut self.fan.members[c];
        (member.current, member.was_going) = (None, member.is_going);
        self.fan.breaks(c, self.now);
    }

    /// The gateway ended a connection.
    pub fn member_is_cut_off(&mut self, p: usize) {
        let c = self.peers[p].member.expect("a member's");
        if self.fan.members[c].current == Some(p) {
            self.member_lets_go(p, c);
            let after = self.dice.range(1_000, 50_000);
            self.at(after, Event::Member(c));
        }
    }

    /// Lets members come back, until each is on a connection and has read everything.
    pub fn settle_members(&mut self) {
        self.fan.is_settling = true;
        for _ in 0..SETTLE_ROUNDS {
            for c in 0..self.fan.members.len() {
                self.member_comes(c);
            }
            for _ in 0..SETTLE_STEPS_MAX {
                let until = self.now + SETTLE_STEP_US;
                self.run(until);
                if self.is_quiet() {
                    break;
                }
            }
            if self.fan.members.iter().all(|m| m.current.is_some() && m.is_going) {
                return;
            }
        }
        panic!("somebody cannot come back: {:?}", self.fan.members);
    }
}
