//! `shardgate doctor`: the preflight, and what makes a gateway slower than its machine. A line each
//! with the fact, why it matters, and the command that changes it. The doctor changes nothing.

mod cores;

use std::fmt;
use std::path::Path;

use super::machine::Machine;
use super::{
    CONNECTIONS_FEW, Topic, allowed_cores, auto_count, files_of_clients, files_overhead, plan,
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
    /// Whether connections go to the shard on the core of their packets.
    pub steer: bool,
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
            steer: config.gateway.steer_by_cpu,
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
    let machine = Machine::read(Path::new("/"), &wanted.cores);
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
    memory_of(&Machine::read(Path::new("/"), &[]))
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
    let mut all = cores::cores(machine, wanted);
    all.extend(cores::nodes(machine, wanted));
    all.extend(cores::interrupts(machine, wanted));
    all.extend(limits(machine, wanted));
    all.extend(sysctls(machine));
    all.extend(memory_findings(machine, wanted));
    all.extend(container(machine, wanted));
    all.push(clock(machine));
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
