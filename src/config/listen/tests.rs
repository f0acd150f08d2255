//! The clients' side: from text to settings, and every problem with it.

use super::*;
use crate::config::load::{Files, from_files};
use crate::config::{Config, Overrides, Problems};

fn of(text: &str) -> Result<Config, Problems> {
    let mut files = Files::embedded();
    files.gateway.text = text.into();
    from_files(files, &[], &Overrides::default())
}

const PAIR: &str = "[[tls_certificate]]\nchain_file = \"a.pem\"\nkey_file = \"a.key\"\n";

#[test]
fn what_is_written_is_what_is_set() {
    let text = format!(
        "listen = \"\"\nproxy.from = [\"10.0.0.0/8\", \"127.0.0.1\", \"fd00::/8\"]\n[tls]\n\
         listen = \"0.0.0.0:443\"\nmin_version = \"1.3\"\nclient_certificates = \"required\"\n\
         client_ca_file = \"ca.pem\"\n{PAIR}"
    );
    let gateway = of(&text).expect("right").gateway;
    let expected = TlsSettings {
        listen: Some("0.0.0.0:443".parse().unwrap()),
        min_version: TlsVersion::V13,
        client_certificates: ClientCertificates::Required,
        client_ca_file: Some("ca.pem".into()),
        certificates: vec![TlsCertificate { chain_file: "a.pem".into(), key_file: "a.key".into() }],
    };
    assert_eq!(gateway.tls, expected);
    assert_eq!(gateway.listens().collect::<Vec<_>>(), [("tls.listen", expected.listen.unwrap())]);
    let within =
        |ip: &str| gateway.proxies.iter().any(|net| net.contains(&ip.parse::<IpAddr>().unwrap()));
    assert!(within("10.1.2.3") && within("127.0.0.1") && within("fd00::1"));
    assert!(!within("11.0.0.1") && !within("127.0.0.2") && !within("::1"));
}

#[test]
fn each_rule_is_told_with_the_way_out() {
    let on = "tls.listen = \"127.0.0.1:1\"";
    let rows = [
        ("listen = \"\"".to_owned(), "nobody could connect: set it, or tls.listen"),
        (on.to_owned(), "needs a certificate: add a [[tls_certificate]]"),
        (format!("tls.listen = \"localhost:1\"\n{PAIR}"), "must be empty, or an IP address"),
        (format!("tls.listen = \"127.0.0.1:9000\"\n{PAIR}"), "are the same port; change one"),
        (format!("tls.listen = \"127.0.0.1:8000\"\n{PAIR}"), "are the same port; change one"),
        (format!("{on}\ntls.min_version = \"1.1\"\n{PAIR}"), "must be one of \"1.2\", \"1.3\""),
        (
            format!("{on}\ntls.client_certificates = \"optional\"\n{PAIR}"),
            "needs tls.client_ca_file",
        ),
        (format!("{on}\n[[tls_certificate]]\nchain_file = \"a\""), "key_file: is missing"),
        (format!("{on}\n{PAIR}{PAIR}"), "is the one of another [[tls_certificate]]"),
        (format!("{on}\n{PAIR}password = \"a\""), "unknown key"),
        (format!("{on}\n{}", PAIR.repeat(33)), "at most 32 of them"),
        ("proxy.from = [\"10.0.0.1/8\"]".to_owned(), "without bits set behind its prefix"),
        ("proxy.from = [\"balancer\"]".to_owned(), "must be an IP address, or a network"),
    ];
    for (text, rule) in rows {
        let told = of(&text).expect_err(&text).to_string();
        assert!(told.contains(rule), "{text}: {told}");
    }
}

#[test]
fn what_is_of_no_use_is_warned_of() {
    for (text, about) in [
        (PAIR.to_owned(), "nobody is shown a [[tls_certificate]]"),
        ("tls.client_ca_file = \"a\"".to_owned(), "no client is asked for a certificate"),
    ] {
        let warnings = of(&text).expect("right").warnings;
        assert!(warnings.iter().any(|w| w.to_string().contains(about)), "{warnings:?}");
    }
}
