//! Cores of this process: which of them the shards get, and which are left to all other threads.

use std::path::Path;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::machine::{list, text_at};
use super::{Problem, ShardPlan};
use crate::config::Config;
use crate::config::settings::ShardSettings;
use crate::ids::ShardId;
use crate::limits::SHARDS_MAX;

/// Number of shards for `allowed` cores when the count is `auto`: all, less one from 4 cores up,
/// which is left to control, pulse and the kernel.
pub fn auto_count(allowed: usize) -> usize {
    let spare = usize::from(allowed >= 4);
    (allowed - spare).clamp(1, SHARDS_MAX)
}

/// Plans `count` shards, each on its configured core, else on the N-th allowed one.
pub(super) fn lay_out(
    config: &Config,
    count: usize,
    allowed: &[usize],
) -> (Vec<ShardPlan>, Vec<Problem>) {
    let wanted: Vec<_> = (0..count).map(|n| config.shards.shard(n).core).collect();
    let (cores, problems) = match assign_cores(&wanted, allowed) {
        Ok(cores) => (cores, Vec::new()),
        Err(problems) => (vec![0; count], problems),
    };
    let shard = |(n, core): (usize, usize)| {
        let settings = ShardSettings { core: Some(core), ..config.shards.shard(n) };
        ShardPlan { id: ShardId(n as u16), core, settings }
    };
    (cores.into_iter().enumerate().map(shard).collect(), problems)
}

/// Problems with the cores of the shards on this machine: those that a start refuses.
pub fn core_problems(config: &Config) -> Vec<Problem> {
    let allowed = allowed_cores();
    let count = config.gateway.shards.unwrap_or_else(|| auto_count(allowed.len()));
    lay_out(config, count, &allowed).1
}

/// Assigns a core to each shard: the one it wants, else the N-th of `allowed`; no core twice.
pub fn assign_cores(
    wanted: &[Option<usize>],
    allowed: &[usize],
) -> Result<Vec<usize>, Vec<Problem>> {
    if wanted.len() > allowed.len() {
        let what = format!("{} shards for {} allowed cores", wanted.len(), allowed.len());
        let fix = format!(
            "set [shards] count or --shards to {} or less, or \"auto\", or allow more cores \
             (taskset, cpuset of the container)",
            allowed.len()
        );
        return Err(vec![Problem::new(what, fix)]);
    }
    let mut cores: Vec<usize> = Vec::new();
    let mut problems = Vec::new();
    for (n, want) in wanted.iter().enumerate() {
        let core = want.unwrap_or(allowed[n]);
        if !allowed.contains(&core) {
            let what =
                format!("shard {n} wants core {core}, which does not exist or is not allowed");
            let fix = format!("allowed are {}: change core in shards/{n}.toml", ranges(allowed));
            problems.push(Problem::new(what, fix));
        } else if let Some(other) = cores.iter().position(|&c| c == core) {
            let what = format!("shards {other} and {n} are both on core {core}");
            let fix = format!("give one of them another core ([shard] core in shards/{n}.toml)");
            problems.push(Problem::new(what, fix));
        }
        cores.push(core);
    }
    if problems.is_empty() { Ok(cores) } else { Err(problems) }
}

/// Text of `cores`, which rise: `0-3, 6`.
pub fn ranges(cores: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &core in cores {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == core => *last = core,
            Some(_) | None => parts.push((core, core)),
        }
    }
    let show = |&(a, b): &(usize, usize)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    parts.iter().map(show).collect::<Vec<_>>().join(", ")
}

/// Warns of spinning on every core, which leaves none to control and kernel.
pub(super) fn spin_warning(shards: &[ShardPlan], allowed: usize) -> Option<Problem> {
    let spins = shards.iter().filter(|s| !s.settings.spin.is_zero()).count();
    (spins > 0 && spins >= allowed).then(|| {
        let what = format!("spin_us is set on all {allowed} allowed cores");
        Problem::new(what, "control and kernel have no core left; use fewer shards or spin_us = 0")
    })
}

/// Cores that this process may run on, rising.
pub fn allowed_cores() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect(),
        // More than 1,024 cores do not fit into the set: the first ones are taken.
        Err(_) => (0..std::thread::available_parallelism().map_or(1, |n| n.get())).collect(),
    }
}

/// Cores, of those that are `allowed`, for every thread that is no shard: those without a shard. Of
/// these the isolated ones are left alone, as nobody spreads threads over them, if there are
/// others. All that are allowed, if each of them has a shard.
pub fn other_cores(allowed: &[usize], shards: &[usize], isolated: &[usize]) -> Vec<usize> {
    let but = |cores: &[usize], without: &[usize]| -> Vec<usize> {
        cores.iter().copied().filter(|core| !without.contains(core)).collect()
    };
    let free = but(allowed, shards);
    let shared = but(&free, isolated);
    [shared, free].into_iter().find(|cores| !cores.is_empty()).unwrap_or_else(|| allowed.to_vec())
}

/// Cores that the kernel was told to isolate (`isolcpus=`, or an isolated partition of cpusets).
pub(super) fn isolated_cores() -> Vec<usize> {
    list(&text_at(Path::new("/"), "/sys/devices/system/cpu/isolated"))
}

/// Keeps the calling thread on `cores`, and with it every thread that it or its children start: a
/// new thread has the cores of the one that starts it. A shard chooses its own core afterwards.
pub fn keep_to(cores: &[usize]) -> Result<(), Problem> {
    let mut set = CpuSet::new();
    cores.iter().filter(|&&core| core < CpuSet::MAX_CPU).for_each(|&core| set.set(core));
    sched_setaffinity(None, &set).map_err(|error| {
        let what = format!(
            "the threads of control, pulse and log cannot be kept on cores {}: {error}",
            ranges(cores)
        );
        Problem::new(what, "they may delay shards; allow sched_setaffinity in the seccomp profile")
    })
}
