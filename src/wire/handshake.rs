//! The server's side of the WebSocket upgrade (RFC 6455 section 4.2) over the bytes received so
//! far.
//!
//! It takes what the RFCs allow and what clients write, and is stricter where two HTTP parsers
//! could read a request differently (bare line feeds, folded lines, two Hosts, a body): that is
//! refused, and every refusal ends the connection.

mod target;

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use httparse::{EMPTY_HEADER, Header, Status};
use tungstenite::handshake::derive_accept_key;

use self::target::{Target, is_authority};
use crate::limits::{EMPTY_LINES_MAX, HANDSHAKE_TARGET_BYTES_MAX};
use crate::message::Encoding;
use crate::origin::{AdminPages, AllowedOrigin, PageOrigin, is_allowed, is_of_host};
use crate::peers::Forwarded;
use crate::wire::forwarded::{self, Told};

/// Subprotocol of the JSON encoding.
pub(crate) const JSON: &str = "shardgate.v1.json";
/// Subprotocol of the protobuf encoding.
pub(crate) const PROTOBUF: &str = "shardgate.v1.protobuf";
/// Prefix of a token in an offered subprotocol, which is the only field of the request that a
/// browser's page can set. A JWT's characters (base64url and dots) are those of a subprotocol's
/// name (a token of RFC 9110 section 5.6.2). Such an offer is never the one that is accepted.
pub(crate) const TOKEN_OFFER: &str = "shardgate.token.";

/// Rules for upgrade requests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct HandshakeRules {
    /// Path of the request target, compared exactly; a query may follow it.
    pub(crate) path: String,
    /// Pages that may connect; empty = those of the request's own host only. A request without
    /// `Origin` (no browser) passes.
    pub(crate) origins: Vec<AllowedOrigin>,
    /// Pages of the admin endpoint, which may connect, too, where it is for this machine alone.
    pub(crate) admin_pages: Option<AdminPages>,
    /// Pages that may connect, too, because a tenant lists them; which of its users come from them
    /// is checked when they sign in.
    pub(crate) tenant_origins: Vec<AllowedOrigin>,
    /// Whether subprotocols are negotiated. The echo server negotiates none.
    pub(crate) subprotocols: bool,
    /// Largest request that is read.
    pub(crate) limits: HeaderLimits,
}

/// Largest request. Each limit is the key of its name in the section `[conn]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct HeaderLimits {
    /// Bytes of the request line and all fields.
    pub(crate) header_bytes_max: usize,
    /// Number of fields.
    pub(crate) headers_max: usize,
}

/// Result of the bytes received so far.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Progress {
    /// The headers are not complete.
    Partial,
    /// Send `response`; frames follow the first `consumed` bytes.
    Upgrade {
        /// Bytes of the request.
        consumed: usize,
        /// The 101 response.
        response: Vec<u8>,
        /// Encoding that the subprotocol names.
        encoding: Encoding,
        /// Token that the client shows, by `Authorization: Bearer` or a subprotocol.
        token: Option<ShownToken>,
        /// The page that the client runs in, if that matters when its user signs in.
        page: Option<PageOrigin>,
        /// The client, as the proxy names it that is asked.
        told: Option<Told>,
    },
    /// Send `response` and close; no byte of the input may be used.
    Refuse {
        /// The whole HTTP response.
        response: Vec<u8>,
        /// Status code of the response.
        status: u16,
        /// Text of the response, for the log.
        why: Cow<'static, str>,
        /// For the log: the `Origin` that is not allowed, cut, if that is the reason.
        origin: Option<String>,
        /// The client, as the proxy names it that is asked, if the fields could be read.
        told: Option<Told>,
    },
}

/// A token as the client sent it. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct ShownToken(String);

impl ShownToken {
    /// The token, only to be verified.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for ShownToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<redacted>")
    }
}

/// Characters of a refused origin that the log shows: a scheme, the longest host name, a port.
const ORIGIN_CHARS_MAX: usize = 280;

