//! A turn of a shard: what is done with its engine, and in which order.
//!
//! The net loop ([`crate::shard::net`]) runs turns over sockets, lanes and channels, the simulator
//! (tests/sim) over simulated ones; they differ in nothing but [`ShardIo`]. So the simulator cannot
//! run another order than the one that serves.
//!
//! A turn begins with a look at the clock ([`begin`]): if the shard was stopped, nobody is judged
//! by that time. Then come the tick ([`tick`]), if the pulse came, and what other shards and
//! control sent ([`take_messages`]), if the bell rang. The turn itself ([`run`]) is fair by its
//! order and its budgets: accept (at most 64); clients' sockets, for `shard.read_us` and in the
//! order of `rounds`; TLS handshakes for a quarter of a millisecond; batches; one write a dirty
//! connection; connections that move to another shard. A turn reads those that became ready or,
//! alternately, those that flood: so a message waits for one turn of the latter, and its answer for
//! another.

mod arrivals;
mod bound;
mod handoffs;
mod messages;
mod pushes;
mod reading;
mod rota;
mod rounds;
mod tracer;

use crate::config::settings::ShardSettings;
use crate::engine::Engine;
use crate::engine::clients::conn::SocketAction;
use crate::engine::effects::Effects;
use crate::engine::groups::lane::Deliver;
use crate::ids::{ConnId, InstanceId, ShardId};
use crate::lanes::LaneRefusal;
use crate::mailbox::{Command, ShardConfig, ShardEvent};
use crate::message::{Call, Micros};
use crate::push::Submit;
use crate::readiness::timers::Timers;
use crate::shard::awake::AwakeClock;
use crate::shard::handoff::Handoff;
use crate::shard::timers::Timer;
use crate::shard::turn::rounds::{List, Rounds};
use crate::shard::turn::tracer::Tracer;
use crate::trace::{Nanos, Step};

pub use handoffs::take_in;
pub use messages::{take_messages, tick};
pub use reading::on_ready;

/// Everything that a shard reaches beyond its engine: sockets, lanes, channels and the clock. Each
/// method is one action; which of them comes when is decided by this module. All of it is generic,
/// so that each message passes one loop without a call through a table; what each message passes is
/// marked `#[inline]`, or a quarter of the shell's own time goes to calls between modules.
pub trait ShardIo: Sized {
    /// A client that was accepted and has no connection yet.
    type Client;
    /// The socket of a connection.
    type Socket;

    /// Runs `act` on the engine and on the state of the turns.
    fn with<R>(&mut self, act: impl FnOnce(&mut Engine, &mut TurnState) -> R) -> R;

    /// The state of the turns, apart from the engine.
    fn state(&mut self) -> &mut TurnState;

    /// The time now; later than the turn's own by what the turn took so far.
    fn now(&self) -> Micros;

    /// The time now for a trace, and the time in which this thread ran.
    fn nanos(&self) -> Nanos;

    /// Runs `act` on the engine.
    fn enter<R>(&mut self, act: impl FnOnce(&mut Engine) -> R) -> R {
        self.with(|engine, _| act(engine))
    }

    /// Ends the engine's part of a turn. The simulator checks the engine after it.
    fn end_turn(&mut self, now: Micros) {
        self.enter(|engine| engine.end_turn(now));
    }

    /// Readiness of a connection's socket; `None`: the connection is gone.
    fn readiness(&mut self, id: ConnId) -> Option<&mut Readiness>;

    /// Whether a TLS handshake of the connection is under way: it costs far more than messages do.
    fn is_handshaking(&mut self, id: ConnId) -> bool;

    /// Receives at most `bytes_max` once from a connection's socket and gives them to the engine,
    /// which is charged for the receive whatever has come.
    fn read_once(&mut self, id: ConnId, bytes_max: usize, now: Micros) -> ReadOnce;

    /// Writes what the engine has for a connection, once, and tells the engine how much was taken.
    fn flush(&mut self, id: ConnId, now: Micros) -> SocketAction;

    /// Bounds what the socket of a connection holds unsent, as `conn.notsent_bytes` says.
    fn bound_unsent(&mut self, id: ConnId);

    /// Ends the bytes to the client; bytes of the client are still read.
    fn shut_write(&mut self, id: ConnId);

    /// Closes a connection's socket, if it is not gone yet.
    fn close_socket(&mut self, id: ConnId);

