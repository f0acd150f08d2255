//! Shares of owners in a backlog (promise 3).

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::run::RUN;
use super::*;
use crate::engine::dispatcher::queue::{EVEN_TICKS, InstanceQueue, Taker};
use crate::engine::dispatcher::request::QueuePosition;
use crate::engine::dispatcher::slots::Line;
use crate::engine::dispatcher::slow_owners::ANY_COMPANY;
use crate::engine::owner::{Address, Party};
use crate::message::{Micros, Priority};

/// Delay of each class, in microseconds: the defaults.
const DELAYS_US: [u64; 4] = [0, 5_000, 50_000, 500_000];
/// Cost of each message, in microseconds of a slot, where the test says nothing else.
const COST_US: u64 = 100;

fn user(tenant: u64, user: u64) -> Holder {
    Holder { tenant: TenantId(tenant), party: Party::User(user), session: 0 }
}

fn session(tenant: u64, address: u8, session: u64) -> Holder {
    let party = Party::Address(Address::V4([127, 0, 0, address]));
    Holder { tenant: TenantId(tenant), party, session }
}

/// A shared queue, and the messages taken out of it.
struct Rig {
    queue: InstanceQueue,
    requests: Requests,
    ordering: Ordering,
    arrivals: u64,
    now: Micros,
    /// Weights of tenants, other than 1.
    weights: BTreeMap<TenantId, u32>,
}

impl Rig {
    fn new() -> Self {
        Self {
            queue: InstanceQueue::new(InstanceId(0), DELAYS_US),
            requests: Slab::with_capacity_max(1 << 16),
            ordering: Ordering::new(1),
            arrivals: 0,
            now: Micros(0),
            weights: BTreeMap::new(),
        }
    }

    /// Has a message wait, in a queue that is shared.
    fn put(&mut self, holder: Holder, priority: Priority) -> MsgKey {
        let key = self.push_with(holder, priority);
        self.queue.share(&mut self.requests);
        key
    }

    /// Has a message wait.
    fn push(&mut self, holder: Holder) -> MsgKey {
        self.push_with(holder, Priority::Normal)
    }

    fn push_with(&mut self, holder: Holder, priority: Priority) -> MsgKey {
        self.arrivals += 1;
        let (arrival, received) = (self.arrivals, self.now);
        let weight = self.weights.get(&holder.tenant).copied().unwrap_or(1);
        let key = self.requests.insert_with(|r| {
            r.weight = weight;
            (r.holder, r.handling.priority) = (holder, priority);
            (r.arrival, r.received) = (arrival, received);
            r.position = QueuePosition::new((Line::Prompt, ANY_COMPANY));
        });
        self.queue.push(key, &mut self.requests, &mut self.ordering);
        key
    }

    fn put_many(&mut self, holder: Holder, n: usize) {
        (0..n).for_each(|_| {
            self.put(holder, Priority::Normal);
        });
    }

    /// Takes a message that costs `cost_us`: its key, and its owner.
    fn take(&mut self, cost_us: impl Fn(&Holder) -> u64) -> (MsgKey, Holder) {
        let key = self.begin().expect("something waits");
        let holder = self.requests.get(key).expect("just taken").holder;
        self.end(key, cost_us(&holder));
        (key, holder)
    }

    /// Takes a message into a call.
    fn begin(&mut self) -> Option<MsgKey> {
        self.queue.take(Ticket::new(1, 0), &mut self.requests, &mut self.ordering)
    }

    /// Ends the call of a message, which cost `cost_us`.
    fn end(&mut self, key: MsgKey, cost_us: u64) {
        let request = self.requests.get_mut(key).expect("in flight");
        self.queue.give_back(request, cost_us);
        self.requests.release(key);
    }

    /// The deadline of a message that waits has passed.
    fn expire(&mut self, key: MsgKey) {
        self.queue.forget(self.requests.get_mut(key).expect("it waits"));
        self.requests.release(key);
    }

    /// Checks that the backlog has no more places and nodes than its owners need.
    fn check_bounds(&self) {
        let Some(backlog) = self.queue.backlog() else { return };
        assert_eq!(backlog.nodes.len(), backlog.names.len() + 1);
        for (_, node) in backlog.nodes.iter() {
            let (listed, ahead, members) = (node.listed.len(), node.ahead.len(), node.members);
            let most = 2 * members as usize + OUTDATED_MAX;
            assert!(listed.max(ahead) <= most, "{listed} and {ahead} of {members} members");
            assert!(node.held.items > 0 || node.in_flight > 0, "{:?} is kept", node.name);
        }
    }

