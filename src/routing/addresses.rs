//! The addresses of one instance.

use std::fmt;
use std::net::SocketAddr;

/// Addresses of one instance, in the order in which they are tried: at least one. A host that has
/// an IPv4 and an IPv6 address is one instance with both.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Addresses {
    first: SocketAddr,
    others: Vec<SocketAddr>,
}

impl Addresses {
    /// `first`, then `others`.
    pub fn new(first: SocketAddr, others: Vec<SocketAddr>) -> Self {
        Self { first, others }
    }

    /// The address that is tried first.
    pub fn first(&self) -> SocketAddr {
        self.first
    }

    /// The addresses that are tried after the first.
    pub fn others(&self) -> &[SocketAddr] {
        &self.others
    }

    /// The same addresses, with the first as the last.
    pub fn rotated(&self) -> Self {
        match self.others.split_first() {
            Some((&next, rest)) => {
                let others = rest.iter().copied().chain([self.first]);
                Self::new(next, others.collect())
            }
            None => self.clone(),
        }
    }

    /// All of them, in their order.
    pub fn iter(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        std::iter::once(self.first).chain(self.others.iter().copied())
    }
}

impl From<SocketAddr> for Addresses {
    fn from(only: SocketAddr) -> Self {
        Self::new(only, Vec::new())
    }
}

/// `[fd00::7]:50001 or 10.0.0.7:50001`.
impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        self.others.iter().try_for_each(|other| write!(f, " or {other}"))
    }
}
