//! The data that moves through the gateway, plain and known to every layer, and the closed lists of
//! reasons.

mod event;

use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::io::IoSlice;

pub(crate) use event::{EventCounts, EventResult};
pub use event::{EventKind, EventReason};

use crate::ids::{InstanceId, Ticket};

/// A time in microseconds on the process's own monotonic clock, 0 = boot. The engine knows no other
/// time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Micros(pub u64);

impl Micros {
    /// The time `ms` milliseconds after boot.
    pub const fn from_ms(ms: u64) -> Self {
        Self(ms * 1000)
    }
    /// The time `ms` milliseconds later.
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self(self.0 + ms * 1000)
    }
    /// Microseconds since `earlier`; 0 if that time is not earlier.
    pub(crate) const fn since(self, earlier: Micros) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Whole milliseconds of `us`, rounded up, so that a client that waits as told is not too early.
pub fn whole_ms(us: u64) -> u32 {
    u32::try_from(us.div_ceil(1000)).unwrap_or(u32::MAX)
}

/// Urgency of a message. The order of the variants is the order of the classes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Priority {
    /// System messages and errors.
    Critical,
    /// Live combat and payment.
    High,
    /// Chat and queries, for example.
    Normal,
    /// Logs and statistics, for example.
    Low,
}

impl Priority {
    /// All classes, the most urgent first.
    pub const ALL: [Priority; 4] =
        [Priority::Critical, Priority::High, Priority::Normal, Priority::Low];

    /// Index of the class: 0 for critical to 3 for low.
    pub(crate) fn index(self) -> usize {
        self as usize
    }

    /// Name of the class in the configuration.
    pub(crate) fn name(self) -> &'static str {
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
    /// JSON in text frames: `shardgate.v1.json`.
    #[default]
    Json,
    /// Protobuf in binary frames: `shardgate.v1.protobuf`.
    Protobuf,
}

/// Part of the gateway that handles a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Category {
    /// System messages: ping, heartbeat, auth, resume.
    System,
    /// A message routed to a service.
    Business,
    /// An id of the gateway's own range.
    Gateway,
}

/// Reason of a refusal by the gateway, for programs. The list is closed: clients match on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// No route has this msg_id.
    NoRoute,
    /// A cap of the queue is reached for this class.
    QueueFull,
    /// The client exceeds a rate limit.
    RateLimited,
    /// The deadline passed before the message was sent to the service: it did not run.
    Expired,
    /// The message was sent to the service and no answer came: it may have run.
    OutcomeUnknown,
    /// The service could not be reached: the message surely did not run.
    Unavailable,
    /// A field or the payload is over its cap.
    TooLarge,
    /// A message with the same id was finished before, and its answer is no longer stored.
    Duplicate,
    /// The gateway is stopping.
    Draining,
    /// The route needs a user.
    Unauthenticated,
    /// The user may not send this message.
    Forbidden,
    /// The bytes are no message of this protocol.
    BadMessage,
    /// The service's answer broke the service protocol.
    BadServiceReply,
    /// The type is known to the protocol, and not to this gateway.
    Unimplemented,
    /// A fault of the gateway.
    Internal,
}

