//! TLS of a configuration: its files, read and checked together.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::ServerName;

use super::authorities::{self, KeyAuthorities};
use super::certificate::{BadCertificate, Certificate, certificates};
use super::provider;
use super::server::{ClientAuth, Server};
use super::service::{Parts, ServiceTls, ServicesTls, Trusted};
use crate::config::files::read;
use crate::config::key_files::Reading;
use crate::config::settings::{ClientCertificates, ServiceTlsSettings};
use crate::config::{Config, Problem, Problems};

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

impl CertificateInfo {
    fn of(file: &Path, certificate: &Certificate) -> Self {
        Self { file: file.to_string_lossy().into(), expires: certificate.expires }
    }
}

/// Certificates that were read with the configuration; all of them can be used.
#[derive(Clone, Debug, Default)]
pub struct LocalTls {
    server: Option<Arc<Server>>,
    services: ServicesTls,
    certificates: Vec<CertificateInfo>,
    authorities: KeyAuthorities,
}

impl LocalTls {
    /// Reads the files that `config` names. All problems are reported at once, by their places.
    /// `now` is Unix time in seconds. Tickets of `before` stay valid if they may.
    pub(crate) fn read(
        config: &Config,
        now: i64,
        before: Option<&LocalTls>,
        reading: Reading<'_>,
    ) -> Result<Self, Problems> {
        let listener = Self::read_listener(config, now, before);
        let services = read_services(config, now, before);
        let services = Problems::join(services, check_demo(config, now)).map(|(all, ())| all);
        let both = Problems::join(listener, services);
        let none = KeyAuthorities::default();
        let authorities = before.map_or(&none, |before| &before.authorities);
        let authorities = authorities.read_again(config, reading);
        let ((listener, (services, own)), authorities) = Problems::join(both, authorities)?;
        let mut certificates = listener.certificates;
        certificates.extend(own);
        // A file that is named twice is one certificate.
        certificates.sort_by(|a, b| a.file.cmp(&b.file));
        certificates.dedup_by(|a, b| a.file == b.file);
        Ok(Self { server: listener.server, services, certificates, authorities })
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
        let (mut all, mut in_force) = (Vec::new(), Vec::new());
        for (index, files) in tls.certificates.iter().enumerate() {
            let keys =
                ["chain_file", "key_file"].map(|key| format!("tls_certificate[{index}].{key}"));
            match read_pair(config, keys, [&files.chain_file, &files.key_file], now) {
                Ok(certificate) => {
                    in_force.push(CertificateInfo::of(&files.chain_file, &certificate));
                    all.push(certificate);
                }
                Err(Problems(list)) => problems.extend(list),
            }
        }
        let mut clients = ClientAuth { asked: tls.client_certificates, signers: Vec::new() };
        let asks = clients.asked != ClientCertificates::Off;
        let ca = tls.client_ca_file.as_deref().filter(|_| asks);
        if let Some(path) = ca {
            match read(path, FILE_BYTES_MAX).and_then(|text| certificates(&text)) {
                Ok(signers) => clients.signers = signers,
                Err(rule) => problems.push(about(config, "tls.client_ca_file", path, rule)),
            }
        }
        if !problems.is_empty() {
            return Err(Problems(problems));
        }
        let before = before.and_then(|before| before.server.as_deref());
        let server = Server::new(tls.min_version, &all, clients, before).map_err(|rule| {
            let path = ca.unwrap_or(Path::new(""));
            Problems(vec![about(config, "tls.client_ca_file", path, rule)])
        })?;
        Ok(Self { server: Some(server.into()), certificates: in_force, ..Self::default() })
    }

    /// Settings for the shards' handshakes; `None` = no listener speaks TLS.
    pub(crate) fn server(&self) -> Option<Arc<Server>> {
        self.server.clone()
    }

    /// Settings for handshakes with services.
    pub(crate) fn services(&self) -> &ServicesTls {
        &self.services
    }

    /// The authorities that servers of keys are signed by.
    pub(crate) fn authorities(&self) -> &KeyAuthorities {
        &self.authorities
    }

    /// Puts other authorities in the place of those.
    pub(crate) fn set_authorities(&mut self, authorities: KeyAuthorities) {
        self.authorities = authorities;
    }

