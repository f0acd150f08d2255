//! What only shows something: GET.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Json;
use serde::Deserialize;
use serde_json::Value;

use super::Admin;
use super::answer::{HttpError, JsonResult, PLAIN, Text, text};
use crate::control::request::ControlRequest;
use crate::control::view::{self, explain::ExplainParams, explain::Explanation};
use crate::inspect::{self, TOP_MAX};

/// The description of all this.
pub const OPENAPI: &str = include_str!("../openapi.json");

/// `GET /health`
pub async fn health(State(admin): State<Admin>) -> Result<(StatusCode, Json<Value>), HttpError> {
    let found = admin.gather().await?;
    let (status, body) = view::health::health(&admin.info, &found);
    Ok((status, Json(body)))
}

/// `GET /readyz`
pub async fn readyz(State(admin): State<Admin>) -> Result<Text, HttpError> {
    match admin.ask(ControlRequest::Ready).await? {
        true => Ok(text(PLAIN, "ok\n".into())),
        false => {
            let why = "shards start or stop, or one failed; GET /health says more";
            Err(HttpError::new(StatusCode::SERVICE_UNAVAILABLE, why))
        }
    }
}

/// `GET /stats`
pub async fn stats(State(admin): State<Admin>) -> JsonResult {
    Ok(Json(view::stats::stats(&admin.info, &*admin.gather().await?)))
}

/// `GET /routing/stats`
pub async fn routing_stats(State(admin): State<Admin>) -> JsonResult {
    Ok(Json(view::routing::routing_stats(&*admin.gather().await?)))
}

/// `GET /routing/explain`
pub async fn explain(
    State(admin): State<Admin>,
    params: Result<Query<ExplainParams>, QueryRejection>,
) -> JsonResult {
    let Query(params) = params.map_err(bad_query)?;
    let found = admin.gather().await?;
    let explanation = Explanation::new(&found, &params);
    let result = match explanation.query() {
        Some(query) => admin.inspect(query).await?,
        None => Default::default(),
    };
    Ok(Json(explanation.json(&result)))
}

/// `GET /metrics`
pub async fn metrics(State(admin): State<Admin>) -> Result<Text, HttpError> {
    let found = admin.gather().await?;
    let body = view::metrics::metrics(&admin.info, &found)
        .map_err(|error| HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, error))?;
    Ok(text("text/plain; version=0.0.4; charset=utf-8", body))
}

/// `GET /shards`
pub async fn shards(State(admin): State<Admin>) -> JsonResult {
    Ok(Json(view::services::shards(&*admin.gather().await?)))
}

/// `GET /services`
pub async fn services(State(admin): State<Admin>) -> JsonResult {
    Ok(Json(view::services::services(&*admin.gather().await?)))
}

/// Parameters of `/connections`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionsParams {
    top: Option<usize>,
    session: Option<String>,
}

/// `GET /connections`
pub async fn connections(
    State(admin): State<Admin>,
    params: Result<Query<ConnectionsParams>, QueryRejection>,
) -> JsonResult {
    let Query(params) = params.map_err(bad_query)?;
    let found = admin.gather().await?;
    let query = match (params.session, params.top) {
        (Some(session), _) => Some(inspect::Query::Session(session)),
        (None, Some(top)) => Some(inspect::Query::TopTalkers(top.min(TOP_MAX))),
        (None, None) => None,
    };
    let inspected = match query {
        Some(query) => Some((query.clone(), admin.inspect(query).await?)),
        None => None,
    };
    let inspected = inspected.as_ref().map(|(query, result)| (query, result));
    let body = view::connections::connections(&found, inspected);
    body.map(Json).map_err(|why| HttpError::new(StatusCode::NOT_FOUND, why))
}

/// `GET /histograms`
pub async fn histograms(State(admin): State<Admin>) -> Result<Text, HttpError> {
    let found = admin.gather().await?;
    let body = view::histograms::interval_log(&admin.info, &found)
        .map_err(|error| HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, error))?;
    Ok(text(PLAIN, body))
}

/// `GET /config`
pub async fn config(State(admin): State<Admin>) -> JsonResult {
    Ok(Json(view::config::config(&*admin.gather().await?)))
}

/// `GET /log`
pub async fn log() -> JsonResult {
    Ok(Json(view::log::log()))
}

/// `GET /openapi.json`
pub async fn openapi() -> Text {
    text("application/json", OPENAPI.into())
}

fn bad_query(error: QueryRejection) -> HttpError {
    HttpError::new(StatusCode::BAD_REQUEST, error.body_text())
}
