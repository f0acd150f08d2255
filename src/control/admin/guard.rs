//! Checks of requests to the admin endpoint.
//!
//! Any page that is open in a browser could make it send a request. So a `Host` that is not the
//! endpoint's is refused (DNS rebinding), and so is an `Origin` or `Sec-Fetch-Site` that names
//! another page; a change takes a header and a content type that no page of another origin can send
//! without a preflight, which is never granted. Probes are asked by programs that name any host or
//! none; their answers are words. The client library is for pages of any origin, and is no data.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::body::to_bytes;
use axum::extract::{Extension, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::BODY_BYTES_MAX;
use super::answer::HttpError;
use crate::control::headers::is_json;
use crate::control::slots::Slot;
use crate::control::token::Token;

/// The listener, by which the guard judges where a request comes from.
pub struct Origins {
    /// Address of the listener.
    pub address: SocketAddr,
    /// Whether the listener speaks TLS.
    pub tls: bool,
    /// Whether a path is answered whatever host the request names.
    pub any_host: fn(&str) -> bool,
    /// Whether pages of other origins may read a path.
    pub any_page: fn(&str) -> bool,
}

/// Rights at the admin endpoint.
pub struct Rights {
    /// Whether the endpoint listens on an address that other hosts cannot reach.
    pub loopback: bool,
    /// The token, or the reason why there is none.
    pub token: Result<Token, String>,
}

/// Requirements of a route, besides those that the guard has for all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// No token anywhere: the page holds no data.
    Static,
    /// No token, and for pages of any origin: the client library, which everybody has anyway.
    Library,
    /// No token and any `Host`: probes have no secret, and name the host as they like or not at
    /// all. The answer is a word that tells nothing.
    Probe,
    /// The token, where the endpoint listens on an address that other hosts can reach.
    Read,
    /// The token always, and `Content-Type: application/json`.
    Change,
}

impl Access {
    fn needs_token(self, loopback: bool) -> bool {
        match self {
            Access::Static | Access::Library | Access::Probe => false,
            Access::Read => !loopback,
            Access::Change => true,
        }
    }

    fn needs_json(self) -> bool {
        match self {
            Access::Static | Access::Library | Access::Probe | Access::Read => false,
            Access::Change => true,
        }
    }
}

/// Layer around everything: refuses requests that a page of another origin can make a browser send.
pub async fn check_origin(
    State(origins): State<Arc<Origins>>,
    request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    let host = host(request.uri(), headers);
    let path = request.uri().path();
    let any_host = (origins.any_host)(path);
    // A preflight asks for more than to read, and is never granted.
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let any_page = reads && (origins.any_page)(path);
    let refused = |why| HttpError::new(StatusCode::FORBIDDEN, why).into_response();
    let mut response = if !any_host && !host.is_some_and(|host| is_ours(host, origins.address)) {
        refused("Host names another server: use localhost or the address that it listens on")
    } else if !any_page && !origin_is_ours(headers, host.unwrap_or_default(), origins.tls) {
        refused("Origin names a page of another server, which gets no answer")
    } else if !any_page && !is_from_here(headers) {
        refused("Sec-Fetch-Site names a page of another site, which gets no answer")
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Layer within it: reads the whole request before it is answered, and tells its place so.
pub async fn whole_request(
    Extension(slot): Extension<Arc<Slot>>,
    request: Request,
    next: Next,
) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_BYTES_MAX).await else {
        let why = format!("the body is over {BODY_BYTES_MAX} bytes, or was not sent whole");
        return HttpError::new(StatusCode::PAYLOAD_TOO_LARGE, why).into_response();
    };
    slot.answers();
    let response = next.run(Request::from_parts(parts, body.into())).await;
    slot.sends();
    response
}

/// Layer around one route: asks for the token and for JSON, as the route's [`Access`] says.
pub async fn check_access(
    State((rights, access)): State<(Arc<Rights>, Access)>,
    request: Request,
    next: Next,
) -> Response {
    if access.needs_token(rights.loopback) {
        let token = match &rights.token {
            Ok(token) => token,
            Err(why) => {
                let status = StatusCode::SERVICE_UNAVAILABLE;
                return HttpError::new(status, why.as_str()).into_response();
            }
        };
        if let Err(challenge) = check_token(request.headers(), token) {
            let why = "this path needs the token of admin.token or its file: send it as \
                       Authorization: Bearer <token>";
            let refused = HttpError::new(StatusCode::UNAUTHORIZED, why);
            return ([(header::WWW_AUTHENTICATE, challenge)], refused).into_response();
        }
    }
    if access.needs_json() && !is_json(request.headers()) {
        let why = "Content-Type must be application/json (also without a body)";
        return HttpError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, why).into_response();
    }
    next.run(request).await
}

/// Checks that the request shows the token. The error is the challenge (RFC 6750 section 3).
fn check_token(headers: &HeaderMap, token: &Token) -> Result<(), &'static str> {
    let mut shown = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(shown), None) = (shown.next(), shown.next()) else {
        return Err("Bearer realm=\"shardgate\"");
    };
    let shown = match shown.as_bytes().split_at_checked(b"Bearer ".len()) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(b"Bearer ") => rest,
        Some(_) | None => return Err("Bearer realm=\"shardgate\""),
    };
    match token.is(shown.trim_ascii()) {
        true => Ok(()),
        false => Err("Bearer realm=\"shardgate\", error=\"invalid_token\""),
    }
}

/// The host that a request is for: that of an absolute target, else (RFC 9112 section 3.2.2) the
/// one `Host`. `None`: there is none, several, or one that is no text.
pub fn host<'r>(uri: &'r Uri, headers: &'r HeaderMap) -> Option<&'r str> {
    if let Some(authority) = uri.authority() {
        return Some(authority.as_str());
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return None };
    host.to_str().ok()
}

/// Whether a host is `localhost` or a loopback address (with any port: tunnels change it), or the
/// listener's address. A listener elsewhere does not know its own names; there every request for
/// data needs the token, which a page of another origin does not have, or the data is no secret.
fn is_ours(host: &str, address: SocketAddr) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    let ip = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    if authority.as_str().contains('@') {
        return false;
    }
    if !address.ip().is_loopback() {
        return true;
    }
    match ip.parse::<IpAddr>() {
        Ok(ip) => {
            let port = authority.port_u16().unwrap_or(80);
            ip.is_loopback() || (ip, port) == (address.ip(), address.port())
        }
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    }
}

/// Whether there is no `Origin`, or the one of a page that this endpoint served: its scheme and the
/// host of the request.
fn origin_is_ours(headers: &HeaderMap, host: &str, tls: bool) -> bool {
    let scheme: &[u8] = if tls { b"https://" } else { b"http://" };
    let own =
        |origin: &HeaderValue| origin.as_bytes().strip_prefix(scheme) == Some(host.as_bytes());
    headers.get_all(header::ORIGIN).iter().all(own)
}

/// Whether there is no `Sec-Fetch-Site` (the client is no browser), or one of a page of this
/// endpoint, or of a person who typed the address.
fn is_from_here(headers: &HeaderMap) -> bool {
    let sites = headers.get_all("sec-fetch-site");
    sites.iter().all(|site| matches!(site.as_bytes(), b"same-origin" | b"none"))
}
