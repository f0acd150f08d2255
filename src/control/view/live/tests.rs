//! The answer and its findings, of a state made by hand.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::control::live::Live;
use crate::control::shards::{ShardState, ShardView};
use crate::control::tests::report;
use crate::control::view::tests::{about, gathered};
use crate::ids::{InstanceId, SessionId, ShardId};
use crate::message::Micros;
use crate::stats::{CallTimes, HeldOwner, InstanceReport, Report};

fn shard(report: &Report) -> ShardView {
    ShardView {
        shard: report.shard,
        state: ShardState::Ready,
        answered: Some(Duration::ZERO),
        silent: false,
        report: Some(Arc::new(report.clone())),
    }
}

/// Two idle shards, with one instance of each service of the built-in configuration.
fn idle() -> [Report; 2] {
    [ShardId(0), ShardId(1)].map(|shard| {
        let empty = report(shard);
        let instance = |id| InstanceReport {
            instance: InstanceId(id),
            waiting: 0,
            ok: 0,
            failed: 0,
            ..empty.instances[0].clone()
        };
        let instances = vec![instance(0), instance(1)];
        let mut gauges = empty.gauges;
        (gauges.is_throttling, gauges.usage_ratio) = (false, 0.0);
        Report { gauges, instances, at: Micros(1_000_000), ..empty }
    })
}

/// The answer after a second of these samples.
fn answer(samples: &[Report; 2]) -> Value {
    answer_of(samples, |_| ())
}

/// The answer after a second of these samples, with a change to all else.
fn answer_of(samples: &[Report; 2], change: impl FnOnce(&mut Overview)) -> Value {
    let start = Instant::now();
    let mut live = Live::new(start, start);
    let mut overview = gathered();
    change(&mut overview);
    overview.shards = samples.iter().map(shard).collect();
    live.take(&overview.shards, start + Duration::from_secs(1));
    super::live(&about(), Mark { boot_id: 1, row: 0, line: 7 }, &live.read(0, overview), &[])
}

/// Part, name and text of each finding.
fn found(samples: &[Report; 2]) -> Vec<(String, String, String)> {
    let answer = answer(samples);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let all = answer["findings"].as_array().unwrap().iter();
    all.map(|f| (text(&f["part"]), text(&f["name"]), text(&f["text"]))).collect()
}

