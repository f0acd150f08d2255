//! Effects of a reload and of a source on each other.

use std::net::SocketAddr;
use std::path::Path;

use tempfile::TempDir;
use tokio::sync::mpsc;

use super::*;
use crate::auth::keys::{FetchedAt, read_jwks};
use crate::auth::load::LocalKeys;
use crate::auth::mint::{SigningKey, Wanted, mint};
use crate::auth::{NotAccepted, Refusal};
use crate::config::settings::Algorithm;
use crate::config::{FoundTable, Loader, Overrides};
use crate::control::discovery::FoundInstance;
use crate::control::health::Check;
use crate::control::inputs::LocalFiles;
use crate::ids::TenantId;
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
    directory_of_text(connections_cap, FILE)
}

fn directory_of_text(
    connections_cap: usize,
    text: &str,
) -> (Directory, TempDir, mpsc::Receiver<probe::CheckResult>) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), text);
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
    discover_with(directory, instances, routes, &[]);
}

fn discover_with(
    directory: &mut Directory,
    instances: &[(&str, u16)],
    routes: &[&str],
    tenants: &[&str],
) {
    let instance = |(name, port): &(&str, u16)| FoundInstance {
        service: "logic".into(),
        name: (*name).into(),
        addresses: SocketAddr::from(([127, 0, 0, 1], *port)).into(),
        weight: 1,
        draining: false,
    };
    let table = |at: &str, json: &&str| FoundTable { at: at.into(), json: (*json).into() };
    let contents = SourceContents {
        instances: instances.iter().map(instance).collect(),
        routes: routes.iter().map(|json| table("/x/routes/r", json)).collect(),
        tenants: tenants.iter().map(|json| table("/x/tenants/t", json)).collect(),
        ..SourceContents::default()
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
    assert_eq!(directory.view().refused.routes.problems.len(), 1);
    assert!(directory.snapshot().route(TenantId::DEFAULT, 2500).is_some(), "the one before stays");
    write(dir.path(), &FILE.replace("1999", "1899"));
    directory.reload(Instant::now()).expect("the files are right");
    assert!(
        directory.snapshot().route(TenantId::DEFAULT, 1950).is_none()
            && directory.snapshot().route(TenantId::DEFAULT, 2500).is_some()
    );
    assert_eq!(directory.view().refused.routes.problems.len(), 1, "it still says so");
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

/// Files of a gateway whose users belong to tenants.
fn with_tenants() -> (Directory, TempDir, mpsc::Receiver<probe::CheckResult>) {
    let (mut directory, dir, checks) = directory_of_text(usize::MAX, &tenants_file());
    directory.reload(Instant::now()).expect("the files are right");
    (directory, dir, checks)
}

fn tenants_file() -> String {
    let key = "[[auth_key]]\nid = \"k\"\nalgorithm = \"HS256\"\n\
               secret = \"0123456789abcdef0123456789abcdef\"\n";
    format!("auth.mode = \"jwt\"\nauth.tenants = \"many\"\n{FILE}\n{key}")
}

/// Names and weights of the tenants that shards are sent.
fn tenants_of(directory: &Directory) -> Vec<(String, u32)> {
    let list = directory.snapshot().tenants.list().iter();
    let mut names: Vec<_> = list.map(|t| (t.name.to_string(), t.weight)).collect();
    names.sort();
    names
}

fn weighing(names: &[(&str, u32)]) -> Vec<(String, u32)> {
    names.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect()
}

const ROUTE: &str = r#"{"range":[2000,2999],"service":"logic"}"#;
const WRONG_ROUTE: &str = r#"{"range":[1500,2999],"service":"logic"}"#;

fn refused(directory: &Directory) -> (usize, usize) {
    let RefusedTables { routes, tenants } = directory.view().refused;
    (routes.problems.len(), tenants.problems.len())
}

fn has_route(directory: &Directory, id: u32) -> bool {
    directory.snapshot().route(TenantId::DEFAULT, id).is_some()
}

#[tokio::test]
async fn a_wrong_tenant_of_a_source_keeps_no_good_route_out_nor_the_other_way() {
    let (mut directory, _dir, _checks) = with_tenants();
    let wrong = r#"{"name":"a","weight":0}"#;
    discover_with(&mut directory, &[], &[ROUTE], &[wrong]);
    assert_eq!((has_route(&directory, 2500), refused(&directory)), (true, (0, 1)));
    assert_eq!(tenants_of(&directory), []);
    discover_with(&mut directory, &[], &[WRONG_ROUTE], &[r#"{"name":"a","weight":2}"#]);
    assert_eq!(tenants_of(&directory), weighing(&[("a", 2)]));
    assert_eq!((has_route(&directory, 2500), refused(&directory)), (true, (1, 0)), "it stays");
    // Both are wrong: what is in force of both stays, and each is told by itself.
    discover_with(&mut directory, &[], &[WRONG_ROUTE], &[wrong]);
    assert_eq!(tenants_of(&directory), weighing(&[("a", 2)]));
    assert_eq!((has_route(&directory, 2500), refused(&directory)), (true, (1, 1)));
    let RefusedTables { routes, tenants } = directory.view().refused;
    assert_eq!((routes.kept, tenants.kept), (1, 1));
    let told = [&routes.problems[0], &tenants.problems[0]].map(ToString::to_string);
    assert!(told[0].starts_with("/x/routes/r: route[1].range = "), "{told:?}");
    assert!(told[1].starts_with("/x/tenants/t: tenant[0].weight = 0: "), "{told:?}");
    // One wrong tenant refuses the good ones that come with it, and instances come all the same.
    let good = r#"{"name":"b"}"#;
    discover_with(&mut directory, &[("i", 1)], &[ROUTE], &[good, wrong]);
    assert_eq!(tenants_of(&directory), weighing(&[("a", 2)]));
    assert_eq!((directory.snapshot().instances.len(), refused(&directory)), (1, (0, 1)));
    discover_with(&mut directory, &[("i", 1)], &[ROUTE], &[good]);
    assert_eq!((tenants_of(&directory), refused(&directory)), (weighing(&[("b", 1)]), (0, 0)));
    discover_with(&mut directory, &[("i", 1)], &[ROUTE], &[]);
    assert_eq!((tenants_of(&directory), refused(&directory)), (vec![], (0, 0)), "it was deleted");
}

#[tokio::test]
async fn a_reload_keeps_tenants_of_a_source_as_far_as_they_fit_the_files() {
    let (mut directory, dir, _checks) = with_tenants();
    let version = directory.snapshot().version;
    discover_with(&mut directory, &[], &[], &[r#"{"name":"a","weight":2}"#]);
    assert!(directory.snapshot().version > version, "it is published");
    write(dir.path(), &format!("{}[[tenant]]\nname = \"b\"\n", tenants_file()));
    let report = directory.reload(Instant::now()).expect("the files are right");
    let keys: Vec<_> = report.changes.iter().map(|change| change.key.as_str()).collect();
    assert_eq!(keys, ["tenant[b]"]);
    assert_eq!(tenants_of(&directory), weighing(&[("a", 2), ("b", 1)]));
    // A change of the files is a change whatever the source says.
    discover_with(&mut directory, &[], &[], &[r#"{"name":"a","weight":0}"#]);
    let text = format!("{}[[tenant]]\nname = \"b\"\nweight = 3\n", tenants_file());
    write(dir.path(), &text);
    let report = directory.reload(Instant::now()).expect("the files are right");
    let keys: Vec<_> = report.changes.iter().map(|change| change.key.as_str()).collect();
    assert_eq!(keys, ["tenant[b].weight"]);
    assert_eq!(tenants_of(&directory), weighing(&[("a", 2), ("b", 3)]));
    assert_eq!(refused(&directory), (0, 1), "it still says so");
    // The files take the name for themselves: no tenant in force is put out by that, as its users
    // would be those of an unknown one.
    write(dir.path(), &text.replace("\"b\"", "\"a\""));
    let problems = directory.reload(Instant::now()).expect_err("a is a tenant of the source");
    assert!(problems.iter().any(|p| p.to_string().contains("is also the name of")), "{problems:?}");
    assert_eq!(tenants_of(&directory), weighing(&[("a", 2), ("b", 3)]));
    assert_eq!(refused(&directory), (0, 1));
}

#[tokio::test]
async fn a_tenant_of_a_source_with_another_key_is_published_although_the_routing_is_the_same() {
    let (mut directory, _dir, _checks) = with_tenants();
    let tenant = r#"{"name":"a","auth_key":[{"id":"k","algorithm":"HS256","secret":"SECRET"}]}"#;
    let of = |letter: &str| tenant.replace("SECRET", &letter.repeat(32));
    discover_with(&mut directory, &[], &[], &[&of("a")]);
    assert_eq!((tenants_of(&directory), refused(&directory)), (weighing(&[("a", 1)]), (0, 0)));
    let version = directory.snapshot().version;
    for (letter, is_news) in [("a", false), ("b", true)] {
        let json = of(letter).into();
        let contents = SourceContents {
            tenants: vec![FoundTable { at: "/x/tenants/t".into(), json }],
            ..SourceContents::default()
        };
        let event = SourceEvent::Contents { contents, by: "t".into() };
        let now = Instant::now();
        directory.take_news(News { source: "etcd".into(), event }, now);
        let debounce = directory.config().gateway.discovery.debounce;
        assert_eq!(directory.turn(now + debounce), is_news, "{letter}");
    }
    assert_eq!(directory.snapshot().version, version);
}

/// The refusal of a token of this tenant that is signed with this secret; `None` = it is accepted.
fn refusal(directory: &Directory, tenant: &str, secret: &str) -> Option<Refusal> {
    let verifier = directory.published(ShardId(0)).auth.expect("clients sign in");
    verifier.verify(&token_of(tenant, secret, "k"), 1).err()
}

fn token_of(tenant: &str, secret: &str, kid: &str) -> String {
    let wanted = Wanted {
        algorithm: Algorithm::Hs256,
        key_id: Some(kid),
        user: "alice",
        tenant: Some(tenant),
        groups: &[],
        issuer: None,
        audience: None,
        now_unix_s: 1,
        lifetime_s: 600,
    };
    mint(&wanted, SigningKey::Secret(secret.as_bytes())).expect("a token")
}

#[tokio::test]
async fn a_key_file_of_a_sources_tenant_refuses_that_tenant_and_nothing_else() {
    let (mut directory, dir, _checks) = with_tenants();
    let file = dir.path().join("a.key");
    let (own, other) = (&*"a".repeat(32), &*"b".repeat(32));
    let tenant = |weight: u32| {
        let key = format!(r#"{{"id":"k","algorithm":"HS256","secret_file":{file:?}}}"#);
        format!(r#"{{"name":"a","weight":{weight},"auth_key":[{key}]}}"#)
    };
    // The file is not there yet: the tenant waits, the route does not.
    discover_with(&mut directory, &[], &[ROUTE], &[&tenant(1)]);
    assert_eq!((has_route(&directory, 2500), refused(&directory)), (true, (0, 1)));
    let told = directory.view().refused.tenants.problems[0].to_string();
    assert!(told.contains("tenant[0].auth_key[0].secret_file") && told.contains("/x/"), "{told}");
    std::fs::write(&file, own).expect("written");
    directory.reload(Instant::now()).expect("the files are right");
    assert_eq!((tenants_of(&directory), refused(&directory)), (weighing(&[("a", 1)]), (0, 0)));
    assert_eq!(refusal(&directory, "a", own), None);
    assert_eq!(refusal(&directory, "a", other), Some(Refusal::Signature));
    // News of the source read the files of tenants whose keys differ, and no others: neither this
    // one's nor those of [auth], which a reload is for.
    std::fs::write(&file, other).expect("written");
    discover_with(&mut directory, &[], &[ROUTE], &[&tenant(2)]);
    assert_eq!((tenants_of(&directory), refused(&directory)), (weighing(&[("a", 2)]), (0, 0)));
    assert_eq!(refusal(&directory, "a", own), None);
    directory.reload(Instant::now()).expect("the files are right");
    assert_eq!(refusal(&directory, "a", other), None, "a reload reads it");
    // A reload is not refused for a file that is gone of a source's tenant, which keeps its keys.
    std::fs::remove_file(&file).expect("it is there");
    let report = directory.reload(Instant::now()).expect("the files are right");
    assert_eq!((tenants_of(&directory), refused(&directory)), (weighing(&[("a", 2)]), (0, 0)));
    assert_eq!(refusal(&directory, "a", other), None);
    // That is told until it can be read again, also when the source says something new.
    let told = report.warnings.iter().find(|problem| problem.to_string().contains("a.key"));
    assert!(told.expect("a warning").to_string().contains("/x/tenants/t: "), "{told:?}");
    discover_with(&mut directory, &[], &[], &[&tenant(3)]);
    assert_eq!(directory.view().keys_kept.len(), 1);
    std::fs::write(&file, own).expect("written");
    directory.reload(Instant::now()).expect("the files are right");
    assert_eq!((refusal(&directory, "a", own), directory.view().keys_kept), (None, vec![]));
}

/// While the tenants of a source are not known no token is judged as one of nobody's.
#[tokio::test]
async fn a_tenant_is_awaited_until_its_source_has_told_it_and_it_is_in_force() {
    let (mut directory, _dir, _checks) = with_tenants();
    let secret = "0123456789abcdef0123456789abcdef";
    let awaited = Some(Refusal::AwaitedTenant);
    let state = |directory: &Directory| ["a", "b"].map(|name| refusal(directory, name, secret));
    assert_eq!(state(&directory), [awaited; 2], "etcd has not answered");
    directory.reload(Instant::now()).expect("the files are right");
    assert_eq!(state(&directory), [awaited; 2]);
    // It answers, and one of its tenants is wrong: none is in force.
    let wrong = r#"{"name":"b","weight":0}"#;
    discover_with(&mut directory, &[], &[], &[r#"{"name":"a"}"#, wrong]);
    assert_eq!(state(&directory), [awaited; 2]);
    assert_eq!(refusal(&directory, "c", secret), None, "that one it does not have");
    let RefusedTables { tenants, .. } = directory.view().refused;
    assert_eq!(tenants.instead(), "none of its tables is in force");
    discover_with(&mut directory, &[], &[], &[r#"{"name":"a"}"#]);
    assert_eq!(state(&directory), [None, None]);
    // A wrong one that comes does not change the others.
    discover_with(&mut directory, &[], &[], &[r#"{"name":"a"}"#, wrong]);
    assert_eq!(state(&directory), [None, awaited]);
    let RefusedTables { tenants, .. } = directory.view().refused;
    assert_eq!(tenants.instead(), "those in force stay (1)");
    // One whose value cannot even be read.
    let contents = SourceContents {
        awaited: AwaitedTenants::named(vec!["b".into()]),
        ..SourceContents::default()
    };
    let (event, now) = (SourceEvent::Contents { contents, by: "t".into() }, Instant::now());
    directory.take_news(News { source: "etcd".into(), event }, now);
    let debounce = directory.config().gateway.discovery.debounce;
    assert!(directory.turn(now + debounce), "it is published");
    assert_eq!(state(&directory), [None, awaited]);
}

/// Each shard takes in each publication: that of 1,000 tenants' sets each few minutes is none.
#[tokio::test]
async fn a_fetched_set_is_published_only_when_its_keys_change() {
    let (mut directory, _dir, _checks) = with_tenants();
    let tenant = r#"{"name":"a","jwks_url":"https://a.example/keys"}"#;
    discover_with(&mut directory, &[], &[], &[tenant]);
    let set = |kid: &str, at: i64| {
        let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
        let key = format!(r#"{{"kty":"OKP","crv":"Ed25519","kid":"{kid}","x":"{x}"}}"#);
        let set = read_jwks(&format!(r#"{{"keys":[{key}]}}"#)).expect("a set");
        Ok(KeySet { fetched: Some(FetchedAt::new(at)), ..set })
    };
    let (owner, now) = (KeyOwner::Tenant("a".into()), Instant::now());
    let fetches = [("k", 100), ("k", 200), ("k", 300), ("n", 400), ("n", 500), ("k", 600)];
    let published: Vec<bool> =
        fetches.iter().map(|(kid, at)| directory.take_jwks(&owner, set(kid, *at), now)).collect();
    assert_eq!(published, [true, false, false, true, false, true]);
    // A verifier that was published sees that the set is not too old to tell a bad key.
    let verifier = directory.published(ShardId(0)).auth.expect("clients sign in");
    let token = token_of("a", "0123456789abcdef0123456789abcdef", "other");
    let is_late = |at| verifier.judge(&token, at) == Err(NotAccepted::LacksKeys(owner.clone()));
    assert_eq!([600, 610, 611, 700].map(is_late), [false, false, true, true]);
    assert!(!directory.take_jwks(&owner, set("k", 700), now));
    assert_eq!([700, 710, 711].map(is_late), [false, false, true]);
}

#[tokio::test]
async fn what_was_fetched_for_a_tenant_is_not_trusted_when_it_is_forgotten() {
    let (mut directory, _dir, _checks) = with_tenants();
    let set = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k",
        "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    let set = KeySet { fetched: Some(FetchedAt::new(1)), ..read_jwks(set).expect("a set") };
    let tenant = r#"{"name":"a","jwks_url":"https://a.example/keys","weight":1}"#;
    discover_with(&mut directory, &[], &[], &[tenant]);
    assert!(directory.take_tenants_changed(), "the sets that are fetched are to follow");
    let secret = "0123456789abcdef0123456789abcdef";
    let (owner, now) = (KeyOwner::Tenant("a".into()), Instant::now());
    // A secret is no key of its set: the kid decides what is told.
    assert_eq!(refusal(&directory, "a", secret), Some(Refusal::UnknownKey));
    assert!(directory.take_jwks(&owner, Ok(set), now));
    assert_eq!(refusal(&directory, "a", secret), Some(Refusal::Algorithm), "the set is there");
    assert!(!directory.take_jwks(&owner, Err("away".into()), now));
    assert_eq!(refusal(&directory, "a", secret), Some(Refusal::Algorithm), "it stays");
    assert_eq!(refusal(&directory, "other", secret), None, "others have the keys of [auth]");
    discover_with(&mut directory, &[], &[], &[&tenant.replace(":1}", ":2}")]);
    assert_eq!(refusal(&directory, "a", secret), Some(Refusal::Algorithm), "the same set");
    directory.forget_jwks(&owner);
    assert_eq!(refusal(&directory, "a", secret), Some(Refusal::UnknownKey));
    assert!(!directory.view().sources.contains_key("jwks:a"));
}
