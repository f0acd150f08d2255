//! The queue and the streams against a naive model: the least of all eligible requests.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::engine::dispatcher::ordering::StreamName;
use crate::engine::owner::{Address, Holder, Party};
use crate::engine::slab::Slab;
use crate::ids::{ServiceId, SessionKey, StreamKey, TenantId};
use crate::message::Priority;
use crate::routing::Order;

const DELAYS_US: [u64; 4] = [0, 5_000, 50_000, 500_000];
const INSTANCES: u32 = 2;

#[derive(Clone, Debug)]
enum Step {
    /// A request arrives `after_us` later. Stream 0 means none.
    Push {
        after_us: u64,
        class: usize,
        stream: u8,
        bytes: usize,
    },
    /// A call takes up to `items` requests of an instance.
    Call {
        instance: u32,
        items: usize,
    },
    /// One of the calls in flight ends: its first `done` requests are answered, the others are put
    /// back.
    End {
        which: usize,
        done: usize,
    },
    /// A waiting request leaves: its deadline passed.
    Withdraw {
        which: usize,
    },
    /// Idle streams of an instance, and its requests without one, go to the other instance.
    Move {
        instance: u32,
    },
    Compact,
    Oldest,
    /// More waits for an instance than its calls can carry.
    Divide {
        instance: u32,
    },
    /// The same, and slots are kept.
    Share {
        instance: u32,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let push = (0..20_000u64, 0..4usize, 0..5u8, 0..50usize);
    prop_oneof![
        6 => push.prop_map(|(after_us, class, stream, bytes)| {
            Step::Push { after_us, class, stream, bytes }
        }),
        3 => (0..INSTANCES, 1..6usize).prop_map(|(instance, items)| Step::Call { instance, items }),
        2 => (0..8usize, 0..6usize).prop_map(|(which, done)| Step::End { which, done }),
        1 => (0..40usize).prop_map(|which| Step::Withdraw { which }),
        1 => (0..INSTANCES).prop_map(|instance| Step::Move { instance }),
        1 => Just(Step::Compact),
        1 => Just(Step::Oldest),
        1 => (0..INSTANCES).prop_map(|instance| Step::Divide { instance }),
        1 => (0..INSTANCES).prop_map(|instance| Step::Share { instance }),
    ]
}

/// The owner of a stream's requests, or of one without a stream: of both kinds, some under one
/// address.
fn holder(stream: u8, arrival: u64) -> Holder {
    let who = match stream {
        0 => arrival % 7,
        stream => u64::from(stream) + 7,
    };
    let address = Party::Address(Address::V4([127, 0, 0, (who % 2) as u8]));
    let (party, session) = match who % 3 {
        0 => (Party::User(who), 0),
        _ => (address, who),
    };
    Holder { tenant: TenantId(who % 2), party, session }
}

/// A request of the model. Within a stream, the order of `waiting` is the order sent.
#[derive(Clone, Copy, Debug)]
struct Naive {
    key: MsgKey,
    rank: Rank,
    stream: u8,
    instance: u32,
    bytes: usize,
    received: Micros,
}

/// Queues and model, side by side.
struct Pair {
    requests: Requests,
    ordering: Ordering,
    queues: Vec<InstanceQueue>,
    keys: [Option<StreamKey>; 5],
    waiting: Vec<Naive>,
    /// Requests in flight, by the call that carries them.
    calls: Vec<(Ticket, Vec<Naive>)>,
    now: Micros,
    arrivals: u64,
    tickets: u64,
}

impl Pair {
    fn new() -> Self {
        Self {
            requests: Slab::with_capacity_max(10_000),
            ordering: Ordering::new(10_000),
            queues: (0..INSTANCES)
                .map(|id| InstanceQueue::new(InstanceId(id), DELAYS_US))
                .collect(),
            keys: [None; 5],
            waiting: Vec::new(),
            calls: Vec::new(),
            now: Micros(0),
            arrivals: 0,
            tickets: 0,
        }
    }

    fn busy(&self, stream: u8) -> bool {
        stream > 0 && self.calls.iter().any(|(_, items)| items.iter().any(|m| m.stream == stream))
    }

    /// The instance for which the requests of a stream wait, or in whose call they are.
    fn instance_of(&self, stream: u8) -> Option<u32> {
        let in_calls = self.calls.iter().flat_map(|(_, items)| items);
        let mut all = self.waiting.iter().chain(in_calls);
        all.find(|m| m.stream == stream && stream > 0).map(|m| m.instance)
    }

