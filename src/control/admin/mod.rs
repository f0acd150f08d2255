//! The admin endpoint: HTTP/1.1, one request a connection, for tools and people on this host.
//! [`routes`] says what there is, [`guard`] who may ask.

mod change;
mod guard;
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
use axum::response::{IntoResponse, Json, Response};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use self::guard::{Rules, admit, guard};
use super::gathering::Overview;
use super::inspections::QueryResult;
use super::request::{ControlRequest, REQUESTS_MAX};
use super::token;
use super::view::ProcessInfo;
use crate::config::settings::AdminSettings;
use crate::inspect;

/// Bytes of a request's body. The longest that means anything is a log filter of 1 KiB.
const BODY_BYTES_MAX: usize = 16 << 10;

/// What handlers need.
#[derive(Clone)]
pub struct Admin {
    about: Arc<ProcessInfo>,
    ask: mpsc::Sender<ControlRequest>,
}

/// The endpoint as a future that never ends by itself. The error is one line.
pub fn serve(
    listener: std::net::TcpListener,
    address: SocketAddr,
    settings: &AdminSettings,
    about: Arc<ProcessInfo>,
    ask: mpsc::Sender<ControlRequest>,
) -> io::Result<impl Future<Output = ()> + Send + 'static> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let tls = sockets::tls(settings).map_err(io::Error::other)?;
    let token = token::for_server(settings, address.port());
    if let Err(why) = &token {
        tracing::warn!(why, "admin_token: nothing can be changed through the admin endpoint");
    }
    let rules = Rules { address, tls: tls.is_some(), token };
    let router = router(Admin { about, ask }, Arc::new(rules));
    let (accepted, ready) = mpsc::channel(REQUESTS_MAX);
    Ok(async move {
        let accepting = sockets::accept(listener, tls, REQUESTS_MAX, accepted);
        let serving = axum::serve(sockets::Incoming { ready, address }, router);
        tokio::select! {
            () = accepting => {}
            ended = serving.into_future() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "admin endpoint ended");
                }
            }
        }
    })
}

fn router(admin: Admin, rules: Arc<Rules>) -> Router {
    let mut router = Router::new();
    for route in routes::ROUTES {
        // A method layer: what no handler takes is answered 405 to anybody.
        let admitted = (route.handler)().route_layer(from_fn_with_state(rules.clone(), admit));
        router = router.route(route.path, admitted);
    }
    router
        .fallback(async || {
            HttpError::new(StatusCode::NOT_FOUND, "no such endpoint; GET / lists all")
        })
        .layer(from_fn_with_state(rules, guard))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(admin)
}

/// An answer that is no success: a status and a sentence, as JSON.
#[derive(Debug)]
pub struct HttpError {
    status: StatusCode,
    why: String,
}

impl HttpError {
    fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into() }
    }

    fn ending() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "control is busy or ending; try again")
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": self.why }))).into_response()
    }
}

impl Admin {
    /// Asks control, and waits for its answer.
    async fn ask<T>(
        &self,
        ask: impl FnOnce(oneshot::Sender<T>) -> ControlRequest,
    ) -> Result<T, HttpError> {
        let (asker, answer) = oneshot::channel();
        self.ask.try_send(ask(asker)).map_err(|_| HttpError::ending())?;
        answer.await.map_err(|_| HttpError::ending())
    }

    /// Waits for the gathering under way, or for a new one.
    async fn gather(&self) -> Result<Arc<Overview>, HttpError> {
        self.ask(ControlRequest::Gather).await
    }

    /// Puts a query to all shards, and waits for their answers.
    async fn inspect(&self, query: inspect::Query) -> Result<QueryResult, HttpError> {
        self.ask(|reply| ControlRequest::Inspect(query, reply)).await
    }
}
