//! The seeded simulator: whole shards (engines in the shell's order of events) with clients,
//! instances, control and clock that are simulated, and an oracle for the promises of the design.
//!
//! `SHARDGATE_SIM_SEED=N` replays one seed; `SHARDGATE_SIM_SEEDS=N` runs that many,
//! from `SHARDGATE_SIM_FIRST` on. `SHARDGATE_SIM_TRACES=FILE` writes a line a seed with the hash of
//! its run: a change that is to keep the behaviour leaves the file as it was.

mod backend;
mod calls;
mod client;
mod dice;
mod flood;
mod greedy;
mod habits;
mod members;
mod oracle;
mod plan;
mod push_checks;
mod push_oracle;
mod push_told;
mod pushes;
mod resumed;
mod sessions;
mod shell;
mod tenants;
mod travel;
mod wire;
mod world;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use flood::Flood;
use plan::Plan;
use shardgate::stats::Counter;
use world::World;

/// Seeds of a plain run of the tests: some 20 s of one core in a debug build.
const SEEDS: u64 = 200;
/// Seeds of a run with tenants.
const TENANT_SEEDS: u64 = 40;
/// Step of the clock after the active time, until nothing is under way.
const QUIET_STEP_US: u64 = 500_000;
/// Steps at most: a client that may have one message without an answer can have written some
/// hundred of them, each of which may wait for a timeout.
const QUIET_STEPS_MAX: u32 = 600;

/// Counters of the ways in which a move of a connection ends, and of what becomes of a user's
/// connections and of silent clients.
const COUNTED: [Counter; 7] = [
    Counter::MovedIn,
    Counter::MoveDelayed,
    Counter::MoveRefused,
    Counter::UserConnectionsTested,
    Counter::UserConnectionsRefused,
    Counter::ClosedElsewhere,
    Counter::Pings,
];

/// Prints the command that runs the seed again if the run panics.
struct OnFailure(u64);

impl Drop for OnFailure {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0;
            let command = "cargo test --test sim one_seed";
            eprintln!("seed {seed} failed; again: SHARDGATE_SIM_SEED={seed} {command}");
        }
    }
}

/// Result of a run.
struct RunResult {
    /// Hash of everything that happened.
    trace: u64,
    /// Answers by reason, and what is counted otherwise.
    answers: BTreeMap<String, u64>,
    runs: u64,
}

fn run(seed: u64) -> RunResult {
    let _on_failure = OnFailure(seed);
    let world = finish(Plan::of_any_kind(seed));
    let mut answers = world.oracle.answers.clone();
    for counter in COUNTED {
        let of_all = (0..world.shards.len()).map(|s| world.report(s).counters.get(counter));
        answers.insert(counter.name().into(), of_all.sum());
    }
    RunResult { trace: world.trace(), answers, runs: world.oracle.runs }
}

/// Runs a plan until nothing is under way any more.
fn finish(plan: Plan) -> World {
    let active_us = plan.active_us;
    let mut world = World::new(plan);
    let start = world.now;
    world.run(start + active_us);
    world.active = false;
    // Everything that clients wrote is read and answered, and a stop passes its grace.
    for _ in 0..QUIET_STEPS_MAX {
        if world.is_quiet() {
            break;
        }
        let until = world.now + QUIET_STEP_US;
        world.run(until);
    }
    world.check_end();
    world
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")))
}

/// Writes a line a seed: its number, the hash of everything that happened, and the answers by
/// reason. Two builds with the same lines behave the same.
fn write_traces(path: &str, results: &BTreeMap<u64, RunResult>) {
    let line = |(seed, result): (&u64, &RunResult)| {
        format!("{seed} {:016x} {} {:?}\n", result.trace, result.runs, result.answers)
    };
    let lines: String = results.iter().map(line).collect();
    std::fs::write(path, lines).unwrap_or_else(|e| panic!("{path}: {e}"));
}

/// Runs the seed of `SHARDGATE_SIM_SEED`, or the first one.
#[test]
fn one_seed() {
    let seed = number("SHARDGATE_SIM_SEED").unwrap_or(0);
    let result = run(seed);
    println!("seed {seed}: {} runs, answers {:?}", result.runs, result.answers);
}

/// Promises 1, 2, 5, 7 and 8 in a few hundred different worlds.
#[test]
fn the_promises_hold_in_every_world() {
    let seeds = number("SHARDGATE_SIM_SEEDS").unwrap_or(SEEDS);
    let first = number("SHARDGATE_SIM_FIRST").unwrap_or(0);
    let next = AtomicU64::new(first);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut by_seed: BTreeMap<u64, RunResult> = BTreeMap::new();
    std::thread::scope(|scope| {
        let work = || {
            let mut results = BTreeMap::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= first + seeds {
                    return results;
                }
                results.insert(seed, run(seed));
            }
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            by_seed.extend(thread.join().expect("a seed failed: see above"));
        }
    });
    if let Ok(path) = std::env::var("SHARDGATE_SIM_TRACES") {
        write_traces(&path, &by_seed);
    }
    let mut answers: BTreeMap<String, u64> = BTreeMap::new();
    let mut runs = 0;
    for result in by_seed.into_values() {
        runs += result.runs;
        for (word, count) in result.answers {
            *answers.entry(word).or_default() += count;
        }
    }
    println!("{seeds} seeds: {runs} runs, answers {answers:?}");
    // The worlds are worth nothing if they do not reach the paths that the promises are about.
    for word in [
        "(service)",
        "OUTCOME_UNKNOWN",
        "UNAVAILABLE",
        "EXPIRED",
        "QUEUE_FULL",
        "RATE_LIMITED",
        "DRAINING",
    ] {
        assert!(answers.get(word).is_some_and(|&n| n >= seeds / 4), "{word} is too rare");
    }
    let rare = seeds / 20;
    let least = [seeds, seeds / 4, rare, rare, rare, rare, rare];
    for (counter, least) in COUNTED.into_iter().zip(least) {
        let count = answers[counter.name()];
        assert!(count >= least, "{}: {count}, too rare", counter.name());
    }
}

