//! Travellers: clients that go over many connections with one session (see [`crate::sessions`]).
//! They break connections off at any byte, and come back at once, late, or twice at a time; others
//! come with what they know of a session, but not as its client.

use shardgate::message::Encoding;
use shardgate::routing::PayloadKind;
use shardgate::wire::client::{self, Auth, Resume};

use crate::client::Peer;
use crate::oracle::Sender;
use crate::plan;
use crate::sessions::{Entry, SESSIONS, Session};
use crate::wire::{self, Message};
use crate::world::{Event, World};

/// Connections of a traveller at most: then it stays where it is.
const LEGS_MAX: usize = 40;
/// Messages of a session at most.
const MESSAGES_MAX: u64 = 200;
/// The first users are those of clients that do not travel.
const FIRST_USER: usize = 100;
/// Id of the gateway's echo.
const ECHO: u32 = 9_000;
/// Rounds in which travellers come back at the end: a session may be lost, or a place be refused.
const SETTLE_ROUNDS: u32 = 20;
const SETTLE_STEP_US: u64 = 500_000;
/// Steps of a round at most: each may wait for a timeout.
const SETTLE_STEPS_MAX: u32 = 400;

/// A client that goes over many connections.
#[derive(Debug)]
pub struct Traveller {
    user: Option<usize>,
    encoding: Encoding,
    /// The connection that it is on.
    current: Option<usize>,
    /// The session that it has.
    pub session: Option<usize>,
    pub legs: Vec<usize>,
}

impl Traveller {
    /// The connection and the session that it is on.
    pub fn place(&self) -> Option<(usize, usize)> {
        self.current.zip(self.session)
    }
}

/// What a connection shows of a session.
#[derive(Clone, Debug)]
pub struct Claim {
    pub session: String,
    pub secret: String,
    pub offset: u64,
}

/// A wrong claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wrong {
    Secret,
    Id,
    Offset,
    Boot,
    User,
}

impl Wrong {
    /// All of them; the last one where there are users.
    const ALL: [Self; 5] = [Self::Secret, Self::Id, Self::Offset, Self::Boot, Self::User];
}

/// How far a connection of a traveller has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// The upgrade is written.
    Upgrade,
    /// `resume` is written.
    Resume,
    /// `resume` is answered.
    Going,
}

/// Offset of the next numbered answer on a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    Is(u64),
    /// The first one behind a gap, from and up to.
    Within(u64, u64),
}

/// A connection of a traveller.
#[derive(Debug)]
pub struct Leg {
    pub traveller: usize,
    pub wrong: Option<Wrong>,
    pub stage: Stage,
    /// What it shows; `None`: it makes its own session resumable.
    pub claim: Option<Claim>,
    has_token: bool,
    pub resume_seq: u64,
    /// The session that it serves, once that is known; before it is resumable, its own.
    pub session: Option<usize>,
    pub next: Next,
    /// Whether its client counts on it no more.
    pub is_ghost: bool,
    /// Whether its client has let it be, and goes on with the session on another one.
    pub is_replaced: bool,
    /// The last offset that was given when it was resumed.
    pub replays_to: u64,
    /// The last offset that it may carry.
    pub limit: u64,
    /// Place up to which the engine has certainly decoded what its client wrote.
    pub decoded: u64,
}

/// The way in which a client leaves a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Break {
    Reset,
    /// The end of the client's bytes, with the last message cut.
    Fin,
    /// A Close frame; 0: without a code.
    Close(u16),
    /// None: the connection stays open.
    Silent,
}

impl World {
    pub fn add_travellers(&mut self) {
        let Some(sessions) = self.plan.sessions else { return };
        for t in 0..sessions.travellers {
            let signs_in = self.plan.verifier.is_some() && self.dice.chance(60);
            let encoding = self.dice.pick(&[Encoding::Json, Encoding::Protobuf]);
            let user = signs_in.then_some(FIRST_USER + t);
            let legs = Vec::new();
            let it = Traveller { user, encoding, current: None, session: None, legs };
            self.travel.travellers.push(it);
            let after = self.dice.below(20_000);
            self.at(after, Event::Travel(t));
        }
    }

