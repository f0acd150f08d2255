//! A and AAAA records of one host -> instances. Pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::resolver::is_usable;
use super::told::{Found, Told};
use super::{HostAnswers, INSTANCES_MAX, RecordAnswer, instance_name};
use crate::control::discovery::{FoundInstance, SourceEvent};
use crate::routing::Addresses;

/// Addresses of a host, A and AAAA.
pub(super) type Families = [BTreeSet<IpAddr>; 2];

/// Addresses of both families after these answers. A family that could not be looked up keeps its
/// addresses: they are not known to be gone.
pub(super) fn merged(answers: &HostAnswers, last: &Families) -> Families {
    let merge = |answer: &RecordAnswer, last: &BTreeSet<IpAddr>| match answer {
        RecordAnswer::Has(ips) => ips.clone(),
        RecordAnswer::Empty(_) | RecordAnswer::NotAsked => BTreeSet::new(),
        RecordAnswer::Failed(_) => last.clone(),
    };
    let ([v4, v6], [last_v4, last_v6]) = (answers, last);
    [merge(v4, last_v4), merge(v6, last_v6)]
}

/// Trouble with the answers for one host.
pub(super) struct Trouble {
    /// Error of a type of record that could not be looked up, and of which addresses are in use or
    /// may be missed.
    pub(super) failed: Option<String>,
    /// Error of a type of record that is not needed: the other one has addresses, and of this one
    /// there was never any, or they are not used.
    pub(super) unneeded: Option<String>,
    /// Reason why a type of record has no address.
    pub(super) empty: Option<&'static str>,
}

impl Trouble {
    /// `last`: the addresses of each type as they were known before.
    pub(super) fn of(answers: &HostAnswers, last: &Families) -> Self {
        let known = |answer: &RecordAnswer| match answer {
            RecordAnswer::Has(ips) => ips.iter().filter(|&&ip| is_usable(ip)).count(),
            RecordAnswer::Empty(_) | RecordAnswer::Failed(_) | RecordAnswer::NotAsked => 0,
        };
        let one_is_known = answers.iter().any(|answer| known(answer) > 0);
        // Of many hosts the IPv4 addresses are used.
        let is_unused = [false, known(&answers[0]) > 1];
        let (mut failed, mut unneeded) = (None, None);
        for ((answer, last), is_unused) in answers.iter().zip(last).zip(is_unused) {
            if let RecordAnswer::Failed(why) = answer {
                let needed = !one_is_known || !(last.is_empty() || is_unused);
                let first = if needed { &mut failed } else { &mut unneeded };
                first.get_or_insert_with(|| why.clone());
            }
        }
        let empty = answers.iter().find_map(|answer| match answer {
            RecordAnswer::Empty(why) => Some(*why),
            RecordAnswer::Has(_) | RecordAnswer::Failed(_) | RecordAnswer::NotAsked => None,
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

/// Records of one host, and the state that was sent of them.
pub(super) struct HostRecords {
    service: Arc<str>,
    port: u16,
    told: Told,
    /// Last good answers.
    families: Families,
    /// Whether this machine has a route to an address.
    has_route: fn(IpAddr) -> bool,
}

impl HostRecords {
    pub(super) fn new(port: u16, told: Told, has_route: fn(IpAddr) -> bool) -> Self {
        Self { service: told.service(), port, told, families: Default::default(), has_route }
    }

    /// Takes in the answers of a lookup. Returns the events to send, and the pause before the next
    /// lookup.
    pub(super) fn take(
        &mut self,
        answers: HostAnswers,
        ttl: Duration,
    ) -> (Vec<SourceEvent>, Duration) {
        let has_records = answers.iter().any(|answer| matches!(answer, RecordAnswer::Has(_)));
        let mut trouble = Trouble::of(&answers, &self.families);
        let unneeded = trouble.unneeded.take();
        let families = merged(&answers, &self.families);
        let (instances, left_out) = self.instances(&families);
        let stale = trouble.why(!instances.is_empty(), left_out.is_some());
        // No instance at all may be a mistake in the zone, so that changes nothing.
        if !instances.is_empty() {
            self.families = families;
        }
        self.told.take(Found { instances, has_records, left_out, stale, unneeded }, ttl)
    }

    /// Instances at the addresses, sorted, and the reason why some were left out.
    fn instances(&self, families: &Families) -> (Vec<FoundInstance>, Option<String>) {
        let mut left_out =
            families.iter().flatten().find(|&&ip| !is_usable(ip)).map(|ip| {
                format!("{ip} is no address of one host: it was left out; correct the zone")
            });
        let usable =
            |ips: &BTreeSet<IpAddr>| ips.iter().copied().filter(|&ip| is_usable(ip)).collect();
        let [v4, v6]: [Vec<IpAddr>; 2] = families.each_ref().map(usable);
        let at = |ip| SocketAddr::new(ip, self.port);
        if let ([v4], [v6]) = (&v4[..], &v6[..]) {
            // One host: its name stays the same when it gets its second address.
            let addresses = Addresses::new(at(*v6), vec![at(*v4)]);
            return (vec![self.instance(*v4, addresses)], left_out);
        }
        let ips = self.family_of_many(v4, v6);
        if ips.len() > INSTANCES_MAX {
            let n = ips.len();
            left_out = Some(format!(
                "its name has {n} addresses; the first {INSTANCES_MAX} in order are used"
            ));
        }
        let found = ips.into_iter().take(INSTANCES_MAX);
        (found.map(|ip| self.instance(ip, at(ip).into())).collect(), left_out)
    }

    /// The addresses that are used of many hosts. No record tells which IPv4 and IPv6 addresses are
    /// of one host, so those of one family are used: IPv4, as long as there are any and this
    /// machine has a route to them.
    fn family_of_many(&self, v4: Vec<IpAddr>, v6: Vec<IpAddr>) -> Vec<IpAddr> {
        let has_route = |ips: &[IpAddr]| ips.iter().any(|&ip| (self.has_route)(ip));
        let is_v6 = match (v4.is_empty(), v6.is_empty()) {
            (false, false) => !has_route(&v4) && has_route(&v6),
            (is_v6, _) => is_v6,
        };
        if is_v6 { v6 } else { v4 }
    }

    fn instance(&self, named: IpAddr, addresses: Addresses) -> FoundInstance {
        let service = self.service.clone();
        let name = instance_name(&service, named);
        FoundInstance { service, name, addresses, weight: 1, draining: false }
    }
}
