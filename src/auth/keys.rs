//! The keys that tokens are verified with: an immutable table, each key pinned to one algorithm.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk};
use serde_json::{Map, Value};

use super::{KEY_ID_BYTES_MAX, json};
use crate::config::auth::KeyTexts;
use crate::config::settings::{Algorithm, AuthSettings, KeySource};

/// Most keys in one JWK set: more than any issuer rotates through.
pub(crate) const JWKS_KEYS_MAX: usize = 128;
/// Accepted bits of an RSA modulus. Fewer than 2,048 must not be used (RFC 7518 section 3.3); more
/// than 8,192 take milliseconds for each signature.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// A key that verifies signatures of one algorithm.
#[derive(Clone)]
pub struct Key {
    id: Option<Arc<str>>,
    algorithm: Algorithm,
    material: DecodingKey,
}

impl Key {
    /// Name of the key (`kid`), if it has one.
    pub(crate) fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The only algorithm that the key is used with.
    pub(crate) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub(super) fn material(&self) -> &DecodingKey {
        &self.material
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?}, {})", self.id.as_deref().unwrap_or(""), self.algorithm.name())
    }
}

/// A key that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadKey {
    /// Place of the key: the configuration's key that names it, e.g. `auth_key[1].public_key_file`;
    /// in a JWK set e.g. `keys[3]`.
    pub(crate) at: String,
    /// The fault and the way out. It contains no part of the key.
    pub(crate) rule: String,
}

/// An immutable set of keys. A clone is the same set.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    all: Arc<Vec<Key>>,
    /// Number of keys, at the beginning, that come from the configuration and its files; the others
    /// were fetched.
    configured: usize,
    fetched_unix_s: Option<i64>,
    by_id: Arc<HashMap<Arc<str>, usize>>,
}

/// The keys of a JWK set.
#[derive(Clone, Debug, Default)]
pub struct KeySet {
    /// Keys that can verify tokens.
    pub(crate) keys: Vec<Key>,
    /// Keys that are left out (RFC 7517 section 5 demands that), with the reasons.
    pub(crate) skipped: Vec<BadKey>,
    /// Time when the set was requested, in seconds since 1970; `None` = it is from a file.
    pub(crate) fetched_unix_s: Option<i64>,
}

