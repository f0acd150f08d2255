//! The steps that both halves do in one order: the tick, the end of a turn, a reload, and an
//! ordered stop.

use std::sync::Arc;

use crate::config::settings::StopSettings;
use crate::engine::clients::conn::{NextBytes, Phase};
use crate::engine::drain::Drain;
use crate::engine::{Engine, work};
use crate::ids::ConnId;
use crate::mailbox::ShardConfig;
use crate::message::Micros;
use crate::routing::Snapshot;
use crate::stats::Counter;
use crate::wire::close;

impl Engine {
    /// Does what time brings, every [`crate::limits::TICK_MS`]: deadlines, timeouts and the stop.
    /// Connections whose socket is to be closed are added to `closing`.
    pub fn tick(&mut self, now: Micros, closing: &mut Vec<ConnId>) {
        let (clients, dispatcher, mut cx) = self.parts();
        dispatcher.expire_requests(&mut cx, clients, now);
        clients.sweep(&mut cx, now, closing);
        clients.move_again(&mut cx);
        clients.limits.expire(now);
        clients.expire_sessions(&mut cx, now);
        if clients.events.is_on() {
            clients.tell_settled(&mut cx, now);
            clients.events.tend(&mut cx, now);
        }
        dispatcher.clean_up(&mut cx, now);
        let ids_of = |id| dispatcher.dedup.ids_of(id);
        if let Some(demands) = cx.tenants.demands(ids_of, now) {
            cx.effects.demands = demands;
        }
        self.go_on_with_newcomers(now);
        self.tick_of_pushes(now);
        if self.drain.is_some() {
            self.go_on_draining(now, closing);
        }
    }

    /// Ends a turn: tokens that wait, retries that are due, then batches that may leave. The
    /// effects hold the calls.
    pub fn end_turn(&mut self, now: Micros) {
        self.go_on_signing_in(now);
        let (clients, dispatcher, mut cx) = self.parts();
        dispatcher.send_events(&mut cx, clients, now);
        dispatcher.end_turn(&mut cx, clients, now);
        self.end_turn_of_pushes(now);
        // Of a join that was confirmed just now: before the messages that its client sends next.
        let (clients, dispatcher, mut cx) = self.parts();
        if clients.events.is_fresh() {
            dispatcher.send_events(&mut cx, clients, now);
            dispatcher.end_turn(&mut cx, clients, now);
        }
    }

    /// Takes the time of the wall clock, with each tick. A step of it counts for claims of tokens
    /// and for the times that clients and services are told, and for nothing else.
    pub fn set_wall_clock(&mut self, unix_us: i64, now: Micros) {
        self.config.identity.unix_at_boot_us = unix_us.saturating_sub(now.0 as i64);
    }

    /// Takes note that the shard was stopped until `now`, for `us` microseconds: no client is
    /// closed and no instance judged by that time. What was promised of a time holds: deadlines of
    /// messages and the end of tokens.
    pub fn on_pause(&mut self, us: u64, now: Micros) {
        let (clients, dispatcher, cx) = self.parts();
        cx.stats.inc(Counter::Pauses);
        tracing::warn!(
            shard = cx.config.shard.0,
            paused_ms = us / 1000,
            "shard_paused: the shard did not run; timeouts of clients are put off by that time"
        );
        clients.on_pause(us, now);
        cx.tenants.catch_up_until(clients.catching_up_until.unwrap_or(now));
        dispatcher.on_pause(us, now);
        if let Some(drain) = &mut self.drain {
            drain.put_off(us);
        }
    }

    /// Routes and works by `published` from now on (promise 10). Connections keep what they were
    /// promised, requests under way the route they were admitted by.
    pub fn apply(&mut self, published: ShardConfig, now: Micros) {
        let ShardConfig { snapshot, gateway, settings, auth, tls: _, service_tls: _ } = published;
        self.clients.apply(&gateway, &settings, auth, now);
        self.clients.set_tenants(&snapshot.tenants);
        self.clients.events.apply(&snapshot, &gateway.events);
        self.dispatcher.set_settings(&settings);
        let same_rings = same_rings(&self.config.snapshot, &snapshot);
        self.config.set_settings(gateway, settings);
        self.config.set_snapshot(&snapshot);
        self.tenants.apply(&snapshot.tenants, self.config.settings.limits.burst_s);
        self.tenants.recount(self.dispatcher.queued_bytes());
        let (clients, dispatcher, mut cx) = self.parts();
        dispatcher.apply(&mut cx, clients, same_rings, now);
        clients.events.tend(&mut cx, now);
        dispatcher.send_events(&mut cx, clients, now);
    }

