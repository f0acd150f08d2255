//! Checks of this machine before anything starts: one line each that says what to do. Every check
//! is a function of numbers; only [`plan`] and the probes at the end ask the system.

mod cores;
pub mod doctor;
pub mod machine;
mod ports;
mod rehearsal;
mod topology;

use std::fmt;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub(crate) use self::cores::{
    allowed_cores, auto_count, core_problems, keep_to, other_cores, ranges,
};
use self::cores::{isolated_cores, lay_out, spin_warning};
pub(crate) use self::rehearsal::too_small;
use crate::config::settings::{ConnectionsMax, ShardSettings};
use crate::config::{Config, Loader, program};
use crate::engine::clients::home::places;
use crate::ids::ShardId;
use crate::limits::{
    ADMIN_CONNECTIONS_MAX, HANDOFF_ITEMS_MAX, IO_MEMORY_BYTES, RING_ENTRY_BYTES, RINGS,
};

/// Something that keeps the gateway from starting, or from doing all that is configured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// Fault, with its numbers.
    pub what: String,
    /// Way out.
    pub fix: String,
    /// Thing that the fault is in, as far as others have to tell.
    pub topic: Topic,
}

/// The thing that a fault is in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Topic {
    /// An address to listen on that another process has; `holder` is its name, if this user may see
    /// it.
    TakenPort { holder: Option<String> },
    /// The limit of open files.
    OpenFiles,
    /// Anything else.
    Other,
}

impl Problem {
    fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what: what.into(), fix: fix.into(), topic: Topic::Other }
    }

    fn about(self, topic: Topic) -> Self {
        Self { topic, ..self }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.fix)
    }
}

/// Plan of a start.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Shards, by number.
    pub shards: Vec<ShardPlan>,
    /// Connections that the limit of open files allows each shard to accept. Holds for settings of
    /// a reload, too.
    pub connections_cap: usize,
    /// Connections at once of the admin endpoint, and as many of the probes.
    pub admin_connections: usize,
    /// Cores that all other threads keep to. They are those of shards if there are no others.
    pub other_cores: Vec<usize>,
    /// Adjustments, and suspicious settings.
    pub warnings: Vec<Problem>,
}

/// Plan of one shard.
#[derive(Clone, Debug)]
pub struct ShardPlan {
    pub id: ShardId,
    /// Core that the shard is pinned to.
    pub core: usize,
    /// Settings of the shard: `core` is filled in, `connections_max` is what the file limit allows.
    pub settings: ShardSettings,
}

/// Soft limit of locked memory below which glommio refuses to start an executor (0.9,
/// `Reactor::new`).
const MEMLOCK_MIN: u64 = 512 << 10;
/// Ways to raise the limit of locked memory.
const RAISE_MEMLOCK: &str = "raise it: LimitMEMLOCK=infinity in the systemd unit, docker run \
     --ulimit memlock=-1, or in a shell of root: ulimit -l unlimited";
/// Oldest kernel: glommio 0.9 probes the ring's operations and asks for at least this one.
const KERNEL_MIN: (u32, u32) = (5, 8);
/// First kernel that charges ring memory to the control group, and no longer to RLIMIT_MEMLOCK.
const KERNEL_FREE_RINGS: (u32, u32) = (5, 12);
/// Files of the process itself: standard streams, control's epoll, and the sockets to sources.
const FILES_OF_PROCESS: u64 = 64;
/// Least number of connections of the admin endpoint.
const ADMIN_CONNECTIONS_MIN: usize = 16;
/// Files of a shard: three rings, eventfds, epoll set and its copy, listeners, and room for what is
/// being accepted or closed.
const FILES_OF_SHARD: u64 = 32;
/// Connections of a shard below which a `connections_max` of "auto" is not lowered without a word:
/// 4,096 open files, the hard limit that a kernel gives by itself, leave two shards some 1,500
/// each.
const CONNECTIONS_FEW: usize = 1_000;
/// Connections that a shard must be able to take for a start to make sense.
const CONNECTIONS_MIN: usize = 16;

