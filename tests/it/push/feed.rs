//! The long stream of pushes: order, numbers, credit, and how it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::Signal;
use serde_json::{Value, json};
use shardgate::wire::push::generated::push_client::PushClient;
use shardgate::wire::push::generated::{FeedRequest, FeedResponse, PushMessage, Receipt, To};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status, Streaming};

use super::callers::doors;
use super::{SHOP, bare, config, guest, hears, hears_nothing, rule, shop};
use crate::support::{Gateway, Instance, PATIENCE, eventually};

/// A feed of the caller `shop`.
struct Feed {
    runtime: Runtime,
    requests: Option<mpsc::Sender<FeedRequest>>,
    answers: Streaming<FeedResponse>,
    number: u64,
}

/// A runtime that goes on while the test does something else.
fn runtime() -> Runtime {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(1).enable_all().build().expect("a runtime")
}

/// Opens a feed of these requests.
async fn open(
    gateway: &Gateway,
    requests: impl tokio_stream::Stream<Item = FeedRequest> + Send + 'static,
) -> Streaming<FeedResponse> {
    let endpoint = Endpoint::new(format!("http://{}", doors(gateway))).expect("a URL");
    let mut client = PushClient::new(endpoint.connect_lazy());
    let mut request = Request::new(requests);
    let bearer = format!("Bearer {SHOP}").parse().expect("ASCII");
    request.metadata_mut().insert("authorization", bearer);
    client.feed(request).await.expect("it may").into_inner()
}

impl Feed {
    fn open(gateway: &Gateway) -> Self {
        let runtime = runtime();
        let (requests, stream) = mpsc::channel(1_000);
        let answers = runtime.block_on(open(gateway, ReceiverStream::new(stream)));
        Self { runtime, requests: Some(requests), answers, number: 0 }
    }

    /// Sends pushes under the next number.
    fn send(&mut self, pushes: Vec<PushMessage>) {
        self.number += 1;
        self.send_as(self.number, pushes);
    }

    fn send_as(&mut self, number: u64, pushes: Vec<PushMessage>) {
        let requests = self.requests.as_ref().expect("it is open");
        let request = FeedRequest { number, pushes };
        self.runtime.block_on(requests.send(request)).expect("it is read");
    }

    /// Ends the caller's side.
    fn ends(&mut self) {
        self.requests = None;
    }

    /// The next answer; `None`: it ended well.
    fn next(&mut self) -> Result<Option<FeedResponse>, Status> {
        let next = async { tokio::time::timeout(PATIENCE, self.answers.next()).await };
        self.runtime.block_on(next).expect("in time").transpose()
    }

    fn answer(&mut self) -> FeedResponse {
        self.next().expect("no end").expect("an answer")
    }
}

fn push(n: u64) -> PushMessage {
    let to = Some(To { groups: vec!["room:7".into()], ..Default::default() });
    PushMessage { to, msg_id: 7001, payload: n.to_string().into(), ..Default::default() }
}

fn counted(n: u64) -> PushMessage {
    PushMessage { receipt: Receipt::Counted.into(), ..push(n) }
}

#[test]
fn pushes_arrive_in_order_and_refusals_and_counts_are_told_with_their_place() {
    let gateway = Gateway::start(&config());
    let mut member = guest(&gateway);
    let mut feed = Feed::open(&gateway);
    let first = feed.answer();
    assert_eq!((first.up_to, first.credit), (0, 1_000));
    let bad = PushMessage { msg_id: 0, ..push(0) };
    feed.send(vec![push(1), push(2)]);
    feed.send(vec![bad, counted(3), push(4)]);
    feed.send((5..100).map(push).collect());
    let answers: Vec<_> = (0..3).map(|_| feed.answer()).collect();
    let told: Vec<_> = answers.iter().map(|one| (one.up_to, one.credit)).collect();
    assert_eq!(told, [(1, 2), (2, 3), (3, 95)], "credit comes back");
    assert!([0, 2].iter().all(|n| answers[*n].results.is_empty()), "all went well");
    let [refused, counts] = &answers[1].results[..] else { panic!("{:?}", answers[1]) };
    let reason = refused.result.as_ref().map(|result| result.reason.as_str());
    assert_eq!((refused.number, refused.index, reason), (2, 0, Some("BAD_MESSAGE")));
    let result = counts.result.clone().expect("it is there");
    let written = result.counts.unwrap_or_default().written;
    let offset = result.positions[0].position.as_ref().map(|at| at.offset);
    assert_eq!((counts.number, counts.index, written, offset), (2, 1, 1, Some(3)));
    for n in 1..100 {
        assert_eq!(hears(&mut member), n);
    }
    feed.send(vec![push(100)]);
    feed.ends();
    assert_eq!(feed.answer().up_to, 4, "what was sent before the end is answered");
    assert_eq!(feed.next().expect("it ends well"), None);
    assert_eq!(hears(&mut member), 100);
    let pushes = &gateway.admin_get("/stats")["push"]["callers"]["shop"]["pushes"]["grpc"];
    assert_eq!(pushes, &json!({"group": 100}));
}

