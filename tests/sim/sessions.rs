//! Sessions that outlive their connections: what they were sent and what they were answered, and
//! the oracle of promises 12, 13, 14 and 18. Their clients are the travellers of [`crate::travel`].

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message as _;
use shardgate::config::settings::{ConnectionsMax, PerUser, SessionSettings, ShardSettings};
use shardgate::engine::clients::conn::{NextBytes, Phase};
use shardgate::message::Encoding;
use shardgate::stats::Counter;
use shardgate::wire::client::Resumed;

use crate::OnFailure;
use crate::dice::Dice;
use crate::plan::{Faults, Plan};
use crate::travel::{Next, Traveller};
use crate::wire::{Answer, Message};
use crate::world::World;

/// The oracle's senders from this number on are sessions, all others connections.
pub const SESSIONS: usize = 1 << 32;
/// Seeds of a run of the test: some 5 s of one core in a debug build.
const SEEDS: u64 = 40;
/// Largest frame of an answer without a filler: that of an error with its text.
const FRAME_BYTES_MAX: u64 = 600;
/// Largest filler of an answer.
const FILLER_BYTES_MAX: u64 = 20_000;
/// Time by which a session may seem to be away for longer than it is: its end is dated by the last
/// tick, and ticks come late in some worlds.
const TICK_US: u64 = 12_000;
const LATE_TICK_US: u64 = 162_000;
/// Longest time of sessions whose end a run waits for.
const WAITED_FOR_US: u64 = 2_000_000;
/// Connections of a user or an address whose sessions cannot crowd each other out.
const FEW_LEGS: usize = 16;

/// Travellers of a plan.
#[derive(Clone, Copy, Debug)]
pub struct SessionPlan {
    pub travellers: usize,
    /// Percent of a client's actions that break its connection off.
    pub breaks: u64,
}

impl Plan {
    /// A plan with clients that resume their sessions, with small windows and times in some.
    pub fn with_sessions(seed: u64) -> Self {
        let mut plan = Self::new(seed);
        let mut d = Dice::new(seed ^ 0x7365_7373);
        plan.sessions =
            Some(SessionPlan { travellers: d.range(1, 4) as usize, breaks: d.pick(&[5, 15, 40]) });
        (plan.clients, plan.clock_step) = (d.below(3) as usize, None);
        plan.active_us = d.range(500, 1_800) * 1_000;
        plan.drain_at_us = d.chance(12).then(|| d.range(300_000, plan.active_us));
        plan.pause = d.chance(15).then(|| (d.below(plan.active_us), d.range(300_000, 3_000_000)));
        (plan.burst, plan.pause_us) = (d.pick(&[1, 3, 10]), d.pick(&[2_000, 20_000]));
        Arc::make_mut(&mut plan.gateway).auth.required = false;
        let Faults { bad, slow, repeat, .. } = &mut plan.faults;
        (*bad, *slow, *repeat) = (0, 0, d.pick(&[0, 20]));
        let defaults = ShardSettings::default();
        let s = &mut plan.settings;
        s.conn = defaults.conn;
        s.conn.connections_max = ConnectionsMax::Set(1_000);
        s.conn.unanswered_max = d.pick(&[1, 3, 32]);
        s.limits = defaults.limits;
        s.limits.per_user = d.pick(&[PerUser::Many, PerUser::Many, PerUser::Newest]);
        let kept_total = d.pick(&[64 << 20, 64 << 20, 2_000]);
        s.session = SessionSettings {
            ttl_ms: d.pick(&[100, 400, 1_500, 60_000]),
            grace_ms: 50,
            kept_items_max: d.pick(&[1, 4, 256, 256]),
            kept_bytes_max: d.pick(&[200, 64 << 10, 64 << 10]).min(kept_total),
            away_max: d.pick(&[2, 4, 100_000, 100_000]),
            kept_total_bytes_max: kept_total,
        };
        plan
    }
}

/// A message that wants an answer.
#[derive(Debug)]
pub struct Entry {
    pub message: Message,
    /// The unit of a message for a service.
    pub unit: Option<u64>,
    pub order: u64,
    /// The connection on which it was written last, and the place of its last byte there.
    pub on: (usize, u64),
    /// Whether it was sent before the session was made resumable.
    pub is_early: bool,
    /// Offset of its answer; 0 = it came before the session was resumable.
    pub answer: Option<u64>,
    /// Whether its answer may be among the missing frames of a gap.
    pub is_excused: bool,
}

