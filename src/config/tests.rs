//! Tests of the whole way from text to configuration.

use super::load::{DEFAULT_TOML, Files, GATEWAY_TOML, Overrides, Text, from_files};
use super::problem::Source;
use super::settings::*;
use super::snapshot::*;
use super::{Config, Problems};
use crate::message::Priority;

fn text(name: &str, text: &str) -> Text {
    Text { name: name.into(), text: text.into() }
}

/// The built-in files, but for those given.
fn files(gateway: Option<&str>, default: Option<&str>, shards: &[(usize, &str)]) -> Files {
    let mut files = Files::embedded();
    files.gateway = text("shards/gateway.toml", gateway.unwrap_or(GATEWAY_TOML));
    files.default = text("shards/default.toml", default.unwrap_or(DEFAULT_TOML));
    for &(n, body) in shards {
        files.shards.insert(n, text(&format!("shards/{n}.toml"), body));
    }
    files
}

fn of(gateway: Option<&str>, default: Option<&str>) -> Result<Config, Problems> {
    from_files(files(gateway, default, &[]), &[], &Overrides::default())
}

fn lines(result: Result<Config, Problems>) -> Vec<String> {
    let problems = result.expect_err("there are mistakes in it");
    problems.to_string().lines().map(str::to_owned).collect()
}

fn with_env(pairs: &[(&str, &str)]) -> Result<Config, Problems> {
    let env: Vec<_> = pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
    from_files(files(None, None, &[]), &env, &Overrides::default())
}

#[test]
fn the_files_hold_the_defaults_of_the_settings() {
    let config = of(None, None).expect("the files are right");
    assert_eq!(config.gateway, GatewaySettings::default());
    assert_eq!(config.shards.default, ShardSettings::default());
    assert_eq!(config.ring_points, 160);
    assert_eq!(config.warnings, []);
}

#[test]
fn the_files_name_every_key() {
    let config = of(None, None).expect("the files are right");
    // Optional keys of routes are in the text of the comment instead of in every route.
    let missing = config.provenance.iter().filter(|(_, _, source)| *source == Source::Default);
    let missing: Vec<_> = missing.filter(|(key, ..)| !key.starts_with("route[")).collect();
    assert!(missing.is_empty(), "{missing:?}");
    for (key, value, _) in &config.provenance {
        let last = key.rsplit('.').next().expect("a part");
        assert!(GATEWAY_TOML.contains(last) || DEFAULT_TOML.contains(last), "{key} = {value}");
    }
}

#[test]
fn an_absent_key_has_the_default_of_the_settings() {
    let config = of(Some(""), Some("")).expect("nothing is required");
    assert_eq!(config.gateway, GatewaySettings::default());
    assert_eq!(config.shards.default, ShardSettings::default());
    assert!(config.snapshot.routes.is_empty());
    assert!(config.warnings.iter().any(|w| w.to_string().contains("no [[service]]")));
}

#[test]
fn the_default_routes_lead_to_the_demo_services() {
    let snapshot = of(None, None).expect("the files are right").snapshot;
    assert_eq!(snapshot.version, 1);
    for (id, name, priority, port) in [
        (1001, "logic", Priority::Normal, 50001),
        (2999, "chat", Priority::Normal, 50002),
        (3000, "fight", Priority::High, 50003),
    ] {
        let (_, route) = snapshot.route(id).expect("routed");
        let service = &snapshot.services[usize::from(route.service.0)];
        let instance = service.ring.pick(1).expect("not empty");
        let instance = snapshot.instance(instance).expect("exists");
        assert_eq!((&*service.name, route.priority), (name, priority));
        assert_eq!(instance.address.port(), port);
        assert_eq!((route.hash_on, route.timeout_ms), (HashOn::User, 5000));
    }
    assert!(snapshot.route(4000).is_none());
}
