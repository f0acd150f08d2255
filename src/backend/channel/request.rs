//! The heads of requests, made once a method and copied for each call.

use std::sync::Arc;

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE, USER_AGENT};
use http::uri::Scheme;
use http::{Method, Request, Uri};

use crate::message::Call;

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// Most methods that are remembered: an instance belongs to one service, whose routes name a
/// handful.
const METHODS_MAX: usize = 64;

/// Heads by method, for one connection.
pub(super) struct Requests {
    scheme: Scheme,
    authority: String,
    headers: HeaderMap,
    methods: Vec<(Arc<str>, Uri)>,
    timeout: (u64, HeaderValue),
}

impl Requests {
    pub(super) fn new(scheme: Scheme, authority: String) -> Self {
        let timeout = HeaderValue::from_static("0n");
        let mut headers = HeaderMap::with_capacity(8);
        // PROTOCOL-HTTP2.md: grpc-timeout comes first after the pseudo headers.
        headers.insert(GRPC_TIMEOUT, timeout.clone());
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        let agent = concat!("shardgate/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        Self { scheme, authority, headers, methods: Vec::new(), timeout: (0, timeout) }
    }

    /// The head for `call`, which has `left_us`, and the time that it tells the service, in
    /// microseconds; the error says why there can be none.
    pub(super) fn head(
        &mut self,
        call: &Call,
        left_us: u64,
    ) -> Result<(Request<()>, u64), &'static str> {
        let uri = self.uri(&call.method)?;
        let mut headers = self.headers.clone();
        let (timeout, told_us) = self.timeout(left_us);
        headers.insert(GRPC_TIMEOUT, timeout);
        for (name, value) in &call.metadata {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| "bad metadata name")?;
            let value = HeaderValue::from_str(value).map_err(|_| "bad metadata value")?;
            headers.append(name, value);
        }
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        Ok((request, told_us))
    }

    fn uri(&mut self, method: &Arc<str>) -> Result<Uri, &'static str> {
        let known = |(name, _): &&(Arc<str>, Uri)| Arc::ptr_eq(name, method) || name == method;
        if let Some((_, uri)) = self.methods.iter().find(known) {
            return Ok(uri.clone());
        }
        let uri = Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.as_str())
            .path_and_query(&**method)
            .build()
            .map_err(|_| "bad method")?;
        if self.methods.len() == METHODS_MAX {
            self.methods.clear();
        }
        self.methods.push((Arc::clone(method), uri.clone()));
        Ok(uri)
    }

    fn timeout(&mut self, left_us: u64) -> (HeaderValue, u64) {
        let told_us = rounded(left_us);
        let (number, unit) = shown(told_us);
        let key = number << 8 | u64::from(unit);
        if self.timeout.0 != key {
            let text = format!("{number}{}", char::from(unit));
            let value = HeaderValue::from_str(&text).expect("digits and a letter");
            self.timeout = (key, value);
        }
        (self.timeout.1.clone(), told_us)
    }
}

/// A time that services are told in place of `left_us`: rounded down to two significant digits. h2
/// indexes the header by its value; the few dozen values that remain stay in the 4 KiB table of the
/// peer instead of pushing all other entries out. The service may give up earlier than the gateway
/// by less than a tenth of the time, never later.
fn rounded(left_us: u64) -> u64 {
    let mut step = 1;
    while left_us / step >= 100 {
        step *= 10;
    }
    (left_us / step * step).max(1)
}

/// The `grpc-timeout` of a rounded time: a number of at most 8 digits, and its unit.
fn shown(rounded: u64) -> (u64, u8) {
    if rounded.is_multiple_of(1_000_000) {
        ((rounded / 1_000_000).min(99_999_999), b'S')
    } else if rounded.is_multiple_of(1_000) {
        (rounded / 1_000, b'm')
    } else {
        (rounded, b'u')
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{InstanceId, Ticket};
    use crate::message::CallBody;
    use proptest::prelude::*;

    fn call(method: &str, metadata: Vec<(&'static str, String)>) -> Call {
        Call {
            ticket: Ticket::new(1, 0),
            instance: InstanceId(0),
            method: method.into(),
            body: CallBody::default(),
            timeout_us: 0,
            answer_bytes_max: 0,
            metadata,
        }
    }

    #[test]
    fn a_head_is_a_grpc_request() {
        let mut requests = Requests::new(Scheme::HTTP, "127.0.0.1:50051".into());
        let metadata = vec![("user", "anna%20b".to_owned()), ("session", "s".to_owned())];
        let (head, told_us) = requests.head(&call("/a.B/C", metadata), 4_973_000).unwrap();
        assert_eq!(told_us, 4_900_000);
        assert_eq!(head.uri(), "http://127.0.0.1:50051/a.B/C");
        assert_eq!(head.method(), Method::POST);
        let text = |name| head.headers().get(name).unwrap().to_str().unwrap();
        assert_eq!(text("te"), "trailers");
        assert_eq!(text("content-type"), "application/grpc");
        assert_eq!(text("grpc-timeout"), "4900m");
        assert_eq!((text("user"), text("session")), ("anna%20b", "s"));
    }

    #[test]
    fn what_cannot_be_a_request_is_refused() {
        let mut requests = Requests::new(Scheme::HTTPS, "[::1]:1".into());
        assert!(requests.head(&call("/a b", vec![]), 1).is_err());
        assert!(requests.head(&call("/a", vec![("Bad Name", String::new())]), 1).is_err());
        assert!(requests.head(&call("/a", vec![("ok", "bad\n".into())]), 1).is_err());
        assert!(requests.head(&call("/a", vec![("ok", "fine".into())]), 1).is_ok());
    }

    proptest! {
        #[test]
        fn a_timeout_is_at_most_a_tenth_shorter_and_never_longer(
            left_us in 10u64..600_000_000_000,
        ) {
            let (number, unit) = shown(rounded(left_us));
            let us = number * match unit { b'S' => 1_000_000, b'm' => 1_000, _ => 1 };
            prop_assert!(us <= left_us && us * 11 > left_us * 10, "{} {}", us, left_us);
            prop_assert!(number <= 99_999_999);
        }
    }
}
