//! The directory of services and instances. Configuration, sources, the operator's drains and
//! health come in; one published snapshot at a time goes out.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use super::active_config::{ActiveConfig, ReloadReport, Reloads};
use super::compose::{Composer, Composition, Member, MemberChange};
use super::discovery::{News, SourceContents, SourceEvent};
use super::fleet::{Fleet, Judgement};
use super::jwks::source_of;
use super::probe;
use super::source_tables::{RefusedTables, SourceTables};
use super::sources::SourceState;
use crate::auth::KeyOwner;
use crate::auth::keys::KeySet;
use crate::config::{AwaitedTenants, Config, FoundTables, Problem, Source};
use crate::ids::{InstanceId, ShardId};
use crate::mailbox::ShardConfig;
use crate::routing::Snapshot;
use crate::stats::Signal;
use crate::tls::authorities::KeyAuthorities;
use crate::tls::load::CertificateInfo;

/// Name of the source that has tenants.
const SOURCE_OF_TENANTS: &str = "etcd";

/// Copy of the directory's state for the admin endpoint.
#[derive(Clone, Debug)]
pub struct DirectoryView {
    pub config: Arc<Config>,
    /// Snapshot that the shards were sent.
    pub snapshot: Arc<Snapshot>,
    pub members: BTreeMap<Arc<str>, Member>,
    /// Judgement of each instance.
    pub judged: HashMap<InstanceId, Judgement>,
    /// Services with too few healthy instances: all instances are used.
    pub panicking: Vec<Arc<str>>,
    pub sources: BTreeMap<Arc<str>, SourceState>,
    /// Instances that sources name and that were left out, with the reasons.
    pub warnings: Vec<String>,
    /// Routes and tenants of the sources that are not in force.
    pub refused: RefusedTables,
    /// Problems with files of keys of sources' tenants, for which the keys read before stay.
    pub keys_kept: Vec<Problem>,
    pub reloads: Reloads,
    /// Certificates that new connections are shown.
    pub certificates: Vec<CertificateInfo>,
    /// Connections that the limit of open files allows each shard to accept.
    pub connections_cap: usize,
}

/// Everything that snapshots are composed of.
pub struct Directory {
    active: ActiveConfig,
    composer: Composer,
    fleet: Fleet,
    /// Last contents of the sources, by name.
    contents: BTreeMap<Arc<str>, SourceContents>,
    sources: BTreeMap<Arc<str>, SourceState>,
    /// Names of instances that the operator drains.
    draining: BTreeSet<Arc<str>>,
    tables: SourceTables,
    warnings: Vec<String>,
    reloads: Reloads,
    /// Set by news: the end of the debounce, when news are composed with all that came since.
    due: Option<Instant>,
    /// Settings changed: they are published even if the snapshot stays the same.
    settings_changed: bool,
    /// Tenants of sources changed, and with them the sets of keys that are fetched.
    tenants_changed: bool,
}

impl Directory {
    /// A directory with the state that the shards were started with.
    pub fn new(active: ActiveConfig, composer: Composer, mut fleet: Fleet, now: Instant) -> Self {
        fleet.follow(composer.members(), now);
        Self {
            active,
            composer,
            fleet,
            contents: BTreeMap::new(),
            sources: BTreeMap::new(),
            draining: BTreeSet::new(),
            tables: SourceTables::default(),
            warnings: Vec::new(),
            reloads: Reloads::default(),
            due: None,
            settings_changed: false,
            tenants_changed: false,
        }
    }

    pub fn config(&self) -> &Arc<Config> {
        self.active.config()
    }

    pub fn snapshot(&self) -> &Arc<Snapshot> {
        self.composer.snapshot()
    }

    /// State that a shard is to work by.
    pub fn published(&self, shard: ShardId) -> ShardConfig {
        self.active.for_shard(shard, self.snapshot().clone())
    }

    /// The authorities that servers of keys are signed by.
    pub fn authorities(&self) -> &KeyAuthorities {
        self.active.authorities()
    }

    /// Certificates that new connections are shown.
    pub fn certificates(&self) -> &[CertificateInfo] {
        self.active.certificates()
    }

    /// Copy for the admin endpoint.
    pub fn view(&self) -> DirectoryView {
        DirectoryView {
            config: self.config().clone(),
            snapshot: self.snapshot().clone(),
            members: self.composer.members().clone(),
            judged: self.fleet.judged(),
            panicking: self.fleet.panicking(),
            sources: self.sources.clone(),
            warnings: self.warnings.clone(),
            refused: self.tables.refused().clone(),
            keys_kept: self.active.keys_kept().cloned().collect(),
            reloads: self.reloads.clone(),
            certificates: self.certificates().to_vec(),
            connections_cap: self.active.connections_cap(),
        }
    }