    /// Messages served of each owner, of `n`.
    fn served(&mut self, n: usize, cost_us: impl Fn(&Holder) -> u64) -> Vec<(Holder, usize)> {
        let mut served: Vec<(Holder, usize)> = Vec::new();
        for _ in 0..n {
            let (_, holder) = self.take(&cost_us);
            match served.iter_mut().find(|(h, _)| *h == holder) {
                Some((_, n)) => *n += 1,
                None => served.push((holder, 1)),
            }
        }
        served
    }
}

fn sum(served: &[(Holder, usize)], is: impl Fn(&Holder) -> bool) -> usize {
    served.iter().filter(|(holder, _)| is(holder)).map(|(_, n)| n).sum()
}

#[test]
fn owners_in_backlog_are_served_alike_however_much_each_has_waiting() {
    let mut rig = Rig::new();
    for (n, waiting) in [(0, 3_000), (1, 300), (2, 1_000), (3, 200)] {
        rig.put_many(user(0, n), waiting);
    }
    for (holder, n) in rig.served(800, |_| COST_US) {
        assert!((198..=202).contains(&n), "{holder:?}: {n}");
    }
    // The others are done, and the first has what nobody else wants.
    let served = rig.served(1_000, |_| COST_US);
    assert!(sum(&served, |h| *h == user(0, 0)) > 400);
}

#[test]
fn tenants_then_users_and_addresses_then_sessions_have_equal_shares() {
    let mut rig = Rig::new();
    // Half of it for each tenant; in the first one a user and two addresses have a third each.
    (0..50).for_each(|n| rig.put_many(session(1, 1, n), 30));
    rig.put_many(session(1, 2, 99), 1_000);
    rig.put_many(user(1, 1), 1_000);
    rig.put_many(user(2, 1), 2_000);
    let served = rig.served(1_800, |_| COST_US);
    let shares = [
        (sum(&served, |h| h.tenant == TenantId(2)), 900),
        (sum(&served, |h| *h == user(1, 1)), 300),
        (sum(&served, |h| *h == session(1, 2, 99)), 300),
        (sum(&served, |h| *h == session(1, 1, 7)), 6),
    ];
    for (n, want) in shares {
        assert!(n.abs_diff(want) <= 3, "{shares:?}");
    }
}

/// Promise 3: served shares of tenants in backlog follow their weights within 5 %, however many
/// users each has.
#[test]
fn tenants_in_backlog_are_served_by_their_weights() {
    let mut rig = Rig::new();
    for (tenant, weight, users) in [(1, 1, 50), (2, 2, 1), (3, 4, 7)] {
        rig.weights.insert(TenantId(tenant), weight);
        (0..users).for_each(|n| rig.put_many(user(tenant, n), 9_000 / users as usize));
    }
    let served = rig.served(7_000, |_| COST_US);
    for (tenant, wanted) in [(1, 1_000_usize), (2, 2_000), (3, 4_000)] {
        let n = sum(&served, |holder| holder.tenant == TenantId(tenant));
        assert!(n.abs_diff(wanted) * 20 <= wanted, "tenant {tenant} of {wanted}: {n}");
    }
    // A change of weights holds for what waits, too.
    rig.queue.set_weights(|id| if id == TenantId(2) { 2 } else { 4 });
    let served = rig.served(1_000, |_| COST_US);
    let n = sum(&served, |holder| holder.tenant == TenantId(1));
    assert!(n.abs_diff(400) <= 20, "{n}");
}

#[test]
fn an_owner_pays_for_the_time_that_its_messages_take() {
    let mut rig = Rig::new();
    rig.put_many(user(0, 1), 2_000);
    rig.put_many(user(0, 2), 2_000);
    let slow = |holder: &Holder| if *holder == user(0, 2) { 10 * COST_US } else { COST_US };
    let served = rig.served(1_100, slow);
    let n = sum(&served, |h| *h == user(0, 2));
    assert!((95..=105).contains(&n), "a tenth of the other's 1,000: {n}");
}

#[test]
fn owners_without_a_backlog_go_by_arrival_and_class() {
    let sessions: fn(u64) -> Holder = |n| session(0, 1, n);
    for holder in [|n| user(0, n), sessions, |n| user(n, 0)] {
        let mut rig = Rig::new();
        let mut expected = Vec::new();
        for n in 0..5_000 {
            rig.now.0 += 7;
            let priority = if n % 100 == 99 { Priority::High } else { Priority::Normal };
            let key = rig.put(holder(n), priority);
            expected.push((rig.now.0 + DELAYS_US[priority.index()], priority.index(), n, key));
        }
        expected.sort_unstable();
        for (place, (.., key)) in expected.into_iter().enumerate() {
            assert_eq!(rig.take(|_| COST_US).0, key, "at {place}");
        }
    }
}

