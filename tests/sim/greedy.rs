//! Greedy clients that fill the window of ids and the line of tokens, beside polite ones of other
//! sessions, addresses, users and tenants (promise 6): nobody polite is refused because of them.

use std::time::Duration;

use shardgate::config::settings::{ConnectionsMax, ShardSettings, Tenants};
use shardgate::message::Encoding;
use shardgate::stats::Counter;

use crate::OnFailure;
use crate::client::Peer;
use crate::dice::Dice;
use crate::plan::{self, Faults, Plan};
use crate::world::{Event, World};

/// Ids of which a shard remembers as many at once.
const IDS_MAX: usize = 640;
/// Time for which only the greedy ones send.
const ALONE_US: u64 = 500_000;
/// Time between the bursts of the clients that show tokens: all of them come at once.
pub const STORM_US: u64 = 20_000;
/// Messages of a polite client.
const POLITE_MESSAGES: u64 = 3;
/// Seeds of a run of the test: four of each way to be greedy, some 10 s of one core in a debug
/// build.
const SEEDS: u64 = 12;
/// Address of the greedy ones.
const GREEDY: [u8; 4] = [192, 0, 2, 1];

/// The way in which some are greedy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Greed {
    /// One session after the other takes all ids that it gets.
    Sessions,
    /// So many sessions of one address take ids that each holds a few.
    ManySessions,
    /// A user takes ids on many connections, and shows a new token again and again.
    User,
}

/// Part of a client in a run with greedy ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// None: the run has no greedy ones.
    Any,
    /// Sends as fast as it may.
    Greedy,
    /// Sends a few messages.
    Polite,
}

impl Plan {
    /// A plan with greedy clients and without faults of others.
    pub fn with_greedy(seed: u64) -> Self {
        // With tokens: not every plan has them.
        let mut plan = Self::with_sign_in(seed);
        let mut d = Dice::new(seed ^ 0x6772_6564);
        let greed = d.pick(&[Greed::Sessions, Greed::ManySessions, Greed::User]);
        let auth = &mut std::sync::Arc::make_mut(&mut plan.gateway).auth;
        (auth.tenants, auth.timeout) = (Tenants::Many, Duration::from_secs(10));
        (plan.greed, plan.shards, plan.active_us) = (Some(greed), 1, 2 * ALONE_US);
        (plan.burst, plan.pause_us, plan.clock_step, plan.read_us) = (30, 2_000, None, 0);
        plan.faults =
            Faults { with_id: 100, split: plan.faults.split, answer_us: 300, ..Faults::none() };
        let mut settings = ShardSettings::default();
        settings.dedup.entries_max = IDS_MAX;
        settings.conn.connections_max = ConnectionsMax::Set(1_000);
        settings.queue.instance_percent = 100;
        plan.settings = settings;
        plan
    }
}

impl World {
    /// Connects the greedy ones, and the polite ones that come when those have what they want.
    pub fn connect_roles(&mut self, greed: Greed) {
        let greedy = match greed {
            Greed::Sessions => 2,
            Greed::ManySessions => 100,
            Greed::User => 20,
        };
        for _ in 0..greedy {
            let token_of = (greed == Greed::User).then_some(0);
            self.connect_as(Role::Greedy, GREEDY, token_of);
            let peer = self.peers.last_mut().expect("just connected");
            peer.messages_max = 2 * IDS_MAX as u64 / greedy;
        }
        for n in 1..=8 {
            let there = [198, 51, 100, n];
            match n % 4 {
                // A session of the greedy address; of all its sessions one has no more to say.
                0 if greed != Greed::ManySessions => self.connect_as(Role::Polite, GREEDY, None),
                0 | 1 => self.connect_as(Role::Polite, there, None),
                // Users of two tenants, one of them that of the greedy user.
                2 => self.connect_as(Role::Polite, GREEDY, Some(usize::from(n))),
                _ => self.connect_as(Role::Polite, there, Some(usize::from(n))),
            }
        }
    }

    fn connect_as(&mut self, role: Role, address: [u8; 4], token_of: Option<usize>) {
        let p = self.peers.len();
        let encoding = self.dice.pick(&[Encoding::Json, Encoding::Protobuf]);
        let mut peer = Peer::new(0, encoding, false, 32 << 10);
        (peer.role, peer.address) = (role, address);
        peer.messages_max = POLITE_MESSAGES;
        peer.user = token_of.unwrap_or(0);
        peer.has_token = token_of.is_some();
        self.peers.push(peer);
        self.shards[0].backlog.push_back(p);
        let after = if role == Role::Polite { ALONE_US } else { 0 };
        self.at(after, Event::Write(p));
        self.wake(0);
    }

    /// The token that a client with a role shows, if it has one.
    pub fn token_of_role(&self, p: usize) -> Option<String> {
        let peer = &self.peers[p];
        peer.has_token.then(|| plan::token(peer.user, self.now, 600))
    }
}

/// Promise 6: whatever the greedy ones hold, each polite one is let in, signs in and has its
/// answers.
#[test]
fn nobody_polite_is_refused_because_of_greedy_ones() {
    let (mut over_share, mut delayed) = (0, 0);
    for seed in 0..SEEDS {
        let _on_failure = OnFailure(seed);
        let world = crate::finish(Plan::with_greedy(seed));
        let counters = world.report(0).counters;
        over_share += u64::from(counters.get(Counter::DedupOverShare) > 0);
        delayed += counters.get(Counter::AuthDelayed);
        for (p, peer) in world.peers.iter().enumerate() {
            if peer.role != Role::Polite {
                continue;
            }
            let greed = world.plan.greed;
            assert_eq!((peer.refused, peer.close_code), (None, None), "peer {p}, {greed:?}");
            assert_eq!(peer.auth_ok, peer.has_token, "peer {p}, {greed:?}");
            assert!(peer.orders > 0, "peer {p} has sent nothing");
            let refused = world.oracle.refused.get(&p).into_iter().flatten();
            let refused: Vec<_> = refused.filter(|why| *why != "NO_ROUTE").collect();
            assert!(refused.is_empty(), "peer {p}, {greed:?}: {refused:?}");
        }
    }
    assert_eq!(over_share, SEEDS, "the greedy ones were refused in each world");
    assert!(delayed > 100, "{delayed} tokens waited");
}
