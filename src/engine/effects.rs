//! Effects: the work that the engine leaves for the shell, and the only way out of the engine.

use crate::auth::KeyOwner;
use crate::engine::groups::lane::Deliver;
use crate::ids::{ConnId, InstanceId, ShardId};
use crate::message::Call;
use crate::push::{Receipt, Submit};
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
    /// Connections that get pushes from now on: what their sockets hold unsent is to be bounded.
    pub pushed: Vec<ConnId>,
    /// Connections to be sent to their user's home shard: see [`super::Engine::depart`].
    pub moves: Vec<ConnId>,
    /// Connections that may be read again: see [`super::Engine::on_resumed`].
    pub resumed: Vec<ConnId>,
    /// Items for other shards, in their order; what a lane has no room for comes back by
    /// [`super::Engine::deliver_refused`], with all that was to follow it to that shard.
    pub deliver: Vec<(ShardId, Deliver)>,
    /// What became of work about pushes, for control.
    pub receipts: Vec<Receipt>,
    /// Pushes of services for several shards: each is sent to all of its shards, or to none.
    pub pushes: Vec<Vec<(ShardId, Submit)>>,
    /// Reports on instances for control.
    pub signals: Vec<Signal>,
    /// What tenants want of their quotas, for control. Taken with each tick.
    pub demands: Vec<TenantDemand>,
    /// Owners of whose keys that of a token was unknown: control is to fetch their sets. Taken with
    /// each tick.
    pub keys_wanted: Vec<KeyOwner>,
}
