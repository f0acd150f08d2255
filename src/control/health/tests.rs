//! Tests of single rules, by name.

mod sequences;

use std::time::Duration;

use super::judge::Verdict;
use super::*;

/// Settings whose times are whole seconds, so that ticks of one second meet every edge.
fn settings() -> HealthSettings {
    HealthSettings {
        up_after: 2,
        down_after: 2,
        panic_percent: 50,
        slow_start: secs(2),
        eject_after: 2,
        eject_losses: 2,
        eject_span: Duration::ZERO,
        eject: secs(2),
        eject_max: secs(5),
        ejected_percent_max: 50,
        trial_percent: 10,
        trial: secs(2),
        ..HealthSettings::default()
    }
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn failed() -> Check {
    Check::Failed { why: "no answer".into() }
}

fn says_no() -> Check {
    Check::NotServing { why: "says NOT_SERVING".into() }
}

fn window(shard: u16, ok: bool, failures: u32) -> CallWindow {
    CallWindow { shard: ShardId(shard), ok, failures }
}

/// A service under test. The clock moves by hand.
#[derive(Clone)]
struct Bench {
    settings: HealthSettings,
    now: Instant,
    service: Vec<Health>,
    verdict: Verdict,
    events: Vec<(usize, HealthEvent)>,
    /// Whether the instances answer the gateway's questions, at once.
    lives: bool,
}

impl Bench {
    fn new(settings: HealthSettings, instances: usize) -> Self {
        let now = Instant::now();
        let verdict = Verdict { shares: Vec::new(), panic: false, events: Vec::new(), next: None };
        let service = vec![Health::new(now); instances];
        let mut bench = Self { settings, now, service, verdict, events: Vec::new(), lives: true };
        bench.judge();
        bench
    }

    fn judge(&mut self) {
        let mut service: Vec<&mut Health> = self.service.iter_mut().collect();
        self.verdict = judge(&self.settings, &mut service, self.now);
        self.events.extend(self.verdict.events.iter().cloned());
        let asked: Vec<usize> =
            (0..self.service.len()).filter(|n| self.service[*n].take_question()).collect();
        for index in asked {
            self.check(index, if self.lives { Check::Answered } else { Check::Silent });
        }
        let next = self.verdict.next;
        assert!(next.is_none_or(|at| at > self.now), "what is due is done");
    }

    fn tick(&mut self, time: Duration) {
        self.now += time;
        self.judge();
    }

    fn window(&mut self, index: usize, window: CallWindow) {
        let event = self.service[index].window(&self.settings, window, self.now);
        self.events.extend(event.map(|event| (index, event)));
        self.judge();
    }

    fn lost(&mut self, index: usize, shard: u16) {
        self.service[index].lost(&self.settings, ShardId(shard), self.now);
        self.judge();
    }

    fn check(&mut self, index: usize, check: Check) {
        let event = self.service[index].check(&self.settings, check, self.now);
        self.events.extend(event.map(|event| (index, event)));
        self.judge();
    }

    fn fail(&mut self, index: usize) {
        self.window(index, window(0, false, self.settings.eject_after));
    }

    /// Ejects an instance, and waits until its trial has begun.
    fn put_on_trial(&mut self, index: usize) {
        self.fail(index);
        self.tick(self.settings.eject);
        assert_eq!(self.standing(index), Standing::Trial);
    }

    fn standing(&self, index: usize) -> Standing {
        self.service[index].standing()
    }

    fn share(&self, index: usize) -> u8 {
        self.verdict.shares[index]
    }

    fn standings(&self) -> Vec<&'static str> {
        self.service.iter().map(|h| h.standing().name()).collect()
    }

    /// Last event, without its instance.
    fn last(&self) -> Option<&HealthEvent> {
        self.events.last().map(|(_, event)| event)
    }

    fn count(&self, standing: Standing) -> usize {
        self.service.iter().filter(|h| h.standing() == standing).count()
    }
}

#[test]
fn a_new_instance_is_used_at_once() {
    let bench = Bench::new(settings(), 1);
    assert_eq!((bench.standing(0), bench.share(0)), (Standing::Unchecked, 100));
    assert_eq!(bench.verdict.next, None);
}

