//! Registry: instances that register themselves, by the gRPC service
//! `shardgate.registry.v1.Registry`.
//!
//! [`leases`] holds the leases, [`service`] checks callers and fields,
//! [`crate::control::caller_conns`] bounds connections. Here they are started, and a task sends the
//! contents to control: in full, after each change, one at a time. While control does not take
//! them, changes add up in the leases, so that no call waits for control and the last state is
//! never lost.

mod callers;
mod leases;
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
use self::proto::registry_server::RegistryServer;
use self::service::{RegistryService, Shared};
use super::{News, NewsSender, SourceContents, SourceEvent};
use crate::config::settings::{RegistryCaller, RegistrySettings};
use crate::control::caller_conns::{Connections, PROOF_TIMEOUT};
use crate::control::sleep_until;

/// Generated from `proto/shardgate/registry/v1/registry.proto`.
#[allow(missing_docs)]
pub mod proto {
    tonic::include_proto!("shardgate.registry.v1");
}

/// Connections at once. A service needs one.
const CONNECTIONS_MAX: usize = 256;
/// Largest request. The longest valid one has under 300 bytes.
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Calls at once on a connection. A service needs one.
const CALLS_MAX: u32 = 16;
/// HTTP/2 windows of a stream and of a connection: one full request, or the usual requests of all
/// calls. 256 connections can make the gateway hold 16 MiB.
const WINDOW_BYTES: u32 = 64 << 10;
/// Largest headers of a call. A token has 256 bytes at most.
const HEADERS_BYTES_MAX: u32 = 8 << 10;
/// Longest time of a call, which takes microseconds once its message is there.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Time without a frame after which a PING is sent.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Longest wait for the answer to a PING; then the connection ends.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Names of callers in one line of the log; more are counted.
const NAMES_MAX: usize = 5;

/// The running registry. Dropping it stops it: no more news are sent, the last contents stay in
/// force.
pub struct Handle {
    address: SocketAddr,
    shared: Arc<Shared>,
    _running: watch::Sender<()>,
}

impl Handle {
    /// Address at which the registry listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Puts other callers in force, and reads their token files. Leases belong to names, so a
    /// caller with a new token keeps its own; those of a caller that is gone run out. The error is
    /// one line that says what is wrong; then the callers before stay.
    pub fn set_callers(&self, callers: &[RegistryCaller]) -> Result<(), String> {
        self.shared.set_callers(Callers::new(callers)?);
        Ok(())
    }
}

/// Checks that these callers could be put in force: reads their token files. The error is one line.
pub fn check_callers(callers: &[RegistryCaller]) -> Result<(), String> {
    Callers::new(callers).map(drop)
}

/// Serves on `listener` and sends `news` as source `registry`, until the handle is dropped. Runs
/// inside a tokio runtime. The error is one line: a token, certificate or key that cannot be used.
pub fn serve(
    listener: std::net::TcpListener,
    settings: &RegistrySettings,
    news: NewsSender,
) -> Result<Handle, String> {
    serve_with(listener, settings, news, PROOF_TIMEOUT)
}

fn serve_with(
    listener: std::net::TcpListener,
    settings: &RegistrySettings,
    news: NewsSender,
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
        let mut accepted =
            Connections::new("registry.listen", listener, CONNECTIONS_MAX, proof_timeout);
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
    let service = RegistryServer::new(RegistryService(shared.clone()))
        .max_decoding_message_size(REQUEST_BYTES_MAX);
    // Before the message is read, so that a caller without a token cannot make the gateway decode.
    let guard = shared.clone();
    let guarded = InterceptedService::new(service, move |request| guard.authenticate(request));
    let stop = until_stopped(stopped.clone());
    tokio::spawn(async move {
        let incoming = ReceiverStream::new(connections);
        if let Err(error) = server.serve_with_incoming_shutdown(guarded, incoming, stop).await {
            tracing::error!(%error, "registry_ended: services cannot register until a restart");
        }
    });
    tokio::spawn(send_changes(shared.clone(), news, stopped));
    Ok(Handle { address, shared, _running: running })
}

/// Resolves when the handle was dropped.
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

/// Sends each change, and ends leases, until the handle is dropped or the receiver is gone.
async fn send_changes(shared: Arc<Shared>, sender: NewsSender, stopped: watch::Receiver<()>) {
    let mut stop = std::pin::pin!(until_stopped(stopped));
    let mut sent_last = SourceContents::default();
    loop {
        let (change, next_end) = {
            let mut leases = shared.leases();
            leases.expire(Instant::now());
            (leases.take_change(), leases.next_end())
        };
        // Changes that were undone before they could be sent need not be sent.
        if let Some((contents, by)) = change
            && contents != sent_last
        {
            sent_last = contents.clone();
            let event = SourceEvent::Contents { contents, by: listed(&by).into() };
            let news = News { source: "registry".into(), event };
            tokio::select! {
                result = sender.send(news) => match result {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                () = &mut stop => return,
            }
        }
        tokio::select! {
            () = shared.changed.notified() => {}
            () = sleep_until(next_end) => {}
            () = sender.closed() => return,
            () = &mut stop => return,
        }
    }
}

/// Names as a text: `a, b`, or the first few and the number of the others.
fn listed(names: &[Arc<str>]) -> String {
    let mut text = names[..names.len().min(NAMES_MAX)].join(", ");
    if names.len() > NAMES_MAX {
        text += &format!(" and {} more", names.len() - NAMES_MAX);
    }
    text
}