    /// Accepts clients who wait, up to a turn's budget, each by [`take_in`].
    fn accept_all(&mut self, now: Micros);

    /// Accepts all clients who wait, and then no more.
    fn stop_accepting(&mut self, now: Micros);

    /// Whether the shard has room for a client; if not, another one may have.
    fn has_room_for(&mut self, client: &Self::Client) -> bool;

    /// Makes a connection of a client; `None`: the client is refused.
    fn open_connection(&mut self, client: Self::Client, now: Micros) -> Option<ConnId>;

    /// Takes a connection's socket out, for another shard.
    fn take_socket(&mut self, id: ConnId) -> Self::Socket;

    /// Puts in the socket of a connection that came from another shard, or comes back from a lane
    /// that is full, and forgets its readiness. False: the socket cannot be watched, and the
    /// connection is gone.
    fn put_socket(&mut self, id: ConnId, socket: Self::Socket) -> bool;

    /// Closes a socket that has no connection any more.
    fn discard_socket(&mut self, socket: Self::Socket);

    /// Gives something to another shard.
    fn send_handoff(
        &mut self,
        to: ShardId,
        handoff: HandoffOf<Self>,
    ) -> Result<(), LaneRefusal<HandoffOf<Self>>>;

    /// The oldest handoff of the other shards.
    fn next_handoff(&mut self) -> Option<HandoffOf<Self>>;

    /// Gives another shard an item about a group.
    fn send_deliver(&mut self, to: ShardId, item: Deliver) -> Result<(), LaneRefusal<Deliver>>;

    /// The oldest item of the other shards about a group.
    fn next_deliver(&mut self) -> Option<Deliver>;

    /// Items of the other shards about groups that wait.
    fn delivers_waiting(&self) -> usize;

    /// Gives pushes to their shards: all of them or none. Whether there was room.
    fn send_pushes(&mut self, pushes: Vec<(ShardId, Submit)>) -> bool;

    /// The oldest work about pushes, of control or of another shard.
    fn next_submit(&mut self) -> Option<Submit>;

    /// The oldest command of control.
    fn next_command(&mut self) -> Option<Command>;

    /// Sends an event to control.
    fn try_send_event(&mut self, event: ShardEvent) -> Result<(), LaneRefusal<ShardEvent>>;

    /// Rings the shard's own bell: not all messages were taken.
    fn ring(&mut self);

    /// Takes over the part of a published state that is not the engine's. Channels to new instances
    /// are open after it.
    fn apply(&mut self, published: &ShardConfig);

    /// Gives calls to the channels of their instances. Each of them may end at once, by
    /// [`Engine::on_outcome`].
    fn start_calls(&mut self, calls: &mut Vec<Call>);

    /// Asks an instance for a sign of life, which is told by [`Engine::on_alive`].
    fn ask(&mut self, instance: InstanceId);

    /// Bytes of memory that the sockets hold.
    fn socket_bytes(&self) -> usize;
}

/// Handoffs between shards of one kind.
pub type HandoffOf<I> = Handoff<<I as ShardIo>::Client, <I as ShardIo>::Socket>;

/// Readiness of a socket, as far as it is known: edges report it, reads and writes use it up.
#[derive(Clone, Copy, Debug)]
pub struct Readiness {
    /// Whether there is something to read.
    pub input: Input,
    /// Whether the kernel takes bytes.
    pub is_writable: bool,
    /// Whether the connection is on a list of those to read.
    pub(crate) is_listed: bool,
}

/// Input of a socket that the kernel holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Input {
    /// Nothing: the next bytes make an edge.
    Empty,
    /// There may be bytes.
    Ready,
    /// The last bytes and the end: no edge will tell of the end once more, so the socket is read
    /// until it comes.
    Ending,
}

impl Readiness {
    /// Readiness of a socket before its first edge: both ways are tried.
    pub const UNKNOWN: Self = Self { input: Input::Ready, is_writable: true, is_listed: false };

    /// Whether there may be something to read.
    pub fn is_readable(&self) -> bool {
        match self.input {
            Input::Empty => false,
            Input::Ready | Input::Ending => true,
        }
    }

    /// Remembers that there may be something to read.
    pub fn set_readable(&mut self) {
        if self.input == Input::Empty {
            self.input = Input::Ready;
        }
    }

