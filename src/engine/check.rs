//! Invariants of an engine's state between any two events, for the simulator and unit tests.

use crate::engine::Engine;
use crate::engine::clients::conn::{Hold, Phase};
use crate::engine::held::Held;
use crate::ids::ConnId;
use crate::message::Micros;

/// State of one connection for an observer.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct ConnView {
    pub id: ConnId,
    pub phase: Phase,
    /// Number of messages without an answer.
    pub unanswered: u32,
    /// Whether the connection is not read, for one cause or more.
    pub paused: bool,
}

/// Counts of everything under way in an engine, and its connections.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Number of messages without an answer.
    pub messages: usize,
    /// Number of ordered streams.
    pub streams: usize,
    /// Number of calls in flight.
    pub calls: usize,
    /// State of the connections, by slot.
    pub conns: Vec<ConnView>,
}

/// Fails with the text that `what` makes unless `holds`.
pub(crate) fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

impl Engine {
    /// Counts everything under way.
    pub fn view(&self) -> View {
        let conns = self.clients.conns.iter().map(|(id, c)| ConnView {
            id,
            phase: c.phase,
            unanswered: c.unanswered,
            paused: !c.holds.is_empty(),
        });
        View {
            messages: self.dispatcher.requests.len(),
            streams: self.dispatcher.ordering.len(),
            calls: self.dispatcher.calls.len(),
            conns: conns.collect(),
        }
    }

    /// Checks that the parts of the state agree with each other; the error names two that do not.
    /// Costs a pass over everything.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.dispatcher.check(&self.config.settings, &self.stats.counters)?;
        self.tenants.check(self.dispatcher.queued_bytes())?;
        self.check_conns()?;
        self.clients.check_counts()
    }

    /// Checks promise 4, after [`Engine::end_turn`]: no request that may leave waits for an
    /// instance that has nothing in flight, or longer than the window for one that has a free slot.
    pub fn check_no_delay(&self, now: Micros) -> Result<(), String> {
        self.dispatcher.check_no_delay(&self.config.settings.batch, now)
    }

    fn check_conns(&self) -> Result<(), String> {
        let named = self.dispatcher.unanswered();
        let answer_bytes = self.dispatcher.answer_bytes();
        let mut late = self.dispatcher.late_calls();
        let mut upgraded = 0;
        for (id, conn) in self.clients.conns.iter() {
            let found = named.get(&id).copied().unwrap_or_default();
            let kept = Held { items: conn.unanswered as usize, bytes: conn.unanswered_bytes };
            ensure(found == kept, || format!("{id:?}: unanswered {kept:?}, in truth {found:?}"))?;
            ensure(conn.unanswered <= conn.terms.unanswered_max, || {
                format!("{id:?}: {} unanswered", conn.unanswered)
            })?;
            let expected = answer_bytes.get(&id).copied().unwrap_or(0);
            ensure(expected == conn.answer_bytes, || {
                format!("{id:?}: answers of {} bytes, in truth {expected}", conn.answer_bytes)
            })?;
            // Each cause of a hold is ended by something that exists.
            let holds = conn.holds;
            ensure(!holds.has(Hold::Unanswered) || conn.unanswered > 0, || {
                format!("{id:?} is held for answers that never come")
            })?;
            ensure(!holds.has(Hold::Outbox) || conn.outbox_claimed() > 0, || {
                format!("{id:?} is held for an outbox that is empty")
            })?;
            ensure(holds.has(Hold::Token) == conn.pending_auth.is_some(), || {
                format!("{id:?}: {holds:?}, a token waits: {}", conn.pending_auth.is_some())
            })?;
            ensure(holds.has(Hold::Move) == conn.moving.is_some(), || {
                format!("{id:?}: {holds:?}, a move waits: {}", conn.moving.is_some())
            })?;
            ensure(holds.has(Hold::Place) == conn.newcomer.is_some(), || {
                format!("{id:?}: {holds:?}, a newcomer waits: {}", conn.newcomer.is_some())
            })?;
            ensure(conn.newcomer.is_none() || self.clients.waits_for_place(id), || {
                format!("{id:?} waits for a place for ever")
            })?;
            let late = late.remove(&id).unwrap_or(0);
            ensure(late == conn.late_calls, || {
                format!("{id:?}: {} late calls, in truth {late}", conn.late_calls)
            })?;
            let listed =
                self.clients.moves_waiting.contains(&id) || self.effects.moves.contains(&id);
            ensure(conn.moving.is_none() || !conn.is_at_rest() || listed, || {
                format!("{id:?} never moves")
            })?;
            upgraded += u64::from(conn.upgraded);
        }
        ensure(upgraded == self.clients.upgraded, || {
            format!("sessions: {}, in truth {upgraded}", self.clients.upgraded)
        })
    }
}
