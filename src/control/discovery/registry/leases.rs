//! Leases of the registered instances. Pure: the time is passed in.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::control::discovery::{FoundInstance, SourceContents};
use crate::limits::{CATCH_UP_MS, PAUSE_MS};

/// Instances at once: 4,096 of about 300 bytes are 1.2 MiB, and a copy of the contents as much
/// again.
pub const INSTANCES_MAX: usize = 4096;
/// Instances of one caller, so that a caller that registers a new name at each crash leaves room.
pub const CALLER_INSTANCES_MAX: usize = 1024;

/// Id of a lease: random, so that one says nothing about the others.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId(pub u128);

/// Facts that a caller registers about an instance. All fields are checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registration {
    /// Name of the service.
    pub service: Arc<str>,
    /// Address of the instance.
    pub address: SocketAddr,
    /// Weight, 1 to 1000.
    pub weight: u32,
    /// Whether the instance asks for no new messages.
    pub draining: bool,
    /// Time to live without a heartbeat.
    pub ttl: Duration,
}

/// Facts that a heartbeat may change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LeaseUpdate {
    /// New weight, 1 to 1000.
    pub weight: Option<u32>,
    /// Whether the instance drains.
    pub draining: Option<bool>,
}

/// Reason why a call was refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LeaseError {
    /// The caller has no such lease.
    NotFound,
    /// The instance's name is held by another caller, or by this one for another service.
    Taken {
        /// Whether another caller holds the name.
        by_other_caller: bool,
    },
    /// The service is not one of the caller's.
    Forbidden(Arc<str>),
    /// There are already so many instances: [`INSTANCES_MAX`], or [`CALLER_INSTANCES_MAX`] of the
    /// caller.
    Full(usize),
}

struct Lease {
    registration: Registration,
    caller: Arc<str>,
    id: LeaseId,
    until: Instant,
}

/// All leases. Time never runs backwards from one call to the next.
#[derive(Default)]
pub struct Leases {
    by_name: BTreeMap<Arc<str>, Lease>,
    by_id: HashMap<LeaseId, Arc<str>>,
    by_end: BTreeSet<(Instant, Arc<str>)>,
    by_caller: HashMap<Arc<str>, usize>,
    /// Origins of the changes since the last [`Self::take_change`].
    changed_by: BTreeSet<Arc<str>>,
}

impl Leases {
    /// Registers `instance` for `caller` under a new lease, `id`; a lease that the caller held
    /// before under that name ends.
    pub fn register(
        &mut self,
        caller: &Arc<str>,
        instance: &str,
        registration: Registration,
        id: LeaseId,
        now: Instant,
    ) -> Result<(), LeaseError> {
        self.expire(now);
        let before = match self.by_name.get(instance) {
            Some(lease) if lease.caller != *caller => {
                return Err(LeaseError::Taken { by_other_caller: true });
            }
            Some(lease) if lease.registration.service != registration.service => {
                return Err(LeaseError::Taken { by_other_caller: false });
            }
            Some(_) => self.remove(instance),
            None => {
                let own = self.by_caller.get(caller).copied().unwrap_or(0);
                if own >= CALLER_INSTANCES_MAX {
                    return Err(LeaseError::Full(CALLER_INSTANCES_MAX));
                }
                if self.by_name.len() >= INSTANCES_MAX {
                    return Err(LeaseError::Full(INSTANCES_MAX));
                }
                None
            }
        };
        let same = before.is_some_and(|before| are_alike(&before.registration, &registration));
        if !same {
            self.changed_by.insert(caller.clone());
        }
        let name: Arc<str> = instance.into();
        let until = now + registration.ttl;
        self.by_id.insert(id, name.clone());
        self.by_end.insert((until, name.clone()));
        *self.by_caller.entry(caller.clone()).or_default() += 1;
        self.by_name.insert(name, Lease { registration, caller: caller.clone(), id, until });
        Ok(())
    }

    /// Renews a lease from `now` on, and updates the instance. Returns the time to live.
    pub fn heartbeat(
        &mut self,
        caller: &Arc<str>,
        id: LeaseId,
        change: LeaseUpdate,
        may_change: impl Fn(&str) -> bool,
        now: Instant,
    ) -> Result<Duration, LeaseError> {
        self.expire(now);
        let name = self.name_of(caller, id, may_change)?;
        let lease = self.by_name.get_mut(&name).expect("a lease in the index is held");
        self.by_end.remove(&(lease.until, name.clone()));
        lease.until = now + lease.registration.ttl;
        self.by_end.insert((lease.until, name));
        let before = lease.registration.clone();
        lease.registration.weight = change.weight.unwrap_or(before.weight);
        lease.registration.draining = change.draining.unwrap_or(before.draining);
        if lease.registration != before {
            self.changed_by.insert(caller.clone());
        }
        Ok(before.ttl)
    }

