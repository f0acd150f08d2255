//! `/connect`: where clients connect, whether they sign in, and which ids are answered.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{Overview, ProcessInfo};
use crate::config::reachable;
use crate::config::settings::AuthMode;
use crate::routing::Route;

/// Routes that are named; `/services` shows all.
const ROUTES_SHOWN: usize = 20;

/// What a client needs to know. A listener on all interfaces is named by `host`, the name by which
/// who asks has reached this machine.
pub fn connect(info: &ProcessInfo, overview: &Overview, host: Option<&str>) -> Value {
    let gateway = &overview.directory.config.gateway;
    let snapshot = &overview.directory.snapshot;
    let both = [("ws", info.listens.plain), ("wss", info.listens.tls)];
    let url = |(scheme, address): (&str, Option<SocketAddr>)| {
        let address = address?;
        Some(match host.filter(|_| address.ip().is_unspecified()) {
            Some(host) => format!("{scheme}://{host}:{}{}", address.port(), gateway.path),
            None => format!("{scheme}://{}{}", reachable(address), gateway.path),
        })
    };
    let is_demo = |route: &Route| {
        let mut own = snapshot.instances.iter().filter(|i| i.service == route.service);
        let addresses = &gateway.demo.addresses;
        gateway.demo.enabled && own.any(|i| addresses.contains(&i.addresses.first()))
    };
    let route = |route: &Route| {
        let service = snapshot.services.get(usize::from(route.service.0));
        json!({
            "range": [route.first, route.last],
            "service": service.map_or("", |service| &*service.name),
            "demo": is_demo(route),
            "auth": if route.needs_user { "user" } else { "none" },
        })
    };
    let (first, last) = gateway.gateway_ids;
    json!({
        "urls": both.into_iter().filter_map(url).collect::<Vec<_>>(),
        "auth": {
            "mode": match gateway.auth.mode {
                AuthMode::Off => "off",
                AuthMode::Jwt => "jwt",
            },
            "required": gateway.auth.required,
        },
        "routes": snapshot.routes.iter().take(ROUTES_SHOWN).map(route).collect::<Vec<_>>(),
        "gateway_ids": [first, last],
    })
}
