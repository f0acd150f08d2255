//! The README and the guide: their commands run, in order, and say what the page says.
//!
//! A page is run in a directory of its own, with ports of its own. The word after the language of a
//! fenced block says what is done with it:
//!
//! - ` ```sh `: run as one script, which ends by itself with code 0.
//! - ` ```sh run `: one command that runs until the page ends; its line with `ready` is waited for.
//! - ` ```sh run=PORT `: the same, until it listens at that port.
//! - ` ```python script `: run as one script by the language's interpreter.
//! - ` ```LANGUAGE file=PATH `, ` append=PATH `: written, or appended, to that file.
//! - ` ```LANGUAGE output `: lines of the output of the block before; `…` stands for anything.
//! - ` ```sh install `: not run; CI installs the same packages.
//! - ` ```sh ci `: not run here; CI runs it.
//! - ` ```sh host `: changes the host, so it is only read; the verbs and flags in it exist.
//!
//! Other blocks are illustrations, and hold no commands.

mod block;
mod place;

use std::fs;

use self::block::{Block, Use, blocks};
use self::place::Place;
use crate::driver::Browser;
use crate::support::{available, root, succeeds};

/// Runs one page.
fn run_page(test: &str, path: &str) {
    if let Some(place) = run_blocks(test, path) {
        place.end();
    }
}

/// Runs the blocks of a page, unless a program is missing. What it has started runs on.
fn run_blocks(test: &str, path: &str) -> Option<Place> {
    let text = fs::read_to_string(root().join(path)).expect("a page");
    for what in needs(&text) {
        if !available(test, what, is_found(what)) {
            return None;
        }
    }
    let mut place = Place::new(path == "README.md");
    for block in blocks(&text) {
        place.take(path, &block);
    }
    Some(place)
}

/// Outside programs that a page names in its comment.
fn needs(text: &str) -> Vec<&str> {
    let line = text.lines().find_map(|line| line.strip_prefix("<!-- needs: "));
    let list = line.and_then(|line| line.strip_suffix(" -->"));
    list.map(|list| list.split(", ").collect()).unwrap_or_default()
}

/// Whether an outside program is there.
fn is_found(what: &str) -> bool {
    let python = |module: &str| succeeds("python3", &["-c", &format!("import {module}")]);
    let node = |module: &str| succeeds("node", &["-e", &format!("require('{module}')")]);
    match what {
        "python3" => succeeds("python3", &["--version"]),
        "python3 with websockets" => python("websockets.sync.client"),
        "python3 with grpcio" => python("grpc, grpc_tools.protoc"),
        "node" => succeeds("node", &["--version"]),
        "node with ws" => node("ws"),
        "node with @grpc/grpc-js" => node("@grpc/grpc-js") && node("@grpc/proto-loader"),
        "etcd" => succeeds("etcd", &["--version"]) && succeeds("etcdctl", &["version"]),
        "openssl" => succeeds("openssl", &["version"]),
        "curl" => succeeds("curl", &["--version"]),
        "nginx" => succeeds("nginx", &["-v"]),
        "haproxy" => succeeds("haproxy", &["-v"]),
        "envoy" => succeeds("envoy", &["--version"]),
        other => panic!("a page needs {other:?}, which is_found does not know"),
    }
}

/// One test a page, and one that no page is forgotten.
macro_rules! pages {
    ($($test:ident $path:literal),+ $(,)?) => {
        $(
            #[test]
            fn $test() {
                run_page(stringify!($test), $path);
            }
        )+

        const PATHS: &[&str] = &[$($path),+];
    };
}

