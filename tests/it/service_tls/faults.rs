//! Every way in which a connection with TLS can fail is told in one clear line, by the log and by
//! the admin endpoint.

use rustls::version::{TLS12, TLS13};
use serde_json::json;

use super::{NAME, Office, QUICK, config, shown, trusting};
use crate::support::secure::{Signer, VERSIONS};
use crate::support::{Client, Config, Gateway, Instance, eventually, run};

/// Checks that a gateway of this configuration cannot connect, and says `expected`.
fn fails(config: &Config, expected: &str) {
    let gateway = Gateway::start(config);
    eventually(expected, || {
        let log = gateway.log();
        let mut lines = log.lines().filter(|line| line.contains("instance_down"));
        lines.any(|line| line.contains(expected)).then_some(())
    });
    let why =
        eventually("the reason is shown", || shown(&gateway)["why"].as_str().map(str::to_owned));
    assert!(why.contains(expected), "{why} has no {expected}");
    let health = gateway.admin_get("/health");
    assert!(health["degraded_by"].to_string().contains(expected), "{health}");
    let answer = Client::connect(gateway.ws).call(1001, json!(1));
    assert_eq!(answer["reason"], "UNAVAILABLE", "{answer}");
    assert!(gateway.counter("backend_connect_failed") > 0);
    assert_eq!(gateway.counter("backend_connects"), 0);
}

#[test]
fn a_certificate_that_does_not_prove_the_service_is_refused() {
    let office = Office::new();
    let instance = Instance::echo();
    let services = &office.services;
    let trusting = trusting(&office);
    let other_name = services.service(&["other.test"], &VERSIONS, None);
    let old = services.service_of(&services.pair_of(&[NAME], 2001, 2002), &VERSIONS, None);
    let early = services.service_of(&services.pair_of(&[NAME], 2090, 2091), &VERSIONS, None);
    let nameless = services.service(&[], &VERSIONS, None);
    let unknown = Signer::new().service(&[NAME], &VERSIONS, None);
    for (service, expected) in [
        (unknown, "TLS: no authority in tls.ca_file signed its certificate"),
        (other_name, "TLS: its certificate is not for logic.test (certificate is only valid for"),
        (nameless, "TLS: its certificate is not for logic.test (certificate is not valid for any"),
        (old, "TLS: its certificate has expired"),
        (early, "TLS: its certificate is not valid yet"),
    ] {
        instance.secure(Some(service));
        fails(&config(&instance, &trusting), expected);
    }
    // The authorities of this machine do not know the signer, if there are any.
    if !rustls_native_certs::load_native_certs().certs.is_empty() {
        instance.secure(Some(office.service(&VERSIONS)));
        let expected = "TLS: no authority of this system signed its certificate";
        fails(&config(&instance, &format!("server_name = {NAME:?}")), expected);
    }
    instance.secure(Some(office.service(&VERSIONS)));
    let expected = "TLS: its certificate is not for the address of the instance";
    fails(&config(&instance, &office.ca()), expected);
}

#[test]
fn an_authoritys_own_certificate_is_no_servers() {
    let office = Office::new();
    let mut params = rcgen::CertificateParams::new(vec![NAME.to_owned()]).expect("a name");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().expect("a key");
    let chain = params.self_signed(&key).expect("signed").pem();
    std::fs::write(office.files.path().join("ca.pem"), &chain).expect("written");
    let pair = (chain, key.serialize_pem());
    let instance = Instance::echo();
    instance.secure(Some(office.services.service_of(&pair, &VERSIONS, None)));
    let expected = "TLS: its certificate is that of an authority (CA:TRUE)";
    fails(&config(&instance, &trusting(&office)), expected);
}

#[test]
fn a_service_that_demands_a_certificate_says_so_to_a_gateway_without_one() {
    let office = Office::new();
    let instance = Instance::echo();
    let demanding = |version| office.services.service(&[NAME], &[version], Some(&office.gateways));
    for (version, expected) in [
        (&TLS13, "TLS: it wants a client certificate: set tls.cert_file and tls.key_file"),
        (&TLS12, "set tls.cert_file and tls.key_file"),
    ] {
        instance.secure(Some(demanding(version)));
        fails(&config(&instance, &trusting(&office)), expected);
    }
    // One that another authority signed.
    Signer::new().write(office.files.path(), "gateway", &["gateway"]);
    for version in VERSIONS {
        instance.secure(Some(demanding(version)));
        let tls = format!("{}, {}", trusting(&office), office.own());
        fails(&config(&instance, &tls), "TLS: it refused the certificate in tls.cert_file (alert");
    }
}

