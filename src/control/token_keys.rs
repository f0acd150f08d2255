//! Keys by which clients' tokens are verified: those of the configuration and its files, and the
//! JWK sets that were fetched last.

use std::sync::Arc;
use std::time::Instant;

use super::jwks::source_of;
use super::sources::SourceState;
use crate::auth::keys::{BadKey, KeySet};
use crate::auth::load::{FetchedSets, LocalKeys};
use crate::auth::{KeyOwner, Verifier};
use crate::config::Config;
use crate::config::settings::Algorithm;

/// The keys, and the verifier made of them.
pub struct TokenKeys {
    local: LocalKeys,
    fetched: FetchedSets,
    /// `None`: no client signs in (`auth.mode = "off"`).
    verifier: Option<Arc<Verifier>>,
}

impl TokenKeys {
    /// Keys of a start: no set has been fetched yet.
    pub fn new(local: LocalKeys, config: &Config) -> Self {
        let fetched = FetchedSets::default();
        let verifier = local.verifier(config, &fetched);
        local.skipped().for_each(|(owner, key)| log_left_out(&owner, key));
        Self { local, fetched, verifier }
    }

    /// Verifier of the tokens that clients show.
    pub fn verifier(&self) -> Option<Arc<Verifier>> {
        self.verifier.clone()
    }

    /// Puts the keys of other files in the place of those before; the fetched sets stay.
    pub fn set_local(&mut self, local: LocalKeys, config: &Config) {
        local.skipped().for_each(|(owner, key)| log_left_out(&owner, key));
        self.local = local;
        self.verifier = self.local.verifier(config, &self.fetched);
    }

    /// The keys of the configuration and its files.
    pub fn local(&self) -> &LocalKeys {
        &self.local
    }

    /// The same as [`Self::set_local`], of which only keys of tenants differ that sources announce.
    pub fn set_of_sources(&mut self, local: LocalKeys, config: &Config) {
        let told: Vec<_> = self.local.skipped().collect();
        local
            .skipped()
            .filter(|key| !told.contains(key))
            .for_each(|(at, key)| log_left_out(&at, key));
        self.local = local;
        self.verifier = self.local.verifier(config, &self.fetched);
    }

    /// Takes in the result of a fetch of an owner's set, and notes it in `state`. Whether the keys
    /// changed: a failed fetch leaves the last set in force, and one of the same keys is a new time
    /// of it, which the verifiers that are published see.
    pub fn take_fetched(
        &mut self,
        owner: &KeyOwner,
        result: Result<KeySet, String>,
        state: &mut SourceState,
        config: &Config,
        now: Instant,
    ) -> bool {
        let source = source_of(owner);
        let set = match result {
            Ok(set) => set,
            Err(why) => {
                tracing::warn!(
                    %source,
                    why,
                    fetched = state.answered,
                    "jwks_stale: the keys that were fetched last stay in force; check that the \
                     jwks_url can be reached"
                );
                state.set_stale(why, now);
                return false;
            }
        };
        // A set says the same at each fetch.
        let before = self.fetched.get(owner);
        let told = before.map_or(&[][..], |set| &set.skipped);
        for key in set.skipped.iter().filter(|key| !told.contains(key)) {
            log_left_out(owner, key);
        }
        // Of tenants, which may be many, only what changes is told.
        let is_told =
            *owner == KeyOwner::Auth || before.is_none_or(|before| names(before) != names(&set));
        if is_told {
            let keys = set.keys.len();
            tracing::info!(%source, keys, "jwks_fetched: these keys are in force");
        }
        (state.stale, state.answered) = (None, true);
        if let Some(before) = self.fetched.get_mut(owner)
            && before.keys == set.keys
            && let (Some(time), Some(new)) = (&before.fetched, &set.fetched)
        {
            time.set(new.get());
            before.skipped = set.skipped;
            return false;
        }
        self.fetched.insert(owner.clone(), set);
        self.renew(owner, config);
        true
    }

    /// Stops trusting the fetched set of an owner, because none is configured any more, or another
    /// one.
    pub fn forget_fetched(&mut self, owner: &KeyOwner, config: &Config) {
        self.fetched.remove(owner);
        self.renew(owner, config);
    }

    /// Makes the verifier anew, as the fetched set of an owner changed.
    fn renew(&mut self, owner: &KeyOwner, config: &Config) {
        let rules = match (owner, &self.verifier) {
            (KeyOwner::Tenant(name), Some(verifier)) => {
                let tenant = config.tenants.iter().find(|tenant| tenant.name == *name);
                let fetched = self.fetched.get(owner);
                let rules = tenant.and_then(|tenant| self.local.rules(config, tenant, fetched));
                // Only this tenant's: there may be many others.
                rules.map(|rules| Arc::new(verifier.with_rules(name, Arc::new(rules))))
            }
            (KeyOwner::Auth, _) | (KeyOwner::Tenant(_), None) => None,
        };
        self.verifier = rules.or_else(|| self.local.verifier(config, &self.fetched));
    }
}

/// The names of a set's keys, with their algorithms.
fn names(set: &KeySet) -> Vec<(Option<&str>, Algorithm)> {
    set.keys.iter().map(|key| (key.id(), key.algorithm())).collect()
}

/// Logs a key of a set that cannot be used.
fn log_left_out(owner: &KeyOwner, key: &BadKey) {
    let (source, at, why) = (source_of(owner), &key.at, &key.rule);
    tracing::warn!(%source, at, why, "jwks_key_left_out: this key of the set is not used");
}
