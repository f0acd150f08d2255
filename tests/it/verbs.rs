//! The verbs of the built program: output and exit codes.

use std::net::TcpListener;

use serde_json::{Value, json};

use crate::support::{Config, Finished, Gateway, Instance, run};

/// Runs a verb with a configuration.
fn verb(config: &Config, args: &[&str]) -> Finished {
    let dir = config.write();
    let path = dir.path().to_str().expect("UTF-8").to_owned();
    let mut all = args.to_vec();
    all.extend(["--config", &path]);
    let mut finished = run(&all, |_| ());
    finished.stdout = finished.stdout.replace(&format!("{path}/"), "");
    finished
}

/// An address where nothing listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").to_string()
}

fn logic() -> Config {
    Config::new()
        .service("logic", &[("a", "127.0.0.1:1".parse().expect("an address"))])
        .route(1000, "logic", "")
}

#[test]
fn a_configuration_with_ten_mistakes_is_told_all_ten() {
    let config = Config::new()
        .key("pth = \"/ws\"")
        .key("node = \"a b\"")
        .key("stop.grace_ms = 900000")
        .key("admin.listen = \"localhost:8000\"")
        .key("queue.items_max = 5")
        .shard("queue.items_max = 0")
        .shard("conn.heartbeat_ms = \"soon\"")
        .shard("batch.window = 5")
        .shard("dedup.enabled = 1")
        .file("0.toml", "retry.attempts_max = 9\n");
    let finished = verb(&config, &["check"]);
    assert_eq!(finished.code, Some(64), "{finished:?}");
    for start in [
        "gateway.toml:3: pth = ",
        "gateway.toml:4: node = ",
        "gateway.toml:5: stop.grace_ms = 900000: ",
        "gateway.toml:6: admin.listen = ",
        "gateway.toml:7: queue.items_max = 5: ",
        "default.toml:1: queue.items_max = 0: ",
        "default.toml:2: conn.heartbeat_ms = ",
        "default.toml:3: batch.window = 5: ",
        "default.toml:4: dedup.enabled = 1: ",
        "0.toml:1: retry.attempts_max = 9: ",
    ] {
        let found = finished.stdout.lines().any(|line| line.starts_with(start));
        assert!(found, "{start} in\n{}", finished.stdout);
    }
    assert!(finished.stdout.ends_with("\n10 problems\n"), "{}", finished.stdout);
}

