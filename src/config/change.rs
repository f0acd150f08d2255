//! Differences between two configurations: the keys that differ, and those among them that cannot
//! change while the process runs.

use std::collections::{BTreeMap, BTreeSet};

use super::settings::{AuthKey, PushCaller, TenantSettings};
use super::{Config, Problem, Source};

/// Keys that are read at the start only. All others are live; the comments above the keys in the
/// files say the same (a test holds them together).
pub(crate) const BOOT_KEYS: [&str; 43] = [
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
    "shards.steer_by_cpu",
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
    "push.listen",
    "push.tls_cert",
    "push.tls_key",
    "push.dedup_entries_max",
    "groups.names_max",
    "groups.members_max",
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

/// Tables of lists, each with the key that names its elements: a route is its range, wherever in
/// the file it stands.
const NAMED_BY: [(&str, &str); 9] = [
    ("route", "range"),
    ("service", "name"),
    ("tenant", "name"),
    ("instances", "id"),
    ("auth_key", "id"),
    ("registry_token", "name"),
    ("push_caller", "name"),
    ("group", "name"),
    ("tls_certificate", "chain_file"),
];

/// A key whose value differs, or a table of a list that is new or gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// The key; for one shard `N/section.key`, in a table of a list `route[1000-1999].timeout_ms`;
    /// the table as a whole is `route[1000-1999]`.
    pub(crate) key: String,
    /// The old value as TOML; `None` = the table was not there.
    pub(crate) old: Option<String>,
    /// The new value as TOML; `None` = the table is gone.
    pub(crate) new: Option<String>,
    /// Source of the new value.
    pub(crate) source: Source,
}

impl Change {
    /// Whether the change takes a restart.
    pub(crate) fn is_boot(&self) -> bool {
        is_boot(section_key(&self.key))
    }

    /// Whether it is a change of a tenant.
    pub(crate) fn is_of_tenants(&self) -> bool {
        self.key.starts_with("tenant[")
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
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let mut changes: Vec<Change> = Vec::new();
    for key in keys {
        if let Some(table) = table_of_one(key, &before, &after) {
            // The table's first key stands for all of them.
            if !changes.iter().any(|change| change.key == table) {
                changes.push(whole_table(table, &before, &after));
            }
            continue;
        }
        // A key that a shard's own file does not set has the value of default.toml.
        let of =
            |values: &Values| values.get(key).or_else(|| values.get(section_key(key))).cloned();
        let (old, new) = (of(&before), of(&after));
        let value = |side: &Option<(String, Source)>| side.as_ref().map(|(value, _)| value.clone());
        if value(&old) != value(&new) {
            let source = new.as_ref().or(old.as_ref()).map_or(Source::Default, |(_, s)| s.clone());
            let (old, new) = (value(&old), value(&new));
            changes.push(Change { key: key.to_owned(), old, new, source });
        }
    }
    for key in changed_secrets(old, new) {
        // A table whose other keys have changed, too, has its line.
        let list = key.rsplit_once('.').map(|(list, _)| list);
        let lists = ["auth_key", "registry_token", "push_caller"];
        let list = list.filter(|list| lists.iter().any(|known| list.ends_with(known)));
        let is_told = |change: &Change| match list {
            Some(list) => change.key.starts_with(list),
            None => change.key == key,
        };
        if !changes.iter().any(is_told) {
            let shown = Some("\"<redacted>\"".to_owned());
            let (old, new) = (shown.clone(), shown);
            changes.push(Change { key, old, new, source: Source::Default });
        }
    }
    changes
}

/// Values and their sources, by key. Tables of lists have their names in the place of their
/// numbers.
type Values = BTreeMap<String, (String, Source)>;

/// The outermost table of a list that has `key` and that only one side has.
fn table_of_one<'a>(key: &'a str, before: &Values, after: &Values) -> Option<&'a str> {
    let has = |values: &Values, table: &str| {
        let next = values.range(table.to_owned()..).next();
        next.is_some_and(|(key, _)| key.starts_with(table))
    };
    let ends = key.match_indices("].").map(|(at, _)| &key[..=at]);
    ends.into_iter().find(|table| has(before, table) != has(after, table))
}

