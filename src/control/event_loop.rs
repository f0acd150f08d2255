//! The loop of control: takes in events of the shards, news of the sources and requests, and acts
//! on them.

use std::future::poll_fn;
use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::active_config::{ActiveConfig, ReloadReport};
use super::certificates::CertificateWatch;
use super::directory::Directory;
use super::discovery::{NEWS_MAX, News};
use super::dump::{self, DumpFiles};
use super::exit::ExitReason;
use super::fleet::Fleet;
use super::gathering::{Gathering, Overview};
use super::histogram_log::HistogramLog;
use super::inputs::{ControlInputs, Cores};
use super::jwks::{self, JwksFetch, JwksRefresher};
use super::live::{Live, Reading};
use super::probe::CheckResult;
use super::push::{Phase, Pushes};
use super::quotas::QuotaDivision;
use super::ready::{Announcement, ReadyLines};
use super::request::ControlRequest;
use super::service_manager::ServiceManager;
use super::shards::ShardTable;
use super::sources::Sources;
use super::stop_bound::StopBound;
use super::view::ProcessInfo;
use super::{admin, sleep_until};
use crate::auth::KeyOwner;
use crate::clock::unix_now_s;
use crate::config::Problem;
use crate::lanes::{Doorbell, LaneReceiver};
use crate::mailbox::ShardEvent;

/// Pause before commands that found a full mailbox are sent again.
const RETRY_EVERY: Duration = Duration::from_millis(10);
/// Results of health checks that wait to be taken in; probes wait for room.
const CHECKS_MAX: usize = 256;
/// Longest wait for the first answer of each source before the gateway is called ready: etcd and
/// name servers answer in milliseconds, or are away.
const SOURCES_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs control until the shards have ended or are given up. `sender` is the other end of
/// `requests`, for the admin endpoint.
pub async fn serve(
    inputs: ControlInputs,
    sender: mpsc::Sender<ControlRequest>,
    requests: mpsc::Receiver<ControlRequest>,
) -> io::Result<ExitReason> {
    let (mut control, mut inbox) = start(inputs, sender, requests)?;
    loop {
        let commands_wait = control.turn();
        if let Some(reason) = control.finished() {
            return Ok(reason);
        }
        tokio::select! {
            () = poll_fn(|cx| inbox.bell.poll_rung(cx)) => {}
            Some(request) = inbox.requests.recv() => {
                if control.answer(request) {
                    return Ok(ExitReason::Forced);
                }
            }
            Some(news) = inbox.news.recv() => {
                if control.sources.is_active(&news.source) {
                    control.directory.take_news(news, Instant::now());
                }
            }
            Some(fetch) = inbox.fetches.recv() => {
                let mut changed = control.take_keys(fetch);
                while let Ok(fetch) = inbox.fetches.try_recv() {
                    changed |= control.take_keys(fetch);
                }
                if changed {
                    control.publish();
                }
            }
            Some(result) = inbox.checks.recv() => {
                let now = Instant::now();
                control.directory.take_check(result, now);
                // The judgement of all services is made once for all results that are there.
                while let Ok(result) = inbox.checks.try_recv() {
                    control.directory.take_check(result, now);
                }
            }
            () = sleep_until(control.next_wake(commands_wait)) => {}
        }
    }
}

/// Channels that wake the loop.
struct Inbox {
    /// Rung by shards with events.
    bell: Arc<Doorbell>,
    requests: mpsc::Receiver<ControlRequest>,
    /// News of discovery sources.
    news: mpsc::Receiver<News>,
    /// Results of JWK set fetches.
    fetches: mpsc::Receiver<JwksFetch>,
    /// Results of health checks.
    checks: mpsc::Receiver<CheckResult>,
}

