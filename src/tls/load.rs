//! TLS of a configuration: its files, read and checked together.

use std::path::Path;
use std::sync::Arc;

use super::authorities::Authorities;
use super::certificate::{BadCertificate, Certificate, certificates};
use super::provider;
use super::server::{ClientAuth, Server};
use crate::config::files::read;
use crate::config::settings::ClientCertificates;
use crate::config::{Config, Problems};

/// Most bytes of a file with a chain, a key, or the certificates that sign clients': ten of 4 KiB
/// are a long chain, and a thousand of 1 KiB are many authorities.
pub(super) const FILE_BYTES_MAX: u64 = 1 << 20;

/// A certificate in force, to watch its expiry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CertificateInfo {
    /// File of the certificate, as configured.
    pub(crate) file: Arc<str>,
    /// Unix time in seconds after which the certificate is not valid.
    pub(crate) expires: i64,
}

/// Certificates that were read with the configuration; all of them can be used.
#[derive(Clone, Debug, Default)]
pub struct LocalTls {
    server: Option<Arc<Server>>,
    certificates: Vec<CertificateInfo>,
    authorities: Authorities,
}

impl LocalTls {
    /// Reads the files that `config` names. All problems are reported at once, by their places.
    /// `now` is Unix time in seconds. Tickets of `before` stay valid if they may.
    pub(crate) fn read(
        config: &Config,
        now: i64,
        before: Option<&LocalTls>,
    ) -> Result<Self, Problems> {
        let listener = Self::read_listener(config, now, before);
        let (listener, authorities) = Problems::join(listener, Authorities::read(config))?;
        Ok(Self { authorities, ..listener })
    }

    /// Reads the files for connections of clients.
    fn read_listener(
        config: &Config,
        now: i64,
        before: Option<&LocalTls>,
    ) -> Result<Self, Problems> {
        let tls = &config.gateway.tls;
        if tls.listen.is_none() {
            return Ok(Self::default());
        }
        let mut problems = Vec::new();
        let mut fail = |key: String, path: &Path, rule: String| {
            problems.push(config.problem(key, format!("{path:?}"), rule));
        };
        let provider = provider();
        let (mut all, mut in_force) = (Vec::new(), Vec::new());
        for (index, files) in tls.certificates.iter().enumerate() {
            let [chain_key, key_key] =
                ["chain_file", "key_file"].map(|key| format!("tls_certificate[{index}].{key}"));
            let chain = read(&files.chain_file, FILE_BYTES_MAX)
                .map_err(|rule| fail(chain_key.clone(), &files.chain_file, rule));
            let key = read(&files.key_file, FILE_BYTES_MAX)
                .map_err(|rule| fail(key_key.clone(), &files.key_file, rule));
            let (Ok(chain), Ok(key)) = (chain, key) else { continue };
            match Certificate::new(&provider, &chain, &key, now) {
                Ok(certificate) => {
                    let file = files.chain_file.to_string_lossy().into();
                    in_force.push(CertificateInfo { file, expires: certificate.expires });
                    all.push(certificate);
                }
                Err(BadCertificate::Chain(rule)) => fail(chain_key, &files.chain_file, rule),
                Err(BadCertificate::Key(rule)) => fail(key_key, &files.key_file, rule),
            }
        }
        let mut clients = ClientAuth { asked: tls.client_certificates, signers: Vec::new() };
        let asks = clients.asked != ClientCertificates::Off;
        let ca = tls.client_ca_file.as_deref().filter(|_| asks);
        if let Some(path) = ca {
            match read(path, FILE_BYTES_MAX).and_then(|text| certificates(&text)) {
                Ok(signers) => clients.signers = signers,
                Err(rule) => fail("tls.client_ca_file".into(), path, rule),
            }
        }
        if !problems.is_empty() {
            return Err(Problems(problems));
        }
        let before = before.and_then(|before| before.server.as_deref());
        let server = Server::new(tls.min_version, &all, clients, before).map_err(|rule| {
            let value = format!("{:?}", ca.unwrap_or(Path::new("")));
            Problems(vec![config.problem("tls.client_ca_file".into(), value, rule)])
        })?;
        let server = Some(server.into());
        Ok(Self { server, certificates: in_force, authorities: Authorities::default() })
    }

    /// Settings for the shards' handshakes; `None` = no listener speaks TLS.
    pub(crate) fn server(&self) -> Option<Arc<Server>> {
        self.server.clone()
    }

    /// The authorities that servers of keys are signed by.
    pub(crate) fn authorities(&self) -> &Authorities {
        &self.authorities
    }

    /// The certificates in force, in the order of the configuration.
    pub(crate) fn certificates(&self) -> &[CertificateInfo] {
        &self.certificates
    }
}
