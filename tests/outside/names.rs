//! The gateway with BIND as the name server: hosts with two families of addresses, SRV records, and
//! answers that are too large for UDP.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::discovery::KeyClient;
use super::support::{BINARY, OneFile, Running, available, eventually, free_port, get, get_json};

/// Debian has it in /usr/sbin, which a user's PATH often lacks.
const NAMED: &str = "named";

fn can_run(test: &str) -> bool {
    let version = Command::new(NAMED).arg("-v").output();
    available(test, "named of bind9", version.is_ok_and(|run| run.status.success()))
}

/// A name server with the zone `game.test`, whose records live for a second.
struct NameServer {
    address: SocketAddr,
    dir: TempDir,
    serial: u32,
    child: Option<Running>,
}

impl NameServer {
    fn start(records: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (at, port) = (dir.path().display(), free_port());
        let conf = format!(
            "options {{ directory \"{at}\"; pid-file none; session-keyfile \"{at}/key\"; \
             listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; recursion no; \
             dnssec-validation no; check-names primary ignore; }};\ncontrols {{ }};\n\
             zone \"game.test\" {{ type primary; file \"zone\"; }};\n"
        );
        fs::write(dir.path().join("named.conf"), conf).expect("ours");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut server = Self { address, dir, serial: 0, child: None };
        server.write(records);
        let mut command = Command::new(NAMED);
        command.args(["-g", "-n", "1", "-c"]).arg(server.dir.path().join("named.conf"));
        let child = Running::start(&mut command, "");
        eventually("named runs", || child.errors().lines().any(|line| line.ends_with("running")));
        server.child = Some(child);
        server
    }

    fn write(&mut self, records: &str) {
        self.serial += 1;
        let serial = self.serial;
        let zone = format!(
            "$TTL 1\n@ SOA ns.game.test. root.game.test. {serial} 60 60 60 1\n@ NS ns\n\
             ns A 127.0.0.1\n{records}\n"
        );
        fs::write(self.dir.path().join("zone"), zone).expect("ours");
    }

    /// Puts other records in the place of those there are.
    fn change(&mut self, records: &str) {
        self.write(records);
        let loaded = format!("loaded serial {}", self.serial);
        let child = self.child.as_mut().expect("it runs");
        child.signal(Signal::HUP);
        eventually("the zone is loaded again", || child.errors().contains(&loaded));
    }
}

/// A gateway whose service `logic` is found by `keys`.
struct DnsGateway(OneFile);

impl DnsGateway {
    fn start(server: &NameServer, keys: &str) -> Self {
        let text = format!(
            "demo.enabled = false\nshards.count = 1\ndns.servers = [\"{}\"]\n[[service]]\n\
             name = \"logic\"\n{keys}\n[[route]]\nrange = [1000, 1999]\nservice = \"logic\"\n\
             hash_on = \"key\"\n",
            server.address
        );
        Self(OneFile::start(&text))
    }

    /// Instances of the service: id, addresses and weight of each.
    fn instances(&self) -> Vec<String> {
        let services = get_json(self.0.admin, "/services");
        let row = |i: &Value| {
            let others = i["other_addresses"].as_array().expect("a list");
            let text = |value: &Value| value.as_str().expect("a text").to_owned();
            let addresses: Vec<String> =
                [&i["address"]].into_iter().chain(others).map(text).collect();
            format!("{} {} {}", text(&i["id"]), addresses.join(" "), i["weight"])
        };
        let all = services["services"]["logic"]["instances"].as_array();
        let mut rows: Vec<String> = all.into_iter().flatten().map(row).collect();
        rows.sort();
        rows
    }

    fn has(&self, expected: &[String]) {
        eventually(&format!("the instances are {expected:?}"), || self.instances() == expected);
    }

    /// Waits until messages with twenty keys are all answered by the service.
    fn serves(&self) {
        let mut client = KeyClient::connect(self.0.ws);
        let keys: Vec<String> = (0..20).map(|n| format!("room-{n}")).collect();
        eventually("all messages are answered", || {
            client.ask(&keys).iter().all(|answer| answer.get("status").is_none())
        });
    }
}

/// A port that is free on 127.0.0.1 and on ::1.
fn port_of_both() -> u16 {
    let free = |_| Some(free_port()).filter(|port| TcpListener::bind(("::1", *port)).is_ok());
    (0..100).find_map(free).expect("a port")
}

/// A process that serves `logic` at this address (and the other demo services elsewhere).
fn serve(address: &str) -> Running {
    let others = [free_port(), free_port()];
    let list = format!("{address},127.0.0.1:{},127.0.0.1:{}", others[0], others[1]);
    let mut command = Command::new(BINARY);
    command.args(["demo-services", "--listen", &list]);
    Running::start(&mut command, "ready")
}

