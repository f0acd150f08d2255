//! A link: one HTTP/2 connection of a channel, from connecting over ready and draining to its end.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, Reason, SendStream};
use http::Request;
use http::uri::Scheme;

use crate::config::settings::BackendSettings;
use crate::readiness::Registry;

use super::io::{Io, Socket};
use super::request::Requests;
use super::signals::{LinkFlag, Signals};
use super::stream::Stream;
use crate::message::{CallBody, Micros};
use crate::tls::service::ServiceTls;

/// Streams on a connection whose server sets no limit; calls wait for its SETTINGS. RFC 9113 6.5.2
/// recommends 100 as the least.
const STREAMS_ASSUMED: usize = 100;
/// Receive window of a stream: most responses arrive without waiting for a WINDOW_UPDATE.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// Receive window of a connection: 8 streams' worth. It also gives h2's budget for small DATA
/// frames (half of it).
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Largest header list of a response.
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
/// Streams that may be reset from this side in a connection's life because the server broke a rule.
/// h2's default of 1,024 is a limit against attackers, and time-outs reach it; a million an hour
/// (the default age of a connection) is 277 a second.
const LOCAL_RESETS_MAX: usize = 1_000_000;
/// Streams that are reset from this side and remembered for a second, so that late frames for them
/// are dropped quietly: all calls of a channel may time out at once.
const RESET_STREAMS_MAX: usize = super::signals::SLOTS;

/// Most PINGs because of a suspicion, or for the owner (one of them), without an answer to a call
/// between them: gRPC servers forgive two, and end the connection at the third (gRFC A8).
const SUSPICIONS_MAX: u32 = 2;

/// Time that a call must have had to make its link suspect: a second. A client's shorter deadline
/// passes while a busy service is well.
const SUSPECT_AFTER_US: u64 = 1_000_000;

/// Number of a link within its channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LinkId(pub(super) u32);

/// Phase in the life of a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// The server's SETTINGS have not arrived.
    Connecting,
    /// The link takes calls.
    Ready,
    /// The link finishes its calls and takes no more.
    Draining,
}

/// The doubt whether the peer of a link that is [`Phase::Ready`] lives: see [`Link::suspect`]. No
/// call is sent while there is one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Doubt {
    /// There is none.
    None,
    /// A PING asked the peer at this time.
    Asked(Micros),
    /// It has had time for an answer, and the owner was told that the link is silent.
    Told,
}

/// Place to connect to.
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    /// TLS towards it; `None` = none.
    pub(super) tls: Option<Arc<ServiceTls>>,
}

impl Peer {
    /// Heads of requests for it.
    fn requests(&self) -> Requests {
        match &self.tls {
            None => Requests::new(Scheme::HTTP, self.address.to_string()),
            Some(tls) => Requests::new(Scheme::HTTPS, tls.authority(self.address)),
        }
    }
}

/// An HTTP/2 connection, or the reason in words why there is none.
type Opened = Result<(SendRequest<CallBody>, Connection<Stream, CallBody>), String>;

enum Stage {
    Opening(Pin<Box<dyn Future<Output = Opened>>>),
    Open { connection: Box<Connection<Stream, CallBody>>, pings: Option<PingPong> },
    Over,
}

/// Result of a poll of a link. Several fields may be set.
#[derive(Default, Debug)]
pub(super) struct Progress {
    /// Whether the server's SETTINGS arrived.
    pub(super) ready: bool,
    /// Whether our PING was answered.
    pub(super) pong: bool,
    /// Whether a byte has come that the owner asked for.
    pub(super) alive: bool,
    /// Whether a byte has come on a link whose owner was told that it is silent.
    pub(super) heard_again: bool,
    /// The GOAWAY that arrived.
    pub(super) going_away: Option<GoingAway>,
    /// The end, if the connection is over.
    pub(super) over: Option<Over>,
}

/// The end of a connection, or of an attempt.
#[derive(Debug)]
pub(super) struct Over {
    /// Reason, for the log.
    pub(super) why: String,
    /// Whether the peer closed it and nothing failed.
    pub(super) is_clean: bool,
}