    fn push(&mut self, class: usize, stream: u8, bytes: usize) {
        self.arrivals += 1;
        let arrival = self.arrivals;
        let received = self.now;
        let instance = self.instance_of(stream).unwrap_or((arrival % u64::from(INSTANCES)) as u32);
        let at = usize::from(stream);
        if stream > 0 && self.keys[at].is_none_or(|k| self.ordering.get_alive(k).is_none()) {
            let session = SessionKey(u64::from(stream));
            let name = StreamName { session, service: ServiceId(0), hash: 1 };
            assert!(self.ordering.find(&name).is_none());
            self.keys[at] = Some(self.ordering.open(name, InstanceId(instance), 0));
            assert_eq!(self.ordering.find(&name), self.keys[at]);
        }
        let stream_key = if stream > 0 { self.keys[at] } else { None };
        let key = self.requests.insert_with(|r| {
            r.holder = holder(stream, arrival);
            r.handling.priority = Priority::ALL[class];
            r.handling.order = if stream > 0 { Order::Session } else { Order::None };
            r.received = received;
            r.arrival = arrival;
            r.instance = InstanceId(instance);
            r.stream = stream_key;
            r.payload.set(&vec![0; bytes]);
        });
        self.queues[instance as usize].push(key, &mut self.requests, &mut self.ordering);
        let rank = (received.0 + DELAYS_US[class], class, arrival);
        self.waiting.push(Naive { key, rank, stream, instance, bytes, received });
    }

    /// Takes the requests of one call from queue and model, in equal order.
    fn call(&mut self, instance: u32, items: usize) {
        self.tickets += 1;
        let ticket = Ticket::new(self.tickets, 1);
        let mut taken: Vec<Naive> = Vec::new();
        for _ in 0..items {
            let mine: BTreeSet<u8> = taken.iter().map(|m| m.stream).collect();
            let mut heads = BTreeSet::new();
            let eligible = self.waiting.iter().filter(|m| {
                let head = m.stream == 0 || heads.insert(m.stream);
                head && m.instance == instance && (!self.busy(m.stream) || mine.contains(&m.stream))
            });
            let eligible: Vec<Naive> = eligible.copied().collect();
            let expected = eligible.iter().min_by_key(|m| m.rank);
            let queue = &mut self.queues[instance as usize];
            let is_shared = queue.is_shared();
            let found = queue.take(ticket, &mut self.requests, &mut self.ordering);
            if !is_shared {
                assert_eq!(found, expected.map(|m| m.key), "of {:?}", self.waiting);
            }
            // In which order owners are served, the tests of the backlog say.
            let one = eligible.iter().find(|m| Some(m.key) == found);
            assert_eq!(one.is_some(), expected.is_some(), "{found:?} of {:?}", self.waiting);
            let Some(one) = one else { break };
            self.waiting.retain(|m| m.key != one.key);
            taken.push(*one);
        }
        if !taken.is_empty() {
            self.calls.push((ticket, taken));
        }
    }

    /// Ends a call as `Dispatcher::fail` and `Dispatcher::end_call` do.
    fn end(&mut self, which: usize, done: usize) {
        if self.calls.is_empty() {
            return;
        }
        let (_, items) = self.calls.remove(which % self.calls.len());
        let done = done.min(items.len());
        let streams: BTreeSet<u8> = items.iter().map(|m| m.stream).filter(|&s| s > 0).collect();
        for m in items[done..].iter().rev() {
            if m.stream > 0 {
                let key = self.keys[usize::from(m.stream)].expect("it is busy");
                self.ordering.link_first(key, m.key, &mut self.requests);
            }
            let queue = &mut self.queues[m.instance as usize];
            queue.give_back(self.requests.get_mut(m.key).expect("in flight"), 3);
            queue.put_back(m.key, &mut self.requests);
            if m.stream == 0 {
                queue.resume(m.key, &mut self.requests);
            }
            // Before all others of its stream; the order of other streams does not matter here.
            self.waiting.insert(0, *m);
        }
        for m in &items[..done] {
            let request = self.requests.get_mut(m.key).expect("in flight");
            self.queues[m.instance as usize].give_back(request, 5);
            self.requests.release(m.key);
        }
        for stream in streams {
            let key = self.keys[usize::from(stream)].expect("it is busy");
            self.ordering.get_mut(key).busy = None;
            self.resume_head(stream);
            self.ordering.close_if_idle(key);
        }
    }

    fn resume_head(&mut self, stream: u8) {
        let key = self.keys[usize::from(stream)].expect("the caller has it");
        let state = self.ordering.get(key);
        if let Some(head) = state.head {
            let queue = &mut self.queues[state.instance.0 as usize];
            queue.resume(head, &mut self.requests);
        }
    }

    fn withdraw(&mut self, which: usize) {
        if self.waiting.is_empty() {
            return;
        }
        let m = self.waiting.remove(which % self.waiting.len());
        let request = self.requests.get_mut(m.key).expect("it waits");
        self.queues[m.instance as usize].forget(request);
        if m.stream > 0 {
            let key = self.keys[usize::from(m.stream)].expect("it waits");
            self.ordering.unlink(key, m.key, &mut self.requests);
            if !self.busy(m.stream) {
                self.resume_head(m.stream);
            }
            self.ordering.close_if_idle(key);
        }
        self.requests.release(m.key);
    }

