//! `shardgate doctor`: the preflight, and what makes a gateway slower than its machine. A line each
//! with the fact, why it matters, and the command that changes it. The doctor changes nothing.

use std::fmt;

use super::machine::{Machine, list};
use super::{
    CONNECTIONS_FEW, Topic, allowed_cores, auto_count, files_of_clients, files_overhead,
    other_cores, plan, ranges,
};
use crate::config::settings::ConnectionsMax;
use crate::config::{Config, Loader};
use crate::limits::ADMIN_CONNECTIONS_MAX;
use crate::memory;

/// Severity of a finding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Verdict {
    Ok,
    /// Worth knowing, and right on many hosts.
    Note,
    /// Costs something under load.
    Warn,
    /// The gateway does not start.
    Fail,
}

impl Verdict {
    /// Word in the output.
    fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "OK",
            Verdict::Note => "NOTE",
            Verdict::Warn => "WARN",
            Verdict::Fail => "FAIL",
        }
    }
}

/// A finding on one fact.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    pub verdict: Verdict,
    /// Fact, with its value.
    pub seen: String,
    /// Reason why the fact matters; empty when all is well.
    pub why: String,
    /// Command that changes the fact; empty when all is well.
    pub how: String,
}

impl Finding {
    fn ok(seen: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, seen: seen.into(), why: String::new(), how: String::new() }
    }

    fn new(verdict: Verdict, seen: String, why: &str, how: impl Into<String>) -> Self {
        Self { verdict, seen, why: why.into(), how: how.into() }
    }

    /// A finding that all is well if `fine`, else one of `verdict`, `why` and `how`.
    fn judge(
        fine: bool,
        verdict: Verdict,
        seen: String,
        why: &str,
        how: impl Into<String>,
    ) -> Self {
        if fine { Self::ok(seen) } else { Self::new(verdict, seen, why, how) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:4}  {}", self.verdict.word(), self.seen)?;
        for line in [&self.why, &self.how].into_iter().filter(|line| !line.is_empty()) {
            write!(f, "\n        {line}")?;
        }
        Ok(())
    }
}

/// Whether a finding keeps the gateway from starting.
pub fn any_fails(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.verdict == Verdict::Fail)
}

/// Text of all findings, with their counts.
pub fn report(findings: &[Finding]) -> String {
    let mut out: String = findings.iter().map(|finding| format!("{finding}\n")).collect();
    let count = |verdict| findings.iter().filter(|f| f.verdict == verdict).count();
    out += &format!(
        "{} FAIL, {} WARN, {} NOTE, {} OK",
        count(Verdict::Fail),
        count(Verdict::Warn),
        count(Verdict::Note),
        count(Verdict::Ok)
    );
    out
}

/// Needs of the configuration.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Cores of the shards, in their order.
    pub cores: Vec<usize>,
    /// Cores that the process may use.
    pub allowed: Vec<usize>,
    /// File descriptors of the clients of all shards.
    pub connections: u64,
    /// All other file descriptors.
    pub files: u64,
    /// Memory when all caps are reached ([`memory`]), in bytes.
    pub bytes: u64,
}

/// Connections of a shard without which a warning is due.
fn wished(max: ConnectionsMax) -> usize {
    match max {
        ConnectionsMax::Auto(_) => CONNECTIONS_FEW,
        ConnectionsMax::Set(max) => max,
    }
}

impl Wanted {
    fn of(config: &Config) -> Self {
        let allowed = allowed_cores();
        let count = config.gateway.shards.unwrap_or_else(|| auto_count(allowed.len()));
        let settings = |n| config.shards.shard(n);
        let core = |n| settings(n).core.or_else(|| allowed.get(n).copied());
        let instances = config.snapshot.instances.len();
        let tls = config.gateway.tls.listen.is_some();
        let bytes = (0..count).map(|n| memory::of_shard(&settings(n), instances, tls).full_bytes());
        Self {
            cores: (0..count).filter_map(core).collect(),
            connections: (0..count)
                .map(|n| files_of_clients(wished(settings(n).conn.connections_max), count))
                .sum(),
            files: files_overhead(config, count, ADMIN_CONNECTIONS_MAX),
            bytes: bytes.fold(0, u64::saturating_add),
            allowed,
        }
    }
}

