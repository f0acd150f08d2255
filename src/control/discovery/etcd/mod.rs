//! Instances and routes out of etcd, 3.4 or newer: listed at one revision, then watched.
//!
//! Keys, under `etcd.prefix` (`/shardgate` by default), and their values, JSON of at most 4 KiB:
//!
//! - `<prefix>/services/<service>/<instance>`: `{"address":"10.0.0.1:50001","weight":1,
//!   "draining":false}`. The weight is 1 to 1000, and 1 if left out; draining is false if left out.
//! - `<prefix>/routes/<name>`: the keys of a `[[route]]` table.
//!
//! An instance that lives as long as its service renews a lease of 10 seconds:
//!
//! ```sh
//! lease=$(etcdctl lease grant 10 | cut -d' ' -f2)
//! etcdctl put --lease=$lease /shardgate/services/logic/logic-4 '{"address":"127.0.0.1:50004"}'
//! etcdctl put /shardgate/routes/party '{"range":[4000,4099],"service":"logic"}'
//! etcdctl lease keep-alive $lease
//! ```
//!
//! What etcd last said holds while it is away. A value that cannot be read is complained about once
//! and left out; if its key had a good one before, that one stays. The first 4,096 keys of each
//! folder are used.

mod client;
mod view;

use std::future::pending;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::Streaming;

use self::client::{ANSWER_TIMEOUT, Access, Client, Fault, watch_id};
use self::proto::etcdserverpb::WatchResponse;
use self::proto::mvccpb::event::EventType;
use self::view::{Folder, View};
use super::{Known, News, Teller, Word};
use crate::config::settings::EtcdSettings;

/// Generated from proto/etcd.
#[allow(missing_docs)]
mod proto {
    pub mod mvccpb {
        tonic::include_proto!("mvccpb");
    }
    pub mod etcdserverpb {
        tonic::include_proto!("etcdserverpb");
    }
}

/// Its name in news.
const SOURCE: &str = "etcd";
/// Keys of a page.
const PAGE_KEYS: i64 = 1_000;
/// Wait after all endpoints failed …
const BACKOFF: Duration = Duration::from_secs(1);
/// … up to this, …
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// … growing by this.
const BACKOFF_FACTOR: f64 = 1.6;
/// A watch that held for so long was a good one: the next failure begins with short waits again.
const GOOD_AFTER: Duration = Duration::from_secs(5);
/// Listings are at least so far apart, whatever makes them needed.
const LIST_EVERY: Duration = Duration::from_secs(1);

/// Starts the source on the runtime of the caller. It ends when nobody hears it any more. An error
/// is one line about a file or an endpoint; that etcd does not answer is none. `seed` is for the
/// jitter of the waits.
pub fn start(settings: &EtcdSettings, tell: Teller, seed: u64) -> Result<JoinHandle<()>, String> {
    let access = Access::new(settings)?;
    let mut source = Source {
        view: View::new(&settings.prefix),
        prefix: settings.prefix.clone(),
        reasons: vec![None; access.len()],
        access,
        tell: tell.clone(),
        seen: None,
        told: None,
        stale: None,
        up: None,
        listed: None,
    };
    Ok(tokio::spawn(async move {
        tokio::select! {
            () = tell.closed() => {}
            () = source.run(StdRng::seed_from_u64(seed)) => {}
        }
    }))
}

/// How far the view is.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// The cluster that was listed.
    cluster: u64,
    /// The first revision that each folder's watch has still to tell.
    next: [i64; 2],
}

/// Why a session, or a part of it, is over.
enum End {
    /// Of no use any more.
    Lost(Fault),
    /// Only a listing can help.
    ListAgain,
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        match fault {
            // A watch that begins at the listing's revision leaves out what was too large, too.
            Fault::Compacted => End::ListAgain,
            Fault::TooLarge | Fault::Token | Fault::Other { .. } => End::Lost(fault),
        }
    }
}

