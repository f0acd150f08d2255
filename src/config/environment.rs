//! Environment variables: those that set keys, and those that look like it and do nothing.

use super::check;
use super::nearest::nearest;
use super::problem::{Problem, Source};
use super::raw;
use super::reader::Entry;
use super::words::{self, key_of_variable};

/// Variable that names the directory of the configuration.
pub(super) const DIRECTORY: &str = "SHARDGATE_CONFIG";

/// Entries of the environment, for `gateway.toml` and for `default.toml`.
pub(super) fn entries(env: &[(String, String)]) -> (Vec<Entry>, Vec<Entry>) {
    let entry = |(name, text): &(String, String)| {
        let key = key_of_variable(name)?;
        let source = Source::Env(name.as_str().into());
        Some(Entry { key, value: raw::value(text), source, verbatim: Some(text.clone()) })
    };
    let of_shard = |e: &Entry| {
        let section = e.key.split('.').next().unwrap_or_default();
        check::SHARD_SECTIONS.contains(&section)
    };
    let (shard, gateway) = env.iter().filter_map(entry).partition(of_shard);
    (gateway, shard)
}

/// Warnings of variables that nothing reads, with the nearest that is read. `keys` are all keys.
pub(super) fn unread(env: &[(String, String)], keys: &[&'static str]) -> Vec<Problem> {
    let is_read = |name: &str| name == DIRECTORY || key_of_variable(name).is_some();
    let unread = env.iter().filter(|(name, value)| !is_read(name) && !is_of_service(name, value));
    let warning = |(name, _): &(String, String)| {
        let rule = match meant(name, keys) {
            Some(near) => format!("nothing reads this variable; did you mean {near}?"),
            None => format!(
                "nothing reads this variable: one that sets a key is {}, with two underscores \
                 before section and key; unset it",
                words::variable("section.key")
            ),
        };
        Problem::whole(Source::Env(name.as_str().into()), rule)
    };
    unread.map(warning).collect()
}

/// The variable that is most like `name`: a key with one underscore for two, or in small letters.
fn meant(name: &str, keys: &[&'static str]) -> Option<String> {
    let flat = |text: &str| text.to_lowercase().replace(['.', '-'], "_").replace("__", "_");
    let word = flat(name);
    let word = word.strip_prefix("shardgate").unwrap_or(&word).trim_start_matches('_');
    let own: Vec<(String, String)> = keys
        .iter()
        .map(|key| (flat(key), words::variable(key)))
        .chain([("config".to_owned(), DIRECTORY.to_owned())])
        .collect();
    let near = nearest(word, own.iter().map(|(flat, _)| flat.as_str()))?;
    own.iter().find(|(flat, _)| flat == near).map(|(_, variable)| variable.clone())
}

/// Whether Kubernetes sets this variable in every container of a namespace that has a Service
/// `shardgate` or `shardgate-…`: the Service's address and ports, also as Docker's links had them.
fn is_of_service(name: &str, value: &str) -> bool {
    let is_link = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    if name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT") {
        return true;
    }
    let Some((_, port)) = name.rsplit_once("_PORT_") else {
        // SHARDGATE_PORT=tcp://10.0.0.1:8080; one with a number is somebody's wish for a port.
        return name.ends_with("_PORT") && (is_link || is_of_port(name));
    };
    let number = port.split('_').next().unwrap_or_default();
    let rest = &port[number.len()..];
    !number.is_empty()
        && number.bytes().all(|b| b.is_ascii_digit())
        && ["_TCP", "_UDP", "_SCTP"].iter().any(|protocol| rest.starts_with(protocol))
}

/// Whether `name` is `…_PORT_8080_TCP_PORT`.
fn is_of_port(name: &str) -> bool {
    let name = name.strip_suffix("_PORT").unwrap_or(name);
    ["_TCP", "_UDP", "_SCTP"].iter().any(|protocol| name.ends_with(protocol))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&str; 4] = ["listen", "queue.items_max", "log.filter", "admin.listen"];

    fn told(name: &str, value: &str) -> Option<String> {
        let env = [(name.to_owned(), value.to_owned())];
        unread(&env, &KEYS).pop().map(|problem| problem.to_string())
    }

    #[test]
    fn a_variable_that_nothing_reads_is_told_with_the_nearest() {
        for (name, near) in [
            ("SHARDGATE_LISTEN", "SHARDGATE__LISTEN?"),
            ("SHARDGATE_LISTN", "SHARDGATE__LISTEN?"),
            ("SHARDGATE_QUEUE_ITEMS_MAX", "SHARDGATE__QUEUE__ITEMS_MAX?"),
            ("SHARDGATE_QUEUE__ITEMS_MAX", "SHARDGATE__QUEUE__ITEMS_MAX?"),
            ("shardgate__log__filter", "SHARDGATE__LOG__FILTER?"),
            ("SHARDGATE_CONFG", "SHARDGATE_CONFIG?"),
            ("SHARDGATE_SOMETHING_ELSE", "SHARDGATE__SECTION__KEY"),
            ("SHARDGATE_PORT", "nothing reads"),
        ] {
            let line = told(name, "9000").unwrap_or_else(|| panic!("{name} is told"));
            assert!(line.starts_with(&format!("environment {name}: nothing reads")), "{line}");
            assert!(line.contains(near), "{line}");
        }
        assert_eq!(told("SHARDGATE_CONFIG", "/etc/shardgate"), None);
        assert_eq!(told("SHARDGATE__LISTEN", "127.0.0.1:1"), None);
    }

    #[test]
    fn variables_of_a_kubernetes_service_are_no_mistake_and_set_nothing() {
        let all = [
            ("SHARDGATE_SERVICE_HOST", "10.0.0.1"),
            ("SHARDGATE_SERVICE_PORT", "8080"),
            ("SHARDGATE_SERVICE_PORT_CLIENTS", "8080"),
            ("SHARDGATE_PORT", "tcp://10.0.0.1:8080"),
            ("SHARDGATE_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
            ("SHARDGATE_PORT_8080_TCP_ADDR", "10.0.0.1"),
            ("SHARDGATE_PORT_8080_TCP_PORT", "8080"),
            ("SHARDGATE_PORT_8080_TCP_PROTO", "tcp"),
            ("SHARDGATE_ADMIN_SERVICE_HOST", "10.0.0.2"),
            ("SHARDGATE_ADMIN_PORT", "tcp://10.0.0.2:8000"),
            ("SHARDGATE_ADMIN_PORT_8000_UDP_PORT", "8000"),
        ];
        for (name, value) in all {
            assert_eq!(told(name, value), None, "{name}");
        }
        let env: Vec<(String, String)> = all.map(|(a, b)| (a.into(), b.into())).into();
        let (gateway, shard) = entries(&env);
        assert!(gateway.is_empty() && shard.is_empty());
    }
}
