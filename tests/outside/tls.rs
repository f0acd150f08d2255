//! TLS from outside: a scanner that tries everything old, and a client of OpenSSL's.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use crate::support::{Checkout, Running, available, free_port, run, succeeds};

/// A gateway with TLS on a port of its own.
struct Secured {
    checkout: Checkout,
    gateway: Running,
    wss: SocketAddr,
    /// File of the certificate's signer.
    ca: PathBuf,
}

impl Secured {
    fn start(wanted: &[&str]) -> Self {
        let checkout = Checkout::new();
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        // With one name for both OpenSSL takes the other for self-signed.
        params.distinguished_name.push(DnType::CommonName, "who signs");
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("signed");
        let mut params = CertificateParams::new(vec!["127.0.0.1".into()]).expect("an address");
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().expect("a key");
        let chain = params.signed_by(&key, &issuer).expect("signed");
        let file = |name: &str, text: &str| {
            let path = checkout.path().join(name);
            fs::write(&path, text).expect("the directory is ours");
            path
        };
        let ca = file("ca.pem", &issuer.pem());
        let chain = file("chain.pem", &chain.pem());
        let key = file("key.pem", &key.serialize_pem());
        let toml = checkout.path().join("shards/gateway.toml");
        let text = fs::read_to_string(&toml).expect("it is there");
        let table = format!("[[tls_certificate]]\nchain_file = {chain:?}\nkey_file = {key:?}\n");
        fs::write(&toml, text + &table).expect("the directory is ours");
        let wss = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let gateway =
            checkout.gateway(&[("SHARDGATE__TLS__LISTEN", &format!("\"{wss}\""))], wanted);
        Self { checkout, gateway, wss, ca }
    }
}

/// Value of the attribute `name` of an XML element.
fn attribute<'a>(element: &'a str, name: &str) -> &'a str {
    let (_, rest) = element.split_once(&format!(" {name}=\"")).unwrap_or_default();
    rest.split('"').next().unwrap_or_default()
}

#[test]
fn sslscan_finds_nothing_old_and_nothing_weak() {
    let found = succeeds("sslscan", &["--version"]);
    if !available("sslscan_finds_nothing_old_and_nothing_weak", "sslscan", found) {
        return;
    }
    let Secured { checkout, gateway, wss, .. } = Secured::start(&[]);
    run(&mut checkout.shell(&format!("sslscan --xml=scan.xml --no-colour {wss}")));
    let xml = fs::read_to_string(checkout.path().join("scan.xml")).expect("it wrote it");
    let all = |name: &str| -> Vec<&str> {
        xml.split('<').filter(|element| element.starts_with(&format!("{name} "))).collect()
    };
    let enabled: Vec<(&str, &str)> = all("protocol")
        .into_iter()
        .filter(|p| attribute(p, "enabled") == "1")
        .map(|p| (attribute(p, "type"), attribute(p, "version")))
        .collect();
    assert_eq!(enabled, [("tls", "1.2"), ("tls", "1.3")], "{xml}");
    assert!(all("protocol").len() >= 6, "it tried the old ones: {xml}");
    let ciphers = all("cipher");
    assert_eq!(ciphers.len(), 6, "{xml}");
    for cipher in ciphers {
        assert!(["acceptable", "strong"].contains(&attribute(cipher, "strength")), "{cipher}");
        let name = attribute(cipher, "cipher");
        let modern = name.contains("GCM") || name.contains("CHACHA20");
        assert!(modern && (name.starts_with("TLS_") || name.starts_with("ECDHE-")), "{cipher}");
    }
    let heart = all("heartbleed");
    assert!(heart.len() == 2 && heart.iter().all(|h| attribute(h, "vulnerable") == "0"), "{xml}");
    let packed = all("compression");
    assert!(packed.iter().all(|c| attribute(c, "supported") == "0"), "{xml}");
    let again = all("renegotiation");
    assert!(again.len() == 1 && attribute(again[0], "supported") == "0", "{xml}");
    assert_eq!(gateway.stop().code(), Some(0));
}

#[test]
fn python_websockets_converses_over_tls() {
    let found = succeeds("python3", &["-c", "import websockets.asyncio.client"]);
    if !available("python_websockets_converses_over_tls", "python3 with websockets", found) {
        return;
    }
    let Secured { checkout, gateway, wss, ca } = Secured::start(&["logic", "chat", "fight"]);
    let line = format!("python3 tests/interop/client.py wss://{wss}/ws");
    let said = run(checkout.shell(&line).env("SSL_CERT_FILE", &ca));
    assert!(said.contains("all as it should be"), "{said}");
    assert_eq!(gateway.stop().code(), Some(0));
}
