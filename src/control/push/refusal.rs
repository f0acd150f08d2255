//! Refusals of what callers ask, and their trace in the log.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::message::{Reason, Reject, whole_ms};
use crate::wire::push::PushFault;

/// Shortest time between two lines of the log about refusals; a line says how many there were.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// A refusal of a push, or of a whole call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    pub reason: Reason,
    /// A sentence for people.
    pub why: String,
    /// Milliseconds until it can succeed; 0 = a retry does not help.
    pub retry_after_ms: u32,
}

impl Refused {
    /// A refusal for which a retry does not help.
    pub fn new(reason: Reason, why: impl Into<String>) -> Self {
        Self { reason, why: why.into(), retry_after_ms: 0 }
    }

    /// The same, with the time after which to retry.
    pub fn after(self, wait: Duration) -> Self {
        let us = wait.as_micros().min(u64::MAX.into()) as u64;
        Self { retry_after_ms: whole_ms(us).max(1), ..self }
    }
}

impl From<Reject> for Refused {
    fn from(reject: Reject) -> Self {
        let Reject { reason, text, retry_after_ms, held: _ } = reject;
        Self { reason, why: text.into(), retry_after_ms }
    }
}

impl From<PushFault> for Refused {
    fn from(fault: PushFault) -> Self {
        Self::new(fault.reason, fault.text)
    }
}

/// The log of refusals: a line of a kind a second at most.
#[derive(Default)]
pub struct RefusalLog {
    count: u64,
    logged: Option<Instant>,
    unknown: u64,
    unknown_logged: Option<Instant>,
}

fn is_early(last: Option<Instant>, now: Instant) -> bool {
    last.is_some_and(|then| now.saturating_duration_since(then) < LOG_EVERY)
}

impl RefusalLog {
    /// Notes a call without a good token, and logs it unless a line was logged just now.
    pub fn note_unknown(&mut self, peer: Option<SocketAddr>, had_token: bool, now: Instant) {
        self.unknown += 1;
        if is_early(self.unknown_logged, now) {
            return;
        }
        let count = std::mem::take(&mut self.unknown);
        self.unknown_logged = Some(now);
        let why = if had_token { "its token is unknown" } else { "it shows no token" };
        let peer = peer.map_or("?".into(), |peer| peer.to_string());
        tracing::warn!(
            peer,
            why,
            count,
            "push_caller_unknown: a caller cannot push; compare its token with [[push_caller]]"
        );
    }

    /// Notes a refusal, and logs it unless a line was logged just now.
    pub fn note(&mut self, caller: &Arc<str>, refused: &Refused, now: Instant) {
        self.count += 1;
        if is_early(self.logged, now) {
            return;
        }
        let Refused { reason, why, .. } = refused;
        let count = std::mem::take(&mut self.count);
        self.logged = Some(now);
        tracing::warn!(
            %caller,
            reason = reason.name(),
            why,
            count,
            "push_refused: pushes were refused since the last such line; this is the latest of them"
        );
    }
}