#[test]
fn check_tells_what_the_caps_come_to() {
    let finished = verb(&logic().shard("conn.connections_max = 5000"), &["check", "--shards", "1"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let connections = "conn.connections_max + 1/8 + 64 = 5689 x ";
    for part in ["memory of shard 0", connections, "queue.bytes_max", "in all"] {
        assert!(finished.stdout.contains(part), "{part} in\n{}", finished.stdout);
    }
}

#[test]
fn config_and_routes_show_the_files_and_where_each_value_came_from() {
    let config = logic().key("node = \"here\"");
    let finished = verb(&config, &["config", "--listen", "127.0.0.1:2"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let has = |words: &[&str]| {
        let same = |line: &str| line.split_whitespace().eq(words.iter().copied());
        finished.stdout.lines().any(same)
    };
    assert!(has(&["node", "\"here\"", "gateway.toml:3"]), "{}", finished.stdout);
    assert!(has(&["listen", "\"127.0.0.1:2\"", "flag", "--listen"]), "{}", finished.stdout);
    assert!(has(&["queue.items_max", "10000", "default"]), "{}", finished.stdout);
    let finished = verb(&config, &["routes"]);
    assert!(finished.stdout.contains("1000-1999  logic"), "{finished:?}");
}

#[test]
fn explain_does_without_a_gateway_and_says_so() {
    let finished =
        verb(&logic(), &["explain", "--msg-id", "1500", "--user", "u", "--admin", &nobody()]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(
        finished.stdout.starts_with("from the configuration alone, because no gateway answers:\n")
    );
    assert!(finished.stdout.contains("-> service logic") && finished.stdout.contains(" a at "));
    let finished = verb(&logic(), &["explain", "--msg-id", "7", "--admin", &nobody()]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stdout.contains("NO_ROUTE"), "{finished:?}");
    let rooms = logic().key("group = [{ name = \"room:*\", join = \"anybody\" }]");
    for (group, code, part) in [("room:7", 0, "join = \"anybody\""), ("lobby", 1, "NO_ROUTE")] {
        let finished = verb(&rooms, &["explain", "--group", group, "--admin", &nobody()]);
        assert_eq!(finished.code, Some(code), "{finished:?}");
        assert!(finished.stdout.contains(part), "{finished:?}");
    }
}

/// Of a gateway that runs, people read lines and programs JSON, and the exit code is that of the
/// files alone.
#[test]
fn what_a_gateway_says_is_lines_for_people_and_json_for_programs() {
    let instance = Instance::echo();
    let config = Config::new().service("logic", &[("a", instance.address)]).route(
        1000,
        "logic",
        "hash_on = \"session\"",
    );
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let at = gateway.dir().to_str().expect("UTF-8").to_owned();
    let admin = gateway.admin.to_string();
    let ask = |args: &[&str]| {
        run(&[args, &["--config", &at, "--admin", &admin]].concat(), |command| {
            command.env("XDG_RUNTIME_DIR", gateway.dir()).env_remove("RUNTIME_DIRECTORY");
        })
    };
    let json = |finished: &Finished| -> Value {
        serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e}: {finished:?}"))
    };
    let explain = ["explain", "--session", "s", "--msg-id"];
    let said = ask(&[&explain[..], &["1001"]].concat());
    assert_eq!(said.code, Some(0), "{said:?}");
    for line in ["  id 1001 is in the route 1000-1999 -> service logic\n", "\n  a at "] {
        assert!(said.stdout.contains(line), "{said:?}");
    }
    let said = ask(&[&explain[..], &["1001", "--format", "json"]].concat());
    assert_eq!((said.code, &json(&said)["instance"]), (Some(0), &json!("a")));
    let said = ask(&[&explain[..], &["7"]].concat());
    assert!(said.code == Some(1) && said.stdout.contains("NO_ROUTE"), "{said:?}");
    let said = ask(&["routes", "--in-force"]);
    for row in ["1000-1999  logic    normal", "\na         logic    "] {
        assert!(said.code == Some(0) && said.stdout.contains(row), "{said:?}");
    }
    let said = ask(&["routes", "--in-force", "--format", "json"]);
    assert_eq!(json(&said)["services"]["logic"]["instances"][0]["id"], "a");
    gateway.rewrite(&config.clone().route(5000, "logic", "").shard("conn.heartbeat_ms = 20000"));
    let said = ask(&["reload"]);
    let changed = "+ route 5000-5999 -> logic\n";
    assert!(said.code == Some(0) && said.stdout.contains(changed), "{said:?}");
    assert!(said.stdout.contains("~ conn.heartbeat_ms 30000 -> 20000\n"), "{said:?}");
    gateway.rewrite(&config.route(5000, "logic", ""));
    let said = ask(&["reload", "--format", "json"]);
    assert_eq!(json(&said)["changes"][0]["key"], "conn.heartbeat_ms", "{said:?}");
    let said = ask(&["drain", "--instance", "a", "--format", "json"]);
    assert_eq!(json(&said), json!({"instance": "a", "draining": true}));
}

#[test]
fn verbs_that_need_a_gateway_say_that_there_is_none() {
    let token = "admin.token = \"0123456789abcdef\"";
    for args in [&["drain"][..], &["reload"], &["config", "--in-force"], &["routes", "--in-force"]]
    {
        let admin = nobody();
        let finished = verb(&Config::new().key(token), &[args, &["--admin", &admin]].concat());
        assert_eq!(finished.code, Some(1), "{finished:?}");
        let wanted = format!("no gateway answers at admin.listen = {admin}");
        assert!(finished.stdout.starts_with(&wanted), "{finished:?}");
    }
}

#[test]
fn doctor_judges_this_machine() {
    let free = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--shards", "1"];
    let finished = verb(&Config::new(), &[&["doctor"][..], &free].concat());
    // This machine runs the gateway, or no test here would pass.
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(finished.stdout.starts_with("OK    a start would succeed, with 1 shards\n"));
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let listen = taken.local_addr().expect("bound").to_string();
    let args = ["doctor", "--listen", &listen, "--admin", "127.0.0.1:0", "--shards", "1"];
    let finished = verb(&Config::new(), &args);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stdout.contains("FAIL  listen"), "{finished:?}");
}

#[test]
fn the_unit_names_this_program_and_no_user_can_add_a_line() {
    let finished = verb(&Config::new(), &["gen", "systemd", "--user", "gate"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_shardgate"));
    let program = program.canonicalize().expect("it was built");
    let start = format!("\nExecStart={} --config /", program.display());
    assert!(finished.stdout.contains(&start), "{}", finished.stdout);
    assert!(finished.stdout.contains("\nUser=gate\n"), "{}", finished.stdout);
    let finished = verb(&Config::new(), &["gen", "systemd", "--user", "a\nExecStartPre=/bin/sh"]);
    assert_eq!(finished.code, Some(64), "{finished:?}");
}

#[test]
fn what_gen_writes_is_a_configuration_and_a_protocol() {
    let dir = tempfile::tempdir().expect("a directory");
    let own = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let config = own("conf");
    let finished = run(&["gen", "config", &config], |_| ());
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let last = finished.stdout.lines().last().expect("a command");
    let next = last
        .strip_prefix(&format!("next: {} ", env!("CARGO_BIN_EXE_shardgate")))
        .expect("a command of this program");
    let checked = run(&next.split(' ').collect::<Vec<_>>(), |_| ());
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert!(checked.stdout.starts_with("ok: listen 127.0.0.1:9000/ws"), "{checked:?}");
    let again = run(&["gen", "config", &config], |_| ());
    assert_eq!((again.code, again.stdout.lines().count()), (Some(1), 1), "{again:?}");
    assert!(again.stdout.contains("gateway.toml exists and is not overwritten"), "{again:?}");
    let finished = run(&["gen", "proto", &own("proto")], |_| ());
    assert_eq!(finished.code, Some(0), "{finished:?}");
    for name in ["client", "backend", "registry"] {
        let path = format!("shardgate/{name}/v1/{name}.proto");
        let text = std::fs::read_to_string(dir.path().join("proto").join(path)).expect("written");
        assert!(text.contains(&format!("package shardgate.{name}.v1;")), "{text}");
    }
}

#[test]
fn every_verb_has_help_with_an_example() {
    let verbs =
        ["serve", "check", "config", "routes", "explain", "doctor", "drain", "reload", "bench"];
    for verb in verbs {
        let finished = run(&["help", verb], |_| ());
        assert_eq!(finished.code, Some(0), "{finished:?}");
        assert!(finished.stdout.contains("EXAMPLE"), "{verb}: {}", finished.stdout);
    }
}

#[test]
fn a_closed_stderr_stops_nothing() {
    let mut gateway = Gateway::start_with(&logic(), |command| {
        command.stderr(closed_pipe());
    });
    // The gateway has logged by now: that it serves, and that logic is away.
    assert_eq!(gateway.admin("/stats").0, 200);
    assert!(gateway.runs());
    gateway.signal(rustix::process::Signal::TERM);
    assert_eq!(gateway.wait().code(), Some(0));
}

/// A pipe that nobody reads.
fn closed_pipe() -> std::io::PipeWriter {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer
}
