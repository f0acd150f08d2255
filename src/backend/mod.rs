//! The HTTP/2 and gRPC client with which a shard talks to one instance.
//!
//! `framing`, `status` and `backoff` are pure; `channel` is the only part that knows sockets.
pub mod backoff;
pub mod channel;
pub mod framing;
pub mod status;
