//! `shardgate gen systemd`: a unit for this program with this configuration.
//!
//! `Type=notify` with an `ExecReload=` and not `notify-reload`: the latter came with systemd 253,
//! and Debian 11 (247) and 12 (252) refuse the word. The gateway tells RELOADING and READY to
//! either.

mod faults;

use std::path::Path;

use crate::config::{Config, Overrides};
use crate::limits::ADMIN_CONNECTIONS_MAX;
use crate::preflight::{allowed_cores, auto_count, files_of_clients, files_overhead, ranges};

/// Time between the end of the grace and that of the process: as long as control waits for the
/// shards' last errors (10 s), and as much again for a busy host.
const STOP_MARGIN_S: u64 = 20;
/// Time without an answer after which a shard is stuck: each of its turns takes milliseconds.
const WATCHDOG_S: u64 = 10;
/// Pause before a restart: a port that is still held is free then, and a crash loop stays slow.
const RESTART_S: u64 = 2;

/// Comment at the head of the unit, and its order and start limits.
const HEAD: &str = "\
# Made by `shardgate gen systemd`. Make it anew when shards, connections_max or stop.grace_ms
# change:  shardgate gen systemd > /etc/systemd/system/shardgate.service && systemctl daemon-reload
[Unit]
Description=shardgate, a WebSocket gateway
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=60
StartLimitBurst=10

";

/// Restrictions that need nothing of the configuration, and the end of the unit.
const HARDENING: &str = "\
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
SystemCallArchitectures=native
# @system-service has no io_uring in it; pinning is of @resources.
SystemCallFilter=@system-service io_uring_setup io_uring_enter io_uring_register
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
";

/// A unit to be made.
pub(super) struct Unit<'a> {
    pub config: &'a Config,
    /// Absolute path of the program.
    pub program: &'a Path,
    /// Absolute path of the configuration; `None` = the built-in one is served.
    pub dir: Option<&'a Path>,
    /// Flags that change what is served.
    pub flags: &'a Overrides,
    pub user: &'a str,
}

impl Unit<'_> {
    /// Text of the unit.
    pub(super) fn text(&self) -> String {
        let (limits, capability) = (limits(self.config), capability(self.config));
        let (process, owner) = (process(self), owner(self.user));
        format!("{HEAD}{process}\n{owner}\n{limits}\n{capability}\n{HARDENING}")
    }

    /// What of it will not work here, one a line, with the way out. `env` are the variables that
    /// changed its configuration.
    pub(super) fn faults(&self, env: &[(String, String)]) -> Vec<String> {
        faults::faults(self.config, self.program, self.dir, self.user, env)
    }
}

/// Lines on start, reload, watchdog, restart and stop.
fn process(unit: &Unit<'_>) -> String {
    let mut flags = unit.dir.map_or(String::new(), |dir| format!(" --config {}", quoted(dir)));
    for (flag, value) in unit.flags.shown() {
        flags += &format!(" {flag}");
        flags += &value.map_or(String::new(), |value| format!(" {}", quoted(Path::new(value))));
    }
    let program = quoted(unit.program);
    let stop = unit.config.gateway.stop.grace.as_secs() + 1 + STOP_MARGIN_S;
    format!(
        "\
[Service]
# Not notify-reload: systemd before 253 refuses the word.
Type=notify
NotifyAccess=main
ExecStart={program}{flags}
ExecReload=/bin/kill -HUP $MAINPID
# Beats come only while every shard answers.
WatchdogSec={WATCHDOG_S}
Restart=on-failure
RestartSec={RESTART_S}
# 64: the configuration is wrong, which no restart mends.
RestartPreventExitStatus=64
# stop.grace_ms and what the shards take for their last words.
TimeoutStopSec={stop}
KillMode=mixed
"
    )
}

/// Lines on the user, and on the user's directories.
fn owner(user: &str) -> String {
    format!(
        "\
User={user}
Group={user}
# Holds the admin token: the verbs look there, as root or as the same user.
RuntimeDirectory=shardgate
RuntimeDirectoryMode=0700
StateDirectory=shardgate
StateDirectoryMode=0700
"
    )
}

