//! The registry over real sockets, as any client sees it.

use std::path::PathBuf;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::proto::*;
use super::*;

const GAMES: &str = "token-of-the-games";
const CHATS: &str = "token-of-the-chats";
const PATIENCE: Duration = Duration::from_secs(30);

fn caller(name: &str, token: &str, service: &str) -> RegistryCaller {
    RegistryCaller {
        name: name.into(),
        token: Some(token.into()),
        token_file: None,
        services: vec![service.into()],
    }
}

fn settings() -> RegistrySettings {
    RegistrySettings {
        listen: ([127, 0, 0, 1], 0).into(),
        tls_cert: None,
        tls_key: None,
        callers: vec![caller("games", GAMES, "logic"), caller("chats", CHATS, "chat")],
    }
}

fn listener() -> std::net::TcpListener {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap()
}

/// A registry with room for one piece of news, so that its last state has to wait.
struct RegistryRig {
    handle: Handle,
    news: mpsc::Receiver<News>,
}

impl RegistryRig {
    fn start() -> Self {
        Self::with(&settings(), PROOF_TIMEOUT)
    }

    fn with(settings: &RegistrySettings, proof_timeout: Duration) -> Self {
        let (tell, news) = mpsc::channel(1);
        let handle = serve_with(listener(), settings, tell, proof_timeout).unwrap();
        Self { handle, news }
    }

    fn client(&self, token: &str) -> RegistryClient {
        let endpoint = Endpoint::new(format!("http://{}", self.handle.address())).unwrap();
        RegistryClient { channel: endpoint.connect_lazy(), token: token.into() }
    }

    /// Next contents, as `name address weight[ draining]`, and the origin of the change.
    async fn known(&mut self) -> (Vec<String>, String) {
        let news = tokio::time::timeout(PATIENCE, self.news.recv()).await;
        let news = news.expect("news in time").expect("it runs");
        assert_eq!(&*news.source, "registry");
        let SourceEvent::Contents { contents, by } = news.event else { panic!("{:?}", news.event) };
        let text = |i: &super::super::FoundInstance| {
            let draining = if i.draining { " draining" } else { "" };
            format!("{} {} {}{draining}", i.name, i.addresses, i.weight)
        };
        (contents.instances.iter().map(text).collect(), by.to_string())
    }
}

struct RegistryClient {
    channel: Channel,
    token: String,
}

impl RegistryClient {
    async fn call<Q, A>(&self, method: &str, message: Q) -> Result<A, Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
        let mut request = Request::new(message);
        if !self.token.is_empty() {
            let value = format!("Bearer {}", self.token).parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        let path = format!("/shardgate.registry.v1.Registry/{method}");
        let path = PathAndQuery::try_from(path).unwrap();
        Ok(grpc.unary(request, path, ProstCodec::default()).await?.into_inner())
    }

    async fn register(&self, ask: RegisterRequest) -> Result<RegisterResponse, Status> {
        self.call("Register", ask).await
    }

    async fn heartbeat(&self, ask: HeartbeatRequest) -> Result<HeartbeatResponse, Status> {
        self.call("Heartbeat", ask).await
    }

    async fn deregister(&self, lease: &str) -> Result<DeregisterResponse, Status> {
        self.call("Deregister", DeregisterRequest { lease: lease.into() }).await
    }
}

fn logic(instance: &str) -> RegisterRequest {
    RegisterRequest {
        service: "logic".into(),
        instance: instance.into(),
        address: "10.0.0.7:50001".into(),
        ..Default::default()
    }
}

fn beat(lease: &str) -> HeartbeatRequest {
    HeartbeatRequest { lease: lease.into(), ..Default::default() }
}

/// Status of a call that must fail.
fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> (Code, String) {
    let status = result.expect_err("it must fail");
    (status.code(), status.message().to_owned())
}

