//! The server's side of the WebSocket upgrade (RFC 6455 section 4.2) over the bytes received so
//! far.
//!
//! It is stricter than the RFC demands: every construct that two HTTP parsers could read
//! differently (bare line feeds, folded lines, two Hosts, a body) is refused, and every refusal
//! ends the connection.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use httparse::{EMPTY_HEADER, Header, Request, Status};
use tungstenite::handshake::derive_accept_key;

use crate::limits::{HANDSHAKE_BYTES_MAX, HANDSHAKE_HEADERS_MAX, HANDSHAKE_TARGET_BYTES_MAX};
use crate::message::Encoding;

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
    /// Allowed `Origin` values (scheme://host[:port]); empty = the request's own host only. A
    /// request without `Origin` (no browser) passes.
    pub(crate) origins: Vec<String>,
    /// Whether subprotocols are negotiated. The echo server negotiates none.
    pub(crate) subprotocols: bool,
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
    },
    /// Send `response` and close; no byte of the input may be used.
    Refuse {
        /// The whole HTTP response.
        response: Vec<u8>,
        /// Status code of the response.
        status: u16,
        /// Text of the response, for the log.
        why: &'static str,
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

/// A status code, and a line that tells the client what to do.
type Refusal = (u16, &'static str);

/// Reads all bytes received so far. `already_scanned` is kept by the caller, 0 at first: bytes
/// before it are not read again until the headers are complete, so a peer that sends byte by byte
/// costs no more than one that sends all at once.
pub(crate) fn try_upgrade(
    rules: &HandshakeRules,
    input: &[u8],
    already_scanned: &mut usize,
) -> Progress {
    let scanned = scan(input, already_scanned);
    let result = match scanned {
        Ok(None) => return Progress::Partial,
        Ok(Some(end)) => upgrade(rules, &input[..end]),
        Err(refusal) => Err(refusal),
    };
    result.unwrap_or_else(|(status, why)| Progress::Refuse {
        response: refuse(status, why),
        status,
        why,
    })
}

/// Finds the end of the headers, and refuses early what cannot become a request.
fn scan(input: &[u8], already_scanned: &mut usize) -> Result<Option<usize>, Refusal> {
    if *already_scanned <= METHOD_BYTES_MAX {
        check_start(input)?;
    }
    let end = input.len().min(HANDSHAKE_BYTES_MAX);
    for at in *already_scanned..end {
        let byte = input[at];
        let after_return = at > 0 && input[at - 1] == b'\r';
        if byte == 0 || after_return != (byte == b'\n') {
            return Err((400, "end header lines with CR LF, and send no NUL"));
        }
        if byte == b'\n' && input[..=at].ends_with(b"\r\n\r\n") {
            return Ok(Some(at + 1));
        }
    }
    *already_scanned = end;
    if end < HANDSHAKE_BYTES_MAX {
        Ok(None)
    } else if input[..end].contains(&b'\n') {
        Err((431, "send at most 8 KiB of headers"))
    } else {
        Err(TARGET_TOO_LONG)
    }
}

const TARGET_TOO_LONG: Refusal = (414, "send a request target of at most 2 KiB");
/// The longest registered method has 17 letters (UPDATEREDIRECTREF).
const METHOD_BYTES_MAX: usize = 20;

/// Refuses first bytes that cannot become a method: TLS, HTTP/2 and noise are answered at once.
fn check_start(input: &[u8]) -> Result<(), Refusal> {
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

/// Checks a complete request head against the rules.
fn upgrade(rules: &HandshakeRules, head: &[u8]) -> Result<Progress, Refusal> {
    let mut fields = [EMPTY_HEADER; HANDSHAKE_HEADERS_MAX];
    let mut request = Request::new(&mut fields);
    match request.parse(head) {
        Ok(Status::Complete(consumed)) if consumed == head.len() => {}
        Ok(_) => return Err((400, "this is not an HTTP/1.1 request")),
        Err(httparse::Error::TooManyHeaders) => {
            return Err((431, "send at most 64 header fields"));
        }
        Err(httparse::Error::Version) => return Err((505, "use HTTP/1.1")),
        Err(_) => return Err((400, "this is not an HTTP/1.1 request")),
    }
    let headers = Headers(request.headers);
    if request.version != Some(1) {
        return Err((505, "use HTTP/1.1"));
    }
    if request.method != Some("GET") {
        return Err((405, "use GET"));
    }
    let target = request.path.unwrap_or_default();
    if target.len() > HANDSHAKE_TARGET_BYTES_MAX {
        return Err(TARGET_TOO_LONG);
    }
    let host = check_host(&headers)?;
    check_no_body(&headers)?;
    let (path, host) = split_target(target, host);
    if path != rules.path {
        return Err((404, "this path is not served: connect to the gateway's WebSocket path"));
    }
    if !headers.has_token("Upgrade", "websocket") || !headers.has_token("Connection", "upgrade") {
        return Err((426, "upgrade to WebSocket: send Upgrade: websocket, Connection: Upgrade"));
    }
    if headers.only("Sec-WebSocket-Version") != Some(b"13") {
        return Err((426, "use Sec-WebSocket-Version: 13, once"));
    }
    let key = headers
        .only("Sec-WebSocket-Key")
        .filter(|key| STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16))
        .ok_or((400, "send one Sec-WebSocket-Key: 16 bytes in base64"))?;
    if !headers.all("Sec-WebSocket-Extensions").all(is_extension_list) {
        return Err((400, "Sec-WebSocket-Extensions is malformed"));
    }
    check_origin(rules, &headers, host)?;
    let subprotocol = if rules.subprotocols { pick_subprotocol(&headers)? } else { None };
    Ok(Progress::Upgrade {
        consumed: head.len(),
        response: accept(key, subprotocol.map(|(name, _)| name)),
        encoding: subprotocol.map_or(Encoding::Json, |(_, encoding)| encoding),
        token: shown_token(&headers)?,
    })
}

/// The header fields of a request.
struct Headers<'h, 'b>(&'h [Header<'b>]);

impl<'b> Headers<'_, 'b> {
    fn all<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'b [u8]> + 's {
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

    /// Whether a field's comma-separated values contain `token`, in any case.
    fn has_token(&self, name: &str, token: &str) -> bool {
        self.all(name).flat_map(elements).any(|each| each.eq_ignore_ascii_case(token.as_bytes()))
    }
}

/// The elements of a comma-separated list without quoted strings (RFC 9110 section 5.6.1).
fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|each| !each.is_empty())
}

