//! Checks of the addresses to listen on: whether each can be bound, and who has it if not.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use rustix::io::Errno;

use super::{Problem, Topic};
use crate::config::command::{self, Change};
use crate::config::{Config, Loader, collide};

/// Prefix of the keys of the demo services' addresses.
const DEMO: &str = "demo service ";
/// Distance between a port that is taken and the one that is proposed, so that 9000 becomes 9010.
const PORT_STEP: u16 = 10;
/// Ports that are tried for a proposal.
const PORTS_TRIED: u16 = 20;

/// Problems with the addresses of `config`. All end in one command, which changes what is taken.
pub(super) fn problems(config: &Config, loader: &Loader) -> Vec<Problem> {
    let wrong: Vec<_> = addresses(config)
        .into_iter()
        .filter_map(|(key, address)| Some((key, address, try_bind(address).err()?)))
        .collect();
    // What is configured, and then what was proposed: no proposal takes a port of these.
    let mut used: BTreeSet<u16> = addresses(config).iter().map(|(_, a)| a.port()).collect();
    let changes: Vec<Change<'_>> =
        wrong.iter().filter_map(|(key, address, _)| other(key, *address, &mut used)).collect();
    let start = command::start(loader, &changes);
    wrong
        .iter()
        .filter_map(|(key, address, error)| problem(key, *address, *error, &start))
        .collect()
}

/// Warnings about the addresses of `config`.
pub(super) fn warnings(config: &Config) -> Vec<Problem> {
    let range = local_port_range();
    let all = config.gateway.own_addresses();
    all.filter_map(|(key, address)| ephemeral_warning(key, address.port(), range)).collect()
}

/// Addresses to bind, with their keys.
fn addresses(config: &Config) -> Vec<(String, SocketAddr)> {
    let gateway = &config.gateway;
    let own = gateway.own_addresses();
    let mut list: Vec<(String, SocketAddr)> = own.map(|(key, a)| (key.to_owned(), a)).collect();
    if gateway.demo.enabled {
        let demo = ["logic", "chat", "fight"].into_iter().zip(gateway.demo.addresses);
        list.extend(demo.map(|(name, a)| (format!("{DEMO}{name}"), a)));
    }
    list
}

/// The change of `key` that avoids `address`: the same one with a free port that is not in `used`,
/// to which it is added; or no demo services.
fn other<'a>(key: &'a str, address: SocketAddr, used: &mut BTreeSet<u16>) -> Option<Change<'a>> {
    if key.starts_with(DEMO) {
        return Some(("demo.enabled", "false".into()));
    }
    let ports = (1..=PORTS_TRIED).filter_map(|n| address.port().checked_add(n * PORT_STEP));
    // Ports below 1024 are for privileged users, who took this one on purpose.
    let mut ports = ports.map(|port| if port < 1024 { port + 8000 } else { port });
    let free = ports.find(|port| {
        !used.contains(port) && try_bind(SocketAddr::new(address.ip(), *port)).is_ok()
    })?;
    used.insert(free);
    Some((key, SocketAddr::new(address.ip(), free).to_string()))
}

/// Problem of `key`, which cannot listen on `address`; `start` is the command that avoids it.
/// `None` for errors that only the start itself can judge.
pub(super) fn problem(
    key: &str,
    address: SocketAddr,
    error: Errno,
    start: &str,
) -> Option<Problem> {
    let port = address.port();
    let what = |why: &str| format!("{key} = {address} {why}");
    Some(match error {
        Errno::ADDRINUSE => {
            let holder = owner(address);
            let by = holder
                .as_ref()
                .map_or("another process".into(), |(pid, name)| format!("{name} (process {pid})"));
            let how = match key.starts_with(DEMO) {
                true => "stop that, or start without the demo services",
                false => "stop that, or start on another port",
            };
            let holder = holder.map(|(_, name)| name);
            let fix = format!("{how}: {start}");
            Problem::new(what(&format!("is in use by {by}")), fix)
                .about(Topic::TakenPort { holder })
        }
        Errno::ACCESS | Errno::PERM => Problem::new(
            what("is not allowed to this user"),
            format!(
                "give the program CAP_NET_BIND_SERVICE, take a port from 1024 up, or allow it, as \
                 root: sysctl -w net.ipv4.ip_unprivileged_port_start={port}"
            ),
        ),
        Errno::ADDRNOTAVAIL => Problem::new(
            what("is no address of this host"),
            "0.0.0.0 or [::] is every address; this host has: ip address",
        ),
        Errno::AFNOSUPPORT => Problem::new(
            what("is of a family that this host does not have"),
            "use the other one; this host has: ip address",
        ),
        Errno::MFILE | Errno::NFILE => return None, // told by the check of open files
        other => Problem::new(what(&format!("cannot be bound: {other}")), format!("try: {start}")),
    })
}

