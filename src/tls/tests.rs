//! Sessions against rustls' own client in memory, names, tickets, and faults of files.

mod files;
mod memory;
mod names;
mod sessions;

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

use super::certificate::Certificate;
use super::provider;
use super::server::{ClientAuth, Server};
use crate::config::settings::{ClientCertificates, TlsVersion};

/// 2026-01-01, within the dates that rcgen gives.
const NOW: i64 = 1_767_225_600;

type Issuer = CertifiedIssuer<'static, KeyPair>;

/// A certificate authority.
fn issuer() -> Issuer {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// PEM of a certificate for `names`, and of its key.
fn pair(issuer: &Issuer, names: &[&str]) -> (String, String) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, issuer).unwrap();
    (certificate.pem(), key.serialize_pem())
}

fn certificate(issuer: &Issuer, names: &[&str]) -> Certificate {
    let (chain, key) = pair(issuer, names);
    Certificate::new(&provider(), chain.as_bytes(), key.as_bytes(), NOW).unwrap()
}

fn nobody_asked() -> ClientAuth {
    ClientAuth { asked: ClientCertificates::Off, signers: Vec::new() }
}

fn der(issuer: &Issuer) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(issuer.pem().as_bytes()).unwrap()
}

fn server(issuer: &Issuer, names: &[&str]) -> Server {
    let certificates = [certificate(issuer, names)];
    Server::new(TlsVersion::V12, &certificates, nobody_asked(), None).unwrap()
}

/// A client that trusts `issuer` and speaks `versions`.
fn client(issuer: &Issuer, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(der(issuer)).unwrap();
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(Arc::new(roots))
        .with_no_client_auth()
}
