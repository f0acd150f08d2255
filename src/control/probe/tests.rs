//! The probe against real sockets.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tonic::codegen::{Service, http};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus as Serving;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::health_reporter;

use super::*;
use crate::routing::Addresses;

const WHO: InstanceId = InstanceId(7);
/// Longest wait for a condition: one that does not come true in this time never does.
const PATIENCE: Duration = Duration::from_secs(20);

/// Settings that are quick enough for a test; an answer on this machine takes far less than the
/// timeout.
fn settings() -> HealthSettings {
    HealthSettings {
        check_every: Duration::from_millis(100),
        check_timeout: Duration::from_secs(5),
        ..HealthSettings::default()
    }
}

fn impatient() -> HealthSettings {
    HealthSettings { check_timeout: Duration::from_millis(50), ..settings() }
}

/// The instance at `address`, without TLS.
fn plain(address: SocketAddr) -> Target {
    Target { addresses: address.into(), tls: None }
}

fn probed(address: SocketAddr, settings: &HealthSettings) -> (Probe, mpsc::Receiver<CheckResult>) {
    let (tell, told) = mpsc::channel(64);
    (super::start(WHO, plain(address), settings, 1, tell).unwrap(), told)
}

async fn next(told: &mut mpsc::Receiver<CheckResult>) -> Check {
    let checked = timeout(PATIENCE, told.recv()).await.expect("in time").expect("it goes on");
    assert_eq!(checked.instance, WHO);
    checked.check
}

/// Next failure; other results are skipped.
async fn failure(told: &mut mpsc::Receiver<CheckResult>) -> String {
    loop {
        if let Check::Failed { why } = next(told).await {
            return why;
        }
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

type HttpRequest = http::Request<tonic::body::Body>;
type HttpResponse = http::Response<tonic::body::Body>;

/// Serves until the runtime of the test ends.
fn serve_on<S>(listener: TcpListener, service: S)
where
    S: Service<HttpRequest, Response = HttpResponse, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    let incoming = TcpIncoming::from(listener);
    tokio::spawn(Server::builder().serve_with_incoming(service, incoming));
}

async fn serve<S>(service: S) -> SocketAddr
where
    S: Service<HttpRequest, Response = HttpResponse, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    let (listener, address) = listen().await;
    serve_on(listener, service);
    address
}

/// A scripted health service: what `Watch` streams, and what `Check` answers.
#[derive(Clone)]
struct Scripted {
    watch: fn() -> Result<HealthAnswers, Status>,
    check: fn() -> Result<i32, Status>,
    checks: Arc<AtomicUsize>,
}

type HealthAnswer = Result<HealthCheckResponse, Status>;
/// A stream of answers, ending or not.
type HealthAnswers = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = HealthAnswer> + Send>>;

fn answer(status: i32) -> HealthAnswer {
    Ok(HealthCheckResponse { status })
}

#[tonic::async_trait]
impl Health for Scripted {
    type WatchStream = HealthAnswers;

    async fn check(
        &self,
        _: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        self.checks.fetch_add(1, Ordering::Relaxed);
        (self.check)().map(|status| tonic::Response::new(HealthCheckResponse { status }))
    }

