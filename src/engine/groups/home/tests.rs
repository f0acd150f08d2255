//! A home whose lanes refuse what it tells.

use super::*;
use crate::engine::groups::log::tests::body_with;
use crate::ids::TenantId;

const ALL: Retention = Retention { bytes: 1 << 20, us: u64::MAX };
const NOW: Micros = Micros(5);
const OTHER: ShardId = ShardId(1);

fn home(keep: Keep) -> Home {
    let name = GroupName { tenant: TenantId::DEFAULT, name: "room:7".into() };
    Home::new(name, Arc::new(GroupRule { keep, ..GroupRule::new("room:*") }), 3, NOW)
}

fn publish(home: &mut Home, key: &str, counted: u64) {
    home.publish(&body_with(key, 1), Some(counted), 1 << 20, NOW);
}

/// What the home tells in a turn: offsets of what was kept, and of pushes.
fn tell(home: &mut Home, turn: u64) -> Vec<Deliver> {
    let mut told = Vec::new();
    home.tell(turn, &mut told);
    told.into_iter().map(|(_, item)| item).collect()
}

fn offsets(item: &Deliver) -> Vec<u64> {
    match item {
        Deliver::Frames { frames, .. } => frames.iter().map(|frame| frame.offset).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_that_a_lane_may_still_refuse_is_dropped() {
    for keep in [Keep::None, Keep::Last] {
        let mut home = home(keep);
        home.ask(OTHER, 1, NOW);
        tell(&mut home, 1);
        publish(&mut home, "", 1);
        let told = tell(&mut home, 2);
        // Another one comes in the same turn, and what was told is dropped if it may be.
        publish(&mut home, "", 2);
        home.trim(ALL, 2, NOW);
        told.iter().for_each(|item| home.tell_again(OTHER, item));
        assert_eq!(offsets(&tell(&mut home, 3)[0]), [1, 2]);
        home.trim(ALL, 3, NOW);
        assert_eq!(home.kept().count(), 2);
        home.trim(ALL, 4, NOW);
        assert_eq!(home.kept().count(), 0);
    }
}

#[test]
fn a_shard_counts_what_came_since_it_began_though_its_lane_refused_the_beginning() {
    let mut home = home(Keep::Last);
    home.ask(ShardId(2), 1, NOW);
    tell(&mut home, 1);
    publish(&mut home, "a", 1);
    tell(&mut home, 2);
    home.ask(OTHER, 1, NOW);
    let mut refused = tell(&mut home, 3);
    // It is awaited from here on.
    publish(&mut home, "a", 2);
    refused.extend(tell(&mut home, 3).into_iter().skip(1));
    assert_eq!(refused.len(), 2);
    refused.iter().for_each(|item| home.tell_again(OTHER, item));
    assert!(home.interest().iter().all(|interest| interest.is_begun));
    let told = tell(&mut home, 4);
    let [Deliver::Confirmed(confirmed)] = &told[..] else { panic!("{told:?}") };
    assert_eq!((confirmed.position.offset, confirmed.places), (2, 1));
    let kept = confirmed.kept.as_deref().expect("for the first time");
    // Whose addressees it counts: those above the place where it began.
    let counted = kept.frames.iter().filter(|frame| frame.frame.offset > kept.begun_at);
    assert_eq!(counted.map(|kept| kept.frame.counted).collect::<Vec<_>>(), [Some(2)]);
    assert_eq!(kept.begun_at, 1);
}

#[test]
fn a_shard_that_leaves_before_it_is_told_counts_nobody() {
    let mut home = home(Keep::Recent);
    home.ask(OTHER, 2, NOW);
    tell(&mut home, 1);
    publish(&mut home, "", 1);
    tell(&mut home, 2);
    publish(&mut home, "", 2);
    assert_eq!(home.release(OTHER, 1, false, NOW), [0; 0]);
    assert_eq!(home.release(OTHER, 1, true, NOW), [2]);
    assert!(home.interest().is_empty());
}
