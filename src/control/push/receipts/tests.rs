//! Receipts under way: each gets its counts, whatever the shards tell and in whatever order.

use proptest::prelude::*;
use tokio::sync::oneshot::error::TryRecvError;

use super::*;
use crate::ids::TenantId;
use crate::message::Reason;
use crate::push::GroupName;

const SHARDS: u16 = 4;

fn counts(written: u64) -> Counts {
    Counts { written, queued: 1, offline: 2, kept: 1, ..Counts::default() }
}

fn counted(written: u64, is_duplicate: bool) -> ReceiptPart {
    ReceiptPart::Counted { counts: counts(written), offline_users: Vec::new(), is_duplicate }
}

fn numbered(shards: &[u16]) -> ReceiptPart {
    ReceiptPart::Numbered {
        group: GroupName::new(TenantId::DEFAULT, "room:7").expect("a name"),
        position: Position { epoch: 5, offset: 9 },
        is_duplicate: false,
        shards: shards.iter().copied().map(ShardId).collect(),
    }
}

fn refused() -> ReceiptPart {
    let reject = Reject::later(Reason::QueueFull, "the group is behind", 20);
    ReceiptPart::Refused { group: None, reject }
}

fn receipt(number: u64, shard: u16, part: ReceiptPart) -> Receipt {
    Receipt { number, shard: ShardId(shard), part }
}

fn by_shard(outcome: &Outcome) -> Vec<(u16, u64)> {
    let mut all: Vec<_> = outcome.counts.iter().map(|(s, c)| (s.0, c.addressees())).collect();
    all.sort_unstable();
    all
}

#[test]
fn a_groups_push_is_answered_when_it_has_its_number_or_with_counts_when_all_have_counted() {
    let mut receipts = Receipts::default();
    let home = ShardId(1);
    let mut plain = receipts.begin(1, Awaited::Group { home, is_counted: false });
    let mut exact = receipts.begin(2, Awaited::Group { home, is_counted: true });
    for number in [1, 2] {
        receipts.take(receipt(number, 0, numbered(&[0])));
        receipts.take(receipt(number, 1, numbered(&[0, 2])));
    }
    let outcome = plain.try_recv().expect("numbered by its home");
    assert_eq!((outcome.position.map(|p| p.offset), outcome.counts.len()), (Some(9), 0));
    receipts.take(receipt(2, 2, counted(3, false)));
    receipts.take(receipt(2, 2, counted(3, false)));
    assert_eq!(exact.try_recv(), Err(TryRecvError::Empty));
    receipts.take(receipt(2, 0, counted(4, false)));
    assert_eq!(by_shard(&exact.try_recv().expect("complete")), [(0, 7), (2, 6)]);
    assert_eq!(receipts.len(), 0);
}

#[test]
fn counts_that_overtake_the_number_are_not_lost() {
    let mut receipts = Receipts::default();
    let mut outcome = receipts.begin(1, Awaited::Group { home: ShardId(0), is_counted: true });
    receipts.take(receipt(1, 2, counted(3, false)));
    receipts.take(receipt(1, 0, numbered(&[2])));
    assert_eq!(by_shard(&outcome.try_recv().expect("complete")), [(2, 6)]);
}

#[test]
fn a_refusal_of_all_is_one_and_that_of_a_part_is_counted_as_dropped() {
    let mut receipts = Receipts::default();
    let two = || Awaited::Shards(vec![(ShardId(0), 3), (ShardId(1), 4)]);
    let mut all = receipts.begin(1, two());
    let mut part = receipts.begin(2, two());
    for (number, shard) in [(1, 0), (1, 1), (2, 0)] {
        receipts.take(receipt(number, shard, refused()));
    }
    receipts.take(receipt(2, 1, counted(1, false)));
    let outcome = all.try_recv().expect("complete");
    assert_eq!(
        outcome.refusal().map(|r| (r.reason, r.retry_after_ms)),
        Some((Reason::QueueFull, 20))
    );
    let outcome = part.try_recv().expect("complete");
    assert_eq!((outcome.refusal(), outcome.total().dropped), (None, 3));
}

#[test]
fn who_does_not_answer_or_ended_is_named_with_its_addressees_unknown() {
    let mut receipts = Receipts::default();
    let mut late = receipts.begin(1, Awaited::Shards(vec![(ShardId(0), 3), (ShardId(1), 4)]));
    receipts.take(receipt(1, 1, counted(1, true)));
    assert_eq!(late.try_recv(), Err(TryRecvError::Empty));
    let outcome = receipts.end(1).expect("it waits");
    assert_eq!((outcome.silent.clone(), outcome.total().unknown), (vec![ShardId(0)], 3));
    assert_eq!((receipts.end(1), outcome.is_duplicate()), (None, true));
    receipts.shard_ended(ShardId(0));
    let mut of_ended = receipts.begin(2, Awaited::Group { home: ShardId(0), is_counted: true });
    assert_eq!(of_ended.try_recv().expect("at once").silent, [ShardId(0)]);
    let mut member_ended = receipts.begin(3, Awaited::Group { home: ShardId(1), is_counted: true });
    receipts.take(receipt(3, 1, numbered(&[0])));
    assert_eq!(member_ended.try_recv().expect("at once").silent, [ShardId(0)]);
}

/// An event of the world that the table and the model see.
#[derive(Clone, Debug)]
enum Event {
    Receipt(u16, Told),
    Ended(u16),
}

