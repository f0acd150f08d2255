//! Settings of `[auth]` and `[[auth_key]]`: who clients are, and the keys that say so.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// `[auth]` and `[[auth_key]]`. Live, but for `tenants`.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthSettings {
    /// Whether clients can sign in.
    pub mode: AuthMode,
    /// What `iss` must be; `None` = anything.
    pub issuer: Option<String>,
    /// What `aud` must be or contain; `None` = anything.
    pub audience: Option<String>,
    /// How far the issuer's clock may be from ours; at most 60 s.
    pub leeway: Duration,
    /// From the upgrade to the first valid token, for connections that need one.
    pub timeout: Duration,
    /// Every connection needs a token within `timeout`, else it is closed with 4005.
    pub required: bool,
    /// Whether users belong to tenants. Boot: home shards and stored answers go by it.
    pub tenants: Tenants,
    /// File with a JWK set.
    pub jwks_file: Option<PathBuf>,
    /// Where a JWK set is fetched; https, or http on a loopback address.
    pub jwks_url: Option<String>,
    /// Between two fetches.
    pub jwks_refresh: Duration,
    /// Keys of the configuration.
    pub keys: Vec<AuthKey>,
}

/// `mode = "off" | "jwt"`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AuthMode {
    /// Nobody signs in; everybody is anonymous.
    Off,
    /// By a JSON Web Token (RFC 7519).
    Jwt,
}

/// `tenants = "one" | "many"`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tenants {
    /// All users are of one; the claim `tenant` is not looked at.
    One,
    /// The claim `tenant` says which, and must be there.
    Many,
}

/// Key that tokens are verified with.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthKey {
    /// What `kid` of a token's header names.
    pub id: Arc<str>,
    /// The only algorithm it is used with.
    pub algorithm: Algorithm,
    /// The key itself.
    pub source: KeySource,
}

/// Where a key is.
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

/// Signature of a token (RFC 7518 section 3.1, RFC 8037).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    Hs256,
    /// HMAC with SHA-384.
    Hs384,
    /// HMAC with SHA-512.
    Hs512,
    /// RSA, PKCS #1 v1.5, SHA-256.
    Rs256,
    /// RSA, PKCS #1 v1.5, SHA-384.
    Rs384,
    /// RSA, PKCS #1 v1.5, SHA-512.
    Rs512,
    /// RSA-PSS, SHA-256.
    Ps256,
    /// RSA-PSS, SHA-384.
    Ps384,
    /// RSA-PSS, SHA-512.
    Ps512,
    /// ECDSA on P-256, SHA-256.
    Es256,
    /// ECDSA on P-384, SHA-384.
    Es384,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// All of them, by their names in headers and files.
    pub const NAMED: [(&str, Self); 12] = [
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
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        let named = Self::NAMED.iter().find(|(_, algorithm)| *algorithm == self);
        named.map_or("", |(name, _)| name)
    }

    /// The one with exactly this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMED.iter().find(|(known, _)| *known == name).map(|&(_, algorithm)| algorithm)
    }

    /// Bytes a shared secret must have: those of the hash (RFC 7518 section 3.2). `None` = it has a
    /// public key instead.
    pub fn secret_bytes_min(self) -> Option<usize> {
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
            jwks_file: None,
            jwks_url: None,
            jwks_refresh: Duration::from_secs(300),
            keys: Vec::new(),
        }
    }
}
