//! The long stream of pushes, `Feed`.
//!
//! One task reads requests and sends their pushes to the shards, in order; another awaits what
//! became of each, in the same order, and answers. Credit comes back with the answer, so that a
//! caller who does not read, or shards that are slow, hold up the reading and make nothing grow: no
//! more than the credit is on the way, and a few requests and answers wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::answer;
use super::callers::Caller;
use super::desk::{Desk, Phase};
use super::refusal::Refused;
use super::send::{Sending, Sent};
use super::service::status;
use super::tally::Door;
use crate::message::Reason;
use crate::wire::push::generated as proto;

/// Requests that were taken and not answered; no more are read.
const REQUESTS_MAX: usize = 64;
/// Answers that were not read; no more are made.
const ANSWERS_MAX: usize = 8;

/// The sending end of a feed's answers.
type Answers = mpsc::Sender<Result<proto::FeedResponse, Status>>;

/// What the reading task tells the answering one.
enum Step {
    /// A request was taken.
    #[allow(missing_docs)]
    Taken { number: u64, sending: Sending, pushes: Vec<Pushed> },
    /// Nothing more is read, for this reason.
    End(Status),
}

/// A push of a request.
struct Pushed {
    /// Whether its caller waits for counts.
    is_counted: bool,
    fate: Fate,
}

enum Fate {
    Sent(Sent),
    Known(proto::PushResult),
}

/// Opens a feed of a caller: reads `requests` until they end, and gives the answers.
pub fn open(
    desk: &Arc<Desk>,
    caller: &Arc<Caller>,
    requests: Streaming<proto::FeedRequest>,
) -> ReceiverStream<Result<proto::FeedResponse, Status>> {
    let (answers, stream) = mpsc::channel(ANSWERS_MAX);
    let (steps, taken) = mpsc::channel(REQUESTS_MAX);
    let credit = desk.lock().rules.config.gateway.push.feed_credit;
    let left = Arc::new(AtomicU32::new(credit));
    let feed = Feed { desk: desk.clone(), caller: caller.clone(), left: left.clone(), last: 0 };
    tokio::spawn(answer_all(taken, answers, left, credit));
    tokio::spawn(feed.read_all(requests, steps));
    ReceiverStream::new(stream)
}

/// The reading part of a feed.
struct Feed {
    desk: Arc<Desk>,
    caller: Arc<Caller>,
    /// Pushes that may come.
    left: Arc<AtomicU32>,
    /// Number of the last request.
    last: u64,
}

impl Feed {
    /// Takes requests until the caller ends its side, breaks a rule, or the gateway stops.
    async fn read_all(
        mut self,
        mut requests: Streaming<proto::FeedRequest>,
        steps: mpsc::Sender<Step>,
    ) {
        let mut phase = self.desk.lock().phase.subscribe();
        loop {
            let request = tokio::select! {
                biased;
                _ = phase.wait_for(|phase| *phase != Phase::Serving) => None,
                request = requests.message() => match request {
                    Ok(Some(request)) => Some(request),
                    // Its side has ended, or its connection has.
                    Ok(None) | Err(_) => return,
                },
            };
            let step = match self.take(request).await {
                Ok(step) => step,
                Err(refused) => {
                    self.desk.lock().note_refusal(&self.caller, &refused, Instant::now());
                    Step::End(status(&refused))
                }
            };
            let is_end = matches!(step, Step::End(_));
            // The answering task ends when nobody reads.
            if steps.send(step).await.is_err() || is_end {
                return;
            }
        }
    }

