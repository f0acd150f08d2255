//! The client library for browsers and Node: its package, and groups of cases by Node. A group
//! prints a line for each of its cases, and says which of them failed.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::thread;

use serde_json::Value;

use crate::browser::{chromium, headless};
use crate::support::{BINARY, Checkout, PATIENCE, Running, available, root, run, succeeds};

const ALL: [&str; 3] = ["logic", "chat", "fight"];

/// Directory of the package.
const PACKAGE: &str = "src/control/page";

/// Node's WebSocket, or, before Node 22, the package that it is made of.
const HAS_WEBSOCKET: &str = "globalThis.WebSocket || require('undici').WebSocket.length";

/// Last line of a group.
const PASSED: &str = "all as it should be\n";

fn is_here(test: &str) -> bool {
    let found = succeeds("node", &["-e", HAS_WEBSOCKET]);
    available(test, "node 22, or node with undici (NODE_PATH)", found)
}

/// Runs a group of cases, with `args` behind its name.
fn cases(checkout: &Checkout, group: &str, args: &str) {
    let url = checkout.url();
    let line = format!("exec node tests/interop/library.mjs {group} {url} {args}");
    let said = run(&mut checkout.shell(&line));
    assert!(said.starts_with("ok ") && said.ends_with(PASSED), "{said}");
}

/// Puts `text` behind the checkout's configuration.
fn append(checkout: &Checkout, text: &str) {
    let path = checkout.path().join("shards/gateway.toml");
    let file = fs::read_to_string(&path).expect("it was written");
    fs::write(&path, file + text).expect("the directory is ours");
}

#[test]
fn the_library_is_small_and_its_types_are_strict() {
    if is_here("the_library_is_small_and_its_types_are_strict") {
        let checkout = Checkout::new();
        let gateway = checkout.gateway(&[], &[]);
        let served = format!("served=http://{}/client.js", checkout.address("8000"));
        cases(&checkout, "files", &served);
        assert_eq!(gateway.stop().code(), Some(0));
    }
}

#[test]
fn the_library_does_what_each_message_and_close_code_asks_for() {
    if is_here("the_library_does_what_each_message_and_close_code_asks_for") {
        cases(&Checkout::new(), "alone", "");
    }
}

#[test]
fn the_library_asks_and_is_answered() {
    if !is_here("the_library_asks_and_is_answered") {
        return;
    }
    let checkout = Checkout::new();
    let bytes = "\n[[route]]\nrange = [4000, 4999]\nservice = \"logic\"\npayload = \"bytes\"\n";
    append(&checkout, bytes);
    let gateway = checkout.gateway(&[], &ALL);
    cases(&checkout, "asks", "");
    assert_eq!(gateway.stop().code(), Some(0));
}

#[test]
fn the_library_signs_in_and_gets_a_new_token_when_it_needs_one() {
    if !is_here("the_library_signs_in_and_gets_a_new_token_when_it_needs_one") {
        return;
    }
    let checkout = Checkout::new();
    let path = checkout.path().join("shards/gateway.toml");
    let text = fs::read_to_string(&path).expect("it was written");
    let route = "range = [1000, 1999]\nservice = \"logic\"\n";
    assert!(text.contains(route), "the built-in configuration has it");
    fs::write(&path, text.replacen(route, &format!("{route}auth = \"user\"\n"), 1))
        .expect("the directory is ours");
    let key = "\n[[auth_key]]\nid = \"dev-1\"\nalgorithm = \"HS256\"\nsecret_file = \"secret\"\n";
    append(&checkout, key);
    fs::write(checkout.path().join("secret"), "0123456789abcdef".repeat(4))
        .expect("the directory is ours");
    let env = [("SHARDGATE__AUTH__MODE", "jwt"), ("SHARDGATE__AUTH__LEEWAY_S", "0")];
    let gateway = checkout.gateway(&env, &["logic"]);
    let token = |lifetime_s: u32| {
        let line = format!("{BINARY} gen token --user alice --lifetime-s {lifetime_s}");
        run(checkout.shell(&line).envs(env)).trim().to_owned()
    };
    let long = token(600);
    cases(&checkout, "tokens", &format!("alice={long} short={}", token(6)));
    cases(&checkout, "survives", &format!("token={long}"));
    assert_eq!(gateway.stop().code(), Some(0));
}

#[test]
fn every_request_is_answered_once_however_often_the_line_breaks() {
    if !is_here("every_request_is_answered_once_however_often_the_line_breaks") {
        return;
    }
    let checkout = Checkout::new();
    let gateway = checkout.gateway(&[], &ALL);
    cases(&checkout, "survives", "");
    assert_eq!(gateway.stop().code(), Some(0));
}

/// Groups of the cases about them, beside those of the built-in configuration.
const GROUPS: &str = "
[[group]]
name = \"last:*\"
join = \"anybody\"
publish = \"members\"
keep = \"last\"

[[group]]
name = \"closed:*\"
";

#[test]
fn the_library_is_in_groups_and_misses_no_push() {
    if !is_here("the_library_is_in_groups_and_misses_no_push") {
        return;
    }
    let checkout = Checkout::new();
    append(&checkout, GROUPS);
    let gateway = checkout.gateway(&[], &ALL);
    cases(&checkout, "rooms", "");
    assert_eq!(gateway.stop().code(), Some(0));
}

#[test]
fn the_library_says_what_the_gateway_has_forgotten() {
    if !is_here("the_library_says_what_the_gateway_has_forgotten") {
        return;
    }
    let ttl = "SHARDGATE__SESSION__TTL_MS";
    let short = [(ttl, "3000"), ("SHARDGATE__SESSION__KEPT_ITEMS_MAX", "4")];
    for (group, env) in [("forgets", &short[..]), ("without", &[(ttl, "0")])] {
        let checkout = Checkout::new();
        let gateway = checkout.gateway(env, &ALL);
        cases(&checkout, group, "");
        assert_eq!(gateway.stop().code(), Some(0));
    }
}

