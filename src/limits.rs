//! Caps that are part of the program, with their arithmetic. Settings that an operator may tune are
//! in `config`; the caps here bound them, and bound the work that a peer can cause.

use std::time::Duration;

/// Instances of all services: every shard keeps a connection to each.
pub(crate) const INSTANCES_MAX: usize = 4096;
/// Points on all rings together: 2^20 of 16 bytes are 16 MiB, hashed and sorted in a fraction of a
/// second whenever instances change.
pub(crate) const RING_POINTS_MAX: u64 = 1 << 20;

/// Largest number of tenants. Each shard has counters and a place in its queues for each, so that
/// 1,000 on 64 shards are 64,000 of each.
pub(crate) const TENANTS_MAX: usize = 1_000;
/// Largest value of a tenant at a discovery source: more than 100 routes with every key set.
pub(crate) const TENANT_BYTES_MAX: usize = 64 << 10;

/// Most shards of a process. ShardId is a u16; 1,024 cores is more than any host of today.
pub(crate) const SHARDS_MAX: usize = 1024;

/// Largest message, its fragments joined, that can be configured: 16 MiB, which the Autobahn suite
/// needs. The default is 64 KiB.
pub(crate) const MESSAGE_BYTES_CAP: usize = 16 << 20;

/// Fragments of one message, by default. A message of the default 64 KiB in 64 pieces has 1 KiB a
/// piece; smaller pieces only cost the gateway work.
pub(crate) const FRAGMENTS_DEFAULT: u32 = 64;

/// Empty lines that a client may send in front of its request. One is what clients did that ended
/// the body of a POST with a line of its own (RFC 9112 section 2.2); 16 are few bytes to look at
/// again with each that arrives.
pub(crate) const EMPTY_LINES_MAX: usize = 16;
/// Bytes of the request target in a handshake.
pub(crate) const HANDSHAKE_TARGET_BYTES_MAX: usize = 2 << 10;

/// Bytes of `id`, the idempotency key of a message.
pub(crate) const ID_BYTES_MAX: usize = 64;
/// Bytes of `key`, the affinity key of a message.
pub(crate) const KEY_BYTES_MAX: usize = 128;
/// Bytes of `type`. The longest known type has 9; a longer one is unknown in any case.
pub(crate) const TYPE_BYTES_MAX: usize = 32;
/// Largest seq: 2^53 - 1, the largest integer that a JavaScript number holds exactly.
pub(crate) const SEQ_MAX: u64 = (1 << 53) - 1;
/// Nesting of arrays and objects in a JSON message. Deeper ones are sent to exhaust a parser's
/// stack.
pub(crate) const JSON_DEPTH_MAX: usize = 64;

/// Bytes read from a socket by one call: the size of a shard's scratch buffer. 64 KiB is one full
/// default message, and the most that one skb chain on loopback carries.
pub(crate) const READ_SCRATCH_BYTES: usize = 64 << 10;
/// Events taken out of the readiness set by one call.
pub(crate) const EVENTS_PER_WAIT: usize = 1024;
/// Connections accepted in one turn of a shard, so that many new connections do not delay the
/// messages of the others.
pub(crate) const ACCEPTS_PER_TURN_MAX: usize = 64;
/// Pause after an accept that found no file descriptor left: to try again at once does not cure
/// that. 100 ms, where NATS waits up to 1 s.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Items taken from one lane in one turn.
pub(crate) const LANE_BUDGET: usize = 256;

/// Connections that may wait in the lane to a shard, from all others: as many as one turn accepts.
pub(crate) const HANDOFF_ITEMS_MAX: usize = ACCEPTS_PER_TURN_MAX;
/// Pushes that may wait in the lane to a shard, of control and all shards: as many as a turn takes.
pub(crate) const PUSH_ITEMS_MAX: usize = LANE_BUDGET;
/// Items about groups that may wait in the lane to a shard, from all others: 16 turns of them. Each
/// item may have several pushes, and what finds no room is told later.
pub(crate) const DELIVER_ITEMS_MAX: usize = 16 * LANE_BUDGET;
/// Commands of the control thread that may wait at one shard. It sends a handful a second.
pub(crate) const MAILBOX_ITEMS_MAX: usize = 64;

/// Events of a shard that may wait at the control thread: a report, the last event at the stop, and
/// signals of some ticks.
pub(crate) const EVENTS_PER_SHARD_MAX: usize = 16;

