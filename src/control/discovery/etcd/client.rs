//! Calls to etcd: connecting, authenticating, reading pages of keys, watching.

use std::error::Error;
use std::fs;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;
use tokio_stream::StreamExt;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Response, Status, Streaming};

use super::proto::etcdserverpb::auth_client::AuthClient;
use super::proto::etcdserverpb::kv_client::KvClient;
use super::proto::etcdserverpb::watch_client::WatchClient;
use super::proto::etcdserverpb::watch_request::RequestUnion;
use super::proto::etcdserverpb::{
    AuthenticateRequest, RangeRequest, RangeResponse, WatchCreateRequest, WatchRequest,
    WatchResponse,
};
use super::view::{FOLDERS, Folder};
use crate::config::settings::EtcdSettings;

/// Longest wait for a connection, for a unary answer, and for a watch to be confirmed.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Time without a byte after which a PING is sent. etcd refuses more than one in 5 s.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Longest wait for the answer to a PING; then the connection is dead.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer. A page of 1,000 good keys has at most 1,000 * (4,096 + 512 + 32) bytes = 4.6 MB;
/// one key with etcd's default limits at most 1.5 MiB.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// Largest file with a certificate, key or password.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Characters of a server's or library's text that are passed on.
const TEXT_MAX: usize = 200;

/// Reason why a call failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The revision asked for was compacted away.
    Compacted,
    /// The answer has more than [`ANSWER_BYTES_MAX`].
    TooLarge,
    /// The token is not, or no longer, good.
    Token,
    /// Any other fault, with its reason and advice.
    Other { why: String, advice: &'static str },
}

const ADVICE_REACH: &str = "see that etcd runs there and etcd.endpoints is right";
const ADVICE_TLS: &str = "see etcd.ca_file, etcd.cert_file and etcd.key_file";
/// Advice where the end of the connection may have come before the alert that tells why.
const ADVICE_CLOSED: &str = "see that etcd runs there; if it asks for a certificate, \
                             see etcd.ca_file, etcd.cert_file and etcd.key_file";
const ADVICE_USER: &str = "see etcd.user and its password";
const ADVICE_ROLE: &str = "grant the user of etcd.user a role that may read the prefix";
const ADVICE_MEMBER: &str = "see the log of that member and `etcdctl endpoint status`";

impl Fault {
    /// A fault of the server, in the caller's own words.
    pub fn said(why: impl Into<String>) -> Self {
        Fault::Other { why: cut(&why.into()), advice: ADVICE_MEMBER }
    }

    /// Text of the fault, in one line.
    pub fn why(&self) -> &str {
        match self {
            Fault::Compacted => "the revisions asked for are compacted away again and again",
            Fault::TooLarge => "a value under the prefix is too large to be read",
            Fault::Token => "the token that was just given is refused",
            Fault::Other { why, .. } => why,
        }
    }

    /// Advice to the operator, in one line.
    pub fn advice(&self) -> &'static str {
        match self {
            Fault::Compacted => "see what compacts etcd so often",
            Fault::TooLarge => "remove it: values have at most 4 KiB",
            Fault::Token => ADVICE_USER,
            Fault::Other { advice, .. } => advice,
        }
    }

    fn silent() -> Self {
        let why = format!("no answer within {} s", ANSWER_TIMEOUT.as_secs());
        Fault::Other { why, advice: ADVICE_REACH }
    }
}

impl From<Status> for Fault {
    fn from(status: Status) -> Self {
        let text = status.message();
        if let Some(cause) = status.source() {
            return unreachable_for(cause);
        }
        let advice = match status.code() {
            Code::OutOfRange if text.contains("compacted") => return Fault::Compacted,
            Code::OutOfRange if text.contains("length too large") => return Fault::TooLarge,
            Code::Unauthenticated => return Fault::Token,
            // The token was made with rights that have changed since.
            Code::InvalidArgument if text.contains("auth store is old") => return Fault::Token,
            Code::PermissionDenied if text.contains("token") => return Fault::Token,
            Code::PermissionDenied => ADVICE_ROLE,
            Code::InvalidArgument => ADVICE_USER,
            _ => ADVICE_MEMBER,
        };
        Fault::Other { why: cut(text), advice }
    }
}