/// A session of a traveller.
#[derive(Debug)]
pub struct Session {
    pub id: String,
    pub secret: String,
    /// The `resume` message that made it resumable.
    pub opened_by: u64,
    pub next_seq: u64,
    pub orders: u64,
    pub sent: BTreeMap<u64, Entry>,
    /// Everything that was answered, on whatever connection.
    pub answers: BTreeMap<u64, Answer>,
    /// Messages with an id, and their units.
    pub with_id: Vec<(Message, u64)>,
    /// The offset up to which its client has everything.
    pub offset: u64,
    /// Encoding of its last connection, and whether one of another may have been its since then.
    pub encoding: Encoding,
    pub is_mixed: bool,
    /// The last offset at the last gap, and its reason: a client that has read nothing of the rest
    /// is told again.
    pub gap_to: u64,
    pub gap_reason: String,
    /// Whether its client has said that it leaves.
    pub has_left: bool,
    /// Whether two connections show one secret, so that either may come last.
    pub is_raced: bool,
    /// Whether it is lost, or its client gave it up.
    pub is_over: bool,
    /// Time up to which it certainly was on a connection.
    pub seated_until: u64,
}

impl Session {
    pub fn new(encoding: Encoding, next_seq: u64, now: u64) -> Self {
        Self {
            id: String::new(),
            secret: String::new(),
            opened_by: next_seq - 1,
            next_seq,
            orders: 0,
            sent: BTreeMap::new(),
            answers: BTreeMap::new(),
            with_id: Vec::new(),
            offset: 0,
            encoding,
            is_mixed: false,
            gap_to: 0,
            gap_reason: String::new(),
            has_left: false,
            is_raced: false,
            is_over: false,
            seated_until: now,
        }
    }

    /// Takes an answer with its offset, which may have come on another connection before. True: it
    /// is new.
    pub fn takes(&mut self, answer: &Answer) -> bool {
        if let Some(known) = self.answers.get(&answer.offset) {
            let same = |a: &Answer| (a.seq, a.payload.clone(), a.reason.clone());
            assert_eq!(same(known), same(answer), "promise 12: two frames with one offset");
            return false;
        }
        self.answers.insert(answer.offset, answer.clone());
        self.settles(answer);
        true
    }

    /// Takes the one answer of a message.
    pub fn settles(&mut self, answer: &Answer) {
        let entry = self.sent.get_mut(&answer.seq);
        let entry = entry.unwrap_or_else(|| panic!("promise 1: an answer to nothing: {answer:?}"));
        assert_eq!(entry.answer, None, "promise 13: a second answer: {answer:?} to {entry:?}");
        entry.answer = Some(answer.offset);
        assert_eq!(answer.msg_id, entry.message.msg_id, "{answer:?} to {entry:?}");
        assert_eq!(answer.kind, "", "{answer:?} to {entry:?}");
        if entry.unit.is_none() {
            // The gateway's echo.
            let right = answer.reason.is_empty() && answer.payload == entry.message.payload;
            assert!(right, "promise 12: {answer:?} to {entry:?}");
        }
    }
}

/// The payload of `resumed`.
pub fn read_resumed(encoding: Encoding, payload: &[u8]) -> Resumed {
    match encoding {
        Encoding::Protobuf => Resumed::decode(payload).expect("the gateway sends protobuf"),
        Encoding::Json => {
            let value: serde_json::Value = serde_json::from_slice(payload).expect("JSON");
            let text = |name: &str| value[name].as_str().expect("a text").to_owned();
            let number = |name: &str| value[name].as_u64().expect("a number");
            Resumed {
                session: text("session"),
                secret: text("secret"),
                outcome: text("outcome"),
                reason: text("reason"),
                received_seq: number("received_seq"),
                offset: number("offset"),
                ttl_ms: number("ttl_ms") as u32,
                ..Resumed::default()
            }
        }
    }
}

/// Travellers and their sessions, and what a run has covered.
#[derive(Debug, Default)]
pub struct Travel {
    pub travellers: Vec<Traveller>,
    pub sessions: Vec<Session>,
    /// Whether travellers come back only to get what they lack.
    pub is_settling: bool,
    /// Outcomes with their reasons, and other things that were seen.
    pub seen: BTreeMap<String, u64>,
}

impl Travel {
    pub fn saw(&mut self, what: &str, count: u64) {
        *self.seen.entry(what.to_owned()).or_default() += count;
    }
}

impl World {
    fn counted(&self, counter: Counter) -> u64 {
        (0..self.shards.len()).map(|s| self.report(s).counters.get(counter)).sum()
    }

