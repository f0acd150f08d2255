//! Refreshes the JWK set of `auth.jwks_url`: it is fetched again and again, each time on a thread
//! of its own, so that a server that hangs holds nothing up.

use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::jwks_fetch::{FETCH_TIMEOUT, fetch_jwks};
use crate::auth::EARLY_FETCH_S;
use crate::auth::keys::{KeySet, read_jwks};
use crate::clock::unix_now_s;
use crate::config::Config;
use crate::config::settings::AuthMode;
use crate::tls::authorities::Authorities;

/// Name of the JWK set among the sources.
pub const SOURCE: &str = "jwks";
/// Pause after a failed fetch, if that is less than the pause that is configured.
const RETRY: Duration = Duration::from_secs(10);
/// Shortest time between two fetches that shards ask for.
const EARLY_FETCH: Duration = Duration::from_secs(EARLY_FETCH_S);
/// Results of fetches that wait to be taken in.
pub const FETCHES_MAX: usize = 4;

/// A JWK set to fetch.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Set {
    url: String,
    /// Authorities, one of which signs the server.
    authorities: Authorities,
    /// Time between two fetches.
    refresh: Duration,
}

/// Result of a fetch.
#[derive(Debug)]
pub struct JwksFetch {
    /// URL that was fetched.
    pub url: String,
    /// The keys, or the reason why there are none.
    pub result: Result<KeySet, String>,
}

/// The task that fetches the set that is configured, if one is.
pub struct JwksRefresher {
    configured: Option<Set>,
    task: Option<JoinHandle<()>>,
    /// Wakes the task to fetch now; holds one request at most.
    hurry: mpsc::Sender<()>,
    /// Time at which a shard's request was last followed.
    hurried_at: Option<Instant>,
    fetches: mpsc::Sender<JwksFetch>,
}

impl JwksRefresher {
    /// Begins the first fetch at once, if a set is configured.
    pub fn start(
        config: &Config,
        authorities: &Authorities,
        fetches: mpsc::Sender<JwksFetch>,
    ) -> Self {
        let (hurry, _) = mpsc::channel(1);
        let mut refresher = Self { configured: None, task: None, hurry, hurried_at: None, fetches };
        refresher.follow(config, authorities);
        refresher
    }

    /// URL of the set that is configured.
    pub fn url(&self) -> Option<&str> {
        self.configured.as_ref().map(|set| set.url.as_str())
    }

    /// Fetches the set now, because a shard was shown a token with a key that it does not know;
    /// unless that was done less than [`EARLY_FETCH_S`] ago. A shard that still lacks a key asks
    /// again.
    pub fn hurry(&mut self, now: Instant) {
        let lately = |at: Instant| now.saturating_duration_since(at) < EARLY_FETCH;
        // Nothing is sent if no set is configured, or while the last request still waits.
        if !self.hurried_at.is_some_and(lately) && self.hurry.try_send(()).is_ok() {
            self.hurried_at = Some(now);
        }
    }

    /// Follows a configuration that may have changed, and the authorities in its file.
    pub fn follow(&mut self, config: &Config, authorities: &Authorities) {
        let auth = &config.gateway.auth;
        let url = auth.jwks_url.clone().filter(|_| auth.mode == AuthMode::Jwt);
        let (refresh, authorities) = (auth.jwks_refresh, authorities.clone());
        let configured = url.map(|url| Set { url, authorities, refresh });
        if configured == self.configured {
            return;
        }
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.configured = configured;
        let (hurry, hurried) = mpsc::channel(1);
        self.hurry = hurry;
        if let Some(set) = self.configured.clone() {
            let fetches = self.fetches.clone();
            self.task = Some(tokio::spawn(keep_fetching(set, hurried, fetches)));
        }
    }
}

async fn keep_fetching(
    set: Set,
    mut hurried: mpsc::Receiver<()>,
    fetches: mpsc::Sender<JwksFetch>,
) {
    loop {
        let result = fetch(set.clone()).await;
        // Requests that came meanwhile are answered by this fetch.
        while hurried.try_recv().is_ok() {}
        let wait = if result.is_ok() { set.refresh } else { set.refresh.min(RETRY) };
        if fetches.send(JwksFetch { url: set.url.clone(), result }).await.is_err() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            Some(()) = hurried.recv() => {}
        }
    }
}

/// Fetches on a thread of its own and not on one of the runtime's, whose end would wait for it.
async fn fetch(set: Set) -> Result<KeySet, String> {
    let (done, found) = oneshot::channel();
    // The start and not the end: keys that are newer than the question need not be in the answer.
    let fetched_unix_s = Some(unix_now_s());
    let work = move || {
        let text = fetch_jwks(&set.url, &set.authorities, FETCH_TIMEOUT);
        let set = text.and_then(|text| read_jwks(&text));
        // The task may have been aborted.
        let _ = done.send(set.map(|set| KeySet { fetched_unix_s, ..set }));
    };
    let thread = thread::Builder::new().name("jwks".into()).spawn(work);
    thread.map_err(|error| format!("no thread to fetch it: {error}"))?;
    found.await.unwrap_or_else(|_| Err("the fetch broke off".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;
    use crate::config::load::{Files, from_files};

    #[tokio::test]
    async fn a_request_is_followed_at_once_and_not_again_for_ten_seconds() {
        let files = from_files(Files::embedded(), &[], &Overrides::default());
        let mut config = files.expect("the built-in files are right");
        config.gateway.auth.mode = AuthMode::Jwt;
        // No request is sent: a fetch fails at once, and the next is 10 s away.
        config.gateway.auth.jwks_url = Some("http://192.0.2.1/".into());
        let (fetches, mut results) = mpsc::channel(FETCHES_MAX);
        let mut refresher = JwksRefresher::start(&config, &Authorities::default(), fetches);
        let mut start = Instant::now();
        assert!(results.recv().await.expect("the first fetch").result.is_err());
        for request in 0..2 {
            refresher.hurry(start);
            results.recv().await.unwrap_or_else(|| panic!("fetch for request {request}"));
            refresher.hurry(start + EARLY_FETCH - Duration::from_millis(1));
            assert_eq!(refresher.hurried_at, Some(start), "too soon");
            assert_eq!(refresher.hurry.capacity(), 1, "no request waits");
            start += EARLY_FETCH;
        }
        config.gateway.auth.jwks_url = None;
        refresher.follow(&config, &Authorities::default());
        refresher.hurry(start);
        assert_ne!(refresher.hurried_at, Some(start), "nothing is fetched");
    }
}
