//! Notifications to the service manager: a unix datagram socket stands for systemd.

use std::os::unix::net::UnixDatagram;

use rustix::process::Signal;

use crate::support::{Config, Gateway, PATIENCE};

/// Lines of one datagram.
fn lines_of(socket: &UnixDatagram) -> Vec<String> {
    let mut buffer = [0; 4096];
    let n = socket.recv(&mut buffer).expect("something is said in time");
    String::from_utf8_lossy(&buffer[..n]).lines().map(str::to_owned).collect()
}

/// Lines of all datagrams until one begins with `first`.
fn until(socket: &UnixDatagram, first: &str) -> Vec<String> {
    loop {
        let lines = lines_of(socket);
        if lines[0] == first {
            return lines;
        }
        assert_eq!(lines, ["WATCHDOG=1"], "only the watchdog comes in between");
    }
}

#[test]
fn the_service_manager_hears_of_start_watchdog_reload_and_stop() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut gateway = Gateway::start_with(&Config::new(), |command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000000");
    });
    let ready = until(&socket, "READY=1");
    assert!(ready[1].starts_with("STATUS=shardgate ready: ws://"), "{ready:?}");
    // Each beat is a gathering that every shard answered.
    for _ in 0..3 {
        assert_eq!(lines_of(&socket), ["WATCHDOG=1"]);
    }
    gateway.signal(Signal::HUP);
    let reloading = until(&socket, "RELOADING=1");
    let at = reloading.iter().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
    assert!(at.is_some_and(|us| us.parse::<u64>().is_ok_and(|us| us > 0)), "{reloading:?}");
    until(&socket, "READY=1");
    gateway.signal(Signal::TERM);
    let stopping = until(&socket, "STOPPING=1");
    assert_eq!(stopping[1], "STATUS=draining: SIGTERM");
    assert_eq!(gateway.wait().code(), Some(0));
}
