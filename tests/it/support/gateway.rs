//! The gateway as a child process: configuration written, ready line read, admin endpoint asked.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::Value;
use tempfile::TempDir;

use super::{PATIENCE, eventually};

/// Files of a configuration directory.
#[derive(Clone, Default)]
pub struct Config {
    keys: String,
    tables: String,
    shard: String,
    files: Vec<(String, String)>,
    shards: Option<usize>,
    tls_only: bool,
}

impl Config {
    /// A configuration of one shard, without demo services and services.
    pub fn new() -> Self {
        Self::default().key("demo.enabled = false").key("log.filter = \"info\"")
    }

    /// Adds a line to gateway.toml, outside of tables: `stop.grace_ms = 5`.
    pub fn key(mut self, line: &str) -> Self {
        writeln!(self.keys, "{line}").expect("a string takes it");
        self
    }

    /// Adds a line to default.toml, with the whole key: `conn.unanswered_max = 4`.
    pub fn shard(mut self, line: &str) -> Self {
        writeln!(self.shard, "{line}").expect("a string takes it");
        self
    }

    /// Removes the listener without TLS.
    pub fn tls_only(mut self) -> Self {
        self.tls_only = true;
        self
    }

    /// Sets the number of shards.
    pub fn shards(mut self, count: usize) -> Self {
        self.shards = Some(count);
        self
    }

    /// Adds another file.
    pub fn file(mut self, name: &str, text: &str) -> Self {
        self.files.push((name.into(), text.into()));
        self
    }

    /// Adds a service in mode batch.
    pub fn service(self, name: &str, instances: &[(&str, SocketAddr)]) -> Self {
        self.service_of("batch", name, instances)
    }

    /// Adds a service in a mode.
    pub fn service_of(self, mode: &str, name: &str, instances: &[(&str, SocketAddr)]) -> Self {
        self.service_with(&format!("mode = \"{mode}\""), name, instances)
    }

    /// Adds a service with further lines.
    pub fn service_with(
        mut self,
        lines: &str,
        name: &str,
        instances: &[(&str, SocketAddr)],
    ) -> Self {
        let list: Vec<String> = instances
            .iter()
            .map(|(id, address)| format!("{{ id = \"{id}\", address = \"{address}\" }}"))
            .collect();
        let list = list.join(", ");
        write!(self.tables, "[[service]]\nname = \"{name}\"\n{lines}\ninstances = [{list}]\n")
            .expect("a string takes it");
        self
    }

    /// Adds a route of `first` to `first + 999`, with further lines.
    pub fn route(mut self, first: u32, service: &str, lines: &str) -> Self {
        let last = first + 999;
        write!(
            self.tables,
            "[[route]]\nrange = [{first}, {last}]\nservice = \"{service}\"\n{lines}\n"
        )
        .expect("a string takes it");
        self
    }

    /// Writes the files.
    pub fn write(&self) -> TempDir {
        let dir = tempfile::tempdir().expect("a directory for temporary files");
        // Some gateways run as another user.
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).expect("our own directory");
        self.write_into(dir.path());
        dir
    }

    fn write_into(&self, dir: &Path) {
        let gateway = format!("{}\n{}", self.keys, self.tables);
        let own = [("gateway.toml", &gateway), ("default.toml", &self.shard)];
        let more = self.files.iter().map(|(name, text)| (name.as_str(), text));
        for (name, text) in own.into_iter().chain(more) {
            std::fs::write(dir.join(name), text).expect("written");
        }
    }
}

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The program, to be configured.
fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shardgate"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SHARDGATE") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Makes `sh` run the command after `before`, a line of shell: for limits of the process. With
/// `by`, another program runs that shell.
pub fn under(command: &mut Command, by: &[&str], before: &str) {
    let script = format!("{before} && exec \"$0\" \"$@\"");
    let words: Vec<&str> = by.iter().copied().chain(["sh", "-c", &script]).collect();
    let mut whole = Command::new(words[0]);
    whole.args(&words[1..]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => whole.env(name, value),
            None => whole.env_remove(name),
        };
    }
    whole.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    *command = whole;
}

