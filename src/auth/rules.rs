//! The rules that a token is checked by, once its party is known, in the order in which they are
//! checked.

use std::sync::Arc;

use serde_json::Number;
use serde_json::value::RawValue;

use super::json::Members;
use super::keys::Key;
use super::token::Token;
use super::{
    Claim, EARLY_FETCH_S, GROUP_BYTES_MAX, GROUPS_MAX, Identity, KeyOwner, Keys, NotAccepted,
    Refusal, USER_BYTES_MAX, signature,
};
use crate::config::is_name;
use crate::config::settings::{AuthSettings, TenantTokens, Tenants};
use crate::limits::SEQ_MAX;

/// The rules for tokens of one party: everybody who has the keys of `[auth]`, or a tenant with its
/// own.
#[derive(Clone, Debug)]
pub struct Rules {
    owner: KeyOwner,
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

/// The claims that are used, in their right types, with values that are not checked yet. All others
/// are not even looked at: whatever they contain, they are no reason to refuse a token.
#[derive(Debug)]
pub(super) struct Claims {
    times: Times,
    user: String,
    /// `None` also if no issuer is configured.
    issuer: Option<String>,
    /// `None` also if no audience is configured.
    audience: Option<Vec<String>>,
    tenant: Option<Arc<str>>,
    groups: Groups,
}

/// The names in the claim `groups`. Nothing is decided by them, so no form of it refuses a token.
#[derive(Default, Debug)]
pub(super) struct Groups {
    /// The first [`GROUPS_MAX`] names within the bounds.
    pub(super) kept: Vec<Arc<str>>,
    /// Number of entries that are no such names.
    pub(super) left_out: u32,
}

impl Rules {
    /// The rules of `[auth]`, with its keys.
    pub(crate) fn of_auth(settings: &AuthSettings, keys: Keys) -> Self {
        Self {
            owner: KeyOwner::Auth,
            keys,
            fetches: settings.jwks_url.is_some(),
            issuer: shared(&settings.issuer),
            audience: shared(&settings.audience),
            leeway_s: settings.leeway.as_secs().min(60) as i64,
            tenants: settings.tenants,
        }
    }

    /// The rules of a tenant with `tokens` of its own, and its keys.
    pub(crate) fn of_tenant(
        name: &Arc<str>,
        tokens: &TenantTokens,
        keys: Keys,
        settings: &AuthSettings,
    ) -> Self {
        Self {
            owner: KeyOwner::Tenant(name.clone()),
            fetches: tokens.jwks_url.is_some(),
            issuer: shared(&tokens.issuer),
            audience: shared(&tokens.audience),
            ..Self::of_auth(settings, keys)
        }
    }

    /// The party whose keys these are.
    pub(super) fn owner(&self) -> &KeyOwner {
        &self.owner
    }

    /// Whether there is no key before a set is fetched: until then tokens can be neither accepted
    /// nor refused.
    fn has_no_keys_yet(&self) -> bool {
        self.fetches && self.keys.is_empty()
    }

    /// Whether a newer set may have other keys than the one that was fetched.
    pub(super) fn keys_may_come(&self, now_unix_s: i64) -> bool {
        self.fetches && self.is_behind(now_unix_s)
    }

    /// Reason for which a refused token is not accepted, where all have these rules.
    pub(super) fn not_accepted(
        &self,
        token: &Token<'_>,
        refusal: Refusal,
        now_unix_s: i64,
    ) -> NotAccepted {
        match self.has_no_keys_yet() || self.key_may_come(token, now_unix_s) {
            true => NotAccepted::LacksKeys(self.owner.clone()),
            false => NotAccepted::Refused(refusal),
        }
    }

