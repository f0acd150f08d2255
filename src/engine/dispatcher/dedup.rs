//! The deduplication window: which idempotency keys are being executed, and how others ended.

use std::collections::VecDeque;
use std::mem::size_of;

use hashbrown::HashTable;
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

use crate::config::settings::DedupSettings;
use crate::engine::slab::Slab;
use crate::ids::{DedupKey, MsgKey, SessionId, TenantId};
use crate::message::{Micros, Reason};

/// Counted for a remembered id besides its bytes: the entry, and 16 each for its slot, its place in
/// the table (9 bytes at a load of 7/16 to 7/8), in the queue of finished ones (8 bytes, which may
/// have doubled), and the allocator.
pub const ENTRY_BYTES: usize = size_of::<Entry>() + 64;
/// Counted for a stored answer besides its bytes: itself, and 16 for the allocator three times.
pub const REPLY_BYTES: usize = size_of::<StoredReply>() + 48;
/// Counted for a waiter: its key, and as much again because the list doubles when it grows.
pub const WAITER_BYTES: usize = 2 * size_of::<MsgKey>();
/// Messages that can wait for one in flight. A client that repeats itself each 100 ms through the
/// default deadline of 5 s has 50.
pub const WAITERS_MAX: usize = 64;
/// Finished ids looked at when one is begun: more than the one that can be added for it, so that
/// the queue of finished ones shrinks even if nobody calls [`DedupWindow::expire`].
const EXPIRE_PER_BEGIN: usize = 2;
/// Entries that room in the table is made for at the start, so that the default of 100,000 never
/// rehashes under load.
const RESERVE_MAX: usize = 1 << 17;

/// Whose ids these are. The kind is part of the key: no user name can be a session's id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner<'a> {
    /// An authenticated user.
    User(&'a str),
    /// A session without one.
    Session(&'a SessionId),
}

/// A message's idempotency key in full, hashed once: made by [`DedupWindow::id`].
#[derive(Clone, Copy, Debug)]
pub struct DedupId<'a> {
    tenant: TenantId,
    owner: Owner<'a>,
    id: &'a str,
    fingerprint: u128,
    hash: u64,
}

/// What is known of an id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup<'a> {
    /// Nothing: execute it.
    New,
    /// It is being executed: wait for it ([`DedupWindow::add_waiter`]).
    InFlight(DedupKey),
    /// It ended so.
    Finished(&'a StoredReply),
    /// It ended, and its answer is not stored: DUPLICATE.
    FinishedNotStored,
    /// It was used for another msg_id or payload: BAD_MESSAGE.
    Mismatch,
}

/// A terminal answer, as it is given again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredReply {
    /// Canonical gRPC code.
    pub status: u32,
    /// The gateway's word, if it made the answer.
    pub reason: Option<Reason>,
    /// For people.
    pub message: Box<str>,
    /// As the service sent it.
    pub payload: Box<[u8]>,
    /// Whether JSON clients get it as base64.
    pub is_bytes: bool,
    /// 0 = absent.
    pub retry_after_ms: u32,
}

#[derive(Debug)]
struct Entry {
    hash: u64,
    fingerprint: u128,
    tenant: TenantId,
    is_user: bool,
    /// Where the owner ends in `key`.
    owner_len: u32,
    /// Owner and id.
    key: Box<[u8]>,
    state: IdState,
}

#[derive(Debug)]
enum IdState {
    InFlight { waiters: Vec<MsgKey> },
    Finished { at: Micros, reply: Option<Box<StoredReply>> },
}

/// The ids a shard remembers. At most once per window: an id is executed again only after
/// `window_ms` from its answer, or after a [`DedupWindow::release`].
///
/// When it is full: expired ids go first; then, if it is bytes that lack, stored answers go, oldest
/// first (their ids stay, and a duplicate is told DUPLICATE); then a new id is refused. To forget
/// an id before its time would break the promise in silence, so it is not done; and an id in flight
/// is never forgotten.
#[derive(Debug)]
pub struct DedupWindow {
    entries: Slab<DedupKey, Entry>,
    table: HashTable<DedupKey>,
    /// Ids that ended, by time. A key may be stale: its id had expired and was begun anew.
    finished: VecDeque<DedupKey>,
    /// How many at the front of `finished` surely have no stored answer.
    stripped: usize,
    bytes: usize,
    /// The part of `bytes` that is stored answers.
    stored_bytes: usize,
    bytes_max: usize,
    reply_bytes_max: usize,
    window_us: u64,
    seed: u64,
    /// When the last id ended: time never runs back in `finished`.
    last: Micros,
}