impl Keys {
    /// The keys of the configuration, whose files hold `texts`, and of `sets`; all bad keys of the
    /// configuration are reported at once. Of two keys with one name the first counts: the
    /// configuration's before those of a set, and the set of a file, which comes first, before a
    /// fetched one.
    pub(crate) fn new(
        settings: &AuthSettings,
        texts: &KeyTexts,
        sets: &[KeySet],
    ) -> Result<Self, Vec<BadKey>> {
        if settings.keys.len() != texts.keys.len() {
            let rule = "the files of another configuration were read".into();
            return Err(vec![BadKey { at: "auth_key".into(), rule }]);
        }
        let (mut all, mut bad) = (Vec::new(), Vec::new());
        for (index, (key, text)) in settings.keys.iter().zip(&texts.keys).enumerate() {
            let id = Some(key.id.clone());
            let algorithm = key.algorithm;
            match material(algorithm, text) {
                Ok(material) => all.push(Key { id, algorithm, material }),
                Err(rule) => {
                    let field = match key.source {
                        KeySource::Secret(_) => "secret",
                        KeySource::SecretFile(_) => "secret_file",
                        KeySource::PublicKeyFile(_) => "public_key_file",
                    };
                    bad.push(BadKey { at: format!("auth_key[{index}].{field}"), rule });
                }
            }
        }
        if !bad.is_empty() {
            return Err(bad);
        }
        let mut by_id = HashMap::new();
        let mut configured = all.len();
        for set in sets {
            for key in &set.keys {
                let taken = |k: &Key| key.id.is_some() && k.id == key.id;
                if !all.iter().any(taken) {
                    all.push(key.clone());
                }
            }
            if set.fetched_unix_s.is_none() {
                configured = all.len();
            }
        }
        let fetched_unix_s = sets.iter().filter_map(|set| set.fetched_unix_s).max();
        for (at, key) in all.iter().enumerate() {
            if let Some(id) = &key.id {
                by_id.insert(id.clone(), at);
            }
        }
        Ok(Self { all: all.into(), configured, fetched_unix_s, by_id: by_id.into() })
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is no key: then every token is refused.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// All keys, the configuration's first.
    pub fn iter(&self) -> impl Iterator<Item = &Key> {
        self.all.iter()
    }

    /// Time when the newest fetched set was requested, in seconds since 1970.
    pub(super) fn fetched_unix_s(&self) -> Option<i64> {
        self.fetched_unix_s
    }

    /// Whether another fetched set could make a key the only one of `algorithm`. A set brings no
    /// shared secrets, and removes none of the configuration's keys.
    pub(super) fn may_fetch_one_of(&self, algorithm: Algorithm) -> bool {
        let configured =
            self.all[..self.configured].iter().filter(|key| key.algorithm == algorithm);
        algorithm.secret_bytes_min().is_none() && configured.count() <= 1
    }

    /// The key named `id`.
    pub(super) fn by_id(&self, id: &str) -> Option<&Key> {
        self.by_id.get(id).map(|&at| &self.all[at])
    }

    /// The key of `algorithm`, if there is exactly one.
    pub(super) fn only_one_of(&self, algorithm: Algorithm) -> Option<&Key> {
        let mut of = self.all.iter().filter(|key| key.algorithm == algorithm);
        of.next().filter(|_| of.next().is_none())
    }
}

/// Reads a key of the configuration: the bytes of a secret, or PEM.
fn material(algorithm: Algorithm, text: &[u8]) -> Result<DecodingKey, String> {
    if let Some(least) = algorithm.secret_bytes_min() {
        let too_short = || format!("must have at least {least} bytes");
        if text.len() < least {
            return Err(too_short());
        }
        return DecodingKey::from_secret(text).map_err(|_| too_short());
    }
    // The library also takes certificates and, for RSA, private keys. The dates of a certificate
    // would not be checked, and a private key must not be here.
    let public = ["-----BEGIN PUBLIC KEY-----", "-----BEGIN RSA PUBLIC KEY-----"];
    let pem = std::str::from_utf8(text).unwrap_or_default().trim_start();
    if !public.iter().any(|label| pem.starts_with(label)) {
        let rule = "does not start with -----BEGIN PUBLIC KEY-----; make it with: openssl pkey \
                    -pubout";
        return Err(rule.into());
    }
    let read = match kind(algorithm) {
        Kind::Rsa => DecodingKey::from_rsa_pem(text),
        Kind::P256 | Kind::P384 => DecodingKey::from_ec_pem(text),
        Kind::Ed25519 => DecodingKey::from_ed_pem(text),
        Kind::Secret => return Err("must be a secret".into()),
    };
    let key = read.map_err(|_| format!("is not a public key for {}", algorithm.name()))?;
    check(algorithm, &key)?;
    Ok(key)
}

/// Kind of key material.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Secret,
    Rsa,
    P256,
    P384,
    Ed25519,
}

fn kind(algorithm: Algorithm) -> Kind {
    match algorithm {
        Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512 => Kind::Secret,
        Algorithm::Rs256
        | Algorithm::Rs384
        | Algorithm::Rs512
        | Algorithm::Ps256
        | Algorithm::Ps384
        | Algorithm::Ps512 => Kind::Rsa,
        Algorithm::Es256 => Kind::P256,
        Algorithm::Es384 => Kind::P384,
        Algorithm::EdDsa => Kind::Ed25519,
    }
}

/// Checks that a public key is one for `algorithm`, so that a wrong key is noticed when it is
/// configured and not when every token is refused.
fn check(algorithm: Algorithm, key: &DecodingKey) -> Result<(), String> {
    let bytes = key.try_get_as_bytes().map_or(0, <[u8]>::len);
    let name = algorithm.name();
    let expect = |length, what: &str| match bytes == length {
        true => Ok(()),
        false => Err(format!("is not a key on {what}, which {name} takes")),
    };
    match kind(algorithm) {
        Kind::Secret => Err(format!("{name} takes a secret")),
        // An uncompressed point has one byte and two coordinates (SEC 1 section 2.3.3).
        Kind::P256 => expect(1 + 2 * 32, "P-256"),
        Kind::P384 => expect(1 + 2 * 48, "P-384"),
        Kind::Ed25519 => expect(32, "Ed25519"),
        Kind::Rsa => {
            let jwk = Jwk::from_decoding_key(key, None);
            let Ok(Jwk { algorithm: AlgorithmParameters::RSA(rsa), .. }) = jwk else {
                return Err(format!("is not an RSA key, which {name} takes"));
            };
            let modulus = URL_SAFE_NO_PAD.decode(rsa.n).unwrap_or_default();
            let zeros = modulus.iter().take_while(|b| **b == 0).count();
            let first = modulus.get(zeros).map_or(0, |b| b.leading_zeros() as usize);
            let bits = 8 * (modulus.len() - zeros) - first;
            if !RSA_BITS.contains(&bits) {
                return Err(format!("is an RSA key of {bits} bits; 2048 to 8192 are accepted"));
            }
            Ok(())
        }
    }
}

