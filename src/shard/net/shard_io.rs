//! The net loop's part in a turn: [`ShardIo`] over sockets, lanes and channels.

use std::io;

use rustix::time::{ClockId, clock_gettime};

use crate::engine::clients::conn::{ReadNext, SocketAction};
use crate::engine::groups::lane::Deliver;
use crate::engine::{Engine, work};
use crate::ids::{ConnId, InstanceId, ShardId};
use crate::lanes::{self, LaneRefusal};
use crate::mailbox::{Command, ShardConfig, ShardEvent};
use crate::message::{Call, Micros};
use crate::push::Submit;
use crate::shard::net::accept::AcceptedClient;
use crate::shard::net::{Handoff, Net};
use crate::shard::sockets::{IoResult, Socket};
use crate::shard::transport::Received;
use crate::shard::turn::{ReadOnce, Readiness, ShardIo, TurnState};
use crate::stats::Counter;
use crate::tls::session::{Failure, Handshake, Progress};
use crate::trace::Nanos;

/// Reads of a socket that is closed: 4 x 64 KiB.
const CLOSING_READS_MAX: u32 = 4;

impl ShardIo for Net {
    type Client = AcceptedClient;
    type Socket = Socket;

    #[inline]
    fn with<R>(&mut self, act: impl FnOnce(&mut Engine, &mut TurnState) -> R) -> R {
        let Self { shell, state, .. } = self;
        shell.enter(|engine| act(engine, state))
    }

    #[inline]
    fn state(&mut self) -> &mut TurnState {
        &mut self.state
    }

    fn now(&self) -> Micros {
        self.shell.now()
    }

    fn nanos(&self) -> Nanos {
        let ran = clock_gettime(ClockId::ThreadCPUTime);
        Nanos {
            passed: self.shell.elapsed().as_nanos() as u64,
            ran: ran.tv_sec as u64 * 1_000_000_000 + ran.tv_nsec as u64,
        }
    }

    #[inline]
    fn readiness(&mut self, id: ConnId) -> Option<&mut Readiness> {
        self.sockets.get(id).map(|socket| &mut socket.readiness)
    }

    fn is_handshaking(&mut self, id: ConnId) -> bool {
        self.sockets.get(id).is_some_and(|socket| socket.transport.is_handshaking())
    }

    #[inline]
    fn read_once(&mut self, id: ConnId, bytes_max: usize, now: Micros) -> ReadOnce {
        let Self { sockets, shell, scratch, plain, state, .. } = self;
        let Some(socket) = sockets.get(id) else { return ReadOnce::Enough };
        if socket.transport.has_ended() {
            return ReadOnce::Closed;
        }
        let (received, unread) = socket.receive(&mut scratch[..bytes_max]);
        let bytes = match received {
            IoResult::Bytes(n) => n,
            IoResult::WouldBlock | IoResult::Closed => 0,
        };
        shell.enter(|engine| {
            engine.work.charge(work::of_receive(bytes));
            if let Some(unread) = unread {
                engine.record_unread(unread.as_micros() as u64);
            }
        });
        let mut input = match received {
            IoResult::Bytes(n) => &mut scratch[..n],
            IoResult::WouldBlock => return ReadOnce::Enough,
            IoResult::Closed => {
                if socket.transport.is_handshaking() {
                    shell.enter(|engine| engine.count(Counter::TlsAbandoned, 1));
                }
                return ReadOnce::Closed;
            }
        };
        let next = loop {
            match socket.transport.receive(input, plain) {
                Received::Plain(bytes) => {
                    break shell.enter(|engine| engine.on_bytes(id, bytes, now));
                }
                Received::PartialHeader | Received::Ignored => break ReadNext::More,
                Received::Header { used, client } => {
                    input = &mut input[used..];
                    // The balancer's own connections, its health checks, count for no address.
                    let goes_on = client.is_none_or(|client| {
                        shell.enter(|engine| engine.introduce(id, client, now))
                    });
                    if !goes_on || input.is_empty() {
                        break ReadNext::More;
                    }
                }
                Received::HeaderRefused { why } => {
                    shell.enter(|engine| refuse_header(engine, id, why, now));
                    break ReadNext::More;
                }
                Received::Tls { plain, result } => {
                    if socket.transport.has_unsent() {
                        state.mark_dirty(id);
                    }
                    if result.is_ok_and(|progress| progress.ended) {
                        // No edge will tell of it.
                        socket.readiness.set_readable();
                    }
                    break shell.enter(|engine| on_records(engine, id, plain, result, now));
                }
            }
        };
        match next == ReadNext::Pause || !socket.readiness.is_readable() {
            true => ReadOnce::Enough,
            false => ReadOnce::Again,
        }
    }

