//! Settings and routing state by which both halves of a shard work; a reload replaces them.

use std::sync::Arc;

use crate::config::settings::{GatewaySettings, ShardSettings};
use crate::engine::dispatcher::batch::GatewayIdentity;
use crate::ids::ShardId;
use crate::message::ClientMessage;
use crate::message::{Category, Micros};
use crate::routing::Snapshot;

/// The settings and the routing state in force.
#[derive(Debug)]
pub(crate) struct EngineConfig {
    pub shard: ShardId,
    /// Number of shards of the process.
    pub shards: u16,
    /// The gateway as services see it.
    pub identity: GatewayIdentity,
    /// Settings of the whole process.
    pub gateway: Arc<GatewaySettings>,
    /// Settings of this shard.
    pub settings: ShardSettings,
    /// Routes, services and instances: this shard's own copy, see [`EngineConfig::set_snapshot`].
    pub snapshot: Arc<Snapshot>,
}

impl EngineConfig {
    pub fn new(
        shard: ShardId,
        shards: u16,
        identity: GatewayIdentity,
        gateway: Arc<GatewaySettings>,
        settings: ShardSettings,
        snapshot: &Snapshot,
    ) -> Self {
        let snapshot = Arc::new(snapshot.clone());
        Self { shard, shards, identity, gateway, settings, snapshot }
    }

    /// Replaces the settings of process and shard.
    pub fn set_settings(&mut self, gateway: Arc<GatewaySettings>, settings: ShardSettings) {
        self.gateway = gateway;
        self.settings = settings;
    }

    /// Replaces the routing state by a copy of `snapshot`. Each message holds the snapshot while it
    /// is routed, and the count of one `Arc` for all shards would be a cache line that every
    /// message of every core writes to.
    pub fn set_snapshot(&mut self, snapshot: &Snapshot) {
        self.snapshot = Arc::new(snapshot.clone());
    }

    /// The part of the gateway that handles a message: decided by `type` first, then by id.
    #[inline]
    pub fn category(&self, message: &ClientMessage<'_>) -> Category {
        let (first, last) = self.gateway.gateway_ids;
        if !message.kind.is_empty() {
            Category::System
        } else if (first..=last).contains(&message.msg_id) {
            Category::Gateway
        } else {
            Category::Business
        }
    }

    /// Unix time of `now` by the wall clock of today, in microseconds.
    pub fn unix_us(&self, now: Micros) -> i64 {
        self.identity.unix_us(now)
    }

    /// The same in whole seconds, as claims of tokens are.
    pub fn unix_s(&self, now: Micros) -> i64 {
        self.unix_us(now).div_euclid(1_000_000)
    }
}
