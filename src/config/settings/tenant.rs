//! Settings of `[[tenant]]`: parties that share the gateway and nothing of each other's.

use std::path::PathBuf;
use std::sync::Arc;

use super::AuthKey;
use crate::origin::AllowedOrigin;
use crate::routing::Quota;

/// A table `[[tenant]]`, or the same keys at a discovery source. Live. Its routes are in the
/// snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct TenantSettings {
    /// Name, as the claim `tenant` of tokens has it.
    pub name: Arc<str>,
    /// Weight of its part of what is shared; 1 to 1000.
    pub weight: u32,
    /// Whether it has the default routes, too, behind its own.
    pub inherit: bool,
    /// Names of the services that its messages may go to; empty = all that are for everybody or
    /// for it.
    pub services: Vec<Arc<str>>,
    /// Origins of the web pages whose users may sign in as its own; empty = those of the key
    /// `origins`.
    pub origins: Vec<AllowedOrigin>,
    /// Limits of the whole tenant.
    pub quota: Quota,
    /// Whether metrics show it by its name.
    pub has_metrics: bool,
    /// Its own issuer and keys; `None` = those of `[auth]`.
    pub tokens: Option<TenantTokens>,
}

impl TenantSettings {
    /// A tenant with nothing but a name.
    #[cfg(test)]
    pub fn plain(name: &str) -> Self {
        Self {
            name: name.into(),
            weight: 1,
            inherit: true,
            services: Vec::new(),
            origins: Vec::new(),
            quota: Quota::NONE,
            has_metrics: false,
            tokens: None,
        }
    }
}

/// The issuer and the keys of a tenant. Tokens of its users are verified with these keys and no
/// others, and these keys with its tokens and no others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TenantTokens {
    /// Value that `iss` must have; `None` = any. A token without the claim `tenant` is the
    /// tenant's whose issuer it names.
    pub issuer: Option<String>,
    /// Value that `aud` must be or contain; `None` = any.
    pub audience: Option<String>,
    /// File that holds a JWK set.
    pub jwks_file: Option<PathBuf>,
    /// URL that a JWK set is fetched from: https, or http on a loopback address.
    pub jwks_url: Option<String>,
    /// File with the certificates of the authorities that sign the server of `jwks_url`; `None` =
    /// those of the system.
    pub jwks_ca_file: Option<PathBuf>,
    /// Keys of the configuration.
    pub keys: Vec<AuthKey>,
}