    async fn watch(
        &self,
        _: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthAnswers>, Status> {
        (self.watch)().map(tonic::Response::new)
    }
}

async fn scripted(
    watch: fn() -> Result<HealthAnswers, Status>,
    check: fn() -> Result<i32, Status>,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let checks = Arc::new(AtomicUsize::new(0));
    let health = Scripted { watch, check, checks: checks.clone() };
    (serve(HealthServer::new(health)).await, checks)
}

fn no_watch() -> Result<HealthAnswers, Status> {
    Err(Status::unimplemented("no streams here"))
}

/// A stream of one SERVING that does not end.
fn steady() -> Result<HealthAnswers, Status> {
    Ok(Box::pin(tokio_stream::StreamExt::chain(
        tokio_stream::once(answer(1)),
        tokio_stream::pending(),
    )))
}

#[tokio::test]
async fn a_stream_tells_each_change() {
    let (reporter, health) = health_reporter();
    let (_probe, mut told) = probed(serve(health).await, &settings());
    assert_eq!(next(&mut told).await, Check::Serving);
    for _ in 0..3 {
        reporter.set_service_status("", Serving::NotServing).await;
        assert_eq!(next(&mut told).await, Check::NotServing { why: "says NOT_SERVING".into() });
        reporter.set_service_status("", Serving::Serving).await;
        assert_eq!(next(&mut told).await, Check::Serving);
    }
}

#[tokio::test]
async fn check_is_asked_where_watch_is_not_served() {
    let (address, checks) = scripted(no_watch, || Ok(1)).await;
    let (_probe, mut told) = probed(address, &settings());
    for _ in 0..3 {
        assert_eq!(next(&mut told).await, Check::Succeeded);
    }
    assert!(checks.load(Ordering::Relaxed) >= 3);
    let (address, _) = scripted(no_watch, || Ok(2)).await;
    let (_probe, mut told) = probed(address, &settings());
    for _ in 0..2 {
        let expected = Check::Failed { why: "says NOT_SERVING".into() };
        assert_eq!(next(&mut told).await, expected);
    }
}

/// A gRPC server without a health service.
#[derive(Clone)]
struct Other;

impl Service<HttpRequest> for Other {
    type Response = HttpResponse;
    type Error = Infallible;
    type Future = std::future::Ready<Result<HttpResponse, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: HttpRequest) -> Self::Future {
        std::future::ready(Ok(Status::unimplemented("no such method").into_http()))
    }
}

#[tokio::test]
async fn a_server_without_health_is_not_checked() {
    let (_probe, mut told) = probed(serve(Other).await, &settings());
    assert_eq!(next(&mut told).await, Check::NotImplemented);
    let begun = Instant::now();
    assert_eq!(next(&mut told).await, Check::NotImplemented, "it is asked again");
    // Ten periods of at least 90 ms, less the time until the first result came.
    assert!(begun.elapsed() > Duration::from_millis(700), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_server_that_does_not_know_itself_is_not_checked() {
    let (mut reporter, health) = health_reporter();
    reporter.clear_service_status("").await; // NOT_FOUND
    let (_probe, mut told) = probed(serve(health).await, &settings());
    assert_eq!(next(&mut told).await, Check::NotImplemented);
    let unknown = || Ok(Box::pin(tokio_stream::iter([answer(3)])) as HealthAnswers);
    let (address, _) = scripted(unknown, || Err(Status::not_found("no such service"))).await;
    let (_probe, mut told) = probed(address, &settings());
    assert_eq!(next(&mut told).await, Check::NotImplemented);
}

#[tokio::test]
async fn a_port_nobody_listens_on_fails_in_one_line() {
    let (listener, address) = listen().await;
    drop(listener);
    let (_probe, mut told) = probed(address, &settings());
    for _ in 0..3 {
        let why = failure(&mut told).await;
        assert!(why.contains("refused") && !why.contains('\n'), "{why}");
        assert!(why.chars().count() <= WHY_CHARS_MAX);
    }
}

#[tokio::test]
async fn one_that_accepts_and_never_answers_fails_in_time() {
    let (_listener, address) = listen().await; // the kernel accepts for it
    let (_probe, mut told) = probed(address, &impatient());
    for _ in 0..2 {
        let why = failure(&mut told).await;
        assert!(why.contains("no answer within 50ms"), "{why}");
    }
}

#[tokio::test]
async fn one_that_speaks_something_else_fails() {
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ =
                stream.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").await;
        }
    });
    let (_probe, mut told) = probed(address, &settings());
    let why = failure(&mut told).await;
    assert!(why.chars().all(|c| !c.is_control()), "{why}");
}

