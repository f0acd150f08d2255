//! Authorities and certificates change in a running gateway: connections are replaced in order, no
//! message is lost, and a wrong change leaves everything as it was.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::{NAME, Office, config, shown, trusting};
use crate::support::secure::{Signer, VERSIONS, write_pair};
use crate::support::{Client, Gateway, Instance, eventually, several};

/// Clients that talk all through a change.
const TALKERS: usize = 10;

/// Ends the talk, also when a test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `change` while clients talk; every message must be answered.
fn while_all_talk(gateway: &Gateway, change: impl FnOnce()) {
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let talk = || {
        let mut clients: Vec<Client> =
            (0..TALKERS / 2).map(|_| Client::connect(gateway.ws)).collect();
        while !stop.load(Ordering::Relaxed) {
            for client in &mut clients {
                let answer = client.call(1001, json!("x"));
                assert_eq!(answer["payload"], "x", "{answer}");
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    let more = |what: &str| {
        let so_far = answered.load(Ordering::Relaxed);
        eventually(what, || {
            (answered.load(Ordering::Relaxed) > so_far + 4 * TALKERS as u64).then_some(())
        });
    };
    std::thread::scope(|scope| {
        let end = End(&stop);
        let talkers = [scope.spawn(talk), scope.spawn(talk)];
        more("all talk");
        change();
        more("all talk on");
        drop(end);
        for talker in talkers {
            talker.join().expect("every message is answered");
        }
    });
    assert_eq!(gateway.counter("gateway_errors"), 0);
}

/// A service of one signer that demands certificates of the other.
fn demanding(services: &Signer, gateways: &Signer) -> rustls::ServerConfig {
    services.service(&[NAME], &VERSIONS, Some(gateways))
}

/// Reloads, and returns the answer.
fn reload(gateway: &Gateway) -> (u16, Value) {
    gateway.admin_post("/reload", "{}")
}

#[test]
fn a_changed_authority_and_certificate_replace_connections_and_lose_no_message() {
    let office = Office::new();
    let instance = Instance::echo();
    instance.secure(Some(demanding(&office.services, &office.gateways)));
    let tls = format!("{}, {}", trusting(&office), office.own());
    let gateway = Gateway::start(&config(&instance, &tls).shards(several()));
    gateway.wait_connected("logic", &["a"]);
    while_all_talk(&gateway, || {
        // Nothing of the old ones is accepted by a new connection.
        let (services, gateways) = (Signer::new(), Signer::new());
        instance.secure(Some(demanding(&services, &gateways)));
        office.write_ca(&services);
        write_pair(office.files.path(), "gateway", &gateways.pair(&["gateway"]));
        gateway.signal(Signal::HUP);
        let all = 2 * several() as u64;
        eventually("connections are replaced", || {
            (gateway.counter("backend_connects") == all).then_some(())
        });
    });
    assert_eq!(gateway.counter("backend_disconnects"), 0, "{}", gateway.log());
    assert_eq!(gateway.counter("backend_connect_failed"), 0, "{}", gateway.log());
}

#[test]
fn a_reload_without_another_certificate_keeps_the_connections() {
    let office = Office::new();
    let instance = office.echo();
    let gateway = Gateway::start(&config(&instance, &trusting(&office)));
    gateway.wait_connected("logic", &["a"]);
    for _ in 0..3 {
        assert_eq!(reload(&gateway).0, 200);
    }
    assert_eq!(Client::connect(gateway.ws).call(1001, json!(1))["payload"], 1);
    assert_eq!(gateway.counter("backend_connects"), 1);
}

#[test]
fn an_authority_that_does_not_fit_keeps_the_old_connection_and_says_so() {
    let office = Office::new();
    let instance = office.echo();
    let gateway = Gateway::start(&config(&instance, &trusting(&office)));
    gateway.wait_connected("logic", &["a"]);
    while_all_talk(&gateway, || {
        office.write_ca(&Signer::new());
        assert_eq!(reload(&gateway).0, 200, "it is an authority");
        let told = eventually("it is told", || {
            let log = gateway.log();
            log.lines().find(|line| line.contains("instance_not_replaced")).map(str::to_owned)
        });
        assert!(told.contains("TLS: no authority in tls.ca_file signed its certificate"), "{told}");
        assert!(gateway.counter("backend_connect_failed") > 0);
        office.write_ca(&office.services);
        assert_eq!(reload(&gateway).0, 200);
        eventually("the next one fits", || {
            (gateway.counter("backend_connects") == 2).then_some(())
        });
    });
    assert_eq!(gateway.counter("backend_disconnects"), 0);
}

#[test]
fn tls_is_switched_on_and_off_in_a_running_gateway() {
    let office = Office::new();
    let instance = Instance::echo();
    let plain = || {
        crate::support::Config::new()
            .shard(super::QUICK)
            .service("logic", &[("a", instance.address)])
            .route(1000, "logic", "")
    };
    let gateway = Gateway::start(&plain());
    gateway.wait_connected("logic", &["a"]);
    while_all_talk(&gateway, || {
        let connected = |count| {
            eventually("another connection", || {
                (gateway.counter("backend_connects") == count).then_some(())
            });
        };
        instance.secure(Some(office.service(&VERSIONS)));
        gateway.rewrite(&config(&instance, &trusting(&office)));
        assert_eq!(reload(&gateway).0, 200);
        connected(2);
        let calls = instance.calls().len();
        eventually("calls by it", || {
            let calls = instance.calls().split_off(calls);
            calls.iter().any(|call| call.origin.starts_with("https://")).then_some(())
        });
        instance.secure(None);
        gateway.rewrite(&plain());
        assert_eq!(reload(&gateway).0, 200);
        connected(3);
    });
    assert_eq!(gateway.admin_get("/services")["services"]["logic"]["tls"], Value::Null);
}

#[test]
fn a_wrong_file_refuses_the_reload_and_the_old_one_stays() {
    let office = Office::new();
    let instance = office.echo();
    let gateway = Gateway::start(&config(&instance, &trusting(&office)));
    gateway.wait_connected("logic", &["a"]);
    std::fs::write(office.files.path().join("ca.pem"), "none").expect("written");
    let (status, told) = reload(&gateway);
    assert_eq!(status, 422, "{told}");
    let text = told.to_string();
    assert!(text.contains("service[0].tls.ca_file") && text.contains("holds no certificate"));
    assert_eq!(Client::connect(gateway.ws).call(1001, json!(1))["payload"], 1);
    assert_eq!(gateway.counter("backend_connects"), 1);
    assert_eq!(shown(&gateway)["reachable"], true);
}
