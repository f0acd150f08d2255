//! Promise 6: shares against a list of everything that was taken, and what they promise.

use super::*;
use crate::engine::owner::{Address, Party};
use crate::ids::TenantId;
use crate::routing::{Tenant, TenantTable};
use proptest::prelude::*;

/// Everything that was taken, in a list: the rule in the words of the module's first lines.
#[derive(Default, Debug)]
pub(crate) struct List {
    pub max: usize,
    pub taken: Vec<(Holder, usize, Part)>,
}

impl List {
    fn sum(&self, which: impl Fn(&Holder, Part) -> bool) -> usize {
        self.taken.iter().filter(|(who, _, part)| which(who, *part)).map(|taken| taken.1).sum()
    }

    pub fn part_for(&self, who: &Holder, amount: usize) -> Option<Part> {
        let max = self.max;
        let left = |part: Part, size: usize| size.saturating_sub(self.sum(|_, p| p == part));
        if left(Part::Free, max - max / 4) >= amount {
            return Some(Part::Free);
        }
        if self.sum(|_, _| true) + amount > max {
            return None;
        }
        if amount > max / 16 {
            return Some(Part::Free);
        }
        let tenant = |other: &Holder| other.tenant == who.tenant;
        let party = |other: &Holder| tenant(other) && other.party == who.party;
        // What those beside the taker, with it, may still take of a part; what the taker holds.
        let of_tenant = self.sum(|h, part| tenant(h) && part == Part::Parties);
        let of_party = self.sum(|h, part| party(h) && part == Part::Sessions);
        let half = |left: usize, beside: usize| left.saturating_sub(beside) / 2;
        let asked = [
            (Part::Tenants, left(Part::Tenants, max / 16), self.sum(|h, _| tenant(h))),
            (
                Part::Parties,
                half(left(Part::Parties, max / 16), of_tenant),
                self.sum(|h, _| party(h)),
            ),
            (
                Part::Sessions,
                half(left(Part::Sessions, max / 8), of_party),
                self.sum(|h, _| h == who),
            ),
        ];
        let may = |(_, left, held): &(Part, usize, usize)| held + amount <= *left;
        asked.into_iter().find(may).map(|(part, ..)| part)
    }
}

fn user(tenant: u64, user: u64) -> Holder {
    Holder { tenant: TenantId(tenant), party: Party::User(user), session: 0 }
}

fn session(address: u8, session: u64) -> Holder {
    let party = Party::Address(Address::V4([192, 0, 2, address]));
    Holder { tenant: TenantId::DEFAULT, party, session }
}

/// One of two sessions of two addresses, or of two users of two tenants.
fn holder(n: u8) -> Holder {
    let bit = |at: u8| u64::from(n >> at & 1);
    match bit(2) {
        0 => session(n & 1, bit(1)),
        _ => user(bit(0), bit(1)),
    }
}

const MAX: usize = 16_000;

/// Takes one by one, up to `most`, and returns how many there were.
fn fill(shares: &mut Shares<1>, holder: Holder, most: usize) -> usize {
    let mut taken = 0;
    while taken < most
        && let Some(part) = shares.part_for(&holder, 1, MAX)
    {
        shares.take(&holder, [1], part);
        taken += 1;
    }
    taken
}

#[test]
fn one_alone_has_three_quarters_and_those_that_come_have_parts_of_the_rest() {
    let mut shares = Shares::<1>::with_capacity(0);
    assert_eq!(fill(&mut shares, session(1, 1), MAX), 12_000, "what nobody else wants");
    // Other sessions of the address: half of what is kept for sessions (2,000) is theirs, and each
    // leaves as much of that as it takes.
    assert_eq!(fill(&mut shares, session(1, 2), MAX), 500);
    assert_eq!(fill(&mut shares, session(1, 3), MAX), 250);
    // Another address: of the half of what is kept for parties (1,000), and then of what is left
    // for sessions (1,250), as much as it leaves.
    assert_eq!(fill(&mut shares, session(2, 1), MAX), 250 + 188);
    assert_eq!(fill(&mut shares, user(0, 1), MAX), 125 + 203);
    // Another tenant finds what is kept for tenants (1,000) whole.
    assert_eq!(fill(&mut shares, user(1, 1), MAX), 500);
    assert_eq!(fill(&mut shares, user(2, 1), MAX), 250 + 105);
}

