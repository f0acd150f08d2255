//! Limits of the process: one that is too small is a line before the start, and no abort in the
//! middle of it.

use std::os::unix::process::CommandExt;

use crate::boot::{NOBODY, others_can_run};
use crate::support::{Client, Config, Gateway, run, under};

/// The one line of a start that a limit keeps from succeeding.
#[track_caller]
fn refused(limit: &str, shards: &str) -> String {
    let dir = Config::new().write();
    let path = dir.path().to_str().expect("UTF-8");
    let free = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let args = [&["--config", path, "--shards", shards], &free[..]].concat();
    let finished = run(&args, |command| under(command, &[], limit));
    assert_eq!((finished.code, &*finished.stdout), (Some(1), ""), "{limit}: {finished:?}");
    let line = finished.stderr.trim_end().to_owned();
    assert_eq!(line.lines().count(), 1, "{limit}: {line}");
    line
}

/// A gateway under a limit, which serves a client.
#[track_caller]
fn serves(limit: &str) {
    let gateway = Gateway::start_with(&Config::new(), |command| under(command, &[], limit));
    Client::connect(gateway.ws).ask(serde_json::json!({"type": "ping"}));
}

/// The number behind `ulimit FLAG unlimited (or `.
fn told(line: &str) -> u64 {
    let rest = line.split("unlimited (or ").nth(1);
    let number = rest.and_then(|rest| rest.split(')').next()).and_then(|n| n.parse().ok());
    number.unwrap_or_else(|| panic!("no number in {line}"))
}

#[test]
fn too_little_address_space_is_a_line_with_the_limit_the_need_and_the_way_out() {
    for kib in [100_000, 300_000, 500_000, 700_000] {
        let line = refused(&format!("ulimit -v {kib}"), "1");
        assert!(line.starts_with("RLIMIT_AS allows "), "{line}");
        assert!(line.contains("a start with 1 shards may take "), "{line}");
        assert!(line.contains("LimitAS=infinity"), "{line}");
    }
    let line = refused("ulimit -v 700000", "1");
    serves(&format!("ulimit -v {}", told(&line)));
    for kib in [20_000, 400_000] {
        let line = refused(&format!("ulimit -d {kib}"), "1");
        assert!(line.starts_with("RLIMIT_DATA allows "), "{line}");
        assert!(line.contains("LimitDATA=infinity"), "{line}");
    }
    serves(&format!("ulimit -d {}", told(&refused("ulimit -d 400000", "1"))));
}

#[test]
fn what_no_command_can_do_with_is_a_line_of_every_command() {
    for (limit, name) in [
        ("ulimit -s 64", "RLIMIT_STACK is 64.0 KiB, "),
        ("ulimit -v 60000", "RLIMIT_AS is 58.6 MiB, "),
        ("ulimit -d 10000", "RLIMIT_DATA is 9.8 MiB, "),
    ] {
        let line = refused(limit, "1");
        assert!(line.starts_with(name) && line.contains("=infinity"), "{line}");
        let version = run(&["version"], |command| under(command, &[], limit));
        assert_eq!((version.code, version.stderr.trim_end()), (Some(1), &*line), "{version:?}");
    }
    // The soft limit alone is no reason.
    serves("ulimit -S -s 64");
}

#[test]
fn too_few_threads_are_a_line() {
    let (root, program) = (rustix::process::geteuid().is_root(), env!("CARGO_BIN_EXE_shardgate"));
    if root && !others_can_run(program.as_ref()) {
        return; // Root has no such limit, and others do not reach the program.
    }
    let dir = Config::new().write();
    let path = dir.path().to_str().expect("UTF-8");
    for threads in [1, 3, 5] {
        let finished = run(&["--config", path, "--shards", "1"], |command| {
            // Not every sh has `ulimit -u`.
            under(command, &["prlimit", &format!("--nproc={threads}")], ":");
            if root {
                command.uid(NOBODY).gid(NOBODY);
            }
        });
        assert_eq!(finished.code, Some(1), "{finished:?}");
        let line = finished.stderr.lines().find(|line| line.contains(" of the 6 processes and"));
        let line = line.unwrap_or_else(|| panic!("{finished:?}"));
        let limit = format!("(RLIMIT_NPROC is {threads} for all of this user): raise the limit");
        assert!(line.contains(&limit) && line.contains("TasksMax="), "{line}");
    }
}