/// Starts the admin endpoint, the sources, the probes and the refresh of keys.
fn start(
    inputs: ControlInputs,
    sender: mpsc::Sender<ControlRequest>,
    requests: mpsc::Receiver<ControlRequest>,
) -> io::Result<(Control, Inbox)> {
    let now = Instant::now();
    let config = &inputs.config;
    let gateway = &config.gateway;
    let info = Arc::new(ProcessInfo {
        node: gateway.node.clone(),
        boot_id: inputs.boot_id,
        cores: inputs.cores,
        listens: inputs.listens,
        started: inputs.started,
        log_dropped: inputs.log_dropped,
    });
    let admin = inputs.admin.local_addr()?;
    let handlers =
        admin::Admin { info: info.clone(), requests: sender.clone(), marks: Default::default() };
    let places = inputs.admin_connections;
    let endpoint = admin::serve(inputs.admin, admin, &gateway.admin, places, handlers.clone())?;
    tokio::spawn(endpoint);
    let probes = inputs.probes.as_ref().map(TcpListener::local_addr).transpose()?;
    if let Some((listener, address)) = inputs.probes.zip(probes) {
        let metrics = gateway.admin.probes_metrics;
        tokio::spawn(admin::probes::serve(listener, address, metrics, places, handlers)?);
    }
    let announcement = Announcement {
        dir: inputs.loader.dir().map(Path::to_owned),
        listens: inputs.listens,
        admin,
        probes,
        shards: inputs.shards.len(),
        connections_cap: inputs.local.connections_cap,
    };
    let (news_sender, news) = mpsc::channel(NEWS_MAX);
    let sources = Sources::start(config, inputs.registry, inputs.seed, news_sender)
        .map_err(io::Error::other)?;
    let (check_sender, checks) = mpsc::channel(CHECKS_MAX);
    let service_tls = inputs.local.tls.services().clone();
    let fleet = Fleet::new(gateway.health.clone(), service_tls, inputs.seed, check_sender);
    let (fetch_sender, fetches) = mpsc::channel(jwks::FETCHES_MAX);
    let jwks = JwksRefresher::start(config, inputs.local.tls.authorities(), fetch_sender);
    let active = ActiveConfig::new(inputs.loader, inputs.config, inputs.local);
    let pushes = Pushes::new(active.config(), inputs.pushes, inputs.started);
    let mut pushes = pushes.map_err(io::Error::other)?;
    let push = &active.config().gateway.push;
    let doors = inputs.push.map(|listener| pushes.serve(listener, push, sender));
    doors.unwrap_or(Ok(())).map_err(io::Error::other)?;
    let mut control = Control {
        quotas: QuotaDivision::new(inputs.shards.len()),
        shards: ShardTable::new(inputs.shards),
        events: inputs.events,
        directory: Directory::new(active, inputs.composer, fleet, now),
        sources,
        jwks,
        pushes,
        certificates: CertificateWatch::new(now),
        sources_until: now + SOURCES_TIMEOUT,
        announcement: Some(announcement),
        gathering: Gathering::default(),
        histogram_log: HistogramLog::default(),
        live: Live::new(inputs.started, now),
        stop: None,
        info,
        service_manager: ServiceManager::from_environment(now),
    };
    control.directory.expect_sources(control.source_names());
    Ok((control, Inbox { bell: inputs.bell, requests, news, fetches, checks }))
}

/// State of the control thread.
struct Control {
    shards: ShardTable,
    events: LaneReceiver<ShardEvent>,
    directory: Directory,
    sources: Sources,
    jwks: JwksRefresher,
    pushes: Pushes,
    quotas: QuotaDivision,
    certificates: CertificateWatch,
    /// End of the wait for sources that have not answered yet.
    sources_until: Instant,
    /// Printed once, when all shards are ready.
    announcement: Option<Announcement>,
    gathering: Gathering,
    histogram_log: HistogramLog,
    live: Live,
    /// Set when a stop began: the time at which it is given up.
    stop: Option<StopBound>,
    info: Arc<ProcessInfo>,
    service_manager: ServiceManager,
}

