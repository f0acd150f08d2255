//! Quotas of tenants, and their division among the shards: what each shard wants, and the part that
//! it gets. Shards tell once a second what they want, and control gives each its part by that: a
//! quota is the process's, not the shard's.

use crate::ids::TenantId;

/// Things that are divided.
pub const THINGS: usize = 5;
/// Parts in which a rate is divided: thousandths of one a second, so that 10 connections a second
/// can be divided among 64 shards.
pub const RATE_PARTS: u64 = 1_000;
/// Part of a shard that wants nothing, as a divisor of its equal part: what wakes up is let in at
/// once. Of a quota that others want all of, a fortieth is kept for that at most.
const KEPT_FOR_IDLE: u64 = 40;

/// Limits of a tenant in the whole process; 0 = no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Quota {
    /// Connections of its users at once.
    pub connections_max: u32,
    /// Connections of its users that begin in a second.
    pub connects_per_s: u32,
    /// Messages a second.
    pub messages_per_s: u32,
    /// Bytes of its messages a second, as clients sent them.
    pub bytes_per_s: u32,
    /// Bytes of its messages that have no answer yet: those that wait, and those in calls.
    pub queued_bytes_max: u32,
    /// Idempotency keys that are remembered.
    pub dedup_ids_max: u32,
}

impl Quota {
    /// No limit at all.
    pub const NONE: Self = Self {
        connections_max: 0,
        connects_per_s: 0,
        messages_per_s: 0,
        bytes_per_s: 0,
        queued_bytes_max: 0,
        dedup_ids_max: 0,
    };
}

/// A thing of a tenant that is divided among the shards. Connections are not: they are counted for
/// the process as a whole, see [`crate::routing::SharedCount`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Thing {
    /// Connections a second.
    Connects,
    /// Messages a second.
    Messages,
    /// Bytes of messages a second.
    Bytes,
    /// Bytes of messages without an answer.
    QueuedBytes,
    /// Ids that are remembered.
    DedupIds,
}

impl Thing {
    /// All of them, in the order of [`Part`] and [`Demand`].
    pub const ALL: [Self; THINGS] =
        [Self::Connects, Self::Messages, Self::Bytes, Self::QueuedBytes, Self::DedupIds];
    /// The things that are used up and flow in again.
    pub const RATES: [Self; 3] = [Self::Connects, Self::Messages, Self::Bytes];

    /// The whole of it in `quota`, in the unit that is divided; `None` = no limit.
    pub fn whole(self, quota: &Quota) -> Option<u64> {
        let (limit, unit) = match self {
            Self::Connects => (quota.connects_per_s, RATE_PARTS),
            Self::Messages => (quota.messages_per_s, RATE_PARTS),
            Self::Bytes => (quota.bytes_per_s, RATE_PARTS),
            Self::QueuedBytes => (quota.queued_bytes_max, 1),
            Self::DedupIds => (quota.dedup_ids_max, 1),
        };
        (limit > 0).then_some(u64::from(limit) * unit)
    }

    /// Whether it is held, and not used up: a shard's part must leave it what it holds.
    pub fn is_held(self) -> bool {
        match self {
            Self::Connects | Self::Messages | Self::Bytes => false,
            Self::QueuedBytes | Self::DedupIds => true,
        }
    }
}

/// What a shard wanted of a tenant's quota in the last second.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Demand {
    /// Asked for: of rates in their parts a second; of what is held, beyond what is held.
    pub asked: [u64; THINGS],
    /// Held now; 0 of rates.
    pub held: [u64; THINGS],
}

/// A shard's part of a tenant's quota, in the units of [`Thing::whole`]; `None` = no limit.
pub type Part = [Option<u64>; THINGS];

/// What a shard tells control of a tenant.
pub type TenantDemand = (TenantId, Demand);

/// The part of a tenant's quota that control gives a shard.
pub type TenantPart = (TenantId, Part);

/// The part of shard number `shard` of `shards` before anything is known: an equal one.
pub fn equal_part(quota: &Quota, shard: usize, shards: usize) -> Part {
    Thing::ALL.map(|thing| {
        let whole = thing.whole(quota)?;
        let (each, rest) = (whole / shards as u64, whole % shards as u64);
        Some(each + u64::from((shard as u64) < rest))
    })
}