    /// Forgets all but the end, of a socket that comes to another shard: bytes and room may have
    /// come since.
    pub fn forget(&mut self) {
        self.is_writable = true;
        self.is_listed = false;
        self.set_readable();
    }
}

/// The result of one read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadOnce {
    /// There may be more to read.
    Again,
    /// The socket is empty, or the engine wants no more for now.
    Enough,
    /// The client's side has ended.
    Closed,
}

/// State of a shard between its turns, besides its engine and its sockets. The lists live on, so
/// that a turn does not allocate.
#[derive(Debug)]
pub struct TurnState {
    shard: ShardId,
    /// Shards of the process.
    shards: u16,
    /// The shard that was last offered a client.
    next_sibling: u16,
    is_stopping: bool,
    timers: Timers,
    /// The clock without the times in which the shard was stopped.
    awake: AwakeClock,
    /// Longest time of a turn's reading, in microseconds.
    read_us: u64,
    /// Connections to read.
    rounds: Rounds,
    /// Connections with a TLS handshake under way, read after all others.
    to_handshake: Vec<ConnId>,
    /// Connections to flush for a reason of their socket: room in the kernel, or bytes of TLS.
    dirty: Vec<ConnId>,
    /// Effects taken from the engine that are still to be carried out.
    effects: Effects,
    /// Connections to close; empty between turns.
    closing: Vec<ConnId>,
    /// The trace that is recorded.
    tracer: Option<Box<Tracer>>,
}

impl TurnState {
    /// The state of a shard, of `shards`, that has had no turn.
    pub fn new(shard: ShardId, shards: u16, settings: &ShardSettings) -> Self {
        Self {
            shard,
            shards,
            next_sibling: 0,
            is_stopping: false,
            timers: Timers::default(),
            awake: AwakeClock::default(),
            read_us: settings.read.as_micros() as u64,
            rounds: Rounds::default(),
            to_handshake: Vec::new(),
            dirty: Vec::new(),
            effects: Effects::default(),
            closing: Vec::new(),
            tracer: None,
        }
    }

    /// Takes settings that are live.
    fn set(&mut self, settings: &ShardSettings) {
        self.read_us = settings.read.as_micros() as u64;
    }

    /// The clock without the times in which the shard was stopped.
    pub(crate) fn awake(&self) -> AwakeClock {
        self.awake.clone()
    }

    /// Whether control has told the shard to stop.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping
    }

    /// Whether the last turn left something that the next one may do at once.
    pub fn has_work(&self) -> bool {
        let Self { rounds, to_handshake, effects, .. } = self;
        !rounds.is_empty() || !to_handshake.is_empty() || !effects.resumed.is_empty()
    }

    /// Whether clients flood: each turn has more to read.
    pub fn is_flooded(&self) -> bool {
        self.rounds.has(List::Old)
    }

    /// The earliest time at which the shard needs a turn although nothing has come; ticks come
    /// besides it.
    pub fn next_due(&self) -> Option<Micros> {
        self.timers.earliest()
    }

    /// The timers of the shell.
    pub(crate) fn timers(&mut self) -> &mut Timers {
        &mut self.timers
    }

    /// Connections that this turn sends to their home shard: taken from the engine, and still in
    /// it.
    pub fn moves(&self) -> &[ConnId] {
        &self.effects.moves
    }

    /// Has a connection flushed in this turn although the engine has nothing new for it.
    pub(crate) fn mark_dirty(&mut self, id: ConnId) {
        self.dirty.push(id);
    }

    /// Forgets the connections to read, when none is left.
    pub(crate) fn clear_reads(&mut self) {
        self.rounds.clear();
        self.to_handshake.clear();
        self.effects.resumed.clear();
    }

    /// Takes the effects out of the engine. They leave it in no other way.
    fn take_effects(&mut self, engine: &mut Engine) {
        // Each field by its name, so that a new one is an error here.
        let Effects {
            calls,
            asked,
            dirty,
            pushed,
            moves,
            resumed,
            deliver,
            receipts,
            pushes,
            signals,
            demands,
            keys_wanted,
        } = &mut engine.effects;
        take_list(calls, &mut self.effects.calls);
        take_list(asked, &mut self.effects.asked);
        take_list(dirty, &mut self.effects.dirty);
        take_list(pushed, &mut self.effects.pushed);
        take_list(moves, &mut self.effects.moves);
        take_list(resumed, &mut self.effects.resumed);
        take_list(signals, &mut self.effects.signals);
        take_list(demands, &mut self.effects.demands);
        take_list(keys_wanted, &mut self.effects.keys_wanted);
        take_list(deliver, &mut self.effects.deliver);
        take_list(receipts, &mut self.effects.receipts);
        take_list(pushes, &mut self.effects.pushes);
    }
}