    /// Remembers at the end of a turn what a shard has decoded of each connection. Of one that is
    /// held, or that ends, some may be left.
    pub fn note_decoded(&mut self, s: usize) {
        let World { shards, peers, .. } = self;
        let engine = &shards[s].engine;
        for conn in engine.view().conns {
            let Some(socket) = shards[s].sockets.get(&conn.id) else { continue };
            let peer = &mut peers[socket.peer];
            if conn.phase == Phase::Open
                && engine.next_bytes(conn.id) == NextBytes::Socket
                && let Some(leg) = &mut peer.leg
            {
                leg.decoded = peer.read;
            }
        }
    }

    /// Promise 18: checks the caps of a shard.
    pub fn check_session_caps(&self, s: usize) {
        let gauges = self.report(s).gauges;
        let caps = &self.plan.settings.session;
        let (away, kept) = (gauges.sessions_away as usize, gauges.session_kept_bytes as usize);
        let most = match self.plan.verifier {
            // All are of one address, which may have a half.
            None => caps.away_max.div_ceil(2),
            Some(_) => caps.away_max,
        };
        assert!(away <= most, "promise 18: {away} sessions away, of {most}");
        let most = caps.kept_total_bytes_max;
        assert!(kept <= most, "promise 18: {kept} bytes kept, of {most}");
    }

    /// Checks that connection `p` goes on with the session `k` as it should: whose it is, what was
    /// read of it, and that nothing is said to be missing that is there. Gives the next offset.
    pub fn check_goes_on(&mut self, p: usize, k: usize, told: &Resumed) -> Next {
        let leg = self.peers[p].leg.as_ref().expect("a traveller's");
        let claim = leg.claim.as_ref().expect("promise 12: nobody asked for a session");
        let (claimed, last) = (claim.offset, told.offset);
        let session = &self.travel.sessions[k];
        assert_eq!(told.session, session.id, "promise 12: another session goes on");
        assert_ne!(told.secret, claim.secret, "promise 12: the secret changes");
        let newest = session.answers.keys().next_back().copied().unwrap_or(0);
        assert!(last >= newest.max(claimed), "promise 12: {last} is not the last offset");
        self.check_received(k, told.received_seq);
        let session = &self.travel.sessions[k];
        let (missing, caps) = (last - claimed, &self.plan.settings.session);
        let (items, bytes) = (caps.kept_items_max as u64, caps.kept_bytes_max as u64);
        let changes = session.is_mixed || session.encoding != self.peers[p].encoding;
        let filler = if self.plan.faults.large > 0 { FILLER_BYTES_MAX } else { 0 };
        let fits = missing <= items && missing * (FRAME_BYTES_MAX + filler) <= bytes;
        match (&*told.outcome, &*told.reason) {
            ("resumed", "") => {
                assert!(missing <= items, "promise 18: {missing} frames, of {items}");
                Next::Is(claimed + 1)
            }
            ("gap", reason) => {
                let is_told_again = claimed < session.gap_to && reason == session.gap_reason;
                let is_bounded = caps.kept_total_bytes_max < 1 << 20;
                let is_true = match reason {
                    "OVERFLOW" => !fits || is_bounded,
                    "ENCODING" => changes,
                    _ => false,
                };
                let is_true = missing > 0 && (is_true || is_told_again);
                assert!(is_true, "promise 12: a gap of {missing} frames that is none: {told:?}");
                Next::Within(claimed + 2, last + 1)
            }
            other => panic!("promise 12: {other:?}"),
        }
    }

    /// Promise 13: of the messages up to `received` each was read, and of those above it none.
    fn check_received(&mut self, k: usize, received: u64) {
        let session = &self.travel.sessions[k];
        let is_known = received == session.opened_by || session.sent.contains_key(&received);
        assert!(is_known, "promise 13: received_seq {received} was never sent");
        for (seq, entry) in &session.sent {
            let (on, end) = entry.on;
            let (peer, leg) = (&self.peers[on], self.peers[on].leg.as_ref().expect("a leg"));
            let is_read = *seq <= received;
            assert!(!is_read || end <= peer.read, "promise 13: {seq} of {received} was not read");
            assert!(is_read || end > leg.decoded, "promise 13: {seq} was read, not {received}");
            assert!(is_read || entry.answer.is_none(), "promise 13: {seq} was answered");
        }
        let again = session.sent.range(received + 1..).count() as u64;
        self.travel.saw("sent again", again);
    }

