//! Every check with the numbers of the machines that fail it.

use std::net::SocketAddr;

use super::cores::assign_cores;
use super::ports::{ephemeral_warning, try_bind};
use super::*;
use crate::config::load::{Files, Overrides, from_files};
use crate::limits::SHARDS_MAX;

fn config(flags: Overrides) -> Config {
    let free = Overrides {
        listen: Some("127.0.0.1:0".into()),
        admin: Some("127.0.0.1:0".into()),
        no_demo: true,
        ..flags
    };
    from_files(Files::embedded(), &[], &free).expect("right")
}

fn says(problem: Option<Problem>, parts: &[&str]) {
    let line = problem.expect("a problem").to_string();
    assert!(!line.contains('\n'), "{line}");
    for part in parts {
        assert!(line.contains(part), "{line}\n{part}");
    }
}

#[test]
fn auto_leaves_a_core_from_four_up() {
    let counts: Vec<_> = [0, 1, 2, 3, 4, 8, 5000].into_iter().map(auto_count).collect();
    assert_eq!(counts, [1, 1, 2, 3, 3, 7, SHARDS_MAX]);
}

#[test]
fn shards_take_their_core_or_the_nth_allowed_one() {
    assert_eq!(assign_cores(&[None, None], &[2, 5, 7]), Ok(vec![2, 5]));
    assert_eq!(assign_cores(&[Some(7), None], &[2, 5, 7]), Ok(vec![7, 5]));
}

#[test]
fn cores_that_cannot_be_had_are_named() {
    let problems = |wanted: &[_], allowed: &[_]| {
        let list = assign_cores(wanted, allowed).expect_err("a problem");
        list.into_iter().map(|p| p.to_string()).collect::<Vec<_>>()
    };
    let found = problems(&[Some(9), Some(1), Some(1)], &[0, 1, 2, 4]);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("shard 0 wants core 9"), "{found:?}");
    assert!(found[0].contains("allowed are 0-2, 4: change core in shards/0.toml"), "{found:?}");
    assert!(found[1].contains("shards 1 and 2 are both on core 1"), "{found:?}");
    let found = problems(&[None; 3], &[0, 1]);
    assert!(found[0].contains("3 shards for 2 allowed cores: set [shards] count"), "{found:?}");
}

#[test]
fn all_other_threads_keep_to_cores_without_a_shard_if_there_are_any() {
    assert_eq!(other_cores(&[0, 1, 2, 3], &[3, 1], &[]), [0, 2]);
    assert_eq!(other_cores(&[0, 1, 2, 3], &[2], &[1, 2, 3]), [0], "isolated ones are left alone");
    assert_eq!(other_cores(&[1, 2, 3], &[2], &[1, 2, 3]), [1, 3], "unless there are no others");
    assert_eq!(other_cores(&[4, 5], &[5, 4], &[]), [4, 5], "they have to be somewhere");
}

#[test]
fn old_kernels_are_refused() {
    assert_eq!(kernel_version("6.18.44-generic"), Some((6, 18)));
    assert_eq!(kernel_version("5.4"), Some((5, 4)));
    assert_eq!(kernel_version("6"), None);
    assert_eq!(kernel_version("strange"), None);
    assert_eq!(kernel_problem((5, 8)), None);
    says(kernel_problem((4, 19)), &["Linux 4.19 is too old", "as of 5.8", ": uname -r"]);
}

#[test]
fn too_little_locked_memory_is_told_with_numbers() {
    assert_eq!(memlock_problem(Some(512 << 10), Some(512 << 10), 64), None);
    assert_eq!(memlock_problem(None, None, 64), None);
    let problem = memlock_problem(Some(64 << 10), Some(64 << 10), 8);
    says(problem, &["is 64 KiB soft, 64 KiB hard", "needs 1536 KiB", ": ulimit -l unlimited"]);
}

#[test]
fn ring_memory_counts_on_old_kernels_only() {
    let (new, old) = (Some((6, 1)), Some((5, 10)));
    assert_eq!(memlock_need(4, 1024, new), 4 * 3 * 65_536);
    assert_eq!(memlock_need(4, 1000, old), 4 * 3 * (65_536 + 102_400));
    assert_eq!(memlock_short(Some(8 << 20), 4 << 20, new), None);
    assert_eq!(memlock_short(None, u64::MAX, old), None);
    assert_eq!(memlock_short(Some(1 << 20), 4 << 20, new), None, "no ring is charged to it");
    says(memlock_short(Some(1 << 20), 4 << 20, old), &["need 4096 KiB", ": ulimit -l unlimited"]);
}

