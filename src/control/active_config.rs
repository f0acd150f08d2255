//! The configuration in force: files, settings, keys and certificates. A reload replaces all of it
//! or nothing.

use std::sync::Arc;
use std::time::Instant;

use super::discovery::registry;
use super::inputs::LocalFiles;
use super::log;
use super::push;
use super::source_tables::{CheckedConfig, SourceTables, TokenFiles};
use super::token_keys::TokenKeys;
use crate::clock::unix_now_s;
use crate::config::change::{self, Change};
use crate::config::key_files::Reading;
use crate::config::settings::GatewaySettings;
use crate::config::{Config, FoundTables, Loader, Problem, Problems, Source};
use crate::ids::ShardId;
use crate::mailbox::ShardConfig;
use crate::routing::Snapshot;
use crate::tls::authorities::KeyAuthorities;
use crate::tls::load::{CertificateInfo, LocalTls};
use crate::tls::service::ServicesTls;

/// Result of a reload that was taken.
#[derive(Clone, Debug)]
pub struct ReloadReport {
    /// Version of the snapshot in force now.
    pub version: u64,
    /// Settings that differ from before.
    pub changes: Vec<Change>,
    /// Suspicious settings that were taken nonetheless.
    pub warnings: Vec<Problem>,
}

/// Count and last result of reloads.
#[derive(Clone, Default, Debug)]
pub struct Reloads {
    /// Reloads that were taken.
    pub taken: u64,
    /// Reloads that were refused.
    pub refused: u64,
    /// Time and problems of the last reload; no problem = it was taken.
    pub last: Option<(Instant, Vec<Problem>)>,
}

impl Reloads {
    /// Counts a reload and logs why it was refused, if it was.
    pub fn note<T>(&mut self, result: &Result<T, Vec<Problem>>, now: Instant) {
        let problems = result.as_ref().err().cloned().unwrap_or_default();
        for problem in &problems {
            tracing::error!(
                %problem,
                "reload_refused: nothing was changed; correct this and reload again"
            );
        }
        match result {
            Ok(_) => self.taken += 1,
            Err(_) => self.refused += 1,
        }
        self.last = Some((now, problems));
    }
}

/// The configuration in force.
pub struct ActiveConfig {
    loader: Loader,
    config: Arc<Config>,
    /// Process-wide settings, as the shards have them: routes of sources leave them as they are.
    gateway: Arc<GatewaySettings>,
    keys: TokenKeys,
    tls: LocalTls,
    /// Cap of [`LocalFiles::connections_cap`], which a reload keeps.
    connections_cap: usize,
}

/// Files that were read again and passed all checks, but are not in force yet.
pub struct NewConfig {
    loader: Loader,
    checked: CheckedConfig,
    tls: LocalTls,
    changes: Vec<Change>,
}

impl NewConfig {
    /// The configuration that passed.
    pub fn config(&self) -> &Config {
        &self.checked.config
    }
}

impl ActiveConfig {
    /// The configuration that the shards were started with.
    pub fn new(loader: Loader, config: Config, local: LocalFiles) -> Self {
        let LocalFiles { keys, tls, connections_cap } = local;
        let keys = TokenKeys::new(keys, &config);
        let gateway = Arc::new(config.gateway.clone());
        Self { loader, config: Arc::new(config), gateway, keys, tls, connections_cap }
    }

    /// Settings, services and routes.
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// Keys of tokens, with the configuration that they depend on.
    pub fn keys(&mut self) -> (&mut TokenKeys, &Config) {
        (&mut self.keys, &self.config)
    }

    /// Problems with files of keys of sources' tenants, for which what was read before stays.
    pub fn keys_kept(&self) -> impl Iterator<Item = &Problem> {
        self.keys.local().kept().chain(self.tls.authorities().kept())
    }

    /// The authorities that servers of keys are signed by.
    pub fn authorities(&self) -> &KeyAuthorities {
        self.tls.authorities()
    }

    /// TLS towards services.
    pub fn service_tls(&self) -> &ServicesTls {
        self.tls.services()
    }

    /// Certificates that new connections are shown.
    pub fn certificates(&self) -> &[CertificateInfo] {
        self.tls.certificates()
    }

    /// Connections that the limit of open files allows each shard to accept.
    pub fn connections_cap(&self) -> usize {
        self.connections_cap
    }

    /// State that a shard works by, with `snapshot`. Its `connections_max` is at most the cap that
    /// the limit of open files sets, as at the start.
    pub fn for_shard(&self, shard: ShardId, snapshot: Arc<Snapshot>) -> ShardConfig {
        let mut settings = self.config.shards.shard(usize::from(shard.0));
        let max = &mut settings.conn.connections_max;
        *max = max.at_most(self.connections_cap);
        ShardConfig {
            snapshot,
            gateway: self.gateway.clone(),
            settings,
            auth: self.keys.verifier(),
            tls: self.tls.server(),
            service_tls: self.tls.services().clone(),
        }
    }

    /// Checks the files in force with other tables of the sources. `None` if the files themselves
    /// fail, which passed before.
    pub fn check(&self, tables: &SourceTables) -> Option<CheckedConfig> {
        let reading = Reading::Sources(&self.config);
        tables.check(&self.loader, |config| self.read_token_files(config, reading)).ok()
    }

