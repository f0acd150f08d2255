//! The checked settings: what the rest of the program reads. Plain numbers, immutable once made.
//! Every default stands here, once; `config::raw` names the keys, `config::check` holds the rules.

mod auth;
mod limits;
mod tls;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

pub use auth::{Algorithm, AuthKey, AuthMode, AuthSettings, KeySource, Tenants};
pub use limits::{LimitSettings, PartyLimits};
pub use tls::{ClientCertificates, TlsCertificate, TlsSettings, TlsVersion};

/// A token or password: shown nowhere, by no `{:?}` of what holds it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// What it is: only for where it is sent or compared.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

/// Process-wide settings (`shards/gateway.toml`).
#[derive(Clone, Debug, PartialEq)]
pub struct GatewaySettings {
    /// Where clients connect without TLS; `None` = nowhere. Boot.
    pub listen: Option<SocketAddr>,
    /// TLS towards clients.
    pub tls: TlsSettings,
    /// Whose connections begin with a PROXY protocol header. Live.
    pub proxies: Vec<IpNet>,
    /// Path of the upgrade request. Boot.
    pub path: String,
    /// Name of this node in `welcome` and to services. Boot.
    pub node: String,
    /// Admin endpoint. Boot.
    pub admin: AdminSettings,
    /// Shards; `None` = one for each allowed core, less one from 4 cores up. Boot.
    pub shards: Option<usize>,
    /// Allowed `Origin` values (scheme://host[:port], exact, lower case); empty = the request's own
    /// host only. A request without `Origin` passes. Live.
    pub origins: Vec<String>,
    /// Ids answered by the gateway itself, first and last. Live.
    pub gateway_ids: (u32, u32),
    /// Whether id 9003 explains routes to clients. Live.
    pub explain_to_clients: bool,
    /// Whether the demo services run in this process. Boot.
    pub demo: DemoSettings,
    /// How it stops. Live.
    pub stop: StopSettings,
    /// Where instances come from besides the files.
    pub discovery: DiscoverySettings,
    /// When an instance is trusted with messages. Live.
    pub health: HealthSettings,
    /// Who clients are. Live, but for `tenants`.
    pub auth: AuthSettings,
    /// Default log filter, e.g. `info`. Live.
    pub log: String,
    /// Log lines as JSON. Boot.
    pub log_json: bool,
}

/// `[admin]`. Boot.
#[derive(Clone, Debug, PartialEq)]
pub struct AdminSettings {
    /// Where it listens. Not on a loopback address only with TLS and a token (checked).
    pub listen: SocketAddr,
    /// What a caller that changes something must show; `None` = of `token_file`, or made up.
    pub token: Option<Secret>,
    /// File that holds the token, or gets the one made up.
    pub token_file: Option<PathBuf>,
    /// Certificate chain, PEM; together with `tls_key`.
    pub tls_cert: Option<PathBuf>,
    /// Private key, PEM.
    pub tls_key: Option<PathBuf>,
}

/// `[stop]`. Live.
#[derive(Clone, Debug, PartialEq)]
pub struct StopSettings {
    /// Time from the first stop signal to the end, in which read messages are answered.
    pub grace: Duration,
    /// Connections are closed evenly over this time, so that they do not all come back at once.
    pub spread: Duration,
    /// Clients are told to come back after this, plus up to as much again by chance.
    pub reconnect: Duration,
}

/// `[discovery]`, `[dns]`, `[etcd]`, `[registry]`. Boot, but for `debounce` and the registry's
/// callers.
#[derive(Clone, Debug, PartialEq)]
pub struct DiscoverySettings {
    /// Changes that come within this time of the first are published together. Live.
    pub debounce: Duration,
    /// Name servers; empty = those of the system.
    pub dns_servers: Vec<SocketAddr>,
    /// etcd, if it is used.
    pub etcd: Option<EtcdSettings>,
    /// The gRPC registry, if it is served.
    pub registry: Option<RegistrySettings>,
}