    pub fn leg(&self, p: usize) -> &Leg {
        self.peers[p].leg.as_ref().expect("a traveller's")
    }

    pub fn leg_mut(&mut self, p: usize) -> &mut Leg {
        self.peers[p].leg.as_mut().expect("a traveller's")
    }

    /// Whether the engine may still read that a connection shows the secret of its session.
    fn is_pending(&self, t: usize) -> bool {
        let traveller = &self.travel.travellers[t];
        let Some(session) = traveller.session.map(|k| &self.travel.sessions[k]) else {
            return false;
        };
        traveller.legs.iter().any(|p| {
            let leg = self.leg(*p);
            let shows = leg.claim.as_ref().is_some_and(|claim| claim.secret == session.secret);
            shows
                && leg.wrong.is_none()
                && leg.stage != Stage::Going
                && !self.peers[*p].gateway_ended
        })
    }

    /// A traveller comes back.
    pub fn travels(&mut self, t: usize) {
        let traveller = &self.travel.travellers[t];
        let goes_on = self.active && traveller.legs.len() < LEGS_MAX || self.travel.is_settling;
        if traveller.current.is_some() || !goes_on || self.draining {
            return;
        }
        if self.is_pending(t) {
            if self.travel.is_settling || !self.dice.chance(1) {
                return self.at(3_000, Event::Travel(t));
            }
            self.race(t);
        }
        let twice = !self.travel.is_settling && self.dice.chance(3);
        self.board(t, None);
        if twice && self.travel.travellers[t].session.is_some() {
            let first = self.travel.travellers[t].current.expect("just boarded");
            if self.leg(first).stage == Stage::Upgrade {
                self.introduce(first);
            }
            self.leg_mut(first).is_ghost = true;
            self.race(t);
            self.board(t, None);
        }
    }

    fn race(&mut self, t: usize) {
        if let Some(k) = self.travel.travellers[t].session {
            self.travel.sessions[k].is_raced = true;
            self.travel.saw("raced", 1);
        }
    }

    /// Opens a connection; `wrong`: one that is not the session's client's.
    fn board(&mut self, t: usize, wrong: Option<Wrong>) {
        let s = self.dice.below(self.plan.shards as u64) as usize;
        let traveller = &self.travel.travellers[t];
        let (own, user, k) = (traveller.encoding, traveller.user, traveller.session);
        let encoding = match self.dice.chance(12) {
            true if own == Encoding::Json => Encoding::Protobuf,
            true => Encoding::Json,
            false => own,
        };
        let shown = match (wrong, user) {
            (Some(Wrong::User), None) => Some(FIRST_USER + 50),
            (Some(Wrong::User), Some(_)) => None,
            _ => user,
        };
        let claim = k.map(|k| {
            let session = &mut self.travel.sessions[k];
            session.is_mixed |= wrong.is_none() && session.encoding != encoding;
            let Session { id, secret, offset, .. } = session;
            Claim { session: id.clone(), secret: secret.clone(), offset: *offset }
        });
        let has_token = shown.is_some() && self.dice.chance(50);
        let token = shown.map(|user| plan::token(user, self.now, 600));
        let upgrade =
            wire::upgrade(encoding, token.as_deref().filter(|_| has_token), &mut self.dice);
        let p = self.peers.len();
        let mut peer = Peer::new(s, encoding, false, 32 << 10);
        (peer.user, peer.signed) = (shown.unwrap_or(0), shown.is_some());
        peer.leg = Some(Leg {
            traveller: t,
            wrong,
            stage: Stage::Upgrade,
            claim: claim.map(|claim| wrong.map_or(claim.clone(), |wrong| spoil(claim, wrong))),
            has_token,
            resume_seq: 0,
            session: None,
            next: Next::Is(1),
            is_ghost: wrong.is_some(),
            is_replaced: false,
            replays_to: 0,
            limit: u64::MAX,
            decoded: 0,
        });
        peer.write(&upgrade);
        self.peers.push(peer);
        let traveller = &mut self.travel.travellers[t];
        traveller.legs.push(p);
        if wrong.is_none() {
            traveller.current = Some(p);
        }
        self.shards[s].backlog.push_back(p);
        if wrong.is_some() || self.travel.is_settling || self.dice.chance(60) {
            self.introduce(p);
        }
        let after = self.dice.below(500);
        self.at(after, Event::Write(p));
        self.wake(s);
    }

