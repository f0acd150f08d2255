//! The files with keys of tokens: those that `[auth]` names, and those of each tenant with keys of
//! its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::files::read;
use super::settings::{Algorithm, AuthKey, AuthMode, KeySource, TenantSettings};
use super::{Config, Problem, Problems};

/// Largest key file. An RSA key of 8,192 bits is 1.4 KiB of PEM.
const KEY_FILE_BYTES_MAX: u64 = 16 << 10;
/// Largest JWK set: some hundred keys.
pub(crate) const JWKS_BYTES_MAX: u64 = 64 << 10;

/// The settings of one owner's keys, with their places in the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeySettings<'a> {
    config: &'a Config,
    /// `None`: those of `[auth]`.
    tenant: Option<&'a TenantSettings>,
    pub(crate) keys: &'a [AuthKey],
    jwks_file: Option<&'a Path>,
    pub(crate) jwks_url: Option<&'a str>,
    pub(crate) jwks_ca_file: Option<&'a Path>,
}

impl<'a> KeySettings<'a> {
    /// Settings of `[auth]`; `None` = nobody signs in.
    pub(crate) fn of_auth(config: &'a Config) -> Option<Self> {
        let auth = &config.gateway.auth;
        let settings = Self {
            config,
            tenant: None,
            keys: &auth.keys,
            jwks_file: auth.jwks_file.as_deref(),
            jwks_url: auth.jwks_url.as_deref(),
            jwks_ca_file: auth.jwks_ca_file.as_deref(),
        };
        (auth.mode == AuthMode::Jwt).then_some(settings)
    }

    /// Settings of the tenants that have keys of their own.
    pub(crate) fn of_tenants(
        config: &'a Config,
    ) -> impl Iterator<Item = (Self, &'a TenantSettings)> {
        let signs_in = config.gateway.auth.mode == AuthMode::Jwt;
        let tenants = config.tenants.iter().filter(move |_| signs_in);
        tenants.filter_map(move |tenant| {
            let tokens = tenant.tokens.as_ref()?;
            let settings = Self {
                config,
                tenant: Some(tenant),
                keys: &tokens.keys,
                jwks_file: tokens.jwks_file.as_deref(),
                jwks_url: tokens.jwks_url.as_deref(),
                jwks_ca_file: tokens.jwks_ca_file.as_deref(),
            };
            Some((settings, tenant))
        })
    }

    /// Whether they are a tenant's.
    pub(crate) fn is_of_tenant(&self) -> bool {
        self.tenant.is_some()
    }

    /// A problem with one of the settings, at its place: `key` is `jwks_file`,
    /// `auth_key[1].secret_file` and so on.
    pub(crate) fn problem(&self, key: &str, value: String, rule: String) -> Problem {
        let key = match self.tenant {
            Some(tenant) => format!("{}.{key}", self.config.place_of_tenant(&tenant.name)),
            None if key.starts_with("auth_key[") => key.to_owned(),
            None => format!("auth.{key}"),
        };
        self.config.problem(key, value, rule)
    }

    /// Reads the files; all problems at once, by their keys.
    pub(crate) fn read(&self) -> Result<KeyTexts, Problems> {
        let mut problems = Vec::new();
        let mut fail = |key: String, path: &Path, rule: String| {
            problems.push(self.problem(&key, format!("{path:?}"), rule));
        };
        let mut texts = KeyTexts::default();
        for (index, key) in self.keys.iter().enumerate() {
            let text = match &key.source {
                KeySource::Secret(secret) => Ok(secret.clone().into_bytes()),
                KeySource::SecretFile(path) => secret_file(path, key.algorithm)
                    .map_err(|rule| fail(format!("auth_key[{index}].secret_file"), path, rule)),
                KeySource::PublicKeyFile(path) => read(path, KEY_FILE_BYTES_MAX)
                    .map_err(|rule| fail(format!("auth_key[{index}].public_key_file"), path, rule)),
            };
            texts.keys.extend(text);
        }
        if let Some(path) = self.jwks_file {
            let utf8 = |bytes| String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned());
            match read(path, JWKS_BYTES_MAX).and_then(utf8) {
                Ok(text) => texts.jwks = Some(text),
                Err(rule) => fail("jwks_file".into(), path, rule),
            }
        }
        if problems.is_empty() { Ok(texts) } else { Err(Problems(problems)) }
    }
}

