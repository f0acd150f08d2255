//! The embedded demo services: `logic`, `chat` and `fight`, three real gRPC servers in one thread.
//!
//! They echo a payload byte for byte unless it is a JSON object that asks for something else:
//!
//! | payload | answer |
//! |---|---|
//! | `{"delay_ms": n}` | the echo after n ms, at most 60,000; the batch waits for the slowest |
//! | `{"fail": 14}` | that status for this item, with `"retry_after_ms"` if given |
//! | `{"fail_call": 14}` | that gRPC status for the whole call |
//! | `{"count": true}` | service, instance, affinity key, and how often this process counted it |
//! | `{"who": true}` | all fields that the service got with the message |
//!
//! `chat` has rooms, too, which are groups of the gateway:
//!
//! - `{"join": "room:lobby"}`, `{"leave": "room:lobby"}`: besides the echo, puts the session into
//!   the room, or takes it out
//! - `{"say": "hi", "room": "room:lobby"}`: pushes `{"text", "from"}` with id 2100 to all in the
//!   room, by default the lobby; a line that is empty or longer than 500 characters is refused
//!
//! A client that publishes to the room by itself (id 9015) does it with the same id 2100.

mod ask;
mod rooms;
mod service;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpListener as TokioListener;
use tokio::sync::{oneshot, watch};
use tonic::codegen::{BoxFuture, Service};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};

use self::proto::backend_server::BackendServer;
use self::service::Demo;
use crate::config::settings::DemoSettings;

/// Messages generated from `proto/shardgate/backend/v1/backend.proto`.
#[allow(missing_docs)]
pub mod proto {
    tonic::include_proto!("shardgate.backend.v1");
}

/// Names of the services, in the order of their addresses.
pub const SERVICES: [&str; 3] = ["logic", CHAT, "fight"];

/// The service that has rooms.
const CHAT: &str = "chat";

/// Names of the instances in answers, unless other names are given.
pub const INSTANCES: [&str; 3] = ["logic-1", "chat-1", "fight-1"];

/// HTTP/2 windows: the connection's holds sixteen full batches, a stream's holds one. A connection
/// window this large also raises h2's budget for small DATA frames, which small calls use up.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const STREAM_WINDOW_BYTES: u32 = 4 << 20;

/// Time at the stop in which calls in flight may end. Their callers are gone or about to go.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// The running services. Dropping this value ends them, too, without waiting.
#[derive(Debug)]
pub struct DemoServices {
    addresses: [SocketAddr; 3],
    stop: oneshot::Sender<()>,
    thread: JoinHandle<io::Result<()>>,
}

impl DemoServices {
    /// Addresses where the services listen; they differ from the settings if those say port 0.
    pub fn addresses(&self) -> [SocketAddr; 3] {
        self.addresses
    }

    /// Ends the services in order (calls in flight have one second) and waits for the thread.
    pub fn stop(self) -> io::Result<()> {
        // The receiver is gone only if the thread ended by itself: the join says why.
        let _ = self.stop.send(());
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("demo thread panicked")))
    }
}

/// Starts the services in a thread of their own, pinned to `core` if one is given. Their sockets
/// are bound when this returns: a port that is taken is an error of this call.
pub fn start(settings: &DemoSettings, core: Option<usize>) -> io::Result<DemoServices> {
    start_as(settings, INSTANCES, core)
}

/// Like [`start`], with other instance names.
pub fn start_as(
    settings: &DemoSettings,
    instances: [&str; 3],
    core: Option<usize>,
) -> io::Result<DemoServices> {
    let bound = Bound::new(settings, instances)?;
    let addresses = bound.addresses;
    let (stop, stopped) = oneshot::channel();
    let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("demo".into()).spawn(move || {
        let runtime = match prepare_thread(core) {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = ready.send(Err(error));
                return Ok(());
            }
        };
        let _ = ready.send(Ok(()));
        runtime.block_on(bound.serve(async {
            let _ = stopped.await; // a dropped sender is a stop, too
            Ok(())
        }))
    })?;
    is_ready.recv().map_err(io::Error::other)??;
    Ok(DemoServices { addresses, stop, thread })
}

/// Serves on the calling thread until `stop` resolves; its error is returned. `stop` is polled
/// inside the tokio runtime.
pub fn serve_until(
    settings: &DemoSettings,
    core: Option<usize>,
    stop: impl Future<Output = io::Result<()>>,
) -> io::Result<()> {
    let bound = Bound::new(settings, INSTANCES)?;
    prepare_thread(core)?.block_on(bound.serve(stop))
}

/// The verb `demo-services`: prints the addresses on stdout, ends on SIGTERM or SIGINT.
pub fn serve(settings: &DemoSettings, core: Option<usize>) -> io::Result<()> {
    let bound = Bound::new(settings, INSTANCES)?;
    let [logic, chat, fight] = bound.addresses;
    prepare_thread(core)?.block_on(bound.serve(async {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut term, mut int) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        println!("shardgate demo services ready: logic {logic} chat {chat} fight {fight}");
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        Ok(())
    }))
}