impl Control {
    /// Takes in all events, acts on them, sends commands. Whether commands still wait for room.
    fn turn(&mut self) -> bool {
        let now = Instant::now();
        if let Some(stop) = &mut self.stop {
            stop.look(now);
        }
        let commands_wait = self.shards.flush();
        self.take_events(now);
        self.shards.fail_vanished(now);
        self.shards.end_questions(now);
        let news = self.directory.turn(now);
        if self.directory.take_tenants_changed() {
            self.follow_keys();
        }
        if news {
            self.publish();
        }
        if let Some(parts) = self.quotas.turn(&self.directory.snapshot().tenants, now) {
            self.shards.send_quota_parts(parts);
        }
        self.certificates.turn(self.directory.certificates(), now, unix_now_s());
        self.announce_ready(now);
        if self.shards.any_failed() && self.stop.is_none() {
            self.begin_stop("a shard failed");
        }
        self.pushes.set_phase(match (&self.stop, &self.announcement) {
            (Some(_), _) => Phase::Draining,
            (None, Some(_)) => Phase::Starting,
            (None, None) => Phase::Serving,
        });
        let log = &self.directory.config().gateway.histograms;
        // Both: each notes its next time.
        if self.service_manager.is_due(now) | self.histogram_log.is_due(log, now) {
            self.gathering.begin(&mut self.shards, now);
        }
        if self.gathering.is_over(&self.shards, now) {
            self.finish_gathering(now);
        }
        self.take_samples(now);
        commands_wait | self.shards.flush()
    }

    /// Asks the shards for samples once a second, and makes a row of them when all have come, or
    /// when the next ones are due.
    fn take_samples(&mut self, now: Instant) {
        let is_due = self.live.is_due(now);
        if self.live.is_open() && (is_due || self.shards.all_sampled()) {
            self.live.take(&self.shards.sampled(now), now);
        }
        if is_due {
            self.shards.ask_samples();
            self.live.asked(now);
        }
    }

    fn take_events(&mut self, now: Instant) {
        while let Some(mut event) = self.events.try_recv() {
            match &mut event {
                ShardEvent::Signals { shard, signals } => {
                    self.directory.take_signals(*shard, signals, now);
                }
                ShardEvent::QuotaDemands { shard, demands } => {
                    self.quotas.take(*shard, demands, now);
                }
                ShardEvent::KeysWanted { owners, .. } => {
                    owners.iter().for_each(|owner| self.jwks.hurry(owner, now));
                }
                ShardEvent::Receipts { receipts, .. } => {
                    self.pushes.take_receipts(std::mem::take(receipts));
                }
                ShardEvent::Stopped { shard, .. } | ShardEvent::Failed { shard } => {
                    self.pushes.shard_ended(*shard);
                }
                ShardEvent::Ready(_)
                | ShardEvent::Report(_)
                | ShardEvent::Sample(_)
                | ShardEvent::Inspection { .. }
                | ShardEvent::Trace { .. } => {}
            }
            self.shards.take(event, now);
        }
    }

    /// Prints the ready lines, once, when all shards serve and every source has answered or has
    /// been waited for long enough.
    fn announce_ready(&mut self, now: Instant) {
        if self.shards.all_ready()
            && self.stop.is_none()
            && !self.shards.any_failed()
            && (self.sources_until <= now || self.sources_answered())
            && let Some(announcement) = self.announcement.take()
        {
            let ReadyLines { at, next } =
                announcement.lines(self.directory.config(), self.directory.snapshot());
            let first = format!("shardgate ready: {at}");
            // Not println: a closed stdout is no reason to end.
            use std::io::Write;
            let _ = writeln!(io::stdout(), "{first}\n{next}");
            let Cores { shards, others } = &self.info.cores;
            tracing::info!(
                at,
                shard_cores = ?shards,
                other_cores = ?others,
                "ready: every shard serves"
            );
            self.service_manager.ready(&first);
        }
    }

