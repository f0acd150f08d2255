//! Texts of /proc and /sys, read for the doctor, which judges them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

use super::topology::{Node, nodes};

/// Texts and limits of a machine; a file that does not exist is an empty text.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Texts by path, e.g. `/proc/cmdline`.
    pub files: BTreeMap<String, String>,
    /// NUMA nodes.
    pub nodes: Vec<Node>,
    /// Interrupts of network cards.
    pub interrupts: Vec<Interrupt>,
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

/// An interrupt of a network card.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interrupt {
    pub number: u32,
    pub name: String,
    /// Cores that it goes to now, or may go to, if the kernel does not tell more.
    pub cores: Vec<usize>,
}

impl Interrupt {
    /// Whether it may tell of packets that arrived, and not only of those that were sent.
    pub fn receives(&self) -> bool {
        let name = self.name.to_ascii_lowercase();
        !name.contains("output") && (!name.contains("tx") || name.contains("rx"))
    }
}

/// Files whose whole text is kept.
const FILES: [&str; 20] = [
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
    "/proc/self/status",
    "/proc/sys/kernel/numa_balancing",
    "/proc/sys/vm/swappiness",
    "/proc/sys/vm/overcommit_memory",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/devices/system/clocksource/clocksource0/current_clocksource",
    "/sys/devices/system/cpu/isolated",
    "/sys/devices/system/cpu/nohz_full",
    "/proc/self/cgroup",
];

