//! The view against the meaning of etcd's keys, and against a naive model.

use proptest::prelude::*;

use super::*;

const PREFIX: &str = "/shardgate";
const GOOD: &str = r#"{"address":"10.0.0.1:50001"}"#;

fn kv(key: &str, value: &str, created: i64, modified: i64) -> KeyValue {
    let (key, value) = (key.as_bytes().to_vec(), value.as_bytes().to_vec());
    KeyValue { key, value, create_revision: created, mod_revision: modified }
}

fn key(names: &str) -> String {
    format!("{PREFIX}/services/{names}")
}

/// Contents of a view with this one key, or its complaint.
fn only(folder: Folder, key: &str, value: &str) -> Result<SourceContents, String> {
    let mut view = KeyView::new(PREFIX);
    view.put(folder, &kv(key, value, 5, 5));
    match &view.take_bad()[..] {
        [] => Ok(view.contents()),
        [SourceEvent::Bad { at, why }] => {
            let contents = SourceContents { awaited: AwaitedTenants::NONE, ..view.contents() };
            assert_eq!((at.as_str(), contents), (key, SourceContents::default()));
            Err(why.clone())
        }
        more => panic!("{more:?}"),
    }
}

#[test]
fn an_instance_is_read_with_its_defaults() {
    let found = |value: &str| only(Folder::Services, &key("logic/logic-1"), value);
    let instance = |weight, draining| FoundInstance {
        service: "logic".into(),
        name: "logic-1".into(),
        addresses: SocketAddr::from(([10, 0, 0, 1], 50001)).into(),
        weight,
        draining,
    };
    let cases = [
        (GOOD, instance(1, false)),
        (r#"{"address":"10.0.0.1:50001","weight":1000,"draining":true}"#, instance(1000, true)),
        (r#" {"zone":{"a":[1]},"address":"10.0.0.1:50001","weight":7} "#, instance(7, false)),
    ];
    for (value, expected) in cases {
        assert_eq!(found(value).expect(value).instances, [expected], "{value}");
    }
    let contents = found(r#"{"address":"[::1]:50001"}"#).expect("IPv6");
    assert_eq!(contents.instances[0].addresses.to_string(), "[::1]:50001");
}

#[test]
fn a_bad_value_is_left_out_with_the_rule_it_breaks() {
    let long = format!(r#"{{"address":"10.0.0.1:1","x":"{}"}}"#, "x".repeat(VALUE_BYTES_MAX));
    let cases = [
        ("", "no JSON object"),
        ("null", "no JSON object"),
        ("10.0.0.1:50001", "no JSON object"),
        (r#"["10.0.0.1:1",1,false]"#, "no JSON object"),
        (r#"{"address""#, "EOF"),
        ("{}", "missing field `address`"),
        (r#"{"address":"10.0.0.1:0"}"#, "a port"),
        (r#"{"address":"10.0.0.1"}"#, "a port"),
        (r#"{"address":"localhost:50001"}"#, "IP address"),
        (r#"{"address":"10.0.0.1:70000"}"#, "IP address"),
        (r#"{"address":17}"#, "invalid type"),
        (r#"{"address":"10.0.0.1:1","weight":0}"#, "1 to 1000"),
        (r#"{"address":"10.0.0.1:1","weight":1001}"#, "1 to 1000"),
        (r#"{"address":"10.0.0.1:1","weight":-1}"#, "invalid value"),
        (r#"{"address":"10.0.0.1:1","weight":1.5}"#, "invalid type"),
        (r#"{"address":"10.0.0.1:1","weight":null}"#, "invalid type"),
        (r#"{"address":"10.0.0.1:1","draining":"no"}"#, "invalid type"),
        (r#"{"address":"10.0.0.1:1","address":"10.0.0.2:1"}"#, "duplicate field"),
        (r#"{"address":"10.0.0.1:1"} x"#, "trailing"),
        (&long, "at most 4096"),
    ];
    for (value, expected) in cases {
        let why = only(Folder::Services, &key("logic/logic-1"), value).expect_err(value);
        assert!(why.contains(expected), "{value}: {why}");
    }
}

#[test]
fn a_key_of_another_shape_is_left_out() {
    let long = "x".repeat(65);
    for names in ["", "logic", "logic/", "/logic-1", "a/b/c", "a//b", "a b/c", "a/ü", &long] {
        let why = only(Folder::Services, &key(names), GOOD).expect_err(names);
        assert!(why.contains("the key must") || why.contains("'s name"), "{names}: {why}");
    }
    for name in ["", "a/b", "a b", &long] {
        let key = format!("{PREFIX}/routes/{name}");
        let why = only(Folder::Routes, &key, "{}").expect_err(name);
        assert!(why.contains("the key must") || why.contains("'s name"), "{name}: {why}");
    }
}

#[test]
fn bytes_that_are_no_text_are_complained_about() {
    let mut view = KeyView::new(PREFIX);
    let mut bad = kv(&key("a/b"), "", 1, 1);
    bad.value = b"{\"address\":\"\xff\"}".to_vec();
    view.put(Folder::Services, &bad);
    bad.key.push(0xff);
    view.put(Folder::Services, &bad);
    bad.key = vec![b'x'; 2_000_000];
    view.put(Folder::Services, &bad);
    let told = view.take_bad();
    let whys: Vec<&str> = told.iter().map(why_of).collect();
    assert!(whys[0].contains("value is not UTF-8"), "{whys:?}");
    assert!(whys[1].contains("key is not UTF-8"), "{whys:?}");
    assert!(whys[2].contains("2000000 bytes"), "{whys:?}");
    assert!(told.iter().all(|word| format!("{word:?}").len() < 700));
}

fn why_of(word: &SourceEvent) -> &str {
    match word {
        SourceEvent::Bad { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_route_is_passed_on_as_it_is_written() {
    let at = format!("{PREFIX}/routes/party");
    let json = r#"{ "range": [4000, 4099], "service": "logic" }"#;
    let contents = only(Folder::Routes, &at, json).expect("good");
    let route = FoundTable { at: at.as_str().into(), json: json.into() };
    let expected = SourceContents { routes: vec![route], ..SourceContents::default() };
    assert_eq!(contents, expected);
    for bad in ["", "[]", "{", "x", "\"x\""] {
        only(Folder::Routes, &at, bad).expect_err(bad);
    }
}

#[test]
fn a_tenant_has_the_name_of_its_key_and_no_other() {
    let at = format!("{PREFIX}/tenants/acme");
    let found = |value: &str| only(Folder::Tenants, &at, value);
    let table = |json: &str| {
        let tenants = vec![FoundTable { at: at.as_str().into(), json: json.into() }];
        Ok(SourceContents { tenants, ..SourceContents::default() })
    };
    let named = r#"{"name":"acme","weight":2}"#;
    assert_eq!(found(r#"{ "weight": 2 }"#), table(named));
    assert_eq!(found(r#"{"weight":2,"name":"acme"}"#), table(named));
    assert_eq!(found("{}"), table(r#"{"name":"acme"}"#));
    for (bad, expected) in [
        (r#"{"name":"other"}"#, "name in the value is not that of the key, \"acme\""),
        (r#"{"name":7}"#, "not that of the key"),
        ("\"a secret\"", "the value is no JSON object"),
        ("[]", "the value is no JSON object"),
        ("{", "EOF"),
    ] {
        let why = found(bad).expect_err(bad);
        assert!(why.contains(expected) && !why.contains("a secret"), "{bad}: {why}");
    }
    for name in ["", "a/b", "a b", &"x".repeat(65)] {
        let key = format!("{PREFIX}/tenants/{name}");
        let why = only(Folder::Tenants, &key, "{}").expect_err(name);
        assert!(why.contains("the key must") || why.contains("'s name"), "{name}: {why}");
    }
}

#[test]
fn a_tenant_may_be_larger_than_a_route_and_so_many_are_used() {
    let at = |n: usize| format!("{PREFIX}/tenants/t{n:04}");
    let of = |bytes: usize| format!("{{\"audience\":\"{}\"}}", "x".repeat(bytes - 15));
    only(Folder::Tenants, &at(1), &of(TENANT_BYTES_MAX)).expect("as large as it may be");
    let why = only(Folder::Tenants, &at(1), &of(TENANT_BYTES_MAX + 1)).expect_err("one more");
    assert!(why.contains("65537 bytes: at most 65536"), "{why}");
    let mut view = KeyView::new(PREFIX);
    for n in (0..TENANTS_MAX + 2).rev() {
        view.put(Folder::Tenants, &kv(&at(n), "{}", 1, 1));
    }
    let tenants = view.contents().tenants;
    assert_eq!((tenants.len(), &*tenants[0].at), (TENANTS_MAX, at(0).as_str()));
    let told = view.take_bad();
    assert!(told.len() == 1 && why_of(&told[0]).contains("over 1000 keys"), "{told:?}");
    assert_eq!(view.contents().awaited, AwaitedTenants::Any, "nobody knows the others' names");
}

#[test]
fn a_tenant_whose_value_cannot_be_read_is_one_all_the_same() {
    let mut view = KeyView::new(PREFIX);
    let at = |name: &str| format!("{PREFIX}/tenants/{name}");
    assert_eq!(view.contents().awaited, AwaitedTenants::NONE);
    view.put(Folder::Tenants, &kv(&at("bad"), "{", 1, 1));
    view.put(Folder::Tenants, &kv(&at("good"), "{}", 1, 1));
    view.put(Folder::Routes, &kv(&format!("{PREFIX}/routes/bad"), "{", 1, 1));
    assert_eq!(view.contents().awaited, AwaitedTenants::named(vec!["bad".into()]));
    // One that was good stays good.
    view.put(Folder::Tenants, &kv(&at("bad"), "{}", 1, 2));
    view.put(Folder::Tenants, &kv(&at("good"), "{", 1, 2));
    assert_eq!(view.contents().awaited, AwaitedTenants::NONE);
}

#[test]
fn a_bad_write_leaves_the_last_good_value_until_the_key_goes() {
    let mut view = KeyView::new(PREFIX);
    let at = key("logic/logic-1");
    view.put(Folder::Services, &kv(&at, GOOD, 5, 5));
    let good = view.contents();
    assert_eq!((good.instances.len(), view.take_bad().len()), (1, 0));
    view.put(Folder::Services, &kv(&at, "oops", 5, 6));
    assert_eq!((view.contents(), view.take_bad().len()), (good.clone(), 1));
    // The same again, by a repeated event and by a listing: nothing new.
    view.put(Folder::Services, &kv(&at, "oops", 5, 6));
    let mut listing = view.listing();
    listing.push(Folder::Services, &kv(&at, "oops", 5, 6));
    view.replace(listing);
    assert_eq!((view.contents(), view.take_bad().len()), (good.clone(), 0));
    // Another write is another complaint.
    view.put(Folder::Services, &kv(&at, "oops", 5, 7));
    assert_eq!((view.contents(), view.take_bad().len()), (good, 1));
    // The key was deleted and made again unseen: its earlier value belongs to another life.
    let mut listing = view.listing();
    listing.push(Folder::Services, &kv(&at, "oops", 9, 9));
    view.replace(listing);
    assert_eq!((view.contents(), view.take_bad().len()), (SourceContents::default(), 1));
}

#[test]
fn a_listing_is_believed_also_when_its_revisions_went_back() {
    let mut view = KeyView::new(PREFIX);
    view.put(Folder::Services, &kv(&key("a/a-1"), GOOD, 500, 500));
    view.put(Folder::Services, &kv(&key("a/a-2"), GOOD, 501, 501));
    let mut listing = view.listing();
    listing.push(Folder::Services, &kv(&key("a/a-2"), r#"{"address":"10.0.0.2:1"}"#, 2, 2));
    view.replace(listing);
    let contents = view.contents();
    assert_eq!(contents.instances.len(), 1);
    assert_eq!(contents.instances[0].addresses.to_string(), "10.0.0.2:1");
    view.delete(Folder::Services, key("a/a-2").as_bytes(), 3);
    assert_eq!(view.contents(), SourceContents::default());
}

#[test]
fn over_the_cap_the_first_keys_in_order_are_used() {
    let name = |n: usize| key(&format!("a/a-{n:05}"));
    let put = |view: &mut KeyView, n| view.put(Folder::Services, &kv(&name(n), GOOD, 1, 1));
    let names = |view: &KeyView| -> Vec<usize> {
        let found = view.contents().instances;
        found.iter().map(|f| f.name[2..].parse().expect("a number")).collect()
    };
    let mut view = KeyView::new(PREFIX);
    // From the back: each of the last ones has to make room.
    for n in (1..KEYS_MAX + 10).rev() {
        put(&mut view, n);
    }
    assert_eq!(names(&view), (1..=KEYS_MAX).collect::<Vec<_>>());
    let told = view.take_bad();
    assert_eq!(told.len(), 1, "said once");
    assert!(why_of(&told[0]).contains("over 4096"));
    // Keys beyond the cap are not known: when one goes, only a listing tells which comes.
    assert!(!view.lacks());
    view.delete(Folder::Services, name(KEYS_MAX + 5).as_bytes(), 2);
    assert!(!view.lacks());
    view.delete(Folder::Services, name(7).as_bytes(), 2);
    assert!(view.lacks());
    let mut listing = view.listing();
    let room = (1..KEYS_MAX + 10).filter(|n| *n != 7);
    let pushed = room.take_while(|n| listing.push(Folder::Services, &kv(&name(*n), GOOD, 1, 1)));
    assert_eq!(pushed.count(), KEYS_MAX, "and then one too many");
    view.replace(listing);
    assert_eq!(names(&view), (1..KEYS_MAX + 2).filter(|n| *n != 7).collect::<Vec<_>>());
    assert!(!view.lacks());
    assert_eq!(view.take_bad(), []);
}

/// A change of one of a few keys.
#[derive(Clone, Debug)]
enum Change {
    Put(usize, usize),
    Delete(usize),
}

/// Keys of all folders, some of them bad ones.
const KEYS: [(Folder, &str); 8] = [
    (Folder::Services, "/shardgate/services/a/a-1"),
    (Folder::Services, "/shardgate/services/a/a-2"),
    (Folder::Services, "/shardgate/services/b/b-1"),
    (Folder::Services, "/shardgate/services/b"),
    (Folder::Routes, "/shardgate/routes/r-1"),
    (Folder::Routes, "/shardgate/routes/r/2"),
    (Folder::Tenants, "/shardgate/tenants/t-1"),
    (Folder::Tenants, "/shardgate/tenants/t/2"),
];
/// Values; the last one is bad for all keys.
const VALUES: [&str; 4] =
    [r#"{"address":"10.0.0.1:1"}"#, r#"{"address":"10.0.0.2:2","weight":3}"#, "{}", "bad"];

fn changes(values: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Change>> {
    let put = (0..KEYS.len(), values).prop_map(|(key, value)| Change::Put(key, value));
    let delete = (0..KEYS.len()).prop_map(Change::Delete);
    prop::collection::vec(prop_oneof![3 => put, 1 => delete], 0..60)
}

/// A small model of etcd: the keys that exist.
#[derive(Default)]
struct Store {
    revision: i64,
    keys: BTreeMap<usize, KeyValue>,
    /// Values of each key since its creation.
    lives: BTreeMap<usize, Vec<usize>>,
}

impl Store {
    /// Makes a change, and passes it to `view`.
    fn change(&mut self, change: &Change, view: &mut KeyView) {
        self.revision += 1;
        match *change {
            Change::Put(at, value) => {
                let (folder, key) = KEYS[at];
                let created = self.keys.get(&at).map_or(self.revision, |kv| kv.create_revision);
                let put = kv(key, VALUES[value], created, self.revision);
                self.lives.entry(at).or_default().push(value);
                view.put(folder, &put);
                self.keys.insert(at, put);
            }
            Change::Delete(at) => {
                let (folder, key) = KEYS[at];
                view.delete(folder, key.as_bytes(), self.revision);
                self.keys.remove(&at);
                self.lives.remove(&at);
            }
        }
    }

    fn list(&self, view: &mut KeyView) {
        let mut listing = view.listing();
        for (at, kv) in &self.keys {
            assert!(listing.push(KEYS[*at].0, kv));
        }
        view.replace(listing);
    }

    /// Contents that follow from the history: of each key the last good value.
    fn expected(&self) -> SourceContents {
        let (mut contents, mut awaited) = (SourceContents::default(), Vec::new());
        for (at, values) in &self.lives {
            let (folder, key) = KEYS[*at];
            let good = values.iter().rev().find_map(|v| only(folder, key, VALUES[*v]).ok());
            if let (Folder::Tenants, None) = (folder, &good) {
                let name = key.strip_prefix(&folder.start(PREFIX)).expect("it is in its folder");
                awaited.push(name.into());
            }
            let good = good.unwrap_or_default();
            contents.instances.extend(good.instances);
            contents.routes.extend(good.routes);
            contents.tenants.extend(good.tenants);
        }
        SourceContents { awaited: AwaitedTenants::named(awaited), ..contents }
    }
}

proptest! {
    #[test]
    fn events_lead_to_what_a_listing_shows(changes in changes(0..3)) {
        let (mut store, mut view, mut fresh) =
            (Store::default(), KeyView::new(PREFIX), KeyView::new(PREFIX));
        for change in &changes {
            // Good values of one folder are bad ones of the other: those are left out here.
            if let Change::Put(at, value) = change
                && only(KEYS[*at].0, KEYS[*at].1, VALUES[*value]).is_err()
            {
                continue;
            }
            store.change(change, &mut view);
        }
        store.list(&mut fresh);
        prop_assert_eq!(view.contents(), fresh.contents());
        prop_assert_eq!(view.take_bad(), vec![]);
    }

    #[test]
    fn each_key_has_its_last_good_value(changes in changes(0..4)) {
        let (mut store, mut view) = (Store::default(), KeyView::new(PREFIX));
        for change in &changes {
            store.change(change, &mut view);
        }
        prop_assert_eq!(view.contents(), store.expected());
        let contents = view.contents();
        drop(view.take_bad());
        store.list(&mut view);
        prop_assert_eq!(view.contents(), contents);
        prop_assert_eq!(view.take_bad(), vec![], "said once for each write");
    }

    #[test]
    fn any_bytes_are_read_without_harm(
        names in prop::collection::vec(any::<u8>(), 0..40),
        value in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        for folder in Folder::ALL {
            let mut view = KeyView::new(PREFIX);
            let key = [folder.start(PREFIX).as_bytes(), &names].concat();
            let kv = KeyValue { key, value: value.clone(), create_revision: 1, mod_revision: 1 };
            view.put(folder, &kv);
            let SourceContents { instances, routes, tenants, .. } = view.contents();
            let found = instances.len() + routes.len() + tenants.len();
            prop_assert_eq!(found + view.take_bad().len(), 1);
        }
    }
}
