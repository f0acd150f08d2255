//! The directory in which a page is run, and what runs in it.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use shardgate::config::load::{DEFAULT_TOML, GATEWAY_TOML};
use tempfile::TempDir;

use super::block::{Block, Use};
use crate::support::{BINARY, Ports, Running, eventually, get, root, run, shell};

/// Ports that pages use; each has a free one in its place here.
const PORTS: [&str; 17] = [
    "9000", "8000", "50001", "50002", "50003", "50010", "50011", "9443", "7000", "2379", "2380",
    "9090", "8080", "8001", "9081", "9082", "9083",
];
/// How the README starts the program. Here it is built already; cargo would build it anew,
/// optimised, in the middle of a test.
const CARGO_RUN: &str = "cargo run --release";
/// Longest wait for the instances to be connected; one that a page has not started never is.
const CONNECTED_WITHIN: Duration = Duration::from_secs(3);

/// The directory of a page.
pub struct Place {
    dir: TempDir,
    ports: Ports,
    /// Commands that run until the page ends, the gateway among them.
    running: Vec<(String, Running)>,
    /// Output of the last block that ran to its end.
    said: String,
}

impl Place {
    /// Makes the directory: empty, or like a checkout of the repository.
    pub fn new(is_checkout: bool) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let place =
            Self { dir, ports: Ports::new(&PORTS), running: Vec::new(), said: String::new() };
        let hidden = place.hidden();
        fs::create_dir_all(hidden.join("bin")).expect("a directory");
        symlink(BINARY, hidden.join("bin/shardgate")).expect("a link");
        place.write_configuration(&hidden.join("shards"));
        if is_checkout {
            place.write_configuration(&place.path().join("shards"));
            symlink(root().join("proto"), place.path().join("proto")).expect("a link");
        }
        // Node looks for the packages of modules there, and not in NODE_PATH.
        if let Some(modules) = std::env::var_os("NODE_PATH") {
            symlink(modules, place.path().join("node_modules")).expect("a link");
        }
        // The test's own packages stand for those of the page's virtual environment.
        let activate = place.path().join("venv/bin/activate");
        fs::create_dir_all(activate.parent().expect("it has one")).expect("a directory");
        fs::write(activate, "").expect("the directory is ours");
        place
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Folder for what no page sees.
    fn hidden(&self) -> PathBuf {
        self.path().join(".test")
    }

    /// Writes the built-in configuration, with the ports of this place, into `dir`.
    fn write_configuration(&self, dir: &Path) {
        fs::create_dir_all(dir).expect("a directory");
        for (name, text) in [("gateway.toml", GATEWAY_TOML), ("default.toml", DEFAULT_TOML)] {
            fs::write(dir.join(name), self.here(text)).expect("the directory is ours");
        }
    }

    /// `text` with the ports of this place.
    fn here(&self, text: &str) -> String {
        self.ports.here(text)
    }

    /// Port in the place of `port`.
    pub fn port(&self, port: &str) -> u16 {
        self.ports.of(port)
    }

    /// Does with a block of the page at `path` what its use says.
    pub fn take(&mut self, path: &str, block: &Block) {
        let at = format!("{path}:{}", block.line);
        let text = self.here(&block.text);
        match &block.usage {
            Use::Shell => {
                self.await_connections();
                self.said = run(&mut self.shell(&format!("set -e\n{}", program(&text))));
                self.move_ports();
            }
            Use::Run => self.start(&at, program(&text).trim(), "ready"),
            Use::Serve(port) => {
                self.start(&at, text.trim(), "");
                let address: SocketAddr = ([127, 0, 0, 1], self.ports.of(port)).into();
                eventually("it listens", || TcpStream::connect(address).is_ok());
            }
            Use::Script => {
                self.await_connections();
                let interpreter = match &*block.language {
                    "python" => "python3",
                    "js" => "node",
                    other => panic!("{at}: no interpreter of {other} is known"),
                };
                fs::write(self.hidden().join("script"), text).expect("the directory is ours");
                self.said = run(&mut self.shell(&format!("{interpreter} .test/script")));
            }
            Use::File(name) => self.write(name, &text, false),
            Use::Append(name) => self.write(name, &text, true),
            Use::Output => self.compare(&at, &text),
            Use::Install => is_installed_by_ci(&at, &text),
            Use::Ci => is_run_by_ci(&at, &text),
            Use::Host => self.read_only(&at, &text),
            Use::Shown => {}
        }
    }

