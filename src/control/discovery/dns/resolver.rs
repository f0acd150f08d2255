//! Questions to name servers, and their answers as plain data.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use tokio::task::JoinSet;

use super::targets::{SrvAnswer, SrvRecord};
use super::{INSTANCES_MAX, TTL_MAX, TTL_MIN};
use crate::config::Family;

/// Longest wait for one type of record: every name of the search list, each asked twice.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Hosts of SRV records that are looked up at a time: 256 take eight round trips.
const HOSTS_AT_ONCE: usize = 32;

/// Result of a lookup of one type of record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum RecordAnswer {
    /// All addresses; at least one.
    Has(BTreeSet<IpAddr>),
    /// No address, by the word of the name server: the name does not exist, or has no such record.
    Empty(&'static str),
    /// The lookup failed, for this reason.
    Failed(String),
    /// `dns_family` rules this type of record out, or there are too many names.
    NotAsked,
}

/// Whether a host can have the address as its own and be reached there. 0.0.0.0, which blocklists
/// answer, would reach this host; fe80:: needs an interface beside it.
pub(super) fn is_usable(ip: IpAddr) -> bool {
    let elsewhere = match ip {
        IpAddr::V4(ip) => ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(ip.is_unspecified() || ip.is_multicast() || elsewhere)
}

/// Answers for A and AAAA.
pub(super) type HostAnswers = [RecordAnswer; 2];

/// The name servers that are asked, and the addresses that are asked for.
pub(super) struct Resolver {
    pub(super) servers: Arc<[SocketAddr]>,
    pub(super) family: Family,
    /// Longest wait for one name server, TCP after a truncated answer included.
    pub(super) timeout: Duration,
}

impl Resolver {
    /// Looks up the addresses of a host. Returns the answers and the time for which they hold.
    pub(super) async fn ask_host(&self, host: &Name) -> (HostAnswers, Duration) {
        match self.build() {
            Ok(resolver) => {
                let (answers, ttl) = ask_host(resolver, host.clone(), self.family).await;
                (answers, bounded(ttl))
            }
            Err(why) => ([RecordAnswer::Failed(why.clone()), RecordAnswer::Failed(why)], TTL_MIN),
        }
    }

    /// Looks up SRV records, and the addresses of their hosts. Those of a higher priority value are
    /// looked up only while no host before them has an address.
    pub(super) async fn ask_srv(&self, name: &Name) -> (SrvAnswer, Duration) {
        let resolver = match self.build() {
            Ok(resolver) => resolver,
            Err(why) => return (SrvAnswer::Failed(why), TTL_MIN),
        };
        let (records, mut ttl) = match look_up(&resolver, name.clone(), RecordType::SRV).await {
            Looked::Found(lookup) => (srv_records(&lookup), Some(life(&lookup))),
            Looked::Empty(why, ttl) => return (SrvAnswer::Empty(why), bounded(ttl)),
            Looked::Failed(why) => return (SrvAnswer::Failed(why), TTL_MIN),
        };
        let mut groups: BTreeMap<u16, Vec<SrvRecord>> = BTreeMap::new();
        for record in records {
            groups.entry(record.priority).or_default().push(record);
        }
        let mut all = Vec::new();
        for (_, mut group) in groups {
            group.sort();
            let hosts: BTreeSet<&String> =
                group.iter().map(|record| &record.host).filter(|host| !host.is_empty()).collect();
            let hosts: Vec<String> = hosts.into_iter().take(INSTANCES_MAX).cloned().collect();
            let (answers, shortest) = self.ask_hosts(&resolver, hosts).await;
            ttl = [ttl, shortest].into_iter().flatten().min();
            let is_address = |answer: &RecordAnswer| match answer {
                RecordAnswer::Has(all) => all.iter().any(|ip| is_usable(*ip)),
                RecordAnswer::Empty(_) | RecordAnswer::Failed(_) | RecordAnswer::NotAsked => false,
            };
            let is_last = answers.values().flatten().any(is_address);
            let answered = |record: SrvRecord| {
                let answers = answers.get(&record.host).cloned();
                (record, answers.unwrap_or([const { RecordAnswer::NotAsked }; 2]))
            };
            all.extend(group.into_iter().map(answered));
            if is_last {
                break;
            }
        }
        (SrvAnswer::Has(all), bounded(ttl))
    }

    /// Looks up the addresses of many hosts. Returns the answers by host, and the shortest time for
    /// which one of them holds.
    async fn ask_hosts(
        &self,
        resolver: &TokioResolver,
        hosts: Vec<String>,
    ) -> (BTreeMap<String, HostAnswers>, Option<Duration>) {
        let mut left = hosts.into_iter();
        let mut asking = JoinSet::new();
        let (mut all, mut shortest) = (BTreeMap::new(), None);
        loop {
            while asking.len() < HOSTS_AT_ONCE
                && let Some(host) = left.next()
            {
                let (resolver, family) = (resolver.clone(), self.family);
                asking.spawn(async move {
                    // The names of records are complete: no search list is used for them.
                    let name = Name::from_ascii(format!("{host}."));
                    let answered = match name {
                        Ok(name) => ask_host(resolver, name, family).await,
                        Err(_) => ([const { RecordAnswer::Empty("no host's name") }; 2], None),
                    };
                    (host, answered)
                });
            }
            match asking.join_next().await {
                Some(Ok((host, (answers, ttl)))) => {
                    shortest = [shortest, ttl].into_iter().flatten().min();
                    all.insert(host, answers);
                }
                Some(Err(_)) => {}
                None => return (all, shortest),
            }
        }
    }

    /// A new resolver each time has no cache that could outlive a record, and sees changed files.
    fn build(&self) -> Result<TokioResolver, String> {
        self.try_build().map_err(|error| format!("cannot read the system's name servers: {error}"))
    }

    fn try_build(&self) -> Result<TokioResolver, NetError> {
        let mut builder = if self.servers.is_empty() {
            TokioResolver::builder_tokio()?
        } else {
            let servers = self.servers.iter().map(|address| {
                let mut server = NameServerConfig::udp_and_tcp(address.ip());
                server.connections.iter_mut().for_each(|c| c.port = address.port());
                server
            });
            let config = ResolverConfig::from_name_servers(servers.collect());
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        let options = builder.options_mut();
        options.cache_size = 0;
        options.timeout = self.timeout;
        options.attempts = 1;
        options.try_tcp_on_error = true;
        if !self.servers.is_empty() {
            options.use_hosts_file = ResolveHosts::Never;
        }
        builder.build()
    }
}

/// Looks up A and AAAA records. Returns both answers and the time for which they hold.
///
/// The two are looked up one by one, not through `lookup_ip`: that gives out one when the other
/// failed, as if it were all.
async fn ask_host(
    resolver: TokioResolver,
    host: Name,
    family: Family,
) -> (HostAnswers, Option<Duration>) {
    let (v4, found_at, ttl_v4) = match family {
        Family::Any | Family::V4 => ask_one(&resolver, host.clone(), RecordType::A).await,
        Family::V6 => (RecordAnswer::NotAsked, None, None),
    };
    // If a name of the search list had an A record, the AAAA records are those of the same name.
    let host = found_at.unwrap_or(host);
    let (v6, _, ttl_v6) = match family {
        Family::Any | Family::V6 => ask_one(&resolver, host, RecordType::AAAA).await,
        Family::V4 => (RecordAnswer::NotAsked, None, None),
    };
    ([v4, v6], [ttl_v4, ttl_v6].into_iter().flatten().min())
}

/// Looks up one type of address. Returns the answer, the name that it is for, and the time for
/// which it holds.
async fn ask_one(
    resolver: &TokioResolver,
    host: Name,
    kind: RecordType,
) -> (RecordAnswer, Option<Name>, Option<Duration>) {
    match look_up(resolver, host, kind).await {
        Looked::Found(lookup) => {
            let records = lookup.answers().iter().filter(|r| r.record_type() == kind);
            let ips: BTreeSet<IpAddr> =
                records.filter_map(|r| r.data.ip_addr()).map(|ip| ip.to_canonical()).collect();
            let answer = if ips.is_empty() {
                RecordAnswer::Empty("no address")
            } else {
                RecordAnswer::Has(ips)
            };
            let found_at = lookup.query().name().clone();
            (answer, Some(found_at), Some(life(&lookup)))
        }
        Looked::Empty(why, ttl) => (RecordAnswer::Empty(why), None, ttl),
        Looked::Failed(why) => (RecordAnswer::Failed(why), None, None),
    }
}

/// Result of a lookup.
enum Looked {
    Found(Lookup),
    /// There are no such records, for this reason and this time.
    Empty(&'static str, Option<Duration>),
    Failed(String),
}

async fn look_up(resolver: &TokioResolver, name: Name, kind: RecordType) -> Looked {
    let lookup = tokio::time::timeout(LOOKUP_TIMEOUT, resolver.lookup(name, kind)).await;
    match lookup.unwrap_or(Err(NetError::Timeout)) {
        Ok(lookup) => Looked::Found(lookup),
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
            let unknown = none.response_code == ResponseCode::NXDomain;
            let why = match (unknown, kind) {
                (true, _) => "NXDOMAIN",
                (false, RecordType::SRV) => "no SRV record",
                (false, _) => "no address",
            };
            let ttl = none.negative_ttl.map(|s| Duration::from_secs(s.into()));
            Looked::Empty(why, ttl)
        }
        Err(error) => Looked::Failed(reason(&error)),
    }
}

/// The SRV records of an answer. Name servers may answer with another case of the letters each time
/// (DNS 0x20), and the ring hashes the names: they are written in lower case.
fn srv_records(lookup: &Lookup) -> Vec<SrvRecord> {
    let record = |data: &RData| match data {
        RData::SRV(srv) => Some(SrvRecord {
            priority: srv.priority,
            weight: srv.weight,
            port: srv.port,
            host: srv.target.to_ascii().trim_end_matches('.').to_ascii_lowercase(),
        }),
        _ => None,
    };
    lookup.answers().iter().filter_map(|r| record(&r.data)).collect()
}

fn bounded(ttl: Option<Duration>) -> Duration {
    ttl.unwrap_or(TTL_MIN).clamp(TTL_MIN, TTL_MAX)
}

/// Time for which the records hold: the shortest life in the chain of CNAMEs.
fn life(lookup: &Lookup) -> Duration {
    let records = lookup.answers().iter().map(|r| Duration::from_secs(r.ttl.into()));
    let left = lookup.valid_until().saturating_duration_since(Instant::now());
    records.min().map_or(left, |shortest| shortest.min(left))
}

/// Text of an error, the same as long as the reason stays the same.
fn reason(error: &NetError) -> String {
    match error {
        NetError::Timeout => "no name server answered in time".into(),
        NetError::Dns(DnsError::ResponseCode(code)) => {
            format!("the name server answered: {code}")
        }
        other => other.to_string(),
    }
}