/// Checks everything and plans the shards. Raises the soft limits of locked memory and open files
/// to the hard ones. Leaves no socket and no ring behind. `loader` is where `config` came from.
pub fn plan(config: &Config, loader: &Loader) -> Result<Plan, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    let kernel = kernel_version(&uname_release());
    problems.extend(kernel.and_then(kernel_problem));

    let allowed = allowed_cores();
    let count = config.gateway.shards.unwrap_or_else(|| auto_count(allowed.len()));
    let (mut shards, core_problems) = lay_out(config, count, &allowed);
    problems.extend(core_problems);
    let cores: Vec<usize> = shards.iter().map(|shard| shard.core).collect();
    let other_cores = other_cores(&allowed, &cores, &isolated_cores());
    if config.gateway.shards.is_none() {
        warnings.extend(config.shards.unused(count).map(|n| unused_problem(n, count)));
    }
    warnings.extend(spin_warning(&shards, allowed.len()));

    let depth = shards.iter().map(|s| s.settings.ring_depth).max().unwrap_or(1);
    let memlock = raised(Resource::Memlock);
    problems.extend(memlock_problem(memlock.current, memlock.maximum, count));
    let need = memlock_need(count, depth, kernel);
    problems.extend(memlock_short(memlock.current, need, kernel));

    let nofile = raised(Resource::Nofile);
    let admin_connections = admin_connections(nofile.current);
    let overhead = files_overhead(config, count, admin_connections);
    let allowed = connections_allowed(nofile.current, nofile.maximum, overhead, count);
    let connections_cap = allowed.unwrap_or_else(|problem| {
        problems.push(problem);
        usize::MAX
    });
    warnings.extend(clamp_connections(&mut shards, connections_cap, nofile.current));

    problems.extend(rehearsal::problem(config, &shards));
    problems.extend(uring_problem(probe_uring(depth), uring_disabled_sysctl()));
    problems.extend(ports::problems(config, loader));
    warnings.extend(ports::warnings(config));
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(Plan { shards, connections_cap, admin_connections, other_cores, warnings })
}

fn unused_problem(n: usize, count: usize) -> Problem {
    let what = format!("{n}.toml is read by no shard: there are {count}");
    Problem::new(what, "set [shards] count, or remove the file")
}

/// Problem of a kernel that is too old.
pub fn kernel_problem((major, minor): (u32, u32)) -> Option<Problem> {
    ((major, minor) < KERNEL_MIN).then(|| {
        let (a, b) = KERNEL_MIN;
        let what = format!("Linux {major}.{minor} is too old, io_uring is used as of {a}.{b}");
        Problem::new(what, "install a newer kernel and start it; the one that runs: uname -r")
    })
}

/// Major and minor number of a release such as `6.18.44-generic`.
pub fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|s| s.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// Problem of a soft limit of locked memory that stops glommio. `None` is unlimited. The soft limit
/// was raised to the hard one already where that was possible.
pub fn memlock_problem(soft: Option<u64>, hard: Option<u64>, shards: usize) -> Option<Problem> {
    let soft = soft.filter(|&soft| soft < MEMLOCK_MIN)?;
    let want = kib((MEMLOCK_MIN).max(shards as u64 * RINGS * IO_MEMORY_BYTES as u64));
    let hard = hard.map_or("unlimited".into(), |hard| format!("{} KiB", kib(hard)));
    let what = format!(
        "locked memory (RLIMIT_MEMLOCK) is {} KiB soft, {hard} hard; io_uring needs {want} KiB",
        kib(soft)
    );
    Some(Problem::new(what, RAISE_MEMLOCK))
}

fn kib(bytes: u64) -> u64 {
    bytes.div_ceil(1024)
}

/// Bytes that count against RLIMIT_MEMLOCK: registered buffers, and on old kernels the rings.
pub fn memlock_need(shards: usize, depth: usize, kernel: Option<(u32, u32)>) -> u64 {
    let rings = if kernel.is_some_and(|k| k < KERNEL_FREE_RINGS) {
        depth.next_power_of_two() as u64 * RING_ENTRY_BYTES
    } else {
        0
    };
    shards as u64 * RINGS * (IO_MEMORY_BYTES as u64 + rings)
}

