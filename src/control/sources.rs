//! The discovery sources in use: started with the configuration, changed with it.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinHandle;

use super::discovery::{NewsSender, dns, etcd, registry};
use crate::config::{Config, Lookup};

/// Bad values remembered of a source, for `/health`.
const BAD_MAX: usize = 16;

/// State of one source.
#[derive(Clone, Debug, Default)]
pub struct SourceState {
    /// While the source cannot be reached: since when, and why.
    pub stale: Option<(Instant, String)>,
    /// The last values in the source that could not be read: place and reason.
    pub bad: Vec<(String, String)>,
    /// Instances that the source names.
    pub instances: usize,
    /// Routes that the source names.
    pub routes: usize,
    /// Tenants that the source names.
    pub tenants: usize,
    /// Whether the source has answered since the start.
    pub answered: bool,
}

impl SourceState {
    /// Notes that the source cannot be reached, for this reason.
    pub fn set_stale(&mut self, why: String, now: Instant) {
        let since = self.stale.take().map_or(now, |(since, _)| since);
        self.stale = Some((since, why));
    }

    /// Notes a value that could not be read.
    pub fn add_bad(&mut self, at: String, why: String) {
        self.bad.retain(|(known, _)| *known != at);
        self.bad.push((at, why));
        let over = self.bad.len().saturating_sub(BAD_MAX);
        self.bad.drain(..over);
    }
}

/// The running tasks of the sources.
pub struct Sources {
    news: NewsSender,
    seed: u64,
    etcd: Option<JoinHandle<()>>,
    registry: Option<registry::Handle>,
    lookups: BTreeMap<Lookup, JoinHandle<()>>,
}

impl Sources {
    /// Starts the sources of the configuration; `listener` is the registry's. An error is one line
    /// that says what to change.
    pub fn start(
        config: &Config,
        listener: Option<TcpListener>,
        seed: u64,
        news: NewsSender,
    ) -> Result<Self, String> {
        let discovery = &config.gateway.discovery;
        let etcd =
            discovery.etcd.as_ref().map(|settings| etcd::start(settings, news.clone(), seed));
        let registry = match (&discovery.registry, listener) {
            (Some(settings), Some(listener)) => {
                Some(registry::serve(listener, settings, news.clone())?)
            }
            (Some(_) | None, _) => None,
        };
        let lookups = BTreeMap::new();
        let mut sources = Self { news, seed, etcd: etcd.transpose()?, registry, lookups };
        sources.follow_lookups(config);
        Ok(sources)
    }

    /// Whether the source is in use. News of one that was given up may still be under way.
    pub fn is_active(&self, source: &str) -> bool {
        match source {
            "etcd" => self.etcd.is_some(),
            "registry" => self.registry.is_some(),
            name => self.lookups.keys().any(|lookup| *source_of(lookup) == *name),
        }
    }

    /// Names of the sources that are expected to answer at the start.
    pub fn names(&self) -> Vec<Arc<str>> {
        let etcd = self.etcd.iter().map(|_| "etcd".into());
        etcd.chain(self.lookups.keys().map(source_of)).collect()
    }

    /// Follows a new configuration; gives the names of sources that are given up.
    pub fn follow(&mut self, config: &Config) -> Vec<Arc<str>> {
        if let (Some(handle), Some(settings)) = (&self.registry, &config.gateway.discovery.registry)
            && let Err(why) = handle.set_callers(&settings.callers)
        {
            tracing::error!(
                why,
                "registry_tokens_refused: the tokens before them stay in force; correct \
                 [[registry_token]] and reload again"
            );
        }
        self.follow_lookups(config)
    }

    fn follow_lookups(&mut self, config: &Config) -> Vec<Arc<str>> {
        let mut gone = Vec::new();
        self.lookups.retain(|lookup, task| {
            let stays = config.lookups.contains(lookup);
            if !stays {
                task.abort();
                gone.push(source_of(lookup));
            }
            stays
        });
        let servers = &config.gateway.discovery.dns_servers;
        for lookup in &config.lookups {
            if self.lookups.contains_key(lookup) {
                continue;
            }
            gone.retain(|name| *name != source_of(lookup));
            match dns::start(lookup, servers, self.seed, self.news.clone()) {
                Ok(task) => drop(self.lookups.insert(lookup.clone(), task)),
                Err(why) => tracing::error!(
                    why,
                    "lookup_refused: no instance of this name is found; correct service.dns"
                ),
            }
        }
        gone
    }
}

fn source_of(lookup: &Lookup) -> Arc<str> {
    format!("dns:{}", lookup.service).into()
}
