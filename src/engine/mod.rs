//! The pure state of a shard: events and the time in, effects out.
pub mod budget;
pub mod cache;
pub mod dedup;
pub mod store;
