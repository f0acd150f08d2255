//! The share of its keys that an instance takes, and the instance that a key goes to.

use crate::ids::InstanceId;
use crate::routing::{Failover, Ring};

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
