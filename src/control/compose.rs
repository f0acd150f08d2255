//! Composes one versioned snapshot out of files, sources and health. Pure.
//!
//! Numbers are assigned here and never used again: a service keeps its number as long as the
//! process runs (a name with another mode is another service), an instance as long as it exists
//! with the same name and addresses.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use super::discovery::{FoundInstance, SourceContents};
use crate::config::Config;
use crate::ids::{InstanceId, ServiceId, TenantId};
use crate::limits;
use crate::routing::Ring;
use crate::routing::{
    Instance, Mode, Route, Service, Share, SharedCount, Snapshot, Tenant, TenantTable,
};

/// Source name of instances that the files list.
pub const FILES: &str = "files";

/// Services over the life of a process: ServiceId is a u16.
const SERVICES_EVER_MAX: usize = 1 << 16;

/// An instance in the composition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    pub id: InstanceId,
    pub service: ServiceId,
    /// Source that names the instance.
    pub source: Arc<str>,
    /// Facts that the source states.
    pub found: FoundInstance,
    /// Whether the source does not name the instance any more, which is kept because its service
    /// has no other.
    pub held: bool,
    /// Whether the operator drains the instance.
    pub drained: bool,
}

impl Member {
    /// Whether the instance gets no new messages, because its source or the operator drains it.
    pub fn is_draining(&self) -> bool {
        self.found.draining || self.drained
    }
}

/// A change of an instance between two compositions, for the log.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum MemberChange {
    Came(FoundInstance),
    Left(FoundInstance),
    /// The instance drains, or does so no more, by its source or by the operator.
    Draining(FoundInstance),
    Weight(FoundInstance),
}

/// Result of a composition.
#[derive(Debug)]
pub struct Composition {
    /// The new snapshot; `None` if nothing differs from the one before.
    pub snapshot: Option<Arc<Snapshot>>,
    pub changes: Vec<MemberChange>,
    /// Instances that were left out, with the reasons; all of them each time.
    pub warnings: Vec<String>,
}

/// Points of one ring. While they stay the same, the `Arc` of the ring does, too.
type Points = Vec<(InstanceId, Arc<str>, u32)>;

/// Maker of snapshots, one after the other.
#[derive(Debug)]
pub struct Composer {
    snapshot: Arc<Snapshot>,
    services: HashMap<(Arc<str>, Mode), ServiceId>,
    members: BTreeMap<Arc<str>, Member>,
    instances_ever: u32,
    rings: HashMap<ServiceId, (Points, u32)>,
    /// Connections of the tenants that are, and of those that were and have some, by name.
    connections: HashMap<Arc<str>, SharedCount>,
}

impl Composer {
    /// A composer whose first snapshot holds what the files list: version 1.
    pub fn new(config: &Config) -> Self {
        let snapshot = Arc::new(Snapshot {
            version: 0,
            routes: Vec::new(),
            tenants: TenantTable::default(),
            services: Vec::new(),
            instances: Vec::new(),
        });
        let mut composer = Self {
            snapshot,
            services: HashMap::new(),
            members: BTreeMap::new(),
            instances_ever: 0,
            rings: HashMap::new(),
            connections: HashMap::new(),
        };
        composer.compose(config, &BTreeMap::new(), &BTreeSet::new(), |_| Share::ALL);
        composer
    }

    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    pub fn members(&self) -> &BTreeMap<Arc<str>, Member> {
        &self.members
    }

    /// Whether the services of `config` can be numbered: each name gets a number once and for all.
    pub fn has_room(&self, config: &Config) -> bool {
        let names = config.snapshot.services.iter().map(|s| (s.name.clone(), s.mode));
        let new = names.filter(|name| !self.services.contains_key(name)).count();
        self.services.len() + new <= SERVICES_EVER_MAX
    }

    /// Composes the instances of the files, of the sources (by name; the first source that names an
    /// instance has it) and the operator's drains (`draining`: names of instances). `share` gives
    /// the share of an instance by its health.
    pub fn compose(
        &mut self,
        config: &Config,
        sources: &BTreeMap<Arc<str>, SourceContents>,
        draining: &BTreeSet<Arc<str>>,
        share: impl Fn(InstanceId) -> Share,
    ) -> Composition {
        let numbers = self.number_services(config);
        let mut draft = Draft::new(config, &numbers);
        draft.add_files(config);
        // Instances that exist come before new ones, so that no source can push another's out.
        let here = |found: &FoundInstance| {
            let member = self.members.get(&found.name);
            member.is_some_and(|m| {
                (&m.found.service, &m.found.addresses) == (&found.service, &found.addresses)
            })
        };
        for wanted in [true, false] {
            for (source, known) in sources {
                let mut found: Vec<&FoundInstance> =
                    known.instances.iter().filter(|found| here(found) == wanted).collect();
                found.sort();
                found.into_iter().for_each(|found| draft.add(source, found));
            }
        }
        draft.hold_last(&self.members, sources);
        for name in draining {
            if let Some(member) = draft.members.get_mut(name) {
                member.drained = true;
            }
        }
        let Draft { members, mut warnings, .. } = draft;
        let changes = self.take_members(members, &mut warnings);
        let snapshot = self.snapshot_of(config, &numbers, share);
        let same = is_same(&self.snapshot, &snapshot);
        if !same {
            self.snapshot = Arc::new(snapshot);
        }
        Composition { snapshot: (!same).then(|| self.snapshot.clone()), changes, warnings }
    }

