//! The end of a call by HTTP/2 and gRPC: PROTOCOL-HTTP2.md ("HTTP2 Transport Mapping"),
//! statuscodes.md and http-grpc-status-mapping.md. h2's own texts are logged, and decide nothing.

use h2::Reason;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use http::response::Parts;

use super::framing::FramingError;
use crate::message::{CallError, CallFault, Started, status};

/// Most characters of a service's own text that are kept: a sentence or two.
pub(crate) const MESSAGE_CHARS_MAX: usize = 256;

fn error(fault: CallFault, started: Started, status: u32, message: impl Into<String>) -> CallError {
    let (message, pushback) = (message.into(), None);
    CallError { fault, started, status, message, pushback, going_away: false }
}

/// The error of a call without a connection: nothing was sent.
pub(crate) fn not_connected(why: &str) -> CallError {
    let message = why.chars().take(MESSAGE_CHARS_MAX).collect::<String>();
    error(CallFault::NotConnected, Started::No, status::UNAVAILABLE, message)
}

/// The error of a call that could not be sent over a working connection: nothing was sent.
pub(crate) fn not_sent(status: u32, why: &str) -> CallError {
    error(CallFault::Refused, Started::No, status, why)
}

/// The error of a call whose deadline passed; `started` = whether it had been sent.
pub(crate) fn timed_out(started: Started) -> CallError {
    error(CallFault::TimedOut, started, status::DEADLINE_EXCEEDED, "deadline exceeded")
}

/// The error of a call that was cancelled here; `started` = whether it had been sent.
pub(crate) fn cancelled(started: Started) -> CallError {
    error(CallFault::TimedOut, started, status::CANCELLED, "cancelled")
}

/// The error of a call in flight whose connection was lost.
pub(crate) fn connection_lost() -> CallError {
    error(CallFault::ConnectionLost, Started::Maybe, status::UNAVAILABLE, "connection lost")
}

/// The error of an answer that breaks the protocol; `why` goes on after "the service's answer:".
fn bad_reply(status: u32, why: &str) -> CallError {
    error(CallFault::BadReply, Started::Maybe, status, why)
}

/// The error of a call whose stream failed.
pub(crate) fn from_h2(cause: &h2::Error) -> CallError {
    if cause.is_io() {
        return connection_lost();
    }
    let reason = cause.reason().unwrap_or(Reason::INTERNAL_ERROR);
    if cause.is_go_away() && cause.is_remote() {
        // h2 fails with a received GOAWAY only the streams above its last stream id.
        let why = "the service is going away";
        return error(CallFault::GoingAway, Started::No, status::UNAVAILABLE, why);
    }
    if cause.is_reset() && cause.is_remote() {
        return from_reset(reason);
    }
    // h2 found a fault of the peer, as a stream error or a connection error.
    let code = match reason {
        Reason::ENHANCE_YOUR_CALM => status::RESOURCE_EXHAUSTED,
        _ => status::INTERNAL,
    };
    bad_reply(code, "it broke HTTP/2")
}

/// The error of a stream that the service reset (PROTOCOL-HTTP2.md "Errors").
fn from_reset(reason: Reason) -> CallError {
    let (code, text) = match reason {
        Reason::REFUSED_STREAM => {
            return not_sent(status::UNAVAILABLE, "the service refused the stream");
        }
        Reason::CANCEL => (status::CANCELLED, "the service cancelled the stream"),
        Reason::ENHANCE_YOUR_CALM => {
            (status::RESOURCE_EXHAUSTED, "the service demands fewer calls")
        }
        Reason::INADEQUATE_SECURITY => {
            (status::PERMISSION_DENIED, "the service demands a more secure connection")
        }
        _ => (status::INTERNAL, "the service reset the stream"),
    };
    error(CallFault::Reset, Started::Maybe, code, text)
}

/// The error of a response whose body is not one message. The texts are ours, and clients see them.
pub(crate) fn from_framing(cause: FramingError) -> CallError {
    let code = match cause {
        FramingError::TooLarge(_) => status::RESOURCE_EXHAUSTED,
        FramingError::Compressed
        | FramingError::UnknownEncoding(_)
        | FramingError::BadCompression
        | FramingError::BadFlag
        | FramingError::TwoMessages
        | FramingError::Missing
        | FramingError::Truncated => status::INTERNAL,
    };
    let why = match cause {
        FramingError::Compressed => "it is compressed, and no grpc-encoding says how".into(),
        FramingError::UnknownEncoding(name) => {
            format!("it is compressed with {name:?}: use gzip, deflate or nothing")
        }
        FramingError::BadCompression => "it cannot be decompressed".into(),
        FramingError::BadFlag => "its first byte is no flag of gRPC".into(),
        FramingError::TooLarge(bytes_max) => {
            format!("it is larger than {bytes_max} bytes, which is all that its receivers can take")
        }
        FramingError::TwoMessages => "it has more than one message".into(),
        FramingError::Missing => "it has no message".into(),
        FramingError::Truncated => "its message is not complete".into(),
    };
    let fault = match code {
        status::RESOURCE_EXHAUSTED => CallFault::TooLarge,
        _ => CallFault::BadReply,
    };
    error(fault, Started::Maybe, code, why)
}