/// `[etcd]`
#[derive(Clone, Debug, PartialEq)]
pub struct EtcdSettings {
    /// `http://host:port` or `https://host:port`, tried in turn. Never empty.
    pub endpoints: Vec<String>,
    /// Keys are `<prefix>/services/<service>/<instance>` and `<prefix>/routes/<name>`.
    pub prefix: String,
    /// User; empty = no authentication.
    pub user: String,
    /// Its password, or in `password_file`.
    pub password: Option<Secret>,
    /// File that holds the password.
    pub password_file: Option<PathBuf>,
    /// Certificates that sign the servers' ones, PEM; `None` = those of the system.
    pub ca_file: Option<PathBuf>,
    /// Client certificate, PEM; together with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// Its key, PEM.
    pub key_file: Option<PathBuf>,
}

/// `[registry]` and `[[registry_token]]`
#[derive(Clone, Debug, PartialEq)]
pub struct RegistrySettings {
    /// Where services register themselves. Boot.
    pub listen: SocketAddr,
    /// Certificate chain, PEM; together with `tls_key`. Boot.
    pub tls_cert: Option<PathBuf>,
    /// Private key, PEM. Boot.
    pub tls_key: Option<PathBuf>,
    /// Who may register what. Never empty. Live.
    pub callers: Vec<RegistryCaller>,
}

/// One that may register instances.
#[derive(Clone, Debug, PartialEq)]
pub struct RegistryCaller {
    /// Name in logs.
    pub name: Arc<str>,
    /// Its token, or in `token_file`.
    pub token: Option<Secret>,
    /// File that holds the token.
    pub token_file: Option<PathBuf>,
    /// Services whose instances it may change.
    pub services: Vec<Arc<str>>,
}

/// `[health]` and `[ejection]`. Live.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthSettings {
    /// Between two checks (grpc.health.v1) of an instance, give or take 10 %; zero = never.
    pub check_every: Duration,
    /// A check without an answer for this long has failed.
    pub check_timeout: Duration,
    /// Checks in a row that have to succeed before one that is down is up.
    pub up_after: u32,
    /// Checks in a row that have to fail before one that is up is down.
    pub down_after: u32,
    /// With fewer healthy instances of a service than this, in percent, all are used.
    pub panic_percent: u32,
    /// Time in which an instance that is back gets its keys again, step by step; zero = at once.
    pub slow_start: Duration,
    /// Failed calls in a row before an instance is ejected; 0 = never.
    pub eject_after: u32,
    /// Connections lost by one shard within `eject` before it is ejected; 0 = never.
    pub eject_losses: u32,
    /// Length of the first ejection; each further one is longer by as much …
    pub eject: Duration,
    /// … up to this.
    pub eject_max: Duration,
    /// Share of a service's instances that may be ejected at once, in percent; one of two may be
    /// in any case unless this is 0.
    pub ejected_percent_max: u32,
    /// Share of its keys that an instance gets on trial, in percent.
    pub trial_percent: u32,
    /// A trial without a failure ends after this.
    pub trial: Duration,
}

/// The embedded demo services (`[demo]`).
#[derive(Clone, Debug, PartialEq)]
pub struct DemoSettings {
    /// Run them in this process.
    pub enabled: bool,
    /// Addresses of logic, chat and fight.
    pub addresses: [SocketAddr; 3],
}

/// One shard's settings (`shards/default.toml` under `shards/N.toml`).
#[derive(Clone, Debug, PartialEq)]
pub struct ShardSettings {
    /// Core to pin to; `None` = the N-th allowed core. Boot.
    pub core: Option<usize>,
    /// Spin this long before parking: for dedicated cores only. Boot.
    pub spin: Duration,
    /// glommio's preempt timer: how long a busy shard may leave timers and wake-ups from other
    /// threads unseen. Sockets do not wait for it ([`crate::readiness`]). Boot.
    pub preempt: Duration,
    /// io_uring entries a ring. Boot.
    pub ring_depth: usize,
    /// Connections and what one client may do.
    pub conn: ConnSettings,
    /// How much users and addresses may do.
    pub limits: LimitSettings,
    /// Priority queue and admission.
    pub queue: QueueSettings,
    /// Batches.
    pub batch: BatchSettings,
    /// Retries.
    pub retry: RetrySettings,
    /// Deduplication.
    pub dedup: DedupSettings,
    /// Route cache.
    pub cache: CacheSettings,
    /// HTTP/2 connections to services.
    pub backend: BackendSettings,
}

