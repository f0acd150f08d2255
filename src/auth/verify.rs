//! The verifier of tokens: which rules a token is checked by, and the verdict.
//!
//! ```text
//!   claim tenant names a tenant ----------------------------------+
//!   no such claim, and iss is the issuer of exactly one tenant ---+--> its own keys, if it has any
//!   the claim names somebody else: unknown_tenant = "refuse" -> refused
//!   all the others --------------------------------------------------> the keys of [auth]
//! ```
//!
//! Both claims are read before the signature holds, and decide nothing but the keys: the rules of
//! the party that they name are checked then, whole. So a token that is signed with one party's key
//! and names another is refused by the other's keys.

use std::collections::HashMap;
use std::sync::Arc;

use super::json::Said;
use super::rules::{Claims, Rules, check_signature};
use super::token::{Named, Token};
use super::{Identity, KeyOwner, Keys, Refusal};
use crate::config::settings::{AuthSettings, Tenants, UnknownTenant};

/// Text for clients in place of the refusals that precede the claims, where tenants have keys of
/// their own: nobody learns by trying names which tenants there are.
const NO_KEY_OF_TENANT: &str = "the token was not made with a key for its tenant";

/// Verifier of tokens. It is immutable: new keys or settings make a new one.
#[derive(Clone, Debug)]
pub struct Verifier {
    /// The rules of `[auth]`.
    common: Arc<Rules>,
    /// `None`: no tenant differs from others.
    tenants: Option<Arc<TenantRules>>,
}

/// Tenants of the configuration, as far as tokens are concerned.
#[derive(Clone, Debug, Default)]
struct TenantRules {
    /// Their own rules; `None` = those of `[auth]`.
    by_name: HashMap<Arc<str>, Option<Arc<Rules>>>,
    /// The tenants that have an issuer of their own; `None` = several have this one.
    by_issuer: HashMap<Arc<str>, Option<Arc<str>>>,
    /// Whether tokens of other tenants are refused.
    refuses_others: bool,
}

/// The party that a token is checked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Party<'v> {
    pub(super) rules: &'v Rules,
    /// Name, if it is a tenant of the configuration.
    pub(super) tenant: Option<&'v Arc<str>>,
    /// Whether the token is from the issuer of another tenant.
    pub(super) is_from_another: bool,
}

/// Reason for which a token is not accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum NotAccepted {
    /// It is not valid.
    Refused(Refusal),
    /// Its key is unknown and may be known soon: it can be neither accepted nor refused before the
    /// set of this owner is fetched.
    LacksKeys(KeyOwner),
}

impl From<Refusal> for NotAccepted {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Verifier {
    /// A verifier with the rules of `settings` and with `keys`, for which all tenants are alike.
    pub(crate) fn new(settings: &AuthSettings, keys: Keys) -> Self {
        Self { common: Arc::new(Rules::of_auth(settings, keys)), tenants: None }
    }

    /// The same with tenants of the configuration, each with its own rules if it has any.
    pub(crate) fn with_tenants(
        mut self,
        settings: &AuthSettings,
        tenants: impl IntoIterator<Item = (Arc<str>, Option<Arc<Rules>>)>,
    ) -> Self {
        if settings.tenants == Tenants::One {
            return self;
        }
        let refuses_others = settings.unknown_tenant == UnknownTenant::Refuse;
        let mut all = TenantRules { refuses_others, ..TenantRules::default() };
        for (name, rules) in tenants {
            if let Some(issuer) = rules.as_ref().and_then(|rules| rules.issuer()) {
                let known = all.by_issuer.entry(issuer.into());
                known.and_modify(|of| *of = None).or_insert_with(|| Some(name.clone()));
            }
            all.by_name.insert(name, rules);
        }
        let differ = refuses_others || !all.by_name.is_empty();
        self.tenants = differ.then(|| Arc::new(all));
        self
    }

    /// The same with other rules of one tenant, which has the issuer that it had.
    pub(crate) fn with_rules(&self, name: &Arc<str>, rules: Arc<Rules>) -> Self {
        let mut tenants = self.tenants.as_deref().cloned().unwrap_or_default();
        tenants.by_name.insert(name.clone(), Some(rules));
        Self { common: self.common.clone(), tenants: Some(Arc::new(tenants)) }
    }

