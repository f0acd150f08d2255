//! The sources that are asked: started with the configuration, changed with it.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::discovery::{Teller, dns, etcd, registry};
use crate::config::{Config, Lookup};

/// See the module.
pub struct Sources {
    tell: Teller,
    seed: u64,
    etcd: Option<JoinHandle<()>>,
    registry: Option<registry::Handle>,
    lookups: BTreeMap<Lookup, JoinHandle<()>>,
}

impl Sources {
    /// Starts what is configured. `listener` is the registry's. An error is one line that says what
    /// to change.
    pub fn start(
        config: &Config,
        listener: Option<TcpListener>,
        seed: u64,
        tell: Teller,
    ) -> Result<Self, String> {
        let discovery = &config.gateway.discovery;
        let etcd =
            discovery.etcd.as_ref().map(|settings| etcd::start(settings, tell.clone(), seed));
        let registry = match (&discovery.registry, listener) {
            (Some(settings), Some(listener)) => {
                Some(registry::serve(listener, settings, tell.clone())?)
            }
            (Some(_) | None, _) => None,
        };
        let lookups = BTreeMap::new();
        let mut sources = Self { tell, seed, etcd: etcd.transpose()?, registry, lookups };
        sources.follow_lookups(config);
        Ok(sources)
    }

    /// Whether it is asked: news of one that was given up may still be under way.
    pub fn asks(&self, source: &str) -> bool {
        match source {
            "etcd" => self.etcd.is_some(),
            "registry" => self.registry.is_some(),
            name => self.lookups.keys().any(|lookup| *source_of(lookup) == *name),
        }
    }

    /// Names of those that are to speak at the start.
    pub fn names(&self) -> Vec<Arc<str>> {
        let etcd = self.etcd.iter().map(|_| "etcd".into());
        etcd.chain(self.lookups.keys().map(source_of)).collect()
    }

    /// Follows a new configuration; gives the names of sources that are not asked any more.
    pub fn follow(&mut self, config: &Config) -> Vec<Arc<str>> {
        if let (Some(handle), Some(settings)) = (&self.registry, &config.gateway.discovery.registry)
            && let Err(error) = handle.set_callers(&settings.callers)
        {
            tracing::error!(error, "registry tokens: those before stay; mend it and reload again");
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
            let Lookup { service, host, port } = lookup.clone();
            gone.retain(|name| *name != source_of(lookup));
            match dns::start(service, host, port, servers, self.seed, self.tell.clone()) {
                Ok(task) => drop(self.lookups.insert(lookup.clone(), task)),
                Err(error) => tracing::error!(error, "a name cannot be looked up"),
            }
        }
        gone
    }
}

fn source_of(lookup: &Lookup) -> Arc<str> {
    format!("dns:{}", lookup.service).into()
}
