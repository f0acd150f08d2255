//! Calls besides pushes, the same by both doors: the right that each needs, and what answers it.

use std::sync::Arc;
use std::time::Instant;

use super::callers::Caller;
use super::calls::{self, Call};
use super::desk::Desk;
use super::reads::Reads;
use super::refusal::Refused;
use crate::config::settings::PushVerb;
use crate::wire::push::generated as proto;

/// The request of a call.
pub trait Ask: Send + Sized + 'static {
    /// The answer to it.
    type Answer;
    /// The right that it needs.
    const RIGHT: PushVerb;

    /// Name of the tenant that it is about; empty = the one there is.
    fn tenant(&self) -> &str;

    /// Does what it asks for, once its caller is let in.
    fn run(
        self,
        call: Call<'_>,
        reads: &Reads,
    ) -> impl Future<Output = Result<Self::Answer, Refused>> + Send;
}

/// Lets a caller in and does what it asks for. A refusal is counted.
pub async fn answer<A: Ask>(
    desk: &Arc<Desk>,
    reads: &Reads,
    by: &Caller,
    asked: A,
) -> Result<A::Answer, Refused> {
    let result = match Call::new(desk, by, A::RIGHT, asked.tenant()) {
        Ok(call) => asked.run(call, reads).await,
        Err(refused) => Err(refused),
    };
    if let Err(refused) = &result {
        desk.lock().note_refusal(by, refused, Instant::now());
    }
    result
}

/// A call with its request, answer and right, and the function that does it.
macro_rules! ask {
    (
        $request:ident, $answer:ident, $right:ident,
        |$asked:ident, $call:ident, $reads:ident| $run:expr
    ) => {
        impl Ask for proto::$request {
            type Answer = proto::$answer;
            const RIGHT: PushVerb = PushVerb::$right;

            fn tenant(&self) -> &str {
                &self.tenant
            }

            async fn run(self, $call: Call<'_>, $reads: &Reads) -> Result<Self::Answer, Refused> {
                let $asked = self;
                $run.await
            }
        }
    };
}

ask!(JoinRequest, JoinResponse, Join, |asked, call, _reads| calls::join(call, asked));
ask!(LeaveRequest, LeaveResponse, Join, |asked, call, _reads| calls::leave(call, asked));
ask!(ForgetRequest, ForgetResponse, Push, |asked, call, _reads| calls::forget(call, asked));
ask!(DisconnectRequest, DisconnectResponse, Disconnect, |asked, call, _reads| {
    calls::disconnect(call, asked)
});
ask!(MembersRequest, MembersResponse, Read, |asked, call, reads| reads.members(call, asked));
ask!(CountRequest, CountResponse, Read, |asked, call, reads| reads.count(call, asked));
ask!(HistoryRequest, HistoryResponse, Read, |asked, call, reads| reads.history(call, asked));
ask!(SessionsRequest, SessionsResponse, Read, |asked, call, reads| reads.sessions(call, asked));