#[test]
fn checks_count_in_a_row_and_streams_at_once() {
    let mut bench = Bench::new(settings(), 2);
    for check in [failed(), Check::Succeeded, failed()] {
        bench.check(0, check);
        assert_eq!(bench.share(0), 100);
    }
    bench.check(0, failed());
    assert_eq!(bench.last(), Some(&HealthEvent::CheckedDown { why: "no answer".into() }));
    for check in [Check::Succeeded, failed(), Check::Succeeded] {
        bench.check(0, check);
        assert_eq!(bench.standing(0), Standing::Down);
    }
    bench.check(0, Check::Succeeded);
    assert_eq!(bench.last(), Some(&HealthEvent::CheckedUp));
    bench.check(0, says_no());
    assert_eq!(bench.standing(0), Standing::Down);
    assert_eq!(bench.service[0].why().as_deref(), Some("says NOT_SERVING"));
    bench.check(0, Check::Serving);
    assert_eq!(bench.standing(0), Standing::Warming);
}

#[test]
fn one_without_health_checks_counts_as_healthy() {
    let mut bench = Bench::new(settings(), 1);
    bench.check(0, Check::NotImplemented);
    assert_eq!((bench.events.len(), bench.share(0)), (0, 100));
    bench.check(0, says_no());
    bench.check(0, Check::NotImplemented);
    assert_eq!(bench.last(), Some(&HealthEvent::Unchecked));
    assert_eq!(bench.standing(0), Standing::Warming, "it was down");
}

#[test]
fn rows_of_all_shards_add_up_and_a_success_ends_only_its_shards_own() {
    let mut bench = Bench::new(HealthSettings { eject_after: 5, ..settings() }, 2);
    bench.window(0, window(0, false, 2));
    bench.window(0, window(1, false, 2));
    bench.window(0, window(0, true, 1));
    assert_eq!(bench.share(0), 100);
    bench.window(0, window(0, false, 2));
    let why = Why::Failures(5);
    assert_eq!(bench.last(), Some(&HealthEvent::Ejected { why, length: secs(2), nth: 1 }));
    assert_eq!(bench.verdict.shares, [0, 100]);
}

#[test]
fn lost_connections_count_by_shard_and_only_for_a_while() {
    let mut bench = Bench::new(settings(), 2);
    bench.lost(0, 0);
    bench.lost(0, 1);
    bench.tick(secs(2));
    bench.lost(0, 0);
    assert_eq!(bench.share(0), 100);
    bench.lost(0, 0);
    let why = Why::Losses { shard: ShardId(0), count: 2 };
    assert_eq!(bench.last(), Some(&HealthEvent::Ejected { why, length: secs(2), nth: 1 }));
}

#[test]
fn ejections_grow_to_their_cap_and_are_forgotten_after_as_long() {
    let mut bench = Bench::new(settings(), 2);
    bench.fail(0);
    for (nth, length) in [(2, 4), (3, 5), (4, 5)] {
        bench.tick(secs(5));
        bench.fail(0);
        let expected = HealthEvent::Ejected { why: Why::CallOnTrial, length: secs(length), nth };
        assert_eq!(bench.last(), Some(&expected));
    }
    [5, 2, 2].into_iter().for_each(|n| bench.tick(secs(n)));
    assert_eq!(bench.last(), Some(&HealthEvent::Trusted));
    let mut relapsed = bench.clone();
    relapsed.tick(secs(4));
    relapsed.fail(0);
    assert!(matches!(relapsed.last(), Some(HealthEvent::Ejected { nth: 5, .. })));
    bench.tick(secs(5));
    assert_eq!(bench.last(), Some(&HealthEvent::Forgiven));
    bench.fail(0);
    assert!(matches!(bench.last(), Some(HealthEvent::Ejected { nth: 1, .. })));
}

