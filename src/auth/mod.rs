//! Authentication of clients: JSON Web Tokens (RFC 7519), verified against keys that are pinned to
//! one algorithm each. Pure: texts, keys and the time are passed in.
//!
//! [`jsonwebtoken`] checks signatures and reads keys. Header and claims are read here, strictly,
//! because its own reading is lenient where ours must not be: it takes the first of two `exp`,
//! ignores `iat`, `crit` and `typ`, and reads the clock itself. Strictness is for what decides:
//! claims that nothing here is decided by are not read, or (groups) kept as far as they can be.
//!
//! A token is checked in this order, so that a sender without a key learns nothing about our rules
//! for claims: length, form, header, key, signature, claims. With tenants the claims that name one
//! are looked at before the key, because they say whose keys may have signed the token: see
//! [`verify`].

pub mod explain;
mod json;
pub mod keys;
pub mod load;
pub mod mint;
mod refusal;
mod rules;
#[cfg(test)]
mod tests;
mod token;
mod verify;

use std::sync::Arc;

use jsonwebtoken::Algorithm as Signature;

use crate::config::settings::Algorithm;

pub use keys::Keys;
pub use refusal::{Claim, Refusal};
pub(crate) use rules::Rules;
pub(crate) use verify::NotAccepted;
pub use verify::Verifier;

/// Most bytes of a token: 8 KiB. Tokens with 64 groups are about 5 KiB. One in the handshake shares
/// `conn.header_bytes_max` with the request line and the other headers (a browser sends 1 to 2 KiB
/// and its cookies).
pub const TOKEN_BYTES_MAX: usize = 8 << 10;
/// Most bytes of a user's id (`sub`): as many as a provider may give it (OpenID Connect Core 1.0
/// section 2).
pub const USER_BYTES_MAX: usize = 255;
/// Most groups that are kept of a token.
pub const GROUPS_MAX: usize = 64;
/// Most bytes of a group's name; longer ones are left out.
pub const GROUP_BYTES_MAX: usize = 64;
/// Most bytes of a `kid`: a SHA-512 thumbprint in hex. It is only looked up.
pub const KEY_ID_BYTES_MAX: usize = 128;
/// Seconds after which a fetched JWK set may be older than its issuer's, and least seconds between
/// two fetches because of unknown keys. So the first token of a new key waits for one fetch, and a
/// sender of made-up key names causes six fetches a minute and no more.
pub const EARLY_FETCH_S: u64 = 10;

/// The owner of a set of keys: the party whose tokens are verified with them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum KeyOwner {
    /// `[auth]`: everybody who has none of their own.
    Auth,
    /// The tenant of this name.
    Tenant(Arc<str>),
}

/// The identity of a client that signed in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The claim `sub`: 1 to [`USER_BYTES_MAX`] bytes without control characters.
    pub user: Arc<str>,
    /// The claim `tenant`: always there with `tenants = "many"`, never with `"one"`.
    pub tenant: Option<Arc<str>>,
    /// The claim `groups`: at most [`GROUPS_MAX`] names of 1 to [`GROUP_BYTES_MAX`] bytes without
    /// control characters.
    pub groups: Vec<Arc<str>>,
    /// Number of entries of that claim that are no such names, or too many.
    pub groups_left_out: u32,
    /// The first second, since 1970, in which the token is not accepted any more: `exp` and the
    /// leeway.
    pub expires_unix_s: i64,
}

/// The same algorithm by the library's name.
fn signature(algorithm: Algorithm) -> Signature {
    match algorithm {
        Algorithm::Hs256 => Signature::HS256,
        Algorithm::Hs384 => Signature::HS384,
        Algorithm::Hs512 => Signature::HS512,
        Algorithm::Rs256 => Signature::RS256,
        Algorithm::Rs384 => Signature::RS384,
        Algorithm::Rs512 => Signature::RS512,
        Algorithm::Ps256 => Signature::PS256,
        Algorithm::Ps384 => Signature::PS384,
        Algorithm::Ps512 => Signature::PS512,
        Algorithm::Es256 => Signature::ES256,
        Algorithm::Es384 => Signature::ES384,
        Algorithm::EdDsa => Signature::EdDSA,
    }
}
