//! Health checks (grpc.health.v1) of one instance, again and again, on a connection of their own.

mod door;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use self::door::Door;
pub use self::door::Target;
use super::health::Check;
use crate::config::settings::HealthSettings;
use crate::ids::InstanceId;
use crate::limits::PAUSE_MS;
use crate::plain::is_plain;

/// Characters of a reason: a line of a log.
const WHY_CHARS_MAX: usize = 200;
/// Range of the random time before the first check, and before the one after a stream ended: so
/// that a gateway that starts does not ask all instances at once, nor all gateways an instance that
/// is back.
const SPREAD: Duration = Duration::from_secs(1);
/// Periods after which an instance without a health service is asked again: it may have been
/// replaced by a version that has one, which is no hurry.
const UNSERVED_PERIODS: u32 = 10;
/// Shortest time between two results of a stream: an instance that changes its state all the time
/// must not keep the gateway busy with new snapshots.
const SEND_EVERY: Duration = Duration::from_millis(100);
/// Messages of a stream within [`SEND_EVERY`]. A stream with more is faulty, and is cut off.
const ANSWERS_MAX: u32 = 100;

/// Result of a health check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckResult {
    pub instance: InstanceId,
    pub check: Check,
}

/// Task of one instance's checks; dropping it ends them.
#[derive(Debug)]
#[must_use = "the checks end when this is dropped"]
pub struct Probe(AbortHandle);

impl Drop for Probe {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts checks of the instance at `target`, with jitter from `seed`. `None` if `check_every` is
/// zero, which means never. Needs a tokio runtime.
///
/// Asks `Watch` where it is served and keeps that stream. A silent stream does not tell whether its
/// peer still lives, so `Check` is asked beside it each `check_every`. Not HTTP/2 PING: gRPC
/// servers allow one in five minutes by default and end the connection at the third before that
/// (gRFC A8), but any number of calls.
pub fn start(
    instance: InstanceId,
    target: Target,
    settings: &HealthSettings,
    seed: u64,
    results: mpsc::Sender<CheckResult>,
) -> Option<Probe> {
    let (every, limit) = (settings.check_every, settings.check_timeout);
    if every.is_zero() {
        return None;
    }
    let addresses = target.addresses.clone();
    let door = match Door::new(target, limit) {
        Ok(door) => door,
        Err(error) => {
            // An IPv6 address with a scope has no place in a URI.
            tracing::warn!(
                instance_id = instance.0, %addresses, %error,
                "instance_not_checked: its address has a scope; give it one without, or set \
                 health.check_ms = 0"
            );
            return None;
        }
    };
    let random = StdRng::seed_from_u64(seed);
    let checker = Checker { instance, door, every, limit, random, results };
    Some(Probe(tokio::spawn(checker.run()).abort_handle()))
}

/// Asks the instance once at each address of `target`, within `limit`, whether it lives, and sends
/// [`Check::Answered`] or [`Check::Silent`]. Any answer of a gRPC server is one: that it has no
/// health service, too. Needs a tokio runtime.
pub fn ask_whether_it_lives(
    instance: InstanceId,
    target: &Target,
    limit: Duration,
    results: mpsc::Sender<CheckResult>,
) {
    let door = |address: SocketAddr| {
        Door::new(Target { addresses: address.into(), tls: target.tls.clone() }, limit)
    };
    let doors: Vec<_> = target.addresses.iter().map(door).collect();
    tokio::spawn(async move {
        let mut asking = JoinSet::new();
        for door in doors {
            asking.spawn(async move {
                match door {
                    // Without a way to ask, messages have to find out.
                    Err(_) => true,
                    Ok(door) => within(limit, ask(door.client()))
                        .await
                        .map_or_else(|e| is_from_server(&e), |_| true),
                }
            });
        }
        let mut answered = false;
        while !answered && let Some(one) = asking.join_next().await {
            answered = one.unwrap_or(false);
        }
        let check = if answered { Check::Answered } else { Check::Silent };
        // At the end of the process nobody waits for it.
        let _ = results.send(CheckResult { instance, check }).await;
    });
}

/// The receiver of the results is gone.
struct ReceiverGone;

/// Next turn of the checks.
enum NextTurn {
    /// On the same connection, with `Check`: `Watch` is not served.
    Check(HealthClient<Channel>),
    /// On a new connection.
    Reconnect,
}

struct Checker {
    instance: InstanceId,
    door: Door,
    every: Duration,
    limit: Duration,
    random: StdRng,
    results: mpsc::Sender<CheckResult>,
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

    /// Time of `check_every`, give or take 10 %.
    fn period(&mut self) -> Duration {
        self.every.mul_f64(self.random.random_range(0.9..=1.1))
    }

    /// Random time up to [`SPREAD`], or up to `check_every` if that is less.
    fn soon(&mut self) -> Duration {
        SPREAD.min(self.every).mul_f64(self.random.random())
    }

    async fn send(&self, check: Check) -> Result<(), ReceiverGone> {
        let result = CheckResult { instance: self.instance, check };
        self.results.send(result).await.map_err(|_| ReceiverGone)
    }

    /// Makes a turn on a new connection: `Watch`, and if that is not served, `Check`. Returns the
    /// next turn, and its time after the begin of this one.
    async fn open(&mut self) -> Result<(NextTurn, Duration), ReceiverGone> {
        let client = self.door.client();
        match within(self.limit, first_answer(client.clone())).await {
            Ok((stream, answer)) => self.follow(client, stream, answer).await,
            Err(status) if status.code() == Code::Unimplemented => self.check(client).await,
            Err(status) => self.failed(&status).await,
        }
    }