impl Reason {
    /// All reasons, in the order of reports.
    pub(crate) const ALL: [Reason; 15] = [
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

    /// Name of the reason on the wire.
    pub(crate) fn name(self) -> &'static str {
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

    /// The canonical gRPC status code of the reason.
    pub(crate) fn status(self) -> u32 {
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
    pub(crate) const OK: u32 = 0;
    pub(crate) const CANCELLED: u32 = 1;
    pub const UNKNOWN: u32 = 2;
    pub(crate) const INVALID_ARGUMENT: u32 = 3;
    pub const DEADLINE_EXCEEDED: u32 = 4;
    pub(crate) const NOT_FOUND: u32 = 5;
    pub(crate) const ALREADY_EXISTS: u32 = 6;
    pub(crate) const PERMISSION_DENIED: u32 = 7;
    pub(crate) const RESOURCE_EXHAUSTED: u32 = 8;
    pub const FAILED_PRECONDITION: u32 = 9;
    pub const ABORTED: u32 = 10;
    pub const OUT_OF_RANGE: u32 = 11;
    pub(crate) const UNIMPLEMENTED: u32 = 12;
    pub const INTERNAL: u32 = 13;
    pub const UNAVAILABLE: u32 = 14;
    pub(crate) const DATA_LOSS: u32 = 15;
    pub(crate) const UNAUTHENTICATED: u32 = 16;

    /// The name of a code; a number that is none counts as UNKNOWN (gRPC, statuscodes.md).
    pub(crate) fn name(code: u32) -> &'static str {
        match code {
            OK => "OK",
            CANCELLED => "CANCELLED",
            INVALID_ARGUMENT => "INVALID_ARGUMENT",
            DEADLINE_EXCEEDED => "DEADLINE_EXCEEDED",
            NOT_FOUND => "NOT_FOUND",
            ALREADY_EXISTS => "ALREADY_EXISTS",
            PERMISSION_DENIED => "PERMISSION_DENIED",
            RESOURCE_EXHAUSTED => "RESOURCE_EXHAUSTED",
            FAILED_PRECONDITION => "FAILED_PRECONDITION",
            ABORTED => "ABORTED",
            OUT_OF_RANGE => "OUT_OF_RANGE",
            UNIMPLEMENTED => "UNIMPLEMENTED",
            INTERNAL => "INTERNAL",
            UNAVAILABLE => "UNAVAILABLE",
            DATA_LOSS => "DATA_LOSS",
            UNAUTHENTICATED => "UNAUTHENTICATED",
            _ => "UNKNOWN",
        }
    }
}

/// A refusal by the gateway: its reason, a sentence for people, and the time after which to retry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reject {
    /// The reason, for programs.
    pub(crate) reason: Reason,
    /// The sentence, for people. Constant: no bytes of a peer are reflected here.
    pub(crate) text: &'static str,
    /// Milliseconds until a retry can succeed; 0 = a retry does not help.
    pub(crate) retry_after_ms: u32,
    /// Messages that its owner has waiting, if they are the cause; they are told. Else 0.
    pub(crate) held: u32,
}

impl Reject {
    /// A refusal after which the message may be let in `retry_after_ms` later.
    pub(crate) const fn later(reason: Reason, text: &'static str, retry_after_ms: u32) -> Self {
        Self { reason, text, retry_after_ms, held: 0 }
    }

    /// A refusal for which a retry does not help.
    pub(crate) const fn new(reason: Reason, text: &'static str) -> Self {
        Self { reason, text, retry_after_ms: 0, held: 0 }
    }
}

/// A message from a client as its frame held it; borrows the receive buffer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClientMessage<'a> {
    /// Id that is routed; 0 = absent.
    pub(crate) msg_id: u32,
    /// Sequence number that the client gave it; 0 = one-way. At most [`crate::limits::SEQ_MAX`].
    pub(crate) seq: u64,
    /// Type of a system message; empty = routed.
    pub(crate) kind: std::borrow::Cow<'a, str>,
    /// The payload, byte for byte. JSON: the text of the value; absent = empty.
    pub(crate) payload: &'a [u8],
    /// The text of `payload_base64` (JSON only), still encoded. Exclusive with `payload`.
    pub(crate) payload_base64: Option<std::borrow::Cow<'a, str>>,
    /// Idempotency key; empty = none.
    pub(crate) id: std::borrow::Cow<'a, str>,
    /// Affinity key; empty = none.
    pub(crate) key: std::borrow::Cow<'a, str>,
    /// Deadline that the client set; 0 = the route's.
    pub(crate) deadline_ms: u32,
    /// Highest offset that the client has processed.
    pub(crate) ack: u64,
    /// Place in a trace, checked (W3C Trace Context, `traceparent`); empty = none.
    pub(crate) traceparent: std::borrow::Cow<'a, str>,
}

