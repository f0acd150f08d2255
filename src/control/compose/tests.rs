//! Compositions: numbers that mean one thing for ever, and no service emptied by a source.

use proptest::prelude::*;

use super::*;
use crate::config::Overrides;
use crate::config::load::{Files, from_files};
use crate::routing::Addresses;

fn config(text: &str) -> Config {
    let mut files = Files::embedded();
    files.gateway.text = format!("etcd.endpoints = [\"http://127.0.0.1:1\"]\n{text}");
    from_files(files, &[], &Overrides::default()).expect("right")
}

fn two_services() -> Config {
    config(
        r#"
        [[service]]
        name = "a"
        instances = [{ id = "a-1", address = "127.0.0.1:1001" }]
        [[service]]
        name = "b"
        [[route]]
        range = [1, 2]
        service = "a"
        [[route]]
        range = [3, 4]
        service = "b""#,
    )
}

fn found(service: &str, name: &str, port: u16) -> FoundInstance {
    FoundInstance {
        service: service.into(),
        name: name.into(),
        addresses: SocketAddr::from(([127, 0, 0, 1], port)).into(),
        weight: 1,
        draining: false,
    }
}

fn said(list: &[(&str, Vec<FoundInstance>)]) -> BTreeMap<Arc<str>, SourceContents> {
    let known = |found: &Vec<FoundInstance>| SourceContents {
        instances: found.clone(),
        ..SourceContents::default()
    };
    list.iter().map(|(source, found)| (Arc::from(*source), known(found))).collect()
}

fn compose(
    composer: &mut Composer,
    config: &Config,
    list: &[(&str, Vec<FoundInstance>)],
) -> Composition {
    composer.compose(config, &said(list), &BTreeSet::new(), |_| Share::ALL)
}

fn names(composer: &Composer) -> Vec<&str> {
    composer.members().keys().map(|name| &**name).collect()
}

#[test]
fn what_the_sources_find_is_added_to_the_files() {
    let config = two_services();
    let mut composer = Composer::new(&config);
    assert_eq!(composer.snapshot().version, 1);
    let both = [found("b", "b-1", 2001), found("a", "a-2", 2002)];
    let composed = compose(&mut composer, &config, &[("etcd", both.to_vec())]);
    assert_eq!(names(&composer), ["a-1", "a-2", "b-1"]);
    assert_eq!(composed.snapshot.expect("it differs").version, 2);
    assert_eq!(
        composed.changes,
        [MemberChange::Came(both[1].clone()), MemberChange::Came(both[0].clone())]
    );
    assert!(compose(&mut composer, &config, &[("etcd", both.to_vec())]).snapshot.is_none());
}

#[test]
fn what_cannot_be_added_is_left_out_with_a_reason() {
    let config = two_services();
    let mut composer = Composer::new(&config);
    let wrong = vec![found("c", "c-1", 1), found("a", "a-1", 2), found("a", "x", 1001)];
    let composed = compose(&mut composer, &config, &[("etcd", wrong)]);
    assert_eq!(names(&composer), ["a-1"]);
    let warnings = composed.warnings.join("\n");
    for part in ["no [[service]] \"c\"", "files names one of that id", "the address of \"a-1\""] {
        assert!(warnings.contains(part), "{warnings}");
    }
}

#[test]
fn an_instance_has_all_its_addresses_for_itself() {
    let config = two_services();
    let mut composer = Composer::new(&config);
    let [one, two] = [1, 2].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let both = FoundInstance { addresses: Addresses::new(one, vec![two]), ..found("b", "b-1", 1) };
    let list = vec![both.clone(), found("b", "b-2", 2)];
    let composed = compose(&mut composer, &config, &[("dns:b", list)]);
    assert_eq!(names(&composer), ["a-1", "b-1"]);
    assert!(composed.warnings[0].contains("127.0.0.1:2 is also the address of \"b-1\""));
    assert_eq!(composer.snapshot().instances[1].addresses, both.addresses);
    // One address less is another instance with the same keys.
    let before = composer.members()["b-1"].id;
    compose(&mut composer, &config, &[("dns:b", vec![found("b", "b-1", 1)])]);
    assert_ne!(composer.members()["b-1"].id, before);
}