/// Lines on open files, memory and cores.
fn limits(config: &Config) -> String {
    let allowed = allowed_cores();
    let gateway = &config.gateway;
    let shards = gateway.shards.unwrap_or_else(|| auto_count(allowed.len()));
    let clients = |n| files_of_clients(config.shards.shard(n).conn.connections_max.get(), shards);
    let connections: u64 = (0..shards).map(clients).sum();
    let overhead = files_overhead(config, shards, ADMIN_CONNECTIONS_MAX);
    let files = connections + overhead;
    let affinity = affinity(config, shards, &allowed);
    format!(
        "\
# connections_max of {shards} shards and who moves between them ({connections}), and {overhead}
# of our own.
LimitNOFILE={files}
LimitMEMLOCK=infinity
LimitCORE=0
{affinity}
# When memory lacks, the whole gateway ends and is started again: never a part of it.
OOMPolicy=stop
"
    )
}

/// Lines on the capability for ports below 1024, if one is configured.
fn capability(config: &Config) -> &'static str {
    // Port 0 is one that the kernel chooses, above 1024.
    if config.gateway.own_addresses().any(|(_, a)| (1..1024).contains(&a.port())) {
        "AmbientCapabilities=CAP_NET_BIND_SERVICE\nCapabilityBoundingSet=CAP_NET_BIND_SERVICE"
    } else {
        "CapabilityBoundingSet="
    }
}

/// Lines on the cores: those that are configured, and one for control if there is another.
fn affinity(config: &Config, shards: usize, allowed: &[usize]) -> String {
    let pinned: Option<Vec<usize>> = (0..shards).map(|n| config.shards.shard(n).core).collect();
    let Some(mut cores) = pinned.filter(|cores| !cores.is_empty()) else {
        return "# shard.core is auto: shards take the allowed cores in turn. Narrow them with\n\
                # CPUAffinity=0-3"
            .into();
    };
    cores.extend(allowed.iter().find(|core| !cores.contains(core)));
    cores.sort_unstable();
    cores.dedup();
    let cores = ranges(&cores).replace(", ", " ");
    format!("# The cores of the shards, and one more for control and pulse.\nCPUAffinity={cores}")
}

/// Quotes a path as a word of `ExecStart=`.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy().replace('%', "%%").replace('$', "$$");
    if text.chars().any(|c| c.is_whitespace() || matches!(c, '"' | '\'' | '\\')) {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;
    use crate::config::load::{Files, from_files};

    fn made(flags: &Overrides) -> String {
        let config = from_files(Files::embedded(), &[], flags).expect("right");
        let (program, dir) = (Path::new("/usr/bin/shardgate"), Path::new("/etc/shard gate"));
        Unit { config: &config, program, dir: Some(dir), flags, user: "gate" }.text()
    }

    fn value<'a>(unit: &'a str, key: &str) -> &'a str {
        let line = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("{key} in {unit}"))
    }

    #[test]
    fn limits_and_times_follow_from_the_configuration() {
        let flags = Overrides { shards: Some("2".into()), ..Overrides::default() };
        let unit = made(&flags);
        let files: u64 = value(&unit, "LimitNOFILE").parse().expect("a number");
        assert!(files > 450_000, "200,000 connections and 1/8 on each of 2 shards: {files}");
        assert_eq!(value(&unit, "TimeoutStopSec"), "31", "10 s of grace, and a margin");
        assert_eq!(value(&unit, "RestartPreventExitStatus"), "64");
        let start = "/usr/bin/shardgate --config \"/etc/shard gate\" --shards 2";
        assert_eq!(value(&unit, "ExecStart"), start);
        assert!(value(&unit, "SystemCallFilter").contains("io_uring_enter"));
        assert!(!unit.contains("\nCPUAffinity="), "no core is configured");
    }

    #[test]
    fn configured_cores_are_pinned() {
        let flags = Overrides { cores: Some("0".into()), ..Overrides::default() };
        assert!(value(&made(&flags), "CPUAffinity").starts_with('0'));
    }

    #[test]
    fn every_line_is_a_section_a_comment_or_a_key_with_one_value() {
        let unit = made(&Overrides::default());
        for line in unit.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let section = line.starts_with('[') && line.ends_with(']');
            let key = line.split_once('=').is_some_and(|(key, _)| {
                !key.is_empty() && key.chars().all(|c| c.is_ascii_alphabetic())
            });
            assert!(section || key, "{line}");
        }
    }
}