    /// Number of each service, by its position in the file.
    fn number_services(&mut self, config: &Config) -> Vec<ServiceId> {
        let number = |service: &Service| {
            let next = ServiceId(self.services.len() as u16);
            *self.services.entry((service.name.clone(), service.mode)).or_insert(next)
        };
        config.snapshot.services.iter().map(number).collect()
    }

    /// Gives numbers to the new members; returns the changes. When all 2^32 numbers were used (one
    /// new instance a second for a century), new instances are left out: a number used twice would
    /// send messages to the wrong instance.
    fn take_members(
        &mut self,
        mut new: BTreeMap<Arc<str>, Member>,
        warnings: &mut Vec<String>,
    ) -> Vec<MemberChange> {
        let mut changes = Vec::new();
        let mut old = std::mem::take(&mut self.members);
        new.retain(|name, member| {
            let same = |m: &Member| {
                (m.service, &m.found.addresses) == (member.service, &member.found.addresses)
            };
            match old.remove(name) {
                Some(before) if same(&before) => {
                    member.id = before.id;
                    if before.is_draining() != member.is_draining() {
                        let draining = member.is_draining();
                        let found = FoundInstance { draining, ..member.found.clone() };
                        changes.push(MemberChange::Draining(found));
                    }
                    if before.found.weight != member.found.weight {
                        changes.push(MemberChange::Weight(member.found.clone()));
                    }
                    true
                }
                before => {
                    changes.extend(before.map(|m| MemberChange::Left(m.found)));
                    let Some(next) = self.instances_ever.checked_add(1) else {
                        warnings.push(format!("{name}: 2^32 instances have been; restart"));
                        return false;
                    };
                    member.id = InstanceId(self.instances_ever);
                    self.instances_ever = next;
                    changes.push(MemberChange::Came(member.found.clone()));
                    true
                }
            }
        });
        changes.extend(old.into_values().map(|m| MemberChange::Left(m.found)));
        changes.sort();
        self.members = new;
        changes
    }

    fn snapshot_of(
        &mut self,
        config: &Config,
        numbers: &[ServiceId],
        share: impl Fn(InstanceId) -> Share,
    ) -> Snapshot {
        let (routes, tenants) = self.rules_of(config, numbers);
        let mut instances: Vec<Instance> = self
            .members
            .values()
            .map(|member| Instance {
                id: member.id,
                service: member.service,
                name: member.found.name.clone(),
                addresses: member.found.addresses.clone(),
                weight: member.found.weight,
                share: share(member.id),
                draining: member.is_draining(),
            })
            .collect();
        instances.sort_by_key(|instance| instance.id.0);
        let mut names: Vec<_> =
            self.services.iter().map(|(name, id)| (*id, name.clone())).collect();
        names.sort_unstable_by_key(|(id, _)| id.0);
        let version = self.snapshot.version + 1;
        let mut points: HashMap<ServiceId, Points> = HashMap::new();
        for i in instances.iter().filter(|i| !i.draining) {
            points.entry(i.service).or_default().push((i.id, i.name.clone(), i.weight));
        }
        let services = names.into_iter().map(|(id, (name, mode))| {
            let own = points.remove(&id).unwrap_or_default();
            let ring = self.ring(id, own, config.ring_points);
            Service { name, mode, ring }
        });
        Snapshot { version, routes, tenants, services: services.collect(), instances }
    }

    /// Routes and tenants of `config`, with the numbers of services. A tenant's connections are
    /// counted on through all changes of the configuration.
    fn rules_of(&mut self, config: &Config, numbers: &[ServiceId]) -> (Vec<Route>, TenantTable) {
        // A source may name ever new ones. A shard that counts one more meanwhile counts it anew
        // when the tenant comes back.
        let known = &config.snapshot.tenants;
        self.connections
            .retain(|name, count| known.get(TenantId::of(name)).is_some() || count.get() > 0);
        let number = |service: ServiceId| numbers[usize::from(service.0)];
        let renumber = |routes: &[Route]| -> Vec<Route> {
            let one = |route: &Route| Route { service: number(route.service), ..route.clone() };
            routes.iter().map(one).collect()
        };
        let tenants = config.snapshot.tenants.list().iter().map(|tenant| {
            let services = tenant.services.as_ref().map(|services| {
                let mut services: Vec<ServiceId> = services.iter().map(|s| number(*s)).collect();
                services.sort_unstable();
                services
            });
            let connections = self.connections.entry(tenant.name.clone()).or_default().clone();
            Tenant { routes: renumber(&tenant.routes), services, connections, ..tenant.clone() }
        });
        let tenants = TenantTable::new(tenants.collect());
        (renumber(&config.snapshot.routes), tenants)
    }