#[test]
fn a_service_is_never_emptied_by_a_source() {
    let config = two_services();
    let mut composer = Composer::new(&config);
    compose(&mut composer, &config, &[("etcd", vec![found("b", "b-1", 1), found("b", "b-2", 2)])]);
    compose(&mut composer, &config, &[("etcd", vec![found("b", "b-2", 2)])]);
    assert_eq!(names(&composer), ["a-1", "b-2"]);
    let ring = composer.snapshot().services[1].ring.clone();
    let composed = compose(&mut composer, &config, &[("etcd", Vec::new())]);
    assert!(composed.snapshot.is_none() && composer.members()["b-2"].held);
    assert!(Arc::ptr_eq(&ring, &composer.snapshot().services[1].ring));
    compose(&mut composer, &config, &[("dns:b", vec![found("b", "b-3", 3)])]);
    assert_eq!(names(&composer), ["a-1", "b-3"]);
    // A source that is given up takes its instances with it.
    compose(&mut composer, &config, &[]);
    assert_eq!(names(&composer), ["a-1"]);
}

#[test]
fn a_source_cannot_push_out_what_another_has() {
    let config = two_services();
    let mut composer = Composer::new(&config);
    let mine = vec![found("a", "z-1", 7)];
    compose(&mut composer, &config, &[("registry", mine.clone())]);
    let heavy = |n: u16| FoundInstance { weight: 1000, ..found("b", &format!("b-{n}"), 100 + n) };
    let greedy: Vec<FoundInstance> = (0..10).map(heavy).collect();
    let list = [("etcd", greedy), ("registry", mine)];
    let composed = compose(&mut composer, &config, &list);
    assert!(composer.members().contains_key("z-1") && !composed.warnings.is_empty());
}

#[test]
fn the_operators_word_is_taken_back_for_one_that_is_held_too() {
    let config = two_services();
    let mut composer = Composer::new(&config);
    let last = [("etcd", vec![found("b", "b-1", 1)])];
    compose(&mut composer, &config, &last);
    let drained = BTreeSet::from([Arc::from("b-1")]);
    let empty = [("etcd", Vec::new())];
    composer.compose(&config, &said(&empty), &drained, |_| Share::ALL);
    assert!(composer.members()["b-1"].is_draining() && composer.members()["b-1"].held);
    compose(&mut composer, &config, &empty);
    assert!(!composer.members()["b-1"].is_draining());
}

#[test]
fn numbers_mean_one_thing_for_ever() {
    let first = two_services();
    let mut composer = Composer::new(&first);
    compose(&mut composer, &first, &[("etcd", vec![found("b", "b-1", 1)])]);
    let b = composer.snapshot().route(TenantId::DEFAULT, 3).expect("it is there").service;
    // "a" is gone, "b" comes first in the file.
    let second = config("[[service]]\nname = \"b\"\n[[route]]\nrange = [1, 9]\nservice = \"b\"");
    compose(&mut composer, &second, &[("etcd", vec![found("b", "b-1", 1)])]);
    assert_eq!(composer.snapshot().route(TenantId::DEFAULT, 3).expect("it is there").service, b);
    assert_eq!(names(&composer), ["b-1"]);
    let a = &composer.snapshot().services[0];
    assert!(&*a.name == "a" && a.ring.is_empty());
    // Another address is another instance, and so is one that comes back.
    let old = composer.members()["b-1"].id;
    compose(&mut composer, &second, &[("etcd", vec![found("b", "b-1", 2)])]);
    let moved = composer.members()["b-1"].id;
    compose(&mut composer, &second, &[("etcd", vec![found("b", "b-2", 3)])]);
    compose(&mut composer, &second, &[("etcd", vec![found("b", "b-1", 2)])]);
    let back = composer.members()["b-1"].id;
    assert!(old != moved && moved != back && old != back);
    // Another mode is another service.
    let unary = config(
        "[[service]]\nname = \"b\"\nmode = \"unary\"\n[[route]]\nrange = [1, 9]\nservice = \"b\"\n\
         method = \"/x.Y/Z\"\npayload = \"bytes\"",
    );
    compose(&mut composer, &unary, &[("etcd", vec![found("b", "b-1", 2)])]);
    assert_ne!(composer.snapshot().route(TenantId::DEFAULT, 3).expect("it is there").service, b);
}

