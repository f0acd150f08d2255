//! shardgate: a WebSocket gateway, one pinned thread a core. This page is the map of the source.
//!
//! What the gateway promises, its formats, its words and the reasons of its shape stand in
//! [`docs`]. How to work on it: `.github/CONTRIBUTING.md`.
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
//! The way of a message: [`shard::net`] reads what is ready; [`wire`] makes frames and messages of
//! it; [`engine`]`::inbound` classifies; `builtin` answers what is the gateway's own; everything
//! else goes through [`engine::dispatcher`]: `admission` (route, dedup, pick, let in), `queue`,
//! `calls` (in the body that `batch` wrote), and travels over [`backend::channel`]. Its outcome
//! comes back through `outcome` (answer, retry, move) and `answer` to [`engine::clients`], whose
//! `reply` writes it into the connection's outbox; the net loop writes that once a turn. Deadlines,
//! heartbeats, a reload and the end of a stop are `engine::turn`.
//!
//! The other way, a push comes from a caller at the doors of [`control::push`], from a service in
//! its answer (`engine::service_pushes`), or from a client (`engine::group_requests`). One for
//! sessions, users or all goes to the shards that those are on, where `clients::direct` writes it,
//! or lets it wait for a client that reads slowly. One for a group goes to the group's home shard
//! ([`engine::groups::home`]), which numbers it and tells the shards with members. There it is
//! encoded once into the group's log ([`engine::groups::log`]); a member is a place in that log,
//! and a flush (`clients::deliveries`) sends what lies behind that place. Shards tell each other of
//! groups over *deliver* lanes, whose items are [`engine::groups::lane`].
//!
//! A connection lives where it was accepted until its user is known; then on the user's home shard,
//! to which [`engine::clients::home`] and the shell take it at rest, with its socket, over a lane.
//! So what belongs to a user is on one core. What stands between a socket and the engine, a
//! balancer's header and TLS, is `shard::transport`; the limits of clients are
//! [`engine::clients::limits`].
//!
//! # Code map
//!
//! In the order of dependence; a module uses only those above its own line.
//!
//! - [`limits`] [`ids`] [`message`] [`push`] `plain` [`origin`] [`stats`] [`inspect`] [`mod@trace`]
//!   [`lanes`] [`mailbox`]: the vocabulary. Caps with their arithmetic, names, what moves, both
//!   ways, which characters people are shown, which web pages are let in, what is counted, an
//!   operator's queries, the steps of a turn, and all that two threads know of each other.
//! - [`routing`]: the immutable snapshot of services, instances, routes and rings, and the rule
//!   that picks an instance.
//! - [`config`]: files, environment and flags become checked settings, or every problem at once.
//! - [`wire`]: bytes only. Handshake, frames, JSON and protobuf envelopes, the service protocol.
//! - [`auth`]: tokens, verified against keys; neither clock nor socket.
//! - [`tls`]: TLS towards clients as bytes in and out, and towards services; certificates and
//!   their files.
//! - [`engine`]: a shard's state as a pure state machine. Events and the time in, effects out.
//! - [`readiness`]: the sockets of a shard in one epoll set, and how the shard waits for it.
//! - [`backend`]: gRPC over HTTP/2 to one instance. Calls in, one outcome each out, whatever
//!   happens to the connection.
//! - [`shard`]: the shell of an engine. Net loop, client sockets, pulse.
//! - [`control`]: the control thread. [`control::discovery`] finds instances, `fleet` and `health`
//!   judge them, `compose` makes snapshots of all that, `active_config` holds the configuration in
//!   force and reads the files again, `directory` puts all of it together; [`control::push`] has
//!   the doors of pushes and their receipts; admin endpoint, ordered stop, log. Never imports
//!   [`shard`].
//! - [`demo`] [`mod@echo`]: the demo services; the codec as an echo server, for conformance suites.
//! - [`mod@bench`]: the load generator, a client of any gateway. Knows the protocol and no more.
//! - `preflight`, `memory`, `clock`, [`boot`], [`cli`]: checks of this machine; memory that the
//!   caps of a configuration come to; the wall clock; start and stop; verbs, flags, exit codes.
//! - [`guide`]: pages for users, which the program shows, and the search in them.
//! - [`docs`]: pages about the whole, for those who work on it. No code.
//!
//! # The contract of the event loop
//!
//! An engine is driven by one loop. In production that is [`shard::net`], in the simulator
//! `tests/sim/shell.rs`; both keep to this order. Every event carries `now`, which never runs back.
//! The engine calls nobody: it leaves effects in lists that the loop takes and empties.
//!
//! A turn:
//!
//! 1. **Tick**: first [`on_pause`], if the shard was stopped since the last turn began. Then, if a
//!    pulse came (every 10 ms): [`record_stall`], [`set_wall_clock`] and [`tick`], which names
//!    connections to close at once. Take `effects.signals` and `effects.keys_wanted` for control;
//!    signals that control could not be given go back by [`return_signals`].
//! 2. **From other shards**: [`arrive`] for a connection that moves here, [`open`] for a fresh one.
//!    Then [`on_deliver`] for their items about groups, in the order of each, and [`on_submit`] for
//!    pushes and other work of control or of another shard.
//! 3. **Commands of control**: [`apply`] (the channels to new instances are opened before it, as
//!    calls may follow at once), [`report`], [`inspect`](engine::Engine::inspect), and [`drain`]
//!    (accept what waits before it, and nothing after it).
//! 4. **Accept**: while [`has_room`], [`open`]; or [`open_uncounted`], and [`introduce`] when the
//!    balancer has named the client. Without room the socket goes to another shard, or gets 503.
//! 5. **Resume**: take `effects.resumed`, and list each unless it [`is_paused`] again.
//! 6. **Read** the connections whose turn it is: allow [`work`](engine::Engine::work), and ask
//!    [`next_bytes`]. What the decoder held comes first, by [`on_resumed`]; then [`on_bytes`] with
//!    what was received, until it says `ReadNext::Pause`, the socket is empty or the work is spent.
//!    [`on_end`] when the client has ended: `true` means close now. A transport that broke (TLS, a
//!    balancer's header) is [`break_off`]. Then [`record_reading`]; [`record_unread`] where the
//!    kernel told since when bytes lay there.
//! 7. **End of the turn**: [`end_turn`], once, after all bytes: it checks tokens that waited and
//!    forms batches. If `effects.resumed` is not empty another turn follows without sleeping.
//! 8. **Calls**: take `effects.calls`; each goes to the channel of its instance.
//! 9. **Lanes**: take `effects.deliver`, and send each item to its shard, in order. What a lane
//!    refuses goes back by [`deliver_refused`], and so does all that is behind it for that shard.
//!    Take `effects.pushes`: the parts of one go to all of their shards, or to none. Take
//!    `effects.receipts` for control; those that find no room wait for the next turn.
//! 10. **Flush**: take `effects.dirty`, and add sockets that became writable. For each: write
//!     [`bytes_to_send`], tell [`on_sent`] how much the kernel took (0 is right, too), and do what
//!     it says: `SocketAction::Keep`, `ShutWrite` or `Close`. Then [`record_flush`]. The bytes are
//!     those of the outbox, or of the log of a group, from which nothing is copied; a transport
//!     that keeps what it was given (TLS) says so, and is shown the same bytes until they are sent.
//! 11. **Moves**: take `effects.moves`; [`depart`] gives the connection that leaves, or nothing if
//!     it cannot go yet. A lane that refuses it gives it back: [`move_refused`].
//! 12. **Sleep** until a socket is ready, a bell rings, or [`next_due`], which is at once while
//!     members of a group are still to be told.
//!
//! Between turns, from the tasks of the channels: [`on_link`] when a connection to an instance is
//! up or down, and [`on_outcome`] exactly once for each call. Their effects wait for the next turn,
//! which the loop is woken for.
//!
//! Whenever a socket is closed, for whatever reason, [`remove`] follows, once. An event for a
//! connection that is gone does nothing. A drain is complete when [`is_drained`]: the loop takes
//! what was handed over meanwhile (step 2), calls [`say_goodbye`], flushes, and
//! closes what it named.
//!
//! [`on_pause`]: engine::Engine::on_pause
//! [`record_stall`]: engine::Engine::record_stall
//! [`set_wall_clock`]: engine::Engine::set_wall_clock
//! [`tick`]: engine::Engine::tick
//! [`return_signals`]: engine::Engine::return_signals
//! [`arrive`]: engine::Engine::arrive
//! [`open`]: engine::Engine::open
//! [`apply`]: engine::Engine::apply
//! [`report`]: engine::Engine::report
//! [`drain`]: engine::Engine::drain
//! [`has_room`]: engine::Engine::has_room
//! [`open_uncounted`]: engine::Engine::open_uncounted
//! [`introduce`]: engine::Engine::introduce
//! [`on_resumed`]: engine::Engine::on_resumed
//! [`is_paused`]: engine::Engine::is_paused
//! [`on_bytes`]: engine::Engine::on_bytes
//! [`on_end`]: engine::Engine::on_end
//! [`break_off`]: engine::Engine::break_off
//! [`record_reading`]: engine::Engine::record_reading
//! [`record_unread`]: engine::Engine::record_unread
//! [`next_bytes`]: engine::Engine::next_bytes
//! [`end_turn`]: engine::Engine::end_turn
//! [`bytes_to_send`]: engine::Engine::bytes_to_send
//! [`on_deliver`]: engine::Engine::on_deliver
//! [`on_submit`]: engine::Engine::on_submit
//! [`deliver_refused`]: engine::Engine::deliver_refused
//! [`on_sent`]: engine::Engine::on_sent
//! [`record_flush`]: engine::Engine::record_flush
//! [`depart`]: engine::Engine::depart
//! [`move_refused`]: engine::Engine::move_refused
//! [`next_due`]: engine::Engine::next_due
//! [`on_link`]: engine::Engine::on_link
//! [`on_outcome`]: engine::Engine::on_outcome
//! [`remove`]: engine::Engine::remove
//! [`is_drained`]: engine::Engine::is_drained
//! [`say_goodbye`]: engine::Engine::say_goodbye
//!
//! # What is not there
//!
//! Rules that show only by what is absent. A change that breaks one breaks more than its own file.
//!
//! - **No clock, socket, await or randomness in the engine.** The time and a seed are passed in: so
//!   a seed replays a run (promise 11), and the simulator runs many engines in one thread.
//! - **No lock and no shared memory between shards.** Threads meet in bounded [`lanes`], in atomics
//!   that only ring or measure ([`lanes::Doorbell`], [`shard::pulse`]), and in immutable snapshots.
//!   A full lane gives the item back to its sender, or the loss is counted; it blocks no shard.
//! - **No copy of a group's push for a member.** What a member has to read is in the log of its
//!   group, what it has read is a number; so one that does not read costs nothing (promise 18).
//! - **No borrow of the engine across an await.** [`shard::Shell::enter`] takes a sync closure, and
//!   tasks keep ids, never references; an id whose slot was reused finds nothing.
//! - **No task a connection and none a message.** A connection is plain state in a slab; a shard's
//!   sockets are in one edge-triggered set, in which the thread blocks ([`readiness`]).
//! - **No cancelled task.** glommio 0.9 leaks it: tasks end because a flag or a closed socket tells
//!   them to. The same version can sleep with work to do, so the pulse wakes every shard.
//! - **No unbounded queue** (promise 5). Everything that grows has a cap in items, and in bytes
//!   where bytes can grow; what is over it is refused with a [`message::Reason`].
//! - **No message without its end** (promise 1). A message that was read with a seq above 0 gets
//!   exactly one terminal answer while its connection lives.
//! - **No second run by a retry of the gateway** (promise 7), except on routes that say
//!   `idempotent`: what is not known to be unstarted ends as [`message::Reason::OutcomeUnknown`].
//! - **No allocation a message in the steady state** (tests/it/allocations; a remembered id keeps
//!   its own), no payload parsed, none copied that can be borrowed; only the shell reads the clock.
//! - **No panic by remote input.** Bad bytes, late answers and unknown ids are values; a failed
//!   assertion of our own ends the process, as a half-true shard is worse than a restart.
//! - **No glommio except in [`shard`], [`readiness`] and [`backend::channel`], no tokio runtime
//!   except in [`control`] and [`demo`]**; so either can be replaced.

// The map names what is private, too: read it with `--document-private-items`.
#![allow(rustdoc::private_intra_doc_links)]

pub mod auth;
pub mod backend;
pub mod bench;
pub mod boot;
pub mod cli;
mod clock;
pub mod config;
pub mod control;
pub mod demo;
pub mod docs;
pub mod echo;
pub mod engine;
pub mod guide;
pub mod ids;
pub mod inspect;
pub mod lanes;
pub mod limits;
pub mod mailbox;
mod memory;
pub mod message;
pub mod origin;
pub mod peers;
mod plain;
mod preflight;
pub mod push;
pub mod readiness;
pub mod routing;
pub mod shard;
pub mod stats;
pub mod tls;
pub mod trace;
pub mod wire;
