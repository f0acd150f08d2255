//! The listener of probes: plain HTTP for kubelets and balancers, which have no secret and name any
//! host. It answers whether the gateway lives and is ready, and has places of its own, so that
//! nobody who reaches it holds up the admin endpoint.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;

use super::guard::Origins;
use super::routes::{ROUTES, is_probe};
use super::sockets::Endpoint;
use super::{Admin, guarded, read};

/// Time from accept to the end of a request, which programs send at once.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// Path of the metrics, where they are served.
const METRICS: &str = "/metrics";

/// Makes the listener's service: a future that never ends. With `metrics` it serves those, too.
pub fn serve(
    listener: std::net::TcpListener,
    address: SocketAddr,
    metrics: bool,
    connections_max: usize,
    admin: Admin,
) -> io::Result<impl Future<Output = ()> + Send + 'static> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let endpoint = Endpoint {
        key: "admin.probes",
        tls: None,
        router: router(address, metrics, admin),
        request_timeout: REQUEST_TIMEOUT,
        connections_max,
    };
    Ok(endpoint.serve(listener))
}

fn router(address: SocketAddr, metrics: bool, admin: Admin) -> Router {
    let mut router = Router::new();
    for route in ROUTES.iter().filter(|route| is_probe(route.path)) {
        router = router.route(route.path, route.handler());
    }
    let mut no_such = "this port serves /healthz and /readyz; all else is at admin.listen";
    let mut any_host: fn(&str) -> bool = |_| true;
    if metrics {
        router = router.route(METRICS, get(read::metrics));
        no_such = "this port serves /healthz, /readyz and /metrics; all else is at admin.listen";
        any_host = |path| path != METRICS;
    }
    let origins = Origins { address, tls: false, any_host, any_page: |_| false };
    guarded(router, no_such, origins).with_state(admin)
}
