//! The net loop: one task a shard that reads what is ready, feeds the engine, starts calls, and
//! flushes what got dirty, each once a turn.
//!
//! Fairness of a turn, in this order: commands and pulse; accept (at most 64); resumed connections;
//! ready connections (at most four reads each, 64 KiB a read, for some 2 ms); handshakes of TLS for
//! a quarter of a millisecond; batches; one write a dirty connection. Then the other tasks run, and
//! the ring is asked.

mod accept;
mod channels;
mod layered;
mod moves;

use std::future::poll_fn;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use glommio::timer::Timer;

use crate::backend::channel::Channel;
use crate::engine::by_instance::ByInstance;
use crate::engine::conns::{Fate, ReadNext};
use crate::ids::ConnId;
use crate::lanes::LaneRefusal;
use crate::limits;
use crate::mailbox::{Command, Port, ShardEvent};
use crate::message::{Call, Micros};
use crate::readiness::{Looked, Ready, ReadySet};
use crate::shard::net::layered::say_goodbye;
use crate::shard::sockets::{Moved, Sockets};
use crate::shard::{ShardInit, Shell};
use crate::stats::Counter;
use crate::tls::session::CIPHER_BYTES_MAX;

/// The listeners' numbers in the readiness set, counted down: keys of the last generation, which no
/// slot lives to see.
const LISTENER: u64 = u64::MAX;
/// How long the shard waits in the set before it sleeps on the ring. The next message or answer
/// mostly comes sooner, and a pass through glommio's reactor costs as much as handling a few
/// messages. The reactor (its timers, wake-ups from other threads) is late by this at most.
const LINGER: Duration = Duration::from_millis(1);
/// A turn this long gives no client a second read: the others have had to wait for long enough. A
/// buffer of 26-byte messages takes about half of it.
const READING_US_MAX: u64 = 1_000;
/// All reading of a turn, about: a tick of 10 ms is then some five turns, and not one.
const READ_US_MAX: u64 = 2_000;
/// How long ended shards wait for their channels to say goodbye to the services.
const CHANNELS_END_US: u64 = 1_000_000;

/// Where clients come from.
struct Listener {
    port: Port,
    socket: TcpListener,
    /// There may be someone to accept; not before this time.
    accept_at: Option<Micros>,
}

/// A timer that is set.
struct Alarm {
    at: Micros,
    timer: Timer,
}

/// The net loop's state.
pub struct Net {
    shell: Rc<Shell>,
    init: ShardInit,
    set: ReadySet,
    listeners: Vec<Listener>,
    sockets: Sockets,
    /// Connections to read.
    to_read: Vec<ConnId>,
    /// Those with the handshake of TLS before them, which are read after all others.
    to_shake: Vec<ConnId>,
    channels: ByInstance<Channel>,
    scratch: Box<[u8]>,
    /// What came out of TLS, and what goes into the kernel through it.
    plain: Vec<u8>,
    cipher: Box<[u8]>,
    alarm: Option<Alarm>,
    stopping: bool,
    /// The shard that was last handed a client.
    next_sibling: usize,
    // Buffers that live on so that a turn does not allocate.
    ready: Vec<Ready>,
    reading: Vec<ConnId>,
    dirty: Vec<ConnId>,
    resumed: Vec<ConnId>,
    moves: Vec<ConnId>,
    closing: Vec<ConnId>,
    calls: Vec<Call>,
}

