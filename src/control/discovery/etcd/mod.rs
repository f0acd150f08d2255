//! Instances, routes and tenants out of etcd, 3.4 or newer: listed at one revision, then watched.
//!
//! Keys, under `etcd.prefix` (`/shardgate` by default), and their values, JSON of at most 4 KiB, a
//! tenant's of at most 64 KiB:
//!
//! - `<prefix>/services/<service>/<instance>`: `{"address":"10.0.0.1:50001","weight":1,
//!   "draining":false}`. The weight is 1 to 1000, and 1 if left out; draining is false if left out.
//! - `<prefix>/routes/<name>`: the keys of a `[[route]]` table.
//! - `<prefix>/tenants/<name>`: the keys of a `[[tenant]]` table; its name need not be repeated.
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
//! The last contents hold while etcd is away. A value that cannot be read is complained about once
//! and left out; if its key had a good one before, that one stays. The first 4,096 keys of each
//! folder are used, and the first 1,000 tenants.

mod client;
mod view;

use std::future::pending;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::Streaming;

use self::client::{ANSWER_TIMEOUT, Client, Endpoints, Fault, watch_id};
use self::proto::etcdserverpb::WatchResponse;
use self::proto::mvccpb::event::EventType;
use self::view::{FOLDERS, Folder, KeyView};
use super::{News, NewsSender, SourceContents, SourceEvent};
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

/// Name of the source in news.
const SOURCE: &str = "etcd";
/// Keys of one page of a listing.
const PAGE_KEYS: i64 = 1_000;
/// Pause after all endpoints failed.
const BACKOFF: Duration = Duration::from_secs(1);
/// Longest pause after all endpoints failed.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Growth of the pause from failure to failure.
const BACKOFF_FACTOR: f64 = 1.6;
/// Time that a watch has to last for the next failure to begin with short pauses again.
const GOOD_AFTER: Duration = Duration::from_secs(5);
/// Shortest time between two listings, whatever makes them needed.
const LIST_EVERY: Duration = Duration::from_secs(1);

/// Starts the source on the runtime of the caller. It ends when the receiver of `news` is gone. An
/// error is one line about a file or an endpoint; an etcd that does not answer is no error. `seed`
/// is for the jitter of the pauses.
pub fn start(
    settings: &EtcdSettings,
    news: NewsSender,
    seed: u64,
) -> Result<JoinHandle<()>, String> {
    let endpoints = Endpoints::new(settings)?;
    let mut source = EtcdSource {
        view: KeyView::new(&settings.prefix),
        prefix: settings.prefix.clone(),
        reasons: vec![None; endpoints.len()],
        endpoints,
        news: news.clone(),
        progress: None,
        sent: None,
        stale: None,
        up: None,
        listed: None,
    };
    Ok(tokio::spawn(async move {
        tokio::select! {
            () = news.closed() => {}
            () = source.run(StdRng::seed_from_u64(seed)) => {}
        }
    }))
}

/// Progress of the view.
#[derive(Clone, Copy, Debug)]
struct Progress {
    /// Cluster that was listed.
    cluster: u64,
    /// First revision that each folder's watch has still to send.
    next: [i64; FOLDERS],
}

/// Reason why a session, or a part of it, ends.
enum SessionEnd {
    /// The connection is of no use any more.
    Lost(Fault),
    /// A new listing is needed.
    ListAgain,
}

impl From<Fault> for SessionEnd {
    fn from(fault: Fault) -> Self {
        match fault {
            // A watch from the listing's revision on skips the value that was too large, too.
            Fault::Compacted => SessionEnd::ListAgain,
            Fault::TooLarge | Fault::Token | Fault::Other { .. } => SessionEnd::Lost(fault),
        }
    }
}

struct EtcdSource {
    endpoints: Endpoints,
    prefix: String,
    news: NewsSender,
    view: KeyView,
    /// Progress; `None` = a listing is needed.
    progress: Option<Progress>,
    /// Contents that were sent last.
    sent: Option<SourceContents>,
    /// Reason that was sent, while etcd cannot be reached.
    stale: Option<String>,
    /// Last fault of each endpoint.
    reasons: Vec<Option<Fault>>,
    /// Start of the watches of this session.
    up: Option<Instant>,
    /// Time of the last listing.
    listed: Option<Instant>,
}