/// The parts of all shards, by what each wants: nobody gets less than it holds, nobody who wants
/// less than others less than it wants (max-min fair), and what nobody wants is divided equally.
pub fn divide(quota: &Quota, demands: &[Demand]) -> Vec<Part> {
    let mut parts: Vec<Part> = vec![[None; THINGS]; demands.len()];
    for (at, thing) in Thing::ALL.into_iter().enumerate() {
        let Some(whole) = thing.whole(quota) else { continue };
        let held = demands.iter().map(|demand| if thing.is_held() { demand.held[at] } else { 0 });
        let held: Vec<u64> = held.collect();
        let asked = demands.iter().map(|demand| demand.asked[at]).collect();
        let left = whole.saturating_sub(held.iter().sum());
        let given = fill(left, asked);
        for ((part, held), given) in parts.iter_mut().zip(held).zip(given) {
            part[at] = Some(held + given);
        }
    }
    parts
}

/// The next parts on the way from those `before` to those `wanted`. Of what is held, a shard gets
/// more only as far as others have given it up by now: a shard that is told to have less may have
/// filled its part since it told what it holds, and together they must not hold more than there is.
pub fn approach(
    quota: &Quota,
    before: &[Part],
    demands: &[Demand],
    mut wanted: Vec<Part>,
) -> Vec<Part> {
    for thing in Thing::ALL.into_iter().filter(|thing| thing.is_held()) {
        let Some(whole) = thing.whole(quota) else { continue };
        let at = thing as usize;
        let may_hold = before.iter().zip(demands);
        let may_hold: Vec<u64> = may_hold
            .map(|(part, demand)| part[at].unwrap_or_default().max(demand.held[at]))
            .collect();
        let mut spare = whole.saturating_sub(may_hold.iter().sum());
        for (part, has) in wanted.iter_mut().filter_map(|part| part[at].as_mut()).zip(may_hold) {
            let more = part.saturating_sub(has).min(spare);
            spare -= more;
            *part = (*part).min(has) + more;
        }
    }
    wanted
}