#[test]
fn a_newcomer_waits_for_no_more_than_a_message_of_each_owner() {
    for others in [1_u64, 10, 100] {
        let mut rig = Rig::new();
        (0..others).for_each(|n| rig.put_many(user(0, n), 300));
        rig.served(50 * others as usize, |_| COST_US);
        rig.now = Micros(1_000_000);
        let key = rig.put(user(0, 999), Priority::Normal);
        let before = (0..).find(|_| rig.take(|_| COST_US).0 == key).expect("it is served");
        assert!(before <= others + 1, "{before} before it, of {others} owners");
    }
}

/// What clients sent together leaves together, so that it is answered with one write: where nobody
/// has much waiting the order is that of arrival.
#[test]
fn a_few_messages_of_each_owner_stay_together() {
    let mut rig = Rig::new();
    (0..80).for_each(|_| rig.queue.note_cost(COST_US));
    let sent: Vec<MsgKey> = (0..500)
        .flat_map(|n| [(); 4].map(|()| (n, ())))
        .map(|(n, ())| rig.put(session(0, 1, n), Priority::Normal))
        .collect();
    let taken: Vec<MsgKey> = sent.iter().map(|_| rig.take(|_| COST_US).0).collect();
    assert_eq!(taken, sent);
}

/// As long as nobody has much waiting the order is that of arrival, and owners are only counted;
/// one that has more has its share, and so have the others, until it has no more.
#[test]
fn owners_have_shares_as_long_as_one_of_them_has_much_waiting() {
    let mut rig = Rig::new();
    (0..80).for_each(|_| rig.queue.note_cost(COST_US));
    let crowd: Vec<MsgKey> = (0..2_000).map(|n| rig.push(session(0, 1, n % 500))).collect();
    rig.queue.divide(&mut rig.requests);
    let first: Vec<MsgKey> = crowd[..1_000].iter().map(|_| rig.take(|_| COST_US).0).collect();
    assert_eq!((first, rig.queue.is_shared()), (crowd[..1_000].to_vec(), false));
    // Of two addresses none may have much; who comes waits for one message of the other.
    let other = rig.push(session(0, 2, 1));
    assert!(rig.queue.is_shared());
    let before = (0..).find(|_| rig.take(|_| COST_US).0 == other).expect("it is served");
    assert!(before <= 1, "{before} before it");
    // Again the only one. A session that floods is no reason for others to wait.
    let ticks = |rig: &mut Rig| (0..EVEN_TICKS).for_each(|_| rig.queue.trim());
    ticks(&mut rig);
    assert!(!rig.queue.is_shared());
    let flooder = session(0, 1, 999);
    rig.put_many(flooder, 100);
    assert!(rig.queue.is_shared());
    let newcomer = rig.push(session(0, 1, 1_000));
    let mut flooded = 0;
    loop {
        let (key, holder) = rig.take(|_| COST_US);
        if key == newcomer {
            break;
        }
        flooded += usize::from(holder == flooder);
    }
    assert!(flooded <= 20, "{flooded} of 100 before one who came after it");
    rig.served(80, |_| COST_US);
    ticks(&mut rig);
    assert!(!rig.queue.is_shared(), "nobody has much any more");
}

/// Weights hold however little each tenant has waiting.
#[test]
fn tenants_of_different_weights_have_shares_although_nobody_has_much_waiting() {
    let mut rig = Rig::new();
    (0..80).for_each(|_| rig.queue.note_cost(COST_US));
    rig.weights.insert(TenantId(1), 8);
    // Each sends again what was answered.
    let all: Vec<Holder> = (1..=9).map(|tenant| user(tenant, 1)).collect();
    (0..4).flat_map(|_| &all).for_each(|holder| {
        rig.push(*holder);
    });
    rig.queue.divide(&mut rig.requests);
    assert!(rig.queue.is_shared());
    let mut served = 0;
    for _ in 0..8_000 {
        let (_, holder) = rig.take(|_| COST_US);
        served += usize::from(holder.tenant == TenantId(1));
        rig.push(holder);
        rig.queue.trim();
    }
    assert!(served >= 3_900, "{served} of 8,000, of which its share is 4,000");
    // As soon as all weigh the same nobody needs one.
    rig.queue.set_weights(|_| 1);
    (0..EVEN_TICKS).for_each(|_| rig.queue.trim());
    assert!(!rig.queue.is_shared());
}

