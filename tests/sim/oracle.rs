//! The oracle: the promises that must hold in every world. It is given every message sent, every
//! run at an instance and every answer.

use std::collections::{BTreeMap, BTreeSet};

use shardgate::routing::{HashOn, Order, Route};

use crate::wire::{Answer, Message};

/// Reasons of answers to messages that did not run.
const NOT_RUN: [&str; 10] = [
    "NO_ROUTE",
    "QUEUE_FULL",
    "RATE_LIMITED",
    "EXPIRED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
    "TOO_LARGE",
    "DRAINING",
    "BAD_MESSAGE",
    "UNIMPLEMENTED",
];

/// Connection, service, and the value by which the instance is picked.
type StreamName = (usize, u16, String);

/// A payload of a client, sent once or repeated under one id.
#[derive(Debug)]
struct Unit {
    peer: usize,
    stream: Option<StreamName>,
    /// The stream in which it would be if its client had not signed in.
    before: Option<StreamName>,
    /// Place of the unit among those of its connection.
    order: u64,
    idempotent: bool,
    has_id: bool,
    sends: u64,
    runs: u64,
    requests: BTreeSet<(usize, u64)>,
    /// Reason of an answer by which the unit did not run.
    not_run: Option<String>,
    ok: Option<Vec<u8>>,
}

#[derive(Debug, Default)]
struct Stream {
    /// Place of the last unit that ran the first time.
    last: Option<u64>,
    /// Place of the last unit that ran, of those that would be in the stream had their client not
    /// signed in.
    last_signed: Option<u64>,
    in_flight: BTreeSet<(usize, u64)>,
}

/// Sender of a message.
#[derive(Clone, Copy, Debug)]
pub struct Sender {
    pub peer: usize,
    pub signed: bool,
    /// Whether other connections of the user may send the message, too, so that it has no place in
    /// an order.
    pub shared: bool,
    /// Place of the message among those of its connection.
    pub order: u64,
}

/// State of the oracle of one run.
#[derive(Debug, Default)]
pub struct Oracle {
    /// Whether the gateway deduplicates ids.
    dedup: bool,
    /// Whether every shard still runs: a shard forgets its ids when it ends.
    pub shards_run: bool,
    /// Whether users have tenants.
    tenants: bool,
    units: Vec<Unit>,
    streams: BTreeMap<StreamName, Stream>,
    /// Number of answers by reason, which shows what the run has covered.
    pub answers: BTreeMap<String, u64>,
    pub runs: u64,
    /// Reasons for which messages of a client were refused.
    pub refused: BTreeMap<usize, Vec<String>>,
}

impl Oracle {
    /// An oracle; `dedup`: whether ids are deduplicated; `tenants`: whether users have tenants.
    pub fn new(dedup: bool, tenants: bool) -> Self {
        Self { dedup, tenants, shards_run: true, ..Self::default() }
    }

    /// Takes a message that is about to be sent; gives the number of its unit. By signing in, a
    /// client changes the value by which instances are picked.
    pub fn sends(&mut self, sender: &Sender, m: &Message, route: Option<&Route>) -> u64 {
        let Sender { peer, signed, order, .. } = *sender;
        let name = |signed: bool| {
            let r = route.filter(|r| r.order == Order::Session && !sender.shared)?;
            let key = match r.hash_on {
                // In the user's tenant: by the same hash where there is only one.
                HashOn::Key if !m.key.is_empty() => format!("{} {}", m.key, signed && self.tenants),
                HashOn::User if signed => " user".into(),
                // All of these by the session.
                HashOn::Key | HashOn::User | HashOn::Session => String::new(),
            };
            Some((peer, r.service.0, key))
        };
        self.units.push(Unit {
            peer,
            stream: name(signed),
            before: name(false).filter(|_| signed),
            order,
            idempotent: route.is_some_and(|r| r.idempotent),
            has_id: !m.id.is_empty(),
            sends: 1,
            runs: 0,
            requests: BTreeSet::new(),
            not_run: None,
            ok: None,
        });
        self.units.len() as u64 - 1
    }