#[test]
fn the_file_limit_bounds_connections() {
    // The files have three instances.
    let overhead = files_overhead(&config(Overrides::default()), 2, 0);
    assert_eq!(overhead, 64 + 2 * (32 + 6));
    assert_eq!(files_overhead(&config(Overrides::default()), 2, 256), overhead + 256);
    let admin = [None, Some(20_000), Some(300), Some(10)].map(admin_connections);
    assert_eq!(admin, [512, 512, 75, 16]);
    assert_eq!(connections_allowed(None, None, overhead, 2), Ok(usize::MAX));
    assert_eq!(connections_allowed(Some(20_000), None, 100, 1), Ok(19_900), "nobody comes home");
    // An eighth and 64 that are handed over, and 64 on their way, for each of two shards.
    let few = connections_allowed(Some(150), Some(150), overhead, 2);
    says(few.err(), &["are 150 soft, 150 hard", "need 140 before", ": ulimit -n 22896"]);
    assert_eq!(files_of_clients(10_000, 2), 11_378);
    assert_eq!(connections_allowed(Some(22_896), None, overhead, 2), Ok(10_000));
    for limit in 400..2_000 {
        let each = connections_allowed(Some(limit), None, overhead, 2).unwrap_or(0);
        let have = (limit - overhead) / 2;
        assert!(each == 0 || files_of_clients(each, 2) <= have, "{limit}: {each} fit");
        assert!(each == 0 || files_of_clients(each + 1, 2) > have, "{limit}: no more fit");
    }

    // "auto" is what the limit allows, down to a number that nobody can mean.
    let planned = || lay_out(&config(Overrides::default()), 2, &[0, 1]).0;
    let each =
        |shards: &[ShardPlan]| shards.iter().map(|s| s.settings.conn.connections_max).collect();
    let mut shards = planned();
    assert_eq!(clamp_connections(&mut shards, usize::MAX, None), None);
    let all: Vec<ConnectionsMax> = each(&shards);
    assert_eq!(all, [ConnectionsMax::Auto(200_000); 2]);
    assert_eq!(clamp_connections(&mut shards, 9_000, Some(20_000)), None);
    let all: Vec<ConnectionsMax> = each(&shards);
    assert_eq!(all, [ConnectionsMax::Auto(9_000); 2]);
    let few = clamp_connections(&mut shards, 300, Some(1_024));
    says(few, &["RLIMIT_NOFILE 1024", "allow 600 connections, which is few"]);
    // A number is a wish, and is told when it is not met.
    let mut shards = planned();
    shards[0].settings.conn.connections_max = ConnectionsMax::Set(60_000);
    assert_eq!(clamp_connections(&mut shards, 60_000, Some(200_000)), None);
    let told = clamp_connections(&mut shards, 9_000, Some(20_000));
    says(told, &["RLIMIT_NOFILE 20000", "allow 18000 connections", "asks for 120000"]);
    // Few that are asked for and met are nobody's business.
    let mut shards = planned();
    for shard in &mut shards {
        shard.settings.conn.connections_max = ConnectionsMax::Set(150);
    }
    assert_eq!(clamp_connections(&mut shards, 213, Some(1_400)), None);
}

#[test]
fn a_refused_ring_is_explained_by_its_cause() {
    let refused = |e, sysctl| uring_problem(Err(e), sysctl);
    assert_eq!(uring_problem(Ok(()), Some(1)), None);
    says(refused(Errno::NOSYS, None), &["has no io_uring", "CONFIG_IO_URING"]);
    says(refused(Errno::PERM, Some(2)), &["sysctl -w kernel.io_uring_disabled=0"]);
    says(refused(Errno::PERM, Some(1)), &["io_uring_group", ": sysctl -w kernel.io_"]);
    says(refused(Errno::PERM, Some(0)), &["Docker's default profile", " guide containers"]);
    says(refused(Errno::NOMEM, Some(0)), &["RLIMIT_MEMLOCK", ": ulimit -l unlimited"]);
    says(refused(Errno::MFILE, Some(0)), &["too many open files", ": ulimit -n 1048576"]);
    says(refused(Errno::INVAL, Some(0)), &["io_uring_setup failed"]);
}

#[test]
fn taken_ports_are_told_with_one_command_that_avoids_them_all() {
    let other = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let third = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let [listen, admin] = [&other, &third].map(|l| l.local_addr().expect("bound").to_string());
    let flags = Overrides {
        listen: Some(listen.clone()),
        admin: Some(admin.clone()),
        no_demo: true,
        ..Overrides::default()
    };
    let config = from_files(Files::embedded(), &[], &flags).expect("right");
    let problems = ports::problems(&config, &loader(&flags));
    let [first, second] = &problems[..] else { panic!("{problems:?}") };
    let by = format!("is in use by {}", comm());
    says(Some(first.clone()), &[&format!("listen = {listen} {by}"), "start on another port: "]);
    says(Some(second.clone()), &[&format!("admin.listen = {admin} {by}")]);
    assert_eq!(first.fix, second.fix, "one command avoids both");
    let (_, command) = first.fix.rsplit_once(" --listen ").expect("a flag");
    let words: Vec<&str> = command.split(' ').collect();
    let [new, "--admin", new_admin, "--no-demo"] = words[..] else { panic!("{command}") };
    assert!(new != listen && new_admin != admin, "{command}");
    let demo = ports::problem(
        "demo service chat",
        other.local_addr().expect("bound"),
        Errno::ADDRINUSE,
        "shardgate --no-demo",
    );
    says(demo, &["start without the demo services: shardgate --no-demo"]);
    let address = other.local_addr().expect("bound");
    drop(other);
    assert_eq!(try_bind(address), Ok(()));
    assert_eq!(try_bind(address), Ok(()), "nothing is left of the first attempt");
}

