//! The control thread: it owns nothing of a shard. It watches the shards, keeps the directory of
//! services and publishes what changes, answers the admin endpoint, and stops the shards in order.

mod admin;
mod board;
mod certificates;
pub mod compose;
mod directory;
pub mod discovery;
mod dump;
mod fleet;
pub mod health;
mod inspections;
pub mod keys;
pub mod log;
pub mod probe;
mod signers;
mod sources;
pub mod supervise;
#[cfg(test)]
mod tests;
pub mod token;
mod view;

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use self::board::{Board, ShardView};
use self::certificates::Watch;
use self::compose::Composer;
use self::directory::{Directory, DirectoryView, Reloaded};
use self::dump::Dumped;
use self::fleet::Fleet;
use self::inspections::QueryResult;
use self::signers::{Fetched, Signers};
use self::sources::Sources;
use self::supervise::Supervisor;
use crate::auth::load::LocalKeys;
use crate::config::{Config, Loader, Problem};
use crate::inspect;
use crate::lanes::{Doorbell, LaneReceiver, LaneSender};
use crate::mailbox::{Command, ShardEvent};
use crate::tls::load::LocalTls;

/// A shard that does not answer within this is named as silent. It answers between two turns, which
/// take milliseconds.
const GATHER_TIMEOUT: Duration = Duration::from_secs(1);
/// A full mailbox is tried again this often.
const RETRY_EVERY: Duration = Duration::from_millis(10);
/// After `stop.grace` a shard still has to write its last errors and see clients' Close frames.
const STOP_MARGIN: Duration = Duration::from_secs(10);
/// Admin connections at once, and so requests that share a gathering; more wait to be accepted.
const ASKS_MAX: usize = 64;

/// Results of health checks that wait to be taken in; checks wait for room.
const CHECKS_MAX: usize = 256;
/// Sources may take so long to speak for the first time before the gateway is called ready: etcd
/// and name servers answer in milliseconds, or are away.
const SPEAK_TIMEOUT: Duration = Duration::from_secs(5);

/// What boot hands over.
pub struct ControlInputs {
    /// What is configured, as the shards were started with it.
    pub config: Config,
    /// Where that came from.
    pub loader: Loader,
    /// Makes snapshots; its first one is what the shards started with.
    pub composer: Composer,
    /// What is of this machine.
    pub local: Local,
    /// Where clients connect.
    pub listens: Listens,
    /// Mailboxes of the shards, by number.
    pub shards: Vec<LaneSender<Command>>,
    /// What the shards say.
    pub events: LaneReceiver<ShardEvent>,
    /// Rings when they say something.
    pub bell: Arc<Doorbell>,
    /// Random number of this run.
    pub boot_id: u64,
    /// When the process started.
    pub started: Instant,
    /// The admin endpoint's socket, listening.
    pub admin: std::net::TcpListener,
    /// The registry's, if there is one.
    pub registry: Option<std::net::TcpListener>,
    /// Spreads in time what must not happen all at once.
    pub seed: u64,
    /// Counts lost log lines, when [`log::init`] was used.
    pub log_dropped: Option<log::DroppedLines>,
}

/// What the start found on this machine.
pub struct Local {
    /// Keys of tokens, as far as they stand in the files.
    pub keys: LocalKeys,
    /// Certificates and what is made of them.
    pub tls: LocalTls,
    /// Connections that a shard may accept at most, whatever is configured: what the limit of open
    /// files allows.
    pub connections_cap: usize,
}

/// Where clients connect, as bound.
#[derive(Clone, Copy, Debug)]
pub struct Listens {
    /// Without TLS.
    pub plain: Option<SocketAddr>,
    /// With TLS.
    pub tls: Option<SocketAddr>,
}

/// Why [`run`] returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExitReason {
    /// A signal, and every shard stopped in order.
    Stopped,
    /// A signal, and every shard stopped, but the grace was over before every message had its
    /// service's answer: some got an error instead.
    CutOff,
    /// A second signal: the shards were told to abort, and not waited for.
    Forced,
    /// A shard failed; the others were drained.
    ShardFailed,
    /// A shard did not stop in time.
    Stuck,
    /// The control thread itself could not start (no runtime, no signal handlers, no socket).
    ControlFailed,
}

impl ExitReason {
    /// The process's exit code.
    pub fn code(self) -> u8 {
        match self {
            ExitReason::Stopped => 0,
            ExitReason::CutOff
            | ExitReason::Forced
            | ExitReason::ShardFailed
            | ExitReason::Stuck
            | ExitReason::ControlFailed => 1,
        }
    }
}

