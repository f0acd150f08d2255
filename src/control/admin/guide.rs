//! Handlers of the guide: pages of the program itself. Their state is nothing, so that they can
//! reach no data of the gateway.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use serde::Deserialize;

use super::answer::HttpError;
use crate::guide::{self, Page};

/// Policy for browsers: the style and the picture of this endpoint, its own form, nothing else
/// (<https://www.w3.org/TR/CSP3/>).
const POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; \
                      base-uri 'none'; frame-ancestors 'none'";

/// Parameters of `/guide` in the query.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuideParams {
    /// Words to search for; none: the list of pages.
    #[serde(default)]
    q: String,
}

/// Answers `GET /guide`: the list of pages, or what was searched for.
pub async fn index(params: Result<Query<GuideParams>, QueryRejection>) -> Response {
    match params {
        Ok(Query(params)) => page(StatusCode::OK, guide::search_html(&params.q)),
        Err(error) => HttpError::new(StatusCode::BAD_REQUEST, error.body_text()).into_response(),
    }
}

/// Answers `GET /guide/{page}`.
pub async fn named(Path(name): Path<String>) -> Response {
    match Page::named(&name) {
        Some(found) => page(StatusCode::OK, guide::page_html(found)),
        None => page(StatusCode::NOT_FOUND, guide::missing_html(&name)),
    }
}

fn page(status: StatusCode, html: String) -> Response {
    (status, [(header::CONTENT_SECURITY_POLICY, POLICY)], Html(html)).into_response()
}
