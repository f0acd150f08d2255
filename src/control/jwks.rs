//! Refreshes the JWK sets that are fetched, that of `auth.jwks_url` and those of tenants: each
//! again and again by a task of its own, and each time on a thread of its own, so that a server
//! that hangs holds nothing up.
//!
//! Tenants may be many, so their fetches have slots. A set whose last fetch failed has those of a
//! second kind: servers that hang for as long as a fetch may take keep no slot from the others'.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::jwks_fetch::{FETCH_TIMEOUT, fetch_jwks};
use crate::auth::keys::{FetchedAt, KeySet, read_jwks};
use crate::auth::{EARLY_FETCH_S, KeyOwner};
use crate::clock::unix_now_s;
use crate::config::Config;
use crate::config::key_files::KeySettings;
use crate::ids::TenantId;
use crate::tls::authorities::{Authorities, KeyAuthorities};

/// Pause after a failed fetch, if that is less than the pause that is configured.
const RETRY: Duration = Duration::from_secs(10);
/// Shortest time between two fetches of a set that shards ask for.
const EARLY_FETCH: Duration = Duration::from_secs(EARLY_FETCH_S);
/// Fetches of tenants' sets at once: if servers answer within 100 ms, 1,000 tenants have their keys
/// 3.2 s after the start (1,000 / 32 x 0.1 s).
const SLOTS: usize = 32;
/// Fetches at once of tenants' sets whose last fetch failed.
const RETRY_SLOTS: usize = 16;
/// Results of fetches that wait to be taken in.
pub const FETCHES_MAX: usize = 4;

/// Name of an owner's set among the sources.
pub fn source_of(owner: &KeyOwner) -> Arc<str> {
    match owner {
        KeyOwner::Auth => "jwks".into(),
        KeyOwner::Tenant(name) => format!("{TENANT_SOURCE}{name}").into(),
    }
}

/// Beginning of the names of tenants' sets among the sources.
pub const TENANT_SOURCE: &str = "jwks:";

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
    /// The party whose keys they are.
    pub owner: KeyOwner,
    /// URL that was fetched.
    pub url: String,
    /// The keys, or the reason why there are none.
    pub result: Result<KeySet, String>,
}

/// The tasks that fetch the sets that are configured.
pub struct JwksRefresher {
    tasks: BTreeMap<KeyOwner, Task>,
    slots: Slots,
    fetches: mpsc::Sender<JwksFetch>,
}

/// The task that fetches a set.
struct Task {
    set: Set,
    handle: JoinHandle<()>,
    /// Wakes the task to fetch now; holds one request at most.
    hurry: mpsc::Sender<()>,
    /// Time at which a shard's request was last followed.
    hurried_at: Option<Instant>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

/// The slots of tenants' fetches.
#[derive(Clone)]
struct Slots {
    first: Arc<Semaphore>,
    retry: Arc<Semaphore>,
}

impl JwksRefresher {
    /// Begins the first fetches at once, of each set that is configured.
    pub fn start(
        config: &Config,
        authorities: &KeyAuthorities,
        fetches: mpsc::Sender<JwksFetch>,
    ) -> Self {
        let [first, retry] = [SLOTS, RETRY_SLOTS].map(|slots| Arc::new(Semaphore::new(slots)));
        let slots = Slots { first, retry };
        let mut refresher = Self { tasks: BTreeMap::new(), slots, fetches };
        refresher.follow(config, authorities);
        refresher
    }

    /// URL of the owner's set, if one is configured.
    pub fn url(&self, owner: &KeyOwner) -> Option<&str> {
        self.tasks.get(owner).map(|task| task.set.url.as_str())
    }

    /// Owners of the sets that are configured.
    pub fn owners(&self) -> impl Iterator<Item = &KeyOwner> {
        self.tasks.keys()
    }