    #[inline]
    fn flush(&mut self, id: ConnId, now: Micros) -> SocketAction {
        let Self { sockets, shell, cipher, .. } = self;
        let Some(socket) = sockets.get(id) else { return SocketAction::Keep };
        let is_copied = socket.transport.holds_on();
        shell.enter(|engine| match socket.send(engine.bytes_to_send(id, is_copied, now), cipher) {
            IoResult::Bytes(n) => engine.on_sent(id, n, now),
            IoResult::WouldBlock => engine.on_sent(id, 0, now),
            IoResult::Closed => SocketAction::Close,
        })
    }

    fn bound_unsent(&mut self, id: ConnId) {
        let bytes = self.settings.conn.notsent_bytes;
        if let Some(socket) = self.sockets.get(id).filter(|_| bytes > 0) {
            socket.bound_unsent(bytes);
        }
    }

    fn shut_write(&mut self, id: ConnId) {
        let Self { sockets, cipher, .. } = self;
        // With the kernel full the last record waits for room, and the next flush comes here again.
        if let Some(socket) = sockets.get(id)
            && socket.send_close_notify(cipher)
        {
            socket.shut_write();
        }
    }

    fn close_socket(&mut self, id: ConnId) {
        let Some(mut socket) = self.sockets.remove(id) else { return };
        socket.send_close_notify(&mut self.cipher);
        socket.shut_write();
        // Bytes that are never read would turn the end into a reset, which can overtake the last
        // bytes sent. Those that have arrived are read, from a flooder no more than its socket
        // holds by default (net.ipv4.tcp_rmem, 128 KiB) and as much again.
        for _ in 0..CLOSING_READS_MAX {
            let (received, _) = socket.receive(&mut self.scratch);
            if !matches!(received, IoResult::Bytes(_)) || !socket.readiness.is_readable() {
                break;
            }
        }
    }

    fn accept_all(&mut self, now: Micros) {
        self.accept_from_all(now);
    }

    fn stop_accepting(&mut self, now: Micros) {
        self.close_listeners(now);
    }

    fn has_room_for(&mut self, client: &AcceptedClient) -> bool {
        self.has_room_for_accepted(client)
    }

    fn open_connection(&mut self, client: AcceptedClient, now: Micros) -> Option<ConnId> {
        self.open_accepted(client, now)
    }

    fn take_socket(&mut self, id: ConnId) -> Socket {
        let socket = self.sockets.remove(id).expect("a connection has a socket");
        // The next edge belongs to the other shard.
        if let Err(error) = self.set.remove(&socket) {
            tracing::warn!(
                %error,
                "client_still_watched: a client moved, and its old shard still wakes for its bytes"
            );
        }
        socket
    }

    fn put_socket(&mut self, id: ConnId, socket: Socket) -> bool {
        // In the set first: bytes that arrive from here on make an edge, and those that arrived
        // before are read because the socket counts as ready.
        if let Err(error) = self.set.add(&socket, id.0) {
            warn_not_watched(&error);
            self.shell.enter(|engine| {
                engine.count(Counter::MoveLost, 1);
                engine.remove(id);
            });
            return false;
        }
        self.sockets.take_over(id, socket);
        true
    }

    fn discard_socket(&mut self, socket: Socket) {
        drop(socket);
    }

    fn send_handoff(&mut self, to: ShardId, handoff: Handoff) -> Result<(), LaneRefusal<Handoff>> {
        self.lanes.shards[usize::from(to.0)].try_send(handoff)
    }

    fn next_handoff(&mut self) -> Option<Handoff> {
        self.lanes.handed.try_recv()
    }

    fn send_deliver(&mut self, to: ShardId, item: Deliver) -> Result<(), LaneRefusal<Deliver>> {
        self.lanes.delivers[usize::from(to.0)].try_send(item)
    }

