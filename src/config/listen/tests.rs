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
        "listen = \"\"\nproxy.from = [\"10.0.0.0/8\", \"127.0.0.1\", \"fd00::/8\"]\n\
         forwarded = {{ from = [\"192.0.2.0/24\"], header = \"forwarded\" }}\n[tls]\n\
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
    let within = |ip: &str| gateway.proxies.has(ip.parse().unwrap());
    assert!(within("10.1.2.3") && within("127.0.0.1") && within("fd00::1"));
    assert!(!within("11.0.0.1") && !within("127.0.0.2") && !within("::1"));
    let Forwarded { from, header } = &gateway.forwarded;
    assert!(from.has("192.0.2.7".parse().unwrap()) && !from.has("10.1.2.3".parse().unwrap()));
    assert_eq!(*header, ForwardedHeader::Forwarded);
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
        ("forwarded.header = \"x-real-ip\"".to_owned(), "\"x-forwarded-for\", \"forwarded\""),
        ("forwarded.from = [\"0.0.0.0/0\"]".to_owned(), "with all of 0.0.0.0/0 every client is"),
        ("forwarded.from = [\"::/1\", \"8000::/1\"]".to_owned(), "must leave somebody out"),
    ];
    for (text, rule) in rows {
        let told = of(&text).expect_err(&text).to_string();
        assert!(told.contains(rule), "{text}: {told}");
    }
}

#[test]
fn a_list_of_peers_holds_nothing_that_no_peer_can_match() {
    let many: Vec<String> = (0..65).map(|n| format!("10.0.0.{n}")).collect();
    for key in ["proxy.from", "forwarded.from"] {
        for (items, rule) in [
            (&["10.0.0.1/8"][..], "write \"10.0.0.0/8\", or \"10.0.0.1\" for the one address"),
            (&["fd00::1/8"], "write \"fd00::/8\", or \"fd00::1\" for the one address"),
            (&["balancer"], "must be an IP address, or a network of them, e.g. \"10.0.0.0/8\""),
            (&["10.0.0.1:80"], "must be an IP address"),
            (&["10.0.0.0/33"], "must be an IP address"),
            (&["10.0.0.1", ""], "item 1 = \"\": must be an IP address"),
            (
                &["::ffff:10.0.0.0/104"],
                "in IPv4's own form, by which each such peer is known: write \
                                       \"10.0.0.0/8\"",
            ),
            (&["::ffff:10.0.0.1"], "write \"10.0.0.1/32\""),
            (&["0.0.0.0"], "must be an address that a peer can have"),
            (&["::/128"], "must be an address that a peer can have"),
            (&many.iter().map(String::as_str).collect::<Vec<_>>(), "at most 64 of them"),
        ] {
            let told = of(&format!("{key} = {items:?}")).expect_err(rule).to_string();
            assert!(told.contains(key) && told.contains(rule), "{items:?}: {told}");
        }
    }
    // Who has all networks behind a balancer of TCP may say so: the header is what tells them.
    assert!(of("proxy.from = [\"0.0.0.0/0\", \"::/0\"]").is_ok());
}

#[test]
fn what_is_of_no_use_is_warned_of() {
    for (text, about) in [
        (PAIR.to_owned(), "nobody is shown a [[tls_certificate]]"),
        ("tls.client_ca_file = \"a\"".to_owned(), "no client is asked for a certificate"),
        ("forwarded.header = \"forwarded\"".to_owned(), "no header is read; set forwarded.from"),
    ] {
        let warnings = of(&text).expect("right").warnings;
        assert!(warnings.iter().any(|w| w.to_string().contains(about)), "{warnings:?}");
    }
}
