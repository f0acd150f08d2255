//! Rows of samples that are made by hand.

use super::super::shards::ShardState;
use super::super::tests::report;
use super::super::view::tests::gathered;
use super::*;
use crate::ids::ShardId;
use crate::message::{Micros, Reason};
use crate::stats::{CallTimes, Counter, Report, Stage};

/// Shards with these samples.
fn shards(samples: &[&Report]) -> Vec<ShardView> {
    let view = |sample: &&Report| ShardView {
        shard: sample.shard,
        state: ShardState::Ready,
        answered: Some(Duration::ZERO),
        silent: false,
        report: Some(Arc::new((*sample).clone())),
    };
    samples.iter().map(view).collect()
}

/// A sample that grew: so many more messages, each of `us`, in a second of which `busy_us` ran.
fn grow(sample: &mut Report, messages: u64, us: u64, busy_us: u64) {
    sample.at = Micros(sample.at.0 + 1_000_000);
    sample.busy_us += busy_us;
    sample.counters.add(Counter::BusinessMessages, messages);
    sample.reasons[Reason::QueueFull as usize] += messages / 10;
    sample.histograms.record(Stage::Whole, us, messages);
}

#[test]
fn rows_say_what_came_in_each_second_and_add_up_to_what_was_counted() {
    let start = Instant::now();
    let mut live = Live::new(start, start);
    let mut samples = [report(ShardId(0)), report(ShardId(1))];
    for second in 1..=5 {
        let now = start + ROW_TIME * second;
        grow(&mut samples[0], 100, 1_000, 250_000);
        grow(&mut samples[1], 10, 50_000, 20_000);
        live.asked(now);
        live.take(&shards(&samples.each_ref()), now);
    }
    let rows = live.read(0, gathered()).rows;
    assert_eq!(rows.iter().map(|row| row.number).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    for counter in Counter::ALL {
        let counted: u64 = samples.iter().map(|sample| sample.counters.get(*counter)).sum();
        assert_eq!(rows.iter().map(|row| row.grew(*counter)).sum::<u64>(), counted, "{counter:?}");
    }
    for row in &rows[1..] {
        assert_eq!((row.took_ms, row.grew(Counter::BusinessMessages)), (1_000, 110));
        assert_eq!(&*row.reasons, [(Reason::QueueFull, 11)]);
        let whole = row.stages[Stage::Whole as usize];
        assert_eq!((whole.count, row.stages[Stage::RoundTrip as usize].count), (110, 0));
        assert!((990..1_010).contains(&whole.p50_us), "{whole:?}");
        assert!((49_500..50_500).contains(&whole.p99_us), "{whole:?}");
        assert_eq!(row.levels.connections, 3);
        let of_shards: Vec<_> =
            row.shards.iter().map(|s| (s.shard.0, s.busy_permille, s.messages)).collect();
        assert_eq!(of_shards, [(0, 250, 100), (1, 20, 10)]);
    }
    // The first one counts from the start.
    assert_eq!(rows[0].grew(Counter::CacheHits), 9);
    assert_eq!(live.read(3, gathered()).rows.len(), 2, "only what the reader lacks");
    assert_eq!(live.read(5, gathered()).rows.len(), 0);
}

#[test]
fn five_minutes_are_kept_and_no_more() {
    let start = Instant::now();
    let mut live = Live::new(start, start);
    let mut sample = report(ShardId(0));
    for second in 1..=1_000 {
        grow(&mut sample, 1, 1, 1);
        live.take(&shards(&[&sample]), start + ROW_TIME * second);
    }
    let reading = live.read(0, gathered());
    assert_eq!((reading.rows.len(), reading.rows[0].number, reading.newest), (300, 701, 1_000));
    assert_eq!((reading.minute.len(), reading.minute[0].number), (60, 941));
    // As the guide says: 0.8 MiB, and 1.8 MiB with 64 shards.
    let mib = [1, 64].map(|shards| bytes_max(shards) as f64 / f64::from(1 << 20));
    assert!(mib[0] < 0.85 && mib[1] < 1.85, "{mib:?}");
}

#[test]
fn what_a_silent_shard_counted_comes_in_a_later_row_once() {
    let start = Instant::now();
    let mut live = Live::new(start, start);
    let mut samples = [report(ShardId(0)), report(ShardId(1))];
    live.take(&shards(&samples.each_ref()), start);
    // Its sample of this second did not come.
    grow(&mut samples[0], 5, 1, 1);
    let mut views = shards(&samples.each_ref());
    views[1].silent = true;
    live.take(&views, start + ROW_TIME);
    grow(&mut samples[0], 5, 1, 1);
    grow(&mut samples[1], 7, 1, 1);
    live.take(&shards(&samples.each_ref()), start + ROW_TIME * 2);
    let rows = live.read(1, gathered()).rows;
    let told: Vec<_> = rows
        .iter()
        .map(|row| {
            (row.shards[1].is_silent, row.shards[1].messages, row.grew(Counter::BusinessMessages))
        })
        .collect();
    assert_eq!(told, [(true, 0, 5), (false, 7, 12)]);
}

#[test]
fn questions_are_a_second_apart_and_a_late_one_is_not_made_up_for() {
    let start = Instant::now();
    let mut live = Live::new(start, start);
    assert!(live.is_due(start) && !live.is_open());
    live.asked(start);
    assert!(live.is_open() && !live.is_due(start + Duration::from_millis(999)));
    live.asked(start + Duration::from_millis(1_010));
    assert_eq!(live.due(), start + ROW_TIME * 2);
    let late = start + ROW_TIME * 20;
    live.asked(late);
    assert_eq!(live.due(), late + ROW_TIME / 2);
    // Nothing has come: there is no row.
    let mut views = shards(&[&report(ShardId(0))]);
    views[0].report = None;
    live.take(&views, late);
    assert_eq!((live.read(0, gathered()).newest, live.is_open()), (0, false));
}

#[test]
fn totals_are_those_of_ten_to_twenty_seconds_ago() {
    let start = Instant::now();
    let mut live = Live::new(start, start);
    let mut sample = report(ShardId(0));
    for second in 1..=45 {
        sample.instances[0].ok += 1;
        let mut times = CallTimes::default();
        times.record(second);
        sample.instances[0].times.add(&times);
        live.take(&shards(&[&sample]), start + ROW_TIME * second as u32);
    }
    let earlier = live.read(0, gathered()).earlier;
    assert_eq!(earlier.at, Some(start + ROW_TIME * 30));
    let instance = earlier.instance(sample.instances[0].instance);
    assert_eq!((instance.ok, instance.times.calls()), (3 + 30, 30));
    assert_eq!(sample.instances[0].times.since(&instance.times).calls(), 15);
}