    /// Begins the stop: what was read is answered, new messages are refused, each connection is
    /// closed with 1001 when it has its answers and its turn has come.
    pub fn drain(&mut self, settings: StopSettings, now: Micros) {
        if self.drain.is_some() {
            return;
        }
        let open: Vec<ConnId> = self.clients.conns.iter().map(|(id, _)| id).collect();
        self.drain = Some(Drain::new(settings, open.len(), now));
        let (clients, _, mut cx) = self.parts();
        for id in open {
            // Nobody moves to a shard that stops, too.
            if clients.conns.get(id).is_some_and(|conn| conn.moving.is_some()) {
                clients.end_move(&mut cx, id, now);
            }
            clients.tell_draining(&mut cx, id);
        }
    }

    /// Closes the connections that came after the stop was complete, with a last word, and names
    /// them: the shard ends.
    pub fn say_goodbye(&mut self, now: Micros) -> Vec<ConnId> {
        let left: Vec<ConnId> = self.clients.conns.iter().map(|(id, _)| id).collect();
        for &id in &left {
            self.take_rest(id, now);
            let (clients, _, mut cx) = self.parts();
            match clients.conns.get(id).map(|conn| conn.phase) {
                Some(Phase::Open) => {
                    cx.stats.inc(Counter::ClosedDrain);
                    clients.close(&mut cx, id, close::GOING_AWAY, STOPPING, now);
                }
                Some(Phase::Handshake) => clients.refuse_for_stop(&mut cx, id, now),
                Some(Phase::Closing { .. } | Phase::Lingering { .. } | Phase::Finished { .. })
                | None => {}
            }
        }
        left
    }

    /// Takes all that was read of an open connection and not decoded, because its work was spent:
    /// it is to be answered before the connection is closed, and another read may bring more of it
    /// for ever. Returns what it has cost. Nothing is taken while the connection cannot be closed,
    /// as it waits for an answer: then it is read on in its turn.
    fn take_rest(&mut self, id: ConnId, now: Micros) -> i64 {
        let Some(conn) = self.clients.conns.get(id) else { return 0 };
        let may_end = conn.phase == Phase::Open && conn.is_answered();
        if !may_end || conn.next_bytes() != NextBytes::Decoder {
            return 0;
        }
        let work = std::mem::take(&mut self.work);
        let allowed = self.work.left();
        self.on_resumed(id, now);
        let used = allowed - self.work.left();
        self.work = work;
        self.note_work(id, used);
        used
    }

    /// Closes connections whose turn has come. What was read of them is decoded first, as much in a
    /// tick as a turn reads, and the rest of one connection: those for whom nothing is left of that
    /// are closed with a later tick.
    fn go_on_draining(&mut self, now: Micros, closing: &mut Vec<ConnId>) {
        let Some(drain) = &self.drain else { return };
        let mut work_left = work::of_time(self.config.settings.read.as_micros() as u64);
        let (is_over, mut may_close) = (drain.is_over(now), drain.may_close(now));
        let (clients, dispatcher, mut cx) = self.parts();
        let cut_off = if is_over { dispatcher.cut_off(&mut cx, clients, now) } else { 0 };
        let mut closed = 0;
        let all: Vec<ConnId> = clients.conns.iter().map(|(id, _)| id).collect();
        for id in all {
            if may_close > 0 && work_left > 0 {
                work_left -= self.take_rest(id, now);
            }
            let (clients, _, mut cx) = self.parts();
            let Some(conn) = clients.conns.get(id) else { continue };
            match conn.phase {
                // What was read before a hold is still to be answered, if only with DRAINING.
                Phase::Open if conn.is_finished() => {
                    if may_close == 0 {
                        continue;
                    }
                    may_close -= 1;
                    closed += 1;
                    cx.stats.inc(Counter::ClosedDrain);
                    clients.close(&mut cx, id, close::GOING_AWAY, STOPPING, now);
                }
                Phase::Handshake => clients.refuse_for_stop(&mut cx, id, now),
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
        let drain = self.drain.as_mut().expect("it goes on");
        drain.closed += closed;
        drain.cut_off += cut_off;
    }
}

/// The text of close code 1001.
const STOPPING: &str = "the gateway stops: connect again";

/// Whether every service has the ring it had.
fn same_rings(old: &Snapshot, new: &Snapshot) -> bool {
    old.services.len() == new.services.len()
        && old.services.iter().zip(&new.services).all(|(a, b)| Arc::ptr_eq(&a.ring, &b.ring))
}
