//! Texts of /proc and /sys, read for the doctor, which judges them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

/// Texts and limits of a machine; a file that does not exist is an empty text.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Texts by path, e.g. `/proc/cmdline`.
    pub files: BTreeMap<String, String>,
    /// Interrupts of network cards: number, name, `smp_affinity_list`.
    pub interrupts: Vec<(u32, String, String)>,
    /// Network cards of hardware, and their NUMA node.
    pub cards: Vec<(String, String)>,
    /// Whether a process `irqbalance` runs.
    pub irqbalance: bool,
    /// Limits of open files, soft and hard; `None` = unlimited.
    pub nofile: (Option<u64>, Option<u64>),
    /// Hard limit of locked memory; `None` = unlimited.
    pub memlock: Option<u64>,
    /// Limit of address space; `None` = unlimited.
    pub address_space: Option<u64>,
}

/// Files whose whole text is kept.
const FILES: [&str; 18] = [
    "/proc/cmdline",
    "/proc/meminfo",
    "/proc/swaps",
    "/proc/sys/kernel/osrelease",
    "/proc/sys/kernel/io_uring_disabled",
    "/proc/sys/net/core/somaxconn",
    "/proc/sys/net/core/rmem_max",
    "/proc/sys/net/core/wmem_max",
    "/proc/sys/net/ipv4/tcp_max_syn_backlog",
    "/proc/sys/net/ipv4/tcp_tw_reuse",
    "/proc/sys/net/ipv4/ip_local_port_range",
    "/proc/sys/vm/swappiness",
    "/proc/sys/vm/overcommit_memory",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/devices/system/clocksource/clocksource0/current_clocksource",
    "/sys/devices/system/cpu/isolated",
    "/sys/devices/system/cpu/nohz_full",
    "/proc/self/cgroup",
];

impl Machine {
    /// Reads this machine, for shards on `cores`.
    pub fn read(cores: &[usize]) -> Self {
        let mut machine = Self::default();
        for path in FILES {
            machine.take(path);
        }
        for core in cores {
            let at = format!("/sys/devices/system/cpu/cpu{core}");
            machine.take(&format!("{at}/cpufreq/scaling_governor"));
            machine.take(&format!("{at}/topology/thread_siblings_list"));
            for node in names(&at).into_iter().filter(|name| numbered(name, "node")) {
                machine.files.insert(format!("node of {core}"), node["node".len()..].to_owned());
            }
        }
        let group = machine.text("/proc/self/cgroup");
        let group = group.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
        let group = format!("/sys/fs/cgroup{}", group.trim_end_matches('/'));
        for file in ["cpu.max", "memory.max", "cpuset.cpus.partition"] {
            let own = fs::read_to_string(format!("{group}/{file}"));
            let text = own.or_else(|_| fs::read_to_string(format!("/sys/fs/cgroup/{file}")));
            machine.files.insert(file.to_owned(), text.unwrap_or_default().trim().to_owned());
        }
        machine.read_cards();
        machine.irqbalance = names("/proc").iter().any(|pid| {
            pid.bytes().all(|b| b.is_ascii_digit())
                && fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|name| name.trim() == "irqbalance")
        });
        let nofile = getrlimit(Resource::Nofile);
        machine.nofile = (nofile.current, nofile.maximum);
        machine.memlock = getrlimit(Resource::Memlock).maximum;
        machine.address_space = getrlimit(Resource::As).current;
        machine
    }

    /// Text of a file, without white space at its ends.
    pub fn text(&self, path: &str) -> &str {
        self.files.get(path).map_or("", String::as_str)
    }

    fn take(&mut self, path: &str) {
        let text = fs::read_to_string(path).unwrap_or_default();
        self.files.insert(path.to_owned(), text.trim().to_owned());
    }

    fn read_cards(&mut self) {
        for name in names("/sys/class/net") {
            let device = format!("/sys/class/net/{name}/device");
            if Path::new(&device).exists() {
                let node = fs::read_to_string(format!("{device}/numa_node")).unwrap_or_default();
                self.cards.push((name, node.trim().to_owned()));
            }
        }
        let text = fs::read_to_string("/proc/interrupts").unwrap_or_default();
        for (number, name) in interrupts(&text, &self.cards) {
            let path = format!("/proc/irq/{number}/smp_affinity_list");
            let list = fs::read_to_string(path).unwrap_or_default();
            self.interrupts.push((number, name, list.trim().to_owned()));
        }
    }
}

/// Interrupts whose name contains the name of a card or of a virtio queue.
fn interrupts(text: &str, cards: &[(String, String)]) -> Vec<(u32, String)> {
    let line = |line: &str| {
        let (number, rest) = line.split_once(':')?;
        let name = rest.split_whitespace().last()?;
        let queue =
            name.starts_with("virtio") && (name.contains("input") || name.contains("output"));
        let of_card = cards.iter().any(|(card, _)| name.contains(card.as_str()));
        (queue || of_card).then_some((number.trim().parse().ok()?, name.to_owned()))
    };
    text.lines().filter_map(line).collect()
}

fn names(dir: &str) -> Vec<String> {
    let list = fs::read_dir(dir).into_iter().flatten().flatten();
    list.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Whether `name` is `word` and a number.
fn numbered(name: &str, word: &str) -> bool {
    name.strip_prefix(word)
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
}

/// Numbers of a list such as `0-3,8`.
pub fn list(text: &str) -> Vec<usize> {
    let mut all = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) {
            // No machine has more cores; a longer range is cut.
            all.extend(first..=last.min(first + 4_096));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_interrupts_are_read() {
        assert_eq!(list("0-2,8\n"), [0, 1, 2, 8]);
        assert_eq!(list(""), [0usize; 0]);
        let text = "           CPU0       CPU1\n  24:   10  0  PCI-MSI 1-edge  virtio2-input.0\n  \
                    25:  1  2  PCI-MSI eth0-rx-1\n  26: 1 2 IO-APIC timer\n";
        let cards = [("eth0".to_owned(), "0".to_owned())];
        let found = interrupts(text, &cards);
        assert_eq!(found, [(24, "virtio2-input.0".to_owned()), (25, "eth0-rx-1".to_owned())]);
    }
}
