//! TLS for tests: signers, certificates, and clients that trust them.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned,
    SupportedProtocolVersion,
};

use super::PATIENCE;

/// Versions of TLS that the gateway supports.
pub const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// A client's end of a connection.
pub type Stream = StreamOwned<ClientConnection, TcpStream>;

/// A signer of certificates.
pub struct Signer(CertifiedIssuer<'static, KeyPair>);

impl Signer {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("signed"))
    }

    /// PEM of the signer's own certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// PEM of a certificate for `names` that holds from the year `from` to the year `to`, and of
    /// its key.
    pub fn pair_of(&self, names: &[&str], from: i32, to: i32) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(to, 1, 1);
        (self.sign(params, &key), key.serialize_pem())
    }

    /// PEM of a certificate as `params` say, for `key`.
    pub fn sign(&self, params: CertificateParams, key: &KeyPair) -> String {
        params.signed_by(key, &self.0).expect("signed").pem()
    }

    /// PEM of a certificate that holds for long, and of its key.
    pub fn pair(&self, names: &[&str]) -> (String, String) {
        self.pair_of(names, 2000, 2100)
    }

    /// Writes a certificate for `names` into `dir`, as `<file>.pem` and `<file>.key`.
    pub fn write(&self, dir: &Path, file: &str, names: &[&str]) {
        write_pair(dir, file, &self.pair(names));
    }

    /// A client that trusts the signer, in this version of TLS.
    pub fn client(&self, version: &'static SupportedProtocolVersion) -> ClientConfig {
        self.builder(version).with_no_client_auth()
    }

    /// A client like that, which shows a certificate that `by` signed.
    pub fn client_with(
        &self,
        version: &'static SupportedProtocolVersion,
        by: &Signer,
    ) -> ClientConfig {
        let (chain, key) = by.pair(&["client"]);
        let chain = vec![der(&chain)];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
        self.builder(version).with_client_auth_cert(chain, key).expect("a pair")
    }

    /// A service with a certificate of this signer for `names`, in these versions of TLS. With
    /// `clients` it demands certificates of that signer.
    pub fn service(
        &self,
        names: &[&str],
        versions: &[&'static SupportedProtocolVersion],
        clients: Option<&Signer>,
    ) -> ServerConfig {
        self.service_of(&self.pair(names), versions, clients)
    }

    /// Like [`Self::service`], with this certificate and key.
    pub fn service_of(
        &self,
        (chain, key): &(String, String),
        versions: &[&'static SupportedProtocolVersion],
        clients: Option<&Signer>,
    ) -> ServerConfig {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .expect("versions");
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(signer) => {
                let mut roots = RootCertStore::empty();
                roots.add(der(&signer.pem())).expect("it signs");
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
            }
        };
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
        let mut config = builder.with_single_cert(vec![der(chain)], key).expect("a pair");
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    fn builder(
        &self,
        version: &'static SupportedProtocolVersion,
    ) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
        let mut roots = RootCertStore::empty();
        roots.add(der(&self.pem())).expect("it signs");
        ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_root_certificates(Arc::new(roots))
    }
}

/// Writes a chain and its key, each at once: a reload in between finds a pair that does not match.
pub fn write_pair(dir: &Path, file: &str, (chain, key): &(String, String)) {
    std::fs::write(dir.join(format!("{file}.pem")), chain).expect("written");
    std::fs::write(dir.join(format!("{file}.key")), key).expect("written");
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM")
}

/// A socket that sends in random pieces, with a millisecond after each: the pace of a client.
#[derive(Debug)]
pub struct Chopped {
    tcp: TcpStream,
    dice: u64,
    most: u64,
}

impl Chopped {
    /// Connects; pieces have up to `most` bytes.
    pub fn connect(to: SocketAddr, seed: u64, most: u64) -> Self {
        let tcp = TcpStream::connect(to).expect("the gateway listens");
        tcp.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        tcp.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        tcp.set_nodelay(true).expect("an option");
        Self { tcp, dice: seed, most }
    }

    /// Makes a TLS handshake over the socket.
    pub fn secured(
        mut self,
        config: &Arc<ClientConfig>,
        name: &str,
    ) -> StreamOwned<ClientConnection, Self> {
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let mut tls = ClientConnection::new(config.clone(), name).expect("a client");
        while tls.is_handshaking() {
            tls.complete_io(&mut self).expect("a handshake");
        }
        StreamOwned::new(tls, self)
    }
}

impl Read for Chopped {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.tcp.read(into)
    }
}

impl Write for Chopped {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // Knuth's MMIX generator; the high bits are the good ones.
        self.dice =
            self.dice.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let length = (1 + (self.dice >> 33) % self.most).min(bytes.len() as u64) as usize;
        let sent = self.tcp.write(&bytes[..length]);
        std::thread::sleep(std::time::Duration::from_millis(1));
        sent
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.tcp.flush()
    }
}

/// Connects as `config` says, asks for the name `name`, and makes the handshake.
pub fn connect(
    to: SocketAddr,
    config: &Arc<ClientConfig>,
    name: &str,
) -> Result<Stream, std::io::Error> {
    let tcp = TcpStream::connect(to).expect("the gateway listens");
    over(tcp, config, name)
}

/// Makes the handshake over an open connection.
pub fn over(
    mut tcp: TcpStream,
    config: &Arc<ClientConfig>,
    name: &str,
) -> Result<Stream, std::io::Error> {
    tcp.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    tcp.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    tcp.set_nodelay(true).expect("an option");
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let mut tls = ClientConnection::new(config.clone(), name).expect("a client");
    while tls.is_handshaking() {
        tls.complete_io(&mut tcp)?;
    }
    Ok(StreamOwned::new(tls, tcp))
}

/// Reads to the end; returns the bytes, and whether close_notify stood at it.
pub fn rest(stream: &mut Stream) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => (bytes, true),
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => (bytes, false),
        Err(e) => panic!("{e}"),
    }
}

/// Sends `bytes` over TCP, and reads the answer up to the end.
pub fn raw(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut tcp = TcpStream::connect(to).expect("the gateway listens");
    tcp.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    tcp.write_all(bytes).expect("sent");
    let mut answer = Vec::new();
    match tcp.read_to_end(&mut answer) {
        Ok(_) => answer,
        Err(e) => panic!("{e} after {answer:?}"),
    }
}
