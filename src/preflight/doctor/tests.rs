//! The doctor on machines made of texts.

use super::*;
use crate::preflight::machine::Interrupt;
use crate::preflight::topology::Node;

fn wanted() -> Wanted {
    Wanted {
        cores: vec![2, 3],
        allowed: vec![0, 1, 2, 3],
        steer: true,
        connections: 1_000,
        files: 100,
        bytes: 1 << 30,
    }
}

fn node(number: usize, cores: &[usize]) -> Node {
    Node { number, cores: cores.to_vec(), memory_kib: 1 << 20 }
}

/// The interrupt of a queue, on one core.
fn interrupt(number: u32, core: usize) -> Interrupt {
    Interrupt { number, name: format!("eth0-TxRx-{number}"), cores: vec![core] }
}

/// A host that was set up for a gateway.
fn tuned() -> Machine {
    let texts = [
        ("/proc/meminfo", "MemTotal:       16384000 kB\nMemFree: 1 kB"),
        ("/proc/swaps", "Filename Type Size Used Priority"),
        ("/proc/sys/net/core/somaxconn", "4096"),
        ("/proc/sys/net/core/rmem_max", "4194304"),
        ("/proc/sys/net/core/wmem_max", "4194304"),
        ("/proc/sys/net/ipv4/tcp_max_syn_backlog", "4096"),
        ("/proc/sys/net/ipv4/tcp_tw_reuse", "2"),
        ("/proc/sys/net/ipv4/ip_local_port_range", "32768\t60999"),
        ("/proc/sys/kernel/io_uring_disabled", "0"),
        ("/proc/sys/vm/overcommit_memory", "0"),
        ("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never"),
        ("/sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc"),
        ("/sys/devices/system/cpu/isolated", "2-3"),
        ("/sys/devices/system/cpu/nohz_full", "2-3"),
        ("/sys/devices/system/cpu/cpu2/cpufreq/scaling_governor", "performance"),
        ("/sys/devices/system/cpu/cpu2/topology/thread_siblings_list", "2,6"),
        ("/sys/devices/system/cpu/cpu3/topology/thread_siblings_list", "3,7"),
        ("/proc/sys/kernel/numa_balancing", "0"),
        ("/proc/self/status", "Cpus_allowed_list:\t0-7\nMems_allowed_list:\t0-7"),
        ("cpu.max", "max 100000"),
        ("memory.max", "max"),
    ];
    Machine {
        files: texts.map(|(path, text)| (path.to_owned(), text.to_owned())).into(),
        nodes: vec![node(0, &[0, 1, 2, 3]), node(1, &[4, 5, 6, 7])],
        interrupts: vec![interrupt(24, 2), interrupt(25, 3)],
        cards: vec![("eth0".into(), "0".into())],
        irqbalance: false,
        nofile: (Some(1024), Some(1 << 20)),
        memlock: None,
        address_space: None,
    }
}

/// Findings that are not OK, for a machine with one text changed.
fn found(path: &str, text: &str) -> Vec<Finding> {
    let mut machine = tuned();
    machine.files.insert(path.to_owned(), text.to_owned());
    let all = judge(&machine, &wanted());
    all.into_iter().filter(|f| f.verdict != Verdict::Ok).collect()
}

#[test]
fn a_tuned_host_is_well() {
    let all = judge(&tuned(), &wanted());
    let bad: Vec<_> = all.iter().filter(|f| f.verdict != Verdict::Ok).collect();
    assert!(bad.is_empty() && all.len() > 15, "{bad:?}");
}

#[test]
fn each_thing_that_is_wrong_is_told_alone_with_its_command() {
    let cpu = "/sys/devices/system/cpu";
    let cases = [
        ("/proc/sys/net/core/somaxconn", "128", "somaxconn = 128", "sysctl -w net.core.somaxconn"),
        ("/proc/sys/net/ipv4/tcp_max_syn_backlog", "128", "backlog = 128", "sysctl -w"),
        ("/proc/sys/net/ipv4/ip_local_port_range", "60000 60999", "60000 60999", "sysctl -w"),
        ("/proc/sys/net/ipv4/tcp_tw_reuse", "0", "tcp_tw_reuse = 0", "sysctl -w"),
        ("/proc/sys/kernel/io_uring_disabled", "1", "io_uring_disabled = 1", "sysctl -w"),
        ("/proc/sys/vm/overcommit_memory", "2", "overcommit_memory = 2", "sysctl -w"),
        ("/sys/kernel/mm/transparent_hugepage/enabled", "[always] never", "[always]", "madvise"),
        ("/proc/swaps", "Filename\n/dev/sda2 partition", "swap areas: 1", "swapoff"),
        ("/proc/meminfo", "MemTotal: 900 kB", "memory: 900 KiB", "shardgate check"),
        ("memory.max", "1048576", "memory: 1.0 MiB", "shardgate check"),
        ("cpu.max", "100000 100000", "cpu.max = 100000 100000 for 2", "--cpuset-cpus"),
        ("/proc/sys/kernel/numa_balancing", "1", "numa_balancing = 1", "sysctl -w"),
        ("/proc/self/status", "Mems_allowed_list:\t1", "node 0 is not allowed, but of 1", "mems"),
        (&format!("{cpu}/isolated"), "", "isolated are", "isolcpus=2-3"),
        (&format!("{cpu}/nohz_full"), "", "nohz_full", "nohz_full=2-3"),
        (&format!("{cpu}/cpu2/cpufreq/scaling_governor"), "powersave", "powersave", "cpupower"),
        (&format!("{cpu}/cpu2/topology/thread_siblings_list"), "2-3", "cores 2 and 3", "--core"),
        (
            "/sys/devices/system/clocksource/clocksource0/current_clocksource",
            "hpet",
            "clock source: hpet",
            "clocksource=tsc",
        ),
    ];
    for (path, text, seen, how) in cases {
        let found = found(path, text);
        let [one] = &found[..] else { panic!("{path}: {found:?}") };
        assert!(one.seen.contains(seen), "{path}: {one:?}");
        assert!(one.how.contains(how) && !one.why.is_empty(), "{path}: {one:?}");
    }
}

