//! The keys of `[discovery]`, `[dns]`, `[etcd]`, `[registry]` and `[[registry_token]]`.

use std::net::SocketAddr;
use std::sync::Arc;

use super::reader::Reader;
use super::rule::{Bounds, MINUTE_MS, TextRule};
use super::settings::*;
use super::words::{
    ADDRESS_RULE, NAME_RULE, SERVICE_RULE, TOKEN_RULE, is_address, is_name, is_token,
};

/// Largest number of callers of the registry.
const CALLERS_MAX: usize = 1024;

/// Reads `[discovery]`, `[dns]`, `[etcd]`, `[registry]` and `[[registry_token]]`.
pub fn discovery(r: &mut Reader) -> DiscoverySettings {
    let d = DiscoverySettings::default();
    let servers = r.texts("dns.servers", &[], is_address, ADDRESS_RULE);
    DiscoverySettings {
        debounce: r.milliseconds("discovery.debounce_ms", d.debounce, Bounds::new(1, MINUTE_MS)),
        dns_servers: servers.iter().filter_map(|s| s.parse().ok()).collect(),
        etcd: etcd(r),
        registry: registry(r),
    }
}

fn etcd(r: &mut Reader) -> Option<EtcdSettings> {
    let rule = TextRule::new("http://host:port or https://host:port", "");
    let endpoints = r.texts("etcd.endpoints", &[], is_endpoint, rule);
    let rule = TextRule::new("'/' and 1 to 199 visible characters, the last of them not '/'", "");
    let prefix = r.text("etcd.prefix", "/shardgate", is_prefix, rule);
    let any = TextRule::new("any text", "");
    let user = r.text("etcd.user", "", |_| true, any);
    let password = r.secret("etcd.password", |_| true, any).map(Secret::from);
    let password_file = r.file("etcd.password_file");
    let [ca_file, cert_file, key_file] =
        ["etcd.ca_file", "etcd.cert_file", "etcd.key_file"].map(|key| r.file(key));
    let given = password.is_some() || password_file.is_some();
    r.relation(
        user.is_empty() != given,
        ["etcd.user", "etcd.password"],
        "etcd.user and etcd.password (or etcd.password_file) go together: set both",
    );
    let set = [cert_file.is_some(), key_file.is_some()];
    r.both_or_neither(["etcd.cert_file", "etcd.key_file"], set);
    (!endpoints.is_empty()).then_some(EtcdSettings {
        endpoints,
        prefix,
        user,
        password,
        password_file,
        ca_file,
        cert_file,
        key_file,
    })
}

fn is_endpoint(s: &str) -> bool {
    let rest = s.strip_prefix("http://").or_else(|| s.strip_prefix("https://"));
    rest.and_then(|rest| rest.rsplit_once(':')).is_some_and(|(host, port)| {
        let host_ok = !host.is_empty() && !host.contains(['/', '@', ' ']);
        host_ok && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

fn is_prefix(s: &str) -> bool {
    s.starts_with('/')
        && !s.ends_with('/')
        && s.len() <= 200
        && s.bytes().all(|b| b.is_ascii_graphic())
}

fn registry(r: &mut Reader) -> Option<RegistrySettings> {
    let rule = ADDRESS_RULE.or_empty();
    let listen = r.text("registry.listen", "", is_address, rule).parse::<SocketAddr>().ok();
    let (tls_cert, tls_key) = (r.file("registry.tls_cert"), r.file("registry.tls_key"));
    r.both_or_neither(
        ["registry.tls_cert", "registry.tls_key"],
        [tls_cert.is_some(), tls_key.is_some()],
    );
    let callers = callers(r);
    let listen = listen?;
    if callers.is_empty() {
        let rule = "needs at least one [[registry_token]]: nobody could register";
        r.problem("registry.listen", rule);
    }
    if !listen.ip().is_loopback() && tls_cert.is_none() {
        let rule = "is not a loopback address: tokens would travel in the clear; set \
                    registry.tls_cert and registry.tls_key, or listen on 127.0.0.1";
        r.problem("registry.listen", rule);
    }
    Some(RegistrySettings { listen, tls_cert, tls_key, callers })
}

fn callers(r: &mut Reader) -> Vec<RegistryCaller> {
    let (list, source) = r.list("registry_token", CALLERS_MAX);
    if list.len() > CALLERS_MAX {
        r.problem("registry_token", format!("at most {CALLERS_MAX} of them"));
        return Vec::new();
    }
    let mut callers: Vec<RegistryCaller> = Vec::new();
    for (index, node) in list.into_iter().enumerate() {
        let prefix = format!("registry_token[{index}]");
        let Some(mut table) = Reader::of_table(prefix, node, &source, &mut r.report) else {
            continue;
        };
        let name = table.required_text("name", is_name, NAME_RULE);
        let token = table.secret("token", is_token, TOKEN_RULE.or_empty()).map(Secret::from);
        let token_file = table.file("token_file");
        if token.is_some() == token_file.is_some() {
            table.problem("token", "set one of token and token_file");
        }
        let services = table.texts("services", &[], is_name, SERVICE_RULE);
        if services.is_empty() {
            table.problem("services", "must name at least one service that this caller may change");
        }
        if name.as_deref().is_some_and(|name| callers.iter().any(|c| &*c.name == name)) {
            table.problem("name", "is the name of another caller; rename one");
        }
        table.unknown(&[], "");
        r.report.absorb(table.report);
        if let Some(name) = name {
            let services = services.into_iter().map(Arc::from).collect();
            callers.push(RegistryCaller { name: name.into(), token, token_file, services });
        }
    }
    callers
}
