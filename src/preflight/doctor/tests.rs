//! The doctor on machines made of texts.

use super::*;

fn wanted() -> Wanted {
    Wanted {
        cores: vec![2, 3],
        allowed: vec![0, 1, 2, 3],
        connections: 1_000,
        files: 100,
        bytes: 1 << 30,
    }
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
        ("node of 2", "0"),
        ("node of 3", "0"),
        ("cpu.max", "max 100000"),
        ("memory.max", "max"),
    ];
    Machine {
        files: texts.map(|(path, text)| (path.to_owned(), text.to_owned())).into(),
        interrupts: vec![(24, "eth0-rx-0".into(), "2-3".into())],
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
        ("node of 3", "1", "nodes 0, 1", "numactl"),
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
    machine.interrupts[0].2 = "0".into();
    machine.nofile = (Some(1024), Some(1024));
    machine.memlock = Some(65_536);
    machine.cards[0].1 = "1".into();
    let all = judge(&machine, &wanted());
    let seen: Vec<&str> =
        all.iter().filter(|f| f.verdict != Verdict::Ok).map(|f| f.seen.as_str()).collect();
    assert_eq!(seen.len(), 5, "{seen:?}");
    assert!(seen.iter().any(|s| s.contains("1024 hard, 1100 wanted")), "{seen:?}");
    assert!(seen.iter().any(|s| s.contains("eth0 on 1")), "{seen:?}");
}

#[test]
fn threads_that_share_a_core_with_a_shard_are_told() {
    let told = |allowed: &[usize]| {
        let wanted = Wanted { allowed: allowed.to_vec(), ..wanted() };
        let all = judge(&tuned(), &wanted);
        all.into_iter().find(|f| f.seen.starts_with("control, pulse")).expect("it is told")
    };
    assert_eq!(told(&[0, 2, 3]), Finding::ok("control, pulse, log and demo threads: on cores 0"));
    let shared = told(&[2, 3]);
    assert_eq!(shared.verdict, Verdict::Note);
    assert!(shared.seen.ends_with("on cores 2-3") && shared.how.contains("count"), "{shared}");
}

#[test]
fn a_machine_that_tells_nothing_is_no_failure() {
    let all = judge(&Machine::default(), &wanted());
    assert!(!any_fails(&all));
    assert!(report(&all).ends_with(" OK"));
}
