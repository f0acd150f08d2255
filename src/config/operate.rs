//! The keys of `gateway.toml` that the control thread lives by: admin endpoint, discovery, health,
//! stop.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::check::{NAME_RULE, is_name};
use super::reader::{ADDRESS_RULE, Bounds, Reader};
use super::settings::*;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 3_600_000;
/// Characters of a token: 16 random bytes in base64 are 22; fewer can be guessed.
const TOKEN_CHARS_MIN: usize = 16;
/// Callers of the registry.
const CALLERS_MAX: usize = 1024;

const TOKEN_RULE: &str =
    "must be 16 to 256 visible characters without spaces, e.g. from: openssl rand -hex 16";
const FILE_RULE: &str = "must be the path of a file";

/// Whether `s` can be a token of a header.
pub fn is_token(s: &str) -> bool {
    (TOKEN_CHARS_MIN..=256).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_graphic())
}

fn milliseconds(r: &mut Reader, key: &'static str, default: Duration, bounds: Bounds) -> Duration {
    Duration::from_millis(r.number(key, default.as_millis() as u64, bounds))
}

/// A file's path; empty = none.
fn file(r: &mut Reader, key: &'static str) -> Option<PathBuf> {
    let text = r.text(key, "", |s| !s.contains('\0'), FILE_RULE);
    (!text.is_empty()).then(|| text.into())
}

/// Two keys of which neither makes sense without the other.
fn both(r: &mut Reader, keys: [&str; 2], set: [bool; 2]) {
    let [first, second] = keys;
    r.relation(set[0] == set[1], keys, format!("{first} and {second} go together: set both"));
}

/// `[admin]`
pub fn admin(r: &mut Reader) -> AdminSettings {
    let d = AdminSettings::default();
    let token = r.secret("admin.token", |s| s.is_empty() || is_token(s), TOKEN_RULE);
    let settings = AdminSettings {
        listen: r.address("admin.listen", d.listen),
        token: token.filter(|s| !s.is_empty()).map(Secret::from),
        token_file: file(r, "admin.token_file"),
        tls_cert: file(r, "admin.tls_cert"),
        tls_key: file(r, "admin.tls_key"),
    };
    let set = [settings.tls_cert.is_some(), settings.tls_key.is_some()];
    both(r, ["admin.tls_cert", "admin.tls_key"], set);
    if !settings.listen.ip().is_loopback() {
        let given = settings.token.is_some() || settings.token_file.is_some();
        if !given || !set[0] {
            let rule = "is not a loopback address: that needs admin.tls_cert, admin.tls_key and \
                        admin.token (or admin.token_file); or listen on 127.0.0.1 and use a tunnel";
            r.problem("admin.listen", rule);
        }
    }
    settings
}

/// `[stop]`
pub fn stop(r: &mut Reader) -> StopSettings {
    let d = StopSettings::default();
    StopSettings {
        grace: milliseconds(r, "stop.grace_ms", d.grace, Bounds::new(0, 10 * MINUTE_MS)),
        spread: milliseconds(r, "stop.spread_ms", d.spread, Bounds::new(0, 10 * MINUTE_MS)),
        reconnect: milliseconds(r, "stop.reconnect_ms", d.reconnect, Bounds::new(0, HOUR_MS)),
    }
}

/// `[discovery]`, `[dns]`, `[etcd]`, `[registry]` and `[[registry_token]]`
pub fn discovery(r: &mut Reader) -> DiscoverySettings {
    let d = DiscoverySettings::default();
    let address = |s: &str| s.parse::<SocketAddr>().is_ok();
    let servers = r.texts("dns.servers", &[], address, ADDRESS_RULE);
    DiscoverySettings {
        debounce: milliseconds(r, "discovery.debounce_ms", d.debounce, Bounds::new(1, MINUTE_MS)),
        dns_servers: servers.iter().filter_map(|s| s.parse().ok()).collect(),
        etcd: etcd(r),
        registry: registry(r),
    }
}

