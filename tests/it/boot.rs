//! Starts that fail: one line for each problem, with value, rule and way out.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use serde_json::json;

use crate::support::{Client, Config, Finished, Gateway, run};

/// Starts with a configuration and further flags; it must end by itself.
fn start(config: &Config, args: &[&str]) -> Finished {
    let dir = config.write();
    let path = dir.path().to_str().expect("UTF-8").to_owned();
    let mut all = vec!["--config", &path];
    all.extend(args);
    let mut finished = run(&all, |_| ());
    finished.stderr = finished.stderr.replace(&format!("{path}/"), "");
    finished
}

/// The arguments of a command of this program.
fn own(command: &str) -> Option<&str> {
    command.strip_prefix(env!("CARGO_BIN_EXE_shardgate"))?.strip_prefix(' ')
}

const FREE: [&str; 4] = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];

/// The one line of a failed start.
#[track_caller]
fn line(finished: &Finished, code: i32) -> &str {
    assert_eq!(finished.code, Some(code), "{finished:?}");
    assert_eq!(finished.stdout, "", "nothing was ready");
    let mut lines = finished.stderr.lines();
    let line = lines.next().expect("a line that says why");
    assert_eq!(lines.next(), None, "{}", finished.stderr);
    line
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    for (flag, key) in [("--listen", "listen"), ("--admin", "admin")] {
        let other = if flag == "--listen" { "--admin" } else { "--listen" };
        let dir = Config::new().write();
        let path = dir.path().to_str().expect("UTF-8");
        let args = ["--config", path, flag, &address, other, "127.0.0.1:0"];
        let finished = run(&args, |_| ());
        let line = line(&finished, 1);
        assert!(line.contains(key) && line.contains(&address), "{line}");
        assert!(line.contains(&format!("(process {})", std::process::id())), "{line}");
        let (_, command) = line.rsplit_once(": ").expect("a command at the end");
        let args = own(command).expect("our command").split(' ');
        let judged = run(&["doctor"].into_iter().chain(args).collect::<Vec<_>>(), |_| ());
        assert!(judged.stdout.starts_with("OK    a start would succeed"), "{command}: {judged:?}");
    }
}

#[test]
fn a_taken_port_of_the_demo_services_names_the_way_out() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let config = Config::default()
        .key(&format!("demo.addresses = [\"{address}\", \"127.0.0.1:0\", \"127.0.0.1:0\"]"));
    let finished = start(&config, &FREE);
    let line = line(&finished, 1);
    assert!(line.contains("demo") && line.contains(&address), "{line}");
}

#[test]
fn a_second_gateway_does_not_share_the_port_of_the_first() {
    // The shards of one gateway share ports (SO_REUSEPORT); the kernel would let another process
    // join in.
    let gateway = Gateway::start(&Config::new());
    let ws = gateway.ws.to_string();
    let finished = start(&Config::new(), &["--listen", &ws, "--admin", "127.0.0.1:0"]);
    assert!(line(&finished, 1).contains(&ws), "{}", finished.stderr);
    Client::connect(gateway.ws);
}

/// End of the line on clients where open files set their number.
const FILES: &str = " at once, by the limit of open files";

