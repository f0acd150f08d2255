//! Bytes only: the upgrade, frames, the client envelope in JSON and protobuf, and the backend's
//! messages. No I/O, no clock, no state but what a half-received frame needs.

pub mod backend;
pub mod client;
pub mod close;
pub mod frames;
pub mod handshake;
pub mod json;
pub mod protobuf;
pub mod proxy;