#[tokio::test]
async fn an_instance_is_known_from_register_to_deregister() {
    let mut rig = RegistryRig::start();
    let client = rig.client(GAMES);
    let held = client.register(logic("logic-1")).await.unwrap();
    assert_eq!((held.ttl_ms, held.heartbeat_ms, held.lease.len()), (15_000, 5_000, 32));
    assert_eq!(rig.known().await, (vec!["logic-1 10.0.0.7:50001 1".into()], "games".into()));
    let change = HeartbeatRequest { weight: Some(7), draining: Some(true), ..beat(&held.lease) };
    assert_eq!(client.heartbeat(change).await.unwrap().ttl_ms, 15_000);
    assert_eq!(rig.known().await.0, ["logic-1 10.0.0.7:50001 7 draining"]);
    client.heartbeat(beat(&held.lease)).await.unwrap();
    client.deregister(&held.lease).await.unwrap();
    assert_eq!(rig.known().await, (vec![], "games".into()));
    assert_eq!(code(client.deregister(&held.lease).await).0, Code::NotFound);
}

#[tokio::test]
async fn heartbeats_keep_a_lease_and_without_them_it_runs_out() {
    let mut rig = RegistryRig::start();
    let client = rig.client(GAMES);
    let short = |name| RegisterRequest { ttl_ms: 1000, ..logic(name) };
    let kept = client.register(short("kept")).await.unwrap();
    rig.known().await;
    let lost = client.register(short("lost")).await.unwrap();
    let beginning = Instant::now();
    assert_eq!(rig.known().await.0.len(), 2);
    // Heartbeats of one until the other is gone, at a third of the time to live.
    let mut every = tokio::time::interval(Duration::from_millis(kept.heartbeat_ms.into()));
    let gone = loop {
        tokio::select! {
            known = rig.known() => break known,
            _ = every.tick() => drop(client.heartbeat(beat(&kept.lease)).await.unwrap()),
        }
    };
    let by = "games (its lease ran out)".to_owned();
    assert_eq!(gone, (vec!["kept 10.0.0.7:50001 1".into()], by));
    assert!(beginning.elapsed() >= Duration::from_millis(900), "{:?}", beginning.elapsed());
    assert_eq!(code(client.heartbeat(beat(&lost.lease)).await).0, Code::NotFound);
}

#[tokio::test]
async fn a_restarted_service_does_not_wait_for_its_old_lease() {
    let mut rig = RegistryRig::start();
    let client = rig.client(GAMES);
    let old = client.register(logic("logic-1")).await.unwrap();
    rig.known().await;
    let elsewhere = RegisterRequest { address: "[fd00::7]:50001".into(), ..logic("logic-1") };
    let new = client.register(elsewhere).await.unwrap();
    assert_eq!(rig.known().await.0, ["logic-1 [fd00::7]:50001 1"]);
    // The old process can do no harm any more.
    assert_eq!(code(client.deregister(&old.lease).await).0, Code::NotFound);
    client.heartbeat(beat(&new.lease)).await.unwrap();
}

#[tokio::test]
async fn a_token_is_good_for_its_services_only() {
    let mut rig = RegistryRig::start();
    for token in ["", "token-of-the-gamez", "token-of-the-game", "token-of-the-gamess"] {
        let refused = code(rig.client(token).register(logic("logic-1")).await);
        assert_eq!(refused.0, Code::Unauthenticated, "{token:?}");
        assert!(refused.1.contains("Bearer") && !refused.1.contains(GAMES), "{}", refused.1);
    }
    let (games, chats) = (rig.client(GAMES), rig.client(CHATS));
    assert_eq!(code(chats.register(logic("logic-1")).await).0, Code::PermissionDenied);
    let held = games.register(logic("logic-1")).await.unwrap();
    rig.known().await;
    // The lease of another caller is as good as none, and the name of another caller is taken.
    assert_eq!(code(chats.heartbeat(beat(&held.lease)).await).0, Code::NotFound);
    assert_eq!(code(chats.deregister(&held.lease).await).0, Code::NotFound);
    let theft = RegisterRequest { service: "chat".into(), ..logic("logic-1") };
    assert_eq!(code(chats.register(theft).await).0, Code::AlreadyExists);
    games.heartbeat(beat(&held.lease)).await.unwrap();
}

