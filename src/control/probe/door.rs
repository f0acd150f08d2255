//! The way to an instance that is checked: the same TLS as on the way of messages.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::http::Uri;
use tonic::codegen::{BoxFuture, Service};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::health_client::HealthClient;

use crate::tls::service::ServiceTls;

/// Largest answer: it holds one small number, which takes 2 bytes.
const ANSWER_BYTES_MAX: usize = 1024;
/// Largest headers of an answer. They hold a few words and perhaps a sentence about an error.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// Place of an instance.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    /// TLS towards it; `None` = none.
    pub tls: Option<Arc<ServiceTls>>,
}

/// Maker of connections to an instance.
pub struct Door {
    endpoint: Endpoint,
    secured: Option<Secured>,
}

impl Door {
    /// Connections to `target`, each made within `limit`.
    pub fn new(target: Target, limit: Duration) -> Result<Self, tonic::transport::Error> {
        let Target { address, tls } = target;
        // The scheme is that of the way below tonic, which knows nothing of our TLS.
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(limit)
            .http2_max_header_list_size(HEADER_BYTES_MAX);
        let Some(tls) = tls else { return Ok(Self { endpoint, secured: None }) };
        let origin = format!("https://{}", tls.authority(address)).parse();
        // The address passed above, and a host name passes always.
        let endpoint = origin.map_or(endpoint.clone(), |origin: Uri| endpoint.origin(origin));
        Ok(Self { endpoint, secured: Some(Secured { address, tls }) })
    }

    /// A client of the health service, on a new connection that is made at the first call.
    pub fn client(&self) -> HealthClient<Channel> {
        let channel = match &self.secured {
            None => self.endpoint.connect_lazy(),
            Some(secured) => self.endpoint.connect_with_connector_lazy(secured.clone()),
        };
        HealthClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
    }
}

/// Connector of tonic's that makes the handshake of TLS.
#[derive(Clone)]
struct Secured {
    address: SocketAddr,
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
        let Self { address, tls } = self.clone();
        Box::pin(async move {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            let connector = TlsConnector::from(tls.config());
            let stream = connector.connect(tls.name(address), tcp).await;
            let stream = stream.map_err(|e| io::Error::new(e.kind(), tls.why(&e)))?;
            ServiceTls::check_protocol(stream.get_ref().1).map_err(io::Error::other)?;
            Ok(TokioIo::new(stream))
        })
    }
}