/// The change of a table that only one side has: the keys that a source set, as an inline table.
fn whole_table(table: &str, before: &Values, after: &Values) -> Change {
    let inline = |values: &Values| {
        let own = values.iter().filter_map(|(key, (value, source))| {
            let name = key.strip_prefix(table)?.strip_prefix('.')?;
            (*source != Source::Default && !name.contains('[')).then_some((name, value, source))
        });
        let own: Vec<_> = own.collect();
        let source = own.first().map(|(_, _, source)| (*source).clone())?;
        let keys: Vec<String> =
            own.iter().map(|(name, value, _)| format!("{name} = {value}")).collect();
        Some((format!("{{ {} }}", keys.join(", ")), source))
    };
    let (old, new) = (inline(before), inline(after));
    let source = new.as_ref().or(old.as_ref()).map_or(Source::Default, |(_, s)| s.clone());
    let text = |side: Option<(String, Source)>| side.map(|(text, _)| text);
    Change { key: table.to_owned(), old: text(old), new: text(new), source }
}

/// Keys of secrets that differ; their values are shown nowhere.
fn changed_secrets(old: &Config, new: &Config) -> Vec<String> {
    let password = |config: &Config| {
        config.gateway.discovery.etcd.as_ref().and_then(|etcd| etcd.password.clone())
    };
    let callers = |config: &Config| {
        config.gateway.discovery.registry.as_ref().map(|registry| registry.callers.clone())
    };
    let tokens = |config: &Config| {
        let token = |caller: &PushCaller| (caller.name.clone(), caller.token.clone());
        config.gateway.push.callers.iter().map(token).collect::<Vec<_>>()
    };
    let of_process = [
        ("admin.token", old.gateway.admin.token != new.gateway.admin.token),
        ("etcd.password", password(old) != password(new)),
        ("auth_key.secret", old.gateway.auth.keys != new.gateway.auth.keys),
        ("registry_token.token", callers(old) != callers(new)),
        ("push_caller.token", tokens(old) != tokens(new)),
    ];
    let of_process = of_process.into_iter().filter(|(_, differ)| *differ);
    let before: BTreeMap<&str, &TenantSettings> =
        old.tenants.iter().map(|tenant| (&*tenant.name, tenant)).collect();
    // Of a tenant that comes or goes the table is told as a whole.
    let of_tenants = new.tenants.iter().filter(|tenant| {
        let before = before.get(&*tenant.name);
        before.is_some_and(|before| own_keys(before) != own_keys(tenant))
    });
    let of_tenants = of_tenants.map(|tenant| format!("tenant[{}].auth_key.secret", tenant.name));
    of_process.map(|(key, _)| key.to_owned()).chain(of_tenants).collect()
}

fn own_keys(tenant: &TenantSettings) -> &[AuthKey] {
    tenant.tokens.as_ref().map_or(&[], |tokens| &tokens.keys)
}

fn values(config: &Config) -> Values {
    let names = names(config);
    let list = config.provenance.iter();
    let mut values = Values::new();
    for (key, value, source) in list {
        values.insert(named(key, &names), (value.clone(), source.clone()));
    }
    values
}

/// Names of the tables of lists, by their places: `route[0]` is `1000-1999`.
fn names(config: &Config) -> BTreeMap<&str, String> {
    let mut names = BTreeMap::new();
    for (key, value, _) in &config.provenance {
        let Some((table, last)) = key.rsplit_once('.') else { continue };
        let Some((path, _)) = table.rsplit_once('[') else { continue };
        let list = path.rsplit('.').next().unwrap_or(path);
        if NAMED_BY.contains(&(list, last)) {
            let name = value.trim_matches(['"', '[', ']', ' ']).replace(", ", "-");
            names.insert(table, name);
        }
    }
    names
}