    /// Moves requests to the other instance as `Dispatcher::reroute_waiting` does.
    fn move_away(&mut self, instance: u32) {
        let to = (instance + 1) % INSTANCES;
        let mut moved = BTreeSet::new();
        for at in 0..self.waiting.len() {
            let m = self.waiting[at];
            if m.instance != instance || self.busy(m.stream) {
                continue;
            }
            let request = self.requests.get_mut(m.key).expect("it waits");
            self.queues[instance as usize].forget(request);
            self.requests.get_mut(m.key).expect("it waits").instance = InstanceId(to);
            self.queues[to as usize].put_back(m.key, &mut self.requests);
            self.waiting[at].instance = to;
            if m.stream == 0 {
                self.queues[to as usize].resume(m.key, &mut self.requests);
            } else if moved.insert(m.stream) {
                let key = self.keys[usize::from(m.stream)].expect("it waits");
                self.ordering.get_mut(key).instance = InstanceId(to);
            }
        }
        moved.into_iter().for_each(|stream| self.resume_head(stream));
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Push { after_us, class, stream, bytes } => {
                self.now.0 += after_us;
                self.push(class, stream, bytes);
            }
            Step::Call { instance, items } => self.call(instance, items),
            Step::End { which, done } => self.end(which, done),
            Step::Withdraw { which } => self.withdraw(which),
            Step::Move { instance } => self.move_away(instance),
            Step::Compact => {
                for queue in &mut self.queues {
                    queue.stale += 1_000; // so that it always does something
                    queue.compact(&self.requests);
                    // More than a second of ticks: unused owners are gone.
                    (0..110).for_each(|_| queue.trim());
                }
            }
            Step::Oldest => self.check_oldest(),
            Step::Divide { instance } => {
                self.queues[instance as usize].divide(&mut self.requests);
            }
            Step::Share { instance } => {
                self.queues[instance as usize].share(&mut self.requests);
            }
        }
        for (id, queue) in self.queues.iter().enumerate() {
            let here = self.waiting.iter().filter(|m| m.instance as usize == id);
            let (items, bytes) = here.fold((0, 0), |(i, b), m| (i + 1, b + m.bytes));
            assert_eq!((queue.items, queue.bytes), (items, bytes), "instance {id}");
            let keys = queue.current_keys(&self.requests);
            let (fresh, resumed) = keys.expect("stale keys are counted");
            let known = fresh.len() + resumed.len();
            let each: BTreeSet<MsgKey> = fresh.into_iter().chain(resumed).collect();
            assert_eq!(each.len(), known, "a key is twice in instance {id}");
        }
    }

    /// Checks that `oldest` is never earlier than the truth, and found if an eligible request
    /// waits.
    fn check_oldest(&mut self) {
        for id in 0..INSTANCES {
            let here = self.waiting.iter().filter(|m| m.instance == id);
            let truth = here.clone().map(|m| m.received).min();
            let mut heads = BTreeSet::new();
            let heads: Vec<_> =
                self.waiting.iter().filter(|m| m.stream == 0 || heads.insert(m.stream)).collect();
            let free =
                heads.into_iter().filter(|m| m.instance == id && !self.busy(m.stream)).count();
            // What is shared does not wait for a window.
            if self.queues[id as usize].is_shared() {
                continue;
            }
            let told = self.queues[id as usize].oldest(&self.requests);
            let possible = told.is_none_or(|told| truth.is_some_and(|truth| told >= truth));
            assert!(possible, "{told:?} is before {truth:?}");
            assert!(free == 0 || told.is_some(), "{free} eligible ones are not seen");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_order_is_that_of_a_heap_over_the_eligible(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut pair = Pair::new();
        for step in &steps {
            pair.run(step);
        }
        // In the end, every request comes out.
        while !(pair.waiting.is_empty() && pair.calls.is_empty()) {
            pair.end(0, 9);
            (0..INSTANCES).for_each(|id| pair.call(id, 9));
        }
        assert!(pair.ordering.len() == 0 && pair.requests.is_empty());
        for queue in &pair.queues {
            assert!(!queue.is_shared());
            assert!(queue.backlog.as_ref().is_none_or(|backlog| backlog.is_empty()));
        }
    }
}

/// Promise 3: no request waits longer than the difference of the class delays because of others.
#[test]
fn a_message_is_overtaken_only_by_ones_enqueued_less_than_the_difference_of_the_delays_later() {
    let mut pair = Pair::new();
    pair.push(3, 0, 1);
    let Naive { key: low, instance, .. } = pair.waiting[0];
    // Two critical requests a millisecond arrive for its instance, without end; one is taken.
    let mut overtook = Vec::new();
    let taken = (0..1_500).any(|ms| {
        pair.now = Micros::from_ms(ms);
        (0..4).for_each(|_| pair.push(0, 0, 1));
        pair.waiting.retain(|m| m.instance == instance);
        pair.call(instance, 1);
        let (_, items) = pair.calls.pop().expect("something waits");
        overtook.push(items[0].received);
        items[0].key == low
    });
    assert!(taken, "it starves");
    overtook.pop();
    assert!(overtook.iter().all(|&at| at <= Micros::from_ms(500)), "{overtook:?}");
}
