//! SRV records and the addresses of their hosts -> instances (RFC 2782). Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::records::{Families, Trouble, merged};
use super::resolver::is_usable;
use super::told::{Found, Told};
use super::{HostAnswers, INSTANCES_MAX, RecordAnswer, target_name};
use crate::config::is_name;
use crate::control::discovery::{FoundInstance, SourceEvent};
use crate::routing::Addresses;

/// Addresses of one host that are tried: two of a family are plenty, and more are no single host.
const ADDRESSES_MAX: usize = 4;
/// Sum of the weights of a set of records: with the default of 160 points on the ring for each, a
/// sixth of all points of the process.
const WEIGHTS_SUM: u64 = 1000;

/// An SRV record.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct SrvRecord {
    pub(super) priority: u16,
    /// Name in lower case, without the dot at its end; empty for the root, which means that the
    /// service is not available.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) weight: u16,
}

/// Result of a lookup of SRV records.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum SrvAnswer {
    /// Records, by priority, each with the addresses of its host.
    Has(Vec<(SrvRecord, HostAnswers)>),
    /// No record, by the word of the name server.
    Empty(&'static str),
    /// The lookup failed, for this reason.
    Failed(String),
}

/// SRV records of one name, and the state that was sent of them.
pub(super) struct TargetRecords {
    service: Arc<str>,
    told: Told,
    /// Last good answers for each host.
    hosts: BTreeMap<String, Families>,
}

impl TargetRecords {
    pub(super) fn new(told: Told) -> Self {
        Self { service: told.service(), told, hosts: BTreeMap::new() }
    }

    /// Takes in the answer of a lookup. Returns the events to send, and the pause before the next
    /// lookup.
    pub(super) fn take(
        &mut self,
        answer: SrvAnswer,
        ttl: Duration,
    ) -> (Vec<SourceEvent>, Duration) {
        let found = match answer {
            SrvAnswer::Has(records) => self.found(records),
            SrvAnswer::Empty(why) => Found::nothing(why.into()),
            SrvAnswer::Failed(why) => Found::nothing(why),
        };
        self.told.take(found, ttl)
    }

    /// Instances of the lowest priority value whose hosts have addresses.
    fn found(&mut self, records: Vec<(SrvRecord, HostAnswers)>) -> Found {
        let mut groups: BTreeMap<u16, Vec<(SrvRecord, HostAnswers)>> = BTreeMap::new();
        for (record, answers) in records {
            groups.entry(record.priority).or_default().push((record, answers));
        }
        let (mut failed, mut left_out) = (None, None);
        for group in groups.into_values() {
            let Targets { mut found, hosts } = self.targets(group);
            failed = failed.or(found.stale.take());
            left_out = left_out.or(found.left_out.take());
            if !found.instances.is_empty() {
                self.hosts = hosts;
                return Found { stale: failed, left_out, ..found };
            }
        }
        let why = failed.or(left_out).unwrap_or_else(|| "no SRV record".into());
        Found { has_records: true, ..Found::nothing(why) }
    }

    /// Instances of records of one priority.
    fn targets(&self, group: Vec<(SrvRecord, HostAnswers)>) -> Targets {
        let mut targets = Targets::default();
        let found = &mut targets.found;
        found.has_records = true;
        let mut weights = Vec::new();
        let mut group = one_of_each(group);
        if group.len() > INSTANCES_MAX {
            let n = group.len();
            found.left_out =
                Some(format!("its name has {n} SRV records; the first {INSTANCES_MAX} are used"));
            group.truncate(INSTANCES_MAX);
        }
        for (SrvRecord { host, port, weight, .. }, answers) in group {
            let none = Families::default();
            let last = self.hosts.get(&host).unwrap_or(&none);
            let trouble = Trouble::of(&answers, last);
            let of_host = |why: String| format!("{host}: {why}");
            found.unneeded = found.unneeded.take().or(trouble.unneeded.map(of_host));
            found.stale = found.stale.take().or(trouble.failed.map(of_host));
            let families = merged(&answers, last);
            match addresses(&host, port, &families) {
                Ok(addresses) => {
                    let (service, name) = (self.service.clone(), &*self.service);
                    let name = target_name(name, &host, port);
                    let draining = false;
                    let instance = FoundInstance { service, name, addresses, weight: 1, draining };
                    found.instances.push(instance);
                    weights.push(weight);
                }
                Err(why) => {
                    let is_failed = answers.iter().any(|a| matches!(a, RecordAnswer::Failed(_)));
                    if !is_failed {
                        found.left_out.get_or_insert(why);
                    }
                }
            }
            targets.hosts.insert(host, families);
        }
        for (instance, weight) in found.instances.iter_mut().zip(ratio(&weights)) {
            instance.weight = weight;
        }
        targets
    }
}

/// What records of one priority come to.
#[derive(Default)]
struct Targets {
    found: Found,
    /// Addresses of each host.
    hosts: BTreeMap<String, Families>,
}

/// One record for each host and port, sorted: of several the one with the largest weight.
fn one_of_each(group: Vec<(SrvRecord, HostAnswers)>) -> Vec<(SrvRecord, HostAnswers)> {
    let mut by_target = BTreeMap::new();
    for (record, answers) in group {
        let key = (record.host.clone(), record.port);
        let weight = record.weight;
        let entry: &mut (SrvRecord, HostAnswers) =
            by_target.entry(key).or_insert((record, answers));
        entry.0.weight = entry.0.weight.max(weight);
    }
    by_target.into_values().collect()
}

/// Addresses of a host in the order in which they are tried, IPv6 and IPv4 by turns (RFC 8305). The
/// error says why it is left out.
fn addresses(host: &str, port: u16, families: &Families) -> Result<Addresses, String> {
    if host.is_empty() {
        return Err(
            "an SRV record says that the service is not available (its host is \".\")".into()
        );
    }
    if port == 0 {
        return Err(format!("the SRV record of {host} has port 0: it was left out"));
    }
    if !host.bytes().all(|b| is_name(char::from(b).encode_utf8(&mut [0; 4]))) {
        return Err(format!("{host:?} is no host's name: its SRV record was left out"));
    }
    let usable = |ips: &BTreeSet<IpAddr>| ips.iter().copied().filter(|&ip| is_usable(ip)).collect();
    let [v4, v6]: [Vec<IpAddr>; 2] = families.each_ref().map(usable);
    let by_turns = (0..ADDRESSES_MAX).flat_map(|n| [v6.get(n), v4.get(n)]).flatten();
    let mut all = by_turns.take(ADDRESSES_MAX).map(|&ip| SocketAddr::new(ip, port));
    let first = all.next().ok_or_else(|| {
        format!("{host}, which an SRV record names, has no address: it was left out")
    })?;
    Ok(Addresses::new(first, all.collect()))
}

/// Weights of instances for those of records: only their ratio counts, and none is 0. Smaller
/// numbers in the same ratio leave more points on the rings to others.
fn ratio(weights: &[u16]) -> Vec<u32> {
    let weights: Vec<u64> = weights.iter().map(|&weight| u64::from(weight.max(1))).collect();
    let divisor = weights.iter().copied().fold(0, greatest_common_divisor).max(1);
    let sum = weights.iter().sum::<u64>() / divisor;
    let scaled = |weight: &u64| {
        let weight = weight / divisor;
        let weight = if sum > WEIGHTS_SUM { weight * WEIGHTS_SUM / sum } else { weight };
        weight.max(1) as u32
    };
    weights.iter().map(scaled).collect()
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}