    /// Whether the key that a refused `token` names may be in a newer set than the one that was
    /// fetched: then a fetch must come before the verdict.
    fn key_may_come(&self, token: &Token<'_>, now_unix_s: i64) -> bool {
        if !self.keys_may_come(now_unix_s) {
            return false;
        }
        let Ok(header) = token.checked_header() else { return false };
        match &header.key_id {
            Some(id) => !self.keys.knows(id),
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

    /// The key that the token must be signed with.
    pub(super) fn key(&self, token: &Token<'_>) -> Result<&Key, Refusal> {
        let header = token.checked_header()?;
        match &header.key_id {
            Some(id) if !self.keys.knows(id) => Err(Refusal::UnknownKey),
            Some(id) => self.keys.named(id, header.algorithm).ok_or(Refusal::Algorithm),
            // With several keys, trying one after the other would let a sender choose the cost of a
            // bad token, and the key behind a good one would be unclear.
            None => self.keys.only_one_of(header.algorithm).ok_or(Refusal::NoKeyId),
        }
    }

    /// Reads the claims that are used by their types. `tenant` is the one that is known already.
    pub(super) fn read(
        &self,
        claims: &Members,
        tenant: Option<&Arc<str>>,
    ) -> Result<Claims, Refusal> {
        let exp = seconds(claims, Claim::Exp, f64::floor)?.ok_or(Refusal::Missing(Claim::Exp))?;
        let nbf = seconds(claims, Claim::Nbf, f64::ceil)?;
        let iat = seconds(claims, Claim::Iat, f64::floor)?;
        let user = text(claims, Claim::Sub)?.ok_or(Refusal::Missing(Claim::Sub))?;
        if !is_word(&user, USER_BYTES_MAX) {
            return Err(Refusal::BadClaim(Claim::Sub));
        }
        let tenant = match (self.tenants, tenant) {
            (Tenants::One, _) => None,
            (Tenants::Many, Some(known)) => Some(known.clone()),
            (Tenants::Many, None) => {
                let tenant = text(claims, Claim::Tenant)?;
                let tenant = tenant.ok_or(Refusal::Missing(Claim::Tenant))?;
                let tenant = Some(tenant).filter(|t| is_name(t));
                Some(tenant.ok_or(Refusal::BadClaim(Claim::Tenant))?.into())
            }
        };
        let issuer = self.issuer.as_ref().map(|_| text(claims, Claim::Iss)).transpose()?;
        let audience = self.audience.as_ref().map(|_| audience(claims)).transpose()?;
        Ok(Claims {
            times: Times { exp, nbf, iat },
            user,
            issuer: issuer.flatten(),
            audience: audience.flatten(),
            tenant,
            groups: groups(claims),
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

    pub(super) fn check_issuer(&self, claims: &Claims) -> Result<(), Refusal> {
        match (&self.issuer, &claims.issuer) {
            (None, _) => Ok(()),
            (Some(_), None) => Err(Refusal::Missing(Claim::Iss)),
            (Some(wanted), Some(is)) if **wanted == *is => Ok(()),
            (Some(_), Some(_)) => Err(Refusal::Issuer),
        }
    }

    pub(super) fn check_audience(&self, claims: &Claims) -> Result<(), Refusal> {
        match (&self.audience, &claims.audience) {
            (None, _) => Ok(()),
            (Some(_), None) => Err(Refusal::Missing(Claim::Aud)),
            (Some(wanted), Some(list)) if list.iter().any(|is| **wanted == *is) => Ok(()),
            (Some(_), Some(_)) => Err(Refusal::Audience),
        }
    }

    pub(super) fn identity(&self, claims: Claims) -> Identity {
        Identity {
            user: claims.user.into(),
            tenant: claims.tenant,
            groups: claims.groups.kept,
            groups_left_out: claims.groups.left_out,
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

impl Claims {
    pub(super) fn times(&self) -> Times {
        self.times
    }

    pub(super) fn groups(&self) -> &Groups {
        &self.groups
    }
}

/// Checks that the token is signed with `key`.
pub(super) fn check_signature(token: &Token<'_>, key: &Key) -> Result<(), Refusal> {
    let (text, signed) = (token.signature, token.signed.as_bytes());
    let right =
        jsonwebtoken::crypto::verify(text, signed, key.material(), signature(key.algorithm()));
    right.unwrap_or(false).then_some(()).ok_or(Refusal::Signature)
}

/// Reads a NumericDate (RFC 7519 section 2): any JSON number, a fraction rounded to the safe side
/// by `round`. What is further from 1970 than 2^53 - 1, the largest whole number on which all
/// readers of JSON agree, counts as that time: issuers write the least and the largest number of
/// their language for "always" and "never", and sums with the leeway cannot overflow. A string is
/// refused, whatever it contains.
fn seconds(claims: &Members, claim: Claim, round: fn(f64) -> f64) -> Result<Option<i64>, Refusal> {
    let Some(value) = claims.get(claim.name()) else { return Ok(None) };
    let number: Option<Number> = serde_json::from_str(value.get()).ok();
    let number = number.ok_or(Refusal::BadClaim(claim))?;
    let max = SEQ_MAX as i64;
    let whole = match (number.as_i64(), number.as_f64()) {
        (Some(n), _) => n,
        // Rounds to the ends of i64 and no further.
        (None, Some(x)) => round(x) as i64,
        (None, None) => return Err(Refusal::BadClaim(claim)),
    };
    Ok(Some(whole.clamp(-max, max)))
}

fn text(claims: &Members, claim: Claim) -> Result<Option<String>, Refusal> {
    let value = claims.get(claim.name());
    value.map(|value| string(value).ok_or(Refusal::BadClaim(claim))).transpose()
}

fn string(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

/// Whether `s` has 1 to `bytes_max` bytes without control characters: users and groups are used in
/// headers and keys. Other characters that are not plain are taken, as an issuer may have given
/// such names and a refusal would lock their users out; where names are shown they are escaped.
fn is_word(s: &str, bytes_max: usize) -> bool {
    (1..=bytes_max).contains(&s.len()) && !s.chars().any(char::is_control)
}

fn audience(claims: &Members) -> Result<Option<Vec<String>>, Refusal> {
    let Some(value) = claims.get(Claim::Aud.name()) else { return Ok(None) };
    let list = string(value).map(|one| vec![one]);
    let list = list.or_else(|| serde_json::from_str(value.get()).ok());
    list.map(Some).ok_or(Refusal::BadClaim(Claim::Aud))
}

/// The groups: of a list its strings within the bounds, and a string is one group.
fn groups(claims: &Members) -> Groups {
    let mut groups = Groups::default();
    let Some(value) = claims.get(Claim::Groups.name()).filter(|v| v.get() != "null") else {
        return groups;
    };
    let list: Vec<&RawValue> = serde_json::from_str(value.get()).unwrap_or_else(|_| vec![&**value]);
    for name in list.into_iter().map(string) {
        match name.filter(|name| is_word(name, GROUP_BYTES_MAX)) {
            Some(name) if groups.kept.len() < GROUPS_MAX => groups.kept.push(name.into()),
            // A token of 8 KiB has some thousand entries at most.
            Some(_) | None => groups.left_out += 1,
        }
    }
    groups
}

fn shared(text: &Option<String>) -> Option<Arc<str>> {
    text.as_deref().map(Arc::from)
}
