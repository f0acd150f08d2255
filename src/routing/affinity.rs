//! The rule of affinity: the property of a message that a route hashes. It is written here only,
//! and used by the engine, by the gateway's own answers and by everything that explains a route.

use crate::ids::TenantId;
use crate::routing::HashOn;

/// The sender of a message, as far as a route may hash it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sender {
    /// Tenant that the keys of its messages belong to; the default one before it signs in.
    pub(crate) tenant: TenantId,
    /// Hash of the session's public id.
    pub(crate) session: u64,
    /// Hash of the user; `None` before it signs in.
    pub(crate) user: Option<u64>,
}

impl Sender {
    /// A sender that has not signed in.
    pub(crate) fn of_session(session: &str) -> Self {
        let hash = affinity_hash(TenantId::DEFAULT, session.as_bytes());
        Self { tenant: TenantId::DEFAULT, session: hash, user: None }
    }

    /// The same session, signed in as `user` of `tenant`. The session keeps its hash: its id is
    /// unique in itself, and messages that a route hashes by session must not change their instance
    /// because the client signs in.
    pub(crate) fn signed_in(self, tenant: TenantId, user: &str) -> Self {
        Self { tenant, user: Some(affinity_hash(tenant, user.as_bytes())), ..self }
    }
}

/// The property of a message that was hashed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HashedBy {
    /// The affinity key.
    Key,
    /// The user that sent it.
    User,
    /// The session that sent it.
    Session,
}

impl HashedBy {
    /// Name of the property in explanations.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::User => "user",
            Self::Session => "session",
        }
    }
}

/// The hash that picks the instance of a message with `key` (empty = none) from `sender`, on a
/// route with `hash_on`. If the key or the user is absent, the session is hashed instead.
pub fn affinity(hash_on: HashOn, sender: &Sender, key: &str) -> (HashedBy, u64) {
    match (hash_on, sender.user) {
        (HashOn::Key, _) if !key.is_empty() => {
            (HashedBy::Key, affinity_hash(sender.tenant, key.as_bytes()))
        }
        (HashOn::User, Some(user)) => (HashedBy::User, user),
        (HashOn::Key | HashOn::User | HashOn::Session, _) => (HashedBy::Session, sender.session),
    }
}

/// A message as an operator describes it, to learn where it would go. Empty texts count as absent.
#[derive(Clone, Copy, Default, Debug)]
pub struct Described<'a> {
    /// Affinity key of the message.
    pub(crate) key: &'a str,
    /// The user that sends it.
    pub(crate) user: &'a str,
    /// The name of the sender's tenant.
    pub(crate) tenant: &'a str,
    /// The public id of the session that sends it.
    pub(crate) session: &'a str,
}

impl Described<'_> {
    /// The tenant of the sender.
    pub(crate) fn tenant(&self) -> TenantId {
        TenantId::of(self.tenant)
    }

    /// The result of [`affinity`] for such a message; `None` if the session is hashed and none was
    /// given.
    pub fn affinity(&self, hash_on: HashOn) -> Option<(HashedBy, u64)> {
        let anonymous = Sender { tenant: self.tenant(), ..Sender::of_session(self.session) };
        let sender = match self.user {
            "" => anonymous,
            user => anonymous.signed_in(anonymous.tenant, user),
        };
        let (by, hash) = affinity(hash_on, &sender, self.key);
        (by != HashedBy::Session || !self.session.is_empty()).then_some((by, hash))
    }
}

/// Hash of a value under a tenant, the same on every shard, node and restart (XXH3-64 with the
/// tenant as its seed).
pub fn affinity_hash(tenant: TenantId, value: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(value, tenant.0)
}
