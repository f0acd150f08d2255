//! The sweep over the connections: heartbeats, slow readers, handshakes and tokens that come late.

use crate::engine::Context;
use crate::engine::clients::Clients;
use crate::engine::clients::conn::Phase;
use crate::ids::ConnId;
use crate::message::Micros;
use crate::stats::Counter;
use crate::wire::close;

/// Ticks in which every connection is looked at once: 100 x 10 ms = 1 s, so that a tick of a shard
/// with 100,000 connections looks at 1,000 of them.
const SWEEP_TICKS: usize = 100;

impl Clients {
    /// Checks the next hundredth of the connections. Those whose socket is to be closed are added
    /// to `closing`. While the shard catches up after a pause nobody is judged for being late; what
    /// was decided before, or does not depend on the client, goes on.
    pub fn sweep(&mut self, cx: &mut Context<'_>, now: Micros, closing: &mut Vec<ConnId>) {
        let slots = self.conns.slots();
        let count = slots.div_ceil(SWEEP_TICKS);
        for _ in 0..count {
            self.sweep_at = if self.sweep_at + 1 < slots { self.sweep_at + 1 } else { 0 };
            if let Some((id, _)) = self.conns.slot_at(self.sweep_at) {
                self.check_conn(cx, id, now, closing);
            }
        }
    }

    fn check_conn(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        now: Micros,
        closing: &mut Vec<ConnId>,
    ) {
        let settings = &cx.config.settings.conn;
        let handshake_us = settings.handshake_timeout_ms * 1000;
        let stuck_us = settings.write_timeout_ms * 1000;
        let conn = self.conns.get(id).expect("the caller has it");
        if conn.until().is_some_and(|until| until <= now) {
            closing.push(id);
            return;
        }
        let judges = !self.is_catching_up(now);
        let is_stuck = conn.outbox.stuck_us(now) > stuck_us && !conn.outbox.is_pushed();
        let is_late = is_stuck || conn.is_overfull(now);
        let is_slow = judges && is_late || conn.is_overfull_by_far();
        if is_slow && conn.phase == Phase::Open {
            self.close_slow(cx, id, now);
            return;
        }
        if self.check_identity(cx, id, now) {
            return;
        }
        self.check_limits(cx, id, now);
        let Some(conn) = self.conns.get(id) else { return };
        match conn.phase {
            Phase::Handshake
                if judges && !conn.waits_for_us() && now.since(conn.opened) > handshake_us =>
            {
                self.handshake_timeout(cx, id, now);
            }
            Phase::Open => {
                if conn.one_way.count > 0 {
                    self.tell_refused(cx, id, now);
                }
                self.shrink_kept(id);
                if judges {
                    self.check_heartbeat(cx, id, now);
                }
            }
            Phase::Handshake
            | Phase::Closing { .. }
            | Phase::Lingering { .. }
            | Phase::Finished { .. } => {}
        }
    }

    /// Asks a client that was silent for a heartbeat whether it is there, and closes the connection
    /// of one that was silent for two. It has at least half a heartbeat to answer: a ping may be
    /// late, because this comes once a second, and because bytes that wait come first.
    fn check_heartbeat(&mut self, cx: &mut Context<'_>, id: ConnId, now: Micros) {
        let Some(conn) = self.conns.get(id) else { return };
        let heartbeat_us = conn.terms.heartbeat_ms * 1000;
        let silent_us = now.since(conn.heard);
        // What the gateway does not read cannot be heard.
        if silent_us < heartbeat_us || !conn.holds.is_empty() {
            return;
        }
        match conn.pinged {
            None => self.ping(cx, id, now),
            Some(at) if silent_us > 2 * heartbeat_us && now.since(at) >= heartbeat_us / 2 => {
                cx.stats.inc(Counter::ClosedNoHeartbeat);
                let why = "nothing came for twice heartbeat_ms, not even a pong to our ping";
                self.close(cx, id, close::NO_HEARTBEAT, why, now);
            }
            Some(_) => {}
        }
    }
}
