//! Every way in which the files of a certificate can be wrong, in one line each.

use std::path::Path;

use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384, date_time_ymd};

use super::*;
use crate::config::Overrides;
use crate::config::key_files::Reading;
use crate::config::load::{Files, from_files};
use crate::tls::load::LocalTls;

/// The problems of these texts; empty = none.
fn told(chain: &str, key: &str) -> String {
    let read = Certificate::new(&provider(), chain.as_bytes(), key.as_bytes(), NOW);
    read.err().map_or(String::new(), |bad| format!("{bad:?}"))
}

fn dated(issuer: &Issuer, from: i32, to: i32) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["a.test".into()]).unwrap();
    params.not_before = date_time_ymd(from, 1, 1);
    params.not_after = date_time_ymd(to, 1, 1);
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

#[test]
fn each_wrong_file_is_told_with_the_way_out() {
    let issuer = issuer();
    let (chain, key) = pair(&issuer, &["a.test"]);
    let (other, _) = pair(&issuer, &["a.test"]);
    let (old, old_key) = dated(&issuer, 2020, 2021);
    let (new, new_key) = dated(&issuer, 2030, 2031);
    let many = chain.repeat(11);
    let with_issuer = |first: &str, second: &str| format!("{first}\n{second}");
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE \
                     KEY-----\n";
    let junk = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let cut = &chain[..chain.len() / 2];
    let rows = [
        (chain.clone(), key.clone(), ""),
        (with_issuer(&chain, &issuer.pem()), key.clone(), ""),
        (with_issuer("a comment\n", &chain), key.clone(), ""),
        (String::new(), key.clone(), "Chain(\"holds no certificate in PEM"),
        ("hello".into(), key.clone(), "Chain(\"holds no certificate in PEM"),
        (key.clone(), key.clone(), "Chain(\"holds no certificate in PEM"),
        (cut.into(), key.clone(), "Chain(\"is not PEM"),
        (junk.into(), key.clone(), "Chain(\"certificate 1 of it is no X.509"),
        (with_issuer(&chain, junk), key.clone(), "Chain(\"certificate 2 of it is no X.509"),
        (many, key.clone(), "Chain(\"holds 11 certificates; at most 10"),
        (old, old_key, "Chain(\"expired at Jan  1 00:00:00 2021"),
        (new, new_key, "Chain(\"is not valid before Jan  1 00:00:00 2030"),
        (chain.clone(), String::new(), "Key(\"holds no private key in PEM"),
        (chain.clone(), chain.clone(), "Key(\"holds no private key in PEM"),
        (chain.clone(), encrypted.into(), "Key(\"is encrypted"),
        (chain.clone(), key[..key.len() / 2].into(), "Key(\"is not PEM"),
        (other, key.clone(), "Key(\"is not the key of the first certificate"),
        (with_issuer(&issuer.pem(), &chain), key.clone(), "Key(\"is not the key of the first"),
    ];
    for (n, (chain, key, expected)) in rows.into_iter().enumerate() {
        let told = told(&chain, &key);
        assert!(
            told.starts_with(expected) && told.is_empty() == expected.is_empty(),
            "{n}: {told}"
        );
        assert!(!told.contains('\n') && !told.contains("MII"), "{told}");
    }
}

#[test]
fn keys_of_the_usual_kinds_are_taken() {
    let issuer = issuer();
    for algorithm in [&PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let params = CertificateParams::new(vec!["a.test".into()]).unwrap();
        let chain = params.signed_by(&key, &issuer).unwrap().pem();
        assert_eq!(told(&chain, &key.serialize_pem()), "");
    }
}

fn read(dir: &Path, lines: &str, before: Option<&LocalTls>) -> Result<LocalTls, Vec<String>> {
    let mut files = Files::embedded();
    let at = |name: &str| dir.join(name).display().to_string();
    files.gateway.text = format!(
        "tls.listen = \"127.0.0.1:1\"\n{lines}\n[[tls_certificate]]\nchain_file = \"{}\"\n\
         key_file = \"{}\"\n",
        at("chain.pem"),
        at("key.pem")
    );
    let config = from_files(files, &[], &Overrides::default()).unwrap();
    LocalTls::read(&config, NOW, before, Reading::Start)
        .map_err(|problems| problems.0.iter().map(ToString::to_string).collect())
}

#[test]
fn files_are_found_by_their_keys_and_all_problems_are_told_at_once() {
    let (dir, issuer) = (tempfile::tempdir().unwrap(), issuer());
    let (chain, key) = pair(&issuer, &["a.test"]);
    let ca = dir.path().join("ca.pem");
    let asked = format!(
        "tls.client_certificates = \"required\"\ntls.client_ca_file = {:?}",
        ca.display().to_string()
    );
    let told = read(dir.path(), &asked, None).unwrap_err();
    assert_eq!(told.len(), 3, "{told:?}");
    let keys = ["tls_certificate[0].chain_file", "tls_certificate[0].key_file", "client_ca_file"];
    for (line, key) in told.iter().zip(keys) {
        assert!(line.contains(key) && line.contains("cannot be opened"), "{line}");
    }
    std::fs::write(dir.path().join("chain.pem"), &chain).unwrap();
    std::fs::write(dir.path().join("key.pem"), &key).unwrap();
    std::fs::write(&ca, "none").unwrap();
    let told = read(dir.path(), &asked, None).unwrap_err();
    assert!(told.len() == 1 && told[0].contains("holds no certificate"), "{told:?}");
    std::fs::write(&ca, issuer.pem()).unwrap();
    let first = read(dir.path(), &asked, None).unwrap();
    assert!(first.certificates()[0].file.ends_with("chain.pem"));
    assert!(first.certificates()[0].expires > NOW);
    // Another file with the same lines: the contents that were read count.
    std::fs::write(dir.path().join("key.pem"), "none").unwrap();
    let told = read(dir.path(), &asked, Some(&first)).unwrap_err();
    assert!(told[0].contains("holds no private key"), "{told:?}");
    assert!(first.server().is_some());
}
