//! An etcd for one test: started, killed, written to.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use shardgate::config::settings::EtcdSettings;
use tempfile::TempDir;

use crate::support::{Running, eventually, free_port, run};

/// A member with its data.
pub struct Etcd {
    /// Directory of the member.
    pub dir: TempDir,
    name: String,
    /// Port for the source.
    port: u16,
    /// Port for the test alone.
    back: u16,
    peer: u16,
    /// List of `name=url` of all members.
    pub cluster: String,
    /// Scheme: `http`, or `https` with certificates in the directory.
    scheme: &'static str,
    /// User and password of etcdctl.
    pub user: Option<String>,
    child: Option<Running>,
}

impl Etcd {
    /// Makes a member that is not started yet.
    pub fn new(scheme: &'static str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (port, back, peer) = (free_port(), free_port(), free_port());
        let name = format!("m{peer}");
        let cluster = format!("{name}=http://127.0.0.1:{peer}");
        Self { dir, name, port, back, peer, cluster, scheme, user: None, child: None }
    }

    /// Starts a member that is a cluster by itself.
    pub fn running() -> Self {
        let mut etcd = Self::new("http");
        etcd.start(true);
        etcd.healthy();
        etcd
    }

    /// Path of a file in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the member; without `front` only the test reaches it.
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

    /// Ends the member without notice.
    pub fn kill(&mut self) {
        self.child = None;
    }

    /// Sends `signal` to the member.
    pub fn signal(&mut self, signal: Signal) {
        self.child.as_mut().expect("it runs").signal(signal);
    }

    /// Makes an etcdctl command for the member.
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

    /// Runs etcdctl; returns its output.
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

    /// Writes many keys at once.
    pub fn put_all(&self, puts: &[(String, String)]) {
        let mut command = self.ctl();
        command.arg("txn").stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().expect("etcdctl is there");
        let puts: String =
            puts.iter().map(|(key, value)| format!("put /shardgate/{key} {value}\n")).collect();
        let mut stdin = child.stdin.take().expect("piped");
        // No conditions; the operations; no operations otherwise.
        write!(stdin, "\n{puts}\n\n").expect("it reads");
        drop(stdin);
        assert!(child.wait().expect("our child").success());
    }

    /// Waits until the member answers the test.
    pub fn healthy(&self) {
        eventually("etcd is healthy", || {
            let mut command = self.ctl();
            command.args(["get", "x"]).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        });
    }

    /// Reads the newest revision.
    pub fn revision(&self) -> String {
        let text = self.say(&["get", "x", "-w", "json"]);
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        json["header"]["revision"].to_string()
    }

    /// URL for the source.
    pub fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// Settings of a source that uses the member.
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