/// Problem of a `soft` limit that glommio accepts but that all shards together exceed, on a kernel
/// that charges the rings to it. A newer one only registers fewer buffers: sockets use none.
pub fn memlock_short(soft: Option<u64>, need: u64, kernel: Option<(u32, u32)>) -> Option<Problem> {
    let soft = soft.filter(|&soft| (MEMLOCK_MIN..need).contains(&soft))?;
    kernel.is_some_and(|k| k < KERNEL_FREE_RINGS).then(|| {
        let what = format!(
            "locked memory (RLIMIT_MEMLOCK) is {} KiB, the rings of all shards need {} KiB",
            kib(soft),
            kib(need)
        );
        Problem::new(what, format!("use fewer shards, or {RAISE_MEMLOCK}"))
    })
}

/// Connections of the admin endpoint at once that a limit of open files leaves room for: a quarter
/// of it, but always some.
pub fn admin_connections(soft: Option<u64>) -> usize {
    let quarter = soft.map_or(usize::MAX, |soft| usize::try_from(soft / 4).unwrap_or(usize::MAX));
    quarter.clamp(ADMIN_CONNECTIONS_MIN, ADMIN_CONNECTIONS_MAX)
}

/// File descriptors that are no client's: of the process, of `admin_connections` of the admin
/// endpoint and as many of the probes, of the shards and their connections to instances (two each
/// while one replaces the other, and the demo services' ends of them).
pub fn files_overhead(config: &Config, shards: usize, admin_connections: usize) -> u64 {
    let ends = if config.gateway.demo.enabled { 4 } else { 2 };
    let endpoints = 1 + u64::from(config.gateway.admin.probes.is_some());
    let instances = config.snapshot.instances.len() as u64;
    FILES_OF_PROCESS
        + endpoints * admin_connections as u64
        + shards as u64 * (FILES_OF_SHARD + ends * instances)
}

/// File descriptors of the clients of a shard that accepts `connections_max` of them. A shard of
/// several also holds connections handed over to it as their user's home, and those that wait in
/// its lane: accepted by another shard, or on their way from it.
pub fn files_of_clients(connections_max: usize, shards: usize) -> u64 {
    let files = match shards {
        0 | 1 => connections_max,
        _ => places(connections_max).saturating_add(HANDOFF_ITEMS_MAX),
    };
    files as u64
}

/// Connections that the limit of open files allows each shard to accept: the most whose
/// [`files_of_clients`] are there. `None` is unlimited.
pub fn connections_allowed(
    soft: Option<u64>,
    hard: Option<u64>,
    overhead: u64,
    shards: usize,
) -> Result<usize, Problem> {
    let Some(soft) = soft else { return Ok(usize::MAX) };
    let each = soft.saturating_sub(overhead) / shards.max(1) as u64;
    // The files grow with the connections: halved 64 times, the range is one number.
    let (mut low, mut high) = (0, usize::try_from(each).unwrap_or(usize::MAX));
    while low < high {
        let middle = high - (high - low) / 2;
        match files_of_clients(middle, shards) <= each {
            true => low = middle,
            false => high = middle - 1,
        }
    }
    if low >= CONNECTIONS_MIN {
        return Ok(low);
    }
    let hard = hard.map_or("unlimited".into(), |hard| hard.to_string());
    let want = overhead + shards as u64 * files_of_clients(10_000, shards);
    let what = format!(
        "open files (RLIMIT_NOFILE) are {soft} soft, {hard} hard; {shards} shards need {overhead} \
         before the first client"
    );
    let fix = format!(
        "raise it: LimitNOFILE={want} in the systemd unit, docker run --ulimit nofile={want}, or \
         in a shell of root: ulimit -n {want}"
    );
    Err(Problem::new(what, fix))
}

