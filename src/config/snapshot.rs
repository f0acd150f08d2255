//! The compiled routing state: immutable, versioned, shared by all shards behind an `Arc`.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::config::ring::Ring;
use crate::ids::{InstanceId, RouteId, ServiceId, TenantId};
use crate::message::Priority;

/// Everything a shard needs to route. Control publishes a new one for each change.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Rises by one with each published snapshot; caches are flushed when it changes.
    pub version: u64,
    /// Routes, sorted by the first id of their range. Ranges do not overlap (checked).
    pub routes: Vec<Route>,
    /// Services, indexed by [`ServiceId`]: a name keeps its number for the life of the process, so
    /// one that was removed stays here without instances.
    pub services: Vec<Service>,
    /// Instances that exist now, in no particular order.
    pub instances: Vec<Instance>,
}

/// Rule for a range of ids.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// First id.
    pub first: u32,
    /// Last id.
    pub last: u32,
    /// Who handles it.
    pub service: ServiceId,
    /// Class in the queue.
    pub priority: Priority,
    /// Longest time for an answer; a client's own deadline can only shorten it.
    pub timeout_ms: u32,
    /// What is kept in order.
    pub order: Order,
    /// What the instance is chosen by.
    pub hash_on: HashOn,
    /// What payloads are.
    pub payload: PayloadKind,
    /// Whether running a message twice does no harm.
    pub idempotent: bool,
    /// What happens when the instance fails.
    pub failover: Failover,
    /// Unary mode: the gRPC method, `/package.Service/Method`.
    pub method: Option<Arc<str>>,
    /// Whether the service's own error text reaches the client.
    pub service_text: bool,
    /// Whether only clients that signed in may send it.
    pub needs_user: bool,
}

/// `order = "session" | "none"`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// A session's messages with one hash key, in the order sent.
    Session,
    /// None: every slot may be used.
    None,
}

/// `hash_on = "user" | "session" | "key"`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HashOn {
    /// The authenticated user; the session before authentication.
    User,
    /// The session.
    Session,
    /// The message's `key`; the session if it has none.
    Key,
}

/// `payload = "json" | "bytes"`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PayloadKind {
    /// JSON text, both ways.
    Json,
    /// Any bytes; base64 towards JSON clients.
    Bytes,
}

/// `failover = "next" | "none"`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failover {
    /// The next distinct instance on the ring.
    Next,
    /// Answer UNAVAILABLE: the service keeps state.
    None,
}

/// `mode = "batch" | "unary"`
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mode {
    /// `shardgate.backend.v1.Backend/Handle`
    Batch,
    /// Any method of an existing service, one message a call.
    Unary,
}

/// A service and its ring.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: Arc<str>,
    /// How it is called.
    pub mode: Mode,
    /// Consistent-hash ring of its instances, draining ones left out. Empty if it has none. The
    /// same `Arc` as long as the same points are in it.
    pub ring: Arc<Ring>,
}

/// One address of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Dense number for indexing.
    pub id: InstanceId,
    /// Its service.
    pub service: ServiceId,
    /// The operator's name for it; what the ring hashes.
    pub name: Arc<str>,
    /// Where it listens (plain text HTTP/2).
    pub address: SocketAddr,
    /// Relative share of the keys; 1 is normal.
    pub weight: u32,
    /// How many of its keys it gets now.
    pub share: Share,
    /// Not in the ring any more: it gets nothing new, what is in flight is finished.
    pub draining: bool,
}

/// How many of its keys an instance gets: all, none (ejected), or some while it is tried out or
/// warms up. Which ones depends on their hash alone, so every shard and node agrees, and a larger
/// share takes in all keys of a smaller one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Share(u8);

impl Share {
    /// Every key.
    pub const ALL: Self = Self(100);
    /// No key.
    pub const NONE: Self = Self(0);

    /// `percent` of the keys; above 100 is all.
    pub fn percent(percent: u8) -> Self {
        Self(percent.min(100))
    }

    /// In percent.
    pub fn get(self) -> u8 {
        self.0
    }

