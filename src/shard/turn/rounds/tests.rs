//! Tests of the rounds: by example, and against a model of their rules.

use super::*;
use crate::engine::owner::Party;
use crate::ids::TenantId;
use proptest::prelude::*;

fn id(n: u32) -> ConnId {
    ConnId::new(1, n)
}

/// Connections of each owner in most tests.
const EACH: u32 = 100;

fn owner(n: u32) -> Option<Holder> {
    Some(Holder { tenant: TenantId(1), party: Party::User(u64::from(n / EACH)), session: 0 })
}

fn end(rounds: &mut Rounds, visit: Visit, used: i64, left: Left) -> bool {
    rounds.end(visit, used, left, || owner(visit.id.slot() as u32))
}

/// Visits the next one of `list`, who costs `used` and has `left`.
fn visit(rounds: &mut Rounds, list: List, used: i64, left: Left) -> Option<u32> {
    let visit = rounds.next(list)?;
    end(rounds, visit, used, left);
    Some(visit.id.slot() as u32)
}

#[test]
fn who_becomes_ready_goes_before_those_that_flood() {
    let mut rounds = Rounds::default();
    (1..=3).for_each(|n| rounds.add(id(n)));
    for n in 1..=3 {
        assert_eq!(visit(&mut rounds, List::New, NEW_QUANTUM, Left::Something), Some(n));
    }
    rounds.add(id(9));
    assert!(rounds.has(List::New) && rounds.has(List::Old));
    assert_eq!(visit(&mut rounds, List::New, 1, Left::Nothing), Some(9));
    assert_eq!(visit(&mut rounds, List::Old, QUANTUM, Left::Something), Some(1));
}

/// RFC 8290, section 4.2: otherwise those in the old list would starve.
#[test]
fn who_sends_in_a_rhythm_is_new_once_a_round() {
    let mut rounds = Rounds::default();
    (1..=2).for_each(|n| rounds.add(id(n)));
    for n in 1..=2 {
        assert_eq!(visit(&mut rounds, List::New, NEW_QUANTUM, Left::Something), Some(n));
    }
    rounds.add(id(9));
    let new = rounds.next(List::New).expect("just added");
    assert!(end(&mut rounds, new, 1, Left::Nothing), "it stays listed, though it has nothing");
    let order = [1, 2, 9, 1, 2];
    for n in order {
        let left = if n == 9 { Left::Nothing } else { Left::Something };
        assert_eq!(visit(&mut rounds, List::Old, QUANTUM, left), Some(n));
    }
}

#[test]
fn who_has_nothing_left_leaves_at_once_when_nobody_floods() {
    let mut rounds = Rounds::default();
    (1..=2).for_each(|n| rounds.add(id(n)));
    for _ in 1..=2 {
        let new = rounds.next(List::New).expect("there are two");
        assert!(!end(&mut rounds, new, 1, Left::Nothing));
    }
    assert!(rounds.is_empty());
}

#[test]
fn a_large_message_is_paid_for_by_rounds_that_are_sat_out() {
    let mut rounds = Rounds::default();
    (1..=2).for_each(|n| rounds.add(id(n)));
    visit(&mut rounds, List::New, NEW_QUANTUM + 9 * QUANTUM, Left::Something);
    visit(&mut rounds, List::New, NEW_QUANTUM, Left::Something);
    let mut turns = 0;
    while visit(&mut rounds, List::Old, QUANTUM, Left::Something) == Some(2) {
        turns += 1;
    }
    assert_eq!(turns, 9, "nine quanta each");
}

#[test]
fn who_is_alone_has_all_of_the_turn_and_owes_nothing_for_it() {
    let mut rounds = Rounds::default();
    rounds.add(id(1));
    for list in [List::New, List::Old, List::Old] {
        let visit = rounds.next(list).expect("it has more");
        assert_eq!((visit.id, visit.credit), (id(1), None));
        assert!(end(&mut rounds, visit, 1_000 * QUANTUM, Left::Something));
    }
    rounds.add(id(2));
    assert_eq!(visit(&mut rounds, List::New, NEW_QUANTUM, Left::Something), Some(2));
    let next = rounds.next(List::Old).expect("there are two");
    assert_eq!((next.id, next.credit), (id(1), Some(QUANTUM)));
}

