//! TLS towards clients, without sockets and clocks: a connection's state as bytes in, bytes out
//! ([`session`]); what a handshake needs, made of the settings ([`server`]); the files of the
//! certificates ([`certificate`], [`load`]).
//!
//! The protocol is rustls' (0.23), the cryptography aws-lc's, which also verifies tokens. It is in
//! the unbuffered form of its interface: a connection that says nothing holds no buffer.

pub mod certificate;
pub mod load;
pub mod server;
pub mod session;

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// The one crypto library, for whoever speaks TLS in this process.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

#[cfg(test)]
mod tests;
