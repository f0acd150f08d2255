//! The sender of a message: the part of its connection that the dispatcher needs.

use std::sync::Arc;

use crate::auth::Identity;
use crate::engine::owner::Holder;
use crate::ids::{ConnId, SessionId, SessionKey};
use crate::message::Encoding;
use crate::routing::{Route, Sender};

/// The connection that sends a message, as far as requests know it: read once a message.
#[derive(Debug)]
pub(crate) struct Source {
    pub conn: ConnId,
    /// Session that gets the answer.
    pub session_key: SessionKey,
    /// Its public id.
    pub session: SessionId,
    /// Tenant, and the hashes of session and user.
    pub sender: Sender,
    /// The same before it signed in, while messages from then are under way.
    pub before: Option<Sender>,
    /// User of the connection; `None` before it has signed in.
    pub user: Option<Arc<Identity>>,
    /// Owner that the message counts for.
    pub holder: Holder,
    pub encoding: Encoding,
    /// Whether the connection must sign in first, whatever the route says.
    pub must_sign_in: bool,
}

impl Source {
    /// Whether a user must send messages of `route`, and it is none.
    #[inline]
    pub fn lacks_user(&self, route: &Route) -> bool {
        (route.needs_user || self.must_sign_in) && self.user.is_none()
    }
}
