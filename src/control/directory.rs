//! What control knows of services and instances, and what it makes of it: one published state at a
//! time. Files, sources, the operator's word and health come in; a snapshot goes out.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use super::compose::{Composed, Composer, Member, Moved};
use super::discovery::{Known, News, Word, registry};
use super::fleet::{Fleet, Judged};
use super::signers::SOURCE;
use super::{Local, log, probe};
use crate::auth::Verifier;
use crate::auth::keys::KeySet;
use crate::auth::load::LocalKeys;
use crate::config::change::{self, Change};
use crate::config::settings::GatewaySettings;
use crate::config::{Config, FoundRoute, Loader, Problem, Problems, Source as ConfigSource};
use crate::ids::{InstanceId, ShardId};
use crate::mailbox::Published;
use crate::routing::Snapshot;
use crate::stats::Signal;
use crate::tls::load::{InForce, LocalTls};

/// Bad values remembered of a source, for `/health`.
const BAD_MAX: usize = 16;

/// One source, as far as it has spoken.
#[derive(Clone, Debug, Default)]
pub struct SourceState {
    /// Since when it cannot be asked, and why.
    pub stale: Option<(Instant, String)>,
    /// What it holds that could not be read, the last few: where and why.
    pub bad: Vec<(String, String)>,
    /// Instances it names.
    pub instances: usize,
    /// Routes it names.
    pub routes: usize,
    /// Whether it has told anything yet.
    pub heard: bool,
}

/// What the admin endpoint shows of it.
#[derive(Clone, Debug)]
pub struct DirectoryView {
    /// What is configured.
    pub config: Arc<Config>,
    /// What is published.
    pub snapshot: Arc<Snapshot>,
    /// Instances by name.
    pub members: BTreeMap<Arc<str>, Member>,
    /// How each of them is judged.
    pub judged: HashMap<InstanceId, Judged>,
    /// Services of which too few instances are healthy: all are used.
    pub panicking: Vec<Arc<str>>,
    /// Sources by name.
    pub sources: BTreeMap<Arc<str>, SourceState>,
    /// What sources said and could not be taken in.
    pub warnings: Vec<String>,
    /// Why the routes of the sources are not in force; empty = they are.
    pub routes_refused: Vec<Problem>,
    /// The last reload: when, and what was wrong with it.
    pub reloaded: Option<(Instant, Vec<Problem>)>,
    /// Reloads that were taken and that were refused.
    pub reloads: (u64, u64),
    /// Certificates that new connections are shown.
    pub certificates: Vec<InForce>,
}

/// What a reload did.
#[derive(Clone, Debug)]
pub struct Reloaded {
    /// Version in force now.
    pub version: u64,
    /// What differs from before.
    pub changes: Vec<Change>,
    /// What looks wrong but was taken.
    pub warnings: Vec<Problem>,
}

/// A configuration that passed.
struct Checked {
    config: Config,
    /// Routes of the sources that are in it.
    taken: Vec<FoundRoute>,
    /// What was wrong with those that are not.
    refused: Vec<Problem>,
}

/// See the module.
pub struct Directory {
    loader: Loader,
    config: Arc<Config>,
    gateway: Arc<GatewaySettings>,
    composer: Composer,
    fleet: Fleet,
    known: BTreeMap<Arc<str>, Known>,
    sources: BTreeMap<Arc<str>, SourceState>,
    draining: BTreeSet<Arc<str>>,
    warnings: Vec<String>,
    /// Routes of the sources: those last looked at, and those in force.
    routes_found: Vec<FoundRoute>,
    routes_taken: Vec<FoundRoute>,
    routes_refused: Vec<Problem>,
    reloaded: Option<(Instant, Vec<Problem>)>,
    reloads: (u64, u64),
    /// Keys of tokens: those read with the files, and the set that was fetched last.
    local_keys: LocalKeys,
    local_tls: LocalTls,
    connections_cap: usize,
    fetched: Option<KeySet>,
    auth: Option<Arc<Verifier>>,
    /// Something came in: when it is put together with what came since.
    due: Option<Instant>,
    /// Settings changed: they are published even if the snapshot is the same.
    settings_changed: bool,
}