/// A status code, and a line that tells the client what to do.
type Rule = (u16, &'static str);

/// A rule that was broken, with the value of a limit where there is one.
struct Refusal {
    status: u16,
    why: Cow<'static, str>,
    origin: Option<String>,
}

impl From<Rule> for Refusal {
    fn from((status, why): Rule) -> Self {
        Self { status, why: Cow::Borrowed(why), origin: None }
    }
}

impl Refusal {
    fn too_many_bytes(max: usize) -> Self {
        let why = format!("send at most {max} bytes of headers (conn.header_bytes_max)");
        Self { status: 431, why: Cow::Owned(why), origin: None }
    }

    fn too_many_fields(max: usize) -> Self {
        let why = format!("send at most {max} header fields (conn.headers_max)");
        Self { status: 431, why: Cow::Owned(why), origin: None }
    }

    fn of_origin(origin: &[u8]) -> Self {
        let why = "this Origin is not allowed: the key origins of the gateway lists those that are";
        let text = String::from_utf8_lossy(origin);
        let origin = text.chars().take(ORIGIN_CHARS_MAX).collect();
        Self { origin: Some(origin), ..Self::from((403, why)) }
    }
}

impl Progress {
    fn refused(Refusal { status, why, origin }: Refusal, told: Option<Told>) -> Self {
        Self::Refuse { response: refuse(status, &why), status, why, origin, told }
    }
}

/// Reads all bytes received so far. `already_scanned` is kept by the caller, 0 at first: bytes
/// before it are not read again until the headers are complete, so a peer that sends byte by byte
/// costs no more than one that sends all at once. `forwarded`: the peer is one of these proxies,
/// and is asked who the client is.
pub(crate) fn try_upgrade(
    rules: &HandshakeRules,
    forwarded: Option<&Forwarded>,
    input: &[u8],
    already_scanned: &mut usize,
) -> Progress {
    let start = empty_lines(input);
    let end = match scan(rules.limits.header_bytes_max, input, start, already_scanned) {
        Ok(None) => return Progress::Partial,
        Ok(Some(end)) => end,
        Err(refusal) => return Progress::refused(refusal, None),
    };
    let head = match Head::read(&input[start..end], rules.limits.headers_max) {
        Ok(head) => head,
        Err(refusal) => return Progress::refused(refusal, None),
    };
    let told = forwarded.map(|rules| {
        let name = rules.header.name();
        forwarded::read(rules, head.headers.all(name))
    });
    match upgrade(rules, &head) {
        Ok(Accepted { response, encoding, token, page }) => {
            Progress::Upgrade { consumed: end, response, encoding, token, page, told }
        }
        Err(refusal) => Progress::refused(refusal, told),
    }
}

/// Bytes of the empty lines in front of a request, which are ignored (RFC 9112 section 2.2).
fn empty_lines(input: &[u8]) -> usize {
    let pairs = input.chunks_exact(2).take(EMPTY_LINES_MAX);
    2 * pairs.take_while(|pair| *pair == b"\r\n").count()
}

/// Finds the end of the headers of the request that begins at `start`, and refuses early what
/// cannot become a request.
fn scan(
    bytes_max: usize,
    input: &[u8],
    start: usize,
    already_scanned: &mut usize,
) -> Result<Option<usize>, Refusal> {
    if *already_scanned <= start + METHOD_BYTES_MAX {
        check_start(&input[start..], start < 2 * EMPTY_LINES_MAX)?;
    }
    let end = input.len().min(bytes_max);
    for at in start.max(*already_scanned)..end {
        let byte = input[at];
        let after_return = at > 0 && input[at - 1] == b'\r';
        if byte == 0 || after_return != (byte == b'\n') {
            return Err((400, "end header lines with CR LF, and send no NUL").into());
        }
        if byte == b'\n' && input[start..=at].ends_with(b"\r\n\r\n") {
            return Ok(Some(at + 1));
        }
    }
    *already_scanned = end;
    if end < bytes_max {
        Ok(None)
    } else if input[start..end].contains(&b'\n') {
        Err(Refusal::too_many_bytes(bytes_max))
    } else {
        Err(TARGET_TOO_LONG.into())
    }
}

const TARGET_TOO_LONG: Rule = (414, "send a request target of at most 2 KiB");
/// The longest registered method has 17 letters (UPDATEREDIRECTREF).
const METHOD_BYTES_MAX: usize = 20;

/// Refuses first bytes that cannot become a method: TLS, HTTP/2 and noise are answered at once. A
/// further empty line may come where `empty_line` says so.
fn check_start(input: &[u8], empty_line: bool) -> Result<(), Rule> {
    if empty_line && input == b"\r" {
        return Ok(());
    }
    let start = &input[..input.len().min(METHOD_BYTES_MAX + 1)];
    let method = start.split(|&byte| byte == b' ').next().unwrap_or(start);
    if start.starts_with(b"\x16") {
        return Err((400, "this port speaks plain HTTP/1.1, not TLS"));
    }
    if start.starts_with(b"PRI ") {
        return Err((400, "this port speaks HTTP/1.1, not HTTP/2"));
    }
    if method.len() > METHOD_BYTES_MAX
        || (method.is_empty() && !start.is_empty())
        || !method.iter().all(|byte| byte.is_ascii_uppercase() || *byte == b'-')
    {
        return Err((400, "send a WebSocket upgrade: GET, HTTP/1.1"));
    }
    Ok(())
}

const NOT_HTTP: Rule = (400, "this is not an HTTP/1.1 request");

/// The request line (RFC 9112 section 3): method and target of a request whose version we speak.
fn request_line(line: &[u8]) -> Result<(&str, &str), Rule> {
    let line = std::str::from_utf8(line).map_err(|_| NOT_HTTP)?;
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(NOT_HTTP);
    };
    if target.is_empty() || target.bytes().any(|byte| byte.is_ascii_control()) {
        return Err(NOT_HTTP);
    }
    let version = version.strip_prefix("HTTP/").ok_or(NOT_HTTP)?;
    // A minor version that is not known yet is read as the one that is (RFC 9110 section 2.5).
    // 1.0 has no upgrade (RFC 6455 section 4.2.1).
    match version.as_bytes() {
        [b'1', b'.', b'1'..=b'9'] => Ok((method, target)),
        _ => Err((505, "use HTTP/1.1")),
    }
}

