//! TLS without sockets and clocks. Towards clients: the state of a connection as bytes in and bytes
//! out ([`session`]), and the settings and certificates of handshakes ([`server`]). Towards
//! services: the settings of handshakes ([`service`]). For both the files of the certificates
//! ([`certificate`], [`load`]); the authorities of servers that keys are fetched from
//! ([`authorities`]); and the settings of a client of a gateway ([`client`]).
//!
//! The protocol is rustls' (0.23), the cryptography aws-lc's, which also verifies tokens. Towards
//! clients rustls is used by its unbuffered interface: an idle connection holds no buffer.

pub mod authorities;
pub mod certificate;
pub(crate) mod client;
pub mod load;
pub mod server;
pub mod service;
pub mod session;

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// The crypto library for all TLS in this process.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

#[cfg(test)]
mod tests;