/// Examines this machine for `config`. With `running` a gateway answers at `admin.listen`: then
/// that one has the ports.
pub fn examine(config: &Config, loader: &Loader, running: bool) -> Vec<Finding> {
    let wanted = Wanted::of(config);
    let machine = Machine::read(&wanted.cores);
    let mut findings = Vec::new();
    match plan(config, loader) {
        Ok(plan) => {
            let shards = plan.shards.len();
            findings.push(Finding::ok(format!("a start would succeed, with {shards} shards")));
            let warn = |w: &super::Problem| {
                Finding::new(Verdict::Warn, w.what.clone(), "told at every start", w.fix.clone())
            };
            // Open files are judged below, with both limits.
            let told = plan.warnings.iter().filter(|w| w.topic != Topic::OpenFiles);
            findings.extend(told.map(warn));
        }
        Err(problems) => findings.extend(problems.into_iter().map(|p| {
            if running && is_of_gateway(&p.topic) {
                return Finding::ok(format!("{}: a gateway runs", p.what));
            }
            Finding::new(Verdict::Fail, p.what, "the gateway does not start", p.fix)
        })),
    }
    findings.extend(judge(&machine, &wanted));
    findings
}

/// Whether an address can be that of the gateway that runs: its holder has the name of this
/// program, or this user may not see the holder.
fn is_of_gateway(topic: &Topic) -> bool {
    let own = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
    match topic {
        Topic::TakenPort { holder: Some(name) } => name == own.trim(),
        Topic::TakenPort { holder: None } => true,
        Topic::OpenFiles | Topic::Other => false,
    }
}

/// Memory that this process may use, in bytes: the machine's, its control group's or that of the
/// limit of address space, whichever is least.
pub fn memory_of_machine() -> Option<u64> {
    memory_of(&Machine::read(&[]))
}

fn memory_of(machine: &Machine) -> Option<u64> {
    let total = machine.text("/proc/meminfo").lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok()
    });
    let group = machine.text("memory.max").parse::<u64>().ok();
    let all = [total.map(|kib| kib * 1024), group, machine.address_space];
    all.into_iter().flatten().min()
}

/// All findings but those of the preflight: a function of texts and numbers.
pub fn judge(machine: &Machine, wanted: &Wanted) -> Vec<Finding> {
    let mut all = cores(machine, wanted);
    all.extend(interrupts(machine, wanted));
    all.extend(limits(machine, wanted));
    all.extend(sysctls(machine));
    all.extend(memory_findings(machine, wanted));
    all.extend(container(machine, wanted));
    all.push(clock(machine));
    all
}

fn cores(machine: &Machine, wanted: &Wanted) -> Vec<Finding> {
    let shown = ranges(&sorted(&wanted.cores));
    let isolated = list(machine.text("/sys/devices/system/cpu/isolated"));
    let nohz = list(machine.text("/sys/devices/system/cpu/nohz_full"));
    let partition = machine.text("cpuset.cpus.partition");
    let alone = partition == "isolated" || wanted.cores.iter().all(|c| isolated.contains(c));
    let mut all = vec![
        Finding::judge(
            alone,
            Verdict::Note,
            format!("shard cores {shown}: isolated are {:?}", ranges(&isolated)),
            "other programs can be scheduled on a shard's core, and each delays its messages",
            format!("kernel parameter isolcpus={shown}, or a cpuset partition of their own"),
        ),
        Finding::judge(
            wanted.cores.iter().all(|c| nohz.contains(c)),
            Verdict::Note,
            format!("cores without a timer tick (nohz_full): {:?}", ranges(&nohz)),
            "the tick interrupts a busy shard some hundred times a second",
            format!("kernel parameter nohz_full={shown}"),
        ),
        others(wanted, &isolated),
    ];
    let governors: Vec<(usize, &str)> = wanted
        .cores
        .iter()
        .map(|&c| (c, machine.text(&cpu(c, "cpufreq/scaling_governor"))))
        .filter(|(_, governor)| !governor.is_empty())
        .collect();
    if let Some((core, governor)) = governors.iter().find(|(_, g)| *g != "performance") {
        all.push(Finding::new(
            Verdict::Warn,
            format!("frequency governor of core {core}: {governor}"),
            "a core that slows down when idle answers the first messages of a burst late",
            format!("cpupower -c {} frequency-set -g performance", shown.replace(' ', "")),
        ));
    } else if !governors.is_empty() {
        all.push(Finding::ok("frequency governor of the shard cores: performance"));
    }
    all.extend(siblings(machine, wanted));
    all.extend(nodes(machine, wanted));
    all
}

/// Finding on the cores of all threads that are no shard.
fn others(wanted: &Wanted, isolated: &[usize]) -> Finding {
    let others = other_cores(&wanted.allowed, &wanted.cores, isolated);
    let shown = ranges(&others);
    Finding::judge(
        !others.iter().any(|core| wanted.cores.contains(core)),
        Verdict::Note,
        format!("control, pulse, log and demo threads: on cores {shown}"),
        "each allowed core has a shard, whose messages wait while such a thread runs there",
        "lower [shards] count by one, or allow another core",
    )
}

fn cpu(core: usize, file: &str) -> String {
    format!("/sys/devices/system/cpu/cpu{core}/{file}")
}