/// Runs the program to its end: for starts that must fail.
pub fn run(args: &[&str], change: impl FnOnce(&mut Command)) -> Finished {
    let mut command = command();
    command.args(args);
    change(&mut command);
    let mut child = command.spawn().expect("the program starts");
    let read = |mut from: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut text = String::new();
            from.read_to_string(&mut text).map(|_| text).expect("UTF-8")
        })
    };
    let stdout = read(Box::new(child.stdout.take().expect("piped")));
    let stderr = read(Box::new(child.stderr.take().expect("piped")));
    let until = std::time::Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child") {
            break status;
        }
        if std::time::Instant::now() > until {
            child.kill().expect("a child");
            child.wait().expect("a child");
            panic!("it runs on: {args:?}");
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    };
    let text = |thread: JoinHandle<String>| thread.join().expect("it reads");
    Finished { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

/// A gateway that serves. Killed when dropped.
pub struct Gateway {
    child: Child,
    /// Address for clients: without TLS if that is possible.
    pub ws: SocketAddr,
    /// Address for clients with TLS, if that is possible.
    pub wss: Option<SocketAddr>,
    /// Address of the admin endpoint.
    pub admin: SocketAddr,
    /// Number of shards, by the ready line.
    pub shards: usize,
    log: Arc<Mutex<String>>,
    /// Lines of stdout after the first.
    stdout: Mutex<Receiver<String>>,
    dir: TempDir,
}

impl Gateway {
    /// Starts a gateway and waits until it is ready.
    #[track_caller]
    pub fn start(config: &Config) -> Self {
        Self::start_with(config, |_| ())
    }

    /// Starts a gateway with a change to its command.
    #[track_caller]
    pub fn start_with(config: &Config, change: impl FnOnce(&mut Command)) -> Self {
        let dir = config.write();
        let mut command = command();
        // The admin token goes there.
        command.env("XDG_RUNTIME_DIR", dir.path()).env_remove("RUNTIME_DIRECTORY");
        change(&mut command);
        command.arg("--config").arg(dir.path());
        let plain = if config.tls_only { "" } else { "127.0.0.1:0" };
        command.args(["--listen", plain, "--admin", "127.0.0.1:0"]);
        match config.shards {
            Some(count) => command.args(["--shards", &count.to_string()]),
            None => command.args(["--core", &next_core().to_string()]),
        };
        let mut child = command.spawn().expect("the program starts");
        let log = child.stderr.take().map_or_else(Default::default, follow);
        let ready = lines_of(child.stdout.take().expect("piped"));
        let Ok(line) = ready.recv_timeout(PATIENCE) else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("not ready; stderr:\n{}", log.lock().expect("not poisoned"));
        };
        // shardgate ready: ws://127.0.0.1:1/ws wss://127.0.0.1:3/ws admin http://… shards 1
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["shardgate", "ready:", urls @ .., "admin", admin, "shards", shards] = &words[..]
        else {
            panic!("not the ready line: {line}");
        };
        let address = |url: &str| {
            let host = url.split('/').nth(2).expect("a URL");
            host.parse::<SocketAddr>().expect("an address")
        };
        let of = |scheme| urls.iter().find(|url| url.starts_with(scheme)).map(|url| address(url));
        let (wss, admin) = (of("wss://"), address(admin));
        let ws = of("ws://").or(wss).expect("a listener");
        let shards = shards.parse().expect("a number");
        Self { child, ws, wss, admin, shards, log, stdout: Mutex::new(ready), dir }
    }

    /// Versions of the published state by shard, oldest first.
    #[track_caller]
    pub fn versions(&self) -> Vec<u64> {
        let stats = self.admin_get("/stats");
        let by_shard = stats["versions"]["snapshot_by_shard"].as_object().expect("an object");
        let mut versions: Vec<u64> = by_shard.values().filter_map(Value::as_u64).collect();
        versions.sort_unstable();
        versions
    }

    /// The next line on stdout, after the ready line.
    #[track_caller]
    pub fn next_line(&self) -> String {
        let lines = self.stdout.lock().expect("not poisoned");
        lines.recv_timeout(PATIENCE).expect("another line on stdout")
    }

    /// Log so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("not poisoned").clone()
    }

    /// Directory of the gateway: the configuration, and `shardgate/admin-<port>.token`.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Replaces the files of the configuration.
    pub fn rewrite(&self, config: &Config) {
        config.write_into(self.dir.path());
    }

    /// Sends a request with these header lines to the admin endpoint: status code and body.
    #[track_caller]
    pub fn request(&self, line: &str, headers: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.admin).expect("the admin endpoint");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let length = body.len();
        write!(
            stream,
            "{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\
             Content-Length: {length}\r\n\r\n{body}"
        )
        .expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        let status = head.split(' ').nth(1).expect("a status line").parse().expect("a code");
        (status, body.to_owned())
    }

    /// Sends a GET to the admin endpoint: status code and JSON.
    #[track_caller]
    pub fn admin(&self, path: &str) -> (u16, Value) {
        let (status, body) = self.request(&format!("GET {path}"), "", "");
        (status, serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e} in {body}")))
    }

    /// The token that the gateway made at its start.
    #[track_caller]
    pub fn token(&self) -> String {
        let path = self.dir().join(format!("shardgate/admin-{}.token", self.admin.port()));
        std::fs::read_to_string(path).expect("made at the start").trim_end().to_owned()
    }

    /// Sends a POST with the token to the admin endpoint: status code and JSON.
    #[track_caller]
    pub fn admin_post(&self, path: &str, body: &str) -> (u16, Value) {
        let bearer = format!("Authorization: Bearer {}\r\n", self.token());
        let headers = format!("Content-Type: application/json\r\n{bearer}");
        let (status, body) = self.request(&format!("POST {path}"), &headers, body);
        (status, serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e} in {body}")))
    }

    /// JSON of an admin path that answers 200.
    #[track_caller]
    pub fn admin_get(&self, path: &str) -> Value {
        let (status, json) = self.admin(path);
        assert_eq!(status, 200, "{path}: {json}");
        json
    }

    /// A counter of `/stats`.
    #[track_caller]
    pub fn counter(&self, name: &str) -> u64 {
        let stats = self.admin_get("/stats");
        stats["counters"][name].as_u64().unwrap_or_else(|| panic!("no counter {name} in {stats}"))
    }

    /// Waits until every shard has a connection to each of these instances.
    #[track_caller]
    pub fn wait_connected(&self, service: &str, ids: &[&str]) {
        eventually("instances are connected", || {
            ids.iter().all(|id| self.connected(service, id) == self.shards as u64).then_some(())
        });
    }

    /// Number of shards with a connection to an instance.
    pub fn connected(&self, service: &str, id: &str) -> u64 {
        let stats = self.admin_get("/stats");
        let list = stats["services"][service]["instances"].as_array().expect("a list").clone();
        let found = list.iter().find(|i| i["id"] == id).expect("a configured instance");
        found["connected"].as_u64().expect("a number")
    }

    /// Number of the process.
    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).expect("it lives");
    }

    /// Stops the process, and waits until all its threads are.
    #[track_caller]
    pub fn stop(&self) {
        self.signal(rustix::process::Signal::STOP);
        let tasks = format!("/proc/{}/task", self.child.id());
        eventually("every thread is stopped", || {
            let mut tasks = std::fs::read_dir(&tasks).expect("it lives");
            let is_stopped = |task: std::io::Result<std::fs::DirEntry>| {
                let stat = std::fs::read_to_string(task.expect("a thread").path().join("stat"));
                stat.is_ok_and(|stat| stat.contains(") T "))
            };
            tasks.all(is_stopped).then_some(())
        });
    }

    /// Waits for the end of the process.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        eventually("the gateway ends", || child.try_wait().expect("a child"))
    }

    /// Whether the process still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the gateway\n{}---", self.log());
        }
    }
}

/// Next core of those that are allowed: gateways of one shard take turns on them, as tests run side
/// by side.
fn next_core() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let cores = rustix::thread::sched_getaffinity(None).expect("an affinity");
    let allowed: Vec<usize> = (0..1024).filter(|&n| cores.is_set(n)).collect();
    allowed[NEXT.fetch_add(1, Ordering::Relaxed) % allowed.len()]
}

fn follow(from: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let log = Arc::new(Mutex::new(String::new()));
    let shared = log.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let mut log = shared.lock().expect("not poisoned");
            log.push_str(&line);
            log.push('\n');
        }
    });
    log
}

/// Sends the lines, and reads on without a receiver, so that the pipe never fills.
fn lines_of(from: impl Read + Send + 'static) -> Receiver<String> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let _ = tell.send(line);
        }
    });
    told
}