#[tokio::test]
async fn callers_change_while_it_runs_and_a_fault_among_them_changes_nothing() {
    let mut rig = RegistryRig::start();
    let games = rig.client(GAMES);
    let held = games.register(logic("logic-1")).await.unwrap();
    rig.known().await;
    let broken = RegistryCaller {
        token: None,
        token_file: Some(PathBuf::from("/nonexistent/token")),
        ..caller("games", "", "logic")
    };
    let error = rig.handle.set_callers(&[broken]).unwrap_err();
    assert!(error.contains("games: token_file /nonexistent/token: "), "{error}");
    games.heartbeat(beat(&held.lease)).await.unwrap();
    // A new token of the same caller keeps the lease; the old one is unknown.
    rig.handle.set_callers(&[caller("games", "another-token-of-it", "logic")]).unwrap();
    assert_eq!(code(games.heartbeat(beat(&held.lease)).await).0, Code::Unauthenticated);
    let games = rig.client("another-token-of-it");
    games.heartbeat(beat(&held.lease)).await.unwrap();
    // The service was taken from the caller.
    rig.handle.set_callers(&[caller("games", "another-token-of-it", "fight")]).unwrap();
    assert_eq!(code(games.heartbeat(beat(&held.lease)).await).0, Code::PermissionDenied);
}

#[tokio::test]
async fn a_field_that_breaks_its_rule_is_named_with_the_rule() {
    let rig = RegistryRig::start();
    let client = rig.client(GAMES);
    let bad = |change: fn(&mut RegisterRequest)| {
        let mut ask = logic("logic-1");
        change(&mut ask);
        ask
    };
    for (ask, field) in [
        (bad(|r| r.service.clear()), "service"),
        (bad(|r| r.instance = "a b".into()), "instance"),
        (bad(|r| r.instance = "a".repeat(65)), "instance"),
        (bad(|r| r.address = "logic.example:50001".into()), "address"),
        (bad(|r| r.address = "0.0.0.0:50001".into()), "address"),
        (bad(|r| r.address = "[::]:50001".into()), "address"),
        (bad(|r| r.address = "10.0.0.7:0".into()), "address"),
        (bad(|r| r.address = "224.0.0.1:7".into()), "address"),
        (bad(|r| r.address = "[::ffff:0.0.0.0]:7".into()), "address"),
        (bad(|r| r.weight = 1001), "weight"),
        (bad(|r| r.ttl_ms = 999), "ttl_ms"),
        (bad(|r| r.ttl_ms = 600_001), "ttl_ms"),
    ] {
        let (code, text) = code(client.register(ask).await);
        assert_eq!(code, Code::InvalidArgument, "{text}");
        assert!(text.starts_with(&format!("{field}: must be ")), "{text}");
    }
    let held = client.register(logic("logic-1")).await.unwrap();
    for weight in [0, 1001] {
        let ask = HeartbeatRequest { weight: Some(weight), ..beat(&held.lease) };
        assert_eq!(code(client.heartbeat(ask).await).0, Code::InvalidArgument);
    }
    for lease in ["", "+", &held.lease[1..], &"f".repeat(40_000)] {
        assert_eq!(code(client.heartbeat(beat(lease)).await).0, Code::NotFound);
    }
    let huge = RegisterRequest { service: "a".repeat(65 << 10), ..logic("logic-1") };
    assert_eq!(code(client.register(huge).await).0, Code::OutOfRange);
    let unknown: Result<DeregisterResponse, _> =
        client.call("Unregister", DeregisterRequest::default()).await;
    assert_eq!(code(unknown).0, Code::Unimplemented);
}

