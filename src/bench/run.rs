//! A whole run: what it needs of this machine, its threads, and the line that shows its progress.

use std::io::{self, IsTerminal, Write, stderr};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::time::Duration;

use core_affinity::CoreId;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::plan::{Load, Plan, Share};
use super::process;
use super::record::Record;
use super::shared::{Seen, Shared};
use super::worker::{Moment, Outcome, work};
use crate::clock::unix_now_s;

/// Files of this process besides its connections and the epoll set of each thread: the standard
/// ones, and the program's own.
const OTHER_FILES: usize = 32;
/// Connections from one address: the ports that Linux gives out by default (32768 to 60999) are
/// 28,232; some are others'.
const CONNECTIONS_PER_SOURCE: usize = 25_000;
/// Addresses that connections may come from: 127.0.0.1 to 127.0.255.255.
pub const SOURCES_MAX: usize = 65_535;

/// Makes a run. `stop` ends it early. The error is one line: nothing could be measured.
pub fn run(mut plan: Plan, stop: &Arc<AtomicBool>) -> Result<Record, String> {
    let to = plan.target.resolve()?;
    prepare(&mut plan, to)?;
    let shared = Shared::new(plan.threads, stop.clone());
    let (outcomes, cpu_ns) = run_threads(&plan, to, &shared)?;
    let is_early = shared.is_stopped() || !outcomes.iter().all(|one| one.is_whole);
    let record = Record::new(&plan, outcomes, cpu_ns, is_early, unix_now_s());
    if record.connect_us.count == 0 { Err(why_not(&record)) } else { Ok(record) }
}

/// Reason why there was no connection, by the most frequent fault.
fn why_not(record: &Record) -> String {
    let url = &record.url;
    let worst = record.failed_connects.iter().max_by_key(|(_, counted)| counted.count);
    let Some((fault, counted)) = worst else {
        return format!("{url}: ended before the first connection was there");
    };
    let way_out = record.advice.iter().find(|line| line.starts_with(fault)).unwrap_or(fault);
    match counted.example.as_str() {
        "" => format!("{url}: {way_out}"),
        said => format!("{url}: {way_out} (it said: {said})"),
    }
}

/// Gives the plan what this machine needs for it, or says what it lacks.
fn prepare(plan: &mut Plan, to: SocketAddr) -> Result<(), String> {
    let all = plan.connections + plan.slow_readers;
    plan.threads = plan.threads.min(plan.connections);
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // A refusal leaves the soft limit, which is judged then.
    let _ = setrlimit(Resource::Nofile, most);
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let needed = (all + plan.threads + OTHER_FILES) as u64;
    if files < needed {
        return Err(format!(
            "{all} connections need {needed} open files, and the limit of this process is {files}: \
             raise it with `ulimit -n {needed}`, or take fewer --connections"
        ));
    }
    let is_local = matches!(to.ip(), std::net::IpAddr::V4(ip) if ip.is_loopback());
    if plan.sources > 0 && !is_local {
        return Err(format!(
            "--sources are addresses of 127.0.0.0/8, which reach only a gateway on this machine, \
             and {to} is none of them"
        ));
    }
    if plan.sources == 0 && is_local && all > CONNECTIONS_PER_SOURCE {
        plan.sources = all.div_ceil(CONNECTIONS_PER_SOURCE).min(SOURCES_MAX);
    }
    if let Some(gone) = plan.pids.iter().find(|pid| !process::exists(**pid)) {
        return Err(format!("--pid {gone}: there is no such process; see `pgrep -a shardgate`"));
    }
    Ok(())
}

/// Runs the threads; returns what each did, and the CPU time of the plan's processes.
fn run_threads(
    plan: &Plan,
    to: SocketAddr,
    shared: &Shared,
) -> Result<(Vec<Outcome>, Option<u64>), String> {
    std::thread::scope(|scope| {
        let (tell, told) = mpsc::channel::<Moment>();
        let threads: Vec<_> = (0..plan.threads)
            .map(|thread| {
                let share = Share { thread, of: plan.threads };
                let tell = tell.clone();
                let cpu = plan.cpus.get(thread % plan.cpus.len().max(1)).copied();
                scope.spawn(move || {
                    if let Some(id) = cpu
                        && !core_affinity::set_for_current(CoreId { id })
                    {
                        shared.stop();
                        return Err(io::Error::other(format!(
                            "it cannot be pinned to --cpu {id}: name another core"
                        )));
                    }
                    work(plan, to, share, shared, tell).inspect_err(|_| shared.stop())
                })
            })
            .collect();
        drop(tell);
        let cpu_ns = watch(plan, shared, &told);
        let outcomes = threads.into_iter().map(|thread| thread.join().expect("it panics nowhere"));
        let outcomes: Result<Vec<_>, _> = outcomes.collect();
        let outcomes = outcomes.map_err(|error| format!("a thread of the load failed: {error}"))?;
        Ok((outcomes, cpu_ns))
    })
}

/// Waits until all threads have ended, and shows a line a second on a terminal. Returns the CPU
/// time of the plan's processes from the first thread's beginning to the last one's end.
fn watch(plan: &Plan, shared: &Shared, told: &mpsc::Receiver<Moment>) -> Option<u64> {
    let is_shown = stderr().is_terminal();
    let (mut before, mut began, mut ended) = (0, None, None);
    loop {
        match told.recv_timeout(Duration::from_secs(1)) {
            Ok(Moment::Begins) => began = began.or_else(|| process::cpu_of(&plan.pids)),
            Ok(Moment::Ends) => ended = process::cpu_of(&plan.pids),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) if is_shown => {
                let seen = shared.seen();
                let line = progress(plan, shared, seen, seen.ok.saturating_sub(before));
                before = seen.ok;
                // Back to the start of the line, and what was longer is erased.
                let _ = write!(stderr(), "\r{line}\x1b[K");
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
    }
    if is_shown {
        let _ = write!(stderr(), "\r\x1b[K");
    }
    // Threads that ended take their time with them: less than before is no figure.
    began.zip(ended).and_then(|(began, ended)| u64::checked_sub(ended, began))
}

/// The line of the progress; `ok_per_s` = successes since the line before.
fn progress(plan: &Plan, shared: &Shared, seen: Seen, ok_per_s: u64) -> String {
    let (connected, of) = (seen.connected, plan.connections);
    let now = shared.clock.elapsed();
    let Some(start) = shared.start() else {
        return format!("connecting: {connected} of {of}");
    };
    let begin = Duration::from_nanos(start) + plan.warmup;
    let Some(since) = now.checked_sub(begin) else {
        return format!("warming up: {connected} connections");
    };
    let whole = match (plan.duration, plan.messages) {
        (_, Some(messages)) => format!("{} of {messages} messages", seen.ok + seen.refused),
        (Some(whole), None) => {
            format!("{:.0} of {:.0} s", since.as_secs_f64(), whole.as_secs_f64())
        }
        (None, None) => format!("{:.0} s", since.as_secs_f64()),
    };
    let wanted = match plan.load {
        Load::Open { per_s, .. } => format!(" of {per_s}"),
        Load::Closed { .. } => String::new(),
    };
    format!("{whole}: {connected} connections, {ok_per_s}{wanted} ok/s, {} refused", seen.refused)
}
