//! Deadlines: requests that are given up because their time, or the grace of a stop, is over.

use crate::engine::Context;
use crate::engine::answer::Answer;
use crate::engine::clients::Clients;
use crate::engine::dispatcher::Dispatcher;
use crate::engine::dispatcher::calls::EXPIRED;
use crate::engine::dispatcher::request::{Request, State};
use crate::engine::events::NO_SESSION;
use crate::ids::MsgKey;
use crate::message::{Micros, Reason, Reject, status};
use crate::stats::Counter;

const CUT_OFF: Reject = Reject::later(
    Reason::Draining,
    "the gateway stopped before the message was sent, so it did not run: connect again",
    1_000,
);
const NO_ANSWER: Reject = Reject::new(
    Reason::OutcomeUnknown,
    "the message was sent to the service, which did not answer in time: it may have run",
);

impl Dispatcher {
    /// Answers requests whose deadline has passed: EXPIRED if never sent, else OUTCOME_UNKNOWN.
    ///
    /// The pass over all slots is made only when a deadline may have passed: with deadlines of 5 s
    /// and prompt answers that is once in 5 s, not each tick.
    pub fn expire_requests(&mut self, cx: &mut Context<'_>, clients: &mut Clients, now: Micros) {
        if now < self.deadline_next {
            return;
        }
        let mut next = Micros(u64::MAX);
        for slot in 0..self.requests.slots() {
            let Some((key, request)) = self.requests.slot_at(slot) else { continue };
            if request.deadline <= now {
                self.give_up(cx, clients, key, &EXPIRED, now);
            } else {
                next = next.min(request.deadline);
            }
        }
        self.deadline_next = next;
    }

    /// Answers every request under way, because the grace of a stop is over. Returns the number of
    /// messages among them.
    pub fn cut_off(&mut self, cx: &mut Context<'_>, clients: &mut Clients, now: Micros) -> u64 {
        let left: Vec<MsgKey> = self.requests.iter().map(|(key, _)| key).collect();
        let is_message = |(_, request): &(MsgKey, &Request)| request.session_key != NO_SESSION;
        let count = self.requests.iter().filter(is_message).count() as u64;
        for key in left {
            self.give_up(cx, clients, key, &CUT_OFF, now);
        }
        count
    }

    /// Ends a request in any state: by `not_sent` if it surely did not run.
    fn give_up(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        key: MsgKey,
        not_sent: &Reject,
        now: Micros,
    ) {
        let Some(request) = self.requests.get(key) else { return };
        match request.state {
            // If an earlier attempt may have run, `finish` replaces the answer.
            State::Waiting => {
                self.withdraw_waiting(cx, key);
                self.finish(cx, clients, key, &Answer::reject(not_sent), now);
            }
            State::InFlight(ticket) => {
                self.ordering.pass(request);
                // The call goes on, and with it the stream: the connection does not move to another
                // shard before the call has ended.
                let (session, instance) = (request.session_key, request.instance);
                clients.call_is_late(session);
                let call = self.calls.get_mut(ticket).expect("it has this request");
                call.late.push(session);
                call.late_owners.push((request.holder, request.handling.route));
                self.instances.get_mut(instance).failed += 1;
                cx.stats.inc(Counter::DispatchFailed);
                self.finish(cx, clients, key, &unknown(), now);
            }
            State::Duplicate => self.finish(cx, clients, key, &unknown(), now),
        }
    }
}

fn unknown() -> Answer<'static> {
    let mut answer = Answer::reject(&NO_ANSWER);
    answer.status = status::DEADLINE_EXCEEDED;
    answer
}
