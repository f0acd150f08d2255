//! Ids as small integers. A key of a table names a slot *and* the generation of its entry, so that
//! a stale id finds nothing instead of the slot's new entry.

use std::fmt;

/// Id of a shard: the index of its thread, 0-based.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct ShardId(pub u16);

/// Id of a service: its index in the snapshot's service table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ServiceId(pub u16);

/// Id of an instance, one server of a service. The control thread gives them out, dense, and never
/// reuses one within a process, so shards index by it across snapshots.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct InstanceId(pub u32);

/// Id of a tenant: XXH3-64 of its name, so that every shard, node and restart computes the same
/// number, and hashes by it agree (promise 9). 0 is the default tenant, of clients that name none.
/// An issuer signs the names, so nobody can search for two names with one id; by chance two of
/// 100,000 tenants have the same id once in 3 x 10^9 gateways.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct TenantId(pub u64);

impl TenantId {
    /// The tenant of clients that name none.
    pub(crate) const DEFAULT: Self = Self(0);

    /// The tenant named `name`; an empty name is the default tenant's.
    pub fn of(name: &str) -> Self {
        if name.is_empty() {
            Self::DEFAULT
        } else {
            Self(xxhash_rust::xxh3::xxh3_64(name.as_bytes()))
        }
    }
}

/// The home shard of a user with the affinity hash `hash`. By the low bits: rings place keys by the
/// high ones, and a shard whose users all lie in one arc of them would use few instances.
pub fn home_shard(hash: u64, shards: u16) -> ShardId {
    // Below `shards`, which has 16 bits.
    ShardId((hash % u64::from(shards.max(1))) as u16)
}

/// Bits of a key that hold its slot: 24, so a table has at most 16,777,216 entries.
pub(crate) const SLOT_BITS: u32 = 24;
const SLOT_MASK: u64 = (1 << SLOT_BITS) - 1;

macro_rules! slot_key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        /// Generation (high 40 bits) | slot (low 24 bits). Generation 0 is never used, so the raw
        /// value 0 is free to mean "none". At one reuse of a slot every microsecond 2^40
        /// generations last 12 days; at real rates they do not run out.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u64);

        impl $name {
            /// The key of `slot` in its `generation`.
            pub fn new(generation: u64, slot: u32) -> Self {
                debug_assert!(generation != 0 && u64::from(slot) <= SLOT_MASK);
                Self(generation << SLOT_BITS | u64::from(slot))
            }
            /// The index of the slot.
            pub(crate) fn slot(self) -> usize {
                (self.0 & SLOT_MASK) as usize
            }
            /// The number of the slot's uses so far, this one included.
            pub(crate) fn generation(self) -> u64 {
                self.0 >> SLOT_BITS
            }
        }

        impl From<u64> for $name {
            fn from(raw: u64) -> Self {
                Self(raw)
            }
        }

        impl From<$name> for u64 {
            fn from(key: $name) -> u64 {
                key.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({}g{})"), self.slot(), self.generation())
            }
        }
    };
}

slot_key! {
    /// Key of a connection of one shard. Messages between shards name the shard beside it.
    ConnId
}
slot_key! {
    /// Key of a message without a terminal answer. Services see it as the request id.
    MsgKey
}
slot_key! {
    /// Key of an ordered stream: the messages of one session to one service with one hash key.
    StreamKey
}
slot_key! {
    /// Key of a batch, or unary call, in flight.
    Ticket
}
slot_key! {
    /// Key of an idempotency key that a shard remembers.
    DedupKey
}
slot_key! {
    /// Key of an owner, or a group of owners, of which requests wait in a backlog.
    OwnerKey
}
slot_key! {
    /// Key of a user, or of an address, whose connections and messages a shard counts.
    LimiterKey
}

impl LimiterKey {
    /// No user and no address: the default.
    pub(crate) const NONE: Self = Self(0);
}

impl Default for LimiterKey {
    fn default() -> Self {
        Self::NONE
    }
}

/// Public id of a session: 80 random bits as 16 characters of base32 (Crockford's alphabet).
///
/// With a billion sessions alive the chance that any two ids are equal is 4e-7 (n^2 / 2^81).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId([u8; 16]);

impl SessionId {
    /// The id made of the low 80 bits of `random`.
    pub fn from_random(random: u128) -> Self {
        const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
        let mut text = [0; 16];
        for (i, c) in text.iter_mut().enumerate() {
            *c = ALPHABET[(random >> (5 * i)) as usize & 31];
        }
        Self(text)
    }

    /// The id as clients and services see it.
    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("made of base32 characters")
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_carries_its_slot_and_generation() {
        let key = MsgKey::new(7, 0xff_ffff);
        assert_eq!((key.slot(), key.generation()), (0xff_ffff, 7));
        assert_eq!(MsgKey::from(u64::from(key)), key);
    }

    #[test]
    fn session_ids_are_sixteen_plain_characters() {
        assert_eq!(SessionId::from_random(0).as_str(), "0000000000000000");
        assert_eq!(SessionId::from_random(u128::MAX).as_str(), "zzzzzzzzzzzzzzzz");
        assert_eq!(SessionId::from_random(1 << 5).as_str(), "0100000000000000");
    }
}
