//! Who is registered, and until when: pure, the time is passed in.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::control::discovery::{Found, Known};

/// Instances at once: 4,096 of about 300 bytes are 1.2 MiB, and a full Known as much again.
pub const INSTANCES_MAX: usize = 4096;
/// Instances of one caller, so that one that registers a new name at each crash leaves room.
pub const CALLER_INSTANCES_MAX: usize = 1024;

/// A lease's id: random, so that knowing one says nothing of the others.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease(pub u128);

/// What a caller wants to be known. All fields are checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its service.
    pub service: Arc<str>,
    /// Where it listens.
    pub address: SocketAddr,
    /// 1 to 1000.
    pub weight: u32,
    /// It wants nothing new.
    pub draining: bool,
    /// How long it stays without a heartbeat.
    pub ttl: Duration,
}

/// What a heartbeat may change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Change {
    /// The new weight, 1 to 1000.
    pub weight: Option<u32>,
    /// Whether it drains.
    pub draining: Option<bool>,
}

/// Why something was refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refused {
    /// No such lease of this caller.
    NotFound,
    /// The name is held by another caller, or by this one for another service.
    Taken {
        /// What to tell.
        by_other_caller: bool,
    },
    /// The service is not one of the caller's.
    Forbidden(Arc<str>),
    /// [`INSTANCES_MAX`] or [`CALLER_INSTANCES_MAX`].
    Full(usize),
}

struct Held {
    entry: Entry,
    caller: Arc<str>,
    lease: Lease,
    until: Instant,
}

/// All leases. Time never runs backwards from one call to the next.
#[derive(Default)]
pub struct Book {
    held: BTreeMap<Arc<str>, Held>,
    by_lease: HashMap<Lease, Arc<str>>,
    by_end: BTreeSet<(Instant, Arc<str>)>,
    by_caller: HashMap<Arc<str>, usize>,
    /// Who changed what is known since it was last taken.
    changed_by: BTreeSet<Arc<str>>,
}

impl Book {
    /// `caller` wants `instance` to be known as `entry`, under `lease`, a fresh one.
    pub fn register(
        &mut self,
        caller: &Arc<str>,
        instance: &str,
        entry: Entry,
        lease: Lease,
        now: Instant,
    ) -> Result<(), Refused> {
        self.expire(now);
        let before = match self.held.get(instance) {
            Some(held) if held.caller != *caller => {
                return Err(Refused::Taken { by_other_caller: true });
            }
            Some(held) if held.entry.service != entry.service => {
                return Err(Refused::Taken { by_other_caller: false });
            }
            Some(_) => self.remove(instance),
            None => {
                let own = self.by_caller.get(caller).copied().unwrap_or(0);
                if own >= CALLER_INSTANCES_MAX {
                    return Err(Refused::Full(CALLER_INSTANCES_MAX));
                }
                if self.held.len() >= INSTANCES_MAX {
                    return Err(Refused::Full(INSTANCES_MAX));
                }
                None
            }
        };
        let same = before.is_some_and(|before| is_known_alike(&before.entry, &entry));
        if !same {
            self.changed_by.insert(caller.clone());
        }
        let name: Arc<str> = instance.into();
        let until = now + entry.ttl;
        self.by_lease.insert(lease, name.clone());
        self.by_end.insert((until, name.clone()));
        *self.by_caller.entry(caller.clone()).or_default() += 1;
        self.held.insert(name, Held { entry, caller: caller.clone(), lease, until });
        Ok(())
    }

    /// `lease` of `caller` holds for its time to live from `now`, which is given back.
    pub fn heartbeat(
        &mut self,
        caller: &Arc<str>,
        lease: Lease,
        change: Change,
        may_change: impl Fn(&str) -> bool,
        now: Instant,
    ) -> Result<Duration, Refused> {
        self.expire(now);
        let name = self.name_of(caller, lease, may_change)?;
        let held = self.held.get_mut(&name).expect("a lease in the index is held");
        self.by_end.remove(&(held.until, name.clone()));
        held.until = now + held.entry.ttl;
        self.by_end.insert((held.until, name));
        let before = held.entry.clone();
        held.entry.weight = change.weight.unwrap_or(before.weight);
        held.entry.draining = change.draining.unwrap_or(before.draining);
        if held.entry != before {
            self.changed_by.insert(caller.clone());
        }
        Ok(before.ttl)
    }

    /// `lease` of `caller` ends.
    pub fn deregister(
        &mut self,
        caller: &Arc<str>,
        lease: Lease,
        may_change: impl Fn(&str) -> bool,
        now: Instant,
    ) -> Result<(), Refused> {
        self.expire(now);
        let name = self.name_of(caller, lease, may_change)?;
        self.remove(&name);
        self.changed_by.insert(caller.clone());
        Ok(())
    }

    /// Removes what ended at `now` or before; gives its names.
    pub fn expire(&mut self, now: Instant) -> Vec<Arc<str>> {
        let mut gone = Vec::new();
        while let Some((end, name)) = self.by_end.first()
            && *end <= now
        {
            let name = name.clone();
            let held = self.remove(&name).expect("a name in the index is held");
            self.changed_by.insert(format!("{} (its lease ran out)", held.caller).into());
            gone.push(name);
        }
        gone
    }

    /// When the next lease ends.
    pub fn next_end(&self) -> Option<Instant> {
        self.by_end.first().map(|(end, _)| *end)
    }

    /// What is known, and who changed it, if anything changed since the last time.
    pub fn take_change(&mut self) -> Option<(Known, Vec<Arc<str>>)> {
        if self.changed_by.is_empty() {
            return None;
        }
        let by = std::mem::take(&mut self.changed_by).into_iter().collect();
        let found = |(name, held): (&Arc<str>, &Held)| Found {
            service: held.entry.service.clone(),
            name: name.clone(),
            address: held.entry.address,
            weight: held.entry.weight,
            draining: held.entry.draining,
        };
        let instances = self.held.iter().map(found).collect();
        Some((Known { instances, routes: Vec::new() }, by))
    }

    /// The instance of `lease`, if the lease is `caller`'s and it still may change the service.
    /// Another's lease is as unknown as one that never was.
    fn name_of(
        &self,
        caller: &Arc<str>,
        lease: Lease,
        may_change: impl Fn(&str) -> bool,
    ) -> Result<Arc<str>, Refused> {
        let name = self.by_lease.get(&lease).ok_or(Refused::NotFound)?;
        let held = &self.held[name];
        if held.caller != *caller {
            return Err(Refused::NotFound);
        }
        if !may_change(&held.entry.service) {
            return Err(Refused::Forbidden(held.entry.service.clone()));
        }
        Ok(name.clone())
    }

    fn remove(&mut self, name: &str) -> Option<Held> {
        let (name, held) = self.held.remove_entry(name)?;
        self.by_lease.remove(&held.lease);
        self.by_end.remove(&(held.until, name));
        if let Some(count) = self.by_caller.get_mut(&held.caller) {
            *count -= 1;
            if *count == 0 {
                self.by_caller.remove(&held.caller);
            }
        }
        Some(held)
    }
}

/// Whether routing sees no difference: it does not know of times to live.
fn is_known_alike(a: &Entry, b: &Entry) -> bool {
    let seen = |e: &Entry| (e.service.clone(), e.address, e.weight, e.draining);
    seen(a) == seen(b)
}

#[cfg(test)]
mod tests;
