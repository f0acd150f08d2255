//! The admin endpoint: HTTP/1.1, one request a connection, for tools and people on this host.
//! [`routes`] lists what it answers, [`guard`] checks who may ask.

mod answer;
mod change;
mod guard;
mod guide;
mod read;
mod routes;
mod sockets;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use self::answer::HttpError;
use self::guard::{Rules, check_access, check_origin};
use super::gathering::Overview;
use super::inspections::QueryResult;
use super::request::{ControlRequest, REQUESTS_MAX};
use super::token;
use super::view::ProcessInfo;
use crate::config::settings::AdminSettings;
use crate::inspect;

/// Largest body of a request. The longest useful one is a log filter of 1 KiB.
const BODY_BYTES_MAX: usize = 16 << 10;

/// State of the handlers.
#[derive(Clone)]
pub struct Admin {
    info: Arc<ProcessInfo>,
    requests: mpsc::Sender<ControlRequest>,
}

/// Makes the endpoint: a future that never ends by itself. The error is one line.
pub fn serve(
    listener: std::net::TcpListener,
    address: SocketAddr,
    settings: &AdminSettings,
    info: Arc<ProcessInfo>,
    requests: mpsc::Sender<ControlRequest>,
) -> io::Result<impl Future<Output = ()> + Send + 'static> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let tls = sockets::tls(settings).map_err(io::Error::other)?;
    let token = token::for_server(settings, address.port());
    if let Err(why) = &token {
        tracing::warn!(
            why,
            "admin_token_missing: the admin endpoint refuses every request that needs the token"
        );
    }
    let rules = Rules { address, tls: tls.is_some(), token };
    let router = router(Admin { info, requests }, Arc::new(rules));
    let (accepted, ready) = mpsc::channel(REQUESTS_MAX);
    Ok(async move {
        let accepting = sockets::accept(listener, tls, REQUESTS_MAX, accepted);
        let serving = axum::serve(sockets::Incoming { ready, address }, router);
        tokio::select! {
            () = accepting => {}
            ended = serving.into_future() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "admin_ended: nothing answers there until a restart");
                }
            }
        }
    })
}

fn router(admin: Admin, rules: Arc<Rules>) -> Router {
    let mut router = Router::new();
    for route in routes::ROUTES {
        // A method layer: a method that the route does not have is answered 405 to anybody.
        let layer = from_fn_with_state((rules.clone(), route.access()), check_access);
        router = router.route(route.path, route.handler().route_layer(layer));
    }
    let no_such = "this path is not served: GET / lists those that are";
    router
        .fallback(async move || HttpError::new(StatusCode::NOT_FOUND, no_such))
        .layer(from_fn_with_state(rules, check_origin))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(admin)
}

impl Admin {
    /// Sends a request to control, and waits for the answer.
    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> ControlRequest,
    ) -> Result<T, HttpError> {
        let (reply, answer) = oneshot::channel();
        self.requests.try_send(request(reply)).map_err(|_| HttpError::ending())?;
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