impl Net {
    /// Sets the shard up; nothing is accepted before [`Self::serve`].
    pub fn new(shell: Rc<Shell>, mut init: ShardInit) -> io::Result<Self> {
        let set = ReadySet::new()?;
        // Taken, not copied: a second descriptor would keep the port open after the stop.
        let mut listeners = Vec::new();
        for (port, socket) in std::mem::take(&mut init.listeners) {
            socket.set_nonblocking(true)?;
            set.add(&socket, LISTENER - listeners.len() as u64)?;
            listeners.push(Listener { port, socket, accept_at: Some(Micros(0)) });
        }
        let cipher_bytes = if init.tls.is_some() { CIPHER_BYTES_MAX } else { 0 };
        Ok(Self {
            shell,
            init,
            set,
            listeners,
            sockets: Sockets::default(),
            to_read: Vec::new(),
            to_shake: Vec::new(),
            channels: ByInstance::default(),
            scratch: vec![0; limits::READ_SCRATCH_BYTES].into_boxed_slice(),
            plain: Vec::new(),
            cipher: vec![0; cipher_bytes].into_boxed_slice(),
            alarm: None,
            stopping: false,
            next_sibling: 0,
            ready: Vec::with_capacity(limits::EVENTS_PER_WAIT),
            reading: Vec::new(),
            dirty: Vec::new(),
            resumed: Vec::new(),
            moves: Vec::new(),
            closing: Vec::new(),
            calls: Vec::new(),
        })
    }

    /// Serves until told to stop.
    pub async fn serve(mut self) -> io::Result<()> {
        let snapshot = self.shell.enter(|engine| engine.snapshot().clone());
        self.open_channels(&snapshot);
        // Before anybody hears that the shard serves: an executor that goes to sleep with this task
        // unrun is woken by the pulse, if that knows the task.
        poll_fn(|cx| {
            self.init.pulse.wakes(cx.waker());
            Poll::Ready(())
        })
        .await;
        let shard = self.init.engine.shard;
        self.tell(ShardEvent::Ready(shard)).await;
        loop {
            let rung = self.wait().await?;
            let now = self.shell.now();
            if rung {
                let stop = self.on_bell(now).await;
                if stop {
                    return Ok(());
                }
            }
            self.turn(now)?;
            if self.stopping && self.shell.enter(|engine| engine.is_drained()) {
                break;
            }
        }
        self.end().await;
        Ok(())
    }