    /// Fetches the set of an owner now, because a shard was shown a token with a key that it does
    /// not know; unless that was done less than [`EARLY_FETCH_S`] ago. A shard that still lacks a
    /// key asks again.
    pub fn hurry(&mut self, owner: &KeyOwner, now: Instant) {
        let lately = |at: Instant| now.saturating_duration_since(at) < EARLY_FETCH;
        let Some(task) = self.tasks.get_mut(owner) else { return };
        // Nothing is sent while the last request still waits.
        if !task.hurried_at.is_some_and(lately) && task.hurry.try_send(()).is_ok() {
            task.hurried_at = Some(now);
        }
    }

    /// Follows a configuration that may have changed, and the authorities in its files. Returns the
    /// owners whose fetched keys are trusted no more: their sets are not configured any more, or
    /// are at other places.
    pub fn follow(&mut self, config: &Config, authorities: &KeyAuthorities) -> Vec<KeyOwner> {
        let sets = configured(config, authorities);
        let before = std::mem::take(&mut self.tasks);
        let mut forgotten = Vec::new();
        for (owner, task) in before {
            match sets.get(&owner) {
                Some(set) if *set == task.set => drop(self.tasks.insert(owner, task)),
                Some(set) if set.url == task.set.url => {}
                Some(_) | None => forgotten.push(owner),
            }
        }
        for (owner, set) in sets {
            self.tasks.entry(owner).or_insert_with_key(|owner| {
                let (hurry, hurried) = mpsc::channel(1);
                let fetching = Fetching { owner: owner.clone(), set: set.clone(), hurried };
                let fetching = fetching.keep_on(self.slots.clone(), self.fetches.clone());
                Task { set, handle: tokio::spawn(fetching), hurry, hurried_at: None }
            });
        }
        forgotten
    }
}

/// The sets of a configuration.
fn configured(config: &Config, authorities: &KeyAuthorities) -> BTreeMap<KeyOwner, Set> {
    let refresh = config.gateway.auth.jwks_refresh;
    let common = KeySettings::of_auth(config).and_then(|settings| {
        let (url, authorities) = (settings.jwks_url?.to_owned(), authorities.common.clone());
        Some((KeyOwner::Auth, Set { url, authorities, refresh }))
    });
    let tenants = KeySettings::of_tenants(config).filter_map(|(settings, tenant)| {
        let url = settings.jwks_url?.to_owned();
        let authorities = authorities.of_tenant(&tenant.name);
        Some((KeyOwner::Tenant(tenant.name.clone()), Set { url, authorities, refresh }))
    });
    common.into_iter().chain(tenants).collect()
}

/// The work of a task.
struct Fetching {
    owner: KeyOwner,
    set: Set,
    hurried: mpsc::Receiver<()>,
}

impl Fetching {
    async fn keep_on(mut self, slots: Slots, fetches: mpsc::Sender<JwksFetch>) {
        let mut pauses = Pauses::of(&self.owner, self.set.refresh);
        loop {
            let slot = slots.take(&self.owner, pauses.failures > 0).await;
            let result = fetch(self.set.clone(), slot).await;
            // Requests that came meanwhile are answered by this fetch.
            while self.hurried.try_recv().is_ok() {}
            let pause = pauses.after(result.is_ok());
            let (owner, url) = (self.owner.clone(), self.set.url.clone());
            if fetches.send(JwksFetch { owner, url, result }).await.is_err() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                Some(()) = self.hurried.recv() => {}
            }
        }
    }
}

impl Slots {
    /// Waits for a slot. The set of `[auth]` needs none: there is one.
    async fn take(&self, owner: &KeyOwner, is_retry: bool) -> Option<OwnedSemaphorePermit> {
        let slots = match (owner, is_retry) {
            (KeyOwner::Auth, _) => return None,
            (KeyOwner::Tenant(_), false) => &self.first,
            (KeyOwner::Tenant(_), true) => &self.retry,
        };
        // They are never closed.
        slots.clone().acquire_owned().await.ok()
    }
}

/// Pauses between the fetches of a set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Pauses {
    refresh: Duration,
    /// The first one after a fetch that succeeded: sets that were all fetched at the start are then
    /// fetched at many times.
    first: Option<Duration>,
    /// Longest pause after a failure.
    retry_max: Duration,
    /// Fetches that failed since the last that did not.
    failures: u32,
}

