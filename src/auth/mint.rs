//! Making of tokens, for tests, development and `shardgate gen token`. A running gateway makes
//! none.

use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Map, Value, json};

use super::{Claim, GROUP_BYTES_MAX, GROUPS_MAX, KEY_ID_BYTES_MAX, USER_BYTES_MAX, signature};
use crate::config::is_name;
use crate::config::settings::Algorithm;

/// The key that signs.
#[derive(Clone, Copy)]
pub enum SigningKey<'a> {
    /// The shared secret of an HS algorithm.
    Secret(&'a [u8]),
    /// The private key of any other algorithm: PEM, PKCS #8 (or PKCS #1 for RSA).
    Private(&'a [u8]),
}

/// Contents of the token to be made.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// Algorithm of the token, which is the key's.
    pub algorithm: Algorithm,
    /// The parameter `kid`; `None` = not written.
    pub key_id: Option<&'a str>,
    /// The claim `sub`: the user.
    pub user: &'a str,
    /// The claim `tenant`; `None` = not written.
    pub tenant: Option<&'a str>,
    /// The claim `groups`; empty = not written.
    pub groups: &'a [String],
    /// The claim `iss`; `None` = not written.
    pub issuer: Option<&'a str>,
    /// The claim `aud`; `None` = not written.
    pub audience: Option<&'a str>,
    /// The claims `iat` and `nbf`, in seconds since 1970.
    pub now_unix_s: i64,
    /// Seconds from `iat` to `exp`.
    pub lifetime_s: u32,
}

/// Makes a token that a gateway with the key accepts; the error says why it cannot be made.
pub fn mint(wanted: &Wanted<'_>, key: SigningKey<'_>) -> Result<String, String> {
    let claims = claims(wanted)?;
    let algorithm = wanted.algorithm;
    let key = signing_key(algorithm, key)?;
    let mut header = Header::new(signature(algorithm));
    if let Some(id) = wanted.key_id {
        if id.is_empty() || id.len() > KEY_ID_BYTES_MAX {
            return Err(format!("the key's id must be 1 to {KEY_ID_BYTES_MAX} bytes"));
        }
        header.kid = Some(id.to_owned());
    }
    // The library's error may hold parts of the key.
    let failed = |_| format!("the key cannot sign with {}", algorithm.name());
    jsonwebtoken::encode(&header, &claims, &key).map_err(failed)
}

fn claims(wanted: &Wanted<'_>) -> Result<Map<String, Value>, String> {
    let word =
        |s: &str, max: usize| (1..=max).contains(&s.len()) && !s.chars().any(char::is_control);
    let form = |holds: bool, claim: Claim| match holds {
        true => Ok(()),
        false => Err(format!("{} must be {}", claim.name(), claim.form())),
    };
    form(word(wanted.user, USER_BYTES_MAX), Claim::Sub)?;
    form(wanted.tenant.is_none_or(is_name), Claim::Tenant)?;
    let groups_ok = wanted.groups.iter().all(|group| word(group, GROUP_BYTES_MAX));
    form(groups_ok && wanted.groups.len() <= GROUPS_MAX, Claim::Groups)?;
    form(wanted.now_unix_s >= 0, Claim::Iat)?;
    let now = wanted.now_unix_s;
    let mut claims = Map::new();
    let mut set = |claim: Claim, value: Value| drop(claims.insert(claim.name().into(), value));
    set(Claim::Sub, wanted.user.into());
    set(Claim::Iat, now.into());
    set(Claim::Nbf, now.into());
    set(Claim::Exp, now.saturating_add(wanted.lifetime_s.into()).into());
    let texts = [
        (Claim::Tenant, wanted.tenant),
        (Claim::Iss, wanted.issuer),
        (Claim::Aud, wanted.audience),
    ];
    for (claim, text) in texts {
        if let Some(text) = text {
            set(claim, text.into());
        }
    }
    if !wanted.groups.is_empty() {
        set(Claim::Groups, json!(wanted.groups));
    }
    Ok(claims)
}

fn signing_key(algorithm: Algorithm, key: SigningKey<'_>) -> Result<EncodingKey, String> {
    let name = algorithm.name();
    let pem = match (key, algorithm.secret_bytes_min()) {
        (SigningKey::Secret(secret), Some(least)) if secret.len() >= least => {
            let failed = |_| format!("{name} takes a secret of at least {least} bytes");
            return EncodingKey::from_secret(secret).map_err(failed);
        }
        (SigningKey::Secret(_), Some(least)) => {
            return Err(format!("{name} takes a secret of at least {least} bytes"));
        }
        (SigningKey::Secret(_), None) => return Err(format!("{name} takes a private key")),
        (SigningKey::Private(_), Some(_)) => return Err(format!("{name} takes a secret")),
        (SigningKey::Private(pem), None) => pem,
    };
    let read = match algorithm {
        Algorithm::Es256 | Algorithm::Es384 => EncodingKey::from_ec_pem(pem),
        Algorithm::EdDsa => EncodingKey::from_ed_pem(pem),
        Algorithm::Rs256
        | Algorithm::Rs384
        | Algorithm::Rs512
        | Algorithm::Ps256
        | Algorithm::Ps384
        | Algorithm::Ps512 => EncodingKey::from_rsa_pem(pem),
        Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512 => {
            return Err(format!("{name} takes a secret"));
        }
    };
    read.map_err(|_| {
        format!(
            "the file is not a private key for {name} in PEM, PKCS #8 (-----BEGIN PRIVATE \
             KEY-----); convert it with: openssl pkcs8 -topk8 -nocrypt"
        )
    })
}