    /// Makes a turn with one `Check`.
    async fn check(
        &mut self,
        client: HealthClient<Channel>,
    ) -> Result<(NextTurn, Duration), ReceiverGone> {
        let answer = match within(self.limit, ask(client.clone())).await {
            Ok(answer) => answer,
            Err(status) => return self.failed(&status).await,
        };
        self.send(match check_of(answer) {
            Check::Serving => Check::Succeeded,
            Check::NotServing { why } => Check::Failed { why },
            other @ (Check::Succeeded
            | Check::Failed { .. }
            | Check::NotImplemented
            | Check::Answered
            | Check::Silent) => other,
        })
        .await?;
        Ok((NextTurn::Check(client), self.period()))
    }

    /// Ends a turn that got no answer, or none about health.
    async fn failed(&mut self, status: &Status) -> Result<(NextTurn, Duration), ReceiverGone> {
        let unserved = is_unserved(status);
        if !unserved {
            // An address that accepts connections and answers nothing is passed over next time.
            self.door.rotate();
        }
        self.send(match unserved {
            true => Check::NotImplemented,
            false => Check::Failed { why: why(status) },
        })
        .await?;
        let periods = if unserved { UNSERVED_PERIODS } else { 1 };
        Ok((NextTurn::Reconnect, self.period() * periods))
    }

    /// Makes a turn as long as a stream lasts. `answer` is the stream's first answer. The end of a
    /// stream alone says nothing about health: servers end connections by age, and so do proxies.
    /// Asking again says more.
    async fn follow(
        &mut self,
        client: HealthClient<Channel>,
        mut stream: Streaming<HealthCheckResponse>,
        answer: HealthCheckResponse,
    ) -> Result<(NextTurn, Duration), ReceiverGone> {
        let opened = Instant::now();
        let mut sent = check_of(answer);
        self.send(sent.clone()).await?;
        let mut latest = None;
        let (mut count, mut send_at) = (0, opened + SEND_EVERY);
        let alive = alive(client.clone(), self.period(), self.limit);
        tokio::pin!(alive);
        loop {
            tokio::select! {
                message = stream.message() => match message {
                    Ok(Some(_)) if count == ANSWERS_MAX => {
                        let text = format!("says more than {ANSWERS_MAX} words in {SEND_EVERY:?}");
                        return self.failed(&Status::resource_exhausted(text)).await;
                    }
                    Ok(Some(answer)) => {
                        count += 1;
                        latest = Some(check_of(answer));
                    }
                    // Not sooner than a period after the stream was opened: a server may end each
                    // one at once.
                    Ok(None) | Err(_) => {
                        let lasted = opened.elapsed();
                        return Ok((NextTurn::Reconnect, self.period().max(lasted + self.soon())));
                    }
                },
                () = sleep_until(send_at), if count > 0 => {
                    count = 0;
                    send_at = Instant::now() + SEND_EVERY;
                    if let Some(check) = latest.take().filter(|check| *check != sent) {
                        sent = check;
                        self.send(sent.clone()).await?;
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

/// Opens a stream. Its first answer comes at once, by the protocol.
async fn first_answer(
    mut client: HealthClient<Channel>,
) -> Result<(Streaming<HealthCheckResponse>, HealthCheckResponse), Status> {
    let mut stream = client.watch(request()).await?.into_inner();
    let answer = stream.message().await?;
    let answer = answer.ok_or_else(|| Status::unavailable("the stream ended without a word"))?;
    Ok((stream, answer))
}

/// Asks after `pause` whether the peer still answers. The answer's content does not matter: the
/// stream is newer.
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

/// The result of a call that ends within `limit`. If the time-out itself is late, the process was
/// stopped, and the answer may not be read yet: then the call has its time once more.
async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    tokio::pin!(call);
    loop {
        let began = Instant::now();
        match timeout(limit, &mut call).await {
            Ok(result) => return result,
            Err(_) if began.elapsed() > limit + Duration::from_millis(PAUSE_MS) => {}
            Err(_) => {
                let text = format!("no answer within {limit:?}");
                return Err(Status::deadline_exceeded(text));
            }
        }
    }
}

/// Whether the server cannot tell: it has no such method, or does not know the empty name.
fn is_unserved(status: &Status) -> bool {
    matches!(status.code(), Code::Unimplemented | Code::NotFound)
}

/// Whether an error is the word of a server that lives. tonic names the source of one of the
/// connection; the time-out is ours.
fn is_from_server(status: &Status) -> bool {
    status.source().is_none() && status.code() != Code::DeadlineExceeded
}

/// Meaning of an answer on a stream.
fn check_of(response: HealthCheckResponse) -> Check {
    match ServingStatus::try_from(response.status) {
        Ok(ServingStatus::Serving) => Check::Serving,
        Ok(ServingStatus::ServiceUnknown) => Check::NotImplemented,
        Ok(ServingStatus::NotServing) => Check::NotServing { why: "says NOT_SERVING".into() },
        Ok(ServingStatus::Unknown) => Check::NotServing { why: "says UNKNOWN".into() },
        Err(_) => Check::NotServing { why: format!("says status {}", response.status) },
    }
}

/// Text of a failed call, one line. The deepest cause says most ("Connection refused").
fn why(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut cause = status.source();
    while let Some(deeper) = cause.and_then(Error::source) {
        cause = Some(deeper);
    }
    if let Some(cause) = cause.map(ToString::to_string).filter(|cause| !text.contains(cause)) {
        text = format!("{text}: {cause}");
    }
    let plain = |c: char| if is_plain(c) { c } else { ' ' };
    text.chars().take(WHY_CHARS_MAX).map(plain).collect()
}
