//! Settings of one shard: `shards/default.toml` under `shards/N.toml`.

use std::time::Duration;

use super::SessionSettings;
use super::{EventSettings, GroupSettings, LimitSettings};

/// All settings of one shard.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardSettings {
    /// Core to pin the thread to; `None` = the N-th allowed core. Boot.
    pub core: Option<usize>,
    /// Time to spin before parking: for dedicated cores only. Boot.
    pub spin: Duration,
    /// Period of glommio's preempt timer: how long a busy shard may leave timers and wake-ups from
    /// other threads unseen. Sockets do not wait for it ([`crate::readiness`]). Boot.
    pub preempt: Duration,
    /// Longest time of a turn's reading of client sockets. Beside clients that flood, a message to
    /// a service waits for one and a half such times on average: for the turn that it finds under
    /// way, and for one between its call and its answer.
    pub read: Duration,
    /// Entries of each io_uring ring. Boot.
    pub ring_depth: usize,
    /// Connections, and limits of a single one.
    pub conn: ConnSettings,
    /// Limits of users and addresses.
    pub limits: LimitSettings,
    /// Sessions that outlive their connection.
    pub session: SessionSettings,
    /// Groups of clients.
    pub groups: GroupSettings,
    /// Events to services.
    pub events: EventSettings,
    /// Priority queue and admission.
    pub queue: QueueSettings,
    /// Batches and calls to services.
    pub batch: BatchSettings,
    /// Retries of failed calls.
    pub retry: RetrySettings,
    /// Deduplication of messages by their idempotency keys.
    pub dedup: DedupSettings,
    /// Cache of routing decisions.
    pub cache: CacheSettings,
    /// HTTP/2 connections to services.
    pub backend: BackendSettings,
}

/// Most connections of a shard by itself: as much as a large host has memory for.
const CONNECTIONS_AUTO_MAX: usize = 200_000;

/// Number of connections that a shard accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionsMax {
    /// As many as the limit of open files allows: this many, once that is known.
    Auto(usize),
    /// A number of the configuration.
    Set(usize),
}

impl ConnectionsMax {
    /// The number that was configured; `None` = "auto".
    pub(crate) fn of(configured: Option<usize>) -> Self {
        configured.map_or(Self::Auto(CONNECTIONS_AUTO_MAX), Self::Set)
    }

    /// The number.
    pub fn get(self) -> usize {
        match self {
            Self::Auto(max) | Self::Set(max) => max,
        }
    }

    /// The same, but at most `cap`.
    pub(crate) fn at_most(self, cap: usize) -> Self {
        match self {
            Self::Auto(max) => Self::Auto(max.min(cap)),
            Self::Set(max) => Self::Set(max.min(cap)),
        }
    }
}

/// The section `[conn]`: connections of clients.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnSettings {
    /// Connections of a shard. A further one is handed to a shard with room, or gets 503.
    pub connections_max: ConnectionsMax,
    /// Bytes of one message, its fragments joined.
    pub message_bytes_max: usize,
    /// Fragments of one message.
    pub fragments_max: u32,
    /// Bytes of the request line and the header fields of an upgrade request.
    pub header_bytes_max: usize,
    /// Header fields of an upgrade request.
    pub headers_max: usize,
    /// Time from accept to the end of the handshake.
    pub handshake_timeout_ms: u64,
    /// Silence after which a client is pinged; after twice this time without a frame the connection
    /// is closed with 4002.
    pub heartbeat_ms: u64,
    /// Bytes that may wait to be taken by one client, with those of large answers to come. At that
    /// it is not read; over it, and nothing taken for 1 s, or at four times as many, it is closed
    /// with 4001.
    pub outbox_bytes_max: usize,
    /// Longest time in which a client takes nothing although bytes wait; over it the connection is
    /// closed with 4001.
    pub write_timeout_ms: u64,
    /// Frames a second, of any kind; over it the connection is closed with 1008. 0 = no limit.
    pub frames_per_s_max: u32,
    /// Messages without an answer before reading pauses.
    pub unanswered_max: u32,
    /// Payload bytes without an answer before reading pauses.
    pub unanswered_bytes_max: usize,
    /// Bad messages in ten seconds before the connection is closed with 1008.
    pub bad_messages_max: u32,
    /// Time from the gateway's Close frame to the end of the TCP connection.
    pub close_timeout_ms: u64,
    /// Size of client sockets' send buffers (SO_SNDBUF); 0 = the kernel's choice.
    pub send_buffer_bytes: usize,
    /// Bytes that the kernel may hold unsent for a client that gets pushes (TCP_NOTSENT_LOWAT); 0 =
    /// the kernel's choice.
    pub notsent_bytes: u32,
}

/// The section `[queue]`: the priority queue and admission to it.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueSettings {
    /// Messages that may wait in a shard.
    pub items_max: usize,
    /// Payload bytes that may wait in a shard.
    pub bytes_max: usize,
    /// Largest share of both caps that one instance may take, in percent.
    pub instance_percent: u32,
    /// Fill in percent up to which each class is admitted: critical, high, normal, low.
    pub admit_percent: [u32; 4],
    /// Delay of each class in the virtual-deadline order (promise 3), in milliseconds.
    pub class_delay_ms: [u64; 4],
    /// Whether admission is by class; off = only the hard caps.
    pub backpressure: bool,
    /// Fill in percent at which `is_throttling` turns on.
    pub throttle_on_percent: u32,
    /// Fill in percent below which `is_throttling` turns off again.
    pub throttle_off_percent: u32,
}

