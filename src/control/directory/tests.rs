//! Effects of a reload and of a source on each other.

use crate::ids::TenantId;
use std::net::SocketAddr;
use std::path::Path;

use tempfile::TempDir;
use tokio::sync::mpsc;

use super::*;
use crate::auth::load::LocalKeys;
use crate::config::{Loader, Overrides};
use crate::control::discovery::FoundInstance;
use crate::control::health::Check;
use crate::control::inputs::LocalFiles;
use crate::tls::load::LocalTls;

const FILE: &str = r#"
    demo.enabled = false
    etcd.endpoints = ["http://127.0.0.1:1"]
    [[service]]
    name = "logic"
    [[route]]
    range = [1000, 1999]
    service = "logic""#;

fn write(dir: &Path, text: &str) {
    std::fs::write(dir.join("gateway.toml"), text).unwrap();
}

/// A directory of these files; checks report to the receiver.
fn directory() -> (Directory, TempDir, mpsc::Receiver<probe::CheckResult>) {
    directory_of(usize::MAX)
}

/// A directory where a shard may accept so many connections at most.
fn directory_of(
    connections_cap: usize,
) -> (Directory, TempDir, mpsc::Receiver<probe::CheckResult>) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), FILE);
    let loader = Loader::open(Some(dir.path()), &[], &Overrides::default()).unwrap();
    let config = loader.check(&Default::default()).unwrap();
    let composer = Composer::new(&config);
    let (found, checks) = mpsc::channel(8);
    let fleet = Fleet::new(config.gateway.health.clone(), Default::default(), 1, found);
    let keys = LocalKeys::read(&config).unwrap();
    let local = LocalFiles { keys, tls: LocalTls::default(), connections_cap };
    let active = ActiveConfig::new(loader, config, local);
    (Directory::new(active, composer, fleet, Instant::now()), dir, checks)
}

fn discover(directory: &mut Directory, instances: &[(&str, u16)], routes: &[&str]) {
    let instance = |(name, port): &(&str, u16)| FoundInstance {
        service: "logic".into(),
        name: (*name).into(),
        addresses: SocketAddr::from(([127, 0, 0, 1], *port)).into(),
        weight: 1,
        draining: false,
    };
    let route = |json: &&str| FoundTable { at: "/x/routes/r".into(), json: (*json).into() };
    let contents = SourceContents {
        instances: instances.iter().map(instance).collect(),
        routes: routes.iter().map(route).collect(),
    };
    let now = Instant::now();
    let event = SourceEvent::Contents { contents, by: "t".into() };
    directory.take_news(News { source: "etcd".into(), event }, now);
    directory.turn(now + directory.config().gateway.discovery.debounce);
}

#[tokio::test]
async fn a_bad_route_of_a_source_stops_no_reload_and_those_in_force_stay() {
    let (mut directory, dir, _checks) = directory();
    discover(&mut directory, &[], &[r#"{"range":[2000,2999],"service":"logic"}"#]);
    assert!(directory.snapshot().route(TenantId::DEFAULT, 2500).is_some());
    discover(&mut directory, &[], &[r#"{"range":[1500,2999],"service":"logic"}"#]);
    assert_eq!(directory.view().routes_refused.len(), 1);
    assert!(directory.snapshot().route(TenantId::DEFAULT, 2500).is_some(), "the one before stays");
    write(dir.path(), &FILE.replace("1999", "1899"));
    directory.reload(Instant::now()).expect("the files are right");
    assert!(
        directory.snapshot().route(TenantId::DEFAULT, 1950).is_none()
            && directory.snapshot().route(TenantId::DEFAULT, 2500).is_some()
    );
    assert_eq!(directory.view().routes_refused.len(), 1, "it still says so");
    // The files take the range for themselves, and their route holds.
    write(dir.path(), &FILE.replace("1999", "2100"));
    directory.reload(Instant::now()).expect("the files are right");
    assert!(
        directory.snapshot().route(TenantId::DEFAULT, 2050).is_some()
            && directory.snapshot().route(TenantId::DEFAULT, 2500).is_none()
    );
}

#[tokio::test]
async fn a_registry_token_that_cannot_be_read_refuses_the_whole_reload() {
    let (mut directory, dir, _checks) = directory();
    let version = directory.snapshot().version;
    let caller =
        "\n[[registry_token]]\nname = \"x\"\nservices = [\"logic\"]\ntoken_file = \"/none\"";
    let text =
        format!("registry.listen = \"127.0.0.1:1\"\n{}{caller}", FILE.replace("1999", "1800"));
    write(dir.path(), &text);
    assert!(directory.reload(Instant::now()).is_err());
    assert_eq!(directory.snapshot().version, version);
}

#[tokio::test]
async fn a_change_of_health_settings_is_judged_at_once() {
    let (mut directory, dir, _checks) = directory();
    discover(&mut directory, &[("a", 1), ("b", 2), ("c", 3)], &[]);
    let id = directory.snapshot().instances[0].id;
    let now = Instant::now();
    let down = Check::NotServing { why: "test".into() };
    directory.take_check(probe::CheckResult { instance: id, check: Check::Serving }, now);
    directory.take_check(probe::CheckResult { instance: id, check: down }, now);
    assert!(directory.turn(now));
    assert_eq!(directory.snapshot().instances[0].share.get(), 0);
    write(dir.path(), &format!("health.check_ms = 0\nhealth.slow_start_ms = 0\n{FILE}"));
    directory.reload(now).expect("the files are right");
    directory.turn(now);
    assert_eq!(directory.snapshot().instances[0].share.get(), 100);
}

#[tokio::test]
async fn no_published_state_asks_for_more_connections_than_there_are_files() {
    let (mut directory, dir, _checks) = directory_of(100);
    let max =
        |directory: &Directory| directory.published(ShardId(0)).settings.conn.connections_max.get();
    assert_eq!(max(&directory), 100, "the built-in files ask for more");
    for (asked, given) in [(50, 50), (101, 100), (100, 100)] {
        let text = format!("conn.connections_max = {asked}");
        std::fs::write(dir.path().join("default.toml"), text).unwrap();
        directory.reload(Instant::now()).expect("the files are right");
        assert_eq!(max(&directory), given);
    }
}
