//! Keys by which clients' tokens are verified: those of the configuration and its files, and the
//! JWK set that was fetched last.

use std::sync::Arc;
use std::time::Instant;

use super::sources::SourceState;
use crate::auth::Verifier;
use crate::auth::keys::KeySet;
use crate::auth::load::LocalKeys;
use crate::config::Config;

/// The keys, and the verifier made of them.
pub struct TokenKeys {
    local: LocalKeys,
    fetched: Option<KeySet>,
    /// `None`: no client signs in (`auth.mode = "off"`).
    verifier: Option<Arc<Verifier>>,
}

impl TokenKeys {
    /// Keys of a start: no set has been fetched yet.
    pub fn new(local: LocalKeys, config: &Config) -> Self {
        local.skipped().for_each(|(at, why)| log_left_out(at, why));
        let verifier = local.verifier(config, None);
        Self { local, fetched: None, verifier }
    }

    /// Verifier of the tokens that clients show.
    pub fn verifier(&self) -> Option<Arc<Verifier>> {
        self.verifier.clone()
    }

    /// Puts the keys of other files in the place of those before; the fetched set stays.
    pub fn set_local(&mut self, local: LocalKeys, config: &Config) {
        local.skipped().for_each(|(at, why)| log_left_out(at, why));
        self.local = local;
        self.verifier = self.local.verifier(config, self.fetched.as_ref());
    }

    /// Makes the verifier anew: the configuration has other tenants, and the keys are the same.
    pub fn follow(&mut self, config: &Config) {
        self.verifier = self.local.verifier(config, self.fetched.as_ref());
    }

    /// Takes in the result of a fetch and notes it in `state`. Whether the keys changed: a failed
    /// fetch leaves the last set in force.
    pub fn take_fetched(
        &mut self,
        result: Result<KeySet, String>,
        state: &mut SourceState,
        config: &Config,
        now: Instant,
    ) -> bool {
        let set = match result {
            Ok(set) => set,
            Err(why) => {
                tracing::warn!(
                    why,
                    fetched = state.answered,
                    "jwks_stale: the keys that were fetched last stay in force; check that \
                     auth.jwks_url can be reached"
                );
                state.set_stale(why, now);
                return false;
            }
        };
        // A set says the same at each fetch.
        let told = self.fetched.as_ref().map_or(&[][..], |set| &set.skipped);
        for key in set.skipped.iter().filter(|key| !told.contains(key)) {
            log_left_out(&key.at, &key.rule);
        }
        tracing::info!(keys = set.keys.len(), "jwks_fetched: these keys are in force");
        (state.stale, state.answered) = (None, true);
        self.fetched = Some(set);
        self.verifier = self.local.verifier(config, self.fetched.as_ref());
        true
    }

    /// Stops trusting the fetched set, because none is configured any more, or another one.
    pub fn forget_fetched(&mut self, config: &Config) {
        self.fetched = None;
        self.verifier = self.local.verifier(config, None);
    }
}

/// Logs a key of a set that cannot be used.
fn log_left_out(at: &str, why: &str) {
    tracing::warn!(at, why, "jwks_key_left_out: this key of the set is not used");
}
