//! `/config`: the configuration in force, and the origin of each value. Secrets are redacted where
//! the configuration is read, so they cannot be shown here.

use serde_json::{Value, json};

use super::{Overview, ProcessInfo, listed, mode, tls};

/// Every key, service and route, and what came of them on this machine.
pub fn config(info: &ProcessInfo, overview: &Overview) -> Value {
    let config = &overview.directory.config;
    let settings = config.provenance.iter().map(
        |(key, value, source)| json!({ "key": key, "value": value, "source": source.to_string() }),
    );
    let services = config.snapshot.services.iter().map(|service| {
        let tls = tls(overview, &service.name);
        json!({ "name": &*service.name, "mode": mode(service.mode), "tls": tls })
    });
    let routes = config.snapshot.all_routes().into_iter().map(|r| listed(&config.snapshot, r));
    let lookups = config.lookups.iter().map(|lookup| {
        json!({
            "service": &*lookup.service,
            "dns": lookup.name.to_string(),
            "dns_family": lookup.family.word(),
        })
    });
    let accepted = |shard: &super::ShardView| {
        let max = config.shards.shard(usize::from(shard.shard.0)).conn.connections_max;
        max.at_most(overview.directory.connections_cap).get()
    };
    json!({
        "version": overview.directory.snapshot.version,
        "settings": settings.collect::<Vec<_>>(),
        "connections_max": overview.shards.iter().map(accepted).collect::<Vec<_>>(),
        "cores": { "shards": info.cores.shards, "other_threads": info.cores.others },
        "services": services.collect::<Vec<_>>(),
        "routes": routes.collect::<Vec<_>>(),
        "lookups": lookups.collect::<Vec<_>>(),
        "warnings": config.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}
