//! The certificates that a server must be signed by to which the gateway connects: those of a file,
//! or those of the system.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use super::certificate::{certificates, roots};
use super::load::FILE_BYTES_MAX;
use crate::config::files::read;
use crate::config::key_files::{KeySettings, OfTenant, Reading};
use crate::config::{Config, Problem, Problems};

/// Authorities that a server of keys is signed by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Authorities {
    /// Certificates of `jwks_ca_file`; `None` = those of the system.
    file: Option<Arc<[CertificateDer<'static>]>>,
    /// The key that names that file, for people.
    key: &'static str,
}

impl Default for Authorities {
    fn default() -> Self {
        Self { file: None, key: "auth.jwks_ca_file" }
    }
}

/// Authorities that the servers of all sets of keys are signed by.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KeyAuthorities {
    /// Authorities for `auth.jwks_url`.
    pub(crate) common: Authorities,
    /// Authorities for the sets of tenants with keys of their own, by their names.
    tenants: BTreeMap<Arc<str>, OfTenant<Authorities>>,
}

impl KeyAuthorities {
    /// Reads the files that `config` names. All problems are reported at once.
    pub(crate) fn read(config: &Config) -> Result<Self, Problems> {
        Self::default().read_again(config, Reading::Start)
    }

    /// The same on an occasion on which these are in force.
    pub(crate) fn read_again(
        &self,
        config: &Config,
        reading: Reading<'_>,
    ) -> Result<Self, Problems> {
        let common = match (reading, KeySettings::of_auth(config)) {
            (_, None) => Ok(Authorities::default()),
            (Reading::Sources(_), Some(_)) => Ok(self.common.clone()),
            (Reading::Start | Reading::Reload(_), Some(settings)) => Authorities::read(&settings),
        };
        let tenants = reading.of_tenants(config, &self.tenants, Authorities::read);
        let (common, tenants) = Problems::join(common, tenants)?;
        Ok(Self { common, tenants })
    }

    /// Authorities for the set of a tenant.
    pub(crate) fn of_tenant(&self, name: &str) -> Authorities {
        self.tenants.get(name).map(|of| of.read.clone()).unwrap_or_default()
    }

    /// Problems with files of tenants' authorities, for which those that were read before stay.
    pub(crate) fn kept(&self) -> impl Iterator<Item = &Problem> {
        self.tenants.values().flat_map(|authorities| &authorities.kept_for)
    }
}

impl Authorities {
    /// Reads the file that `settings` name, if they name one.
    fn read(settings: &KeySettings<'_>) -> Result<Self, Problems> {
        let file = settings.jwks_ca_file.map(|path| {
            from_file(path).map_err(|rule| {
                Problems(vec![settings.problem("jwks_ca_file", format!("{path:?}"), rule)])
            })
        });
        let key = if settings.is_of_tenant() {
            "jwks_ca_file of the tenant"
        } else {
            "auth.jwks_ca_file"
        };
        Ok(Self { file: file.transpose()?, key })
    }

    /// The key that names a file of them, for people.
    pub(crate) fn key(&self) -> &'static str {
        self.key
    }

    /// The certificates. Those of the system are read each time, so that a change of them needs no
    /// reload: some 300 KiB, once for each fetch. The error is a reason in words.
    pub(crate) fn certificates(&self) -> Result<Arc<[CertificateDer<'static>]>, String> {
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        of_system(self.key)
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