struct Source {
    access: Access,
    prefix: String,
    tell: Teller,
    view: View,
    /// `None`: has to be listed.
    seen: Option<Seen>,
    /// What control heard last.
    told: Option<Known>,
    /// The reason control heard, while etcd is away.
    stale: Option<String>,
    /// What last failed, by endpoint.
    reasons: Vec<Option<Fault>>,
    /// Since when the watches of this session stand.
    up: Option<Instant>,
    /// When was listed last.
    listed: Option<Instant>,
}

impl Source {
    async fn run(&mut self, mut rng: StdRng) {
        let (mut at, mut failures, mut backoff) = (0, 0, BACKOFF);
        loop {
            self.up = None;
            let fault = self.session(at).await;
            self.reasons[at] = Some(fault);
            match self.up {
                Some(since) if since.elapsed() >= GOOD_AFTER => {
                    (failures, backoff) = (0, BACKOFF);
                }
                Some(_) => failures += 1,
                None => {
                    failures += 1;
                    self.say_stale().await;
                }
            }
            at = (at + 1) % self.access.len();
            if failures > 0 && failures % self.access.len() == 0 {
                sleep(backoff.mul_f64(rng.random_range(0.8..1.2))).await;
                backoff = backoff.mul_f64(BACKOFF_FACTOR).min(BACKOFF_MAX);
            }
        }
    }

    /// Works with endpoint `at` until that fails.
    async fn session(&mut self, at: usize) -> Fault {
        let mut client = match self.access.connect(at).await {
            Ok(client) => client,
            Err(fault) => return fault,
        };
        let mut token_refused = false;
        loop {
            match self.work(&mut client).await {
                End::ListAgain => self.seen = None,
                // It was given by a member that forgot it, or the rights changed: once more.
                End::Lost(Fault::Token) if !token_refused => token_refused = true,
                End::Lost(fault) => return fault,
            }
        }
    }

    async fn work(&mut self, client: &mut Client) -> End {
        let end = async {
            client.authenticate().await?;
            let seen = match self.seen {
                Some(seen) => seen,
                None => self.list(client).await?,
            };
            let watch = client.watch(&self.prefix, seen.next).await?;
            self.follow(watch, seen).await
        };
        match end.await {
            Ok(never) => never,
            Err(end) => end,
        }
    }

    /// Reads both folders as they are at one revision.
    async fn list(&mut self, client: &Client) -> Result<Seen, End> {
        if let Some(listed) = self.listed {
            sleep_until(listed + LIST_EVERY).await;
        }
        self.listed = Some(Instant::now());
        let mut listing = self.view.listing();
        let (mut cluster, mut revision, mut limit) = (0, 0, PAGE_KEYS);
        for folder in Folder::ALL {
            let mut from = folder.start(&self.prefix).into_bytes();
            loop {
                let page = client.range(&self.prefix, folder, from.clone(), limit, revision).await;
                let page = match page {
                    Err(Fault::TooLarge) if limit > 1 => {
                        limit /= 2;
                        continue;
                    }
                    page => page?,
                };
                if revision == 0 {
                    let header = page.header.unwrap_or_default();
                    (cluster, revision) = (header.cluster_id, header.revision);
                }
                if revision <= 0 {
                    return Err(Fault::said("its answer has no revision").into());
                }
                let room = page.kvs.iter().fold(true, |_, kv| listing.push(folder, kv));
                let Some(last) = page.kvs.last().filter(|_| page.more && room) else { break };
                from = [&last.key[..], b"\0"].concat();
            }
        }
        self.view.replace(listing);
        let seen = Seen { cluster, next: [revision + 1; 2] };
        self.seen = Some(seen);
        self.say_back().await;
        self.say_known().await;
        Ok(seen)
    }