/// A message to a client, before encoding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ServerMessage<'a> {
    /// Id of the message that is answered.
    pub msg_id: u32,
    /// Sequence number of the message that is answered; 0 = not an answer.
    pub seq: u64,
    /// Type; empty = reply.
    pub kind: &'a str,
    /// The payload; for JSON clients the text of a JSON value, unless `payload_is_bytes`. Empty =
    /// absent.
    pub payload: &'a [u8],
    /// Whether JSON clients get `payload_base64` instead of `payload`.
    pub payload_is_bytes: bool,
    /// Canonical gRPC status code; 0 = OK.
    pub status: u32,
    /// Text for people; empty = absent.
    pub message: &'a str,
    /// The reason, for programs.
    pub reason: Option<Reason>,
    /// Milliseconds until a retry can succeed; 0 = absent.
    pub retry_after_ms: u32,
    /// Place in the session's stream of replies, or in the group's of pushes; 0 = absent.
    pub offset: u64,
    /// The group that a push went to; empty = absent.
    pub group: &'a str,
    /// Id of a push; empty = absent.
    pub id: &'a str,
    /// User or session that published a push; empty = absent.
    pub from: &'a str,
}

impl ServerMessage<'_> {
    /// Whether it has fields that only pushes have: its encoders pass a reply by them in one step.
    pub(crate) fn names_its_push(&self) -> bool {
        self.group.len() + self.id.len() + self.from.len() != 0
    }
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
    pub(crate) fn append(&mut self, mut other: CallBody) {
        self.remaining += other.remaining;
        self.segments.append(&mut other.segments);
    }

    /// Appends a segment; an empty one is left out.
    pub(crate) fn push(&mut self, segment: Bytes) {
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

/// A gRPC call to be made: a batch, or one unary message. It ends with one [`Outcome`].
#[derive(Debug)]
pub struct Call {
    /// Key of the call; its outcome carries it.
    pub ticket: Ticket,
    /// The instance to be called.
    pub instance: InstanceId,
    /// The gRPC method, `/package.Service/Method`.
    pub method: std::sync::Arc<str>,
    /// The gRPC prefix and the message.
    pub body: CallBody,
    /// Time left to the latest deadline among its messages, in microseconds: the `grpc-timeout`,
    /// and the time after which the call is given up.
    pub timeout_us: u64,
    /// Most bytes of the answer: more than its receivers could take.
    pub answer_bytes_max: usize,
    /// Request metadata of the unary mode: name, and percent-encoded value.
    pub metadata: Vec<(&'static str, String)>,
}

/// The end of a call.
#[derive(Debug)]
pub struct Outcome {
    /// Key of the call.
    pub ticket: Ticket,
    /// The one response message without its gRPC prefix, or the error.
    pub result: Result<Bytes, CallError>,
}

/// Whether a failed call may have been executed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Started {
    /// Surely not executed: never sent, REFUSED_STREAM, or above a GOAWAY's last stream.
    No,
    /// Possibly executed: sent, and its end is unknown.
    Maybe,
}

/// Point at which a call failed; a label of the counter of failed calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum CallFault {
    /// There was no connection to the instance.
    NotConnected,
    /// The service refused the stream.
    Refused,
    /// The service sent a GOAWAY that excludes the call.
    GoingAway,
    /// The stream was reset.
    Reset,
    /// The connection broke with the call in flight.
    ConnectionLost,
    /// No answer came within the deadline.
    TimedOut,
    /// The service answered with an error status.
    Status,
    /// The answer broke HTTP or gRPC.
    BadReply,
    /// The answer is larger than its receivers could take.
    TooLarge,
}

/// The error of a failed call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CallError {
    /// The point at which the call failed.
    pub fault: CallFault,
    /// Whether the call may have been executed.
    pub started: Started,
    /// Canonical gRPC status code of the failure.
    pub status: u32,
    /// The service's own text (bounded), shown to clients only where the route allows it.
    pub message: String,
    /// Value of `grpc-retry-pushback-ms`: `Some(None)` = do not retry, `Some(Some(ms))` = not
    /// before.
    pub pushback: Option<Option<u32>>,
    /// Whether the service had said before that it closes the connection (GOAWAY): what it does
    /// then to calls that it cannot finish is part of a stop in order.
    pub going_away: bool,
}

impl CallError {
    /// An error without words, for tests.
    #[cfg(test)]
    pub(crate) fn of(fault: CallFault, started: Started, status: u32) -> Self {
        let (message, pushback, going_away) = (String::new(), None, false);
        Self { fault, started, status, message, pushback, going_away }
    }

    /// Whether a server does not know the method that was called: so it says.
    pub(crate) fn is_unimplemented(&self) -> bool {
        self.fault == CallFault::Status && self.status == status::UNIMPLEMENTED
    }
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