    fn next_deliver(&mut self) -> Option<Deliver> {
        self.lanes.delivered.try_recv()
    }

    fn delivers_waiting(&self) -> usize {
        self.lanes.delivered.len()
    }

    fn send_pushes(&mut self, pushes: Vec<(ShardId, Submit)>) -> bool {
        lanes::send_to_all(&self.lanes.pushes, pushes)
    }

    fn next_submit(&mut self) -> Option<Submit> {
        self.lanes.submitted.try_recv()
    }

    fn next_command(&mut self) -> Option<Command> {
        self.lanes.commands.try_recv()
    }

    fn try_send_event(&mut self, event: ShardEvent) -> Result<(), LaneRefusal<ShardEvent>> {
        self.lanes.events.try_send(event)
    }

    fn ring(&mut self) {
        self.lanes.bell.ring();
    }

    fn apply(&mut self, published: &ShardConfig) {
        self.tls.clone_from(&published.tls);
        self.gateway.clone_from(&published.gateway);
        let backend = &published.settings.backend;
        if self.settings.backend != *backend {
            self.channels.iter().for_each(|(_, channel)| channel.configure(backend));
        }
        self.settings.clone_from(&published.settings);
        self.secure_channels(published);
        // Calls may go to new instances as soon as the engine knows them.
        self.open_channels(&published.snapshot);
    }

    fn start_calls(&mut self, calls: &mut Vec<Call>) {
        for call in calls.drain(..) {
            let channel = self.channels.get(call.instance);
            channel.expect("the engine calls instances of its snapshots").send(call);
        }
    }

    fn ask(&mut self, instance: InstanceId) {
        // It may be gone since.
        if let Some(channel) = self.channels.get(instance) {
            channel.ask();
        }
    }

    fn socket_bytes(&self) -> usize {
        self.sockets.memory_bytes()
    }
}

/// Gives the engine the plaintext of TLS records, and counts what they came to.
fn on_records(
    engine: &mut Engine,
    id: ConnId,
    plain: &mut [u8],
    result: Result<Progress, Failure>,
    now: Micros,
) -> ReadNext {
    if let Ok(progress) = &result {
        engine.work.charge(work::of_records(progress.records, plain.len()));
    }
    let next = match plain.is_empty() {
        true => ReadNext::More,
        false => engine.on_bytes(id, plain, now),
    };
    match result {
        Ok(progress) => {
            match progress.handshake {
                None => {}
                Some(Handshake::Full) => engine.count(Counter::TlsHandshakes, 1),
                Some(Handshake::Resumed) => engine.count(Counter::TlsResumed, 1),
            }
            next
        }
        Err(failure) => {
            if let Some((peer, count)) = engine.break_off(id, counter(failure), now) {
                let why = failure.text();
                tracing::warn!(%peer, why, count, "tls_failed: TLS with a client cannot go on");
            }
            ReadNext::More
        }
    }
}

/// Ends a connection that does not begin with a PROXY header.
fn refuse_header(engine: &mut Engine, id: ConnId, why: &str, now: Micros) {
    if let Some((peer, count)) = engine.break_off(id, Counter::ProxyRefused, now) {
        tracing::warn!(
            %peer,
            why,
            count,
            "proxy_refused: a connection of a balancer in proxy.from has no PROXY header; let it \
             send one, or take its address out"
        );
    }
}

/// Logs that the socket of a client cannot be put in the set, so that it is closed.
pub(super) fn warn_not_watched(error: &io::Error) {
    tracing::warn!(
        %error,
        "client_not_watched: a client is cut off; raise sysctl fs.epoll.max_user_watches"
    );
}

fn counter(failure: Failure) -> Counter {
    match failure {
        Failure::NotTls => Counter::TlsFailedNotTls,
        Failure::Incompatible => Counter::TlsFailedIncompatible,
        Failure::Name => Counter::TlsFailedName,
        Failure::Protocol => Counter::TlsFailedProtocol,
        Failure::Certificate => Counter::TlsFailedCertificate,
        Failure::Alert => Counter::TlsFailedAlert,
        Failure::Broken => Counter::TlsFailedBroken,
    }
}
