//! Start and ordered stop. Everything is checked and bound first, then the threads are started;
//! control runs on the calling thread until they have ended.

mod steer;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::panic;
use std::process::{self, ExitCode};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::auth::Verifier;
use crate::auth::load::{FetchedSets, LocalKeys};
use crate::cli::{EXIT_START, EXIT_USAGE, Serve, environment};
use crate::clock::{unix_now, unix_now_s};
use crate::config::key_files::Reading;
use crate::config::settings::{AdminSettings, GatewaySettings};
use crate::config::{Config, Loader, Problems};
use crate::control::compose::Composer;
use crate::control::log::LogGuard;
use crate::control::{self, ControlInputs, Cores, ExitReason, Listens, LocalFiles};
use crate::demo::{self, DemoServices};
use crate::engine::EngineInit;
use crate::lanes::{Doorbell, LaneReceiver, LaneSender, PlaceSender, lane, lane_of_places};
use crate::limits;
use crate::mailbox::{Command, Port, ShardEvent};
use crate::preflight::{self, Plan, ShardPlan};
use crate::push::Submit;
use crate::routing::Snapshot;
use crate::shard::pulse::{Pulse, PulseThread};
use crate::shard::{self, ShardInit};
use crate::tls::load::LocalTls;
use crate::tls::server::Server;
use crate::tls::service::ServicesTls;

/// Problems that keep the gateway from starting, one a line with the way out.
struct StartError(String);

/// Configuration, keys and certificates, read and checked.
struct Loaded {
    loader: Loader,
    config: Config,
    keys: LocalKeys,
    tls: LocalTls,
}

/// Running threads of the gateway.
struct Running {
    shards: Vec<JoinHandle<()>>,
    pulse: PulseThread,
    demo: Option<DemoServices>,
    /// Writes the log until it is dropped.
    log: LogGuard,
}

/// From here on a failed assertion, on whichever thread, is told on stderr and ends the process by
/// SIGABRT: a half-true shard is worse than a restart. The release profile says so, too, and saves
/// the code that would unwind; the dev profile cannot: tests have to unwind, and two ways to panic
/// mean that every dependency is compiled twice.
pub fn abort_on_panic() {
    let tell = panic::take_hook();
    panic::set_hook(Box::new(move |failed| {
        tell(failed);
        process::abort();
    }));
}

/// Whether the process has the stack and the memory that every verb needs. If not, the reason is on
/// stderr.
pub fn has_room() -> bool {
    match preflight::too_small() {
        None => true,
        Some(problem) => {
            eprintln!("{problem}");
            false
        }
    }
}

/// Runs the gateway: the verb `serve`.
pub fn serve(args: &Serve) -> ExitCode {
    let loaded = match load(args) {
        Ok(loaded) => loaded,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match start(loaded) {
        Ok((inputs, running)) => {
            let reason = control::run(inputs);
            running.end(matches!(reason, ExitReason::Stopped | ExitReason::CutOff));
            ExitCode::from(reason.code())
        }
        Err(StartError(lines)) => {
            eprintln!("{lines}");
            ExitCode::from(EXIT_START)
        }
    }
}

fn load(args: &Serve) -> Result<Loaded, Problems> {
    let loader = args.loader(&environment())?;
    let config = loader.check(&Default::default())?;
    let tls = LocalTls::read(&config, unix_now_s(), None, Reading::Start);
    let (keys, tls) = Problems::join(LocalKeys::read(&config), tls)?;
    Ok(Loaded { loader, config, keys, tls })
}

fn start(loaded: Loaded) -> Result<(ControlInputs, Running), StartError> {
    let Loaded { loader, config, keys, tls } = loaded;
    let started = Instant::now();
    let unix_at_boot_us = unix_now().as_micros() as i64;
    let Plan { shards: plans, connections_cap, admin_connections, other_cores, mut warnings } =
        plan(&config, &loader)?;
    // Before the first thread is started: all of them inherit it.
    let others = match preflight::keep_to(&other_cores) {
        Ok(()) => other_cores,
        Err(problem) => {
            warnings.push(problem);
            preflight::allowed_cores()
        }
    };
    let cores = Cores { shards: plans.iter().map(|plan| plan.core).collect(), others };
    let log = start_log(&config, &warnings)?;
    let demo = start_demo(&config)?;
    let composer = Composer::new(&config);
    let sockets = Sockets::bind(&config.gateway, &cores.shards)?;
    let common = Common {
        started,
        unix_at_boot_us,
        boot_id: rand::random(),
        gateway: Arc::new(sockets.known_to_shards(&config.gateway)),
        snapshot: composer.snapshot().clone(),
        auth: keys.verifier(&config, &FetchedSets::default()),
        tls: tls.server(),
        service_tls: tls.services().clone(),
    };
    let shards = Shards::start(plans, sockets.clients, &common)?;
    let pulse = PulseThread::start(shards.pulses, started)
        .map_err(|error| StartError(format!("the pulse thread: {error}")))?;
    let inputs = ControlInputs {
        config,
        loader,
        composer,
        local: LocalFiles { keys, tls, connections_cap },
        listens: sockets.listens,
        shards: shards.mailboxes,
        events: shards.events,
        pushes: shards.pushes,
        bell: shards.bell,
        boot_id: common.boot_id,
        cores,
        started,
        admin: sockets.admin,
        probes: sockets.probes,
        admin_connections,
        registry: sockets.registry,
        push: sockets.push,
        seed: rand::random(),
        log_dropped: Some(log.dropped()),
    };
    Ok((inputs, Running { shards: shards.threads, pulse, demo, log }))
}

fn plan(config: &Config, loader: &Loader) -> Result<Plan, StartError> {
    preflight::plan(config, loader).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        StartError(lines.join("\n"))
    })
}

