//! The table of limited clients, users or addresses, and what each has used: connections, new
//! connections and messages a second.
//!
//! A client is remembered as long as it has a connection or a bucket that is not full again, so
//! that a client that comes back finds its bucket as it left it. A client whose buckets are full
//! again carries no state and is dropped. Of the clients without a connection at most [`IDLE_MAX`]
//! are remembered; over that the one that left the longest ago, whose buckets are the fullest, is
//! dropped before its time. So the table is bounded, and a client that has a connection is in it
//! whatever others do.
//!
//! Nobody is refused because the table is full, and so nobody has a share of it: whoever is dropped
//! before its time finds a full bucket when it comes back, which is to its favour. A client that
//! wants its own bucket forgotten so needs [`IDLE_MAX`] others that come and go within the time in
//! which the bucket fills by itself.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use hashbrown::HashTable;
use xxhash_rust::xxh3::Xxh3;

use crate::auth::Identity;
use crate::engine::clients::token_bucket::{Rate, TokenBucket};
use crate::engine::slab::{SLAB_ENTRIES_CAP, Slab};
use crate::ids::LimiterKey;
use crate::message::Micros;

/// Clients without a connection that are remembered: 2^16, at some 100 bytes each 6.5 MB a table.
/// A bucket is full again after `burst_s`, so that up to 65,536 addresses in that time may come and
/// go with nothing forgotten.
pub const IDLE_MAX: usize = 1 << 16;
/// Entries that room in the table of names is made for with the first one, so that it does not
/// rehash under load before there are more: 2.4 MB.
const RESERVED: usize = 1 << 17;

/// A user: tenant and name, both compared in full.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct User {
    tenant: Option<Arc<str>>,
    name: Arc<str>,
}

impl User {
    /// Whoever signed in as this.
    pub fn of(identity: &Identity) -> Self {
        Self { tenant: identity.tenant.clone(), name: identity.user.clone() }
    }
}

/// The limits of each client of a table; 0 = no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClientRule {
    /// Most connections at once.
    pub connections_max: u32,
    /// Most connections that have not signed in.
    pub unauthenticated_max: u32,
    /// Rate of new connections.
    pub connects: Rate,
    /// Rate of messages.
    pub messages: Rate,
}

/// Why a connection is not let in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Over {
    /// There are as many connections as there may be.
    Connections,
    /// There are as many connections that have not signed in as there may be.
    Unauthenticated,
    /// Too many a second; one more may come after so many microseconds.
    Rate(u64),
}

#[derive(Debug)]
struct Limited<N> {
    name: N,
    conns: u32,
    /// Connections that have not signed in.
    unauthenticated: u32,
    listed: Listed,
    connects: TokenBucket,
    messages: TokenBucket,
}

/// Whether a client is in the queue of idle ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Listed {
    No,
    /// Since it lost its last connection, unless it has one again.
    Idle,
    /// Since it lost a later connection: its place in the queue is too far in front.
    Again,
}

/// The clients of one kind. See the module.
#[derive(Debug)]
pub struct Limiter<N> {
    rule: ClientRule,
    /// Whether it limits anything.
    on: bool,
    clients: Slab<LimiterKey, Limited<N>>,
    by_name: HashTable<LimiterKey>,
    seed: u64,
    /// Clients that lost their last connection, the first one first. Every client without a
    /// connection is in it, once; one that has a connection again leaves it when its turn comes.
    idle: VecDeque<LimiterKey>,
    /// Time until which no rate counts.
    pass_until: Micros,
}

impl<N: Clone + Eq + Hash> Limiter<N> {
    /// Bytes of a client, without its name's text: its slot, its key in the table of names (9 bytes
    /// at a load of 7/16 to 7/8), and in the queue of idle ones (8, which may have doubled).
    pub const ENTRY_BYTES: usize = Slab::<LimiterKey, Limited<N>>::SLOT_BYTES + 21 + 16;

    /// Nobody yet, and no limit.
    pub fn new(seed: u64) -> Self {
        Self {
            rule: ClientRule::default(),
            on: false,
            clients: Slab::with_capacity_max(0),
            by_name: HashTable::new(),
            seed,
            idle: VecDeque::new(),
            pass_until: Micros(0),
        }
    }

