//! Connections of health checks: to the first address of an instance that answers.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tonic::codegen::{Service, http::Uri};

use crate::routing::Addresses;

/// Time that an attempt has for itself before the next address is tried beside it (RFC 8305).
const ALONE: Duration = Duration::from_millis(250);

/// The connector of one instance.
#[derive(Clone)]
pub(super) struct Connector(pub(super) Addresses);

impl Connector {
    /// Lets the next connection try the first address last.
    pub(super) fn rotate(&mut self) {
        self.0 = self.0.rotated();
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let addresses = self.0.clone();
        Box::pin(async move { connect(addresses).await.map(TokioIo::new) })
    }
}

/// Connects to the first address that answers. Attempts that are under way then are given up.
async fn connect(addresses: Addresses) -> io::Result<TcpStream> {
    let mut left = addresses.iter();
    let mut attempts = JoinSet::new();
    let mut failure = None;
    loop {
        match left.next() {
            Some(address) => drop(attempts.spawn(TcpStream::connect(address))),
            None if attempts.is_empty() => {
                return Err(failure.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()));
            }
            None => {}
        }
        let has_more = left.size_hint().0 > 0;
        tokio::select! {
            Some(ended) = attempts.join_next() => match ended {
                Ok(Ok(stream)) => {
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Ok(Err(error)) => failure = Some(error),
                Err(error) => failure = Some(io::Error::other(error)),
            },
            () = sleep(ALONE), if has_more => {}
        }
    }
}