impl Directory {
    /// What the shards started with.
    pub fn new(
        loader: Loader,
        config: Config,
        composer: Composer,
        mut fleet: Fleet,
        local: Local,
        now: Instant,
    ) -> Self {
        let Local { keys: local_keys, tls: local_tls, connections_cap } = local;
        tell_skipped(&local_keys);
        let auth = local_keys.verifier(&config, None);
        let gateway = Arc::new(config.gateway.clone());
        fleet.follow(composer.members(), now);
        Self {
            fleet,
            loader,
            config: Arc::new(config),
            gateway,
            composer,
            known: BTreeMap::new(),
            sources: BTreeMap::new(),
            draining: BTreeSet::new(),
            warnings: Vec::new(),
            routes_found: Vec::new(),
            routes_taken: Vec::new(),
            routes_refused: Vec::new(),
            reloaded: None,
            reloads: (0, 0),
            local_keys,
            local_tls,
            connections_cap,
            fetched: None,
            auth,
            due: None,
            settings_changed: false,
        }
    }

    /// What is configured.
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// What is published.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        self.composer.snapshot()
    }

    /// What a shard is to work by. It accepts no more than there are files for, as at the start.
    pub fn published(&self, shard: ShardId) -> Published {
        let mut settings = self.config.shards.shard(usize::from(shard.0));
        let max = &mut settings.conn.connections_max;
        *max = self.connections_cap.min(*max);
        Published {
            snapshot: self.composer.snapshot().clone(),
            gateway: self.gateway.clone(),
            settings,
            auth: self.auth.clone(),
            tls: self.local_tls.server(),
        }
    }

    /// Certificates that new connections are shown.
    pub fn certificates(&self) -> &[InForce] {
        self.local_tls.certificates()
    }

    /// For the admin endpoint.
    pub fn view(&self) -> DirectoryView {
        DirectoryView {
            config: self.config.clone(),
            snapshot: self.composer.snapshot().clone(),
            members: self.composer.members().clone(),
            judged: self.fleet.judged(),
            panicking: self.fleet.panicking(),
            sources: self.sources.clone(),
            warnings: self.warnings.clone(),
            routes_refused: self.routes_refused.clone(),
            reloaded: self.reloaded.clone(),
            reloads: self.reloads,
            certificates: self.certificates().to_vec(),
        }
    }

    /// A source has something to say.
    pub fn hear(&mut self, news: News, now: Instant) {
        let News { source, word } = news;
        let state = self.sources.entry(source.clone()).or_default();
        match word {
            Word::Known { known, by } => {
                state.stale = None;
                state.heard = true;
                (state.instances, state.routes) = (known.instances.len(), known.routes.len());
                let before = self.known.insert(source.clone(), known);
                if before.as_ref() != self.known.get(&source) {
                    let (instances, routes) = (state.instances, state.routes);
                    tracing::info!(%source, %by, instances, routes, "discovery_news");
                    let debounce = self.config.gateway.discovery.debounce;
                    self.due.get_or_insert(now + debounce);
                }
            }
            Word::Stale { why } => {
                tracing::warn!(
                    %source,
                    why,
                    "discovery_stale: its last instances are kept; see that it runs and can be \
                     reached"
                );
                let since = state.stale.take().map_or(now, |(since, _)| since);
                state.stale = Some((since, why));
            }
            Word::Fresh => {
                tracing::info!(%source, "discovery_fresh");
                state.stale = None;
            }
            Word::Bad { at, why } => {
                tracing::warn!(%source, at, why, "discovery_bad_value");
                state.bad.retain(|(known, _)| *known != at);
                state.bad.push((at, why));
                let over = state.bad.len().saturating_sub(BAD_MAX);
                state.bad.drain(..over);
            }
        }
    }

    /// A JWK set was fetched, or could not be. Whether there is something to publish.
    pub fn signers(&mut self, result: Result<KeySet, String>) -> bool {
        let state = self.sources.entry(SOURCE.into()).or_default();
        let set = match result {
            Ok(set) => set,
            Err(why) => {
                tracing::warn!(
                    why,
                    fetched = state.heard,
                    "jwks_stale: the keys that were fetched last are kept; see that auth.jwks_url \
                     can be reached"
                );
                let since = state.stale.take().map_or_else(Instant::now, |(since, _)| since);
                state.stale = Some((since, why));
                return false;
            }
        };
        for key in &set.skipped {
            tracing::warn!(at = key.at, why = key.rule, "jwks_key_left_out");
        }
        tracing::info!(keys = set.keys.len(), "jwks_fetched");
        (state.stale, state.heard) = (None, true);
        self.fetched = Some(set);
        self.auth = self.local_keys.verifier(&self.config, self.fetched.as_ref());
        true
    }

    /// No set is fetched any more, or another one: its keys are not trusted from now on.
    pub fn forget_signers(&mut self) {
        self.sources.remove(SOURCE);
        self.fetched = None;
        self.auth = self.local_keys.verifier(&self.config, None);
    }

    /// Forgets a source that is not asked any more.
    pub fn forget(&mut self, source: &str, now: Instant) {
        self.sources.remove(source);
        if self.known.remove(source).is_some() {
            self.due.get_or_insert(now);
        }
    }

    /// Whether all of these have spoken, and what they said is published.
    pub fn has_heard(&self, names: &[Arc<str>]) -> bool {
        let spoke = |name| {
            let state: Option<&SourceState> = self.sources.get(name);
            state.is_some_and(|s| s.heard || s.stale.is_some())
        };
        self.due.is_none() && names.iter().all(spoke)
    }

    /// How instances did in a shard.
    pub fn signal(&mut self, shard: ShardId, signals: &[Signal], now: Instant) {
        self.fleet.signal(shard, signals, now);
    }

    /// What a health check found.
    pub fn checked(&mut self, checked: probe::Checked, now: Instant) {
        self.fleet.checked(checked, now);
    }

    /// When [`Self::turn`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        [self.due, self.fleet.due()].into_iter().flatten().min()
    }

    /// Puts together what came in, if its time has come. Whether there is something to publish.
    pub fn turn(&mut self, now: Instant) -> bool {
        let news = self.due.is_some_and(|due| due <= now);
        if news {
            self.due = None;
            self.take_routes();
        }
        let judged = self.fleet.due().is_some_and(|due| due <= now) && self.fleet.judge(now);
        (news || judged) && self.compose(now)
    }

    /// Routes of the sources go through the same checks as those of the files; if anything is wrong
    /// with them, those in force stay.
    fn take_routes(&mut self) {
        let known = self.known.values();
        let found: Vec<FoundRoute> = known.flat_map(|k| k.routes.iter().cloned()).collect();
        if found == self.routes_found {
            return;
        }
        self.routes_found = found;
        // The files passed before, so it is the routes that do not.
        let Ok(checked) = self.check(&self.loader) else { return };
        self.take_checked(checked);
    }

    /// What `loader` says, with the routes of the sources if they pass: else with those in force,
    /// else with none. Only what is wrong with the files themselves is an error.
    fn check(&self, loader: &Loader) -> Result<Checked, Vec<Problem>> {
        let (found, taken) = (&self.routes_found, &self.routes_taken);
        let mut refused = Vec::new();
        for routes in [found, taken] {
            match loader.check(routes) {
                Ok(config) => return Ok(Checked { config, taken: routes.clone(), refused }),
                Err(Problems(problems)) if refused.is_empty() => refused = problems,
                Err(_) => {}
            }
        }
        match loader.check(&[]) {
            Ok(config) => Ok(Checked { config, taken: Vec::new(), refused }),
            Err(Problems(problems)) => Err(problems),
        }
    }

    fn take_checked(&mut self, checked: Checked) {
        let Checked { config, taken, refused } = checked;
        if refused != self.routes_refused {
            for problem in &refused {
                tracing::error!(%problem, "routes_refused: those in force stay; mend its value");
            }
        }
        if config.snapshot.routes != self.config.snapshot.routes {
            tracing::info!(routes = config.snapshot.routes.len(), "routes_changed");
        }
        self.routes_refused = refused;
        self.routes_taken = taken;
        self.config = Arc::new(config);
    }

    /// Makes the snapshot anew. Whether there is something to publish.
    fn compose(&mut self, now: Instant) -> bool {
        let Self { composer, config, known, draining, fleet, .. } = self;
        let mut composed = composer.compose(config, known, draining, |id| fleet.share(id));
        fleet.follow(composer.members(), now);
        // Who came or went may change what the others get.
        if !composed.moved.is_empty() && fleet.judge(now) {
            let again = composer.compose(config, known, draining, |id| fleet.share(id));
            composed.snapshot = again.snapshot.or(composed.snapshot);
        }
        let Composed { snapshot, moved, warnings } = composed;
        for moved in moved {
            tell(&moved);
        }
        let before: HashSet<&String> = self.warnings.iter().collect();
        for warning in warnings.iter().filter(|w| !before.contains(w)) {
            tracing::warn!(warning, "discovery_left_out");
        }
        self.warnings = warnings;
        let news = snapshot.is_some() || std::mem::take(&mut self.settings_changed);
        if news {
            tracing::info!(version = self.snapshot().version, "publishing");
        }
        news
    }

    /// Reads the files again; all or nothing. `Ok` if they are in force now: publish.
    pub fn reload(&mut self, now: Instant) -> Result<Reloaded, Vec<Problem>> {
        let result = self.try_reload(now);
        let problems = result.as_ref().err().cloned().unwrap_or_default();
        for problem in &problems {
            tracing::error!(%problem, "reload_refused: nothing was changed");
        }
        match result {
            Ok(_) => self.reloads.0 += 1,
            Err(_) => self.reloads.1 += 1,
        }
        self.reloaded = Some((now, problems));
        result
    }

    fn try_reload(&mut self, now: Instant) -> Result<Reloaded, Vec<Problem>> {
        let loader = self.loader.read_again().map_err(|Problems(list)| list)?;
        let checked = self.check(&loader)?;
        let config = &checked.config;
        let local_tls = LocalTls::read(config, super::unix_now(), Some(&self.local_tls));
        let (local_keys, local_tls) =
            Problems::join(LocalKeys::read(config), local_tls).map_err(|Problems(list)| list)?;
        let changes = change::changes(&self.config, config);
        let refused = change::boot_only(&changes);
        if !refused.is_empty() {
            return Err(refused);
        }
        if let Some(settings) = &config.gateway.discovery.registry
            && let Err(why) = registry::check_callers(&settings.callers)
        {
            return Err(vec![Problem::whole(ConfigSource::File("gateway.toml".into(), 0), why)]);
        }
        if !self.composer.has_room(config) {
            let why = "65,536 names of services were used since the start; restart";
            return Err(vec![Problem::whole(ConfigSource::Default, why)]);
        }
        for Change { key, old, new, .. } in &changes {
            tracing::info!(key, ?old, ?new, "setting_changed");
            let asked = new.as_deref().filter(|_| key.ends_with("conn.connections_max"));
            let allowed = self.connections_cap;
            if asked.and_then(|n| n.parse().ok()).is_some_and(|n: usize| n > allowed) {
                tracing::warn!(
                    key,
                    asked,
                    allowed,
                    "connections_capped: a shard takes no more than open files allow; raise the \
                     limit (`ulimit -n`, LimitNOFILE=) and start again"
                );
            }
        }
        let warnings = config.warnings.clone();
        if config.gateway.log != self.config.gateway.log
            && let Err(error) = log::set_filter(&config.gateway.log)
        {
            tracing::error!(error, "log.filter: the one before stays");
        }
        self.loader = loader;
        self.gateway = Arc::new(config.gateway.clone());
        self.take_checked(checked);
        tell_skipped(&local_keys);
        self.local_keys = local_keys;
        self.local_tls = local_tls;
        self.auth = self.local_keys.verifier(&self.config, self.fetched.as_ref());
        self.settings_changed = true;
        self.fleet.configure(&self.config.gateway.health, now);
        self.compose(now);
        Ok(Reloaded { version: self.snapshot().version, changes, warnings })
    }

    /// The operator's word: an instance gets nothing new, or does again. `None` if there is none of
    /// that name; else whether there is something to publish.
    pub fn drain(&mut self, name: &str, on: bool, now: Instant) -> Option<bool> {
        let name = self.composer.members().get_key_value(name)?.0.clone();
        tracing::warn!(instance = %name, on, "instance_drain: by the operator");
        if on {
            self.draining.insert(name);
        } else {
            self.draining.remove(&name);
        }
        Some(self.compose(now))
    }
}

/// Keys of a set in a file that are left out.
fn tell_skipped(keys: &LocalKeys) {
    for (at, why) in keys.skipped() {
        tracing::warn!(at, why, "jwks_key_left_out");
    }
}

fn tell(moved: &Moved) {
    let (event, found) = match moved {
        Moved::Came(found) => ("instance_came", found),
        Moved::Left(found) => ("instance_left", found),
        Moved::Draining(found) => ("instance_draining", found),
        Moved::Weight(found) => ("instance_weight", found),
    };
    tracing::info!(
        service = %found.service,
        instance = %found.name,
        address = %found.address,
        weight = found.weight,
        draining = found.draining,
        "{event}"
    );
}

#[cfg(test)]
mod tests;
