//! CPU time: of this thread, and of other processes.

use std::fs;
use std::path::Path;

use rustix::time::{ClockId, clock_gettime};

/// CPU time of this thread so far, in nanoseconds.
pub fn own_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// CPU time of these processes so far, in nanoseconds: what the scheduler has counted, summed over
/// their threads. Threads that have ended are not in it.
pub fn cpu_of(pids: &[u32]) -> u64 {
    let tasks = pids.iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok());
    tasks.flatten().flatten().map(|task| of_task(&task.path())).sum()
}

fn of_task(task: &Path) -> u64 {
    let text = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
    text.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
}

/// Whether a process is there.
pub fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/task")).is_dir()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_of_a_process_is_seen() {
        let own = || of_task(Path::new("/proc/thread-self"));
        let (clock, counted) = (own_cpu_ns(), own());
        while own() < counted + 1_000_000 {}
        assert!(own_cpu_ns() > clock);
        let pid = std::process::id();
        assert!(cpu_of(&[pid]) > 0 && exists(pid) && !exists(u32::MAX));
        assert_eq!(cpu_of(&[]), 0);
    }
}