    /// Reads the files of keys that `config` names.
    fn read_token_files(
        &self,
        config: &Config,
        reading: Reading<'_>,
    ) -> Result<TokenFiles, Problems> {
        let keys = self.keys.local().read_again(config, reading);
        let authorities = self.tls.authorities().read_again(config, reading);
        Problems::join(keys, authorities)
            .map(|(keys, authorities)| TokenFiles { keys, authorities })
    }

    /// Puts a configuration with other routes and tenants of sources in force. Whether tenants
    /// changed, and with them the keys of tokens.
    pub fn take_checked(&mut self, checked: CheckedConfig, tables: &mut SourceTables) -> bool {
        let Config { tenants, awaited, .. } = &checked.config;
        let is_same = (tenants, awaited) == (&self.config.tenants, &self.config.awaited);
        if !is_same {
            let changes = change::changes(&self.config, &checked.config);
            let of_tenants = changes.iter().filter(|change| change.is_of_tenants());
            of_tenants.for_each(|change| self.log_change(change));
        }
        let TokenFiles { keys, authorities } = self.take_config(checked, tables);
        if !is_same {
            self.keys.set_of_sources(keys, &self.config);
            self.tls.set_authorities(authorities);
        }
        !is_same
    }

    fn take_config(&mut self, checked: CheckedConfig, tables: &mut SourceTables) -> TokenFiles {
        let CheckedConfig { config, files, taken, refused } = checked;
        tables.accept(taken, refused);
        if config.snapshot.routes != self.config.snapshot.routes {
            let routes = config.snapshot.routes.len();
            tracing::info!(routes, "routes_changed: other routes are in force");
        }
        if !config.snapshot.tenants.has_rules_of(&self.config.snapshot.tenants)
            || config.tenants != self.config.tenants
        {
            let tenants = config.tenants.len();
            tracing::info!(tenants, "tenants_changed: other tenants are in force");
        }
        self.config = Arc::new(config);
        files
    }

    /// Reads the files again and checks all of them. Changes nothing.
    pub fn read_again(&self, tables: &SourceTables) -> Result<NewConfig, Vec<Problem>> {
        let loader = self.loader.read_again().map_err(|Problems(list)| list)?;
        let reading = Reading::Reload(&self.config);
        let read_tls =
            |config: &Config| LocalTls::read(config, unix_now_s(), Some(&self.tls), reading);
        let checked = tables.check(&loader, |config| self.read_token_files(config, reading));
        let checked = checked.map_err(|mut problems| {
            // If keys are the reason, what is wrong with certificates is told with it.
            let config = loader.check(&FoundTables::default());
            let tls = config.and_then(|config| read_tls(&config).map(drop));
            let more = tls.map_or_else(|Problems(list)| list, |()| Vec::new());
            problems
                .extend(more.into_iter().filter(|new| !problems.contains(new)).collect::<Vec<_>>());
            problems
        })?;
        let config = &checked.config;
        let tls = read_tls(config).map_err(|Problems(list)| list)?;
        let changes = change::changes(&self.config, config);
        let refused = change::boot_only(&changes);
        if !refused.is_empty() {
            return Err(refused);
        }
        if let Some(settings) = &config.gateway.discovery.registry
            && let Err(why) = registry::check_callers(&settings.callers)
        {
            return Err(vec![Problem::whole(Source::File("gateway.toml".into(), 0), why)]);
        }
        if let Err(why) = push::check_callers(&config.gateway.push.callers) {
            return Err(vec![Problem::whole(Source::File("gateway.toml".into(), 0), why)]);
        }
        Ok(NewConfig { loader, checked, tls, changes })
    }

    /// Puts files that were read again in force; gives the settings that changed.
    pub fn replace(&mut self, new: NewConfig, tables: &mut SourceTables) -> Vec<Change> {
        let NewConfig { loader, checked, tls, changes } = new;
        changes.iter().for_each(|change| self.log_change(change));
        let filter = &checked.config.gateway.log;
        if *filter != self.config.gateway.log
            && let Err(why) = log::set_filter(filter)
        {
            tracing::error!(why, "log_filter_refused: the log filter before it stays in force");
        }
        self.loader = loader;
        self.gateway = Arc::new(checked.config.gateway.clone());
        let TokenFiles { keys, .. } = self.take_config(checked, tables);
        self.keys.set_local(keys, &self.config);
        self.tls = tls;
        for problem in self.keys_kept() {
            tracing::warn!(
                %problem,
                "tenant_keys_kept: what was read before of this file stays in force; correct the \
                 file and reload, or the tenant in the source"
            );
        }
        changes
    }

    fn log_change(&self, change: &Change) {
        let Change { key, old, new, .. } = change;
        tracing::info!(key, ?old, ?new, "setting_changed: a reload or a source changed this key");
        let asked = new.as_deref().filter(|_| key.ends_with("conn.connections_max"));
        let allowed = self.connections_cap;
        if asked.and_then(|n| n.parse().ok()).is_some_and(|n: usize| n > allowed) {
            tracing::warn!(
                key,
                asked,
                allowed,
                "connections_capped: a shard takes no more connections than open files allow; \
                 raise that limit (`ulimit -n`, LimitNOFILE=) and start again"
            );
        }
    }
}
