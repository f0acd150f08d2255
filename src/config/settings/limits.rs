//! Settings of `[limits]`: how much users, addresses and the unknown may do.

/// `[limits]`. Live. 0 = no limit, everywhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LimitSettings {
    /// For each user who signed in.
    pub user: PartyLimits,
    /// For each IP address, by the whole process: a shard allows its part of it.
    pub address: PartyLimits,
    /// Seconds of an unused rate that may be spent at once; 1 to 60.
    pub burst_s: u32,
    /// Connections of the shard that are in the handshake, or must sign in and have not yet.
    pub unauthenticated_max: usize,
    /// The same of one address, by the whole process.
    pub address_unauthenticated_max: u32,
}

/// What one user, or one address, may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PartyLimits {
    /// Connections at once.
    pub connections_max: u32,
    /// New connections a second.
    pub connects_per_s: u32,
    /// Messages a second, of all its connections.
    pub messages_per_s: u32,
}

impl PartyLimits {
    /// Whether anything is limited.
    pub fn is_on(&self) -> bool {
        *self != Self::default()
    }
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            user: PartyLimits::default(),
            address: PartyLimits::default(),
            burst_s: 1,
            unauthenticated_max: 10_000,
            address_unauthenticated_max: 0,
        }
    }
}