#[test]
fn a_trial_ends_with_three_successes_or_its_time() {
    let mut bench = Bench::new(settings(), 2);
    bench.put_on_trial(0);
    assert_eq!(bench.share(0), 10);
    let mut idle = bench.clone();
    idle.tick(secs(2));
    assert_eq!(idle.last(), Some(&HealthEvent::Warming));
    (0..2).for_each(|_| bench.window(0, window(0, true, 0)));
    assert_eq!(bench.standing(0), Standing::Trial);
    bench.window(0, window(1, true, 0));
    assert_eq!(bench.last(), Some(&HealthEvent::Warming));
}

#[test]
fn one_that_answers_nothing_gets_no_messages_however_long_it_takes() {
    let mut bench = Bench::new(settings(), 2);
    bench.fail(0);
    bench.lives = false;
    for _ in 0..100 {
        bench.tick(secs(1));
        assert_eq!((bench.standing(0), bench.share(0)), (Standing::Ejected, 0));
    }
    bench.lives = true;
    bench.tick(secs(2));
    assert_eq!((bench.standing(0), bench.share(0)), (Standing::Trial, 10));
    // It dies again before a message has tried it: no answer, no end of the trial.
    bench.lives = false;
    for _ in 0..100 {
        bench.tick(secs(1));
        assert_eq!(bench.standing(0), Standing::Trial);
    }
    bench.fail(0);
    assert_eq!(bench.standing(0), Standing::Ejected);
}

#[test]
fn calls_that_fail_together_eject_only_an_instance_that_answers_no_others() {
    let span = Duration::from_millis(100);
    let mut bench = Bench::new(HealthSettings { eject_span: span, ..settings() }, 2);
    bench.window(0, window(0, true, 24));
    assert_eq!(
        (bench.standing(0), bench.verdict.next),
        (Standing::Unchecked, Some(bench.now + span))
    );
    let mut answers = bench.clone();
    answers.tick(span / 2);
    answers.window(0, window(0, true, 0));
    answers.tick(span);
    assert_eq!((answers.standing(0), answers.verdict.next), (Standing::Unchecked, None));
    bench.tick(span);
    assert_eq!(
        bench.last(),
        Some(&HealthEvent::Ejected { why: Why::Failures(24), length: secs(2), nth: 1 })
    );
}

#[test]
fn failures_of_a_shard_that_calls_no_more_are_forgotten() {
    let mut bench = Bench::new(settings(), 2);
    bench.window(0, window(0, false, 1));
    bench.tick(secs(2));
    bench.window(0, window(1, false, 1));
    assert_eq!(bench.standing(0), Standing::Unchecked);
    bench.window(0, window(0, false, 1));
    assert_eq!(bench.standing(0), Standing::Ejected);
}

#[test]
fn keys_come_back_in_ten_equal_steps() {
    let mut bench = Bench::new(HealthSettings { slow_start: secs(10), ..settings() }, 2);
    bench.check(0, says_no());
    bench.check(0, Check::Serving);
    let mut shares = vec![bench.share(0)];
    while let Some(next) = bench.verdict.next {
        assert_eq!(next - bench.now, secs(1));
        bench.tick(secs(1));
        shares.push(bench.share(0));
    }
    assert_eq!(shares, [10, 19, 28, 37, 46, 55, 64, 73, 82, 91, 100]);
    assert_eq!(bench.last(), Some(&HealthEvent::Trusted));
}

#[test]
fn without_a_slow_start_all_keys_come_back_at_once() {
    let mut bench = Bench::new(HealthSettings { slow_start: Duration::ZERO, ..settings() }, 2);
    bench.put_on_trial(0);
    bench.tick(secs(2));
    assert_eq!((bench.last(), bench.share(0)), (Some(&HealthEvent::Trusted), 100));
    bench.check(0, says_no());
    bench.check(0, Check::Serving);
    assert_eq!(bench.share(0), 100);
}

#[test]
fn what_happens_while_it_is_down_or_ejected_is_not_held_against_it() {
    let mut bench = Bench::new(settings(), 2);
    bench.check(0, says_no());
    (0..9).for_each(|_| bench.fail(0));
    bench.check(0, Check::Serving);
    assert_eq!(bench.standing(0), Standing::Warming);
    bench.fail(0);
    (0..9).for_each(|_| bench.fail(0));
    bench.tick(secs(2));
    assert_eq!(bench.standing(0), Standing::Trial);
}