/// An occasion on which the files are read, with the configuration in force.
#[derive(Clone, Copy, Debug)]
pub enum Reading<'a> {
    /// The start: all files are read.
    Start,
    /// A reload: all files are read. Where one of a tenant of a source cannot be read any more,
    /// what was read of it stays, and the problem is noted with it: that is no mistake of the files
    /// that are reloaded.
    Reload(&'a Config),
    /// Other tables of sources: only the files of tenants whose settings differ are read.
    Sources(&'a Config),
}

/// The contents of files of a tenant.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OfTenant<T> {
    pub(crate) read: T,
    /// Problems with the files since then, for which that stays.
    pub(crate) kept_for: Vec<Problem>,
}

impl<T> OfTenant<T> {
    fn new(read: T) -> Self {
        Self { read, kept_for: Vec::new() }
    }
}

impl Reading<'_> {
    /// What was read `before` of a tenant, if its settings are still the same.
    fn kept<'b, T>(
        self,
        tenant: &TenantSettings,
        before: &'b BTreeMap<Arc<str>, OfTenant<T>>,
    ) -> Option<&'b OfTenant<T>> {
        let config = match self {
            Self::Start => return None,
            Self::Reload(config) | Self::Sources(config) => config,
        };
        let known = config.tenants.iter().find(|known| known.name == tenant.name)?;
        before.get(&tenant.name).filter(|_| known.tokens == tenant.tokens)
    }

    /// Reads files of each tenant with keys of its own, by `read`. `before` is what was read of
    /// those in force.
    pub(crate) fn of_tenants<T: Clone>(
        self,
        config: &Config,
        before: &BTreeMap<Arc<str>, OfTenant<T>>,
        read: impl Fn(&KeySettings<'_>) -> Result<T, Problems>,
    ) -> Result<BTreeMap<Arc<str>, OfTenant<T>>, Problems> {
        let (mut all, mut problems) = (BTreeMap::new(), Vec::new());
        for (settings, tenant) in KeySettings::of_tenants(config) {
            let kept = self.kept(tenant, before).cloned();
            let found = match (self, kept) {
                (Self::Sources(_), Some(kept)) => Ok(kept),
                (Self::Reload(_), Some(kept)) if config.is_of_source(&tenant.name) => {
                    Ok(match read(&settings) {
                        Ok(read) => OfTenant::new(read),
                        Err(Problems(kept_for)) => OfTenant { kept_for, ..kept },
                    })
                }
                (Self::Start | Self::Reload(_) | Self::Sources(_), _) => {
                    read(&settings).map(OfTenant::new)
                }
            };
            match found {
                Ok(found) => drop(all.insert(tenant.name.clone(), found)),
                Err(Problems(list)) => problems.extend(list),
            }
        }
        if problems.is_empty() { Ok(all) } else { Err(Problems(problems)) }
    }
}

/// The contents of the files that an owner's settings name. `Debug` does not show them: they are
/// secrets.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct KeyTexts {
    /// The keys of the list, in its order: the bytes of a secret, or PEM.
    pub(crate) keys: Vec<Vec<u8>>,
    /// The JWK set in `jwks_file`.
    pub(crate) jwks: Option<String>,
}

impl std::fmt::Debug for KeyTexts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyTexts({} keys, jwks: {})", self.keys.len(), self.jwks.is_some())
    }
}

/// The secret in a file, without the line end that editors and `echo` add.
fn secret_file(path: &Path, algorithm: Algorithm) -> Result<Vec<u8>, String> {
    let mut bytes = read(path, KEY_FILE_BYTES_MAX)?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    let least = algorithm.secret_bytes_min().unwrap_or(0);
    if bytes.len() < least {
        let name = algorithm.name();
        return Err(format!("holds {} bytes; {name} takes {least} or more", bytes.len()));
    }
    Ok(bytes)
}
