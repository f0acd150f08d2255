//! The README: its commands run, its clients get their answers, its table is that of the code.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use shardgate::config::load::{DEFAULT_TOML, Files, GATEWAY_TOML, from_files};
use shardgate::config::{Overrides, Source};

use crate::support::{BINARY, Checkout, Running, available, root, run, succeeds};

/// The README's commands start the program through cargo. Here it is built already, and cargo
/// would build it anew, optimised, in the middle of a test: the same arguments go to the program.
const CARGO_RUN: &str = "cargo run --release";

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).expect("there is a README")
}

/// The lines of the README's fenced blocks of `language`, block by block.
fn blocks(language: &str) -> Vec<String> {
    let text = readme();
    let mut blocks = Vec::new();
    let mut inside: Option<(bool, String)> = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), &mut inside) {
            (Some(word), None) => inside = Some((word == language, String::new())),
            (Some(_), Some(_)) => {
                let (wanted, block) = inside.take().expect("matched");
                blocks.extend(wanted.then_some(block));
            }
            (None, Some((_, block))) => *block += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    assert!(!blocks.is_empty(), "no {language} block");
    blocks
}

/// The only block of `language`.
fn block(language: &str) -> String {
    let [block] = &blocks(language)[..] else { panic!("one {language} block") };
    block.clone()
}

/// Output of the README's clients: the last line of its block of the answer.
fn answer() -> String {
    block("json").lines().last().expect("an answer").to_owned()
}

/// The README's shell commands, without their comments.
fn commands() -> Vec<String> {
    let text = blocks("sh").concat();
    let lines = text.lines().map(|line| line.split(" #").next().unwrap_or(line).trim().to_owned());
    lines.filter(|line| !line.is_empty()).collect()
}

/// The shell command `line` of the README, in `checkout`.
fn command(checkout: &Checkout, line: &str) -> Command {
    let program = format!("exec {BINARY}");
    let line = line.replace(&format!("{CARGO_RUN} --"), &program).replace(CARGO_RUN, &program);
    checkout.shell(&checkout.here(&line))
}

/// Verbs that end by themselves.
const VERBS: [&str; 6] = ["check", "config", "routes", "explain", "doctor", "gen"];

/// Word on stdout that says that a command is ready, for those that run until they are stopped.
fn ready_word(line: &str) -> Option<&'static str> {
    let says = |verb: &&str| line.contains(&format!("{CARGO_RUN} -- {verb}"));
    if line.contains(CARGO_RUN) && !VERBS.iter().any(says) {
        Some("shardgate ready: ws://")
    } else if line.contains("backend.py") {
        Some("service ready: ")
    } else {
        None
    }
}

#[test]
fn every_command_of_the_readme_runs() {
    let checkout = Checkout::new();
    let (serving, others): (Vec<_>, Vec<_>) =
        commands().into_iter().partition(|line| ready_word(line).is_some());
    assert!(serving.iter().any(|line| line == CARGO_RUN), "{serving:?}");
    let ci = fs::read_to_string(root().join(".ci/run")).expect("there is a .ci/run");
    let gateway = checkout.gateway(&[], &["logic"]);
    for line in &others {
        if line.starts_with("cargo ") && !line.starts_with(CARGO_RUN) {
            // Run from here it would run this test, and so itself, for ever: CI runs it.
            assert!(ci.lines().any(|l| l.split(" #").next().is_some_and(|l| l.trim() == line)));
            continue;
        }
        let program = line.split(' ').next().unwrap_or_default();
        let found = program == "cargo" || succeeds(program, &["--version"]);
        if available("every_command_of_the_readme_runs", program, found) {
            let said = run(&mut command(&checkout, line));
            assert!(!said.is_empty(), "{line} says nothing");
        }
    }
    assert_eq!(gateway.stop().code(), Some(0));
    for line in &serving {
        let python = line.starts_with("python3");
        let found = !python || succeeds("python3", &["-c", "import grpc, grpc_tools.protoc"]);
        let what = "python3 with grpcio and grpcio-tools";
        if available("every_command_of_the_readme_runs", what, found) {
            let line = line.replace("python3", "exec python3");
            let word = ready_word(&line).expect("they were chosen by it");
            let running = Running::start(&mut command(&checkout, &line), word);
            assert_eq!(running.stop().code(), Some(0), "{line}");
        }
    }
}

#[test]
fn the_readmes_python_client_gets_its_answer() {
    let found = succeeds("python3", &["-c", "import websockets.sync.client"]);
    let test = "the_readmes_python_client_gets_its_answer";
    if !available(test, "python3 with websockets", found) {
        return;
    }
    let checkout = Checkout::new();
    let _gateway = checkout.gateway(&[], &["logic"]);
    let script = checkout.path().join("client.py");
    fs::write(&script, checkout.here(&block("python"))).expect("the directory is ours");
    assert_eq!(run(&mut checkout.shell("python3 client.py")).trim(), answer());
}

