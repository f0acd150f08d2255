//! What both halves of a shard work by: read by all, replaced as a whole by a reload.

use std::sync::Arc;

use crate::config::settings::{GatewaySettings, ShardSettings};
use crate::engine::dispatcher::batch::GatewayIdentity;
use crate::ids::ShardId;
use crate::message::ClientMessage;
use crate::message::{Category, Micros};
use crate::routing::Snapshot;

/// Settings and routing state in force.
#[derive(Debug)]
pub(crate) struct EngineConfig {
    pub shard: ShardId,
    /// Shards of the process.
    pub shards: u16,
    /// The gateway as services see it.
    pub identity: GatewayIdentity,
    /// Process-wide settings.
    pub gateway: Arc<GatewaySettings>,
    /// The shard's own settings.
    pub settings: ShardSettings,
    /// Routes, services and instances: a copy of this shard, see [`EngineConfig::set_snapshot`].
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

    /// Takes new settings.
    pub fn set_settings(&mut self, gateway: Arc<GatewaySettings>, settings: ShardSettings) {
        self.gateway = gateway;
        self.settings = settings;
    }

    /// Takes a copy of a new snapshot. Each message holds the snapshot while it is routed, and the
    /// count of one `Arc` for all shards would be a cache line that every message of every core
    /// writes to.
    pub fn set_snapshot(&mut self, snapshot: &Snapshot) {
        self.snapshot = Arc::new(snapshot.clone());
    }

    /// The part of the gateway that handles a message: by its `type` first, then by its id.
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

    /// Unix time of `now` by the clock of the gateway's start, in microseconds.
    pub fn unix_us(&self, now: Micros) -> i64 {
        self.identity.unix_at_boot_us + now.0 as i64
    }
}
