//! Certificates by name, certificates of clients, and tickets.

use std::io::Cursor;

use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, ClientConfig, ClientConnection, Error, HandshakeKind};

use super::*;
use crate::tls::session::{CIPHER_BYTES_MAX, Failure, Session};

/// Makes a whole handshake: returns the client, and the reason if it failed at the server.
fn shake(
    server: &Server,
    config: Arc<ClientConfig>,
    name: &str,
) -> (ClientConnection, Result<(), Error>, Option<Failure>) {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(config, name).unwrap();
    let mut session = Session::new(server).unwrap();
    let (mut failure, mut result) = (None, Ok(()));
    for _ in 0..4 {
        let (mut up, mut down) = (Vec::new(), Vec::new());
        while client.wants_write() {
            client.write_tls(&mut up).unwrap();
        }
        failure = failure.or(session.receive(&mut up, &mut Vec::new()).err());
        session.flush(&[], &mut vec![0; CIPHER_BYTES_MAX], |bytes| {
            down.extend_from_slice(bytes);
            Some(bytes.len())
        });
        let mut down = Cursor::new(down);
        while result.is_ok() && client.read_tls(&mut down).unwrap() > 0 {
            result = client.process_new_packets().map(drop);
        }
    }
    (client, result, failure)
}

fn shown(server: &Server, issuer: &Issuer, name: &str) -> Result<Vec<u8>, Error> {
    let (client, result, _) = shake(server, client(issuer, &[&TLS13]).into(), name);
    result.map(|()| client.peer_certificates().unwrap()[0].to_vec())
}

#[test]
fn the_first_certificate_that_covers_the_name_is_shown() {
    let issuer = issuer();
    let names: [&[&str]; 3] = [&["a.test"], &["*.w.test", "b.example"], &["c.w.test", "b.example"]];
    let all = names.map(|names| certificate(&issuer, names));
    let server = Server::new(TlsVersion::V12, &all, nobody_asked(), None).unwrap();
    let of = |n: usize| all[n].key.cert[0].to_vec();
    for (name, expected) in
        [("a.test", 0), ("A.TEST", 0), ("x.w.test", 1), ("c.w.test", 1), ("b.example", 1)]
    {
        assert_eq!(shown(&server, &issuer, name).unwrap(), of(expected), "{name}");
    }
    for name in ["test", "x.y.w.test", "w.test", "b.example.org", "example"] {
        let (_, result, failure) = shake(&server, client(&issuer, &[&TLS13]).into(), name);
        let alert = Error::AlertReceived(AlertDescription::UnrecognisedName);
        assert_eq!(result, Err(alert), "{name}");
        assert_eq!(failure, Some(Failure::Name));
        let (_, result, _) = shake(&server, client(&issuer, &[&TLS12]).into(), name);
        assert!(result.is_err(), "{name}");
    }
    // An address is no name, so no name is sent: the first certificate is shown, and the client
    // checks it.
    assert!(matches!(shown(&server, &issuer, "127.0.0.1"), Err(Error::InvalidCertificate(_))));
    let mut silent = client(&issuer, &[&TLS13]);
    silent.enable_sni = false;
    let (client, result, _) = shake(&server, silent.into(), "a.test");
    assert_eq!(result, Ok(()));
    assert_eq!(client.peer_certificates().unwrap()[0].to_vec(), of(0));
}

#[test]
fn only_http_1_1_is_spoken_inside() {
    let issuer = issuer();
    let server = server(&issuer, &["a.test"]);
    let rows: [(&[&[u8]], bool); 4] =
        [(&[], true), (&[b"http/1.1"], true), (&[b"h2", b"http/1.1"], true), (&[b"h2"], false)];
    for (offered, good) in rows {
        let mut config = client(&issuer, &[&TLS13]);
        config.alpn_protocols = offered.iter().map(|p| p.to_vec()).collect();
        let (client, result, failure) = shake(&server, config.into(), "a.test");
        if good {
            assert_eq!((result, failure), (Ok(()), None), "{offered:?}");
            let chosen = client.alpn_protocol();
            assert_eq!(chosen, (!offered.is_empty()).then_some(&b"http/1.1"[..]));
        } else {
            let alert = Error::AlertReceived(AlertDescription::NoApplicationProtocol);
            assert_eq!((result, failure), (Err(alert), Some(Failure::Protocol)));
        }
    }
}