/// An upgrade that is accepted: see [`Progress::Upgrade`].
struct Accepted {
    response: Vec<u8>,
    encoding: Encoding,
    token: Option<ShownToken>,
    page: Option<PageOrigin>,
}

/// A complete request head.
struct Head<'b> {
    method: &'b str,
    target: &'b str,
    headers: Headers<'b>,
}

impl<'b> Head<'b> {
    fn read(head: &'b [u8], fields_max: usize) -> Result<Self, Refusal> {
        let line_end = head.iter().position(|&byte| byte == b'\r').unwrap_or(head.len());
        let (method, target) = request_line(&head[..line_end])?;
        let rest = &head[line_end + 2..];
        // One for each line but the empty one at the end.
        let lines = rest.iter().filter(|&&byte| byte == b'\n').count() - 1;
        if lines > fields_max {
            return Err(Refusal::too_many_fields(fields_max));
        }
        let mut fields = vec![EMPTY_HEADER; lines];
        let found = match httparse::parse_headers(rest, &mut fields) {
            Ok(Status::Complete((consumed, fields))) if consumed == rest.len() => fields.len(),
            Ok(_) | Err(_) => return Err(NOT_HTTP.into()),
        };
        fields.truncate(found);
        Ok(Self { method, target, headers: Headers(fields) })
    }
}

/// Checks a complete request head against the rules.
fn upgrade(rules: &HandshakeRules, head: &Head<'_>) -> Result<Accepted, Refusal> {
    let Head { method, target, headers } = head;
    if *method != "GET" {
        return Err((405, "use GET").into());
    }
    if target.len() > HANDSHAKE_TARGET_BYTES_MAX {
        return Err(TARGET_TOO_LONG.into());
    }
    let target = Target::read(target)?;
    let host = own_host(headers, &target)?;
    check_no_body(headers)?;
    if target.path != rules.path {
        let why = "this path is not served: connect to the gateway's WebSocket path";
        return Err((404, why).into());
    }
    if !headers.has_token("Upgrade", "websocket") || !headers.has_token("Connection", "upgrade") {
        let why = "upgrade to WebSocket: send Upgrade: websocket, Connection: Upgrade";
        return Err((426, why).into());
    }
    if headers.only_element("Sec-WebSocket-Version") != Some(b"13") {
        return Err((426, "use Sec-WebSocket-Version: 13, once").into());
    }
    let key = headers
        .only("Sec-WebSocket-Key")
        .filter(|key| KEY.decode(key).is_ok_and(|bytes| bytes.len() == 16))
        .ok_or((400, "send one Sec-WebSocket-Key: 16 bytes in base64"))?;
    if !headers.all("Sec-WebSocket-Extensions").flat_map(elements).all(is_extension) {
        let why = "send Sec-WebSocket-Extensions as name; parameter=value, ... or not at all";
        return Err((400, why).into());
    }
    let page = check_origin(rules, headers, host)?;
    let subprotocol = if rules.subprotocols { pick_subprotocol(headers)? } else { None };
    Ok(Accepted {
        response: accept(key, subprotocol.map(|(name, _)| name)),
        encoding: subprotocol.map_or(Encoding::Json, |(_, encoding)| encoding),
        token: shown_token(headers)?,
        page,
    })
}

