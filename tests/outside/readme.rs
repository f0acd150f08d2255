//! The README: its commands run, its clients get their answers.

use std::fs;
use std::process::Command;

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
