//! The HTTP/2 and gRPC client of a shard for one instance.
//!
//! `framing`, `status` and `backoff` are pure; `channel` alone uses sockets.
pub mod backoff;
pub mod channel;
pub mod framing;
pub mod status;
