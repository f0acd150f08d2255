//! A scripted instance of a service: gRPC by hand over h2, so that it can also break every rule.
//! Each runs in a thread of its own, with a tokio runtime that is dropped to kill it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use bytes::{BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use prost::Message;
use rustls::ServerConfig;
use shardgate::config::settings::DemoSettings;
use shardgate::demo::DemoServices;
use shardgate::demo::proto::{BaseRequest, BaseResponse, BatchRequest, BatchResponse};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener as TokioListener;
use tokio::sync::{oneshot, watch};
use tokio_rustls::TlsAcceptor;

use super::eventually;

/// Action of a service on a call.
pub enum Action {
    /// Answers with these responses.
    Reply(Vec<BaseResponse>),
    /// Answers with these responses and pushes.
    Push(BatchResponse),
    /// Answers with these bytes as the message, whatever they are.
    Message(Vec<u8>),
    /// Answers with a gRPC status and no message.
    Status(u32),
    /// Resets the stream (RST_STREAM).
    Reset(h2::Reason),
    /// Never answers.
    Never,
}

/// A call that arrived.
#[derive(Clone, Debug)]
pub struct Arrived {
    pub path: String,
    /// Scheme and authority: `http://10.0.0.1:50001`.
    pub origin: String,
    /// Whether the connection showed a certificate.
    pub certified: bool,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The message as a batch; empty if it is none.
    pub batch: BatchRequest,
}

/// An answer with the payload of the request.
pub fn ok(request: &BaseRequest) -> BaseResponse {
    BaseResponse {
        request_id: request.request_id,
        payload: request.payload.clone(),
        ..Default::default()
    }
}

type Script = dyn Fn(&Arrived) -> Action + Send + Sync;

struct Shared {
    script: Mutex<Arc<Script>>,
    arrived: Mutex<Vec<Arrived>>,
    /// Whether calls wait before they are answered (they are recorded before).
    held: watch::Sender<bool>,
    /// TLS for connections from now on; `None` = without.
    tls: Mutex<Option<Arc<ServerConfig>>>,
}

/// A scripted instance.
pub struct Instance {
    /// Address of the instance. No other has it: when the instance is down, no other process gets
    /// its port.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
    /// Keeps the address while the instance does not listen.
    _reserved: Socket,
}

/// An address of 127.0.0.0/8 that no other process can get for as long as the socket lives: it is
/// bound and does not listen, so a connection is refused unless the instance listens there beside
/// it.
fn own_address() -> (SocketAddr, Socket) {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    // Not 127.0.0.1, where clients get their ports from.
    let [_, _, a, b] = std::process::id().to_be_bytes();
    let ip = Ipv4Addr::new(127, 1 + a % 250, b, 1 + (n % 250) as u8);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("an option");
    let any_port = SocketAddr::from((ip, 0));
    socket.bind(&any_port.into()).expect("all of 127.0.0.0/8 is this machine");
    let address = socket.local_addr().expect("bound").as_socket().expect("IPv4");
    (address, socket)
}

impl Instance {
    /// Starts an instance that echoes.
    pub fn echo() -> Self {
        Self::start(|call| Action::Reply(call.batch.requests.iter().map(ok).collect()))
    }

