//! What time brings: deadlines, handshakes, heartbeats, slow readers, the end of a stop.

use rand::RngExt;

use crate::config::settings::StopSettings;
use crate::engine::answer::Answer;
use crate::engine::conns::Phase;
use crate::engine::dispatch::EXPIRED;
use crate::engine::inbound::close;
use crate::engine::pending::Place;
use crate::engine::{Drain, Engine};
use crate::ids::{ConnId, MsgKey};
use crate::message::{Micros, Reason, Reject, ServerMessage, status};
use crate::stats::Counter;
use crate::wire::client;

/// Ticks in which every connection is looked at once: 100 x 10 ms = 1 s, so that a tick of a shard
/// with 100,000 connections looks at 1,000 of them.
const SWEEP_TICKS: usize = 100;
/// Dedup ids and cache entries dropped in a tick at most: 100,000 a second.
const EXPIRE_BUDGET: usize = 1_000;
/// Slots given back to the allocator in a tick at most.
const TRIM_BUDGET: usize = 64;

const CUT_OFF: Reject = Reject {
    reason: Reason::Draining,
    text: "the gateway stopped before the message was sent",
    retry_after_ms: 1_000,
};
const NO_ANSWER: Reject = Reject::new(
    Reason::OutcomeUnknown,
    "sent to the service, which did not answer in time; it may have run",
);

impl Engine {
    /// Called every [`crate::limits::TICK_MS`]. Returns connections whose socket is to be closed.
    pub fn tick(&mut self, now: Micros, closing: &mut Vec<ConnId>) {
        self.expire_messages(now);
        self.sweep_conns(now, closing);
        self.move_again();
        self.dedup.expire(now, EXPIRE_BUDGET);
        self.cache.expire(now, EXPIRE_BUDGET);
        self.rates.expire(now);
        self.messages.trim(TRIM_BUDGET);
        for (id, state) in self.instances.iter_mut() {
            state.queue.compact(id, &self.messages);
        }
        self.instances.tell(&mut self.effects.signals);
        self.instances.prune();
        if self.drain.is_some() {
            self.go_on_draining(now, closing);
        }
    }

    /// Answers messages whose deadline has passed: EXPIRED if never sent, else OUTCOME_UNKNOWN.
    ///
    /// A look at every slot, but only when a deadline may have passed: with deadlines of 5 s and
    /// prompt answers that is once in 5 s, not each tick.
    fn expire_messages(&mut self, now: Micros) {
        if now < self.deadline_next {
            return;
        }
        let mut next = Micros(u64::MAX);
        for slot in 0..self.messages.slots() {
            let Some((key, message)) = self.messages.slot_at(slot) else { continue };
            if message.deadline <= now {
                self.give_up(key, &EXPIRED, now);
            } else {
                next = next.min(message.deadline);
            }
        }
        self.deadline_next = next;
    }

    /// Ends a message where it is: with `not_sent` if it surely did not run.
    fn give_up(&mut self, key: MsgKey, not_sent: &Reject, now: Micros) {
        let Some(message) = self.messages.get(key) else { return };
        match message.place {
            // Unless it waits to be sent again after an attempt that may have run: `finish` knows.
            Place::Waiting => {
                self.withdraw_waiting(key);
                self.finish(key, &Answer::reject(not_sent), now);
            }
            Place::InFlight(ticket) => {
                self.streams.pass(message);
                // The call goes on, and with it the stream: it does not move before that has ended.
                let (conn, instance) = (message.conn, message.instance);
                self.call_is_late(conn);
                self.tickets.get_mut(ticket).expect("it has this message").late.push(conn);
                let state = self.instances.get_mut(instance);
                state.failed += 1;
                self.counters.inc(Counter::DispatchFailed);
                self.finish(key, &unknown(), now);
            }
            Place::Duplicate => self.finish(key, &unknown(), now),
        }
    }

    fn sweep_conns(&mut self, now: Micros, closing: &mut Vec<ConnId>) {
        let slots = self.conns.slots();
        let count = slots.div_ceil(SWEEP_TICKS);
        for _ in 0..count {
            self.sweep_at = if self.sweep_at + 1 < slots { self.sweep_at + 1 } else { 0 };
            if let Some((id, _)) = self.conns.slot_at(self.sweep_at) {
                self.check_conn(id, now, closing);
            }
        }
    }

    fn check_conn(&mut self, id: ConnId, now: Micros, closing: &mut Vec<ConnId>) {
        let settings = &self.settings.conn;
        let handshake_us = settings.handshake_timeout_ms * 1000;
        let stuck_us = settings.write_timeout_ms * 1000;
        let conn = self.conns.get_mut(id).expect("the caller has it");
        // A client may be late once: two heartbeats.
        let silent_us = conn.terms.heartbeat_ms * 2 * 1000;
        if conn.until().is_some_and(|until| until <= now) {
            closing.push(id);
            return;
        }
        if conn.outbox.is_empty() {
            conn.outbox.stuck_since = now;
        } else if now.since(conn.outbox.stuck_since) > stuck_us && conn.phase == Phase::Open {
            self.close_slow(id, now);
            return;
        }
        if self.check_identity(id, now) {
            return;
        }
        self.check_rates(id, now);
        let Some(conn) = self.conns.get(id) else { return };
        match conn.phase {
            Phase::Handshake if now.since(conn.opened) > handshake_us => {
                self.handshake_timeout(id, now);
            }
            Phase::Open if conn.holds.is_empty() && now.since(conn.heard) > silent_us => {
                self.counters.inc(Counter::ClosedNoHeartbeat);
                self.close(id, close::NO_HEARTBEAT, "nothing heard for two heartbeats", now);
            }
            Phase::Open if conn.refused_one_way > 0 => self.tell_refused(id, now),
            Phase::Handshake
            | Phase::Open
            | Phase::Closing { .. }
            | Phase::Lingering { .. }
            | Phase::Finished { .. } => {}
        }
    }

