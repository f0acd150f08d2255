//! Keys of those who sign tokens, as far as they change without the files: a JWK set is fetched
//! again and again, on a thread for each time, so that a server that hangs holds nothing up.

use std::thread;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::keys::fetch_jwks;
use crate::auth::keys::{KeySet, read_jwks};
use crate::config::Config;
use crate::config::settings::AuthMode;

/// The set's name among the sources.
pub const SOURCE: &str = "jwks";
/// A fetch that takes longer has failed; shorter than the time that sources have to speak first.
const FETCH_TIMEOUT: Duration = Duration::from_secs(4);
/// After a failure it is tried again this soon, or as often as is configured if that is less.
const RETRY: Duration = Duration::from_secs(10);
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
    tell: mpsc::Sender<Fetched>,
}

impl Signers {
    /// Begins at once if a set is to be fetched.
    pub fn start(config: &Config, tell: mpsc::Sender<Fetched>) -> Self {
        let mut signers = Self { asked: None, task: None, tell };
        signers.follow(config);
        signers
    }

    /// Where it is fetched.
    pub fn url(&self) -> Option<&str> {
        self.asked.as_ref().map(|(url, _)| url.as_str())
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
        if let Some((url, refresh)) = self.asked.clone() {
            self.task = Some(tokio::spawn(keep_fetching(url, refresh, self.tell.clone())));
        }
    }
}

async fn keep_fetching(url: String, refresh: Duration, tell: mpsc::Sender<Fetched>) {
    loop {
        let result = fetch(url.clone()).await;
        let wait = if result.is_ok() { refresh } else { refresh.min(RETRY) };
        if tell.send(Fetched { url: url.clone(), result }).await.is_err() {
            return;
        }
        tokio::time::sleep(wait).await;
    }
}

/// On a thread of its own and not on one of the runtime's, whose end would wait for it.
async fn fetch(url: String) -> Result<KeySet, String> {
    let (done, found) = oneshot::channel();
    let work = move || {
        // Who asked may have gone away.
        let _ = done.send(fetch_jwks(&url, FETCH_TIMEOUT).and_then(|text| read_jwks(&text)));
    };
    let thread = thread::Builder::new().name("jwks".into()).spawn(work);
    thread.map_err(|error| format!("no thread to fetch it: {error}"))?;
    found.await.unwrap_or_else(|_| Err("the fetch broke off".into()))
}