/// The section `[batch]`: batches, and calls in flight.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchSettings {
    /// Most messages in a batch.
    pub items_max: usize,
    /// Most bytes in a batch.
    pub bytes_max: usize,
    /// Longest time that a message waits for others to share its batch while its instance is busy.
    pub window_ms: u64,
    /// Most batches in flight from a shard to an instance.
    pub in_flight_max: usize,
    /// Most batches in flight from a shard to an instance, long ones included.
    pub in_flight_long_max: usize,
    /// Batches in flight below which waiting messages leave at once.
    pub eager_max: usize,
    /// Most unary calls in flight from a shard to an instance.
    pub calls_max: usize,
}

/// The section `[retry]`: retries of failed calls.
#[derive(Clone, Debug, PartialEq)]
pub struct RetrySettings {
    /// Attempts within the deadline, the first included.
    pub attempts_max: u32,
    /// Wait before the second attempt; doubled each further time, jittered by +-20 %.
    pub delay_ms: u64,
    /// Longest wait between attempts.
    pub delay_max_ms: u64,
    /// Retries as a share of first attempts, in percent.
    pub budget_percent: u32,
}

/// The section `[dedup]`: the window of remembered ids.
#[derive(Clone, Debug, PartialEq)]
pub struct DedupSettings {
    /// Whether messages are deduplicated; off = ids are only passed on.
    pub enabled: bool,
    /// Time for which an id is remembered after its answer.
    pub window_ms: u64,
    /// Ids that a shard remembers.
    pub entries_max: usize,
    /// Bytes of keys and stored answers in a shard.
    pub bytes_max: usize,
    /// Largest answer that is stored; a duplicate of a message with a larger one gets DUPLICATE.
    pub reply_bytes_max: usize,
}

/// The section `[cache]`: the cache of routing decisions.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheSettings {
    /// Entries of a shard's cache.
    pub entries_max: usize,
    /// Time from insertion to expiry.
    pub ttl_ms: u64,
}

/// The section `[backend]`: HTTP/2 connections to services.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendSettings {
    /// Longest connection attempt, TCP and HTTP/2 preface.
    pub connect_timeout_ms: u64,
    /// First delay before a reconnection; x1.6 each time, +-20 % (gRPC connection-backoff.md).
    pub backoff_ms: u64,
    /// Longest delay before a reconnection.
    pub backoff_max_ms: u64,
    /// Time without a byte, while calls are in flight, after which a PING is sent; 0 = never.
    pub keepalive_ms: u64,
    /// Time after which a connection with an unanswered PING is closed.
    pub keepalive_timeout_ms: u64,
    /// Time after which the kernel ends a connection whose peer acknowledges nothing; 0 = the
    /// kernel's own time.
    pub tcp_user_timeout_ms: u64,
    /// Age at which a connection is replaced, +-10 %; 0 = never.
    pub age_max_ms: u64,
}

impl Default for ConnSettings {
    fn default() -> Self {
        Self {
            connections_max: ConnectionsMax::Auto(CONNECTIONS_AUTO_MAX),
            message_bytes_max: 64 << 10,
            fragments_max: crate::limits::FRAGMENTS_DEFAULT,
            header_bytes_max: 16 << 10,
            headers_max: 100,
            handshake_timeout_ms: 5_000,
            heartbeat_ms: 30_000,
            outbox_bytes_max: 1 << 20,
            write_timeout_ms: 10_000,
            frames_per_s_max: 0,
            unanswered_max: 32,
            unanswered_bytes_max: 1 << 20,
            bad_messages_max: 20,
            close_timeout_ms: 5_000,
            send_buffer_bytes: 0,
            notsent_bytes: 32 << 10,
        }
    }
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            items_max: 10_000,
            bytes_max: 64 << 20,
            instance_percent: 25,
            admit_percent: [100, 95, 85, 70],
            class_delay_ms: [0, 5, 50, 500],
            backpressure: true,
            throttle_on_percent: 70,
            throttle_off_percent: 50,
        }
    }
}

impl Default for BatchSettings {
    fn default() -> Self {
        Self {
            items_max: 100,
            bytes_max: crate::limits::BATCH_BYTES_CAP,
            window_ms: 10,
            in_flight_max: 10,
            in_flight_long_max: 100,
            eager_max: 4,
            calls_max: 100,
        }
    }
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self { attempts_max: 3, delay_ms: 100, delay_max_ms: 1_000, budget_percent: 20 }
    }
}

impl Default for DedupSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            window_ms: 60_000,
            entries_max: 100_000,
            bytes_max: 32 << 20,
            reply_bytes_max: 4 << 10,
        }
    }
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self { entries_max: 100_000, ttl_ms: 300_000 }
    }
}

impl Default for BackendSettings {
    fn default() -> Self {
        Self {
            connect_timeout_ms: 5_000,
            backoff_ms: 1_000,
            backoff_max_ms: 120_000,
            keepalive_ms: 300_000,
            keepalive_timeout_ms: 10_000,
            tcp_user_timeout_ms: 4_000,
            age_max_ms: 3_600_000,
        }
    }
}

impl Default for ShardSettings {
    fn default() -> Self {
        Self {
            core: None,
            spin: Duration::ZERO,
            preempt: Duration::from_millis(5),
            read: Duration::from_micros(500),
            ring_depth: 1024,
            conn: ConnSettings::default(),
            limits: LimitSettings::default(),
            session: SessionSettings::default(),
            groups: GroupSettings::default(),
            events: EventSettings::default(),
            queue: QueueSettings::default(),
            batch: BatchSettings::default(),
            retry: RetrySettings::default(),
            dedup: DedupSettings::default(),
            cache: CacheSettings::default(),
            backend: BackendSettings::default(),
        }
    }
}
