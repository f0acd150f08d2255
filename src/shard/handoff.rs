//! What shards say to each other: one way, one hop, never awaited.

use std::net::{SocketAddr, TcpStream};

use crate::engine::clients::home::Departed;
use crate::mailbox::Port;
use crate::shard::sockets::Socket;

/// One shard to another, by a *submit* lane: what is refused stays with the sender.
#[derive(Debug)]
pub enum Handoff {
    /// A client that was accepted by a shard without room for it; nothing was read yet. If no
    /// lane takes it, the sender answers 503.
    Client {
        /// Its socket.
        stream: TcpStream,
        /// Its address.
        peer: SocketAddr,
        /// Where it connected.
        port: Port,
    },
    /// A connection that comes home: see [`crate::engine::clients::home`].
    Moved(Box<Moved>),
}

/// A connection with its socket.
#[derive(Debug)]
pub struct Moved {
    /// Not in any readiness set.
    pub socket: Socket,
    /// Its state.
    pub departed: Departed,
}
