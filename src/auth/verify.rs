//! The rules for a token, in the order in which they are checked.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::keys::Key;
use super::token::Token;
use super::{
    Claim, EARLY_FETCH_S, GROUP_BYTES_MAX, GROUPS_MAX, Identity, Keys, Refusal, USER_BYTES_MAX,
    signature,
};
use crate::config::is_name;
use crate::config::settings::{AuthSettings, Tenants};
use crate::limits::SEQ_MAX;

/// Verifier of tokens. It is immutable: new keys or settings make a new one.
#[derive(Clone, Debug)]
pub struct Verifier {
    keys: Keys,
    /// Whether a JWK set is fetched, so that there may be newer keys.
    fetches: bool,
    issuer: Option<Arc<str>>,
    audience: Option<Arc<str>>,
    /// Leeway of all times; at most 60 (checked by `config`).
    leeway_s: i64,
    tenants: Tenants,
}

/// The times of a token, in seconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    exp: i64,
    nbf: Option<i64>,
    iat: Option<i64>,
}

/// Claims in their right types, with values that are not checked yet.
#[derive(Debug)]
pub(super) struct Claims<'a> {
    times: Times,
    user: &'a str,
    issuer: Option<&'a str>,
    audience: Option<Vec<&'a str>>,
    tenant: Option<&'a str>,
    groups: Vec<&'a str>,
}

impl Verifier {
    /// A verifier with the rules of `settings` and with `keys`.
    pub(crate) fn new(settings: &AuthSettings, keys: Keys) -> Self {
        let shared = |text: &Option<String>| text.as_deref().map(Arc::from);
        Self {
            keys,
            fetches: settings.jwks_url.is_some(),
            issuer: shared(&settings.issuer),
            audience: shared(&settings.audience),
            leeway_s: settings.leeway.as_secs().min(60) as i64,
            tenants: settings.tenants,
        }
    }

    /// Whether there is a key at all. Without one (before a set is fetched) tokens can be neither
    /// accepted nor refused.
    pub(crate) fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Whether the key that a refused `token` names may be in a newer set than the one that was
    /// fetched: then a fetch must come before the verdict.
    pub(crate) fn key_may_come(&self, token: &str, now_unix_s: i64) -> bool {
        if !self.fetches || !self.is_behind(now_unix_s) {
            return false;
        }
        let header = Token::read(token).and_then(|token| token.checked_header());
        let Ok(header) = header else { return false };
        match &header.key_id {
            Some(id) => self.keys.by_id(id).is_none(),
            None => {
                let (keys, algorithm) = (&self.keys, header.algorithm);
                keys.only_one_of(algorithm).is_none() && keys.may_fetch_one_of(algorithm)
            }
        }
    }

    /// Whether the fetched set is missing, or too old to tell a key that does not exist from a new
    /// one. A clock that was set back makes it too old, too.
    fn is_behind(&self, now_unix_s: i64) -> bool {
        let at = self.keys.fetched_unix_s();
        at.is_none_or(|at| at.abs_diff(now_unix_s) > EARLY_FETCH_S)
    }

    /// The identity in `token`, if it holds at `now_unix_s`, seconds since 1970.
    pub(crate) fn verify(&self, token: &str, now_unix_s: i64) -> Result<Identity, Refusal> {
        let token = Token::read(token)?;
        let key = self.key(&token)?;
        check_signature(&token, key)?;
        let claims = token.claims()?;
        let claims = self.read(&claims)?;
        self.check_times(claims.times, now_unix_s)?;
        self.check_issuer(&claims)?;
        self.check_audience(&claims)?;
        Ok(self.identity(&claims))
    }

    /// The key that the token must be signed with.
    pub(super) fn key(&self, token: &Token<'_>) -> Result<&Key, Refusal> {
        let header = token.checked_header()?;
        match &header.key_id {
            Some(id) => {
                let key = self.keys.by_id(id).ok_or(Refusal::UnknownKey)?;
                (key.algorithm() == header.algorithm).then_some(key).ok_or(Refusal::Algorithm)
            }
            // With several keys, trying one after the other would let a sender choose the cost of a
            // bad token, and the key behind a good one would be unclear.
            None => self.keys.only_one_of(header.algorithm).ok_or(Refusal::NoKeyId),
        }
    }