    /// Notes sources that are in use, so that `/health` shows those that have not answered yet.
    pub fn expect_sources(&mut self, names: Vec<Arc<str>>) {
        for name in names {
            self.sources.entry(name).or_default();
        }
    }

    /// Takes in an event of a source.
    pub fn take_news(&mut self, news: News, now: Instant) {
        let News { source, event } = news;
        let state = self.sources.entry(source.clone()).or_default();
        match event {
            SourceEvent::Contents { contents, by } => {
                state.stale = None;
                state.answered = true;
                state.instances = contents.instances.len();
                state.routes = contents.routes.len();
                state.tenants = contents.tenants.len();
                let before = self.contents.insert(source.clone(), contents);
                if before.as_ref() != self.contents.get(&source) {
                    let SourceState { instances, routes, tenants, .. } = *state;
                    tracing::info!(
                        %source,
                        %by,
                        instances,
                        routes,
                        tenants,
                        "discovery_news: the source names other instances, routes or tenants"
                    );
                    let debounce = self.active.config().gateway.discovery.debounce;
                    self.due.get_or_insert(now + debounce);
                }
            }
            SourceEvent::Stale { why } => {
                tracing::warn!(
                    %source,
                    why,
                    "discovery_stale: the source does not answer, so its last instances are kept; \
                     check that it runs and can be reached"
                );
                state.set_stale(why, now);
            }
            SourceEvent::Fresh => {
                tracing::info!(%source, "discovery_fresh: the source answers again");
                state.stale = None;
            }
            SourceEvent::Note { why } => tracing::info!(
                %source,
                why,
                "discovery_note: a part of the source does not answer, and no instance in use is \
                 missing by what is known"
            ),
            SourceEvent::Bad { at, why } => {
                tracing::warn!(
                    %source,
                    at,
                    why,
                    "discovery_bad_value: a value of the source is left out; correct it there"
                );
                state.add_bad(at, why);
            }
        }
    }

    /// Takes in the result of a fetch of an owner's JWK set. Whether there is something to publish.
    pub fn take_jwks(
        &mut self,
        owner: &KeyOwner,
        result: Result<KeySet, String>,
        now: Instant,
    ) -> bool {
        let state = self.sources.entry(source_of(owner)).or_default();
        let (keys, config) = self.active.keys();
        keys.take_fetched(owner, result, state, config, now)
    }

    /// Stops trusting the fetched JWK set of an owner, because none is configured any more, or
    /// another one.
    pub fn forget_jwks(&mut self, owner: &KeyOwner) {
        self.sources.remove(&source_of(owner));
        let (keys, config) = self.active.keys();
        keys.forget_fetched(owner, config);
    }

    /// Forgets a source that is not configured any more.
    pub fn forget_source(&mut self, source: &str, now: Instant) {
        self.sources.remove(source);
        if self.contents.remove(source).is_some() {
            self.due.get_or_insert(now);
        }
    }

    /// Whether all these sources have answered or could not be reached, and their contents are
    /// published.
    pub fn have_answered(&self, names: &[Arc<str>]) -> bool {
        let answered = |name| {
            let state: Option<&SourceState> = self.sources.get(name);
            state.is_some_and(|s| s.answered || s.stale.is_some())
        };
        self.due.is_none() && names.iter().all(answered)
    }

    /// Takes in results of calls that a shard made to instances.
    pub fn take_signals(&mut self, shard: ShardId, signals: &[Signal], now: Instant) {
        self.fleet.take_signals(shard, signals, now);
    }

    /// Takes in the result of a health check.
    pub fn take_check(&mut self, result: probe::CheckResult, now: Instant) {
        self.fleet.take_check(result, now);
    }

    /// Time of the next [`Self::turn`].
    pub fn due(&self) -> Option<Instant> {
        [self.due, self.fleet.due()].into_iter().flatten().min()
    }

    /// Composes news and judges health, if their time has come. Whether there is something to
    /// publish.
    pub fn turn(&mut self, now: Instant) -> bool {
        let news = self.due.is_some_and(|due| due <= now);
        if news {
            self.due = None;
            self.take_tables();
        }
        let judged = self.fleet.due().is_some_and(|due| due <= now) && self.fleet.judge(now);
        (news || judged) && self.compose(now)
    }

