//! The certificates that a server must be signed by to which the gateway connects: those of a file,
//! or those of the system.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use super::certificate::{certificates, roots};
use super::load::FILE_BYTES_MAX;
use crate::config::files::read;
use crate::config::settings::AuthMode;
use crate::config::{Config, Problems};

/// Authorities that the servers of keys are signed by.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Authorities {
    /// Certificates of `auth.jwks_ca_file`; `None` = those of the system.
    file: Option<Arc<[CertificateDer<'static>]>>,
}

impl Authorities {
    /// Reads the file that `config` names, if it names one.
    pub(crate) fn read(config: &Config) -> Result<Self, Problems> {
        let auth = &config.gateway.auth;
        let path = auth.jwks_ca_file.as_deref().filter(|_| auth.mode == AuthMode::Jwt);
        let file = path.map(|path| {
            from_file(path).map_err(|rule| {
                let key = "auth.jwks_ca_file".to_owned();
                Problems(vec![config.problem(key, format!("{path:?}"), rule)])
            })
        });
        Ok(Self { file: file.transpose()? })
    }

    /// The certificates. Those of the system are read each time, so that a change of them needs no
    /// reload: some 300 KiB, once for each fetch. The error is a reason in words.
    pub(crate) fn certificates(&self) -> Result<Arc<[CertificateDer<'static>]>, String> {
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        of_system("auth.jwks_ca_file")
    }
}

/// The certificates of the system; `key` names a file instead.
pub(super) fn of_system(key: &str) -> Result<Arc<[CertificateDer<'static>]>, String> {
    let mut found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let why = found.errors.first().map_or(String::new(), |error| format!(" ({error})"));
        return Err(format!(
            "the system has no certificates of authorities{why}: install ca-certificates, or name \
             a file in {key}"
        ));
    }
    // In the order of their bytes, so that the same set is the same list each time.
    found.certs.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
    Ok(found.certs.into())
}

/// The certificates of a file.
pub(super) fn from_file(path: &Path) -> Result<Arc<[CertificateDer<'static>]>, String> {
    let all = certificates(&read(path, FILE_BYTES_MAX)?)?;
    roots(&all)?;
    Ok(all.into())
}
