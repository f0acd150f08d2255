//! Times of a channel: deadlines, keepalive, ages of connections, and the timer for the next of
//! them.

use std::time::Duration;

use super::{Doubt, DownCause, Driver, NEVER, Over, Phase, TIMER_STEP_US, ends};
use crate::message::{Micros, Started};

/// Time that a suspect link has to prove that its peer lives: half a second is two round trips
/// around the world.
const SUSPECT_US: u64 = 500_000;

impl Driver {
    /// Handles everything that is due, and finds the time of the next.
    pub(super) fn check_clock(&mut self) {
        self.wake_at = NEVER;
        self.end_late_calls();
        self.check_links();
        if self.connect_at > self.now {
            self.wake_by(self.connect_at);
        }
    }

    fn end_late_calls(&mut self) {
        let now = self.now;
        for index in 0..self.slots.len() {
            let call = self.slots[index].call.as_ref();
            match call.map(|call| (call.times.deadline, call.times.sent, call.link)) {
                Some((deadline, sent, link)) if deadline <= now => {
                    self.abandon(index, ends::timed_out(Started::Maybe));
                    let link = self.links.iter_mut().find(|of| of.id == link);
                    if link.is_some_and(|link| link.suspect(sent, now)) {
                        self.wake_by(Micros(now.0 + SUSPECT_US));
                    }
                }
                Some((deadline, ..)) => self.wake_by(deadline),
                None => {}
            }
        }
        for _ in 0..self.waiting.len() {
            let Some(waiting) = self.waiting.pop_front() else {
                break;
            };
            if waiting.deadline <= now {
                self.deliver(waiting.call.ticket, Err(ends::timed_out(Started::No)));
            } else {
                self.wake_by(waiting.deadline);
                self.waiting.push_back(waiting);
            }
        }
    }

    fn check_links(&mut self) {
        let mut index = 0;
        while index < self.links.len() {
            let link = &self.links[index];
            let id = link.id;
            let due = match link.phase {
                Phase::Connecting => Some((link.finish_by, "no answer to the connection attempt")),
                Phase::Draining if link.streams == 0 => {
                    Some((link.finish_by, "not closed in time"))
                }
                Phase::Ready | Phase::Draining => None,
            };
            match due {
                Some((at, why)) if at <= self.now => {
                    self.lost(id, Over::failed(why));
                    continue;
                }
                Some((at, _)) => self.wake_by(at),
                None => {}
            }
            self.check_suspicion(index);
            let link = &self.links[index];
            if link.phase == Phase::Ready && link.replace_at > self.now {
                self.wake_by(link.replace_at);
            }
            if self.is_silent(index) {
                self.lost(id, Over::failed("no answer to PING"));
            } else {
                index += 1;
            }
        }
    }

    /// Tells the owner that a suspect link is silent when its PING has had time for an answer.
    fn check_suspicion(&mut self, index: usize) {
        let link = &mut self.links[index];
        let Doubt::Asked(since) = link.doubt else { return };
        let due = Micros(since.0 + SUSPECT_US);
        if due > self.now {
            self.wake_by(due);
            return;
        }
        link.doubt = Doubt::Told;
        const WHY: &str = "no answer to a call, and not a byte since it was sent";
        self.refuse_waiting(WHY);
        self.tell_down(DownCause::Silent, WHY);
    }

    /// Sends keepalive pings (gRFC A8, doc/keepalive.md); true if one was not answered in time.
    fn is_silent(&mut self, index: usize) -> bool {
        let (now, keepalive_us) = (self.now, self.keepalive_us());
        let link = &mut self.links[index];
        if link.phase == Phase::Connecting {
            return false;
        }
        let timeout_us = self.settings.keepalive_timeout_ms.saturating_mul(1000);
        let at = match link.pinged_at {
            // Any byte proves that the peer lives, not only the answer.
            Some(at) => {
                let at = Micros(at.max(link.silent_since).0.saturating_add(timeout_us));
                if at <= now {
                    return true;
                }
                at
            }
            None if link.streams == 0 || keepalive_us == 0 => return false,
            None => {
                let at = Micros(link.silent_since.0.saturating_add(keepalive_us));
                if at <= now {
                    link.ping(now);
                    Micros(now.0.saturating_add(timeout_us))
                } else {
                    at
                }
            }
        };
        self.wake_by(at);
        false
    }

    /// After [`super::super::Channel::close`]: closes connections without calls, with GOAWAY.
    pub(super) fn close_if_done(&mut self) {
        if !self.shared.closing.get() || !self.waiting.is_empty() {
            return;
        }
        let (now, timeout_ms) = (self.now, self.settings.connect_timeout_ms);
        self.links.retain(|link| link.phase != Phase::Connecting);
        for link in &mut self.links {
            if link.phase == Phase::Ready {
                link.drain(now, timeout_ms);
                self.wake_at = self.wake_at.min(link.finish_by);
            }
        }
        self.note_up();
    }

    pub(super) fn is_done(&self) -> bool {
        self.shared.closing.get()
            && self.links.is_empty()
            && self.in_flight == 0
            && self.waiting.is_empty()
            && self.shared.orders.borrow().is_empty()
    }

    /// Schedules a check of the clock at `at` or earlier.
    pub(super) fn wake_by(&mut self, at: Micros) {
        self.wake_at = self.wake_at.min(at);
    }

    /// Sets the alarm if something is due before it rings. One that rings too early does no harm.
    pub(super) fn set_timer(&mut self) {
        if self.wake_at >= self.timer_at {
            return;
        }
        let wait_us = self.wake_at.since(self.now).max(TIMER_STEP_US);
        self.alarm.set_after(Duration::from_micros(wait_us));
        self.timer_at = self.wake_at;
    }
}
