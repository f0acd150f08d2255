//! The checked settings that the rest of the program reads: plain numbers, immutable once made.
//! Every default stands here, once; `config::check` and the files beside it hold the keys and their
//! rules.

mod auth;
mod events;
mod limits;
mod push;
mod session;
mod shard;
mod tenant;
mod tls;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::origin::AllowedOrigin;
use crate::peers::{Forwarded, Peers};

pub use auth::{Algorithm, AuthKey, AuthMode, AuthSettings, KeySource, Tenants, UnknownTenant};
pub use events::{EventRights, EventSettings};
pub use limits::{ClientLimitSettings, LimitSettings, PerUser};
pub use push::{
    GroupRule, GroupSettings, JoinBy, Keep, Pattern, PresenceKind, PushCaller, PushRights,
    PushSettings, PushTo, PushVerb, SlowMember, Who, word_of,
};
pub use session::SessionSettings;
pub use shard::{
    BackendSettings, BatchSettings, CacheSettings, ConnSettings, ConnectionsMax, DedupSettings,
    QueueSettings, RetrySettings, ShardSettings,
};
pub use tenant::{TenantSettings, TenantTokens};
pub use tls::{ClientCertificates, ServiceTlsSettings, TlsCertificate, TlsSettings, TlsVersion};

/// A token or password. No `{:?}` of a value that holds it shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret itself, only to be sent or compared.
    pub(crate) fn expose(&self) -> &str {
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

/// Settings of the whole process (`shards/gateway.toml`).
#[derive(Clone, Debug, PartialEq)]
pub struct GatewaySettings {
    /// Address where clients connect without TLS; `None` = nowhere. Boot.
    pub listen: Option<SocketAddr>,
    /// Settings of TLS towards clients.
    pub tls: TlsSettings,
    /// Networks of balancers: connections from them begin with a PROXY protocol header. Live.
    pub proxies: Peers,
    /// HTTP proxies whose word on the client's address is believed, and the header of it. Live.
    pub forwarded: Forwarded,
    /// Path of the upgrade request. Boot.
    pub path: String,
    /// Name of this node in `welcome` and to services. Boot.
    pub node: String,
    /// The admin endpoint. Boot.
    pub admin: AdminSettings,
    /// Number of shards; `None` = one for each allowed core, less one from 4 cores up. Boot.
    pub shards: Option<usize>,
    /// Whether a connection goes to the shard on whose core its first packet was received. Boot.
    pub steer_by_cpu: bool,
    /// Pages that may connect; empty = those of the request's own host only. A request without
    /// `Origin` passes. Live.
    pub origins: Vec<AllowedOrigin>,
    /// Ids answered by the gateway itself, first and last. Live.
    pub gateway_ids: (u32, u32),
    /// Whether id 9003 explains routes to clients. Live.
    pub explain_to_clients: bool,
    /// Whether the demo services run in this process. Boot.
    pub demo: DemoSettings,
    /// The stop of the process. Live.
    pub stop: StopSettings,
    /// Sources of instances besides the files.
    pub discovery: DiscoverySettings,
    /// Health checks and ejection of instances. Live.
    pub health: HealthSettings,
    /// Authentication of clients. Live, but for `tenants`.
    pub auth: AuthSettings,
    /// Default log filter, e.g. `info`. Live.
    pub log: String,
    /// Whether log lines are JSON. Boot.
    pub log_json: bool,
    /// The log of intervals of histograms. Live.
    pub histograms: HistogramSettings,
    /// Pushes of services, and the rules of groups.
    pub push: PushSettings,
    /// Events that services ask for, by their names; who is not here asks for none. Live.
    pub events: BTreeMap<Arc<str>, Arc<EventRights>>,
}

/// The section `[histograms]`: the log of intervals. Live.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct HistogramSettings {
    /// Length of an interval; zero = none is written.
    pub every: Duration,
    /// File that intervals are appended to; `None` = one in the directory of dumps.
    pub file: Option<PathBuf>,
}

