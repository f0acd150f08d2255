//! The wall clock, for what has to be compared with dates of tokens and certificates. The engine
//! and other pure modules never read it: they are told the time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time since 1970-01-01 00:00 UTC; zero if the clock is set to before that.
pub(crate) fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Whole seconds of [`unix_now`].
pub(crate) fn unix_now_s() -> i64 {
    unix_now().as_secs() as i64
}