/// Starts the log, and logs the warnings of the checks.
fn start_log(config: &Config, warnings: &[preflight::Problem]) -> Result<LogGuard, StartError> {
    let log =
        control::log::init(&config.gateway.log, config.gateway.log_json).map_err(StartError)?;
    for line in config.warnings.iter().map(ToString::to_string) {
        tracing::warn!("configuration_warning: {line}");
    }
    for warning in warnings {
        tracing::warn!("machine_warning: {warning}");
    }
    Ok(log)
}

fn start_demo(config: &Config) -> Result<Option<DemoServices>, StartError> {
    let settings = &config.gateway.demo;
    if !settings.enabled {
        return Ok(None);
    }
    demo::start(settings, None).map(Some).map_err(|error| {
        let [logic, chat, fight] = settings.addresses;
        StartError(format!(
            "demo.addresses = {logic}, {chat}, {fight}: {error}; use other ports, or set \
             demo.enabled = false (--no-demo) if your own services listen there"
        ))
    })
}

/// Sockets that listen.
struct Sockets {
    admin: TcpListener,
    /// Address of `admin`, with the port that the kernel chose if that was left to it.
    admin_at: SocketAddr,
    probes: Option<TcpListener>,
    registry: Option<TcpListener>,
    push: Option<TcpListener>,
    /// Sockets for clients, by shard.
    clients: Vec<Vec<(Port, TcpListener)>>,
    listens: Listens,
}

impl Sockets {
    /// Binds all sockets, for shards on `cores`.
    fn bind(gateway: &GatewaySettings, cores: &[usize]) -> Result<Self, StartError> {
        let one = |key: &str, address: SocketAddr| {
            let bound = TcpListener::bind(address).and_then(|listener| {
                // std asks for 128: more clients at once would have to try again after a second.
                SockRef::from(&listener).listen(limits::BACKLOG)?;
                Ok(listener)
            });
            bound.map_err(|error| StartError(format!("{key} = {address}: {error}")))
        };
        let admin = one("admin.listen", gateway.admin.listen)?;
        let probes = gateway.admin.probes.map(|a| one("admin.probes", a)).transpose()?;
        let registry = gateway.discovery.registry.as_ref();
        let registry = registry.map(|r| one("registry.listen", r.listen)).transpose()?;
        let push = gateway.push.listen.map(|a| one("push.listen", a)).transpose()?;
        let mut clients: Vec<Vec<(Port, TcpListener)>> = cores.iter().map(|_| Vec::new()).collect();
        let mut each = |key: &str, address: SocketAddr, port| {
            let wrong = |error: io::Error| StartError(format!("{key} = {address}: {error}"));
            let listeners = listeners(address, cores.len()).map_err(wrong)?;
            if gateway.steer_by_cpu
                && let Err(error) = steer::steer(&listeners, cores)
            {
                tracing::warn!(
                    key,
                    %address,
                    %error,
                    "steering_refused: the kernel does not steer connections by processor, so it \
                     spreads them by a hash; set shards.steer_by_cpu = false"
                );
            }
            let at = listeners[0].local_addr().map_err(wrong)?;
            clients.iter_mut().zip(listeners).for_each(|(all, one)| all.push((port, one)));
            Ok(at)
        };
        let plain = gateway.listen.map(|a| each("listen", a, Port::Plain)).transpose()?;
        let tls = gateway.tls.listen.map(|a| each("tls.listen", a, Port::Tls)).transpose()?;
        let admin_at = admin
            .local_addr()
            .map_err(|e| StartError(format!("admin.listen = {}: {e}", gateway.admin.listen)))?;
        let listens = Listens { plain, tls };
        Ok(Self { admin, admin_at, probes, registry, push, clients, listens })
    }

