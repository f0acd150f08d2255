//! shardgate: a WebSocket gateway, one pinned thread a core. This page is the map of the source.
//!
//! # Bird's eye
//!
//! A client holds one WebSocket and sends messages that carry an id. The gateway finds the service
//! that owns the id, picks an instance by consistent hashing, queues the message by priority, sends
//! it over gRPC in a batch with others, and gives the one answer back.
//!
//! ```text
//!  kernel      SO_REUSEPORT: one listener a shard, the kernel spreads the connections
//!    |
//!  shard 0 .. N-1   one pinned thread each, nothing shared         control       pulse
//!  +-----------------------------------------------------+      +-----------+  +-----------+
//!  | shell (glommio): net loop, one task a channel       |<-----| commands  |  | every     |
//!  |   bytes, time -> +----------------------+           |      | snapshots |  | 10 ms: a  |
//!  |                  | engine: pure, sync   |           |----->| reports   |  | wake-up   |
//!  |   effects     <- +----------------------+           |      | admin HTTP|  +-----------+
//!  |   one HTTP/2 connection an instance                 |      +-----------+
//!  +-----------------------------------------------------+
//!                     |
//!                 services (the demo ones run in a thread of this process)
//! ```
//!
//! A message's way: [`shard::net`] reads what is ready; [`wire`] makes frames and messages of it;
//! [`engine`]`::inbound` classifies; `builtin` answers what is the gateway's own; everything else
//! goes through [`engine::dispatcher`]: `admission` (route, dedup, pick, let in), `queue`, `calls`
//! (in the body that `batch` wrote), and travels over [`backend::channel`]. Its outcome comes back
//! through `outcome` (answer, retry, move) and `answer` to [`engine::clients`], whose `reply`
//! writes it into the connection's outbox; the net loop writes that once a turn. Deadlines,
//! heartbeats, a reload and the end of a stop are `engine::turn`.
//!
//! A connection lives where it was accepted until its user is known; then on the user's home shard,
//! to which [`engine::clients::home`] and the shell take it at rest, with its socket, over a lane.
//! So what belongs to a user is on one core. What stands between a socket and the engine, a
//! balancer's header and TLS, is [`shard::layers`]; the limits of clients are
//! [`engine::clients::limits`].
//!
//! # Code map
//!
//! In the order of dependence; a module uses only those above its own line.
//!
//! - [`limits`] [`ids`] [`message`] [`stats`] [`inspect`] [`lanes`] [`mailbox`]: the vocabulary.
//!   Caps with their arithmetic, names, what moves, what is counted, an operator's queries, all
//!   that two threads know of each other.
//! - [`config`]: files, environment, flags -> checked settings and an immutable
//!   [`routing::Snapshot`], or every problem at once.
//! - [`wire`]: bytes only. Handshake, frames, JSON and protobuf envelopes, the service protocol.
//! - [`auth`]: who a client is. Tokens, verified against keys; neither clock nor socket.
//! - [`tls`]: TLS towards clients as bytes in and out; certificates and their files.
//! - [`engine`]: a shard's state as a pure state machine. Events and the time in, effects out.
//! - [`readiness`]: the sockets of a shard in one epoll set, and how the shard waits for it.
//! - [`backend`]: gRPC over HTTP/2 to one instance. Calls in, outcomes out, whatever the connection
//!   does meanwhile.
//! - [`shard`]: the shell of an engine. Net loop, client sockets, pulse.
//! - [`control`]: the control thread. [`control::discovery`] finds instances, `fleet` and `health`
//!   judge them, `compose` makes snapshots of all that, `active_config` holds the configuration in
//!   force and reads the files again, `directory` puts all of it together; admin endpoint, ordered
//!   stop, log. Never imports [`shard`].
//! - [`demo`] [`mod@echo`]: the demo services; the codec as an echo server, for conformance suites.
//! - `preflight`, `memory`, `clock`, [`boot`], [`cli`]: checks of this machine; memory that the
//!   caps of a configuration come to; the wall clock; start and stop; verbs, flags, exit codes.
//!
//! # What is not there
//!
//! Rules that show only by what is absent. Whoever breaks one breaks more than the file at hand.
//!
//! - **No clock, socket, await or randomness in the engine.** It is told the time and given a seed:
//!   so a seed replays a run, and the simulator runs many engines in one thread.
//! - **No lock and no shared memory between shards.** Threads meet in bounded [`lanes`], in atomics
//!   that only ring or measure ([`lanes::Doorbell`], [`shard::pulse`]), and in immutable snapshots.
//!   A full lane gives the item back to its sender, or the loss is counted; it blocks no shard.
//! - **No borrow of the engine across an await.** [`shard::Shell::enter`] takes a sync closure, and
//!   tasks keep ids, never references; an id whose slot has a new tenant finds nothing.
//! - **No task a connection and none a message.** A connection is plain state in a slab; a shard's
//!   sockets are in one edge-triggered set, whose descriptor the ring watches ([`readiness`]).
//! - **No cancelled task.** glommio 0.9 leaks it: tasks end because a flag or a closed socket tells
//!   them to. The same version can sleep with work to do, so the pulse wakes every shard.
//! - **No unbounded queue.** Everything that grows has a cap in items, and in bytes where bytes can
//!   grow; what is over it is refused with a [`message::Reason`].
//! - **No message without its end.** What was read with a seq above 0 gets exactly one terminal
//!   answer while its connection lives.
//! - **No second run by a retry of ours**, but on routes that say `idempotent`: what is not known
//!   to be unstarted ends as [`message::Reason::OutcomeUnknown`].
//! - **No allocation a message in the steady state**, no payload parsed, none copied that can be
//!   borrowed; only the shell reads the clock.
//! - **No panic by remote input.** Bad bytes, late answers and unknown ids are values; a failed
//!   assertion of our own ends the process, as a half-true shard is worse than a restart.
//! - **No glommio but in [`shard`], [`readiness`] and [`backend::channel`], no tokio runtime but in
//!   [`control`] and [`demo`]**; so either can be replaced.

pub mod auth;
pub mod backend;
pub mod boot;
pub mod cli;
mod clock;
pub mod config;
pub mod control;
pub mod demo;
pub mod echo;
pub mod engine;
pub mod ids;
pub mod inspect;
pub mod lanes;
pub mod limits;
pub mod mailbox;
mod memory;
pub mod message;
mod preflight;
pub mod readiness;
pub mod routing;
pub mod shard;
pub mod stats;
pub mod tls;
pub mod wire;