#[test]
fn one_that_comes_up_on_trial_is_tried_anew() {
    let mut bench = Bench::new(settings(), 2);
    bench.put_on_trial(0);
    bench.tick(secs(1));
    bench.check(0, says_no());
    bench.check(0, Check::Serving);
    bench.tick(secs(1));
    assert_eq!(bench.standing(0), Standing::Trial);
}

#[test]
fn a_single_instance_and_a_share_of_none_are_never_ejected() {
    let never = HealthSettings { ejected_percent_max: 0, ..settings() };
    for (settings, instances) in [(settings(), 1), (never, 3)] {
        let mut bench = Bench::new(settings, instances);
        (0..9).for_each(|_| bench.fail(0));
        assert_eq!((bench.share(0), bench.events.len()), (100, 0));
    }
}

#[test]
fn switched_off_reasons_eject_nobody() {
    let off = HealthSettings { eject_after: 0, eject_losses: 0, ..settings() };
    let mut trusted = Bench::new(off.clone(), 2);
    let mut on_trial = Bench::new(settings(), 2);
    on_trial.put_on_trial(0);
    on_trial.settings = off;
    for bench in [&mut trusted, &mut on_trial] {
        let before = bench.share(0);
        (0..9).for_each(|_| bench.window(0, window(0, false, 1000)));
        (0..9).for_each(|_| bench.lost(0, 0));
        assert_eq!(bench.share(0), before);
    }
}

#[test]
fn who_finds_no_room_keeps_its_row_and_goes_when_there_is_some() {
    let mut bench = Bench::new(settings(), 3);
    bench.fail(0);
    bench.fail(1);
    assert_eq!(bench.standings(), ["ejected", "unchecked", "unchecked"]);
    bench.tick(secs(2));
    assert_eq!(bench.standings(), ["trial", "unchecked", "unchecked"], "it keeps its place");
    bench.tick(secs(2));
    assert_eq!(bench.standings(), ["warming", "ejected", "unchecked"]);
}

#[test]
fn who_failed_most_goes_first() {
    let mut bench = Bench::new(settings(), 3);
    for (index, failures) in [(0, 2), (1, 7), (2, 3)] {
        let window = window(0, false, failures);
        bench.service[index].window(&bench.settings, window, bench.now);
    }
    bench.judge();
    assert_eq!(bench.standings(), ["unchecked", "ejected", "unchecked"]);
}

#[test]
fn ejections_end_early_when_too_few_are_left() {
    let mut bench = Bench::new(settings(), 4);
    bench.fail(0);
    bench.tick(secs(1));
    bench.fail(1);
    bench.service.truncate(2);
    bench.judge();
    assert_eq!(bench.standings(), ["trial", "ejected"], "the one whose time is over first");
    bench.fail(0);
    assert_eq!(bench.standings(), ["trial", "ejected"], "never all");
    (0..3).for_each(|_| bench.window(0, window(0, true, 0)));
    assert_eq!(bench.standings(), ["trial", "ejected"], "a failed trial is not passed");
    bench.tick(secs(1));
    bench.tick(secs(1));
    assert_eq!(bench.standings(), ["trial", "trial"], "its trial was over, and begins anew");
    bench.fail(0);
    assert_eq!(bench.standings(), ["ejected", "trial"], "now there is room");
}

#[test]
fn when_too_few_are_healthy_all_are_used() {
    let mut bench = Bench::new(settings(), 4);
    bench.fail(0);
    bench.fail(1);
    assert_eq!((bench.verdict.panic, &*bench.verdict.shares), (false, &[0, 0, 100, 100][..]));
    bench.check(2, says_no());
    assert_eq!((bench.verdict.panic, &*bench.verdict.shares), (true, &[100; 4][..]));
    bench.check(2, Check::Serving);
    assert_eq!((bench.verdict.panic, &*bench.verdict.shares), (false, &[0, 0, 10, 100][..]));
}
