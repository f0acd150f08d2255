//! Settings of `[limits]`: limits of users, addresses and unauthenticated connections.

/// The section `[limits]`. Live. 0 means no limit, in every field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LimitSettings {
    /// Limits of each user that signed in. Its `connections_max` is that of [`Self::per_user`].
    pub user: ClientLimitSettings,
    /// Which of a user's connections goes when there are too many: `session.per_user`.
    pub per_user: PerUser,
    /// Limits of each IP address over the whole process: each shard allows its part of them.
    pub address: ClientLimitSettings,
    /// Seconds of an unused rate that may be spent at once; 1 to 60.
    pub burst_s: u32,
    /// Connections of the shard that are in the handshake, or must sign in and have not yet.
    pub unauthenticated_max: usize,
    /// Unauthenticated connections of one address over the whole process.
    pub address_unauthenticated_max: u32,
}

/// The policy for one connection too many of a user: the values of `session.per_user`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PerUser {
    /// One that does not answer a ping makes room; if all do, the newcomer is refused.
    Many,
    /// The oldest makes room for the newcomer.
    Newest,
    /// As [`Self::Many`], and the newcomer is told not to come back.
    Oldest,
}

impl PerUser {
    /// Connections that a user may have if `per_user_max` is configured; 0 = no limit.
    pub(crate) fn connections_max(self, per_user_max: u32) -> u32 {
        match self {
            Self::Many => per_user_max,
            Self::Newest | Self::Oldest => per_user_max.max(1),
        }
    }
}

/// Limits of one user, or of one address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClientLimitSettings {
    /// Connections at the same time.
    pub connections_max: u32,
    /// New connections a second.
    pub connects_per_s: u32,
    /// Messages a second, of all connections together.
    pub messages_per_s: u32,
}

impl ClientLimitSettings {
    /// Whether any limit is set.
    pub(crate) fn is_on(&self) -> bool {
        *self != Self::default()
    }
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            user: ClientLimitSettings::default(),
            per_user: PerUser::Many,
            address: ClientLimitSettings::default(),
            burst_s: 1,
            unauthenticated_max: 10_000,
            address_unauthenticated_max: 0,
        }
    }
}
