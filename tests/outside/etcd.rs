//! The etcd source with the real server: its news while etcd comes, goes and changes.

pub mod member;
mod source;

use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use shardgate::config::settings::EtcdSettings;

use self::member::Etcd;
use self::source::Source;
use super::support::{available, run, succeeds};

/// Whether etcd is installed.
fn here(test: &str) -> bool {
    let found = succeeds("etcd", &["--version"]) && succeeds("etcdctl", &["version"]);
    available(test, "etcd and etcdctl", found)
}

/// Value of an instance on port `n`.
fn on(n: u16) -> String {
    format!(r#"{{"address":"10.0.0.1:{n}"}}"#)
}

#[test]
fn what_is_in_etcd_is_known_and_changes_arrive() {
    if !here("what_is_in_etcd_is_known_and_changes_arrive") {
        return;
    }
    let etcd = Etcd::running();
    etcd.put("services/logic/logic-1", &on(1));
    etcd.put("services/chat/chat-1", r#"{"address":"[::1]:2","weight":7,"draining":true,"x":0}"#);
    etcd.put("routes/party", r#"{"range":[4000,4099],"service":"logic"}"#);
    etcd.put("servicesx/logic/logic-9", &on(9));
    etcd.put("service/logic/logic-9", &on(9));
    let mut source = Source::start(etcd.settings());
    source.until_names(&["chat/chat-1", "logic/logic-1"]);
    let known = source.known.clone().expect("told");
    let chat = &known.instances[0];
    assert_eq!((chat.addresses.to_string().as_str(), chat.weight), ("[::1]:2", 7));
    assert!(chat.draining && !known.instances[1].draining);
    assert_eq!(&*known.routes[0].at, "/shardgate/routes/party");
    assert_eq!(&*known.routes[0].json, r#"{"range":[4000,4099],"service":"logic"}"#);

    etcd.put("services/logic/logic-2", &on(2));
    source.until_names(&["chat/chat-1", "logic/logic-1", "logic/logic-2"]);
    etcd.put("services/logic/logic-2", &on(3));
    source.until("it moved", |s| {
        s.known.as_ref().is_some_and(|known| known.instances[2].addresses.first().port() == 3)
    });
    etcd.delete("services/chat/chat-1");
    source.until_names(&["logic/logic-1", "logic/logic-2"]);
    etcd.put("tenants/acme", r#"{"weight":2}"#);
    source.until("the tenant is told", |s| {
        let tenants = s.known.as_ref().map(|known| &known.tenants[..]);
        let acme = tenants.and_then(|tenants| tenants.first());
        acme.is_some_and(|t| *t.json == *r#"{"name":"acme","weight":2}"#)
    });
    etcd.put("tenants/acme", r#"{"name":"other"}"#);
    source.until("its name is wrong", |s| !s.bad.is_empty());
    let (at, why) = source.bad.remove(0);
    assert!(at == "/shardgate/tenants/acme" && why.contains("not that of the key"), "{why}");
    assert_eq!(source.known.as_ref().map(|known| known.tenants.len()), Some(1), "it stays");
    etcd.delete("tenants/acme");
    source.until("the tenant is gone", |s| {
        s.known.as_ref().is_some_and(|known| known.tenants.is_empty())
    });
    etcd.delete("routes/party");
    source.until("the route is gone", |s| s.known.as_ref().is_some_and(|k| k.routes.is_empty()));
    assert_eq!((source.stales, source.bad.len()), (0, 0));
}

#[test]
fn an_instance_goes_with_its_lease() {
    if !here("an_instance_goes_with_its_lease") {
        return;
    }
    let etcd = Etcd::running();
    let mut source = Source::start(etcd.settings());
    source.until_names(&[]);
    // The commands of the source's module documentation.
    let grant = etcd.say(&["lease", "grant", "2"]);
    let lease = grant.split(' ').nth(1).expect("lease ID granted with TTL(2s)");
    let lease = format!("--lease={lease}");
    etcd.say(&["put", &lease, "/shardgate/services/logic/logic-4", &on(4)]);
    source.until_names(&["logic/logic-4"]);
    source.until_names(&[]);
}

#[test]
fn what_changed_while_etcd_was_away_arrives() {
    if !here("what_changed_while_etcd_was_away_arrives") {
        return;
    }
    let mut etcd = Etcd::running();
    etcd.put("services/logic/logic-1", &on(1));
    etcd.put("services/logic/logic-2", &on(2));
    let mut source = Source::start(etcd.settings());
    source.until_names(&["logic/logic-1", "logic/logic-2"]);
    for compacted in [false, true] {
        let (gone, new) = if compacted { (2, 1) } else { (1, 3) };
        let knowns = source.knowns;
        etcd.kill();
        source.until_stale("onnection refused");
        assert!(source.stale.as_ref().expect("just so").contains(&etcd.endpoint()));
        // Back for the test alone.
        etcd.start(false);
        etcd.healthy();
        etcd.delete(&format!("services/logic/logic-{gone}"));
        etcd.put(&format!("services/logic/logic-{new}"), &on(new));
        if compacted {
            etcd.say(&["compact", &etcd.revision()]);
        }
        etcd.kill();
        etcd.start(true);
        source.until_fresh();
        let expected: &[&str] = if compacted {
            &["logic/logic-1", "logic/logic-3"]
        } else {
            &["logic/logic-2", "logic/logic-3"]
        };
        source.until_names(expected);
        assert!(source.knowns <= knowns + 2, "a step for each change at most, never an empty one");
    }
    // The watches stand again.
    etcd.healthy();
    etcd.put("services/logic/logic-9", &on(9));
    source.until_names(&["logic/logic-1", "logic/logic-3", "logic/logic-9"]);
}

#[test]
fn a_store_that_was_set_back_is_listed_again() {
    if !here("a_store_that_was_set_back_is_listed_again") {
        return;
    }
    let mut etcd = Etcd::running();
    for n in 1..6 {
        etcd.put("services/logic/logic-1", &on(n));
    }
    let mut source = Source::start(etcd.settings());
    source.until_names(&["logic/logic-1"]);
    etcd.kill();
    source.until_stale("onnection refused");
    std::fs::remove_dir_all(etcd.path("data")).expect("ours");
    etcd.start(true);
    source.until_names(&[]);
    etcd.healthy();
    etcd.put("services/logic/logic-2", &on(2));
    source.until_names(&["logic/logic-2"]);
}

#[test]
fn a_bad_value_is_told_once_and_takes_nothing_out() {
    if !here("a_bad_value_is_told_once_and_takes_nothing_out") {
        return;
    }
    let mut etcd = Etcd::running();
    etcd.put("services/logic/logic-1", &on(1));
    etcd.put("services/logic/logic-2", "not JSON");
    let mut source = Source::start(etcd.settings());
    source.until_names(&["logic/logic-1"]);
    source.until("the first is told", |s| s.bad.len() == 1);
    etcd.put("services/logic/logic-1", r#"{"address":"10.0.0.1:0"}"#);
    source.until("the second is told", |s| s.bad.len() == 2);
    etcd.put("services/logic/logic-3", &format!("{}{}", on(3), " ".repeat(5_000)));
    source.until("the third is told", |s| s.bad.len() == 3);
    etcd.kill();
    source.until_stale("onnection refused");
    etcd.start(true);
    etcd.healthy();
    source.until_fresh();
    etcd.put("services/logic/logic-4", &on(4));
    source.until_names(&["logic/logic-1", "logic/logic-4"]);
    let at: Vec<&str> = source.bad.iter().map(|(at, _)| at.as_str()).collect();
    let expected = [2, 1, 3].map(|n| format!("/shardgate/services/logic/logic-{n}"));
    assert_eq!(at, expected, "{:?}", source.bad);
}

#[test]
fn thousands_of_keys_and_too_large_values_are_read_in_pages() {
    if !here("thousands_of_keys_and_too_large_values_are_read_in_pages") {
        return;
    }
    let etcd = Etcd::running();
    // 900 values of 12 KiB are 11 MB: more than a page may have. 100 a transaction: etcd takes 128
    // operations and 1.5 MiB.
    for start in (0..900).step_by(100) {
        let large = |n| (format!("services/big/big-{n:04}"), "x".repeat(12 << 10));
        etcd.put_all(&(start..start + 100).map(large).collect::<Vec<_>>());
    }
    for start in (0..2_400).step_by(100) {
        let put = |n: u16| (format!("services/logic/logic-{n:04}"), on(n + 1));
        etcd.put_all(&(start..start + 100).map(put).collect::<Vec<_>>());
    }
    let mut source = Source::start(etcd.settings());
    source.until("all are told", |s| s.bad.len() == 900);
    let names = source.names();
    assert_eq!((source.knowns, names.len()), (1, 2_400));
    assert_eq!(names[2_399], "logic/logic-2399");
    // One answer of many changes.
    let move_one = |n: u16| (format!("services/logic/logic-{n:04}"), on(n + 7));
    etcd.put_all(&(0..100).map(move_one).collect::<Vec<_>>());
    source.until("the hundred moved", |s| s.knowns == 2);
    let known = source.known.as_ref().expect("told");
    assert!((0..100).all(|n| known.instances[n].addresses.first().port() == n as u16 + 7));
}

#[test]
fn user_and_password_are_shown_and_never_told() {
    if !here("user_and_password_are_shown_and_never_told") {
        return;
    }
    let mut etcd = Etcd::running();
    etcd.put("services/logic/logic-1", &on(1));
    for args in [
        &["user", "add", "root:hunter2"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "gateway:swordfish"],
        &["role", "add", "reader"],
        &["user", "grant-role", "gateway", "reader"],
        &["auth", "enable"],
    ] {
        etcd.say(args);
    }
    etcd.user = Some("root:hunter2".into());
    let with = |password: &str| {
        let (user, password) = ("gateway".into(), Some(password.into()));
        EtcdSettings { user, password, ..etcd.settings() }
    };
    let mut nobody = Source::start(etcd.settings());
    nobody.until_stale("see etcd.user");
    let mut wrong = Source::start(with("sardine"));
    wrong.until_stale("authentication failed");
    assert!(!wrong.stale.as_ref().expect("just so").contains("sardine"));
    let mut source = Source::start(with("swordfish"));
    source.until_stale("permission denied; grant the user");
    etcd.say(&["role", "grant-permission", "reader", "read", "/shardgate/", "--prefix"]);
    source.until_fresh();
    source.until_names(&["logic/logic-1"]);
    assert_eq!((nobody.knowns, wrong.knowns), (0, 0));
    // The tokens are gone with the process.
    etcd.kill();
    source.until_stale("onnection refused");
    etcd.start(true);
    source.until_fresh();
    etcd.healthy();
    etcd.put("services/logic/logic-2", &on(2));
    source.until_names(&["logic/logic-1", "logic/logic-2"]);
    // A user in the settings of an etcd without authentication does no harm.
    etcd.say(&["auth", "disable"]);
    etcd.user = None;
    let user = EtcdSettings {
        user: "gateway".into(),
        password: Some("swordfish".into()),
        ..etcd.settings()
    };
    Source::start(user).until_names(&["logic/logic-1", "logic/logic-2"]);
}

/// A CA, and certificates of server and client signed by it, in `dir`.
fn certificates(dir: &Path) {
    let openssl = |args: &str| {
        let args = args.split(' ');
        run(Command::new("openssl").args(args).current_dir(dir));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    for ca in ["ca", "stranger"] {
        openssl(&format!("req -x509 {key} -keyout {ca}.key -out {ca}.pem -subj /CN={ca}"));
    }
    for (name, usage) in [("server", "serverAuth"), ("client", "clientAuth")] {
        let extensions = format!("subjectAltName=IP:127.0.0.1\nextendedKeyUsage={usage}\n");
        std::fs::write(dir.join("ext"), extensions).expect("ours");
        let key = key.replace(" -days 2", "");
        openssl(&format!("req {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        let ca = "-CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext";
        openssl(&format!("x509 -req -in {name}.csr -out {name}.pem {ca}"));
    }
}

#[test]
fn both_sides_show_certificates() {
    let test = "both_sides_show_certificates";
    if !here(test) || !available(test, "openssl", succeeds("openssl", &["version"])) {
        return;
    }
    let mut etcd = Etcd::new("https");
    certificates(etcd.dir.path());
    etcd.start(true);
    etcd.healthy();
    etcd.put("services/logic/logic-1", &on(1));
    let mut source = Source::start(etcd.settings());
    source.until_names(&["logic/logic-1"]);
    etcd.put("services/logic/logic-2", &on(2));
    source.until_names(&["logic/logic-1", "logic/logic-2"]);

    let ca_file = Some(etcd.path("stranger.pem"));
    let mut stranger = Source::start(EtcdSettings { ca_file, ..etcd.settings() });
    stranger.until_stale("see etcd.ca_file");
    let mut bare =
        Source::start(EtcdSettings { cert_file: None, key_file: None, ..etcd.settings() });
    bare.until_stale("see etcd.ca_file, etcd.cert_file");
    let plain = vec![etcd.endpoint().replace("https", "http")];
    let mut plain = Source::start(EtcdSettings { endpoints: plain, ..etcd.settings() });
    plain.until_stale("http://");
    assert_eq!((stranger.knowns, bare.knowns, plain.knowns), (0, 0, 0));
}

#[test]
fn a_silent_etcd_is_noticed() {
    if !here("a_silent_etcd_is_noticed") {
        return;
    }
    let mut etcd = Etcd::running();
    etcd.put("services/logic/logic-1", &on(1));
    let mut source = Source::start(etcd.settings());
    source.until_names(&["logic/logic-1"]);
    // News by the watch show that it stands: after that only PINGs notice a loss.
    etcd.put("services/logic/logic-1", &on(2));
    source.until("it moved", |s| s.knowns == 2);
    etcd.signal(Signal::STOP);
    source.until_stale("no answer within 5 s");
    etcd.signal(Signal::CONT);
    source.until_fresh();
    etcd.put("services/logic/logic-2", &on(2));
    source.until_names(&["logic/logic-1", "logic/logic-2"]);
}

#[test]
fn a_member_without_quorum_is_left_for_one_with_it() {
    if !here("a_member_without_quorum_is_left_for_one_with_it") {
        return;
    }
    let mut members: Vec<Etcd> = (0..3).map(|_| Etcd::new("http")).collect();
    let cluster: Vec<String> = members.iter().map(|m| m.cluster.clone()).collect();
    for member in &mut members {
        member.cluster = cluster.join(",");
        member.start(true);
    }
    members[0].healthy();
    members[0].put("services/logic/logic-1", &on(1));
    let endpoints: Vec<String> = members.iter().map(Etcd::endpoint).collect();
    let first = EtcdSettings { endpoints: endpoints[..1].to_vec(), ..members[0].settings() };
    let all = EtcdSettings { endpoints, ..members[0].settings() };
    let (mut first, mut all) = (Source::start(first), Source::start(all));
    first.until_names(&["logic/logic-1"]);
    all.until_names(&["logic/logic-1"]);
    // News by the watch show that it stands.
    members[0].put("services/logic/logic-1", &on(2));
    first.until("it moved", |s| s.knowns == 2);
    // The first member alone has no leader, and says so to a client with `hasleader`.
    members[1].kill();
    members[2].kill();
    first.until_stale("no leader");
    members[1].start(true);
    first.until_fresh();
    members[0].healthy();
    members[0].put("services/logic/logic-2", &on(2));
    first.until_names(&["logic/logic-1", "logic/logic-2"]);
    all.until_names(&["logic/logic-1", "logic/logic-2"]);
    // The member that is asked first goes; the others go on.
    members[2].start(true);
    members[2].healthy();
    members[0].kill();
    members[1].healthy();
    members[1].put("services/logic/logic-3", &on(3));
    all.until_names(&["logic/logic-1", "logic/logic-2", "logic/logic-3"]);
}
