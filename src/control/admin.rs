//! The admin endpoint: three GETs over HTTP/1.1, one request a connection, for tools on this host.
//!
//! Who may ask: the socket is boot's choice (loopback by default). What a browser could be made to
//! ask is refused here: a `Host` that is neither a loopback name nor the admin address is DNS
//! rebinding, an `Origin` that is not the endpoint's own is another page.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Sleep;

use super::view::{self, About};
use super::{ASKS_MAX, Ask, Gathered};

/// A connection's life: a gathering takes at most one second, the rest is the client's time.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes read from one connection: request line and headers of one GET. Browsers send under 4 KiB.
const REQUEST_BYTES_MAX: usize = 16 << 10;
/// Pause after a failed accept: out of files is not cured by trying again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What handlers need.
#[derive(Clone)]
struct Admin {
    about: Arc<About>,
    ask: mpsc::Sender<Ask>,
}

/// The endpoint as a future that never ends by itself.
pub fn serve(
    listener: std::net::TcpListener,
    address: SocketAddr,
    about: Arc<About>,
    ask: mpsc::Sender<Ask>,
) -> io::Result<impl Future<Output = ()> + Send + 'static> {
    listener.set_nonblocking(true)?;
    let slots = Arc::new(Semaphore::new(ASKS_MAX));
    let listener = Bounded { listener: TcpListener::from_std(listener)?, address, slots };
    let admin = Admin { about, ask };
    let router = Router::new()
        .route("/health", get(health))
        .route("/stats", get(stats))
        .route("/routing/stats", get(routing_stats))
        .fallback(async || StatusCode::NOT_FOUND)
        .layer(from_fn_with_state(address, guard))
        .with_state(admin);
    Ok(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "admin endpoint ended");
        }
    })
}

async fn health(State(admin): State<Admin>) -> Response {
    match admin.gather().await {
        Ok(found) => {
            let (status, body) = view::health(&admin.about, &found);
            (status, Json(body)).into_response()
        }
        Err(refused) => refused,
    }
}

async fn stats(State(admin): State<Admin>) -> Response {
    match admin.gather().await {
        Ok(found) => Json(view::stats(&admin.about, &found)).into_response(),
        Err(refused) => refused,
    }
}

async fn routing_stats(State(admin): State<Admin>) -> Response {
    match admin.gather().await {
        Ok(found) => Json(view::routing_stats(&found)).into_response(),
        Err(refused) => refused,
    }
}

impl Admin {
    /// Waits for the gathering under way, or for a new one.
    async fn gather(&self) -> Result<Arc<Gathered>, Response> {
        let refuse = || (StatusCode::SERVICE_UNAVAILABLE, "control is ending\n").into_response();
        let (waiter, found) = oneshot::channel();
        self.ask.try_send(Ask::Gather(waiter)).map_err(|_| refuse())?;
        found.await.map_err(|_| refuse())
    }
}

/// Refuses what a browser could be tricked into; see the head of this file.
async fn guard(State(address): State<SocketAddr>, request: Request, next: Next) -> Response {
    let refusal = |status, text: &'static str| (status, text).into_response();
    let mut response = if !host_is_ours(request.headers(), address) {
        refusal(StatusCode::FORBIDDEN, "Host is not this endpoint's\n")
    } else if !origin_is_ours(request.headers()) {
        refusal(StatusCode::FORBIDDEN, "Origin is not this endpoint's\n")
    } else if request.method() != Method::GET {
        let allow = [(header::ALLOW, "GET")];
        (StatusCode::METHOD_NOT_ALLOWED, allow).into_response()
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Exactly one `Host`: `localhost` or a loopback address (with any port: tunnels change it), or the
/// admin address.
fn host_is_ours(headers: &HeaderMap, address: SocketAddr) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let Ok(authority) = host.to_str().unwrap_or_default().parse::<http::uri::Authority>() else {
        return false;
    };
    let name = authority.host();
    let ip = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    if authority.as_str().contains('@') {
        return false;
    }
    match ip.parse::<IpAddr>() {
        Ok(ip) => {
            let port = authority.port_u16().unwrap_or(80);
            ip.is_loopback() || (ip, port) == (address.ip(), address.port())
        }
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    }
}

/// No `Origin`, or the one of a page that this endpoint served: `http://` and the `Host`.
fn origin_is_ours(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).map_or(&[][..], HeaderValue::as_bytes);
    headers
        .get_all(header::ORIGIN)
        .iter()
        .all(|origin| origin.as_bytes().strip_prefix(b"http://") == Some(host))
}

/// Accepts at most [`ASKS_MAX`] connections at once; their deadline makes room for the next.
struct Bounded {
    listener: TcpListener,
    address: SocketAddr,
    slots: Arc<Semaphore>,
}

impl axum::serve::Listener for Bounded {
    type Io = BoundedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoundedStream, SocketAddr) {
        let slot = self.slots.clone().acquire_owned().await.expect("never closed");
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let deadline = Box::pin(tokio::time::sleep(CONNECTION_TIMEOUT));
                    let bytes_left = REQUEST_BYTES_MAX;
                    return (BoundedStream { stream, deadline, bytes_left, _slot: slot }, peer);
                }
                Err(error) => {
                    tracing::warn!(%error, "admin accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// A connection that ends at its deadline, or when its client sent too much.
struct BoundedStream {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    bytes_left: usize,
    _slot: OwnedSemaphorePermit,
}

impl BoundedStream {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let late = self.deadline.as_mut().poll(cx).is_ready();
        if late { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        match self.bytes_left.checked_sub(buf.filled().len() - before) {
            Some(left) => self.bytes_left = left,
            None => return Poll::Ready(Err(io::ErrorKind::QuotaExceeded.into())),
        }
        read
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
