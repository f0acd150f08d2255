//! The lines on stdout of a gateway that is ready: one for programs that wait for it, then what a
//! person does next.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::Listens;
use crate::config::settings::GatewaySettings;
use crate::config::{Config, Source, program, reachable, shell_word};
use crate::routing::Snapshot;

/// Routes that are named; `shardgate routes` shows all.
const ROUTES_SHOWN: usize = 4;

/// The facts about a gateway that is not ready yet, which its ready lines name.
#[derive(Clone, Debug)]
pub struct Announcement {
    /// Directory of its files; `None` = it runs by the built-in ones.
    pub dir: Option<PathBuf>,
    /// Addresses for clients.
    pub listens: Listens,
    /// Address of the admin endpoint.
    pub admin: SocketAddr,
    /// Address of the probes, if there is a listener for them.
    pub probes: Option<SocketAddr>,
    /// Number of shards.
    pub shards: usize,
    /// Connections that the limit of open files allows each shard to accept.
    pub connections_cap: usize,
}

/// The lines of one gateway.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadyLines {
    /// Rest of the line that programs wait for, `shardgate ready: URL… admin URL shards N`, with
    /// `probes URL` before `admin` if there is that listener.
    pub at: String,
    /// Lines for a person: the URLs to connect to, the page to read, the way to stop.
    pub next: String,
}

impl Announcement {
    /// The lines of the gateway by its configuration and the routing state in force.
    pub fn lines(&self, config: &Config, snapshot: &Snapshot) -> ReadyLines {
        let Self { dir, listens, admin, probes, shards, connections_cap } = self;
        let gateway = &config.gateway;
        let http = if gateway.admin.tls_cert.is_some() { "https" } else { "http" };
        let both = [("ws", listens.plain), ("wss", listens.tls)];
        let urls = |shown: fn(SocketAddr) -> SocketAddr| -> Vec<String> {
            let url = |(scheme, at): (&str, Option<SocketAddr>)| {
                Some(format!("{scheme}://{}{}", shown(at?), gateway.path))
            };
            both.into_iter().filter_map(url).collect()
        };
        let mut bound = urls(|address| address).join(" ");
        if let Some(address) = probes {
            bound += &format!(" probes http://{address}");
        }
        let at = format!("{bound} admin {http}://{admin} shards {shards}");
        let mut next = format!("  connect to  {}\n", urls(reachable).join(" or "));
        next += &format!("  answers     {}\n", answers(gateway, snapshot));
        next += &format!("  clients     {}\n", clients(config, *shards, *connections_cap));
        let page = reachable(*admin);
        next += &format!("  try it      {http}://{page}/ in a browser\n");
        next += &format!("  read        {http}://{page}/guide, the state in /health and /stats\n");
        if let Some(address) = probes {
            let at = reachable(*address);
            next += &format!("  probes      http://{at}/healthz and http://{at}/readyz\n");
        }
        let drain = format!("{} drain{}", program(), flags(config, dir.as_deref(), *admin));
        next += &format!("  stop        Ctrl-C, or: {drain}");
        ReadyLines { at, next }
    }
}

/// Ids and what answers them.
fn answers(gateway: &GatewaySettings, snapshot: &Snapshot) -> String {
    let demo = |address| gateway.demo.enabled && gateway.demo.addresses.contains(&address);
    let mut parts = Vec::new();
    for route in snapshot.routes.iter().take(ROUTES_SHOWN) {
        let index = usize::from(route.service.0);
        let name = snapshot.services.get(index).map_or("", |service| &*service.name);
        let mut own = snapshot.instances.iter().filter(|i| i.service == route.service);
        let kind =
            if own.any(|instance| demo(instance.addresses.first())) { " (demo)" } else { "" };
        parts.push(format!("{}-{} {name}{kind}", route.first, route.last));
    }
    let more = snapshot.routes.len().saturating_sub(ROUTES_SHOWN);
    if more > 0 {
        parts.push(format!("{more} more routes"));
    }
    let (first, last) = gateway.gateway_ids;
    parts.push(format!("{first}-{last} the gateway itself"));
    format!("ids {}", parts.join(", "))
}

