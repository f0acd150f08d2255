//! Instances that register themselves: the gRPC service `shardgate.registry.v1.Registry`.
//!
//! [`book`] holds the leases, [`service`] checks callers and fields, [`conns`] bounds connections;
//! here they are started, and a task tells control what is known: in full, after each change, one
//! at a time. While control does not take it, changes add up in the book, so no call waits for
//! control and the last state is never lost.

mod book;
mod callers;
mod conns;
mod service;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Identity, Server, ServerTlsConfig};

use self::callers::Callers;
use self::conns::{Connections, PROOF_TIMEOUT};
use self::proto::registry_server::RegistryServer;
use self::service::{Service, Shared};
use super::{Known, News, Teller, Word};
use crate::config::settings::{RegistryCaller, RegistrySettings};

/// Generated from `proto/shardgate/registry/v1/registry.proto`.
#[allow(missing_docs)]
pub mod proto {
    tonic::include_proto!("shardgate.registry.v1");
}

/// Bytes of one request. The longest valid one has under 300.
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Calls at once on a connection. A service needs one.
const CALLS_MAX: u32 = 16;
/// HTTP/2 windows of a stream and of a connection: one full request, and all calls' usual ones.
/// 256 connections can make us hold 16 MiB.
const WINDOW_BYTES: u32 = 64 << 10;
/// Bytes of a call's headers. A token has 256 at most.
const HEADERS_BYTES_MAX: u32 = 8 << 10;
/// A call takes microseconds once its message is there.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// A PING after this long without a frame …
const KEEPALIVE: Duration = Duration::from_secs(20);
/// … that is not answered in this time ends the connection.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Names of callers in one line of the log; more are counted.
const NAMES_MAX: usize = 5;

/// The running registry. Dropping it stops it: nothing is told any more, what was told stands.
pub struct Handle {
    address: SocketAddr,
    shared: Arc<Shared>,
    _running: watch::Sender<()>,
}

impl Handle {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Puts other callers in force, and reads their token files. Leases belong to names, so a
    /// caller with a new token keeps its own; those of one that is gone run out. The error is one
    /// line that says what is wrong; then the callers before stay.
    pub fn set_callers(&self, callers: &[RegistryCaller]) -> Result<(), String> {
        self.shared.set_callers(Callers::new(callers)?);
        Ok(())
    }
}

/// Whether these callers could be put in force: their token files are read. The error is one line.
pub fn check_callers(callers: &[RegistryCaller]) -> Result<(), String> {
    Callers::new(callers).map(drop)
}

/// Serves on `listener` and tells `tell` as source `registry`, until the handle is dropped. Runs
/// inside a tokio runtime. The error is one line: a token, certificate or key that cannot be used.
pub fn serve(
    listener: std::net::TcpListener,
    settings: &RegistrySettings,
    tell: Teller,
) -> Result<Handle, String> {
    serve_with(listener, settings, tell, PROOF_TIMEOUT)
}

fn serve_with(
    listener: std::net::TcpListener,
    settings: &RegistrySettings,
    tell: Teller,
    proof_timeout: Duration,
) -> Result<Handle, String> {
    let shared = Arc::new(Shared::new(Callers::new(&settings.callers)?));
    let server = server(settings)?;
    let listening = || -> io::Result<(TcpListener, SocketAddr)> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok((TcpListener::from_std(listener)?, address))
    };
    let (listener, address) =
        listening().map_err(|error| format!("registry.listen {}: {error}", settings.listen))?;
    let (running, stopped) = watch::channel(());
    let (give, connections) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut accepted = Connections::new(listener, proof_timeout);
        loop {
            let connection = tokio::select! {
                connection = accepted.accept() => connection,
                () = give.closed() => return,
            };
            if give.send(Ok::<_, io::Error>(connection)).await.is_err() {
                return;
            }
        }
    });
    let service =
        RegistryServer::new(Service(shared.clone())).max_decoding_message_size(REQUEST_BYTES_MAX);
    // Before the message is read: who may not call cannot make us decode.
    let guard = shared.clone();
    let guarded = InterceptedService::new(service, move |request| guard.authenticate(request));
    let stop = until_stopped(stopped.clone());
    tokio::spawn(async move {
        let incoming = ReceiverStream::new(connections);
        if let Err(error) = server.serve_with_incoming_shutdown(guarded, incoming, stop).await {
            tracing::error!(%error, "registry_ended: services cannot register until a restart");
        }
    });
    tokio::spawn(tell_changes(shared.clone(), tell, stopped));
    Ok(Handle { address, shared, _running: running })
}

/// Resolves when the handle is gone.
async fn until_stopped(mut running: watch::Receiver<()>) {
    while running.changed().await.is_ok() {}
}

fn server(settings: &RegistrySettings) -> Result<Server, String> {
    let mut server = Server::builder()
        .max_concurrent_streams(CALLS_MAX)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .http2_max_header_list_size(HEADERS_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .timeout(CALL_TIMEOUT);
    if let (Some(cert), Some(key)) = (&settings.tls_cert, &settings.tls_key) {
        let read = |name: &str, path: &Path| {
            std::fs::read(path)
                .map_err(|error| format!("registry.{name} {}: {error}", path.display()))
        };
        let identity = Identity::from_pem(read("tls_cert", cert)?, read("tls_key", key)?);
        server = server.tls_config(ServerTlsConfig::new().identity(identity)).map_err(|error| {
            use std::error::Error;
            let why = error.source().map_or(error.to_string(), ToString::to_string);
            let (cert, key) = (cert.display(), key.display());
            format!("registry.tls_cert {cert} and registry.tls_key {key}: {why}")
        })?;
    }
    Ok(server)
}

/// Tells each change, and ends leases, until stopped or until nobody listens.
async fn tell_changes(shared: Arc<Shared>, tell: Teller, stopped: watch::Receiver<()>) {
    let mut stop = std::pin::pin!(until_stopped(stopped));
    let mut told = Known::default();
    loop {
        let (change, next_end) = {
            let mut book = shared.book();
            book.expire(Instant::now());
            (book.take_change(), book.next_end())
        };
        // What came and went before it could be told needs no telling.
        if let Some((known, by)) = change
            && known != told
        {
            told = known.clone();
            let word = Word::Known { known, by: listed(&by).into() };
            let news = News { source: "registry".into(), word };
            tokio::select! {
                sent = tell.send(news) => match sent {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                () = &mut stop => return,
            }
        }
        tokio::select! {
            () = shared.changed.notified() => {}
            () = sleep_until(next_end) => {}
            () = tell.closed() => return,
            () = &mut stop => return,
        }
    }
}

/// Sleeps until `at`, or for ever.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// `a, b`; or the first few, and how many more.
fn listed(names: &[Arc<str>]) -> String {
    let mut text = names[..names.len().min(NAMES_MAX)].join(", ");
    if names.len() > NAMES_MAX {
        text += &format!(" and {} more", names.len() - NAMES_MAX);
    }
    text
}
