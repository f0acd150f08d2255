//! Shares of what is limited: how much of it each owner holds, and whether an owner may take more.
//!
//! Three quarters of it are free for whoever comes first, so that one owner alone has the use of
//! them. The last quarter is for owners below their fair share: of the whole, each tenant that
//! holds something has an equal part, and in it each of its owners, and one that is to come. So no
//! owner can hold so much that another of its tenant gets nothing.

use hashbrown::HashMap;

use crate::engine::owner::Holder;
use crate::ids::TenantId;

/// What a tenant holds.
#[derive(Clone, Copy, Debug)]
struct TenantHolding<const N: usize> {
    held: [usize; N],
    holders: usize,
}

/// What each owner holds of `N` things that are limited.
#[derive(Debug)]
pub(crate) struct Shares<const N: usize> {
    holders: HashMap<Holder, [usize; N]>,
    tenants: HashMap<TenantId, TenantHolding<N>>,
    held: [usize; N],
}

impl<const N: usize> Shares<N> {
    /// Bytes of memory for an owner that holds something: its place in the table, at a load of
    /// 7/16.
    pub const HOLDER_BYTES: usize = 2 * (size_of::<(Holder, [usize; N])>() + 8);

    /// Nobody holds anything.
    pub fn new() -> Self {
        Self { holders: HashMap::new(), tenants: HashMap::new(), held: [0; N] }
    }

    /// Part of `max` that is free for whoever comes first.
    pub fn free_for_all(max: usize) -> usize {
        max - max / 4
    }

    /// How much of a thing all owners hold together.
    pub fn held(&self, thing: usize) -> usize {
        self.held[thing]
    }

    /// Whether `holder` may take `amount` more of a thing of which there is `max`.
    pub fn may_take(&self, holder: Holder, thing: usize, amount: usize, max: usize) -> bool {
        let held = self.held[thing] + amount;
        held <= Self::free_for_all(max)
            || (held <= max && self.is_within(holder, thing, amount, max))
    }

    /// Whether `holder` is within its fair share with `amount` more. The first of an owner that
    /// holds nothing is within it, whatever its size.
    pub fn is_within(&self, holder: Holder, thing: usize, amount: usize, max: usize) -> bool {
        let own = self.holders.get(&holder).map_or(0, |held| held[thing]);
        let tenant = self.tenants.get(&holder.tenant);
        let tenants = self.tenants.len() + usize::from(tenant.is_none());
        let (held, holders) = tenant.map_or((0, 0), |t| (t.held[thing], t.holders));
        let of_tenant = (max / tenants).max(1);
        held + amount <= of_tenant && (own == 0 || own + amount <= of_tenant / (holders + 1))
    }

    /// Counts what `holder` takes of each thing.
    pub fn take(&mut self, holder: Holder, amounts: [usize; N]) {
        let none = TenantHolding { held: [0; N], holders: 0 };
        let tenant = self.tenants.entry(holder.tenant).or_insert(none);
        let own = self.holders.entry(holder).or_insert_with(|| {
            tenant.holders += 1;
            [0; N]
        });
        for (thing, amount) in amounts.into_iter().enumerate() {
            own[thing] += amount;
            tenant.held[thing] += amount;
            self.held[thing] += amount;
        }
    }