#[test]
fn the_readmes_javascript_client_gets_its_answer() {
    let found = succeeds("node", &["-e", "require('ws')"]);
    let test = "the_readmes_javascript_client_gets_its_answer";
    if !available(test, "node with ws (NODE_PATH)", found) {
        return;
    }
    let checkout = Checkout::new();
    let _gateway = checkout.gateway(&[], &["logic"]);
    // Browsers have WebSocket, and Node from 22 on. The line after the answer lets the script end.
    let script = format!(
        "globalThis.WebSocket ??= require('ws');\n{}\
         ws.addEventListener('message', (e) => JSON.parse(e.data).seq === 1 && ws.close());\n",
        block("js")
    );
    fs::write(checkout.path().join("client.js"), checkout.here(&script)).expect("it is ours");
    let said = run(&mut checkout.shell("node client.js"));
    let lines: Vec<&str> = said.lines().collect();
    let [welcome, reply] = lines[..] else { panic!("two messages: {said}") };
    assert!(welcome.contains(r#""type":"welcome""#), "{welcome}");
    assert_eq!(reply, answer());
}

/// Keys of a file, with default, boot or live, and meaning, from the comments above them.
fn explained(text: &str) -> BTreeMap<String, (String, &'static str, String)> {
    let mut keys = BTreeMap::new();
    let (mut section, mut comment) = (String::new(), String::new());
    for line in text.lines().take_while(|line| !line.starts_with("[[")) {
        if let Some(more) = line.strip_prefix('#') {
            comment = format!("{comment} {}", more.trim());
        } else if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            (section, comment) = (format!("{name}."), String::new());
        } else if let Some((key, value)) = line.split_once(" = ") {
            let known = [" live", " boot"].into_iter().find(|word| comment.ends_with(word));
            let when = known.unwrap_or_else(|| panic!("{section}{key}: boot or live?"));
            let meaning = comment.trim_end_matches(when).trim().to_owned();
            keys.insert(format!("{section}{key}"), (value.to_owned(), when.trim(), meaning));
            comment.clear();
        } else {
            comment.clear();
        }
    }
    keys
}

#[test]
fn the_table_of_keys_is_that_of_the_code() {
    // Without files every key has the default that the code gives it.
    let mut files = Files::embedded();
    files.gateway.text.clear();
    files.default.text.clear();
    let config = from_files(files, &[], &Overrides::default()).expect("no key is required");
    let mut meanings = explained(GATEWAY_TOML);
    meanings.extend(explained(DEFAULT_TOML));
    let mut rows = Vec::new();
    for (key, default, _) in &config.provenance {
        let (value, when, meaning) = meanings.remove(key).unwrap_or_else(|| panic!("{key}?"));
        assert_eq!(&value, default, "{key}");
        rows.push(format!("| `{key}` | `{value}` | {when} | {meaning} |"));
    }
    assert!(meanings.is_empty(), "the code does not know {meanings:?}");
    let text = readme();
    let (head, rest) = text.split_once("|---|---|---|---|\n").expect("the table's head");
    let (table, tail) = rest.split_once("\n\n").expect("the table's end");
    if std::env::var("UPDATE_README").is_ok_and(|v| v == "1") {
        let new = format!("{head}|---|---|---|---|\n{}\n\n{tail}", rows.join("\n"));
        fs::write(root().join("README.md"), new).expect("the tree is writable");
        return;
    }
    let have: Vec<&str> = table.lines().collect();
    assert_eq!(have, rows, "UPDATE_README=1 cargo test --test outside table writes it anew");
}

#[test]
fn the_table_of_services_and_routes_has_their_keys_and_defaults() {
    let mut files = Files::embedded();
    files.default.text.clear();
    // Only keys without a default.
    files.gateway.text = r#"
        [[service]]
        name = "logic"
        instances = [{ id = "logic-1", address = "127.0.0.1:50001" }]
        [[route]]
        range = [1000, 1999]
        service = "logic""#
        .into();
    let config = from_files(files, &[], &Overrides::default()).expect("the rest has defaults");
    let mut wanted = BTreeMap::new();
    for (key, default, source) in &config.provenance {
        if key.contains("[0]") {
            let default =
                if *source == Source::Default { format!("`{default}`") } else { String::new() };
            wanted.insert(format!("`{}`", key.replace("[0]", "")), default);
        }
    }
    let text = readme();
    let (_, rest) = text.split_once("\n|---|---|---|\n").expect("the table's head");
    let (table, _) = rest.split_once("\n\n").expect("the table's end");
    let cells = table.lines().map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    let have: BTreeMap<_, _> = cells.map(|c| (c[1].to_owned(), c[2].to_owned())).collect();
    assert_eq!(have, wanted);
}