#[test]
fn a_gateway_that_is_ready_says_what_to_do_next() {
    let config = Config::new()
        .service("logic", &[("a", "127.0.0.1:1".parse().expect("an address"))])
        .route(1000, "logic", "");
    let mut gateway = Gateway::start(&config);
    let lines: Vec<String> = (0..6).map(|_| gateway.next_line()).collect();
    let after = |line: &str, word: &str| {
        let rest = line.strip_prefix(&format!("  {word:10}  "));
        rest.unwrap_or_else(|| panic!("{word} in {lines:?}")).to_owned()
    };
    assert_eq!(after(&lines[0], "connect to"), format!("ws://{}/ws", gateway.ws));
    let answers = "ids 1000-1999 logic, 9000-9999 the gateway itself";
    assert_eq!(after(&lines[1], "answers"), answers);
    let clients = after(&lines[2], "clients");
    let told = clients.strip_prefix("at most ").and_then(|rest| rest.strip_suffix(FILES));
    let told: usize = told.and_then(|n| n.parse().ok()).expect("a number");
    assert_eq!(gateway.admin_get("/config")["connections_max"], json!([told]));
    let guide = format!("http://{}/guide, the state in /health and /stats", gateway.admin);
    assert_eq!(after(&lines[3], "try it"), format!("http://{}/ in a browser", gateway.admin));
    assert_eq!(after(&lines[4], "read"), guide);
    assert_eq!(gateway.request("GET /guide", "", "").0, 200);
    // The command is pasted as it stands, into a shell that has the same environment.
    let drain = after(&lines[5], "stop");
    let drain = drain.strip_prefix("Ctrl-C, or: ").and_then(own).expect("our command");
    let runtime = gateway.dir().to_owned();
    let drained = run(&drain.split(' ').collect::<Vec<_>>(), |command| {
        command.env("XDG_RUNTIME_DIR", runtime).env_remove("RUNTIME_DIRECTORY");
    });
    assert_eq!(drained.code, Some(0), "{drain}: {drained:?}");
    assert_eq!(gateway.wait().code(), Some(0));
    let left = std::fs::read_dir(gateway.dir().join("shardgate")).expect("it was made");
    assert_eq!(left.count(), 0, "the token that it made is gone with it");
}

#[test]
fn all_problems_of_a_configuration_are_told_at_once() {
    let config = Config::new()
        .key("pth = \"/ws\"")
        .key("node = \"a b\"")
        .service("logic", &[("a", "127.0.0.1:1".parse().expect("an address"))])
        .route(1000, "logik", "")
        .route(1500, "logic", "timeout_ms = 0")
        .shard("queue.items_max = 0")
        .shard("conn.heartbeat_ms = \"soon\"")
        .shard("batch.window = 5")
        .file("0.toml", "retry.attempts_max = 9\n");
    for verb in [&["check"][..], &[]] {
        let dir = config.write();
        let path = dir.path().to_str().expect("UTF-8");
        let mut args = verb.to_vec();
        args.extend(["--config", path]);
        let finished = run(&args, |_| ());
        assert_eq!(finished.code, Some(64), "{finished:?}");
        let said = if verb.is_empty() { &finished.stderr } else { &finished.stdout };
        // Each line has file and line, key and value, and the rule or the nearest right key.
        for (place, what, rule) in [
            ("gateway.toml:3", "pth", "path"),
            ("gateway.toml:4", "node = \"a b\"", "letters"),
            ("gateway.toml", "logik", "logic"),
            ("gateway.toml", "timeout_ms = 0", "600000"),
            ("gateway.toml", "[1500, 2499]", "overlap"),
            ("default.toml:1", "queue.items_max = 0", "1000000"),
            ("default.toml:2", "conn.heartbeat_ms = \"soon\"", "number"),
            ("default.toml:3", "batch.window", "window_ms"),
            ("0.toml:1", "retry.attempts_max = 9", "5"),
        ] {
            let found =
                said.lines().any(|line| [place, what, rule].iter().all(|part| line.contains(part)));
            assert!(found, "{place} {what} {rule} in\n{said}");
        }
    }
}

#[test]
fn a_text_that_is_no_toml_is_told_with_its_line() {
    let config = Config::new().file("default.toml", "[queue]\nitems_max = = 5\n");
    let finished = start(&config, &FREE);
    let line = line(&finished, 64);
    assert!(line.starts_with("default.toml:2: not TOML: "), "{line}");
}

#[test]
fn a_directory_without_configuration_is_told() {
    let finished = run(&["--config", "/nonexistent/shardgate"], |_| ());
    let line = line(&finished, 64);
    assert!(line.starts_with("/nonexistent/shardgate: "), "{line}");
    assert!(line.ends_with(" gen config /nonexistent/shardgate"), "{line}");
}