    /// Puts routes and tenants of the sources in force after the same checks as those of the files.
    /// If anything is wrong with the routes, those in force stay, and so it is with tenants.
    fn take_tables(&mut self) {
        let contents = self.contents.values();
        let of_tenants = self.contents.get(SOURCE_OF_TENANTS);
        let found = FoundTables {
            routes: contents.clone().flat_map(|c| c.routes.iter().cloned()).collect(),
            tenants: contents.flat_map(|c| c.tenants.iter().cloned()).collect(),
            awaited: of_tenants.map_or(AwaitedTenants::Any, |c| c.awaited.clone()),
        };
        if self.tables.set_found(found)
            && let Some(checked) = self.active.check(&self.tables)
        {
            // Keys of tokens are published with settings, and are no part of the snapshot.
            let tenants_changed = self.active.take_checked(checked, &mut self.tables);
            self.settings_changed |= tenants_changed;
            self.tenants_changed |= tenants_changed;
        }
    }

    /// Whether sources announced other tenants since this was last asked.
    pub fn take_tenants_changed(&mut self) -> bool {
        std::mem::take(&mut self.tenants_changed)
    }

    /// Composes the snapshot anew. Whether there is something to publish.
    fn compose(&mut self, now: Instant) -> bool {
        let Self { composer, active, contents, draining, fleet, .. } = self;
        let config = active.config();
        let mut composition = composer.compose(config, contents, draining, |id| fleet.share(id));
        fleet.follow(composer.members(), now);
        // Instances that came or left may change the shares of the others.
        if !composition.changes.is_empty() && fleet.judge(now) {
            let again = composer.compose(config, contents, draining, |id| fleet.share(id));
            composition.snapshot = again.snapshot.or(composition.snapshot);
        }
        let Composition { snapshot, changes, warnings } = composition;
        changes.iter().for_each(log_change);
        let before: HashSet<&String> = self.warnings.iter().collect();
        for warning in warnings.iter().filter(|w| !before.contains(w)) {
            tracing::warn!(warning, "discovery_left_out: an instance of a source is not used");
        }
        self.warnings = warnings;
        let news = snapshot.is_some() || std::mem::take(&mut self.settings_changed);
        if news {
            let version = self.snapshot().version;
            tracing::info!(version, "publishing: every shard gets this version");
        }
        news
    }

    /// Reads the files again; all or nothing. `Ok` if they are in force now and to be published.
    pub fn reload(&mut self, now: Instant) -> Result<ReloadReport, Vec<Problem>> {
        let result = self.try_reload(now);
        self.reloads.note(&result, now);
        result
    }

    fn try_reload(&mut self, now: Instant) -> Result<ReloadReport, Vec<Problem>> {
        let new = self.active.read_again(&self.tables)?;
        if !self.composer.has_room(new.config()) {
            let why = "65,536 names of services were used since the start; restart";
            return Err(vec![Problem::whole(Source::Default, why)]);
        }
        let mut warnings = new.config().warnings.clone();
        let changes = self.active.replace(new, &mut self.tables);
        warnings.extend(self.active.keys_kept().cloned());
        self.settings_changed = true;
        let health = &self.active.config().gateway.health;
        self.fleet.configure(health, self.active.service_tls(), now);
        self.compose(now);
        Ok(ReloadReport { version: self.snapshot().version, changes, warnings })
    }

    /// Drains an instance for the operator, or ends that. `None` if no instance has that name; else
    /// whether there is something to publish.
    pub fn drain(&mut self, name: &str, on: bool, now: Instant) -> Option<bool> {
        let name = self.composer.members().get_key_value(name)?.0.clone();
        tracing::warn!(
            instance = %name,
            draining = on,
            "instance_drain: an operator began or ended the drain of this instance"
        );
        if on {
            self.draining.insert(name);
        } else {
            self.draining.remove(&name);
        }
        Some(self.compose(now))
    }
}

fn log_change(change: &MemberChange) {
    macro_rules! info {
        ($found:expr, $text:literal) => {
            tracing::info!(
                service = %$found.service,
                instance = %$found.name,
                address = %$found.addresses,
                weight = $found.weight,
                draining = $found.draining,
                $text
            )
        };
    }
    match change {
        MemberChange::Came(found) => info!(found, "instance_came: the service has this instance"),
        MemberChange::Left(found) => info!(found, "instance_left: no source names this instance"),
        MemberChange::Draining(found) => {
            info!(found, "instance_draining: the drain of this instance began or ended");
        }
        MemberChange::Weight(found) => info!(found, "instance_weight: its weight changed"),
    }
}

#[cfg(test)]
mod tests;
