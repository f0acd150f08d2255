//! The built gateway as a child process in a directory of its own, and helpers of the tests.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

/// Path of the built program.
pub const BINARY: &str = env!("CARGO_BIN_EXE_shardgate");
/// Longest wait for anything here: a debug build on two busy cores answers in well under a second,
/// Chromium's first start takes a few.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Directory of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Whether a test of an outside program can run. If not, it says so in one line, past the capture
/// of the test's output; under SHARDGATE_REQUIRE_EXTERNAL=1 the test fails instead.
pub fn available(test: &str, what: &str, found: bool) -> bool {
    if !found {
        let required = std::env::var("SHARDGATE_REQUIRE_EXTERNAL").is_ok_and(|v| v == "1");
        assert!(
            !required,
            "{test} needs {what}, and SHARDGATE_REQUIRE_EXTERNAL=1 forbids skipping"
        );
        writeln!(io::stderr(), "skipped: {test} needs {what}").expect("stderr is open");
    }
    found
}

/// Whether `program` with `args` runs and succeeds.
pub fn succeeds(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// A free port, below those of outgoing connections, so that none of these takes it before it is
/// used; each is given once in this process, from a start that depends on the process.
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 200) as u16 * 100;
    (0..COUNT)
        .map(|_| FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT)
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .expect("20,000 ports are not all taken")
}

/// Ports that texts name, each with the free port in its place.
pub struct Ports(Vec<(&'static str, u16)>);

impl Ports {
    /// Chooses a free port for each of `named`.
    pub fn new(named: &[&'static str]) -> Self {
        Self(named.iter().map(|port| (*port, free_port())).collect())
    }

    /// Port in the place of `port`.
    pub fn of(&self, port: &str) -> u16 {
        self.0.iter().find(|(name, _)| *name == port).expect("it was named").1
    }

    /// `text` with the free ports. A part of a longer number is no port, and neither is a value in
    /// JSON (`"msg_id":7000`).
    pub fn here(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (port, own)| {
            let text = text.replace(&format!("admin-{port}."), &format!("admin-{own}."));
            // Envoy's own key, and the argument of Python's web server.
            let text =
                text.replace(&format!("port_value: {port} "), &format!("port_value: {own} "));
            let text =
                text.replace(&format!("http.server {port} "), &format!("http.server {own} "));
            let mut out = String::new();
            let mut rest = &*text;
            while let Some((before, after)) = rest.split_once(&format!(":{port}")) {
                out += before;
                let whole =
                    !after.starts_with(|c: char| c.is_ascii_digit()) && !before.ends_with('"');
                out += &if whole { format!(":{own}") } else { format!(":{port}") };
                rest = after;
            }
            out + rest
        })
    }
}

/// Makes a shell command in `dir`. The admin token goes to `runtime`, and no variable of the test's
/// environment changes the configuration.
pub fn shell(script: &str, dir: &Path, runtime: &Path) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).current_dir(dir);
    command.env("XDG_RUNTIME_DIR", runtime).env_remove("RUNTIME_DIRECTORY");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SHARDGATE_")) {
        command.env_remove(name);
    }
    command
}

/// A directory that looks like the checkout, with its configuration on ports of its own.
pub struct Checkout {
    dir: TempDir,
    ports: Ports,
}

impl Checkout {
    /// Makes a directory with free ports.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["tests", "proto"] {
            symlink(root().join(name), dir.path().join(name)).expect("a link");
        }
        let ports = Ports::new(&["9000", "8000", "50001", "50002", "50003"]);
        let checkout = Self { dir, ports };
        fs::create_dir(checkout.path().join("shards")).expect("a directory");
        for name in ["gateway.toml", "default.toml"] {
            let text = fs::read_to_string(root().join("shards").join(name)).expect("in the tree");
            fs::write(checkout.path().join("shards").join(name), checkout.here(&text))
                .expect("the directory is ours");
        }
        checkout
    }

    /// Path of the directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// `text` with the ports of this checkout.
    pub fn here(&self, text: &str) -> String {
        self.ports.here(text)
    }

    /// Address in the place of 127.0.0.1:`port`.
    pub fn address(&self, port: &str) -> SocketAddr {
        ([127, 0, 0, 1], self.ports.of(port)).into()
    }

    /// Makes a shell command in this directory.
    pub fn shell(&self, line: &str) -> Command {
        shell(line, self.path(), self.path())
    }

    /// Starts the gateway as configured here, with `env` over it; it is ready and connected to the
    /// instances of the services `wanted`.
    pub fn gateway(&self, env: &[(&str, &str)], wanted: &[&str]) -> Running {
        let mut command = self.shell(&format!("exec {BINARY}"));
        let gateway = Running::start(command.envs(env.iter().copied()), "ready: ws://");
        self.wait_connected(wanted);
        gateway
    }

    /// Waits until every shard is connected to all instances of the services `wanted`.
    pub fn wait_connected(&self, wanted: &[&str]) {
        eventually("all shards are connected", || {
            let stats = get_json(self.address("8000"), "/stats");
            let shards = stats["shards"].as_array().map_or(0, Vec::len);
            wanted.iter().all(|service| {
                let instances = stats["services"][service]["instances"].as_array();
                instances.is_some_and(|all| all.iter().all(|i| i["connected"] == shards))
            })
        });
    }

    /// URL of the gateway of this checkout.
    pub fn url(&self) -> String {
        self.here("ws://127.0.0.1:9000/ws")
    }
}