    /// The limits in force.
    #[inline]
    pub fn rule(&self) -> &ClientRule {
        &self.rule
    }

    /// Whether anything is limited.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Number of clients in the table.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// Takes new limits, which hold for the clients that are there already, too. Visits each
    /// client: with 200,000 of them about a millisecond.
    pub fn set_rule(&mut self, rule: ClientRule, now: Micros) {
        if rule == self.rule {
            return;
        }
        let old = std::mem::replace(&mut self.rule, rule);
        self.on = rule != ClientRule::default();
        for (_, client) in self.clients.iter_mut() {
            client.connects.settle(old.connects, now);
            client.messages.settle(old.messages, now);
        }
    }

    /// Lets rates count for nobody until then.
    pub fn pass_until(&mut self, until: Micros) {
        self.pass_until = until;
    }

    /// Counts one more connection of `name`, `unauthenticated` or not, if that is allowed.
    pub fn join(
        &mut self,
        name: &N,
        unauthenticated: bool,
        now: Micros,
    ) -> Result<LimiterKey, Over> {
        let key = self.find_or_insert(name, now);
        let Self { clients, rule, pass_until, .. } = self;
        let client = clients.get_mut(key).expect("just found");
        if over(client.conns, rule.connections_max) {
            return Err(Over::Connections);
        }
        if unauthenticated && over(client.unauthenticated, rule.unauthenticated_max) {
            return Err(Over::Unauthenticated);
        }
        if rule.connects.per_s > 0 && now >= *pass_until {
            client.connects.take(rule.connects, 1, now).map_err(Over::Rate)?;
        }
        client.conns += 1;
        client.unauthenticated += u32::from(unauthenticated);
        Ok(key)
    }

    /// The client of that name, if it is in the table, and whether one more connection of it is
    /// within its rate; if not, in how many microseconds one is.
    pub fn entry(&self, name: &N, now: Micros) -> Option<(LimiterKey, Result<(), u64>)> {
        let key = self.find(name)?;
        let mut bucket = self.clients.get(key)?.connects;
        let is_free = self.rule.connects.per_s == 0 || now < self.pass_until;
        let rate = if is_free { Ok(()) } else { bucket.take(self.rule.connects, 1, now) };
        Some((key, rate))
    }

    /// A connection that is there already is counted from now on, allowed or not.
    pub fn count(&mut self, name: &N, unauthenticated: bool, now: Micros) -> LimiterKey {
        let key = self.find_or_insert(name, now);
        let client = self.clients.get_mut(key).expect("just found");
        client.conns += 1;
        client.unauthenticated += u32::from(unauthenticated);
        key
    }

    /// A connection of the client that was unauthenticated is not any more.
    pub fn authenticated(&mut self, key: LimiterKey) {
        if let Some(client) = self.clients.get_mut(key) {
            client.unauthenticated -= 1;
        }
    }

