//! Asks one instance for its health (grpc.health.v1), again and again, on a connection of its own.

#[cfg(test)]
mod tests;

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::health::Check;
use crate::config::settings::HealthSettings;
use crate::ids::InstanceId;

/// Size of an answer: it holds one small number, which takes 2 bytes.
const ANSWER_BYTES_MAX: usize = 1024;
/// Size of an answer's headers. They hold a few words and perhaps a sentence about an error.
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Characters of a reason: a line of a log.
const WHY_CHARS_MAX: usize = 200;
/// The first check comes at a random time within this, and so does the one after a stream ended: a
/// gateway that starts does not ask all at once, nor all gateways an instance that is back.
const SPREAD: Duration = Duration::from_secs(1);
/// Without a health service it is asked again after so many checks' time: it may have been replaced
/// by a version that has one, which is no hurry.
const UNSERVED_PERIODS: u32 = 10;
/// What a stream says is told at most once in this time: an instance that changes its mind all the
/// time must not keep the gateway busy with new snapshots.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// Messages of a stream within [`TELL_EVERY`]. One that says more is faulty, and is cut off.
const WORDS_MAX: u32 = 100;

/// What was found out about an instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckResult {
    /// Which.
    pub instance: InstanceId,
    /// What.
    pub check: Check,
}

/// The checks of one instance; they end when this is dropped.
#[derive(Debug)]
#[must_use = "the checks end when this is dropped"]
pub struct Probe(AbortHandle);

impl Drop for Probe {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts checks of the instance at `address`, with jitter from `seed`. `None` if `check_every` is
/// zero, which means never. Needs a tokio runtime.
///
/// Asks `Watch` where it is served and keeps that stream. A silent stream does not tell whether its
/// peer still lives, so `Check` is asked beside it each `check_every`. Not HTTP/2 PING: gRPC
/// servers allow one in five minutes by default and end the connection at the third before that
/// (gRFC A8), but any number of calls.
pub fn watch(
    instance: InstanceId,
    address: SocketAddr,
    settings: &HealthSettings,
    seed: u64,
    tell: mpsc::Sender<CheckResult>,
) -> Option<Probe> {
    let (every, limit) = (settings.check_every, settings.check_timeout);
    if every.is_zero() {
        return None;
    }
    let endpoint = match Endpoint::from_shared(format!("http://{address}")) {
        Ok(endpoint) => {
            endpoint.connect_timeout(limit).http2_max_header_list_size(HEADER_BYTES_MAX)
        }
        Err(error) => {
            // An IPv6 address with a scope has no place in a URI.
            tracing::warn!(
                instance = instance.0, %address, %error,
                "not_checked: give the instance an address without a scope, or health.check_ms = 0"
            );
            return None;
        }
    };
    let random = StdRng::seed_from_u64(seed);
    let asker = Checker { instance, endpoint, every, limit, random, tell };
    Some(Probe(tokio::spawn(asker.run()).abort_handle()))
}

/// Nobody listens to what is found out.
struct ReceiverGone;

/// How to go on.
enum NextTurn {
    /// On the same connection, with `Check`: `Watch` is not served.
    Check(HealthClient<Channel>),
    /// On a new connection.
    Reconnect,
}

struct Checker {
    instance: InstanceId,
    endpoint: Endpoint,
    every: Duration,
    limit: Duration,
    random: StdRng,
    tell: mpsc::Sender<CheckResult>,
}

impl Checker {
    async fn run(mut self) {
        let first = self.soon();
        sleep(first).await;
        let mut next = NextTurn::Reconnect;
        loop {
            let begun = Instant::now();
            let turn = match next {
                NextTurn::Reconnect => self.open().await,
                NextTurn::Check(client) => self.check(client).await,
            };
            let Ok((then, pause)) = turn else { return };
            next = then;
            sleep_until(begun + pause).await;
        }
    }

    /// `check_every`, give or take 10 %.
    fn period(&mut self) -> Duration {
        self.every.mul_f64(self.random.random_range(0.9..=1.1))
    }

    /// A random time up to [`SPREAD`], or `check_every` if that is less.
    fn soon(&mut self) -> Duration {
        SPREAD.min(self.every).mul_f64(self.random.random())
    }

    async fn tell(&self, check: Check) -> Result<(), ReceiverGone> {
        let checked = CheckResult { instance: self.instance, check };
        self.tell.send(checked).await.map_err(|_| ReceiverGone)
    }

    /// A turn on a new connection: `Watch`, and if that is not served, `Check`. How to go on, and
    /// how long after the begin of this turn.
    async fn open(&mut self) -> Result<(NextTurn, Duration), ReceiverGone> {
        let client = HealthClient::new(self.endpoint.connect_lazy())
            .max_decoding_message_size(ANSWER_BYTES_MAX);
        match within(self.limit, first_word(client.clone())).await {
            Ok((stream, word)) => self.follow(client, stream, word).await,
            Err(status) if status.code() == Code::Unimplemented => self.check(client).await,
            Err(status) => self.failed(&status).await,
        }
    }

