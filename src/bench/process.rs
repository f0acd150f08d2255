//! CPU time: of this thread, and of other processes.

use std::fs;
use std::path::Path;

use rustix::time::{ClockId, clock_gettime};

use super::pace::SECOND_NS;

/// CPU time of this thread so far, in nanoseconds.
pub fn own_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * SECOND_NS + time.tv_nsec as u64
}

/// CPU time of these processes so far, in nanoseconds: what the scheduler has counted, summed over
/// their threads. Threads that have ended are not in it. `None` = a process is gone, or the kernel
/// does not tell.
pub fn cpu_of(pids: &[u32]) -> Option<u64> {
    pids.iter().map(|pid| of_process(*pid)).sum()
}

fn of_process(pid: u32) -> Option<u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    tasks.map(|task| of_task(&task.ok()?.path())).sum()
}

fn of_task(task: &Path) -> Option<u64> {
    let text = fs::read_to_string(task.join("schedstat")).ok()?;
    text.split_whitespace().next()?.parse().ok()
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
        let own = || of_task(Path::new("/proc/thread-self")).expect("the kernel tells");
        let (clock, counted) = (own_cpu_ns(), own());
        while own() < counted + 1_000_000 {}
        assert!(own_cpu_ns() > clock);
        let pid = std::process::id();
        // A thread of another test may end while it is looked at, and then nothing is told.
        let seen = (0..1000).find_map(|_| cpu_of(&[pid]));
        assert!(seen > Some(0) && exists(pid) && !exists(u32::MAX));
        assert_eq!((cpu_of(&[]), cpu_of(&[pid, u32::MAX])), (Some(0), None));
    }
}