    /// Whether every source has answered, or could not be reached. Servers of tenants' keys are not
    /// waited for: one of them that hangs concerns its tenant alone.
    fn sources_answered(&self) -> bool {
        let owner = &KeyOwner::Auth;
        let common = self.jwks.url(owner).map(|_| jwks::source_of(owner));
        let names: Vec<_> = self.sources.names().into_iter().chain(common).collect();
        self.directory.have_answered(&names)
    }

    /// Names of all sources in use that are expected to answer.
    fn source_names(&self) -> Vec<Arc<str>> {
        let mut names = self.sources.names();
        names.extend(self.jwks.owners().map(jwks::source_of));
        names
    }

    fn finish_gathering(&mut self, now: Instant) {
        self.shards.give_up();
        let overview = Arc::new(Overview {
            at: now,
            draining: self.stop.is_some(),
            shards: self.shards.view(now),
            directory: self.directory.view(),
            pushes: self.pushes.view(),
        });
        self.service_manager.beat(overview.shards.iter().all(|shard| !shard.silent), now);
        let log = &self.directory.config().gateway.histograms;
        self.histogram_log.take(log, &self.info, &overview);
        self.gathering.finish(&overview);
    }

    /// Takes in the result of a fetch, if the JWK set is one that is configured now. Whether there
    /// is something to publish.
    fn take_keys(&mut self, fetch: JwksFetch) -> bool {
        let JwksFetch { owner, url, result } = fetch;
        let current = self.jwks.url(&owner) == Some(&url);
        current && self.directory.take_jwks(&owner, result, Instant::now())
    }

    /// Fetches the JWK sets of the configuration in force, and stops trusting those that were
    /// fetched for the one before it.
    fn follow_keys(&mut self) {
        let (config, authorities) = (self.directory.config(), self.directory.authorities());
        for owner in self.jwks.follow(config, authorities) {
            self.directory.forget_jwks(&owner);
        }
        self.directory.expect_sources(self.source_names());
    }

    /// Reason to end, if there is one.
    fn finished(&mut self) -> Option<ExitReason> {
        let is_over = self.stop.as_ref()?.is_over();
        if self.shards.all_ended() {
            let cut_off = self.shards.cut_off;
            tracing::info!(cut_off, "stopped: every shard has ended");
            let failed = self.shards.any_failed();
            return Some(match (failed, self.shards.cut_off) {
                (true, _) => ExitReason::ShardFailed,
                (false, 0) => ExitReason::Stopped,
                (false, _) => ExitReason::CutOff,
            });
        }
        is_over.then(|| {
            tracing::error!(
                shards = ?self.shards.not_ended(),
                "stop_stuck: these shards did not end in time; the process ends without them"
            );
            self.shards.abort();
            self.shards.flush();
            ExitReason::Stuck
        })
    }

    /// Carries out a request. Whether the shards were told to abort.
    fn answer(&mut self, request: ControlRequest) -> bool {
        match request {
            ControlRequest::Gather(waiter) => self.gather(waiter),
            ControlRequest::Live(since, reply) => {
                // The client may have gone away.
                let _ = reply.send(self.read_live(since, Instant::now()));
            }
            ControlRequest::Reload(done) => {
                let result = self.reload(Instant::now());
                // The client may have gone away.
                let _ = done.send(result);
            }
            ControlRequest::DrainInstance { name, on, done } => {
                let known = self.directory.drain(&name, on, Instant::now());
                if known == Some(true) {
                    self.publish();
                }
                let _ = done.send(known.is_some());
            }
            ControlRequest::Ready(reply) => {
                // The ready line waits for the sources of instances, so that nobody is sent to a
                // gateway that knows no instance yet; probes wait for the same.
                let announced = self.announcement.is_none();
                let stops = self.stop.is_some();
                let _ = reply.send(self.shards.all_serve() && announced && !stops);
            }
            ControlRequest::Inspect(query, reply) => {
                self.shards.inspect(&query, reply, Instant::now());
                self.shards.flush();
            }
            ControlRequest::Trace { shard, lasts, reply } => {
                self.shards.trace(shard, lasts, reply, Instant::now());
                self.shards.flush();
            }
            ControlRequest::Dump(done) => self.dump(done),
            ControlRequest::Drain(why) if self.stop.is_none() => self.begin_stop(why),
            ControlRequest::Drain(_) => {}
            ControlRequest::Stop(signal) => return self.stop(signal),
        }
        false
    }