/// Checks that there is exactly one Host (RFC 9112 section 3.2), and that it is one authority.
fn check_host<'b>(headers: &Headers<'_, 'b>) -> Result<&'b str, Refusal> {
    headers
        .only("Host")
        .and_then(|host| std::str::from_utf8(host).ok())
        .filter(|host| is_authority(host))
        .ok_or((400, "send exactly one Host"))
}

/// Whether `host` is host[:port]. The check is loose: it only excludes that any part could be read
/// as a path or a second host.
fn is_authority(host: &str) -> bool {
    !host.is_empty()
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~[]:%".contains(&byte))
}

/// Refuses a body, which would be parsed as frames.
fn check_no_body(headers: &Headers<'_, '_>) -> Result<(), Refusal> {
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

/// Path of a target without its query, and the host: a target in absolute form names its own, and
/// Host is then ignored (RFC 9112 section 3.2.2).
fn split_target<'b>(target: &'b str, host: &'b str) -> (&'b str, &'b str) {
    let (target, host) = match target.strip_prefix("http://") {
        Some(absolute) => match absolute.find('/') {
            Some(slash) => (&absolute[slash..], &absolute[..slash]),
            None => ("/", absolute),
        },
        None => (target, host),
    };
    (target.split('?').next().unwrap_or(target), host)
}