/// Moves all items of `from` to the end of `to`; mostly `to` is empty, and the buffers are swapped.
fn take_list<T>(from: &mut Vec<T>, to: &mut Vec<T>) {
    match to.is_empty() {
        true => std::mem::swap(from, to),
        false => to.append(from),
    }
}

/// Begins a turn, before its tick and its messages. If the shard was stopped since the last one,
/// the engine leaves that time out wherever it counts against a client or a service.
pub fn begin(io: &mut impl ShardIo, now: Micros) {
    tracer::step(io, Step::Wait);
    if let Some(us) = io.state().awake.begin_turn(now) {
        io.enter(|engine| engine.on_pause(us, now));
    }
}

/// Runs one turn of a shard.
pub fn run(io: &mut impl ShardIo, now: Micros) {
    tracer::step(io, Step::Ready);
    io.accept_all(now);
    resume(io, now);
    tracer::step(io, Step::Accept);
    reading::read_all(io, now);
    tracer::step(io, Step::Read);
    reading::read_handshakes(io);
    tracer::step(io, Step::Handshakes);
    io.end_turn(now);
    io.with(|engine, state| state.take_effects(engine));
    tracer::step(io, Step::Batches);
    start_calls(io);
    pushes::send_all(io, now);
    tracer::step(io, Step::Calls);
    flush_all(io, now);
    tracer::step(io, Step::Flush);
    handoffs::move_all(io, now);
    io.with(|engine, state| {
        state.take_effects(engine);
        match engine.next_due() {
            Some(at) => state.timers.set(Timer::Engine.number(), at),
            None => state.timers.clear(Timer::Engine.number()),
        }
    });
    tracer::step(io, Step::Moves);
}

/// Runs the last turn of a shard that has stopped: clients and connections that came meanwhile get
/// their refusal.
pub fn end(io: &mut impl ShardIo, now: Micros) {
    handoffs::take_handed(io, now);
    let left = io.with(|engine, state| {
        let left = engine.say_goodbye(now);
        state.take_effects(engine);
        left
    });
    flush_all(io, now);
    for id in left {
        close(io, id);
    }
    io.state().clear_reads();
}

/// Lists connections that may be read again: first the bytes that their decoder held back are
/// taken, then the socket's.
fn resume(io: &mut impl ShardIo, now: Micros) {
    let mut resumed = io.with(|engine, state| {
        state.take_effects(engine);
        std::mem::take(&mut state.effects.resumed)
    });
    for id in resumed.drain(..) {
        // It may have been held again since.
        match io.enter(|engine| engine.is_paused(id)) {
            true => reading::end_newcomer(io, id, now),
            false => reading::list_resumed(io, id),
        }
    }
    io.state().effects.resumed = resumed;
}

fn start_calls(io: &mut impl ShardIo) {
    let mut calls = std::mem::take(&mut io.state().effects.calls);
    io.start_calls(&mut calls);
    calls.clear();
    io.state().effects.calls = calls;
    while let Some(instance) = io.state().effects.asked.pop() {
        io.ask(instance);
    }
}

/// Writes once to each connection with something new for its client.
fn flush_all(io: &mut impl ShardIo, now: Micros) {
    while let Some(id) = io.state().effects.pushed.pop() {
        io.bound_unsent(id);
    }
    let state = io.state();
    let mut dirty = std::mem::take(&mut state.dirty);
    dirty.append(&mut state.effects.dirty);
    let count = dirty.len() as u64;
    for id in dirty.drain(..) {
        match io.flush(id, now) {
            SocketAction::Keep => {}
            SocketAction::ShutWrite => io.shut_write(id),
            SocketAction::Close => close(io, id),
        }
    }
    io.state().dirty = dirty;
    if count > 0 {
        let us = io.now().since(now);
        io.enter(|engine| engine.record_flush(us, count));
    }
}

fn close(io: &mut impl ShardIo, id: ConnId) {
    io.close_socket(id);
    io.enter(|engine| engine.remove(id));
}
