//! Messages the other way, plain and known to every layer: what services push to clients, and the
//! groups that clients are in.

use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::ids::{SessionId, ShardId, TenantId, home_shard};
use crate::message::{Micros, Priority, Reject};

/// Bytes of a group's name.
pub const GROUP_NAME_BYTES_MAX: usize = 128;
/// Bytes of a push's `key`, by which a newer one replaces an older one.
pub const PUSH_KEY_BYTES_MAX: usize = 64;
/// Bytes of a push's `id`.
pub const PUSH_ID_BYTES_MAX: usize = 64;
/// Sessions and users whom one push leaves out.
pub const EXCEPT_MAX: usize = 16;
/// Groups that one push goes to.
pub const GROUPS_PER_PUSH_MAX: usize = 16;

/// The name of a group, in its tenant.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct GroupName {
    /// Tenant, of which nobody else sees the group.
    pub tenant: TenantId,
    /// 1 to [`GROUP_NAME_BYTES_MAX`] bytes of printable ASCII without spaces.
    pub name: Arc<str>,
}

/// Why a text is no name of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameFault {
    /// It is empty.
    Empty,
    /// It has more than [`GROUP_NAME_BYTES_MAX`] bytes.
    TooLong,
    /// It has a character that is not printable ASCII, or a space.
    Character,
}

impl GroupName {
    /// The group `name` of `tenant`.
    pub fn new(tenant: TenantId, name: &str) -> Result<Self, NameFault> {
        if name.is_empty() {
            return Err(NameFault::Empty);
        }
        if name.len() > GROUP_NAME_BYTES_MAX {
            return Err(NameFault::TooLong);
        }
        match name.bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok(Self { tenant, name: name.into() }),
            false => Err(NameFault::Character),
        }
    }

    /// The shard that numbers the group's pushes, of `shards`.
    pub fn home(&self, shards: u16) -> ShardId {
        home_shard(xxh3_64_with_seed(self.name.as_bytes(), self.tenant.0), shards)
    }
}

/// Place in the pushes of a group. 0 is the place before the first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Position {
    /// Number of the group's life, drawn by chance: offsets of another life say nothing.
    pub epoch: u32,
    /// Number of the push in that life, from 1.
    pub offset: u64,
}

impl Position {
    /// The epoch as clients and callers see it: eight hexadecimal digits.
    pub fn epoch_text(self) -> String {
        format!("{:08x}", self.epoch)
    }

    /// The position that a client or a caller shows. A text that is no epoch of this gateway stands
    /// for one that no group has: epoch 0.
    pub fn shown(epoch: &str, offset: u64) -> Self {
        let is_ours = epoch.len() == 8 && epoch.bytes().all(|byte| byte.is_ascii_hexdigit());
        let epoch = u32::from_str_radix(epoch, 16).ok().filter(|_| is_ours);
        Self { epoch: epoch.unwrap_or(0), offset }
    }
}

/// Whom a push leaves out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Excepted {
    /// The session with this public id.
    Session(SessionId),
    /// All sessions of the user with this name, in the push's tenant.
    User(Box<str>),
}

/// What a push is to its receivers.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A message of a service or a client.
    Push,
    /// The gateway's word on the people of a group.
    Presence(Box<Presence>),
}

/// What a word on people has beside its payload, which is that for JSON clients.
#[derive(Clone, Debug)]
pub struct Presence {
    /// The payload for clients that use protobuf.
    pub protobuf: Bytes,
    /// How many people each shard has.
    pub parts: Vec<(ShardId, u32)>,
}

impl Kind {
    /// Bytes that it has beside the payload.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Push => 0,
            Self::Presence(told) => told.protobuf.len(),
        }
    }
}

/// The content of a push: one for all addressees, shared by the shards, never changed.
#[derive(Clone, Debug)]
pub struct Body {
    /// What it is to its receivers.
    pub kind: Kind,
    /// Id that the client dispatches on; not 0, and not one of the gateway's own range.
    pub msg_id: u32,
    /// The payload: one JSON text, unless `is_bytes`.
    pub payload: Bytes,
    /// Whether JSON clients get `payload_base64`.
    pub is_bytes: bool,
    /// A newer one with this key replaces one that was not delivered yet; empty = none.
    pub key: Box<str>,
    /// Id that its caller gave it; empty = none.
    pub id: Box<str>,
    /// User or session that published it; empty = a service.
    pub from: Box<str>,
    /// Whom it leaves out.
    pub except: Vec<Excepted>,
    /// Order among what waits for a slow client.
    pub priority: Priority,
    /// Whether it is kept neither for a resume nor as history.
    pub is_transient: bool,
    /// Time from which it is not delivered any more; `Micros(u64::MAX)` = never.
    pub expires: Micros,
    /// Time of its arrival at the gateway, in milliseconds since 1970.
    pub unix_ms: i64,
}

/// Whom a push is for: of sessions and users those whose shard it is sent to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Addressees {
    /// Sessions by their public ids.
    Sessions(Vec<SessionId>),
    /// All sessions of these users.
    Users(Vec<Box<str>>),
    /// The members of a group: sent to its home shard.
    Group(GroupName),
    /// All sessions of the tenant: sent to every shard.
    Tenant,
    /// All sessions: sent to every shard.
    Everyone,
}

/// The party that is told what became of a push.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The control thread, which gave it this number, and whether it waits for counts.
    #[allow(missing_docs)]
    Control { number: u64, is_counted: bool },
    /// A service, in its answer to a call: nobody is told.
    Service,
}

