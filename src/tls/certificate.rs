//! A certificate of the gateway: read from its files, and checked for every fault that otherwise
//! only the other side would notice.

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, RootCertStore};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Most certificates in one chain: public chains have two or three.
const CHAIN_MAX: usize = 10;

/// A certificate with its key, valid at the time when it was read.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The chain and the private key, for handshakes.
    pub(crate) key: std::sync::Arc<CertifiedKey>,
    /// Unix time in seconds after which the certificate is not valid.
    pub(crate) expires: i64,
}

/// A fault of one of the two files: the rule and the way out. It contains no part of the key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BadCertificate {
    /// A fault of the file with the chain.
    Chain(String),
    /// A fault of the file with the key.
    Key(String),
}

impl Certificate {
    /// Makes a certificate of the contents of the two files, at Unix time `now` in seconds.
    pub fn new(
        provider: &CryptoProvider,
        chain: &[u8],
        key: &[u8],
        now: i64,
    ) -> Result<Self, BadCertificate> {
        let certificates = certificates(chain).map_err(BadCertificate::Chain)?;
        if certificates.len() > CHAIN_MAX {
            let many = certificates.len();
            return Err(BadCertificate::Chain(format!(
                "holds {many} certificates; at most {CHAIN_MAX}"
            )));
        }
        let expires = check_dates(&certificates[0], now).map_err(BadCertificate::Chain)?;
        let key = private_key(key).map_err(BadCertificate::Key)?;
        let key = provider.key_provider.load_private_key(key).map_err(|_| {
            let rule = "holds no key that TLS can use: RSA of 2048 bits or more, ECDSA on P-256, \
                        P-384 or P-521, Ed25519";
            BadCertificate::Key(rule.into())
        })?;
        let key = CertifiedKey::new(certificates, key);
        match key.keys_match() {
            Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(_) => {
                let rule = "is not the key of the first certificate in the other file; the \
                            certificate stands before those that sign it";
                return Err(BadCertificate::Key(rule.into()));
            }
        }
        Ok(Self { key: key.into(), expires })
    }
}

/// The certificates in a PEM text; at least one.
pub(crate) fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let all = all.map_err(|error| not_pem(&error))?;
    if all.is_empty() {
        let rule = "holds no certificate in PEM (-----BEGIN CERTIFICATE-----)";
        // "PRIVATE KEY-----" is the end of every such label: RSA, EC, or none before it.
        let is_key = text.windows(16).any(|part| part == b"PRIVATE KEY-----");
        let way_out = if is_key { ", but a private key: are the two files swapped?" } else { "" };
        return Err(format!("{rule}{way_out}"));
    }
    for (index, der) in all.iter().enumerate() {
        if X509Certificate::from_der(der).is_err() {
            return Err(format!("certificate {} of it is no X.509 certificate", index + 1));
        }
    }
    Ok(all)
}

fn not_pem(error: &pem::Error) -> String {
    format!("is not PEM: {}", error.to_string().lines().next().unwrap_or_default())
}

/// Time of expiry, if the certificate is valid now. The certificates that sign it are not checked:
/// clients may know other ones.
fn check_dates(der: &CertificateDer<'_>, now: i64) -> Result<i64, String> {
    let unreadable = |_| "is no X.509 certificate".to_owned();
    let (_, certificate) = X509Certificate::from_der(der).map_err(unreadable)?;
    let validity = certificate.validity();
    let (from, to) = (validity.not_before, validity.not_after);
    if now > to.timestamp() {
        return Err(format!("expired at {to}: renew it, then start or reload"));
    }
    if now < from.timestamp() {
        return Err(format!("is not valid before {from}: see that the clock is right"));
    }
    Ok(to.timestamp())
}

fn private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    let has = |label: &[u8]| text.windows(label.len()).any(|part| part == label);
    if has(b"BEGIN ENCRYPTED PRIVATE KEY") || has(b"Proc-Type: 4,ENCRYPTED") {
        let rule = "is encrypted, and nobody is there to type the passphrase: write it without \
                    one, mode 0600, with: openssl pkey -in FILE -out FILE";
        return Err(rule.into());
    }
    PrivateKeyDer::from_pem_slice(text).map_err(|error| match error {
        pem::Error::NoItemsFound => {
            "holds no private key in PEM (-----BEGIN PRIVATE KEY-----)".into()
        }
        error => not_pem(&error),
    })
}

/// Certificates of the system that can be authorities, without those of forms that nobody can use,
/// which some systems have.
pub(crate) fn usable_roots(all: &[CertificateDer<'static>]) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(all.iter().cloned());
    roots
}

/// The certificates as authorities. The error says which of them cannot be one.
pub(crate) fn roots(all: &[CertificateDer<'static>]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in all.iter().enumerate() {
        roots.add(certificate.clone()).map_err(|error| {
            let n = index + 1;
            format!("certificate {n} of it cannot sign others ({error}): put an authority's there")
        })?;
    }
    Ok(roots)
}