#[test]
fn who_is_interrupted_by_the_end_of_the_turn_goes_on_where_it_was() {
    let mut rounds = Rounds::default();
    (1..=2).for_each(|n| rounds.add(id(n)));
    assert_eq!(visit(&mut rounds, List::New, NEW_QUANTUM / 4, Left::Something), Some(1));
    let again = rounds.next(List::New).expect("it is first");
    assert_eq!((again.id, again.credit), (id(1), Some(NEW_QUANTUM - NEW_QUANTUM / 4)));
}

/// Otherwise whoever sends a large message whenever the last one was read would never pay.
#[test]
fn who_has_nothing_left_stays_until_it_owes_nothing() {
    let mut rounds = Rounds::default();
    (1..=2).for_each(|n| rounds.add(id(n)));
    assert_eq!(visit(&mut rounds, List::New, NEW_QUANTUM, Left::Something), Some(1));
    let large = rounds.next(List::New).expect("the second");
    assert!(end(&mut rounds, large, NEW_QUANTUM + 3 * QUANTUM, Left::Nothing));
    // In its place, and for each quantum.
    for _ in 0..1 + 3 {
        assert_eq!(visit(&mut rounds, List::Old, QUANTUM, Left::Something), Some(1));
    }
    let paid = rounds.next(List::Old).expect("it is still there");
    assert_eq!(paid.id, id(2));
    assert!(!end(&mut rounds, paid, 0, Left::Nothing));
}

#[test]
fn a_hundred_connections_of_one_owner_have_what_one_of_another_has() {
    let mut rounds = Rounds::default();
    (0..=EACH).for_each(|n| rounds.add(id(n)));
    (0..=EACH).for_each(|_| {
        visit(&mut rounds, List::New, NEW_QUANTUM, Left::Something);
    });
    let mut of_one = 0;
    for _ in 0..1_000 {
        of_one +=
            usize::from(visit(&mut rounds, List::Old, QUANTUM, Left::Something) == Some(EACH));
    }
    assert!((500..700).contains(&of_one), "{of_one} of 1,000: the hundred owed a round each");
    let mut of_each = vec![0; EACH as usize];
    for _ in 0..4_000 {
        let n = visit(&mut rounds, List::Old, QUANTUM, Left::Something).expect("they flood");
        of_each.get_mut(n as usize).into_iter().for_each(|count| *count += 1);
    }
    assert!(of_each.iter().all(|&count| count == 20), "{of_each:?}");
}

#[test]
fn both_lists_take_turns_while_both_have_members() {
    let mut rounds = Rounds::default();
    assert_eq!(rounds.next_list(false), None);
    (1..=3).for_each(|n| rounds.add(id(n)));
    assert_eq!(rounds.next_list(false), Some(List::New));
    (1..=2).for_each(|_| {
        visit(&mut rounds, List::New, NEW_QUANTUM, Left::Something);
    });
    let turns: Vec<_> = (0..4).filter_map(|_| rounds.next_list(false)).collect();
    assert_eq!(turns, [List::Old, List::New, List::Old, List::New]);
    visit(&mut rounds, List::New, NEW_QUANTUM, Left::Something);
    assert_eq!([(); 2].map(|()| rounds.next_list(false)), [Some(List::Old); 2]);
    assert_eq!(rounds.next_list(true), Some(List::New), "answers wait");
    assert_eq!(rounds.next_list(true), Some(List::Old));
}

/// Visits the next new one, which sends a little and has nothing left.
fn thrifty(rounds: &mut Rounds) -> Option<u32> {
    visit(rounds, List::New, 1, Left::Nothing)
}

fn next_turn(rounds: &mut Rounds) {
    rounds.pause(List::New);
    rounds.begin(List::New, |id| owner(id.slot() as u32));
}

