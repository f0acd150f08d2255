//! Who a client is: JSON Web Tokens (RFC 7519) verified against keys that are pinned to one
//! algorithm each. Pure: texts, keys and the time are passed in.
//!
//! [`jsonwebtoken`] checks signatures and reads keys. What a token says is read here, strictly,
//! because its own reading is lenient where ours must not be: it takes the first of two `exp`,
//! leaves `iat`, `crit` and `typ` alone, and reads the clock itself.
//!
//! A token is looked at in this order, so that whoever cannot sign learns nothing about our rules
//! for claims: length, form, header, key, signature, claims.

pub mod explain;
mod json;
pub mod keys;
pub mod load;
pub mod mint;
mod refusal;
#[cfg(test)]
mod tests;
mod token;
mod verify;

use std::sync::Arc;

use jsonwebtoken::Algorithm as Signature;

use crate::config::settings::Algorithm;
use crate::limits::HANDSHAKE_BYTES_MAX;

pub use keys::Keys;
pub use refusal::{Claim, Refusal};
pub use verify::Verifier;

/// Bytes of a token: 8 KiB, as much as a whole handshake. One in an `auth` message may be that
/// long; one in the handshake shares [`HANDSHAKE_BYTES_MAX`] with the request line and the other
/// headers (a browser sends 1 to 2 KiB) and is refused there, with 431, before it is seen here.
/// Tokens with 64 groups are about 5 KiB.
pub const TOKEN_BYTES_MAX: usize = HANDSHAKE_BYTES_MAX;
/// Bytes of a user's id (`sub`).
pub const USER_BYTES_MAX: usize = 128;
/// Groups in a token.
pub const GROUPS_MAX: usize = 64;
/// Bytes of a group's name.
pub const GROUP_BYTES_MAX: usize = 64;
/// Bytes of a `kid`: a SHA-512 thumbprint in hex. It only ever is looked up.
pub const KEY_ID_BYTES_MAX: usize = 128;
/// Seconds after which a fetched JWK set may be behind its issuer, and between two fetches for the
/// sake of unknown keys: so the first token of a new key waits for one fetch, and who makes up
/// names of keys makes us fetch six times a minute and no more.
pub const EARLY_FETCH_S: u64 = 10;

/// Who a client is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The claim `sub`, 1 to [`USER_BYTES_MAX`] bytes without control characters.
    pub user: Arc<str>,
    /// The claim `tenant`; always there with `tenants = "many"`, never with `"one"`.
    pub tenant: Option<Arc<str>>,
    /// The claim `groups`, at most [`GROUPS_MAX`].
    pub groups: Vec<Arc<str>>,
    /// The first second at which the token is not accepted any more: `exp` and the leeway.
    pub expires_unix_s: i64,
}

/// The same algorithm in the library's words.
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
