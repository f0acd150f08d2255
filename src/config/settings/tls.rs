//! Settings of `[tls]` and `[[tls_certificate]]`: TLS towards clients; and of the table `tls` of a
//! `[[service]]`: TLS towards services.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// The section `[tls]` and the list `[[tls_certificate]]`. Live, but for `listen`.
#[derive(Clone, Debug, PartialEq)]
pub struct TlsSettings {
    /// Address where clients connect with TLS; `None` = nowhere. Boot.
    pub listen: Option<SocketAddr>,
    /// Oldest version that is accepted.
    pub min_version: TlsVersion,
    /// Whether clients are asked for a certificate.
    pub client_certificates: ClientCertificates,
    /// File with the certificates that sign the clients' certificates, PEM.
    pub client_ca_file: Option<PathBuf>,
    /// Certificates of the gateway, in the order in which they are tried for a name. Never empty
    /// with `listen`.
    pub certificates: Vec<TlsCertificate>,
}

/// Versions of TLS: the values of `min_version`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    V12,
    /// TLS 1.3 (RFC 8446).
    V13,
}

/// Demands on clients: the values of `client_certificates`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientCertificates {
    /// Clients are not asked for a certificate.
    Off,
    /// A certificate that a client shows must be valid; a client without one is accepted.
    Optional,
    /// Every client must show a valid certificate.
    Required,
}

/// An entry of `[[tls_certificate]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct TlsCertificate {
    /// File with the certificate and those between it and a root, PEM.
    pub chain_file: PathBuf,
    /// File with the certificate's private key, PEM.
    pub key_file: PathBuf,
}

/// The table `tls` of a `[[service]]`. Live.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceTlsSettings {
    /// File with the certificates that sign the service's certificate, PEM; `None` = those of the
    /// system.
    pub ca_file: Option<PathBuf>,
    /// Name that the service's certificate must cover, a host name or an IP address (checked);
    /// `None` = the address of each instance.
    pub server_name: Option<Arc<str>>,
    /// File with the certificate that is shown to the service, and those between it and a root,
    /// PEM; together with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// File with the private key of that certificate, PEM.
    pub key_file: Option<PathBuf>,
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