    /// Promise 12: checks that a session was lost for the reason that its client is told.
    pub fn check_lost(&self, k: usize, reason: &str) {
        let session = &self.travel.sessions[k];
        let away_us = self.now - session.seated_until;
        let is_true = match reason {
            "EXPIRED" => {
                let late = if self.plan.faults.stall > 0 { LATE_TICK_US } else { TICK_US };
                let is_over = away_us + late >= self.plan.settings.session.ttl_ms * 1_000;
                is_over || self.counted(Counter::SessionsCrowdedOut) > 0
            }
            "ENDED" => session.has_left || self.draining,
            "UNKNOWN" => session.is_raced || self.draining,
            _ => false,
        };
        let Session { id, offset, has_left, is_raced, .. } = session;
        assert!(
            is_true,
            "promise 12: {id} is lost at {offset} for {reason}, away for {away_us} us, \
             left {has_left}, raced {is_raced}"
        );
    }

    /// Checks what must hold of sessions when nothing is under way any more, and everybody came
    /// back who could.
    fn check_sessions(&self) {
        for traveller in &self.travel.travellers {
            let (p, k) = traveller.place().expect("everybody came back");
            let session = &self.travel.sessions[k];
            assert!(self.peers[p].close_code.is_none() && !session.is_over);
            for (seq, entry) in &session.sent {
                let is_fine = entry.answer.is_some() || entry.is_excused;
                assert!(is_fine, "promise 13: no answer to {seq}: {entry:?} of {session:?}");
            }
            let count = session.sent.values().filter(|e| e.answer.is_some_and(|at| at > 0)).count();
            assert_eq!(count, session.answers.len(), "promise 12: offsets without a message");
            for leg in traveller.legs.iter().filter(|leg| **leg != p) {
                let peer = &self.peers[*leg];
                let is_left = peer.leg.as_ref().is_some_and(|leg| leg.is_replaced) && !peer.gone;
                let fair = matches!(peer.close_code, Some(4000 | 4502));
                assert!(!is_left || fair, "promise 14: peer {leg} has {:?}", peer.close_code);
            }
        }
        let all_few = self.travel.travellers.iter().all(|t| t.legs.len() <= FEW_LEGS);
        let caps = &self.plan.settings.session;
        if all_few && caps.away_max > 1_000 && caps.kept_total_bytes_max > 1 << 20 {
            let crowded = self.counted(Counter::SessionsCrowdedOut);
            assert_eq!(crowded, 0, "promise 18: there was room for all");
        }
    }

    /// Lets travellers get what they lack and leave, and checks that nothing stays of them.
    fn end_sessions(&mut self) {
        if self.draining {
            return;
        }
        self.settle_travellers();
        self.check_end();
        self.check_sessions();
        for p in 0..self.peers.len() {
            let peer = &mut self.peers[p];
            (peer.reset, peer.gone) = (true, true);
            self.readable(p);
        }
        let ttl_us = self.plan.settings.session.ttl_ms * 1_000;
        if ttl_us > WAITED_FOR_US {
            return;
        }
        // The last connections end with their close timeout.
        self.run(self.now + self.plan.settings.conn.close_timeout_ms * 1_000 + 1_100_000);
        self.run(self.now + ttl_us + 2 * LATE_TICK_US);
        for s in 0..self.shards.len() {
            let gauges = self.report(s).gauges;
            let left = [gauges.sessions_resumable, gauges.sessions_away, gauges.session_kept_bytes];
            assert_eq!(left, [0; 3], "promise 18: sessions of shard {s} stay for ever");
        }
    }
}

/// Promises 12, 13, 14 and 18, where connections break at every byte, and clients come back at
/// once, late, too late, elsewhere, twice at a time, and beside others that know no secret.
#[test]
fn sessions_outlive_their_connections_in_every_world() {
    let seeds = crate::number("SHARDGATE_SIM_SEEDS").unwrap_or(SEEDS);
    let first = crate::number("SHARDGATE_SIM_FIRST").unwrap_or(0);
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for seed in first..first + seeds {
        let _on_failure = OnFailure(seed);
        let mut world = crate::finish(Plan::with_sessions(seed));
        world.end_sessions();
        for (what, count) in world.travel.seen {
            *seen.entry(what).or_default() += count;
        }
    }
    println!("{seeds} seeds: {seen:?}");
    for (what, least) in [
        ("new", seeds),
        ("resumed", 3 * seeds),
        ("replayed", 2 * seeds),
        ("sent again", seeds),
        ("gap OVERFLOW", seeds / 4),
        ("gap ENCODING", seeds / 8),
        ("lost EXPIRED", seeds / 4),
        ("lost ENDED", seeds / 8),
        ("taken over", seeds),
        ("raced", seeds / 8),
        ("refused", seeds / 2),
    ] {
        let count = seen.get(what).copied().unwrap_or(0);
        assert!(count >= least, "{what}: {count}, too rare");
    }
}