    /// A turn with one `Check`.
    async fn check(
        &mut self,
        client: HealthClient<Channel>,
    ) -> Result<(NextTurn, Duration), ReceiverGone> {
        let answer = match within(self.limit, ask(client.clone())).await {
            Ok(answer) => answer,
            Err(status) => return self.failed(&status).await,
        };
        self.tell(match said(answer) {
            Check::Serving => Check::Succeeded,
            Check::NotServing { why } => Check::Failed { why },
            other @ (Check::Succeeded | Check::Failed { .. } | Check::NotImplemented) => other,
        })
        .await?;
        Ok((NextTurn::Check(client), self.period()))
    }

    /// The end of a turn that got no answer, or one without a word about health.
    async fn failed(&mut self, status: &Status) -> Result<(NextTurn, Duration), ReceiverGone> {
        let unserved = is_unserved(status);
        self.tell(match unserved {
            true => Check::NotImplemented,
            false => Check::Failed { why: why(status) },
        })
        .await?;
        let periods = if unserved { UNSERVED_PERIODS } else { 1 };
        Ok((NextTurn::Reconnect, self.period() * periods))
    }

    /// A turn as long as a stream lasts, that began with `word`. Its end by itself says nothing:
    /// servers end connections by age, proxies when they feel like it. Asking again says more.
    async fn follow(
        &mut self,
        client: HealthClient<Channel>,
        mut stream: Streaming<HealthCheckResponse>,
        word: HealthCheckResponse,
    ) -> Result<(NextTurn, Duration), ReceiverGone> {
        let opened = Instant::now();
        let mut told = said(word);
        self.tell(told.clone()).await?;
        let mut latest = None;
        let (mut words, mut tell_at) = (0, opened + TELL_EVERY);
        let alive = alive(client.clone(), self.period(), self.limit);
        tokio::pin!(alive);
        loop {
            tokio::select! {
                message = stream.message() => match message {
                    Ok(Some(_)) if words == WORDS_MAX => {
                        let text = format!("says more than {WORDS_MAX} words in {TELL_EVERY:?}");
                        return self.failed(&Status::resource_exhausted(text)).await;
                    }
                    Ok(Some(word)) => {
                        words += 1;
                        latest = Some(said(word));
                    }
                    // Not sooner than a period after it was opened: it may end each time at once.
                    Ok(None) | Err(_) => {
                        let lasted = opened.elapsed();
                        return Ok((NextTurn::Reconnect, self.period().max(lasted + self.soon())));
                    }
                },
                () = sleep_until(tell_at), if words > 0 => {
                    words = 0;
                    tell_at = Instant::now() + TELL_EVERY;
                    if let Some(check) = latest.take().filter(|check| *check != told) {
                        told = check;
                        self.tell(told.clone()).await?;
                    }
                }
                result = &mut alive => match result {
                    Ok(()) => alive.set(self::alive(client.clone(), self.period(), self.limit)),
                    Err(status) => {
                        let (next, pause) = self.failed(&status).await?;
                        return Ok((next, opened.elapsed() + pause));
                    }
                },
            }
        }
    }
}

fn request() -> HealthCheckRequest {
    // The empty name is the server as a whole.
    HealthCheckRequest { service: String::new() }
}

async fn ask(mut client: HealthClient<Channel>) -> Result<HealthCheckResponse, Status> {
    Ok(client.check(request()).await?.into_inner())
}

/// Opens a stream. Its first word comes at once, the protocol says.
async fn first_word(
    mut client: HealthClient<Channel>,
) -> Result<(Streaming<HealthCheckResponse>, HealthCheckResponse), Status> {
    let mut stream = client.watch(request()).await?.into_inner();
    let word = stream.message().await?;
    let word = word.ok_or_else(|| Status::unavailable("the stream ended without a word"))?;
    Ok((stream, word))
}

/// Asks after `pause` whether the peer still answers: whatever it says about health is said better
/// by the stream.
async fn alive(
    client: HealthClient<Channel>,
    pause: Duration,
    limit: Duration,
) -> Result<(), Status> {
    sleep(pause).await;
    match within(limit, ask(client)).await {
        Err(status) if !is_unserved(&status) => Err(status),
        Ok(_) | Err(_) => Ok(()),
    }
}

async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let late = |_| Err(Status::deadline_exceeded(format!("no answer within {limit:?}")));
    timeout(limit, call).await.unwrap_or_else(late)
}

/// The answers of a server that cannot tell: no such method, or it does not know the empty name.
fn is_unserved(status: &Status) -> bool {
    matches!(status.code(), Code::Unimplemented | Code::NotFound)
}

/// What an answer means, on a stream.
fn said(response: HealthCheckResponse) -> Check {
    match ServingStatus::try_from(response.status) {
        Ok(ServingStatus::Serving) => Check::Serving,
        Ok(ServingStatus::ServiceUnknown) => Check::NotImplemented,
        Ok(ServingStatus::NotServing) => Check::NotServing { why: "says NOT_SERVING".into() },
        Ok(ServingStatus::Unknown) => Check::NotServing { why: "says UNKNOWN".into() },
        Err(_) => Check::NotServing { why: format!("says status {}", response.status) },
    }
}

/// A failed call in one line. The deepest cause says most ("Connection refused").
fn why(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut cause = status.source();
    while let Some(deeper) = cause.and_then(Error::source) {
        cause = Some(deeper);
    }
    if let Some(cause) = cause.map(ToString::to_string).filter(|cause| !text.contains(cause)) {
        text = format!("{text}: {cause}");
    }
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(WHY_CHARS_MAX).map(plain).collect()
}