#[test]
fn the_library_gets_over_a_restart_of_the_gateway() {
    if !is_here("the_library_gets_over_a_restart_of_the_gateway") {
        return;
    }
    let checkout = Checkout::new();
    let gateway = checkout.gateway(&[], &ALL);
    let line = format!("exec node tests/interop/library.mjs restarts {}", checkout.url());
    let mut client = Running::start(&mut checkout.shell(&line), "restart the gateway");
    assert_eq!(gateway.stop().code(), Some(0));
    let gateway = checkout.gateway(&[], &ALL);
    client.line_with("ok a_restart_is_told_and_got_over");
    client.line_with(PASSED.trim());
    assert_eq!(gateway.stop().code(), Some(0));
}

#[test]
fn the_package_holds_the_library_and_its_types_alone() {
    let test = "the_package_holds_the_library_and_its_types_alone";
    if !available(test, "npm", succeeds("npm", &["--version"])) {
        return;
    }
    let checkout = Checkout::new();
    let from = root().join(PACKAGE);
    // npm keeps its cache and its log in the home directory, and asks a registry for its updates.
    let mut command = checkout.shell("exec npm pack --json --offline \"$PACKAGE\"");
    command.env("PACKAGE", &from).env("HOME", checkout.path());
    let said: Value =
        serde_json::from_str(&run(command.env("npm_config_update_notifier", "false")))
            .expect("npm says it in JSON");
    let files = said[0]["files"].as_array().expect("a list of files");
    let mut names: Vec<&str> = files.iter().filter_map(|file| file["path"].as_str()).collect();
    names.retain(|name| *name != "README.md");
    names.sort_unstable();
    assert_eq!(names, ["package.json", "shardgate.d.ts", "shardgate.js"]);
    assert!(checkout.path().join(said[0]["filename"].as_str().expect("a name")).is_file());
    // A program that installed it finds it by its name.
    let modules = checkout.path().join("node_modules/shardgate");
    fs::create_dir_all(&modules).expect("the directory is ours");
    copy(&from, &modules, &names);
    fs::write(checkout.path().join("use.mjs"), USE).expect("the directory is ours");
    assert_eq!(run(&mut checkout.shell("exec node use.mjs")).trim(), "idle");
    assert_eq!(said[0]["version"], env!("CARGO_PKG_VERSION"), "one version for both");
}

/// A program that uses the package.
const USE: &str =
    "import { Gateway } from \"shardgate\";\nconsole.log(new Gateway(\"ws://host/ws\").state);\n";

fn copy(from: &Path, to: &Path, names: &[&str]) {
    for name in names {
        fs::copy(from.join(name), to.join(name)).expect("a file of the package");
    }
}

/// A page that counts, reloads itself, and counts again.
const PAGE: &str = r#"<!doctype html>
<script type="module">
  import { Gateway } from "/shardgate.js";
  const outcomes = [];
  const url = decodeURIComponent(location.search.slice(1));
  const gate = new Gateway(url, { persist: sessionStorage });
  for (const event of ["resumed", "gap", "lost"]) gate.on(event, () => outcomes.push(event));
  await gate.open();
  const { count } = await gate.request(1001, { count: true });
  const stored = sessionStorage.length;
  await fetch("/told?" + [count, gate.session.id, stored, ...outcomes].join("+"));
  if (count === 1) location.reload();
</script>
"#;

/// Serves the page and the library; returns the server's address, and what the page says.
fn site() -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let origin = format!("http://{}", listener.local_addr().expect("it is bound"));
    let library = fs::read_to_string(root().join(PACKAGE).join("shardgate.js")).expect("a text");
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            // The browser opens connections that it may not use.
            let Some(request) = lines.next() else { continue };
            lines.find(String::is_empty);
            let target = request.split(' ').nth(1).unwrap_or_default();
            let (kind, body) = match target.split_once('?').map_or(target, |(path, _)| path) {
                "/" => ("text/html", PAGE),
                "/shardgate.js" => ("text/javascript", &*library),
                _ => ("text/plain", ""),
            };
            let _ = write!(
                &stream,
                "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            );
            if let Some(what) = target.strip_prefix("/told?") {
                // A test that has ended reads no more.
                let _ = tell.send(what.to_owned());
            }
        }
    });
    (origin, told)
}

#[test]
fn a_page_that_is_reloaded_goes_on_with_its_session() {
    let program = chromium();
    let test = "a_page_that_is_reloaded_goes_on_with_its_session";
    available(test, "chromium", program.is_some());
    let Some(program) = program else { return };
    let (origin, told) = site();
    let checkout = Checkout::new();
    let origins = [("SHARDGATE__ORIGINS", &*format!("[\"{origin}\"]"))];
    let gateway = checkout.gateway(&origins, &["logic"]);
    let profile = tempfile::tempdir().expect("a directory");
    let page = format!("'{origin}/?{}'", checkout.url());
    let line = headless(&program, profile.path(), &page);
    let browser = Running::start(&mut checkout.shell(&line), "");
    let next =
        || told.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("{e}: {}", browser.errors()));
    let first = next();
    let session = first.strip_prefix("1+").and_then(|rest| rest.strip_suffix("+0"));
    let session = session.unwrap_or_else(|| panic!("a first visit, nothing stored: {first}"));
    assert_eq!(next(), format!("2+{session}+0+resumed"));
    drop(browser);
    assert_eq!(gateway.stop().code(), Some(0));
}