impl Over {
    /// An end by a failure.
    pub(super) fn failed(why: impl Into<String>) -> Self {
        Self { why: why.into(), is_clean: false }
    }
}

/// A GOAWAY that was received.
#[derive(Debug)]
pub(super) struct GoingAway {
    /// Reason, for the log.
    pub(super) why: String,
    /// Whether it was ENHANCE_YOUR_CALM: the load is too high for the server, by default because of
    /// our pings.
    pub(super) calm: bool,
}

pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) address: SocketAddr,
    pub(super) phase: Phase,
    /// Calls in flight on the link.
    pub(super) streams: usize,
    /// Whether the service said that it closes the link (GOAWAY).
    pub(super) is_going_away: bool,
    /// Time when the link is given up: an attempt that is still [`Phase::Connecting`], or a drained
    /// connection that is not closed.
    pub(super) finish_by: Micros,
    /// Time when the link became ready.
    pub(super) ready_at: Micros,
    /// Time to replace the link; `u64::MAX` = never.
    pub(super) replace_at: Micros,
    /// Time from which silence counts: the last byte read, or the first call on an idle link.
    pub(super) silent_since: Micros,
    pub(super) doubt: Doubt,
    /// PINGs because of a suspicion, or for the owner, since the last answer to a call.
    suspicions: u32,
    /// Whether the owner waits for a byte: see [`Link::ask`].
    asked: bool,
    /// Time when the unanswered PING was sent.
    pub(super) pinged_at: Option<Micros>,
    stage: Stage,
    send: Option<SendRequest<CallBody>>,
    /// Whether it is a connection with TLS.
    is_secured: bool,
    /// Heads of requests: a connection with TLS has another scheme and authority.
    pub(super) requests: Requests,
    socket: Rc<RefCell<Socket>>,
    flag: Arc<LinkFlag>,
    waker: Waker,
    bytes_seen: u64,
}