    /// Writes who the client is and what it resumes.
    fn introduce(&mut self, p: usize) {
        let (encoding, signed, user) = {
            let peer = &self.peers[p];
            (peer.encoding, peer.signed, peer.user)
        };
        let mut seq = 0;
        if signed && !self.leg(p).has_token {
            seq = 1;
            let payload =
                client::payload(encoding, &Auth { token: plan::token(user, self.now, 600) });
            self.put(p, &Message { kind: "auth", seq, payload, ..Message::default() });
        }
        let claim = self.leg(p).claim.clone();
        if claim.is_none() {
            let k = self.travel.sessions.len();
            self.travel.sessions.push(Session::new(encoding, seq + 1, self.now));
            self.leg_mut(p).session = Some(k);
            if self.dice.chance(30) {
                self.say(p);
            }
            seq = self.travel.sessions[k].next_seq - 1;
            self.travel.sessions[k].opened_by = seq + 1;
            self.travel.sessions[k].next_seq += 1;
        }
        let wrong_boot = self.leg(p).wrong == Some(Wrong::Boot);
        let boot = if wrong_boot { "0000000000000001".to_owned() } else { String::new() };
        let resume = claim.map(|Claim { session, secret, offset }| {
            client::payload(
                encoding,
                &Resume { session, secret, offset, boot, ..Default::default() },
            )
        });
        seq += 1;
        let payload = resume.unwrap_or_default();
        self.put(p, &Message { kind: "resume", seq, payload, ..Message::default() });
        let leg = self.leg_mut(p);
        (leg.resume_seq, leg.stage) = (seq, Stage::Resume);
        if leg.claim.is_none() && self.dice.chance(50) {
            self.say(p);
        }
    }

    /// Writes a message; gives the place of its last byte.
    pub fn put(&mut self, p: usize, message: &Message) -> u64 {
        let encoding = self.peers[p].encoding;
        let mut out = Vec::new();
        let text = wire::encode(encoding, message);
        wire::message(&mut out, crate::habits::opcode(encoding), &text, &mut self.dice);
        self.peers[p].write(&out);
        self.peers[p].written
    }

    /// Writes a new message of the session that is on `p`.
    fn say(&mut self, p: usize) {
        let Some(k) = self.leg(p).session else { return };
        let faults = self.plan.faults.clone();
        let (is_early, leg) = (self.leg(p).stage == Stage::Upgrade, self.leg(p));
        let is_known = leg.stage == Stage::Going;
        let Session { next_seq, orders: order, offset, .. } = self.travel.sessions[k];
        if order >= MESSAGES_MAX {
            return;
        }
        let ack = match self.dice.below(4) {
            0 if is_known => offset,
            1 if is_known && offset > 0 => self.dice.below(offset + 1),
            _ => 0,
        };
        self.travel.sessions[k].orders += 1;
        let known = self.travel.sessions[k].with_id.len() as u64;
        let (mut message, unit) = match self.dice.below(10) {
            0 | 1 => (self.echo(), None),
            2 => {
                self.put(p, &Message { kind: "heartbeat", ack, ..Message::default() });
                return;
            }
            _ if known > 0 && self.dice.chance(faults.repeat) => {
                let at = self.dice.below(known) as usize;
                let (message, unit) = self.travel.sessions[k].with_id[at].clone();
                self.oracle.repeats(unit);
                (message, Some(unit))
            }
            _ => self.fresh(p, k, order),
        };
        message.ack = ack;
        let is_one_way =
            unit.is_some() && message.id.is_empty() && self.dice.chance(faults.one_way);
        if is_one_way {
            self.put(p, &message);
            return;
        }
        message.seq = next_seq + self.dice.below(2);
        self.travel.sessions[k].next_seq = message.seq + 1;
        let end = self.put(p, &message);
        let (on, seq) = ((p, end), message.seq);
        let entry =
            Entry { message, unit, order, on, is_early, answer: None, is_excused: is_early };
        self.travel.sessions[k].sent.insert(seq, entry);
    }