#[test]
fn a_host_with_both_families_is_one_instance_and_outlives_its_ipv6_side() {
    if !can_run("names::a_host_with_both_families") {
        return;
    }
    let port = port_of_both();
    let (v4, v6) = (serve(&format!("127.0.0.1:{port}")), serve(&format!("[::1]:{port}")));
    let server = NameServer::start("my_app A 127.0.0.1\nmy_app AAAA ::1");
    // Names have no case, underscores are in those of containers, and a dot at the end is right.
    let gateway = DnsGateway::start(&server, &format!("dns = \"My_App.game.test.:{port}\""));
    gateway.has(&[format!("logic-127.0.0.1 [::1]:{port} 127.0.0.1:{port} 1")]);
    gateway.serves();
    let log = gateway.0.process.errors();
    assert!(log.contains("instance_up") && log.contains(&format!("[::1]:{port}")), "{log}");
    drop(v6);
    gateway.serves();
    gateway.has(&[format!("logic-127.0.0.1 [::1]:{port} 127.0.0.1:{port} 1")]);
    eventually("its health is good", || get_json(gateway.0.admin, "/health")["status"] == "ok");
    drop(v4);
}

#[test]
fn the_family_of_a_name_can_be_chosen() {
    if !can_run("names::the_family_of_a_name_can_be_chosen") {
        return;
    }
    let port = port_of_both();
    let _v6 = serve(&format!("[::1]:{port}"));
    let server = NameServer::start("logic A 127.0.0.1\nlogic AAAA ::1");
    let keys = format!("dns = \"logic.game.test:{port}\"\ndns_family = \"v6\"");
    let gateway = DnsGateway::start(&server, &keys);
    gateway.has(&[format!("logic---1 [::1]:{port} 1")]);
    gateway.serves();
    let config = get_json(gateway.0.admin, "/config");
    assert_eq!(config["lookups"][0]["dns_family"], "v6", "{config}");
}

#[test]
fn srv_records_name_hosts_ports_weights_and_spares() {
    if !can_run("names::srv_records") {
        return;
    }
    let [one, two, three] = [port_of_both(), free_port(), free_port()];
    let _served = [one, two, three].map(|port| serve(&format!("127.0.0.1:{port}")));
    let records = |hosts: &str| {
        format!(
            "_grpc._tcp.logic SRV 10 30 {one} Node-1\n_grpc._tcp.logic SRV 10 10 {two} node-2\n\
             _grpc._tcp.logic SRV 20 0 {three} spare\nspare A 127.0.0.1\n{hosts}"
        )
    };
    let mut server =
        NameServer::start(&records("node-1 A 127.0.0.1\nnode-1 AAAA ::1\nnode-2 A 127.0.0.1"));
    let gateway = DnsGateway::start(&server, "dns = \"srv:_grpc._tcp.logic.game.test\"");
    gateway.has(&[
        format!("logic-node-1.game.test-{one} [::1]:{one} 127.0.0.1:{one} 3"),
        format!("logic-node-2.game.test-{two} 127.0.0.1:{two} 1"),
    ]);
    gateway.serves();
    let explained = get(gateway.0.admin, "/routing/explain?msg_id=1001&key=a").expect("an answer");
    assert!(explained.contains("logic-node-"), "{explained}");
    // A host that moves keeps its name, and with it its keys.
    server.change(&records("node-1 A 127.0.0.1\nnode-2 A 127.0.0.1"));
    gateway.has(&[
        format!("logic-node-1.game.test-{one} 127.0.0.1:{one} 3"),
        format!("logic-node-2.game.test-{two} 127.0.0.1:{two} 1"),
    ]);
    server.change(&records(""));
    gateway.has(&[format!("logic-spare.game.test-{three} 127.0.0.1:{three} 1")]);
    gateway.serves();
    // No answer that names nobody takes the last instance.
    server.change("_grpc._tcp.logic SRV 0 0 0 .");
    eventually("it says so", || gateway.0.process.errors().contains("is not available"));
    gateway.serves();
}

#[test]
fn answers_that_are_cut_over_udp_are_whole_over_tcp() {
    if !can_run("names::answers_that_are_cut") {
        return;
    }
    let hosts = (1..=90).map(|n| format!("node-{n} A 127.0.9.{n}\nall A 127.0.9.{n}\n"));
    let records = (1..=90).map(|n| format!("_grpc._tcp SRV 0 0 50001 node-{n}\n"));
    let server = NameServer::start(&hosts.chain(records).collect::<String>());
    for keys in ["dns = \"all.game.test:50001\"", "dns = \"srv:_grpc._tcp.game.test\""] {
        let gateway = DnsGateway::start(&server, keys);
        eventually("all are found", || gateway.instances().len() == 90);
    }
}