impl Link {
    /// Starts to connect to an address of the instance.
    pub(super) fn connect(
        id: LinkId,
        peer: Peer,
        registry: &Registry,
        signals: &Arc<Signals>,
        now: Micros,
        settings: &BackendSettings,
    ) -> std::io::Result<Self> {
        let BackendSettings { connect_timeout_ms, tcp_user_timeout_ms, .. } = *settings;
        let socket = Socket::connect(peer.address, registry, tcp_user_timeout_ms)?;
        let socket = Rc::new(RefCell::new(socket));
        let mut builder = Builder::new();
        builder
            .enable_push(false)
            .initial_max_send_streams(STREAMS_ASSUMED)
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEADER_LIST_BYTES_MAX)
            .max_concurrent_reset_streams(RESET_STREAMS_MAX)
            .max_local_error_reset_streams(Some(LOCAL_RESETS_MAX));
        let io = Io(Rc::clone(&socket));
        let (is_secured, requests, address) = (peer.tls.is_some(), peer.requests(), peer.address);
        let opening = async move {
            let stream = match peer.tls {
                None => Stream::plain(io),
                Some(tls) => Stream::secured(io, tls, peer.address).await?,
            };
            builder.handshake(stream).await.map_err(|e| e.to_string())
        };
        let flag = LinkFlag::new(Arc::clone(signals));
        Ok(Self {
            id,
            address,
            phase: Phase::Connecting,
            streams: 0,
            is_going_away: false,
            finish_by: now.plus_ms(connect_timeout_ms),
            ready_at: now,
            replace_at: Micros(u64::MAX),
            silent_since: now,
            doubt: Doubt::None,
            suspicions: 0,
            asked: false,
            pinged_at: None,
            stage: Stage::Opening(Box::pin(opening)),
            send: None,
            is_secured,
            requests,
            socket,
            waker: Waker::from(Arc::clone(&flag)),
            flag,
            bytes_seen: 0,
        })
    }

    /// Clears the mark; returns whether the link was marked to be polled.
    pub(super) fn take_mark(&self) -> bool {
        self.flag.take()
    }

    /// Whether the link is marked to be polled.
    pub(super) fn is_marked(&self) -> bool {
        self.flag.is_set()
    }

    /// Polls the connection: reads, handles frames, writes.
    pub(super) fn poll(&mut self, now: Micros) -> Progress {
        let mut progress = Progress::default();
        self.socket.borrow_mut().refill();
        let waker = self.waker.clone();
        let mut cx = Context::from_waker(&waker);
        if let Stage::Opening(opening) = &mut self.stage {
            match opening.as_mut().poll(&mut cx) {
                Poll::Pending => return progress,
                Poll::Ready(Err(why)) => {
                    // The alert that tells the service why.
                    self.send_gathered();
                    progress.over = Some(self.end(Over::failed(why)));
                    return progress;
                }
                Poll::Ready(Ok((send, mut connection))) => {
                    let pings = connection.ping_pong();
                    self.send = Some(send);
                    self.stage = Stage::Open { connection: Box::new(connection), pings };
                }
            }
        }
        let Stage::Open { connection, pings } = &mut self.stage else {
            return progress;
        };
        let ended = match Pin::new(&mut **connection).poll(&mut cx) {
            Poll::Pending => None,
            Poll::Ready(Ok(())) => {
                Some(Over { why: "closed by the service".to_owned(), is_clean: true })
            }
            Poll::Ready(Err(e)) => Some(Over::failed(e.to_string())),
        };
        if let (Some(pings), Some(_)) = (pings, self.pinged_at)
            && pings.poll_pong(&mut cx).is_ready()
        {
            self.pinged_at = None;
            progress.pong = true;
        }
        self.note_bytes_read(now, &mut progress);
        progress.over = ended.map(|over| self.end(over));
        progress
    }

    /// Notes the changes that the bytes read have made.
    fn note_bytes_read(&mut self, now: Micros, progress: &mut Progress) {
        let (bytes, has_settings) = {
            let socket = self.socket.borrow();
            (socket.bytes_read(), socket.has_settings())
        };
        if bytes == self.bytes_seen {
            return;
        }
        self.bytes_seen = bytes;
        self.silent_since = now;
        progress.alive = std::mem::take(&mut self.asked);
        progress.heard_again = self.doubt == Doubt::Told;
        self.doubt = Doubt::None;
        if self.phase == Phase::Connecting && has_settings {
            progress.ready = true;
        }
        if self.phase != Phase::Draining {
            progress.going_away = self.check_sender();
            self.is_going_away |= progress.going_away.is_some();
        }
    }

    /// Asks whether GOAWAY arrived. h2 does not report it otherwise: it refuses new streams from
    /// then on.
    fn check_sender(&mut self) -> Option<GoingAway> {
        let send = self.send.as_mut()?;
        match send.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Err(e)) if e.is_go_away() && e.is_remote() => Some(GoingAway {
                calm: e.reason() == Some(Reason::ENHANCE_YOUR_CALM),
                why: e.to_string(),
            }),
            // Of faults that h2 finds itself, and of those of the socket, the connection tells.
            Poll::Ready(Ok(()) | Err(_)) | Poll::Pending => None,
        }
    }

    /// Changes the time after which the kernel gives up a peer that acknowledges nothing.
    pub(super) fn set_user_timeout(&self, timeout_ms: u64) {
        self.socket.borrow().set_user_timeout(timeout_ms);
    }

    fn end(&mut self, over: Over) -> Over {
        self.send = None;
        let socket = self.socket.borrow();
        let failure = socket.failure();
        // A peer may cut the connection before the first system call on it, which then says so.
        let is_cut = failure.map_or(over.is_clean, |f| {
            matches!(f.kind, io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected)
        });
        if is_cut && self.phase == Phase::Connecting {
            // A side that finds no TLS, or finds it, where the other was expected may say nothing.
            return Over::failed(match (&self.stage, self.is_secured) {
                (_, false) => {
                    "closed before its first frame; if it speaks TLS, set tls of the service"
                }
                (Stage::Opening(_), true) => {
                    "TLS: it closed the connection in the handshake; does it speak TLS?"
                }
                (Stage::Open { .. } | Stage::Over, true) => {
                    "TLS: it closed the connection after the handshake; if it wants a client \
                     certificate, set tls.cert_file and tls.key_file"
                }
            });
        }
        failure.map_or(over, |failure| Over::failed(&*failure.why))
    }

    /// Drops the connection itself; h2 then fails every stream on it.
    pub(super) fn cut(&mut self) {
        self.send = None;
        self.stage = Stage::Over;
    }

    /// Sends the bytes that the turn gathered.
    pub(super) fn send_gathered(&mut self) {
        let mut cx = Context::from_waker(&self.waker);
        match self.socket.borrow_mut().poll_send(&mut cx) {
            Poll::Pending | Poll::Ready(Ok(())) => {}
            // The connection's next read or write meets the same failure and ends it.
            Poll::Ready(Err(_)) => self.flag.mark(),
        }
    }

    /// Whether one more call may start. h2 counts a reset stream until its RST_STREAM is written,
    /// so h2 is asked as well: beyond its count it would queue one stream and refuse the next.
    pub(super) fn has_room(&mut self) -> bool {
        let Some(send) = &mut self.send else {
            return false;
        };
        let mut cx = Context::from_waker(Waker::noop());
        self.phase == Phase::Ready
            && self.doubt == Doubt::None
            && self.streams < send.current_max_send_streams()
            && matches!(send.poll_ready(&mut cx), Poll::Ready(Ok(())))
    }

    /// Opens a stream. After an error no byte of it was sent.
    pub(super) fn open(
        &mut self,
        head: Request<()>,
        now: Micros,
    ) -> Result<(ResponseFuture, SendStream<CallBody>), Option<h2::Error>> {
        let send = self.send.as_mut().ok_or(None)?;
        let streams = send.send_request(head, false).map_err(Some)?;
        if self.streams == 0 {
            self.silent_since = self.silent_since.max(now);
        }
        self.streams += 1;
        Ok(streams)
    }

    /// Lets the link take no more calls; when the last one has ended the connection is closed with
    /// GOAWAY. Called again at that moment, to allow the closing its time.
    pub(super) fn drain(&mut self, now: Micros, timeout_ms: u64) {
        self.phase = Phase::Draining;
        self.doubt = Doubt::None;
        self.finish_by = now.plus_ms(timeout_ms);
        // h2 closes a connection that has neither streams nor a sender.
        self.send = None;
        self.flag.mark();
    }

    /// Takes note that a call that was sent at `sent` got no answer in its time. If it had a
    /// second, and not a byte has come since, the peer may be dead or stopped: a PING asks it, and
    /// no more calls are sent until a byte comes. True: that is so from now on.
    pub(super) fn suspect(&mut self, sent: Micros, now: Micros) -> bool {
        let is_silent = self.silent_since <= sent && now.since(sent) >= SUSPECT_AFTER_US;
        let may_ask = self.doubt == Doubt::None && self.suspicions < SUSPICIONS_MAX;
        if self.phase != Phase::Ready || !is_silent || !may_ask {
            return false;
        }
        self.suspicions += 1;
        self.doubt = Doubt::Asked(now);
        if self.pinged_at.is_none() {
            self.ping(now);
        }
        true
    }

    /// Has the next byte of the peer told to the owner, and asks for one by a PING. Not while it
    /// has no calls, nor again and again without an answer to one: see [`SUSPICIONS_MAX`]. A link
    /// that is draining is asked, too: the long calls may all be on it, and h2 sends PINGs as long
    /// as there are streams.
    pub(super) fn ask(&mut self, now: Micros) {
        // Before the server's SETTINGS there are none.
        if self.streams == 0 {
            return;
        }
        self.asked = true;
        // One is left for a suspicion.
        if self.pinged_at.is_none() && self.suspicions + 1 < SUSPICIONS_MAX {
            self.suspicions += 1;
            self.ping(now);
        }
    }

    /// Takes note that a call was answered on the link.
    pub(super) fn answered(&mut self) {
        self.suspicions = 0;
    }

    /// Sends a keepalive PING.
    pub(super) fn ping(&mut self, now: Micros) {
        if let Stage::Open { pings: Some(pings), .. } = &mut self.stage
            && pings.send_ping(Ping::opaque()).is_ok()
        {
            self.pinged_at = Some(now);
            self.flag.mark();
        }
    }
}
