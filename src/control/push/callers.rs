//! Callers who push: their tokens, their rights, and their rates.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::config::settings::{PushCaller, PushRights};
use crate::control::caller_tokens::{CallerTokens, Named};
use crate::message::Priority;

/// A caller of the configuration in force.
#[derive(Debug)]
pub struct Caller {
    /// Name in logs and metrics. Rates and counts belong to it: a new token changes nothing about
    /// them.
    pub name: Arc<str>,
    /// Hash of the name, in which ids of pushes are unique.
    pub hash: u64,
    /// What it may.
    pub rights: PushRights,
    /// The highest class of its pushes.
    pub priority_max: Priority,
    /// Pushes a second; 0 = no limit.
    pub pushes_per_s: u32,
    /// Deliveries a second; 0 = no limit.
    pub deliveries_per_s: u32,
}

/// All callers of one configuration.
pub struct Callers {
    callers: Vec<Arc<Caller>>,
    tokens: CallerTokens,
}

impl Callers {
    /// Reads the token files. The error is one line, and never shows the content of a file.
    pub fn new(settings: &[PushCaller]) -> Result<Self, String> {
        let named = settings.iter().map(|one| Named {
            name: &one.name,
            token: one.token.as_ref(),
            file: one.token_file.as_ref(),
        });
        let tokens = CallerTokens::read("push_caller", named)?;
        let caller = |one: &PushCaller| {
            Arc::new(Caller {
                name: one.name.clone(),
                hash: xxh3_64(one.name.as_bytes()),
                rights: one.rights.clone(),
                priority_max: one.priority_max,
                pushes_per_s: one.pushes_per_s,
                deliveries_per_s: one.deliveries_per_s,
            })
        };
        Ok(Self { callers: settings.iter().map(caller).collect(), tokens })
    }

    /// The caller with this token.
    pub fn find(&self, token: &[u8]) -> Option<&Arc<Caller>> {
        self.tokens.find(token).and_then(|at| self.callers.get(at))
    }

    /// All of them, in the order of the configuration.
    pub fn list(&self) -> &[Arc<Caller>] {
        &self.callers
    }
}
