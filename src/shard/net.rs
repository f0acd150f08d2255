//! The net loop: one task a shard that runs turns ([`crate::shard::turn`]) over sockets, lanes and
//! channels, and waits between them.

mod accept;
mod channels;
mod shard_io;

use std::future::poll_fn;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use crate::backend::channel::Channel;
use crate::clock::unix_now;
use crate::config::settings::{GatewaySettings, ShardSettings};
use crate::engine::groups::lane::Deliver;
use crate::engine::instance_map::InstanceMap;
use crate::ids::ShardId;
use crate::lanes::{Doorbell, LaneReceiver, LaneRefusal, LaneSender, PlaceReceiver, PlaceSender};
use crate::limits;
use crate::mailbox::{Command, Port, ShardEvent};
use crate::message::Micros;
use crate::push::Submit;
use crate::readiness::{Polled, Ready, ReadySet, yield_once};
use crate::shard::handoff;
use crate::shard::net::accept::AcceptedClient;
use crate::shard::pulse::Pulse;
use crate::shard::sockets::{Socket, Sockets};
use crate::shard::timers::Timer;
use crate::shard::turn::{self, TurnState};
use crate::shard::{ShardInit, Shell};
use crate::tls::server::Server;
use crate::tls::service::ServicesTls;
use crate::tls::session::CIPHER_BYTES_MAX;

/// Longest wait in the readiness set: the executor's reactor is visited after each, and has
/// wake-ups of other threads to drop, of which a task may have 32,767.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// Time that a stopped shard waits for its channels to close their connections to the services.
const CHANNELS_END_US: u64 = 1_000_000;

/// Clients and connections that shards with sockets hand over to each other.
pub(crate) type Handoff = handoff::Handoff<AcceptedClient, Socket>;

/// Token of the listener numbered `n` in the readiness set: from [`u64::MAX`] downwards, which no
/// `ConnId` reaches.
fn listener_token(n: usize) -> u64 {
    u64::MAX - n as u64
}

/// A socket that accepts clients.
struct Listener {
    port: Port,
    socket: TcpListener,
    backlog: Backlog,
}

/// State of a listener's queue, as far as its edges and accepts told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Backlog {
    /// No client waits, and the next one makes an edge.
    Empty,
    /// Clients may wait.
    Waiting,
    /// Clients may wait, but no descriptor was left for them: [`Timer::Accept`] ends the pause.
    Paused,
}

/// The lanes of a shard, and what wakes it.
struct Lanes {
    commands: LaneReceiver<Command>,
    events: LaneSender<ShardEvent>,
    /// Lanes to every shard, by its number; the one to itself is not used.
    shards: Vec<LaneSender<Handoff>>,
    /// Lane from the other shards.
    handed: LaneReceiver<Handoff>,
    /// Lanes to every shard for what is told of groups, by its number; the one to itself is not
    /// used.
    delivers: Vec<LaneSender<Deliver>>,
    /// Lane from the other shards.
    delivered: LaneReceiver<Deliver>,
    /// Lanes to every shard for pushes, by its number.
    pushes: Vec<PlaceSender<Submit>>,
    /// Lane from control and all shards.
    submitted: PlaceReceiver<Submit>,
    /// Rung by commands and by the other shards.
    bell: Arc<Doorbell>,
    pulse: Arc<Pulse>,
}

/// The net loop of a shard.
pub(crate) struct Net {
    shard: ShardId,
    shell: Rc<Shell>,
    lanes: Lanes,
    /// The process-wide settings in force: the engine's own.
    gateway: Arc<GatewaySettings>,
    /// The shard's settings in force: a copy of the engine's.
    settings: ShardSettings,
    /// Certificates and settings of TLS handshakes; `None`: there is no listener for TLS.
    tls: Option<Arc<Server>>,
    /// TLS towards services.
    service_tls: ServicesTls,
    /// Seed of the jitter of channels.
    seed: u64,
    set: ReadySet,
    listeners: Vec<Listener>,
    sockets: Sockets,
    state: TurnState,
    channels: InstanceMap<Channel>,
    /// Bytes of one read.
    scratch: Box<[u8]>,
    /// Plaintext of the TLS records of one read.
    plain: Vec<u8>,
    /// TLS records of one write.
    cipher: Box<[u8]>,
    /// Sockets that became ready; the buffer lives on.
    ready: Vec<Ready>,
    /// Whether the set was looked at since the last turn.
    looked: bool,
}

