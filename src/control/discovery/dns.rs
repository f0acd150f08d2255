//! Instances by name service: the A and AAAA records of one host, asked again when their time to
//! live ends.
//!
//! Each address is an instance; its name is made of the service's and the address alone
//! ([`instance_name`]), so the ring hashes it alike in every process and after every restart.
//! What cannot be asked, and an answer without addresses, change nothing: the last set stays.

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

use super::{Found, Known, News, Teller, Word};
use crate::config::is_name;

#[cfg(test)]
mod tests;

/// Instances of one name. 256 A records are 4 KiB of an answer; more of them are a mistake.
const ADDRESSES_MAX: usize = 256;
/// A time to live is taken as at least this: 0 means "do not cache", not "ask without a pause" …
const TTL_MIN: Duration = Duration::from_secs(1);
/// … and as at most this, so that a mistake of a day in a zone is not one here.
const TTL_MAX: Duration = Duration::from_secs(300);
/// One question to one name server, TCP after a truncated answer included.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// All questions for one type of record: every name of the search list, each asked twice.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a first failure; x1.6 each time, +-20 %, as for connections …
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// … up to this.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Longest name of an instance ([`is_name`]).
const NAME_BYTES_MAX: usize = 64;

/// Looks up `host` for `service` until the task is aborted or nobody listens to `tell`; each
/// address listens on `port`. `servers` are asked over UDP, and over TCP where an answer was cut;
/// with none, those of /etc/resolv.conf (and /etc/hosts first), which are read each time. `seed`
/// is for the jitter of retries. Runs inside a tokio runtime.
///
/// The error is one line: the host is an address or no name at all.
pub fn start(
    service: Arc<str>,
    host: Arc<str>,
    port: u16,
    servers: &[SocketAddr],
    seed: u64,
    tell: Teller,
) -> Result<JoinHandle<()>, String> {
    let key = format!("service {service}: dns = \"{host}:{port}\"");
    if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return Err(format!("{key} is an address, not a name: write it into instances"));
    }
    let is_host = !host.is_empty() && Name::from_ascii(&*host).is_ok_and(|name| !name.is_root());
    if !is_host || port == 0 {
        return Err(format!("{key} must be a host's name and a port above 0"));
    }
    let asker = Asker { host, servers: servers.into(), timeout: QUESTION_TIMEOUT };
    let keeper = Keeper::new(service, port, Retry::new(RETRY_FIRST, seed));
    Ok(tokio::spawn(follow(asker, keeper, tell)))
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

/// Asks, tells, sleeps, until nobody listens.
async fn follow(asker: Asker, mut keeper: Keeper, tell: Teller) {
    let source: Arc<str> = format!("dns:{}", keeper.service).into();
    loop {
        let (answers, ttl) = asker.ask().await;
        let (words, pause) = keeper.take(answers, ttl);
        for word in words {
            if tell.send(News { source: source.clone(), word }).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = tell.closed() => return,
        }
    }
}

/// What was learnt about one type of record.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Answer {
    /// These are all; never none.
    Has(BTreeSet<IpAddr>),
    /// There are none, and so says the name server: the name is not known, or has no such record.
    Empty(&'static str),
    /// Nothing is known, for this reason.
    Failed(String),
}

/// Asks name servers.
struct Asker {
    host: Arc<str>,
    servers: Arc<[SocketAddr]>,
    timeout: Duration,
}

impl Asker {
    /// A and AAAA, and how long that is true.
    ///
    /// The two are asked one by one, not through `lookup_ip`: that gives out one when the other
    /// failed, as if it were all, and half of the instances would be gone.
    async fn ask(&self) -> ([Answer; 2], Duration) {
        // A new one each time has no cache that could outlive a record, and sees changed files.
        let resolver = match self.resolver() {
            Ok(resolver) => resolver,
            Err(error) => {
                let why = format!("cannot read the system's name servers: {error}");
                return ([Answer::Failed(why.clone()), Answer::Failed(why)], TTL_MIN);
            }
        };
        let v4 = self.ask_one(&resolver, &self.host, RecordType::A).await;
        // If a name of the search list had an A record, the AAAA ones are those of the same name.
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

    /// One type of record: the answer, where it came from, and how long "none" is true.
    async fn ask_one(
        &self,
        resolver: &TokioResolver,
        host: &str,
        kind: RecordType,
    ) -> (Answer, Option<Lookup>, Option<Duration>) {
        let lookup = tokio::time::timeout(LOOKUP_TIMEOUT, resolver.lookup(host, kind)).await;
        match lookup.unwrap_or(Err(NetError::Timeout)) {
            Ok(lookup) => {
                let records = lookup.answers().iter().filter(|r| r.record_type() == kind);
                let ips: BTreeSet<IpAddr> =
                    records.filter_map(|r| r.data.ip_addr()).map(|ip| ip.to_canonical()).collect();
                let answer =
                    if ips.is_empty() { Answer::Empty("no address") } else { Answer::Has(ips) };
                (answer, Some(lookup), None)
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                let unknown = none.response_code == ResponseCode::NXDomain;
                let why = if unknown { "NXDOMAIN" } else { "no address" };
                let ttl = none.negative_ttl.map(|s| Duration::from_secs(s.into()));
                (Answer::Empty(why), None, ttl)
            }
            Err(error) => (Answer::Failed(reason(&error)), None, None),
        }
    }
}

/// How long what was found may be believed: the shortest life in its chain of CNAMEs.
fn life(lookup: Option<Lookup>, now: Instant) -> Option<Duration> {
    let lookup = lookup?;
    let records = lookup.answers().iter().map(|r| Duration::from_secs(r.ttl.into()));
    records.chain([lookup.valid_until().saturating_duration_since(now)]).min()
}

/// In words that are the same as long as the reason is.
fn reason(error: &NetError) -> String {
    match error {
        NetError::Timeout => "no name server answered in time".into(),
        NetError::Dns(DnsError::ResponseCode(code)) => {
            format!("the name server answered: {code}")
        }
        other => other.to_string(),
    }
}

/// Pauses after failures.
struct Retry {
    first: Duration,
    next: Duration,
    rng: StdRng,
}

impl Retry {
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

/// What is known, and what was told of it. Pure.
struct Keeper {
    service: Arc<str>,
    port: u16,
    retry: Retry,
    /// The last good answers, A and AAAA.
    families: [BTreeSet<IpAddr>; 2],
    /// The set that was told last.
    told: Vec<Found>,
    /// Why it is stale, as told.
    stale: Option<String>,
    /// What was left out, as told.
    left_out: Option<String>,
}

impl Keeper {
    fn new(service: Arc<str>, port: u16, retry: Retry) -> Self {
        let families = Default::default();
        Self { service, port, retry, families, told: Vec::new(), stale: None, left_out: None }
    }