#[derive(Clone, Debug)]
enum Told {
    Counted(u64),
    Numbered(Vec<u16>),
    Refused,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let told = prop_oneof![
        (0..9_u64).prop_map(Told::Counted),
        prop::collection::vec(0..SHARDS, 0..4).prop_map(Told::Numbered),
        Just(Told::Refused),
    ];
    let event = prop_oneof![
        12 => (0..SHARDS, told).prop_map(|(shard, told)| Event::Receipt(shard, told)),
        1 => (0..SHARDS).prop_map(Event::Ended),
    ];
    prop::collection::vec(event, 0..24)
}

/// What each shard's part of a push came to, by reading the whole story from its beginning: the
/// first word of a shard counts, and a shard that ended before it is silent. `None`: it is awaited.
fn fate(shard: u16, known: u64, story: &[Event]) -> Option<u64> {
    story.iter().find_map(|event| match event {
        Event::Receipt(by, Told::Counted(n)) if *by == shard => Some(counts(*n).addressees()),
        Event::Receipt(by, Told::Refused) if *by == shard => Some(known),
        Event::Ended(by) if *by == shard => Some(known),
        Event::Receipt(..) | Event::Ended(_) => None,
    })
}

/// The same for a group with this home: counts by shard, and whether all is known.
fn group_fate(home: u16, story: &[Event]) -> (Vec<(u16, u64)>, bool) {
    let word = story.iter().position(|event| match event {
        Event::Receipt(by, Told::Numbered(_) | Told::Refused) | Event::Ended(by) => *by == home,
        Event::Receipt(_, Told::Counted(_)) => false,
    });
    let Some(word) = word else { return (vec![(home, 0)], false) };
    match &story[word] {
        Event::Receipt(_, Told::Numbered(shards)) => {
            let listed: BTreeSet<u16> = shards.iter().copied().collect();
            let fate = |shard: u16| {
                story.iter().enumerate().find_map(|(at, event)| match event {
                    Event::Receipt(by, Told::Counted(n)) if *by == shard => {
                        Some(counts(*n).addressees())
                    }
                    // Only the home refuses, and only before it has numbered.
                    Event::Receipt(by, Told::Refused) if *by == shard && at > word => Some(0),
                    // A shard that ends later may still have counted before the home spoke.
                    Event::Ended(by) if *by == shard => story[..word]
                        .iter()
                        .find_map(|e| match e {
                            Event::Receipt(by, Told::Counted(n)) if *by == shard => {
                                Some(counts(*n).addressees())
                            }
                            Event::Receipt(..) | Event::Ended(_) => None,
                        })
                        .or(Some(0)),
                    Event::Receipt(..) | Event::Ended(_) => None,
                })
            };
            let fates: Vec<_> = listed.iter().map(|shard| (*shard, fate(*shard))).collect();
            let is_over = fates.iter().all(|(_, fate)| fate.is_some());
            (fates.into_iter().map(|(shard, fate)| (shard, fate.unwrap_or(0))).collect(), is_over)
        }
        Event::Receipt(_, Told::Refused) => (Vec::new(), true),
        Event::Receipt(_, Told::Counted(_)) | Event::Ended(_) => (vec![(home, 0)], true),
    }
}

fn play(receipts: &mut Receipts, event: &Event) {
    match event {
        Event::Ended(shard) => receipts.shard_ended(ShardId(*shard)),
        Event::Receipt(shard, told) => {
            let part = match told {
                Told::Counted(n) => counted(*n, false),
                Told::Numbered(shards) => numbered(shards),
                Told::Refused => refused(),
            };
            receipts.take(receipt(1, *shard, part));
        }
    }
}

/// Plays the story; the outcome, and whether it was complete by itself.
fn outcome_of(awaited: Awaited, story: &[Event]) -> (Outcome, bool) {
    let mut receipts = Receipts::default();
    let mut done = receipts.begin(1, awaited);
    story.iter().for_each(|event| play(&mut receipts, event));
    match done.try_recv() {
        Ok(outcome) => (outcome, true),
        Err(_) => (receipts.end(1).expect("it waits"), false),
    }
}

proptest! {
    #[test]
    fn every_addressed_shard_is_counted_once_whatever_comes_and_in_whichever_order(
        story in events(),
        addressed in prop::collection::btree_map(0..SHARDS, 1..9_u64, 1..4),
    ) {
        let shards = addressed.iter().map(|(shard, known)| (ShardId(*shard), *known)).collect();
        let (outcome, is_complete) = outcome_of(Awaited::Shards(shards), &story);
        // Words of a home are none in this case.
        let told: Vec<_> = story
            .iter()
            .filter(|event| !matches!(event, Event::Receipt(_, Told::Numbered(_))))
            .cloned()
            .collect();
        let fates = addressed.iter().map(|(&s, &known)| (s, known, fate(s, known, &told)));
        let fates: Vec<_> = fates.collect();
        let expected = fates.iter().map(|&(s, known, fate)| (s, fate.unwrap_or(known)));
        let expected: Vec<_> = expected.collect();
        prop_assert_eq!(by_shard(&outcome), expected);
        prop_assert_eq!(is_complete, fates.iter().all(|(_, _, fate)| fate.is_some()));
        let sum: u64 = outcome.counts.iter().map(|(_, c)| c.addressees()).sum();
        let total = outcome.total();
        prop_assert_eq!(total.addressees(), sum);
    }

    #[test]
    fn a_groups_counts_are_those_of_the_shards_that_its_home_names(
        story in events(),
        home in 0..SHARDS,
    ) {
        let awaited = Awaited::Group { home: ShardId(home), is_counted: true };
        let (outcome, is_complete) = outcome_of(awaited, &story);
        let (expected, is_over) = group_fate(home, &story);
        prop_assert_eq!(by_shard(&outcome), expected);
        prop_assert_eq!(is_complete, is_over);
    }
}
