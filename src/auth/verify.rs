//! The verifier of tokens: which rules a token is checked by, and the verdict.
//!
//! ```text
//!   claim tenant names a tenant ----------------------------------+
//!   no such claim, and iss is the issuer of exactly one tenant ---+--> its own keys, if it has any
//!   a source may have the tenant, which is not in force -------------> to be shown again later
//!   the claim names somebody else: unknown_tenant = "refuse" -> refused
//!   all the others --------------------------------------------------> the keys of [auth]
//! ```
//!
//! Both claims are read before the signature holds, and decide nothing but the keys: the rules of
//! the party that they name are checked then, whole. So a token that is signed with one party's key
//! and names another is refused by the other's keys.
//!
//! Whoever has no key of a party learns by trying names neither which tenants there are nor whose
//! keys are fetched. That one's keys may be newer than ours shows in the answer, so a name that
//! nobody has gets the answer that one of the tenants would give: always the same one's, picked by
//! the name.

use std::collections::HashMap;
use std::sync::Arc;

use super::json::Said;
use super::rules::{Claims, Rules, check_signature};
use super::token::{Named, Token};
use super::{Identity, KeyOwner, Keys, Refusal};
use crate::config::AwaitedTenants;
use crate::config::settings::{AuthSettings, Tenants, UnknownTenant};
use crate::ids::TenantId;

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
    /// All of them, sorted by name.
    list: Vec<KnownTenant>,
    /// The tenants that have an issuer of their own; `None` = several have this one.
    by_issuer: HashMap<Arc<str>, Option<Arc<str>>>,
    /// Whether tokens of other tenants are refused.
    refuses_others: bool,
    /// Tenants that are none of these, and may be some of a source.
    awaited: AwaitedTenants,
}

/// The name of a tenant, and its own rules; `None` = those of `[auth]`.
type KnownTenant = (Arc<str>, Option<Arc<Rules>>);

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
    /// Its tenant may be one of a source that has not told its tenants yet, or whose table of it is
    /// not in force: it can be neither accepted nor refused before that is known.
    AwaitsTenant,
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
        tenants: impl IntoIterator<Item = KnownTenant>,
        awaited: &AwaitedTenants,
    ) -> Self {
        if settings.tenants == Tenants::One {
            return self;
        }
        let refuses_others = settings.unknown_tenant == UnknownTenant::Refuse;
        let awaited = awaited.clone();
        let mut all = TenantRules { refuses_others, awaited, ..TenantRules::default() };
        for (name, rules) in tenants {
            if let Some(issuer) = rules.as_ref().and_then(|rules| rules.issuer()) {
                let known = all.by_issuer.entry(issuer.into());
                known.and_modify(|of| *of = None).or_insert_with(|| Some(name.clone()));
            }
            all.list.push((name, rules));
        }
        all.list.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let is_alone = all.list.is_empty() && all.awaited == AwaitedTenants::NONE;
        let differ = refuses_others || !is_alone;
        self.tenants = differ.then(|| Arc::new(all));
        self
    }

    /// The same with other rules of one tenant, which has the issuer that it had.
    pub(crate) fn with_rules(&self, name: &Arc<str>, rules: Arc<Rules>) -> Self {
        let mut tenants = self.tenants.as_deref().cloned().unwrap_or_default();
        if let Some(at) = tenants.place(name) {
            tenants.list[at].1 = Some(rules);
        }
        Self { common: self.common.clone(), tenants: Some(Arc::new(tenants)) }
    }

    /// The identity in `token`, if it holds at `now_unix_s`, seconds since 1970.
    pub(crate) fn judge(&self, token: &str, now_unix_s: i64) -> Result<Identity, NotAccepted> {
        let token = Token::read(token)?;
        let verdict = self.party(&token).and_then(|party| party.verify(&token, now_unix_s));
        verdict.map_err(|refusal| match &self.tenants {
            None => self.common.not_accepted(&token, refusal, now_unix_s),
            Some(tenants) => tenants.not_accepted(&self.common, &token, refusal, now_unix_s),
        })
    }

    /// Whether there may be tenants of any name besides those that are known.
    pub(crate) fn awaits_tenants(&self) -> bool {
        self.tenants.as_ref().is_some_and(|tenants| tenants.awaited == AwaitedTenants::Any)
    }

    /// The same by the keys that there are.
    pub fn verify(&self, token: &str, now_unix_s: i64) -> Result<Identity, Refusal> {
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
            refusal if refusal.is_of_key() && self.tenants.is_some() => NO_KEY_OF_TENANT.to_owned(),
            refusal => refusal.text(),
        }
    }

    /// Whether tenants differ from each other.
    pub(super) fn has_tenants(&self) -> bool {
        self.tenants.is_some()
    }

    /// The rules of all parties that have keys of their own.
    pub(super) fn all_rules(&self) -> impl Iterator<Item = &Rules> {
        let own = self.tenants.iter().flat_map(|tenants| &tenants.list);
        let own = own.filter_map(|(_, rules)| rules.as_ref());
        std::iter::once(&self.common).chain(own).map(|rules| &**rules)
    }
}

