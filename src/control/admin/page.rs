//! The page at `/` that connects to the gateway from a browser, the client library that it uses,
//! and the dashboard at `/ui`. They are texts of the program; all that the pages know of the
//! gateway they ask for themselves, by the rules that hold for everybody.

use std::sync::LazyLock;

use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};

const HTML: &str = include_str!("../page/index.html");
/// Style of the page.
pub const STYLE: &str = include_str!("../page/page.css");
/// Script of the page.
pub const SCRIPT: &str = include_str!("../page/page.js");
/// Icon of the page.
pub const ICON: &str = include_str!("../page/icon.svg");
const DASHBOARD: &str = include_str!("../page/ui.html");
/// Style of the dashboard, beside [`STYLE`].
pub const DASHBOARD_STYLE: &str = include_str!("../page/ui.css");
/// Script of the dashboard.
pub const DASHBOARD_SCRIPT: &str = include_str!("../page/ui.js");
/// Charts of the dashboard.
pub const CHARTS: &str = include_str!("../page/ui-charts.js");
/// Questions and changes of the dashboard.
pub const ACTIONS: &str = include_str!("../page/ui-actions.js");
/// The client library as it is served, a module for browsers and Node: its source without the
/// comments, which are a fifth of it once compressed, and with the first one, which says what it
/// is.
pub static LIBRARY: LazyLock<String> =
    LazyLock::new(|| without_comments(include_str!("../page/shardgate.js")));
/// Its types.
pub const TYPES: &str = include_str!("../page/shardgate.d.ts");

/// A module without its comments, but for the first: they are whole lines, or follow ` // `.
fn without_comments(source: &str) -> String {
    let (title, code) = source.split_once("*/\n").unwrap_or_default();
    let mut kept = format!("{title}*/\n");
    let mut is_comment = false;
    for line in code.lines() {
        let text = line.trim_start();
        is_comment |= text.starts_with("/**");
        if !is_comment && !text.starts_with("//") {
            kept += line.split(" // ").next().unwrap_or_default();
            kept.push('\n');
        }
        is_comment &= !text.ends_with("*/");
    }
    kept
}

/// Policy for browsers: files of this endpoint and WebSockets, no script or style within the page,
/// and no form that is sent (<https://www.w3.org/TR/CSP3/>).
const POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss:; frame-ancestors 'none'; \
                      base-uri 'none'; form-action 'none'";

/// The page for who accepts HTML, which browsers say and programs do not; else `list`.
pub fn or_list(headers: &HeaderMap, list: impl IntoResponse) -> Response {
    let mut response = match accepts_html(headers) {
        true => html(HTML),
        false => list.into_response(),
    };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

/// The dashboard.
pub async fn dashboard() -> Response {
    html(DASHBOARD)
}

fn html(text: &'static str) -> Response {
    let policy = (header::CONTENT_SECURITY_POLICY, POLICY);
    ([policy, (header::REFERRER_POLICY, "no-referrer")], Html(text)).into_response()
}

/// Whether `Accept` names `text/html`, with a weight above 0 (RFC 9110 section 12.5.1). Wildcards
/// do not count: curl sends `*/*`.
fn accepts_html(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        media.eq_ignore_ascii_case("text/html") && !parts.any(is_weight_zero)
    })
}

fn is_weight_zero(parameter: &str) -> bool {
    parameter.split_once('=').is_some_and(|(name, value)| {
        let weight = value.trim().parse::<f32>();
        name.trim().eq_ignore_ascii_case("q") && weight.is_ok_and(|weight| weight <= 0.0)
    })
}
