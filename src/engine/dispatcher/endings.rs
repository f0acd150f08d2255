//! What the end of a call says of its instance: only what the instance is to blame for counts
//! against it, neither a deadline that a client chose nor what a service does on purpose and in
//! order.
//!
//! | End of the call | Mode batch | Mode unary | Sent again |
//! | :-- | :-- | :-- | :-- |
//! | answer that can be read | well | well | |
//! | batch that is no `BatchResponse` | fault | | no: it may have run |
//! | no connection | the link shows it | the same | it did not run: to another instance |
//! | connection lost | the link shows it | the same | if idempotent |
//! | GOAWAY that excludes it | choice | choice | it did not run: at once |
//! | any end after a GOAWAY | choice | choice | as without it; CANCELLED if idempotent |
//! | REFUSED_STREAM | fault, once a report | the same | it did not run: at once |
//! | other RST_STREAM | fault | fault | if idempotent |
//! | the route's own timeout passed | fault | fault | no: no time is left |
//! | a client's own deadline passed | choice | choice | no: no time is left |
//! | UNIMPLEMENTED | fault: a wrong service | answer | of a batch, if it never answered one |
//! | UNAVAILABLE | fault | fault | if idempotent |
//! | UNKNOWN, INTERNAL, DATA_LOSS | fault: the handler failed | answer | no: it may have run |
//! | DEADLINE_EXCEEDED | as the deadline | answer | no |
//! | any other status | choice | answer | no: it may have run |
//! | answer that breaks HTTP or gRPC | fault | fault | no: it may have run |
//! | answer that is too large | choice | choice | no: it may have run |
//!
//! Sent again: within the deadline, the attempts and the retry budget (promise 7, and
//! [`super::retry`]). Of the log: a wrong service and an answer that breaks HTTP or gRPC are warned
//! of where the call ends (`shard::net::channels`), failures of the service's code by
//! [`super::failures`]; all other ends are counted only.

use crate::engine::dispatcher::request::Request;
use crate::message::{CallError, CallFault, status};

/// What the end of a call says of its instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Blame {
    /// The instance failed.
    Fault,
    /// The instance refused a stream: one cause refuses many calls at once.
    Refusal,
    /// Nothing.
    None,
}

/// Facts of a call that its end is judged by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallFacts {
    /// Whether the mode is unary.
    pub unary: bool,
    /// Time from its begin to its end.
    pub took_us: u64,
    /// Time without an answer from which on the instance is to blame; `u64::MAX` = never.
    pub blame_after_us: u64,
}

/// Time without an answer from which on an instance is to blame: one second, as a call that begins
/// late in its messages' time says more about the queue. Of a route with a shorter timeout, half of
/// that.
const BLAME_AFTER_US: u64 = 1_000_000;

/// Time without an answer from which on the instance is to blame for a call whose latest deadline
/// is that of `request`: never, if a client chose that deadline.
pub(crate) fn blame_after_us(request: &Request) -> u64 {
    if request.is_shortened {
        return u64::MAX;
    }
    let timeout_us = request.deadline.since(request.received);
    BLAME_AFTER_US.min(timeout_us / 2)
}