pages! {
    the_commands_of_the_readme_run "README.md",
    the_commands_for_clients_run "src/guide/clients.md",
    the_commands_for_the_client_library_run "src/guide/client-library.md",
    the_commands_for_services_run "src/guide/services.md",
    the_commands_for_pushes_run "src/guide/push.md",
    the_commands_for_groups_run "src/guide/groups.md",
    the_commands_for_a_chat_room_run "src/guide/chat.md",
    the_commands_for_tokens_run "src/guide/tokens.md",
    the_commands_for_limits_run "src/guide/limits.md",
    the_commands_for_tenants_run "src/guide/tenants.md",
    the_commands_for_tls_run "src/guide/tls.md",
    the_commands_for_proxies_run "src/guide/proxies.md",
    the_commands_for_discovery_run "src/guide/discovery.md",
    the_commands_for_operating_run "src/guide/operating.md",
    the_commands_for_containers_run "src/guide/containers.md",
    the_commands_for_tuning_run "src/guide/tuning.md",
    the_commands_for_benchmarks_run "src/guide/benchmark.md",
    the_commands_for_troubleshooting_run "src/guide/troubleshooting.md",
    the_commands_of_the_architecture_run "src/guide/architecture.md",
    the_commands_for_configuration_run "src/guide/configuration.md",
    the_commands_for_endpoints_run "src/guide/endpoints.md",
    the_commands_for_metrics_run "src/guide/metrics.md",
    the_commands_for_events_run "src/guide/events.md",
    the_commands_for_codes_run "src/guide/codes.md",
}

#[test]
fn the_chat_room_of_the_guide_works_in_two_tabs() {
    let test = "the_chat_room_of_the_guide_works_in_two_tabs";
    let Some(program) = crate::try_page::found(test) else { return };
    let Some(place) = run_blocks(test, "src/guide/chat.md") else { return };
    let site = format!("http://127.0.0.1:{}/?name=", place.port("8080"));
    let mut browser = Browser::start(&program);
    browser.open(&format!("{site}ann"), "#lines", "ann: Is there cake?");
    let other = &mut browser.new_tab();
    browser.open(&format!("{site}bob"), "#lines", "ann: Is there cake?");
    browser.fill("#text", "Who asks?");
    browser.press_enter();
    browser.wait_for("#lines", "bob: Who asks?");
    browser.turn_to(other);
    browser.wait_for("#lines", "bob: Who asks?");
    browser.fill("#text", "<b>I</b>");
    browser.press_enter();
    browser.wait_for("#lines", "ann: <b>I</b>");
    browser.turn_to(other);
    browser.wait_for("#lines", "ann: Is there cake?\n\nbob: Who asks?\n\nann: <b>I</b>");
    // A page that is reloaded reads what was said.
    browser.open(&format!("{site}bob"), "#lines", "ann: <b>I</b>");
    assert_eq!(browser.complaints, Vec::<serde_json::Value>::new());
    place.end();
}

#[test]
fn every_page_of_the_guide_is_run() {
    let dir = fs::read_dir(root().join("src/guide")).expect("the guide's folder");
    let names = dir.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut pages: Vec<String> = names
        .filter(|name| name.ends_with(".md"))
        .map(|name| format!("src/guide/{name}"))
        .collect();
    pages.push("README.md".into());
    pages.sort();
    let mut run: Vec<&str> = PATHS.to_vec();
    run.sort_unstable();
    assert_eq!(pages, run);
}

/// Commands stand only in blocks whose use the test knows.
#[test]
fn every_block_of_commands_says_how_it_is_run() {
    let mut commands = 0;
    for path in PATHS {
        let text = fs::read_to_string(root().join(path)).expect("a page");
        for Block { language, usage, line, .. } in blocks(&text) {
            let shell = ["sh", "bash", "shell", "console", "zsh"].contains(&&*language);
            assert!(!shell || language == "sh", "{path}:{line}: {language}: write sh");
            if shell {
                assert!(usage != Use::Shown, "{path}:{line}");
                commands += 1;
            }
        }
    }
    assert!(commands > 50, "{commands} blocks of commands");
}

#[test]
fn the_readme_can_be_read_in_five_minutes() {
    let text = fs::read_to_string(root().join("README.md")).expect("there is a README");
    // Fenced blocks are read, too, but their words are not those of the text.
    let mut in_code = false;
    let prose = text.lines().filter(|line| {
        in_code ^= line.starts_with("```");
        !in_code && !line.starts_with("```")
    });
    let words: usize = prose.map(|line| line.split_whitespace().count()).sum();
    assert!((600..=1000).contains(&words), "{words} words of text");
}
