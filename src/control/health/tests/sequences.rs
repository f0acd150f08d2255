//! Every sequence of inputs up to a length, against a naive model and against what holds in any
//! case.

use super::*;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Letter {
    Ok,
    Fail,
    FailElsewhere,
    OkThenFail,
    Lost,
    Tick,
    CheckFails,
    CheckSucceeds,
    NotImplemented,
    SaysYes,
    SaysNo,
}

use Letter::*;

const CALLS: [Letter; 6] = [Ok, Fail, FailElsewhere, OkThenFail, Lost, Tick];
const ALL: [Letter; 11] = [
    Ok,
    Fail,
    FailElsewhere,
    OkThenFail,
    Lost,
    Tick,
    CheckFails,
    CheckSucceeds,
    NotImplemented,
    SaysYes,
    SaysNo,
];

/// Ways into every state, so that short sequences go far.
const PREFIXES: [&[Letter]; 9] = [
    &[],
    &[Fail, Fail],
    &[Lost, Lost, Tick, Tick],
    &[Fail, Fail, Tick, Tick, Fail, Tick, Tick, Tick],
    &[Fail, Fail, Tick, Tick, Ok, Ok],
    &[Fail, Fail, Tick, Tick, Tick, Tick, Tick],
    &[Fail, Fail, Tick, Tick, Ok, Ok, Ok, Tick, Tick, Tick, Tick, Tick],
    &[CheckFails, CheckFails],
    &[Fail, Fail, SaysNo, Tick, Tick],
];

fn enter(bench: &mut Bench, letter: Letter) {
    match letter {
        Ok => bench.window(0, window(0, true, 0)),
        Fail => bench.window(0, window(0, false, 1)),
        FailElsewhere => bench.window(0, window(1, false, 1)),
        OkThenFail => bench.window(0, window(0, true, 1)),
        Lost => bench.lost(0, 0),
        Tick => bench.tick(secs(1)),
        CheckFails => bench.check(0, failed()),
        CheckSucceeds => bench.check(0, Check::Succeeded),
        NotImplemented => bench.check(0, Check::NotImplemented),
        SaysYes => bench.check(0, Check::Serving),
        SaysNo => bench.check(0, says_no()),
    }
}

/// A naive model: counts ticks down, and reads what happened since the last change from a list.
/// `phase` is T(rusted), E(jected), P(robation) or W(arming).
#[derive(Clone)]
struct Model {
    down: bool,
    answers: bool,
    checks_in_a_row: i32,
    phase: char,
    left: u64,
    calm: u64,
    times: u64,
    now: u64,
    happened: Vec<(u64, Letter)>,
}

impl Model {
    fn new() -> Self {
        Self {
            down: false,
            answers: false,
            checks_in_a_row: 0,
            phase: 'T',
            left: 0,
            calm: 0,
            times: 0,
            now: 0,
            happened: Vec::new(),
        }
    }

    fn go(&mut self, phase: char, ticks: u64) {
        (self.phase, self.left, self.calm) = (phase, ticks, 0);
        self.happened.clear();
    }

    fn eject(&mut self) {
        self.times += 1;
        self.go('E', (2 * self.times).min(5));
    }

    /// Failed calls at the end of the list, by shard; a success ends the count. A shard whose last
    /// one is an ejection older than the newest does not count.
    fn row(&self) -> usize {
        let back = || self.happened.iter().rev().map(|(_, letter)| *letter);
        let last = |letters: [Letter; 2]| {
            let found = self.happened.iter().rfind(|(_, letter)| letters.contains(letter));
            found.map(|(at, _)| *at)
        };
        let (last_here, last_there) = (last([Fail, OkThenFail]), last([FailElsewhere; 2]));
        let newest = last_here.max(last_there).unwrap_or(0);
        let is_near = |last: Option<u64>| last.is_some_and(|at| newest - at < 2);
        let mut elsewhere = back().filter(|l| *l == FailElsewhere).count();
        let mut here = 0;
        for letter in back() {
            match letter {
                Ok => break,
                Fail => here += 1,
                OkThenFail => {
                    here += 1;
                    break;
                }
                _ => {}
            }
        }
        if !is_near(last_there) {
            elsewhere = 0;
        }
        // A success since has ended the row of its shard.
        if here > 0 && !is_near(last_here) {
            here = 0;
        }
        here + elsewhere
    }

    fn set_down(&mut self, down: bool) {
        self.checks_in_a_row = 0;
        if self.down && !down {
            match self.phase {
                'E' => {}
                'P' => self.go('P', 2),
                _ => self.go('W', 2),
            }
        } else if down {
            self.happened.clear();
        }
        self.down = down;
    }

