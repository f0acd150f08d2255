//! Effects: the work that the engine leaves for the shell, and the only way out of the engine.

use crate::auth::KeyOwner;
use crate::ids::{ConnId, InstanceId};
use crate::message::Call;
use crate::routing::quota::TenantDemand;
use crate::stats::Signal;

/// Work that events have left for the shell, which takes each list and leaves it empty.
#[derive(Debug, Default)]
pub struct Effects {
    /// Calls to be sent, each over the channel of its instance.
    pub calls: Vec<Call>,
    /// Instances that are to show that they live: see [`super::Engine::on_alive`].
    pub asked: Vec<InstanceId>,
    /// Connections with bytes to flush, or whose socket is to be shut or closed: see
    /// [`super::Engine::on_sent`].
    pub dirty: Vec<ConnId>,
    /// Connections to be sent to their user's home shard: see [`super::Engine::depart`].
    pub moves: Vec<ConnId>,
    /// Connections that may be read again: see [`super::Engine::on_resumed`].
    pub resumed: Vec<ConnId>,
    /// Reports on instances for control.
    pub signals: Vec<Signal>,
    /// What tenants want of their quotas, for control. Taken with each tick.
    pub demands: Vec<TenantDemand>,
    /// Owners of whose keys that of a token was unknown: control is to fetch their sets. Taken with
    /// each tick.
    pub keys_wanted: Vec<KeyOwner>,
}