/// Lowers `connections_max` to `each` where it is higher; one warning for all that are configured.
/// "auto" is what the limit allows, so it is lowered without a word unless few are left.
pub fn clamp_connections(
    shards: &mut [ShardPlan],
    each: usize,
    soft: Option<u64>,
) -> Option<Problem> {
    let all = |shards: &[ShardPlan]| -> usize {
        let each = shards.iter().map(|s| s.settings.conn.connections_max.get());
        each.fold(0, usize::saturating_add)
    };
    let is_asked_for = shards.iter().any(|s| match s.settings.conn.connections_max {
        ConnectionsMax::Set(max) => max > each,
        ConnectionsMax::Auto(_) => false,
    });
    let is_auto =
        shards.iter().any(|s| matches!(s.settings.conn.connections_max, ConnectionsMax::Auto(_)));
    let wanted = all(shards);
    for shard in shards.iter_mut() {
        let max = &mut shard.settings.conn.connections_max;
        *max = max.at_most(each);
    }
    let got = all(shards);
    let soft = soft.unwrap_or(u64::MAX);
    let what = match (is_asked_for, is_auto && each < CONNECTIONS_FEW) {
        (true, _) => format!("connections, connections_max asks for {wanted}"),
        (false, true) => "connections, which is few".to_owned(),
        (false, false) => return None,
    };
    let what = format!("open files (RLIMIT_NOFILE {soft}) allow {got} {what}");
    let fix = format!(
        "a shard takes {each} at most; raise the limit (`ulimit -n`, LimitNOFILE=), or set [conn] \
         connections_max to what is meant or to \"auto\""
    );
    Some(Problem::new(what, fix).about(Topic::OpenFiles))
}

/// Problem behind the answer to `io_uring_setup`, with the value of `kernel.io_uring_disabled`.
pub fn uring_problem(answer: Result<(), Errno>, disabled: Option<u32>) -> Option<Problem> {
    let error = answer.err()?;
    Some(match (error, disabled) {
        (Errno::NOSYS, _) => Problem::new(
            "this kernel has no io_uring (too old, built without it, or hidden by a sandbox or a \
             seccomp profile)",
            format!(
                "run on Linux 5.8 or newer with CONFIG_IO_URING, not under gVisor, and in a \
                 container with a seccomp profile that allows it ({} guide containers); the \
                 kernel that runs: uname -r",
                program()
            ),
        ),
        (Errno::PERM | Errno::ACCESS, Some(2)) => Problem::new(
            "io_uring is switched off (kernel.io_uring_disabled = 2)",
            "switch it on, as root on the host: sysctl -w kernel.io_uring_disabled=0",
        ),
        (Errno::PERM | Errno::ACCESS, Some(1)) => Problem::new(
            "io_uring is for privileged users only (kernel.io_uring_disabled = 1)",
            "set kernel.io_uring_group to a group of this user, or allow all users, as root on the \
             host: sysctl -w kernel.io_uring_disabled=0",
        ),
        (Errno::PERM | Errno::ACCESS, _) => Problem::new(
            "io_uring is blocked for this process, most likely by seccomp (Docker's default \
             profile blocks it)",
            format!(
                "allow io_uring_setup, io_uring_enter and io_uring_register in the profile \
                 (docker run --security-opt seccomp=profile.json); how: {} guide containers",
                program()
            ),
        ),
        (Errno::NOMEM, _) => Problem::new(
            "there is not enough locked memory (RLIMIT_MEMLOCK) for an io_uring",
            format!("lower shard.ring_depth, or {RAISE_MEMLOCK}"),
        ),
        (Errno::MFILE | Errno::NFILE, _) => Problem::new(
            "there are too many open files for an io_uring",
            "raise fs.file-max, LimitNOFILE= in the systemd unit, or in a shell of root: \
             ulimit -n 1048576",
        ),
        (other, _) => {
            let what = format!("io_uring_setup failed: {other}");
            Problem::new(what, "shard.ring_depth may be too large; the kernel's log: dmesg")
        }
    })
}

/// Limit of a resource, after its soft half was raised to the hard one where the system allows
/// that.
fn raised(resource: Resource) -> Rlimit {
    let now = getrlimit(resource);
    if now.current != now.maximum {
        // A refusal leaves the soft limit, which the checks judge afterwards.
        let _ = setrlimit(resource, Rlimit { current: now.maximum, maximum: now.maximum });
    }
    getrlimit(resource)
}

/// Makes a ring of `depth` entries and closes it.
fn probe_uring(depth: usize) -> Result<(), Errno> {
    let mut params = rustix::io_uring::io_uring_params::default();
    let entries = u32::try_from(depth).unwrap_or(u32::MAX);
    // SAFETY: `params` is a zeroed structure that lives through the call; no flag is set, so the
    // kernel follows no pointer or descriptor in it. The ring is never mapped, only closed.
    unsafe { rustix::io_uring::io_uring_setup(entries, &mut params) }.map(drop)
}

fn uname_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn uring_disabled_sysctl() -> Option<u32> {
    let text = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests;
