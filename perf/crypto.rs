//! What cryptography costs: a token that is verified, and a TLS record each way.

use std::hint::black_box;
use std::io::{Cursor, Write};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use shardgate::auth::Verifier;
use shardgate::auth::load::{FetchedSets, LocalKeys};
use shardgate::auth::mint::{SigningKey, Wanted, mint};
use shardgate::config::Overrides;
use shardgate::config::load::{Files, from_files};
use shardgate::config::settings::{Algorithm, ClientCertificates, TlsVersion};
use shardgate::tls::certificate::Certificate;
use shardgate::tls::provider;
use shardgate::tls::server::{ClientAuth, Server};
use shardgate::tls::session::{CIPHER_BYTES_MAX, Session};

use crate::rig::BATCH;

/// A moment within all dates, in seconds since 1970.
const NOW: i64 = 1_767_225_600;
const SECRET: &str = "no secret: it signs the tokens of a bench";
/// A fixed key, and a signature without randomness: each run does the same.
const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIAE46QnNq944NKvLqstXD9RF4IHKiR0FHmro3ffZxmv9
-----END PRIVATE KEY-----
";
const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAD2lM13r6NXUcNpAb+SPiIHf1+IdXsnNFpfXR+IQKTxU=
-----END PUBLIC KEY-----
";

/// A token of each of two algorithms, and the keys that verify them.
pub struct Tokens {
    verifier: Arc<Verifier>,
    hs256: String,
    eddsa: String,
}

impl Tokens {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("room for a file");
        let key = dir.path().join("key.pem");
        std::fs::write(&key, PUBLIC).expect("room for a file");
        let key = key.display();
        let mut files = Files::embedded();
        files.gateway.text = format!(
            "auth.mode = \"jwt\"\n\
             [[auth_key]]\nid = \"h\"\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\"\n\
             [[auth_key]]\nid = \"e\"\nalgorithm = \"EdDSA\"\npublic_key_file = \"{key}\"\n"
        );
        let config = from_files(files, &[], &Overrides::default()).expect("it is right");
        let keys = LocalKeys::read(&config).expect("both can be used");
        let verifier = keys.verifier(&config, &FetchedSets::new()).expect("clients sign in");
        let token = |algorithm, key_id, key| {
            let wanted = Wanted {
                algorithm,
                key_id: Some(key_id),
                user: "alice",
                tenant: None,
                groups: &[],
                issuer: None,
                audience: None,
                now_unix_s: NOW,
                lifetime_s: 3_600,
            };
            mint(&wanted, key).expect("the key is the algorithm's")
        };
        let hs256 = token(Algorithm::Hs256, "h", SigningKey::Secret(SECRET.as_bytes()));
        let eddsa = token(Algorithm::EdDsa, "e", SigningKey::Private(PRIVATE.as_bytes()));
        Self { verifier, hs256, eddsa }
    }

    /// The algorithm of most tokens that are made on the gateway's own side.
    pub fn hs256(&mut self) {
        black_box(self.verifier.verify(&self.hs256, NOW).expect("a good token"));
    }

    /// An algorithm of identity providers.
    pub fn eddsa(&mut self) {
        black_box(self.verifier.verify(&self.eddsa, NOW).expect("a good token"));
    }
}

/// A TLS 1.3 session of the gateway and its client, past the handshake.
pub struct Records {
    session: Session,
    client: ClientConnection,
    /// Records of the client, one a message.
    records: Vec<Vec<u8>>,
    message: [u8; 100],
    plain: Vec<u8>,
    cipher: Vec<u8>,
}

/// A server with a new certificate for `a.test`, and settings of a client that trusts it.
fn ends() -> (Server, ClientConfig) {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let own = KeyPair::generate().expect("a key");
    let issuer = CertifiedIssuer::self_signed(params, own).expect("an authority");
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["a.test".to_owned()]).expect("a name");
    let chain = params.signed_by(&key, &issuer).expect("a certificate").pem();
    let pem = key.serialize_pem();
    let certificate = Certificate::new(&provider(), chain.as_bytes(), pem.as_bytes(), NOW);
    let nobody_asked = ClientAuth { asked: ClientCertificates::Off, signers: Vec::new() };
    let certificates = [certificate.expect("a good certificate")];
    let server = Server::new(TlsVersion::V13, &certificates, nobody_asked, None);
    let mut roots = RootCertStore::empty();
    roots.add(issuer.der().clone()).expect("an authority");
    let client = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions of the library")
        .with_root_certificates(Arc::new(roots))
        .with_no_client_auth();
    (server.expect("good settings"), client)
}

impl Records {
    pub fn new() -> Self {
        let (server, client) = ends();
        let name = ServerName::try_from("a.test").expect("a name");
        let mut records = Self {
            session: Session::new(&server).expect("good settings"),
            client: ClientConnection::new(Arc::new(client), name).expect("good settings"),
            records: Vec::new(),
            message: [b'x'; 100],
            plain: Vec::with_capacity(1 << 10),
            cipher: vec![0; CIPHER_BYTES_MAX],
        };
        while records.client.is_handshaking() {
            records.shake_hands();
        }
        // The client's last words.
        records.shake_hands();
        records
    }

    /// Carries what either side has to say.
    fn shake_hands(&mut self) {
        let Self { session, client, plain, cipher, .. } = self;
        let mut up = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut up).expect("memory");
        }
        session.receive(&mut up, plain).expect("a good client");
        let mut down = Vec::new();
        session.flush(&[], cipher, |bytes| {
            down.extend_from_slice(bytes);
            Some(bytes.len())
        });
        let mut down = Cursor::new(down);
        while client.read_tls(&mut down).expect("memory") > 0 {
            client.process_new_packets().expect("a good session");
        }
    }

    /// Makes the client's records; not timed.
    pub fn prepare(&mut self) {
        self.records.clear();
        for _ in 0..BATCH {
            let mut record = Vec::new();
            self.client.writer().write_all(&self.message).expect("room");
            self.client.write_tls(&mut record).expect("memory");
            self.records.push(record);
        }
    }

    /// Decrypts a record of a message of 100 bytes, [`BATCH`] times.
    pub fn decrypt(&mut self) {
        let Self { session, records, plain, message, .. } = self;
        for record in records {
            plain.clear();
            session.receive(record, plain).expect("a good record");
            assert_eq!(plain.len(), message.len());
        }
    }

    /// Encrypts an answer of 100 bytes, [`BATCH`] times.
    pub fn encrypt(&mut self) {
        let Self { session, message, cipher, .. } = self;
        for _ in 0..BATCH {
            let sent = session.flush(&message[..], cipher, |bytes| Some(black_box(bytes).len()));
            assert_eq!(sent, Some(message.len()));
        }
    }
}
