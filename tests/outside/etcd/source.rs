//! The etcd source as control would run it, and its news.

use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use shardgate::config::settings::EtcdSettings;
use shardgate::control::discovery::{NEWS_MAX, News, SourceContents, SourceEvent, etcd};
use tokio::sync::oneshot;

use crate::support::PATIENCE;

/// The source on a thread of its own, and the state that follows from its news.
pub struct Source {
    news: Receiver<News>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Contents that were sent last.
    pub known: Option<SourceContents>,
    /// Reason why the source is stale now.
    pub stale: Option<String>,
    /// Places and reasons of bad values, in the order of their news.
    pub bad: Vec<(String, String)>,
    /// Number of events of each kind.
    pub knowns: usize,
    pub stales: usize,
}

impl Source {
    /// Starts the source in a thread.
    pub fn start(settings: EtcdSettings) -> Self {
        let (out, news) = mpsc::channel();
        let (stop, mut stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let (tell, mut told) = tokio::sync::mpsc::channel(NEWS_MAX);
                let task = etcd::start(&settings, tell, 1).expect("good settings");
                loop {
                    tokio::select! {
                        _ = &mut stopped => break,
                        word = told.recv() => {
                            out.send(word.expect("it tells on")).expect("the test reads");
                        }
                    }
                }
                // The source ends by itself when the receiver is gone.
                drop(told);
                task.await.expect("it does not panic");
            });
        });
        Self {
            news,
            stop: Some(stop),
            thread: Some(thread),
            known: None,
            stale: None,
            bad: Vec::new(),
            knowns: 0,
            stales: 0,
        }
    }

    /// Takes in news until `holds`.
    pub fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !holds(self) {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(news) = self.news.recv_timeout(left) else {
                panic!("never: {what}; {:?}; {:?}; {:?}", self.names(), self.stale, self.bad);
            };
            assert_eq!(&*news.source, "etcd");
            match news.event {
                SourceEvent::Contents { contents, by } => {
                    assert_eq!(&*by, "etcd");
                    self.knowns += 1;
                    self.known = Some(contents);
                }
                SourceEvent::Stale { why } => {
                    assert!(why.contains("://127.0.0.1:") && !why.contains('\n'), "{why}");
                    assert_ne!(self.stale.as_ref(), Some(&why), "said twice");
                    self.stales += 1;
                    self.stale = Some(why);
                }
                SourceEvent::Fresh => assert!(self.stale.take().is_some(), "it was away"),
                SourceEvent::Bad { at, why } => self.bad.push((at, why)),
                SourceEvent::Note { why } => panic!("etcd has no parts: {why}"),
            }
        }
    }

    /// Names of all instances, as `service/instance`.
    pub fn names(&self) -> Vec<String> {
        let instances = self.known.iter().flat_map(|known| &known.instances);
        instances.map(|found| format!("{}/{}", found.service, found.name)).collect()
    }

    /// Takes in news until the contents are exactly these instances.
    pub fn until_names(&mut self, names: &[&str]) {
        let what = format!("the instances are {names:?}");
        self.until(&what, |s| s.known.is_some() && s.names() == names);
    }

    /// Takes in news until the source is stale, with `text` in the reason.
    pub fn until_stale(&mut self, text: &str) {
        let stale = |s: &Self| s.stale.as_ref().is_some_and(|why| why.contains(text));
        self.until(&format!("stale: {text}"), stale);
    }

    /// Takes in news until the source is fresh.
    pub fn until_fresh(&mut self) {
        self.until("fresh", |s| s.known.is_some() && s.stale.is_none());
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // The thread may have failed already: then the join shows that.
        let _ = self.stop.take().expect("once").send(());
        let ended = self.thread.take().expect("once").join();
        assert!(ended.is_ok() || thread::panicking());
    }
}