#[test]
fn a_service_without_http2_in_the_handshake_is_refused() {
    let office = Office::new();
    let instance = Instance::echo();
    for (alpn, expected) in [
        (vec![], "TLS: it did not choose HTTP/2 in the handshake (ALPN h2)"),
        (vec![b"http/1.1".to_vec()], "TLS: it does not speak HTTP/2 (alert NoApplicationProtocol)"),
    ] {
        let mut service = office.service(&VERSIONS);
        service.alpn_protocols = alpn;
        instance.secure(Some(service));
        fails(&config(&instance, &trusting(&office)), expected);
    }
}

#[test]
fn tls_on_one_side_only_is_told_with_the_way_out() {
    let office = Office::new();
    let plain = Instance::echo();
    // The end of the reason only: the instance may reset the connection before its bytes are read.
    fails(&config(&plain, &trusting(&office)), "speak TLS");
    let secured = office.echo();
    let config = Config::new()
        .shard(QUICK)
        .service("logic", &[("a", secured.address)])
        .route(1000, "logic", "");
    fails(&config, "it speaks TLS: set tls of the service");
}

#[test]
fn a_server_that_closes_without_a_word_may_speak_tls() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    // Ends with the process of the test.
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let config = |lines: &str| {
        Config::new()
            .shard(QUICK)
            .service_with(lines, "logic", &[("a", address)])
            .route(1000, "logic", "")
    };
    fails(&config(""), "closed before its first frame; if it speaks TLS, set tls of the service");
    let office = Office::new();
    let gateway = Gateway::start(&config(&format!("tls = {{ {} }}", trusting(&office))));
    eventually("a reason", || {
        let log = gateway.log();
        let mut lines = log.lines().filter(|line| line.contains("instance_down"));
        lines.any(|line| line.contains("does it speak TLS?")).then_some(())
    });
}

#[test]
fn a_start_and_a_check_with_wrong_files_say_so() {
    let office = Office::new();
    let instance = Instance::echo();
    let dir = office.files.path();
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).expect("written");
    let (chain, key) = office.gateways.pair(&["gateway"]);
    let (other, _) = office.gateways.pair(&["gateway"]);
    let (old, old_key) = office.gateways.pair_of(&["gateway"], 2001, 2002);
    write("junk.pem", "none");
    write("good.pem", &chain);
    write("good.key", &key);
    write("other.pem", &other);
    write("old.pem", &old);
    write("old.key", &old_key);
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n";
    write("locked.key", encrypted);
    let file = |key: &str, name: &str| format!("{key} = {:?}", office.path(name));
    let pair = |cert, key| {
        format!("{}, {}, {}", office.ca(), file("cert_file", cert), file("key_file", key))
    };
    for (tls, expected) in [
        (file("ca_file", "missing.pem"), "service[0].tls.ca_file"),
        (file("ca_file", "missing.pem"), "cannot be opened"),
        (file("ca_file", "junk.pem"), "holds no certificate in PEM"),
        (pair("missing.pem", "good.key"), "service[0].tls.cert_file"),
        (pair("good.pem", "missing.key"), "service[0].tls.key_file"),
        (pair("other.pem", "good.key"), "is not the key of the first certificate"),
        (pair("old.pem", "old.key"), "expired at"),
        (pair("good.pem", "locked.key"), "is encrypted"),
        (file("cert_file", "good.pem"), "tls.cert_file and tls.key_file go together"),
        ("server_name = \"\", sni = \"a\"".into(), "service[0].tls.sni"),
    ] {
        let files = config(&instance, &tls).write();
        let path = files.path().to_str().expect("UTF-8");
        for args in [&["--config", path][..], &["check", "--config", path]] {
            let finished = run(args, |_| ());
            assert_eq!(finished.code, Some(64), "{tls}: {finished:?}");
            let said = format!("{}{}", finished.stdout, finished.stderr);
            assert!(said.contains(expected), "{tls}: {said}");
            assert!(!said.contains("MIIB"), "{said}");
        }
    }
}
