//! The deduplication window (promise 8): idempotency keys whose message is being executed, and the
//! answers of those that ended.

use std::collections::VecDeque;
use std::mem::size_of;

use hashbrown::HashTable;
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

use crate::config::settings::DedupSettings;
use crate::engine::owner::Holder;
use crate::engine::shares::{Asker, Part, ShareKey, Shares};
use crate::engine::slab::Slab;
use crate::ids::{DedupKey, MsgKey, SessionId, TenantId};
use crate::message::{Micros, Reason, whole_ms};
use crate::routing::TenantTable;

/// Bytes counted for a remembered id besides those of its key: the entry, and 16 each for its slot,
/// its place in the table (9 bytes at a load of 7/16 to 7/8), its place in the queue of finished
/// ids (8 bytes, which may have doubled), and the allocator. Its owner counts as if it held no
/// other id.
pub(crate) const ENTRY_BYTES: usize = size_of::<Entry>() + 64 + Shares::<3>::OWNER_BYTES;
/// Bytes counted for a stored answer besides its text and payload: the struct, and 16 for the
/// allocator three times.
const REPLY_BYTES: usize = size_of::<StoredReply>() + 48;
/// Bytes counted for a duplicate that waits: its key, and as much again because the list doubles
/// when it grows.
const WAITER_BYTES: usize = 2 * size_of::<MsgKey>();
/// Duplicates that can wait for one message in flight. A client that repeats a message each 100 ms
/// through the default deadline of 5 s has 50. They are all of the one owner of the id, so nobody
/// else finds these places taken; of all requests under way they leave a quarter to first messages
/// (`DUPLICATES_BELOW` in admission).
const WAITERS_MAX: usize = 64;
/// Finished ids examined when an id is begun: more than the one that can be added for it, so that
/// the queue of finished ids shrinks even without a call of [`DedupWindow::expire`].
const EXPIRE_PER_BEGIN: usize = 2;
/// Finished ids that are looked at to tell when there will be room: of as many in a row one was
/// free for whoever came first, unless a window turns in which most ids were taken from what is
/// kept; then the time is that of the last of them, and the client is told another one after it.
const LOOK_AHEAD: usize = 64;
/// Room for ids, in bytes: all of it is `bytes_max`, and an id takes its own bytes, or as much as
/// lets `entries_max` of them fill it.
const IDS: usize = 0;
/// Bytes of stored answers.
const ANSWERS: usize = 1;
/// Number of ids, of which a tenant may have a quota.
const COUNT: usize = 2;
/// Entries for which the table reserves room at the start, so that the default of 100,000 never
/// rehashes under load.
const RESERVE_MAX: usize = 1 << 17;

/// The scope in which an idempotency key is unique. The kind is part of the full key: no user name
/// can be taken for the id of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope<'a> {
    /// Name of the user who signed in.
    User(&'a str),
    /// Id of a session without a user.
    Session(&'a SessionId),
}

/// The idempotency key of a message in full, hashed once: made by [`DedupWindow::id`].
#[derive(Clone, Copy, Debug)]
pub struct DedupId<'a> {
    /// Tenant of the scope, and owner for whom the id counts.
    holder: Holder,
    scope: Scope<'a>,
    id: &'a str,
    fingerprint: u128,
    hash: u64,
}

/// The result of looking an id up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lookup<'a> {
    /// The window does not know the id: the message is to be executed.
    New,
    /// Another message with the id is being executed: wait ([`DedupWindow::add_waiter`]).
    InFlight(DedupKey),
    /// The message with the id ended with this answer.
    Finished(&'a StoredReply),
    /// The message with the id ended, and its answer is not stored: DUPLICATE.
    FinishedNotStored,
    /// The id was used for another msg_id or payload: BAD_MESSAGE.
    Mismatch,
}

