//! Instances by DNS: the A and AAAA records of one host, looked up again when their time to live
//! ends.
//!
//! Each address is an instance; its name is made of the service's and the address alone
//! ([`instance_name`]), so that the ring hashes it alike in every process and after every restart.
//! A lookup that fails, and an answer without addresses, change nothing: the last set stays. One
//! type of record is enough: there are name servers that answer every question for AAAA with an
//! error.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RecordType};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinHandle;
use xxhash_rust::xxh3::xxh3_64;

use super::{FoundInstance, News, NewsSender, SourceContents, SourceEvent};
use crate::config::is_name;

#[cfg(test)]
mod tests;

/// Instances of one host. 256 A records are 4 KiB of an answer; more of them are a mistake.
const ADDRESSES_MAX: usize = 256;
/// Least time to live that is used: 0 means "do not cache", not "ask without a pause".
const TTL_MIN: Duration = Duration::from_secs(1);
/// Longest time to live that is used, so that a mistake of a day in a zone is not one here.
const TTL_MAX: Duration = Duration::from_secs(300);
/// Longest wait for one name server, TCP after a truncated answer included.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for one type of record: every name of the search list, each asked twice.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a first failure; x1.6 each time, +-20 %, as for connections.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest pause after a failure.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Longest name of an instance ([`is_name`]).
const NAME_BYTES_MAX: usize = 64;

/// Looks up `host` for `service` until the task is aborted or the receiver of `news` is gone; each
/// address listens on `port`. `servers` are asked over UDP, and over TCP where an answer was cut;
/// with none, those of /etc/resolv.conf (and /etc/hosts first), which are read each time. `seed` is
/// for the jitter of retries. Runs inside a tokio runtime.
///
/// The error is one line: the host is an address or no name at all.
pub fn start(
    service: Arc<str>,
    host: Arc<str>,
    port: u16,
    servers: &[SocketAddr],
    seed: u64,
    news: NewsSender,
) -> Result<JoinHandle<()>, String> {
    let key = format!("service {service}: dns = \"{host}:{port}\"");
    if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return Err(format!("{key} is an address, not a name: write it into instances"));
    }
    let is_host = !host.is_empty() && Name::from_ascii(&*host).is_ok_and(|name| !name.is_root());
    if !is_host || port == 0 {
        return Err(format!("{key} must be a host's name and a port above 0"));
    }
    let host_resolver = HostResolver { host, servers: servers.into(), timeout: QUESTION_TIMEOUT };
    let records = HostRecords::new(service, port, Backoff::new(RETRY_FIRST, seed));
    Ok(tokio::spawn(follow(host_resolver, records, news)))
}

/// The name of the instance at `ip`: `logic-10.0.0.7`, `logic-fd00--7` (an IPv6 address as RFC 5952
/// writes it, with `-` for `:`). Where that is longer than a name may be, the service's part is cut
/// and followed by eight hexadecimal digits of its XXH3, so that it stays this service's alone.
pub fn instance_name(service: &str, ip: IpAddr) -> Arc<str> {
    let ip = ip.to_string().replace(':', "-");
    let full = format!("{service}-{ip}");
    let name = if full.len() <= NAME_BYTES_MAX {
        full
    } else {
        // An address has at most 39 characters: 15 of the service stay.
        let hash = format!("{:08x}", xxh3_64(service.as_bytes()) as u32);
        let room = NAME_BYTES_MAX - ip.len() - hash.len() - 2;
        format!("{}-{hash}-{ip}", &service[..room])
    };
    debug_assert!(is_name(&name), "{name}");
    name.into()
}

/// Looks up, sends news and sleeps, until the receiver is gone.
async fn follow(host_resolver: HostResolver, mut records: HostRecords, news: NewsSender) {
    let source: Arc<str> = format!("dns:{}", records.service).into();
    loop {
        let (answers, ttl) = host_resolver.ask().await;
        let (events, pause) = records.take(answers, ttl);
        for event in events {
            if news.send(News { source: source.clone(), event }).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = news.closed() => return,
        }
    }
}

