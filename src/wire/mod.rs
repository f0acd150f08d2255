//! Protocols as bytes: the upgrade, frames, the client envelope in JSON and protobuf, and the
//! messages of services. No I/O, no clock, no state but that of a half-received frame.

pub mod backend;
pub(crate) mod bad_message;
pub mod client;
pub(crate) mod close;
pub(crate) mod events;
pub mod forwarded;
pub mod frames;
pub mod groups;
pub mod handshake;
pub mod json;
pub mod protobuf;
pub mod proxy;
pub mod push;
pub(crate) mod trace_context;
