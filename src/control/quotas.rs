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
    /// By tenant: its quota, and what each shard was given of it.
    given: BTreeMap<TenantId, (Quota, Vec<Given>)>,
    /// Whether each shard has told since the last division.
    heard: Vec<bool>,
    /// Time of the next division, if a shard has told since the last one.
    due: Option<Instant>,
}

/// What a shard was given of a quota.
#[derive(Clone, Copy, Debug)]
struct Given {
    /// The part that it was given last.
    last: Part,
    /// The most that it may live with: it may not have taken those of divisions after it last told
    /// what it wants.
    most: Part,
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
        let (shards, heard) = (self.heard.len(), self.heard.clone());
        self.heard.fill(false);
        let mut parts: Vec<Vec<TenantPart>> = vec![Vec::new(); shards];
        // Tenants that are configured no more are forgotten.
        self.given.retain(|id, _| tenants.get(*id).is_some());
        let given = &mut self.given;
        self.demands.retain(|id, demands| {
            let Some(Tenant { quota, .. }) = tenants.get(*id) else { return false };
            let before = given.remove(id).filter(|(of, _)| of == quota);
            let before: Vec<Part> = match before {
                Some((_, given)) => given
                    .iter()
                    .zip(&heard)
                    .map(|(given, heard)| if *heard { given.last } else { given.most })
                    .collect(),
                // What a shard has of a quota that is new.
                None => (0..shards).map(|shard| equal_part(quota, shard, shards)).collect(),
            };
            let next = approach(quota, &before, demands, divide(quota, demands));
            for (parts, part) in parts.iter_mut().zip(&next) {
                parts.push((*id, *part));
            }
            let now_given = before.iter().zip(next).map(|(before, last)| {
                let most = std::array::from_fn(|thing| last[thing].max(before[thing]));
                Given { last, most }
            });
            given.insert(*id, (*quota, now_given.collect()));
            true
        });
        Some(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::quota::Thing;

    fn table(messages_per_s: u32) -> TenantTable {
        let quota = Quota { messages_per_s, ..Quota::NONE };
        TenantTable::new(vec![Tenant { quota, ..Tenant::plain("acme") }])
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

    /// Promise: shards together hold no more than the quota, also if what one tells is lost.
    #[test]
    fn a_shard_that_is_not_heard_of_may_still_live_with_an_older_part() {
        let quota = Quota { queued_bytes_max: 200, ..Quota::NONE };
        let mut tenants = table(0).list().to_vec();
        tenants[0].quota = quota;
        let tenants = TenantTable::new(tenants);
        let at = Thing::QueuedBytes as usize;
        let tells = |held: u64, asked: u64| {
            let mut demand = Demand::default();
            (demand.held[at], demand.asked[at]) = (held, asked);
            [(TenantId::of("acme"), demand)]
        };
        let (mut now, mut division) = (Instant::now(), QuotaDivision::new(2));
        division.take(ShardId(0), &tells(10, 0), now);
        division.take(ShardId(1), &tells(100, 500), now);
        division.turn(&tenants, now).expect("all have told");
        // The first one fills its part of 100 before it hears of a smaller one, and is silent.
        for _ in 0..3 {
            division.take(ShardId(1), &tells(100, 500), now);
            now += WAIT;
            let parts = division.turn(&tenants, now).expect("it is time");
            let part = parts[1][0].1[at].expect("limited");
            assert!(part <= 100, "{part} beside 100");
        }
        // Once it tells what it holds, what it does not need goes to the other.
        for _ in 0..3 {
            division.take(ShardId(0), &tells(10, 0), now);
            division.take(ShardId(1), &tells(100, 500), now);
            division.turn(&tenants, now).expect("all have told");
        }
        division.take(ShardId(0), &tells(10, 0), now);
        division.take(ShardId(1), &tells(100, 500), now);
        let parts = division.turn(&tenants, now).expect("all have told");
        assert!(parts[1][0].1[at] > Some(150), "{parts:?}");
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
