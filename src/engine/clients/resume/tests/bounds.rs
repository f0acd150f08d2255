//! Stories of clients that do not come back: what they leave behind is bounded.

use super::*;

#[test]
fn sessions_away_are_bounded_and_the_one_away_longest_ends_first() {
    let mut rig = Rig::new(1, |c| c.settings.session.away_max = 4);
    let mut tickets = Vec::new();
    for n in 0..6 {
        rig.now = rig.now.plus_ms(10);
        rig.tick();
        let (id, resumable) = rig.opts_in_as(&format!("user{n}"));
        tickets.push(resumable);
        rig.breaks(id);
    }
    assert_eq!((rig.away(), rig.counted(Counter::SessionsCrowdedOut)), (4, 2));
    for (n, expected) in [(1, "lost"), (2, "resumed")] {
        let (_, told) = rig.resumes_as(&format!("user{n}"), &tickets[n], 0);
        assert_eq!(outcome(&told).0, expected, "{n}");
    }
}

#[test]
fn who_leaves_many_sessions_behind_ends_its_own() {
    let mut rig = Rig::new(1, |c| c.settings.session.away_max = 8);
    let (quiet, of_ann) = rig.opts_in_as("ann");
    rig.breaks(quiet);
    // Clients of one address that have not signed in.
    for _ in 0..20 {
        rig.now = rig.now.plus_ms(10);
        rig.tick();
        let id = rig.open();
        rig.opts_in(id);
        rig.breaks(id);
    }
    assert_eq!(rig.away(), 1 + 3, "of eight places it takes no more than are free");
    is(&rig.resumes_as("ann", &of_ann, 0).1, "resumed", "", &[]);
}

#[test]
fn all_windows_together_are_bounded() {
    let mut rig = Rig::new(1, |c| c.settings.session.kept_total_bytes_max = 1_000);
    let ids: Vec<ConnId> = (0..4)
        .map(|_| {
            let id = rig.open();
            rig.opts_in(id);
            id
        })
        .collect();
    let say = |rig: &mut Rig, id, seq: u64| {
        rig.says(id, &format!(r#"{{"msg_id":9000,"seq":{seq},"payload":"{}"}}"#, "x".repeat(40)));
        rig.told(id);
        let kept = rig.shards[0].clients.sessions.kept_bytes;
        assert!(kept <= 1_000, "{kept}");
    };
    (2..8).for_each(|seq| ids.iter().for_each(|id| say(&mut rig, *id, seq)));
    assert_eq!(rig.counted(Counter::SessionsCrowdedOut), 0, "only windows slid");
    rig.breaks(ids[0]);
    (8..20).for_each(|seq| say(&mut rig, ids[1], seq));
    // Neither who is away pays for that, nor one that comes late.
    assert_eq!((rig.away(), rig.counted(Counter::SessionsCrowdedOut)), (1, 0));
    let late = rig.open();
    rig.opts_in(late);
    say(&mut rig, late, 2);
    rig.tick();
    assert!(rig.counted(Counter::SessionFramesDropped) > 0);
}

#[test]
fn without_a_ttl_there_is_nothing_to_resume() {
    let mut rig = Rig::new(1, |c| c.settings.session.ttl_ms = 0);
    let id = rig.open();
    rig.says(id, r#"{"type":"resume","seq":1}"#);
    assert_eq!(rig.told(id)[0]["reason"], "UNIMPLEMENTED");
}

#[test]
fn a_session_is_not_away_while_its_client_sends_whenever_the_last_tick_was() {
    let mut rig = Rig::one();
    rig.tick();
    rig.now = rig.now.plus_ms(60_000);
    let id = rig.open();
    let before = rig.opts_in(id);
    rig.breaks(id);
    rig.tick();
    is(&rig.resumes(&before, 0).1, "resumed", "", &[]);
}

#[test]
fn a_time_in_which_the_shard_was_stopped_is_not_counted_for_those_away() {
    let mut rig = Rig::one();
    let id = rig.open();
    let before = rig.opts_in(id);
    rig.tick();
    rig.breaks(id);
    rig.now = rig.now.plus_ms(70_000);
    rig.shards[0].on_pause(70_000_000, rig.now);
    rig.tick();
    is(&rig.resumes(&before, 0).1, "resumed", "", &[]);
}
