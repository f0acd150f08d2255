//! The verifier of a configuration: its keys, those in its files and those that were fetched.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::keys::{BadKey, KeySet, read_jwks};
use super::{KeyOwner, Keys, Rules, Verifier};
use crate::config::key_files::{KeySettings, KeyTexts, OfTenant, Reading};
use crate::config::settings::{AuthKey, AuthMode, TenantSettings};
use crate::config::{Config, Problem, Problems};

/// The sets that were fetched, by the owners of their keys.
pub type FetchedSets = BTreeMap<KeyOwner, KeySet>;

/// Keys that were read with the configuration; all of them can be used.
#[derive(Clone, Debug, Default)]
pub struct LocalKeys {
    common: OwnKeys,
    /// Keys of the tenants that have some of their own.
    tenants: BTreeMap<Arc<str>, OfTenant<OwnKeys>>,
}

/// The keys of one owner, as its files hold them.
#[derive(Clone, Debug, Default)]
struct OwnKeys {
    texts: KeyTexts,
    set: Option<KeySet>,
}

impl OwnKeys {
    /// Reads the files. All bad keys are reported at once, by their places.
    fn read(settings: &KeySettings<'_>) -> Result<Self, Problems> {
        let texts = settings.read()?;
        let problem = |key: &str, rule| settings.problem(key, String::new(), rule);
        let set = texts.jwks.as_deref().map(read_jwks).transpose();
        let set = set.map_err(|rule| Problems(vec![problem("jwks_file", rule)]))?;
        Keys::new(settings.keys, &texts, &[]).map_err(|bad| {
            Problems(bad.into_iter().map(|key| problem(&key.at, key.rule)).collect())
        })?;
        Ok(Self { texts, set })
    }

    /// The keys of the list `configured`, of the files, and those that were fetched.
    fn with(&self, configured: &[AuthKey], fetched: Option<&KeySet>) -> Keys {
        let sets: Vec<KeySet> = self.set.iter().chain(fetched).cloned().collect();
        let keys = Keys::new(configured, &self.texts, &sets);
        keys.expect("the configuration's keys were tried when they were read")
    }
}

impl LocalKeys {
    /// Reads the files that `config` names. All bad keys are reported at once, by their places.
    pub fn read(config: &Config) -> Result<Self, Problems> {
        Self::default().read_again(config, Reading::Start)
    }

    /// The same on an occasion on which these keys are in force.
    pub fn read_again(&self, config: &Config, reading: Reading<'_>) -> Result<Self, Problems> {
        let common = match (reading, KeySettings::of_auth(config)) {
            (_, None) => Ok(OwnKeys::default()),
            (Reading::Sources(_), Some(_)) => Ok(self.common.clone()),
            (Reading::Start | Reading::Reload(_), Some(settings)) => OwnKeys::read(&settings),
        };
        let tenants = reading.of_tenants(config, &self.tenants, OwnKeys::read);
        let (common, tenants) = Problems::join(common, tenants)?;
        Ok(Self { common, tenants })
    }

    /// The verifier with these keys and those in `fetched`; `None` = clients cannot sign in.
    pub fn verifier(&self, config: &Config, fetched: &FetchedSets) -> Option<Arc<Verifier>> {
        let auth = &config.gateway.auth;
        if auth.mode == AuthMode::Off {
            return None;
        }
        let verifier =
            Verifier::new(auth, self.common.with(&auth.keys, fetched.get(&KeyOwner::Auth)));
        let tenants = config.tenants.iter().map(|tenant| {
            let owner = KeyOwner::Tenant(tenant.name.clone());
            (tenant.name.clone(), self.rules(config, tenant, fetched.get(&owner)).map(Arc::new))
        });
        Some(Arc::new(verifier.with_tenants(auth, tenants, &config.awaited)))
    }

    /// The rules for a tenant's tokens with these keys and those that were fetched; `None` = it has
    /// no keys of its own.
    pub(crate) fn rules(
        &self,
        config: &Config,
        tenant: &TenantSettings,
        fetched: Option<&KeySet>,
    ) -> Option<Rules> {
        let tokens = tenant.tokens.as_ref()?;
        let keys = self.tenants.get(&tenant.name)?.read.with(&tokens.keys, fetched);
        Some(Rules::of_tenant(&tenant.name, tokens, keys, &config.gateway.auth))
    }

    /// The text of a key of the configuration, for signing with it: number `index` of the list of
    /// its owner.
    pub(crate) fn text(&self, owner: &KeyOwner, index: usize) -> Option<&[u8]> {
        let keys = match owner {
            KeyOwner::Auth => &self.common,
            KeyOwner::Tenant(name) => &self.tenants.get(name)?.read,
        };
        keys.texts.keys.get(index).map(Vec::as_slice)
    }

    /// Problems with files of tenants' keys, for which the keys that were read before stay.
    pub(crate) fn kept(&self) -> impl Iterator<Item = &Problem> {
        self.tenants.values().flat_map(|keys| &keys.kept_for)
    }

    /// Keys in the files' JWK sets that are left out, with the owners of the sets.
    pub(crate) fn skipped(&self) -> impl Iterator<Item = (KeyOwner, &BadKey)> {
        let tenants = self.tenants.iter();
        let tenants = tenants.map(|(name, keys)| (KeyOwner::Tenant(name.clone()), &keys.read));
        std::iter::once((KeyOwner::Auth, &self.common)).chain(tenants).flat_map(|(owner, keys)| {
            let skipped = keys.set.iter().flat_map(|set| &set.skipped);
            skipped.map(move |key| (owner.clone(), key))
        })
    }
}