    fn enter(&mut self, letter: Letter) {
        match letter {
            Tick => self.tick(),
            CheckFails => {
                self.checks_in_a_row = self.checks_in_a_row.min(0) - 1;
                if self.checks_in_a_row == -2 && !self.down {
                    self.set_down(true);
                    self.answers = true;
                }
            }
            CheckSucceeds => {
                self.checks_in_a_row = self.checks_in_a_row.max(0) + 1;
                if !self.down {
                    self.answers = true;
                } else if self.checks_in_a_row == 2 {
                    self.set_down(false);
                }
            }
            NotImplemented => {
                self.set_down(false);
                self.answers = false;
            }
            SaysYes => {
                self.set_down(false);
                self.answers = true;
            }
            SaysNo if self.down => self.checks_in_a_row = 0,
            SaysNo => self.set_down(true),
            Ok | Fail | FailElsewhere | OkThenFail | Lost => self.call(letter),
        }
    }

    fn call(&mut self, letter: Letter) {
        if self.down || self.phase == 'E' {
            return;
        }
        self.happened.push((self.now, letter));
        if self.phase == 'P' {
            if letter != Ok {
                self.eject();
            } else if self.happened.len() == 3 {
                self.go('W', 2);
            }
            return;
        }
        let recent = |(at, l): &&(u64, Letter)| *l == Lost && self.now - at < 2;
        if self.row() >= 2 || self.happened.iter().filter(recent).count() >= 2 {
            self.eject();
        }
    }

    fn tick(&mut self) {
        self.now += 1;
        self.calm += 1;
        if self.phase == 'T' {
            if self.calm == 5 {
                self.times = 0;
            }
            return;
        }
        self.left -= 1;
        match (self.phase, self.left) {
            ('E', 0) => self.go('P', 2),
            ('P', 0) => self.go('W', 2),
            ('W', 0) => self.go('T', 0),
            _ => {}
        }
    }

    fn expected(&self) -> (Standing, u8) {
        match (self.down, self.phase) {
            (true, _) => (Standing::Down, 0),
            (_, 'E') => (Standing::Ejected, 0),
            (_, 'P') => (Standing::Trial, 10),
            (_, 'W') => (Standing::Warming, if self.left == 2 { 10 } else { 55 }),
            _ if self.answers => (Standing::Ok, 100),
            _ => (Standing::Unchecked, 100),
        }
    }
}

/// Walks all sequences of `letters` up to `depth`, from the present state. Returns the number of
/// steps.
fn walk(letters: &[Letter], depth: usize, bench: &Bench, model: &Model, path: &[Letter]) -> usize {
    if depth == 0 {
        return 0;
    }
    let mut steps = 0;
    for letter in letters {
        let path = [path, &[*letter]].concat();
        let (mut bench, mut model) = (bench.clone(), model.clone());
        step(&mut bench, &mut model, *letter, &path);
        steps += 1 + walk(letters, depth - 1, &bench, &model, &path);
    }
    steps
}

fn step(bench: &mut Bench, model: &mut Model, letter: Letter, path: &[Letter]) {
    let (before, nth) = (bench.standing(0), model.times);
    bench.events.clear();
    enter(bench, letter);
    model.enter(letter);
    assert_eq!((bench.standing(0), bench.share(0)), model.expected(), "{path:?}");
    let out = matches!(bench.standing(0), Standing::Ejected | Standing::Down);
    assert_eq!(bench.share(0) == 0, out, "{path:?}");
    assert_eq!(bench.service[0].why().is_some(), out, "{path:?}");
    assert!(before == bench.standing(0) || !bench.events.is_empty(), "a silent change: {path:?}");
    if let Some(HealthEvent::Ejected { length, nth: n, .. }) = bench.last() {
        let expected = secs(2 * (nth + 1)).min(secs(5));
        assert_eq!((*length, u64::from(*n)), (expected, nth + 1), "{path:?}");
    }
    if before == Standing::Trial && matches!(letter, Fail | OkThenFail | FailElsewhere | Lost) {
        assert_eq!(bench.standing(0), Standing::Ejected, "{path:?}");
    }
}

/// Walks from each prefix. The service has two instances, and the other one is healthy, so that
/// there is always room.
fn walk_all(letters: &[Letter], depth: usize) -> usize {
    let walk_from = |prefix: &&[Letter]| {
        let (mut bench, mut model) = (Bench::new(settings(), 2), Model::new());
        for (n, letter) in prefix.iter().enumerate() {
            step(&mut bench, &mut model, *letter, &prefix[..=n]);
        }
        walk(letters, depth, &bench, &model, prefix)
    };
    PREFIXES.iter().map(walk_from).sum()
}

#[test]
fn every_sequence_of_calls_does_what_the_naive_model_does() {
    assert_eq!(walk_all(&CALLS, 5), 9 * (6 + 36 + 216 + 1296 + 7776));
}

