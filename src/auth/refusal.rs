//! Reasons to refuse a token: a closed list, in texts for people and labels for counters.

use std::fmt;

use crate::config::settings::Algorithm;

/// A claim or header parameter that a rule is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Claim {
    /// Expiration time (RFC 7519 section 4.1.4).
    Exp,
    /// Not before (section 4.1.5).
    Nbf,
    /// Issued at (section 4.1.6).
    Iat,
    /// Subject: the user (section 4.1.2).
    Sub,
    /// Issuer (section 4.1.1).
    Iss,
    /// Audience (section 4.1.3).
    Aud,
    /// The tenant; a claim of this gateway.
    Tenant,
    /// The groups; a claim of this gateway.
    Groups,
}

impl Claim {
    /// All claims that can refuse a token. Groups cannot: what is no group is left out.
    pub const REFUSING: [Self; 7] =
        [Self::Exp, Self::Nbf, Self::Iat, Self::Sub, Self::Iss, Self::Aud, Self::Tenant];

    /// Name of the claim in the token.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Exp => "exp",
            Self::Nbf => "nbf",
            Self::Iat => "iat",
            Self::Sub => "sub",
            Self::Iss => "iss",
            Self::Aud => "aud",
            Self::Tenant => "tenant",
            Self::Groups => "groups",
        }
    }

    /// Form that the claim must have, for people.
    pub(crate) fn form(self) -> &'static str {
        match self {
            Self::Exp | Self::Nbf | Self::Iat => "a number of seconds since 1970",
            Self::Sub => "a string of 1 to 255 bytes without control characters",
            Self::Iss => "a string",
            Self::Aud => "a string or a list of strings",
            Self::Tenant => "1 to 64 letters, digits, '-', '_' or '.'",
            Self::Groups => {
                "a list of at most 64 strings of 1 to 64 bytes without control characters"
            }
        }
    }
}

/// Reason to refuse a token. It contains no part of the token or of a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Refusal {
    /// The token is longer than [`super::TOKEN_BYTES_MAX`].
    TooLong,
    /// The token does not have three parts of unpadded base64url, the first two of which are JSON
    /// objects.
    Malformed,
    /// A name occurs twice in one object.
    Duplicate,
    /// The algorithm is unknown, `none`, or not that of the key.
    Algorithm,
    /// The header is invalid: a parameter has the wrong type, or `kid` is too long.
    Header,
    /// The header contains a key or the address of one: `jwk`, `jku`, `x5c`, `x5u`.
    BringsKey,
    /// The header demands extensions (`crit`), of which the gateway has none.
    Critical,
    /// Another `typ` than that of an access token.
    Type,
    /// The tenant is not one of the configuration, and `auth.unknown_tenant` is `"refuse"`.
    UnknownTenant,
    /// The tenant is not one of the configuration, and a source may have it.
    AwaitedTenant,
    /// No key has this `kid`.
    UnknownKey,
    /// No `kid`, and not exactly one key for its algorithm.
    NoKeyId,
    /// The signature was not made with the key.
    Signature,
    /// A required claim is missing.
    Missing(Claim),
    /// A claim has the wrong type or form.
    BadClaim(Claim),
    /// The time `exp` has passed.
    Expired,
    /// The time `nbf` is in the future.
    NotYet,
    /// The time `iat` is in the future.
    IssuedInFuture,
    /// The claim `iss` names another issuer.
    Issuer,
    /// The claim `aud` does not name this audience.
    Audience,
}

impl Refusal {
    /// Every refusal, once for each claim where it names one.
    pub fn all() -> Vec<Self> {
        let mut all = vec![
            Self::TooLong,
            Self::Malformed,
            Self::Duplicate,
            Self::Algorithm,
            Self::Header,
            Self::BringsKey,
            Self::Critical,
            Self::Type,
            Self::UnknownTenant,
            Self::AwaitedTenant,
            Self::UnknownKey,
            Self::NoKeyId,
            Self::Signature,
            Self::Expired,
            Self::NotYet,
            Self::IssuedInFuture,
            Self::Issuer,
            Self::Audience,
        ];
        all.extend(Claim::REFUSING.map(Self::Missing));
        all.extend(Claim::REFUSING.map(Self::BadClaim));
        all
    }

    /// Text for people, also sent to clients (see [`super::Verifier::told`]). 300 bytes at most.
    pub(crate) fn text(self) -> String {
        let fixed = match self {
            Self::TooLong => "the token is over 8 KiB",
            Self::Malformed => "the token is not a signed JWT in compact form",
            Self::Duplicate => "the token has one name twice in an object",
            Self::Algorithm => {
                let names = Algorithm::NAMED.map(|(name, _)| name).join(", ");
                return format!(
                    "the token's algorithm (alg) is not the one of its key, or none of {names}"
                );
            }
            Self::Header => "the token's header is not that of a JWT",
            Self::BringsKey => "the token's header contains a key or the address of one",
            Self::Critical => "the token demands extensions (crit) that the gateway does not have",
            Self::Type => "the token's type (typ) is not that of an access token",
            Self::UnknownTenant => "the token's tenant is none of the gateway's",
            Self::AwaitedTenant => "the token's tenant is not in force, and a source may have it",
            Self::UnknownKey => "the token's kid names no key of the gateway",
            Self::NoKeyId => "the token has no kid, and more than one key may have signed it",
            Self::Signature => "the token's signature was not made with its key",
            Self::Missing(claim) => {
                return format!(
                    "the token has no {}, which must be {}",
                    claim.name(),
                    claim.form()
                );
            }
            Self::BadClaim(claim) => {
                return format!("the token's {} is not {}", claim.name(), claim.form());
            }
            Self::Expired => "the token has expired (exp)",
            Self::NotYet => "the token is not valid yet (nbf)",
            Self::IssuedInFuture => "the token was issued in the future (iat)",
            Self::Issuer => "the token is from another issuer (iss)",
            Self::Audience => "the token is for another audience (aud)",
        };
        fixed.to_owned()
    }

    /// Whether it says that no key of the token's party signed it: whoever has no key of a party
    /// gets no further.
    pub(super) fn is_of_key(self) -> bool {
        match self {
            Self::UnknownTenant
            | Self::AwaitedTenant
            | Self::UnknownKey
            | Self::NoKeyId
            | Self::Algorithm
            | Self::Signature => true,
            Self::TooLong
            | Self::Malformed
            | Self::Duplicate
            | Self::Header
            | Self::BringsKey
            | Self::Critical
            | Self::Type
            | Self::Missing(_)
            | Self::BadClaim(_)
            | Self::Expired
            | Self::NotYet
            | Self::IssuedInFuture
            | Self::Issuer
            | Self::Audience => false,
        }
    }

    /// Label for counters. There are 20 labels, whatever tokens contain.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::Duplicate => "duplicate",
            Self::Algorithm => "algorithm",
            Self::Header => "header",
            Self::BringsKey => "brings_key",
            Self::Critical => "critical",
            Self::Type => "type",
            Self::UnknownTenant => "unknown_tenant",
            Self::AwaitedTenant => "awaited_tenant",
            Self::UnknownKey => "unknown_key",
            Self::NoKeyId => "no_key_id",
            Self::Signature => "signature",
            Self::Missing(_) => "missing_claim",
            Self::BadClaim(_) => "bad_claim",
            Self::Expired => "expired",
            Self::NotYet => "not_yet",
            Self::IssuedInFuture => "issued_in_future",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl std::error::Error for Refusal {}
