//! What members are told of people, and the pages of their list.

use super::*;

fn rule(names_max: u32) -> GroupRule {
    GroupRule { presence: PresenceKind::Names, names_max, ..GroupRule::new("room:*") }
}

fn users(from: u32, to: u32) -> Vec<PersonName> {
    (from..to).map(|n| PersonName::User(format!("{n:03}").into())).collect()
}

fn seen(names: Vec<PersonName>) -> Vec<(PersonName, Seen)> {
    names.into_iter().map(|name| (name, Seen::default())).collect()
}

fn all(names: Vec<PersonName>) -> People {
    People { count: names.len() as u32, names: Names::All(seen(names)) }
}

#[test]
fn more_changes_than_one_message_names_are_read_again() {
    let (mut everybody, rule) = (Everybody::default(), rule(1_000));
    everybody.take(ShardId(0), all(users(0, 100)));
    let word = everybody.word(&rule).expect("all are new");
    assert_eq!((word.joined.len(), word.reset), (100, false));
    everybody.take(ShardId(1), all(users(100, 201)));
    let word = everybody.word(&rule).expect("news");
    assert_eq!(word, Word { reset: true, ..Word::default() });
    // What members read then is what the next change is one of.
    everybody.forget(ShardId(0));
    let word = everybody.word(&rule).expect("news");
    assert_eq!((word.left.len(), word.reset, everybody.shown_count), (100, false, 101));
    assert_eq!(everybody.word(&rule), None);
}

#[test]
fn names_that_are_too_many_end_once_and_begin_again_once() {
    let (mut everybody, rule) = (Everybody::default(), rule(2));
    let (reset, count) = (Word { reset: true, ..Word::default() }, Word::default());
    everybody.take(ShardId(0), all(users(0, 2)));
    everybody.word(&rule).expect("two came");
    everybody.take(ShardId(1), all(users(2, 3)));
    assert_eq!(everybody.word(&rule), Some(reset.clone()));
    assert!(everybody.page(None, 9).people.is_empty());
    everybody.take(ShardId(1), all(users(2, 4)));
    assert_eq!(everybody.word(&rule), Some(count));
    everybody.take(ShardId(1), People { count: 0, names: Names::All(Vec::new()) });
    assert_eq!((everybody.word(&rule), everybody.word(&rule)), (Some(reset), None));
    assert_eq!(everybody.page(None, 9).people, seen(users(0, 2)));
}

#[test]
fn a_message_that_a_lane_had_no_room_for_is_made_good_by_the_next() {
    let (mut everybody, rule) = (Everybody::default(), rule(9));
    everybody.take(ShardId(0), all(users(0, 1)));
    everybody.word(&rule).expect("one came");
    everybody.is_missed = true;
    assert_eq!(everybody.word(&rule), Some(Word { reset: true, ..Word::default() }));
    let counted = GroupRule { presence: PresenceKind::Count, ..rule };
    everybody.is_missed = true;
    assert_eq!(everybody.word(&counted), Some(Word::default()), "the count is told once more");
}

#[test]
fn pages_follow_each_other_by_what_clients_show() {
    let (mut everybody, rule) = (Everybody::default(), rule(9));
    everybody.take(ShardId(0), all(users(0, 3)));
    assert!(everybody.page(None, 9).people.is_empty(), "nobody was told yet");
    everybody.word(&rule);
    let first = everybody.page(None, 2);
    assert_eq!((first.people.len(), first.has_more, first.count), (2, true, 3));
    let after = read_cursor(&cursor(&first.people[1].0)).expect("a place");
    let second = everybody.page(after.as_ref(), 2);
    assert_eq!((second.people, second.has_more), (seen(users(2, 3)), false));
    assert_eq!((read_cursor(""), read_cursor("x"), read_cursor("s0")), (Some(None), None, None));
}

#[test]
fn members_are_told_of_another_info_and_who_asks_also_of_who_is_away() {
    let (mut everybody, rule) = (Everybody::default(), rule(9));
    everybody.take(ShardId(0), all(users(0, 2)));
    everybody.word(&rule).expect("two came");
    let [first, second] = &users(0, 2)[..] else { panic!("two") };
    let info: Info = Some((*b"7").into());
    let changed = vec![
        (first.clone(), Seen { info: info.clone(), is_away: false }),
        (second.clone(), Seen { info: None, is_away: true }),
    ];
    let names = Names::Changes { came: changed.clone(), left: Vec::new() };
    everybody.take(ShardId(0), People { count: 2, names });
    let joined = vec![(first.clone(), info)];
    assert_eq!(everybody.word(&rule), Some(Word { joined, ..Word::default() }));
    assert_eq!(everybody.page(None, 9).people, changed);
    assert_eq!(everybody.word(&rule), None, "to be away for a moment is no news");
}