    /// The settings for shards, with the real port of the admin endpoint: by that they know its
    /// pages.
    fn known_to_shards(&self, gateway: &GatewaySettings) -> GatewaySettings {
        let admin = AdminSettings { listen: self.admin_at, ..gateway.admin.clone() };
        GatewaySettings { admin, ..gateway.clone() }
    }
}

/// Listeners on one address, one a shard, which begin to listen in that order; the kernel spreads
/// the connections over them.
fn listeners(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    let mut address = address;
    let mut listeners = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        socket.listen(limits::BACKLOG)?;
        let listener = TcpListener::from(socket);
        // Port 0: the first listener gets a port from the kernel, the others take the same.
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// State that all shards start with.
struct Common {
    started: Instant,
    unix_at_boot_us: i64,
    boot_id: u64,
    gateway: Arc<GatewaySettings>,
    snapshot: Arc<Snapshot>,
    auth: Option<Arc<Verifier>>,
    tls: Option<Arc<Server>>,
    service_tls: ServicesTls,
}

/// The running shards, and control's ends of the lanes to and from them.
struct Shards {
    threads: Vec<JoinHandle<()>>,
    mailboxes: Vec<LaneSender<Command>>,
    pulses: Vec<Arc<Pulse>>,
    events: LaneReceiver<ShardEvent>,
    /// Lanes for pushes, to every shard by its number.
    pushes: Vec<PlaceSender<Submit>>,
    /// Doorbell that `events` ring.
    bell: Arc<Doorbell>,
}

impl Shards {
    fn start(
        plans: Vec<ShardPlan>,
        listeners: Vec<Vec<(Port, TcpListener)>>,
        common: &Common,
    ) -> Result<Self, StartError> {
        let count = u16::try_from(plans.len()).expect("at most SHARDS_MAX");
        let bell = Doorbell::new();
        let (events_in, events) = lane(plans.len() * limits::EVENTS_PER_SHARD_MAX, &bell);
        let bells = plans.iter().map(|_| Doorbell::for_set()).collect::<io::Result<Vec<_>>>();
        let bells = bells.map_err(|e| StartError(format!("a shard's doorbell (eventfd): {e}")))?;
        // One lane into each shard, from all others.
        let (to_shards, from_shards): (Vec<_>, Vec<_>) =
            bells.iter().map(|bell| lane(limits::HANDOFF_ITEMS_MAX, bell)).unzip();
        let (delivers, delivered): (Vec<_>, Vec<_>) =
            bells.iter().map(|bell| lane(limits::DELIVER_ITEMS_MAX, bell)).unzip();
        let (pushes, submitted): (Vec<_>, Vec<_>) =
            bells.iter().map(|bell| lane_of_places(limits::PUSH_ITEMS_MAX, bell)).unzip();
        let (threads, mailboxes, pulses) = (Vec::new(), Vec::new(), Vec::new());
        let mut shards = Self { threads, mailboxes, pulses, events, pushes, bell };
        let from_shards = from_shards.into_iter().zip(delivered).zip(submitted);
        let parts = plans.into_iter().zip(listeners).zip(bells).zip(from_shards);
        for (((plan, listeners), bell), ((handed, delivered), submitted)) in parts {
            let (mailbox, commands) = lane(limits::MAILBOX_ITEMS_MAX, &bell);
            let pulse = Arc::new(Pulse::new(bell.clone()));
            let init = ShardInit {
                core: plan.core,
                engine: EngineInit {
                    shard: plan.id,
                    shards: count,
                    gateway: common.gateway.clone(),
                    settings: plan.settings,
                    snapshot: common.snapshot.clone(),
                    auth: common.auth.clone(),
                    boot_id: common.boot_id,
                    unix_at_boot_us: common.unix_at_boot_us,
                    seed: rand::random(),
                },
                listeners,
                tls: common.tls.clone(),
                service_tls: common.service_tls.clone(),
                commands,
                events: events_in.clone(),
                shards: to_shards.clone(),
                handed,
                delivers: delivers.clone(),
                delivered,
                pushes: shards.pushes.clone(),
                submitted,
                bell,
                pulse: pulse.clone(),
                boot: common.started,
            };
            let thread = shard::start(init);
            shards.threads.push(thread.map_err(|e| StartError(format!("a shard's thread: {e}")))?);
            shards.mailboxes.push(mailbox);
            shards.pulses.push(pulse);
        }
        Ok(shards)
    }
}

impl Running {
    /// Joins the threads after an ordered end; after a forced one nothing is waited for.
    fn end(self, in_order: bool) {
        if !in_order {
            return;
        }
        for shard in self.shards {
            if shard.join().is_err() {
                tracing::error!("shard_panicked: report what stands above, with the version");
            }
        }
        self.pulse.stop();
        if let Some(Err(error)) = self.demo.map(DemoServices::stop) {
            tracing::warn!(%error, "demo_services_failed: --no-demo runs without them");
        }
        drop(self.log);
    }
}