impl Machine {
    /// Reads this machine, for shards on `cores`. Its files are below `root`: `/`, or a copy.
    pub fn read(root: &Path, cores: &[usize]) -> Self {
        let mut machine = Self { nodes: nodes(root), ..Self::default() };
        for path in FILES {
            machine.take(root, path);
        }
        for core in cores {
            let at = format!("/sys/devices/system/cpu/cpu{core}");
            machine.take(root, &format!("{at}/cpufreq/scaling_governor"));
            machine.take(root, &format!("{at}/topology/thread_siblings_list"));
        }
        let group = machine.text("/proc/self/cgroup");
        let group = group.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
        let group = format!("/sys/fs/cgroup{}", group.trim_end_matches('/'));
        for file in ["cpu.max", "memory.max", "cpuset.cpus.partition"] {
            let own = fs::read_to_string(below(root, &format!("{group}/{file}")));
            let text =
                own.or_else(|_| fs::read_to_string(below(root, &format!("/sys/fs/cgroup/{file}"))));
            machine.files.insert(file.to_owned(), text.unwrap_or_default().trim().to_owned());
        }
        machine.read_cards(root);
        machine.irqbalance = names(&below(root, "/proc")).iter().any(|pid| {
            pid.bytes().all(|b| b.is_ascii_digit())
                && text_at(root, &format!("/proc/{pid}/comm")) == "irqbalance"
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

    fn take(&mut self, root: &Path, path: &str) {
        self.files.insert(path.to_owned(), text_at(root, path));
    }

    fn read_cards(&mut self, root: &Path) {
        for name in names(&below(root, "/sys/class/net")) {
            let device = format!("/sys/class/net/{name}/device");
            if below(root, &device).exists() {
                // A virtio card's own directory is below that of its PCI device.
                let near = ["numa_node", "../numa_node"];
                let node = near.map(|file| text_at(root, &format!("{device}/{file}")));
                self.cards
                    .push((name, node.into_iter().find(|n| !n.is_empty()).unwrap_or_default()));
            }
        }
        for (number, name) in interrupts(&text_at(root, "/proc/interrupts"), &self.cards) {
            let cores = |file| list(&text_at(root, &format!("/proc/irq/{number}/{file}")));
            let mut found = cores("effective_affinity_list");
            if found.is_empty() {
                found = cores("smp_affinity_list");
            }
            self.interrupts.push(Interrupt { number, name, cores: found });
        }
    }
}

/// Place of the file `path`, which is absolute, on the machine whose files are below `root`.
pub(super) fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// Text of a file, without white space at its ends; empty if there is none.
pub(super) fn text_at(root: &Path, path: &str) -> String {
    let text = fs::read_to_string(below(root, path)).unwrap_or_default();
    text.trim().to_owned()
}

/// Interrupts whose name contains the name of a card or of a virtio queue.
fn interrupts(text: &str, cards: &[(String, String)]) -> Vec<(u32, String)> {
    let line = |line: &str| {
        let (number, rest) = line.split_once(':')?;
        let name = rest.split_whitespace().last()?;
        // Other virtio devices have an input without a number.
        let queue =
            name.starts_with("virtio") && (name.contains("-input.") || name.contains("-output."));
        let of_card = cards.iter().any(|(card, _)| name.contains(card.as_str()));
        (queue || of_card).then_some((number.trim().parse().ok()?, name.to_owned()))
    };
    text.lines().filter_map(line).collect()
}

/// Names of what is in a directory; none if there is no such directory.
pub(super) fn names(dir: &Path) -> Vec<String> {
    let list = fs::read_dir(dir).into_iter().flatten().flatten();
    list.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The number of `name`, if it is `word` and a number.
pub fn numbered(name: &str, word: &str) -> Option<usize> {
    let rest = name.strip_prefix(word)?;
    rest.bytes().all(|b| b.is_ascii_digit()).then(|| rest.parse().ok())?
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
                    25:  1  2  PCI-MSI eth0-rx-1\n  26: 1 2 IO-APIC timer\n  \
                    27: 1 2 PCI-MSIX virtio4-input\n";
        let cards = [("eth0".to_owned(), "0".to_owned())];
        let found = interrupts(text, &cards);
        assert_eq!(found, [(24, "virtio2-input.0".to_owned()), (25, "eth0-rx-1".to_owned())]);
    }

    #[test]
    fn a_machine_is_read_below_a_root() {
        let root = tempfile::tempdir().expect("a directory");
        let files = [
            ("proc/interrupts", " 24:  1  PCI-MSI eth0-TxRx-0\n 25:  1  PCI-MSI eth0-tx-1\n"),
            ("proc/irq/24/smp_affinity_list", "0-7\n"),
            ("proc/irq/24/effective_affinity_list", "5\n"),
            ("proc/irq/25/smp_affinity_list", "0-1\n"),
            ("proc/77/comm", "irqbalance\n"),
            ("proc/self/cgroup", "0::/gateway.service\n"),
            ("sys/class/net/eth0/device/numa_node", "1\n"),
            ("sys/class/net/lo/mtu", "65536\n"),
            ("sys/devices/system/cpu/cpu5/cpufreq/scaling_governor", "powersave\n"),
            ("sys/devices/system/node/node1/cpulist", "4-7\n"),
            ("sys/fs/cgroup/gateway.service/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/memory.max", "1048576\n"),
        ];
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a directory")).expect("made");
            fs::write(path, text).expect("written");
        }
        let machine = Machine::read(root.path(), &[5]);
        assert_eq!(machine.nodes, [Node { number: 1, cores: vec![4, 5, 6, 7], memory_kib: 0 }]);
        assert_eq!(machine.cards, [("eth0".to_owned(), "1".to_owned())]);
        let [both, sends] = &machine.interrupts[..] else { panic!("{machine:?}") };
        assert_eq!((both.number, &both.cores[..], both.receives()), (24, &[5][..], true));
        assert_eq!((sends.number, &sends.cores[..], sends.receives()), (25, &[0, 1][..], false));
        assert!(machine.irqbalance);
        let governor = "/sys/devices/system/cpu/cpu5/cpufreq/scaling_governor";
        let texts = [governor, "cpu.max", "memory.max"].map(|path| machine.text(path));
        assert_eq!(texts, ["powersave", "max 100000", "1048576"]);
    }
}