    /// Whether the key with this affinity hash is in it.
    pub fn takes(self, hash: u64) -> bool {
        // Mixed once more: where a hash falls on the ring must not decide whether it is in.
        let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        (mixed * 100) >> 32 < u64::from(self.0)
    }
}

/// Who gets the messages of `hash`, whose owner on the ring is `owner`: the owner, or with
/// `failover = "next"` the next instance clockwise.
///
/// `share` is what an instance takes now ([`Share::NONE`] if it cannot be reached), `not` one that
/// is not asked for. Instances that take only some keys are passed over by the others as long as
/// there is someone else. Without failover an owner that takes any key takes all of its own: a
/// service that keeps state has them there.
pub fn choose(
    ring: &Ring,
    owner: Option<InstanceId>,
    hash: u64,
    failover: Failover,
    not: Option<InstanceId>,
    share: impl Fn(InstanceId) -> Share,
) -> Option<InstanceId> {
    let asked = |id| Some(id) != not;
    match failover {
        Failover::None => owner.filter(|&id| asked(id) && share(id) != Share::NONE),
        Failover::Next => owner
            .filter(|&id| asked(id) && share(id).takes(hash))
            .or_else(|| ring.find(hash, |id| asked(id) && share(id).takes(hash)))
            .or_else(|| ring.find(hash, |id| asked(id) && share(id) != Share::NONE)),
    }
}

impl Snapshot {
    /// The route whose range holds `msg_id`.
    pub fn route(&self, msg_id: u32) -> Option<(RouteId, &Route)> {
        let after = self.routes.partition_point(|r| r.first <= msg_id);
        let index = after.checked_sub(1)?;
        let route = &self.routes[index];
        (msg_id <= route.last).then_some((RouteId(index as u16), route))
    }

    /// The instance numbered `id`, if it still exists.
    pub fn instance(&self, id: InstanceId) -> Option<&Instance> {
        self.instances.iter().find(|i| i.id == id)
    }
}

/// What the ring is asked with: tenant and affinity value, hashed the same way on every shard, node
/// and restart (XXH3-64, the tenant as seed).
pub fn affinity_hash(tenant: TenantId, value: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(value, tenant.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_share_takes_in_all_keys_of_a_smaller_one() {
        let hashes: Vec<u64> =
            (0..10_000u64).map(|n| affinity_hash(TenantId(0), &n.to_le_bytes())).collect();
        let mut before = 0;
        for percent in 0..=100 {
            let taken = hashes.iter().filter(|&&h| Share::percent(percent).takes(h)).count();
            let smaller = Share::percent(percent.saturating_sub(1));
            let kept = |h: &&u64| smaller.takes(**h) && !Share::percent(percent).takes(**h);
            assert_eq!(hashes.iter().filter(kept).count(), 0);
            assert!(taken >= before && taken.abs_diff(usize::from(percent) * 100) < 200, "{taken}");
            before = taken;
        }
        assert_eq!(before, hashes.len());
    }

    #[test]
    fn someone_who_takes_a_little_is_asked_before_nobody() {
        let id = InstanceId;
        let ring = Ring::new([(id(0), "a", 1), (id(1), "b", 1)], 160);
        let owner = |hash| ring.pick(hash);
        let few = Share::percent(10);
        let hashes = (0..1_000u64).map(|n| affinity_hash(TenantId(0), &n.to_le_bytes()));
        for hash in hashes {
            let all = |share: [Share; 2]| {
                choose(&ring, owner(hash), hash, Failover::Next, None, |i| share[i.0 as usize])
            };
            assert_eq!(all([Share::ALL, Share::ALL]), owner(hash));
            assert_eq!(all([Share::NONE, Share::ALL]), Some(id(1)));
            assert_eq!(all([Share::NONE, few]), Some(id(1)));
            assert_eq!(all([Share::NONE, Share::NONE]), None);
            let tried = all([few, Share::ALL]);
            let own = owner(hash) == Some(id(0)) && few.takes(hash);
            assert_eq!(tried, Some(if own { id(0) } else { id(1) }));
            let state = choose(&ring, owner(hash), hash, Failover::None, None, |i| {
                [few, Share::NONE][i.0 as usize]
            });
            assert_eq!(state, owner(hash).filter(|&i| i == id(0)));
        }
    }
}
