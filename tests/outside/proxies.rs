//! Real proxies in front of the gateway, and a real client through each. The page of the guide runs
//! nginx, HAProxy and Envoy as a reader would; here are the ways of HAProxy to pass TCP on, chains,
//! and what a client is told through a proxy.

use std::fs;
use std::net::{SocketAddr, TcpStream};

use crate::support::{
    Checkout, Running, available, eventually, free_port, get_json, run, succeeds,
};

/// A gateway, and proxies in front of it.
struct Fronted {
    checkout: Checkout,
    gateway: Running,
    proxies: Vec<Running>,
}

impl Fronted {
    /// Starts a gateway of one shard with these keys.
    fn start(keys: &[(&str, &str)]) -> Self {
        let checkout = Checkout::new();
        let env = [&[("SHARDGATE__SHARDS__COUNT", "1")], keys].concat();
        let gateway = checkout.gateway(&env, &[]);
        Self { checkout, gateway, proxies: Vec::new() }
    }

    fn ws(&self) -> SocketAddr {
        self.checkout.address("9000")
    }

    fn counter(&self, name: &str) -> u64 {
        let stats = get_json(self.checkout.address("8000"), "/stats");
        stats["counters"][name].as_u64().unwrap_or_else(|| panic!("no {name}: {stats}"))
    }

    /// Starts a program with a file of this text, until it listens at `at`.
    fn front(&mut self, file: &str, text: &str, command: &str, at: SocketAddr) {
        fs::write(self.checkout.path().join(file), text).expect("the directory is ours");
        let mut command = self.checkout.shell(&format!("exec {command}"));
        self.proxies.push(Running::start(&mut command, ""));
        eventually("the proxy listens", || TcpStream::connect(at).is_ok());
    }

    /// Starts HAProxy with `text` behind its defaults.
    fn haproxy(&mut self, mode: &str, text: &str, at: SocketAddr) {
        let defaults = format!(
            "defaults\n  mode {mode}\n  timeout connect 5s\n  timeout client 60s\n  timeout server \
             60s\n  timeout tunnel 60s\n  timeout check 10s\n"
        );
        let command = "haproxy -f haproxy.cfg";
        self.front("haproxy.cfg", &format!("{defaults}{text}"), command, at);
    }

    /// Starts nginx that passes `/ws` on to `to`, with these lines besides the usual.
    fn nginx(&mut self, listen: &str, lines: &str, to: SocketAddr, at: SocketAddr) {
        let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let paths = paths.map(|name| format!("{name}_temp_path nginx;\n")).concat();
        let text = format!(
            "events {{}}\nhttp {{\naccess_log off;\n{paths}server {{\nlisten {listen};\n\
             location /ws {{\nproxy_pass http://{to};\nproxy_http_version 1.1;\n\
             proxy_set_header Upgrade $http_upgrade;\nproxy_set_header Connection Upgrade;\n\
             {lines}\n}}\n}}\n}}\n"
        );
        let command = "nginx -e stderr -p . -c nginx.conf -g 'daemon off; pid nginx.pid;'";
        self.front("nginx.conf", &text, command, at);
    }

    /// What clients with these addresses see, who connect one after the other and stay.
    fn clients(&self, at: SocketAddr, origin: &str, sources: &[&str]) -> Vec<String> {
        let sources = sources.join(" ");
        let line = format!("python3 tests/interop/peer.py ws://{at}/ws '{origin}' {sources}");
        let said = run(&mut self.checkout.shell(&line));
        said.lines().map(str::to_owned).collect()
    }

    fn end(self) {
        drop(self.proxies);
        assert_eq!(self.gateway.stop().code(), Some(0));
    }
}

fn port() -> SocketAddr {
    ([127, 0, 0, 1], free_port()).into()
}

