//! The route cache: owners of affinity hashes, least recently used out first, with a time to live.
//!
//! Owners of messages have no shares in it. One that sends many affinity keys pushes everybody's
//! entries out, and changes nothing by that but the price: what is not found here is looked up on
//! the ring, with the same result. By perf/instructions.toml a look-up on the ring takes 124
//! instructions and a hit 108, of some 5,500 of a message; the entry that is made anew costs a few
//! hundred more. To tell whose an entry is would cost everybody about as much with each message.

use hashbrown::HashTable;

use crate::config::settings::CacheSettings;
use crate::ids::{InstanceId, ServiceId, TenantId};
use crate::message::Micros;

/// Index that ends a list.
const NONE: u32 = u32::MAX;
/// Entries for which room is reserved at the start, so that the default of 100,000 never rehashes
/// under load. An entry takes 5 bytes in the table; in the slab only address space until it is
/// used.
const RESERVE_MAX: usize = 1 << 17;

/// Bytes of an entry: its node, and 5 in a table that is 7/16 to 7/8 full.
pub(crate) const ENTRY_BYTES: usize = std::mem::size_of::<Node>() + 12;

/// Everything on which the instance of a message depends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[allow(missing_docs)]
pub struct RouteKey {
    pub tenant: TenantId,
    pub service: ServiceId,
    /// Result of [`crate::routing::affinity_hash`]. The ring is asked with it, so two values with
    /// one hash have one instance and may share an entry.
    pub hash: u64,
}

/// `RouteKey -> InstanceId`, bounded: the least recently used entry makes room, and every entry
/// expires `ttl` after its insertion.
///
/// The entries are answers of one set of rings: `flush` when those change. Time never
/// runs back: an entry inserted at an earlier time than the one before counts as inserted with it.
#[derive(Debug)]
pub struct RouteCache {
    /// Indexes into `nodes`, by key.
    table: HashTable<u32>,
    nodes: Vec<Node>,
    /// First node without an entry; the others are linked by `used.next`.
    free: u32,
    /// Entries by last use: the head was used last.
    used: List,
    /// Entries by insertion, and so by expiry: the head is the newest.
    aged: List,
    entries_max: usize,
    ttl_us: u64,
    seed: u64,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    key: RouteKey,
    instance: InstanceId,
    inserted: Micros,
    used: Links,
    aged: Links,
}

/// Neighbours of a node in one list.
#[derive(Clone, Copy, Debug)]
struct Links {
    prev: u32,
    next: u32,
}

/// Both ends of one list.
#[derive(Clone, Copy, Debug)]
struct List {
    head: u32,
    tail: u32,
}

const UNLINKED: Links = Links { prev: NONE, next: NONE };
const EMPTY: List = List { head: NONE, tail: NONE };

impl RouteCache {
    /// An empty cache. `seed` keeps a client that chooses its affinity keys from choosing where
    /// they fall in the table.
    pub fn new(settings: &CacheSettings, seed: u64) -> Self {
        // One index means the end of a list.
        let entries_max = settings.entries_max.min(NONE as usize - 1);
        let reserve = entries_max.min(RESERVE_MAX);
        Self {
            table: HashTable::with_capacity(reserve),
            nodes: Vec::with_capacity(reserve),
            free: NONE,
            used: EMPTY,
            aged: EMPTY,
            entries_max,
            ttl_us: settings.ttl_ms.saturating_mul(1000),
            seed,
        }
    }

    /// Changes the time to live, also of entries that exist.
    pub(crate) fn set_ttl(&mut self, ttl_ms: u64) {
        self.ttl_us = ttl_ms.saturating_mul(1000);
    }

    /// Looks up the instance of `key`, which counts as a use. An expired entry is a miss, and is
    /// removed.
    #[inline]
    pub fn get(&mut self, key: &RouteKey, now: Micros) -> Option<InstanceId> {
        let hash = mix(self.seed, key);
        let nodes = &self.nodes;
        let index = *self.table.find(hash, |&i| nodes[i as usize].key == *key)?;
        let node = &self.nodes[index as usize];
        let instance = node.instance;
        if self.expired(node, now) {
            self.remove(index);
            return None;
        }
        if self.used.head != index {
            self.used.unlink(&mut self.nodes, index, |n| &mut n.used);
            self.used.push(&mut self.nodes, index, |n| &mut n.used);
        }
        Some(instance)
    }

    /// Looks up the instance of `key` and its age in microseconds. Does not count as a use.
    pub(crate) fn peek(&self, key: &RouteKey, now: Micros) -> Option<(InstanceId, u64)> {
        let index =
            *self.table.find(mix(self.seed, key), |&i| self.nodes[i as usize].key == *key)?;
        let node = Some(&self.nodes[index as usize]).filter(|node| !self.expired(node, now))?;
        Some((node.instance, now.since(node.inserted)))
    }