/// A fault with the text of the innermost error: the outer ones only say that there is one.
fn unreachable_for(error: &(dyn Error + 'static)) -> Fault {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let why = cause.to_string();
    let tls = ["certificate", "alert", "TLS", "corrupt message"].iter().any(|w| why.contains(w));
    let advice = match why.contains("connection closed") {
        _ if tls => ADVICE_TLS,
        true => ADVICE_CLOSED,
        false => ADVICE_REACH,
    };
    Fault::Other { why: cut(&why), advice }
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

/// Endpoints and credentials. Holds secrets: never printed.
pub struct Endpoints {
    /// Endpoints, each as text of the settings and ready to be used.
    list: Vec<(String, Endpoint)>,
    user: Option<(String, String)>,
}

impl Endpoints {
    /// Reads the files that the settings name. An error says which key and file.
    pub fn new(settings: &EtcdSettings) -> Result<Self, String> {
        let mut tls = ClientTlsConfig::new();
        tls = match &settings.ca_file {
            Some(path) => {
                let pem = read_pem("etcd.ca_file", path, "CERTIFICATE")?;
                tls.ca_certificate(Certificate::from_pem(pem))
            }
            None => tls.with_native_roots(),
        };
        if let (Some(cert), Some(key)) = (&settings.cert_file, &settings.key_file) {
            let cert = read_pem("etcd.cert_file", cert, "CERTIFICATE")?;
            let key = read_pem("etcd.key_file", key, "PRIVATE KEY")?;
            tls = tls.identity(Identity::from_pem(cert, key));
        }
        let endpoints = settings.endpoints.iter().map(|text| {
            let ready = endpoint(text, &tls);
            ready
                .map(|ready| (text.clone(), ready))
                .map_err(|error| format!("etcd {text}: {error}"))
        });
        let endpoints = endpoints.collect::<Result<Vec<_>, _>>()?;
        if endpoints.is_empty() {
            return Err("etcd.endpoints is empty".into());
        }
        let password = match (&settings.password, &settings.password_file) {
            (Some(password), _) => Some(password.expose().to_owned()),
            (None, Some(path)) => {
                let text = read_file("etcd.password_file", path)?;
                Some(text.trim_end_matches(['\r', '\n']).to_owned())
            }
            (None, None) => None,
        };
        let user = (!settings.user.is_empty()).then(|| settings.user.clone());
        Ok(Self { list: endpoints, user: user.zip(password) })
    }

    /// Number of the endpoints in the settings.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Endpoint `at` as written in the settings.
    pub fn name(&self, at: usize) -> &str {
        &self.list[at].0
    }

    /// Connects to endpoint `at`.
    pub async fn connect(&self, at: usize) -> Result<Client, Fault> {
        let connecting = timeout(ANSWER_TIMEOUT, self.list[at].1.connect());
        let channel = connecting.await.map_err(|_| Fault::silent())?;
        let channel = channel.map_err(|error| unreachable_for(&error))?;
        Ok(Client { channel, user: self.user.clone(), token: None })
    }
}

fn endpoint(text: &str, tls: &ClientTlsConfig) -> Result<Endpoint, String> {
    let endpoint = Endpoint::from_shared(text.to_owned()).map_err(|error| error.to_string())?;
    let endpoint = endpoint
        .connect_timeout(ANSWER_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    if endpoint.uri().scheme_str() != Some("https") {
        return Ok(endpoint);
    }
    // Certificates name IPv6 addresses without brackets.
    let host = endpoint.uri().host().unwrap_or_default();
    let tls = tls.clone().domain_name(host.trim_matches(['[', ']']));
    endpoint.tls_config(tls).map_err(|error| match unreachable_for(&error) {
        Fault::Other { why, .. } => format!("{why}; {ADVICE_TLS}"),
        Fault::Compacted | Fault::TooLarge | Fault::Token => ADVICE_TLS.into(),
    })
}

/// A file of PEM that has at least one block that ends in `label`.
fn read_pem(key: &str, path: &Path, label: &str) -> Result<String, String> {
    let text = read_file(key, path)?;
    let found = text.lines().any(|line| {
        line.strip_prefix("-----BEGIN ")
            .is_some_and(|l| l.trim_end().ends_with(&format!("{label}-----")))
    });
    if found { Ok(text) } else { Err(format!("{key}: {} has no {label} in PEM", path.display())) }
}

fn read_file(key: &str, path: &Path) -> Result<String, String> {
    let size = fs::metadata(path).map_err(|error| format!("{key}: {}: {error}", path.display()))?;
    if size.len() > FILE_BYTES_MAX {
        return Err(format!("{key}: {} has over {FILE_BYTES_MAX} bytes", path.display()));
    }
    fs::read_to_string(path).map_err(|error| format!("{key}: {}: {error}", path.display()))
}

/// A connection to one endpoint.
pub struct Client {
    channel: Channel,
    user: Option<(String, String)>,
    token: Option<MetadataValue<Ascii>>,
}

impl Client {
    /// Gets a new token, if a user is configured. Tokens end 5 minutes after their last use, so
    /// every listing and watch begins with a new one.
    pub async fn authenticate(&mut self) -> Result<(), Fault> {
        let Some((name, password)) = self.user.clone() else { return Ok(()) };
        let mut client = AuthClient::new(self.channel.clone());
        let request = AuthenticateRequest { name, password };
        let called = timeout(ANSWER_TIMEOUT, client.authenticate(request));
        self.token = match called.await.map_err(|_| Fault::silent())? {
            Ok(answer) => {
                let token = answer.into_inner().token.parse();
                Some(token.map_err(|_| Fault::said("its token is not a line of ASCII"))?)
            }
            // Without authentication no token is needed.
            Err(status) if status.message().contains("authentication is not enabled") => None,
            Err(status) => return Err(status.into()),
        };
        Ok(())
    }

    /// Reads at most `limit` keys of `folder` from `from` on, as of `revision` (0 = now).
    pub async fn range(
        &self,
        prefix: &str,
        folder: Folder,
        from: Vec<u8>,
        limit: i64,
        revision: i64,
    ) -> Result<RangeResponse, Fault> {
        let range_end = folder.end(prefix).into_bytes();
        let request = RangeRequest { key: from, range_end, limit, revision };
        let client = KvClient::new(self.channel.clone());
        let mut client = client.max_decoding_message_size(ANSWER_BYTES_MAX);
        within(client.range(self.request(request))).await
    }

    /// Watches all folders, each from its revision on. The watch of a folder has [`watch_id`].
    pub async fn watch(
        &self,
        prefix: &str,
        from: [i64; FOLDERS],
    ) -> Result<Streaming<WatchResponse>, Fault> {
        let creates = Folder::ALL.map(|folder| {
            let create = WatchCreateRequest {
                key: folder.start(prefix).into_bytes(),
                range_end: folder.end(prefix).into_bytes(),
                start_revision: from[folder as usize],
                progress_notify: true,
                watch_id: watch_id(folder),
                fragment: true,
            };
            WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
        });
        // The request stream stays open: etcd ends the watches when the client ends it.
        let requests = tokio_stream::iter(creates).chain(tokio_stream::pending());
        let client = WatchClient::new(self.channel.clone());
        let mut client = client.max_decoding_message_size(ANSWER_BYTES_MAX);
        within(client.watch(self.request(requests))).await
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        // With this a member that lost its quorum ends the call, instead of staying silent.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }
}

/// Id of a folder's watch.
pub fn watch_id(folder: Folder) -> i64 {
    folder as i64 + 1
}

async fn within<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Fault> {
    let answer = timeout(ANSWER_TIMEOUT, call).await.map_err(|_| Fault::silent())?;
    Ok(answer?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> EtcdSettings {
        EtcdSettings {
            endpoints: vec!["https://127.0.0.1:2379".into()],
            prefix: "/shardgate".into(),
            user: "gateway".into(),
            password: Some("secret".into()),
            password_file: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
        }
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named_with_its_key() {
        let dir = tempfile::tempdir().expect("a directory");
        let (absent, text) = (dir.path().join("absent"), dir.path().join("text"));
        fs::write(&text, "-----BEGIN NOTHING-----\n").expect("ours");
        for path in [&absent, &text] {
            let path = path.clone();
            let file = Some(path.clone());
            let ca = EtcdSettings { ca_file: file.clone(), ..settings() };
            let pair = EtcdSettings { cert_file: file.clone(), key_file: file, ..settings() };
            for (key, settings) in [("etcd.ca_file", ca), ("etcd.cert_file", pair)] {
                let error = Endpoints::new(&settings).err().expect("it cannot be used");
                assert!(error.contains(key) && !error.contains('\n'), "{error}");
                assert!(error.contains(&path.display().to_string()), "{error}");
            }
        }
        let password = EtcdSettings { password: None, password_file: Some(absent), ..settings() };
        let error = Endpoints::new(&password).err().expect("it is not there");
        assert!(error.contains("etcd.password_file"), "{error}");
    }

    #[test]
    fn the_password_file_gives_its_line() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("password");
        fs::write(&path, "pass word\r\n").expect("ours");
        let settings = EtcdSettings {
            endpoints: vec!["http://127.0.0.1:2379".into()],
            password: None,
            password_file: Some(path),
            ..settings()
        };
        let endpoints = Endpoints::new(&settings).expect("good");
        assert_eq!(endpoints.user, Some(("gateway".into(), "pass word".into())));
    }

    #[test]
    fn a_status_is_told_apart_by_what_helps() {
        let fault = |code, text: &str| Fault::from(Status::new(code, text));
        let compacted = "etcdserver: mvcc: required revision has been compacted";
        assert_eq!(fault(Code::OutOfRange, compacted), Fault::Compacted);
        let large = "Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes";
        assert_eq!(fault(Code::OutOfRange, large), Fault::TooLarge);
        let token = "etcdserver: invalid auth token";
        assert_eq!(fault(Code::Unauthenticated, token), Fault::Token);
        assert_eq!(fault(Code::PermissionDenied, token), Fault::Token);
        let old = "etcdserver: revision of auth store is old";
        assert_eq!(fault(Code::InvalidArgument, old), Fault::Token);
        let denied = fault(Code::PermissionDenied, "etcdserver: permission denied");
        assert_eq!(denied.advice(), ADVICE_ROLE);
        let long = fault(Code::Unavailable, &"ü".repeat(1_000));
        assert_eq!(long.why().chars().count(), TEXT_MAX);
    }
}