/// Reads the keys of a JWK set (RFC 7517 section 5), each pinned to one algorithm: its own `alg`,
/// or the one that its type implies: RS256 for RSA (which issuers without `alg` mean), and the one
/// of the curve for the others. Shared secrets are left out, because a set is public.
pub(crate) fn read_jwks(text: &str) -> Result<KeySet, String> {
    let set = json::object(text.as_bytes()).map_err(|_| "is not a JSON object".to_owned())?;
    let Some(Value::Array(list)) = set.get("keys") else {
        return Err("has no list named keys: it is no JWK set".into());
    };
    if list.len() > JWKS_KEYS_MAX {
        return Err(format!("has {} keys; at most {JWKS_KEYS_MAX}", list.len()));
    }
    let mut found = KeySet::default();
    for (index, value) in list.iter().enumerate() {
        let key = value.as_object().ok_or_else(|| "is no object".to_owned()).and_then(jwk);
        let key = key.and_then(|key| match &key.id {
            Some(id) if found.keys.iter().any(|k| k.id.as_ref() == Some(id)) => {
                Err("has the kid of an earlier one".into())
            }
            Some(_) | None => Ok(key),
        });
        match key {
            Ok(key) => found.keys.push(key),
            Err(rule) => found.skipped.push(BadKey { at: format!("keys[{index}]"), rule }),
        }
    }
    if found.keys.is_empty() {
        let why = found.skipped.first().map_or(String::new(), |k| format!("; {} {}", k.at, k.rule));
        return Err(format!("has no key that verifies tokens{why}"));
    }
    Ok(found)
}

fn jwk(key: &Map<String, Value>) -> Result<Key, String> {
    let text = |name: &str| match key.get(name) {
        None => Ok(None),
        Some(Value::String(s)) => Ok(Some(s.as_str())),
        Some(_) => Err(format!("has a {name} that is no string")),
    };
    let part = |name: &str| text(name)?.ok_or_else(|| format!("has no {name}"));
    if text("use")?.is_some_and(|usage| usage != "sig") {
        return Err("is not for signatures (use)".into());
    }
    if let Some(list) = key.get("key_ops") {
        let verifies = |list: &Vec<Value>| list.iter().any(|op| op == "verify");
        if !list.as_array().is_some_and(verifies) {
            return Err("is not for verifying (key_ops)".into());
        }
    }
    let id = text("kid")?;
    if id.is_some_and(|id| id.is_empty() || id.len() > KEY_ID_BYTES_MAX) {
        return Err(format!("has a kid that is not 1 to {KEY_ID_BYTES_MAX} bytes"));
    }
    let (kind_of, pinned, read) = match (text("kty")?, text("crv")?) {
        (Some("RSA"), _) => {
            let key = DecodingKey::from_rsa_components(part("n")?, part("e")?);
            (Kind::Rsa, Algorithm::Rs256, key)
        }
        (Some("EC"), Some("P-256")) => {
            let key = DecodingKey::from_ec_components(part("x")?, part("y")?);
            (Kind::P256, Algorithm::Es256, key)
        }
        (Some("EC"), Some("P-384")) => {
            let key = DecodingKey::from_ec_components(part("x")?, part("y")?);
            (Kind::P384, Algorithm::Es384, key)
        }
        (Some("OKP"), Some("Ed25519")) => {
            (Kind::Ed25519, Algorithm::EdDsa, DecodingKey::from_ed_components(part("x")?))
        }
        (Some("oct"), _) => {
            return Err("is a shared secret; those belong into [[auth_key]]".into());
        }
        _ => return Err("is of a type or curve that is not known here".into()),
    };
    let algorithm = match text("alg")? {
        None => pinned,
        // RFC 9864 gives EdDSA on this curve a name of its own.
        Some("Ed25519") => Algorithm::EdDsa,
        Some(name) => Algorithm::from_name(name)
            .filter(|&algorithm| kind(algorithm) == kind_of)
            .ok_or_else(|| "has an alg that is not one of its type".to_owned())?,
    };
    let material = read.map_err(|_| "is not base64url".to_owned())?;
    check(algorithm, &material)?;
    Ok(Key { id: id.map(Arc::from), algorithm, material })
}