#[test]
fn connections_of_a_tenant_are_counted_on_while_there_are_any_and_forgotten_with_the_last() {
    let with = |tenants: &str| {
        config(&format!(
            "auth.mode = \"jwt\"\nauth.tenants = \"many\"\nauth.jwks_file = \"k\"\n{tenants}"
        ))
    };
    let acme = with("[[tenant]]\nname = \"acme\"\n");
    let mut composer = Composer::new(&acme);
    let count = |composer: &Composer| {
        let tenant = composer.snapshot().tenants.get(TenantId::of("acme")).expect("configured");
        tenant.connections.clone()
    };
    let before = count(&composer);
    let connection = before.enter(0).expect("no limit");
    compose(&mut composer, &with(""), &[]);
    compose(&mut composer, &acme, &[]);
    assert_eq!((count(&composer), before.get()), (before.clone(), 1), "it is still connected");
    drop(connection);
    for n in 0..10 {
        compose(&mut composer, &with(&format!("[[tenant]]\nname = \"t{n}\"\n")), &[]);
        assert_eq!(composer.connections.len(), 1);
    }
}

#[test]
fn a_draining_instance_leaves_the_ring_and_stays_an_instance() {
    let config = two_services();
    let mut composer = Composer::new(&config);
    let draining = BTreeSet::from([Arc::from("a-1")]);
    let composed = composer.compose(&config, &BTreeMap::new(), &draining, |_| Share::ALL);
    let snapshot = composed.snapshot.expect("it differs");
    assert!(snapshot.instances[0].draining && snapshot.services[0].ring.is_empty());
    assert!(
        matches!(&composed.changes[..], [MemberChange::Draining(found)] if &*found.name == "a-1")
    );
    let health = composer.compose(&config, &BTreeMap::new(), &BTreeSet::new(), |_| Share::NONE);
    let snapshot = health.snapshot.expect("it differs");
    assert!(snapshot.instances[0].share == Share::NONE && !snapshot.services[0].ring.is_empty());
}

proptest! {
    /// Checks a history: no number is given twice, and the ring holds the members.
    #[test]
    fn any_history_keeps_the_numbers_apart(
        steps in prop::collection::vec(prop::collection::btree_map(0u16..6, 1u16..4, 0..6), 1..30),
    ) {
        let config = two_services();
        let mut composer = Composer::new(&config);
        let mut meant: HashMap<InstanceId, (Arc<str>, SocketAddr)> = HashMap::new();
        for step in steps {
            let instance = |(n, port): (&u16, &u16)| found("b", &format!("b-{n}"), n * 10 + port);
            let list: Vec<FoundInstance> = step.iter().map(instance).collect();
            let had = composer.members().len() > 1;
            compose(&mut composer, &config, &[("etcd", list.clone())]);
            prop_assert!(!had || composer.members().len() > 1, "emptied");
            if !list.is_empty() {
                prop_assert_eq!(composer.members().len(), 1 + list.len());
            }
            for instance in &composer.snapshot().instances {
                let is = (instance.name.clone(), instance.addresses.first());
                prop_assert_eq!(meant.entry(instance.id).or_insert(is.clone()), &is);
            }
        }
    }
}