impl Net {
    /// Sets the shard up; nothing is accepted before [`Self::serve`].
    pub(crate) fn new(init: ShardInit) -> io::Result<Self> {
        let ShardInit { engine, listeners, tls, service_tls, commands, events, .. } = init;
        let ShardInit { shards, handed, bell, pulse, boot, core: _, .. } = init;
        let ShardInit { delivers, delivered, pushes, submitted, .. } = init;
        let set = ReadySet::new()?;
        if let Some(bell) = bell.descriptor() {
            set.add_bell(bell)?;
        }
        let listeners = listeners.into_iter().enumerate().map(|(n, (port, socket))| {
            socket.set_nonblocking(true)?;
            set.add(&socket, listener_token(n))?;
            Ok(Listener { port, socket, backlog: Backlog::Waiting })
        });
        let listeners = listeners.collect::<io::Result<_>>()?;
        let state = TurnState::new(engine.shard, engine.shards, &engine.settings);
        let cipher_bytes = if tls.is_some() { CIPHER_BYTES_MAX } else { 0 };
        Ok(Self {
            shard: engine.shard,
            gateway: engine.gateway.clone(),
            settings: engine.settings.clone(),
            seed: rand::random(),
            shell: Shell::new(engine, boot, state.awake()),
            state,
            lanes: Lanes {
                commands,
                events,
                shards,
                handed,
                delivers,
                delivered,
                pushes,
                submitted,
                bell,
                pulse,
            },
            tls,
            service_tls,
            set,
            listeners,
            sockets: Sockets::default(),
            channels: InstanceMap::default(),
            scratch: vec![0; limits::READ_SCRATCH_BYTES].into_boxed_slice(),
            plain: Vec::new(),
            cipher: vec![0; cipher_bytes].into_boxed_slice(),
            looked: false,
            ready: Vec::with_capacity(limits::EVENTS_PER_WAIT),
        })
    }

    /// Serves until control stops the shard.
    pub(crate) async fn serve(mut self) -> io::Result<()> {
        let snapshot = self.shell.enter(|engine| engine.snapshot().clone());
        self.open_channels(&snapshot);
        // Before the shard counts as serving: an executor that goes to sleep with this task unrun
        // is woken by the pulse, once that has its waker.
        poll_fn(|cx| {
            self.lanes.pulse.set_waker(cx.waker());
            Poll::Ready(())
        })
        .await;
        let shard = self.shard;
        self.send_event(ShardEvent::Ready(shard)).await;
        loop {
            let rung = self.wait().await?;
            let now = self.shell.now();
            turn::begin(&mut self, now);
            if rung && self.on_bell(now) {
                return Ok(());
            }
            self.take_due(now);
            self.take_ready()?;
            turn::run(&mut self, now);
            if self.state.is_stopping() && self.shell.enter(|engine| engine.is_drained()) {
                break;
            }
        }
        self.end().await;
        Ok(())
    }

    /// Waits until there is something to do. True if the bell rang, or the pulse came.
    ///
    /// In this order: the other tasks run until none has anything to do; then the thread blocks in
    /// the readiness set. The executor never sleeps on its ring: this task can always run.
    async fn wait(&mut self) -> io::Result<bool> {
        if self.state.is_flooded() {
            // The wait does not come as far as the set: without this a service's answer would wait
            // a turn longer for its channel's task.
            self.look(Duration::ZERO)?;
        }
        loop {
            let polls = self.shell.channel_polls.get();
            // Once in any case: a client that keeps its socket full must not keep the channels'
            // tasks from running.
            yield_once().await;
            if let Some(rung) = self.has_come() {
                return Ok(rung);
            }
            if polls == self.shell.channel_polls.get() && self.block()? == Polled::Sockets {
                return Ok(false);
            }
        }
    }

    /// Whether something other than a socket calls for a turn; true: the bell, or the pulse.
    fn has_come(&mut self) -> Option<bool> {
        let rung = self.lanes.bell.take_rung() || self.lanes.pulse.is_due();
        let poked = self.shell.take_poke();
        let due = self.state.next_due().is_some_and(|due| due <= self.shell.now());
        (rung || poked || due || self.state.has_work()).then_some(rung)
    }