#[test]
fn interrupts_and_limits_are_judged() {
    let mut machine = tuned();
    machine.irqbalance = true;
    machine.interrupts[0].cores = vec![0];
    machine.nofile = (Some(1024), Some(1024));
    machine.memlock = Some(65_536);
    machine.cards[0].1 = "1".into();
    let all = judge(&machine, &wanted());
    let seen: Vec<&str> =
        all.iter().filter(|f| f.verdict != Verdict::Ok).map(|f| f.seen.as_str()).collect();
    assert_eq!(seen.len(), 6, "{seen:?}");
    for part in [
        "1024 hard, 1100 wanted",
        "card eth0 on node 1",
        "1 network interrupts on no shard's core, e.g. 24 (eth0-TxRx-24) on 0",
        "steer_by_cpu: no packets arrive on shard cores 2",
    ] {
        assert!(seen.iter().any(|s| s.contains(part)), "{part}: {seen:?}");
    }
}

/// Findings on a machine after a change, but for those that are OK.
fn told(change: impl FnOnce(&mut Machine, &mut Wanted)) -> Vec<Finding> {
    let (mut machine, mut wanted) = (tuned(), wanted());
    change(&mut machine, &mut wanted);
    let all = judge(&machine, &wanted);
    all.into_iter().filter(|f| f.verdict != Verdict::Ok).collect()
}

#[test]
fn packets_that_all_arrive_on_one_core_are_told_with_what_there_is_to_do() {
    let all = told(|machine, wanted| {
        machine.interrupts = vec![interrupt(24, 2), interrupt(25, 2)];
        wanted.steer = false;
    });
    let [one] = &all[..] else { panic!("{all:?}") };
    assert_eq!(one.seen, "interrupts of received packets: 2, all on core 2");
    assert!(one.how.contains("another core for each"), "{one}");
    // Sent packets have an interrupt of their own, which does not help.
    let all = told(|machine, wanted| {
        let sends = Interrupt { number: 25, name: "virtio2-output.0".into(), cores: vec![3] };
        machine.interrupts = vec![interrupt(24, 2), sends];
        wanted.steer = false;
    });
    let [one] = &all[..] else { panic!("{all:?}") };
    assert!(one.seen.contains(": 1, all on core 2") && one.how.contains("ethtool"), "{one}");
    let lone = told(|machine, wanted| {
        machine.interrupts = vec![interrupt(24, 2)];
        wanted.cores = vec![2];
        wanted.allowed = vec![0, 2];
    });
    assert!(lone.is_empty(), "one shard needs no more: {lone:?}");
}

#[test]
fn mistakes_with_nodes_are_told_and_a_machine_with_one_node_has_none() {
    let first = |all: Vec<Finding>| {
        let [one] = &all[..] else { panic!("{all:?}") };
        (one.seen.clone(), one.how.clone())
    };
    let spread = |machine: &mut Machine, _: &mut Wanted| {
        machine.nodes = vec![node(0, &[0, 1, 2]), node(4, &[3, 5])];
    };
    let (seen, how) = first(told(spread));
    assert!(seen.ends_with("nodes 0, 4") && how.contains("taskset -c 0-2"), "{seen}: {how}");
    let (seen, how) = first(told(|machine, _| machine.nodes[0].memory_kib = 0));
    assert!(seen.contains("node 0 of shard cores has no memory"), "{seen}");
    assert!(how.contains("4-7"), "{how}");
    let (seen, how) = first(told(|machine, _| machine.cards[0].1 = "1".into()));
    assert!(seen.contains("eth0 on node 1") && how.contains("4-7"), "{seen}: {how}");
    // Nothing can be put on a node without cores, and -1 is no node.
    let fine = told(|machine, _| {
        machine.nodes.push(node(2, &[]));
        machine.cards = vec![("eth0".into(), "2".into()), ("eth1".into(), "-1".into())];
    });
    assert!(fine.is_empty(), "{fine:?}");
    let fine = told(|machine, _| {
        machine.nodes = vec![node(0, &[0, 1, 2, 3])];
        machine.files.insert("/proc/sys/kernel/numa_balancing".into(), "1".into());
    });
    assert!(fine.is_empty(), "{fine:?}");
}

#[test]
fn threads_that_share_a_core_with_a_shard_are_told() {
    let others = |allowed: &[usize]| {
        let wanted = Wanted { allowed: allowed.to_vec(), ..wanted() };
        let all = judge(&tuned(), &wanted);
        all.into_iter().find(|f| f.seen.starts_with("control, pulse")).expect("it is told")
    };
    assert_eq!(others(&[0, 2, 3]), Finding::ok("control, pulse, log and demo threads: on cores 0"));
    let shared = others(&[2, 3]);
    assert_eq!(shared.verdict, Verdict::Note);
    assert!(shared.seen.ends_with("on cores 2-3") && shared.how.contains("count"), "{shared}");
}

#[test]
fn a_machine_that_tells_nothing_is_no_failure() {
    let all = judge(&Machine::default(), &wanted());
    assert!(!any_fails(&all));
    assert!(report(&all).ends_with(" OK"));
}
