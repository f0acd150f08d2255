//! The one table of what the admin endpoint answers: the router is made of it, `GET /` lists it,
//! and a test holds `openapi.json` against it.

use axum::routing::{MethodRouter, get, post};

use super::{Admin, change, read};

/// One endpoint.
pub struct Route {
    /// `GET` or `POST`.
    pub method: &'static str,
    /// Path, with its parameters in braces.
    pub path: &'static str,
    /// What it is for, in a line.
    pub about: &'static str,
    /// Who answers.
    pub handler: fn() -> MethodRouter<Admin>,
}

const fn route(
    method: &'static str,
    path: &'static str,
    about: &'static str,
    handler: fn() -> MethodRouter<Admin>,
) -> Route {
    Route { method, path, about, handler }
}

/// All of them.
pub const ROUTES: &[Route] = &[
    route("GET", "/", "this list", || get(read::index)),
    route("GET", "/health", "how everything is; 503 when a shard is not well", || {
        get(read::health)
    }),
    route("GET", "/healthz", "200 as long as control runs: for liveness probes", || {
        get(read::healthz)
    }),
    route("GET", "/readyz", "200 when all shards serve: for readiness probes", || {
        get(read::readyz)
    }),
    route("GET", "/stats", "everything counted, in sum and a shard", || get(read::stats)),
    route("GET", "/routing/stats", "routing, cache, queue, dispatch, in sum and a shard", || {
        get(read::routing_stats)
    }),
    route(
        "GET",
        "/routing/explain",
        "where a message goes, and why: ?msg_id=&key=&user=&session=",
        || get(read::explain),
    ),
    route("GET", "/metrics", "Prometheus text", || get(read::metrics)),
    route("GET", "/shards", "state, version, core and load of each shard", || get(read::shards)),
    route("GET", "/services", "services with their routes and instances", || get(read::services)),
    route("GET", "/connections", "connections: counts; ?top=N talkers; ?session=<id> one", || {
        get(read::connections)
    }),
    route("GET", "/histograms", "HdrHistogram V2 interval log of all stages", || {
        get(read::histograms)
    }),
    route("GET", "/config", "every setting and where it came from, services and routes", || {
        get(read::config)
    }),
    route("GET", "/log", "the log filter in force", || get(read::log)),
    route("POST", "/log", "change it: {\"filter\": \"info,shardgate::backend=debug\"}", || {
        post(change::log)
    }),
    route("POST", "/reload", "read the files again, all or nothing", || post(change::reload)),
    route("POST", "/instances/{id}/drain", "give an instance nothing new", || {
        post(change::drain_instance)
    }),
    route("POST", "/instances/{id}/undrain", "give it something again", || {
        post(change::undrain_instance)
    }),
    route("POST", "/drain", "stop the gateway in order, as SIGTERM does", || post(change::drain)),
    route("POST", "/dump", "write histograms and state to files, as SIGUSR1 does", || {
        post(change::dump)
    }),
    route("GET", "/openapi.json", "this endpoint described as OpenAPI 3.1", || get(read::openapi)),
];
