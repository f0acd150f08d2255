//! shardgate: a WebSocket gateway, one pinned thread a core.
pub mod cli;
pub mod config;
pub mod ids;
pub mod limits;
pub mod message;
pub mod preflight;
pub mod stats;