#[test]
fn the_command_that_avoids_taken_ports_takes_no_port_twice() {
    // Two ports that are ten apart, as the proposals are.
    let bind = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port));
    let near = |low: std::net::TcpListener| {
        let port = low.local_addr().ok()?.port();
        Some((low, bind(port.checked_add(10)?).ok()?))
    };
    let mut pairs = (0..100).filter_map(|_| near(bind(0).ok()?));
    let (low, high) = pairs.next().expect("two ports of thousands");
    let [low_at, high_at] = [&low, &high].map(|l| l.local_addr().expect("bound").to_string());
    let proposal = || {
        let flags = Overrides {
            listen: Some(low_at.clone()),
            admin: Some(high_at.clone()),
            no_demo: true,
            ..Overrides::default()
        };
        let config = from_files(Files::embedded(), &[], &flags).expect("right");
        let problems = ports::problems(&config, &loader(&flags));
        let fix = &problems[0].fix;
        let (_, rest) = fix.rsplit_once(" --listen ").expect("a flag");
        let words: Vec<&str> = rest.split(' ').collect();
        let [new, "--admin", new_admin, "--no-demo"] = words[..] else { panic!("{fix}") };
        (new.to_owned(), new_admin.to_owned())
    };
    // Both are taken: each gets a port of its own.
    let (new, new_admin) = proposal();
    assert_ne!(new, new_admin);
    // The admin endpoint has the port beside it, which is free: clients are not sent there.
    drop(high);
    let (new, new_admin) = proposal();
    assert_eq!(new_admin, high_at);
    assert_ne!(new, high_at);
}

/// Name of this process in /proc.
fn comm() -> String {
    std::fs::read_to_string("/proc/self/comm").expect("Linux").trim().to_owned()
}

fn loader(flags: &Overrides) -> Loader {
    Loader::open(None, &[], flags).expect("the files of the repository")
}

#[test]
fn addresses_that_cannot_be_bound_say_why() {
    let port = |key, address, error| ports::problem(key, address, error, "shardgate --admin x");
    let address: SocketAddr = "192.0.2.1:80".parse().expect("an address");
    assert_eq!(try_bind(address), Err(Errno::ADDRNOTAVAIL));
    says(port("listen", address, Errno::ADDRNOTAVAIL), &["is no address of this host"]);
    says(port("admin", address, Errno::ACCESS), &["ip_unprivileged_port_start=80"]);
    says(port("admin", address, Errno::AFNOSUPPORT), &["family"]);
    says(port("admin", address, Errno::IO), &["cannot be bound", "try: shardgate --admin x"]);
    assert_eq!(port("admin", address, Errno::MFILE), None);
}

#[test]
fn a_port_of_outgoing_connections_is_a_warning() {
    assert_eq!(ephemeral_warning("listen", 9000, Some((32768, 60999))), None);
    assert_eq!(ephemeral_warning("listen", 0, Some((32768, 60999))), None);
    assert_eq!(ephemeral_warning("listen", 40_000, None), None);
    let warning = ephemeral_warning("listen", 40_000, Some((32768, 60999)));
    says(warning, &["(32768-60999)", "ip_local_reserved_ports=40000"]);
}

#[test]
fn spinning_everywhere_is_a_warning() {
    let (mut shards, _) = lay_out(&config(Overrides::default()), 2, &[0, 1]);
    assert_eq!(spin_warning(&shards, 2), None);
    for shard in &mut shards {
        shard.settings.spin = std::time::Duration::from_micros(50);
    }
    assert_eq!(spin_warning(&shards, 3), None);
    says(spin_warning(&shards, 2), &["all 2 allowed cores"]);
}

#[test]
fn a_core_that_is_not_there_stops_the_plan() {
    let flags = Overrides { cores: Some("1023".to_owned()), ..Overrides::default() };
    let problems = plan(&config(flags.clone()), &loader(&flags)).expect_err("no core");
    assert!(problems.iter().any(|p| p.what.contains("shard 0 wants core 1023")), "{problems:?}");
}