#[tokio::test]
async fn changes_that_nobody_takes_delay_no_call_and_the_last_state_arrives() {
    let mut rig = RegistryRig::start();
    let client = rig.client(GAMES);
    for n in 0..200 {
        client.register(logic(&format!("logic-{n}"))).await.unwrap();
    }
    let mut told = 0;
    loop {
        told += 1;
        if rig.known().await.0.len() == 200 {
            break;
        }
    }
    assert!(told <= 3, "one in the channel, one at its door, and the last: {told}");
}

#[tokio::test]
async fn clients_that_prove_nothing_keep_no_service_out() {
    let mut rig = RegistryRig::start();
    let mut idle = Vec::new();
    for _ in 0..600 {
        idle.push(TcpStream::connect(rig.handle.address()).await.unwrap());
    }
    // They would have 10 seconds each.
    let client = rig.client(GAMES);
    let registered = tokio::time::timeout(PATIENCE / 4, client.register(logic("logic-1"))).await;
    registered.expect("in time").unwrap();
    assert_eq!(rig.known().await.0.len(), 1);
}

#[tokio::test]
async fn a_connection_that_proves_nothing_is_closed_and_others_stay() {
    let rig = RegistryRig::with(&settings(), Duration::from_secs(1));
    let client = rig.client(GAMES);
    let held = client.register(logic("logic-1")).await.unwrap();
    let mut silent = TcpStream::connect(rig.handle.address()).await.unwrap();
    let mut talker = TcpStream::connect(rig.handle.address()).await.unwrap();
    // A good beginning of HTTP/2 (RFC 9113 section 3.4, empty SETTINGS), and no call.
    talker.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    talker.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    for stream in [&mut silent, &mut talker] {
        let mut said = Vec::new();
        let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut said)).await;
        // Closed, or reset because it had not read everything.
        drop(end.expect("it is closed in time"));
    }
    client.heartbeat(beat(&held.lease)).await.unwrap();
}

#[tokio::test]
async fn dropping_the_handle_stops_it_and_tells_nothing() {
    let RegistryRig { handle, mut news } = RegistryRig::start();
    let address = handle.address();
    drop(handle);
    let end = tokio::time::timeout(PATIENCE, news.recv()).await.expect("it ends");
    assert_eq!(end, None);
    tokio::time::timeout(PATIENCE, async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the port is closed");
}

#[tokio::test]
async fn it_speaks_tls_when_it_has_a_certificate_and_says_what_is_wrong_with_one() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let settings =
        RegistrySettings { tls_cert: Some(cert.clone()), tls_key: Some(key.clone()), ..settings() };
    let fault = || {
        let (tell, _news) = mpsc::channel(1);
        serve(listener(), &settings, tell).err().expect("it cannot work")
    };
    assert!(fault().contains("registry.tls_cert") && fault().contains("No such file"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, "no key").unwrap();
    assert!(fault().contains("registry.tls_key"), "{}", fault());
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();

    let mut rig = RegistryRig::with(&settings, PROOF_TIMEOUT);
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(made.cert.pem()))
        .domain_name("localhost");
    let endpoint = Endpoint::new(format!("https://{}", rig.handle.address())).unwrap();
    let channel = endpoint.tls_config(tls).unwrap().connect_lazy();
    let client = RegistryClient { channel, token: GAMES.into() };
    let held = client.register(logic("logic-1")).await.unwrap();
    assert_eq!(rig.known().await.0.len(), 1);
    let plain = rig.client(GAMES).heartbeat(beat(&held.lease)).await;
    assert!(plain.is_err(), "no word in the clear: {plain:?}");
    client.heartbeat(beat(&held.lease)).await.unwrap();

    let hasty = RegistryRig::with(&settings, Duration::from_millis(200));
    let mut silent = TcpStream::connect(hasty.handle.address()).await.unwrap();
    let end = tokio::time::timeout(PATIENCE, silent.read(&mut [0])).await;
    drop(end.expect("a handshake that does not begin is ended"));
}
