//! Prometheus' own linter on `/metrics`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use crate::support::{Checkout, PATIENCE, available, succeeds};

#[test]
fn promtool_finds_nothing_in_the_metrics() {
    let found = succeeds("promtool", &["--version"]);
    if !available("promtool_finds_nothing_in_the_metrics", "promtool", found) {
        return;
    }
    let checkout = Checkout::new();
    let _gateway = checkout.gateway(&[], &["logic", "chat", "fight"]);
    let address = checkout.address("8000");
    let mut stream = TcpStream::connect(address).expect("the admin endpoint listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers and closes");
    let (head, text) = answer.split_once("\r\n\r\n").expect("a header");
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it is there");
    promtool.stdin.take().expect("piped").write_all(text.as_bytes()).expect("it reads");
    let output = promtool.wait_with_output().expect("our child");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}
