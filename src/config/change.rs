//! Differences between two configurations: the keys that differ, and those among them that cannot
//! change while the process runs.

use std::collections::BTreeMap;

use super::{Config, Problem, Source};

/// Keys that are read at the start only. All others are live; the comments above the keys in the
/// files say the same (a test holds them together).
pub(crate) const BOOT_KEYS: [&str; 36] = [
    "listen",
    "tls.listen",
    "path",
    "node",
    "admin.listen",
    "admin.token",
    "admin.token_file",
    "admin.tls_cert",
    "admin.tls_key",
    "admin.probes",
    "admin.probes_metrics",
    "shards.count",
    "demo.enabled",
    "demo.addresses",
    "demo.tls_cert",
    "demo.tls_key",
    "log.json",
    "dns.servers",
    "etcd.endpoints",
    "etcd.prefix",
    "etcd.user",
    "etcd.password",
    "etcd.password_file",
    "etcd.ca_file",
    "etcd.cert_file",
    "etcd.key_file",
    "registry.listen",
    "registry.tls_cert",
    "registry.tls_key",
    "auth.tenants",
    "shard.core",
    "shard.spin_us",
    "shard.preempt_us",
    "shard.ring_depth",
    "dedup.entries_max",
    "cache.entries_max",
];

/// Whether `key`, without a shard's number, is read at the start only.
pub fn is_boot(key: &str) -> bool {
    BOOT_KEYS.contains(&key)
}

/// A key whose value differs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// The key; for one shard `N/section.key`.
    pub(crate) key: String,
    /// The old value as TOML; `None` = the key was not there (a table of a list).
    pub(crate) old: Option<String>,
    /// The new value as TOML; `None` = the key is gone.
    pub(crate) new: Option<String>,
    /// Source of the new value.
    pub(crate) source: Source,
}

impl Change {
    /// Whether the change takes a restart.
    pub(crate) fn is_boot(&self) -> bool {
        is_boot(section_key(&self.key))
    }
}

/// The key without the shard's number.
fn section_key(key: &str) -> &str {
    match key.split_once('/') {
        Some((number, rest)) if number.bytes().all(|b| b.is_ascii_digit()) => rest,
        Some(_) | None => key,
    }
}

/// Every key whose value differs, in the order of keys. A changed secret is reported without its
/// values.
pub(crate) fn changes(old: &Config, new: &Config) -> Vec<Change> {
    let (before, after) = (values(old), values(new));
    let keys: std::collections::BTreeSet<&str> =
        before.keys().chain(after.keys()).copied().collect();
    let mut changes = Vec::new();
    for key in keys {
        // A key that a shard's own file does not set has the value of default.toml.
        let of = |values: &BTreeMap<&str, (String, Source)>| {
            values.get(key).or_else(|| values.get(section_key(key))).cloned()
        };
        let (old, new) = (of(&before), of(&after));
        let value = |side: &Option<(String, Source)>| side.as_ref().map(|(value, _)| value.clone());
        if value(&old) != value(&new) {
            let source = new.as_ref().or(old.as_ref()).map_or(Source::Default, |(_, s)| s.clone());
            let (old, new) = (value(&old), value(&new));
            changes.push(Change { key: key.to_owned(), old, new, source });
        }
    }
    for (key, differ) in secrets(old, new) {
        if differ && !changes.iter().any(|change| change.key == key) {
            let shown = Some("\"<redacted>\"".to_owned());
            let (old, new) = (shown.clone(), shown);
            changes.push(Change { key: key.to_owned(), old, new, source: Source::Default });
        }
    }
    changes
}

/// Secrets that are read at the start only, and whether they differ.
fn secrets(old: &Config, new: &Config) -> [(&'static str, bool); 2] {
    let password = |config: &Config| {
        config.gateway.discovery.etcd.as_ref().and_then(|etcd| etcd.password.clone())
    };
    [
        ("admin.token", old.gateway.admin.token != new.gateway.admin.token),
        ("etcd.password", password(old) != password(new)),
    ]
}

fn values(config: &Config) -> BTreeMap<&str, (String, Source)> {
    let list = config.provenance.iter();
    list.map(|(key, value, source)| (key.as_str(), (value.clone(), source.clone()))).collect()
}

/// Makes a problem of each key that differs and takes a restart.
pub(crate) fn boot_only(changes: &[Change]) -> Vec<Problem> {
    let is_boot = changes.iter().filter(|change| change.is_boot());
    let problem = |change: &Change| Problem {
        source: change.source.clone(),
        key: change.key.clone(),
        value: change.new.clone().unwrap_or_default(),
        rule: format!(
            "is read at the start only, where it was {}; restart for it, or change it back",
            change.old.as_deref().unwrap_or("not set")
        ),
    };
    is_boot.map(problem).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;
    use crate::config::load::{DEFAULT_TOML, Files, GATEWAY_TOML, from_files};

    fn of(gateway: &str, default: &str) -> Config {
        let mut files = Files::embedded();
        files.gateway.text = gateway.into();
        files.default.text = default.into();
        from_files(files, &[], &Overrides::default()).expect("right")
    }

    #[test]
    fn the_boot_keys_are_those_that_the_files_call_so() {
        let mut said = Vec::new();
        for text in [GATEWAY_TOML, DEFAULT_TOML] {
            let (mut section, mut comment) = (String::new(), String::new());
            for line in text.lines().take_while(|line| !line.starts_with("[[")) {
                if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                    section = format!("{name}.");
                } else if line.starts_with('#') {
                    comment = line.to_owned();
                } else if let Some((key, _)) = line.split_once(" = ")
                    && (comment.ends_with(" boot") || comment == "# boot")
                {
                    said.push(format!("{section}{key}"));
                }
            }
        }
        said.sort();
        let mut keys = BOOT_KEYS.to_vec();
        keys.sort();
        assert_eq!(keys, said);
    }

    #[test]
    fn what_differs_is_named_and_boot_only_keys_are_refused() {
        let old = of("listen = \"127.0.0.1:1\"", "queue.items_max = 5000");
        let new = of("listen = \"127.0.0.1:2\"", "queue.items_max = 6000");
        let found = changes(&old, &new);
        let keys: Vec<_> = found.iter().map(|c| (c.key.as_str(), c.is_boot())).collect();
        assert_eq!(keys, [("listen", true), ("queue.items_max", false)]);
        let problems = boot_only(&found);
        assert_eq!(problems.len(), 1);
        let line = problems[0].to_string();
        assert!(line.starts_with("built-in gateway.toml:1: listen = \"127.0.0.1:2\": is read at"));
        assert!(changes(&old, &old).is_empty());
    }

    #[test]
    fn a_secret_that_is_another_one_is_named_and_not_shown() {
        let of = |token| of(&format!("admin.token = \"{token}\""), "");
        let changes = changes(&of("0123456789abcdef"), &of("fedcba9876543210"));
        assert_eq!(changes.len(), 1);
        assert!(changes[0].key == "admin.token" && changes[0].is_boot());
        assert!(
            !format!("{changes:?}").contains("0123") && !format!("{changes:?}").contains("3210")
        );
    }
}
