//! shardgate: a WebSocket gateway, one pinned thread a core.
pub mod backend;
pub mod config;
pub mod ids;
pub mod limits;
pub mod message;
pub mod stats;