#[test]
fn every_sequence_of_calls_and_checks_does_what_the_naive_model_does() {
    assert_eq!(walk_all(&ALL, 4), 9 * (11 + 121 + 1331 + 14641));
}

/// All states that sequences of `letters` lead to in so many steps from the prefixes.
fn states(letters: &[Letter], depth: usize) -> Vec<Bench> {
    let mut all = Vec::new();
    for prefix in PREFIXES {
        let mut bench = Bench::new(settings(), 2);
        prefix.iter().for_each(|letter| enter(&mut bench, *letter));
        let mut level = vec![bench];
        for _ in 0..depth {
            let after = |bench: &Bench| {
                let bench = bench.clone();
                letters.iter().map(move |letter| {
                    let mut bench = bench.clone();
                    enter(&mut bench, *letter);
                    bench
                })
            };
            level = level.iter().flat_map(after).collect();
            all.extend(level.iter().cloned());
        }
    }
    all
}

#[test]
fn no_state_is_without_an_exit() {
    for mut bench in states(&ALL, 3) {
        // An ejection (5), trial (2), slow start (2), each after the check that ends "down".
        for _ in 0..12 {
            bench.check(0, Check::Succeeded);
            bench.tick(secs(1));
        }
        assert_eq!((bench.standing(0), bench.share(0)), (Standing::Ok, 100));
    }
}

#[test]
fn time_changes_something_at_the_told_moment_and_not_before() {
    for bench in states(&ALL, 3) {
        let Some(next) = bench.verdict.next else {
            let mut later = bench.clone();
            later.tick(secs(1000));
            assert_eq!((&later.service, later.share(0)), (&bench.service, bench.share(0)));
            continue;
        };
        let (mut before, mut at) = (bench.clone(), bench.clone());
        before.tick(next - bench.now - Duration::from_nanos(1));
        assert_eq!(
            (&before.service, &before.verdict.shares),
            (&bench.service, &bench.verdict.shares)
        );
        at.tick(next - bench.now);
        let shares = at.verdict.shares != bench.verdict.shares;
        let changed = shares || at.events.len() > bench.events.len();
        // A slow start of an instance that is down shows in no share.
        assert!(changed || bench.standing(0) == Standing::Down);
    }
}

/// Checks what holds for a service after each step, whatever happened.
fn check_service(bench: &Bench, path: &[usize]) {
    let (all, ejected) = (bench.service.len(), |h: &&Health| h.is_ejected());
    let max = if all < 2 { 0 } else { (all * 50 / 100).max(1) };
    let ejected = bench.service.iter().filter(ejected).count();
    assert!(ejected <= max, "{path:?}: {:?}", bench.standings());
    let out = bench.count(Standing::Ejected) + bench.count(Standing::Down);
    assert_eq!(bench.verdict.panic, (all - out) * 2 < all, "{path:?}: {:?}", bench.standings());
    let taken = ejected + bench.service.iter().filter(|h| h.is_on_trial()).count();
    for (health, share) in bench.service.iter().zip(&bench.verdict.shares) {
        let out = matches!(health.standing(), Standing::Ejected | Standing::Down);
        assert_eq!(*share == 0, out && !bench.verdict.panic, "{path:?}: {:?}", bench.standings());
        assert!(!bench.verdict.panic || *share == 100);
        if health.wants_ejection(&bench.settings, bench.now).is_some() {
            let taken = if health.is_on_trial() { ejected } else { taken };
            assert!(taken >= max, "refused although there is room: {path:?}");
        }
    }
}

/// Walks all sequences of: instance i fails, instance i passes, a tick, 0 goes down or up, one
/// leaves.
fn walk_service(bench: &Bench, depth: usize, path: &[usize]) {
    if depth == 0 {
        return;
    }
    let all = bench.service.len();
    for letter in 0..2 * all + 4 {
        let mut bench = bench.clone();
        match letter {
            _ if letter < all => bench.fail(letter),
            _ if letter < 2 * all => {
                (0..3).for_each(|_| bench.window(letter - all, window(0, true, 0)));
            }
            _ => match letter - 2 * all {
                0 => bench.tick(secs(2)),
                1 => bench.check(0, says_no()),
                2 => bench.check(0, Check::Serving),
                _ if all > 1 => {
                    bench.service.pop();
                    bench.judge();
                }
                _ => continue,
            },
        }
        let path = [path, &[letter]].concat();
        check_service(&bench, &path);
        walk_service(&bench, depth - 1, &path);
    }
}

#[test]
fn every_sequence_in_a_service_keeps_to_its_limits() {
    for (instances, depth) in [(1, 6), (2, 5), (3, 4), (4, 4), (5, 3)] {
        walk_service(&Bench::new(settings(), instances), depth, &[]);
    }
}