/// The section `[admin]`: the admin endpoint. Boot.
#[derive(Clone, Debug, PartialEq)]
pub struct AdminSettings {
    /// Address that it listens on. One that is no loopback address needs TLS and a token (checked).
    pub listen: SocketAddr,
    /// Token that a caller must show to change something; `None` = the one in `token_file`, or one
    /// made up at the start.
    pub token: Option<Secret>,
    /// File that holds the token, or gets the one made up at the start.
    pub token_file: Option<PathBuf>,
    /// Certificate chain, PEM; together with `tls_key`.
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM.
    pub tls_key: Option<PathBuf>,
    /// Address of the listener for probes, without TLS and token; `None` = none.
    pub probes: Option<SocketAddr>,
    /// Whether that listener serves `/metrics`, too.
    pub probes_metrics: bool,
}

/// The section `[stop]`: the ordered stop. Live.
#[derive(Clone, Debug, PartialEq)]
pub struct StopSettings {
    /// Time from the first stop signal to the end, in which messages that were read are answered.
    pub grace: Duration,
    /// Time over which connections are closed evenly, so that their clients do not all reconnect at
    /// once; `None` = as their number asks for.
    pub spread: Option<Duration>,
    /// Time after which clients are told to reconnect, plus a random time of up to as much again.
    pub reconnect: Duration,
}

/// The sections `[discovery]`, `[dns]`, `[etcd]` and `[registry]`. Boot, but for `debounce` and the
/// registry's callers.
#[derive(Clone, Debug, PartialEq)]
pub struct DiscoverySettings {
    /// Time from a first change in which further changes are published together with it. Live.
    pub debounce: Duration,
    /// Name servers; empty = those of the system.
    pub dns_servers: Vec<SocketAddr>,
    /// The etcd cluster, if one is used.
    pub etcd: Option<EtcdSettings>,
    /// The gRPC registry, if it is served.
    pub registry: Option<RegistrySettings>,
}

/// The section `[etcd]`: instances and routes in etcd.
#[derive(Clone, Debug, PartialEq)]
pub struct EtcdSettings {
    /// Endpoints `http://host:port` or `https://host:port`, tried in turn. Never empty.
    pub endpoints: Vec<String>,
    /// Prefix of keys: `<prefix>/services/<service>/<instance>` and `<prefix>/routes/<name>`.
    pub prefix: String,
    /// User name; empty = no authentication.
    pub user: String,
    /// Password of the user; `None` = in `password_file`.
    pub password: Option<Secret>,
    /// File that holds the password.
    pub password_file: Option<PathBuf>,
    /// Certificates that sign the servers' certificates, PEM; `None` = those of the system.
    pub ca_file: Option<PathBuf>,
    /// Client certificate, PEM; together with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// Private key of the client certificate, PEM.
    pub key_file: Option<PathBuf>,
}

/// The section `[registry]` and the list `[[registry_token]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct RegistrySettings {
    /// Address where services register themselves. Boot.
    pub listen: SocketAddr,
    /// Certificate chain, PEM; together with `tls_key`. Boot.
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM. Boot.
    pub tls_key: Option<PathBuf>,
    /// Callers that may register instances. Never empty. Live.
    pub callers: Vec<RegistryCaller>,
}

/// A caller that may register instances.
#[derive(Clone, Debug, PartialEq)]
pub struct RegistryCaller {
    /// Name of the caller in logs.
    pub name: Arc<str>,
    /// Token of the caller; `None` = in `token_file`.
    pub token: Option<Secret>,
    /// File that holds the token.
    pub token_file: Option<PathBuf>,
    /// Services whose instances the caller may change.
    pub services: Vec<Arc<str>>,
}

