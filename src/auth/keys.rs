//! The keys that tokens are verified with: an immutable table, each key pinned to one algorithm.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk};
use jsonwebtoken::{DecodingKey, DecodingKeyKind};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::KEY_ID_BYTES_MAX;
use super::json::{self, Fault};
use crate::config::key_files::KeyTexts;
use crate::config::settings::{Algorithm, AuthKey, KeySource};
use crate::plain::push_plain;

/// Most keys in one JWK set: more than any issuer rotates through.
pub(crate) const JWKS_KEYS_MAX: usize = 128;
/// Longest part of a set's text that is shown.
const SHOWN_CHARS_MAX: usize = 64;
/// Accepted bits of an RSA modulus. Fewer than 2,048 must not be used (RFC 7518 section 3.3); more
/// than 8,192 take milliseconds for each signature.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Bytes of a key: itself, its name, and the modulus of the largest RSA key and an exponent.
pub(crate) const KEY_BYTES: usize =
    size_of::<Key>() + KEY_ID_BYTES_MAX + *RSA_BITS.end() / 8 + size_of::<u64>();

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

/// Equal are keys that verify the same signatures of tokens with the same `kid`.
impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        use DecodingKeyKind::{RsaModulusExponent, SecretOrDer};
        let is_same = match (self.material.kind(), other.material.kind()) {
            (SecretOrDer(a), SecretOrDer(b)) => a == b,
            (RsaModulusExponent { n: a, e }, RsaModulusExponent { n: b, e: f }) => (a, e) == (b, f),
            (SecretOrDer(_), RsaModulusExponent { .. })
            | (RsaModulusExponent { .. }, SecretOrDer(_)) => false,
        };
        is_same && (&self.id, self.algorithm) == (&other.id, other.algorithm)
    }
}

/// The time at which a set was requested last, in seconds since 1970. A clone is the same time: one
/// that all shards see, so that a fetch of the same keys as before needs no other verifier.
#[derive(Clone, Debug)]
pub struct FetchedAt(Arc<AtomicI64>);

impl FetchedAt {
    /// This time, until another is set.
    pub fn new(unix_s: i64) -> Self {
        Self(Arc::new(AtomicI64::new(unix_s)))
    }

