//! Caps that are part of the program, with their arithmetic. What an operator may tune is in
//! `config`; these bound what can be tuned, and what a peer can make us do.

/// Instances of all services: every shard keeps a connection to each.
pub const INSTANCES_MAX: usize = 4096;
/// Points on all rings together: 2^20 of 16 bytes are 16 MiB, hashed and sorted in a fraction of a
/// second whenever instances change.
pub const RING_POINTS_MAX: u64 = 1 << 20;

/// Shards a process can have. ShardId is a u16; 1,024 cores is more than any host of today.
pub const SHARDS_MAX: usize = 1024;

/// Bytes of one message (after fragments are joined) that can be configured: 16 MiB, which the
/// Autobahn suite needs. The default is 64 KiB.
pub const MESSAGE_BYTES_CAP: usize = 16 << 20;

/// Fragments of one message. A message of the default 64 KiB in 64 pieces is 1 KiB a piece; who
/// sends more than that many pieces sends them to make us work.
pub const FRAGMENTS_DEFAULT: u32 = 64;

/// Handshake: bytes of request line and headers, and number of headers.
pub const HANDSHAKE_BYTES_MAX: usize = 8 << 10;
/// Header fields in a handshake. Browsers send about 15.
pub const HANDSHAKE_HEADERS_MAX: usize = 64;
/// Bytes of the request target in a handshake.
pub const HANDSHAKE_TARGET_BYTES_MAX: usize = 2 << 10;

/// Bytes of `id`, the idempotency key of a message.
pub const ID_BYTES_MAX: usize = 64;
/// Bytes of `key`, the affinity key of a message.
pub const KEY_BYTES_MAX: usize = 128;
/// Bytes of `type`. The longest known one has 9; a longer one cannot be one of ours.
pub const TYPE_BYTES_MAX: usize = 32;
/// The largest seq: 2^53 - 1, the largest integer that a JavaScript number holds exactly.
pub const SEQ_MAX: u64 = (1 << 53) - 1;
/// Nesting of arrays and objects in a JSON message. Deep ones exist to exhaust a parser's stack.
pub const JSON_DEPTH_MAX: usize = 64;

/// Bytes read from one socket in one go: a shard's scratch buffer. 64 KiB is one full default
/// message, and what one skb chain on loopback carries.
pub const READ_SCRATCH_BYTES: usize = 64 << 10;
/// Times one connection is read in one turn before the next has its chance: 4 x 64 KiB.
pub const READS_PER_TURN_MAX: u32 = 4;
/// Sockets taken out of the readiness set at once.
pub const EVENTS_PER_WAIT: usize = 1024;
/// Connections accepted in one turn of a shard, so that a connect storm does not stop the talkers.
pub const ACCEPTS_PER_TURN_MAX: usize = 64;
/// Items taken from one lane in one turn.
pub const LANE_BUDGET: usize = 256;

/// Clients that may wait to be taken over from one shard by another: one turn's accepts.
pub const HANDOFF_ITEMS_MAX: usize = ACCEPTS_PER_TURN_MAX;
/// Commands control may have waiting at one shard. It sends a handful a second.
pub const MAILBOX_ITEMS_MAX: usize = 64;

/// Events a shard may have waiting at control: a report, a last word, and signals of some ticks.
pub const EVENTS_PER_SHARD_MAX: usize = 16;

/// Messages in one batch that can be configured, and bytes of its body.
pub const BATCH_ITEMS_CAP: usize = 1000;
/// Bytes of one batch: 1 MiB, a quarter of gRPC's default limit of 4 MiB for a received message.
pub const BATCH_BYTES_CAP: usize = 1 << 20;
/// Bytes of a service's answer to one call: gRPC's own default limit.
pub const RESPONSE_BYTES_MAX: usize = 4 << 20;
/// Payloads of at least this many bytes travel by reference, smaller ones are copied into the
/// batch: a copy of 1 KiB costs some 20 ns, an atomic reference count and another chunk as much.
pub const PAYLOAD_BY_REFERENCE_BYTES: usize = 1 << 10;
/// Sent to a service within one deadline, at most: gRFC A6 caps maxAttempts at 5.
pub const ATTEMPTS_MAX: u32 = 5;

/// A message may not wait longer than this for its answer, whatever is configured: 10 minutes.
pub const TIMEOUT_MS_MAX: u32 = 600_000;

/// Coarsest tick of a shard: deadlines, windows and heartbeats are looked at this often.
pub const TICK_MS: u64 = 10;

const _: () = assert!(SHARDS_MAX <= 1 << 16);
const _: () = assert!(BATCH_BYTES_CAP * 4 <= RESPONSE_BYTES_MAX);
const _: () = assert!(HANDSHAKE_BYTES_MAX <= READ_SCRATCH_BYTES);
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
