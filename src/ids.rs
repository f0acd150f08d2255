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
    /// Key of a session of one shard: it may outlive the connection that it is on.
    SessionKey
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
    /// Key of a group with members on a shard.
    GroupKey
}
slot_key! {
    /// Key of a group whose home is a shard.
    HomeKey
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

/// Crockford's alphabet of base32, in small letters.
const BASE32: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// Bits of a session id that name its shard.
const SHARD_BITS: u32 = 10;

/// Writes `bits` as base32, five bits a character, the lowest first.
fn write_base32(bits: u128, text: &mut [u8]) {
    for (i, c) in text.iter_mut().enumerate() {
        *c = BASE32[(bits >> (5 * i)) as usize & 31];
    }
}

/// Reads what [`write_base32`] wrote; `None` if a character is none of the alphabet's.
fn read_base32(text: &[u8]) -> Option<u128> {
    let mut bits = 0;
    for (i, c) in text.iter().enumerate() {
        let digit = BASE32.iter().position(|b| b == c)? as u128;
        bits |= digit.checked_shl(5 * i as u32)?;
    }
    Some(bits)
}

/// Public id of a session: 16 characters of base32. The first two are the number of the shard that
/// it lives on, so that who knows an id knows where to ask; 14 are 70 random bits.
///
/// With a million sessions alive on a shard the chance that any two ids are equal is 4e-10
/// (n^2 / 2^71).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId([u8; 16]);

impl SessionId {
    /// The id on `shard` made of the low 70 bits of `random`.
    pub fn new(shard: ShardId, random: u128) -> Self {
        let mut text = [0; 16];
        write_base32(random << SHARD_BITS | u128::from(shard.0), &mut text);
        Self(text)
    }

    /// Reads an id that a client shows; `None` if the text cannot be one.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let id = <[u8; 16]>::try_from(text.as_bytes()).ok()?;
        read_base32(&id).map(|_| Self(id))
    }

    /// The shard that it lives on.
    pub(crate) fn shard(&self) -> ShardId {
        let bits = read_base32(&self.0[..2]).expect("made of base32 characters");
        ShardId(bits as u16)
    }

    /// The id as clients and services see it.
    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("made of base32 characters")
    }
}

/// Secret that resumes a session: 128 random bits, shown as 26 characters of base32. `Debug` does
/// not show them.
#[derive(Clone, Copy)]
pub struct SessionSecret(u128);

impl SessionSecret {
    /// Characters of a secret: 26 x 5 = 130 bits.
    const CHARS: usize = 26;

    /// The secret made of `random`.
    pub(crate) fn new(random: u128) -> Self {
        Self(random)
    }

    /// Reads a secret that a client shows; `None` if the text cannot be one.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let text = <&[u8; Self::CHARS]>::try_from(text.as_bytes()).ok()?;
        // The last character has three of the 128 bits.
        let has_room = BASE32.iter().position(|b| *b == text[Self::CHARS - 1])? < 8;
        if has_room { read_base32(text).map(Self) } else { None }
    }

    /// The secret as its client sees it.
    pub(crate) fn text(self) -> String {
        let mut text = [0; Self::CHARS];
        write_base32(self.0, &mut text);
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Whether both are one secret, in a time that does not depend on the bits: all of them are
    /// combined before the one comparison.
    pub(crate) fn equals(self, other: Self) -> bool {
        self.0 ^ other.0 == 0
    }
}

impl fmt::Debug for SessionSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
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
        let id = |shard, random| SessionId::new(ShardId(shard), random);
        assert_eq!(id(0, 0).as_str(), "0000000000000000");
        assert_eq!(id(1023, u128::MAX).as_str(), "zzzzzzzzzzzzzzzz");
        assert_eq!(id(33, 1).as_str(), "1110000000000000");
        assert_eq!(id(1023, 0).shard(), ShardId(1023));
        assert_eq!(SessionId::read(id(7, 99).as_str()), Some(id(7, 99)));
        for bad in
            ["", "000000000000000", "00000000000000000", "000000000000000u", "é0000000000000"]
        {
            assert_eq!(SessionId::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_secret_reads_as_it_was_written_and_is_not_shown() {
        for bits in [0, 1, u128::MAX, 1 << 127, 0x0123_4567_89ab_cdef << 64 | 42] {
            let secret = SessionSecret::new(bits);
            let text = secret.text();
            assert_eq!(text.len(), 26);
            assert!(SessionSecret::read(&text).is_some_and(|read| read.equals(secret)), "{text}");
            assert_eq!(format!("{secret:?}"), "<redacted>");
        }
        let text = SessionSecret::new(5).text();
        let other = SessionSecret::read(&text.replacen('5', "6", 1)).expect("a secret");
        assert!(!other.equals(SessionSecret::new(5)));
        let too_many_bits = "zzzzzzzzzzzzzzzzzzzzzzzzzz";
        for bad in ["", &text[1..], too_many_bits, "uuuuuuuuuuuuuuuuuuuuuuuuuu"] {
            assert!(SessionSecret::read(bad).is_none(), "{bad}");
        }
    }
}