/// `key` with the names of its tables in the place of their numbers.
fn named(key: &str, names: &BTreeMap<&str, String>) -> String {
    let (mut out, mut from) = (String::new(), 0);
    for (at, _) in key.match_indices("].") {
        let Some(name) = names.get(&key[..=at]) else { continue };
        let Some(open) = key[..at].rfind('[') else { continue };
        out += &format!("{}[{name}]", &key[from..open]);
        from = at + 1;
    }
    out + &key[from..]
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
    fn a_route_is_its_range_and_a_service_its_name_wherever_they_stand() {
        let service = |name: &str, port: u16| {
            format!(
                "[[service]]\nname = \"{name}\"\n\
                 instances = [{{ id = \"{name}-1\", address = \"127.0.0.1:{port}\" }}]\n"
            )
        };
        let route = |first: u32, name: &str, more: &str| {
            let last = first + 99;
            format!("[[route]]\nrange = [{first}, {last}]\nservice = \"{name}\"\n{more}\n")
        };
        let old = [service("a", 1), service("b", 2), route(1000, "a", ""), route(2000, "b", "")];
        let new = [
            service("c", 3),
            service("a", 1),
            route(500, "c", "timeout_ms = 700"),
            route(1000, "a", "timeout_ms = 900"),
        ];
        let (old, new) = (of(&old.concat(), ""), of(&new.concat(), ""));
        let told = changes(&old, &new).into_iter();
        let told: Vec<_> = told.map(|c| (c.key, c.old, c.new)).collect();
        let some = |text: &str| Some(text.to_owned());
        let expected = [
            ("route[1000-1099].timeout_ms", some("5000"), some("900")),
            ("route[2000-2099]", some("{ range = [2000, 2099], service = \"b\" }"), None),
            (
                "route[500-599]",
                None,
                some("{ range = [500, 599], service = \"c\", timeout_ms = 700 }"),
            ),
            ("service[b]", some("{ name = \"b\" }"), None),
            ("service[c]", None, some("{ name = \"c\" }")),
        ];
        assert_eq!(told, expected.map(|(key, old, new)| (key.to_owned(), old, new)));
    }

    #[test]
    fn a_key_that_is_rotated_is_named_although_nothing_else_differs() {
        let of = |secret: &str| {
            let key = "[[auth_key]]\nid = \"k\"\nalgorithm = \"HS256\"";
            of(&format!("auth.mode = \"jwt\"\n{key}\nsecret = \"{secret}\""), "")
        };
        let [old, new] = ["A", "B"].map(|letter| of(&letter.repeat(44)));
        let changes = changes(&old, &new);
        let keys: Vec<_> = changes.iter().map(|c| (c.key.as_str(), c.is_boot())).collect();
        assert_eq!(keys, [("auth_key.secret", false)]);
    }

    #[test]
    fn a_tenant_is_its_name_and_what_changes_in_it_is_named_by_that() {
        let base = "auth.mode = \"jwt\"\nauth.tenants = \"many\"\nauth.jwks_file = \"a\"\n\
                    [[service]]\nname = \"a\"\n\
                    instances = [{ id = \"a-1\", address = \"127.0.0.1:1\" }]\n";
        let key = |letter: &str| {
            let secret = letter.repeat(44);
            format!(
                "[[tenant.auth_key]]\nid = \"k\"\nalgorithm = \"HS256\"\nsecret = \"{secret}\"\n"
            )
        };
        let route = |ms: u32| {
            format!("[[tenant.route]]\nrange = [1, 2]\nservice = \"a\"\ntimeout_ms = {ms}\n")
        };
        let old = format!(
            "{base}[[tenant]]\nname = \"gone\"\n{}[[tenant]]\nname = \"acme\"\n{}{}\
             [[tenant]]\nname = \"b\"\n{}",
            key("A"),
            key("A"),
            route(100),
            key("A")
        );
        let new = format!(
            "{base}[[tenant]]\nname = \"b\"\n{}[[tenant]]\nname = \"acme\"\nweight = 4\n{}{}\
             [[tenant]]\nname = \"new\"\nweight = 2\n{}",
            key("A"),
            key("B"),
            route(200),
            key("B")
        );
        let found = changes(&of(&old, ""), &of(&new, ""));
        let told: Vec<_> =
            found.iter().map(|c| (c.key.as_str(), c.old.as_deref(), c.new.as_deref())).collect();
        let redacted = Some("\"<redacted>\"");
        let expected = [
            ("tenant[acme].route[1-2].timeout_ms", Some("100"), Some("200")),
            ("tenant[acme].weight", Some("1"), Some("4")),
            ("tenant[gone]", Some("{ name = \"gone\" }"), None),
            ("tenant[new]", None, Some("{ name = \"new\", weight = 2 }")),
            ("tenant[acme].auth_key.secret", redacted, redacted),
        ];
        assert_eq!(told, expected);
        assert!(found.iter().all(|change| change.is_of_tenants() && !change.is_boot()));
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