/// Result of a lookup of one type of record.
#[derive(Clone, PartialEq, Eq, Debug)]
enum RecordAnswer {
    /// All addresses; at least one.
    Has(BTreeSet<IpAddr>),
    /// No address, by the word of the name server: the name does not exist, or has no such record.
    Empty(&'static str),
    /// The lookup failed, for this reason.
    Failed(String),
}

/// A host, and the name servers that are asked for it.
struct HostResolver {
    host: Arc<str>,
    servers: Arc<[SocketAddr]>,
    timeout: Duration,
}

impl HostResolver {
    /// Looks up A and AAAA records. Returns both results and the time for which they hold.
    ///
    /// The two are looked up one by one, not through `lookup_ip`: that gives out one when the other
    /// failed, as if it were all, and half of the instances would be gone.
    async fn ask(&self) -> ([RecordAnswer; 2], Duration) {
        // A new resolver each time has no cache that could outlive a record, and sees changed
        // files.
        let resolver = match self.resolver() {
            Ok(resolver) => resolver,
            Err(error) => {
                let why = format!("cannot read the system's name servers: {error}");
                return ([RecordAnswer::Failed(why.clone()), RecordAnswer::Failed(why)], TTL_MIN);
            }
        };
        let v4 = self.ask_one(&resolver, &self.host, RecordType::A).await;
        // If a name of the search list had an A record, the AAAA records are those of the same
        // name.
        let found_at = v4.1.as_ref().map(|lookup| lookup.query().name().to_utf8());
        let host = found_at.as_deref().unwrap_or(&self.host);
        let v6 = self.ask_one(&resolver, host, RecordType::AAAA).await;
        let now = Instant::now();
        let ttl = [v4.2, v6.2, life(v4.1, now), life(v6.1, now)].into_iter().flatten().min();
        ([v4.0, v6.0], ttl.unwrap_or(TTL_MIN).clamp(TTL_MIN, TTL_MAX))
    }