    fn echo(&mut self) -> Message {
        let payload = format!("{{\"e\":{}}}", self.dice.below(1_000_000)).into_bytes();
        Message { msg_id: ECHO, payload, ..Message::default() }
    }

    /// A new message for a service, and its unit.
    fn fresh(&mut self, p: usize, k: usize, order: u64) -> (Message, Option<u64>) {
        let faults = self.plan.faults.clone();
        let first = self.dice.pick(&[1_000, 2_000, 3_000, 4_000]);
        let msg_id = first + self.dice.below(4) as u32 * 100 + self.dice.below(3) as u32;
        let mut message = Message { msg_id, ..Message::default() };
        message.is_bytes = self.is_bytes(p, msg_id);
        if self.dice.chance(faults.with_id) {
            message.id = format!("s{k}-{order}");
        }
        if self.dice.chance(60) {
            message.key = format!("room{}", self.dice.below(3));
        }
        if self.dice.chance(faults.short_deadline) {
            message.deadline_ms = self.dice.range(1, 40) as u32;
        }
        let signed = self.peers[p].signed;
        let sender = Sender { peer: SESSIONS + k, signed, shared: false, order };
        let route = self.plan.route(msg_id).cloned();
        let unit = self.oracle.sends(&sender, &message, route.as_ref());
        let most = if self.dice.chance(faults.large) { 6_000 } else { 40 };
        let filler = "x".repeat(self.dice.below(most) as usize);
        message.payload = format!("{{\"p\":\"{filler}\",\"u\":{unit}}}").into_bytes();
        if !message.id.is_empty() {
            self.travel.sessions[k].with_id.push((message.clone(), unit));
        }
        (message, Some(unit))
    }

    pub fn is_bytes(&self, p: usize, msg_id: u32) -> bool {
        let route = self.plan.route(msg_id);
        let is_bytes = route.is_some_and(|route| route.payload == PayloadKind::Bytes);
        is_bytes && self.peers[p].encoding == Encoding::Json
    }

    /// A traveller acts on a connection that has nothing more to write.
    pub fn travels_on(&mut self, p: usize) {
        let sessions = self.plan.sessions.expect("somebody travels");
        if self.leg(p).is_ghost {
            return;
        }
        if self.dice.chance(sessions.breaks)
            && self.travel.travellers[self.leg(p).traveller].legs.len() < LEGS_MAX
        {
            return self.breaks_off(p);
        }
        match self.leg(p).stage {
            Stage::Upgrade if self.peers[p].open => self.introduce(p),
            Stage::Upgrade | Stage::Resume => {}
            Stage::Going => {
                if self.dice.chance(sessions.breaks / 3) {
                    let users = usize::from(self.plan.verifier.is_some());
                    let wrong = self.dice.pick(&Wrong::ALL[..4 + users]);
                    self.board(self.leg(p).traveller, Some(wrong));
                }
                for _ in 0..self.dice.range(1, self.plan.burst) {
                    self.say(p);
                }
            }
        }
    }

    fn breaks_off(&mut self, p: usize) {
        let knows = self.leg(p).session.is_some() && self.leg(p).stage == Stage::Going;
        let how = match self.dice.below(14) {
            0..=3 => Break::Reset,
            4..=6 => Break::Fin,
            7 => Break::Close(1000),
            8 if self.dice.chance(30) => Break::Close(0),
            8 | 9 => Break::Close(1001),
            10 => Break::Close(4900),
            _ if knows => Break::Silent,
            _ => Break::Reset,
        };
        if how != Break::Silent {
            // A part of what has come is read.
            let most = self.dice.below(self.peers[p].down.len() as u64 + 1) as usize;
            self.takes_in(p, most);
        }
        if self.leg(p).is_ghost {
            return;
        }
        // Or nothing has been written yet for a while.
        if how != Break::Silent && self.dice.chance(50) && self.leg(p).stage == Stage::Going {
            self.say(p);
        }
        let t = self.leg(p).traveller;
        self.leaves(p);
        match how {
            Break::Reset => {
                let peer = &mut self.peers[p];
                (peer.reset, peer.gone) = (true, true);
                peer.outgoing.clear();
                peer.up.clear();
                peer.down.clear();
                self.readable(p);
            }
            Break::Fin => self.ends_within(p),
            Break::Close(code) => {
                let mut out = Vec::new();
                let bytes = code.to_be_bytes();
                let payload = if code == 0 { &[][..] } else { &bytes };
                wire::frame(&mut out, wire::CLOSE, true, payload, &mut self.dice);
                self.peers[p].write(&out);
                if let (0 | 1000, Some(k)) = (code, self.travel.travellers[t].session) {
                    self.travel.sessions[k].has_left = true;
                }
                match self.dice.chance(30) {
                    true => self.ends_within(p),
                    false => self.peers[p].sent_close = true,
                }
            }
            Break::Silent => {}
        }
        let ttl_us = self.plan.settings.session.ttl_ms * 1_000;
        let after = match self.dice.below(8) {
            0..=2 => 0,
            3 | 4 => self.dice.below(5_000),
            5 => self.dice.below(300_000),
            6 => self.dice.below(ttl_us.min(2_000_000)),
            _ => (ttl_us + self.dice.below(100_000)).min(2_000_000),
        };
        self.at(after, Event::Travel(t));
    }

