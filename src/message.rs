//! What moves through the gateway: plain data that every layer knows, and the closed lists of
//! reasons.

use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::io::IoSlice;

use crate::ids::{InstanceId, Ticket};

/// Microseconds on the process's own monotonic clock, 0 = boot. The engine knows no other time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Micros(pub u64);

impl Micros {
    /// `ms` milliseconds.
    pub const fn from_ms(ms: u64) -> Self {
        Self(ms * 1000)
    }
    /// This time and `ms` milliseconds.
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self(self.0 + ms * 1000)
    }
    /// Microseconds since `earlier`; 0 if that is not earlier.
    pub const fn since(self, earlier: Micros) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// How urgent a message is. The order of the variants is the order of the classes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Priority {
    /// System messages and errors.
    Critical,
    /// Live combat, payment.
    High,
    /// Chat, queries.
    Normal,
    /// Logs, statistics.
    Low,
}

impl Priority {
    /// All, most urgent first.
    pub const ALL: [Priority; 4] =
        [Priority::Critical, Priority::High, Priority::Normal, Priority::Low];

    /// 0 for critical to 3 for low.
    pub fn index(self) -> usize {
        self as usize
    }

    /// The config word.
    pub fn name(self) -> &'static str {
        match self {
            Priority::Critical => "critical",
            Priority::High => "high",
            Priority::Normal => "normal",
            Priority::Low => "low",
        }
    }
}

/// Encoding that a client chose by its subprotocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Encoding {
    /// `shardgate.v1.json`, text frames.
    #[default]
    Json,
    /// `shardgate.v1.protobuf`, binary frames.
    Protobuf,
}

/// Which part of the gateway handles a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Category {
    /// ping, heartbeat, auth, resume.
    System,
    /// A message routed to a service.
    Business,
    /// An id of the gateway's own range.
    Gateway,
}

/// The word for programs in an answer that the gateway gave itself. Closed: clients match on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// No route for this msg_id, or its service has no instance.
    NoRoute,
    /// A cap of the queue is reached for this class.
    QueueFull,
    /// The client sends faster than it may.
    RateLimited,
    /// The deadline passed before the message was sent to the service: it did not run.
    Expired,
    /// Sent to the service, no answer: it may have run.
    OutcomeUnknown,
    /// The service could not be reached: the message surely did not run.
    Unavailable,
    /// A field or payload over its cap.
    TooLarge,
    /// The same id was finished before, and its answer is no longer stored.
    Duplicate,
    /// The gateway is stopping.
    Draining,
    /// The route needs a user.
    Unauthenticated,
    /// The user may not.
    Forbidden,
    /// Not a message of this protocol.
    BadMessage,
    /// The service's answer broke the service protocol.
    BadServiceReply,
    /// Known to the protocol, not to this gateway.
    Unimplemented,
    /// A fault of the gateway.
    Internal,
}

impl Reason {
    /// All of them.
    pub const ALL: [Reason; 15] = [
        Reason::NoRoute,
        Reason::QueueFull,
        Reason::RateLimited,
        Reason::Expired,
        Reason::OutcomeUnknown,
        Reason::Unavailable,
        Reason::TooLarge,
        Reason::Duplicate,
        Reason::Draining,
        Reason::Unauthenticated,
        Reason::Forbidden,
        Reason::BadMessage,
        Reason::BadServiceReply,
        Reason::Unimplemented,
        Reason::Internal,
    ];

    /// As on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Reason::NoRoute => "NO_ROUTE",
            Reason::QueueFull => "QUEUE_FULL",
            Reason::RateLimited => "RATE_LIMITED",
            Reason::Expired => "EXPIRED",
            Reason::OutcomeUnknown => "OUTCOME_UNKNOWN",
            Reason::Unavailable => "UNAVAILABLE",
            Reason::TooLarge => "TOO_LARGE",
            Reason::Duplicate => "DUPLICATE",
            Reason::Draining => "DRAINING",
            Reason::Unauthenticated => "UNAUTHENTICATED",
            Reason::Forbidden => "FORBIDDEN",
            Reason::BadMessage => "BAD_MESSAGE",
            Reason::BadServiceReply => "BAD_SERVICE_REPLY",
            Reason::Unimplemented => "UNIMPLEMENTED",
            Reason::Internal => "INTERNAL",
        }
    }

    /// The canonical gRPC status code that goes with it.
    pub fn status(self) -> u32 {
        match self {
            Reason::NoRoute => status::NOT_FOUND,
            Reason::QueueFull | Reason::RateLimited | Reason::TooLarge => {
                status::RESOURCE_EXHAUSTED
            }
            Reason::Expired => status::DEADLINE_EXCEEDED,
            Reason::OutcomeUnknown => status::UNKNOWN,
            Reason::Unavailable | Reason::Draining => status::UNAVAILABLE,
            Reason::Duplicate => status::ALREADY_EXISTS,
            Reason::Unauthenticated => status::UNAUTHENTICATED,
            Reason::Forbidden => status::PERMISSION_DENIED,
            Reason::BadMessage => status::INVALID_ARGUMENT,
            Reason::BadServiceReply | Reason::Internal => status::INTERNAL,
            Reason::Unimplemented => status::UNIMPLEMENTED,
        }
    }
}