    fn write(&self, name: &str, text: &str, append: bool) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().expect("a file is in a directory")).expect("it is ours");
        let mut file = fs::OpenOptions::new();
        let mut file = file.create(true).write(true).append(append).truncate(!append).open(path);
        let file = file.as_mut().expect("the directory is ours");
        file.write_all(text.as_bytes()).expect("the directory is ours");
    }

    /// Gives files of configuration that a command has made the ports of this place.
    fn move_ports(&self) {
        for name in ["shards/gateway.toml", "shards/default.toml"] {
            let path = self.path().join(name);
            if let Ok(text) = fs::read_to_string(&path) {
                fs::write(&path, self.here(&text)).expect("the directory is ours");
            }
        }
    }

    /// Makes a shell command in this directory.
    fn shell(&self, script: &str) -> Command {
        let mut command = shell(script, self.path(), &self.hidden());
        let mut path = OsString::from(self.hidden().join("bin"));
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        command.env("PATH", path).env("PYTHONUNBUFFERED", "1");
        command.envs(self.addresses());
        command
    }

    /// Variables that move what the page's configuration leaves at its default, or sets to just
    /// that, to the ports of this place.
    fn addresses(&self) -> Vec<(&'static str, String)> {
        let Ok(text) = fs::read_to_string(self.path().join("shards/gateway.toml")) else {
            let dir = self.hidden().join("shards");
            return vec![("SHARDGATE_CONFIG", dir.to_string_lossy().into_owned())];
        };
        let table: toml::Table = text.parse().unwrap_or_default();
        let differs = |section: &str, key: &str, from: &str| {
            let value = match section {
                "" => table.get(key),
                section => table.get(section).and_then(|section| section.get(key)),
            };
            value.is_some_and(|value| value.as_str() != Some(from))
        };
        let local = |port: &str| format!("127.0.0.1:{}", self.ports.of(port));
        let demo =
            ["50001", "50002", "50003"].map(|port| format!("\"{}\"", local(port))).join(", ");
        let all = [
            ("SHARDGATE__LISTEN", "", "listen", local("9000")),
            ("SHARDGATE__ADMIN__LISTEN", "admin", "listen", local("8000")),
            ("SHARDGATE__DEMO__ADDRESSES", "demo", "addresses", format!("[{demo}]")),
        ];
        let moved = all.into_iter().filter(|(_, section, key, at)| !differs(section, key, at));
        moved.map(|(variable, _, _, at)| (variable, at)).collect()
    }

    /// Starts a command that runs until the page ends, and waits for its line with `ready`.
    fn start(&mut self, at: &str, line: &str, ready: &str) {
        let first = line.split(' ').next().unwrap_or_default();
        let exec = if first.contains('=') { "exec env" } else { "exec" };
        let mut command = self.shell(&format!("{exec} {line} 2>&1"));
        let running = Running::start(&mut command, ready);
        self.running.push((format!("{at}: {line}"), running));
    }

    /// Waits until the gateway of the page, if it runs and shows it, is connected to its instances,
    /// as it would be by the time at which a reader has typed the next command.
    fn await_connections(&self) {
        let admin = ([127, 0, 0, 1], self.ports.of("8000")).into();
        let until = Instant::now() + CONNECTED_WITHIN;
        while TcpStream::connect(admin).is_ok() && Instant::now() < until {
            let Some(stats) = get_json_if_plain(admin) else { return };
            let shards = stats["shards"].as_array().map_or(0, Vec::len);
            let services = stats["services"].as_object().into_iter().flatten();
            let mut instances =
                services.flat_map(|(_, service)| service["instances"].as_array()).flatten();
            if shards > 0 && instances.all(|instance| instance["connected"] == shards) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Compares the lines of a block with the output of the command before it.
    fn compare(&self, at: &str, wanted: &str) {
        for line in wanted.lines().filter(|line| !line.trim().is_empty()) {
            let found = self.said.lines().any(|said| matches(line.trim(), said.trim()));
            assert!(found, "{at}: no line like\n{line}\nin\n{}", self.said);
        }
    }

    /// Checks commands that are not run: the shell can parse them, and every verb and flag of
    /// shardgate in them exists.
    fn read_only(&self, at: &str, text: &str) {
        let mut parse = Command::new("sh");
        parse.arg("-n").arg("-c").arg(text).stdin(Stdio::null());
        assert!(parse.status().is_ok_and(|status| status.success()), "{at}");
        let joined = text.replace("\\\n", " ");
        for line in joined.lines().map(|line| line.split(" #").next().unwrap_or_default()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let called = |word: &&str| *word == "shardgate" || word.ends_with("/shardgate");
            let Some(at_word) = words.iter().position(called) else { continue };
            let args: Vec<&str> = words[at_word + 1..]
                .iter()
                .take_while(|w| !w.starts_with(['>', '|']))
                .copied()
                .collect();
            let verbs = args.iter().take_while(|arg| arg.chars().all(|c| c.is_ascii_lowercase()));
            let verbs: Vec<&str> = verbs.copied().collect();
            let help = run(Command::new(BINARY).args(&verbs).arg("--help"));
            for flag in args.iter().filter(|arg| arg.starts_with("--")) {
                let name = flag.split('=').next().unwrap_or(flag);
                assert!(help.contains(name), "{at}: {line}: no {name} in\n{help}");
            }
        }
    }

    /// Stops what runs, the last first.
    pub fn end(mut self) {
        while let Some((what, running)) = self.running.pop() {
            let status = running.stop();
            let is_gateway = what.contains(": shardgate");
            assert!(!is_gateway || status.code() == Some(0), "{what}: {status}");
        }
    }
}

/// Commands with the program that is tested in the place of cargo's.
fn program(text: &str) -> String {
    text.replace(&format!("{CARGO_RUN} --"), "shardgate").replace(CARGO_RUN, "shardgate")
}

/// The statistics, if the admin endpoint speaks plain HTTP and answers with JSON.
fn get_json_if_plain(admin: SocketAddr) -> Option<serde_json::Value> {
    let response = get(admin, "/stats").ok()?;
    serde_json::from_str(response.split_once("\r\n\r\n")?.1).ok()
}

/// Whether `said` is `wanted`, in which `…` stands for anything.
fn matches(wanted: &str, said: &str) -> bool {
    let mut parts = wanted.split('…');
    let Some(mut rest) = parts.next().and_then(|first| said.strip_prefix(first)) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    rest.ends_with(last)
}

/// Checks that each command is a line of CI's script.
fn is_run_by_ci(at: &str, text: &str) {
    let ci = fs::read_to_string(root().join(".ci/run")).expect("there is a .ci/run");
    for command in text.lines() {
        assert!(ci.lines().any(|line| line.trim() == command), "{at}: CI does not run {command}");
    }
}

/// Checks that CI installs each package that is named.
fn is_installed_by_ci(at: &str, text: &str) {
    let ci = fs::read_to_string(root().join(".ci/run")).expect("there is a .ci/run");
    let installs = text.lines().filter_map(|line| {
        line.split_once("pip install ").or_else(|| line.split_once("npm install "))
    });
    let mut checked = 0;
    for (_, packages) in installs {
        for package in packages.split_whitespace().filter(|word| !word.starts_with('-')) {
            assert!(ci.contains(package), "{at}: .ci/run does not install {package}");
            checked += 1;
        }
    }
    assert!(checked > 0, "{at}: it installs nothing");
}