/// The sections `[health]` and `[ejection]`. Live.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthSettings {
    /// Time between two checks (grpc.health.v1) of an instance, give or take 10 %; zero = no
    /// checks.
    pub check_every: Duration,
    /// Time after which a check without an answer has failed.
    pub check_timeout: Duration,
    /// Checks in a row that must succeed before an instance that is down is up.
    pub up_after: u32,
    /// Checks in a row that must fail before an instance that is up is down.
    pub down_after: u32,
    /// Percentage of a service's instances: with fewer healthy ones than this, all are used.
    pub panic_percent: u32,
    /// Time in which an instance that is up again gets its keys back, step by step; zero = at once.
    pub slow_start: Duration,
    /// Failed calls in a row before an instance is ejected; 0 = never.
    pub eject_after: u32,
    /// Connections lost by one shard within `eject` before the instance is ejected; 0 = never.
    pub eject_losses: u32,
    /// Time that failed calls in a row have to take to eject an instance.
    pub eject_span: Duration,
    /// Length of the first ejection. Each further one is longer by as much, up to `eject_max`.
    pub eject: Duration,
    /// Longest ejection.
    pub eject_max: Duration,
    /// Share of a service's instances that may be ejected at once, in percent. One of two may be
    /// ejected in any case, unless this is 0.
    pub ejected_percent_max: u32,
    /// Share of its keys that an instance on trial gets, in percent.
    pub trial_percent: u32,
    /// Time without a failure after which a trial ends.
    pub trial: Duration,
}

/// The section `[demo]`: the embedded demo services.
#[derive(Clone, Debug, PartialEq)]
pub struct DemoSettings {
    /// Whether the services run in this process.
    pub enabled: bool,
    /// Addresses of logic, chat and fight.
    pub addresses: [SocketAddr; 3],
    /// Certificate chain, PEM; with `tls_key` the services speak TLS.
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM.
    pub tls_key: Option<PathBuf>,
}

impl Default for DemoSettings {
    fn default() -> Self {
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            enabled: true,
            addresses: [local(50001), local(50002), local(50003)],
            tls_cert: None,
            tls_key: None,
        }
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
            probes: None,
            probes_metrics: false,
        }
    }
}

impl Default for StopSettings {
    fn default() -> Self {
        Self { grace: Duration::from_secs(10), spread: None, reconnect: Duration::from_secs(1) }
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
            eject_span: Duration::from_millis(100),
            eject: Duration::from_secs(30),
            eject_max: Duration::from_secs(300),
            ejected_percent_max: 50,
            trial_percent: 10,
            trial: Duration::from_secs(5),
        }
    }
}

impl GatewaySettings {
    /// Addresses where clients connect, each with its key.
    pub(crate) fn listens(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> {
        let both = [("listen", self.listen), ("tls.listen", self.tls.listen)];
        both.into_iter().filter_map(|(key, address)| Some((key, address?)))
    }

    /// All addresses of the gateway's own listeners, each with its key. The demo services are not
    /// among them.
    pub(crate) fn own_addresses(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> {
        let registry = self.discovery.registry.as_ref().map(|registry| registry.listen);
        let others = [
            ("admin.listen", Some(self.admin.listen)),
            ("admin.probes", self.admin.probes),
            ("registry.listen", registry),
            ("push.listen", self.push.listen),
        ];
        let others = others.into_iter().filter_map(|(key, address)| Some((key, address?)));
        self.listens().chain(others)
    }

    /// Whether a discovery source may have tenants.
    pub(crate) fn has_tenant_source(&self) -> bool {
        let has_tenants = self.auth.mode == AuthMode::Jwt && self.auth.tenants == Tenants::Many;
        has_tenants && self.discovery.etcd.is_some()
    }
}

impl Default for GatewaySettings {
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 9000))),
            tls: TlsSettings::default(),
            proxies: Peers::default(),
            forwarded: Forwarded::default(),
            path: "/ws".into(),
            node: super::host::node().to_owned(),
            admin: AdminSettings::default(),
            shards: None,
            steer_by_cpu: false,
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
            histograms: HistogramSettings::default(),
            push: PushSettings::default(),
            events: BTreeMap::new(),
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