/// Whether the programs of a test are there.
fn found(test: &str, programs: &[&'static str]) -> bool {
    let python = succeeds("python3", &["-c", "import websockets.sync.client"]);
    available(test, "python3 with websockets", python)
        && programs.iter().all(|program| available(test, program, succeeds(program, &["-v"])))
}

#[test]
fn haproxy_passes_tcp_on_with_both_versions_of_its_header_and_checks_the_gateway() {
    let test = "haproxy_passes_tcp_on_with_both_versions_of_its_header_and_checks_the_gateway";
    if !found(test, &["haproxy"]) {
        return;
    }
    for sends in ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id"]
    {
        let mut fronted = Fronted::start(&[
            ("SHARDGATE__PROXY__FROM", "[\"127.0.0.1\"]"),
            ("SHARDGATE__LIMITS__ADDRESS_CONNECTIONS_MAX", "1"),
        ]);
        let (at, to) = (port(), fronted.ws());
        let text = format!(
            "frontend game\n  bind {at}\n  unique-id-format %ci:%cp\n  default_backend gateways\n\
             backend gateways\n  server a {to} {sends} check inter 20ms fall 1\n"
        );
        fronted.haproxy("tcp", &text, at);
        // Ten checks, of which one that failed would take the server out.
        eventually("it is checked", || fronted.counter("accepted") >= 10);
        // Two clients are two addresses, and the checks are none.
        let said = fronted.clients(at, "", &["127.0.0.2", "127.0.0.3"]);
        for (source, line) in ["127.0.0.2", "127.0.0.3"].iter().zip(&said) {
            let with_port = format!("{source} {source}:");
            assert!(line.starts_with(&with_port) && !line.ends_with(":0"), "{said:?}");
        }
        assert_eq!(fronted.counter("address_connections_refused"), 0, "{sends}");
        assert_eq!(fronted.counter("proxy_refused"), 0, "{sends}");
        fronted.end();
    }
}

#[test]
fn haproxy_writes_the_header_of_rfc_7239_behind_a_forged_one() {
    if !found("haproxy_writes_the_header_of_rfc_7239_behind_a_forged_one", &["haproxy"]) {
        return;
    }
    let mut fronted = Fronted::start(&[
        ("SHARDGATE__FORWARDED__FROM", "[\"127.0.0.1\"]"),
        ("SHARDGATE__FORWARDED__HEADER", "forwarded"),
    ]);
    let (at, to) = (port(), fronted.ws());
    let text = format!(
        "frontend game\n  bind {at}\n  http-request add-header Forwarded \
         'for=\"%[src]:%[src_port]\";proto=http'\n  default_backend gateways\nbackend gateways\n  \
         option httpchk\n  http-check send meth GET uri / ver HTTP/1.1 hdr Host a\n  \
         http-check expect status 404\n  server a {to} check inter 20ms fall 1\n"
    );
    fronted.haproxy("http", &text, at);
    eventually("it is checked", || fronted.counter("handshake_refused") >= 10);
    let said = fronted.clients(at, "", &["127.0.0.2"]);
    assert!(said[0].starts_with("127.0.0.2 127.0.0.2:") && !said[0].ends_with(":0"), "{said:?}");
    assert_eq!(fronted.counter("forwarded_missing"), 0, "its checks are no clients");
    fronted.end();
}

#[test]
fn clients_through_nginx_have_limits_of_their_own_and_pages_need_its_host() {
    let test = "clients_through_nginx_have_limits_of_their_own_and_pages_need_its_host";
    if !found(test, &["nginx"]) {
        return;
    }
    let mut fronted = Fronted::start(&[
        ("SHARDGATE__FORWARDED__FROM", "[\"127.0.0.1\"]"),
        ("SHARDGATE__LIMITS__ADDRESS_CONNECTIONS_MAX", "1"),
    ]);
    let (at, to) = (port(), fronted.ws());
    let forwards = "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;";
    let lines = format!("proxy_set_header Host $http_host;\n{forwards}");
    fronted.nginx(&at.to_string(), &lines, to, at);
    let page = format!("http://{at}");
    let said = fronted.clients(at, &page, &["127.0.0.2", "127.0.0.2", "127.0.0.3"]);
    assert_eq!(said, ["127.0.0.2 127.0.0.2:0", "127.0.0.2 429 1", "127.0.0.3 127.0.0.3:0"]);
    // Without the line for Host the page seems to be of another site.
    fronted.proxies.clear();
    let at = port();
    fronted.nginx(&at.to_string(), forwards, to, at);
    let said = fronted.clients(at, &format!("http://{at}"), &["127.0.0.4"]);
    assert_eq!(said, ["127.0.0.4 403 never"]);
    assert_eq!(fronted.clients(at, "", &["127.0.0.4"]), ["127.0.0.4 127.0.0.4:0"]);
    fronted.end();
}

#[test]
fn a_chain_of_haproxy_and_nginx_names_the_client_in_either_order() {
    let test = "a_chain_of_haproxy_and_nginx_names_the_client_in_either_order";
    if !found(test, &["nginx", "haproxy"]) {
        return;
    }
    let listed = "[\"127.0.0.1\"]";
    // HAProxy tells nginx by a PROXY header, and nginx the gateway by its own.
    let mut fronted = Fronted::start(&[("SHARDGATE__FORWARDED__FROM", listed)]);
    let (at, middle, to) = (port(), port(), fronted.ws());
    fronted.nginx(
        &format!("{middle} proxy_protocol"),
        "proxy_set_header X-Forwarded-For $proxy_protocol_addr;",
        to,
        middle,
    );
    fronted.haproxy(
        "tcp",
        &format!("listen game\n  bind {at}\n  server a {middle} send-proxy\n"),
        at,
    );
    assert_eq!(fronted.clients(at, "", &["127.0.0.2"]), ["127.0.0.2 127.0.0.2:0"]);
    fronted.end();
    // nginx speaks to HAProxy, which tells the gateway that nginx is its peer.
    let keys = [("SHARDGATE__FORWARDED__FROM", listed), ("SHARDGATE__PROXY__FROM", listed)];
    let mut fronted = Fronted::start(&keys);
    let (at, middle, to) = (port(), port(), fronted.ws());
    let text = format!("listen game\n  bind {middle}\n  server a {to} send-proxy-v2\n");
    fronted.haproxy("tcp", &text, middle);
    let forwards = "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;";
    fronted.nginx(&at.to_string(), forwards, middle, at);
    assert_eq!(fronted.clients(at, "", &["127.0.0.2"]), ["127.0.0.2 127.0.0.2:0"]);
    fronted.end();
}