    /// The present value.
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets the time of a later request.
    pub fn set(&self, unix_s: i64) {
        self.0.store(unix_s, Ordering::Relaxed);
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
    /// Time of the fetched set.
    fetched: Option<FetchedAt>,
    /// Places of the keys of each name: of one set, one for each algorithm.
    by_id: Arc<HashMap<Arc<str>, Vec<usize>>>,
}

/// The keys of a JWK set.
#[derive(Clone, Debug, Default)]
pub struct KeySet {
    /// Keys that can verify tokens.
    pub(crate) keys: Vec<Key>,
    /// Keys that are left out (RFC 7517 section 5 demands that), with the reasons.
    pub(crate) skipped: Vec<BadKey>,
    /// Time when the set was requested; `None` = it is from a file.
    pub(crate) fetched: Option<FetchedAt>,
}

impl Keys {
    /// The keys of a list of the configuration, `configured`, whose files hold `texts`, and of
    /// `sets`; all bad keys of the configuration are reported at once, by their places in the list.
    /// A name belongs to who has it first: the configuration's
    /// keys before those of a set, and the set of a file, which comes first, before a fetched one.
    /// One set may have several keys of a name, for as many algorithms.
    pub(crate) fn new(
        configured: &[AuthKey],
        texts: &KeyTexts,
        sets: &[KeySet],
    ) -> Result<Self, Vec<BadKey>> {
        if configured.len() != texts.keys.len() {
            let rule = "the files of another configuration were read".into();
            return Err(vec![BadKey { at: "auth_key".into(), rule }]);
        }
        let (mut all, mut bad) = (Vec::new(), Vec::new());
        for (index, (key, text)) in configured.iter().zip(&texts.keys).enumerate() {
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
        let mut configured = all.len();
        for set in sets {
            let before = all.len();
            for key in &set.keys {
                let taken = |k: &Key| key.id.is_some() && k.id == key.id;
                if !all[..before].iter().any(taken) {
                    all.push(key.clone());
                }
            }
            if set.fetched.is_none() {
                configured = all.len();
            }
        }
        let fetched = sets.iter().find_map(|set| set.fetched.clone());
        let mut by_id: HashMap<Arc<str>, Vec<usize>> = HashMap::new();
        for (at, key) in all.iter().enumerate() {
            if let Some(id) = &key.id {
                by_id.entry(id.clone()).or_default().push(at);
            }
        }
        Ok(Self { all: all.into(), configured, fetched, by_id: by_id.into() })
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

    /// Time when the fetched set was requested last, in seconds since 1970.
    pub(super) fn fetched_unix_s(&self) -> Option<i64> {
        self.fetched.as_ref().map(FetchedAt::get)
    }

    /// Whether another fetched set could make a key the only one of `algorithm`. A set brings no
    /// shared secrets, and removes none of the configuration's keys.
    pub(super) fn may_fetch_one_of(&self, algorithm: Algorithm) -> bool {
        let configured =
            self.all[..self.configured].iter().filter(|key| key.algorithm == algorithm);
        algorithm.secret_bytes_min().is_none() && configured.count() <= 1
    }

    /// Whether there is a key named `id`.
    pub(super) fn knows(&self, id: &str) -> bool {
        self.by_id.contains_key(id)
    }

    /// The key named `id` that is for `algorithm`.
    pub(super) fn named(&self, id: &str, algorithm: Algorithm) -> Option<&Key> {
        let mut keys = self.by_id.get(id)?.iter().map(|&at| &self.all[at]);
        keys.find(|key| key.algorithm == algorithm)
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
/// of the curve for the others. What cannot be used is left out with the reason, whatever it is; a
/// set without any usable key is an error. Shared secrets are left out, because a set is public.
pub(crate) fn read_jwks(text: &str) -> Result<KeySet, String> {
    let set = json::members(text.as_bytes()).map_err(|fault| match fault {
        Fault::Malformed => "is not a JSON object",
        Fault::Duplicate => "has one name twice",
    })?;
    let list = set.get("keys").and_then(|list| serde_json::from_str(list.get()).ok());
    let list: Vec<&RawValue> =
        list.ok_or("has no list named keys: it is no JWK set (RFC 7517 section 5)")?;
    if list.len() > JWKS_KEYS_MAX {
        return Err(format!("has {} keys; at most {JWKS_KEYS_MAX}", list.len()));
    }
    let mut found = KeySet::default();
    for (index, value) in list.iter().enumerate() {
        let members = json::object(value.get().as_bytes());
        let kid = members.as_ref().ok().and_then(|key| key.get("kid")?.as_str());
        let kid = kid.map_or(String::new(), |kid| format!(" (kid {})", shown(kid)));
        let members = members.as_ref().map_err(|fault| match fault {
            Fault::Malformed => "is no object, or too deep".to_owned(),
            Fault::Duplicate => "has one name twice".to_owned(),
        });
        let new = |key: Key| {
            let same = |k: &Key| (&k.id, k.algorithm) == (&key.id, key.algorithm);
            match key.id.is_some() && found.keys.iter().any(same) {
                true => Err("has the kid and the algorithm of an earlier one".into()),
                false => Ok(key),
            }
        };
        match members.and_then(jwk).and_then(new) {
            Ok(key) => found.keys.push(key),
            Err(rule) => found.skipped.push(BadKey { at: format!("keys[{index}]{kid}"), rule }),
        }
    }
    if found.keys.is_empty() {
        let why = found.skipped.first().map_or(String::new(), |k| format!("; {} {}", k.at, k.rule));
        return Err(format!("has no key that verifies tokens{why}"));
    }
    Ok(found)
}

/// A text of a set for people: in quotes, what is not plain escaped, and cut.
fn shown(text: &str) -> String {
    let mut out = String::from("\"");
    text.chars().take(SHOWN_CHARS_MAX).for_each(|c| push_plain(&mut out, c));
    out.push('"');
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        out.push_str("...");
    }
    out
}

fn jwk(key: &Map<String, Value>) -> Result<Key, String> {
    if let Some(usage) = member(key, "use")?.filter(|usage| *usage != "sig") {
        return Err(format!("is not for signatures: its use is {}", shown(usage)));
    }
    if let Some(list) = key.get("key_ops").filter(|list| !list.is_null()) {
        let verifies = |list: &Vec<Value>| list.iter().any(|op| op == "verify");
        if !list.as_array().is_some_and(verifies) {
            return Err("is not for verifying (key_ops)".into());
        }
    }
    let id = member(key, "kid")?;
    if id.is_some_and(|id| id.is_empty() || id.len() > KEY_ID_BYTES_MAX) {
        return Err(format!("has a kid that is not 1 to {KEY_ID_BYTES_MAX} bytes"));
    }
    let kind_of = kind_of(key)?;
    let material = public_key(kind_of, key)?;
    let of_type = |algorithm: &Algorithm| kind(*algorithm) == kind_of;
    let algorithm = match member(key, "alg")? {
        // RS256 is the first algorithm of RSA; the other types have one each.
        None => Algorithm::NAMED.iter().map(|(_, algorithm)| *algorithm).find(of_type),
        Some(name) => Algorithm::from_name(name).filter(of_type),
    };
    let algorithm = algorithm.ok_or_else(|| {
        let fit = Algorithm::NAMED.iter().filter(|(_, algorithm)| of_type(algorithm));
        let fit: Vec<&str> = fit.map(|(name, _)| *name).collect();
        let name = key.get("alg").and_then(Value::as_str).unwrap_or_default();
        format!("has the alg {}; keys of its type are for {}", shown(name), fit.join(", "))
    })?;
    check(algorithm, &material)?;
    Ok(Key { id: id.map(Arc::from), algorithm, material })
}

/// A text of a key, if it has one.
fn member<'a>(key: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, String> {
    match key.get(name) {
        // Some serializers write what is not there.
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s)),
        Some(_) => Err(format!("has a {name} that is no string")),
    }
}

/// The kind that a key's type and curve say.
fn kind_of(key: &Map<String, Value>) -> Result<Kind, String> {
    let kty = member(key, "kty")?.ok_or("has no kty")?;
    if kty == "RSA" {
        return Ok(Kind::Rsa);
    }
    let curve = member(key, "crv")?;
    match (kty, curve) {
        ("EC", Some("P-256")) => Ok(Kind::P256),
        ("EC", Some("P-384")) => Ok(Kind::P384),
        ("OKP", Some("Ed25519")) => Ok(Kind::Ed25519),
        ("oct", _) => Ok(Kind::Secret),
        (kty, curve) => {
            let curve = curve.map_or(String::new(), |curve| format!(" on {}", shown(curve)));
            let known = "RSA, EC on P-256 and P-384, and OKP on Ed25519";
            Err(format!("is of the type {}{curve}; known are {known}", shown(kty)))
        }
    }
}

/// The public key of a set's key of this kind.
fn public_key(kind: Kind, key: &Map<String, Value>) -> Result<DecodingKey, String> {
    let part = |name: &str| {
        let text = member(key, name)?.ok_or_else(|| format!("has no {name}"))?;
        // Some issuers pad.
        let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('='));
        bytes.map_err(|_| format!("has a {name} that is not base64url"))
    };
    Ok(match kind {
        Kind::Secret => return Err("is a shared secret; those belong into [[auth_key]]".into()),
        Kind::Rsa => {
            // Some libraries write a zero before the number (RFC 7518 section 6.3.1.1 warns of it).
            let n = part("n")?;
            let zeros = n.iter().take_while(|byte| **byte == 0).count();
            DecodingKey::from_rsa_raw_components(&n[zeros..], &part("e")?)
        }
        Kind::P256 | Kind::P384 => {
            // An uncompressed point (SEC 1 section 2.3.3), of which each half has its full length.
            let (x, y) = (part("x")?, part("y")?);
            if x.len() != y.len() {
                return Err("has an x and a y of two lengths".into());
            }
            DecodingKey::from_ec_der(&[&[4], &x[..], &y[..]].concat())
        }
        Kind::Ed25519 => DecodingKey::from_ed_der(&part("x")?),
    })
}