    /// What to tell, and how long to wait until it is asked again.
    fn take(&mut self, answers: [Answer; 2], ttl: Duration) -> (Vec<Word>, Duration) {
        let mut words = Vec::new();
        let failed = answers.iter().find_map(|answer| match answer {
            Answer::Failed(why) => Some(why.clone()),
            Answer::Has(_) | Answer::Empty(_) => None,
        });
        let empty = answers.iter().find_map(|answer| match answer {
            Answer::Empty(why) => Some(*why),
            Answer::Has(_) | Answer::Failed(_) => None,
        });
        let found_some = answers.iter().any(|answer| matches!(answer, Answer::Has(_)));
        // A family that could not be asked keeps its addresses: they are not known to be gone.
        let families: Vec<BTreeSet<IpAddr>> = answers
            .into_iter()
            .zip(&self.families)
            .map(|(answer, last)| match answer {
                Answer::Has(ips) => ips,
                Answer::Empty(_) => BTreeSet::new(),
                Answer::Failed(_) => last.clone(),
            })
            .collect();
        let (found, left_out) = self.instances(families.iter().flatten().copied());
        let why = match failed {
            Some(why) => Some(why),
            None if !found.is_empty() => None,
            None if left_out.is_some() => Some("none of its addresses can be used".into()),
            None => Some(empty.unwrap_or("no address").into()),
        };
        if left_out != self.left_out {
            let at = format!("service {}", self.service);
            words.extend(left_out.clone().map(|why| Word::Bad { at, why }));
            self.left_out = left_out;
        }
        // None at all is a fact that might be a mistake, so it changes nothing.
        if !found.is_empty() {
            self.families = families.try_into().expect("two in, two out");
        }
        let changed = !found.is_empty() && found != self.told;
        if changed {
            self.told = found;
            let known = Known { instances: self.told.clone(), routes: Vec::new() };
            words.push(Word::Known { known, by: "dns".into() });
        }
        let pause = match why {
            None => ttl,
            Some(_) if found_some => ttl.min(self.retry.after_failure()),
            Some(_) => self.retry.after_failure(),
        };
        match why {
            Some(why) => {
                let line = self.stale_line(&why);
                if changed || self.stale.as_ref() != Some(&line) {
                    words.push(Word::Stale { why: line.clone() });
                }
                self.stale = Some(line);
            }
            None => {
                self.retry.after_success();
                if self.stale.take().is_some() && !changed {
                    words.push(Word::Fresh);
                }
            }
        }
        (words, pause)
    }

    fn stale_line(&self, why: &str) -> String {
        let Self { service, told, .. } = self;
        let kept = match told.len() {
            0 => "it has no instance from there yet".to_owned(),
            n => format!("the {n} found before stay"),
        };
        format!(
            "cannot look up the addresses of service {service}: {why}; {kept}; \
             check its key dns, and the name servers in [dns] servers or /etc/resolv.conf"
        )
    }

    /// Instances at `ips`, sorted, and why some were left out.
    fn instances(&self, ips: impl Iterator<Item = IpAddr>) -> (Vec<Found>, Option<String>) {
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
        let found = usable.into_iter().take(ADDRESSES_MAX).map(|ip| Found {
            service: self.service.clone(),
            name: instance_name(&self.service, ip),
            address: SocketAddr::new(ip, self.port),
            weight: 1,
            draining: false,
        });
        (found.collect(), left_out)
    }
}

/// Whether a host can have it as its own and be reached there. 0.0.0.0, which blocklists answer,
/// would reach this host; fe80:: needs an interface beside it.
fn is_usable(ip: IpAddr) -> bool {
    let elsewhere = match ip {
        IpAddr::V4(ip) => ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(ip.is_unspecified() || ip.is_multicast() || elsewhere)
}