    /// The identity in `token`, if it holds at `now_unix_s`, seconds since 1970.
    pub(crate) fn judge(&self, token: &str, now_unix_s: i64) -> Result<Identity, NotAccepted> {
        let token = Token::read(token)?;
        let party = self.party(&token)?;
        if party.rules.has_no_keys_yet() {
            return Err(NotAccepted::LacksKeys(party.rules.owner().clone()));
        }
        party.verify(&token, now_unix_s).map_err(|refusal| {
            match party.rules.key_may_come(&token, now_unix_s) {
                true => NotAccepted::LacksKeys(party.rules.owner().clone()),
                false => NotAccepted::Refused(refusal),
            }
        })
    }

    /// The same by the keys that there are.
    pub(crate) fn verify(&self, token: &str, now_unix_s: i64) -> Result<Identity, Refusal> {
        let token = Token::read(token)?;
        self.party(&token)?.verify(&token, now_unix_s)
    }

    /// The owner of the keys that a token is checked with, if it can be said of this text.
    pub(crate) fn owner(&self, token: &str) -> Option<&KeyOwner> {
        let token = Token::read(token).ok()?;
        self.party(&token).ok().map(|party| party.rules.owner())
    }

    /// The party that `token` is checked for.
    pub(super) fn party(&self, token: &Token<'_>) -> Result<Party<'_>, Refusal> {
        match &self.tenants {
            None => Ok(Party { rules: &self.common, tenant: None, is_from_another: false }),
            Some(tenants) => {
                // First, so that what is wrong with it does not tell which tenants there are.
                token.checked_header()?;
                tenants.pick(&self.common, token)
            }
        }
    }

    /// Text of a refusal for the client.
    pub(crate) fn told(&self, refusal: Refusal) -> String {
        match refusal {
            Refusal::UnknownTenant
            | Refusal::UnknownKey
            | Refusal::NoKeyId
            | Refusal::Algorithm
            | Refusal::Signature
                if self.tenants.is_some() =>
            {
                NO_KEY_OF_TENANT.to_owned()
            }
            refusal => refusal.text(),
        }
    }

    /// Whether tenants differ from each other.
    pub(super) fn has_tenants(&self) -> bool {
        self.tenants.is_some()
    }

    /// The rules of all parties that have keys of their own.
    pub(super) fn all_rules(&self) -> impl Iterator<Item = &Rules> {
        let own = self.tenants.iter().flat_map(|tenants| tenants.by_name.values().flatten());
        std::iter::once(&self.common).chain(own).map(|rules| &**rules)
    }
}

impl TenantRules {
    fn pick<'v>(&'v self, common: &'v Rules, token: &Token<'_>) -> Result<Party<'v>, Refusal> {
        let Named { tenant, issuer } = token.named();
        let by_issuer = issuer.and_then(|issuer| self.by_issuer.get_key_value(&*issuer));
        let name = match &tenant {
            Said::Text(name) => Some(&**name),
            Said::Nothing => by_issuer.and_then(|(_, name)| name.as_deref()),
            Said::Other => None,
        };
        let found = name.and_then(|name| self.by_name.get_key_value(name));
        if found.is_none() && self.refuses_others && matches!(tenant, Said::Text(_)) {
            return Err(Refusal::UnknownTenant);
        }
        let rules = found.and_then(|(_, own)| own.as_deref()).unwrap_or(common);
        Ok(Party {
            rules,
            tenant: found.map(|(name, _)| name),
            // Where the rules name an issuer, that is checked anyway.
            is_from_another: rules.issuer().is_none() && by_issuer.is_some(),
        })
    }
}

impl Party<'_> {
    fn verify(&self, token: &Token<'_>, now_unix_s: i64) -> Result<Identity, Refusal> {
        let rules = self.rules;
        check_signature(token, rules.key(token)?)?;
        let claims = rules.read(&token.claims()?, self.tenant)?;
        rules.check_times(claims.times(), now_unix_s)?;
        self.check_issuer(&claims)?;
        rules.check_audience(&claims)?;
        Ok(rules.identity(claims))
    }

    /// Checks that the token is from the issuer of the rules, or, where they name none, from no
    /// issuer of a tenant.
    pub(super) fn check_issuer(&self, claims: &Claims) -> Result<(), Refusal> {
        match self.is_from_another {
            true => Err(Refusal::Issuer),
            false => self.rules.check_issuer(claims),
        }
    }
}
