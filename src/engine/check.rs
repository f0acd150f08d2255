//! What must hold of an engine's state between any two events: for the simulator and unit tests.

use crate::engine::Engine;
use crate::engine::clients::conn::{Hold, Phase};
use crate::ids::ConnId;
use crate::message::Micros;

/// One connection as an observer sees it.
#[derive(Clone, Copy, Debug)]
pub struct ConnView {
    /// Which.
    pub id: ConnId,
    /// How far it is.
    pub phase: Phase,
    /// Messages without an answer.
    pub unanswered: u32,
    /// Not read, for one cause or more.
    pub paused: bool,
}

/// What is under way, counted.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Messages without an answer.
    pub messages: usize,
    /// Ordered streams alive.
    pub streams: usize,
    /// Calls in flight.
    pub calls: usize,
    /// Connections, by slot.
    pub conns: Vec<ConnView>,
}

/// Sums over the messages that name one thing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Sum {
    pub items: usize,
    pub bytes: usize,
}

impl Sum {
    pub fn add(&mut self, bytes: usize) {
        self.items += 1;
        self.bytes += bytes;
    }
}

/// Says what is wrong unless `holds`.
pub(crate) fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

impl Engine {
    /// What is under way.
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

    /// Whether the parts of the state agree with each other; says which do not. Costs a look at
    /// everything.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.dispatcher.check(&self.config.settings, &self.stats.counters)?;
        self.check_conns()?;
        self.clients.check_counts()
    }

    /// Checks promise 4, after [`Engine::end_turn`]: nothing that may leave waits for an instance
    /// that has nothing in flight, or longer than the window for one that has a free slot.
    pub fn check_no_delay(&self, now: Micros) -> Result<(), String> {
        self.dispatcher.check_no_delay(&self.config.settings.batch, now)
    }

    fn check_conns(&self) -> Result<(), String> {
        let named = self.dispatcher.unanswered();
        let mut late = self.dispatcher.late_calls();
        let mut upgraded = 0;
        for (id, conn) in self.clients.conns.iter() {
            let found = named.get(&id).copied().unwrap_or_default();
            let kept = Sum { items: conn.unanswered as usize, bytes: conn.unanswered_bytes };
            ensure(found == kept, || format!("{id:?}: unanswered {kept:?}, in truth {found:?}"))?;
            ensure(conn.unanswered <= conn.terms.unanswered_max, || {
                format!("{id:?}: {} unanswered", conn.unanswered)
            })?;
            // Each cause has something that ends it.
            let holds = conn.holds;
            ensure(!holds.has(Hold::Unanswered) || conn.unanswered > 0, || {
                format!("{id:?} is held for answers that never come")
            })?;
            ensure(holds.has(Hold::Token) == conn.pending_auth.is_some(), || {
                format!("{id:?}: {holds:?}, a token waits: {}", conn.pending_auth.is_some())
            })?;
            ensure(holds.has(Hold::Move) == conn.moving.is_some(), || {
                format!("{id:?}: {holds:?}, a move waits: {}", conn.moving.is_some())
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
