//! Settings of `[limits]`: limits of users, addresses and unauthenticated connections.

/// The section `[limits]`. Live. 0 means no limit, in every field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LimitSettings {
    /// Limits of each user that signed in.
    pub user: ClientLimitSettings,
    /// Limits of each IP address over the whole process: each shard allows its part of them.
    pub address: ClientLimitSettings,
    /// Seconds of an unused rate that may be spent at once; 1 to 60.
    pub burst_s: u32,
    /// Connections of the shard that are in the handshake, or must sign in and have not yet.
    pub unauthenticated_max: usize,
    /// Unauthenticated connections of one address over the whole process.
    pub address_unauthenticated_max: u32,
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
            address: ClientLimitSettings::default(),
            burst_s: 1,
            unauthenticated_max: 10_000,
            address_unauthenticated_max: 0,
        }
    }
}
