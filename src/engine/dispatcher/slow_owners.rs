//! Owners whose messages on a route were slow lately. One slow message holds the answers of all
//! others in its call, so those messages travel apart from the others (promise 6).
//!
//! A slow call of many messages does not tell which of them was slow: all of their owners are under
//! suspicion, and the next message of each has less company, a tenth, until a call was prompt or
//! had this one message only. So of a hundred the slow one is found with some twenty calls more.

use hashbrown::HashMap;

use crate::engine::dispatcher::Dispatcher;
use crate::engine::dispatcher::slots::Line;
use crate::engine::owner::Holder;
use crate::ids::{InstanceId, MsgKey, Ticket};
use crate::message::Micros;

/// Time for which a slow call counts: ten seconds, renewed by each further one.
const LATELY_US: u64 = 10_000_000;
/// Part of a slow call's messages that the next call of each of them may have.
const COMPANY_PART: usize = 10;
/// Owners and routes remembered, 57 bytes each at a load of 7/16 or more: 2 MiB. Further ones
/// travel with the others.
const MARKS_MAX: usize = 16_384;
/// Company of a message whose owner is above suspicion: more than any batch has.
pub(crate) const ANY_COMPANY: u16 = u16::MAX;

/// A mark of an owner on a route.
#[derive(Clone, Copy, Debug)]
struct Mark {
    /// Time at which it is forgotten.
    until: Micros,
    /// Most messages of a call with one of these; 0 = they are known to be slow.
    company: u16,
}

/// The owners and routes that were slow lately: mostly none.
#[derive(Debug, Default)]
pub(crate) struct SlowOwners {
    marks: HashMap<(Holder, u32), Mark>,
    expire_at: Micros,
}

impl SlowOwners {
    /// The line in which a message of `holder` on `route` waits, and the most messages of its call.
    #[inline]
    pub fn place(&self, holder: &Holder, route: u32) -> (Line, u16) {
        if self.marks.is_empty() {
            return (Line::Prompt, ANY_COMPANY);
        }
        match self.marks.get(&(*holder, route)).map(|mark| mark.company) {
            None => (Line::Prompt, ANY_COMPANY),
            Some(0) => (Line::Slow, ANY_COMPANY),
            Some(company) => (Line::Prompt, company),
        }
    }

    /// Takes note that a call of `sent` messages, one of them of `holder` on `route`, was slow.
    fn was_slow(&mut self, holder: &Holder, route: u32, sent: usize, now: Micros) {
        let company = if sent <= 1 { 0 } else { (sent / COMPANY_PART).max(1) as u16 };
        let until = Micros(now.0 + LATELY_US);
        let is_full = self.marks.len() >= MARKS_MAX;
        match self.marks.get_mut(&(*holder, route)) {
            Some(mark) => *mark = Mark { until, company: mark.company.min(company) },
            None if is_full => {}
            None => {
                self.marks.insert((*holder, route), Mark { until, company });
            }
        }
    }

    /// Takes note that such a call was prompt.
    fn was_prompt(&mut self, holder: &Holder, route: u32) {
        self.marks.remove(&(*holder, route));
    }

    /// Forgets marks that are over, once a second. To be called with each tick.
    pub fn expire(&mut self, now: Micros) {
        if now >= self.expire_at && !self.marks.is_empty() {
            self.expire_at = Micros(now.0 + 1_000_000);
            self.marks.retain(|_, mark| mark.until > now);
        }
    }

    /// Number of owners and routes that are known to be slow.
    pub fn len(&self) -> usize {
        self.marks.values().filter(|mark| mark.company == 0).count()
    }
}

/// A call, as far as its speed is concerned.
#[derive(Clone, Copy)]
pub(super) struct Sent {
    pub ticket: Ticket,
    pub instance: InstanceId,
    pub started: Micros,
    /// Messages with which it left.
    pub count: usize,
}

impl Dispatcher {
    /// Takes note of the speed of a call that ends, for the owners of its requests, those among
    /// them that were answered as late.
    pub(super) fn note_speed(&mut self, sent: Sent, items: &[MsgKey], now: Micros) {
        let slots = &self.instances.get(sent.instance).slots;
        let is_slow = slots.is_slow(sent.started, now);
        let is_long = now.since(sent.started) > slots.long_us();
        // Neither is known of a call that was long while no other was prompt.
        if !is_slow && (is_long || self.slow.marks.is_empty()) {
            return;
        }
        let carried = items.iter().filter_map(|key| self.requests.get(*key));
        let carried = carried.filter(|request| request.ticket() == Some(sent.ticket));
        let carried = carried.map(|request| (request.holder, request.handling.route));
        let late = self.calls.get(sent.ticket).map_or(&[][..], |call| &call.late_owners);
        for (holder, route) in carried.chain(late.iter().copied()) {
            match is_slow {
                true => self.slow.was_slow(&holder, route, sent.count, now),
                false => self.slow.was_prompt(&holder, route),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::owner::Party;
    use crate::ids::TenantId;

    fn holder(user: u64) -> Holder {
        Holder { tenant: TenantId(0), party: Party::User(user), session: 0 }
    }

    #[test]
    fn the_slow_one_of_a_hundred_is_found_and_the_others_are_above_suspicion_again() {
        let (mut slow, now) = (SlowOwners::default(), Micros(0));
        (0..100).for_each(|n| slow.was_slow(&holder(n), 1, 100, now));
        let mut calls = 0;
        while slow.marks.values().any(|mark| mark.company > 0) {
            let mut waiting: Vec<u64> = (0..100)
                .filter(|n| !matches!(slow.place(&holder(*n), 1), (_, ANY_COMPANY)))
                .collect();
            while let Some(&first) = waiting.first() {
                let (_, company) = slow.place(&holder(first), 1);
                let call: Vec<u64> = waiting.drain(..waiting.len().min(company.into())).collect();
                calls += 1;
                for n in &call {
                    match call.contains(&42) {
                        true => slow.was_slow(&holder(*n), 1, call.len(), now),
                        false => slow.was_prompt(&holder(*n), 1),
                    }
                }
            }
        }
        assert_eq!(slow.place(&holder(42), 1), (Line::Slow, ANY_COMPANY));
        assert_eq!(slow.place(&holder(42), 2), (Line::Prompt, ANY_COMPANY), "another route");
        assert!(slow.marks.len() == 1 && calls == 20, "{calls} calls, {:?}", slow.marks);
    }

    #[test]
    fn a_mark_is_forgotten_when_calls_are_prompt_or_after_a_while() {
        let mut slow = SlowOwners::default();
        slow.was_slow(&holder(1), 1, 1, Micros(0));
        slow.was_slow(&holder(2), 1, 1, Micros(0));
        slow.was_slow(&holder(2), 1, 50, Micros(5_000_000));
        assert_eq!((slow.place(&holder(2), 1).0, slow.len()), (Line::Slow, 2));
        slow.expire(Micros(LATELY_US));
        assert_eq!((slow.place(&holder(1), 1).0, slow.len()), (Line::Prompt, 1));
        slow.was_prompt(&holder(2), 1);
        assert_eq!((slow.place(&holder(2), 1).0, slow.len()), (Line::Prompt, 0));
        (0..2 * MARKS_MAX as u64).for_each(|n| slow.was_slow(&holder(n), 1, 1, Micros(0)));
        assert_eq!(slow.len(), MARKS_MAX);
    }
}