fn etcd(r: &mut Reader) -> Option<EtcdSettings> {
    let rule = "must be http://host:port or https://host:port";
    let endpoints = r.texts("etcd.endpoints", &[], is_endpoint, rule);
    let rule = "must start with '/', not end with it, and have at most 200 visible characters";
    let prefix = r.text("etcd.prefix", "/shardgate", is_prefix, rule);
    let user = r.text("etcd.user", "", |_| true, "must be a user's name");
    let password = r.secret("etcd.password", |_| true, "must be a string");
    let password = password.filter(|s| !s.is_empty()).map(Secret::from);
    let password_file = file(r, "etcd.password_file");
    let [ca_file, cert_file, key_file] =
        ["etcd.ca_file", "etcd.cert_file", "etcd.key_file"].map(|key| file(r, key));
    let given = password.is_some() || password_file.is_some();
    r.relation(
        user.is_empty() != given,
        ["etcd.user", "etcd.password"],
        "etcd.user and etcd.password (or etcd.password_file) go together: set both",
    );
    let set = [cert_file.is_some(), key_file.is_some()];
    both(r, ["etcd.cert_file", "etcd.key_file"], set);
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
    let rule = "must be empty, or an IP address and a port, e.g. \"127.0.0.1:8001\"";
    let valid = |s: &str| s.is_empty() || s.parse::<SocketAddr>().is_ok();
    let listen = r.text("registry.listen", "", valid, rule).parse::<SocketAddr>().ok();
    let (tls_cert, tls_key) = (file(r, "registry.tls_cert"), file(r, "registry.tls_key"));
    both(r, ["registry.tls_cert", "registry.tls_key"], [tls_cert.is_some(), tls_key.is_some()]);
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
    let (list, source) = r.list("registry_token");
    if list.len() > CALLERS_MAX {
        r.problem("registry_token", format!("at most {CALLERS_MAX} of them"));
        return Vec::new();
    }
    let mut callers: Vec<RegistryCaller> = Vec::new();
    for (index, node) in list.into_iter().enumerate() {
        let prefix = format!("registry_token[{index}]");
        let Some(mut own) = Reader::of_table(prefix, node, &source, &mut r.report) else {
            continue;
        };
        let name = own.required_text("name", is_name, NAME_RULE);
        let token = own.secret("token", is_token, TOKEN_RULE).map(Secret::from);
        let token_file = file(&mut own, "token_file");
        if token.is_some() == token_file.is_some() {
            own.problem("token", "set one of token and token_file");
        }
        let services = own.texts("services", &[], is_name, "must be the name of a [[service]]");
        if services.is_empty() {
            own.problem("services", "must name at least one service that this caller may change");
        }
        if name.as_deref().is_some_and(|name| callers.iter().any(|c| &*c.name == name)) {
            own.problem("name", "is the name of another caller; rename one");
        }
        own.unknown(&[], "");
        r.report.absorb(own.report);
        if let Some(name) = name {
            let services = services.into_iter().map(Arc::from).collect();
            callers.push(RegistryCaller { name: name.into(), token, token_file, services });
        }
    }
    callers
}

/// `[health]` and `[ejection]`
pub fn health(r: &mut Reader) -> HealthSettings {
    let d = HealthSettings::default();
    let percent = Bounds::new(0, 100);
    let hour = Bounds::new(100, HOUR_MS);
    let settings = HealthSettings {
        check_every: milliseconds(
            r,
            "health.check_ms",
            d.check_every,
            Bounds::or_zero("never", 100, HOUR_MS),
        ),
        check_timeout: milliseconds(
            r,
            "health.timeout_ms",
            d.check_timeout,
            Bounds::new(10, MINUTE_MS),
        ),
        up_after: r.number("health.up_after", d.up_after, Bounds::new(1, 100)),
        down_after: r.number("health.down_after", d.down_after, Bounds::new(1, 100)),
        panic_percent: r.number("health.panic_percent", d.panic_percent, percent),
        slow_start: milliseconds(
            r,
            "health.slow_start_ms",
            d.slow_start,
            Bounds::or_zero("at once", 100, HOUR_MS),
        ),
        eject_after: r.number(
            "ejection.failures",
            d.eject_after,
            Bounds::or_zero("never", 1, 10_000),
        ),
        eject_losses: r.number(
            "ejection.losses",
            d.eject_losses,
            Bounds::or_zero("never", 1, 10_000),
        ),
        eject: milliseconds(r, "ejection.ms", d.eject, hour),
        eject_max: milliseconds(r, "ejection.ms_max", d.eject_max, hour),
        ejected_percent_max: r.number("ejection.percent_max", d.ejected_percent_max, percent),
        trial_percent: r.number("ejection.trial_percent", d.trial_percent, Bounds::new(1, 100)),
        trial: milliseconds(r, "ejection.trial_ms", d.trial, hour),
    };
    r.relation(
        settings.eject <= settings.eject_max,
        ["ejection.ms", "ejection.ms_max"],
        "ejection.ms must not be above ejection.ms_max",
    );
    settings
}
