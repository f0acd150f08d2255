//! The admin endpoint: HTTP/1.1, one request a connection, for tools and people on this host.
//! [`routes`] lists what it answers, [`guard`] checks who may ask. [`probes`] is a listener of its
//! own for those who ask only whether the gateway lives and is ready.

mod answer;
mod change;
mod guard;
mod guide;
mod page;
pub mod probes;
mod read;
mod routes;
mod sockets;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use self::answer::HttpError;
use self::guard::{Origins, Rights, check_access, check_origin, whole_request};
use self::sockets::{CONNECTION_TIMEOUT, Endpoint};
use super::gathering::Overview;
use super::inspections::QueryResult;
use super::marks::Marks;
use super::request::ControlRequest;
use super::view::ProcessInfo;
use super::{server_tls, token};
use crate::config::settings::AdminSettings;
use crate::inspect;

/// Largest body of a request. The longest useful one is a log filter of 1 KiB.
const BODY_BYTES_MAX: usize = 16 << 10;

/// State of the handlers.
#[derive(Clone)]
pub struct Admin {
    pub info: Arc<ProcessInfo>,
    pub requests: mpsc::Sender<ControlRequest>,
    pub marks: Arc<Mutex<Marks>>,
}

/// Makes the endpoint: a future that never ends. The error is one line.
pub fn serve(
    listener: std::net::TcpListener,
    address: SocketAddr,
    settings: &AdminSettings,
    connections_max: usize,
    admin: Admin,
) -> io::Result<impl Future<Output = ()> + Send + 'static> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let tls = server_tls::acceptor(
        "admin",
        settings.tls_cert.as_deref(),
        settings.tls_key.as_deref(),
        &[b"http/1.1"],
    )
    .map_err(io::Error::other)?;
    let (token, made) = match token::for_server(settings, address.port()) {
        Ok((token, made)) => (Ok(token), made),
        Err(why) => (Err(why), None),
    };
    if let Err(why) = &token {
        tracing::warn!(
            why,
            "admin_token_missing: the admin endpoint refuses every request that needs the token"
        );
    }
    let origins = Origins {
        address,
        tls: tls.is_some(),
        any_host: routes::is_probe,
        any_page: routes::is_library,
    };
    let rights = Rights { loopback: address.ip().is_loopback(), token };
    let endpoint = Endpoint {
        key: "admin.listen",
        tls,
        router: router(admin, origins, rights),
        request_timeout: CONNECTION_TIMEOUT,
        connections_max,
    };
    let serving = endpoint.serve(listener);
    Ok(async move {
        // The file goes with the endpoint: it ends when control does, however that is.
        let _made = made;
        serving.await;
    })
}

fn router(admin: Admin, origins: Origins, rights: Rights) -> Router {
    let rights = Arc::new(rights);
    let mut router = Router::new();
    for route in routes::ROUTES {
        // A method layer: a method that the route does not have is answered 405 to anybody.
        let layer = from_fn_with_state((rights.clone(), route.access()), check_access);
        router = router.route(route.path, route.handler().route_layer(layer));
    }
    let no_such = "this path is not served: GET / lists those that are";
    guarded(router, no_such, origins).with_state(admin)
}

/// Adds what every listener does: other paths are refused with `no_such`, requests of other origins
/// whatever they ask for.
fn guarded(router: Router<Admin>, no_such: &'static str, origins: Origins) -> Router<Admin> {
    router
        .fallback(async move || HttpError::new(StatusCode::NOT_FOUND, no_such))
        .layer(from_fn(whole_request))
        .layer(from_fn_with_state(Arc::new(origins), check_origin))
}

impl Admin {
    /// Sends a request to control, and waits for the answer.
    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> ControlRequest,
    ) -> Result<T, HttpError> {
        let (reply, answer) = oneshot::channel();
        // Waits for room; the time of the connection bounds that.
        self.requests.send(request(reply)).await.map_err(|_| HttpError::ending())?;
        answer.await.map_err(|_| HttpError::ending())
    }

    /// Waits for the end of the gathering under way, or of a new one.
    async fn gather(&self) -> Result<Arc<Overview>, HttpError> {
        self.ask(ControlRequest::Gather).await
    }

    /// Puts a query to all shards, and waits for their answers.
    async fn inspect(&self, query: inspect::Query) -> Result<QueryResult, HttpError> {
        self.ask(|reply| ControlRequest::Inspect(query, reply)).await
    }
}
