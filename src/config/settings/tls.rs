//! Settings of `[tls]` and `[[tls_certificate]]`: TLS towards clients.

use std::net::SocketAddr;
use std::path::PathBuf;

/// `[tls]` and `[[tls_certificate]]`. Live, but for `listen`.
#[derive(Clone, Debug, PartialEq)]
pub struct TlsSettings {
    /// Where clients connect with TLS; `None` = nowhere. Boot.
    pub listen: Option<SocketAddr>,
    /// Oldest version that is spoken.
    pub min_version: TlsVersion,
    /// Whether clients show a certificate.
    pub client_certificates: ClientCertificates,
    /// Certificates that sign the clients' ones, PEM.
    pub client_ca_file: Option<PathBuf>,
    /// Our own, in the order in which they are tried for a name. Never empty with `listen`.
    pub certificates: Vec<TlsCertificate>,
}

/// `min_version = "1.2" | "1.3"`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    V12,
    /// TLS 1.3 (RFC 8446).
    V13,
}

/// `client_certificates = "off" | "optional" | "required"`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientCertificates {
    /// None is asked for.
    Off,
    /// One that is shown must be good; who shows none is let in.
    Optional,
    /// Everybody shows a good one.
    Required,
}

/// `[[tls_certificate]]`
#[derive(Clone, Debug, PartialEq)]
pub struct TlsCertificate {
    /// The certificate and those between it and a root, PEM.
    pub chain_file: PathBuf,
    /// Its private key, PEM.
    pub key_file: PathBuf,
}

impl Default for TlsSettings {
    fn default() -> Self {
        Self {
            listen: None,
            min_version: TlsVersion::V12,
            client_certificates: ClientCertificates::Off,
            client_ca_file: None,
            certificates: Vec::new(),
        }
    }
}