#[tokio::test]
async fn one_that_comes_back_is_found_again() {
    let (listener, address) = listen().await;
    drop(listener);
    let (_probe, mut told) = probed(address, &settings());
    failure(&mut told).await;
    let (_reporter, health) = health_reporter();
    let listener = TcpListener::bind(address).await.unwrap();
    serve_on(listener, health);
    while next(&mut told).await != Check::Serving {}
}

/// Relays bytes to `server` until `held` is notified; the connections stay open.
async fn relay(server: SocketAddr, held: Arc<tokio::sync::Notify>) -> SocketAddr {
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut far = tokio::net::TcpStream::connect(server).await.unwrap();
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
            () = held.notified() => {}
        }
        std::future::pending::<()>().await; // and `near` and `far` stay open
    });
    address
}

#[tokio::test]
async fn a_peer_that_falls_silent_behind_an_open_stream_is_noticed() {
    let (address, checks) = scripted(steady, || Ok(1)).await;
    let held = Arc::new(tokio::sync::Notify::new());
    let address = relay(address, held.clone()).await;
    let (_probe, mut told) = probed(address, &half_a_second());
    assert_eq!(next(&mut told).await, Check::Serving);
    // The instance is asked beside the stream, and the answer is not sent.
    timeout(PATIENCE, async {
        while checks.load(Ordering::Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert!(told.is_empty());
    held.notify_one();
    let why = failure(&mut told).await;
    assert!(why.contains("no answer within 500ms"), "{why}");
}

fn half_a_second() -> HealthSettings {
    HealthSettings { check_timeout: Duration::from_millis(500), ..settings() }
}

#[tokio::test]
async fn a_stream_that_ends_is_opened_again_but_not_at_once() {
    let short = || Ok(Box::pin(tokio_stream::iter([answer(1)])) as HealthAnswers);
    let (address, _) = scripted(short, || Ok(1)).await;
    let (_probe, mut told) = probed(address, &settings());
    assert_eq!(next(&mut told).await, Check::Serving);
    let begun = Instant::now();
    for _ in 0..3 {
        assert_eq!(next(&mut told).await, Check::Serving);
    }
    // Three periods of at least 90 ms, less the time until the first result came.
    assert!(begun.elapsed() > Duration::from_millis(180), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_stream_that_never_stops_talking_is_cut_off() {
    let flood = || {
        let answers = std::iter::successors(Some(1), |n| Some(3 - n)).map(answer);
        Ok(Box::pin(tokio_stream::iter(answers)) as HealthAnswers)
    };
    let (address, _) = scripted(flood, || Ok(1)).await;
    let (_probe, mut told) = probed(address, &settings());
    let why = failure(&mut told).await;
    assert!(why.contains("more than 100 words"), "{why}");
}

#[tokio::test]
async fn checks_end_with_their_probe_or_their_listener() {
    let (address, _) = scripted(steady, || Ok(1)).await;
    let (probe, mut told) = probed(address, &settings());
    assert_eq!(next(&mut told).await, Check::Serving);
    drop(probe);
    assert_eq!(timeout(PATIENCE, told.recv()).await.unwrap(), None, "the task is gone");
    let (address, _) = scripted(no_watch, || Ok(1)).await;
    let (probe, told) = probed(address, &settings());
    drop(told);
    timeout(PATIENCE, async {
        while !probe.0.is_finished() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn zero_means_never() {
    let never = HealthSettings { check_every: Duration::ZERO, ..settings() };
    let (tell, _told) = mpsc::channel(1);
    let nowhere = plain(([127, 0, 0, 1], 9).into());
    assert!(super::start(WHO, nowhere, &never, 1, tell).is_none());
}

#[test]
fn checks_are_spread_by_the_seed() {
    let asker = |seed| Checker {
        instance: WHO,
        door: Door::new(plain(([127, 0, 0, 1], 9).into()), PATIENCE).unwrap(),
        every: Duration::from_secs(30),
        limit: Duration::from_secs(5),
        random: StdRng::seed_from_u64(seed),
        results: mpsc::channel(1).0,
    };
    let (mut one, mut same, mut other) = (asker(1), asker(1), asker(2));
    for _ in 0..100 {
        let (soon, period) = (one.soon(), one.period());
        assert!(soon <= SPREAD, "{soon:?}");
        assert!((27.0..=33.0).contains(&period.as_secs_f64()), "{period:?}");
        assert_eq!((soon, period), (same.soon(), same.period()));
        assert_ne!((soon, period), (other.soon(), other.period()));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn any_answer_of_a_grpc_server_proves_that_it_lives_and_silence_does_not() {
    let asked = async |address| {
        let (tell, mut told) = mpsc::channel(1);
        super::ask_whether_it_lives(WHO, &plain(address), Duration::from_millis(300), tell);
        next(&mut told).await
    };
    let (well, _) = scripted(no_watch, || Ok(1)).await;
    let (unwell, _) = scripted(no_watch, || Ok(2)).await;
    let (unknown, _) = scripted(no_watch, || Err(Status::not_found("who?"))).await;
    let (busy, _) = scripted(no_watch, || Err(Status::unavailable("too busy"))).await;
    for address in [well, unwell, unknown, busy, serve(Other).await] {
        assert_eq!(asked(address).await, Check::Answered);
    }
    let (silent, accepts) = listen().await;
    let (closed, refuses) = listen().await;
    drop(closed);
    for address in [accepts, refuses] {
        assert_eq!(asked(address).await, Check::Silent);
    }
    drop(silent);
}

#[test]
fn a_check_that_a_pause_of_the_process_fell_into_has_its_time_once_more() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().build().expect("a runtime");
    let limit = Duration::from_millis(100);
    let stopped = async {
        // The thread does not run, as in a process that is stopped; the answer is read after it.
        std::thread::sleep(limit + Duration::from_millis(PAUSE_MS + 150));
        sleep(Duration::from_millis(20)).await;
        Ok(7)
    };
    assert_eq!(runtime.block_on(within(limit, stopped)).expect("read after the pause"), 7);
    let never = std::future::pending::<Result<u32, Status>>();
    let late = runtime.block_on(within(limit, never)).expect_err("it never answers");
    assert_eq!(late.code(), Code::DeadlineExceeded);
}

#[tokio::test(flavor = "current_thread")]
async fn one_address_that_answers_is_enough() {
    let (well, _) = scripted(no_watch, || Ok(1)).await;
    let (silent, accepts) = listen().await;
    let (closed, refuses) = listen().await;
    drop(closed);
    for addresses in [[refuses, well], [accepts, well], [well, accepts]] {
        let (tell, mut told) = mpsc::channel(1);
        let addresses = Addresses::new(addresses[0], vec![addresses[1]]);
        let target = Target { addresses, tls: None };
        super::ask_whether_it_lives(WHO, &target, Duration::from_secs(5), tell);
        assert_eq!(next(&mut told).await, Check::Answered, "{}", target.addresses);
    }
    drop(silent);
}

#[tokio::test(flavor = "current_thread")]
async fn checks_go_to_another_address_when_one_refuses_or_says_nothing() {
    let (well, _) = scripted(no_watch, || Ok(1)).await;
    let (silent, accepts) = listen().await;
    let (closed, refuses) = listen().await;
    drop(closed);
    let checked = async |first| {
        let settings = HealthSettings { check_timeout: Duration::from_secs(1), ..settings() };
        let (tell, told) = mpsc::channel(64);
        let target = Target { addresses: Addresses::new(first, vec![well]), tls: None };
        (super::start(WHO, target, &settings, 1, tell).unwrap(), told)
    };
    let (_probe, mut told) = checked(refuses).await;
    assert_eq!(next(&mut told).await, Check::Succeeded);
    let (_probe, mut told) = checked(accepts).await;
    assert!(matches!(next(&mut told).await, Check::Failed { .. }), "it accepts connections");
    assert_eq!(next(&mut told).await, Check::Succeeded);
    drop(silent);
}