fn sorted(cores: &[usize]) -> Vec<usize> {
    let mut cores = cores.to_vec();
    cores.sort_unstable();
    cores
}

/// Finding on shards of one physical core, which share its execution units.
fn siblings(machine: &Machine, wanted: &Wanted) -> Option<Finding> {
    let pair = wanted.cores.iter().find_map(|&core| {
        let same = list(machine.text(&cpu(core, "topology/thread_siblings_list")));
        let other = same.into_iter().find(|other| *other > core && wanted.cores.contains(other))?;
        Some((core, other))
    });
    let (a, b) = pair?;
    Some(Finding::new(
        Verdict::Note,
        format!("shard cores {a} and {b} are threads of one physical core"),
        "they share its execution units and caches",
        "put shards on one thread of each core: --core, or [shard] core in shards/N.toml",
    ))
}

fn nodes(machine: &Machine, wanted: &Wanted) -> Option<Finding> {
    let mut of_cores: Vec<&str> =
        wanted.cores.iter().map(|c| machine.text(&format!("node of {c}"))).collect();
    of_cores.sort_unstable();
    of_cores.dedup();
    of_cores.retain(|node| !node.is_empty());
    let far = machine.cards.iter().find(|(_, node)| {
        node.parse::<u32>().is_ok() && !of_cores.is_empty() && !of_cores.contains(&node.as_str())
    });
    let (card, node) = match (far, of_cores.len()) {
        (Some((card, node)), _) => (card.as_str(), node.as_str()),
        (None, 0 | 1) => return None,
        (None, _) => ("shards", "several"),
    };
    Some(Finding::new(
        Verdict::Note,
        format!("NUMA: shard cores on nodes {}, {card} on {node}", of_cores.join(", ")),
        "packets and memory cross the link between the nodes",
        "numactl --hardware lists the cores of a node; keep shards on that of the card",
    ))
}

fn interrupts(machine: &Machine, wanted: &Wanted) -> Vec<Finding> {
    let mut all = Vec::new();
    if machine.irqbalance {
        all.push(Finding::new(
            Verdict::Note,
            "irqbalance runs".into(),
            "it moves interrupts between cores, also onto those of shards",
            "systemctl disable --now irqbalance, then set /proc/irq/N/smp_affinity_list",
        ));
    }
    let (mut on, mut off) = (0, Vec::new());
    for (number, name, cores) in &machine.interrupts {
        if list(cores).iter().any(|core| wanted.cores.contains(core)) {
            on += 1;
        } else {
            off.push(format!("{number} ({name}) on {cores}"));
        }
    }
    if let Some(first) = off.first() {
        let shown = ranges(&sorted(&wanted.cores));
        all.push(Finding::new(
            Verdict::Note,
            format!("{} network interrupts on no shard's core, e.g. {first}", off.len()),
            "packets are then handed from core to core; right if those cores are meant for it",
            format!("echo {} > /proc/irq/N/smp_affinity_list", shown.replace(' ', "")),
        ));
    } else if on > 0 {
        all.push(Finding::ok(format!("{on} network interrupts go to the shards' cores")));
    }
    all
}

fn limits(machine: &Machine, wanted: &Wanted) -> Vec<Finding> {
    let need = wanted.connections + wanted.files;
    let text = |limit: Option<u64>| limit.map_or("unlimited".into(), |n| n.to_string());
    let (soft, hard) = machine.nofile;
    vec![
        Finding::judge(
            hard.is_none_or(|hard| hard >= need),
            Verdict::Warn,
            format!("open files: {} soft, {} hard, {need} wanted", text(soft), text(hard)),
            "connections_max of all shards is not reached: more clients get 503",
            format!(
                "ulimit -n {need} as root, LimitNOFILE={need}, or set [conn] connections_max to \
                 \"auto\" or lower"
            ),
        ),
        Finding::judge(
            machine.memlock.is_none_or(|limit| limit >= 8 << 20),
            Verdict::Note,
            format!("locked memory: {} bytes", text(machine.memlock)),
            "old kernels charge rings to it, new ones registered buffers",
            "LimitMEMLOCK=infinity, or ulimit -l unlimited",
        ),
    ]
}

/// Settings with a least value, and the effect of a smaller one.
const LEAST: [(&str, u64, &str); 2] = [
    (
        "net.core.somaxconn",
        4_096,
        "a shard asks for 4096 connections that wait to be accepted; it gets this many",
    ),
    (
        "net.ipv4.tcp_max_syn_backlog",
        1_024,
        "a storm of reconnecting clients fills it, and some wait for a second try",
    ),
];