/// The error of a response without trailers.
pub(crate) fn no_trailers() -> CallError {
    bad_reply(status::UNKNOWN, "it ended without trailers")
}

/// Checks the header block that opens a response; `ends` = the stream ends with it, so that it is
/// also the trailers ("Trailers-Only").
pub(crate) fn check_head(head: &Parts, ends: bool) -> Result<(), CallError> {
    let headers = &head.headers;
    if head.status != http::StatusCode::OK {
        // A grpc-status wins over the HTTP status, but an OK cannot come with an HTTP error.
        if headers.contains_key("grpc-status") {
            check_trailers(headers)?;
        }
        let code = from_http(head.status.as_u16());
        return Err(error(
            CallFault::Status,
            Started::Maybe,
            code,
            format!("HTTP status {}", head.status.as_u16()),
        ));
    }
    if !headers.get(CONTENT_TYPE).is_some_and(is_grpc) {
        return Err(bad_reply(status::UNKNOWN, "its content-type is not application/grpc"));
    }
    if !ends {
        return Ok(());
    }
    if !headers.contains_key("grpc-status") {
        return Err(no_trailers());
    }
    check_trailers(headers)?;
    Err(from_framing(FramingError::Missing))
}

/// Checks the trailers: `Ok` if the service's status is OK.
pub(crate) fn check_trailers(trailers: &HeaderMap) -> Result<(), CallError> {
    let Some(value) = trailers.get("grpc-status") else {
        return Err(bad_reply(status::UNKNOWN, "its trailers have no grpc-status"));
    };
    let digits = value.as_bytes();
    if digits.is_empty() || digits.len() > 10 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(bad_reply(status::UNKNOWN, "its grpc-status is not a number"));
    }
    let number = digits.iter().fold(0u64, |n, d| n * 10 + u64::from(d - b'0'));
    let code = match u32::try_from(number) {
        Ok(status::OK) => return Ok(()),
        Ok(code) if code <= status::UNAUTHENTICATED => code,
        Ok(_) | Err(_) => status::UNKNOWN,
    };
    let message = trailers.get("grpc-message").map(|m| percent_decoded(m.as_bytes()));
    let mut ended = error(CallFault::Status, Started::Maybe, code, message.unwrap_or_default());
    ended.pushback = trailers.get("grpc-retry-pushback-ms").map(pushback);
    Err(ended)
}

/// Reads a pushback in milliseconds; `None` = do not retry, which a negative or unreadable value
/// means (gRFC A6).
fn pushback(value: &HeaderValue) -> Option<u32> {
    value.to_str().ok()?.parse().ok()
}

/// Whether a content type is `application/grpc`, alone or followed by `+format` or `;parameters`.
fn is_grpc(value: &HeaderValue) -> bool {
    let Some((start, rest)) = value.as_bytes().split_at_checked(b"application/grpc".len()) else {
        return false;
    };
    start.eq_ignore_ascii_case(b"application/grpc")
        && matches!(rest.first(), None | Some(b'+' | b';'))
}

/// The gRPC status of an HTTP status (http-grpc-status-mapping.md).
fn from_http(http_status: u16) -> u32 {
    match http_status {
        400 => status::INTERNAL,
        401 => status::UNAUTHENTICATED,
        403 => status::PERMISSION_DENIED,
        404 => status::UNIMPLEMENTED,
        429 | 502 | 503 | 504 => status::UNAVAILABLE,
        _ => status::UNKNOWN,
    }
}

