//! Owners: the parties between which everything that is shared is divided.

use std::net::IpAddr;
use std::sync::Arc;

use crate::auth::Identity;
use crate::ids::{SessionId, TenantId};

/// The party that a session acts for: in a tenant, a user; before it signs in, the session itself
/// under its address.
#[derive(Clone, Debug)]
pub struct Owner {
    /// Tenant; the default one before it signs in.
    pub tenant: TenantId,
    /// The user, or the session.
    pub principal: Principal,
    /// Network that the session connects from.
    pub address: Address,
}

/// The user or session that an owner is.
#[derive(Clone, Debug)]
pub enum Principal {
    /// A session that has not signed in.
    Session(SessionId),
    /// A user that signed in.
    User(Arc<Identity>),
}

/// The names of an owner on each level between which things are shared: a tenant; in it a user,
/// or an address with the sessions that have not signed in; under an address each of those.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Holder {
    /// Tenant; the default one before the session signs in.
    pub tenant: TenantId,
    /// User or address.
    pub party: Party,
    /// Affinity hash of the session; 0 of a user, whose sessions share what the user has.
    pub session: u64,
}

/// A user or an address, as an owner in a tenant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Party {
    /// The affinity hash of a user's name. Of 100,000 users two have one hash with a chance of
    /// 3e-10; they would share a share.
    User(u64),
    /// The sessions of an address that have not signed in: whoever opens more of them gets no more
    /// beside other addresses.
    Address(Address),
}

/// The name of an owner, or of a group of owners: a tenant, or an address with its sessions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum OwnerName {
    Tenant(TenantId),
    Party(TenantId, Party),
    Session(Holder),
}

impl OwnerName {
    /// The owner itself: a user, or a session without one.
    pub fn of(holder: &Holder) -> Self {
        match holder.party {
            Party::User(_) => Self::Party(holder.tenant, holder.party),
            Party::Address(_) => Self::Session(*holder),
        }
    }

    /// The tenant that it is, or is in.
    pub fn tenant(&self) -> TenantId {
        match self {
            Self::Tenant(tenant) | Self::Party(tenant, _) => *tenant,
            Self::Session(holder) => holder.tenant,
        }
    }

    /// Whether it is an owner's, and no group's.
    pub fn is_owner(&self) -> bool {
        match self {
            Self::Session(_) | Self::Party(_, Party::User(_)) => true,
            Self::Tenant(_) | Self::Party(_, Party::Address(_)) => false,
        }
    }

    /// The group that it is in; `None` of a tenant.
    pub fn group(&self) -> Option<Self> {
        match self {
            Self::Tenant(_) => None,
            Self::Party(tenant, _) => Some(Self::Tenant(*tenant)),
            Self::Session(holder) => Some(Self::Party(holder.tenant, holder.party)),
        }
    }
}

impl Owner {
    /// The user, if it signed in.
    pub fn user(&self) -> Option<&Arc<Identity>> {
        match &self.principal {
            Principal::User(user) => Some(user),
            Principal::Session(_) => None,
        }
    }
}

/// The network that clients are limited by: of IPv4 the whole address. Of IPv6 the /64: that is the
/// smallest network a site is given (RFC 6177), and every host in it may use any of its 2^64
/// addresses, a new one for each connection (RFC 8981).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Address {
    /// An IPv4 address, also if it is written as an IPv6 one (::ffff:192.0.2.1).
    V4([u8; 4]),
    /// First half of an IPv6 address.
    V6([u8; 8]),
}

impl Address {
    /// The network of `ip`.
    pub fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.octets()),
            IpAddr::V6(ip) => {
                Self::V6(*ip.octets().first_chunk().expect("an IPv6 address has 16 bytes"))
            }
        }
    }
}
