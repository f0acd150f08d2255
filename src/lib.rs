//! shardgate: a WebSocket gateway, one pinned thread a core.
pub mod config;
pub mod demo;
pub mod ids;
pub mod lanes;
pub mod limits;
pub mod mailbox;
pub mod message;
pub mod stats;
