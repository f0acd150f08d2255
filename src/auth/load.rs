//! The verifier of a configuration: its keys, those in its files and those that were fetched.

use std::sync::Arc;

use super::keys::{KeySet, read_jwks};
use super::{Keys, Verifier};
use crate::config::auth::{KeyTexts, read_key_files};
use crate::config::settings::AuthMode;
use crate::config::{Config, Problems};

/// Keys that were read with the configuration; all of them can be used.
#[derive(Clone, Debug, Default)]
pub struct LocalKeys {
    texts: KeyTexts,
    set: Option<KeySet>,
}

impl LocalKeys {
    /// Reads the files that `config` names. All bad keys are reported at once, by their places.
    pub fn read(config: &Config) -> Result<Self, Problems> {
        let auth = &config.gateway.auth;
        if auth.mode == AuthMode::Off {
            return Ok(Self::default());
        }
        let texts = read_key_files(config)?;
        let problem = |key, rule| config.problem(key, String::new(), rule);
        let set = texts.jwks.as_deref().map(read_jwks).transpose();
        let set = set.map_err(|rule| Problems(vec![problem("auth.jwks_file".into(), rule)]))?;
        Keys::new(auth, &texts, &[]).map_err(|bad| {
            Problems(bad.into_iter().map(|key| problem(key.at, key.rule)).collect())
        })?;
        Ok(Self { texts, set })
    }

    /// The verifier with these keys and those in `fetched`; `None` = clients cannot sign in.
    pub fn verifier(&self, config: &Config, fetched: Option<&KeySet>) -> Option<Arc<Verifier>> {
        let auth = &config.gateway.auth;
        if auth.mode == AuthMode::Off {
            return None;
        }
        let sets: Vec<KeySet> = self.set.iter().chain(fetched).cloned().collect();
        let keys = Keys::new(auth, &self.texts, &sets);
        let keys = keys.expect("the configuration's keys were tried when they were read");
        Some(Arc::new(Verifier::new(auth, keys)))
    }

    /// The text of the configuration's key number `index`, for signing with it.
    pub(crate) fn text(&self, index: usize) -> Option<&[u8]> {
        self.texts.keys.get(index).map(Vec::as_slice)
    }

    /// Keys in the file's JWK set that are left out: the place and the reason of each.
    pub(crate) fn skipped(&self) -> impl Iterator<Item = (&str, &str)> {
        let skipped = self.set.iter().flat_map(|set| &set.skipped);
        skipped.map(|key| (key.at.as_str(), key.rule.as_str()))
    }
}
