//! Handoffs between shards: one way, one hop, never awaited.

use std::net::{SocketAddr, TcpStream};

use crate::engine::moves::Departed;
use crate::mailbox::Port;
use crate::shard::sockets::Socket;

/// What one shard gives to another, by a *submit* lane: what is refused stays with the sender.
#[derive(Debug)]
pub(crate) enum Handoff {
    /// A client that was accepted by a shard without room for it; nothing was read yet. If no
    /// lane takes it, the sender answers 503.
    Client {
        /// Socket of the client.
        stream: TcpStream,
        /// Address of the client's end.
        peer: SocketAddr,
        /// Where the client connected.
        port: Port,
    },
    /// A connection that moves to its user's home shard: see [`crate::engine::moves`].
    Moved(Box<MovedConnection>),
}

/// A connection on its way to another shard, with its socket.
#[derive(Debug)]
pub(crate) struct MovedConnection {
    /// Not in any readiness set.
    pub(crate) socket: Socket,
    /// State of the connection.
    pub(crate) departed: Departed,
}
