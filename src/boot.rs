//! Start and ordered stop: check everything, bind everything, then start the threads; control runs
//! on the calling thread until they have ended.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use socket2::{Domain, Protocol, Socket, Type};

use crate::auth::load::LocalKeys;
use crate::cli::{EXIT_START, EXIT_USAGE, Serve, environment};
use crate::config::{Config, Loader, Problems};
use crate::control::compose::Composer;
use crate::control::log::LogGuard;
use crate::control::{self, ControlInputs, ExitReason, Listens, Local};
use crate::demo::{self, DemoServices};
use crate::engine::EngineInit;
use crate::lanes::{Doorbell, LaneSender, lane};
use crate::limits;
use crate::mailbox::{Command, Port};
use crate::preflight;
use crate::shard::pulse::{Pulse, PulseThread};
use crate::shard::{self, ShardInit};
use crate::tls::load::LocalTls;

/// Connections that wait to be accepted, a shard. The kernel cuts it to net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// Lines of one problem each, and the way out.
struct StartError(String);

/// The threads that serve.
struct Running {
    shards: Vec<JoinHandle<()>>,
    pulse: PulseThread,
    demo: Option<DemoServices>,
    /// Writes what is logged up to its drop.
    log: LogGuard,
}

/// The verb `serve`.
pub fn serve(args: &Serve) -> ExitCode {
    let loaded = args.loader(&environment()).and_then(|loader| {
        let config = loader.check(&[])?;
        let tls = LocalTls::read(&config, unix_now().as_secs() as i64, None);
        let (keys, tls) = Problems::join(LocalKeys::read(&config), tls)?;
        Ok((loader, config, keys, tls))
    });
    let (loader, config, keys, tls) = match loaded {
        Ok(loaded) => loaded,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match start(loader, config, keys, tls) {
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

fn start(
    loader: Loader,
    config: Config,
    local_keys: LocalKeys,
    local_tls: LocalTls,
) -> Result<(ControlInputs, Running), StartError> {
    let boot = Instant::now();
    let unix_at_boot_us = unix_now().as_micros();
    let plan = preflight::plan(&config).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        StartError(lines.join("\n"))
    })?;
    let log = control::log::init(&config.gateway.log, config.gateway.log_json)
        .map_err(|error| StartError(format!("log: {error}")))?;
    for line in config.warnings.iter().map(ToString::to_string) {
        tracing::warn!("{line}");
    }
    for warning in &plan.warnings {
        tracing::warn!("{warning}");
    }
    let demo = start_demo(&config)?;
    let gateway = Arc::new(config.gateway.clone());
    let composer = Composer::new(&config);
    let snapshot = composer.snapshot().clone();
    let auth = local_keys.verifier(&config, None);
    let admin = TcpListener::bind(gateway.admin.listen)
        .map_err(|error| StartError(format!("admin.listen = {}: {error}", gateway.admin.listen)))?;
    let registry = config.gateway.discovery.registry.as_ref().map(|r| r.listen);
    let registry = registry.map(|address| {
        TcpListener::bind(address)
            .map_err(|error| StartError(format!("registry.listen = {address}: {error}")))
    });
    let registry = registry.transpose()?;
    let count = plan.shards.len();
    let mut bound: Vec<Vec<(Port, TcpListener)>> = (0..count).map(|_| Vec::new()).collect();
    let mut bind = |key: &str, address: SocketAddr, port| {
        let wrong = |error: io::Error| StartError(format!("{key} = {address}: {error}"));
        let listeners = listeners(address, count).map_err(wrong)?;
        let at = listeners[0].local_addr().map_err(wrong)?;
        bound.iter_mut().zip(listeners).for_each(|(all, one)| all.push((port, one)));
        Ok(at)
    };
    let plain = gateway.listen.map(|a| bind("listen", a, Port::Plain)).transpose()?;
    let tls = gateway.tls.listen.map(|a| bind("tls.listen", a, Port::Tls)).transpose()?;
    let boot_id = rand::random();
    let control_bell = Doorbell::new();
    let (events_in, events) = lane(plan.shards.len() * limits::EVENTS_PER_SHARD_MAX, &control_bell);
    let bells: Vec<Arc<Doorbell>> = plan.shards.iter().map(|_| Doorbell::new()).collect();
    // One lane into each shard, from all others.
    let (to_shards, from_shards): (Vec<_>, Vec<_>) =
        bells.iter().map(|bell| lane(limits::HANDOFF_ITEMS_MAX, bell)).unzip();
    let mut mailboxes: Vec<LaneSender<Command>> = Vec::new();
    let mut pulses = Vec::new();
    let mut shards = Vec::new();
    let connections_cap = plan.connections_cap;
    let count = u16::try_from(plan.shards.len()).expect("at most SHARDS_MAX");
    let parts = plan.shards.into_iter().zip(bound).zip(bells).zip(from_shards);
    for (((planned, listeners), bell), handed) in parts {
        let (mailbox, commands) = lane(limits::MAILBOX_ITEMS_MAX, &bell);
        let pulse = Arc::new(Pulse::default());
        let init = ShardInit {
            core: planned.core,
            engine: EngineInit {
                shard: planned.id,
                shards: count,
                gateway: gateway.clone(),
                settings: planned.settings,
                snapshot: snapshot.clone(),
                auth: auth.clone(),
                boot_id,
                unix_at_boot_us: unix_at_boot_us as i64,
                seed: rand::random(),
            },
            listeners,
            tls: local_tls.server(),
            commands,
            events: events_in.clone(),
            shards: to_shards.clone(),
            handed,
            bell,
            pulse: pulse.clone(),
            boot,
        };
        shards.push(shard::start(init).map_err(|e| StartError(format!("a shard's thread: {e}")))?);
        mailboxes.push(mailbox);
        pulses.push(pulse);
    }
    let pulse = PulseThread::start(pulses, boot)
        .map_err(|error| StartError(format!("the pulse thread: {error}")))?;
    let inputs = ControlInputs {
        config,
        loader,
        composer,
        local: Local { keys: local_keys, tls: local_tls, connections_cap },
        listens: Listens { plain, tls },
        shards: mailboxes,
        events,
        bell: control_bell,
        boot_id,
        started: boot,
        admin,
        registry,
        seed: rand::random(),
        log_dropped: Some(log.dropped()),
    };
    Ok((inputs, Running { shards, pulse, demo, log }))
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

impl Running {
    /// Joins what has ended in order; after a forced end nothing is waited for.
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

/// Since 1970; nothing before that.
fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// One listener a shard, all on one address; the kernel spreads the connections over them.
fn listeners(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    let mut address = address;
    let mut listeners = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from(socket);
        // Port 0: the others follow the first.
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(listeners)
}