/// Five thousand connections of an address, each with one message, are no flood by themselves.
#[test]
fn thrifty_connections_of_one_owner_delay_one_of_another_by_a_visit_each_turn() {
    let mut rounds = Rounds::default();
    (0..EACH).for_each(|n| rounds.add(id(n)));
    rounds.begin(List::New, |_| unreachable!("nobody asks whose they are"));
    assert_eq!([(); 10].map(|()| thrifty(&mut rounds)), std::array::from_fn(|n| Some(n as u32)));
    // Ninety are left.
    rounds.add(id(EACH));
    next_turn(&mut rounds);
    rounds.add(id(2 * EACH));
    let order = [10, EACH, 11, 12].map(Some);
    assert_eq!([(); 4].map(|()| thrifty(&mut rounds)), order);
    // One that came since is found an owner by the next turn.
    next_turn(&mut rounds);
    assert_eq!([(); 3].map(|()| thrifty(&mut rounds)), [13, 2 * EACH, 14].map(Some));
    (15..EACH).for_each(|n| assert_eq!(thrifty(&mut rounds), Some(n)));
    assert!(rounds.is_empty());
}

#[test]
fn new_ones_that_two_turns_read_go_by_arrival() {
    let mut rounds = Rounds::default();
    let order = [0, 1, 2, EACH, 3, 4];
    order.iter().for_each(|n| rounds.add(id(*n)));
    rounds.begin(List::New, |_| unreachable!("nobody asks whose they are"));
    for (n, expected) in order.into_iter().enumerate() {
        assert_eq!(thrifty(&mut rounds), Some(expected));
        if n == 2 {
            rounds.pause(List::New);
            rounds.begin(List::New, |_| unreachable!("three were read, and three are left"));
        }
    }
}

/// A member: its number and its credit.
type Entry = (u32, i64);
/// An owner, its credit, and its members.
type Group = (Option<Holder>, i64, Vec<Entry>);

/// The same by its rules alone.
#[derive(Default)]
struct Model {
    new: Vec<Entry>,
    /// New ones by owner, if there are many.
    new_groups: Vec<(Option<Holder>, Vec<Entry>)>,
    old: Vec<Group>,
    /// New ones that this turn has taken.
    taken: usize,
}

impl Model {
    fn is_empty(&self) -> bool {
        self.all_new().next().is_none() && self.old.iter().all(|group| group.2.is_empty())
    }

    fn all_new(&self) -> impl Iterator<Item = &Entry> {
        self.new.iter().chain(self.new_groups.iter().flat_map(|group| &group.1))
    }

    fn next_turn(&mut self) {
        if self.all_new().count() > self.taken {
            for member in self.new.drain(..) {
                let of = owner(member.0);
                match self.new_groups.iter_mut().find(|group| group.0 == of) {
                    Some(group) => group.1.push(member),
                    None => self.new_groups.push((of, vec![member])),
                }
            }
        }
        self.taken = 0;
    }

    /// The next new one, and whether it was its owner's turn.
    fn next_new(&mut self) -> Option<(Entry, bool)> {
        self.taken += 1;
        if self.new_groups.is_empty() {
            return (!self.new.is_empty()).then(|| (self.new.remove(0), false));
        }
        let mut group = self.new_groups.remove(0);
        let member = group.1.remove(0);
        if !group.1.is_empty() {
            self.new_groups.push(group);
        }
        Some((member, true))
    }

    /// Puts one that was interrupted before all others.
    fn put_first(&mut self, member: Entry, is_of_group: bool) {
        if !is_of_group {
            return self.new.insert(0, member);
        }
        let of = owner(member.0);
        let at = self.new_groups.iter().position(|group| group.0 == of);
        let mut group = at.map_or((of, Vec::new()), |at| self.new_groups.remove(at));
        group.1.insert(0, member);
        self.new_groups.insert(0, group);
    }

    /// The next one of `list`, what it may cost, and whether it is new and by its owner's turn.
    fn next(&mut self, list: List) -> Option<(Entry, bool)> {
        match list {
            List::New => self.next_new(),
            List::Old => self.next_old().map(|member| (member, false)),
        }
    }

    fn next_old(&mut self) -> Option<Entry> {
        if self.old.iter().all(|group| group.2.is_empty()) {
            self.old.clear();
        }
        loop {
            let is_only = self.old.len() == 1;
            let group = self.old.first_mut()?;
            if group.2.is_empty() {
                self.old.remove(0);
            } else if group.1 <= 0 {
                group.1 = if is_only { QUANTUM } else { group.1 + QUANTUM };
                self.old.rotate_left(1);
            } else {
                let at = loop {
                    match group.2.iter().position(|m| m.1 > 0) {
                        Some(at) => break at,
                        None => group.2.iter_mut().for_each(|m| m.1 += QUANTUM),
                    }
                };
                group.2.rotate_left(at);
                let late = group.2.len() - at;
                group.2[late..].iter_mut().for_each(|m| m.1 += QUANTUM);
                return Some(group.2.remove(0));
            }
        }
    }