    /// Until there is something to do. True if the bell rang: a command, or the pulse.
    ///
    /// In this order: the other tasks run until none has anything to do; then the thread waits in
    /// the readiness set for a moment; then it sleeps on the ring.
    async fn wait(&mut self) -> io::Result<bool> {
        let due = self.shell.enter(|engine| engine.next_due());
        self.set_alarm(due);
        loop {
            let polls = self.shell.channel_polls.get();
            let mut yielded = false;
            let rung = poll_fn(|cx| {
                // Once in any case: a client that keeps its socket full must not keep the others'
                // tasks from running.
                if !std::mem::replace(&mut yielded, true) {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Ready(self.poll_flags(cx))
            });
            if let Poll::Ready(rung) = rung.await {
                return Ok(rung);
            }
            if polls == self.shell.channel_polls.get() {
                break;
            }
        }
        let linger = match &self.alarm {
            Some(alarm) => LINGER.min(Duration::from_micros(alarm.at.since(self.shell.now()))),
            None => LINGER,
        };
        if self.set.look(linger, &mut self.ready)? == Looked::Something {
            return Ok(false);
        }
        let rung = poll_fn(|cx| match self.poll_flags(cx) {
            Poll::Ready(rung) => Poll::Ready(rung),
            Poll::Pending => self.set.poll_wake(cx).map(|()| false),
        });
        Ok(rung.await)
    }

    /// Ready if something other than a socket wants a turn: true if that is the bell.
    fn poll_flags(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let rung = self.init.bell.poll_rung(cx).is_ready() || self.init.pulse.is_due();
        let poked = self.shell.take_poke(cx);
        let alarmed = match &mut self.alarm {
            Some(alarm) => std::pin::Pin::new(&mut alarm.timer).poll(cx).is_ready(),
            None => false,
        };
        if alarmed {
            self.alarm = None;
        }
        let listed = !self.to_read.is_empty() || !self.to_shake.is_empty();
        if rung || poked || alarmed || listed { Poll::Ready(rung) } else { Poll::Pending }
    }

    /// Sets the timer for what is due before the next pulse; an earlier alarm stays, it does no
    /// harm.
    fn set_alarm(&mut self, due: Option<Micros>) {
        let Some(due) = due else { return };
        if self.alarm.as_ref().is_some_and(|a| a.at <= due) {
            return;
        }
        let wait = Duration::from_micros(due.since(self.shell.now()).max(1));
        self.alarm = Some(Alarm { at: due, timer: Timer::new(wait) });
    }

    /// Commands and the pulse. True: end at once.
    async fn on_bell(&mut self, now: Micros) -> bool {
        if let Some(late_us) = self.init.pulse.answer(now) {
            self.tick(late_us, now);
        }
        self.take_handed(now);
        let mut budget = limits::LANE_BUDGET;
        while let Some(command) = self.init.commands.try_recv() {
            match command {
                Command::Adopt(published) => {
                    self.init.tls.clone_from(&published.tls);
                    self.init.engine.gateway.clone_from(&published.gateway);
                    let own = &mut self.init.engine.settings;
                    let changed = own.backend != published.settings.backend;
                    own.clone_from(&published.settings);
                    if changed {
                        let backend = &published.settings.backend;
                        self.channels.iter().for_each(|(_, c)| c.configure(backend));
                    }
                    let snapshot = published.snapshot.clone();
                    // Calls may go to new instances as soon as the engine knows them.
                    self.open_channels(&snapshot);
                    self.shell.enter(|engine| engine.adopt(*published, now));
                }
                Command::Report(number) => {
                    let mut report = self.shell.enter(|engine| engine.report(number, now));
                    report.gauges.connection_bytes += self.sockets.memory_bytes() as u64;
                    self.report(ShardEvent::Report(Box::new(report)));
                }
                Command::Inspect(query, number) => {
                    let inspection = self.shell.enter(|engine| engine.inspect(&query, now));
                    let shard = self.init.engine.shard;
                    self.report(ShardEvent::Inspection { shard, number, inspection });
                }
                Command::Drain(settings) => {
                    self.stop_accepting(now);
                    self.shell.enter(|engine| engine.drain(settings, now));
                    self.stopping = true;
                }
                Command::Abort => return true,
            }
            budget -= 1;
            if budget == 0 {
                self.init.bell.ring();
                break;
            }
        }
        false
    }

    /// Tells control something that may be lost: it asks again, or gets it with the next tick.
    fn report(&self, event: ShardEvent) {
        let refused = match self.init.events.try_send(event) {
            Ok(()) => return,
            Err(LaneRefusal::Full(event) | LaneRefusal::Closed(event)) => event,
        };
        self.shell.enter(|engine| {
            engine.count(Counter::LaneLost, 1);
            if let ShardEvent::Signals { signals, .. } = &refused {
                engine.untold(signals);
            }
        });
    }

    fn tick(&mut self, late_us: u64, now: Micros) {
        let mut closing = std::mem::take(&mut self.closing);
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros());
        let (signals, keys_wanted) = self.shell.enter(|engine| {
            engine.record_stall(late_us);
            engine.set_wall_clock(unix as i64, now);
            engine.tick(now, &mut closing);
            let effects = &mut engine.effects;
            (std::mem::take(&mut effects.signals), std::mem::take(&mut effects.keys_wanted))
        });
        let shard = self.init.engine.shard;
        if keys_wanted {
            self.report(ShardEvent::KeysWanted(shard));
        }
        if !signals.is_empty() {
            self.report(ShardEvent::Signals { shard, signals });
        }
        for id in closing.drain(..) {
            self.close(id);
        }
        self.closing = closing;
    }