/// Divides `whole` by what is asked; the sum is `whole` to the last unit.
fn fill(whole: u64, mut asked: Vec<u64>) -> Vec<u64> {
    let count = asked.len() as u64;
    // Of a rate that is not even a part for each: nothing, as there is no less.
    let least = (whole / (KEPT_FOR_IDLE * count.max(1))).max(1).min(whole / count.max(1));
    asked.iter_mut().for_each(|asked| *asked = (*asked).max(least));
    let mut order: Vec<usize> = (0..asked.len()).collect();
    order.sort_unstable_by_key(|&at| asked[at]);
    let mut given = vec![0; asked.len()];
    let mut left = whole;
    for (nth, &at) in order.iter().enumerate() {
        let each = left / (count - nth as u64);
        given[at] = asked[at].min(each);
        left -= given[at];
    }
    // Nobody asked for it.
    let (each, rest) = (left / count.max(1), left % count.max(1));
    for (nth, given) in given.iter_mut().enumerate() {
        *given += each + u64::from((nth as u64) < rest);
    }
    given
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rates(asked: &[u64], whole: u32) -> Vec<u64> {
        let quota = Quota { messages_per_s: whole, ..Quota::NONE };
        let demand = |asked: &u64| Demand { asked: [0, *asked, 0, 0, 0], held: [0; THINGS] };
        let parts = divide(&quota, &asked.iter().map(demand).collect::<Vec<_>>());
        parts.iter().map(|part| part[1].expect("limited")).collect()
    }

    #[test]
    fn who_wants_less_gets_it_and_the_others_share_the_rest() {
        assert_eq!(rates(&[1_000_000, 10_000, 1_000_000], 101), [45_500, 10_000, 45_500]);
        // What nobody wants is there for whoever comes.
        assert_eq!(rates(&[40_000, 0], 100), [69_375, 30_625]);
        // One that wants nothing is let in when it wakes up.
        assert_eq!(rates(&[9_000_000, 0], 100), [98_750, 1_250]);
    }

    #[test]
    fn a_thing_without_a_limit_has_no_part() {
        let parts = divide(&Quota::NONE, &[Demand::default(); 3]);
        assert_eq!(parts, [[None; THINGS]; 3]);
        assert_eq!(equal_part(&Quota::NONE, 0, 3), [None; THINGS]);
    }

    proptest! {
        /// Promise: the quota is the process's. The parts of all shards are the whole, nobody's
        /// part is below what it holds, and nobody goes short while somebody else has more than it
        /// wants, but for what is kept for those that wake up.
        #[test]
        fn the_parts_are_the_whole_and_follow_what_is_wanted(
            demands in prop::collection::vec((0u64..200_000, 0u64..5_000), 1..9),
            whole in 50_000u32..400_000,
        ) {
            let quota = Quota { queued_bytes_max: whole, ..Quota::NONE };
            let at = Thing::QueuedBytes as usize;
            let demands: Vec<Demand> = demands.into_iter().map(|(asked, held)| {
                let mut demand = Demand::default();
                (demand.asked[at], demand.held[at]) = (asked, held);
                demand
            }).collect();
            let parts = divide(&quota, &demands);
            let parts: Vec<u64> = parts.iter().map(|part| part[at].expect("limited")).collect();
            prop_assert_eq!(parts.iter().sum::<u64>(), u64::from(whole));
            let count = demands.len() as u64;
            for (part, demand) in parts.iter().zip(&demands) {
                prop_assert!(*part >= demand.held[at]);
                let is_short = *part < demand.held[at] + demand.asked[at];
                for (other, its) in parts.iter().zip(&demands) {
                    let wants = its.held[at] + its.asked[at];
                    let kept = u64::from(whole) / (KEPT_FOR_IDLE * count) + 1;
                    let spare = other.saturating_sub(wants);
                    prop_assert!(!is_short || spare <= kept, "{:?} {:?}", parts, demands);
                }
            }
        }

        /// Promise: what is held is within the quota, whatever a shard lets in after it has told
        /// what it holds; and soon the one that wants it all has it.
        #[test]
        fn shards_hold_no_more_than_the_whole_while_their_parts_change(
            rounds in prop::collection::vec(
                prop::collection::vec((0u64..3_000, any::<u64>(), any::<u64>()), 3),
                1..30,
            ),
            whole in 50u32..2_000,
        ) {
            let quota = Quota { queued_bytes_max: whole, ..Quota::NONE };
            let at = Thing::QueuedBytes as usize;
            let mut parts: Vec<Part> = (0..3).map(|shard| equal_part(&quota, shard, 3)).collect();
            let mut held = [0_u64; 3];
            let next = |parts: &[Part], held: &[u64], asked: &[u64]| {
                let demand = |(held, asked): (&u64, &u64)| {
                    let mut demand = Demand::default();
                    (demand.held[at], demand.asked[at]) = (*held, *asked);
                    demand
                };
                let demands: Vec<Demand> = held.iter().zip(asked).map(demand).collect();
                approach(&quota, parts, &demands, divide(&quota, &demands))
            };
            // It may come to anything up to its part, and keep what it has.
            let goes_on = |parts: &[Part], held: &mut [u64; 3], to: [u64; 3]| {
                for ((held, part), to) in held.iter_mut().zip(parts).zip(to) {
                    *held = to % ((*held).max(part[at].expect("limited")) + 1);
                }
                held.iter().sum::<u64>()
            };
            for round in &rounds {
                let told = held;
                let first = [round[0].1, round[1].1, round[2].1];
                let second = [round[0].2, round[1].2, round[2].2];
                prop_assert!(goes_on(&parts, &mut held, first) <= u64::from(whole));
                parts = next(&parts, &told, &[round[0].0, round[1].0, round[2].0]);
                prop_assert!(goes_on(&parts, &mut held, second) <= u64::from(whole));
            }
            for _ in 0..3 {
                parts = next(&parts, &[0; 3], &[10 * u64::from(whole), 0, 0]);
            }
            let first = parts[0][at].expect("limited");
            let kept = 2 * (u64::from(whole) / 120 + 1);
            prop_assert!(first + kept >= u64::from(whole), "{:?}", parts);
        }

        #[test]
        fn equal_parts_are_the_whole(whole in 1u32..10_000, shards in 1usize..70) {
            let quota = Quota { dedup_ids_max: whole, ..Quota::NONE };
            let part = |shard| equal_part(&quota, shard, shards)[Thing::DedupIds as usize];
            let sum: u64 = (0..shards).map(|shard| part(shard).expect("limited")).sum();
            prop_assert_eq!(sum, u64::from(whole));
        }
    }
}
