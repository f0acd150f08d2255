//! `shardgate check`: every problem of the configuration, or its routes and memory.

use super::routes::named_instances;
use super::table::aligned;
use super::{EXIT_USAGE, Output};
use crate::config::{Config, Problems};
use crate::control::token;
use crate::memory::{self, Budget, Part, shown};
use crate::preflight::doctor::memory_of_machine;
use crate::preflight::{allowed_cores, auto_count, core_problems};

/// Output of `shardgate check`.
pub fn check(loaded: Result<Config, Problems>) -> Output {
    let config = match loaded {
        Ok(config) => config,
        Err(problems) => {
            let count = problems.0.len();
            let s = if count == 1 { "" } else { "s" };
            return Output::wrong(format!("{problems}\n{count} problem{s}"), EXIT_USAGE);
        }
    };
    let mut out = String::new();
    for warning in &config.warnings {
        out += &format!("warning: {warning}\n");
    }
    // What depends on the machine is told, and not refused: the files may be for another one.
    for problem in core_problems(&config) {
        out += &format!("warning: on this machine {problem}\n");
    }
    if let Some(why) = token::unusable(&config.gateway.admin) {
        out += &format!("warning: {why}\n");
    }
    let (gateway, snapshot) = (&config.gateway, &config.snapshot);
    let listens: Vec<String> =
        gateway.listens().map(|(key, a)| format!("{key} {a}{}", gateway.path)).collect();
    let shards = gateway.shards.map_or("auto".into(), |n| n.to_string());
    let probes = gateway.admin.probes.map_or(String::new(), |a| format!(", probes {a}"));
    out += &format!(
        "ok: {}, node {}, admin {}{probes}, shards {shards}, demo services {}\n",
        listens.join(", "),
        gateway.node,
        gateway.admin.listen,
        if gateway.demo.enabled { "on" } else { "off" },
    );
    for (tenant, route) in snapshot.all_routes() {
        let service = usize::from(route.service.0);
        let name = snapshot.services.get(service).map_or("", |s| &*s.name);
        let own = named_instances(&config, route);
        let (first, last, priority) = (route.first, route.last, route.priority.name());
        let of = tenant.map_or(String::new(), |tenant| format!("tenant {tenant}: "));
        out += &format!("  {of}{first}-{last} -> {name} ({priority}): {own}\n");
    }
    let count = gateway.shards.unwrap_or_else(|| auto_count(allowed_cores().len()));
    out += &budget(&config, count, memory_of_machine());
    Output::fine(out)
}

/// Table of the memory that the caps come to, against the memory of the machine.
fn budget(config: &Config, shards: usize, machine: Option<u64>) -> String {
    let instances = config.snapshot.instances.len();
    let tls = config.gateway.tls.listen.is_some();
    let all: Vec<Budget> =
        (0..shards).map(|n| memory::of_shard(&config.shards.shard(n), instances, tls)).collect();
    let rows = |parts: &[Part]| -> Vec<[String; 3]> {
        parts.iter().map(|p| [p.what.into(), shown(p.bytes), p.how.clone()]).collect()
    };
    let mut out = String::from("\n");
    // Shards with the same budget are shown once.
    let mut at = 0;
    while at < all.len() {
        let same = all[at..].iter().take_while(|budget| **budget == all[at]).count();
        let which = if same == 1 {
            format!("shard {at}")
        } else {
            format!("each of shards {at}-{}", at + same - 1)
        };
        out += &format!("memory of {which} when its caps are reached and clients read:\n");
        out += &aligned(["PART", "BYTES", "FROM"], &rows(&all[at].full));
        out += &format!("in all {}; on top, in the worst case:\n", shown(all[at].full_bytes()));
        out += &aligned(["CASE", "BYTES", "FROM"], &rows(&all[at].worst));
        out.push('\n');
        at += same;
    }
    let process = memory::of_process(config, shards);
    out += "memory of the process besides:\n";
    out += &aligned(["PART", "BYTES", "FROM"], &rows(&process));
    let own = process.iter().fold(0u64, |sum, part| sum.saturating_add(part.bytes));
    let full = all.iter().fold(own, |sum, budget| sum.saturating_add(budget.full_bytes()));
    out += &format!("in all, {shards} shards and the process: {}", shown(full));
    match machine {
        Some(machine) if full > machine => {
            out += &format!(
                "\nwarning: that is more than the {} of this machine or its control group: lower \
                 conn.connections_max, queue.bytes_max, dedup.bytes_max or the shards\n",
                shown(machine)
            );
        }
        Some(machine) => out += &format!(", of {} here\n", shown(machine)),
        None => out.push('\n'),
    }
    out + "Program, allocator and the kernel's socket buffers are not in these figures.\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;
    use crate::config::load::{Files, from_files};

    #[test]
    fn check_tells_the_problems_or_the_routes() {
        let load = |flags: &Overrides| from_files(Files::embedded(), &[], flags);
        let Output { text, code, .. } = check(load(&Overrides::default()));
        assert_eq!(code, 0);
        assert!(text.starts_with("ok: listen 127.0.0.1:9000/ws, node "), "{text}");
        assert!(text.contains(", admin 127.0.0.1:8000, shards"), "{text}");
        assert!(text.contains("3000-3999 -> fight (high): fight-1 127.0.0.1:50003"), "{text}");
        let Output { text, code, .. } =
            check(load(&Overrides { shards: Some("0".into()), ..Overrides::default() }));
        assert_eq!(code, EXIT_USAGE);
        assert!(text.starts_with("flag --shards: shards.count = 0: must be"), "{text}");
        assert!(text.ends_with("\n1 problem"), "{text}");
    }

    #[test]
    fn a_budget_that_is_too_large_for_the_machine_is_warned_of() {
        let config = from_files(Files::embedded(), &[], &Overrides::default()).expect("right");
        let text = budget(&config, 2, Some(1 << 20));
        assert!(text.contains("warning: that is more than the 1.0 MiB"), "{text}");
        assert!(text.contains("conn.connections_max + 1/8 + 64 = 225064 x "), "{text}");
        assert!(!budget(&config, 1, Some(u64::MAX)).contains("warning"));
    }
}