/// A terminal answer, kept to be given again to duplicates.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct StoredReply {
    /// Canonical gRPC code.
    pub status: u32,
    /// Reason of an answer that the gateway made; `None` for the service's.
    pub reason: Option<Reason>,
    /// Error text for people.
    pub message: Box<str>,
    pub payload: Box<[u8]>,
    /// Whether JSON clients get the payload as base64.
    pub is_bytes: bool,
    /// Milliseconds after which to try again; 0 = absent.
    pub retry_after_ms: u32,
}

/// The reason why an id is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NoRoom {
    /// Whether its owner holds too much; otherwise the window is full.
    pub is_over_share: bool,
    /// Milliseconds until there may be room: until ids enough have ended their window.
    pub retry_after_ms: u32,
}

#[derive(Debug)]
struct Entry {
    hash: u64,
    fingerprint: u128,
    tenant: TenantId,
    /// The owner for whom the id counts.
    owner: ShareKey,
    is_user: bool,
    /// The part of [`IDS`] that the id was taken from.
    part: Part,
    /// What the id takes of [`IDS`].
    room: usize,
    /// Bytes of `key` that are the scope.
    scope_len: u32,
    /// Scope, then id.
    key: Box<[u8]>,
    state: IdState,
}

#[derive(Debug)]
enum IdState {
    InFlight { waiters: Vec<MsgKey> },
    Finished { at: Micros, reply: Option<Box<StoredReply>> },
}

/// The ids that a shard remembers. A message runs at most once per window: its id is executed again
/// only after `window_ms` from its answer, or after a `release`.
///
/// A full window first drops expired ids; then, if bytes are what is missing, stored answers,
/// oldest first (their ids stay, and duplicates get DUPLICATE); then it refuses new ids. It never
/// forgets an id before its time, because that would break promise 8 in silence, nor an id in
/// flight.
///
/// Ids, their bytes and those of stored answers are shared fairly between owners (promise 6): a
/// part of the room for ids is kept for those that hold little ([`Shares`]), and no answer of
/// another owner is dropped for one that is over its share.
#[derive(Debug)]
pub struct DedupWindow {
    entries: Slab<DedupKey, Entry>,
    table: HashTable<DedupKey>,
    /// Ids that ended, by time. A key may be stale: its id expired and was begun anew.
    finished: VecDeque<DedupKey>,
    /// Ids at the front of `finished` that surely have no stored answer.
    stripped: usize,
    bytes: usize,
    /// Part of `bytes` that belongs to stored answers.
    stored_bytes: usize,
    /// What owners hold of [`IDS`] and of [`ANSWERS`].
    shares: Shares<3>,
    entries_max: usize,
    bytes_max: usize,
    reply_bytes_max: usize,
    window_us: u64,
    seed: u64,
    /// Time at which the last id ended: time never runs back in `finished`.
    last: Micros,
    /// Time in which the shard was stopped: repetitions that came meanwhile are read after it, so
    /// it is no part of the window.
    paused_us: u64,
}