/// `[conn]`
#[derive(Clone, Debug, PartialEq)]
pub struct ConnSettings {
    /// Connections a shard; one over it goes to a shard with room, or gets 503.
    pub connections_max: usize,
    /// Bytes of one message, joined.
    pub message_bytes_max: usize,
    /// Fragments of one message.
    pub fragments_max: u32,
    /// From accept to the end of the handshake.
    pub handshake_timeout_ms: u64,
    /// Clients must send something this often; twice this without a frame closes with 4002.
    pub heartbeat_ms: u64,
    /// Bytes waiting to be taken by one client; over it: close 4001.
    pub outbox_bytes_max: usize,
    /// Longest time in which a client takes nothing although bytes wait; over it: close 4001.
    pub write_timeout_ms: u64,
    /// Frames a second of any kind; over it the connection is closed with 1008. 0 = no limit.
    pub frames_per_s_max: u32,
    /// Messages without an answer before reading pauses.
    pub unanswered_max: u32,
    /// Payload bytes without an answer before reading pauses.
    pub unanswered_bytes_max: usize,
    /// Bad messages in ten seconds before the connection is closed with 1008.
    pub bad_messages_max: u32,
    /// From our Close frame to the end of TCP.
    pub close_timeout_ms: u64,
    /// SO_SNDBUF of client sockets; 0 = the kernel's choice.
    pub send_buffer_bytes: usize,
}

/// `[queue]`
#[derive(Clone, Debug, PartialEq)]
pub struct QueueSettings {
    /// Messages waiting, a shard.
    pub items_max: usize,
    /// Payload bytes waiting, a shard.
    pub bytes_max: usize,
    /// Largest share of either that one instance may hold, in percent.
    pub instance_percent: u32,
    /// Fill in percent up to which a class is admitted: critical, high, normal, low.
    pub admit_percent: [u32; 4],
    /// Class delays of the virtual-deadline order, in milliseconds.
    pub class_delay_ms: [u64; 4],
    /// Admission by class; off = only the hard caps.
    pub backpressure: bool,
    /// `is_throttling` turns on at this fill in percent …
    pub throttle_on_percent: u32,
    /// … and off again below this one.
    pub throttle_off_percent: u32,
}

/// `[batch]`
#[derive(Clone, Debug, PartialEq)]
pub struct BatchSettings {
    /// Messages a batch.
    pub items_max: usize,
    /// Bytes a batch.
    pub bytes_max: usize,
    /// Longest time a message waits for company while its instance is busy.
    pub window_ms: u64,
    /// Batches in flight an instance and shard.
    pub in_flight_max: usize,
    /// With fewer than this many in flight, what waits leaves at once.
    pub eager_max: usize,
    /// Unary calls in flight an instance and shard.
    pub calls_max: usize,
}

/// `[retry]`
#[derive(Clone, Debug, PartialEq)]
pub struct RetrySettings {
    /// Attempts within the deadline, the first included.
    pub attempts_max: u32,
    /// Wait before the second attempt; doubled each time, jittered by +-20 %.
    pub delay_ms: u64,
    /// Longest wait between attempts.
    pub delay_max_ms: u64,
    /// Retries as a share of first attempts, in percent.
    pub budget_percent: u32,
}

/// `[dedup]`
#[derive(Clone, Debug, PartialEq)]
pub struct DedupSettings {
    /// Off: ids are passed on and not looked at.
    pub enabled: bool,
    /// How long an id is remembered after its answer.
    pub window_ms: u64,
    /// Ids remembered, a shard.
    pub entries_max: usize,
    /// Bytes of keys and stored answers, a shard.
    pub bytes_max: usize,
    /// Answers up to this size are stored; a duplicate of a larger one gets DUPLICATE.
    pub reply_bytes_max: usize,
}

/// `[cache]`
#[derive(Clone, Debug, PartialEq)]
pub struct CacheSettings {
    /// Entries, a shard.
    pub entries_max: usize,
    /// Time from insertion to expiry.
    pub ttl_ms: u64,
}

