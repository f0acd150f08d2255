//! The way to an instance that is checked: the same TLS as on the way of messages.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::http::Uri;
use tonic::codegen::{BoxFuture, Service};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::health_client::HealthClient;

use crate::routing::Addresses;
use crate::tls::service::ServiceTls;

/// Largest answer: it holds one small number, which takes 2 bytes.
const ANSWER_BYTES_MAX: usize = 1024;
/// Largest headers of an answer. They hold a few words and perhaps a sentence about an error.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// Time that an attempt has for itself before the next address is tried beside it (RFC 8305).
const ALONE: Duration = Duration::from_millis(250);

/// Place of an instance.
#[derive(Clone, Debug)]
pub struct Target {
    pub addresses: Addresses,
    /// TLS towards it; `None` = none.
    pub tls: Option<Arc<ServiceTls>>,
}

/// Maker of connections to an instance: to the first of its addresses that answers.
pub struct Door {
    endpoint: Endpoint,
    target: Target,
}

impl Door {
    /// Connections to `target`, each made within `limit`.
    pub fn new(target: Target, limit: Duration) -> Result<Self, tonic::transport::Error> {
        let first = target.addresses.first();
        // The scheme is that of the way below tonic, which knows nothing of our TLS.
        let endpoint = Endpoint::from_shared(format!("http://{first}"))?
            .connect_timeout(limit)
            .http2_max_header_list_size(HEADER_BYTES_MAX);
        let origin = target.tls.as_ref().map(|tls| format!("https://{}", tls.authority(first)));
        let endpoint = match origin.map(|origin| origin.parse::<Uri>()) {
            Some(Ok(origin)) => endpoint.origin(origin),
            // The address passed above, and a host name passes always.
            Some(Err(_)) | None => endpoint,
        };
        Ok(Self { endpoint, target })
    }

    /// A client of the health service, on a new connection that is made at the first call.
    pub fn client(&self) -> HealthClient<Channel> {
        let Target { addresses, tls } = self.target.clone();
        let channel = match tls {
            None => self.endpoint.connect_with_connector_lazy(Plain { addresses }),
            Some(tls) => self.endpoint.connect_with_connector_lazy(Secured { addresses, tls }),
        };
        HealthClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// Lets the next connection try the first address last.
    pub fn rotate(&mut self) {
        self.target.addresses = self.target.addresses.rotated();
    }
}

/// Connector of tonic's for connections without TLS.
#[derive(Clone)]
struct Plain {
    addresses: Addresses,
}

impl Service<Uri> for Plain {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = BoxFuture<Self::Response, io::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let addresses = self.addresses.clone();
        Box::pin(async move { race(addresses, tcp).await.map(TokioIo::new) })
    }
}

/// Connector of tonic's that makes the handshake of TLS.
#[derive(Clone)]
struct Secured {
    addresses: Addresses,
    tls: Arc<ServiceTls>,
}

impl Service<Uri> for Secured {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = BoxFuture<Self::Response, io::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { addresses, tls } = self.clone();
        Box::pin(async move {
            let stream = race(addresses, |address| secured(address, tls.clone())).await?;
            Ok(TokioIo::new(stream))
        })
    }
}

async fn tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn secured(address: SocketAddr, tls: Arc<ServiceTls>) -> io::Result<TlsStream<TcpStream>> {
    let connector = TlsConnector::from(tls.config());
    let stream = connector.connect(tls.name(address), tcp(address).await?).await;
    let stream = stream.map_err(|e| io::Error::new(e.kind(), tls.why(&e)))?;
    ServiceTls::check_protocol(stream.get_ref().1).map_err(io::Error::other)?;
    Ok(stream)
}

/// Connects to the first address that answers. Attempts that are under way then are given up.
async fn race<T, F>(addresses: Addresses, connect: impl Fn(SocketAddr) -> F) -> io::Result<T>
where
    T: Send + 'static,
    F: Future<Output = io::Result<T>> + Send + 'static,
{
    let mut left = addresses.iter();
    let mut attempts = JoinSet::new();
    let mut failure = None;
    loop {
        match left.next() {
            Some(address) => drop(attempts.spawn(connect(address))),
            None if attempts.is_empty() => {
                return Err(failure.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()));
            }
            None => {}
        }
        let has_more = left.size_hint().0 > 0;
        tokio::select! {
            Some(ended) = attempts.join_next() => match ended {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => failure = Some(error),
                Err(error) => failure = Some(io::Error::other(error)),
            },
            () = sleep(ALONE), if has_more => {}
        }
    }
}
