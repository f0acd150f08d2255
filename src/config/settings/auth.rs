//! Settings of `[auth]` and `[[auth_key]]`: authentication of clients, and the keys for it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The section `[auth]` and the list `[[auth_key]]`. Live, but for `tenants`.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthSettings {
    /// Whether clients can sign in.
    pub mode: AuthMode,
    /// Value that `iss` must have; `None` = any.
    pub issuer: Option<String>,
    /// Value that `aud` must be or contain; `None` = any.
    pub audience: Option<String>,
    /// Largest difference between the issuer's clock and ours; at most 60 s.
    pub leeway: Duration,
    /// Time from the upgrade to the first valid token, for connections that need one.
    pub timeout: Duration,
    /// Whether every connection needs a token within `timeout`; without one it is closed with 4005.
    pub required: bool,
    /// Whether users belong to tenants. Boot, because home shards and stored answers depend on it.
    pub tenants: Tenants,
    /// Users whose tenant is none of `[[tenant]]`.
    pub unknown_tenant: UnknownTenant,
    /// File that holds a JWK set.
    pub jwks_file: Option<PathBuf>,
    /// URL that a JWK set is fetched from: https, or http on a loopback address.
    pub jwks_url: Option<String>,
    /// File with the certificates of the authorities that sign the server of `jwks_url`; `None` =
    /// those of the system.
    pub jwks_ca_file: Option<PathBuf>,
    /// Time between two fetches of the JWK set.
    pub jwks_refresh: Duration,
    /// Keys of the configuration.
    pub keys: Vec<AuthKey>,
}

/// Ways of authentication: the values of `mode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AuthMode {
    /// Clients cannot sign in; all are anonymous.
    Off,
    /// Clients sign in with a JSON Web Token (RFC 7519).
    Jwt,
}

/// Ways to read tenants: the values of `tenants`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tenants {
    /// All users belong to one tenant; the claim `tenant` is ignored.
    One,
    /// The claim `tenant` names the user's tenant, and must be there.
    Many,
}

/// Ways to treat users of tenants that are not configured: the values of `unknown_tenant`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnknownTenant {
    /// They have the default routes, and no quota.
    Default,
    /// Their tokens are refused.
    Refuse,
}

/// A key that tokens are verified with.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthKey {
    /// Name of the key, as in `kid` of a token's header.
    pub id: Arc<str>,
    /// The only algorithm that the key is used with.
    pub algorithm: Algorithm,
    /// The place of the key itself.
    pub source: KeySource,
}

/// The place of a key.
#[derive(Clone, PartialEq)]
pub enum KeySource {
    /// The shared secret; its bytes are the key.
    Secret(String),
    /// File with the shared secret.
    SecretFile(PathBuf),
    /// File with the public key, PEM.
    PublicKeyFile(PathBuf),
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeySource::Secret(_) => f.write_str("Secret(<redacted>)"),
            KeySource::SecretFile(path) => write!(f, "SecretFile({path:?})"),
            KeySource::PublicKeyFile(path) => write!(f, "PublicKeyFile({path:?})"),
        }
    }
}

/// Signature algorithm of a token, by its name there: HS is HMAC, RS is RSA with PKCS #1 v1.5, PS
/// is RSA-PSS, ES is ECDSA, each with the SHA-2 of that many bits (RFC 7518 section 3.1); EdDSA is
/// Ed25519 (RFC 8037), which RFC 9864 section 2.2 gives the name of its curve.
#[allow(missing_docs)] // the names of the RFC
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Algorithm {
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

impl Algorithm {
    /// All algorithms, with their names in token headers, keys and files: the older name before the
    /// newer one of the same algorithm.
    pub(crate) const NAMED: [(&str, Self); 13] = [
        ("HS256", Self::Hs256),
        ("HS384", Self::Hs384),
        ("HS512", Self::Hs512),
        ("RS256", Self::Rs256),
        ("RS384", Self::Rs384),
        ("RS512", Self::Rs512),
        ("PS256", Self::Ps256),
        ("PS384", Self::Ps384),
        ("PS512", Self::Ps512),
        ("ES256", Self::Es256),
        ("ES384", Self::Es384),
        ("EdDSA", Self::EdDsa),
        ("Ed25519", Self::EdDsa),
    ];

    /// Name of the algorithm in token headers and files: of two the older, which all readers know.
    pub(crate) fn name(self) -> &'static str {
        let named = Self::NAMED.iter().find(|(_, algorithm)| *algorithm == self);
        named.map_or("", |(name, _)| name)
    }

    /// The algorithm with exactly this name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::NAMED.iter().find(|(known, _)| *known == name).map(|&(_, algorithm)| algorithm)
    }

    /// Least bytes of a shared secret: as many as the hash has (RFC 7518 section 3.2). `None` = the
    /// algorithm uses a public key.
    pub(crate) fn secret_bytes_min(self) -> Option<usize> {
        match self {
            Self::Hs256 => Some(32),
            Self::Hs384 => Some(48),
            Self::Hs512 => Some(64),
            Self::Rs256
            | Self::Rs384
            | Self::Rs512
            | Self::Ps256
            | Self::Ps384
            | Self::Ps512
            | Self::Es256
            | Self::Es384
            | Self::EdDsa => None,
        }
    }
}

impl Default for AuthSettings {
    fn default() -> Self {
        Self {
            mode: AuthMode::Off,
            issuer: None,
            audience: None,
            leeway: Duration::from_secs(30),
            timeout: Duration::from_secs(10),
            required: false,
            tenants: Tenants::One,
            unknown_tenant: UnknownTenant::Default,
            jwks_file: None,
            jwks_url: None,
            jwks_ca_file: None,
            jwks_refresh: Duration::from_secs(300),
            keys: Vec::new(),
        }
    }
}