impl Pauses {
    fn of(owner: &KeyOwner, refresh: Duration) -> Self {
        let (first, retry_max) = match owner {
            KeyOwner::Auth => (None, RETRY),
            KeyOwner::Tenant(name) => {
                let part = (TenantId::of(name).0 >> 32) as f64 / f64::from(u32::MAX);
                (Some(refresh.mul_f64(0.5 + part / 2.0)), refresh)
            }
        };
        Self { refresh, first, retry_max, failures: 0 }
    }

    /// The pause after a fetch. After failures it grows, for tenants up to the pause that is
    /// configured.
    fn after(&mut self, fetched: bool) -> Duration {
        if fetched {
            self.failures = 0;
            return self.first.take().unwrap_or(self.refresh);
        }
        let pause = RETRY.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        pause.min(self.retry_max.max(RETRY)).min(self.refresh)
    }
}

/// Fetches on a thread of its own and not on one of the runtime's, whose end would wait for it. The
/// thread keeps the slot for as long as it runs, whatever becomes of the task.
async fn fetch(set: Set, slot: Option<OwnedSemaphorePermit>) -> Result<KeySet, String> {
    let (done, found) = oneshot::channel();
    // The start and not the end: keys that are newer than the question need not be in the answer.
    let fetched = Some(FetchedAt::new(unix_now_s()));
    let work = move || {
        let text = fetch_jwks(&set.url, &set.authorities, FETCH_TIMEOUT);
        let set = text.and_then(|text| read_jwks(&text));
        drop(slot);
        // The task may have been aborted.
        let _ = done.send(set.map(|set| KeySet { fetched, ..set }));
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
    use crate::config::settings::{AuthMode, TenantSettings, TenantTokens, Tenants};

    /// No request is sent to it: a fetch fails at once, and the next is 10 s away.
    const FAILS: &str = "http://192.0.2.1/";

    fn config() -> Config {
        let files = from_files(Files::embedded(), &[], &Overrides::default());
        let mut config = files.expect("the built-in files are right");
        config.gateway.auth.mode = AuthMode::Jwt;
        config.gateway.auth.tenants = Tenants::Many;
        config
    }

    fn tenant(name: &str, url: Option<&str>) -> TenantSettings {
        let jwks_url = url.map(str::to_owned);
        let tokens = Some(TenantTokens { jwks_url, ..TenantTokens::default() });
        TenantSettings { tokens, ..TenantSettings::plain(name) }
    }

    fn of(name: &str) -> KeyOwner {
        KeyOwner::Tenant(name.into())
    }

    #[tokio::test]
    async fn a_request_is_followed_at_once_and_not_again_for_ten_seconds() {
        let mut config = config();
        config.gateway.auth.jwks_url = Some(FAILS.into());
        let (fetches, mut results) = mpsc::channel(FETCHES_MAX);
        let none = KeyAuthorities::default();
        let mut refresher = JwksRefresher::start(&config, &none, fetches);
        let mut start = Instant::now();
        assert!(results.recv().await.expect("the first fetch").result.is_err());
        let owner = &KeyOwner::Auth;
        for request in 0..2 {
            refresher.hurry(owner, start);
            results.recv().await.unwrap_or_else(|| panic!("fetch for request {request}"));
            refresher.hurry(owner, start + EARLY_FETCH - Duration::from_millis(1));
            let task = &refresher.tasks[owner];
            assert_eq!(task.hurried_at, Some(start), "too soon");
            assert_eq!(task.hurry.capacity(), 1, "no request waits");
            start += EARLY_FETCH;
        }
        config.gateway.auth.jwks_url = None;
        assert_eq!(refresher.follow(&config, &none), [KeyOwner::Auth]);
        refresher.hurry(owner, start);
        assert_eq!(refresher.owners().count(), 0, "nothing is fetched");
    }

    #[tokio::test]
    async fn each_set_is_fetched_on_its_own_and_hurried_on_its_own() {
        let mut config = config();
        config.gateway.auth.jwks_url = Some(FAILS.into());
        config.tenants =
            vec![tenant("a", Some(FAILS)), tenant("b", Some(FAILS)), tenant("c", None)];
        let (fetches, mut results) = mpsc::channel(FETCHES_MAX);
        let mut refresher = JwksRefresher::start(&config, &KeyAuthorities::default(), fetches);
        let mut found = Vec::new();
        for _ in 0..3 {
            found.push(results.recv().await.expect("a fetch of each").owner);
        }
        found.sort();
        assert_eq!(found, [KeyOwner::Auth, of("a"), of("b")]);
        let now = Instant::now();
        refresher.hurry(&of("a"), now);
        assert_eq!(results.recv().await.expect("hurried").owner, of("a"));
        // That a was hurried does not count against b.
        refresher.hurry(&of("b"), now);
        assert_eq!(results.recv().await.expect("hurried").owner, of("b"));
        refresher.hurry(&of("c"), now);
        refresher.hurry(&of("nobody"), now);
        assert_eq!(refresher.tasks[&KeyOwner::Auth].hurried_at, None);
    }

    #[tokio::test]
    async fn a_set_is_forgotten_when_its_tenant_goes_or_its_url_changes_and_not_otherwise() {
        let mut config = config();
        let tenants = ["a", "b", "c"].map(|name| tenant(name, Some(FAILS)));
        config.tenants = tenants.to_vec();
        let (fetches, _results) = mpsc::channel(FETCHES_MAX);
        let none = KeyAuthorities::default();
        let mut refresher = JwksRefresher::start(&config, &none, fetches);
        assert_eq!(refresher.follow(&config, &none), []);
        config.gateway.auth.jwks_refresh *= 2;
        assert_eq!(refresher.follow(&config, &none), [], "the same sets");
        let other = "http://192.0.2.2/";
        config.tenants = vec![tenant("a", Some(other)), tenant("c", Some(FAILS))];
        assert_eq!(refresher.follow(&config, &none), [of("a"), of("b")]);
        assert_eq!(refresher.url(&of("a")), Some(other));
        assert_eq!(refresher.url(&of("b")), None);
        config.gateway.auth.mode = AuthMode::Off;
        assert_eq!(refresher.follow(&config, &none), [of("a"), of("c")]);
    }

    #[tokio::test]
    async fn sets_whose_servers_hang_keep_no_slot_from_the_others() {
        let [first, retry] = [1, 2].map(|slots| Arc::new(Semaphore::new(slots)));
        let slots = Slots { first, retry };
        let held = [slots.take(&of("a"), true).await, slots.take(&of("b"), true).await];
        assert_eq!(slots.retry.available_permits(), 0, "as many hang as may");
        assert!(slots.take(&of("c"), false).await.is_some(), "another has its own");
        let _first = slots.take(&of("d"), false).await;
        assert!(slots.take(&KeyOwner::Auth, true).await.is_none(), "and [auth] needs none");
        drop(held);
        assert!(slots.take(&of("e"), true).await.is_some());
    }

    #[test]
    fn sets_of_tenants_are_fetched_at_many_times_and_less_often_while_that_fails() {
        let refresh = Duration::from_secs(300);
        let mut firsts: Vec<Duration> = Vec::new();
        for name in ["acme", "beta", "gamma", "delta"] {
            let mut pauses = Pauses::of(&of(name), refresh);
            let first = pauses.after(true);
            assert!((refresh / 2..=refresh).contains(&first), "{first:?}");
            assert_eq!(pauses.after(true), refresh);
            firsts.push(first);
        }
        firsts.sort();
        firsts.dedup();
        assert_eq!(firsts.len(), 4);
        let mut pauses = Pauses::of(&of("acme"), refresh);
        let failed = [(); 7].map(|()| pauses.after(false).as_secs());
        assert_eq!(failed, [10, 20, 40, 80, 160, 300, 300]);
        pauses.after(true);
        assert_eq!(pauses.after(false), RETRY, "again from the beginning");
        let mut common = Pauses::of(&KeyOwner::Auth, refresh);
        assert_eq!([(); 3].map(|()| common.after(false)), [RETRY; 3]);
        assert_eq!(common.after(true), refresh);
    }
}
