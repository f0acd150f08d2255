//! Instances by DNS: the A and AAAA records of one host, or SRV records and the hosts that they
//! name, looked up again when their time to live ends.
//!
//! Names of instances are made of what the records say alone ([`instance_name`], [`target_name`]),
//! so that the ring hashes them alike in every process and after every restart. A host with an IPv4
//! and an IPv6 address is one instance with both. A lookup that fails, and an answer without
//! addresses, change nothing: the last set stays. One type of record is enough: there are name
//! servers that answer every question for AAAA with an error.

mod records;
mod resolver;
mod targets;
#[cfg(test)]
mod tests;
mod told;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::proto::rr::Name;
use tokio::task::JoinHandle;
use xxhash_rust::xxh3::xxh3_64;

use super::{News, NewsSender, SourceEvent};
use crate::config::{Lookup, LookupName, is_name};

use records::HostRecords;
use resolver::{HostAnswers, RecordAnswer, Resolver};
use targets::TargetRecords;
use told::{Backoff, Told};

/// Instances of one name. 256 A records are 4 KiB of an answer; more of them are a mistake.
const INSTANCES_MAX: usize = 256;
/// Least time to live that is used: 0 means "do not cache", not "ask without a pause".
const TTL_MIN: Duration = Duration::from_secs(1);
/// Longest time to live that is used, so that a mistake of a day in a zone is not one here.
const TTL_MAX: Duration = Duration::from_secs(300);
/// Longest wait for one name server, TCP after a truncated answer included.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a first failure; x1.6 each time, +-20 %, as for connections.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest pause after a failure.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Longest name of an instance ([`is_name`]).
const NAME_BYTES_MAX: usize = 64;

/// Looks up the name for its service until the task is aborted or the receiver of `news` is gone.
/// `servers` are asked over UDP, and over TCP where an answer was cut; with none, those of
/// /etc/resolv.conf (and /etc/hosts first), which are read each time. `seed` is for the jitter of
/// retries. Runs inside a tokio runtime.
///
/// The error is one line: the name cannot be asked for.
pub fn start(
    lookup: &Lookup,
    servers: &[SocketAddr],
    seed: u64,
    news: NewsSender,
) -> Result<JoinHandle<()>, String> {
    let Lookup { service, name, family } = lookup;
    let refused =
        |error| format!("service {service}: dns = \"{name}\" cannot be asked for: {error}");
    let parsed = |text: &str| Name::from_ascii(text).map_err(refused);
    let told = Told::new(service.clone(), Backoff::new(RETRY_FIRST, seed));
    let asked = match name {
        LookupName::Host { host, port } => {
            Asked::Host(parsed(host)?, HostRecords::new(*port, told, has_route))
        }
        LookupName::Srv(name) => Asked::Srv(parsed(name)?, TargetRecords::new(told)),
    };
    let resolver = Resolver { servers: servers.into(), family: *family, timeout: QUESTION_TIMEOUT };
    let source = format!("dns:{service}").into();
    Ok(tokio::spawn(follow(resolver, asked, source, news)))
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

/// The name of the instance that an SRV record names: `logic-node1.internal-50001`. Where that is
/// longer than a name may be, it is cut, and eight hexadecimal digits of its XXH3 stand in the
/// place of the rest, so that it stays this host's alone.
pub fn target_name(service: &str, host: &str, port: u16) -> Arc<str> {
    let (start, port) = (format!("{service}-{host}"), port.to_string());
    let full = format!("{start}-{port}");
    let name = if full.len() <= NAME_BYTES_MAX {
        full
    } else {
        let hash = format!("{:08x}", xxh3_64(full.as_bytes()) as u32);
        let room = NAME_BYTES_MAX - port.len() - hash.len() - 2;
        format!("{}-{hash}-{port}", &start[..room])
    };
    debug_assert!(is_name(&name), "{name}");
    name.into()
}

/// A name, and what is known of its records.
enum Asked {
    Host(Name, HostRecords),
    Srv(Name, TargetRecords),
}

impl Asked {
    /// Looks up once. Returns the events to send, and the pause before the next lookup.
    async fn turn(&mut self, resolver: &Resolver) -> (Vec<SourceEvent>, Duration) {
        match self {
            Self::Host(host, records) => {
                let (answers, ttl) = resolver.ask_host(host).await;
                records.take(answers, ttl)
            }
            Self::Srv(name, records) => {
                let (answer, ttl) = resolver.ask_srv(name).await;
                records.take(answer, ttl)
            }
        }
    }
}

/// Looks up, sends news and sleeps, until the receiver is gone.
async fn follow(resolver: Resolver, mut asked: Asked, source: Arc<str>, news: NewsSender) {
    loop {
        let (events, pause) = asked.turn(&resolver).await;
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

/// Whether this machine has a route to the address. A UDP socket finds out, and sends nothing.
fn has_route(ip: IpAddr) -> bool {
    let own = match ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    // Any port but 0 will do.
    UdpSocket::bind((own, 0)).and_then(|socket| socket.connect((ip, 9))).is_ok()
}