    /// Follows the watches until they end.
    async fn follow(
        &mut self,
        mut watch: Streaming<WatchResponse>,
        mut seen: Seen,
    ) -> Result<End, End> {
        let mut created = 0;
        loop {
            let next = watch.message();
            let response = if created < Folder::ALL.len() {
                timeout(ANSWER_TIMEOUT, next).await.map_err(|_| {
                    let why = format!("no watch within {} s", ANSWER_TIMEOUT.as_secs());
                    End::Lost(Fault::said(why))
                })?
            } else {
                next.await
            };
            let response = match response.map_err(Fault::from) {
                Ok(Some(response)) => response,
                Ok(None) => return Err(Fault::said("the watch ended").into()),
                // The key may be overwritten by now: a listing shows it as it is.
                Err(Fault::TooLarge) => return Err(End::ListAgain),
                Err(fault) => return Err(fault.into()),
            };
            if response.canceled {
                tracing::info!(
                    compact_revision = response.compact_revision,
                    reason = response.cancel_reason,
                    "etcd cancelled a watch: listing again"
                );
                return Ok(End::ListAgain);
            }
            if response.created {
                let header = response.header.unwrap_or_default();
                // Another cluster, or one set back: its revisions say nothing about ours.
                let newest = seen.next.into_iter().max().unwrap_or_default() - 1;
                if header.cluster_id != seen.cluster || header.revision < newest {
                    return Ok(End::ListAgain);
                }
                created += 1;
                if created == Folder::ALL.len() {
                    self.up = Some(Instant::now());
                    self.say_back().await;
                }
                continue;
            }
            self.take(&response, &mut seen);
            if self.view.lacks() {
                return Ok(End::ListAgain);
            }
            if !response.fragment {
                self.say_known().await;
            }
        }
    }

    /// Applies the events of one answer.
    fn take(&mut self, response: &WatchResponse, seen: &mut Seen) {
        let Some(folder) = Folder::ALL.into_iter().find(|f| watch_id(*f) == response.watch_id)
        else {
            return;
        };
        let mut revision = 0;
        for event in &response.events {
            let Some(kv) = &event.kv else { continue };
            revision = revision.max(kv.mod_revision);
            match event.r#type() {
                EventType::Put => self.view.put(folder, kv),
                EventType::Delete => self.view.delete(folder, &kv.key, kv.mod_revision),
            }
        }
        if response.events.is_empty() {
            // A progress report: all up to here was told.
            revision = response.header.unwrap_or_default().revision;
        }
        let next = &mut seen.next[folder as usize];
        // The rest of a revision that came in part is told again after a loss.
        if !response.fragment {
            *next = (*next).max(revision + 1);
            self.seen = Some(*seen);
        }
    }

    /// Tells what is known if that changed, and what could not be read.
    async fn say_known(&mut self) {
        let known = self.view.known();
        if self.told.as_ref() != Some(&known) {
            self.told = Some(known.clone());
            self.say(Word::Known { known, by: SOURCE.into() }).await;
        }
        for bad in self.view.take_bad() {
            self.say(bad).await;
        }
    }

    async fn say_back(&mut self) {
        self.reasons.fill(None);
        if self.stale.take().is_some() {
            self.say(Word::Fresh).await;
        }
    }

    /// Tells why etcd cannot be asked, if that was not told yet.
    async fn say_stale(&mut self) {
        let failed = self.reasons.iter().enumerate();
        let failed = failed.filter_map(|(at, fault)| Some((self.access.name(at), fault.as_ref()?)));
        let texts: Vec<String> =
            failed.map(|(name, f)| format!("{name}: {}; {}", f.why(), f.advice())).collect();
        let why = format!("etcd cannot be asked: {}", texts.join(", "));
        if self.stale.as_ref() != Some(&why) {
            self.stale = Some(why.clone());
            self.say(Word::Stale { why }).await;
        }
    }

    async fn say(&self, word: Word) {
        if self.tell.send(News { source: SOURCE.into(), word }).await.is_err() {
            // Nobody hears it: the task is about to be ended.
            pending::<()>().await;
        }
    }
}