/// Base64 of a key. The last character of 16 bytes has four bits that mean nothing; there are
/// clients that do not set them to 0, and the answer is made of the key's text (RFC 6455 section
/// 4.2.2).
const KEY: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// The header fields of a request.
struct Headers<'b>(Vec<Header<'b>>);

impl<'b> Headers<'b> {
    fn all<'s>(&'s self, name: &'s str) -> impl DoubleEndedIterator<Item = &'b [u8]> + 's {
        self.0
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value)
    }

    /// The value of a field that occurs exactly once.
    fn only(&self, name: &str) -> Option<&'b [u8]> {
        let mut values = self.all(name);
        values.next().filter(|_| values.next().is_none())
    }

    /// The only element of a list in a field that occurs exactly once.
    fn only_element(&self, name: &str) -> Option<&'b [u8]> {
        let mut found = elements(self.only(name)?);
        found.next().filter(|_| found.next().is_none())
    }

    /// Whether a field's comma-separated values contain `token`, in any case.
    fn has_token(&self, name: &str, token: &str) -> bool {
        self.all(name).flat_map(elements).any(|each| each.eq_ignore_ascii_case(token.as_bytes()))
    }
}

/// The elements of a comma-separated list without quoted strings. Empty ones are none (RFC 9110
/// section 5.6.1.2): libraries write an empty list where their user named nothing.
fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|each| !each.is_empty())
}

/// Host and port that the client means: those of an absolute target, else those of `Host`. There
/// must be exactly one valid `Host` in any case (RFC 9112 section 3.2); an empty one is valid, and
/// names no host.
fn own_host<'b>(headers: &Headers<'b>, target: &Target<'b>) -> Result<&'b str, Rule> {
    headers
        .only("Host")
        .and_then(|host| std::str::from_utf8(host).ok())
        .filter(|host| host.is_empty() || is_authority(host))
        .map(|host| target.authority.unwrap_or(host))
        .filter(|host| !host.is_empty())
        .ok_or((400, "send exactly one Host: host[:port]"))
}

/// Refuses a body, which would be parsed as frames.
fn check_no_body(headers: &Headers<'_>) -> Result<(), Rule> {
    let lengths_are_zero = match headers.all("Content-Length").count() {
        0 => true,
        _ => headers.only("Content-Length") == Some(b"0"),
    };
    if headers.all("Transfer-Encoding").next().is_none() && lengths_are_zero {
        Ok(())
    } else {
        Err((400, "send no body with an upgrade"))
    }
}

/// Refuses pages of origins that are not allowed: otherwise any page could use the network position
/// of its reader's browser (RFC 6455 section 10.2). Returns the page, where tenants tell pages
/// apart.
fn check_origin(
    rules: &HandshakeRules,
    headers: &Headers<'_>,
    host: &str,
) -> Result<Option<PageOrigin>, Refusal> {
    let mut origins = headers.all("Origin");
    let Some(origin) = origins.next() else { return Ok(None) };
    if origins.next().is_some() {
        return Err((400, "send at most one Origin").into());
    }
    let Ok(text) = std::str::from_utf8(origin) else { return Err(Refusal::of_origin(origin)) };
    let is_listed = match rules.origins.is_empty() {
        true => is_of_host(text, host),
        false => is_allowed(&rules.origins, text),
    };
    let is_common = is_listed || rules.admin_pages.is_some_and(|own| own.allows(text, host));
    if !is_common && !is_allowed(&rules.tenant_origins, text) {
        return Err(Refusal::of_origin(origin));
    }
    Ok((!rules.tenant_origins.is_empty()).then(|| PageOrigin::new(text, is_common)))
}

/// The token in the request, if there is one. Other schemes of `Authorization` are for proxies in
/// front of the gateway. `Bearer` with nothing behind it (the space after it is trimmed with the
/// value) is an empty token, which is refused: a client that wants to sign in is not accepted
/// without a name.
fn shown_token(headers: &Headers<'_>) -> Result<Option<ShownToken>, Rule> {
    let bearer = headers.all("Authorization").filter_map(|value| {
        let (scheme, token) = value.split_at_checked(b"Bearer".len())?;
        let ends = token.first().is_none_or(u8::is_ascii_whitespace);
        (ends && scheme.eq_ignore_ascii_case(b"Bearer")).then(|| token.trim_ascii())
    });
    let offers = headers.all("Sec-WebSocket-Protocol").flat_map(elements);
    let offered = offers.filter_map(|offer| offer.strip_prefix(TOKEN_OFFER.as_bytes()));
    let mut tokens = bearer.chain(offered);
    let Some(first) = tokens.next() else { return Ok(None) };
    if tokens.next().is_some() {
        return Err((400, "show one token: in Authorization or in one subprotocol"));
    }
    let text = std::str::from_utf8(first).map_err(|_| (400, "a token must be ASCII"))?;
    Ok(Some(ShownToken(text.to_owned())))
}

