//! A crowd in front of a gateway: the memory that idle connections take, and the latency of
//! talking clients in a storm of new ones.
//!
//!     cargo bench --bench crowd -- idle plain 15000
//!     cargo bench --bench crowd -- idle tls 5000
//!     cargo bench --bench crowd -- storm 5000
//!
//! The gateway is a process of its own, with one shard pinned to core 0; the crowd and the demo
//! services are pinned to core 1. Everybody signs in with a token at the upgrade.

mod gateway;
mod people;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gateway::Gateway;
use hdrhistogram::Histogram;
use people::{Line, Person, Talk};

const USAGE: &str = "usage: crowd idle plain|tls COUNT | crowd storm COUNT";
/// Handshakes under way at once while an idle crowd comes: it is not to be a storm.
const ARRIVING: usize = 64;
/// Clients that talk beside a storm, five messages a second each.
const TALKERS: usize = 1_000;
/// Time in which clients talk before the storm, and the least in it.
const CALM: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    // cargo bench adds its own flag.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let count = words.last().and_then(|n| n.parse::<usize>().ok());
    match (&words[..], count) {
        (["idle", "plain", _], Some(count)) => idle(count, Line::Plain),
        (["idle", "tls", _], Some(count)) => idle(count, Line::Tls),
        (["storm", _], Some(count)) => storm(count),
        // `cargo test` and a bare `cargo bench` run every bench: nothing is measured by chance.
        _ => println!("crowd: nothing done; {USAGE}"),
    }
    ExitCode::SUCCESS
}

fn runtime() -> tokio::runtime::Runtime {
    let made = tokio::runtime::Builder::new_current_thread().enable_all().build();
    made.expect("a runtime")
}

/// Memory of a connection: what the process grew by, and what the shard says it holds.
fn idle(count: usize, line: Line) {
    let gateway = Gateway::start();
    people::pin();
    runtime().block_on(async {
        // The first ones pay for what all share: tables, pools, code.
        let mut crowd = people::gather(&gateway, line, 0..200, ARRIVING).await;
        gateway.settle();
        let (rss, told) = (gateway.rss_bytes(), gateway.connection_bytes());
        let began = Instant::now();
        crowd.extend(people::gather(&gateway, line, 200..200 + count, ARRIVING).await);
        let took = began.elapsed();
        gateway.settle();
        let grown = gateway.rss_bytes().saturating_sub(rss) as f64 / count as f64;
        let held = (gateway.connection_bytes() - told) as f64 / count as f64;
        println!(
            "{count} idle connections, {line:?}, signed in, in {took:.1?}: {grown:.0} bytes of RSS \
             each, {held:.0} by the gateway's own account ({:.2} of it)",
            held / grown
        );
        drop(crowd);
    });
}

/// The latency of those who talk while `count` clients come over TLS; before that; and beside a
/// thread that only computes: the newcomers' own work takes the clients' core away in just that
/// way, and is not the gateway's.
fn storm(count: usize) {
    let gateway = Gateway::start();
    people::pin();
    // A rehearsal: where the machine is a guest its host gives memory when it is first touched, a
    // page at a time, and that stops whoever touches it for milliseconds.
    runtime().block_on(async {
        drop(people::gather(&gateway, Line::Tls, 0..count, ARRIVING).await);
    });
    gateway.settle();
    let talk = Talk::start(&gateway, TALKERS);
    let first = gateway.lateness();
    let calm = talk.over(CALM);
    let calm_late = since(&first, gateway.lateness());
    let stop = AtomicBool::new(false);
    let busy = std::thread::scope(|scope| {
        scope.spawn(|| {
            step_back();
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        let seen = talk.over(CALM);
        stop.store(true, Ordering::Relaxed);
        seen
    });
    let before = gateway.cpu();
    let first = gateway.lateness();
    talk.take();
    let storm = std::thread::scope(|scope| {
        let newcomers = scope.spawn(|| {
            step_back();
            runtime().block_on(async {
                let began = Instant::now();
                let crowd = people::gather(&gateway, Line::Tls, 0..count, count).await;
                (crowd.len(), began.elapsed(), crowd)
            })
        });
        talk.until(|| newcomers.is_finished());
        let stormy = talk.take();
        let (here, took, crowd): (usize, Duration, Vec<Person>) =
            newcomers.join().expect("they come");
        let (cpu, late) = (gateway.cpu() - before, since(&first, gateway.lateness()));
        println!(
            "{here} of {count} clients over TLS signed in within {took:.1?}, in which the gateway \
             was busy for {cpu:.1?}"
        );
        drop(crowd);
        (stormy, late)
    });
    let (storm, storm_late) = storm;
    print_talkers(&calm, &busy, &storm);
    for (name, late) in [("before", &calm_late), ("in the storm", &storm_late)] {
        println!(
            "the shard's own lateness, {name}: {} looks, p50 {} us, p99 {} us, most {} us",
            late.len(),
            late.value_at_quantile(0.5),
            late.value_at_quantile(0.99),
            late.max()
        );
    }
    talk.end();
}

/// The latency of the talkers before the storm, beside a busy thread, and in the storm.
fn print_talkers(calm: &Histogram<u64>, busy: &Histogram<u64>, storm: &Histogram<u64>) {
    let all = [("before", calm), ("beside a busy thread", busy), ("in the storm", storm)];
    for (name, seen) in all {
        println!(
            "{TALKERS} who talk, {name}: {} answers, p50 {} us, p99 {} us, p999 {} us",
            seen.len(),
            seen.value_at_quantile(0.5),
            seen.value_at_quantile(0.99),
            seen.value_at_quantile(0.999)
        );
    }
    let p99 = |seen: &Histogram<u64>| seen.value_at_quantile(0.99) as f64;
    println!(
        "p99 in the storm / before: {:.2}; / beside a busy thread: {:.2}",
        p99(storm) / p99(calm),
        p99(storm) / p99(busy)
    );
}

/// The part of `all` that came after `first`.
fn since(first: &Histogram<u64>, mut all: Histogram<u64>) -> Histogram<u64> {
    all.subtract(first).expect("it only grows");
    all
}

/// Makes this thread run only when nothing else on the clients' core wants to.
fn step_back() {
    people::pin();
    rustix::process::nice(19).expect("nicer is always allowed");
}
