//! shardgate: a WebSocket gateway, one pinned thread a core.

pub mod backend;
pub mod boot;
pub mod cli;
pub mod config;
pub mod control;
pub mod demo;
pub mod echo;
pub mod engine;
pub mod ids;
pub mod lanes;
pub mod limits;
pub mod mailbox;
pub mod message;
pub mod preflight;
pub mod readiness;
pub mod shard;
pub mod stats;
pub mod wire;