/// The process whose listener keeps `address` from being bound, as far as /proc tells this user:
/// number and name.
fn owner(address: SocketAddr) -> Option<(u32, String)> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let sockets: Vec<String> = tables
        .iter()
        .flat_map(|table| listening(&fs::read_to_string(table).unwrap_or_default(), address))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if sockets.is_empty() {
        return None;
    }
    let has = |pid: &Path| {
        let files = fs::read_dir(pid.join("fd")).into_iter().flatten().flatten();
        files
            .filter_map(|file| fs::read_link(file.path()).ok())
            .any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut numbered = processes.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse::<u32>().ok()?;
        Some((pid, entry.path()))
    });
    let (pid, path) = numbered.find(|(_, path)| has(path))?;
    let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
    Some((pid, name.trim().to_owned()))
}

/// Inodes of the sockets that listen on the port of `address`, on its IP address or on all, in the
/// text of /proc/net/tcp: the columns are number, local address, remote address, state (0A is
/// listening), five more, inode.
fn listening(table: &str, address: SocketAddr) -> Vec<u64> {
    let inode = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (ip, port) = columns.get(1)?.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        let taken = SocketAddr::new(ip_of_table(ip)?, port);
        let found = collide(taken, address) && *columns.get(3)? == "0A";
        found.then(|| columns.get(9)?.parse().ok()).flatten()
    };
    table.lines().skip(1).filter_map(inode).collect()
}

/// An IP address of /proc/net/tcp: words of 32 bits in hexadecimal, each in the machine's order.
fn ip_of_table(text: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(text.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match text.len() {
        8 => Some(IpAddr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (n, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(n * 8)?);
            }
            Some(IpAddr::from(bytes))
        }
        _ => None,
    }
}

/// Warns of a port in the range of outgoing connections: one of those can hold it when the gateway
/// starts again.
pub(super) fn ephemeral_warning(
    key: &str,
    port: u16,
    range: Option<(u16, u16)>,
) -> Option<Problem> {
    let (low, high) = range?;
    (low..=high).contains(&port).then(|| {
        let what =
            format!("{key} port {port} is among those of outgoing connections ({low}-{high})");
        let fix = format!(
            "one may hold it at a restart; choose another port, or reserve it, as root: \
             sysctl -w net.ipv4.ip_local_reserved_ports={port}"
        );
        Problem::new(what, fix)
    })
}

/// Binds an address and lets it go. Without SO_REUSEPORT, so that another gateway on the port is
/// noticed, with which the kernel would share out the clients; with SO_REUSEADDR, as old
/// connections do no harm.
pub(super) fn try_bind(address: SocketAddr) -> Result<(), Errno> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &address)
}

fn local_port_range() -> Option<(u16, u16)> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ports = text.split_whitespace().map(|s| s.parse().ok());
    Some((ports.next()??, ports.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_that_has_a_port_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        assert_eq!(owner(address).map(|(pid, _)| pid), Some(std::process::id()));
        let all = SocketAddr::from(([0, 0, 0, 0], address.port()));
        assert_eq!(owner(all).map(|(pid, _)| pid), Some(std::process::id()));
        let another = SocketAddr::from(([127, 0, 0, 2], address.port()));
        assert_eq!(owner(another), None, "another address of the port is free");
        drop(listener);
        assert_eq!(owner(address), None);
    }

    #[test]
    fn only_sockets_that_listen_are_read_from_the_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\n\
            0: 0100007F:2328 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 777 1\n\
            1: 0100007F:2328 0100007F:9C40 01 00000000:00000000 00:00000000 00000000 0 0 778 1\n\
            2: 0100007F:2329 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 779 1\n";
        let at = |text: &str| text.parse().expect("an address");
        // As a machine with the low byte first writes it.
        if cfg!(target_endian = "little") {
            assert_eq!(listening(table, at("127.0.0.1:9000")), [777]);
            assert_eq!(listening(table, at("0.0.0.0:9000")), [777]);
            assert!(listening(table, at("127.0.0.2:9000")).is_empty());
            assert_eq!(ip_of_table("00000000000000000000000001000000"), Some(at("[::1]:1").ip()));
        }
    }
}