impl TenantRules {
    /// Place of a tenant in the list.
    fn place(&self, name: &str) -> Option<usize> {
        self.list.binary_search_by(|(known, _)| (**known).cmp(name)).ok()
    }

    /// The tenant that a token names, by its claim or by the issuer, if it is one of these.
    fn found(&self, Named { tenant, issuer }: &Named) -> Option<&KnownTenant> {
        let name = match tenant {
            Said::Text(name) => Some(&**name),
            Said::Nothing => self.by_issuer.get(issuer.as_deref()?)?.as_deref(),
            Said::Other => None,
        };
        Some(&self.list[self.place(name?)?])
    }

    fn pick<'v>(&'v self, common: &'v Rules, token: &Token<'_>) -> Result<Party<'v>, Refusal> {
        let named = token.named();
        let found = self.found(&named);
        if found.is_none() {
            match &named.tenant {
                Said::Text(name) if self.awaited.has(Some(name)) => {
                    return Err(Refusal::AwaitedTenant);
                }
                Said::Text(_) if self.refuses_others => return Err(Refusal::UnknownTenant),
                Said::Nothing if self.awaited.has(None) => return Err(Refusal::AwaitedTenant),
                Said::Text(_) | Said::Nothing | Said::Other => {}
            }
        }
        let by_issuer = named.issuer.and_then(|issuer| self.by_issuer.get(&*issuer));
        let rules = found.and_then(|(_, own)| own.as_deref()).unwrap_or(common);
        Ok(Party {
            rules,
            tenant: found.map(|(name, _)| name),
            // Where the rules name an issuer, that is checked anyway.
            is_from_another: rules.issuer().is_none() && by_issuer.is_some(),
        })
    }

    /// Reason for which a refused token is not accepted: as far as it says something about keys,
    /// the same for every name.
    fn not_accepted(
        &self,
        common: &Rules,
        token: &Token<'_>,
        refusal: Refusal,
        now_unix_s: i64,
    ) -> NotAccepted {
        // The form is looked at before the party.
        if !refusal.is_of_key() || token.checked_header().is_err() {
            return NotAccepted::Refused(refusal);
        }
        if refusal == Refusal::AwaitedTenant {
            return NotAccepted::AwaitsTenant;
        }
        let named = token.named();
        let found = self.found(&named);
        let own = found.or_else(|| self.double(&named)).and_then(|(_, own)| own.as_deref());
        let own = own.unwrap_or(common);
        // Those of [auth] are the keys of names that are nobody's, if these are not refused; so
        // they are waited for whatever the name is.
        let asked = match (self.refuses_others, found) {
            (true, _) => [own, own],
            (false, Some(_)) => [own, common],
            (false, None) => [common, own],
        };
        match asked.into_iter().find(|rules| rules.keys_may_come(now_unix_s)) {
            Some(rules) => NotAccepted::LacksKeys(rules.owner().clone()),
            None if self.awaited == AwaitedTenants::Any => NotAccepted::AwaitsTenant,
            None => NotAccepted::Refused(refusal),
        }
    }

    /// The tenant whose answer is given to a name that is none of these.
    fn double(&self, named: &Named) -> Option<&KnownTenant> {
        let name = match &named.tenant {
            Said::Text(name) => &**name,
            Said::Nothing | Said::Other => named.issuer.as_deref().unwrap_or_default(),
        };
        // 1,000 of 2^64: each is picked as often as the others.
        let at = TenantId::of(name).0 as usize % self.list.len().max(1);
        self.list.get(at)
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