/// A push on its way to one shard.
#[derive(Clone, Debug)]
pub struct Push {
    /// The party that is told of its fate.
    pub origin: Origin,
    /// Hash of its caller's name, in which `id` is unique.
    pub caller: u64,
    /// Tenant of the addressees; of [`Addressees::Everyone`] it says nothing.
    pub tenant: TenantId,
    /// The addressees.
    pub to: Addressees,
    /// The content.
    pub body: Arc<Body>,
}

/// Sessions, by their ids or as all of these users, on the shard that they are on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Whom {
    /// Public ids.
    pub sessions: Vec<SessionId>,
    /// Names.
    pub users: Vec<Box<str>>,
}

/// Work about pushes and groups that is sent to a shard over its push lane.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Submit {
    /// Deliver this.
    Push(Push),
    /// Put sessions into groups. Answered by [`ReceiptPart::Joined`].
    Join { number: u64, tenant: TenantId, whom: Whom, groups: Vec<Arc<str>>, info: Bytes },
    /// Take sessions out of groups. Answered by [`ReceiptPart::Done`].
    Leave { number: u64, tenant: TenantId, whom: Whom, groups: Vec<Arc<str>>, reason: Box<str> },
    /// Close the connections of sessions. Answered by [`ReceiptPart::Done`]: `done` are closed,
    /// `ended` are sessions that ended.
    Disconnect {
        number: u64,
        tenant: TenantId,
        whom: Whom,
        code: u16,
        reason: Box<str>,
        keep_session: bool,
    },
    /// Drop what a group keeps: sent to its home shard. Answered by [`ReceiptPart::Done`].
    Forget { number: u64, group: GroupName },
}

/// Addressees of a push by what became of it. They are the sum of all but `kept`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// The kernel took all of it.
    pub written: u64,
    /// It waits, as the client reads slowly or its turn has not come.
    pub queued: u64,
    /// Not delivered, by policy or because its time was over.
    pub dropped: u64,
    /// Sessions without a connection, and users without a session.
    pub offline: u64,
    /// Of the offline ones: comes with a resume.
    pub kept: u64,
    /// Of shards that did not answer in time.
    pub unknown: u64,
}

impl Counts {
    /// Everybody that was addressed.
    pub fn addressees(&self) -> u64 {
        let Self { written, queued, dropped, offline, kept: _, unknown } = *self;
        written + queued + dropped + offline + unknown
    }

    /// Adds those of another shard.
    pub fn add(&mut self, other: &Self) {
        self.written += other.written;
        self.queued += other.queued;
        self.dropped += other.dropped;
        self.offline += other.offline;
        self.kept += other.kept;
        self.unknown += other.unknown;
    }
}

/// What a shard tells control about work that control sent.
#[derive(Clone, PartialEq, Debug)]
pub struct Receipt {
    /// The number of the work.
    pub number: u64,
    /// The shard that tells it.
    pub shard: ShardId,
    /// What it tells.
    pub part: ReceiptPart,
}

/// The parts of receipts.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs)]
pub enum ReceiptPart {
    /// By a group's home: the push has its number, and is on its way to these shards, each of which
    /// sends [`ReceiptPart::Counted`] if counts are awaited.
    Numbered { group: GroupName, position: Position, is_duplicate: bool, shards: Vec<ShardId> },
    /// By the home of a group, or by an addressed shard: nothing happened.
    Refused { group: Option<GroupName>, reject: Reject },
    /// By a shard with addressees. `is_duplicate`: its id was seen before, nobody gets it again.
    Counted { counts: Counts, offline_users: Vec<Box<str>>, is_duplicate: bool },
    /// Sessions that joined, and sessions and users that are not here.
    Joined { joined: u32, offline: u32, positions: Vec<(Arc<str>, Position)> },
    /// Sessions of which something was done, and sessions that ended by it.
    Done { done: u32, ended: u32 },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_groups_name_is_printable_and_short() {
        let name = |text: &str| GroupName::new(TenantId::DEFAULT, text).map(|g| g.name.to_string());
        assert_eq!(name("room:7"), Ok("room:7".into()));
        assert_eq!(name(&"x".repeat(128)), Ok("x".repeat(128)));
        assert_eq!(name(""), Err(NameFault::Empty));
        assert_eq!(name(&"x".repeat(129)), Err(NameFault::TooLong));
        for bad in ["a b", "a\n", "\u{e9}", "\x7f"] {
            assert_eq!(name(bad), Err(NameFault::Character), "{bad:?}");
        }
    }

    #[test]
    fn a_position_reads_as_it_was_shown_and_another_text_is_of_no_epoch() {
        let position = Position { epoch: 0x1f, offset: 7 };
        assert_eq!(position.epoch_text(), "0000001f");
        assert_eq!(Position::shown("0000001f", 7), position);
        for bad in ["", "1f", "+000001f", "0000001g", "0000001f0"] {
            assert_eq!(Position::shown(bad, 7), Position { epoch: 0, offset: 7 }, "{bad}");
        }
    }

    #[test]
    fn addressees_are_the_sum_of_their_fates() {
        let mut all = Counts { written: 1, queued: 2, dropped: 3, offline: 4, kept: 2, unknown: 5 };
        assert_eq!(all.addressees(), 15);
        all.add(&all.clone());
        assert_eq!((all.addressees(), all.kept), (30, 4));
    }
}