    /// Reads the files again and publishes the result, or changes nothing.
    fn reload(&mut self, now: Instant) -> Result<ReloadReport, Vec<Problem>> {
        self.service_manager.reloading();
        let result = self.directory.reload(now);
        if result.is_ok() {
            for source in self.sources.follow(self.directory.config()) {
                self.directory.forget_source(&source, now);
            }
            self.follow_keys();
            self.pushes.follow(self.directory.config());
            self.certificates.check_again(now);
            self.publish();
        }
        self.service_manager.ready(if result.is_ok() { "reloaded" } else { "reload refused" });
        result
    }

    /// Sends the state of the directory to every shard.
    fn publish(&mut self) {
        self.shards.publish(|shard| self.directory.published(shard));
        self.shards.flush();
    }

    /// Stops in order at the first signal. Whether it was the second one: the shards were told to
    /// abort.
    fn stop(&mut self, signal: &str) -> bool {
        if self.stop.is_none() {
            self.begin_stop(signal);
            return false;
        }
        tracing::warn!(signal, "stop_forced: a second signal ends the process at once");
        self.shards.abort();
        self.shards.flush();
        true
    }

    fn begin_stop(&mut self, why: &str) {
        let settings = &self.directory.config().gateway.stop;
        let stop_grace_ms = settings.grace.as_millis() as u64;
        let shards = self.shards.len();
        tracing::info!(
            why,
            stop_grace_ms,
            shards,
            "draining: what was read is answered, then the connections are closed"
        );
        self.service_manager.stopping(why);
        self.stop = Some(StopBound::new(settings.grace, Instant::now()));
        self.shards.drain(settings);
    }

    /// Gathers, and writes the result to files.
    fn dump(&mut self, done: oneshot::Sender<io::Result<DumpFiles>>) {
        let (waiter, overview) = oneshot::channel();
        self.gather(waiter);
        let info = self.info.clone();
        tokio::spawn(async move {
            // An error is the end of control: nobody waits for the dump any more.
            let Ok(overview) = overview.await else { return };
            let _ = done.send(dump::write(&dump::dir(), &info, &overview));
        });
    }

    fn gather(&mut self, waiter: oneshot::Sender<Arc<Overview>>) {
        self.gathering.add(waiter);
        self.gathering.begin(&mut self.shards, Instant::now());
    }

    fn read_live(&self, since: u64, now: Instant) -> Reading {
        let overview = Overview {
            at: now,
            draining: self.stop.is_some(),
            shards: self.shards.sampled(now),
            directory: self.directory.view(),
            pushes: self.pushes.view(),
        };
        self.live.read(since, overview)
    }

    /// Time of the next turn without an event.
    fn next_wake(&self, commands_wait: bool) -> Option<Instant> {
        let now = Instant::now();
        let awaits_sources = self.announcement.is_some() && self.sources_until > now;
        let times = [
            commands_wait.then(|| now + RETRY_EVERY),
            awaits_sources.then_some(self.sources_until),
            self.gathering.due(),
            self.stop.as_ref().map(StopBound::due),
            self.directory.due(),
            self.quotas.due(),
            self.service_manager.due(),
            self.histogram_log.due(),
            self.shards.questions_due(),
            Some(self.certificates.due()),
            Some(self.live.due()),
        ];
        times.into_iter().flatten().min()
    }
}