    /// The certificates in force, by their files.
    pub(crate) fn certificates(&self) -> &[CertificateInfo] {
        &self.certificates
    }
}

/// A problem with the file at `path`, which `key` names.
fn about(config: &Config, key: &str, path: &Path, rule: String) -> Problem {
    config.problem(key.to_owned(), format!("{path:?}"), rule)
}

/// Reads a certificate and its key from the files that `keys` name.
fn read_pair(
    config: &Config,
    keys: [String; 2],
    paths: [&Path; 2],
    now: i64,
) -> Result<Certificate, Problems> {
    let fail = |n: usize, rule| Problems(vec![about(config, &keys[n], paths[n], rule)]);
    let text = |n: usize| read(paths[n], FILE_BYTES_MAX).map_err(|rule| fail(n, rule));
    let (chain, key) = Problems::join(text(0), text(1))?;
    Certificate::new(&provider(), &chain, &key, now).map_err(|bad| match bad {
        BadCertificate::Chain(rule) => fail(0, rule),
        BadCertificate::Key(rule) => fail(1, rule),
    })
}

/// Checks the files that the demo services read themselves.
fn check_demo(config: &Config, now: i64) -> Result<(), Problems> {
    let demo = &config.gateway.demo;
    match (&demo.tls_cert, &demo.tls_key) {
        (Some(chain), Some(key)) if demo.enabled => {
            let keys = ["demo.tls_cert", "demo.tls_key"].map(str::to_owned);
            read_pair(config, keys, [chain, key], now).map(drop)
        }
        (_, _) => Ok(()),
    }
}

/// Reads the files for connections to services. Settings of `before` that were made of the same
/// contents stay the same ones, so that connections by them go on.
fn read_services(
    config: &Config,
    now: i64,
    before: Option<&LocalTls>,
) -> Result<(ServicesTls, Vec<CertificateInfo>), Problems> {
    let (mut all, mut own) = (BTreeMap::new(), Vec::new());
    let mut problems = Vec::new();
    for (index, service) in config.snapshot.services.iter().enumerate() {
        let name = &service.name;
        let Some(settings) = config.service_tls.get(name) else { continue };
        let place = format!("service[{index}].tls");
        let parts = match read_service(config, &place, settings, now) {
            Ok(parts) => parts,
            Err(Problems(list)) => {
                problems.extend(list);
                continue;
            }
        };
        if let (Some(file), Some(certificate)) = (&settings.cert_file, &parts.own) {
            own.push(CertificateInfo::of(file, certificate));
        }
        let same = before.and_then(|before| before.services.of(name));
        if let Some(same) = same.filter(|same| same.is_of(&parts)) {
            all.insert(name.clone(), same.clone());
            continue;
        }
        match ServiceTls::new(parts) {
            Ok(tls) => drop(all.insert(name.clone(), tls.into())),
            Err(rule) => {
                let path = settings.ca_file.as_deref().unwrap_or(Path::new(""));
                problems.push(about(config, &format!("{place}.ca_file"), path, rule));
            }
        }
    }
    if problems.is_empty() { Ok((ServicesTls::new(all), own)) } else { Err(Problems(problems)) }
}

/// Reads the files of one service, whose keys are in the table `place`.
fn read_service(
    config: &Config,
    place: &str,
    settings: &ServiceTlsSettings,
    now: i64,
) -> Result<Parts, Problems> {
    let key = |name| format!("{place}.{name}");
    let trusted = match &settings.ca_file {
        Some(path) => authorities::from_file(path).map(Trusted::File),
        None => authorities::of_system("tls.ca_file").map(Trusted::System),
    };
    let trusted = trusted.map_err(|rule| {
        let path = settings.ca_file.as_deref().unwrap_or(Path::new(""));
        Problems(vec![about(config, &key("ca_file"), path, rule)])
    });
    let own = match (&settings.cert_file, &settings.key_file) {
        (Some(chain), Some(key_file)) => {
            let keys = [key("cert_file"), key("key_file")];
            read_pair(config, keys, [chain, key_file], now).map(Some)
        }
        (_, _) => Ok(None),
    };
    let (trusted, own) = Problems::join(trusted, own)?;
    // The name was checked with the configuration.
    let name =
        settings.server_name.as_deref().and_then(|name| ServerName::try_from(name.to_owned()).ok());
    Ok(Parts { trusted, name, own })
}
