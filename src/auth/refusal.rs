//! Why a token is refused: a closed list, in words for people and for counters.

use std::fmt;

/// A claim or header parameter that a rule is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Claim {
    /// When it expires (RFC 7519 section 4.1.4).
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
    /// Ours: the tenant.
    Tenant,
    /// Ours: the groups.
    Groups,
}

impl Claim {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Exp,
        Self::Nbf,
        Self::Iat,
        Self::Sub,
        Self::Iss,
        Self::Aud,
        Self::Tenant,
        Self::Groups,
    ];

    /// Its name in the token.
    pub fn name(self) -> &'static str {
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

    /// What it must look like.
    pub fn form(self) -> &'static str {
        match self {
            Self::Exp | Self::Nbf | Self::Iat => "a number of seconds since 1970",
            Self::Sub => "a string of 1 to 128 bytes without control characters",
            Self::Iss => "a string",
            Self::Aud => "a string or a list of strings",
            Self::Tenant => "1 to 64 letters, digits, '-', '_' or '.'",
            Self::Groups => {
                "a list of at most 64 strings of 1 to 64 bytes without control characters"
            }
        }
    }
}

/// Why a token is refused. Nothing in it comes from the token or from a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Refusal {
    /// Longer than [`super::TOKEN_BYTES_MAX`].
    TooLong,
    /// Not three parts of unpadded base64url, the first two of which are JSON objects.
    Malformed,
    /// A name stands twice in one object.
    Duplicate,
    /// An algorithm that is unknown, `none`, or not that of the key.
    Algorithm,
    /// The header is no header: a parameter has the wrong type, or `kid` is too long.
    Header,
    /// The header brings a key or the address of one: `jwk`, `jku`, `x5c`, `x5u`.
    BringsKey,
    /// The header demands extensions (`crit`); we have none.
    Critical,
    /// `typ` says that it is something else than an access token.
    Type,
    /// No key of ours has its `kid`.
    UnknownKey,
    /// It has no `kid`, and not exactly one key of ours is of its algorithm.
    NoKeyId,
    /// The signature is not that of the key.
    Signature,
    /// A claim that must be there is not.
    Missing(Claim),
    /// A claim has the wrong type or form.
    BadClaim(Claim),
    /// `exp` is over.
    Expired,
    /// `nbf` is to come.
    NotYet,
    /// `iat` is to come.
    IssuedInFuture,
    /// `iss` is somebody else.
    Issuer,
    /// `aud` is somebody else.
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
            Self::UnknownKey,
            Self::NoKeyId,
            Self::Signature,
            Self::Expired,
            Self::NotYet,
            Self::IssuedInFuture,
            Self::Issuer,
            Self::Audience,
        ];
        all.extend(Claim::ALL.map(Self::Missing));
        all.extend(Claim::ALL.map(Self::BadClaim));
        all
    }

    /// A sentence for people, the client's too.
    pub fn text(self) -> String {
        let fixed = match self {
            Self::TooLong => "the token is too long",
            Self::Malformed => "the token is not a signed JWT in compact form",
            Self::Duplicate => "the token names something twice",
            Self::Algorithm => "the token's algorithm is not accepted",
            Self::Header => "the token's header is not a JWT's",
            Self::BringsKey => "the token brings its own key or a link to one",
            Self::Critical => "the token demands extensions that are not known here",
            Self::Type => "the token is not an access token",
            Self::UnknownKey => "the token's key is not known here",
            Self::NoKeyId => "the token does not say which key it is signed with",
            Self::Signature => "the token's signature is not right",
            Self::Missing(claim) => {
                return format!("the token has no {}", claim.name());
            }
            Self::BadClaim(claim) => {
                return format!("the token's {} is not {}", claim.name(), claim.form());
            }
            Self::Expired => "the token has expired",
            Self::NotYet => "the token is not valid yet",
            Self::IssuedInFuture => "the token was issued in the future",
            Self::Issuer => "the token is from another issuer",
            Self::Audience => "the token is for somebody else",
        };
        fixed.to_owned()
    }

    /// A word for counters; 18 in all, whatever a token holds.
    pub fn label(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::Duplicate => "duplicate",
            Self::Algorithm => "algorithm",
            Self::Header => "header",
            Self::BringsKey => "brings_key",
            Self::Critical => "critical",
            Self::Type => "type",
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