/// Hash of the message for which an id is used: equal for repetitions, and for two different
/// messages with a chance of 2^-128.
pub fn fingerprint(msg_id: u32, payload: &[u8]) -> u128 {
    // The factor spreads the id over the seed's 64 bits. XXH3 XORs the seed into short inputs, so
    // that the difference of two small numbers could be undone by that of two payloads.
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
            shares: Shares::with_capacity(settings.entries_max.min(RESERVE_MAX)),
            entries_max: settings.entries_max,
            bytes_max: settings.bytes_max,
            reply_bytes_max: settings.reply_bytes_max,
            window_us: settings.window_ms.saturating_mul(1000),
            seed,
            last: Micros(0),
            paused_us: 0,
        }
    }

    /// Changes the byte caps and the length of the window, also for remembered ids. The cap on the
    /// number of ids stays.
    pub(crate) fn set_limits(&mut self, settings: &DedupSettings) {
        self.bytes_max = settings.bytes_max;
        self.reply_bytes_max = settings.reply_bytes_max;
        self.window_us = settings.window_ms.saturating_mul(1000);
    }

    /// Gives tenants their weights.
    pub fn set_weights(&mut self, tenants: &TenantTable) {
        self.shares.set_weights(tenants);
    }

    /// Makes the full key of a message of `holder` for the other methods. `fingerprint` is
    /// [`fingerprint`] of the message.
    pub fn id<'a>(
        &self,
        holder: Holder,
        scope: Scope<'a>,
        id: &'a str,
        fingerprint: u128,
    ) -> DedupId<'a> {
        let hash = xxh3_64_with_seed(scope.bytes(), self.seed ^ holder.tenant.0);
        let hash = xxh3_64_with_seed(id.as_bytes(), hash);
        DedupId { holder, scope, id, fingerprint, hash }
    }

    /// Looks up what the window knows of `id`.
    pub(crate) fn check(&self, id: &DedupId, now: Micros) -> Lookup<'_> {
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

    /// Remembers an id that is new as being executed. `None` if there is no room (QUEUE_FULL), or
    /// if the id is not new.
    pub fn begin(&mut self, id: &DedupId, now: Micros) -> Option<DedupKey> {
        self.expire(now, EXPIRE_PER_BEGIN);
        if let Some((key, entry)) = self.find(id) {
            if !self.is_expired(entry, now) {
                return None;
            }
            self.remove(key);
        }
        let scope = id.scope.bytes();
        let cost = ENTRY_BYTES + scope.len() + id.id.len();
        let (holder, room) = (id.holder, self.room_of(cost));
        // What is kept is touched only when nothing has expired any more.
        let part = loop {
            let part = self.shares.part_for(&holder, room, self.bytes_max);
            let part = part.filter(|_| !self.entries.is_full());
            if part == Some(Part::Free) || !self.expire_one(now) {
                break part?;
            }
        };
        if !self.make_room(cost, Asker::Named(&holder), (IDS, room), now) {
            return None;
        }
        let owner = self.shares.take(&holder, [room, 0, 1], part);
        let key = self.entries.insert(Entry {
            hash: id.hash,
            fingerprint: id.fingerprint,
            tenant: holder.tenant,
            owner,
            is_user: id.scope.is_user(),
            part,
            room,
            scope_len: scope.len() as u32,
            key: [scope, id.id.as_bytes()].concat().into(),
            state: IdState::InFlight { waiters: Vec::new() },
        });
        self.bytes += cost;
        let entries = &self.entries;
        self.table
            .insert_unique(id.hash, key, |&key| entries.get(key).map_or(0, |entry| entry.hash));
        Some(key)
    }

    /// Why a new id has no room, and when it may have some; after [`DedupWindow::begin`] said so.
    pub(crate) fn no_room(&self, id: &DedupId, now: Micros) -> NoRoom {
        let room = self.room_of(ENTRY_BYTES + id.scope.bytes().len() + id.id.len());
        let is_over_share = self.shares.is_kept(room, self.bytes_max);
        // The ids that must end their window first: their room is then free for everybody.
        let mut lacking = self.shares.lacking(room, self.bytes_max).max(1);
        let mut last = None;
        for entry in self.finished.iter().take(LOOK_AHEAD).map(|&key| self.entries.get(key)) {
            let Some(Entry { part, room, state: IdState::Finished { at, .. }, .. }) = entry else {
                continue;
            };
            last = Some(*at);
            lacking = match part {
                Part::Free => lacking.saturating_sub(*room),
                Part::Tenants | Part::Parties | Part::Sessions => lacking,
            };
            if lacking == 0 {
                break;
            }
        }
        // With none that have ended, nobody knows when those under way will: ask in a second.
        let left_us = |at| self.window_us.saturating_sub(self.awake(now).since(at));
        let wait_us = last.map_or(1_000_000, left_us);
        NoRoom { is_over_share, retry_after_ms: whole_ms(wait_us).max(1) }
    }

    /// Number of ids of a tenant that are remembered.
    pub fn ids_of(&self, tenant: TenantId) -> usize {
        self.shares.held_by(tenant, COUNT)
    }

    /// Milliseconds until an id of a tenant ends its window, as far as can be seen: of ids under
    /// way nobody knows when that begins.
    pub fn wait_ms(&self, tenant: TenantId, now: Micros) -> u32 {
        let ended = self.finished.iter().take(LOOK_AHEAD).filter_map(|&key| self.entries.get(key));
        let mut last = None;
        for entry in ended {
            let IdState::Finished { at, .. } = entry.state else { continue };
            last = Some(at);
            if entry.tenant == tenant {
                break;
            }
        }
        // Those behind the last one that was looked at ended after it.
        let left_us = |at| self.window_us.saturating_sub(self.awake(now).since(at));
        whole_ms(last.map_or(1_000_000, left_us)).max(1)
    }

    /// What an id of `cost` bytes takes of [`IDS`]: its part of the bytes or of the number of ids,
    /// whichever is more.
    fn room_of(&self, cost: usize) -> usize {
        cost.max(self.bytes_max / self.entries_max)
    }

    /// Lets `waiter` wait for the answer of the id `key`. False if `key` is not in flight, or if
    /// there is no room ([`WAITERS_MAX`], or bytes).
    #[must_use]
    pub(crate) fn add_waiter(&mut self, key: DedupKey, waiter: MsgKey, now: Micros) -> bool {
        let Some(owner) = self.entries.get(key).map(|entry| entry.owner) else { return false };
        if self.waiting(key).is_none_or(|n| n >= WAITERS_MAX)
            || !self.make_room(WAITER_BYTES, Asker::Known(owner), (IDS, 0), now)
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

    /// Ends the id `key`: it is remembered from now on for the window, with its answer if that is
    /// neither too large nor over the byte cap. Returns the duplicates that wait for the answer;
    /// none if `key` is not in flight.
    pub fn finish(
        &mut self,
        key: DedupKey,
        reply: Option<StoredReply>,
        now: Micros,
    ) -> Vec<MsgKey> {
        let awake = self.awake(now);
        let Some(entry) = self.entries.get_mut(key) else { return Vec::new() };
        let IdState::InFlight { waiters } = &mut entry.state else { return Vec::new() };
        let waiters = std::mem::take(waiters);
        let owner = entry.owner;
        self.bytes -= waiters.len() * WAITER_BYTES;
        self.last = self.last.max(awake);
        entry.state = IdState::Finished { at: self.last, reply: None };
        if let Some(reply) = reply.filter(|r| r.size() <= self.reply_bytes_max) {
            let cost = reply.cost();
            if self.make_room(cost, Asker::Known(owner), (ANSWERS, cost), now)
                && let Some(entry) = self.entries.get_mut(key)
            {
                self.shares.take_more(owner, ANSWERS, cost);
                entry.state = IdState::Finished { at: self.last, reply: Some(Box::new(reply)) };
                self.bytes += cost;
                self.stored_bytes += cost;
            }
        }
        self.finished.push_back(key);
        waiters
    }

    /// Frees the id `key`, because its message did not run. Returns the duplicates that wait for
    /// its answer; none if `key` is not in flight.
    pub(crate) fn release(&mut self, key: DedupKey) -> Vec<MsgKey> {
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
    pub(crate) fn expire(&mut self, now: Micros, budget: usize) {
        for _ in 0..budget {
            if !self.expire_one(now) {
                return;
            }
        }
    }

    /// Number of remembered ids, with expired ones that were not dropped yet.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes counted for keys, waiters and stored answers.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of duplicates that wait for `key`; `None` if that is not in flight.
    pub(crate) fn waiting(&self, key: DedupKey) -> Option<usize> {
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

    /// Leaves out a time in which the shard was stopped.
    pub fn put_off(&mut self, us: u64) {
        self.paused_us += us;
    }

    /// The time without the pauses.
    fn awake(&self, now: Micros) -> Micros {
        Micros(now.0.saturating_sub(self.paused_us))
    }

    fn is_expired(&self, entry: &Entry, now: Micros) -> bool {
        match entry.state {
            IdState::InFlight { .. } => false,
            IdState::Finished { at, .. } => self.awake(now).since(at) >= self.window_us,
        }
    }

    /// Drops the id that ended first if it has expired. False if it has not, or there is none.
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

    /// Frees `cost` bytes for `asker`, which takes `amount` of a thing: drops expired ids, then
    /// the oldest stored answers, but none of another owner for one that is over its share of the
    /// thing. False if there is no room.
    fn make_room(
        &mut self,
        cost: usize,
        asker: Asker<'_>,
        (thing, amount): (usize, usize),
        now: Micros,
    ) -> bool {
        while self.bytes + cost > self.bytes_max && self.expire_one(now) {}
        if self.bytes - self.stored_bytes + cost > self.bytes_max {
            return false;
        }
        while self.bytes + cost > self.bytes_max {
            let Some(oldest) = self.oldest_answer() else { return false };
            let owner = self.entries.get(oldest).map(|entry| entry.owner);
            let is_own = owner.is_some_and(|owner| self.shares.is(asker, owner));
            if !is_own && !self.shares.is_within(asker, thing, amount, self.bytes_max) {
                return false;
            }
            self.strip_one();
        }
        true
    }

    /// Id of the oldest stored answer.
    fn oldest_answer(&mut self) -> Option<DedupKey> {
        while let Some(&key) = self.finished.get(self.stripped) {
            if let Some(Entry { state: IdState::Finished { reply: Some(_), .. }, .. }) =
                self.entries.get(key)
            {
                return Some(key);
            }
            self.stripped += 1;
        }
        None
    }

    /// Drops the oldest stored answer. False if there is none.
    fn strip_one(&mut self) -> bool {
        let Some(key) = self.oldest_answer() else { return false };
        let entry = self.entries.get_mut(key).expect("it has an answer");
        let IdState::Finished { reply, .. } = &mut entry.state else { return false };
        let cost = reply.take().map_or(0, |reply| reply.cost());
        self.bytes -= cost;
        self.stored_bytes -= cost;
        self.shares.give_back(entry.owner, [0, cost, 0], entry.part);
        self.stripped += 1;
        true
    }

    /// Removes an id without waiters from everything but `finished`.
    fn remove(&mut self, key: DedupKey) {
        let Some(entry) = self.entries.remove(key) else { return };
        if let Ok(found) = self.table.find_entry(entry.hash, |&k| k == key) {
            found.remove();
        }
        self.bytes -= ENTRY_BYTES + entry.key.len();
        let answer = match entry.state {
            IdState::InFlight { .. } => 0,
            IdState::Finished { reply, .. } => reply.map_or(0, |r| r.cost()),
        };
        self.bytes -= answer;
        self.stored_bytes -= answer;
        self.shares.give_back(entry.owner, [entry.room, answer, 1], entry.part);
    }
}

impl<'a> Scope<'a> {
    fn bytes(&self) -> &'a [u8] {
        match self {
            Scope::User(name) => name.as_bytes(),
            Scope::Session(id) => id.as_str().as_bytes(),
        }
    }

    fn is_user(&self) -> bool {
        match self {
            Scope::User(_) => true,
            Scope::Session(_) => false,
        }
    }
}

impl Entry {
    /// Whether the entry is that of `id`: the full keys are compared.
    fn is(&self, id: &DedupId) -> bool {
        let (scope, text) = self.key.split_at(self.scope_len as usize);
        self.hash == id.hash
            && self.tenant == id.holder.tenant
            && self.is_user == id.scope.is_user()
            && scope == id.scope.bytes()
            && text == id.id.as_bytes()
    }
}

impl StoredReply {
    /// Bytes of text and payload, which `reply_bytes_max` bounds.
    fn size(&self) -> usize {
        self.message.len() + self.payload.len()
    }

    /// Bytes counted against the cap of the window.
    fn cost(&self) -> usize {
        REPLY_BYTES + self.size()
    }
}

#[cfg(test)]
mod tests;
