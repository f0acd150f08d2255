//! TLS towards services: whom the gateway trusts, the name it asks for, and the certificate it
//! shows. Immutable, one for all shards and for the health checks: it is used in handshakes only,
//! never by a message.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::SingleCertAndKey;
use rustls::{AlertDescription, CertificateError, ClientConfig, ClientConnection, Error};

use super::certificate::Certificate;
use super::provider;

/// The only application protocol (RFC 7301): gRPC is HTTP/2. Servers of Go refuse a client that
/// does not ask for it.
const ALPN: &[u8] = b"h2";
/// Servers whose sessions can be resumed, for each service: more instances of one name than a
/// service has in most places; an entry is some hundred bytes.
const SESSIONS_MAX: usize = 256;

/// What TLS towards one service is made of.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    /// Certificates of the authorities that sign the service's certificate.
    pub(crate) trusted: Trusted,
    /// Name that the certificate must cover; `None` = the address of each instance.
    pub(crate) name: Option<ServerName<'static>>,
    /// Certificate that is shown to a service that asks for one.
    pub(crate) own: Option<Certificate>,
}

/// Authorities of services.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Trusted {
    /// The certificates in a file.
    File(Arc<[CertificateDer<'static>]>),
    /// The certificates of the system.
    System(Arc<[CertificateDer<'static>]>),
}

impl PartialEq for Parts {
    /// A certificate has one key, so the chain stands for both.
    fn eq(&self, other: &Self) -> bool {
        let chain = |parts: &Self| parts.own.as_ref().map(|own| own.key.cert.clone());
        (&self.trusted, &self.name, chain(self)) == (&other.trusted, &other.name, chain(other))
    }
}

/// TLS towards the instances of one service.
#[derive(Debug)]
pub struct ServiceTls {
    parts: Parts,
    config: Arc<ClientConfig>,
}

impl ServiceTls {
    /// Makes the settings. The error is about the authorities, in one line.
    pub(crate) fn new(parts: Parts) -> Result<Self, String> {
        let roots = match &parts.trusted {
            Trusted::File(all) => super::certificate::roots(all)?,
            Trusted::System(all) => super::certificate::usable_roots(all),
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots);
        let mut config = match &parts.own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let shown = SingleCertAndKey::from(own.key.clone());
                builder.with_client_cert_resolver(Arc::new(shown))
            }
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
        Ok(Self { parts, config: config.into() })
    }

    /// Whether it was made of the same parts.
    pub(super) fn is_of(&self, parts: &Parts) -> bool {
        self.parts == *parts
    }

    /// Settings for a handshake.
    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        self.config.clone()
    }

    /// Name that the certificate of the instance at `address` must cover.
    pub(crate) fn name(&self, address: SocketAddr) -> ServerName<'static> {
        self.parts.name.clone().unwrap_or_else(|| address.ip().to_canonical().into())
    }

    /// The `:authority` of requests to the instance at `address`: the name, with its port.
    pub(crate) fn authority(&self, address: SocketAddr) -> String {
        let port = address.port();
        match &self.parts.name {
            Some(ServerName::DnsName(name)) => format!("{}:{port}", name.as_ref()),
            Some(ServerName::IpAddress(ip)) => {
                SocketAddr::new(std::net::IpAddr::from(*ip), port).to_string()
            }
            Some(_) | None => address.to_string(),
        }
    }

    /// Checks the protocol that a handshake agreed on; the error is a reason in words.
    pub(crate) fn check_protocol(connection: &ClientConnection) -> Result<(), String> {
        match connection.alpn_protocol() {
            Some(ALPN) => Ok(()),
            Some(_) | None => Err("TLS: it did not choose HTTP/2 in the handshake (ALPN h2): let \
                                   its server, or the proxy before it, offer that"
                .into()),
        }
    }

    /// Reason in words for an error of a connection, with the way out.
    pub(crate) fn why(&self, error: &io::Error) -> String {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return "TLS: it closed the connection in the handshake; does it speak TLS?".into();
        }
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        inner.map_or_else(|| error.to_string(), |error| format!("TLS: {}", self.reason(error)))
    }

    fn reason(&self, error: &Error) -> String {
        match error {
            Error::InvalidMessage(_) => {
                "it does not speak TLS: take tls out of the service, or correct the address".into()
            }
            Error::InvalidCertificate(bad) => self.bad_certificate(bad),
            Error::PeerIncompatible(_) => {
                format!("it has no version or cipher in common with the gateway ({error})")
            }
            Error::AlertReceived(alert) => self.alert(*alert),
            other => other.to_string(),
        }
    }

    fn bad_certificate(&self, bad: &CertificateError) -> String {
        use CertificateError as Bad;
        match bad {
            // A signature of an authority of the same name, which has another key now.
            Bad::UnknownIssuer | Bad::BadSignature => match self.parts.trusted {
                Trusted::File(_) => "no authority in tls.ca_file signed its certificate".into(),
                Trusted::System(_) => "no authority of this system signed its certificate: name \
                                       the file of its own in tls.ca_file"
                    .into(),
            },
            Bad::Expired | Bad::ExpiredContext { .. } => {
                "its certificate has expired: renew it there".into()
            }
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
                "its certificate is not valid yet: see that both clocks are right".into()
            }
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } => {
                let says = bad.to_string();
                let says = says.split_once("; ").map_or(says.as_str(), |(_, presented)| presented);
                let asked = match &self.parts.name {
                    Some(name) => name.to_str().into_owned(),
                    None => "the address of the instance".into(),
                };
                format!("its certificate is not for {asked} ({says}): set tls.server_name")
            }
            Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. } => {
                "its certificate is not for servers (extended key usage)".into()
            }
            // webpki's words, which rustls has none for.
            other if format!("{other:?}").contains("CaUsedAsEndEntity") => {
                "its certificate is that of an authority (CA:TRUE), which no server may show: \
                 let it sign another one for the server"
                    .into()
            }
            other => format!("its certificate cannot be used: {other}"),
        }
    }

    fn alert(&self, alert: AlertDescription) -> String {
        use AlertDescription as Alert;
        match (alert, &self.parts.own) {
            (Alert::NoApplicationProtocol, _) => {
                "it does not speak HTTP/2 (alert NoApplicationProtocol)".into()
            }
            (Alert::UnrecognisedName, _) => {
                "it serves no such name (alert UnrecognisedName): correct tls.server_name".into()
            }
            (Alert::CertificateRequired, None) => {
                "it wants a client certificate: set tls.cert_file and tls.key_file".into()
            }
            // Before TLS 1.3 there is no alert of that meaning, and each library has its own.
            (Alert::HandshakeFailure | Alert::BadCertificate | Alert::CertificateUnknown, None) => {
                format!(
                    "it refused the handshake (alert {alert:?}): if it wants a client \
                     certificate, set tls.cert_file and tls.key_file"
                )
            }
            (
                Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::CertificateRequired
                | Alert::UnknownCA
                | Alert::AccessDenied
                | Alert::DecryptError,
                Some(_),
            ) => format!("it refused the certificate in tls.cert_file (alert {alert:?})"),
            (other, _) => format!("it ended the connection with the alert {other:?}"),
        }
    }
}

/// TLS towards services, by their names. A service that is not in it is spoken to without.
#[derive(Clone, Debug, Default)]
pub struct ServicesTls(Arc<BTreeMap<Arc<str>, Arc<ServiceTls>>>);

impl ServicesTls {
    /// The settings of these services.
    pub(super) fn new(all: BTreeMap<Arc<str>, Arc<ServiceTls>>) -> Self {
        Self(all.into())
    }

    /// Settings for a service; `None` = no TLS.
    pub(crate) fn of(&self, service: &str) -> Option<&Arc<ServiceTls>> {
        self.0.get(service)
    }

    /// Whether both have the same settings for a service.
    pub(crate) fn same(&self, other: &Self, service: &str) -> bool {
        match (self.of(service), other.of(service)) {
            (Some(one), Some(two)) => Arc::ptr_eq(one, two),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        }
    }
}
