//! Failures of services that the log tells: the code behind an answer failed, so a person should
//! look into the service. Refusals that a service answers to one client are none of them.

use crate::engine::Context;
use crate::engine::dispatcher::Dispatcher;
use crate::ids::{InstanceId, MsgKey};
use crate::message::{CallError, CallFault, Micros, status};
use crate::routing::Mode;

/// Time between two lines of one instance: one second, as for refusals of clients.
const EVERY_US: u64 = 1_000_000;
/// Characters of a service's text that the log shows: a line of a terminal, two at most. The log's
/// own writer escapes them.
const TEXT_CHARS_MAX: usize = 200;

/// Whether the status of one message's answer says that the service's code failed. All other
/// statuses are what the service wants to tell that client.
pub(super) fn is_failure(status: u32) -> bool {
    match status {
        status::UNKNOWN | status::INTERNAL | status::DATA_LOSS => true,
        // No status of gRPC: the client gets UNKNOWN.
        _ => status > status::UNAUTHENTICATED,
    }
}

/// Whether the failure of a call is to be logged here. In mode batch a status is no answer to
/// anybody; but a server that lacks the method has its own line (`service_wrong`), a stop in order
/// needs none, and of a deadline that passed the service may be the last to know.
fn is_call_failure(error: &CallError, unary: bool) -> bool {
    if error.fault != CallFault::Status || error.going_away {
        return false;
    }
    match error.status {
        status::DEADLINE_EXCEEDED | status::CANCELLED => false,
        status::UNIMPLEMENTED => unary,
        status::UNAVAILABLE => true,
        status => !unary || is_failure(status),
    }
}

impl Dispatcher {
    /// Logs that a call failed in the service's code, if so.
    pub(super) fn note_call_failure(
        &mut self,
        cx: &mut Context<'_>,
        instance: InstanceId,
        items: &[MsgKey],
        error: &CallError,
        now: Micros,
    ) {
        let unary = self.instances.get(instance).mode == Mode::Unary;
        if !is_call_failure(error, unary) {
            return;
        }
        let first = items.iter().find_map(|&key| self.requests.get(key));
        let msg_id = first.map_or(0, |request| request.msg_id);
        self.note_failure(cx, instance, msg_id, error.status, &error.message, now);
    }

    /// Logs a failure of a service's code, at most once a second for each instance.
    pub(super) fn note_failure(
        &mut self,
        cx: &mut Context<'_>,
        instance: InstanceId,
        msg_id: u32,
        status: u32,
        text: &str,
        now: Micros,
    ) {
        let state = self.instances.get_mut(instance);
        let Some(count) = state.failures.note(EVERY_US, now) else { return };
        let (shard, snapshot) = (cx.config.shard.0, &cx.config.snapshot);
        // A reload may have taken the instance out meanwhile.
        let known = snapshot.instances.iter().find(|known| known.id == instance);
        let (service, instance) = known.map_or(("", ""), |known| {
            (&*snapshot.services[usize::from(known.service.0)].name, &*known.name)
        });
        let why: String = text.chars().take(TEXT_CHARS_MAX).collect();
        tracing::warn!(
            shard,
            service,
            instance,
            msg_id,
            status = status::name(status),
            why,
            count,
            "service_failed: the code of the service failed; look into its own log"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Started;

    #[test]
    fn what_a_service_tells_one_client_is_no_failure_and_what_breaks_in_it_is() {
        for (status, is_batch_failure, is_unary_failure, is_item_failure) in [
            (status::CANCELLED, false, false, false),
            (status::UNKNOWN, true, true, true),
            (status::INVALID_ARGUMENT, true, false, false),
            (status::DEADLINE_EXCEEDED, false, false, false),
            (status::NOT_FOUND, true, false, false),
            (status::PERMISSION_DENIED, true, false, false),
            (status::RESOURCE_EXHAUSTED, true, false, false),
            (status::ABORTED, true, false, false),
            (status::UNIMPLEMENTED, false, true, false),
            (status::INTERNAL, true, true, true),
            (status::UNAVAILABLE, true, true, false),
            (status::DATA_LOSS, true, true, true),
            (status::UNAUTHENTICATED, true, false, false),
            (4_000, true, true, true),
        ] {
            let mut error = CallError::of(CallFault::Status, Started::Maybe, status);
            let told = [false, true].map(|unary| is_call_failure(&error, unary));
            assert_eq!(told, [is_batch_failure, is_unary_failure], "{status}");
            assert_eq!(is_failure(status), is_item_failure, "{status}");
            error.going_away = true;
            assert!(!is_call_failure(&error, false), "{status} of a service that stops in order");
        }
        for fault in [CallFault::NotConnected, CallFault::TimedOut, CallFault::Reset] {
            let error = CallError::of(fault, Started::Maybe, status::INTERNAL);
            assert!(!is_call_failure(&error, false), "{fault:?}: the link shows it, or a counter");
        }
    }
}