/// Promise 19: of what is kept a tenant may hold as many times more as it is heavier.
#[test]
fn tenants_hold_of_what_is_kept_by_their_weights() {
    let weighing = |weights: &[u32]| {
        let tenant = |(n, weight): (usize, &u32)| Tenant {
            id: TenantId(n as u64),
            weight: *weight,
            ..Tenant::plain("")
        };
        TenantTable::new(weights.iter().enumerate().map(tenant).collect())
    };
    let held = |weights: &[u32], change: Option<&[u32]>| {
        let mut shares = Shares::<1>::with_capacity(0);
        shares.set_weights(&weighing(weights));
        fill(&mut shares, user(9, 1), MAX);
        let mut more = true;
        if let Some(weights) = change {
            assert_eq!(fill(&mut shares, user(0, 1), 1) + fill(&mut shares, user(1, 1), 1), 2);
            shares.set_weights(&weighing(weights));
        }
        while std::mem::take(&mut more) {
            (0..2).for_each(|tenant| more |= fill(&mut shares, user(tenant, 1), 1) > 0);
        }
        [0, 1].map(|tenant| shares.held_by(TenantId(tenant), 0))
    };
    let [one, other] = held(&[1, 1], None);
    assert!(one.abs_diff(other) <= 2, "{one} and {other}");
    for (weights, change) in [([4, 1], None), ([1, 1], Some(&[4, 1][..]))] {
        let [heavy, light] = held(&weights, change);
        // The last parts are taken in other steps than the first.
        assert!((3 * light..=5 * light).contains(&heavy), "{heavy} and {light}");
        assert!(heavy >= one, "the heaviest has what it had");
    }
    // What can be taken away again is divided by the weights, too.
    let mut shares = Shares::<1>::with_capacity(0);
    shares.set_weights(&weighing(&[4, 1]));
    fill(&mut shares, user(1, 1), 10);
    let most = |holder: &Holder| {
        (1..MAX).take_while(|n| shares.is_within(Asker::Named(holder), 0, *n, MAX)).count()
    };
    assert_eq!((most(&user(0, 1)), most(&user(2, 1))), (MAX * 4 / 5, MAX / 2));
}

#[test]
fn an_address_that_opens_sessions_takes_nothing_that_is_kept_for_others() {
    let mut shares = Shares::<1>::with_capacity(0);
    let all: usize = (0..50_000).map(|n| fill(&mut shares, session(1, n), 1)).sum();
    assert_eq!(all, 12_000 + 1_000, "half of what is kept for sessions");
    assert_eq!(fill(&mut shares, session(2, 1), 300), 300, "another address");
    // One that is greedy, too, leaves something to its other sessions.
    assert!(fill(&mut shares, session(2, 1), MAX) > 0);
    assert_eq!(fill(&mut shares, session(2, 2), 100), 100);
    assert_eq!(fill(&mut shares, user(7, 1), 400), 400, "another tenant");
    // However many users a tenant has, they take nothing that is kept for other tenants.
    let users: usize = (0..50_000).map(|n| fill(&mut shares, user(0, n), 1)).sum();
    assert!(users > 0);
    assert_eq!(fill(&mut shares, user(0, 50_000), 1), 0);
    assert_eq!(fill(&mut shares, user(8, 1), 200), 200, "one more tenant");
}

#[test]
fn many_that_hold_a_little_do_not_make_the_part_of_a_newcomer_small() {
    let mut shares = Shares::<1>::with_capacity(0);
    let small: usize = (0..12_000).map(|n| fill(&mut shares, user(1, n), 1)).sum();
    assert_eq!(small, 12_000);
    assert_eq!(fill(&mut shares, user(1, 50_000), 250), 250, "a 64th of all, not a 12,000th");
    assert_eq!(fill(&mut shares, session(1, 1), 250), 250);
    // Those that are there may have more, too.
    let more: usize = (0..1_000).map(|n| fill(&mut shares, user(1, n), 1)).sum();
    assert_eq!(more, 1_000);
}

