//! What the doctor says of cores: those of shards and of all other threads, their NUMA nodes, and
//! the interrupts of network cards.

use super::{Finding, Verdict, Wanted};
use crate::preflight::machine::{Interrupt, Machine, list};
use crate::preflight::topology::{Node, node_of};
use crate::preflight::{other_cores, ranges};

/// Findings on the cores of the shards and of all other threads.
pub(super) fn cores(machine: &Machine, wanted: &Wanted) -> Vec<Finding> {
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

/// Findings on NUMA nodes: none where there is only one.
pub(super) fn nodes(machine: &Machine, wanted: &Wanted) -> Vec<Finding> {
    let mut own: Vec<&Node> =
        wanted.cores.iter().filter_map(|&core| node_of(&machine.nodes, core)).collect();
    own.sort_unstable_by_key(|node| node.number);
    own.dedup();
    let [first, ..] = own[..] else { return Vec::new() };
    if machine.nodes.len() < 2 {
        return Vec::new();
    }
    let numbers: Vec<usize> = own.iter().map(|node| node.number).collect();
    let shown = ranges(&numbers);
    let mut all = vec![Finding::judge(
        own.len() == 1,
        Verdict::Note,
        format!("NUMA: shard cores on nodes {shown}"),
        "what passes from shard to shard crosses the link between the nodes",
        format!(
            "one gateway a node (taskset -c {}), or [shard] core in shards/N.toml",
            ranges(&first.cores).replace(' ', "")
        ),
    )];
    all.extend(machine.cards.iter().filter_map(|(card, node)| far_card(machine, &own, card, node)));
    all.extend(own.iter().filter_map(|node| memory_of_node(machine, node)));
    let balancing = machine.text("/proc/sys/kernel/numa_balancing");
    all.push(Finding::judge(
        matches!(balancing, "" | "0"),
        Verdict::Note,
        format!("kernel.numa_balancing = {balancing}"),
        "it takes pages away for a moment to see who uses them; a shard's are on its node already",
        "sysctl -w kernel.numa_balancing=0",
    ));
    all
}

/// Finding on a network card that is on the node of no shard, but on one with cores.
fn far_card(machine: &Machine, own: &[&Node], card: &str, node: &str) -> Option<Finding> {
    // -1: the card is near to all nodes, or the firmware does not tell.
    let number: usize = node.parse().ok()?;
    let near = machine.nodes.iter().find(|node| node.number == number)?;
    if near.cores.is_empty() || own.contains(&near) {
        return None;
    }
    Some(Finding::new(
        Verdict::Note,
        format!("NUMA: network card {card} on node {number}, no shard core there"),
        "its packets cross the link between the nodes",
        format!("put shards on its cores {}: --core, or [shard] core", ranges(&near.cores)),
    ))
}

/// Finding on the memory of a node that has shard cores.
fn memory_of_node(machine: &Machine, node: &Node) -> Option<Finding> {
    let number = node.number;
    let why = "all memory of the shards on its cores is on another node";
    if node.memory_kib == 0 {
        let with_memory = machine.nodes.iter().filter(|node| node.memory_kib > 0);
        let cores: Vec<usize> = with_memory.flat_map(|node| node.cores.iter().copied()).collect();
        let seen = format!("NUMA: node {number} of shard cores has no memory");
        let how = format!("put shards on cores with memory, {}: [shard] core", ranges(&cores));
        return Some(Finding::new(Verdict::Warn, seen, why, how));
    }
    let status = machine.text("/proc/self/status").lines();
    let allowed = status.into_iter().find_map(|line| line.strip_prefix("Mems_allowed_list:"))?;
    (!list(allowed).contains(&number)).then(|| {
        let seen =
            format!("NUMA: memory of node {number} is not allowed, but of {}", allowed.trim());
        let how = "cpuset.mems with the nodes of the cores (--cpuset-mems, AllowedMemoryNodes=)";
        Finding::new(Verdict::Warn, seen, why, how)
    })
}

/// Findings on the interrupts of network cards.
pub(super) fn interrupts(machine: &Machine, wanted: &Wanted) -> Vec<Finding> {
    let mut all = Vec::new();
    if machine.irqbalance {
        all.push(Finding::new(
            Verdict::Note,
            "irqbalance runs".into(),
            "it moves interrupts between cores, also onto those of shards",
            "systemctl disable --now irqbalance, then set /proc/irq/N/smp_affinity_list",
        ));
    }
    let is_on =
        |interrupt: &&Interrupt| interrupt.cores.iter().any(|core| wanted.cores.contains(core));
    let (on, off): (Vec<&Interrupt>, Vec<&Interrupt>) = machine.interrupts.iter().partition(is_on);
    if let Some(first) = off.first() {
        let shown = ranges(&sorted(&wanted.cores));
        let Interrupt { number, name, cores } = first;
        let first = format!("{number} ({name}) on {}", ranges(cores));
        all.push(Finding::new(
            Verdict::Note,
            format!("{} network interrupts on no shard's core, e.g. {first}", off.len()),
            "packets are then handed from core to core; right if those cores are meant for it",
            format!("echo {} > /proc/irq/N/smp_affinity_list", shown.replace(' ', "")),
        ));
    } else if !on.is_empty() {
        let count = on.len();
        all.push(Finding::ok(format!("{count} network interrupts go to the shards' cores")));
    }
    all.extend(reception(machine, wanted));
    all
}

/// Findings on the cores that packets arrive on.
fn reception(machine: &Machine, wanted: &Wanted) -> Vec<Finding> {
    let receiving: Vec<&Interrupt> = machine.interrupts.iter().filter(|i| i.receives()).collect();
    let mut cores: Vec<usize> = receiving.iter().flat_map(|i| i.cores.iter().copied()).collect();
    cores.sort_unstable();
    cores.dedup();
    let mut all = Vec::new();
    if let ([core], 2..) = (&cores[..], wanted.cores.len()) {
        let how = match receiving.len() {
            1 => {
                "more queues, if the card has them: ethtool -L CARD combined N; or RPS: \
                  /sys/class/net/CARD/queues/rx-0/rps_cpus"
            }
            _ => "another core for each: echo CORE > /proc/irq/N/smp_affinity_list",
        };
        let count = receiving.len();
        all.push(Finding::new(
            Verdict::Note,
            format!("interrupts of received packets: {count}, all on core {core}"),
            "one core takes in the packets of all shards, and is full before they are",
            how,
        ));
    }
    let without: Vec<usize> =
        sorted(&wanted.cores).into_iter().filter(|c| !cores.contains(c)).collect();
    if wanted.steer && !receiving.is_empty() && !without.is_empty() {
        all.push(Finding::new(
            Verdict::Warn,
            format!("shards.steer_by_cpu: no packets arrive on shard cores {}", ranges(&without)),
            "the shards there get no connections of network cards while others have room",
            "a queue's interrupt on each (/proc/irq/N/smp_affinity_list), or steer_by_cpu = false",
        ));
    }
    all
}