    /// The peer of a unit whose order matters.
    pub fn peer(&self, unit: u64) -> Option<usize> {
        let it = &self.units[unit as usize];
        it.stream.is_some().then_some(it.peer)
    }

    /// Takes a unit that is sent again with the same id.
    pub fn repeats(&mut self, unit: u64) {
        self.units[unit as usize].sends += 1;
    }

    /// Takes a call that leaves its shard.
    pub fn departs(&mut self, shard: usize, ticket: u64, units: &[u64]) {
        for &unit in units {
            if let Some(name) = &self.units[unit as usize].stream {
                let stream = self.streams.entry(name.clone()).or_default();
                stream.in_flight.insert((shard, ticket));
                assert!(stream.in_flight.len() == 1, "promise 2: two calls carry {name:?}");
            }
        }
    }

    /// Takes a call whose outcome the shard gets.
    pub fn ends(&mut self, shard: usize, ticket: u64, units: &[u64]) {
        for &unit in units {
            if let Some(name) = &self.units[unit as usize].stream {
                let stream = self.streams.get_mut(name).expect("it departed");
                stream.in_flight.remove(&(shard, ticket));
            }
        }
    }

    /// Takes a message that an instance runs. `order` is its place by its seq, if it has one.
    pub fn runs(&mut self, unit: u64, request: (usize, u64), order: Option<u64>) -> u64 {
        self.runs += 1;
        let it = &mut self.units[unit as usize];
        it.requests.insert(request);
        it.runs += 1;
        let dedup = self.dedup && self.shards_run;
        let most = if it.has_id && !dedup { it.sends } else { 1 };
        let requests = it.requests.len() as u64;
        assert!(requests <= most, "promise 8: unit {unit} ran as {:?}", it.requests);
        let once = it.idempotent || it.runs <= most;
        assert!(once, "promise 7: unit {unit} ran {} times", it.runs);
        if let (Some(said), false) = (&it.not_run, it.has_id) {
            panic!("promise 7: unit {unit} runs after the answer {said}");
        }
        if it.runs == 1
            && let Some(name) = &it.stream
            && (order.is_some() || it.sends == 1)
        {
            let at = order.unwrap_or(it.order);
            let stream = self.streams.entry(name.clone()).or_default();
            let rises = stream.last.is_none_or(|last| last < at);
            assert!(rises, "promise 2: {name:?} runs {at} after {:?}", stream.last);
            stream.last = Some(at);
            let later = stream.last_signed.filter(|_| it.before.is_none());
            assert!(
                later.is_none_or(|later| later < at),
                "promise 2: {name:?} runs {at} after {later:?}, which came after the sign-in"
            );
            if let Some(before) = &it.before {
                let stream = self.streams.entry(before.clone()).or_default();
                stream.last_signed = stream.last_signed.max(Some(at));
            }
        }
        self.runs
    }

    /// Takes an answer that the client has received.
    pub fn answered(&mut self, unit: u64, answer: &Answer) {
        let word = if answer.reason.is_empty() { "(service)" } else { &answer.reason };
        *self.answers.entry(word.to_owned()).or_default() += 1;
        let it = &mut self.units[unit as usize];
        if NOT_RUN.contains(&&*answer.reason) && !it.has_id {
            assert!(it.runs == 0, "promise 7: unit {unit} ran, but is told {}", answer.reason);
            it.not_run = Some(answer.reason.clone());
        }
        if !answer.reason.is_empty() {
            self.refused.entry(it.peer).or_default().push(answer.reason.clone());
            return;
        }
        if answer.status != 0 || answer.payload.is_empty() {
            return;
        }
        assert!(it.runs > 0, "unit {unit} never ran, but the service is said to have answered");
        let text = String::from_utf8_lossy(&answer.payload);
        if !text.starts_with('{') {
            return;
        }
        let right = text.contains(&format!("\"u\":{unit}}}"));
        assert!(right, "promise 1: unit {unit} got the answer of another: {text}");
        if self.dedup && self.shards_run && it.has_id {
            let first = it.ok.get_or_insert_with(|| answer.payload.clone());
            assert!(*first == answer.payload, "promise 8: unit {unit} has two answers");
        }
    }
}