/// What the outside asks of control.
#[derive(Debug)]
enum Ask {
    /// How everything is; several share one gathering.
    Gather(oneshot::Sender<Arc<Gathered>>),
    /// Read the files again. The result is told when every shard has been told.
    Reload(oneshot::Sender<Result<Reloaded, Vec<Problem>>>),
    /// Whether every shard serves and nothing stops.
    Ready(oneshot::Sender<bool>),
    /// Put a query to all shards; refused (dropped) while too many are under way.
    Inspect(inspect::Query, oneshot::Sender<QueryResult>),
    /// Write down how everything is; see [`dump`].
    Dump(oneshot::Sender<io::Result<Dumped>>),
    /// Give an instance nothing new, or something again. False: there is none of that name.
    DrainInstance {
        /// Its name.
        name: String,
        /// Or again.
        on: bool,
        /// Whether there is one.
        done: oneshot::Sender<bool>,
    },
    /// Stop in order; nothing more if that is under way.
    Drain(&'static str),
    /// Stop in order; the second time at once.
    Stop(&'static str),
}

/// Runs control on the calling thread until the shards have stopped (or are given up). The first
/// SIGTERM or SIGINT drains, the second ends at once; SIGHUP reads the files again.
pub fn run(inputs: ControlInputs) -> ExitReason {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.and_then(|runtime| {
        runtime.block_on(async {
            let mut term = signal(SignalKind::terminate())?;
            let mut int = signal(SignalKind::interrupt())?;
            let mut hup = signal(SignalKind::hangup())?;
            let mut usr1 = signal(SignalKind::user_defined1())?;
            let (ask, asks) = mpsc::channel(ASKS_MAX);
            let from_signals = ask.clone();
            tokio::spawn(async move {
                loop {
                    let ask = tokio::select! {
                        _ = term.recv() => Ask::Stop("SIGTERM"),
                        _ = int.recv() => Ask::Stop("SIGINT"),
                        // Nobody waits for the result: it is in the log and in /health.
                        _ = hup.recv() => Ask::Reload(oneshot::channel().0),
                        // Where it is stands in the log.
                        _ = usr1.recv() => Ask::Dump(oneshot::channel().0),
                    };
                    if from_signals.send(ask).await.is_err() {
                        return;
                    }
                }
            });
            serve(inputs, ask, asks).await
        })
    });
    result.unwrap_or_else(|error| {
        tracing::error!(%error, "control failed");
        ExitReason::ControlFailed
    })
}

/// Control itself.
async fn serve(
    inputs: ControlInputs,
    ask: mpsc::Sender<Ask>,
    mut asks: mpsc::Receiver<Ask>,
) -> io::Result<ExitReason> {
    let gateway = &inputs.config.gateway;
    let admin_address = inputs.admin.local_addr()?;
    let about = Arc::new(view::About {
        node: gateway.node.clone(),
        boot_id: inputs.boot_id,
        started: inputs.started,
        log_dropped: inputs.log_dropped,
    });
    let admin = &gateway.admin;
    tokio::spawn(admin::serve(inputs.admin, admin_address, admin, about.clone(), ask)?);
    let scheme = if admin.tls_cert.is_some() { "https" } else { "http" };
    let both = [("ws", inputs.listens.plain), ("wss", inputs.listens.tls)];
    let urls: Vec<String> = both
        .iter()
        .filter_map(|(scheme, at)| Some(format!("{scheme}://{}{}", (*at)?, gateway.path)))
        .collect();
    let ready_line = format!(
        "shardgate ready: {} admin {scheme}://{admin_address} shards {}",
        urls.join(" "),
        inputs.shards.len()
    );
    let (tell, mut news) = mpsc::channel(discovery::NEWS_MAX);
    let (found, mut checks) = mpsc::channel(CHECKS_MAX);
    let (config, now) = (&inputs.config, Instant::now());
    let sources = Sources::start(config, inputs.registry, inputs.seed, tell);
    let sources = sources.map_err(io::Error::other)?;
    let fleet = Fleet::new(gateway.health.clone(), inputs.seed, found);
    let (tell_keys, mut keys) = mpsc::channel(signers::FETCHED_MAX);
    let signers = Signers::start(config, tell_keys);
    let (config, composer) = (inputs.config, inputs.composer);
    let (loader, local) = (inputs.loader, inputs.local);
    let directory = Directory::new(loader, config, composer, fleet, local, now);
    let mut control = Control {
        spoken_by: now + SPEAK_TIMEOUT,
        certificates: Watch::new(now),
        board: Board::new(inputs.shards),
        events: inputs.events,
        signers,
        directory,
        sources,
        ready_line: Some(ready_line),
        waiters: Vec::new(),
        gather_until: None,
        stop_until: None,
        about,
        supervisor: Supervisor::from_environment(Instant::now()),
    };
    loop {
        let commands_wait = control.turn();
        if let Some(reason) = control.finished() {
            return Ok(reason);
        }
        tokio::select! {
            () = poll_fn(|cx| inputs.bell.poll_rung(cx)) => {}
            Some(ask) = asks.recv() => {
                if control.answer(ask) {
                    return Ok(ExitReason::Forced);
                }
            }
            Some(news) = news.recv() => {
                if control.sources.asks(&news.source) {
                    control.directory.hear(news, Instant::now());
                }
            }
            Some(fetched) = keys.recv() => control.take_keys(fetched),
            Some(checked) = checks.recv() => {
                let now = Instant::now();
                control.directory.checked(checked, now);
                // All that is there before the next judgement of all services.
                while let Ok(checked) = checks.try_recv() {
                    control.directory.checked(checked, now);
                }
            }
            () = sleep_until(control.next_wake(commands_wait)) => {}
        }
    }
}

/// The wall clock: Unix time in seconds.
fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// Sleeps until `at`, or for ever.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// What a gathering found.
#[derive(Debug)]
struct Gathered {
    /// When.
    at: Instant,
    draining: bool,
    shards: Vec<ShardView>,
    directory: DirectoryView,
}

/// One request that waits for a gathering.
type Waiter = oneshot::Sender<Arc<Gathered>>;

/// The state of the control thread.
struct Control {
    board: Board,
    events: LaneReceiver<ShardEvent>,
    directory: Directory,
    sources: Sources,
    signers: Signers,
    certificates: Watch,
    /// Sources that have not spoken by then are not waited for.
    spoken_by: Instant,
    /// Printed once, when all shards are ready.
    ready_line: Option<String>,
    /// Requests that share the gathering under way.
    waiters: Vec<Waiter>,
    gather_until: Option<Instant>,
    /// Set when a stop began: when it is given up.
    stop_until: Option<Instant>,
    /// For dumps.
    about: Arc<view::About>,
    /// The service manager, if there is one.
    supervisor: Supervisor,
}

impl Control {
    /// Takes all events, acts on them, sends commands. Whether commands still wait for room.
    fn turn(&mut self) -> bool {
        let now = Instant::now();
        let commands_wait = self.board.flush();
        while let Some(event) = self.events.try_recv() {
            match &event {
                ShardEvent::Signals { shard, signals } => {
                    self.directory.signal(*shard, signals, now);
                }
                ShardEvent::KeysWanted(_) => self.signers.hurry(now),
                ShardEvent::Ready(_)
                | ShardEvent::Report(_)
                | ShardEvent::Inspection { .. }
                | ShardEvent::Stopped { .. }
                | ShardEvent::Failed { .. } => {}
            }
            self.board.take(event, now);
        }
        self.board.fail_vanished(now);
        self.board.end_inspections(now);
        if self.directory.turn(now) {
            self.publish();
        }
        self.certificates.turn(self.directory.certificates(), now, unix_now());
        if self.board.all_ready()
            && self.stop_until.is_none()
            && !self.board.any_failed()
            && (self.spoken_by <= now || self.has_heard())
            && let Some(line) = self.ready_line.take()
        {
            // Not println: a closed stdout is no reason to end.
            use std::io::Write;
            let _ = writeln!(io::stdout(), "{line}");
            tracing::info!("{line}");
            self.supervisor.ready(&line);
        }
        if self.board.any_failed() && self.stop_until.is_none() {
            self.begin_stop("a shard failed");
        }
        if self.supervisor.is_due(now) {
            self.begin_gathering();
        }
        let gathered = self.gather_until.is_some_and(|until| until <= now);
        if gathered || (self.gather_until.is_some() && self.board.all_answered()) {
            self.gather_until = None;
            self.board.give_up();
            let found = Arc::new(Gathered {
                at: now,
                draining: self.stop_until.is_some(),
                shards: self.board.view(now),
                directory: self.directory.view(),
            });
            self.supervisor.beat(found.shards.iter().all(|shard| !shard.silent), now);
            for waiter in self.waiters.drain(..) {
                // A request whose client went away does not wait any more.
                let _ = waiter.send(found.clone());
            }
        }
        commands_wait | self.board.flush()
    }

    /// Whether all that is asked has spoken, or could not be reached.
    fn has_heard(&self) -> bool {
        let mut names = self.sources.names();
        names.extend(self.signers.url().map(|_| signers::SOURCE.into()));
        self.directory.has_heard(&names)
    }

    /// A JWK set was fetched, or could not be.
    fn take_keys(&mut self, fetched: Fetched) {
        let asked = self.signers.url() == Some(&fetched.url);
        if asked && self.directory.signers(fetched.result) {
            self.publish();
        }
    }

    /// Why control is done, if it is.
    fn finished(&mut self) -> Option<ExitReason> {
        let until = self.stop_until?;
        if self.board.all_ended() {
            tracing::info!(cut_off = self.board.cut_off, "stopped");
            let failed = self.board.any_failed();
            return Some(match (failed, self.board.cut_off) {
                (true, _) => ExitReason::ShardFailed,
                (false, 0) => ExitReason::Stopped,
                (false, _) => ExitReason::CutOff,
            });
        }
        (until <= Instant::now()).then(|| {
            tracing::error!(shards = ?self.board.not_ended(), "shards do not stop: giving up");
            self.board.abort();
            self.board.flush();
            ExitReason::Stuck
        })
    }

    /// Does what is asked. Whether the shards were told to abort.
    fn answer(&mut self, ask: Ask) -> bool {
        match ask {
            Ask::Gather(waiter) => self.gather(waiter),
            Ask::Reload(done) => {
                self.supervisor.reloading();
                let now = Instant::now();
                let result = self.directory.reload(now);
                if result.is_ok() {
                    let before = self.signers.url().map(str::to_owned);
                    self.signers.follow(self.directory.config());
                    if self.signers.url() != before.as_deref() {
                        self.directory.forget_signers();
                    }
                    for source in self.sources.follow(self.directory.config()) {
                        self.directory.forget(&source, now);
                    }
                    self.certificates.again(now);
                    self.publish();
                }
                self.supervisor.ready(if result.is_ok() { "reloaded" } else { "reload refused" });
                // Who asked may have gone away.
                let _ = done.send(result);
            }
            Ask::DrainInstance { name, on, done } => {
                let known = self.directory.drain(&name, on, Instant::now());
                if known == Some(true) {
                    self.publish();
                }
                let _ = done.send(known.is_some());
            }
            Ask::Ready(asker) => {
                let _ = asker.send(self.board.all_serve() && self.stop_until.is_none());
            }
            Ask::Inspect(query, reply) => {
                self.board.inspect(&query, reply, Instant::now());
                self.board.flush();
            }
            Ask::Dump(done) => self.dump(done),
            Ask::Drain(why) if self.stop_until.is_none() => self.begin_stop(why),
            Ask::Drain(_) => {}
            Ask::Stop(why) => return self.stop(why),
        }
        false
    }

    /// Sends what the directory has to every shard.
    fn publish(&mut self) {
        self.board.publish(|shard| self.directory.published(shard));
        self.board.flush();
    }

    /// A stop signal. Whether it was the second: then the shards were told to abort.
    fn stop(&mut self, name: &str) -> bool {
        if self.stop_until.is_none() {
            self.begin_stop(name);
            return false;
        }
        tracing::warn!(signal = name, "second signal: ending at once");
        self.board.abort();
        self.board.flush();
        true
    }

    fn begin_stop(&mut self, why: &str) {
        let settings = &self.directory.config().gateway.stop;
        let stop_grace_ms = settings.grace.as_millis() as u64;
        tracing::info!(why, stop_grace_ms, shards = self.board.len(), "draining");
        self.supervisor.stopping(why);
        self.stop_until = Some(Instant::now() + settings.grace + STOP_MARGIN);
        self.board.drain(settings);
    }

    /// Gathers, and writes down what was found.
    fn dump(&mut self, done: oneshot::Sender<io::Result<Dumped>>) {
        let (waiter, found) = oneshot::channel();
        self.gather(waiter);
        let about = self.about.clone();
        tokio::spawn(async move {
            // Control ends: nobody waits for it any more.
            let Ok(found) = found.await else { return };
            let _ = done.send(dump::write(&dump::dir(), &about, &found));
        });
    }

    /// Adds a request to the gathering under way, or begins one.
    fn gather(&mut self, waiter: Waiter) {
        self.waiters.push(waiter);
        self.begin_gathering();
    }

    fn begin_gathering(&mut self) {
        if self.gather_until.is_none() {
            self.gather_until = Some(Instant::now() + GATHER_TIMEOUT);
            self.board.ask_reports();
        }
    }

    /// When to look again without being woken.
    fn next_wake(&self, commands_wait: bool) -> Option<Instant> {
        let retry = commands_wait.then(|| Instant::now() + RETRY_EVERY);
        let waits = self.ready_line.is_some() && self.spoken_by > Instant::now();
        let speak = waits.then_some(self.spoken_by);
        let inspections = self.board.inspections_due();
        let (watch, publish) = (self.supervisor.due(), self.directory.due());
        let dates = Some(self.certificates.due());
        let times =
            [self.gather_until, self.stop_until, publish, watch, speak, inspections, retry, dates];
        times.into_iter().flatten().min()
    }
}
