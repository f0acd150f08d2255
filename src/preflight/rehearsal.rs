//! A rehearsal of what a start takes of the limits of its process: address space and threads. All
//! of it is taken at once and given back, so that a limit is a line before the start, and not an
//! abort in the middle of it.

use std::sync::Mutex;
use std::thread;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{Problem, ShardPlan};
use crate::config::Config;
use crate::memory::{self, shown};

/// Stack of a thread: as much as std asks for, and a guard page.
const STACK_BYTES: u64 = (2 << 20) + (4 << 10);
/// Address space that the C library reserves for a thread that allocates (HEAP_MAX_SIZE of glibc).
/// Where there is none left it does without, but it may come before the stores of a shard.
const HEAP_BYTES: u64 = 64 << 20;
/// Address space that the allocator reserves at once, if it can (mimalloc's arena_reserve).
const ARENA_BYTES: u64 = 1 << 30;
/// Address space of the rest: buffers of the log, sockets and TLS of the control thread, hash
/// rings, and the allocator's own. A start took some 40 MiB of it.
const REST_BYTES: u64 = 64 << 20;
/// Address space that the way out names more than what is wanted now, in steps of as much: the next
/// start begins with one arena of the allocator, and some heaps of threads, more or less.
const ROOM_BYTES: u64 = ARENA_BYTES;
/// Threads of the process besides those of shards: two of the log, pulse, and the one that fetches
/// keys.
const THREADS_OF_PROCESS: usize = 4;
/// Threads of a shard: its own, and glommio's for calls that block.
const THREADS_OF_SHARD: usize = 2;
/// Least stack of the main thread. Reading the command line and the configuration takes some 300
/// KiB in a build without optimisation.
const STACK_MIN: u64 = 1 << 20;
/// Ordinary stack of a main thread.
const STACK_ORDINARY: u64 = 8 << 20;
/// Least limits of address space and data for any command: some 42 MiB and 8 MiB were used in a
/// build without optimisation.
const ALL_MIN: u64 = 64 << 20;
const DATA_MIN: u64 = 16 << 20;

/// The problem of a start with these shards, if it has one.
pub(super) fn problem(config: &Config, shards: &[ShardPlan]) -> Option<Problem> {
    let demo = usize::from(config.gateway.demo.enabled);
    let threads = THREADS_OF_PROCESS + shards.len() * THREADS_OF_SHARD + demo;
    let pieces: Vec<u64> =
        shards.iter().flat_map(|shard| memory::reserved(&shard.settings)).collect();
    if let Some(problem) = space_problem(space_limits(), rehearsed(&pieces), shards.len(), threads)
    {
        return Some(problem);
    }
    let started = startable(threads);
    (started < threads).then(|| {
        let limit = getrlimit(Resource::Nproc).current;
        too_few_threads(started, threads, limit)
    })
}

/// Soft limits of address space, RLIMIT_AS and RLIMIT_DATA; `None` = unlimited.
fn space_limits() -> [Option<u64>; 2] {
    [Resource::As, Resource::Data].map(|resource| getrlimit(resource).current)
}

/// Address space of this process, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Used {
    /// What counts against RLIMIT_AS.
    all: u64,
    /// What counts against RLIMIT_DATA.
    data: u64,
    /// Whether the stores of all shards are in it.
    with_stores: bool,
}

impl Used {
    fn read(with_stores: bool) -> Self {
        let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kib = |name| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        let bytes = |name| kib(name).unwrap_or(0).saturating_mul(1024);
        Self { all: bytes("VmSize:"), data: bytes("VmData:"), with_stores }
    }

    /// This and stores of so many bytes, if they are not in it.
    fn and_stores(self, bytes: u64) -> Self {
        let more = if self.with_stores { 0 } else { bytes.max(ARENA_BYTES) };
        let sum = |used: u64| used.saturating_add(more);
        Self { all: sum(self.all), data: sum(self.data), with_stores: true }
    }
}

/// Use of address space while the pieces are reserved at once, or without them if that fails. No
/// page of them is touched, so that no memory is used.
fn rehearsed(pieces: &[u64]) -> (Used, u64) {
    let need = pieces.iter().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
    let mut held = Vec::new();
    let fit = pieces.iter().all(|bytes| {
        let mut piece: Vec<u8> = Vec::new();
        let fits = usize::try_from(*bytes).is_ok_and(|b| piece.try_reserve_exact(b).is_ok());
        held.push(piece);
        fits
    });
    if !fit {
        held.clear(); // Reading takes memory.
    }
    (Used::read(fit), need)
}

/// The problem of a start whose stores take `stores` bytes, under the limits RLIMIT_AS and
/// RLIMIT_DATA (`None` = unlimited).
fn space_problem(
    limits: [Option<u64>; 2],
    (used, stores): (Used, u64),
    shards: usize,
    threads: usize,
) -> Option<Problem> {
    let threads = threads as u64;
    let whole = used.and_stores(stores);
    let all = whole.all + threads * (STACK_BYTES + HEAP_BYTES) + REST_BYTES;
    // A thread's heap is no data before it is used.
    let data = whole.data + threads * STACK_BYTES + REST_BYTES;
    let lower = "or lower [shards] count";
    let known = [
        ("RLIMIT_AS", "LimitAS", "-v", limits[0], all),
        ("RLIMIT_DATA", "LimitDATA", "-d", limits[1], data),
    ];
    let short = known.into_iter().find_map(|(name, unit, flag, limit, want)| {
        let limit = limit.filter(|limit| *limit < want)?;
        let what = format!(
            "{name} allows {} of address space, a start with {shards} shards may take {}",
            shown(limit),
            shown(want)
        );
        let kib = (want + ROOM_BYTES).next_multiple_of(ROOM_BYTES) / 1024;
        let fix = format!(
            "raise it: {unit}=infinity in the systemd unit, or in the shell: ulimit {flag} \
             unlimited (or {kib}), {lower}"
        );
        Some(Problem::new(what, fix))
    });
    if short.is_some() || used.with_stores {
        return short;
    }
    let what = format!("the kernel refuses the {} of address space of a start", shown(stores));
    let fix = format!(
        "vm.overcommit_memory = 2 counts it as used; as root: sysctl -w vm.overcommit_memory=0, \
         {lower}"
    );
    Some(Problem::new(what, fix))
}

