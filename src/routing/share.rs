//! The share of its keys that an instance gets, and the instance to which a key goes.

use crate::ids::InstanceId;
use crate::routing::{Failover, Ring};

/// The share of its keys that an instance gets: all, none (ejected), or some while it is on trial
/// or warms up. The keys in a share depend on their hash alone, so every shard and node agrees, and
/// a larger share contains all keys of a smaller one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Share(u8);

impl Share {
    /// Every key.
    pub const ALL: Self = Self(100);
    /// No key.
    pub(crate) const NONE: Self = Self(0);

    /// A share of `percent` of the keys; above 100 is all.
    pub fn percent(percent: u8) -> Self {
        Self(percent.min(100))
    }

    /// The share in percent.
    pub(crate) fn get(self) -> u8 {
        self.0
    }

    /// Whether the key with this affinity hash is in the share.
    pub(crate) fn takes(self, hash: u64) -> bool {
        // Mixed once more: where a hash falls on the ring must not decide whether it is in.
        let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        (mixed * 100) >> 32 < u64::from(self.0)
    }
}

/// The instance that gets the messages of `hash`, whose owner on the ring is `owner`: the owner, or
/// with `failover = "next"` the next instance clockwise.
///
/// `share` is the present share of an instance ([`Share::NONE`] if it cannot be reached), and `not`
/// an instance that is excluded. Instances with part of their keys are passed over for other keys
/// as long as there is another instance. Without failover an owner with any share gets all of its
/// keys: a service that keeps state has it there.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TenantId;
    use crate::routing::affinity_hash;

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
