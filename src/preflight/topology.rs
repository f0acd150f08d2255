//! NUMA nodes: which cores and how much memory are near each other, as `/sys` tells.

use std::path::Path;

use super::machine::{below, list, names, numbered, text_at};

/// Directory of the nodes.
const DIR: &str = "/sys/devices/system/node";

/// A node. A machine whose kernel knows of none has no node at all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Number of the node. Numbers may have gaps.
    pub number: usize,
    /// Cores of the node that are online; none on a node that is memory only.
    pub cores: Vec<usize>,
    /// Memory of the node in KiB; 0 on one whose memory slots are empty.
    pub memory_kib: u64,
}

/// The nodes that are online, by number, of the machine whose `/sys` is below `root`.
pub fn nodes(root: &Path) -> Vec<Node> {
    let node = |name: String| {
        let number = numbered(&name, "node")?;
        let text = |file| text_at(root, &format!("{DIR}/{name}/{file}"));
        let memory_kib = total_kib(&text("meminfo"));
        Some(Node { number, cores: list(&text("cpulist")), memory_kib })
    };
    let mut nodes: Vec<Node> = names(&below(root, DIR)).into_iter().filter_map(node).collect();
    nodes.sort_unstable_by_key(|node| node.number);
    nodes
}

/// The line `Node 0 MemTotal:  24684096 kB` of a node's `meminfo`.
fn total_kib(meminfo: &str) -> u64 {
    let total = meminfo.lines().find_map(|line| line.split_once("MemTotal:"));
    let number = total.and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0)
}

/// Node of a core; `None` if no node has it.
pub fn node_of(nodes: &[Node], core: usize) -> Option<&Node> {
    nodes.iter().find(|node| node.cores.contains(&core))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Nodes of a machine with these directories: number, `cpulist`, total memory in KiB.
    fn of(machine: &[(usize, &str, u64)]) -> Vec<Node> {
        let root = tempfile::tempdir().expect("a directory");
        let dir = below(root.path(), DIR);
        for (number, cpulist, kib) in machine {
            let node = dir.join(format!("node{number}"));
            fs::create_dir_all(&node).expect("made");
            fs::write(node.join("cpulist"), format!("{cpulist}\n")).expect("written");
            let meminfo = format!(
                "Node {number} MemTotal:       {kib} kB\nNode {number} MemFree: 4984416 kB\n"
            );
            fs::write(node.join("meminfo"), meminfo).expect("written");
        }
        // Files that stand beside the nodes, and a directory that only begins like one.
        fs::create_dir_all(dir.join("nodes")).expect("made");
        fs::write(dir.join("online"), "0-1\n").expect("written");
        nodes(root.path())
    }

    fn node(number: usize, cores: impl IntoIterator<Item = usize>, memory_kib: u64) -> Node {
        Node { number, cores: cores.into_iter().collect(), memory_kib }
    }

    #[test]
    fn one_node_has_all_cores() {
        assert_eq!(of(&[(0, "0-1", 24_684_096)]), [node(0, 0..2, 24_684_096)]);
    }

    #[test]
    fn each_socket_is_a_node_with_both_threads_of_its_cores() {
        let found = of(&[(0, "0-15,32-47", 131_899_420), (1, "16-31,48-63", 132_116_880)]);
        let first = node(0, (0..16).chain(32..48), 131_899_420);
        assert_eq!(found, [first, node(1, (16..32).chain(48..64), 132_116_880)]);
        assert_eq!(node_of(&found, 40).map(|node| node.number), Some(0));
        assert_eq!(node_of(&found, 31).map(|node| node.number), Some(1));
        assert_eq!(node_of(&found, 64), None);
    }

    #[test]
    fn a_socket_in_four_parts_is_four_nodes() {
        // AMD, NPS4: 64 cores in each of two sockets.
        let list = |n: usize| {
            let first = 16 * n;
            format!("{first}-{},{}-{}", first + 15, first + 128, first + 143)
        };
        let lists: Vec<String> = (0..8).map(list).collect();
        let machine: Vec<_> =
            lists.iter().enumerate().map(|(n, list)| (n, list.as_str(), 65_814_236)).collect();
        let found = of(&machine);
        assert_eq!(found.len(), 8);
        for core in 0..256 {
            let number = node_of(&found, core).map(|node| node.number);
            assert_eq!(number, Some(core % 128 / 16), "core {core}");
        }
    }

    #[test]
    fn cores_that_are_offline_are_in_no_node() {
        let found = of(&[(0, "0,2,4-6", 8_000_000), (1, "9", 8_000_000)]);
        assert_eq!(found[0].cores, [0, 2, 4, 5, 6]);
        assert_eq!(node_of(&found, 1), None);
        assert_eq!(node_of(&found, 9).map(|node| node.number), Some(1));
    }

    #[test]
    fn nodes_may_have_only_memory_or_only_cores_and_numbers_with_gaps() {
        // Two sockets without a number between them, the second without memory, and memory of an
        // accelerator.
        let found = of(&[(255, "", 16_515_072), (8, "80-159", 0), (0, "0-79", 267_386_880)]);
        let expected =
            [node(0, 0..80, 267_386_880), node(8, 80..160, 0), node(255, [], 16_515_072)];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_kernel_without_nodes_has_none_and_odd_files_are_no_failure() {
        let root = tempfile::tempdir().expect("a directory");
        assert_eq!(nodes(root.path()), []);
        let dir = root.path().join("sys/devices/system/node/node3");
        fs::create_dir_all(&dir).expect("made");
        fs::write(dir.join("cpulist"), "x-y,,-").expect("written");
        fs::write(dir.join("meminfo"), [0xff, 0xfe]).expect("written");
        assert_eq!(nodes(root.path()), [node(3, [], 0)]);
    }
}