/// The one finding.
#[track_caller]
fn the_one(samples: &[Report; 2]) -> (String, String, String) {
    let mut all = found(samples);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

fn calls(count: u64, us: u64) -> CallTimes {
    let mut times = CallTimes::default();
    (0..count).for_each(|_| times.record(us));
    times
}

#[test]
fn nothing_is_found_where_all_is_well() {
    assert_eq!(found(&idle()), []);
    let mut busy = idle();
    for sample in &mut busy {
        (sample.busy_us, sample.gauges.connections) = (900_000, 5_000);
        sample.instances[0].times = calls(1_000, 30_000);
        sample.instances[0].ok = 10_000;
    }
    assert_eq!(found(&busy), [], "much to do is no fault");
}

#[test]
fn a_shard_with_far_more_to_do_than_the_others_is_named() {
    let mut samples = idle();
    samples[1].busy_us = 800_000;
    samples[0].busy_us = 50_000;
    let expected = ("shard", "1", "shard 1 is 80 % busy, the others 5 %");
    let (part, name, text) = the_one(&samples);
    assert_eq!((&*part, &*name, &*text), expected);
    let mut samples = idle();
    samples[0].gauges.connections = 400;
    let (_, name, text) = the_one(&samples);
    assert_eq!((&*name, &*text), ("0", "shard 0 has 400 connections, the others 2 each"));
    samples[0].gauges.connections = 19;
    assert_eq!(found(&samples), [], "a handful is no skew");
}

#[test]
fn an_instance_is_slow_beside_the_others_of_its_service_and_not_beside_other_services() {
    let mut samples = idle();
    samples[0].instances[0].times = calls(100, 5_000);
    samples[0].instances[1].times = calls(100, 90_000);
    assert_eq!(found(&samples), [], "they are of two services");
    let one_service = |overview: &mut Overview| {
        let mut snapshot = (*overview.directory.snapshot).clone();
        snapshot.instances[1].service = snapshot.instances[0].service;
        overview.directory.snapshot = Arc::new(snapshot);
    };
    let all = answer_of(&samples, one_service);
    let text = all["findings"][0]["text"].as_str().unwrap();
    assert!(text.contains(" is slow: p99 98 ms, the others of its service 5.1 ms"), "{text}");
    assert_eq!(all["findings"].as_array().unwrap().len(), 1);
    samples[0].instances[1].times = calls(9, 90_000);
    let few = answer_of(&samples, one_service);
    assert_eq!(few["findings"], json!([]), "nine calls say nothing");
}

#[test]
fn an_instance_that_fails_or_is_full_is_named_and_a_few_failures_are_none() {
    let mut samples = idle();
    (samples[0].instances[1].ok, samples[0].instances[1].failed) = (30, 4);
    assert_eq!(found(&samples), []);
    samples[1].instances[1].failed = 6;
    let (part, name, text) = the_one(&samples);
    assert_eq!(part, "instance");
    assert_eq!(text, format!("10 of 40 messages failed at {name}"));
    let mut samples = idle();
    let slots = answer(&samples)["instances"]["shown"][0]["slots"].as_u64().unwrap();
    for sample in &mut samples {
        (sample.instances[0].in_flight, sample.instances[0].waiting) = (slots / 2, 8);
    }
    let (_, name, text) = the_one(&samples);
    let expected = format!("{name} has all {slots} slots taken, and 16 messages wait for it");
    assert_eq!(text, expected);
}

#[test]
fn clients_that_read_too_slowly_are_counted() {
    let mut samples = idle();
    samples[0].counters.add(Counter::ClosedSlow, 3);
    samples[1].counters.add(Counter::DeliveriesMissed, 40);
    let all = found(&samples);
    let parts: Vec<_> = all.iter().map(|(part, name, _)| (&**part, &**name)).collect();
    assert_eq!(parts, [("closes", "4001"), ("pushes", "missed")]);
    assert!(all[0].2.starts_with("3 connections were closed"), "{all:?}");
    assert!(all[1].2.starts_with("40 pushes were missed"), "{all:?}");
}

#[test]
fn an_owner_is_found_while_it_is_held_back_and_listed_for_a_minute() {
    let mut samples = idle();
    samples[1].at = Micros(100_000_000);
    let owner = |user: Option<&str>, last| HeldOwner {
        session: SessionId::new(ShardId(1), 7),
        user: user.map(Arc::from),
        tenant: None,
        instance: InstanceId(0),
        full: "user or address",
        held: 12,
        count: 340,
        last: Micros(last),
    };
    samples[1].held_back = vec![
        owner(Some("ann"), 99_000_000),
        owner(None, 60_000_000),
        owner(Some("long ago"), 39_000_000),
    ];
    let answer = answer(&samples);
    let listed: Vec<_> = answer["held_back"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| (o["user"].as_str(), o["ago_ms"].as_u64(), o["refused"].as_u64()))
        .collect();
    let ann = (Some("ann"), Some(1_000), Some(340));
    assert_eq!(listed, [ann, (None, Some(40_000), Some(340))]);
    let (part, _, text) = the_one(&samples);
    assert_eq!(part, "owner");
    assert!(text.starts_with("user ann is held back at "), "{text}");
    assert!(text.ends_with(": 12 waiting are its share, 340 more were refused"), "{text}");
}

#[test]
fn a_mark_is_read_back_and_one_of_another_run_is_none() {
    let mark = Mark { boot_id: 0xabc, row: 12, line: 3 };
    assert_eq!(Mark::read("abc-12-3"), Some(mark));
    assert_eq!((mark.of_run(0xabc), mark.of_run(1)), (mark, Mark::default()));
    for bad in ["", "abc", "abc-1", "abc-1-", "abc-1-x", "xyz-1-2", "abc-1-2-3", "abc--1-2"] {
        assert_eq!(Mark::read(bad), None, "{bad}");
    }
    // Without new lines the reader keeps those that it has.
    assert_eq!(answer(&idle())["mark"], "1-1-7");
}
