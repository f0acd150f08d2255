//! Divides tenants' quotas among the shards, each second, by what each shard wants.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::ids::{ShardId, TenantId};
use crate::routing::quota::{Demand, Part, TenantDemand, TenantPart, approach, divide, equal_part};
use crate::routing::{Quota, Tenant, TenantTable};

/// Longest wait for the other shards after the first has told what it wants: they tell once a
/// second, at different times; a shard that is late has what it had.
const WAIT: Duration = Duration::from_millis(1_100);

/// The last word of each shard.
#[derive(Debug)]
pub struct QuotaDivision {
    /// By tenant, of each shard.
    demands: BTreeMap<TenantId, Vec<Demand>>,
    /// By tenant: its quota, and the part of it that each shard was given.
    given: BTreeMap<TenantId, (Quota, Vec<Part>)>,
    /// Whether each shard has told since the last division.
    heard: Vec<bool>,
    /// Time of the next division, if a shard has told since the last one.
    due: Option<Instant>,
}

impl QuotaDivision {
    /// A division among `shards`, of which none has told anything.
    pub fn new(shards: usize) -> Self {
        Self {
            demands: BTreeMap::new(),
            given: BTreeMap::new(),
            heard: vec![false; shards],
            due: None,
        }
    }

    /// Takes what a shard wants.
    pub fn take(&mut self, shard: ShardId, demands: &[TenantDemand], now: Instant) {
        let at = usize::from(shard.0);
        let shards = self.heard.len();
        let Some(heard) = self.heard.get_mut(at) else { return };
        *heard = true;
        for of_shards in self.demands.values_mut() {
            of_shards[at] = Demand::default();
        }
        for (id, demand) in demands {
            let of_shards =
                self.demands.entry(*id).or_insert_with(|| vec![Demand::default(); shards]);
            of_shards[at] = *demand;
        }
        self.due.get_or_insert(now + WAIT);
        if self.heard.iter().all(|heard| *heard) {
            self.due = Some(now);
        }
    }

    /// Time of the next division.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The parts of each shard, by number, if it is time to divide.
    pub fn turn(&mut self, tenants: &TenantTable, now: Instant) -> Option<Vec<Vec<TenantPart>>> {
        self.due.take_if(|due| *due <= now)?;
        self.heard.iter_mut().for_each(|heard| *heard = false);
        let mut parts: Vec<Vec<TenantPart>> = vec![Vec::new(); self.heard.len()];
        // Tenants that are configured no more are forgotten.
        self.given.retain(|id, _| tenants.get(*id).is_some());
        let (given, shards) = (&mut self.given, self.heard.len());
        self.demands.retain(|id, demands| {
            let Some(Tenant { quota, .. }) = tenants.get(*id) else { return false };
            // What a shard has of a quota that is new.
            let equal = || (0..shards).map(|shard| equal_part(quota, shard, shards)).collect();
            let before = given.remove(id).filter(|(of, _)| of == quota);
            let before = before.map_or_else(equal, |(_, before)| before);
            let next = approach(quota, &before, demands, divide(quota, demands));
            for (parts, part) in parts.iter_mut().zip(&next) {
                parts.push((*id, *part));
            }
            given.insert(*id, (*quota, next));
            true
        });
        Some(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::SharedCount;
    use crate::routing::quota::Thing;

    fn table(messages_per_s: u32) -> TenantTable {
        let quota = Quota { messages_per_s, ..Quota::NONE };
        let id = TenantId::of("acme");
        TenantTable::new(vec![Tenant {
            id,
            name: "acme".into(),
            weight: 1,
            routes: Vec::new(),
            inherits: true,
            services: None,
            origins: Vec::new(),
            quota,
            has_metrics: false,
            connections: SharedCount::default(),
        }])
    }

    fn wants(messages: u64) -> [TenantDemand; 1] {
        let mut demand = Demand::default();
        demand.asked[Thing::Messages as usize] = messages * 1_000;
        [(TenantId::of("acme"), demand)]
    }

    fn messages(parts: &[Vec<TenantPart>]) -> Vec<u64> {
        let of = |list: &Vec<TenantPart>| list[0].1[Thing::Messages as usize].expect("limited");
        parts.iter().map(of).collect()
    }

    #[test]
    fn a_quota_is_divided_when_all_shards_have_told_or_one_is_late() {
        let (now, tenants) = (Instant::now(), table(100));
        let mut division = QuotaDivision::new(2);
        assert_eq!(division.due(), None);
        division.take(ShardId(0), &wants(300), now);
        assert_eq!(division.turn(&tenants, now), None, "the other one may want something");
        division.take(ShardId(1), &wants(20), now);
        let parts = division.turn(&tenants, now).expect("all have told");
        assert_eq!(messages(&parts), [80_000, 20_000]);
        // The other one is stopped: what it wanted last stays its part.
        division.take(ShardId(0), &wants(300), now);
        let parts = division.turn(&tenants, now + WAIT).expect("it is time");
        assert_eq!(messages(&parts), [80_000, 20_000]);
        assert_eq!(division.due(), None);
    }

    #[test]
    fn a_tenant_that_is_configured_no_more_is_forgotten() {
        let now = Instant::now();
        let mut division = QuotaDivision::new(1);
        division.take(ShardId(0), &wants(1), now);
        let parts = division.turn(&TenantTable::default(), now).expect("all have told");
        assert_eq!(parts, [Vec::new()]);
        assert!(division.demands.is_empty());
    }
}