/// An owner with much waiting gets nothing by that: beside it a few messages of another wait for
/// one of it at most.
#[test]
fn one_with_much_waiting_does_not_stay_together() {
    let mut rig = Rig::new();
    (0..80).for_each(|_| rig.queue.note_cost(COST_US));
    rig.put_many(user(0, 1), 1_000);
    rig.served(100, |_| COST_US);
    rig.put_many(user(0, 2), 4);
    let served = rig.served(9, |_| COST_US);
    assert_eq!(sum(&served, |h| *h == user(0, 2)), 4, "{served:?}");
}

#[test]
fn what_an_owner_has_waiting_goes_in_few_calls_and_shares_stay_equal() {
    let mut rig = Rig::new();
    let holders = [user(0, 1), user(0, 2), session(0, 1, 1), session(0, 1, 2)];
    (0..200).for_each(|_| {
        for holder in holders {
            rig.put(holder, Priority::Normal);
        }
    });
    let mut served = BTreeMap::new();
    let mut turns = 0;
    for call in 1..=4 {
        let mut last = None;
        for items in 0..60 {
            let taker = Taker { ticket: Ticket::new(1, call), items, kept: None };
            let Rig { queue, requests, ordering, .. } = &mut rig;
            let key = queue.take_into(&taker, requests, ordering).expect("much waits");
            let holder = rig.requests.get(key).expect("there").holder;
            *served.entry(format!("{:?}", holder.party)).or_insert(0) += 1;
            turns += usize::from(last.replace(holder) != Some(holder));
        }
    }
    let runs = 4 * 60 / turns;
    assert!(runs >= 8, "{runs} in a row, {turns} turns");
    // Both users and the address get a third each, give or take a run.
    let counts: Vec<usize> = served.values().copied().collect();
    assert_eq!(counts.len(), 3, "{served:?}");
    assert!(counts.iter().all(|n| n.abs_diff(80) <= RUN), "{served:?}");
}

#[test]
fn a_member_that_comes_and_goes_gets_no_more_than_one_that_stays() {
    let mut rig = Rig::new();
    rig.put_many(user(0, 1), 3_000);
    // New sessions of one address, each with one message, beside a user with a backlog.
    (0..100).for_each(|n| rig.put_many(session(0, 1, n), 1));
    let mut of_address = 0;
    for n in 100..1_100 {
        let (_, holder) = rig.take(|_| COST_US);
        if holder != user(0, 1) {
            of_address += 1;
            rig.put_many(session(0, 1, n), 1);
        }
    }
    assert!((498..=502).contains(&of_address), "{of_address} of 1,000");
}

#[test]
fn owners_with_nothing_in_flight_are_listed_a_few_times_at_most_however_much_they_send() {
    let mut rig = Rig::new();
    (0..200).for_each(|n| rig.put_many(session(0, 1, n % 3), 100));
    let backlog = rig.queue.backlog().expect("shared");
    let listed: usize = backlog.idle.iter().map(BinaryHeap::len).sum();
    assert!(listed <= 2 * (2 * backlog.nodes.len() + 65), "{listed} of {}", backlog.nodes.len());
}

#[test]
fn places_of_owners_that_come_and_go_do_not_pile_up_behind_one_that_waits() {
    let mut rig = Rig::new();
    let first = rig.put(session(0, 1, 0), Priority::Normal);
    for n in 1..5_000 {
        rig.now.0 += 7;
        // The second is another address's, the third another tenant's.
        let new = [session(0, 1, n), session(0, 2, n), session(n, 3, n), user(0, n)];
        let keys = new.map(|holder| rig.put(holder, Priority::Low));
        keys.into_iter().for_each(|key| rig.expire(key));
        rig.check_bounds();
    }
    assert_eq!(rig.take(|_| COST_US).0, first);
}

#[test]
fn the_memory_of_owners_that_are_gone_is_given_back() {
    let mut backlog = Backlog::new();
    let stays = backlog.join(&user(0, 0), 1, 1);
    let gone: Vec<OwnerKey> = (1..=1_000).map(|n| backlog.join(&user(0, n), 1, 1)).collect();
    for &owner in &gone {
        backlog.list(owner, ((1, 0, owner.0), MsgKey(1), 0));
    }
    gone.iter().for_each(|owner| assert_eq!(backlog.leave(*owner, 1), 1, "its entry goes"));
    let kept = |backlog: &mut Backlog| {
        let owner = backlog.join(&user(0, 7), 1, 1);
        let capacity = backlog.node(owner).entries.capacity();
        backlog.leave(owner, 1);
        capacity > 0
    };
    assert!(kept(&mut backlog), "an owner that comes at once finds the buffers there");
    // Two rounds.
    let ticks = 2 * backlog.nodes.slots().div_ceil(TRIMMED_PER_TICK);
    assert!((0..ticks).all(|_| !backlog.trim()));
    assert!(!kept(&mut backlog));
    backlog.leave(stays, 1);
    assert_eq!((1..).find(|_| backlog.trim()), Some(UNUSED_TICKS), "all may go after a second");
    backlog.join(&user(0, 0), 1, 1);
    assert!(!backlog.trim(), "it is used again");
}