/// Number of threads, up to `wanted`, that can run at once.
fn startable(wanted: usize) -> usize {
    let gate = Mutex::new(());
    thread::scope(|scope| {
        // Until it opens, none of them ends.
        let closed = gate.lock();
        let wait = || drop(gate.lock());
        let start = |_| thread::Builder::new().spawn_scoped(scope, wait).ok();
        let started = (0..wanted).map_while(start).count();
        drop(closed);
        started
    })
}

fn too_few_threads(started: usize, wanted: usize, limit: Option<u64>) -> Problem {
    let limit = limit.map_or("unlimited".into(), |limit| limit.to_string());
    let what = format!(
        "{started} of the {wanted} processes and threads of a start can run (RLIMIT_NPROC is \
         {limit} for all of this user)"
    );
    let fix = "raise the limit that was met: LimitNPROC= or TasksMax= in the systemd unit, docker \
               run --pids-limit, or in a shell of root: ulimit -u unlimited";
    Problem::new(what, fix)
}

/// The problem of a process that has too little to read its command line and configuration. Raises
/// the soft limit of the main thread's stack, which grows into it, if that is a small one.
pub fn too_small() -> Option<Problem> {
    let [all, data] = space_limits();
    let stack = getrlimit(Resource::Stack);
    let hard = stack.maximum.unwrap_or(u64::MAX).min(STACK_ORDINARY);
    let mut soft = stack.current.unwrap_or(u64::MAX);
    let raised = Rlimit { current: Some(hard), maximum: stack.maximum };
    if soft < STACK_MIN && hard > soft && setrlimit(Resource::Stack, raised).is_ok() {
        soft = hard;
    }
    let least = [
        ("RLIMIT_STACK", "LimitSTACK", "-s", soft, STACK_MIN),
        ("RLIMIT_AS", "LimitAS", "-v", all.unwrap_or(u64::MAX), ALL_MIN),
        ("RLIMIT_DATA", "LimitDATA", "-d", data.unwrap_or(u64::MAX), DATA_MIN),
    ];
    let (name, unit, flag, limit, least) =
        least.into_iter().find(|(.., limit, least)| limit < least)?;
    let what =
        format!("{name} is {}, any command of this program needs {}", shown(limit), shown(least));
    let fix = format!(
        "raise it: {unit}=infinity in the systemd unit, or in a shell of root: ulimit {flag} \
         unlimited"
    );
    Some(Problem::new(what, fix))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_limit_that_is_met_is_named_with_what_is_needed() {
        // 2 shards and 8 threads: 200 + 8 x 66 + 64, and of data 150 + 8 x 2 + 64.
        let used = Used { all: 200 * MIB, data: 150 * MIB, with_stores: true };
        let problem = |limits| space_problem(limits, (used, 100 * MIB), 2, 8);
        assert_eq!(problem([None, None]), None);
        assert_eq!(problem([Some(793 * MIB), Some(231 * MIB)]), None);
        let line = |limits| problem(limits).expect("too little").to_string();
        let by_all = line([Some(500 * MIB), None]);
        let start = "RLIMIT_AS allows 500 MiB of address space, a start with 2 shards may take 792";
        assert!(by_all.starts_with(start), "{by_all}");
        assert!(by_all.contains("LimitAS=infinity") && by_all.contains("ulimit -v"), "{by_all}");
        let by_data = line([Some(900 * MIB), Some(200 * MIB)]);
        assert!(by_data.contains("RLIMIT_DATA allows 200 MiB"), "{by_data}");
        assert!(by_data.contains("may take 230 MiB") && by_data.contains("ulimit -d"), "{by_data}");
        // The stores could not be had, although no limit of the process is met.
        let refused = Used { with_stores: false, ..used };
        let by_kernel = space_problem([None, None], (refused, 100 * MIB), 2, 8);
        let by_kernel = by_kernel.expect("a problem").to_string();
        assert!(by_kernel.contains("vm.overcommit_memory=0"), "{by_kernel}");
    }

    #[test]
    fn what_is_there_is_given_back() {
        assert_eq!(startable(20), 20);
        let (used, need) = rehearsed(&[64 * MIB; 4]);
        assert!(used.with_stores && used.all > need && need == 256 * MIB, "{used:?}");
        let (used, _) = rehearsed(&[MIB, u64::MAX]);
        assert!(!used.with_stores && used.data > 0, "nobody has so much: {used:?}");
    }

    #[test]
    fn threads_that_lack_are_counted() {
        let line = too_few_threads(3, 9, Some(7)).to_string();
        assert!(line.starts_with("3 of the 9 processes and threads"), "{line}");
        assert!(line.contains("RLIMIT_NPROC is 7") && line.contains("--pids-limit"), "{line}");
    }
}
