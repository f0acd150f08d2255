//! Where the sessions of a shard are found by what services know of them: their public id, and
//! their user.

use hashbrown::HashMap;

use crate::engine::clients::session::Session;
use crate::engine::owner::Party;
use crate::ids::{SessionId, SessionKey, TenantId};

/// A user: tenant, and affinity hash of the name.
type UserName = (TenantId, u64);

/// The sessions of a user: mostly one.
#[derive(Debug)]
enum OfUser {
    One(SessionKey),
    Several(Vec<SessionKey>),
}

/// The index of a shard's sessions.
#[derive(Debug, Default)]
pub struct SessionIndex {
    ids: HashMap<SessionId, SessionKey>,
    users: HashMap<UserName, OfUser>,
}

/// Bytes of an indexed session: an entry of each table, which are half empty at worst.
pub const INDEXED_BYTES: usize =
    2 * (size_of::<(SessionId, SessionKey)>() + 1) + 2 * (size_of::<(UserName, OfUser)>() + 1);

fn user_of(session: &Session) -> Option<UserName> {
    match session.holder().party {
        Party::User(hash) => Some((session.owner.tenant, hash)),
        Party::Address(_) => None,
    }
}

impl SessionIndex {
    /// Puts a session in, which has its key.
    pub fn add(&mut self, session: &Session) {
        self.ids.insert(session.id, session.key);
        let Some(user) = user_of(session) else { return };
        match self.users.get_mut(&user) {
            None => {
                self.users.insert(user, OfUser::One(session.key));
            }
            Some(OfUser::Several(keys)) => keys.push(session.key),
            Some(one) => {
                if let OfUser::One(first) = *one {
                    *one = OfUser::Several(vec![first, session.key]);
                }
            }
        }
    }

    /// Takes a session out: before its id or its user changes, or when it ends.
    pub fn remove(&mut self, session: &Session) {
        self.ids.remove(&session.id);
        let Some(user) = user_of(session) else { return };
        let is_last = match self.users.get_mut(&user) {
            Some(OfUser::Several(keys)) => {
                keys.retain(|key| *key != session.key);
                keys.is_empty()
            }
            Some(OfUser::One(key)) => *key == session.key,
            None => false,
        };
        if is_last {
            self.users.remove(&user);
        }
    }

    /// The session with this id.
    pub fn find(&self, id: &SessionId) -> Option<SessionKey> {
        self.ids.get(id).copied()
    }

    /// The sessions of the user with this hash.
    pub fn of_user(&self, tenant: TenantId, hash: u64) -> &[SessionKey] {
        match self.users.get(&(tenant, hash)) {
            Some(OfUser::One(key)) => std::slice::from_ref(key),
            Some(OfUser::Several(keys)) => keys,
            None => &[],
        }
    }

    /// Number of sessions.
    pub fn sessions(&self) -> usize {
        self.ids.len()
    }

    /// Number of users that have one.
    pub fn users(&self) -> usize {
        self.users.len()
    }
}