    /// Blocks in the set until there is something to do, as far as the shell knows.
    fn block(&mut self) -> io::Result<Polled> {
        let mut now = self.shell.now();
        let due = self.state.next_due().unwrap_or(Micros(u64::MAX));
        let spin_until = due.min(Micros(now.0 + self.settings.spin.as_micros() as u64));
        while now < spin_until && !self.lanes.bell.is_rung() && !self.lanes.pulse.is_due() {
            match self.look(Duration::ZERO)? {
                Polled::Nothing => std::hint::spin_loop(),
                found => return Ok(found),
            }
            now = self.shell.now();
        }
        let wait = WAIT_MAX.min(Duration::from_micros(due.since(now)));
        let Self { lanes: Lanes { bell, pulse, .. }, set, ready, looked, .. } = self;
        let found = bell.block(|| pulse.is_due(), || set.poll(wait, ready));
        *looked |= found.is_some();
        found.unwrap_or(Ok(Polled::Nothing))
    }

    /// Looks into the set, for up to `wait`.
    fn look(&mut self, wait: Duration) -> io::Result<Polled> {
        self.looked = true;
        self.set.poll(wait, &mut self.ready)
    }

    /// Handles the pulse, and messages of control and other shards. True: the shard is to end at
    /// once.
    fn on_bell(&mut self, now: Micros) -> bool {
        if let Some(late_us) = self.lanes.pulse.answer(now) {
            turn::tick(self, late_us, unix_now().as_micros() as i64, now);
        }
        turn::take_messages(self, now)
    }

    /// Takes the timers that are due.
    fn take_due(&mut self, now: Micros) {
        while let Some(timer) = self.state.timers().pop_due(now) {
            match Timer::of(timer) {
                Timer::Accept(n) => self.listeners[n].backlog = Backlog::Waiting,
                // The turn that is about to come is all that the engine wants.
                Timer::Engine => {}
                // The end looks at the clock itself.
                Timer::ChannelsEnd => {}
            }
        }
    }

    /// Takes from the set which sockets are ready.
    fn take_ready(&mut self) -> io::Result<()> {
        // The wait has mostly looked already.
        if !self.looked {
            self.look(Duration::ZERO)?;
        }
        self.looked = false;
        let mut ready = std::mem::take(&mut self.ready);
        for ready in ready.drain(..) {
            // For a connection's token the number is out of range.
            let n = (u64::MAX - ready.token) as usize;
            match self.listeners.get_mut(n) {
                Some(Listener { backlog: Backlog::Paused, .. }) => {}
                Some(listener) => listener.backlog = Backlog::Waiting,
                None => turn::on_ready(self, ready),
            }
        }
        self.ready = ready;
        Ok(())
    }

    /// Ends in order: channels finish, late clients are refused, control gets the last event.
    async fn end(mut self) {
        self.state.clear_reads();
        self.channels.iter().for_each(|(_, channel)| channel.close());
        let give_up = Micros(self.shell.now().0 + CHANNELS_END_US);
        // The engine has no connection left, and nothing to do in time.
        self.state.timers().clear(Timer::Engine.number());
        self.state.timers().set(Timer::ChannelsEnd.number(), give_up);
        while self.shell.channels.get() > 0 && self.shell.now() < give_up {
            if self.wait().await.is_err() {
                break;
            }
            self.lanes.pulse.answer(self.shell.now());
        }
        let now = self.shell.now();
        turn::end(&mut self, now);
        let shard = self.shard;
        let cut_off = self.shell.enter(|engine| engine.cut_off());
        self.send_event(ShardEvent::Stopped { shard, cut_off }).await;
        // Otherwise the lane would keep the sockets in it open until its last sender is gone.
        while self.lanes.handed.try_recv().is_some() {}
    }

    /// Sends control an event that must arrive: again with each pulse while its lane is full.
    async fn send_event(&mut self, mut event: ShardEvent) {
        let mut rung = false;
        while let Err(LaneRefusal::Full(back)) = self.lanes.events.try_send(event) {
            event = back;
            yield_once().await;
            // Heard later: meanwhile it must not end each wait.
            rung |= self.lanes.bell.take_rung();
            if self.block().is_err() {
                break;
            }
            self.lanes.pulse.answer(self.shell.now());
        }
        if rung {
            self.lanes.bell.ring();
        }
    }
}
