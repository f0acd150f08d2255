//! Forms of answers: texts, JSON and errors.

use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use serde_json::{Value, json};

/// Media type of a plain text.
pub const PLAIN: &str = "text/plain; charset=utf-8";

/// A text with its media type.
pub type Text = ([(HeaderName, &'static str); 1], String);

/// An answer of JSON, or an error.
pub type JsonResult = Result<Json<Value>, HttpError>;

/// Makes an answer of a text.
pub fn text(media: &'static str, body: String) -> Text {
    ([(header::CONTENT_TYPE, media)], body)
}

/// An answer that is no success: a status and a sentence, as JSON.
#[derive(Debug)]
pub struct HttpError {
    status: StatusCode,
    why: String,
}

impl HttpError {
    pub fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into() }
    }

    /// The error of a request that control does not answer.
    pub fn ending() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the control thread is busy or ends: try again")
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": self.why }))).into_response()
    }
}
