//! What a shard's shell is to do after an event: the one way out of the engine.

use crate::ids::ConnId;
use crate::message::Call;
use crate::stats::Signal;

/// The work that events have left for the shell. Each list is taken and emptied by the shell.
#[derive(Debug, Default)]
pub struct Effects {
    /// Calls to hand to their instance's channel.
    pub calls: Vec<Call>,
    /// Connections with bytes to flush, or with something to do to their socket: see
    /// [`super::Engine::on_sent`].
    pub dirty: Vec<ConnId>,
    /// Connections to be sent to their user's home shard: see [`super::Engine::depart`].
    pub moves: Vec<ConnId>,
    /// Connections that may be read again: see [`super::Engine::on_resumed`].
    pub resumed: Vec<ConnId>,
    /// Reports of instances for control.
    pub signals: Vec<Signal>,
    /// A token's key was not known: control is to fetch the set of keys. Taken with each tick.
    pub keys_wanted: bool,
}