    /// Stores the instance of `key` from now on; the least recently used entry makes room.
    pub fn insert(&mut self, key: RouteKey, instance: InstanceId, now: Micros) {
        if self.entries_max == 0 {
            return;
        }
        let newest = self.nodes.get(self.aged.head as usize).map_or(Micros(0), |n| n.inserted);
        let node =
            Node { key, instance, inserted: now.max(newest), used: UNLINKED, aged: UNLINKED };
        let hash = mix(self.seed, &key);
        let nodes = &self.nodes;
        let index = match self.table.find(hash, |&i| nodes[i as usize].key == key) {
            Some(&index) => {
                self.unlink(index);
                self.nodes[index as usize] = node;
                index
            }
            None => {
                if self.table.len() >= self.entries_max {
                    self.remove(self.used.tail);
                }
                let index = self.store(node);
                let (nodes, seed) = (&self.nodes, self.seed);
                self.table.insert_unique(hash, index, |&i| mix(seed, &nodes[i as usize].key));
                index
            }
        };
        self.used.push(&mut self.nodes, index, |n| &mut n.used);
        self.aged.push(&mut self.nodes, index, |n| &mut n.aged);
    }

    /// Removes all entries and keeps the memory.
    pub(crate) fn flush(&mut self) {
        self.table.clear();
        self.nodes.clear();
        self.free = NONE;
        self.used = EMPTY;
        self.aged = EMPTY;
    }

    /// Number of entries, with expired ones that were not removed yet.
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Number of entries that are not expired. Costs one step for each expired entry that was not
    /// removed yet.
    pub(crate) fn active(&self, now: Micros) -> usize {
        let mut expired = 0;
        let mut at = self.aged.tail;
        while let Some(node) = self.nodes.get(at as usize).filter(|n| self.expired(n, now)) {
            expired += 1;
            at = node.aged.prev;
        }
        self.table.len() - expired
    }

    /// Removes up to `budget` expired entries, oldest first.
    pub(crate) fn expire(&mut self, now: Micros, budget: usize) {
        for _ in 0..budget {
            let oldest = self.aged.tail;
            match self.nodes.get(oldest as usize) {
                Some(node) if self.expired(node, now) => self.remove(oldest),
                Some(_) | None => return,
            }
        }
    }

    #[inline]
    fn expired(&self, node: &Node, now: Micros) -> bool {
        now.since(node.inserted) >= self.ttl_us
    }

    /// Stores `node`, in no list yet, and returns its index.
    fn store(&mut self, node: Node) -> u32 {
        if self.free == NONE {
            self.nodes.push(node);
            return self.nodes.len() as u32 - 1;
        }
        let index = self.free;
        self.free = self.nodes[index as usize].used.next;
        self.nodes[index as usize] = node;
        index
    }

    /// Removes the entry from the table and both lists.
    fn remove(&mut self, index: u32) {
        let hash = mix(self.seed, &self.nodes[index as usize].key);
        if let Ok(found) = self.table.find_entry(hash, |&i| i == index) {
            found.remove();
        }
        self.unlink(index);
        self.nodes[index as usize].used.next = self.free;
        self.free = index;
    }

    /// Removes the node from both lists.
    fn unlink(&mut self, index: u32) {
        self.used.unlink(&mut self.nodes, index, |n| &mut n.used);
        self.aged.unlink(&mut self.nodes, index, |n| &mut n.aged);
    }
}

impl List {
    /// Makes `index`, which is in no list of this kind, the head.
    #[inline]
    fn push(&mut self, nodes: &mut [Node], index: u32, links: impl Fn(&mut Node) -> &mut Links) {
        *links(&mut nodes[index as usize]) = Links { prev: NONE, next: self.head };
        match nodes.get_mut(self.head as usize) {
            Some(head) => links(head).prev = index,
            None => self.tail = index,
        }
        self.head = index;
    }

    /// Removes `index`, which is in this list.
    #[inline]
    fn unlink(&mut self, nodes: &mut [Node], index: u32, links: impl Fn(&mut Node) -> &mut Links) {
        let Links { prev, next } = *links(&mut nodes[index as usize]);
        match nodes.get_mut(prev as usize) {
            Some(node) => links(node).next = next,
            None => self.head = next,
        }
        match nodes.get_mut(next as usize) {
            Some(node) => links(node).prev = prev,
            None => self.tail = prev,
        }
    }
}

/// Hash of a key for the table. The affinity hash is XXH3 of a value that a client may choose, so
/// it is mixed by a folded multiplication with seed, tenant and service. An odd factor is never
/// zero.
#[inline]
fn mix(seed: u64, key: &RouteKey) -> u64 {
    let scope = key.tenant.0.rotate_left(16) ^ u64::from(key.service.0);
    let factor = 0x9e37_79b9_7f4a_7c15_u64.wrapping_add(scope << 1);
    let product = u128::from(key.hash ^ seed) * u128::from(factor);
    (product >> 64) as u64 ^ product as u64
}

#[cfg(test)]
mod tests;