fn sysctls(machine: &Machine) -> Vec<Finding> {
    let value =
        |key: &str| machine.text(&format!("/proc/sys/{}", key.replace('.', "/"))).to_owned();
    let mut all = Vec::new();
    for (key, least, why) in LEAST {
        let have = value(key);
        if let Ok(n) = have.parse::<u64>() {
            let how = format!("sysctl -w {key}={least}");
            let seen = format!("{key} = {n}");
            all.push(Finding::judge(n >= least, Verdict::Warn, seen, why, how));
        }
    }
    for key in ["net.core.rmem_max", "net.core.wmem_max"] {
        let seen = format!("{key} = {}", value(key));
        let why = "it bounds what SO_SNDBUF and SO_RCVBUF can ask for (conn.send_buffer_bytes)";
        let fine = value(key).parse::<u64>().map_or(true, |n| n >= 212_992);
        all.push(Finding::judge(fine, Verdict::Note, seen, why, format!("sysctl -w {key}=212992")));
    }
    let key = "net.ipv4.ip_local_port_range";
    let ports: Vec<u32> = value(key).split_whitespace().filter_map(|n| n.parse().ok()).collect();
    if let [low, high] = ports[..] {
        all.push(Finding::judge(
            high.saturating_sub(low) >= 10_000,
            Verdict::Note,
            format!("{key} = {low} {high}"),
            "ports of connections to services, also after each reconnect",
            format!("sysctl -w {key}=\"32768 60999\""),
        ));
    }
    let reuse = "net.ipv4.tcp_tw_reuse";
    all.push(Finding::judge(
        value(reuse) != "0",
        Verdict::Note,
        format!("{reuse} = {}", value(reuse)),
        "ports of closed connections to services are held for a minute",
        format!("sysctl -w {reuse}=1"),
    ));
    all.push(Finding::judge(
        matches!(value("kernel.io_uring_disabled").as_str(), "" | "0"),
        Verdict::Note,
        format!("kernel.io_uring_disabled = {}", value("kernel.io_uring_disabled")),
        "other users of this host may not make the rings that the gateway needs",
        "sysctl -w kernel.io_uring_disabled=0",
    ));
    all
}

fn memory_findings(machine: &Machine, wanted: &Wanted) -> Vec<Finding> {
    let mut all = Vec::new();
    if let Some(have) = memory_of(machine) {
        all.push(Finding::judge(
            wanted.bytes <= have,
            Verdict::Warn,
            format!("memory: {}, caps {}", memory::shown(have), memory::shown(wanted.bytes)),
            "full shards do not fit: the kernel would end the process",
            "shardgate check shows the parts: lower connections_max, queue.bytes_max or shards",
        ));
    }
    let pages = machine.text("/sys/kernel/mm/transparent_hugepage/enabled");
    all.push(Finding::judge(
        !pages.contains("[always]"),
        Verdict::Note,
        format!("transparent huge pages: {pages}"),
        "the kernel may stop a shard to join pages, and small buffers take more memory",
        "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
    ));
    let swaps = machine.text("/proc/swaps").lines().skip(1).count();
    all.push(Finding::judge(
        swaps == 0,
        Verdict::Note,
        format!("swap areas: {swaps}, vm.swappiness = {}", machine.text("/proc/sys/vm/swappiness")),
        "a shard that waits for a page from disk answers nobody meanwhile",
        "swapoff -a, or MemorySwapMax=0 in the unit",
    ));
    all.push(Finding::judge(
        machine.text("/proc/sys/vm/overcommit_memory") != "2",
        Verdict::Warn,
        format!("vm.overcommit_memory = {}", machine.text("/proc/sys/vm/overcommit_memory")),
        "address space is reserved for the caps at the start, which 2 counts as used",
        "sysctl -w vm.overcommit_memory=0",
    ));
    all
}

fn container(machine: &Machine, wanted: &Wanted) -> Option<Finding> {
    let quota = machine.text("cpu.max");
    let mut parts = quota.split_whitespace().map(str::parse::<u64>);
    let (Some(Ok(quota_us)), Some(Ok(period_us))) = (parts.next(), parts.next()) else {
        return None; // `max`, or no control group
    };
    let shards = wanted.cores.len() as u64;
    Some(Finding::judge(
        quota_us >= shards * period_us,
        Verdict::Warn,
        format!("cpu.max = {quota} for {shards} shards"),
        "when the quota is used up, all shards stand still to the end of the period",
        format!("give cores instead (--cpuset-cpus), or a quota of {shards} cores or more"),
    ))
}

fn clock(machine: &Machine) -> Finding {
    let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let source = machine.text(source);
    Finding::judge(
        !matches!(source, "hpet" | "acpi_pm" | "jiffies"),
        Verdict::Warn,
        format!("clock source: {source}"),
        "every turn of a shard reads the clock, which takes a system call with this one",
        "kernel parameter clocksource=tsc, if the processor's is stable",
    )
}

#[cfg(test)]
mod tests;