#[test]
fn a_thing_of_few_pieces_is_taken_whole_by_whoever_comes() {
    for (max, amount) in [(1, 1), (15, 1), (16_000, 1_001)] {
        let mut shares = Shares::<1>::with_capacity(0);
        let mut held = 0;
        while let Some(part) = shares.part_for(&user(0, 1), amount, max) {
            shares.take(&user(0, 1), [amount], part);
            held += amount;
        }
        assert_eq!(held, max / amount * amount);
        assert!(!shares.is_kept(amount, max));
        assert!(shares.lacking(amount, max) > 0);
    }
}

#[test]
fn the_room_that_is_lacking_lets_anybody_in_again() {
    let mut shares = Shares::<1>::with_capacity(0);
    let greedy = user(0, 1);
    let first = shares.take(&greedy, [7], Part::Free);
    fill(&mut shares, greedy, MAX);
    assert!(shares.is_kept(7, MAX), "for those that hold little");
    assert_eq!(shares.lacking(7, MAX), 7);
    shares.give_back(first, [7], Part::Free);
    assert_eq!(shares.part_for(&greedy, 7, MAX), Some(Part::Free));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Against the list: the part that an amount is taken from, what is held, who is remembered.
    #[test]
    fn behaves_as_a_list_of_all_that_was_taken(
        steps in prop::collection::vec((0_u8..8, 1_usize..9, 0_u8..4, any::<usize>()), 1..200),
        max in 1_usize..200,
    ) {
        let mut shares = Shares::<1>::with_capacity(0);
        let mut list = List { max, taken: Vec::new() };
        let mut keys = Vec::new();
        for (who, amount, kind, which) in steps {
            let who = holder(who);
            if kind > 0 {
                let part = shares.part_for(&who, amount, max);
                prop_assert_eq!(part, list.part_for(&who, amount));
                if let Some(part) = part {
                    keys.push(shares.take(&who, [amount], part));
                    list.taken.push((who, amount, part));
                }
            } else if !keys.is_empty() {
                let at = which % keys.len();
                let (_, amount, part) = list.taken.swap_remove(at);
                shares.give_back(keys.swap_remove(at), [amount], part);
            }
            prop_assert!(shares.held(0) <= max);
            prop_assert_eq!(shares.held(0), list.sum(|_, _| true));
            let mut owners: Vec<_> = list.taken.iter().map(|taken| taken.0).collect();
            owners.sort_by_key(|who| format!("{who:?}"));
            owners.dedup();
            for (owner, key) in list.taken.iter().map(|taken| taken.0).zip(&keys) {
                prop_assert!(shares.is(Asker::Named(&owner), *key));
            }
            let is_owner = |at: &&u32| shares.nodes[**at as usize].name.is_owner();
            let live = shares.table.iter().filter(is_owner);
            prop_assert_eq!(live.count(), owners.len());
        }
        for ((_, amount, part), key) in list.taken.into_iter().zip(keys) {
            shares.give_back(key, [amount], part);
        }
        prop_assert_eq!((shares.table.len(), shares.tenants.sum(), shares.taken), (0, 0, [0; 4]));
    }

    /// Whatever six greedy ones of a level have taken in whatever order, nobody is kept out that
    /// holds nothing: neither beside them, nor on a level above, nor below one of them.
    #[test]
    fn nobody_that_comes_is_refused_because_others_hold_too_much(
        level in 0..3,
        order in prop::collection::vec((0_u8..6, 1_usize..5000), 1..30),
    ) {
        let mut shares = Shares::<1>::with_capacity(0);
        for (who, most) in order {
            let greedy = match level {
                0 => session(0, u64::from(who)),
                1 => session(who, 0),
                _ => user(u64::from(who), 0),
            };
            fill(&mut shares, greedy, most);
        }
        let newcomers = [session(0, 99), session(1, 99), session(99, 0), user(0, 99), user(99, 0)];
        for newcomer in newcomers {
            prop_assert_eq!(fill(&mut shares, newcomer, 1), 1, "{:?}", newcomer);
        }
    }
}