/// The first offered subprotocol that the gateway knows. `None` = none was offered.
fn pick_subprotocol(headers: &Headers<'_>) -> Result<Option<(&'static str, Encoding)>, Rule> {
    let mut offers = headers.all("Sec-WebSocket-Protocol").flat_map(elements).peekable();
    if offers.peek().is_none() {
        return Ok(None);
    }
    offers
        .find_map(|offer| match offer {
            _ if offer == JSON.as_bytes() => Some((JSON, Encoding::Json)),
            _ if offer == PROTOBUF.as_bytes() => Some((PROTOBUF, Encoding::Protobuf)),
            _ => None,
        })
        .map(Some)
        .ok_or((400, "offer one of the subprotocols shardgate.v1.json, shardgate.v1.protobuf"))
}

/// Whether `element` is an extension with its parameters. What is not must be refused (RFC 6455
/// section 9.1), although all are declined; an empty parameter is none (RFC 9110 section 5.6.6).
fn is_extension(element: &[u8]) -> bool {
    let mut parts = element.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
    parts.next().is_some_and(is_token) && parts.all(|part| part.is_empty() || is_parameter(part))
}

/// Whether `part` is token [ "=" ( token / quoted-string ) ].
fn is_parameter(part: &[u8]) -> bool {
    let Some(at) = part.iter().position(|&byte| byte == b'=') else { return is_token(part) };
    let (name, value) = (part[..at].trim_ascii(), part[at + 1..].trim_ascii());
    // A quoted string must be a token inside its quotes.
    let quoted = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    is_token(name) && is_token(quoted.unwrap_or(value))
}

/// Whether `text` is a token (RFC 9110 section 5.6.2).
fn is_token(text: &[u8]) -> bool {
    let is_of_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.iter().all(is_of_token)
}

fn accept(key: &[u8], subprotocol: Option<&str>) -> Vec<u8> {
    let mut response = String::with_capacity(192);
    response.push_str("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n");
    response.push_str("Connection: Upgrade\r\nSec-WebSocket-Accept: ");
    response.push_str(&derive_accept_key(key));
    if let Some(subprotocol) = subprotocol {
        response.push_str("\r\nSec-WebSocket-Protocol: ");
        response.push_str(subprotocol);
    }
    response.push_str("\r\n\r\n");
    response.into_bytes()
}

/// A whole error response that ends the connection. `why` is one line that tells the client what to
/// do.
pub(crate) fn refuse(status: u16, why: &str) -> Vec<u8> {
    refuse_for(status, why, if status == 503 { 1_000 } else { 0 })
}

/// Like [`refuse`], with a `Retry-After` of `retry_after_ms` (0 = without), in whole seconds,
/// rounded up (RFC 9110 section 10.2.3).
pub(crate) fn refuse_for(status: u16, why: &str, retry_after_ms: u32) -> Vec<u8> {
    let (phrase, extra) = match status {
        400 => ("Bad Request", ""),
        // RFC 6750 section 3.
        401 => ("Unauthorized", "WWW-Authenticate: Bearer error=\"invalid_token\"\r\n"),
        403 => ("Forbidden", ""),
        404 => ("Not Found", ""),
        405 => ("Method Not Allowed", "Allow: GET\r\n"),
        408 => ("Request Timeout", ""),
        414 => ("URI Too Long", ""),
        426 => ("Upgrade Required", "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"),
        // RFC 6585 section 4.
        429 => ("Too Many Requests", ""),
        431 => ("Request Header Fields Too Large", ""),
        503 => ("Service Unavailable", ""),
        505 => ("HTTP Version Not Supported", ""),
        _ => ("Refused", ""),
    };
    // RFC 9110 section 7.8: a sender of Upgrade names it in Connection, too.
    let connection = if status == 426 { "upgrade, close" } else { "close" };
    let retry = match retry_after_ms {
        0 => String::new(),
        ms => format!("Retry-After: {}\r\n", ms.div_ceil(1000)),
    };
    let len = why.len() + 1;
    format!(
        "HTTP/1.1 {status} {phrase}\r\nConnection: {connection}\r\n{extra}{retry}\
         Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len}\r\n\r\n{why}\n"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests;