impl EtcdSource {
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
                    self.send_stale().await;
                }
            }
            at = (at + 1) % self.endpoints.len();
            if failures > 0 && failures % self.endpoints.len() == 0 {
                sleep(backoff.mul_f64(rng.random_range(0.8..1.2))).await;
                backoff = backoff.mul_f64(BACKOFF_FACTOR).min(BACKOFF_MAX);
            }
        }
    }

    /// Works with endpoint `at` until that fails.
    async fn session(&mut self, at: usize) -> Fault {
        let mut client = match self.endpoints.connect(at).await {
            Ok(client) => client,
            Err(fault) => return fault,
        };
        let mut token_refused = false;
        loop {
            match self.work(&mut client).await {
                SessionEnd::ListAgain => self.progress = None,
                // The token was given by a member that forgot it, or the rights changed:
                // authenticate once more.
                SessionEnd::Lost(Fault::Token) if !token_refused => token_refused = true,
                SessionEnd::Lost(fault) => return fault,
            }
        }
    }

    async fn work(&mut self, client: &mut Client) -> SessionEnd {
        let end = async {
            client.authenticate().await?;
            let progress = match self.progress {
                Some(progress) => progress,
                None => self.list(client).await?,
            };
            let watch = client.watch(&self.prefix, progress.next).await?;
            self.follow(watch, progress).await
        };
        match end.await {
            Ok(never) => never,
            Err(end) => end,
        }
    }

    /// Reads all folders as they are at one revision.
    async fn list(&mut self, client: &Client) -> Result<Progress, SessionEnd> {
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
        let progress = Progress { cluster, next: [revision + 1; FOLDERS] };
        self.progress = Some(progress);
        self.send_fresh().await;
        self.send_contents().await;
        Ok(progress)
    }

    /// Follows the watches until they end.
    async fn follow(
        &mut self,
        mut watch: Streaming<WatchResponse>,
        mut progress: Progress,
    ) -> Result<SessionEnd, SessionEnd> {
        let mut created = 0;
        loop {
            let next = watch.message();
            let response = if created < Folder::ALL.len() {
                timeout(ANSWER_TIMEOUT, next).await.map_err(|_| {
                    let why = format!("no watch within {} s", ANSWER_TIMEOUT.as_secs());
                    SessionEnd::Lost(Fault::said(why))
                })?
            } else {
                next.await
            };
            let response = match response.map_err(Fault::from) {
                Ok(Some(response)) => response,
                Ok(None) => return Err(Fault::said("the watch ended").into()),
                // The key may be overwritten by now: a listing shows it as it is.
                Err(Fault::TooLarge) => return Err(SessionEnd::ListAgain),
                Err(fault) => return Err(fault.into()),
            };
            if response.canceled {
                tracing::info!(
                    compact_revision = response.compact_revision,
                    why = response.cancel_reason,
                    "etcd_watch_cancelled: etcd ended a watch; all keys are listed again"
                );
                return Ok(SessionEnd::ListAgain);
            }
            if response.created {
                let header = response.header.unwrap_or_default();
                // Another cluster, or one set back to an old state: its revisions say nothing about
                // the view's.
                let newest = progress.next.into_iter().max().unwrap_or_default() - 1;
                if header.cluster_id != progress.cluster || header.revision < newest {
                    return Ok(SessionEnd::ListAgain);
                }
                created += 1;
                if created == Folder::ALL.len() {
                    self.up = Some(Instant::now());
                    self.send_fresh().await;
                }
                continue;
            }
            self.take(&response, &mut progress);
            if self.view.lacks() {
                return Ok(SessionEnd::ListAgain);
            }
            if !response.fragment {
                self.send_contents().await;
            }
        }
    }

    /// Applies the events of one answer.
    fn take(&mut self, response: &WatchResponse, progress: &mut Progress) {
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
            // A progress report: everything up to this revision was sent.
            revision = response.header.unwrap_or_default().revision;
        }
        let next = &mut progress.next[folder as usize];
        // After a loss the rest of a revision that came in part is sent again.
        if !response.fragment {
            *next = (*next).max(revision + 1);
            self.progress = Some(*progress);
        }
    }

    /// Sends the contents if they changed, and complaints about values that could not be read.
    async fn send_contents(&mut self) {
        let contents = self.view.contents();
        if self.sent.as_ref() != Some(&contents) {
            self.sent = Some(contents.clone());
            self.send(SourceEvent::Contents { contents, by: SOURCE.into() }).await;
        }
        for bad in self.view.take_bad() {
            self.send(bad).await;
        }
    }

    async fn send_fresh(&mut self) {
        self.reasons.fill(None);
        if self.stale.take().is_some() {
            self.send(SourceEvent::Fresh).await;
        }
    }

    /// Sends why etcd cannot be reached, if that was not sent yet.
    async fn send_stale(&mut self) {
        let failed = self.reasons.iter().enumerate();
        let failed =
            failed.filter_map(|(at, fault)| Some((self.endpoints.name(at), fault.as_ref()?)));
        let texts: Vec<String> =
            failed.map(|(name, f)| format!("{name}: {}; {}", f.why(), f.advice())).collect();
        let why = format!("etcd cannot be asked: {}", texts.join(", "));
        if self.stale.as_ref() != Some(&why) {
            self.stale = Some(why.clone());
            self.send(SourceEvent::Stale { why }).await;
        }
    }

    async fn send(&self, event: SourceEvent) {
        if self.news.send(News { source: SOURCE.into(), event }).await.is_err() {
            // The receiver is gone: the task is about to be ended.
            pending::<()>().await;
        }
    }
}