    /// The stop begins: what was read is answered, new messages are refused, each connection is
    /// closed with 1001 when it has its answers and its turn has come.
    pub fn drain(&mut self, settings: StopSettings, now: Micros) {
        if self.drain.is_some() {
            return;
        }
        let open: Vec<ConnId> = self.conns.iter().map(|(id, _)| id).collect();
        self.drain = Some(Drain {
            began: now,
            until: Micros(now.0 + settings.grace.as_micros() as u64),
            settings,
            conns: open.len() as u64,
            closed: 0,
        });
        for id in open {
            // Nobody moves to a shard that stops, too.
            if self.conns.get(id).is_some_and(|conn| conn.moving.is_some()) {
                self.move_no_more(id, now);
            }
            self.tell_draining(id);
        }
    }

    /// The connection hears of the stop, if there is one.
    pub(super) fn tell_draining(&mut self, id: ConnId) {
        let Some(drain) = &self.drain else { return };
        let least_ms = drain.settings.reconnect.as_millis() as u32;
        // By chance, so that those closed together do not come back together.
        let reconnect_after_ms = least_ms + self.rng.random_range(0..=least_ms);
        let Some(conn) = self.conns.get(id) else { return };
        let payload = client::payload(conn.encoding, &client::Draining { reconnect_after_ms });
        self.send(id, &ServerMessage { kind: "draining", payload: &payload, ..Default::default() });
    }

    /// The shard ends: those who came after its stop was complete get their last words at once,
    /// and are named.
    pub fn say_goodbye(&mut self, now: Micros) -> Vec<ConnId> {
        let left: Vec<ConnId> = self.conns.iter().map(|(id, _)| id).collect();
        for &id in &left {
            match self.conns.get(id).map(|conn| conn.phase) {
                Some(Phase::Open) => {
                    self.counters.inc(Counter::ClosedDrain);
                    self.close(id, close::GOING_AWAY, "the gateway is stopping", now);
                }
                Some(Phase::Handshake) => self.refuse_handshake(id, now),
                Some(Phase::Closing { .. } | Phase::Lingering { .. } | Phase::Finished { .. })
                | None => {}
            }
        }
        left
    }

    fn go_on_draining(&mut self, now: Micros, closing: &mut Vec<ConnId>) {
        let Some(drain) = &self.drain else { return };
        let (until, mut turns) = (drain.until, drain.turns(now));
        if until <= now {
            let left: Vec<MsgKey> = self.messages.iter().map(|(key, _)| key).collect();
            self.cut_off += left.len() as u64;
            for key in left {
                self.give_up(key, &CUT_OFF, now);
            }
        }
        let all: Vec<ConnId> = self.conns.iter().map(|(id, _)| id).collect();
        for id in all {
            let Some(conn) = self.conns.get(id) else { continue };
            match conn.phase {
                // What was read before a pause is still to be answered, if only with DRAINING.
                Phase::Open
                    if conn.unanswered == 0
                        && conn.shown.is_none()
                        && conn.moving.is_none()
                        && !conn.decoder.has_unread() =>
                {
                    if turns == 0 {
                        continue;
                    }
                    turns -= 1;
                    self.drain.as_mut().expect("it goes on").closed += 1;
                    self.counters.inc(Counter::ClosedDrain);
                    self.close(id, close::GOING_AWAY, "the gateway is stopping", now);
                }
                Phase::Handshake => self.refuse_handshake(id, now),
                Phase::Closing { until }
                | Phase::Lingering { until }
                | Phase::Finished { until }
                    if until <= now =>
                {
                    closing.push(id);
                }
                Phase::Open
                | Phase::Closing { .. }
                | Phase::Lingering { .. }
                | Phase::Finished { .. } => {}
            }
        }
    }
}

impl Drain {
    /// How many more connections may be closed by now: evenly over `spread`, all after it or after
    /// the grace.
    fn turns(&self, now: Micros) -> u64 {
        let spread_us = self.settings.spread.min(self.settings.grace).as_micros() as u64;
        let gone_us = now.since(self.began);
        if gone_us >= spread_us {
            return u64::MAX;
        }
        // One more than the share of the time that is gone, so that the first goes at once.
        let due = u128::from(self.conns) * u128::from(gone_us) / u128::from(spread_us) + 1;
        (due as u64).saturating_sub(self.closed)
    }
}

fn unknown() -> Answer<'static> {
    let mut answer = Answer::reject(&NO_ANSWER);
    answer.status = status::DEADLINE_EXCEEDED;
    answer
}