/// Decodes grpc-message. Bad escapes stay as they are; bytes that are not UTF-8 are replaced; at
/// most [`MESSAGE_CHARS_MAX`] characters are kept.
fn percent_decoded(text: &[u8]) -> String {
    // A character is at most 4 bytes, and a byte at most 3 characters of encoding.
    let text = &text[..text.len().min(MESSAGE_CHARS_MAX * 4 * 3)];
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let decoded = match tail {
            [high, low, ..] if first == b'%' => hex(*high).zip(hex(*low)),
            _ => None,
        };
        if let Some((high, low)) = decoded {
            bytes.push(high << 4 | low);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).chars().take(MESSAGE_CHARS_MAX).collect()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn trailers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect()
    }

    fn head(http_status: u16, pairs: &[(&'static str, &str)]) -> Parts {
        let mut parts = http::Response::builder().status(http_status).body(()).unwrap();
        *parts.headers_mut() = trailers(pairs);
        parts.into_parts().0
    }

    #[test]
    fn trailers_are_judged_by_their_grpc_status() {
        let code =
            |value| check_trailers(&trailers(&[("grpc-status", value)])).map_err(|e| e.status);
        assert_eq!(code("0"), Ok(()));
        assert_eq!(code("5"), Err(status::NOT_FOUND));
        assert_eq!(code("16"), Err(status::UNAUTHENTICATED));
        for strange in ["17", "4294967296", "abc", "", "-1", "99999999999999999999"] {
            assert_eq!(code(strange), Err(status::UNKNOWN), "{strange}");
        }
        assert_eq!(check_trailers(&HeaderMap::new()).unwrap_err().status, status::UNKNOWN);
    }

    #[test]
    fn the_words_and_the_pushback_of_the_service_are_kept() {
        let ended = |pushback| {
            check_trailers(&trailers(&[
                ("grpc-status", "14"),
                ("grpc-message", "no%20room%21 100%"),
                ("grpc-retry-pushback-ms", pushback),
            ]))
            .unwrap_err()
        };
        assert_eq!(ended("250").message, "no room! 100%");
        assert_eq!(ended("250").pushback, Some(Some(250)));
        assert_eq!(ended("-1").pushback, Some(None));
        assert_eq!(ended("soon").pushback, Some(None));
    }

    #[test]
    fn a_head_is_judged_by_http_status_then_content_type() {
        let grpc = ("content-type", "application/grpc+proto");
        let code = |parts, ends| check_head(&parts, ends).map_err(|e| e.status);
        assert_eq!(code(head(200, &[grpc]), false), Ok(()));
        assert_eq!(code(head(200, &[("content-type", "text/html")]), false), Err(status::UNKNOWN));
        assert_eq!(
            code(head(200, &[("content-type", "application/grpcish")]), false),
            Err(status::UNKNOWN)
        );
        assert_eq!(code(head(200, &[]), false), Err(status::UNKNOWN));
        for (http_status, expected) in [(503, 14), (429, 14), (404, 12), (401, 16), (500, 2)] {
            assert_eq!(code(head(http_status, &[]), false), Err(expected));
        }
        assert_eq!(code(head(503, &[("grpc-status", "5")]), true), Err(status::NOT_FOUND));
        assert_eq!(code(head(503, &[("grpc-status", "0")]), true), Err(status::UNAVAILABLE));
        assert_eq!(code(head(200, &[grpc]), true), Err(status::UNKNOWN));
        assert_eq!(code(head(200, &[grpc, ("grpc-status", "0")]), true), Err(status::INTERNAL));
        assert_eq!(code(head(200, &[grpc, ("grpc-status", "7")]), true), Err(7));
    }

    #[test]
    fn only_a_refused_stream_surely_did_not_run() {
        assert_eq!(from_reset(Reason::REFUSED_STREAM).started, Started::No);
        for (reason, code) in [
            (Reason::CANCEL, status::CANCELLED),
            (Reason::INTERNAL_ERROR, status::INTERNAL),
            (Reason::PROTOCOL_ERROR, status::INTERNAL),
            (Reason::NO_ERROR, status::INTERNAL),
            (Reason::ENHANCE_YOUR_CALM, status::RESOURCE_EXHAUSTED),
            (Reason::INADEQUATE_SECURITY, status::PERMISSION_DENIED),
        ] {
            let ended = from_reset(reason);
            assert_eq!((ended.status, ended.started), (code, Started::Maybe));
        }
    }

    #[test]
    fn a_long_message_is_cut_at_characters() {
        let text = "%C3%A9".repeat(1000);
        assert_eq!(percent_decoded(text.as_bytes()), "é".repeat(MESSAGE_CHARS_MAX));
    }

    proptest! {
        #[test]
        fn decoding_never_fails_and_never_grows_over_the_bound(
            text in prop::collection::vec(any::<u8>(), 0..5000),
        ) {
            prop_assert!(percent_decoded(&text).chars().count() <= MESSAGE_CHARS_MAX);
        }

        #[test]
        fn decoding_undoes_encoding(text in "\\PC{0,80}") {
            let encoded: String = text.bytes().map(|b| format!("%{b:02X}")).collect();
            prop_assert_eq!(percent_decoded(encoded.as_bytes()), text);
        }
    }
}