/// A gateway of one file, on ports of its own.
pub struct OneFile {
    /// Address for clients.
    pub ws: SocketAddr,
    /// Address of the admin endpoint.
    pub admin: SocketAddr,
    /// The gateway; it is ready.
    pub process: Running,
    _dir: TempDir,
}

impl OneFile {
    /// Starts a gateway whose `gateway.toml` is `text`.
    pub fn start(text: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("gateway.toml"), text).expect("the directory is ours");
        let [ws, admin] =
            [free_port(), free_port()].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let mut command = Command::new(BINARY);
        command.arg("--config").arg(dir.path());
        command.args(["--listen", &ws.to_string(), "--admin", &admin.to_string()]);
        let process = Running::start(&mut command, "ready: ws://");
        Self { ws, admin, process, _dir: dir }
    }
}

/// A child in a process group of its own; dropping the value ends it.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    errors: PathBuf,
    _dir: TempDir,
}

impl Running {
    /// Starts `command`, and waits for a line on its stdout that contains `ready`.
    pub fn start(command: &mut Command, ready: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let errors = dir.path().join("stderr");
        let stderr = fs::File::create(&errors).expect("the directory is ours");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).process_group(0);
        let mut child = command.spawn().expect("the program is there");
        let stdout = child.stdout.take().expect("piped");
        let (line, lines) = mpsc::channel();
        thread::spawn(move || {
            // A test that ended reads no more.
            BufReader::new(stdout).lines().map_while(Result::ok).all(|l| line.send(l).is_ok());
        });
        let mut running = Self { child, lines, errors, _dir: dir };
        if !ready.is_empty() {
            running.line_with(ready);
        }
        running
    }

    /// Waits for the next line on stdout that contains `text`.
    pub fn line_with(&mut self, text: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(text) => return line,
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => panic!("no {text:?}; {}", self.errors()),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("ended without {text:?}; {}", self.errors())
                }
            }
        }
    }

    /// Text on stderr so far.
    pub fn errors(&self) -> String {
        fs::read_to_string(&self.errors).unwrap_or_default()
    }

    /// Asks the child to stop, and waits for that.
    pub fn stop(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status;
            }
            assert!(Instant::now() < until, "SIGTERM does not stop it; {}", self.errors());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends `signal`, if the child still runs.
    pub fn signal(&mut self, signal: Signal) {
        // A child that ended is not waited for yet, so its number is still its own.
        if self.child.try_wait().expect("it is our child").is_none() {
            kill_process_group(Pid::from_child(&self.child), signal).expect("our own group");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().expect("it is our child");
        if thread::panicking() {
            eprintln!("stderr of a child:\n{}", self.errors());
        }
    }
}

/// Runs `command` to its end within [`PATIENCE`]; returns its output, and fails if it failed.
pub fn run(command: &mut Command) -> String {
    let mut running = Running::start(command, "");
    let mut output = String::new();
    let until = Instant::now() + PATIENCE;
    loop {
        match running.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => output += &(line + "\n"),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => panic!("no end; so far:\n{output}"),
        }
    }
    let status = running.child.wait().expect("it is our child");
    assert!(status.success(), "{command:?}: {status}\n{output}{}", running.errors());
    output
}

/// Waits until `holds` is true.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "it never came true that {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Sends a GET of `path`; returns the JSON.
pub fn get_json(address: SocketAddr, path: &str) -> serde_json::Value {
    let response = get(address, path).expect("the admin endpoint listens, answers and closes");
    let (_, body) = response.split_once("\r\n\r\n").expect("a header");
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {response}"))
}

/// Sends a GET of `path`; returns the whole answer.
pub fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n")?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    Ok(response)
}