    fn turn(&mut self, now: Micros) -> io::Result<()> {
        let mut ready = std::mem::take(&mut self.ready);
        // The wait may have brought some already.
        if ready.is_empty() {
            self.set.look(Duration::ZERO, &mut ready)?;
        }
        for event in ready.drain(..) {
            self.on_ready(event, now);
        }
        self.ready = ready;
        self.accept_all(now);
        self.resume(now);
        self.read_all(now);
        self.shake_hands();
        let resumed = self.shell.enter(|engine| {
            engine.end_turn(now);
            !engine.effects.resumed.is_empty()
        });
        if resumed {
            self.shell.poke();
        }
        self.start_calls();
        self.flush_all(now);
        self.move_all(now);
        Ok(())
    }

    fn on_ready(&mut self, event: Ready, now: Micros) {
        // Of connections, the difference is out of range.
        if let Some(listener) = self.listeners.get_mut((LISTENER - event.token) as usize) {
            listener.accept_at = Some(listener.accept_at.map_or(now, |at| at.max(now)));
            return;
        }
        let id = ConnId(event.token);
        let Some(socket) = self.sockets.get(id) else { return };
        if event.write && !socket.writable {
            socket.writable = true;
            self.dirty.push(id);
        }
        if event.read {
            socket.readable = true;
            socket.ending |= event.ended;
            if !socket.listed {
                socket.listed = true;
                match socket.is_shaking() {
                    true => self.to_shake.push(id),
                    false => self.to_read.push(id),
                }
            }
        }
    }

    /// Connections that have fewer unanswered messages now: what was held back, then the socket.
    fn resume(&mut self, now: Micros) {
        let mut resumed = std::mem::take(&mut self.resumed);
        self.shell.enter(|engine| std::mem::swap(&mut resumed, &mut engine.effects.resumed));
        for id in resumed.drain(..) {
            let next = self.shell.enter(|engine| engine.on_resumed(id, now));
            if next == ReadNext::More
                && let Some(socket) = self.sockets.get(id)
                && socket.readable
                && !socket.listed
            {
                socket.listed = true;
                self.to_read.push(id);
            }
        }
        self.resumed = resumed;
    }

    fn read_all(&mut self, now: Micros) {
        if self.to_read.is_empty() {
            return;
        }
        std::mem::swap(&mut self.reading, &mut self.to_read);
        let mut reading = std::mem::take(&mut self.reading);
        let mut left = reading.drain(..);
        for (count, id) in left.by_ref().enumerate() {
            self.read(id, now);
            // Answers wait for the end of the turn: a thousand who all leave, or all sign in, are
            // read in several. The clock is looked at now and then, it costs as much as a message.
            if count % 32 == 31 && self.shell.now().since(now) > READ_US_MAX {
                break;
            }
        }
        if left.len() > 0 {
            // Those who have waited come before those who have more.
            let again = std::mem::take(&mut self.to_read);
            self.to_read.extend(left.by_ref().chain(again));
        }
        drop(left);
        self.reading = reading;
        let us = self.shell.now().since(now);
        self.shell.enter(|engine| engine.record_decode(us));
    }

    fn read(&mut self, id: ConnId, now: Micros) {
        let Some(socket) = self.sockets.get(id) else { return };
        socket.listed = false;
        if self.shell.enter(|engine| engine.is_paused(id)) {
            return;
        }
        if socket.layers.is_some() {
            self.read_layered(id, now);
            return;
        }
        for _ in 0..limits::READS_PER_TURN_MAX {
            match socket.receive(&mut self.scratch) {
                Moved::Bytes(n) => {
                    let input = &mut self.scratch[..n];
                    let next = self.shell.enter(|engine| engine.on_bytes(id, input, now));
                    if next == ReadNext::Pause || !socket.readable {
                        return;
                    }
                    // Only a client that fills the buffer comes here: the clock is not read for
                    // the others. Small frames cost far more than their bytes.
                    if self.shell.now().since(now) > READING_US_MAX {
                        break;
                    }
                }
                Moved::Later => return,
                Moved::Ended => {
                    if self.shell.enter(|engine| engine.on_end(id)) {
                        self.close(id);
                    }
                    return;
                }
            }
        }
        socket.listed = true;
        self.to_read.push(id);
    }