    /// Sends the pushes of a request, which must keep the rules of feeds; `None`: there is none any
    /// more, as the gateway stops.
    async fn take(&mut self, request: Option<proto::FeedRequest>) -> Result<Step, Refused> {
        self.desk.open()?;
        let Some(proto::FeedRequest { number, pushes }) = request else {
            return Err(Refused::new(Reason::Unavailable, "the gateway starts: come again"));
        };
        let rules = self.desk.lock().rules.clone();
        let name = &self.caller.name;
        let Some(caller) = rules.callers.list().iter().find(|one| one.name == *name).cloned()
        else {
            let why = "the [[push_caller]] of this feed is not configured any more";
            return Err(Refused::new(Reason::Unauthenticated, why));
        };
        if number != self.last + 1 {
            let why =
                format!("number: {number} comes after {}; numbers rise by 1 from 1", self.last);
            return Err(Refused::new(Reason::BadMessage, why));
        }
        let (count, max) = (pushes.len(), rules.config.gateway.push.batch_max);
        if count == 0 || count > max {
            let why = format!("pushes: {count} in one request; push.batch_max allows 1 to {max}");
            return Err(Refused::new(Reason::BadMessage, why));
        }
        let left = self.left.load(Ordering::Relaxed);
        if count as u64 > u64::from(left) {
            let why = format!(
                "pushes: {count} came, and the credit is {left}: wait for answers, whose credit \
                 adds up (push.feed_credit)"
            );
            return Err(Refused::new(Reason::RateLimited, why));
        }
        self.left.fetch_sub(count as u32, Ordering::Relaxed);
        self.last = number;
        let desk = self.desk.clone();
        let is_charged = caller.deliveries_per_s > 0;
        let sending = Sending { desk, caller, door: Door::Grpc, rules };
        let pushes = send(&sending, pushes, is_charged).await;
        Ok(Step::Taken { number, sending, pushes })
    }
}

/// Sends pushes in their order. Of a caller whose deliveries are limited each one waits until the
/// one before was counted.
async fn send(sending: &Sending, pushes: Vec<proto::PushMessage>, is_charged: bool) -> Vec<Pushed> {
    let is_counted = |push: &proto::PushMessage| push.receipt == proto::Receipt::Counted as i32;
    if is_charged {
        let counted: Vec<bool> = pushes.iter().map(is_counted).collect();
        let results = sending.clone().in_turn(pushes).await;
        let known = |(is_counted, result)| Pushed { is_counted, fate: Fate::Known(result) };
        return counted.into_iter().zip(results).map(known).collect();
    }
    let push = |push: proto::PushMessage| {
        let is_counted = is_counted(&push);
        let fate = match sending.push(push, false) {
            Ok(sent) => Fate::Sent(sent),
            Err(refused) => Fate::Known(answer::refused(&refused)),
        };
        Pushed { is_counted, fate }
    };
    pushes.into_iter().map(push).collect()
}

/// Tells the credit, and then what became of each request, in order.
async fn answer_all(
    mut taken: mpsc::Receiver<Step>,
    answers: Answers,
    left: Arc<AtomicU32>,
    credit: u32,
) {
    let first = proto::FeedResponse { credit, ..Default::default() };
    if answers.send(Ok(first)).await.is_err() {
        return;
    }
    while let Some(step) = taken.recv().await {
        let answer = match step {
            Step::Taken { number, sending, pushes } => {
                // At most `push.batch_max`.
                let credit = pushes.len() as u32;
                let results = results(number, &sending, pushes).await;
                left.fetch_add(credit, Ordering::Relaxed);
                Ok(proto::FeedResponse { up_to: number, credit, results })
            }
            Step::End(status) => Err(status),
        };
        if answers.send(answer).await.is_err() {
            return;
        }
    }
}

/// Waits for the pushes of a request, and gives the results that its caller wants to know.
async fn results(number: u64, sending: &Sending, pushes: Vec<Pushed>) -> Vec<proto::FeedResult> {
    let mut results = Vec::new();
    for (index, Pushed { is_counted, fate }) in (0..).zip(pushes) {
        let result = match fate {
            Fate::Sent(sent) => sending.result(sent).await,
            Fate::Known(result) => result,
        };
        if is_counted || result.status != 0 {
            results.push(proto::FeedResult { number, index, result: Some(result) });
        }
    }
    results
}