/// Number of clients that fit, and what sets it.
fn clients(config: &Config, shards: usize, cap: usize) -> String {
    let max = |n| config.shards.shard(n).conn.connections_max;
    let all = (0..shards).map(|n| max(n).at_most(cap).get()).fold(0, usize::saturating_add);
    let by_files = (0..shards).any(|n| max(n).get() > cap);
    let by = if by_files { "the limit of open files" } else { "conn.connections_max" };
    format!("at most {all} at once, by {by}")
}

/// Flags by which another command finds this gateway.
fn flags(config: &Config, dir: Option<&Path>, admin: SocketAddr) -> String {
    let mut flags = String::new();
    if let Some(dir) = dir.filter(|dir| *dir != Path::new("shards")) {
        flags += &format!(" --config {}", shell_word(dir));
    }
    let source = config.provenance.iter().find(|(key, ..)| key == "admin.listen");
    let in_files = source.is_some_and(|(_, _, source)| {
        matches!(source, Source::File(..) | Source::Default | Source::Found(_))
    });
    if !in_files || config.gateway.admin.listen != admin {
        flags += &format!(" --admin {admin}");
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;
    use crate::config::load::{Files, from_files};

    fn lines(flags: &Overrides, dir: Option<&str>) -> ReadyLines {
        let config = from_files(Files::embedded(), &[], flags).expect("right");
        let plain = config.gateway.listen;
        let announcement = Announcement {
            dir: dir.map(PathBuf::from),
            listens: Listens { plain, tls: None },
            admin: config.gateway.admin.listen,
            probes: config.gateway.admin.probes,
            shards: 2,
            connections_cap: 9_000,
        };
        announcement.lines(&config, &config.snapshot)
    }

    #[test]
    fn the_first_line_is_for_programs_and_the_others_say_what_is_next() {
        let ReadyLines { at, next } = lines(&Overrides::default(), None);
        assert_eq!(at, "ws://127.0.0.1:9000/ws admin http://127.0.0.1:8000 shards 2");
        let expected = "  connect to  ws://127.0.0.1:9000/ws\n  \
             answers     ids 1000-1999 logic (demo), 2000-2999 chat (demo), 3000-3999 fight \
             (demo), 9000-9999 the gateway itself\n  \
             clients     at most 18000 at once, by the limit of open files\n  \
             try it      http://127.0.0.1:8000/ in a browser\n  \
             read        http://127.0.0.1:8000/guide, the state in /health and /stats\n  \
             stop        Ctrl-C, or: PROGRAM drain";
        assert_eq!(next, expected.replace("PROGRAM", &program()));
    }

    #[test]
    fn a_listener_for_probes_is_named() {
        let mut files = Files::embedded();
        files.gateway.text = "admin.probes = \"0.0.0.0:8080\"".into();
        let config = from_files(files, &[], &Overrides::default()).expect("right");
        let listens = Listens { plain: config.gateway.listen, tls: None };
        let (admin, probes) = (config.gateway.admin.listen, config.gateway.admin.probes);
        let connections_cap = usize::MAX;
        let announcement =
            Announcement { dir: None, listens, admin, probes, shards: 1, connections_cap };
        let ReadyLines { at, next } = announcement.lines(&config, &config.snapshot);
        assert!(at.contains("/ws probes http://0.0.0.0:8080 admin http://127.0.0.1:8000"), "{at}");
        let probes = "  probes      http://127.0.0.1:8080/healthz and http://127.0.0.1:8080/readyz";
        assert!(next.lines().any(|line| line == probes), "{next}");
        assert!(next.contains("  clients     at most 200000 at once, by conn.connections_max\n"));
    }

    #[test]
    fn commands_and_urls_are_those_of_this_gateway() {
        let flags = Overrides {
            listen: Some("0.0.0.0:9010".into()),
            admin: Some("127.0.0.1:8010".into()),
            no_demo: true,
            ..Overrides::default()
        };
        let ReadyLines { at, next } = lines(&flags, Some("/etc/my gate"));
        assert!(at.starts_with("ws://0.0.0.0:9010/ws "), "{at}");
        assert!(next.contains("connect to  ws://127.0.0.1:9010/ws\n"), "{next}");
        assert!(next.contains("ids 1000-1999 logic, 2000") && !next.contains("demo"), "{next}");
        let drain = " drain --config '/etc/my gate' --admin 127.0.0.1:8010";
        assert!(next.ends_with(drain), "{next}");
        assert!(lines(&Overrides::default(), Some("shards")).next.ends_with(" drain"));
    }
}