    fn resolver(&self) -> Result<TokioResolver, NetError> {
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

    /// Looks up one type of record. Returns the result, the lookup it came from, and the time for
    /// which "none" holds.
    async fn ask_one(
        &self,
        resolver: &TokioResolver,
        host: &str,
        kind: RecordType,
    ) -> (RecordAnswer, Option<Lookup>, Option<Duration>) {
        let lookup = tokio::time::timeout(LOOKUP_TIMEOUT, resolver.lookup(host, kind)).await;
        match lookup.unwrap_or(Err(NetError::Timeout)) {
            Ok(lookup) => {
                let records = lookup.answers().iter().filter(|r| r.record_type() == kind);
                let ips: BTreeSet<IpAddr> =
                    records.filter_map(|r| r.data.ip_addr()).map(|ip| ip.to_canonical()).collect();
                let answer = if ips.is_empty() {
                    RecordAnswer::Empty("no address")
                } else {
                    RecordAnswer::Has(ips)
                };
                (answer, Some(lookup), None)
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                let unknown = none.response_code == ResponseCode::NXDomain;
                let why = if unknown { "NXDOMAIN" } else { "no address" };
                let ttl = none.negative_ttl.map(|s| Duration::from_secs(s.into()));
                (RecordAnswer::Empty(why), None, ttl)
            }
            Err(error) => (RecordAnswer::Failed(reason(&error)), None, None),
        }
    }
}

/// Time for which the records hold: the shortest life in the chain of CNAMEs.
fn life(lookup: Option<Lookup>, now: Instant) -> Option<Duration> {
    let lookup = lookup?;
    let records = lookup.answers().iter().map(|r| Duration::from_secs(r.ttl.into()));
    records.chain([lookup.valid_until().saturating_duration_since(now)]).min()
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

/// Pauses after failed lookups, growing.
struct Backoff {
    first: Duration,
    next: Duration,
    rng: StdRng,
}

impl Backoff {
    fn new(first: Duration, seed: u64) -> Self {
        Self { first, next: first, rng: StdRng::seed_from_u64(seed) }
    }

    fn after_failure(&mut self) -> Duration {
        let pause = self.next.mul_f64(self.rng.random_range(0.8..=1.2));
        self.next = self.next.mul_f64(1.6).min(RETRY_MAX);
        pause
    }

    fn after_success(&mut self) {
        self.next = self.first;
    }
}

/// Trouble with the answers of one lookup.
struct Trouble {
    /// Error of a type of record that could not be looked up, and of which addresses are in use or
    /// may be missed.
    failed: Option<String>,
    /// Error of a type of record of which there was never an address, while the other has some.
    unneeded: Option<String>,
    /// Reason why a type of record has no address.
    empty: Option<&'static str>,
}

impl Trouble {
    /// `last`: the addresses of each type as they were known before.
    fn of(answers: &[RecordAnswer; 2], last: &[BTreeSet<IpAddr>; 2]) -> Self {
        let one_is_known = answers.iter().any(|answer| match answer {
            RecordAnswer::Has(ips) => ips.iter().any(|&ip| is_usable(ip)),
            RecordAnswer::Empty(_) | RecordAnswer::Failed(_) => false,
        });
        let (mut failed, mut unneeded) = (None, None);
        for (answer, last) in answers.iter().zip(last) {
            if let RecordAnswer::Failed(why) = answer {
                let needed = !one_is_known || !last.is_empty();
                let first = if needed { &mut failed } else { &mut unneeded };
                first.get_or_insert_with(|| why.clone());
            }
        }
        let empty = answers.iter().find_map(|answer| match answer {
            RecordAnswer::Empty(why) => Some(*why),
            RecordAnswer::Has(_) | RecordAnswer::Failed(_) => None,
        });
        Self { failed, unneeded, empty }
    }

    /// Reason why the instances are stale: a lookup failed, or no address can be used.
    fn why(self, found_some: bool, left_some_out: bool) -> Option<String> {
        match self.failed {
            Some(why) => Some(why),
            None if found_some => None,
            None if left_some_out => Some("none of its addresses can be used".into()),
            None => Some(self.empty.unwrap_or("no address").into()),
        }
    }
}

/// Records of one host, and the state that was sent of them. Pure.
struct HostRecords {
    service: Arc<str>,
    port: u16,
    backoff: Backoff,
    /// Last good answers, A and AAAA.
    families: [BTreeSet<IpAddr>; 2],
    /// Instances that were sent last.
    sent: Vec<FoundInstance>,
    /// Reason for being stale, as sent.
    stale: Option<String>,
    /// Addresses that were left out, as sent.
    left_out: Option<String>,
    /// Error of the type of record that is not needed, as sent.
    unneeded: Option<String>,
}

impl HostRecords {
    fn new(service: Arc<str>, port: u16, backoff: Backoff) -> Self {
        let families = Default::default();
        let sent = Vec::new();
        let (stale, left_out, unneeded) = (None, None, None);
        Self { service, port, backoff, families, sent, stale, left_out, unneeded }
    }

    /// Takes in the answers of a lookup. Returns the events to send, and the pause before the next
    /// lookup.
    fn take(&mut self, answers: [RecordAnswer; 2], ttl: Duration) -> (Vec<SourceEvent>, Duration) {
        let mut events = Vec::new();
        let found_some = answers.iter().any(|answer| matches!(answer, RecordAnswer::Has(_)));
        let mut trouble = Trouble::of(&answers, &self.families);
        let unneeded = trouble.unneeded.take();
        let families = self.merge(answers);
        let (found, left_out) = self.instances(families.iter().flatten().copied());
        let why = trouble.why(!found.is_empty(), left_out.is_some());
        self.note_left_out(left_out, &mut events);
        let changed = self.note_found(found, families, &mut events);
        // What failed may have addresses after all, so it is asked for again before the time to
        // live of the others ends, and more and more seldom.
        let pause = match &why {
            None if unneeded.is_none() => {
                self.backoff.after_success();
                ttl
            }
            None => ttl.min(self.backoff.after_failure()),
            Some(_) if found_some => ttl.min(self.backoff.after_failure()),
            Some(_) => self.backoff.after_failure(),
        };
        self.note_stale(why, changed, &mut events);
        self.note_unneeded(unneeded, &mut events);
        (events, pause)
    }

    /// Addresses of both families after these answers. A family that could not be looked up keeps
    /// its addresses: they are not known to be gone.
    fn merge(&self, answers: [RecordAnswer; 2]) -> [BTreeSet<IpAddr>; 2] {
        let [v4, v6] = answers;
        let merged = |answer, last: &BTreeSet<IpAddr>| match answer {
            RecordAnswer::Has(ips) => ips,
            RecordAnswer::Empty(_) => BTreeSet::new(),
            RecordAnswer::Failed(_) => last.clone(),
        };
        let [last_v4, last_v6] = &self.families;
        [merged(v4, last_v4), merged(v6, last_v6)]
    }

    /// Notes why addresses were left out; an event if that is new.
    fn note_left_out(&mut self, left_out: Option<String>, events: &mut Vec<SourceEvent>) {
        if left_out != self.left_out {
            let at = format!("service {}", self.service);
            events.extend(left_out.clone().map(|why| SourceEvent::Bad { at, why }));
            self.left_out = left_out;
        }
    }

    /// Notes the instances that were found; an event if they changed. Whether they did. No instance
    /// at all may be a mistake in the zone, so that changes nothing.
    fn note_found(
        &mut self,
        found: Vec<FoundInstance>,
        families: [BTreeSet<IpAddr>; 2],
        events: &mut Vec<SourceEvent>,
    ) -> bool {
        if found.is_empty() {
            return false;
        }
        self.families = families;
        let changed = found != self.sent;
        if changed {
            self.sent = found;
            let instances = self.sent.clone();
            let contents = SourceContents { instances, routes: Vec::new() };
            events.push(SourceEvent::Contents { contents, by: "dns".into() });
        }
        changed
    }

    /// Notes why the source is stale, or that it is not; an event if that is new. `changed`: the
    /// contents were sent, which ends being stale at the receiver.
    fn note_stale(&mut self, why: Option<String>, changed: bool, events: &mut Vec<SourceEvent>) {
        match why {
            Some(why) => {
                let line = self.stale_line(&why);
                if changed || self.stale.as_ref() != Some(&line) {
                    events.push(SourceEvent::Stale { why: line.clone() });
                }
                self.stale = Some(line);
            }
            None => {
                if self.stale.take().is_some() && !changed {
                    events.push(SourceEvent::Fresh);
                }
            }
        }
    }

    /// Notes the error of a type of record that is not needed; an event if that is new.
    fn note_unneeded(&mut self, why: Option<String>, events: &mut Vec<SourceEvent>) {
        if why != self.unneeded {
            events.extend(why.as_ref().map(|why| {
                let service = &self.service;
                let why = format!(
                    "one type of address (A or AAAA) of service {service} cannot be looked up, \
                     and the other is used: {why}"
                );
                SourceEvent::Note { why }
            }));
            self.unneeded = why;
        }
    }

    fn stale_line(&self, why: &str) -> String {
        let Self { service, sent, .. } = self;
        let kept = match sent.len() {
            0 => "it has no instance from there yet".to_owned(),
            n => format!("the {n} found before stay"),
        };
        format!(
            "cannot look up the addresses of service {service}: {why}; {kept}; \
             check its key dns, and the name servers in [dns] servers or /etc/resolv.conf"
        )
    }

    /// Instances at `ips`, sorted, and the reason why some were left out.
    fn instances(&self, ips: impl Iterator<Item = IpAddr>) -> (Vec<FoundInstance>, Option<String>) {
        let (usable, unusable): (BTreeSet<IpAddr>, BTreeSet<IpAddr>) =
            ips.partition(|&ip| is_usable(ip));
        let mut left_out = unusable
            .first()
            .map(|ip| format!("{ip} is no address of one host: it was left out; correct the zone"));
        if usable.len() > ADDRESSES_MAX {
            let n = usable.len();
            left_out = Some(format!(
                "its name has {n} addresses; the first {ADDRESSES_MAX} in order are used"
            ));
        }
        let found = usable.into_iter().take(ADDRESSES_MAX).map(|ip| FoundInstance {
            service: self.service.clone(),
            name: instance_name(&self.service, ip),
            address: SocketAddr::new(ip, self.port),
            weight: 1,
            draining: false,
        });
        (found.collect(), left_out)
    }
}

/// Whether a host can have the address as its own and be reached there. 0.0.0.0, which blocklists
/// answer, would reach this host; fe80:: needs an interface beside it.
fn is_usable(ip: IpAddr) -> bool {
    let elsewhere = match ip {
        IpAddr::V4(ip) => ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(ip.is_unspecified() || ip.is_multicast() || elsewhere)
}