/// Whom the failure of a call is to be blamed on.
pub(crate) fn blame(error: &CallError, call: CallFacts) -> Blame {
    let CallFacts { unary, took_us, blame_after_us } = call;
    let is_late = took_us >= blame_after_us;
    let fault_if = |is_fault: bool| if is_fault { Blame::Fault } else { Blame::None };
    if error.going_away {
        return Blame::None;
    }
    match error.fault {
        CallFault::NotConnected
        | CallFault::ConnectionLost
        | CallFault::GoingAway
        | CallFault::TooLarge => Blame::None,
        CallFault::Refused => Blame::Refusal,
        CallFault::Reset | CallFault::BadReply => Blame::Fault,
        CallFault::TimedOut => fault_if(is_late),
        // The status of a unary call is the application's answer to one client's message.
        CallFault::Status if unary => fault_if(error.status == status::UNAVAILABLE),
        CallFault::Status => match error.status {
            status::DEADLINE_EXCEEDED => fault_if(is_late),
            status::UNKNOWN
            | status::UNIMPLEMENTED
            | status::INTERNAL
            | status::UNAVAILABLE
            | status::DATA_LOSS => Blame::Fault,
            _ => Blame::None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Micros, Started};

    /// Blame for a failure after `took_us` of a call with a route's timeout of 3 s, in batch mode
    /// and in unary mode.
    fn blamed(fault: CallFault, status: u32, took_us: u64) -> [Blame; 2] {
        let error = CallError::of(fault, Started::Maybe, status);
        let told = CallError { going_away: true, ..error.clone() };
        [false, true].map(|unary| {
            let call = CallFacts { unary, took_us, blame_after_us: BLAME_AFTER_US };
            assert_eq!(blame(&told, call), Blame::None, "{error:?} after GOAWAY");
            blame(&error, call)
        })
    }

    #[test]
    fn each_end_of_a_call_is_blamed_as_the_table_says() {
        use Blame::{Fault, None, Refusal};
        let (no, both) = ([None, None], [Fault, Fault]);
        for (fault, status, expected) in [
            (CallFault::NotConnected, status::UNAVAILABLE, no),
            (CallFault::ConnectionLost, status::UNAVAILABLE, no),
            (CallFault::GoingAway, status::UNAVAILABLE, no),
            (CallFault::TooLarge, status::RESOURCE_EXHAUSTED, no),
            (CallFault::Refused, status::UNAVAILABLE, [Refusal, Refusal]),
            (CallFault::Reset, status::CANCELLED, both),
            (CallFault::Reset, status::INTERNAL, both),
            (CallFault::BadReply, status::INTERNAL, both),
            (CallFault::Status, status::UNAVAILABLE, both),
            (CallFault::Status, status::UNIMPLEMENTED, [Fault, None]),
            (CallFault::Status, status::UNKNOWN, [Fault, None]),
            (CallFault::Status, status::INTERNAL, [Fault, None]),
            (CallFault::Status, status::DATA_LOSS, [Fault, None]),
            (CallFault::Status, status::CANCELLED, no),
            (CallFault::Status, status::INVALID_ARGUMENT, no),
            (CallFault::Status, status::NOT_FOUND, no),
            (CallFault::Status, status::PERMISSION_DENIED, no),
            (CallFault::Status, status::RESOURCE_EXHAUSTED, no),
            (CallFault::Status, status::FAILED_PRECONDITION, no),
            (CallFault::Status, status::ABORTED, no),
            (CallFault::Status, status::OUT_OF_RANGE, no),
            (CallFault::Status, status::UNAUTHENTICATED, no),
        ] {
            assert_eq!(blamed(fault, status, 3_000_000), expected, "{fault:?} {status}");
        }
        for (fault, unary) in [(CallFault::TimedOut, Fault), (CallFault::Status, None)] {
            assert_eq!(blamed(fault, status::DEADLINE_EXCEEDED, 3_000_000), [Fault, unary]);
            assert_eq!(blamed(fault, status::DEADLINE_EXCEEDED, 999_999), no, "began too late");
        }
    }

    #[test]
    fn only_the_routes_own_timeout_is_blamed_on_the_instance() {
        let request = |timeout_ms, is_shortened| Request {
            received: Micros(5),
            deadline: Micros(5).plus_ms(timeout_ms),
            is_shortened,
            ..Request::default()
        };
        assert_eq!(blame_after_us(&request(30_000, false)), 1_000_000);
        assert_eq!(blame_after_us(&request(500, false)), 250_000);
        assert_eq!(blame_after_us(&request(30_000, true)), u64::MAX);
    }
}
