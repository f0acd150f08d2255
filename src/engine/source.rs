//! The sender of a message: all that the way of a message needs to know of its connection.

use std::sync::Arc;

use crate::auth::Identity;
use crate::ids::{ConnId, SessionId};
use crate::message::Encoding;
use crate::routing::Sender;

/// The connection that sends a message, as far as requests know of it: read once a message.
#[derive(Debug)]
pub(crate) struct Source {
    pub conn: ConnId,
    pub session: SessionId,
    /// Tenant and hashes.
    pub sender: Sender,
    /// `None` before it signed in.
    pub user: Option<Arc<Identity>>,
    pub encoding: Encoding,
    /// Whether it must sign in first, whatever the route says.
    pub must_sign_in: bool,
}