/// Canonical gRPC status codes (grpc/doc/statuscodes.md).
#[allow(missing_docs)]
pub mod status {
    pub const OK: u32 = 0;
    pub const CANCELLED: u32 = 1;
    pub const UNKNOWN: u32 = 2;
    pub const INVALID_ARGUMENT: u32 = 3;
    pub const DEADLINE_EXCEEDED: u32 = 4;
    pub const NOT_FOUND: u32 = 5;
    pub const ALREADY_EXISTS: u32 = 6;
    pub const PERMISSION_DENIED: u32 = 7;
    pub const RESOURCE_EXHAUSTED: u32 = 8;
    pub const FAILED_PRECONDITION: u32 = 9;
    pub const ABORTED: u32 = 10;
    pub const OUT_OF_RANGE: u32 = 11;
    pub const UNIMPLEMENTED: u32 = 12;
    pub const INTERNAL: u32 = 13;
    pub const UNAVAILABLE: u32 = 14;
    pub const DATA_LOSS: u32 = 15;
    pub const UNAUTHENTICATED: u32 = 16;
}

/// A refusal made by the gateway: why, a sentence for people, and when to come back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reject {
    /// The word for programs.
    pub reason: Reason,
    /// The sentence for people. Constant: nothing a peer sent is reflected here.
    pub text: &'static str,
    /// Milliseconds until a retry can succeed; 0 = a retry does not help.
    pub retry_after_ms: u32,
}

impl Reject {
    /// A refusal for which a retry does not help.
    pub const fn new(reason: Reason, text: &'static str) -> Self {
        Self { reason, text, retry_after_ms: 0 }
    }
}

/// One message from a client as its frame held it; borrows the receive buffer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClientMessage<'a> {
    /// Routed id; 0 = absent.
    pub msg_id: u32,
    /// The client's number for it; 0 = one-way. At most [`crate::limits::SEQ_MAX`].
    pub seq: u64,
    /// System message type; empty = routed.
    pub kind: std::borrow::Cow<'a, str>,
    /// Payload, byte for byte. JSON: the text of the value; absent = empty.
    pub payload: &'a [u8],
    /// JSON only: the text of `payload_base64`, still encoded. Exclusive with `payload`.
    pub payload_base64: Option<std::borrow::Cow<'a, str>>,
    /// Idempotency key; empty = none.
    pub id: std::borrow::Cow<'a, str>,
    /// Affinity key; empty = none.
    pub key: std::borrow::Cow<'a, str>,
    /// The client's own deadline; 0 = the route's.
    pub deadline_ms: u32,
    /// Highest offset processed by the client.
    pub ack: u64,
}

/// One message to a client, before encoding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ServerMessage<'a> {
    /// Echoed.
    pub msg_id: u32,
    /// Echoed; 0 = not an answer.
    pub seq: u64,
    /// Empty = reply.
    pub kind: &'a str,
    /// Payload; for JSON clients the text of a JSON value unless `payload_is_bytes`. Empty =
    /// absent.
    pub payload: &'a [u8],
    /// For JSON clients: write `payload_base64` instead of `payload`.
    pub payload_is_bytes: bool,
    /// Canonical gRPC code.
    pub status: u32,
    /// For people.
    pub message: &'a str,
    /// For programs.
    pub reason: Option<Reason>,
    /// 0 = absent.
    pub retry_after_ms: u32,
    /// 0 = absent.
    pub offset: u64,
}