/// After a pause of the process of any length nobody is closed for what the gateway did not do: no
/// 4001, 4002 or 4005, no 408.
#[test]
fn a_pause_closes_nobody_who_did_nothing_wrong() {
    let mut pauses = 0;
    for seed in 0..60 {
        let _on_failure = OnFailure(seed);
        let world = finish(Plan::with_pause(seed));
        let of_all = (0..world.shards.len()).map(|s| world.report(s).counters.get(Counter::Pauses));
        pauses += of_all.sum::<u64>();
        for (p, peer) in world.peers.iter().enumerate() {
            let fair = match peer.close_code {
                // The stop, no room, a token that expired or was broken.
                None | Some(1001 | 1013 | 4004 | 4500) => true,
                Some(_) => false,
            };
            assert!(fair, "peer {p} was closed with {:?}", peer.close_code);
            assert_ne!(peer.refused, Some(408), "peer {p}");
        }
    }
    assert!(pauses >= 60, "{pauses} pauses of shards: too rare");
}

/// Promise 2, where clients sign in with messages under way: what they send after it does not
/// overtake what they sent before.
#[test]
fn order_holds_over_a_sign_in() {
    for seed in 0..60 {
        let _on_failure = OnFailure(seed);
        finish(Plan::with_sign_in(seed));
    }
}

/// Nothing crosses from one tenant to another, while control adds, changes and removes them: no
/// message, answer, id, text, explanation or count; and each has what its quota gives it.
#[test]
fn nothing_crosses_between_tenants() {
    let (mut own_items, mut no_routes, mut divisions) = (0, 0, 0);
    let refusals = [Counter::QuotaConnectsRefused, Counter::QuotaMessagesRefused];
    let mut refused = [0; 2];
    let seeds = number("SHARDGATE_SIM_SEEDS").unwrap_or(TENANT_SEEDS);
    let first = number("SHARDGATE_SIM_FIRST").unwrap_or(0);
    for seed in first..first + seeds {
        let _on_failure = OnFailure(seed);
        let mut world = finish(Plan::with_tenants(seed));
        world.check_tenants();
        for (refused, counter) in refused.iter_mut().zip(refusals) {
            let of_all = (0..world.shards.len()).map(|s| world.report(s).counters.get(counter));
            *refused += of_all.sum::<u64>();
        }
        let tenancy = world.tenancy.as_ref().expect("the plan has tenants");
        own_items += tenancy.own_items;
        no_routes += tenancy.no_routes;
        divisions += tenancy.divisions;
    }
    println!("{own_items} own, {no_routes} no route, {divisions} divisions, {refused:?} refused");
    for count in [own_items, no_routes, refused[0], refused[1]] {
        assert!(count >= seeds, "a path is too rare");
    }
    assert!(divisions >= seeds / 2, "{divisions} divisions: too rare");
}

/// Promise 6: a message is read within two turns, however many clients flood and with what: one
/// turn may be theirs. They share what is left evenly, and none of them starves.
#[test]
fn a_message_is_read_within_two_turns_however_many_flood() {
    for flood in Flood::ALL {
        for count in [1, 2, 20] {
            let seen = flood::run(flood, count);
            assert!(seen.polite >= 50, "{flood:?} x {count}: {} messages", seen.polite);
            assert!(seen.turns_max <= 2, "{flood:?} x {count}: after {} turns", seen.turns_max);
            let (least, most) = (seen.least_read, seen.most_read);
            assert!(least > 0 && most <= 2 * least, "{flood:?} x {count}: {least} to {most} bytes");
        }
    }
}

/// Promise 6: so many connections that no two turns read them delay none of another address, though
/// each of them sends a little.
#[test]
fn many_connections_of_one_address_that_become_ready_at_once_delay_no_other() {
    for count in [100, 400] {
        let turns = flood::turns_beside_thrifty(count);
        assert!(turns <= 2, "{count} connections: after {turns} turns");
    }
}

/// Promise 11: the same input is the same run.
#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [1, 2, 3, 5, 8, 13, 21, 34] {
        assert_eq!(run(seed).trace, run(seed).trace, "seed {seed}");
        let [one, other] = [(); 2].map(|()| finish(Plan::with_tenants(seed)).trace());
        assert_eq!(one, other, "seed {seed} with tenants");
        let [one, other] = [(); 2].map(|()| finish(Plan::with_sessions(seed)).trace());
        assert_eq!(one, other, "seed {seed} with sessions");
    }
}
