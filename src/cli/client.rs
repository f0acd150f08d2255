//! Client of a running gateway for the verbs: one request to its admin endpoint.
//!
//! The token goes to this host, or through TLS with the configured certificate, or with one for the
//! address that an authority of the system signed: redirects are not followed, and no proxy of the
//! environment is asked.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use crate::config::reachable;
use crate::config::settings::AdminSettings;
use crate::control::token;
use crate::tls::provider;

/// Longest wait for a whole answer. A gathering of the shards takes a second at most.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer: 4,096 instances on 1,024 shards are some megabytes of JSON.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Answer of an admin endpoint.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    pub status: u16,
    /// Body as JSON, or as a text if it is no JSON.
    pub body: Value,
}

impl Answer {
    /// Whether the request was carried out.
    pub fn is_ok(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Reason of a refusal: the gateway's sentence, else the whole body.
    pub fn why(&self) -> String {
        self.body["error"].as_str().map_or_else(|| self.text(), str::to_owned)
    }

    /// Body as a text for people.
    pub fn text(&self) -> String {
        match &self.body {
            Value::String(text) => text.trim_end().to_owned(),
            other => serde_json::to_string_pretty(other).expect("JSON of JSON"),
        }
    }
}

/// Reason why there is no answer: one line, with the way out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NoAnswer {
    /// No process listens on the address.
    Nobody(String),
    /// Any other failure.
    Failed(String),
}

impl NoAnswer {
    /// The line for people.
    pub fn text(&self) -> &str {
        match self {
            NoAnswer::Nobody(text) | NoAnswer::Failed(text) => text,
        }
    }
}

/// Sends a POST of an empty JSON object to `path`, whose answer takes this long to make.
pub fn post_lasting(
    settings: &AdminSettings,
    path: &str,
    lasts: Duration,
) -> Result<Answer, NoAnswer> {
    post_within(settings, path, &json!({}), TIMEOUT + lasts)
}

/// Sends a GET of `path`, which begins with a slash. The token is sent if it can be read and the
/// way is safe: some endpoints ask for it.
pub fn get(settings: &AdminSettings, path: &str) -> Result<Answer, NoAnswer> {
    let (agent, url) = agent(settings, path, TIMEOUT)?;
    let mut request = agent.get(&url);
    if let Ok(bearer) = bearer(settings) {
        request = request.header("authorization", bearer);
    }
    answer(settings, request.call(), TIMEOUT)
}

/// Sends a POST of a JSON `body` to `path`.
pub fn post(settings: &AdminSettings, path: &str, body: &Value) -> Result<Answer, NoAnswer> {
    post_within(settings, path, body, TIMEOUT)
}

fn post_within(
    settings: &AdminSettings,
    path: &str,
    body: &Value,
    timeout: Duration,
) -> Result<Answer, NoAnswer> {
    let bearer = bearer(settings).map_err(NoAnswer::Failed)?;
    let (agent, url) = agent(settings, path, timeout)?;
    let request = agent.post(&url).header("authorization", bearer);
    answer(settings, request.content_type("application/json").send(body.to_string()), timeout)
}

/// Value of `Authorization`, if it may be sent to the address.
fn bearer(settings: &AdminSettings) -> Result<String, String> {
    let to = reachable(settings.listen);
    if !to.ip().is_loopback() && settings.tls_cert.is_none() {
        return Err(format!(
            "the admin token is not sent to {to} without TLS: set admin.tls_cert and admin.tls_key"
        ));
    }
    let token = token::for_client(settings, to.port())?;
    Ok(format!("Bearer {}", token.expose()))
}

fn agent(
    settings: &AdminSettings,
    path: &str,
    timeout: Duration,
) -> Result<(Agent, String), NoAnswer> {
    let mut config = Agent::config_builder()
        .timeout_global(Some(timeout))
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .proxy(None)
        .user_agent(concat!("shardgate/", env!("CARGO_PKG_VERSION")));
    let to = reachable(settings.listen);
    if settings.tls_cert.is_some() {
        let roots = roots(settings).map_err(NoAnswer::Failed)?;
        let tls = TlsConfig::builder().unversioned_rustls_crypto_provider(provider());
        config = config.tls_config(tls.root_certs(roots).build());
    }
    let scheme = if settings.tls_cert.is_some() { "https" } else { "http" };
    Ok((config.build().into(), format!("{scheme}://{to}{path}")))
}

/// Trusted certificates: the gateway's own, those that signed it, and the system's authorities.
fn roots(settings: &AdminSettings) -> Result<RootCerts, String> {
    let Some(path) = &settings.tls_cert else { return Ok(RootCerts::new_with_certs(&[])) };
    let at = |what: String| format!("admin.tls_cert = {}: {what}", path.display());
    let pem = std::fs::read(path).map_err(|error| at(error.to_string()))?;
    let mut certificates: Vec<Certificate<'static>> = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|e| at(e.to_string()))? {
            certificates.push(certificate);
        }
    }
    // Errors are of single files of the system; the certificates of the others are enough.
    let system = rustls_native_certs::load_native_certs().certs;
    certificates.extend(system.iter().map(|one| Certificate::from_der(one).to_owned()));
    Ok(RootCerts::new_with_certs(&certificates))
}

fn answer(
    settings: &AdminSettings,
    result: Result<ureq::http::Response<Body>, ureq::Error>,
    timeout: Duration,
) -> Result<Answer, NoAnswer> {
    let to = reachable(settings.listen);
    let mut response = result.map_err(|error| refusal(to, &error, timeout))?;
    let status = response.status().as_u16();
    let text = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
    let text = text.map_err(|error| refusal(to, &error, timeout))?;
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Ok(Answer { status, body })
}

fn refusal(to: SocketAddr, error: &ureq::Error, timeout: Duration) -> NoAnswer {
    match error {
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            NoAnswer::Nobody(format!(
                "no gateway answers at admin.listen = {to}: start one, or name another with \
                 --admin or --config"
            ))
        }
        ureq::Error::Timeout(_) => NoAnswer::Failed(format!(
            "{to} did not answer within {} s: see which program listens there, and its log",
            timeout.as_secs()
        )),
        other => NoAnswer::Failed(format!("{to}: {other}")),
    }
}

#[cfg(test)]
mod tests;