/// What an id stands for: the same for a repetition of the same message, and 2^-128 else.
pub fn fingerprint(msg_id: u32, payload: &[u8]) -> u128 {
    // Spread over the seed's 64 bits, because XXH3 XORs seeds into short inputs: two small numbers
    // could be made up for by two payloads.
    xxh3_128_with_seed(payload, u64::from(msg_id).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

impl DedupWindow {
    /// An empty window. `seed` keeps clients from choosing where their ids fall in the table.
    pub fn new(settings: &DedupSettings, seed: u64) -> Self {
        Self {
            entries: Slab::with_capacity_max(settings.entries_max),
            table: HashTable::with_capacity(settings.entries_max.min(RESERVE_MAX)),
            finished: VecDeque::new(),
            stripped: 0,
            bytes: 0,
            stored_bytes: 0,
            bytes_max: settings.bytes_max,
            reply_bytes_max: settings.reply_bytes_max,
            window_us: settings.window_ms.saturating_mul(1000),
            seed,
            last: Micros(0),
        }
    }

    /// Changes caps and window, also for what is in it; the number of ids stays.
    pub fn set_limits(&mut self, settings: &DedupSettings) {
        self.bytes_max = settings.bytes_max;
        self.reply_bytes_max = settings.reply_bytes_max;
        self.window_us = settings.window_ms.saturating_mul(1000);
    }

    /// The full key of a message, to ask with. `fingerprint` is [`fingerprint`] of the message.
    pub fn id<'a>(
        &self,
        tenant: TenantId,
        owner: Owner<'a>,
        id: &'a str,
        fingerprint: u128,
    ) -> DedupId<'a> {
        let scope = self.seed ^ tenant.0;
        let hash = xxh3_64_with_seed(owner.bytes(), scope);
        let hash = xxh3_64_with_seed(id.as_bytes(), hash);
        DedupId { tenant, owner, id, fingerprint, hash }
    }

    /// What is known of `id`.
    pub fn check(&self, id: &DedupId, now: Micros) -> Lookup<'_> {
        let Some((key, entry)) = self.find(id) else { return Lookup::New };
        if self.is_expired(entry, now) {
            return Lookup::New;
        }
        if entry.fingerprint != id.fingerprint {
            return Lookup::Mismatch;
        }
        match &entry.state {
            IdState::InFlight { .. } => Lookup::InFlight(key),
            IdState::Finished { reply: Some(reply), .. } => Lookup::Finished(reply),
            IdState::Finished { reply: None, .. } => Lookup::FinishedNotStored,
        }
    }

    /// Remembers `id`, which [`DedupWindow::check`] called new, as being executed. `None` if there
    /// is no room (QUEUE_FULL), or if it is not new.
    pub fn begin(&mut self, id: &DedupId, now: Micros) -> Option<DedupKey> {
        self.expire(now, EXPIRE_PER_BEGIN);
        if let Some((key, entry)) = self.find(id) {
            if !self.is_expired(entry, now) {
                return None;
            }
            self.remove(key);
        }
        let owner = id.owner.bytes();
        let cost = ENTRY_BYTES + owner.len() + id.id.len();
        while self.entries.is_full() {
            if !self.expire_one(now) {
                return None;
            }
        }
        if !self.make_room(cost, now) {
            return None;
        }
        let key = self.entries.insert(Entry {
            hash: id.hash,
            fingerprint: id.fingerprint,
            tenant: id.tenant,
            is_user: id.owner.is_user(),
            owner_len: owner.len() as u32,
            key: [owner, id.id.as_bytes()].concat().into(),
            state: IdState::InFlight { waiters: Vec::new() },
        });
        self.bytes += cost;
        let entries = &self.entries;
        self.table
            .insert_unique(id.hash, key, |&key| entries.get(key).map_or(0, |entry| entry.hash));
        Some(key)
    }

    /// Lets `waiter` wait for the answer of the id `key`. False if `key` is not in flight, or if
    /// there is no room ([`WAITERS_MAX`], or bytes).
    #[must_use]
    pub fn add_waiter(&mut self, key: DedupKey, waiter: MsgKey, now: Micros) -> bool {
        if self.waiting(key).is_none_or(|n| n >= WAITERS_MAX) || !self.make_room(WAITER_BYTES, now)
        {
            return false;
        }
        let Some(Entry { state: IdState::InFlight { waiters }, .. }) = self.entries.get_mut(key)
        else {
            return false;
        };
        waiters.push(waiter);
        self.bytes += WAITER_BYTES;
        true
    }

    /// The id `key` ended: it is remembered from now on for the window, with its answer if that is
    /// neither too large nor over the bytes. Gives those who wait for the answer; nobody if `key`
    /// is not in flight.
    pub fn finish(
        &mut self,
        key: DedupKey,
        reply: Option<StoredReply>,
        now: Micros,
    ) -> Vec<MsgKey> {
        let Some(entry) = self.entries.get_mut(key) else { return Vec::new() };
        let IdState::InFlight { waiters } = &mut entry.state else { return Vec::new() };
        let waiters = std::mem::take(waiters);
        self.bytes -= waiters.len() * WAITER_BYTES;
        self.last = self.last.max(now);
        entry.state = IdState::Finished { at: self.last, reply: None };
        if let Some(reply) = reply.filter(|r| r.size() <= self.reply_bytes_max) {
            let cost = reply.cost();
            if self.make_room(cost, now)
                && let Some(entry) = self.entries.get_mut(key)
            {
                entry.state = IdState::Finished { at: self.last, reply: Some(Box::new(reply)) };
                self.bytes += cost;
                self.stored_bytes += cost;
            }
        }
        self.finished.push_back(key);
        waiters
    }

    /// The message of `key` was refused before it was sent: the id is free again. Gives those who
    /// wait for it; nobody if `key` is not in flight.
    pub fn release(&mut self, key: DedupKey) -> Vec<MsgKey> {
        match self.entries.get_mut(key) {
            Some(Entry { state: IdState::InFlight { waiters }, .. }) => {
                let waiters = std::mem::take(waiters);
                self.bytes -= waiters.len() * WAITER_BYTES;
                self.remove(key);
                waiters
            }
            Some(Entry { state: IdState::Finished { .. }, .. }) | None => Vec::new(),
        }
    }

    /// Forgets up to `budget` ids whose window has passed.
    pub fn expire(&mut self, now: Micros, budget: usize) {
        for _ in 0..budget {
            if !self.expire_one(now) {
                return;
            }
        }
    }

    /// Ids remembered, expired ones that were not dropped yet included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it remembers nothing.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes counted for keys, waiters and stored answers.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Messages that wait for `key`; `None` if that is not in flight.
    pub fn waiting(&self, key: DedupKey) -> Option<usize> {
        match &self.entries.get(key)?.state {
            IdState::InFlight { waiters } => Some(waiters.len()),
            IdState::Finished { .. } => None,
        }
    }

    fn find(&self, id: &DedupId) -> Option<(DedupKey, &Entry)> {
        let key = *self
            .table
            .find(id.hash, |&key| self.entries.get(key).is_some_and(|entry| entry.is(id)))?;
        Some((key, self.entries.get(key)?))
    }

    fn is_expired(&self, entry: &Entry, now: Micros) -> bool {
        match entry.state {
            IdState::InFlight { .. } => false,
            IdState::Finished { at, .. } => now.since(at) >= self.window_us,
        }
    }

    /// Drops the id that ended first if it is expired. False if it is not, or there is none.
    fn expire_one(&mut self, now: Micros) -> bool {
        let Some(&key) = self.finished.front() else { return false };
        if self.entries.get(key).is_some_and(|entry| !self.is_expired(entry, now)) {
            return false;
        }
        self.finished.pop_front();
        self.stripped = self.stripped.saturating_sub(1);
        self.remove(key);
        true
    }

    /// Makes `cost` bytes free: drops expired ids, then the oldest stored answers if those are
    /// enough.
    fn make_room(&mut self, cost: usize, now: Micros) -> bool {
        while self.bytes + cost > self.bytes_max && self.expire_one(now) {}
        if self.bytes - self.stored_bytes + cost > self.bytes_max {
            return false;
        }
        while self.bytes + cost > self.bytes_max && self.strip_one() {}
        true
    }

    /// Drops the oldest stored answer. False if there is none.
    fn strip_one(&mut self) -> bool {
        while let Some(&key) = self.finished.get(self.stripped) {
            self.stripped += 1;
            if let Some(Entry { state: IdState::Finished { reply, .. }, .. }) =
                self.entries.get_mut(key)
                && let Some(reply) = reply.take()
            {
                self.bytes -= reply.cost();
                self.stored_bytes -= reply.cost();
                return true;
            }
        }
        false
    }

    /// Takes an id without waiters out of everything but `finished`.
    fn remove(&mut self, key: DedupKey) {
        let Some(entry) = self.entries.remove(key) else { return };
        if let Ok(found) = self.table.find_entry(entry.hash, |&k| k == key) {
            found.remove();
        }
        self.bytes -= ENTRY_BYTES + entry.key.len();
        match entry.state {
            IdState::InFlight { .. } => {}
            IdState::Finished { reply, .. } => {
                let cost = reply.map_or(0, |r| r.cost());
                self.bytes -= cost;
                self.stored_bytes -= cost;
            }
        }
    }
}

impl<'a> Owner<'a> {
    fn bytes(&self) -> &'a [u8] {
        match self {
            Owner::User(name) => name.as_bytes(),
            Owner::Session(id) => id.as_str().as_bytes(),
        }
    }

    fn is_user(&self) -> bool {
        match self {
            Owner::User(_) => true,
            Owner::Session(_) => false,
        }
    }
}

impl Entry {
    /// Whether it is the entry of `id`: the full keys are compared.
    fn is(&self, id: &DedupId) -> bool {
        let (owner, text) = self.key.split_at(self.owner_len as usize);
        self.hash == id.hash
            && self.tenant == id.tenant
            && self.is_user == id.owner.is_user()
            && owner == id.owner.bytes()
            && text == id.id.as_bytes()
    }
}

impl StoredReply {
    /// Bytes of its text and payload: what `reply_bytes_max` bounds.
    fn size(&self) -> usize {
        self.message.len() + self.payload.len()
    }

    /// Bytes counted for it.
    fn cost(&self) -> usize {
        REPLY_BYTES + self.size()
    }
}

#[cfg(test)]
mod tests;
