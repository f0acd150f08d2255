//! Handoffs between shards: one way, one hop, never awaited.

use crate::engine::clients::home::Departed;

/// A client or a connection that one shard gives to another, by a *submit* lane: what the lane
/// refuses stays with the sender. `C` is an accepted client, `S` the socket of a connection.
#[derive(Debug)]
pub enum Handoff<C, S> {
    /// A client that was accepted by a shard without room for it; nothing was read yet. If no
    /// lane takes it, the sender answers 503.
    Client(C),
    /// A connection that moves to its user's home shard: see [`crate::engine::clients::home`].
    Moved(Box<MovedConnection<S>>),
}

/// A connection on its way to another shard, with its socket.
#[derive(Debug)]
pub struct MovedConnection<S> {
    /// Not in any readiness set.
    pub socket: S,
    /// State of the connection.
    pub departed: Departed,
}
