//! Certificates change in a running gateway: no client is dropped, and a wrong one changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::process::Signal;
use rustls::version::TLS13;
use serde_json::json;

use super::{Secured, certificate, tls};
use crate::support::secure::{self, Signer, write_pair};
use crate::support::{Client, Config, Gateway, eventually, run, several};

/// Clients that talk all through the change.
const TALKERS: usize = 40;

fn shown(secured: &Secured) -> Vec<u8> {
    let config = Arc::new(secured.signer.client(&TLS13));
    let stream = secured.shake(&config).expect("a handshake");
    stream.conn.peer_certificates().expect("it is complete")[0].to_vec()
}

fn refused(gateway: &Gateway) -> usize {
    gateway.log().matches("reload_refused").count()
}

#[test]
fn a_new_certificate_is_taken_by_a_reload_and_drops_nobody() {
    let secured = Secured::start(Config::new().shards(several()));
    let (gateway, before) = (&secured.gateway, shown(&secured));
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let talk = || {
        let mut clients: Vec<Client> = (0..TALKERS / 2).map(|_| secured.client()).collect();
        while !stop.load(Ordering::Relaxed) {
            for client in &mut clients {
                assert_eq!(client.call(9000, json!("x"))["payload"], "x");
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }
        // All of them are still there.
        for client in &mut clients {
            assert_eq!(client.call(9000, json!(1))["payload"], 1);
        }
    };
    std::thread::scope(|scope| {
        let talkers = [scope.spawn(talk), scope.spawn(talk)];
        eventually("all talk", || {
            (answered.load(Ordering::Relaxed) > 2 * TALKERS as u64).then_some(())
        });
        // The same path, and not a letter of the configuration changes.
        secured.signer.write(secured.certs.path(), "a", &["a.test"]);
        gateway.signal(Signal::HUP);
        eventually("new connections see it", || (shown(&secured) != before).then_some(()));
        let so_far = answered.load(Ordering::Relaxed);
        eventually("all talk on", || {
            (answered.load(Ordering::Relaxed) > so_far + 2 * TALKERS as u64).then_some(())
        });
        stop.store(true, Ordering::Relaxed);
        for talker in talkers {
            talker.join().expect("every message is answered");
        }
    });
    assert_eq!(refused(gateway), 0);
    assert_eq!(gateway.counter("business_errors") + gateway.counter("tls_failed_broken"), 0);
}

#[test]
fn a_wrong_certificate_refuses_the_reload_and_the_old_one_stays() {
    let secured = Secured::start(Config::new());
    let (gateway, dir, before) = (&secured.gateway, secured.certs.path(), shown(&secured));
    let version = gateway.versions();
    let (good, other) = (secured.signer.pair(&["a.test"]), secured.signer.pair(&["a.test"]));
    let rows = [
        (secured.signer.pair_of(&["a.test"], 2001, 2002), "expired at"),
        (secured.signer.pair_of(&["a.test"], 2080, 2081), "is not valid before"),
        ((good.0.clone(), other.1), "is not the key of the first certificate"),
        (("none".into(), good.1.clone()), "holds no certificate"),
    ];
    for (pair, rule) in rows {
        write_pair(dir, "a", &pair);
        let (status, told) = gateway.admin_post("/reload", "{}");
        assert_eq!(status, 422, "{told}");
        let text = told.to_string();
        assert!(text.contains(rule) && text.contains("tls_certificate[0]"), "{text}");
        assert_eq!(shown(&secured), before, "{rule}");
        assert_eq!(gateway.versions(), version);
    }
    write_pair(dir, "a", &good);
    let (status, told) = gateway.admin_post("/reload", "{}");
    assert_eq!(status, 200, "{told}");
    eventually("the good one is shown", || (shown(&secured) != before).then_some(()));
}

#[test]
fn the_oldest_version_and_the_certificates_change_in_a_running_gateway() {
    let secured = Secured::start(Config::new());
    let old = Arc::new(secured.signer.client(&rustls::version::TLS12));
    let mut client = Client::secure(secured.wss(), &old, "a.test");
    secured.signer.write(secured.certs.path(), "b", &["b.test"]);
    let both = [certificate(&secured.certs, "a"), certificate(&secured.certs, "b")].join("\n");
    let changed = tls(Config::new()).key("tls.min_version = \"1.3\"").key(&both);
    secured.gateway.rewrite(&changed);
    secured.gateway.signal(Signal::HUP);
    eventually("1.2 is refused", || secured.shake(&old).err());
    let config = Arc::new(secured.signer.client(&TLS13));
    secure::connect(secured.wss(), &config, "b.test").expect("it is there");
    assert_eq!(client.call(9000, json!(1))["payload"], 1, "who is here stays");
    secured.counter("tls_failed_incompatible", 1);
}

#[test]
fn a_certificate_that_ends_soon_is_told_in_the_log() {
    let soon = |signer: &Signer| {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec!["a.test".into()]).expect("a name");
        params.not_after = std::time::SystemTime::now()
            .checked_add(std::time::Duration::from_secs(3 * 86_400 + 6 * 3_600))
            .expect("a time")
            .into();
        (signer.sign(params, &key), key.serialize_pem())
    };
    let (signer, certs) = (Signer::new(), tempfile::tempdir().expect("a directory"));
    write_pair(certs.path(), "a", &soon(&signer));
    let gateway = Gateway::start(&tls(Config::new()).key(&certificate(&certs, "a")));
    eventually("it is told", || gateway.log().contains("tls_certificate_expires").then_some(()));
    assert!(gateway.log().contains("days=3"), "{}", gateway.log());
}

#[test]
fn a_start_and_a_check_with_a_wrong_certificate_say_so() {
    let (signer, certs) = (Signer::new(), tempfile::tempdir().expect("a directory"));
    write_pair(certs.path(), "a", &signer.pair_of(&["a.test"], 2001, 2002));
    let dir = tls(Config::new()).key(&certificate(&certs, "a")).write();
    let path = dir.path().to_str().expect("UTF-8");
    for args in [&["--config", path][..], &["check", "--config", path]] {
        let finished = run(args, |_| ());
        assert_eq!(finished.code, Some(64), "{finished:?}");
        let said = format!("{}{}", finished.stdout, finished.stderr);
        assert!(said.contains("tls_certificate[0].chain_file") && said.contains("expired at"));
    }
}