#[test]
fn the_oldest_version_is_as_configured() {
    let issuer = issuer();
    let certificates = [certificate(&issuer, &["a.test"])];
    let server = Server::new(TlsVersion::V13, &certificates, nobody_asked(), None).unwrap();
    let (_, result, failure) = shake(&server, client(&issuer, &[&TLS12]).into(), "a.test");
    assert_eq!(result, Err(Error::AlertReceived(AlertDescription::ProtocolVersion)));
    assert_eq!(failure, Some(Failure::Incompatible));
    assert!(shown(&server, &issuer, "a.test").is_ok());
}

#[test]
fn a_ticket_is_good_at_every_server_made_of_the_one_before() {
    let (issuer, signer) = (issuer(), issuer());
    let certificates = [certificate(&issuer, &["a.test"])];
    let make = |clients: ClientAuth, before: Option<&Server>| {
        Server::new(TlsVersion::V12, &certificates, clients, before).unwrap()
    };
    for version in [&TLS12, &TLS13] {
        let first = make(nobody_asked(), None);
        let config = Arc::new(client(&issuer, &[version]));
        let kind = |server: &Server| {
            let (client, result, _) = shake(server, config.clone(), "a.test");
            result.unwrap();
            client.handshake_kind().unwrap()
        };
        assert_eq!(kind(&first), HandshakeKind::Full);
        assert_eq!(kind(&first), HandshakeKind::Resumed);
        let second = make(nobody_asked(), Some(&first));
        assert_eq!(kind(&second), HandshakeKind::Resumed);
        let asked = ClientCertificates::Optional;
        let other = make(ClientAuth { asked, signers: vec![der(&signer)] }, Some(&second));
        assert_eq!(kind(&other), HandshakeKind::Full, "it asks for certificates now");
        assert_eq!(kind(&other), HandshakeKind::Full, "it asks each time");
    }
}

#[test]
fn client_certificates_are_asked_for_as_configured() {
    let (issuer, signer, stranger) = (issuer(), issuer(), issuer());
    let certificates = [certificate(&issuer, &["a.test"])];
    let with = |signer: &Issuer| {
        let (chain, key) = pair(signer, &["client"]);
        let mut roots = RootCertStore::empty();
        roots.add(der(&issuer)).unwrap();
        ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS12])
            .unwrap()
            .with_root_certificates(Arc::new(roots))
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap()
    };
    let (good, bad) = (Arc::new(with(&signer)), Arc::new(with(&stranger)));
    let none = Arc::new(client(&issuer, &[&TLS12]));
    let rows = [
        (ClientCertificates::Off, [true, true, true]),
        (ClientCertificates::Optional, [true, false, true]),
        (ClientCertificates::Required, [true, false, false]),
    ];
    for (asked, expected) in rows {
        let signers = match asked {
            ClientCertificates::Off => Vec::new(),
            ClientCertificates::Optional | ClientCertificates::Required => vec![der(&signer)],
        };
        let clients = ClientAuth { asked, signers };
        let server = Server::new(TlsVersion::V12, &certificates, clients, None).unwrap();
        for (config, expected) in [&good, &bad, &none].into_iter().zip(expected) {
            let (_, result, failure) = shake(&server, config.clone(), "a.test");
            let wanted = (!expected).then_some(Failure::Certificate);
            assert_eq!((result.is_ok(), failure), (expected, wanted), "{asked:?}");
        }
    }
}