    /// Starts an instance that echoes on 127.0.0.1, for tests of names.
    pub fn echo_on_loopback() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("an option");
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
        let address = socket.local_addr().expect("bound").as_socket().expect("IPv4");
        let echo = |call: &Arrived| Action::Reply(call.batch.requests.iter().map(ok).collect());
        let mut instance = Self::at(address, socket, echo);
        instance.restart();
        instance
    }

    /// Starts an instance that follows `script`.
    pub fn start(script: impl Fn(&Arrived) -> Action + Send + Sync + 'static) -> Self {
        let mut instance = Self::down(script);
        instance.restart();
        instance
    }

    /// Makes an instance that does not listen yet.
    pub fn down(script: impl Fn(&Arrived) -> Action + Send + Sync + 'static) -> Self {
        let (address, reserved) = own_address();
        Self::at(address, reserved, script)
    }

    fn at(
        address: SocketAddr,
        reserved: Socket,
        script: impl Fn(&Arrived) -> Action + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            script: Mutex::new(Arc::new(script)),
            arrived: Mutex::default(),
            held: watch::Sender::new(false),
            tls: Mutex::default(),
        });
        Self { address, shared, running: None, _reserved: reserved }
    }

    /// Makes connections from now on use TLS, if there is a configuration, or none.
    pub fn secure(&self, tls: Option<ServerConfig>) {
        *self.shared.tls.lock().expect("not poisoned") = tls.map(Arc::new);
    }

    /// Puts another script in force.
    pub fn script(&self, script: impl Fn(&Arrived) -> Action + Send + Sync + 'static) {
        *self.shared.script.lock().expect("not poisoned") = Arc::new(script);
    }

    /// Starts (again) to listen, on the same port.
    pub fn restart(&mut self) {
        assert!(self.running.is_none(), "it runs");
        let listener = TcpListener::bind(self.address).expect("its own address is free");
        listener.set_nonblocking(true).expect("an option");
        let (stop, stopped) = oneshot::channel();
        let shared = self.shared.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                tokio::select! {
                    _ = serve(listener, shared) => {}
                    _ = stopped => {}
                }
            });
            // All tasks ended with the runtime, and so all connections.
        });
        self.running = Some((stop, thread));
    }

    /// Ends the instance, and every connection with it.
    pub fn kill(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            drop(stop);
            thread.join().expect("it ends");
        }
    }

    /// Makes calls wait from now on.
    pub fn hold(&self) {
        self.shared.held.send_replace(true);
    }

    /// Lets calls that wait be answered, and later ones at once.
    pub fn release(&self) {
        self.shared.held.send_replace(false);
    }

    /// Calls so far.
    pub fn calls(&self) -> Vec<Arrived> {
        self.shared.arrived.lock().expect("not poisoned").clone()
    }

    /// Messages so far, in the order of their arrival.
    pub fn requests(&self) -> Vec<BaseRequest> {
        self.calls().into_iter().flat_map(|call| call.batch.requests).collect()
    }

    /// Waits until so many messages have arrived.
    #[track_caller]
    pub fn wait_for(&self, count: usize) -> Vec<BaseRequest> {
        eventually("messages arrive at the instance", || {
            Some(self.requests()).filter(|r| r.len() >= count)
        })
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let listener = TokioListener::from_std(listener).expect("a runtime");
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        let shared = shared.clone();
        tokio::spawn(async move {
            let tls = shared.tls.lock().expect("not poisoned").clone();
            let Some(tls) = tls else { return converse(stream, shared, false).await };
            if let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await {
                let certified = stream.get_ref().1.peer_certificates().is_some();
                converse(stream, shared, certified).await;
            }
        });
    }
}

async fn converse<IO>(io: IO, shared: Arc<Shared>, certified: bool)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(4 << 20).initial_connection_window_size(16 << 20);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(io).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(call(request, respond, shared.clone(), certified));
    }
}

async fn call(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    shared: Arc<Shared>,
    certified: bool,
) {
    let (head, mut stream) = request.into_parts();
    let mut bytes = BytesMut::new();
    while let Some(Ok(chunk)) = stream.data().await {
        let _ = stream.flow_control().release_capacity(chunk.len());
        bytes.extend_from_slice(&chunk);
    }
    // One message: a flag, four bytes of length, the message.
    let body = bytes.freeze().slice(5..);
    let batch = BatchRequest::decode(body.clone()).unwrap_or_default();
    let path = head.uri.path().to_owned();
    if path.starts_with("/grpc.health.v1.") {
        // The instance has no health service, so it is judged by its calls.
        let mut head = Response::new(());
        let headers = head.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from_static("12"));
        let _ = respond.send_response(head, true);
        return;
    }
    let (scheme, authority) = (head.uri.scheme_str(), head.uri.authority());
    let origin = format!("{}://{}", scheme.expect("a scheme"), authority.expect("an authority"));
    let arrived = Arrived { path, origin, certified, headers: head.headers, body, batch };
    let script = shared.script.lock().expect("not poisoned").clone();
    let action = script(&arrived);
    shared.arrived.lock().expect("not poisoned").push(arrived);
    let mut held = shared.held.subscribe();
    // The sender lives as long as the instance.
    let _ = held.wait_for(|held| !held).await;
    let message = match action {
        Action::Reply(responses) => {
            BatchResponse { responses, ..Default::default() }.encode_to_vec()
        }
        Action::Push(response) => response.encode_to_vec(),
        Action::Message(message) => message,
        Action::Status(code) => {
            let mut head = Response::new(());
            let headers = head.headers_mut();
            headers.insert("content-type", HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from(code));
            let _ = respond.send_response(head, true);
            return;
        }
        Action::Reset(reason) => {
            respond.send_reset(reason);
            return;
        }
        Action::Never => return std::future::pending().await,
    };
    let mut head = Response::new(());
    let grpc = HeaderValue::from_static("application/grpc");
    head.headers_mut().insert("content-type", grpc);
    let Ok(mut body) = respond.send_response(head, false) else { return };
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put_slice(&message);
    let _ = body.send_data(framed.freeze(), false);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let _ = body.send_trailers(trailers);
}

/// Starts the demo services logic, chat and fight (tonic's server, not the one above) in a thread;
/// returns their addresses.
pub fn demo() -> (DemoServices, [SocketAddr; 3]) {
    let addresses = [SocketAddr::from(([127, 0, 0, 1], 0)); 3];
    let settings = DemoSettings { addresses, ..DemoSettings::default() };
    let services = shardgate::demo::start(&settings, None).expect("free ports");
    let addresses = services.addresses();
    (services, addresses)
}