    /// Reads the claims by their types.
    pub(super) fn read<'a>(&self, claims: &'a Map<String, Value>) -> Result<Claims<'a>, Refusal> {
        let exp = seconds(claims, Claim::Exp, f64::floor)?.ok_or(Refusal::Missing(Claim::Exp))?;
        let nbf = seconds(claims, Claim::Nbf, f64::ceil)?;
        let iat = seconds(claims, Claim::Iat, f64::floor)?;
        let user = text(claims, Claim::Sub)?.ok_or(Refusal::Missing(Claim::Sub))?;
        if !is_word(user, USER_BYTES_MAX) {
            return Err(Refusal::BadClaim(Claim::Sub));
        }
        let tenant = match self.tenants {
            Tenants::One => None,
            Tenants::Many => {
                let tenant = text(claims, Claim::Tenant)?;
                let tenant = tenant.ok_or(Refusal::Missing(Claim::Tenant))?;
                Some(tenant).filter(|t| is_name(t)).ok_or(Refusal::BadClaim(Claim::Tenant))?.into()
            }
        };
        Ok(Claims {
            times: Times { exp, nbf, iat },
            user,
            issuer: text(claims, Claim::Iss)?,
            audience: audience(claims)?,
            tenant,
            groups: groups(claims)?,
        })
    }

    /// Checks `exp` (RFC 7519 section 4.1.4: not on or after it), `nbf` and `iat`, give or take the
    /// leeway.
    pub(super) fn check_times(&self, times: Times, now: i64) -> Result<(), Refusal> {
        if now >= times.exp + self.leeway_s {
            return Err(Refusal::Expired);
        }
        let latest = now.saturating_add(self.leeway_s);
        if times.nbf.is_some_and(|nbf| nbf > latest) {
            return Err(Refusal::NotYet);
        }
        if times.iat.is_some_and(|iat| iat > latest) {
            return Err(Refusal::IssuedInFuture);
        }
        Ok(())
    }

    pub(super) fn check_issuer(&self, claims: &Claims<'_>) -> Result<(), Refusal> {
        match (&self.issuer, claims.issuer) {
            (None, _) => Ok(()),
            (Some(_), None) => Err(Refusal::Missing(Claim::Iss)),
            (Some(wanted), Some(is)) if **wanted == *is => Ok(()),
            (Some(_), Some(_)) => Err(Refusal::Issuer),
        }
    }

    pub(super) fn check_audience(&self, claims: &Claims<'_>) -> Result<(), Refusal> {
        match (&self.audience, &claims.audience) {
            (None, _) => Ok(()),
            (Some(_), None) => Err(Refusal::Missing(Claim::Aud)),
            (Some(wanted), Some(list)) if list.contains(&&**wanted) => Ok(()),
            (Some(_), Some(_)) => Err(Refusal::Audience),
        }
    }

    pub(super) fn identity(&self, claims: &Claims<'_>) -> Identity {
        Identity {
            user: claims.user.into(),
            tenant: claims.tenant.map(Arc::from),
            groups: claims.groups.iter().map(|&group| Arc::from(group)).collect(),
            expires_unix_s: claims.times.exp + self.leeway_s,
        }
    }

    /// Value that `iss` must have.
    pub(super) fn issuer(&self) -> Option<&str> {
        self.issuer.as_deref()
    }

    /// Value that `aud` must be or contain.
    pub(super) fn audience(&self) -> Option<&str> {
        self.audience.as_deref()
    }

    /// Seconds by which clocks may differ.
    pub(super) fn leeway_s(&self) -> i64 {
        self.leeway_s
    }
}

impl Claims<'_> {
    pub(super) fn times(&self) -> Times {
        self.times
    }
}

/// Checks that the token is signed with `key`.
pub(super) fn check_signature(token: &Token<'_>, key: &Key) -> Result<(), Refusal> {
    let (text, signed) = (token.signature, token.signed.as_bytes());
    let right =
        jsonwebtoken::crypto::verify(text, signed, key.material(), signature(key.algorithm()));
    right.unwrap_or(false).then_some(()).ok_or(Refusal::Signature)
}

/// Reads a NumericDate (RFC 7519 section 2): a JSON number, a fraction rounded to the safe side by
/// `round`. From 0 to 2^53 - 1, the largest whole number on which all readers of JSON agree; so
/// sums with the leeway cannot overflow. A string is refused, whatever it contains.
fn seconds(
    claims: &Map<String, Value>,
    claim: Claim,
    round: fn(f64) -> f64,
) -> Result<Option<i64>, Refusal> {
    let Some(value) = claims.get(claim.name()) else { return Ok(None) };
    let bad = Refusal::BadClaim(claim);
    let Value::Number(number) = value else { return Err(bad) };
    let whole = match (number.as_u64(), number.as_f64()) {
        (Some(n), _) => n,
        (None, Some(x)) if (0.0..=SEQ_MAX as f64).contains(&x) => round(x) as u64,
        (None, _) => return Err(bad),
    };
    i64::try_from(whole).ok().filter(|_| whole <= SEQ_MAX).map(Some).ok_or(bad)
}

fn text(claims: &Map<String, Value>, claim: Claim) -> Result<Option<&str>, Refusal> {
    match claims.get(claim.name()) {
        None => Ok(None),
        Some(Value::String(s)) => Ok(Some(s)),
        Some(_) => Err(Refusal::BadClaim(claim)),
    }
}

/// Whether `s` has 1 to `bytes_max` bytes without control characters: users and groups are used in
/// headers and keys. Other characters that are not plain are taken, as an issuer may have given
/// such names and a refusal would lock their users out; where names are shown they are escaped.
fn is_word(s: &str, bytes_max: usize) -> bool {
    (1..=bytes_max).contains(&s.len()) && !s.chars().any(char::is_control)
}

fn audience(claims: &Map<String, Value>) -> Result<Option<Vec<&str>>, Refusal> {
    match claims.get(Claim::Aud.name()) {
        None => Ok(None),
        Some(Value::String(s)) => Ok(Some(vec![s])),
        Some(Value::Array(list)) => {
            let texts: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
            texts.map(Some).ok_or(Refusal::BadClaim(Claim::Aud))
        }
        Some(_) => Err(Refusal::BadClaim(Claim::Aud)),
    }
}

fn groups(claims: &Map<String, Value>) -> Result<Vec<&str>, Refusal> {
    let list = match claims.get(Claim::Groups.name()) {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() <= GROUPS_MAX => list,
        Some(_) => return Err(Refusal::BadClaim(Claim::Groups)),
    };
    let word = |value: &'_ Value| value.as_str().is_some_and(|s| is_word(s, GROUP_BYTES_MAX));
    if !list.iter().all(word) {
        return Err(Refusal::BadClaim(Claim::Groups));
    }
    Ok(list.iter().filter_map(Value::as_str).collect())
}