#[test]
fn a_number_that_jumps_or_too_many_in_one_request_end_the_feed_after_what_was_taken() {
    let gateway = Gateway::start(&config());
    let mut member = guest(&gateway);
    for (number, pushes, names) in [
        (1, vec![push(9)], "number: 1 comes after 1"),
        (3, vec![push(9)], "number: 3 comes after 1"),
        (2, (0..101).map(push).collect(), "push.batch_max"),
        (2, Vec::new(), "push.batch_max"),
    ] {
        let mut feed = Feed::open(&gateway);
        feed.answer();
        feed.send(vec![push(7)]);
        feed.send_as(number, pushes);
        assert_eq!(feed.answer().up_to, 1);
        let status = feed.next().expect_err("it ends");
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(names), "{status:?}");
        assert_eq!(hears(&mut member), 7);
        hears_nothing(&mut member);
    }
    let refused = &gateway.admin_get("/stats")["push"]["callers"]["shop"]["refused"];
    assert_eq!(refused, &json!({"BAD_MESSAGE": 4}));
}

#[test]
fn who_keeps_to_the_credit_sends_for_ever_and_who_does_not_is_ended() {
    let gateway = Gateway::start(&config().key("push.feed_credit = 3"));
    let mut member = guest(&gateway);
    let mut feed = Feed::open(&gateway);
    let mut credit = feed.answer().credit;
    assert_eq!(credit, 3);
    for n in 0..60 {
        while credit == 0 {
            credit += feed.answer().credit;
        }
        feed.send(vec![push(n)]);
        credit -= 1;
    }
    (0..60).for_each(|n| assert_eq!(hears(&mut member), n));
    while credit < 3 {
        credit += feed.answer().credit;
    }
    feed.send((0..4).map(push).collect());
    let status = feed.next().expect_err("it ends");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("the credit is 3"), "{status:?}");
    hears_nothing(&mut member);
}

#[test]
fn the_rate_of_a_caller_holds_for_its_feeds_and_refuses_push_by_push() {
    let rate = shop(", pushes_per_s = 1");
    let config = bare().key(&format!("push_caller = [{rate}]")).key(&rule(""));
    let gateway = Gateway::start(&config);
    let mut feed = Feed::open(&gateway);
    feed.answer();
    feed.send(vec![push(1), push(2)]);
    let answer = feed.answer();
    let result = answer.results[0].result.as_ref().expect("a result");
    assert_eq!((answer.results[0].index, result.reason.as_str()), (1, "RATE_LIMITED"));
    assert!(result.retry_after_ms > 0 && answer.credit == 2, "{answer:?}");
}

#[test]
fn a_caller_who_reads_no_answers_and_sends_on_is_held_up_and_then_ended() {
    let gateway = Gateway::start(&config());
    let sent = Arc::new(AtomicU64::new(0));
    let count = sent.clone();
    // Each is refused, so that answers have results, which nobody reads.
    let bad = PushMessage { msg_id: 0, ..push(0) };
    let endless = std::iter::repeat_with(move || {
        let number = count.fetch_add(1, Ordering::Relaxed) + 1;
        FeedRequest { number, pushes: vec![bad.clone(); 100] }
    });
    let runtime = runtime();
    let mut answers = runtime.block_on(open(&gateway, tokio_stream::iter(endless)));
    let (mut before, mut same) = (0, 0);
    eventually("it is held up", || {
        let now = sent.load(Ordering::Relaxed);
        same = if now > 0 && now == before { same + 1 } else { 0 };
        before = now;
        assert!(gateway.admin_get("/stats")["push"]["address"].is_string(), "others are served");
        (same == 50).then_some(())
    });
    assert!(before < 1_000, "{before} requests were sent before anything was read");
    let read = async {
        let mut last = 0;
        loop {
            match answers.next().await.expect("a status") {
                Ok(answer) => last = answer.up_to,
                Err(status) => return (last, status),
            }
        }
    };
    let read = runtime.block_on(async { tokio::time::timeout(PATIENCE, read).await });
    let (last, status) = read.expect("in time");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("credit") && last < before, "{last}: {status:?}");
    let awaited = &gateway.admin_get("/stats")["push"]["awaited"];
    assert_eq!(awaited, 0, "nothing is left behind");
}

#[test]
fn a_gateway_that_stops_answers_what_it_took_and_ends_the_feed() {
    let instance = Instance::echo();
    instance.hold();
    let config = config().service("logic", &[("a", instance.address)]).route(1000, "logic", "");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let mut member = guest(&gateway);
    // The gateway waits for the answer to it, so that it stops for as long as the test wants.
    member.send(json!({"msg_id": 1001}));
    instance.wait_for(1);
    let mut feed = Feed::open(&gateway);
    feed.answer();
    feed.send(vec![counted(1)]);
    let answer = feed.answer();
    assert_eq!((answer.up_to, answer.results.len()), (1, 1));
    gateway.signal(Signal::TERM);
    let status = feed.next().expect_err("it ends");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("stops"), "{status:?}");
    instance.release();
    let (messages, _) = member.until_close();
    let pushes: Vec<&Value> = messages.iter().filter(|one| one["type"] == "push").collect();
    assert_eq!(pushes.len(), 1, "{messages:?}");
}

#[test]
fn a_reload_that_takes_a_caller_away_ends_its_feed() {
    let gateway = Gateway::start(&config());
    let mut feed = Feed::open(&gateway);
    feed.answer();
    feed.send(vec![push(1)]);
    assert_eq!(feed.answer().up_to, 1);
    let other = shop("").replace("\"shop\"", "\"other\"");
    gateway.rewrite(&bare().key(&format!("push_caller = [{other}]")).key(&rule("")));
    assert_eq!(gateway.admin_post("/reload", "").0, 200);
    feed.send(vec![push(2)]);
    let status = feed.next().expect_err("it ends");
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
}
