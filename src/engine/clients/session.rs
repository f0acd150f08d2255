//! The identity that a connection serves: its public id, its owner, and its numbers.

use std::net::IpAddr;
use std::sync::Arc;

use crate::auth::Identity;
use crate::engine::clients::membership::Memberships;
use crate::engine::clients::resumption::Resumption;
use crate::engine::clients::waiting::Waiting;
use crate::engine::groups::roster::{PersonName, Standing};
use crate::engine::owner::{Address, Holder, Owner, Party, Principal};
use crate::ids::{SessionId, SessionKey, TenantId};
use crate::message::{EventReason, Micros};
use crate::routing::{Sender, affinity_hash};

/// A session: the sender of messages, and the receiver of their answers. It holds nothing of the
/// socket, and one that was made resumable outlives its connection: see [`super::sessions`].
#[derive(Debug)]
pub struct Session {
    /// Key on this shard, by which requests name it.
    pub key: SessionKey,
    /// Public id, told in `welcome`, and in `auth_ok` by who signs in with a message.
    pub id: SessionId,
    /// The party it acts for.
    pub owner: Owner,
    /// Tenant and hashes by which its messages are routed.
    pub sender: Sender,
    /// The highest seq seen: they rise for the life of the session.
    pub last_seq: u64,
    /// Whether a message for a service, or for an id of the gateway's, was read: then its
    /// connection goes on with no other session.
    pub is_used: bool,
    /// Messages without an answer.
    pub unanswered: u32,
    /// Bytes of the messages without an answer.
    pub unanswered_bytes: usize,
    /// Bytes that the large ones among the answers to come are expected to have.
    pub answer_bytes: usize,
    /// Messages answered as late whose call is still under way: the connection does not move before
    /// those have ended.
    pub late_calls: u32,
    /// The sender that it was before it signed in, while messages from then are under way: those
    /// after them keep their order.
    pub before: Option<Box<Sender>>,
    /// What a client needs to resume it; `None` if it ends with its connection.
    pub resumption: Option<Box<Resumption>>,
    /// Groups that it is in; `None` if it never was in one.
    pub groups: Option<Box<Memberships>>,
    /// Pushes that wait for its client, if there are any.
    pub waiting: Option<Box<Waiting>>,
    /// How it stands to others in its groups.
    pub standing: Standing,
    /// Whether services were told that it is there.
    pub is_told: bool,
    /// Why its connection ended, or ends.
    pub parting: EventReason,
    /// Time at which it lost its connection, of one that has none.
    pub away_since: Micros,
    /// Time at which it was made.
    pub made: Micros,
}

impl Session {
    /// A session that has not signed in, from `ip`. It gets its key with its seat.
    pub fn new(id: SessionId, ip: IpAddr, now: Micros) -> Self {
        let principal = Principal::Session(id);
        let owner = Owner { tenant: TenantId::DEFAULT, principal, address: Address::of(ip) };
        Self {
            key: SessionKey(0),
            id,
            owner,
            sender: Sender::of_session(id.as_str()),
            last_seq: 0,
            is_used: false,
            standing: Standing::Here,
            is_told: false,
            parting: EventReason::Closed,
            unanswered: 0,
            unanswered_bytes: 0,
            answer_bytes: 0,
            late_calls: 0,
            before: None,
            resumption: None,
            groups: None,
            waiting: None,
            away_since: Micros(0),
            made: now,
        }
    }

    /// Gives it another id, by which its messages are routed from now on.
    pub fn begin_anew(&mut self, id: SessionId) {
        self.note_before();
        self.id = id;
        self.sender = Sender::of_session(id.as_str());
        self.owner.principal = Principal::Session(id);
    }

    /// Remembers how the messages under way were routed, so that those after them keep their order.
    fn note_before(&mut self) {
        if self.user().is_none() && self.before.is_none() && !self.is_at_rest() {
            self.before = Some(Box::new(self.sender));
        }
    }

    /// Makes it a user's.
    pub fn sign_in(&mut self, identity: Identity) {
        self.note_before();
        let tenant = tenant_of(&identity);
        self.sender = self.sender.signed_in(tenant, &identity.user);
        self.owner.tenant = tenant;
        self.owner.principal = Principal::User(Arc::new(identity));
    }

    /// Goes on for the client that `own` was made for: from its address, with its newer token.
    pub fn continue_for(&mut self, own: &Session) {
        self.owner.address = own.owner.address;
        if let Principal::User(_) = own.owner.principal {
            self.owner.principal = own.owner.principal.clone();
        }
    }

    /// Whether nothing of it is under way: no message without an answer, and no call that still has
    /// one that was answered as late.
    pub fn is_at_rest(&self) -> bool {
        self.unanswered == 0 && self.late_calls == 0
    }

    /// Forgets the time before the sign-in, if nothing from then is under way any more.
    #[inline]
    pub fn note_rest(&mut self) {
        if self.before.is_some() && self.is_at_rest() {
            self.before = None;
        }
    }

    /// Whether `other` is of the same user; of two without one, that both have none.
    pub fn is_of_party_of(&self, other: &Session) -> bool {
        let name = |session: &Session| session.user().map(|user| user.user.clone());
        self.owner.tenant == other.owner.tenant && name(self) == name(other)
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

    /// The person that it is for others.
    pub fn person(&self) -> PersonName {
        match self.user() {
            Some(user) => PersonName::User(user.user.clone()),
            None => PersonName::Session(self.id),
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
        let before = self.before.as_deref().map_or(0, size_of_val);
        let resumption = self.resumption.as_deref().map_or(0, Resumption::memory_bytes);
        let groups = self.groups.as_deref();
        let groups = groups.map_or(0, |all| size_of_val(all) + all.memory_bytes());
        let waiting = self.waiting.as_deref().map_or(0, Waiting::memory_bytes);
        size_of::<Self>() + user + before + resumption + groups + waiting
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