#[test]
fn wrong_usage_is_64_and_says_what_there_is() {
    for args in [&["--prot", "1"][..], &["sreve"], &["--listen"], &["version", "--no-demo"]] {
        let finished = run(args, |_| ());
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(64), ""), "{finished:?}");
        assert!(finished.stderr.starts_with("error: "), "{}", finished.stderr);
        let one_line = finished.stderr.lines().count() == 1;
        assert!(one_line && finished.stderr.ends_with("--help\n"), "{}", finished.stderr);
    }
    let finished = run(&["--listen", "nowhere", "--shards", "0"], |_| ());
    assert_eq!(finished.code, Some(64));
    assert!(finished.stderr.contains("flag --listen: listen = \"nowhere\": "), "{finished:?}");
    assert!(finished.stderr.contains("flag --shards: shards.count = 0: "), "{finished:?}");
}

#[test]
fn the_environment_is_checked_like_the_files() {
    let dir = Config::new().write();
    let path = dir.path().to_str().expect("UTF-8");
    let finished = run(&["--config", path], |command| {
        command.env("SHARDGATE__QUEUE__ITEMS_MAX", "0");
    });
    assert!(line(&finished, 64).starts_with("environment SHARDGATE__QUEUE__ITEMS_MAX: "));
}

#[test]
fn more_shards_than_cores_are_refused() {
    let cores = std::thread::available_parallelism().expect("known").get();
    let many = (cores + 1).to_string();
    let finished = start(&Config::new(), &[&FREE[..], &["--shards", &many]].concat());
    let line = line(&finished, 1);
    assert!(line.contains(&format!("{many} shards")) && line.contains("--shards"), "{line}");
}

#[test]
fn help_and_version_are_no_errors() {
    let version = concat!("shardgate ", env!("CARGO_PKG_VERSION"));
    for args in [&["version"][..], &["--version"]] {
        let finished = run(args, |_| ());
        assert_eq!(finished.code, Some(0));
        assert!(finished.stdout.starts_with(version), "{finished:?}");
    }
    let finished = run(&["--help"], |_| ());
    assert_eq!(finished.code, Some(0));
    for word in ["--listen", "check", "EXIT CODES", "SHARDGATE__"] {
        assert!(finished.stdout.contains(word), "{word}");
    }
}

#[test]
fn a_right_configuration_is_said_to_be_right() {
    let config = Config::new()
        .service("logic", &[("a", "127.0.0.1:1".parse().expect("an address"))])
        .route(1000, "logic", "");
    let dir = config.write();
    let finished = run(&["check", "--config", dir.path().to_str().expect("UTF-8")], |_| ());
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(finished.stdout.starts_with("ok: listen 127.0.0.1:9000/ws"), "{}", finished.stdout);
    assert!(finished.stdout.contains("1000-1999 -> logic (normal): a 127.0.0.1:1"));
}

/// Whether other users can run a program: whether its directories and the file let them.
pub(crate) fn others_can_run(program: &std::path::Path) -> bool {
    let path = program.canonicalize().expect("it was built");
    path.ancestors()
        .all(|part| part.metadata().is_ok_and(|found| found.permissions().mode() & 0o001 != 0))
}

/// User and group `nobody` of most systems.
pub(crate) const NOBODY: u32 = 65534;

#[test]
fn an_unprivileged_user_needs_nothing_more() {
    if !rustix::process::geteuid().is_root() {
        return; // Then every other test is this one.
    }
    let dir = Config::new().write();
    let path = dir.path().to_str().expect("UTF-8");
    let as_nobody = |command: &mut std::process::Command| {
        command.uid(NOBODY).gid(NOBODY);
    };
    if !others_can_run(env!("CARGO_BIN_EXE_shardgate").as_ref()) {
        return; // The program lies where only root reaches it.
    }
    let finished = run(&["check", "--config", path], as_nobody);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let gateway = Gateway::start_with(&Config::new(), as_nobody);
    Client::connect(gateway.ws).ask(serde_json::json!({"type": "ping"}));
}
