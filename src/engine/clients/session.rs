//! The identity that a connection serves: its public id, its owner, and its numbers.

use std::net::IpAddr;
use std::sync::Arc;

use crate::auth::Identity;
use crate::engine::owner::{Address, Holder, Owner, Party, Principal};
use crate::ids::{SessionId, TenantId};
use crate::routing::{Sender, affinity_hash};

/// A session. It hangs on one connection for its whole life, and holds nothing of the socket.
#[derive(Debug)]
pub struct Session {
    /// Public id, told in `welcome`.
    pub id: SessionId,
    /// The party it acts for.
    pub owner: Owner,
    /// Tenant and hashes by which its messages are routed.
    pub sender: Sender,
    /// The highest seq seen: they rise for the life of the session.
    pub last_seq: u64,
}

impl Session {
    /// A session that has not signed in, from `ip`.
    pub fn new(id: SessionId, ip: IpAddr) -> Self {
        let principal = Principal::Session(id);
        let owner = Owner { tenant: TenantId::DEFAULT, principal, address: Address::of(ip) };
        Self { id, owner, sender: Sender::of_session(id.as_str()), last_seq: 0 }
    }

    /// Makes it a user's.
    pub fn sign_in(&mut self, identity: Identity) {
        let tenant = tenant_of(&identity);
        self.sender = self.sender.signed_in(tenant, &identity.user);
        self.owner.tenant = tenant;
        self.owner.principal = Principal::User(Arc::new(identity));
    }

    /// The names of its owner on each level between which things are shared.
    #[inline]
    pub fn holder(&self) -> Holder {
        let Sender { tenant, session, user } = self.sender;
        match user {
            Some(user) => Holder { tenant, party: Party::User(user), session: 0 },
            None => Holder { tenant, party: Party::Address(self.owner.address), session },
        }
    }

    /// The user, if it signed in.
    pub fn user(&self) -> Option<&Identity> {
        self.owner.user().map(Arc::as_ref)
    }

    /// Bytes of memory that it holds.
    pub fn memory_bytes(&self) -> usize {
        let user = self.user().map_or(0, |user| {
            // Each text has two counts in front of it.
            let text = |text: &Arc<str>| 2 * size_of::<usize>() + text.len();
            let texts = user.tenant.iter().chain(&user.groups).map(text).sum::<usize>();
            let groups = user.groups.capacity() * size_of::<Arc<str>>();
            2 * size_of::<usize>() + size_of::<Identity>() + text(&user.user) + texts + groups
        });
        size_of::<Self>() + user
    }
}

/// The tenant of a signed-in user.
pub(super) fn tenant_of(identity: &Identity) -> TenantId {
    TenantId::of(identity.tenant.as_deref().unwrap_or_default())
}

/// The affinity hash of a user, which also picks its home shard.
pub fn user_hash(identity: &Identity) -> u64 {
    affinity_hash(tenant_of(identity), identity.user.as_bytes())
}
