//! The glommio shell of a shard: bytes into events, effects into non-blocking actions.
//!
//! One task runs the net loop ([`net`]); each channel to an instance has one task of its own. They
//! share the engine in one `RefCell`, entered by a sync closure, so that no borrow crosses an
//! await.

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
use std::task::{Context, Waker};
use std::thread::JoinHandle;
use std::time::Instant;

use glommio::{LocalExecutorBuilder, Placement};

use crate::engine::{Engine, EngineInit};
use crate::ids::ShardId;
use crate::lanes::{Doorbell, LaneReceiver, LaneSender};
use crate::mailbox::{Command, Port, ShardEvent};
use crate::message::Micros;
use crate::shard::net::{Handoff, Net};
use crate::shard::pulse::Pulse;
use crate::tls::server::Server;

/// What a shard is given at its start.
#[derive(Debug)]
pub(crate) struct ShardInit {
    /// Which core it is pinned to.
    pub core: usize,
    /// Its engine's part.
    pub engine: EngineInit,
    /// Bound, not yet in use; every shard has its own on each address (SO_REUSEPORT). Taken by the
    /// net loop.
    pub listeners: Vec<(Port, TcpListener)>,
    /// What handshakes of TLS need; `None` = there is no such listener.
    pub tls: Option<Arc<Server>>,
    /// From control.
    pub commands: LaneReceiver<Command>,
    /// To control.
    pub events: LaneSender<ShardEvent>,
    /// To every shard, by its number; the one to itself is not used.
    pub shards: Vec<LaneSender<Handoff>>,
    /// From the other shards.
    pub handed: LaneReceiver<Handoff>,
    /// Woken by commands, by the other shards and by the pulse.
    pub bell: Arc<Doorbell>,
    /// Its pulse.
    pub pulse: Arc<Pulse>,
    /// Zero of [`Micros`].
    pub boot: Instant,
}

/// What the tasks of a shard share.
pub(crate) struct Shell {
    engine: RefCell<Engine>,
    boot: Instant,
    /// Something happened that the net loop has to act on.
    poked: Cell<bool>,
    net_waker: RefCell<Option<Waker>>,
    /// Channel tasks that have not ended.
    channels: Cell<usize>,
    /// How often a channel's task ran: while it rises, the net loop lets the others run on.
    channel_polls: Cell<u64>,
}

impl Shell {
    fn new(engine: EngineInit, boot: Instant) -> Rc<Self> {
        Rc::new(Self {
            engine: RefCell::new(Engine::new(engine)),
            boot,
            poked: Cell::new(false),
            net_waker: RefCell::new(None),
            channels: Cell::new(0),
            channel_polls: Cell::new(0),
        })
    }

    /// Runs `act` on the engine.
    pub fn enter<R>(&self, act: impl FnOnce(&mut Engine) -> R) -> R {
        act(&mut self.engine.borrow_mut())
    }

    /// The time.
    pub fn now(&self) -> Micros {
        Micros(self.boot.elapsed().as_micros() as u64)
    }

    /// The net loop has something to do.
    pub fn poke(&self) {
        if !self.poked.replace(true)
            && let Some(waker) = &*self.net_waker.borrow()
        {
            waker.wake_by_ref();
        }
    }

    /// Whether the net loop was poked since it last asked; if not, it will be woken.
    fn take_poke(&self, cx: &Context<'_>) -> bool {
        if self.poked.take() {
            return true;
        }
        let mut waker = self.net_waker.borrow_mut();
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        false
    }
}

/// Starts the shard's thread. It ends after [`Command::Drain`] or [`Command::Abort`].
pub(crate) fn start(init: ShardInit) -> std::io::Result<JoinHandle<()>> {
    let shard = init.engine.shard;
    let name = format!("shard-{shard}");
    std::thread::Builder::new().name(name).spawn(move || run(shard, init))
}

/// glommio registers this much buffer memory in each of its three rings for direct I/O, which
/// sockets do not use: 64 KiB is its floor (the default of 10 MiB pins 31 MB a shard).
const IO_MEMORY_BYTES: usize = 64 << 10;

fn run(shard: ShardId, init: ShardInit) {
    let settings = &init.engine.settings;
    let executor = LocalExecutorBuilder::new(Placement::Fixed(init.core))
        .name(&format!("shard-{shard}"))
        .io_memory(IO_MEMORY_BYTES)
        .ring_depth(settings.ring_depth)
        .preempt_timer(settings.preempt)
        .spin_before_park(settings.spin)
        .make();
    let executor = match executor {
        Ok(executor) => executor,
        Err(error) => {
            let why = format!("the executor of shard {shard} on core {}: {error}", init.core);
            report_failure(&init.events, shard, why);
            return;
        }
    };
    // glommio 0.9 goes to sleep with its first task unrun if the thread is descheduled for a whole
    // preempt timer just after this, and nobody could wake it yet: begin with a fresh time slice.
    std::thread::yield_now();
    executor.run(async move {
        let events = init.events.clone();
        let served = match Net::new(init) {
            Ok(net) => net.serve().await,
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            report_failure(&events, shard, format!("shard {shard}: {error}"));
        }
    });
}

fn report_failure(events: &LaneSender<ShardEvent>, shard: ShardId, why: String) {
    tracing::error!(
        shard = shard.0,
        why,
        "shard_failed: the others drain and the process ends with 1; `shardgate doctor` may say why"
    );
    // Control reads until every shard has ended; a full lane would mean that it is gone.
    let _ = events.try_send(ShardEvent::Failed { shard, why });
}