    /// Ends a lease of the caller.
    pub fn deregister(
        &mut self,
        caller: &Arc<str>,
        id: LeaseId,
        may_change: impl Fn(&str) -> bool,
        now: Instant,
    ) -> Result<(), LeaseError> {
        self.expire(now);
        let name = self.name_of(caller, id, may_change)?;
        self.remove(&name);
        self.changed_by.insert(caller.clone());
        Ok(())
    }

    /// Leaves a time out in which this process was stopped: a timer ends each lease, so if one was
    /// to end long ago, heartbeats that came meanwhile were not read. Each lease gets as much
    /// longer, and the time in which they are read.
    fn leave_out_pause(&mut self, now: Instant) {
        let Some(end) = self.next_end() else { return };
        let late = now.saturating_duration_since(end);
        if late < Duration::from_millis(PAUSE_MS) {
            return;
        }
        let longer = late + Duration::from_millis(CATCH_UP_MS);
        self.by_name.values_mut().for_each(|lease| lease.until += longer);
        let by_end = std::mem::take(&mut self.by_end);
        self.by_end = by_end.into_iter().map(|(end, name)| (end + longer, name)).collect();
    }

    /// Removes the leases that ended at `now` or before; returns the names of their instances.
    pub fn expire(&mut self, now: Instant) -> Vec<Arc<str>> {
        self.leave_out_pause(now);
        let mut gone = Vec::new();
        while let Some((end, name)) = self.by_end.first()
            && *end <= now
        {
            let name = name.clone();
            let lease = self.remove(&name).expect("a name in the index is held");
            self.changed_by.insert(format!("{} (its lease ran out)", lease.caller).into());
            gone.push(name);
        }
        gone
    }

    /// End of the next lease.
    pub fn next_end(&self) -> Option<Instant> {
        self.by_end.first().map(|(end, _)| *end)
    }

    /// Contents and origins of the change, if something changed since the last call.
    pub fn take_change(&mut self) -> Option<(SourceContents, Vec<Arc<str>>)> {
        if self.changed_by.is_empty() {
            return None;
        }
        let by = std::mem::take(&mut self.changed_by).into_iter().collect();
        let instance = |(name, lease): (&Arc<str>, &Lease)| FoundInstance {
            service: lease.registration.service.clone(),
            name: name.clone(),
            addresses: lease.registration.address.into(),
            weight: lease.registration.weight,
            draining: lease.registration.draining,
        };
        let instances = self.by_name.iter().map(instance).collect();
        Some((SourceContents { instances, ..SourceContents::default() }, by))
    }

    /// Name of the instance of a lease, if the lease is the caller's and the caller may still
    /// change the service. A lease of another caller is refused like one that never existed.
    fn name_of(
        &self,
        caller: &Arc<str>,
        id: LeaseId,
        may_change: impl Fn(&str) -> bool,
    ) -> Result<Arc<str>, LeaseError> {
        let name = self.by_id.get(&id).ok_or(LeaseError::NotFound)?;
        let lease = &self.by_name[name];
        if lease.caller != *caller {
            return Err(LeaseError::NotFound);
        }
        if !may_change(&lease.registration.service) {
            return Err(LeaseError::Forbidden(lease.registration.service.clone()));
        }
        Ok(name.clone())
    }

    fn remove(&mut self, name: &str) -> Option<Lease> {
        let (name, lease) = self.by_name.remove_entry(name)?;
        self.by_id.remove(&lease.id);
        self.by_end.remove(&(lease.until, name));
        if let Some(count) = self.by_caller.get_mut(&lease.caller) {
            *count -= 1;
            if *count == 0 {
                self.by_caller.remove(&lease.caller);
            }
        }
        Some(lease)
    }
}

/// Whether routing sees no difference: it does not know of times to live.
fn are_alike(a: &Registration, b: &Registration) -> bool {
    let routed = |e: &Registration| (e.service.clone(), e.address, e.weight, e.draining);
    routed(a) == routed(b)
}

#[cfg(test)]
mod tests;