/// Connections at once of the admin endpoint, and as many of the probes. More than anybody needs:
/// as many idle sockets keep nobody out.
pub(crate) const ADMIN_CONNECTIONS_MAX: usize = 512;
/// Connections that wait to be accepted by a shard, by the admin endpoint or by the probes. The
/// kernel cuts it to net.core.somaxconn.
pub(crate) const BACKLOG: i32 = 4096;

/// Messages of one batch that can be configured.
pub(crate) const BATCH_ITEMS_CAP: usize = 1000;
/// Bytes of one batch: 1 MiB, a quarter of gRPC's default limit of 4 MiB for a received message.
pub(crate) const BATCH_BYTES_CAP: usize = 1 << 20;
/// Bytes of answers that a batch is filled for, as far as their sizes are known: gRPC's own default
/// limit of a message. Larger answers are taken: see [`answer_bytes_max`].
pub(crate) const ANSWERS_BYTES_AIM: usize = 4 << 20;
/// Most bytes of a service's answer to one call, whatever is configured: 1 GiB.
pub(crate) const ANSWER_BYTES_CAP: usize = 1 << 30;

/// Most bytes of a service's answer to a call of `items` messages: as much as the outboxes of all
/// its receivers can take, so that no answer is lost because the others of its batch are large too.
/// At least the largest message, so that one answer that is too large for its receiver does not
/// cost the others theirs.
pub(crate) fn answer_bytes_max(items: usize, outbox_bytes_max: usize) -> usize {
    let room = items.saturating_mul(outbox_bytes_max.saturating_add(ANSWER_OVERHEAD_BYTES));
    room.clamp(MESSAGE_BYTES_CAP + ANSWER_OVERHEAD_BYTES, ANSWER_BYTES_CAP)
}

/// Most messages of a batch by the same rule: their answers are below [`ANSWER_BYTES_CAP`] however
/// large they are.
pub(crate) fn receivers_max(outbox_bytes_max: usize) -> usize {
    (ANSWER_BYTES_CAP / outbox_bytes_max.saturating_add(ANSWER_OVERHEAD_BYTES)).max(1)
}

/// Bytes of an answer in a batch besides its payload: ids, status, and a service's error text.
const ANSWER_OVERHEAD_BYTES: usize = 4 << 10;
/// Size up to which an answer is light: 4 KiB, of which 1,000 (the largest batch) are 4 MiB.
pub(crate) const LIGHT_ANSWER_BYTES: usize = 4 << 10;
/// Payloads of at least this many bytes travel by reference, smaller ones are copied into the
/// batch: a copy of 1 KiB costs some 20 ns, an atomic reference count and another chunk as much.
pub(crate) const PAYLOAD_BY_REFERENCE_BYTES: usize = 1 << 10;
/// Attempts to send a message within one deadline, at most: gRFC A6 caps maxAttempts at 5.
pub(crate) const ATTEMPTS_MAX: u32 = 5;

/// Longest timeout of a message that can be configured: 10 minutes.
pub(crate) const TIMEOUT_MS_MAX: u32 = 600_000;

/// Longest time between two ticks of a shard, in which deadlines, windows and heartbeats are
/// checked.
pub const TICK_MS: u64 = 10;
/// Time between two turns of a shard from which it counts as stopped in between (SIGSTOP, a frozen
/// cgroup, a core that was taken away): 25 ticks. A shard that has work is back within a few
/// milliseconds, and one without is woken by each tick.
pub const PAUSE_MS: u64 = 250;
/// Time after a pause in which a shard reads what the kernel took meanwhile, and judges nobody by
/// time or rate: 1 s. A turn reads some 2,500 small messages in its 500 us.
pub const CATCH_UP_MS: u64 = 1_000;

const _: () = assert!(SHARDS_MAX <= 1 << 16);
const _: () = assert!(BATCH_BYTES_CAP * 4 <= ANSWERS_BYTES_AIM);
const _: () = assert!(LIGHT_ANSWER_BYTES * BATCH_ITEMS_CAP <= ANSWERS_BYTES_AIM);
const _: () = assert!(PAYLOAD_BY_REFERENCE_BYTES <= BATCH_BYTES_CAP);

/// Memory that a shard's executor registers with each of its rings for direct I/O, which sockets do
/// not use: 64 KiB, the least that glommio takes. Its default of 10 MiB would pin 3 x 10 = 30 MiB a
/// shard.
pub(crate) const IO_MEMORY_BYTES: usize = 64 << 10;
/// Rings of a glommio executor: main, latency and poll.
pub(crate) const RINGS: u64 = 3;
/// Kernel memory of a ring for each entry: 64 bytes of submission, 2 x 16 of completions, 4 of
/// index.
pub(crate) const RING_ENTRY_BYTES: u64 = 100;