    /// The ring of a service: the same one as before if its points are the same.
    fn ring(&mut self, id: ServiceId, own: Points, points: u32) -> Arc<Ring> {
        if let Some((before, per_weight)) = self.rings.get(&id)
            && (before, *per_weight) == (&own, points)
            && let Some(service) = self.snapshot.services.get(usize::from(id.0))
        {
            return service.ring.clone();
        }
        let ring = Ring::new(own.iter().map(|(id, name, weight)| (*id, &**name, *weight)), points);
        self.rings.insert(id, (own, points));
        ring.into()
    }
}

/// Whether both snapshots make shards do the same.
fn is_same(old: &Snapshot, new: &Snapshot) -> bool {
    let same = |(a, b): (&Service, &Service)| {
        (&a.name, a.mode) == (&b.name, b.mode) && Arc::ptr_eq(&a.ring, &b.ring)
    };
    old.version > 0
        && old.routes == new.routes
        && old.tenants == new.tenants
        && old.instances == new.instances
        && old.services.len() == new.services.len()
        && old.services.iter().zip(&new.services).all(same)
}

/// Members, while they are collected.
struct Draft<'a> {
    services: HashMap<&'a str, ServiceId>,
    points_left: u64,
    points_per_weight: u64,
    members: BTreeMap<Arc<str>, Member>,
    addresses: HashMap<(ServiceId, SocketAddr), Arc<str>>,
    warnings: Vec<String>,
}

impl<'a> Draft<'a> {
    fn new(config: &'a Config, numbers: &[ServiceId]) -> Self {
        let names = config.snapshot.services.iter().map(|s| &*s.name);
        Self {
            services: names.zip(numbers.iter().copied()).collect(),
            points_left: limits::RING_POINTS_MAX,
            points_per_weight: u64::from(config.ring_points),
            members: BTreeMap::new(),
            addresses: HashMap::new(),
            warnings: Vec::new(),
        }
    }

    fn add_files(&mut self, config: &Config) {
        for instance in &config.snapshot.instances {
            let service = &config.snapshot.services[usize::from(instance.service.0)];
            let found = FoundInstance {
                service: service.name.clone(),
                name: instance.name.clone(),
                addresses: instance.addresses.clone(),
                weight: instance.weight,
                draining: false,
            };
            self.add(&FILES.into(), &found);
        }
    }

    fn add(&mut self, source: &Arc<str>, found: &FoundInstance) {
        if let Err(why) = self.try_add(source, found, false) {
            self.warnings.push(format!("{source}: instance {:?}: {why}", &*found.name));
        }
    }

    fn try_add(
        &mut self,
        source: &Arc<str>,
        found: &FoundInstance,
        held: bool,
    ) -> Result<(), String> {
        let Some(&service) = self.services.get(&*found.service) else {
            return Err(format!("there is no [[service]] {:?}; add one", &*found.service));
        };
        if let Some(other) = self.members.get(&found.name) {
            return Err(format!("{} names one of that id already; ids are unique", other.source));
        }
        for address in found.addresses.iter() {
            if let Some(other) = self.addresses.get(&(service, address)) {
                return Err(format!("{address} is also the address of {:?}", &**other));
            }
        }
        let points = u64::from(found.weight) * self.points_per_weight;
        if self.members.len() >= limits::INSTANCES_MAX || points > self.points_left {
            return Err(format!(
                "there are too many: at most {} instances, and weights times ring_points of {}",
                limits::INSTANCES_MAX,
                limits::RING_POINTS_MAX
            ));
        }
        self.points_left -= points;
        for address in found.addresses.iter() {
            self.addresses.insert((service, address), found.name.clone());
        }
        let (source, found) = (source.clone(), found.clone());
        let name = found.name.clone();
        let (id, drained) = (InstanceId(u32::MAX), false);
        let member = Member { id, service, source, found, held, drained };
        self.members.insert(name, member);
        Ok(())
    }

    /// Keeps the last instances of a service that had some by a source and now has none: an empty
    /// answer is more often a mistake than intended. Instances that the files named go with the
    /// files, and those of a source that is given up go with it.
    fn hold_last(
        &mut self,
        before: &BTreeMap<Arc<str>, Member>,
        sources: &BTreeMap<Arc<str>, SourceContents>,
    ) {
        let named: HashSet<ServiceId> = self.members.values().map(|m| m.service).collect();
        let lost = |m: &&Member| !named.contains(&m.service) && sources.contains_key(&m.source);
        for member in before.values().filter(lost) {
            // The service may be gone with the files, and then so is the instance.
            let _ = self.try_add(&member.source, &member.found, true);
        }
    }
}

#[cfg(test)]
mod tests;
