//! The channel over TLS: the bytes that TLS holds leave, and connections are replaced in order.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::rig::{Rig, run, settings};
use super::service::serve_h2_over;
use crate::backend::channel::ChannelEvent;
use crate::tls::provider;
use crate::tls::service::{Parts, ServiceTls, Trusted};

/// Settings of a service on this host, and of a gateway that trusts it.
fn both_sides() -> (ServerConfig, Arc<ServiceTls>) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned()];
    let own = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    let der = |pem: String| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let mut server = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![der(own.pem())], key)
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec()];
    let trusted = Trusted::File(vec![der(issuer.pem())].into());
    let tls = ServiceTls::new(Parts { trusted, name: None, own: None }).unwrap();
    (server, tls.into())
}

fn rig(address: SocketAddr, tls: &Arc<ServiceTls>) -> Rig {
    Rig::secured(address.into(), settings(), Some(tls.clone()))
}

#[test]
fn messages_larger_than_every_buffer_travel_both_ways() {
    let (server, tls) = both_sides();
    let server = serve_h2_over(Some(server), |message| message);
    run(async move {
        let mut rig = rig(server.address, &tls);
        let large: Vec<Vec<u8>> = (0..8).map(|n| vec![b'a' + n; 900_000]).collect();
        let tickets: Vec<_> = large.iter().map(|payload| rig.send(payload, 15_000)).collect();
        for (ticket, payload) in tickets.into_iter().zip(&large) {
            assert!(rig.outcome(ticket).await.unwrap() == payload[..]);
        }
        assert_eq!(rig.ups_and_downs(), (1, 0));
        rig.close().await;
    });
}

#[test]
fn a_chain_of_calls_waits_for_no_bytes_that_tls_holds() {
    let (server, tls) = both_sides();
    let server = serve_h2_over(Some(server), |_| Bytes::from_static(b"next"));
    run(async move {
        let mut rig = rig(server.address, &tls);
        let first = rig.send_chain(500);
        rig.outcome(first).await.unwrap();
        rig.until("all outcomes", || rig.outcome_count() == 500).await;
        rig.close().await;
    });
}

#[test]
fn other_settings_replace_the_connection_and_a_failed_attempt_is_told() {
    let (server, tls) = both_sides();
    let (_, stranger) = both_sides();
    let server = serve_h2_over(Some(server), |message| message);
    run(async move {
        let mut rig = rig(server.address, &tls);
        rig.until_up().await;
        rig.channel.secure(Some(stranger));
        let is_told = |event: &ChannelEvent| matches!(event, ChannelEvent::NotReplaced { .. });
        rig.until("a failed attempt", || rig.events.borrow().iter().any(is_told)).await;
        let ticket = rig.send(b"still here", 5_000);
        assert_eq!(rig.outcome(ticket).await.unwrap(), "still here");
        rig.channel.secure(Some(tls));
        rig.until("another connection", || rig.ups_and_downs() == (2, 0)).await;
        let ticket = rig.send(b"new", 5_000);
        assert_eq!(rig.outcome(ticket).await.unwrap(), "new");
        rig.close().await;
    });
}