    /// Counts what `holder`, which holds as much, gives back of each thing.
    pub fn give_back(&mut self, holder: Holder, amounts: [usize; N]) {
        let own = self.holders.get_mut(&holder).expect("it holds something");
        let tenant = self.tenants.get_mut(&holder.tenant).expect("one of its owners does");
        for (thing, amount) in amounts.into_iter().enumerate() {
            own[thing] = own[thing].checked_sub(amount).expect("as much as it took");
            tenant.held[thing] -= amount;
            self.held[thing] -= amount;
        }
        if own.iter().all(|&held| held == 0) {
            self.holders.remove(&holder);
            tenant.holders -= 1;
        }
        if tenant.holders == 0 {
            self.tenants.remove(&holder.tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::owner::Party;
    use proptest::prelude::*;

    fn holder(tenant: u64, user: u8) -> Holder {
        let party = Party::User(u64::from(user));
        Holder { tenant: TenantId(tenant), party, session: 0 }
    }

    #[test]
    fn one_alone_has_three_quarters_and_each_that_comes_later_gets_a_part_of_the_rest() {
        const MAX: usize = 1000;
        let mut shares = Shares::<1>::new();
        let fill = |shares: &mut Shares<1>, holder| {
            let mut taken = 0;
            while shares.may_take(holder, 0, 1, MAX) {
                shares.take(holder, [1]);
                taken += 1;
            }
            taken
        };
        assert_eq!(fill(&mut shares, holder(1, 0)), 750, "what nobody else wants");
        assert_eq!(fill(&mut shares, holder(1, 1)), 250, "half of the whole would be fair");
        assert_eq!(fill(&mut shares, holder(1, 2)), 0, "there is no more");
        // The greedy one gets nothing back before it is below three quarters again.
        shares.give_back(holder(1, 0), [100]);
        assert_eq!(fill(&mut shares, holder(1, 0)), 0);
        assert_eq!(fill(&mut shares, holder(1, 2)), 100);
        // Another tenant has a part of its own, however many owners the first one has.
        shares.give_back(holder(1, 0), [100]);
        assert_eq!(fill(&mut shares, holder(2, 0)), 100);
        shares.give_back(holder(1, 0), [550]);
        assert_eq!(fill(&mut shares, holder(2, 0)), 300, "what is free for all");
        assert_eq!(fill(&mut shares, holder(1, 3)), 125, "a quarter of the half");
        assert_eq!(fill(&mut shares, holder(2, 1)), 100, "the other half is full then");
    }

    proptest! {
        /// Against a plain list of who holds what.
        #[test]
        fn what_is_held_is_what_was_taken_and_nobody_below_its_share_is_refused(
            steps in prop::collection::vec((0_u64..3, 0_u8..4, 1_usize..9, any::<bool>()), 1..200),
        ) {
            const MAX: usize = 64;
            let mut shares = Shares::<1>::new();
            let mut model: Vec<(u64, u8, usize)> = Vec::new();
            for (tenant, user, amount, takes) in steps {
                let who = holder(tenant, user);
                let own = |m: &(u64, u8, usize)| (m.0, m.1) == (tenant, user);
                if takes && shares.may_take(who, 0, amount, MAX) {
                    shares.take(who, [amount]);
                    match model.iter_mut().find(|m| own(m)) {
                        Some(m) => m.2 += amount,
                        None => model.push((tenant, user, amount)),
                    }
                } else if takes {
                    let held: usize = model.iter().map(|m| m.2).sum();
                    let mine = model.iter().find(|m| own(m)).map_or(0, |m| m.2);
                    let of_tenant: usize =
                        model.iter().filter(|m| m.0 == tenant).map(|m| m.2).sum();
                    let here = model.iter().filter(|m| m.0 == tenant).count() + 1;
                    let mut tenants: Vec<_> = model.iter().map(|m| m.0).collect();
                    tenants.push(tenant);
                    tenants.sort_unstable();
                    tenants.dedup();
                    let part = MAX / tenants.len();
                    let is_below =
                        (mine == 0 || mine + amount <= part / here) && of_tenant + amount <= part;
                    prop_assert!(held + amount > MAX || (held + amount > 48 && !is_below));
                } else if let Some(at) = model.iter().position(|m| own(m) && m.2 >= amount) {
                    shares.give_back(who, [amount]);
                    model[at].2 -= amount;
                    model.retain(|m| m.2 > 0);
                }
                prop_assert_eq!(shares.held(0), model.iter().map(|m| m.2).sum::<usize>());
                prop_assert_eq!(shares.holders.len(), model.len());
            }
        }
    }
}