    /// A connection of the client is gone.
    pub fn leave(&mut self, key: LimiterKey, unauthenticated: bool) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.conns -= 1;
        client.unauthenticated -= u32::from(unauthenticated);
        if client.conns > 0 {
            return;
        }
        client.listed = match client.listed {
            Listed::No => {
                self.idle.push_back(key);
                Listed::Idle
            }
            Listed::Idle | Listed::Again => Listed::Again,
        };
        if self.idle.len() > IDLE_MAX && self.oldest_idle().is_some() {
            self.forget_oldest();
        }
    }

    /// Whether `name` has as many connections as it may.
    pub fn is_full(&self, name: &N) -> bool {
        let client = self.find(name).and_then(|key| self.clients.get(key));
        client.is_some_and(|client| over(client.conns, self.rule.connections_max))
    }

    /// Whether `name` has more connections than `shards` shards together may let in.
    pub fn is_over_whole(&self, name: &N, shards: u32) -> bool {
        let client = self.find(name).and_then(|key| self.clients.get(key));
        let whole = self.rule.connections_max.saturating_mul(shards);
        client.is_some_and(|client| over(client.conns, whole))
    }

    /// A message of the client: if it is over the rate, how many microseconds until one may come.
    #[inline]
    pub fn take_message(&mut self, key: LimiterKey, now: Micros) -> Result<(), u64> {
        match self.clients.get_mut(key) {
            Some(client) if now >= self.pass_until => {
                client.messages.take(self.rule.messages, 1, now)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Visits up to `budget` clients without a connection, and drops those that carry no state.
    pub fn expire(&mut self, budget: usize, now: Micros) {
        for _ in 0..budget {
            let Some(key) = self.oldest_idle() else { return };
            let client = self.clients.get(key).expect("the idle ones are there");
            let ClientRule { connects, messages, .. } = self.rule;
            if !client.connects.is_full(connects, now) || !client.messages.is_full(messages, now) {
                // All are full `burst_s` after they became idle, those behind it later.
                return;
            }
            self.forget_oldest();
        }
    }

    /// Connections of each client, and how many of them have not signed in: for checks.
    pub fn counts(&self) -> impl Iterator<Item = (LimiterKey, u32, u32)> {
        self.clients.iter().map(|(key, client)| (key, client.conns, client.unauthenticated))
    }

    /// The client of that name, if it is in the table.
    pub fn find(&self, name: &N) -> Option<LimiterKey> {
        let same = |key: &LimiterKey| self.clients.get(*key).is_some_and(|p| p.name == *name);
        self.by_name.find(hash(self.seed, name), same).copied()
    }

    fn find_or_insert(&mut self, name: &N, now: Micros) -> LimiterKey {
        if let Some(key) = self.find(name) {
            return key;
        }
        // Where nothing is limited nothing is reserved.
        if self.clients.slots() == 0 {
            self.clients = Slab::with_capacity_max(SLAB_ENTRIES_CAP);
            self.by_name = HashTable::with_capacity(RESERVED);
        }
        // Connections are fewer than a store takes, and each is counted once.
        while self.clients.is_full() {
            self.oldest_idle().expect("not all have a connection");
            self.forget_oldest();
        }
        let bucket = TokenBucket::new(now);
        let key = self.clients.insert(Limited {
            name: name.clone(),
            conns: 0,
            unauthenticated: 0,
            listed: Listed::No,
            connects: bucket,
            messages: bucket,
        });
        let Self { by_name, clients, seed, .. } = self;
        by_name.insert_unique(hash(*seed, name), key, |key| hash_of(clients, *seed, *key));
        key
    }

    /// The client that has been idle the longest, which is then the first of the queue.
    fn oldest_idle(&mut self) -> Option<LimiterKey> {
        loop {
            let key = *self.idle.front()?;
            let client = self.clients.get_mut(key).expect("the idle ones are there");
            match client.listed {
                _ if client.conns > 0 => {
                    client.listed = Listed::No;
                    self.idle.pop_front();
                }
                Listed::Again => {
                    client.listed = Listed::Idle;
                    self.idle.rotate_left(1);
                }
                Listed::Idle | Listed::No => return Some(key),
            }
        }
    }

    /// Drops what [`Self::oldest_idle`] found.
    fn forget_oldest(&mut self) {
        let Some(key) = self.idle.pop_front() else { return };
        let hash = hash_of(&self.clients, self.seed, key);
        if let Ok(entry) = self.by_name.find_entry(hash, |found| *found == key) {
            entry.remove();
        }
        self.clients.remove(key);
    }
}

/// Whether one more than `count` would be over `max`.
fn over(count: u32, max: u32) -> bool {
    max > 0 && count >= max
}

fn hash_of<N: Hash>(clients: &Slab<LimiterKey, Limited<N>>, seed: u64, key: LimiterKey) -> u64 {
    clients.get(key).map_or(0, |client| hash(seed, &client.name))
}

/// Seeded, so that nobody can choose names that meet in the table.
fn hash<N: Hash>(seed: u64, name: &N) -> u64 {
    let mut hasher = Xxh3::with_seed(seed);
    name.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