    /// Ends the bytes of a client somewhere within what it was about to write.
    fn ends_within(&mut self, p: usize) {
        let peer = &mut self.peers[p];
        let most = self.dice.below(peer.outgoing.len() as u64 + 1) as usize;
        peer.outgoing.truncate(most);
        let bytes: Vec<u8> = peer.outgoing.drain(..).collect();
        peer.up.extend(bytes);
        peer.down.clear();
        (peer.ends, peer.gone) = (true, true);
        self.readable(p);
    }

    /// A traveller counts on its connection no more.
    fn leaves(&mut self, p: usize) {
        let leg = self.leg_mut(p);
        leg.is_ghost = true;
        let (t, stage, own) = (leg.traveller, leg.stage, leg.claim.is_none());
        self.travel.travellers[t].current = None;
        if stage == Stage::Going {
            let k = self.leg(p).session.expect("it is known");
            self.travel.sessions[k].seated_until = self.now;
        } else if let (true, Some(k)) = (own, self.leg(p).session) {
            self.travel.sessions[k].is_over = true;
        }
    }

    /// The gateway ended a connection.
    pub fn is_cut_off(&mut self, p: usize) {
        if !self.leg(p).is_ghost {
            self.leaves(p);
            let after = self.dice.range(1_000, 50_000);
            let t = self.leg(p).traveller;
            self.at(after, Event::Travel(t));
        }
    }

    /// Lets travellers come back, until each is on a connection and has what it lacked.
    pub fn settle_travellers(&mut self) {
        self.travel.is_settling = true;
        for _ in 0..SETTLE_ROUNDS {
            let is_there =
                |t: &Traveller| t.current.is_some_and(|p| self.leg(p).stage == Stage::Going);
            if self.travel.travellers.iter().all(is_there) {
                return;
            }
            for t in 0..self.travel.travellers.len() {
                if let Some(p) = self.travel.travellers[t].current
                    && self.leg(p).stage == Stage::Upgrade
                {
                    self.introduce(p);
                    self.at(1, Event::Write(p));
                }
                self.travels(t);
            }
            for _ in 0..SETTLE_STEPS_MAX {
                let until = self.now + SETTLE_STEP_US;
                self.run(until);
                if self.is_quiet() {
                    break;
                }
            }
        }
        panic!("promise 12: somebody cannot come back: {:?}", self.travel.travellers);
    }
}

/// A claim that is not that of the session's client.
fn spoil(claim: Claim, wrong: Wrong) -> Claim {
    let other = |text: &str| {
        let last = if text.starts_with('0') { "1" } else { "0" };
        format!("{last}{}", &text[1..])
    };
    match wrong {
        Wrong::Secret => Claim { secret: other(&claim.secret), ..claim },
        // The first two characters name the shard.
        Wrong::Id => {
            let (shard, rest) = claim.session.split_at(2);
            Claim { session: format!("{shard}{}", other(rest)), ..claim }
        }
        Wrong::Offset => Claim { offset: claim.offset + 1_000, ..claim },
        Wrong::User | Wrong::Boot => claim,
    }
}
