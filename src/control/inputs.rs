//! Parts of the running gateway that boot hands to control.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::compose::Composer;
use super::log::DroppedLines;
use crate::auth::load::LocalKeys;
use crate::config::{Config, Loader};
use crate::lanes::{Doorbell, LaneReceiver, LaneSender, PlaceSender};
use crate::mailbox::{Command, ShardEvent};
use crate::push::Submit;
use crate::tls::load::LocalTls;

/// Everything that control starts with.
pub(crate) struct ControlInputs {
    /// Configuration that the shards were started with.
    pub config: Config,
    /// Files, environment and flags that `config` was read from.
    pub loader: Loader,
    /// Maker of snapshots; its first one is what the shards started with.
    pub composer: Composer,
    pub local: LocalFiles,
    pub listens: Listens,
    /// Mailboxes of the shards, by number.
    pub shards: Vec<LaneSender<Command>>,
    /// Events of all shards.
    pub events: LaneReceiver<ShardEvent>,
    /// Lanes for pushes, to every shard by its number.
    pub pushes: Vec<PlaceSender<Submit>>,
    /// Doorbell that `events` ring.
    pub bell: Arc<Doorbell>,
    /// Random number of this run.
    pub boot_id: u64,
    pub cores: Cores,
    /// Start of the process.
    pub started: Instant,
    /// Socket of the admin endpoint, listening.
    pub admin: std::net::TcpListener,
    /// Socket of the probes, listening, if there is one.
    pub probes: Option<std::net::TcpListener>,
    /// Connections at once of the admin endpoint, and as many of the probes.
    pub admin_connections: usize,
    /// Socket of the registry, listening, if there is one.
    pub registry: Option<std::net::TcpListener>,
    /// Socket of the doors of pushes, listening, if there is one.
    pub push: Option<std::net::TcpListener>,
    /// Seed of jitter: spreads in time what must not happen all at once.
    pub seed: u64,
    /// Count of lost log lines; `None` without [`super::log::init`].
    pub log_dropped: Option<DroppedLines>,
}

/// Keys, certificates and limits that the start found on this machine.
pub(crate) struct LocalFiles {
    /// Keys of tokens, as far as the configuration and its files hold them.
    pub keys: LocalKeys,
    /// Certificates, and the TLS server made of them.
    pub tls: LocalTls,
    /// Connections that a shard may accept at most, whatever is configured: as many as the limit
    /// of open files allows.
    pub connections_cap: usize,
}

/// Addresses at which clients connect, as bound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listens {
    pub plain: Option<SocketAddr>,
    pub tls: Option<SocketAddr>,
}

/// Cores of the process's threads.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cores {
    /// Core of each shard, by number.
    pub shards: Vec<usize>,
    /// Cores of all other threads. They are those of shards if there are no others.
    pub others: Vec<usize>,
}