/// `[backend]`
#[derive(Clone, Debug, PartialEq)]
pub struct BackendSettings {
    /// Longest connection attempt, TCP and HTTP/2 preface.
    pub connect_timeout_ms: u64,
    /// First reconnect delay; x1.6 each time, +-20 % (gRPC connection-backoff.md).
    pub backoff_ms: u64,
    /// Longest reconnect delay.
    pub backoff_max_ms: u64,
    /// PING after this long without a byte while calls are in flight; 0 = never.
    pub keepalive_ms: u64,
    /// Close if a PING is not answered in this time.
    pub keepalive_timeout_ms: u64,
    /// Replace a connection at this age, +-10 %; 0 = never.
    pub age_max_ms: u64,
}

impl Default for ConnSettings {
    fn default() -> Self {
        Self {
            connections_max: 200_000,
            message_bytes_max: 64 << 10,
            fragments_max: crate::limits::FRAGMENTS_DEFAULT,
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
            keepalive_ms: 20_000,
            keepalive_timeout_ms: 10_000,
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
            ring_depth: 1024,
            conn: ConnSettings::default(),
            limits: LimitSettings::default(),
            queue: QueueSettings::default(),
            batch: BatchSettings::default(),
            retry: RetrySettings::default(),
            dedup: DedupSettings::default(),
            cache: CacheSettings::default(),
            backend: BackendSettings::default(),
        }
    }
}

impl Default for DemoSettings {
    fn default() -> Self {
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self { enabled: true, addresses: [local(50001), local(50002), local(50003)] }
    }
}

impl Default for AdminSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8000)),
            token: None,
            token_file: None,
            tls_cert: None,
            tls_key: None,
        }
    }
}

impl Default for StopSettings {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(10),
            spread: Duration::ZERO,
            reconnect: Duration::from_secs(1),
        }
    }
}

impl Default for DiscoverySettings {
    fn default() -> Self {
        Self {
            debounce: Duration::from_millis(100),
            dns_servers: Vec::new(),
            etcd: None,
            registry: None,
        }
    }
}

impl Default for HealthSettings {
    fn default() -> Self {
        Self {
            check_every: Duration::from_secs(30),
            check_timeout: Duration::from_secs(5),
            up_after: 2,
            down_after: 3,
            panic_percent: 50,
            slow_start: Duration::from_secs(10),
            eject_after: 5,
            eject_losses: 3,
            eject: Duration::from_secs(30),
            eject_max: Duration::from_secs(300),
            ejected_percent_max: 50,
            trial_percent: 10,
            trial: Duration::from_secs(5),
        }
    }
}

impl GatewaySettings {
    /// Where clients connect, by the key that says so.
    pub fn listens(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> {
        let both = [("listen", self.listen), ("tls.listen", self.tls.listen)];
        both.into_iter().filter_map(|(key, address)| Some((key, address?)))
    }
}

impl Default for GatewaySettings {
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 9000))),
            tls: TlsSettings::default(),
            proxies: Vec::new(),
            path: "/ws".into(),
            node: "node-1".into(),
            admin: AdminSettings::default(),
            shards: None,
            origins: Vec::new(),
            gateway_ids: (9000, 9999),
            explain_to_clients: false,
            demo: DemoSettings::default(),
            stop: StopSettings::default(),
            discovery: DiscoverySettings::default(),
            health: HealthSettings::default(),
            auth: AuthSettings::default(),
            log: "info".into(),
            log_json: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_debug_output_has_a_secret() {
        let secret = Some(Secret::from("swordfish"));
        let admin = AdminSettings { token: secret.clone(), ..AdminSettings::default() };
        let etcd = EtcdSettings {
            endpoints: Vec::new(),
            prefix: "/".into(),
            user: "u".into(),
            password: secret.clone(),
            password_file: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
        };
        let (name, services) = ("c".into(), Vec::new());
        let caller = RegistryCaller { name, token: secret, token_file: None, services };
        let shown = format!("{admin:?} {admin:#?} {etcd:?} {caller:?}");
        assert!(shown.contains("<redacted>") && !shown.contains("swordfish"), "{shown}");
    }
}