    fn start_calls(&mut self) {
        let mut calls = std::mem::take(&mut self.calls);
        self.shell.enter(|engine| std::mem::swap(&mut calls, &mut engine.effects.calls));
        for call in calls.drain(..) {
            let channel = self.channels.get(call.instance);
            channel.expect("the engine calls instances of its snapshots").send(call);
        }
        self.calls = calls;
    }

    /// One write for each connection with something new to say.
    fn flush_all(&mut self, now: Micros) {
        let mut dirty = std::mem::take(&mut self.dirty);
        self.shell.enter(|engine| dirty.append(&mut engine.effects.dirty));
        let count = dirty.len() as u64;
        for id in dirty.drain(..) {
            self.flush(id, now);
        }
        self.dirty = dirty;
        if count > 0 {
            let us = self.shell.now().since(now);
            self.shell.enter(|engine| engine.record_flush(us, count));
        }
    }

    fn flush(&mut self, id: ConnId, now: Micros) {
        let Some(socket) = self.sockets.get(id) else { return };
        if socket.layers.is_some() {
            self.flush_layered(id, now);
            return;
        }
        let fate = self.shell.enter(|engine| {
            let bytes = engine.outbox(id);
            let sent = match bytes.is_empty() || !socket.writable {
                true => 0,
                false => match socket.send(bytes) {
                    Moved::Bytes(n) => n,
                    Moved::Later => 0,
                    Moved::Ended => return Fate::Close,
                },
            };
            engine.on_sent(id, sent, now)
        });
        match fate {
            Fate::Keep => {}
            Fate::ShutWrite => socket.shut_write(),
            Fate::Close => self.close(id),
        }
    }

    fn close(&mut self, id: ConnId) {
        if let Some(mut socket) = self.sockets.remove(id) {
            say_goodbye(&mut socket, &mut self.cipher);
            socket.shut_write();
            // Bytes that nobody reads would turn the end into a reset, which can overtake the last
            // words. What has arrived is taken away, from a flooder no more than in a turn.
            for _ in 0..limits::READS_PER_TURN_MAX {
                let moved = socket.receive(&mut self.scratch);
                if !matches!(moved, Moved::Bytes(_)) || !socket.readable {
                    break;
                }
            }
        }
        self.shell.enter(|engine| engine.remove(id));
    }

    /// The orderly end: channels say goodbye, control hears of it.
    async fn end(mut self) {
        self.to_read.clear();
        self.to_shake.clear();
        self.channels.iter().for_each(|(_, channel)| channel.close());
        let give_up = Micros(self.shell.now().0 + CHANNELS_END_US);
        while self.shell.channels.get() > 0 && self.shell.now() < give_up {
            // The pulse comes each tick, so this wait ends.
            if self.wait().await.is_err() {
                break;
            }
            self.init.pulse.answer(self.shell.now());
        }
        // Who was handed over meanwhile is refused or told goodbye, not forgotten.
        let now = self.shell.now();
        self.take_handed(now);
        self.resume(now);
        let left = self.shell.enter(|engine| engine.say_goodbye(now));
        self.flush_all(now);
        for id in left {
            self.close(id);
        }
        let shard = self.init.engine.shard;
        let cut_off = self.shell.enter(|engine| engine.cut_off());
        self.tell(ShardEvent::Stopped { shard, cut_off }).await;
        // The lane would keep the sockets of who comes now until its last sender is gone.
        while self.init.handed.try_recv().is_some() {}
    }

    /// Tells control something that must arrive: again with each pulse while its lane is full.
    async fn tell(&mut self, mut event: ShardEvent) {
        loop {
            match self.init.events.try_send(event) {
                Ok(()) => return,
                Err(LaneRefusal::Full(back)) => event = back,
                Err(LaneRefusal::Closed(_)) => return,
            }
            poll_fn(|cx| self.poll_flags(cx)).await;
            self.init.pulse.answer(self.shell.now());
        }
    }
}
