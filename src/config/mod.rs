//! Configuration: files, environment and flags -> checked settings and the first snapshot, or every
//! problem at once. Pure but for the functions in [`mod@load`] and [`auth`] that read files.
mod admin;
pub mod auth;
pub mod change;
mod check;
pub mod command;
mod discovery;
mod environment;
mod events;
pub(crate) mod files;
mod groups;
mod health;
mod hint;
pub(crate) mod host;
pub mod key_files;
mod limits;
mod listen;
pub mod load;
pub(crate) mod log_filter;
mod lookup;
mod nearest;
pub mod problem;
mod push;
mod raw;
mod reader;
mod route;
mod routes;
pub mod rule;
mod service_tls;
mod session;
pub mod settings;
mod tables;
mod tenants;
#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use listen::{collide, reachable};
pub use load::{Loader, Overrides, load};
pub use lookup::{Family, Lookup, LookupName};
pub use problem::{Problem, Problems, Source};
pub use tables::{AwaitedTenants, FoundTable, FoundTables};
pub use words::{
    NAME_RULE, STATIC_TOKEN_BYTES_MAX, TOKEN_RULE, is_name, is_token, key_of_variable, program,
    shell_word,
};

use crate::routing::Snapshot;
use rule::Key;
use settings::{GatewaySettings, ServiceTlsSettings, ShardSettings, TenantSettings};

/// A configuration that passed every check.
#[derive(Clone, Debug)]
pub struct Config {
    /// Settings of the process.
    pub gateway: GatewaySettings,
    /// Settings of the shards.
    pub shards: ShardFiles,
    /// Services and routes, as version 1. Instance ids are dense, in the order of the file.
    pub snapshot: Snapshot,
    /// DNS names whose addresses are instances.
    pub lookups: Vec<Lookup>,
    /// TLS towards services, by their names. Services that are not in it are spoken to without.
    pub service_tls: BTreeMap<Arc<str>, ServiceTlsSettings>,
    /// Tenants, by name; their routes are in the snapshot.
    pub tenants: Vec<TenantSettings>,
    /// Tenants that sources may have besides these.
    pub awaited: AwaitedTenants,
    /// Points on the ring for each unit of weight.
    pub ring_points: u32,
    /// Warnings: they do not stop a start.
    pub warnings: Vec<Problem>,
    /// The source of each value.
    pub provenance: Vec<Provenance>,
    /// Every key that was read, without the numbers of tables: `route.timeout_ms`. Keys of tables
    /// are there if a list has a table.
    pub keys: BTreeMap<String, Key>,
}

impl Config {
    /// A problem with the value of `key`, at the source that set it.
    pub(crate) fn problem(&self, key: String, value: String, rule: String) -> Problem {
        let found = self.provenance.iter().find(|(known, ..)| *known == key);
        let source = found.map_or(Source::Default, |(_, _, source)| source.clone());
        Problem { source, key, value, rule }
    }

    /// The table of a tenant, as problems name it: `tenant[2]`.
    pub(crate) fn place_of_tenant(&self, name: &str) -> String {
        let found = self.named_tenant(name);
        found.map_or_else(|| format!("tenant[{name}]"), |(place, _)| place.to_owned())
    }

    /// Whether a discovery source announced the tenant.
    pub(crate) fn is_of_source(&self, tenant: &str) -> bool {
        matches!(self.named_tenant(tenant), Some((_, Source::Found(_))))
    }

    fn named_tenant(&self, name: &str) -> Option<(&str, &Source)> {
        let shown = format!("{name:?}");
        self.provenance.iter().find_map(|(key, value, source)| {
            let place = key.strip_suffix(".name").filter(|place| place.starts_with("tenant["))?;
            (*value == shown).then_some((place, source))
        })
    }
}

/// A key, its value as TOML, and the source of the value. A key that `shards/N.toml` sets is
/// written `N/section.key`.
pub type Provenance = (String, String, Source);

/// `default.toml` and the files over it.
#[derive(Clone, Debug, Default)]
pub struct ShardFiles {
    /// Settings of a shard without a file of its own.
    pub default: ShardSettings,
    /// `N.toml` over `default.toml`, by N.
    pub overrides: BTreeMap<usize, ShardSettings>,
    /// `--core`: the core of shard 0, 1, …; empty if not given.
    pub cores: Vec<usize>,
}

impl ShardFiles {
    /// Settings of shard `n`.
    pub fn shard(&self, n: usize) -> ShardSettings {
        let mut settings = self.overrides.get(&n).unwrap_or(&self.default).clone();
        if let Some(&core) = self.cores.get(n) {
            settings.core = Some(core);
        }
        settings
    }

    /// Files for shards that do not exist when there are `count`, by number.
    pub fn unused(&self, count: usize) -> impl Iterator<Item = usize> + '_ {
        self.overrides.range(count..).map(|(&n, _)| n)
    }
}
