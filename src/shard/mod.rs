//! The glommio shell of a shard: turns bytes into events of the engine, and its effects into
//! actions that do not block.
//!
//! One task runs the net loop ([`net`]); each channel to an instance has one task of its own. All
//! of them share the engine in one `RefCell`, entered by a sync closure, so that no borrow crosses
//! an await. The order of a turn is in [`turn`], apart from sockets.

mod arrival;
mod awake;
mod begin;
pub mod handoff;
pub mod net;
pub mod pulse;
pub mod sockets;
mod timers;
pub mod transport;
pub mod turn;

use std::cell::{Cell, RefCell};
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use glommio::{LocalExecutorBuilder, Placement};

use crate::config::settings::ShardSettings;
use crate::engine::groups::lane::Deliver;
use crate::engine::{Engine, EngineInit};
use crate::ids::ShardId;
use crate::lanes::{Doorbell, LaneReceiver, LaneSender, PlaceReceiver, PlaceSender};
use crate::limits;
use crate::mailbox::{Command, Port, ShardEvent};
use crate::message::Micros;
use crate::push::Submit;
use crate::shard::awake::AwakeClock;
use crate::shard::begin::{Part, begin};
use crate::shard::net::{Handoff, Net};
use crate::shard::pulse::Pulse;
use crate::tls::server::Server;
use crate::tls::service::ServicesTls;

/// The parts of a shard at its start.
#[derive(Debug)]
pub(crate) struct ShardInit {
    /// The core to which the thread is pinned.
    pub(crate) core: usize,
    pub(crate) engine: EngineInit,
    /// Sockets that are bound and not yet in use; every shard has its own on each address
    /// (SO_REUSEPORT).
    pub(crate) listeners: Vec<(Port, TcpListener)>,
    /// Certificates and settings of TLS handshakes; `None`: there is no listener for TLS.
    pub(crate) tls: Option<Arc<Server>>,
    /// TLS towards services.
    pub(crate) service_tls: ServicesTls,
    /// Lane that control sends commands by.
    pub(crate) commands: LaneReceiver<Command>,
    /// Lane that events go to control by.
    pub(crate) events: LaneSender<ShardEvent>,
    /// Lanes to every shard, by its number; the one to itself is not used.
    pub(crate) shards: Vec<LaneSender<Handoff>>,
    /// Lane from the other shards.
    pub(crate) handed: LaneReceiver<Handoff>,
    /// Lanes to every shard for what is told of groups, by its number.
    pub(crate) delivers: Vec<LaneSender<Deliver>>,
    /// Lane from the other shards.
    pub(crate) delivered: LaneReceiver<Deliver>,
    /// Lanes to every shard for pushes, by its number.
    pub(crate) pushes: Vec<PlaceSender<Submit>>,
    /// Lane from control and all shards.
    pub(crate) submitted: PlaceReceiver<Submit>,
    /// Rung by commands and by the other shards.
    pub(crate) bell: Arc<Doorbell>,
    pub(crate) pulse: Arc<Pulse>,
    /// The time at which [`Micros`] is zero.
    pub(crate) boot: Instant,
}

/// State that the tasks of a shard share.
pub(crate) struct Shell {
    engine: RefCell<Engine>,
    boot: Instant,
    /// The same clock without the times in which the shard was stopped.
    awake: AwakeClock,
    /// Set when something happened that the net loop has to act on, before it waits again.
    poked: Cell<bool>,
    /// Number of channel tasks that have not ended.
    channels: Cell<usize>,
    /// Number of times that a channel's task ran: while it rises, the net loop yields again.
    channel_polls: Cell<u64>,
}

impl Shell {
    fn new(engine: EngineInit, boot: Instant, awake: AwakeClock) -> Rc<Self> {
        Rc::new(Self {
            engine: RefCell::new(Engine::new(engine)),
            boot,
            awake,
            poked: Cell::new(false),
            channels: Cell::new(0),
            channel_polls: Cell::new(0),
        })
    }

    /// Runs `act` on the engine.
    #[inline]
    pub(crate) fn enter<R>(&self, act: impl FnOnce(&mut Engine) -> R) -> R {
        act(&mut self.engine.borrow_mut())
    }

    /// The time since the start of the process.
    pub(crate) fn now(&self) -> Micros {
        Micros(self.elapsed().as_micros() as u64)
    }

    fn elapsed(&self) -> Duration {
        self.boot.elapsed()
    }

    /// The time since the start of the process, without the pauses in which the shard was stopped:
    /// for timers that count against somebody else.
    pub(crate) fn awake(&self) -> Micros {
        self.awake.awake(self.now())
    }

    /// Gives the net loop a turn.
    pub(crate) fn poke(&self) {
        self.poked.set(true);
    }

    /// Whether the net loop was poked since it last asked.
    fn take_poke(&self) -> bool {
        self.poked.take()
    }
}

/// Starts the shard's thread, which ends after [`Command::Drain`] or [`Command::Abort`]. Returns
/// when it has begun to run.
pub(crate) fn start(init: ShardInit) -> std::io::Result<JoinHandle<()>> {
    let about = About::of(&init);
    begin(init, |part| {
        let name = format!("shard-{}", about.shard);
        std::thread::Builder::new().name(name).spawn(move || run(about, part))
    })
}

fn run(about: About, part: Part<ShardInit>) {
    let About { shard, core, .. } = about;
    let executor = LocalExecutorBuilder::new(Placement::Fixed(core))
        .name(&format!("shard-{shard}"))
        .io_memory(limits::IO_MEMORY_BYTES)
        .ring_depth(about.ring_depth)
        .preempt_timer(about.preempt)
        .make();
    let executor = match executor {
        Ok(executor) => executor,
        Err(error) => {
            if let Some(init) = part.take() {
                let why = format!("the executor of shard {shard} on core {core}: {error}");
                report_failure(&init.events, shard, &why);
            }
            return;
        }
    };
    // A fresh time slice makes it unlikely that the first task is not run: see `begin`.
    std::thread::yield_now();
    executor.run(async move {
        let Some(init) = part.take() else { return };
        let events = init.events.clone();
        let served = match Net::new(init) {
            Ok(net) => net.serve().await,
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            report_failure(&events, shard, &format!("shard {shard}: {error}"));
        }
    });
}

/// The facts about a shard by which its executor is made.
#[derive(Clone, Copy)]
struct About {
    shard: ShardId,
    core: usize,
    ring_depth: usize,
    preempt: Duration,
}

impl About {
    fn of(init: &ShardInit) -> Self {
        let ShardInit { core, engine, .. } = init;
        let ShardSettings { ring_depth, preempt, .. } = engine.settings;
        Self { shard: engine.shard, core: *core, ring_depth, preempt }
    }
}

fn report_failure(events: &LaneSender<ShardEvent>, shard: ShardId, why: &str) {
    tracing::error!(
        shard = shard.0,
        why,
        "shard_failed: the others drain and the process ends with 1; run `shardgate doctor`"
    );
    // Control reads until every shard has ended; a full lane would mean that it is gone.
    let _ = events.try_send(ShardEvent::Failed { shard });
}