/// Refuses pages of origins that are not allowed: otherwise any page could use the network position
/// of its reader's browser (RFC 6455 section 10.2).
fn check_origin(
    rules: &HandshakeRules,
    headers: &Headers<'_, '_>,
    host: &str,
) -> Result<(), Refusal> {
    let allowed = match headers.all("Origin").count() {
        0 => true,
        1 => headers
            .only("Origin")
            .and_then(|origin| std::str::from_utf8(origin).ok())
            .is_some_and(|origin| {
                if rules.origins.is_empty() {
                    is_own_host(origin, host)
                } else {
                    rules.origins.iter().any(|each| each.eq_ignore_ascii_case(origin))
                }
            }),
        _ => return Err((400, "send at most one Origin")),
    };
    if allowed {
        Ok(())
    } else {
        Err((
            403,
            "this Origin is not allowed: the key origins of the gateway lists those that are",
        ))
    }
}

/// Whether an origin has the host and port of `host`, the scheme's default port being optional.
fn is_own_host(origin: &str, host: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let default_port = match scheme.to_ascii_lowercase().as_str() {
        "http" => ":80",
        "https" => ":443",
        _ => return false,
    };
    let bare = |name: &str| name.strip_suffix(default_port).unwrap_or(name).to_ascii_lowercase();
    bare(authority) == bare(host)
}

/// The token in the request, if there is one. Other schemes of `Authorization` are for proxies in
/// front of the gateway. `Bearer` with nothing behind it (the space after it is trimmed with the
/// value) is an empty token, which is refused: a client that wants to sign in is not accepted
/// without a name.
fn shown_token(headers: &Headers<'_, '_>) -> Result<Option<ShownToken>, Refusal> {
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
fn pick_subprotocol(
    headers: &Headers<'_, '_>,
) -> Result<Option<(&'static str, Encoding)>, Refusal> {
    let mut offers = headers.all("Sec-WebSocket-Protocol").peekable();
    if offers.peek().is_none() {
        return Ok(None);
    }
    offers
        .flat_map(elements)
        .find_map(|offer| match offer {
            _ if offer == JSON.as_bytes() => Some((JSON, Encoding::Json)),
            _ if offer == PROTOBUF.as_bytes() => Some((PROTOBUF, Encoding::Protobuf)),
            _ => None,
        })
        .map(Some)
        .ok_or((400, "offer one of the subprotocols shardgate.v1.json, shardgate.v1.protobuf"))
}

/// Whether a value is a list of extensions with parameters (RFC 6455 section 9.1).
fn is_extension_list(value: &[u8]) -> bool {
    let mut rest = value.trim_ascii();
    loop {
        // Extension and parameters: token *( ";" token [ "=" ( token / quoted-string ) ] ).
        if !take_token(&mut rest) {
            return false;
        }
        while take_byte(&mut rest, b';') {
            if !take_token(&mut rest) {
                return false;
            }
            if take_byte(&mut rest, b'=') && !(take_quoted(&mut rest) || take_token(&mut rest)) {
                return false;
            }
        }
        if rest.is_empty() {
            return true;
        }
        if !take_byte(&mut rest, b',') {
            return false;
        }
    }
}

fn take_byte(rest: &mut &[u8], byte: u8) -> bool {
    let found = rest.first() == Some(&byte);
    if found {
        *rest = rest[1..].trim_ascii_start();
    }
    found
}

fn take_token(rest: &mut &[u8]) -> bool {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let len = rest.iter().take_while(|byte| is_token(byte)).count();
    *rest = rest[len..].trim_ascii_start();
    len > 0
}

/// A quoted string, which must be a token inside its quotes (RFC 6455 section 9.1).
fn take_quoted(rest: &mut &[u8]) -> bool {
    let Some(mut inner) = rest.strip_prefix(b"\"") else { return false };
    let found = take_token(&mut inner) && take_byte(&mut inner, b'"');
    if found {
        *rest = inner;
    }
    found
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