/// What a message costs is known when its call ends, and mostly it is less than was thought.
#[test]
fn a_session_that_owed_less_than_was_thought_has_its_place_in_the_order_again() {
    let mut rig = Rig::new();
    rig.queue.note_cost(1_000 * COST_US);
    let put = |rig: &mut Rig, us: u64, holder: Holder| {
        rig.now = Micros(us);
        rig.put(holder, Priority::Normal)
    };
    let [one, second] = [0, 0].map(|us| put(&mut rig, us, session(0, 1, 1)));
    let [other, later] = [50, 51].map(|us| put(&mut rig, us, user(0, 9)));
    let neighbour = put(&mut rig, 100, session(0, 1, 2));
    assert_eq!([rig.begin(), rig.begin()], [Some(one), Some(other)]);
    // The session was ahead in its address, whose place was that of the neighbour meanwhile.
    rig.end(one, 0);
    assert_eq!([(); 3].map(|()| rig.begin()), [second, later, neighbour].map(Some));
}

proptest! {
    /// Whatever comes, goes and is served: places and nodes stay as many as there are owners.
    #[test]
    fn the_backlog_is_as_large_as_its_owners_need(
        steps in prop::collection::vec((0_u8..6, 0_u64..2, 0_u64..40, 1_u64..30), 1..150),
    ) {
        let mut rig = Rig::new();
        let (mut waiting, mut flying) = (Vec::new(), Vec::new());
        for (kind, tenant, at, count) in steps {
            rig.now.0 += 100;
            for n in at..at + count {
                let holder = match n % 3 {
                    0 => user(tenant, n),
                    _ => session(tenant, n as u8 % 2, n),
                };
                match kind {
                    0 | 1 => waiting.push(rig.put(holder, Priority::ALL[n as usize % 4])),
                    // A short visit.
                    2 => {
                        let key = rig.put(holder, Priority::Critical);
                        rig.expire(key);
                    }
                    3 if !waiting.is_empty() => {
                        let key = waiting.swap_remove(n as usize % waiting.len());
                        rig.expire(key);
                    }
                    4 => {
                        let Some(key) = rig.begin() else { continue };
                        waiting.retain(|k| *k != key);
                        flying.push(key);
                    }
                    5 if !flying.is_empty() => {
                        let key = flying.swap_remove(n as usize % flying.len());
                        rig.end(key, n * COST_US);
                    }
                    _ => {}
                }
                rig.check_bounds();
            }
            rig.queue.compact(&rig.requests);
            rig.queue.trim();
        }
        while let Some(key) = rig.begin() {
            rig.end(key, COST_US);
            rig.check_bounds();
        }
        flying.into_iter().for_each(|key| rig.end(key, COST_US));
        prop_assert!(rig.requests.is_empty());
    }

    /// Against the fluid model: of any two owners that always have something waiting none has had
    /// more than a message more than the other on each level, whatever else comes and goes.
    #[test]
    fn shares_differ_by_less_than_a_message_for_each_level(
        steps in prop::collection::vec((0_u64..2, 0_u64..3, 0_u8..6), 1..400),
    ) {
        let mut rig = Rig::new();
        let constant = [user(0, 100), user(0, 101), session(1, 100, 1), session(1, 100, 2)];
        constant.iter().for_each(|&holder| rig.put_many(holder, 500));
        let mut served: BTreeMap<usize, usize> = BTreeMap::new();
        for (tenant, who, puts) in steps {
            for n in 0..puts {
                let holder = match n % 2 {
                    0 => user(tenant, who),
                    _ => session(tenant, who as u8, u64::from(n)),
                };
                rig.put(holder, Priority::ALL[usize::from(n) % 4]);
            }
            let (_, holder) = rig.take(|_| COST_US);
            if let Some(at) = constant.iter().position(|h| *h == holder) {
                *served.entry(at).or_default() += 1;
            }
        }
        let n = |at: usize| served.get(&at).copied().unwrap_or(0);
        prop_assert!(n(0).abs_diff(n(1)) <= 2, "users of one tenant: {served:?}");
        prop_assert!(n(2).abs_diff(n(3)) <= 2, "sessions of one address: {served:?}");
    }
}