/// Pins the calling thread, and makes its runtime.
fn prepare_thread(core: Option<usize>) -> io::Result<tokio::runtime::Runtime> {
    if let Some(id) = core
        && !core_affinity::set_for_current(core_affinity::CoreId { id })
    {
        return Err(io::Error::other(format!(
            "cannot pin the demo services to core {id}: choose an allowed core"
        )));
    }
    tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()
}

/// The services with their sockets, before there is a runtime.
struct Bound {
    listeners: [TcpListener; 3],
    addresses: [SocketAddr; 3],
    instances: [String; 3],
    /// Settings of each server.
    server: Server,
}

impl Bound {
    fn new(settings: &DemoSettings, instances: [&str; 3]) -> io::Result<Self> {
        let bind = |n: usize| {
            let at = settings.addresses[n];
            let bound = TcpListener::bind(at).and_then(|listener| {
                listener.set_nonblocking(true)?;
                let address = listener.local_addr()?;
                Ok((listener, address))
            });
            bound.map_err(|error| {
                let name = SERVICES[n];
                let text = format!(
                    "demo service {name} cannot listen on {at}: {error}; \
                     change [demo] addresses, or set enabled = false"
                );
                io::Error::new(error.kind(), text)
            })
        };
        let [(l0, a0), (l1, a1), (l2, a2)] = [bind(0)?, bind(1)?, bind(2)?];
        Ok(Self {
            listeners: [l0, l1, l2],
            addresses: [a0, a1, a2],
            instances: instances.map(str::to_owned),
            server: server(settings)?,
        })
    }

    /// Serves all three until `stop` resolves, and then ends within [`STOP_GRACE`].
    async fn serve(self, stop: impl Future<Output = io::Result<()>>) -> io::Result<()> {
        let (stopping, is_stopping) = watch::channel(());
        let [l0, l1, l2] = self.listeners;
        let [i0, i1, i2] = self.instances;
        let server = &self.server;
        let servers = async {
            tokio::try_join!(
                serve_one(l0, Demo::new(SERVICES[0], i0), server, is_stopping.clone()),
                serve_one(l1, Demo::new(SERVICES[1], i1), server, is_stopping.clone()),
                serve_one(l2, Demo::new(SERVICES[2], i2), server, is_stopping.clone()),
            )
        };
        tokio::pin!(servers);
        let stopped = tokio::select! {
            ended = &mut servers => return ended.map(drop),
            stopped = stop => stopped,
        };
        drop(stopping);
        // Past the grace the calls in flight are cut off: the runtime ends with the thread.
        let ended = tokio::time::timeout(STOP_GRACE, servers).await;
        stopped.and(ended.map_or(Ok(()), |servers| servers.map(drop)))
    }
}

/// A server, with TLS if the settings name a certificate.
fn server(settings: &DemoSettings) -> io::Result<Server> {
    let server = Server::builder()
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES);
    let (Some(cert), Some(key)) = (&settings.tls_cert, &settings.tls_key) else {
        return Ok(server);
    };
    let text = |key: &str, path: &Path| {
        let told = |error: io::Error| {
            io::Error::new(error.kind(), format!("demo.{key} = {path:?}: {error}"))
        };
        std::fs::read(path).map_err(told)
    };
    let identity = Identity::from_pem(text("tls_cert", cert)?, text("tls_key", key)?);
    server.tls_config(ServerTlsConfig::new().identity(identity)).map_err(|error| {
        let text = format!("demo.tls_cert = {cert:?}, demo.tls_key = {key:?}: {error}");
        io::Error::new(io::ErrorKind::InvalidInput, text)
    })
}

/// Runs one server with its health service, until the sender of `is_stopping` is dropped.
async fn serve_one(
    listener: TcpListener,
    demo: Demo,
    server: &Server,
    mut is_stopping: watch::Receiver<()>,
) -> io::Result<()> {
    let incoming = TcpIncoming::from(TokioListener::from_std(listener)?).with_nodelay(Some(true));
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<BackendServer<Demo>>().await;
    let service = ByPath { backend: BackendServer::new(demo), health: health_service };
    server
        .clone()
        .serve_with_incoming_shutdown(service, incoming, async move {
            // No value is ever sent: this ends with an error when the sender is dropped.
            let _ = is_stopping.changed().await;
        })
        .await
        .map_err(io::Error::other)
}

/// Both gRPC services of one address, told apart by one comparison: tonic's router would cost a
/// call more than the demo service does.
#[derive(Clone)]
struct ByPath<H> {
    backend: BackendServer<Demo>,
    health: H,
}

/// Prefix of all paths of the health service.
const HEALTH_PREFIX: &str = "/grpc.health.v1.Health/";

type HttpRequest = http::Request<tonic::body::Body>;

impl<H> Service<HttpRequest> for ByPath<H>
where
    H: Service<
            HttpRequest,
            Response = http::Response<tonic::body::Body>,
            Error = Infallible,
            Future = BoxFuture<http::Response<tonic::body::Body>, Infallible>,
        >,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    /// Ready at once: services that tonic generates always are.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest) -> Self::Future {
        if request.uri().path().starts_with(HEALTH_PREFIX) {
            self.health.call(request)
        } else {
            self.backend.call(request) // answers UNIMPLEMENTED to other paths
        }
    }
}
