//! The settings of handshakes: versions, certificates by name, tickets. Immutable, one for all
//! shards: it is used in handshakes only, never by a message.

use std::sync::Arc;

use rustls::client::verify_server_name;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ParsedCertificate, ProducesTickets, ResolvesServerCert,
    WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SupportedProtocolVersion, version};

use super::certificate::{Certificate, roots};
use super::provider;
use crate::config::settings::{ClientCertificates, TlsVersion};

/// The only application protocol (RFC 7301): the upgrade request is HTTP/1.1. A client that offers
/// only others is refused with an alert; one that offers none is accepted.
const ALPN: &[u8] = b"http/1.1";

/// Whether clients show certificates, and the certificates that sign those.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientAuth {
    /// Whether clients are asked for a certificate.
    pub asked: ClientCertificates,
    /// Certificates that sign the clients'; empty with [`ClientCertificates::Off`].
    pub signers: Vec<CertificateDer<'static>>,
}

/// Settings for handshakes of TLS.
#[derive(Debug)]
pub struct Server {
    config: Arc<ServerConfig>,
    clients: ClientAuth,
    tickets: Arc<dyn ProducesTickets>,
}

impl Server {
    /// Makes the settings. The first of `certificates` is for clients that name no server. Tickets
    /// of `before` stay valid. If clients are asked for certificates no tickets are given out or
    /// accepted. The error is about `clients`, in one line.
    pub fn new(
        min_version: TlsVersion,
        certificates: &[Certificate],
        clients: ClientAuth,
        before: Option<&Server>,
    ) -> Result<Self, String> {
        const BOTH: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];
        const NEW: &[&SupportedProtocolVersion] = &[&version::TLS13];
        let versions = match min_version {
            TlsVersion::V12 => BOTH,
            TlsVersion::V13 => NEW,
        };
        let provider = provider();
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(|error| error.to_string())?;
        let builder = match clients.asked {
            ClientCertificates::Off => builder.with_no_client_auth(),
            ClientCertificates::Optional | ClientCertificates::Required => {
                let roots = Arc::new(roots(&clients.signers)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                let verifier = match clients.asked {
                    ClientCertificates::Optional => verifier.allow_unauthenticated(),
                    ClientCertificates::Off | ClientCertificates::Required => verifier,
                };
                builder.with_client_cert_verifier(verifier.build().map_err(|e| e.to_string())?)
            }
        };
        let tickets = match before {
            Some(before) if before.clients == clients => before.tickets.clone(),
            Some(_) | None => Ticketer::new().map_err(|error| error.to_string())?,
        };
        let names = Names { all: certificates.iter().map(|c| c.key.clone()).collect() };
        let mut config = builder.with_cert_resolver(Arc::new(names));
        config.alpn_protocols = vec![ALPN.to_vec()];
        if clients.asked == ClientCertificates::Off {
            config.ticketer = tickets.clone();
        } else {
            // A client that resumes does not show its certificate again, though it may have
            // expired.
            config.send_tls13_tickets = 0;
        }
        // All state of a session is in its ticket: shards share no table of sessions.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        // Early data can be sent again by anybody who recorded it (RFC 8446, 8).
        config.max_early_data_size = 0;
        Ok(Self { config: config.into(), clients, tickets })
    }

    pub(super) fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }
}

/// Certificates, to be found by the names in them.
#[derive(Debug)]
struct Names {
    all: Vec<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Names {
    /// The first certificate that covers the name. If there is none the handshake ends with
    /// `unrecognized_name`.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match hello.server_name() {
            None => self.all.first().cloned(),
            Some(name) => {
                let name = ServerName::try_from(name).ok()?;
                self.all.iter().find(|key| covers(key, &name)).cloned()
            }
        }
    }
}

fn covers(key: &CertifiedKey, name: &ServerName<'_>) -> bool {
    let parsed = key.end_entity_cert().and_then(ParsedCertificate::try_from);
    parsed.is_ok_and(|certificate| verify_server_name(&certificate, name).is_ok())
}
