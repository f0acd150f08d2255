//! Accepting clients, and what makes a connection of one.

use std::net::{SocketAddr, TcpStream};

use crate::engine::clients::limits::OpenRefusal;
use crate::ids::ConnId;
use crate::limits;
use crate::mailbox::Port;
use crate::message::Micros;
use crate::shard::net::shard_io::warn_not_watched;
use crate::shard::net::{Backlog, Net};
use crate::shard::sockets::{Accepted, accept};
use crate::shard::timers::Timer;
use crate::shard::transport::Transport;
use crate::shard::turn;
use crate::stats::Counter;
use crate::tls::session::Session;
use crate::wire::handshake;

/// A client that was accepted and has no connection yet.
#[derive(Debug)]
pub(crate) struct AcceptedClient {
    stream: TcpStream,
    /// Address of the other end, which may be a balancer.
    peer: SocketAddr,
    /// Whether the client connected to the plain listener or to the one for TLS.
    port: Port,
}

impl Net {
    /// Accepts clients who wait, up to a turn's budget, of which each listener has its share: a
    /// flood at one does not close the other.
    pub(super) fn accept_from_all(&mut self, now: Micros) {
        let share = limits::ACCEPTS_PER_TURN_MAX / self.listeners.len().max(1);
        for index in 0..self.listeners.len() {
            if self.listeners[index].backlog == Backlog::Waiting {
                self.accept_from(index, share, now);
            }
        }
    }

    fn accept_from(&mut self, index: usize, budget: usize, now: Micros) {
        let send_buffer = self.settings.conn.send_buffer_bytes;
        for _ in 0..budget {
            let listener = &mut self.listeners[index];
            let port = listener.port;
            match accept(&listener.socket, send_buffer) {
                Accepted::Client(stream, peer) => {
                    turn::take_in(self, AcceptedClient { stream, peer, port }, now);
                }
                Accepted::WouldBlock => {
                    listener.backlog = Backlog::Empty;
                    return;
                }
                Accepted::Aborted => {
                    self.shell.enter(|engine| engine.count(Counter::AcceptFailed, 1));
                }
                Accepted::Exhausted(error) => {
                    let first = self.shell.enter(|engine| {
                        engine.count(Counter::AcceptFailed, 1);
                        engine.note_exhausted(now)
                    });
                    if first {
                        tracing::warn!(
                            %error,
                            "accept_failed: a shard cannot accept a client; raise `ulimit -n` \
                             (LimitNOFILE)"
                        );
                    }
                    listener.backlog = Backlog::Paused;
                    let at = now.plus_ms(limits::ACCEPT_PAUSE.as_millis() as u64);
                    self.state.timers().set(Timer::Accept(index).number(), at);
                    return;
                }
            }
        }
        // More may wait, and the edge is spent.
        self.shell.poke();
    }

    /// Whether `peer` is a balancer, whose connections begin with a PROXY header.
    fn is_proxy(&self, peer: SocketAddr) -> bool {
        self.gateway.proxies.has(peer.ip())
    }

    /// Whether there is room for a client. The address of a client behind a balancer is not known
    /// yet.
    pub(super) fn has_room_for_accepted(&self, client: &AcceptedClient) -> bool {
        self.shell.enter(|engine| match self.is_proxy(client.peer) {
            true => engine.has_room(),
            false => engine.has_room_for(client.peer.ip()),
        })
    }

    /// Makes a connection of a client, or refuses the client.
    pub(super) fn open_accepted(&mut self, client: AcceptedClient, now: Micros) -> Option<ConnId> {
        let AcceptedClient { stream, peer, port } = client;
        let is_proxied = self.is_proxy(peer);
        // A balancer is not charged for its clients: their addresses come with the header.
        let opened = self.shell.enter(|engine| match is_proxied {
            true => engine.open_uncounted(peer, now),
            false => engine.open(peer, now),
        });
        let id = match opened {
            Ok(id) => id,
            Err(refusal) => {
                match port {
                    Port::Plain if !is_proxied => refuse(&stream, &refusal),
                    // Before the header and the TLS handshake there is nothing to answer but the
                    // end.
                    Port::Plain | Port::Tls => {}
                }
                return None;
            }
        };
        let session = match port {
            Port::Plain => None,
            Port::Tls => match self.tls.as_deref().map(Session::new) {
                Some(Ok(session)) => Some(session),
                Some(Err(_)) | None => {
                    self.shell.enter(|engine| {
                        engine.count(Counter::AcceptFailed, 1);
                        engine.remove(id);
                    });
                    return None;
                }
            },
        };
        if let Err(error) = self.set.add(&stream, id.0) {
            warn_not_watched(&error);
            self.shell.enter(|engine| engine.remove(id));
            return None;
        }
        self.sockets.insert(id, stream, Transport::new(is_proxied, session));
        Some(id)
    }

    /// Closes the listeners. Clients who wait in their queues are accepted first, so that the
    /// engine answers them.
    pub(super) fn close_listeners(&mut self, now: Micros) {
        for listener in &mut self.listeners {
            listener.backlog = Backlog::Waiting;
        }
        // A flood may hold more than one turn takes; the backlog ends it.
        while self.listeners.iter().any(|listener| listener.backlog == Backlog::Waiting) {
            self.accept_from_all(now);
        }
        for (index, _) in self.listeners.drain(..).enumerate() {
            self.state.timers().clear(Timer::Accept(index).number());
        }
    }
}

/// Answers a client that is refused. Tried once: nothing that it sent must be answered.
fn refuse(stream: &std::net::TcpStream, refusal: &OpenRefusal) {
    let OpenRefusal { status, text, retry_after_ms } = *refusal;
    let response = handshake::refuse_for(status, text, retry_after_ms);
    let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
    let _ = rustix::net::send(stream, &response, flags);
    let _ = stream.shutdown(std::net::Shutdown::Write);
}
