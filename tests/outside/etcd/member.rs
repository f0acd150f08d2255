//! An etcd of its own for a test: started, killed, written to.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use shardgate::config::settings::EtcdSettings;
use tempfile::TempDir;

use crate::support::{Running, eventually, free_port, run};

/// One member with its data.
pub struct Etcd {
    /// Where it lives.
    pub dir: TempDir,
    name: String,
    /// Where the source asks.
    port: u16,
    /// Where only the test asks.
    back: u16,
    peer: u16,
    /// `name=url` of all members.
    pub cluster: String,
    /// `http`, or `https` with certificates in the directory.
    scheme: &'static str,
    /// User and password of etcdctl.
    pub user: Option<String>,
    child: Option<Running>,
}

impl Etcd {
    /// One that is not started yet.
    pub fn new(scheme: &'static str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (port, back, peer) = (free_port(), free_port(), free_port());
        let name = format!("m{peer}");
        let cluster = format!("{name}=http://127.0.0.1:{peer}");
        Self { dir, name, port, back, peer, cluster, scheme, user: None, child: None }
    }

    /// One that runs.
    pub fn running() -> Self {
        let mut etcd = Self::new("http");
        etcd.start(true);
        etcd.healthy();
        etcd
    }

    /// A file of its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts it; without `front` only the test reaches it.
    pub fn start(&mut self, front: bool) {
        let peer = format!("http://127.0.0.1:{}", self.peer);
        let url = |port| format!("{}://127.0.0.1:{port}", self.scheme);
        let clients =
            if front { format!("{},{}", url(self.port), url(self.back)) } else { url(self.back) };
        let mut command = Command::new("etcd");
        command.current_dir(self.dir.path());
        for (flag, value) in [
            ("--name", self.name.as_str()),
            ("--data-dir", "data"),
            ("--listen-client-urls", &clients),
            ("--advertise-client-urls", &clients),
            ("--listen-peer-urls", &peer),
            ("--initial-advertise-peer-urls", &peer),
            ("--initial-cluster", &self.cluster),
            ("--initial-cluster-state", "new"),
        ] {
            command.args([flag, value]);
        }
        if self.scheme == "https" {
            command.args(["--client-cert-auth", "--trusted-ca-file", "ca.pem"]);
            command.args(["--cert-file", "server.pem", "--key-file", "server.key"]);
        }
        self.child = Some(Running::start(&mut command, ""));
    }

    /// Ends it without notice.
    pub fn kill(&mut self) {
        self.child = None;
    }

    /// Sends it `signal`.
    pub fn signal(&mut self, signal: Signal) {
        self.child.as_mut().expect("it runs").signal(signal);
    }

    /// etcdctl for it.
    fn ctl(&self) -> Command {
        let mut command = Command::new("etcdctl");
        command.current_dir(self.dir.path()).env("ETCDCTL_API", "3");
        command.arg(format!("--endpoints={}://127.0.0.1:{}", self.scheme, self.back));
        if self.scheme == "https" {
            command.args(["--cacert=ca.pem", "--cert=client.pem", "--key=client.key"]);
        }
        if let Some(user) = &self.user {
            command.arg(format!("--user={user}"));
        }
        command
    }

    /// Runs etcdctl; gives what it printed.
    pub fn say(&self, args: &[&str]) -> String {
        run(self.ctl().args(args))
    }

    /// Writes `<prefix>/key`.
    pub fn put(&self, key: &str, value: &str) {
        self.say(&["put", &format!("/shardgate/{key}"), value]);
    }

    /// Removes `<prefix>/key`.
    pub fn delete(&self, key: &str) {
        self.say(&["del", &format!("/shardgate/{key}")]);
    }

    /// Puts many at once.
    pub fn put_all(&self, puts: &[(String, String)]) {
        let mut command = self.ctl();
        command.arg("txn").stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().expect("etcdctl is there");
        let puts: String =
            puts.iter().map(|(key, value)| format!("put /shardgate/{key} {value}\n")).collect();
        let mut stdin = child.stdin.take().expect("piped");
        // No conditions; what happens then; nothing otherwise.
        write!(stdin, "\n{puts}\n\n").expect("it reads");
        drop(stdin);
        assert!(child.wait().expect("our child").success());
    }

    /// Waits until it answers the test.
    pub fn healthy(&self) {
        eventually("etcd is healthy", || {
            let mut command = self.ctl();
            command.args(["get", "x"]).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        });
    }

    /// The newest revision.
    pub fn revision(&self) -> String {
        let text = self.say(&["get", "x", "-w", "json"]);
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        json["header"]["revision"].to_string()
    }

    /// The URL for the source.
    pub fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// Settings that use it.
    pub fn settings(&self) -> EtcdSettings {
        let tls = |name| (self.scheme == "https").then(|| self.path(name));
        EtcdSettings {
            endpoints: vec![self.endpoint()],
            prefix: "/shardgate".into(),
            user: String::new(),
            password: None,
            password_file: None,
            ca_file: tls("ca.pem"),
            cert_file: tls("client.pem"),
            key_file: tls("client.key"),
        }
    }
}
