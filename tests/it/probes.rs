//! The listener of probes: who asks without a secret, and with any host, gets a word, and nobody
//! holds it up.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::support::{Config, Gateway, PATIENCE, crowd, eventually, run};

/// An address that is free now. Who asks for port 0 is told it only after the start.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port")
}

/// The whole answer to these bytes.
fn ask(to: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(to).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer and the end");
    answer
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_else(|| panic!("no answer: {answer:?}"))
}

#[test]
fn who_has_no_secret_asks_the_port_of_probes() {
    let probes = free_address();
    let config = Config::new().key(&format!("admin.probes = \"{probes}\""));
    let gateway = Gateway::start(&config);
    let requests = [
        // A kubelet, an Envoy sidecar, HAProxy with and without a method, Nagios.
        format!("GET PATH HTTP/1.1\r\nHost: {probes}\r\nUser-Agent: kube-probe/1.33\r\n\r\n"),
        "GET PATH HTTP/1.1\r\nHost: cluster_0\r\n\r\n".into(),
        "OPTIONS PATH HTTP/1.0\r\n\r\n".into(),
        "GET PATH HTTP/1.0\r\n\r\n".into(),
        "GET PATH HTTP/1.0\r\nUser-Agent: check_http\r\nConnection: close\r\n\r\n".into(),
        "GET http://balancer/PATH HTTP/1.1\r\nHost: balancer\r\n\r\n".replace("/PATH", "PATH"),
        "GET PATH HTTP/1.1\r\n\r\n".into(),
    ];
    for path in ["/healthz", "/readyz"] {
        for request in &requests {
            let answer = ask(probes, &request.replace("PATH", path));
            assert_eq!(status(&answer), "200", "{request}: {answer}");
            assert!(answer.ends_with("\r\n\r\nok\n"), "{answer}");
        }
        let head = ask(probes, &format!("HEAD {path} HTTP/1.0\r\n\r\n"));
        assert!(status(&head) == "200" && head.ends_with("\r\n\r\n"), "{head}");
    }
    for path in ["/", "/health", "/metrics", "/stats", "/config", "/healthz/x", "/reload"] {
        let answer = ask(probes, &format!("GET {path} HTTP/1.0\r\n\r\n"));
        assert_eq!(status(&answer), "404", "{path}: {answer}");
        assert!(answer.contains("this port serves /healthz and /readyz;"), "{answer}");
    }
    let answer = ask(probes, "POST /healthz HTTP/1.0\r\n\r\n");
    assert_eq!(status(&answer), "405", "{answer}");
    assert!(gateway.log().contains(&format!("probes http://{probes} admin ")));
}

#[test]
fn readiness_ends_with_the_first_signal_of_a_stop() {
    let probes = free_address();
    let config = Config::new().key(&format!("admin.probes = \"{probes}\""));
    let gateway = Gateway::start(&config.key("stop.spread_ms = 5000").key("stop.grace_ms = 9000"));
    let _clients: Vec<_> = (0..4).map(|_| crate::support::Client::connect(gateway.ws)).collect();
    assert_eq!(gateway.admin_post("/drain", "").0, 202);
    let ready = || ask(probes, "GET /readyz HTTP/1.0\r\n\r\n");
    let answer = eventually("it is not ready", || Some(ready()).filter(|a| status(a) == "503"));
    assert!(answer.contains("GET /health shows"), "{answer}");
    assert_eq!(status(&ask(probes, "GET /healthz HTTP/1.0\r\n\r\n")), "200", "it lives");
}

#[test]
fn metrics_are_there_by_a_key_and_no_page_of_another_site_reads_them() {
    let probes = free_address();
    let keys = format!("admin.probes = \"{probes}\"\nadmin.probes_metrics = true");
    let _gateway = Gateway::start(&Config::new().key(&keys));
    let metrics = |host: &str| ask(probes, &format!("GET /metrics HTTP/1.1\r\n{host}\r\n\r\n"));
    let own = metrics(&format!("Host: {probes}"));
    assert!(status(&own) == "200" && own.contains("\nshardgate_shard_up{"), "{own}");
    for other in ["Host: evil.example", "X: none", "Host: localhost\r\nOrigin: http://evil"] {
        assert_eq!(status(&metrics(other)), "403", "{other}");
    }
    let absolute = ask(probes, "GET http://evil/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(status(&absolute), "403", "{absolute}");
    let other = ask(probes, "GET / HTTP/1.0\r\n\r\n");
    assert!(other.contains("/healthz, /readyz and /metrics;"), "{other}");
}

#[test]
fn a_client_without_a_request_is_gone_after_a_second_and_keeps_nobody_out() {
    let probes = free_address();
    let config = Config::new().key(&format!("admin.probes = \"{probes}\""));
    let _gateway = Gateway::start(&config);
    let began = Instant::now();
    let mut idle = crowd(probes, 600);
    let asked = Instant::now();
    assert_eq!(status(&ask(probes, "GET /healthz HTTP/1.0\r\n\r\n")), "200");
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    for stream in &mut idle {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let end = stream.read(&mut [0; 1]);
        assert!(matches!(end, Ok(0)), "it is closed: {end:?}");
    }
    let all = began.elapsed();
    assert!(all > Duration::from_millis(900) && all < PATIENCE, "one second each: {all:?}");
}

/// The address is checked like the others: before the start, by `check` and by a reload.
#[test]
fn the_port_of_probes_is_checked_like_the_others() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound");
    let free = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let start = |key: &str, verb: &[&str]| {
        let dir = Config::new().key(key).write();
        let path = dir.path().to_str().expect("UTF-8");
        run(&[verb, &["--config", path], &free[..]].concat(), |_| ())
    };
    let finished = start(&format!("admin.probes = \"{address}\""), &[]);
    let line = finished.stderr.trim_end();
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let by = format!("admin.probes = {address} is in use by ");
    assert!(line.starts_with(&by) && line.lines().count() == 1, "{line}");
    assert!(line.contains(": SHARDGATE__ADMIN__PROBES=127.0.0.1:"), "{line}");
    let judged = start(&format!("admin.probes = \"{address}\""), &["doctor"]);
    assert!(judged.stdout.contains(&format!("FAIL  admin.probes = {address} is in")), "{judged:?}");

    let checked = start("admin.probes = \"127.0.0.1:7999\"", &["check"]);
    assert!(checked.stdout.contains(", probes 127.0.0.1:7999, shards"), "{checked:?}");
    let same = "admin.probes = \"127.0.0.1:7999\"\nregistry.listen = \"127.0.0.1:7999\"";
    let checked = start(same, &["check"]);
    let rule = "admin.probes 127.0.0.1:7999 and registry.listen 127.0.0.1:7999 are the same port";
    assert!(checked.code == Some(64) && checked.stdout.contains(rule), "{checked:?}");
    let checked = start("admin.probes_metrics = true", &["check"]);
    assert!(checked.stdout.contains("nobody is served without admin.probes"), "{checked:?}");

    let gateway = Gateway::start(&Config::new());
    gateway.rewrite(&Config::new().key("admin.probes = \"127.0.0.1:7999\""));
    let (status, body) = gateway.admin_post("/reload", "");
    assert!(status == 422 && body.to_string().contains("is read at the start only"), "{body}");
}
