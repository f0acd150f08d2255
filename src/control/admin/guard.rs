//! Checks of requests to the admin endpoint.
//!
//! Any page that is open in a browser could make it send a request. So a `Host` that is not the
//! endpoint's is refused (DNS rebinding), and so is an `Origin` or `Sec-Fetch-Site` that names
//! another page; a change takes a header and a content type that no page of another origin can send
//! without a preflight, which is never granted.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::answer::HttpError;
use crate::control::token::Token;

/// Address and token of the endpoint, by which the guard judges requests.
pub struct Rules {
    /// Address of the listener.
    pub address: SocketAddr,
    /// Whether the endpoint speaks TLS.
    pub tls: bool,
    /// The token, or the reason why there is none.
    pub token: Result<Token, String>,
}

/// Requirements of a route, besides those that the guard has for all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// No token anywhere: the page holds no data.
    Static,
    /// The token, where the endpoint listens on an address that other hosts can reach.
    Read,
    /// The token always, and `Content-Type: application/json`.
    Change,
}

impl Access {
    fn needs_token(self, address: SocketAddr) -> bool {
        match self {
            Access::Static => false,
            Access::Read => !address.ip().is_loopback(),
            Access::Change => true,
        }
    }

    fn needs_json(self) -> bool {
        match self {
            Access::Static | Access::Read => false,
            Access::Change => true,
        }
    }
}

/// Layer around everything: refuses requests that a page of another origin can make a browser send.
pub async fn check_origin(
    State(rules): State<Arc<Rules>>,
    request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    let refused = |why| HttpError::new(StatusCode::FORBIDDEN, why).into_response();
    let mut response = if !host_is_ours(headers, rules.address) {
        refused("Host names another server: use localhost or the address of admin.listen")
    } else if !origin_is_ours(headers, rules.tls) {
        refused("Origin names a page of another server, which gets no answer")
    } else if !is_from_here(headers) {
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

/// Layer around one route: asks for the token and for JSON, as the route's [`Access`] says.
pub async fn check_access(
    State((rules, access)): State<(Arc<Rules>, Access)>,
    request: Request,
    next: Next,
) -> Response {
    if access.needs_token(rules.address) {
        let token = match &rules.token {
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

/// Whether there is exactly one `Content-Type`, of JSON, with or without parameters.
fn is_json(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (types.next(), types.next()) else { return false };
    let media = value.as_bytes().split(|b| *b == b';').next().unwrap_or_default();
    media.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

/// Whether there is exactly one `Host`: `localhost` or a loopback address (with any port: tunnels
/// change it), or the admin address. An endpoint that listens elsewhere does not know its own
/// names; there every request for data needs the token, which a page of another origin does not
/// have.
fn host_is_ours(headers: &HeaderMap, address: SocketAddr) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let Ok(authority) = host.to_str().unwrap_or_default().parse::<axum::http::uri::Authority>()
    else {
        return false;
    };
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
/// `Host`.
fn origin_is_ours(headers: &HeaderMap, tls: bool) -> bool {
    let host = headers.get(header::HOST).map_or(&[][..], HeaderValue::as_bytes);
    let scheme: &[u8] = if tls { b"https://" } else { b"http://" };
    let own = |origin: &HeaderValue| origin.as_bytes().strip_prefix(scheme) == Some(host);
    headers.get_all(header::ORIGIN).iter().all(own)
}

/// Whether there is no `Sec-Fetch-Site` (the client is no browser), or one of a page of this
/// endpoint, or of a person who typed the address.
fn is_from_here(headers: &HeaderMap) -> bool {
    let sites = headers.get_all("sec-fetch-site");
    sites.iter().all(|site| matches!(site.as_bytes(), b"same-origin" | b"none"))
}
