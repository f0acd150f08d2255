//! Keys of those who sign tokens, as far as they change without the files: a JWK set is fetched
//! again and again, on a thread for each time, so that a server that hangs holds nothing up.

use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::keys::fetch_jwks;
use super::unix_now;
use crate::auth::EARLY_FETCH_S;
use crate::auth::keys::{KeySet, read_jwks};
use crate::config::Config;
use crate::config::settings::AuthMode;

/// The set's name among the sources.
pub const SOURCE: &str = "jwks";
/// A fetch that takes longer has failed; shorter than the time that sources have to speak first.
const FETCH_TIMEOUT: Duration = Duration::from_secs(4);
/// After a failure it is tried again this soon, or as often as is configured if that is less.
const RETRY: Duration = Duration::from_secs(10);
/// Between two fetches that shards ask for.
const EARLY_FETCH: Duration = Duration::from_secs(EARLY_FETCH_S);
/// Fetches that wait to be taken in.
pub const FETCHED_MAX: usize = 4;

/// What a fetch found.
#[derive(Debug)]
pub struct Fetched {
    /// Where.
    pub url: String,
    /// The keys, or why there are none.
    pub result: Result<KeySet, String>,
}

/// Fetches as the configuration says.
pub struct Signers {
    asked: Option<(String, Duration)>,
    task: Option<JoinHandle<()>>,
    /// Tells the task to fetch now; one word waits at most.
    hurry: mpsc::Sender<()>,
    /// When a shard's wish was last followed.
    hurried: Option<Instant>,
    tell: mpsc::Sender<Fetched>,
}

impl Signers {
    /// Begins at once if a set is to be fetched.
    pub fn start(config: &Config, tell: mpsc::Sender<Fetched>) -> Self {
        let (hurry, _) = mpsc::channel(1);
        let mut signers = Self { asked: None, task: None, hurry, hurried: None, tell };
        signers.follow(config);
        signers
    }

    /// Where it is fetched.
    pub fn url(&self) -> Option<&str> {
        self.asked.as_ref().map(|(url, _)| url.as_str())
    }

    /// A shard was shown a key that it does not know: the set is fetched now, unless that was done
    /// less than [`EARLY_FETCH_S`] ago for the same reason. Who still lacks a key says so again.
    pub fn hurry(&mut self, now: Instant) {
        let lately = |at: Instant| now.saturating_duration_since(at) < EARLY_FETCH;
        // Nothing is sent if no set is fetched, or while the last word still waits.
        if !self.hurried.is_some_and(lately) && self.hurry.try_send(()).is_ok() {
            self.hurried = Some(now);
        }
    }

    /// The configuration may have changed.
    pub fn follow(&mut self, config: &Config) {
        let auth = &config.gateway.auth;
        let url = auth.jwks_url.clone().filter(|_| auth.mode == AuthMode::Jwt);
        let asked = url.map(|url| (url, auth.jwks_refresh));
        if asked == self.asked {
            return;
        }
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.asked = asked;
        let (hurry, hurried) = mpsc::channel(1);
        self.hurry = hurry;
        if let Some((url, refresh)) = self.asked.clone() {
            let tell = self.tell.clone();
            self.task = Some(tokio::spawn(keep_fetching(url, refresh, hurried, tell)));
        }
    }
}

async fn keep_fetching(
    url: String,
    refresh: Duration,
    mut hurried: mpsc::Receiver<()>,
    tell: mpsc::Sender<Fetched>,
) {
    loop {
        let result = fetch(url.clone()).await;
        // Whoever asked meanwhile has this one.
        while hurried.try_recv().is_ok() {}
        let wait = if result.is_ok() { refresh } else { refresh.min(RETRY) };
        if tell.send(Fetched { url: url.clone(), result }).await.is_err() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            Some(()) = hurried.recv() => {}
        }
    }
}

/// On a thread of its own and not on one of the runtime's, whose end would wait for it.
async fn fetch(url: String) -> Result<KeySet, String> {
    let (done, found) = oneshot::channel();
    // Not when the answer came: keys that are newer than the question need not be in it.
    let fetched_unix_s = Some(unix_now());
    let work = move || {
        let set = fetch_jwks(&url, FETCH_TIMEOUT).and_then(|text| read_jwks(&text));
        // Who asked may have gone away.
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
    async fn a_wish_is_followed_at_once_and_not_again_for_ten_seconds() {
        let files = from_files(Files::embedded(), &[], &Overrides::default());
        let mut config = files.expect("the built-in files are right");
        config.gateway.auth.mode = AuthMode::Jwt;
        // Nothing is asked of it: a fetch fails at once, and the next is 10 s away.
        config.gateway.auth.jwks_url = Some("http://192.0.2.1/".into());
        let (tell, mut told) = mpsc::channel(FETCHED_MAX);
        let mut signers = Signers::start(&config, tell);
        let mut start = Instant::now();
        assert!(told.recv().await.expect("the first fetch").result.is_err());
        for wish in 0..2 {
            signers.hurry(start);
            told.recv().await.unwrap_or_else(|| panic!("fetch for wish {wish}"));
            signers.hurry(start + EARLY_FETCH - Duration::from_millis(1));
            assert_eq!(signers.hurried, Some(start), "too soon");
            assert_eq!(signers.hurry.capacity(), 1, "no word waits");
            start += EARLY_FETCH;
        }
        config.gateway.auth.jwks_url = None;
        signers.follow(&config);
        signers.hurry(start);
        assert_ne!(signers.hurried, Some(start), "nothing is fetched");
    }
}