    fn end(
        &mut self,
        ((n, credit), is_of_group): (Entry, bool),
        list: List,
        used: i64,
        left: Left,
    ) {
        let used = if self.is_empty() { credit } else { used };
        let (is_alone, credit) = (self.is_empty(), credit - used);
        let floods = self.old.iter().any(|group| !group.2.is_empty());
        let leaves = left == Left::Nothing
            && match list {
                List::New => !floods,
                List::Old => is_alone || credit > 0,
            };
        let goes_on = left == Left::Something && credit > 0;
        if list == List::New && goes_on {
            return self.put_first((n, credit), is_of_group);
        }
        if leaves && list == List::New {
            return;
        }
        let at = self.old.iter().position(|group| group.0 == owner(n)).unwrap_or_else(|| {
            self.old.push((owner(n), QUANTUM, Vec::new()));
            self.old.len() - 1
        });
        self.old[at].1 -= used;
        let owed = if credit <= 0 { credit + QUANTUM } else { credit };
        match (leaves, goes_on) {
            (true, _) => {}
            (_, true) => self.old[at].2.insert(0, (n, credit)),
            (_, false) => self.old[at].2.push((n, owed)),
        }
    }
}

proptest! {
    #[test]
    fn the_order_is_that_of_the_rules(
        steps in prop::collection::vec((0_u8..9, 0_u32..4, 0_i64..100_000, any::<bool>()), 1..200),
    ) {
        let (mut rounds, mut model) = (Rounds::default(), Model::default());
        for (n, (kind, of, used, more)) in steps.into_iter().enumerate() {
            let list = match kind {
                0..5 => {
                    let n = EACH * of + n as u32 % EACH;
                    let is_known = |m: &Entry| m.0 == n;
                    let old = || model.old.iter().flat_map(|group| &group.2);
                    if !model.all_new().any(is_known) && !old().any(is_known) {
                        rounds.add(id(n));
                        model.new.push((n, NEW_QUANTUM));
                    }
                    continue;
                }
                5 => {
                    next_turn(&mut rounds);
                    model.next_turn();
                    continue;
                }
                6 => List::New,
                _ => List::Old,
            };
            let left = if more { Left::Something } else { Left::Nothing };
            let (visit, expected) = (rounds.next(list), model.next(list));
            let is_alone = model.is_empty();
            prop_assert_eq!(
                visit.map(|v| (v.id.slot() as u32, v.credit)),
                expected.map(|(m, _)| (m.0, (!is_alone).then_some(m.1)))
            );
            if let (Some(visit), Some(member)) = (visit, expected) {
                let is_listed = end(&mut rounds, visit, used, left);
                model.end(member, list, used, left);
                let is_known = |m: &Entry| m.0 == member.0.0;
                let old = model.old.iter().any(|group| group.2.iter().any(is_known));
                let is_new = model.all_new().any(is_known);
                prop_assert_eq!(is_listed, old || is_new);
            }
            prop_assert_eq!(rounds.is_empty(), model.is_empty());
        }
    }

    /// The work of those that flood differs by no more than a quantum and the largest visit of
    /// each.
    #[test]
    fn those_that_flood_get_the_same_work(
        costs in prop::collection::vec(1_i64..200_000, 50..400),
    ) {
        let mut rounds = Rounds::default();
        (0..3).for_each(|n| rounds.add(id(n)));
        let mut done = [0; 3];
        for used in costs {
            let list = if rounds.has(List::New) { List::New } else { List::Old };
            let visit = rounds.next(list).expect("they flood");
            done[visit.id.slot()] += used;
            end(&mut rounds, visit, used, Left::Something);
        }
        let (least, most) = (done.iter().min(), done.iter().max());
        prop_assert!(most.unwrap() - least.unwrap() <= QUANTUM + 2 * 200_000, "{done:?}");
    }
}
