//! The listener of the doors: HTTP/1.1 with keep-alive and HTTP/2 on one port, with TLS if that is
//! configured.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::Connected;

use crate::control::caller_conns::{Connections, Peer};

/// Connections at once. A service needs a few; 1,024 are 256 instances of services with 4 each.
pub const CONNECTIONS_MAX: usize = 1_024;
/// Calls at once on a connection: as many as wait for receipts of a push each.
const CALLS_MAX: u32 = 256;
/// HTTP/2 window of a stream: 256 KiB are 256 MiB a second at a round trip of 1 ms.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
/// HTTP/2 window of a connection: one full request.
const CONN_WINDOW_BYTES: u32 = 1 << 20;
/// Largest headers of a call: a token has 256 bytes at most, and proxies add some.
const HEADERS_BYTES_MAX: u32 = 16 << 10;
/// The same for HTTP/1.1, whose buffer holds pieces of bodies, too.
const BUFFER_BYTES_MAX: usize = 64 << 10;
/// Time without a frame after which a PING is sent.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Longest wait for the answer to a PING; then the connection ends.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Accepts for ever. Each connection is a task of its own, so that a slow one holds up no other; it
/// ends when no call on it has shown a good token for too long.
pub async fn serve(mut connections: Connections, tls: Option<TlsAcceptor>, router: Router) {
    let http = Arc::new(http());
    loop {
        let connection = connections.accept().await;
        let peer = connection.connect_info();
        let (tls, http, router) = (tls.clone(), http.clone(), router.clone());
        tokio::spawn(async move {
            match tls {
                None => converse(&http, connection, peer, router).await,
                Some(tls) => match tls.accept(connection).await {
                    Ok(stream) => converse(&http, stream, peer, router).await,
                    Err(error) => {
                        let peer = peer.address.map_or("?".into(), |peer| peer.to_string());
                        tracing::warn!(
                            peer,
                            %error,
                            "push_handshake_failed: a caller failed to agree on TLS; it must know \
                             the authority of push.tls_cert"
                        );
                    }
                },
            }
        });
    }
}

fn http() -> Builder<TokioExecutor> {
    let mut http = Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        // The proof of a token has a time of its own, and a caller may come again after minutes.
        .header_read_timeout(None)
        .max_buf_size(BUFFER_BYTES_MAX);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(CALLS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONN_WINDOW_BYTES)
        .max_header_list_size(HEADERS_BYTES_MAX)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    http
}

async fn converse<S>(http: &Builder<TokioExecutor>, stream: S, peer: Peer, router: Router)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let answer = router.call(request);
        async move { answer.await as Result<Response<Body>, Infallible> }
    });
    // An error is the end of this connection only.
    let _ = http.serve_connection(TokioIo::new(stream), service).await;
}