/// The bytes of one gRPC request: small parts copied together, large payloads by reference.
/// The first segment starts with the 5-byte gRPC prefix.
#[derive(Clone, Debug, Default)]
pub struct CallBody {
    segments: VecDeque<Bytes>,
    remaining: usize,
}

impl CallBody {
    /// Appends all segments of `other`.
    pub fn append(&mut self, mut other: CallBody) {
        self.remaining += other.remaining;
        self.segments.append(&mut other.segments);
    }

    /// Appends a segment. Empty ones are left out.
    pub fn push(&mut self, segment: Bytes) {
        if !segment.is_empty() {
            self.remaining += segment.len();
            self.segments.push_back(segment);
        }
    }
}

impl Buf for CallBody {
    fn remaining(&self) -> usize {
        self.remaining
    }
    fn chunk(&self) -> &[u8] {
        self.segments.front().map_or(&[], |s| s)
    }
    fn chunks_vectored<'a>(&'a self, dst: &mut [IoSlice<'a>]) -> usize {
        let mut n = 0;
        for (slot, segment) in dst.iter_mut().zip(&self.segments) {
            *slot = IoSlice::new(segment);
            n += 1;
        }
        n
    }
    fn advance(&mut self, mut n: usize) {
        assert!(n <= self.remaining, "advance past the end of a call's body");
        self.remaining -= n;
        while n > 0 {
            let first = self.segments.front_mut().expect("remaining counts the segments");
            if n < first.len() {
                first.advance(n);
                return;
            }
            n -= first.len();
            self.segments.pop_front();
        }
    }
}

/// A gRPC call to make: a batch, or one unary message. One [`Outcome`] comes back for it.
#[derive(Debug)]
pub struct Call {
    /// Names it in its outcome.
    pub ticket: Ticket,
    /// Where to.
    pub instance: InstanceId,
    /// `/package.Service/Method`.
    pub method: std::sync::Arc<str>,
    /// gRPC prefix and message.
    pub body: CallBody,
    /// What is left of the latest deadline in it, in microseconds: `grpc-timeout`, and when we give
    /// up.
    pub timeout_us: u64,
    /// Extra request metadata (unary mode): name, percent-encoded value.
    pub metadata: Vec<(&'static str, String)>,
}

/// How a call ended.
#[derive(Debug)]
pub struct Outcome {
    /// The call's.
    pub ticket: Ticket,
    /// The one response message without its gRPC prefix, or why there is none.
    pub result: Result<Bytes, CallError>,
}

/// Whether a failed call can have been executed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Started {
    /// Surely not: never sent, REFUSED_STREAM, or above a GOAWAY's last stream.
    No,
    /// Possibly.
    Maybe,
}

/// Where a call failed; the label of its counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum CallFault {
    /// No connection to the instance.
    NotConnected,
    /// The service refused the stream, or said GOAWAY below it.
    Refused,
    /// The stream was reset.
    Reset,
    /// The connection broke with the call in flight.
    ConnectionLost,
    /// No answer within the deadline.
    TimedOut,
    /// The service answered with an error status.
    Status,
    /// The answer broke HTTP, gRPC or our limits.
    BadReply,
}

/// A failed call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CallError {
    /// Where it failed.
    pub fault: CallFault,
    /// Can it have been executed?
    pub started: Started,
    /// Canonical gRPC code.
    pub status: u32,
    /// The service's own words (bounded); shown to clients only where the route allows it.
    pub message: String,
    /// From `grpc-retry-pushback-ms`: `Some(None)` = do not retry, `Some(Some(ms))` = not before.
    pub pushback: Option<Option<u32>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_body_reads_as_the_concatenation_of_its_segments() {
        let mut body = CallBody::default();
        for part in ["abc", "", "d", "efgh"] {
            body.push(Bytes::from_static(part.as_bytes()));
        }
        assert_eq!(body.remaining(), 8);
        let mut slices = [IoSlice::new(&[]); 8];
        assert_eq!(body.chunks_vectored(&mut slices), 3);
        body.advance(2);
        assert_eq!(body.chunk(), b"c");
        body.advance(3);
        assert_eq!(body.copy_to_bytes(3).as_ref(), b"fgh");
        assert!(!body.has_remaining());
    }

    #[test]
    fn reasons_have_distinct_names_and_canonical_codes() {
        let names: std::collections::HashSet<_> = Reason::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        assert!(Reason::ALL.iter().all(|r| (1..=16).contains(&r.status())));
    }
}
